//! The server dies while rows flow from a file through a join and a window to files, and money moves between accounts: each row is
//! there once, no read ever sees money made or lost, and what lies on disk is whole.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use checkpoint::crash;
use tokio_postgres::Client;

use crate::process::Server;

const ROUNDS: usize = 8;
const KEYS: usize = 20;
const ACCOUNTS: u64 = 10;
/// How long a server may take to come to a crash point under load.
const REACHED_MAX: Duration = Duration::from_secs(20);
/// How long rows may take to their files when all is calm.
const CALM_MAX: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

const INTERVAL: &str = "250ms";

/// xorshift
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
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
    out: PathBuf,
    /// Rows written to the input, whose ids are the numbers below.
    sent: usize,
    transfers: u64,
    reads: usize,
    rng: Rng,
    what: String,
}

impl Load {
    /// Sources, views and a sink that publishes in two folders, so that a commit has several files.
    async fn new(folder: &Path, seed: u64) -> (Load, Server) {
        let (data, input, out) = (folder.join("data"), folder.join("in.ndjson"), folder.join("out"));
        fs::create_dir(&data).unwrap();
        let rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let what = format!("seed {seed}");
        let mut load = Load { data, input, out, sent: 0, transfers: 0, reads: 0, rng, what };
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
                 CREATE TABLE transfers (id bigint PRIMARY KEY, from_account int, to_account int, amount bigint);
                 CREATE MATERIALIZED VIEW credits AS
                     SELECT to_account AS account, sum(amount) AS credits FROM transfers GROUP BY to_account;
                 CREATE MATERIALIZED VIEW debits AS
                     SELECT from_account AS account, sum(amount) AS debits FROM transfers GROUP BY from_account;
                 CREATE MATERIALIZED VIEW balance AS SELECT c.account, credits - debits AS balance
                     FROM credits c JOIN debits d ON c.account = d.account;
                 CREATE MATERIALIZED VIEW total AS SELECT sum(balance) AS total, count(*) AS accounts FROM balance",
                KEYS - 1,
                load.input.display(),
                load.out.display()
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
            let (hour, minute, second) = (id / 36_000, id / 600 % 60, id / 10 % 60);
            format!("{{\"id\":{id},\"k\":{},\"at\":\"2026-01-01 {hour:02}:{minute:02}:{second:02}\"}}\n", id % KEYS)
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

    /// Rows are there at most once, and what lies on disk is whole. The server must be dead.
    fn inspect(&self) {
        let seen = published(&self.out);
        assert!(seen.values().all(|n| *n == 1) && seen.keys().all(|id| *id < self.sent), "{}", self.what);
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
        let mut waited = Duration::ZERO;
        while published(&self.out).len() < self.sent && waited < CALM_MAX {
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
        let (seen, sent, what) = (published(&self.out), self.sent, self.what.clone());
        let lost: Vec<usize> = (0..sent).filter(|id| !seen.contains_key(id)).collect();
        let repeated: Vec<usize> = seen.iter().filter(|(_, n)| **n > 1).map(|(id, _)| *id).collect();
        let alien: Vec<usize> = seen.keys().filter(|id| **id >= sent).copied().collect();
        assert!(
            lost.is_empty() && repeated.is_empty() && alien.is_empty(),
            "{what}: {sent} sent, lost {lost:?}, repeated {repeated:?}, alien {alien:?}"
        );
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
fn watch_total(client: Client) -> tokio::task::JoinHandle<usize> {
    tokio::spawn(async move {
        let mut reads = 0;
        while let Ok(row) = client.query_one("SELECT total::text FROM total", &[]).await {
            assert_eq!(row.get::<_, String>(0), "0");
            reads += 1;
        }
        reads
    })
}

/// How often each id stands in the published files. What is staged does not count.
fn published(folder: &Path) -> BTreeMap<usize, usize> {
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.file_name().unwrap().to_string_lossy().starts_with('.') {
                published(&path).into_iter().for_each(|(id, n)| *seen.entry(id).or_default() += n);
            }
            continue;
        }
        for line in fs::read_to_string(&path).unwrap().lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{path:?}: {e}: {line}"));
            let (id, name) = (row["id"].as_u64().unwrap() as usize, row["name"].as_str().unwrap());
            assert_eq!(name, format!("name {}", id % KEYS));
            *seen.entry(id).or_default() += 1;
        }
    }
    seen
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_and_repeats_nothing() {
    let (seed, rounds) = (number("MILLSTREAM_SEED", 1), number("MILLSTREAM_KILLS", ROUNDS as u64));
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
                let mut client = Some(dying.client().await);
                let reader = watch_total(dying.client().await);
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
                load.reads += reader.await.unwrap();
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
