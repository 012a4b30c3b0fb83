//! Coordinator and slots say nothing to each other that cannot be said in bytes.

use std::path::Path;
use std::sync::Arc;

use coord::execution::Threads;
use runtime::Wire;

use crate::bytes::Bytes;
use crate::harness::{Instance, keeping, ok, rows, scratch, seed, state_of};
use crate::slt_files::{files, known_differences, name_of};
use crate::sql_tests::{Life, check_file};

/// Every kind of message, as its bytes name it.
const KINDS: [&str; 15] = [
    "Attach",
    "Backfill",
    "BackfillBarrier",
    "Barrier",
    "Checkpoint",
    "Deliver",
    "Deploy",
    "Exchange",
    "ExchangeBarrier",
    "Failed",
    "Input",
    "Progress",
    "Remove",
    "Shutdown",
    "Wake",
];
/// One of so many files of the SQL suite runs over bytes.
const SHARE: usize = 5;

/// Part of the SQL suite, and what it leaves out (a sink, a job that fails), with every message as bytes.
#[test]
fn every_message_survives_as_bytes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(16 << 20).build().unwrap();
    let bytes = Arc::new(Bytes::default());
    let known = known_differences();
    let chosen = files().into_iter().filter(|f| !known.contains(&name_of(f))).enumerate();
    for (n, file) in chosen.filter(|(n, _)| n % SHARE == seed() as usize % SHARE) {
        let wire = Arc::clone(&bytes) as Arc<dyn Wire>;
        let problems = runtime.block_on(async {
            let path = file.clone();
            tokio::spawn(async move {
                let whole = || vec![Life::Whole(Arc::new(Threads::over(Arc::clone(&wire))))];
                check_file(&path, seed() + n as u64, whole).await
            })
            .await
            .unwrap()
        });
        assert!(problems.is_empty(), "{}: {problems:#?}", name_of(&file));
        assert_eq!(bytes.problems(), [""; 0], "{}", name_of(&file));
    }
    let wire = Arc::clone(&bytes) as Arc<dyn Wire>;
    runtime.block_on(async { tokio::spawn(sink_and_failure(wire)).await.unwrap() });
    assert_eq!(bytes.problems(), [""; 0]);
    let kinds = bytes.kinds();
    assert!(kinds.keys().all(|k| KINDS.contains(&k.as_str())), "a kind that the test does not know: {kinds:?}");
    // A queue is full only under load, and then its message is the kind alone.
    let missing: Vec<_> = KINDS.iter().filter(|k| !kinds.contains_key(**k) && **k != "Wake").collect();
    assert!(missing.is_empty(), "{missing:?} were never sent");
}

async fn sink_and_failure(wire: Arc<dyn Wire>) {
    let folder = scratch();
    let out = folder.path().join("out");
    let data = folder.path().join("data");
    std::fs::create_dir_all(&out).unwrap();
    let instance = Instance::with(keeping(&data, 3, 32), Arc::new(Threads::over(wire)));
    let mut session = instance.session();
    ok(&mut session, "CREATE TABLE t (k int PRIMARY KEY, n numeric(10,2), x double precision)").await;
    ok(&mut session, "INSERT INTO t VALUES (1, 1.50, 'NaN'), (2, NULL, '-Infinity'), (3, 0.25, -0.0)").await;
    ok(&mut session, "CREATE SINK k FROM t WITH (connector = 'blackhole')").await;
    ok(
        &mut session,
        "CREATE MATERIALIZED VIEW v AS SELECT k, 10 / (k - 9) AS q, x FROM t WHERE x <> 2.5::double precision",
    )
    .await;
    ok(&mut session, "INSERT INTO t VALUES (4, 1, 1), (5, 2, 2)").await;
    ok(&mut session, "CHECKPOINT").await;
    assert_eq!(rows(&mut session, "SELECT count(*) FROM v").await, [["5"]]);
    ok(&mut session, "INSERT INTO t VALUES (9, 1, 1)").await;
    assert_eq!(state_of(&mut session, "SELECT * FROM v").await, "55000");
    ok(&mut session, "DROP MATERIALIZED VIEW v").await;
    ok(&mut session, "DROP SINK k").await;
    instance.close().await;
    assert!(Path::new(&out).is_dir());
}
