//! Speed of the view store: applying, point reads and scans. `cargo run --release --example store_bench [ROWS]`
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use flow::{ChangeBatch, Diff, Epoch, Result};
use rand::prelude::*;
use rand::rngs::SmallRng;
use state::{Identity, Pins, Store};

const BATCH_ROWS: usize = 8192;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8View, true),
        Field::new("count", DataType::Int64, true),
        Field::new("total", DataType::Int64, true),
    ]))
}

fn batch(rows: &[(i64, i64)]) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0))),
        Arc::new(StringViewArray::from_iter_values(rows.iter().map(|r| format!("customer number {}", r.0)))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.1 * 100))),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}

fn report(what: &str, count: usize, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!("{what:<48} {:>9.0} k/s  {:>9.0} ns each", count as f64 / seconds / 1e3, seconds * 1e9 / count as f64);
}

/// Updates of `keys`, as old and new row of each.
fn updates(values: &mut [i64], keys: &[usize]) -> Result<ChangeBatch> {
    let mut rows = Vec::with_capacity(keys.len() * 2);
    let mut weights = Vec::with_capacity(keys.len() * 2);
    for k in keys {
        rows.extend([(*k as i64, values[*k]), (*k as i64, values[*k] + 1)]);
        weights.extend([-1, 1]);
        values[*k] += 1;
    }
    Ok(ChangeBatch::new(batch(&rows)?, Diff::from_weights(weights)))
}

fn main() -> Result<()> {
    let rows: usize = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1_000_000);
    println!("{rows} rows of (int8, text, int8, int8), batches of {BATCH_ROWS}, one shard");
    let all: Vec<(i64, i64)> = (0..rows as i64).map(|k| (k, 0)).collect();
    let batches = all.chunks(BATCH_ROWS).map(batch).collect::<Result<Vec<_>>>()?;
    for (name, identity) in [("append-only", Identity::Unindexed), ("keyless", Identity::Row)] {
        let store = Store::with_identity(schema(), identity, 1)?;
        let started = Instant::now();
        for (epoch, batch) in batches.iter().enumerate() {
            store.apply(0, Epoch(epoch as u64), &ChangeBatch::insert(batch.clone()))?;
            store.maintain(Epoch(epoch as u64))?;
        }
        report(&format!("insert, {name}"), rows, started);
        println!("  {} bytes a row, {} blocks", store.bytes() / rows, store.blocks());
    }
    let store = Store::new(schema(), Some(vec![0]), 1)?;
    let mut epoch = 0;
    let started = Instant::now();
    for batch in &batches {
        epoch += 1;
        store.apply(0, Epoch(epoch), &ChangeBatch::insert(batch.clone()))?;
        store.maintain(Epoch(epoch))?;
    }
    report("insert, keyed", rows, started);
    println!("  {} bytes a row, {} blocks", store.bytes() / rows, store.blocks());

    scans(&store, Epoch(epoch), rows, "fresh")?;
    points(&store, Epoch(epoch), rows, "fresh")?;

    let mut rng = SmallRng::seed_from_u64(1);
    let mut values = vec![0i64; rows];
    let mut one_by_one = vec![];
    for _ in 0..50_000 {
        one_by_one.push(updates(&mut values, &[rng.random_range(0..rows)])?);
    }
    let (started, mut longest_apply, mut longest_maintain) = (Instant::now(), 0, 0);
    for change in &one_by_one {
        epoch += 1;
        let at = Instant::now();
        store.apply(0, Epoch(epoch), change)?;
        let applied = Instant::now();
        store.maintain(Epoch(epoch))?;
        longest_apply = longest_apply.max((applied - at).as_micros());
        longest_maintain = longest_maintain.max(applied.elapsed().as_micros());
    }
    report("update, epochs of one row", one_by_one.len(), started);
    println!("  longest apply {longest_apply} us, longest maintenance {longest_maintain} us");

    let mut changes = vec![];
    let mut keys: Vec<usize> = (0..rows).collect();
    keys.shuffle(&mut rng);
    for keys in keys.chunks(BATCH_ROWS / 2) {
        changes.push(updates(&mut values, keys)?);
    }
    let (started, mut longest_apply, mut longest_maintain) = (Instant::now(), 0, 0);
    for change in &changes {
        epoch += 1;
        let at = Instant::now();
        store.apply(0, Epoch(epoch), change)?;
        let applied = Instant::now();
        store.maintain(Epoch(epoch))?;
        longest_apply = longest_apply.max((applied - at).as_micros());
        longest_maintain = longest_maintain.max(applied.elapsed().as_micros());
    }
    report("update of every key, in random order", rows, started);
    println!("  longest apply {longest_apply} us, longest maintenance {longest_maintain} us");
    println!("  {} bytes a row, {} blocks, {} dead", store.bytes() / rows, store.blocks(), store.dead_rows());

    scans(&store, Epoch(epoch), rows, "after updates")?;
    points(&store, Epoch(epoch), rows, "after updates")?;
    beside_a_writer(&store, epoch, rows, &mut values, &mut rng)
}

fn scans(store: &Arc<Store>, epoch: Epoch, rows: usize, when: &str) -> Result<()> {
    let started = Instant::now();
    for _ in 0..10 {
        let read: usize = store.snapshot(epoch)?.scan(None, BATCH_ROWS)?.map(|b| b.map_or(0, |b| b.num_rows())).sum();
        assert_eq!(read, rows);
    }
    report(&format!("scan, {when}"), rows * 10, started);
    Ok(())
}

fn points(store: &Arc<Store>, epoch: Epoch, rows: usize, when: &str) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(2);
    let keys: Vec<i64> = (0..500_000).map(|_| rng.random_range(0..rows as i64)).collect();
    let single: Vec<ArrayRef> = keys.iter().map(|k| Arc::new(Int64Array::from(vec![*k])) as ArrayRef).collect();
    let snapshot = store.snapshot(epoch)?;
    let started = Instant::now();
    for key in &single {
        black_box(snapshot.point(std::slice::from_ref(key), None)?);
    }
    report(&format!("point read of all columns, {when}"), keys.len(), started);
    let started = Instant::now();
    for key in &single {
        black_box(store.snapshot(epoch)?.point(std::slice::from_ref(key), Some(&[2]))?);
    }
    report(&format!("snapshot and point read of one column, {when}"), keys.len(), started);
    let started = Instant::now();
    for keys in keys.chunks(BATCH_ROWS) {
        let key: ArrayRef = Arc::new(Int64Array::from(keys.to_vec()));
        black_box(snapshot.lookup_keys(&[key])?);
    }
    report(&format!("key lookup in batches, {when}"), keys.len(), started);
    Ok(())
}

fn beside_a_writer(store: &Arc<Store>, epoch: u64, rows: usize, values: &mut [i64], rng: &mut SmallRng) -> Result<()> {
    let pins = Pins::new();
    let completed = AtomicU64::new(epoch);
    let done = AtomicBool::new(false);
    let changes: Vec<ChangeBatch> = (0..20_000)
        .map(|_| {
            let mut keys: Vec<usize> = (0..10).map(|_| rng.random_range(0..rows)).collect();
            keys.sort_unstable();
            keys.dedup();
            updates(values, &keys)
        })
        .collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<()> {
            let (mut reads, mut longest, mut random) = (0, 0, SmallRng::seed_from_u64(5));
            let started = Instant::now();
            while !done.load(Relaxed) {
                let pin = pins.pin_latest(|| Epoch(completed.load(Relaxed)));
                let key: ArrayRef = Arc::new(Int64Array::from(vec![random.random_range(0..rows as i64)]));
                let at = Instant::now();
                assert!(store.snapshot(pin.epoch())?.point(&[key], None)?.is_some());
                longest = longest.max(at.elapsed().as_micros());
                reads += 1;
            }
            report("point read beside a writer", reads, started);
            println!("  longest {longest} us");
            Ok(())
        });
        let started = Instant::now();
        let mut written = Ok(());
        for (n, change) in changes.iter().enumerate() {
            let epoch = epoch + 1 + n as u64;
            written = written.and(store.apply(0, Epoch(epoch), change));
            completed.store(epoch, Relaxed);
            written = written.and(store.maintain(pins.min_pinned(Epoch(epoch))).map(|_| ()));
        }
        done.store(true, Relaxed);
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        report("epochs of ten updates beside a reader", changes.len(), started);
        written.and(read)
    })
}
