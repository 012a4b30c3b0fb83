//! Every basic type as parameter and result of prepared statements, as text and byte for byte in PostgreSQL's binary form.

use std::error::Error;
use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, TryStreamExt};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::process::Server;

/// A value in its binary form, whatever its type.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Binary(Vec<u8>);

impl ToSql for Binary {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Binary {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Binary, Box<dyn Error + Sync + Send>> {
        Ok(Binary(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Type as written, its OID, a value as PostgreSQL writes it, and what PostgreSQL's send function gives for it.
const VALUES: &[(&str, u32, &str, &str)] = &[
    ("boolean", 16, "t", "01"),
    ("boolean", 16, "f", "00"),
    ("smallint", 21, "-32768", "8000"),
    ("integer", 23, "2147483647", "7fffffff"),
    ("bigint", 20, "-9223372036854775808", "8000000000000000"),
    ("bigint", 20, "1", "0000000000000001"),
    ("real", 700, "1.5", "3fc00000"),
    ("real", 700, "-Infinity", "ff800000"),
    ("double precision", 701, "0.1", "3fb999999999999a"),
    ("double precision", 701, "NaN", "7ff8000000000000"),
    ("double precision", 701, "1.7976931348623157e+308", "7fefffffffffffff"),
    ("numeric(12,4)", 1700, "12345.6780", "0003000100000004000109291a7c"),
    ("numeric(10,2)", 1700, "0.00", "0000000000000002"),
    ("numeric(10,2)", 1700, "-0.05", "0001ffff4000000201f4"),
    ("text", 25, "häuser \\ \"x\"", "68c3a475736572205c20227822"),
    ("text", 25, "", ""),
    ("varchar(10)", 1043, "ten chars!", "74656e20636861727321"),
    ("bytea", 17, "\\x00ff5c", "00ff5c"),
    ("date", 1082, "2024-02-29", "00002279"),
    ("date", 1082, "0001-01-01", "fff4dbf9"),
    ("time", 1083, "12:34:56.789012", "0000000a8be62614"),
    ("timestamp", 1114, "2024-02-29 01:02:03.456789", "0002b579937bd115"),
    ("timestamptz", 1184, "2024-02-29 01:02:03.456789+00", "0002b579937bd115"),
    ("interval", 1186, "1 year 2 mons 3 days 04:05:06.5", "000000036c9361a0000000030000000e"),
    ("interval", 1186, "-1 days -00:00:00.000001", "ffffffffffffffffffffffff00000000"),
    (
        "integer[]",
        1007,
        "{1,NULL,3}",
        "00000001000000010000001700000003000000010000000400000001ffffffff0000000400000003",
    ),
    (
        "text[]",
        1009,
        "{a,\"b,c\",NULL,\"\"}",
        "0000000100000001000000190000000400000001000000016100000003622c63ffffffff00000000",
    ),
    ("bigint[]", 1016, "{}", "000000000000000000000014"),
];

fn bytes_of(hexadecimal: &str) -> Vec<u8> {
    let digits: Vec<u8> = hexadecimal.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The only row of a query by the simple protocol, which gives text.
async fn text_row(client: &Client, sql: &str) -> Vec<Option<String>> {
    let messages = client.simple_query(sql).await.unwrap();
    let mut rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_string)).collect()),
        _ => None,
    });
    let row = rows.next().unwrap();
    assert!(rows.next().is_none(), "{sql}");
    row
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[tokio::test]
async fn every_type_comes_back_as_it_was_sent() {
    let server = Server::start();
    let client = server.client().await;
    client.batch_execute("SET TimeZone = 'UTC'").await.unwrap();
    for (kind, oid, text, binary) in VALUES {
        let value = Binary(bytes_of(binary));
        let echo = client.prepare(&format!("SELECT $1::{kind} AS v, ($1::{kind})::text AS t")).await.unwrap();
        assert_eq!(echo.params().iter().map(Type::oid).collect::<Vec<_>>(), [*oid], "{kind}");
        assert_eq!(echo.columns().iter().map(|c| c.type_().oid()).collect::<Vec<_>>(), [*oid, 25], "{kind}");
        let row = client.query_one(&echo, &[&value]).await.unwrap();
        assert_eq!(row.get::<_, Binary>(0), value, "{kind} {text}");
        // A boolean is cast to a word, and written as a letter.
        let written = match *text {
            "t" => "true",
            "f" => "false",
            other => other,
        };
        assert_eq!(row.get::<_, String>(1), written, "{kind}");
        assert_eq!(client.query_one(&echo, &[&None::<Binary>]).await.unwrap().get::<_, Option<Binary>>(0), None);
        let read = client.prepare(&format!("SELECT {}::{kind}", quoted(text))).await.unwrap();
        assert_eq!(client.query_one(&read, &[]).await.unwrap().get::<_, Binary>(0), value, "{kind} {text}");
        let shown = text_row(&client, &format!("SELECT {}::{kind}", quoted(text))).await;
        assert_eq!(shown, [Some(text.to_string())], "{kind}");
    }
}

#[tokio::test]
async fn a_table_keeps_every_type() {
    let server = Server::start();
    let client = server.client().await;
    let columns: Vec<String> = VALUES.iter().enumerate().map(|(i, v)| format!("c{i} {}", v.0)).collect();
    client
        .batch_execute(&format!(
            "SET TimeZone = 'UTC'; CREATE TABLE every (id int8 PRIMARY KEY, {})",
            columns.join(", ")
        ))
        .await
        .unwrap();
    let marks: Vec<String> = (1..=VALUES.len() + 1).map(|i| format!("${i}")).collect();
    let insert = client.prepare(&format!("INSERT INTO every VALUES ({})", marks.join(", "))).await.unwrap();
    let oids: Vec<u32> = std::iter::once(20).chain(VALUES.iter().map(|v| v.1)).collect();
    assert_eq!(insert.params().iter().map(Type::oid).collect::<Vec<_>>(), oids);
    let values: Vec<Binary> = VALUES.iter().map(|v| Binary(bytes_of(v.3))).collect();
    let nulls: Vec<Option<Binary>> = VALUES.iter().map(|_| None).collect();
    let row = |id: &'static i64| std::iter::once(id as &(dyn ToSql + Sync));
    let full: Vec<_> = row(&1).chain(values.iter().map(|v| v as &(dyn ToSql + Sync))).collect();
    let empty: Vec<_> = row(&2).chain(nulls.iter().map(|v| v as &(dyn ToSql + Sync))).collect();
    assert_eq!(client.execute(&insert, &full).await.unwrap(), 1);
    assert_eq!(client.execute(&insert, &empty).await.unwrap(), 1);

    let read = client.prepare("SELECT * FROM every WHERE id = $1").await.unwrap();
    assert_eq!(read.columns().iter().map(|c| c.type_().oid()).collect::<Vec<_>>(), oids);
    let table: u32 = client.query_one("SELECT 'every'::regclass::oid", &[]).await.unwrap().get(0);
    let origins: Vec<_> = read.columns().iter().map(|c| (c.table_oid(), c.column_id())).collect();
    assert_eq!(origins, (1..=oids.len() as i16).map(|n| (Some(table), Some(n))).collect::<Vec<_>>());
    let full = client.query_one(&read, &[&1i64]).await.unwrap();
    let empty = client.query_one(&read, &[&2i64]).await.unwrap();
    let shown = text_row(&client, "SELECT * FROM every WHERE id = 1").await;
    for (i, (kind, _, text, _)) in VALUES.iter().enumerate() {
        assert_eq!(full.get::<_, Binary>(i + 1), values[i], "{kind} {text}");
        assert_eq!(empty.get::<_, Option<Binary>>(i + 1), None, "{kind}");
        assert_eq!(shown[i + 1].as_deref(), Some(*text), "{kind}");
    }

    // What COPY gives in binary form it also takes.
    let copy = client.copy_out("COPY every TO STDOUT (FORMAT binary)").await.unwrap();
    let copied: Vec<Bytes> = copy.try_collect().await.unwrap();
    client.batch_execute("DELETE FROM every").await.unwrap();
    let mut sink = pin!(client.copy_in::<_, Bytes>("COPY every FROM STDIN (FORMAT binary)").await.unwrap());
    for piece in copied {
        sink.send(piece).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 2);
    assert_eq!(text_row(&client, "SELECT * FROM every WHERE id = 1").await, shown);
    let empty = client.query_one(&read, &[&2i64]).await.unwrap();
    assert!((0..VALUES.len()).all(|i| empty.get::<_, Option<Binary>>(i + 1).is_none()));
}

#[tokio::test]
async fn small_numbers_keep_the_type_of_their_column() {
    let server = Server::start();
    let client = server.client().await;
    client.batch_execute("CREATE TABLE t (id int8 PRIMARY KEY, small int2, name varchar(5))").await.unwrap();
    let insert =
        client.prepare("INSERT INTO t VALUES ($1, $2, $3), ($4, 7, 'x') RETURNING id, small, name").await.unwrap();
    let types: Vec<Type> = insert.params().to_vec();
    assert_eq!(types, [Type::INT8, Type::INT2, Type::VARCHAR, Type::INT8]);
    let rows = client.query(&insert, &[&1i64, &2i16, &"one", &i64::MAX]).await.unwrap();
    assert_eq!(rows.iter().map(|r| r.get::<_, i64>(0)).collect::<Vec<_>>(), [1, i64::MAX]);
    let types: Vec<Type> = rows[0].columns().iter().map(|c| c.type_().clone()).collect();
    assert_eq!(types, [Type::INT8, Type::INT2, Type::VARCHAR]);
    let changed = client.execute("UPDATE t SET small = small + $1, name = $2 WHERE id = $3", &[&1i16, &"two", &1i64]);
    assert_eq!(changed.await.unwrap(), 1);
    let row = client.query_one("SELECT small, name FROM t WHERE id = $1", &[&1i64]).await.unwrap();
    assert_eq!((row.get::<_, i16>(0), row.get::<_, &str>(1)), (3, "two"));
}
