//! Functions over text, arrays and sizes that clients use to put catalog rows into words.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Int32Builder, ListArray, ListBuilder, StringViewArray, StringViewBuilder, StructArray,
};
use arrow::datatypes::{DataType, Field};
use catalog::names::quote_literal;
use flow::identifier;
use flow::{Error, Result, SqlState};

use super::{Arguments, Definition, INT4, TEXT, ints, list_argument, stable, texts};
use crate::system::Snapshot;

pub(super) const FUNCTIONS: &[Definition] = &[
    stable("quote_ident", TEXT, quote_ident),
    stable("quote_literal", TEXT, quote_literal_text),
    stable("quote_nullable", TEXT, quote_nullable),
    stable("pg_size_pretty", TEXT, size_pretty),
    stable("array_upper", INT4, array_upper),
    stable("array_lower", INT4, array_lower),
    stable("like_pattern", TEXT, like_pattern),
    stable("array_prefix", 1009, array_prefix),
    stable("pg_options_text", TEXT, options_text),
    stable("json_build_object", TEXT, json_build_object),
    stable("jsonb_build_object", TEXT, json_build_object),
    stable("format", TEXT, format),
];

fn quote_ident(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(texts(a.texts(0)?.iter().map(|t| t.map(|t| identifier::quote(t).into_owned()))))
}

fn quote_literal_text(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(texts(a.texts(0)?.iter().map(|t| t.map(quote_literal))))
}

fn quote_nullable(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(texts(a.texts(0)?.iter().map(|t| Some(t.map_or_else(|| "NULL".to_string(), quote_literal)))))
}

/// Bytes in the largest unit in which the number still has at least two digits, as PostgreSQL rounds it.
fn size_pretty(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(texts(a.ints(0)?.iter().map(|bytes| {
        let bytes = bytes?;
        let mut size = bytes.unsigned_abs();
        let mut unit = "bytes";
        for next in ["kB", "MB", "GB", "TB", "PB"] {
            if size < 10 * 1024 {
                break;
            }
            // Half a unit rounds up.
            size = (size + 512) / 1024;
            unit = next;
        }
        Some(format!("{}{size} {unit}", if bytes < 0 { "-" } else { "" }))
    })))
}

fn array_upper(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let lengths = lengths(a)?;
    Ok(ints(lengths.into_iter().map(|n| n.filter(|n| *n > 0))))
}

fn array_lower(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let lengths = lengths(a)?;
    Ok(ints(lengths.into_iter().map(|n| n.filter(|n| *n > 0).map(|_| 1))))
}

fn lengths(a: &Arguments) -> Result<Vec<Option<i64>>> {
    let Some(list) = list_argument(a, 0)? else { return Ok(vec![None; a.rows]) };
    let dimensions = a.ints(1)?;
    let of_first = |i: usize| dimensions.is_null(i) || dimensions.value(i) == 1;
    Ok((0..a.rows).map(|i| (list.is_valid(i) && of_first(i)).then(|| list.value_length(i).into())).collect())
}

/// `like_pattern(pattern, escape)`: the pattern with backslash as its escape character; an empty escape means that there is none.
fn like_pattern(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let (patterns, escapes) = (a.texts(0)?, a.texts(1)?);
    let mut rewritten = Vec::with_capacity(a.rows);
    for (pattern, escape) in patterns.iter().zip(escapes.iter()) {
        let (Some(pattern), Some(escape)) = (pattern, escape) else {
            rewritten.push(None);
            continue;
        };
        let mut characters = escape.chars();
        let (escape, more) = (characters.next(), characters.next());
        if more.is_some() {
            return Err(Error::new(SqlState::InvalidParameterValue, "invalid escape string")
                .with_hint("Escape string must be empty or one character."));
        }
        let mut text = String::with_capacity(pattern.len());
        let mut pattern = pattern.chars();
        while let Some(c) = pattern.next() {
            if Some(c) == escape {
                text.push('\\');
                text.extend(pattern.next());
            } else if c == '\\' {
                text.push_str("\\\\");
            } else {
                text.push(c);
            }
        }
        rewritten.push(Some(text));
    }
    Ok(texts(rewritten))
}

/// `array_prefix(prefix, list)`: every element with `prefix` in front.
fn array_prefix(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let prefixes = a.texts(0)?;
    let mut builder = ListBuilder::new(StringViewBuilder::new());
    let list = list_argument(a, 1)?;
    for row in 0..a.rows {
        let Some(list) = list.as_ref().filter(|l| l.is_valid(row) && prefixes.is_valid(row)) else {
            builder.append(false);
            continue;
        };
        let elements = super::cast::<StringViewArray>(&list.value(row), &DataType::Utf8View)?;
        for element in elements.iter() {
            builder.values().append_option(element.map(|e| format!("{}{e}", prefixes.value(row))));
        }
        builder.append(true);
    }
    Ok(Arc::new(builder.finish()))
}

/// `name=value` options as `name 'value', …`.
fn options_text(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let Some(list) = list_argument(a, 0)? else { return Ok(a.constant_text(None)) };
    let values = super::cast::<StringViewArray>(list.values(), &DataType::Utf8View)?;
    let offsets = list.value_offsets();
    Ok(texts((0..a.rows).map(|i| {
        if list.is_null(i) {
            return None;
        }
        let (from, to) = (*offsets.get(i)? as usize, *offsets.get(i + 1)? as usize);
        let options = (from..to).filter(|j| values.is_valid(*j)).map(|j| {
            let (name, value) = values.value(j).split_once('=').unwrap_or((values.value(j), ""));
            format!("{} {}", identifier::quote(name), quote_literal(value))
        });
        Some(options.collect::<Vec<_>>().join(", "))
    })))
}

/// `json_build_object(key, value, …)`, with a space after each colon as PostgreSQL writes it.
fn json_build_object(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    if !a.count().is_multiple_of(2) {
        return Err(Error::new(SqlState::InvalidParameterValue, "argument list must have even number of elements")
            .with_hint("The arguments of json_build_object() must consist of alternating keys and values."));
    }
    let mut columns = Vec::with_capacity(a.count());
    for i in 0..a.count() {
        let raw = a.column(i).is_some_and(|c| c.data_type().is_numeric() || c.data_type() == &DataType::Boolean);
        columns.push((a.texts(i)?, raw));
    }
    let mut objects = Vec::with_capacity(a.rows);
    for row in 0..a.rows {
        let mut members = Vec::with_capacity(a.count() / 2);
        for pair in columns.chunks_exact(2) {
            let [(keys, _), (values, raw)] = pair else { continue };
            if keys.is_null(row) {
                return Err(Error::new(SqlState::NullValueNotAllowed, "argument 1: key must not be null"));
            }
            let value = match values.is_valid(row).then(|| values.value(row)) {
                None => "null".to_string(),
                Some(value) if *raw => value.to_string(),
                Some(value) => json_string(value),
            };
            members.push(format!("{} : {value}", json_string(keys.value(row))));
        }
        objects.push(Some(format!("{{{}}}", members.join(", "))));
    }
    Ok(texts(objects))
}

fn json_string(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            c if (c as u32) < 0x20 => json.push_str(&format!("\\u{:04x}", c as u32)),
            c => json.push(c),
        }
    }
    json.push('"');
    json
}

/// `format(template, …)` with `%s`, `%I`, `%L` and `%%`.
fn format(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let templates = a.texts(0)?;
    let arguments = (1..a.count()).map(|i| a.texts(i)).collect::<Result<Vec<_>>>()?;
    let mut results = Vec::with_capacity(a.rows);
    for row in 0..a.rows {
        if templates.is_null(row) {
            results.push(None);
            continue;
        }
        let mut text = String::new();
        let mut next = arguments.iter();
        let mut chars = templates.value(row).chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let verb = chars.next();
            if verb == Some('%') {
                text.push('%');
                continue;
            }
            if !matches!(verb, Some('s' | 'I' | 'L')) {
                return Err(Error::new(SqlState::InvalidParameterValue, "unrecognized format() type specifier")
                    .with_hint("Use %s, %I, %L or %%."));
            }
            let Some(column) = next.next() else {
                return Err(Error::new(SqlState::InvalidParameterValue, "too few arguments for format()"));
            };
            let value = column.is_valid(row).then(|| column.value(row));
            match (verb, value) {
                (Some('I'), Some(v)) => text.push_str(&identifier::quote(v)),
                (Some('I'), None) => {
                    let message = "null values cannot be formatted as an SQL identifier";
                    return Err(Error::new(SqlState::NullValueNotAllowed, message));
                }
                (Some('L'), v) => text.push_str(&v.map_or_else(|| "NULL".to_string(), quote_literal)),
                (_, v) => text.push_str(v.unwrap_or_default()),
            }
        }
        results.push(Some(text));
    }
    Ok(texts(results))
}

/// The type of [`expand_array`] over lists of `element`.
pub(super) fn expanded_type(element: &DataType) -> DataType {
    let fields = vec![Field::new("x", element.clone(), true), Field::new("n", DataType::Int32, true)];
    DataType::new_list(DataType::Struct(fields.into()), true)
}

/// `_pg_expandarray(list)`: each list as a list of `{x: element, n: position}`.
pub(super) fn expand_array(list: &ListArray) -> Result<ArrayRef> {
    let mut numbers = Int32Builder::with_capacity(list.values().len());
    for window in list.value_offsets().windows(2) {
        let [from, to] = window else { continue };
        (0..(to - from)).for_each(|n| numbers.append_value(n + 1));
    }
    let first = list.value_offsets().first().map_or(0, |o| *o as usize);
    let numbers = numbers.finish();
    let values = list.values().slice(first, numbers.len());
    let pairs: Vec<(Arc<Field>, ArrayRef)> = vec![
        (Arc::new(Field::new("x", values.data_type().clone(), true)), values),
        (Arc::new(Field::new("n", DataType::Int32, true)), Arc::new(numbers)),
    ];
    let pairs = StructArray::from(pairs);
    let field = Arc::new(Field::new("item", pairs.data_type().clone(), true));
    let lengths = list.value_offsets().windows(2).map(|w| (w[1] - w[0]) as usize);
    let offsets = arrow::buffer::OffsetBuffer::from_lengths(lengths);
    Ok(Arc::new(ListArray::try_new(field, offsets, Arc::new(pairs), list.nulls().cloned())?))
}
