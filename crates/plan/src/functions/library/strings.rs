//! Text.

use std::borrow::Cow;
use std::fmt::Write;

use arrow::array::Array;
use arrow::array::AsArray;
use arrow::datatypes::DataType;
use flow::{Error, Result, SqlState};

use super::Type::*;
use super::cells::{Call, build, map1, map2, map3, map4, text_at, texts};
use super::{Declared, Gives, bad_argument};

pub(super) fn declare(d: &mut Declared) {
    parts(d);
    letters(d);
    trims(d);
    joins(d);
    arrays(d);
    quotes(d);
}

/// The largest text that a function makes, in bytes.
const TEXT_BYTES_MAX: usize = 1 << 28;

fn characters(s: &str) -> i32 {
    i32::try_from(if s.is_ascii() { s.len() } else { s.chars().count() }).unwrap_or(i32::MAX)
}

/// The byte at which character `n` begins; the end where there are fewer.
fn byte_of(s: &str, n: usize) -> usize {
    if s.is_ascii() { n.min(s.len()) } else { s.char_indices().nth(n).map_or(s.len(), |(i, _)| i) }
}

fn negative_length() -> Error {
    Error::new(SqlState::SubstringError, "negative substring length not allowed")
}

/// The characters from `start` (the first is 1, and there may be some before it) on, `length` of them.
fn substring(s: &str, start: i32, length: Option<i32>) -> Result<&str> {
    let from = i64::from(start);
    let to = match length {
        Some(n) if n < 0 => return Err(negative_length()),
        Some(n) => from + i64::from(n),
        None => i64::MAX,
    };
    let (from, to) = (from.max(1), to.max(1));
    if to <= from {
        return Ok("");
    }
    let start = byte_of(s, (from - 1) as usize);
    let rest = &s[start..];
    Ok(if to == i64::MAX { rest } else { &rest[..byte_of(rest, (to - from) as usize)] })
}

/// The first `n` characters, or all but the last `-n`.
fn left(s: &str, n: i32) -> &str {
    let keep = if n >= 0 { i64::from(n) } else { i64::from(characters(s)) + i64::from(n) };
    &s[..byte_of(s, keep.max(0) as usize)]
}

fn right(s: &str, n: i32) -> &str {
    let skip = if n >= 0 { i64::from(characters(s)) - i64::from(n) } else { -i64::from(n) };
    &s[byte_of(s, skip.max(0) as usize)..]
}

fn overlay(s: &str, new: &str, start: i32, length: i32) -> Result<String> {
    if start <= 0 {
        return Err(negative_length());
    }
    let before = substring(s, 1, Some(start - 1))?;
    let after = start.checked_add(length).ok_or_else(|| super::cells::out_of_range("integer"))?;
    Ok(format!("{before}{new}{}", substring(s, after, None)?))
}

/// The character position of `part`, counted from 1; 0 if it is not there.
fn position(s: &str, part: &str) -> i32 {
    s.find(part).map_or(0, |at| characters(&s[..at]) + 1)
}

fn split_part<'a>(s: &'a str, separator: &str, n: i32) -> Result<&'a str> {
    if n == 0 {
        return Err(bad_argument("field position must not be zero"));
    }
    if separator.is_empty() {
        return Ok(if n == 1 || n == -1 { s } else { "" });
    }
    let at = n.unsigned_abs() as usize - 1;
    Ok(if n > 0 { s.split(separator).nth(at) } else { s.rsplit(separator).nth(at) }.unwrap_or(""))
}

fn too_large() -> Error {
    Error::new(SqlState::ProgramLimitExceeded, "requested length too large")
}

fn padding(s: &str, width: i32, fill: &str) -> Result<(usize, String)> {
    let width = width.max(0) as usize;
    if width > TEXT_BYTES_MAX / 4 {
        return Err(too_large());
    }
    let keep = byte_of(s, width);
    let missing = width.saturating_sub(characters(&s[..keep]) as usize);
    Ok((keep, if fill.is_empty() { String::new() } else { fill.chars().cycle().take(missing).collect() }))
}

fn parts(d: &mut Declared) {
    for name in ["length", "char_length", "character_length"] {
        d.of(name, &[Text], Gives::Is(Int4), |c| map1(c, |s: &str| Ok(characters(s))));
    }
    d.of("octet_length", &[Text], Gives::Is(Int4), |c| map1(c, |s: &str| Ok(s.len() as i32)));
    d.of("bit_length", &[Text], Gives::Is(Int4), |c| map1(c, |s: &str| Ok(s.len() as i32 * 8)));
    for name in ["substring", "substr"] {
        d.of(name, &[Text, Int4], Gives::Is(Text), |c| map2(c, |s: &str, from: i32| substring(s, from, None)));
        d.of(name, &[Text, Int4, Int4], Gives::Is(Text), |c| {
            map3(c, |s: &str, from: i32, n: i32| substring(s, from, Some(n)))
        });
    }
    d.of("left", &[Text, Int4], Gives::Is(Text), |c| map2(c, |s: &str, n: i32| Ok(left(s, n))));
    d.of("right", &[Text, Int4], Gives::Is(Text), |c| map2(c, |s: &str, n: i32| Ok(right(s, n))));
    d.of("overlay", &[Text, Text, Int4], Gives::Is(Text), |c| {
        map3(c, |s: &str, new: &str, from: i32| overlay(s, new, from, characters(new)))
    });
    d.of("overlay", &[Text, Text, Int4, Int4], Gives::Is(Text), |c| map4(c, overlay));
    for name in ["strpos", "position"] {
        d.of(name, &[Text, Text], Gives::Is(Int4), |c| map2(c, |s: &str, part: &str| Ok(position(s, part))));
    }
    d.of("split_part", &[Text, Text, Int4], Gives::Is(Text), |c| map3(c, split_part));
    for name in ["starts_with", "^@"] {
        d.of(name, &[Text, Text], Gives::Is(Bool), |c| map2(c, |s: &str, start: &str| Ok(s.starts_with(start))));
    }
    d.of("replace", &[Text, Text, Text], Gives::Is(Text), |c| {
        map3(c, |s: &str, from: &str, to: &str| {
            Ok(if from.is_empty() || !s.contains(from) { Cow::Borrowed(s) } else { Cow::Owned(s.replace(from, to)) })
        })
    });
    d.of("translate", &[Text, Text, Text], Gives::Is(Text), |c| {
        map3(c, |s: &str, from: &str, to: &str| {
            let to: Vec<char> = to.chars().collect();
            let new = |ch: char| match from.chars().position(|f| f == ch) {
                Some(i) => to.get(i).copied(),
                None => Some(ch),
            };
            Ok(s.chars().filter_map(new).collect::<String>())
        })
    });
}

/// Each word with a capital first letter.
fn capitalised(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut inside = false;
    for ch in s.chars() {
        if inside {
            out.extend(ch.to_lowercase());
        } else {
            out.extend(ch.to_uppercase());
        }
        inside = ch.is_alphanumeric();
    }
    out
}

fn letters(d: &mut Declared) {
    d.of("lower", &[Text], Gives::Is(Text), |c| map1(c, |s: &str| Ok(s.to_lowercase())));
    d.of("upper", &[Text], Gives::Is(Text), |c| map1(c, |s: &str| Ok(s.to_uppercase())));
    d.of("initcap", &[Text], Gives::Is(Text), |c| map1(c, |s: &str| Ok(capitalised(s))));
    d.of("reverse", &[Text], Gives::Is(Text), |c| map1(c, |s: &str| Ok(s.chars().rev().collect::<String>())));
    d.of("repeat", &[Text, Int4], Gives::Is(Text), |c| {
        map2(c, |s: &str, n: i32| {
            let n = n.max(0) as usize;
            if s.len().saturating_mul(n) > TEXT_BYTES_MAX { Err(too_large()) } else { Ok(s.repeat(n)) }
        })
    });
    d.of("ascii", &[Text], Gives::Is(Int4), |c| map1(c, |s: &str| Ok(s.chars().next().map_or(0, |ch| ch as i32))));
    d.of("chr", &[Int4], Gives::Is(Text), |c| {
        map1(c, |n: i32| match u32::try_from(n).ok().and_then(char::from_u32) {
            Some('\0') => Err(Error::new(SqlState::ProgramLimitExceeded, "null character not permitted")),
            Some(ch) => Ok(ch.to_string()),
            None if n < 0 => Err(Error::new(SqlState::ProgramLimitExceeded, "character number must be positive")),
            None => Err(Error::new(
                SqlState::ProgramLimitExceeded,
                format!("requested character too large for encoding: {n}"),
            )),
        })
    });
    d.of("lpad", &[Text, Int4], Gives::Is(Text), |c| {
        map2(c, |s: &str, width: i32| padding(s, width, " ").map(|(keep, pad)| pad + &s[..keep]))
    });
    d.of("lpad", &[Text, Int4, Text], Gives::Is(Text), |c| {
        map3(c, |s: &str, width: i32, fill: &str| padding(s, width, fill).map(|(keep, pad)| pad + &s[..keep]))
    });
    d.of("rpad", &[Text, Int4], Gives::Is(Text), |c| {
        map2(c, |s: &str, width: i32| padding(s, width, " ").map(|(keep, pad)| s[..keep].to_string() + &pad))
    });
    d.of("rpad", &[Text, Int4, Text], Gives::Is(Text), |c| {
        map3(c, |s: &str, width: i32, fill: &str| {
            padding(s, width, fill).map(|(keep, pad)| s[..keep].to_string() + &pad)
        })
    });
    d.of("md5", &[Text], Gives::Is(Text), |c| {
        map1(c, |s: &str| Ok(super::digest::hex(&super::digest::md5(s.as_bytes()))))
    });
    // The pattern of LIKE with another escape character, as one with the backslash.
    d.of("like_escape", &[Text, Text], Gives::Is(Text), |c| map2(c, like_escape));
}

fn like_escape(pattern: &str, escape: &str) -> Result<String> {
    let mut characters = escape.chars();
    let (escape, rest) = (characters.next(), characters.next());
    if rest.is_some() {
        return Err(Error::new(SqlState::InvalidEscapeSequence, "invalid escape string")
            .with_hint("Escape string must be empty or one character."));
    }
    let mut out = String::with_capacity(pattern.len() + 2);
    let mut characters = pattern.chars();
    while let Some(ch) = characters.next() {
        if Some(ch) == escape {
            out.push('\\');
            match characters.next() {
                Some(next) => out.push(next),
                None => {
                    return Err(Error::new(
                        SqlState::InvalidEscapeSequence,
                        "LIKE pattern must not end with escape character",
                    ));
                }
            }
        } else {
            if ch == '\\' {
                out.push('\\');
            }
            out.push(ch);
        }
    }
    Ok(out)
}

fn trims(d: &mut Declared) {
    for name in ["btrim", "trim"] {
        d.of(name, &[Text], Gives::Is(Text), |c| map1(c, |s: &str| Ok(s.trim_matches(' '))));
        d.of(name, &[Text, Text], Gives::Is(Text), |c| {
            map2(c, |s: &str, set: &str| Ok(s.trim_matches(|ch| set.contains(ch))))
        });
    }
    d.of("ltrim", &[Text], Gives::Is(Text), |c| map1(c, |s: &str| Ok(s.trim_start_matches(' '))));
    d.of("ltrim", &[Text, Text], Gives::Is(Text), |c| {
        map2(c, |s: &str, set: &str| Ok(s.trim_start_matches(|ch| set.contains(ch))))
    });
    d.of("rtrim", &[Text], Gives::Is(Text), |c| map1(c, |s: &str| Ok(s.trim_end_matches(' '))));
    d.of("rtrim", &[Text, Text], Gives::Is(Text), |c| {
        map2(c, |s: &str, set: &str| Ok(s.trim_end_matches(|ch| set.contains(ch))))
    });
}

/// The arguments as concat and format write them: booleans as one letter.
fn written(call: &Call<'_>, first: usize) -> Result<Vec<(arrow::array::StringViewArray, bool)>> {
    let mut out = texts(call, first)?;
    for ((array, _), text) in call.columns[first..].iter().zip(&mut out) {
        if *array.data_type() == DataType::Boolean {
            text.0 = array.as_boolean().iter().map(|b| b.map(|b| if b { "t" } else { "f" })).collect();
        }
    }
    Ok(out)
}

fn joins(d: &mut Declared) {
    for types in [&[Text, Text], &[Text, Any], &[Any, Text]] {
        d.of("||", types, Gives::Is(Text), |c| {
            let columns = texts(c, 0)?;
            build(c, |row| {
                Ok(match (text_at(&columns[0], row), text_at(&columns[1], row)) {
                    (Some(a), Some(b)) => Some([a, b].concat()),
                    _ => None,
                })
            })
        });
    }
    // `a || b || c …` side by side; what the first two are has been looked at as an operator of its own.
    d.variadic("||", &[Any, Any, Any], Gives::Is(Text), |c| {
        let columns = texts(c, 0)?;
        build(c, |row| Ok(columns.iter().map(|t| text_at(t, row)).collect::<Option<String>>()))
    });
    d.variadic("concat", &[Any], Gives::Is(Text), |c| {
        let columns = written(c, 0)?;
        build(c, |row| Ok(Some(columns.iter().filter_map(|t| text_at(t, row)).collect::<String>())))
    });
    d.variadic("concat_ws", &[Text, Any], Gives::Is(Text), |c| {
        let columns = written(c, 1)?;
        let separators = c.column::<&str>(0);
        build(c, |row| {
            Ok(separators.get(row).map(|separator| {
                let parts: Vec<&str> = columns.iter().filter_map(|t| text_at(t, row)).collect();
                parts.join(separator)
            }))
        })
    });
    d.of("format", &[Text], Gives::Is(Text), format_all);
    d.variadic("format", &[Text, Any], Gives::Is(Text), format_all);
    d.of("pg_typeof", &[Any], Gives::Is(Text), |c| {
        let name = super::super::type_name(c.columns[0].0.data_type());
        build(c, |_| Ok(Some(name.as_str())))
    });
    d.variadic("num_nulls", &[Any], Gives::Is(Int4), |c| count_nulls(c, true));
    d.variadic("num_nonnulls", &[Any], Gives::Is(Int4), |c| count_nulls(c, false));
}

fn format_all(call: &Call<'_>) -> Result<arrow::array::ArrayRef> {
    let columns = written(call, 1)?;
    let templates = call.column::<&str>(0);
    build(call, |row| {
        templates
            .get(row)
            .map(|template| {
                let arguments: Vec<Option<&str>> = columns.iter().map(|t| text_at(t, row)).collect();
                format(template, &arguments)
            })
            .transpose()
    })
}

fn count_nulls(call: &Call<'_>, null: bool) -> Result<arrow::array::ArrayRef> {
    build(call, |row| {
        let is_null =
            |(array, constant): &(arrow::array::ArrayRef, bool)| array.is_null(if *constant { 0 } else { row });
        Ok(Some(call.columns.iter().filter(|column| is_null(column) == null).count() as i32))
    })
}

/// `%[position$][-][width](s|I|L)` and `%%`.
fn format(template: &str, arguments: &[Option<&str>]) -> Result<String> {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    let mut next = 0;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
        let unterminated =
            || bad_argument("unterminated format() type specifier").with_hint("For a single \"%\" use \"%%\".");
        let n = digits(rest);
        if n > 0 && rest[n..].starts_with('$') {
            let position: usize = rest[..n].parse().map_err(|_| super::cells::out_of_range("format position"))?;
            if position == 0 {
                return Err(bad_argument("format specifies argument 0, but arguments are numbered from 1"));
            }
            next = position - 1;
            rest = &rest[n + 1..];
        }
        let (to_left, after) = match rest.strip_prefix('-') {
            Some(after) => (true, after),
            None => (false, rest),
        };
        rest = after;
        let n = digits(rest);
        let mut argument = || -> Result<Option<&str>> {
            let found = arguments.get(next).copied();
            next += 1;
            found.ok_or_else(|| bad_argument("too few arguments for format()"))
        };
        let (mut width, mut to_left) = (0i64, to_left);
        if let Some(after) = rest.strip_prefix('*') {
            width = argument()?.unwrap_or("0").parse().map_err(|_| bad_argument("invalid width"))?;
            to_left |= width < 0;
            width = width.abs();
            rest = after;
        } else if n > 0 {
            width = rest[..n].parse().map_err(|_| super::cells::out_of_range("number"))?;
            rest = &rest[n..];
        }
        let kind = rest.chars().next().ok_or_else(unterminated)?;
        rest = &rest[kind.len_utf8()..];
        if !matches!(kind, 's' | 'I' | 'L') {
            return Err(bad_argument(format!("unrecognized format() type specifier \"{kind}\""))
                .with_hint("For a single \"%\" use \"%%\"."));
        }
        let value = argument()?;
        let text = match (kind, value) {
            ('s', value) => value.unwrap_or("").to_string(),
            ('I', Some(value)) => flow::identifier::quote(value).into_owned(),
            ('I', None) => {
                return Err(Error::new(
                    SqlState::NullValueNotAllowed,
                    "null values cannot be formatted as an SQL identifier",
                ));
            }
            (_, Some(value)) => quote_literal(value),
            (_, None) => "NULL".to_string(),
        };
        if width as usize > TEXT_BYTES_MAX {
            return Err(too_large());
        }
        let width = width as usize;
        // Writing to a String cannot fail.
        let _ = if to_left { write!(out, "{text:<width$}") } else { write!(out, "{text:>width$}") };
    }
    out.push_str(rest);
    Ok(out)
}

fn arrays(d: &mut Declared) {
    d.of("string_to_array", &[Text, Text], Gives::Is(Texts), |c| {
        let (texts, separators) = (c.column::<&str>(0), c.column::<&str>(1));
        build(c, |row| Ok(texts.get(row).map(|text| split(text, separators.get(row), None))))
    });
    d.of("string_to_array", &[Text, Text, Text], Gives::Is(Texts), |c| {
        let (texts, separators, nulls) = (c.column::<&str>(0), c.column::<&str>(1), c.column::<&str>(2));
        build(c, |row| Ok(texts.get(row).map(|text| split(text, separators.get(row), nulls.get(row)))))
    });
    d.of("array_to_string", &[AnyArray, Text], Gives::Is(Text), |c| join_array(c, false));
    d.of("array_to_string", &[AnyArray, Text, Text], Gives::Is(Text), |c| join_array(c, true));
}

fn split(text: &str, separator: Option<&str>, null: Option<&str>) -> Vec<Option<String>> {
    let element = |s: &str| if Some(s) == null { None } else { Some(s.to_string()) };
    match separator {
        _ if text.is_empty() => Vec::new(),
        None => text.chars().map(|ch| element(ch.encode_utf8(&mut [0; 4]))).collect(),
        Some("") => vec![element(text)],
        Some(separator) => text.split(separator).map(element).collect(),
    }
}

fn join_array(call: &Call<'_>, with_null: bool) -> Result<arrow::array::ArrayRef> {
    let (array, constant) = &call.columns[0];
    let list = array.as_list::<i32>();
    let elements =
        super::cast::to_text(list.values(), &call.zone).map_err(|e| crate::error::from_datafusion_error(e.into()))?;
    let elements = if *list.values().data_type() == DataType::Boolean {
        list.values().as_boolean().iter().map(|b| b.map(|b| if b { "t" } else { "f" })).collect()
    } else {
        elements
    };
    let separators = call.column::<&str>(1);
    let nulls = with_null.then(|| call.column::<&str>(2));
    build(call, |row| {
        let at = if *constant { 0 } else { row };
        let Some(separator) = separators.get(row).filter(|_| list.is_valid(at)) else { return Ok(None) };
        let null = nulls.as_ref().and_then(|n| n.get(row));
        let (start, end) = (list.value_offsets()[at] as usize, list.value_offsets()[at + 1] as usize);
        let parts: Vec<&str> =
            (start..end).filter_map(|i| if elements.is_valid(i) { Some(elements.value(i)) } else { null }).collect();
        Ok(Some(parts.join(separator)))
    })
}

fn quote_literal(s: &str) -> String {
    let quoted = s.replace('\'', "''");
    if s.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

fn quotes(d: &mut Declared) {
    d.of("quote_ident", &[Text], Gives::Is(Text), |c| map1(c, |s: &str| Ok(flow::identifier::quote(s).into_owned())));
    d.of("quote_literal", &[Any], Gives::Is(Text), |c| {
        let columns = texts(c, 0)?;
        build(c, |row| Ok(text_at(&columns[0], row).map(quote_literal)))
    });
    d.of("quote_nullable", &[Any], Gives::Is(Text), |c| {
        let columns = texts(c, 0)?;
        build(c, |row| Ok(Some(text_at(&columns[0], row).map_or_else(|| "NULL".to_string(), quote_literal))))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn substrings_count_characters_from_one_and_may_begin_before() {
        assert_eq!(substring("añb", 2, Some(1)).unwrap(), "ñ");
        assert_eq!(substring("abc", -1, Some(3)).unwrap(), "a");
        assert_eq!(substring("abc", 2, None).unwrap(), "bc");
        assert_eq!(substring("abc", 5, None).unwrap(), "");
        assert!(substring("abc", 1, Some(-1)).is_err());
        assert_eq!((left("abc", -1), right("abc", -1), left("abc", -9), right("abc", 9)), ("ab", "bc", "", "abc"));
    }

    #[test]
    fn format_reads_positions_and_widths() {
        let arguments = [Some("a'b"), None, Some("Col")];
        assert_eq!(format("%s|%2$s|%3$I|%1$L|%%", &arguments).unwrap(), "a'b||\"Col\"|'a''b'|%");
        assert_eq!(format("[%-5s][%5s]", &[Some("x"), Some("y")]).unwrap(), "[x    ][    y]");
        assert!(format("%s %s", &[Some("x")]).is_err());
        assert!(format("%d", &[Some("x")]).is_err());
    }
}
