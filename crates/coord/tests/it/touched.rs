//! One changed row costs work in proportion to the change, whatever is stored: the rows of state that a view's operators
//! touch are the same over a small and a large table.

use std::collections::BTreeMap;

use crate::harness::{Instance, ok, rows, scratch};

/// Standing queries by name, together with every kind of operator. `t` has one group (`hot`) that holds all of its rows.
const VIEWS: [(&str, &str); 16] = [
    ("projected", "SELECT k + 1 AS k, v FROM t WHERE v % 2 = 0"),
    ("united", "SELECT k FROM t UNION ALL SELECT g FROM d"),
    ("once", "SELECT DISTINCT g FROM t"),
    ("grouped", "SELECT g, count(*) AS n, sum(v) AS s, avg(v) AS a, max(v) AS top FROM t GROUP BY g"),
    ("apart", "SELECT g, count(DISTINCT v) AS n FROM t GROUP BY g"),
    ("total", "SELECT count(*) AS n, min(v) AS low, max(v) AS top, sum(v) AS s FROM t"),
    ("big_group", "SELECT hot, min(v) AS low, max(v) AS top, count(DISTINCT v) AS n FROM t GROUP BY hot"),
    ("joined", "SELECT t.k, d.name FROM t JOIN d ON t.g = d.g"),
    ("outer_joined", "SELECT t.k, d.name FROM t LEFT JOIN d ON t.g = d.g AND t.v > 10"),
    ("full_joined", "SELECT t.k, d.g FROM t FULL JOIN d ON t.g = d.g"),
    // All of `t` has the one key; the change matches one row of the other side.
    ("skewed", "SELECT t.k, h.name FROM t JOIN h ON t.hot = h.hot"),
    ("present", "SELECT d.g FROM d WHERE EXISTS (SELECT 1 FROM t WHERE t.g = d.g)"),
    ("absent", "SELECT d.g FROM d WHERE d.g NOT IN (SELECT t.g FROM t)"),
    ("first_rows", "SELECT k, v FROM t ORDER BY v DESC, k LIMIT 5"),
    (
        "first_of_each",
        "SELECT g, k FROM (SELECT g, k, row_number() OVER (PARTITION BY g ORDER BY v DESC, k) AS r FROM t) AS x WHERE r <= 2",
    ),
    ("on_a_view", "SELECT n, count(*) AS groups, max(top) AS top FROM grouped GROUP BY n ORDER BY n DESC LIMIT 3"),
];

/// Rows touched by each view for an insertion, an update and a deletion of one row.
async fn touched(size: usize) -> BTreeMap<&'static str, [u64; 3]> {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, g int, hot int, v int)").await;
    ok(&mut s, "CREATE TABLE d (g int PRIMARY KEY, name text)").await;
    ok(&mut s, "CREATE TABLE h (hot int PRIMARY KEY, name text)").await;
    ok(&mut s, "INSERT INTO d SELECT x::int, 'n' FROM generate_series(0, 199) AS x").await;
    ok(&mut s, "INSERT INTO h VALUES (1, 'all of them')").await;
    let fill = format!(
        "INSERT INTO t SELECT x::int, (x % {})::int, 1, (x * 7 % 1000)::int FROM generate_series(1, {size}) AS x",
        size / 5
    );
    ok(&mut s, &fill).await;
    for (name, sql) in VIEWS {
        ok(&mut s, &format!("CREATE MATERIALIZED VIEW {name} AS {sql}")).await;
    }
    ok(&mut s, "FLUSH").await;
    let count = |name: &str| {
        let catalog = instance.engine.catalog();
        let oid = catalog.relation_named("dev", "public", name).unwrap().oid;
        let deployment = instance.engine.clock.board.status(oid).unwrap().deployment;
        instance.engine.worker.shared().unwrap().rows_touched(deployment)
    };
    let mut found: BTreeMap<&str, [u64; 3]> = VIEWS.iter().map(|(name, _)| (*name, [0; 3])).collect();
    let changes =
        ["INSERT INTO t VALUES (-1, 5, 1, 500)", "UPDATE t SET v = 502 WHERE k = -1", "DELETE FROM t WHERE k = -1"];
    for (n, change) in changes.into_iter().enumerate() {
        let before: BTreeMap<&str, u64> = VIEWS.iter().map(|(name, _)| (*name, count(name))).collect();
        ok(&mut s, change).await;
        ok(&mut s, "FLUSH").await;
        for (name, touched) in &mut found {
            touched[n] = count(name) - before[name];
        }
    }
    assert_eq!(rows(&mut s, "SELECT count(*) FROM t").await, [[size.to_string()]]);
    instance.close().await;
    found
}

#[test]
fn one_changed_row_costs_work_in_proportion_to_the_change() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(16 << 20).build().unwrap();
    let of = |size| runtime.block_on(async move { tokio::spawn(touched(size)).await.unwrap() });
    let (small, large) = (of(1_000), of(40_000));
    for (name, large) in &large {
        for (small, large) in small[name].iter().zip(large) {
            assert!(*large <= small * 2 + 8 && *large <= 60, "{name}: {small} rows of 1,000, {large} rows of 40,000");
        }
    }
    let stateless = ["projected", "united"];
    assert!(large.iter().all(|(name, touched)| stateless.contains(name) || touched[0] > 0), "{large:?}");
}
