//! SQL on an engine whose slots are with two workers gives what it gives where the slots are in the process.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::util::display::array_value_to_string;
use cluster::message::StorePlace;
use cluster::{Roster, Slots};
use coord::engine::{CheckpointConfig, Replanner};
use coord::execution::Execution;
use coord::history::HistoryConfig;
use coord::session::replan::StoredQueries;
use coord::session::{Outcome, Rows, Session};
use coord::{Engine, EngineConfig, Time};
use flow::Result;
use futures::{StreamExt, TryStreamExt};

use crate::nodes::{Running, TOKEN, roster};

/// Workers with their slots, and an engine on them.
pub struct Cluster {
    pub roster: Arc<Roster>,
    pub workers: Vec<Running>,
    pub slots: Arc<Slots>,
    pub engine: Arc<Engine>,
}

fn config(folder: &Path, slots: usize) -> EngineConfig {
    static NONCE: AtomicU64 = AtomicU64::new(1);
    let nonce = NONCE.fetch_add(1, Ordering::Relaxed);
    let (store, rest, savepoint, interval) = (None, None, None, None);
    let (history, timeout) = (HistoryConfig::default(), Duration::from_secs(600));
    let checkpoints = Some(CheckpointConfig { store, rest, savepoint, interval, retained: 2, history, timeout, nonce });
    let (data_dir, memory_limit, batch_rows, time, disk) = (folder.into(), 1 << 30, 8192, Time::system(), None);
    let log_bytes_min = coord::compaction::LOG_BYTES_MIN;
    let shared_log = None;
    EngineConfig { data_dir, slots, memory_limit, batch_rows, time, disk, log_bytes_min, checkpoints, shared_log }
}

fn open(roster: &Arc<Roster>, folder: &Path) -> (Arc<Slots>, Arc<Engine>) {
    let chosen = roster.choose(Duration::from_secs(20)).unwrap();
    let slots = Arc::new(Slots::new(roster, chosen, StorePlace::Folder(folder.join("checkpoints"))));
    let execution = Arc::clone(&slots) as Arc<dyn Execution>;
    let engine = Engine::open_with(config(folder, slots.count()), execution).unwrap();
    let replanner: Arc<dyn Replanner> = Arc::new(StoredQueries);
    engine.recover_jobs(&replanner);
    (slots, engine)
}

impl Cluster {
    /// Of workers with so many slots each.
    pub fn start(folder: &Path, slots: &[usize]) -> Cluster {
        let roster = roster(slots.len());
        let addr = roster.addr().to_string();
        let start = |(n, slots): (usize, &usize)| Running::start(&addr, *slots, TOKEN, 1000 + n as u64);
        let workers: Vec<Running> = slots.iter().enumerate().map(start).collect();
        let (slots, engine) = open(&roster, folder);
        Cluster { roster, workers, slots, engine }
    }

    pub fn session(&self) -> Session {
        let settings =
            catalog::Settings::new(|name| plan::functions::zone::Zone::parse(name).map(|_| name.to_string()));
        let base = query::base_state(1 << 30, 2).unwrap();
        Session::new(Arc::clone(&self.engine), base, settings, "tester".into(), "dev".into(), 1)
    }

    pub async fn close(self) {
        let engine = Arc::clone(&self.engine);
        tokio::task::spawn_blocking(move || engine.shutdown()).await.unwrap();
        for worker in self.workers {
            worker.close().unwrap();
        }
        self.roster.close();
    }
}

pub async fn start(session: &mut Session, sql: &str) -> Result<Outcome> {
    let mut last = Outcome::Done(String::new());
    for parsed in session.parse(sql)? {
        let prepared = session.prepare(&Arc::new(parsed), &[]).await?;
        last = session.execute(&prepared, &[]).await?;
    }
    Ok(last)
}

pub async fn ok(session: &mut Session, sql: &str) {
    if let Outcome::Rows { rows, .. } = start(session, sql).await.unwrap_or_else(|e| panic!("{sql}: {e}")) {
        rows.try_collect::<Vec<_>>().await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }
}

pub fn shown(batch: &arrow::array::RecordBatch) -> Vec<String> {
    let cell = |column: &arrow::array::ArrayRef, row| array_value_to_string(column, row).unwrap();
    (0..batch.num_rows())
        .map(|row| batch.columns().iter().map(|c| cell(c, row)).collect::<Vec<_>>().join(" "))
        .collect()
}

pub async fn rows(session: &mut Session, sql: &str) -> Vec<String> {
    let outcome = start(session, sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    let Outcome::Rows { rows, .. } = outcome else { panic!("{sql} gives no rows") };
    let batches: Vec<_> = rows.try_collect().await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    let mut all: Vec<String> = batches.iter().flat_map(shown).collect();
    all.sort();
    all
}

/// A view and its query give the same.
async fn same(session: &mut Session, view: &str, query: &str) {
    let (view, query) = (rows(session, &format!("SELECT * FROM {view}")).await, rows(session, query).await);
    assert_eq!(view, query);
}

async fn next(rows: &mut Rows) -> Vec<String> {
    let batch = tokio::time::timeout(Duration::from_secs(30), rows.next()).await.expect("nothing comes");
    shown(&batch.unwrap().unwrap())
}

const GROUPS: &str = "SELECT k % 7 AS g, count(*) AS n, sum(v) AS s FROM t GROUP BY k % 7";
const JOINED: &str = "SELECT t.k, t.v, u.name FROM t JOIN u ON t.v % 10 = u.id";

#[tokio::test(flavor = "multi_thread")]
async fn views_over_two_workers_equal_their_queries() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path(), &[2, 1]);
    let mut s = cluster.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v int); CREATE TABLE u (id int PRIMARY KEY, name text)").await;
    ok(&mut s, "INSERT INTO u SELECT n::int, 'name number ' || n FROM generate_series(0, 9) AS g (n)").await;
    ok(&mut s, "INSERT INTO t SELECT n::int, (n * 7919 % 1000)::int FROM generate_series(1, 20000) AS g (n)").await;
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW groups AS {GROUPS}")).await;
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW joined WITH (parallelism = 2) AS {JOINED}")).await;
    // On views that have rows already, whose rows come back from the workers to be fed.
    let over = "SELECT name, count(*) AS n, max(k) AS m FROM joined GROUP BY name";
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW over AS {over}")).await;
    ok(&mut s, "CREATE MATERIALIZED VIEW top WITH (parallelism = 1) AS SELECT * FROM t ORDER BY v DESC, k LIMIT 5")
        .await;
    for _ in 0..3 {
        ok(&mut s, "UPDATE t SET v = v + 1 WHERE k % 3 = 0; DELETE FROM t WHERE k % 11 = 5").await;
        ok(&mut s, "INSERT INTO t SELECT n::int, 3 FROM generate_series(30000, 30500) AS g (n) ON CONFLICT DO NOTHING")
            .await;
        same(&mut s, "groups", GROUPS).await;
        same(&mut s, "joined", JOINED).await;
        same(&mut s, "over", &format!("SELECT name, count(*) AS n, max(k) AS m FROM ({JOINED}) AS j GROUP BY name"))
            .await;
        same(&mut s, "top", "SELECT * FROM t ORDER BY v DESC, k LIMIT 5").await;
    }
    assert_eq!(rows(&mut s, "SELECT count(*) FROM joined").await, rows(&mut s, "SELECT count(*) FROM t").await);
    for g in 0..7 {
        let found = rows(&mut s, &format!("SELECT * FROM groups WHERE g = {g}")).await;
        assert_eq!(found, rows(&mut s, &format!("SELECT * FROM ({GROUPS}) AS q WHERE g = {g}")).await);
    }
    assert!(rows(&mut s, "SELECT * FROM groups WHERE g = 99").await.is_empty());
    // They are numbered in the order in which they came.
    let workers = rows(&mut s, "SELECT slots, state FROM ms_catalog.workers WHERE id IN (1, 2)").await;
    assert_eq!(workers, ["1 running", "2 running"]);
    assert_eq!(rows(&mut s, "SHOW WORKERS").await.len(), 2);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_follow_views_that_workers_have_also_when_their_jobs_move() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path(), &[1, 2]);
    let mut s = cluster.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m WITH (change_retention = '10 minutes') AS SELECT k, v FROM t WHERE k < 100")
        .await;
    ok(&mut s, "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (200, 'z')").await;
    let mut other = cluster.session();
    let Outcome::Rows { rows: mut changes, .. } = start(&mut other, "SUBSCRIBE m").await.unwrap() else { panic!() };
    let mut snapshot: Vec<String> = Vec::new();
    while snapshot.len() < 2 {
        snapshot.extend(next(&mut changes).await);
    }
    let words = |row: &String| row.split(' ').skip(1).collect::<Vec<_>>().join(" ");
    let mut first: Vec<String> = snapshot.iter().map(words).collect();
    first.sort();
    assert_eq!(first, ["insert 1 a", "insert 2 b"]);
    for round in 0..3 {
        ok(
            &mut s,
            &format!("UPDATE t SET v = 'round {round}' WHERE k = 1; INSERT INTO t VALUES ({}, 'new')", 10 + round),
        )
        .await;
        let mut came: Vec<String> = Vec::new();
        while came.len() < 3 {
            came.extend(next(&mut changes).await.iter().map(words));
        }
        assert!(
            came.contains(&format!("insert 1 round {round}")) && came.contains(&format!("insert {} new", 10 + round)),
            "{came:?}"
        );
        // With the next round its job works elsewhere.
        ok(&mut s, &format!("ALTER MATERIALIZED VIEW m SET PARALLELISM {}", 1 + round % 2)).await;
        same(&mut s, "m", "SELECT k, v FROM t WHERE k < 100").await;
    }
    drop(changes);
    ok(&mut s, "DELETE FROM t WHERE k = 2").await;
    same(&mut s, "m", "SELECT k, v FROM t WHERE k < 100").await;
    cluster.close().await;
}

/// Values of a megabyte through exchange, scan, point read and checkpoint, far more than may be on the way at once.
#[tokio::test(flavor = "multi_thread")]
async fn large_values_pass_and_a_slow_reader_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path(), &[1, 1]);
    let mut s = cluster.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m AS SELECT k + 1 AS k, v, length(v) AS l FROM t").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT l, count(*) AS n FROM m GROUP BY l").await;
    for k in 0..12 {
        ok(&mut s, &format!("INSERT INTO t VALUES ({k}, repeat('{}', {}))", char::from(b'a' + k as u8), (1 << 20) + k))
            .await;
    }
    ok(&mut s, "INSERT INTO t SELECT n::int, 'small' FROM generate_series(100, 5000) AS g (n)").await;
    // Nobody reads this one on; others are answered all the same.
    let mut other = cluster.session();
    let Outcome::Rows { rows: mut slow, .. } = start(&mut other, "SELECT k, v FROM m").await.unwrap() else { panic!() };
    let begun = slow.next().await.unwrap().unwrap().num_rows();
    for _ in 0..3 {
        assert_eq!(
            rows(&mut s, "SELECT count(*), sum(l) FROM m").await,
            rows(&mut s, "SELECT count(*), sum(length(v)) FROM t").await
        );
        assert_eq!(rows(&mut s, "SELECT l FROM m WHERE k = 5").await, [((1 << 20) + 4).to_string()]);
        ok(&mut s, "UPDATE t SET v = v || 'x' WHERE k < 3").await;
    }
    same(&mut s, "n", "SELECT length(v) AS l, count(*) AS n FROM t GROUP BY length(v)").await;
    ok(&mut s, "CHECKPOINT").await;
    let rest: Vec<_> = slow.try_collect().await.unwrap();
    assert_eq!(begun + rest.iter().map(|b| b.num_rows()).sum::<usize>(), 12 + 4901);
    cluster.close().await;
}

/// One worker goes away for good; another takes its place, with other slots, and nothing that was acknowledged is missing.
#[tokio::test(flavor = "multi_thread")]
async fn another_worker_takes_the_place_of_one_that_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(folder.path(), &[2, 1]);
    let mut s = cluster.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v int); CREATE TABLE u (id int PRIMARY KEY, name text)").await;
    ok(&mut s, "INSERT INTO u SELECT n::int, 'n' || n FROM generate_series(0, 9) AS g (n)").await;
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW groups AS {GROUPS}")).await;
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW joined AS {JOINED}")).await;
    ok(&mut s, "INSERT INTO t SELECT n::int, (n % 100)::int FROM generate_series(1, 5000) AS g (n)").await;
    for round in 0..3 {
        ok(&mut s, "CHECKPOINT").await;
        ok(&mut s, &format!("UPDATE t SET v = v + 1 WHERE k % 5 = {round}")).await;
        // What was acknowledged is complete: reads have nothing else to wait for than the worker.
        same(&mut s, "groups", GROUPS).await;
        let session = cluster.slots.session().unwrap();
        cluster.workers.pop().unwrap().close().unwrap();
        let mut lost = None;
        for _ in 0..300 {
            lost = lost.or(session.wait_lost(Duration::from_millis(100)));
        }
        let lost = lost.expect("nobody notices");
        assert_eq!(lost.state().code(), "57P03");
        let read = match start(&mut s, "SELECT * FROM groups").await {
            Ok(Outcome::Rows { rows, .. }) => rows.try_collect::<Vec<_>>().await.map(drop),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        let error = read.unwrap_err();
        assert_eq!((error.state().code(), error.hint().is_some()), ("57P03", true), "{error}");
        cluster.engine.interrupt(&lost).await;
        let old = Arc::clone(&cluster.engine);
        tokio::task::spawn_blocking(move || old.shutdown()).await.unwrap();
        // A statement that still has the old engine hears of the worker, not that somebody drops the view.
        let groups = cluster.engine.catalog().relations().find(|r| r.name == "groups").map(|r| r.oid).unwrap();
        let error = cluster.engine.view_store(groups).err().unwrap();
        assert_eq!((error.state().code(), error.message()), ("57P03", lost.message()), "{error}");
        let addr = cluster.roster.addr().to_string();
        cluster.workers.push(Running::start(&addr, 1 + round % 3, TOKEN, 2000 + round as u64));
        let (roster, path) = (Arc::clone(&cluster.roster), folder.path().to_path_buf());
        (cluster.slots, cluster.engine) = {
            let opened = tokio::task::spawn_blocking(move || open(&roster, &path)).await;
            opened.unwrap()
        };
        s.move_to(Arc::clone(&cluster.engine)).unwrap();
        same(&mut s, "groups", GROUPS).await;
        same(&mut s, "joined", JOINED).await;
        ok(&mut s, &format!("INSERT INTO t VALUES ({}, 7)", 10_000 + round)).await;
        same(&mut s, "groups", GROUPS).await;
    }
    cluster.close().await;
}
