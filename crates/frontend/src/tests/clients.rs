//! Through tokio-postgres, a client that uses the extended protocol and binary formats.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::fake::Server;
use crate::{FrontendConfig, ScramVerifier};

async fn start() -> Server {
    Server::start(FrontendConfig::default()).await
}

fn texts(messages: &[SimpleQueryMessage]) -> Vec<Vec<Option<String>>> {
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_string)).collect()),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn every_type_comes_as_text() {
    let server = start().await;
    let client = server.client().await;
    let rows = texts(&client.simple_query("set TimeZone Asia/Kolkata; types").await.unwrap());
    let row: Vec<&str> = rows[0].iter().map(|value| value.as_deref().unwrap()).collect();
    assert_eq!(
        row,
        [
            "t",
            "-2",
            "4",
            "-9223372036854775808",
            "1.5",
            "0.1",
            "123.45",
            "häuser",
            "",
            "\\x00ff",
            "2024-01-02",
            "01:02:03.000001",
            "2024-01-02 03:04:05.5",
            "2024-01-02 08:34:05.5+05:30",
            "1 year 2 mons 3 days 00:00:04.5",
            "{1,NULL,3}",
        ]
    );
    assert!(rows[1].iter().all(Option::is_none));
}

#[tokio::test]
async fn every_type_comes_as_binary() {
    let server = start().await;
    let client = server.client().await;
    let rows = client.query("types", &[]).await.unwrap();
    let row = &rows[0];
    let types: Vec<Type> = row.columns().iter().map(|c| c.type_().clone()).collect();
    assert_eq!(
        types,
        [
            Type::BOOL,
            Type::INT2,
            Type::INT4,
            Type::INT8,
            Type::FLOAT4,
            Type::FLOAT8,
            Type::NUMERIC,
            Type::TEXT,
            Type::TEXT,
            Type::BYTEA,
            Type::DATE,
            Type::TIME,
            Type::TIMESTAMP,
            Type::TIMESTAMPTZ,
            Type::INTERVAL,
            Type::INT4_ARRAY,
        ]
    );
    assert!(row.get::<_, bool>(0));
    assert_eq!(row.get::<_, i16>(1), -2);
    assert_eq!(row.get::<_, i32>(2), 4);
    assert_eq!(row.get::<_, i64>(3), i64::MIN);
    assert_eq!(row.get::<_, f32>(4), 1.5);
    assert_eq!(row.get::<_, f64>(5), 0.1);
    assert_eq!(row.get::<_, String>(7), "häuser");
    assert_eq!(row.get::<_, String>(8), "");
    assert_eq!(row.get::<_, Vec<u8>>(9), [0, 255]);
    assert_eq!(row.get::<_, Vec<Option<i32>>>(15), [Some(1), None, Some(3)]);
    let at = row.get::<_, std::time::SystemTime>(13).duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(at, Duration::from_micros(1_704_164_645_500_000));
    assert_eq!(rows[1].get::<_, Option<i32>>(2), None);
    assert_eq!(rows[1].get::<_, Option<Vec<i32>>>(15), None);
}

#[tokio::test]
async fn parameters_come_back_as_they_were_given() {
    let server = start().await;
    let client = server.client().await;
    let statement = client.prepare("echo a:int4[]").await.unwrap();
    assert_eq!(statement.params(), [Type::INT4_ARRAY]);
    let check = |type_name: &'static str, value: Box<dyn ToSql + Sync + Send>| {
        let client = &client;
        async move {
            let sql = format!("echo a:{type_name}");
            // The client declares its types; by themselves an oid would be described as int8 and a name as text.
            let types: &[Type] = match type_name {
                "oid" => &[Type::OID],
                "name" => &[Type::NAME],
                "varchar" => &[Type::VARCHAR],
                _ => &[],
            };
            let statement = client.prepare_typed(&sql, types).await.unwrap();
            let row = client.query_one(&statement, &[value.as_ref()]).await.unwrap();
            assert_eq!(
                row.columns()[0].type_().name(),
                type_name.replace("int4[]", "_int4").replace("text[]", "_text")
            );
            row
        }
    };
    assert!(check("bool", Box::new(true)).await.get::<_, bool>(0));
    assert_eq!(check("int2", Box::new(i16::MIN)).await.get::<_, i16>(0), i16::MIN);
    assert_eq!(check("int4", Box::new(i32::MIN)).await.get::<_, i32>(0), i32::MIN);
    assert_eq!(check("int8", Box::new(i64::MAX)).await.get::<_, i64>(0), i64::MAX);
    assert_eq!(check("oid", Box::new(u32::MAX)).await.get::<_, u32>(0), u32::MAX);
    assert_eq!(check("float4", Box::new(1.25f32)).await.get::<_, f32>(0), 1.25);
    assert!(check("float8", Box::new(f64::NAN)).await.get::<_, f64>(0).is_nan());
    assert_eq!(check("text", Box::new("ü\n")).await.get::<_, String>(0), "ü\n");
    assert_eq!(check("varchar", Box::new("v")).await.get::<_, String>(0), "v");
    assert_eq!(check("name", Box::new("n")).await.get::<_, String>(0), "n");
    assert_eq!(check("bytea", Box::new(vec![0u8, 1, 255])).await.get::<_, Vec<u8>>(0), [0, 1, 255]);
    assert_eq!(check("int4[]", Box::new(vec![Some(1), None])).await.get::<_, Vec<Option<i32>>>(0), [Some(1), None]);
    assert_eq!(check("int4[]", Box::<Vec<i32>>::default()).await.get::<_, Vec<i32>>(0), Vec::<i32>::new());
    assert_eq!(check("text[]", Box::new(vec!["a,b", ""])).await.get::<_, Vec<String>>(0), ["a,b", ""]);
    assert_eq!(check("text", Box::new(None::<String>)).await.get::<_, Option<String>>(0), None);
    let at = std::time::UNIX_EPOCH + Duration::from_micros(1_234_567_890_123_456);
    assert_eq!(check("timestamptz", Box::new(at)).await.get::<_, std::time::SystemTime>(0), at);
}

#[tokio::test]
async fn portals_are_read_in_parts() {
    let server = start().await;
    let mut client = server.client().await;
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("rows 2500", &[]).await.unwrap();
    let mut seen = 0;
    loop {
        let rows = transaction.query_portal(&portal, 999).await.unwrap();
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            assert_eq!(row.get::<_, i32>(0), seen);
            seen += 1;
        }
        // Other statements may run in between.
        transaction.execute("insert x", &[]).await.unwrap();
    }
    assert_eq!(seen, 2500);
    transaction.commit().await.unwrap();
    assert_eq!(server.store.lock().unwrap().committed.len(), 3);
}

#[tokio::test]
async fn many_statements_of_a_query_string_are_one_transaction() {
    let server = start().await;
    let client = server.client().await;
    let error = client.simple_query("insert a; insert b; fail; insert c").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::DIVISION_BY_ZERO));
    assert!(server.store.lock().unwrap().committed.is_empty());
    client.simple_query("insert a; insert b").await.unwrap();
    client.simple_query("insert c").await.unwrap();
    assert_eq!(server.store.lock().unwrap().committed, ["a", "b", "c"]);
    assert_eq!(
        server.store.lock().unwrap().log,
        ["begin implicit", "roll back implicit", "begin implicit", "commit implicit"]
    );
    // BEGIN in the middle keeps what came before, until the explicit end.
    client.simple_query("insert d; begin; insert e").await.unwrap();
    assert_eq!(server.store.lock().unwrap().committed.len(), 3);
    client.simple_query("rollback").await.unwrap();
    assert_eq!(server.store.lock().unwrap().committed.len(), 3);
}

#[tokio::test]
async fn a_failed_transaction_accepts_only_its_end() {
    let server = start().await;
    let client = server.client().await;
    client.simple_query("begin; insert a").await.unwrap();
    client.execute("fail", &[]).await.unwrap_err();
    let error = client.simple_query("count").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    let error = client.query("count", &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    client.execute("commit", &[]).await.unwrap();
    assert_eq!(client.query_one("count", &[]).await.unwrap().get::<_, i32>(0), 0);
}

#[tokio::test]
async fn errors_carry_position_detail_and_hint() {
    let server = start().await;
    let client = server.client().await;
    let error = client.simple_query("insert a; syntax").await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.message(), "syntax error at or near \"syntax\"");
    assert_eq!(error.code(), &SqlState::SYNTAX_ERROR);
    assert_eq!(error.detail(), Some("It says so."));
    assert_eq!(error.hint(), Some("Do not say so."));
    assert_eq!(error.position(), Some(&tokio_postgres::error::ErrorPosition::Original(11)));
    assert!(server.store.lock().unwrap().committed.is_empty());
}

#[tokio::test]
async fn a_cancel_request_stops_the_running_statement_only() {
    let server = start().await;
    let client = server.client().await;
    for sql in ["sleep", "slow"] {
        let token = client.cancel_token();
        let canceler = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            token.cancel_query(NoTls).await.unwrap();
        });
        let error = client.query(sql, &[]).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{sql}");
        canceler.await.unwrap();
        // A request that comes when nothing runs is for nobody.
        client.cancel_token().cancel_query(NoTls).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(client.query("rows 3", &[]).await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn a_panic_ends_one_session() {
    let server = start().await;
    let (victim, bystander) = (server.client().await, server.client().await);
    let error = victim.simple_query("panic").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::INTERNAL_ERROR));
    assert!(victim.simple_query("count").await.is_err());
    assert_eq!(bystander.query("rows 2", &[]).await.unwrap().len(), 2);
    assert_eq!(server.client().await.query("rows 2", &[]).await.unwrap().len(), 2);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused() {
    let server = Server::start(FrontendConfig { connections_max: 2, ..FrontendConfig::default() }).await;
    let first = server.client().await;
    let _second = server.client().await;
    let config = format!("host=127.0.0.1 port={} user=tester", server.port);
    let error = tokio_postgres::connect(&config, NoTls).await.err().unwrap();
    assert_eq!(error.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
    drop(first);
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.client().await;
}

#[tokio::test]
async fn a_password_is_asked_for_when_there_is_one() {
    let password = Some(ScramVerifier::from_password("secret").unwrap());
    let server = Server::start(FrontendConfig { password, ..FrontendConfig::default() }).await;
    let connect = |password: &'static str| {
        let config = format!("host=127.0.0.1 port={} user=tester password={password}", server.port);
        async move { tokio_postgres::connect(&config, NoTls).await }
    };
    let (client, connection) = connect("secret").await.unwrap();
    tokio::spawn(connection);
    assert_eq!(client.query("rows 1", &[]).await.unwrap().len(), 1);
    let error = connect("wrong").await.err().unwrap();
    assert_eq!(error.code(), Some(&SqlState::INVALID_PASSWORD));
}

#[tokio::test]
async fn a_database_that_is_missing_is_refused() {
    let server = start().await;
    let config = format!("host=127.0.0.1 port={} user=tester dbname=missing", server.port);
    let error = tokio_postgres::connect(&config, NoTls).await.err().unwrap();
    assert_eq!(error.code(), Some(&SqlState::INVALID_CATALOG_NAME));
}

#[tokio::test]
async fn shutdown_ends_idle_and_running_sessions() {
    let mut server = start().await;
    let config = format!("host=127.0.0.1 port={} user=tester", server.port);
    let (idle, idle_connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    let idle_connection = tokio::spawn(idle_connection);
    let running = server.client().await;
    let _half_open = server.socket().await;
    let statement = tokio::spawn(async move { running.simple_query("sleep").await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.stop.take().unwrap().send(()).unwrap();
    let error = statement.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN));
    let error = idle_connection.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN));
    drop(idle);
    tokio::time::timeout(Duration::from_secs(3), server.task).await.unwrap().unwrap();
    assert!(tokio_postgres::connect(&config, NoTls).await.is_err());
}

#[tokio::test]
async fn statements_can_be_deallocated_by_command() {
    let server = start().await;
    let client = server.client().await;
    let error = client.simple_query("deallocate nothing").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::INVALID_SQL_STATEMENT_NAME));
    let statement = client.prepare("rows 1").await.unwrap();
    client.simple_query("deallocate all").await.unwrap();
    let error = client.query(&statement, &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::INVALID_SQL_STATEMENT_NAME));
}

#[tokio::test]
async fn declared_types_reach_the_analysis() {
    let server = start().await;
    let client = server.client().await;
    let statement = client.prepare_typed("declared", &[Type::INT4, Type::UNKNOWN, Type::JSON]).await.unwrap();
    assert_eq!(statement.params(), [Type::INT4, Type::TEXT, Type::JSON]);
    let error = client.prepare_typed("declared", &[Type::POINT]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::UNDEFINED_OBJECT));
}
