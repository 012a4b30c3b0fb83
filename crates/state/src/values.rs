//! Typed access to single cells, for comparing the few rows that a hash probe leaves over.
//!
//! Equality here must agree with `flow::hash` and `flow::keys`: −0.0 equals 0.0, every NaN equals every NaN, NULL equals
//! NULL. If it were finer than the hash, a deletion would miss its row; if it were coarser, two keys would become one.

use std::sync::OnceLock;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, RecordBatch};
use arrow::buffer::{BooleanBuffer, NullBuffer, ScalarBuffer};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit,
};
use arrow::row::Rows;
use flow::Result;
use flow::keys::KeyEncoder;

/// One column, downcast once, whose cells can be compared with those of another column of the same type.
pub(crate) struct Values {
    nulls: Option<NullBuffer>,
    data: Data,
}

enum Data {
    Null,
    Bool(BooleanBuffer),
    W1(ScalarBuffer<i8>),
    W2(ScalarBuffer<i16>),
    W4(ScalarBuffer<i32>),
    W8(ScalarBuffer<i64>),
    W16(ScalarBuffer<i128>),
    F32(ScalarBuffer<f32>),
    F64(ScalarBuffer<f64>),
    Interval(ScalarBuffer<IntervalMonthDayNano>),
    View(BinaryViewArray),
    Bytes(BinaryArray),
    /// Nested and rare types, by their canonical key bytes.
    Encoded(Rows),
}

impl Values {
    /// Fails for types that have no key encoding.
    pub(crate) fn new(column: &ArrayRef) -> Result<Values> {
        let data = match column.data_type() {
            DataType::Null => Data::Null,
            DataType::Boolean => Data::Bool(column.as_boolean().values().clone()),
            DataType::Float32 => Data::F32(column.as_primitive::<Float32Type>().values().clone()),
            DataType::Float64 => Data::F64(column.as_primitive::<Float64Type>().values().clone()),
            DataType::Interval(IntervalUnit::MonthDayNano) => {
                Data::Interval(column.as_primitive::<IntervalMonthDayNanoType>().values().clone())
            }
            DataType::Utf8View => Data::View(column.as_string_view().clone().to_binary_view()),
            DataType::BinaryView => Data::View(column.as_binary_view().clone()),
            DataType::Utf8 => Data::Bytes(BinaryArray::from(column.as_string::<i32>().clone())),
            DataType::Binary => Data::Bytes(column.as_binary::<i32>().clone()),
            other => match other.primitive_width() {
                Some(width @ (1 | 2 | 4 | 8 | 16)) => {
                    let data = column.to_data();
                    let (buffer, offset, len) = (data.buffers()[0].clone(), data.offset(), data.len());
                    match width {
                        1 => Data::W1(ScalarBuffer::new(buffer, offset, len)),
                        2 => Data::W2(ScalarBuffer::new(buffer, offset, len)),
                        4 => Data::W4(ScalarBuffer::new(buffer, offset, len)),
                        8 => Data::W8(ScalarBuffer::new(buffer, offset, len)),
                        _ => Data::W16(ScalarBuffer::new(buffer, offset, len)),
                    }
                }
                _ => {
                    let encoder = KeyEncoder::new(std::slice::from_ref(other))?;
                    Data::Encoded(encoder.encode(std::slice::from_ref(column))?)
                }
            },
        };
        Ok(Values { nulls: column.logical_nulls(), data })
    }

    #[inline]
    fn is_null(&self, i: usize) -> bool {
        self.nulls.as_ref().is_some_and(|n| n.is_null(i))
    }

    /// Whether cell `i` here and cell `j` of `other`, a column of the same type, are one key.
    #[inline]
    pub(crate) fn same(&self, i: usize, other: &Values, j: usize) -> bool {
        match (self.is_null(i), other.is_null(j)) {
            (false, false) => {}
            (a, b) => return a && b,
        }
        match (&self.data, &other.data) {
            (Data::W8(a), Data::W8(b)) => a[i] == b[j],
            (Data::W4(a), Data::W4(b)) => a[i] == b[j],
            (Data::View(a), Data::View(b)) => same_view(a, i, b, j),
            (Data::W16(a), Data::W16(b)) => a[i] == b[j],
            (Data::F64(a), Data::F64(b)) => a[i] == b[j] || (a[i].is_nan() && b[j].is_nan()),
            (Data::F32(a), Data::F32(b)) => a[i] == b[j] || (a[i].is_nan() && b[j].is_nan()),
            (Data::Bool(a), Data::Bool(b)) => a.value(i) == b.value(j),
            (Data::W2(a), Data::W2(b)) => a[i] == b[j],
            (Data::W1(a), Data::W1(b)) => a[i] == b[j],
            (Data::Interval(a), Data::Interval(b)) => a[i] == b[j],
            (Data::Bytes(a), Data::Bytes(b)) => a.value(i) == b.value(j),
            (Data::Encoded(a), Data::Encoded(b)) => a.row(i).data() == b.row(j).data(),
            (Data::Null, Data::Null) => true,
            // Columns of different types are refused where batches and keys enter the store.
            _ => false,
        }
    }
}

/// Views hold length and the first four bytes in their low half, so most unequal strings never touch their buffer.
#[inline]
fn same_view(a: &BinaryViewArray, i: usize, b: &BinaryViewArray, j: usize) -> bool {
    let (va, vb) = (a.views()[i], b.views()[j]);
    if va as u64 != vb as u64 {
        return false;
    }
    if va as u32 <= 12 { va == vb } else { a.value(i) == b.value(j) }
}

/// The columns of a batch with their [`Values`], each made when first compared.
pub(crate) struct Cells {
    columns: Vec<ArrayRef>,
    values: Box<[OnceLock<Values>]>,
}

impl Cells {
    pub(crate) fn new(batch: &RecordBatch) -> Cells {
        Cells { columns: batch.columns().to_vec(), values: (0..batch.num_columns()).map(|_| OnceLock::new()).collect() }
    }

    #[inline]
    pub(crate) fn column(&self, c: usize) -> Result<&Values> {
        match self.values[c].get() {
            Some(values) => Ok(values),
            None => {
                let values = Values::new(&self.columns[c])?;
                Ok(self.values[c].get_or_init(|| values))
            }
        }
    }

    /// Whether row `i` here and row `j` of `other` agree in `columns`.
    #[inline]
    pub(crate) fn same(&self, i: usize, other: &Cells, j: usize, columns: &[usize]) -> Result<bool> {
        for &c in columns {
            if !self.column(c)?.same(i, other.column(c)?, j) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether row `j` here holds, in `columns`, the key that is row `i` of `key`.
    #[inline]
    pub(crate) fn holds_key(&self, j: usize, columns: &[usize], key: &[Values], i: usize) -> Result<bool> {
        for (k, &c) in columns.iter().enumerate() {
            if !key[k].same(i, self.column(c)?, j) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::*;
    use arrow::datatypes::{Int32Type, TimeUnit};
    use std::sync::Arc;

    fn check(column: ArrayRef, equal: &[(usize, usize)]) {
        let values = Values::new(&column).unwrap();
        let hashes = flow::hash::hash_columns(std::slice::from_ref(&column), column.len()).unwrap();
        for i in 0..column.len() {
            for j in 0..column.len() {
                let expect = i == j || equal.contains(&(i, j)) || equal.contains(&(j, i));
                assert_eq!(values.same(i, &values, j), expect, "{:?} rows {i} and {j}", column.data_type());
                assert!(!expect || hashes[i] == hashes[j], "equal cells must hash alike");
            }
        }
    }

    #[test]
    fn cells_are_equal_exactly_when_keys_are() {
        check(Arc::new(Int64Array::from(vec![Some(1), None, Some(2), None, Some(1)])), &[(1, 3), (0, 4)]);
        check(Arc::new(Int16Array::from(vec![1, 2])), &[]);
        check(Arc::new(BooleanArray::from(vec![Some(true), Some(false), None, Some(true)])), &[(0, 3)]);
        check(Arc::new(Float64Array::from(vec![0.0, -0.0, f64::NAN, -f64::NAN, 1.0])), &[(0, 1), (2, 3)]);
        check(Arc::new(Float32Array::from(vec![0.0, -0.0, f32::NAN, -f32::NAN, 1.0])), &[(0, 1), (2, 3)]);
        check(
            Arc::new(StringViewArray::from(vec![
                "",
                "short",
                "a long string beyond the inline length",
                "a long string beyond the inline lengtH",
                "short",
                "a long string beyond the inline length",
            ])),
            &[(1, 4), (2, 5)],
        );
        check(Arc::new(BinaryArray::from_vec(vec![b"a", b"b", b"a"])), &[(0, 2)]);
        check(Arc::new(Decimal128Array::from(vec![1, 2, 1]).with_precision_and_scale(38, 18).unwrap()), &[(0, 2)]);
        check(Arc::new(TimestampMicrosecondArray::from(vec![1, 2, 1]).with_timezone("UTC")), &[(0, 2)]);
        check(Arc::new(Time64MicrosecondArray::from(vec![1, 2, 1])), &[(0, 2)]);
        let interval = |m, d, n| Some(IntervalMonthDayNano::new(m, d, n));
        check(
            Arc::new(IntervalMonthDayNanoArray::from(vec![interval(1, 2, 3), interval(1, 2, 4), interval(1, 2, 3)])),
            &[(0, 2)],
        );
        check(Arc::new(NullArray::new(2)), &[(0, 1)]);
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
            Some(vec![Some(1), None]),
            Some(vec![]),
            None,
            Some(vec![Some(1), None]),
        ]);
        check(Arc::new(list), &[(0, 3)]);
        assert_eq!(DataType::Timestamp(TimeUnit::Microsecond, None).primitive_width(), Some(8));
    }

    #[test]
    fn sliced_columns_compare_their_own_rows() {
        let column: ArrayRef = Arc::new(Int32Array::from(vec![7, 8, 9, 8]));
        let whole = Values::new(&column).unwrap();
        let slice = Values::new(&column.slice(1, 3)).unwrap();
        assert!(slice.same(0, &whole, 3) && slice.same(2, &whole, 1) && !slice.same(1, &whole, 1));
    }
}
