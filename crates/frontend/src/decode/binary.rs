//! The binary forms of values: what PostgreSQL's `*recv` functions accept.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder, Float64Builder,
    Int16Builder, Int32Builder, Int64Builder, IntervalMonthDayNanoBuilder, ListArray, NullBufferBuilder,
    StringViewBuilder, Time64MicrosecondBuilder, TimestampMicrosecondBuilder,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, IntervalUnit, TimeUnit};
use flow::{Error, Result, SqlState};

use crate::decode::number::{DecimalAccumulator, parse_text};
use crate::decode::{CellError, canonical_of, check_offset, interval_value};
use crate::encode::datetime::{DAY_US, POSTGRES_EPOCH_DAYS, POSTGRES_EPOCH_US};
use crate::types::{PgType, element_of, oid};

#[cold]
fn incorrect(what: &str) -> Error {
    Error::new(SqlState::InvalidBinaryRepresentation, format!("incorrect binary data format: {what}"))
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N]> {
    <[u8; N]>::try_from(bytes).map_err(|_| incorrect(&format!("expected {N} bytes, got {}", bytes.len())))
}

/// Takes `N` bytes off the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N]> {
    let (head, rest) = bytes.split_at_checked(N).ok_or_else(|| incorrect("insufficient data left in message"))?;
    *bytes = rest;
    fixed(head)
}

/// Decodes a column of values of the Postgres type `sent_as`; `data_type` is that type's Arrow form. The type is looked at
/// once, not for every value. Stops at the first bad value.
pub(crate) fn decode_column<'a>(
    cells: impl ExactSizeIterator<Item = Option<&'a [u8]>>,
    sent_as: u32,
    data_type: &DataType,
) -> std::result::Result<ArrayRef, CellError> {
    let rows = cells.len();
    macro_rules! decode_all {
        ($builder:expr, $decode:expr) => {{
            let mut builder = $builder;
            for (row, cell) in cells.enumerate() {
                match cell {
                    None => builder.append_null(),
                    Some(bytes) => match $decode(bytes) {
                        Ok(value) => builder.append_value(value),
                        Err(error) => return Err(CellError { row, error }),
                    },
                }
            }
            Ok(Arc::new(builder.finish()) as ArrayRef)
        }};
    }
    match data_type {
        DataType::Boolean => decode_all!(BooleanBuilder::with_capacity(rows), |b| fixed::<1>(b).map(|b| b[0] != 0)),
        DataType::Int16 => decode_all!(Int16Builder::with_capacity(rows), |b| fixed(b).map(i16::from_be_bytes)),
        DataType::Int32 => decode_all!(Int32Builder::with_capacity(rows), |b| fixed(b).map(i32::from_be_bytes)),
        DataType::Int64 if matches!(sent_as, oid::OID | oid::XID | oid::CID) => {
            decode_all!(Int64Builder::with_capacity(rows), |b| fixed(b).map(|b| i64::from(u32::from_be_bytes(b))))
        }
        DataType::Int64 => decode_all!(Int64Builder::with_capacity(rows), |b| fixed(b).map(i64::from_be_bytes)),
        DataType::Float32 => decode_all!(Float32Builder::with_capacity(rows), |b| fixed(b).map(f32::from_be_bytes)),
        DataType::Float64 => decode_all!(Float64Builder::with_capacity(rows), |b| fixed(b).map(f64::from_be_bytes)),
        DataType::Decimal128(precision, scale) => {
            let builder = Decimal128Builder::with_capacity(rows).with_data_type(data_type.clone());
            decode_all!(builder, |b| decode_numeric(b, *precision, *scale))
        }
        DataType::Utf8View => {
            let builder = StringViewBuilder::with_capacity(rows).with_fixed_block_size(64 * 1024);
            decode_all!(builder, |b| decode_text(b, sent_as))
        }
        DataType::Binary => {
            let mut builder = BinaryBuilder::with_capacity(rows, rows * 16);
            let mut total = 0usize;
            for (row, cell) in cells.enumerate() {
                total += cell.map_or(0, <[u8]>::len);
                check_offset(total, row)?;
                builder.append_option(cell);
            }
            Ok(Arc::new(builder.finish()))
        }
        DataType::Date32 => decode_all!(Date32Builder::with_capacity(rows), |b| {
            Ok(match i32::from_be_bytes(fixed(b)?) {
                infinite @ (i32::MAX | i32::MIN) => infinite,
                days => days.checked_add(POSTGRES_EPOCH_DAYS).ok_or_else(|| out_of_range("date"))?,
            })
        }),
        DataType::Time64(TimeUnit::Microsecond) => {
            decode_all!(Time64MicrosecondBuilder::with_capacity(rows), |b| {
                let us = i64::from_be_bytes(fixed(b)?);
                if (0..=DAY_US).contains(&us) { Ok(us) } else { Err(out_of_range("time")) }
            })
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let builder = TimestampMicrosecondBuilder::with_capacity(rows).with_data_type(data_type.clone());
            decode_all!(builder, |b| {
                Ok(match i64::from_be_bytes(fixed(b)?) {
                    infinite @ (i64::MAX | i64::MIN) => infinite,
                    us => us.checked_add(POSTGRES_EPOCH_US).ok_or_else(|| out_of_range("timestamp"))?,
                })
            })
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            decode_all!(IntervalMonthDayNanoBuilder::with_capacity(rows), |mut b: &[u8]| {
                let us = i64::from_be_bytes(take(&mut b)?);
                let days = i32::from_be_bytes(take(&mut b)?);
                let months = i32::from_be_bytes(fixed(b)?);
                interval_value(months, days, us)
            })
        }
        DataType::List(_) => decode_arrays(cells, sent_as, data_type),
        other => {
            let canonical = canonical_of(other).ok_or_else(|| {
                let error = Error::unsupported(format!("binary input of the type {other} is not supported"));
                CellError { row: 0, error }
            })?;
            // Through a list, so that the iterator's type does not nest without end.
            let cells: Vec<_> = cells.collect();
            let array = decode_column(cells.into_iter(), sent_as, &canonical)?;
            cast(&array, other).map_err(|e| CellError { row: 0, error: Error::from(e) })
        }
    }
}

fn decode_text(bytes: &[u8], sent_as: u32) -> Result<Cow<'_, str>> {
    match sent_as {
        oid::UUID => {
            let hex = format!("{:032x}", u128::from_be_bytes(fixed(bytes)?));
            Ok(Cow::Owned([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")))
        }
        oid::JSONB => match bytes {
            [1, text @ ..] => parse_text(text).map(Cow::Borrowed),
            _ => Err(incorrect("unsupported jsonb version number")),
        },
        _ => parse_text(bytes).map(Cow::Borrowed),
    }
}

#[cold]
fn out_of_range(type_name: &str) -> Error {
    Error::new(SqlState::DatetimeFieldOverflow, format!("{type_name} out of range"))
}

fn decode_numeric(mut bytes: &[u8], precision: u8, scale: i8) -> Result<i128> {
    let count = u16::from_be_bytes(take(&mut bytes)?);
    let weight = i16::from_be_bytes(take(&mut bytes)?);
    let sign = u16::from_be_bytes(take(&mut bytes)?);
    let _displayed_scale: [u8; 2] = take(&mut bytes)?;
    if bytes.len() != usize::from(count) * 2 {
        return Err(incorrect("wrong number of digits in numeric"));
    }
    let negative = match sign {
        0x0000 => false,
        0x4000 => true,
        0xc000 | 0xd000 | 0xf000 => {
            return Err(Error::unsupported("numeric NaN and infinity are not supported")
                .with_hint("Use double precision for values that may be NaN or infinite."));
        }
        _ => {
            return Err(Error::new(
                SqlState::InvalidBinaryRepresentation,
                "invalid sign in external \"numeric\" value",
            ));
        }
    };
    let mut accumulator = DecimalAccumulator::new(precision, scale);
    let mut power = i64::from(weight) * 4 + 3;
    for group in bytes.chunks_exact(2) {
        let group = u16::from_be_bytes([group[0], group[1]]);
        if group > 9999 {
            return Err(Error::new(
                SqlState::InvalidBinaryRepresentation,
                "invalid digit in external \"numeric\" value",
            ));
        }
        for unit in [1000, 100, 10, 1] {
            accumulator.push((group / unit % 10) as u8, power);
            power -= 1;
        }
    }
    accumulator.finish(negative)
}

/// Decodes a column of arrays: all elements of all rows become one column of the element type.
fn decode_arrays<'a>(
    cells: impl ExactSizeIterator<Item = Option<&'a [u8]>>,
    sent_as: u32,
    data_type: &DataType,
) -> std::result::Result<ArrayRef, CellError> {
    // The list types from the outside in, and the type of the elements.
    let (mut levels, mut element) = (Vec::new(), data_type);
    while let DataType::List(item) = element {
        levels.push(Arc::clone(item));
        element = item.data_type();
    }
    let element_oid = element_of(sent_as).unwrap_or_else(|| PgType::of(element).oid);
    let mut offsets: Vec<Vec<i32>> = vec![vec![0]; levels.len()];
    let mut elements: Vec<Option<&'a [u8]>> = Vec::new();
    let mut row_of_element: Vec<usize> = Vec::new();
    let mut nulls = NullBufferBuilder::new(cells.len());
    for (row, cell) in cells.enumerate() {
        nulls.append(cell.is_some());
        let lengths = match cell {
            Some(bytes) => split_array(bytes, element_oid, levels.len(), &mut elements)
                .map_err(|error| CellError { row, error })?,
            None => vec![0; levels.len()],
        };
        row_of_element.resize(elements.len(), row);
        let mut lists = 1;
        for (offsets, length) in offsets.iter_mut().zip(lengths) {
            for _ in 0..lists {
                let end = offsets.last().copied().unwrap_or(0);
                let end = i32::try_from(length).ok().and_then(|length| end.checked_add(length)).ok_or_else(|| {
                    let message = "array size exceeds the maximum allowed";
                    CellError { row, error: Error::new(SqlState::ProgramLimitExceeded, message) }
                })?;
                offsets.push(end);
            }
            lists *= length;
        }
    }
    let of_row = |e: CellError| CellError { row: row_of_element.get(e.row).copied().unwrap_or(0), error: e.error };
    let mut values = decode_column(elements.into_iter(), element_oid, element).map_err(of_row)?;
    let mut nulls = Some(nulls);
    for (level, (item, offsets)) in levels.iter().zip(offsets).enumerate().rev() {
        let nulls = if level == 0 { nulls.take().and_then(|mut nulls| nulls.finish()) } else { None };
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        let list = ListArray::try_new(Arc::clone(item), offsets, values, nulls);
        values = Arc::new(list.map_err(|e| CellError { row: 0, error: Error::from(e) })?);
    }
    Ok(values)
}

/// Appends the elements of one array and returns its length in each of `dimensions` dimensions.
fn split_array<'a>(
    mut bytes: &'a [u8],
    element_oid: u32,
    dimensions: usize,
    elements: &mut Vec<Option<&'a [u8]>>,
) -> Result<Vec<usize>> {
    let found = i32::from_be_bytes(take(&mut bytes)?);
    let _has_nulls: [u8; 4] = take(&mut bytes)?;
    let found_oid = u32::from_be_bytes(take(&mut bytes)?);
    if found_oid != element_oid {
        let message = format!("binary data has array element type {found_oid} instead of expected {element_oid}");
        return Err(Error::new(SqlState::DatatypeMismatch, message));
    }
    if !(0..=6).contains(&found) {
        let message = format!("invalid number of array dimensions: {found}");
        return Err(Error::new(SqlState::ProgramLimitExceeded, message));
    }
    let mut lengths = Vec::new();
    for _ in 0..found {
        let length = i32::from_be_bytes(take(&mut bytes)?);
        let _lower_bound: [u8; 4] = take(&mut bytes)?;
        lengths.push(usize::try_from(length).map_err(|_| incorrect("negative array length"))?);
    }
    if lengths.is_empty() || lengths.contains(&0) {
        return if bytes.is_empty() { Ok(vec![0; dimensions]) } else { Err(incorrect("trailing bytes after array")) };
    }
    if lengths.len() != dimensions {
        let message =
            format!("an array of {} dimensions is not supported where {dimensions} are expected", lengths.len());
        return Err(Error::unsupported(message));
    }
    // Every element takes at least the four bytes of its length, which bounds the memory by what has arrived.
    let count = lengths.iter().try_fold(1usize, |n, length| n.checked_mul(*length)).unwrap_or(usize::MAX);
    if count > bytes.len() / 4 {
        return Err(incorrect("insufficient data left in message"));
    }
    for _ in 0..count {
        let size = i32::from_be_bytes(take(&mut bytes)?);
        elements.push(match usize::try_from(size) {
            Err(_) => None,
            Ok(size) => {
                let (value, rest) =
                    bytes.split_at_checked(size).ok_or_else(|| incorrect("insufficient data left in message"))?;
                bytes = rest;
                Some(value)
            }
        });
    }
    if bytes.is_empty() { Ok(lengths) } else { Err(incorrect("trailing bytes after array")) }
}
