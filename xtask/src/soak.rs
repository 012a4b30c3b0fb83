//! `cargo xtask soak`: whether a server that works and dies for a long time stays as it was.
//!
//! NEXMark q5 and q8 stand over the generator, and accounts over transfers that are changed all the time within fixed keys, so nothing
//! that the server holds has a reason to grow. It dies by kill -9 again and again and starts on the same folder. What it
//! holds is looked at in even steps; the last third of the run must be like the first. The sum over all accounts must be 0
//! in every read, and `fsck` must find everything whole after every death.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::accounts::{self, ACCOUNTS};
use crate::bench::measure::{ms_since, now};
use crate::bench::server::{Server, fsck};
use crate::bench::{Error, Options, Result, number, release_build, told};

pub const USAGE: &str = "cargo xtask soak [--minutes N] [--kill-every SECONDS] [--sample SECONDS] [--rate N] [--binary PATH] [--scratch DIR] [--csv FILE]";

/// Transfers are changed, taken away and made again within so many keys.
const TRANSFERS: i64 = 20_000;
const TRANSFERS_A_STATEMENT: i64 = 50;
const WRITER_REST: Duration = Duration::from_millis(20);
const READER_REST: Duration = Duration::from_millis(5);
/// Seconds of event time in one of real time: a window of ten seconds closes every second.
const EVENT_TIME_PACE: u64 = 10;
/// The part of the run, at its beginning, whose samples do not count.
const WARM_UP: f64 = 0.1;
const GROWTH_MAX: f64 = 1.2;
const LOOK: Duration = Duration::from_millis(20);

/// What the command line chooses.
struct Plan {
    seconds: f64,
    /// From one death to the next, a quarter more or less.
    kill_every_s: f64,
    sample_every_s: f64,
    /// Events a second.
    rate: u64,
    growth_max: f64,
}

/// What is looked at: a name, and how much more of it is noise whatever the factor says. A log below 16 MiB is never rewritten, so that
/// much of it, and of the disk, comes and goes.
const MEASURES: [(&str, f64); 9] = [
    ("resident MB", 24.0),
    ("held MB", 4.0),
    ("state kB", 512.0),
    ("store objects", 24.0),
    ("store kB", 2048.0),
    ("log kB", 17_000.0),
    ("disk MB", 40.0),
    ("open handles", 8.0),
    ("threads", 4.0),
];

/// A value for each of [`MEASURES`].
type Sample = [f64; MEASURES.len()];

#[derive(Default)]
struct Seen {
    reads: AtomicU64,
    /// Reads whose total was not 0.
    wrong: AtomicU64,
    statements: AtomicU64,
}

pub fn run(mut args: impl Iterator<Item = String>) -> std::result::Result<(), String> {
    let mut plan =
        Plan { seconds: 1800.0, kill_every_s: 60.0, sample_every_s: 5.0, rate: 20_000, growth_max: GROWTH_MAX };
    let (mut binary, mut scratch, mut csv) = (None, None, None);
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} needs a value; usage: {USAGE}"))?;
        let seconds = || value.parse::<f64>().ok().filter(|s| *s > 0.0).ok_or(format!("\"{value}\" is not a time"));
        match arg.as_str() {
            "--minutes" => plan.seconds = seconds()? * 60.0,
            "--kill-every" => plan.kill_every_s = seconds()?,
            "--sample" => plan.sample_every_s = seconds()?,
            "--rate" => plan.rate = number(&value)?.max(1),
            "--binary" => binary = Some(PathBuf::from(value)),
            "--scratch" => scratch = Some(PathBuf::from(value)),
            "--csv" => csv = Some(PathBuf::from(value)),
            _ => return Err(format!("there is no option \"{arg}\"; usage: {USAGE}")),
        }
    }
    let binary = binary.map_or_else(release_build, Ok)?;
    let options = Options { binary, rows: None, rounds: None, scratch };
    let outcome = soak(&plan, &options)?;
    println!("{}", outcome.table(plan.growth_max));
    if let Some(file) = csv {
        std::fs::write(&file, outcome.csv()).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    }
    outcome.verdict(&plan)
}

fn soak(plan: &Plan, options: &Options) -> std::result::Result<Outcome, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))?;
    runtime.block_on(go(plan, options)).map_err(|e| told(e.as_ref()))
}

/// What a run has come to.
#[derive(Default)]
struct Outcome {
    /// With the second of the run.
    samples: Vec<(f64, Sample)>,
    kills: u64,
    /// The longest that a killed server took to answer again.
    restart_ms_max: f64,
    reads: u64,
    wrong: u64,
    statements: u64,
    /// Rows that the two queries have given.
    results: f64,
    /// Lines of the server's log from WARN on.
    warnings: u64,
}

async fn go(plan: &Plan, options: &Options) -> Result<Outcome> {
    let mut server = Server::start_with(options, &[("MILLSTREAM_CHECKPOINT_INTERVAL", "1s")]).await?;
    create(&server.connect().await?, plan.rate).await?;
    let mut random = SmallRng::seed_from_u64(1);
    let mut outcome = Outcome::default();
    let seen = Arc::new(Seen::default());
    let start = now();
    let second = || ms_since(start) / 1e3;
    let (mut next_kill, mut next_sample) = (plan.kill_every_s, plan.sample_every_s);
    let mut beside = clients(&server, &seen, 0).await?;
    let mut looker = server.connect().await?;
    while second() < plan.seconds {
        tokio::time::sleep(LOOK).await;
        if second() >= next_sample {
            let sample = sample(&server, &looker).await?;
            outcome.samples.push((second(), sample));
            next_sample += plan.sample_every_s;
        }
        if second() >= next_kill {
            server.kill()?;
            outcome.kills += 1;
            for client in beside {
                // They end with the connection, or with what the server has refused.
                client.await??;
            }
            fsck(&options.binary, &server.data(), &[])?;
            outcome.restart_ms_max = outcome.restart_ms_max.max(server.restart().await?);
            beside = clients(&server, &seen, outcome.kills).await?;
            looker = server.connect().await?;
            next_kill = second() + plan.kill_every_s * random.random_range(0.75..1.25);
            eprintln!(
                "   {:.0} s: {} kills, {} reads of the total, {} not 0",
                second(),
                outcome.kills,
                seen.reads.load(Ordering::Relaxed),
                seen.wrong.load(Ordering::Relaxed)
            );
        }
    }
    let row = looker.query_one("SELECT q5.n, q8.n FROM q5, q8", &[]).await?;
    let (q5, q8): (i64, i64) = (row.get(0), row.get(1));
    if q5 == 0 || q8 == 0 {
        return Err(format!("the queries have no result: q5 {q5}, q8 {q8}").into());
    }
    server.kill()?;
    for client in beside {
        client.await??;
    }
    fsck(&options.binary, &server.data(), &[])?;
    let log = std::fs::read_to_string(server.scratch().join("log")).unwrap_or_default();
    for line in log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")) {
        outcome.warnings += 1;
        if outcome.warnings <= 10 {
            eprintln!("   {line}");
        }
    }
    outcome.results = (q5 + q8) as f64;
    outcome.reads = seen.reads.load(Ordering::Relaxed);
    outcome.wrong = seen.wrong.load(Ordering::Relaxed);
    outcome.statements = seen.statements.load(Ordering::Relaxed);
    Ok(outcome)
}

async fn create(client: &Client, rate: u64) -> Result<()> {
    let event_rate = (rate / EVENT_TIME_PACE).max(1);
    for table in ["person", "auction", "bid"] {
        client
            .batch_execute(&format!("CREATE SOURCE {table} (WATERMARK FOR date_time AS date_time - INTERVAL '4 seconds') WITH (connector = 'nexmark', table = '{table}', rate = {rate}, event_rate = {event_rate})"))
            .await?;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql-tests/nexmark");
    for (query, columns) in [("q5", "sum(num) AS bids"), ("q8", "max(window_start) AS newest")] {
        let text = std::fs::read_to_string(folder.join(format!("{query}.sql")))?;
        // The results of all time would grow; what they add up to does not.
        client
            .batch_execute(&format!(
                "CREATE SINK {query}_closed AS {text} EMIT ON WINDOW CLOSE WITH (connector = 'blackhole')"
            ))
            .await?;
        client
            .batch_execute(&format!(
                "CREATE MATERIALIZED VIEW {query} AS SELECT count(*) AS n, {columns} FROM ({text}) AS results"
            ))
            .await?;
    }
    accounts::create(client, true).await?;
    client
        .batch_execute(&format!(
            "INSERT INTO transfers SELECT n, n % 10, n % 7, n % 100 FROM generate_series(0, {}) AS g (n)",
            TRANSFERS - 1
        ))
        .await?;
    Ok(())
}

/// A writer and a reader, until the server dies.
async fn clients(server: &Server, seen: &Arc<Seen>, life: u64) -> Result<Vec<JoinHandle<Result<()>>>> {
    let (writer, reader) = (server.connect().await?, server.connect().await?);
    let (wrote, read) = (Arc::clone(seen), Arc::clone(seen));
    Ok(vec![
        tokio::spawn(async move { until_it_dies(write(writer, wrote, life).await) }),
        tokio::spawn(async move { until_it_dies(read_total(reader, read).await) }),
    ])
}

/// A connection that breaks is the server's death; an answer that is an error is not.
fn until_it_dies(ended: std::result::Result<(), tokio_postgres::Error>) -> Result<()> {
    match ended {
        Err(e) if e.as_db_error().is_some() => Err(Error::from(e)),
        _ => Ok(()),
    }
}

async fn write(client: Client, seen: Arc<Seen>, life: u64) -> std::result::Result<(), tokio_postgres::Error> {
    let mut random = SmallRng::seed_from_u64(life);
    loop {
        let mut values = Vec::new();
        let first = random.random_range(0..TRANSFERS - TRANSFERS_A_STATEMENT);
        for id in first..first + TRANSFERS_A_STATEMENT {
            let (from, to) = (random.random_range(0..ACCOUNTS), random.random_range(0..ACCOUNTS));
            values.push(format!("({id}, {from}, {to}, {})", random.random_range(0..100)));
        }
        let statement = match random.random_range(0..10) {
            0 => format!("DELETE FROM transfers WHERE id >= {first} AND id < {}", first + TRANSFERS_A_STATEMENT),
            1 => format!("UPDATE transfers SET amount = amount + 1, to_account = from_account WHERE id = {first}"),
            _ => format!(
                "INSERT INTO transfers VALUES {} ON CONFLICT (id) DO UPDATE SET from_account = excluded.from_account, \
                 to_account = excluded.to_account, amount = excluded.amount",
                values.join(", ")
            ),
        };
        client.batch_execute(&statement).await?;
        seen.statements.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(WRITER_REST).await;
    }
}

async fn read_total(client: Client, seen: Arc<Seen>) -> std::result::Result<(), tokio_postgres::Error> {
    loop {
        let row = client.query_one(accounts::READ, &[]).await?;
        let (total, accounts): (Option<String>, Option<String>) = (row.get(0), row.get(1));
        seen.reads.fetch_add(1, Ordering::Relaxed);
        if !accounts::is_right(total.as_deref(), accounts.as_deref()) && seen.wrong.fetch_add(1, Ordering::Relaxed) < 10
        {
            eprintln!("   the total of {accounts:?} accounts is {total:?}");
        }
        tokio::time::sleep(READER_REST).await;
    }
}

async fn sample(server: &Server, client: &Client) -> Result<Sample> {
    let checkpoints = client.query("SHOW CHECKPOINTS", &[]).await?;
    let state: f64 = checkpoints.first().map_or(Ok(0.0), |row| row.get::<_, &str>("state_bytes").parse())?;
    let told = metrics(server.http_port())?;
    let metric = |name: &str| told.get(name).copied().ok_or(format!("the server does not tell {name}"));
    let process = server.process_folder();
    let threads = std::fs::read_dir(process.join("task"))?.count();
    let handles = std::fs::read_dir(process.join("fd"))?.count();
    let mut store = Files::default();
    store.add(&server.data().join("checkpoints"));
    let mut all = Files::default();
    all.add(&server.data());
    Ok([
        server.usage()?.resident_mb as f64,
        metric("millstream_memory_used_bytes")? / 1e6,
        state / 1e3,
        store.count as f64,
        store.bytes as f64 / 1e3,
        metric("millstream_log_bytes")? / 1e3,
        all.on_disk as f64 / 1e6,
        handles as f64,
        threads as f64,
    ])
}

#[derive(Default)]
struct Files {
    count: u64,
    bytes: u64,
    on_disk: u64,
}

impl Files {
    /// Files that come and go meanwhile are there or are not.
    fn add(&mut self, folder: &Path) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                self.add(&entry.path());
                continue;
            }
            self.count += 1;
            self.bytes += metadata.len();
            self.on_disk += metadata.blocks() * 512;
        }
    }
}

/// The values that the server tells without labels, by name.
fn metrics(port: u16) -> Result<BTreeMap<String, f64>> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let pairs = answer.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs.filter_map(|(name, value)| Some((name.to_string(), value.trim().parse().ok()?))).collect())
}

/// Least, median and greatest of a part of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    least: f64,
    median: f64,
    greatest: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        Some(Spread { least, median: values[values.len() / 2], greatest })
    }

    /// Whether a later part is as this one: its median and its greatest value, by a factor and by what is noise.
    fn holds(self, later: Spread, growth_max: f64, noise: f64) -> bool {
        let within = |before: f64, after: f64| after <= before * growth_max + noise;
        within(self.median, later.median) && within(self.greatest, later.greatest)
    }
}

impl Outcome {
    /// A measure in the first third and in the last, without the time that it took to warm up.
    fn thirds(&self, measure: usize) -> Option<(Spread, Spread)> {
        let warm = (self.samples.len() as f64 * WARM_UP).ceil() as usize;
        let values: Vec<f64> = self.samples.iter().skip(warm).map(|(_, sample)| sample[measure]).collect();
        let third = values.len() / 3;
        Some((Spread::of(values[..third].to_vec())?, Spread::of(values[values.len() - third..].to_vec())?))
    }

    fn table(&self, growth_max: f64) -> String {
        let mut out = format!(
            "{:<14} {:>27}   {:>27}\n{:<14} {:>9}{:>9}{:>9}   {:>9}{:>9}{:>9}   bound\n",
            "", "first third", "last third", "", "min", "median", "max", "min", "median", "max"
        );
        for (measure, (name, noise)) in MEASURES.iter().enumerate() {
            let Some((first, last)) = self.thirds(measure) else { continue };
            let flat = if first.holds(last, growth_max, *noise) { "flat" } else { "GROWS" };
            let _ = writeln!(
                out,
                "{name:<14} {:>9.1}{:>9.1}{:>9.1}   {:>9.1}{:>9.1}{:>9.1}   × {growth_max} + {noise}: {flat}",
                first.least, first.median, first.greatest, last.least, last.median, last.greatest
            );
        }
        let _ = write!(
            out,
            "{} samples, {} kills, longest restart {:.0} ms, {} statements, {} reads of the total, {} not 0, {} results, {} warnings",
            self.samples.len(),
            self.kills,
            self.restart_ms_max,
            self.statements,
            self.reads,
            self.wrong,
            self.results,
            self.warnings
        );
        out
    }

    fn csv(&self) -> String {
        let names: Vec<&str> = MEASURES.iter().map(|(name, _)| *name).collect();
        let mut out = format!("second,{}\n", names.join(","));
        for (second, sample) in &self.samples {
            let values: Vec<String> = sample.iter().map(|value| format!("{value:.1}")).collect();
            let _ = writeln!(out, "{second:.1},{}", values.join(","));
        }
        out
    }

    /// Flat, and every total 0; or what is not so.
    fn verdict(&self, plan: &Plan) -> std::result::Result<(), String> {
        let mut wrong = Vec::new();
        for (measure, (name, noise)) in MEASURES.iter().enumerate() {
            match self.thirds(measure) {
                Some((first, last)) if first.holds(last, plan.growth_max, *noise) => {}
                Some((first, last)) => wrong.push(format!(
                    "{name} grows: median {:.1} to {:.1}, max {:.1} to {:.1}",
                    first.median, last.median, first.greatest, last.greatest
                )),
                None => wrong.push(format!("too few samples of {name}")),
            }
        }
        if self.wrong > 0 || self.reads == 0 {
            wrong.push(format!("{} of {} reads of the total were not 0", self.wrong, self.reads));
        }
        if !wrong.is_empty() {
            return Err(wrong.join("\n"));
        }
        println!(
            "flat: no measure's median or maximum in the last third is above {} × that of the first, plus its noise",
            plan.growth_max
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan { seconds: 20.0, kill_every_s: 4.5, sample_every_s: 0.5, rate: 2_000, growth_max: 2.0 }
    }

    fn samples(of: impl Fn(usize) -> f64) -> Outcome {
        let samples = (0..60).map(|n| (n as f64, [of(n); MEASURES.len()])).collect();
        Outcome { samples, reads: 1, ..Outcome::default() }
    }

    #[test]
    fn growth_is_told_from_a_saw() {
        let plan = Plan { growth_max: GROWTH_MAX, ..plan() };
        samples(|n| 100_000.0 + (n % 7) as f64 * 50_000.0).verdict(&plan).unwrap();
        let grows = samples(|n| 100_000.0 + n as f64 * 2_000.0).verdict(&plan).unwrap_err();
        assert_eq!(grows.lines().count(), MEASURES.len(), "{grows}");
        // A single measure that grows is enough, and so is a peak.
        let mut one = samples(|_| 100.0);
        one.samples.last_mut().unwrap().1[7] = 150.0;
        assert!(one.verdict(&plan).unwrap_err().starts_with("open handles grows"));
        assert!(Outcome { wrong: 1, ..samples(|_| 1.0) }.verdict(&plan).unwrap_err().contains("1 of 1"));
        assert!(Outcome { reads: 1, ..Outcome::default() }.verdict(&plan).unwrap_err().contains("too few"));
    }

    /// The server as the tests of the workspace build it.
    #[test]
    fn a_short_soak_is_flat() {
        let here = std::env::current_exe().unwrap();
        let binary = here.parent().unwrap().parent().unwrap().join("millstream");
        assert!(binary.is_file(), "{} is not there: test with --workspace", binary.display());
        let options = Options { binary, rows: None, rounds: None, scratch: None };
        let outcome = soak(&plan(), &options).unwrap();
        println!("{}", outcome.table(plan().growth_max));
        assert!(outcome.kills >= 3 && outcome.statements > 20 && outcome.warnings == 0, "{}", outcome.table(2.0));
        outcome.verdict(&plan()).unwrap();
    }
}
