//! What one change may and may not do.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema};
use flow::{ChangeBatch, Diff, Epoch, SqlState};
use state::{Identity, Store};

use crate::rows::*;

fn keyed() -> Arc<Store> {
    Store::new(schema(), Some(vec![0]), 1).unwrap()
}

fn keyless() -> Arc<Store> {
    Store::new(schema(), None, 1).unwrap()
}

/// Applies `setup`, then `changes`; the second must fail with `state` and leave everything as it was.
fn refused(store: &Arc<Store>, setup: &[(Row, i64)], changes: &[(Row, i64)], state: SqlState) {
    store.apply(0, Epoch(1), &change(setup)).unwrap();
    let before = (scanned(&store.head().unwrap(), 100), store.live_rows(), store.dead_rows());
    let e = store.apply(0, Epoch(2), &change(changes)).unwrap_err();
    assert_eq!(e.state(), state, "{e}");
    assert_eq!((scanned(&store.head().unwrap(), 100), store.live_rows(), store.dead_rows()), before);
}

#[test]
fn deleting_an_absent_row_is_a_changelog_violation_and_changes_nothing() {
    let violation = SqlState::InternalError;
    refused(&keyed(), &[(row(1, 1), 1)], &[(row(3, 1), 1), (row(2, 1), -1)], violation);
    refused(&keyed(), &[(row(1, 1), 1)], &[(row(1, 2), -1)], violation);
    refused(&keyed(), &[(row(1, 1), 1)], &[(row(1, 2), -1), (row(1, 3), 1)], violation);
    refused(&keyed(), &[(row(1, 1), 1)], &[(row(1, 1), -2)], violation);
    refused(&keyless(), &[(row(1, 1), 2)], &[(row(5, 1), 1), (row(1, 1), -3)], violation);
    refused(&keyless(), &[(row(1, 1), 2)], &[(row(1, 2), -1)], violation);
}

#[test]
fn a_second_row_for_a_unique_key_is_refused_and_changes_nothing() {
    let duplicate = SqlState::UniqueViolation;
    refused(&keyed(), &[(row(1, 1), 1)], &[(row(2, 1), 1), (row(1, 2), 1)], duplicate);
    refused(&keyed(), &[(row(1, 1), 1)], &[(row(2, 1), 1), (row(2, 2), 1)], duplicate);
    refused(&keyed(), &[(row(1, 1), 1)], &[(row(2, 1), 2)], duplicate);
    refused(&keyed(), &[(row(1, 1), 1)], &[(row(1, 1), 1)], duplicate);
    let store = keyed();
    store.insert(0, Epoch(1), &batch(&[row(1, 1)])).unwrap();
    let e = store.insert(0, Epoch(1), &batch(&[row(1, 2)])).unwrap_err();
    assert_eq!((e.state(), e.detail()), (duplicate, Some("Key (k)=(1) already exists.")));
}

#[test]
fn order_inside_a_batch_does_not_matter() {
    let changes = [
        (row(1, 1), -1),
        (row(1, 2), 1),
        (row(1, 2), -1),
        (row(1, 3), 1),
        (row(2, 1), 1),
        (row(2, 1), -1),
        (row(3, 1), 1),
    ];
    for rotate in 0..changes.len() {
        let mut changes = changes.clone();
        changes.rotate_left(rotate);
        for store in [keyed(), keyless()] {
            store.apply(0, Epoch(1), &change(&[(row(1, 1), 1)])).unwrap();
            store.apply(0, Epoch(2), &change(&changes)).unwrap();
            assert_eq!(scanned(&store.head().unwrap(), 10), [row(1, 3), row(3, 1)]);
            assert_eq!(scanned(&store.snapshot(Epoch(1)).unwrap(), 10), [row(1, 1)]);
        }
    }
}

#[test]
fn duplicates_are_stored_once_and_read_as_often_as_they_occur() {
    let store = keyless();
    store.apply(0, Epoch(1), &change(&[(row(1, 1), 100_000), (row(2, 1), 1)])).unwrap();
    store.apply(0, Epoch(2), &change(&[(row(1, 1), -99_998)])).unwrap();
    assert_eq!(store.live_rows(), 2);
    assert_eq!(scanned(&store.snapshot(Epoch(2)).unwrap(), 1), [row(1, 1), row(1, 1), row(2, 1)]);
    let before = store.snapshot(Epoch(1)).unwrap();
    assert_eq!((before.num_rows(), scanned(&before, 1000).len()), (100_001, 100_001));
    // By id: one copy per occurrence of the id.
    let (_, ids) = before.scan_with_ids(None, 8192).unwrap().next().unwrap().unwrap();
    assert_eq!(store.delete_rows(0, Epoch(3), &ids[..1]).unwrap_err().state(), SqlState::InternalError);
    let head = store.head().unwrap();
    let ids: Vec<_> = head.scan_with_ids(None, 8192).unwrap().flat_map(|p| p.unwrap().1).collect();
    let copies: Vec<_> = ids.iter().filter(|id| ids.iter().filter(|other| other == id).count() == 2).copied().collect();
    store.delete_rows(0, Epoch(3), &copies[..1]).unwrap();
    assert_eq!(scanned(&store.head().unwrap(), 10), [row(1, 1), row(2, 1)]);
    assert!(store.delete_rows(0, Epoch(4), &copies).is_err());
}

#[test]
fn an_unindexed_store_only_grows_or_loses_rows_by_id() {
    let store = Store::with_identity(schema(), Identity::Unindexed, 2).unwrap();
    store.apply(1, Epoch(1), &change(&[(row(1, 1), 1), (row(1, 1), 3), (row(2, 1), 1)])).unwrap();
    assert!(store.apply(1, Epoch(1), &change(&[(row(1, 1), -1)])).is_err());
    let head = store.head().unwrap();
    let (_, ids) = head.scan_with_ids(None, 100).unwrap().next().unwrap().unwrap();
    assert_eq!(ids.len(), 5);
    store.delete_rows(1, Epoch(2), &[ids[0], ids[4]]).unwrap();
    assert_eq!(scanned(&store.head().unwrap(), 10), [row(1, 1), row(1, 1), row(1, 1)]);
    while store.maintain(Epoch(2)).unwrap() {}
    assert_eq!(scanned(&store.head().unwrap(), 10).len(), 3);
    assert!(store.head().unwrap().point(&keys([1]), None).is_err());
}

#[test]
fn a_global_aggregate_has_the_empty_key() {
    let store = Store::new(schema(), Some(vec![]), 1).unwrap();
    store.apply(0, Epoch(1), &change(&[(row(0, 1), 1)])).unwrap();
    store.apply(0, Epoch(2), &change(&[(row(0, 1), -1), (row(0, 2), 1)])).unwrap();
    assert_eq!(rows_of(&store.head().unwrap().point(&[], None).unwrap().unwrap()), [row(0, 2)]);
    assert!(store.apply(0, Epoch(3), &change(&[(row(5, 5), 1)])).is_err());
}

#[test]
fn a_relation_without_columns_counts_rows() {
    let empty = Arc::new(Schema::empty());
    let rows = |n| {
        RecordBatch::try_new_with_options(empty.clone(), vec![], &RecordBatchOptions::new().with_row_count(Some(n)))
    };
    let store = Store::new(empty.clone(), None, 1).unwrap();
    store.apply(0, Epoch(1), &ChangeBatch::insert(rows(5).unwrap())).unwrap();
    store.apply(0, Epoch(2), &ChangeBatch::delete(rows(2).unwrap())).unwrap();
    let read = |epoch| {
        store.snapshot(Epoch(epoch)).unwrap().scan(None, 2).unwrap().map(|b| b.unwrap().num_rows()).sum::<usize>()
    };
    assert_eq!((read(1), read(2)), (5, 3));
}

#[test]
fn null_negative_zero_and_nan_are_keys() {
    let schema =
        Arc::new(Schema::new(vec![Field::new("f", DataType::Float64, true), Field::new("n", DataType::Int64, true)]));
    let store = Store::new(schema.clone(), Some(vec![0]), 1).unwrap();
    let rows = |f: Vec<Option<f64>>, n: i64| {
        let n = Int64Array::from_value(n, f.len());
        RecordBatch::try_new(schema.clone(), vec![Arc::new(Float64Array::from(f)), Arc::new(n)]).unwrap()
    };
    store.insert(0, Epoch(1), &rows(vec![Some(0.0), Some(f64::NAN), None], 1)).unwrap();
    for again in [Some(-0.0), Some(-f64::NAN), None] {
        assert!(store.insert(0, Epoch(2), &rows(vec![again], 1)).is_err());
        let key: ArrayRef = Arc::new(Float64Array::from(vec![again]));
        assert!(store.head().unwrap().point(&[key], None).unwrap().is_some());
    }
    assert_eq!(store.repeated_key(&rows(vec![Some(1.0), Some(-0.0), None, Some(0.0)], 1)).unwrap(), Some((1, 3)));
    store.apply(0, Epoch(2), &ChangeBatch::delete(rows(vec![Some(-0.0), Some(-f64::NAN), None], 1))).unwrap();
    assert_eq!(store.head().unwrap().num_rows(), 0);
}

#[test]
fn what_does_not_fit_is_refused() {
    let store = keyed();
    let other = Arc::new(Schema::new(vec![Field::new("k", DataType::Int32, true)]));
    assert!(store.insert(0, Epoch(1), &RecordBatch::new_empty(other)).is_ok());
    let other = RecordBatch::try_from_iter([("k", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
    assert!(store.insert(0, Epoch(1), &other).is_err());
    assert!(store.insert(1, Epoch(1), &batch(&[row(1, 1)])).is_err());
    store.insert(0, Epoch(5), &batch(&[row(1, 1)])).unwrap();
    assert!(store.insert(0, Epoch(4), &batch(&[row(2, 1)])).is_err());
    assert!(store.insert(0, Epoch::MAX, &batch(&[row(2, 1)])).is_err());
    store.maintain(Epoch(6)).unwrap();
    assert!(store.insert(0, Epoch(5), &batch(&[row(2, 1)])).is_err());
    let weights = ChangeBatch { rows: batch(&[row(2, 1), row(3, 1)]), diff: Diff::Weights(vec![1].into()) };
    assert!(store.apply(0, Epoch(7), &weights).is_err());
    let head = store.head().unwrap();
    assert!(head.point(&[Arc::new(arrow::array::Int32Array::from(vec![1])) as ArrayRef], None).is_err());
    assert!(head.point(&[], None).is_err() && head.point(&keys([1, 2]), None).is_err());
    assert!(head.scan(Some(&[9]), 10).is_err() && head.scan_shard(3, None, 10).is_err());
    assert!(Store::new(schema(), Some(vec![9]), 1).is_err() && Store::new(schema(), None, 0).is_err());
}
