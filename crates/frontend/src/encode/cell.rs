//! One column of one batch, typed, and how its values are written.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array,
    Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray, ListArray, StringArray, StringViewArray,
    Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    IntervalMonthDayNanoType, IntervalUnit, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use flow::{Error, Result, SqlState};

use crate::encode::datetime::{
    POSTGRES_EPOCH_DAYS, POSTGRES_EPOCH_US, write_date, write_interval, write_time, write_timestamp,
};
use crate::encode::number::{write_float4, write_float8, write_integer, write_numeric, write_numeric_binary};
use crate::encode::{Format, is_oid_like};
use crate::settings::{ByteaOutput, TextSettings};
use crate::types::{PgType, element_of, oid};

/// The values of a column behind their type.
enum Values {
    Null,
    Bool(BooleanArray),
    Int16(Int16Array),
    Int32(Int32Array),
    Int64(Int64Array),
    Float32(Float32Array),
    Float64(Float64Array),
    /// With the scale, and whether trailing zeros are dropped.
    Decimal(Decimal128Array, i8, bool),
    TextView(StringViewArray),
    Text(StringArray),
    Binary(BinaryArray),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    Timestamp(TimestampMicrosecondArray),
    TimestampTz(TimestampMicrosecondArray),
    Interval(IntervalMonthDayNanoArray),
    List(ListArray, Box<Cells>),
    Record(Vec<Cells>),
}

/// A column of a batch whose type, format and settings are fixed.
pub(crate) struct Cells {
    nulls: Option<NullBuffer>,
    values: Values,
    type_oid: u32,
    format: Format,
    settings: TextSettings,
}

/// The Arrow type in which values of `data_type` are written; equal to it for the canonical types.
fn written_as(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 => DataType::Float32,
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => DataType::Decimal128(*p, *s),
        DataType::Decimal256(_, s) => DataType::Decimal128(38, *s),
        DataType::LargeUtf8 => DataType::Utf8View,
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::Date64 => DataType::Date32,
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::Interval(_) | DataType::Duration(_) => DataType::Interval(IntervalUnit::MonthDayNano),
        DataType::Dictionary(_, value) => written_as(value),
        DataType::RunEndEncoded(_, value) => written_as(value.data_type()),
        DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => DataType::List(Arc::clone(item)),
        same => same.clone(),
    }
}

impl Cells {
    /// `type_oid` is what the client was told; `array` any Arrow array of that type.
    pub(crate) fn new(array: &ArrayRef, type_oid: u32, format: Format, settings: TextSettings) -> Result<Cells> {
        let target = written_as(array.data_type());
        let array = if *array.data_type() == target { Arc::clone(array) } else { cast(array, &target)? };
        let values = match array.data_type() {
            DataType::Null => Values::Null,
            DataType::Boolean => Values::Bool(array.as_boolean().clone()),
            DataType::Int16 => Values::Int16(array.as_primitive::<Int16Type>().clone()),
            DataType::Int32 => Values::Int32(array.as_primitive::<Int32Type>().clone()),
            DataType::Int64 => Values::Int64(array.as_primitive::<Int64Type>().clone()),
            DataType::Float32 => Values::Float32(array.as_primitive::<Float32Type>().clone()),
            DataType::Float64 => Values::Float64(array.as_primitive::<Float64Type>().clone()),
            DataType::Decimal128(precision, scale) => {
                let trim = (*precision, *scale) == (38, 18);
                Values::Decimal(array.as_primitive::<Decimal128Type>().clone(), *scale, trim)
            }
            DataType::Utf8View => Values::TextView(array.as_string_view().clone()),
            DataType::Utf8 => Values::Text(array.as_string::<i32>().clone()),
            DataType::Binary => Values::Binary(array.as_binary::<i32>().clone()),
            DataType::Date32 => Values::Date(array.as_primitive::<Date32Type>().clone()),
            DataType::Time64(_) => Values::Time(array.as_primitive::<Time64MicrosecondType>().clone()),
            DataType::Timestamp(_, None) => Values::Timestamp(array.as_primitive::<TimestampMicrosecondType>().clone()),
            DataType::Timestamp(_, Some(_)) => {
                Values::TimestampTz(array.as_primitive::<TimestampMicrosecondType>().clone())
            }
            DataType::Interval(_) => Values::Interval(array.as_primitive::<IntervalMonthDayNanoType>().clone()),
            DataType::List(item) => {
                let list = array.as_list::<i32>().clone();
                // An array of arrays has the OID of the flat one, as its inner arrays have.
                let item_oid = match item.data_type() {
                    DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => type_oid,
                    _ if type_oid == oid::OIDVECTOR => oid::OID,
                    _ => element_of(type_oid).unwrap_or_else(|| PgType::of_field(item).oid),
                };
                let items = Cells::new(list.values(), item_oid, format, settings)?;
                Values::List(list, Box::new(items))
            }
            DataType::Struct(fields) => {
                let part = |(column, field): (&ArrayRef, &Arc<Field>)| {
                    Cells::new(column, PgType::of_field(field).oid, format, settings)
                };
                let columns = array.as_struct().columns();
                Values::Record(columns.iter().zip(fields).map(part).collect::<Result<_>>()?)
            }
            other => {
                return Err(Error::unsupported(format!("values of the type {other} cannot be sent to a client"))
                    .with_hint("Cast the column to text or to a type that PostgreSQL has."));
            }
        };
        Ok(Cells { nulls: array.logical_nulls(), values, type_oid, format, settings })
    }

    #[inline]
    pub(crate) fn is_null(&self, i: usize) -> bool {
        match &self.nulls {
            Some(nulls) => nulls.is_null(i),
            None => matches!(self.values, Values::Null),
        }
    }

    /// Appends the length and the value of row `i`; -1 for NULL.
    #[inline]
    pub(crate) fn write_field(&self, i: usize, out: &mut Vec<u8>) -> Result<()> {
        if self.is_null(i) {
            out.extend_from_slice(&(-1i32).to_be_bytes());
            return Ok(());
        }
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        match self.format {
            Format::Text => self.write_text(i, out)?,
            Format::Binary => self.write_binary(i, out)?,
        }
        let length = i32::try_from(out.len() - start - 4)
            .map_err(|_| Error::new(SqlState::ProgramLimitExceeded, "a value is too large to be sent"))?;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    /// Whether the text form never holds a character that COPY or an array would have to quote.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(
            self.values,
            Values::Bool(_)
                | Values::Int16(_)
                | Values::Int32(_)
                | Values::Int64(_)
                | Values::Float32(_)
                | Values::Float64(_)
                | Values::Decimal(..)
        )
    }

    /// Appends the text of row `i`, which is not NULL.
    pub(crate) fn write_text(&self, i: usize, out: &mut Vec<u8>) -> Result<()> {
        let settings = &self.settings;
        match &self.values {
            Values::Null => {}
            Values::Bool(a) => out.push(if a.value(i) { b't' } else { b'f' }),
            Values::Int16(a) => write_integer(out, a.value(i)),
            Values::Int32(a) if is_oid_like(self.type_oid) => write_integer(out, a.value(i) as u32),
            Values::Int32(a) => write_integer(out, a.value(i)),
            Values::Int64(a) => write_integer(out, a.value(i)),
            Values::Float32(a) => write_float4(out, a.value(i), settings.extra_float_digits.0),
            Values::Float64(a) => write_float8(out, a.value(i), settings.extra_float_digits.0),
            Values::Decimal(a, scale, trim) => write_numeric(out, a.value(i), *scale, *trim),
            Values::TextView(a) => out.extend_from_slice(a.value(i).as_bytes()),
            Values::Text(a) => out.extend_from_slice(a.value(i).as_bytes()),
            Values::Binary(a) => write_bytea(out, a.value(i), settings.bytea_output),
            Values::Date(a) => write_date(out, a.value(i), settings.date_style, settings.date_order),
            Values::Time(a) => write_time(out, a.value(i)),
            Values::Timestamp(a) => {
                write_timestamp(out, a.value(i), None, settings.date_style, settings.date_order);
            }
            Values::TimestampTz(a) => {
                let zone = Some(settings.time_zone);
                write_timestamp(out, a.value(i), zone, settings.date_style, settings.date_order);
            }
            Values::Interval(a) => {
                let v = a.value(i);
                write_interval(out, v.months, v.days, v.nanoseconds / 1000, settings.interval_style);
            }
            Values::List(a, items) => {
                let (from, to) = range_of(a, i);
                match self.type_oid {
                    oid::INT2VECTOR | oid::OIDVECTOR => items.write_vector_text(from, to, out)?,
                    _ => items.write_array_text(from, to, out)?,
                }
            }
            Values::Record(parts) => {
                out.push(b'(');
                for (n, part) in parts.iter().enumerate() {
                    if n > 0 {
                        out.push(b',');
                    }
                    if !part.is_null(i) {
                        let start = out.len();
                        part.write_text(i, out)?;
                        quote_record_part(out, start);
                    }
                }
                out.push(b')');
            }
        }
        Ok(())
    }

    /// The items `from .. to` of an `int2vector` or `oidvector`: numbers with blanks between.
    fn write_vector_text(&self, from: usize, to: usize, out: &mut Vec<u8>) -> Result<()> {
        for i in from..to {
            if i > from {
                out.push(b' ');
            }
            self.write_text(i, out)?;
        }
        Ok(())
    }

    /// `{...}` of the items `from .. to`.
    fn write_array_text(&self, from: usize, to: usize, out: &mut Vec<u8>) -> Result<()> {
        out.push(b'{');
        for i in from..to {
            if i > from {
                out.push(b',');
            }
            if self.is_null(i) {
                out.extend_from_slice(b"NULL");
                continue;
            }
            let start = out.len();
            self.write_text(i, out)?;
            if !self.is_plain() && !matches!(self.values, Values::List(..)) {
                quote_array_item(out, start);
            }
        }
        out.push(b'}');
        Ok(())
    }

    /// Appends the binary form of row `i`, which is not NULL.
    fn write_binary(&self, i: usize, out: &mut Vec<u8>) -> Result<()> {
        match &self.values {
            Values::Null => {}
            Values::Bool(a) => out.push(u8::from(a.value(i))),
            Values::Int16(a) => out.extend_from_slice(&a.value(i).to_be_bytes()),
            Values::Int32(a) => out.extend_from_slice(&a.value(i).to_be_bytes()),
            // An oid has four bytes without a sign; Arrow's 64 bits hold all of them.
            Values::Int64(a) if is_oid_like(self.type_oid) => {
                out.extend_from_slice(&(a.value(i) as u32).to_be_bytes());
            }
            Values::Int64(a) => out.extend_from_slice(&a.value(i).to_be_bytes()),
            Values::Float32(a) => out.extend_from_slice(&a.value(i).to_be_bytes()),
            Values::Float64(a) => out.extend_from_slice(&a.value(i).to_be_bytes()),
            Values::Decimal(a, scale, trim) => write_numeric_binary(out, a.value(i), *scale, *trim),
            Values::TextView(a) => self.write_string_binary(a.value(i), out),
            Values::Text(a) => self.write_string_binary(a.value(i), out),
            Values::Binary(a) => out.extend_from_slice(a.value(i)),
            Values::Date(a) => {
                let days = match a.value(i) {
                    infinite @ (i32::MAX | i32::MIN) => infinite,
                    days => days.saturating_sub(POSTGRES_EPOCH_DAYS),
                };
                out.extend_from_slice(&days.to_be_bytes());
            }
            Values::Time(a) => out.extend_from_slice(&a.value(i).to_be_bytes()),
            Values::Timestamp(a) | Values::TimestampTz(a) => {
                let us = match a.value(i) {
                    infinite @ (i64::MAX | i64::MIN) => infinite,
                    us => us.saturating_sub(POSTGRES_EPOCH_US),
                };
                out.extend_from_slice(&us.to_be_bytes());
            }
            Values::Interval(a) => {
                let v = a.value(i);
                out.extend_from_slice(&(v.nanoseconds / 1000).to_be_bytes());
                out.extend_from_slice(&v.days.to_be_bytes());
                out.extend_from_slice(&v.months.to_be_bytes());
            }
            Values::List(a, items) => {
                let (from, to) = range_of(a, i);
                items.write_array_binary(from, to, out)?;
            }
            Values::Record(parts) => {
                out.extend_from_slice(&(parts.len() as i32).to_be_bytes());
                for part in parts {
                    out.extend_from_slice(&part.type_oid.to_be_bytes());
                    part.write_field(i, out)?;
                }
            }
        }
        Ok(())
    }

    fn write_string_binary(&self, text: &str, out: &mut Vec<u8>) {
        match self.type_oid {
            oid::JSONB => {
                out.push(1);
                out.extend_from_slice(text.as_bytes());
            }
            oid::UUID => {
                let digits: Vec<u8> = text.bytes().filter_map(|b| (b as char).to_digit(16).map(|d| d as u8)).collect();
                out.extend(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]));
            }
            oid::CHAR => out.push(text.bytes().next().unwrap_or(0)),
            _ => out.extend_from_slice(text.as_bytes()),
        }
    }

    /// Number of dimensions, whether there are NULLs, element type, then per dimension length and lower bound, then the
    /// elements in row-major order.
    fn write_array_binary(&self, from: usize, to: usize, out: &mut Vec<u8>) -> Result<()> {
        let mut dimensions = Vec::new();
        let mut elements = Vec::new();
        let element_oid = self.collect_elements(from, to, 0, &mut dimensions, &mut elements)?;
        if elements.is_empty() {
            out.extend_from_slice(&[0; 8]);
            out.extend_from_slice(&element_oid.to_be_bytes());
            return Ok(());
        }
        let has_null = elements.iter().any(|(cells, i)| cells.is_null(*i));
        out.extend_from_slice(&(dimensions.len() as i32).to_be_bytes());
        out.extend_from_slice(&i32::from(has_null).to_be_bytes());
        out.extend_from_slice(&element_oid.to_be_bytes());
        for length in dimensions {
            out.extend_from_slice(&(length as i32).to_be_bytes());
            out.extend_from_slice(&1i32.to_be_bytes());
        }
        for (cells, i) in elements {
            cells.write_field(i, out)?;
        }
        Ok(())
    }

    /// Flattens nested lists, which must be rectangular. Returns the OID of the innermost element.
    fn collect_elements<'a>(
        &'a self,
        from: usize,
        to: usize,
        depth: usize,
        dimensions: &mut Vec<usize>,
        elements: &mut Vec<(&'a Cells, usize)>,
    ) -> Result<u32> {
        match dimensions.get(depth) {
            None => dimensions.push(to - from),
            Some(length) if *length == to - from => {}
            Some(_) => return Err(ragged()),
        }
        let Values::List(array, items) = &self.values else {
            elements.extend((from..to).map(|i| (self, i)));
            return Ok(self.type_oid);
        };
        let mut element_oid = items.innermost();
        for i in from..to {
            if self.is_null(i) {
                return Err(ragged());
            }
            let (from, to) = range_of(array, i);
            element_oid = items.collect_elements(from, to, depth + 1, dimensions, elements)?;
        }
        Ok(element_oid)
    }

    fn innermost(&self) -> u32 {
        match &self.values {
            Values::List(_, items) => items.innermost(),
            _ => self.type_oid,
        }
    }
}

fn ragged() -> Error {
    Error::new(SqlState::DataException, "multidimensional arrays must have array expressions with matching dimensions")
}

fn range_of(list: &ListArray, i: usize) -> (usize, usize) {
    let offsets = list.value_offsets();
    (offsets[i] as usize, offsets[i + 1] as usize)
}

/// Writes bytes as `\x...` or in the traditional escape form.
pub(crate) fn write_bytea(out: &mut Vec<u8>, bytes: &[u8], form: ByteaOutput) {
    match form {
        ByteaOutput::Hex => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.reserve(2 + bytes.len() * 2);
            out.extend_from_slice(b"\\x");
            for byte in bytes {
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
        ByteaOutput::Escape => {
            for byte in bytes {
                match byte {
                    b'\\' => out.extend_from_slice(b"\\\\"),
                    0x20..=0x7e => out.push(*byte),
                    _ => out.extend_from_slice(&[b'\\', b'0' + (byte >> 6), b'0' + (byte >> 3 & 7), b'0' + (byte & 7)]),
                }
            }
        }
    }
}

/// Puts the array item that starts at `start` in quotes where `array_out` would.
fn quote_array_item(out: &mut Vec<u8>, start: usize) {
    let item = &out[start..];
    let special = |b: &u8| matches!(b, b'"' | b'\\' | b'{' | b'}' | b',' | b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
    if !item.is_empty() && !item.eq_ignore_ascii_case(b"NULL") && !item.iter().any(special) {
        return;
    }
    let item = out.split_off(start);
    out.push(b'"');
    for byte in item {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// Puts the part of a record that starts at `start` in quotes where `record_out` would: quotes are doubled, not escaped.
fn quote_record_part(out: &mut Vec<u8>, start: usize) {
    let special = |b: &u8| matches!(b, b'"' | b'\\' | b'(' | b')' | b',' | b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
    if out.len() > start && !out[start..].iter().any(special) {
        return;
    }
    let part = out.split_off(start);
    out.push(b'"');
    for byte in part {
        if matches!(byte, b'"' | b'\\') {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(b'"');
}
