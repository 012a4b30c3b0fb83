//! One memory limit for everything that jobs hold. A job that would pass it stops with `53200`; the process lives on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flow::{Error, Result, SqlState};

/// Bytes used against a limit; cheap to share and to read.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Budget {
        Budget(Arc::new(Inner { limit, used: AtomicUsize::new(0) }))
    }

    pub fn limit(&self) -> usize {
        self.0.limit
    }

    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Replaces a holder's `before` bytes by `after`. Fails if that grows the total above the limit; the new amount is
    /// recorded all the same, so a holder that stops must release it.
    pub fn change(&self, before: usize, after: usize) -> Result<()> {
        if after <= before {
            self.0.used.fetch_sub(before - after, Ordering::Relaxed);
            return Ok(());
        }
        let total = self.0.used.fetch_add(after - before, Ordering::Relaxed) + (after - before);
        if total > self.0.limit {
            return Err(Error::new(SqlState::OutOfMemory, "out of memory: memory_limit is reached")
                .with_detail(format!("In use {} MiB of {} MiB.", total >> 20, self.0.limit >> 20))
                .with_hint("Raise memory_limit, drop what is not needed, or narrow the statement."));
        }
        Ok(())
    }
}
