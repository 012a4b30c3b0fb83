//! Text to values, accepting what Postgres' input functions accept and failing as they fail.

use arrow::datatypes::IntervalMonthDayNano;
use chrono::{NaiveDate, NaiveDateTime, NaiveTime};
use flow::{Error, Result, SqlState};

use super::decimal::{PRECISION_MAX, overflow_error, power};
use super::zone::Zone;

/// `22P02` in Postgres' words.
pub fn invalid(type_name: &str, text: &str) -> Error {
    Error::new(SqlState::InvalidTextRepresentation, format!("invalid input syntax for type {type_name}: \"{text}\""))
}

fn invalid_time(type_name: &str, text: &str) -> Error {
    Error::new(SqlState::InvalidDatetimeFormat, format!("invalid input syntax for type {type_name}: \"{text}\""))
}

fn field_overflow(text: &str) -> Error {
    Error::new(SqlState::DatetimeFieldOverflow, format!("date/time field value out of range: \"{text}\""))
}

/// `t`, `true`, `yes`, `on`, `1` and their opposites, in any case, also shortened while unique.
pub fn boolean(text: &str) -> Result<bool> {
    let t = text.trim().to_ascii_lowercase();
    let is_start = |word: &str, least: usize| t.len() >= least && word.starts_with(&t);
    if is_start("true", 1) || is_start("yes", 1) || t == "on" || t == "1" {
        Ok(true)
    } else if is_start("false", 1) || is_start("no", 1) || is_start("off", 2) || t == "0" {
        Ok(false)
    } else {
        Err(invalid("boolean", text))
    }
}

/// A decimal integer with optional sign; `type_name` and the bounds are the target's.
pub fn integer(text: &str, type_name: &str, min: i64, max: i64) -> Result<i64> {
    let t = text.trim();
    let digits = t.strip_prefix(['+', '-']).unwrap_or(t);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid(type_name, text));
    }
    match t.parse::<i64>() {
        Ok(v) if v >= min && v <= max => Ok(v),
        _ => Err(Error::new(
            SqlState::NumericValueOutOfRange,
            format!("value \"{text}\" is out of range for type {type_name}"),
        )),
    }
}

/// `1`, `.5`, `1e3`, `NaN`, `Infinity`, `-inf`.
pub fn float(text: &str, type_name: &str) -> Result<f64> {
    let t = text.trim();
    match t.to_ascii_lowercase().as_str() {
        "nan" => return Ok(f64::NAN),
        "infinity" | "+infinity" | "inf" | "+inf" => return Ok(f64::INFINITY),
        "-infinity" | "-inf" => return Ok(f64::NEG_INFINITY),
        _ => {}
    }
    let is_number = t.bytes().any(|b| b.is_ascii_digit())
        && t.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    let value: f64 = match t.parse() {
        Ok(v) if is_number => v,
        _ => return Err(invalid(type_name, text)),
    };
    let too_large = value.is_infinite() || type_name == "real" && (value as f32).is_infinite();
    if too_large {
        return Err(Error::new(
            SqlState::NumericValueOutOfRange,
            format!("\"{t}\" is out of range for type {type_name}"),
        ));
    }
    Ok(value)
}

/// A decimal with `scale` digits after the point, rounded half away from zero.
pub fn decimal(text: &str, precision: u8, scale: i8) -> Result<i128> {
    let t = text.trim();
    let bad = || invalid("numeric", text);
    let (negative, body) = match t.as_bytes().first() {
        Some(b'-') => (true, &t[1..]),
        Some(b'+') => (false, &t[1..]),
        _ => (false, t),
    };
    if body.eq_ignore_ascii_case("nan") || body.to_ascii_lowercase().starts_with("inf") {
        return Err(Error::unsupported("numeric has no NaN and no infinity here").with_hint("Use double precision."));
    }
    let (mantissa, exponent) = match body.split_once(['e', 'E']) {
        Some((m, e)) => (m, e.parse::<i64>().map_err(|_| bad())?),
        None => (body, 0),
    };
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = integer.bytes().chain(fraction.bytes());
    if integer.is_empty() && fraction.is_empty() || !digits.clone().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    // value = digits * 10^(exponent - fraction.len()); shift it to `scale` digits.
    let shift = exponent.saturating_sub(fraction.len() as i64).saturating_add(i64::from(scale));
    let overflow = || overflow_error(precision, scale);
    let total = digits.clone().count() as i64;
    let mut value: i128 = 0;
    let kept = total.saturating_add(shift.min(0)).max(0);
    for b in digits.clone().take(kept as usize) {
        value = value.checked_mul(10).and_then(|v| v.checked_add(i128::from(b - b'0'))).ok_or_else(overflow)?;
    }
    if shift < 0 && total.saturating_add(shift) >= 0 && digits.clone().nth(kept as usize).is_some_and(|b| b >= b'5') {
        value = value.checked_add(1).ok_or_else(overflow)?;
    }
    if shift > 0 && value != 0 {
        if shift > i64::from(PRECISION_MAX) {
            return Err(overflow());
        }
        value = value.checked_mul(power(shift as u8)).ok_or_else(overflow)?;
    }
    if value >= power(precision) {
        return Err(overflow());
    }
    Ok(if negative { -value } else { value })
}

/// Days since 1970-01-01.
pub fn date(text: &str) -> Result<i32> {
    let (date, rest) = read_date(text.trim(), "date", text)?;
    // A time after the date is read and dropped, as in Postgres.
    if !rest.is_empty() {
        read_time_and_zone(rest, "date", text)?;
    }
    days(date).ok_or_else(|| field_overflow(text))
}

fn days(date: NaiveDate) -> Option<i32> {
    use chrono::Datelike;
    date.num_days_from_ce().checked_sub(719_163)
}

/// Microseconds since midnight.
pub fn time(text: &str) -> Result<i64> {
    let (time, _) = read_time_and_zone(text.trim(), "time", text)?;
    Ok(time)
}

/// Microseconds since 1970 of a time without zone; a zone in the text is read and dropped, as in Postgres.
pub fn timestamp(text: &str) -> Result<i64> {
    let (local, _) = read_timestamp(text, "timestamp")?;
    Ok(local.and_utc().timestamp_micros())
}

/// Microseconds since 1970 UTC; without a zone in the text the time is one of `session`.
pub fn timestamptz(text: &str, session: &Zone) -> Result<i64> {
    let (local, zone) = read_timestamp(text, "timestamp with time zone")?;
    zone.unwrap_or(*session).to_utc(local).ok_or_else(|| field_overflow(text))
}

fn read_timestamp(text: &str, type_name: &str) -> Result<(NaiveDateTime, Option<Zone>)> {
    let trimmed = text.trim();
    if trimmed.eq_ignore_ascii_case("epoch") {
        return Ok((chrono::DateTime::UNIX_EPOCH.naive_utc(), Some(Zone::UTC)));
    }
    if matches!(trimmed.to_ascii_lowercase().as_str(), "infinity" | "-infinity") {
        return Err(Error::unsupported("infinite timestamps are not supported").with_hint("Use a far date."));
    }
    let (date, rest) = read_date(trimmed, type_name, text)?;
    let (us, zone) = if rest.is_empty() { (0, None) } else { read_time_and_zone(rest, type_name, text)? };
    let at = date
        .and_time(NaiveTime::MIN)
        .checked_add_signed(chrono::TimeDelta::microseconds(us))
        .ok_or_else(|| field_overflow(text))?;
    Ok((at, zone))
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// The date at the front of `text` and what follows it. `2024-01-31`, `20240131`, `2024/01/31`, `1/31/2024`,
/// `31 Jan 2024`, `Jan 31, 2024`, each with an optional ` BC` at the very end of the text.
fn read_date<'a>(text: &'a str, type_name: &str, whole: &str) -> Result<(NaiveDate, &'a str)> {
    let bad = || invalid_time(type_name, whole);
    let (text, bc) = match text.len().checked_sub(3).and_then(|at| text.split_at_checked(at)) {
        Some((front, end)) if end.eq_ignore_ascii_case(" bc") => (front.trim_end(), true),
        _ => (text, false),
    };
    let lead = text.bytes().take_while(u8::is_ascii_digit).count();
    let words = text.starts_with(|c: char| c.is_ascii_alphabetic())
        || text[lead..].trim_start().starts_with(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'T' | 't'));
    let (year, month, day, rest);
    if words {
        let mut parts = text.splitn(4, [' ', ',', '-']).map(str::trim);
        let mut month_found = None;
        let mut numbers = Vec::new();
        let mut consumed = 0;
        for part in parts.by_ref() {
            consumed += part.len() + 1;
            if let Some(m) = part.get(..3).and_then(|p| MONTHS.iter().position(|m| m.eq_ignore_ascii_case(p))) {
                month_found = Some(m as u32 + 1);
            } else if !part.is_empty() {
                numbers.push(part.trim_end_matches(',').parse::<i32>().map_err(|_| bad())?);
            }
            if month_found.is_some() && numbers.len() == 2 {
                break;
            }
        }
        let ([a, b], Some(m)) = (numbers.as_slice(), month_found) else { return Err(bad()) };
        (day, year) = if *a > 31 { (*b, *a) } else { (*a, *b) };
        month = m;
        rest = text.get(consumed.min(text.len())..).unwrap_or("");
    } else if lead >= 8 && text.get(lead..).is_none_or(|r| !r.starts_with(['-', '/'])) {
        let (y, md) = text[..lead].split_at(lead - 4);
        (year, month, day) =
            (y.parse().map_err(|_| bad())?, md[..2].parse().map_err(|_| bad())?, md[2..].parse().map_err(|_| bad())?);
        rest = &text[lead..];
    } else {
        let separator = text[lead..].chars().next().filter(|c| matches!(c, '-' | '/' | '.')).ok_or_else(bad)?;
        let mut fields = [0i32; 3];
        let mut at = 0;
        for (i, field) in fields.iter_mut().enumerate() {
            let digits = text[at..].bytes().take_while(u8::is_ascii_digit).count();
            *field = text[at..at + digits].parse().map_err(|_| bad())?;
            at += digits;
            if i < 2 {
                if !text[at..].starts_with(separator) {
                    return Err(bad());
                }
                at += 1;
            }
        }
        if lead >= 3 {
            (year, month, day) = (fields[0], fields[1] as u32, fields[2]);
        } else {
            // DateStyle MDY.
            (month, day, year) = (fields[0] as u32, fields[1], fields[2]);
        }
        rest = &text[at..];
    }
    let year = if bc { 1 - year } else { year };
    let date = NaiveDate::from_ymd_opt(year, month, u32::try_from(day).map_err(|_| bad())?)
        .ok_or_else(|| field_overflow(whole))?;
    let rest = rest.strip_prefix(['T', 't']).unwrap_or(rest).trim_start();
    Ok((date, rest))
}

/// `12:34[:56[.789]] [AM|PM] [zone]` in microseconds.
fn read_time_and_zone(text: &str, type_name: &str, whole: &str) -> Result<(i64, Option<Zone>)> {
    let bad = || invalid_time(type_name, whole);
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, ':' | '.'))).unwrap_or(text.len());
    let (clock, rest) = text.split_at(end);
    let mut rest = rest.trim();
    let mut half = None;
    for (word, is_pm) in [("am", false), ("pm", true)] {
        if rest.get(..2).is_some_and(|r| r.eq_ignore_ascii_case(word)) {
            half = Some(is_pm);
            rest = rest[2..].trim();
        }
    }
    let colons: String;
    let clock = match clock.find([':', '.']).unwrap_or(clock.len()) {
        // `040506` and `0405`.
        length @ (4 | 6) if clock.bytes().take(length).all(|b| b.is_ascii_digit()) && !clock.contains(':') => {
            colons = format!("{}:{}:{}", &clock[..2], &clock[2..4], if length == 6 { &clock[4..] } else { "00" });
            colons.as_str()
        }
        _ => clock,
    };
    let mut fields = clock.split(':');
    let number = |t: Option<&str>| -> Result<i64> {
        match t {
            Some(t) if !t.is_empty() && t.len() <= 2 => t.parse().map_err(|_| bad()),
            _ => Err(bad()),
        }
    };
    let mut hour = number(fields.next())?;
    let minute = number(fields.next())?;
    let (second, us) = match fields.next() {
        None => (0, 0),
        Some(field) => {
            let (second, fraction) = field.split_once('.').unwrap_or((field, ""));
            (number(Some(second))?, micros(fraction).ok_or_else(bad)?)
        }
    };
    if fields.next().is_some() {
        return Err(bad());
    }
    match half {
        Some(_) if !(1..=12).contains(&hour) => return Err(field_overflow(whole)),
        Some(true) if hour < 12 => hour += 12,
        Some(false) if hour == 12 => hour = 0,
        _ => {}
    }
    if hour > 24 || minute > 59 || second > 60 || hour == 24 && (minute, second, us) != (0, 0, 0) {
        return Err(field_overflow(whole));
    }
    let zone = if rest.is_empty() {
        None
    } else {
        Some(Zone::parse(rest).ok_or_else(|| {
            if rest.starts_with(|c: char| c.is_ascii_alphabetic()) {
                Error::new(SqlState::InvalidParameterValue, format!("time zone \"{rest}\" not recognized"))
            } else {
                bad()
            }
        })?)
    };
    Ok((((hour * 60 + minute) * 60 + second) * 1_000_000 + us, zone))
}

/// The digits after a second's point in microseconds, rounded.
fn micros(fraction: &str) -> Option<i64> {
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let padded: String = fraction.chars().chain(std::iter::repeat('0')).take(7).collect();
    let tenths: i64 = padded.parse().ok()?;
    Some((tenths + 5) / 10)
}

/// `1 year 2 mons 3 days 04:05:06.7`, `1.5 hours ago`, `@ 3 weeks`, ISO `P1Y2M3DT4H5M6S`.
pub fn interval(text: &str) -> Result<IntervalMonthDayNano> {
    let bad = || invalid_time("interval", text);
    let range =
        || Error::new(SqlState::DatetimeFieldOverflow, format!("interval field value out of range: \"{text}\""));
    let trimmed = text.trim().to_ascii_lowercase();
    let mut sum = IntervalParts::default();
    if let Some(iso) = trimmed.strip_prefix('p') {
        let (dates, times) = iso.split_once('t').unwrap_or((iso, ""));
        for (part, is_time) in [(dates, false), (times, true)] {
            let mut rest = part;
            while !rest.is_empty() {
                let end = rest.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?;
                let unit = match (&rest[end..end + 1], is_time) {
                    ("m", true) => "minute",
                    ("m", false) => "month",
                    ("y", _) => "year",
                    ("w", _) => "week",
                    ("d", _) => "day",
                    ("h", _) => "hour",
                    ("s", _) => "second",
                    _ => return Err(bad()),
                };
                sum.add(rest[..end].parse().map_err(|_| bad())?, unit).ok_or_else(bad)?;
                rest = &rest[end + 1..];
            }
        }
        return sum.finish().ok_or_else(range);
    }
    let mut words = trimmed.strip_prefix('@').unwrap_or(&trimmed).split_whitespace().peekable();
    if words.peek().is_none() {
        return Err(bad());
    }
    let mut ago = false;
    while let Some(word) = words.next() {
        if word == "ago" && words.peek().is_none() {
            ago = true;
            continue;
        }
        if word.contains(':') {
            let (sign, clock) = match word.strip_prefix('-') {
                Some(clock) => (-1.0, clock),
                None => (1.0, word.strip_prefix('+').unwrap_or(word)),
            };
            let mut fields = clock.split(':');
            for unit in ["hour", "minute", "second"] {
                if let Some(field) = fields.next() {
                    let value: f64 = field.parse().map_err(|_| bad())?;
                    sum.add(sign * value, unit).ok_or_else(bad)?;
                }
            }
            if fields.next().is_some() {
                return Err(bad());
            }
            continue;
        }
        // `1-2` is a year and two months.
        if let Some((years, months)) = word.trim_start_matches(['+', '-']).split_once('-')
            && let (Ok(years), Ok(months)) = (years.parse::<u32>(), months.parse::<u32>())
        {
            let sign = if word.starts_with('-') { -1.0 } else { 1.0 };
            sum.add(sign * f64::from(years), "year").ok_or_else(bad)?;
            sum.add(sign * f64::from(months), "month").ok_or_else(bad)?;
            continue;
        }
        // `1 day`, `1day`, or a bare number of seconds at the end.
        let split = word.find(|c: char| c.is_ascii_alphabetic() && c != 'e').unwrap_or(word.len());
        let (number, unit) = word.split_at(split);
        let value: f64 = number.parse().map_err(|_| bad())?;
        let unit = if !unit.is_empty() {
            unit
        } else {
            match words.peek() {
                Some(next) if next.starts_with(|c: char| c.is_ascii_alphabetic()) && *next != "ago" => {
                    words.next().unwrap_or("second")
                }
                // `3 04:05:06` means days.
                Some(next) if next.contains(':') => "day",
                _ => "second",
            }
        };
        sum.add(value, unit).ok_or_else(bad)?;
    }
    let i = sum.finish().ok_or_else(range)?;
    if !ago {
        return Ok(i);
    }
    let negated = i.months.checked_neg().zip(i.days.checked_neg()).zip(i.nanoseconds.checked_neg());
    negated.map(|((m, d), n)| IntervalMonthDayNano::new(m, d, n)).ok_or_else(range)
}

/// Sums of an interval's fields before the fractions are passed down.
#[derive(Default)]
struct IntervalParts {
    months: f64,
    days: f64,
    micros: f64,
}

impl IntervalParts {
    fn add(&mut self, value: f64, unit: &str) -> Option<()> {
        // PostgreSQL's own words, of which it looks at the first ten letters.
        let (months, days, micros) = match unit.get(..10).unwrap_or(unit) {
            "millennium" | "millennia" | "mil" | "mils" => (12_000.0, 0.0, 0.0),
            "century" | "centuries" | "cent" | "c" => (1_200.0, 0.0, 0.0),
            "decade" | "decades" | "dec" | "decs" => (120.0, 0.0, 0.0),
            "year" | "years" | "yr" | "yrs" | "y" => (12.0, 0.0, 0.0),
            "month" | "months" | "mon" | "mons" => (1.0, 0.0, 0.0),
            "week" | "weeks" | "w" => (0.0, 7.0, 0.0),
            "day" | "days" | "d" => (0.0, 1.0, 0.0),
            "hour" | "hours" | "hr" | "hrs" | "h" => (0.0, 0.0, 3.6e9),
            "minute" | "minutes" | "min" | "mins" | "m" => (0.0, 0.0, 6e7),
            "second" | "seconds" | "sec" | "secs" | "s" | "" => (0.0, 0.0, 1e6),
            "millisecon" | "msecond" | "mseconds" | "msec" | "msecs" | "ms" => (0.0, 0.0, 1e3),
            "microsecon" | "usecond" | "useconds" | "usec" | "usecs" | "us" => (0.0, 0.0, 1.0),
            _ => return None,
        };
        // Whole months stay months; a part of one becomes days, a part of a day becomes time.
        let m = value * months;
        self.months += m.trunc();
        let d = value * days + (m.fract() * 30.0 * 1e9).round() / 1e9;
        self.days += d.trunc();
        self.micros += (value * micros + d.fract() * 8.64e10).round();
        value.is_finite().then_some(())
    }

    fn finish(self) -> Option<IntervalMonthDayNano> {
        let limit = f64::from(i32::MAX);
        if self.months.abs() > limit || self.days.abs() > limit || self.micros.abs() > i64::MAX as f64 / 1_000.0 {
            return None;
        }
        let nanoseconds = (self.micros as i64).checked_mul(1_000)?;
        Some(IntervalMonthDayNano::new(self.months as i32, self.days as i32, nanoseconds))
    }
}

/// `\xDEADBEEF`, or bytes with `\\` and `\ooo` escapes.
pub fn bytea(text: &str) -> Result<Vec<u8>> {
    if let Some(hex) = text.strip_prefix("\\x") {
        let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        if !digits.len().is_multiple_of(2) {
            return Err(Error::new(SqlState::InvalidParameterValue, "invalid hexadecimal data: odd number of digits"));
        }
        let digit = |b: u8| (b as char).to_digit(16);
        return digits
            .chunks_exact(2)
            .map(|pair| match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => Ok((high * 16 + low) as u8),
                (high, _) => {
                    let bad = if high.is_none() { pair[0] } else { pair[1] };
                    let shown = hex.chars().find(|c| c.len_utf8() > 1 && bad >= 128).unwrap_or(bad as char);
                    let message = format!("invalid hexadecimal digit: \"{shown}\"");
                    Err(Error::new(SqlState::InvalidParameterValue, message))
                }
            })
            .collect();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(&b) = bytes.get(i) {
        if b != b'\\' {
            out.push(b);
            i += 1;
        } else if bytes.get(i + 1) == Some(&b'\\') {
            out.push(b'\\');
            i += 2;
        } else {
            let octal = bytes.get(i + 1..i + 4).and_then(|o| std::str::from_utf8(o).ok());
            match octal.and_then(|o| u8::from_str_radix(o, 8).ok()) {
                Some(byte) => out.push(byte),
                None => return Err(invalid("bytea", text)),
            }
            i += 4;
        }
    }
    Ok(out)
}

/// The elements of `{a,"b c",NULL}`; `None` is NULL.
pub fn array_elements(text: &str) -> Result<Vec<Option<String>>> {
    let bad = || Error::new(SqlState::InvalidTextRepresentation, format!("malformed array literal: \"{text}\""));
    let inner = text.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}')).ok_or_else(bad)?;
    if inner.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut elements = Vec::new();
    let mut chars = inner.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut element = String::new();
        let quoted = chars.next_if_eq(&'"').is_some();
        loop {
            match chars.next() {
                Some('\\') => element.push(chars.next().ok_or_else(bad)?),
                Some('"') if quoted => break,
                Some('"' | '{' | '}') if !quoted => return Err(bad()),
                None if quoted => return Err(bad()),
                None => break,
                Some(c) => element.push(c),
            }
            if !quoted && matches!(chars.peek(), Some(',') | None) {
                break;
            }
        }
        if quoted {
            elements.push(Some(element));
        } else {
            let trimmed = element.trim();
            if trimmed.is_empty() {
                return Err(bad());
            }
            elements.push((!trimmed.eq_ignore_ascii_case("null")).then(|| trimmed.to_string()));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        match chars.next() {
            None => return Ok(elements),
            Some(',') => {}
            Some(_) => return Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::format;
    use super::*;

    #[test]
    fn booleans_take_every_spelling() {
        for t in ["t", "true", "TRUE", " yes ", "y", "on", "1", "tr"] {
            assert_eq!(boolean(t), Ok(true), "{t}");
        }
        for f in ["f", "false", "no", "n", "off", "of", "0"] {
            assert_eq!(boolean(f), Ok(false), "{f}");
        }
        for bad in ["", "o", "2", "truer"] {
            assert_eq!(boolean(bad).unwrap_err().state(), SqlState::InvalidTextRepresentation, "{bad}");
        }
    }

    #[test]
    fn integers_and_decimals_fail_as_in_postgres() {
        assert_eq!(integer(" -12 ", "integer", i32::MIN as i64, i32::MAX as i64), Ok(-12));
        let e = integer("abc", "integer", 0, 9).unwrap_err();
        assert_eq!(e.message(), "invalid input syntax for type integer: \"abc\"");
        let e = integer("2147483648", "integer", i32::MIN as i64, i32::MAX as i64).unwrap_err();
        assert_eq!(e.message(), "value \"2147483648\" is out of range for type integer");
        assert_eq!(decimal("1.005", 10, 2), Ok(101));
        assert_eq!(decimal("-1.5e2", 10, 2), Ok(-15_000));
        assert_eq!(decimal(".004", 10, 2), Ok(0));
        assert_eq!(decimal("0.5", 10, 0), Ok(1));
        assert_eq!(decimal("1e-40", 10, 2), Ok(0));
        assert_eq!(decimal("123", 2, 0).unwrap_err().state(), SqlState::NumericValueOutOfRange);
        assert_eq!(decimal("1e99999999999", 38, 18).unwrap_err().state(), SqlState::NumericValueOutOfRange);
        for bad in ["", ".", "1.2.3", "e5", "--1", "0x1"] {
            assert_eq!(decimal(bad, 10, 2).unwrap_err().state(), SqlState::InvalidTextRepresentation, "{bad}");
        }
    }

    fn stamp(us: i64) -> String {
        let mut s = String::new();
        format::timestamp(&mut s, us);
        s
    }

    #[test]
    fn timestamps_are_read_in_the_usual_spellings() {
        for (text, expected) in [
            ("2024-01-31", "2024-01-31 00:00:00"),
            ("2024-01-31 12:34", "2024-01-31 12:34:00"),
            ("2024-01-31T12:34:56.789Z", "2024-01-31 12:34:56.789"),
            ("2024-01-31 12:34:56.1234567", "2024-01-31 12:34:56.123457"),
            ("2024-01-31 12:34:56+02", "2024-01-31 12:34:56"),
            ("20240131", "2024-01-31 00:00:00"),
            ("1/31/2024 1:02 PM", "2024-01-31 13:02:00"),
            ("Jan 31, 2024", "2024-01-31 00:00:00"),
            ("31 January 2024 05:00", "2024-01-31 05:00:00"),
            ("2024-01-31 24:00:00", "2024-02-01 00:00:00"),
            ("0044-03-15 BC", "0044-03-15 00:00:00 BC"),
            ("epoch", "1970-01-01 00:00:00"),
        ] {
            assert_eq!(stamp(timestamp(text).unwrap_or_else(|e| panic!("{text}: {e}"))), expected, "{text}");
        }
        let berlin = Zone::parse("Europe/Berlin").unwrap();
        assert_eq!(timestamptz("1970-01-01 01:00:00", &berlin), Ok(0));
        assert_eq!(timestamptz("1970-01-01 01:00:00+00", &berlin), Ok(3_600_000_000));
        for (bad, state) in [
            ("yesterdayish", SqlState::InvalidDatetimeFormat),
            ("2024-13-01", SqlState::DatetimeFieldOverflow),
            ("2024-02-30", SqlState::DatetimeFieldOverflow),
            ("2024-01-01 25:00", SqlState::DatetimeFieldOverflow),
            ("", SqlState::InvalidDatetimeFormat),
            ("2024-01-01 12", SqlState::InvalidDatetimeFormat),
        ] {
            assert_eq!(timestamp(bad).unwrap_err().state(), state, "{bad}");
        }
    }

    #[test]
    fn intervals_are_read_in_the_usual_spellings() {
        for (text, expected) in [
            ("1 day", "1 day"),
            ("1 year 2 mons 3 days 04:05:06.789", "1 year 2 mons 3 days 04:05:06.789"),
            ("90 minutes", "01:30:00"),
            ("1.5 hours", "01:30:00"),
            ("1.5 days", "1 day 12:00:00"),
            ("0.5 months", "15 days"),
            ("2 weeks", "14 days"),
            ("-1 day", "-1 days"),
            ("1 day ago", "-1 days"),
            ("30", "00:00:30"),
            ("3 04:05:06", "3 days 04:05:06"),
            ("1h 5min", "01:05:00"),
            ("P1Y2M3DT4H5M6S", "1 year 2 mons 3 days 04:05:06"),
            ("500 milliseconds", "00:00:00.5"),
        ] {
            let mut s = String::new();
            format::interval(&mut s, interval(text).unwrap_or_else(|e| panic!("{text}: {e}")));
            assert_eq!(s, expected, "{text}");
        }
        for bad in ["", "day", "1 fortnight", "1:2:3:4", "P1"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_and_arrays_are_read() {
        assert_eq!(bytea("\\xDEad"), Ok(vec![0xde, 0xad]));
        assert_eq!(bytea("a\\\\b\\001"), Ok(vec![b'a', b'\\', b'b', 1]));
        assert!(bytea("\\x1").is_err() && bytea("\\9").is_err());
        let some = |s: &str| Some(s.to_string());
        assert_eq!(
            array_elements("{a, \"b \\\"c\\\"\" ,NULL,\"NULL\"}"),
            Ok(vec![some("a"), some("b \"c\""), None, some("NULL")])
        );
        assert_eq!(array_elements("{}"), Ok(vec![]));
        assert!(array_elements("a,b").is_err() && array_elements("{a,}").is_err());
    }
}
