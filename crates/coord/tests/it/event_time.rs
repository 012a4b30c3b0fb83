//! Event time from end to end: watermarks, late rows, windows that close.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use crate::harness::{Instance, Rng, ok, rows, run, scratch, seed, state_of};

/// Ends the epoch, so that what was inserted counts for the watermark.
async fn flush(session: &mut coord::Session) {
    ok(session, "FLUSH").await;
}

async fn one(session: &mut coord::Session, query: &str) -> String {
    rows(session, query).await.concat().concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn late_and_on_time_rows_are_all_there_is_and_every_view_saw_the_same() {
    for slots in [1, 3] {
        let folder = scratch();
        let instance = Instance::open(folder.path(), slots, 32);
        let mut s = instance.session();
        ok(
            &mut s,
            "CREATE TABLE e (id int, k int, ts timestamp, WATERMARK FOR ts AS ts - INTERVAL '3 seconds') APPEND ONLY",
        )
        .await;
        ok(&mut s, "CREATE MATERIALIZED VIEW before AS SELECT k, count(*) AS n FROM e GROUP BY k").await;
        ok(&mut s, "CREATE MATERIALIZED VIEW late AS SELECT count(*) AS n FROM \"e$late\"").await;
        ok(&mut s, "CREATE MATERIALIZED VIEW closed AS SELECT window_start, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '10 seconds') GROUP BY window_start, window_end EMIT ON WINDOW CLOSE").await;
        ok(&mut s, "CREATE MATERIALIZED VIEW open AS SELECT window_start, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '10 seconds') GROUP BY window_start, window_end").await;
        let mut rng = Rng::new(seed());
        let mut total = 0;
        for step in 0..60 {
            let values: Vec<String> = (0..1 + rng.below(20))
                .map(|_| {
                    total += 1;
                    let second = (step + 20 - rng.below(20)) as i64;
                    format!("({total}, {}, TIMESTAMP '2026-01-01' + {second} * INTERVAL '1 second')", rng.below(4))
                })
                .collect();
            ok(&mut s, &format!("INSERT INTO e VALUES {}", values.join(", "))).await;
            if step == 30 {
                ok(&mut s, "CREATE MATERIALIZED VIEW after AS SELECT k, count(*) AS n FROM e GROUP BY k").await;
            }
            // A closed window never changes again, and is the one that stands open there too.
            let differ =
                one(&mut s, "SELECT count(*) FROM closed c JOIN open o USING (window_start) WHERE c.n <> o.n").await;
            assert_eq!(differ, "0");
        }
        let late: u64 = one(&mut s, "SELECT n FROM late").await.parse().unwrap();
        let on_time: u64 = one(&mut s, "SELECT sum(n)::bigint FROM before").await.parse().unwrap();
        assert!(late > 100 && on_time > 100, "{late} late, {on_time} on time");
        assert_eq!(late + on_time, total);
        assert_eq!(one(&mut s, "SELECT count(*) FROM \"e$late\"").await, late.to_string());
        assert_eq!(
            rows(&mut s, "SELECT * FROM before ORDER BY k").await,
            rows(&mut s, "SELECT * FROM after ORDER BY k").await
        );
        assert_eq!(
            rows(&mut s, "SELECT * FROM before ORDER BY k").await,
            rows(&mut s, "SELECT k, count(*) FROM e GROUP BY k ORDER BY k").await
        );
        // What is late was behind the watermark that stands beside it.
        assert_eq!(one(&mut s, "SELECT count(*) FROM \"e$late\" WHERE ts >= _watermark").await, "0");
        // Exactly the windows before the watermark are closed.
        let closed = one(&mut s, "SELECT count(*) FROM closed").await;
        let due = one(&mut s, "SELECT count(*) FROM open WHERE window_start + INTERVAL '10 seconds' <= (SELECT max(ts) - INTERVAL '3 seconds' FROM e)").await;
        assert_eq!(closed, due);
        assert!(closed.parse::<u32>().unwrap() >= 5, "{closed}");
        instance.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_is_emitted_once_and_late_rows_do_not_open_it_again() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    let out = folder.path().join("out.csv");
    ok(
        &mut s,
        "CREATE TABLE e (k int, ts timestamp, WATERMARK FOR ts AS ts) APPEND ONLY WITH (allowed_lateness = '5 s')",
    )
    .await;
    ok(&mut s, &format!("CREATE SINK closed AS SELECT window_end, sum(k)::bigint AS total FROM TUMBLE(e, ts, INTERVAL '10 seconds') GROUP BY window_start, window_end EMIT ON WINDOW CLOSE WITH (connector = 'file', path = '{}', mode = 'append', header = 'false') FORMAT PLAIN ENCODE CSV", out.display())).await;
    let at = |second: u32| format!("TIMESTAMP '2026-01-01 00:00:{second:02}'");
    for (k, second) in [(1, 1), (2, 9), (3, 12)] {
        ok(&mut s, &format!("INSERT INTO e VALUES ({k}, {})", at(second))).await;
    }
    // The watermark is at 12, the promise at 7: the first window takes rows until the watermark passes 15.
    ok(&mut s, &format!("INSERT INTO e VALUES (4, {})", at(8))).await;
    ok(&mut s, &format!("INSERT INTO e VALUES (100, {})", at(6))).await;
    ok(&mut s, &format!("INSERT INTO e VALUES (5, {})", at(15))).await;
    ok(&mut s, &format!("INSERT INTO e VALUES (200, {})", at(9))).await;
    ok(&mut s, &format!("INSERT INTO e VALUES (6, {})", at(40))).await;
    ok(&mut s, &format!("INSERT INTO e VALUES (400, {})", at(14))).await;
    flush(&mut s).await;
    let mut text = String::new();
    for _ in 0..500 {
        text = std::fs::read_to_string(&out).unwrap_or_default();
        if text.lines().count() >= 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(text, "2026-01-01 00:00:10,7\n2026-01-01 00:00:20,8\n");
    let late = rows(&mut s, "SELECT k, _split, _row, _watermark FROM \"e$late\" ORDER BY k").await;
    assert_eq!(
        late,
        [
            ["100", "0", "4", "2026-01-01 00:00:12"],
            ["200", "0", "6", "2026-01-01 00:00:15"],
            ["400", "0", "8", "2026-01-01 00:00:40"]
        ]
    );
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watermark_of_a_table_survives_a_restart() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE e (k int, ts timestamptz, WATERMARK FOR ts AS ts - INTERVAL '1 minute') APPEND ONLY")
        .await;
    ok(&mut s, "CREATE MATERIALIZED VIEW closed AS SELECT window_end, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '1 minute') GROUP BY window_start, window_end EMIT ON WINDOW CLOSE").await;
    ok(&mut s, "INSERT INTO e VALUES (1, '2026-01-01 00:00:30Z')").await;
    ok(&mut s, "INSERT INTO e VALUES (2, '2026-01-01 00:02:00Z')").await;
    ok(&mut s, "INSERT INTO e VALUES (3, '2026-01-01 00:00:59Z'), (4, '2026-01-01 00:01:00Z')").await;
    assert_eq!(rows(&mut s, "SELECT * FROM closed").await, [["2026-01-01 00:01:00+00", "1"]]);
    instance.close().await;
    let instance = Instance::open(folder.path(), 1, 8192);
    let mut s = instance.session();
    assert_eq!(rows(&mut s, "SELECT * FROM closed").await, [["2026-01-01 00:01:00+00", "1"]]);
    assert_eq!(rows(&mut s, "SELECT k FROM e ORDER BY k").await, [["1"], ["2"], ["4"]]);
    ok(&mut s, "INSERT INTO e VALUES (5, '2026-01-01 00:00:59Z'), (6, '2026-01-01 00:03:00Z')").await;
    assert_eq!(rows(&mut s, "SELECT k FROM \"e$late\" ORDER BY k").await, [["3"], ["5"]]);
    assert_eq!(
        rows(&mut s, "SELECT window_end, n FROM closed ORDER BY 1").await,
        [["2026-01-01 00:01:00+00", "1"], ["2026-01-01 00:02:00+00", "1"]]
    );
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_ends_closes_every_window() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 3, 8192);
    let mut s = instance.session();
    for (table, splits) in [("one", 1), ("four", 4)] {
        // Disorder within 200 events of 100 µs is 20 ms; a delay of 5 ms makes many of them late.
        ok(&mut s, &format!("CREATE SOURCE {table} (WATERMARK FOR date_time AS date_time - INTERVAL '5 ms') WITH (connector = 'nexmark', table = 'bid', events = 100000, disorder = 200, splits = {splits})")).await;
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW {table}_closed AS SELECT window_end, auction, count(*) AS n FROM TUMBLE({table}, date_time, INTERVAL '1 second') GROUP BY window_start, window_end, auction EMIT ON WINDOW CLOSE")).await;
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW {table}_open AS SELECT window_end, auction, count(*) AS n FROM TUMBLE({table}, date_time, INTERVAL '1 second') GROUP BY window_start, window_end, auction")).await;
    }
    instance.engine.wait_bounded().await.unwrap();
    ok(&mut s, "CREATE MATERIALIZED VIEW one_later AS SELECT window_end, auction, count(*) AS n FROM TUMBLE(one, date_time, INTERVAL '1 second') GROUP BY window_start, window_end, auction EMIT ON WINDOW CLOSE").await;
    for table in ["one", "four"] {
        let closed = rows(&mut s, &format!("SELECT * FROM {table}_closed ORDER BY 1, 2")).await;
        assert_eq!(closed, rows(&mut s, &format!("SELECT * FROM {table}_open ORDER BY 1, 2")).await);
        let on_time: u64 = one(&mut s, &format!("SELECT sum(n)::bigint FROM {table}_closed")).await.parse().unwrap();
        let shown = rows(&mut s, "SHOW WATERMARKS").await;
        let late: u64 = shown.iter().find(|r| r[1] == table).unwrap()[3].parse().unwrap();
        assert_eq!(on_time + late, 92_000, "{table}");
        assert!(shown.iter().filter(|r| r[1] == table).all(|r| r[2] == "ended" && r[7] == "ended"), "{shown:?}");
        assert_eq!(one(&mut s, &format!("SELECT count(*) FROM {table}")).await, on_time.to_string());
    }
    assert_eq!(
        rows(&mut s, "SELECT * FROM one_later ORDER BY 1, 2").await,
        rows(&mut s, "SELECT * FROM one_open ORDER BY 1, 2").await
    );
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watermark_that_stands_still_is_explained_by_name() {
    let folder = scratch();
    let input = folder.path().join("in.ndjson");
    let mut file = std::fs::File::create(&input).unwrap();
    writeln!(file, "{{\"k\": 1, \"ts\": \"2026-01-01 00:00:10\"}}").unwrap();
    let instance = Instance::open(&folder.path().join("data"), 1, 8192);
    let mut s = instance.session();
    ok(&mut s, &format!("CREATE SOURCE f (k int, ts timestamp, WATERMARK FOR ts AS ts - INTERVAL '5 s') WITH (connector = 'file', path = '{}', follow = 'true', poll_interval = '10ms', idle_timeout = '1500 ms') FORMAT PLAIN ENCODE JSON", input.display())).await;
    ok(&mut s, "CREATE TABLE t (k int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW v AS SELECT f.k FROM f JOIN t ON f.k = t.k").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW w AS SELECT k, ts FROM f").await;
    assert_eq!(one(&mut s, "SELECT count(*) FROM w").await, "1");
    let text = rows(&mut s, "EXPLAIN WATERMARK v").await.concat().join("\n");
    for part in [
        "materialized view public.v: no watermark",
        "table public.t declares no watermark",
        "source public.f: watermark 2026-01-01 00:00:05 by ts AS ts - INTERVAL '5 s'",
        &format!("split {}: running, newest event 2026-01-01 00:00:10", input.display()),
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(
        one(&mut s, "EXPLAIN WATERMARK w")
            .await
            .starts_with("materialized view public.w: watermark 2026-01-01 00:00:05")
    );
    // The only split falls idle and does not hold the watermark; nothing else moves it.
    for _ in 0..1000 {
        if rows(&mut s, "SHOW WATERMARKS").await[0][7] == "idle" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let shown = rows(&mut s, "SHOW WATERMARKS").await;
    assert_eq!([&shown[0][1], &shown[0][2], &shown[0][7], &shown[0][8]], ["f", "2026-01-01 00:00:05", "idle", "no"]);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_records_can_be_read_and_feed_views() {
    let folder = scratch();
    let input = folder.path().join("in.ndjson");
    std::fs::write(&input, "{\"k\": 1}\nnonsense\n{\"k\": \"x\"}\n{\"k\": 2}\n{\"k\": 99999999999999999999}\n\u{0}\n")
        .unwrap();
    let instance = Instance::open(&folder.path().join("data"), 2, 8192);
    let mut s = instance.session();
    let source = |name: &str, more: &str| {
        format!(
            "CREATE SOURCE {name} (k int) WITH (connector = 'file', path = '{}'{more}) FORMAT PLAIN ENCODE JSON",
            input.display()
        )
    };
    ok(&mut s, &source("f", "")).await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n, sum(k) AS s FROM f").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW bad AS SELECT reason, line FROM \"f$errors\"").await;
    instance.engine.wait_bounded().await.unwrap();
    assert_eq!(rows(&mut s, "SELECT * FROM n").await, [["2", "3"]]);
    let bad = rows(&mut s, "SELECT split, position, line, column_name, convert_from(record, 'UTF8') FROM \"f$errors\" WHERE line < 6 ORDER BY line").await;
    let path = input.display().to_string();
    assert_eq!(
        bad,
        [
            [path.as_str(), "9", "2", "NULL", "nonsense"],
            [path.as_str(), "18", "3", "k", "{\"k\": \"x\"}"],
            [path.as_str(), "38", "5", "k", "{\"k\": 99999999999999999999}"]
        ]
    );
    assert_eq!(one(&mut s, "SELECT count(*) FROM bad").await, "4");
    // The other way stops that source, and nothing else.
    ok(&mut s, &source("g", ", on_error = 'stop'")).await;
    // The view may have stopped before the statement ends.
    let _ = run(&mut s, "CREATE MATERIALIZED VIEW m AS SELECT count(*) AS n FROM g").await;
    assert!(instance.engine.wait_bounded().await.is_err());
    // The source tells its readers after it has stopped.
    for _ in 0..500 {
        if run(&mut s, "SELECT * FROM m").await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(state_of(&mut s, "SELECT * FROM m").await, "55000");
    assert_eq!(rows(&mut s, "SELECT * FROM n").await, [["2", "3"]]);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn side_tables_belong_to_their_relation() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 1, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE SOURCE b (WATERMARK FOR date_time AS date_time) WITH (connector = 'nexmark', table = 'bid', events = 100)").await;
    assert_eq!(rows(&mut s, "SELECT count(*) FROM \"b$late\"").await, [["0"]]);
    assert_eq!(rows(&mut s, "SELECT count(*) FROM \"b$errors\"").await, [["0"]]);
    assert_eq!(state_of(&mut s, "INSERT INTO \"b$errors\" (reason) VALUES ('x')").await, "42809");
    assert_eq!(state_of(&mut s, "DELETE FROM \"b$late\"").await, "42809");
    assert_eq!(state_of(&mut s, "DROP TABLE \"b$late\"").await, "2BP01");
    assert_eq!(state_of(&mut s, "ALTER TABLE \"b$late\" RENAME TO x").await, "2BP01");
    ok(&mut s, "ALTER SOURCE b RENAME TO c").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM \"c$late\"").await;
    assert_eq!(state_of(&mut s, "DROP SOURCE c").await, "2BP01");
    ok(&mut s, "DROP MATERIALIZED VIEW v").await;
    let shown = one(&mut s, "SHOW CREATE SOURCE c").await;
    assert!(shown.contains("WATERMARK FOR date_time AS date_time"), "{shown}");
    ok(&mut s, "CREATE OR REPLACE SOURCE c WITH (connector = 'nexmark', table = 'bid', events = 100)").await;
    assert_eq!(state_of(&mut s, "SELECT * FROM \"c$late\"").await, "42P01");
    ok(&mut s, "DROP SOURCE c").await;
    assert_eq!(state_of(&mut s, "SELECT * FROM \"c$errors\"").await, "42P01");
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watermarks_that_cannot_be_are_refused() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 1, 8192);
    let mut s = instance.session();
    for (statement, state) in [
        ("CREATE TABLE t (ts timestamp, WATERMARK FOR ts AS ts)", "42P16"),
        ("CREATE TABLE t (ts timestamp, WATERMARK FOR tt AS tt) APPEND ONLY", "42703"),
        ("CREATE TABLE t (ts text, WATERMARK FOR ts AS ts) APPEND ONLY", "42804"),
        ("CREATE TABLE t (ts timestamp, WATERMARK FOR ts AS ts + INTERVAL '1 s') APPEND ONLY", "0A000"),
        ("CREATE TABLE t (ts timestamp, WATERMARK FOR ts AS ts - INTERVAL '1 month') APPEND ONLY", "22023"),
        ("CREATE TABLE t (ts timestamp, WATERMARK FOR ts AS ts - INTERVAL '-1 s') APPEND ONLY", "22023"),
        ("CREATE TABLE t (ts timestamp, WATERMARK FOR ts AS ts, WATERMARK FOR ts AS ts) APPEND ONLY", "42P16"),
        ("CREATE TABLE t (ts timestamp) APPEND ONLY WITH (idle_timeout = '1 s')", "22023"),
        ("CREATE TABLE t (ts timestamp, WATERMARK FOR ts AS ts) APPEND ONLY WITH (allowed_lateness = 'soon')", "22023"),
        ("CREATE VIEW v AS SELECT 1 AS a EMIT ON WINDOW CLOSE", "42601"),
    ] {
        assert_eq!(state_of(&mut s, statement).await, state, "{statement}");
    }
    ok(&mut s, "CREATE TABLE e (k int, ts timestamp, WATERMARK FOR ts AS ts) APPEND ONLY").await;
    let refused =
        run(&mut s, "CREATE MATERIALIZED VIEW v AS SELECT k, count(*) AS n FROM e GROUP BY k EMIT ON WINDOW CLOSE")
            .await
            .err()
            .unwrap();
    assert_eq!(refused.state().code(), "0A000");
    assert!(refused.hint().unwrap().contains("window_start"), "{refused}");
    assert_eq!(state_of(&mut s, "ALTER TABLE e ADD COLUMN x int").await, "0A000");
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_has_ended_does_not_hold_the_watermark() {
    let folder = scratch();
    let write = |name: &str, times: &[i64]| {
        use arrow::array::{ArrayRef, TimestampMicrosecondArray};
        let start = 1_767_225_600_000_000i64;
        let times: ArrayRef =
            Arc::new(TimestampMicrosecondArray::from_iter_values(times.iter().map(|s| start + s * 1_000_000)));
        let rows = arrow::array::RecordBatch::try_from_iter([("ts", times)]).unwrap();
        // Renamed when it is whole, as the documentation says.
        let (part, path) = (folder.path().join(format!("{name}.part")), folder.path().join(name));
        let file = std::fs::File::create(&part).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
        std::fs::rename(part, path).unwrap();
    };
    let instance = Instance::open(&folder.path().join("data"), 2, 8192);
    let mut s = instance.session();
    write("b.parquet", &[0, 10, 20]);
    let path = folder.path().join("*.parquet").display().to_string();
    ok(&mut s, &format!("CREATE SOURCE f (ts timestamp, WATERMARK FOR ts AS ts - INTERVAL '5 s') WITH (connector = 'file', path = '{path}', follow = 'true', poll_interval = '10ms') FORMAT PLAIN ENCODE PARQUET")).await;
    ok(&mut s, "CREATE MATERIALIZED VIEW w AS SELECT window_end, count(*) AS n FROM TUMBLE(f, ts, INTERVAL '10 seconds') GROUP BY window_start, window_end EMIT ON WINDOW CLOSE").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM f").await;
    // The only file has ended: what it was the newest of is where the time is.
    wait_until(&mut s, "SELECT count(*) FROM w", "1").await;
    let watermark = rows(&mut s, "SHOW WATERMARKS").await;
    assert_eq!([watermark[0][2].as_str(), watermark[0][7].as_str()], ["2026-01-01 00:00:15", "ended"]);
    // The next file goes on, with a row that is late, and the one that has ended does not hold it.
    write("c.parquet", &[30, 14, 46]);
    wait_until(&mut s, "SELECT n FROM n", "5").await;
    wait_until(&mut s, "SELECT count(*) FROM w", "4").await;
    let closed = rows(&mut s, "SELECT window_end, n FROM w ORDER BY 1").await;
    let want = [("00:00:10", "1"), ("00:00:20", "1"), ("00:00:30", "1"), ("00:00:40", "1")];
    assert_eq!(closed.len(), want.len(), "{closed:?}");
    for (row, (end, n)) in closed.iter().zip(want) {
        assert_eq!((row[0].as_str(), row[1].as_str()), (format!("2026-01-01 {end}").as_str(), n));
    }
    let late = rows(&mut s, "SELECT ts, _split FROM \"f$late\"").await;
    assert_eq!(late, [["2026-01-01 00:00:14".to_string(), folder.path().join("c.parquet").display().to_string()]]);
    instance.close().await;
}

async fn wait_until(session: &mut coord::Session, query: &str, expected: &str) {
    for _ in 0..1000 {
        if rows(session, query).await == [[expected]] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{query} did not become {expected}: {:?}", rows(session, query).await);
}

/// Trap "session windows: rows 0, 5, 100, 110 with gap 20 are {0,5},{100,110}" and "an out-of-order row bridges two sessions".
#[tokio::test(flavor = "multi_thread")]
async fn a_row_out_of_order_bridges_two_sessions_and_a_session_is_emitted_once() {
    for slots in [1, 3] {
        let folder = scratch();
        let instance = Instance::open(folder.path(), slots, 32);
        let mut s = instance.session();
        ok(
            &mut s,
            "CREATE TABLE e (k int, at int, ts timestamp, WATERMARK FOR ts AS ts - INTERVAL '100 seconds') APPEND ONLY",
        )
        .await;
        let select = "SELECT k, min(at) AS first, max(at) AS last, count(*) AS n, count(DISTINCT at) AS d, window_end FROM SESSION(e, ts, INTERVAL '20 seconds' PARTITION BY k) GROUP BY k, window_start, window_end";
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW open AS {select}")).await;
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW closed AS {select} EMIT ON WINDOW CLOSE")).await;
        let add = |at: &[i32]| {
            let one = |at: &i32| format!("(1, {at}, TIMESTAMP '2026-01-01' + {at} * INTERVAL '1 second')");
            format!("INSERT INTO e VALUES {}", at.iter().map(one).collect::<Vec<_>>().join(", "))
        };
        let shown = "SELECT first, last, n, d FROM open ORDER BY first";
        ok(&mut s, &add(&[0, 5, 100, 110])).await;
        assert_eq!(rows(&mut s, shown).await, [["0", "5", "2", "2"], ["100", "110", "2", "2"]]);
        // 25 and 80 stretch them, 45 opens a third between, 63 joins that to the later one, 44 everything.
        ok(&mut s, &add(&[25, 80])).await;
        ok(&mut s, &add(&[46])).await;
        assert_eq!(rows(&mut s, shown).await, [["0", "25", "3", "3"], ["46", "46", "1", "1"], ["80", "110", "3", "3"]]);
        ok(&mut s, &add(&[63, 63])).await;
        assert_eq!(rows(&mut s, shown).await, [["0", "25", "3", "3"], ["46", "110", "6", "5"]]);
        ok(&mut s, &add(&[44])).await;
        assert_eq!(rows(&mut s, shown).await, [["0", "110", "10", "9"]]);
        assert_eq!(one(&mut s, "SELECT count(*) FROM closed").await, "0");
        // The watermark stands at 130, the end: a row there would still belong.
        ok(&mut s, &add(&[230])).await;
        flush(&mut s).await;
        assert_eq!(one(&mut s, "SELECT count(*) FROM closed").await, "0");
        ok(&mut s, &add(&[130])).await;
        ok(&mut s, &add(&[260])).await;
        flush(&mut s).await;
        let last = [["0", "130", "11", "10", "2026-01-01 00:02:30"]];
        assert_eq!(rows(&mut s, "SELECT first, last, n, d, window_end FROM closed").await, last);
        // What is late does not touch it, and its number serves the next session.
        ok(&mut s, &add(&[131])).await;
        ok(&mut s, &add(&[500, 500, 501])).await;
        ok(&mut s, &add(&[1000])).await;
        flush(&mut s).await;
        assert_eq!(
            rows(&mut s, "SELECT first, n, d FROM closed ORDER BY first").await,
            [["0", "11", "10"], ["230", "1", "1"], ["260", "1", "1"], ["500", "3", "2"]]
        );
        assert_eq!(
            rows(&mut s, "SELECT * FROM open ORDER BY first").await,
            rows(&mut s, &format!("{select} ORDER BY 2")).await
        );
        assert_eq!(one(&mut s, "SELECT count(*) FROM \"e$late\"").await, "1");
        instance.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_over_shuffled_rows_equal_batch_and_close_as_they_stand() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8);
    let mut s = instance.session();
    ok(
        &mut s,
        "CREATE TABLE e (k int, v int, ts timestamp, WATERMARK FOR ts AS ts - INTERVAL '40 seconds') APPEND ONLY",
    )
    .await;
    let select = "SELECT k, window_start, window_end, count(*) AS n, sum(v) AS total, count(DISTINCT v) AS d, max(v) AS most FROM SESSION(e, ts, INTERVAL '6 seconds' PARTITION BY k) GROUP BY k, window_start, window_end";
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW open AS {select}")).await;
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW closed AS {select} EMIT ON WINDOW CLOSE")).await;
    let mut rng = Rng::new(seed());
    for step in 0..150 {
        let values: Vec<String> = (0..1 + rng.below(12))
            .map(|_| {
                let second = (step * 2 + 45 - rng.below(45)) as i64;
                format!("({}, {}, TIMESTAMP '2026-01-01' + {second} * INTERVAL '1 second')", rng.below(8), rng.below(5))
            })
            .collect();
        ok(&mut s, &format!("INSERT INTO e VALUES {}", values.join(", "))).await;
        if step % 10 == 0 {
            let differ = one(&mut s, "SELECT count(*) FROM (SELECT * FROM closed EXCEPT SELECT * FROM open) x").await;
            assert_eq!(differ, "0", "step {step}");
            let batch = one(&mut s, &format!("SELECT count(*) FROM (SELECT * FROM open EXCEPT ({select})) x")).await;
            assert_eq!(batch, "0", "step {step}");
        }
    }
    let all = one(&mut s, &format!("SELECT count(*) FROM ({select}) x")).await;
    assert_eq!(one(&mut s, "SELECT count(*) FROM open").await, all);
    let closed: usize = one(&mut s, "SELECT count(*) FROM closed").await.parse().unwrap();
    assert!(closed > 40, "{closed} of {all}");
    instance.close().await;
}

/// Trap "COUNT(DISTINCT) multiplicity": a group that the watermark ends leaves no values to the next one of its number.
#[tokio::test(flavor = "multi_thread")]
async fn distinct_values_of_a_closed_window_do_not_count_in_later_ones() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 1, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE e (v int, ts timestamp, WATERMARK FOR ts AS ts) APPEND ONLY").await;
    let select = "SELECT window_start, count(DISTINCT v) AS d, sum(DISTINCT v) AS total FROM TUMBLE(e, ts, INTERVAL '10 seconds') GROUP BY window_start, window_end";
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW open AS {select}")).await;
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW closed AS {select} EMIT ON WINDOW CLOSE")).await;
    for window in 0..6 {
        for v in [1, 2, 2, 3] {
            let at = window * 10 + v;
            ok(&mut s, &format!("INSERT INTO e VALUES ({v}, TIMESTAMP '2026-01-01' + {at} * INTERVAL '1 second')"))
                .await;
        }
    }
    flush(&mut s).await;
    assert_eq!(one(&mut s, "SELECT count(*) FROM open WHERE d <> 3 OR total <> 6").await, "0");
    assert_eq!(one(&mut s, "SELECT count(*) FROM closed WHERE d = 3 AND total = 6").await, "5");
    instance.close().await;
}

/// The first rows of each window: their state goes when the window is over, their rows stay.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_a_top_n_end_with_their_windows() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 32);
    let mut s = instance.session();
    ok(
        &mut s,
        "CREATE TABLE e (id int, v int, ts timestamp, WATERMARK FOR ts AS ts - INTERVAL '15 seconds') APPEND ONLY",
    )
    .await;
    let select = "SELECT window_start, id, v FROM (SELECT *, row_number() OVER (PARTITION BY window_start, window_end ORDER BY v DESC, id) AS place FROM TUMBLE(e, ts, INTERVAL '10 seconds')) r WHERE place <= 3";
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW best AS {select}")).await;
    ok(&mut s, &format!("CREATE MATERIALIZED VIEW closed AS {select} EMIT ON WINDOW CLOSE")).await;
    let explained = rows(&mut s, &format!("EXPLAIN (LAYER process) {select}")).await.concat().join("\n");
    assert!(explained.contains("until window_start is behind the watermark"), "{explained}");
    let mut rng = Rng::new(seed());
    for step in 0..80 {
        let values: Vec<String> = (0..5 + rng.below(10))
            .map(|n| {
                let second = step * 3 + 20 - rng.below(20);
                format!(
                    "({}, {}, TIMESTAMP '2026-01-01' + {second} * INTERVAL '1 second')",
                    step * 100 + n,
                    rng.below(50)
                )
            })
            .collect();
        ok(&mut s, &format!("INSERT INTO e VALUES {}", values.join(", "))).await;
        if step % 16 == 15 {
            let differ = format!(
                "SELECT count(*) FROM ((SELECT * FROM best EXCEPT ALL {select}) UNION ALL ({select} EXCEPT ALL SELECT * FROM best)) x"
            );
            assert_eq!(one(&mut s, &differ).await, "0", "step {step}");
            assert_eq!(
                one(&mut s, "SELECT count(*) FROM (SELECT * FROM closed EXCEPT SELECT * FROM best) x").await,
                "0"
            );
        }
    }
    assert!(one(&mut s, "SELECT count(*) FROM closed").await.parse::<u32>().unwrap() >= 30);
    instance.close().await;
}

/// Traps "outer join emits a NULL row for an already matched row after one side is evicted (SPARK-26154)" and "a late row in a
/// window join": at every step, with and without what the watermark has freed, a join is what its query answers.
#[tokio::test(flavor = "multi_thread")]
async fn outer_joins_whose_rows_expire_show_no_null_row_for_a_row_that_was_matched() {
    for slots in [1, 3] {
        let folder = scratch();
        let instance = Instance::open(folder.path(), slots, 8);
        let mut s = instance.session();
        for table in ["a", "b"] {
            ok(&mut s, &format!("CREATE TABLE {table} (id int, k int, ts timestamp, WATERMARK FOR ts AS ts - INTERVAL '12 seconds') APPEND ONLY")).await;
        }
        let window = |t: &str| {
            format!("(SELECT id, k, window_start, window_end FROM TUMBLE({t}, ts, INTERVAL '10 seconds')) {t}")
        };
        let on = "a.k = b.k AND a.window_start = b.window_start AND a.window_end = b.window_end";
        let mut queries = Vec::new();
        for kind in ["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"] {
            queries.push(format!(
                "SELECT a.id AS a, b.id AS b, a.window_start AS aw, b.window_start AS bw FROM {} {kind} {} ON {on}",
                window("a"),
                window("b")
            ));
            queries.push(format!("SELECT a.id AS a, b.id AS b, a.ts AS at FROM a {kind} b ON a.k = b.k AND b.ts BETWEEN a.ts AND a.ts + INTERVAL '7 seconds'"));
        }
        for negated in ["", "NOT "] {
            queries.push(format!("SELECT id, k FROM a WHERE {negated}EXISTS (SELECT 1 FROM b WHERE b.k = a.k AND b.ts BETWEEN a.ts - INTERVAL '3 seconds' AND a.ts)"));
        }
        for (n, query) in queries.iter().enumerate() {
            ok(&mut s, &format!("CREATE MATERIALIZED VIEW v{n} AS {query}")).await;
        }
        let mut rng = Rng::new(seed());
        for step in 0..90 {
            for table in ["a", "b"] {
                let values: Vec<String> = (0..rng.below(6))
                    .map(|n| {
                        let second = step * 2 + 20 - rng.below(20);
                        format!(
                            "({}, {}, TIMESTAMP '2026-01-01' + {second} * INTERVAL '1 second')",
                            step * 10 + n,
                            rng.below(5)
                        )
                    })
                    .collect();
                if !values.is_empty() {
                    ok(&mut s, &format!("INSERT INTO {table} VALUES {}", values.join(", "))).await;
                }
            }
            if step % 9 == 8 {
                for (n, query) in queries.iter().enumerate() {
                    let differ = format!(
                        "SELECT count(*) FROM ((SELECT * FROM v{n} EXCEPT ALL {query}) UNION ALL ({query} EXCEPT ALL SELECT * FROM v{n})) x"
                    );
                    assert_eq!(one(&mut s, &differ).await, "0", "{query}, step {step}, {slots} slots");
                }
            }
        }
        let late: u32 = one(&mut s, "SELECT (SELECT count(*) FROM \"a$late\") + (SELECT count(*) FROM \"b$late\")")
            .await
            .parse()
            .unwrap();
        assert!(late > 30, "{late}");
        instance.close().await;
    }
}

/// Of two sources with much to read none runs away from the other, unless somebody reads it alone.
#[tokio::test(flavor = "multi_thread")]
async fn sources_that_are_replayed_for_the_same_jobs_stay_together() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 4096);
    let mut s = instance.session();
    for (name, step) in [("fine", "1 millisecond"), ("coarse", "10 milliseconds")] {
        ok(
            &mut s,
            &format!(
                "CREATE SOURCE {name} (at timestamp, WATERMARK FOR at AS at) WITH (connector = 'datagen', \
                 fields.at.start = '2026-01-01 00:00:00', fields.at.step = '{step}')"
            ),
        )
        .await;
    }
    let newest = |name: &str| format!("(SELECT extract(epoch FROM max(at))::bigint AS at FROM {name}) AS {name}");
    ok(
        &mut s,
        &format!(
            "CREATE MATERIALIZED VIEW both_newest AS SELECT fine.at AS fine, coarse.at AS coarse FROM {}, {}",
            newest("fine"),
            newest("coarse")
        ),
    )
    .await;
    // The newest of one moment: where each is, and how far the coarse one is ahead, in seconds.
    let start: i64 = one(&mut s, "SELECT extract(epoch FROM TIMESTAMP '2026-01-01')::bigint").await.parse().unwrap();
    let mut seen = 0;
    let mut ahead = async |s: &mut coord::Session| loop {
        let now = rows(s, "SELECT fine, coarse - fine FROM both_newest").await;
        let numbers: Option<Vec<i64>> =
            now.first().and_then(|row| row.iter().map(|value| value.parse().ok()).collect());
        if let Some(numbers) = numbers
            && numbers[0] > seen
        {
            seen = numbers[0];
            return (seen - start, numbers[1]);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    // Until both have begun to read, one may have a start. A portion of the coarse one is 82 seconds long.
    let begun = loop {
        let (at, ahead) = ahead(&mut s).await;
        if ahead.abs() <= 200 {
            break at;
        }
        assert!(at < 20_000, "still {ahead} seconds ahead");
    };
    loop {
        let (at, ahead) = ahead(&mut s).await;
        assert!((-200..=200).contains(&ahead), "the coarse one is {ahead} seconds ahead after {at}");
        if at > begun + 600 {
            break;
        }
    }
    for name in ["fine", "coarse"] {
        ok(&mut s, &format!("ALTER SOURCE {name} SET (rate_limit = 1000)")).await;
    }
    ok(&mut s, "CREATE MATERIALIZED VIEW alone AS SELECT count(*) AS n FROM coarse").await;
    for name in ["fine", "coarse"] {
        ok(&mut s, &format!("ALTER SOURCE {name} RESET (rate_limit)")).await;
    }
    loop {
        let (at, ahead) = ahead(&mut s).await;
        if ahead > 500 {
            break;
        }
        assert!(at < begun + 20_000, "still {ahead} seconds ahead");
    }
    drop(s);
    instance.close().await;
}
