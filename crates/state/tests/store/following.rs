//! Those who follow a store's changes get each epoch once and whole, within bounds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Release};

use flow::Epoch;
use rand::prelude::*;
use rand::rngs::StdRng;
use state::{ChangeLog, ChangeRoom, Followed, Follower, Store};

use crate::rows::*;

fn room() -> Arc<ChangeRoom> {
    ChangeRoom::new(1 << 20, 1 << 21)
}

/// Everything that a follower can read up to `until`, as net weights by epoch.
fn read(follower: &Follower, until: u64, bytes: usize) -> BTreeMap<u64, BTreeMap<Row, i64>> {
    let mut found: BTreeMap<u64, BTreeMap<Row, i64>> = BTreeMap::new();
    loop {
        let Followed::Changes { epochs, more } = follower.read(Epoch(until), bytes) else { panic!("behind") };
        for changes in epochs {
            let net = found.entry(changes.epoch.0).or_default();
            for batch in &changes.batches {
                for (i, row) in rows_of(&batch.rows).into_iter().enumerate() {
                    *net.entry(row).or_default() += batch.weight(i);
                }
            }
            net.retain(|_, weight| *weight != 0);
        }
        if !more {
            return found;
        }
    }
}

#[test]
fn a_store_that_nobody_follows_keeps_no_changes() {
    let (store, room) = (Store::new(schema(), None, 1).unwrap(), room());
    store.apply(0, Epoch(1), &change(&[(row(1, 1), 1)])).unwrap();
    let follower = store.follow(&room);
    assert_eq!(store.changes().since(), Epoch(1));
    store.apply(0, Epoch(2), &change(&[(row(2, 1), 1)])).unwrap();
    assert!(store.changes().bytes() > 0 && room.used() == store.changes().bytes());
    drop(follower);
    assert_eq!((store.changes().bytes(), room.used()), (0, 0));
    store.apply(0, Epoch(3), &change(&[(row(3, 1), 1)])).unwrap();
    assert_eq!((store.changes().bytes(), room.used()), (0, 0));
    let again = store.follow(&room);
    assert!(!again.start_after(Epoch(2)) && again.start_after(Epoch(3)));
    assert_eq!(read(&again, 3, 1000), BTreeMap::new());
}

/// Readers of old epochs find the old rows as long as somebody may want them, and followers notice nothing.
#[test]
fn a_successor_goes_on_where_its_predecessors_end() {
    let (first, room) = (Store::new(schema(), None, 2).unwrap(), room());
    first.apply(0, Epoch(1), &change(&[(row(1, 1), 1)])).unwrap();
    let follower = first.follow(&room);
    first.apply(1, Epoch(2), &change(&[(row(2, 1), 1)])).unwrap();
    // What moves is brought back to other shards, as of before every epoch.
    let second = first.successor(Epoch(2));
    second.apply(1, Epoch(0), &change(&[(row(1, 1), 1), (row(2, 1), 1)])).unwrap();
    second.apply(1, Epoch(3), &change(&[(row(1, 1), -1), (row(3, 1), 1)])).unwrap();
    let third = second.successor(Epoch(3));
    third.apply(0, Epoch(0), &change(&[(row(2, 1), 1), (row(3, 1), 1)])).unwrap();
    third.apply(0, Epoch(4), &change(&[(row(4, 1), 1)])).unwrap();
    let at = |epoch: u64| third.snapshot(Epoch(epoch)).map(|snapshot| scanned(&snapshot, 100));
    let rows = |keys: &[i64]| keys.iter().map(|k| row(*k, 1)).collect::<Vec<_>>();
    let expected = [rows(&[1]), rows(&[1, 2]), rows(&[2, 3]), rows(&[2, 3, 4])];
    let sorted = |mut rows: Vec<Row>| {
        rows.sort();
        rows
    };
    for (n, expected) in expected.iter().enumerate() {
        assert_eq!(&sorted(at(n as u64 + 1).unwrap()), expected, "epoch {}", n + 1);
    }
    let told = read(&follower, 4, 1000);
    assert_eq!(told.keys().copied().collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(told[&3], BTreeMap::from([(row(1, 1), -1), (row(3, 1), 1)]));
    // Who may still read epoch 3 keeps it, and not what is older.
    let weak = [std::sync::Arc::downgrade(&first), std::sync::Arc::downgrade(&second)];
    drop((first, second));
    third.forget_before(Epoch(3));
    assert!(weak[0].upgrade().is_none() && weak[1].upgrade().is_some());
    assert_eq!(sorted(at(3).unwrap()), expected[2]);
    third.forget_before(Epoch(4));
    assert!(weak[1].upgrade().is_none());
    assert_eq!(sorted(at(4).unwrap()), expected[3]);
}

#[test]
fn what_everyone_has_read_goes_and_what_one_has_not_read_stays() {
    let (store, room) = (Store::new(schema(), None, 1).unwrap(), room());
    let (fast, slow) = (store.follow(&room), store.follow(&room));
    for epoch in 1..=10 {
        store.apply(0, Epoch(epoch), &change(&[(row(epoch as i64, 1), 1)])).unwrap();
        assert_eq!(read(&fast, epoch, 1000).len(), 1);
    }
    assert_eq!((fast.backlog(), store.changes().since()), (0, Epoch(0)));
    assert!(slow.backlog() > 0);
    // A few bytes at a time: still whole epochs, and at least one.
    let Followed::Changes { epochs, more } = slow.read(Epoch(9), 1) else { panic!() };
    assert_eq!((epochs.len(), epochs[0].epoch, more), (1, Epoch(1), true));
    assert_eq!(read(&slow, 9, 1).keys().copied().collect::<Vec<_>>(), (2..=9).collect::<Vec<_>>());
    assert_eq!(store.changes().since(), Epoch(9));
    drop(slow);
    assert_eq!((store.changes().since(), store.changes().bytes()), (Epoch(10), 0));
}

#[test]
fn what_is_retained_outlives_its_readers_until_it_is_let_go() {
    let (store, room) = (Store::new(schema(), None, 1).unwrap(), room());
    let first = store.follow(&room);
    store.changes().retain_after(Some(Epoch(0)));
    drop(first);
    for epoch in 1..=10 {
        store.apply(0, Epoch(epoch), &change(&[(row(epoch as i64, 1), 1)])).unwrap();
    }
    let reader = store.follow(&room);
    assert!(reader.start_after(Epoch(4)));
    assert_eq!(read(&reader, 10, 1).len(), 6);
    drop(reader);
    store.changes().retain_after(Some(Epoch(7)));
    let reader = store.follow(&room);
    assert!(!reader.start_after(Epoch(6)) && reader.start_after(Epoch(7)));
    store.changes().retain_after(None);
    assert_eq!(read(&reader, 10, 1000).len(), 3);
    drop(reader);
    assert_eq!(room.used(), 0);
}

#[test]
fn changes_that_are_handed_on_are_whole_in_the_log_elsewhere_from_the_epoch_that_was_told() {
    let (store, room) = (Store::new(schema(), None, 1).unwrap(), room());
    let elsewhere: Arc<ChangeLog> = Arc::default();
    store.apply(0, Epoch(3), &change(&[(row(3, 1), 1)])).unwrap();
    let (follower, was_off) = elsewhere.follow_from_elsewhere(&room);
    assert!(was_off);
    let (log, mut written) = (Arc::clone(&elsewhere), Epoch(0));
    store.hand_on_changes(Some(Arc::new(move |epoch, change| log.take_up(epoch, change))), |epoch| written = epoch);
    // Another worker's changes of an epoch that this one had already written.
    elsewhere.take_up(Epoch(3), &change(&[(row(30, 1), 1)]));
    store.apply(0, Epoch(4), &change(&[(row(4, 1), 1)])).unwrap();
    assert_eq!(written, Epoch(3));
    elsewhere.settle(&follower, written);
    assert_eq!((elsewhere.since(), read(&follower, 4, 1000).keys().copied().collect::<Vec<_>>()), (Epoch(3), vec![4]));
    let (second, was_off) = elsewhere.follow_from_elsewhere(&room);
    assert!(!was_off);
    drop((follower, second));
    assert!(!elsewhere.is_on());
    store.apply(0, Epoch(5), &change(&[(row(5, 1), 1)])).unwrap();
    store.hand_on_changes(None, |_| {});
    assert_eq!((elsewhere.bytes(), room.used()), (0, 0));
}

#[test]
fn a_log_that_is_full_forgets_the_oldest_and_says_so() {
    let room = ChangeRoom::new(20_000, 30_000);
    let (store, other) = (Store::new(schema(), None, 1).unwrap(), Store::new(schema(), None, 1).unwrap());
    let (slow, quick, beside) = (store.follow(&room), store.follow(&room), other.follow(&room));
    for epoch in 1..=200 {
        store.apply(0, Epoch(epoch), &change(&[(row(epoch as i64, 2), 1)])).unwrap();
        other.apply(0, Epoch(epoch), &change(&[(row(epoch as i64, 2), 1)])).unwrap();
        assert!(store.changes().bytes() <= 20_000 && room.used() <= 30_000);
        assert_eq!(read(&quick, epoch, 1000).len(), 1);
    }
    assert!(slow.is_behind() && beside.is_behind() && !quick.is_behind());
    let Followed::Behind(gone) = slow.read(Epoch(200), 1000) else { panic!("not behind") };
    assert_eq!(gone, store.changes().since());
    assert!(slow.start_after(gone));
    assert_eq!(read(&slow, 200, 1000).len() as u64, 200 - gone.0);
    // Nothing is kept for one who has fallen behind, and he must not think that it is.
    assert_eq!(other.changes().bytes(), 0);
    assert!(!beside.start_after(Epoch(200)) && !beside.start_after(Epoch(300)));
    // One change that is larger than all there is room for.
    let large: Vec<(Row, i64)> = (0..1000).map(|k| (row(k, 2), 1)).collect();
    store.apply(0, Epoch(201), &change(&large)).unwrap();
    assert!(matches!(quick.read(Epoch(201), 1000), Followed::Behind(Epoch(201))));
    drop((slow, quick, beside, store, other));
    assert_eq!(room.used(), 0);
}

/// Followers that begin and end beside two writers: the snapshot at the epoch that a follower starts from, and the changes
/// it then reads, always give the snapshot at the end.
#[test]
fn a_snapshot_and_its_changes_are_the_next_snapshot() {
    let (store, room) = (Store::new(schema(), Some(vec![0]), 2).unwrap(), ChangeRoom::new(64 << 20, 64 << 20));
    let finished = [AtomicU64::new(0), AtomicU64::new(0)];
    let done = AtomicBool::new(false);
    const EPOCHS: u64 = 3_000;
    let completed = || finished.iter().map(|f| f.load(Acquire)).min().unwrap();
    std::thread::scope(|scope| {
        for (shard, finished) in finished.iter().enumerate() {
            let store = &store;
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(shard as u64);
                let mut rows: BTreeMap<i64, Row> = BTreeMap::new();
                for epoch in 1..=EPOCHS {
                    let mut changes: Vec<(Row, i64)> = vec![];
                    for _ in 0..rng.random_range(0..4) {
                        let k = rng.random_range(0..40) * 2 + shard as i64;
                        let new = row(k, rng.random_range(0..1000));
                        if changes.iter().any(|(r, _)| r.0 == k) {
                            continue;
                        }
                        if let Some(old) = rows.insert(k, new.clone()) {
                            changes.push((old, -1));
                        }
                        if rng.random_bool(0.3) {
                            rows.remove(&k);
                        } else {
                            changes.push((new, 1));
                        }
                    }
                    if !changes.is_empty() {
                        store.apply(shard, Epoch(epoch), &change(&changes)).unwrap();
                    }
                    finished.store(epoch, Release);
                }
            });
        }
        for seed in 0..2 {
            let (store, room, done, completed) = (&store, &room, &done, &completed);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(100 + seed);
                let mut rounds = 0;
                while !done.load(Acquire) || rounds == 0 {
                    let follower = store.follow(room);
                    while completed() < store.changes().since().0 {
                        std::thread::yield_now();
                    }
                    let start = completed();
                    assert!(follower.start_after(Epoch(start)));
                    let mut state: BTreeMap<Row, i64> =
                        scanned(&store.snapshot(Epoch(start)).unwrap(), 100).into_iter().map(|r| (r, 1)).collect();
                    for _ in 0..rng.random_range(1..20) {
                        let until = completed();
                        for (epoch, net) in read(&follower, until, rng.random_range(1..5000)) {
                            assert!(epoch > start && epoch <= until);
                            for (row, weight) in net {
                                *state.entry(row).or_default() += weight;
                            }
                        }
                        state.retain(|_, weight| *weight != 0);
                        let wanted: BTreeMap<Row, i64> =
                            scanned(&store.snapshot(Epoch(until)).unwrap(), 100).into_iter().map(|r| (r, 1)).collect();
                        assert_eq!(state, wanted, "epoch {until}");
                    }
                    rounds += 1;
                }
            });
        }
        while completed() < EPOCHS {
            std::thread::yield_now();
        }
        done.store(true, Release);
    });
    assert_eq!(room.used(), 0);
}

#[test]
fn reading_a_change_does_not_look_at_the_store() {
    let (store, room) = (Store::new(schema(), Some(vec![0]), 1).unwrap(), room());
    let all: Vec<Row> = (0..50_000).map(|k| row(k, 1)).collect();
    store.insert(0, Epoch(1), &batch(&all)).unwrap();
    let follower = store.follow(&room);
    store.apply(0, Epoch(2), &change(&[(row(777, 1), -1), (row(777, 2), 1)])).unwrap();
    let touched = store.rows_touched();
    assert_eq!(read(&follower, 2, 1000)[&2].len(), 2);
    assert_eq!((store.rows_touched(), store.changes().rows_read()), (touched, 2));
}
