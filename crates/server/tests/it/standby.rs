//! Two coordinators of real processes over one store: whatever happens to the one that leads, the other goes on, and nothing that
//! was acknowledged is missing or there twice.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::killed::{Rng, TRANSFERS};
use crate::process::Server;

const TOKEN: &str = "a token of the test";
const ACCOUNTS: u64 = 10;
const HEARTBEAT: &str = "200ms";
const SILENCE: &str = "3s";
/// How long the cluster may take to go on.
const RETURN_MAX: Duration = Duration::from_secs(90);
/// How long a client waits for one coordinator: one that is stopped takes connections and says nothing.
const PATIENCE: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(50);

fn url_of(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

/// A port that nobody uses now.
pub fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn environment(url: &str, cluster_addr: SocketAddr, token: &str) -> Vec<(String, String)> {
    let set = |name: &str, value: String| (format!("MILLSTREAM_{name}"), value);
    let mut bucket = Vec::new();
    if url.starts_with("s3://") {
        let endpoint = std::env::var("MILLSTREAM_S3_ENDPOINT").expect("run tests/s3.sh");
        bucket = vec![("AWS_ENDPOINT".to_string(), endpoint), ("AWS_ALLOW_HTTP".to_string(), "true".to_string())];
    }
    let settings = vec![
        set("HIGH_AVAILABILITY", "store".into()),
        set("CHECKPOINT_URL", url.into()),
        set("CHECKPOINT_INTERVAL", "500ms".into()),
        set("CLUSTER_TOKEN", token.into()),
        set("CLUSTER_ADDR", cluster_addr.to_string()),
        set("CLUSTER_WORKERS", "2".into()),
        set("HEARTBEAT_INTERVAL", HEARTBEAT.into()),
        set("HEARTBEAT_TIMEOUT", SILENCE.into()),
    ];
    settings.into_iter().chain(bucket).collect()
}

/// A process that dies with the test.
struct Dies(Child);

impl Drop for Dies {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where one coordinator lives, over all of its processes.
struct Seat {
    data: PathBuf,
    cluster_addr: SocketAddr,
    process: Option<Server>,
}

struct Cluster {
    seats: [Seat; 2],
    _workers: Vec<Dies>,
    /// Where clients try, in this order: as `host=a,b` does.
    hosts: Arc<Mutex<Vec<SocketAddr>>>,
    url: String,
    _folder: TempDir,
}

impl Cluster {
    /// Over a store in this place, or in a folder of its own.
    fn start(url: Option<String>) -> Cluster {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let url = url.unwrap_or_else(|| url_of(&folder.path().join("store")));
        let seat = |name: &str| {
            let data = folder.path().join(name);
            std::fs::create_dir(&data).unwrap();
            Seat { data, cluster_addr: free_port(), process: None }
        };
        let seats = [seat("a"), seat("b")];
        let addresses = format!("{},{}", seats[0].cluster_addr, seats[1].cluster_addr);
        // Workers go to the bucket themselves.
        let bucket: Vec<_> =
            environment(&url, free_port(), TOKEN).into_iter().filter(|(k, _)| k.starts_with("AWS")).collect();
        let worker = |_| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
            command
                .args(["worker", "--coordinator-addr", &addresses, "--slots", "2", "--config", "/dev/null"])
                .args(["--memory-limit", "256MiB"])
                .env("MILLSTREAM_CLUSTER_TOKEN", TOKEN)
                .envs(bucket.iter().cloned())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            Dies(command.spawn().unwrap())
        };
        let hosts = Arc::new(Mutex::new(vec![free_port(), free_port()]));
        let mut cluster = Cluster { seats, _workers: (0..2).map(worker).collect(), hosts, url, _folder: folder };
        cluster.start_seat(0);
        cluster.start_seat(1);
        cluster
    }

    fn start_seat(&mut self, n: usize) {
        let seat = &mut self.seats[n];
        let environment = environment(&self.url, seat.cluster_addr, TOKEN);
        let environment: Vec<(&str, &str)> = environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let process = Server::try_start_as(&["coordinator"], &seat.data, &environment)
            .unwrap_or_else(|status| panic!("coordinator {n} ended before it was ready: {status}"));
        self.hosts.lock().unwrap()[n] = process.addr;
        seat.process = Some(process);
    }

    fn process(&mut self, n: usize) -> &mut Server {
        self.seats[n].process.as_mut().unwrap()
    }

    /// Waits until coordinator `n` says that it stands by.
    async fn stands_by(&mut self, n: usize) {
        let begun = Instant::now();
        while self.process(n).health()["status"] != "standby" {
            assert!(begun.elapsed() < RETURN_MAX, "coordinator {n}: {}", self.process(n).health());
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A client of whichever coordinator leads.
struct Anywhere {
    hosts: Arc<Mutex<Vec<SocketAddr>>>,
    client: Option<Client>,
}

impl Anywhere {
    fn of(cluster: &Cluster) -> Anywhere {
        Anywhere { hosts: Arc::clone(&cluster.hosts), client: None }
    }

    /// Connects to the first host that takes it.
    async fn connect(&mut self) -> bool {
        let hosts = self.hosts.lock().unwrap().clone();
        for host in hosts {
            if let Some(client) = connect_to(host).await {
                self.client = Some(client);
                return true;
            }
        }
        false
    }

    /// The rows of a statement, or `None` if it was not acknowledged; then the next one is asked of whoever leads.
    async fn ask(&mut self, sql: &str) -> Option<Vec<String>> {
        if self.client.is_none() && !self.connect().await {
            tokio::time::sleep(LOOK).await;
            return None;
        }
        let client = self.client.as_ref()?;
        match timeout(PATIENCE, client.simple_query(sql)).await {
            Ok(Ok(messages)) => Some(rows_in(messages)),
            Ok(Err(e)) => {
                let state = e.code().map_or("closed", |code| code.code()).to_string();
                assert!(["57P01", "57P03", "40001", "closed"].contains(&state.as_str()), "{sql}: {e:?}");
                self.client = None;
                None
            }
            Err(_) => {
                self.client = None;
                None
            }
        }
    }

    /// The same until it is acknowledged.
    async fn insist(&mut self, sql: &str) -> Vec<String> {
        let begun = Instant::now();
        loop {
            if let Some(rows) = self.ask(sql).await {
                return rows;
            }
            assert!(begun.elapsed() < RETURN_MAX, "{sql}: nobody answers");
        }
    }
}

async fn connect_to(host: SocketAddr) -> Option<Client> {
    let mut config = Config::new();
    config.host(host.ip().to_string()).port(host.port()).user("tester").dbname("dev");
    match timeout(PATIENCE, config.connect(NoTls)).await {
        Ok(Ok((client, connection))) => {
            tokio::spawn(connection);
            Some(client)
        }
        Ok(Err(e)) => {
            assert!(e.code().is_none_or(|code| ["57P01", "57P03"].contains(&code.code())), "{e:?}");
            None
        }
        Err(_) => None,
    }
}

fn rows_in(messages: Vec<SimpleQueryMessage>) -> Vec<String> {
    let row = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|c| row.get(c).unwrap_or("NULL")).collect::<Vec<_>>().join(" "))
        }
        _ => None,
    };
    let mut rows: Vec<String> = messages.into_iter().filter_map(row).collect();
    rows.sort();
    rows
}

/// Money moves between accounts, and a reader looks on.
struct Load {
    ends: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<tokio::task::JoinHandle<Vec<u64>>>,
    reader: tokio::task::JoinHandle<u64>,
}

impl Load {
    async fn start(cluster: &Cluster) -> Load {
        let mut client = Anywhere::of(cluster);
        // Without the key: a transfer that is there twice is seen.
        client.insist(&TRANSFERS.replace(" PRIMARY KEY", "")).await;
        let first: Vec<String> = (0..ACCOUNTS).map(|a| format!("({a}, {a}, {}, 1)", (a + 1) % ACCOUNTS)).collect();
        client.insist(&format!("INSERT INTO transfers VALUES {}", first.join(", "))).await;
        let (ends, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = |n: u64| {
            let (ends, acknowledged, mut client) =
                (Arc::clone(&ends), Arc::clone(&acknowledged), Anywhere::of(cluster));
            tokio::spawn(async move {
                let (mut rng, mut done, mut id) = (Rng::new(70 + n), Vec::new(), ACCOUNTS + n);
                while !ends.load(Ordering::Relaxed) {
                    let (from, to, amount) = (rng.below(ACCOUNTS), rng.below(ACCOUNTS), rng.below(100));
                    let insert = format!("INSERT INTO transfers VALUES ({id}, {from}, {to}, {amount})");
                    if client.ask(&insert).await.is_some() {
                        done.push(id);
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                    // Whether one that was not acknowledged has happened is seen in the end: it is not asked for again.
                    id += 2;
                }
                done
            })
        };
        let writers = (0..2).map(writer).collect();
        let reader = {
            let (ends, mut client) = (Arc::clone(&ends), Anywhere::of(cluster));
            tokio::spawn(async move {
                let mut reads = 0;
                while !ends.load(Ordering::Relaxed) {
                    if let Some(rows) = client.ask("SELECT total, accounts FROM total").await {
                        assert_eq!(rows, [format!("0 {ACCOUNTS}")]);
                        reads += 1;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                reads
            })
        };
        Load { ends, acknowledged, writers, reader }
    }

    /// Waits until so many more transfers are acknowledged, and says how long after `since` the first of them was.
    async fn goes_on(&self, more: u64, since: Instant) -> Duration {
        let (begun, before) = (Instant::now(), self.acknowledged.load(Ordering::Relaxed));
        let mut first = None;
        loop {
            let now = self.acknowledged.load(Ordering::Relaxed);
            if now > before {
                first.get_or_insert(since.elapsed());
            }
            if now >= before + more {
                return first.unwrap_or_default();
            }
            assert!(begun.elapsed() < RETURN_MAX, "no transfer is acknowledged any more");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until nothing is acknowledged any more.
    async fn stalls(&self) {
        let mut before = u64::MAX;
        loop {
            let now = self.acknowledged.load(Ordering::Relaxed);
            if now == before {
                return;
            }
            before = now;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Ends it: what was acknowledged, and the reads.
    async fn end(self) -> (Vec<u64>, u64) {
        self.ends.store(true, Ordering::Relaxed);
        let mut done: Vec<u64> = (0..ACCOUNTS).collect();
        for writer in self.writers {
            done.extend(writer.await.unwrap());
        }
        (done, self.reader.await.unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_coordinator_goes_on_when_one_is_killed_or_stopped_or_ends() {
    go_on(Cluster::start(None)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tests/s3.sh"]
async fn the_other_coordinator_goes_on_in_a_bucket() {
    go_on(Cluster::start(Some("s3://bucket/standby".into()))).await;
}

async fn go_on(mut cluster: Cluster) {
    let load = Load::start(&cluster).await;
    load.goes_on(20, Instant::now()).await;

    // The one that stands by says so, and who leads.
    cluster.stands_by(1).await;
    let (leader, standby) = (cluster.process(0).addr, cluster.process(1).config());
    let refused = standby.connect(NoTls).await.err().unwrap();
    let told = refused.as_db_error().unwrap();
    assert_eq!((told.code().code(), told.message()), ("57P03", "this coordinator is a standby"));
    assert!(told.detail().unwrap().contains(&leader.to_string()) && told.hint().is_some(), "{told:?}");
    assert!(cluster.process(1).health()["cause"].as_str().unwrap().contains(&leader.to_string()));
    assert_eq!(cluster.process(0).health()["status"], "ok");
    // A client that knows both finds the leader, in whatever order.
    let mut both = Config::new();
    both.user("tester").dbname("dev");
    for n in [1, 0] {
        let addr = cluster.process(n).addr;
        both.host(addr.ip().to_string()).port(addr.port());
    }
    let (client, connection) = both.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    let shown = rows_in(client.simple_query("SELECT address, state FROM ms_catalog.coordinators").await.unwrap());
    assert_eq!(shown, [format!("{leader} leader")]);
    assert_eq!(rows_in(client.simple_query("SHOW COORDINATORS").await.unwrap()).len(), 1);

    // Killed.
    let begun = Instant::now();
    cluster.process(0).kill();
    load.stalls().await;
    let took = load.goes_on(20, begun).await;
    println!("killed: the first transfer is acknowledged after {took:?}");
    assert!(client.simple_query("SELECT 1").await.is_err());
    cluster.start_seat(0);
    cluster.stands_by(0).await;

    // Stopped for longer than its lease, and woken. A client that has not noticed is told before anything is acknowledged to it, or
    // what it is told is true.
    let forgotten = connect_to(cluster.process(1).addr).await.unwrap();
    forgotten.simple_query("SELECT 1").await.unwrap();
    let begun = Instant::now();
    cluster.process(1).signal("-STOP");
    load.stalls().await;
    let took = load.goes_on(20, begun).await;
    println!("stopped: the first transfer is acknowledged after {took:?}");
    cluster.process(1).signal("-CONT");
    let zombie = forgotten.simple_query("INSERT INTO transfers VALUES (1000001, 1, 2, 5)");
    let zombie = timeout(RETURN_MAX, zombie).await.unwrap();
    println!(
        "the one that was stopped answers: {}",
        match &zombie {
            Ok(_) => "acknowledged".to_string(),
            Err(e) => e.as_db_error().map_or_else(|| e.to_string(), |e| format!("{} {}", e.code().code(), e.message())),
        }
    );
    cluster.stands_by(1).await;
    assert!(forgotten.simple_query("SELECT 1").await.is_err());
    load.goes_on(20, Instant::now()).await;

    // In order: the lease is let go.
    let begun = Instant::now();
    cluster.process(0).terminate();
    let ended = cluster.process(0).wait_ended(RETURN_MAX).await;
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    let stopped = begun.elapsed();
    let took = load.goes_on(20, begun).await;
    println!("ended in order: it has ended after {stopped:?}, and the first transfer is acknowledged after {took:?}");
    cluster.start_seat(0);
    cluster.stands_by(0).await;

    let (done, reads) = load.end().await;
    let mut client = Anywhere::of(&cluster);
    let mut there: BTreeMap<u64, u64> = BTreeMap::new();
    for row in client.insist("SELECT id FROM transfers").await {
        *there.entry(row.parse().unwrap()).or_default() += 1;
    }
    let missing: Vec<&u64> = done.iter().filter(|id| !there.contains_key(id)).collect();
    assert!(missing.is_empty(), "{missing:?} of {} were acknowledged and are gone", done.len());
    let twice: Vec<_> = there.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert!(zombie.is_err() || there.contains_key(&1_000_001));
    for (view, query) in [
        ("credits", "SELECT to_account AS account, sum(amount) AS credits FROM transfers GROUP BY to_account"),
        ("debits", "SELECT from_account AS account, sum(amount) AS debits FROM transfers GROUP BY from_account"),
        ("total", "SELECT 0 AS total, 10 AS accounts"),
    ] {
        assert_eq!(client.insist(&format!("SELECT * FROM {view}")).await, client.insist(query).await, "{view}");
    }
    println!("{} transfers, {} rows, {reads} reads", done.len(), there.len());
    assert!(reads > 0);
    for n in [1, 0] {
        cluster.process(n).terminate();
        assert!(cluster.process(n).wait_ended(RETURN_MAX).await.is_some_and(|status| status.success()));
    }
    // What lies in the store is whole.
    let fsck = coordinator(&cluster.url, &cluster.seats[0].data, TOKEN, &["fsck"]);
    let told = format!("{}{}", String::from_utf8_lossy(&fsck.stdout), String::from_utf8_lossy(&fsck.stderr));
    assert!(fsck.status.success() && told.contains("log \"log/"), "{told}");
}

/// Runs the program to its end, with the settings of a coordinator.
fn coordinator(url: &str, data: &Path, token: &str, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command.args(arguments).args(["--config", "/dev/null", "--data-dir"]).arg(data);
    if arguments != ["fsck"] {
        command.args(["--pg-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"]);
    }
    command.envs(environment(url, SocketAddr::from(([127, 0, 0, 1], 0)), token)).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_cannot_stand_by_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (url, data) = (url_of(&folder.path().join("store")), folder.path().join("a"));
    let environment = environment(&url, free_port(), TOKEN);
    let environment: Vec<(&str, &str)> = environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    std::fs::create_dir(&data).unwrap();
    let leader = Server::try_start_as(&["coordinator"], &data, &environment).unwrap();
    let begun = Instant::now();
    while leader.health()["cause"].as_str().is_none_or(|cause| !cause.contains("waits for workers")) {
        assert!(begun.elapsed() < RETURN_MAX, "{}", leader.health());
        tokio::time::sleep(LOOK).await;
    }
    let check = |output: std::process::Output, words: &[&str]| {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && words.iter().all(|word| told.contains(word)), "{words:?}: {told}");
    };
    let other = folder.path().join("b");
    // On the data directory of another one.
    check(coordinator(&url, &data, TOKEN, &["coordinator"]), &["is in use by another process"]);
    // With another token: it would turn the workers away when it leads.
    check(coordinator(&url, &other, "another", &["coordinator"]), &["token is wrong", "same cluster_token"]);
    // A server that is alone.
    check(coordinator(&url, &other, TOKEN, &["server"]), &["alone has no standby", "millstream coordinator"]);
    check(
        coordinator(&url, &other, TOKEN, &["coordinator", "--high-availability", "always"]),
        &["invalid value for high_availability: \"always\"", "Write none, or store"],
    );
    check(
        coordinator(&url, &other, TOKEN, &["coordinator", "--checkpoint-url", ""]),
        &["needs a checkpoint_url", "s3://bucket/prefix"],
    );
}
