//! One incarnation, from its start to its death: the parts of the engine and its clients are stepped in an order drawn from
//! the seed, while the store, the disk and the clock do what they do to processes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use checkpoint::faulty::disk::FaultyDisk;
use checkpoint::faulty::{Weather, storm};
use coord::clock::Clock;
use coord::compaction::LOG_BYTES_MIN;
use coord::engine::{CheckpointConfig, Replanner};
use coord::execution::Execution;
use coord::history::HistoryConfig;
use coord::session::replan::StoredQueries;
use coord::{Engine, EngineConfig, Session, Time};
use flow::SqlState;
use futures::FutureExt;
use parking_lot::Mutex;

use crate::clients::{self, Arrived, Scene};
use crate::doom::{self, Doom};
use crate::machine::Machine;
use crate::rng::Rng;
use crate::sql::{self, told};
use crate::store::{ClockRest, SimStore};
use crate::world::World;

/// Steps of a life, at most.
const STEPS_MAX: usize = 6_000;
/// So many steps without an end mean that nothing gets on any more.
const STUCK: usize = 2_000_000;
/// Nothing is sent any more after so many steps without an end: a machine that does not keep up gets the time to.
const SENDS_MAX: usize = 50_000;
const MEMORY: usize = 1 << 30;
const SLOTS_MAX: usize = 3;

/// What a life is like.
#[derive(Clone, Debug)]
pub struct Plan {
    pub slots: usize,
    pub batch_rows: usize,
    pub doom: Doom,
    /// The store does to requests what services do.
    pub storm: bool,
    /// The disk and the store are full at times, writes are cut, syncs fail, clocks jump.
    pub trouble: bool,
    /// An object is damaged: nothing new is kept.
    pub damaged: bool,
    /// Everything is to arrive.
    pub last: bool,
    pub steps: usize,
}

impl Plan {
    pub fn draw(rng: &mut Rng, doom: Doom) -> Plan {
        Plan {
            slots: 1 + rng.below(SLOTS_MAX),
            batch_rows: rng.pick(&[1, 8, 64]),
            doom,
            storm: rng.one_in(2),
            trouble: rng.one_in(2),
            damaged: false,
            last: false,
            steps: 500 + rng.below(STEPS_MAX),
        }
    }
}

/// How a life has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As it was meant to.
    AsPlanned,
    /// It did not come to where it was to die.
    Otherwise,
    /// The data directory or the store could not be opened, for a cause that was put there.
    NotStarted,
}

/// What a life has shown.
#[derive(Clone, Copy, Debug)]
pub struct Lived {
    pub ended: Ended,
    pub steps: usize,
    pub faults: usize,
}

type Client = Pin<Box<dyn Future<Output = ()>>>;

/// The parts of an incarnation.
struct Being<'a> {
    world: &'a mut World,
    plan: Plan,
    machine: Arc<Machine>,
    store: Arc<SimStore>,
    disk: Arc<FaultyDisk>,
    scene: Scene,
    rng: Rng,
    steps: usize,
    full_until: usize,
    clock: Option<Arc<Clock>>,
}

/// Lives one life in `world`, and leaves there what it leaves.
pub fn live(world: &mut World, plan: Plan) -> Lived {
    world.lives += 1;
    let mut rng = world.rng.split();
    let disk = FaultyDisk::new();
    let trace = world.trace.clone();
    disk.on_request(Box::new(move |request| {
        trace.note(request);
        doom::disk_request();
    }));
    let weather: Weather = if plan.storm { storm() } else { Vec::new() };
    let now = Arc::clone(&world.now);
    let in_memory = world.objects.in_memory();
    let (rest, fate) = (Arc::new(ClockRest(now)), Box::new(doom::OfStore));
    let store = SimStore::new(world.objects.open(), in_memory, weather, rng.draw(), rest, world.trace.clone(), fate);
    let scene = Scene {
        known: Arc::clone(&world.known),
        views: Arc::clone(&world.views),
        makes: world.makes(),
        stop: Arc::default(),
        damaged: plan.damaged,
        trouble: plan.trouble,
        moves: false,
        reign: 0,
    };
    doom::begin(plan.doom);
    let machine = Arc::new(Machine::default());
    let mut being = Being {
        world,
        plan,
        machine: Arc::clone(&machine),
        store: Arc::clone(&store),
        disk: Arc::clone(&disk),
        scene,
        rng,
        steps: 0,
        full_until: 0,
        clock: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap_or_else(|e| panic!("a runtime: {e}"));
    let ended = runtime.block_on(being.live());
    let (steps, mut rng) = (being.steps, being.rng);
    doom::end();
    // Tasks that statements have spawned go with it.
    drop(runtime);
    machine.clear();
    let torn = disk.crash(|below| rng.below(below));
    torn.unwrap_or_else(|e| panic!("tear the log: {e}"));
    // Whoever leaks a part of the dead one does not hold up the next.
    let _ = std::fs::remove_file(world.data().join("LOCK"));
    world.trace.note((steps, ended == Ended::AsPlanned));
    Lived { ended, steps, faults: store.faults() }
}

impl Being<'_> {
    fn config(&self) -> EngineConfig {
        let now = Arc::clone(&self.world.now);
        let interval_ms = [None, Some(20), Some(100)][self.world.seed as usize % 3];
        let interval = interval_ms.filter(|_| !self.plan.damaged).map(Duration::from_millis);
        EngineConfig {
            data_dir: self.world.data(),
            slots: self.plan.slots,
            memory_limit: MEMORY,
            batch_rows: self.plan.batch_rows,
            time: Time::from_fn(move || now.load(Ordering::Relaxed)),
            disk: Some(Arc::clone(&self.disk) as _),
            log_bytes_min: if self.world.rewrites_log() { 0 } else { LOG_BYTES_MIN },
            checkpoints: Some(CheckpointConfig {
                store: Some(Arc::clone(&self.store) as _),
                rest: Some(Arc::new(ClockRest(Arc::clone(&self.world.now)))),
                interval,
                savepoint: None,
                history: HistoryConfig { retained: 8, age: None },
                retained: 1 + self.world.seed as usize % 2,
                timeout: Duration::from_secs(3600),
                nonce: self.world.seed.wrapping_mul(1000) + self.world.lives as u64,
            }),
            shared_log: None,
        }
    }

    async fn live(&mut self) -> Ended {
        if self.plan.trouble && self.rng.one_in(8) {
            self.disk.set_full(true);
        }
        let (config, machine) = (self.config(), Arc::clone(&self.machine));
        let opened = doom::unless_dead(|| Engine::open_with(config, machine as Arc<dyn Execution>));
        let engine = match opened {
            None => return Ended::AsPlanned,
            Some(Ok(engine)) => engine,
            Some(Err(e)) => {
                let excused = e.may_pass() && (self.plan.trouble || self.plan.storm);
                let excused = excused || (self.plan.damaged && e.state() == SqlState::DataCorrupted);
                if !excused {
                    self.violated(format!("the engine does not start: {}", told(&e)));
                }
                return Ended::NotStarted;
            }
        };
        self.disk.set_full(false);
        self.clock = Some(Arc::clone(&engine.clock));
        self.check_watermark(&engine);
        let ended = self.run(&engine).await;
        // Sessions are gone by now; the engine's own parts hold each other.
        self.machine.clear();
        ended
    }

    fn violated(&self, what: impl Into<String>) {
        self.world.known.lock().violated(what);
    }

    /// Event time is not behind what the checkpoint says that it starts from.
    fn check_watermark(&self, engine: &Arc<Engine>) {
        let door = self.world.door();
        let newest = checkpoint::fsck::checkpoints(&door).ok().and_then(|all| {
            let line = all.into_iter().rfind(|line| line.savepoint.is_none() && line.damage.is_none())?;
            checkpoint::fsck::manifest_of(&door, &line).ok()
        });
        let Some(manifest) = newest else { return };
        for source in manifest.coordinator["sources"].as_array().into_iter().flatten() {
            let Some(kept_us) = source["gate"]["watermark_us"].as_i64() else { continue };
            let relation = source["relation"].as_u64().unwrap_or_default() as u32;
            let gate = engine.clock.gate(flow::RelationId(relation));
            let now_us = gate.and_then(|gate| gate.status().watermark_us).unwrap_or(i64::MIN);
            if now_us < kept_us {
                self.violated(format!("the watermark of source {relation} goes back from {kept_us} to {now_us}"));
            }
        }
    }

    async fn run(&mut self, engine: &Arc<Engine>) -> Ended {
        let replanner: Arc<dyn Replanner> = Arc::new(StoredQueries);
        let recovered = {
            let engine = Arc::clone(engine);
            async move { engine.recover(&replanner).await }
        };
        if !self.interleave(vec![Box::pin(recovered)], usize::MAX).await {
            return Ended::AsPlanned;
        }
        let base = match query::base_state(MEMORY, self.plan.slots) {
            Ok(base) => base,
            Err(e) => {
                self.violated(format!("no state for sessions: {e}"));
                return Ended::Otherwise;
            }
        };
        let session = || sql::session(engine, &base);
        // What was acknowledged is there before anything else happens.
        if self.scene.known.lock().set_up > 1 {
            let (mut s, scene) = (session(), self.scene.clone());
            let look: Client = Box::pin(async move { clients::look_back(&mut s, &scene).await }.map(drop));
            if !self.interleave(vec![look], usize::MAX).await {
                return Ended::AsPlanned;
            }
        }
        if !self.plan.damaged {
            let (scene, statements) = (self.scene.clone(), Arc::clone(&self.world.set_up));
            let made: Client = Box::pin(clients::set_up(session(), scene, statements, Arc::clone(&engine.clock)));
            if !self.interleave(vec![made], usize::MAX).await {
                return Ended::AsPlanned;
            }
        }
        if self.scene.known.lock().set_up < self.world.set_up.len() {
            return Ended::Otherwise;
        }
        if self.rng.one_in(2) {
            let all: Client = Box::pin(clients::compare_all(session(), self.scene.clone()));
            if !self.interleave(vec![all], usize::MAX).await {
                return Ended::AsPlanned;
            }
        }
        if self.plan.last {
            return self.finish(engine, &session).await;
        }
        let mut all: Vec<Client> = vec![Box::pin(clients::reader(session(), self.scene.clone(), self.rng.split()))];
        if !self.plan.damaged {
            all.push(Box::pin(clients::writer(
                session(),
                self.scene.clone(),
                self.rng.split(),
                Arc::clone(&engine.clock),
            )));
            all.push(Box::pin(clients::keeper(session(), self.scene.clone(), self.rng.split())));
        }
        let alive = self.interleave_clients(&mut all, self.plan.steps).await;
        if !alive {
            return Ended::AsPlanned;
        }
        if self.plan.doom == Doom::Order {
            self.store.set_full(false);
            self.scene.stop.store(true, Ordering::Relaxed);
            if !self.interleave_clients(&mut all, usize::MAX).await {
                return Ended::AsPlanned;
            }
            drop(all);
            let engine = Arc::clone(engine);
            return match doom::unless_dead(move || engine.shutdown()) {
                Some(()) | None => Ended::AsPlanned,
            };
        }
        if self.plan.doom == Doom::Steps { Ended::AsPlanned } else { Ended::Otherwise }
    }

    /// Everything comes to its end, and nothing is missing.
    async fn finish(&mut self, engine: &Arc<Engine>, session: &dyn Fn() -> Session) -> Ended {
        self.world.send_last();
        let sent = self.world.sent;
        let arrived: Arc<Mutex<Arrived>> = Arc::default();
        // Every account needs a credit and a debit before the total says anything.
        let (s, scene, rng) = (session(), self.scene.clone(), self.rng.split());
        let enough = Box::pin(clients::enough_transfers(s, scene, rng).map(drop));
        let audit = Box::pin(clients::audit(session(), self.scene.clone(), sent, Arc::clone(&arrived)).map(drop));
        for client in [enough as Client, audit as Client] {
            if !self.interleave(vec![client], usize::MAX).await {
                return Ended::AsPlanned;
            }
        }
        let (rows, in_windows) = self.world.published();
        if rows != arrived.lock().on_time {
            self.violated(format!("{rows} rows are published of {:?}", *arrived.lock()));
        }
        // The windows of the last rows are open.
        let last = 2;
        if self.world.windows && in_windows as usize + last != arrived.lock().on_time {
            self.violated(format!("windows have {in_windows} rows and {last} are open, of {:?}", *arrived.lock()));
        }
        let engine = Arc::clone(engine);
        doom::unless_dead(move || engine.shutdown());
        Ended::AsPlanned
    }

    /// Steps everything until every client is done; false when the incarnation has died.
    async fn interleave(&mut self, mut clients: Vec<Client>, steps: usize) -> bool {
        self.interleave_clients(&mut clients, steps).await
    }

    async fn interleave_clients(&mut self, clients: &mut Vec<Client>, steps: usize) -> bool {
        let until = self.steps.saturating_add(steps);
        // Some part of the machine may be much slower than the others.
        let parts = self.plan.slots * 2 + 10;
        let slow = self.rng.below(parts * 2);
        let begun = self.steps;
        while !clients.is_empty() && self.steps < until {
            self.steps += 1;
            if self.steps - begun > STUCK {
                let set_up = self.scene.known.lock().set_up;
                let jobs: Vec<String> = self
                    .clock
                    .iter()
                    .flat_map(|clock| {
                        (16384..16420).filter_map(|oid| {
                            Some(format!("{oid} {:?}", clock.board.status(flow::RelationId(oid))?.phase))
                        })
                    })
                    .collect();
                let completed = self.clock.as_ref().map(|clock| clock.completed());
                self.violated(format!(
                    "nothing gets on any more; {set_up} statements of the set-up are done, epoch {completed:?} is complete; {jobs:?}; {}",
                    self.machine.show()
                ));
                return true;
            }
            let part = self.rng.below(parts);
            if part == slow && self.rng.below(12) > 0 {
                continue;
            }
            let machine = Arc::clone(&self.machine);
            let worked = match part {
                0 | 1 => doom::unless_dead(|| machine.hear()),
                2 => doom::unless_dead(|| machine.cut()).map(|()| true),
                3 => {
                    let chosen = self.rng.below(16);
                    doom::unless_dead(|| machine.feed(chosen)).map(|()| true)
                }
                4..=6 => {
                    let chosen = self.rng.below(840);
                    doom::unless_dead(|| machine.serve(chosen))
                }
                7 | 8 => {
                    self.world.now.fetch_add(self.rng.below(200) as i64, Ordering::Relaxed);
                    let chosen = self.rng.below(clients.len());
                    let client = &mut clients[chosen];
                    let polled = std::future::poll_fn(|context| {
                        Poll::Ready(doom::unless_dead(|| client.as_mut().poll(context).is_ready()))
                    });
                    let polled = polled.await;
                    if polled == Some(true) {
                        drop(clients.swap_remove(chosen));
                    }
                    // Tasks that a statement has spawned.
                    tokio::task::yield_now().await;
                    polled.filter(|_| !doom::is_dead())
                }
                9 => {
                    self.happen(self.steps - begun < SENDS_MAX);
                    Some(true)
                }
                slot => {
                    let slot = (slot - 10) % self.plan.slots;
                    doom::unless_dead(|| machine.work(slot))
                }
            };
            match worked {
                None => return false,
                Some(worked) => self.world.trace.note((part, worked)),
            }
        }
        true
    }

    /// The world goes on: rows are sent, and now and then there is trouble.
    fn happen(&mut self, sends: bool) {
        if sends && !self.plan.last && self.rng.one_in(12) {
            let rows = self.rng.below(6);
            self.world.send(rows);
        }
        if self.rng.one_in(20) {
            // Longer rests than those between two epochs are over sooner or later.
            self.world.now.fetch_add(self.rng.below(50_000) as i64, Ordering::Relaxed);
        }
        if self.full_until != 0 && self.steps > self.full_until {
            self.store.set_full(false);
            self.full_until = 0;
        }
        if !self.plan.trouble || self.plan.last || !self.rng.one_in(60) {
            return;
        }
        match self.rng.below(12) {
            0..=2 => {
                self.store.set_full(true);
                self.full_until = self.steps + self.rng.below(1500);
            }
            3..=5 => self.disk.shorten_next_write(),
            6 => self.disk.fail_next_sync(),
            7 | 8 => _ = self.world.now.fetch_add(self.rng.below(30_000_000) as i64, Ordering::Relaxed),
            _ => _ = self.world.now.fetch_sub(self.rng.below(1_000_000) as i64, Ordering::Relaxed),
        }
    }
}
