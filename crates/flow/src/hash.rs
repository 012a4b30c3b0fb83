//! Our own stable hash of rows, and the vnodes made from it.
//!
//! The value decides which slot owns a key and is written into state, so it must never change: golden values are tested.
//! It is a folded 64×64→128-bit multiply per eight bytes (the construction of wyhash, Wang Yi 2019) with fixed constants.
//! Text hashes alike in every Arrow layout; −0.0 hashes as 0.0 and every NaN alike; NULL has one hash for all types.

use arrow::array::*;
use arrow::datatypes::*;

use crate::error::{Error, Result};

/// Number of virtual nodes of a job; slots own contiguous ranges of them.
pub const VNODES: usize = 256;

const SEED: u64 = 0x2d35_8dcc_aa6c_78a5;
const K1: u64 = 0x8bb8_4b93_962e_acc9;
const K2: u64 = 0x4b33_a62e_d433_d4a3;
const NULL_HASH: u64 = 0x9ae1_6a3b_2f90_404f;

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let wide = (a as u128) * (b as u128);
    (wide as u64) ^ ((wide >> 64) as u64)
}

#[inline(always)]
fn mix(h: u64, v: u64) -> u64 {
    fold(h ^ K1, v ^ K2)
}

/// The stable hash of a byte string.
#[inline]
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut h = SEED ^ (bytes.len() as u64).wrapping_mul(K1);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        h = mix(
            h,
            u64::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7]]),
        );
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let mut last = [0u8; 8];
        last[..rest.len()].copy_from_slice(rest);
        h = mix(h, u64::from_le_bytes(last));
    }
    fold(h, SEED)
}

/// The stable hash of a 64-bit value.
#[inline(always)]
pub fn hash_u64(v: u64) -> u64 {
    fold(v ^ SEED, K1)
}

/// The vnode of a row hash: its top eight bits, so that the low bits stay free for hash tables inside a slot.
#[inline(always)]
pub fn vnode(hash: u64) -> u8 {
    (hash >> 56) as u8
}

/// The slot that owns `vnode` when `slots` slots share the vnodes in contiguous ranges. `slots` is 1 ..= 256.
#[inline(always)]
pub fn slot_of_vnode(vnode: u8, slots: usize) -> usize {
    (vnode as usize * slots) / VNODES
}

/// The first column sets the hash, the following are mixed in; so a one-column key costs no extra multiply.
#[inline(always)]
fn merge(hashes: &mut [u64], first: bool, nulls: Option<&arrow::buffer::NullBuffer>, value: impl Fn(usize) -> u64) {
    for (i, slot) in hashes.iter_mut().enumerate() {
        let h = match nulls {
            Some(n) if n.is_null(i) => NULL_HASH,
            _ => value(i),
        };
        *slot = if first { h } else { mix(*slot, h) };
    }
}

fn canonical_f64(v: f64) -> u64 {
    if v == 0.0 {
        0
    } else if v.is_nan() {
        f64::NAN.to_bits()
    } else {
        v.to_bits()
    }
}

/// One hash per row over `columns`, in row order. With no columns every row hashes to the same value.
///
/// Integers of every width, dates and times hash by their numeric value; decimals by their unscaled value (the planner
/// gives both sides of an exchange one scale). Nested and other types are an internal error: the planner refuses them as
/// keys first.
pub fn hash_columns(columns: &[ArrayRef], rows: usize) -> Result<Vec<u64>> {
    let mut hashes = vec![SEED; rows];
    for (n, column) in columns.iter().enumerate() {
        hash_column(column, n == 0, &mut hashes)?;
    }
    Ok(hashes)
}

fn hash_column(column: &ArrayRef, first: bool, hashes: &mut [u64]) -> Result<()> {
    let nulls = column.nulls();
    macro_rules! ints {
        ($t:ty) => {{
            let values = column.as_primitive::<$t>().values();
            merge(hashes, first, nulls, |i| hash_u64(values[i] as i64 as u64))
        }};
    }
    match column.data_type() {
        DataType::Boolean => {
            let a = column.as_boolean();
            merge(hashes, first, nulls, |i| hash_u64(a.value(i) as u64))
        }
        DataType::Int8 => ints!(Int8Type),
        DataType::Int16 => ints!(Int16Type),
        DataType::Int32 => ints!(Int32Type),
        DataType::Int64 => ints!(Int64Type),
        DataType::UInt8 => ints!(UInt8Type),
        DataType::UInt16 => ints!(UInt16Type),
        DataType::UInt32 => ints!(UInt32Type),
        DataType::UInt64 => ints!(UInt64Type),
        DataType::Date32 => ints!(Date32Type),
        DataType::Date64 => ints!(Date64Type),
        DataType::Time32(TimeUnit::Second) => ints!(Time32SecondType),
        DataType::Time32(_) => ints!(Time32MillisecondType),
        DataType::Time64(TimeUnit::Nanosecond) => ints!(Time64NanosecondType),
        DataType::Time64(_) => ints!(Time64MicrosecondType),
        DataType::Timestamp(TimeUnit::Second, _) => ints!(TimestampSecondType),
        DataType::Timestamp(TimeUnit::Millisecond, _) => ints!(TimestampMillisecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => ints!(TimestampMicrosecondType),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => ints!(TimestampNanosecondType),
        DataType::Float32 => {
            let values = column.as_primitive::<Float32Type>().values();
            merge(hashes, first, nulls, |i| hash_u64(canonical_f64(values[i] as f64)))
        }
        DataType::Float64 => {
            let values = column.as_primitive::<Float64Type>().values();
            merge(hashes, first, nulls, |i| hash_u64(canonical_f64(values[i])))
        }
        DataType::Decimal128(_, _) => {
            let values = column.as_primitive::<Decimal128Type>().values();
            merge(hashes, first, nulls, |i| mix(hash_u64(values[i] as u64), (values[i] >> 64) as u64))
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let values = column.as_primitive::<IntervalMonthDayNanoType>().values();
            merge(hashes, first, nulls, |i| {
                let v = values[i];
                mix(mix(hash_u64(v.months as i64 as u64), v.days as i64 as u64), v.nanoseconds as u64)
            })
        }
        DataType::Utf8 => {
            let a = column.as_string::<i32>();
            merge(hashes, first, nulls, |i| hash_bytes(a.value(i).as_bytes()))
        }
        DataType::LargeUtf8 => {
            let a = column.as_string::<i64>();
            merge(hashes, first, nulls, |i| hash_bytes(a.value(i).as_bytes()))
        }
        DataType::Utf8View => {
            let a = column.as_string_view();
            merge(hashes, first, nulls, |i| hash_bytes(a.value(i).as_bytes()))
        }
        DataType::Binary => {
            let a = column.as_binary::<i32>();
            merge(hashes, first, nulls, |i| hash_bytes(a.value(i)))
        }
        DataType::LargeBinary => {
            let a = column.as_binary::<i64>();
            merge(hashes, first, nulls, |i| hash_bytes(a.value(i)))
        }
        DataType::BinaryView => {
            let a = column.as_binary_view();
            merge(hashes, first, nulls, |i| hash_bytes(a.value(i)))
        }
        DataType::FixedSizeBinary(_) => {
            let a = column.as_fixed_size_binary();
            merge(hashes, first, nulls, |i| hash_bytes(a.value(i)))
        }
        DataType::Dictionary(_, value) => {
            let plain = arrow::compute::cast(column, value)?;
            hash_column(&plain, first, hashes)?
        }
        DataType::Null => merge(hashes, first, None, |_| NULL_HASH),
        DataType::List(_) | DataType::LargeList(_) | DataType::Struct(_) | DataType::FixedSizeList(_, _) => {
            // The order-preserving row encoding gives one canonical byte string per nested value.
            let rows =
                crate::keys::KeyEncoder::new(&[column.data_type().clone()])?.encode(std::slice::from_ref(column))?;
            merge(hashes, first, nulls, |i| hash_bytes(rows.row(i).data()))
        }
        other => return Err(Error::internal(format!("no stable hash for type {other}"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn one(column: ArrayRef) -> u64 {
        hash_columns(&[column], 1).unwrap()[0]
    }

    #[test]
    fn stable_hash_never_changes() {
        assert_eq!(hash_u64(0), 14_592_010_190_165_110_953);
        assert_eq!(hash_u64(42), 14_482_374_248_593_152_351);
        assert_eq!(hash_bytes(b""), 9_689_380_407_205_744_886);
        assert_eq!(hash_bytes(b"millstream"), 18_223_283_839_137_061_532);
    }

    #[test]
    fn text_layouts_hash_alike() {
        let a = one(Arc::new(StringArray::from(vec!["a longer string than twelve bytes"])));
        let b = one(Arc::new(StringViewArray::from(vec!["a longer string than twelve bytes"])));
        let c = one(Arc::new(LargeStringArray::from(vec!["a longer string than twelve bytes"])));
        let d: DictionaryArray<Int32Type> = vec!["a longer string than twelve bytes"].into_iter().collect();
        assert!(a == b && b == c && c == one(Arc::new(d)));
    }

    #[test]
    fn negative_zero_and_nan_are_one_key() {
        assert_eq!(one(Arc::new(Float64Array::from(vec![0.0]))), one(Arc::new(Float64Array::from(vec![-0.0]))));
        assert_eq!(
            one(Arc::new(Float64Array::from(vec![f64::NAN]))),
            one(Arc::new(Float64Array::from(vec![-f64::NAN])))
        );
    }

    #[test]
    fn slots_share_the_vnodes_in_contiguous_ranges() {
        for slots in 1..=7 {
            let owners: Vec<usize> = (0..=255u8).map(|v| slot_of_vnode(v, slots)).collect();
            assert!(owners.windows(2).all(|w| w[1] == w[0] || w[1] == w[0] + 1));
            assert_eq!((owners[0], owners[255]), (0, slots - 1));
        }
    }
}
