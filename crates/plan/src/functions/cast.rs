//! Casts with Postgres' rounding, ranges, input and output syntax.
//!
//! A cast whose meaning differs from Arrow's becomes a call of a function named as the target type (`int4(x)`,
//! `numeric(x, 10, 2)`, `timestamptz(x, 'Europe/Berlin')`), as Postgres itself allows. The session's time zone is an
//! argument, so that a standing query keeps the one it was created with.

use std::sync::Arc;

use arrow::array::*;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::*;
use arrow::error::ArrowError;
use arrow::util::display::FormatOptions;
use datafusion::common::{DataFusionError, Result, ScalarValue, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use flow::{Error, SqlState};

use super::arithmetic::{external, out_of_range};
use super::decimal::{overflow, power, round_down};
use super::temporal::{US_PER_DAY, timestamp_range};
use super::zone::Zone;
use super::{format, parse, type_name};

/// The types that can be cast to, each with its function's name.
pub const TARGETS: [(&str, DataType); 14] = [
    ("bool", DataType::Boolean),
    ("int2", DataType::Int16),
    ("int4", DataType::Int32),
    ("int8", DataType::Int64),
    ("float4", DataType::Float32),
    ("float8", DataType::Float64),
    ("numeric", DataType::Decimal128(38, 18)),
    ("text", DataType::Utf8View),
    ("bytea", DataType::Binary),
    ("date", DataType::Date32),
    ("time", DataType::Time64(TimeUnit::Microsecond)),
    ("timestamp", DataType::Timestamp(TimeUnit::Microsecond, None)),
    // The zone of the type cannot be written in a constant.
    ("timestamptz", DataType::Null),
    ("interval", DataType::Interval(IntervalUnit::MonthDayNano)),
];

/// Functions that read an array from its text, named as Postgres names the array types.
pub const ARRAY_TARGETS: [&str; 14] = [
    "_bool",
    "_int2",
    "_int4",
    "_int8",
    "_float4",
    "_float8",
    "_numeric",
    "_text",
    "_bytea",
    "_date",
    "_time",
    "_timestamp",
    "_timestamptz",
    "_interval",
];

/// The function that casts to `to`, and its arguments after the value; `None` where Arrow's own cast means the same.
pub fn function_of(from: &DataType, to: &DataType, zone: &str) -> Option<(&'static str, Vec<ScalarValue>)> {
    let from = unwrap(from);
    if from == to || matches!(from, DataType::Null) {
        return None;
    }
    let is_text = |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let zoned = |t: &DataType| matches!(t, DataType::Timestamp(_, Some(_)));
    // Between the layouts of text, and to text that is not the canonical one: DataFusion's own functions want those.
    if is_text(from) && is_text(to) {
        return None;
    }
    let zone_argument = if zoned(from) != zoned(to) { vec![ScalarValue::from(zone)] } else { Vec::new() };
    let name = match to {
        DataType::Boolean => "bool",
        DataType::Int16 => "int2",
        DataType::Int32 => "int4",
        DataType::Int64 => "int8",
        DataType::Float32 => "float4",
        DataType::Float64 => "float8",
        DataType::Decimal128(p, s) => {
            return Some((
                "numeric",
                vec![ScalarValue::Int32(Some((*p).into())), ScalarValue::Int32(Some((*s).into()))],
            ));
        }
        t if is_text(t) => "text",
        DataType::Binary => "bytea",
        DataType::Date32 => "date",
        DataType::Time64(TimeUnit::Microsecond) => "time",
        DataType::Timestamp(TimeUnit::Microsecond, None) => "timestamp",
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => "timestamptz",
        DataType::Interval(IntervalUnit::MonthDayNano) => "interval",
        DataType::List(item) if is_text(from) => {
            return Some((array_target(item.data_type())?, vec![ScalarValue::from(zone)]));
        }
        _ => return None,
    };
    let widening = match (from, to) {
        (f, t) if f.is_integer() && t.is_integer() => {
            f.is_signed_integer() && f.primitive_width() <= t.primitive_width()
        }
        (f, t) if f.is_integer() && t.is_floating() => true,
        (DataType::Float32, DataType::Float64) => true,
        (DataType::Timestamp(_, a), DataType::Timestamp(_, b)) if a.is_some() == b.is_some() => true,
        (DataType::Date32, DataType::Timestamp(_, None)) => true,
        (f, _) if !convertible(f, to) => true,
        _ => false,
    };
    if widening { None } else { Some((name, zone_argument)) }
}

fn array_target(element: &DataType) -> Option<&'static str> {
    let scalar = match element {
        DataType::Decimal128(_, _) => "numeric",
        DataType::Timestamp(_, Some(_)) => "timestamptz",
        other => TARGETS.iter().find(|(_, t)| t == other)?.0,
    };
    ARRAY_TARGETS.iter().find(|name| &name[1..] == scalar).copied()
}

/// Whether [`convert`] knows the pair.
fn convertible(from: &DataType, to: &DataType) -> bool {
    use DataType::*;
    match (from, to) {
        (Utf8 | LargeUtf8 | Utf8View, _) => true,
        (List(_) | LargeList(_), Utf8 | LargeUtf8 | Utf8View) => true,
        (Struct(_) | Map(_, _) | Union(_, _), _) => false,
        (_, Utf8 | LargeUtf8 | Utf8View) => true,
        (Boolean, Int32) | (Int32, Boolean) => true,
        (Boolean, _) | (_, Boolean) => false,
        (f, t) if f.is_numeric() && t.is_numeric() => true,
        (Timestamp(_, _), Date32 | Time64(_) | Timestamp(_, _)) => true,
        (Date32, Timestamp(_, _)) => true,
        (Interval(_), Time64(_)) | (Time64(_), Interval(_)) => true,
        _ => false,
    }
}

fn unwrap(t: &DataType) -> &DataType {
    match t {
        DataType::Dictionary(_, value) => value,
        other => other,
    }
}

/// `target(value [, arguments])`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Cast {
    name: &'static str,
    signature: Signature,
}

impl Cast {
    pub fn new(name: &'static str) -> Cast {
        Cast { name, signature: Signature::user_defined(Volatility::Immutable) }
    }

    fn target(&self, precision_and_scale: Option<(u8, i8)>) -> DataType {
        let scalar = |name: &str| match name {
            "timestamptz" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            name => TARGETS.iter().find(|(n, _)| *n == name).map_or(DataType::Utf8View, |(_, t)| t.clone()),
        };
        match (self.name.strip_prefix('_'), precision_and_scale) {
            (Some(element), _) => DataType::List(Arc::new(Field::new("item", scalar(element), true))),
            (None, Some((p, s))) if self.name == "numeric" => DataType::Decimal128(p, s),
            (None, _) => scalar(self.name),
        }
    }
}

impl ScalarUDFImpl for Cast {
    fn name(&self) -> &str {
        self.name
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        Ok(match (self.name, args) {
            ("numeric", [value, Expr::Literal(p, _), Expr::Literal(s, _)]) => format!("{value}::numeric({p},{s})"),
            (name, [value, ..]) => format!("{value}::{name}"),
            (name, []) => name.to_string(),
        })
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let Some(first) = arguments.first() else {
            return plan_err!("function {} takes a value", self.name);
        };
        let mut types = vec![first.clone()];
        for argument in &arguments[1..] {
            types.push(if self.name == "numeric" { DataType::Int32 } else { argument.clone() });
        }
        Ok(types)
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.target(None))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let number = |i: usize| match args.scalar_arguments.get(i) {
            Some(Some(ScalarValue::Int32(Some(v)))) => i8::try_from(*v).ok(),
            Some(Some(ScalarValue::Int64(Some(v)))) => i8::try_from(*v).ok(),
            _ => None,
        };
        let precision = number(1).and_then(|p| u8::try_from(p).ok()).filter(|p| (1..=38).contains(p));
        let target = self.target(precision.map(|p| (p, number(2).unwrap_or(0))));
        let nullable = args.arg_fields.first().is_none_or(|f| f.is_nullable());
        Ok(Arc::new(Field::new(self.name, target, nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(value) = args.args.first() else {
            return plan_err!("function {} takes a value", self.name);
        };
        let zone = match args.args.get(1) {
            Some(ColumnarValue::Scalar(
                ScalarValue::Utf8(Some(z)) | ScalarValue::Utf8View(Some(z)) | ScalarValue::LargeUtf8(Some(z)),
            )) => match Zone::parse(z) {
                Some(zone) => zone,
                None => {
                    let error =
                        Error::new(SqlState::InvalidParameterValue, format!("time zone \"{z}\" not recognized"));
                    return Err(DataFusionError::External(Box::new(error)));
                }
            },
            _ => Zone::UTC,
        };
        let to = args.return_field.data_type();
        Ok(match value {
            ColumnarValue::Array(array) => ColumnarValue::Array(convert(array, to, &zone)?),
            ColumnarValue::Scalar(scalar) => {
                let array = convert(&scalar.to_array()?, to, &zone)?;
                ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?)
            }
        })
    }
}

/// `array` as `to`, a canonical type. `zone` is the session's.
pub fn convert(array: &ArrayRef, to: &DataType, zone: &Zone) -> Result<ArrayRef, ArrowError> {
    let from = array.data_type();
    match (from, to) {
        (f, t) if f == t => Ok(Arc::clone(array)),
        (DataType::Dictionary(_, value), _) => convert(&plain_cast(array, value)?, to, zone),
        (DataType::Utf8 | DataType::LargeUtf8, _) => {
            from_text(plain_cast(array, &DataType::Utf8View)?.as_string_view(), to, zone)
        }
        (DataType::Utf8View, _) => from_text(array.as_string_view(), to, zone),
        (_, DataType::Utf8View) => Ok(Arc::new(to_text(array, zone)?)),
        (_, DataType::Utf8 | DataType::LargeUtf8) => {
            let text: ArrayRef = Arc::new(to_text(array, zone)?);
            plain_cast(&text, to)
        }
        (DataType::Float32 | DataType::Float64, t) if t.is_integer() => float_to_integer(array, to),
        (DataType::Float64, DataType::Float32) => {
            let wide = array.as_primitive::<Float64Type>();
            let narrow = wide.try_unary::<_, Float32Type, _>(|v| {
                let narrow = v as f32;
                if narrow.is_infinite() && v.is_finite() {
                    Err(external(Error::new(SqlState::NumericValueOutOfRange, "value out of range: overflow")))
                } else {
                    Ok(narrow)
                }
            })?;
            Ok(Arc::new(narrow))
        }
        (DataType::Decimal128(_, scale), t) if t.is_integer() => {
            let digits = u8::try_from(*scale).unwrap_or(0);
            let rounded = array.as_primitive::<Decimal128Type>().unary::<_, Decimal128Type>(|v| round_down(v, digits));
            let rounded: ArrayRef = Arc::new(rounded.with_precision_and_scale(38, 0)?);
            plain_cast(&rounded, to).map_err(|_| external(out_of_range(to)))
        }
        (DataType::Decimal128(_, s1), DataType::Decimal128(p2, s2)) => {
            let (limit, s1, s2) = (power(*p2), *s1, *s2);
            let out = array.as_primitive::<Decimal128Type>().try_unary::<_, Decimal128Type, _>(|v| {
                let scaled =
                    if s2 >= s1 { v.checked_mul(power((s2 - s1) as u8)) } else { Some(round_down(v, (s1 - s2) as u8)) };
                scaled.filter(|v| v.unsigned_abs() < limit.unsigned_abs()).ok_or_else(|| overflow(*p2, s2))
            })?;
            Ok(Arc::new(out.with_precision_and_scale(*p2, s2)?))
        }
        (f, DataType::Decimal128(p, s)) if f.is_integer() => {
            let wide = plain_cast(array, &DataType::Decimal128(20, 0))?;
            convert(&wide, &DataType::Decimal128(*p, *s), zone)
        }
        (f, DataType::Decimal128(p, s)) if f.is_floating() => {
            // By its shortest text, as Postgres does, not by its binary value.
            let text = to_text(array, zone)?;
            let out: Decimal128Array = text
                .iter()
                .map(|t| match t {
                    None => Ok(None),
                    Some(t) => parse::decimal(t, *p, *s).map(Some).map_err(external),
                })
                .collect::<Result<_, ArrowError>>()?;
            Ok(Arc::new(out.with_precision_and_scale(*p, *s)?))
        }
        (f, t) if f.is_integer() && t.is_integer() => plain_cast(array, to).map_err(|_| external(out_of_range(to))),
        (DataType::Timestamp(_, tz), _) => from_timestamp(array, tz.is_some(), to, zone),
        (DataType::Date32, DataType::Timestamp(TimeUnit::Microsecond, Some(_))) => {
            let local = plain_cast(array, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
            convert(&local, to, zone)
        }
        (DataType::Interval(IntervalUnit::MonthDayNano), DataType::Time64(TimeUnit::Microsecond)) => {
            let intervals = array.as_primitive::<IntervalMonthDayNanoType>();
            let times = intervals.unary::<_, Time64MicrosecondType>(|i| (i.nanoseconds / 1_000).rem_euclid(US_PER_DAY));
            Ok(Arc::new(times))
        }
        (DataType::Time64(TimeUnit::Microsecond), DataType::Interval(IntervalUnit::MonthDayNano)) => {
            let times = array.as_primitive::<Time64MicrosecondType>();
            let intervals =
                times.unary::<_, IntervalMonthDayNanoType>(|us| IntervalMonthDayNano::new(0, 0, us * 1_000));
            Ok(Arc::new(intervals))
        }
        (DataType::Boolean, DataType::Int32) | (DataType::Int32, DataType::Boolean) => plain_cast(array, to),
        _ if convertible(from, to) || from.is_null() => plain_cast(array, to),
        _ => Err(external(Error::new(
            SqlState::CannotCoerce,
            format!("cannot cast type {} to {}", type_name(from), type_name(to)),
        ))),
    }
}

/// Arrow's cast, failing instead of giving NULL.
fn plain_cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    cast_with_options(array, to, &CastOptions { safe: false, format_options: FormatOptions::default() })
}

fn float_to_integer(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    let wide = plain_cast(array, &DataType::Float64)?;
    let wide = wide.as_primitive::<Float64Type>();
    // The bounds are exact in f64 for 16 and 32 bits; 2^63 itself is the first that does not fit 64 bits.
    let (min, max) = match to {
        DataType::Int16 => (i16::MIN as f64, i16::MAX as f64),
        DataType::Int32 => (i32::MIN as f64, i32::MAX as f64),
        _ => (i64::MIN as f64, 9_223_372_036_854_774_784.0),
    };
    let integers = wide.try_unary::<_, Int64Type, _>(|v| {
        let rounded = v.round_ties_even();
        if rounded >= min && rounded <= max { Ok(rounded as i64) } else { Err(external(out_of_range(to))) }
    })?;
    plain_cast(&(Arc::new(integers) as ArrayRef), to)
}

fn from_timestamp(array: &ArrayRef, zoned: bool, to: &DataType, zone: &Zone) -> Result<ArrayRef, ArrowError> {
    let wanted = DataType::Timestamp(TimeUnit::Microsecond, zoned.then(|| "UTC".into()));
    let micros = plain_cast(array, &wanted)?;
    let micros = micros.as_primitive::<TimestampMicrosecondType>();
    let local = |us: i64| if zoned { zone.to_local(us).ok_or_else(timestamp_range) } else { Ok(us) };
    Ok(match to {
        DataType::Date32 => Arc::new(micros.try_unary::<_, Date32Type, _>(|us| {
            i32::try_from(local(us)?.div_euclid(US_PER_DAY)).map_err(|_| timestamp_range())
        })?),
        DataType::Time64(TimeUnit::Microsecond) => {
            Arc::new(micros.try_unary::<_, Time64MicrosecondType, _>(|us| {
                Ok::<_, ArrowError>(local(us)?.rem_euclid(US_PER_DAY))
            })?)
        }
        DataType::Timestamp(TimeUnit::Microsecond, None) => {
            Arc::new(micros.try_unary::<_, TimestampMicrosecondType, _>(local)?)
        }
        DataType::Timestamp(TimeUnit::Microsecond, Some(name)) => {
            let instants = micros.try_unary::<_, TimestampMicrosecondType, _>(|us| {
                if zoned {
                    return Ok(us);
                }
                let at = chrono::DateTime::from_timestamp_micros(us).ok_or_else(timestamp_range)?;
                zone.to_utc(at.naive_utc()).ok_or_else(timestamp_range)
            })?;
            Arc::new(instants.with_timezone(Arc::clone(name)))
        }
        _ => {
            return Err(external(Error::new(
                SqlState::CannotCoerce,
                format!("cannot cast type {} to {}", type_name(array.data_type()), type_name(to)),
            )));
        }
    })
}

/// Parses every value.
fn from_text(text: &StringViewArray, to: &DataType, zone: &Zone) -> Result<ArrayRef, ArrowError> {
    fn each<T: ArrowPrimitiveType>(
        text: &StringViewArray,
        f: impl Fn(&str) -> flow::Result<T::Native>,
    ) -> Result<PrimitiveArray<T>, ArrowError> {
        let mut out = PrimitiveBuilder::<T>::with_capacity(text.len());
        for t in text {
            match t {
                Some(t) => out.append_value(f(t).map_err(external)?),
                None => out.append_null(),
            }
        }
        Ok(out.finish())
    }
    let integer = |t: &str, min: i64, max: i64| parse::integer(t, &type_name(to), min, max);
    Ok(match to {
        DataType::Boolean => {
            let mut out = BooleanBuilder::with_capacity(text.len());
            for t in text {
                out.append_option(t.map(parse::boolean).transpose().map_err(external)?);
            }
            Arc::new(out.finish())
        }
        // The bounds make the narrowing exact.
        DataType::Int16 => {
            Arc::new(each::<Int16Type>(text, |t| Ok(integer(t, i16::MIN.into(), i16::MAX.into())? as i16))?)
        }
        DataType::Int32 => {
            Arc::new(each::<Int32Type>(text, |t| Ok(integer(t, i32::MIN.into(), i32::MAX.into())? as i32))?)
        }
        DataType::Int64 => Arc::new(each::<Int64Type>(text, |t| integer(t, i64::MIN, i64::MAX))?),
        DataType::Float32 => Arc::new(each::<Float32Type>(text, |t| Ok(parse::float(t, "real")? as f32))?),
        DataType::Float64 => Arc::new(each::<Float64Type>(text, |t| parse::float(t, "double precision"))?),
        DataType::Decimal128(p, s) => {
            Arc::new(each::<Decimal128Type>(text, |t| parse::decimal(t, *p, *s))?.with_precision_and_scale(*p, *s)?)
        }
        DataType::Binary => {
            let mut out = BinaryBuilder::new();
            for t in text {
                out.append_option(t.map(parse::bytea).transpose().map_err(external)?);
            }
            Arc::new(out.finish())
        }
        DataType::Date32 => Arc::new(each::<Date32Type>(text, parse::date)?),
        DataType::Time64(TimeUnit::Microsecond) => Arc::new(each::<Time64MicrosecondType>(text, parse::time)?),
        DataType::Timestamp(TimeUnit::Microsecond, None) => {
            Arc::new(each::<TimestampMicrosecondType>(text, parse::timestamp)?)
        }
        DataType::Timestamp(TimeUnit::Microsecond, Some(name)) => Arc::new(
            each::<TimestampMicrosecondType>(text, |t| parse::timestamptz(t, zone))?.with_timezone(Arc::clone(name)),
        ),
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            Arc::new(each::<IntervalMonthDayNanoType>(text, parse::interval)?)
        }
        DataType::List(field) => {
            let mut offsets = vec![0i32];
            let mut nulls = Vec::with_capacity(text.len());
            let mut elements = StringViewBuilder::new();
            for t in text {
                nulls.push(t.is_some());
                for element in t.map(parse::array_elements).transpose().map_err(external)?.unwrap_or_default() {
                    elements.append_option(element);
                }
                offsets.push(
                    i32::try_from(elements.len())
                        .map_err(|_| external(Error::new(SqlState::ProgramLimitExceeded, "array is too large")))?,
                );
            }
            let elements: ArrayRef = Arc::new(elements.finish());
            let values = convert(&elements, field.data_type(), zone)?;
            let offsets = arrow::buffer::OffsetBuffer::new(offsets.into());
            Arc::new(ListArray::try_new(Arc::clone(field), offsets, values, Some(nulls.into()))?)
        }
        _ => plain_cast(&(Arc::new(text.clone()) as ArrayRef), to)?,
    })
}

/// Writes every value; `zone` is for timestamps with time zone.
pub fn to_text(array: &ArrayRef, zone: &Zone) -> Result<StringViewArray, ArrowError> {
    fn each<A: ArrayAccessor>(array: A, mut write: impl FnMut(&mut String, A::Item)) -> StringViewArray {
        let mut out = StringViewBuilder::with_capacity(array.len());
        let mut buffer = String::new();
        for i in 0..array.len() {
            if array.is_null(i) {
                out.append_null();
            } else {
                buffer.clear();
                write(&mut buffer, array.value(i));
                out.append_value(&buffer);
            }
        }
        out.finish()
    }
    let micros = |array: &ArrayRef| -> Result<ArrayRef, ArrowError> {
        match array.data_type() {
            DataType::Timestamp(_, tz) => plain_cast(array, &DataType::Timestamp(TimeUnit::Microsecond, tz.clone())),
            _ => plain_cast(array, &DataType::Time64(TimeUnit::Microsecond)),
        }
    };
    Ok(match array.data_type() {
        DataType::Utf8View => array.as_string_view().clone(),
        DataType::Boolean => each(array.as_boolean(), |o, v| o.push_str(if v { "true" } else { "false" })),
        DataType::Float32 => each(array.as_primitive::<Float32Type>(), format::float4),
        DataType::Float64 => each(array.as_primitive::<Float64Type>(), format::float8),
        DataType::Decimal128(p, s) => {
            let trim = (*p, *s) == (38, 18);
            each(array.as_primitive::<Decimal128Type>(), |o, v| format::decimal(o, v, *s, trim))
        }
        DataType::Date32 => each(array.as_primitive::<Date32Type>(), format::date),
        DataType::Time32(_) | DataType::Time64(_) => {
            each(micros(array)?.as_primitive::<Time64MicrosecondType>(), format::time)
        }
        DataType::Timestamp(_, None) => {
            each(micros(array)?.as_primitive::<TimestampMicrosecondType>(), format::timestamp)
        }
        DataType::Timestamp(_, Some(_)) => {
            each(micros(array)?.as_primitive::<TimestampMicrosecondType>(), |o, v| format::timestamptz(o, v, zone))
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            each(array.as_primitive::<IntervalMonthDayNanoType>(), format::interval)
        }
        DataType::Binary => each(array.as_binary::<i32>(), format::bytea),
        DataType::LargeBinary => each(array.as_binary::<i64>(), format::bytea),
        DataType::BinaryView => each(array.as_binary_view(), format::bytea),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let elements = to_text(list.values(), zone)?;
            let mut out = StringViewBuilder::with_capacity(list.len());
            let mut buffer = String::new();
            for i in 0..list.len() {
                if list.is_null(i) {
                    out.append_null();
                    continue;
                }
                buffer.clear();
                buffer.push('{');
                let (start, end) = (list.value_offsets()[i] as usize, list.value_offsets()[i + 1] as usize);
                for element in start..end {
                    if element > start {
                        buffer.push(',');
                    }
                    if elements.is_null(element) {
                        buffer.push_str("NULL");
                    } else {
                        format::array_element(&mut buffer, elements.value(element));
                    }
                }
                buffer.push('}');
                out.append_value(&buffer);
            }
            out.finish()
        }
        _ => plain_cast(array, &DataType::Utf8View)?.as_string_view().clone(),
    })
}
