//! How the parts of an engine that work by themselves get to run: as threads, or stepped by a test in an order drawn from
//! its seed.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use checkpoint::door::Door;
use crossbeam_channel::Receiver;
use flow::{Error, Result};
use parking_lot::Mutex;
use runtime::service::END_LOOK;
use runtime::slot::{Reports, Shared};
use runtime::{Depot, Join, NowUs, Service, Share, ThreadWorker, Wire, Worker};
use tracing::error;

use crate::backfill::Backfill;
use crate::clock::{ClockLoop, Event};

/// Of the stack of a service's thread: a reader of views may evaluate expressions of many levels.
const SERVICE_STACK_BYTES: usize = 8 << 20;

/// Lets slots, clock, feeders and services run.
pub trait Execution: Send + Sync {
    /// Makes what stores the state of jobs for the slots, before these are made. `None`: they are in other processes, which do it
    /// themselves as the door's generation.
    fn start_depot(
        &self,
        door: Arc<Door>,
        counter: Arc<AtomicU64>,
        reports: Reports,
        now_us: NowUs,
    ) -> Result<Option<Arc<Depot>>> {
        let (depot, service) = Depot::new(door, counter, reports, now_us);
        depot.started(self.start_service(Box::new(service))?);
        Ok(Some(depot))
    }

    /// Makes the slots; what they report goes to `reports`.
    fn start_slots(&self, slots: usize, shared: Shared, reports: Reports) -> Result<Arc<dyn Worker>>;

    /// Lets the clock react to `events`.
    fn start_clock(&self, clock: ClockLoop, events: Receiver<Event>) -> Result<()>;

    /// Lets a back-fill feed.
    fn start_feeder(&self, feeder: Backfill) -> Result<()>;

    /// Lets a reader of a source, the writer of a sink, the depot or the keeper of checkpoints work.
    fn start_service(&self, service: Box<dyn Service>) -> Result<Box<dyn Join>>;

    /// Ends slots and clock after [`Event::Shutdown`] was sent.
    fn stop(&self);
}

/// A thread for each slot, for the clock, for each feeder and each service.
#[derive(Default)]
pub struct Threads {
    wire: Option<Arc<dyn Wire>>,
    slots: Mutex<Option<Arc<ThreadWorker>>>,
    clock: Mutex<Option<JoinHandle<()>>>,
}

impl Threads {
    /// Threads whose messages pass through `wire`.
    pub fn over(wire: Arc<dyn Wire>) -> Threads {
        Threads { wire: Some(wire), ..Threads::default() }
    }
}

impl Execution for Threads {
    fn start_slots(&self, slots: usize, shared: Shared, reports: Reports) -> Result<Arc<dyn Worker>> {
        let worker = Arc::new(ThreadWorker::start(slots, shared, &reports, self.wire.as_ref())?);
        *self.slots.lock() = Some(Arc::clone(&worker));
        Ok(worker)
    }

    fn start_clock(&self, clock: ClockLoop, events: Receiver<Event>) -> Result<()> {
        let thread = std::thread::Builder::new()
            .name("clock".into())
            .spawn(move || clock.run(events))
            .map_err(|e| Error::internal(format!("cannot start the clock thread: {e}")))?;
        *self.clock.lock() = Some(thread);
        Ok(())
    }

    fn start_feeder(&self, feeder: Backfill) -> Result<()> {
        std::thread::Builder::new()
            .name(feeder.name())
            .spawn(move || {
                runtime::stand_back();
                feeder.run();
            })
            .map(|_| ())
            .map_err(|e| Error::internal(format!("cannot start a back-fill thread: {e}")))
    }

    fn start_service(&self, service: Box<dyn Service>) -> Result<Box<dyn Join>> {
        let name = service.name();
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .stack_size(SERVICE_STACK_BYTES)
            .spawn(move || runtime::service::run(service))
            .map_err(|e| Error::internal(format!("cannot start the thread \"{name}\": {e}")))?;
        Ok(Box::new(ServiceThread { name, thread: Some(thread) }))
    }

    fn stop(&self) {
        if let Some(thread) = self.clock.lock().take()
            && thread.join().is_err()
        {
            error!("the clock thread failed");
        }
        if let Some(slots) = self.slots.lock().take() {
            slots.stop();
        }
    }
}

/// A service on a thread of its own.
struct ServiceThread {
    name: String,
    thread: Option<JoinHandle<()>>,
}

impl Join for ServiceThread {
    fn join_while(&mut self, patient: &mut dyn FnMut() -> bool) -> bool {
        let Some(thread) = self.thread.take() else { return true };
        // It may be resting.
        thread.thread().unpark();
        while !thread.is_finished() {
            if !patient() {
                return false;
            }
            std::thread::sleep(END_LOOK);
        }
        if thread.join().is_err() {
            error!("the thread \"{}\" failed", self.name);
        }
        true
    }
}
