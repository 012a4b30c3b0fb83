//! The epoch clock: one event loop that cuts epochs, starts and stops jobs, and says which epoch is complete.
//!
//! Law: commits join the open epoch under a shared lease; a cut takes the lease exclusively, so an epoch's input is fixed
//! before anything of it reaches a slot. Rows enter the flow only after the log is synced. An epoch is complete when every
//! attached job has finished it on every slot; completed epochs only grow.

mod lag;
mod rescale;
mod start;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use catalog::Catalog;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use flow::{ChangeBatch, Epoch, Error, RelationId, Result, SlotId};
use futures::future::Either;
use parking_lot::{Mutex, RwLock};
use plan::ProcessPlan;
use runtime::job::partition;
use runtime::{DeploymentId, FromSlot, Restore, Tick, ToSlot, Worker};
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};

use self::lag::Sent;
use self::rescale::Rescales;
use self::start::PutOff;
use crate::checkpoints::{Begin, Captured, KeptJob, Schedule, ToKeeper};
use crate::gate::Gate;
use crate::history::{Chronicler, EndState, Ended, JobFacts};
use crate::job::{JobBoard, JobState, Phase};
use crate::stalls::{Stalls, Waiting};
use crate::subscriptions::{Feeds, Why};
use crate::time::Time;

/// Epochs that may be on their way through the slots at once.
const IN_FLIGHT_MAX: usize = 2;
/// With an epoch under way, or with input that no session waits for, the next one is cut no sooner than this after it.
const CUT_INTERVAL: Duration = Duration::from_millis(5);
/// The same while a job cannot keep up with the epochs: each costs it a round through its slots, however few the rows.
const CUT_INTERVAL_LAGGING: Duration = Duration::from_millis(100);
/// A job that lags by so many epochs cannot keep up.
const LAG_MAX: u64 = 16;
/// Input rows below this go to one slot whole; splitting them would cost more than it gains.
const SPLIT_ROWS_MIN: usize = 1024;
/// An exchange cuts a batch into as many as there are slots. So much input is read and handed on by so many batches' rows together,
/// but not by more than these.
pub(crate) const SPREAD_MAX: usize = 4;
/// Input that may wait for the next cut before sources pause.
const PENDING_BYTES_MAX: usize = 32 << 20;
/// What may lie before a job that no epoch waits for, of input and (a sink) of what is to be written together, before a source that
/// nobody else reads pauses; in a script, before every source does.
const BACKLOG_BYTES_MAX: usize = 64 << 20;
/// How far (in epochs) a job may lag when the clock starts to wait for it.
const ATTACH_LAG_MAX: u64 = 2;
/// Epoch numbers are reserved in the log in blocks of this size, so that none is used twice.
pub const EPOCH_BLOCK: u64 = 1 << 20;

/// What the event loop reacts to.
pub enum Event {
    /// There is input in the open epoch.
    Input,
    FromSlot(FromSlot),
    Deploy(Deploy),
    /// Move a running job to another number of slots. Answered when it has finished an epoch there; `catalog` knows the names.
    Rescale {
        relation: RelationId,
        parallelism: usize,
        catalog: Catalog,
        reply: oneshot::Sender<Result<()>>,
    },
    Remove {
        /// With how each has ended, should it have a job.
        relations: Vec<(RelationId, EndState)>,
        reply: oneshot::Sender<()>,
    },
    /// A back-fill has sent everything, or could not.
    BackfillFailed {
        deployment: DeploymentId,
        error: Error,
    },
    /// A checkpoint is wanted now. The answer is its epoch.
    Checkpoint {
        reply: oneshot::Sender<Result<Epoch>>,
    },
    /// The checkpoint under way has ended, one way or the other.
    CheckpointEnded(Result<Epoch>),
    /// Everything that goes on from a checkpoint has been deployed, and what came after it has joined an epoch.
    Recovered,
    /// A job has to stop for a cause outside of the slots (its sink, its source).
    StopJob {
        relation: RelationId,
        error: Error,
    },
    /// The log can be written no more.
    LogFailed(Error),
    /// The slots are gone, for this cause: nothing is cut any more. What is committed is made durable first.
    Interrupt {
        cause: Error,
        reply: oneshot::Sender<()>,
    },
    Shutdown,
}

/// A job to start.
pub struct Deploy {
    pub relation: RelationId,
    pub plan: Arc<ProcessPlan>,
    /// Relations that the job reads.
    pub inputs: Vec<RelationId>,
    /// For the archive, when it has ended.
    pub facts: Arc<JobFacts>,
    /// Whether readers wait for this job (views) or not (sinks).
    pub is_view: bool,
    /// Whether checkpoints keep the job's state.
    pub kept: bool,
    /// Whether its rows go into a table, and so into the log.
    pub into_table: bool,
    /// On how many slots it works.
    pub parallelism: usize,
    /// What the job goes on from, instead of what its inputs hold.
    pub restore: Option<Restored>,
    /// Called on the clock thread once the first epoch is known: what feeds the back-fill, if one is needed. The feeder
    /// is let go when every slot has been told of the job, or its rows would come too early.
    pub start: Start,
    pub reply: oneshot::Sender<Result<Started>>,
}

/// A job's state in a checkpoint.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The first epoch that the job has shown, ever.
    pub incarnation: Epoch,
    pub state: Arc<Restore>,
}

/// Decides whether a job must back-fill, given where it starts.
pub type Start = Box<dyn FnOnce(&Started) -> Option<Feeder> + Send>;

/// Starts the feeder of a back-fill.
pub type Feeder = Box<dyn FnOnce() + Send>;

/// What a starting job is told.
#[derive(Clone, Debug)]
pub struct Started {
    pub deployment: DeploymentId,
    /// The snapshot that the job starts from: everything up to this epoch.
    pub snapshot: Epoch,
    /// The job's first chunk, if it back-fills.
    pub first: Tick,
    /// The processing time of what it reads to start: after that of the snapshot, before that of any later epoch.
    pub now_us: i64,
}

/// Durability as committers see it.
#[derive(Clone, Debug, Default)]
pub struct Durable {
    pub epoch: Epoch,
    /// Set once, when the log cannot be written any more.
    pub failed: Option<Error>,
}

/// The side of the clock that sessions, sources and sinks touch.
pub struct Clock {
    pub time: Time,
    /// Bytes that wait to be written by sinks.
    pub sink_backlog: Arc<AtomicUsize>,
    /// The same for each sink.
    sink_backlogs: RwLock<HashMap<RelationId, Arc<AtomicUsize>>>,
    /// Bytes of input that jobs which no epoch waits for have before them; nothing for those that have none.
    ahead_of: RwLock<HashMap<RelationId, usize>>,
    /// Views that catch up and that their sources wait for; see [`set_catch_up_max`](Clock::set_catch_up_max).
    waited_for: RwLock<HashSet<RelationId>>,
    catch_up_max: AtomicUsize,
    /// Whether sources wait for sinks whoever else reads them: where one script owns everything.
    sources_wait: AtomicBool,
    open: RwLock<Epoch>,
    pending: Mutex<Pending>,
    events: Sender<Event>,
    durable: watch::Sender<Durable>,
    completed: watch::Sender<Epoch>,
    /// The newest epoch with a commit that a client has been told of.
    acknowledged: AtomicU64,
    pub board: JobBoard,
    pub stalls: Stalls,
    /// Relations whose changes are followed.
    pub feeds: Arc<Feeds>,
    /// By relation whose rows can be taken away: the columns by which its rows are spread over the slots. A row's deletion
    /// must reach the slot that has seen its insertion.
    routes: RwLock<HashMap<RelationId, Arc<[usize]>>>,
    /// The gates of the relations that declare a watermark; they move at every cut.
    gates: RwLock<BTreeMap<RelationId, Arc<Gate>>>,
}

#[derive(Default)]
struct Pending {
    inputs: Vec<(RelationId, ChangeBatch)>,
    bytes: usize,
    /// Something in the log belongs to the open epoch.
    logged: bool,
}

impl Clock {
    /// A clock whose first epoch is `first`, and the receiver that its event loop reads.
    pub fn new(first: Epoch, time: Time) -> (Arc<Clock>, Receiver<Event>) {
        let (events, receiver) = crossbeam_channel::unbounded();
        let before = Epoch(first.0 - 1);
        let clock = Clock {
            time,
            sink_backlog: Arc::default(),
            sink_backlogs: RwLock::default(),
            ahead_of: RwLock::default(),
            waited_for: RwLock::default(),
            catch_up_max: AtomicUsize::new(usize::MAX),
            sources_wait: AtomicBool::new(false),
            open: RwLock::new(first),
            pending: Mutex::default(),
            events,
            durable: watch::Sender::new(Durable { epoch: before, failed: None }),
            completed: watch::Sender::new(before),
            acknowledged: AtomicU64::new(0),
            board: JobBoard::default(),
            stalls: Stalls::default(),
            feeds: Arc::default(),
            routes: RwLock::default(),
            gates: RwLock::default(),
        };
        (Arc::new(clock), receiver)
    }

    /// Sends an event to the loop.
    pub fn send(&self, event: Event) {
        // Fails only when the loop has ended; then nothing waits for the effect.
        let _ = self.events.send(event);
    }

    /// Joins the open epoch: `commit` logs and applies its rows for the given epoch and returns what flows to jobs.
    /// While it runs the epoch cannot be cut.
    pub fn commit(
        &self,
        logged: bool,
        commit: impl FnOnce(Epoch) -> Result<Vec<(RelationId, ChangeBatch)>>,
    ) -> Result<Epoch> {
        if let Some(failed) = &self.durable.borrow().failed {
            return Err(failed.clone());
        }
        let lease = self.open.read();
        let epoch = *lease;
        let inputs = commit(epoch)?;
        let mut pending = self.pending.lock();
        // The clock knows already of an epoch that has more than nothing; a session that waits for it is news.
        let news = !pending.logged && (logged || pending.inputs.is_empty());
        pending.bytes += inputs.iter().map(|(_, c)| c.bytes()).sum::<usize>();
        pending.inputs.extend(inputs);
        pending.logged |= logged;
        drop(pending);
        drop(lease);
        if news {
            self.send(Event::Input);
        }
        Ok(epoch)
    }

    /// Spreads the rows of `relation` by these columns from now on; `None` forgets it.
    pub fn set_route(&self, relation: RelationId, columns: Option<Vec<usize>>) {
        let mut routes = self.routes.write();
        match columns {
            Some(columns) => routes.insert(relation, columns.into()),
            None => routes.remove(&relation),
        };
    }

    /// The columns by which the rows of `relation` are spread over the slots.
    pub fn route(&self, relation: RelationId) -> Option<Arc<[usize]>> {
        self.routes.read().get(&relation).cloned()
    }

    /// Moves this gate at every cut from now on.
    pub fn add_gate(&self, gate: Arc<Gate>) {
        self.gates.write().insert(gate.relation, gate);
    }

    pub fn remove_gate(&self, relation: RelationId) {
        self.gates.write().remove(&relation);
    }

    /// The gate of a relation that declares a watermark.
    pub fn gate(&self, relation: RelationId) -> Option<Arc<Gate>> {
        self.gates.read().get(&relation).cloned()
    }

    /// When a split of any gate falls idle next.
    fn next_idle_us(&self) -> Option<i64> {
        self.gates.read().values().filter_map(|g| g.next_idle_us()).min()
    }

    /// Lets sources wait for sinks from now on.
    pub fn let_sources_wait(&self) {
        self.sources_wait.store(true, Ordering::Relaxed);
    }

    /// Whether one script owns everything: then nothing is gained by going on without a sink.
    pub fn sources_wait(&self) -> bool {
        self.sources_wait.load(Ordering::Relaxed)
    }

    /// A sink has begun to run; what waits for it is counted here until [`forget_backlog`](Self::forget_backlog).
    pub fn note_backlog(&self, sink: RelationId, bytes: Arc<AtomicUsize>) {
        self.sink_backlogs.write().insert(sink, bytes);
    }

    /// A sink has ended.
    pub fn forget_backlog(&self, sink: RelationId) {
        self.sink_backlogs.write().remove(&sink);
    }

    /// Whether a source that these jobs read should wait: none of them keeps up, and no epoch waits for any, so that nobody else sees it
    /// when what they read comes later; or what waits for one that catches up would take too much memory.
    pub fn are_behind(&self, jobs: &HashSet<RelationId>) -> bool {
        if !self.waited_for.read().is_disjoint(jobs) {
            return true;
        }
        let ahead_of = self.ahead_of.read();
        if ahead_of.is_empty() && self.sink_backlog.load(Ordering::Relaxed) <= BACKLOG_BYTES_MAX {
            return false;
        }
        let backlogs = self.sink_backlogs.read();
        // What is on its way to a sink waits for it soon: either alone would let in twice as much.
        let is_behind = |job| {
            let waits = backlogs.get(job).map_or(0, |bytes| bytes.load(Ordering::Relaxed));
            waits + ahead_of.get(job).copied().unwrap_or(0) > BACKLOG_BYTES_MAX
        };
        !jobs.is_empty() && jobs.iter().all(is_behind)
    }

    /// Whether the flow cannot take more rows of sources now.
    pub fn is_full(&self) -> bool {
        let behind = || {
            let ahead = self.ahead_of.read().values().copied().max().unwrap_or(0);
            self.sink_backlog.load(Ordering::Relaxed) + ahead > BACKLOG_BYTES_MAX
        };
        (self.sources_wait() && behind()) || self.stalls.is_full() || self.pending_bytes() > PENDING_BYTES_MAX
    }

    /// Bytes of input that wait for the next cut.
    pub fn pending_bytes(&self) -> usize {
        self.pending.lock().bytes
    }

    /// The newest completed epoch.
    pub fn completed(&self) -> Epoch {
        *self.completed.borrow()
    }

    /// A receiver of completed epochs.
    pub fn watch_completed(&self) -> watch::Receiver<Epoch> {
        self.completed.subscribe()
    }

    /// Waits until `epoch` is complete. Errors: `58030`, `53100` the log has failed before it was durable, so it never will be.
    pub async fn wait_completed(&self, epoch: Epoch) -> Result<()> {
        if self.completed() >= epoch {
            return Ok(());
        }
        let mut completed = self.completed.subscribe();
        let complete = async { completed.wait_for(|c| *c >= epoch).await.map(|_| ()).map_err(|_| shutting_down()) };
        let failed = self.log_failure(Some(epoch));
        futures::pin_mut!(complete, failed);
        match futures::future::select(complete, failed).await {
            Either::Left((complete, _)) => complete,
            Either::Right((failed, _)) => Err(failed),
        }
    }

    /// Waits until the log has failed; with an epoch, until it has failed without having made that durable.
    pub async fn log_failure(&self, before: Option<Epoch>) -> Error {
        let mut durable = self.durable.subscribe();
        let failed = durable.wait_for(|d| d.failed.is_some() && before.is_none_or(|epoch| d.epoch < epoch)).await;
        failed.ok().and_then(|d| d.failed.clone()).unwrap_or_else(shutting_down)
    }

    /// The log can be written no more: whoever waits for what is not durable is told now.
    pub fn log_failed(&self, cause: &Error) {
        let first = self.durable.send_if_modified(|d| {
            let first = d.failed.is_none();
            d.failed.get_or_insert_with(|| cause.clone());
            first
        });
        if first {
            error!(error = %cause, "the log cannot be written; refusing all writes");
            self.send(Event::LogFailed(cause.clone()));
        }
    }

    /// How far the log is durable, and whether it can still be written.
    pub fn durability(&self) -> Durable {
        self.durable.borrow().clone()
    }

    /// Waits until everything committed in `epoch` is durable.
    pub async fn wait_durable(&self, epoch: Epoch) -> Result<()> {
        let mut durable = self.durable.subscribe();
        let state =
            durable.wait_for(|d| d.epoch >= epoch || d.failed.is_some()).await.map_err(|_| shutting_down())?.clone();
        match state.failed {
            Some(failed) if state.epoch < epoch => Err(failed),
            _ => {
                self.acknowledge(epoch);
                Ok(())
            }
        }
    }

    /// Whoever reads from now on sees everything up to `epoch`.
    pub fn acknowledge(&self, epoch: Epoch) {
        self.acknowledged.fetch_max(epoch.0, Ordering::Relaxed);
    }

    /// The newest epoch with a commit that a client has been told of: who reads now must see it, in any session.
    pub fn acknowledged(&self) -> Epoch {
        Epoch(self.acknowledged.load(Ordering::Relaxed))
    }
}

/// The answer to anything that waits when the server stops.
pub fn shutting_down() -> Error {
    Error::new(flow::SqlState::AdminShutdown, "the server is shutting down")
}

/// Whether a job with this error has only lost its worker or its coordinator: the next engine starts it again.
pub fn ends_with_the_engine(cause: &Error) -> bool {
    matches!(cause.state(), flow::SqlState::CannotConnectNow | flow::SqlState::AdminShutdown)
}

/// The event loop's own state. [`run`](ClockLoop::run) drives it on a thread; tests call [`handle`](ClockLoop::handle)
/// and [`try_cut`](ClockLoop::try_cut) themselves.
pub struct ClockLoop {
    clock: Arc<Clock>,
    worker: Arc<dyn Worker>,
    log: Arc<checkpoint::Log>,
    time: Time,
    jobs: BTreeMap<DeploymentId, JobState>,
    next_deployment: u64,
    /// The newest epoch that was cut.
    cut: Epoch,
    /// Numbers from here on are not reserved yet.
    reserved: Epoch,
    last_cut_us: i64,
    /// The newest processing time that was given out.
    stamped_us: i64,
    timers: Vec<Option<i64>>,
    /// The slot that gets the next part of a large input.
    input_turn: usize,
    deliver: Box<dyn Fn(FromSlot) + Send>,
    on_complete: Box<dyn Fn(Epoch) + Send>,
    checkpoints: Option<Schedule>,
    /// Where jobs that have ended are told.
    chronicler: Option<Chronicler>,
    rescales: Rescales,
    /// Jobs whose start the log has refused for now.
    put_off: Vec<PutOff>,
    /// Input on its way.
    sent: Sent,
    /// Called at every cut, under its lease.
    at_cut: Option<Box<dyn Fn(Epoch) + Send>>,
    stopped: bool,
}

impl ClockLoop {
    /// `deliver` takes what slots send to sinks; `on_complete` is called after an epoch became visible.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        clock: Arc<Clock>,
        worker: Arc<dyn Worker>,
        log: Arc<checkpoint::Log>,
        time: Time,
        reserved: Epoch,
        deliver: Box<dyn Fn(FromSlot) + Send>,
        on_complete: Box<dyn Fn(Epoch) + Send>,
        checkpoints: Option<Schedule>,
        chronicler: Option<Chronicler>,
        stamped_us: Option<i64>,
    ) -> ClockLoop {
        let cut = Epoch(clock.open.read().0 - 1);
        let timers = vec![None; worker.slots()];
        ClockLoop {
            clock,
            worker,
            log,
            time,
            jobs: BTreeMap::new(),
            next_deployment: 1,
            cut,
            reserved,
            last_cut_us: i64::MIN / 2,
            stamped_us: stamped_us.unwrap_or(i64::MIN / 2),
            timers,
            input_turn: 0,
            deliver,
            on_complete,
            checkpoints,
            chronicler,
            rescales: Rescales::default(),
            put_off: Vec::new(),
            sent: Sent::default(),
            at_cut: None,
            stopped: false,
        }
    }

    /// Lets `at_cut` be called at every cut, under its lease: what only then stands still.
    pub fn with_cuts(self, at_cut: Box<dyn Fn(Epoch) + Send>) -> ClockLoop {
        ClockLoop { at_cut: Some(at_cut), ..self }
    }

    /// Runs until [`Event::Shutdown`].
    pub fn run(mut self, events: Receiver<Event>) {
        while !self.stopped {
            let event = match self.wait() {
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => events.recv_timeout(wait),
            };
            match event {
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while let Ok(event) = events.try_recv() {
                self.handle(event);
            }
            self.try_cut();
        }
    }

    /// How long nothing can become due; `None` for ever.
    fn wait(&self) -> Option<Duration> {
        if self.rescales.hold_cuts() {
            return None;
        }
        let now = self.time.now_us();
        let checkpoint = self.checkpoints.as_ref().and_then(Schedule::due_us);
        let put_off = self.put_off.iter().map(|job| job.due_us(now));
        let mut due = self.timers().chain(self.clock.next_idle_us()).chain(checkpoint).chain(put_off).min();
        if self.has_input() && self.in_flight() < IN_FLIGHT_MAX {
            let cut_at = self.last_cut_us + self.interval_us();
            due = Some(due.map_or(cut_at, |d| d.min(cut_at)));
        }
        due.map(|at| Duration::from_micros(at.saturating_sub(now).max(0) as u64))
    }

    /// What jobs wait for in processing time, without what an epoch that was cut already serves.
    fn timers(&self) -> impl Iterator<Item = i64> {
        self.timers.iter().flatten().copied().filter(|at| *at > self.stamped_us)
    }

    /// A processing time that is later than all before, though the system's clock may stand or go back.
    fn stamp(&mut self, now_us: i64) -> i64 {
        self.stamped_us = now_us.max(self.stamped_us + 1);
        self.stamped_us
    }

    fn has_input(&self) -> bool {
        let pending = self.clock.pending.lock();
        pending.logged || !pending.inputs.is_empty()
    }

    /// Whether a session waits for the open epoch.
    fn is_urgent(&self) -> bool {
        self.clock.pending.lock().logged
    }

    /// How far cuts that nobody waits for are apart.
    fn interval_us(&self) -> i64 {
        let slow = self.jobs.values().any(|job| job.slow && !job.attached);
        let interval = if slow { CUT_INTERVAL_LAGGING } else { CUT_INTERVAL };
        interval.as_micros() as i64
    }

    fn in_flight(&self) -> usize {
        (self.cut.0 - self.clock.completed().0) as usize
    }

    /// Whether the server stops.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Reacts to one event.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Input => {}
            Event::FromSlot(FromSlot::Progress { slot, finished, next_timer_us }) => {
                self.timers[slot.0 as usize] = next_timer_us;
                for (deployment, tick) in finished {
                    if let Some(job) = self.jobs.get_mut(&deployment) {
                        job.finished(slot, tick);
                    }
                }
                self.advance();
            }
            Event::FromSlot(FromSlot::Failed { deployment, error, .. }) => self.fail(deployment, error),
            Event::FromSlot(FromSlot::Deliver { deployment, sink, .. }) if self.is_replaced(deployment, sink) => {}
            Event::FromSlot(deliver @ FromSlot::Deliver { .. }) => (self.deliver)(deliver),
            Event::FromSlot(FromSlot::Stored { slot, deployment, epoch, state }) => {
                self.note_stored(slot, deployment, epoch, &state);
                self.tell(ToKeeper::Stored { slot, deployment, epoch, state });
            }
            Event::FromSlot(FromSlot::NotStored { deployment, error, .. }) => self.unkeep(deployment, error),
            Event::FromSlot(FromSlot::Storing { cause, full }) => {
                self.clock.stalls.set_full(full);
                match cause {
                    Some(cause) => {
                        if let Some(schedule) = &mut self.checkpoints {
                            schedule.refuse(&cause);
                        }
                        self.give_up_rescale(None, &cause);
                        self.clock.stalls.set(Waiting::State, cause);
                    }
                    None => drop(self.clock.stalls.clear(Waiting::State)),
                }
            }
            Event::Checkpoint { reply } => match &mut self.checkpoints {
                Some(schedule) => {
                    schedule.waiting.push(reply);
                    if let Some(failed) = &self.clock.durable.borrow().failed {
                        schedule.give_up(failed);
                    }
                    if let Some(cause) = self.clock.stalls.of_checkpoints().filter(|_| schedule.is_under_way()) {
                        schedule.refuse(&cause);
                    }
                }
                None => {
                    let _ = reply.send(Err(Error::new(
                        flow::SqlState::ObjectNotInPrerequisiteState,
                        "checkpoints are switched off",
                    )));
                }
            },
            Event::CheckpointEnded(outcome) => {
                if let Some(schedule) = &mut self.checkpoints {
                    schedule.ended(&outcome, self.time.now_us());
                }
            }
            Event::Recovered => {
                if let Some(schedule) = &mut self.checkpoints {
                    schedule.starting = false;
                }
            }
            Event::Deploy(deploy) => {
                if let Some(deploy) = self.rescales.defer(deploy) {
                    self.start_deploy(deploy);
                }
            }
            Event::Rescale { relation, parallelism, catalog, reply } => {
                self.rescale(relation, parallelism, catalog, reply);
            }
            Event::Remove { relations, reply } => {
                for (relation, state) in relations {
                    self.remove(relation, state);
                }
                self.advance();
                // The statement may have been cancelled; the objects are gone all the same.
                let _ = reply.send(());
            }
            Event::BackfillFailed { deployment, error } => self.fail(deployment, error),
            Event::StopJob { relation, error } => {
                if let Some(deployment) = self.deployment_of(relation) {
                    self.fail(deployment, error);
                }
            }
            Event::LogFailed(failed) => self.give_up(&failed),
            Event::Interrupt { cause, reply } => {
                self.interrupt(cause);
                // Whoever asked may be gone.
                let _ = reply.send(());
            }
            Event::Shutdown => {
                self.worker.broadcast(&ToSlot::Shutdown);
                self.clock.board.close();
                self.clock.feeds.close(self.clock.completed());
                self.stopped = true;
            }
        }
    }

    /// Ends the open epoch without a cut: who waits for what is in it is answered by the log alone, and nobody joins any more.
    fn interrupt(&mut self, cause: Error) {
        if let Some(failed) = self.end_open(cause) {
            self.give_up(&failed);
        }
    }

    /// The cause by which waiters are told; `None`: they were before.
    fn end_open(&self, cause: Error) -> Option<Error> {
        // Nobody is in the middle of a commit while this is held.
        let open = self.clock.open.write();
        if self.clock.durable.borrow().failed.is_some() {
            return None;
        }
        let logged = self.clock.pending.lock().logged;
        let sync = logged && !checkpoint::planted::is("unsynced");
        let synced = if sync { self.log.sync().map(drop) } else { Ok(()) };
        let failed = synced.as_ref().err().cloned().unwrap_or(cause);
        self.clock.durable.send_modify(|durable| {
            if synced.is_ok() {
                durable.epoch = *open;
            }
            durable.failed = Some(failed.clone());
        });
        Some(failed)
    }

    /// Tells those who wait for what cannot come any more.
    fn give_up(&mut self, failed: &Error) {
        if let Some(schedule) = &mut self.checkpoints {
            schedule.give_up(failed);
        }
        self.give_up_rescale(None, failed);
        self.give_up_put_off(failed);
    }

    fn deployment_of(&self, relation: RelationId) -> Option<DeploymentId> {
        self.jobs.values().find(|j| j.relation == relation).map(|j| j.deployment)
    }

    /// Whether another deployment of the same job works now: a slot's second thread may still say something of an earlier one after
    /// the slot has forgotten it.
    fn is_replaced(&self, deployment: DeploymentId, relation: RelationId) -> bool {
        !self.jobs.contains_key(&deployment) && self.deployment_of(relation).is_some()
    }

    /// Cuts the open epoch if there is a reason to and room for it.
    pub fn try_cut(&mut self) {
        if self.rescales.hold_cuts() {
            return;
        }
        let now = self.time.now_us();
        self.start_put_off(now);
        let checkpoint_due = self.checkpoints.as_mut().is_some_and(|schedule| schedule.is_due(now));
        let timer_due = checkpoint_due || self.timers().chain(self.clock.next_idle_us()).any(|at| at <= now);
        if !(self.has_input() || timer_due) {
            return;
        }
        let in_flight = self.in_flight();
        let spaced = now - self.last_cut_us >= self.interval_us();
        let urgent = timer_due || self.is_urgent();
        if (in_flight == 0 && urgent) || (in_flight < IN_FLIGHT_MAX && spaced) {
            self.cut_epoch(now);
        }
    }

    fn cut_epoch(&mut self, now_us: i64) {
        if self.clock.durable.borrow().failed.is_some() {
            return;
        }
        self.last_cut_us = now_us;
        let checkpoint = self.checkpoints.as_mut().is_some_and(|schedule| schedule.is_due(now_us));
        let now_us = self.stamp(now_us);
        let (pending, watermarks, captured) = {
            let mut open = self.clock.open.write();
            let epoch = *open;
            *open = epoch.next();
            self.cut = epoch;
            // Within the lease: the rows of the next epoch are measured by what is promised here.
            let watermarks: Vec<(RelationId, i64)> =
                self.clock.gates.read().values().map(|gate| (gate.relation, gate.advance(now_us))).collect();
            if let Some(at_cut) = &self.at_cut {
                at_cut(epoch);
            }
            let captured = self.checkpoints.as_ref().filter(|_| checkpoint).map(|schedule| (schedule.capture)(epoch));
            (std::mem::take(&mut *self.clock.pending.lock()), watermarks, captured)
        };
        let epoch = self.cut;
        if let Err(failed) = self.make_durable(epoch, pending.logged) {
            self.clock.log_failed(&failed);
            return;
        }
        self.clock.durable.send_modify(|d| d.epoch = epoch);
        if let Some(captured) = captured {
            self.begin_checkpoint(epoch, now_us, captured);
        } else if let Some(schedule) = &mut self.checkpoints {
            schedule.changed_us.get_or_insert(now_us);
        }
        self.sent.cut(epoch, pending.bytes as u64);
        let mut rows: HashMap<RelationId, usize> = HashMap::new();
        for (relation, changes) in &pending.inputs {
            *rows.entry(*relation).or_default() += changes.num_rows();
        }
        for (relation, changes) in pending.inputs {
            if let Err(cause) = self.send_input(relation, epoch, changes, rows[&relation]) {
                // Its readers have missed rows: they must not go on.
                let readers = self.jobs.values().filter(|j| j.inputs.contains(&relation)).map(|j| j.deployment);
                for deployment in readers.collect::<Vec<_>>() {
                    self.fail(deployment, cause.clone());
                }
            }
        }
        self.worker.broadcast(&ToSlot::Barrier { epoch, now_us, watermarks: Arc::new(watermarks) });
        self.advance();
    }

    /// Lets every kept job that has caught up once freeze its state at the end of `epoch`, and the keeper wait for it, however
    /// far it lags: a sink that was left out could not go on without repeating what it has published.
    fn begin_checkpoint(&mut self, epoch: Epoch, now_us: i64, captured: Captured) {
        let jobs = self.jobs.values().filter(|job| job.kept && job.finished_epoch().is_some());
        let jobs = jobs.map(|j| KeptJob {
            deployment: j.deployment,
            relation: j.relation,
            incarnation: j.incarnation,
            plan: Arc::clone(&j.plan),
            parallelism: j.parallelism,
            is_view: j.is_view,
        });
        let begin = Begin { epoch, now_us, jobs: jobs.collect(), slots: self.worker.slots(), captured };
        let kept: Vec<DeploymentId> = begin.jobs.iter().map(|job| job.deployment).collect();
        if let Some(schedule) = &mut self.checkpoints {
            schedule.begin();
            (schedule.prepare)(epoch);
        }
        checkpoint::crash::point("C0");
        self.worker.broadcast(&ToSlot::Checkpoint { epoch });
        self.tell(ToKeeper::Begin(Box::new(begin)));
        self.rescale_with(epoch, &kept);
    }

    fn tell(&self, message: ToKeeper) {
        if let Some(schedule) = &self.checkpoints {
            // The keeper ends after the clock.
            let _ = schedule.keeper.send(message);
        }
    }

    /// The state of a job could not be stored. A view goes on, and is made anew from its inputs after a restart; a sink stops,
    /// because what it would deliver could never be published.
    fn unkeep(&mut self, deployment: DeploymentId, error: Error) {
        warn!(deployment = deployment.0, %error, "the state of a job could not be stored");
        self.give_up_rescale(Some(deployment), &error);
        match self.jobs.get_mut(&deployment) {
            Some(job) if job.is_view => {
                job.kept = false;
                self.tell(ToKeeper::Gone(deployment));
            }
            _ => self.fail(deployment, error),
        }
    }

    fn make_durable(&mut self, epoch: Epoch, logged: bool) -> Result<()> {
        // Well before the last number: a disk that is full just then has time to get room again.
        if epoch.0 + EPOCH_BLOCK / 2 >= self.reserved.0 {
            match self.reserve(Epoch(epoch.0 + EPOCH_BLOCK)) {
                Err(cause) if cause.may_pass() && epoch.next() < self.reserved => {}
                reserved => reserved?,
            }
        }
        if logged {
            self.log.sync()?;
        }
        Ok(())
    }

    fn reserve(&mut self, until: Epoch) -> Result<()> {
        self.log.append(&[&crate::record::reserve_epochs(until)?])?;
        self.log.sync()?;
        self.reserved = until;
        Ok(())
    }

    /// Hands a part of the epoch's `all` changed rows of a relation to the slots. Much is handed on whole, to the slots in turn:
    /// operators work best on large batches, also those behind an exchange. Little is spread.
    fn send_input(&mut self, relation: RelationId, epoch: Epoch, changes: ChangeBatch, all: usize) -> Result<()> {
        let slots = self.worker.slots();
        let rows = changes.num_rows();
        let batch_rows = self.worker.batch_rows();
        if let Some(route) = self.clock.route(relation).filter(|_| slots > 1) {
            for (slot, part) in partition(&changes, &route, slots)? {
                for start in (0..part.num_rows()).step_by(batch_rows) {
                    let changes = part.slice(start, batch_rows.min(part.num_rows() - start));
                    self.worker.send(SlotId(slot as u16), ToSlot::Input { relation, epoch, changes });
                }
            }
            return Ok(());
        }
        if rows <= SPLIT_ROWS_MIN.min(batch_rows) {
            let slot = flow::hash::hash_u64(relation.0 as u64) as usize % slots;
            self.worker.send(SlotId(slot as u16), ToSlot::Input { relation, epoch, changes });
            return Ok(());
        }
        let piece = (batch_rows * slots.min(SPREAD_MAX)).min(all.div_ceil(slots));
        for start in (0..rows).step_by(piece) {
            let changes = changes.slice(start, piece.min(rows - start));
            self.worker.send(SlotId(self.input_turn as u16), ToSlot::Input { relation, epoch, changes });
            self.input_turn = (self.input_turn + 1) % slots;
        }
        Ok(())
    }

    fn remove(&mut self, relation: RelationId, state: EndState) {
        self.forget_put_off(relation);
        if let Some(deployment) = self.deployment_of(relation) {
            if let Some(job) = self.jobs.remove(&deployment) {
                self.archive(&job, state, None);
            }
            self.worker.broadcast(&ToSlot::Remove { deployment });
            self.tell(ToKeeper::Gone(deployment));
            let cause = Error::new(flow::SqlState::UndefinedObject, "the job was dropped");
            self.give_up_rescale(Some(deployment), &cause);
            self.has_moved(relation, Some(&cause));
        }
        self.clock.board.forget(relation);
        self.worker.holdings().forget_view(relation);
        self.clock.feeds.end(relation, Why::Dropped, self.clock.completed());
    }

    /// Hands the record of a job that ends to the archive.
    fn archive(&self, job: &JobState, state: EndState, error: Option<&Error>) {
        let Some(chronicler) = &self.chronicler else { return };
        let view = self.worker.holdings().view(job.relation).filter(|_| job.is_view);
        chronicler.tell(Ended {
            facts: Arc::clone(&job.facts),
            state,
            error: error.cloned(),
            plan: Arc::clone(&job.plan),
            parallelism: job.parallelism,
            first: job.incarnation,
            last: job.finished_epoch(),
            rows: view.as_ref().map(|view| view.live_rows() as u64),
            bytes: view.as_ref().map(|view| view.bytes() as u64),
            rows_touched: self.worker.shared().map(|shared| shared.rows_touched(job.deployment)),
        });
    }

    fn fail(&mut self, deployment: DeploymentId, error: Error) {
        let Some(job) = self.jobs.remove(&deployment) else { return };
        warn!(relation = job.relation.0, %error, "job stopped");
        // Else it has not ended.
        if !ends_with_the_engine(&error) {
            self.archive(&job, EndState::Failed, Some(&error));
        }
        self.tell(ToKeeper::Gone(deployment));
        if job.incarnation < job.first && !matches!(job.phase, Phase::Running) {
            self.tell(ToKeeper::Spare);
        }
        self.worker.broadcast(&ToSlot::Remove { deployment });
        self.worker.holdings().forget_view(job.relation);
        self.give_up_rescale(Some(deployment), &error);
        self.has_moved(job.relation, Some(&error));
        self.clock.board.set(&job, Phase::Failed(error.clone()));
        // Before a later epoch is complete without the job.
        self.clock.feeds.end(job.relation, Why::Failed(error.clone()), self.clock.completed());
        let dependants: Vec<DeploymentId> =
            self.jobs.values().filter(|j| j.inputs.contains(&job.relation)).map(|j| j.deployment).collect();
        for dependant in dependants {
            self.fail(dependant, upstream_failed(&error));
        }
        self.advance();
    }

    /// Attaches jobs that have caught up, publishes what is complete now.
    fn advance(&mut self) {
        let mut changed = Vec::new();
        for job in self.jobs.values_mut() {
            let Some(done) = job.finished_epoch() else {
                if job.take_progress() {
                    self.clock.board.progress(job);
                }
                continue;
            };
            let lag = self.cut.0.saturating_sub(done.0);
            // Not before it has caught up for good are epochs small again: else it would stay behind by just so many.
            job.slow = lag > LAG_MAX || (job.slow && lag > ATTACH_LAG_MAX);
            if job.is_view && !job.attached && lag <= ATTACH_LAG_MAX {
                job.attached = true;
                changed.push(job.deployment);
            }
            if job.take_progress() {
                self.clock.board.progress(job);
            }
        }
        for deployment in changed {
            self.worker.broadcast(&ToSlot::Attach { deployment, attached: true });
        }
        self.note_lags();
        let durable = self.clock.durable.borrow().epoch;
        let completed = self
            .jobs
            .values()
            .filter(|j| j.attached)
            .filter_map(JobState::finished_epoch)
            .fold(durable.min(self.cut), Epoch::min);
        let advanced = self.clock.completed.send_if_modified(|c| {
            let grown = completed > *c;
            *c = completed.max(*c);
            grown
        });
        let completed = self.clock.completed();
        // A job becomes readable when it has finished what is visible.
        let is_ready = |job: &&JobState| {
            // Before its first epoch is visible the view would show nothing.
            let ready = job.finished_epoch().is_some_and(|done| done >= completed && completed >= job.first);
            !matches!(job.phase, Phase::Running) && ready && (job.attached || !job.is_view)
        };
        let ready: Vec<_> = self.jobs.values().filter(is_ready).map(|j| (j.deployment, j.relation)).collect();
        for (deployment, relation) in &ready {
            self.has_moved(*relation, None);
            if let Some(job) = self.jobs.get_mut(deployment) {
                job.phase = Phase::Running;
                info!(relation = relation.0, epoch = completed.0, "job is up to date");
                self.clock.board.set(job, Phase::Running);
            }
        }
        if advanced {
            (self.on_complete)(completed);
        }
        self.tidy_after_rescale();
        if !ready.is_empty() {
            self.go_on_after_rescale();
        }
    }
}

fn upstream_failed(cause: &Error) -> Error {
    Error::new(cause.state(), format!("an input of the view has stopped: {}", cause.message()))
        .with_hint("Drop and create the input again after removing the cause.")
}
