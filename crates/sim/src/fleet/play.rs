//! One seed of a cluster: trouble for a while, then calm, in which everything has to arrive within a bound of steps.

use std::path::Path;
use std::rc::Rc;

use crate::play::apart;
use crate::world::World;

use super::process::watch_points;
use super::{Counts, Fleet, HERE, WORKERS_MAX};

/// Steps of trouble.
const TROUBLE_MIN: usize = 20_000;
const TROUBLE_MAX: usize = 240_000;
/// Steps in which everything arrives when nothing fails any more.
pub const CALM_MAX: usize = 6_000_000;

/// How often it is told what everybody does when all is calm, in steps.
const TOLD_EVERY: usize = 50_000;

/// What a seed has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Played {
    pub violations: Vec<String>,
    /// Over everything that has happened.
    pub hash: u64,
    pub steps: usize,
    /// Of these, those that it took when all was calm.
    pub calm: usize,
    pub faults: usize,
    pub reads: usize,
    pub checkpoints: usize,
    pub transfers: usize,
    pub rows: usize,
    /// Numbered objects whose order was looked at.
    pub objects: usize,
    pub counts: Counts,
}

impl Played {
    pub fn add(&mut self, other: &Played) {
        self.steps += other.steps;
        self.calm = self.calm.max(other.calm);
        self.faults += other.faults;
        self.reads += other.reads;
        self.checkpoints += other.checkpoints;
        self.transfers += other.transfers;
        self.rows += other.rows;
        self.objects += other.objects;
        self.counts.add(&other.counts);
    }
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.deaths += other.deaths;
        self.sleeps += other.sleeps;
        self.broken += other.broken;
        self.cut += other.cut;
        self.reigns += other.reigns;
        self.zombies += other.zombies;
        for (at, n) in &other.died_at {
            *self.died_at.entry(at.clone()).or_default() += n;
        }
    }
}

/// Plays a seed in `folder`, which is emptied, with a planted bug or without, on a thread of its own.
pub fn play(seed: u64, bug: Option<&'static str>, folder: &Path) -> Played {
    apart(format!("cluster-{seed}"), bug, folder, move |folder| play_here(seed, folder))
        .unwrap_or_else(|panic| Played { violations: vec![panic], ..Played::default() })
}

fn play_here(seed: u64, folder: &Path) -> Played {
    let mut world = World::new(seed, folder);
    let workers = 2 + world.rng.below(WORKERS_MAX - 1);
    let trouble = TROUBLE_MIN + world.rng.below(TROUBLE_MAX - TROUBLE_MIN);
    let fleet = Fleet::new(world, workers);
    HERE.set(Some(Rc::clone(&fleet)));
    let waits = Rc::clone(&fleet);
    coord::waiting::simulate(Some(Rc::new(move || waits.others())));
    watch_points();
    let is_wrong = || !fleet.known.lock().violations.is_empty();
    while fleet.steps.get() < trouble && !is_wrong() {
        fleet.step();
    }
    let begun = fleet.steps.get();
    if !is_wrong() {
        fleet.world.borrow_mut().send_last();
        fleet.calm_down();
    }
    while !is_wrong() && !fleet.audited.get() {
        fleet.step();
        if (fleet.steps.get() - begun).is_multiple_of(TOLD_EVERY) {
            fleet.tell(|| fleet.describe());
        }
        if fleet.steps.get() - begun > CALM_MAX {
            let set_up = fleet.known.lock().set_up;
            let who = fleet.describe();
            fleet.violated(format!("nothing gets on any more; {set_up} statements of the set-up are done; {who}"));
        }
    }
    let calm = fleet.steps.get() - begun;
    checkpoint::crash::simulate(None);
    coord::waiting::simulate(None);
    fleet.end();
    fleet.world.borrow().inspect();
    HERE.set(None);
    let world = fleet.world.borrow();
    let known = fleet.known.lock();
    Played {
        violations: known.violations.clone(),
        hash: fleet.trace.hash(),
        steps: fleet.steps.get(),
        calm,
        faults: fleet.faults.get(),
        reads: known.reads,
        checkpoints: known.checkpoints,
        transfers: known.transfers,
        rows: world.sent,
        objects: fleet.witness.seen(),
        counts: fleet.counts.borrow().clone(),
    }
}
