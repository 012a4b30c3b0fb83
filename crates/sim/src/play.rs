//! One seed: several lives and deaths in one world, and an audit when all is calm.

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::{crash, planted};

use crate::doom::{self, Doom};
use crate::life::{Ended, Plan, live};
use crate::rng::Rng;
use crate::world::World;

/// Deaths of a seed.
const LIVES_MIN: usize = 3;
const LIVES_MAX: usize = 6;
/// The stack of deep expressions.
const STACK_BYTES: usize = 256 << 20;

/// What a seed has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Played {
    pub violations: Vec<String>,
    /// Over everything that has happened.
    pub hash: u64,
    pub lives: usize,
    pub steps: usize,
    pub faults: usize,
    pub reads: usize,
    pub checkpoints: usize,
    pub rows: usize,
    /// How often it died at each crash point.
    pub died_at: BTreeMap<&'static str, usize>,
    /// How often an object was damaged.
    pub damaged: usize,
}

impl Played {
    pub fn add(&mut self, other: &Played) {
        self.lives += other.lives;
        self.steps += other.steps;
        self.faults += other.faults;
        self.reads += other.reads;
        self.checkpoints += other.checkpoints;
        self.rows += other.rows;
        self.damaged += other.damaged;
        for (point, n) in &other.died_at {
            *self.died_at.entry(point).or_default() += n;
        }
    }
}

/// Plays a seed in `folder`, which is emptied, with a planted bug or without, on a thread of its own.
pub fn play(seed: u64, bug: Option<&'static str>, folder: &Path) -> Played {
    apart(format!("seed-{seed}"), bug, folder, move |folder| play_here(seed, folder))
        .unwrap_or_else(|panic| Played { violations: vec![panic], ..Played::default() })
}

/// Runs `play` on a thread of its own, with a planted bug or without, and empties its folder. Errors: what it has panicked with.
pub(crate) fn apart<T: Send + 'static>(
    name: String,
    bug: Option<&'static str>,
    folder: &Path,
    play: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T, String> {
    let at = folder.to_path_buf();
    let body = move || {
        planted::plant(bug);
        play(&at)
    };
    let thread = std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(body);
    let played = thread.unwrap_or_else(|e| panic!("a thread: {e}")).join().map_err(|panic| {
        let what = panic.downcast_ref::<String>().cloned();
        let what = what.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        format!("panic: {}", what.unwrap_or_default())
    });
    let _ = std::fs::remove_dir_all(folder);
    played
}

fn play_here(seed: u64, folder: &Path) -> Played {
    let mut world = World::new(seed, folder);
    let mut played = Played::default();
    let lives = LIVES_MIN + world.rng.below(LIVES_MAX - LIVES_MIN + 1);
    for n in 0..lives {
        let doom = draw(&mut world.rng, seed, n);
        let plan = Plan::draw(&mut world.rng, doom);
        step(&mut world, plan, &mut played);
        if world.known.lock().violations.is_empty() && world.rng.one_in(6) {
            damage(&mut world, &mut played);
        }
        if !world.known.lock().violations.is_empty() {
            break;
        }
    }
    if world.known.lock().violations.is_empty() {
        let plan = Plan { storm: false, trouble: false, last: true, ..Plan::draw(&mut world.rng, Doom::Order) };
        step(&mut world, plan, &mut played);
    }
    let known = world.known.lock();
    played.violations = known.violations.clone();
    played.reads = known.reads;
    played.checkpoints = known.checkpoints;
    played.rows = world.sent;
    played.hash = world.trace.hash();
    drop(doom::take_reached());
    played
}

fn step(world: &mut World, plan: Plan, played: &mut Played) {
    let doom = plan.doom;
    if std::env::var_os("MILLSTREAM_SIM_SHOW").is_some() {
        eprintln!("life {}: {plan:?}", world.lives + 1);
    }
    let lived = live(world, plan);
    if std::env::var_os("MILLSTREAM_SIM_SHOW").is_some() {
        eprintln!("  {lived:?} {:?}", world.known.lock().violations);
    }
    played.lives += 1;
    played.steps += lived.steps;
    played.faults += lived.faults;
    if let (Doom::Point(point, _), Ended::AsPlanned) = (doom, lived.ended) {
        *played.died_at.entry(point).or_default() += 1;
    }
    world.inspect();
}

/// How the next life ends. Seeds that follow each other come to all crash points.
fn draw(rng: &mut Rng, seed: u64, life: usize) -> Doom {
    match rng.below(12) {
        0 => Doom::Order,
        1 => Doom::Steps,
        2 => Doom::BeforeRequest(1 + rng.below(120) as u32),
        3 => Doom::AfterRequest(1 + rng.below(120) as u32),
        4 => Doom::Disk(1 + rng.below(200) as u32),
        _ => {
            let points = [&crash::POINTS[..], &crash::LOG_POINTS].concat();
            let point = points[(seed as usize * 5 + life) % points.len()];
            Doom::Point(point, 1 + rng.below(3) as u32)
        }
    }
}

/// One bit of an object turns over while no process runs; what is built on it is refused or right, and when the object is
/// good again, everything is.
fn damage(world: &mut World, played: &mut Played) {
    let Ok(listed) = world.door().list("") else { return };
    if listed.is_empty() {
        return;
    }
    let object = &listed[world.rng.below(listed.len())];
    let at = world.rng.below(object.bytes as usize);
    world.objects.flip(&object.name, at);
    played.damaged += 1;
    let plan = Plan { damaged: true, trouble: false, ..Plan::draw(&mut world.rng, Doom::Steps) };
    let lived = live(world, plan);
    played.lives += 1;
    played.steps += lived.steps;
    world.objects.flip(&object.name, at);
    world.inspect();
}
