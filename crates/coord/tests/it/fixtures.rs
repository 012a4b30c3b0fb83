//! Data directories of earlier builds, kept in `tests/fixtures`: this build goes on from each as the one that wrote it would have.
//!
//! A fixture says itself what is in it (`fixture.json`): its views with the query that each must equal and the rows that it had when the
//! directory was written, the statements with which it goes on, and what must be there afterwards. So a fixture stays as it is
//! while this file changes. `tests/fixtures/README.md` says how a new one is made.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, BinaryArray, RecordBatch, StringArray};
use checkpoint::directory::FORMAT_VERSION;
use coord::execution::Threads;
use coord::{Engine, EngineConfig, Session, Time};
use flow::SqlState;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::checkpoints::{objects, went_on};
use crate::harness::{Instance, keeping, ok, rows, run, scratch};

/// 2026-01-01 00:00:00.
const WRITTEN_US: i64 = 1_767_225_600_000_000;
const MINUTE_US: i64 = 60_000_000;
/// How long a source may take to read the little that it has.
const READ_MAX: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(10);
const SAVEPOINT: &str = "early";

#[derive(Serialize, Deserialize)]
struct Fixture {
    /// The clock when it was written, in microseconds since 1970.
    written_us: i64,
    slots: usize,
    /// A savepoint that it can go back to.
    savepoint: String,
    views: Vec<View>,
    /// Sinks that go on from their state.
    #[serde(default)]
    sinks: Vec<String>,
    /// Statements that go on from there. The clock is half an hour later by then.
    then: Vec<String>,
    /// Queries over sources, and their rows once all is read.
    finally: Vec<(String, Vec<Vec<String>>)>,
}

#[derive(Serialize, Deserialize)]
struct View {
    name: String,
    /// What it must equal at any time. `None`: a view of sources, whose rows `finally` says, or one that no query can make again.
    equals: Option<String>,
    /// Its rows when the fixture was written, sorted. Of a view that no query can make again, those that its state knows; none of
    /// a view of sources that read on by themselves.
    rows: Vec<Vec<String>>,
}

fn folder(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(version)
}

/// The names of all fixtures.
fn versions() -> Vec<String> {
    let entries = fs::read_dir(folder("")).unwrap().map(|e| e.unwrap());
    let folders = entries.filter(|e| e.path().is_dir());
    let mut names: Vec<String> = folders.map(|e| e.file_name().to_str().unwrap().to_string()).collect();
    names.sort();
    names
}

fn read(version: &str) -> Fixture {
    serde_json::from_slice(&fs::read(folder(version).join("fixture.json")).unwrap()).unwrap()
}

/// The files below a folder, by their paths in it.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let name = |path: &Path| path.strip_prefix(folder).unwrap().to_str().unwrap().to_string();
    objects(folder).into_iter().map(|path| (name(&path), fs::read(&path).unwrap())).collect()
}

/// Puts files into one, as rows of a Parquet file: most of them are alike, so that together they are a twentieth.
fn pack(files: &[(String, Vec<u8>)], into: &Path) {
    let paths: ArrayRef = Arc::new(StringArray::from_iter_values(files.iter().map(|(path, _)| path)));
    let contents: ArrayRef = Arc::new(BinaryArray::from_iter_values(files.iter().map(|(_, content)| content)));
    let rows = RecordBatch::try_from_iter([("path", paths), ("content", contents)]).unwrap();
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(19).unwrap()))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_data_page_size_limit(64 << 20)
        .build();
    let mut writer = ArrowWriter::try_new(fs::File::create(into).unwrap(), rows.schema(), Some(properties)).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
}

/// A fixture's data directory, laid out in a folder of its own.
fn unpacked(version: &str) -> TempDir {
    let data = scratch();
    let file = fs::File::open(folder(version).join("data.parquet")).unwrap();
    for rows in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
        let rows = rows.unwrap();
        let (paths, contents) = (rows.column(0).as_string::<i32>(), rows.column(1).as_binary::<i32>());
        for (path, content) in paths.iter().zip(contents) {
            let path = data.path().join(path.unwrap());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content.unwrap()).unwrap();
        }
    }
    data
}

/// The machine's clock, moved to another time.
#[derive(Clone)]
struct Moved(Arc<AtomicI64>);

impl Moved {
    fn to(us: i64) -> Moved {
        let clock = Moved(Arc::default());
        clock.set(us);
        clock
    }

    fn set(&self, us: i64) {
        self.0.store(us - Time::system().now_us(), Ordering::Relaxed);
    }

    fn time(&self) -> Time {
        let (by, system) = (Arc::clone(&self.0), Time::system());
        Time::from_fn(move || system.now_us() + by.load(Ordering::Relaxed))
    }
}

fn open(data: &Path, slots: usize, savepoint: Option<&str>, clock: &Moved) -> Instance {
    Instance::with(with_clock(data, slots, savepoint, clock), Arc::new(Threads::default()))
}

fn with_clock(data: &Path, slots: usize, savepoint: Option<&str>, clock: &Moved) -> EngineConfig {
    let mut config = EngineConfig { time: clock.time(), ..keeping(data, slots, 32) };
    config.checkpoints.as_mut().unwrap().savepoint = savepoint.map(str::to_string);
    config
}

async fn sorted(s: &mut Session, query: &str) -> Vec<Vec<String>> {
    let mut found = rows(s, query).await;
    found.sort();
    found
}

/// Asks until the rows are those.
async fn wait_for(s: &mut Session, query: &str, expected: &[Vec<String>]) {
    let mut waited = Duration::ZERO;
    while rows(s, query).await != expected && waited < READ_MAX {
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
    assert_eq!(rows(s, query).await, expected, "{query}");
}

/// Every view equals its query.
async fn check_views(s: &mut Session, fixture: &Fixture, what: &str) {
    for view in &fixture.views {
        let found = sorted(s, &format!("SELECT * FROM {}", view.name)).await;
        match &view.equals {
            Some(query) => assert_eq!(found, sorted(s, query).await, "{}: {what}", view.name),
            // What only the state knows is still there.
            None => {
                let found: HashSet<_> = found.into_iter().collect();
                assert!(view.rows.iter().all(|row| found.contains(row)), "{}: {what}: {found:?}", view.name);
            }
        }
    }
}

fn check_went_on(instance: &Instance, fixture: &Fixture, what: &str) {
    let names = fixture.views.iter().map(|view| &view.name).chain(&fixture.sinks);
    let anew: Vec<&String> = names.filter(|name| !went_on(instance, name)).collect();
    assert!(anew.is_empty(), "{what}: made anew instead of going on from their state: {anew:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_every_earlier_build_goes_on_from_its_state() {
    for version in versions() {
        let fixture = read(&version);
        for slots in [fixture.slots, fixture.slots + 1] {
            let (data, what) = (unpacked(&version), format!("{version} on {slots} slots"));
            let clock = Moved::to(fixture.written_us);
            let mut instance = open(data.path(), slots, None, &clock);
            let mut s = instance.session();
            check_went_on(&instance, &fixture, &what);
            for view in fixture.views.iter().filter(|view| view.equals.is_some()) {
                let found = sorted(&mut s, &format!("SELECT * FROM {}", view.name)).await;
                assert_eq!(found, view.rows, "{}: {what}, as it was written", view.name);
            }
            check_views(&mut s, &fixture, &format!("{what}, at first")).await;
            assert!(!rows(&mut s, "SHOW CHECKPOINTS").await.is_empty());
            assert_eq!(rows(&mut s, "SHOW SAVEPOINTS").await[0][0], fixture.savepoint);

            clock.set(fixture.written_us + 30 * MINUTE_US);
            for statement in &fixture.then {
                ok(&mut s, statement).await;
            }
            ok(&mut s, "FLUSH").await;
            for (query, expected) in &fixture.finally {
                wait_for(&mut s, query, expected).await;
            }
            check_views(&mut s, &fixture, &format!("{what}, with new rows")).await;
            ok(&mut s, "CHECKPOINT").await;
            drop(s);
            instance.close().await;

            // What this build has added to it, it reads again.
            instance = open(data.path(), fixture.slots, None, &clock);
            let mut s = instance.session();
            check_went_on(&instance, &fixture, &format!("{what}, once more"));
            for (query, expected) in &fixture.finally {
                wait_for(&mut s, query, expected).await;
            }
            check_views(&mut s, &fixture, &format!("{what}, once more")).await;
            drop(s);
            instance.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_of_every_earlier_build_can_be_started_from() {
    for version in versions() {
        let (fixture, data) = (read(&version), unpacked(&version));
        let clock = Moved::to(fixture.written_us);
        let instance = open(data.path(), fixture.slots + 1, Some(&fixture.savepoint), &clock);
        let mut s = instance.session();
        check_went_on(&instance, &fixture, &format!("{version} from its savepoint"));
        clock.set(fixture.written_us + 30 * MINUTE_US);
        for statement in &fixture.then {
            ok(&mut s, statement).await;
        }
        ok(&mut s, "FLUSH").await;
        for (query, expected) in &fixture.finally {
            wait_for(&mut s, query, expected).await;
        }
        for view in fixture.views.iter() {
            let Some(query) = &view.equals else { continue };
            let found = sorted(&mut s, &format!("SELECT * FROM {}", view.name)).await;
            assert_eq!(found, sorted(&mut s, query).await, "{}: {version} from its savepoint", view.name);
        }
        drop(s);
        instance.close().await;
    }
}

#[test]
fn the_format_that_is_written_now_has_a_fixture() {
    let name = format!("v{FORMAT_VERSION}");
    assert!(versions().contains(&name), "there is no tests/fixtures/{name}; its README.md says how to make it");

    // The log has a version of its own, in its first bytes.
    let begins = |data: &Path| {
        let segment = objects(&data.join("log")).pop().unwrap();
        fs::read(segment).unwrap()[..8].to_vec()
    };
    let now = scratch();
    fs::create_dir(now.path().join("log")).unwrap();
    drop(checkpoint::Log::open(&now.path().join("log"), |_| Ok(())).unwrap());
    let now = begins(now.path());
    let known = versions().iter().any(|version| begins(unpacked(version).path()) == now);
    assert!(known, "no fixture has a log that begins with {now:?}; README.md says how to make one");
}

/// What a later build has written is refused by name, wherever it is met, and stays as it is.
#[tokio::test(flavor = "multi_thread")]
async fn data_of_a_later_build_is_refused_and_stays_as_it_is() {
    let version = versions().pop().unwrap();
    let fixture = read(&version);
    let clock = Moved::to(fixture.written_us);
    let refused = |data: &Path| {
        let error = Engine::open(with_clock(data, fixture.slots, None, &clock)).err().expect("it is opened");
        assert_eq!(error.state(), SqlState::DataCorrupted, "{error}");
        error
    };
    // The directory as a whole.
    let data = unpacked(&version);
    let before = objects(data.path());
    fs::write(data.path().join("VERSION"), format!("{}\n", FORMAT_VERSION + 1)).unwrap();
    let error = refused(data.path());
    assert!(error.message().contains(&format!("format version {}", FORMAT_VERSION + 1)), "{error}");
    assert!(error.hint().unwrap().contains("newer program"), "{error}");
    fs::remove_file(data.path().join("LOCK")).unwrap();
    assert_eq!(objects(data.path()), before);

    // A record of the log.
    let data = unpacked(&version);
    let header = br#"{"version":99}"#;
    let record = [&(header.len() as u32).to_le_bytes()[..], header, &[0; 8]].concat();
    let log = checkpoint::Log::open(&data.path().join("log"), |_| Ok(())).unwrap();
    log.append(&[&record]).unwrap();
    log.sync().unwrap();
    drop(log);
    assert!(refused(data.path()).message().contains("version 99 is newer than this program"));

    // Objects of checkpoints: the newest record, and the newest manifest. Byte 8 begins the version.
    for kind in ["epoch", "manifest"] {
        let data = unpacked(&version);
        let newest = objects(&data.path().join("checkpoints").join(kind)).pop().unwrap();
        let mut bytes = fs::read(&newest).unwrap();
        bytes[8] += 1;
        fs::write(&newest, &bytes).unwrap();
        let before = objects(&data.path().join("checkpoints/jobs"));
        let error = refused(data.path());
        let text = format!("{error} {:?}", error.hint());
        assert!(text.contains("it has format version 2") && text.contains("newer program"), "{kind}: {text}");
        assert_eq!(fs::read(&newest).unwrap(), bytes);
        assert_eq!(objects(&data.path().join("checkpoints/jobs")), before, "{kind}");
    }

    // The state of one job: it stops, by name, and the others go on.
    let data = unpacked(&version);
    let instance = open(data.path(), fixture.slots, None, &clock);
    let job = instance.engine.catalog().relation_named("dev", "public", "sums").unwrap().oid;
    instance.close().await;
    let segments = objects(&data.path().join(format!("checkpoints/jobs/{job}")));
    assert!(!segments.is_empty());
    for segment in &segments {
        let mut bytes = fs::read(segment).unwrap();
        bytes[8] += 1;
        fs::write(segment, bytes).unwrap();
    }
    let instance = open(data.path(), fixture.slots, None, &clock);
    let mut s = instance.session();
    let stopped = run(&mut s, "SELECT * FROM sums").await.err().unwrap();
    assert!(stopped.detail().unwrap().contains("it has format version 2"), "{stopped:?}");
    let whole = fixture.views.iter().find(|view| view.name == "whole").unwrap();
    assert_eq!(sorted(&mut s, "SELECT * FROM whole").await, whole.rows);
    drop(s);
    instance.close().await;
    assert_eq!(objects(&data.path().join(format!("checkpoints/jobs/{job}"))), segments);
}

const TABLES: &str = "
    CREATE TABLE t (k int PRIMARY KEY, g int, v int);
    CREATE TABLE u (g int, name text, least int);
    CREATE TABLE kinds (id int PRIMARY KEY, b boolean, i2 smallint, i4 int, i8 bigint, f4 real, f8 double precision,
        n numeric(10,2), p numeric, s text, c varchar(8), y bytea, d date, h time, ts timestamp, tz timestamptz,
        iv interval, a int[], l text[]);
    CREATE TABLE e (id int, k int, ts timestamp, WATERMARK FOR ts AS ts - INTERVAL '3 seconds') APPEND ONLY;
    CREATE TABLE f (id int, k int, ts timestamp, WATERMARK FOR ts AS ts - INTERVAL '3 seconds') APPEND ONLY;
    CREATE TABLE alarms (id int PRIMARY KEY, k int, at timestamptz, until_at timestamptz)";

/// Views over tables: a name, the query, and what is equal to it as a query of the moment, if that reads otherwise.
const VIEWS: &[(&str, &str, &str)] = &[
    // Aggregates.
    ("sums", "SELECT g, count(*) AS n, sum(v) AS s, min(v) AS lo, max(v) AS hi, avg(v) AS a FROM t GROUP BY g", ""),
    ("whole", "SELECT count(*) AS n, count(DISTINCT v) AS d, sum(DISTINCT v) AS s, min(v) AS lo FROM t", ""),
    ("texts", "SELECT g, min(name) AS lo, max(name) AS hi, count(DISTINCT name) AS d FROM u GROUP BY g", ""),
    ("bools", "SELECT g, bool_and(v > 20) AS a, bool_or(v > 20) AS o FROM t GROUP BY g HAVING count(*) > 2", ""),
    ("filtered", "SELECT count(*) FILTER (WHERE v > 20) AS n, sum(v) FILTER (WHERE g = 1) AS s FROM t", ""),
    ("rolled_up", "SELECT g, v % 3 AS m, count(*) AS n FROM t GROUP BY ROLLUP (g, v % 3)", ""),
    ("floats", "SELECT b, sum(f8) AS s, avg(f4) AS a, max(p) AS p, min(iv) AS iv FROM kinds GROUP BY b", ""),
    ("chained", "SELECT n, count(*) AS groups FROM sums GROUP BY n", ""),
    // Joins.
    ("inner_joined", "SELECT t.k, t.v, u.name FROM t JOIN u ON t.g = u.g", ""),
    ("left_joined", "SELECT t.k, u.name FROM t LEFT JOIN u ON t.g = u.g AND t.v > u.least", ""),
    ("right_joined", "SELECT t.k, u.name FROM t RIGHT JOIN u ON t.g = u.g AND t.v < u.least", ""),
    ("full_joined", "SELECT t.k, u.name FROM t FULL JOIN u ON t.k = u.least", ""),
    ("semi_joined", "SELECT k, v FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.g = t.g AND u.least < t.v)", ""),
    ("anti_joined", "SELECT g, name FROM u WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.g = u.g)", ""),
    ("not_in", "SELECT k FROM t WHERE v NOT IN (SELECT least FROM u WHERE least IS NOT NULL)", ""),
    ("self_joined", "SELECT a.k AS a, b.k AS b FROM t a JOIN t b ON a.g = b.g AND a.v < b.v", ""),
    ("above_average", "SELECT k FROM t WHERE v > (SELECT avg(v) FROM t)", ""),
    // Order within groups.
    (
        "firsts",
        "SELECT k, g, v FROM (SELECT *, row_number() OVER (PARTITION BY g ORDER BY v, k) AS r FROM t) WHERE r <= 2",
        "",
    ),
    (
        "ranked",
        "SELECT k, g, r FROM (SELECT *, rank() OVER (PARTITION BY g ORDER BY v DESC) AS r FROM t) WHERE r <= 2",
        "",
    ),
    ("top", "SELECT k, v FROM t ORDER BY v DESC NULLS LAST, k LIMIT 3", ""),
    ("one_a_group", "SELECT DISTINCT ON (g) g, k, v FROM t ORDER BY g, v, k", ""),
    // Sets.
    ("distinct_groups", "SELECT DISTINCT g FROM t", ""),
    ("united", "SELECT g FROM t UNION SELECT g FROM u", ""),
    ("excepted", "SELECT g FROM t EXCEPT ALL SELECT g FROM u", ""),
    ("intersected", "SELECT v FROM t INTERSECT SELECT least FROM u", ""),
    // Types.
    ("kept_kinds", "SELECT * FROM kinds WHERE id <> 2", ""),
    ("distinct_kinds", "SELECT DISTINCT b, i2, i8, f4, n, p, s, c, y, d, h, ts, tz, iv, a, l FROM kinds", ""),
    ("in_lists", "SELECT id, unnest(a) AS one FROM kinds", ""),
    // Event time.
    (
        "tumbled",
        "SELECT window_start, k, count(*) AS n, count(DISTINCT id % 3) AS d FROM TUMBLE(e, ts, INTERVAL '10 seconds')
         GROUP BY window_start, k",
        "",
    ),
    (
        "tumbled_closed",
        "SELECT window_end, k, count(*) AS n, max(id) AS hi FROM TUMBLE(e, ts, INTERVAL '10 seconds')
         GROUP BY window_start, window_end, k EMIT ON WINDOW CLOSE",
        "SELECT window_end, k, count(*) AS n, max(id) AS hi FROM TUMBLE(e, ts, INTERVAL '10 seconds')
         GROUP BY window_start, window_end, k HAVING window_end <= (SELECT max(ts) - INTERVAL '3 seconds' FROM e)",
    ),
    (
        "hopped_closed",
        "SELECT window_end, count(*) AS n, sum(id) AS ids FROM HOP(e, ts, INTERVAL '5 seconds', INTERVAL '10 seconds')
         GROUP BY window_start, window_end EMIT ON WINDOW CLOSE",
        "SELECT window_end, count(*) AS n, sum(id) AS ids FROM HOP(e, ts, INTERVAL '5 seconds', INTERVAL '10 seconds')
         GROUP BY window_start, window_end HAVING window_end <= (SELECT max(ts) - INTERVAL '3 seconds' FROM e)",
    ),
    // A row that comes exactly the gap after the last one still belongs to the session.
    (
        "sessions_closed",
        "SELECT k, window_start, window_end, count(*) AS n FROM SESSION(e, ts, INTERVAL '4 seconds' PARTITION BY k)
         GROUP BY k, window_start, window_end EMIT ON WINDOW CLOSE",
        "SELECT k, window_start, window_end, count(*) AS n FROM SESSION(e, ts, INTERVAL '4 seconds' PARTITION BY k)
         GROUP BY k, window_start, window_end HAVING window_end < (SELECT max(ts) - INTERVAL '3 seconds' FROM e)",
    ),
    (
        "near",
        "SELECT e.id AS e, f.id AS f FROM e JOIN f
         ON e.k = f.k AND f.ts BETWEEN e.ts - INTERVAL '4 seconds' AND e.ts + INTERVAL '4 seconds'",
        "",
    ),
    ("late_rows", "SELECT id, k, ts FROM \"e$late\"", ""),
    ("late_count", "SELECT k, count(*) AS n FROM \"e$late\" GROUP BY k", ""),
    // Processing time.
    ("ringing", "SELECT id, at FROM alarms WHERE at <= now() AND until_at > now()", ""),
    ("ringing_by_k", "SELECT k, count(*) AS n FROM alarms WHERE until_at > now() GROUP BY k", ""),
];

/// The source `ticks` is paused after some of its rows.
const TICKS: u64 = 500;

/// What goes on: everything that each view keeps is changed. Statements that make windows close come last.
const THEN: &[&str] = &[
    "INSERT INTO t SELECT n, n % 5, n * 7 % 50 FROM generate_series(50, 70) AS s (n)",
    "UPDATE t SET v = v + 1, g = (g + 1) % 5 WHERE k % 4 = 0",
    "DELETE FROM t WHERE v IN (SELECT max(v) FROM t) OR g IS NULL",
    "DELETE FROM u WHERE g = 1",
    "INSERT INTO u VALUES (4, 'added', 12), (7, 'alone', 49)",
    "DELETE FROM kinds WHERE id = 1",
    "INSERT INTO kinds (id, b, i8, f8, p, s, iv, a) VALUES (9, true, 9, 0.25, 1.125, 'nine', '9 days', '{9,8}')",
    "INSERT INTO e SELECT n, n % 3, TIMESTAMP '2026-01-01' + (n - 40) * INTERVAL '1 second' FROM generate_series(100, 130) AS s (n)",
    "INSERT INTO f SELECT n, n % 3, TIMESTAMP '2026-01-01' + (n - 40) * INTERVAL '1 second' FROM generate_series(100, 130) AS s (n)",
    "INSERT INTO e VALUES (900, 1, '2026-01-01 00:00:30'), (901, 2, '2026-01-01 00:01:40')",
    "DELETE FROM alarms WHERE id = 3",
    "ALTER SOURCE ticks RESET (rate_limit)",
    "ALTER SOURCE ticks RESUME",
];

fn lines(ids: std::ops::Range<u32>) -> String {
    ids.map(|id| format!("{{\"id\":{id},\"at\":\"2026-01-01 00:{:02}:{:02}\"}}\n", id / 4, id % 4 * 15)).collect()
}

/// Makes `tests/fixtures/v<FORMAT_VERSION>`, or the folder that `MILLSTREAM_FIXTURE` names. README.md there says when.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes tests/fixtures"]
async fn write_a_fixture() {
    let version = std::env::var("MILLSTREAM_FIXTURE").unwrap_or_else(|_| format!("v{FORMAT_VERSION}"));
    let target = folder(&version);
    assert!(!target.exists(), "{} is there already", target.display());
    let (folder, input) = (scratch(), target.join("in"));
    let data = folder.path();
    fs::create_dir_all(&input).unwrap();
    fs::write(input.join("a.ndjson"), lines(0..20) + "{broken\n").unwrap();
    let (clock, slots) = (Moved::to(WRITTEN_US - 60 * MINUTE_US), 2);
    let instance = open(data, slots, None, &clock);
    let mut s = instance.session();
    ok(&mut s, TABLES).await;
    for (name, query, _) in VIEWS {
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW {name} AS {query}")).await;
    }
    ok(&mut s, "CREATE MATERIALIZED VIEW came AS SELECT id, PROCTIME() AS p FROM e").await;
    ok(&mut s, "CREATE SINK gone AS SELECT g, count(*) AS n FROM t GROUP BY g WITH (connector = 'blackhole')").await;
    ok(
        &mut s,
        &format!(
            "CREATE SOURCE ticks (n bigint, at timestamp, WATERMARK FOR at AS at - INTERVAL '1 second')
             WITH (connector = 'datagen', rows = {TICKS}, rate_limit = 500, fields.n.kind = 'sequence', fields.n.start = 0,
                   fields.at.start = '2026-01-01', fields.at.step = '1 second');
             CREATE MATERIALIZED VIEW ticked AS SELECT count(*) AS n, sum(n) AS s, max(n) AS hi FROM ticks;
             CREATE MATERIALIZED VIEW ticked_minutes AS SELECT window_end, count(*) AS n
                 FROM TUMBLE(ticks, at, INTERVAL '1 minute') GROUP BY window_start, window_end EMIT ON WINDOW CLOSE"
        ),
    )
    .await;
    // The path is one of the package's folder, which is where its tests run.
    ok(
        &mut s,
        &format!(
            "CREATE SOURCE lines (id int, at timestamp, WATERMARK FOR at AS at - INTERVAL '1 second')
             WITH (connector = 'file', path = 'tests/fixtures/{version}/in/*.ndjson', format = 'json', follow = 'true',
                   poll_interval = '10ms');
             CREATE MATERIALIZED VIEW lines_read AS SELECT count(*) AS n, sum(id) AS s, count(DISTINCT id) AS d FROM lines;
             CREATE MATERIALIZED VIEW lines_minutes AS SELECT window_end, count(*) AS n
                 FROM TUMBLE(lines, at, INTERVAL '1 minute') GROUP BY window_start, window_end EMIT ON WINDOW CLOSE"
        ),
    )
    .await;
    let one = |values: &[&str]| vec![values.iter().map(|v| v.to_string()).collect::<Vec<_>>()];
    wait_for(&mut s, "SELECT n, s FROM lines_read", &one(&["20", "190"])).await;
    while rows(&mut s, "SELECT n > 100 FROM ticked").await != [["t"]] {
        tokio::time::sleep(LOOK).await;
    }
    ok(&mut s, "ALTER SOURCE ticks PAUSE; FLUSH").await;

    ok(
        &mut s,
        "INSERT INTO t SELECT n, n % 4, n * 13 % 37 FROM generate_series(1, 40) AS s (n);
         INSERT INTO t VALUES (41, NULL, 5), (42, 1, NULL);
         INSERT INTO u VALUES (1, 'one', 15), (1, 'uno', 3), (2, 'two', 30), (9, 'nine', 0), (NULL, 'none', NULL), (3, '', 36);
         INSERT INTO kinds VALUES
             (1, true, -32768, 2147483647, -9223372036854775808, 1.5, -0.1, -12345678.99, 123456789012345678.000000000000000001,
              'ä\u{1F600}', 'eight ch', '\\x00ff10', '0001-01-01', '23:59:59.999999', '2026-02-28 12:34:56.789',
              '2026-02-28 12:34:56.789+02', '1 year 2 mons 3 days 04:05:06.5', '{1,2,NULL,2}', '{a,\"b c\",NULL}'),
             (2, false, 0, 0, 0, 'NaN', 'Infinity', 0, 0, '', '', '\\x', '9999-12-31', '00:00', '1970-01-01', '1970-01-01 00:00:00+00', '0 days', '{}', '{}'),
             (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
             (4, true, 32767, -2147483648, 9223372036854775807, '-Infinity', 1e300, 0.01, -0.5, 'text', 'c', '\\x41', '2026-01-01',
              '12:00', '1969-12-31 23:59:59', '2026-01-01 00:00:00+00', '-1 day', '{4}', '{\"\"}');
         INSERT INTO alarms VALUES (1, 1, '2025-12-31 22:00Z', '2026-01-01 00:20Z'), (2, 1, '2026-01-01 00:20Z', '2026-01-01 02:00Z'),
             (3, 2, '2025-12-31 22:00Z', '2026-01-02 00:00Z'), (4, 2, '2025-12-31 00:00Z', '2025-12-31 23:45Z'), (5, 3, NULL, '2026-01-01 00:00Z')",
    )
    .await;
    clock.set(WRITTEN_US - 30 * MINUTE_US);
    for from in [0, 20, 40] {
        for table in ["e", "f"] {
            ok(
                &mut s,
                &format!(
                    "INSERT INTO {table} SELECT n, n % 3, TIMESTAMP '2026-01-01' + n * INTERVAL '1 second'
                     FROM generate_series({from}, {}) AS s (n) WHERE n % 7 < 5",
                    from + 15
                ),
            )
            .await;
        }
        ok(&mut s, &format!("FLUSH; INSERT INTO e VALUES ({}, 1, TIMESTAMP '2026-01-01 00:00:01')", 800 + from)).await;
        if from == 0 {
            ok(&mut s, &format!("CREATE SAVEPOINT {SAVEPOINT}")).await;
        }
    }
    // Chains of several segments, then changes that are in the log alone.
    ok(&mut s, "CHECKPOINT; UPDATE t SET v = v + 3 WHERE k % 3 = 0; DELETE FROM u WHERE name = 'uno'; CHECKPOINT")
        .await;
    // Rows of the log come again at a start, and have other processing times then.
    let came = sorted(&mut s, "SELECT * FROM came").await;
    ok(
        &mut s,
        "INSERT INTO t VALUES (43, 2, 20), (44, 6, 21); UPDATE t SET g = 3 WHERE k = 1; DELETE FROM t WHERE k = 2",
    )
    .await;
    ok(&mut s, "INSERT INTO u VALUES (6, 'six', 20); INSERT INTO kinds (id, b, s, l) VALUES (5, false, 'log', '{x}')")
        .await;
    ok(&mut s, "INSERT INTO e VALUES (60, 2, '2026-01-01 00:01:00'); FLUSH; INSERT INTO e VALUES (899, 2, '2026-01-01 00:00:02')").await;
    clock.set(WRITTEN_US);
    ok(&mut s, "FLUSH").await;

    let mut views = Vec::new();
    for (name, query, equals) in VIEWS {
        let equals = if equals.is_empty() { query } else { equals };
        let rows = sorted(&mut s, &format!("SELECT * FROM {name}")).await;
        assert_eq!(rows, sorted(&mut s, equals).await, "{name}");
        assert!(!rows.is_empty(), "{name} says nothing");
        views.push(View { name: name.to_string(), equals: Some(equals.to_string()), rows });
    }
    let ticked_minutes = sorted(&mut s, "SELECT * FROM ticked_minutes").await;
    for (name, rows) in [("came", came), ("ticked_minutes", ticked_minutes)] {
        assert!(!rows.is_empty(), "{name} says nothing");
        views.push(View { name: name.to_string(), equals: None, rows });
    }
    for name in ["ticked", "lines_read", "lines_minutes"] {
        views.push(View { name: name.to_string(), equals: None, rows: Vec::new() });
    }
    drop(s);
    instance.close().await;

    // Both files have more than was read.
    fs::write(input.join("a.ndjson"), lines(0..20) + "{broken\n" + &lines(20..24)).unwrap();
    fs::write(input.join("b.ndjson"), lines(24..30)).unwrap();
    let finally = vec![
        ("SELECT n, s FROM ticked".to_string(), one(&[&TICKS.to_string(), &(TICKS * (TICKS - 1) / 2).to_string()])),
        ("SELECT n, s, d FROM lines_read".to_string(), one(&["30", "435", "30"])),
        ("SELECT line FROM \"lines$errors\"".to_string(), one(&["21"])),
        ("SELECT max(n), min(n), count(*) FROM lines_minutes".to_string(), one(&["4", "4", "5"])),
        ("SELECT count(*), sum(n) FROM ticked_minutes".to_string(), one(&["9", &TICKS.to_string()])),
    ];
    let then = THEN.iter().map(|s| s.to_string()).collect();
    let fixture = Fixture {
        written_us: WRITTEN_US,
        slots,
        savepoint: SAVEPOINT.into(),
        views,
        sinks: vec!["gone".into()],
        then,
        finally,
    };
    fs::write(target.join("fixture.json"), serde_json::to_string_pretty(&fixture).unwrap() + "\n").unwrap();
    // Zeros that were taken in advance; opening a log cuts them off as well.
    let (segment, end) = checkpoint::Log::look(&data.join("log"), |_| Ok(())).unwrap().unwrap();
    fs::OpenOptions::new().write(true).open(segment).unwrap().set_len(end).unwrap();
    fs::remove_file(data.join("LOCK")).unwrap();
    pack(&files(data), &target.join("data.parquet"));
}
