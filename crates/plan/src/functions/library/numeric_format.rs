//! `to_char` and `to_number` over PostgreSQL's template patterns for numbers.

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use flow::{Error, Result, SqlState};

use super::super::{format, parse};
use super::Type::*;
use super::cells::{Call, Decimal, build, map2};
use super::{Declared, Gives};

/// A piece of a template.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    /// `9` or, with the flag, `0`.
    Digit(bool),
    /// `.` or `D`.
    Point,
    /// `,` or `G`.
    Group,
    /// `S`.
    Sign,
    /// `MI`, `PL` and `SG`.
    Minus,
    Plus,
    EitherSign,
    /// `PR`.
    Brackets,
    /// `L`: there is no currency sign in the "C" locale.
    Currency,
    /// `TH`, `th`.
    Ordinal(bool),
    /// `RN`, `rn`.
    Roman(bool),
    Exponent,
    Literal(char),
}

struct Template {
    parts: Vec<Part>,
    /// `FM`: no blanks and no zeros that fill.
    tight: bool,
    /// Digits before and after the point.
    before: usize,
    after: usize,
    /// Digits after `V`, by which the value is multiplied.
    shift: usize,
}

fn template(pattern: &str) -> Result<Template> {
    let mut t = Template { parts: Vec::new(), tight: false, before: 0, after: 0, shift: 0 };
    let mut rest = pattern;
    let (mut point, mut shifted) = (false, false);
    let twice = |what: &str| Error::new(SqlState::SyntaxError, format!("multiple {what}"));
    while let Some(ch) = rest.chars().next() {
        let starts = |word: &str| rest.get(..word.len()).is_some_and(|p| p.eq_ignore_ascii_case(word));
        let (part, length) = if starts("FM") {
            t.tight = true;
            rest = &rest[2..];
            continue;
        } else if starts("MI") {
            (Part::Minus, 2)
        } else if starts("PL") {
            (Part::Plus, 2)
        } else if starts("PR") {
            (Part::Brackets, 2)
        } else if starts("SG") {
            (Part::EitherSign, 2)
        } else if starts("RN") {
            (Part::Roman(ch == 'R'), 2)
        } else if starts("TH") {
            (Part::Ordinal(ch == 'T'), 2)
        } else if starts("EEEE") {
            (Part::Exponent, 4)
        } else {
            match ch {
                '9' | '0' => {
                    if point {
                        t.after += 1;
                    } else if shifted {
                        t.shift += 1;
                    } else {
                        t.before += 1;
                    }
                    (Part::Digit(ch == '0'), 1)
                }
                '.' | 'D' | 'd' => {
                    if point {
                        return Err(twice("decimal points"));
                    }
                    point = true;
                    (Part::Point, 1)
                }
                ',' | 'G' | 'g' => (Part::Group, 1),
                'S' | 's' => {
                    if t.parts.contains(&Part::Sign) {
                        return Err(Error::new(SqlState::SyntaxError, "cannot use \"S\" twice"));
                    }
                    (Part::Sign, 1)
                }
                'L' | 'l' => (Part::Currency, 1),
                'V' | 'v' => {
                    if point {
                        return Err(Error::new(SqlState::SyntaxError, "cannot use \"V\" and decimal point together"));
                    }
                    shifted = true;
                    rest = &rest[1..];
                    continue;
                }
                '"' => {
                    let quoted = &rest[1..];
                    let end = quoted.find('"').unwrap_or(quoted.len());
                    t.parts.extend(quoted[..end].chars().map(Part::Literal));
                    rest = quoted.get(end + 1..).unwrap_or("");
                    continue;
                }
                '\\' => {
                    let next = rest[1..].chars().next().unwrap_or('\\');
                    (Part::Literal(next), 1 + rest[1..].chars().next().map_or(0, char::len_utf8))
                }
                other => (Part::Literal(other), other.len_utf8()),
            }
        };
        t.parts.push(part);
        rest = &rest[length..];
    }
    Ok(t)
}

/// A number as its sign and decimal digits.
struct Number {
    negative: bool,
    /// Before the point, without leading zeros; empty for 0.
    whole: String,
    fraction: String,
}

/// Rounds the plain decimal text of a number to `digits` after the point.
fn number(text: &str, digits: usize, shift: usize) -> Option<Number> {
    let negative = text.starts_with('-');
    let body = text.trim_start_matches('-');
    if !body.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (whole, fraction) = body.split_once('.').unwrap_or((body, ""));
    let mut all: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').collect();
    let mut point = whole.len() + shift;
    while all.len() < point + digits + 1 {
        all.push(0);
    }
    let up = all[point + digits] >= 5;
    all.truncate(point + digits);
    if up {
        let mut i = all.len();
        loop {
            if i == 0 {
                all.insert(0, 1);
                point += 1;
                break;
            }
            i -= 1;
            if all[i] == 9 {
                all[i] = 0;
            } else {
                all[i] += 1;
                break;
            }
        }
    }
    let text: String = all.iter().map(|d| char::from(d + b'0')).collect();
    let (whole, fraction) = text.split_at(point);
    let whole = whole.trim_start_matches('0').to_string();
    let is_zero = whole.is_empty() && fraction.bytes().all(|b| b == b'0');
    Some(Number { negative: negative && !is_zero, whole, fraction: fraction.to_string() })
}

fn roman(mut n: i64) -> String {
    const DIGITS: [(i64, &str); 13] = [
        (1_000, "M"),
        (900, "CM"),
        (500, "D"),
        (400, "CD"),
        (100, "C"),
        (90, "XC"),
        (50, "L"),
        (40, "XL"),
        (10, "X"),
        (9, "IX"),
        (5, "V"),
        (4, "IV"),
        (1, "I"),
    ];
    let mut out = String::new();
    for (value, digit) in DIGITS {
        while n >= value {
            out.push_str(digit);
            n -= value;
        }
    }
    out
}

fn ordinal(whole: &str) -> &'static str {
    let tail: u32 = whole[whole.len().saturating_sub(2)..].parse().unwrap_or_default();
    match (tail, tail % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    }
}

fn with_exponent(t: &Template, text: &str, value: f64) -> String {
    let digits = t.after;
    if !value.is_finite() {
        return "#".repeat(t.before + t.after + 6);
    }
    let value: f64 = text.parse().unwrap_or(value);
    let written = format!("{value:.digits$e}");
    let (mantissa, exponent) = written.split_once('e').unwrap_or((&written, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let sign = if value < 0.0 || t.tight { "" } else { " " };
    format!("{sign}{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// Writes the number, given as plain decimal text, by the template.
fn write(t: &Template, text: &str) -> String {
    if let Some(Part::Roman(upper)) = t.parts.iter().find(|p| matches!(p, Part::Roman(_))) {
        let n = number(text, 0, 0).filter(|n| !n.negative).and_then(|n| n.whole.parse::<i64>().ok());
        let out = match n {
            Some(n @ 1..=3_999) => roman(n),
            _ => "#".repeat(15),
        };
        let out = if *upper { out } else { out.to_lowercase() };
        return if t.tight { out } else { format!("{out:>15}") };
    }
    if t.parts.contains(&Part::Exponent) {
        return with_exponent(t, text, text.parse().unwrap_or(f64::NAN));
    }
    let Some(n) = number(text, t.after, t.shift) else {
        return "#".repeat(t.before + t.after + 1);
    };
    let places = t.before + t.shift;
    let overflow = n.whole.len() > places;
    // Digits right-aligned in their places; zeros from the first `0` of the template on.
    let first_zero = t
        .parts
        .iter()
        .take_while(|p| **p != Part::Point)
        .filter_map(|p| if let Part::Digit(zero) = p { Some(*zero) } else { None })
        .position(|zero| zero)
        .unwrap_or(places);
    let start = if overflow { 0 } else { places - n.whole.len() }.min(first_zero);
    // Without any digit before the point, zero is written where nothing else is, as in "0" for 9.
    let has_fraction = t.parts.contains(&Part::Point);
    let start = if start == places && !has_fraction && places > 0 { places - 1 } else { start };
    let start =
        if start == places && has_fraction && places > 0 && n.fraction.bytes().all(|b| b == b'0') && t.after == 0 {
            places - 1
        } else {
            start
        };
    let digit_at = |place: usize| -> char {
        if overflow {
            return '#';
        }
        let lead = places - n.whole.len();
        if place < lead { '0' } else { char::from(n.whole.as_bytes()[place - lead]) }
    };
    // With FM, zeros at the end of the fraction stay only where the template has `0`.
    let fraction_zeros: Vec<bool> = t
        .parts
        .iter()
        .skip_while(|p| **p != Part::Point)
        .filter_map(|p| if let Part::Digit(zero) = p { Some(*zero) } else { None })
        .collect();
    let kept = if t.tight {
        let needed = n.fraction.trim_end_matches('0').len();
        needed.max(fraction_zeros.iter().rposition(|zero| *zero).map_or(0, |i| i + 1))
    } else {
        t.after
    };
    let explicit =
        t.parts.iter().any(|p| matches!(p, Part::Sign | Part::Minus | Part::Plus | Part::EitherSign | Part::Brackets));
    let brackets = t.parts.contains(&Part::Brackets);
    let mut out = String::new();
    let (mut place, mut after, mut in_fraction, mut signed) = (0, 0, false, false);
    // The sign that no pattern places, or that `S` at the front places, stands just before the first digit.
    let anchored = t
        .parts
        .iter()
        .position(|p| *p == Part::Sign)
        .is_some_and(|at| t.parts[..at].iter().all(|p| !matches!(p, Part::Digit(_))));
    let lead_sign = |out: &mut String, signed: &mut bool| {
        if *signed {
            return;
        }
        *signed = true;
        if brackets {
            if n.negative {
                out.push('<')
            } else if !t.tight {
                out.push(' ')
            }
        } else if anchored {
            out.push(if n.negative { '-' } else { '+' });
        } else if !explicit {
            if n.negative {
                out.push('-')
            } else if !t.tight {
                out.push(' ')
            }
        }
    };
    for part in &t.parts {
        match part {
            Part::Digit(_) if in_fraction => {
                if after < kept {
                    out.push(if overflow { '#' } else { char::from(n.fraction.as_bytes()[after]) });
                } else if !t.tight {
                    out.push(' ');
                }
                after += 1;
            }
            Part::Digit(_) => {
                if place >= start {
                    lead_sign(&mut out, &mut signed);
                    out.push(digit_at(place));
                } else if !t.tight {
                    out.push(' ');
                }
                place += 1;
            }
            Part::Group => {
                if place > start {
                    out.push(',');
                } else if !t.tight {
                    out.push(' ');
                }
            }
            Part::Point => {
                lead_sign(&mut out, &mut signed);
                in_fraction = true;
                out.push('.');
            }
            Part::Sign if anchored => {}
            Part::Sign => out.push(if n.negative { '-' } else { '+' }),
            Part::Minus => {
                if n.negative {
                    out.push('-');
                } else if !t.tight {
                    out.push(' ');
                }
            }
            Part::Plus => {
                if !n.negative {
                    out.push('+');
                } else if !t.tight {
                    out.push(' ');
                }
            }
            Part::EitherSign => out.push(if n.negative { '-' } else { '+' }),
            Part::Brackets => {
                if n.negative {
                    out.push('>');
                } else if !t.tight {
                    out.push(' ');
                }
            }
            Part::Currency => {
                if !t.tight {
                    out.push(' ');
                }
            }
            Part::Ordinal(upper) => {
                if !n.negative {
                    let suffix = ordinal(&n.whole);
                    out.push_str(&if *upper { suffix.to_uppercase() } else { suffix.to_string() });
                }
            }
            Part::Literal(ch) => out.push(*ch),
            Part::Roman(_) | Part::Exponent => {}
        }
    }
    // A minus that only a pattern with MI, PL or SG would have placed.
    if n.negative
        && explicit
        && !t.parts.iter().any(|p| matches!(p, Part::Sign | Part::Minus | Part::EitherSign | Part::Brackets))
    {
        let at = out.find(|c: char| c != ' ').unwrap_or(0);
        out.insert(at, '-');
    }
    out
}

/// Writes a column by its templates; `text` gives a value as plain decimal digits.
fn formatted<'a, V: super::cells::Cell<'a>>(call: &'a Call<'_>, text: impl Fn(&mut String, V)) -> Result<ArrayRef> {
    let (values, patterns) = (call.column::<V>(0), call.column::<&str>(1));
    let mut parsed: Option<(&str, Template)> = None;
    let mut buffer = String::new();
    build(call, |row| {
        let (Some(value), Some(pattern)) = (values.get(row), patterns.get(row)) else { return Ok(None) };
        if parsed.as_ref().is_none_or(|(known, _)| *known != pattern) {
            parsed = Some((pattern, template(pattern)?));
        }
        buffer.clear();
        text(&mut buffer, value);
        Ok(parsed.as_ref().map(|(_, t)| write(t, &buffer)))
    })
}

/// A double in plain digits, with those that it has.
fn plain_digits(out: &mut String, v: f64) {
    out.push_str(&if v.is_finite() { format!("{v}") } else { format!("{v}").to_uppercase() });
}

/// The number that a text shows.
fn read(text: &str, pattern: &str) -> Result<String> {
    let t = template(pattern)?;
    let mut digits = String::new();
    let mut negative = false;
    let mut seen_point = false;
    let (mut before, mut after) = (0, 0);
    let at = |c: char| matches!(c, '-' | '<');
    for ch in text.chars() {
        match ch {
            '0'..='9' if !seen_point && before < t.before + t.shift => {
                digits.push(ch);
                before += 1;
            }
            '0'..='9' if seen_point && after < t.after => {
                digits.push(ch);
                after += 1;
            }
            '.' if t.after > 0 || t.parts.contains(&Part::Point) => {
                if !seen_point {
                    digits.push('.');
                }
                seen_point = true;
            }
            c if at(c) => negative = true,
            _ => {}
        }
    }
    if !digits.bytes().any(|b| b.is_ascii_digit()) {
        return Err(parse::invalid("numeric", text));
    }
    Ok(format!("{}{digits}", if negative { "-" } else { "" }))
}

pub(super) fn declare(d: &mut Declared) {
    d.of("to_char", &[Int4, Text], Gives::Is(Text), |c| formatted(c, |out, v: i32| out.push_str(&v.to_string())));
    d.of("to_char", &[Int8, Text], Gives::Is(Text), |c| formatted(c, |out, v: i64| out.push_str(&v.to_string())));
    d.of("to_char", &[Numeric, Text], Gives::Is(Text), |c| {
        let scale = c.scale(0);
        formatted(c, move |out, v: Decimal| format::decimal(out, v.0, scale, false))
    });
    d.of("to_char", &[Float4, Text], Gives::Is(Text), |c| {
        // A real has six digits here.
        formatted(c, |out, v: f32| plain_digits(out, format!("{v:.5e}").parse().unwrap_or(f64::from(v))))
    });
    d.of("to_char", &[Float8, Text], Gives::Is(Text), |c| formatted(c, |out, v: f64| plain_digits(out, v)));
    d.of("to_number", &[Text, Text], Gives::By(|_, _| DataType::Decimal128(38, 18)), |c| {
        map2(c, |text: &str, pattern: &str| parse::decimal(&read(text, pattern)?, 38, 18).map(Decimal))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_in_postgres() {
        for (text, pattern, expected) in [
            ("125.8", "999D9", " 125.8"),
            ("-125.8", "999D99", "-125.80"),
            ("485", "999", " 485"),
            ("-485", "999", "-485"),
            ("485", "9 9 9", " 4 8 5"),
            ("1485", "9,999", " 1,485"),
            ("148.5", "999.999", " 148.500"),
            ("148.5", "FM999.999", "148.5"),
            ("148.5", "FM999.990", "148.500"),
            ("0.1", "0.9", " 0.1"),
            ("0.1", "99.99", "   .10"),
            ("12", "9990999.9", "    0012.0"),
            ("12", "FM9990999.9", "0012."),
            ("-485", "999S", "485-"),
            ("-485", "999MI", "485-"),
            ("485", "999MI", "485 "),
            ("485", "FM999MI", "485"),
            ("485", "PL999", "+485"),
            ("485", "SG999", "+485"),
            ("-485", "999PR", "<485>"),
            ("485", "RN", "        CDLXXXV"),
            ("485", "FMRN", "CDLXXXV"),
            ("482", "999th", " 482nd"),
            ("12", "99V999", " 12000"),
            ("12345", "999", " ###"),
            ("0", "999", "   0"),
            ("1234567", "FM9,999,999", "1,234,567"),
            ("0.0004859", "9.99EEEE", " 4.86e-04"),
            ("-7", "S00", "-07"),
        ] {
            assert_eq!(write(&template(pattern).unwrap(), text), expected, "{text} {pattern}");
        }
    }

    #[test]
    fn numbers_are_read_by_their_template() {
        assert_eq!(read("12,454.8-", "99G999D9S").unwrap(), "-12454.8");
        assert_eq!(read("$1,234.50", "L9,999.99").unwrap(), "1234.50");
        assert!(read("abc", "999").is_err());
    }
}
