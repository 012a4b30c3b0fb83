//! Rows → lines of CSV or JSON.
//!
//! CSV is quoted as PostgreSQL's COPY does: a field in quotes when it holds the delimiter, a quote, a line end or equals the
//! null text; NULL is the null text without quotes. JSON numbers keep every digit; NaN and infinities are strings.

use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::*;
use flow::{Error, Result, SqlState};

use super::{output, sql_type_name};

/// How lines look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineFormat {
    Csv { delimiter: u8, null: String },
    Json,
}

/// A value in front of the row's own columns.
#[derive(Clone, Copy, Debug)]
pub enum Lead<'a> {
    Text(&'a str),
    Number(u64),
}

/// Writes rows of one schema as lines.
pub struct Encoder {
    format: LineFormat,
    names: Vec<String>,
    /// JSON: `"name":` for each of `names`.
    keys: Vec<Vec<u8>>,
}

impl Encoder {
    /// `leads`: names of columns in front of the schema's. Errors: `0A000` a type that cannot be written as text, `42701` a
    /// column named like a lead.
    pub fn new(schema: &Schema, format: LineFormat, leads: &[&str]) -> Result<Encoder> {
        for field in schema.fields() {
            if leads.contains(&field.name().as_str()) {
                return Err(Error::new(
                    SqlState::DuplicateColumn,
                    format!("column \"{}\" has the name of a column that the sink adds", field.name()),
                )
                .with_hint("Rename the column in the sink's query."));
            }
            let probe = new_empty_array(field.data_type());
            Values::new(&writable(&probe)?)?;
        }
        let own = schema.fields().iter().map(|f| f.name().clone());
        let names: Vec<String> = leads.iter().map(|n| n.to_string()).chain(own).collect();
        let key = |name: &String| {
            let mut key = Vec::new();
            output::json_string(&mut key, name);
            key.push(b':');
            key
        };
        let keys = names.iter().map(key).collect();
        Ok(Encoder { format, names, keys })
    }

    /// The line of column names; JSON has none.
    pub fn header(&self, out: &mut Vec<u8>) {
        if let LineFormat::Csv { delimiter, null } = &self.format {
            for (i, name) in self.names.iter().enumerate() {
                if i > 0 {
                    out.push(*delimiter);
                }
                let start = out.len();
                out.extend_from_slice(name.as_bytes());
                quote_if_needed(out, start, *delimiter, null);
            }
            out.push(b'\n');
        }
    }

    /// Appends `copies(row)` equal lines for every row, with the values of `leads(row)` in front. Returns the lines written.
    pub fn rows<'a, const N: usize>(
        &self,
        rows: &RecordBatch,
        copies: impl Fn(usize) -> u64,
        leads: impl Fn(usize) -> [Lead<'a>; N],
        out: &mut Vec<u8>,
    ) -> Result<u64> {
        if N + rows.num_columns() != self.names.len() {
            return Err(Error::internal("a batch does not have the columns of its sink"));
        }
        let columns = rows.columns().iter().map(writable).collect::<Result<Vec<ArrayRef>>>()?;
        let columns = columns.iter().map(Values::new).collect::<Result<Vec<Values<'_>>>>()?;
        let mut written = 0;
        for row in 0..rows.num_rows() {
            let count = copies(row);
            if count == 0 {
                continue;
            }
            let start = out.len();
            match &self.format {
                LineFormat::Csv { delimiter, null } => csv_line(&columns, row, leads(row), *delimiter, null, out),
                LineFormat::Json => self.json_line(&columns, row, leads(row), out),
            }
            let end = out.len();
            for _ in 1..count {
                out.extend_from_within(start..end);
            }
            written += count;
        }
        Ok(written)
    }

    fn json_line<const N: usize>(&self, columns: &[Values<'_>], row: usize, leads: [Lead<'_>; N], out: &mut Vec<u8>) {
        out.push(b'{');
        let mut keys = self.keys.iter();
        for (i, (lead, key)) in leads.iter().zip(&mut keys).enumerate() {
            if i > 0 {
                out.push(b',');
            }
            out.extend_from_slice(key);
            match lead {
                Lead::Text(text) => output::json_string(out, text),
                Lead::Number(n) => out.extend_from_slice(n.to_string().as_bytes()),
            }
        }
        for (i, (column, key)) in columns.iter().zip(keys).enumerate() {
            if i + N > 0 {
                out.push(b',');
            }
            out.extend_from_slice(key);
            column.json(row, out);
        }
        out.extend_from_slice(b"}\n");
    }
}

fn csv_line<const N: usize>(
    columns: &[Values<'_>],
    row: usize,
    leads: [Lead<'_>; N],
    delimiter: u8,
    null: &str,
    out: &mut Vec<u8>,
) {
    let mut first = true;
    let mut separate = |out: &mut Vec<u8>| {
        if !std::mem::take(&mut first) {
            out.push(delimiter);
        }
        out.len()
    };
    for lead in leads {
        let start = separate(out);
        match lead {
            Lead::Text(text) => out.extend_from_slice(text.as_bytes()),
            Lead::Number(n) => out.extend_from_slice(n.to_string().as_bytes()),
        }
        quote_if_needed(out, start, delimiter, null);
    }
    for column in columns {
        separate(out);
        column.csv(row, delimiter, null, out);
    }
    out.push(b'\n');
}

/// Columns that make up a JSON object, with their names.
pub(super) struct Object {
    /// Each column with what stands before its value: `,"name":`.
    members: Vec<(usize, Vec<u8>)>,
}

impl Object {
    /// The columns with these numbers, in this order.
    pub fn new(schema: &Schema, columns: Vec<usize>) -> Object {
        let member = |(i, column): (usize, usize)| {
            let mut key = if i == 0 { Vec::new() } else { vec![b','] };
            output::json_string(&mut key, schema.field(column).name());
            key.push(b':');
            (column, key)
        };
        Object { members: columns.into_iter().enumerate().map(member).collect() }
    }

    /// `values` are all columns of the schema.
    pub fn write(&self, values: &[Values<'_>], row: usize, out: &mut Vec<u8>) {
        out.push(b'{');
        for (column, key) in &self.members {
            out.extend_from_slice(key);
            values[*column].json(row, out);
        }
        out.push(b'}');
    }
}

/// Puts `out[start..]` between quotes when it would otherwise read back as something else.
#[inline]
fn quote_if_needed(out: &mut Vec<u8>, start: usize, delimiter: u8, null: &str) {
    let field = &out[start..];
    let needed = field == null.as_bytes() || field.iter().any(|b| *b == delimiter || matches!(b, b'"' | b'\n' | b'\r'));
    if needed {
        let field = out.split_off(start);
        out.push(b'"');
        for b in field {
            if b == b'"' {
                out.push(b'"');
            }
            out.push(b);
        }
        out.push(b'"');
    }
}

/// `array` in a layout that [`Values`] knows: as it is, or cast to text.
pub(super) fn writable(array: &ArrayRef) -> Result<ArrayRef> {
    let known = match array.data_type() {
        DataType::List(item) => matches!(known(item.data_type()), Some(true)),
        other => known(other).is_some(),
    };
    if known {
        return Ok(Arc::clone(array));
    }
    let unwritable =
        || Error::unsupported(format!("values of type {} cannot be written as text", sql_type_name(array.data_type())));
    match array.data_type() {
        DataType::List(item) | DataType::LargeList(item) => {
            let text = DataType::List(Arc::new(Field::new("item", DataType::Utf8View, item.is_nullable())));
            arrow::compute::cast(array, &text).map_err(|_| unwritable())
        }
        _ => arrow::compute::cast(array, &DataType::Utf8View).map_err(|_| unwritable()),
    }
}

/// Whether [`Values`] has the type, and whether also inside lists.
fn known(data_type: &DataType) -> Option<bool> {
    match data_type {
        DataType::Null => Some(false),
        DataType::Boolean | DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::UInt64 => Some(true),
        DataType::Float32 | DataType::Float64 | DataType::Decimal128(..) | DataType::Utf8View => Some(true),
        DataType::Utf8 | DataType::Binary | DataType::Date32 | DataType::Time64(TimeUnit::Microsecond) => Some(true),
        DataType::Timestamp(TimeUnit::Microsecond, _) | DataType::Interval(IntervalUnit::MonthDayNano) => Some(true),
        _ => None,
    }
}

/// A column whose type has been found out, for reading row by row.
pub(crate) enum Values<'a> {
    Null,
    Boolean(&'a BooleanArray),
    Int16(&'a Int16Array),
    Int32(&'a Int32Array),
    Int64(&'a Int64Array),
    UInt64(&'a UInt64Array),
    Float32(&'a Float32Array),
    Float64(&'a Float64Array),
    Decimal { array: &'a Decimal128Array, scale: i8, trim: bool },
    Text(&'a StringViewArray),
    ShortText(&'a StringArray),
    Binary(&'a BinaryArray),
    Date(&'a Date32Array),
    Time(&'a Time64MicrosecondArray),
    Timestamp { array: &'a TimestampMicrosecondArray, zoned: bool },
    Interval(&'a IntervalMonthDayNanoArray),
    List { array: &'a ListArray, items: Box<Values<'a>> },
}

impl<'a> Values<'a> {
    pub(crate) fn new(array: &'a ArrayRef) -> Result<Values<'a>> {
        Ok(match array.data_type() {
            DataType::Null => Values::Null,
            DataType::Boolean => Values::Boolean(array.as_boolean()),
            DataType::Int16 => Values::Int16(array.as_primitive()),
            DataType::Int32 => Values::Int32(array.as_primitive()),
            DataType::Int64 => Values::Int64(array.as_primitive()),
            DataType::UInt64 => Values::UInt64(array.as_primitive()),
            DataType::Float32 => Values::Float32(array.as_primitive()),
            DataType::Float64 => Values::Float64(array.as_primitive()),
            DataType::Decimal128(p, s) => {
                // The type that `numeric` without a declared scale has.
                Values::Decimal { array: array.as_primitive(), scale: *s, trim: (*p, *s) == (38, 18) }
            }
            DataType::Utf8View => Values::Text(array.as_string_view()),
            DataType::Utf8 => Values::ShortText(array.as_string()),
            DataType::Binary => Values::Binary(array.as_binary()),
            DataType::Date32 => Values::Date(array.as_primitive()),
            DataType::Time64(TimeUnit::Microsecond) => Values::Time(array.as_primitive()),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                Values::Timestamp { array: array.as_primitive(), zoned: zone.is_some() }
            }
            DataType::Interval(IntervalUnit::MonthDayNano) => Values::Interval(array.as_primitive()),
            DataType::List(_) => {
                let list: &ListArray = array.as_list();
                Values::List { array: list, items: Box::new(Values::new(list.values())?) }
            }
            other => {
                let name = sql_type_name(other);
                return Err(Error::unsupported(format!("values of type {name} cannot be written as text")));
            }
        })
    }

    #[inline]
    pub(crate) fn is_null(&self, row: usize) -> bool {
        match self {
            Values::Null => true,
            Values::Boolean(a) => a.is_null(row),
            Values::Int16(a) => a.is_null(row),
            Values::Int32(a) => a.is_null(row),
            Values::Int64(a) => a.is_null(row),
            Values::UInt64(a) => a.is_null(row),
            Values::Float32(a) => a.is_null(row),
            Values::Float64(a) => a.is_null(row),
            Values::Decimal { array, .. } => array.is_null(row),
            Values::Text(a) => a.is_null(row),
            Values::ShortText(a) => a.is_null(row),
            Values::Binary(a) => a.is_null(row),
            Values::Date(a) => a.is_null(row),
            Values::Time(a) => a.is_null(row),
            Values::Timestamp { array, .. } => array.is_null(row),
            Values::Interval(a) => a.is_null(row),
            Values::List { array, .. } => array.is_null(row),
        }
    }

    /// The value's text, unquoted. The row is not NULL.
    pub(crate) fn text(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Values::Null => {}
            Values::Boolean(a) => out.extend_from_slice(if a.value(row) { b"true" } else { b"false" }),
            Values::Int16(a) => integer(out, i64::from(a.value(row))),
            Values::Int32(a) => integer(out, i64::from(a.value(row))),
            Values::Int64(a) => integer(out, a.value(row)),
            Values::UInt64(a) => out.extend_from_slice(a.value(row).to_string().as_bytes()),
            Values::Float32(a) => output::float32(out, a.value(row)),
            Values::Float64(a) => output::float64(out, a.value(row)),
            Values::Decimal { array, scale, trim } => output::decimal(out, array.value(row), *scale, *trim),
            Values::Text(a) => out.extend_from_slice(a.value(row).as_bytes()),
            Values::ShortText(a) => out.extend_from_slice(a.value(row).as_bytes()),
            Values::Binary(a) => output::bytea(out, a.value(row)),
            Values::Date(a) => output::date(out, a.value(row)),
            Values::Time(a) => output::time(out, a.value(row)),
            Values::Timestamp { array, zoned } => {
                output::timestamp(out, array.value(row), b' ', if *zoned { "+00" } else { "" });
            }
            Values::Interval(a) => output::interval(out, a.value(row)),
            Values::List { array, items } => {
                out.push(b'{');
                for (i, item) in list_range(array, row).enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    items.array_element(item, out);
                }
                out.push(b'}');
            }
        }
    }

    /// The value as a field of CSV.
    pub(super) fn csv(&self, row: usize, delimiter: u8, null: &str, out: &mut Vec<u8>) {
        if self.is_null(row) {
            return out.extend_from_slice(null.as_bytes());
        }
        let start = out.len();
        self.text(row, out);
        quote_if_needed(out, start, delimiter, null);
    }

    /// An element of an array literal: quoted where its text would be misread.
    fn array_element(&self, row: usize, out: &mut Vec<u8>) {
        if self.is_null(row) {
            return out.extend_from_slice(b"NULL");
        }
        let start = out.len();
        self.text(row, out);
        let text = &out[start..];
        let special = |b: &u8| matches!(b, b'{' | b'}' | b',' | b'"' | b'\\') || b.is_ascii_whitespace();
        if text.is_empty() || text.eq_ignore_ascii_case(b"null") || text.iter().any(special) {
            let text = out.split_off(start);
            out.push(b'"');
            for b in text {
                if matches!(b, b'"' | b'\\') {
                    out.push(b'\\');
                }
                out.push(b);
            }
            out.push(b'"');
        }
    }

    /// The value as JSON.
    pub(super) fn json(&self, row: usize, out: &mut Vec<u8>) {
        if self.is_null(row) {
            return out.extend_from_slice(b"null");
        }
        match self {
            Values::Float32(a) if !a.value(row).is_finite() => self.json_quoted(row, out),
            Values::Float64(a) if !a.value(row).is_finite() => self.json_quoted(row, out),
            Values::Text(a) => output::json_string(out, a.value(row)),
            Values::ShortText(a) => output::json_string(out, a.value(row)),
            Values::Timestamp { array, zoned } => {
                out.push(b'"');
                output::timestamp(out, array.value(row), b'T', if *zoned { "+00:00" } else { "" });
                out.push(b'"');
            }
            Values::Binary(a) => {
                // The backslash of `\x…` is escaped.
                out.extend_from_slice(b"\"\\");
                output::bytea(out, a.value(row));
                out.push(b'"');
            }
            Values::Date(_) | Values::Time(_) | Values::Interval(_) => self.json_quoted(row, out),
            Values::List { array, items } => {
                out.push(b'[');
                for (i, item) in list_range(array, row).enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    items.json(item, out);
                }
                out.push(b']');
            }
            _ => self.text(row, out),
        }
    }

    /// For texts without characters that JSON escapes.
    fn json_quoted(&self, row: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        self.text(row, out);
        out.push(b'"');
    }
}

fn list_range(array: &ListArray, row: usize) -> std::ops::Range<usize> {
    let offsets = array.value_offsets();
    offsets[row] as usize..offsets[row + 1] as usize
}

#[inline]
fn integer(out: &mut Vec<u8>, value: i64) {
    let mut buffer = [0u8; lexical_core::BUFFER_SIZE];
    out.extend_from_slice(lexical_core::write(value, &mut buffer));
}
