//! Bugs that are planted are found: by files of `sql-tests` over restarts where these can see them, else by sources and sinks.
//!
//! A bug belongs to a thread, so it is planted in those of one engine and disturbs no test beside this one.
#![cfg(debug_assertions)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use checkpoint::planted;
use coord::backfill::Backfill;
use coord::clock::{ClockLoop, Event};
use coord::execution::Execution;
use crossbeam_channel::Receiver;
use flow::{Result, SlotId};
use parking_lot::Mutex;
use runtime::slot::{Reports, Shared};
use runtime::{Join, Service, SteppedWorker, Worker};

use crate::harness::{Instance, keeping, ok, rows, run, scratch, seed};
use crate::slt_files::{files, name_of};
use crate::sql_tests::{Life, check_file};

/// Seeds within which a bug is found; each is another order of statements, checkpoints and restarts.
const SEEDS: u64 = 12;
/// How long one file or scenario may take, on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(120);
/// How long slots that have nothing to do sleep.
const IDLE: Duration = Duration::from_micros(100);

/// An engine whose threads all have one bug.
struct Planted {
    bug: Option<&'static str>,
    stopped: Arc<AtomicBool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Planted {
    fn new(bug: Option<&'static str>) -> Arc<Planted> {
        Arc::new(Planted { bug, stopped: Arc::default(), threads: Mutex::default() })
    }

    fn spawn(&self, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        let bug = self.bug;
        let body = move || {
            planted::plant(bug);
            work();
        };
        std::thread::Builder::new().stack_size(16 << 20).spawn(body).unwrap()
    }
}

struct Ends(Option<JoinHandle<()>>);

impl Join for Ends {
    fn join_while(&mut self, patient: &mut dyn FnMut() -> bool) -> bool {
        let Some(thread) = self.0.take() else { return true };
        thread.thread().unpark();
        while !thread.is_finished() {
            if !patient() {
                return false;
            }
            std::thread::sleep(runtime::service::END_LOOK);
        }
        thread.join().is_ok()
    }
}

impl Execution for Planted {
    fn start_slots(&self, slots: usize, shared: Shared, reports: Reports) -> Result<Arc<dyn Worker>> {
        let worker = Arc::new(SteppedWorker::new(slots, shared, &reports, None)?);
        let (all, stopped) = (Arc::clone(&worker), Arc::clone(&self.stopped));
        let thread = self.spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let worked = (0..slots).filter(|slot| all.step(SlotId(*slot as u16))).count();
                if worked == 0 {
                    std::thread::sleep(IDLE);
                }
            }
        });
        self.threads.lock().push(thread);
        Ok(worker)
    }

    fn start_clock(&self, clock: ClockLoop, events: Receiver<Event>) -> Result<()> {
        let thread = self.spawn(move || clock.run(events));
        self.threads.lock().push(thread);
        Ok(())
    }

    fn start_feeder(&self, feeder: Backfill) -> Result<()> {
        self.spawn(move || feeder.run());
        Ok(())
    }

    fn start_service(&self, service: Box<dyn Service>) -> Result<Box<dyn Join>> {
        Ok(Box::new(Ends(Some(self.spawn(move || runtime::service::run(service))))))
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.threads.lock().drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// A runtime whose threads have the bug too: what a start restores by itself runs there.
fn runtime_with(bug: Option<&'static str>) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(1)
        .thread_stack_size(16 << 20)
        .on_thread_start(move || planted::plant(bug))
        .build()
        .unwrap()
}

/// What these files say over restarts, in so many seeds or until one says something.
fn over_files(names: &[&str], bug: Option<&'static str>, seeds: u64) -> Vec<String> {
    let paths: Vec<_> = files().into_iter().filter(|path| names.contains(&name_of(path).as_str())).collect();
    assert_eq!(paths.len(), names.len(), "{names:?}");
    let runtime = runtime_with(bug);
    for (n, path) in (0..seeds).flat_map(|n| paths.iter().map(move |path| (n, path.clone()))) {
        let lives = move || vec![Life::Restarts(Arc::new(move || Planted::new(bug) as Arc<dyn Execution>))];
        let found = runtime.block_on(async {
            let check = tokio::spawn(async move { check_file(&path, seed() + n, lives).await });
            match tokio::time::timeout(LIMIT, check).await {
                Ok(Ok(problems)) => problems,
                Ok(Err(panicked)) => vec![format!("panicked: {panicked}")],
                Err(_) => vec!["did not end in time".to_string()],
            }
        });
        if !found.is_empty() {
            runtime.shutdown_background();
            return found;
        }
    }
    runtime.shutdown_background();
    Vec::new()
}

fn open(folder: &Path, bug: Option<&'static str>) -> Instance {
    Instance::with(keeping(folder, 2, 64), Planted::new(bug))
}

/// A source whose late rows are late after a restart too, and an exactly-once sink of it. Says what is wrong with them.
async fn over_sources_and_sinks(bug: Option<&'static str>) -> Vec<String> {
    let folder = scratch();
    let (data, input, out) = (folder.path().join("data"), folder.path().join("in.json"), folder.path().join("out"));
    let append = |rows: &[(i64, &str)]| {
        let lines: String =
            rows.iter().map(|(id, at)| format!("{{\"id\":{id},\"at\":\"2026-01-01 {at}\"}}\n")).collect();
        let mut file = std::fs::File::options().create(true).append(true).open(&input).unwrap();
        std::io::Write::write_all(&mut file, lines.as_bytes()).unwrap();
    };
    append(&[(1, "00:00:10"), (2, "00:10:00")]);
    let mut instance = open(&data, bug);
    let mut s = instance.session();
    let source = format!(
        "CREATE SOURCE f (id int, at timestamp, WATERMARK FOR at AS at - INTERVAL '5 seconds') WITH (connector = 'file', \
         path = '{}', format = 'json', follow = 'true', poll_interval = '5ms')",
        input.display()
    );
    ok(&mut s, &source).await;
    let sink = format!(
        "CREATE SINK o AS SELECT id FROM f WITH (connector = 'file', path = '{}', delivery = 'exactly_once') FORMAT PLAIN \
         ENCODE JSON",
        out.display()
    );
    ok(&mut s, &sink).await;
    ok(&mut s, "CREATE MATERIALIZED VIEW seen AS SELECT count(*) AS n FROM f").await;
    let count = "SELECT (SELECT n FROM seen), (SELECT count(*) FROM \"f$late\")";
    let mut problems = Vec::new();
    let mut expected = vec!["2".to_string(), "0".to_string()];
    for late in [None, Some(3)] {
        if let Some(id) = late {
            // Behind the watermark that the row of 00:10:00 has brought before the restart.
            append(&[(id, "00:05:00")]);
            expected = vec!["2".to_string(), "1".to_string()];
        }
        let mut found = Vec::new();
        for _ in 0..200 {
            found = rows(&mut s, count).await.remove(0);
            let came: i64 = found.iter().map(|n| n.parse::<i64>().unwrap()).sum();
            if came == 2 + late.map_or(0, |_| 1) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if found != expected {
            problems.push(format!("on time and late are {found:?}, not {expected:?}"));
        }
        for _ in 0..2 {
            if let Err(error) = run(&mut s, "CHECKPOINT").await {
                problems.push(format!("CHECKPOINT: {error}"));
            }
        }
        drop(s);
        instance.close().await;
        instance = open(&data, bug);
        s = instance.session();
    }
    drop(s);
    instance.close().await;
    let files = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().path()).filter(|path| path.is_file());
    let mut published: Vec<String> =
        files.flat_map(|f| std::fs::read_to_string(f).unwrap().lines().map(String::from).collect::<Vec<_>>()).collect();
    published.sort();
    if published != ["{\"id\":1}", "{\"id\":2}"] {
        problems.push(format!("published are {published:?}"));
    }
    problems
}

fn sources_and_sinks(bug: Option<&'static str>) -> Vec<String> {
    let runtime = runtime_with(bug);
    let found = runtime.block_on(async {
        let run = tokio::spawn(over_sources_and_sinks(bug));
        match tokio::time::timeout(LIMIT, run).await {
            Ok(Ok(problems)) => problems,
            Ok(Err(panicked)) => vec![format!("panicked: {panicked}")],
            Err(_) => vec!["did not end in time".to_string()],
        }
    });
    runtime.shutdown_background();
    found
}

/// Files whose views have much state: joins of several tables, groups, and rows that are taken away again.
const FILES: [&str; 3] = ["joins/hundreds_01.slt", "aggregates/random_01.slt", "topn/hundreds.slt"];

#[test]
fn a_planted_bug_is_found_by_the_files_of_sql_tests_over_restarts() {
    assert_eq!(over_files(&FILES, None, 1), Vec::<String>::new());
    for bug in ["delta", "join_row", "live_object"] {
        let found = over_files(&FILES, Some(bug), SEEDS);
        assert!(!found.is_empty(), "{bug} is not found");
        println!("{bug}: {}", found[0].lines().next().unwrap_or_default());
    }
}

/// The files have neither sources nor sinks that deliver exactly once.
#[test]
fn a_planted_bug_of_sources_and_sinks_is_found_over_restarts() {
    assert_eq!(sources_and_sinks(None), Vec::<String>::new());
    for bug in ["watermark", "commit_twice"] {
        let found = sources_and_sinks(Some(bug));
        assert!(!found.is_empty(), "{bug} is not found");
        println!("{bug}: {}", found[0]);
    }
}
