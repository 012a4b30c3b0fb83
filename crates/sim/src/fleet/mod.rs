//! A cluster in one seeded thread: two coordinators, of which one leads, and workers that have the slots; over a store that fails and a
//! network whose frames come late, whose connections break and whose ways are cut. Processes die, sleep and come again.
//!
//! The parts are the product's: engines, [`cluster`]'s rosters, sessions and nodes, leases and the log in the store. What is played is the
//! threads and the sockets. Where a part waits for another process, or for time to pass, [`coord::waiting`] lets the others work
//! until it can go on: then their steps lie on the stack above its own. A process that is on the stack takes no other step of its
//! main part meanwhile, but its connections go on. A worker lets others work only where it waits for another worker, or is asleep.
//!
//! [`Fleet`] draws what happens next, [`net`] is the network, [`process`] what a process is and how it dies, [`coordinator`] and
//! [`worker`] are what they do besides what the product does in its threads, [`clients`] load the engine that leads,
//! [`witness`] looks at the store from outside, and [`play`](mod@play) is one seed.

pub mod clients;
pub mod coordinator;
pub mod net;
pub mod play;
pub mod process;
pub mod witness;
pub mod worker;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use checkpoint::faulty::MemoryStore;
use cluster::connection::Pulse;
use parking_lot::Mutex;

use crate::rng::Rng;
use crate::store::Trace;
use crate::world::{Known, Objects, World};

use self::net::Net;
use self::process::{Body, Died, Process};
use self::witness::Witness;

/// The machines of coordinators.
pub const COORDINATORS: usize = 2;
/// The machines of workers, at most.
pub const WORKERS_MAX: usize = 3;
/// How long silence lasts on the simulated clock.
pub const PULSE: Pulse = Pulse { heartbeat: Duration::from_millis(40), timeout: Duration::from_millis(300) };
/// Time that a step takes, at most, in microseconds.
const STEP_US: usize = 300;
/// Who lets time pass without letting others work lets no more of it pass at a time, in microseconds.
const REST_MAX_US: i64 = 10_000;
/// Trouble comes once in so many times that the world goes on: some seeds are all trouble, in others jobs come far.
const TROUBLE_ONE_IN: [usize; 4] = [40, 120, 300, 600];
/// Steps may lie so deep on each other; deeper, who waits for time alone lets it pass.
const DEPTH_MAX: usize = 5;

thread_local! {
    static HERE: RefCell<Option<Rc<Fleet>>> = const { RefCell::new(None) };
}

/// The fleet that this thread plays.
pub fn here() -> Option<Rc<Fleet>> {
    HERE.with_borrow(Clone::clone)
}

/// A machine.
#[derive(Default)]
pub struct Host {
    process: RefCell<Option<Rc<Process>>>,
    /// Nothing runs there before this step.
    down_until: Cell<usize>,
}

/// What has happened, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub frames: usize,
    pub bytes: usize,
    pub deaths: usize,
    pub sleeps: usize,
    pub broken: usize,
    pub cut: usize,
    pub reigns: usize,
    /// Engines that other coordinators' engines followed while they still worked.
    pub zombies: usize,
    pub died_at: BTreeMap<String, usize>,
}

/// Everything that is played.
pub struct Fleet {
    pub world: RefCell<World>,
    pub rng: RefCell<Rng>,
    pub trace: Trace,
    pub known: Arc<Mutex<Known>>,
    pub hosts: Vec<Host>,
    pub witness: Arc<Witness>,
    pub net: Net,
    /// Whose code is under way, the innermost last.
    stack: RefCell<Vec<usize>>,
    pub steps: Cell<usize>,
    /// Nothing fails any more, and everything is to arrive.
    pub calm: Cell<bool>,
    /// A coordinator's tasks are being driven: no others can be.
    driving: Cell<bool>,
    next_process: Cell<usize>,
    /// Engines are numbered in the order in which they begin to work.
    reigns: RefCell<Vec<Rc<coordinator::Shown>>>,
    /// Processes whose memory is not freed yet.
    gone: RefCell<Vec<Rc<Process>>>,
    pub audited: Cell<bool>,
    pub wanted: usize,
    pub least: usize,
    trouble_one_in: usize,
    pub faults: Cell<usize>,
    pub counts: RefCell<Counts>,
    show: bool,
}

impl Fleet {
    /// `workers`: machines of workers.
    fn new(mut world: World, workers: usize) -> Rc<Fleet> {
        let objects = MemoryStore::new();
        world.objects = Objects::Memory(Arc::clone(&objects));
        let rng = world.rng.split();
        let wanted = 1 + world.rng.below(workers);
        let least = 1 + world.rng.below(wanted);
        let trouble_one_in = world.rng.pick(&TROUBLE_ONE_IN);
        let witness = Witness::new(objects, Arc::clone(&world.known));
        let fleet = Fleet {
            trace: world.trace.clone(),
            known: Arc::clone(&world.known),
            world: RefCell::new(world),
            rng: RefCell::new(rng),
            hosts: (0..COORDINATORS + workers).map(|_| Host::default()).collect(),
            witness,
            net: Net::default(),
            stack: RefCell::default(),
            steps: Cell::new(0),
            calm: Cell::new(false),
            driving: Cell::new(false),
            next_process: Cell::new(1),
            reigns: RefCell::default(),
            gone: RefCell::default(),
            audited: Cell::new(false),
            wanted,
            least,
            trouble_one_in,
            faults: Cell::new(0),
            counts: RefCell::default(),
            show: std::env::var_os("MILLSTREAM_SIM_SHOW").is_some(),
        };
        Rc::new(fleet)
    }

    pub fn now_us(&self) -> i64 {
        self.world.borrow().now.load(Ordering::Relaxed)
    }

    fn pass(&self, us: i64) {
        self.world.borrow().now.fetch_add(us, Ordering::Relaxed);
    }

    pub fn below(&self, n: usize) -> usize {
        self.rng.borrow_mut().below(n)
    }

    pub fn one_in(&self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn violated(&self, what: impl Into<String>) {
        self.known.lock().violated(what);
    }

    /// Tells what happens, where somebody wants to know.
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.show {
            eprintln!("{:>7} {:>6} ms: {}", self.steps.get(), self.now_us() / 1000 % 1_000_000, what());
        }
    }

    /// The process on a machine that is there and not asleep.
    pub fn awake(&self, host: usize) -> Option<Rc<Process>> {
        let process = self.hosts[host].process.borrow().clone()?;
        (!process.is_dead() && process.asleep_until.get() <= self.steps.get()).then_some(process)
    }

    /// Whether a step of the process lies on the stack.
    pub fn is_under_way(&self, process: &Process) -> bool {
        self.stack.borrow().contains(&process.number)
    }

    pub fn depth(&self) -> usize {
        self.stack.borrow().len()
    }

    /// The process whose code is under way.
    pub fn current(&self) -> Option<Rc<Process>> {
        let number = *self.stack.borrow().last()?;
        self.process(number)
    }

    pub fn process(&self, number: usize) -> Option<Rc<Process>> {
        let here = self.hosts.iter().filter_map(|host| host.process.borrow().clone());
        here.chain(self.gone.borrow().iter().cloned()).find(|process| process.number == number)
    }

    /// What a piece of work of a process gives, or nothing if the process has died in it.
    pub fn enter<T>(&self, process: &Rc<Process>, work: impl FnOnce() -> T) -> Option<T> {
        if process.is_dead() {
            return None;
        }
        self.stack.borrow_mut().push(process.number);
        let done = catch_unwind(AssertUnwindSafe(work));
        self.stack.borrow_mut().pop();
        match done {
            // Somebody on the way may have caught its end.
            Ok(done) => (!process.is_dead()).then_some(done),
            Err(panic) if panic.is::<Died>() => None,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Unwinds if the process whose code is under way has died meanwhile.
    fn end_if_dead(&self) {
        if self.current().is_some_and(|process| process.is_dead()) && !std::thread::panicking() {
            resume_unwind(Box::new(Died));
        }
    }

    /// What [`coord::waiting`] calls: somebody waits, so others work. Returns how much time has passed.
    fn others(&self) -> Duration {
        let before_us = self.now_us();
        self.step();
        self.end_if_dead();
        Duration::from_micros(self.now_us().saturating_sub(before_us).try_into().unwrap_or(0))
    }

    /// Lets others work until so much time has passed.
    pub fn rest(&self, us: i64) {
        self.end_if_dead();
        let until_us = self.now_us() + us;
        // Who waits for a worker must not lie above it: the worker would never go on.
        let is_worker = self.current().is_none_or(|process| process.host >= COORDINATORS);
        if self.depth() > DEPTH_MAX || is_worker {
            self.pass(us.min(REST_MAX_US));
            return;
        }
        while self.now_us() < until_us {
            self.step();
            self.end_if_dead();
        }
    }

    /// The process whose code is under way sleeps in the middle of it.
    pub fn nap(&self, process: &Rc<Process>, steps: usize) {
        if self.depth() > DEPTH_MAX || std::thread::panicking() {
            return;
        }
        self.counts.borrow_mut().sleeps += 1;
        self.tell(|| format!("{process} sleeps in a request for {steps} steps"));
        process.asleep_until.set(self.steps.get() + steps);
        while process.asleep_until.get() > self.steps.get() {
            self.step();
        }
        self.end_if_dead();
    }

    /// One thing happens.
    pub fn step(&self) {
        self.steps.set(self.steps.get() + 1);
        let chosen = self.below(20);
        let worked = match chosen {
            0..=6 => self.net.step(self),
            7..=11 => self.step_coordinator(self.below(COORDINATORS)),
            12..=18 => self.step_worker(COORDINATORS + self.below(self.hosts.len() - COORDINATORS)),
            _ => {
                self.happen();
                false
            }
        };
        self.pass(self.below(if worked { STEP_US / 3 } else { STEP_US }) as i64);
        self.trace.note((chosen, worked));
    }

    fn step_coordinator(&self, host: usize) -> bool {
        let Some(process) = self.awake(host) else { return false };
        let Body::Coordinator(coordinator) = &process.body else { return false };
        if self.one_in(6) {
            coordinator.keep_lease(self, &process);
        }
        if self.is_under_way(&process) {
            return false;
        }
        coordinator.step(self, &process)
    }

    fn step_worker(&self, host: usize) -> bool {
        let Some(process) = self.awake(host) else { return false };
        let Body::Worker(worker) = &process.body else { return false };
        if self.is_under_way(&process) {
            return false;
        }
        worker.step(self, &process)
    }

    /// The world goes on: rows are sent, processes start, and now and then there is trouble.
    fn happen(&self) {
        if self.depth() == 0 {
            self.bury();
        }
        for host in 0..self.hosts.len() {
            let is_down = self.hosts[host].process.borrow().is_none();
            if is_down && self.hosts[host].down_until.get() <= self.steps.get() {
                self.start(host);
            }
        }
        if self.calm.get() {
            return;
        }
        if self.one_in(24) {
            let rows = self.below(6);
            self.world.borrow_mut().send(rows);
        }
        if !self.one_in(self.trouble_one_in) {
            return;
        }
        let hosts = self.hosts.len();
        let host = self.below(hosts);
        match self.below(12) {
            0 | 1 => {
                if let Some(process) = self.awake(host) {
                    let silent = self.one_in(3);
                    self.kill(&process, silent, "between two steps");
                }
            }
            2 | 3 => {
                if let Some(process) = self.awake(host) {
                    let steps = 200 + self.below(12_000);
                    self.tell(|| format!("{process} sleeps for {steps} steps"));
                    self.counts.borrow_mut().sleeps += 1;
                    process.asleep_until.set(self.steps.get() + steps);
                }
            }
            4 | 5 => {
                self.net.break_one(self);
            }
            6..=8 => {
                let other = self.below(hosts);
                let (both, until) = (self.one_in(2), self.steps.get() + 200 + self.below(9_000));
                if other != host {
                    self.tell(|| format!("the way from machine {host} to {other} is cut, both: {both}"));
                    self.counts.borrow_mut().cut += 1;
                    self.net.cut(host, other, until);
                    if both {
                        self.net.cut(other, host, until);
                    }
                }
            }
            9 => self.net.heal(),
            _ => {}
        }
    }

    /// What everybody does.
    pub fn describe(&self) -> String {
        let mut lines = Vec::new();
        for (n, host) in self.hosts.iter().enumerate() {
            let said = match &*host.process.borrow() {
                None => format!("machine {n}: nothing, until {}", host.down_until.get()),
                Some(process) => {
                    let what = match &process.body {
                        Body::Coordinator(coordinator) => coordinator.describe(),
                        Body::Worker(worker) => worker.describe(),
                    };
                    let under_way = if self.is_under_way(process) { ", under way" } else { "" };
                    format!("{process}, asleep until {}{under_way}: {what}", process.asleep_until.get())
                }
            };
            lines.push(said);
        }
        format!("step {}:\n  {}", self.steps.get(), lines.join("\n  "))
    }

    /// Everything works from here on.
    pub fn calm_down(&self) {
        self.tell(|| "calm".into());
        self.calm.set(true);
        self.net.heal();
        for host in &self.hosts {
            host.down_until.set(0);
            if let Some(process) = &*host.process.borrow() {
                process.asleep_until.set(0);
                process.doom.set(process::Doom::None);
                process.store.calm();
            }
        }
    }

    fn start(&self, host: usize) {
        let number = self.next_process.get();
        self.next_process.set(number + 1);
        if let Some(process) = Process::start(self, host, number) {
            self.tell(|| format!("{process} starts, {:?}", process.doom.get()));
            *self.hosts[host].process.borrow_mut() = Some(process);
        }
    }

    /// Ends a process; if its code is under way, that unwinds. `silent`: nobody tells those that are connected.
    pub fn kill(&self, process: &Rc<Process>, silent: bool, at: &str) {
        if process.is_dead() {
            return;
        }
        self.tell(|| format!("{process} dies {at}{}", if silent { ", and nobody says so" } else { "" }));
        {
            let mut counts = self.counts.borrow_mut();
            counts.deaths += 1;
            let what = if process.host < COORDINATORS { "coordinator" } else { "worker" };
            *counts.died_at.entry(format!("{what} {at}")).or_default() += 1;
        }
        process.die(silent);
        let host = &self.hosts[process.host];
        let gone = host.process.borrow_mut().take();
        self.gone.borrow_mut().extend(gone);
        let down = if self.calm.get() { 0 } else { 100 + self.below(6_000) };
        host.down_until.set(self.steps.get() + down);
        if self.current().is_some_and(|current| current.number == process.number) && !std::thread::panicking() {
            resume_unwind(Box::new(Died));
        }
    }

    /// Frees what the dead have left, once no step of theirs is under way.
    fn bury(&self) {
        let gone = std::mem::take(&mut *self.gone.borrow_mut());
        for process in gone {
            // Its ends say so to the others first.
            if self.net.holds(&process) {
                self.gone.borrow_mut().push(process);
                continue;
            }
            self.faults.set(self.faults.get() + process.store.faults());
            process.free();
            self.world.borrow().inspect();
        }
    }

    /// Lets everything go.
    fn end(&self) {
        for host in &self.hosts {
            if let Some(process) = host.process.borrow_mut().take() {
                process.die(true);
                self.gone.borrow_mut().push(process);
            }
        }
        self.net.clear();
        for process in std::mem::take(&mut *self.gone.borrow_mut()) {
            self.faults.set(self.faults.get() + process.store.faults());
            process.free();
        }
        self.reigns.borrow_mut().clear();
    }
}
