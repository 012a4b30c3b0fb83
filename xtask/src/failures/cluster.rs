//! The processes: two coordinators and three workers, each on a machine of its own, over one folder that all of them see.
//!
//! The folder stands for a store that is always there: what a store does that is away, slow or full is for the simulation to find out. A
//! leader that cannot reach it for a while is a leader that is stopped for as long.

use std::fs::{self, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::net::{COORDINATORS, NAMES, Net, Seat, WORKERS, address};
use crate::bench::measure::{ms_since, now};
use crate::bench::server::fsck;
use crate::bench::{Error, Result};

/// Settings of the cluster, as the names of their variables say. The times are as short as two busy cores allow.
const SETTINGS: [(&str, &str); 10] = [
    ("MILLSTREAM_HIGH_AVAILABILITY", "store"),
    ("MILLSTREAM_CHECKPOINT_INTERVAL", "500ms"),
    ("MILLSTREAM_CLUSTER_TOKEN", "a token of the rig"),
    ("MILLSTREAM_CLUSTER_WORKERS", "3"),
    ("MILLSTREAM_HEARTBEAT_INTERVAL", "400ms"),
    ("MILLSTREAM_HEARTBEAT_TIMEOUT", "4s"),
    ("MILLSTREAM_WORKER_WAIT_TIMEOUT", "2s"),
    ("MILLSTREAM_WORKER_STABILIZATION_TIMEOUT", "3s"),
    ("MILLSTREAM_MEMORY_LIMIT", "512MiB"),
    ("MILLSTREAM_LOG_LEVEL", "info"),
];
/// After such a silence a node counts as away; what is to be noticed must last longer.
pub const SILENCE: Duration = Duration::from_secs(4);
pub const WORKERS_WANTED: usize = 3;
/// Below a worker that has it, a process ends at this point.
const CRASH_AT: &str = "MILLSTREAM_CRASH_AT";
/// How long a process may take to end in order.
const END_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

pub const PG_PORT: u16 = 7432;

/// Bytes of an object before what it holds, and after it; and where the generation of its writer stands.
const ENVELOPE_BEFORE: usize = 40;
const ENVELOPE_AFTER: usize = 4;
const GENERATION_AT: usize = 16;

#[derive(Default)]
struct Process {
    child: Option<Child>,
    is_stopped: bool,
    /// It is to end at a crash point.
    is_armed: bool,
}

pub struct Cluster {
    pub net: Net,
    binary: PathBuf,
    folder: PathBuf,
    processes: Vec<Process>,
    /// The workers that are used.
    pub workers: Vec<Seat>,
}

impl Cluster {
    /// Over a folder that is there and empty.
    pub fn new(net: Net, binary: &Path, folder: &Path) -> Result<Cluster> {
        fs::create_dir(folder.join("logs"))?;
        for seat in COORDINATORS.into_iter().chain(WORKERS) {
            fs::create_dir(folder.join(NAMES[seat]))?;
        }
        let processes = NAMES.iter().map(|_| Process::default()).collect();
        let workers = WORKERS[..WORKERS_WANTED].to_vec();
        let (binary, folder) = (binary.to_path_buf(), folder.to_path_buf());
        Ok(Cluster { net, binary, folder, processes, workers })
    }

    pub fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    fn settings(&self) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = SETTINGS.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        all.push(("MILLSTREAM_CHECKPOINT_URL".into(), format!("file://{}", self.store().display())));
        let coordinators: Vec<String> = COORDINATORS.iter().map(|seat| format!("{}:7490", address(*seat))).collect();
        all.push(("MILLSTREAM_COORDINATOR_ADDR".into(), coordinators.join(",")));
        all
    }

    /// The seats that a process belongs on.
    pub fn used(&self) -> Vec<Seat> {
        COORDINATORS.iter().chain(&self.workers).copied().collect()
    }

    pub fn runs(&self, seat: Seat) -> bool {
        self.processes[seat].child.is_some()
    }

    /// Starts the process of a seat, which ends by itself at `crash_at` if that is given.
    pub fn start(&mut self, seat: Seat, crash_at: Option<&str>) -> Result<()> {
        let data = self.folder.join(NAMES[seat]);
        let log = OpenOptions::new().create(true).append(true).open(self.logs().join(NAMES[seat]))?;
        let at = |port: u16| format!("{}:{port}", address(seat));
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.net.namespace(seat)]).arg(&self.binary);
        if COORDINATORS.contains(&seat) {
            command.args(["coordinator", "--pg-addr", &at(PG_PORT), "--http-addr", &at(7480)]);
            command.args(["--cluster-addr", &at(7490), "--data-dir"]).arg(&data);
        } else {
            command.args(["worker", "--worker-addr", &at(7491), "--slots", "2"]);
        }
        command
            .args(["--config", "/dev/null"])
            .current_dir(&data)
            .env_remove(CRASH_AT)
            .envs(self.settings())
            .envs(crash_at.map(|point| (CRASH_AT, point)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().map_err(|e| format!("cannot start {}: {e}", NAMES[seat]))?;
        self.processes[seat] = Process { child: Some(child), is_stopped: false, is_armed: crash_at.is_some() };
        Ok(())
    }

    /// Ends a process as a crash does; one that has ended is forgotten.
    pub fn kill(&mut self, seat: Seat) -> Result<()> {
        if let Some(mut child) = self.processes[seat].child.take() {
            // Fails only if it has ended already.
            let _ = child.kill();
            child.wait()?;
        }
        Ok(())
    }

    fn signal(&self, seat: Seat, name: &str) -> Result<()> {
        let child = self.processes[seat].child.as_ref().ok_or_else(|| format!("{} does not run", NAMES[seat]))?;
        let told = Command::new("kill").args([name, &child.id().to_string()]).status()?;
        if told.success() { Ok(()) } else { Err(format!("kill {name} of {} fails", NAMES[seat]).into()) }
    }

    /// Lets a process stand still until [`wake`](Self::wake).
    pub fn stop(&mut self, seat: Seat) -> Result<()> {
        self.signal(seat, "-STOP")?;
        self.processes[seat].is_stopped = true;
        Ok(())
    }

    pub fn wake(&mut self, seat: Seat) -> Result<()> {
        if self.processes[seat].is_stopped {
            self.signal(seat, "-CONT")?;
            self.processes[seat].is_stopped = false;
        }
        Ok(())
    }

    /// Ends a process in order. Returns after how many milliseconds it has. Errors: it does not, or says that it failed.
    pub async fn terminate(&mut self, seat: Seat) -> Result<f64> {
        let start = now();
        self.signal(seat, "-TERM")?;
        match self.wait(seat, END_MAX).await? {
            Some(status) if status.success() => Ok(ms_since(start)),
            Some(status) => Err(format!("{} ends with {status} after SIGTERM", NAMES[seat]).into()),
            None => Err(format!("{} has not ended {END_MAX:?} after SIGTERM", NAMES[seat]).into()),
        }
    }

    /// How a process has ended, if it does in this time; then it is forgotten.
    pub async fn wait(&mut self, seat: Seat, at_most: Duration) -> Result<Option<ExitStatus>> {
        let start = now();
        loop {
            let Some(child) = &mut self.processes[seat].child else {
                return Err(format!("{} does not run", NAMES[seat]).into());
            };
            if let Some(status) = child.try_wait()? {
                self.processes[seat].child = None;
                return Ok(Some(status));
            }
            if start.elapsed() > at_most {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until an armed process has come to its point. False: it has not in this time.
    pub async fn reaches_point(&mut self, seat: Seat, at_most: Duration) -> Result<bool> {
        match self.wait(seat, at_most).await? {
            None => Ok(false),
            Some(status) if status.signal() == Some(6) => Ok(true),
            Some(status) => Err(self.ended(seat, status)),
        }
    }

    fn ended(&self, seat: Seat, status: ExitStatus) -> Error {
        let log = fs::read_to_string(self.logs().join(NAMES[seat])).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(8).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        format!("{} has ended by itself with {status}:\n{}", NAMES[seat], tail.join("\n")).into()
    }

    /// Errors: a process has ended that nobody has ended.
    pub fn check(&mut self) -> Result<()> {
        for seat in self.used() {
            let process = &mut self.processes[seat];
            if process.is_armed {
                continue;
            }
            if let Some(child) = &mut process.child
                && let Some(status) = child.try_wait()?
            {
                return Err(self.ended(seat, status));
            }
        }
        Ok(())
    }

    /// Brings everything back that a fault has taken: links, processes that stand still, processes that are gone.
    pub fn make_whole(&mut self) -> Result<()> {
        self.net.heal()?;
        for seat in self.used() {
            if self.runs(seat) {
                self.wake(seat)?;
            } else {
                self.start(seat, None)?;
            }
        }
        Ok(())
    }

    /// The coordinator that leads, as the store says, if its process runs.
    pub fn leader(&self) -> Option<Seat> {
        let lease = newest(&self.store().join("lease"))?;
        let holds = lease.get(ENVELOPE_BEFORE..lease.len().checked_sub(ENVELOPE_AFTER)?)?;
        let sign: serde_json::Value = serde_json::from_slice(holds).ok()?;
        let at = sign["holder"]["pg_addr"].as_str()?.to_string();
        let is_at = |seat: &Seat| at == format!("{}:{PG_PORT}", address(*seat));
        COORDINATORS.into_iter().find(is_at).filter(|seat| self.runs(*seat))
    }

    /// Whether everything in the store is whole. No process may run.
    pub fn fsck(&self) -> Result<()> {
        fsck(&self.binary, &self.folder.join(NAMES[COORDINATORS[0]]), &self.settings())
    }

    /// Lines of the logs that tell of a panic, and how many are of the level ERROR.
    pub fn log_trouble(&self) -> Result<(Vec<String>, u64)> {
        let (mut panics, mut errors) = (Vec::new(), 0);
        for entry in fs::read_dir(self.logs())? {
            let path = entry?.path();
            for line in String::from_utf8_lossy(&fs::read(&path)?).lines() {
                if line.contains("panicked at") {
                    panics.push(format!("{}: {line}", path.display()));
                }
                errors += u64::from(line.contains(" ERROR "));
            }
        }
        Ok((panics, errors))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for seat in self.used() {
            // It may have ended already.
            let _ = self.kill(seat);
        }
    }
}

/// The newest object of a folder whose objects are numbered.
fn newest(folder: &Path) -> Option<Vec<u8>> {
    // It may be replaced between the two looks.
    (0..20).find_map(|_| {
        let mut names: Vec<_> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
        names.sort();
        fs::read(names.last()?).ok()
    })
}

/// The generation that has written an object.
pub fn generation_of(object: &Path) -> Option<u64> {
    let bytes = fs::read(object).ok()?;
    let generation = bytes.get(GENERATION_AT..GENERATION_AT + 8)?;
    Some(u64::from_le_bytes(generation.try_into().ok()?))
}
