use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::*;
use flow::keys::KeyEncoder;

use crate::ops::cells::{BatchColumn, Cells};

/// Columns of every layout, each with a NULL, a repeated value and the type's traps.
fn columns() -> Vec<ArrayRef> {
    let interval = |m, d, n| Some(IntervalMonthDayNano::new(m, d, n));
    let long = "a text that is longer than a view holds inline";
    let mut lists = ListBuilder::new(Int64Builder::new());
    for list in [Some(vec![Some(1), None]), None, Some(vec![]), Some(vec![Some(1), None])] {
        lists.append_option(list);
    }
    vec![
        Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), Some(true)])),
        Arc::new(Int8Array::from(vec![Some(-1), None, Some(127), Some(-1)])),
        Arc::new(Int16Array::from(vec![Some(i16::MIN), None, Some(0), Some(i16::MIN)])),
        Arc::new(Int32Array::from(vec![Some(i32::MIN), None, Some(0), Some(i32::MIN)])),
        Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(0), Some(i64::MIN)])),
        Arc::new(UInt64Array::from(vec![Some(u64::MAX), None, Some(0), Some(u64::MAX)])),
        Arc::new(Float32Array::from(vec![Some(f32::NAN), None, Some(1.5), Some(-f32::NAN)])),
        Arc::new(Float64Array::from(vec![Some(0.0), None, Some(f64::NAN), Some(-0.0)])),
        Arc::new(Date32Array::from(vec![Some(-7), None, Some(20_000), Some(-7)])),
        Arc::new(Time64MicrosecondArray::from(vec![Some(1), None, Some(2), Some(1)])),
        Arc::new(TimestampMicrosecondArray::from(vec![Some(5), None, Some(-5), Some(5)]).with_timezone("UTC")),
        Arc::new(
            Decimal128Array::from(vec![Some(i128::MAX / 3), None, Some(-1), Some(i128::MAX / 3)])
                .with_precision_and_scale(38, 18)
                .unwrap(),
        ),
        Arc::new(IntervalMonthDayNanoArray::from(vec![
            interval(1, -2, 3),
            None,
            interval(-1, 2, i64::MIN),
            interval(1, -2, 3),
        ])),
        Arc::new(StringArray::from(vec![Some(long), None, Some(""), Some(long)])),
        Arc::new(LargeStringArray::from(vec![Some("short"), None, Some(""), Some("short")])),
        Arc::new(StringViewArray::from(vec![Some(long), None, Some("exactly12byt"), Some(long)])),
        Arc::new(BinaryArray::from(vec![Some(&b"\xff\x00"[..]), None, Some(long.as_bytes()), Some(b"\xff\x00")])),
        Arc::new(BinaryViewArray::from(vec![Some(&b"\x00"[..]), None, Some(long.as_bytes()), Some(b"\x00")])),
        Arc::new(lists.finish()),
        Arc::new(NullArray::new(4)),
    ]
}

#[test]
fn cells_give_back_what_was_written() {
    for column in columns() {
        let batch = BatchColumn::new(&column).unwrap();
        let mut cells = Cells::new(column.data_type());
        for i in 0..4 {
            cells.write(i, &batch, i);
        }
        let back = cells.gather(&[3, 2, 1, 0]).unwrap();
        let picked = arrow::compute::take(&column, &UInt32Array::from(vec![3, 2, 1, 0]), None).unwrap();
        assert_eq!(back.data_type(), column.data_type());
        // NaN is not equal to itself as an array; the key bytes are.
        let encoder = KeyEncoder::new(&[column.data_type().clone()]).unwrap();
        let (a, b) = (encoder.encode(&[back]).unwrap(), encoder.encode(&[picked]).unwrap());
        assert!(a.iter().eq(b.iter()), "{}", column.data_type());
    }
}

#[test]
fn cells_compare_as_keys_do() {
    for column in columns() {
        let encoder = KeyEncoder::new(&[column.data_type().clone()]).unwrap();
        let keys = encoder.encode(std::slice::from_ref(&column)).unwrap();
        let batch = BatchColumn::new(&column).unwrap();
        let mut cells = Cells::new(column.data_type());
        (0..4).for_each(|i| cells.write(i, &batch, i));
        for i in 0..4 {
            for j in 0..4 {
                let same = keys.row(i) == keys.row(j);
                assert_eq!(cells.equal(i, &batch, j), same, "{} {i} {j}", column.data_type());
                assert_eq!(batch.equal_rows(i, j), same, "{} {i} {j}", column.data_type());
            }
        }
    }
}

#[test]
fn sliced_batches_are_read_from_their_own_start() {
    for column in columns() {
        let slice = column.slice(1, 2);
        let batch = BatchColumn::new(&slice).unwrap();
        let mut cells = Cells::new(column.data_type());
        (0..2).for_each(|i| cells.write(i, &batch, i));
        let back = cells.gather(&[0, 1]).unwrap();
        let encoder = KeyEncoder::new(&[column.data_type().clone()]).unwrap();
        let (a, b) = (encoder.encode(&[back]).unwrap(), encoder.encode(&[slice]).unwrap());
        assert!(a.iter().eq(b.iter()), "{}", column.data_type());
    }
}

#[test]
fn texts_move_when_garbage_outweighs_them() {
    let text = |n: usize| format!("a text that is longer than a view holds inline, number {n:06}");
    let column: ArrayRef = Arc::new((0..60_000).map(|n| Some(text(n))).collect::<StringViewArray>());
    let batch = BatchColumn::new(&column).unwrap();
    let mut cells = Cells::new(column.data_type());
    (0..60_000).for_each(|i| cells.write(i, &batch, i));
    let full = cells.bytes();
    (0..60_000).filter(|i| i % 10 != 0).for_each(|i| cells.clear(i));
    assert!(cells.bytes() < full * 2 / 3, "{} of {full}", cells.bytes());
    let left: Vec<u32> = (0..60_000).filter(|i| i % 10 == 0).collect();
    let back = cells.gather(&left).unwrap();
    assert!(back.as_string_view().iter().zip(&left).all(|(t, n)| t == Some(text(*n as usize).as_str())));
}
