//! The log is rewritten while the server runs, and says the same to every later start.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coord::execution::Threads;
use coord::{EngineConfig, Session};

use crate::checkpoints::went_on;
use crate::harness::{Instance, config, keeping, ok, rows, scratch};

const MIB: u64 = 1 << 20;

fn open(config: EngineConfig, log_bytes_min: u64) -> Instance {
    Instance::with(EngineConfig { log_bytes_min, ..config }, Arc::new(Threads::default()))
}

/// Waits until no rewrite is under way.
async fn settled(instance: &Instance) {
    for _ in 0..1000 {
        if !instance.engine.compaction.is_busy() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the log is still rewritten");
}

/// The number of the log's segment.
fn segment(folder: &Path) -> String {
    let (path, _) = checkpoint::Log::look(&folder.join("log"), |_| Ok(())).unwrap().unwrap();
    path.file_stem().unwrap().to_str().unwrap().to_string()
}

async fn fill(s: &mut Session) {
    ok(s, "CREATE TABLE t (k int PRIMARY KEY, v int, x text)").await;
    ok(s, "CREATE MATERIALIZED VIEW m AS SELECT k % 7 AS g, sum(v) AS s, count(*) AS n FROM t GROUP BY k % 7").await;
    ok(s, "INSERT INTO t SELECT n, n, repeat('long', 100) FROM generate_series(1, 1000) AS g (n)").await;
}

const SUMS: &str = "SELECT k % 7 AS g, sum(v) AS s, count(*) AS n FROM t GROUP BY k % 7 ORDER BY g";

/// Each round logs about 800 kB, and writers go on meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_stays_small_while_a_table_is_updated_again_and_again() {
    let folder = scratch();
    let instance = open(keeping(folder.path(), 2, 1024), MIB);
    let mut s = instance.session();
    fill(&mut s).await;
    ok(&mut s, "CREATE TABLE beside (k int)").await;
    let (stop, mut other) = (Arc::new(AtomicBool::new(false)), instance.session());
    let writer = {
        let stop = Arc::clone(&stop);
        tokio::spawn(async move {
            let (mut written, mut longest) = (0, Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let before = tokio::time::Instant::now();
                ok(&mut other, &format!("INSERT INTO beside VALUES ({written})")).await;
                (written, longest) = (written + 1, longest.max(before.elapsed()));
            }
            (written, longest)
        })
    };
    let (mut most, mut logged, mut before) = (0u64, 0u64, instance.engine.log.len());
    for _ in 0..30 {
        ok(&mut s, "UPDATE t SET v = v + 1").await;
        let now = instance.engine.log.len();
        logged += now.saturating_sub(before);
        ok(&mut s, "CHECKPOINT").await;
        settled(&instance).await;
        before = instance.engine.log.len();
        most = most.max(now);
    }
    stop.store(true, Ordering::Relaxed);
    let (written, longest) = writer.await.unwrap();
    println!("at most {most} bytes of {logged}; {written} statements beside, the longest took {longest:?}");
    assert!(logged > 15 * MIB && most < 8 * MIB, "{most} bytes of {logged}");
    assert!(written > 0 && longest < Duration::from_secs(2), "{longest:?}");
    // Nothing of this is in a checkpoint.
    ok(&mut s, "UPDATE t SET v = v * 2 WHERE k < 100; DELETE FROM t WHERE k % 10 = 3").await;
    let expected = rows(&mut s, SUMS).await;
    let catalog = instance.engine.catalog();
    drop(s);
    instance.close().await;
    // Not the work of a start.
    assert_ne!(segment(folder.path()), "0000000001");

    let instance = open(keeping(folder.path(), 3, 1024), 1 << 40);
    let mut s = instance.session();
    assert_eq!(rows(&mut s, SUMS).await, expected);
    assert_eq!(rows(&mut s, "SELECT g, s, n FROM m ORDER BY g").await, expected);
    assert_eq!(rows(&mut s, "SELECT count(DISTINCT k) FROM beside").await, [[written.to_string()]]);
    assert!(went_on(&instance, "m"), "made anew");
    assert_eq!(instance.engine.catalog().relations().count(), catalog.relations().count());
    drop(s);
    instance.close().await;
}

/// Without checkpoints everything is made anew from the tables, which are in the log.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_stays_small_without_checkpoints_too() {
    let folder = scratch();
    let instance = open(config(folder.path(), 2, 1024), MIB);
    let mut s = instance.session();
    fill(&mut s).await;
    let mut most = 0u64;
    for _ in 0..20 {
        ok(&mut s, "UPDATE t SET v = v + 1").await;
        most = most.max(instance.engine.log.len());
        settled(&instance).await;
    }
    assert!(most < 8 * MIB, "{most} bytes");
    let expected = rows(&mut s, SUMS).await;
    drop(s);
    instance.close().await;
    let instance = open(config(folder.path(), 1, 64), 1 << 40);
    let mut s = instance.session();
    assert_eq!(rows(&mut s, SUMS).await, expected);
    assert_eq!(rows(&mut s, "SELECT g, s, n FROM m ORDER BY g").await, expected);
    drop(s);
    instance.close().await;
}

const TABLES: &str = "
    CREATE TABLE keyed (k int PRIMARY KEY, v int);
    CREATE TABLE bag (k int, x text);
    CREATE TABLE added (id int, at timestamp, WATERMARK FOR at AS at - INTERVAL '5 seconds') APPEND ONLY;
    CREATE TABLE gone (k int);
    CREATE TABLE filled (k int PRIMARY KEY, v int);
    CREATE TABLE left_over (k int, v int);
    INSERT INTO filled VALUES (1, -1), (100, -100);
    ALTER TABLE filled ADD COLUMN more int DEFAULT 7;
    CREATE SINK fills INTO filled AS SELECT k, v, 1 AS more FROM keyed;
    CREATE SINK filled_once INTO left_over AS SELECT k, v FROM keyed;
    INSERT INTO keyed SELECT n, n FROM generate_series(1, 20) AS g (n);
    INSERT INTO bag VALUES (1, 'a'), (1, 'a'), (2, NULL);
    INSERT INTO added VALUES (1, '2026-01-01 00:00:10'), (2, '2026-01-01 00:01:00');
    INSERT INTO added VALUES (3, '2026-01-01 00:00:01');
    INSERT INTO gone VALUES (1);
    CREATE MATERIALIZED VIEW sums AS SELECT k % 3 AS g, sum(v) AS s FROM keyed GROUP BY k % 3;
    CREATE MATERIALIZED VIEW bags AS SELECT x, count(*) AS n FROM bag GROUP BY x;
    CREATE MATERIALIZED VIEW minutes AS SELECT window_start, count(*) AS n FROM TUMBLE(added, at, INTERVAL '1 minute')
        GROUP BY window_start;
    CREATE MATERIALIZED VIEW fillings AS SELECT count(*) AS n, sum(v) AS s FROM filled;
";

/// What must be the same, in order.
const LOOKS: [&str; 10] = [
    "SELECT * FROM keyed ORDER BY k",
    "SELECT * FROM bag ORDER BY k, x",
    "SELECT * FROM added ORDER BY id",
    "SELECT id FROM \"added$late\" ORDER BY id",
    "SELECT * FROM filled ORDER BY k",
    "SELECT * FROM left_over ORDER BY k",
    "SELECT * FROM sums ORDER BY g",
    "SELECT * FROM bags ORDER BY x",
    "SELECT * FROM minutes ORDER BY window_start",
    "SELECT * FROM fillings",
];

/// `filled` has its rows when the sink has written them.
async fn look(instance: &Instance, s: &mut Session) -> Vec<Vec<Vec<String>>> {
    let epoch = instance.engine.flush().await.unwrap();
    instance.engine.wait_all(epoch).await.unwrap();
    ok(s, "FLUSH").await;
    let mut all = Vec::new();
    for query in LOOKS {
        all.push(rows(s, query).await);
    }
    all
}

/// Every kind of table, catalog changes on both sides of the cut, and rows that sinks have derived.
#[tokio::test(flavor = "multi_thread")]
async fn a_rewritten_log_says_the_same_of_everything() {
    let folder = scratch();
    let instance = open(keeping(folder.path(), 2, 64), 0);
    let mut s = instance.session();
    ok(&mut s, TABLES).await;
    ok(
        &mut s,
        "UPDATE keyed SET v = v + 1; DELETE FROM keyed WHERE k = 20; DELETE FROM bag WHERE k = 1; DROP TABLE gone",
    )
    .await;
    look(&instance, &mut s).await;
    ok(&mut s, "DROP SINK filled_once").await;
    let before = segment(folder.path());
    ok(&mut s, "CHECKPOINT").await;
    settled(&instance).await;
    assert_ne!(segment(folder.path()), before);
    // What comes after the cut.
    ok(&mut s, "INSERT INTO keyed VALUES (30, 30); UPDATE keyed SET v = 0 WHERE k = 3; ALTER TABLE bag ADD COLUMN y int DEFAULT 5").await;
    ok(&mut s, "INSERT INTO bag VALUES (9, 'i', 9); INSERT INTO added VALUES (4, '2026-01-01 00:00:02'), (5, '2026-01-01 00:01:01')").await;
    ok(&mut s, "CREATE TABLE young (k int); INSERT INTO young VALUES (1)").await;
    let expected = look(&instance, &mut s).await;
    drop(s);
    instance.close().await;
    for round in 0..3 {
        let log_bytes_min = if round == 1 { 0 } else { 1 << 40 };
        let instance = open(keeping(folder.path(), 1 + round, 64), log_bytes_min);
        let mut s = instance.session();
        assert_eq!(look(&instance, &mut s).await, expected, "round {round}");
        assert_eq!(rows(&mut s, "SELECT k FROM young").await, [["1"]]);
        assert!(went_on(&instance, "sums"), "made anew in round {round}");
        if round == 1 {
            ok(&mut s, "CHECKPOINT").await;
            settled(&instance).await;
        }
        drop(s);
        instance.close().await;
    }

    // What a sink has derived stays when it is dropped, and what the table had of its own is gone where the sink has overwritten it.
    let instance = open(keeping(folder.path(), 2, 64), 1 << 40);
    let mut s = instance.session();
    let expected = look(&instance, &mut s).await;
    let filled = &expected[4];
    assert!(filled.contains(&vec!["100".into(), "-100".into(), "7".into()]) && filled.len() == 21, "{filled:?}");
    ok(&mut s, "DROP SINK fills").await;
    drop(s);
    instance.close().await;
    let instance = open(keeping(folder.path(), 2, 64), 1 << 40);
    let mut s = instance.session();
    assert_eq!(look(&instance, &mut s).await, expected);
    drop(s);
    instance.close().await;
}

/// A sink that is dropped right after the rewrite leaves in its table what the rewritten log says that it has derived.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_sink_has_derived_outlives_it_in_a_rewritten_log() {
    let folder = scratch();
    let instance = open(keeping(folder.path(), 2, 64), 0);
    let mut s = instance.session();
    ok(&mut s, TABLES).await;
    ok(&mut s, "UPDATE keyed SET v = v + 1 WHERE k > 5").await;
    look(&instance, &mut s).await;
    ok(&mut s, "CHECKPOINT").await;
    settled(&instance).await;
    ok(&mut s, "DROP SINK fills; DROP SINK filled_once").await;
    let expected = look(&instance, &mut s).await;
    assert_eq!(expected[4].len(), 21, "{:?}", expected[4]);
    drop(s);
    instance.close().await;
    let instance = open(keeping(folder.path(), 2, 64), 1 << 40);
    let mut s = instance.session();
    assert_eq!(look(&instance, &mut s).await, expected);
    drop(s);
    instance.close().await;
}
