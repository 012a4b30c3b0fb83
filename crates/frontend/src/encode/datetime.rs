//! Dates, times and intervals as text, by `DateStyle`, `IntervalStyle` and time zone.

use crate::encode::number::write_integer;
use crate::settings::{DateOrder, DateStyle, IntervalStyle, TimeZone};

pub(crate) const DAY_US: i64 = 86_400_000_000;

/// Days and microseconds from the Unix epoch to 2000-01-01, where Postgres counts from.
pub(crate) const POSTGRES_EPOCH_DAYS: i32 = 10_957;
pub(crate) const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// The proleptic Gregorian date that is `days` after 1970-01-01, as (year, month, day). Year 0 is 1 BC.
/// Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
pub(crate) fn civil_from_days(days: i64) -> (i64, u8, u8) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u8;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 } as u8;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Days from 1970-01-01 to a date; the inverse of [`civil_from_days`].
pub(crate) fn days_from_civil(year: i64, month: u8, day: u8) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let (month, day) = (i64::from(month), i64::from(day));
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[inline]
fn write_two(out: &mut Vec<u8>, value: u8) {
    out.extend_from_slice(&[b'0' + value / 10, b'0' + value % 10]);
}

/// At least four digits; the caller has turned BC years into positive ones.
fn write_year(out: &mut Vec<u8>, year: i64) {
    if year < 10_000 {
        write_two(out, (year / 100) as u8);
        write_two(out, (year % 100) as u8);
    } else {
        write_integer(out, year);
    }
}

/// `HH:MM:SS` and, where there is one, the fraction without trailing zeros.
fn write_clock(out: &mut Vec<u8>, us: i64) {
    let seconds = us / 1_000_000;
    write_two(out, (seconds / 3600) as u8);
    out.push(b':');
    write_two(out, (seconds / 60 % 60) as u8);
    out.push(b':');
    write_two(out, (seconds % 60) as u8);
    write_fraction(out, (us % 1_000_000) as u32);
}

fn write_fraction(out: &mut Vec<u8>, mut us: u32) {
    if us == 0 {
        return;
    }
    let mut digits = [b'0'; 6];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (us % 10) as u8;
        us /= 10;
    }
    let zeros = digits.iter().rev().take_while(|d| **d == b'0').count();
    out.push(b'.');
    out.extend_from_slice(&digits[..6 - zeros]);
}

/// `+02`, `-05:30`, `+00:19:32`.
pub(crate) fn write_offset(out: &mut Vec<u8>, seconds_east: i32) {
    out.push(if seconds_east < 0 { b'-' } else { b'+' });
    let seconds = seconds_east.unsigned_abs();
    write_two(out, (seconds / 3600) as u8);
    if !seconds.is_multiple_of(3600) {
        out.push(b':');
        write_two(out, (seconds / 60 % 60) as u8);
        if !seconds.is_multiple_of(60) {
            out.push(b':');
            write_two(out, (seconds % 60) as u8);
        }
    }
}

/// Microseconds since midnight, 24:00:00 included.
pub(crate) fn write_time(out: &mut Vec<u8>, us: i64) {
    write_clock(out, us.clamp(0, DAY_US));
}

fn write_numeric_date(out: &mut Vec<u8>, year: i64, month: u8, day: u8, style: DateStyle, order: DateOrder) {
    let separator = match style {
        DateStyle::Iso => {
            write_year(out, year);
            out.push(b'-');
            write_two(out, month);
            out.push(b'-');
            write_two(out, day);
            return;
        }
        DateStyle::Sql => b'/',
        DateStyle::Postgres => b'-',
        DateStyle::German => b'.',
    };
    let day_first = style == DateStyle::German || order == DateOrder::Dmy;
    write_two(out, if day_first { day } else { month });
    out.push(separator);
    write_two(out, if day_first { month } else { day });
    out.push(separator);
    write_year(out, year);
}

/// Days since the Unix epoch; the extremes of the type are the infinities.
pub(crate) fn write_date(out: &mut Vec<u8>, days: i32, style: DateStyle, order: DateOrder) {
    if days == i32::MAX || days == i32::MIN {
        out.extend_from_slice(if days > 0 { b"infinity" } else { b"-infinity" });
        return;
    }
    let (year, month, day) = civil_from_days(i64::from(days));
    let before_christ = year <= 0;
    write_numeric_date(out, if before_christ { 1 - year } else { year }, month, day, style, order);
    if before_christ {
        out.extend_from_slice(b" BC");
    }
}

/// Microseconds since the Unix epoch: UTC shown in `zone`, or without a zone as they are. The extremes of the type are the
/// infinities.
pub(crate) fn write_timestamp(out: &mut Vec<u8>, us: i64, zone: Option<TimeZone>, style: DateStyle, order: DateOrder) {
    if us == i64::MAX || us == i64::MIN {
        out.extend_from_slice(if us > 0 { b"infinity" } else { b"-infinity" });
        return;
    }
    let offset = zone.map_or(0, |zone| zone.offset_at(us));
    // Wide enough that shifting an extreme instant into its zone cannot overflow.
    let local = i128::from(us) + i128::from(offset) * 1_000_000;
    let days = local.div_euclid(i128::from(DAY_US)) as i64;
    let clock = local.rem_euclid(i128::from(DAY_US)) as i64;
    let (year, month, day) = civil_from_days(days);
    let before_christ = year <= 0;
    let year = if before_christ { 1 - year } else { year };
    if style == DateStyle::Postgres {
        let weekday = (days + 4).rem_euclid(7) as usize;
        out.extend_from_slice(["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"][weekday].as_bytes());
        out.push(b' ');
        const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let name = MONTHS[usize::from(month - 1)].as_bytes();
        if order == DateOrder::Dmy {
            write_two(out, day);
            out.push(b' ');
            out.extend_from_slice(name);
        } else {
            out.extend_from_slice(name);
            out.push(b' ');
            write_two(out, day);
        }
        out.push(b' ');
        write_clock(out, clock);
        out.push(b' ');
        write_year(out, year);
    } else {
        write_numeric_date(out, year, month, day, style, order);
        out.push(b' ');
        write_clock(out, clock);
    }
    if let Some(zone) = zone {
        match zone.abbreviation_at(us).filter(|_| style != DateStyle::Iso) {
            Some(name) => {
                out.push(b' ');
                out.extend_from_slice(name.as_bytes());
            }
            None => {
                if style == DateStyle::Postgres {
                    out.push(b' ');
                }
                write_offset(out, offset);
            }
        }
    }
    if before_christ {
        out.extend_from_slice(b" BC");
    }
}

/// An interval taken apart as Postgres prints it: every part has its own sign.
struct Parts {
    years: i64,
    months: i64,
    days: i64,
    hours: i64,
    minutes: i64,
    seconds: i64,
    us: i64,
}

impl Parts {
    fn clock_is_zero(&self) -> bool {
        self.hours == 0 && self.minutes == 0 && self.seconds == 0 && self.us == 0
    }

    fn clock_is_negative(&self) -> bool {
        self.hours < 0 || self.minutes < 0 || self.seconds < 0 || self.us < 0
    }

    fn all(&self) -> [i64; 7] {
        [self.years, self.months, self.days, self.hours, self.minutes, self.seconds, self.us]
    }

    fn write_seconds(&self, out: &mut Vec<u8>, two_digits: bool) {
        let seconds = self.seconds.unsigned_abs();
        if two_digits && seconds < 10 {
            out.push(b'0');
        }
        write_integer(out, seconds);
        write_fraction(out, self.us.unsigned_abs() as u32);
    }

    /// `H:MM:SS`, unsigned; the hours with two digits at least if `two_digits`.
    fn write_clock(&self, out: &mut Vec<u8>, two_digits: bool) {
        let hours = self.hours.unsigned_abs();
        if two_digits && hours < 10 {
            out.push(b'0');
        }
        write_integer(out, hours);
        out.push(b':');
        write_two(out, self.minutes.unsigned_abs() as u8);
        out.push(b':');
        self.write_seconds(out, true);
    }
}

/// Writes an interval of months, days and microseconds.
pub(crate) fn write_interval(out: &mut Vec<u8>, months: i32, days: i32, us: i64, style: IntervalStyle) {
    let parts = Parts {
        years: i64::from(months / 12),
        months: i64::from(months % 12),
        days: i64::from(days),
        hours: us / 3_600_000_000,
        minutes: us / 60_000_000 % 60,
        seconds: us / 1_000_000 % 60,
        us: us % 1_000_000,
    };
    match style {
        IntervalStyle::Postgres => write_postgres(out, &parts),
        IntervalStyle::PostgresVerbose => write_verbose(out, &parts),
        IntervalStyle::SqlStandard => write_sql_standard(out, parts),
        IntervalStyle::Iso8601 => write_iso_8601(out, &parts),
    }
}

fn write_postgres(out: &mut Vec<u8>, parts: &Parts) {
    let (mut first, mut before) = (true, false);
    for (value, unit) in [(parts.years, "year"), (parts.months, "mon"), (parts.days, "day")] {
        if value == 0 {
            continue;
        }
        if !first {
            out.push(b' ');
        }
        if before && value > 0 {
            out.push(b'+');
        }
        write_integer(out, value);
        out.push(b' ');
        out.extend_from_slice(unit.as_bytes());
        if value != 1 {
            out.push(b's');
        }
        (first, before) = (false, value < 0);
    }
    if first || !parts.clock_is_zero() {
        if !first {
            out.push(b' ');
        }
        if parts.clock_is_negative() {
            out.push(b'-');
        } else if before {
            out.push(b'+');
        }
        parts.write_clock(out, true);
    }
}

fn write_verbose(out: &mut Vec<u8>, parts: &Parts) {
    out.push(b'@');
    let (mut first, mut before) = (true, false);
    let units = ["year", "mon", "day", "hour", "min"];
    for (value, unit) in parts.all().into_iter().zip(units) {
        if value == 0 {
            continue;
        }
        if first {
            before = value < 0;
        }
        // The first part decides whether the whole is "ago"; the others are signed against it.
        let shown = if before { -value } else { value };
        out.push(b' ');
        write_integer(out, shown);
        out.push(b' ');
        out.extend_from_slice(unit.as_bytes());
        if shown != 1 {
            out.push(b's');
        }
        first = false;
    }
    if parts.seconds != 0 || parts.us != 0 {
        out.push(b' ');
        if parts.seconds < 0 || (parts.seconds == 0 && parts.us < 0) {
            if first {
                before = true;
            } else if !before {
                out.push(b'-');
            }
        } else if before {
            out.push(b'-');
        }
        parts.write_seconds(out, false);
        out.extend_from_slice(b" sec");
        if parts.seconds.abs() != 1 || parts.us != 0 {
            out.push(b's');
        }
        first = false;
    }
    if first {
        out.extend_from_slice(b" 0");
    }
    if before {
        out.extend_from_slice(b" ago");
    }
}

fn write_sql_standard(out: &mut Vec<u8>, mut parts: Parts) {
    let has_negative = parts.all().iter().any(|v| *v < 0);
    let has_positive = parts.all().iter().any(|v| *v > 0);
    let has_year_month = parts.years != 0 || parts.months != 0;
    let has_day_time = parts.days != 0 || !parts.clock_is_zero();
    if !has_negative && !has_positive {
        out.push(b'0');
        return;
    }
    if (has_negative && has_positive) || (has_year_month && has_day_time) {
        let sign = |negative: bool| if negative { b'-' } else { b'+' };
        out.push(sign(parts.years < 0 || parts.months < 0));
        write_integer(out, parts.years.unsigned_abs());
        out.push(b'-');
        write_integer(out, parts.months.unsigned_abs());
        out.extend_from_slice(&[b' ', sign(parts.days < 0)]);
        write_integer(out, parts.days.unsigned_abs());
        out.extend_from_slice(&[b' ', sign(parts.clock_is_negative())]);
        parts.write_clock(out, false);
        return;
    }
    if has_negative {
        out.push(b'-');
        for value in [&mut parts.years, &mut parts.months, &mut parts.days] {
            *value = -*value;
        }
    }
    if has_year_month {
        write_integer(out, parts.years);
        out.push(b'-');
        write_integer(out, parts.months);
        return;
    }
    if parts.days != 0 {
        write_integer(out, parts.days);
        out.push(b' ');
    }
    parts.write_clock(out, false);
}

fn write_iso_8601(out: &mut Vec<u8>, parts: &Parts) {
    if parts.all().iter().all(|v| *v == 0) {
        out.extend_from_slice(b"PT0S");
        return;
    }
    out.push(b'P');
    let part = |out: &mut Vec<u8>, value: i64, unit: u8| {
        if value != 0 {
            write_integer(out, value);
            out.push(unit);
        }
    };
    part(out, parts.years, b'Y');
    part(out, parts.months, b'M');
    part(out, parts.days, b'D');
    if !parts.clock_is_zero() {
        out.push(b'T');
    }
    part(out, parts.hours, b'H');
    part(out, parts.minutes, b'M');
    if parts.seconds != 0 || parts.us != 0 {
        if parts.seconds < 0 || parts.us < 0 {
            out.push(b'-');
        }
        parts.write_seconds(out, false);
        out.push(b'S');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_days_are_inverse() {
        for days in (-1_000_000..1_000_000).step_by(37) {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(11_016), (2000, 2, 29));
    }

    #[test]
    fn instants_are_shown_in_the_zone_of_the_session() {
        let zone = TimeZone::parse("Europe/Berlin").unwrap();
        let check = |us: i64, expected: &str| {
            let mut out = Vec::new();
            write_timestamp(&mut out, us, Some(zone), DateStyle::Iso, DateOrder::Mdy);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        check(0, "1970-01-01 01:00:00+01");
        check(1_720_000_000_123_400, "2024-07-03 11:46:40.1234+02");
        check(i64::MAX, "infinity");
        check(i64::MIN + 1, "290309-12-21 19:59:05.224193+00 BC");
    }
}
