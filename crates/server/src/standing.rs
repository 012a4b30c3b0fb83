//! Which engine sessions work with: the only one of an embedded server, or one after the other of a cluster's coordinator.

use std::sync::Arc;
use std::time::Duration;

use coord::Engine;
use flow::{Error, Result, SqlState};
use tokio::sync::watch;

/// How long a statement waits for an engine, and a client that logs in: less than a login may take.
pub const STATEMENT_WAIT_MAX: Duration = Duration::from_secs(10);
pub const LOGIN_WAIT_MAX: Duration = Duration::from_secs(3);

/// Where the server stands.
#[derive(Clone)]
enum Standing {
    /// There is no engine yet, for this cause.
    Waiting(Error),
    /// Another coordinator leads, so there will be none for long: this says which one.
    Standby(Error),
    Running(Arc<Engine>),
    /// The engine has stopped for this cause, and another one will take its place.
    Interrupted(Arc<Engine>, Error),
}

/// The engine of the moment.
pub struct Engines {
    standing: watch::Sender<Standing>,
}

impl Engines {
    /// One engine for good.
    pub fn only(engine: Arc<Engine>) -> Engines {
        Engines { standing: watch::Sender::new(Standing::Running(engine)) }
    }

    /// None yet.
    pub fn none(cause: Error) -> Engines {
        Engines { standing: watch::Sender::new(Standing::Waiting(cause)) }
    }

    /// Another engine takes over.
    pub fn run(&self, engine: Arc<Engine>) {
        self.standing.send_replace(Standing::Running(engine));
    }

    /// There is no engine to work with, for this cause.
    pub fn wait(&self, cause: Error) {
        self.standing.send_modify(|standing| {
            *standing = match &*standing {
                Standing::Waiting(_) | Standing::Standby(_) => Standing::Waiting(cause),
                Standing::Running(engine) | Standing::Interrupted(engine, _) => {
                    Standing::Interrupted(Arc::clone(engine), cause)
                }
            }
        });
    }

    /// Another coordinator leads. Nobody waits for an engine here.
    pub fn stand_by(&self, cause: Error) {
        self.standing.send_replace(Standing::Standby(cause));
    }

    /// Whether another coordinator leads.
    pub fn is_standby(&self) -> bool {
        matches!(&*self.standing.borrow(), Standing::Standby(_))
    }

    /// The engine that runs, or the last one that ran.
    pub fn last(&self) -> Option<Arc<Engine>> {
        match &*self.standing.borrow() {
            Standing::Waiting(_) | Standing::Standby(_) => None,
            Standing::Running(engine) | Standing::Interrupted(engine, _) => Some(Arc::clone(engine)),
        }
    }

    /// The engine that runs. Errors: `57P03` none does, for this cause.
    pub fn running(&self) -> Result<Arc<Engine>> {
        match &*self.standing.borrow() {
            Standing::Running(engine) => Ok(Arc::clone(engine)),
            Standing::Waiting(cause) | Standing::Standby(cause) | Standing::Interrupted(_, cause) => Err(cause.clone()),
        }
    }

    /// The engine that runs; waits for one no longer than `at_most`. Errors: `57P03` there is none, for this cause.
    pub async fn ready(&self, at_most: Duration) -> Result<Arc<Engine>> {
        let mut standing = self.standing.subscribe();
        let runs = standing.wait_for(|standing| matches!(standing, Standing::Running(_) | Standing::Standby(_)));
        // In time or not: what it is now.
        let _ = tokio::time::timeout(at_most, runs).await;
        self.running()
    }

    /// Resolves when `engine` does not run any more, with the cause.
    pub async fn interrupted(&self, engine: &Arc<Engine>) -> Error {
        let mut standing = self.standing.subscribe();
        let other = standing
            .wait_for(|standing| !matches!(standing, Standing::Running(running) if Arc::ptr_eq(running, engine)))
            .await;
        match other.as_deref() {
            Ok(Standing::Waiting(cause) | Standing::Standby(cause) | Standing::Interrupted(_, cause)) => cause.clone(),
            _ => Error::new(SqlState::CannotConnectNow, "the jobs have started again").with_hint("Try again."),
        }
    }

    /// What a statement that `engine` has failed with this error is told: an engine that was interrupted says no more than
    /// that it stops.
    pub fn explain(&self, engine: &Arc<Engine>, error: Error) -> Error {
        if error.state() != SqlState::AdminShutdown {
            return error;
        }
        match &*self.standing.borrow() {
            Standing::Interrupted(_, cause) | Standing::Standby(cause) => cause.clone(),
            Standing::Running(running) if !Arc::ptr_eq(running, engine) => {
                Error::new(SqlState::CannotConnectNow, "the jobs have started again").with_hint("Try again.")
            }
            _ => error,
        }
    }
}
