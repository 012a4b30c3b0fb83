//! Numbers, booleans and bytes from text, accepting what PostgreSQL's input functions accept.

use flow::{Error, Result, SqlState};

/// `text` as it may stand in a message: valid UTF-8 and not endless.
pub(crate) fn quoted(text: &[u8]) -> String {
    const SHOWN_CHARS_MAX: usize = 200;
    let text = String::from_utf8_lossy(text);
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("\"{}...\"", &text[..end]),
        None => format!("\"{text}\""),
    }
}

#[cold]
pub(crate) fn bad_syntax(type_name: &str, text: &[u8]) -> Error {
    Error::new(
        SqlState::InvalidTextRepresentation,
        format!("invalid input syntax for type {type_name}: {}", quoted(text)),
    )
}

#[cold]
fn out_of_range(type_name: &str, text: &[u8]) -> Error {
    Error::new(SqlState::NumericValueOutOfRange, format!("value {} is out of range for type {type_name}", quoted(text)))
}

pub(crate) fn trim(text: &[u8]) -> &[u8] {
    // Vertical tab counts as white space for C's isspace, not for Rust.
    let space = |b: &u8| b.is_ascii_whitespace() || *b == 0x0b;
    let start = text.iter().position(|b| !space(b)).unwrap_or(text.len());
    let end = text.iter().rposition(|b| !space(b)).map_or(start, |at| at + 1);
    &text[start..end]
}

/// The prefixes of true, false, yes, no, on and off, and 1 and 0.
pub(crate) fn parse_bool(text: &[u8]) -> Result<bool> {
    let word = trim(text);
    let prefix_of = |full: &[u8], at_least: usize| {
        word.len() >= at_least && word.len() <= full.len() && full[..word.len()].eq_ignore_ascii_case(word)
    };
    if prefix_of(b"true", 1) || prefix_of(b"yes", 1) || prefix_of(b"on", 2) || word == b"1" {
        Ok(true)
    } else if prefix_of(b"false", 1) || prefix_of(b"no", 1) || prefix_of(b"off", 2) || word == b"0" {
        Ok(false)
    } else {
        Err(bad_syntax("boolean", text))
    }
}

/// An integer in `min ..= max`; `type_name` words the error.
#[inline]
pub(crate) fn parse_integer(text: &[u8], min: i64, max: i64, type_name: &str) -> Result<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    // Up to 18 digits cannot overflow: nearly every value there is.
    if digits.is_empty() || digits.len() > 18 {
        return parse_long_integer(text, min, max, type_name);
    }
    let mut value = 0i64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return parse_long_integer(text, min, max, type_name);
        }
        value = value * 10 + i64::from(digit);
    }
    let value = if negative { -value } else { value };
    if value < min || value > max {
        return Err(out_of_range(type_name, text));
    }
    Ok(value)
}

/// The same with white space around it, a plus sign, or so many digits that it may overflow.
#[cold]
fn parse_long_integer(text: &[u8], min: i64, max: i64, type_name: &str) -> Result<i64> {
    let (negative, digits) = match trim(text) {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(bad_syntax(type_name, text));
    }
    let magnitude = digits.iter().try_fold(0i128, |value, digit| {
        let value = value * 10 + i128::from(digit - b'0');
        (value <= 1 << 64).then_some(value)
    });
    let value = magnitude.map(|value| if negative { -value } else { value });
    match value.and_then(|value| i64::try_from(value).ok()) {
        Some(value) if value >= min && value <= max => Ok(value),
        _ => Err(out_of_range(type_name, text)),
    }
}

macro_rules! parse_float {
    ($name:ident, $float:ty, $type_name:expr) => {
        pub(crate) fn $name(text: &[u8]) -> Result<$float> {
            let word = trim(text);
            let value: $float = std::str::from_utf8(word)
                .ok()
                .and_then(|word| word.parse().ok())
                .ok_or_else(|| bad_syntax($type_name, text))?;
            // The exponent of a zero may be anything; a number that becomes zero or infinite is out of range.
            let mantissa = word.iter().take_while(|b| !matches!(b, b'e' | b'E'));
            if (value.is_infinite() && word.iter().any(u8::is_ascii_digit))
                || (value == 0.0 && mantissa.clone().any(|b| (b'1'..=b'9').contains(b)))
            {
                return Err(Error::new(
                    SqlState::NumericValueOutOfRange,
                    format!("{} is out of range for type {}", quoted(word), $type_name),
                ));
            }
            Ok(value)
        }
    };
}

parse_float!(parse_float4, f32, "real");
parse_float!(parse_float8, f64, "double precision");

/// The error for a numeric that does not fit `precision` and `scale`.
#[cold]
pub(crate) fn numeric_overflow(precision: u8, scale: i8) -> Error {
    let error = Error::new(SqlState::NumericValueOutOfRange, "numeric field overflow");
    let room = i32::from(precision) - i32::from(scale);
    error.with_detail(format!(
        "A field with precision {precision}, scale {scale} must round to an absolute value less than 10^{room}."
    ))
}

/// A decimal number as an integer of `10^-scale`, rounded half away from zero.
pub(crate) fn parse_numeric(text: &[u8], precision: u8, scale: i8) -> Result<i128> {
    let word = trim(text);
    let (negative, number) = match word {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    if [&b"nan"[..], b"inf", b"infinity"].iter().any(|name| number.eq_ignore_ascii_case(name)) {
        return Err(Error::unsupported(format!("numeric {} is not supported", quoted(word)))
            .with_hint("Use double precision for values that may be NaN or infinite."));
    }
    let (mantissa, exponent) = match number.iter().position(|b| matches!(b, b'e' | b'E')) {
        None => (number, 0),
        Some(at) => {
            let exponent = std::str::from_utf8(&number[at + 1..]).ok().and_then(|e| e.parse::<i32>().ok());
            (&number[..at], exponent.ok_or_else(|| bad_syntax("numeric", text))?)
        }
    };
    let mut accumulator = DecimalAccumulator::new(precision, scale);
    let point = mantissa.iter().position(|b| *b == b'.').unwrap_or(mantissa.len());
    let digits = mantissa.len() - usize::from(point < mantissa.len());
    if digits == 0 {
        return Err(bad_syntax("numeric", text));
    }
    let mut power = (point as i64 - 1) + i64::from(exponent);
    for (i, byte) in mantissa.iter().enumerate() {
        if i == point {
            continue;
        }
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return Err(bad_syntax("numeric", text));
        }
        accumulator.push(digit, power);
        power -= 1;
    }
    accumulator.finish(negative)
}

/// Builds a decimal from its digits, most significant first.
pub(crate) struct DecimalAccumulator {
    precision: u8,
    scale: i8,
    value: u128,
    /// The power of ten of the last digit taken.
    power: Option<i64>,
    round_up: bool,
    overflow: bool,
}

impl DecimalAccumulator {
    pub(crate) fn new(precision: u8, scale: i8) -> DecimalAccumulator {
        DecimalAccumulator { precision, scale, value: 0, power: None, round_up: false, overflow: false }
    }

    /// Takes the digit that stands for `digit * 10^power`. Powers go down by one from call to call.
    #[inline]
    pub(crate) fn push(&mut self, digit: u8, power: i64) {
        let last = -i64::from(self.scale);
        if power < last {
            if power == last - 1 {
                self.round_up = digit >= 5;
            }
            return;
        }
        if digit == 0 && self.value == 0 {
            return;
        }
        match self.value.checked_mul(10).and_then(|v| v.checked_add(u128::from(digit))) {
            Some(value) => self.value = value,
            None => self.overflow = true,
        }
        self.power = Some(power);
    }

    pub(crate) fn finish(mut self, negative: bool) -> Result<i128> {
        let last = -i64::from(self.scale);
        if let Some(power) = self.power {
            // Zeros between the last digit given and the last one held.
            for _ in last..power {
                match self.value.checked_mul(10) {
                    Some(value) => self.value = value,
                    None => {
                        self.overflow = true;
                        break;
                    }
                }
            }
        }
        let value = self.value.saturating_add(u128::from(self.round_up));
        let limit = 10u128.checked_pow(u32::from(self.precision)).unwrap_or(u128::MAX);
        if self.overflow || value >= limit {
            return Err(numeric_overflow(self.precision, self.scale));
        }
        let value = i128::try_from(value).map_err(|_| numeric_overflow(self.precision, self.scale))?;
        Ok(if negative { -value } else { value })
    }
}

/// Bytes from `\x0a0b` or from the escape form, appended to `out`.
pub(crate) fn parse_bytea(text: &[u8], out: &mut Vec<u8>) -> Result<()> {
    if let Some(hex) = text.strip_prefix(b"\\x") {
        let mut digits = hex.iter().filter(|b| !b.is_ascii_whitespace());
        let value = |byte: u8| {
            (byte as char).to_digit(16).map(|d| d as u8).ok_or_else(|| {
                let shown = String::from_utf8_lossy(&[byte]).into_owned();
                Error::new(SqlState::InvalidParameterValue, format!("invalid hexadecimal digit: \"{shown}\""))
            })
        };
        while let Some(high) = digits.next() {
            let high = value(*high)?;
            let low = digits.next().ok_or_else(|| {
                Error::new(SqlState::InvalidParameterValue, "invalid hexadecimal data: odd number of digits")
            })?;
            out.push(high << 4 | value(*low)?);
        }
        return Ok(());
    }
    let mut rest = text;
    loop {
        rest = match rest {
            [] => return Ok(()),
            [b'\\', b'\\', rest @ ..] => {
                out.push(b'\\');
                rest
            }
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest
            }
            [b'\\', ..] => return Err(bad_syntax("bytea", text)),
            [byte, rest @ ..] => {
                out.push(*byte);
                rest
            }
        };
    }
}

/// `bytes` as text, or the error that Postgres gives for broken UTF-8 and for the zero byte.
pub(crate) fn parse_text(bytes: &[u8]) -> Result<&str> {
    let invalid = |at: usize, len: usize| {
        let shown: Vec<String> = bytes[at..].iter().take(len.max(1)).map(|b| format!("0x{b:02x}")).collect();
        Error::new(
            SqlState::CharacterNotInRepertoire,
            format!("invalid byte sequence for encoding \"UTF8\": {}", shown.join(" ")),
        )
    };
    match std::str::from_utf8(bytes) {
        Ok(text) => match memchr::memchr(0, bytes) {
            None => Ok(text),
            Some(at) => Err(invalid(at, 1)),
        },
        Err(error) => Err(invalid(error.valid_up_to(), error.error_len().unwrap_or(bytes.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_keep_to_their_range() {
        let int4 = |text: &str| parse_integer(text.as_bytes(), i32::MIN.into(), i32::MAX.into(), "integer");
        assert_eq!(int4("-2147483648").unwrap(), -2147483648);
        assert_eq!(int4(" +7 ").unwrap(), 7);
        assert_eq!(int4("2147483648").unwrap_err().message(), "value \"2147483648\" is out of range for type integer");
        assert_eq!(int4("1.5").unwrap_err().message(), "invalid input syntax for type integer: \"1.5\"");
        assert_eq!(int4("").unwrap_err().state(), SqlState::InvalidTextRepresentation);
        assert_eq!(int4("-").unwrap_err().state(), SqlState::InvalidTextRepresentation);
        let int8 = |text: &str| parse_integer(text.as_bytes(), i64::MIN, i64::MAX, "bigint");
        assert_eq!(int8("-9223372036854775808").unwrap(), i64::MIN);
        assert_eq!(int8("9223372036854775808").unwrap_err().state(), SqlState::NumericValueOutOfRange);
        assert_eq!(int8(&"9".repeat(500)).unwrap_err().state(), SqlState::NumericValueOutOfRange);
    }

    #[test]
    fn numerics_round_half_away_from_zero() {
        let check = |text: &str, expected: i128| assert_eq!(parse_numeric(text.as_bytes(), 10, 2).unwrap(), expected);
        check("1.005", 101);
        check("-1.005", -101);
        check("1.004", 100);
        check("0.005", 1);
        check("1e3", 100_000);
        check("12345e-3", 1235);
        check(".5", 50);
        check("5.", 500);
        check("0000000000000000000000000000000000000000000001", 100);
        check("99999999.99", 9_999_999_999);
        let error = |text: &str| parse_numeric(text.as_bytes(), 10, 2).unwrap_err().state();
        assert_eq!(error("99999999.995"), SqlState::NumericValueOutOfRange);
        assert_eq!(error("1e2000000000"), SqlState::NumericValueOutOfRange);
        assert_eq!(error("."), SqlState::InvalidTextRepresentation);
        assert_eq!(error("1.2.3"), SqlState::InvalidTextRepresentation);
        assert_eq!(error(""), SqlState::InvalidTextRepresentation);
        assert_eq!(error("NaN"), SqlState::FeatureNotSupported);
        assert_eq!(parse_numeric(b"1e-2000000000", 38, 18).unwrap(), 0);
        assert_eq!(parse_numeric(b"12345678901234567890.5", 38, 18).unwrap(), 12345678901234567890500000000000000000);
    }

    #[test]
    fn booleans_and_bytes() {
        assert!(parse_bool(b" TRUE ").unwrap() && parse_bool(b"on").unwrap() && parse_bool(b"y").unwrap());
        assert!(!parse_bool(b"off").unwrap() && !parse_bool(b"0").unwrap());
        assert!(parse_bool(b"o").is_err() && parse_bool(b"").is_err() && parse_bool(b"truely").is_err());
        let check = |text: &[u8], expected: Option<&[u8]>| {
            let mut out = Vec::new();
            assert_eq!(parse_bytea(text, &mut out).ok().map(|()| out.as_slice()), expected);
        };
        check(b"\\x00fF", Some(&[0, 255]));
        check(b"\\x0", None);
        check(b"\\xgg", None);
        check(b"a\\\\b\\001", Some(b"a\\b\x01"));
        check(b"\\9", None);
    }

    #[test]
    fn floats_out_of_range_are_refused() {
        assert_eq!(parse_float8(b" -Infinity ").unwrap(), f64::NEG_INFINITY);
        assert!(parse_float8(b"nan").unwrap().is_nan());
        assert_eq!(
            parse_float8(b"1e400").unwrap_err().message(),
            "\"1e400\" is out of range for type double precision"
        );
        assert_eq!(parse_float8(b"1e-400").unwrap_err().state(), SqlState::NumericValueOutOfRange);
        assert_eq!(parse_float8(b"0e-400").unwrap(), 0.0);
        assert_eq!(parse_float4(b"1e39").unwrap_err().state(), SqlState::NumericValueOutOfRange);
        assert!(parse_float8(b"").is_err() && parse_float8(b"1,5").is_err());
    }
}
