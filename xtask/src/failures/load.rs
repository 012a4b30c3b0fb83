//! What the cluster works at while it is being broken, and what must be true of it: transfers whose total is 0 in every read, statements
//! whose acknowledgement is a promise, and rows from a file through a join and a window to files, each there once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::cluster::PG_PORT;
use super::net::{COORDINATORS, address};
use super::published::{KEYS, Published};
use crate::accounts::{self, ACCOUNTS};
use crate::bench::measure::now;
use crate::bench::{Result, told};

const WRITERS: i64 = 3;
/// Rows of a statement at most.
const ROWS_MAX: i64 = 3;
const WRITER_REST: Duration = Duration::from_millis(30);
/// The reader in a transaction counts a table that grows.
const READER_RESTS: [Duration; 2] = [Duration::from_millis(15), Duration::from_millis(100)];
/// How long a client waits for one answer, and to be connected, before it goes on to the next coordinator.
const PATIENCE: Duration = Duration::from_secs(5);
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// Between two portions of the input, and rows of one at most.
const INPUT_REST: Duration = Duration::from_millis(50);
const INPUT_ROWS_MAX: u64 = 20;
const SINK_REST: Duration = Duration::from_millis(200);
/// How long the last statements may take when all is calm.
const CALM_MAX: Duration = Duration::from_secs(90);
/// Rows of the input in one window: ten a second of event time.
const ROWS_OF_MINUTE: u64 = 600;
const SECOND: Duration = Duration::from_secs(1);

/// SQLSTATEs that a client is told when a coordinator stops, stands by, or waits for workers; it tries again.
const PASSING: [&str; 4] = ["57P01", "57P03", "40001", "08006"];

/// Rows of text.
type Rows = Vec<Vec<Option<String>>>;

/// What became of a statement.
enum Answer {
    Rows(Rows),
    /// Nobody knows whether it has happened.
    Unknown,
}

/// What the clients have seen so far.
#[derive(Default)]
pub struct Seen {
    ends: AtomicBool,
    /// Of each acknowledged statement, and of each read, when it was begun and when it was answered; until somebody takes them.
    acknowledged: Mutex<Vec<(Instant, Instant)>>,
    read: Mutex<Vec<(Instant, Instant)>>,
    statements: AtomicU64,
    unknown: AtomicU64,
    reads: AtomicU64,
    sent: AtomicU64,
    published: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Seen {
    fn wrong(&self, what: String) {
        let mut wrong = self.wrong.lock();
        if wrong.len() < 100 {
            eprintln!("   VIOLATION: {what}");
            wrong.push(what);
        }
    }

    fn ended(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }
}

fn cells(message: &SimpleQueryMessage) -> Option<Vec<Option<String>>> {
    match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|c| row.get(c).map(str::to_string)).collect()),
        _ => None,
    }
}

/// The first answer to something that was begun at `since` or later.
fn first_after(of: &Mutex<Vec<(Instant, Instant)>>, since: Instant) -> Option<Instant> {
    of.lock().iter().filter(|(begun, _)| *begun >= since).map(|(_, done)| *done).min()
}

fn longest_gap(since: Instant, mut times: Vec<Instant>, until: Instant) -> Duration {
    times.push(until);
    times.sort();
    let (mut last, mut longest) = (since, Duration::ZERO);
    for time in times {
        longest = longest.max(time.saturating_duration_since(last));
        last = time;
    }
    longest
}

/// A client of whichever coordinator leads.
pub struct Anywhere {
    hosts: Vec<String>,
    /// The host that is tried next.
    next: usize,
    client: Option<Client>,
    /// Counts connections: what one session has seen says nothing of another.
    session: u64,
    seen: Arc<Seen>,
}

impl Anywhere {
    pub fn new(seen: &Arc<Seen>) -> Anywhere {
        let hosts = COORDINATORS.iter().map(|seat| address(*seat)).collect();
        Anywhere { hosts, next: 0, client: None, session: 0, seen: Arc::clone(seen) }
    }

    async fn connect(&mut self) -> bool {
        for _ in 0..self.hosts.len() {
            let mut config = Config::new();
            config.host(&self.hosts[self.next]).port(PG_PORT).user("rig").dbname("dev");
            match timeout(CONNECT_PATIENCE, config.connect(NoTls)).await {
                Ok(Ok((client, connection))) => {
                    // Its error reaches whoever uses the client.
                    tokio::spawn(connection);
                    self.client = Some(client);
                    self.session += 1;
                    return true;
                }
                Ok(Err(error)) => self.judge("a login", &error),
                Err(_) => {}
            }
            self.next = (self.next + 1) % self.hosts.len();
        }
        false
    }

    /// An error that does not say that a coordinator goes or comes is one that nobody should meet.
    fn judge(&self, what: &str, error: &tokio_postgres::Error) {
        if let Some(code) = error.code().map(|code| code.code())
            && !PASSING.contains(&code)
        {
            self.seen.wrong(format!("{what} fails with {code}: {}", told(error)));
        }
    }

    async fn ask(&mut self, sql: &str) -> Answer {
        if self.client.is_none() && !self.connect().await {
            tokio::time::sleep(INPUT_REST).await;
            return Answer::Unknown;
        }
        let Some(client) = &self.client else { return Answer::Unknown };
        match timeout(PATIENCE, client.simple_query(sql)).await {
            Ok(Ok(messages)) => {
                return Answer::Rows(messages.iter().filter_map(cells).collect());
            }
            Ok(Err(error)) => self.judge(sql, &error),
            Err(_) => {}
        }
        self.client = None;
        Answer::Unknown
    }

    /// The same again and again until it is acknowledged, or for so long.
    pub async fn insist(&mut self, sql: &str, at_most: Duration) -> Result<Rows> {
        let start = now();
        loop {
            if let Answer::Rows(rows) = self.ask(sql).await {
                return Ok(rows);
            }
            if start.elapsed() > at_most {
                return Err(format!("nobody answers {sql} for {at_most:?}").into());
            }
        }
    }

    /// Like [`insist`](Self::insist), for a number.
    pub async fn number(&mut self, sql: &str, at_most: Duration) -> Result<u64> {
        let rows = self.insist(sql, at_most).await?;
        let number = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok());
        number.ok_or_else(|| format!("{sql} gives no number: {rows:?}").into())
    }
}

/// The rows of one statement that was sent.
struct Sent {
    first: i64,
    rows: i64,
    acknowledged: bool,
}

/// Everything that works at the cluster.
pub struct Load {
    seen: Arc<Seen>,
    writers: Vec<JoinHandle<Vec<Sent>>>,
    others: Vec<JoinHandle<()>>,
    input: Option<JoinHandle<std::io::Result<()>>>,
    sink: Option<JoinHandle<Published>>,
    out: PathBuf,
}

/// What was true in the end.
#[derive(Default)]
pub struct Outcome {
    pub statements: u64,
    pub unknown: u64,
    pub transfers: u64,
    /// Acknowledged rows that are gone; rows that are there more often than they were sent; rows that nobody sent.
    pub transfers_lost: u64,
    pub transfers_repeated: u64,
    pub transfers_alien: u64,
    pub reads: u64,
    pub sent: u64,
    pub published: u64,
    pub files: u64,
    pub lost: u64,
    pub repeated: u64,
    pub alien: u64,
    pub reordered: u64,
    pub wrong: Vec<String>,
}

impl Load {
    /// Makes tables, views, source and sink, and starts to work; files are in `folder`.
    pub async fn start(folder: &Path, seed: u64, seen: &Arc<Seen>) -> Result<Load> {
        let (input, out) = (folder.join("in.ndjson"), folder.join("out"));
        let mut file = OpenOptions::new().create_new(true).append(true).open(&input)?;
        let seen = Arc::clone(seen);
        append(&mut file, &seen, 100)?;
        let mut client = Anywhere::new(&seen);
        client.insist("SELECT 1", CALM_MAX).await?;
        let made = client.client.as_ref().ok_or("the connection has broken at the start")?;
        accounts::create(made, false).await?;
        made.batch_execute(&format!(
            "CREATE MATERIALIZED VIEW moved AS SELECT count(*) AS n FROM transfers;
             CREATE TABLE names (k int, name text) APPEND ONLY;
             INSERT INTO names SELECT n, 'name ' || n FROM generate_series(0, {}) AS g (n);
             CREATE SOURCE e (id int, k int, at timestamp, WATERMARK FOR at AS at - INTERVAL '1 second')
                 WITH (connector = 'file', path = '{}', format = 'json', follow = 'true', poll_interval = '20ms');
             CREATE MATERIALIZED VIEW minutes AS SELECT window_start, count(*) AS n, sum(id) AS ids
                 FROM TUMBLE(e, at, INTERVAL '1 minute') GROUP BY window_start;
             CREATE SINK k AS SELECT e.id, names.name, e.k % 2 AS half FROM e JOIN names ON e.k = names.k
                 WITH (connector = 'file', path = '{}', delivery = 'exactly_once', partition_by = 'half')
                 FORMAT PLAIN ENCODE JSON",
            KEYS - 1,
            input.display(),
            out.display()
        ))
        .await?;
        drop(client);
        let writers = (0..WRITERS).map(|n| tokio::spawn(write(Arc::clone(&seen), n, seed))).collect();
        let others = (0..READER_RESTS.len()).map(|n| tokio::spawn(read(Arc::clone(&seen), n))).collect();
        let fed = Arc::clone(&seen);
        let input = tokio::spawn(async move {
            let mut random = SmallRng::seed_from_u64(seed);
            while !fed.ended() {
                append(&mut file, &fed, random.random_range(1..=INPUT_ROWS_MAX))?;
                tokio::time::sleep(INPUT_REST).await;
            }
            append(&mut file, &fed, 50)
        });
        let (looks, to) = (Arc::clone(&seen), out.clone());
        let sink = tokio::spawn(async move {
            let mut published = Published::new(&to);
            while !looks.ended() {
                published.look(|| looks.sent.load(Ordering::Acquire));
                looks.published.store(published.rows, Ordering::Release);
                tokio::time::sleep(SINK_REST).await;
            }
            published
        });
        Ok(Load { seen, writers, others, input: Some(input), sink: Some(sink), out })
    }

    /// Forgets when statements were answered.
    pub fn forget_times(&self) {
        self.seen.acknowledged.lock().clear();
        self.seen.read.lock().clear();
    }

    /// The longest time without an acknowledgement, from `since` until now.
    pub fn longest_silence(&self, since: Instant) -> Duration {
        let times = self.seen.acknowledged.lock().iter().map(|(_, done)| *done).filter(|done| *done > since).collect();
        longest_gap(since, times, now())
    }

    /// Waits until a transfer that was begun at `since` or later is acknowledged, a read that was begun then is answered, and everything
    /// that was sent until then is in the files of the sink. Returns after how long. Errors: not in this time; or something was wrong.
    pub async fn resumed(&self, since: Instant, at_most: Duration) -> Result<Duration> {
        let sent = self.seen.sent.load(Ordering::Acquire);
        loop {
            let written = first_after(&self.seen.acknowledged, since);
            let read = first_after(&self.seen.read, since);
            let published = self.seen.published.load(Ordering::Acquire);
            if written.is_some() && read.is_some() && published >= sent {
                return Ok(since.elapsed());
            }
            self.check()?;
            if since.elapsed() > at_most {
                return Err(format!(
                    "nothing goes on {at_most:?} after calm: a transfer is {}, a read is {}, {published} of {sent} rows \
                     are published",
                    if written.is_some() { "acknowledged" } else { "not acknowledged" },
                    if read.is_some() { "answered" } else { "not answered" }
                )
                .into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Errors: something that clients have seen must not be.
    pub fn check(&self) -> Result<()> {
        match self.seen.wrong.lock().first() {
            Some(wrong) => Err(wrong.clone().into()),
            None => Ok(()),
        }
    }

    /// Ends the work and says what is true in the end.
    pub async fn end(&mut self) -> Result<Outcome> {
        let seen = Arc::clone(&self.seen);
        seen.ends.store(true, Ordering::Relaxed);
        let mut sent = Vec::new();
        for writer in std::mem::take(&mut self.writers) {
            sent.extend(writer.await?);
        }
        for other in std::mem::take(&mut self.others) {
            other.await?;
        }
        if let Some(input) = self.input.take() {
            input.await??;
        }
        let mut outcome = Outcome {
            statements: seen.statements.load(Ordering::Relaxed),
            unknown: seen.unknown.load(Ordering::Relaxed),
            reads: seen.reads.load(Ordering::Relaxed),
            sent: seen.sent.load(Ordering::Relaxed),
            ..Outcome::default()
        };
        if let Some(sink) = self.sink.take() {
            audit_sink(&mut outcome, sink.await?, &self.out).await;
        }
        let mut client = Anywhere::new(&seen);
        audit_transfers(&mut outcome, &mut client, &sent).await?;
        audit_views(&mut outcome, &mut client).await?;
        outcome.wrong.extend(seen.wrong.lock().iter().cloned());
        Ok(outcome)
    }
}

/// Adds rows to the input, in portions that may end in the middle of a line.
fn append(file: &mut File, seen: &Seen, rows: u64) -> std::io::Result<()> {
    let first = seen.sent.load(Ordering::Acquire);
    let line = |id: u64| {
        let (day, hour, minute, second) = (id / 864_000 + 1, id / 36_000 % 24, id / 600 % 60, id / 10 % 60);
        let at = format!("2026-01-{day:02} {hour:02}:{minute:02}:{second:02}");
        format!("{{\"id\":{id},\"k\":{},\"at\":\"{at}\"}}\n", id % KEYS)
    };
    let text: String = (first..first + rows).map(line).collect();
    // Before they can be published.
    seen.sent.store(first + rows, Ordering::Release);
    for piece in text.as_bytes().chunks(1000) {
        file.write_all(piece)?;
    }
    Ok(())
}

async fn write(seen: Arc<Seen>, writer: i64, seed: u64) -> Vec<Sent> {
    let mut random = SmallRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(writer as u64));
    let (mut client, mut sent) = (Anywhere::new(&seen), Vec::new());
    let mut first = writer * ROWS_MAX;
    while !seen.ended() {
        let rows = random.random_range(1..=ROWS_MAX);
        let row = |id: i64| {
            let (from, to) = (random.random_range(0..ACCOUNTS), random.random_range(0..ACCOUNTS));
            format!("({id}, {from}, {to}, {})", random.random_range(0..100))
        };
        let values: Vec<String> = (first..first + rows).map(row).collect();
        let begun = now();
        let answer = client.ask(&format!("INSERT INTO transfers VALUES {}", values.join(", "))).await;
        let acknowledged = matches!(answer, Answer::Rows(_));
        if acknowledged {
            seen.statements.fetch_add(1, Ordering::Relaxed);
            seen.acknowledged.lock().push((begun, now()));
        } else {
            // Whether it has happened is seen in the end: it is not sent again.
            seen.unknown.fetch_add(1, Ordering::Relaxed);
        }
        sent.push(Sent { first, rows, acknowledged });
        first += WRITERS * ROWS_MAX;
        tokio::time::sleep(WRITER_REST).await;
    }
    sent
}

/// Reads the total all the time, and how many transfers there are: within a session that never goes down, since epochs never go back.
async fn read(seen: Arc<Seen>, reader: usize) {
    let mut client = Anywhere::new(&seen);
    let (mut session, mut most) = (0, 0);
    while !seen.ended() {
        // One reader asks for everything at once, the other one in a transaction, whose reads are of one epoch.
        let sql = match reader {
            0 => "SELECT total::text, accounts::text, n::text FROM total, moved".to_string(),
            _ => format!(
                "BEGIN; {}; SELECT n::text, (SELECT count(*) FROM transfers)::text FROM moved; COMMIT",
                accounts::READ
            ),
        };
        let begun = now();
        if let Answer::Rows(rows) = client.ask(&sql).await {
            seen.reads.fetch_add(1, Ordering::Relaxed);
            seen.read.lock().push((begun, now()));
            let cell = |row: usize, column: usize| rows.get(row).and_then(|row| row.get(column)?.as_deref());
            if !accounts::is_right(cell(0, 0), cell(0, 1)) {
                seen.wrong(format!("a read of the total gives {rows:?}"));
            }
            let moved = if reader == 0 { cell(0, 2) } else { cell(1, 0) };
            if reader != 0 && moved != cell(1, 1) {
                seen.wrong(format!("a view and its table differ within one transaction: {rows:?}"));
            }
            let moved: u64 = moved.and_then(|moved| moved.parse().ok()).unwrap_or(0);
            if client.session != session {
                (session, most) = (client.session, 0);
            }
            if moved < most {
                seen.wrong(format!("a session has seen {most} transfers and now sees {moved}"));
            }
            most = moved;
        }
        tokio::time::sleep(READER_RESTS[reader]).await;
    }
}

/// Every row of the input is in the files once, and no later one is published before it.
async fn audit_sink(outcome: &mut Outcome, mut published: Published, out: &Path) {
    let start = now();
    let sent = outcome.sent;
    published.look(|| sent);
    while published.rows < sent && start.elapsed() < CALM_MAX {
        tokio::time::sleep(SINK_REST).await;
        published.look(|| sent);
    }
    // Something that is published twice may come late.
    tokio::time::sleep(SECOND).await;
    published.look(|| sent);
    // Once more from the first file on, beside what was seen when each was new.
    let mut again = Published::new(out);
    again.look(|| sent);
    if (again.rows, again.files()) != (published.rows, published.files()) {
        outcome.wrong.push(format!(
            "{} rows in {} files were seen as they came, {} in {} are there",
            published.rows,
            published.files(),
            again.rows,
            again.files()
        ));
    }
    (outcome.published, outcome.files) = (published.rows, published.files());
    let lost = published.lost(outcome.sent);
    outcome.lost = lost.len() as u64;
    (outcome.repeated, outcome.alien) = (published.repeated, published.alien);
    outcome.reordered = published.reordered();
    if outcome.lost + outcome.repeated + outcome.alien + outcome.reordered > 0 {
        outcome.wrong.push(format!(
            "files of the sink: {} lost ({:?} …), {} repeated, {} alien, {} reordered",
            outcome.lost,
            &lost[..lost.len().min(20)],
            outcome.repeated,
            outcome.alien,
            outcome.reordered
        ));
    }
    outcome.wrong.append(&mut published.wrong);
}

/// What was acknowledged is there once; of what was not, each statement is there as a whole or not at all.
async fn audit_transfers(outcome: &mut Outcome, client: &mut Anywhere, sent: &[Sent]) -> Result<()> {
    let mut there: BTreeMap<i64, u64> = BTreeMap::new();
    for row in client.insist("SELECT id FROM transfers WHERE id >= 0", CALM_MAX).await? {
        let id = row.first().and_then(|id| id.as_ref()?.parse().ok()).ok_or("a transfer without a number")?;
        *there.entry(id).or_default() += 1;
    }
    outcome.transfers = there.values().sum();
    let mut known: BTreeSet<i64> = BTreeSet::new();
    let mut torn = Vec::new();
    for statement in sent {
        let ids = statement.first..statement.first + statement.rows;
        let found = ids.clone().filter(|id| there.contains_key(id)).count() as i64;
        if statement.acknowledged {
            outcome.transfers_lost += (statement.rows - found) as u64;
        } else if found != 0 && found != statement.rows {
            torn.push(statement.first);
        }
        known.extend(ids);
    }
    outcome.transfers_repeated = there.values().map(|times| times - 1).sum();
    outcome.transfers_alien = there.keys().filter(|id| !known.contains(id)).count() as u64;
    let (lost, repeated, alien) = (outcome.transfers_lost, outcome.transfers_repeated, outcome.transfers_alien);
    if lost + repeated + alien > 0 {
        outcome.wrong.push(format!("transfers: {lost} acknowledged and gone, {repeated} repeated, {alien} alien"));
    }
    if !torn.is_empty() {
        outcome.wrong.push(format!("statements of which a part has happened: those that begin with {torn:?}"));
    }
    Ok(())
}

/// Every view is what its query gives over everything.
async fn audit_views(outcome: &mut Outcome, client: &mut Anywhere) -> Result<()> {
    let sorted = |mut rows: Rows| {
        rows.sort();
        rows
    };
    for (view, query) in [
        ("balance", accounts::BALANCE.to_string()),
        ("total", format!("SELECT 0, {ACCOUNTS}")),
        ("moved", "SELECT count(*) FROM transfers".to_string()),
    ] {
        let found = sorted(client.insist(&format!("SELECT * FROM {view}"), CALM_MAX).await?);
        let wanted = sorted(client.insist(&query, CALM_MAX).await?);
        if found != wanted {
            outcome.wrong.push(format!("view {view} is {found:?}, its query gives {wanted:?}"));
        }
    }
    let sent = outcome.sent;
    let wanted: Rows = (0..sent.div_ceil(ROWS_OF_MINUTE))
        .map(|window| {
            let (first, end) = (window * ROWS_OF_MINUTE, ((window + 1) * ROWS_OF_MINUTE).min(sent));
            let ids: u64 = (first..end).sum();
            let (day, hour, minute) = (window / 1440 + 1, window / 60 % 24, window % 60);
            let start = format!("2026-01-{day:02} {hour:02}:{minute:02}:00");
            vec![Some(start), Some((end - first).to_string()), Some(ids.to_string())]
        })
        .collect();
    let found = client.insist("SELECT window_start, n, ids FROM minutes", CALM_MAX).await?;
    if sorted(found.clone()) != sorted(wanted.clone()) {
        let differ = found.iter().find(|row| !wanted.contains(row));
        outcome.wrong.push(format!(
            "view minutes has {} windows for {}; one that differs: {differ:?}",
            found.len(),
            wanted.len()
        ));
    }
    for job in client.insist("SELECT name, state, error FROM ms_catalog.jobs", CALM_MAX).await? {
        if job.get(1).and_then(Option::as_deref) != Some("running") {
            outcome.wrong.push(format!("a job does not run in the end: {job:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_silence_may_be_at_either_end() {
        let start = now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for (times, until, longest) in [(vec![], 7, 7), (vec![5, 1], 6, 4), (vec![1, 2], 9, 7), (vec![4, 5], 6, 4)] {
            let times = times.into_iter().map(at).collect();
            assert_eq!(longest_gap(start, times, at(until)), Duration::from_secs(longest));
        }
    }
}
