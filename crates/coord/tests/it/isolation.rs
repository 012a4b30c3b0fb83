//! One job's trouble is its own.

use crate::harness::{Instance, ok, rows, run, scratch, state_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_view_stopped_by_an_error_says_why_and_others_go_on() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW good AS SELECT sum(v) AS s FROM t").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW bad AS SELECT k, 100 / v AS q FROM t").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW worse AS SELECT count(*) AS n FROM bad").await;
    ok(&mut s, "INSERT INTO t VALUES (1, 5)").await;
    assert_eq!(rows(&mut s, "SELECT q FROM bad").await, [["20"]]);
    ok(&mut s, "INSERT INTO t VALUES (2, 0)").await;
    ok(&mut s, "FLUSH").await;
    let error = run(&mut s, "SELECT * FROM bad").await.err().unwrap();
    assert_eq!(error.state().code(), "55000");
    assert!(error.detail().unwrap().contains("division by zero"), "{error}");
    assert_eq!(state_of(&mut s, "SELECT * FROM worse").await, "55000");
    ok(&mut s, "INSERT INTO t VALUES (3, 7)").await;
    assert_eq!(rows(&mut s, "SELECT s FROM good").await, [["12"]]);
    let jobs = rows(&mut s, "SHOW JOBS").await;
    let bad = jobs.iter().find(|j| j[1] == "public.bad").unwrap();
    assert_eq!((bad[3].as_str(), bad[7].as_str()), ("failed", "22012"));
    // The way out that the hint names.
    ok(&mut s, "DELETE FROM t WHERE v = 0").await;
    ok(&mut s, "DROP MATERIALIZED VIEW bad CASCADE").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW bad AS SELECT k, 100 / v AS q FROM t").await;
    assert_eq!(rows(&mut s, "SELECT q FROM bad ORDER BY k").await, [["20"], ["14"]]);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_limit_ends_the_job_that_grows_and_not_the_process() {
    let folder = scratch();
    let instance = Instance::with_memory(folder.path(), 2, 8192, 48 << 20);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW small AS SELECT count(*) AS n FROM t").await;
    ok(&mut s, "INSERT INTO t SELECT x::int, 1 FROM generate_series(1, 3000) AS x").await;
    // Nine million rows do not fit into what is left.
    let error =
        run(&mut s, "CREATE MATERIALIZED VIEW big AS SELECT a.k AS a, b.k AS b FROM t a JOIN t b ON a.v = b.v").await;
    assert_eq!(error.err().unwrap().state().code(), "55000");
    let jobs = rows(&mut s, "SHOW JOBS").await;
    let big = jobs.iter().find(|j| j[1] == "public.big").unwrap();
    assert_eq!((big[3].as_str(), big[7].as_str()), ("failed", "53200"), "{jobs:?}");
    ok(&mut s, "INSERT INTO t VALUES (-1, 2)").await;
    assert_eq!(rows(&mut s, "SELECT n FROM small").await, [["3001"]]);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_created_online_while_rows_arrive() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 3, 32);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, g int)").await;
    ok(&mut s, "INSERT INTO t SELECT x::int, (x % 10)::int FROM generate_series(1, 50000) AS x").await;
    let mut writer = instance.session();
    let writing = tokio::spawn(async move {
        for i in 0..200 {
            ok(&mut writer, &format!("INSERT INTO t VALUES ({}, {})", 100_000 + i, i % 10)).await;
            if i % 3 == 0 {
                ok(&mut writer, &format!("DELETE FROM t WHERE k = {}", 1 + i * 7)).await;
            }
        }
        writer
    });
    for n in 0..5 {
        ok(
            &mut s,
            &format!("CREATE MATERIALIZED VIEW v{n} AS SELECT g, count(*) AS n, min(k) AS low FROM t GROUP BY g"),
        )
        .await;
    }
    drop(writing.await.unwrap());
    ok(&mut s, "FLUSH").await;
    let expected = rows(&mut s, "SELECT g, count(*) AS n, min(k) AS low FROM t GROUP BY g ORDER BY g").await;
    for n in 0..5 {
        assert_eq!(rows(&mut s, &format!("SELECT * FROM v{n} ORDER BY g")).await, expected);
    }
    instance.close().await;
}
