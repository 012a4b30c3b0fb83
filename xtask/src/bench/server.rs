//! The measured server: a process of its own, its connections, and what it uses of the machine.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use super::measure::{ms_since, now};
use super::{Options, Result};

/// How long a start with recovery may take.
const START_MS_MAX: f64 = 120_000.0;
/// Ticks of a second in `/proc/PID/stat`; the kernel promises 100 to user space.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds of all threads, and the most memory that was resident.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu_s: f64,
    pub peak_mb: u64,
    pub resident_mb: u64,
}

impl Usage {
    /// The CPU seconds since `before`.
    pub fn since(self, before: Usage) -> Usage {
        Usage { cpu_s: self.cpu_s - before.cpu_s, ..self }
    }
}

pub struct Server {
    binary: PathBuf,
    folder: TempDir,
    process: Child,
    port: u16,
    http_port: u16,
    /// Variables of the environment that set up the server.
    settings: Vec<(String, String)>,
}

impl Server {
    /// Starts a server on an empty folder.
    pub async fn start(options: &Options) -> Result<Server> {
        Server::start_with(options, &[]).await
    }

    /// The same with settings, by the names of their variables.
    pub async fn start_with(options: &Options, settings: &[(&str, &str)]) -> Result<Server> {
        let settings: Vec<(String, String)> = settings.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let folder = match &options.scratch {
            Some(parent) => tempfile::tempdir_in(parent)?,
            None => tempfile::tempdir()?,
        };
        let (port, http_port) = (free_port()?, free_port()?);
        let process = spawn(&options.binary, folder.path(), port, http_port, &settings)?;
        let mut server = Server { binary: options.binary.clone(), folder, process, port, http_port, settings };
        server.ready().await?;
        Ok(server)
    }

    /// Ends the process as a crash would, without any chance to tidy up.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Starts again on the same folder. Answers with the milliseconds until it took a connection.
    pub async fn restart(&mut self) -> Result<f64> {
        let start = now();
        (self.port, self.http_port) = (free_port()?, free_port()?);
        self.process = spawn(&self.binary, self.folder.path(), self.port, self.http_port, &self.settings)?;
        self.ready().await?;
        Ok(ms_since(start))
    }

    async fn ready(&mut self) -> Result<()> {
        let start = now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("the server ended with {status}: {}", self.log_tail()).into());
            }
            if let Ok(client) = self.connect().await {
                client.simple_query("SELECT 1").await?;
                return Ok(());
            }
            if ms_since(start) > START_MS_MAX {
                return Err(format!("the server does not take connections: {}", self.log_tail()).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    pub async fn connect(&self) -> Result<Client> {
        let config = format!("host=127.0.0.1 port={} user=bench dbname=dev", self.port);
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
        // Its error reaches whoever uses the client.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Where it tells its metrics.
    pub fn http_port(&self) -> u16 {
        self.http_port
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What the kernel tells of the process.
    pub fn process_folder(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.process.id()))
    }

    /// A folder beside the data for files of the benchmark.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Bytes that the process has let the kernel write to disks.
    pub fn written_bytes(&self) -> Result<u64> {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.process.id()))?;
        let value = io.lines().find_map(|l| l.strip_prefix("write_bytes:"));
        Ok(value.ok_or("no bytes in io")?.trim().parse()?)
    }

    pub fn usage(&self) -> Result<Usage> {
        let id = self.process.id();
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        // The command may hold spaces; the fields after it are counted from its closing parenthesis.
        let fields: Vec<&str> = stat.rsplit_once(')').ok_or("no command in stat")?.1.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field).and_then(|f| f.parse::<f64>().ok()).ok_or("short stat");
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let megabytes = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
        };
        Ok(Usage {
            cpu_s: (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND,
            peak_mb: megabytes("VmHWM:"),
            resident_mb: megabytes("VmRSS:"),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(binary: &Path, folder: &Path, port: u16, http_port: u16, settings: &[(String, String)]) -> Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log"))?;
    Command::new(binary)
        .arg("server")
        .args(["--pg-addr", &format!("127.0.0.1:{port}"), "--http-addr", &format!("127.0.0.1:{http_port}")])
        .args(["--log-level", "warn", "--data-dir"])
        .arg(folder.join("data"))
        .envs(settings.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .map_err(|e| format!("cannot start {}: {e}", binary.display()).into())
}

/// Whether what lies on disk is whole. No server may use it. `settings` are variables of the environment, by their names.
pub fn fsck(binary: &Path, data: &Path, settings: &[(String, String)]) -> Result<()> {
    let checked = Command::new(binary)
        .args(["fsck", "--config", "/dev/null", "--data-dir"])
        .arg(data)
        .envs(settings.iter().map(|(k, v)| (k, v)))
        .output()?;
    if checked.status.success() {
        return Ok(());
    }
    let (report, error) = (String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    Err(format!("fsck: {report}{error}").into())
}

/// A port that nobody listens on. It lies below those that the system gives to connections, one of which would else take it between
/// this look and the start of the server.
fn free_port() -> Result<u16> {
    const FIRST: u32 = 10_000;
    const PORTS: u32 = 20_000;
    static TRIED: AtomicU32 = AtomicU32::new(0);
    // Processes that look at the same time begin at different places.
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..PORTS {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + start.wrapping_add(tried) % PORTS) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err("all ports are taken".into())
}
