//! What belongs to a session: settings, time-outs, cancel, who else is connected.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::process::{Server, connect};

/// Runs for minutes if nobody stops it.
const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 3000000) AS a(i), generate_series(1, 3000000) AS b(j)";

async fn first(client: &tokio_postgres::Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn set_config_changes_the_session_and_respects_the_transaction() {
    let server = Server::start();
    let client = server.client().await;
    let row = client
        .query_one(
            "SELECT current_setting('search_path') AS cur, set_config('search_path', $1, false) AS new",
            &[&"a, b"],
        )
        .await
        .unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("\"$user\", public", "a, b"));
    assert_eq!(first(&client, "SHOW search_path").await, "a, b");
    client.batch_execute("BEGIN; SELECT set_config('search_path', 'c', true)").await.unwrap();
    assert_eq!(first(&client, "SHOW search_path").await, "c");
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(first(&client, "SHOW search_path").await, "a, b");
    client.batch_execute("BEGIN; SELECT set_config('search_path', 'd', false); ROLLBACK").await.unwrap();
    assert_eq!(first(&client, "SHOW search_path").await, "a, b");
    client.batch_execute("SELECT set_config('app.user', '7', false)").await.unwrap();
    assert_eq!(first(&client, "SELECT current_setting('app.user')").await, "7");
    assert_eq!(first(&client, "SELECT coalesce(current_setting('app.other', true), 'none')").await, "none");
    let error = client.query("SELECT set_config('no_such', '1', false)", &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::UNDEFINED_OBJECT));
}

#[tokio::test]
async fn a_statement_can_be_stopped_by_its_client_by_others_and_by_time() {
    let server = Server::start();
    let client = server.client().await;
    let token = client.cancel_token();
    let stopper = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        token.cancel_query(NoTls).await.unwrap();
    });
    let error = client.query(ENDLESS, &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    stopper.await.unwrap();

    client.batch_execute("SET statement_timeout = '100ms'").await.unwrap();
    let error = client.query(ENDLESS, &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    assert_eq!(error.as_db_error().unwrap().message(), "canceling statement due to statement timeout");
    client.batch_execute("RESET statement_timeout").await.unwrap();

    let other = server.client().await;
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let running = tokio::spawn(async move {
        let error = client.query(ENDLESS, &[]).await.unwrap_err();
        (client, error)
    });
    let active = "SELECT query FROM pg_stat_activity WHERE pid = $1 AND state = 'active'";
    let shown = loop {
        if let Some(row) = other.query_opt(active, &[&pid]).await.unwrap() {
            break row.get::<_, String>(0);
        }
    };
    assert_eq!(shown, ENDLESS);
    assert!(other.query_one("SELECT pg_cancel_backend($1::int4)", &[&pid]).await.unwrap().get::<_, bool>(0));
    let (client, error) = running.await.unwrap();
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    assert!(other.query_one("SELECT pg_terminate_backend($1::int4)", &[&pid]).await.unwrap().get::<_, bool>(0));
    assert!(client.query("SELECT 1", &[]).await.is_err());
    assert!(!other.query_one("SELECT pg_terminate_backend($1::int4)", &[&pid]).await.unwrap().get::<_, bool>(0));
}

#[tokio::test]
async fn idle_sessions_end_when_they_asked_for_it() {
    let server = Server::start();
    let patient = server.client().await;
    let idle = server.client().await;
    idle.batch_execute("SET idle_session_timeout = '100ms'").await.unwrap();
    let holding = server.client().await;
    holding.batch_execute("CREATE TABLE t (id int); SET idle_in_transaction_session_timeout = '100ms'").await.unwrap();
    holding.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(idle.is_closed() && holding.is_closed());
    // Its transaction is undone and its lock is free.
    patient.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    assert_eq!(patient.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0), 1);
}

#[tokio::test]
async fn the_server_tells_who_is_connected_and_sends_notices() {
    let server = Server::start();
    let mut config = server.config();
    config.application_name("watched");
    let (watched, mut messages) = connect(&config).await;
    watched.batch_execute("BEGIN; SELECT 1").await.unwrap();
    let client = server.client().await;
    let row = client
        .query_one(
            "SELECT state, query, usename::text, datname::text, client_addr::text, xact_start IS NOT NULL \
             FROM pg_stat_activity WHERE application_name = 'watched'",
            &[],
        )
        .await
        .unwrap();
    let texts: Vec<&str> = (0..5).map(|i| row.get(i)).collect();
    assert_eq!(texts, ["idle in transaction", "SELECT 1", "tester", "dev", "127.0.0.1"]);
    assert!(row.get::<_, bool>(5));
    watched.batch_execute("COMMIT; DROP TABLE IF EXISTS nowhere").await.unwrap();
    let mut notices = Vec::new();
    while let Ok(message) = messages.try_recv() {
        if let AsyncMessage::Notice(notice) = message {
            notices.push((notice.severity().to_string(), notice.message().to_string()));
        }
    }
    assert_eq!(notices, [("NOTICE".to_string(), "table \"nowhere\" does not exist, skipping".to_string())]);
    drop(watched);
    for _ in 0..100 {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'watched'";
        if client.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("a session that has ended is still listed");
}
