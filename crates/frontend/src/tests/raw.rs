//! Bytes on a socket: the order of messages, and input that no client library would send.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::fake::Server;
use crate::FrontendConfig;

/// A client that says exactly what it is told to.
pub(super) struct Raw {
    pub(super) stream: TcpStream,
}

/// A message with its type.
pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&(body.len() as i32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

pub(super) fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"].concat())
}

fn bind(portal: &str, statement: &str) -> Vec<u8> {
    message(b'B', &[portal.as_bytes(), b"\0", statement.as_bytes(), b"\0\0\0\0\0\0\0"].concat())
}

fn describe(kind: u8, name: &str) -> Vec<u8> {
    message(b'D', &[&[kind], name.as_bytes(), b"\0"].concat())
}

fn close(kind: u8, name: &str) -> Vec<u8> {
    message(b'C', &[&[kind], name.as_bytes(), b"\0"].concat())
}

fn execute(portal: &str, rows_max: i32) -> Vec<u8> {
    message(b'E', &[portal.as_bytes(), b"\0", &rows_max.to_be_bytes()].concat())
}

fn sync() -> Vec<u8> {
    message(b'S', b"")
}

pub(super) fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = 196_608i32.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend_from_slice(&[name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    [&(body.len() as i32 + 4).to_be_bytes()[..], &body].concat()
}

impl Raw {
    pub(super) async fn log_in(server: &Server) -> Raw {
        let mut raw = Raw { stream: server.socket().await };
        raw.send(&startup(&[("user", "tester"), ("database", "dev")])).await;
        let greeting = raw.until(b'Z').await;
        assert_eq!(greeting[0].0, b'R');
        raw
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(super) async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let read = async {
            let kind = self.stream.read_u8().await.ok()?;
            let length = self.stream.read_i32().await.ok()?;
            let mut body = vec![0; length as usize - 4];
            self.stream.read_exact(&mut body).await.ok()?;
            Some((kind, body))
        };
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer within ten seconds")
    }

    pub(super) async fn until(&mut self, last: u8) -> Vec<(u8, Vec<u8>)> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await {
            let kind = message.0;
            messages.push(message);
            if kind == last {
                break;
            }
        }
        messages
    }

    /// Everything up to the end of the connection.
    pub(super) async fn rest(&mut self) -> Vec<(u8, Vec<u8>)> {
        self.until(0).await
    }
}

/// The types of messages, with the SQLSTATE of errors, the tag of completions and the status of ReadyForQuery.
pub(super) fn summary(messages: &[(u8, Vec<u8>)]) -> String {
    let one = |(kind, body): &(u8, Vec<u8>)| match kind {
        b'E' => format!("E:{}", field(body, b'C')),
        b'C' => format!("C:{}", String::from_utf8_lossy(&body[..body.len() - 1])),
        b'Z' => format!("Z:{}", body[0] as char),
        kind => (*kind as char).to_string(),
    };
    messages.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// A field of an error or notice.
pub(super) fn field(body: &[u8], code: u8) -> String {
    let field = body.split(|b| *b == 0).find(|field| field.first() == Some(&code));
    field.map(|field| String::from_utf8_lossy(&field[1..]).into_owned()).unwrap_or_default()
}

async fn check(input: &[Vec<u8>], rounds: usize, expected: &str) {
    let server = Server::start(FrontendConfig::default()).await;
    let bytes = input.concat();
    // The same answers whether everything comes at once or byte by byte.
    for piece in [bytes.len(), 1] {
        let mut raw = Raw::log_in(&server).await;
        for piece in bytes.chunks(piece) {
            raw.send(piece).await;
        }
        let mut found = Vec::new();
        for _ in 0..rounds {
            found.extend(raw.until(b'Z').await);
        }
        assert_eq!(summary(&found), expected);
    }
}

#[tokio::test]
async fn simple_queries_answer_as_in_postgres() {
    check(&[query("")], 1, "I Z:I").await;
    check(&[query(" ; ")], 1, "I Z:I").await;
    check(&[query("rows 2")], 1, "T D D C:SELECT 2 Z:I").await;
    check(&[query("begin; fail; count"), query("count"), query("rollback")], 3, {
        "C:BEGIN E:22012 Z:E E:25P02 Z:E C:ROLLBACK Z:I"
    })
    .await;
    check(&[query("notice")], 1, "N C:NOTICE Z:I").await;
    check(&[query("set TimeZone UTC")], 1, "C:SET S Z:I").await;
    check(&[message(b'Q', b"no end")], 1, "E:08P01 Z:I").await;
    check(&[message(b'Q', b"\xff\0")], 1, "E:22021 Z:I").await;
    check(&[message(b'F', b"\0\0\0\0")], 1, "E:0A000 Z:I").await;
}

#[tokio::test]
async fn extended_queries_answer_as_in_postgres() {
    let round = [parse("", "rows 3"), bind("", ""), describe(b'P', ""), execute("", 0), sync()];
    check(&round, 1, "1 2 T D D D C:SELECT 3 Z:I").await;
    let in_parts = [parse("", "rows 3"), bind("", ""), execute("", 2), execute("", 2), execute("", 2), sync()];
    check(&in_parts, 1, "1 2 D D s D C:SELECT 1 C:SELECT 0 Z:I").await;
    // Exactly as many as asked for is suspended, and then empty.
    let exact = [parse("", "rows 2"), bind("", ""), execute("", 2), execute("", 2), sync()];
    check(&exact, 1, "1 2 D D s C:SELECT 0 Z:I").await;
    let empty = [parse("", ""), describe(b'S', ""), bind("", ""), execute("", 0), sync()];
    check(&empty, 1, "1 t n 2 I Z:I").await;
    let named = [
        parse("s", "count"),
        sync(),
        parse("s", "count"),
        sync(),
        close(b'S', "s"),
        close(b'S', "s"),
        parse("s", "count"),
        describe(b'S', "s"),
        sync(),
    ];
    check(&named, 3, "1 Z:I E:42P05 Z:I 3 3 1 t T Z:I").await;
}

#[tokio::test]
async fn after_an_error_everything_up_to_sync_is_skipped() {
    let pipeline = [
        parse("", "insert a"),
        bind("", ""),
        execute("", 0),
        parse("", "fail"),
        bind("", ""),
        execute("", 0),
        parse("", "insert b"),
        bind("", ""),
        execute("", 0),
        query("insert c"),
        sync(),
        query("count"),
    ];
    check(&pipeline, 2, "1 2 C:INSERT 0 1 1 2 E:22012 Z:I T D C:SELECT 1 Z:I").await;
    let server = Server::start(FrontendConfig::default()).await;
    let mut raw = Raw::log_in(&server).await;
    raw.send(&pipeline[..11].concat()).await;
    raw.until(b'Z').await;
    assert!(server.store.lock().unwrap().committed.is_empty());
}

#[tokio::test]
async fn extended_messages_out_of_order_are_errors() {
    check(&[bind("", "none"), sync()], 1, "E:26000 Z:I").await;
    check(&[bind("", ""), sync()], 1, "E:26000 Z:I").await;
    check(&[execute("", 0), sync()], 1, "E:34000 Z:I").await;
    check(&[describe(b'S', "none"), sync()], 1, "E:26000 Z:I").await;
    check(&[describe(b'P', "none"), sync()], 1, "E:34000 Z:I").await;
    check(&[describe(b'X', "none"), sync()], 1, "E:08P01 Z:I").await;
    check(&[close(b'X', "none"), sync()], 1, "E:08P01 Z:I").await;
    check(&[sync(), sync()], 2, "Z:I Z:I").await;
    check(&[parse("", "count; count"), sync()], 1, "E:42601 Z:I").await;
    // Portals end with their transaction.
    check(&[parse("", "rows 3"), bind("p", ""), execute("p", 1), sync(), execute("p", 1), sync()], 2, {
        "1 2 D s Z:I E:34000 Z:I"
    })
    .await;
    check(&[parse("", "count"), bind("p", ""), bind("p", ""), sync()], 1, "1 2 E:42P03 Z:I").await;
    // A command runs once.
    check(&[parse("", "insert a"), bind("", ""), execute("", 0), execute("", 0), sync()], 1, {
        "1 2 C:INSERT 0 1 E:55000 Z:I"
    })
    .await;
    // One parameter too few.
    check(&[parse("", "insert $1"), bind("", ""), sync()], 1, "1 E:08P01 Z:I").await;
    // CopyData, CopyDone and CopyFail without a COPY are passed over.
    check(&[message(b'd', b"x"), message(b'c', b""), message(b'f', b"x\0"), query("")], 1, "I Z:I").await;
}

#[tokio::test]
async fn bodies_that_do_not_hold_what_they_claim_are_errors() {
    for body in [&b""[..], b"\0", b"\0\0", b"\0\0\xff\xff", b"\0\0\0\0\xff\xff\0\0", b"\0\0\0\0\0\x01\x7f\xff\xff\xff"]
    {
        check(&[message(b'B', body), sync(), query("")], 2, "E:08P01 Z:I I Z:I").await;
    }
    for body in [&b""[..], b"x", b"\0x", b"\0x\0", b"\0x\0\xff\xff", b"\0x\0\0\0\0"] {
        check(&[message(b'P', body), sync()], 1, "E:08P01 Z:I").await;
    }
    check(&[message(b'E', b"\0\0"), sync()], 1, "E:08P01 Z:I").await;
    check(&[message(b'D', b""), sync()], 1, "E:08P01 Z:I").await;
}

#[tokio::test]
async fn a_flush_brings_answers_without_sync() {
    let server = Server::start(FrontendConfig::default()).await;
    let mut raw = Raw::log_in(&server).await;
    raw.send(&[parse("", "rows 1"), describe(b'S', ""), message(b'H', b"")].concat()).await;
    assert_eq!(summary(&raw.until(b'T').await), "1 t T");
    raw.send(&[bind("", ""), execute("", 0), sync()].concat()).await;
    assert_eq!(summary(&raw.until(b'Z').await), "2 D C:SELECT 1 Z:I");
}

#[tokio::test]
async fn a_lone_execute_is_a_statement_of_its_own() {
    let server = Server::start(FrontendConfig::default()).await;
    let mut raw = Raw::log_in(&server).await;
    let lone = [parse("", "insert a"), bind("", ""), execute("", 0), sync()].concat();
    raw.send(&lone).await;
    raw.until(b'Z').await;
    assert!(server.store.lock().unwrap().log.is_empty());
    let two = [&lone[..lone.len() - 5], &lone].concat();
    raw.send(&two).await;
    raw.until(b'Z').await;
    let store = server.store.lock().unwrap();
    assert_eq!((store.committed.len(), store.log.join(", ")), (3, "begin implicit, commit implicit".to_string()));
}

#[tokio::test]
async fn wrong_lengths_and_types_end_the_connection_with_an_error() {
    let server = Server::start(FrontendConfig::default()).await;
    for length in [0, 3, -1, i32::MIN, i32::MAX, 300 * 1024 * 1024] {
        let mut raw = Raw::log_in(&server).await;
        raw.send(&[&b"Q"[..], &i32::to_be_bytes(length)].concat()).await;
        assert_eq!(summary(&raw.rest().await), "E:08P01", "length {length}");
    }
    let mut raw = Raw::log_in(&server).await;
    // Small messages have a small limit.
    raw.send(&[&b"S"[..], &20_000i32.to_be_bytes()].concat()).await;
    assert_eq!(summary(&raw.rest().await), "E:08P01");
    for kind in [0, b'Z', b'a', 0xff] {
        let mut raw = Raw::log_in(&server).await;
        raw.send(&message(kind, b"")).await;
        let end = raw.rest().await;
        assert_eq!(summary(&end), "E:08P01");
        assert_eq!(field(&end[0].1, b'S'), "FATAL");
    }
    server.client().await;
}

#[tokio::test]
async fn bad_startup_packets_are_refused() {
    let server = Server::start(FrontendConfig::default()).await;
    let answer = |bytes: Vec<u8>| {
        let server = &server;
        async move {
            let mut raw = Raw { stream: server.socket().await };
            raw.send(&bytes).await;
            summary(&raw.rest().await)
        }
    };
    for length in [0, 3, 4, 7, -1, i32::MIN, i32::MAX, 65_537] {
        assert_eq!(answer([i32::to_be_bytes(length), [0; 4]].concat()).await, "E:08P01", "length {length}");
    }
    assert_eq!(answer(b"GET / HTTP/1.1\r\n\r\n".to_vec()).await, "E:08P01");
    assert_eq!(answer(startup(&[])).await, "E:28000");
    assert_eq!(answer(startup(&[("user", "u"), ("client_encoding", "LATIN1")])).await, "E:0A000");
    assert_eq!(answer(startup(&[("user", "u"), ("replication", "database")])).await, "E:0A000");
    assert_eq!(answer([&9i32.to_be_bytes()[..], &(2i32 << 16).to_be_bytes(), b"\0"].concat()).await, "E:0A000");
    // No terminator.
    assert_eq!(answer([&10i32.to_be_bytes()[..], &196_608i32.to_be_bytes(), b"us"].concat()).await, "E:08P01");
    server.client().await;
}

#[tokio::test]
async fn encryption_is_declined_and_extensions_are_negotiated() {
    let server = Server::start(FrontendConfig::default()).await;
    let mut raw = Raw { stream: server.socket().await };
    for code in [80_877_103i32, 80_877_104] {
        raw.send(&[8i32.to_be_bytes(), code.to_be_bytes()].concat()).await;
        assert_eq!(raw.stream.read_u8().await.unwrap(), b'N');
    }
    let parameters = [
        ("user", "tester"),
        ("_pq_.feature", "1"),
        ("options", "-c timezone=Europe/Paris"),
        ("client_encoding", "'utf-8'"),
        ("application_name", "raw"),
    ];
    raw.send(&startup(&parameters)).await;
    let greeting = raw.until(b'Z').await;
    assert_eq!(greeting[0].0, b'v');
    let parameter = |name: &str| {
        let status = greeting.iter().find(|(kind, body)| *kind == b'S' && body.starts_with(name.as_bytes()));
        status.map(|(_, body)| String::from_utf8_lossy(&body[name.len() + 1..body.len() - 1]).into_owned())
    };
    assert_eq!(parameter("TimeZone").as_deref(), Some("Europe/Paris"));
    assert_eq!(parameter("application_name").as_deref(), Some("raw"));
    assert_eq!(parameter("client_encoding").as_deref(), Some("UTF8"));
    assert!(parameter("server_version").unwrap().starts_with("15."));
    assert_eq!(parameter("integer_datetimes").as_deref(), Some("on"));
    assert_eq!(parameter("standard_conforming_strings").as_deref(), Some("on"));
    assert!(greeting.iter().any(|(kind, body)| *kind == b'K' && body.len() == 8));
}

#[tokio::test]
async fn those_that_do_not_log_in_are_disconnected() {
    let config = FrontendConfig { login_timeout: Duration::from_millis(200), ..FrontendConfig::default() };
    let server = Server::start(config).await;
    let mut half_open = Vec::new();
    for _ in 0..100 {
        half_open.push(Raw { stream: server.socket().await });
    }
    half_open[0].send(b"\0\0").await;
    let start = Instant::now();
    for raw in &mut half_open {
        raw.rest().await;
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    server.client().await;
}

#[tokio::test]
async fn random_bytes_never_stop_the_server() {
    let server = Server::start(FrontendConfig::default()).await;
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let kinds = b"QPBEDCSHFXdcfp";
    for round in 0..300 {
        let mut raw = if round % 4 == 0 { Raw { stream: server.socket().await } } else { Raw::log_in(&server).await };
        for _ in 0..20 {
            let body: Vec<u8> = (0..random() % 40).map(|_| (random() % 7) as u8 * 37).collect();
            let kind = kinds[(random() % kinds.len() as u64) as usize];
            if raw.stream.write_all(&message(kind, &body)).await.is_err() {
                break;
            }
        }
        let _ = raw.stream.write_all(&message(b'X', b"")).await;
        raw.rest().await;
    }
    assert_eq!(server.client().await.query("rows 1", &[]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_result_larger_than_the_buffers_arrives_whole() {
    let server = Server::start(FrontendConfig::default()).await;
    let mut raw = Raw::log_in(&server).await;
    raw.send(&query("rows 200000")).await;
    let messages = raw.until(b'Z').await;
    assert_eq!(messages.len(), 200_003);
    assert_eq!(messages[200_000].1, b"\0\x02\0\0\0\x06199999\0\0\0\x0arow 199999");
}

#[tokio::test]
async fn a_client_that_only_stops_sending_gets_its_answer() {
    let server = Server::start(FrontendConfig::default()).await;
    let mut raw = Raw::log_in(&server).await;
    raw.send(&[parse("", "rows 5000"), bind("", ""), execute("", 0), sync()].concat()).await;
    raw.stream.shutdown().await.unwrap();
    let answer = raw.rest().await;
    assert_eq!(answer.len(), 5004);
    assert_eq!(summary(&answer[5002..]), "C:SELECT 5000 Z:I");
}

#[tokio::test]
async fn a_client_that_has_left_does_not_keep_its_statement_running() {
    for statement in ["sleep", "slow", "copyin text a:int4"] {
        let config = FrontendConfig { connections_max: 1, ..FrontendConfig::default() };
        let server = Server::start(config).await;
        let mut raw = Raw::log_in(&server).await;
        raw.send(&query(statement)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(raw);
        let mut logged_in = false;
        for _ in 0..100 {
            let mut raw = Raw { stream: server.socket().await };
            raw.send(&startup(&[("user", "tester")])).await;
            logged_in = raw.next().await.is_some_and(|(kind, _)| kind == b'R');
            if logged_in {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(logged_in, "{statement}");
    }
}
