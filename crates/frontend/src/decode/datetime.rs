//! Dates, times and intervals from text, accepting the forms that PostgreSQL's manual lists for them.

use flow::{Error, Result, SqlState};

use crate::decode::number::{quoted, trim};
use crate::encode::datetime::{DAY_US, days_from_civil};
use crate::settings::{DateOrder, TextSettings, TimeZone, parse_offset};

/// Where the calendar of Postgres ends, exclusive.
const YEAR_MAX: i64 = 294_277;
const YEAR_MIN: i64 = -4713;
/// Dates go further than timestamps.
const DATE_YEAR_MAX: i64 = 5_874_898;

#[cold]
fn bad_syntax(type_name: &str, text: &[u8]) -> Error {
    let message = format!("invalid input syntax for type {type_name}: {}", quoted(text));
    Error::new(SqlState::InvalidDatetimeFormat, message)
}

#[cold]
fn out_of_range(text: &[u8]) -> Error {
    let message = format!("date/time field value out of range: {}", quoted(text));
    Error::new(SqlState::DatetimeFieldOverflow, message)
}

#[cold]
fn month_out_of_range(text: &[u8]) -> Error {
    out_of_range(text).with_hint("Perhaps you need a different \"datestyle\" setting.")
}

fn two(digits: &[u8]) -> Option<u8> {
    match digits {
        [a @ b'0'..=b'9', b @ b'0'..=b'9'] => Some((a - b'0') * 10 + (b - b'0')),
        _ => None,
    }
}

fn days_in_month(year: i64, month: u8) -> u8 {
    match month {
        2 if year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn checked_days(year: i64, month: u8, day: u8, text: &[u8]) -> Result<i64> {
    if !(1..=12).contains(&month) {
        return Err(month_out_of_range(text));
    }
    if day == 0 || day > days_in_month(year, month) {
        return Err(out_of_range(text));
    }
    Ok(days_from_civil(year, month, day))
}

/// `YYYY-MM-DD` at the start of `text`, as (days, rest): what nearly all input looks like.
#[inline]
fn iso_date(text: &[u8]) -> Option<(i64, &[u8])> {
    if text.len() < 10 || text[4] != b'-' || text[7] != b'-' {
        return None;
    }
    let year = i64::from(two(&text[..2])?) * 100 + i64::from(two(&text[2..4])?);
    let (month, day) = (two(&text[5..7])?, two(&text[8..10])?);
    if year == 0 || !(1..=12).contains(&month) || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    Some((days_from_civil(year, month, day), &text[10..]))
}

/// `HH:MM[:SS[.ffffff]]` at the start of `text`, as (microseconds, rest). Digits beyond microseconds are rounded.
#[inline]
fn clock(text: &[u8]) -> Option<(i64, &[u8])> {
    let (hour, rest) = match text {
        [a, b, b':', ..] => (two(&[*a, *b])?, &text[3..]),
        [a @ b'0'..=b'9', b':', ..] => (a - b'0', &text[2..]),
        _ => return None,
    };
    let minute = two(rest.get(..2)?)?;
    let mut rest = &rest[2..];
    let (mut second, mut fraction_us) = (0, 0);
    if let [b':', a, b, after @ ..] = rest {
        second = two(&[*a, *b])?;
        rest = after;
        if let [b'.', after @ ..] = rest {
            let digits = after.iter().take_while(|b| b.is_ascii_digit()).count();
            fraction_us = fraction(&after[..digits]);
            rest = &after[digits..];
        }
    }
    let us = (i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second)) * 1_000_000 + fraction_us;
    // A second of 60 and the hour of 24 stand for the next minute and the next day.
    if hour > 24 || minute > 59 || second > 60 || us > DAY_US {
        return None;
    }
    Some((us, rest))
}

/// The digits after a decimal point, as microseconds.
fn fraction(digits: &[u8]) -> i64 {
    let mut us = 0;
    for i in 0..6 {
        us = us * 10 + digits.get(i).map_or(0, |d| i64::from(d - b'0'));
    }
    us + i64::from(digits.get(6).is_some_and(|d| *d >= b'5'))
}

/// What a date or time says.
#[derive(Default)]
struct Reading {
    days: Option<i64>,
    clock_us: Option<i64>,
    zone: Option<TimeZone>,
}

enum Instant {
    Read(Reading),
    Infinity,
    MinusInfinity,
    /// Microseconds since the Unix epoch, UTC, of words like `now`.
    At(i64),
}

fn is_word(text: &[u8], word: &str) -> bool {
    text.eq_ignore_ascii_case(word.as_bytes())
}

fn month_named(word: &str) -> Option<u8> {
    const MONTHS: [&str; 12] = [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ];
    let known = |full: &str| word.len() >= 3 && full.starts_with(word) && (word.len() == 3 || word == full);
    let found = MONTHS.iter().position(|full| known(full));
    found.or(if word == "sept" { Some(8) } else { None }).map(|i| i as u8 + 1)
}

fn is_weekday(word: &str) -> bool {
    const DAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
    word.len() >= 3 && DAYS.iter().any(|full| full.starts_with(word))
}

/// Reads any date/time text. `type_name` is for the error.
fn read(text: &[u8], type_name: &str, settings: &TextSettings) -> Result<Instant> {
    let word = trim(text);
    for (name, instant) in [
        ("infinity", Instant::Infinity),
        ("+infinity", Instant::Infinity),
        ("-infinity", Instant::MinusInfinity),
        ("epoch", Instant::At(0)),
    ] {
        if is_word(word, name) {
            return Ok(instant);
        }
    }
    for (name, days) in [("today", 0), ("tomorrow", 1), ("yesterday", -1)] {
        if is_word(word, name) {
            let now = settings.now_us.ok_or_else(|| bad_syntax(type_name, text))?;
            let local = now + i64::from(settings.time_zone.offset_at(now)) * 1_000_000;
            let midnight = (local.div_euclid(DAY_US) + days) * DAY_US;
            return Ok(Instant::At(settings.time_zone.to_utc(midnight).unwrap_or(midnight)));
        }
    }
    if is_word(word, "now") {
        return settings.now_us.map(Instant::At).ok_or_else(|| bad_syntax(type_name, text));
    }
    let text_of = std::str::from_utf8(word).map_err(|_| bad_syntax(type_name, text))?;
    let mut reading = Reading::default();
    let mut numbers: Vec<(i64, usize)> = Vec::new();
    let mut month = None;
    let mut before_christ = false;
    let mut date_order = settings.date_order;
    let mut ymd: Option<(i64, u8, u8)> = None;
    let mut afternoon = None;
    for token in text_of.split([' ', '\t', '\n', ',']).filter(|t| !t.is_empty()) {
        // `2024-01-02T03:04:05`: the T separates two tokens.
        let parts = match token.find(['T', 't']) {
            Some(at)
                if at > 0
                    && token.as_bytes()[at - 1].is_ascii_digit()
                    && token.as_bytes().get(at + 1).is_some_and(u8::is_ascii_digit) =>
            {
                [Some(&token[..at]), Some(&token[at + 1..])]
            }
            _ => [Some(token), None],
        };
        for token in parts.into_iter().flatten() {
            let bytes = token.as_bytes();
            let first = bytes.first().copied().unwrap_or(0);
            if first.is_ascii_digit() && token.contains(':') {
                let (us, rest) = clock(bytes).ok_or_else(|| clock_error(type_name, text))?;
                if reading.clock_us.replace(us).is_some() {
                    return Err(bad_syntax(type_name, text));
                }
                if !rest.is_empty() {
                    let rest = std::str::from_utf8(rest).map_err(|_| bad_syntax(type_name, text))?;
                    match rest.to_ascii_lowercase().as_str() {
                        "am" => afternoon = Some(false),
                        "pm" => afternoon = Some(true),
                        _ => reading.zone = Some(TimeZone::parse(rest).map_err(|_| bad_syntax(type_name, text))?),
                    }
                }
            } else if (first == b'+' || first == b'-') && reading.clock_us.is_some() {
                let seconds = parse_offset(token).ok_or_else(|| bad_syntax(type_name, text))?;
                reading.zone = Some(TimeZone::Fixed(seconds));
            } else if first.is_ascii_digit() && bytes.iter().all(u8::is_ascii_digit) {
                if bytes.len() == 8 && ymd.is_none() && numbers.is_empty() {
                    let number: i64 = token.parse().map_err(|_| bad_syntax(type_name, text))?;
                    ymd = Some((number / 10_000, (number / 100 % 100) as u8, (number % 100) as u8));
                } else if bytes.len() == 6 && (ymd.is_some() || type_name == "time") {
                    let spaced = [&bytes[..2], b":", &bytes[2..4], b":", &bytes[4..]].concat();
                    reading.clock_us = Some(clock(&spaced).ok_or_else(|| clock_error(type_name, text))?.0);
                } else {
                    numbers.push((token.parse().map_err(|_| bad_syntax(type_name, text))?, bytes.len()));
                }
            } else if first.is_ascii_digit() {
                let (date, zone) = numeric_date(token, date_order).ok_or_else(|| bad_syntax(type_name, text))?;
                if ymd.replace(date).is_some() {
                    return Err(bad_syntax(type_name, text));
                }
                reading.zone = zone.or(reading.zone);
            } else if let Some((date, zone)) = numeric_date(token, date_order).filter(|_| ymd.is_none()) {
                // `Jan-08-1999`
                ymd = Some(date);
                reading.zone = zone.or(reading.zone);
            } else {
                let lower = token.to_ascii_lowercase();
                match lower.as_str() {
                    "bc" => before_christ = true,
                    "ad" | "at" | "on" | "t" => {}
                    "am" => afternoon = Some(false),
                    "pm" => afternoon = Some(true),
                    name => {
                        if let Some(found) = month_named(name.trim_end_matches('.')) {
                            month = Some(found);
                            if numbers.is_empty() {
                                date_order = DateOrder::Mdy;
                            }
                        } else if !is_weekday(name) {
                            let zone = TimeZone::parse(token).map_err(|_| bad_syntax(type_name, text))?;
                            reading.zone = Some(zone);
                        }
                    }
                }
            }
        }
    }
    if let Some(month) = month {
        // With the month by name there are a day and a year left; a number above 31 or of three digits is the year.
        let is_year = |(value, len): (i64, usize)| value > 31 || len > 2;
        ymd = match numbers.as_slice() {
            [a, b] if is_year(*a) && !is_year(*b) => Some((a.0, month, b.0 as u8)),
            [a, b] if !is_year(*a) => Some((full_year(b.0, b.1), month, a.0 as u8)),
            _ => return Err(bad_syntax(type_name, text)),
        };
    } else if !numbers.is_empty() {
        return Err(bad_syntax(type_name, text));
    }
    if let Some((year, month, day)) = ymd {
        if before_christ && year <= 0 || !before_christ && year == 0 {
            return Err(out_of_range(text));
        }
        let year = if before_christ { 1 - year } else { year };
        let last = if type_name == "date" { DATE_YEAR_MAX } else { YEAR_MAX };
        if year >= last || year < YEAR_MIN {
            return Err(Error::new(
                SqlState::DatetimeFieldOverflow,
                format!("{type_name} out of range: {}", quoted(text)),
            ));
        }
        reading.days = Some(checked_days(year, month, day, text)?);
    }
    if let (Some(afternoon), Some(us)) = (afternoon, reading.clock_us) {
        let hour = us / 3_600_000_000;
        if !(1..=12).contains(&hour) {
            return Err(out_of_range(text));
        }
        let shift = (if afternoon { 12 } else { 0 }) - (if hour == 12 { 12 } else { 0 });
        reading.clock_us = Some(us + shift * 3_600_000_000);
    }
    Ok(Instant::Read(reading))
}

/// A clock that looks like one but names no time of day is out of range rather than bad syntax.
#[cold]
fn clock_error(type_name: &str, text: &[u8]) -> Error {
    let looks_right = text.iter().all(|b| b.is_ascii_digit() || b" :.-+".contains(b));
    if looks_right { out_of_range(text) } else { bad_syntax(type_name, text) }
}

fn full_year(value: i64, digits: usize) -> i64 {
    if digits > 2 {
        value
    } else if value < 70 {
        value + 2000
    } else {
        value + 1900
    }
}

/// `1999-01-08`, `1/8/1999`, `08.01.99`, `1999-Jan-08`, `08-Jan-1999`, `Jan-08-1999`; after an ISO date, a zone may follow.
fn numeric_date(token: &str, order: DateOrder) -> Option<((i64, u8, u8), Option<TimeZone>)> {
    let separator = token.find(['-', '/', '.']).map(|at| token.as_bytes()[at] as char)?;
    let mut parts = token.splitn(3, separator);
    let (a, b, rest) = (parts.next()?, parts.next()?, parts.next()?);
    // `2024-01-02+02` and `2024-01-02Z`.
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
    let (c, zone) = if rest.as_bytes().get(end) == Some(&b'+') || rest.ends_with(['Z', 'z']) {
        let end = rest.find(['+', 'Z', 'z'])?;
        (&rest[..end], Some(TimeZone::parse(&rest[end..]).ok()?))
    } else {
        (rest, None)
    };
    let number = |s: &str| -> Option<i64> {
        if s.is_empty() || s.len() > 7 || !s.bytes().all(|b| b.is_ascii_digit()) { None } else { s.parse().ok() }
    };
    let small = |s: &str| number(s).and_then(|n| u8::try_from(n).ok());
    if let Some(month) = month_named(&b.to_ascii_lowercase()) {
        return Some(if a.len() > 2 || order == DateOrder::Ymd {
            ((full_year(number(a)?, a.len()), month, small(c)?), zone)
        } else {
            ((full_year(number(c)?, c.len()), month, small(a)?), zone)
        });
    }
    if let Some(month) = month_named(&a.to_ascii_lowercase()) {
        return Some(((full_year(number(c)?, c.len()), month, small(b)?), zone));
    }
    let date = if a.len() > 2 {
        (number(a)?, small(b)?, small(c)?)
    } else {
        match order {
            DateOrder::Ymd => (full_year(number(a)?, a.len()), small(b)?, small(c)?),
            DateOrder::Mdy => (full_year(number(c)?, c.len()), small(a)?, small(b)?),
            DateOrder::Dmy => (full_year(number(c)?, c.len()), small(b)?, small(a)?),
        }
    };
    Some((date, zone))
}

/// Days since the Unix epoch.
pub(crate) fn parse_date(text: &[u8], settings: &TextSettings) -> Result<i32> {
    if let Some((days, [])) = iso_date(text) {
        return Ok(days as i32);
    }
    match read(text, "date", settings)? {
        Instant::Infinity => Ok(i32::MAX),
        Instant::MinusInfinity => Ok(i32::MIN),
        Instant::At(us) => {
            let local = us + i64::from(settings.time_zone.offset_at(us)) * 1_000_000;
            Ok(local.div_euclid(DAY_US) as i32)
        }
        Instant::Read(reading) => {
            let days = reading.days.ok_or_else(|| bad_syntax("date", text))?;
            i32::try_from(days).map_err(|_| out_of_range(text))
        }
    }
}

/// Microseconds since midnight.
pub(crate) fn parse_time(text: &[u8], settings: &TextSettings) -> Result<i64> {
    if let Some((us, [])) = clock(text) {
        return Ok(us);
    }
    match read(text, "time", settings)? {
        Instant::Read(Reading { clock_us: Some(us), .. }) => Ok(us),
        Instant::At(us) => Ok((us + i64::from(settings.time_zone.offset_at(us)) * 1_000_000).rem_euclid(DAY_US)),
        _ => Err(bad_syntax("time", text)),
    }
}

/// Microseconds since the Unix epoch by the wall clock that the text shows; a zone in the text is ignored, as in Postgres.
pub(crate) fn parse_timestamp(text: &[u8], settings: &TextSettings) -> Result<i64> {
    if let Some((days, [b' ' | b'T', rest @ ..])) = iso_date(text)
        && let Some((us, [])) = clock(rest)
    {
        return Ok(days * DAY_US + us);
    }
    match read(text, "timestamp", settings)? {
        Instant::Infinity => Ok(i64::MAX),
        Instant::MinusInfinity => Ok(i64::MIN),
        Instant::At(us) => Ok(us + i64::from(settings.time_zone.offset_at(us)) * 1_000_000),
        Instant::Read(reading) => {
            let days = reading.days.ok_or_else(|| bad_syntax("timestamp", text))?;
            local_us(days, reading.clock_us, text)
        }
    }
}

fn local_us(days: i64, clock_us: Option<i64>, text: &[u8]) -> Result<i64> {
    days.checked_mul(DAY_US).and_then(|us| us.checked_add(clock_us.unwrap_or(0))).ok_or_else(|| out_of_range(text))
}

/// Microseconds since the Unix epoch, UTC. A text without zone is in the zone of the session.
pub(crate) fn parse_timestamptz(text: &[u8], settings: &TextSettings) -> Result<i64> {
    let type_name = "timestamp with time zone";
    if let Some((days, [b' ' | b'T', rest @ ..])) = iso_date(text)
        && let Some((us, rest)) = clock(rest)
    {
        let zone = match rest {
            [] => Some(settings.time_zone),
            b"Z" | b"+00" => Some(TimeZone::Utc),
            _ => None,
        };
        if let Some(zone) = zone {
            return zone.to_utc(days * DAY_US + us).ok_or_else(|| out_of_range(text));
        }
    }
    match read(text, type_name, settings)? {
        Instant::Infinity => Ok(i64::MAX),
        Instant::MinusInfinity => Ok(i64::MIN),
        Instant::At(us) => Ok(us),
        Instant::Read(reading) => {
            let days = reading.days.ok_or_else(|| bad_syntax(type_name, text))?;
            let local = local_us(days, reading.clock_us, text)?;
            reading.zone.unwrap_or(settings.time_zone).to_utc(local).ok_or_else(|| out_of_range(text))
        }
    }
}

/// Months, days and microseconds.
pub(crate) fn parse_interval(text: &[u8]) -> Result<(i32, i32, i64)> {
    let bad = || bad_syntax("interval", text);
    let word = std::str::from_utf8(trim(text)).map_err(|_| bad())?;
    let mut sum = IntervalSum::default();
    if let Some(iso) = word.strip_prefix('P') {
        read_iso_interval(iso, &mut sum).ok_or_else(bad)?;
        return sum.finish(text);
    }
    let lower = word.to_ascii_lowercase();
    let mut tokens = lower.split_ascii_whitespace().peekable();
    let mut ago = false;
    let mut seen = false;
    if tokens.peek() == Some(&"@") {
        tokens.next();
    }
    while let Some(token) = tokens.next() {
        if token == "ago" && seen && tokens.peek().is_none() {
            ago = true;
            break;
        }
        seen = true;
        let (negative, unsigned) = match token.as_bytes()[0] {
            b'-' => (true, &token[1..]),
            b'+' => (false, &token[1..]),
            _ => (false, token),
        };
        let sign = if negative { -1.0 } else { 1.0 };
        // `- 1 day`: the sign may stand apart.
        let unsigned = if unsigned.is_empty() { tokens.next().ok_or_else(bad)? } else { unsigned };
        if unsigned.contains(':') {
            let us = interval_clock(unsigned).ok_or_else(bad)?;
            sum.us += i128::from(if negative { -us } else { us });
        } else if let Some((years, months)) = unsigned.split_once('-') {
            let (years, months): (i64, i64) = (years.parse().map_err(|_| bad())?, months.parse().map_err(|_| bad())?);
            if months > 11 || years > i64::from(i32::MAX) {
                return Err(out_of_range(text));
            }
            let total = years * 12 + months;
            sum.months += (if negative { -total } else { total }) as f64;
        } else {
            let digits = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
            let unit = match &unsigned[digits..] {
                // `1 day 5`: a bare number at the end is seconds; before a clock, in the SQL form, it is days.
                "" => match tokens.peek() {
                    None => "second",
                    Some(next) if next.contains(':') => "day",
                    Some(_) => tokens.next().unwrap_or("second"),
                },
                attached => attached,
            };
            sum.add_decimal(&unsigned[..digits], sign, unit).ok_or_else(bad)?;
        }
    }
    if !seen {
        return Err(bad());
    }
    if ago {
        (sum.months, sum.days, sum.us) = (-sum.months, -sum.days, -sum.us);
    }
    sum.finish(text)
}

/// `H:MM`, `H:MM:SS.ffffff`; hours may be many.
fn interval_clock(text: &str) -> Option<i64> {
    let (whole, digits) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = whole.split(':');
    let (hours, minutes): (i64, i64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let seconds: i64 = parts.next().map_or(Some(0), |s| s.parse().ok())?;
    let plain = whole.bytes().all(|b| b.is_ascii_digit() || b == b':') && digits.bytes().all(|b| b.is_ascii_digit());
    if parts.next().is_some() || !plain || minutes > 59 || seconds > 60 {
        return None;
    }
    hours.checked_mul(3_600_000_000)?.checked_add((minutes * 60 + seconds) * 1_000_000 + fraction(digits.as_bytes()))
}

/// `1Y2M3DT4H5M6.7S`, after the P.
fn read_iso_interval(text: &str, sum: &mut IntervalSum) -> Option<()> {
    let (mut rest, mut in_time, mut seen) = (text, false, false);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('T') {
            (rest, in_time) = (after, true);
            continue;
        }
        let (sign, unsigned) = match rest.strip_prefix('-') {
            Some(unsigned) => (-1.0, unsigned),
            None => (1.0, rest.strip_prefix('+').unwrap_or(rest)),
        };
        let digits = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit = match (unsigned.as_bytes()[digits], in_time) {
            (b'Y', false) => "year",
            (b'M', false) => "month",
            (b'W', false) => "week",
            (b'D', false) => "day",
            (b'H', true) => "hour",
            (b'M', true) => "minute",
            (b'S', true) => "second",
            _ => return None,
        };
        sum.add_decimal(&unsigned[..digits], sign, unit)?;
        rest = &unsigned[digits + 1..];
        seen = true;
    }
    seen.then_some(())
}

/// The parts of an interval as they add up; fractions of a month become days, of a day microseconds.
#[derive(Default)]
struct IntervalSum {
    months: f64,
    days: f64,
    us: i128,
}

impl IntervalSum {
    fn add_decimal(&mut self, number: &str, sign: f64, unit: &str) -> Option<()> {
        if number.is_empty() || number == "." || number.matches('.').count() > 1 {
            return None;
        }
        let value: f64 = sign * number.parse::<f64>().ok()?;
        let unit = if unit.len() > 3 { unit.strip_suffix('s').unwrap_or(unit) } else { unit };
        let months_per = match unit {
            "y" | "yr" | "year" | "yrs" => 12.0,
            "mon" | "month" => 1.0,
            "decade" | "dec" => 120.0,
            "c" | "cent" | "century" | "centurie" => 1200.0,
            "mil" | "millennium" | "millennia" => 12_000.0,
            _ => 0.0,
        };
        if months_per > 0.0 {
            let months = value * months_per;
            self.months += months.trunc();
            // Only the unit month itself spills its fraction into days.
            if months_per == 1.0 {
                let days = months.fract() * 30.0;
                self.days += days.trunc();
                self.us += (days.fract() * DAY_US as f64).round() as i128;
            }
            return Some(());
        }
        let days_per = match unit {
            "d" | "day" => 1.0,
            "w" | "week" => 7.0,
            _ => 0.0,
        };
        if days_per > 0.0 {
            let days = value * days_per;
            self.days += days.trunc();
            self.us += (days.fract() * DAY_US as f64).round() as i128;
            return Some(());
        }
        let unit_us: i128 = match unit {
            "h" | "hr" | "hour" | "hrs" => 3_600_000_000,
            "m" | "min" | "minute" => 60_000_000,
            "s" | "sec" | "second" => 1_000_000,
            "ms" | "msec" | "millisecond" => 1000,
            "us" | "usec" | "microsecond" => 1,
            _ => return None,
        };
        let (whole, digits) = number.split_once('.').unwrap_or((number, ""));
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let part = if unit_us >= 1_000_000 {
            i128::from(fraction(digits.as_bytes())) * (unit_us / 1_000_000)
        } else {
            (value.abs().fract() * unit_us as f64).round() as i128
        };
        let us = whole.checked_mul(unit_us)?.checked_add(part)?;
        self.us = self.us.checked_add(if sign < 0.0 { -us } else { us })?;
        Some(())
    }

    fn finish(self, text: &[u8]) -> Result<(i32, i32, i64)> {
        let out_of_range = || {
            let message = format!("interval field value out of range: {}", quoted(text));
            Error::new(SqlState::DatetimeFieldOverflow, message)
        };
        let whole = |value: f64| {
            if value.abs() <= f64::from(i32::MAX) { Ok(value as i32) } else { Err(out_of_range()) }
        };
        Ok((whole(self.months)?, whole(self.days)?, i64::try_from(self.us).map_err(|_| out_of_range())?))
    }
}
