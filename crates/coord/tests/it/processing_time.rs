//! Processing time: conditions on `now()` that advance by themselves, and `PROCTIME()`.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use coord::execution::Threads;
use coord::{EngineConfig, Time};

use crate::harness::{Instance, Rng, config, ok, rows, run, scratch, seed, state_of};

const SECOND: i64 = 1_000_000;
/// 2026-01-01 00:00:00.5.
const START: i64 = 1_767_225_600 * SECOND + SECOND / 2;

/// An engine whose clock the test moves.
fn with_clock(folder: &std::path::Path, slots: usize, batch_rows: usize) -> (Instance, Arc<AtomicI64>) {
    let now = Arc::new(AtomicI64::new(START));
    let read = Arc::clone(&now);
    let time = Time::from_fn(move || read.load(Ordering::Relaxed));
    let config = EngineConfig { time, ..config(folder, slots, batch_rows) };
    (Instance::with(config, Arc::new(Threads::default())), now)
}

async fn one(session: &mut coord::Session, query: &str) -> String {
    rows(session, query).await.concat().concat()
}

/// Trap "`now()` folds to a literal at planning": at every moment a view is what its query answers then.
#[tokio::test(flavor = "multi_thread")]
async fn views_of_the_present_equal_their_queries_as_time_goes_on() {
    let queries = [
        "SELECT id, at FROM t WHERE at > now() - INTERVAL '10 seconds'",
        "SELECT id FROM t WHERE at <= now()",
        "SELECT id, k FROM t WHERE at BETWEEN now() - INTERVAL '5 seconds' AND now() + INTERVAL '5 seconds'",
        "SELECT id FROM t WHERE now() - at < INTERVAL '7 seconds' AND k > 1",
        "SELECT id FROM t WHERE INTERVAL '-2 seconds' <= at - current_timestamp",
        "SELECT k, count(*) AS n, max(v) AS v FROM t WHERE at + INTERVAL '3 seconds' >= now() GROUP BY k",
        "SELECT k, max(at) AS at FROM t GROUP BY k HAVING max(at) > now() - INTERVAL '6 seconds'",
        "SELECT id, until_at FROM t WHERE at < now() AND until_at >= now() AND v % 2 = 0",
        "SELECT a.id AS a, b.id AS b FROM t a JOIN t b ON a.k = b.v % 4 WHERE a.at > now() - INTERVAL '4 seconds' AND b.until_at > now()",
        "SELECT count(*) AS n FROM (SELECT DISTINCT k FROM t WHERE local > now() - INTERVAL '8 seconds') d",
        "SELECT id FROM t WHERE at > now() - INTERVAL '12 seconds' ORDER BY at DESC, id LIMIT 3",
    ];
    for (slots, batch_rows) in [(1, 8192), (3, 4)] {
        let folder = scratch();
        let (instance, now) = with_clock(folder.path(), slots, batch_rows);
        let mut s = instance.session();
        ok(
            &mut s,
            "CREATE TABLE t (id int PRIMARY KEY, k int, v int, at timestamptz, until_at timestamptz, local timestamp)",
        )
        .await;
        let mut rng = Rng::new(seed());
        let mut made = 0;
        for step in 0..80 {
            if step % 7 == 0 && made < queries.len() {
                ok(&mut s, &format!("CREATE MATERIALIZED VIEW v{made} AS {}", queries[made])).await;
                made += 1;
            }
            now.fetch_add([0, 0, SECOND, 2 * SECOND, 5 * SECOND][rng.below(5)], Ordering::Relaxed);
            let moment = |rng: &mut Rng| match rng.below(9) {
                0 => "NULL".to_owned(),
                // Never at the very moment of a query: epochs at one moment are a microsecond apart.
                _ => format!("now() + {} * INTERVAL '1 second' + INTERVAL '250 ms'", rng.below(24) as i64 - 12),
            };
            for _ in 0..rng.below(4) {
                let id = rng.below(30);
                let (at, until, local) = (moment(&mut rng), moment(&mut rng), moment(&mut rng));
                let (k, v) = (rng.below(4), rng.below(10));
                let change = match rng.below(3) {
                    0 => format!("DELETE FROM t WHERE id = {id}"),
                    1 => format!("UPDATE t SET v = {v}, at = {at} WHERE id = {id}"),
                    _ => format!(
                        "INSERT INTO t VALUES ({id}, {k}, {v}, {at}, {until}, ({local})::timestamp) ON CONFLICT (id) DO UPDATE SET at = excluded.at, until_at = excluded.until_at, local = excluded.local, v = excluded.v"
                    ),
                };
                ok(&mut s, &change).await;
            }
            ok(&mut s, "FLUSH").await;
            for (n, query) in queries.iter().enumerate().take(made) {
                let mut standing = rows(&mut s, &format!("SELECT * FROM v{n}")).await;
                let mut batch = rows(&mut s, query).await;
                standing.sort_unstable();
                batch.sort_unstable();
                assert_eq!(standing, batch, "{query}, step {step}, {slots} slots");
            }
        }
        assert_eq!(made, queries.len());
        instance.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_and_go_by_themselves_and_then_nothing_is_kept() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (id int, at timestamptz) APPEND ONLY").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW v AS SELECT id FROM t WHERE at <= now() AND at > now() - INTERVAL '400 ms'")
        .await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM v").await;
    ok(&mut s, "INSERT INTO t SELECT n, now() + INTERVAL '300 ms' FROM generate_series(1, 100) AS s(n)").await;
    assert_eq!(one(&mut s, "SELECT n FROM n").await, "0");
    let mut seen = Vec::new();
    for _ in 0..400 {
        let n = one(&mut s, "SELECT n FROM n").await;
        if seen.last() != Some(&n) {
            seen.push(n);
        }
        if seen.len() == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(seen, ["0", "100", "0"]);
    // No timer is left: nothing opens an epoch any more.
    let epoch = instance.engine.clock.completed();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(instance.engine.clock.completed(), epoch);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_of_processing_time_close_by_themselves() {
    let folder = scratch();
    let (instance, now) = with_clock(folder.path(), 3, 32);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE e (k int) APPEND ONLY").await;
    let window = "FROM TUMBLE((SELECT *, PROCTIME() AS p FROM e), p, INTERVAL '10 seconds') GROUP BY k, window_start, window_end";
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW open AS SELECT k, count(*) AS n, window_start {window}")).await;
    ok(
        &mut s,
        &format!(
            "CREATE MATERIALIZED VIEW closed AS SELECT k, count(*) AS n, window_end {window} EMIT ON WINDOW CLOSE"
        ),
    )
    .await;
    ok(&mut s, "CREATE MATERIALIZED VIEW sessions AS SELECT k, count(*) AS n, window_end FROM SESSION((SELECT *, PROCTIME() AS p FROM e), p, INTERVAL '4 seconds' PARTITION BY k) GROUP BY k, window_start, window_end EMIT ON WINDOW CLOSE").await;
    for (step, k) in [1, 1, 2, 1].into_iter().enumerate() {
        now.store(START + step as i64 * 3 * SECOND, Ordering::Relaxed);
        ok(&mut s, &format!("INSERT INTO e VALUES ({k})")).await;
    }
    let open = [["1", "3", "2026-01-01 00:00:00+00"], ["2", "1", "2026-01-01 00:00:00+00"]];
    assert_eq!(rows(&mut s, "SELECT * FROM open ORDER BY k").await, open);
    assert_eq!(one(&mut s, "SELECT count(*) FROM closed").await, "0");
    assert_eq!(rows(&mut s, "SELECT k, n FROM sessions").await, [["1", "2"]]);
    now.store(START + 10 * SECOND, Ordering::Relaxed);
    ok(&mut s, "FLUSH").await;
    let closed = [["1", "3", "2026-01-01 00:00:10+00"], ["2", "1", "2026-01-01 00:00:10+00"]];
    assert_eq!(rows(&mut s, "SELECT * FROM closed ORDER BY k").await, closed);
    assert_eq!(rows(&mut s, "SELECT * FROM open ORDER BY k").await, open);
    // The system's clock goes back: processing time does not.
    now.store(START, Ordering::Relaxed);
    ok(&mut s, "INSERT INTO e VALUES (5)").await;
    assert_eq!(one(&mut s, "SELECT window_start FROM open WHERE k = 5").await, "2026-01-01 00:00:10+00");
    now.store(START + 60 * SECOND, Ordering::Relaxed);
    ok(&mut s, "FLUSH").await;
    assert_eq!(
        rows(&mut s, "SELECT k, n FROM sessions ORDER BY k, n").await,
        [["1", "1"], ["1", "2"], ["2", "1"], ["5", "1"]]
    );
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_answer_in_a_standing_query_is_refused() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 1, 32);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (id int PRIMARY KEY, at timestamptz, d date, name text)").await;
    for query in [
        "SELECT now() AS n FROM t",
        "SELECT id, at - now() AS age FROM t",
        "SELECT id FROM t WHERE at > now() OR id = 1",
        "SELECT id FROM t WHERE at = now()",
        "SELECT id FROM t WHERE (at > now()) IS NOT TRUE",
        "SELECT id FROM t WHERE extract(hour FROM now()) > 5",
        "SELECT id FROM t WHERE at > now() - INTERVAL '1 month'",
        "SELECT id FROM t WHERE now() > now() - INTERVAL '1 hour'",
        "SELECT id FROM t WHERE d > current_date",
        "SELECT a.id FROM t a JOIN t b ON a.at > now() - (b.at - a.at)",
        "SELECT a.id FROM t a, t b WHERE a.at - b.at > now() - b.at",
        "SELECT a.id FROM t a LEFT JOIN t b ON a.id = b.id AND b.at > now()",
        "SELECT id, proctime() AS p FROM t",
        "SELECT id FROM t WHERE at > proctime()",
        "SELECT id FROM t ORDER BY proctime() LIMIT 1",
    ] {
        let e = run(&mut s, &format!("CREATE MATERIALIZED VIEW v AS {query}")).await.err();
        let e = e.unwrap_or_else(|| panic!("{query} is accepted"));
        assert_eq!(e.state().code(), "0A000", "{query}: {e}");
        assert!(e.hint().is_some(), "{query}: {e}");
    }
    // As a query of this moment all that is well.
    assert_eq!(one(&mut s, "SELECT count(*) FROM t WHERE at > proctime() OR at > now()").await, "0");
    assert_eq!(state_of(&mut s, "CREATE MATERIALIZED VIEW v AS SELECT id FROM t WHERE name > now()").await, "42883");
    instance.close().await;
}
