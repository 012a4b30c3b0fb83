//! What survives a restart.

use flow::SqlState;

use crate::harness::{Instance, ok, rows, run, scratch, state_of};

#[tokio::test(flavor = "multi_thread")]
async fn catalog_rows_and_views_are_there_after_a_restart() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v text DEFAULT 'none', n numeric(10,2))").await;
    ok(&mut s, "CREATE TABLE bag (x int)").await;
    ok(&mut s, "INSERT INTO t VALUES (1, 'a', 1.5), (2, 'b', 2.5)").await;
    ok(&mut s, "INSERT INTO t (k) VALUES (3)").await;
    ok(&mut s, "UPDATE t SET v = 'c' WHERE k = 2").await;
    ok(&mut s, "DELETE FROM t WHERE k = 1").await;
    ok(&mut s, "INSERT INTO bag VALUES (7), (7), (NULL)").await;
    ok(&mut s, "CREATE VIEW plain AS SELECT v, count(*) AS n FROM t GROUP BY v").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m AS SELECT v, n * 2 AS n2 FROM plain").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m2 AS SELECT sum(n2) AS s FROM m").await;
    ok(&mut s, "ALTER TABLE t RENAME TO renamed").await;
    ok(&mut s, "BEGIN; INSERT INTO bag VALUES (100); ROLLBACK").await;
    ok(&mut s, "BEGIN; INSERT INTO bag VALUES (8); INSERT INTO renamed VALUES (9, 'z', 0); COMMIT").await;
    instance.close().await;

    for _ in 0..2 {
        let instance = Instance::open(folder.path(), 3, 32);
        let mut s = instance.session();
        assert_eq!(
            rows(&mut s, "SELECT * FROM renamed ORDER BY k").await,
            [["2", "c", "2.50"], ["3", "none", "NULL"], ["9", "z", "0.00"]]
        );
        assert_eq!(rows(&mut s, "SELECT x FROM bag ORDER BY x").await, [["7"], ["7"], ["8"], ["NULL"]]);
        assert_eq!(rows(&mut s, "SELECT * FROM m ORDER BY v").await, [["c", "2"], ["none", "2"], ["z", "2"]]);
        assert_eq!(rows(&mut s, "SELECT s FROM m2").await, [["6"]]);
        assert_eq!(state_of(&mut s, "INSERT INTO renamed VALUES (2, 'again', 0)").await, "23505");
        instance.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_reads_its_own_writes_through_three_views() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW a AS SELECT v, count(*) AS n FROM t GROUP BY v").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW b AS SELECT sum(n) AS n FROM a").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW c AS SELECT n + 1 AS n FROM b").await;
    for i in 1..=200 {
        ok(&mut s, &format!("INSERT INTO t VALUES ({i}, {})", i % 7)).await;
        assert_eq!(rows(&mut s, "SELECT n FROM c").await, [[(i + 1).to_string()]]);
    }
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_data_directory_has_one_owner() {
    let folder = scratch();
    let first = Instance::open(folder.path(), 1, 8192);
    let config = first.engine.config.clone();
    let refused = coord::Engine::open(config).err().unwrap();
    assert_eq!(refused.state(), SqlState::ObjectInUse);
    first.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_statement_changes_nothing() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v int NOT NULL)").await;
    ok(&mut s, "INSERT INTO t VALUES (1, 10), (2, 20)").await;
    for (statement, state) in [
        ("INSERT INTO t VALUES (3, 30), (1, 0)", "23505"),
        ("INSERT INTO t VALUES (3, 30), (3, 31)", "23505"),
        ("INSERT INTO t VALUES (4, NULL)", "23502"),
        ("UPDATE t SET v = v / (k - 1)", "22012"),
        ("UPDATE t SET v = 2147483647 + v", "22003"),
        ("UPDATE t SET k = 5", "23505"),
        ("INSERT INTO t VALUES ('x', 1)", "22P02"),
        ("DELETE FROM t WHERE 1 / (k - 2) > 0", "22012"),
    ] {
        assert_eq!(state_of(&mut s, statement).await, state, "{statement}");
        assert_eq!(rows(&mut s, "SELECT k, v FROM t ORDER BY k").await, [["1", "10"], ["2", "20"]], "{statement}");
    }
    // Keys may move among themselves within one statement.
    ok(&mut s, "UPDATE t SET k = 3 - k").await;
    assert_eq!(rows(&mut s, "SELECT k, v FROM t ORDER BY k").await, [["1", "20"], ["2", "10"]]);
    ok(&mut s, "BEGIN").await;
    ok(&mut s, "INSERT INTO t VALUES (7, 7)").await;
    assert_eq!(rows(&mut s, "SELECT count(*) FROM t").await, [["3"]]);
    assert!(run(&mut s, "SELECT 1/0").await.is_err());
    assert_eq!(state_of(&mut s, "SELECT 1").await, "25P02");
    ok(&mut s, "COMMIT").await;
    assert_eq!(rows(&mut s, "SELECT count(*) FROM t").await, [["2"]]);
    instance.close().await;
}

/// A stored definition is text; what it relies on must be found again from the text.
#[tokio::test(flavor = "multi_thread")]
async fn definitions_are_planned_again_as_they_were() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE k (id int PRIMARY KEY, name text)").await;
    ok(&mut s, "CREATE TABLE m (id int, y int)").await;
    ok(&mut s, "INSERT INTO k VALUES (1, 'one'), (2, 'two')").await;
    ok(&mut s, "INSERT INTO m VALUES (1, 5), (1, 6)").await;
    // A key that the grouping relies on, and signs that would begin a comment.
    ok(
        &mut s,
        "CREATE MATERIALIZED VIEW by_key AS SELECT k.id, k.name, sum(m.y) AS s FROM k LEFT JOIN m ON k.id = m.id GROUP BY k.id",
    )
    .await;
    ok(&mut s, "CREATE MATERIALIZED VIEW signs AS SELECT - -id AS a, - (-3) AS b, -(- -id) AS c FROM k").await;
    instance.close().await;

    let instance = Instance::open(folder.path(), 1, 8192);
    let mut s = instance.session();
    assert_eq!(rows(&mut s, "SELECT * FROM by_key ORDER BY id").await, [["1", "one", "11"], ["2", "two", "NULL"]]);
    assert_eq!(rows(&mut s, "SELECT * FROM signs ORDER BY a").await, [["1", "3", "-1"], ["2", "3", "-2"]]);
    instance.close().await;
}
