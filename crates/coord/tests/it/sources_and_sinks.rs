//! File sources and sinks, and sinks into tables.

use std::io::Write;
use std::sync::Arc;
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
