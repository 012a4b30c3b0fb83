//! Queries over views whose rows workers have: whatever of a query is done there, the answers are those of one process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coord::session::{Outcome, Session};
use futures::{StreamExt, TryStreamExt};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::engine::{Cluster, ok, rows, shown, start};

const ROWS: usize = 6000;
/// Generated queries; `MILLSTREAM_QUERIES` chooses another number, `MILLSTREAM_SEED` other queries.
const QUERIES: u64 = 120;
const WAIT: Duration = Duration::from_millis(20);

/// The view that is the table, one of groups, and one without rows; and what they are, over the table.
const VIEWS: [(&str, &str); 3] = [
    ("m", "t"),
    ("w", "(SELECT i, count(*) AS c, max(k) AS mk FROM t GROUP BY i)"),
    ("e", "(SELECT * FROM t WHERE k < 0)"),
];

const CONDITIONS: [&str; 34] = [
    "i > 50",
    "i IS NULL",
    "i BETWEEN 10 AND 20",
    "NOT (i < 30 OR i > 60)",
    "b % 2 = 0",
    "n < 100.25",
    "n IS NOT NULL",
    "n * 2 = 51.5",
    "f >= 10.5",
    "s = 'name 3'",
    "s <> 'name 4'",
    "s LIKE 'name 1%'",
    "s ILIKE '%NAME 1_'",
    "s NOT LIKE '%2'",
    "s IN ('name 1', 'name 2', 'name 3', 'name 4', 'name 5', 'name 6', 'name 7', 'name 8', 'name 9')",
    "i IN (1, 2, 3)",
    "i NOT IN (5, 6)",
    "d = DATE '2026-01-05'",
    "d > '2026-01-20'",
    "ts < TIMESTAMP '2026-01-01 12:00:00'",
    "tz >= TIMESTAMPTZ '2026-01-01 06:00:00+02'",
    "tz < now()",
    "flag",
    "flag IS NOT TRUE",
    "length(s) > 6",
    "upper(s) < 'NAME 2'",
    "coalesce(i, 0) = 0",
    "CASE WHEN i > 50 THEN flag ELSE s IS NULL END",
    "i IS DISTINCT FROM 7",
    "s ~ '^name [0-4]'",
    "extract(hour FROM ts) > 12",
    "abs(i - 50) < 10",
    "i <> 0 AND 100 / i > 3",
    "k > (SELECT avg(mk) FROM {w} AS x)",
];

const KEYS: [&str; 13] = [
    "i",
    "s",
    "n",
    "d",
    "ts",
    "date_trunc('hour', ts)",
    "flag",
    "i % 7",
    "substr(s, 1, 6)",
    "f",
    "tz::date",
    "i, s",
    "k",
];

const AGGREGATES: [&str; 28] = [
    "count(*)",
    "count(i)",
    "count(DISTINCT i)",
    "sum(i)",
    "sum(b)",
    "sum(n)",
    "sum(f)",
    "sum(DISTINCT i)",
    "avg(i)",
    "avg(n)",
    "avg(f)",
    "min(s)",
    "max(s)",
    "min(d)",
    "max(ts)",
    "min(tz)",
    "min(f)",
    "max(f)",
    "max(n)",
    "max(length(s))",
    "bool_and(flag)",
    "bool_or(flag)",
    "count(*) FILTER (WHERE i > 50)",
    "sum(i) FILTER (WHERE flag)",
    "count(*) + sum(i)",
    "round(stddev(i)::numeric, 6)",
    "bit_or(i)",
    "array_length(array_agg(i), 1)",
];

const ROWS_WANTED: [&str; 7] =
    ["k, s", "*", "length(s), i * 2", "k, s || ' ' || n::text", "DISTINCT s, flag", "k, tz, ts, d", "i, f, b, n"];

/// With a tie-breaker: which rows come is not left open.
const ORDERS: [&str; 5] = [
    " ORDER BY k LIMIT 7 OFFSET 2",
    " ORDER BY i NULLS FIRST, k LIMIT 5",
    " ORDER BY s DESC, k DESC LIMIT 11",
    " ORDER BY n DESC NULLS LAST, k LIMIT 3",
    " ORDER BY length(s), tz, k LIMIT 9",
];

const FIXED: [&str; 22] = [
    "SELECT count(*) FROM {m}",
    "SELECT count(*), sum(k) FROM {e} AS x",
    "SELECT s, count(*) FROM {e} AS x GROUP BY s",
    "SELECT k FROM {e} AS x ORDER BY s LIMIT 3",
    "SELECT max(k) FROM {m} WHERE k < 0",
    "SELECT i, count(*) FROM {m} WHERE i = 7 GROUP BY i",
    "SELECT a.s, count(*), sum(w.c) FROM {m} AS a JOIN {w} AS w ON a.i = w.i WHERE a.k % 3 = 0 AND w.c > 2 GROUP BY a.s",
    "SELECT a.k, b.k FROM {m} AS a JOIN {m} AS b ON a.k = b.k + 1 WHERE a.i = 50 AND b.s IS NOT NULL",
    "SELECT a.k, w.c FROM {m} AS a LEFT JOIN {w} AS w ON a.i = w.i AND w.c > 60 WHERE a.d = DATE '2026-01-03'",
    "SELECT count(*) FROM {m} WHERE i IN (SELECT i FROM {w} AS x WHERE c > 55)",
    "SELECT count(*) FROM {m} AS a WHERE NOT EXISTS (SELECT 1 FROM {w} AS w WHERE w.i = a.i)",
    "SELECT s, n FROM (SELECT s, count(*) AS n FROM {m} GROUP BY s) AS q WHERE n > 300",
    "SELECT avg(n) FROM (SELECT s, d, count(*) AS n FROM {m} GROUP BY s, d) AS q",
    "SELECT i, count(*) FROM {m} GROUP BY i HAVING sum(k) > 100000 AND min(s) LIKE 'name 1%'",
    "SELECT s, i, count(*), grouping(s) FROM {m} GROUP BY GROUPING SETS ((s), (i), ())",
    "SELECT s, flag, sum(i) FROM {m} GROUP BY ROLLUP (s, flag)",
    "SELECT s FROM {m} WHERE flag UNION SELECT s FROM {m} WHERE i > 50",
    "SELECT k, row_number() OVER (PARTITION BY s ORDER BY k) FROM {m} WHERE i < 10",
    "SELECT count(*) FROM (SELECT * FROM {m} LIMIT 100) AS q",
    "SELECT string_agg(s, ',' ORDER BY k) FROM {m} WHERE k < 50",
    "SELECT DISTINCT ON (s) s, k FROM {m} ORDER BY s, k",
    "SELECT count(*) FROM {m} WHERE s = current_user OR s = current_setting('search_path') OR i = 3",
];

fn over(sql: &str, views: bool) -> String {
    VIEWS.iter().fold(sql.to_string(), |sql, (view, query)| {
        sql.replace(&format!("{{{view}}}"), if views { view } else { query })
    })
}

fn generated(rng: &mut SmallRng) -> String {
    let one = |rng: &mut SmallRng, from: &[&'static str]| *from.choose(rng).unwrap();
    let mut conditions = String::new();
    for n in 0..rng.random_range(0..4) {
        let joined = if n == 0 { " WHERE " } else { one(rng, &[" AND ", " AND ", " OR "]) };
        conditions = format!("{conditions}{joined}{}", one(rng, &CONDITIONS));
    }
    if rng.random_bool(0.3) {
        let (wanted, mut order) = (one(rng, &ROWS_WANTED), "");
        if !wanted.starts_with("DISTINCT") && rng.random_bool(0.6) {
            order = one(rng, &ORDERS);
        }
        return format!("SELECT {wanted} FROM {{m}}{conditions}{order}");
    }
    let aggregates: Vec<&str> = (0..rng.random_range(1..4)).map(|_| one(rng, &AGGREGATES)).collect();
    let aggregates = aggregates.join(", ");
    if rng.random_bool(0.2) {
        return format!("SELECT {aggregates} FROM {{m}}{conditions}");
    }
    let key = one(rng, &KEYS);
    let having = if rng.random_bool(0.2) { " HAVING count(*) > 3" } else { "" };
    format!("SELECT {key}, {aggregates} FROM {{m}}{conditions} GROUP BY {key}{having}")
}

/// The rows in some order, or the error in full.
async fn answer(session: &mut Session, sql: &str) -> Result<Vec<String>, String> {
    let told = |e: flow::Error| format!("{} {e} {:?} {:?}", e.state().code(), e.detail(), e.hint());
    let Outcome::Rows { rows, .. } = start(session, sql).await.map_err(told)? else { panic!("{sql} gives no rows") };
    let batches: Vec<_> = rows.try_collect().await.map_err(told)?;
    let mut all: Vec<String> = batches.iter().flat_map(shown).collect();
    all.sort();
    Ok(all)
}

/// What EXPLAIN says of the workers, in order.
async fn explained(session: &mut Session, sql: &str) -> Vec<String> {
    let Outcome::Rows { rows, .. } = start(session, sql).await.unwrap_or_else(|e| panic!("{sql}: {e}")) else {
        panic!("{sql} gives no rows")
    };
    let batches: Vec<_> = rows.try_collect().await.unwrap();
    batches.iter().flat_map(shown).skip_while(|line| !line.starts_with("On ")).collect()
}

/// Until the coordinator knows that a view has more than a few rows.
async fn wait_until_many(session: &mut Session, view: &str) {
    for _ in 0..500 {
        if !explained(session, &format!("EXPLAIN SELECT count(*) FROM {view}")).await.join("").contains("few") {
            return;
        }
        tokio::time::sleep(WAIT).await;
    }
    panic!("{view} has few rows");
}

/// The answer with the work on workers, equal to the one without, and to the one over the table, which the coordinator has;
/// all at one epoch.
async fn same_everywhere(session: &mut Session, sql: &str) -> Result<Vec<String>, String> {
    let (views, table) = (over(sql, true), over(sql, false));
    ok(session, "BEGIN").await;
    let there = answer(session, &views).await;
    if there.is_err() {
        ok(session, "ROLLBACK; BEGIN").await;
    }
    ok(session, "SET select_on_workers = off").await;
    let here = answer(session, &views).await;
    ok(session, "ROLLBACK; SET select_on_workers = on").await;
    assert_eq!(there, here, "{sql}");
    // An error has ended the transaction, and with it the epoch.
    if there.is_ok() {
        ok(session, "BEGIN").await;
        let again = answer(session, &views).await;
        let alone = answer(session, &table).await;
        ok(session, "ROLLBACK").await;
        assert_eq!(again, alone, "{sql}");
    } else {
        assert_eq!(there, answer(session, &table).await, "{sql}");
    }
    there
}

async fn fill(session: &mut Session, rows: usize) {
    ok(
        session,
        "CREATE TABLE t (k int PRIMARY KEY, i int, b bigint, n numeric(12, 2), f double precision, s text, d date,
             ts timestamp, tz timestamptz, flag boolean);
         CREATE MATERIALIZED VIEW m AS SELECT * FROM t;
         CREATE MATERIALIZED VIEW w AS SELECT i, count(*) AS c, max(k) AS mk FROM t GROUP BY i;
         CREATE MATERIALIZED VIEW e AS SELECT * FROM t WHERE k < 0",
    )
    .await;
    let two = |e: &str| format!("lpad(({e})::text, 2, '0')");
    let clock = format!("{} || ':' || {} || ':00'", two("g.n % 24"), two("g.n % 60"));
    ok(
        session,
        &format!(
            "INSERT INTO t SELECT g.n::int,
                 CASE WHEN g.n % 11 <> 0 THEN (g.n * 7919 % 100)::int END,
                 g.n * 1000003,
                 CASE WHEN g.n % 10 <> 3 THEN ((g.n % 977) / 4.0)::numeric(12, 2) END,
                 CASE WHEN g.n % 9 <> 2 THEN (g.n % 64)::double precision / 2 END,
                 CASE WHEN g.n % 13 <> 0 THEN 'name ' || g.n % 17 END,
                 ('2026-01-' || {})::date,
                 ('2026-01-01 ' || {clock})::timestamp,
                 ('2026-01-01 ' || {clock} || '+00')::timestamptz,
                 CASE g.n % 3 WHEN 0 THEN true WHEN 1 THEN false END
             FROM generate_series(1, {rows}) AS g (n)",
            two("1 + g.n % 28")
        ),
    )
    .await;
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_one_process_while_rows_change() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path(), &[2, 1, 1]);
    let mut s = cluster.session();
    fill(&mut s, ROWS).await;
    wait_until_many(&mut s, "m").await;
    let stop = Arc::new(AtomicBool::new(false));
    let changing = {
        let (mut writer, stop) = (cluster.session(), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let sql = format!(
                    "UPDATE t SET i = (i + 1) % 100, flag = NOT flag WHERE k % 50 = {};
                     DELETE FROM t WHERE k = {}; INSERT INTO t (k, s, i) VALUES ({}, 'new {}', {})",
                    round % 50,
                    1 + round % ROWS,
                    100_000 + round,
                    round % 5,
                    round % 20
                );
                ok(&mut writer, &sql).await;
                tokio::time::sleep(WAIT).await;
            }
            round
        })
    };
    let seed = number("MILLSTREAM_SEED", 20_261_128);
    eprintln!("MILLSTREAM_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let queries: Vec<String> = FIXED.iter().map(|sql| sql.to_string()).collect();
    let generated = (0..number("MILLSTREAM_QUERIES", QUERIES)).map(|_| generated(&mut rng));
    let (mut asked, mut answered, mut placed) = (0, 0, 0);
    for sql in queries.into_iter().chain(generated) {
        asked += 1;
        match same_everywhere(&mut s, &sql).await {
            Ok(_) => answered += 1,
            Err(error) => eprintln!("{sql}: {error}"),
        }
        if let Ok(Outcome::Rows { rows, .. }) = start(&mut s, &format!("EXPLAIN {}", over(&sql, true))).await {
            let text = rows.try_collect::<Vec<_>>().await.unwrap();
            let lines: Vec<String> = text.iter().flat_map(shown).collect();
            placed += usize::from(
                lines.iter().any(|l| ["  m: filter", "  m: aggregate", "  m: first"].iter().any(|w| l.starts_with(w))),
            );
        }
    }
    stop.store(true, Ordering::Relaxed);
    let rounds = changing.await.unwrap();
    eprintln!("{asked} queries, {answered} answered, {placed} with work on the workers; {rounds} rounds of changes");
    assert!(answered * 10 > asked * 9 && placed * 4 > asked * 3, "{asked}, {answered}, {placed}");
    assert!(rounds > 10);
    // What depends on the session.
    for zone in ["Asia/Tokyo", "America/New_York"] {
        ok(&mut s, &format!("SET TimeZone = '{zone}'")).await;
        for sql in [
            "SELECT tz::date, count(*) FROM {m} GROUP BY tz::date",
            "SELECT count(*) FROM {m} WHERE tz = '2026-01-01 05:05:00'",
            "SELECT tz::text, count(*) FROM {m} WHERE extract(hour FROM tz) = 3 GROUP BY tz::text",
        ] {
            same_everywhere(&mut s, sql).await.unwrap();
        }
    }
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_what_workers_do_and_what_it_has_cost() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path(), &[2, 1, 1]);
    let mut s = cluster.session();
    fill(&mut s, ROWS).await;
    for view in ["m", "w"] {
        // Also until the few of `w` are known.
        for _ in 0..500 {
            let said = explained(&mut s, &format!("EXPLAIN SELECT count(*) FROM {view}")).await.join("");
            if said.contains("few") == (view == "w") {
                break;
            }
            tokio::time::sleep(WAIT).await;
        }
    }
    let on = "On 3 workers, for each of 4 shards:";
    for (sql, lines) in [
        (
            "SELECT s, count(*), sum(i) FROM m WHERE b > 10 GROUP BY s",
            vec!["  m: filter b > 10, then aggregate by s: count(*), sum(i)"],
        ),
        ("SELECT k FROM m WHERE i = 3 AND random() < 0.5 AND d > '2026-01-20'", vec!["  m: filter i = 3"]),
        ("SELECT count(DISTINCT s) FROM m WHERE flag", vec!["  m: filter flag"]),
        ("SELECT k, s FROM m ORDER BY s DESC, k LIMIT 5", vec!["  m: first 5 by s DESC, k"]),
        ("SELECT k FROM m LIMIT 5", vec!["  m: limit 5"]),
        ("SELECT * FROM m", vec!["  m: all rows"]),
        ("SELECT i, sum(c) FROM w WHERE c > 3 GROUP BY i", vec!["  w: all rows, they are few"]),
        (
            "SELECT m.s, w.c FROM m JOIN w ON m.i = w.i WHERE m.k < 9",
            vec!["  m: filter k < 9", "  w: all rows, they are few"],
        ),
    ] {
        let mut said = explained(&mut s, &format!("EXPLAIN {sql}")).await;
        said[1..].sort();
        assert_eq!(said, [vec![on], lines].concat(), "{sql}");
    }
    // Tables are the coordinator's.
    assert!(explained(&mut s, "EXPLAIN SELECT count(*) FROM t").await.is_empty());
    let measured = "EXPLAIN ANALYZE SELECT i, count(*) FROM m WHERE i < 10 GROUP BY i";
    let said = explained(&mut s, measured).await;
    assert_eq!(said[..1], [on]);
    let begun = format!("  m: filter i < 10, then aggregate by i: count(*) (rows read: {ROWS}, sent: ");
    assert!(said[1].starts_with(&begun) && said[1].ends_with(" bytes)"), "{said:?}");
    assert!(said[2] == "Rows: 10" && said[3].starts_with("Time: ") && said.len() == 4, "{said:?}");
    let sent = |line: &str| line.split("sent: ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
    assert!((10..=40).contains(&sent(&said[1]).unwrap()), "{said:?}");
    ok(&mut s, "SET select_on_workers = off").await;
    let said = explained(&mut s, measured).await;
    assert!(
        said[1].starts_with(&format!("  m: all rows, select_on_workers is off (rows read: {ROWS}, sent: {ROWS} in ")),
        "{said:?}"
    );
    assert_eq!(said[2], "Rows: 10");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_work_are_those_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path(), &[1, 1]);
    let mut s = cluster.session();
    fill(&mut s, ROWS).await;
    wait_until_many(&mut s, "m").await;
    for (sql, state) in [
        ("SELECT sum(100 / (i - 5)) FROM {m}", "22012"),
        ("SELECT s, count(*) FROM {m} WHERE 1 / (k - 17) = 0 GROUP BY s", "22012"),
        ("SELECT sum(s::int) FROM {m} WHERE k = 20", "22P02"),
        ("SELECT k FROM {m} WHERE k = 21 AND s::date > '2026-01-01'", "22007"),
        ("SELECT max((b * 9223372036854)::int) FROM {m}", "22003"),
        ("SELECT count(*) FROM {m} WHERE k = 20 AND s ~ ('[' || s)", "22"),
        ("SELECT count(*) FROM {m} WHERE sqrt(f - 100) > 0", "2201F"),
    ] {
        let error = same_everywhere(&mut s, sql).await.unwrap_err();
        assert!(error.starts_with(state), "{sql}: {error}");
    }
    // What the left side has decided is not computed.
    same_everywhere(&mut s, "SELECT count(*) FROM {m} WHERE k <> 17 AND 1 / (k - 17) = 0").await.unwrap();
    // The reads after an error are as before.
    assert_eq!(rows(&mut s, "SELECT count(*) FROM m").await, [ROWS.to_string()]);
    cluster.close().await;
}

/// More than may be on its way at once.
const LARGE: &str = "SELECT k, repeat(s, 100), ts FROM m WHERE b > 0";

/// What takes its time, and memory.
fn heavy() -> String {
    let sums = ["n", "a", "m", "e", " "].iter().flat_map(|from| ["1", "23"].map(|to| (from, to)));
    let sums = sums.map(|(from, to)| format!("sum(length(replace(repeat(s, 400), '{from}', '{to}')))"));
    format!("SELECT k, {} FROM m GROUP BY k", sums.collect::<Vec<_>>().join(", "))
}

/// Runs it to its end beside the test.
fn spawn(mut session: Session, sql: String) -> tokio::task::JoinHandle<Result<usize, flow::Error>> {
    tokio::spawn(async move {
        let Outcome::Rows { rows, .. } = start(&mut session, &sql).await? else { panic!("{sql} gives no rows") };
        Ok(rows.try_collect::<Vec<_>>().await?.iter().map(|batch| batch.num_rows()).sum())
    })
}

fn held(cluster: &Cluster) -> usize {
    cluster.workers.iter().map(|worker| worker.node.held_by_reads()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn work_ends_with_its_reader_and_gives_its_memory_back() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path(), &[1, 1]);
    let mut s = cluster.session();
    fill(&mut s, 80_000).await;
    wait_until_many(&mut s, "m").await;
    let begun = tokio::time::Instant::now();
    assert_eq!(spawn(cluster.session(), heavy()).await.unwrap().unwrap(), 80_000);
    let alone = begun.elapsed();
    assert_eq!(held(&cluster), 0);
    for _ in 0..2 {
        let query = spawn(cluster.session(), heavy());
        while held(&cluster) == 0 {
            assert!(!query.is_finished(), "it has held nothing");
            tokio::time::sleep(WAIT).await;
        }
        // Others are answered meanwhile.
        assert_eq!(rows(&mut s, "SELECT count(*) FROM m WHERE k > 0").await, ["80000"]);
        query.abort();
        let begun = tokio::time::Instant::now();
        while held(&cluster) > 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "it works on, {} bytes are held", held(&cluster));
            tokio::time::sleep(WAIT).await;
        }
        // It has not been done to its end: that takes longer.
        eprintln!("to the end in {alone:?}, ended in {:?}", begun.elapsed());
        assert!(begun.elapsed() < alone / 2, "{alone:?}, {:?}", begun.elapsed());
        assert!(query.await.unwrap_err().is_cancelled());
    }
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_lost_under_a_query_ends_it_with_57p03() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(folder.path(), &[1, 1]);
    let mut s = cluster.session();
    fill(&mut s, 80_000).await;
    wait_until_many(&mut s, "m").await;
    // One whose rows are on their way, and one that is being worked on.
    let Outcome::Rows { rows: mut slow, .. } = start(&mut s, LARGE).await.unwrap() else { panic!() };
    assert!(slow.next().await.unwrap().unwrap().num_rows() > 0);
    let query = spawn(cluster.session(), heavy());
    while held(&cluster) == 0 {
        assert!(!query.is_finished(), "it has held nothing");
        tokio::time::sleep(WAIT).await;
    }
    let session = cluster.slots.session().unwrap();
    cluster.workers.pop().unwrap().close().unwrap();
    for error in [slow.try_collect::<Vec<_>>().await.unwrap_err(), query.await.unwrap().unwrap_err()] {
        assert_eq!((error.state().code(), error.hint().is_some()), ("57P03", true), "{error}");
    }
    let lost = tokio::task::spawn_blocking(move || session.wait_lost(Duration::from_secs(30))).await.unwrap();
    assert_eq!(lost.map(|lost| lost.state().code()), Some("57P03"));
    let error = answer(&mut s, "SELECT s, count(*) FROM m GROUP BY s").await.unwrap_err();
    assert!(error.starts_with("57P03") && error.contains("SHOW WORKERS"), "{error}");
    cluster.close().await;
}

/// `MILLSTREAM_ROWS` rows on three workers, by default as many as a test may take; run by hand for the figures.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn what_a_grouped_read_of_many_rows_costs() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path(), &[1, 1, 1]);
    let mut s = cluster.session();
    let count = number("MILLSTREAM_ROWS", 1_000_000);
    ok(&mut s, "CREATE TABLE t (id int PRIMARY KEY, k int, v bigint, note text)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m AS SELECT * FROM t").await;
    let mut from = 1;
    while from <= count {
        let to = count.min(from + 99_999);
        let sql = format!(
            "INSERT INTO t SELECT n::int, (n % 1000)::int, n * 3, 'note number ' || n FROM generate_series({from}, {to}) AS g (n)"
        );
        ok(&mut s, &sql).await;
        from = to + 1;
    }
    assert_eq!(rows(&mut s, "SELECT count(*) FROM m").await, [count.to_string()]);
    let queries = [
        "SELECT k, count(*), sum(v) FROM m WHERE v % 7 <> 0 GROUP BY k",
        "SELECT count(*) FROM m",
        "SELECT id, note FROM m WHERE k = 77",
        "SELECT id, note FROM m ORDER BY v DESC LIMIT 10",
    ];
    for sql in queries {
        for on in ["on", "off"] {
            ok(&mut s, &format!("SET select_on_workers = {on}")).await;
            for _ in 0..3 {
                let said = explained(&mut s, &format!("EXPLAIN ANALYZE {sql}")).await;
                eprintln!("{sql} [{on}]:{}; {}", said[1], said[2..].join("; "));
            }
        }
    }
    cluster.close().await;
}
