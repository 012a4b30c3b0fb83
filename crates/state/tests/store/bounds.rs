//! Memory, blocks and work stay in proportion.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringViewArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use flow::{ChangeBatch, Diff, Epoch};
use rand::prelude::*;
use rand::rngs::StdRng;
use state::{Pins, Snapshot, Store};

fn pairs() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true), Field::new("v", DataType::Int64, true)]))
}

fn pair_batch(rows: impl IntoIterator<Item = (i64, i64)>) -> RecordBatch {
    let (k, v): (Vec<i64>, Vec<i64>) = rows.into_iter().unzip();
    RecordBatch::try_new(pairs(), vec![Arc::new(Int64Array::from(k)), Arc::new(Int64Array::from(v))]).unwrap()
}

fn update(k: i64, old: i64, new: i64) -> ChangeBatch {
    ChangeBatch::new(pair_batch([(k, old), (k, new)]), Diff::Weights(vec![-1, 1].into()))
}

fn all_pairs(snapshot: &Snapshot) -> Vec<(i64, i64)> {
    let mut read: Vec<(i64, i64)> = vec![];
    for batch in snapshot.scan(None, 8192).unwrap() {
        let batch = batch.unwrap();
        let column = |c: usize| batch.column(c).as_primitive::<Int64Type>().values().to_vec();
        read.extend(column(0).into_iter().zip(column(1)));
    }
    read.sort();
    read
}

#[test]
fn view_arrays_do_not_pin_their_fetch_buffers() {
    let schema = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, true),
        Field::new("text", DataType::Utf8View, true),
    ]));
    let fetched = |base: i64| {
        let text = StringViewArray::from_iter_values((0..8192).map(|i| format!("{i:0>200}")));
        let k = Int64Array::from_iter_values(base..base + 8192);
        RecordBatch::try_new(schema.clone(), vec![Arc::new(k), Arc::new(text)]).unwrap()
    };
    for identity in [Some(vec![0]), None] {
        let store = Store::new(schema.clone(), identity, 1).unwrap();
        for epoch in 0..200 {
            let batch = fetched(epoch * 8192);
            // Two rows of 1.6 MB are kept: one by a slice, one by a filter.
            let one = BooleanArray::from_iter((0..8192).map(|i| Some(i == 77)));
            store.insert(0, Epoch(epoch as u64), &batch.slice(5, 1)).unwrap();
            store.insert(0, Epoch(epoch as u64), &filter_record_batch(&batch, &one).unwrap()).unwrap();
            store.maintain(Epoch(epoch as u64)).unwrap();
        }
        assert!(store.bytes() < 400 * 1000, "{} bytes for 400 rows of 200 bytes", store.bytes());
        let snapshot = store.head().unwrap();
        let held: usize = snapshot
            .scan(None, 8192)
            .unwrap()
            .flat_map(|b| b.unwrap().columns().to_vec())
            .map(|c| c.get_buffer_memory_size())
            .sum();
        assert!(held < 400 * 1000, "{held} bytes held by the rows read");
    }
}

#[test]
fn epochs_of_one_row_stay_cheap_and_blocks_stay_few() {
    for key in [Some(vec![0]), None] {
        let store = Store::new(pairs(), key, 1).unwrap();
        const EPOCHS: i64 = 200_000;
        for epoch in 0..EPOCHS {
            store.insert(0, Epoch(epoch as u64), &pair_batch([(epoch, epoch)])).unwrap();
            store.maintain(Epoch(epoch as u64)).unwrap();
            if epoch % 1000 == 999 {
                assert!(store.blocks() <= 7 * 6 + epoch as usize / 32_768 + 1, "{} blocks", store.blocks());
            }
        }
        let snapshot = store.head().unwrap();
        assert_eq!(snapshot.num_rows(), EPOCHS as usize);
        let per_row = store.rows_touched() as f64 / EPOCHS as f64;
        assert!(per_row < 10.0, "{per_row} rows touched per row added");
        assert!(store.bytes() < EPOCHS as usize * 80, "{} bytes", store.bytes());
    }
}

#[test]
fn a_hot_key_updated_a_million_times_stays_small() {
    let store = Store::new(pairs(), Some(vec![0]), 1).unwrap();
    store.insert(0, Epoch(1), &pair_batch((0..100).map(|k| (k, 0)))).unwrap();
    for version in 0..1_000_000i64 {
        let epoch = Epoch(version as u64 / 10 + 2);
        store.apply(0, epoch, &update(7, version, version + 1)).unwrap();
        if version % 10 == 9 {
            store.maintain(epoch).unwrap();
        }
        if version % 100_000 == 0 {
            assert!(store.dead_rows() < 1000 && store.blocks() < 60 && store.bytes() < 200_000);
        }
    }
    let row = store.head().unwrap().point(&[Arc::new(Int64Array::from(vec![7])) as ArrayRef], None).unwrap().unwrap();
    assert_eq!(row.column(1).as_primitive::<Int64Type>().value(0), 1_000_000);
    assert!(store.dead_rows() < 1000 && store.bytes() < 200_000, "{} dead, {} bytes", store.dead_rows(), store.bytes());
    assert!(store.rows_touched() < 20 * 1_000_000, "{} rows touched", store.rows_touched());
}

/// Cold keys between hot ones: every old block keeps a few rows for ever. Readers that hold an epoch for a while see it
/// through all the rewriting of large blocks.
#[test]
fn blocks_that_lose_most_rows_are_joined() {
    let store = Store::new(pairs(), Some(vec![0]), 1).unwrap();
    const KEYS: i64 = 20_000;
    let mut rng = StdRng::seed_from_u64(3);
    let mut values = vec![0i64; KEYS as usize];
    store.insert(0, Epoch(1), &pair_batch((0..KEYS).map(|k| (k, 0)))).unwrap();
    let pins = Pins::new();
    let mut held = VecDeque::new();
    for epoch in 2..2000u64 {
        if epoch % 50 == 0 {
            held.push_back((pins.pin(Epoch(epoch - 1)).unwrap(), values.clone()));
        }
        if let Some((pin, expect)) = (held.len() > 3).then(|| held.pop_front()).flatten() {
            let snapshot = store.snapshot(pin.epoch()).unwrap();
            assert_eq!(all_pairs(&snapshot), (0..KEYS).zip(expect.iter().copied()).collect::<Vec<_>>());
            for k in (0..KEYS).step_by(97) {
                let row =
                    snapshot.point(&[Arc::new(Int64Array::from(vec![k])) as ArrayRef], Some(&[1])).unwrap().unwrap();
                assert_eq!(row.column(0).as_primitive::<Int64Type>().value(0), expect[k as usize]);
            }
        }
        let mut keys: Vec<usize> = (0..500).map(|_| (rng.random::<f64>().powi(3) * KEYS as f64) as usize).collect();
        keys.sort();
        keys.dedup();
        let (mut rows, mut weights) = (vec![], vec![]);
        for k in keys {
            rows.extend([(k as i64, values[k]), (k as i64, values[k] + 1)]);
            weights.extend([-1, 1]);
            values[k] += 1;
        }
        store.apply(0, Epoch(epoch), &ChangeBatch::new(pair_batch(rows), Diff::from_weights(weights))).unwrap();
        store.maintain(pins.min_pinned(Epoch(epoch))).unwrap();
    }
    drop(held);
    while store.maintain(pins.min_pinned(Epoch(1999))).unwrap() {}
    let changed: i64 = values.iter().sum::<i64>() * 2;
    assert!(store.blocks() < 80, "{} blocks", store.blocks());
    assert!(store.dead_rows() < 2 * KEYS as usize, "{} dead", store.dead_rows());
    assert!(store.rows_touched() < 12 * changed as u64, "{} touched for {changed} changed", store.rows_touched());
    assert_eq!(all_pairs(&store.head().unwrap()), (0..KEYS).zip(values).collect::<Vec<_>>());
}

#[test]
fn deleting_everything_gives_the_memory_back() {
    let store = Store::new(pairs(), Some(vec![0]), 1).unwrap();
    let rows = pair_batch((0..300_000).map(|k| (k, k)));
    store.insert(0, Epoch(1), &rows).unwrap();
    let full = store.bytes();
    let snapshot = store.snapshot(Epoch(1)).unwrap();
    store.apply(0, Epoch(2), &ChangeBatch::delete(rows)).unwrap();
    let mut calls = 1;
    while store.maintain(Epoch(2)).unwrap() {
        calls += 1;
    }
    assert_eq!((store.live_rows(), store.dead_rows(), store.blocks()), (0, 0, 0));
    assert!(store.bytes() * 20 < full, "{} of {full} bytes after {calls} calls", store.bytes());
    // A scan that began before goes on; a point read is refused.
    assert_eq!(snapshot.scan(None, 8192).unwrap().map(|b| b.unwrap().num_rows()).sum::<usize>(), 300_000);
    assert!(snapshot.point(&[Arc::new(Int64Array::from(vec![7])) as ArrayRef], None).is_err());
}

#[test]
fn one_change_in_a_large_relation_touches_few_rows() {
    let store = Store::new(pairs(), Some(vec![0]), 1).unwrap();
    store.insert(0, Epoch(1), &pair_batch((0..500_000).map(|k| (k, 0)))).unwrap();
    store.maintain(Epoch(1)).unwrap();
    let before = store.rows_touched();
    for n in 0..100i64 {
        let epoch = Epoch(n as u64 + 2);
        store.apply(0, epoch, &update(n * 4999, 0, 1)).unwrap();
        store.maintain(epoch).unwrap();
    }
    let touched = store.rows_touched() - before;
    assert!(touched < 100 * 10, "{touched} rows touched by 100 updates");
}
