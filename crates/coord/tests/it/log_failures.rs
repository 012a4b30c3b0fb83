//! The log on a disk that refuses something, for now or for good: jobs that are to start, those who read them, and everybody
//! else.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use checkpoint::Disk;
use checkpoint::disk::SystemDisk;
use coord::execution::Threads;
use coord::session::Session;
use flow::SqlState;
use tokio::task::JoinHandle;

use crate::harness::{Answer, Instance, keeping, ok, rows, run, scratch};

/// How long an answer may take that is to come at once.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A disk that is full whenever a job is to be noted in the log, or that cannot sync.
#[derive(Default)]
struct Refusing {
    starts: AtomicBool,
    syncs: AtomicBool,
}

impl Disk for Refusing {
    fn allocate(&self, file: &File, from: u64, bytes: u64) -> std::io::Result<()> {
        SystemDisk.allocate(file, from, bytes)
    }

    fn write(&self, file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
        let has = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        if self.starts.load(Ordering::SeqCst) && (has(b"\"job_started\"") || has(b"\"sink_started\"")) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        SystemDisk.write(file, bytes, at)
    }

    fn sync(&self, file: &File) -> std::io::Result<()> {
        match self.syncs.load(Ordering::SeqCst) {
            true => Err(std::io::Error::other("the device is gone")),
            false => SystemDisk.sync(file),
        }
    }
}

fn open(folder: &Path, disk: &Arc<Refusing>) -> Instance {
    let mut config = keeping(folder, 2, 64);
    config.disk = Some(Arc::clone(disk) as Arc<dyn Disk>);
    Instance::with(config, Arc::new(Threads::default()))
}

/// A statement in a session of its own, which may have to wait.
fn begin(instance: &Instance, text: &str) -> JoinHandle<flow::Result<Answer>> {
    let (mut session, text) = (instance.session(), text.to_string());
    tokio::spawn(async move { run(&mut session, &text).await })
}

/// Waits until the state of a job begins so, with this SQLSTATE if one is given.
async fn wait_for_job(s: &mut Session, name: &str, state: &str, code: &str) {
    let mut last = Vec::new();
    for _ in 0..500 {
        last = rows(s, "SHOW JOBS").await;
        if last
            .iter()
            .any(|row| row[1].ends_with(name) && row[3].starts_with(state) && (code.is_empty() || row[7] == code))
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{name} is not {state} ({code}): {last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_log_refuses_for_now_is_stalled_and_starts_by_itself() {
    let (folder, disk) = (scratch(), Arc::new(Refusing::default()));
    let instance = open(folder.path(), &disk);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int); INSERT INTO t VALUES (1), (2); CREATE TABLE filled (k int)").await;
    disk.starts.store(true, Ordering::SeqCst);
    let created = begin(&instance, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM t");
    wait_for_job(&mut s, ".n", "stalled: could not write: no space left on device", "53100").await;
    let sunk = begin(&instance, "CREATE SINK k INTO filled AS SELECT k FROM t");
    wait_for_job(&mut s, ".k", "stalled: ", "53100").await;
    let read = begin(&instance, "SELECT n FROM n");
    // Nobody else waits.
    ok(&mut s, "INSERT INTO t VALUES (3); CREATE TABLE other (k int)").await;
    assert_eq!(rows(&mut s, "SELECT count(*) FROM t").await, [["3"]]);
    assert!(!created.is_finished() && !sunk.is_finished() && !read.is_finished());
    disk.starts.store(false, Ordering::SeqCst);
    created.await.unwrap().unwrap();
    sunk.await.unwrap().unwrap();
    read.await.unwrap().unwrap();
    wait_for_job(&mut s, ".n", "running", "").await;
    ok(&mut s, "INSERT INTO t VALUES (4)").await;
    assert_eq!(rows(&mut s, "SELECT n FROM n").await, [["4"]]);
    drop(s);
    instance.close().await;

    // The same at a start.
    disk.starts.store(true, Ordering::SeqCst);
    let instance = open(folder.path(), &disk);
    let mut s = instance.session();
    wait_for_job(&mut s, ".n", "stalled: ", "53100").await;
    ok(&mut s, "INSERT INTO t VALUES (5)").await;
    disk.starts.store(false, Ordering::SeqCst);
    wait_for_job(&mut s, ".n", "running", "").await;
    assert_eq!(rows(&mut s, "SELECT n FROM n").await, [["5"]]);
    drop(s);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_could_not_start_yet_can_be_dropped() {
    let (folder, disk) = (scratch(), Arc::new(Refusing::default()));
    let instance = open(folder.path(), &disk);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int)").await;
    disk.starts.store(true, Ordering::SeqCst);
    let created = begin(&instance, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM t");
    wait_for_job(&mut s, ".n", "stalled: ", "53100").await;
    ok(&mut s, "DROP MATERIALIZED VIEW n").await;
    let refused = tokio::time::timeout(AT_ONCE, created).await.unwrap().unwrap().unwrap_err();
    assert_eq!(refused.state(), SqlState::UndefinedObject, "{refused}");
    disk.starts.store(false, Ordering::SeqCst);
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) + 1 AS n FROM t").await;
    assert_eq!(rows(&mut s, "SELECT n FROM n").await, [["1"]]);
    assert_eq!(rows(&mut s, "SHOW JOBS").await.len(), 1);
    drop(s);
    instance.close().await;
}

/// What cannot come up any more is not waited for, and everybody is told at once, whoever has found it out: no epoch is cut after
/// the failure.
#[tokio::test(flavor = "multi_thread")]
async fn readers_of_a_view_that_is_not_up_are_told_when_the_log_fails() {
    let (folder, disk) = (scratch(), Arc::new(Refusing::default()));
    let instance = open(folder.path(), &disk);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int); INSERT INTO t VALUES (1)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW up AS SELECT k FROM t").await;
    disk.starts.store(true, Ordering::SeqCst);
    let created = begin(&instance, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM t");
    wait_for_job(&mut s, ".n", "stalled: ", "53100").await;
    let read = begin(&instance, "SELECT n FROM n");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!read.is_finished());
    disk.syncs.store(true, Ordering::SeqCst);
    // The session itself syncs what changes the catalog.
    let refused = run(&mut s, "CREATE TABLE other (k int)").await.unwrap_err();
    assert_eq!(refused.state(), SqlState::IoError, "{refused}");
    assert!(instance.engine.clock.durability().failed.is_some());
    let answer = tokio::time::timeout(AT_ONCE, read).await.expect("the reader waits").unwrap().unwrap_err();
    // Its job may have been given up by then.
    assert!([SqlState::IoError, SqlState::ObjectNotInPrerequisiteState].contains(&answer.state()), "{answer}");
    assert!(answer.message().contains("\"n\"") && answer.to_string().contains("could not sync"), "{answer}");
    assert!(answer.hint().unwrap().contains("restart the server"));
    let answer = tokio::time::timeout(AT_ONCE, created).await.expect("its creator waits").unwrap().unwrap_err();
    assert_eq!(answer.state(), SqlState::IoError, "{answer}");
    let later = tokio::time::timeout(AT_ONCE, run(&mut s, "SELECT n FROM n")).await.expect("a later reader waits");
    assert!(later.is_err());
    // What was up stays readable, and writes are refused.
    assert_eq!(rows(&mut s, "SELECT k FROM up").await, [["1"]]);
    assert_eq!(run(&mut s, "INSERT INTO t VALUES (2)").await.unwrap_err().state(), SqlState::IoError);
    drop(s);
    instance.close().await;

    disk.starts.store(false, Ordering::SeqCst);
    disk.syncs.store(false, Ordering::SeqCst);
    let instance = open(folder.path(), &disk);
    let mut s = instance.session();
    assert_eq!(rows(&mut s, "SELECT n FROM n").await, [["1"]]);
    drop(s);
    instance.close().await;
}

/// An epoch that was committed and never became durable is waited for by nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_does_not_wait_for_an_epoch_that_the_log_has_lost() {
    let (folder, disk) = (scratch(), Arc::new(Refusing::default()));
    let instance = open(folder.path(), &disk);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int); INSERT INTO t VALUES (1)").await;
    let epoch = instance.engine.flush().await.unwrap();
    disk.syncs.store(true, Ordering::SeqCst);
    assert_eq!(run(&mut s, "INSERT INTO t VALUES (2)").await.unwrap_err().state(), SqlState::IoError);
    let lost = instance.engine.clock.wait_completed(epoch.next());
    let lost = tokio::time::timeout(AT_ONCE, lost).await.expect("it is waited for").unwrap_err();
    assert_eq!(lost.state(), SqlState::IoError);
    instance.engine.clock.wait_completed(epoch).await.unwrap();
    drop(s);
    instance.close().await;
}

/// Its rows at that epoch are unknown, not none.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_older_than_a_view_does_not_see_it_empty() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 64);
    let (mut s, mut other) = (instance.session(), instance.session());
    ok(&mut s, "CREATE TABLE t (k int); INSERT INTO t VALUES (1), (2)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW old AS SELECT count(*) AS n FROM t").await;
    ok(&mut s, "BEGIN").await;
    assert_eq!(rows(&mut s, "SELECT n FROM old").await, [["2"]]);
    ok(&mut other, "INSERT INTO t VALUES (3)").await;
    ok(&mut other, "CREATE MATERIALIZED VIEW young AS SELECT count(*) AS n FROM t").await;
    assert_eq!(rows(&mut other, "SELECT n FROM young").await, [["3"]]);
    assert_eq!(rows(&mut s, "SELECT n FROM old").await, [["2"]]);
    let refused = run(&mut s, "SELECT n FROM young").await.unwrap_err();
    assert_eq!(refused.state(), SqlState::ObjectNotInPrerequisiteState, "{refused}");
    assert!(refused.message().contains("\"young\" is younger"), "{refused}");
    ok(&mut s, "ROLLBACK").await;
    assert_eq!(rows(&mut s, "SELECT n FROM young").await, [["3"]]);
    // The same name, made anew.
    ok(&mut s, "BEGIN").await;
    assert_eq!(rows(&mut s, "SELECT n FROM old").await, [["3"]]);
    ok(&mut other, "CREATE OR REPLACE MATERIALIZED VIEW old AS SELECT sum(k) AS n FROM t").await;
    assert!(run(&mut s, "SELECT n FROM old").await.is_err());
    ok(&mut s, "ROLLBACK").await;
    assert_eq!(rows(&mut s, "SELECT n FROM old").await, [["6"]]);
    drop((s, other));
    instance.close().await;
}
