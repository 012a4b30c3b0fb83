//! An engine without threads: slots, clock, back-fills and services wait to be stepped.

use std::sync::Arc;

use coord::backfill::{Backfill, Fed};
use coord::clock::{ClockLoop, Event};
use coord::execution::Execution;
use crossbeam_channel::Receiver;
use flow::{Result, SlotId};
use parking_lot::Mutex;
use runtime::slot::{Reports, Shared};
use runtime::{Join, Service, Stepped, SteppedWorker, Worker};

/// A service that finds nothing to do so often although it was told to end never ends.
const IDLE_MAX: usize = 10_000;

/// A service and whether it is there.
enum Shelved {
    There(Box<dyn Service>),
    /// A step of it is under way.
    AtWork,
    Gone,
}

type Shelf = Arc<Mutex<Shelved>>;

/// Services that wait to be stepped.
#[derive(Default)]
pub struct Shelves(Mutex<Vec<Shelf>>);

impl Shelves {
    pub fn start(&self, service: Box<dyn Service>) -> Box<dyn Join> {
        let shelf: Shelf = Arc::new(Mutex::new(Shelved::There(service)));
        self.0.lock().push(Arc::clone(&shelf));
        Box::new(Stepping(shelf))
    }

    /// One of the services takes a step; true when it did something.
    pub fn serve(&self, chosen: usize) -> bool {
        let shelf = {
            let mut services = self.0.lock();
            services.retain(|shelf| !matches!(*shelf.lock(), Shelved::Gone));
            match services.len() {
                0 => return false,
                n => Arc::clone(&services[chosen % n]),
            }
        };
        step(&shelf) == Stepped::Worked
    }

    pub fn count(&self) -> usize {
        self.0.lock().len()
    }

    pub fn clear(&self) {
        let services = std::mem::take(&mut *self.0.lock());
        for shelf in services {
            let service = std::mem::replace(&mut *shelf.lock(), Shelved::Gone);
            drop(service);
        }
    }
}

/// The parts of one incarnation.
#[derive(Default)]
pub struct Machine {
    worker: Mutex<Option<Arc<SteppedWorker>>>,
    clock: Mutex<Option<(ClockLoop, Receiver<Event>)>>,
    feeders: Mutex<Vec<(Backfill, Fed)>>,
    services: Shelves,
}

struct Stepping(Shelf);

impl Join for Stepping {
    fn join_while(&mut self, patient: &mut dyn FnMut() -> bool) -> bool {
        for _ in 0..IDLE_MAX {
            match step(&self.0) {
                Stepped::Ended => return true,
                Stepped::Worked => {}
                Stepped::Idle if !patient() => return false,
                Stepped::Idle => coord::waiting::let_others_work(),
            }
        }
        panic!("a service does not end");
    }
}

fn step(shelf: &Shelf) -> Stepped {
    let taken = std::mem::replace(&mut *shelf.lock(), Shelved::AtWork);
    let mut service = match taken {
        Shelved::There(service) => service,
        // It lies below whoever waits for it, and ends when it goes on.
        Shelved::AtWork => return Stepped::Ended,
        Shelved::Gone => {
            *shelf.lock() = Shelved::Gone;
            return Stepped::Ended;
        }
    };
    // Others may work in the middle of it, and clear it away.
    let stepped = service.step();
    let mut shelved = shelf.lock();
    if matches!(*shelved, Shelved::AtWork) {
        *shelved = if stepped == Stepped::Ended { Shelved::Gone } else { Shelved::There(service) };
    }
    stepped
}

impl Execution for Machine {
    fn start_slots(&self, slots: usize, shared: Shared, reports: Reports) -> Result<Arc<dyn Worker>> {
        let worker = Arc::new(SteppedWorker::new(slots, shared, &reports, None)?);
        *self.worker.lock() = Some(Arc::clone(&worker));
        Ok(worker)
    }

    fn start_clock(&self, clock: ClockLoop, events: Receiver<Event>) -> Result<()> {
        *self.clock.lock() = Some((clock, events));
        Ok(())
    }

    fn start_feeder(&self, feeder: Backfill) -> Result<()> {
        self.feeders.lock().push((feeder, Fed::More));
        Ok(())
    }

    fn start_service(&self, service: Box<dyn Service>) -> Result<Box<dyn Join>> {
        Ok(self.services.start(service))
    }

    fn stop(&self) {
        while self.hear() {}
        self.clock.lock().take();
        self.feeders.lock().clear();
        self.worker.lock().take();
    }
}

impl Machine {
    /// One slot works off what has arrived and does one piece of work; false when it had nothing to do.
    pub fn work(&self, slot: usize) -> bool {
        let worker = self.worker.lock().clone();
        worker.is_some_and(|worker| worker.step(SlotId(slot as u16)))
    }

    /// The clock reacts to one event; false when there is none.
    pub fn hear(&self) -> bool {
        let mut clock = self.clock.lock();
        let Some((clock, events)) = clock.as_mut() else { return false };
        match events.try_recv() {
            Ok(event) => {
                clock.handle(event);
                true
            }
            Err(_) => false,
        }
    }

    pub fn cut(&self) {
        if let Some((clock, _)) = self.clock.lock().as_mut() {
            clock.try_cut();
        }
    }

    /// One of the back-fills gets on, if it can.
    pub fn feed(&self, chosen: usize) {
        let mut feeders = self.feeders.lock();
        if feeders.is_empty() {
            return;
        }
        let at = chosen % feeders.len();
        let (mut feeder, before) = feeders.remove(at);
        drop(feeders);
        let after = match feeder.ready(before) {
            Some(true) => feeder.step(),
            Some(false) => before,
            None => Fed::All,
        };
        if after != Fed::All {
            self.feeders.lock().push((feeder, after));
        }
    }

    /// What waits for what.
    pub fn show(&self) -> String {
        let feeders = self.feeders.lock();
        let shown: Vec<String> =
            feeders.iter().map(|(f, fed)| format!("{} {fed:?} {:?}", f.name(), f.ready(*fed))).collect();
        format!("{shown:?}, {} services", self.services.count())
    }

    /// One of the services takes a step; true when it did something.
    pub fn serve(&self, chosen: usize) -> bool {
        self.services.serve(chosen)
    }

    /// Lets go of everything: the parts hold each other.
    pub fn clear(&self) {
        self.services.clear();
        let (clock, worker) = (self.clock.lock().take(), self.worker.lock().take());
        let feeders = std::mem::take(&mut *self.feeders.lock());
        drop((clock, feeders, worker));
    }
}
