//! A whole engine without threads: which slot works, when the clock hears of it, how far a back-fill gets, when time
//! passes and whose statement goes on is drawn from a seed, so that a failing interleaving happens again.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use coord::backfill::{Backfill, Fed};
use coord::clock::{ClockLoop, Event};
use coord::execution::Execution;
use coord::{EngineConfig, Session, Time};
use crossbeam_channel::Receiver;
use flow::{Error, Result, SlotId};
use parking_lot::Mutex;
use runtime::slot::{Reports, Shared};
use runtime::{Join, Service, SteppedWorker, Wire, Worker};

use crate::bytes::Bytes;
use crate::harness::{Instance, Rng, config, ok, run, scratch, seed};
use crate::random_views::script::{Script, Step};
use crate::random_views::{Failure, check, write};

/// Seeds of a run, each another interleaving of another workload.
const SEEDS: u64 = 6;
/// Standing queries of each.
const VIEWS: usize = 6;
/// Checks beside the changes of a run, so far apart.
const CHECKS: usize = 4;
const CHECK_POLLS: usize = 300;
/// More steps than this mean that nothing gets on any more.
const STEPS_MAX: usize = 4_000_000;

/// Parts of an engine that wait to be stepped.
struct Stepped {
    wire: Arc<dyn Wire>,
    worker: Mutex<Option<Arc<SteppedWorker>>>,
    clock: Mutex<Option<(ClockLoop, Receiver<Event>)>>,
    feeders: Mutex<Vec<(Backfill, Fed)>>,
}

impl Execution for Stepped {
    fn start_slots(&self, slots: usize, shared: Shared, reports: Reports) -> Result<Arc<dyn Worker>> {
        let worker = Arc::new(SteppedWorker::new(slots, shared, &reports, Some(&self.wire))?);
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
        // The workload of this test has neither sources nor sinks nor checkpoints.
        Err(Error::internal(format!("\"{}\" is not stepped", service.name())))
    }

    fn stop(&self) {
        while self.hear() {}
        self.clock.lock().take();
        self.feeders.lock().clear();
        self.worker.lock().take();
    }
}

impl Stepped {
    /// One slot works off what has arrived and does one piece of work.
    fn work(&self, slot: usize) {
        let worker = self.worker.lock().clone();
        if let Some(worker) = worker {
            worker.step(SlotId(slot as u16));
        }
    }

    /// The clock reacts to one event; false when there is none.
    fn hear(&self) -> bool {
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

    fn cut(&self) {
        if let Some((clock, _)) = self.clock.lock().as_mut() {
            clock.try_cut();
        }
    }

    /// One of the back-fills gets on, if it can.
    fn feed(&self, chosen: usize) {
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
}

/// What the actors of a run share.
#[derive(Default)]
struct Scene {
    /// Views that are there to be read.
    alive: BTreeSet<usize>,
    /// Actors that still change something.
    busy: usize,
    failures: Vec<Failure>,
    checks: usize,
    cancelled: usize,
}

type Actor = Pin<Box<dyn Future<Output = ()>>>;

/// Carries out the script's transactions.
async fn writer(mut session: Session, script: Arc<Script>, scene: Arc<Mutex<Scene>>) {
    for step in &script.steps {
        if let Step::Write { statements, commit } = step
            && let Err(failure) = write(&mut session, statements, *commit).await
        {
            scene.lock().failures.push(failure);
        }
    }
    scene.lock().busy -= 1;
}

/// Creates and drops the script's views; now and then a statement is cancelled on its way.
async fn definer(mut session: Session, script: Arc<Script>, scene: Arc<Mutex<Scene>>, mut rng: Rng) {
    for step in &script.steps {
        match step {
            Step::Create(view) => {
                let chosen = &script.views[*view];
                if !chosen.reads.iter().all(|r| scene.lock().alive.contains(r)) {
                    continue;
                }
                let patience = if rng.below(4) == 0 { rng.below(60) } else { usize::MAX };
                match cancelled_after(patience, run(&mut session, &chosen.create())).await {
                    Some(Ok(_)) => drop(scene.lock().alive.insert(*view)),
                    Some(Err(e)) if e.state().code() == "0A000" => {}
                    Some(Err(e)) => {
                        let what = format!("  not created: {e} {:?}\n", e.hint());
                        scene.lock().failures.push(Failure { view: Some(*view), what });
                    }
                    None => {
                        scene.lock().cancelled += 1;
                        // Whether it was created or not, it can be dropped.
                        ok(&mut session, &format!("DROP MATERIALIZED VIEW IF EXISTS {}", chosen.name)).await;
                    }
                }
            }
            Step::Drop(view) => {
                let present = scene.lock().alive.remove(view);
                if present {
                    ok(&mut session, &format!("DROP MATERIALIZED VIEW {}", script.views[*view].name)).await;
                }
            }
            Step::Write { .. } | Step::Check => {}
        }
    }
    scene.lock().busy -= 1;
}

/// Has a view that fails on its data, and a view on that, and drops both in the end.
async fn unlucky(mut session: Session, scene: Arc<Mutex<Scene>>) {
    // Either may stop while its creator still waits for it.
    let bad = run(&mut session, "CREATE MATERIALIZED VIEW bad AS SELECT 1 / (9 - count(*)) AS q FROM t0").await;
    let worse = run(&mut session, "CREATE MATERIALIZED VIEW worse AS SELECT q FROM bad WHERE q > 0").await;
    let mut problem = bad.err().or(worse.err()).filter(|e| e.state().code() != "55000");
    for _ in 0..5 {
        if let Err(e) = run(&mut session, "SELECT * FROM bad").await
            && e.state().code() != "55000"
        {
            problem = Some(e);
        }
    }
    ok(&mut session, "DROP MATERIALIZED VIEW bad CASCADE").await;
    let mut scene = scene.lock();
    scene.failures.extend(problem.map(|e| Failure { view: None, what: format!("  a failed view: {e}\n") }));
    scene.busy -= 1;
}

/// Compares every view with its query while the others change things.
async fn reader(mut session: Session, script: Arc<Script>, scene: Arc<Mutex<Scene>>) {
    for _ in 0..CHECKS {
        for _ in 0..CHECK_POLLS {
            if scene.lock().busy > 0 {
                pending_once().await;
            }
        }
        let views: Vec<usize> = scene.lock().alive.iter().copied().collect();
        let (_, failures) = check(&mut session, &script, &views).await;
        let mut scene = scene.lock();
        scene.checks += 1;
        // A view that was dropped meanwhile may be missed.
        let alive = scene.alive.clone();
        scene.failures.extend(failures.into_iter().filter(|f| f.view.is_none_or(|v| alive.contains(&v))));
    }
}

/// The outcome of `work`, or nothing if it was not there after so many polls.
async fn cancelled_after<T>(polls: usize, work: impl Future<Output = T>) -> Option<T> {
    let mut work = Box::pin(work);
    for _ in 0..polls {
        if let std::task::Poll::Ready(done) = futures::poll!(&mut work) {
            return Some(done);
        }
        pending_once().await;
    }
    None
}

/// Leaves it to the scheduler when to go on.
async fn pending_once() {
    let mut told = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut told, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

/// The machine and its actors until every actor is done.
async fn interleave(machine: &Stepped, now: &AtomicI64, slots: usize, rng: &mut Rng, mut actors: Vec<Actor>) -> usize {
    // Some part of the machine may be much slower than the others.
    let slow = rng.below(slots + 4);
    let mut steps = 0;
    while !actors.is_empty() {
        steps += 1;
        assert!(steps < STEPS_MAX, "nothing gets on any more");
        let part = rng.below(slots + 4);
        if part == slow && rng.below(12) > 0 {
            continue;
        }
        match part {
            0 => {
                machine.hear();
            }
            1 => machine.cut(),
            2 => machine.feed(rng.below(16)),
            3 => {
                now.fetch_add(rng.below(2000) as i64, Ordering::Relaxed);
                let chosen = rng.below(actors.len());
                if futures::poll!(&mut actors[chosen]).is_ready() {
                    drop(actors.swap_remove(chosen));
                }
                // Tasks that a statement has spawned.
                tokio::task::yield_now().await;
            }
            slot => machine.work(slot - 4),
        }
    }
    steps
}

/// What a run has shown: the hash of everything said between coordinator and slots, and the scene at its end.
struct Played {
    hash: u64,
    steps: usize,
    scene: Scene,
}

async fn play(seed: u64) -> Played {
    let script = Arc::new(Script::random(seed, VIEWS));
    let mut rng = Rng::new(seed ^ 0x5eed);
    let folder = scratch();
    let bytes = Arc::new(Bytes::default());
    let machine = Arc::new(Stepped {
        wire: Arc::clone(&bytes) as Arc<dyn Wire>,
        worker: Mutex::default(),
        clock: Mutex::default(),
        feeders: Mutex::default(),
    });
    let now = Arc::new(AtomicI64::new(1_700_000_000_000_000));
    let time = {
        let now = Arc::clone(&now);
        Time::from_fn(move || now.load(Ordering::Relaxed))
    };
    let slots = script.slots;
    let config = EngineConfig { time, ..config(folder.path(), slots, script.batch_rows) };
    let instance = Instance::with(config, Arc::clone(&machine) as Arc<dyn Execution>);
    let scene = Arc::new(Mutex::new(Scene { busy: 3, ..Scene::default() }));

    let mut session = instance.session();
    let tables = script.tables.clone();
    let prepare = async move {
        for table in &tables {
            ok(&mut session, table).await;
        }
    };
    let mut steps = interleave(&machine, &now, slots, &mut rng, vec![Box::pin(prepare)]).await;

    let actors: Vec<Actor> = vec![
        Box::pin(writer(instance.session(), Arc::clone(&script), Arc::clone(&scene))),
        Box::pin(definer(instance.session(), Arc::clone(&script), Arc::clone(&scene), Rng::new(seed ^ 0xdef))),
        Box::pin(unlucky(instance.session(), Arc::clone(&scene))),
        Box::pin(reader(instance.session(), Arc::clone(&script), Arc::clone(&scene))),
    ];
    steps += interleave(&machine, &now, slots, &mut rng, actors).await;

    let (mut session, last, at_end) = (instance.session(), Arc::clone(&script), Arc::clone(&scene));
    let finish = async move {
        ok(&mut session, "FLUSH").await;
        let views: Vec<usize> = at_end.lock().alive.iter().copied().collect();
        let (_, failures) = check(&mut session, &last, &views).await;
        at_end.lock().failures.extend(failures);
    };
    steps += interleave(&machine, &now, slots, &mut rng, vec![Box::pin(finish)]).await;

    let hash = bytes.hash();
    instance.engine.shutdown();
    let mut scene = std::mem::take(&mut *scene.lock());
    scene.failures.extend(bytes.problems().into_iter().map(|what| Failure { view: None, what }));
    Played { hash, steps, scene }
}

/// Runs on a thread with a stack for deep expressions, without any other thread of an executor.
fn played(seed: u64) -> Played {
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(seed))
    };
    let thread = std::thread::Builder::new().stack_size(32 << 20).spawn(body).unwrap();
    match thread.join() {
        Ok(played) => played,
        Err(panic) => {
            eprintln!("replay: MILLSTREAM_SEED={seed} cargo test --workspace --test it -- stepped");
            std::panic::resume_unwind(panic)
        }
    }
}

#[test]
fn views_are_right_under_every_interleaving() {
    let (mut checks, mut cancelled, mut steps) = (0, 0, 0);
    for seed in seed()..seed() + SEEDS {
        let Played { scene, steps: taken, .. } = played(seed);
        if let Some(failure) = scene.failures.first() {
            let script = Script::random(seed, VIEWS);
            let view = failure.view.map_or(String::new(), |v| script.views[v].create());
            panic!(
                "seed {seed}: {view}\n{}\nreplay: MILLSTREAM_SEED={seed} cargo test --workspace --test it -- stepped\n{}",
                failure.what,
                script.text()
            );
        }
        checks += scene.checks;
        cancelled += scene.cancelled;
        steps += taken;
    }
    eprintln!("{checks} checks, {cancelled} cancelled statements, {steps} steps");
    assert!(checks >= SEEDS as usize, "{checks} checks");
}

#[test]
fn a_seed_plays_the_same_every_time() {
    for seed in seed()..seed() + 2 {
        let (first, second) = (played(seed), played(seed));
        assert_eq!((first.hash, first.steps), (second.hash, second.steps), "seed {seed}");
    }
}
