//! The ten-account transfers (Jamie Brandon, "Internal consistency in streaming systems", 2021): money moves, none appears.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::harness::{Instance, Rng, ok, rows, scratch, seed};

const VIEWS: &[&str] = &[
    "CREATE TABLE transfers (id bigint PRIMARY KEY, from_account int, to_account int, amount bigint)",
    "CREATE MATERIALIZED VIEW accepted AS SELECT * FROM transfers WHERE amount > 0",
    "CREATE MATERIALIZED VIEW credits AS SELECT to_account AS account, sum(amount) AS credits FROM accepted GROUP BY to_account",
    "CREATE MATERIALIZED VIEW debits AS SELECT from_account AS account, sum(amount) AS debits FROM accepted GROUP BY from_account",
    "CREATE MATERIALIZED VIEW balance AS SELECT c.account, credits - debits AS balance FROM credits c JOIN debits d ON c.account = d.account",
    "CREATE MATERIALIZED VIEW total AS SELECT sum(balance) AS total FROM balance",
    "CREATE MATERIALIZED VIEW self_join AS SELECT a.id, b.id AS other FROM accepted a LEFT JOIN accepted b ON a.id = b.id",
];

/// Every reader, in every read, sees money conserved: `total` is 0, credits equal debits equal what was accepted, and the
/// self LEFT JOIN never shows a row without its partner. Views are created and dropped beside it.
#[test]
fn every_read_of_the_transfers_is_consistent() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(16 << 20).build().unwrap();
    runtime.block_on(async { tokio::spawn(transfers(20_000)).await.unwrap() });
}

async fn transfers(count: usize) {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut session = instance.session();
    for view in VIEWS {
        ok(&mut session, view).await;
    }
    // Every account has both sides from the start, so that the inner join of the balance leaves nobody out.
    let first: Vec<String> = (0..10).map(|a| format!("({}, {a}, {}, 1)", -1 - a, (a + 1) % 10)).collect();
    ok(&mut session, &format!("INSERT INTO transfers VALUES {}", first.join(", "))).await;
    // Other sessions see an epoch once it is complete, which is a moment after the acknowledgement.
    ok(&mut session, "FLUSH").await;

    let done = Arc::new(AtomicBool::new(false));
    let reads = Arc::new(AtomicUsize::new(0));
    let mut readers = Vec::new();
    for _ in 0..4 {
        let (mut session, done, reads) = (instance.session(), Arc::clone(&done), Arc::clone(&reads));
        readers.push(tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                check(&mut session).await;
                reads.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let ddl = {
        let (mut session, done) = (instance.session(), Arc::clone(&done));
        tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                ok(&mut session, "CREATE MATERIALIZED VIEW beside AS SELECT from_account, count(*) AS n FROM accepted GROUP BY from_account").await;
                ok(&mut session, "DROP MATERIALIZED VIEW beside").await;
            }
        })
    };
    let mut rng = Rng::new(seed());
    let mut id = 0;
    while id < count {
        let batch: Vec<String> = (0..200)
            .map(|n| {
                let (from, to) = (rng.below(10), rng.below(10));
                // A few are refused by the filter.
                let amount = rng.below(50) as i64 - 2;
                format!("({}, {from}, {to}, {amount})", id + n)
            })
            .collect();
        ok(&mut session, &format!("INSERT INTO transfers VALUES {}", batch.join(", "))).await;
        id += 200;
        if rng.below(10) == 0 {
            ok(&mut session, &format!("DELETE FROM transfers WHERE id = {}", rng.below(id))).await;
        }
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    ddl.await.unwrap();
    check(&mut session).await;
    assert!(reads.load(Ordering::Relaxed) > 10, "readers must have run");
    let touched = rows(&mut session, "SELECT count(*) FROM transfers").await;
    assert!(touched[0][0].parse::<usize>().unwrap() > count / 2);
    instance.close().await;
}

async fn check(session: &mut coord::Session) {
    let found = rows(
        session,
        "SELECT (SELECT total FROM total), (SELECT sum(credits) FROM credits), (SELECT sum(debits) FROM debits),
                (SELECT sum(amount) FROM accepted), (SELECT count(*) FROM self_join WHERE other IS NULL)",
    )
    .await;
    let [total, credits, debits, accepted, alone] = found[0].as_slice() else { panic!("{found:?}") };
    assert_eq!(total, "0", "{found:?}");
    assert!(credits == debits && debits == accepted, "{found:?}");
    assert_eq!(alone, "0", "{found:?}");
}
