//! Jobs that move to another number of slots while rows come and go and are read.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coord::Session;
use coord::execution::Threads;
use flow::SqlState;

use crate::checkpoints::published;
use crate::harness::{Instance, Rng, config, keeping, ok, rows, run, scratch, seed};

const SLOTS: usize = 4;

fn open(folder: &Path, slots: usize) -> Instance {
    Instance::with(keeping(folder, slots, 64), Arc::new(Threads::default()))
}

/// Status and parallelism of a job.
async fn job(s: &mut Session, name: &str) -> [String; 2] {
    let jobs = rows(s, "SHOW JOBS").await;
    let job = jobs.iter().find(|row| row[1].ends_with(name)).unwrap_or_else(|| panic!("no job {name}"));
    [job[3].clone(), job[9].clone()]
}

/// A view of every kind of state, some over others; each with its query.
const VIEWS: [(&str, &str); 8] = [
    ("sums", "SELECT k, count(*) AS n, sum(v) AS s, count(DISTINCT v) AS d, max(v) AS m FROM t GROUP BY k"),
    ("plain", "SELECT k, v FROM t WHERE v % 3 > 0"),
    ("joined", "SELECT t.k, t.v, u.w FROM t LEFT JOIN u ON t.k = u.k"),
    (
        "top",
        "SELECT k, v FROM (SELECT k, v, row_number() OVER (PARTITION BY k ORDER BY v DESC, id) AS r FROM t) WHERE r <= 2",
    ),
    ("total", "SELECT count(*) AS n, sum(s) AS s FROM sums"),
    ("by_n", "SELECT n, count(*) AS c, sum(s) AS s FROM sums GROUP BY n"),
    ("again", "SELECT s.k, s.n, p.v FROM sums s JOIN plain p ON s.k = p.k"),
    ("lonely", "SELECT k, w FROM u WHERE NOT EXISTS (SELECT 1 FROM sums WHERE sums.k = u.k AND n > 2)"),
];

async fn create_all(s: &mut Session) {
    ok(s, "CREATE TABLE t (id bigint PRIMARY KEY, k int, v int)").await;
    ok(s, "CREATE TABLE u (k int, w int)").await;
    for (name, query) in VIEWS {
        ok(s, &format!("CREATE MATERIALIZED VIEW {name} AS {query}")).await;
    }
}

async fn change(s: &mut Session, rng: &mut Rng, next: &mut usize) {
    let (k, v) = (rng.below(40), rng.below(50));
    let statement = match rng.below(6) {
        0 => format!("DELETE FROM t WHERE k = {k}"),
        1 => format!("UPDATE t SET v = v + 1 WHERE k = {k}"),
        2 => format!("INSERT INTO u VALUES ({k}, {v})"),
        3 => format!("DELETE FROM u WHERE k = {k}"),
        _ => {
            *next += 30;
            format!(
                "INSERT INTO t SELECT n, n % {}, n % 17 FROM generate_series({}, {}) AS g (n)",
                k + 1,
                *next - 29,
                next
            )
        }
    };
    ok(s, &statement).await;
}

/// Each view says what its query says.
async fn check(s: &mut Session, when: &str) {
    for (name, query) in VIEWS {
        let mut found = rows(s, &format!("SELECT * FROM {name}")).await;
        let mut expected = rows(s, query).await;
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{name} {when}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_the_same_at_any_parallelism() {
    let (folder, seed) = (scratch(), seed());
    let mut rng = Rng::new(seed);
    let mut instance = open(folder.path(), SLOTS);
    let mut s = instance.session();
    create_all(&mut s).await;
    let (mut next, mut slots) = (0, SLOTS);
    for step in 0..60 {
        change(&mut s, &mut rng, &mut next).await;
        let (name, _) = VIEWS[rng.below(VIEWS.len())];
        let wanted = 1 + rng.below(slots);
        let text = if rng.below(8) == 0 { "DEFAULT".to_string() } else { wanted.to_string() };
        ok(&mut s, &format!("ALTER MATERIALIZED VIEW {name} SET PARALLELISM {text}")).await;
        let expected = if text == "DEFAULT" { slots } else { wanted };
        assert_eq!(job(&mut s, &format!(".{name}")).await, ["running", &expected.to_string()]);
        change(&mut s, &mut rng, &mut next).await;
        check(&mut s, &format!("seed {seed} step {step}, after {name} went to {text}")).await;
        if rng.below(10) == 0 {
            drop(s);
            instance.close().await;
            slots = 1 + rng.below(SLOTS);
            instance = open(folder.path(), slots);
            s = instance.session();
            check(&mut s, &format!("seed {seed} step {step}, after a restart with {slots} slots")).await;
        }
    }
    drop(s);
    instance.close().await;
    // What was declared is kept, as far as there are slots.
    let instance = open(folder.path(), 2);
    let mut s = instance.session();
    ok(&mut s, "ALTER MATERIALIZED VIEW sums SET PARALLELISM TO 1").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW one WITH (parallelism = 1) AS SELECT k, count(*) AS n FROM t GROUP BY k")
        .await;
    drop(s);
    instance.close().await;
    let instance = open(folder.path(), 3);
    let mut s = instance.session();
    check(&mut s, "at the end").await;
    assert_eq!(job(&mut s, ".sums").await, ["running", "1"]);
    assert_eq!(job(&mut s, ".one").await, ["running", "1"]);
    let created = rows(&mut s, "SHOW CREATE MATERIALIZED VIEW one").await;
    assert!(created[0].iter().any(|text| text.contains("(parallelism = '1')")), "{created:?}");
    drop(s);
    instance.close().await;
}

/// Who reads or writes meanwhile sees one complete state of everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_and_writers_meanwhile_see_whole_epochs() {
    let folder = scratch();
    let instance = open(folder.path(), SLOTS);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint)").await;
    ok(&mut s, "INSERT INTO accounts SELECT n, 0 FROM generate_series(1, 100) AS g (n)").await;
    ok(
        &mut s,
        "CREATE MATERIALIZED VIEW balances AS SELECT id % 10 AS g, sum(balance) AS s FROM accounts GROUP BY id % 10",
    )
    .await;
    ok(&mut s, "CREATE MATERIALIZED VIEW total AS SELECT sum(s) AS total FROM balances").await;
    let ending = Arc::new(AtomicBool::new(false));
    let mut others = Vec::new();
    for n in 0..2u64 {
        let (mut s, ending) = (instance.session(), Arc::clone(&ending));
        others.push(tokio::spawn(async move {
            let (mut rng, mut written) = (Rng::new(n + 7), 0);
            while !ending.load(Ordering::Relaxed) {
                let (a, b, x) = (1 + rng.below(100), 1 + rng.below(100), rng.below(1000));
                ok(
                    &mut s,
                    &format!(
                        "BEGIN; UPDATE accounts SET balance = balance - {x} WHERE id = {a};
                         UPDATE accounts SET balance = balance + {x} WHERE id = {b}; COMMIT"
                    ),
                )
                .await;
                written += 1;
            }
            written
        }));
    }
    for _ in 0..2 {
        let (mut s, ending) = (instance.session(), Arc::clone(&ending));
        others.push(tokio::spawn(async move {
            let mut read = 0;
            while !ending.load(Ordering::Relaxed) {
                let query = "SELECT (SELECT total FROM total)::text, (SELECT sum(s) FROM balances)::text,
                    (SELECT sum(balance) FROM accounts)::text";
                assert_eq!(rows(&mut s, query).await, [["0", "0", "0"]]);
                read += 1;
            }
            read
        }));
    }
    for n in 0..30 {
        let view = if n % 3 == 0 { "total" } else { "balances" };
        ok(&mut s, &format!("ALTER MATERIALIZED VIEW {view} SET PARALLELISM = {}", 1 + (n * 7) % SLOTS)).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ending.store(true, Ordering::Relaxed);
    for other in others {
        assert!(other.await.unwrap() > 0);
    }
    drop(s);
    instance.close().await;
}

/// Who follows a view goes on following it.
#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_and_retained_changes_go_on() {
    let folder = scratch();
    let instance = open(folder.path(), SLOTS);
    let (mut s, mut follower) = (instance.session(), instance.session());
    ok(&mut s, "CREATE TABLE t (k int, v int)").await;
    ok(
        &mut s,
        "CREATE MATERIALIZED VIEW sums WITH (change_retention = '1 hour') AS SELECT k, sum(v) AS s FROM t GROUP BY k",
    )
    .await;
    ok(&mut s, "INSERT INTO t SELECT n, n FROM generate_series(1, 20) AS g (n)").await;
    ok(&mut follower, "BEGIN; DECLARE c CURSOR FOR SUBSCRIBE sums").await;
    let mut seen = BTreeSet::new();
    for (step, parallelism) in [1, 3, 2, 4].into_iter().enumerate() {
        ok(&mut s, &format!("ALTER MATERIALIZED VIEW sums SET PARALLELISM {parallelism}")).await;
        ok(&mut s, &format!("INSERT INTO t VALUES ({}, 1)", 100 + step)).await;
        for _ in 0..200 {
            for row in rows(&mut follower, "FETCH 1000 c").await {
                // A row that was there before is told once, and not taken back.
                assert!(seen.insert(row.clone()), "{row:?} again");
            }
            if seen.iter().any(|row| row.contains(&(100 + step).to_string())) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(seen.len(), 21 + step, "{seen:?}");
    }
    drop((s, follower));
    instance.close().await;
}

/// A sink that delivers exactly once does so over moves and restarts.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_moves_and_repeats_nothing() {
    let folder = scratch();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    let mut instance = open(&data, SLOTS);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (n bigint) APPEND ONLY").await;
    let sink = format!(
        "CREATE SINK o AS SELECT n, n % 7 AS m FROM t WITH (connector = 'file', path = '{}', delivery = 'exactly_once', parallelism = 2) FORMAT PLAIN ENCODE JSON",
        out.display()
    );
    ok(&mut s, &sink).await;
    while job(&mut s, ".o").await[0] != "running" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(job(&mut s, ".o").await[1], "2");
    for (step, parallelism) in [1, 4, 3, 1, 2].into_iter().enumerate() {
        let from = step * 1000;
        ok(&mut s, &format!("INSERT INTO t SELECT n FROM generate_series({}, {}) AS g (n)", from, from + 499)).await;
        ok(&mut s, &format!("ALTER SINK o SET PARALLELISM {parallelism}")).await;
        ok(&mut s, &format!("INSERT INTO t SELECT n FROM generate_series({}, {}) AS g (n)", from + 500, from + 999))
            .await;
        if step % 2 == 1 {
            drop(s);
            instance.close().await;
            instance = open(&data, SLOTS);
            s = instance.session();
            while job(&mut s, ".o").await[0] != "running" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(job(&mut s, ".o").await[1], parallelism.to_string());
        }
    }
    ok(&mut s, "FLUSH").await;
    ok(&mut s, "CHECKPOINT").await;
    let number = |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_u64().unwrap();
    let mut numbers: Vec<u64> = published(&out).iter().map(number).collect();
    numbers.sort();
    let twice: Vec<_> = numbers.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "{} come twice", twice.len());
    assert_eq!((numbers.len(), numbers.last()), (5000, Some(&4999)));
    drop(s);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_move_says_why() {
    let folder = scratch();
    let instance = open(&folder.path().join("a"), 2);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int, v int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW sums AS SELECT k, sum(v) AS s FROM t GROUP BY k").await;
    let file = folder.path().join("b.json");
    ok(
        &mut s,
        &format!("CREATE SINK b FROM sums WITH (connector = 'file', path = '{}', format = 'json')", file.display()),
    )
    .await;
    for (statement, state, text) in [
        ("ALTER MATERIALIZED VIEW sums SET PARALLELISM 3", SqlState::ConfigurationLimitExceeded, "needs 3 slots"),
        ("ALTER MATERIALIZED VIEW sums SET PARALLELISM 0", SqlState::FeatureNotSupported, "from 1 on"),
        ("ALTER MATERIALIZED VIEW sums SET PARALLELISM 99999999999", SqlState::FeatureNotSupported, "from 1 on"),
        ("ALTER MATERIALIZED VIEW sums SET PARALLELISM two", SqlState::SyntaxError, "syntax error"),
        ("ALTER MATERIALIZED VIEW sums SET PARALLELISM", SqlState::SyntaxError, "syntax error"),
        ("ALTER TABLE t SET PARALLELISM 1", SqlState::FeatureNotSupported, "has no parallelism"),
        ("ALTER MATERIALIZED VIEW none SET PARALLELISM 1", SqlState::UndefinedTable, "does not exist"),
        ("ALTER SINK b SET PARALLELISM 1", SqlState::ObjectNotInPrerequisiteState, "is in no checkpoint"),
        (
            "CREATE MATERIALIZED VIEW w WITH (parallelism = 3) AS SELECT 1 AS one",
            SqlState::ConfigurationLimitExceeded,
            "needs 3 slots",
        ),
        (
            "CREATE MATERIALIZED VIEW w WITH (parallelism = 'x') AS SELECT 1 AS one",
            SqlState::InvalidParameterValue,
            "parallelism",
        ),
        (
            "CREATE MATERIALIZED VIEW w WITH (paralellism = 1) AS SELECT 1 AS one",
            SqlState::UndefinedObject,
            "paralellism",
        ),
    ] {
        let error = run(&mut s, statement).await.err().unwrap_or_else(|| panic!("{statement} went well"));
        assert_eq!(error.state(), state, "{statement}: {error}");
        assert!(error.message().contains(text), "{statement}: {error}");
    }
    ok(&mut s, "ALTER MATERIALIZED VIEW IF EXISTS none SET PARALLELISM 1").await;
    ok(&mut s, "BEGIN").await;
    let error = run(&mut s, "ALTER MATERIALIZED VIEW sums SET PARALLELISM 1").await.err().unwrap();
    assert_eq!(error.state(), SqlState::ActiveSqlTransaction);
    ok(&mut s, "ROLLBACK").await;
    drop(s);
    instance.close().await;

    let instance = Instance::with(config(&folder.path().join("b"), 2, 64), Arc::new(Threads::default()));
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int, v int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW sums AS SELECT k, sum(v) AS s FROM t GROUP BY k").await;
    let error = run(&mut s, "ALTER MATERIALIZED VIEW sums SET PARALLELISM 1").await.err().unwrap();
    assert_eq!(error.state(), SqlState::ObjectNotInPrerequisiteState);
    assert!(error.hint().unwrap().contains("checkpoint_interval"), "{error}");
    drop(s);
    instance.close().await;
}
