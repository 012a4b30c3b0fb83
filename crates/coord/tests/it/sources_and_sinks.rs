//! File sources and sinks, and sinks into tables.

use std::io::Write;
use std::time::Duration;

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
    let queries = [("v", "SELECT g, n, m FROM v"), ("t", "SELECT k, g, v FROM t")];
    let mut seen: Vec<Vec<std::collections::BTreeSet<Vec<String>>>> = vec![Vec::new(); queries.len()];
    for step in 0..60 {
        for ((_, query), seen) in queries.iter().zip(&mut seen) {
            let content = rows(&mut s, query).await.into_iter().collect();
            if seen.last() != Some(&content) {
                seen.push(content);
            }
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
