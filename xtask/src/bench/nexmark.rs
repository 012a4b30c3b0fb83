//! The queries of `sql-tests/nexmark` over the nexmark generator, or over files of its events, into a blackhole, each in a process
//! of its own.
//!
//! Every number is of the whole process from its start to its end: user and system CPU of all threads, planning included.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::measure::{ms_since, now};
use super::{Result, number};

const EVENTS: u64 = 10_000_000;
const EVENT_RATES: [u64; 2] = [10_000, 10_000_000];
const RUNS: u64 = 3;
/// How often the process is looked at; its last moments before the end may go unseen in the memory.
const SAMPLE: Duration = Duration::from_millis(5);
/// Ticks of a second in `/proc/PID/stat`.
const TICKS_PER_SECOND: f64 = 100.0;

pub const USAGE: &str = "cargo xtask bench nexmark [--query q0,q1,…] [--events N] [--event-rate N[,N]] [--slots N[,N]] [--workers N[,N]] [--splits N] [--runs N] [--cores all|slots] [--copies N] [--rows full|pruned] [--input generator|ndjson|csv|parquet] [--binary PATH] [--csv FILE]";

/// What the command line chooses.
struct Choice {
    queries: Vec<String>,
    events: u64,
    event_rates: Vec<u64>,
    slots: Vec<u64>,
    /// Processes that the slots are divided among, as the workers of an application; 0: none, the slots are in the process that reads and
    /// writes. Their CPU seconds count, their memory does not.
    workers: Vec<u64>,
    /// Of each source that the generator feeds; as many as the run has slots if it is not said.
    splits: Option<u64>,
    runs: u64,
    /// The process gets as many cores as it has slots, so that one slot and two are compared as two machines would be; else it
    /// gets all, and with one slot its readers, clock and sinks have the others.
    core_per_slot: bool,
    /// So many processes with one slot each side by side, each on a core of its own and with all events: how far the machine itself goes.
    copies: u64,
    /// Every event of every kind with all of its columns, whatever the query reads; or only what it reads.
    full_rows: bool,
    input: Input,
    binary: Option<PathBuf>,
    csv: Option<PathBuf>,
}

/// Where the events come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Generator,
    Ndjson,
    Csv,
    Parquet,
}

impl Input {
    const ALL: [Input; 4] = [Input::Generator, Input::Ndjson, Input::Csv, Input::Parquet];

    fn name(self) -> &'static str {
        match self {
            Input::Generator => "generator",
            Input::Ndjson => "ndjson",
            Input::Csv => "csv",
            Input::Parquet => "parquet",
        }
    }
}

/// One run of one query.
#[derive(Clone, Copy, Debug)]
struct Run {
    wall_s: f64,
    cpu_s: f64,
    peak_mb: u64,
    written_mb: f64,
}

/// Queries whose windows come out when they close, as in the suite.
const CLOSING: [&str; 3] = ["q5", "q7", "q8"];

/// The generator alone: every column of every event, and nothing else.
const GENERATOR: &str = "generator";

pub fn run(args: impl Iterator<Item = String>) -> std::result::Result<(), String> {
    let mut choice = Choice {
        queries: Vec::new(),
        events: EVENTS,
        event_rates: EVENT_RATES.to_vec(),
        slots: vec![1],
        workers: vec![0],
        splits: None,
        runs: RUNS,
        core_per_slot: false,
        copies: 0,
        full_rows: true,
        input: Input::Generator,
        binary: None,
        csv: None,
    };
    let mut args = args;
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} needs a value; usage: {USAGE}"))?;
        let numbers = || value.split(',').map(number).collect::<std::result::Result<Vec<u64>, String>>();
        match arg.as_str() {
            "--query" => choice.queries = value.split(',').map(str::to_string).collect(),
            "--events" => choice.events = number(&value)?,
            "--event-rate" => choice.event_rates = numbers()?,
            "--slots" => choice.slots = numbers()?,
            "--workers" => choice.workers = numbers()?,
            "--splits" => choice.splits = Some(number(&value)?),
            "--runs" => choice.runs = number(&value)?.max(1),
            "--cores" if value == "all" || value == "slots" => choice.core_per_slot = value == "slots",
            "--copies" => choice.copies = number(&value)?,
            "--rows" if value == "full" || value == "pruned" => choice.full_rows = value == "full",
            "--input" => {
                let known = Input::ALL.into_iter().find(|input| input.name() == value);
                choice.input = known.ok_or_else(|| format!("there is no input \"{value}\"; usage: {USAGE}"))?;
            }
            "--binary" => choice.binary = Some(value.into()),
            "--csv" => choice.csv = Some(value.into()),
            _ => return Err(format!("there is no option \"{arg}\"; usage: {USAGE}")),
        }
    }
    let binary = match choice.binary.take() {
        Some(binary) => binary,
        None => super::release_build()?,
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql-tests/nexmark");
    if choice.queries.is_empty() {
        choice.queries = all_queries(&folder).map_err(|e| e.to_string())?;
    }
    choice.queries.insert(0, GENERATOR.to_string());
    let csv = measure(&choice, &binary, &folder).map_err(|e| super::told(e.as_ref()))?;
    println!("{csv}");
    if let Some(file) = &choice.csv {
        std::fs::write(file, csv).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    }
    Ok(())
}

/// The queries of the folder by number.
fn all_queries(folder: &Path) -> Result<Vec<String>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(number) = name.strip_prefix('q').and_then(|n| n.strip_suffix(".sql")) {
            numbers.push(number.parse::<u32>()?);
        }
    }
    numbers.sort_unstable();
    Ok(numbers.into_iter().map(|n| format!("q{n}")).collect())
}

fn measure(choice: &Choice, binary: &Path, folder: &Path) -> Result<String> {
    let mut csv = "query,events,event_rate,slots,workers,runs,events_per_s,events_per_cpu_s,events_per_cpu_s_min,events_per_cpu_s_max,wall_s,cpu_s,peak_rss_mb,written_mb\n".to_string();
    println!("{} rows from {}", if choice.full_rows { "full" } else { "pruned" }, choice.input.name());
    println!(
        "{:<10} {:>10} {:>5} {:>7} {:>12} {:>14} {:>29} {:>8} {:>8} {:>10}",
        "query",
        "event rate",
        "slots",
        "workers",
        "events/s",
        "events/cpu-s",
        "min – max",
        "cpu s",
        "peak MB",
        "written MB"
    );
    for event_rate in &choice.event_rates {
        let files = files(choice, *event_rate)?;
        for query in &choice.queries {
            let pairs = choice.slots.iter().flat_map(|slots| choice.workers.iter().map(|workers| (*slots, *workers)));
            let mut places =
                pairs.map(|(slots, workers)| Slots::new(slots, workers)).collect::<Result<Vec<Slots>>>()?;
            places.extend((choice.copies > 0).then_some(Slots { slots: 1, workers: 0, copies: choice.copies }));
            let scripts = places.iter().map(|place| {
                let splits = choice.splits.unwrap_or(place.slots);
                script(query, folder, choice, splits, *event_rate, files.as_deref())
            });
            let scripts = scripts.collect::<Result<Vec<String>>>()?;
            // One run of each number of slots after another: a machine that is slower for a while is so for all of them.
            let mut all: Vec<Vec<Run>> = vec![Vec::new(); places.len()];
            for _ in 0..choice.runs {
                for ((runs, place), script) in all.iter_mut().zip(&places).zip(&scripts) {
                    runs.push(one(binary, script, *place, choice.core_per_slot)?);
                }
            }
            for (mut runs, Slots { slots, workers, copies }) in all.into_iter().zip(places) {
                runs.sort_by(|a, b| a.wall_s.total_cmp(&b.wall_s));
                let wall_s = runs[runs.len() / 2].wall_s;
                runs.sort_by(|a, b| a.cpu_s.total_cmp(&b.cpu_s));
                let (best, median, worst) = (runs[0], runs[runs.len() / 2], runs[runs.len() - 1]);
                let events = (choice.events * copies.max(1)) as f64;
                let slots = if copies > 0 { format!("{copies} x {slots}") } else { slots.to_string() };
                let range = format!("{:.0} – {:.0}", events / worst.cpu_s, events / best.cpu_s);
                println!(
                    "{query:<10} {event_rate:>10} {slots:>5} {workers:>7} {:>12.0} {:>14.0} {range:>29} {:>8.2} {:>8} {:>10.1}",
                    events / wall_s,
                    events / median.cpu_s,
                    median.cpu_s,
                    median.peak_mb,
                    median.written_mb
                );
                csv.push_str(&format!(
                    "{query},{},{event_rate},{slots},{workers},{},{:.0},{:.0},{:.0},{:.0},{wall_s:.3},{:.2},{},{:.1}\n",
                    choice.events,
                    choice.runs,
                    events / wall_s,
                    events / median.cpu_s,
                    events / worst.cpu_s,
                    events / best.cpu_s,
                    median.cpu_s,
                    median.peak_mb,
                    median.written_mb
                ));
            }
        }
    }
    Ok(csv)
}

/// The folder with the events of this rate, which is written once and then kept beside what is built. `None`: the generator.
fn files(choice: &Choice, event_rate: u64) -> Result<Option<PathBuf>> {
    if choice.input == Input::Generator {
        return Ok(None);
    }
    let format = choice.input.name();
    let cache = super::target_folder().join("nexmark").join(format!("{}-{event_rate}", choice.events));
    if ["person", "auction", "bid"].iter().all(|table| cache.join(format!("{table}.{format}")).is_file()) {
        return Ok(Some(cache));
    }
    // Of the whole workspace, so that nothing is compiled with other features than the server.
    let built =
        crate::cargo().args(["build", "--release", "--workspace", "--example", "nexmark_files"]).status()?.success();
    let written = built
        && Command::new(super::target_folder().join("release/examples/nexmark_files"))
            .arg(&cache)
            .args([format, &choice.events.to_string(), &event_rate.to_string()])
            .status()?
            .success();
    if !written {
        return Err("the files could not be written".into());
    }
    Ok(Some(cache))
}

/// The script of a query. With full rows all three sources are read, as in suites where one source makes all events; else
/// only those that the query names.
fn script(
    query: &str,
    folder: &Path,
    choice: &Choice,
    splits: u64,
    event_rate: u64,
    files: Option<&Path>,
) -> Result<String> {
    let (events, full) = (choice.events, choice.full_rows);
    let mut script = String::new();
    let format = choice.input.name();
    let source = |table: &str| {
        let (columns, from) = match files {
            None => (
                "",
                format!(
                    "connector = 'nexmark', table = '{table}', events = {events}, event_rate = {event_rate}, full_rows = {full}, splits = {splits}"
                ),
            ),
            Some(folder) => {
                let path = folder.join(format!("{table}.{format}"));
                let header = if choice.input == Input::Csv { ", header = 'true'" } else { "" };
                let columns = if choice.input == Input::Parquet { "" } else { columns(table) };
                (columns, format!("connector = 'file', path = '{}', format = '{format}'{header}", path.display()))
            }
        };
        format!(
            "CREATE SOURCE {table} ({columns}WATERMARK FOR date_time AS date_time - INTERVAL '4 seconds') WITH ({from});\n"
        )
    };
    if query == GENERATOR {
        for table in ["person", "auction", "bid"] {
            script.push_str(&source(table));
            script.push_str(&format!("CREATE SINK {table}_out FROM {table} WITH (connector = 'blackhole');\n"));
        }
        return Ok(script);
    }
    let path = folder.join(format!("{query}.sql"));
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let reads = |table: &str| text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == table);
    for table in ["person", "auction", "bid"] {
        // `auction` is a column, too.
        if ["FROM", "JOIN", "TABLE"].iter().any(|word| text.contains(&format!("{word} {table}"))) {
            script.push_str(&source(table));
        } else if full {
            script.push_str(&source(table));
            script.push_str(&format!(
                "CREATE SINK no_{table} AS SELECT date_time FROM {table} WHERE date_time < '1970-01-01' WITH (connector = 'blackhole');\n"
            ));
        }
    }
    if reads("side_input") {
        script.push_str(
            "CREATE TABLE side_input (key bigint PRIMARY KEY, value text NOT NULL);\n\
             INSERT INTO side_input SELECT n, 'value ' || n FROM generate_series(0, 9999) AS s(n);\n",
        );
    }
    let emit = if CLOSING.contains(&query) { "EMIT ON WINDOW CLOSE" } else { "" };
    script.push_str(&format!("CREATE SINK out AS {text} {emit} WITH (connector = 'blackhole');\n"));
    Ok(script)
}

/// The columns of a file of text, whose first lines may not show the type of each.
fn columns(table: &str) -> &'static str {
    match table {
        "person" => {
            "id bigint, name text, email_address text, credit_card text, city text, state text, date_time timestamp, extra text, "
        }
        "auction" => {
            "id bigint, item_name text, description text, initial_bid bigint, reserve bigint, date_time timestamp, expires timestamp, seller bigint, category bigint, extra text, "
        }
        _ => "auction bigint, bidder bigint, price bigint, channel text, url text, date_time timestamp, extra text, ",
    }
}

/// Where the slots of a run are.
#[derive(Clone, Copy)]
struct Slots {
    slots: u64,
    workers: u64,
    /// So many processes with these slots, each on cores of its own; 0: one, where it likes.
    copies: u64,
}

impl Slots {
    /// Errors: they cannot be divided evenly.
    fn new(slots: u64, workers: u64) -> Result<Slots> {
        if workers > 0 && !slots.is_multiple_of(workers) {
            return Err(format!("{slots} slots cannot be divided among {workers} workers").into());
        }
        Ok(Slots { slots, workers, copies: 0 })
    }
}

/// The queries that exchange most: windows per key, two streams that meet, and a join with a filter.
const EXCHANGING: [&str; 3] = ["q5", "q8", "q20"];

/// Events per CPU second of all processes, of queries that exchange rows, with two slots in one process and with one in each of two
/// workers, and the ratio.
pub fn side_by_side(options: &super::Options, report: &mut super::measure::Report) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql-tests/nexmark");
    let (events, event_rate) = (options.rows_or(2_000_000), EVENT_RATES[1]);
    let choice = Choice {
        queries: Vec::new(),
        events,
        event_rates: vec![event_rate],
        slots: vec![2],
        workers: vec![0, 2],
        splits: None,
        runs: options.rounds_or(RUNS).max(1),
        core_per_slot: false,
        copies: 0,
        full_rows: false,
        input: Input::Generator,
        binary: None,
        csv: None,
    };
    for query in EXCHANGING {
        let script = script(query, &folder, &choice, 2, event_rate, None)?;
        let places = [Slots::new(2, 0)?, Slots::new(2, 2)?];
        let mut cpu_s = [Vec::new(), Vec::new()];
        for _ in 0..choice.runs {
            for (cpu_s, place) in cpu_s.iter_mut().zip(places) {
                cpu_s.push(one(&options.binary, &script, place, false)?.cpu_s);
            }
        }
        let [alone, over] = cpu_s.map(|mut cpu_s| {
            cpu_s.sort_by(f64::total_cmp);
            cpu_s[cpu_s.len() / 2]
        });
        let usage = |cpu_s: f64| super::server::Usage { cpu_s, ..super::server::Usage::default() };
        report.value(format!("exchange.{query}.one_process"), events as f64 / alone, "events/cpu-s", usage(alone));
        report.value(format!("exchange.{query}.two_workers"), events as f64 / over, "events/cpu-s", usage(over));
        report.value(format!("exchange.{query}.ratio"), alone / over, "ratio", usage(over));
    }
    Ok(())
}

fn one(binary: &Path, script: &str, place: Slots, core_per_slot: bool) -> Result<Run> {
    if place.copies == 0 {
        return one_process(binary, script, place, core_per_slot.then_some(0));
    }
    let run = |copy: u64| one_process(binary, script, place, Some(copy * place.slots)).map_err(|e| e.to_string());
    let runs = std::thread::scope(|scope| {
        let copies: Vec<_> = (0..place.copies).map(|copy| scope.spawn(move || run(copy))).collect();
        let ended = copies.into_iter().map(|copy| copy.join().map_err(|_| "a copy has panicked".to_string()).flatten());
        ended.collect::<std::result::Result<Vec<Run>, String>>()
    })?;
    let together = |a: Run, b: Run| Run {
        wall_s: a.wall_s.max(b.wall_s),
        cpu_s: a.cpu_s + b.cpu_s,
        peak_mb: a.peak_mb + b.peak_mb,
        written_mb: a.written_mb + b.written_mb,
    };
    runs.into_iter().reduce(together).ok_or_else(|| "no copy".into())
}

/// `core`: the first of as many cores as it has slots; it gets no others.
fn one_process(binary: &Path, script: &str, place: Slots, core: Option<u64>) -> Result<Run> {
    let Slots { slots, workers, .. } = place;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("query.sql");
    std::fs::write(&file, script)?;
    let log = std::fs::File::create(folder.path().join("log"))?;
    let start = now();
    let mut command = Command::new(binary);
    if let Some(core) = core {
        command = Command::new("taskset");
        command.args(["--cpu-list", &format!("{core}-{}", core + slots.max(1) - 1)]).arg(binary);
    }
    command.args(["run", "--quiet"]);
    if workers > 0 {
        command.args(["--cluster", "--workers", &workers.to_string(), "--log-level", "warn"]);
        command.args(["--pg-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--cluster-addr", "127.0.0.1:0"]);
        // A script in one process takes none.
        command.env("MILLSTREAM_CHECKPOINT_INTERVAL", "off");
    }
    let mut process = command
        .args(["--slots", &(slots / workers.max(1)).to_string()])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let (run, failed) = watch(&mut process, start)?;
    if failed {
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        return Err(format!("{log}\nin\n{script}").into());
    }
    Ok(run)
}

/// Waits for the end of the process. An ended process keeps its CPU times until it is waited for, its memory not.
fn watch(process: &mut Child, start: std::time::Instant) -> Result<(Run, bool)> {
    let id = process.id();
    let mut run = Run { wall_s: 0.0, cpu_s: 0.0, peak_mb: 0, written_mb: 0.0 };
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        let fields: Vec<&str> = stat.rsplit_once(')').ok_or("no command in stat")?.1.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        // With that of the workers, which it has started and waited for.
        run.cpu_s = (ticks(11) + ticks(12) + ticks(13) + ticks(14)) / TICKS_PER_SECOND;
        if fields.first() == Some(&"Z") {
            run.wall_s = ms_since(start) / 1e3;
            return Ok((run, !process.wait()?.success()));
        }
        let number_of = |file: &str, name: &str| -> u64 {
            let text = std::fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
            let line = text.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        run.peak_mb = run.peak_mb.max(number_of("status", "VmHWM:") / 1024);
        run.written_mb = run.written_mb.max(number_of("io", "write_bytes:") as f64 / 1e6);
        std::thread::sleep(SAMPLE);
    }
}
