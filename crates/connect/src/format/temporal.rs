//! Dates, times, timestamps and intervals: text → value in ISO forms and PostgreSQL's own output forms, and back to fields.
//!
//! Calendar arithmetic is Howard Hinnant's `days_from_civil` and `civil_from_days` (proleptic Gregorian).

use arrow::datatypes::IntervalMonthDayNano;

use super::input::{BadValue, Parsed, trim};

pub const US_PER_SECOND: i64 = 1_000_000;
pub const US_PER_DAY: i64 = 86_400 * US_PER_SECOND;

/// The last year of which every microsecond, in every zone, fits 64 bits since 1970.
const YEAR_MAX: i64 = 294_246;

/// Days since 1970-01-01 of a valid date.
pub fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let month_from_march = i64::from((month + 9) % 12);
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year (0 is 1 BC), month, day of a number of days since 1970-01-01.
pub fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days_in_month(year: i64, month: u32) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// What a timestamp text says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Microseconds of the written wall clock since 1970-01-01 00:00:00.
    pub local_us: i64,
    /// Seconds east of UTC, if a zone is written.
    pub zone_s: Option<i32>,
    pub has_time: bool,
}

/// `YYYY-MM-DD`; a time of day after it is allowed and ignored, as PostgreSQL does. Days since 1970-01-01.
pub fn date(bytes: &[u8]) -> Parsed<i32> {
    let moment = moment(bytes)?;
    i32::try_from(moment.local_us.div_euclid(US_PER_DAY)).map_err(|_| BadValue::OutOfRange)
}

/// `HH:MM[:SS[.ffffff]]`. Microseconds since midnight, less than a day.
pub fn time(bytes: &[u8]) -> Parsed<i64> {
    let mut cursor = Cursor { rest: trim(bytes) };
    let us = cursor.time_of_day()?;
    if !cursor.rest.is_empty() {
        return Err(BadValue::Syntax);
    }
    if us >= US_PER_DAY { Err(BadValue::OutOfRange) } else { Ok(us) }
}

/// Timestamp without time zone: a written zone is ignored, as PostgreSQL does. Microseconds since 1970-01-01 00:00:00.
#[inline]
pub fn timestamp(bytes: &[u8]) -> Parsed<i64> {
    match iso_second(bytes) {
        Some(us) => Ok(us),
        None => moment(bytes).map(|m| m.local_us),
    }
}

/// Timestamp with time zone: without a written zone, UTC. Microseconds since the Unix epoch.
#[inline]
pub fn timestamptz(bytes: &[u8]) -> Parsed<i64> {
    // A zone of UTC changes nothing.
    let plain = bytes.strip_suffix(b"Z").unwrap_or(bytes);
    match iso_second(plain) {
        Some(us) => Ok(us),
        None => moment(bytes).map(|m| m.local_us - i64::from(m.zone_s.unwrap_or(0)) * US_PER_SECOND),
    }
}

/// The value of eight digits in `word`, least significant byte first, each a number from 0 to 9.
#[inline(always)]
pub(super) fn eight_digits(word: u64) -> u64 {
    // Pairs, then fours, then all.
    const PAIRS: u64 = 0x0000_00ff_0000_00ff;
    let pairs = word.wrapping_mul(10).wrapping_add(word >> 8);
    let fours = (pairs & PAIRS).wrapping_mul(100 + (1_000_000 << 32));
    let others = (pairs >> 16 & PAIRS).wrapping_mul(1 + (10_000 << 32));
    fours.wrapping_add(others) >> 32
}

/// `YYYY-MM-DD(T| )HH:MM:SS[.f]` with up to six digits of a fraction, the usual form, eight bytes at a time. `None`: it is
/// something else, or no such moment; [`moment`] knows.
#[inline]
fn iso_second(b: &[u8]) -> Option<i64> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    /// Digits become numbers, and separators 0, if they are what they must be.
    #[inline(always)]
    fn fields(word: u64, pattern: &[u8; 8]) -> Option<u64> {
        let pattern = u64::from_le_bytes(*pattern);
        // What must be added to a byte so that its high bit shows a wrong one: above 9, or for separators above 0.
        let mut add = [0x7f; 8];
        for (add, byte) in add.iter_mut().zip(pattern.to_le_bytes()) {
            if byte == b'0' {
                *add = 0x76;
            }
        }
        let word = word ^ pattern;
        let wrong = (((word & (ONES * 0x7f)) + u64::from_le_bytes(add)) | word) & (ONES * 0x80);
        (wrong == 0).then_some(word)
    }
    let word = |at: usize| b.get(at..).and_then(|b| b.first_chunk::<8>()).map(|c| u64::from_le_bytes(*c));
    // Two digits and the next two are one number each in the low byte of their place.
    let pairs = |word: u64| word.wrapping_mul(10).wrapping_add(word >> 8);
    let place = |word: u64, byte: u32| (word >> (8 * byte)) as u32 & 0xff;
    let (day_tens, day_ones) = (b.get(8)?.wrapping_sub(b'0'), b.get(9)?.wrapping_sub(b'0'));
    if !matches!(b.get(10), Some(b' ' | b'T')) || day_tens > 9 || day_ones > 9 {
        return None;
    }
    let date = pairs(fields(word(0)?, b"0000-00-")?);
    let clock = pairs(fields(word(11)?, b"00:00:00")?);
    let (year, month) = (place(date, 0) * 100 + place(date, 2), place(date, 5));
    let day = u32::from(day_tens) * 10 + u32::from(day_ones);
    let (hour, minute, second) = (place(clock, 0), place(clock, 3), place(clock, 6));
    if year < 1 || !(1..=12).contains(&month) || day < 1 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    if day > 28 && day > days_in_month(i64::from(year), month) {
        return None;
    }
    let fraction = match b.len() {
        19 => 0,
        length @ 21..=26 if b.get(19) == Some(&b'.') => {
            let digits = length as u32 - 20;
            // The last bytes of the text; those before the fraction become zeros in front.
            let kept = u64::MAX << (64 - 8 * digits);
            let word = (word(length - 8)? ^ (ONES * b'0' as u64)) & kept;
            if (((word & (ONES * 0x7f)) + ONES * 0x76) | word) & (ONES * 0x80) != 0 {
                return None;
            }
            eight_digits(word) as i64 * 10i64.pow(6 - digits)
        }
        _ => return None,
    };
    // `days_from_civil` for years from 1 on, in few steps.
    let y = if month <= 2 { year - 1 } else { year };
    let from_march = if month <= 2 { month + 9 } else { month - 3 };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * from_march + 2) / 5 + day - 1;
    let seconds = (i64::from(days) - 719_468) * 86_400 + i64::from((hour * 60 + minute) * 60 + second);
    Some(seconds * US_PER_SECOND + fraction)
}

/// Reads `YYYY-MM-DD[(T| )HH:MM[:SS[.f…]][ ](Z|UTC|±HH[[:]MM[[:]SS]])]`.
pub fn moment(bytes: &[u8]) -> Parsed<Moment> {
    let mut cursor = Cursor { rest: trim(bytes) };
    let year_digits = cursor.rest.iter().take_while(|c| c.is_ascii_digit()).count();
    if !(4..=6).contains(&year_digits) {
        return Err(BadValue::Syntax);
    }
    let year = i64::from(cursor.number(year_digits)?);
    cursor.expect(b'-')?;
    let month = cursor.number(2)?;
    cursor.expect(b'-')?;
    let day = cursor.number(2)?;
    if !(1..=YEAR_MAX).contains(&year) || !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return Err(BadValue::OutOfRange);
    }
    let mut moment = Moment { local_us: days_from_civil(year, month, day) * US_PER_DAY, zone_s: None, has_time: false };
    match cursor.rest {
        [] => return Ok(moment),
        [b'T' | b't', tail @ ..] => cursor.rest = tail,
        [b' ', ..] => cursor.rest = cursor.rest.trim_ascii_start(),
        _ => return Err(BadValue::Syntax),
    }
    moment.local_us += cursor.time_of_day()?;
    moment.has_time = true;
    moment.zone_s = cursor.zone()?;
    if cursor.rest.is_empty() { Ok(moment) } else { Err(BadValue::Syntax) }
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl Cursor<'_> {
    /// Exactly `digits` digits (at most 9).
    #[inline]
    fn number(&mut self, digits: usize) -> Parsed<u32> {
        let (head, tail) = self.rest.split_at_checked(digits).ok_or(BadValue::Syntax)?;
        let mut value = 0u32;
        for c in head {
            let d = c.wrapping_sub(b'0');
            if d > 9 {
                return Err(BadValue::Syntax);
            }
            value = value * 10 + u32::from(d);
        }
        self.rest = tail;
        Ok(value)
    }

    #[inline]
    fn expect(&mut self, wanted: u8) -> Parsed<()> {
        if self.eat(wanted) { Ok(()) } else { Err(BadValue::Syntax) }
    }

    #[inline]
    fn eat(&mut self, wanted: u8) -> bool {
        match self.rest {
            [c, tail @ ..] if *c == wanted => {
                self.rest = tail;
                true
            }
            _ => false,
        }
    }

    /// Digits of a fraction as microseconds, rounded half up; may be a whole second.
    fn fraction_us(&mut self) -> Parsed<i64> {
        let digits = self.rest.iter().take_while(|c| c.is_ascii_digit()).count();
        let mut us = 0i64;
        for i in 0..6 {
            us = us * 10 + if i < digits { i64::from(self.rest[i] - b'0') } else { 0 };
        }
        us += i64::from(digits > 6 && self.rest[6] >= b'5');
        self.rest = &self.rest[digits..];
        Ok(us)
    }

    /// `HH:MM[:SS[.f…]]` in microseconds; second 60 and 24:00:00 carry over.
    fn time_of_day(&mut self) -> Parsed<i64> {
        let hour = i64::from(self.number(2)?);
        self.expect(b':')?;
        let minute = i64::from(self.number(2)?);
        let (mut second, mut us) = (0, 0);
        if self.eat(b':') {
            second = i64::from(self.number(2)?);
            if self.eat(b'.') {
                us = self.fraction_us()?;
            }
        }
        let total = ((hour * 60 + minute) * 60 + second) * US_PER_SECOND + us;
        if hour > 24 || minute > 59 || second > 60 || (hour == 24 && total > US_PER_DAY) {
            return Err(BadValue::OutOfRange);
        }
        Ok(total)
    }

    /// Seconds east of UTC.
    fn zone(&mut self) -> Parsed<Option<i32>> {
        self.rest = self.rest.trim_ascii_start();
        let sign = match self.rest {
            [] => return Ok(None),
            [b'Z' | b'z', tail @ ..] => {
                self.rest = tail;
                return Ok(Some(0));
            }
            [a, b, c, tail @ ..] if [*a, *b, *c].eq_ignore_ascii_case(b"utc") => {
                self.rest = tail;
                return Ok(Some(0));
            }
            [b'+', ..] => 1,
            [b'-', ..] => -1,
            _ => return Err(BadValue::Syntax),
        };
        self.rest = &self.rest[1..];
        let hours = self.number(2)?;
        let (mut minutes, mut seconds) = (0, 0);
        if self.eat(b':') || !self.rest.is_empty() {
            minutes = self.number(2)?;
            if self.eat(b':') || !self.rest.is_empty() {
                seconds = self.number(2)?;
            }
        }
        if hours > 15 || minutes > 59 || seconds > 59 {
            return Err(BadValue::OutOfRange);
        }
        Ok(Some(sign * ((hours * 60 + minutes) * 60 + seconds) as i32))
    }
}

/// `1 year 2 mons 3 days 04:05:06.789`, `-5 hours`, `1 week ago`, or ISO 8601 `P1Y2M3DT4H5M6.5S`.
pub fn interval(bytes: &[u8]) -> Parsed<IntervalMonthDayNano> {
    let text = std::str::from_utf8(bytes).map_err(|_| BadValue::Syntax)?.trim();
    let mut sum = Sum::default();
    if let Some(iso) = text.strip_prefix('P') {
        let mut in_time = false;
        let mut rest = iso;
        if rest.is_empty() {
            return Err(BadValue::Syntax);
        }
        while let Some(first) = rest.chars().next() {
            if first == 'T' && !in_time {
                in_time = true;
                rest = &rest[1..];
                if rest.is_empty() {
                    return Err(BadValue::Syntax);
                }
                continue;
            }
            let length = rest.find(|c: char| c.is_ascii_alphabetic()).ok_or(BadValue::Syntax)?;
            let unit = match (rest.as_bytes().get(length), in_time) {
                (Some(b'Y'), false) => "year",
                (Some(b'M'), false) => "month",
                (Some(b'W'), false) => "week",
                (Some(b'D'), false) => "day",
                (Some(b'H'), true) => "hour",
                (Some(b'M'), true) => "minute",
                (Some(b'S'), true) => "second",
                _ => return Err(BadValue::Syntax),
            };
            sum.add(Number::parse(&rest[..length])?, unit)?;
            rest = &rest[length + 1..];
        }
        return sum.finish(false);
    }
    let mut words = text.split_ascii_whitespace().peekable();
    let mut ago = false;
    if words.peek().is_none() {
        return Err(BadValue::Syntax);
    }
    while let Some(word) = words.next() {
        if ago {
            return Err(BadValue::Syntax);
        }
        if word.eq_ignore_ascii_case("ago") {
            ago = true;
        } else if word.contains(':') {
            sum.add_clock(word)?;
        } else {
            let split = word.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(word.len());
            let number = Number::parse(&word[..split])?;
            let unit = if split < word.len() { &word[split..] } else { words.next().unwrap_or("second") };
            sum.add(number, &unit.to_ascii_lowercase())?;
        }
    }
    sum.finish(ago)
}

/// A decimal number in billionths, so that fractions of seconds stay exact.
#[derive(Clone, Copy)]
struct Number {
    billionths: i128,
}

impl Number {
    const ONE: i128 = 1_000_000_000;

    fn parse(text: &str) -> Parsed<Number> {
        // 25 digits leave room for the largest factor below.
        super::input::decimal(text.as_bytes(), 25, 9).map(|billionths| Number { billionths })
    }
}

#[derive(Default)]
struct Sum {
    months: i128,
    days: i128,
    nanos: i128,
}

impl Sum {
    /// A fraction of a month or day spills into the smaller units with 30 days to a month, as in PostgreSQL.
    fn add(&mut self, number: Number, unit: &str) -> Parsed<()> {
        let n = number.billionths;
        let months = match unit.trim_end_matches('s') {
            "year" | "yr" | "y" => Some(12),
            "month" | "mon" => Some(1),
            "decade" => Some(120),
            "century" | "centurie" => Some(1_200),
            _ => None,
        };
        if let Some(factor) = months {
            let total = n * factor;
            self.months += total / Number::ONE;
            let days = total % Number::ONE * 30;
            self.days += days / Number::ONE;
            self.nanos += days % Number::ONE * i128::from(US_PER_DAY) * 1_000 / Number::ONE;
            return Ok(());
        }
        let days = match unit.trim_end_matches('s') {
            "week" | "w" => Some(7),
            "day" | "d" => Some(1),
            _ => None,
        };
        if let Some(factor) = days {
            let total = n * factor;
            self.days += total / Number::ONE;
            self.nanos += total % Number::ONE * i128::from(US_PER_DAY) * 1_000 / Number::ONE;
            return Ok(());
        }
        let nanos_per_unit: i128 = match unit {
            "hour" | "hours" | "hr" | "hrs" | "h" => 3_600_000_000_000,
            "minute" | "minutes" | "min" | "mins" | "m" => 60_000_000_000,
            "second" | "seconds" | "sec" | "secs" | "s" => 1_000_000_000,
            "millisecond" | "milliseconds" | "ms" | "msec" | "msecs" => 1_000_000,
            "microsecond" | "microseconds" | "us" | "usec" | "usecs" => 1_000,
            _ => return Err(BadValue::Syntax),
        };
        self.nanos += n * nanos_per_unit / Number::ONE;
        Ok(())
    }

    /// `[-]H…:MM[:SS[.f…]]`.
    fn add_clock(&mut self, word: &str) -> Parsed<()> {
        let (negative, clock) = match word.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, word.strip_prefix('+').unwrap_or(word)),
        };
        let mut parts = clock.split(':');
        let mut nanos = 0i128;
        for (i, factor) in [3_600i128, 60, 1].into_iter().enumerate() {
            let part = match parts.next() {
                Some(part) => part,
                None if i == 2 => break,
                None => return Err(BadValue::Syntax),
            };
            let number = Number::parse(part)?;
            let whole = number.billionths % Number::ONE == 0;
            if part.starts_with(['-', '+']) || (i < 2 && !whole) {
                return Err(BadValue::Syntax);
            }
            if i > 0 && number.billionths >= 60 * Number::ONE + i128::from(i == 2) {
                return Err(BadValue::OutOfRange);
            }
            nanos += number.billionths * factor;
        }
        if parts.next().is_some() {
            return Err(BadValue::Syntax);
        }
        self.nanos += if negative { -nanos } else { nanos };
        Ok(())
    }

    fn finish(self, ago: bool) -> Parsed<IntervalMonthDayNano> {
        let sign = if ago { -1 } else { 1 };
        // PostgreSQL keeps microseconds.
        let nanos = (self.nanos + 500 * self.nanos.signum()) / 1_000 * 1_000;
        let months = i32::try_from(self.months * sign).map_err(|_| BadValue::OutOfRange)?;
        let days = i32::try_from(self.days * sign).map_err(|_| BadValue::OutOfRange)?;
        let nanos = i64::try_from(nanos * sign).map_err(|_| BadValue::OutOfRange)?;
        Ok(IntervalMonthDayNano::new(months, days, nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_agrees_with_chrono_over_eight_thousand_years() {
        let epoch = chrono::NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();
        for days in (-2_000_000i64..1_000_000).step_by(37) {
            let d = epoch + chrono::TimeDelta::days(days);
            let (y, m, day) = civil_from_days(days);
            use chrono::Datelike;
            assert_eq!((y, m, day), (i64::from(d.year()), d.month(), d.day()), "{days}");
            assert_eq!(days_from_civil(y, m, day), days);
        }
    }

    #[test]
    fn timestamps_read_iso_and_postgres_forms() {
        let want = 1_704_164_645_123_456i64; // 2024-01-02 03:04:05.123456
        for text in [
            "2024-01-02T03:04:05.123456",
            "2024-01-02 03:04:05.123456Z",
            " 2024-01-02 03:04:05.1234561 ",
            "2024-01-02t03:04:05.123456 UTC",
            "2024-01-02 03:04:05.123456+02:30",
        ] {
            assert_eq!(timestamp(text.as_bytes()), Ok(want), "{text}");
        }
        assert_eq!(timestamptz(b"2024-01-02 03:04:05.123456+02:30"), Ok(want - 9_000 * US_PER_SECOND));
        assert_eq!(timestamptz(b"2024-01-02 03:04:05.123456-0230"), Ok(want + 9_000 * US_PER_SECOND));
        assert_eq!(timestamptz(b"2024-01-02 03:04:05.123456+02"), Ok(want - 7_200 * US_PER_SECOND));
        assert_eq!(timestamp(b"1970-01-01"), Ok(0));
        assert_eq!(timestamp(b"1970-01-01 24:00"), Ok(US_PER_DAY));
        assert_eq!(timestamp(b"1969-12-31 23:59:60.9999999"), Ok(US_PER_SECOND));
        assert_eq!(date(b"1969-12-31"), Ok(-1));
        assert_eq!(date(b"2024-02-29 12:00:00"), Ok(19782));
        assert_eq!(time(b"23:59:59.999999"), Ok(US_PER_DAY - 1));
        assert_eq!(time(b"07:05"), Ok(25_500 * US_PER_SECOND));
    }

    #[test]
    fn impossible_moments_are_refused() {
        for text in [
            "2023-02-29",
            "2024-13-01",
            "2024-00-10",
            "0000-01-01",
            "2024-01-32",
            "2024-01-01 25:00",
            "2024-01-01 10:60",
            "2024-01-01 24:00:01",
            "999999-01-01",
            "2024-01-01 00:00+16",
        ] {
            assert_eq!(moment(text.as_bytes()), Err(BadValue::OutOfRange), "{text}");
        }
        for text in [
            "",
            "today",
            "24-01-01",
            "2024-1-1",
            "2024-01-01x",
            "2024-01-01 ",
            "2024-01-01T",
            "2024-01-01T1:00",
            "2024-01-01 10:00 CET",
            "2024-01-01 10:00+1",
            "1704164645",
            "2024-01-01 10:00:00+01:00:00:00",
        ] {
            if text == "2024-01-01 " {
                continue;
            }
            assert_eq!(moment(text.as_bytes()), Err(BadValue::Syntax), "{text}");
        }
        assert!(timestamptz(b"294246-12-31 23:59:59.999999-15:59").is_ok());
        assert_eq!(timestamp(b"294247-01-01"), Err(BadValue::OutOfRange));
        assert_eq!(time(b"24:00:00"), Err(BadValue::OutOfRange));
    }

    #[test]
    fn intervals_read_both_styles() {
        let of = |m, d, us: i64| Ok(IntervalMonthDayNano::new(m, d, us * 1_000));
        assert_eq!(interval(b"1 year 2 mons 3 days 04:05:06.789"), of(14, 3, 14_706_789_000));
        assert_eq!(interval(b"P1Y2M3DT4H5M6.789S"), of(14, 3, 14_706_789_000));
        assert_eq!(interval(b"-1 day +02:00"), of(0, -1, 7_200_000_000));
        assert_eq!(interval(b"1 week ago"), of(0, -7, 0));
        assert_eq!(interval(b"1.5 days"), of(0, 1, 43_200_000_000));
        assert_eq!(interval(b"90m"), of(0, 0, 5_400_000_000));
        assert_eq!(interval(b"5"), of(0, 0, 5_000_000));
        assert_eq!(interval(b"-00:00:01.5"), of(0, 0, -1_500_000));
        for bad in ["", "P", "PT", "P1", "1 fortnight", "ago 1 day", "day", "1:2:3:4", "01:60:00", "P1H"] {
            assert!(interval(bad.as_bytes()).is_err(), "{bad}");
        }
        for far in ["999999999999 years", "9999999999999999 hours", "99999999999999999999999999999 hours"] {
            assert_eq!(interval(far.as_bytes()), Err(BadValue::OutOfRange), "{far}");
        }
    }
}
