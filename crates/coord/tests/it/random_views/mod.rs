//! Random views over random changes: at every check the rows of a view equal the answer of its query at the same epoch.
//!
//! A script is one engine with fifty views and one stream of transactions. `MILLSTREAM_SEED=n` makes seed *n* the first
//! script, so a failure replays with the line that it prints; `MILLSTREAM_SCRIPTS` sets how many scripts run. Every fourth
//! script sends each message between coordinator and slots as bytes. With `MILLSTREAM_SLT_OUT=folder` each script is
//! written there as a file of `sql-tests`, for a comparison with PostgreSQL by `check_postgres.py`.

mod queries;
pub mod script;
mod values;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coord::execution::Threads;
use coord::{Session, Time};
use futures::StreamExt;
use runtime::Wire;

use self::script::{Script, Step, View};
use crate::bytes::Bytes;
use crate::harness::{Answer, Instance, config, ok, render, run, scratch, seed};

/// Standing queries that a run checks.
const CASES: usize = 2000;
/// Standing queries of one script.
const VIEWS: usize = 50;
/// A script takes about a second; one that waits for ever is a failure, not a hang.
const SCRIPT_TIME_MAX: Duration = Duration::from_secs(60);
/// How long a failing script is made smaller.
const SHRINK_US_MAX: i64 = 20_000_000;

/// What one script has shown.
#[derive(Debug, Default)]
struct Shown {
    views: usize,
    /// Views that had rows at their last check.
    filled: usize,
    checks: usize,
    /// Queries that a standing view may not have.
    refused: usize,
    failures: Vec<Failure>,
}

/// What went wrong, with the view if it is one's.
#[derive(Clone, Debug)]
pub struct Failure {
    pub view: Option<usize>,
    pub what: String,
}

impl Failure {
    fn of(view: usize, what: String) -> Failure {
        Failure { view: Some(view), what }
    }

    fn general(what: String) -> Failure {
        Failure { view: None, what }
    }
}

async fn table_of(session: &mut Session, sql: &str) -> Result<Vec<Vec<String>>, flow::Error> {
    match run(session, sql).await? {
        Answer::Rows(_, batches) => {
            let mut rows: Vec<Vec<String>> = batches.iter().flat_map(render).collect();
            rows.sort();
            Ok(rows)
        }
        Answer::Tag(tag) => Err(flow::Error::internal(format!("no rows but {tag}"))),
    }
}

/// Rows that one side has more often than the other.
fn difference(view: &[Vec<String>], query: &[Vec<String>]) -> String {
    let mut weights: BTreeMap<&[String], i64> = BTreeMap::new();
    view.iter().for_each(|r| *weights.entry(r).or_default() += 1);
    query.iter().for_each(|r| *weights.entry(r).or_default() -= 1);
    let mut text = format!("  {} rows in the view, {} in the query's answer\n", view.len(), query.len());
    for (row, weight) in weights.iter().filter(|(_, w)| **w != 0).take(20) {
        let side = if *weight > 0 { "only in the view " } else { "only in the query" };
        let _ = writeln!(text, "  {side} ×{}: {}", weight.abs(), row.join(" | "));
    }
    text
}

fn told(error: &flow::Error) -> String {
    let more = [error.detail(), error.hint()].into_iter().flatten().collect::<Vec<_>>().join("; ");
    format!("{} ({}); {more}", error.message(), error.state().code())
}

/// Compares `views` with their queries in one read transaction; returns how many have rows, and those that differ.
pub async fn check(session: &mut Session, script: &Script, views: &[usize]) -> (usize, Vec<Failure>) {
    let mut filled = 0;
    let mut failures = Vec::new();
    ok(session, "BEGIN READ ONLY").await;
    for view in views {
        let View { name, sql, .. } = &script.views[*view];
        let mut both = Vec::new();
        for sql in [format!("SELECT * FROM {name}"), sql.clone()] {
            both.push(table_of(session, &sql).await);
            if both.last().is_some_and(Result::is_err) {
                // The transaction has failed; what follows reads the next epoch.
                ok(session, "ROLLBACK").await;
                ok(session, "BEGIN READ ONLY").await;
            }
        }
        match both.as_slice() {
            [Ok(found), Ok(expected)] if found == expected => filled += usize::from(!found.is_empty()),
            [Ok(found), Ok(expected)] => failures.push(Failure::of(*view, difference(found, expected))),
            [Err(e), Ok(_)] => failures.push(Failure::of(*view, format!("  the view fails: {}\n", told(e)))),
            [_, Err(e)] => failures.push(Failure::of(*view, format!("  the query fails: {}\n", told(e)))),
            _ => {}
        }
    }
    ok(session, "COMMIT").await;
    (filled, failures)
}

/// Runs a script.
async fn play(script: &Arc<Script>) -> Shown {
    let folder = scratch();
    if !script.seed.is_multiple_of(4) {
        let instance = Instance::open(folder.path(), script.slots, script.batch_rows);
        let played = steps(&instance, script).await;
        instance.close().await;
        return played;
    }
    let wire = Arc::new(Bytes::default());
    let config = config(folder.path(), script.slots, script.batch_rows);
    let instance = Instance::with(config, Arc::new(Threads::over(Arc::clone(&wire) as Arc<dyn Wire>)));
    let mut played = steps(&instance, script).await;
    instance.close().await;
    if let Some(problem) = wire.problems().first() {
        played.failures.push(Failure::general(format!("  a message does not survive as bytes: {problem}\n")));
    }
    played
}

type Beside = tokio::task::JoinHandle<(usize, Vec<Failure>)>;

async fn steps(instance: &Instance, script: &Arc<Script>) -> Shown {
    let mut session = instance.session();
    if script.background {
        ok(&mut session, "SET background_ddl = on").await;
    }
    for table in &script.tables {
        ok(&mut session, table).await;
    }
    let mut shown = Shown::default();
    let mut alive: Vec<usize> = Vec::new();
    let mut beside: Option<Beside> = None;
    for step in &script.steps {
        match step {
            Step::Write { statements, commit } => {
                if let Err(failure) = write(&mut session, statements, *commit).await {
                    shown.failures.push(failure);
                }
            }
            Step::Create(view) => {
                // A view that reads one which was refused is refused with it.
                if script.views[*view].reads.iter().any(|r| !alive.contains(r)) {
                    shown.refused += 1;
                    continue;
                }
                match run(&mut session, &script.views[*view].create()).await {
                    Ok(_) => {
                        alive.push(*view);
                        shown.views += 1;
                    }
                    Err(e) if e.state().code() == "0A000" => {
                        shown.refused += 1;
                        if std::env::var("MILLSTREAM_SLT_VERBOSE").is_ok() {
                            eprintln!("refused: {e}\n  {}", script.views[*view].sql);
                        }
                    }
                    Err(e) => shown.failures.push(Failure::of(*view, format!("  not created: {}\n", told(&e)))),
                }
            }
            Step::Drop(view) => {
                if let Some(at) = alive.iter().position(|v| v == view) {
                    finish(beside.take(), &mut shown, &mut alive).await;
                    alive.remove(at.min(alive.len().saturating_sub(1)));
                    ok(&mut session, &format!("DROP MATERIALIZED VIEW {}", script.views[*view].name)).await;
                }
            }
            Step::Check => {
                finish(beside.take(), &mut shown, &mut alive).await;
                shown.checks += 1;
                // Views that are still starting have to be there before the transaction fixes its epoch.
                for view in &alive {
                    let catalog = instance.engine.catalog();
                    if let Some(relation) = catalog.relation_named("dev", "public", &script.views[*view].name) {
                        let _ = instance.engine.wait_ready(relation.oid).await;
                    }
                }
                let (mut reader, script, views) = (instance.session(), Arc::clone(script), alive.clone());
                // Another session sees what is complete, not what this one has written.
                ok(&mut reader, "FLUSH").await;
                let together = script.beside;
                beside = Some(tokio::spawn(async move { check(&mut reader, &script, &views).await }));
                if !together {
                    finish(beside.take(), &mut shown, &mut alive).await;
                }
            }
        }
    }
    finish(beside.take(), &mut shown, &mut alive).await;
    shown
}

/// Waits for a check; views that failed it are not checked again.
async fn finish(check: Option<Beside>, shown: &mut Shown, alive: &mut Vec<usize>) {
    let Some(check) = check else { return };
    match check.await {
        Ok((filled, failures)) => {
            shown.filled = filled;
            alive.retain(|v| !failures.iter().any(|f| f.view == Some(*v)));
            shown.failures.extend(failures);
        }
        Err(e) => shown.failures.push(Failure::general(format!("  the check panicked: {e}\n"))),
    }
}

/// One transaction.
pub async fn write(session: &mut Session, statements: &[String], commit: bool) -> Result<(), Failure> {
    ok(session, "BEGIN").await;
    for statement in statements {
        if let Err(e) = run(session, statement).await {
            ok(session, "ROLLBACK").await;
            // A changed key may meet another one.
            return match e.state().code() {
                "23505" => Ok(()),
                _ => Err(Failure::general(format!("  {statement}\n  failed: {}\n", told(&e)))),
            };
        }
    }
    ok(session, if commit { "COMMIT" } else { "ROLLBACK" }).await;
    Ok(())
}

/// Plays on a thread of the runtime, with a limit of time.
async fn attempt(script: Arc<Script>) -> Shown {
    let task = tokio::spawn(async move { play(&script).await });
    let what = match tokio::time::timeout(SCRIPT_TIME_MAX, task).await {
        Ok(Ok(shown)) => return shown,
        Ok(Err(e)) => format!("  panicked: {e}\n"),
        Err(_) => "  did not end in time\n".into(),
    };
    Shown { failures: vec![Failure::general(what)], ..Shown::default() }
}

/// The failure of a view, if the script still has one.
async fn failing(script: &Script) -> Option<Failure> {
    attempt(Arc::new(script.clone())).await.failures.into_iter().find(|f| f.view.is_some())
}

/// A smaller script in which a view fails, if one is found in time, and its failure.
async fn shrink(script: &Script, failure: Failure) -> (Script, Failure) {
    let began = Time::system().now_us();
    let mut best = (script.clone(), failure);
    let Some(view) = best.1.view else { return best };
    let alone = script.only(view);
    match failing(&alone).await {
        Some(failure) => best = (alone, failure),
        None => return best,
    }
    for slots in [1, 2, script.slots] {
        let smaller = Script { slots, beside: false, background: false, ..best.0.clone() };
        if let Some(failure) = failing(&smaller).await {
            best = (smaller, failure);
            break;
        }
    }
    let mut at = 0;
    while at < best.0.steps.len() && Time::system().now_us() - began < SHRINK_US_MAX {
        let mut smaller = best.0.clone();
        match &mut smaller.steps[at] {
            Step::Write { statements, .. } if statements.len() > 1 => {
                statements.pop();
            }
            Step::Write { .. } | Step::Check => {
                smaller.steps.remove(at);
            }
            Step::Create(_) | Step::Drop(_) => {
                at += 1;
                continue;
            }
        }
        match failing(&smaller).await {
            Some(failure) => best = (smaller, failure),
            None => at += 1,
        }
    }
    best
}

fn describe(script: &Script, failures: &[Failure]) -> String {
    let mut text = format!("random views, seed {}\n", script.seed);
    for failure in failures.iter().take(6) {
        if let Some(view) = failure.view {
            let _ = writeln!(text, "{}", script.views[view].create());
        }
        text.push_str(&failure.what);
    }
    text
}

fn report(script: &Script, failures: &[Failure], smallest: &Script, failure: &Failure) -> String {
    format!(
        "{}\nreplay: MILLSTREAM_SEED={seed} MILLSTREAM_SCRIPTS=1 cargo test --workspace --test it -- random_views\n\
         the smallest script found:\n{}{}",
        describe(script, failures),
        smallest.text(),
        failure.what,
        seed = script.seed,
    )
}

#[test]
fn random_views_hold_what_their_queries_answer() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .thread_stack_size(16 << 20)
        .build()
        .unwrap();
    let scripts = std::env::var("MILLSTREAM_SCRIPTS").ok().and_then(|n| n.parse().ok());
    let written = std::env::var("MILLSTREAM_SLT_OUT").ok();
    let verbose = std::env::var("MILLSTREAM_SLT_VERBOSE").is_ok();
    let first = seed();
    let began = Time::system().now_us();
    let total = runtime.block_on(async {
        let mut total = Shown::default();
        // A few queries are refused; those do not count.
        let seeds = (first..).take(scripts.unwrap_or(CASES / VIEWS + CASES / VIEWS / 8));
        let mut played = futures::stream::iter(seeds)
            .map(|seed| {
                let script = Arc::new(Script::random(seed, VIEWS));
                async move { (Arc::clone(&script), attempt(script).await) }
            })
            .buffered(2);
        while let Some((script, shown)) = played.next().await {
            if let Some(folder) = &written {
                std::fs::write(Path::new(folder).join(format!("random_{}.slt", script.seed)), script.slt()).unwrap();
            }
            if let Some(failure) = shown.failures.first().cloned() {
                if verbose {
                    eprintln!("{}", describe(&script, &shown.failures));
                } else {
                    drop(played);
                    let (smallest, failure) = shrink(&script, failure).await;
                    panic!("{}", report(&script, &shown.failures, &smallest, &failure));
                }
            }
            total.views += shown.views;
            total.filled += shown.filled;
            total.checks += shown.checks;
            total.refused += shown.refused;
            total.failures.extend(shown.failures);
            if scripts.is_none() && total.views >= CASES {
                break;
            }
        }
        total
    });
    let took = (Time::system().now_us() - began) / 1000;
    assert!(total.failures.is_empty(), "{} failures", total.failures.len());
    eprintln!("{total:?} in {took} ms");
    if scripts.is_none() {
        assert!(total.views >= CASES, "{total:?}");
        assert!(total.filled * 5 > total.views * 2, "enough views must have rows: {total:?}");
    }
}
