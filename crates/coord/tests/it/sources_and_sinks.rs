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
