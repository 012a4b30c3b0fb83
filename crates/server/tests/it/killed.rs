//! The server dies while rows flow from a file through a join and a window to files, and money moves between accounts: each row is
//! there once, no read ever sees money made or lost, and what lies on disk is whole.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use checkpoint::crash;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::process::Server;

const ROUNDS: u64 = 8;
/// Rows of the long input, and how often the server dies over it.
const LONG_ROWS: u64 = 40_000;
const LONG_DEATHS: u64 = 8;
/// Ten rows a second of event time, in one month.
const LONG_ROWS_MAX: u64 = 26_000_000;
/// Portions of the long input between two deaths, and how many may be on their way to the files.
const PORTIONS: u64 = 8;
const PORTIONS_BEHIND: u64 = 3;
/// The join keeps every row of the input, for a name that may still come.
const LONG_MEMORY: (&str, &str) = ("MILLSTREAM_MEMORY_LIMIT", "4GiB");
/// Rows that a test build takes from the input to its files in a second, at the very least.
const ROWS_PER_SECOND_MIN: usize = 2_000;
const KEYS: usize = 20;
const ACCOUNTS: u64 = 10;
/// Transfers between accounts, and views over them whose `total` is 0 whenever it is read.
pub const TRANSFERS: &str =
    "CREATE TABLE transfers (id bigint PRIMARY KEY, from_account int, to_account int, amount bigint);
    CREATE MATERIALIZED VIEW credits AS
        SELECT to_account AS account, sum(amount) AS credits FROM transfers GROUP BY to_account;
    CREATE MATERIALIZED VIEW debits AS
        SELECT from_account AS account, sum(amount) AS debits FROM transfers GROUP BY from_account;
    CREATE MATERIALIZED VIEW balance AS SELECT c.account, credits - debits AS balance
        FROM credits c JOIN debits d ON c.account = d.account;
    CREATE MATERIALIZED VIEW total AS SELECT sum(balance) AS total, count(*) AS accounts FROM balance";
/// How long a server may take to come to a crash point under load.
const REACHED_MAX: Duration = Duration::from_secs(20);
/// How long rows may take to their files when all is calm.
const CALM_MAX: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

const INTERVAL: &str = "250ms";

/// xorshift
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// What a server is loaded with, over all of its lives.
struct Load {
    data: PathBuf,
    input: PathBuf,
    published: Published,
    /// Rows written to the input, whose ids are the numbers below.
    sent: usize,
    transfers: u64,
    reads: usize,
    readers: Vec<JoinHandle<usize>>,
    rng: Rng,
    what: String,
}

impl Load {
    /// Sources, views and a sink that publishes in two folders, so that a commit has several files.
    async fn new(folder: &Path, seed: u64) -> (Load, Server) {
        let (data, input, out) = (folder.join("data"), folder.join("in.ndjson"), folder.join("out"));
        fs::create_dir(&data).unwrap();
        let (rng, what) = (Rng::new(seed), format!("seed {seed}"));
        let published = Published::new(&out);
        let mut load = Load { data, input, published, sent: 0, transfers: 0, reads: 0, readers: Vec::new(), rng, what };
        load.append(100);
        let server = Server::start_on(&load.data, 2, INTERVAL);
        let client = server.client().await;
        client
            .batch_execute(&format!(
                "CREATE TABLE names (k int, name text) APPEND ONLY;
                 INSERT INTO names SELECT n, 'name ' || n FROM generate_series(0, {}) AS g (n);
                 CREATE SOURCE e (id int, k int, at timestamp, WATERMARK FOR at AS at - INTERVAL '1 second')
                     WITH (connector = 'file', path = '{}', format = 'json', follow = 'true', poll_interval = '5ms');
                 CREATE MATERIALIZED VIEW minutes AS SELECT window_start, count(*) AS n, sum(id) AS ids
                     FROM TUMBLE(e, at, INTERVAL '1 minute') GROUP BY window_start;
                 CREATE SINK k AS SELECT e.id, names.name, e.k % 2 AS half FROM e JOIN names ON e.k = names.k
                     WITH (connector = 'file', path = '{}', delivery = 'exactly_once', partition_by = 'half')
                     FORMAT PLAIN ENCODE JSON;
                 {TRANSFERS}",
                KEYS - 1,
                load.input.display(),
                out.display()
            ))
            .await
            .unwrap();
        let first: Vec<String> = (0..ACCOUNTS).map(|a| format!("({a}, {a}, {}, 1)", (a + 1) % ACCOUNTS)).collect();
        client.batch_execute(&format!("INSERT INTO transfers VALUES {}", first.join(", "))).await.unwrap();
        load.transfers = ACCOUNTS;
        (load, server)
    }

    /// Adds rows to the input, in portions that may end in the middle of a line.
    fn append(&mut self, rows: usize) {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.input).unwrap();
        let line = |id: usize| {
            let (day, hour, minute, second) = (id / 864_000 + 1, id / 36_000 % 24, id / 600 % 60, id / 10 % 60);
            format!(
                "{{\"id\":{id},\"k\":{},\"at\":\"2026-01-{day:02} {hour:02}:{minute:02}:{second:02}\"}}\n",
                id % KEYS
            )
        };
        let text: String = (self.sent..self.sent + rows).map(line).collect();
        for piece in text.as_bytes().chunks(1000) {
            file.write_all(piece).unwrap();
        }
        self.sent += rows;
    }

    /// A little of everything. Errors: the server has died.
    async fn work(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let rows = 1 + self.rng.below(400) as usize;
        self.work_with(client, rows).await
    }

    async fn work_with(&mut self, client: &Client, rows: usize) -> Result<(), tokio_postgres::Error> {
        self.append(rows);
        for _ in 0..1 + self.rng.below(4) {
            self.read(client).await?;
            let (from, to, amount) = (self.rng.below(ACCOUNTS), self.rng.below(ACCOUNTS), self.rng.below(100));
            let id = self.transfers;
            // It may be durable although the answer is lost.
            self.transfers += 1;
            client.batch_execute(&format!("INSERT INTO transfers VALUES ({id}, {from}, {to}, {amount})")).await?;
        }
        self.read(client).await
    }

    /// Money is neither made nor lost, in any read.
    async fn read(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let row = client.query_one("SELECT total::text, accounts::text FROM total", &[]).await?;
        let (total, accounts) = (row.get::<_, String>(0), row.get::<_, String>(1));
        assert_eq!((total.as_str(), accounts), ("0", ACCOUNTS.to_string()), "{}", self.what);
        self.reads += 1;
        Ok(())
    }

    /// Sends rows in portions until so many are sent, no faster than they are taken. Errors: the server has died.
    async fn until(&mut self, server: &Server, sent: usize, portion: u64) -> Result<(), tokio_postgres::Error> {
        let client = server.try_client().await?;
        self.readers.push(watch_total(server.try_client().await?));
        while self.sent < sent {
            let rows = (1 + self.rng.below(2 * portion) as usize).min(sent - self.sent);
            self.work_with(&client, rows).await?;
            self.keep_up(&client, (PORTIONS_BEHIND * portion) as usize).await?;
        }
        Ok(())
    }

    /// What those have seen who read the total until the server died.
    async fn readers_end(&mut self) {
        for reader in std::mem::take(&mut self.readers) {
            self.reads += reader.await.unwrap();
        }
    }

    /// Waits until all rows of the input but so many have been published. Errors: the server has died.
    async fn keep_up(&mut self, client: &Client, behind: usize) -> Result<(), tokio_postgres::Error> {
        loop {
            self.published.look(self.sent, &self.what);
            if self.published.rows + behind >= self.sent {
                return Ok(());
            }
            let jobs = client.query("SHOW JOBS", &[]).await?;
            let failed = jobs.iter().find(|job| job.get::<_, &str>("status") == "failed");
            assert!(failed.is_none(), "{}: {failed:?}", self.what);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Rows are there at most once, and what lies on disk is whole. The server must be dead.
    fn inspect(&mut self) {
        self.published.look(self.sent, &self.what);
        let checked = Command::new(env!("CARGO_BIN_EXE_millstream"))
            .args(["fsck", "--config", "/dev/null", "--data-dir"])
            .arg(&self.data)
            .output()
            .unwrap();
        let report = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success(), "{}: {report}{}", self.what, String::from_utf8_lossy(&checked.stderr));
    }

    /// In the end every row is there once, and every view is the sum of all.
    async fn audit(&mut self, server: &Server) {
        self.append(50);
        let (sent, what) = (self.sent, self.what.clone());
        let (mut waited, calm_max) =
            (Duration::ZERO, CALM_MAX + Duration::from_secs((sent / ROWS_PER_SECOND_MIN) as u64));
        self.published.look(sent, &what);
        while self.published.rows < sent && waited < calm_max {
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
            self.published.look(sent, &what);
        }
        let lost = self.published.lost(sent);
        assert!(lost.is_empty(), "{what}: {sent} sent, {} lost: {lost:?} …", sent - self.published.rows);
        // Once more from the first file on, beside what was seen when each was new.
        let mut again = Published::new(&self.published.folder);
        again.look(sent, &what);
        assert_eq!((again.rows, again.files.len()), (sent, self.published.files.len()), "{what}");
        let client = server.client().await;
        let row = client.query_one("SELECT sum(n)::text, sum(ids)::text FROM minutes", &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), sent.to_string(), "{what}");
        assert_eq!(row.get::<_, String>(1), (sent * (sent - 1) / 2).to_string(), "{what}");
        self.read(&client).await.unwrap();
        let query = "SELECT count(*)::text FROM ((SELECT * FROM balance EXCEPT ALL
                         SELECT c.account, credits - debits
                         FROM (SELECT to_account AS account, sum(amount) AS credits FROM transfers GROUP BY 1) c
                         JOIN (SELECT from_account AS account, sum(amount) AS debits FROM transfers GROUP BY 1) d
                         ON c.account = d.account)) AS differences";
        let row = client.query_one(query, &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), "0", "{what}");
        println!("{what}: {sent} rows sent, 0 lost, 0 repeated, 0 alien; {} reads of the total, all 0", self.reads);
    }
}

/// Reads the total all the time, beside whoever writes, until the server is dead. Returns how often.
fn watch_total(client: Client) -> JoinHandle<usize> {
    tokio::spawn(async move {
        let mut reads = 0;
        while let Ok(row) = client.query_one("SELECT total::text FROM total", &[]).await {
            assert_eq!(row.get::<_, String>(0), "0");
            reads += 1;
        }
        reads
    })
}

/// The rows of the published files. A file that is published never changes, so each is read once.
struct Published {
    folder: PathBuf,
    /// The files that were read, and their lengths.
    files: BTreeMap<PathBuf, u64>,
    /// A bit for each id.
    seen: Vec<u64>,
    rows: usize,
    /// What follows the id in a row, by key.
    rest: Vec<String>,
}

impl Published {
    fn new(folder: &Path) -> Published {
        let rest = |k: usize| format!(",\"name\":\"name {k}\",\"half\":{}}}", k % 2);
        let (folder, rest) = (folder.to_path_buf(), (0..KEYS).map(rest).collect());
        Published { folder, files: BTreeMap::new(), seen: Vec::new(), rows: 0, rest }
    }

    /// Reads the files that are new. Each row must be one that was sent, as it must be, and not have been there before; and no
    /// file may have changed or gone.
    fn look(&mut self, sent: usize, what: &str) {
        let mut files = Vec::new();
        list(&self.folder, &mut files);
        let there = files.iter().filter(|(path, _)| self.files.contains_key(path)).count();
        assert_eq!(there, self.files.len(), "{what}: published files are gone");
        for (path, length) in files {
            match self.files.get(&path) {
                Some(known) => assert_eq!(*known, length, "{what}: {path:?} has changed"),
                None => {
                    self.read(&path, sent, what);
                    self.files.insert(path, length);
                }
            }
        }
    }

    fn read(&mut self, path: &Path, sent: usize, what: &str) {
        let content = fs::read(path).unwrap();
        assert!(content.ends_with(b"\n"), "{what}: {path:?} ends inside of a line");
        for line in content[..content.len() - 1].split(|byte| *byte == b'\n') {
            let text = || format!("{what}: {path:?}: {}", String::from_utf8_lossy(line));
            let digits = line.strip_prefix(b"{\"id\":").unwrap_or_default();
            let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let id = digits[..length].iter().fold(0, |n: usize, digit| n * 10 + usize::from(digit - b'0'));
            assert!(length > 0 && length < 12 && &digits[length..] == self.rest[id % KEYS].as_bytes(), "{}", text());
            assert!(id < sent, "alien: {}", text());
            if self.seen.len() <= id / 64 {
                self.seen.resize(id / 64 + 1, 0);
            }
            assert!(self.seen[id / 64] & 1 << (id % 64) == 0, "repeated: {}", text());
            self.seen[id / 64] |= 1 << (id % 64);
            self.rows += 1;
        }
    }

    /// The first ids that were sent and are not there.
    fn lost(&self, sent: usize) -> Vec<usize> {
        let there = |id: &usize| self.seen.get(id / 64).is_some_and(|bits| bits & 1 << (id % 64) != 0);
        (0..sent).filter(|id| !there(id)).take(20).collect()
    }
}

/// The files below a folder and their lengths. What is staged lies in a hidden folder and does not count.
fn list(folder: &Path, files: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.unwrap();
        let (path, metadata) = (entry.path(), entry.metadata().unwrap());
        if !metadata.is_dir() {
            files.push((path, metadata.len()));
        } else if !path.file_name().unwrap().to_string_lossy().starts_with('.') {
            list(&path, files);
        }
    }
}

pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_and_repeats_nothing() {
    let (seed, rounds) = (number("MILLSTREAM_SEED", 1), number("MILLSTREAM_KILLS", ROUNDS));
    let folder = tempfile::tempdir().unwrap();
    let (mut load, mut server) = Load::new(folder.path(), seed).await;
    for round in 0..rounds {
        load.what = format!("seed {seed}, kill {round}");
        let client = server.client().await;
        let reader = watch_total(server.client().await);
        for _ in 0..1 + load.rng.below(6) {
            load.work(&client).await.unwrap();
            tokio::time::sleep(Duration::from_millis(load.rng.below(150))).await;
        }
        server.kill();
        load.reads += reader.await.unwrap();
        load.inspect();
        server = Server::start_on(&load.data, 1 + load.rng.below(3) as usize, INTERVAL);
    }
    load.what = format!("seed {seed}, {rounds} kills");
    load.audit(&server).await;
}

/// At every point of a checkpoint and of a start, the first time or a later time that it is reached, the process dies; a second
/// time on its way back now and then.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_at_a_crash_point_loses_nothing_and_repeats_nothing() {
    let seed = number("MILLSTREAM_SEED", 1);
    let folder = tempfile::tempdir().unwrap();
    let (mut load, mut server) = Load::new(folder.path(), seed).await;
    let mut slots = 2;
    for point in crash::POINTS {
        // A start that moves state to other slots comes to the last points.
        let starting = matches!(point, "C15" | "C16");
        let times = if starting { 1 + load.rng.below(2) } else { 1 + load.rng.below(3) };
        load.what = format!("seed {seed}, {point}:{times}");
        if starting {
            let client = server.client().await;
            load.work(&client).await.unwrap();
            client.batch_execute("CHECKPOINT").await.unwrap();
        }
        server.kill();
        load.inspect();
        slots = slots % 3 + 1;
        let (at, mut reached) = (format!("{point}:{times}"), None);
        match Server::try_start_on(&load.data, slots, INTERVAL, Some(&at)) {
            Err(status) => reached = Some(status),
            Ok(mut dying) => {
                let mut waited = Duration::ZERO;
                // It may die before anybody is connected.
                let mut client = dying.try_client().await.ok();
                if let Ok(client) = dying.try_client().await {
                    load.readers.push(watch_total(client));
                }
                while reached.is_none() && waited < REACHED_MAX {
                    if let Some(alive) = &client
                        && load.work(alive).await.is_err()
                    {
                        client = None;
                    }
                    tokio::time::sleep(LOOK).await;
                    waited += LOOK;
                    reached = dying.ended();
                }
                dying.kill();
                load.readers_end().await;
            }
        }
        let signal = reached.unwrap_or_else(|| panic!("{}: not reached", load.what)).signal();
        assert_eq!(signal, Some(6), "{}", load.what);
        load.inspect();
        if load.rng.below(2) == 0 {
            // On the way back it dies once more, if it comes to that point.
            drop(Server::try_start_on(&load.data, slots % 3 + 1, INTERVAL, Some("C15:2")));
            load.inspect();
        }
        server = Server::start_on(&load.data, slots, INTERVAL);
    }
    load.what = format!("seed {seed}, {} crash points", crash::POINTS.len());
    load.audit(&server).await;
}

/// An input of `MILLSTREAM_ROWS` rows, over which the server dies `MILLSTREAM_KILLS` times: by kill -9 at a moment, or at a crash
/// point if the build has them, in turn.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_input_comes_through_kills_and_crash_points_once() {
    let (seed, rows) = (number("MILLSTREAM_SEED", 1), number("MILLSTREAM_ROWS", LONG_ROWS));
    assert!(rows <= LONG_ROWS_MAX, "at most {LONG_ROWS_MAX} rows");
    let start = |data: &Path, slots, crash_at: Option<&str>| {
        let mut environment = vec![LONG_MEMORY];
        environment.extend(crash_at.map(|at| (crash::CRASH_AT, at)));
        Server::try_start_with(data, slots, INTERVAL, &environment)
    };
    let deaths = number("MILLSTREAM_KILLS", LONG_DEATHS).max(1);
    let folder = tempfile::tempdir().unwrap();
    let (mut load, mut server) = Load::new(folder.path(), seed).await;
    let (share, portion) = (rows / (deaths + 1), (rows / (deaths + 1) / PORTIONS).max(1));
    let (mut armed, mut reached, mut slots) = (0, 0, 2);
    for death in 0..deaths {
        // The server lives until it has come to its point, or else until so much has been sent.
        let until = (share * death + share / 2 + load.rng.below(share.max(1))).min(rows) as usize;
        let mut point = (cfg!(debug_assertions) && death % 2 == 1)
            .then(|| crash::POINTS[((death / 2 + seed) % crash::POINTS.len() as u64) as usize]);
        let times = match point {
            Some("C15" | "C16") => 1,
            _ => 1 + load.rng.below(PORTIONS),
        };
        armed += u64::from(point.is_some());
        load.what =
            format!("seed {seed}, death {death}{}", point.map(|p| format!(" at {p}:{times}")).unwrap_or_default());
        if death > 0 {
            slots = slots % 3 + 1;
            let at = point.map(|point| format!("{point}:{times}"));
            server = match start(&load.data, slots, at.as_deref()) {
                Ok(server) => server,
                Err(status) => {
                    assert!(point.is_some() && status.signal() == Some(6), "{}: {status}", load.what);
                    (reached, point) = (reached + 1, None);
                    load.inspect();
                    start(&load.data, slots, None).unwrap()
                }
            };
        }
        let broken = load.until(&server, until, portion).await;
        if let Err(error) = broken {
            let status = server.wait_ended(CALM_MAX).await;
            let right = point.is_some() && status.and_then(|s| s.signal()) == Some(6);
            assert!(right, "{}: {error}, {status:?}", load.what);
            reached += 1;
        } else {
            // Rows are on their way when it dies.
            load.append(portion as usize);
            tokio::time::sleep(Duration::from_millis(load.rng.below(400))).await;
        }
        server.kill();
        load.readers_end().await;
        load.inspect();
        println!("{}: {} rows sent, {} published", load.what, load.sent, load.published.rows);
    }
    server = start(&load.data, slots % 3 + 1, None).unwrap();
    load.what = format!("seed {seed}, {deaths} deaths, {reached} of them at crash points");
    load.until(&server, rows as usize, portion).await.unwrap();
    load.audit(&server).await;
    server.kill();
    load.readers_end().await;
    assert!(reached * 2 >= armed, "{}: {armed} were to be", load.what);
}
