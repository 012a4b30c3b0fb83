//! File sources and sinks, and sinks into tables.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use flow::RelationId;

use crate::harness::{Instance, Rng, ok, rows, run, scratch, seed, state_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_file_feeds_views_of_every_age_with_the_same_rows() {
    let folder = scratch();
    let csv = folder.path().join("in.csv");
    let mut rng = Rng::new(seed());
    let mut text = String::from("id,city,amount\n");
    for id in 0..20_000 {
        text.push_str(&format!(
            "{id},{},{}.{:02}\n",
            ["Oslo", "Rome", "Lima"][rng.below(3)],
            rng.below(90),
            rng.below(100)
        ));
    }
    std::fs::write(&csv, text).unwrap();
    let instance = Instance::open(&folder.path().join("data"), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, &format!("CREATE SOURCE sales (id bigint, city text, amount numeric(10,2)) WITH (connector = 'file', path = '{}', header = 'true') FORMAT PLAIN ENCODE CSV", csv.display())).await;
    let create = |n: usize| {
        format!(
            "CREATE MATERIALIZED VIEW v{n} AS SELECT city, count(*) AS n, sum(amount) AS total FROM sales GROUP BY city"
        )
    };
    ok(&mut s, &create(0)).await;
    ok(&mut s, &create(1)).await;
    instance.engine.wait_bounded().await.unwrap();
    ok(&mut s, &create(2)).await;
    let batch =
        rows(&mut s, "SELECT city, count(*) AS n, sum(amount) AS total FROM sales GROUP BY city ORDER BY city").await;
    assert_eq!(batch.iter().map(|r| r[1].parse::<i64>().unwrap()).sum::<i64>(), 20_000);
    for n in 0..3 {
        assert_eq!(rows(&mut s, &format!("SELECT * FROM v{n} ORDER BY city")).await, batch, "v{n}");
    }
    instance.close().await;
    // Views over sources are read again after a restart.
    let instance = Instance::open(&folder.path().join("data"), 3, 32);
    let mut s = instance.session();
    instance.engine.wait_bounded().await.unwrap();
    ok(&mut s, "SELECT * FROM v0").await;
    instance.engine.wait_bounded().await.unwrap();
    assert_eq!(rows(&mut s, "SELECT * FROM v0 ORDER BY city").await, batch);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_growing_file_is_followed_into_a_file() {
    let folder = scratch();
    let (input, output) = (folder.path().join("in.ndjson"), folder.path().join("out.csv"));
    let mut file = std::fs::File::create(&input).unwrap();
    writeln!(file, "{{\"k\": 1, \"v\": \"a\"}}").unwrap();
    let instance = Instance::open(&folder.path().join("data"), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, &format!("CREATE SOURCE f (k int, v text) WITH (connector = 'file', path = '{}', follow = 'true', poll_interval = '10ms') FORMAT PLAIN ENCODE JSON", input.display())).await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT v, count(*) AS n FROM f GROUP BY v").await;
    ok(&mut s, &format!("CREATE SINK k FROM n WITH (connector = 'file', path = '{}', flush_interval = '10ms') FORMAT PLAIN ENCODE CSV", output.display())).await;
    write!(file, "{{\"k\": 2, \"v\": \"a\"}}\n{{\"k\": 3, \"v\": ").unwrap();
    file.flush().unwrap();
    wait_for(&mut s, "SELECT n FROM n WHERE v = 'a'", "2").await;
    writeln!(file, "\"b\"}}").unwrap();
    file.flush().unwrap();
    wait_for(&mut s, "SELECT n FROM n WHERE v = 'b'", "1").await;
    let mut content = String::new();
    for _ in 0..500 {
        content = std::fs::read_to_string(&output).unwrap_or_default();
        if content.contains("a,2") && content.contains("b,1") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut lines: Vec<&str> = content.lines().collect();
    lines.sort();
    assert_eq!(lines, ["a,2", "b,1", "v,n"]);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_feeds_views_from_all_of_its_files() {
    let folder = scratch();
    for n in 0..30 {
        let text: String = (0..1000).map(|row| format!("{{\"file\": {n}, \"row\": {row}}}\n")).collect();
        std::fs::write(folder.path().join(format!("part-{n:02}.json")), text).unwrap();
    }
    let instance = Instance::open(&folder.path().join("data"), 2, 8192);
    let mut s = instance.session();
    let path = folder.path().join("part-*.json").display().to_string();
    ok(&mut s, &format!("CREATE SOURCE f WITH (connector = 'file', path = '{path}') FORMAT PLAIN ENCODE JSON")).await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT file, count(*) AS n, sum(row)::bigint AS s FROM f GROUP BY file")
        .await;
    instance.engine.wait_bounded().await.unwrap();
    let query = "SELECT count(*), sum(n)::bigint, min(s), max(s) FROM n";
    assert_eq!(rows(&mut s, query).await, [["30", "30000", "499500", "499500"]]);
    // A view that comes later, and an ad-hoc query, read the same files as of then.
    std::fs::write(folder.path().join("part-99.json"), "{\"file\": 99, \"row\": 1}\n").unwrap();
    assert_eq!(rows(&mut s, "SELECT count(DISTINCT file), count(*) FROM f").await, [["30", "30000"]]);
    let progress = "SELECT progress = total AND total > 0 FROM ms_catalog.sources WHERE name = 'f'";
    assert_eq!(rows(&mut s, progress).await, [["t"]]);
    instance.close().await;
    // After a restart the source is read anew.
    let instance = Instance::open(&folder.path().join("data"), 1, 8192);
    let mut s = instance.session();
    instance.engine.wait_bounded().await.unwrap();
    ok(&mut s, "SELECT * FROM n").await;
    instance.engine.wait_bounded().await.unwrap();
    assert_eq!(rows(&mut s, "SELECT count(*), sum(n)::bigint FROM n").await, [["31", "30001"]]);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parquet_files_feed_views_that_read_different_columns() {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    let folder = scratch();
    for n in 0..3i64 {
        let rows = RecordBatch::try_from_iter([
            ("Id", Arc::new(Int64Array::from_iter_values(n * 10_000..(n + 1) * 10_000)) as ArrayRef),
            ("city", Arc::new(StringArray::from_iter_values((0..10_000).map(|row| ["Oslo", "Rome"][row % 2])))),
            ("amount", Arc::new(Int64Array::from_iter((0..10_000).map(|row| (row % 100 > 0).then_some(row))))),
        ])
        .unwrap();
        let file = std::fs::File::create(folder.path().join(format!("{n}.parquet"))).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
    }
    let instance = Instance::open(&folder.path().join("data"), 2, 8192);
    let mut s = instance.session();
    let path = folder.path().display().to_string();
    let create = |name: &str, columns: &str, path: &str| {
        format!("CREATE SOURCE {name} {columns} WITH (connector = 'file', path = '{path}') FORMAT PLAIN ENCODE PARQUET")
    };
    ok(&mut s, &create("f", "", &format!("{path}/*.parquet"))).await;
    ok(&mut s, &create("g", "(id bigint, amount bigint NOT NULL)", &format!("{path}/*.parquet"))).await;
    ok(&mut s, "CREATE MATERIALIZED VIEW cities AS SELECT city, count(*) AS n FROM f GROUP BY city").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW ids AS SELECT max(id) AS m, count(*) AS n FROM g").await;
    instance.engine.wait_bounded().await.unwrap();
    assert_eq!(rows(&mut s, "SELECT * FROM cities ORDER BY city").await, [["Oslo", "15000"], ["Rome", "15000"]]);
    assert_eq!(rows(&mut s, "SELECT * FROM ids").await, [["29999", "29700"]]);
    ok(&mut s, "CREATE MATERIALIZED VIEW amounts AS SELECT sum(amount)::bigint AS s, min(id) AS m FROM f").await;
    let sum = (0..10_000i64).filter(|row| row % 100 > 0).sum::<i64>() * 3;
    assert_eq!(rows(&mut s, "SELECT * FROM amounts").await, [[sum.to_string(), "0".to_string()]]);
    let bad =
        rows(&mut s, "SELECT count(*), min(position), max(line), min(column_name), min(reason) FROM \"g$errors\"")
            .await;
    assert_eq!(bad, [["300", "0", "NULL", "amount", "null value in column \"amount\", which is NOT NULL"]]);
    std::fs::write(folder.path().join("x.parquet"), "PAR1 and nothing more").unwrap();
    let broken = run(&mut s, &create("h", "", &format!("{path}/x.parquet"))).await.err().unwrap();
    assert_eq!(broken.state().code(), "XX001");
    assert!(broken.message().contains("x.parquet"), "{broken}");
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_pattern_takes_files_as_they_come_and_stops_when_one_goes() {
    let folder = scratch();
    let instance = Instance::open(&folder.path().join("data"), 2, 8192);
    let mut s = instance.session();
    let path = folder.path().join("*.csv").display().to_string();
    let create = |more: &str| {
        format!("CREATE SOURCE f (k int) WITH (connector = 'file', path = '{path}'{more}) FORMAT PLAIN ENCODE CSV")
    };
    let refused = run(&mut s, &create("")).await.err().unwrap();
    assert_eq!(refused.state().code(), "58P01");
    assert!(refused.hint().unwrap().contains("follow = 'true'"), "{refused}");
    ok(&mut s, &create(", follow = 'true', poll_interval = '10ms'")).await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM f").await;
    wait_for(&mut s, "SELECT n FROM n", "0").await;
    std::fs::write(folder.path().join("b.csv"), "1\n2\n").unwrap();
    wait_for(&mut s, "SELECT n FROM n", "2").await;
    std::fs::write(folder.path().join("a.csv"), "3\nx\n4").unwrap();
    wait_for(&mut s, "SELECT n FROM n", "3").await;
    // The last line of a followed file counts once it ends.
    let mut a = std::fs::OpenOptions::new().append(true).open(folder.path().join("a.csv")).unwrap();
    writeln!(a).unwrap();
    wait_for(&mut s, "SELECT n FROM n", "4").await;
    let bad = rows(&mut s, "SELECT split, line FROM \"f$errors\"").await;
    assert_eq!(bad, [[folder.path().join("a.csv").display().to_string(), "2".to_string()]]);
    // A later view reads the same.
    ok(&mut s, "CREATE MATERIALIZED VIEW m AS SELECT sum(k)::int AS s FROM f").await;
    wait_for(&mut s, "SELECT s FROM m", "10").await;
    std::fs::remove_file(folder.path().join("b.csv")).unwrap();
    let query = "SELECT error FROM ms_catalog.sources WHERE name = 'f'";
    for _ in 0..500 {
        if rows(&mut s, query).await[0][0].contains("b.csv\" changed while it was read: it was removed") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(rows(&mut s, query).await[0][0].contains("b.csv"), "{:?}", rows(&mut s, query).await);
    instance.close().await;
}

async fn wait_for(session: &mut coord::Session, query: &str, expected: &str) {
    for _ in 0..500 {
        if rows(session, query).await == [[expected]] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{query} did not become {expected}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_into_a_table_follows_its_input_over_restarts() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, g int)").await;
    ok(&mut s, "CREATE TABLE counts (g int PRIMARY KEY, n bigint)").await;
    ok(&mut s, "INSERT INTO t VALUES (1, 1), (2, 1), (3, 2)").await;
    ok(&mut s, "CREATE SINK into_counts INTO counts AS SELECT g, count(*) AS n FROM t GROUP BY g").await;
    wait_for(&mut s, "SELECT n FROM counts WHERE g = 1", "2").await;
    assert_eq!(state_of(&mut s, "INSERT INTO counts VALUES (9, 9)").await, "55000");
    ok(&mut s, "DELETE FROM t WHERE k = 3").await;
    wait_for(&mut s, "SELECT count(*) FROM counts", "1").await;
    instance.close().await;
    let instance = Instance::open(folder.path(), 1, 8192);
    let mut s = instance.session();
    wait_for(&mut s, "SELECT n FROM counts WHERE g = 1", "2").await;
    assert_eq!(rows(&mut s, "SELECT count(*) FROM counts").await, [["1"]]);
    ok(&mut s, "DROP SINK into_counts").await;
    ok(&mut s, "INSERT INTO counts VALUES (9, 9)").await;
    instance.close().await;
    let instance = Instance::open(folder.path(), 1, 8192);
    let mut s = instance.session();
    assert_eq!(rows(&mut s, "SELECT * FROM counts ORDER BY g").await, [["1", "2"], ["9", "9"]]);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_connectors_are_refused_at_create() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 1, 8192);
    let mut s = instance.session();
    let missing =
        "CREATE SOURCE f (k int) WITH (connector = 'file', path = '/nonexistent/x.csv') FORMAT PLAIN ENCODE CSV";
    assert_eq!(state_of(&mut s, missing).await, "58P01");
    let unknown = run(&mut s, "CREATE SOURCE f (k int) WITH (connector = 'fiel', path = 'x')").await.err().unwrap();
    assert!(unknown.hint().unwrap().contains("file"), "{unknown}");
    instance.close().await;
}

/// Content by key, or by whole row, as JSON texts.
type Content = std::collections::BTreeMap<String, String>;

/// The contents that the records of an UPSERT or DEBEZIUM file show, one after each epoch that changes something.
fn replayed(path: &std::path::Path) -> Vec<Content> {
    let text = std::fs::read_to_string(path).unwrap();
    let records: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut contents = Vec::new();
    let mut now = Content::new();
    for epoch in records.chunk_by(|a, b| epoch_of(a) == epoch_of(b)) {
        for record in epoch {
            if record.get("key").is_some() {
                match record["op"].as_str() {
                    Some("upsert") => now.insert(record["key"].to_string(), record["row"].to_string()),
                    _ => Some(now.remove(&record["key"].to_string()).expect("a key that is there")),
                };
            } else {
                // Keyed by itself: an update is there before it is changed.
                if let serde_json::Value::Object(_) = &record["before"] {
                    now.remove(&record["before"].to_string()).expect("a row that is there");
                }
                if let serde_json::Value::Object(_) = &record["after"] {
                    now.insert(record["after"].to_string(), record["after"].to_string());
                }
            }
        }
        contents.push(now.clone());
    }
    contents
}

fn epoch_of(record: &serde_json::Value) -> u64 {
    record["epoch"].as_u64().or(record["source"]["epoch"].as_u64()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn upserts_and_debezium_replayed_are_the_view_at_each_epoch() {
    let folder = scratch();
    let path = |name: &str| folder.path().join(name);
    let mut rng = Rng::new(seed());
    let instance = Instance::open(&path("data"), 3, 8);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, g int, v text)").await;
    ok(&mut s, "INSERT INTO t SELECT n, n % 5, 'old' FROM generate_series(1, 60) AS s(n)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW v AS SELECT g, count(*) AS n, max(v) AS m FROM t GROUP BY g").await;
    let sinks = [("u", "UPSERT", "v"), ("d", "DEBEZIUM", "v"), ("tu", "UPSERT", "t"), ("td", "DEBEZIUM", "t")];
    for (name, form, from) in sinks {
        let create = format!(
            "CREATE SINK {name} FROM {from} WITH (connector = 'file', path = '{}') FORMAT {form} ENCODE JSON",
            path(name).display()
        );
        ok(&mut s, &create).await;
    }
    // What is committed in a sink's first epoch would be part of its snapshot.
    ok(&mut s, "FLUSH").await;
    let queries = [("v", "SELECT g, n, m FROM v"), ("t", "SELECT k, g, v FROM t")];
    let mut seen: Vec<Vec<std::collections::BTreeSet<Vec<String>>>> = vec![Vec::new(); queries.len()];
    for step in 0..=60 {
        for ((_, query), seen) in queries.iter().zip(&mut seen) {
            let content = rows(&mut s, query).await.into_iter().collect();
            if seen.last() != Some(&content) {
                seen.push(content);
            }
        }
        if step == 60 {
            break;
        }
        let (k, g) = (rng.below(70), rng.pick(&["NULL", "0", "1", "2", "7"]));
        let statement = match rng.below(5) {
            0 => format!("DELETE FROM t WHERE k % 11 = {}", k % 11),
            1 => format!("UPDATE t SET g = {g} WHERE k > {k}"),
            2 => format!("UPDATE t SET v = 'v{step}' WHERE k = {k}"),
            // Leaves and returns in one epoch.
            3 => format!("BEGIN; DELETE FROM t WHERE k = {k}; INSERT INTO t VALUES ({k}, {g}, 'back'); COMMIT"),
            _ => format!("INSERT INTO t VALUES ({k}, {g}, 'x') ON CONFLICT (k) DO UPDATE SET v = NULL"),
        };
        ok(&mut s, &statement).await;
    }
    // The last step changes everything, so that its epoch shows in every file.
    ok(&mut s, "UPDATE t SET v = 'last'").await;
    for ((_, query), seen) in queries.iter().zip(&mut seen) {
        seen.push(rows(&mut s, query).await.into_iter().collect());
    }
    for (name, ..) in sinks {
        let written = || std::fs::read_to_string(path(name)).unwrap().contains("\"last\"");
        for _ in 0..500 {
            if written() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let shown = rows(&mut s, "SHOW CREATE SINK u").await;
    assert!(shown[0][1].ends_with("FORMAT UPSERT ENCODE JSON"), "{shown:?}");
    instance.close().await;
    for (name, _, from) in sinks {
        let n = queries.iter().position(|(relation, _)| *relation == from).unwrap();
        let contents: Vec<std::collections::BTreeSet<Vec<String>>> = replayed(&path(name))
            .iter()
            .map(|content| {
                let row = |text: &String| -> Vec<String> {
                    let row: serde_json::Value = serde_json::from_str(text).unwrap();
                    let columns = if from == "v" { ["g", "n", "m"] } else { ["k", "g", "v"] };
                    let text = |column: &&str| match &row[*column] {
                        serde_json::Value::Null => "NULL".to_string(),
                        serde_json::Value::String(text) => text.clone(),
                        other => other.to_string(),
                    };
                    columns.iter().map(text).collect()
                };
                content.values().map(row).collect()
            })
            .collect();
        assert_eq!(contents, seen[n], "sink {name}");
        assert!(contents.len() > 20, "{} epochs with changes", contents.len());
    }
    let debezium = std::fs::read_to_string(path("td")).unwrap();
    assert_eq!(debezium.matches("\"op\":\"r\"").count(), 60);
    assert!(debezium.contains("\"relation\":\"public.t\"") && debezium.contains("\"op\":\"u\""), "{debezium}");
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_that_do_not_fit_are_refused_where_they_stand() {
    let folder = scratch();
    let instance = Instance::open(&folder.path().join("data"), 1, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, g int)").await;
    let out = folder.path().join("out").display().to_string();
    let create = |from: &str, options: &str, form: &str| {
        format!("CREATE SINK s {from} WITH (connector = 'file', path = '{out}'{options}) {form}")
    };
    for (statement, state, at, hint) in [
        (create("FROM t", "", "FORMAT DEBEZIUM ENCODE CSV"), "0A000", "FORMAT", "Use FORMAT DEBEZIUM ENCODE JSON."),
        (create("FROM t", "", "FORMAT UPSERT ENCODE AVRO"), "0A000", "FORMAT", "Use FORMAT UPSERT ENCODE JSON | CSV."),
        (create("FROM t", "", "FORMAT MAXWELL ENCODE JSON"), "42601", "MAXWELL", "FORMAT UPSERT or FORMAT DEBEZIUM"),
        (
            "CREATE SOURCE s (k int) WITH (connector = 'file', path = 'x') FORMAT UPSERT ENCODE JSON".into(),
            "0A000",
            "FORMAT",
            "Use FORMAT PLAIN.",
        ),
        (
            "CREATE SINK s FROM t WITH (connector = 'blackhole') FORMAT PLAIN ENCODE JSON".into(),
            "0A000",
            "FORMAT",
            "Leave the clause out.",
        ),
        (create("AS SELECT g FROM t", "", "FORMAT UPSERT ENCODE JSON"), "22023", "", "group by"),
        (create("FROM t", ", primary_key = 'g'", "FORMAT UPSERT ENCODE JSON"), "22023", "", "primary_key = 'k'"),
        (create("FROM t", ", primary_key = 'gg'", "FORMAT UPSERT ENCODE JSON"), "42703", "", "\"g\""),
        (create("FROM t", ", mode = 'changes'", "FORMAT UPSERT ENCODE JSON"), "22023", "", "Leave the option out"),
        (create("FROM t", ", primary_key = 'k'", "FORMAT PLAIN ENCODE JSON"), "22023", "", "FORMAT UPSERT"),
    ] {
        let e = run(&mut s, &statement).await.err().unwrap_or_else(|| panic!("{statement} succeeded"));
        assert_eq!(e.state().code(), state, "{statement}: {e}");
        assert!(e.hint().is_some_and(|h| h.contains(hint)), "{statement}: {e} {:?}", e.hint());
        let position = if at.is_empty() { None } else { statement.find(at).map(|n| n + 1) };
        assert_eq!(e.position(), position, "{statement}: {e}");
    }
    // A longer key than is needed is one too.
    ok(&mut s, &create("FROM t", ", primary_key = 'g, k'", "FORMAT UPSERT ENCODE CSV")).await;
    instance.close().await;
}

async fn source_status(session: &mut coord::Session, name: &str) -> String {
    rows(session, &format!("SHOW SOURCES LIKE '{name}'")).await[0][3].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_source_stands_still_over_restarts_and_others_go_on() {
    let folder = scratch();
    let path = |name: &str| folder.path().join(name);
    let append = |name: &str, line: &str| {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path(name)).unwrap();
        writeln!(file, "{line}").unwrap();
    };
    let instance = Instance::open(&path("data"), 2, 8192);
    let mut s = instance.session();
    for name in ["a", "b"] {
        append(name, "1,2026-01-01 00:00:01");
        append(name, "2,2026-01-01 00:00:02");
        let create = format!(
            "CREATE SOURCE {name} (k int, ts timestamp, WATERMARK FOR ts AS ts) WITH (connector = 'file', path = '{}', \
             format = 'csv', follow = 'true', poll_interval = '5ms')",
            path(name).display()
        );
        ok(&mut s, &create).await;
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW v{name} AS SELECT count(*) AS n FROM {name}")).await;
        wait_for(&mut s, &format!("SELECT n FROM v{name}"), "2").await;
    }
    ok(&mut s, "ALTER SOURCE a PAUSE").await;
    ok(&mut s, "ALTER SOURCE a PAUSE").await;
    assert_eq!(
        (source_status(&mut s, "a").await, source_status(&mut s, "b").await),
        ("paused".into(), "running".into())
    );
    append("a", "3,2026-01-01 00:00:03");
    append("b", "3,2026-01-01 00:00:03");
    wait_for(&mut s, "SELECT n FROM vb", "3").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(rows(&mut s, "SELECT n FROM va").await, [["2"]]);
    // Who comes now sees what the others see.
    ok(&mut s, "CREATE MATERIALIZED VIEW late AS SELECT max(k) AS k FROM a").await;
    assert_eq!(rows(&mut s, "SELECT k FROM late").await, [["2"]]);
    assert_eq!(rows(&mut s, "SELECT count(*) FROM a").await, [["2"]]);
    let lines: Vec<String> = rows(&mut s, "EXPLAIN WATERMARK va").await.into_iter().flatten().collect();
    assert!(lines.iter().any(|l| l.contains("the source is paused")), "{lines:?}");
    assert!(lines.iter().any(|l| l.trim() == "fix: ALTER SOURCE public.a RESUME"), "{lines:?}");
    assert!(lines.iter().any(|l| l.contains("split") && l.contains(": paused,")), "{lines:?}");
    instance.close().await;
    // Views are made again from their sources: up to where a source was paused.
    let instance = Instance::open(&path("data"), 1, 8192);
    let mut s = instance.session();
    wait_for(&mut s, "SELECT n FROM vb", "3").await;
    wait_for(&mut s, "SELECT n FROM va", "2").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(rows(&mut s, "SELECT n FROM va").await, [["2"]]);
    assert_eq!(source_status(&mut s, "a").await, "paused");
    // What can fail leaves everything as it is.
    for (statement, state) in [
        ("BEGIN; ALTER SOURCE b PAUSE", "25001"),
        ("ALTER SOURCE nothing PAUSE", "42P01"),
        ("ALTER SOURCE va PAUSE", "42809"),
        ("ALTER MATERIALIZED VIEW va PAUSE", "0A000"),
        ("ALTER TABLE va RESUME", "0A000"),
        ("ALTER SOURCE b PAUSE, RESUME", "42601"),
        ("ALTER SOURCE b SET (path = 'x')", "0A000"),
        ("ALTER SOURCE b RESET (path)", "0A000"),
    ] {
        assert_eq!(state_of(&mut s, statement).await, state, "{statement}");
        let _ = run(&mut s, "ROLLBACK").await;
    }
    ok(&mut s, "ALTER SOURCE IF EXISTS nothing PAUSE").await;
    append("b", "4,2026-01-01 00:00:04");
    wait_for(&mut s, "SELECT n FROM vb", "4").await;
    // A cancelled PAUSE has happened or not, and RESUME finds it either way.
    for polls in 1..8 {
        let mut cancelled = instance.session();
        {
            let mut pause = Box::pin(run(&mut cancelled, "ALTER SOURCE b PAUSE"));
            for _ in 0..polls {
                if futures::poll!(&mut pause).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        drop(cancelled);
        ok(&mut s, "ALTER SOURCE b RESUME").await;
        append("b", &format!("{},2026-01-01 00:00:05", 4 + polls));
        wait_for(&mut s, "SELECT n FROM vb", &(4 + polls).to_string()).await;
    }
    ok(&mut s, "ALTER SOURCE a RESUME").await;
    wait_for(&mut s, "SELECT n FROM va", "3").await;
    wait_for(&mut s, "SELECT k FROM late", "3").await;
    instance.close().await;
    let instance = Instance::open(&path("data"), 1, 8192);
    let mut s = instance.session();
    wait_for(&mut s, "SELECT n FROM va", "3").await;
    assert_eq!(source_status(&mut s, "a").await, "running");
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_has_ended_or_makes_its_rows_can_be_paused() {
    let folder = scratch();
    let instance = Instance::open(&folder.path().join("data"), 2, 8192);
    let mut s = instance.session();
    std::fs::write(folder.path().join("in.csv"), "1\n2\n3\n").unwrap();
    let file = format!(
        "CREATE SOURCE done (k int) WITH (connector = 'file', path = '{}', format = 'csv')",
        folder.path().join("in.csv").display()
    );
    ok(&mut s, &file).await;
    ok(&mut s, "CREATE SOURCE made (k int) WITH (connector = 'datagen', rate = 1000, splits = 3)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW d AS SELECT count(*) AS n FROM done").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m AS SELECT count(*) > 20 AS some FROM made").await;
    wait_for(&mut s, "SELECT n FROM d", "3").await;
    wait_for(&mut s, "SELECT some FROM m", "t").await;
    ok(&mut s, "ALTER SOURCE done PAUSE").await;
    ok(&mut s, "ALTER SOURCE made PAUSE").await;
    let count = "SELECT count(*) FROM made";
    let before = rows(&mut s, count).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rows(&mut s, count).await, before);
    // What would have become due in the pause does not come at once after it.
    ok(&mut s, "ALTER SOURCE made RESUME").await;
    ok(&mut s, "ALTER SOURCE made PAUSE").await;
    let after: i64 = rows(&mut s, count).await[0][0].parse().unwrap();
    let before: i64 = before[0][0].parse().unwrap();
    assert!(after - before < 250, "{before} rows before a short resumption, {after} after it");
    assert_eq!(source_status(&mut s, "done").await, "ended");
    instance.close().await;
    let instance = Instance::open(&folder.path().join("data"), 2, 8192);
    let mut s = instance.session();
    wait_for(&mut s, "SELECT n FROM d", "3").await;
    wait_for(&mut s, count, &after.to_string()).await;
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_holds_for_every_moment_and_can_be_changed() {
    let folder = scratch();
    let instance = Instance::open(&folder.path().join("data"), 2, 8192);
    let mut s = instance.session();
    let input = folder.path().join("in.csv");
    std::fs::write(&input, (0..1_000_000).map(|n| format!("{n}\n")).collect::<String>()).unwrap();
    let create = |rate: &str| {
        let input = input.display();
        format!(
            "CREATE SOURCE f (k int) WITH (connector = 'file', path = '{input}', format = 'csv', rate_limit = '{rate}')"
        )
    };
    for wrong in ["0", "-1", "fast", "", "1000000001"] {
        assert_eq!(state_of(&mut s, &create(wrong)).await, "22023", "{wrong}");
    }
    ok(&mut s, &create("2000")).await;
    assert!(rows(&mut s, "SHOW CREATE SOURCE f").await[0][1].contains("rate_limit = '2000'"));
    let read = |rows: Vec<Vec<String>>| rows[0][4].parse::<f64>().unwrap();
    let time = coord::Time::system();
    let start_us = time.now_us();
    let elapsed = || (time.now_us() - start_us) as f64 / 1e6;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM f").await;
    let (mut last, mut steps) = (0.0, 0);
    while elapsed() < 1.0 {
        let rows = read(rows(&mut s, "SHOW SOURCES").await);
        let most = elapsed() * 2_000.0 + 1.0;
        assert!(rows <= most, "{rows} rows after {} s", elapsed());
        steps += u32::from(rows > last);
        last = rows;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(last > 500.0 && steps > 5, "{last} rows in {steps} steps");
    assert_eq!(state_of(&mut s, "ALTER SOURCE f SET (rate_limit = 'much')").await, "22023");
    for (mistyped, meant) in [("rate_limt", "rate_limit"), ("idle_timout", "idle_timeout"), ("pth", "path")] {
        let file = input.display();
        let create = format!(
            "CREATE SOURCE g (k int) WITH (connector = 'file', path = '{file}', format = 'csv', {mistyped} = '5')"
        );
        let e = run(&mut s, &create).await.err().unwrap();
        assert_eq!(e.hint(), Some(format!("Perhaps you meant \"{meant}\".").as_str()), "{e}");
    }
    ok(&mut s, "ALTER SOURCE f SET (rate_limit = 4000)").await;
    assert!(rows(&mut s, "SHOW CREATE SOURCE f").await[0][1].contains("rate_limit = '4000'"));
    ok(&mut s, "ALTER SOURCE f RESET (rate_limit)").await;
    assert!(!rows(&mut s, "SHOW CREATE SOURCE f").await[0][1].contains("rate_limit"));
    instance.engine.wait_bounded().await.unwrap();
    assert_eq!(rows(&mut s, "SELECT n FROM n").await, [["1000000"]]);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn included_columns_are_ordinary_columns() {
    let folder = scratch();
    let input = folder.path().join("in.csv");
    std::fs::write(&input, "k,t\n1,2026-01-01 00:00:01\nx,bad\n2,2026-01-01 00:00:02\n").unwrap();
    let input = input.display().to_string();
    let instance = Instance::open(&folder.path().join("data"), 2, 8192);
    let mut s = instance.session();
    let with = format!("WITH (connector = 'file', path = '{input}', format = 'csv', header = 'true')");
    let create = format!(
        "CREATE SOURCE f (k int, t timestamp, WATERMARK FOR t AS t) INCLUDE offset INCLUDE file AS \"From\" {with}"
    );
    ok(&mut s, &create).await;
    ok(&mut s, "CREATE MATERIALIZED VIEW v AS SELECT k, _offset FROM f WHERE _offset > 10").await;
    instance.engine.wait_bounded().await.unwrap();
    assert_eq!(rows(&mut s, "SELECT * FROM v").await, [["2", "32"]]);
    let all = rows(&mut s, "SELECT * FROM f ORDER BY k").await;
    assert_eq!(all[0], ["1", "2026-01-01 00:00:01", "4", &input]);
    assert_eq!(rows(&mut s, "SELECT position FROM \"f$errors\"").await, [["26"]]);
    let columns = rows(&mut s, "SHOW COLUMNS FROM f").await;
    let columns: Vec<&[String]> = columns.iter().map(|c| &c[..3]).collect();
    assert_eq!(columns[2..], [["_offset", "bigint", "no"], ["From", "text", "no"]]);
    // SHOW CREATE gives what makes it again.
    let shown = rows(&mut s, "SHOW CREATE SOURCE f").await[0][1].clone();
    assert!(shown.contains("INCLUDE offset AS _offset INCLUDE file AS \"From\" WITH ("), "{shown}");
    ok(&mut s, &shown.replace("public.f", "again")).await;
    assert_eq!(rows(&mut s, "SELECT * FROM again ORDER BY k").await, all);
    // Columns can be inferred, and a restart changes nothing.
    ok(&mut s, &format!("CREATE SOURCE guessed INCLUDE partition {with}")).await;
    let guessed = "SELECT k, _partition FROM guessed ORDER BY _partition, k LIMIT 1";
    assert_eq!(rows(&mut s, guessed).await, [["1", &input]]);
    instance.close().await;
    let instance = Instance::open(&folder.path().join("data"), 1, 8192);
    let mut s = instance.session();
    instance.engine.wait_bounded().await.unwrap();
    wait_for(&mut s, "SELECT _offset FROM v", "32").await;
    for (include, state, at) in [
        ("INCLUDE line", "42704", "line"),
        ("INCLUDE timestamp AS ts", "42704", "timestamp"),
        ("INCLUDE offset AS k", "42701", "offset"),
        ("INCLUDE offset INCLUDE offset", "42701", "offset WITH"),
        ("INCLUDE", "0A000", "WITH"),
    ] {
        let statement = format!("CREATE SOURCE bad (k int) {include} {with}");
        let e = run(&mut s, &statement).await.err().unwrap_or_else(|| panic!("{statement} succeeded"));
        if include == "INCLUDE" {
            assert_eq!(e.state().code(), "42601", "{statement}: {e}");
            continue;
        }
        assert_eq!((e.state().code(), e.position()), (state, statement.find(at).map(|n| n + 1)), "{statement}: {e}");
    }
    let e = run(&mut s, "CREATE SOURCE bad (k int) INCLUDE file WITH (connector = 'datagen')").await.err().unwrap();
    assert_eq!(e.detail(), Some("It can include: partition, offset."));
    instance.close().await;
}

/// Threads of this process that read splits of this source.
fn reading_threads(source: RelationId) -> usize {
    let names = std::fs::read_dir("/proc/self/task").unwrap();
    let names = names.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with(&format!("read-{source}-"))).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn splits_are_read_side_by_side_as_if_one_thread_read_them() {
    let folder = scratch();
    let instance = Instance::open(&folder.path().join("data"), 3, 8192);
    let mut s = instance.session();
    for splits in [1, 4] {
        let create = format!(
            "CREATE SOURCE s{splits} (k bigint, v bigint, ts timestamp, WATERMARK FOR ts AS ts - INTERVAL '1 hour') WITH \
             (connector = 'datagen', rows = 600000, splits = {splits}, fields.k.kind = 'sequence', fields.v.max = 1000)"
        );
        ok(&mut s, &create).await;
    }
    let view =
        |name: &str, column: &str| format!("CREATE MATERIALIZED VIEW {name} AS SELECT sum({column}) AS n FROM s4");
    ok(&mut s, &view("first", "k")).await;
    assert_eq!(reading_threads(instance.oid("s1")), 0);
    // What one wants who comes now was not read ahead; what is paused is not handed on.
    ok(&mut s, &view("second", "v")).await;
    ok(&mut s, "ALTER SOURCE s4 PAUSE").await;
    let counts = "SELECT count(*), sum(k), sum(v) FROM s4";
    let held = rows(&mut s, counts).await;
    if source_status(&mut s, "s4").await == "paused" {
        assert_eq!(reading_threads(instance.oid("s4")), 3);
    }
    ok(&mut s, &view("third", "k + v")).await;
    assert_eq!(rows(&mut s, counts).await, held);
    ok(&mut s, "ALTER SOURCE s4 SET (rate_limit = 100000)").await;
    ok(&mut s, "ALTER SOURCE s4 RESUME").await;
    ok(&mut s, "ALTER SOURCE s4 RESET (rate_limit)").await;
    instance.engine.wait_bounded().await.unwrap();
    let whole = rows(&mut s, "SELECT sum(k), sum(v), sum(k + v) FROM s1").await;
    assert_eq!(rows(&mut s, "SELECT f.n, s.n, t.n FROM first f, second s, third t").await, whole);
    assert_eq!(rows(&mut s, "SELECT count(*) FROM \"s4$late\"").await, [["0"]]);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_that_was_read_ahead_stops_the_source_in_its_turn() {
    let folder = scratch();
    for n in 0..4 {
        let mut text: String = (0..40_000).map(|row| format!("{}\n", n * 40_000 + row)).collect();
        if n == 2 {
            text.push_str("many\n");
        }
        std::fs::write(folder.path().join(format!("part-{n}.csv")), text).unwrap();
    }
    let instance = Instance::open(&folder.path().join("data"), 2, 8192);
    let mut s = instance.session();
    let path = folder.path().join("part-*.csv").display().to_string();
    let create = format!(
        "CREATE SOURCE f (k bigint) WITH (connector = 'file', path = '{path}', format = 'csv', on_error = 'stop')"
    );
    ok(&mut s, &create).await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM f").await;
    let mut failed = None;
    for _ in 0..1000 {
        failed = run(&mut s, "SELECT n FROM n").await.err();
        if failed.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let e = failed.expect("the view goes on");
    assert_eq!(source_status(&mut s, "f").await, "failed");
    let told = format!("{e} {:?}", e.detail());
    assert!(told.contains("part-2.csv") && told.contains("40001"), "{told}");
    instance.close().await;
}
