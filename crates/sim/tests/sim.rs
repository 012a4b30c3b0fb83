//! Seeds of the simulation. `MILLSTREAM_SEED=n` makes seed *n* the first one and `MILLSTREAM_SEEDS` says how many are played;
//! a failure prints the line that plays its seed again.
#![cfg(debug_assertions)]

use std::path::PathBuf;

use checkpoint::{crash, planted};
use sim::fleet::{self, play::Played as Cluster};
use sim::play::{Played, play};

/// Seeds of a run without a wish.
const SEEDS: u64 = 12;
/// Seeds of clusters of a run without a wish.
const CLUSTER_SEEDS: u64 = 4;
/// So many come to every crash point.
const SEEDS_OF_ALL_POINTS: u64 = 200;
/// A planted bug is found within so many seeds, from this one on.
const FIRST_TO_FIND: u64 = 8;
const SEEDS_TO_FIND: u64 = 40;

/// With `MILLSTREAM_SIM_SHOW` the lives of a seed are told, and what the engine logs.
fn show() {
    if std::env::var_os("MILLSTREAM_SIM_SHOW").is_some() {
        let told = tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().with_ansi(false).try_init();
        drop(told);
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Where a test plays a seed: the same place every time, because paths are part of what is said.
fn place(test: &str, seed: u64) -> PathBuf {
    let memory = std::path::Path::new("/dev/shm");
    let folder = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    folder.join(format!("millstream-sim-{}-{test}-{seed}", std::process::id()))
}

fn fail(seed: u64, bug: Option<&str>, played: &Played) -> ! {
    panic!(
        "seed {seed}{}:\n  {}\nreplay: MILLSTREAM_SEED={seed} MILLSTREAM_SEEDS=1 cargo test --workspace --test sim -- violation",
        bug.map(|bug| format!(" with {bug}")).unwrap_or_default(),
        played.violations.join("\n  ")
    )
}

#[test]
fn seeds_play_without_a_violation_and_die_at_every_crash_point() {
    show();
    let first = number("MILLSTREAM_SEED").unwrap_or(1);
    let wished = number("MILLSTREAM_SEEDS");
    let mut all = Played::default();
    for seed in first..first + wished.unwrap_or(SEEDS) {
        let played = play(seed, None, &place("violation", seed));
        if !played.violations.is_empty() {
            fail(seed, None, &played);
        }
        all.add(&played);
    }
    println!("{all:?}");
    if wished.unwrap_or(SEEDS) >= SEEDS {
        // Else nothing was tried.
        assert!(all.died_at.len() >= 4 && all.damaged > 0 && all.faults > 0 && all.checkpoints > 0, "{all:?}");
    }
    if wished.unwrap_or(SEEDS) >= SEEDS_OF_ALL_POINTS {
        for point in crash::POINTS.into_iter().chain(crash::LOG_POINTS) {
            assert!(all.died_at.contains_key(point), "nothing died at {point}: {:?}", all.died_at);
        }
    }
}

#[test]
fn a_seed_plays_the_same_every_time() {
    let first = number("MILLSTREAM_SEED").unwrap_or(1);
    for seed in first..first + 2 {
        let place = place("same", seed);
        let (once, again) = (play(seed, None, &place), play(seed, None, &place));
        assert_eq!(once, again, "seed {seed}");
    }
}

#[test]
fn every_planted_bug_is_found() {
    for bug in planted::BUGS {
        let found = (FIRST_TO_FIND..FIRST_TO_FIND + SEEDS_TO_FIND).find_map(|seed| {
            let played = play(seed, Some(bug), &place(bug, seed));
            played.violations.first().map(|what| (seed, what.clone()))
        });
        let (seed, what) = found.unwrap_or_else(|| panic!("{bug} is not found in {SEEDS_TO_FIND} seeds"));
        println!("{bug}: seed {seed}: {what}");
    }
}

fn fail_cluster(seed: u64, played: &Cluster) -> ! {
    panic!(
        "seed {seed}:\n  {}\nreplay: MILLSTREAM_SEED={seed} MILLSTREAM_SEEDS=1 cargo test --workspace --test sim -- clusters_play",
        played.violations.join("\n  ")
    )
}

#[test]
fn clusters_play_without_a_violation() {
    show();
    let first = number("MILLSTREAM_SEED").unwrap_or(1);
    let wished = number("MILLSTREAM_SEEDS");
    let mut all = Cluster::default();
    for seed in first..first + wished.unwrap_or(CLUSTER_SEEDS) {
        let played = fleet::play::play(seed, None, &place("cluster", seed));
        if !played.violations.is_empty() {
            fail_cluster(seed, &played);
        }
        all.add(&played);
    }
    println!("{all:?}");
    if wished.unwrap_or(CLUSTER_SEEDS) >= CLUSTER_SEEDS {
        // Else nothing was tried.
        let counts = &all.counts;
        let tried = [counts.deaths, counts.sleeps, counts.broken, counts.cut, counts.zombies, all.faults];
        assert!(tried.iter().all(|n| *n > 0) && all.checkpoints > 0 && all.transfers > 0, "{all:?}");
    }
}

#[test]
fn a_cluster_plays_the_same_every_time() {
    let seed = number("MILLSTREAM_SEED").unwrap_or(1);
    let place = place("same-cluster", seed);
    let (once, again) = (fleet::play::play(seed, None, &place), fleet::play::play(seed, None, &place));
    assert_eq!(once, again, "seed {seed}");
}

#[test]
fn every_planted_bug_of_a_cluster_is_found() {
    for bug in planted::CLUSTER_BUGS {
        let found = (1..1 + SEEDS_TO_FIND).find_map(|seed| {
            let played = fleet::play::play(seed, Some(bug), &place(bug, seed));
            played.violations.first().map(|what| (seed, what.clone()))
        });
        let (seed, what) = found.unwrap_or_else(|| panic!("{bug} is not found in {SEEDS_TO_FIND} seeds"));
        println!("{bug}: seed {seed}: {what}");
        // It is the bug that was found.
        let sound = fleet::play::play(seed, None, &place(bug, seed));
        if !sound.violations.is_empty() {
            fail_cluster(seed, &sound);
        }
    }
}
