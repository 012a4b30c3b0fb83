//! What the coordinator knows of each job, and the board on which sessions read it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use flow::{Epoch, Error, RelationId, SlotId};
use parking_lot::{Condvar, Mutex, RwLock};
use plan::ProcessPlan;
use runtime::{DeploymentId, Tick};

use crate::clock::Deploy;
use crate::history::JobFacts;

/// Where a job stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Reading what its inputs held when it was created.
    Backfilling,
    /// Working off the changes that came meanwhile.
    CatchingUp,
    /// Up to date with every completed epoch.
    Running,
    /// Stopped for good, with the cause.
    Failed(Error),
}

impl Phase {
    /// As `SHOW JOBS` prints it.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Backfilling => "back-filling",
            Phase::CatchingUp => "catching up",
            Phase::Running => "running",
            Phase::Failed(_) => "failed",
        }
    }
}

/// The event loop's record of one deployment.
#[derive(Debug)]
pub struct JobState {
    pub deployment: DeploymentId,
    pub relation: RelationId,
    pub inputs: Vec<RelationId>,
    pub is_view: bool,
    /// The first epoch that the job can show.
    pub first: Epoch,
    /// The first at which its rows can be read, wherever they have moved since.
    pub readable: Epoch,
    pub attached: bool,
    /// It could not keep up with the epochs, and has not caught up since.
    pub slow: bool,
    pub phase: Phase,
    /// Whether checkpoints keep its state.
    pub kept: bool,
    /// The first epoch that it has shown, over all restarts from its own state.
    pub incarnation: Epoch,
    pub plan: Arc<ProcessPlan>,
    /// On how many slots it works, the first ones. All of them finish its ticks.
    pub parallelism: usize,
    /// For the archive, when it has ended.
    pub facts: Arc<JobFacts>,
    /// The newest tick that each slot has finished.
    slots: Vec<Option<Tick>>,
    /// Something changed since the board was last told.
    news: bool,
}

impl JobState {
    /// `wanted` has its relation, plan, inputs and parallelism.
    pub fn new(deployment: DeploymentId, wanted: &Deploy, first: Epoch, slots: usize) -> JobState {
        JobState {
            deployment,
            relation: wanted.relation,
            inputs: wanted.inputs.clone(),
            is_view: wanted.is_view,
            first,
            readable: first,
            attached: false,
            slow: false,
            phase: Phase::Backfilling,
            kept: wanted.kept,
            incarnation: wanted.restore.as_ref().map_or(first, |restored| restored.incarnation),
            plan: Arc::clone(&wanted.plan),
            parallelism: wanted.parallelism,
            facts: Arc::clone(&wanted.facts),
            slots: vec![None; slots],
            news: false,
        }
    }

    /// A job without back-fill counts as having finished everything before its first epoch.
    pub fn start_at(&mut self, tick: Tick) {
        self.slots.iter_mut().for_each(|s| *s = Some(tick));
    }

    pub fn finished(&mut self, slot: SlotId, tick: Tick) {
        if let Some(seen) = self.slots.get_mut(slot.0 as usize) {
            *seen = (*seen).max(Some(tick));
            self.news = true;
        }
    }

    /// The newest tick finished by every slot.
    pub fn finished_tick(&self) -> Option<Tick> {
        self.slots.iter().copied().min().flatten()
    }

    /// The newest whole epoch finished by every slot; `None` while back-filling.
    pub fn finished_epoch(&self) -> Option<Epoch> {
        self.finished_tick().filter(|t| t.is_end()).map(|t| t.epoch)
    }

    pub fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }
}

/// A job as sessions see it.
#[derive(Clone, Debug)]
pub struct JobStatus {
    pub deployment: DeploymentId,
    pub phase: Phase,
    pub finished: Option<Tick>,
    pub inputs: Vec<RelationId>,
    pub is_view: bool,
    /// The first epoch that the job has shown, over all restarts from its own state.
    pub incarnation: Epoch,
    /// The first epoch at which a view that has a store can be read.
    pub readable: Epoch,
    /// Rows fed and rows to feed of a back-fill.
    pub backfill: Option<(u64, u64)>,
    /// On how many slots it works; `None` while it does not.
    pub parallelism: Option<usize>,
}

/// The status of every job, shared between the clock and its readers.
#[derive(Default)]
pub struct JobBoard {
    jobs: RwLock<BTreeMap<RelationId, JobStatus>>,
    /// Finished ticks of jobs that back-fill; their feeders wait on it.
    ticks: Mutex<HashMap<DeploymentId, Option<Tick>>>,
    moved: Condvar,
    changed: tokio::sync::Notify,
}

impl JobBoard {
    pub fn status(&self, relation: RelationId) -> Option<JobStatus> {
        self.jobs.read().get(&relation).cloned()
    }

    pub fn all(&self) -> Vec<(RelationId, JobStatus)> {
        self.jobs.read().iter().map(|(r, s)| (*r, s.clone())).collect()
    }

    /// The cause, if the relation's job has failed.
    pub fn failure(&self, relation: RelationId) -> Option<Error> {
        match self.jobs.read().get(&relation).map(|s| &s.phase) {
            Some(Phase::Failed(error)) => Some(error.clone()),
            _ => None,
        }
    }

    pub fn set(&self, job: &JobState, phase: Phase) {
        {
            let mut jobs = self.jobs.write();
            let entry = jobs.entry(job.relation).or_insert_with(|| JobStatus {
                deployment: job.deployment,
                phase: phase.clone(),
                finished: None,
                inputs: job.inputs.clone(),
                is_view: job.is_view,
                incarnation: job.incarnation,
                readable: job.readable,
                backfill: None,
                parallelism: None,
            });
            entry.parallelism = (!matches!(phase, Phase::Failed(_))).then_some(job.parallelism);
            entry.deployment = job.deployment;
            entry.inputs.clone_from(&job.inputs);
            entry.is_view = job.is_view;
            entry.incarnation = job.incarnation;
            entry.readable = job.readable;
            entry.phase = phase.clone();
            entry.finished = job.finished_tick();
        }
        let mut ticks = self.ticks.lock();
        match phase {
            Phase::Backfilling => {
                ticks.entry(job.deployment).or_default();
            }
            // A feeder that still waits learns from the missing entry that its job is over.
            Phase::Failed(_) => {
                ticks.remove(&job.deployment);
            }
            _ => {}
        }
        drop(ticks);
        self.moved.notify_all();
        self.changed.notify_waiters();
    }

    /// Announces a job that will start once its inputs are ready: its readers wait.
    pub fn expect(&self, relation: RelationId) {
        self.put(relation, Phase::CatchingUp);
    }

    /// Notes a cause that keeps a relation from being read although no job of it runs.
    pub fn set_failed(&self, relation: RelationId, error: Error) {
        self.put(relation, Phase::Failed(error));
    }

    fn put(&self, relation: RelationId, phase: Phase) {
        let fresh = JobStatus {
            deployment: DeploymentId(0),
            phase: phase.clone(),
            finished: None,
            inputs: Vec::new(),
            is_view: true,
            incarnation: Epoch(0),
            readable: Epoch(0),
            backfill: None,
            parallelism: None,
        };
        let mut jobs = self.jobs.write();
        let entry = jobs.entry(relation).or_insert(fresh);
        if matches!(phase, Phase::Failed(_)) {
            entry.parallelism = None;
        }
        entry.phase = phase;
        drop(jobs);
        self.changed.notify_waiters();
    }

    pub fn progress(&self, job: &JobState) {
        let finished = job.finished_tick();
        if let Some(status) = self.jobs.write().get_mut(&job.relation) {
            status.finished = finished;
        }
        let mut ticks = self.ticks.lock();
        if let Some(tick) = ticks.get_mut(&job.deployment) {
            if finished.is_some_and(|t| t.is_end()) {
                ticks.remove(&job.deployment);
            } else {
                *tick = finished;
            }
            self.moved.notify_all();
        }
        drop(ticks);
        if !job.is_view {
            self.changed.notify_waiters();
        }
    }

    /// Notes how far a back-fill is, in rows.
    pub fn set_backfill(&self, relation: RelationId, done: u64, total: u64) {
        if let Some(status) = self.jobs.write().get_mut(&relation) {
            status.backfill = Some((done, total));
        }
    }

    pub fn forget(&self, relation: RelationId) {
        if let Some(status) = self.jobs.write().remove(&relation) {
            self.ticks.lock().remove(&status.deployment);
        }
        self.moved.notify_all();
        self.changed.notify_waiters();
    }

    /// Lets every feeder that waits go: nobody will finish a tick any more.
    pub fn close(&self) {
        self.ticks.lock().clear();
        self.moved.notify_all();
        self.changed.notify_waiters();
    }

    /// Waits until nobody needs the feeder of this job any more.
    pub async fn wait_gone(&self, deployment: DeploymentId) {
        self.wait_for(|board| (!board.ticks.lock().contains_key(&deployment)).then_some(())).await;
    }

    /// Blocks a feeder until its job has finished `tick` on every slot. Returns false when the job is gone.
    pub fn wait_tick(&self, deployment: DeploymentId, tick: Tick) -> bool {
        let mut ticks = self.ticks.lock();
        loop {
            match ticks.get(&deployment) {
                None => return false,
                Some(Some(done)) if *done >= tick => return true,
                Some(_) => self.moved.wait(&mut ticks),
            }
        }
    }

    /// Whether a job that back-fills has finished `tick` on every slot; `None` when the job is gone.
    pub fn finished(&self, deployment: DeploymentId, tick: Tick) -> Option<bool> {
        self.ticks.lock().get(&deployment).map(|done| done.is_some_and(|d| d >= tick))
    }

    /// Waits until `done` gives an answer; asked again after every change of any job.
    pub async fn wait_for<T>(&self, mut done: impl FnMut(&JobBoard) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(answer) = done(self) {
                return answer;
            }
            changed.await;
        }
    }
}
