//! Engines that take over from each other on one store, with the log in it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use checkpoint::door::{Answer, Failure, Listed, Rest, Store};
use checkpoint::faulty::MemoryStore;
use checkpoint::{DataDirectory, Log};
use coord::engine::{CheckpointConfig, SharedLog};
use coord::execution::Threads;
use coord::{Engine, EngineConfig};
use flow::{RelationId, Result};

use crate::checkpoints::went_on;
use crate::harness::{Instance, keeping, ok, rows, scratch, state_of};

const CLUSTER: &str = "the cluster of the test";

/// An engine's settings, for the coordinator of this data directory.
fn shared(folder: &Path, store: &Arc<dyn Store>, log_bytes_min: u64) -> EngineConfig {
    shared_of(&Arc::new(DataDirectory::open(folder).unwrap()), store, log_bytes_min)
}

/// The same, while the data directory is owned for longer.
fn shared_of(directory: &Arc<DataDirectory>, store: &Arc<dyn Store>, log_bytes_min: u64) -> EngineConfig {
    let folder = directory.path();
    let config = keeping(folder, 2, 256);
    let checkpoints = config.checkpoints.clone().map(|c| CheckpointConfig {
        store: Some(Arc::clone(store)),
        rest: Some(Arc::new(Short)),
        ..c
    });
    let shared_log = Some(SharedLog {
        address: folder.display().to_string(),
        cluster: CLUSTER.into(),
        directory: Arc::clone(directory),
    });
    EngineConfig { checkpoints, shared_log, log_bytes_min, ..config }
}

fn open(config: EngineConfig) -> Instance {
    Instance::with(config, Arc::new(Threads::default()))
}

fn try_open(config: EngineConfig) -> Result<Arc<Engine>> {
    Engine::open_with(config, Arc::new(Threads::default()))
}

/// Rests for a moment, however long it may.
struct Short;

impl Rest for Short {
    fn rest(&self, _at_most: Duration) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A store that can be away.
struct Away {
    inner: Arc<MemoryStore>,
    away: AtomicBool,
}

impl Away {
    fn pass<T>(&self, request: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        if self.away.load(Ordering::SeqCst) {
            return Err(Failure::Transient("nobody answers".into()));
        }
        request()
    }
}

impl Store for Away {
    fn create(&self, name: &str, bytes: &Bytes) -> Result<Answer, Failure> {
        self.pass(|| self.inner.create(name, bytes))
    }
    fn read(&self, name: &str) -> Result<Option<Bytes>, Failure> {
        self.pass(|| self.inner.read(name))
    }
    fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
        self.pass(|| self.inner.list(folder))
    }
    fn delete(&self, name: &str) -> Result<(), Failure> {
        self.pass(|| self.inner.delete(name))
    }
    fn place(&self) -> String {
        "memory".into()
    }
}

const GROUPS: &str = "SELECT k % 5 AS g, count(*) AS n, sum(v) AS s FROM t GROUP BY k % 5 ORDER BY g";

/// Each round another engine takes over from one that works, and that does not know of it.
#[tokio::test(flavor = "multi_thread")]
async fn engines_take_over_from_each_other_and_nothing_acknowledged_is_missing() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let folders = [scratch(), scratch()];
    // One that always writes its log anew, and one that never does.
    let directories = folders.each_ref().map(|folder| Arc::new(DataDirectory::open(folder.path()).unwrap()));
    let settings = |round: usize| shared_of(&directories[round % 2], &store, if round % 4 < 2 { 0 } else { 1 << 40 });
    let mut leader = open(settings(0));
    let mut s = leader.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v int); CREATE TABLE beside (k int)").await;
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW m AS {}", GROUPS.trim_end_matches(" ORDER BY g"))).await;
    ok(&mut s, "INSERT INTO t SELECT n, n FROM generate_series(1, 500) AS g (n)").await;
    let (mut generation, mut beside) = (0, 0);
    for round in 1..9 {
        ok(&mut s, "CHECKPOINT").await;
        ok(&mut s, &format!("UPDATE t SET v = v + 1 WHERE k % 3 = {}", round % 3)).await;
        for _ in 0..5 {
            ok(&mut s, &format!("INSERT INTO beside VALUES ({beside})")).await;
            beside += 1;
        }
        ok(&mut s, "CREATE TABLE made (k int); DROP TABLE made").await;
        if round % 2 == 0 {
            ok(&mut s, "CHECKPOINT").await;
        }
        let expected = rows(&mut s, GROUPS).await;
        let next = open(settings(round));
        let mut other = next.session();
        // The older one is refused from now on, whatever it does, and what it tries is nowhere.
        let refused = ["INSERT INTO beside VALUES (-1)", "CREATE TABLE never (k int)", "UPDATE t SET v = 0"];
        let state = state_of(&mut s, refused[round % 3]).await;
        assert_eq!(state, "57P01", "round {round}");
        assert_eq!(leader.engine.durable().failed.unwrap().state().code(), "57P01");
        let now = next.engine.generation().unwrap().0;
        assert!(now > generation && now > leader.engine.generation().unwrap().0);
        generation = now;
        assert_eq!(rows(&mut other, GROUPS).await, expected, "round {round}");
        assert_eq!(rows(&mut other, "SELECT g, n, s FROM m ORDER BY g").await, expected, "round {round}");
        assert!(went_on(&next, "m"), "made anew in round {round}");
        let counted = rows(&mut other, "SELECT count(*), count(DISTINCT k), min(k) FROM beside").await;
        assert_eq!(counted, [[beside.to_string(), beside.to_string(), "0".to_string()]]);
        assert_eq!(rows(&mut other, "SELECT state FROM ms_catalog.coordinators").await, [["leader"]]);
        drop(s);
        leader.close().await;
        (leader, s) = (next, other);
    }
    drop(s);
    leader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_for_a_store_that_is_away_and_says_so() {
    let away = Arc::new(Away { inner: MemoryStore::new(), away: AtomicBool::new(false) });
    let store: Arc<dyn Store> = away.clone();
    let folder = scratch();
    let leader = open(shared(folder.path(), &store, 1 << 40));
    let mut s = leader.session();
    ok(&mut s, "CREATE TABLE t (k int); INSERT INTO t VALUES (1)").await;
    away.away.store(true, Ordering::SeqCst);
    let mut other = leader.session();
    let writing = tokio::spawn(async move {
        ok(&mut other, "INSERT INTO t VALUES (2)").await;
    });
    let mut cause = None;
    for _ in 0..1000 {
        cause = leader.engine.clock.stalls.of_job(RelationId(1), false);
        if cause.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(cause.unwrap().detail().unwrap().contains("nobody answers"));
    assert!(!writing.is_finished());
    // What is complete can be read meanwhile.
    assert_eq!(rows(&mut s, "SELECT k FROM t").await, [["1"]]);
    away.away.store(false, Ordering::SeqCst);
    writing.await.unwrap();
    assert_eq!(rows(&mut s, "SELECT k FROM t ORDER BY k").await, [["1"], ["2"]]);
    assert_eq!(leader.engine.clock.stalls.of_job(RelationId(1), false), None);
    // A server that stops does not wait for ever.
    away.away.store(true, Ordering::SeqCst);
    let mut other = leader.session();
    let lost = tokio::spawn(async move { state_of(&mut other, "INSERT INTO t VALUES (3)").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(s);
    tokio::time::timeout(Duration::from_secs(20), leader.close()).await.unwrap();
    assert!(["58030", "57P01"].contains(&lost.await.unwrap().as_str()));
    away.away.store(false, Ordering::SeqCst);
    let leader = open(shared(folder.path(), &store, 1 << 40));
    let mut s = leader.session();
    assert_eq!(rows(&mut s, "SELECT k FROM t WHERE k < 3 ORDER BY k").await, [["1"], ["2"]]);
    drop(s);
    leader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_moved_to_the_store_once_and_never_opened_here_again() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let folder = scratch();
    let alone = open(keeping(folder.path(), 2, 256));
    let mut s = alone.session();
    ok(&mut s, "CREATE TABLE t (k int); INSERT INTO t SELECT n FROM generate_series(1, 100) AS g (n)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m AS SELECT count(*) AS n FROM t").await;
    drop(s);
    alone.close().await;
    let cluster = DataDirectory::open(folder.path()).unwrap().identity(7).unwrap();
    let of_cluster = |folder: &Path| {
        let mut config = shared(folder, &store, 1 << 40);
        config.shared_log = config.shared_log.map(|shared| SharedLog { cluster: cluster.clone(), ..shared });
        config
    };
    let leader = open(of_cluster(folder.path()));
    let mut s = leader.session();
    assert_eq!(rows(&mut s, "SELECT n FROM m").await, [["100"]]);
    ok(&mut s, "INSERT INTO t VALUES (101); CHECKPOINT").await;
    drop(s);
    leader.close().await;
    assert_eq!(Log::look(&folder.path().join("log"), |_| Ok(())).unwrap(), None);
    // Alone it would begin with nothing.
    let refused = try_open(keeping(folder.path(), 2, 256)).err().unwrap();
    assert_eq!(refused.state().code(), "55000");
    assert!(refused.message().contains("is kept in memory") && refused.hint().is_some(), "{refused}");
    // A data directory with a log of its own is no standby's.
    let other = scratch();
    let alone = open(keeping(other.path(), 2, 256));
    ok(&mut alone.session(), "CREATE TABLE mine (k int)").await;
    alone.close().await;
    let refused = try_open(of_cluster(other.path())).err().unwrap();
    assert!(refused.state().code() == "55000" && refused.message().contains("log of its own"), "{refused}");
    let alone = open(keeping(other.path(), 2, 256));
    assert!(rows(&mut alone.session(), "SELECT k FROM mine").await.is_empty());
    alone.close().await;
    // An empty one is.
    let standby = scratch();
    let leader = open(of_cluster(standby.path()));
    let mut s = leader.session();
    assert_eq!(rows(&mut s, "SELECT n FROM m").await, [["101"]]);
    drop(s);
    leader.close().await;
    // A store that has lost the log is not taken for a new one.
    let wiped: Arc<dyn Store> = MemoryStore::new();
    let mut config = of_cluster(standby.path());
    config.checkpoints = config.checkpoints.map(|c| CheckpointConfig { store: Some(wiped), ..c });
    let refused = try_open(config).err().unwrap();
    assert!(refused.state().code() == "XX001" && refused.message().contains("the log is gone"), "{refused}");
    // Without checkpoints there is no store.
    let config = EngineConfig { checkpoints: None, ..of_cluster(scratch().path()) };
    assert_eq!(try_open(config).err().unwrap().state().code(), "55000");
}
