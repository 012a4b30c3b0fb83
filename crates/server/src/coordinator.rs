//! `millstream coordinator`: clients, catalog, tables, clock, sources and sinks of a cluster, whose slots are with workers.
//!
//! One engine after the other: when a worker is away, the engine stops and another one is opened on the same data, which goes
//! on from the log and the last durable checkpoint as after any start: on all workers that are wanted if they come in time, else on those
//! that are left. So it is when a worker is stopped in order, or has come. Clients stay connected meanwhile.
//!
//! With `high_availability: store` several coordinators take turns ([`crate::leadership`]): the next one's engine is opened on
//! what the last one's has left in the store, in the same way.
//!
//! The cluster of an [application](crate::application) works on its script meanwhile, and ends with it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use checkpoint::DataDirectory;
use checkpoint::lease::Holder;
use cluster::connection::Pulse;
use cluster::message::StorePlace;
use cluster::roster::{Change, Chosen};
use cluster::{Identity, Roster, RosterConfig, Slots, Wanted};
use coord::engine::Replanner;
use coord::execution::Execution;
use coord::session::replan::StoredQueries;
use coord::{Engine, Time};
use flow::{Error, Result, SqlState};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::adapter::Server;
use crate::application::{Application, stopped};
use crate::config::{CheckpointPlace, Config};
use crate::leadership::{Leadership, reachable, standby};
use crate::local_workers::LocalWorkers;
use crate::serve::{Told, bind, engine_config, last_checkpoint, serve_clients, shut_down};
use crate::standing::Engines;
use crate::{ServerArgs, logging};

/// How often the state of the workers is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long statements have to hear that they are durable, before those that are left are cut off.
const INTERRUPT_GRACE: Duration = Duration::from_millis(200);
/// The rest before another engine is opened where the last one could not.
const OPEN_REST: Duration = Duration::from_secs(1);

/// Runs the coordinator until SIGTERM or SIGINT.
pub fn run(args: &ServerArgs) -> Result<()> {
    let config = Config::load(args)?;
    logging::install(&config.log_format, &config.log_level);
    crate::serve::runtime()?.block_on(async {
        let stop = crate::serve::told(None)?;
        coordinate(config, stop, None).await
    })
}

/// Where workers store the state of jobs.
fn store_place(config: &Config) -> Result<StorePlace> {
    match config.checkpoint_place()? {
        Some(CheckpointPlace::Bucket { bucket, prefix }) => return Ok(StorePlace::S3 { bucket, prefix }),
        Some(CheckpointPlace::Folder(folder)) => return Ok(StorePlace::Folder(folder)),
        None => {}
    }
    let absolute = |folder: &Path| {
        folder.canonicalize().map_err(|e| {
            Error::new(SqlState::IoError, format!("data directory \"{}\" is not found: {e}", folder.display()))
        })
    };
    Ok(StorePlace::Folder(absolute(&config.data_dir)?.join("checkpoints")))
}

/// Coordinates until it is told to stop, or until the application is over to which the cluster belongs.
pub async fn coordinate(
    config: Config,
    mut stop: watch::Receiver<Option<Told>>,
    application: Option<Arc<Application>>,
) -> Result<()> {
    if let Some(application) = &application
        && application.is_over().await?
    {
        return Ok(());
    }
    let pg = bind("the Postgres wire", config.pg_addr).await?;
    let web = bind("HTTP", config.http_addr).await?;
    let listener = std::net::TcpListener::bind(config.cluster_addr).map_err(|e| {
        let message = format!("cannot listen on {} for workers: {e}", config.cluster_addr);
        Error::new(SqlState::ConnectionFailure, message)
            .with_hint("Another coordinator may run there; choose another cluster_addr.")
    })?;
    let random = getrandom::u64().map_err(|e| Error::internal(format!("the system gives no random number: {e}")))?;
    let directory = DataDirectory::open(&config.data_dir)?;
    let own = directory.identity(random)?;
    let (cluster, leadership) = if config.is_highly_available()? {
        let failed = |e: std::io::Error| Error::internal(format!("a listener without an address: {e}"));
        let holder = Holder {
            id: own,
            pg_addr: reachable(pg.local_addr().map_err(failed)?),
            cluster_addr: reachable(listener.local_addr().map_err(failed)?),
        };
        let leadership = Arc::new(Leadership::open(&config, Arc::new(directory), holder).await?);
        (leadership.cluster().to_string(), Some(leadership))
    } else {
        // Each engine takes it for itself.
        drop(directory);
        (own, None)
    };
    let nonce = getrandom::u64().map_err(|e| Error::internal(format!("the system gives no random number: {e}")))?;
    let roster = Roster::listen(
        listener,
        RosterConfig {
            identity: Identity::new(Some(cluster), config.cluster_token.clone()),
            wanted: Wanted {
                workers: config.cluster_workers,
                least: config.cluster_workers_min,
                patience: config.worker_wait_timeout()?,
                settle: config.worker_stabilization_timeout()?,
            },
            pulse: Pulse { heartbeat: config.heartbeat_interval()?, timeout: config.heartbeat_timeout()? },
            time: Time::system(),
            steady: Time::steady(),
            nonce,
        },
    )?;
    let base = query::base_state(config.memory_bytes()?, config.slot_count())?;
    let starting = || Error::new(SqlState::CannotConnectNow, "the coordinator starts").with_hint("Try again.");
    let cause = match leadership {
        Some(_) => {
            // Until it is known who leads.
            roster.stand_by(Some(starting()));
            starting()
        }
        None => roster.missing().unwrap_or_else(starting),
    };
    let server = Arc::new(Server::new(Arc::new(Engines::none(cause)), base));
    let store = store_place(&config)?;
    info!(data_dir = %config.data_dir.display(), cluster = %roster.addr(), workers = config.cluster_workers, "the coordinator listens for workers");

    let local = application.as_ref().and_then(|application| application.local.clone());
    let local = local.map(|plan| LocalWorkers::start(&plan, roster.addr(), &config)).transpose()?;

    let (end, ended) = watch::channel(false);
    let driver = Driver {
        config: config.clone(),
        roster: Arc::clone(&roster),
        server: Arc::clone(&server),
        store,
        ended,
        leadership,
        lost: None,
        application: application.clone(),
    };
    let mut driving = tokio::spawn(driver.drive());
    // Clients are served as long as there is work.
    let (close, closing) = watch::channel(false);
    let serving = async {
        let served = serve_clients(&config, pg, web, Arc::clone(&server), closing);
        tokio::pin!(served);
        let work = async {
            match &application {
                Some(application) => application.work(&server, &mut stop).await,
                None => {
                    stopped(&mut stop).await;
                }
            }
        };
        tokio::select! {
            served = &mut served => return served,
            () = work => {}
        }
        close.send_replace(true);
        served.await
    };
    tokio::pin!(serving);
    let outcome = tokio::select! {
        served = &mut serving => {
            end.send_replace(true);
            let driven = driving.await.map_err(|e| Error::internal(format!("the driver of the jobs: {e}")));
            served.and(driven.and_then(|driven| driven))
        }
        // It ends by itself only where it cannot go on.
        driven = &mut driving => driven.map_err(|e| Error::internal(format!("the driver of the jobs: {e}")))?,
    };
    if let Some(local) = &local {
        local.let_go();
    }
    if application.as_ref().is_some_and(|application| application.has_ended()) {
        let over = Error::new(SqlState::InvalidAuthorization, "the application of this cluster has ended")
            .with_hint("Start the worker with the coordinator_addr of another cluster.");
        let roster = Arc::clone(&roster);
        spawn_blocking(move || roster.dismiss(over)).await.map_err(joined)?;
    }
    roster.close();
    if let Some(local) = local {
        spawn_blocking(move || local.stop()).await.map_err(joined)?;
    }
    outcome
}

/// Opens engines on the workers that are there.
struct Driver {
    config: Config,
    roster: Arc<Roster>,
    server: Arc<Server>,
    store: StorePlace,
    ended: watch::Receiver<bool>,
    /// `None`: there is no other coordinator.
    leadership: Option<Arc<Leadership>>,
    /// Why this coordinator leads no more, as far as its lease says so.
    lost: Option<watch::Receiver<Option<Error>>>,
    /// To which the cluster belongs.
    application: Option<Arc<Application>>,
}

/// Why a coordinator stops working.
enum End {
    /// The server stops.
    Stopped,
    /// Another coordinator leads, or the log has failed, which any of them can open again.
    Deposed(Error),
}

impl Driver {
    /// Errors: the data cannot be opened, for a cause that does not pass by itself.
    async fn drive(mut self) -> Result<()> {
        match self.leadership.clone() {
            Some(leadership) => self.take_turns(&leadership).await,
            None => self.lead().await.map(drop),
        }
    }

    /// Leads whenever it has the lease.
    async fn take_turns(&mut self, leadership: &Arc<Leadership>) -> Result<()> {
        let mut starts = true;
        loop {
            metrics::gauge!("millstream_leader").set(0.0);
            let (engines, roster) = (Arc::clone(self.server.engines()), Arc::clone(&self.roster));
            let stand_by = |leader: &Holder| {
                engines.stand_by(standby(leader));
                roster.stand_by(Some(standby(leader)));
            };
            let Some(number) = leadership.wait(starts, &mut self.ended.clone(), stand_by).await? else {
                return Ok(());
            };
            if let Some(application) = &self.application {
                match application.is_over().await {
                    Ok(false) => {}
                    Err(error) if error.may_pass() => {
                        warn!(%error, "it is not known whether the application has ended; asking again");
                        continue;
                    }
                    over => {
                        leadership.release().await;
                        return over.map(drop);
                    }
                }
            }
            info!("this coordinator leads");
            metrics::gauge!("millstream_leader").set(1.0);
            starts = false;
            engines.wait(Error::new(SqlState::CannotConnectNow, "the coordinator takes over").with_hint("Try again."));
            roster.stand_by(None);
            let (over, is_over) = watch::channel(false);
            let (tell, lost) = watch::channel(None);
            self.lost = Some(lost);
            let keeping = tokio::spawn(Arc::clone(leadership).keep(number, tell, is_over));
            let outcome = self.lead().await;
            over.send_replace(true);
            keeping.await.map_err(joined)?;
            match outcome {
                Ok(End::Deposed(cause)) => {
                    warn!(error = %cause, detail = cause.detail(), "this coordinator leads no more");
                    if let Some(engine) = engines.last() {
                        // Their clients are to look for the leader.
                        engine.sessions.end_all();
                    }
                    let gone = Error::new(SqlState::CannotConnectNow, cause.message());
                    engines.stand_by(gone.clone().with_hint("Connect with the addresses of all coordinators."));
                    roster.stand_by(Some(gone));
                }
                outcome => {
                    leadership.release().await;
                    return outcome.map(drop);
                }
            }
        }
    }

    /// Why to stop, if there is a reason to.
    fn end(&self) -> Option<End> {
        if *self.ended.borrow() {
            return Some(End::Stopped);
        }
        let lost = self.lost.as_ref().and_then(|lost| lost.borrow().clone());
        lost.map(End::Deposed)
    }

    /// Works until the server stops, or another coordinator leads. Errors: the data cannot be opened, for a cause that does not pass
    /// by itself.
    async fn lead(&mut self) -> Result<End> {
        loop {
            let chosen = match self.workers().await? {
                Ok(chosen) => chosen,
                Err(end) => return Ok(end),
            };
            let slots = Arc::new(Slots::new(&self.roster, chosen, self.store.clone()));
            let engine = match self.open(&slots).await {
                Ok(engine) => engine,
                Err(error) if self.may_open_later(&error) => {
                    warn!(%error, "the jobs cannot start; trying again");
                    self.server.engines().wait(error);
                    // In time or not.
                    let _ = tokio::time::timeout(OPEN_REST, self.ended.wait_for(|ended| *ended)).await;
                    continue;
                }
                Err(error) if self.leadership.is_some() && is_taken_over(&error) => return Ok(End::Deposed(error)),
                Err(error) => return Err(error),
            };
            // A later engine goes on from what this one leaves.
            self.config.from_savepoint = None;
            self.server.engines().run(Arc::clone(&engine));
            info!(slots = slots.count(), workers = slots.workers(), "millstream is ready");
            match self.until_stopped(&slots, &engine).await? {
                Stopped::Worker(cause) => {
                    if let Some(missing) = self.roster.missing() {
                        info!(detail = missing.detail(), "the jobs stop for workers");
                    }
                    self.interrupt(&engine, &cause).await;
                    tokio::time::sleep(INTERRUPT_GRACE).await;
                    self.server.engines().wait(cause);
                    shut_down(engine).await?;
                }
                Stopped::Change(change) => {
                    let cause = moves(change);
                    info!(detail = cause.detail(), "{}", cause.message());
                    self.interrupt(&engine, &cause).await;
                    tokio::time::sleep(INTERRUPT_GRACE).await;
                    self.server.engines().wait(cause);
                    self.roster.at_once();
                    shut_down(engine).await?;
                }
                Stopped::For(End::Stopped) => {
                    last_checkpoint(&engine).await;
                    shut_down(engine).await?;
                    return Ok(End::Stopped);
                }
                Stopped::For(End::Deposed(cause)) => {
                    // What is not in the log by now will not come to be in it.
                    engine.log.hurry();
                    engine.interrupt(&cause).await;
                    tokio::time::sleep(INTERRUPT_GRACE).await;
                    let told = Error::new(SqlState::CannotConnectNow, cause.message());
                    self.server.engines().wait(told.with_hint("Connect with the addresses of all coordinators."));
                    shut_down(engine).await?;
                    return Ok(End::Deposed(cause));
                }
            }
        }
    }

    /// Whether an engine that could not be opened may be opened later.
    fn may_open_later(&self, error: &Error) -> bool {
        // A store that is away comes back; a data directory is for a human to look at.
        let is_store = self.leadership.is_some() && error.may_pass();
        is_store || matches!(error.state(), SqlState::CannotConnectNow | SqlState::ConnectionFailure)
    }

    /// Lets the engine end what was begun. A server that stops waits for no store.
    async fn interrupt(&mut self, engine: &Arc<Engine>, cause: &Error) {
        let interrupted = engine.interrupt(cause);
        tokio::pin!(interrupted);
        tokio::select! {
            () = &mut interrupted => {}
            () = server_stops(&mut self.ended) => {
                engine.log.hurry();
                interrupted.await;
            }
        }
    }

    /// The workers to run on, once there are enough; or why to stop.
    async fn workers(&mut self) -> Result<Result<Vec<Chosen>, End>> {
        let mut told = None;
        loop {
            if let Some(end) = self.end() {
                return Ok(Err(end));
            }
            let roster = Arc::clone(&self.roster);
            if let Some(chosen) = spawn_blocking(move || roster.choose(LOOK)).await.map_err(joined)? {
                return Ok(Ok(chosen));
            }
            if let Some(cause) = self.roster.missing()
                && told.as_ref() != Some(&cause)
            {
                info!(detail = cause.detail(), "waiting for workers");
                self.server.engines().wait(cause.clone());
                told = Some(cause);
            }
        }
    }

    async fn open(&self, slots: &Arc<Slots>) -> Result<Arc<Engine>> {
        let mut config = engine_config(&self.config)?;
        config.slots = slots.count();
        config.shared_log = self.leadership.as_ref().map(|leadership| leadership.shared_log());
        let slots = Arc::clone(slots);
        let scripted = self.application.is_some();
        let opened = spawn_blocking(move || {
            let execution = Arc::clone(&slots) as Arc<dyn Execution>;
            match Engine::open_with(config, execution) {
                Ok(engine) => {
                    // The script lets them go.
                    engine.sources.pause(scripted);
                    let replanner: Arc<dyn Replanner> = Arc::new(StoredQueries);
                    engine.recover_jobs(&replanner);
                    Ok(engine)
                }
                Err(error) => {
                    slots.stop();
                    Err(error)
                }
            }
        });
        opened.await.map_err(joined)?
    }

    /// Waits until the engine is to stop, after a checkpoint where there is time for one.
    async fn until_stopped(&mut self, slots: &Arc<Slots>, engine: &Arc<Engine>) -> Result<Stopped> {
        loop {
            let stopped = self.stopped(slots, engine).await?;
            let Stopped::Change(change) = &stopped else { return Ok(stopped) };
            // The jobs work meanwhile.
            let is_kept = last_checkpoint(engine).await;
            if is_kept || matches!(change, Change::Leaves(_)) {
                return Ok(stopped);
            }
            self.roster.put_off();
        }
    }

    /// Waits until there is a reason to stop the engine.
    async fn stopped(&mut self, slots: &Arc<Slots>, engine: &Arc<Engine>) -> Result<Stopped> {
        let session = slots.session().ok_or_else(|| Error::internal("an engine without slots"))?;
        loop {
            if let Some(end) = self.end() {
                return Ok(Stopped::For(end));
            }
            if self.leadership.is_some()
                && let Err(failed) = engine.log.check()
            {
                return Ok(Stopped::For(End::Deposed(failed)));
            }
            let looked = Arc::clone(&session);
            if let Some(cause) = spawn_blocking(move || looked.wait_lost(LOOK)).await.map_err(joined)? {
                return Ok(Stopped::Worker(cause));
            }
            if let Some(change) = self.roster.change() {
                return Ok(Stopped::Change(change));
            }
        }
    }
}

/// Why an engine stops.
enum Stopped {
    /// A worker is away, for this cause.
    Worker(Error),
    /// The jobs are to move to other workers.
    Change(Change),
    For(End),
}

/// What statements are told while jobs move to other workers.
fn moves(change: Change) -> Error {
    let (what, detail) = match change {
        Change::Leaves(worker) => {
            ("a worker leaves the cluster", format!("Worker {worker} is being stopped; the jobs move to the others."))
        }
        Change::Joined(workers) => {
            ("the jobs spread over more workers", format!("So many have come, and have stayed: {workers}."))
        }
    };
    Error::new(SqlState::CannotConnectNow, what).with_detail(detail).with_hint("Try again: the jobs go on in a moment.")
}

/// Whether an engine cannot be opened because another coordinator has opened one.
fn is_taken_over(error: &Error) -> bool {
    matches!(error.state(), SqlState::ObjectInUse | SqlState::AdminShutdown)
}

/// Resolves when the server is to stop.
async fn server_stops(ended: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop too.
    let _ = ended.wait_for(|ended| *ended).await;
}

fn joined(e: tokio::task::JoinError) -> Error {
    Error::internal(format!("a thread has failed: {e}"))
}
