//! The start of a job: what the log must say of it, and the deployment on the slots.
//!
//! Law: a job does not begin before the log says so. A log that refuses it for now puts the job off, visibly, and is asked again;
//! nobody but the job and its readers waits for that.

use std::time::Duration;

use flow::{Error, RelationId, Result, SqlState};
use runtime::{Pause, Tick, ToSlot};
use tracing::warn;

use super::{ClockLoop, Deploy, Started, upstream_failed};
use crate::job::{JobState, Phase};
use crate::record;
use crate::stalls::Waiting;
use crate::subscriptions::Why;

/// The first rest before the log is asked again, and the longest.
const REST_FIRST: Duration = Duration::from_millis(50);
const REST_MAX: Duration = Duration::from_secs(5);

/// A job that is to start, once the log takes it.
pub(super) struct PutOff {
    deploy: Deploy,
    pause: Pause,
    /// The rest after the next refusal.
    rest: Duration,
}

impl PutOff {
    pub fn due_us(&self, now_us: i64) -> i64 {
        now_us + self.pause.left(now_us).unwrap_or_default().as_micros() as i64
    }
}

impl ClockLoop {
    pub(super) fn start_deploy(&mut self, deploy: Deploy) {
        self.start_after(deploy, REST_FIRST);
    }

    /// Starts the job, or lets it rest so long if the log refuses it for now.
    fn start_after(&mut self, deploy: Deploy, rest: Duration) {
        // Rows of the open epoch may have been read before the job said which columns it wants; they belong to its
        // snapshot.
        if self.has_input() {
            self.cut_epoch(self.time.now_us());
        }
        let broken = deploy.inputs.iter().find_map(|input| self.clock.board.failure(*input));
        if let Some(cause) = broken {
            return self.refuse_start(deploy, upstream_failed(&cause));
        }
        match self.note_start(&deploy) {
            Ok(()) => self.deploy(deploy),
            Err(cause) if cause.may_pass() && self.log.check().is_ok() && self.clock.durability().failed.is_none() => {
                warn!(relation = deploy.relation.0, error = %cause, "the start of a job is put off");
                self.clock.stalls.set(Waiting::Start(deploy.relation), cause);
                self.clock.board.expect(deploy.relation);
                let pause = Pause::new(self.time.now_us(), rest);
                self.put_off.push(PutOff { deploy, pause, rest: (rest * 2).min(REST_MAX) });
            }
            Err(cause) => self.refuse_start(deploy, cause),
        }
    }

    fn refuse_start(&mut self, deploy: Deploy, cause: Error) {
        self.clock.stalls.clear(Waiting::Start(deploy.relation));
        self.clock.board.set_failed(deploy.relation, cause.clone());
        // The statement may have been cancelled.
        let _ = deploy.reply.send(Err(cause));
    }

    /// What the log says of a job that starts from what its inputs hold: what it had in checkpoints, or has derived into a table,
    /// counts no more. Durable before it has anything new.
    fn note_start(&self, deploy: &Deploy) -> Result<()> {
        if deploy.restore.is_some() {
            return Ok(());
        }
        let kept = deploy.kept && self.checkpoints.is_some();
        if deploy.into_table {
            self.log.append(&[&record::sink_started(deploy.relation)?])?;
        }
        if kept {
            self.log.append(&[&record::job_started(deploy.relation, self.cut.next())?])?;
        }
        if deploy.into_table || kept {
            self.log.sync()?;
        }
        Ok(())
    }

    /// Asks the log again for those whose rest is over.
    pub(super) fn start_put_off(&mut self, now_us: i64) {
        let over = |job: &mut PutOff| job.pause.left(now_us).is_none();
        for PutOff { deploy, rest, .. } in self.put_off.extract_if(.., over).collect::<Vec<_>>() {
            if let Some(deploy) = self.rescales.defer(deploy) {
                self.start_after(deploy, rest);
            }
        }
    }

    /// The log takes nothing any more.
    pub(super) fn give_up_put_off(&mut self, cause: &Error) {
        for PutOff { deploy, .. } in std::mem::take(&mut self.put_off) {
            self.refuse_start(deploy, cause.clone());
        }
    }

    /// The job is dropped before it could start.
    pub(super) fn forget_put_off(&mut self, relation: RelationId) {
        self.clock.stalls.clear(Waiting::Start(relation));
        for PutOff { deploy, .. } in self.put_off.extract_if(.., |job| job.deploy.relation == relation) {
            let dropped = Error::new(SqlState::UndefinedObject, "the job was dropped");
            // The statement may have been cancelled.
            let _ = deploy.reply.send(Err(dropped));
        }
    }

    fn deploy(&mut self, deploy: Deploy) {
        let deployment = self.new_deployment();
        // Epochs up to `cut` have left; the job lives from the open one on.
        let open = self.cut.next();
        let now_us = self.stamp(self.time.now_us());
        let started = Started { deployment, snapshot: self.cut, first: Tick { epoch: open, chunk: 0 }, now_us };
        self.worker.holdings().forget_view(deploy.relation);
        self.clock.feeds.end(deploy.relation, Why::Dropped, self.clock.completed());
        let mut job = JobState::new(deployment, &deploy, open, self.worker.slots());
        job.kept &= self.checkpoints.is_some();
        // Restored rows are there before any epoch; what is back-filled appears with the first.
        job.readable = if deploy.restore.is_some() { self.cut } else { open };
        let feeder = if deploy.restore.is_some() { None } else { (deploy.start)(&started) };
        let backfills = feeder.is_some();
        let first = if backfills { started.first } else { Tick::end_of(open) };
        job.phase = if backfills { Phase::Backfilling } else { Phase::CatchingUp };
        let restore = deploy.restore.map(|restored| restored.state);
        let spread = self.spread(&job);
        // Before there is a store: who finds that knows from when on it can be read.
        self.clock.stalls.clear(Waiting::Start(job.relation));
        self.clock.board.set(&job, job.phase.clone());
        self.worker.broadcast(&ToSlot::Deploy {
            deployment,
            plan: deploy.plan,
            spread,
            first,
            kept: job.kept,
            restore,
        });
        if !backfills {
            // Nothing to catch up with: the job is complete up to the cut by having seen nothing.
            job.start_at(Tick::end_of(self.cut));
        }
        self.jobs.insert(deployment, job);
        if !backfills {
            // The first row of a global aggregate, or of constants, needs an epoch to appear in.
            self.clock.pending.lock().logged |= true;
        }
        if let Some(feed) = feeder {
            feed();
        }
        let _ = deploy.reply.send(Ok(started));
        self.advance();
    }
}
