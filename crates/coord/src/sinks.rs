//! Sinks: one service each puts the slots' shares of an epoch together and writes whole epochs.
//!
//! Law: a writer sees the changes of an epoch only after those of every earlier one, and `finish_epoch` only when every
//! slot has delivered. A sink is never waited for: what it cannot take yet waits in a bounded backlog, and past the bound
//! the sink's job stops, alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use checkpoint::CommitPermit;
use connect::SinkWriter;
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use flow::{ChangeBatch, Epoch, Error, RelationId, Result, SlotId, SqlState};
use parking_lot::Mutex;
use runtime::service::wait_for_message;
use runtime::{FromSlot, Join, Service, Stepped, Tick};
use tracing::warn;

use crate::clock::{Clock, Event};
use crate::execution::Execution;
use crate::time::Time;

/// Bytes that may wait for a slow sink.
pub const BACKLOG_BYTES_MAX: usize = 256 << 20;

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
    join: Join,
    shared: Arc<SinkShared>,
    identity: Option<String>,
}

/// What a sink's service tells about itself.
struct SinkShared {
    backlog: AtomicUsize,
    published: AtomicU64,
    rows: AtomicU64,
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
    execution: Arc<dyn Execution>,
    clock: Arc<Clock>,
    time: Time,
    slots: usize,
    /// The epoch at whose end sinks that deliver exactly once prepare.
    prepare_at: Arc<AtomicU64>,
    tell: Mutex<Option<Tell>>,
    running: Mutex<HashMap<RelationId, Running>>,
}

impl Sinks {
    pub fn new(execution: Arc<dyn Execution>, clock: Arc<Clock>, time: Time, slots: usize) -> Sinks {
        let (prepare_at, tell, running) = (Arc::default(), Mutex::default(), Mutex::default());
        Sinks { execution, clock, time, slots, prepare_at, tell, running }
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

    /// Starts the service that writes sink `relation`. With an identity it delivers exactly once.
    pub fn start(&self, relation: RelationId, writer: Box<dyn SinkWriter>, identity: Option<String>) -> Result<()> {
        let (sender, inbox) = unbounded();
        let shared = Arc::new(SinkShared {
            backlog: AtomicUsize::new(0),
            published: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            all: Arc::clone(&self.clock.sink_backlog),
        });
        let service = SinkService {
            relation,
            inbox,
            clock: Arc::clone(&self.clock),
            writer,
            shared: Arc::clone(&shared),
            time: self.time.clone(),
            finished: vec![None; self.slots],
            waiting: BTreeMap::new(),
            prepare: self.tell.lock().clone().filter(|_| identity.is_some()).map(|tell| Prepare {
                at: Arc::clone(&self.prepare_at),
                prepared: Epoch(0),
                tell,
            }),
        };
        let join = self.execution.start_service(Box::new(service))?;
        self.running.lock().insert(relation, Running { sender, join, shared, identity });
        Ok(())
    }

    /// Takes a slot's share. Called by the clock, so it never blocks.
    pub fn deliver(&self, message: FromSlot) {
        let FromSlot::Deliver { slot, sink, tick, changes, .. } = message else { return };
        let running = self.running.lock();
        let Some(running_sink) = running.get(&sink) else { return };
        let bytes = changes.as_ref().map_or(0, ChangeBatch::bytes);
        let backlog = running_sink.shared.add(bytes);
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
        // The service ends early only after an error, which it has reported.
        let _ = running_sink.sender.send(ToSink::Rows { slot, tick, changes });
    }

    pub fn status(&self, relation: RelationId) -> Option<SinkStatus> {
        self.running.lock().get(&relation).map(|r| SinkStatus {
            backlog_bytes: r.shared.backlog.load(Ordering::Relaxed),
            published: Epoch(r.shared.published.load(Ordering::Acquire)),
            rows: r.shared.rows.load(Ordering::Relaxed),
        })
    }

    /// Publishes what is finished and ends the service.
    pub fn stop(&self, relation: RelationId) {
        let running = self.running.lock().remove(&relation);
        if let Some(running) = running {
            let _ = running.sender.send(ToSink::Close);
            (running.join)();
        }
    }

    /// Stops every sink.
    pub fn stop_all(&self) {
        let all: Vec<RelationId> = self.running.lock().keys().copied().collect();
        all.into_iter().for_each(|relation| self.stop(relation));
    }
}

struct SinkService {
    relation: RelationId,
    inbox: Receiver<ToSink>,
    clock: Arc<Clock>,
    writer: Box<dyn SinkWriter>,
    shared: Arc<SinkShared>,
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

impl Service for SinkService {
    fn name(&self) -> String {
        format!("sink-{}", self.relation)
    }

    fn step(&mut self) -> Stepped {
        self.try_step().unwrap_or_else(|error| {
            let relation = self.relation;
            warn!(relation = relation.0, %error, "sink stopped");
            self.clock.send(Event::StopJob { relation, error });
            Stepped::Ended
        })
    }

    fn wait(&mut self) {
        let left = |at: i64| Duration::from_micros(at.saturating_sub(self.time.now_us()).max(0) as u64);
        wait_for_message(&self.inbox, self.writer.next_flush_us().map(left));
    }

    fn stands_back(&self) -> bool {
        true
    }
}

impl SinkService {
    fn try_step(&mut self) -> Result<Stepped> {
        match self.inbox.try_recv() {
            Ok(ToSink::Rows { slot, tick, changes }) => self.take(slot, tick, changes)?,
            Ok(ToSink::Commit { permit, prepared }) => {
                self.writer.commit(&permit, &prepared)?;
                if let Some(prepare) = &self.prepare {
                    (prepare.tell)(self.relation, Done::Committed(permit.epoch()));
                }
            }
            Err(TryRecvError::Empty) => {
                let now_us = self.time.now_us();
                if self.writer.next_flush_us().is_none_or(|at| at > now_us) {
                    return Ok(Stepped::Idle);
                }
                self.writer.flush(now_us)?;
            }
            Ok(ToSink::Close) | Err(TryRecvError::Disconnected) => {
                self.writer.close()?;
                self.publish();
                return Ok(Stepped::Ended);
            }
        }
        self.publish();
        Ok(Stepped::Worked)
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
            self.writer.finish_epoch(epoch, self.time.now_us())?;
            if epoch == whole {
                return self.prepare_before(whole.next());
            }
        }
        self.prepare_before(whole)?;
        self.writer.finish_epoch(whole, self.time.now_us())?;
        self.prepare_before(whole.next())
    }

    /// Prepares if the checkpoint's epoch is over and this is a later one.
    fn prepare_before(&mut self, epoch: Epoch) -> Result<()> {
        let Some(prepare) = &mut self.prepare else { return Ok(()) };
        let at = Epoch(prepare.at.load(Ordering::Acquire));
        if at > prepare.prepared && at < epoch {
            // The epoch itself may have had no changes.
            self.writer.finish_epoch(at, self.time.now_us())?;
            let prepared = self.writer.prepare(at)?;
            prepare.prepared = at;
            (prepare.tell)(self.relation, Done::Prepared(at, prepared));
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
            self.writer.write(epoch, &changes)?;
            self.shared.remove(bytes);
        }
        Ok(())
    }
}
