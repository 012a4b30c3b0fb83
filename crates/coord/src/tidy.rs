//! Lets a log in a store clear away behind itself, so that no commit waits for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use checkpoint::Log;
use flow::Result;
use parking_lot::Mutex;
use runtime::{Join, Service, Stepped};
use tracing::warn;

use crate::execution::Execution;

/// The rest when there is nothing to do.
const REST: Duration = Duration::from_millis(500);
/// The rest after the store has refused.
const REFUSED_REST: Duration = Duration::from_secs(5);

/// The service that tidies the log.
pub struct Tidying {
    stopped: Arc<AtomicBool>,
    service: Mutex<Box<dyn Join>>,
}

impl Tidying {
    /// `None` for a log that needs none of it.
    pub fn start(execution: &dyn Execution, log: &Arc<Log>) -> Result<Option<Tidying>> {
        if !log.needs_tidying() {
            return Ok(None);
        }
        let stopped: Arc<AtomicBool> = Arc::default();
        let tidier = Tidier { log: Arc::clone(log), stopped: Arc::clone(&stopped), rest: REST };
        let service = Mutex::new(execution.start_service(Box::new(tidier))?);
        Ok(Some(Tidying { stopped, service }))
    }

    /// Ends the service, and waits for that.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.service.lock().join();
    }
}

struct Tidier {
    log: Arc<Log>,
    stopped: Arc<AtomicBool>,
    /// The next one.
    rest: Duration,
}

impl Service for Tidier {
    fn name(&self) -> String {
        "log-tidy".into()
    }

    fn step(&mut self) -> Stepped {
        // A log that has failed is another process's, or will be opened again.
        if self.stopped.load(Ordering::Acquire) || self.log.check().is_err() {
            return Stepped::Ended;
        }
        self.rest = REST;
        match self.log.tidy() {
            Ok(true) => Stepped::Worked,
            Ok(false) => Stepped::Idle,
            Err(error) => {
                if self.log.check().is_ok() {
                    warn!(%error, "what the log does not need could not be cleared away; trying again");
                }
                self.rest = REFUSED_REST;
                Stepped::Idle
            }
        }
    }

    fn wait(&mut self) {
        // Who ends it wakes it.
        std::thread::park_timeout(self.rest);
    }

    fn stands_back(&self) -> bool {
        true
    }
}
