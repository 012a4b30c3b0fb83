//! The queries of `sql-tests/nexmark` as standing views against the same queries as batch, over the same events.
//!
//! `MILLSTREAM_EVENTS` sets the number of events (default 40,000).

use std::path::Path;

use crate::harness::{Instance, ok, rows, run, scratch, state_of};

fn events() -> u64 {
    std::env::var("MILLSTREAM_EVENTS").ok().and_then(|e| e.parse().ok()).unwrap_or(40_000)
}

/// Queries over windows, which also stand with EMIT ON WINDOW CLOSE.
const CLOSING: [&str; 4] = ["q11", "q5", "q7", "q8"];

/// What is left of q12 without its windows, which lie in processing time.
const WITHOUT_WINDOWS: &str = "SELECT bidder, sum(bid_count)::bigint AS n FROM ({}) q GROUP BY bidder";

/// Names and texts of the queries.
fn queries() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sql-tests/nexmark");
    let mut queries = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        // Bids that tie may come in any order as batch; here every order is a whole one.
        let text = std::fs::read_to_string(path).unwrap();
        let text = text.replace("ORDER BY price DESC)", "ORDER BY price DESC, bidder, date_time, extra)");
        let text = text.replace("ORDER BY date_time DESC)", "ORDER BY date_time DESC, price, extra)");
        let text = text
            .replace("ORDER BY b.price DESC, b.date_time)", "ORDER BY b.price DESC, b.date_time, b.bidder, b.extra)");
        queries.push((name, text));
    }
    queries.sort();
    assert!(queries.len() >= 16);
    queries
}

/// Sources of so many events with these options, and the table that q13 looks into.
async fn declare(session: &mut coord::Session, delay: &str, options: &str) {
    let events = events();
    for table in ["person", "auction", "bid"] {
        ok(session, &format!("CREATE SOURCE {table} (WATERMARK FOR date_time AS date_time - INTERVAL '{delay}') WITH (connector = 'nexmark', table = '{table}', events = {events}, {options})")).await;
    }
    ok(session, "CREATE TABLE side_input (key bigint PRIMARY KEY, value text NOT NULL)").await;
    ok(session, "INSERT INTO side_input SELECT n, 'value ' || n FROM generate_series(0, 9999) AS s(n)").await;
}

/// Runs all queries; gives the number of late rows.
async fn views_equal_batch(slots: usize, delay: &str, options: &str) -> u64 {
    let folder = scratch();
    let instance = Instance::open(folder.path(), slots, 8192);
    let mut s = instance.session();
    declare(&mut s, delay, options).await;
    let queries = queries();
    // Half of the views see the events come; the others find them there.
    instance.engine.sources.pause(true);
    for (name, query) in queries.iter().step_by(2) {
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW {name} AS {query}")).await;
    }
    for name in CLOSING {
        let (_, query) = queries.iter().find(|(n, _)| n == name).unwrap();
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW {name}_closed AS {query} EMIT ON WINDOW CLOSE")).await;
    }
    instance.engine.sources.pause(false);
    instance.engine.wait_bounded().await.unwrap();
    for (name, query) in queries.iter().skip(1).step_by(2) {
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW {name} AS {query}")).await;
    }
    for (name, query) in &queries {
        let (all, query) = (format!("SELECT * FROM {name}"), query.clone());
        let [all, query] = match name.as_str() {
            "q12" => [all, query].map(|q| WITHOUT_WINDOWS.replace("{}", &q)),
            _ => [all, query],
        };
        let mut standing = rows(&mut s, &all).await;
        let mut batch = rows(&mut s, &query).await;
        standing.sort_unstable();
        batch.sort_unstable();
        if CLOSING.contains(&name.as_str()) {
            let mut closed = rows(&mut s, &format!("SELECT * FROM {name}_closed")).await;
            closed.sort_unstable();
            assert!(closed == batch, "{name}: {} rows closed and {} as batch", closed.len(), batch.len());
        }
        assert!(!batch.is_empty() || events() < 10_000, "{name} has no rows");
        let differ = standing.iter().zip(&batch).find(|(a, b)| a != b);
        assert!(
            standing.len() == batch.len() && differ.is_none(),
            "{name} with {options} on {slots} slots: {} rows and {} as batch; first difference {differ:?}",
            standing.len(),
            batch.len(),
        );
    }
    let late = rows(&mut s, "SHOW WATERMARKS").await.iter().map(|r| r[3].parse::<u64>().unwrap()).sum();
    instance.close().await;
    late
}

#[tokio::test(flavor = "multi_thread")]
async fn standing_queries_equal_batch_at_ten_thousand_events_a_second() {
    for slots in [1, 2, 4] {
        let options = format!("event_rate = 10000, splits = {slots}");
        assert_eq!(views_equal_batch(slots, "1 second", &options).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn standing_queries_equal_batch_at_ten_million_events_a_second() {
    for slots in [1, 2, 4] {
        let options = format!("event_rate = 10000000, splits = {slots}");
        assert_eq!(views_equal_batch(slots, "1 second", &options).await, 0);
    }
}

/// Watermarks that move through the run and rows that miss them: what operators forget must not have been needed.
#[tokio::test(flavor = "multi_thread")]
async fn standing_queries_equal_batch_over_rows_out_of_order() {
    // An epoch holds more rows at a higher rate, and within one nothing is late.
    let (rate, disorder) = (events() / 2, events() / 40);
    let options = format!("event_rate = 1000, rate = {rate}, disorder = {disorder}");
    let late = views_equal_batch(2, "100 ms", &options).await;
    assert!(late > events() / 50, "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_source_is_read_only_as_of_a_moment() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE SOURCE bid WITH (connector = 'nexmark', table = 'bid', rate = 20000)").await;
    assert_eq!(state_of(&mut s, "SELECT count(*) FROM bid").await, "0A000");
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM bid").await;
    for _ in 0..20 {
        let read = rows(&mut s, "SELECT (SELECT n FROM n) - (SELECT count(*) FROM bid)").await;
        assert_eq!(read, [["0"]]);
    }
    instance.close().await;
}

async fn count(session: &mut coord::Session) -> f64 {
    rows(session, "SELECT n FROM n").await[0][0].parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_kept_and_time_without_readers_does_not_count() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE SOURCE d (id bigint) WITH (connector = 'datagen', rate = 1000, fields.id.kind = 'sequence')")
        .await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n, max(id) AS last FROM d").await;
    let time = coord::Time::system();
    let began = time.now_us();
    // Rows may come late, but never too early.
    let due = |since: i64, until: i64| (until - since) as f64 / 1e3 + 50.0;
    let mut first = 0.0;
    for _ in 0..1_000 {
        first = count(&mut s).await;
        assert!(first <= due(began, time.now_us()), "{first}");
        if first >= 500.0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(first >= 500.0, "{first}");
    ok(&mut s, "DROP MATERIALIZED VIEW n").await;
    let dropped = time.now_us();
    tokio::time::sleep(std::time::Duration::from_millis(2_000)).await;
    let resumed = time.now_us();
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n, max(id) AS last FROM d").await;
    let second = count(&mut s).await;
    let most = due(began, dropped) + due(resumed, time.now_us());
    assert!(second >= first && second <= most, "{first} then {second} of at most {most}");
    assert_eq!(rows(&mut s, "SELECT last + 1 - n FROM n").await, [["0"]]);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_of_generators_come_back_as_they_were_written() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 1, 8192);
    let mut s = instance.session();
    let columns = "(id bigint, \"Mixed\" text)";
    let options = "connector = 'datagen', rows = 10, fields.id.kind = 'sequence', fields.mixed.values = 'it''s, b'";
    ok(&mut s, &format!("CREATE SOURCE d {columns} WITH ({options})")).await;
    let shown = rows(&mut s, "SHOW CREATE SOURCE d").await.concat().concat();
    ok(&mut s, "DROP SOURCE d").await;
    let text = shown.split_once("CREATE").map(|(_, rest)| format!("CREATE{rest}")).unwrap();
    run(&mut s, &text).await.unwrap_or_else(|e| panic!("{text}: {e}"));
    assert_eq!(rows(&mut s, "SELECT count(*), count(DISTINCT \"Mixed\") FROM d").await, [["10", "2"]]);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn views_that_want_more_columns_of_a_running_source_miss_nothing() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE SOURCE d (id bigint, a int NOT NULL, b text NOT NULL, c numeric(10,2), ts timestamp, WATERMARK FOR ts AS ts - INTERVAL '20 ms') WITH (connector = 'datagen', rate = 40000, splits = 2, fields.id.kind = 'sequence', fields.b.values = 'x,yy,zzz', fields.c.null_rate = 0.1, fields.ts.min = '2026-01-01 00:00:00', fields.ts.max = '2026-01-01 00:00:01')").await;
    let queries = [
        "SELECT count(*) AS n FROM d",
        "SELECT b, count(*) AS n FROM d GROUP BY b",
        "SELECT a % 10 AS k, sum(c) AS c FROM d GROUP BY a % 10",
        "SELECT max(id) AS id, min(ts) AS ts, count(c) AS n FROM d",
        "SELECT b, max(a) AS a, sum(id) AS id FROM d WHERE c > 5000 GROUP BY b",
    ];
    for (n, query) in queries.iter().enumerate() {
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW v{n} AS {query}")).await;
    }
    ok(&mut s, "DROP MATERIALIZED VIEW v2").await;
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW v2 AS {}", queries[2])).await;
    for round in 0..3 {
        for (n, query) in queries.iter().enumerate() {
            // One statement reads both at one epoch.
            let differ = format!(
                "SELECT count(*) FROM ((SELECT * FROM v{n} EXCEPT ALL ({query})) UNION ALL (({query}) EXCEPT ALL SELECT * FROM v{n})) AS x"
            );
            assert_eq!(rows(&mut s, &differ).await, [["0"]], "round {round}: {query}");
        }
    }
    // Late rows are whole, whatever the views read.
    let late = "SELECT count(*) > 0, count(*) = count(b), count(*) = count(a), max(length(b)) FROM \"d$late\"";
    assert_eq!(rows(&mut s, late).await, [["t", "t", "t", "3"]]);
    instance.close().await;
}
