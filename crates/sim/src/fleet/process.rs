//! A process: a coordinator or a worker, what it has of its own, and how it ends.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use checkpoint::crash;
use checkpoint::door::{Rest, Store};
use checkpoint::faulty::storm;

use crate::store::{Fate, SimStore};

use super::coordinator::Coordinator;
use super::worker::Worker;
use super::{COORDINATORS, Fleet, here};

/// What the thread unwinds with when a process ends in the middle of what it does.
pub struct Died;

/// Where a process dies, if nothing else kills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doom {
    None,
    /// The so-manyth time that it comes to the crash point.
    Point(&'static str, u32),
    /// Before the so-manyth request to the store.
    BeforeRequest(u32),
    /// After it took effect, before its answer.
    AfterRequest(u32),
}

pub enum Body {
    Coordinator(Box<Coordinator>),
    Worker(Worker),
}

/// One process, from its start to its end.
pub struct Process {
    pub number: usize,
    pub host: usize,
    /// Shared with what must be sent to other threads in the product.
    dead: Arc<AtomicBool>,
    silent: Cell<bool>,
    pub asleep_until: Cell<usize>,
    pub doom: Cell<Doom>,
    pub store: Arc<SimStore>,
    pub body: Body,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.host < COORDINATORS { "coordinator" } else { "worker" };
        write!(f, "{what} {} on machine {}", self.number, self.host)
    }
}

/// What the store does to a process.
struct OfProcess {
    number: usize,
    dead: Arc<AtomicBool>,
}

impl OfProcess {
    fn meet(&self, after: bool) {
        let Some(fleet) = here() else { return };
        if self.dead.load(Ordering::Relaxed) || std::thread::panicking() || fleet.calm.get() {
            return;
        }
        let Some(process) = fleet.process(self.number) else { return };
        let left = match process.doom.get() {
            Doom::BeforeRequest(left) if !after => left,
            Doom::AfterRequest(left) if after => left,
            _ => 0,
        };
        match left {
            0 => {}
            1 => fleet.kill(&process, false, if after { "after a request" } else { "before a request" }),
            _ => process.doom.set(match after {
                false => Doom::BeforeRequest(left - 1),
                true => Doom::AfterRequest(left - 1),
            }),
        }
        // A process may sleep anywhere; here it hurts most.
        if fleet.one_in(1500) && fleet.current().is_some_and(|current| current.number == self.number) {
            let steps = 300 + fleet.below(9_000);
            fleet.nap(&process, steps);
        }
    }
}

impl Fate for OfProcess {
    fn before_request(&self) {
        self.meet(false);
    }

    fn after_request(&self) {
        self.meet(true);
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

/// Lets others work while a process rests.
pub struct OthersWork;

impl Rest for OthersWork {
    fn rest(&self, at_most: Duration) {
        if let Some(fleet) = here()
            && !std::thread::panicking()
        {
            // Shorter than it may be, as all times are here.
            fleet.rest((at_most.as_micros() / 16) as i64);
        }
    }
}

impl Process {
    /// `None`: it cannot start now, or has died at once.
    pub fn start(fleet: &Fleet, host: usize, number: usize) -> Option<Rc<Process>> {
        let dead: Arc<AtomicBool> = Arc::default();
        let calm = fleet.calm.get();
        let weather = if !calm && fleet.one_in(2) { storm() } else { Vec::new() };
        let seed = fleet.rng.borrow_mut().draw();
        let fate = Box::new(OfProcess { number, dead: Arc::clone(&dead) });
        let objects = Arc::clone(&fleet.witness) as Arc<dyn Store>;
        let store = SimStore::new(objects, true, weather, seed, Arc::new(OthersWork), fleet.trace.clone(), fate);
        let doom = if calm { Doom::None } else { draw(fleet, host) };
        let body = match host < COORDINATORS {
            true => Body::Coordinator(Box::new(Coordinator::new(fleet, host, number, &store)?)),
            false => Body::Worker(Worker::new(fleet, host, number, &store)),
        };
        let (silent, asleep_until) = (Cell::new(false), Cell::new(0));
        Some(Rc::new(Process { number, host, dead, silent, asleep_until, doom: Cell::new(doom), store, body }))
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    pub fn die(&self, silent: bool) {
        self.dead.store(true, Ordering::Relaxed);
        self.silent.set(silent);
    }

    /// Nobody says to the others that it is dead.
    pub fn dies_silently(&self) -> bool {
        self.silent.get()
    }

    /// Frees what it has left. No step of it is under way.
    pub fn free(&self) {
        match &self.body {
            Body::Coordinator(coordinator) => coordinator.free(),
            Body::Worker(worker) => worker.free(),
        }
    }
}

fn draw(fleet: &Fleet, host: usize) -> Doom {
    let number = |below: usize| 1 + fleet.below(below) as u32;
    match fleet.below(8) {
        0 => Doom::BeforeRequest(number(400)),
        1 => Doom::AfterRequest(number(400)),
        2..=4 => {
            // Workers store and read back; everything else is done by a coordinator.
            let points = match host < COORDINATORS {
                true => crash::POINTS[..15].to_vec(),
                false => [&crash::POINTS[1..6], &crash::POINTS[15..]].concat(),
            };
            Doom::Point(points[fleet.below(points.len())], number(4))
        }
        _ => Doom::None,
    }
}

/// From now on, who comes to a crash point may die there.
pub fn watch_points() {
    crash::simulate(Some(Box::new(|name| {
        let Some(fleet) = here() else { return };
        let Some(process) = fleet.current() else { return };
        match process.doom.get() {
            Doom::Point(point, 1) if point == name && !process.is_dead() => fleet.kill(&process, false, name),
            Doom::Point(point, left) if point == name && left > 1 => process.doom.set(Doom::Point(point, left - 1)),
            _ => {}
        }
    })));
}
