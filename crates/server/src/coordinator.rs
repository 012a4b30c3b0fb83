//! `millstream coordinator`: clients, catalog, tables, clock, sources and sinks of a cluster, whose slots are with workers.
//!
//! One engine after the other: when a worker is away, the engine stops and another one is opened on the same data, which goes
//! on from the log and the last durable checkpoint as after any start. Clients stay connected meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use checkpoint::DataDirectory;
use cluster::connection::Pulse;
use cluster::message::StorePlace;
use cluster::roster::Chosen;
use cluster::{Identity, Roster, RosterConfig, Slots};
use coord::engine::Replanner;
use coord::execution::Execution;
use coord::session::replan::StoredQueries;
use coord::{Engine, Time};
use flow::{Error, Result, SqlState};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::adapter::Server;
use crate::config::Config;
use crate::serve::{bind, engine_config, last_checkpoint, serve_clients, shut_down};
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
        let stop = crate::serve::signals()?;
        coordinate(config, stop).await
    })
}

/// What tells the data directory from every other one. Errors: `55006` another process owns it.
fn identity(config: &Config) -> Result<String> {
    let random = getrandom::u64().map_err(|e| Error::internal(format!("the system gives no random number: {e}")))?;
    DataDirectory::open(&config.data_dir)?.identity(random)
}

/// Where workers store the state of jobs.
fn store_place(config: &Config) -> Result<StorePlace> {
    if let Some((bucket, prefix)) = config.checkpoint_bucket()? {
        return Ok(StorePlace::S3 { bucket, prefix });
    }
    let absolute = |folder: &Path| {
        folder.canonicalize().map_err(|e| {
            Error::new(SqlState::IoError, format!("data directory \"{}\" is not found: {e}", folder.display()))
        })
    };
    Ok(StorePlace::Folder(absolute(&config.data_dir)?.join("checkpoints")))
}

async fn coordinate(config: Config, stop: watch::Receiver<bool>) -> Result<()> {
    let pg = bind("the Postgres wire", config.pg_addr).await?;
    let web = bind("HTTP", config.http_addr).await?;
    let listener = std::net::TcpListener::bind(config.cluster_addr).map_err(|e| {
        let message = format!("cannot listen on {} for workers: {e}", config.cluster_addr);
        Error::new(SqlState::ConnectionFailure, message)
            .with_hint("Another coordinator may run there; choose another cluster_addr.")
    })?;
    let cluster = identity(&config)?;
    let nonce = getrandom::u64().map_err(|e| Error::internal(format!("the system gives no random number: {e}")))?;
    let roster = Roster::listen(
        listener,
        RosterConfig {
            identity: Identity::new(Some(cluster), config.cluster_token.clone()),
            workers: config.cluster_workers,
            pulse: Pulse { heartbeat: config.heartbeat_interval()?, timeout: config.heartbeat_timeout()? },
            time: Time::system(),
            nonce,
        },
    )?;
    let base = query::base_state(config.memory_bytes()?, config.slot_count())?;
    let cause = roster.missing().unwrap_or_else(|| Error::new(SqlState::CannotConnectNow, "the coordinator starts"));
    let server = Arc::new(Server::new(Arc::new(Engines::none(cause)), base));
    let store = store_place(&config)?;
    info!(data_dir = %config.data_dir.display(), cluster = %roster.addr(), workers = config.cluster_workers, "the coordinator listens for workers");

    let (end, ended) = watch::channel(false);
    let driver =
        Driver { config: config.clone(), roster: Arc::clone(&roster), server: Arc::clone(&server), store, ended };
    let mut driving = tokio::spawn(driver.drive());
    let serving = serve_clients(&config, pg, web, server, stop);
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
    roster.close();
    outcome
}

/// Opens engines on the workers that are there.
struct Driver {
    config: Config,
    roster: Arc<Roster>,
    server: Arc<Server>,
    store: StorePlace,
    ended: watch::Receiver<bool>,
}

impl Driver {
    /// Errors: the data cannot be opened, for a cause that does not pass by itself.
    async fn drive(mut self) -> Result<()> {
        loop {
            let Some(chosen) = self.workers().await? else { return Ok(()) };
            let slots = Arc::new(Slots::new(&self.roster, chosen, self.store.clone()));
            let engine = match self.open(&slots).await {
                Ok(engine) => engine,
                Err(error) if matches!(error.state(), SqlState::CannotConnectNow | SqlState::ConnectionFailure) => {
                    warn!(%error, "the jobs cannot start; trying again");
                    self.server.engines().wait(error);
                    if self.pause(OPEN_REST).await {
                        return Ok(());
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.server.engines().run(Arc::clone(&engine));
            info!(slots = slots.count(), "millstream is ready");
            let Some(cause) = self.lost(&slots).await? else {
                last_checkpoint(&engine).await;
                return shut_down(engine).await;
            };
            engine.interrupt(&cause).await;
            tokio::time::sleep(INTERRUPT_GRACE).await;
            self.server.engines().wait(cause);
            shut_down(engine).await?;
        }
    }

    /// Sleeps; true: the server stops.
    async fn pause(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.ended.wait_for(|ended| *ended)).await.is_ok()
    }

    fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// The workers to run on, once there are enough. `None`: the server stops.
    async fn workers(&mut self) -> Result<Option<Vec<Chosen>>> {
        let mut told = None;
        loop {
            if self.has_ended() {
                return Ok(None);
            }
            let roster = Arc::clone(&self.roster);
            let chosen = spawn_blocking(move || roster.choose(LOOK)).await.map_err(joined)?;
            if chosen.is_some() {
                return Ok(chosen);
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
        let slots = Arc::clone(slots);
        let opened = spawn_blocking(move || {
            let execution = Arc::clone(&slots) as Arc<dyn Execution>;
            match Engine::open_with(config, execution) {
                Ok(engine) => {
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

    /// Waits until a worker is away, and says why the jobs stop. `None`: the server stops.
    async fn lost(&mut self, slots: &Arc<Slots>) -> Result<Option<Error>> {
        let session = slots.session().ok_or_else(|| Error::internal("an engine without slots"))?;
        loop {
            if self.has_ended() {
                return Ok(None);
            }
            let looked = Arc::clone(&session);
            if let Some(cause) = spawn_blocking(move || looked.wait_lost(LOOK)).await.map_err(joined)? {
                return Ok(Some(cause));
            }
        }
    }
}

fn joined(e: tokio::task::JoinError) -> Error {
    Error::internal(format!("a thread has failed: {e}"))
}
