//! A store that is away, a full disk and a target that does not answer: what is affected says so, goes on by itself, and loses
//! nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use checkpoint::door::{Answer, Door, Failure, Listed, NoRest, Store};
use checkpoint::faulty::MemoryStore;
use checkpoint::faulty::disk::FaultyDisk;
use coord::EngineConfig;
use coord::engine::cluster_id;
use coord::execution::Threads;
use coord::session::Session;
use flow::{Error, SqlState};
use parking_lot::Mutex;

use crate::harness::{Instance, keeping, ok, rows, run, scratch};

/// A store whose disk can be full.
struct Disk {
    /// Names that begin like this are not there once, when they have been read so many times more.
    missed: Mutex<Option<(&'static str, usize)>>,
    objects: Arc<MemoryStore>,
    full: AtomicBool,
}

impl Disk {
    fn new() -> Arc<Disk> {
        Arc::new(Disk { objects: MemoryStore::new(), full: AtomicBool::new(false), missed: Mutex::default() })
    }

    fn miss(&self, prefix: &'static str, after: usize) {
        *self.missed.lock() = Some((prefix, after));
    }

    fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }
}

impl Store for Disk {
    fn create(&self, name: &str, bytes: &Bytes) -> Result<Answer, Failure> {
        if self.full.load(Ordering::SeqCst) {
            return Err(Failure::Lasting(Error::new(SqlState::DiskFull, "no space left on device")));
        }
        self.objects.create(name, bytes)
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, Failure> {
        let mut missed = self.missed.lock();
        match &mut *missed {
            Some((prefix, after)) if name.starts_with(*prefix) && *after > 0 => *after -= 1,
            Some((prefix, _)) if name.starts_with(*prefix) => {
                *missed = None;
                return Ok(None);
            }
            _ => {}
        }
        drop(missed);
        self.objects.read(name)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
        self.objects.list(folder)
    }

    fn delete(&self, name: &str) -> Result<(), Failure> {
        self.objects.delete(name)
    }

    fn place(&self) -> String {
        self.objects.place()
    }
}

fn open(folder: &Path, store: Option<&Arc<Disk>>, timeout: Duration) -> Instance {
    let mut config: EngineConfig = keeping(folder, 2, 64);
    if let Some(checkpoints) = &mut config.checkpoints {
        checkpoints.store = store.map(|disk| Arc::clone(disk) as Arc<dyn Store>);
        checkpoints.timeout = timeout;
    }
    Instance::with(config, Arc::new(Threads::default()))
}

/// With a log on a disk that may fail.
fn open_on(folder: &Path, disk: &Arc<FaultyDisk>) -> Instance {
    let mut config = keeping(folder, 1, 64);
    config.disk = Some(Arc::clone(disk) as Arc<dyn checkpoint::Disk>);
    Instance::with(config, Arc::new(Threads::default()))
}

const LONG: Duration = Duration::from_secs(600);

/// State, SQLSTATE and cause of a job.
async fn job(s: &mut Session, name: &str) -> Vec<String> {
    let all = rows(s, "SHOW JOBS").await;
    let line = all.into_iter().find(|row| row[1].ends_with(name)).unwrap_or_else(|| panic!("no job {name}"));
    vec![line[3].clone(), line[7].clone(), line[8].clone()]
}

/// Waits until the job's state begins so.
async fn wait_for_state(s: &mut Session, name: &str, state: &str) -> Vec<String> {
    for _ in 0..600 {
        let line = job(s, name).await;
        if line[0].starts_with(state) {
            return line;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{name} is {:?}, not {state}", job(s, name).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_stalled_while_the_store_is_full_and_go_on_by_themselves() {
    let (folder, disk) = (scratch(), Disk::new());
    let instance = open(folder.path(), Some(&disk), LONG);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int, v int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW sums AS SELECT k, sum(v) AS s FROM t GROUP BY k").await;
    ok(&mut s, "INSERT INTO t SELECT n % 10, n FROM generate_series(1, 1000) AS g (n)").await;
    ok(&mut s, "CHECKPOINT").await;
    assert_eq!(job(&mut s, "sums").await[0], "running");
    disk.set_full(true);
    ok(&mut s, "INSERT INTO t VALUES (1, 1)").await;
    // Said at once, though it is tried again and again.
    let refused = run(&mut s, "CHECKPOINT").await.unwrap_err();
    assert_eq!((refused.state(), refused.message()), (SqlState::DiskFull, "the checkpoint is stalled"));
    let line = wait_for_state(&mut s, "sums", "stalled: ").await;
    assert_eq!(line[..2], ["stalled: no space left on device", "53100"]);
    // The flow goes on.
    ok(&mut s, "INSERT INTO t VALUES (1, 10)").await;
    let seen = rows(&mut s, "SELECT s FROM sums WHERE k = 1").await;
    assert_eq!(seen, rows(&mut s, "SELECT sum(v) FROM t WHERE k = 1").await);
    disk.set_full(false);
    wait_for_state(&mut s, "sums", "running").await;
    ok(&mut s, "CHECKPOINT").await;
    drop(s);
    instance.close().await;

    let instance = open(folder.path(), Some(&disk), LONG);
    let mut s = instance.session();
    let expected = rows(&mut s, "SELECT k, sum(v) FROM t GROUP BY k ORDER BY k").await;
    assert_eq!(rows(&mut s, "SELECT k, s FROM sums ORDER BY k").await, expected);
    instance.close().await;
}

/// A job whose state cannot be stored stays where it is, and works; nobody waits for the move.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_does_not_move_while_the_store_is_full() {
    let (folder, disk) = (scratch(), Disk::new());
    let instance = open(folder.path(), Some(&disk), LONG);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int, v int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW sums AS SELECT k, sum(v) AS s FROM t GROUP BY k").await;
    ok(&mut s, "CHECKPOINT").await;
    disk.set_full(true);
    ok(&mut s, "INSERT INTO t SELECT n, n FROM generate_series(1, 5000) AS g (n)").await;
    // The first finds it out, the second knows.
    for _ in 0..2 {
        let refused = run(&mut s, "ALTER MATERIALIZED VIEW sums SET PARALLELISM 1").await.unwrap_err();
        assert_eq!(refused.state(), SqlState::DiskFull, "{refused:?}");
        ok(&mut s, "INSERT INTO t VALUES (1, 10)").await;
        let seen = rows(&mut s, "SELECT s FROM sums WHERE k = 1").await;
        assert_eq!(seen, rows(&mut s, "SELECT sum(v) FROM t WHERE k = 1").await);
    }
    disk.set_full(false);
    wait_for_state(&mut s, "sums", "running").await;
    ok(&mut s, "ALTER MATERIALIZED VIEW sums SET PARALLELISM 1").await;
    ok(&mut s, "INSERT INTO t VALUES (2, 10)").await;
    assert_eq!(
        rows(&mut s, "SELECT k, s FROM sums WHERE k < 4 ORDER BY k").await,
        [["1", "21"], ["2", "12"], ["3", "3"]]
    );
    drop(s);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_store_is_full_can_be_dropped_and_the_server_stops() {
    let (folder, disk) = (scratch(), Disk::new());
    let instance = open(folder.path(), Some(&disk), LONG);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int, v int)").await;
    for view in ["a", "b"] {
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW {view} AS SELECT k, sum(v) AS s FROM t GROUP BY k")).await;
    }
    disk.set_full(true);
    ok(&mut s, "INSERT INTO t VALUES (1, 1)").await;
    run(&mut s, "CHECKPOINT").await.unwrap_err();
    ok(&mut s, "DROP MATERIALIZED VIEW a").await;
    ok(&mut s, "DROP MATERIALIZED VIEW b").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW c AS SELECT k, max(v) AS s FROM t GROUP BY k").await;
    ok(&mut s, "INSERT INTO t VALUES (1, 2)").await;
    assert_eq!(rows(&mut s, "SELECT s FROM c").await, [["2"]]);
    drop(s);
    tokio::time::timeout(Duration::from_secs(20), instance.close()).await.unwrap();
    disk.set_full(false);
    let instance = open(folder.path(), Some(&disk), LONG);
    let mut s = instance.session();
    assert_eq!(rows(&mut s, "SELECT s FROM c").await, [["2"]]);
    drop(s);
    instance.close().await;
}

/// The numbers in the published files of a folder.
fn published(folder: &Path) -> Vec<i64> {
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let text = std::fs::read_to_string(&path).unwrap();
            seen.extend(text.lines().map(|line| {
                let row: serde_json::Value = serde_json::from_str(line).unwrap();
                row["k"].as_i64().unwrap()
            }));
        }
    }
    seen.sort_unstable();
    seen
}

async fn create_sink(s: &mut Session, out: &Path) {
    ok(s, "CREATE TABLE t (k int) APPEND ONLY").await;
    let sink = format!(
        "CREATE SINK k AS SELECT k FROM t WITH (connector = 'file', path = '{}', delivery = 'exactly_once') FORMAT PLAIN \
         ENCODE JSON",
        out.display()
    );
    ok(s, &sink).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_target_is_away_is_stalled_and_goes_on_by_itself() {
    let folder = scratch();
    let (data, out, away) = (folder.path().join("data"), folder.path().join("out"), folder.path().join("away"));
    let instance = open(&data, None, LONG);
    let mut s = instance.session();
    create_sink(&mut s, &out).await;
    ok(&mut s, "INSERT INTO t SELECT n FROM generate_series(1, 100) AS g (n)").await;
    ok(&mut s, "CHECKPOINT").await;
    assert_eq!(published(&out), (1..=100).collect::<Vec<_>>());
    std::fs::rename(&out, &away).unwrap();
    ok(&mut s, "INSERT INTO t SELECT n FROM generate_series(101, 200) AS g (n)").await;
    let mut other = instance.session();
    let waits = tokio::spawn(async move { run(&mut other, "CHECKPOINT").await.map(drop) });
    let line = wait_for_state(&mut s, ".k", "stalled: ").await;
    assert_eq!(line[1], "58030");
    std::fs::rename(&away, &out).unwrap();
    waits.await.unwrap().unwrap();
    wait_for_state(&mut s, ".k", "running").await;
    assert_eq!(published(&out), (1..=200).collect::<Vec<_>>());
    // Ending does not wait for a target that is away.
    std::fs::rename(&out, &away).unwrap();
    ok(&mut s, "INSERT INTO t VALUES (201)").await;
    let mut other = instance.session();
    let waits = tokio::spawn(async move { run(&mut other, "CHECKPOINT").await.map(drop) });
    wait_for_state(&mut s, ".k", "stalled: ").await;
    drop(s);
    tokio::time::timeout(Duration::from_secs(20), instance.close()).await.unwrap();
    waits.await.unwrap().unwrap_err();
    std::fs::rename(&away, &out).unwrap();
    let instance = open(&data, None, LONG);
    let mut s = instance.session();
    ok(&mut s, "CHECKPOINT").await;
    assert_eq!(published(&out), (1..=201).collect::<Vec<_>>());
    drop(s);
    instance.close().await;
}

/// Trap: a commit without a time-out stalls all checkpoints.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_target_does_not_answer_is_stopped_and_checkpoints_go_on() {
    let folder = scratch();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    let instance = open(&data, None, Duration::from_secs(1));
    let mut s = instance.session();
    create_sink(&mut s, &out).await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM t").await;
    ok(&mut s, "INSERT INTO t VALUES (1)").await;
    ok(&mut s, "CHECKPOINT").await;
    // A pipe without a reader, in the place of the note that the next commit writes: opening it never ends.
    let staged = out.join(".millstream-staged");
    let notes = std::fs::read_dir(&staged).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let note = notes.filter(|name| name.ends_with(".committed")).collect::<Vec<_>>();
    let pipe = staged.join(format!("{}.tmp", note[0]));
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    ok(&mut s, "INSERT INTO t VALUES (2)").await;
    ok(&mut s, "CHECKPOINT").await;
    let line = wait_for_state(&mut s, ".k", "failed").await;
    assert_eq!(line[1], "58030");
    assert!(line[2].starts_with("the target of the sink does not answer"), "{line:?}");
    ok(&mut s, "INSERT INTO t VALUES (3)").await;
    ok(&mut s, "CHECKPOINT").await;
    assert_eq!(rows(&mut s, "SELECT n FROM n").await, [["3"]]);
    tokio::time::timeout(Duration::from_secs(5), ok(&mut s, "DROP SINK k")).await.unwrap();
    drop(s);
    tokio::time::timeout(Duration::from_secs(20), instance.close()).await.unwrap();
    // Lets the thread that was left behind end.
    drop(std::fs::File::options().read(true).open(&pipe));
}

/// State, and rows read.
async fn source(s: &mut Session, name: &str) -> (String, u64) {
    let all = rows(s, "SHOW SOURCES").await;
    let line = all.iter().find(|row| row[1] == name).unwrap_or_else(|| panic!("no source {name}"));
    (line[3].clone(), line[4].parse().unwrap())
}

/// Waits until the source has read so many rows and is in this state: minutes on a machine that is busy otherwise.
async fn wait_for_source(s: &mut Session, name: &str, state: &str, least: u64) -> u64 {
    for _ in 0..12_000 {
        let (is, read) = source(s, name).await;
        if is == state && read >= least {
            return read;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{name} is {:?}, not {state} with {least} rows", source(s, name).await);
}

/// A source that nobody reads but a sink that does not keep up waits for it, and does not wait when somebody else reads it too.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_waits_for_the_sink_that_alone_reads_it() {
    let folder = scratch();
    let (data, out, away) = (folder.path().join("data"), folder.path().join("out"), folder.path().join("away"));
    let instance = open(&data, None, LONG);
    let mut s = instance.session();
    let long = "x".repeat(4000);
    ok(&mut s, &format!("CREATE SOURCE g (x text) WITH (connector = 'datagen', fields.x.values = '{long}')")).await;
    ok(&mut s, "ALTER SOURCE g SET (rate_limit = 1000)").await;
    let sink = format!(
        "CREATE SINK k AS SELECT x FROM g WITH (connector = 'file', path = '{}', delivery = 'exactly_once') FORMAT PLAIN \
         ENCODE JSON",
        out.display()
    );
    ok(&mut s, &sink).await;
    ok(&mut s, "CHECKPOINT").await;
    std::fs::rename(&out, &away).unwrap();
    let mut other = instance.session();
    let waits = tokio::spawn(async move { run(&mut other, "CHECKPOINT").await.map(|_| ()) });
    wait_for_state(&mut s, ".k", "stalled: ").await;
    ok(&mut s, "ALTER SOURCE g RESET (rate_limit)").await;
    // 64 MiB wait then, and what was on its way: without the pause the sink would stop at 256.
    let read = wait_for_source(&mut s, "g", "backpressured", 16_000).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(source(&mut s, "g").await, ("backpressured".into(), read));
    assert!(read < 50_000, "{read} rows");
    assert!(job(&mut s, ".k").await[0].starts_with("stalled: "));

    // Another reader is not held up.
    ok(&mut s, "ALTER SOURCE g SET (rate_limit = 500)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM g").await;
    let more = wait_for_source(&mut s, "g", "running", read + 200).await;
    ok(&mut s, "DROP MATERIALIZED VIEW n").await;
    wait_for_source(&mut s, "g", "backpressured", more).await;

    // When the target is back, everything goes on, and nothing is lost.
    std::fs::rename(&away, &out).unwrap();
    let last = wait_for_source(&mut s, "g", "running", more + 500).await;
    waits.await.unwrap().ok();
    ok(&mut s, "ALTER SOURCE g PAUSE").await;
    ok(&mut s, "FLUSH").await;
    ok(&mut s, "CHECKPOINT").await;
    let read = source(&mut s, "g").await.1;
    let written: usize = std::fs::read_dir(&out)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| std::fs::read_to_string(path).unwrap().lines().count())
        .sum();
    assert_eq!((written as u64, read >= last), (read, true));
    drop(s);
    instance.close().await;
}

/// A source `g` of rows of 4 kB, as fast as they are read.
async fn create_long_rows(s: &mut Session) {
    let columns = "fields.n.kind = 'sequence', fields.x.values";
    let long = "x".repeat(4000);
    ok(s, &format!("CREATE SOURCE g (n bigint, x text) WITH (connector = 'datagen', {columns} = '{long}')")).await;
}

/// A sink is no reason to hold up epochs, so a fast source that nobody else reads has to wait for what computes the sink's rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_waits_for_the_slow_query_of_a_sink() {
    let folder = scratch();
    let instance = Instance::with_memory(folder.path(), 2, 1024, 384 << 20);
    let mut s = instance.session();
    create_long_rows(&mut s).await;
    let slow = (0..2).map(|n| format!("max(md5(x || n || '{n}')) AS m{n}")).collect::<Vec<_>>().join(", ");
    let sink =
        format!("CREATE SINK k AS SELECT n % 7 AS k, {slow} FROM g GROUP BY n % 7 WITH (connector = 'blackhole')");
    ok(&mut s, &sink).await;
    // What may lie before the sink, what waits for the next cut, and a portion or two: 4 kB a row. Then it goes on as the sink does.
    let first = wait_for_source(&mut s, "g", "backpressured", 1).await;
    assert!(first < 60_000, "{first} rows");
    let more = wait_for_source(&mut s, "g", "backpressured", first + 17_000).await;
    assert!(more < first + 60_000, "{more} rows after {first}");
    assert_eq!(job(&mut s, ".k").await[1..], ["NULL", "NULL"]);
    drop(s);
    instance.close().await;
}

/// What comes while a new view back-fills waits for it in memory. A source that others read too goes on for them, but not until there
/// is no memory left for anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_waits_for_a_new_view_before_the_memory_is_full() {
    let folder = scratch();
    let instance = Instance::with_memory(folder.path(), 2, 1024, 256 << 20);
    let mut s = instance.session();
    create_long_rows(&mut s).await;
    ok(&mut s, "CREATE MATERIALIZED VIEW fast AS SELECT count(*) AS n, max(x) AS x FROM g").await;
    let before = wait_for_source(&mut s, "g", "running", 20_000).await;
    let create = "CREATE MATERIALIZED VIEW slow AS SELECT n % 7 AS k, max(md5(x || n)) AS m FROM g GROUP BY n % 7";
    // 64 MiB at 4 kB a row come before it is waited for, of the 256 that there are.
    let mut other = instance.session();
    tokio::join!(ok(&mut s, create), wait_for_source(&mut other, "g", "backpressured", before));
    // Then it goes on for both.
    let after = wait_for_source(&mut s, "g", "running", 0).await;
    wait_for_source(&mut s, "g", "running", after + 1).await;
    for view in [".fast", ".slow"] {
        assert_eq!(job(&mut s, view).await[1..], ["NULL", "NULL"], "{view}");
    }
    drop((s, other));
    instance.close().await;
}

/// Two servers that were given one bucket: the second has no effect on the first.
#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_of_another_data_directory_are_refused() {
    let (folder, disk) = (scratch(), Disk::new());
    let instance = open(&folder.path().join("first"), Some(&disk), LONG);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM t").await;
    ok(&mut s, "INSERT INTO t VALUES (1)").await;
    ok(&mut s, "CHECKPOINT").await;
    let before = disk.objects.names();
    // One that has run for long with checkpoints of its own.
    let second = Instance::with(keeping(&folder.path().join("second"), 1, 64), Arc::new(Threads::default()));
    ok(&mut second.session(), "CREATE TABLE t (k int)").await;
    ok(&mut second.session(), "CHECKPOINT").await;
    second.close().await;
    let mut config = keeping(&folder.path().join("second"), 1, 64);
    config.checkpoints.as_mut().unwrap().store = Some(Arc::clone(&disk) as Arc<dyn Store>);
    let refused = coord::Engine::open(config).err().unwrap();
    assert_eq!(refused.state(), SqlState::ObjectNotInPrerequisiteState);
    assert!(refused.message().contains("are of another data directory"), "{refused}");
    assert_eq!(disk.objects.names(), before);
    ok(&mut s, "INSERT INTO t VALUES (2)").await;
    ok(&mut s, "CHECKPOINT").await;
    drop(s);
    instance.close().await;
    let instance = open(&folder.path().join("first"), Some(&disk), LONG);
    let mut s = instance.session();
    assert_eq!(rows(&mut s, "SELECT n FROM n").await, [["2"]]);
    drop(s);
    instance.close().await;
}

/// What another coordinator makes and clears away while this one starts is neither damage nor somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_beside_a_coordinator_that_works_looks_again() {
    let (folder, disk) = (scratch(), Disk::new());
    let instance = open(folder.path(), Some(&disk), LONG);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int)").await;
    ok(&mut s, "INSERT INTO t VALUES (1)").await;
    ok(&mut s, "CHECKPOINT").await;
    drop(s);
    instance.close().await;
    let door = Door::new(Arc::clone(&disk) as Arc<dyn Store>, Arc::new(NoRest), 1);
    let other = cluster_id(&door, "another").unwrap_err();
    assert_eq!(other.state(), SqlState::ObjectNotInPrerequisiteState, "{other}");
    // The cluster is begun between two requests.
    door.put_new("cluster/id", b"the cluster").unwrap();
    disk.miss("cluster/id", 0);
    assert_eq!(cluster_id(&door, "another").unwrap(), "the cluster");
    assert!(disk.missed.lock().is_none());
    // The checkpoint is cleared away after it was found.
    disk.miss("manifest/", 1);
    let instance = open(folder.path(), Some(&disk), LONG);
    assert!(disk.missed.lock().is_none());
    let mut s = instance.session();
    assert_eq!(rows(&mut s, "SELECT k FROM t").await, [["1"]]);
    drop(s);
    instance.close().await;
}

/// A write that the log does not take was never there, whatever kind of table it went into.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_the_log_refuses_leaves_nothing_behind() {
    let (folder, disk) = (scratch(), FaultyDisk::new());
    let instance = open_on(folder.path(), &disk);
    let mut s = instance.session();
    for (name, kind) in [("keyed", "(k int PRIMARY KEY)"), ("plain", "(k int)"), ("added", "(k int) APPEND ONLY")] {
        ok(&mut s, &format!("CREATE TABLE {name} {kind}")).await;
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW n_{name} AS SELECT count(*) AS n FROM {name}")).await;
        ok(&mut s, &format!("INSERT INTO {name} VALUES (1)")).await;
        disk.shorten_next_write();
        let refused = run(&mut s, &format!("INSERT INTO {name} VALUES (2), (3)")).await.unwrap_err();
        assert_eq!(refused.state(), SqlState::IoError, "{name}: {refused}");
        if name == "keyed" {
            // Nor is it waited for.
            let refused = run(&mut s, "INSERT INTO keyed VALUES (1)").await.unwrap_err();
            assert_eq!(refused.state(), SqlState::UniqueViolation, "{refused}");
            ok(&mut s, "INSERT INTO keyed VALUES (1) ON CONFLICT DO NOTHING").await;
        }
        assert_eq!(rows(&mut s, &format!("SELECT k FROM {name}")).await, [["1"]], "{name}");
        ok(&mut s, &format!("INSERT INTO {name} VALUES (3)")).await;
        assert_eq!(rows(&mut s, &format!("SELECT k FROM {name} ORDER BY k")).await, [["1"], ["3"]], "{name}");
        assert_eq!(rows(&mut s, &format!("SELECT n FROM n_{name}")).await, [["2"]], "{name}");
    }
    drop(s);
    instance.close().await;
}

/// Who tries a write again that has failed is not told of its own first try as of something that is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_not_durable_is_nobodys_duplicate() {
    let (folder, disk) = (scratch(), FaultyDisk::new());
    let instance = open_on(folder.path(), &disk);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY)").await;
    ok(&mut s, "INSERT INTO t VALUES (1)").await;
    let refused = run(&mut s, "INSERT INTO t VALUES (1)").await.unwrap_err();
    assert_eq!(refused.state(), SqlState::UniqueViolation, "{refused}");
    ok(&mut s, "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING").await;
    disk.fail_next_sync();
    for again in [
        "INSERT INTO t VALUES (2)",
        "INSERT INTO t VALUES (2)",
        "INSERT INTO t VALUES (2) ON CONFLICT DO NOTHING",
        "BEGIN; INSERT INTO t VALUES (2) ON CONFLICT DO NOTHING; COMMIT",
    ] {
        let refused = run(&mut s, again).await.unwrap_err();
        assert_eq!(refused.state(), SqlState::IoError, "{again}: {refused}");
    }
    drop(s);
    instance.close().await;
}
