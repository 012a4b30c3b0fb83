//! What works beside the slots: each service on a thread of its own, or stepped by a test in an order drawn from its seed.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Select};

/// Microseconds since the Unix epoch, as the caller's clock has them.
pub type NowUs = Arc<dyn Fn() -> i64 + Send + Sync>;

/// What a step of a service led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// It has done something; there may be more to do.
    Worked,
    /// There is nothing to do until [`Service::wait`] returns.
    Idle,
    /// There will be nothing to do any more.
    Ended,
}

/// Something that works by itself.
pub trait Service: Send {
    /// What its thread is called.
    fn name(&self) -> String;

    /// Does a bounded piece of work, if there is any. It may take the time that a disk or a network takes, but waits for nobody
    /// of its own process.
    fn step(&mut self) -> Stepped;

    /// Called after a step that found nothing to do: sleeps until there may be something. May return too early.
    fn wait(&mut self);

    /// Whether other threads go first.
    fn stands_back(&self) -> bool {
        false
    }
}

/// How long who waits for the end of a service sleeps before it looks again.
pub const END_LOOK: Duration = Duration::from_millis(1);

/// A service that was started.
pub trait Join: Send {
    /// Waits until the service, which was told to end, has ended; asks every [`END_LOOK`] whether to wait on. False: it has not,
    /// and nobody waits for it any more.
    fn join_while(&mut self, patient: &mut dyn FnMut() -> bool) -> bool;

    /// Waits until it has ended, which it was told to.
    fn join(&mut self) {
        self.join_while(&mut || true);
    }
}

/// Works on the calling thread until there is nothing to do any more.
pub fn run(mut service: Box<dyn Service>) {
    if service.stands_back() {
        crate::stand_back();
    }
    loop {
        match service.step() {
            Stepped::Worked => {}
            Stepped::Idle => service.wait(),
            Stepped::Ended => return,
        }
    }
}

/// Sleeps until there is a message, which stays where it is, or nobody can send one any more; not longer than `at_most`.
pub fn wait_for_message<T>(inbox: &Receiver<T>, at_most: Option<Duration>) {
    let mut select = Select::new();
    select.recv(inbox);
    match at_most {
        None => drop(select.ready()),
        Some(at_most) => drop(select.ready_timeout(at_most)),
    }
}

/// A time to pass before something is done, by a clock that may be set back meanwhile: then it is over.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    since_us: i64,
    length: Duration,
}

impl Pause {
    pub fn new(now_us: i64, length: Duration) -> Pause {
        Pause { since_us: now_us, length }
    }

    /// What is left of it; `None`: it is over.
    pub fn left(&self, now_us: i64) -> Option<Duration> {
        let passed = u64::try_from(now_us.saturating_sub(self.since_us)).ok()?;
        self.length.checked_sub(Duration::from_micros(passed)).filter(|left| !left.is_zero())
    }
}
