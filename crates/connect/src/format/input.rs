//! Text of one value → value, with the input syntax of PostgreSQL's types (numbers, booleans, bytea; times are in
//! [`temporal`](super::temporal)).
//!
//! Nothing here allocates on success except for text that has to be rewritten.

use std::borrow::Cow;

use super::spans::Kind;

/// Why a text is not a value of the wanted type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadValue {
    /// It does not have the type's syntax.
    Syntax,
    /// It has the syntax, but the type cannot hold it.
    OutOfRange,
    /// Something else, in words.
    Other(String),
}

pub type Parsed<T> = Result<T, BadValue>;

/// Blanks around numbers, dates and booleans mean nothing, as in PostgreSQL.
#[inline]
pub fn trim(bytes: &[u8]) -> &[u8] {
    match bytes {
        [first, .., last] if *first > b' ' && *last > b' ' => bytes,
        _ => bytes.trim_ascii(),
    }
}

/// The text between quotes as it is meant. `Plain` text and tokens come back as they are.
pub fn unescape(text: &str, kind: Kind) -> Parsed<Cow<'_, str>> {
    match kind {
        Kind::CsvEscaped => Ok(Cow::Owned(text.replace("\"\"", "\""))),
        Kind::JsonEscaped => {
            let mut quoted = String::with_capacity(text.len() + 2);
            quoted.push('"');
            quoted.push_str(text);
            quoted.push('"');
            let plain: String =
                serde_json::from_str(&quoted).map_err(|e| BadValue::Other(format!("invalid string escape: {e}")))?;
            if plain.contains('\0') {
                return Err(BadValue::Other("text cannot hold the character U+0000".into()));
            }
            Ok(Cow::Owned(plain))
        }
        _ => Ok(Cow::Borrowed(text)),
    }
}

/// `true`, `t`, `yes`, `y`, `on`, `1` and their opposites, in any case, shortened as far as they stay clear.
pub fn boolean(bytes: &[u8]) -> Parsed<bool> {
    let b = trim(bytes);
    match b {
        b"true" | b"t" | b"1" => return Ok(true),
        b"false" | b"f" | b"0" => return Ok(false),
        _ => {}
    }
    let starts = |word: &[u8], least: usize| {
        b.len() >= least && b.len() <= word.len() && word[..b.len()].eq_ignore_ascii_case(b)
    };
    if starts(b"true", 1) || starts(b"yes", 1) || starts(b"on", 2) {
        Ok(true)
    } else if starts(b"false", 1) || starts(b"no", 1) || starts(b"off", 2) {
        Ok(false)
    } else {
        Err(BadValue::Syntax)
    }
}

/// A decimal integer with an optional sign.
#[inline]
pub fn integer<T>(bytes: &[u8]) -> Parsed<T>
where
    T: TryFrom<i64>,
{
    let b = trim(bytes);
    let (negative, digits) = match b {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    if digits.is_empty() {
        return Err(BadValue::Syntax);
    }
    if digits.len() > 18 {
        return long_integer(negative, digits);
    }
    // Up to 18 digits cannot overflow an i64.
    let mut value = 0i64;
    for d in digits {
        let d = d.wrapping_sub(b'0');
        if d > 9 {
            return Err(BadValue::Syntax);
        }
        value = value * 10 + i64::from(d);
    }
    T::try_from(if negative { -value } else { value }).map_err(|_| BadValue::OutOfRange)
}

#[cold]
fn long_integer<T: TryFrom<i64>>(negative: bool, digits: &[u8]) -> Parsed<T> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(BadValue::Syntax);
    }
    let mut value = 0i64;
    for d in digits {
        // Counted downwards, because the smallest i64 has no positive twin.
        value = value.checked_mul(10).and_then(|v| v.checked_sub(i64::from(d - b'0'))).ok_or(BadValue::OutOfRange)?;
    }
    let value = if negative { Some(value) } else { value.checked_neg() };
    T::try_from(value.ok_or(BadValue::OutOfRange)?).map_err(|_| BadValue::OutOfRange)
}

/// A JSON number for an integer column: also `1e3` and `2.0`, if the value is whole.
#[cold]
pub fn integer_from_number<T: TryFrom<i64>>(bytes: &[u8]) -> Parsed<T> {
    let value = exact_decimal(bytes, 0, 38, true)?;
    i64::try_from(value).ok().and_then(|v| T::try_from(v).ok()).ok_or(BadValue::OutOfRange)
}

/// Floating point, including `NaN`, `Infinity`, `-inf` in any case. Finite text that overflows is out of range.
#[inline]
pub fn float<T: lexical_core::FromLexical + Into<f64> + Copy>(bytes: &[u8]) -> Parsed<T> {
    let b = trim(bytes);
    let value: T = lexical_core::parse(b).map_err(|_| BadValue::Syntax)?;
    let wide: f64 = value.into();
    if wide.is_infinite() && b.iter().any(u8::is_ascii_digit) {
        return Err(BadValue::OutOfRange);
    }
    Ok(value)
}

/// A decimal number as an integer of units of `10^-scale`, rounded half away from zero; at most `precision` digits.
#[inline]
pub fn decimal(bytes: &[u8], precision: u8, scale: i8) -> Parsed<i128> {
    exact_decimal(trim(bytes), scale, precision, false)
}

/// `exact`: digits that would be rounded away are `Syntax`.
fn exact_decimal(b: &[u8], scale: i8, precision: u8, exact: bool) -> Parsed<i128> {
    let (negative, mut rest) = match b {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    // mantissa × 10^exponent
    let mut mantissa = 0i128;
    let mut exponent = 0i64;
    let mut digits = 0usize;
    // Digits beyond the 38 that an i128 surely holds: the first decides the rounding, any other that is not zero only
    // matters for `exact`.
    let mut dropped_first = None;
    let mut dropped_nonzero = false;
    let mut after_point = false;
    while let [c, tail @ ..] = rest {
        match c {
            b'0'..=b'9' => {
                let d = c - b'0';
                digits += 1;
                if mantissa < MANTISSA_LIMIT {
                    mantissa = mantissa * 10 + i128::from(d);
                    exponent -= i64::from(after_point);
                } else {
                    dropped_first.get_or_insert(d);
                    dropped_nonzero |= d != 0;
                    exponent += i64::from(!after_point);
                }
            }
            b'.' if !after_point => after_point = true,
            _ => break,
        }
        rest = tail;
    }
    if digits == 0 {
        return Err(BadValue::Syntax);
    }
    match rest {
        [] => {}
        [b'e' | b'E', tail @ ..] => {
            let e: i64 = integer(tail).map_err(|_| BadValue::Syntax)?;
            if tail.first().is_some_and(|c| *c <= b' ') {
                return Err(BadValue::Syntax);
            }
            exponent = exponent.saturating_add(e.clamp(-1_000_000, 1_000_000));
        }
        _ => return Err(BadValue::Syntax),
    }
    let shift = exponent.saturating_add(i64::from(scale));
    let mut value = mantissa;
    if mantissa == 0 && !dropped_nonzero {
        return Ok(0);
    }
    if shift >= 0 {
        if dropped_nonzero {
            // More than 38 significant digits stay in front of the last kept one: no Decimal128 holds them.
            if shift > 0 || exact {
                return Err(BadValue::OutOfRange);
            }
            value += i128::from(dropped_first.is_some_and(|d| d >= 5));
        }
        let factor = u32::try_from(shift).ok().and_then(|s| 10i128.checked_pow(s)).ok_or(BadValue::OutOfRange)?;
        value = value.checked_mul(factor).ok_or(BadValue::OutOfRange)?;
    } else {
        match u32::try_from(-shift).ok().filter(|s| *s <= 38) {
            Some(s) => {
                let divisor = 10i128.pow(s);
                let rest = value % divisor;
                if exact && (rest != 0 || dropped_nonzero) {
                    return Err(BadValue::Syntax);
                }
                value = value / divisor + i128::from(rest >= divisor - rest);
            }
            None if exact => return Err(BadValue::Syntax),
            None => value = 0,
        }
    }
    if value >= 10i128.checked_pow(u32::from(precision)).unwrap_or(i128::MAX) {
        return Err(BadValue::OutOfRange);
    }
    Ok(if negative { -value } else { value })
}

/// Below this the mantissa takes one more digit; so it ends with 38 significant digits, which an i128 holds.
const MANTISSA_LIMIT: i128 = 10i128.pow(37);

/// `\x` followed by hexadecimal digits (blanks between bytes allowed), or text with `\\` and `\ooo` octal escapes.
pub fn bytea(bytes: &[u8]) -> Parsed<Vec<u8>> {
    if let [b'\\', b'x', hex @ ..] = bytes {
        let mut out = Vec::with_capacity(hex.len() / 2);
        let mut high = None;
        for c in hex {
            let nibble = match (c, high) {
                (b'0'..=b'9', _) => c - b'0',
                (b'a'..=b'f', _) => c - b'a' + 10,
                (b'A'..=b'F', _) => c - b'A' + 10,
                (b' ' | b'\n' | b'\t' | b'\r', None) => continue,
                _ => return Err(BadValue::Other("invalid hexadecimal data".into())),
            };
            match high.take() {
                None => high = Some(nibble),
                Some(h) => out.push(h << 4 | nibble),
            }
        }
        return match high {
            None => Ok(out),
            Some(_) => Err(BadValue::Other("invalid hexadecimal data: odd number of digits".into())),
        };
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        rest = match rest {
            [] => return Ok(out),
            [b'\\', b'\\', tail @ ..] => {
                out.push(b'\\');
                tail
            }
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                tail
            }
            [b'\\', ..] => return Err(BadValue::Syntax),
            [c, tail @ ..] => {
                out.push(*c);
                tail
            }
        };
    }
}

/// The elements of an array literal `{1,NULL,"a,b"}`; `None` is NULL. One dimension.
pub fn array_elements(text: &str) -> Parsed<Vec<Option<String>>> {
    let malformed = |what: &str| BadValue::Other(format!("malformed array literal: {what}"));
    let inner = text.trim().strip_prefix('{').ok_or_else(|| malformed("it must start with \"{\""))?;
    let mut out = Vec::new();
    let mut chars = inner.chars().peekable();
    let skip_blanks = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
    };
    skip_blanks(&mut chars);
    if chars.peek() == Some(&'}') {
        chars.next();
    } else {
        loop {
            skip_blanks(&mut chars);
            let mut element = String::new();
            let quoted = chars.next_if_eq(&'"').is_some();
            if quoted {
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => element.push(chars.next().ok_or_else(|| malformed("it ends in an escape"))?),
                        Some(c) => element.push(c),
                        None => return Err(malformed("a quoted element does not end")),
                    }
                }
                skip_blanks(&mut chars);
            } else {
                let mut kept = 0;
                while let Some(c) = chars.next_if(|c| !matches!(c, ',' | '}')) {
                    match c {
                        '{' | '"' => return Err(malformed("only one dimension of plain elements is supported")),
                        '\\' => {
                            element.push(chars.next().ok_or_else(|| malformed("it ends in an escape"))?);
                            kept = element.len();
                        }
                        c => {
                            element.push(c);
                            if !c.is_ascii_whitespace() {
                                kept = element.len();
                            }
                        }
                    }
                }
                element.truncate(kept);
                if element.is_empty() {
                    return Err(malformed("an element is empty"));
                }
            }
            out.push(if !quoted && element.eq_ignore_ascii_case("null") { None } else { Some(element) });
            match chars.next() {
                Some(',') => {}
                Some('}') => break,
                Some(_) => return Err(malformed("text follows a quoted element")),
                None => return Err(malformed("it does not end with \"}\"")),
            }
        }
    }
    skip_blanks(&mut chars);
    match chars.next() {
        None => Ok(out),
        Some(_) => Err(malformed("text follows the closing \"}\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BadValue::*;

    #[test]
    fn integers_keep_their_limits() {
        assert_eq!(integer::<i64>(b"-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(integer::<i64>(b"9223372036854775807"), Ok(i64::MAX));
        assert_eq!(integer::<i64>(b"9223372036854775808"), Err(OutOfRange));
        assert_eq!(integer::<i64>(b"-9223372036854775809"), Err(OutOfRange));
        assert_eq!(integer::<i64>(b"00000000000000000000000012"), Ok(12));
        assert_eq!(integer::<i16>(b"32768"), Err(OutOfRange));
        assert_eq!(integer::<i16>(b" -32768 "), Ok(i16::MIN));
        assert_eq!(integer::<i32>(b"+7"), Ok(7));
        for bad in ["", "-", "+", "1.0", "1e3", "--1", "1 2", "0x10", "١"] {
            assert_eq!(integer::<i32>(bad.as_bytes()), Err(Syntax), "{bad}");
        }
        assert_eq!(integer_from_number::<i32>(b"1e3"), Ok(1000));
        assert_eq!(integer_from_number::<i64>(b"-2.0"), Ok(-2));
        assert_eq!(integer_from_number::<i64>(b"2.5"), Err(Syntax));
        assert_eq!(integer_from_number::<i64>(b"1e30"), Err(OutOfRange));
        assert_eq!(integer_from_number::<i64>(b"1e400"), Err(OutOfRange));
        assert_eq!(integer_from_number::<i64>(b"1e-400"), Err(Syntax));
    }

    #[test]
    fn floats_take_specials_and_refuse_overflow() {
        assert_eq!(float::<f64>(b"1.5e3"), Ok(1500.0));
        assert_eq!(float::<f64>(b"-Infinity"), Ok(f64::NEG_INFINITY));
        assert_eq!(float::<f64>(b" inf"), Ok(f64::INFINITY));
        assert!(float::<f64>(b"nan").unwrap().is_nan());
        assert_eq!(float::<f64>(b"1e400"), Err(OutOfRange));
        assert_eq!(float::<f32>(b"1e39"), Err(OutOfRange));
        assert_eq!(float::<f64>(b"abc"), Err(Syntax));
        assert_eq!(float::<f64>(b""), Err(Syntax));
    }

    #[test]
    fn decimals_round_half_away_from_zero_and_keep_precision() {
        assert_eq!(decimal(b"1.005", 10, 2), Ok(101));
        assert_eq!(decimal(b"-1.005", 10, 2), Ok(-101));
        assert_eq!(decimal(b"1.00499999", 10, 2), Ok(100));
        assert_eq!(decimal(b"12e2", 10, 1), Ok(12000));
        assert_eq!(decimal(b".5", 3, 0), Ok(1));
        assert_eq!(decimal(b"5.", 3, 1), Ok(50));
        assert_eq!(decimal(b"999.95", 4, 1), Err(OutOfRange));
        assert_eq!(decimal(b"1e40", 38, 0), Err(OutOfRange));
        assert_eq!(decimal(b"1e-400000000000", 38, 18), Ok(0));
        assert_eq!(decimal(b"0e9999", 38, 18), Ok(0));
        assert_eq!(
            decimal(b"12345678901234567890.123456789012345678", 38, 18),
            Ok(12345678901234567890123456789012345678)
        );
        assert_eq!(decimal(b"99999999999999999999999999999999999999", 38, 0), Ok(10i128.pow(38) - 1));
        assert_eq!(decimal(b"100000000000000000000000000000000000000", 38, 0), Err(OutOfRange));
        assert_eq!(decimal(b"0.99999999999999999999999999999999999999999999", 38, 18), Ok(10i128.pow(18)));
        for bad in ["", ".", "-", "1.2.3", "1e", "1e+", "1e 5", "NaN", "1,5", "1 5"] {
            assert_eq!(decimal(bad.as_bytes(), 10, 2), Err(Syntax), "{bad}");
        }
    }

    #[test]
    fn booleans_and_bytea_read_what_postgres_reads() {
        for (text, value) in [
            ("t", true),
            ("TRUE", true),
            ("tru", true),
            ("on", true),
            (" yes ", true),
            ("of", false),
            ("N", false),
            ("0", false),
        ] {
            assert_eq!(boolean(text.as_bytes()), Ok(value), "{text}");
        }
        for bad in ["", "o", "truee", "2", "ja"] {
            assert_eq!(boolean(bad.as_bytes()), Err(Syntax), "{bad}");
        }
        assert_eq!(bytea(b"\\x00fF 10"), Ok(vec![0, 255, 16]));
        assert_eq!(bytea(b"a\\\\b\\001"), Ok(b"a\\b\x01".to_vec()));
        assert!(bytea(b"\\x0").is_err() && bytea(b"\\x0g").is_err() && bytea(b"\\9").is_err());
    }

    #[test]
    fn array_literals_have_quotes_escapes_and_nulls() {
        let ok = |t: &str| array_elements(t).unwrap();
        assert_eq!(ok("{}"), Vec::<Option<String>>::new());
        assert_eq!(
            ok(" { 1 , null, \"NULL\" ,a b} "),
            [Some("1".into()), None, Some("NULL".into()), Some("a b".into())]
        );
        assert_eq!(ok(r#"{"a,\"}",b\,c}"#), [Some("a,\"}".into()), Some("b,c".into())]);
        for bad in ["", "1,2", "{1,2", "{1,,2}", "{1}x", "{\"a}", "{{1}}", "{\"a\"b}", "{a\\", "{1,}"] {
            assert!(array_elements(bad).is_err(), "{bad}");
        }
    }
}
