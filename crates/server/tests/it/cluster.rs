//! A cluster of real processes: a coordinator and workers, as clients see them, also when a worker dies.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sqllogictest::{DBOutput, DefaultColumnType, Record};
use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::killed::{Rng, TRANSFERS, number};
use crate::process::Server;
use crate::slt_files::{LABEL, files, known_differences, name_of, normal, standing_queries};
use crate::sql_tests::output;

const TOKEN: &str = "a token of the test";
const ACCOUNTS: u64 = 10;
/// Files of `sql-tests` whose standing queries run; `MILLSTREAM_SAMPLE` chooses another number.
const SAMPLE: u64 = 12;
/// How long a cluster may take to go on after a worker has died and another has come.
const RETURN_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// A worker's process.
pub struct Worker(Child);

impl Worker {
    fn command(coordinator: SocketAddr, slots: usize, token: &str) -> Command {
        let mut command = Command::new(crate::process::binary());
        command
            .args(["worker", "--coordinator-addr", &coordinator.to_string(), "--slots", &slots.to_string()])
            .args(["--config", "/dev/null", "--memory-limit", "256MiB"])
            .env("MILLSTREAM_CLUSTER_TOKEN", token)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn start(coordinator: SocketAddr, slots: usize) -> Worker {
        Worker(Worker::command(coordinator, slots, TOKEN).spawn().unwrap())
    }

    /// Ends it in order. Returns how it has ended.
    async fn terminate(&mut self) -> std::process::ExitStatus {
        let told = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap();
        assert!(told.success());
        let mut waited = Duration::ZERO;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(waited < RETURN_MAX, "the worker does not end");
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
    }

    /// Ends it as a crash does.
    fn kill(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

pub struct Cluster {
    workers: Vec<Worker>,
    coordinator: Server,
    /// Removed when the processes have ended.
    data: TempDir,
}

fn environment(workers: &str) -> [(&str, &str); 6] {
    [
        ("MILLSTREAM_CHECKPOINT_INTERVAL", "250ms"),
        ("MILLSTREAM_CLUSTER_TOKEN", TOKEN),
        ("MILLSTREAM_CLUSTER_ADDR", "127.0.0.1:0"),
        ("MILLSTREAM_CLUSTER_WORKERS", workers),
        ("MILLSTREAM_HEARTBEAT_INTERVAL", "200ms"),
        ("MILLSTREAM_HEARTBEAT_TIMEOUT", "20s"),
    ]
}

impl Cluster {
    /// A coordinator, and so many workers with so many slots each.
    pub fn start(workers: usize, slots: usize) -> Cluster {
        Cluster::start_with(workers, slots, &[])
    }

    /// The same with other settings of the coordinator.
    fn start_with(workers: usize, slots: usize, settings: &[(&str, &str)]) -> Cluster {
        let memory = Path::new("/dev/shm");
        let data = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let number = workers.to_string();
        let environment = [&environment(&number)[..], settings].concat();
        let coordinator = Server::try_start_as(&["coordinator"], data.path(), &environment).unwrap();
        let addr = coordinator.cluster.unwrap();
        let workers = (0..workers).map(|_| Worker::start(addr, slots)).collect();
        Cluster { workers, coordinator, data }
    }

    fn addr(&self) -> SocketAddr {
        self.coordinator.cluster.unwrap()
    }

    /// A client, once the cluster has its workers.
    pub async fn client(&self) -> Client {
        self.client_of("dev").await
    }

    async fn client_of(&self, database: &str) -> Client {
        let config = self.coordinator.config();
        client_of(&config, database).await
    }
}

pub async fn client_of(config: &Config, database: &str) -> Client {
    let mut config = config.clone();
    config.dbname(database);
    let mut waited = Duration::ZERO;
    loop {
        match config.connect(NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(e) => assert!(waited < RETURN_MAX && state_of(&e) == "57P03", "{e:?}"),
        }
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
}

fn state_of(e: &tokio_postgres::Error) -> String {
    e.code().map_or_else(|| "none".into(), |code| code.code().to_string())
}

/// The rows of a query as text, in order.
async fn rows(client: &Client, sql: &str) -> Vec<String> {
    try_rows(client, sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"))
}

async fn try_rows(client: &Client, sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    let mut found = Vec::new();
    for message in client.simple_query(sql).await? {
        if let SimpleQueryMessage::Row(row) = message {
            let cell = |c: usize| row.get(c).map_or_else(|| "NULL".into(), str::to_string);
            found.push((0..row.len()).map(cell).collect::<Vec<String>>().join(" "));
        }
    }
    found.sort();
    Ok(found)
}

/// The same, asked again while the cluster says that a worker is away.
async fn rows_when_there(client: &Client, sql: &str) -> Vec<String> {
    let mut waited = Duration::ZERO;
    loop {
        match try_rows(client, sql).await {
            Ok(found) => return found,
            Err(e) => assert!(waited < RETURN_MAX && state_of(&e) == "57P03", "{sql}: {e:?}"),
        }
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
}

/// What the README shows first, and more: sources, sinks, views on views, cursors over subscriptions, savepoints, other parallelism.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_statement_works_over_processes() {
    let cluster = Cluster::start(3, 2);
    let client = cluster.client().await;
    let shown = rows(&client, "SELECT id, slots, state FROM ms_catalog.workers").await;
    assert_eq!(shown, ["1 2 running", "2 2 running", "3 2 running"]);
    assert_eq!(rows(&client, "SHOW WORKERS").await.len(), 3);
    let folder = cluster.data.path();
    let (input, out) = (folder.join("in.ndjson"), folder.join("out"));
    let line = |n: usize| format!("{{\"id\":{n},\"k\":{},\"at\":\"2026-01-01 00:{:02}:00\"}}\n", n % 5, n / 100);
    std::fs::write(&input, (0..3000).map(line).collect::<String>()).unwrap();
    client
        .batch_execute(&format!(
            "CREATE TABLE names (k int PRIMARY KEY, name text);
             INSERT INTO names VALUES (0, 'zero'), (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four');
             CREATE SOURCE e (id int, k int, at timestamp, WATERMARK FOR at AS at - INTERVAL '1 second')
                 WITH (connector = 'file', path = '{}', format = 'json', follow = 'true', poll_interval = '5ms');
             CREATE MATERIALIZED VIEW named AS SELECT e.id, e.k, names.name FROM e JOIN names ON e.k = names.k;
             CREATE MATERIALIZED VIEW per_name WITH (parallelism = 2) AS
                 SELECT name, count(*) AS n, sum(id) AS ids FROM named GROUP BY name;
             CREATE MATERIALIZED VIEW minutes AS SELECT window_start, count(*) AS n
                 FROM TUMBLE(e, at, INTERVAL '1 minute') GROUP BY window_start;
             CREATE MATERIALIZED VIEW best WITH (parallelism = 1) AS SELECT id FROM named ORDER BY id DESC LIMIT 3;
             CREATE SINK k AS SELECT id, k % 2 AS half FROM e
                 WITH (connector = 'file', path = '{}', delivery = 'exactly_once') FORMAT PLAIN ENCODE JSON",
            input.display(),
            out.display()
        ))
        .await
        .unwrap();
    let all = ["3000 4498500 30".to_string()];
    let sums = "SELECT (SELECT sum(n) FROM per_name), (SELECT sum(ids) FROM per_name), (SELECT count(*) FROM minutes)";
    let mut waited = Duration::ZERO;
    while rows(&client, sums).await != all {
        assert!(waited < RETURN_MAX, "not all rows of the source have come");
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
    assert_eq!(rows(&client, "SELECT * FROM best").await, ["2997", "2998", "2999"]);
    assert_eq!(rows(&client, "SELECT n FROM per_name WHERE name = 'three'").await, ["600"]);
    // Changes of a table, seen through two views by a subscription.
    client.batch_execute("BEGIN; DECLARE c CURSOR FOR SUBSCRIBE per_name WITH (snapshot = false)").await.unwrap();
    let other = cluster.client().await;
    other.batch_execute("UPDATE names SET name = 'drei' WHERE k = 3; FLUSH").await.unwrap();
    let mut changes: Vec<String> = Vec::new();
    while changes.len() < 2 {
        changes.extend(rows(&client, "FETCH 10 FROM c").await);
    }
    client.batch_execute("COMMIT").await.unwrap();
    assert!(changes.iter().any(|c| c.contains("delete three 600")), "{changes:?}");
    assert!(changes.iter().any(|c| c.contains("insert drei 600")), "{changes:?}");
    // Moved, checkpointed, dropped, made again.
    client.batch_execute("ALTER MATERIALIZED VIEW per_name SET PARALLELISM 6").await.unwrap();
    client.batch_execute("ALTER MATERIALIZED VIEW named SET PARALLELISM 1").await.unwrap();
    client.batch_execute("CREATE SAVEPOINT here").await.unwrap();
    let expected = "SELECT name, count(*) AS n, sum(id) AS ids FROM named GROUP BY name";
    assert_eq!(rows(&client, "SELECT * FROM per_name").await, rows(&client, expected).await);
    client.batch_execute("CREATE MATERIALIZED VIEW again AS SELECT name, n FROM per_name").await.unwrap();
    assert_eq!(rows(&client, "SELECT * FROM again").await.len(), 5);
    client.batch_execute("DROP MATERIALIZED VIEW again").await.unwrap();
    let mut published = 0;
    for _ in 0..400 {
        client.batch_execute("CHECKPOINT").await.unwrap();
        published = published_rows(&out);
        if published >= 3000 {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    assert_eq!(published, 3000);
    assert!(rows(&client, "SHOW JOBS").await.iter().all(|job| job.contains("running")));
}

/// Rows in the files that a sink has published.
fn published_rows(folder: &Path) -> usize {
    let mut rows = 0;
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            // What begins so is the sink's own.
            if name.starts_with(['.', '_']) {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else {
                rows += std::fs::read_to_string(path).unwrap_or_default().lines().count();
            }
        }
    }
    rows
}

/// A connection for the runner of test files.
struct Connection(Client);

#[derive(Debug)]
struct Failed(String);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

#[async_trait::async_trait]
impl sqllogictest::AsyncDB for Connection {
    type Error = Failed;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Failed> {
        let told = |e: tokio_postgres::Error| match e.as_db_error() {
            Some(e) => {
                let detail = e.detail().map(|d| format!("; {d}")).unwrap_or_default();
                Failed(format!("{} ({}){detail}", e.message(), e.code().code()))
            }
            None => Failed(e.to_string()),
        };
        Ok(output(self.0.simple_query(sql).await.map_err(told)?))
    }

    fn engine_name(&self) -> &str {
        LABEL
    }

    async fn shutdown(&mut self) {}
}

impl Connection {
    /// The rows of a statement as they are compared.
    async fn ask(&mut self, sql: &str) -> Result<Vec<String>, Failed> {
        match sqllogictest::AsyncDB::run(self, sql).await? {
            DBOutput::Rows { rows, .. } => Ok(normal(rows.into_iter().map(|row: Vec<String>| row.join(" ")))),
            _ => Ok(Vec::new()),
        }
    }
}

/// A file, in a database of its own, and its standing queries as views: each at all of these parallelisms, or without any at one of a few
/// in turn.
async fn check_file(cluster: &Cluster, path: &Path, n: usize, parallelisms: &[u64]) -> (usize, Vec<String>) {
    let mut problems = Vec::new();
    let database = format!("file_{n}");
    let client = cluster.client().await;
    client.batch_execute(&format!("CREATE DATABASE {database}")).await.unwrap();
    let config = cluster.coordinator.config();
    let mut runner =
        sqllogictest::Runner::new(|| async { Ok::<_, Failed>(Connection(client_of(&config, &database).await)) });
    let records: Vec<Record<DefaultColumnType>> = sqllogictest::parse_file(path).unwrap();
    for record in records {
        if let Err(e) = runner.run_async(record).await {
            problems.push(format!("{}", e.display(false)));
        }
    }
    let mut connection = Connection(cluster.client_of(&database).await);
    let mut views = 0;
    for (q, query) in standing_queries(path).iter().enumerate() {
        let expected = normal(query.expected.iter().cloned());
        let in_turn = ["", "WITH (parallelism = 1)", "WITH (parallelism = 2)"][q % 3].to_string();
        let all = parallelisms.iter().map(|n| format!("WITH (parallelism = {n})"));
        for with in if parallelisms.is_empty() { vec![in_turn] } else { all.collect() } {
            let create = format!("CREATE MATERIALIZED VIEW standing_{q} {with} AS {}", query.sql);
            let mut outcome = connection.ask(&create).await;
            if outcome.is_ok() {
                outcome = connection.ask(&format!("SELECT * FROM standing_{q}")).await;
            }
            match outcome {
                Ok(found) if found == expected => {}
                other => problems.push(format!(
                    "line {}: {with}\n  {}\n  expected {expected:?}\n  found    {other:?}",
                    query.line, query.sql
                )),
            }
            if let Err(e) = connection.ask(&format!("DROP MATERIALIZED VIEW IF EXISTS standing_{q}")).await {
                problems.push(format!("line {}: {e}", query.line));
            }
            views += 1;
        }
    }
    (views, problems)
}

/// A sample of the files; all of them, each standing query at several parallelisms, by `cargo xtask sql-tests --cluster`.
#[tokio::test(flavor = "multi_thread")]
async fn sql_tests_give_the_same_rows_over_processes() {
    let (seed, wanted) = (number("MILLSTREAM_SEED", 1), number("MILLSTREAM_SAMPLE", SAMPLE) as usize);
    let (workers, slots) = (number("MILLSTREAM_TEST_WORKERS", 3) as usize, number("MILLSTREAM_TEST_SLOTS", 2) as usize);
    let parallelisms = std::env::var("MILLSTREAM_TEST_PARALLELISM").unwrap_or_default();
    let parallelisms: Vec<u64> =
        parallelisms.split(',').filter(|n| !n.is_empty()).map(|n| n.trim().parse().expect("a parallelism")).collect();
    let known = known_differences();
    let all: Vec<PathBuf> = files().into_iter().filter(|path| !known.contains(&name_of(path))).collect();
    // Whoever makes databases or asks for them is not alone in its own.
    let is_alone = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap().to_lowercase();
        !["database", "pg_", "information_schema", "ms_catalog", "show "].iter().any(|word| text.contains(word))
    };
    let (part, parts) = (number("MILLSTREAM_TEST_PART", 1), number("MILLSTREAM_TEST_PARTS", 1).max(1));
    let all = all.into_iter().zip(1..).filter(|(_, n)| n % parts == part % parts).map(|(path, _)| path);
    let (mut left, with_others): (Vec<PathBuf>, Vec<PathBuf>) = all.partition(is_alone);
    let takes_all = wanted >= left.len();
    if !takes_all {
        left.retain(|path| !standing_queries(path).is_empty());
    }
    let mut rng = Rng::new(seed);
    let cluster = Cluster::start(workers, slots);
    let (mut report, mut views, mut ran) = (String::new(), 0, 0);
    let of = if takes_all { left.len() + with_others.len() } else { wanted };
    let mut note = |path: &Path, (standing, problems): (usize, Vec<String>)| {
        ran += 1;
        views += standing;
        println!("{ran} of {of}: {}, {standing} views, {} differ", name_of(path), problems.len());
        if !problems.is_empty() {
            report.push_str(&format!("== {}\n{}\n", name_of(path), problems.join("\n")));
        }
    };
    let mut n = 0;
    while n < wanted && !left.is_empty() {
        let path = left.swap_remove(rng.below(left.len() as u64) as usize);
        note(&path, check_file(&cluster, &path, n, &parallelisms).await);
        n += 1;
    }
    drop(cluster);
    for path in if takes_all { with_others } else { Vec::new() } {
        note(&path, check_file(&Cluster::start(workers, slots), &path, 0, &parallelisms).await);
    }
    assert!(report.is_empty(), "{report}seed {seed}: MILLSTREAM_SEED={seed} MILLSTREAM_SAMPLE={wanted} runs it again");
    println!("seed {seed}: {ran} files, {views} views on {workers} workers with {slots} slots each");
    assert!(takes_all || (ran == wanted && views > ran));
    assert!(ran > 0 && views > 0);
}

/// The benchmark's queries as views, each at another parallelism, over a source that is read to its end.
#[tokio::test(flavor = "multi_thread")]
async fn nexmark_queries_equal_batch_over_processes() {
    let events = number("MILLSTREAM_EVENTS", 20_000);
    let cluster = Cluster::start(3, 2);
    let client = cluster.client().await;
    for table in ["person", "auction", "bid"] {
        let declare = format!(
            "CREATE SOURCE {table} (WATERMARK FOR date_time AS date_time - INTERVAL '4 seconds')
                 WITH (connector = 'nexmark', table = '{table}', events = {events}, event_rate = 10000)"
        );
        client.batch_execute(&declare).await.unwrap();
    }
    client
        .batch_execute(
            "CREATE TABLE side_input (key bigint PRIMARY KEY, value text NOT NULL);
             INSERT INTO side_input SELECT n, 'value ' || n FROM generate_series(0, 9999) AS s(n)",
        )
        .await
        .unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sql-tests/nexmark");
    let mut queries: Vec<(String, String)> = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // Bids that tie may come in any order as batch; here every order is a whole one.
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace("ORDER BY price DESC)", "ORDER BY price DESC, bidder, date_time, extra)");
        let text = text.replace("ORDER BY date_time DESC)", "ORDER BY date_time DESC, price, extra)");
        let text = text
            .replace("ORDER BY b.price DESC, b.date_time)", "ORDER BY b.price DESC, b.date_time, b.bidder, b.extra)");
        queries.push((path.file_stem().unwrap().to_string_lossy().into_owned(), text));
    }
    queries.sort();
    // Its windows lie in processing time.
    queries.retain(|(name, _)| name != "q12");
    assert!(queries.len() >= 15, "{queries:?}");
    for (n, (name, query)) in queries.iter().enumerate() {
        let with = ["", "WITH (parallelism = 1)", "WITH (parallelism = 2)"][n % 3];
        client.batch_execute(&format!("CREATE MATERIALIZED VIEW {name} {with} AS {query}")).await.unwrap();
    }
    let mut waited = Duration::ZERO;
    while rows(&client, "SELECT count(*) FROM ms_catalog.sources WHERE state <> 'ended'").await != ["0"] {
        assert!(waited < RETURN_MAX, "the sources do not end");
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
    client.batch_execute("FLUSH").await.unwrap();
    for (name, query) in &queries {
        let view = rows(&client, &format!("SELECT * FROM {name}")).await;
        let batch = rows(&client, query).await;
        let differ = view.iter().zip(&batch).find(|(a, b)| a != b);
        assert!(view == batch, "{name}: {} rows and {} as batch; first difference {differ:?}", view.len(), batch.len());
    }
}

/// Money moves between accounts, and a reader looks on; both stay connected, whatever happens to workers.
struct Load {
    ends: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<tokio::task::JoinHandle<Vec<u64>>>,
    /// Counts what was answered and what was refused.
    reader: tokio::task::JoinHandle<(u64, u64)>,
}

impl Load {
    async fn start(cluster: &Cluster) -> Load {
        let client = cluster.client().await;
        client.batch_execute(TRANSFERS).await.unwrap();
        let first: Vec<String> = (0..ACCOUNTS).map(|a| format!("({a}, {a}, {}, 1)", (a + 1) % ACCOUNTS)).collect();
        client.batch_execute(&format!("INSERT INTO transfers VALUES {}", first.join(", "))).await.unwrap();
        let (ends, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut writers = Vec::new();
        for writer in 0..2u64 {
            let (ends, acknowledged) = (Arc::clone(&ends), Arc::clone(&acknowledged));
            let client = cluster.client().await;
            writers.push(tokio::spawn(async move {
                let (mut rng, mut done, mut id) = (Rng::new(7 + writer), Vec::new(), ACCOUNTS + writer);
                while !ends.load(Ordering::Relaxed) {
                    let (from, to, amount) = (rng.below(ACCOUNTS), rng.below(ACCOUNTS), rng.below(100));
                    let insert = format!("INSERT INTO transfers VALUES ({id}, {from}, {to}, {amount})");
                    match client.batch_execute(&insert).await {
                        Ok(()) => {
                            done.push(id);
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                        }
                        // Whether it has happened is seen in the end.
                        Err(e) => assert_eq!(state_of(&e), "57P03", "{e:?}"),
                    }
                    id += 2;
                }
                done
            }));
        }
        let reader = {
            let (ends, client) = (Arc::clone(&ends), cluster.client().await);
            tokio::spawn(async move {
                let (mut reads, mut refused) = (0, 0);
                while !ends.load(Ordering::Relaxed) {
                    match try_rows(&client, "SELECT total, accounts FROM total").await {
                        Ok(found) => {
                            assert_eq!(found, [format!("0 {ACCOUNTS}")]);
                            reads += 1;
                        }
                        Err(e) => {
                            assert_eq!(state_of(&e), "57P03", "{e:?}");
                            refused += 1;
                        }
                    }
                }
                (reads, refused)
            })
        };
        Load { ends, acknowledged, writers, reader }
    }

    /// Waits until so many more transfers are acknowledged.
    async fn goes_on(&self, more: u64) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        let mut waited = Duration::ZERO;
        while self.acknowledged.load(Ordering::Relaxed) < before + more {
            assert!(waited < RETURN_MAX, "no transfer is acknowledged any more");
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
    }

    /// Ends it: what was acknowledged is there, and the views are their queries.
    async fn end(self, client: &Client) {
        self.ends.store(true, Ordering::Relaxed);
        let (reads, refused) = self.reader.await.unwrap();
        let mut done: Vec<String> = Vec::new();
        for writer in self.writers {
            done.extend(writer.await.unwrap().iter().map(u64::to_string));
        }
        let there: std::collections::BTreeSet<String> =
            rows_when_there(client, "SELECT id FROM transfers").await.into_iter().collect();
        let missing: Vec<&String> = done.iter().filter(|id| !there.contains(*id)).collect();
        assert!(missing.is_empty(), "{missing:?} of {} were acknowledged and are gone", done.len());
        for (view, query) in [
            ("credits", "SELECT to_account AS account, sum(amount) AS credits FROM transfers GROUP BY to_account"),
            ("total", "SELECT 0 AS total, 10 AS accounts"),
        ] {
            let found = rows_when_there(client, &format!("SELECT * FROM {view}")).await;
            assert_eq!(found, rows_when_there(client, query).await, "{view}");
        }
        println!("{} transfers, {reads} reads, {refused} refused", done.len());
        assert!(reads > 0);
    }
}

/// A worker dies under transfers and comes back: no read ever sees money made or lost, and no transfer that was acknowledged is
/// missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_loses_nothing_and_its_jobs_go_on() {
    let mut cluster = Cluster::start(3, 2);
    let client = cluster.client().await;
    let load = Load::start(&cluster).await;
    for round in 0..3 {
        load.goes_on(50).await;
        let dead = round % cluster.workers.len();
        cluster.workers[dead].kill();
        // The connection is there, and says how it stands.
        for show in ["SHOW WORKERS", "SHOW JOBS"] {
            let mut told = rows(&client, show).await;
            for _ in 0..200 {
                if told.iter().any(|row| row.contains("away")) {
                    break;
                }
                tokio::time::sleep(LOOK).await;
                told = rows(&client, show).await;
            }
            assert!(told.iter().any(|row| row.contains("away")), "{show}: {told:?}");
        }
        cluster.workers[dead] = Worker::start(cluster.addr(), 2);
        assert_eq!(rows_when_there(&client, "SELECT total, accounts FROM total").await, [format!("0 {ACCOUNTS}")]);
    }
    load.end(&client).await;
    // An open transaction ends with the jobs; the connection does not.
    client.batch_execute("BEGIN; INSERT INTO transfers VALUES (1000000, 1, 2, 5)").await.unwrap();
    cluster.workers[0].kill();
    cluster.workers[0] = Worker::start(cluster.addr(), 2);
    let mut ended = None;
    for _ in 0..1200 {
        if let Err(e) = client.batch_execute("SELECT 1").await {
            ended = Some(state_of(&e));
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    assert!(matches!(ended.as_deref(), Some("40001" | "57P03")), "{ended:?}");
    client.batch_execute("ROLLBACK").await.unwrap();
    assert!(rows_when_there(&client, "SELECT id FROM transfers WHERE id = 1000000").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_belong_is_told_so_and_what_is_missing_is_said() {
    let cluster = Cluster::start(1, 1);
    let client = cluster.client().await;
    client
        .batch_execute("CREATE TABLE t (k int); CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM t")
        .await
        .unwrap();
    // A wrong token: the worker ends, and says why.
    let wrong = Worker::command(cluster.addr(), 1, "wrong").stderr(Stdio::piped()).output().unwrap();
    let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && told.contains("token is wrong") && told.contains("cluster_token"), "{told}");
    // Another coordinator on the same data.
    let second = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(["coordinator", "--pg-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--config", "/dev/null"])
        .arg("--data-dir")
        .arg(cluster.data.path())
        .envs(environment("1"))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && told.contains("is in use by another process"), "{told}");
    // Open to others without a token.
    let open = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(["worker", "--worker-addr", "0.0.0.0:0", "--config", "/dev/null"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&open.stderr).into_owned();
    assert!(!open.status.success() && told.contains("needs a token"), "{told}");
    // Too few workers: clients are told how many there are.
    let lonely = tempfile::tempdir().unwrap();
    let waiting = Server::try_start_as(&["coordinator"], lonely.path(), &environment("2")).unwrap();
    let _one = Worker::start(waiting.cluster.unwrap(), 1);
    let refused = waiting.config().connect(NoTls).await.err().unwrap();
    let told = refused.as_db_error().unwrap();
    assert_eq!((told.code().code(), told.message()), ("57P03", "the cluster waits for workers"));
    assert!(told.detail().unwrap().contains("2 workers are needed"), "{told:?}");
    assert_eq!(rows(&client, "SELECT n FROM v").await, ["0"]);
}

/// Waits until `sql` gives these rows; meanwhile the cluster may say that workers are away.
async fn becomes(client: &Client, sql: &str, expected: &[&str]) {
    let mut waited = Duration::ZERO;
    loop {
        let found = rows_when_there(client, sql).await;
        if found == expected {
            return;
        }
        assert!(waited < RETURN_MAX, "{sql}: {found:?}, not {expected:?}");
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
}

const RUNNING: &str = "SELECT count(*) FROM ms_catalog.workers WHERE state = 'running'";

/// What SHOW JOBS tells of one job, last the slots that it works on.
async fn job(client: &Client, name: &str) -> String {
    let all = rows_when_there(client, "SHOW JOBS").await;
    all.iter().find(|job| job.contains(&format!("public.{name} "))).unwrap_or_else(|| panic!("{all:?}")).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_with_the_workers_that_are_left_and_spread_over_those_that_come() {
    let settings = [
        ("MILLSTREAM_WORKER_WAIT_TIMEOUT", "1s"),
        ("MILLSTREAM_WORKER_STABILIZATION_TIMEOUT", "1s"),
        ("MILLSTREAM_CLUSTER_WORKERS_MIN", "2"),
    ];
    let mut cluster = Cluster::start_with(3, 2, &settings);
    let client = cluster.client().await;
    let load = Load::start(&cluster).await;
    load.goes_on(20).await;
    client.batch_execute("ALTER MATERIALIZED VIEW credits SET PARALLELISM 6").await.unwrap();
    let wants_more = "ALTER MATERIALIZED VIEW debits SET PARALLELISM 7";
    let check = |refused: tokio_postgres::Error, words: &str| {
        let told = refused.as_db_error().unwrap();
        assert_eq!(told.code().code(), "53400", "{told:?}");
        assert!(told.message().contains("needs 7 slots"), "{told:?}");
        assert!(told.detail().unwrap().contains(words) && told.hint().unwrap().contains("more workers"), "{told:?}");
    };
    check(client.batch_execute(wants_more).await.unwrap_err(), "All 6 are free");

    // One dies, and nothing comes in its place.
    cluster.workers[0].kill();
    becomes(&client, RUNNING, &["2"]).await;
    load.goes_on(20).await;
    assert!(job(&client, "credits").await.ends_with(" 4 of 6"), "{}", job(&client, "credits").await);
    check(client.batch_execute(wants_more).await.unwrap_err(), "they are of 2 workers, and cluster_workers is 3");
    let health = cluster.coordinator.health();
    let told = ["wanted", "running", "away"].map(|name| health["workers"][name].as_u64());
    assert_eq!((&health["status"], told), (&"ok".into(), [Some(3), Some(2), Some(1)]), "{health}");

    // Another one comes, and is used when it has stayed.
    cluster.workers[0] = Worker::start(cluster.addr(), 2);
    becomes(&client, RUNNING, &["3"]).await;
    load.goes_on(20).await;
    assert!(job(&client, "credits").await.ends_with(" 6"), "{}", job(&client, "credits").await);
    assert_eq!(cluster.coordinator.health()["workers"]["running"], 3);

    // One leaves in order: it is not waited for, and not looked for any more.
    let status = cluster.workers[1].terminate().await;
    assert!(status.success(), "{status}");
    becomes(&client, "SELECT state, count(*) FROM ms_catalog.workers GROUP BY state", &["away 1", "running 2"]).await;
    load.goes_on(20).await;

    // With fewer than the least the jobs wait, and it is said how many must come.
    cluster.workers[0].kill();
    let mut waited = Duration::ZERO;
    loop {
        // A statement waits for a while before it says so.
        let told = match client.simple_query("SELECT total FROM total").await {
            Ok(_) => String::new(),
            Err(e) => {
                let told = e.as_db_error().unwrap_or_else(|| panic!("{e:?}"));
                assert_eq!(told.code().code(), "57P03", "{told:?}");
                told.detail().unwrap_or_default().to_string()
            }
        };
        if told.contains("3 workers are needed, 1 are here") && told.contains("At least 2 must be there") {
            break;
        }
        assert!(waited < RETURN_MAX, "{told}");
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
    assert_eq!(cluster.coordinator.health()["status"], "waiting");
    cluster.workers[0] = Worker::start(cluster.addr(), 2);
    becomes(&client, RUNNING, &["2"]).await;
    load.goes_on(20).await;
    cluster.workers[1] = Worker::start(cluster.addr(), 2);
    becomes(&client, RUNNING, &["3"]).await;
    load.end(&client).await;
}
