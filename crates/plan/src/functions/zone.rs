//! Time zones as the session setting `TimeZone` and the texts of timestamps name them.

use chrono::{NaiveDateTime, Offset, TimeZone};
use chrono_tz::Tz;

/// A named zone or a fixed offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    Named(Tz),
    /// Seconds east of UTC.
    Fixed(i32),
}

impl Zone {
    pub const UTC: Zone = Zone::Fixed(0);

    /// Reads `Europe/Berlin`, `UTC`, `Z`, `+02`, `-03:30`, `+0530`; names in any case.
    pub fn parse(text: &str) -> Option<Zone> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("utc") || text.eq_ignore_ascii_case("z") || text.eq_ignore_ascii_case("gmt") {
            return Some(Zone::UTC);
        }
        if let Some(sign) = text.chars().next().filter(|c| matches!(c, '+' | '-')) {
            let seconds = offset_seconds(&text[1..])?;
            return Some(Zone::Fixed(if sign == '-' { -seconds } else { seconds }));
        }
        if let Ok(tz) = text.parse::<Tz>() {
            return Some(Zone::Named(tz));
        }
        chrono_tz::TZ_VARIANTS.iter().find(|tz| tz.name().eq_ignore_ascii_case(text)).copied().map(Zone::Named)
    }

    /// Seconds east of UTC at a moment given in UTC.
    pub fn offset_of_utc(&self, utc: NaiveDateTime) -> i32 {
        match self {
            Zone::Named(tz) => tz.offset_from_utc_datetime(&utc).fix().local_minus_utc(),
            Zone::Fixed(seconds) => *seconds,
        }
    }

    /// Seconds east of UTC at a local time. A time that happens twice means the first; one that is skipped is read with
    /// the offset before the gap, as in Postgres.
    pub fn offset_of_local(&self, local: NaiveDateTime) -> i32 {
        match self {
            Zone::Fixed(seconds) => *seconds,
            Zone::Named(tz) => match tz.offset_from_local_datetime(&local) {
                chrono::LocalResult::Single(o) => o.fix().local_minus_utc(),
                chrono::LocalResult::Ambiguous(earliest, _) => earliest.fix().local_minus_utc(),
                chrono::LocalResult::None => {
                    let before = local - chrono::TimeDelta::hours(3);
                    match tz.offset_from_local_datetime(&before).earliest() {
                        Some(o) => o.fix().local_minus_utc(),
                        None => 0,
                    }
                }
            },
        }
    }

    /// The zone's abbreviation at a moment given in microseconds since 1970 UTC: `CET`, `UTC`, `+02`.
    pub fn abbreviation(&self, us: i64) -> String {
        match self {
            Zone::Named(tz) => chrono::DateTime::from_timestamp_micros(us)
                .map_or_else(String::new, |at| tz.offset_from_utc_datetime(&at.naive_utc()).to_string()),
            Zone::Fixed(0) => "UTC".to_string(),
            Zone::Fixed(seconds) => {
                let sign = if *seconds < 0 { '-' } else { '+' };
                let (hours, minutes) = (seconds.abs() / 3_600, seconds.abs() % 3_600 / 60);
                if minutes == 0 { format!("{sign}{hours:02}") } else { format!("{sign}{hours:02}:{minutes:02}") }
            }
        }
    }

    /// Microseconds since 1970 UTC of a local time, if representable.
    pub fn to_utc(&self, local: NaiveDateTime) -> Option<i64> {
        let us = local.and_utc().timestamp_micros();
        us.checked_sub(i64::from(self.offset_of_local(local)).checked_mul(1_000_000)?)
    }

    /// Local microseconds since 1970 of a moment in UTC, if representable.
    pub fn to_local(&self, us: i64) -> Option<i64> {
        let utc = chrono::DateTime::from_timestamp_micros(us)?.naive_utc();
        us.checked_add(i64::from(self.offset_of_utc(utc)) * 1_000_000)
    }
}

/// `02`, `0230`, `02:30`, `02:30:15` in seconds.
fn offset_seconds(text: &str) -> Option<i32> {
    let digits: Vec<i32> = if text.contains(':') {
        text.split(':').map(|p| p.parse().ok()).collect::<Option<_>>()?
    } else if text.len() > 2 && text.bytes().all(|b| b.is_ascii_digit()) {
        let (hours, minutes) = text.split_at(text.len() - 2);
        vec![hours.parse().ok()?, minutes.parse().ok()?]
    } else {
        vec![text.parse().ok()?]
    };
    let valid =
        digits.len() <= 3 && digits[0] >= 0 && digits[0] < 16 && digits[1..].iter().all(|d| (0..60).contains(d));
    valid.then(|| digits.iter().zip([3_600, 60, 1]).map(|(d, unit)| d * unit).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_read_in_every_spelling() {
        assert_eq!(Zone::parse("utc"), Some(Zone::UTC));
        assert_eq!(Zone::parse("+02"), Some(Zone::Fixed(7_200)));
        assert_eq!(Zone::parse("-03:30"), Some(Zone::Fixed(-12_600)));
        assert_eq!(Zone::parse("+0530"), Some(Zone::Fixed(19_800)));
        assert!(Zone::parse("europe/berlin").is_some());
        assert_eq!(Zone::parse("Nowhere/Town"), None);
        assert_eq!(Zone::parse("+99"), None);
    }

    #[test]
    fn a_local_time_in_the_spring_gap_takes_the_offset_before_it() {
        let berlin = Zone::parse("Europe/Berlin").unwrap();
        let gap = chrono::NaiveDate::from_ymd_opt(2024, 3, 31).unwrap().and_hms_opt(2, 30, 0).unwrap();
        assert_eq!(berlin.offset_of_local(gap), 3_600);
    }
}
