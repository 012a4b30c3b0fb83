//! A coordinator: it stands by or leads, as its lease says, and opens one engine after the other on the workers that are there. What the
//! server does in tasks and threads is here a stage that is looked at step by step.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};
use std::time::Duration;

use checkpoint::DataDirectory;
use checkpoint::door::Door;
use checkpoint::lease::{Holder, Leases, Renewed, Watch};
use cluster::message::StorePlace;
use cluster::roster::Change;
use cluster::{Identity, Roster, RosterConfig, Slots, Wanted};
use coord::engine::{CheckpointConfig, Replanner, SharedLog, cluster_id};
use coord::execution::Execution;
use coord::history::HistoryConfig;
use coord::session::replan::StoredQueries;
use coord::{Engine, EngineConfig, Session, Time};
use datafusion::execution::context::SessionState;
use flow::{Error, SqlState};
use tokio::runtime::Runtime;

use crate::clients::Scene;
use crate::machine::Machine;
use crate::sql::{self, told};
use crate::store::SimStore;

use super::process::{OthersWork, Process};
use super::worker::address;
use super::{Fleet, PULSE, clients};

const MEMORY: usize = 1 << 30;
/// How long workers that are missing are waited for, and how long one has to stay until jobs spread over it.
const PATIENCE: Duration = Duration::from_millis(500);
const SETTLE: Duration = Duration::from_millis(800);
/// The rest before another engine is opened where the last one could not, in microseconds.
const OPEN_REST_US: i64 = 60_000;
/// How often clients go on after their engine was interrupted.
const GRACE: usize = 24;

/// Something that is polled when its turn is drawn.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// An engine as others look at it, also after its end.
pub struct Shown {
    /// Its generation.
    pub number: u64,
    engine: RefCell<Option<Arc<Engine>>>,
    /// The newest epoch that it has completed.
    completed: Cell<u64>,
    /// What it began with.
    first: Cell<u64>,
}

/// One engine, on one session.
struct Reign {
    shown: Rc<Shown>,
    slots: Arc<Slots>,
    engine: Arc<Engine>,
    machine: Arc<Machine>,
    runtime: Option<Runtime>,
    base: SessionState,
    scene: Scene,
    clients: Vec<Task>,
    /// Clients that load it have begun.
    loaded: bool,
}

/// What comes after an engine.
enum Then {
    Another,
    StandBy(Error),
}

enum Stage {
    /// Nothing is known of the store.
    Boot,
    StandBy(Watch),
    /// It leads, and has no engine.
    Waiting,
    Recovering(Reign, Task, Rc<Cell<bool>>),
    Working(Reign),
    /// A last checkpoint, before the jobs move.
    Moving(Reign, Task, Rc<Cell<Option<bool>>>, Change),
    Interrupting(Reign, Task, Rc<Cell<bool>>, usize, Then),
}

struct Lease {
    held: u64,
    renewed_us: i64,
}

/// A coordinator's process.
pub struct Coordinator {
    roster: Arc<Roster>,
    directory: Arc<DataDirectory>,
    store: Arc<SimStore>,
    number: usize,
    address: String,
    starts: Cell<bool>,
    /// Absent while it is being looked at.
    stage: RefCell<Option<Stage>>,
    leases: RefCell<Option<Leases>>,
    cluster: RefCell<String>,
    lease: RefCell<Option<Lease>>,
    lost: RefCell<Option<Error>>,
    keeping: Cell<bool>,
    next_us: Cell<i64>,
    /// The parts of its engine: they hold each other.
    parts: RefCell<Option<(Arc<Machine>, Arc<Slots>)>>,
}

fn starting() -> Error {
    Error::new(SqlState::CannotConnectNow, "the coordinator starts")
}

/// Polls a task; true: it is done.
fn poll(task: &mut Task) -> bool {
    task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

impl Coordinator {
    /// `None`: its data directory cannot be opened, which is a violation.
    pub fn new(fleet: &Fleet, host: usize, number: usize, store: &Arc<SimStore>) -> Option<Coordinator> {
        let (folder, seed, now) = {
            let world = fleet.world.borrow();
            (world.folder.join(format!("data-{host}")), world.seed, Arc::clone(&world.now))
        };
        // Whoever leaks a part of the dead one does not hold up the next.
        let _ = std::fs::remove_file(folder.join("LOCK"));
        let directory = match DataDirectory::open(&folder) {
            Ok(directory) => Arc::new(directory),
            Err(e) => {
                fleet.violated(format!("a data directory cannot be opened: {}", told(&e)));
                return None;
            }
        };
        let time = Time::from_fn(move || now.load(Ordering::Relaxed));
        let config = RosterConfig {
            identity: Identity::new(None, String::new()),
            wanted: Wanted { workers: fleet.wanted, least: fleet.least, patience: PATIENCE, settle: SETTLE },
            pulse: PULSE,
            time: time.clone(),
            steady: time,
            nonce: seed.wrapping_mul(1_000_000) + 1000 * number as u64 + 1,
        };
        let roster = Roster::new(address(host), config);
        roster.stand_by(Some(starting()));
        Some(Coordinator {
            roster,
            directory,
            store: Arc::clone(store),
            number,
            address: address(host).to_string(),
            starts: Cell::new(true),
            stage: RefCell::new(Some(Stage::Boot)),
            leases: RefCell::default(),
            cluster: RefCell::default(),
            lease: RefCell::default(),
            lost: RefCell::default(),
            keeping: Cell::new(false),
            next_us: Cell::new(0),
            parts: RefCell::default(),
        })
    }

    pub fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.roster)
    }

    fn nonce(&self, fleet: &Fleet) -> u64 {
        fleet.world.borrow().seed.wrapping_mul(10_000) + self.number as u64
    }

    /// Gives a sign of life, when it is time for one.
    pub fn keep_lease(&self, fleet: &Fleet, process: &Rc<Process>) {
        let due = |lease: &Lease| fleet.now_us() - lease.renewed_us >= PULSE.heartbeat.as_micros() as i64;
        let held = self.lease.borrow().as_ref().filter(|lease| due(lease)).map(|lease| lease.held);
        let (Some(held), Some(leases)) = (held, self.leases.borrow().clone()) else { return };
        if self.keeping.replace(true) {
            return;
        }
        let renewed = fleet.enter(process, || leases.renew(held));
        self.keeping.set(false);
        let mut lease = self.lease.borrow_mut();
        let Some(lease) = lease.as_mut() else { return };
        match renewed {
            Some(Ok(Renewed::Holds(next))) => *lease = Lease { held: next, renewed_us: fleet.now_us() },
            Some(Ok(Renewed::Lost(_))) if lease.held == held => {
                let lost = Error::new(SqlState::AdminShutdown, "another coordinator has taken over");
                *self.lost.borrow_mut() = Some(lost);
            }
            Some(Err(_)) => lease.renewed_us = fleet.now_us(),
            Some(Ok(Renewed::Lost(_))) | None => {}
        }
    }

    /// One thing that a coordinator does; false: there was nothing to do.
    pub fn step(&self, fleet: &Fleet, process: &Rc<Process>) -> bool {
        let part = fleet.below(12);
        if part > 0 {
            let mut stage = self.stage.borrow_mut();
            let reign = match stage.as_mut() {
                Some(
                    Stage::Recovering(reign, ..)
                    | Stage::Working(reign)
                    | Stage::Moving(reign, ..)
                    | Stage::Interrupting(reign, ..),
                ) => reign,
                _ => return false,
            };
            return reign.work(fleet, process, part);
        }
        let Some(stage) = self.stage.borrow_mut().take() else { return false };
        let next = fleet.enter(process, || self.advance(fleet, process, stage));
        *self.stage.borrow_mut() = next;
        true
    }

    /// Looks whether the stage is over.
    fn advance(&self, fleet: &Fleet, process: &Rc<Process>, stage: Stage) -> Stage {
        match stage {
            Stage::Boot | Stage::StandBy(_) | Stage::Waiting if fleet.now_us() < self.next_us.get() => stage,
            Stage::Boot => self.boot(fleet),
            Stage::StandBy(watch) => self.stand_by(fleet, process, watch),
            Stage::Waiting => self.open(fleet, process),
            Stage::Recovering(reign, mut task, done) => match self.ends(&reign) {
                Some(then) => interrupt(reign, then),
                None => {
                    reign.poll(&mut task);
                    match done.get() {
                        true => {
                            reign.begin(fleet);
                            Stage::Working(reign)
                        }
                        false => Stage::Recovering(reign, task, done),
                    }
                }
            },
            Stage::Working(mut reign) => {
                reign.load(fleet);
                reign.show(fleet);
                match (self.ends(&reign), self.roster.change()) {
                    (Some(then), _) => interrupt(reign, then),
                    (None, Some(change)) => {
                        let (kept, engine) = (Rc::new(Cell::new(None)), Arc::clone(&reign.engine));
                        let tell = Rc::clone(&kept);
                        let task = Box::pin(async move { tell.set(Some(engine.checkpoint().await.is_ok())) });
                        Stage::Moving(reign, task, kept, change)
                    }
                    (None, None) => Stage::Working(reign),
                }
            }
            Stage::Moving(mut reign, mut task, kept, change) => match self.ends(&reign) {
                Some(then) => interrupt(reign, then),
                None => {
                    reign.load(fleet);
                    reign.poll(&mut task);
                    match kept.get() {
                        None => Stage::Moving(reign, task, kept, change),
                        Some(is_kept) if is_kept || matches!(change, Change::Leaves(_)) => {
                            interrupt(reign, (Error::new(SqlState::CannotConnectNow, "the jobs move"), Then::Another))
                        }
                        Some(_) => {
                            self.roster.put_off();
                            Stage::Working(reign)
                        }
                    }
                }
            },
            Stage::Interrupting(reign, mut task, done, left, then) => {
                if !done.get() {
                    reign.poll(&mut task);
                    return Stage::Interrupting(reign, task, done, left, then);
                }
                if left > 0 {
                    return Stage::Interrupting(reign, task, done, left - 1, then);
                }
                drop(task);
                reign.end(fleet, process);
                *self.parts.borrow_mut() = None;
                match then {
                    Then::Another => Stage::Waiting,
                    Then::StandBy(cause) => self.depose(fleet, process, cause),
                }
            }
        }
    }

    /// What it does and what that waits for.
    pub fn describe(&self) -> String {
        let stage = self.stage.borrow();
        let (name, reign) = match stage.as_ref() {
            None => ("is looked at", None),
            Some(Stage::Boot) => ("boots", None),
            Some(Stage::StandBy(_)) => ("stands by", None),
            Some(Stage::Waiting) => ("waits for workers", None),
            Some(Stage::Recovering(reign, ..)) => ("recovers", Some(reign)),
            Some(Stage::Working(reign)) => ("works", Some(reign)),
            Some(Stage::Moving(reign, ..)) => ("moves", Some(reign)),
            Some(Stage::Interrupting(reign, ..)) => ("is interrupted", Some(reign)),
        };
        let engine = reign.map(|reign| {
            let (clock, clients) = (&reign.engine.clock, reign.clients.len());
            let (number, completed) = (reign.shown.number, clock.completed().0);
            let (stalls, parts) = (&clock.stalls, reign.machine.show());
            let jobs = clock.board.all().into_iter();
            let jobs: Vec<_> =
                jobs.map(|(relation, job)| (relation.0, job.phase, job.finished, job.backfill)).collect();
            format!(": engine {number} at {completed}, {clients} clients, {stalls:?}, {parts}, jobs {jobs:?}")
        });
        format!("{name}{}", engine.unwrap_or_default())
    }

    fn boot(&self, fleet: &Fleet) -> Stage {
        let nonce = self.nonce(fleet);
        let door = Door::new(Arc::clone(&self.store) as _, Arc::new(OthersWork), nonce);
        let known = self.directory.identity(nonce).and_then(|own| {
            door.probe()?;
            Ok((cluster_id(&door, &own)?, own))
        });
        self.next_us.set(fleet.now_us() + OPEN_REST_US);
        match known {
            Ok((cluster, id)) => {
                let holder = Holder { id, pg_addr: self.address.clone(), cluster_addr: self.address.clone() };
                *self.cluster.borrow_mut() = cluster;
                *self.leases.borrow_mut() = Some(Leases::new(door, holder));
                self.next_us.set(0);
                Stage::StandBy(Watch::default())
            }
            Err(e) if e.may_pass() => Stage::Boot,
            Err(e) => {
                fleet.violated(format!("a coordinator does not start: {}", told(&e)));
                Stage::Boot
            }
        }
    }

    /// Looks who leads, and takes the lease of one that is silent.
    fn stand_by(&self, fleet: &Fleet, process: &Rc<Process>, mut watch: Watch) -> Stage {
        let Some(leases) = self.leases.borrow().clone() else { return Stage::Boot };
        let asked_us = fleet.now_us();
        let seen = leases.look();
        self.next_us.set(fleet.now_us() + PULSE.heartbeat.as_micros() as i64);
        let seen = match seen {
            Ok(seen) => seen,
            Err(_) => {
                watch.forget();
                return Stage::StandBy(watch);
            }
        };
        let number = seen.as_ref().map_or(0, |seen| seen.number);
        let silent_us = watch.saw(number, asked_us, fleet.now_us());
        let is_held = seen.is_some_and(|seen| {
            let own = self.starts.get() && seen.sign.holder.id == leases.holder().id;
            !(seen.sign.released || seen.mine || own || silent_us >= PULSE.timeout.as_micros() as i64)
        });
        if is_held || !matches!(leases.take(number), Ok(true)) {
            return Stage::StandBy(watch);
        }
        fleet.tell(|| format!("{process} leads"));
        self.starts.set(false);
        *self.lease.borrow_mut() = Some(Lease { held: number + 1, renewed_us: fleet.now_us() });
        *self.lost.borrow_mut() = None;
        self.roster.stand_by(None);
        self.next_us.set(0);
        Stage::Waiting
    }

    fn depose(&self, fleet: &Fleet, process: &Rc<Process>, cause: Error) -> Stage {
        fleet.tell(|| format!("{process} leads no more: {cause}"));
        *self.lease.borrow_mut() = None;
        self.roster.stand_by(Some(Error::new(SqlState::CannotConnectNow, cause.message())));
        self.next_us.set(0);
        Stage::StandBy(Watch::default())
    }

    /// Opens an engine, once there are enough workers.
    fn open(&self, fleet: &Fleet, process: &Rc<Process>) -> Stage {
        let lost = self.lost.borrow().clone();
        if let Some(lost) = lost {
            return self.depose(fleet, process, lost);
        }
        let Some(chosen) = self.roster.choose(Duration::ZERO) else { return Stage::Waiting };
        let machine = Arc::new(Machine::default());
        let place = StorePlace::Folder("the simulated store".into());
        let slots = Arc::new(Slots::beside(&self.roster, chosen, place, Arc::clone(&machine) as Arc<dyn Execution>));
        *self.parts.borrow_mut() = Some((Arc::clone(&machine), Arc::clone(&slots)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap_or_else(|e| panic!("a runtime: {e}"));
        let opened = {
            let _here = runtime.enter();
            Engine::open_with(self.config(fleet, &slots), Arc::clone(&slots) as Arc<dyn Execution>)
        };
        self.next_us.set(fleet.now_us() + OPEN_REST_US);
        let engine = match opened {
            Ok(engine) => engine,
            Err(e) => {
                slots.stop();
                machine.clear();
                *self.parts.borrow_mut() = None;
                fleet.tell(|| format!("{process} opens no engine: {}", told(&e)));
                return match e.state() {
                    _ if e.may_pass() => Stage::Waiting,
                    SqlState::CannotConnectNow | SqlState::ConnectionFailure => Stage::Waiting,
                    SqlState::ObjectInUse | SqlState::AdminShutdown => self.depose(fleet, process, e),
                    _ => {
                        fleet.violated(format!("an engine does not start: {}", told(&e)));
                        Stage::Waiting
                    }
                };
            }
        };
        fleet.counts.borrow_mut().reigns += 1;
        // In the order in which they have claimed the log, whatever slept meanwhile.
        let number = engine.generation().unwrap_or_default().0;
        fleet.tell(|| format!("{process} opens engine {number} on {} slots", slots.count()));
        let base = query::base_state(MEMORY, slots.count()).unwrap_or_else(|e| panic!("no state for sessions: {e}"));
        let scene = Scene {
            known: Arc::clone(&fleet.known),
            views: Arc::clone(&fleet.world.borrow().views),
            makes: fleet.world.borrow().makes(),
            stop: Arc::default(),
            damaged: false,
            trouble: false,
            moves: true,
            reign: number,
        };
        let shown = Rc::new(Shown {
            number,
            engine: RefCell::new(Some(Arc::clone(&engine))),
            completed: Cell::new(0),
            first: Cell::new(0),
        });
        let replanner: Arc<dyn Replanner> = Arc::new(StoredQueries);
        let (recovers, done) = (Arc::clone(&engine), Rc::new(Cell::new(false)));
        let tell = Rc::clone(&done);
        let task = Box::pin(async move {
            recovers.recover(&replanner).await;
            tell.set(true);
        });
        let (runtime, clients) = (Some(runtime), Vec::new());
        let reign = Reign { shown, slots, engine, machine, runtime, base, scene, clients, loaded: false };
        reign.check_watermark(fleet);
        Stage::Recovering(reign, task, done)
    }

    fn config(&self, fleet: &Fleet, slots: &Slots) -> EngineConfig {
        let world = fleet.world.borrow();
        let now = Arc::clone(&world.now);
        EngineConfig {
            data_dir: self.directory.path().to_path_buf(),
            slots: slots.count(),
            memory_limit: MEMORY,
            batch_rows: [1, 8, 64][world.seed as usize % 3],
            time: Time::from_fn(move || now.load(Ordering::Relaxed)),
            disk: None,
            log_bytes_min: if world.rewrites_log() { 0 } else { coord::compaction::LOG_BYTES_MIN },
            checkpoints: Some(CheckpointConfig {
                store: Some(Arc::clone(&self.store) as _),
                rest: Some(Arc::new(OthersWork)),
                interval: [None, Some(20), Some(100)][world.seed as usize % 3].map(Duration::from_millis),
                savepoint: None,
                history: HistoryConfig { retained: 8, age: None },
                retained: 1 + world.seed as usize % 2,
                timeout: Duration::from_secs(3600),
                nonce: world.seed.wrapping_mul(10_000) + self.number as u64,
            }),
            shared_log: Some(SharedLog {
                address: self.address.clone(),
                cluster: self.cluster.borrow().clone(),
                directory: Arc::clone(&self.directory),
            }),
        }
    }

    /// Why the engine has to end, and what comes then.
    fn ends(&self, reign: &Reign) -> Option<(Error, Then)> {
        if let Some(lost) = self.lost.borrow().clone() {
            reign.engine.log.hurry();
            return Some((lost.clone(), Then::StandBy(lost)));
        }
        if let Err(failed) = reign.engine.log.check() {
            return Some((failed.clone(), Then::StandBy(failed)));
        }
        let session = reign.slots.session()?;
        session.wait_lost(Duration::ZERO).map(|cause| (cause, Then::Another))
    }

    /// Lets go of everything.
    pub fn free(&self) {
        let stage = self.stage.borrow_mut().take();
        if let Some(
            Stage::Recovering(mut reign, ..)
            | Stage::Working(mut reign)
            | Stage::Moving(mut reign, ..)
            | Stage::Interrupting(mut reign, ..),
        ) = stage
        {
            reign.clients.clear();
            *reign.shown.engine.borrow_mut() = None;
        }
        if let Some((machine, slots)) = self.parts.borrow_mut().take() {
            // All its connections have ended: nobody is waited for.
            if let Some(session) = slots.session() {
                session.end();
            }
            machine.clear();
        }
    }
}

fn interrupt(reign: Reign, (cause, then): (Error, Then)) -> Stage {
    let (engine, done) = (Arc::clone(&reign.engine), Rc::new(Cell::new(false)));
    let tell = Rc::clone(&done);
    let task = Box::pin(async move {
        engine.interrupt(&cause).await;
        tell.set(true);
    });
    Stage::Interrupting(reign, task, done, GRACE, then)
}

impl Reign {
    fn poll(&self, task: &mut Task) -> bool {
        let _here = self.runtime.as_ref().map(Runtime::enter);
        poll(task)
    }

    fn session(&self) -> Session {
        sql::session(&self.engine, &self.base)
    }

    /// One of the engine's parts, its tasks or its clients gets on.
    fn work(&mut self, fleet: &Fleet, process: &Rc<Process>, part: usize) -> bool {
        let (machine, chosen) = (Arc::clone(&self.machine), fleet.below(840));
        match part {
            1..=3 => fleet.enter(process, || machine.hear()).unwrap_or(false),
            4 => fleet.enter(process, || machine.cut()).is_none(),
            5 => fleet.enter(process, || machine.feed(chosen)).is_none(),
            6..=8 => fleet.enter(process, || machine.serve(chosen)).unwrap_or(false),
            _ => {
                if !self.clients.is_empty() {
                    let n = chosen % self.clients.len();
                    let client = &mut self.clients[n];
                    let runtime = self.runtime.as_ref();
                    let polled = fleet.enter(process, || {
                        let _here = runtime.map(Runtime::enter);
                        poll(client)
                    });
                    if polled == Some(true) {
                        drop(self.clients.swap_remove(n));
                    }
                }
                if !fleet.driving.replace(true) {
                    if let Some(runtime) = &self.runtime {
                        fleet.enter(process, || runtime.block_on(tokio::task::yield_now()));
                    }
                    fleet.driving.set(false);
                }
                true
            }
        }
    }

    /// Event time is not behind what the checkpoint says that it starts from.
    fn check_watermark(&self, fleet: &Fleet) {
        let door = fleet.world.borrow().door();
        let newest = checkpoint::fsck::checkpoints(&door).ok().and_then(|all| {
            let line = all.into_iter().rfind(|line| line.savepoint.is_none() && line.damage.is_none())?;
            checkpoint::fsck::manifest_of(&door, &line).ok()
        });
        let Some(manifest) = newest else { return };
        for source in manifest.coordinator["sources"].as_array().into_iter().flatten() {
            let Some(kept_us) = source["gate"]["watermark_us"].as_i64() else { continue };
            let relation = source["relation"].as_u64().unwrap_or_default() as u32;
            let gate = self.engine.clock.gate(flow::RelationId(relation));
            let now_us = gate.and_then(|gate| gate.status().watermark_us).unwrap_or(i64::MIN);
            if now_us < kept_us {
                fleet.violated(format!("the watermark of source {relation} goes back from {kept_us} to {now_us}"));
            }
        }
    }

    /// It works: no epoch of an earlier engine may be newer, now or later.
    fn begin(&self, fleet: &Fleet) {
        let first = self.engine.clock.completed().0;
        self.shown.first.set(first);
        let mut reigns = fleet.reigns.borrow_mut();
        let earlier = || reigns.iter().filter(|shown| shown.number < self.shown.number);
        let zombies = earlier().filter(|earlier| earlier.engine.borrow().is_some()).count();
        fleet.counts.borrow_mut().zombies += zombies;
        if let Some(earlier) = earlier().find(|earlier| earlier.completed.get() > first) {
            fleet.violated(format!(
                "epochs go back: engine {} has completed {}, engine {} begins at {first}",
                earlier.number,
                earlier.completed.get(),
                self.shown.number
            ));
        }
        reigns.push(Rc::clone(&self.shown));
    }

    fn show(&self, fleet: &Fleet) {
        let completed = self.engine.clock.completed().0;
        self.shown.completed.set(completed);
        let reigns = fleet.reigns.borrow();
        let mut later = reigns.iter().filter(|shown| shown.number > self.shown.number);
        if let Some(later) = later.find(|later| later.first.get() < completed) {
            fleet.violated(format!(
                "engine {} completes epoch {completed} although engine {} has begun at {}",
                self.shown.number,
                later.number,
                later.first.get()
            ));
        }
    }

    /// Lets clients load it, once earlier ones are done; when all is calm, one looks whether everything arrives.
    fn load(&mut self, fleet: &Fleet) {
        if !self.loaded {
            self.loaded = true;
            let statements = Arc::clone(&fleet.world.borrow().set_up);
            let rngs = [(); 2].map(|()| fleet.rng.borrow_mut().split());
            let sessions = [(); 4].map(|()| self.session());
            let clock = Arc::clone(&self.engine.clock);
            self.clients = clients::all(&self.scene, statements, sessions, rngs, clock);
        }
        if fleet.calm.get() && !self.scene.stopped() {
            self.scene.stop.store(true, Ordering::Relaxed);
        }
        if fleet.calm.get() && self.clients.is_empty() && !fleet.audited.get() {
            let sent = fleet.world.borrow().sent;
            let rng = fleet.rng.borrow_mut().split();
            let statements = Arc::clone(&fleet.world.borrow().set_up);
            let sessions = [(); 3].map(|()| self.session());
            let clock = Arc::clone(&self.engine.clock);
            self.clients = vec![clients::last(&self.scene, statements, sessions, rng, clock, sent)];
        }
    }

    /// Stops the engine in order.
    fn end(mut self, fleet: &Fleet, process: &Rc<Process>) {
        fleet.tell(|| format!("{process} stops engine {}", self.shown.number));
        self.clients.clear();
        {
            let _here = self.runtime.as_ref().map(Runtime::enter);
            self.engine.shutdown();
        }
        self.machine.clear();
        *self.shown.engine.borrow_mut() = None;
    }
}
