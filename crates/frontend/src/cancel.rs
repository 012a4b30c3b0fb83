//! How a running statement learns that it must stop.
//!
//! A cancel request may arrive at any time, also between statements, when Postgres ignores it. The handle therefore knows
//! whether a statement is running: a request is only kept while one is.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flow::{Error, Result, SqlState};
use futures::future::{Either, select};
use tokio::sync::Notify;

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const CANCELED: u8 = 2;
const TERMINATED: u8 = 3;

/// Shared by a session, which watches it, and by whoever may stop the session's statement.
#[derive(Debug, Default)]
pub struct CancelHandle {
    state: AtomicU8,
    changed: Notify,
}

impl CancelHandle {
    /// A statement starts: earlier requests to cancel no longer count.
    pub(crate) fn begin(&self) {
        for past in [IDLE, CANCELED] {
            let _ = self.state.compare_exchange(past, RUNNING, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// The statement is over.
    pub(crate) fn end(&self) {
        for past in [RUNNING, CANCELED] {
            let _ = self.state.compare_exchange(past, IDLE, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Asks the running statement, if there is one, to stop with `57014`.
    pub fn cancel(&self) {
        if self.state.compare_exchange(RUNNING, CANCELED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.changed.notify_waiters();
        }
    }

    /// Asks the whole session to stop with `57P01`; for ever.
    pub fn terminate(&self) {
        self.state.store(TERMINATED, Ordering::Release);
        self.changed.notify_waiters();
    }

    pub fn is_terminated(&self) -> bool {
        self.state.load(Ordering::Acquire) == TERMINATED
    }

    /// An error as soon as the running statement must stop. Cheap: one atomic load.
    #[inline]
    pub fn check(&self) -> Result<()> {
        match self.state.load(Ordering::Acquire) {
            CANCELED => Err(Error::new(SqlState::QueryCanceled, "canceling statement due to user request")),
            TERMINATED => {
                Err(Error::new(SqlState::AdminShutdown, "terminating connection due to administrator command"))
            }
            _ => Ok(()),
        }
    }

    /// Ready, with the error to report, once the running statement must stop.
    pub async fn stopped(&self) -> Error {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Registering before looking closes the gap between the look and the wait.
            changed.as_mut().enable();
            if let Err(error) = self.check() {
                return error;
            }
            changed.await;
        }
    }

    /// Runs `work` until it is done or must stop; in the latter case `work` is dropped, so that must be safe.
    pub async fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.check()?;
        match select(pin!(work), pin!(self.stopped())).await {
            Either::Left((done, _)) => done,
            Either::Right((error, _)) => Err(error),
        }
    }
}

/// The open connections, by the process id that their clients were told.
#[derive(Default)]
pub(crate) struct Registry {
    open: Mutex<HashMap<i32, (i32, Arc<CancelHandle>)>>,
}

impl Registry {
    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<i32, (i32, Arc<CancelHandle>)>> {
        // The map is valid between any two of its operations, so a panic elsewhere does not spoil it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection under a process id that nobody else has, and returns that id.
    pub(crate) fn register(
        &self,
        mut candidate: impl FnMut() -> Result<i32>,
        key: i32,
        handle: &Arc<CancelHandle>,
    ) -> Result<i32> {
        let mut open = self.open();
        loop {
            let pid = candidate()? & 0x7fff_ffff;
            if pid != 0 && !open.contains_key(&pid) {
                open.insert(pid, (key, Arc::clone(handle)));
                return Ok(pid);
            }
        }
    }

    pub(crate) fn remove(&self, pid: i32) {
        self.open().remove(&pid);
    }

    /// Cancels the statement of `pid` if `key` is its key. The caller learns nothing, as in Postgres.
    pub(crate) fn cancel(&self, pid: i32, key: i32) {
        let found = self.open().get(&pid).map(|(expected, handle)| (*expected, Arc::clone(handle)));
        if let Some((expected, handle)) = found
            && same_key(expected, key)
        {
            handle.cancel();
        }
    }

    /// Ends every session.
    pub(crate) fn terminate_all(&self) {
        for (_, handle) in self.open().values() {
            handle.terminate();
        }
    }
}

/// Whether two keys are equal, in a time that does not depend on where they differ.
fn same_key(a: i32, b: i32) -> bool {
    let mut difference = 0u8;
    for (x, y) in a.to_be_bytes().into_iter().zip(b.to_be_bytes()) {
        difference |= std::hint::black_box(x ^ y);
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_counts_only_while_a_statement_runs() {
        let handle = CancelHandle::default();
        handle.cancel();
        handle.begin();
        assert!(handle.check().is_ok());
        handle.cancel();
        assert_eq!(handle.stopped().await.state(), SqlState::QueryCanceled);
        handle.end();
        handle.begin();
        assert!(handle.check().is_ok());
        handle.terminate();
        handle.end();
        assert_eq!(handle.check().unwrap_err().state(), SqlState::AdminShutdown);
    }

    #[test]
    fn a_wrong_key_cancels_nothing() {
        let registry = Registry::default();
        let handle = Arc::new(CancelHandle::default());
        handle.begin();
        let pid = registry.register(|| Ok(7), 1234, &handle).unwrap();
        registry.cancel(pid, 1235);
        registry.cancel(pid + 1, 1234);
        assert!(handle.check().is_ok());
        registry.cancel(pid, 1234);
        assert!(handle.check().is_err());
        registry.remove(pid);
        registry.cancel(pid, 1234);
    }
}
