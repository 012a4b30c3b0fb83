//! Rows of the relation that the tests use, as Rust values and as batches.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef};
use flow::{ChangeBatch, Diff};
use state::Snapshot;

/// (key, text, number, list of numbers)
pub type Row = (i64, Option<String>, i64, Option<Vec<i32>>);

pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, true),
        Field::new("text", DataType::Utf8View, true),
        Field::new("n", DataType::Int64, true),
        Field::new("list", DataType::List(Arc::new(Field::new("item", DataType::Int32, true))), true),
    ]))
}

pub fn row(k: i64, n: i64) -> Row {
    let text = match n % 4 {
        0 => None,
        1 => Some(format!("t{n}")),
        _ => Some(format!("a text that is longer than a view holds inline, number {n}")),
    };
    (k, text, n, (n % 3 > 0).then(|| vec![n as i32; (n % 3) as usize]))
}

pub fn batch(rows: &[Row]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0))),
        Arc::new(StringViewArray::from_iter(rows.iter().map(|r| r.1.as_deref()))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.2))),
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(
            rows.iter().map(|r| r.3.as_ref().map(|l| l.iter().map(|v| Some(*v)).collect::<Vec<_>>())),
        )),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

pub fn change(rows: &[(Row, i64)]) -> ChangeBatch {
    let (rows, weights): (Vec<Row>, Vec<i64>) = rows.iter().cloned().unzip();
    ChangeBatch::new(batch(&rows), Diff::from_weights(weights))
}

pub fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let (k, text) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_string_view());
    let (n, list) = (batch.column(2).as_primitive::<Int64Type>(), batch.column(3).as_list::<i32>());
    let text_of = |i: usize| text.is_valid(i).then(|| text.value(i).to_owned());
    let list_of = |i: usize| list.is_valid(i).then(|| list.value(i).as_primitive::<Int32Type>().values().to_vec());
    (0..batch.num_rows()).map(|i| (k.value(i), text_of(i), n.value(i), list_of(i))).collect()
}

/// All rows of a snapshot, sorted, read in batches of `batch_rows`.
pub fn scanned(snapshot: &Snapshot, batch_rows: usize) -> Vec<Row> {
    let mut rows = vec![];
    for batch in snapshot.scan(None, batch_rows).unwrap() {
        let batch = batch.unwrap();
        assert!(batch.num_rows() > 0 && batch.num_rows() <= batch_rows);
        rows.extend(rows_of(&batch));
    }
    rows.sort();
    rows
}

pub fn keys(keys: impl IntoIterator<Item = i64>) -> Vec<ArrayRef> {
    vec![Arc::new(Int64Array::from_iter_values(keys))]
}
