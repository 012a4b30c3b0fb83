//! The protocol as clients see it, against a fake backend.

mod clients;
mod copying;
mod fake;
mod garbage;
mod golden;
mod rates;
mod raw;

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int16Array,
    Int32Array, Int64Array, IntervalMonthDayNanoArray, ListArray, RecordBatch, StringArray, StringViewArray,
    Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Int32Type, IntervalMonthDayNano};

/// One row of values and one of NULLs, of every basic type.
fn every_type() -> RecordBatch {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("bool", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("int2", Arc::new(Int16Array::from(vec![Some(-2), None]))),
        ("int4", Arc::new(Int32Array::from(vec![Some(4), None]))),
        ("int8", Arc::new(Int64Array::from(vec![Some(i64::MIN), None]))),
        ("float4", Arc::new(Float32Array::from(vec![Some(1.5), None]))),
        ("float8", Arc::new(Float64Array::from(vec![Some(0.1), None]))),
        ("numeric", Arc::new(Decimal128Array::from(vec![Some(12345), None]).with_precision_and_scale(10, 2).unwrap())),
        ("text", Arc::new(StringViewArray::from(vec![Some("häuser"), None]))),
        ("utf8", Arc::new(StringArray::from(vec![Some(""), None]))),
        ("bytea", Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None]))),
        ("date", Arc::new(Date32Array::from(vec![Some(19_724), None]))),
        ("time", Arc::new(Time64MicrosecondArray::from(vec![Some(3_723_000_001), None]))),
        ("timestamp", Arc::new(TimestampMicrosecondArray::from(vec![Some(1_704_164_645_500_000), None]))),
        (
            "timestamptz",
            Arc::new(TimestampMicrosecondArray::from(vec![Some(1_704_164_645_500_000), None]).with_timezone("UTC")),
        ),
        (
            "interval",
            Arc::new(IntervalMonthDayNanoArray::from(vec![
                Some(IntervalMonthDayNano::new(14, 3, 4_500_000_000)),
                None,
            ])),
        ),
        (
            "int4[]",
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), None, Some(3)]), None])),
        ),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}
