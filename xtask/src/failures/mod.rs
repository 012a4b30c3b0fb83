//! `cargo xtask failures`: a cluster of real processes is broken again and again while it works, and must not lose, repeat or invent
//! anything, nor show half of anything, and must go on soon after.
//!
//! Each process has a network namespace of its own ([`net`]). Processes are killed, stopped and woken, ended in order, and die at crash
//! points; links are cut one way, both ways, and flap ([`faults`]). Every kind of fault on everything that it can hit is dealt from a
//! shuffled deck, so that a run of some minutes meets each of them; into one fault out of four comes another one. Clients work
//! all the time ([`load`]), and what lies in the store is looked at from outside ([`history`]).

mod cluster;
mod faults;
mod history;
mod load;
mod net;
mod published;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::bench::measure::{Latencies, ms_since, now};
use crate::bench::{Result, number, test_build, told};
use cluster::{Cluster, SILENCE, WORKERS_WANTED};
use faults::{Cut, Fault, Role};
use history::Watch;
use load::{Anywhere, Load, Outcome, Seen};
use net::{Built, CLIENT, COORDINATORS, NAMES, Net, Seat, WORKERS};

pub const USAGE: &str =
    "cargo xtask failures [--minutes N] [--rounds N] [--seed N] [--only FAULT,FAULT,…] [--binary PATH] [--scratch DIR]";

/// What is promised: so long after the last fault is over everything goes on, on all workers.
const RESUME_MAX: Duration = Duration::from_secs(60);
/// How long a process may take to come to its crash point under load.
const POINT_MAX: Duration = Duration::from_secs(45);
/// Calm between two faults.
const CALM_MS: std::ops::Range<u64> = 300..1500;
/// Of so many faults, one meets another one while it lasts or the cluster comes back.
const SECOND_FAULT_IN: u64 = 4;
const LOOK: Duration = Duration::from_millis(20);

/// What the command line chooses.
struct Plan {
    seconds: f64,
    /// Faults at most.
    rounds: u64,
    seed: u64,
    /// Faults by their names; all if there are none.
    only: Vec<String>,
    binary: Option<PathBuf>,
    scratch: Option<PathBuf>,
    /// The namespaces that are there: this process runs in that of the client. It is started so by itself.
    namespaces: Option<String>,
}

impl Plan {
    fn read(args: &[String]) -> std::result::Result<Plan, String> {
        let mut plan = Plan {
            seconds: 600.0,
            rounds: u64::MAX,
            seed: 1,
            only: Vec::new(),
            binary: None,
            scratch: None,
            namespaces: None,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let value = args.next().ok_or_else(|| format!("{arg} needs a value; usage: {USAGE}"))?;
            match arg.as_str() {
                "--minutes" => {
                    let minutes = value.parse::<f64>().ok().filter(|minutes| *minutes > 0.0);
                    plan.seconds = minutes.ok_or_else(|| format!("\"{value}\" is not a time"))? * 60.0;
                }
                "--rounds" => plan.rounds = number(value)?.max(1),
                "--seed" => plan.seed = number(value)?,
                "--only" => plan.only = value.split(',').map(str::to_string).collect(),
                "--binary" => plan.binary = Some(PathBuf::from(value)),
                "--scratch" => plan.scratch = Some(PathBuf::from(value)),
                "--namespaces" => plan.namespaces = Some(value.clone()),
                _ => return Err(format!("there is no option \"{arg}\"; usage: {USAGE}")),
            }
        }
        Ok(plan)
    }

    /// The faults that are dealt.
    fn deck(&self) -> std::result::Result<Vec<Fault>, String> {
        let all = Fault::all();
        let known = |name: &String| all.iter().any(|fault| fault.to_string() == *name);
        if let Some(unknown) = self.only.iter().find(|name| !known(name)) {
            let names: Vec<String> = all.iter().map(Fault::to_string).collect();
            return Err(format!("there is no fault \"{unknown}\"; there are {}", names.join(", ")));
        }
        let chosen = |fault: &Fault| self.only.is_empty() || self.only.contains(&fault.to_string());
        Ok(all.into_iter().filter(chosen).collect())
    }
}

pub fn run(args: impl Iterator<Item = String>) -> std::result::Result<(), String> {
    let args: Vec<String> = args.collect();
    let plan = Plan::read(&args)?;
    let deck = plan.deck()?;
    match (&plan.namespaces, &plan.binary) {
        (Some(prefix), Some(binary)) => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .map_err(|e| format!("cannot start the runtime: {e}"))?;
            runtime.block_on(break_it(&plan, deck, Net::of(prefix.clone()), binary)).map_err(|e| told(e.as_ref()))
        }
        (Some(_), None) => Err("--namespaces needs --binary".to_string()),
        (None, _) => outside(&plan, &args).map_err(|e| told(e.as_ref())),
    }
}

/// Builds the namespaces, and runs this program again as the clients in one of them.
fn outside(plan: &Plan, args: &[String]) -> Result<()> {
    net::check_root()?;
    let binary = match &plan.binary {
        Some(binary) => binary.clone(),
        None => test_build()?,
    };
    let binary = binary.canonicalize().map_err(|e| format!("{}: {e}", binary.display()))?;
    let built = Built::new()?;
    let status = Command::new("ip")
        .args(["netns", "exec", &built.net.namespace(CLIENT)])
        .arg(std::env::current_exe()?)
        .arg("failures")
        .args(args)
        .arg("--binary")
        .arg(binary)
        .args(["--namespaces", built.prefix()])
        .status()?;
    if status.success() { Ok(()) } else { Err(format!("the run has failed: {status}").into()) }
}

/// Which process is hit.
#[derive(Clone, Copy)]
struct Targets {
    leader: Seat,
    standby: Seat,
    worker: Seat,
    other: Seat,
}

impl Targets {
    fn seat(self, role: Role) -> Seat {
        match role {
            Role::Leader => self.leader,
            Role::Standby => self.standby,
            Role::Worker => self.worker,
            Role::OtherWorker => self.other,
            Role::Client => CLIENT,
        }
    }
}

/// One fault and what came of it.
struct Round {
    fault: Fault,
    /// What was killed besides.
    also: Option<Role>,
    /// A process has come to its crash point; true where there is none.
    reached: bool,
    /// The longest time without an acknowledgement, from its beginning until the jobs were on all workers.
    outage_ms: f64,
    /// From its end until statements, reads and files of the sink went on, and until the jobs were on all workers.
    resumed_ms: f64,
    whole_ms: f64,
}

struct Rig {
    cluster: Cluster,
    load: Load,
    looker: Anywhere,
    random: SmallRng,
    /// What is to be killed besides, and how long after the beginning of the fault.
    also: Option<(Role, Duration)>,
}

impl Rig {
    /// Waits until a coordinator leads, and draws who is hit.
    async fn targets(&mut self) -> Result<Targets> {
        let start = now();
        let leader = loop {
            if let Some(leader) = self.cluster.leader() {
                break leader;
            }
            if start.elapsed() > RESUME_MAX {
                return Err("no coordinator leads".into());
            }
            tokio::time::sleep(LOOK).await;
        };
        let standby = COORDINATORS.into_iter().find(|seat| *seat != leader).ok_or("there is one coordinator")?;
        let mut workers = self.cluster.workers.clone();
        workers.shuffle(&mut self.random);
        let [worker, other, ..] = workers[..] else { return Err("there are too few workers".into()) };
        Ok(Targets { leader, standby, worker, other })
    }

    /// Waits, and kills in the middle what is to be killed besides.
    async fn hold(&mut self, targets: Targets, time: Duration) -> Result<()> {
        let start = now();
        if let Some((role, delay)) = self.also.take() {
            tokio::time::sleep(delay).await;
            self.cluster.kill(targets.seat(role))?;
        }
        tokio::time::sleep(time.saturating_sub(start.elapsed())).await;
        Ok(())
    }

    fn between(&mut self, least_ms: u64, most_ms: u64) -> Duration {
        Duration::from_millis(self.random.random_range(least_ms..most_ms))
    }

    /// Longer than a node may be silent.
    fn long_silence(&mut self) -> Duration {
        SILENCE + self.between(1000, 4000)
    }

    fn cut_both(&mut self, a: Seat, b: Seat) -> Result<()> {
        self.cluster.net.cut(a, b)?;
        self.cluster.net.cut(b, a)
    }

    /// Does it. When this returns nothing more is done, and what was taken is not back yet. False: a crash point was not reached.
    async fn strike(&mut self, fault: Fault, targets: Targets) -> Result<bool> {
        match fault {
            Fault::Kill(roles) => {
                for role in roles {
                    self.cluster.kill(targets.seat(*role))?;
                }
                // Before the standby notices that the leader is gone, or after.
                let back = self.between(200, 7000);
                self.hold(targets, back).await?;
            }
            Fault::KillAll => {
                for seat in self.cluster.used() {
                    self.cluster.kill(seat)?;
                }
                self.cluster.fsck()?;
            }
            Fault::Left => {
                let begun = now();
                self.cluster.kill(targets.worker)?;
                jobs_run_on(&mut self.looker, WORKERS_WANTED - 1).await?;
                self.load.resumed(begun, RESUME_MAX).await?;
                let stays_away = self.between(500, 3000);
                self.hold(targets, stays_away).await?;
            }
            Fault::Replaced => {
                self.cluster.kill(targets.worker)?;
                let spare = WORKERS.into_iter().find(|seat| !self.cluster.workers.contains(seat));
                let spare = spare.ok_or("there is no machine for another worker")?;
                self.cluster.workers.retain(|seat| *seat != targets.worker);
                self.cluster.workers.push(spare);
                let comes = self.between(200, 4000);
                self.hold(targets, comes).await?;
            }
            Fault::Terminate(role) => {
                self.cluster.terminate(targets.seat(role)).await?;
                let back = self.between(200, 4000);
                self.hold(targets, back).await?;
            }
            Fault::Stop(role) => {
                self.cluster.stop(targets.seat(role))?;
                let sleeps = self.long_silence();
                self.hold(targets, sleeps).await?;
            }
            Fault::Link(cut, from, to) => {
                let (from, to) = (targets.seat(from), targets.seat(to));
                match cut {
                    Cut::Whole => self.cut_both(from, to)?,
                    Cut::OneWay => self.cluster.net.cut(from, to)?,
                    Cut::Flapping => {
                        for _ in 0..self.random.random_range(4..9) {
                            self.cut_both(from, to)?;
                            tokio::time::sleep(self.between(200, 1500)).await;
                            self.cluster.net.heal()?;
                            tokio::time::sleep(self.between(100, 1000)).await;
                        }
                    }
                }
                let lasts = if cut == Cut::Flapping { self.between(10, 100) } else { self.long_silence() };
                let among_workers = cut == Cut::Whole && from != targets.leader && to != targets.leader;
                let goes_on = among_workers && from != CLIENT && self.also.is_none();
                self.hold(targets, lasts).await?;
                if goes_on {
                    // On those that reach each other.
                    self.load.resumed(now(), RESUME_MAX).await?;
                }
            }
            Fault::Isolate(role) => {
                let seat = targets.seat(role);
                for other in (0..NAMES.len()).filter(|other| *other != seat) {
                    self.cut_both(seat, other)?;
                }
                let lasts = self.long_silence();
                self.hold(targets, lasts).await?;
            }
            Fault::Crash(point) => return self.crash(point, targets).await,
        }
        Ok(true)
    }

    /// Lets a process die at a point: it is started so, and comes to it at work, or while it starts.
    async fn crash(&mut self, point: &str, targets: Targets) -> Result<bool> {
        let starting = matches!(point, "C15" | "C16");
        let times = if starting { 1 } else { self.random.random_range(1..=3) };
        let at = format!("{point}:{times}");
        let dying = if Fault::is_of_worker(point) {
            self.cluster.kill(targets.worker)?;
            if point == "C16" {
                // There must be fewer slots than before.
                self.cluster.kill(targets.other)?;
            }
            self.cluster.start(targets.worker, Some(&at))?;
            targets.worker
        } else {
            self.cluster.kill(targets.standby)?;
            self.cluster.start(targets.standby, Some(&at))?;
            tokio::time::sleep(self.between(1500, 2500)).await;
            self.cluster.kill(targets.leader)?;
            // One that came back at once would lead again.
            let start = now();
            while self.cluster.leader() != Some(targets.standby) && start.elapsed() < RESUME_MAX {
                tokio::time::sleep(LOOK).await;
            }
            self.cluster.start(targets.leader, None)?;
            targets.standby
        };
        let reached = self.cluster.reaches_point(dying, POINT_MAX).await?;
        if !reached {
            self.cluster.kill(dying)?;
        }
        let back = self.between(100, 2000);
        tokio::time::sleep(back).await;
        Ok(reached)
    }

    async fn round(&mut self, fault: Fault) -> Result<Round> {
        let targets = self.targets().await?;
        let meets_another =
            matches!(fault, Fault::Kill(_) | Fault::Replaced | Fault::Stop(_) | Fault::Link(..) | Fault::Isolate(_))
                && self.random.random_range(0..SECOND_FAULT_IN) == 0;
        if meets_another {
            let role = [Role::Leader, Role::Worker, Role::OtherWorker, Role::Standby].choose(&mut self.random).copied();
            let delay = self.between(100, 5000);
            self.also = role.map(|role| (role, delay));
        }
        let also = self.also.map(|(role, _)| role);
        self.load.forget_times();
        let begun = now();
        let reached = self.strike(fault, targets).await?;
        self.cluster.make_whole()?;
        let calm = now();
        let resumed = self.load.resumed(calm, RESUME_MAX).await?;
        jobs_run_on(&mut self.looker, WORKERS_WANTED).await?;
        let whole_ms = ms_since(calm);
        self.cluster.check()?;
        let outage_ms = self.load.longest_silence(begun).as_secs_f64() * 1e3;
        tokio::time::sleep(self.between(CALM_MS.start, CALM_MS.end)).await;
        Ok(Round { fault, also, reached, outage_ms, resumed_ms: resumed.as_secs_f64() * 1e3, whole_ms })
    }

    /// Ends every process in order; each must say that it did.
    async fn end_processes(&mut self) -> Result<()> {
        let Targets { leader, standby, .. } = self.targets().await?;
        for seat in [standby, leader].into_iter().chain(self.cluster.workers.clone()) {
            self.cluster.terminate(seat).await?;
        }
        Ok(())
    }
}

/// Waits until jobs run on so many workers.
async fn jobs_run_on(looker: &mut Anywhere, workers: usize) -> Result<()> {
    let start = now();
    let sql = "SELECT count(*) FROM ms_catalog.workers WHERE state = 'running'";
    loop {
        let running = looker.number(sql, RESUME_MAX).await?;
        if running == workers as u64 {
            return Ok(());
        }
        if start.elapsed() > RESUME_MAX {
            return Err(format!("jobs run on {running} workers, not on {workers}, for {RESUME_MAX:?}").into());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Everything that a run has found.
struct Report {
    seconds: f64,
    rounds: Vec<Round>,
    outcome: Outcome,
    written: history::Seen,
    fscks: u64,
    errors: u64,
    wrong: Vec<String>,
}

async fn break_it(plan: &Plan, deck: Vec<Fault>, net: Net, binary: &Path) -> Result<()> {
    let memory = PathBuf::from("/dev/shm");
    let folder = match &plan.scratch {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None if memory.is_dir() => tempfile::tempdir_in(memory)?,
        None => tempfile::tempdir()?,
    };
    let outcome = match work(plan, &deck, net, binary, folder.path()).await {
        Ok(report) => {
            println!("{}", report.table());
            report.verdict(plan)
        }
        Err(error) => Err(error),
    };
    if outcome.is_err() {
        eprintln!("   logs and data are kept in {}", folder.keep().display());
    }
    outcome
}

async fn work(plan: &Plan, deck: &[Fault], net: Net, binary: &Path, folder: &Path) -> Result<Report> {
    let mut cluster = Cluster::new(net, binary, folder)?;
    cluster.make_whole()?;
    let watch = Watch::start(cluster.store());
    let seen = Arc::new(Seen::default());
    let mut looker = Anywhere::new(&seen);
    // What is made now is not to meet a change of workers.
    jobs_run_on(&mut looker, WORKERS_WANTED).await?;
    let load = Load::start(folder, plan.seed, &seen).await?;
    let mut rig = Rig { cluster, load, looker, random: SmallRng::seed_from_u64(plan.seed), also: None };
    let start = now();
    let mut rounds = Vec::new();
    let worked = rounds_of(&mut rig, plan, deck, start, &mut rounds).await;
    let seconds = start.elapsed().as_secs_f64();
    match worked {
        Ok(()) => finish(rig, rounds, watch, seconds).await,
        // A cluster that does not go on answers no questions.
        Err(error) => {
            let (outcome, wrong) = (Outcome::default(), vec![told(error.as_ref())]);
            drop(rig);
            Ok(Report { seconds, rounds, outcome, written: watch.end(), fscks: 0, errors: 0, wrong })
        }
    }
}

async fn rounds_of(rig: &mut Rig, plan: &Plan, deck: &[Fault], start: Instant, rounds: &mut Vec<Round>) -> Result<()> {
    // The first checkpoints are there: before them nothing moves when workers do.
    rig.load.resumed(now(), RESUME_MAX).await?;
    let mut open: Vec<Fault> = Vec::new();
    while start.elapsed().as_secs_f64() < plan.seconds && (rounds.len() as u64) < plan.rounds {
        let fault = match open.pop() {
            Some(fault) => fault,
            None => {
                open = deck.to_vec();
                open.shuffle(&mut rig.random);
                continue;
            }
        };
        let second = start.elapsed().as_secs_f64();
        let round = rig
            .round(fault)
            .await
            .map_err(|e| format!("after {second:.0} s, {fault}, fault {}: {}", rounds.len() + 1, told(e.as_ref())))?;
        eprintln!(
            "   {:>4}  {second:>5.0} s  {:<28}{:<18}outage {:>6.0} ms, goes on {:>6.0} ms after, on all workers {:>6.0} ms after{}",
            rounds.len() + 1,
            fault.to_string(),
            round.also.map(|role| format!("kill {role:?}")).unwrap_or_default(),
            round.outage_ms,
            round.resumed_ms,
            round.whole_ms,
            if round.reached { "" } else { "; NOT REACHED" }
        );
        rounds.push(round);
    }
    Ok(())
}

/// Ends the work, and audits.
async fn finish(mut rig: Rig, rounds: Vec<Round>, watch: Watch, seconds: f64) -> Result<Report> {
    let mut outcome = rig.load.end().await?;
    let mut wrong = std::mem::take(&mut outcome.wrong);
    let mut note = |done: Result<()>| wrong.extend(done.err().map(|error| told(error.as_ref())));
    note(rig.end_processes().await);
    for seat in rig.cluster.used() {
        rig.cluster.kill(seat)?;
    }
    note(rig.cluster.fsck());
    let (panics, errors) = rig.cluster.log_trouble()?;
    let mut written = watch.end();
    wrong.extend(panics);
    wrong.append(&mut written.violations);
    let fscks = 1 + rounds.iter().filter(|round| round.fault == Fault::KillAll).count() as u64;
    Ok(Report { seconds, rounds, outcome, written, fscks, errors, wrong })
}

fn shown(times: &Latencies) -> String {
    let [p50, p99, max] = times.percentiles().unwrap_or_default();
    format!("{p50:>8.0}{p99:>8.0}{max:>8.0}")
}

impl Report {
    fn table(&self) -> String {
        let mut out = format!(
            "{:<20}{:>7}{:>9}   {:>24}   {:>24}   {:>24}\n{:<20}{:>7}{:>9}   {:>8}{:>8}{:>8}   {:>8}{:>8}{:>8}   {:>8}{:>8}{:>8}\n",
            "",
            "",
            "",
            "outage, ms",
            "goes on after, ms",
            "on all workers after, ms",
            "fault",
            "times",
            "+ a kill",
            "p50",
            "p99",
            "max",
            "p50",
            "p99",
            "max",
            "p50",
            "p99",
            "max"
        );
        let mut kinds: BTreeMap<&str, Vec<&Round>> = BTreeMap::new();
        for round in &self.rounds {
            kinds.entry(round.fault.kind()).or_default().push(round);
            kinds.entry("~ all").or_default().push(round);
        }
        for (kind, rounds) in &kinds {
            let mut times = [Latencies::default(), Latencies::default(), Latencies::default()];
            for round in rounds {
                for (times, ms) in times.iter_mut().zip([round.outage_ms, round.resumed_ms, round.whole_ms]) {
                    times.add(ms);
                }
            }
            let also = rounds.iter().filter(|round| round.also.is_some()).count();
            let [outage, resumed, whole] = times.each_ref().map(shown);
            let _ = writeln!(
                out,
                "{:<20}{:>7}{also:>9}   {outage}   {resumed}   {whole}",
                kind.trim_start_matches("~ "),
                rounds.len()
            );
        }
        let mut cells: BTreeMap<String, u64> = BTreeMap::new();
        for round in &self.rounds {
            *cells.entry(round.fault.to_string()).or_default() += u64::from(round.reached);
        }
        let told: Vec<String> = cells.iter().map(|(cell, times)| format!("{cell} {times}")).collect();
        let hit = cells.values().filter(|times| **times > 0).count();
        let _ = writeln!(out, "{hit} of {} cells: {}", Fault::all().len(), told.join(", "));
        let o = &self.outcome;
        let _ = writeln!(
            out,
            "statements: {} acknowledged, {} of unknown outcome; {} transfers: {} lost, {} repeated, {} alien",
            o.statements, o.unknown, o.transfers, o.transfers_lost, o.transfers_repeated, o.transfers_alien
        );
        let _ = writeln!(
            out,
            "rows of the file: {} sent, {} published in {} files: {} lost, {} repeated, {} alien, {} reordered",
            o.sent, o.published, o.files, o.lost, o.repeated, o.alien, o.reordered
        );
        let _ = write!(
            out,
            "{} reads of the total; {} objects of {} generations in order; fsck {} times; {:.0} s; {} lines of level ERROR",
            o.reads, self.written.objects, self.written.generations, self.fscks, self.seconds, self.errors
        );
        out
    }

    /// Nothing wrong, and not without effect; or what is not so.
    fn verdict(&self, plan: &Plan) -> Result<()> {
        let mut wrong = self.wrong.clone();
        let armed = self.rounds.iter().filter(|round| matches!(round.fault, Fault::Crash(_))).count();
        let reached =
            self.rounds.iter().filter(|round| matches!(round.fault, Fault::Crash(_)) && round.reached).count();
        if reached * 2 < armed {
            wrong.push(format!("{reached} of {armed} crash points were reached; has the program any?"));
        }
        if wrong.is_empty() && (self.rounds.is_empty() || self.outcome.statements == 0 || self.outcome.reads == 0) {
            wrong.push("nothing was done".to_string());
        }
        if wrong.is_empty() {
            println!("nothing was lost, repeated, invented or torn, and everything went on within {RESUME_MAX:?}");
            return Ok(());
        }
        Err(format!("seed {}: {} violations\n{}", plan.seed, wrong.len(), wrong.join("\n")).into())
    }
}
