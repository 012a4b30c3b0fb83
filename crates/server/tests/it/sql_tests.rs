//! A sample of `sql-tests` over the wire, against a server that is killed while a file runs: the rows are the same.
//!
//! What dies with a connection makes the difference between a kill that must not be seen and one that may: so the server dies
//! after a statement that it has acknowledged, or under a SELECT, a CHECKPOINT or a `CREATE … IF NOT EXISTS` that is then asked again, and only
//! while no transaction is open. Files with other state of a session are not taken. The standing queries of a file are made
//! views where they stand in it, so that they live through the kills that follow.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use sqllogictest::{DBOutput, DefaultColumnType, Record};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::killed::{Rng, number};
use crate::process::Server;
use crate::slt_files::{LABEL, Standing, files, known_differences, name_of, normal, runs, standing_queries};

/// Files of the sample; `MILLSTREAM_SAMPLE` chooses another number.
const SAMPLE: u64 = 40;
/// Files that run at the same time: most of a file's time is that of starts.
const AT_ONCE: usize = 3;
const FILE_TIME_MAX: Duration = Duration::from_secs(60);
/// The longest that a statement runs before the server dies under it.
const UNDER_WAY_US_MAX: u64 = 5_000;
const INTERVAL: &str = "250ms";
/// The server dies before one statement of so many, and under as many.
const ONE_IN: u64 = 18;

/// Words of statements whose effect ends with the connection.
const OF_A_SESSION: &[&str] =
    &["SET", "RESET", "DISCARD", "PREPARE", "EXECUTE", "DEALLOCATE", "DECLARE", "FETCH", "CLOSE", "LISTEN", "UNLISTEN"];

fn first_word(sql: &str) -> String {
    let words: String = sql.trim_start().chars().take_while(|c| c.is_ascii_alphabetic()).collect();
    words.to_ascii_uppercase()
}

fn statements(path: &Path) -> Vec<String> {
    let records: Vec<Record<DefaultColumnType>> = sqllogictest::parse_file(path).unwrap();
    let sql = |record| match record {
        Record::Statement { sql, conditions, .. } | Record::Query { sql, conditions, .. } => {
            runs(&conditions).then_some(sql)
        }
        _ => None,
    };
    records.into_iter().filter_map(sql).collect()
}

/// Whether everything that a file says outlives its connections.
fn outlives_sessions(path: &Path) -> bool {
    statements(path).iter().all(|sql| !OF_A_SESSION.contains(&first_word(sql).as_str()) && !sql.contains("set_config"))
}

/// The files of the sample, in an order that the seed chooses.
fn sample(seed: u64, wanted: usize) -> Vec<PathBuf> {
    let known = known_differences();
    let mut left: Vec<PathBuf> =
        files().into_iter().filter(|path| !known.contains(&name_of(path)) && outlives_sessions(path)).collect();
    let mut rng = Rng::new(seed);
    let mut chosen = Vec::new();
    while chosen.len() < wanted && !left.is_empty() {
        chosen.push(left.swap_remove(rng.below(left.len() as u64) as usize));
    }
    chosen
}

/// An error as the files write it: `message (SQLSTATE)`.
#[derive(Debug)]
struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

impl From<tokio_postgres::Error> for Failed {
    fn from(e: tokio_postgres::Error) -> Failed {
        match e.as_db_error() {
            Some(told) => {
                let detail = told.detail().map(|d| format!("; {d}")).unwrap_or_default();
                Failed(format!("{} ({}){detail}", told.message(), told.code().code()))
            }
            None => Failed(e.to_string()),
        }
    }
}

/// A server over all of its lives.
struct Lives {
    data: TempDir,
    server: Server,
    /// Which life this is.
    life: u64,
    rng: Rng,
    /// Connections with an open transaction.
    open: BTreeSet<u64>,
    /// After an answer, and under a statement.
    kills: [usize; 2],
}

impl Lives {
    fn new(seed: u64) -> Lives {
        // In memory where the machine offers it: what a killed process has written is there in either case.
        let memory = Path::new("/dev/shm");
        let data = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let mut rng = Rng::new(seed);
        let server = Server::start_on(data.path(), 1 + rng.below(3) as usize, INTERVAL);
        Lives { data, server, life: 0, rng, open: BTreeSet::new(), kills: [0, 0] }
    }

    fn die(&mut self, under_way: bool) {
        self.server.kill();
        self.kills[usize::from(under_way)] += 1;
        self.life += 1;
        self.server = Server::start_on(self.data.path(), 1 + self.rng.below(3) as usize, INTERVAL);
    }

    /// One time in `n`, where nobody would notice.
    fn may_die(&mut self, n: u64) -> bool {
        self.open.is_empty() && self.rng.below(n) == 0
    }
}

/// A connection that is made again in each life.
struct Connection {
    lives: Arc<Mutex<Lives>>,
    id: u64,
    client: Option<(u64, Client)>,
}

impl Connection {
    fn new(lives: &Arc<Mutex<Lives>>) -> Connection {
        static ID: AtomicU64 = AtomicU64::new(0);
        Connection { lives: Arc::clone(lives), id: ID.fetch_add(1, Ordering::Relaxed), client: None }
    }

    /// A statement, with a kill before it, under it if it can be asked `again`, or none.
    async fn ask(&mut self, sql: &str, again: bool) -> Result<DBOutput<DefaultColumnType>, Failed> {
        let lives = Arc::clone(&self.lives);
        let mut lives = lives.lock().await;
        if lives.may_die(ONE_IN) {
            lives.die(false);
        }
        if again && lives.may_die(ONE_IN) {
            let wait = Duration::from_micros(lives.rng.below(UNDER_WAY_US_MAX));
            let client = self.client(&lives).await;
            // Nobody hears the answer, if there is one.
            let _ = tokio::time::timeout(wait, client.simple_query(sql)).await;
            lives.die(true);
        }
        let answer = self.client(&lives).await.simple_query(sql).await;
        match first_word(sql).as_str() {
            "BEGIN" | "START" => lives.open.insert(self.id),
            "COMMIT" | "END" | "ABORT" => lives.open.remove(&self.id),
            "ROLLBACK" if !sql.to_ascii_uppercase().contains(" TO") => lives.open.remove(&self.id),
            _ => false,
        };
        Ok(output(answer?))
    }

    async fn client(&mut self, lives: &Lives) -> &Client {
        if self.client.as_ref().is_none_or(|(life, _)| *life != lives.life) {
            self.client = Some((lives.life, lives.server.client().await));
        }
        &self.client.as_ref().unwrap().1
    }

    /// The rows of a query as they are compared.
    async fn rows(&mut self, query: &str) -> Result<Vec<String>, Failed> {
        match self.ask(query, true).await? {
            DBOutput::Rows { rows, .. } => Ok(normal(rows.into_iter().map(|row: Vec<String>| row.join(" ")))),
            _ => Err(Failed("no rows".into())),
        }
    }
}

#[async_trait::async_trait]
impl sqllogictest::AsyncDB for Connection {
    type Error = Failed;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Failed> {
        self.ask(sql, matches!(first_word(sql).as_str(), "SELECT" | "VALUES" | "TABLE" | "SHOW")).await
    }

    fn engine_name(&self) -> &str {
        LABEL
    }

    async fn shutdown(&mut self) {}
}

/// What a run of a file has come to.
#[derive(Default)]
struct Outcome {
    problems: Vec<String>,
    kills: [usize; 2],
    /// Views that have lived through a kill, and views that were stopped by rows that were there for a while.
    views: usize,
    stopped: usize,
}

/// Whether a statement could be refused, or a view be lost, because a view stands on what it changes.
fn changes_definitions(sql: &str) -> bool {
    matches!(first_word(sql).as_str(), "DROP" | "ALTER") || sql.to_ascii_uppercase().contains("OR REPLACE")
}

async fn check_file(path: &Path, seed: u64) -> Outcome {
    let lives = Arc::new(Mutex::new(Lives::new(seed)));
    let mut outcome = Outcome::default();
    let mut beside = Connection::new(&lives);
    let mut runner = sqllogictest::Runner::new(|| async { Ok(Connection::new(&lives)) });
    let records: Vec<Record<DefaultColumnType>> = sqllogictest::parse_file(path).unwrap();
    let standing = standing_queries(path);
    let last_change = records.iter().rposition(|record| match record {
        Record::Statement { sql, .. } | Record::Query { sql, .. } => changes_definitions(sql),
        _ => false,
    });
    let mut made = BTreeSet::new();
    for (at, record) in records.into_iter().enumerate() {
        let query = match &record {
            Record::Query { loc, .. } => standing.iter().position(|q| q.line == loc.line()),
            _ => None,
        };
        if let Err(e) = runner.run_async(record).await {
            outcome.problems.push(format!("{}", e.display(false)));
        }
        let calm = {
            let mut lives = lives.lock().await;
            lives.open.is_empty().then(|| lives.rng.below(4))
        };
        if calm == Some(0)
            && let Err(e) = beside.ask("CHECKPOINT", true).await
        {
            outcome.problems.push(format!("CHECKPOINT: {e}"));
        }
        if let (Some(n), Some(_)) = (query, calm)
            && last_change.is_none_or(|last| at > last)
        {
            make(&mut beside, n, &standing[n], &mut outcome).await;
            made.insert(n);
        }
    }
    for (n, query) in standing.iter().enumerate() {
        if !made.contains(&n) {
            make(&mut beside, n, query, &mut outcome).await;
        }
    }
    // Before the last death and after it.
    for what in ["before", "after"] {
        for (n, query) in standing.iter().enumerate() {
            let expected = normal(query.expected.iter().cloned());
            let view = format!("SELECT * FROM standing_{n}");
            let mut found = beside.rows(&view).await;
            if found.as_ref().is_err_and(|e| e.0.contains("(55000)")) && what == "before" && made.remove(&n) {
                // What was there halfway through the file may rightly stop a query that holds at its end.
                outcome.stopped += 1;
                if let Err(e) = beside.ask(&format!("DROP MATERIALIZED VIEW IF EXISTS standing_{n}"), true).await {
                    outcome.problems.push(format!("line {}: {e}", query.line));
                }
                make(&mut beside, n, query, &mut outcome).await;
                found = beside.rows(&view).await;
            }
            for (form, found) in [("as a view", found), ("as a query", beside.rows(&query.sql).await)] {
                match found {
                    Ok(found) if found == expected => {}
                    Ok(found) => outcome.problems.push(format!(
                        "line {}: {form} {what} the last kill\n  {}\n  expected {expected:?}\n  found    {found:?}",
                        query.line, query.sql
                    )),
                    Err(e) => {
                        outcome.problems.push(format!("line {}: {form} {what}: {e}\n  {}", query.line, query.sql))
                    }
                }
            }
        }
        if what == "before" {
            lives.lock().await.die(false);
        }
    }
    outcome.views = standing.len();
    let mut lives = lives.lock().await;
    outcome.kills = lives.kills;
    lives.server.kill();
    let checked = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(["fsck", "--config", "/dev/null", "--data-dir"])
        .arg(lives.data.path())
        .output()
        .unwrap();
    if !checked.status.success() {
        outcome.problems.push(format!("fsck: {}", String::from_utf8_lossy(&checked.stdout)));
    }
    outcome
}

/// Makes a standing query a view.
async fn make(beside: &mut Connection, n: usize, query: &Standing, outcome: &mut Outcome) {
    let create = format!("CREATE MATERIALIZED VIEW IF NOT EXISTS standing_{n} AS {}", query.sql);
    if let Err(e) = beside.ask(&create, true).await {
        outcome.problems.push(format!("line {}: {e}\n  {}", query.line, query.sql));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_tests_give_the_same_rows_from_a_server_that_is_killed() {
    let (seed, wanted) = (number("MILLSTREAM_SEED", 1), number("MILLSTREAM_SAMPLE", SAMPLE) as usize);
    let sample = sample(seed, wanted);
    assert!(sample.len() == wanted || std::env::var("MILLSTREAM_SLT").is_ok(), "only {} files", sample.len());
    let run = |(n, path): (usize, PathBuf)| async move {
        let file_seed = seed.wrapping_mul(1_000_003).wrapping_add(n as u64);
        let file = path.clone();
        let check = tokio::spawn(async move { check_file(&file, file_seed).await });
        let outcome = match tokio::time::timeout(FILE_TIME_MAX, check).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(e)) => Outcome { problems: vec![format!("panicked: {e}")], ..Outcome::default() },
            Err(_) => Outcome { problems: vec!["did not end in time".into()], ..Outcome::default() },
        };
        (name_of(&path), outcome)
    };
    let files = sample.len();
    let outcomes: Vec<(String, Outcome)> =
        futures::stream::iter(sample.into_iter().enumerate()).map(run).buffer_unordered(AT_ONCE).collect().await;
    let mut report = String::new();
    for (name, outcome) in &outcomes {
        if !outcome.problems.is_empty() {
            report.push_str(&format!("== {name}\n{}\n", outcome.problems.join("\n")));
        }
    }
    assert!(report.is_empty(), "{report}seed {seed}: MILLSTREAM_SEED={seed} MILLSTREAM_SAMPLE={wanted} runs it again");
    let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(|(_, o)| of(o)).sum::<usize>();
    let (after, under, views, stopped) =
        (sum(|o| o.kills[0]), sum(|o| o.kills[1]), sum(|o| o.views), sum(|o| o.stopped));
    println!("seed {seed}: {files} files, {after} kills after an answer, {under} under a statement, {views} views");
    // Few kills, or views that are made anew, would prove little.
    assert!(
        after >= files && (under > 0 || files < 20) && stopped * 10 <= views,
        "{after} {under} {stopped} of {views}"
    );
}

/// What a statement has answered, as sqllogictest takes it.
pub fn output(messages: Vec<SimpleQueryMessage>) -> DBOutput<DefaultColumnType> {
    let (mut columns, mut rows, mut count) = (None, Vec::new(), 0);
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(told) => columns = Some(told.len()),
            SimpleQueryMessage::Row(row) => {
                let shown = |value: Option<&str>| match value {
                    None => "NULL".to_string(),
                    Some("") => "(empty)".to_string(),
                    Some(value) => value.to_string(),
                };
                rows.push((0..row.len()).map(|c| shown(row.get(c))).collect());
            }
            SimpleQueryMessage::CommandComplete(n) => count = n,
            _ => {}
        }
    }
    match columns {
        Some(n) => DBOutput::Rows { types: vec![DefaultColumnType::Any; n], rows },
        None => DBOutput::StatementComplete(count),
    }
}
