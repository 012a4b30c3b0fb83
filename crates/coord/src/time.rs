//! The one place that reads the machine's clock, handed to whoever needs the time.

use std::sync::Arc;

/// Microseconds, since the Unix epoch if nothing else is said, from the machine or from a test.
#[derive(Clone)]
pub struct Time(Arc<dyn Fn() -> i64 + Send + Sync>);

impl Time {
    /// The machine's clock.
    #[allow(clippy::disallowed_methods)]
    pub fn system() -> Time {
        Time(Arc::new(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
        }))
    }

    /// A clock of the machine that never goes back nor jumps. Only differences of its times mean something.
    #[allow(clippy::disallowed_methods)]
    pub fn steady() -> Time {
        let start = std::time::Instant::now();
        Time(Arc::new(move || i64::try_from(start.elapsed().as_micros()).unwrap_or(i64::MAX)))
    }

    /// A clock that `now_us` answers for.
    pub fn from_fn(now_us: impl Fn() -> i64 + Send + Sync + 'static) -> Time {
        Time(Arc::new(now_us))
    }

    pub fn now_us(&self) -> i64 {
        (self.0)()
    }
}
