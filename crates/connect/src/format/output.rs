//! Value → text, in PostgreSQL's output syntax.

use std::io::Write;

use arrow::datatypes::IntervalMonthDayNano;

use super::temporal::{US_PER_DAY, US_PER_SECOND, civil_from_days};

/// Writes to memory; cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => {{
        let _ = write!($out, $($arg)*);
    }};
}

/// `YYYY-MM-DD`, with ` BC` after years before 1.
pub fn date(out: &mut Vec<u8>, days: i32) {
    if date_without_era(out, i64::from(days)) {
        out.extend_from_slice(b" BC");
    }
}

/// Returns whether the date is before year 1; the year is then written as its number BC.
fn date_without_era(out: &mut Vec<u8>, days: i64) -> bool {
    let (year, month, day) = civil_from_days(days);
    let shown = if year > 0 { year } else { 1 - year };
    put!(out, "{shown:04}-{month:02}-{day:02}");
    year <= 0
}

/// `HH:MM:SS[.ffffff]` without trailing zeros.
pub fn time(out: &mut Vec<u8>, us: i64) {
    let seconds = us / US_PER_SECOND;
    put!(out, "{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
    fraction(out, (us % US_PER_SECOND).unsigned_abs());
}

fn fraction(out: &mut Vec<u8>, us: u64) {
    if us != 0 {
        put!(out, ".{us:06}");
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

/// Date, `separator`, time, `zone` (empty without time zone), era.
pub fn timestamp(out: &mut Vec<u8>, us: i64, separator: u8, zone: &str) {
    let before_christ = date_without_era(out, us.div_euclid(US_PER_DAY));
    out.push(separator);
    time(out, us.rem_euclid(US_PER_DAY));
    out.extend_from_slice(zone.as_bytes());
    if before_christ {
        out.extend_from_slice(b" BC");
    }
}

/// Shortest text that reads back as the same number; exponents from 1e15 (real: 1e6) on and below 1e-4.
pub fn float64(out: &mut Vec<u8>, value: f64) {
    let magnitude = value.abs();
    if magnitude == 0.0 || (1e-4..1e15).contains(&magnitude) {
        put!(out, "{value}");
    } else {
        exponential(out, value, || format!("{value:e}"));
    }
}

/// As [`float64`], for `real`.
pub fn float32(out: &mut Vec<u8>, value: f32) {
    let magnitude = value.abs();
    if magnitude == 0.0 || (1e-4..1e6).contains(&magnitude) {
        put!(out, "{value}");
    } else {
        exponential(out, f64::from(value), || format!("{value:e}"));
    }
}

fn exponential(out: &mut Vec<u8>, value: f64, text: impl Fn() -> String) {
    if value.is_nan() {
        return out.extend_from_slice(b"NaN");
    }
    if value.is_infinite() {
        return out.extend_from_slice(if value > 0.0 { b"Infinity" } else { b"-Infinity" });
    }
    let text = text();
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    put!(out, "{mantissa}e{sign}{digits:0>2}");
}

/// `value · 10^-scale`, exactly. `trim`: without trailing zeros after the point, for `numeric` of no declared scale.
pub fn decimal(out: &mut Vec<u8>, value: i128, scale: i8, trim: bool) {
    if value < 0 {
        out.push(b'-');
    }
    let digits = value.unsigned_abs().to_string();
    let Ok(places) = usize::try_from(scale) else {
        out.extend_from_slice(digits.as_bytes());
        if value != 0 {
            out.extend(std::iter::repeat_n(b'0', usize::from(scale.unsigned_abs())));
        }
        return;
    };
    let digits = format!("{digits:0>width$}", width = places + 1);
    let (whole, part) = digits.split_at(digits.len() - places);
    let part = if trim { part.trim_end_matches('0') } else { part };
    out.extend_from_slice(whole.as_bytes());
    if !part.is_empty() {
        out.push(b'.');
        out.extend_from_slice(part.as_bytes());
    }
}

/// `\x` and hexadecimal digits.
pub fn bytea(out: &mut Vec<u8>, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\\x");
    out.extend(bytes.iter().flat_map(|b| [HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]));
}

/// `1 year 2 mons -3 days +04:05:06.789`.
pub fn interval(out: &mut Vec<u8>, value: IntervalMonthDayNano) {
    let start = out.len();
    let us = value.nanoseconds / 1_000;
    let mut negative_before = false;
    for (n, one, many) in
        [(value.months / 12, "year", "years"), (value.months % 12, "mon", "mons"), (value.days, "day", "days")]
    {
        if n != 0 {
            let blank = if out.len() > start { " " } else { "" };
            let plus = if negative_before && n > 0 { "+" } else { "" };
            put!(out, "{blank}{plus}{n} {}", if n == 1 { one } else { many });
            negative_before = n < 0;
        }
    }
    if us != 0 || out.len() == start {
        if out.len() > start {
            out.push(b' ');
        }
        if us < 0 {
            out.push(b'-');
        } else if negative_before {
            out.push(b'+');
        }
        let us = us.unsigned_abs();
        let seconds = us / US_PER_SECOND as u64;
        put!(out, "{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
        fraction(out, us % US_PER_SECOND as u64);
    }
}

/// Appends `text` as a JSON string with its quotes.
pub fn json_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut clean = 0;
    for (i, b) in bytes.iter().enumerate() {
        let escape: &[u8] = match b {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..=0x1f => b"",
            _ => continue,
        };
        out.extend_from_slice(&bytes[clean..i]);
        clean = i + 1;
        if escape.is_empty() {
            put!(out, "\\u{b:04x}");
        } else {
            out.extend_from_slice(escape);
        }
    }
    out.extend_from_slice(&bytes[clean..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{input, temporal};

    fn text(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_look_as_in_postgres() {
        assert_eq!(text(|o| date(o, 19_782)), "2024-02-29");
        assert_eq!(text(|o| date(o, -719_529)), "0002-12-31 BC");
        assert_eq!(text(|o| timestamp(o, -1, b' ', "")), "1969-12-31 23:59:59.999999");
        assert_eq!(text(|o| timestamp(o, 1_500_000, b'T', "+00:00")), "1970-01-01T00:00:01.5+00:00");
        assert_eq!(text(|o| decimal(o, -5, 2, false)), "-0.05");
        assert_eq!(text(|o| decimal(o, 150, 2, false)), "1.50");
        assert_eq!(text(|o| decimal(o, 1_500, 3, true)), "1.5");
        assert_eq!(text(|o| decimal(o, 2_000, 3, true)), "2");
        assert_eq!(text(|o| decimal(o, 7, -2, false)), "700");
        assert_eq!(text(|o| bytea(o, &[0, 255])), "\\x00ff");
        for (value, want) in [
            (0.1, "0.1"),
            (1e15, "1e+15"),
            (-1.5e-5, "-1.5e-05"),
            (1e300, "1e+300"),
            (123456.0, "123456"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
            (-0.0, "-0"),
        ] {
            assert_eq!(text(|o| float64(o, value)), want);
        }
        assert_eq!(text(|o| float32(o, 1e6)), "1e+06");
        let of = |m, d, us: i64| IntervalMonthDayNano::new(m, d, us * 1_000);
        assert_eq!(text(|o| interval(o, of(14, 3, 14_706_789_000))), "1 year 2 mons 3 days 04:05:06.789");
        assert_eq!(text(|o| interval(o, of(0, -1, 7_200_000_000))), "-1 days +02:00:00");
        assert_eq!(text(|o| interval(o, of(0, 0, 0))), "00:00:00");
        assert_eq!(text(|o| interval(o, of(-1, 2, -1))), "-1 mons +2 days -00:00:00.000001");
    }

    #[test]
    fn what_is_written_reads_back() {
        for us in [0, -1, 1_704_164_645_123_456, 253_402_300_800_000_000, -62_135_596_800_000_000] {
            assert_eq!(temporal::timestamp(text(|o| timestamp(o, us, b' ', "")).as_bytes()), Ok(us));
            assert_eq!(temporal::timestamptz(text(|o| timestamp(o, us, b'T', "+00:00")).as_bytes()), Ok(us));
        }
        for v in [0.1, 1e-7, f64::MAX, f64::MIN_POSITIVE, 1.0 / 3.0, 5e-324, 123456789012345680.0] {
            assert_eq!(input::float::<f64>(text(|o| float64(o, v)).as_bytes()), Ok(v));
        }
        for (m, d, us) in [(14, -3, 5), (-14, 3, -5_000_000), (0, 0, 1), (1, 1, 86_400_000_000)] {
            let value = IntervalMonthDayNano::new(m, d, us * 1_000);
            assert_eq!(temporal::interval(text(|o| interval(o, value)).as_bytes()), Ok(value));
        }
        let odd = "a\"\\\n\r\t\u{1}é😀";
        assert_eq!(serde_json::from_str::<String>(&text(|o| json_string(o, odd))).unwrap(), odd);
    }
}
