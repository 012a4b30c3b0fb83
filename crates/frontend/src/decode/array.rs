//! Array literals: `{1,2,NULL}`, `{"a b","c\"d"}`, `{{1,2},{3,4}}`, `[2:3]={1,2}`.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, NullBufferBuilder};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, FieldRef};
use flow::{Error, SqlState};

use crate::decode::number::quoted;
use crate::decode::{Cell, CellError, parse_column};
use crate::settings::TextSettings;

/// Dimensions that Postgres allows.
const DIMENSIONS_MAX: usize = 6;

#[cold]
fn malformed(text: &[u8], detail: &str) -> Error {
    Error::new(SqlState::InvalidTextRepresentation, format!("malformed array literal: {}", quoted(text)))
        .with_detail(detail)
}

/// Parses a column of array literals: all items of all rows become one column of the item type.
pub(crate) fn parse_list_column<'a>(
    item: &FieldRef,
    cells: impl ExactSizeIterator<Item = Cell<'a>>,
    settings: &TextSettings,
) -> Result<ArrayRef, CellError> {
    let nested = matches!(item.data_type(), DataType::List(_));
    let mut items: Vec<Option<Vec<u8>>> = Vec::new();
    let mut row_of_item: Vec<usize> = Vec::new();
    let mut offsets: Vec<i32> = vec![0];
    let mut nulls = NullBufferBuilder::new(cells.len());
    for (row, cell) in cells.enumerate() {
        match cell {
            None => nulls.append_null(),
            Some(text) => {
                split(&text, nested, &mut items).map_err(|error| CellError { row, error })?;
                row_of_item.resize(items.len(), row);
                nulls.append_non_null();
            }
        }
        let end = i32::try_from(items.len()).map_err(|_| CellError {
            row,
            error: Error::new(SqlState::ProgramLimitExceeded, "array size exceeds the maximum allowed"),
        })?;
        offsets.push(end);
    }
    let texts: Vec<Cell<'_>> = items.iter().map(|i| i.as_deref().map(Cow::Borrowed)).collect();
    // The recursion over dimensions has a different iterator type at each level without this collected one.
    let values = parse_items(item.data_type(), texts, settings)
        .map_err(|e| CellError { row: row_of_item.get(e.row).copied().unwrap_or(0), error: e.error })?;
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    ListArray::try_new(Arc::clone(item), offsets, values, nulls.finish())
        .map(|list| Arc::new(list) as ArrayRef)
        .map_err(|e| CellError { row: 0, error: Error::from(e) })
}

fn parse_items(data_type: &DataType, items: Vec<Cell<'_>>, settings: &TextSettings) -> Result<ArrayRef, CellError> {
    parse_column(data_type, items.into_iter(), settings)
}

/// Appends the items of one literal. With `nested`, the items are array literals themselves and stay unparsed.
fn split(text: &[u8], nested: bool, items: &mut Vec<Option<Vec<u8>>>) -> Result<(), Error> {
    let mut rest = text.trim_ascii();
    // Explicit bounds only move the subscripts, which Arrow lists do not have.
    if rest.first() == Some(&b'[') {
        let at = memchr::memchr(b'=', rest).ok_or_else(|| malformed(text, "Missing assignment operator."))?;
        rest = rest[at + 1..].trim_ascii();
    }
    let inner = rest
        .strip_prefix(b"{")
        .ok_or_else(|| malformed(text, "Array value must start with \"{\" or dimension information."))?;
    let mut at = 0;
    let skip_space = |mut at: usize| {
        while inner.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        at
    };
    at = skip_space(at);
    if inner.get(at) == Some(&b'}') {
        return end_of(text, &inner[at + 1..]);
    }
    loop {
        at = skip_space(at);
        match inner.get(at) {
            None => return Err(malformed(text, "Unexpected end of input.")),
            Some(b'{') if nested => {
                let end = end_of_nested(&inner[at..]).ok_or_else(|| malformed(text, "Unexpected end of input."))?;
                items.push(Some(inner[at..at + end].to_vec()));
                at = skip_space(at + end);
            }
            Some(b'{') => return Err(malformed(text, "Unexpected \"{\" character.")),
            Some(_) if nested => return Err(malformed(text, "Unexpected array element.")),
            Some(b'"') => {
                let mut item = Vec::new();
                at += 1;
                loop {
                    match inner.get(at) {
                        None => return Err(malformed(text, "Unexpected end of input.")),
                        Some(b'"') => break,
                        Some(b'\\') => {
                            at += 1;
                            let escaped = inner.get(at).ok_or_else(|| malformed(text, "Unexpected end of input."))?;
                            item.push(*escaped);
                        }
                        Some(byte) => item.push(*byte),
                    }
                    at += 1;
                }
                items.push(Some(item));
                at = skip_space(at + 1);
            }
            Some(_) => {
                let (mut item, mut escaped_to) = (Vec::new(), 0);
                while let Some(byte) = inner.get(at) {
                    match byte {
                        b',' | b'}' => break,
                        b'{' | b'"' => return Err(malformed(text, "Unexpected array element.")),
                        b'\\' => {
                            at += 1;
                            let escaped = inner.get(at).ok_or_else(|| malformed(text, "Unexpected end of input."))?;
                            item.push(*escaped);
                            escaped_to = item.len();
                        }
                        byte => item.push(*byte),
                    }
                    at += 1;
                }
                while item.len() > escaped_to && item.last().is_some_and(u8::is_ascii_whitespace) {
                    item.pop();
                }
                if item.is_empty() {
                    return Err(malformed(text, "Unexpected array element."));
                }
                let is_null = escaped_to == 0 && item.eq_ignore_ascii_case(b"NULL");
                items.push(if is_null { None } else { Some(item) });
            }
        }
        match inner.get(at) {
            Some(b',') => at += 1,
            Some(b'}') => return end_of(text, &inner[at + 1..]),
            Some(_) => return Err(malformed(text, "Unexpected array element.")),
            None => return Err(malformed(text, "Unexpected end of input.")),
        }
    }
}

fn end_of(text: &[u8], after: &[u8]) -> Result<(), Error> {
    if after.iter().all(u8::is_ascii_whitespace) {
        Ok(())
    } else {
        Err(malformed(text, "Junk after closing right brace."))
    }
}

/// The length of the `{...}` that `text` starts with.
fn end_of_nested(text: &[u8]) -> Option<usize> {
    let (mut depth, mut in_quotes, mut at) = (0, false, 0);
    while let Some(byte) = text.get(at) {
        match byte {
            b'\\' => at += 1,
            b'"' => in_quotes = !in_quotes,
            b'{' if !in_quotes => {
                depth += 1;
                if depth > DIMENSIONS_MAX {
                    return None;
                }
            }
            b'}' if !in_quotes => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&[Option<&str>], &str>) {
        let mut items = Vec::new();
        let done = split(text.as_bytes(), false, &mut items);
        let items: Vec<Option<String>> =
            items.into_iter().map(|i| i.map(|bytes| String::from_utf8(bytes).unwrap())).collect();
        match expected {
            Ok(expected) => {
                done.unwrap();
                assert_eq!(items.iter().map(Option::as_deref).collect::<Vec<_>>(), expected, "{text}");
            }
            Err(detail) => assert_eq!(done.unwrap_err().detail(), Some(detail), "{text}"),
        }
    }

    #[test]
    fn literals_split_as_in_postgres() {
        check("{}", Ok(&[]));
        check(" { } ", Ok(&[]));
        check("{1, 2 ,NULL,null}", Ok(&[Some("1"), Some("2"), None, None]));
        check(
            r#"{"NULL","a,b","","c\"d\\", x\,y }"#,
            Ok(&[Some("NULL"), Some("a,b"), Some(""), Some(r#"c"d\"#), Some("x,y")]),
        );
        check("[2:3]={a b,c}", Ok(&[Some("a b"), Some("c")]));
        check("", Err("Array value must start with \"{\" or dimension information."));
        check("{1", Err("Unexpected end of input."));
        check("{1,}", Err("Unexpected array element."));
        check("{\"a", Err("Unexpected end of input."));
        check("{1}x", Err("Junk after closing right brace."));
        check("{\\", Err("Unexpected end of input."));
    }

    #[test]
    fn nested_literals_end_at_their_brace() {
        assert_eq!(end_of_nested(b"{{1},{\"}\"}},x"), Some(11));
        assert_eq!(end_of_nested(b"{{1}"), None);
        assert_eq!(end_of_nested("{".repeat(100_000).as_bytes()), None);
    }
}
