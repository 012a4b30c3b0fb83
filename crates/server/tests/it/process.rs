//! A server process of the test's own, on ports that the system chose.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

/// The address that an entry of a JSON log tells under this name.
pub fn addr_in(entry: &serde_json::Value, name: &str) -> Option<SocketAddr> {
    entry["fields"][name].as_str().map(|addr| addr.parse().unwrap())
}

/// What `look` finds first in the JSON log of a process; `None`: it ended before.
pub fn told<T>(process: &mut Child, mut look: impl FnMut(&serde_json::Value) -> Option<T>) -> Option<T> {
    let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
    let told = log.find_map(|line| look(&serde_json::from_str(&line.unwrap()).unwrap_or_default()));
    // The pipe must be read to its end, or a talkative process would block on it.
    std::thread::spawn(move || log.for_each(drop));
    told
}

/// The program that is tested; `MILLSTREAM_TEST_BINARY` names another build of it.
pub fn binary() -> PathBuf {
    std::env::var_os("MILLSTREAM_TEST_BINARY").unwrap_or(env!("CARGO_BIN_EXE_millstream").into()).into()
}

pub struct Server {
    process: Child,
    pub addr: SocketAddr,
    /// Where it tells of its health.
    pub http: SocketAddr,
    /// Where a coordinator listens for workers.
    pub cluster: Option<SocketAddr>,
    /// Removed when the process has ended.
    _data: Option<TempDir>,
}

impl Server {
    pub fn start() -> Server {
        let data = tempfile::tempdir().unwrap();
        let mut server = Server::start_on(data.path(), 2, "10s");
        server._data = Some(data);
        server
    }

    /// A server on a data directory that outlives it.
    pub fn start_on(data: &Path, slots: usize, checkpoint_interval: &str) -> Server {
        Server::try_start_on(data, slots, checkpoint_interval, None)
            .unwrap_or_else(|status| panic!("the server ended before it was ready: {status}"))
    }

    /// The same with a point at which it is to die. Errors: it has died before it was ready.
    pub fn try_start_on(
        data: &Path,
        slots: usize,
        checkpoint_interval: &str,
        crash_at: Option<&str>,
    ) -> Result<Server, ExitStatus> {
        let point = crash_at.map(|point| (checkpoint::crash::CRASH_AT, point));
        Server::try_start_with(data, slots, checkpoint_interval, point.as_slice())
    }

    /// The same with other variables of the environment.
    pub fn try_start_with(
        data: &Path,
        slots: usize,
        checkpoint_interval: &str,
        environment: &[(&str, &str)],
    ) -> Result<Server, ExitStatus> {
        let environment = [&[("MILLSTREAM_CHECKPOINT_INTERVAL", checkpoint_interval)][..], environment].concat();
        Server::try_start_as(&["server", "--slots", &slots.to_string()], data, &environment)
    }

    /// The same in another role of the cluster.
    pub fn try_start_as(role: &[&str], data: &Path, environment: &[(&str, &str)]) -> Result<Server, ExitStatus> {
        let mut process = Command::new(binary())
            .args(role)
            .args(["--pg-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"])
            .args(["--log-format", "json", "--config", "/dev/null", "--data-dir"])
            .arg(data)
            .current_dir(data)
            .env("MILLSTREAM_MEMORY_LIMIT", "256MiB")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut cluster = None;
        let pg = told(&mut process, |entry| {
            cluster = cluster.or_else(|| addr_in(entry, "cluster"));
            addr_in(entry, "pg").zip(addr_in(entry, "http"))
        });
        let Some((addr, http)) = pg else { return Err(process.wait().unwrap()) };
        Ok(Server { process, addr, http, cluster, _data: None })
    }

    /// How the process has ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// The same for one that is ending.
    pub async fn wait_ended(&mut self, most: Duration) -> Option<ExitStatus> {
        let (mut waited, look) = (Duration::ZERO, Duration::from_millis(10));
        while self.ended().is_none() && waited < most {
            tokio::time::sleep(look).await;
            waited += look;
        }
        self.ended()
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config.host(self.addr.ip().to_string()).port(self.addr.port()).user("tester").dbname("dev");
        config
    }

    /// Asks the process to stop, as a service manager does.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends a signal, by its name.
    pub fn signal(&self, name: &str) {
        let told = Command::new("kill").args([name, &self.process.id().to_string()]).status().unwrap();
        assert!(told.success());
    }

    /// The body of GET /health, whatever the status.
    pub fn health(&self) -> serde_json::Value {
        use std::io::{Read, Write};

        let mut stream = std::net::TcpStream::connect(self.http).unwrap();
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_else(|e| panic!("{answer}: {e}"))
    }

    pub async fn client(&self) -> Client {
        connect(&self.config()).await.0
    }

    /// The same of a server that may die by itself.
    pub async fn try_client(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.config().connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

/// A connection, and what the server says beside its answers.
pub async fn connect(config: &Config) -> (Client, mpsc::UnboundedReceiver<AsyncMessage>) {
    let (client, mut connection) = config.connect(NoTls).await.unwrap();
    let (sender, messages) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        // Ends with the connection; its error is also the error of the statement that was running.
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            let _ = sender.send(message);
        }
    });
    (client, messages)
}

impl Server {
    /// Ends the process as a crash does.
    pub fn kill(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
