//! Sinks: one service each puts the slots' shares of an epoch together and writes whole epochs.
//!
//! Law: a writer sees the changes of an epoch only after those of every earlier one, and `finish_epoch` only when every
//! slot has delivered. A sink is never waited for where another job would notice: what it cannot take yet waits in a bounded backlog.
//! A source that only such sinks read pauses meanwhile; else, past the bound, the sink's job stops, alone. While its target is full or away the service tries again and again; a target that does not
//! answer at all holds up checkpoints until [`Sinks::give_up`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use checkpoint::CommitPermit;
use connect::SinkWriter;
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use flow::{ChangeBatch, Epoch, Error, RelationId, Result, SlotId, SqlState};
use parking_lot::Mutex;
use runtime::service::{END_LOOK, wait_for_message};
use runtime::{FromSlot, Join, Pause, Service, Stepped, Tick};
use tracing::warn;

use crate::clock::{Clock, Event};
use crate::execution::Execution;
use crate::stalls::Waiting;
use crate::time::Time;

/// Bytes that may wait for a slow sink.
pub const BACKLOG_BYTES_MAX: usize = 256 << 20;

/// The rest before a target that is full or away is tried again; it doubles up to the longest.
const REST_FIRST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(5);

/// How long a sink may take to end.
const END_WAIT_MAX: Duration = Duration::from_secs(30);

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
    join: Box<dyn Join>,
    shared: Arc<SinkShared>,
}

/// What a sink's service tells about itself.
struct SinkShared {
    backlog: Arc<AtomicUsize>,
    published: AtomicU64,
    rows: AtomicU64,
    /// When the writer was last asked for something that it has not done yet, in microseconds; 0: it has nothing to do.
    asked_us: AtomicI64,
    /// The service is to end.
    ending: AtomicBool,
    /// Nobody waits for the service any more.
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
        self.all.fetch_sub(self.backlog.swap(0, Ordering::Relaxed), Ordering::Relaxed);
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
    /// Of every sink that was ever started here: what one has prepared may become durable after it was stopped.
    identities: Mutex<HashMap<RelationId, String>>,
}

impl Sinks {
    pub fn new(execution: Arc<dyn Execution>, clock: Arc<Clock>, time: Time, slots: usize) -> Sinks {
        let (prepare_at, tell, running, identities) = Default::default();
        Sinks { execution, clock, time, slots, prepare_at, tell, running, identities }
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

    /// What tells apart what the sink publishes or has published until it was stopped, if it delivers exactly once.
    pub fn identity(&self, relation: RelationId) -> Option<String> {
        self.identities.lock().get(&relation).cloned()
    }

    /// Starts the service that writes sink `relation`. With an identity it delivers exactly once.
    pub fn start(&self, relation: RelationId, writer: Box<dyn SinkWriter>, identity: Option<String>) -> Result<()> {
        let (sender, inbox) = unbounded();
        let shared = Arc::new(SinkShared {
            backlog: Arc::default(),
            published: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            asked_us: AtomicI64::new(0),
            ending: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            all: Arc::clone(&self.clock.sink_backlog),
        });
        let service = SinkService {
            relation,
            inbox,
            writer,
            shared: Arc::clone(&shared),
            clock: Arc::clone(&self.clock),
            time: self.time.clone(),
            finished: vec![None; self.slots],
            waiting: BTreeMap::new(),
            todo: VecDeque::new(),
            asked: false,
            resting: None,
            prepare: self.tell.lock().clone().filter(|_| identity.is_some()).map(|tell| Prepare {
                at: Arc::clone(&self.prepare_at),
                prepared: Epoch(0),
                tell,
            }),
        };
        let join = self.execution.start_service(Box::new(service))?;
        match identity {
            Some(identity) => self.identities.lock().insert(relation, identity),
            // One of the same name that was replaced may have had one.
            None => self.identities.lock().remove(&relation),
        };
        self.clock.note_backlog(relation, Arc::clone(&shared.backlog));
        self.running.lock().insert(relation, Running { sender, join, shared });
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
                .with_hint("Drop the sink and create it again on a faster target, or over a source that nothing else reads: that one waits.");
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

    /// Publishes what is finished and ends the service. One whose target does not answer is left behind.
    pub fn stop(&self, relation: RelationId) {
        let Some(mut running) = self.running.lock().remove(&relation) else { return };
        self.clock.forget_backlog(relation);
        let _ = running.sender.send(ToSink::Close);
        running.shared.ending.store(true, Ordering::Release);
        let (clock, given_up, mut waited) = (&self.clock, &running.shared.given_up, Duration::ZERO);
        let mut patient = || {
            waited += END_LOOK;
            // A script ends with its last row written.
            (clock.sources_wait() || waited < END_WAIT_MAX) && !given_up.load(Ordering::Relaxed)
        };
        if !running.join.join_while(&mut patient) {
            warn!(relation = relation.0, "a sink whose target does not answer is left behind");
        }
    }

    /// Stops every sink.
    pub fn stop_all(&self) {
        let mut all: Vec<RelationId> = self.running.lock().keys().copied().collect();
        all.sort_unstable();
        all.into_iter().for_each(|relation| self.stop(relation));
    }
}

struct SinkService {
    relation: RelationId,
    inbox: Receiver<ToSink>,
    writer: Box<dyn SinkWriter>,
    shared: Arc<SinkShared>,
    clock: Arc<Clock>,
    time: Time,
    /// The newest tick that each slot has delivered whole.
    finished: Vec<Option<Tick>>,
    /// Changes of epochs after the lowest unfinished one.
    waiting: BTreeMap<Epoch, Vec<ChangeBatch>>,
    /// What the writer is asked for next; it has done everything before it.
    todo: VecDeque<Ask>,
    /// The first of it was asked for once.
    asked: bool,
    /// The target was full or away.
    resting: Option<Resting>,
    /// Of a sink that delivers exactly once.
    prepare: Option<Prepare>,
}

/// What the writer is asked for.
enum Ask {
    Write { epoch: Epoch, changes: ChangeBatch },
    Finish(Epoch),
    Prepare(Epoch),
    Flush,
    Commit { permit: CommitPermit, prepared: Vec<u8> },
    Close,
}

struct Resting {
    /// Until the writer is asked again.
    pause: Pause,
    /// The rest after the next failure.
    rest: Duration,
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
        let relation = self.relation;
        match self.try_step() {
            Ok(Stepped::Ended) => {
                self.clock.stalls.clear(Waiting::Sink(relation));
                Stepped::Ended
            }
            Ok(stepped) => stepped,
            Err(error) => {
                self.clock.stalls.clear(Waiting::Sink(relation));
                warn!(relation = relation.0, %error, "sink stopped");
                // A sink that was told to end leaves no checkpoint for it: its job goes on from the last one at the next start.
                if !self.shared.ending.load(Ordering::Acquire) {
                    self.clock.send(Event::StopJob { relation, error });
                }
                Stepped::Ended
            }
        }
    }

    fn wait(&mut self) {
        let now_us = self.time.now_us();
        if let Some(resting) = &self.resting {
            // Whatever comes meanwhile waits; who ends the sink wakes the thread.
            std::thread::park_timeout(resting.pause.left(now_us).unwrap_or_default());
            return;
        }
        let left = |at: i64| Duration::from_micros(at.saturating_sub(now_us).max(0) as u64);
        wait_for_message(&self.inbox, self.writer.next_flush_us().map(left));
    }

    fn stands_back(&self) -> bool {
        true
    }
}

impl SinkService {
    fn try_step(&mut self) -> Result<Stepped> {
        if !self.todo.is_empty() {
            return self.ask();
        }
        match self.inbox.try_recv() {
            Ok(ToSink::Rows { slot, tick, changes }) => self.take(slot, tick, changes),
            Ok(ToSink::Commit { permit, prepared }) => self.todo.push_back(Ask::Commit { permit, prepared }),
            Ok(ToSink::Close) | Err(TryRecvError::Disconnected) => self.todo.push_back(Ask::Close),
            Err(TryRecvError::Empty) => {
                let now_us = self.time.now_us();
                if self.writer.next_flush_us().is_none_or(|at| at > now_us) {
                    return Ok(Stepped::Idle);
                }
                self.todo.push_back(Ask::Flush);
            }
        }
        Ok(Stepped::Worked)
    }

    /// Asks the writer for what is next, again and again unless the cause of its refusal does not pass.
    fn ask(&mut self) -> Result<Stepped> {
        let now_us = self.time.now_us();
        if let Some(resting) = &self.resting
            && resting.pause.left(now_us).is_some()
            && self.may_rest()
        {
            return Ok(Stepped::Idle);
        }
        let asked = std::mem::replace(&mut self.asked, true);
        if !asked {
            self.shared.asked_us.store(now_us.max(1), Ordering::Relaxed);
        }
        let Some(ask) = self.todo.front() else { return Ok(Stepped::Idle) };
        let mut prepared = Vec::new();
        let done = match ask {
            // What may be asked only once: the rest of it is made up for.
            Ask::Write { .. } | Ask::Finish(_) if asked => self.writer.make_up(),
            Ask::Write { epoch, changes } => self.writer.write(*epoch, changes),
            Ask::Finish(epoch) => self.writer.finish_epoch(*epoch, now_us),
            Ask::Prepare(epoch) => self.writer.prepare(*epoch).map(|bytes| prepared = bytes),
            Ask::Flush => self.writer.flush(now_us),
            Ask::Commit { permit, prepared } => self.writer.commit(permit, prepared),
            Ask::Close => self.writer.close(),
        };
        match done {
            Err(cause) if cause.may_pass() && self.may_rest() => {
                self.rest(cause);
                return Ok(Stepped::Worked);
            }
            done => done?,
        }
        if self.resting.take().is_some() {
            self.clock.stalls.clear(Waiting::Sink(self.relation));
        }
        self.asked = false;
        self.shared.asked_us.store(0, Ordering::Relaxed);
        self.publish();
        match (self.todo.pop_front(), &self.prepare) {
            (Some(Ask::Write { changes, .. }), _) => self.shared.remove(changes.bytes()),
            (Some(Ask::Prepare(at)), Some(prepare)) => {
                (prepare.tell)(self.relation, Done::Prepared(at, prepared));
            }
            (Some(Ask::Commit { permit, .. }), Some(prepare)) => {
                (prepare.tell)(self.relation, Done::Committed(permit.epoch()));
            }
            (Some(Ask::Close), _) => return Ok(Stepped::Ended),
            _ => {}
        }
        Ok(Stepped::Worked)
    }

    fn rest(&mut self, cause: Error) {
        let rest = match &self.resting {
            Some(resting) => resting.rest,
            None => {
                warn!(relation = self.relation.0, error = %cause, "a sink is stalled");
                REST_FIRST
            }
        };
        self.clock.stalls.set(Waiting::Sink(self.relation), cause);
        let pause = Pause::new(self.time.now_us(), rest);
        self.resting = Some(Resting { pause, rest: (rest * 2).min(REST_MAX) });
    }

    /// A script is told at once that its target does not take rows, and who ends does not wait for better times.
    fn may_rest(&self) -> bool {
        !self.clock.sources_wait() && !self.shared.ending.load(Ordering::Acquire)
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

    fn take(&mut self, slot: SlotId, tick: Tick, changes: Option<ChangeBatch>) {
        match changes {
            Some(changes) => self.waiting.entry(tick.epoch).or_default().push(changes),
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
    fn write_until(&mut self, whole: Epoch) {
        while let Some(entry) = self.waiting.first_entry() {
            if *entry.key() > whole {
                break;
            }
            let (epoch, changes) = entry.remove_entry();
            // Nothing of a later epoch is written before the checkpoint's is prepared.
            self.prepare_before(epoch);
            self.write(epoch, changes);
            self.todo.push_back(Ask::Finish(epoch));
            if epoch == whole {
                return self.prepare_before(whole.next());
            }
        }
        self.prepare_before(whole);
        self.todo.push_back(Ask::Finish(whole));
        self.prepare_before(whole.next());
    }

    /// Prepares if the checkpoint's epoch is over and this is a later one.
    fn prepare_before(&mut self, epoch: Epoch) {
        let Some(prepare) = &mut self.prepare else { return };
        let at = Epoch(prepare.at.load(Ordering::Acquire));
        if at > prepare.prepared && at < epoch {
            prepare.prepared = at;
            // The epoch itself may have had no changes.
            self.todo.extend([Ask::Finish(at), Ask::Prepare(at)]);
        }
    }

    /// A back-fill is one long epoch: its chunks are written as they come, not kept.
    fn write_early(&mut self) {
        let next = self.whole().map(Epoch::next);
        if let Some(entry) = self.waiting.first_entry()
            && next.is_none_or(|n| *entry.key() <= n)
        {
            let (epoch, changes) = entry.remove_entry();
            self.write(epoch, changes);
        }
    }

    fn write(&mut self, epoch: Epoch, changes: Vec<ChangeBatch>) {
        self.todo.extend(changes.into_iter().map(|changes| Ask::Write { epoch, changes }));
    }
}
