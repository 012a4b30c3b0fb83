//! `millstream run --cluster FILE.sql`: a cluster that belongs to one script. This process is the coordinator, plans the statements and runs
//! them one after the other; when all of them are done and their inputs are at their end, or the script has failed or is cancelled,
//! the jobs end, the workers are told to end, and the process ends with a code that says how it went.
//!
//! Law: a statement is carried out once, whatever dies meanwhile. Which ones are done stands in a table ([`PROGRESS`]) of the
//! application's own catalog: a statement that may be part of a transaction is noted in the same one, any other before it begins
//! and after it. An engine that takes another's place (a worker was away, or another coordinator has died) begins behind the last statement
//! that is noted. A statement that was begun and is not noted as done has happened if it now says that what it makes is there already,
//! or that what it takes away is gone.
//!
//! Where the data stay (`--data-dir`, `checkpoint_url`), two objects beside the checkpoints say whose they are: [`SCRIPT`] is the text, and
//! [`END`] how it has ended. Whoever starts the same script on them later ends in the same way at once.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::util::display::array_value_to_string;
use catalog::RelationKind;
use checkpoint::door::{Door, PutNew};
use checkpoint::local::LocalStore;
use checkpoint::names::{APPLICATION_END as END, APPLICATION_SCRIPT as SCRIPT};
use coord::session::define::transactional;
use coord::session::transaction::Status;
use coord::session::{Outcome as Answer, Session};
use coord::{Engine, job::Phase};
use flow::{Epoch, Error, Result, SqlState};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use sql::statement::{Discard, Parsed, Statement};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::adapter::Server;
use crate::config::Config;
use crate::local_workers::Plan;
use crate::run::{finish_inputs, line_of, located, show_notices, statement, worded};
use crate::serve::{Told, input_ends, runtime, told};
use crate::{RunArgs, coordinator, logging};

/// The schema of the application's own table, and the table: the number of each statement, from 1, and `begun` or `done`.
const SCHEMA: &str = "ms_application";
const PROGRESS: &str = "ms_application.statements";
/// Where the script is run, and as whom.
const DATABASE: &str = "dev";
const USER: &str = "millstream";

/// Cancelled: what a shell says of a process that SIGINT has ended.
pub const CODE_CANCELLED: u8 = 130;
/// Stopped, and another coordinator goes on: what a shell says of SIGTERM.
const CODE_STOPPED: u8 = 143;
/// Too few workers in time.
pub const CODE_NO_WORKERS: u8 = 3;

/// How often it is looked whether everything has ended.
const LOOK: Duration = Duration::from_millis(100);
/// How long an error that a lost worker may have caused waits for the news that one is lost.
const NEWS_TIME_MAX: Duration = Duration::from_secs(5);
/// How long sinks that deliver exactly once may take to publish what the last checkpoint holds.
const PUBLISH_TIME_MAX: Duration = Duration::from_secs(60);

/// How a script ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum End {
    Finished,
    Failed(Error),
    Cancelled,
}

impl End {
    fn name(&self) -> &'static str {
        match self {
            End::Finished => "finished",
            End::Failed(_) => "failed",
            End::Cancelled => "cancelled",
        }
    }
}

/// How this process ends.
#[derive(Clone, Debug)]
enum Outcome {
    /// The script has ended, here or before.
    Ended(End),
    /// Another coordinator goes on.
    Stopped,
    /// There were too few workers for too long.
    NoWorkers(Error),
    /// The data are not this application's; nothing was touched.
    Refused(Error),
}

/// One script, over all engines that run it.
pub struct Application {
    text: String,
    quiet: bool,
    workers_timeout: Duration,
    /// Another coordinator may go on.
    highly_available: bool,
    /// Workers that this process starts.
    pub local: Option<Plan>,
    /// The data are left behind when the script has ended.
    stays: bool,
    config: Config,
    outcome: Mutex<Option<Outcome>>,
}

/// Runs the script and says with which code the process is to end. Errors: what has failed.
pub fn run(args: &RunArgs, text: String) -> Result<u8> {
    // What cannot be read needs no cluster.
    sql::parse(&text, &sql::Limits::default()).map_err(|e| located(e, &text))?;
    let own = args.data_dir.is_none().then(|| folder_of_this_process("application"));
    let data_dir = args.data_dir.clone().or_else(|| own.clone()).unwrap_or_default();
    let config = Config::load(&args.server(data_dir))?;
    logging::install(&config.log_format, &config.log_level);
    let application = Arc::new(Application::new(args, text, config.clone())?);
    let input = args.until_input_ends.then(input_ends).transpose()?;
    let outcome = runtime()?.block_on(async {
        let stop = told(input)?;
        coordinator::coordinate(config, stop, Some(Arc::clone(&application))).await
    });
    if let Some(own) = own {
        // The data belong to this run alone.
        let _ = std::fs::remove_dir_all(&own);
    }
    let told = application.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (outcome, told) {
        (_, Some(Outcome::Ended(End::Failed(error)) | Outcome::Refused(error))) => Err(error),
        (Err(error), _) => Err(error),
        (Ok(()), Some(Outcome::Ended(End::Finished))) => Ok(0),
        (Ok(()), Some(Outcome::Ended(End::Cancelled))) => Ok(CODE_CANCELLED),
        (Ok(()), Some(Outcome::NoWorkers(error))) => {
            crate::tell(&error);
            Ok(CODE_NO_WORKERS)
        }
        (Ok(()), Some(Outcome::Stopped) | None) => Ok(CODE_STOPPED),
    }
}

/// A folder for what belongs to this process alone.
pub fn folder_of_this_process(purpose: &str) -> PathBuf {
    std::env::temp_dir().join(format!("millstream-{purpose}-{}", std::process::id()))
}

/// Resolves when the process is told to stop.
pub async fn stopped(stop: &mut watch::Receiver<Option<Told>>) -> Told {
    match stop.wait_for(|told| told.is_some()).await {
        Ok(told) => told.unwrap_or(Told::Terminate),
        // The sender is gone, which is a stop too.
        Err(_) => Told::Terminate,
    }
}

impl Application {
    fn new(args: &RunArgs, text: String, config: Config) -> Result<Application> {
        let local = args.workers.filter(|workers| *workers > 0).map(|workers| {
            let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
            let memory =
                config.memory_bytes().map(|all| if args.memory_limit.is_some() { all } else { all / (workers + 1) });
            memory.map(|memory| Plan {
                workers,
                slots: args.slots.unwrap_or((cores / workers).max(1)),
                memory,
                config_file: args.config.clone(),
            })
        });
        let local = local.transpose()?;
        if let Some(plan) = local.as_ref().filter(|plan| plan.workers > cluster::roster::WORKERS_MAX) {
            let message =
                format!("{} workers are too many; the most is {}", plan.workers, cluster::roster::WORKERS_MAX);
            return Err(
                Error::new(SqlState::InvalidParameterValue, message).with_hint("Give fewer of them more --slots.")
            );
        }
        let others = config.cluster_workers > local.as_ref().map_or(0, |plan| plan.workers);
        if local.is_some() && others && config.cluster_addr.ip().is_unspecified() {
            let message = "workers of other machines would not reach those of this one";
            return Err(Error::new(SqlState::InvalidParameterValue, message)
                .with_detail(format!(
                    "cluster_addr is {}, so the workers of this machine are on loopback.",
                    config.cluster_addr
                ))
                .with_hint("Set cluster_addr to the address of this machine that the others know."));
        }
        Ok(Application {
            text,
            quiet: args.quiet,
            workers_timeout: config.workers_timeout()?,
            highly_available: config.is_highly_available()?,
            local,
            stays: args.data_dir.is_some() || config.checkpoint_place()?.is_some(),
            config,
            outcome: Mutex::default(),
        })
    }

    /// Whether the script has ended, so that the cluster is over.
    pub fn has_ended(&self) -> bool {
        matches!(*self.outcome.lock().unwrap_or_else(PoisonError::into_inner), Some(Outcome::Ended(_)))
    }

    fn set(&self, outcome: Outcome) {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(outcome);
    }

    /// The way to what lies beside the checkpoints. `None`: nothing lies there yet.
    fn door(&self) -> Result<Option<Door>> {
        match self.config.door(LocalStore::share) {
            Ok(door) => Ok(Some(door)),
            Err(error) if error.state() == SqlState::UndefinedFile => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks the store on a thread that may block.
    async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        ask: impl FnOnce(&Application) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let application = Arc::clone(self);
        spawn_blocking(move || ask(&application))
            .await
            .map_err(|e| Error::internal(format!("a thread has failed: {e}")))?
    }

    /// Whether there is nothing to do: the script has ended before, or the data are another's. Then it is known how this process ends.
    /// Errors: the store does not answer.
    pub async fn is_over(self: &Arc<Self>) -> Result<bool> {
        if !self.stays {
            return Ok(false);
        }
        let found = self.ask(|application| {
            let Some(door) = application.door()? else { return Ok(None) };
            application.check_script(door.get(SCRIPT)?.as_deref())?;
            door.get(END)
        });
        let found = match found.await {
            Err(error) if error.state() == SqlState::ObjectNotInPrerequisiteState => {
                self.set(Outcome::Refused(error));
                return Ok(true);
            }
            found => found?,
        };
        let Some(found) = found else { return Ok(false) };
        let end: End = serde_json::from_slice(&found)
            .map_err(|e| Error::new(SqlState::DataCorrupted, format!("the object \"{END}\" cannot be read: {e}")))?;
        info!(
            end = end.name(),
            "the application has ended here before; give it another data directory to run it again"
        );
        self.set(Outcome::Ended(end));
        Ok(true)
    }

    fn check_script(&self, found: Option<&[u8]>) -> Result<()> {
        match found {
            Some(found) if found != self.text.as_bytes() => {
                Err(Error::new(SqlState::ObjectNotInPrerequisiteState, "the data are those of another application")
                    .with_detail("Another script was started on this data directory, or on this checkpoint_url.")
                    .with_hint("Give each application a data directory and a checkpoint_url of its own."))
            }
            _ => Ok(()),
        }
    }

    /// Notes whose data these are.
    fn note_script(&self) -> Result<()> {
        let Some(door) = self.door()? else { return Ok(()) };
        match door.put_new(SCRIPT, self.text.as_bytes())? {
            PutNew::Created => Ok(()),
            PutNew::Exists(found) => self.check_script(Some(&found.payload)),
        }
    }

    fn note_end(&self, end: &End) -> Result<()> {
        let Some(door) = self.door()? else { return Ok(()) };
        let bytes = serde_json::to_vec(end).map_err(|e| Error::internal(format!("write the end: {e}")))?;
        // Only one coordinator leads; what is there already is its own.
        door.put_new(END, &bytes).map(drop)
    }

    /// Runs the script on one engine after the other, until it has ended or the process is told to stop.
    pub async fn work(self: &Arc<Self>, server: &Arc<Server>, stop: &mut watch::Receiver<Option<Told>>) {
        let outcome = tokio::select! {
            outcome = self.run(server) => outcome,
            told = stopped(stop) => {
                // Another coordinator can go on; a standby has nothing to cancel.
                if self.highly_available && (told == Told::Terminate || server.engines().running().is_err()) {
                    Outcome::Stopped
                } else {
                    Outcome::Ended(End::Cancelled)
                }
            }
        };
        let outcome = match outcome {
            Outcome::Ended(end) => self.conclude(server, end).await,
            other => other,
        };
        self.set(outcome);
    }

    async fn run(self: &Arc<Self>, server: &Arc<Server>) -> Outcome {
        loop {
            let engine = match server.engines().ready(self.workers_timeout).await {
                Ok(engine) => engine,
                Err(_) if server.engines().is_standby() => {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                Err(error) => return Outcome::NoWorkers(self.too_late(&error)),
            };
            let done = tokio::select! {
                done = self.script(server, &engine) => done,
                cause = server.engines().interrupted(&engine) => {
                    info!(%cause, "the script waits");
                    continue;
                }
            };
            match done {
                Ok(()) => return Outcome::Ended(End::Finished),
                Err(Stop::Foreign(error)) => return Outcome::Refused(error),
                Err(Stop::Failed(error)) => {
                    if may_be_lost(&error) && self.is_interrupted(server, &engine).await {
                        continue;
                    }
                    return Outcome::Ended(End::Failed(error));
                }
            }
        }
    }

    fn too_late(&self, error: &Error) -> Error {
        let message = format!("{} (the application has waited {} s)", error.message(), self.workers_timeout.as_secs());
        worded(error, message)
    }

    /// Whether the engine turns out to have been interrupted.
    async fn is_interrupted(&self, server: &Arc<Server>, engine: &Arc<Engine>) -> bool {
        tokio::time::timeout(NEWS_TIME_MAX, server.engines().interrupted(engine)).await.is_ok()
    }

    /// Runs what is left of the script on one engine.
    async fn script(self: &Arc<Self>, server: &Arc<Server>, engine: &Arc<Engine>) -> std::result::Result<(), Stop> {
        if self.stays {
            self.ask(|application| application.note_script()).await.map_err(|error| match error.state() {
                SqlState::ObjectNotInPrerequisiteState => Stop::Foreign(error),
                _ => Stop::Failed(error),
            })?;
        }
        let mut session = server.session(engine, USER, DATABASE, 0);
        let progress = Progress::read(&mut session, engine).await?;
        if progress.done > 0 {
            info!(statement = progress.done + 1, "the script goes on");
        }
        let statements = session.parse(&self.text).map_err(|e| located(e, &self.text))?;
        for (n, parsed) in statements.into_iter().enumerate() {
            let number = n + 1;
            if number <= progress.done {
                if sets_session(&parsed.statement) {
                    run_quietly(&mut session, parsed).await?;
                }
                continue;
            }
            if matches!(parsed.statement, Statement::Query(_)) {
                finish_inputs(engine, self.quiet).await?;
            }
            let line = line_of(&self.text, parsed.position);
            let begun = progress.begun == number;
            step(&mut session, number, begun, parsed).await.map_err(|error| {
                // Its own position says more than that of the statement.
                let line = error.position().map_or(line, |position| line_of(&self.text, position.saturating_sub(1)));
                worded(&error, format!("statement {number}, line {line}: {}", error.message()))
            })?;
            show_notices(&mut session);
        }
        drop(session);
        finish(engine).await?;
        Ok(())
    }

    /// Ends the jobs, and notes how the script has ended. A script that is over on this engine is so on the next one too.
    async fn conclude(self: &Arc<Self>, server: &Arc<Server>, end: End) -> Outcome {
        loop {
            // Who is cancelled before there were workers has no jobs.
            let engine = match (&end, server.engines().running()) {
                (_, Ok(engine)) => engine,
                (End::Cancelled, Err(_)) if server.engines().last().is_none() => break,
                _ => match server.engines().ready(self.workers_timeout).await {
                    Ok(engine) => engine,
                    Err(_) if self.highly_available && server.engines().is_standby() => return Outcome::Stopped,
                    Err(error) => {
                        warn!(%error, "the jobs cannot be ended in order");
                        break;
                    }
                },
            };
            if end == End::Finished {
                engine.end_tables();
            }
            let dropped = tokio::select! {
                dropped = drop_jobs(server, &engine) => dropped,
                _ = server.engines().interrupted(&engine) => continue,
            };
            let Err(error) = dropped else { break };
            if !(may_be_lost(&error) && self.is_interrupted(server, &engine).await) {
                warn!(%error, "the jobs cannot be ended in order");
                break;
            }
        }
        if self.stays {
            let noted = end.clone();
            if let Err(error) = self.ask(move |application| application.note_end(&noted)).await {
                warn!(%error, "it cannot be noted how the script has ended");
            }
        }
        info!(end = end.name(), "the application has ended");
        Outcome::Ended(end)
    }
}

/// Why a script does not go on.
enum Stop {
    Failed(Error),
    /// The data are not this application's.
    Foreign(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

/// Whether a lost worker, or another coordinator, may be the cause.
fn may_be_lost(error: &Error) -> bool {
    matches!(
        error.state(),
        SqlState::CannotConnectNow
            | SqlState::AdminShutdown
            | SqlState::SerializationFailure
            | SqlState::ConnectionFailure
    )
}

/// How far the script has come.
struct Progress {
    /// Number of the last statement that is done; 0: none.
    done: usize,
    /// Number of the last one that was begun; 0: none.
    begun: usize,
}

impl Progress {
    /// Reads it, and makes the table if there is none. Errors: the catalog is that of a server.
    async fn read(session: &mut Session, engine: &Arc<Engine>) -> std::result::Result<Progress, Stop> {
        let catalog = engine.catalog();
        if catalog.relation_named(DATABASE, SCHEMA, "statements").is_none() {
            if let Some(found) = catalog.relations().next() {
                let name = found.qualified_name();
                return Err(Stop::Foreign(
                    Error::new(SqlState::ObjectNotInPrerequisiteState, "the data directory is that of a server")
                        .with_detail(format!("It has {} {name}, which no application has made.", found.kind().noun()))
                        .with_hint("Give the application a data directory and a checkpoint_url of its own."),
                ));
            }
            let make = format!(
                "BEGIN; CREATE SCHEMA IF NOT EXISTS {SCHEMA}; CREATE TABLE {PROGRESS} (number int PRIMARY KEY, state text NOT NULL); COMMIT"
            );
            rows(session, &make).await?;
        }
        let mut progress = Progress { done: 0, begun: 0 };
        for batch in rows(session, &format!("SELECT number, state FROM {PROGRESS}")).await? {
            for row in 0..batch.num_rows() {
                let number = array_value_to_string(batch.column(0), row).map_err(Error::from)?;
                let number: usize =
                    number.parse().map_err(|_| Error::internal(format!("a statement has the number {number}")))?;
                let state = array_value_to_string(batch.column(1), row).map_err(Error::from)?;
                let newest = if state == "done" { &mut progress.done } else { &mut progress.begun };
                *newest = number.max(*newest);
            }
        }
        Ok(progress)
    }
}

/// Runs statements and gives the rows of the last one.
async fn rows(session: &mut Session, text: &str) -> Result<Vec<RecordBatch>> {
    let mut last = Vec::new();
    for parsed in session.parse(text)? {
        let prepared = session.prepare(&Arc::new(parsed), &[]).await?;
        last = match session.execute(&prepared, &[]).await? {
            Answer::Rows { rows, .. } => rows.try_collect().await?,
            _ => Vec::new(),
        };
    }
    session.take_notices();
    Ok(last)
}

async fn run_quietly(session: &mut Session, parsed: Parsed) -> Result<()> {
    let prepared = session.prepare(&Arc::new(parsed), &[]).await?;
    session.execute(&prepared, &[]).await?;
    session.take_notices();
    Ok(())
}

/// Whether a statement is carried out again for a session that takes another's place.
fn sets_session(statement: &Statement) -> bool {
    match statement {
        Statement::Set(set) => !set.local,
        Statement::SetTransaction { session, .. } => *session,
        Statement::Reset(_) | Statement::Prepare { .. } | Statement::Deallocate(_) | Statement::Discard(_) => true,
        _ => false,
    }
}

/// Whether a statement concerns the session alone.
fn is_of_session(statement: &Statement) -> bool {
    sets_session(statement)
        || matches!(
            statement,
            Statement::Set(_)
                | Statement::SetTransaction { .. }
                | Statement::DeclareCursor(_)
                | Statement::CloseCursor(_)
                | Statement::Unlisten
                | Statement::Begin(_)
        )
}

/// Whether a statement only reads.
fn reads(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::Query(_)
            | Statement::Show(_)
            | Statement::Explain(_)
            | Statement::Fetch(_)
            | Statement::Subscribe(_)
    )
}

/// Whether a statement cannot be noted in its own transaction.
fn stands_alone(statement: &Statement) -> bool {
    match statement {
        Statement::Flush
        | Statement::Checkpoint
        | Statement::CreateSavepoint(_)
        | Statement::DropSavepoint { .. }
        | Statement::Maintain { .. } => true,
        Statement::Discard(what) => *what == Discard::All,
        statement => !transactional(statement),
    }
}

/// Carries out one statement and notes it. `begun`: it may have happened already.
async fn step(session: &mut Session, number: usize, begun: bool, parsed: Parsed) -> Result<()> {
    let done =
        format!("INSERT INTO {PROGRESS} VALUES ({number}, 'done') ON CONFLICT (number) DO UPDATE SET state = 'done'");
    if session.transaction_status() != Status::Idle {
        if matches!(parsed.statement, Statement::Commit { .. }) {
            rows(session, &done).await?;
            return statement(session, parsed).await;
        }
        let rolls_back = matches!(parsed.statement, Statement::Rollback { .. });
        statement(session, parsed).await?;
        if rolls_back && session.transaction_status() == Status::Idle {
            rows(session, &done).await?;
        }
        return Ok(());
    }
    if is_of_session(&parsed.statement) {
        return statement(session, parsed).await;
    }
    if reads(&parsed.statement) {
        statement(session, parsed).await?;
        return rows(session, &done).await.map(drop);
    }
    if stands_alone(&parsed.statement) {
        rows(session, &format!("INSERT INTO {PROGRESS} VALUES ({number}, 'begun') ON CONFLICT (number) DO NOTHING"))
            .await?;
        match statement(session, parsed).await {
            Err(error) if begun && has_happened(&error) => info!(number, %error, "the statement had happened"),
            outcome => outcome?,
        }
        return rows(session, &done).await.map(drop);
    }
    rows(session, "BEGIN").await?;
    statement(session, parsed).await?;
    rows(session, &format!("{done}; COMMIT")).await.map(drop)
}

/// Whether a statement that was begun before says by its error that it has happened.
fn has_happened(error: &Error) -> bool {
    matches!(
        error.state(),
        SqlState::DuplicateTable
            | SqlState::DuplicateObject
            | SqlState::DuplicateDatabase
            | SqlState::UndefinedTable
            | SqlState::UndefinedObject
            | SqlState::InvalidCatalogName
    )
}

/// Waits until the inputs of all jobs are at their end and everything that follows from them is done. Errors: a source or job has failed.
async fn finish(engine: &Arc<Engine>) -> Result<()> {
    engine.clock.let_sources_wait();
    engine.sources.pause(false);
    let mut told = false;
    loop {
        let (mut open, mut endless) = (false, Vec::new());
        for handle in engine.sources.all() {
            let status = handle.status();
            if let Some(failed) = status.failed {
                return Err(failed);
            }
            if status.consumers > 0 && status.ended.is_none() {
                open = true;
                if !status.bounded {
                    endless.push(handle.relation);
                }
            }
        }
        for (relation, job) in engine.clock.board.all() {
            if let Phase::Failed(cause) = &job.phase {
                return Err(engine.failed_view(relation, cause));
            }
        }
        if !open {
            break;
        }
        if !told && !endless.is_empty() {
            let catalog = engine.catalog();
            let names: Vec<&str> =
                endless.iter().filter_map(|oid| Some(catalog.relation(*oid)?.name.as_str())).collect();
            info!(
                sources = names.join(", "),
                "sources do not end by themselves: the application runs until it is cancelled"
            );
            told = true;
        }
        tokio::time::sleep(LOOK).await;
    }
    engine.flush().await?;
    let kept = match engine.keeper() {
        // Sinks that deliver exactly once publish what a checkpoint holds.
        Some(_) => Some(engine.checkpoint().await?),
        None => None,
    };
    engine.wait_bounded().await?;
    if let Some(kept) = kept {
        wait_published(engine, kept).await?;
    }
    Ok(())
}

/// Waits until every sink that delivers exactly once has published everything up to `epoch`.
async fn wait_published(engine: &Arc<Engine>, epoch: Epoch) -> Result<()> {
    let mut waited = Duration::ZERO;
    for relation in engine.catalog().relations().filter(|relation| relation.kind() == RelationKind::Sink) {
        if engine.sinks.identity(relation.oid).is_none() {
            continue;
        }
        while engine.sinks.status(relation.oid).is_some_and(|status| status.published < epoch) {
            if let Some(cause) = engine.clock.board.failure(relation.oid) {
                return Err(engine.failed_view(relation.oid, &cause));
            }
            if waited > PUBLISH_TIME_MAX {
                let message = format!("sink \"{}\" does not publish what it was given", relation.name);
                return Err(Error::new(SqlState::IoError, message)
                    .with_detail(format!("It was waited for for {} s.", PUBLISH_TIME_MAX.as_secs()))
                    .with_hint("Look at its target; the rows are in the last checkpoint."));
            }
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
    }
    Ok(())
}

/// Drops all sinks and materialized views, so that each has a record of its end.
async fn drop_jobs(server: &Arc<Server>, engine: &Arc<Engine>) -> Result<()> {
    for (kind, noun) in [(RelationKind::Sink, "SINK"), (RelationKind::MaterializedView, "MATERIALIZED VIEW")] {
        let mut jobs: Vec<(String, String)> = Vec::new();
        for relation in engine.catalog().relations().filter(|relation| relation.kind() == kind) {
            jobs.push((relation.database.clone(), sql::Name::qualified(&relation.schema, &relation.name).to_string()));
        }
        jobs.sort();
        for group in jobs.chunk_by(|a, b| a.0 == b.0) {
            let names: Vec<&str> = group.iter().map(|(_, name)| name.as_str()).collect();
            let mut session = server.session(engine, USER, &group[0].0, 0);
            rows(&mut session, &format!("DROP {noun} IF EXISTS {} CASCADE", names.join(", "))).await?;
        }
    }
    Ok(())
}
