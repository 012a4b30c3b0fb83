//! What works beside the slots: each service on a thread of its own, or stepped by a test in an order drawn from its seed.

use std::time::Duration;

use crossbeam_channel::{Receiver, Select};

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

/// Waits until a service has ended that was told to.
pub type Join = Box<dyn FnOnce() + Send>;

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
