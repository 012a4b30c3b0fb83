//! Moving the state of a job to another number of slots while the server runs.
//!
//! Law: the state as of one epoch is stored as for a checkpoint, the job is let go on all slots, and a new deployment goes on from
//! there with the next epoch, which is not cut before. So no epoch shows the job without its state: up to that epoch readers of a
//! view find the old rows, and the next is complete only when the new ones are there. Jobs that count on where the rows of the
//! view lie are deployed anew with it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use catalog::Catalog;
use flow::{Epoch, Error, RelationId, Result, SlotId, SqlState};
use plan::{Exchange, Placed, ProcessPlan, TaskOp};
use runtime::depot::parts_of;
use runtime::message::Spread;
use runtime::{DeploymentId, Restore, StoredState, Tick, ToSlot};
use tokio::sync::oneshot;
use tracing::info;

use super::{ClockLoop, Deploy, LAG_MAX};
use crate::job::{JobState, Phase};

/// A job that is to be moved.
struct Rescale {
    relation: RelationId,
    parallelism: usize,
    /// Knows the names.
    catalog: Catalog,
    reply: oneshot::Sender<Result<()>>,
    /// What is deployed anew: the job, and then those that count on where its rows lie. Empty until its turn has come.
    jobs: Vec<DeploymentId>,
    /// The epoch as of whose end their state moves, once it is cut.
    at: Option<Epoch>,
    stored: HashMap<(DeploymentId, SlotId), StoredState>,
}

/// What is to be moved, one after the other.
#[derive(Default)]
pub(super) struct Rescales {
    waiting: VecDeque<Rescale>,
    /// Jobs that were deployed anew and have not finished an epoch yet, and who waits for that.
    moving: Vec<RelationId>,
    moved: Option<oneshot::Sender<Result<()>>>,
    /// Jobs that are to start when that is over: they may read what moves.
    deferred: Vec<Deploy>,
    /// Views whose old rows are still there, for readers of this epoch and earlier ones.
    left: Vec<(RelationId, Epoch)>,
}

impl Rescales {
    /// Whether no epoch may be cut.
    pub fn hold_cuts(&self) -> bool {
        self.waiting.front().is_some_and(|first| first.at.is_some())
    }

    /// Gives the deployment back unless it has to wait.
    pub fn defer(&mut self, deploy: Deploy) -> Option<Deploy> {
        if self.hold_cuts() || !self.moving.is_empty() {
            self.deferred.push(deploy);
            return None;
        }
        Some(deploy)
    }
}

/// Whether a job keeps rows of a view where the view has them.
fn counts_on_place(plan: &ProcessPlan, view: RelationId) -> Result<bool> {
    let of_view = |task: usize| {
        let op = plan.tasks.get(task).map(|t| &t.op);
        matches!(op, Some(TaskOp::Relation { relation, .. }) if *relation == view)
    };
    let stays = plan.tasks.iter().flat_map(|task| &task.inputs).any(|input| {
        let in_place = input.exchange == Exchange::Forward && matches!(input.placed, Placed::Hash(_));
        in_place && of_view(input.from.0 as usize)
    });
    Ok(stays && parts_of(plan)?.iter().any(|parts| !parts.is_empty()))
}

fn not_now(message: String) -> Error {
    Error::new(SqlState::ObjectNotInPrerequisiteState, message)
}

impl ClockLoop {
    pub(super) fn new_deployment(&mut self) -> DeploymentId {
        let deployment = DeploymentId(self.next_deployment);
        self.next_deployment += 1;
        deployment
    }

    /// Over which slots a job works, given where its inputs are.
    pub(super) fn spread(&self, job: &JobState) -> Spread {
        let slots = self.worker.slots();
        let elsewhere = |input: &&RelationId| {
            self.jobs.values().any(|other| other.relation == **input && other.is_view && other.parallelism < slots)
        };
        let elsewhere = job.inputs.iter().filter(elsewhere).copied().collect();
        Spread { parallelism: job.parallelism, elsewhere }
    }

    pub(super) fn rescale(
        &mut self,
        relation: RelationId,
        parallelism: usize,
        catalog: Catalog,
        reply: oneshot::Sender<Result<()>>,
    ) {
        let (jobs, stored) = (Vec::new(), HashMap::new());
        self.rescales.waiting.push_back(Rescale { relation, parallelism, catalog, reply, jobs, at: None, stored });
        self.begin_rescale();
    }

    /// Asks for the checkpoint that the next move needs, unless one is under way.
    fn begin_rescale(&mut self) {
        while self.rescales.moving.is_empty()
            && let Some(first) = self.rescales.waiting.front().filter(|first| first.jobs.is_empty())
        {
            let jobs = self.to_be_moved(first);
            match (jobs, &mut self.checkpoints) {
                (Ok(jobs), Some(schedule)) if !jobs.is_empty() => {
                    // Nobody waits for the answer: what counts is the state.
                    schedule.waiting.push(oneshot::channel().0);
                    if let Some(first) = self.rescales.waiting.front_mut() {
                        first.jobs = jobs;
                    }
                    return;
                }
                (outcome, _) => self.end_rescale(outcome.map(drop)),
            }
        }
    }

    /// The jobs that have to be deployed anew; none if it has that parallelism already.
    fn to_be_moved(&self, rescale: &Rescale) -> Result<Vec<DeploymentId>> {
        let Rescale { relation, parallelism, catalog, .. } = rescale;
        let name = |job: &JobState| match catalog.relation(job.relation) {
            Some(relation) => format!("{} \"{}\"", relation.kind().noun(), relation.name),
            None => format!("job {}", job.relation),
        };
        if let Some(failed) = &self.clock.durable.borrow().failed {
            return Err(failed.clone());
        }
        let Some(job) = self.jobs.values().find(|j| j.relation == *relation) else {
            return Err(self.clock.board.failure(*relation).unwrap_or_else(|| not_now("the job does not run".into())));
        };
        if job.parallelism == *parallelism {
            return Ok(Vec::new());
        }
        if self.checkpoints.is_none() {
            return Err(not_now("checkpoints are switched off".into())
                .with_detail("The state of a job moves to other slots by way of a checkpoint.")
                .with_hint("Start the server with a checkpoint_interval, or drop the object and create it again."));
        }
        if let Some(cause) = self.clock.stalls.of_checkpoints() {
            return Err(Error::new(cause.state(), "the state of the job cannot be stored for now")
                .with_detail(cause.to_string())
                .with_hint("Try again when SHOW JOBS does not say stalled any more."));
        }
        let mut moved = vec![job];
        for reader in self.jobs.values().filter(|j| j.inputs.contains(relation)) {
            if counts_on_place(&reader.plan, *relation)? {
                moved.push(reader);
            }
        }
        for job in &moved {
            if !job.kept {
                return Err(not_now(format!("the state of {} is in no checkpoint", name(job)))
                    .with_detail("Those of materialized views are, and of sinks that go on from checkpoints.")
                    .with_hint("Drop it and create it again with the option parallelism."));
            }
            let done = job.finished_epoch().filter(|_| matches!(job.phase, Phase::Running));
            if done.is_none_or(|done| self.cut.0.saturating_sub(done.0) > LAG_MAX) {
                return Err(not_now(format!("{} is not up to date", name(job)))
                    .with_hint("Try again when SHOW JOBS says that it is running, without a lag."));
            }
        }
        Ok(moved.iter().map(|job| job.deployment).collect())
    }

    /// The move at the front is over.
    fn end_rescale(&mut self, outcome: Result<()>) {
        if let Some(first) = self.rescales.waiting.pop_front() {
            // The statement may have been cancelled.
            let _ = first.reply.send(outcome);
        }
    }

    /// Gives up the move under way if it is of this deployment, or of any if there is none.
    pub(super) fn give_up_rescale(&mut self, deployment: Option<DeploymentId>, cause: &Error) {
        let concerned = |first: &Rescale| deployment.is_none_or(|d| first.jobs.contains(&d)) && !first.jobs.is_empty();
        if self.rescales.waiting.front().is_some_and(concerned) {
            let error = Error::new(cause.state(), "the parallelism was not changed").with_detail(cause.to_string());
            self.end_rescale(Err(error));
            self.go_on_after_rescale();
        }
    }

    /// A checkpoint of these jobs has begun with the cut of `epoch`.
    pub(super) fn rescale_with(&mut self, epoch: Epoch, kept: &[DeploymentId]) {
        let Some(first) = self.rescales.waiting.front_mut().filter(|first| !first.jobs.is_empty()) else { return };
        if first.jobs.iter().all(|job| kept.contains(job)) {
            first.at = Some(epoch);
        } else {
            self.give_up_rescale(None, &not_now("the job does not run any more".into()));
        }
    }

    /// A slot has stored its share of a job's state.
    pub(super) fn note_stored(&mut self, slot: SlotId, deployment: DeploymentId, epoch: Epoch, state: &StoredState) {
        let slots = self.worker.slots();
        let Some(first) = self.rescales.waiting.front_mut().filter(|first| first.at == Some(epoch)) else { return };
        if !first.jobs.contains(&deployment) {
            return;
        }
        first.stored.insert((deployment, slot), state.clone());
        if first.stored.len() == first.jobs.len() * slots {
            self.move_jobs();
        }
    }

    fn move_jobs(&mut self) {
        let Some(mut first) = self.rescales.waiting.pop_front() else { return };
        for (n, deployment) in first.jobs.iter().enumerate() {
            let Some(job) = self.jobs.remove(deployment) else { continue };
            let parallelism = if n == 0 { first.parallelism } else { job.parallelism };
            let slots = (0..job.parallelism).map(|slot| SlotId(slot as u16));
            let states = slots.filter_map(|slot| first.stored.remove(&(*deployment, slot))).collect();
            self.deploy_anew(job, parallelism, states);
        }
        // An epoch must show them.
        self.clock.pending.lock().logged |= true;
        self.rescales.moved = Some(first.reply);
        self.go_on_after_rescale();
    }

    /// Lets a job go on from the state of its old slots, on as many as `parallelism`.
    fn deploy_anew(&mut self, mut job: JobState, parallelism: usize, states: Vec<StoredState>) {
        info!(relation = job.relation.0, from = job.parallelism, to = parallelism, "the job moves");
        self.worker.broadcast(&ToSlot::Remove { deployment: job.deployment });
        if job.is_view {
            self.worker.holdings().succeed_view(job.relation, self.cut);
            self.rescales.left.push((job.relation, self.cut));
        }
        self.rescales.moving.push(job.relation);
        let open = self.cut.next();
        job.deployment = self.new_deployment();
        (job.first, job.parallelism, job.phase) = (open, parallelism, Phase::CatchingUp);
        job.start_at(Tick::end_of(self.cut));
        let (watermarks, now_us) = states.first().map(|s| (s.watermarks.clone(), s.now_us)).unwrap_or_default();
        let bases = states.iter().map(|s| s.base).collect();
        let restore = Restore { chains: states.into_iter().map(|s| s.chain).collect(), bases, watermarks, now_us };
        self.worker.broadcast(&ToSlot::Deploy {
            deployment: job.deployment,
            plan: Arc::clone(&job.plan),
            spread: self.spread(&job),
            first: Tick::end_of(open),
            kept: job.kept,
            restore: Some(Arc::new(restore)),
        });
        if job.attached {
            self.worker.broadcast(&ToSlot::Attach { deployment: job.deployment, attached: true });
        }
        // Nobody has to wait for it.
        self.clock.board.set(&job, Phase::Running);
        self.jobs.insert(job.deployment, job);
    }

    /// A job that may have been deployed anew has finished an epoch, or has stopped for this cause.
    pub(super) fn has_moved(&mut self, relation: RelationId, cause: Option<&Error>) {
        let before = self.rescales.moving.len();
        self.rescales.moving.retain(|r| *r != relation);
        if let (Some(cause), true) = (cause, self.rescales.moving.len() < before)
            && let Some(reply) = self.rescales.moved.take()
        {
            // The statement may have been cancelled.
            let _ = reply.send(Err(cause.clone()));
        }
    }

    /// Lets go of old rows that nobody reads any more.
    pub(super) fn tidy_after_rescale(&mut self) {
        if self.rescales.left.is_empty() {
            return;
        }
        let holdings = self.worker.holdings();
        let floor = holdings.floor();
        self.rescales.left.retain(|(relation, until)| {
            let unread = floor > *until;
            if unread {
                holdings.forget_before(*relation, floor);
            }
            !unread
        });
    }

    /// Does what had to wait, when nothing moves any more.
    pub(super) fn go_on_after_rescale(&mut self) {
        if self.rescales.hold_cuts() || !self.rescales.moving.is_empty() {
            return;
        }
        if let Some(reply) = self.rescales.moved.take() {
            // The statement may have been cancelled.
            let _ = reply.send(Ok(()));
        }
        for deploy in std::mem::take(&mut self.rescales.deferred) {
            self.start_deploy(deploy);
        }
        self.begin_rescale();
    }
}
