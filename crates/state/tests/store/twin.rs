//! Seeded random histories against a list of (row, born, died).

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use flow::{Epoch, SqlState};
use rand::prelude::*;
use rand::rngs::StdRng;
use state::{Pin, Pins, RowId, Snapshot, Store};

use crate::rows::*;

#[derive(Default)]
struct Twin {
    rows: Vec<(Row, u64, u64)>,
}

impl Twin {
    fn alive(&self) -> Vec<Row> {
        self.rows.iter().filter(|r| r.2 == u64::MAX).map(|r| r.0.clone()).collect()
    }

    fn at(&self, epoch: u64) -> Vec<Row> {
        let visible = self.rows.iter().filter(|r| r.1 <= epoch && epoch < r.2);
        let mut rows: Vec<Row> = visible.map(|r| r.0.clone()).collect();
        rows.sort();
        rows
    }

    fn add(&mut self, row: Row, epoch: u64) {
        self.rows.push((row, epoch, u64::MAX));
    }

    fn remove(&mut self, row: &Row, epoch: u64) {
        self.rows.iter_mut().rev().find(|r| r.2 == u64::MAX && r.0 == *row).expect("twin has the row").2 = epoch;
    }
}

struct History {
    rng: StdRng,
    keyed: bool,
    shards: usize,
    /// Range of keys.
    space: i64,
}

impl History {
    fn shard(&self, row: &Row) -> usize {
        row.0 as usize % self.shards
    }

    /// A consistent set of changes for one call, applied to the twin, with noise that cancels out.
    fn changes(&mut self, twin: &mut Twin, epoch: u64, size: usize) -> Vec<(Row, i64)> {
        let mut net: BTreeMap<Row, i64> = BTreeMap::new();
        let mut touched = std::collections::HashSet::new();
        for _ in 0..size {
            let k = self.rng.random_range(0..self.space);
            if self.keyed && !touched.insert(k) {
                continue;
            }
            let n = self.rng.random_range(0..if self.keyed { 1000 } else { 6 });
            let of_key: Vec<Row> = twin.alive().into_iter().filter(|r| r.0 == k).collect();
            let add = row(k, n);
            match of_key.choose(&mut self.rng).cloned() {
                Some(old) if self.rng.random_bool(if self.keyed { 1.0 } else { 0.5 }) => {
                    twin.remove(&old, epoch);
                    *net.entry(old.clone()).or_default() -= 1;
                    if self.rng.random_bool(0.6) {
                        twin.add(add.clone(), epoch);
                        *net.entry(add).or_default() += 1;
                    }
                }
                _ => {
                    twin.add(add.clone(), epoch);
                    *net.entry(add).or_default() += 1;
                }
            }
        }
        let mut changes: Vec<(Row, i64)> = vec![];
        for (row, weight) in net {
            if self.rng.random_bool(0.1) {
                changes.extend([(row.clone(), 1), (row.clone(), -1)]);
            }
            match self.rng.random_bool(0.5) {
                true => changes.extend((0..weight.abs()).map(|_| (row.clone(), weight.signum()))),
                false if weight != 0 => changes.push((row, weight)),
                false => {}
            }
        }
        changes.shuffle(&mut self.rng);
        changes
    }

    fn check(&mut self, store: &Store, snapshot: &Snapshot, expect: &[Row]) {
        let batch_rows = *[1, 3, 50, 8192].choose(&mut self.rng).unwrap();
        assert_eq!(scanned(snapshot, batch_rows), expect, "scan at {}", snapshot.epoch());
        assert_eq!(snapshot.num_rows(), expect.len());
        let parts = self.rng.random_range(1..4);
        let mut rows = vec![];
        for part in 0..parts {
            for batch in snapshot.scan_part(part, parts, Some(&[2]), 100).unwrap() {
                rows.extend(batch.unwrap().column(0).as_primitive::<Int64Type>().values().to_vec());
            }
        }
        rows.sort();
        let mut numbers: Vec<i64> = expect.iter().map(|r| r.2).collect();
        numbers.sort();
        assert_eq!(rows, numbers);
        let counted: usize = (0..snapshot.shards())
            .flat_map(|s| snapshot.scan_shard(s, Some(&[]), 7).unwrap())
            .map(|b| b.unwrap().num_rows())
            .sum();
        assert_eq!(counted, expect.len());
        for piece in snapshot.scan_with_ids(None, 64).unwrap() {
            let (rows, ids) = piece.unwrap();
            assert_eq!(snapshot.take(&ids, None).unwrap(), rows);
        }
        if store.key().is_some() {
            let by_key: BTreeMap<i64, &Row> = expect.iter().map(|r| (r.0, r)).collect();
            let ids = snapshot.lookup_keys(&keys(0..self.space)).unwrap();
            for k in 0..self.space {
                let found = snapshot.point(&keys([k]), None).unwrap().map(|b| rows_of(&b));
                assert_eq!(found, by_key.get(&k).map(|r| vec![(*r).clone()]), "key {k} at {}", snapshot.epoch());
                assert_eq!(ids[k as usize].is_some(), by_key.contains_key(&k));
            }
            let found = snapshot.points(&keys(0..self.space), Some(&[0])).unwrap();
            let found = found.column(0).as_primitive::<Int64Type>().values().to_vec();
            assert_eq!(found, by_key.keys().copied().collect::<Vec<_>>());
        }
    }

    fn run(mut self, seed: u64, epochs: u64) {
        let store = Store::new(schema(), self.keyed.then(|| vec![0]), self.shards).unwrap();
        let pins = Pins::new();
        let mut twin = Twin::default();
        let mut held: Vec<(Pin, Option<Snapshot>)> = vec![];
        for epoch in (1..=epochs).map(|e| e * 2) {
            println!("seed {seed} epoch {epoch}");
            for _ in 0..self.rng.random_range(0..3) {
                let size = *[1, 1, 2, 10, 40].choose(&mut self.rng).unwrap();
                let changes = self.changes(&mut twin, epoch, size);
                for shard in 0..self.shards {
                    let mine: Vec<_> = changes.iter().filter(|c| self.shard(&c.0) == shard).cloned().collect();
                    store.apply(shard, Epoch(epoch), &change(&mine)).unwrap();
                }
            }
            if self.rng.random_bool(0.2) {
                self.write_at_head(&store, &mut twin, epoch);
            }
            if self.rng.random_bool(0.5) {
                let pin = pins.pin_latest(|| Epoch(epoch));
                let early = self.rng.random_bool(0.5).then(|| store.snapshot(pin.epoch()).unwrap());
                held.push((pin, early));
            }
            while held.len() > 6 || (!held.is_empty() && self.rng.random_bool(0.3)) {
                held.remove(self.rng.random_range(0..held.len()));
            }
            if self.rng.random_bool(0.8) {
                let floor = pins.min_pinned(Epoch(epoch));
                store.maintain(floor).unwrap();
                if floor.0 > 0 {
                    let refused = store.snapshot(Epoch(floor.0 - 1)).err().map(|e| e.state());
                    assert_eq!(refused, Some(SqlState::ObjectNotInPrerequisiteState));
                }
            }
            if self.rng.random_bool(0.2) {
                let expect = twin.at(epoch);
                self.check(&store, &store.snapshot(Epoch(epoch)).unwrap(), &expect);
                self.check(&store, &store.head().unwrap(), &expect);
                for (pin, early) in &held {
                    let expect = twin.at(pin.epoch().0);
                    self.check(&store, &store.snapshot(pin.epoch()).unwrap(), &expect);
                    if let Some(early) = early {
                        self.check(&store, early, &expect);
                    }
                }
            }
        }
        drop(held);
        while store.maintain(pins.min_pinned(Epoch(epochs * 2))).unwrap() {}
        assert!(store.dead_rows() <= store.live_rows() + 64 * self.shards, "{} dead", store.dead_rows());
    }

    /// Deletes some rows by id and adds others in the same statement, as a table's writer does.
    fn write_at_head(&mut self, store: &std::sync::Arc<Store>, twin: &mut Twin, epoch: u64) {
        let head = store.head().unwrap();
        let shard = self.rng.random_range(0..self.shards);
        let (mut gone, mut added): (Vec<RowId>, Vec<Row>) = (vec![], vec![]);
        for piece in head.scan_with_ids(None, 16).unwrap() {
            let (rows, ids) = piece.unwrap();
            for (row, id) in rows_of(&rows).into_iter().zip(ids) {
                if id.shard() == shard && self.rng.random_bool(0.3) {
                    twin.remove(&row, epoch);
                    gone.push(id);
                    if self.rng.random_bool(0.5) {
                        let new = crate::rows::row(row.0, row.2 + self.rng.random_range(0..3));
                        twin.add(new.clone(), epoch);
                        added.push(new);
                    }
                }
            }
        }
        store.write(shard, Epoch(epoch), &gone, Some(&batch(&added))).unwrap();
    }
}

fn histories(keyed: bool) {
    for seed in 0..24 {
        let mut rng = StdRng::seed_from_u64(seed);
        let shards = rng.random_range(1..=4);
        let space = *[1, 5, 40, 300].choose(&mut rng).unwrap();
        History { rng, keyed, shards, space }.run(seed, 150);
    }
}

#[test]
fn keyed_histories_equal_the_twin_at_every_pinned_epoch() {
    histories(true);
}

#[test]
fn keyless_histories_equal_the_twin_at_every_pinned_epoch() {
    histories(false);
}

/// Merging with long pins, so that blocks hold dead rows that must stay, births of many epochs and gaps in row numbers.
#[test]
fn long_histories_of_one_key_stay_readable_while_pinned() {
    let store = Store::new(schema(), Some(vec![0]), 1).unwrap();
    let pins = Pins::new();
    let first = pins.pin(Epoch(1)).unwrap();
    store.apply(0, Epoch(1), &change(&[(row(0, 1), 1), (row(1, 1), 1)])).unwrap();
    let mut middle = None;
    for epoch in 2..3000i64 {
        store.apply(0, Epoch(epoch as u64), &change(&[(row(0, epoch - 1), -1), (row(0, epoch), 1)])).unwrap();
        if epoch == 1500 {
            middle = Some(pins.pin(Epoch(1500)).unwrap());
        }
        store.maintain(pins.min_pinned(Epoch(epoch as u64))).unwrap();
    }
    let at = |epoch: u64| scanned(&store.snapshot(Epoch(epoch)).unwrap(), 8192);
    let point = |epoch: u64| {
        let found = store.snapshot(Epoch(epoch)).unwrap().point(&keys([0]), Some(&[2])).unwrap().unwrap();
        found.column(0).as_primitive::<Int64Type>().value(0)
    };
    assert_eq!((at(1), point(1)), (vec![row(0, 1), row(1, 1)], 1));
    assert_eq!((at(1500), point(1500)), (vec![row(0, 1500), row(1, 1)], 1500));
    assert_eq!((at(2999), point(2999)), (vec![row(0, 2999), row(1, 1)], 2999));
    assert_eq!(store.live_rows(), 2);
    drop(first);
    while store.maintain(pins.min_pinned(Epoch(2999))).unwrap() {}
    assert_eq!((at(1500), point(1500)), (vec![row(0, 1500), row(1, 1)], 1500));
    assert!(store.dead_rows() < 1600);
    drop(middle);
    while store.maintain(pins.min_pinned(Epoch(2999))).unwrap() {}
    assert!(store.dead_rows() < 20 && store.blocks() < 16, "{} dead in {} blocks", store.dead_rows(), store.blocks());
    assert_eq!(at(2999), [row(0, 2999), row(1, 1)]);
}
