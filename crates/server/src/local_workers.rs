//! Workers that a coordinator starts itself, as processes on its own machine.
//!
//! Law: they do not outlive it. Each has the other end of a pipe as its standard input and ends when that ends, so also when the
//! coordinator is killed. One that ends by itself is replaced, [`RESTARTS_MAX`] times; then the cluster waits for workers like any other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use flow::{Error, Result, SqlState};
use tracing::{error, info, warn};

use crate::config::Config;

/// How often one worker is replaced.
const RESTARTS_MAX: u32 = 10;
/// The rest before another one is started in its place.
const RESTART_REST: Duration = Duration::from_secs(1);

/// How they are started.
#[derive(Clone)]
pub struct Plan {
    pub workers: usize,
    /// Of each.
    pub slots: usize,
    /// Of each, in bytes.
    pub memory: usize,
    pub config_file: Option<PathBuf>,
}

pub struct LocalWorkers {
    places: Vec<Arc<Place>>,
    threads: Vec<JoinHandle<()>>,
}

/// Where one process after the other lives.
#[derive(Default)]
struct Place {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the process lives as long as.
    input: Option<ChildStdin>,
    ends: bool,
}

impl Place {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts a process unless all are to end.
    fn start(&self, command: &mut Command) -> Result<Option<Child>> {
        self.with(|state| {
            if state.ends {
                return Ok(None);
            }
            let mut child = command
                .spawn()
                .map_err(|e| Error::new(SqlState::IoError, format!("a local worker cannot be started: {e}")))?;
            state.input = child.stdin.take();
            Ok(Some(child))
        })
    }
}

impl LocalWorkers {
    /// Starts workers of the coordinator that listens at `coordinator`. Errors: `58030` a process or thread cannot be started.
    pub fn start(plan: &Plan, coordinator: SocketAddr, config: &Config) -> Result<LocalWorkers> {
        let program = std::env::current_exe()
            .map_err(|e| Error::new(SqlState::IoError, format!("this program does not know its own file: {e}")))?;
        // Others reach them where they reach the coordinator; nobody else is let in through an address that is open to all.
        let ip = match coordinator.ip() {
            ip if !ip.is_unspecified() => ip,
            _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let (coordinator, listens) = (SocketAddr::from((ip, coordinator.port())), SocketAddr::from((ip, 0)));
        let command = || {
            let mut command = Command::new(&program);
            command
                .args(["worker", "--until-input-ends"])
                .args(["--coordinator-addr", &coordinator.to_string(), "--worker-addr", &listens.to_string()])
                .args(["--slots", &plan.slots.to_string(), "--memory-limit", &plan.memory.to_string()])
                .args(["--log-format", &config.log_format, "--log-level", &config.log_level])
                .env("MILLSTREAM_CLUSTER_TOKEN", &config.cluster_token)
                // That is for coordinators; what it needs may have come by a flag that workers do not get.
                .env("MILLSTREAM_HIGH_AVAILABILITY", "none")
                .stdin(Stdio::piped())
                .stdout(Stdio::null());
            if let Some(file) = &plan.config_file {
                command.arg("--config").arg(file);
            }
            command
        };
        let mut workers = LocalWorkers { places: Vec::new(), threads: Vec::new() };
        for n in 1..=plan.workers {
            let (place, mut command) = (Arc::<Place>::default(), command());
            // The first of each is started here, so that one that cannot be is told at once.
            let Some(first) = place.start(&mut command)? else { continue };
            workers.places.push(Arc::clone(&place));
            let watch = move || replace(n, &place, first, &mut command);
            let thread = std::thread::Builder::new().name(format!("local-worker-{n}")).spawn(watch);
            workers.threads.push(thread.map_err(|e| Error::internal(format!("cannot start a thread: {e}")))?);
        }
        info!(workers = plan.workers, slots = plan.slots, "local workers are starting");
        Ok(workers)
    }

    /// Ends them, and waits until they have ended.
    pub fn stop(mut self) {
        self.let_go();
        for thread in std::mem::take(&mut self.threads) {
            if thread.join().is_err() {
                error!("the thread of a local worker has failed");
            }
        }
    }

    /// Tells them to end; they are not replaced any more.
    pub fn let_go(&self) {
        for place in &self.places {
            place.with(|state| {
                state.ends = true;
                state.input = None;
            });
        }
    }
}

impl Drop for LocalWorkers {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Waits for the end of one process after the other, until they are to end.
fn replace(n: usize, place: &Place, first: Child, command: &mut Command) {
    let mut child = first;
    for restart in 0.. {
        let ended = child.wait();
        if place.with(|state| state.ends) {
            return;
        }
        let status = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
        if restart == RESTARTS_MAX {
            error!(
                worker = n,
                status,
                restarts = RESTARTS_MAX,
                "a local worker ends again and again; it is not started any more"
            );
            return;
        }
        std::thread::sleep(RESTART_REST);
        match place.start(command) {
            Ok(Some(next)) => {
                warn!(worker = n, status, "a local worker has ended; another one is started");
                child = next;
            }
            Ok(None) => return,
            Err(error) => {
                error!(worker = n, %error, "no other local worker can be started");
                return;
            }
        }
    }
}
