//! Values as text, exactly as Postgres writes them (`DateStyle` ISO, `IntervalStyle` postgres).

use std::fmt::Write;

use arrow::datatypes::IntervalMonthDayNano;
use chrono::{Datelike, NaiveDate, Timelike};

use super::zone::Zone;

/// Shortest text that reads back as the same number, with Postgres' choice of notation.
pub fn float8(out: &mut String, v: f64) {
    // The digits of `f64` that are always exact, DBL_DIG.
    float(out, v, 15, |v| format!("{v:e}"), |v| format!("{v}"));
}

/// As [`float8`] for `real`.
pub fn float4(out: &mut String, v: f32) {
    float(out, v, 6, |v| format!("{v:e}"), |v| format!("{v}"));
}

fn float<T: Copy + Into<f64>>(
    out: &mut String,
    v: T,
    digits: i32,
    scientific: impl Fn(T) -> String,
    plain: impl Fn(T) -> String,
) {
    let wide: f64 = v.into();
    if wide.is_nan() {
        return out.push_str("NaN");
    }
    if wide.is_infinite() {
        return out.push_str(if wide > 0.0 { "Infinity" } else { "-Infinity" });
    }
    let text = scientific(v);
    let Some((mantissa, exponent)) = text.split_once('e') else {
        return out.push_str(&text);
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if wide != 0.0 && !(-4..digits).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        // Writing to a String cannot fail.
        let _ = write!(out, "{mantissa}e{sign}{:02}", exponent.abs());
    } else {
        out.push_str(&plain(v));
    }
}

/// A decimal with `scale` digits after the point; trailing zeros go if `trim`.
pub fn decimal(out: &mut String, v: i128, scale: i8, trim: bool) {
    if v < 0 {
        out.push('-');
    }
    let digits = v.unsigned_abs().to_string();
    if scale <= 0 {
        out.push_str(&digits);
        if v != 0 {
            out.extend(std::iter::repeat_n('0', scale.unsigned_abs() as usize));
        }
        return;
    }
    let scale = scale as usize;
    let (integer, fraction) = if digits.len() > scale {
        let (integer, fraction) = digits.split_at(digits.len() - scale);
        (integer, fraction.to_string())
    } else {
        ("0", format!("{digits:0>scale$}"))
    };
    out.push_str(integer);
    let fraction = if trim { fraction.trim_end_matches('0') } else { &fraction };
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
}

/// Days from 1970-01-01 as `2024-02-29`, with ` BC` before the year 1.
pub fn date(out: &mut String, days: i32) {
    match date_of(days) {
        Some(d) => {
            write_date(out, d);
            if d.year() < 1 {
                out.push_str(" BC");
            }
        }
        None => out.push_str("out of range"),
    }
}

pub(super) fn date_of(days: i32) -> Option<NaiveDate> {
    NaiveDate::from_num_days_from_ce_opt(days.checked_add(719_163)?)
}

fn write_date(out: &mut String, d: NaiveDate) {
    let year = if d.year() < 1 { 1 - d.year() } else { d.year() };
    let _ = write!(out, "{year:04}-{:02}-{:02}", d.month(), d.day());
}

/// Microseconds since midnight as `04:05:06.789`.
pub fn time(out: &mut String, us: i64) {
    let seconds = us / 1_000_000;
    let _ = write!(out, "{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
    fraction(out, us % 1_000_000);
}

fn fraction(out: &mut String, us: i64) {
    if us != 0 {
        let digits = format!("{:06}", us.abs());
        out.push('.');
        out.push_str(digits.trim_end_matches('0'));
    }
}

/// Microseconds since 1970 without a zone, as `2024-01-01 00:00:00`.
pub fn timestamp(out: &mut String, us: i64) {
    match chrono::DateTime::from_timestamp_micros(us) {
        Some(t) => write_timestamp(out, t.naive_utc(), None),
        None => out.push_str("out of range"),
    }
}

/// Microseconds since 1970 UTC in `zone`, as `2024-01-01 01:00:00+01`.
pub fn timestamptz(out: &mut String, us: i64, zone: &Zone) {
    match chrono::DateTime::from_timestamp_micros(us) {
        Some(t) => {
            let offset = zone.offset_of_utc(t.naive_utc());
            match t.naive_utc().checked_add_signed(chrono::TimeDelta::seconds(i64::from(offset))) {
                Some(local) => write_timestamp(out, local, Some(offset)),
                None => out.push_str("out of range"),
            }
        }
        None => out.push_str("out of range"),
    }
}

fn write_timestamp(out: &mut String, t: chrono::NaiveDateTime, offset: Option<i32>) {
    write_date(out, t.date());
    let _ = write!(out, " {:02}:{:02}:{:02}", t.hour(), t.minute(), t.second());
    fraction(out, i64::from(t.and_utc().timestamp_subsec_micros()));
    if let Some(offset) = offset {
        let (sign, seconds) = if offset < 0 { ('-', -offset) } else { ('+', offset) };
        let _ = write!(out, "{sign}{:02}", seconds / 3_600);
        if seconds % 3_600 != 0 {
            let _ = write!(out, ":{:02}", seconds / 60 % 60);
        }
        if seconds % 60 != 0 {
            let _ = write!(out, ":{:02}", seconds % 60);
        }
    }
    if t.date().year() < 1 {
        out.push_str(" BC");
    }
}

/// `1 year 2 mons 3 days 04:05:06`.
pub fn interval(out: &mut String, i: IntervalMonthDayNano) {
    let start = out.len();
    let mut before_was_negative = false;
    let mut part = |out: &mut String, n: i64, unit: &str| {
        if n != 0 {
            if out.len() > start {
                out.push(' ');
            }
            // After a negative part a positive one carries its sign.
            let sign = if before_was_negative && n > 0 { "+" } else { "" };
            let plural = if n == 1 { "" } else { "s" };
            let _ = write!(out, "{sign}{n} {unit}{plural}");
            before_was_negative = n < 0;
        }
    };
    part(out, i64::from(i.months / 12), "year");
    part(out, i64::from(i.months % 12), "mon");
    part(out, i64::from(i.days), "day");
    let us = i.nanoseconds / 1_000;
    if us != 0 || out.len() == start {
        if out.len() > start {
            out.push(' ');
        }
        if us < 0 {
            out.push('-');
        } else if before_was_negative {
            out.push('+');
        }
        let us = us.unsigned_abs();
        let seconds = us / 1_000_000;
        let _ = write!(out, "{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
        fraction(out, (us % 1_000_000) as i64);
    }
}

/// `\x` and two hex digits a byte.
pub fn bytea(out: &mut String, bytes: &[u8]) {
    out.push_str("\\x");
    for b in bytes {
        let _ = write!(out, "{b:02x}");
    }
}

/// One element of an array's text, quoted where needed.
pub fn array_element(out: &mut String, element: &str) {
    let plain = !element.is_empty()
        && !element.eq_ignore_ascii_case("null")
        && !element.contains(|c: char| matches!(c, '{' | '}' | ',' | '"' | '\\') || c.is_whitespace());
    if plain {
        return out.push_str(element);
    }
    out.push('"');
    for c in element.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(f: impl FnOnce(&mut String)) -> String {
        let mut s = String::new();
        f(&mut s);
        s
    }

    #[test]
    fn floats_read_as_in_postgres() {
        for (v, expected) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1, "0.1"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (123456789012345678.0, "1.2345678901234568e+17"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e-300, "1e-300"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(text(|o| float8(o, v)), expected);
        }
        assert_eq!(text(|o| float4(o, 1e6)), "1e+06");
        assert_eq!(text(|o| float4(o, 123456.0)), "123456");
        assert_eq!(text(|o| float4(o, 0.1)), "0.1");
    }

    #[test]
    fn decimals_keep_or_lose_their_zeros() {
        assert_eq!(text(|o| decimal(o, 12_300, 2, false)), "123.00");
        assert_eq!(text(|o| decimal(o, -5, 2, false)), "-0.05");
        assert_eq!(text(|o| decimal(o, 1_500_000, 6, true)), "1.5");
        assert_eq!(text(|o| decimal(o, 0, 6, true)), "0");
        assert_eq!(text(|o| decimal(o, 7, 0, false)), "7");
    }

    #[test]
    fn times_and_intervals_read_as_in_postgres() {
        assert_eq!(text(|o| date(o, 0)), "1970-01-01");
        assert_eq!(text(|o| date(o, -719_163)), "0001-12-31 BC");
        assert_eq!(text(|o| timestamp(o, 1_704_067_200_000_000)), "2024-01-01 00:00:00");
        assert_eq!(text(|o| timestamp(o, -1)), "1969-12-31 23:59:59.999999");
        assert_eq!(text(|o| timestamptz(o, 0, &Zone::UTC)), "1970-01-01 00:00:00+00");
        let india = Zone::parse("Asia/Kolkata").unwrap();
        assert_eq!(text(|o| timestamptz(o, 0, &india)), "1970-01-01 05:30:00+05:30");
        let iv = |m, d, ns| text(|o| interval(o, IntervalMonthDayNano::new(m, d, ns)));
        assert_eq!(iv(14, 3, 14_706_789_000_000), "1 year 2 mons 3 days 04:05:06.789");
        assert_eq!(iv(0, 0, 0), "00:00:00");
        assert_eq!(iv(0, -1, 3_600_000_000_000), "-1 days +01:00:00");
        assert_eq!(iv(-1, 0, 0), "-1 mons");
    }

    #[test]
    fn array_elements_are_quoted_where_needed() {
        assert_eq!(text(|o| array_element(o, "a")), "a");
        assert_eq!(text(|o| array_element(o, "")), "\"\"");
        assert_eq!(text(|o| array_element(o, "a\"b")), "\"a\\\"b\"");
        assert_eq!(text(|o| array_element(o, "NULL")), "\"NULL\"");
    }
}
