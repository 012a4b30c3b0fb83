//! A server that dies while it rewrites its log loses nothing that was acknowledged.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use checkpoint::crash::LOG_POINTS;

use crate::process::Server;

/// Statements that make the log long enough for a rewrite, each by about a megabyte. Then it is waited for with fewer of them.
const UPDATES: i64 = 100;
const DEATH_MAX: Duration = Duration::from_secs(60);

fn fsck(data: &Path) -> String {
    let told = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(["fsck", "--config", "/dev/null", "--data-dir"])
        .arg(data)
        .output()
        .unwrap();
    assert!(told.status.success(), "{told:?}");
    String::from_utf8(told.stdout).unwrap()
}

/// Updates all rows until the server dies. Returns how many updates were acknowledged.
async fn update_until_dead(server: &mut Server, acknowledged: i64) -> i64 {
    let client = server.client().await;
    let dying = async {
        let mut n = acknowledged;
        while client.batch_execute("UPDATE t SET v = v + 1").await.is_ok() {
            n += 1;
            if n > acknowledged + UPDATES {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        n
    };
    let acknowledged = tokio::time::timeout(DEATH_MAX, dying).await.expect("the server does not die");
    assert!(server.wait_ended(Duration::from_secs(10)).await.is_some(), "a statement fails on a living server");
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_at_any_point_of_a_log_rewrite_keeps_what_was_acknowledged() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start_on(data.path(), 2, "250ms");
    let client = server.client().await;
    client
        .batch_execute(
            "CREATE TABLE t (k int PRIMARY KEY, v int, x text);
             CREATE MATERIALIZED VIEW m AS SELECT count(*) AS n, min(v) AS low, max(v) AS high FROM t;
             INSERT INTO t SELECT n, 0, repeat('long', 200) FROM generate_series(1, 1000) AS g (n)",
        )
        .await
        .unwrap();
    server.kill();
    let mut acknowledged = 0;
    for point in LOG_POINTS {
        let mut server = Server::try_start_on(data.path(), 2, "250ms", Some(point)).unwrap();
        acknowledged = update_until_dead(&mut server, acknowledged).await;
        drop(server);
        fsck(data.path());
        let server = Server::start_on(data.path(), 3, "10s");
        let row = server.client().await.query_one("SELECT n, low, high FROM m", &[]).await.unwrap();
        let (n, low, high): (i64, i32, i32) = (row.get(0), row.get(1), row.get(2));
        assert_eq!((n, low), (1000, high), "{point}");
        // The one that was under way may be there.
        assert!((acknowledged..=acknowledged + 1).contains(&i64::from(high)), "{point}: {high} of {acknowledged}");
        acknowledged = i64::from(high);
    }
    let told = fsck(data.path());
    assert!(told.contains(", merged up to epoch "), "{told}");
}
