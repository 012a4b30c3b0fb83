//! Checkpoints: when one is due, what it waits for, and how it becomes durable.
//!
//! The clock cuts an epoch and says which jobs belong to its checkpoint; the keeper, a service of its own, waits until every
//! slot has stored its share and every sink that delivers exactly once has prepared, writes the manifest, claims the epoch,
//! lets the sinks commit, and clears away what no kept checkpoint needs. Nothing of this holds up the flow.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use checkpoint::Log;
use checkpoint::crash;
use checkpoint::door::Door;
use checkpoint::fsck::{self, CheckpointLine};
use checkpoint::manifest::{JobState, Manifest, PartRef, PreparedSink, SegmentRef};
use checkpoint::segment::{SegmentReader, SegmentWriter};
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use flow::{ChangeBatch, Epoch, Error, JobId, RelationId, Result, SlotId, SqlState, TaskId};
use parking_lot::Mutex;
use plan::ProcessPlan;
use runtime::depot::{bytes_of, put_single};
use runtime::service::wait_for_message;
use runtime::{DeploymentId, Join, Pause, Service, Stepped, StoredState, Worker};
use serde::{Deserialize, Serialize};
use state::{Snapshot, owned};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::clock::{Clock, Event};
use crate::compaction::{Compaction, Prefix};
use crate::execution::Execution;
use crate::recovery::{Found, Kept, port_watermarks};
use crate::sinks::{Done, Sinks};
use crate::sources::{SourceState, Sources};
use crate::stalls::Waiting;

/// The part of a side table's segment that holds its rows.
const SIDE_PART: &str = "rows";

/// How often, in the time that a sink is waited for, is looked whether it holds up a checkpoint.
const LOOKS: u32 = 4;

/// Rows of one chunk of it.
const SIDE_ROWS: usize = 8192;

/// What the clock knows of checkpoints.
pub struct Schedule {
    pub keeper: Sender<ToKeeper>,
    /// Called at a cut, under its lease: what only then stands still.
    pub capture: Box<dyn Fn(Epoch) -> Captured + Send>,
    /// Called before anything of the epoch reaches a slot.
    pub prepare: Box<dyn Fn(Epoch) + Send>,
    /// In microseconds; 0: only when asked for.
    interval_us: Arc<AtomicI64>,
    /// Who waits for the next checkpoint, and who for the one under way.
    pub waiting: Vec<oneshot::Sender<Result<Epoch>>>,
    asked: Vec<oneshot::Sender<Result<Epoch>>>,
    under_way: bool,
    /// When the oldest epoch was cut that no checkpoint holds.
    pub changed_us: Option<i64>,
    /// A start is not over: jobs that go on are still missing, or have not seen what the log says of the time after their state. A
    /// checkpoint would take its epoch for all of that, and the next start would feed none of it to them.
    pub starting: bool,
}

impl Schedule {
    /// When the next checkpoint is due; `None`: nothing is to be kept, one is under way, or a start is.
    pub fn due_us(&self) -> Option<i64> {
        let starting = self.starting && !checkpoint::planted::is("early_checkpoint");
        if self.under_way || starting {
            return None;
        }
        if !self.waiting.is_empty() {
            return Some(i64::MIN);
        }
        let interval_us = self.interval_us.load(Ordering::Relaxed);
        self.changed_us.filter(|_| interval_us > 0).map(|changed_us| changed_us.saturating_add(interval_us))
    }

    pub fn is_due(&self, now_us: i64) -> bool {
        self.due_us().is_some_and(|due_us| due_us <= now_us)
    }

    /// The epoch that was just cut is a checkpoint's.
    pub fn begin(&mut self) {
        self.under_way = true;
        self.changed_us = None;
        self.asked = std::mem::take(&mut self.waiting);
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// The checkpoint under way does not get on: nobody waits for it.
    pub fn refuse(&mut self, cause: &Error) {
        for reply in self.asked.drain(..).chain(self.waiting.drain(..)) {
            let hint = "The server tries again by itself; checkpoints go on when the cause is gone.";
            let error = Error::new(cause.state(), "the checkpoint is stalled").with_detail(cause.to_string());
            // Who has gone does not wait.
            let _ = reply.send(Err(error.with_hint(hint)));
        }
    }

    /// No epoch is cut any more, so there will be no other checkpoint.
    pub fn give_up(&mut self, cause: &Error) {
        for reply in self.waiting.drain(..) {
            let _ = reply.send(Err(cause.clone()));
        }
    }

    /// The checkpoint under way has become durable, or will not.
    pub fn ended(&mut self, outcome: &Result<Epoch>, now_us: i64) {
        self.under_way = false;
        if outcome.is_err() {
            self.changed_us.get_or_insert(now_us);
        }
        for reply in self.asked.drain(..) {
            // Who has gone does not wait.
            let _ = reply.send(outcome.clone());
        }
    }
}

/// What stands still only at the cut.
pub struct Captured {
    pub sources: Vec<SourceState>,
    /// Side tables of sources, which are in no log.
    pub sides: Vec<Side>,
    /// What of the log need not be told apart any more once the checkpoint is durable, if that is worth it.
    prefix: Option<Prefix>,
    /// Segments numbered so far.
    counter: u64,
}

/// A side table at the cut.
pub struct Side {
    relation: RelationId,
    /// Grows with the rows that came.
    count: u64,
    rows: Result<Snapshot>,
}

/// A job that belongs to a checkpoint.
pub struct KeptJob {
    pub deployment: DeploymentId,
    pub relation: RelationId,
    pub incarnation: Epoch,
    pub plan: Arc<ProcessPlan>,
    /// On how many slots it has state. Every slot says when it has stored it.
    pub parallelism: usize,
    pub is_view: bool,
}

/// A checkpoint to be made.
pub struct Begin {
    pub epoch: Epoch,
    pub now_us: i64,
    pub jobs: Vec<KeptJob>,
    pub slots: usize,
    pub captured: Captured,
}

/// To the keeper's service.
pub enum ToKeeper {
    Begin(Box<Begin>),
    Stored {
        slot: SlotId,
        deployment: DeploymentId,
        epoch: Epoch,
        state: StoredState,
    },
    /// The job has stopped, or its state is not whole any more.
    Gone(DeploymentId),
    Sink(RelationId, Done),
    /// A job could not go on from its state: nothing is cleared away any more, so that it can be looked at.
    Spare,
    /// A sink has finished the commit of the checkpoint that this process has started from, or is gone.
    Resumed(RelationId),
    /// Whether a savepoint can have this name.
    CheckName {
        name: String,
        reply: oneshot::Sender<Result<()>>,
    },
    /// Keep the newest checkpoint by this name. The answer is its epoch.
    Keep {
        name: String,
        reply: oneshot::Sender<Result<Epoch>>,
    },
    DropSavepoint {
        name: String,
        reply: oneshot::Sender<Result<()>>,
    },
    Savepoints {
        reply: oneshot::Sender<Result<Vec<CheckpointLine>>>,
    },
    Stop,
}

/// The coordinator's own part of a manifest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Coordinated {
    /// The data directory whose checkpoint it is.
    #[serde(default)]
    pub origin: String,
    pub sources: Vec<SourceState>,
    pub sides: Vec<KeptSide>,
    /// By sink that delivers exactly once what tells apart what it publishes: of all that a checkpoint has ever held, because
    /// they may have published.
    #[serde(default)]
    pub identities: BTreeMap<u32, String>,
}

/// Where the rows of a side table are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptSide {
    pub relation: RelationId,
    pub count: u64,
    pub segment: SegmentRef,
}

impl Coordinated {
    pub fn source(&self, relation: RelationId) -> Option<&SourceState> {
        self.sources.iter().find(|s| s.relation == relation)
    }
}

/// A checkpoint for `SHOW CHECKPOINTS`.
#[derive(Clone, Debug)]
pub struct CheckpointStatus {
    pub epoch: Epoch,
    pub created_us: i64,
    /// From the cut until it was durable; `None` for those of an earlier start.
    pub duration_us: Option<i64>,
    /// How long the slot that took longest stood still for it; `None` for those of an earlier start.
    pub pause_us: Option<i64>,
    pub jobs: usize,
    /// Bytes written for it.
    pub bytes: Option<u64>,
    /// Bytes that a restore reads.
    pub state_bytes: u64,
}

/// What the capture needs.
pub struct Capture {
    pub sources: Arc<Sources>,
    pub counter: Arc<AtomicU64>,
    pub compaction: Arc<Compaction>,
}

impl Capture {
    /// Called at the cut of `epoch`, while nobody commits.
    fn take(&self, epoch: Epoch) -> Captured {
        let sides = self.sources.kept_sides().into_iter();
        let sides =
            sides.map(|(count, table)| Side { relation: table.relation, count, rows: table.store.snapshot(epoch) });
        let counter = self.counter.load(Ordering::Relaxed);
        let prefix = self.compaction.prefix(epoch);
        Captured { sources: self.sources.kept(), sides: sides.collect(), prefix, counter }
    }
}

/// The keeper's face.
pub struct Keeper {
    sender: Sender<ToKeeper>,
    join: Mutex<Option<Box<dyn Join>>>,
    capture: Mutex<Option<Capture>>,
    sinks: Arc<Sinks>,
    interval_us: Arc<AtomicI64>,
    door: Arc<Door>,
    found: Option<Found>,
    shown: Arc<Mutex<Vec<CheckpointStatus>>>,
    identities: AtomicU64,
}

impl Keeper {
    /// Lets the service work.
    pub fn start(
        execution: &dyn Execution,
        kept: Kept,
        capture: Capture,
        clock: Arc<Clock>,
        sinks: Arc<Sinks>,
        worker: Arc<dyn Worker>,
        log: Arc<Log>,
    ) -> Result<Arc<Keeper>> {
        let (sender, receiver) = unbounded();
        let shown: Arc<Mutex<Vec<CheckpointStatus>>> = Arc::default();
        let interval_us = in_us(kept.config.interval);
        let tell = sender.clone();
        sinks.report_to(Arc::new(move |sink, done| {
            // Ends after the sinks.
            let _ = tell.send(ToKeeper::Sink(sink, done));
        }));
        let (door, found) = (Arc::clone(&kept.door), kept.newest.clone());
        let service = KeeperService::new(kept, clock, Arc::clone(&sinks), worker, log, Arc::clone(&shown), receiver);
        let join = execution.start_service(Box::new(service))?;
        Ok(Arc::new(Keeper {
            sender,
            join: Mutex::new(Some(join)),
            capture: Mutex::new(Some(capture)),
            sinks,
            interval_us: Arc::new(AtomicI64::new(interval_us)),
            door,
            found,
            shown,
            identities: AtomicU64::new(0),
        }))
    }

    /// The clock's side; `None` when it was given out already.
    pub fn schedule(&self) -> Option<Schedule> {
        let capture = self.capture.lock().take()?;
        let sinks = Arc::clone(&self.sinks);
        Some(Schedule {
            keeper: self.sender.clone(),
            capture: Box::new(move |epoch| capture.take(epoch)),
            prepare: Box::new(move |epoch| sinks.prepare_at(epoch)),
            interval_us: Arc::clone(&self.interval_us),
            waiting: Vec::new(),
            asked: Vec::new(),
            under_way: false,
            changed_us: None,
            starting: self.found.is_some(),
        })
    }

    /// Takes a checkpoint so often from now on; `None`: only when asked for.
    pub fn set_interval(&self, interval: Option<Duration>) {
        self.interval_us.store(in_us(interval), Ordering::Relaxed);
    }

    /// How often checkpoints are taken, in microseconds; 0: only when asked for.
    pub fn interval_us(&self) -> i64 {
        self.interval_us.load(Ordering::Relaxed)
    }

    /// Greater than every one before, of any start.
    pub fn new_attempt(&self) -> u64 {
        (self.door.writer().generation.0 << 24) + self.identities.fetch_add(1, Ordering::Relaxed)
    }

    /// What tells apart what a new sink publishes from everything else at its target.
    pub fn new_identity(&self, sink: RelationId) -> String {
        let number = self.identities.fetch_add(1, Ordering::Relaxed);
        let writer = self.door.writer();
        format!("{sink}-{}-{number}-{:x}", writer.generation.0, writer.nonce)
    }

    /// The checkpoint that this process has started from.
    pub fn found(&self) -> Option<&Found> {
        self.found.as_ref()
    }

    /// Where that checkpoint has left a source.
    pub fn source(&self, relation: RelationId) -> Option<SourceState> {
        self.found.as_ref()?.coordinated.source(relation).cloned()
    }

    /// The rows of the side tables in that checkpoint.
    pub fn sides(&self) -> Result<Vec<(RelationId, ChangeBatch)>> {
        let mut rows = Vec::new();
        for kept in self.found.iter().flat_map(|found| &found.coordinated.sides) {
            let reader = SegmentReader::open(bytes_of(&self.door, &kept.segment)?)?;
            for chunk in reader.chunks(TaskId(0), SIDE_PART) {
                rows.push((kept.relation, flow::wire::decode(&chunk)?));
            }
        }
        Ok(rows)
    }

    /// A sink has finished the commit of that checkpoint, or is gone.
    pub fn resumed(&self, sink: RelationId) {
        let _ = self.sender.send(ToKeeper::Resumed(sink));
    }

    /// Whether a savepoint can have this name. Errors: `42710` it is taken, `42602` it is none, `58030`.
    pub async fn check_name(&self, name: &str) -> Result<()> {
        self.ask(|reply| ToKeeper::CheckName { name: name.to_string(), reply }).await
    }

    /// Keeps the newest checkpoint by name, and returns its epoch. Errors: `42710` the name is taken, `42602` it is none, `58030`.
    pub async fn keep(&self, name: &str) -> Result<Epoch> {
        self.ask(|reply| ToKeeper::Keep { name: name.to_string(), reply }).await
    }

    /// Gives up a savepoint. Errors: `42704` there is none, `58030`.
    pub async fn drop_savepoint(&self, name: &str) -> Result<()> {
        self.ask(|reply| ToKeeper::DropSavepoint { name: name.to_string(), reply }).await
    }

    pub async fn savepoints(&self) -> Result<Vec<CheckpointLine>> {
        self.ask(|reply| ToKeeper::Savepoints { reply }).await
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<Result<T>>) -> ToKeeper) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let _ = self.sender.send(message(reply));
        answer.await.map_err(|_| crate::clock::shutting_down())?
    }

    /// The epoch of the newest durable checkpoint.
    pub fn durable(&self) -> Epoch {
        self.shown.lock().last().map_or(Epoch(0), |c| c.epoch)
    }

    /// The checkpoints that are known to be kept, oldest first.
    pub fn all(&self) -> Vec<CheckpointStatus> {
        self.shown.lock().clone()
    }

    /// Ends the service; a checkpoint that is not durable yet will not be.
    pub fn stop(&self) {
        let _ = self.sender.send(ToKeeper::Stop);
        let join = self.join.lock().take();
        if let Some(mut join) = join {
            join.join();
        }
    }
}

fn in_us(interval: Option<Duration>) -> i64 {
    interval.map_or(0, |interval| interval.as_micros() as i64)
}

/// A checkpoint under way.
struct UnderWay {
    begin: Begin,
    /// Until it is time to look whether a sink holds it up.
    look: Pause,
    stored: HashMap<(DeploymentId, SlotId), StoredState>,
    gone: HashSet<DeploymentId>,
    prepared: BTreeMap<RelationId, Vec<u8>>,
    /// Sinks that have still to commit, once the checkpoint is durable.
    committing: Option<BTreeSet<RelationId>>,
}

/// How long a checkpoint took.
struct Times {
    duration_us: i64,
    pause_us: i64,
}

impl UnderWay {
    /// How long the slot that took longest stood still, for all of its jobs together.
    fn pause_us(&self) -> i64 {
        let mut slots: BTreeMap<SlotId, i64> = BTreeMap::new();
        for ((_, slot), state) in &self.stored {
            *slots.entry(*slot).or_default() += state.pause_us;
        }
        slots.into_values().max().unwrap_or(0)
    }

    fn jobs(&self) -> impl Iterator<Item = &KeptJob> {
        self.begin.jobs.iter().filter(|job| !self.gone.contains(&job.deployment))
    }

    /// The sinks that have not done yet what the checkpoint waits for.
    fn waits_for(&self) -> Vec<RelationId> {
        match &self.committing {
            Some(committing) => committing.iter().copied().collect(),
            None => {
                let sinks = self.jobs().filter(|job| !job.is_view).map(|job| job.relation);
                sinks.filter(|sink| !self.prepared.contains_key(sink)).collect()
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.jobs().all(|job| {
            let slots = (0..self.begin.slots).all(|n| self.stored.contains_key(&(job.deployment, SlotId(n as u16))));
            slots && (job.is_view || self.prepared.contains_key(&job.relation))
        })
    }
}

struct KeeperService {
    messages: Receiver<ToKeeper>,
    kept: Kept,
    clock: Arc<Clock>,
    sinks: Arc<Sinks>,
    shown: Arc<Mutex<Vec<CheckpointStatus>>>,
    /// Nothing was done yet.
    resumes: bool,
    under_way: Option<UnderWay>,
    /// Side tables as last stored.
    sides: Vec<KeptSide>,
    /// Nothing is cleared away.
    spares: bool,
    /// Sinks of the checkpoint that this process has started from, which have still to finish its commit.
    uncommitted: HashSet<RelationId>,
    /// See [`Coordinated`].
    identities: BTreeMap<u32, String>,
    worker: Arc<dyn Worker>,
    log: Arc<Log>,
    /// The log says where checkpoints are.
    noted: bool,
}

impl Service for KeeperService {
    fn name(&self) -> String {
        "keeper".into()
    }

    fn step(&mut self) -> Stepped {
        if std::mem::take(&mut self.resumes) {
            self.note_committed();
            return Stepped::Worked;
        }
        match self.messages.try_recv() {
            Ok(ToKeeper::Stop) | Err(TryRecvError::Disconnected) => Stepped::Ended,
            Ok(message) => {
                self.take(message);
                self.go_on();
                Stepped::Worked
            }
            Err(TryRecvError::Empty) => {
                let now_us = self.clock.time.now_us();
                if self.under_way.as_ref().is_none_or(|under_way| under_way.look.left(now_us).is_some()) {
                    return Stepped::Idle;
                }
                self.look_for_silent_sinks();
                Stepped::Worked
            }
        }
    }

    fn wait(&mut self) {
        let now_us = self.clock.time.now_us();
        let left = self.under_way.as_ref().map(|under_way| under_way.look.left(now_us).unwrap_or_default());
        wait_for_message(&self.messages, left);
    }
}

impl KeeperService {
    fn new(
        kept: Kept,
        clock: Arc<Clock>,
        sinks: Arc<Sinks>,
        worker: Arc<dyn Worker>,
        log: Arc<Log>,
        shown: Arc<Mutex<Vec<CheckpointStatus>>>,
        messages: Receiver<ToKeeper>,
    ) -> KeeperService {
        // A start notes what it has found.
        let noted = kept.newest.is_some();
        let sides = kept.newest.as_ref().map(|found| found.coordinated.sides.clone()).unwrap_or_default();
        let left = kept.newest.as_ref().filter(|found| !found.committed);
        let uncommitted = left.iter().flat_map(|found| &found.manifest.sinks).map(|s| s.sink).collect();
        let identities = kept.newest.as_ref().map(|found| found.coordinated.identities.clone()).unwrap_or_default();
        let (under_way, spares) = (None, false);
        let service = KeeperService {
            messages,
            kept,
            clock,
            sinks,
            shown,
            resumes: true,
            under_way,
            sides,
            spares,
            uncommitted,
            identities,
            worker,
            log,
            noted,
        };
        let mut shown = None;
        for (_, manifest) in service.kept.owner.manifests() {
            // A start takes the newest over under a number of its own.
            if shown.replace(manifest.epoch) != Some(manifest.epoch) {
                service.show(manifest, None, None);
            }
        }
        service
    }

    /// Adds a checkpoint to those that are shown.
    fn show(&self, manifest: &Manifest, times: Option<Times>, bytes: Option<u64>) {
        let mut shown = self.shown.lock();
        shown.push(CheckpointStatus {
            epoch: manifest.epoch,
            created_us: manifest.created_us,
            duration_us: times.as_ref().map(|t| t.duration_us),
            pause_us: times.as_ref().map(|t| t.pause_us),
            jobs: manifest.jobs.len(),
            bytes,
            state_bytes: manifest.segments().map(|s| s.bytes).sum(),
        });
        let gone = shown.len().saturating_sub(self.kept.config.retained.max(1));
        shown.drain(..gone);
    }

    fn take(&mut self, message: ToKeeper) {
        match message {
            ToKeeper::Begin(begin) => self.begin(*begin),
            ToKeeper::Stored { slot, deployment, epoch, state } => {
                if let Some(under_way) = self.under_way.as_mut().filter(|u| u.begin.epoch == epoch) {
                    under_way.stored.insert((deployment, slot), state);
                    if !under_way.is_whole() {
                        crash::point("C6");
                    }
                }
            }
            ToKeeper::Gone(deployment) => {
                if let Some(under_way) = &mut self.under_way {
                    under_way.gone.insert(deployment);
                    let left = under_way.begin.jobs.iter().find(|job| job.deployment == deployment);
                    if let (Some(job), Some(committing)) = (left, &mut under_way.committing) {
                        committing.remove(&job.relation);
                    }
                }
            }
            ToKeeper::Sink(sink, done) => {
                if let Some(under_way) = &mut self.under_way {
                    match done {
                        Done::Prepared(epoch, prepared) if epoch == under_way.begin.epoch => {
                            under_way.prepared.insert(sink, prepared);
                        }
                        Done::Committed(epoch) if epoch == under_way.begin.epoch => {
                            if let Some(committing) = &mut under_way.committing {
                                committing.remove(&sink);
                            }
                        }
                        _ => {}
                    }
                }
            }
            ToKeeper::Spare => self.spares = true,
            ToKeeper::Resumed(sink) => {
                if self.uncommitted.remove(&sink) {
                    self.note_committed();
                }
            }
            ToKeeper::CheckName { name, reply } => {
                // Who has gone does not wait.
                let _ = reply.send(self.kept.owner.check_name(&name));
            }
            ToKeeper::Keep { name, reply } => {
                // Who has gone does not wait.
                let _ = reply.send(self.keep(&name));
            }
            ToKeeper::DropSavepoint { name, reply } => {
                let _ = reply.send(self.kept.owner.drop_savepoint(&name));
            }
            ToKeeper::Savepoints { reply } => {
                let lines = fsck::checkpoints(&self.kept.door);
                let _ = reply.send(lines.map(|all| all.into_iter().filter(|l| l.savepoint.is_some()).collect()));
            }
            // The service is over then.
            ToKeeper::Stop => {}
        }
    }

    /// Until the next look at the sinks.
    fn pause(&self) -> Pause {
        Pause::new(self.clock.time.now_us(), self.kept.config.timeout / LOOKS)
    }

    fn begin(&mut self, begin: Begin) {
        self.under_way = Some(UnderWay {
            begin,
            look: self.pause(),
            stored: HashMap::new(),
            gone: HashSet::new(),
            prepared: BTreeMap::new(),
            committing: None,
        });
    }

    /// Stops the sinks whose targets have not answered for too long, so that the checkpoint gets on without them.
    fn look_for_silent_sinks(&mut self) {
        let (timeout, now_us) = (self.kept.config.timeout, self.clock.time.now_us());
        let look = self.pause();
        let Some(under_way) = &mut self.under_way else { return };
        under_way.look = look;
        for sink in under_way.waits_for() {
            let silent_us = self.sinks.silent_since_us(sink).map_or(0, |since_us| now_us.saturating_sub(since_us));
            if i128::from(silent_us) < timeout.as_micros() as i128 {
                continue;
            }
            let mut error = Error::new(SqlState::IoError, "the target of the sink does not answer")
                .with_hint("Drop the sink and create it again when its target works. checkpoint_timeout says how long one is waited for.");
            error = match self.clock.stalls.of_job(sink, false) {
                Some(cause) => error.with_detail(cause.to_string()),
                None => error.with_detail(format!("Nothing was heard of it for {} seconds.", silent_us / 1_000_000)),
            };
            warn!(sink = sink.0, %error, "a sink holds up a checkpoint");
            self.sinks.give_up(sink);
            self.clock.send(Event::StopJob { relation: sink, error });
        }
    }

    /// Takes the next step of the checkpoint under way, if what it waits for is there.
    fn go_on(&mut self) {
        let Some(under_way) = &mut self.under_way else { return };
        if under_way.committing.is_none() && under_way.is_whole() {
            let Some(mut under_way) = self.under_way.take() else { return };
            match self.publish(&mut under_way) {
                Ok(()) => {
                    self.clock.stalls.clear(Waiting::Checkpoints);
                    self.under_way = Some(under_way);
                }
                Err(error) => {
                    let error = self.note_lost(error);
                    self.clock.stalls.set(Waiting::Checkpoints, error.clone());
                    warn!(%error, epoch = under_way.begin.epoch.0, "a checkpoint could not be made durable");
                    self.clock.send(Event::CheckpointEnded(Err(error)));
                    return;
                }
            }
        }
        if self.under_way.as_ref().is_some_and(|u| u.committing.as_ref().is_some_and(BTreeSet::is_empty))
            && let Some(under_way) = self.under_way.take()
        {
            let epoch = under_way.begin.epoch;
            crash::point("C11");
            self.note_committed();
            crash::point("C12");
            if !self.spares
                && let Err(error) = self.collect()
            {
                let error = self.note_lost(error);
                warn!(%error, "what no checkpoint needs could not be cleared away");
            }
            self.clock.send(Event::CheckpointEnded(Ok(epoch)));
        }
    }

    /// A log that is beside checkpoints of which another process has become the owner is its log. Returns what clients are told.
    fn note_lost(&self, error: Error) -> Error {
        match error.state() {
            SqlState::ObjectInUse => self.log.lose_store(error),
            _ => error,
        }
    }

    /// Clears away what nothing needs any more.
    fn collect(&mut self) -> Result<()> {
        let held = self.worker.holdings().held(&self.kept.counter)?;
        self.kept.owner.collect(&held).map(drop)
    }

    fn keep(&mut self, name: &str) -> Result<Epoch> {
        let (number, epoch) = self.kept.owner.manifests().last().map(|(n, m)| (n, m.epoch)).unzip();
        let number = number.ok_or_else(|| Error::internal("a checkpoint was made and is not there"))?;
        self.kept.owner.keep(name, number, self.clock.time.now_us())?;
        Ok(epoch.unwrap_or_default())
    }

    /// Notes the end of the newest checkpoint's commit, once none of its sinks has still to do it.
    fn note_committed(&mut self) {
        let under_way = self.under_way.as_ref().is_some_and(|u| u.committing.as_ref().is_some_and(|c| !c.is_empty()));
        if self.uncommitted.is_empty()
            && !under_way
            && let Err(error) = self.kept.owner.committed()
        {
            // The next start commits again, to the same effect.
            warn!(%error, "the end of a checkpoint could not be noted");
        }
    }

    /// Makes a whole checkpoint durable, and lets its sinks commit.
    fn publish(&mut self, under_way: &mut UnderWay) -> Result<()> {
        let (sides, side_bytes) = self.store_sides(&mut under_way.begin.captured)?;
        let mut jobs = Vec::new();
        for job in under_way.jobs() {
            let slots = (0..job.parallelism).map(|n| SlotId(n as u16));
            let states: Vec<&StoredState> =
                slots.filter_map(|slot| under_way.stored.get(&(job.deployment, slot))).collect();
            jobs.push(JobState {
                job: JobId(job.relation.0),
                incarnation: job.incarnation.0,
                slots: job.parallelism as u32,
                plan: serde_json::to_string(&*job.plan).map_err(|e| Error::internal(format!("store a plan: {e}")))?,
                watermarks: states.first().map(|s| port_watermarks(&s.watermarks)).unwrap_or_default(),
                segments: states.iter().flat_map(|s| s.chain.iter().cloned()).collect(),
                bases: states.iter().map(|s| s.base).collect(),
            });
        }
        let sinks = under_way.jobs().filter(|job| !job.is_view).filter_map(|job| {
            let prepared = under_way.prepared.get(&job.relation)?.clone();
            Some(PreparedSink { sink: job.relation, prepared: prepared.into() })
        });
        let sinks: Vec<PreparedSink> = sinks.collect();
        let identity = |sink: &PreparedSink| Some((sink.sink.0, self.sinks.identity(sink.sink)?));
        self.identities.extend(sinks.iter().filter_map(identity));
        let identities = self.identities.clone();
        let sources = std::mem::take(&mut under_way.begin.captured.sources);
        let origin = self.kept.origin.clone();
        let coordinated = Coordinated { origin, sources, sides, identities };
        let created_us = self.clock.time.now_us();
        let Begin { epoch, now_us, .. } = under_way.begin;
        let manifest = Manifest {
            epoch,
            generation: self.kept.owner.generation(),
            now_us,
            created_us,
            counter: under_way.begin.captured.counter,
            coordinator: serde_json::to_value(&coordinated).map_err(|e| Error::internal(format!("manifest: {e}")))?,
            jobs,
            sinks,
            ..Manifest::default()
        };
        self.note_committed();
        let (permit, bytes) = self.kept.owner.publish(&manifest, self.kept.config.retained)?;
        let duration_us = created_us.saturating_sub(now_us);
        let pause_us = under_way.pause_us();
        metrics::histogram!("millstream_checkpoint_pause_seconds").record(pause_us as f64 / 1e6);
        info!(epoch = epoch.0, jobs = manifest.jobs.len(), duration_us, pause_us, "checkpoint is durable");
        crash::point("C9");
        if let Some(prefix) = under_way.begin.captured.prefix.take() {
            prefix.begin();
        }
        if !self.noted {
            // Before anything is published: a start that finds no checkpoint must know that there was one.
            let noted = crate::record::kept_in(&self.kept.door.place()).and_then(|record| self.log.append(&[&record]));
            match noted.and_then(|_| self.log.sync()) {
                Ok(_) => self.noted = true,
                Err(error) => warn!(%error, "the place of the checkpoints could not be noted in the log"),
            }
        }
        let mut committing = BTreeSet::new();
        for sink in &manifest.sinks {
            if self.sinks.commit(sink.sink, permit, sink.prepared.bytes().to_vec()) {
                committing.insert(sink.sink);
            }
        }
        under_way.committing = Some(committing);
        self.show(&manifest, Some(Times { duration_us, pause_us }), Some(bytes + side_bytes));
        Ok(())
    }

    /// Stores the side tables that have changed. Returns where all of them are, and the bytes written.
    fn store_sides(&mut self, captured: &mut Captured) -> Result<(Vec<KeptSide>, u64)> {
        let (mut kept, mut written) = (Vec::new(), 0);
        for Side { relation, count, rows } in std::mem::take(&mut captured.sides) {
            if let Some(same) = self.sides.iter().find(|s| s.relation == relation && s.count == count) {
                kept.push(same.clone());
                continue;
            }
            let (mut writer, mut rows_stored, mut bytes_stored) = (SegmentWriter::new(), 0, 0);
            for batch in rows?.scan(None, SIDE_ROWS)? {
                let batch = batch?;
                // A slice of texts would be written with all that it is a slice of.
                let columns = batch.columns().iter().map(owned).collect::<Result<Vec<_>>>()?;
                let change = ChangeBatch::insert(RecordBatch::try_new(batch.schema(), columns)?);
                bytes_stored += writer.add(TaskId(0), SIDE_PART, |bytes| flow::wire::encode_to(&change, bytes))?;
                rows_stored += change.num_rows() as u64;
            }
            if writer.is_empty() {
                continue;
            }
            let part = PartRef {
                task: TaskId(0),
                part: SIDE_PART.into(),
                schema: String::new(),
                rows: rows_stored,
                bytes: bytes_stored,
            };
            let (door, counter) = (&self.kept.door, &self.kept.counter);
            let segment = put_single(door, counter, JobId(relation.0), writer, vec![part])?;
            written += segment.bytes;
            kept.push(KeptSide { relation, count, segment });
        }
        self.sides = kept.clone();
        Ok((kept, written))
    }
}
