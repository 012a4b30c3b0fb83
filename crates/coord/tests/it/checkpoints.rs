//! What goes on from a checkpoint after a restart: views from their state, sources from their positions.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use catalog::{Catalog, Relation};
use coord::Engine;
use coord::engine::{Replanner, StandingQuery};
use coord::execution::Threads;
use coord::session::Session;
use coord::session::replan::StoredQueries;
use flow::{Epoch, Result};

use crate::harness::{Instance, Rng, keeping, ok, rows, run, scratch, seed, state_of};

fn open(folder: &Path, slots: usize) -> Instance {
    Instance::with(keeping(folder, slots, 32), Arc::new(Threads::default()))
}

/// Whether a view went on from its state: it has shown epochs of an earlier start.
pub fn went_on(instance: &Instance, view: &str) -> bool {
    let catalog = instance.engine.catalog();
    let relation = catalog.relation_named("dev", "public", view).unwrap().oid;
    let status = instance.engine.clock.board.status(relation).unwrap();
    // Epoch numbers of an earlier start lie in an earlier block.
    status.incarnation.0 + (1 << 19) < instance.engine.clock.completed().0 && status.incarnation > Epoch(0)
}

/// Views of every kind of operator over two tables, with the query that each must equal.
const VIEWS: &[(&str, &str)] = &[
    ("sums", "SELECT g, count(*) AS n, sum(v) AS s, min(v) AS lo, max(v) AS hi, avg(v) AS a FROM t GROUP BY g"),
    ("whole", "SELECT count(*) AS n, count(DISTINCT v) AS d, sum(v) AS s FROM t"),
    ("joined", "SELECT t.k, t.v, u.name FROM t JOIN u ON t.g = u.g"),
    ("outer_joined", "SELECT t.k, u.name FROM t LEFT JOIN u ON t.g = u.g AND t.v > u.least"),
    (
        "firsts",
        "SELECT k, g, v FROM (SELECT *, row_number() OVER (PARTITION BY g ORDER BY v, k) AS r FROM t) WHERE r <= 2",
    ),
    ("distinct_groups", "SELECT DISTINCT g FROM t"),
    ("missing", "SELECT g, name FROM u WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.g = u.g)"),
    ("top", "SELECT k, v FROM t ORDER BY v DESC NULLS LAST, k LIMIT 3"),
    ("chained", "SELECT n, count(*) AS groups FROM sums GROUP BY n"),
];

async fn create(s: &mut Session) {
    ok(s, "CREATE TABLE t (k int PRIMARY KEY, g int, v int)").await;
    ok(s, "CREATE TABLE u (g int, name text, least int)").await;
    for (name, query) in VIEWS {
        ok(s, &format!("CREATE MATERIALIZED VIEW {name} AS {query}")).await;
    }
}

/// Every view equals its query.
async fn check(s: &mut Session, what: &str) {
    for (name, query) in VIEWS {
        let mut found = rows(s, &format!("SELECT * FROM {name}")).await;
        let mut expected = rows(s, query).await;
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{name}: {what}");
    }
}

async fn change(s: &mut Session, rng: &mut Rng) {
    let (k, g, v) = (rng.below(40), rng.below(6), rng.below(50));
    let statement = match rng.below(8) {
        0 => format!("DELETE FROM t WHERE k = {k}"),
        1 => format!("UPDATE t SET v = {v}, g = {g} WHERE k = {k}"),
        2 => format!("INSERT INTO u VALUES ({g}, 'u{v}', {v})"),
        3 => format!("DELETE FROM u WHERE g = {g}"),
        _ => format!("INSERT INTO t VALUES ({k}, {g}, {v}) ON CONFLICT (k) DO UPDATE SET v = {v}"),
    };
    ok(s, &statement).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn views_go_on_from_their_state_at_any_parallelism() {
    let mut rng = Rng::new(seed());
    let folder = scratch();
    let mut instance = open(folder.path(), 2);
    let mut s = instance.session();
    create(&mut s).await;
    let mut kept = false;
    for round in 0..12 {
        for _ in 0..rng.below(25) {
            change(&mut s, &mut rng).await;
        }
        if rng.below(3) > 0 {
            ok(&mut s, "CHECKPOINT").await;
            kept = true;
        }
        // What comes after the checkpoint is in the log alone.
        for _ in 0..rng.below(10) {
            change(&mut s, &mut rng).await;
        }
        check(&mut s, &format!("round {round}, before the restart")).await;
        drop(s);
        instance.close().await;
        let slots = 1 + rng.below(4);
        instance = open(folder.path(), slots);
        s = instance.session();
        check(&mut s, &format!("round {round}, seed {}, on {slots} slots", seed())).await;
        for (name, _) in VIEWS {
            assert_eq!(went_on(&instance, name), kept, "{name} in round {round}");
        }
    }
    instance.close().await;
}

/// Plans slowly, so that a checkpoint is due long before a start is over.
struct Slowly;

impl Replanner for Slowly {
    fn replan(&self, engine: &Arc<Engine>, catalog: &Catalog, relation: &Relation) -> Result<StandingQuery> {
        std::thread::sleep(Duration::from_millis(60));
        StoredQueries.replan(engine, catalog, relation)
    }
}

/// A checkpoint in the middle of a start would hold only some jobs, and say of what the log has after their state that they have
/// seen it.
#[tokio::test(flavor = "multi_thread")]
async fn no_checkpoint_comes_before_a_start_is_over() {
    let folder = scratch();
    let mut instance = open(folder.path(), 2);
    let mut s = instance.session();
    create(&mut s).await;
    ok(&mut s, "INSERT INTO t SELECT n, n % 4, n FROM generate_series(1, 20) AS s (n)").await;
    ok(&mut s, "CHECKPOINT").await;
    for round in 0..3 {
        ok(&mut s, &format!("INSERT INTO t VALUES ({}, 1, 7); INSERT INTO u VALUES (1, 'u', 0)", 100 + round)).await;
        drop(s);
        instance.close().await;
        let mut config = keeping(folder.path(), 2, 32);
        config.checkpoints.as_mut().unwrap().interval = Some(Duration::from_millis(20));
        instance = Instance::replanned(config, Arc::new(Threads::default()), Arc::new(Slowly));
        s = instance.session();
        check(&mut s, &format!("after start {round}")).await;
        assert!(VIEWS.iter().all(|(name, _)| went_on(&instance, name)), "start {round}");
        // One comes once it is over.
        let before = instance.engine.keeper().unwrap().durable();
        ok(&mut s, &format!("INSERT INTO t VALUES ({}, 2, 9)", 200 + round)).await;
        while instance.engine.keeper().unwrap().durable() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    drop(s);
    instance.close().await;
    let instance = open(folder.path(), 3);
    check(&mut instance.session(), "after all").await;
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_since_the_checkpoint_is_made_anew() {
    let folder = scratch();
    let instance = open(folder.path(), 2);
    let mut s = instance.session();
    create(&mut s).await;
    ok(&mut s, "INSERT INTO t VALUES (1, 1, 10), (2, 1, 20), (3, 2, NULL)").await;
    ok(&mut s, "INSERT INTO u VALUES (1, 'one', 15), (9, 'nine', 0)").await;
    ok(&mut s, "CHECKPOINT").await;
    ok(&mut s, "CREATE OR REPLACE MATERIALIZED VIEW top AS SELECT k, v FROM t ORDER BY v, k LIMIT 1").await;
    ok(&mut s, "DROP MATERIALIZED VIEW missing").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW late AS SELECT sum(n) AS n FROM sums").await;
    ok(&mut s, "INSERT INTO t VALUES (4, 2, 5)").await;
    drop(s);
    instance.close().await;

    let instance = open(folder.path(), 3);
    let mut s = instance.session();
    assert_eq!(rows(&mut s, "SELECT * FROM top").await, [["4", "5"]]);
    assert_eq!(rows(&mut s, "SELECT * FROM late").await, [["4"]]);
    assert_eq!(
        rows(&mut s, "SELECT k, name FROM outer_joined ORDER BY k").await,
        [["1", "NULL"], ["2", "one"], ["3", "NULL"], ["4", "NULL"],]
    );
    assert!(went_on(&instance, "sums") && went_on(&instance, "outer_joined"));
    assert!(!went_on(&instance, "top") && !went_on(&instance, "late"));
    assert_eq!(rows(&mut s, "SELECT count(*) FROM pg_class WHERE relname = 'missing'").await, [["0"]]);
    let kept = rows(&mut s, "SHOW CHECKPOINTS").await;
    assert_eq!(kept.len(), 1, "{kept:?}");
    instance.close().await;
}

/// A source goes on from its positions: its counters, late and malformed rows and windows are as if nothing had happened.
#[tokio::test(flavor = "multi_thread")]
async fn sources_go_on_from_their_positions() {
    let folder = scratch();
    let (data, input) = (folder.path().join("data"), folder.path().join("events.ndjson"));
    let line = |id: usize, at: &str| format!("{{\"id\":{id},\"at\":\"2026-01-01 00:{at}\"}}\n");
    let append = |text: String| {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&input).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    append(line(1, "00:05") + &line(2, "00:08") + "{broken\n" + &line(3, "01:30"));
    let instance = open(&data, 2);
    let mut s = instance.session();
    ok(
        &mut s,
        &format!(
            "CREATE SOURCE e (id int, at timestamptz, WATERMARK FOR at AS at - INTERVAL '1 second') \
             WITH (connector = 'file', path = '{}', format = 'json', follow = 'true', poll_interval = '10ms', on_error = 'skip')",
            input.display()
        ),
    )
    .await;
    ok(
        &mut s,
        "CREATE MATERIALIZED VIEW minutes AS SELECT window_start, count(*) AS n, sum(id) AS ids \
         FROM TUMBLE(e, at, INTERVAL '1 minute') GROUP BY window_start EMIT ON WINDOW CLOSE",
    )
    .await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n, sum(id) AS ids FROM e").await;
    let wait = async |s: &mut Session, query: &str, expected: &[[&str; 2]]| {
        for _ in 0..500 {
            if rows(s, query).await == expected {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert_eq!(rows(s, query).await, expected, "{query}");
    };
    wait(&mut s, "SELECT n, ids FROM minutes", &[["2", "3"]]).await;
    wait(&mut s, "SELECT n, ids FROM n", &[["3", "6"]]).await;
    ok(&mut s, "CHECKPOINT").await;
    // Behind the watermark: late. Read before the crash, and again after it.
    append(line(4, "00:20") + &line(5, "02:10"));
    wait(&mut s, "SELECT n, ids FROM n", &[["4", "11"]]).await;
    drop(s);
    instance.close().await;

    append(line(6, "03:05"));
    let instance = open(&data, 1);
    let mut s = instance.session();
    wait(&mut s, "SELECT n, ids FROM n", &[["5", "17"]]).await;
    wait(&mut s, "SELECT n, ids FROM minutes ORDER BY window_start", &[["2", "3"], ["1", "3"], ["1", "5"]]).await;
    assert!(went_on(&instance, "n") && went_on(&instance, "minutes"));
    assert_eq!(rows(&mut s, "SELECT id, _split IS NOT NULL FROM \"e$late\"").await, [["4", "t"]]);
    assert_eq!(rows(&mut s, "SELECT line, reason IS NOT NULL FROM \"e$errors\"").await, [["3", "t"]]);
    assert_eq!(rows(&mut s, "SELECT n, ids FROM n").await, [["5", "17"]]);
    instance.close().await;
}

/// Rows of all published files of a folder, sorted.
pub fn published(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let files = entries.map(|e| e.unwrap().path()).filter(|p| p.is_file());
    let mut lines: Vec<String> = files
        .flat_map(|p| std::fs::read_to_string(p).unwrap().lines().map(str::to_string).collect::<Vec<_>>())
        .collect();
    lines.sort();
    lines
}

/// Each row of a table is in the sink's files once, however often the server stops in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_delivers_exactly_once_publishes_with_checkpoints_and_repeats_nothing() {
    let mut rng = Rng::new(seed());
    let folder = scratch();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    let mut instance = open(&data, 2);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (id int, g int) APPEND ONLY").await;
    ok(
        &mut s,
        &format!(
            "CREATE SINK k AS SELECT id, g * 2 AS g FROM t WITH (connector = 'file', path = '{}', \
             delivery = 'exactly_once') FORMAT PLAIN ENCODE JSON",
            out.display()
        ),
    )
    .await;
    let expected = |ids: std::ops::Range<usize>| {
        let mut lines: Vec<String> = ids.map(|id| format!("{{\"id\":{id},\"g\":{}}}", id % 7 * 2)).collect();
        lines.sort();
        lines
    };
    let (mut next, mut durable) = (0, 0);
    for round in 0..12 {
        for _ in 0..1 + rng.below(6) {
            ok(&mut s, &format!("INSERT INTO t VALUES ({next}, {})", next % 7)).await;
            next += 1;
        }
        assert_eq!(published(&out), expected(0..durable), "round {round}: only what a checkpoint holds is seen");
        if rng.below(2) == 0 {
            ok(&mut s, "CHECKPOINT").await;
            durable = next;
            assert_eq!(published(&out), expected(0..durable), "round {round}: after the checkpoint");
        }
        if rng.below(2) == 0 {
            drop(s);
            instance.close().await;
            instance = open(&data, 1 + rng.below(3));
            s = instance.session();
        }
    }
    ok(&mut s, "CHECKPOINT").await;
    assert_eq!(published(&out), expected(0..next));
    instance.close().await;
}

/// The objects of checkpoints below a folder.
pub fn objects(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(objects(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// A job whose state is damaged or gone says which object it is and leaves everything in place; the others run.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_stops_its_job_by_name_and_nothing_is_cleared_away() {
    for missing in [false, true] {
        let folder = scratch();
        let instance = open(folder.path(), 1);
        let mut s = instance.session();
        ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v int)").await;
        ok(&mut s, "CREATE MATERIALIZED VIEW hurt AS SELECT v, count(*) AS n FROM t GROUP BY v").await;
        ok(&mut s, "CREATE MATERIALIZED VIEW whole AS SELECT sum(v) AS s FROM t").await;
        ok(&mut s, "INSERT INTO t VALUES (1, 10), (2, 10), (3, 30)").await;
        // More than what stands in the manifest itself.
        ok(&mut s, "INSERT INTO t SELECT n, n FROM generate_series(1000, 3000) AS g (n)").await;
        ok(&mut s, "CHECKPOINT").await;
        let hurt = instance.engine.catalog().relation_named("dev", "public", "hurt").unwrap().oid;
        drop(s);
        instance.close().await;

        let segments = objects(&folder.path().join(format!("checkpoints/jobs/{hurt}")));
        assert!(!segments.is_empty());
        let bytes = std::fs::read(&segments[0]).unwrap();
        if missing {
            std::fs::remove_file(&segments[0]).unwrap();
        } else {
            let mut bad = bytes.clone();
            let middle = bad.len() / 2;
            bad[middle] ^= 1;
            std::fs::write(&segments[0], bad).unwrap();
        }

        let instance = open(folder.path(), 1);
        let mut s = instance.session();
        assert_eq!(rows(&mut s, "SELECT s FROM whole").await, [["4002050"]]);
        let stopped = run(&mut s, "SELECT * FROM hurt").await.err().unwrap();
        let name = format!("jobs/{hurt}/");
        assert!(stopped.detail().unwrap().contains(&name), "{stopped:?}");
        assert!(stopped.detail().unwrap().contains("XX001"), "{stopped:?}");
        for n in 4..9 {
            ok(&mut s, &format!("INSERT INTO t VALUES ({n}, {n})")).await;
            ok(&mut s, "CHECKPOINT").await;
        }
        let left = objects(&folder.path().join(format!("checkpoints/jobs/{hurt}")));
        assert_eq!(left.len(), segments.len() - usize::from(missing));
        // Dropping and creating the view again makes it anew.
        ok(&mut s, "DROP MATERIALIZED VIEW hurt").await;
        ok(&mut s, "CREATE MATERIALIZED VIEW hurt AS SELECT v, count(*) AS n FROM t GROUP BY v").await;
        assert_eq!(rows(&mut s, "SELECT n FROM hurt WHERE v = 10").await, [["2"]]);
        instance.close().await;
    }
}

/// What only old checkpoints need is cleared away, and what nobody needs at the next start.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_does_not_grow_with_the_number_of_checkpoints() {
    let folder = scratch();
    let instance = open(folder.path(), 2);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m AS SELECT v, count(*) AS n FROM t GROUP BY v").await;
    let mut most = 0;
    for n in 0..60 {
        ok(&mut s, &format!("INSERT INTO t VALUES ({}, {n}) ON CONFLICT (k) DO UPDATE SET v = {n}", n % 5)).await;
        ok(&mut s, "CHECKPOINT").await;
        if n >= 30 {
            most = most.max(objects(&folder.path().join("checkpoints")).len());
        }
    }
    // Two slots with a chain each, in two checkpoints.
    assert!(most < 80, "{most} objects");
    assert_eq!(rows(&mut s, "SHOW CHECKPOINTS").await.len(), 2);
    ok(&mut s, "DROP MATERIALIZED VIEW m").await;
    for _ in 0..3 {
        ok(&mut s, "CHECKPOINT").await;
    }
    drop(s);
    instance.close().await;
    let instance = open(folder.path(), 2);
    let mut s = instance.session();
    ok(&mut s, "CHECKPOINT").await;
    let left = objects(&folder.path().join("checkpoints/jobs"));
    assert!(left.is_empty(), "{left:?}");
    instance.close().await;
}

/// A sink that has published and whose state is gone does not begin anew by itself: it would repeat everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_cannot_go_on_repeats_nothing() {
    let folder = scratch();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    let instance = open(&data, 1);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (id int, k int) APPEND ONLY").await;
    ok(&mut s, "CREATE TABLE names (k int, name text) APPEND ONLY").await;
    let sink = format!(
        "CREATE SINK k AS SELECT id, name FROM t JOIN names ON t.k = names.k \
         WITH (connector = 'file', path = '{}', delivery = 'exactly_once') FORMAT PLAIN ENCODE JSON",
        out.display()
    );
    ok(&mut s, &sink).await;
    // More than what stands in the manifest itself.
    ok(&mut s, "INSERT INTO names SELECT n, 'name ' || n FROM generate_series(1, 2000) AS g (n)").await;
    ok(&mut s, "INSERT INTO t VALUES (1, 1), (2, 1)").await;
    ok(&mut s, "CHECKPOINT").await;
    let before = published(&out);
    assert_eq!(before.len(), 2);
    let oid = instance.engine.catalog().relation_named("dev", "public", "k").unwrap().oid;
    drop(s);
    instance.close().await;
    for segment in objects(&data.join(format!("checkpoints/jobs/{oid}"))) {
        std::fs::remove_file(segment).unwrap();
    }
    // At first it says which object is missing; later checkpoints do not hold it any more.
    for (round, cause) in ["XX001", "55000", "55000"].into_iter().enumerate() {
        let instance = open(&data, 1);
        let mut s = instance.session();
        ok(&mut s, &format!("INSERT INTO t VALUES ({}, 1)", 3 + round)).await;
        ok(&mut s, "CHECKPOINT").await;
        let failure = instance.engine.clock.board.failure(oid).unwrap();
        assert_eq!(failure.state().code(), cause, "{failure:?}");
        assert_eq!(published(&out), before);
        instance.close().await;
    }
    let instance = open(&data, 1);
    let mut s = instance.session();
    ok(&mut s, "DROP SINK k").await;
    ok(&mut s, &sink.replace("/out'", "/again'")).await;
    // A checkpoint holds the sink once it has read what there was.
    for _ in 0..100 {
        ok(&mut s, "CHECKPOINT").await;
        if published(&folder.path().join("again")).len() == 5 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(published(&folder.path().join("again")).len(), 5);
    drop(s);
    instance.close().await;
    let instance = open(&data, 2);
    let mut s = instance.session();
    ok(&mut s, "INSERT INTO t VALUES (9, 1)").await;
    ok(&mut s, "CHECKPOINT").await;
    assert_eq!(published(&folder.path().join("again")).len(), 6);
    instance.close().await;
}

/// How often checkpoints are taken is set while the server runs, and stays so.
#[tokio::test(flavor = "multi_thread")]
async fn the_interval_is_the_servers() {
    let folder = scratch();
    let data = folder.path().join("data");
    let instance = open(&data, 2);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM t").await;
    // Checkpoints only when a statement says so.
    assert_eq!(rows(&mut s, "SHOW checkpoint_interval").await, [["0"]]);
    ok(&mut s, "INSERT INTO t VALUES (1)").await;
    assert!(rows(&mut s, "SHOW CHECKPOINTS").await.is_empty());
    for (statement, state) in [
        ("ALTER SYSTEM SET checkpoint_interval = '100ms'", "22023"),
        ("ALTER SYSTEM SET checkpoint_interval = 'soon'", "22023"),
        ("ALTER SYSTEM SET checkpoint_interval = 'off'", "22023"),
        ("ALTER SYSTEM SET work_mem = '4MB'", "55P02"),
        ("ALTER SYSTEM SET chekpoint_interval = '1s'", "42704"),
        ("ALTER SYSTEM SET checkpoint_interval", "42601"),
        ("ALTER SYSTEM RESET ALL", "0A000"),
        ("SET checkpoint_interval = '1s'", "55P02"),
    ] {
        assert_eq!(state_of(&mut s, statement).await, state, "{statement}");
    }
    ok(&mut s, "BEGIN").await;
    assert_eq!(state_of(&mut s, "ALTER SYSTEM SET checkpoint_interval = '1s'").await, "25001");
    ok(&mut s, "ROLLBACK").await;
    ok(&mut s, "ALTER SYSTEM SET checkpoint_interval TO '250ms'").await;
    let mut waited = 0;
    while rows(&mut s, "SHOW CHECKPOINTS").await.is_empty() {
        waited += 1;
        assert!(waited < 1000, "no checkpoint without being asked");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let shown =
        "SELECT setting, current_setting('checkpoint_interval') FROM pg_settings WHERE name = 'checkpoint_interval'";
    assert_eq!(rows(&mut s, shown).await[0][1], "250ms");
    ok(&mut s, "ALTER SYSTEM SET checkpoint_interval = '2 min'").await;
    drop(s);
    instance.close().await;
    let instance = open(&data, 2);
    let mut s = instance.session();
    assert_eq!(rows(&mut s, "SHOW checkpoint_interval").await, [["2min"]]);
    ok(&mut s, "ALTER SYSTEM RESET checkpoint_interval").await;
    assert_eq!(rows(&mut s, "SHOW checkpoint_interval").await, [["0"]]);
    drop(s);
    instance.close().await;

    let instance = Instance::open(&folder.path().join("other"), 2, 64);
    let mut s = instance.session();
    assert_eq!(state_of(&mut s, "ALTER SYSTEM SET checkpoint_interval = '1s'").await, "55000");
    drop(s);
    instance.close().await;
}

/// A log that holds much that was overwritten is written anew at a start, also when views have not seen its end yet, which then
/// stays told apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_rewritten_with_what_came_after_the_checkpoint() {
    let folder = scratch();
    let instance = open(folder.path(), 2);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v int, x text)").await;
    ok(&mut s, "CREATE TABLE other (k int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m AS SELECT k % 7 AS g, sum(v) AS s, count(*) AS n FROM t GROUP BY k % 7")
        .await;
    ok(&mut s, "INSERT INTO t SELECT n, n, repeat('long', 100) FROM generate_series(1, 2000) AS g (n)").await;
    for _ in 0..16 {
        ok(&mut s, "UPDATE t SET v = v + 1").await;
    }
    ok(&mut s, "CHECKPOINT").await;
    ok(&mut s, "UPDATE t SET v = v * 2 WHERE k < 100").await;
    ok(&mut s, "DELETE FROM t WHERE k % 10 = 3").await;
    ok(&mut s, "INSERT INTO other VALUES (1)").await;
    assert!(instance.engine.log.len() > 16 << 20, "{} bytes", instance.engine.log.len());
    let sums = "SELECT k % 7 AS g, sum(v) AS s, count(*) AS n FROM t GROUP BY k % 7 ORDER BY g";
    let mut expected = rows(&mut s, sums).await;
    drop(s);
    instance.close().await;
    for round in 0..3 {
        let instance = open(folder.path(), 1 + round);
        assert!(instance.engine.log.len() < 8 << 20, "{} bytes in round {round}", instance.engine.log.len());
        let mut s = instance.session();
        assert_eq!(rows(&mut s, "SELECT g, s, n FROM m ORDER BY g").await, expected, "round {round}");
        assert_eq!(rows(&mut s, sums).await, expected, "round {round}");
        assert_eq!(rows(&mut s, "SELECT * FROM other").await, [["1"]]);
        assert!(went_on(&instance, "m"), "made anew in round {round}");
        // No checkpoint holds this either.
        ok(&mut s, "UPDATE t SET v = 0 WHERE k = 5").await;
        expected = rows(&mut s, sums).await;
        drop(s);
        instance.close().await;
    }
}

/// A job that begins anew does not let a source be read before the jobs that go on are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn jobs_that_go_on_see_what_a_source_gives_to_one_that_begins_anew() {
    let folder = scratch();
    let (data, input) = (folder.path().join("data"), folder.path().join("in.json"));
    let append = |numbers: std::ops::Range<i64>| {
        let lines: String = numbers.map(|n| format!("{{\"n\":{n}}}\n")).collect();
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&input).unwrap();
        std::io::Write::write_all(&mut file, lines.as_bytes()).unwrap();
    };
    append(0..500);
    let instance = open(&data, 2);
    let mut s = instance.session();
    let source = format!(
        "CREATE SOURCE f (n int) WITH (connector = 'file', path = '{}', format = 'json', follow = 'true', poll_interval = '1ms')",
        input.display()
    );
    ok(&mut s, &source).await;
    // It has no state in checkpoints, and comes first.
    let plain = folder.path().join("plain.json");
    ok(
        &mut s,
        &format!("CREATE SINK plain FROM f WITH (connector = 'file', path = '{}', format = 'json')", plain.display()),
    )
    .await;
    let views: Vec<String> = (0..12).map(|n| format!("v{n}")).collect();
    for view in &views {
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW {view} AS SELECT count(*) AS c, sum(n) AS s FROM f")).await;
    }
    let mut instance = Some(instance);
    for round in 1..=5i64 {
        let expected = [[(500 * round).to_string(), (0..500 * round).sum::<i64>().to_string()]];
        for view in &views {
            let mut found = Vec::new();
            for _ in 0..300 {
                found = rows(&mut s, &format!("SELECT c, s FROM {view}")).await;
                if found == expected {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            assert_eq!(found, expected, "{view} in round {round}");
        }
        ok(&mut s, "CHECKPOINT").await;
        append(500 * round..500 * (round + 1));
        drop(s);
        instance.take().unwrap().close().await;
        let next = open(&data, 2);
        s = next.session();
        instance = Some(next);
    }
    drop(s);
    instance.take().unwrap().close().await;
}

/// A sink that may deliver again goes on where the checkpoint was, and does not begin anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_delivers_at_least_once_repeats_what_came_after_the_checkpoint_alone() {
    async fn delivered(s: &mut Session, expected: u64) {
        for _ in 0..500 {
            let found = rows(s, "SHOW SINKS").await;
            if found.iter().find(|row| row[1] == "b").unwrap()[4] == expected.to_string() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{:?} instead of {expected} rows", rows(s, "SHOW SINKS").await);
    }
    let folder = scratch();
    let data = folder.path().join("data");
    let instance = open(&data, 2);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY)").await;
    ok(&mut s, "CREATE SINK b FROM t WITH (connector = 'blackhole')").await;
    ok(&mut s, "INSERT INTO t SELECT n FROM generate_series(1, 100) AS g (n)").await;
    ok(&mut s, "DELETE FROM t WHERE k > 10").await;
    delivered(&mut s, 190).await;
    ok(&mut s, "CHECKPOINT").await;
    ok(&mut s, "INSERT INTO t VALUES (101), (102)").await;
    delivered(&mut s, 192).await;
    drop(s);
    instance.close().await;
    // Anew, it would be given 12 rows.
    let instance = open(&data, 3);
    let mut s = instance.session();
    delivered(&mut s, 192).await;
    ok(&mut s, "INSERT INTO t VALUES (103)").await;
    delivered(&mut s, 193).await;
    ok(&mut s, "ALTER SINK b SET PARALLELISM 1").await;
    ok(&mut s, "DELETE FROM t").await;
    delivered(&mut s, 206).await;
    drop(s);
    instance.close().await;
}
