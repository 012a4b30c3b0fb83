//! `millstream server`: wires engine, Postgres wire and HTTP together and runs until a signal.

use std::sync::Arc;
use std::time::Duration;

use coord::engine::Replanner;
use coord::session::replan::StoredQueries;
use coord::{Engine, EngineConfig, Time};
use flow::{Error, Result, SqlState};
use frontend::FrontendConfig;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use crate::ServerArgs;
use crate::adapter::Server;
use crate::config::Config;
use crate::standing::Engines;

/// The stack of runtime threads: planning recurses over expressions.
const THREAD_STACK_BYTES: usize = 16 << 20;

/// Runs the server until SIGTERM or SIGINT.
pub fn run(args: &ServerArgs) -> Result<()> {
    let config = Config::load(args)?;
    if config.is_highly_available()? {
        return Err(Error::new(SqlState::InvalidParameterValue, "a server that is alone has no standby")
            .with_detail("high_availability is store, which is for the coordinators of a cluster.")
            .with_hint("Start millstream coordinator and workers, or set high_availability to none."));
    }
    crate::logging::install(&config.log_format, &config.log_level);
    let runtime = runtime()?;
    runtime.block_on(async {
        let stop = signals()?;
        serve(config, stop).await
    })
}

/// The runtime of everything that waits: sockets, timers, queries.
pub fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("server")
        .thread_stack_size(THREAD_STACK_BYTES)
        .build()
        .map_err(|e| Error::internal(format!("cannot start the runtime: {e}")))
}

/// Why a process is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// SIGTERM: somebody wants the process gone.
    Terminate,
    /// SIGINT, or the end of the standard input of a process that lives as long as who has started it: its work is not wanted any more.
    Cancel,
}

/// Turns true on the first SIGTERM or SIGINT.
pub fn signals() -> Result<watch::Receiver<bool>> {
    let mut told = told(None)?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        // The other sender is never gone.
        let _ = told.wait_for(|told| told.is_some()).await;
        sender.send_replace(true);
        // The task keeps the sender, or waiters would see it closed instead.
        std::future::pending::<()>().await;
    });
    Ok(receiver)
}

/// The first reason to stop. `input`: see [`input_ends`]; a process with one takes no SIGINT.
pub fn told(input: Option<oneshot::Receiver<()>>) -> Result<watch::Receiver<Option<Told>>> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |e: std::io::Error| Error::internal(format!("cannot listen for signals: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let (sender, receiver) = watch::channel(None);
    let owned = input.is_some();
    tokio::spawn(async move {
        let ends = async {
            match input {
                // An error means that the thread is gone, which reads no more.
                Some(input) => drop(input.await),
                None => std::future::pending().await,
            }
        };
        let told = tokio::select! {
            _ = terminate.recv() => Told::Terminate,
            // Ctrl-C goes to every process of the terminal; who has started this one passes on what is meant for it.
            _ = interrupt.recv(), if !owned => Told::Cancel,
            () = ends => Told::Cancel,
        };
        info!("shutting down");
        sender.send_replace(Some(told));
        std::future::pending::<()>().await;
    });
    Ok(receiver)
}

/// Resolves when the standard input ends. Who starts a process holds the other end: the process does not outlive it, however it ends.
pub fn input_ends() -> Result<oneshot::Receiver<()>> {
    let (sender, receiver) = oneshot::channel();
    let read = move || {
        // What comes is of no interest, and an error is an end.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = sender.send(());
    };
    // A thread that blocks in a read is no task of the runtime, which would wait for it.
    let thread = std::thread::Builder::new().name("input".into()).spawn(read);
    thread.map(|_| receiver).map_err(|e| Error::internal(format!("cannot start the thread that reads the input: {e}")))
}

/// How long a server that stops waits for its last checkpoint.
const LAST_CHECKPOINT_MAX: Duration = Duration::from_secs(10);

/// What an engine is opened with.
pub fn engine_config(config: &Config) -> Result<EngineConfig> {
    Ok(EngineConfig {
        data_dir: config.data_dir.clone(),
        slots: config.slot_count(),
        memory_limit: config.memory_bytes()?,
        batch_rows: config.batch_rows,
        time: Time::system(),
        disk: None,
        log_bytes_min: coord::compaction::LOG_BYTES_MIN,
        checkpoints: config.checkpoints()?,
        shared_log: None,
    })
}

/// Opens the engine of a server that has its slots itself, and starts its standing queries.
pub fn open_engine(config: &Config) -> Result<(Arc<Engine>, Arc<Server>)> {
    let engine = Engine::open(engine_config(config)?)?;
    let base = query::base_state(config.memory_bytes()?, config.slot_count())?;
    let replanner: Arc<dyn Replanner> = Arc::new(StoredQueries);
    engine.recover_jobs(&replanner);
    let engines = Arc::new(Engines::only(Arc::clone(&engine)));
    Ok((engine, Arc::new(Server::new(engines, base))))
}

pub async fn bind(what: &str, addr: std::net::SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|e| {
        Error::new(SqlState::ConnectionFailure, format!("cannot listen on {addr} for {what}: {e}"))
            .with_hint("Another server may run there; choose another address.")
    })
}

/// Serves until `stop` turns true.
pub async fn serve(config: Config, stop: watch::Receiver<bool>) -> Result<()> {
    let pg = bind("the Postgres wire", config.pg_addr).await?;
    let web = bind("HTTP", config.http_addr).await?;
    let (engine, server) = open_engine(&config)?;
    serve_clients(&config, pg, web, server, stop).await?;
    last_checkpoint(&engine).await;
    shut_down(engine).await
}

/// Answers clients until `stop` turns true.
pub async fn serve_clients(
    config: &Config,
    pg: TcpListener,
    web: TcpListener,
    server: Arc<Server>,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let metrics = crate::http::install_metrics()?;
    // A port of 0 was the system's to choose.
    let bound = |listener: &TcpListener, asked| listener.local_addr().unwrap_or(asked);
    info!(
        data_dir = %config.data_dir.display(),
        pg = %bound(&pg, config.pg_addr),
        http = %bound(&web, config.http_addr),
        slots = config.slot_count(),
        "{}",
        if server.engines().running().is_ok() { "millstream is ready" } else { "millstream listens for clients" }
    );
    let http = tokio::spawn(crate::http::serve(web, Arc::clone(&server), metrics, stop.clone()));
    let frontend = FrontendConfig { connections_max: config.max_connections, ..FrontendConfig::default() };
    let stopped = async move {
        // An error means that the sender is gone, which is a stop too.
        let _ = stop.wait_for(|s| *s).await;
    };
    frontend::serve(pg, server, frontend, stopped)
        .await
        .map_err(|e| Error::new(SqlState::ConnectionFailure, format!("Postgres wire: {e}")))?;
    let _ = http.await;
    Ok(())
}

/// What was done since the last checkpoint need not be done again at the next start. Nothing is lost without it. Returns whether there
/// is nothing to be done again, as far as checkpoints are kept.
pub async fn last_checkpoint(engine: &Arc<Engine>) -> bool {
    if engine.keeper().is_some() {
        match tokio::time::timeout(LAST_CHECKPOINT_MAX, engine.checkpoint()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                warn!(%error, "no checkpoint at the end");
                return false;
            }
            Err(_) => {
                warn!("no checkpoint at the end: it took too long");
                return false;
            }
        }
    }
    true
}

/// Stops an engine and waits for its threads.
pub async fn shut_down(engine: Arc<Engine>) -> Result<()> {
    tokio::task::spawn_blocking(move || engine.shutdown()).await.map_err(|e| Error::internal(format!("shutdown: {e}")))
}
