//! Checkpoints: when one is due, what it waits for, and how it becomes durable.
//!
//! The clock cuts an epoch and says which jobs belong to its checkpoint; the keeper, a service of its own, waits until every
//! slot has stored its share and every sink that delivers exactly once has prepared, writes the manifest, claims the epoch,
//! lets the sinks commit, and clears away what no kept checkpoint needs. Nothing of this holds up the flow.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use checkpoint::door::Door;
use checkpoint::manifest::{JobState, Manifest, PartRef, PreparedSink, SegmentRef};
use checkpoint::segment::{SegmentReader, SegmentWriter};
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use flow::{ChangeBatch, Epoch, Error, JobId, RelationId, Result, SlotId, TaskId};
use parking_lot::Mutex;
use plan::ProcessPlan;
use runtime::depot::{bytes_of, new_name, put_segment};
use runtime::service::wait_for_message;
use runtime::{DeploymentId, Depot, Join, Service, Stepped, StoredState};
use serde::{Deserialize, Serialize};
use state::Snapshot;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::clock::{Clock, Event};
use crate::execution::Execution;
use crate::recovery::{Found, Kept, port_watermarks};
use crate::sinks::{Done, Sinks};
use crate::sources::{SourceState, Sources};

/// The part of a side table's segment that holds its rows.
const SIDE_PART: &str = "rows";

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
}

impl Schedule {
    /// When the next checkpoint is due; `None`: nothing is to be kept, or one is under way.
    pub fn due_us(&self) -> Option<i64> {
        if self.under_way {
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
    Stop,
}

/// The coordinator's own part of a manifest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Coordinated {
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
}

impl Capture {
    /// Called at the cut of `epoch`, while nobody commits.
    fn take(&self, epoch: Epoch) -> Captured {
        let sides = self.sources.kept_sides().into_iter();
        let sides =
            sides.map(|(count, table)| Side { relation: table.relation, count, rows: table.store.snapshot(epoch) });
        let counter = self.counter.load(Ordering::Relaxed);
        Captured { sources: self.sources.kept(), sides: sides.collect(), counter }
    }
}

/// The keeper's face.
pub struct Keeper {
    sender: Sender<ToKeeper>,
    join: Mutex<Option<Join>>,
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
        depot: Arc<Depot>,
    ) -> Result<Arc<Keeper>> {
        let (sender, receiver) = unbounded();
        let shown: Arc<Mutex<Vec<CheckpointStatus>>> = Arc::default();
        let interval_us = kept.config.interval.map_or(0, |interval| interval.as_micros() as i64);
        let tell = sender.clone();
        sinks.report_to(Arc::new(move |sink, done| {
            // Ends after the sinks.
            let _ = tell.send(ToKeeper::Sink(sink, done));
        }));
        let (door, found) = (Arc::clone(&kept.door), kept.newest.clone());
        let service = KeeperService::new(kept, clock, Arc::clone(&sinks), depot, Arc::clone(&shown), receiver);
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
        })
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

    /// The checkpoints that are known to be kept, oldest first.
    pub fn all(&self) -> Vec<CheckpointStatus> {
        self.shown.lock().clone()
    }

    /// Ends the service; a checkpoint that is not durable yet will not be.
    pub fn stop(&self) {
        let _ = self.sender.send(ToKeeper::Stop);
        let join = self.join.lock().take();
        if let Some(join) = join {
            join();
        }
    }
}

/// A checkpoint under way.
struct UnderWay {
    begin: Begin,
    stored: HashMap<(DeploymentId, SlotId), StoredState>,
    gone: HashSet<DeploymentId>,
    prepared: BTreeMap<RelationId, Vec<u8>>,
    /// Sinks that have still to commit, once the checkpoint is durable.
    committing: Option<HashSet<RelationId>>,
}

impl UnderWay {
    fn jobs(&self) -> impl Iterator<Item = &KeptJob> {
        self.begin.jobs.iter().filter(|job| !self.gone.contains(&job.deployment))
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
    depot: Arc<Depot>,
}

impl Service for KeeperService {
    fn name(&self) -> String {
        "keeper".into()
    }

    fn step(&mut self) -> Stepped {
        if self.resumes {
            self.resumes = false;
            self.note_committed();
            return Stepped::Worked;
        }
        match self.messages.try_recv() {
            Ok(ToKeeper::Stop) | Err(TryRecvError::Disconnected) => Stepped::Ended,
            Err(TryRecvError::Empty) => Stepped::Idle,
            Ok(message) => {
                self.take(message);
                self.go_on();
                Stepped::Worked
            }
        }
    }

    fn wait(&mut self) {
        wait_for_message(&self.messages, None);
    }
}

impl KeeperService {
    fn new(
        kept: Kept,
        clock: Arc<Clock>,
        sinks: Arc<Sinks>,
        depot: Arc<Depot>,
        shown: Arc<Mutex<Vec<CheckpointStatus>>>,
        messages: Receiver<ToKeeper>,
    ) -> KeeperService {
        let sides = kept.newest.as_ref().map(|found| found.coordinated.sides.clone()).unwrap_or_default();
        let left = kept.newest.as_ref().filter(|found| !found.committed);
        let uncommitted = left.iter().flat_map(|found| &found.manifest.sinks).map(|s| s.sink).collect();
        let identities = kept.newest.as_ref().map(|found| found.coordinated.identities.clone()).unwrap_or_default();
        let service = KeeperService {
            messages,
            kept,
            clock,
            sinks,
            shown,
            resumes: true,
            under_way: None,
            sides,
            spares: false,
            uncommitted,
            identities,
            depot,
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
    fn show(&self, manifest: &Manifest, duration_us: Option<i64>, bytes: Option<u64>) {
        let mut shown = self.shown.lock();
        shown.push(CheckpointStatus {
            epoch: manifest.epoch,
            created_us: manifest.created_us,
            duration_us,
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
            ToKeeper::Stop => {}
        }
    }

    fn begin(&mut self, begin: Begin) {
        self.under_way = Some(UnderWay {
            begin,
            stored: HashMap::new(),
            gone: HashSet::new(),
            prepared: BTreeMap::new(),
            committing: None,
        });
    }

    /// Takes the next step of the checkpoint under way, if what it waits for is there.
    fn go_on(&mut self) {
        let Some(under_way) = &mut self.under_way else { return };
        if under_way.committing.is_none() && under_way.is_whole() {
            let Some(mut under_way) = self.under_way.take() else { return };
            match self.publish(&mut under_way) {
                Ok(()) => self.under_way = Some(under_way),
                Err(error) => {
                    warn!(%error, epoch = under_way.begin.epoch.0, "a checkpoint could not be made durable");
                    self.clock.send(Event::CheckpointEnded(Err(error)));
                    return;
                }
            }
        }
        if self.under_way.as_ref().is_some_and(|u| u.committing.as_ref().is_some_and(HashSet::is_empty))
            && let Some(under_way) = self.under_way.take()
        {
            let epoch = under_way.begin.epoch;
            self.note_committed();
            if !self.spares
                && let Err(error) = self.kept.owner.collect(&self.depot.held())
            {
                warn!(%error, "what no checkpoint needs could not be cleared away");
            }
            self.clock.send(Event::CheckpointEnded(Ok(epoch)));
        }
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
            let slots = (0..under_way.begin.slots).map(|n| SlotId(n as u16));
            let states: Vec<&StoredState> =
                slots.filter_map(|slot| under_way.stored.get(&(job.deployment, slot))).collect();
            jobs.push(JobState {
                job: JobId(job.relation.0),
                incarnation: job.incarnation.0,
                slots: under_way.begin.slots as u32,
                plan: serde_json::to_string(&*job.plan).map_err(|e| Error::internal(format!("store a plan: {e}")))?,
                watermarks: states.first().map(|s| port_watermarks(&s.watermarks)).unwrap_or_default(),
                segments: states.iter().flat_map(|s| s.chain.iter().cloned()).collect(),
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
        let coordinated = Coordinated { sources, sides, identities };
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
        info!(epoch = epoch.0, jobs = manifest.jobs.len(), duration_us, "checkpoint is durable");
        let mut committing = HashSet::new();
        for sink in &manifest.sinks {
            if self.sinks.commit(sink.sink, permit, sink.prepared.bytes().to_vec()) {
                committing.insert(sink.sink);
            }
        }
        under_way.committing = Some(committing);
        self.show(&manifest, Some(duration_us), Some(bytes + side_bytes));
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
                let change = ChangeBatch::insert(batch?);
                let bytes = flow::wire::encode(&change)?;
                (rows_stored, bytes_stored) =
                    (rows_stored + change.num_rows() as u64, bytes_stored + bytes.len() as u64);
                writer.add(TaskId(0), SIDE_PART, &bytes);
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
            let name = new_name(door, counter, JobId(relation.0), SlotId(0));
            let segment = put_segment(door, name, 1, writer, vec![part])?;
            written += segment.bytes;
            kept.push(KeptSide { relation, count, segment });
        }
        self.sides = kept.clone();
        Ok((kept, written))
    }
}
