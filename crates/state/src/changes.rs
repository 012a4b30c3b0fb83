//! What changed, epoch by epoch, for those who follow a relation.
//!
//! Blocks tell what is visible at an epoch, not what became so: finding the deaths of one epoch would mean looking at all
//! of them. So a followed store also keeps the changes themselves, as its writers bring them: the log costs memory in
//! proportion to the changes and nothing while nobody follows. It is bounded: what does not fit pushes out the oldest
//! epochs, and whoever still needed them is told that he has fallen behind. Writers never wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use arrow::array::{Array, RecordBatch, RecordBatchOptions};
use flow::{ChangeBatch, Diff, Epoch, Result};
use parking_lot::Mutex;

use crate::owned::owned;
use crate::store::Store;

/// What a batch costs beside its columns.
const BATCH_BYTES: usize = 128;

/// The memory that the change logs of several stores share.
pub struct ChangeRoom {
    /// Bytes that one log may hold.
    pub each: usize,
    /// Bytes that all may hold together.
    pub all: usize,
    used: AtomicUsize,
}

impl ChangeRoom {
    pub fn new(each: usize, all: usize) -> Arc<ChangeRoom> {
        Arc::new(ChangeRoom { each, all, used: AtomicUsize::new(0) })
    }

    /// Bytes held now.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

/// The changes of one epoch: a multiset, in no order.
#[derive(Clone, Debug)]
pub struct EpochChanges {
    pub epoch: Epoch,
    pub batches: Vec<ChangeBatch>,
}

/// What a [`Follower`] reads.
#[derive(Debug)]
pub enum Followed {
    /// The changed epochs, oldest first; nothing else has changed up to the epoch asked for, or up to the last of
    /// these when `more`.
    Changes { epochs: Vec<EpochChanges>, more: bool },
    /// Changes that the follower has not read are gone: those up to this epoch.
    Behind(Epoch),
}

/// Takes what writers bring.
pub type Tap = Arc<dyn Fn(Epoch, &ChangeBatch) + Send + Sync>;

/// The change log of a store.
///
/// A store whose followers are in another process hands its changes on to them ([`Store::hand_on_changes`]); there a log
/// without a store of its own takes them up ([`take_up`](Self::take_up)).
#[derive(Default)]
pub struct ChangeLog {
    on: AtomicBool,
    tapped: AtomicBool,
    tap: Mutex<Option<Tap>>,
    /// The newest epoch in the log.
    newest: AtomicU64,
    /// Everything up to here is gone.
    since: AtomicU64,
    rows_read: AtomicU64,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    epochs: BTreeMap<u64, Held>,
    bytes: usize,
    room: Option<Arc<ChangeRoom>>,
    /// By follower: the epoch up to which it has read.
    followers: BTreeMap<u64, u64>,
    next_follower: u64,
    /// Epochs above this are kept whether or not anyone follows.
    retained: Option<u64>,
}

#[derive(Default)]
struct Held {
    batches: Vec<ChangeBatch>,
    bytes: usize,
}

impl Kept {
    fn pop_first(&mut self) -> Option<u64> {
        let (epoch, held) = self.epochs.pop_first()?;
        self.release(held.bytes);
        Some(epoch)
    }

    fn add_follower(&mut self, log: &Arc<ChangeLog>) -> Follower {
        let id = self.next_follower;
        self.next_follower += 1;
        self.followers.insert(id, log.since.load(Relaxed));
        Follower { log: Arc::clone(log), id }
    }

    fn release(&mut self, bytes: usize) {
        self.bytes -= bytes;
        if let Some(room) = &self.room {
            room.used.fetch_sub(bytes, Relaxed);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}

impl ChangeLog {
    /// Adds what a writer has applied. Called after the rows are in the store.
    pub(crate) fn push(&self, epoch: Epoch, change: &ChangeBatch) {
        if self.tapped.load(Acquire)
            && change.num_rows() > 0
            && let Some(tap) = &*self.tap.lock()
        {
            tap(epoch, change);
        }
        self.take_up(epoch, change);
    }

    /// Adds changes of a store whose log this is. Each change has to come before its epoch is complete.
    pub fn take_up(&self, epoch: Epoch, change: &ChangeBatch) {
        if !self.is_on() || change.num_rows() == 0 {
            return;
        }
        // A row of a fetched batch must not keep all of its buffers.
        let columns: Result<Vec<_>> = change.rows.columns().iter().map(owned).collect();
        let rows = columns.and_then(|columns| {
            let options = RecordBatchOptions::new().with_row_count(Some(change.num_rows()));
            Ok(RecordBatch::try_new_with_options(change.rows.schema(), columns, &options)?)
        });
        let change = ChangeBatch::new(rows.unwrap_or_else(|_| change.rows.clone()), change.diff.clone());
        let mut kept = self.kept.lock();
        if !self.on.load(Relaxed) || epoch.0 <= self.since.load(Relaxed) {
            return;
        }
        // What is held, texts of view arrays included, which `ChangeBatch::bytes` cannot see.
        let mut bytes = BATCH_BYTES + change.rows.columns().iter().map(|c| c.get_array_memory_size()).sum::<usize>();
        if let Diff::Weights(weights) = &change.diff {
            bytes += weights.len() * 8;
        }
        let mut full = false;
        let held = kept.epochs.entry(epoch.0).or_default();
        held.batches.push(change);
        held.bytes += bytes;
        kept.bytes += bytes;
        if let Some(room) = kept.room.clone() {
            room.used.fetch_add(bytes, Relaxed);
            while kept.bytes > room.each || room.used() > room.all {
                let Some(gone) = kept.pop_first() else { break };
                self.since.fetch_max(gone, Release);
                full = true;
            }
        }
        if full {
            self.trim(&mut kept);
        }
        self.newest.fetch_max(epoch.0, Release);
    }

    /// Drops what nobody needs any more.
    fn trim(&self, kept: &mut Kept) {
        // Nothing is kept for those who have fallen behind.
        let since = self.since.load(Relaxed);
        let followers = kept.followers.values().copied().filter(|after| *after >= since);
        let needed = followers.chain(kept.retained).min();
        let Some(needed) = needed else {
            self.on.store(false, Relaxed);
            while kept.pop_first().is_some() {}
            kept.room = None;
            return;
        };
        while kept.epochs.first_key_value().is_some_and(|(epoch, _)| *epoch <= needed) {
            kept.pop_first();
        }
        self.since.fetch_max(needed, Release);
    }
}

impl ChangeLog {
    /// Begins to keep changes if that is not so yet. `written` is the newest epoch of which anything is in the store.
    fn begin(&self, kept: &mut Kept, room: &Arc<ChangeRoom>, written: impl FnOnce() -> u64) {
        if self.on.load(Relaxed) {
            return;
        }
        kept.room = Some(Arc::clone(room));
        // In this order: a writer that we do not see below finds the log on when it is done.
        self.on.store(true, Release);
        let written = written();
        self.since.fetch_max(written, Release);
        self.newest.fetch_max(written, Release);
    }

    /// Whether anybody follows.
    pub fn is_on(&self) -> bool {
        self.on.load(Acquire)
    }

    /// Follows a log whose changes come from elsewhere. Returns whether it was off: then they have to be asked for, and
    /// what is there counts only after [`settle`](Self::settle).
    pub fn follow_from_elsewhere(self: &Arc<Self>, room: &Arc<ChangeRoom>) -> (Follower, bool) {
        let mut kept = self.kept.lock();
        let was_off = !self.on.load(Relaxed);
        self.begin(&mut kept, room, || 0);
        let follower = kept.add_follower(self);
        (follower, was_off)
    }

    /// The changes that have come from elsewhere since `follower` began are whole after the epoch `written`.
    pub fn settle(&self, follower: &Follower, written: Epoch) {
        let mut kept = self.kept.lock();
        self.since.fetch_max(written.0, Release);
        self.newest.fetch_max(written.0, Release);
        kept.followers.insert(follower.id, self.since.load(Relaxed));
        self.trim(&mut kept);
    }

    /// What is retained is from now on what comes after `after`; `None` ends it.
    pub fn retain_after(&self, after: Option<Epoch>) {
        let mut kept = self.kept.lock();
        if self.on.load(Relaxed) {
            kept.retained = after.map(|e| e.0.max(self.since.load(Relaxed)));
            self.trim(&mut kept);
        }
    }

    /// The changes of every epoch above this are kept.
    pub fn since(&self) -> Epoch {
        Epoch(self.since.load(Acquire))
    }

    /// The newest epoch of which a change is, or was, in the log.
    pub fn newest(&self) -> Epoch {
        Epoch(self.newest.load(Acquire))
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.kept.lock().bytes
    }

    /// Rows handed out since the start.
    pub fn rows_read(&self) -> u64 {
        self.rows_read.load(Relaxed)
    }
}

impl Store {
    /// The log of what [`apply`](Self::apply) changes. It outlives the store for those who follow it.
    pub fn changes(&self) -> &Arc<ChangeLog> {
        &self.changes
    }

    fn written(&self) -> u64 {
        self.shards.iter().map(|s| s.writer.lock().epoch).max().unwrap_or(0)
    }

    /// Follows the changes from the oldest epoch that is there. The caller makes sure that every epoch up to
    /// [`since`](ChangeLog::since) is completed before it relies on a snapshot.
    pub fn follow(&self, room: &Arc<ChangeRoom>) -> Follower {
        let log = Arc::clone(&self.changes);
        let mut kept = log.kept.lock();
        log.begin(&mut kept, room, || self.written());
        kept.add_follower(&log)
    }

    /// Hands every change on to `tap` from now on, beside what the log itself does. `begun` is told the newest epoch of
    /// which anything is in the store before the tap gets a later change. `None` ends it.
    pub fn hand_on_changes(&self, tap: Option<Tap>, begun: impl FnOnce(Epoch)) {
        let mut tapped = self.changes.tap.lock();
        self.changes.tapped.store(tap.is_some(), Release);
        *tapped = tap;
        // A writer that we do not see below waits for the lock with what it has applied.
        begun(Epoch(self.written()));
    }
}

/// One reader of a store's changes; what it has not read is kept, as far as there is room.
pub struct Follower {
    log: Arc<ChangeLog>,
    id: u64,
}

impl Follower {
    /// The log that it reads.
    pub fn log(&self) -> &Arc<ChangeLog> {
        &self.log
    }

    /// Goes on after `epoch`; `false`, and no change, when what follows it is not there any more.
    pub fn start_after(&self, epoch: Epoch) -> bool {
        let log = &self.log;
        let mut kept = log.kept.lock();
        // Without anyone whom it serves the log is off, and nothing comes after any epoch.
        if epoch.0 < log.since.load(Relaxed) || !log.on.load(Relaxed) {
            return false;
        }
        kept.followers.insert(self.id, epoch.0);
        log.trim(&mut kept);
        true
    }

    /// Whether changes that it has not read are gone.
    pub fn is_behind(&self) -> bool {
        let log = &self.log;
        let kept = log.kept.lock();
        kept.followers.get(&self.id).is_none_or(|after| *after < log.since.load(Relaxed))
    }

    /// Bytes that are kept for this reader.
    pub fn backlog(&self) -> usize {
        let kept = self.log.kept.lock();
        let after = kept.followers.get(&self.id).copied().unwrap_or(u64::MAX);
        kept.epochs.range(after.saturating_add(1)..).map(|(_, held)| held.bytes).sum()
    }

    /// The changes of whole epochs up to `until`, which must be completed: at least one epoch if there is any, and no more
    /// than about `bytes`. They count as read.
    pub fn read(&self, until: Epoch, bytes: usize) -> Followed {
        let log = &self.log;
        let mut kept = log.kept.lock();
        let since = log.since.load(Relaxed);
        let after = kept.followers.get(&self.id).copied().unwrap_or(0);
        if after < since {
            return Followed::Behind(Epoch(since));
        }
        if until.0 <= after {
            return Followed::Changes { epochs: Vec::new(), more: false };
        }
        let mut epochs = Vec::new();
        let (mut taken, mut rows, mut read, mut more) = (0, 0, until.0, false);
        for (epoch, held) in kept.epochs.range(after + 1..=until.0) {
            if !epochs.is_empty() && taken + held.bytes > bytes {
                more = true;
                break;
            }
            taken += held.bytes;
            rows += held.batches.iter().map(ChangeBatch::num_rows).sum::<usize>();
            epochs.push(EpochChanges { epoch: Epoch(*epoch), batches: held.batches.clone() });
        }
        if more {
            read = epochs.last().map_or(after, |e| e.epoch.0);
        }
        kept.followers.insert(self.id, read);
        log.trim(&mut kept);
        drop(kept);
        log.rows_read.fetch_add(rows as u64, Relaxed);
        Followed::Changes { epochs, more }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let log = &self.log;
        let mut kept = log.kept.lock();
        kept.followers.remove(&self.id);
        log.trim(&mut kept);
    }
}
