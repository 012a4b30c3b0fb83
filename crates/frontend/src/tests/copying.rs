//! COPY in both directions.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Date32Type, Decimal128Type, Int32Type};

use super::fake::Server;
use super::raw::{Raw, field, message, query, summary};
use crate::FrontendConfig;

/// Sends `input` in messages of `piece` bytes and returns the answer to the whole COPY.
async fn copy_in(raw: &mut Raw, command: &str, input: &[u8], piece: usize) -> Vec<(u8, Vec<u8>)> {
    raw.send(&query(command)).await;
    assert_eq!(raw.next().await.unwrap().0, b'G');
    for piece in input.chunks(piece) {
        raw.send(&message(b'd', piece)).await;
    }
    raw.send(&message(b'c', b"")).await;
    raw.until(b'Z').await
}

#[tokio::test]
async fn rows_copied_in_come_out_the_same() {
    let server = Server::start(FrontendConfig::default()).await;
    let mut raw = Raw::log_in(&server).await;
    let columns = "a:int4|b:text|c:numeric(10,2)|d:date|e:int4[]|f:bytea|g:timestamptz|h:bool";
    let text = "1\ttab\\there\t1.50\t2024-02-29\t{1,NULL}\t\\\\x00ff\t2024-01-01 00:00:00+00\tt\n\
                \\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\n\
                3\tback\\\\slash\\nline\t-0.01\tinfinity\t{}\t\\\\x\tinfinity\tf\n";
    for piece in [1, 7, 10_000] {
        let answer = copy_in(&mut raw, &format!("copyin text {columns}"), text.as_bytes(), piece).await;
        assert_eq!(summary(&answer), "C:COPY 3 Z:I");
        raw.send(&query(&format!("copyout text {columns}"))).await;
        let answer = raw.until(b'Z').await;
        assert_eq!(summary(&answer), "H d d d c C:COPY 3 Z:I");
        let back: Vec<u8> = answer.iter().filter(|m| m.0 == b'd').flat_map(|m| m.1.clone()).collect();
        assert_eq!(String::from_utf8(back).unwrap(), text);
    }
    let csv = "1,\"quote\"\"d, and\nbroken\",1.50,2024-02-29,\"{1,NULL}\",\\x00ff,2024-01-01 00:00:00+00,t\n\
               ,,,,,,,\n\
               3,\"\",-0.01,infinity,{},\\x,infinity,f\n";
    let answer = copy_in(&mut raw, &format!("copyin csv {columns}"), csv.as_bytes(), 5).await;
    assert_eq!(summary(&answer), "C:COPY 3 Z:I");
    raw.send(&query(&format!("copyout csv {columns}"))).await;
    let answer = raw.until(b'Z').await;
    let back: Vec<u8> = answer.iter().filter(|m| m.0 == b'd').flat_map(|m| m.1.clone()).collect();
    assert_eq!(String::from_utf8(back).unwrap(), csv);
}

#[tokio::test]
async fn binary_rows_copied_in_come_out_the_same() {
    let server = Server::start(FrontendConfig::default()).await;
    let mut raw = Raw::log_in(&server).await;
    let columns = "a:int4|b:text|c:numeric(10,2)|d:date|e:int4[]|f:bytea|g:timestamptz|h:bool|i:interval|j:text[]";
    let text = "1\tab\t1.50\t2024-02-29\t{1,NULL}\t\\\\x00ff\t2024-01-01 00:00:00+00\tt\t1 mon 2 days 00:00:03\t{a,NULL}\n\
                \\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\n\
                3\t\t-0.01\tinfinity\t{}\t\\\\x\tinfinity\tf\t00:00:00\t{}\n";
    let answer = copy_in(&mut raw, &format!("copyin text {columns}"), text.as_bytes(), 100).await;
    assert_eq!(summary(&answer), "C:COPY 3 Z:I");
    raw.send(&query(&format!("copyout binary {columns}"))).await;
    let answer = raw.until(b'Z').await;
    assert_eq!(summary(&answer), "H d d d d c C:COPY 3 Z:I");
    assert_eq!(answer[0].1[..5], [1, 0, 10, 0, 1]);
    let binary: Vec<u8> = answer.iter().filter(|m| m.0 == b'd').flat_map(|m| m.1.clone()).collect();
    server.store.lock().unwrap().copied = None;
    for piece in [1, 13, 10_000] {
        let answer = copy_in(&mut raw, &format!("copyin binary {columns}"), &binary, piece).await;
        assert_eq!(summary(&answer), "C:COPY 3 Z:I");
        raw.send(&query(&format!("copyout text {columns}"))).await;
        let answer = raw.until(b'Z').await;
        let back: Vec<u8> = answer.iter().filter(|m| m.0 == b'd').flat_map(|m| m.1.clone()).collect();
        assert_eq!(String::from_utf8(back).unwrap(), text);
    }
    // Cut off anywhere but between rows it is refused; so is anything that is not this format.
    for cut in 0..binary.len() - 2 {
        let answer = copy_in(&mut raw, &format!("copyin binary {columns}"), &binary[..cut], 10_000).await;
        let answer = summary(&answer);
        assert!(answer == "E:22P04 Z:I" || answer.starts_with("C:COPY"), "cut at {cut}: {answer}");
    }
    let answer = copy_in(&mut raw, "copyin binary a:int4", b"1\n2\n", 10_000).await;
    assert_eq!(summary(&answer), "E:22P04 Z:I");
    let answer = copy_in(&mut raw, "copyin binary a:int4", &binary, 10_000).await;
    assert_eq!(field(&answer[0].1, b'M'), "row field count is 10, expected 1");
}

#[tokio::test]
async fn many_rows_come_in_batches() {
    let server = Server::start(FrontendConfig::default()).await;
    let mut raw = Raw::log_in(&server).await;
    let text: String = (0..50_000).map(|i| format!("{i}\t{}.25\t2024-01-02\n", i % 100)).collect();
    let answer = copy_in(&mut raw, "copyin text a:int4|b:numeric(10,2)|c:date", text.as_bytes(), 8000).await;
    assert_eq!(summary(&answer), "C:COPY 50000 Z:I");
    let store = server.store.lock().unwrap();
    let copied = store.copied.as_ref().unwrap();
    let numbers = copied.column(0).as_primitive::<Int32Type>();
    assert!(numbers.values().iter().enumerate().all(|(i, v)| i as i32 == *v) && numbers.null_count() == 0);
    assert_eq!(copied.column(1).as_primitive::<Decimal128Type>().value(49_999), 9925);
    assert_eq!(copied.column(2).as_primitive::<Date32Type>().value(0), 19_724);
}

#[tokio::test]
async fn a_bad_row_says_where_it_is() {
    let server = Server::start(FrontendConfig::default()).await;
    let check = |command: &'static str, input: &'static str, state: &'static str, context: &'static str| {
        let server = &server;
        async move {
            let mut raw = Raw::log_in(server).await;
            let answer = copy_in(&mut raw, command, input.as_bytes(), 4).await;
            assert_eq!(summary(&answer), format!("E:{state} Z:I"), "{input:?}");
            assert_eq!(field(&answer[0].1, b'W'), context);
            // What was still on its way belongs to the failed COPY; the conversation goes on.
            raw.send(&query("count")).await;
            assert_eq!(summary(&raw.until(b'Z').await), "T D C:SELECT 1 Z:I");
        }
    };
    check("copyin text a:int4|b:int4", "1\t2\n3\tx\n", "22P02", "COPY t, line 2, column b: \"x\"").await;
    check("copyin text a:int4|b:int4", "1\tx\ny\t2\n", "22P02", "COPY t, line 1, column b: \"x\"").await;
    check("copyin text a:int4|b:int4", "1\tx\n2\n", "22P02", "COPY t, line 1, column b: \"x\"").await;
    check("copyin text a:int4|b:int4", "1\t2\n3\n", "22P04", "COPY t, line 2: \"3\"").await;
    check("copyin text a:int4|b:int4", "1\t2\t3\n", "22P04", "COPY t, line 1: \"1\t2\t3\"").await;
    check("copyin text a:int4", "99999999999\n", "22003", "COPY t, line 1, column a: \"99999999999\"").await;
    check("copyin csv a:int4|b:text", "1,\"a\nb\"\n2,\"\n", "22P04", "COPY t, line 4").await;
    check("copyin header a:int4|b:int4", "a,b\n1,x\n", "22P02", "COPY t, line 2, column b: \"x\"").await;
    check("copyin header a:int4|b:int4", "a,c\n1,2\n", "22P04", "COPY t, line 1: \"a,c\"").await;
    check("copyin text a:date", "2024-02-30\n", "22008", "COPY t, line 1, column a: \"2024-02-30\"").await;
    check("copyin text a:bool", "maybe\n", "22P02", "COPY t, line 1, column a: \"maybe\"").await;
    assert!(server.store.lock().unwrap().copied.is_none());
}

#[tokio::test]
async fn text_that_is_not_utf8_is_refused() {
    let server = Server::start(FrontendConfig::default()).await;
    let mut raw = Raw::log_in(&server).await;
    let answer = copy_in(&mut raw, "copyin text a:text", b"good\nb\xffd\n", 100).await;
    assert_eq!(summary(&answer), "E:22021 Z:I");
    let answer = copy_in(&mut raw, "copyin text a:text", b"good\nb\0d\n", 100).await;
    assert_eq!(summary(&answer), "E:22021 Z:I");
}

#[tokio::test]
async fn a_copy_that_is_given_up_leaves_nothing() {
    let server = Server::start(FrontendConfig::default()).await;
    let mut raw = Raw::log_in(&server).await;
    raw.send(&[query("copyin text a:int4"), message(b'd', b"1\n2\n"), message(b'f', b"no more\0")].concat()).await;
    let answer = raw.until(b'Z').await;
    assert_eq!(summary(&answer), "G E:57014 Z:I");
    assert_eq!(field(&answer[1].1, b'M'), "COPY from stdin failed: no more");
    // A message that has no place in a COPY ends it as well.
    raw.send(&[query("copyin text a:int4"), message(b'd', b"1\n"), query("count"), query("count")].concat()).await;
    assert_eq!(summary(&raw.rest().await), "G E:08P01 E:08P01");
    let mut raw = Raw::log_in(&server).await;
    // So does going away.
    raw.send(&[query("copyin text a:int4"), message(b'd', b"1\n")].concat()).await;
    drop(raw);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(server.store.lock().unwrap().copied.is_none());
}

#[tokio::test]
async fn copy_in_the_extended_protocol_ignores_the_early_sync() {
    use futures::SinkExt;
    let server = Server::start(FrontendConfig::default()).await;
    let client = server.client().await;
    let sink = client.copy_in("copyin csv a:int4").await.unwrap();
    let mut sink = Box::pin(sink);
    sink.send(bytes::Bytes::from_static(b"1\n2\n")).await.unwrap();
    assert_eq!(sink.as_mut().finish().await.unwrap(), 2);
    let sink = client.copy_in("copyin csv a:int4").await.unwrap();
    let mut sink = Box::pin(sink);
    sink.send(bytes::Bytes::from_static(b"1\nx\n")).await.unwrap();
    assert!(sink.as_mut().finish().await.is_err());
    use futures::TryStreamExt;
    let out = client.copy_out("copyout csv a:int4").await.unwrap();
    let rows: Vec<bytes::Bytes> = Box::pin(out).try_collect().await.unwrap();
    assert_eq!(rows, [&b"1\n"[..], b"2\n"]);
}
