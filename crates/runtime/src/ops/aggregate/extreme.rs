//! Least and greatest values per group.
//!
//! Over append-only input one value per group is enough. When rows can be taken away, every value of the group is kept
//! with its multiplicity in order, so that the next best is at hand.

use std::borrow::Borrow;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, Float32Array, Float64Array, PrimitiveArray,
    StringViewArray,
};
use arrow::compute::cast;
use arrow::datatypes::*;
use flow::keys::KeyEncoder;
use flow::{Error, Result};

use crate::ops::cells::BatchColumn;

/// The values of a batch in a form whose order is the order of SQL.
pub enum Sortable {
    Small(Vec<i64>),
    Wide(Vec<i128>),
    Bytes(BatchColumn),
}

/// How a type's values are ordered. Chosen by the type alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Small,
    Wide,
    Bytes,
}

pub fn form(data_type: &DataType) -> Form {
    use DataType as D;
    match data_type {
        D::Boolean
        | D::Int8
        | D::Int16
        | D::Int32
        | D::Int64
        | D::UInt8
        | D::UInt16
        | D::UInt32
        | D::Float32
        | D::Float64
        | D::Date32
        | D::Date64
        | D::Time32(_)
        | D::Time64(_)
        | D::Timestamp(_, _)
        | D::Duration(_) => Form::Small,
        D::UInt64 | D::Decimal128(_, _) | D::Interval(IntervalUnit::MonthDayNano) => Form::Wide,
        _ => Form::Bytes,
    }
}

/// Order-preserving image of a double: NaN is one value and the greatest, −0.0 is 0.0.
fn image(v: f64) -> i64 {
    let canonical = if v == 0.0 {
        0.0
    } else if v.is_nan() {
        f64::NAN
    } else {
        v
    };
    let bits = canonical.to_bits() as i64;
    bits ^ ((bits >> 63) as u64 >> 1) as i64
}

fn from_image(key: i64) -> f64 {
    f64::from_bits((key ^ ((key >> 63) as u64 >> 1) as i64) as u64)
}

/// Months, days, nanoseconds, in that order of weight, as DataFusion compares intervals.
fn interval_key(v: IntervalMonthDayNano) -> i128 {
    ((v.months as i128) << 96)
        | (((v.days as u32 ^ 0x8000_0000) as i128) << 64)
        | ((v.nanoseconds as u64 ^ (1 << 63)) as i128)
}

fn from_interval_key(key: i128) -> IntervalMonthDayNano {
    IntervalMonthDayNano::new(
        (key >> 96) as i32,
        ((key >> 64) as u32 ^ 0x8000_0000) as i32,
        (key as u64 ^ (1 << 63)) as i64,
    )
}

/// Calls a macro with the Arrow type that stands for a primitive of at most 64 bits.
macro_rules! small_types {
    ($data_type:expr, $then:ident, $otherwise:expr) => {
        match $data_type {
            DataType::Int8 => $then!(Int8Type),
            DataType::Int16 => $then!(Int16Type),
            DataType::Int32 => $then!(Int32Type),
            DataType::Int64 => $then!(Int64Type),
            DataType::UInt8 => $then!(UInt8Type),
            DataType::UInt16 => $then!(UInt16Type),
            DataType::UInt32 => $then!(UInt32Type),
            DataType::Date32 => $then!(Date32Type),
            DataType::Date64 => $then!(Date64Type),
            DataType::Time32(TimeUnit::Second) => $then!(Time32SecondType),
            DataType::Time32(_) => $then!(Time32MillisecondType),
            DataType::Time64(TimeUnit::Microsecond) => $then!(Time64MicrosecondType),
            DataType::Time64(_) => $then!(Time64NanosecondType),
            DataType::Timestamp(TimeUnit::Second, _) => $then!(TimestampSecondType),
            DataType::Timestamp(TimeUnit::Millisecond, _) => $then!(TimestampMillisecondType),
            DataType::Timestamp(TimeUnit::Microsecond, _) => $then!(TimestampMicrosecondType),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => $then!(TimestampNanosecondType),
            DataType::Duration(TimeUnit::Second) => $then!(DurationSecondType),
            DataType::Duration(TimeUnit::Millisecond) => $then!(DurationMillisecondType),
            DataType::Duration(TimeUnit::Microsecond) => $then!(DurationMicrosecondType),
            DataType::Duration(TimeUnit::Nanosecond) => $then!(DurationNanosecondType),
            _ => $otherwise,
        }
    };
}

fn no_order(data_type: &DataType) -> Error {
    Error::unsupported(format!("min and max have no order for type {data_type}"))
}

impl Sortable {
    /// The sortable form of `column`; entries of NULL rows mean nothing.
    pub fn new(column: &ArrayRef) -> Result<Sortable> {
        let data_type = column.data_type();
        Ok(match form(data_type) {
            Form::Small => {
                macro_rules! widen {
                    ($t:ty) => {
                        column.as_primitive::<$t>().values().iter().map(|v| *v as i64).collect()
                    };
                }
                Sortable::Small(match data_type {
                    DataType::Boolean => column.as_boolean().values().iter().map(i64::from).collect(),
                    DataType::Float32 => {
                        column.as_primitive::<Float32Type>().values().iter().map(|v| image(*v as f64)).collect()
                    }
                    DataType::Float64 => {
                        column.as_primitive::<Float64Type>().values().iter().map(|v| image(*v)).collect()
                    }
                    other => small_types!(other, widen, return Err(no_order(other))),
                })
            }
            Form::Wide => Sortable::Wide(match data_type {
                DataType::UInt64 => column.as_primitive::<UInt64Type>().values().iter().map(|v| *v as i128).collect(),
                DataType::Decimal128(_, _) => column.as_primitive::<Decimal128Type>().values().to_vec(),
                _ => column
                    .as_primitive::<IntervalMonthDayNanoType>()
                    .values()
                    .iter()
                    .map(|v| interval_key(*v))
                    .collect(),
            }),
            Form::Bytes => Sortable::Bytes(BatchColumn::new(column)?),
        })
    }
}

/// One of the three forms of an ordered value.
pub trait Ordered {
    /// As kept in state.
    type Kept: Ord + Clone + Send + Borrow<Self::Seen>;
    /// As seen in a batch, without copying.
    type Seen: Ord + ?Sized;

    fn seen(batch: &Sortable, i: usize) -> &Self::Seen;
    fn keep(seen: &Self::Seen) -> Self::Kept;
    /// Bytes outside the fixed part of a kept value.
    fn heap(seen: &Self::Seen) -> usize;
    /// The values back as an array of `data_type`.
    fn array(values: &[Option<Self::Kept>], data_type: &DataType) -> Result<ArrayRef>;
}

pub struct Small;
pub struct Wide;
pub struct Bytes;

impl Ordered for Small {
    type Kept = i64;
    type Seen = i64;

    #[inline(always)]
    fn seen(batch: &Sortable, i: usize) -> &i64 {
        match batch {
            Sortable::Small(v) => &v[i],
            _ => &0,
        }
    }

    #[inline(always)]
    fn keep(seen: &i64) -> i64 {
        *seen
    }

    fn heap(_: &i64) -> usize {
        0
    }

    fn array(values: &[Option<i64>], data_type: &DataType) -> Result<ArrayRef> {
        macro_rules! narrow {
            ($t:ty) => {{
                let narrow = values.iter().map(|v| v.map(|v| v as <$t as ArrowPrimitiveType>::Native));
                Arc::new(narrow.collect::<PrimitiveArray<$t>>().with_data_type(data_type.clone())) as ArrayRef
            }};
        }
        Ok(match data_type {
            DataType::Boolean => Arc::new(values.iter().map(|v| v.map(|v| v != 0)).collect::<BooleanArray>()),
            DataType::Float32 => {
                Arc::new(values.iter().map(|v| v.map(|v| from_image(v) as f32)).collect::<Float32Array>())
            }
            DataType::Float64 => Arc::new(values.iter().map(|v| v.map(from_image)).collect::<Float64Array>()),
            other => small_types!(other, narrow, return Err(no_order(other))),
        })
    }
}

impl Ordered for Wide {
    type Kept = i128;
    type Seen = i128;

    #[inline(always)]
    fn seen(batch: &Sortable, i: usize) -> &i128 {
        match batch {
            Sortable::Wide(v) => &v[i],
            _ => &0,
        }
    }

    #[inline(always)]
    fn keep(seen: &i128) -> i128 {
        *seen
    }

    fn heap(_: &i128) -> usize {
        0
    }

    fn array(values: &[Option<i128>], data_type: &DataType) -> Result<ArrayRef> {
        Ok(match data_type {
            DataType::UInt64 => {
                Arc::new(values.iter().map(|v| v.map(|v| v as u64)).collect::<PrimitiveArray<UInt64Type>>())
            }
            DataType::Decimal128(_, _) => Arc::new(
                values.iter().copied().collect::<PrimitiveArray<Decimal128Type>>().with_data_type(data_type.clone()),
            ),
            _ => Arc::new(
                values.iter().map(|v| v.map(from_interval_key)).collect::<PrimitiveArray<IntervalMonthDayNanoType>>(),
            ),
        })
    }
}

impl Ordered for Bytes {
    type Kept = Box<[u8]>;
    type Seen = [u8];

    #[inline(always)]
    fn seen(batch: &Sortable, i: usize) -> &[u8] {
        match batch {
            Sortable::Bytes(column) => column.bytes(i),
            _ => &[],
        }
    }

    fn keep(seen: &[u8]) -> Box<[u8]> {
        seen.into()
    }

    fn heap(seen: &[u8]) -> usize {
        seen.len()
    }

    fn array(values: &[Option<Box<[u8]>>], data_type: &DataType) -> Result<ArrayRef> {
        Ok(match data_type {
            DataType::Utf8View | DataType::Utf8 | DataType::LargeUtf8 => {
                let texts = values
                    .iter()
                    .map(|v| v.as_deref().map(std::str::from_utf8).transpose())
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|_| Error::internal("text in state is not UTF-8"))?;
                cast(&texts.into_iter().collect::<StringViewArray>(), data_type)?
            }
            DataType::BinaryView | DataType::Binary | DataType::LargeBinary => {
                cast(&values.iter().map(|v| v.as_deref()).collect::<BinaryViewArray>(), data_type)?
            }
            nested => {
                let encoder = KeyEncoder::new(std::slice::from_ref(nested))?;
                let null = encoder.encode(&[arrow::array::new_null_array(nested, 1)])?;
                let rows = values.iter().map(|v| v.as_deref().unwrap_or(null.row(0).data()));
                encoder
                    .decode(rows)?
                    .into_iter()
                    .next()
                    .ok_or_else(|| Error::internal("a decoded row lost its column"))?
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_floats_keep_their_order_with_nan_last() {
        let ordered = [f64::NEG_INFINITY, -2.5, -1e-300, 0.0, 5e-324, 1.0, f64::INFINITY, f64::NAN];
        assert!(ordered.windows(2).all(|w| image(w[0]) < image(w[1])));
        assert_eq!(image(-0.0), image(0.0));
        assert_eq!(image(-f64::NAN), image(f64::NAN));
        assert!(ordered[..7].iter().all(|v| from_image(image(*v)) == *v) && from_image(image(f64::NAN)).is_nan());
    }

    #[test]
    fn interval_keys_order_by_months_then_days_then_nanoseconds() {
        let ordered = [(-1, 5, 0), (0, -3, 9), (0, 0, -1), (0, 0, 0), (0, 1, -5), (1, -40, 0)];
        let keys: Vec<i128> =
            ordered.iter().map(|(m, d, n)| interval_key(IntervalMonthDayNano::new(*m, *d, *n))).collect();
        assert!(keys.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(from_interval_key(keys[1]), IntervalMonthDayNano::new(0, -3, 9));
    }
}
