//! Values from clients, as text or binary, to typed Arrow arrays: the parameters of a statement and the rows of COPY.

pub(crate) mod array;
pub(crate) mod binary;
pub(crate) mod datetime;
pub(crate) mod number;

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder, Float64Builder,
    Int16Builder, Int32Builder, Int64Builder, IntervalMonthDayNanoBuilder, StringBuilder, StringViewBuilder,
    Time64MicrosecondBuilder, TimestampMicrosecondBuilder,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalUnit, TimeUnit};
use flow::{Error, Result, SqlState};

use crate::decode::datetime::{parse_date, parse_interval, parse_time, parse_timestamp, parse_timestamptz};
use crate::decode::number::{
    parse_bool, parse_bytea, parse_float4, parse_float8, parse_integer, parse_numeric, parse_text,
};
use crate::encode::Format;
use crate::settings::TextSettings;
use crate::types::{data_type_of, oid};

/// The text of one value, `None` for NULL. Borrowed unless an escape had to be undone.
pub(crate) type Cell<'a> = Option<Cow<'a, [u8]>>;

/// What is wrong with the value at `row` of a column.
#[derive(Debug)]
pub(crate) struct CellError {
    pub(crate) row: usize,
    pub(crate) error: Error,
}

fn first_row(error: Error) -> CellError {
    CellError { row: 0, error }
}

/// Parses the text of a whole column. The type is looked at once, not for every value. Stops at the first bad value.
pub(crate) fn parse_column<'a>(
    data_type: &DataType,
    cells: impl ExactSizeIterator<Item = Cell<'a>>,
    settings: &TextSettings,
) -> std::result::Result<ArrayRef, CellError> {
    let rows = cells.len();
    macro_rules! parse_all {
        ($builder:expr, $parse:expr) => {{
            let mut builder = $builder;
            for (row, cell) in cells.enumerate() {
                match cell {
                    None => builder.append_null(),
                    Some(text) => match $parse(&text[..]) {
                        Ok(value) => builder.append_value(value),
                        Err(error) => return Err(CellError { row, error }),
                    },
                }
            }
            Ok(Arc::new(builder.finish()) as ArrayRef)
        }};
    }
    match data_type {
        DataType::Boolean => parse_all!(BooleanBuilder::with_capacity(rows), parse_bool),
        DataType::Int16 => parse_all!(Int16Builder::with_capacity(rows), |t: &[u8]| parse_integer(
            t,
            i16::MIN.into(),
            i16::MAX.into(),
            "smallint"
        )
        .map(|v| v as i16)),
        DataType::Int32 => parse_all!(Int32Builder::with_capacity(rows), |t: &[u8]| parse_integer(
            t,
            i32::MIN.into(),
            i32::MAX.into(),
            "integer"
        )
        .map(|v| v as i32)),
        DataType::Int64 => {
            parse_all!(Int64Builder::with_capacity(rows), |t: &[u8]| parse_integer(t, i64::MIN, i64::MAX, "bigint"))
        }
        DataType::Float32 => parse_all!(Float32Builder::with_capacity(rows), parse_float4),
        DataType::Float64 => parse_all!(Float64Builder::with_capacity(rows), parse_float8),
        DataType::Decimal128(precision, scale) => {
            let builder = Decimal128Builder::with_capacity(rows).with_data_type(data_type.clone());
            parse_all!(builder, |t: &[u8]| parse_numeric(t, *precision, *scale))
        }
        DataType::Utf8View => {
            // One validated text is appended at a time; the view array copies only what is longer than twelve bytes.
            let mut builder = StringViewBuilder::with_capacity(rows).with_fixed_block_size(64 * 1024);
            for (row, cell) in cells.enumerate() {
                match cell.as_deref() {
                    None => builder.append_null(),
                    Some(text) => match parse_text(text) {
                        Ok(text) => {
                            builder.try_append_value(text).map_err(|e| CellError { row, error: Error::from(e) })?
                        }
                        Err(error) => return Err(CellError { row, error }),
                    },
                }
            }
            Ok(Arc::new(builder.finish()))
        }
        DataType::Utf8 => {
            let mut builder = StringBuilder::with_capacity(rows, rows * 16);
            let mut bytes = 0usize;
            for (row, cell) in cells.enumerate() {
                match cell.as_deref() {
                    None => builder.append_null(),
                    Some(text) => {
                        bytes += text.len();
                        check_offset(bytes, row)?;
                        builder.append_value(parse_text(text).map_err(|error| CellError { row, error })?);
                    }
                }
            }
            Ok(Arc::new(builder.finish()))
        }
        DataType::Binary => {
            let mut builder = BinaryBuilder::with_capacity(rows, rows * 16);
            let (mut value, mut bytes) = (Vec::new(), 0usize);
            for (row, cell) in cells.enumerate() {
                match cell.as_deref() {
                    None => builder.append_null(),
                    Some(text) => {
                        value.clear();
                        parse_bytea(text, &mut value).map_err(|error| CellError { row, error })?;
                        bytes += value.len();
                        check_offset(bytes, row)?;
                        builder.append_value(&value);
                    }
                }
            }
            Ok(Arc::new(builder.finish()))
        }
        DataType::Date32 => parse_all!(Date32Builder::with_capacity(rows), |t: &[u8]| parse_date(t, settings)),
        DataType::Time64(TimeUnit::Microsecond) => {
            parse_all!(Time64MicrosecondBuilder::with_capacity(rows), |t: &[u8]| parse_time(t, settings))
        }
        DataType::Timestamp(TimeUnit::Microsecond, None) => {
            parse_all!(TimestampMicrosecondBuilder::with_capacity(rows), |t: &[u8]| parse_timestamp(t, settings))
        }
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => {
            let builder = TimestampMicrosecondBuilder::with_capacity(rows).with_data_type(data_type.clone());
            parse_all!(builder, |t: &[u8]| parse_timestamptz(t, settings))
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            parse_all!(IntervalMonthDayNanoBuilder::with_capacity(rows), |t: &[u8]| {
                parse_interval(t).and_then(|(months, days, us)| interval_value(months, days, us))
            })
        }
        DataType::List(item) => array::parse_list_column(item, cells, settings),
        other => {
            // Any other type comes through its canonical relative.
            let canonical = canonical_of(other)
                .ok_or_else(|| first_row(Error::unsupported(format!("input of the type {other} is not supported"))))?;
            let array = parse_column(&canonical, cells, settings)?;
            cast(&array, other).map_err(|e| first_row(Error::from(e)))
        }
    }
}

/// Arrow's offsets of text and bytes have 32 bits; a batch that outgrows them is refused.
fn check_offset(bytes: usize, row: usize) -> std::result::Result<(), CellError> {
    if bytes > i32::MAX as usize {
        let error = Error::new(SqlState::ProgramLimitExceeded, "values of one batch exceed 2 GB");
        return Err(CellError { row, error });
    }
    Ok(())
}

pub(crate) fn interval_value(months: i32, days: i32, us: i64) -> Result<IntervalMonthDayNano> {
    let ns = us
        .checked_mul(1000)
        .ok_or_else(|| Error::new(SqlState::DatetimeFieldOverflow, "interval field value out of range"))?;
    Ok(IntervalMonthDayNano::new(months, days, ns))
}

/// The canonical type that casts to `data_type` without loss, for those that are not canonical.
fn canonical_of(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Null | DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 => DataType::Float32,
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => DataType::Decimal128(*p, *s),
        DataType::Decimal256(_, s) => DataType::Decimal128(38, *s),
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::Date64 => DataType::Date32,
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::Interval(_) => DataType::Interval(IntervalUnit::MonthDayNano),
        DataType::LargeList(item) => DataType::List(Arc::clone(item)),
        DataType::Dictionary(_, value) => value.as_ref().clone(),
        _ => return None,
    })
}

/// One parameter as an array of one row of type `target`. `sent_as` is the type that the client was told or declared, in
/// whose form the bytes are.
pub(crate) fn decode_parameter(
    value: Option<&[u8]>,
    format: Format,
    sent_as: u32,
    target: &DataType,
    settings: &TextSettings,
) -> Result<ArrayRef> {
    let sent_type = match data_type_of(sent_as) {
        // A declared numeric(p, s) or a nested array is known better by the plan.
        Some(general) if !same_family(&general, target) => general,
        _ => target.clone(),
    };
    let array = match (value, format) {
        (None, _) => arrow::array::new_null_array(target, 1),
        (Some(text), Format::Text) => {
            let cells = std::iter::once(Some(Cow::Borrowed(text)));
            parse_column(&sent_type, cells, settings).map_err(|e| e.error)?
        }
        (Some(bytes), Format::Binary) => {
            binary::decode_column(std::iter::once(Some(bytes)), sent_as, &sent_type).map_err(|e| e.error)?
        }
    };
    if array.data_type() == target {
        return Ok(array);
    }
    let strict = arrow::compute::CastOptions { safe: false, ..Default::default() };
    Ok(arrow::compute::cast_with_options(&array, target, &strict)?)
}

/// Whether bytes of the one type can be parsed straight into the other.
fn same_family(general: &DataType, target: &DataType) -> bool {
    match (general, target) {
        (DataType::Decimal128(..), DataType::Decimal128(..)) => true,
        (DataType::Utf8View, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => true,
        (DataType::List(a), DataType::List(b)) => match b.data_type() {
            DataType::List(_) => same_family(general, b.data_type()),
            item => same_family(a.data_type(), item),
        },
        (a, b) => a == b,
    }
}

/// A parameter whose type the client left open is text to the frontend.
pub(crate) fn is_open(type_oid: u32) -> bool {
    type_oid == 0 || type_oid == oid::UNKNOWN
}
