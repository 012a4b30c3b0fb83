//! One slot: the jobs' instances that one compute thread owns, as a state machine without a thread of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, select};
use flow::process::{WATERMARK_END, WATERMARK_START};
use flow::{ChangeBatch, RelationId, Result, SlotId};
use parking_lot::Mutex;
use tracing::debug;

use crate::background::{Background, Lent};
use crate::budget::Budget;
use crate::depot::Depot;
use crate::exits::{Exits, ForSlot};
use crate::job::{End, Job, Machine, QueueBytes, Start, Wiring, Work, WorkKind};
use crate::message::{Counted, DeploymentId, FromSlot, Tick, ToSlot};
use crate::terminal::Stores;

/// Receives what slots report.
pub type Reports = Arc<dyn Fn(FromSlot) + Send + Sync>;

/// Without a background: while attached jobs are busy, a detached job gets one step after this many.
const DETACHED_SHARE: u32 = 8;

/// What the slots of one worker share.
#[derive(Clone)]
pub struct Shared {
    pub stores: Stores,
    pub budget: Budget,
    pub batch_rows: usize,
    /// The oldest epoch that readers may still want; stores drop what died at or before it.
    pub floor: Arc<AtomicU64>,
    /// Where checkpoints keep the state of jobs; absent where nothing is kept.
    pub depot: Option<Arc<Depot>>,
    /// The epoch at whose end kept jobs freeze their state.
    pub(crate) freeze_at: Arc<AtomicU64>,
    queues: Arc<Mutex<HashMap<DeploymentId, Arc<QueueBytes>>>>,
    touched: Arc<Mutex<HashMap<DeploymentId, u64>>>,
}

impl Shared {
    /// Without a depot.
    pub fn new(budget: Budget, batch_rows: usize) -> Shared {
        Shared {
            stores: Stores::default(),
            budget,
            batch_rows,
            floor: Arc::default(),
            depot: None,
            freeze_at: Arc::default(),
            queues: Arc::default(),
            touched: Arc::default(),
        }
    }

    /// Takes back what was counted as waiting for a slot of another process. Returns true when its queue has room again.
    pub(crate) fn credit(&self, counted: &Counted) -> bool {
        let queued = self.queues.lock().get(&counted.deployment).cloned();
        queued.is_some_and(|queued| queued.remove(counted.slot.0 as usize, counted.level as usize, counted.bytes))
    }

    /// Rows of state that a deployment has touched on all slots, as of each slot's last finished epoch.
    pub fn rows_touched(&self, deployment: DeploymentId) -> u64 {
        self.touched.lock().get(&deployment).copied().unwrap_or(0)
    }
}

/// One slot's state. [`step`](Slot::step) does a bounded piece of work; a thread, or a seeded test, calls it.
pub struct Slot {
    shared: Shared,
    inbox: Receiver<ToSlot>,
    exits: Exits,
    /// Works for detached jobs and takes what is thrown away. Slots that a test steps do it all themselves.
    background: Option<Background>,
    jobs: BTreeMap<DeploymentId, Job>,
    /// Readers of each relation: (deployment, leaf task).
    readers: HashMap<RelationId, Vec<(DeploymentId, usize)>>,
    newest: Option<DeploymentId>,
    /// Exchange messages that overtook the deployment they belong to.
    early: HashMap<DeploymentId, Vec<ToSlot>>,
    finished: BTreeMap<DeploymentId, Tick>,
    touched: HashMap<DeploymentId, u64>,
    reported_timer: Option<i64>,
    /// Where the next round-robin turn starts.
    turn: DeploymentId,
    steps: u32,
    stopped: bool,
}

impl Slot {
    pub fn new(shared: Shared, inbox: Receiver<ToSlot>, exits: Exits, background: Option<Background>) -> Slot {
        Slot {
            shared,
            inbox,
            exits,
            background,
            jobs: BTreeMap::new(),
            readers: HashMap::new(),
            newest: None,
            early: HashMap::new(),
            finished: BTreeMap::new(),
            touched: HashMap::new(),
            reported_timer: None,
            turn: DeploymentId(0),
            steps: 0,
            stopped: false,
        }
    }

    pub fn id(&self) -> SlotId {
        self.exits.slot
    }

    /// Whether the slot was told to shut down.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes what has arrived and does one piece of work. Returns false when there was nothing to do; then everything
    /// finished so far has been reported, and the caller may wait for a message with [`wait`](Slot::wait).
    pub fn step(&mut self) -> bool {
        let mut worked = false;
        while let Ok(message) = self.inbox.try_recv() {
            worked = true;
            self.receive(message);
        }
        if self.background.is_some() {
            worked |= self.exchange_with_background();
        }
        if self.run_one() {
            return true;
        }
        self.report_progress();
        worked
    }

    /// Blocks until a message arrives and takes it. Returns false when nobody can send any more.
    pub fn wait(&mut self) -> bool {
        let Some(background) = &self.background else {
            return self.inbox.recv().map(|message| self.receive(message)).is_ok();
        };
        select! {
            recv(self.inbox) -> message => message.map(|message| self.receive(message)).is_ok(),
            recv(background.returned()) -> lent => lent.map(|lent| self.take_back(lent)).is_ok(),
        }
    }

    /// Takes back the machines that have done their turn, and lends those of detached jobs that have work. Returns whether
    /// one came back.
    fn exchange_with_background(&mut self) -> bool {
        let mut worked = false;
        while let Some(lent) = self.background.as_ref().and_then(|b| b.returned().try_recv().ok()) {
            worked = true;
            self.take_back(lent);
        }
        if let Some(background) = &self.background {
            for (deployment, job) in self.jobs.iter_mut().filter(|(_, job)| !job.attached) {
                if let Some(machine) = job.lend() {
                    background.run(*deployment, machine);
                }
            }
        }
        worked
    }

    fn take_back(&mut self, lent: Lent) {
        match self.jobs.get_mut(&lent.deployment) {
            Some(job) => {
                job.put_back(lent.machine);
                self.after_step(lent.deployment, lent.stepped, lent.left);
            }
            None => self.throw_away(lent.machine),
        }
    }

    /// Freeing a large state takes long; it is nothing that other jobs should wait for.
    fn throw_away(&self, machine: Box<Machine>) {
        if let Some(background) = &self.background {
            background.drop_machine(machine);
        }
    }

    fn receive(&mut self, message: ToSlot) {
        match message {
            ToSlot::Deploy { deployment, plan, spread, first, kept, restore } => {
                self.newest = Some(deployment);
                let wiring = match Wiring::new(&plan, &spread, self.exits.peers.len()) {
                    Ok(wiring) => wiring,
                    Err(error) => return self.cannot_deploy(deployment, error),
                };
                let (parallelism, restore) = (spread.parallelism, restore.as_deref());
                let start = Start { first, parallelism, wiring: &wiring, kept, restore };
                self.deploy(deployment, &plan, &start);
            }
            ToSlot::Checkpoint { epoch } => self.shared.freeze_at.store(epoch.0, Ordering::Release),
            ToSlot::Remove { deployment } => self.remove(deployment),
            ToSlot::Attach { deployment, attached } => {
                if let Some(job) = self.jobs.get_mut(&deployment) {
                    job.attached = attached;
                }
            }
            ToSlot::Input { relation, epoch, changes } => self.publish(relation, Tick::end_of(epoch), vec![changes]),
            ToSlot::Barrier { epoch, now_us, watermarks } => {
                let tick = Tick::end_of(epoch);
                let then = Some(Tick::end_of(epoch.next()));
                let watermark_of = |relation: Option<RelationId>| match relation {
                    // Constant rows are all there from the beginning.
                    None => WATERMARK_END,
                    Some(relation) => {
                        watermarks.iter().find(|(r, _)| *r == relation).map_or(WATERMARK_START, |(_, w)| *w)
                    }
                };
                for job in self.jobs.values_mut() {
                    let leaves = job.leaves.iter().filter(|l| !l.follows_view);
                    let leaves: Vec<(usize, i64)> = leaves.map(|l| (l.task, watermark_of(l.relation))).collect();
                    for (task, watermark_us) in leaves {
                        let kind = WorkKind::Barrier { then, now_us, watermark_us };
                        job.enqueue(Work { task, port: 0, tick, kind }, false);
                    }
                }
            }
            ToSlot::Backfill { deployment, relation, tick, rows } => {
                if let Some(job) = self.jobs.get_mut(&deployment) {
                    for leaf in job.leaves.clone().iter().filter(|l| l.relation == Some(relation)) {
                        match rows.rows.project(&leaf.columns) {
                            Ok(projected) => {
                                let changes = ChangeBatch::new(projected, rows.diff.clone());
                                let kind = WorkKind::rows(changes);
                                job.enqueue(Work { task: leaf.task, port: 0, tick, kind }, false);
                            }
                            Err(e) => return self.fail(deployment, e.into()),
                        }
                    }
                }
            }
            ToSlot::BackfillBarrier { deployment, tick, then, now_us } => {
                if let Some(job) = self.jobs.get_mut(&deployment) {
                    for leaf in job.leaves.clone() {
                        let kind = WorkKind::Barrier { then: Some(then), now_us, watermark_us: WATERMARK_START };
                        job.enqueue(Work { task: leaf.task, port: 0, tick, kind }, false);
                    }
                }
            }
            ToSlot::Exchange { deployment, task, port, tick, changes, owed } => match self.jobs.get_mut(&deployment) {
                Some(job) => {
                    // A sender in another process has counted them there alone.
                    let counted = !owed.is_owed();
                    let kind = WorkKind::Rows(changes, owed);
                    job.enqueue(Work { task: task.0 as usize, port: port as usize, tick, kind }, counted);
                }
                None => self.hold_early(deployment, ToSlot::Exchange { deployment, task, port, tick, changes, owed }),
            },
            ToSlot::ExchangeBarrier { deployment, task, port, tick, now_us, watermark_us } => {
                match self.jobs.get_mut(&deployment) {
                    Some(job) => {
                        let kind = WorkKind::Barrier { then: None, now_us, watermark_us };
                        job.enqueue(Work { task: task.0 as usize, port: port as usize, tick, kind }, false);
                    }
                    None => {
                        let message = ToSlot::ExchangeBarrier { deployment, task, port, tick, now_us, watermark_us };
                        self.hold_early(deployment, message);
                    }
                }
            }
            ToSlot::Wake => {}
            ToSlot::Shutdown => self.stopped = true,
        }
    }

    /// Messages of a deployment that this slot has not seen yet wait for it; those of one that is gone are dropped.
    fn hold_early(&mut self, deployment: DeploymentId, message: ToSlot) {
        if self.newest.is_none_or(|newest| deployment > newest) {
            self.early.entry(deployment).or_default().push(message);
        }
    }

    fn deploy(&mut self, deployment: DeploymentId, plan: &plan::ProcessPlan, start: &Start<'_>) {
        let slots = self.exits.peers.len();
        let queued = Arc::clone(self.shared.queues.lock().entry(deployment).or_insert_with(|| {
            let levels = start.wiring.levels(plan).into_iter().max().map_or(1, |l| l + 1);
            Arc::new(QueueBytes::new(slots, levels))
        }));
        let views: Vec<RelationId> = self
            .jobs
            .values()
            .filter_map(|j| match j.end {
                End::View(relation) => Some(relation),
                End::Sink(_) => None,
            })
            .collect();
        let job = Job::new(deployment, plan, start, self.id(), slots, &self.shared, queued, |relation| {
            views.contains(&relation)
        });
        match job {
            Ok(job) => {
                for leaf in &job.leaves {
                    if let Some(relation) = leaf.relation {
                        self.readers.entry(relation).or_default().push((deployment, leaf.task));
                    }
                }
                self.jobs.insert(deployment, job);
                for message in self.early.remove(&deployment).unwrap_or_default() {
                    self.receive(message);
                }
            }
            Err(error) => self.cannot_deploy(deployment, error),
        }
    }

    fn cannot_deploy(&mut self, deployment: DeploymentId, error: flow::Error) {
        self.early.remove(&deployment);
        (self.exits.reports)(FromSlot::Failed { slot: self.id(), deployment, error });
    }

    fn remove(&mut self, deployment: DeploymentId) {
        if let Some(job) = self.jobs.remove(&deployment) {
            let _ = self.shared.budget.change(job.charged, 0);
            if let Some(machine) = job.into_machine() {
                self.throw_away(machine);
            }
        }
        self.readers.values_mut().for_each(|readers| readers.retain(|(d, _)| *d != deployment));
        self.readers.retain(|_, readers| !readers.is_empty());
        self.finished.remove(&deployment);
        self.touched.remove(&deployment);
        self.shared.queues.lock().remove(&deployment);
        if let Some(depot) = &self.shared.depot {
            depot.close(deployment, self.id());
        }
        self.shared.touched.lock().remove(&deployment);
    }

    fn fail(&mut self, deployment: DeploymentId, error: flow::Error) {
        debug!(%error, deployment = deployment.0, "job stops on this slot");
        self.remove(deployment);
        (self.exits.reports)(FromSlot::Failed { slot: self.id(), deployment, error });
    }

    /// Hands changes of a relation to every leaf that reads it.
    fn publish(&mut self, relation: RelationId, tick: Tick, batches: Vec<ChangeBatch>) {
        let Some(readers) = self.readers.get(&relation) else { return };
        let mut broken = Vec::new();
        for (deployment, task) in readers {
            let Some(job) = self.jobs.get_mut(deployment) else { continue };
            let columns = job.leaves.iter().find(|l| l.task == *task).map(|l| l.columns.clone()).unwrap_or_default();
            for batch in &batches {
                match batch.rows.project(&columns) {
                    Ok(rows) => {
                        let kind = WorkKind::rows(ChangeBatch::new(rows, batch.diff.clone()));
                        job.enqueue(Work { task: *task, port: 0, tick, kind }, false);
                    }
                    Err(e) => broken.push((*deployment, flow::Error::from(e))),
                }
            }
        }
        for (deployment, error) in broken {
            self.fail(deployment, error);
        }
    }

    /// Ends an epoch of a view for every leaf that reads it.
    fn publish_barrier(&mut self, relation: RelationId, tick: Tick, now_us: i64, watermark_us: i64) {
        let Some(readers) = self.readers.get(&relation) else { return };
        for (deployment, task) in readers {
            if let Some(job) = self.jobs.get_mut(deployment) {
                let then = Some(Tick::end_of(tick.epoch.next()));
                let kind = WorkKind::Barrier { then, now_us, watermark_us };
                job.enqueue(Work { task: *task, port: 0, tick, kind }, false);
            }
        }
    }

    /// One step of one job: attached jobs in turn, then detached ones, which also get a small share under load. The jobs
    /// of the background are not looked at: the system shares the processor between the two threads.
    fn run_one(&mut self) -> bool {
        if self.background.is_some() {
            return self.run_class(true);
        }
        self.steps = self.steps.wrapping_add(1);
        let detached_first = self.steps.is_multiple_of(DETACHED_SHARE);
        self.run_class(!detached_first) || self.run_class(detached_first)
    }

    fn run_class(&mut self, attached: bool) -> bool {
        let after: Vec<DeploymentId> =
            self.jobs.range(self.turn..).filter(|(_, j)| j.attached == attached).map(|(d, _)| *d).collect();
        let before: Vec<DeploymentId> =
            self.jobs.range(..self.turn).filter(|(_, j)| j.attached == attached).map(|(d, _)| *d).collect();
        for deployment in after.into_iter().chain(before) {
            if self.run_job(deployment) {
                self.turn = DeploymentId(deployment.0 + 1);
                return true;
            }
        }
        false
    }

    fn run_job(&mut self, deployment: DeploymentId) -> bool {
        let Some(machine) = self.jobs.get_mut(&deployment).and_then(Job::machine) else { return false };
        let mut left = Vec::new();
        let stepped = self.exits.step(deployment, machine, &mut left);
        self.after_step(deployment, stepped, left)
    }

    /// Accounts for what a machine has done, on this thread or another. Returns whether it did something.
    fn after_step(&mut self, deployment: DeploymentId, stepped: Result<bool>, left: Vec<ForSlot>) -> bool {
        let Some(job) = self.jobs.get_mut(&deployment) else { return false };
        let stepped = stepped.and_then(|worked| {
            let held = if worked { job.note() } else { job.charged };
            let before = std::mem::replace(&mut job.charged, held);
            self.shared.budget.change(before, held).map(|()| worked)
        });
        match stepped {
            Ok(worked) => {
                left.into_iter().for_each(|left| self.take_over(deployment, left));
                worked
            }
            Err(error) => {
                self.fail(deployment, error);
                true
            }
        }
    }

    /// Does what a machine leaves to its slot.
    fn take_over(&mut self, deployment: DeploymentId, left: ForSlot) {
        match left {
            ForSlot::Published { view, tick, changes } => self.publish(view, tick, changes),
            ForSlot::Frozen(frozen) => {
                if let Some(depot) = &self.shared.depot {
                    depot.take(deployment, self.id(), frozen);
                }
            }
            ForSlot::Finished { tick, now_us, watermark_us } => self.finished(deployment, tick, now_us, watermark_us),
        }
    }

    /// A terminal task has finished a tick.
    fn finished(&mut self, deployment: DeploymentId, tick: Tick, now_us: i64, watermark_us: i64) {
        let Some(job) = self.jobs.get(&deployment) else { return };
        match job.end {
            End::View(relation) if tick.is_end() => self.publish_barrier(relation, tick, now_us, watermark_us),
            End::View(_) => {}
            End::Sink(sink) => {
                (self.exits.reports)(FromSlot::Deliver { slot: self.id(), deployment, sink, tick, changes: None });
            }
        }
        self.finished.insert(deployment, tick);
        self.count_touched(deployment);
    }

    fn count_touched(&mut self, deployment: DeploymentId) {
        let Some(now) = self.jobs.get(&deployment).and_then(Job::rows_touched) else { return };
        let before = self.touched.insert(deployment, now).unwrap_or(0);
        if now != before {
            *self.shared.touched.lock().entry(deployment).or_default() += now - before;
        }
    }

    fn report_progress(&mut self) {
        let next_timer_us = self.jobs.values().filter_map(Job::next_timer).min();
        if self.finished.is_empty() && next_timer_us == self.reported_timer {
            return;
        }
        self.reported_timer = next_timer_us;
        let finished = std::mem::take(&mut self.finished).into_iter().collect();
        (self.exits.reports)(FromSlot::Progress { slot: self.id(), finished, next_timer_us });
    }
}
