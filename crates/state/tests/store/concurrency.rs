//! Readers beside the writer see complete epochs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Release};

use arrow::array::AsArray;
use arrow::compute::sum;
use arrow::datatypes::Int64Type;
use flow::Epoch;
use rand::prelude::*;
use rand::rngs::StdRng;
use state::{Pins, Store};

use crate::rows::*;

const ACCOUNTS: i64 = 50;

/// Transfers between accounts in two shards: in every epoch all accounts are there once and their sum is zero.
fn transfers(seed: u64, epochs: u64, scan: impl Fn(&Arc<Store>, Epoch, &mut StdRng) + Sync) {
    let store = Store::new(schema(), Some(vec![0]), 2).unwrap();
    let pins = Pins::new();
    let completed = AtomicU64::new(1);
    let done = AtomicBool::new(false);
    // Texts follow from the balance, so a torn row would show.
    let account = |k: i64, balance: i64| (k, Some(format!("the balance of account {k} is {balance}")), balance, None);
    let shard = |k: i64| k as usize % 2;
    let mut balances = vec![0i64; ACCOUNTS as usize];
    for k in 0..ACCOUNTS {
        store.insert(shard(k), Epoch(1), &batch(&[account(k, 0)])).unwrap();
    }
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (store, pins, completed, done, scan) = (&store, &pins, &completed, &done, &scan);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed * 10 + reader);
                let mut reads = 0;
                while !done.load(Acquire) || reads == 0 {
                    let pin = pins.pin_latest(|| Epoch(completed.load(Acquire)));
                    for _ in 0..rng.random_range(1..5) {
                        scan(store, pin.epoch(), &mut rng);
                        reads += 1;
                    }
                }
            });
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let writing = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for epoch in 2..epochs {
                let old = balances.clone();
                for _ in 0..rng.random_range(1..4) {
                    let (from, to) = (rng.random_range(0..balances.len()), rng.random_range(0..balances.len()));
                    let amount = rng.random_range(1..100);
                    balances[from] -= amount;
                    balances[to] += amount;
                }
                for s in [1, 0] {
                    let mut changes = vec![];
                    for k in (0..ACCOUNTS).filter(|k| shard(*k) == s && old[*k as usize] != balances[*k as usize]) {
                        changes.push((account(k, balances[k as usize]), 1));
                        changes.push((account(k, old[k as usize]), -1));
                    }
                    store.apply(s, Epoch(epoch), &change(&changes)).unwrap();
                }
                completed.store(epoch, Release);
                store.maintain(pins.min_pinned(Epoch(epoch))).unwrap();
            }
        }));
        done.store(true, Release);
        writing.unwrap();
    });
    while store.maintain(pins.min_pinned(Epoch(epochs))).unwrap() {}
    assert!(store.dead_rows() < 200 && store.blocks() < 40, "{} dead, {} blocks", store.dead_rows(), store.blocks());
}

#[test]
fn scans_at_pinned_epochs_see_balanced_transfers() {
    transfers(1, 20_000, |store, epoch, rng| {
        let snapshot = store.snapshot(epoch).unwrap();
        let (mut total, mut rows) = (0, 0);
        for batch in snapshot.scan(None, rng.random_range(1..100)).unwrap() {
            let batch = batch.unwrap();
            total += sum(batch.column(2).as_primitive::<Int64Type>()).unwrap();
            rows += batch.num_rows();
            for row in rows_of(&batch) {
                assert_eq!(row.1.unwrap(), format!("the balance of account {} is {}", row.0, row.2));
            }
        }
        assert_eq!((total, rows), (0, ACCOUNTS as usize), "at epoch {epoch}");
        assert_eq!(snapshot.num_rows(), rows);
    });
}

#[test]
fn point_reads_at_pinned_epochs_see_balanced_transfers() {
    transfers(2, 20_000, |store, epoch, _| {
        let snapshot = store.snapshot(epoch).unwrap();
        let mut total = 0;
        for k in 0..ACCOUNTS {
            let row = snapshot.point(&keys([k]), None).unwrap().expect("every account exists in every epoch");
            let row = rows_of(&row).remove(0);
            assert_eq!((row.0, row.1.unwrap()), (k, format!("the balance of account {k} is {}", row.2)));
            total += row.2;
        }
        assert_eq!(total, 0, "at epoch {epoch}");
        assert!(snapshot.point(&keys([ACCOUNTS]), None).unwrap().is_none());
    });
}
