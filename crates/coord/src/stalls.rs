//! What does not get on for now because something outside is full or away, and why.
//!
//! Law: a stall ends by itself. Whoever waits for the outside tries again, and takes its cause back as soon as it gets on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use flow::{Error, RelationId, Result, SqlState};
use parking_lot::RwLock;

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waiting {
    /// Every job, for workers that are away.
    Workers,
    /// Whoever commits, for the store that the log is in.
    Log,
    /// Slots, to store the state of jobs.
    State,
    /// The coordinator, to make checkpoints durable.
    Checkpoints,
    /// A sink, to write to its target.
    Sink(RelationId),
    /// A job, to be noted in the log before it starts.
    Start(RelationId),
}

/// The causes.
#[derive(Debug, Default)]
pub struct Stalls {
    causes: RwLock<BTreeMap<Waiting, Error>>,
    /// So much state waits to be stored that no more rows should come.
    full: AtomicBool,
}

impl Stalls {
    pub fn set(&self, waiting: Waiting, cause: Error) {
        self.causes.write().insert(waiting, cause);
    }

    /// Returns whether it was stalled.
    pub fn clear(&self, waiting: Waiting) -> bool {
        self.causes.write().remove(&waiting).is_some()
    }

    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Why there are no slots to work on.
    pub fn of_workers(&self) -> Option<Error> {
        self.causes.read().get(&Waiting::Workers).cloned()
    }

    /// Why checkpoints do not get on.
    pub fn of_checkpoints(&self) -> Option<Error> {
        let causes = self.causes.read();
        causes.get(&Waiting::State).or_else(|| causes.get(&Waiting::Checkpoints)).cloned()
    }

    /// Why a job does not get on; `kept`: checkpoints hold its state.
    pub fn of_job(&self, relation: RelationId, kept: bool) -> Option<Error> {
        let own = {
            let causes = self.causes.read();
            let of_it = [Waiting::Workers, Waiting::Log, Waiting::Start(relation), Waiting::Sink(relation)];
            of_it.iter().find_map(|waiting| causes.get(waiting)).cloned()
        };
        own.or_else(|| self.of_checkpoints().filter(|_| kept))
    }

    /// Refuses rows while too much waits to be stored. Errors: `53100` where a disk is full, else `58030`.
    pub fn check(&self) -> Result<()> {
        if !self.is_full() {
            return Ok(());
        }
        let cause = self.of_checkpoints();
        let state = cause.as_ref().map(Error::state).filter(|s| *s == SqlState::DiskFull).unwrap_or(SqlState::IoError);
        let refused = Error::new(state, "rows are not taken while the state of jobs cannot be stored")
            .with_hint("The server goes on by itself when checkpoints can be written again.");
        Err(match cause {
            Some(cause) => refused.with_detail(cause.to_string()),
            None => refused,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_stalled_by_its_own_sink_and_by_checkpoints_that_hold_it() {
        let (stalls, sink, other) = (Stalls::default(), RelationId(7), RelationId(8));
        assert_eq!(stalls.of_job(sink, true), None);
        stalls.set(Waiting::Sink(sink), Error::new(SqlState::IoError, "away"));
        assert_eq!(stalls.of_job(sink, false).unwrap().message(), "away");
        assert_eq!(stalls.of_job(other, true), None);
        stalls.set(Waiting::Start(other), Error::new(SqlState::IoError, "not noted"));
        assert_eq!(stalls.of_job(other, false).unwrap().message(), "not noted");
        assert!(stalls.clear(Waiting::Start(other)));
        stalls.set(Waiting::Checkpoints, Error::new(SqlState::DiskFull, "full"));
        assert_eq!(stalls.of_job(other, true).unwrap().message(), "full");
        assert_eq!(stalls.of_job(other, false), None);
        assert!(stalls.check().is_ok());
        assert_eq!(stalls.of_workers(), None);
        stalls.set(Waiting::Workers, Error::new(SqlState::CannotConnectNow, "worker 2 is away"));
        assert_eq!(stalls.of_workers().unwrap().message(), "worker 2 is away");
        assert_eq!(stalls.of_job(other, false).unwrap().message(), "worker 2 is away");
        stalls.set_full(true);
        assert_eq!(stalls.check().unwrap_err().state(), SqlState::DiskFull);
        assert!(stalls.clear(Waiting::Checkpoints));
        assert!(!stalls.clear(Waiting::Checkpoints));
        assert_eq!(stalls.check().unwrap_err().state(), SqlState::IoError);
    }
}
