//! SUBSCRIBE over the wire: rows come as they are made, in every protocol, and stop when they are told to.

use std::pin::pin;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, Row, SimpleQueryMessage};

use crate::process::Server;

/// Long enough for anything that comes at all.
const SOON: Duration = Duration::from_secs(20);
/// A row that is made must be with the client in this time; it waits for no full buffer and no timer of ours.
const PROMPT: Duration = Duration::from_secs(5);

const NO_PARAMETERS: [&str; 0] = [];

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("nothing comes")
}

async fn prepare(client: &Client) {
    client
        .batch_execute(
            "CREATE TABLE t (k int PRIMARY KEY, v text);
             CREATE MATERIALIZED VIEW m AS SELECT v, count(*) AS n FROM t GROUP BY v;
             INSERT INTO t VALUES (1, 'a'), (2, 'a');
             FLUSH",
        )
        .await
        .unwrap();
}

fn shown(row: &Row) -> (String, String, i64) {
    assert!(row.get::<_, i64>(0) > 0);
    (row.get(1), row.get(2), row.get(3))
}

async fn open(client: &Client) -> i64 {
    let messages = client.simple_query("SHOW SUBSCRIPTIONS").await.unwrap();
    messages.iter().filter(|m| matches!(m, SimpleQueryMessage::Row(_))).count() as i64
}

/// Waits until the server has no subscription any more.
async fn closed(client: &Client) {
    soon(async {
        while open(client).await > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

#[tokio::test]
async fn rows_stream_in_the_extended_protocol_until_the_client_cancels() {
    let server = Server::start();
    let (client, writer) = (server.client().await, server.client().await);
    prepare(&writer).await;
    let statement = client.prepare("SUBSCRIBE m").await.unwrap();
    let names: Vec<&str> = statement.columns().iter().map(|c| c.name()).collect();
    let types: Vec<&str> = statement.columns().iter().map(|c| c.type_().name()).collect();
    assert_eq!((names, types), (vec!["epoch", "op", "v", "n"], vec!["int8", "text", "text", "int8"]));
    let token = client.cancel_token();
    let mut rows = Box::pin(client.query_raw(&statement, NO_PARAMETERS).await.unwrap());
    let first = soon(rows.next()).await.unwrap().unwrap();
    assert_eq!(shown(&first), ("insert".into(), "a".into(), 2));
    for n in 0..20 {
        let started = Instant::now();
        writer.execute("INSERT INTO t VALUES ($1, 'b')", &[&(10 + n)]).await.unwrap();
        let mut changes = Vec::new();
        while changes.len() < if n == 0 { 1 } else { 2 } {
            changes.push(shown(&soon(rows.next()).await.unwrap().unwrap()));
        }
        assert_eq!(changes.pop().unwrap(), ("insert".into(), "b".into(), i64::from(n) + 1));
        assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
    }
    assert!(rows.next().now_or_never().is_none());
    assert_eq!(open(&writer).await, 1);
    let started = Instant::now();
    token.cancel_query(NoTls).await.unwrap();
    let error = soon(rows.next()).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    assert!(started.elapsed() < PROMPT);
    closed(&writer).await;
    // The session goes on.
    assert_eq!(client.query_one("SELECT n FROM m WHERE v = 'b'", &[]).await.unwrap().get::<_, i64>(0), 20);
}

#[tokio::test]
async fn rows_stream_in_the_simple_protocol_and_a_client_that_leaves_ends_them() {
    let server = Server::start();
    let writer = server.client().await;
    let (client, connection) = server.config().connect(NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    prepare(&writer).await;
    {
        let mut messages = pin!(client.simple_query_raw("SUBSCRIBE m WITH (progress)").await.unwrap());
        let mut ops = Vec::new();
        while ops.len() < 2 {
            if let SimpleQueryMessage::Row(row) = soon(messages.next()).await.unwrap().unwrap() {
                ops.push((row.get(1).unwrap().to_string(), row.get(2).map(str::to_string)));
            }
        }
        assert_eq!(ops, [("insert".to_string(), Some("a".to_string())), ("progress".to_string(), None)]);
        writer.execute("DELETE FROM t WHERE k = 1", &[]).await.unwrap();
        let SimpleQueryMessage::Row(row) = soon(messages.next()).await.unwrap().unwrap() else { panic!() };
        assert_eq!((row.get(1), row.get(3)), (Some("delete"), Some("2")));
        assert_eq!(open(&writer).await, 1);
    }
    // The connection is closed while the statement runs and has nothing to send.
    connection.abort();
    closed(&writer).await;
}

#[tokio::test]
async fn copy_streams_and_a_dropped_view_ends_it_with_an_error() {
    let server = Server::start();
    let (client, writer) = (server.client().await, server.client().await);
    prepare(&writer).await;
    let mut lines = Box::pin(client.copy_out("COPY (SUBSCRIBE m) TO STDOUT (FORMAT csv)").await.unwrap());
    let first = String::from_utf8(soon(lines.next()).await.unwrap().unwrap().to_vec()).unwrap();
    assert!(first.ends_with(",insert,a,2\n"), "{first}");
    writer.execute("INSERT INTO t VALUES (5, 'c')", &[]).await.unwrap();
    let second = String::from_utf8(soon(lines.next()).await.unwrap().unwrap().to_vec()).unwrap();
    assert!(second.ends_with(",insert,c,1\n"), "{second}");
    writer.batch_execute("DROP MATERIALIZED VIEW m").await.unwrap();
    let error = soon(lines.next()).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE));
    assert!(error.as_db_error().unwrap().message().contains("dropped"), "{error}");
    closed(&writer).await;
}

#[tokio::test]
async fn cursors_and_portals_take_some_rows_at_a_time() {
    let server = Server::start();
    let (mut client, writer) = (server.client().await, server.client().await);
    prepare(&writer).await;
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute("DECLARE c CURSOR FOR SUBSCRIBE m").await.unwrap();
    let rows = transaction.query("FETCH 100 c", &[]).await.unwrap();
    assert_eq!(rows.iter().map(shown).collect::<Vec<_>>(), [("insert".to_string(), "a".to_string(), 2)]);
    let started = Instant::now();
    assert!(transaction.query("FETCH ALL c WITH (timeout = '100 ms')", &[]).await.unwrap().is_empty());
    assert!(started.elapsed() >= Duration::from_millis(100) && started.elapsed() < PROMPT);
    let inserted = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        writer.execute("INSERT INTO t VALUES (7, 'd')", &[]).await.unwrap();
    };
    let (rows, ()) = soon(futures::future::join(transaction.query("FETCH ALL c", &[]), inserted)).await;
    assert_eq!(rows.unwrap().iter().map(shown).collect::<Vec<_>>(), [("insert".to_string(), "d".to_string(), 1)]);
    // A FETCH that waits can be cancelled; its transaction has then failed, and with it its cursor ends.
    let token = transaction.cancel_token();
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        token.cancel_query(NoTls).await.unwrap();
    };
    let (rows, ()) = soon(futures::future::join(transaction.query("FETCH ALL c", &[]), cancel)).await;
    assert_eq!(rows.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    let error = transaction.query("SUBSCRIBE m", &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    transaction.rollback().await.unwrap();
    closed(&writer).await;

    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("SUBSCRIBE (SELECT n FROM m WHERE v = $1)", &[&"a"]).await.unwrap();
    assert_eq!(soon(transaction.query_portal(&portal, 1)).await.unwrap().len(), 1);
    writer.execute("DELETE FROM t WHERE k = 1", &[]).await.unwrap();
    let rows = soon(transaction.query_portal(&portal, 2)).await.unwrap();
    let ops: Vec<(&str, i64)> = rows.iter().map(|r| (r.get(1), r.get(2))).collect();
    assert_eq!(ops, [("delete", 2), ("insert", 1)]);
    transaction.commit().await.unwrap();
    closed(&writer).await;
}

#[tokio::test]
async fn a_server_that_stops_ends_its_subscriptions_at_once() {
    let server = Server::start();
    let (client, writer) = (server.client().await, server.client().await);
    prepare(&writer).await;
    let mut rows = Box::pin(client.query_raw("SUBSCRIBE m", NO_PARAMETERS).await.unwrap());
    soon(rows.next()).await.unwrap().unwrap();
    let pid: i32 = {
        let rows =
            writer.query("SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SUBSCRIBE%'", &[]);
        rows.await.unwrap()[0].get(0)
    };
    assert!(writer.query_one("SELECT pg_terminate_backend($1::int4)", &[&pid]).await.unwrap().get::<_, bool>(0));
    let error = soon(rows.next()).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN));
    closed(&writer).await;
    let client = server.client().await;
    let mut rows = Box::pin(client.query_raw("SUBSCRIBE m", NO_PARAMETERS).await.unwrap());
    soon(rows.next()).await.unwrap().unwrap();
    let started = Instant::now();
    server.terminate();
    let error = soon(rows.next()).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN));
    assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
}
