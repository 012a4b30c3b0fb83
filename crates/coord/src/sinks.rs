//! Sinks: one thread each puts the slots' shares of an epoch together and writes whole epochs.
//!
//! Law: a writer sees the changes of an epoch only after those of every earlier one, and `finish_epoch` only when every
//! slot has delivered. A sink is never waited for: what it cannot take yet waits in a bounded backlog, and past the bound
//! the sink's job stops, alone. While its target is full or away the thread tries again and again; a target that does not
//! answer at all holds up checkpoints until [`Sinks::give_up`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use checkpoint::CommitPermit;
use connect::SinkWriter;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use flow::{ChangeBatch, Epoch, Error, RelationId, Result, SlotId, SqlState};
use parking_lot::Mutex;
use runtime::{FromSlot, Tick};
use tracing::warn;

use crate::clock::{Clock, Event};
use crate::stalls::Waiting;
use crate::time::Time;

/// Bytes that may wait for a slow sink.
pub const BACKLOG_BYTES_MAX: usize = 256 << 20;

/// The rest before a target that is full or away is tried again; it doubles up to the longest.
const REST_FIRST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(5);

/// How long a sink may take to end, and how long the look whether it has.
const END_WAIT_MAX: Duration = Duration::from_secs(30);
const END_LOOK: Duration = Duration::from_millis(1);

enum ToSink {
    Rows {
        slot: SlotId,
        tick: Tick,
        changes: Option<ChangeBatch>,
    },
    /// What was prepared for the permit's epoch may be seen now.
    Commit {
        permit: CommitPermit,
        prepared: Vec<u8>,
    },
    /// A new deployment of the same sink starts from nothing.
    Close,
}

/// What a sink that delivers exactly once has done for a checkpoint.
#[derive(Debug)]
pub enum Done {
    /// Everything up to the epoch is durable in the target, and invisible.
    Prepared(Epoch, Vec<u8>),
    /// And now visible.
    Committed(Epoch),
}

/// Takes what sinks have done.
pub type Tell = Arc<dyn Fn(RelationId, Done) + Send + Sync>;

/// One running sink.
struct Running {
    sender: Sender<ToSink>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<SinkShared>,
    identity: Option<String>,
}

/// What a sink's thread tells about itself.
struct SinkShared {
    backlog: AtomicUsize,
    published: AtomicU64,
    rows: AtomicU64,
    /// When the writer was last asked for something that it has not done yet, in microseconds; 0: it has nothing to do.
    asked_us: AtomicI64,
    /// The thread is to end.
    ending: AtomicBool,
    /// Nobody waits for the thread any more.
    given_up: AtomicBool,
    /// The backlogs of all sinks together.
    all: Arc<AtomicUsize>,
}

impl SinkShared {
    /// Counts changes that wait. Returns what this sink has waiting then.
    fn add(&self, bytes: usize) -> usize {
        self.all.fetch_add(bytes, Ordering::Relaxed);
        self.backlog.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    fn remove(&self, bytes: usize) {
        self.all.fetch_sub(bytes, Ordering::Relaxed);
        self.backlog.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for SinkShared {
    fn drop(&mut self) {
        // What nobody will write any more does not wait.
        self.all.fetch_sub(*self.backlog.get_mut(), Ordering::Relaxed);
    }
}

/// For `SHOW SINKS`.
#[derive(Clone, Copy, Debug)]
pub struct SinkStatus {
    pub backlog_bytes: usize,
    pub published: Epoch,
    pub rows: u64,
}

/// All running sinks.
pub struct Sinks {
    clock: Arc<Clock>,
    time: Time,
    slots: usize,
    /// The epoch at whose end sinks that deliver exactly once prepare.
    prepare_at: Arc<AtomicU64>,
    tell: Mutex<Option<Tell>>,
    running: Mutex<HashMap<RelationId, Running>>,
}

impl Sinks {
    pub fn new(clock: Arc<Clock>, time: Time, slots: usize) -> Sinks {
        Sinks { clock, time, slots, prepare_at: Arc::default(), tell: Mutex::default(), running: Mutex::default() }
    }

    /// Whoever keeps checkpoints is told what sinks have done for them from now on.
    pub fn report_to(&self, tell: Tell) {
        *self.tell.lock() = Some(tell);
    }

    /// Sinks prepare at the end of this epoch. Called before anything of it reaches a slot.
    pub fn prepare_at(&self, epoch: Epoch) {
        self.prepare_at.store(epoch.0, Ordering::Release);
    }

    /// Lets a sink make visible what it has prepared; false when it does not run any more.
    pub fn commit(&self, relation: RelationId, permit: CommitPermit, prepared: Vec<u8>) -> bool {
        let running = self.running.lock();
        let Some(sink) = running.get(&relation) else { return false };
        sink.sender.send(ToSink::Commit { permit, prepared }).is_ok()
    }

    /// What tells apart what the sink publishes, if it delivers exactly once.
    pub fn identity(&self, relation: RelationId) -> Option<String> {
        self.running.lock().get(&relation)?.identity.clone()
    }

    /// Starts the thread that writes sink `relation`. With an identity it delivers exactly once.
    pub fn start(&self, relation: RelationId, writer: Box<dyn SinkWriter>, identity: Option<String>) -> Result<()> {
        let (sender, receiver) = unbounded();
        let shared = Arc::new(SinkShared {
            backlog: AtomicUsize::new(0),
            published: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            asked_us: AtomicI64::new(0),
            ending: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            all: Arc::clone(&self.clock.sink_backlog),
        });
        let thread = SinkThread {
            relation,
            writer,
            shared: Arc::clone(&shared),
            clock: Arc::clone(&self.clock),
            time: self.time.clone(),
            finished: vec![None; self.slots],
            waiting: BTreeMap::new(),
            prepare: self.tell.lock().clone().filter(|_| identity.is_some()).map(|tell| Prepare {
                at: Arc::clone(&self.prepare_at),
                prepared: Epoch(0),
                tell,
            }),
        };
        let (clock, ended_by) = (Arc::clone(&self.clock), Arc::clone(&shared));
        let handle = std::thread::Builder::new()
            .name(format!("sink-{relation}"))
            .spawn(move || {
                runtime::stand_back();
                let ended = thread.run(&receiver);
                clock.stalls.clear(Waiting::Sink(relation));
                if let Err(error) = ended {
                    warn!(relation = relation.0, %error, "sink stopped");
                    // A sink that was told to end leaves no checkpoint for it: its job goes on from the last one at the next start.
                    if !ended_by.ending.load(Ordering::Acquire) {
                        clock.send(Event::StopJob { relation, error });
                    }
                }
            })
            .map_err(|e| Error::internal(format!("cannot start a sink thread: {e}")))?;
        self.running.lock().insert(relation, Running { sender, thread: Some(handle), shared, identity });
        Ok(())
    }

    /// Takes a slot's share. Called by the clock, so it never blocks.
    pub fn deliver(&self, message: FromSlot) {
        let FromSlot::Deliver { slot, sink, tick, changes, .. } = message else { return };
        let running = self.running.lock();
        let Some(sink_thread) = running.get(&sink) else { return };
        let bytes = changes.as_ref().map_or(0, ChangeBatch::bytes);
        let backlog = sink_thread.shared.add(bytes);
        if backlog > BACKLOG_BYTES_MAX {
            let error = Error::new(SqlState::OutOfMemory, "the sink does not keep up")
                .with_detail(format!(
                    "{} MiB wait to be written; the limit is {} MiB.",
                    backlog >> 20,
                    BACKLOG_BYTES_MAX >> 20
                ))
                .with_hint("Drop the sink and create it again on a faster target.");
            self.clock.send(Event::StopJob { relation: sink, error });
        }
        // The thread ends early only after an error, which it has reported.
        let _ = sink_thread.sender.send(ToSink::Rows { slot, tick, changes });
    }

    pub fn status(&self, relation: RelationId) -> Option<SinkStatus> {
        self.running.lock().get(&relation).map(|r| SinkStatus {
            backlog_bytes: r.shared.backlog.load(Ordering::Relaxed),
            published: Epoch(r.shared.published.load(Ordering::Acquire)),
            rows: r.shared.rows.load(Ordering::Relaxed),
        })
    }

    /// Since when, in microseconds, the sink's target has not done what it was asked for; `None`: there is nothing, or no such
    /// sink.
    pub fn silent_since_us(&self, relation: RelationId) -> Option<i64> {
        let asked_us = self.running.lock().get(&relation)?.shared.asked_us.load(Ordering::Relaxed);
        Some(asked_us).filter(|us| *us != 0)
    }

    /// Nobody waits for the sink from now on: its target does not answer.
    pub fn give_up(&self, relation: RelationId) {
        if let Some(sink) = self.running.lock().get(&relation) {
            sink.shared.given_up.store(true, Ordering::Relaxed);
        }
    }

    /// Publishes what is finished and ends the thread. One whose target does not answer is left behind.
    pub fn stop(&self, relation: RelationId) {
        let Some(mut running) = self.running.lock().remove(&relation) else { return };
        let _ = running.sender.send(ToSink::Close);
        running.shared.ending.store(true, Ordering::Release);
        let Some(thread) = running.thread.take() else { return };
        // It may be resting.
        thread.thread().unpark();
        let mut waited = Duration::ZERO;
        while !thread.is_finished() {
            // A script ends with its last row written.
            let patient = self.clock.sources_wait() || waited < END_WAIT_MAX;
            if !patient || running.shared.given_up.load(Ordering::Relaxed) {
                warn!(relation = relation.0, "a sink whose target does not answer is left behind");
                return;
            }
            std::thread::sleep(END_LOOK);
            waited += END_LOOK;
        }
        let _ = thread.join();
    }

    /// Stops every sink.
    pub fn stop_all(&self) {
        let all: Vec<RelationId> = self.running.lock().keys().copied().collect();
        all.into_iter().for_each(|relation| self.stop(relation));
    }
}

struct SinkThread {
    relation: RelationId,
    writer: Box<dyn SinkWriter>,
    shared: Arc<SinkShared>,
    clock: Arc<Clock>,
    time: Time,
    /// The newest tick that each slot has delivered whole.
    finished: Vec<Option<Tick>>,
    /// Changes of epochs after the lowest unfinished one.
    waiting: BTreeMap<Epoch, Vec<ChangeBatch>>,
    /// Of a sink that delivers exactly once.
    prepare: Option<Prepare>,
}

struct Prepare {
    at: Arc<AtomicU64>,
    prepared: Epoch,
    tell: Tell,
}

impl SinkThread {
    fn run(mut self, inbox: &Receiver<ToSink>) -> Result<()> {
        loop {
            let message = match self.writer.next_flush_us() {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => {
                    let wait = at.saturating_sub(self.time.now_us()).max(0) as u64;
                    inbox.recv_timeout(Duration::from_micros(wait))
                }
            };
            match message {
                Ok(ToSink::Rows { slot, tick, changes }) => self.take(slot, tick, changes)?,
                Err(RecvTimeoutError::Timeout) => self.insist(|sink| sink.writer.flush(sink.time.now_us()))?,
                Ok(ToSink::Commit { permit, prepared }) => {
                    self.insist(|sink| sink.writer.commit(&permit, &prepared))?;
                    if let Some(prepare) = &self.prepare {
                        (prepare.tell)(self.relation, Done::Committed(permit.epoch()));
                    }
                }
                Ok(ToSink::Close) | Err(RecvTimeoutError::Disconnected) => {
                    self.insist(|sink| sink.writer.close())?;
                    self.publish();
                    return Ok(());
                }
            }
            self.publish();
        }
    }

    /// Asks the writer until it does it, unless the cause of its refusal does not pass.
    fn insist<T>(&mut self, mut ask: impl FnMut(&mut SinkThread) -> Result<T>) -> Result<T> {
        self.shared.asked_us.store(self.time.now_us().max(1), Ordering::Relaxed);
        let mut rest = REST_FIRST;
        let done = loop {
            match ask(self) {
                Err(cause) if cause.may_pass() && self.may_rest() => {
                    if rest == REST_FIRST {
                        warn!(relation = self.relation.0, error = %cause, "a sink is stalled");
                    }
                    self.clock.stalls.set(Waiting::Sink(self.relation), cause);
                    std::thread::park_timeout(rest);
                    rest = (rest * 2).min(REST_MAX);
                }
                done => break done,
            }
        };
        if rest != REST_FIRST {
            self.clock.stalls.clear(Waiting::Sink(self.relation));
        }
        self.shared.asked_us.store(0, Ordering::Relaxed);
        done
    }

    /// A script is told at once that its target does not take rows, and who ends does not wait for better times.
    fn may_rest(&self) -> bool {
        !self.clock.sources_wait() && !self.shared.ending.load(Ordering::Acquire)
    }

    /// The same for what may be done only once: the rest of it is made up for.
    fn insist_once(&mut self, once: impl FnOnce(&mut SinkThread) -> Result<()>) -> Result<()> {
        let mut once = Some(once);
        self.insist(|sink| match once.take() {
            Some(once) => once(sink),
            None => sink.writer.make_up(),
        })
    }

    fn publish(&self) {
        self.shared.published.store(self.writer.published().0, Ordering::Release);
        self.shared.rows.store(self.writer.rows_written(), Ordering::Relaxed);
    }

    /// The newest epoch that every slot has delivered whole.
    fn whole(&self) -> Option<Epoch> {
        let least = self.finished.iter().copied().min().flatten()?;
        if least.is_end() { Some(least.epoch) } else { least.epoch.0.checked_sub(1).map(Epoch) }
    }

    fn take(&mut self, slot: SlotId, tick: Tick, changes: Option<ChangeBatch>) -> Result<()> {
        match changes {
            Some(changes) => {
                self.waiting.entry(tick.epoch).or_default().push(changes);
                Ok(())
            }
            None => {
                let before = self.whole();
                if let Some(seen) = self.finished.get_mut(slot.0 as usize) {
                    *seen = (*seen).max(Some(tick));
                }
                match self.whole() {
                    Some(whole) if before.is_none_or(|b| whole > b) && tick.is_end() => self.write_until(whole),
                    _ => self.write_early(),
                }
            }
        }
    }

    /// Writes every whole epoch up to `whole`.
    fn write_until(&mut self, whole: Epoch) -> Result<()> {
        while let Some(entry) = self.waiting.first_entry() {
            if *entry.key() > whole {
                break;
            }
            let (epoch, changes) = entry.remove_entry();
            // Nothing of a later epoch is written before the checkpoint's is prepared.
            self.prepare_before(epoch)?;
            self.write(epoch, changes)?;
            self.finish_epoch(epoch)?;
            if epoch == whole {
                return self.prepare_before(whole.next());
            }
        }
        self.prepare_before(whole)?;
        self.finish_epoch(whole)?;
        self.prepare_before(whole.next())
    }

    fn finish_epoch(&mut self, epoch: Epoch) -> Result<()> {
        self.insist_once(|sink| sink.writer.finish_epoch(epoch, sink.time.now_us()))
    }

    /// Prepares if the checkpoint's epoch is over and this is a later one.
    fn prepare_before(&mut self, epoch: Epoch) -> Result<()> {
        let Some(prepare) = &self.prepare else { return Ok(()) };
        let at = Epoch(prepare.at.load(Ordering::Acquire));
        if at > prepare.prepared && at < epoch {
            // The epoch itself may have had no changes.
            self.finish_epoch(at)?;
            let prepared = self.insist(|sink| sink.writer.prepare(at))?;
            if let Some(prepare) = &mut self.prepare {
                prepare.prepared = at;
                (prepare.tell)(self.relation, Done::Prepared(at, prepared));
            }
        }
        Ok(())
    }

    /// A back-fill is one long epoch: its chunks are written as they come, not kept.
    fn write_early(&mut self) -> Result<()> {
        let next = self.whole().map(Epoch::next);
        match self.waiting.first_entry() {
            Some(entry) if next.is_none_or(|n| *entry.key() <= n) => {
                let (epoch, changes) = entry.remove_entry();
                self.write(epoch, changes)
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, epoch: Epoch, changes: Vec<ChangeBatch>) -> Result<()> {
        for changes in changes {
            let bytes = changes.bytes();
            self.insist_once(|sink| sink.writer.write(epoch, &changes))?;
            self.shared.remove(bytes);
        }
        Ok(())
    }
}
