//! The protocol in bytes: pipelines, portals, what an error leaves behind, and the greeting.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::Server;

/// A connection without a driver.
struct Raw(TcpStream);

fn message(kind: u8, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let mut out = vec![kind];
    out.extend_from_slice(&(body.len() as i32 + 4).to_be_bytes());
    out.extend_from_slice(&body);
    out
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"])
}

/// Binds text parameters; results come as text.
fn bind(portal: &str, statement: &str, values: &[&str]) -> Vec<u8> {
    let mut body = format!("{portal}\0{statement}\0").into_bytes();
    body.extend_from_slice(&0u16.to_be_bytes());
    body.extend_from_slice(&(values.len() as u16).to_be_bytes());
    for value in values {
        body.extend_from_slice(&(value.len() as i32).to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    body.extend_from_slice(&0u16.to_be_bytes());
    message(b'B', &[&body])
}

fn execute(portal: &str, rows_max: i32) -> Vec<u8> {
    message(b'E', &[portal.as_bytes(), b"\0", &rows_max.to_be_bytes()])
}

fn describe(kind: u8, name: &str) -> Vec<u8> {
    message(b'D', &[&[kind], name.as_bytes(), b"\0"])
}

fn close(kind: u8, name: &str) -> Vec<u8> {
    message(b'C', &[&[kind], name.as_bytes(), b"\0"])
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"])
}

fn sync() -> Vec<u8> {
    message(b'S', &[])
}

impl Raw {
    async fn connect(addr: SocketAddr, parameters: &[(&str, &str)]) -> Raw {
        let mut raw = Raw(TcpStream::connect(addr).await.unwrap());
        let mut body = (3i32 << 16).to_be_bytes().to_vec();
        for (name, value) in parameters {
            body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
        }
        body.push(0);
        raw.0.write_all(&(body.len() as i32 + 4).to_be_bytes()).await.unwrap();
        raw.0.write_all(&body).await.unwrap();
        raw
    }

    async fn open(server: &Server) -> Raw {
        let mut raw = Raw::connect(server.addr, &[("user", "tester"), ("database", "dev")]).await;
        raw.until_ready().await;
        raw
    }

    async fn send(&mut self, messages: &[Vec<u8>]) {
        self.0.write_all(&messages.concat()).await.unwrap();
    }

    /// The next message: its kind, and what matters of its body.
    async fn next(&mut self) -> String {
        let kind = self.0.read_u8().await.unwrap();
        let mut body = vec![0; self.0.read_i32().await.unwrap() as usize - 4];
        self.0.read_exact(&mut body).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string();
        let field = |wanted: u8| {
            let fields = body.split(|b| *b == 0).filter(|f| f.first() == Some(&wanted));
            fields.map(|f| text(&f[1..])).next().unwrap_or_default()
        };
        match kind {
            b'C' => format!("C {}", text(&body)),
            b'E' => format!("E {} {}", field(b'C'), field(b'M')),
            b'N' => format!("N {} {}", field(b'C'), field(b'M')),
            b'S' => format!("S {}", text(&body).replace('\0', "=")),
            b'Z' => format!("Z {}", text(&body)),
            b'D' => {
                let mut rest = &body[2..];
                let mut values = Vec::new();
                while let Some((length, after)) = rest.split_first_chunk::<4>() {
                    let length = i32::from_be_bytes(*length).max(0) as usize;
                    values.push(text(&after[..length]));
                    rest = &after[length..];
                }
                format!("D {}", values.join(","))
            }
            b't' => {
                let oids = body[2..].chunks(4).map(|c| u32::from_be_bytes(c.try_into().unwrap()).to_string());
                format!("t {}", oids.collect::<Vec<_>>().join(","))
            }
            other => (other as char).to_string(),
        }
    }

    /// Every message up to ReadyForQuery.
    async fn until_ready(&mut self) -> Vec<String> {
        let mut messages = Vec::new();
        loop {
            messages.push(self.next().await);
            if messages.last().is_some_and(|m| m.starts_with('Z')) {
                return messages;
            }
        }
    }

    async fn check(&mut self, sent: &[Vec<u8>], expected: &[&str]) {
        self.send(sent).await;
        assert_eq!(self.until_ready().await, expected);
    }
}

#[tokio::test]
async fn the_greeting_refuses_encryption_and_tells_the_settings() {
    let server = Server::start();
    for request in [80_877_103i32, 80_877_104] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(&[8i32.to_be_bytes(), request.to_be_bytes()].concat()).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'N');
    }
    let parameters = [
        ("user", "tester"),
        ("database", "dev"),
        ("application_name", "greeter"),
        ("options", "-c search_path=one,two --DateStyle=ISO,DMY -c app.mark=x\\ y"),
    ];
    let mut raw = Raw::connect(server.addr, &parameters).await;
    let told = raw.until_ready().await;
    for expected in [
        "S application_name=greeter",
        "S client_encoding=UTF8",
        "S DateStyle=ISO, DMY",
        "S default_transaction_read_only=off",
        "S in_hot_standby=off",
        "S integer_datetimes=on",
        "S IntervalStyle=postgres",
        "S is_superuser=on",
        "S server_encoding=UTF8",
        "S session_authorization=tester",
        "S standard_conforming_strings=on",
        "S TimeZone=UTC",
    ] {
        assert!(told.iter().any(|m| m == expected), "{expected}: {told:?}");
    }
    assert!(told.iter().any(|m| m.starts_with("S server_version=15.")));
    raw.check(
        &[query("SHOW search_path; SHOW app.mark")],
        &["T", "D one, two", "C SHOW", "T", "D x y", "C SHOW", "Z I"],
    )
    .await;
    raw.check(&[query("SET application_name = 'other'")], &["C SET", "S application_name=other", "Z I"]).await;
    let mut raw = Raw::connect(server.addr, &[("user", "tester"), ("database", "nowhere")]).await;
    assert_eq!(raw.next().await, "R");
    assert_eq!(raw.next().await, "E 3D000 database \"nowhere\" does not exist");
}

#[tokio::test]
async fn an_error_in_a_pipeline_skips_to_the_sync() {
    let server = Server::start();
    let mut raw = Raw::open(&server).await;
    raw.check(&[query("CREATE TABLE t (id int PRIMARY KEY)")], &["C CREATE TABLE", "Z I"]).await;
    let insert = |value: &str| [bind("", "i", &[value]), execute("", 0)].concat();
    let division = "E 22012 division by zero";
    raw.check(
        &[
            parse("i", "INSERT INTO t VALUES ($1)"),
            insert("1"),
            parse("", "SELECT 1 / (id - 1) FROM t"),
            bind("", "", &[]),
            execute("", 0),
            insert("2"),
            sync(),
        ],
        // What came before the error in the pipeline is undone with it.
        &["1", "2", "C INSERT 0 1", "1", "2", division, "Z I"],
    )
    .await;
    raw.check(&[query("SELECT count(*) FROM t")], &["T", "D 0", "C SELECT 1", "Z I"]).await;
    raw.check(&[insert("3"), sync(), insert("4"), sync()], &["2", "C INSERT 0 1", "Z I"]).await;
    assert_eq!(raw.until_ready().await, ["2", "C INSERT 0 1", "Z I"]);
    raw.check(&[query("SELECT id FROM t ORDER BY 1")], &["T", "D 3", "D 4", "C SELECT 2", "Z I"]).await;
    let duplicate = "E 23505 duplicate key value violates unique constraint \"t_pkey\"";
    raw.check(&[query("BEGIN"), insert("3"), sync()], &["C BEGIN", "Z T"]).await;
    assert_eq!(raw.until_ready().await, ["2", duplicate, "Z E"]);
    let aborted = "E 25P02 current transaction is aborted, commands ignored until end of transaction block";
    raw.check(&[query("SELECT 1")], &[aborted, "Z E"]).await;
    raw.check(&[query("COMMIT")], &["C ROLLBACK", "Z I"]).await;
}

#[tokio::test]
async fn a_portal_is_read_in_parts() {
    let server = Server::start();
    let mut raw = Raw::open(&server).await;
    let five = "SELECT i FROM generate_series(1, 5) AS s(i) ORDER BY i";
    raw.check(&[query("BEGIN")], &["C BEGIN", "Z T"]).await;
    raw.check(
        &[
            parse("s", five),
            describe(b'S', "s"),
            bind("p", "s", &[]),
            describe(b'P', "p"),
            execute("p", 2),
            execute("p", 2),
            message(b'H', &[]),
            sync(),
        ],
        &["1", "t ", "T", "2", "T", "D 1", "D 2", "s", "D 3", "D 4", "s", "Z T"],
    )
    .await;
    raw.check(&[execute("p", 0), execute("p", 0), sync()], &["D 5", "C SELECT 1", "C SELECT 0", "Z T"]).await;
    raw.check(
        &[close(b'P', "p"), close(b'P', "never"), execute("p", 0), sync()],
        &["3", "3", "E 34000 portal \"p\" does not exist", "Z E"],
    )
    .await;
    raw.check(&[query("ROLLBACK")], &["C ROLLBACK", "Z I"]).await;
    raw.check(
        &[close(b'S', "s"), bind("", "s", &[]), sync()],
        &["3", "E 26000 prepared statement \"s\" does not exist", "Z I"],
    )
    .await;
    raw.check(
        &[parse("", ""), bind("", "", &[]), describe(b'P', ""), execute("", 0), sync()],
        &["1", "2", "n", "I", "Z I"],
    )
    .await;
    raw.check(&[query(" ; -- nothing")], &["I", "Z I"]).await;
}

#[tokio::test]
async fn cursors_of_sql_are_portals() {
    let server = Server::start();
    let mut raw = Raw::open(&server).await;
    let declare = "DECLARE c CURSOR FOR SELECT i, $1::text AS t FROM generate_series(1, 3) AS s(i) ORDER BY i";
    raw.check(
        &[query("BEGIN"), parse("", declare), describe(b'S', ""), bind("", "", &["x"]), execute("", 0), sync()],
        &["C BEGIN", "Z T"],
    )
    .await;
    assert_eq!(raw.until_ready().await, ["1", "t 25", "n", "2", "C DECLARE CURSOR", "Z T"]);
    raw.check(&[describe(b'P', "c"), sync()], &["T", "Z T"]).await;
    raw.check(
        &[parse("", "FETCH 2 FROM c"), describe(b'S', ""), bind("", "", &[]), execute("", 0), sync()],
        &["1", "t ", "T", "2", "D 1,x", "D 2,x", "C FETCH 2", "Z T"],
    )
    .await;
    raw.check(&[query("MOVE ALL IN c; CLOSE c")], &["C MOVE 1", "C CLOSE CURSOR", "Z T"]).await;
    raw.check(&[query("FETCH c")], &["E 34000 cursor \"c\" does not exist", "Z E"]).await;
}

#[tokio::test]
async fn parameters_take_types_from_their_place_and_from_the_client() {
    let server = Server::start();
    let mut raw = Raw::open(&server).await;
    raw.check(
        &[query("CREATE TABLE t (id int8, v varchar(3), n numeric(6,2), tags text[])")],
        &["C CREATE TABLE", "Z I"],
    )
    .await;
    for (sql, oids) in [
        ("INSERT INTO t (id, v, n, tags) VALUES ($1, $2, $3, $4)", "20,1043,1700,1009"),
        ("SELECT * FROM t WHERE id = $1 AND n > $2", "20,1700"),
        ("UPDATE t SET v = $2, id = id + $3 WHERE id = $1", "20,1043,20"),
        ("SELECT $1::int4 + $2::int2, $3::varchar, $4::timestamptz", "23,21,1043,1184"),
        ("SELECT id FROM t WHERE id = ANY($1::int8[]) LIMIT $2", "1016,20"),
        ("SELECT $1", "25"),
        ("DELETE FROM t WHERE id IN ($1, $2)", "20,20"),
    ] {
        raw.send(&[parse("", sql), describe(b'S', ""), sync()]).await;
        assert_eq!(raw.until_ready().await[1], format!("t {oids}"), "{sql}");
    }
    let declared =
        message(b'P', &[b"\0SELECT $1, $2\0", &2u16.to_be_bytes(), &23i32.to_be_bytes(), &0i32.to_be_bytes()]);
    raw.check(&[declared, describe(b'S', ""), sync()], &["1", "t 23,25", "T", "Z I"]).await;
    raw.check(
        &[parse("", "SELECT $1::int4"), bind("", "", &["one"]), sync()],
        &["1", "E 22P02 invalid input syntax for type integer: \"one\"", "Z I"],
    )
    .await;
    raw.check(
        &[parse("", "SELECT $1::int4"), bind("", "", &[]), sync()],
        &["1", "E 08P01 bind message supplies 0 parameters, but prepared statement \"\" requires 1", "Z I"],
    )
    .await;
}

#[tokio::test]
async fn a_copy_that_fails_says_where() {
    let server = Server::start();
    let mut raw = Raw::open(&server).await;
    raw.check(&[query("CREATE TABLE t (id int4, v varchar(3))")], &["C CREATE TABLE", "Z I"]).await;
    let data = |text: &str| message(b'd', &[text.as_bytes()]);
    let done = || message(b'c', &[]);
    raw.check(&[query("COPY t FROM STDIN"), data("1\ta\n2\t\\N\n"), done()], &["G", "C COPY 2", "Z I"]).await;
    for (input, error) in [
        ("3\ta\nx\tb\n", "E 22P02 invalid input syntax for type integer: \"x\""),
        ("3\n", "E 22P04 missing data for column \"v\""),
        ("3\ta\tb\n", "E 22P04 extra data after last expected column"),
        ("3\tlong text\n", "E 22001 value too long for type character varying(3)"),
    ] {
        raw.check(&[query("COPY t FROM STDIN"), data(input), done()], &["G", error, "Z I"]).await;
    }
    raw.check(
        &[query("COPY t FROM STDIN"), data("3\ta\n"), message(b'f', &[b"changed my mind\0"])],
        &["G", "E 57014 COPY from stdin failed: changed my mind", "Z I"],
    )
    .await;
    raw.check(&[query("SELECT count(*) FROM t")], &["T", "D 2", "C SELECT 1", "Z I"]).await;
    raw.check(&[query("COPY t TO STDOUT (FORMAT csv, HEADER)")], &["H", "d", "d", "d", "c", "C COPY 2", "Z I"]).await;
}
