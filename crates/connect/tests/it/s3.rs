//! Objects of an S3 service, which `tests/s3.sh` starts.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use ::parquet::arrow::ArrowWriter;
use arrow::array::{ArrayRef, Int64Array, StringArray};
use connect::{Offset, ReadState};
use flow::Epoch;

use super::exactly_once::{Place, crash_at_every_point};
use super::*;

fn endpoint() -> String {
    std::env::var("MILLSTREAM_S3_ENDPOINT").expect("run tests/s3.sh")
}

/// A request to the service, which wants a signature and does not check it.
fn request(method: &str, key: &str, body: &[u8]) -> Vec<u8> {
    let address = endpoint().replace("http://", "");
    let mut stream = TcpStream::connect(&address).unwrap();
    let head = format!(
        "{method} /bucket/{key} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\nConnection: close\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let content = answer.split_off(end);
    let head = String::from_utf8_lossy(&answer);
    assert!(head.starts_with("HTTP/1.1 20"), "{method} {key}: {head}");
    content
}

pub(crate) fn get(key: &str) -> Vec<u8> {
    request("GET", key, b"")
}

pub(crate) fn delete(key: &str) {
    request("DELETE", key, b"");
}

/// The names of the objects below a folder.
pub(crate) fn names(folder: &str) -> BTreeSet<String> {
    let listed = request("GET", &format!("?list-type=2&prefix={folder}"), b"");
    let listed = String::from_utf8(listed).unwrap();
    let keys = listed.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
    keys.map(|(key, _)| key.strip_prefix(folder).unwrap().to_string()).collect()
}

/// The options that reach the service.
pub(crate) fn reach() -> Vec<(String, String)> {
    let pairs = [("s3.allow_http", "true".into()), ("s3.region", "us-east-1".into()), ("s3.endpoint", endpoint())];
    pairs.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

pub(crate) fn put(key: &str, body: impl AsRef<[u8]>) {
    request("PUT", key, body.as_ref());
}

#[test]
#[ignore = "needs tests/s3.sh"]
fn s3_objects_are_written_once_whenever_it_crashes() {
    for seed in 100..106 {
        let encode = ["json", "csv", "parquet"][seed as usize % 3];
        let more: &[(&str, &str)] = if seed % 2 == 0 { &[("partition_by", "p"), ("roll_size", "1kB")] } else { &[] };
        println!("seed {seed}");
        crash_at_every_point(&Place::S3(format!("exact/{seed}")), encode, more, seed, 15);
    }
}

#[test]
#[ignore = "needs tests/s3.sh"]
fn s3_objects_in_parts_are_published_whole() {
    let place = Place::S3("exact/parts".into());
    let options = place.options("PLAIN", "json", &[]);
    let mut writer = exactly_once::open_new(&options, 1);
    // More than two parts in one object, and nothing to see before the commit.
    let count = 600_000;
    for start in (0..count).step_by(20_000) {
        writer.write(Epoch(1), &exactly_once::rows(start..start + 20_000)).unwrap();
    }
    writer.finish_epoch(Epoch(1), 0).unwrap();
    let prepared = writer.prepare(Epoch(1)).unwrap();
    assert!(names("exact/parts/").iter().all(|name| name.starts_with(".millstream-staged/")));
    writer.commit(&exactly_once::permit(1), &prepared).unwrap();
    let found = names("exact/parts/");
    let want = [".millstream-staged/16400-3.committed", "part-16400-3-000000000001-000000.ndjson"];
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), want);
    let bytes = get(&format!("exact/parts/{}", want[1]));
    assert!(bytes.len() > 2 * (8 << 20), "{}", bytes.len());
    assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), count as usize);
    // Taken away by a reader: the commit is known to be done. Without its note it is not.
    delete(&format!("exact/parts/{}", want[1]));
    exactly_once::resume(&options, 2, 1, &prepared).unwrap();
    delete(&format!("exact/parts/{}", want[0]));
    let e = exactly_once::resume(&options, 3, 1, &prepared).err().unwrap();
    assert_eq!(e.state().code(), "XX001");
    assert!(e.message().contains(want[1]), "{e}");
    // Nobody knows the bucket.
    let pairs = reach().into_iter().chain(
        [("connector", "file"), ("path", "s3://nobucket/x/"), ("delivery", "exactly_once"), ("format", "json")]
            .map(|(name, value)| (name.to_string(), value.to_string())),
    );
    let e = exactly_once::resume(&Options::new(pairs).unwrap(), 4, 1, &prepared).err().unwrap();
    assert_eq!((e.state().code(), e.hint().is_some()), ("58030", true), "{e:?}");
}

fn s3(format: &str, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut pairs = vec![("s3.allow_http", "true"), ("s3.region", "us-east-1"), ("format", format)];
    pairs.extend(more);
    let mut pairs: Vec<(String, String)> = pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
    pairs.push(("s3.endpoint".into(), endpoint()));
    pairs
}

fn open_s3(path: &str, format: &str, more: &[(&str, &str)], s: &SchemaRef) -> flow::Result<Box<dyn Source>> {
    let pairs = s3(format, more);
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    open(Path::new(path), &pairs, s)
}

fn everything(source: &dyn Source) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for split in source.splits().unwrap() {
        rows.extend(table(&read_all(&mut *source.reader(&split, None).unwrap()).0));
    }
    rows
}

#[test]
#[ignore = "needs tests/s3.sh"]
fn s3_objects_of_text_are_read_in_ranges_with_their_errors() {
    let s = schema(&[("id", "int8"), ("t", "text")]);
    // More than two ranges, with a bad line in each third.
    let mut text = String::from("id,t\n");
    for n in 0..150_000 {
        match n % 50_000 {
            49_999 => text.push_str("bad\n"),
            _ => text.push_str(&format!("{n},{}\n", "x".repeat(60))),
        }
    }
    put("text/big.csv", &text);
    put("text/small.csv", "t,id\ny,-1\n");
    put("text/not.txt", "nothing");
    let source = open_s3("s3://bucket/text/*.csv", "csv", &[("header", "true")], &s).unwrap();
    let splits = source.splits().unwrap();
    assert_eq!(splits, ["big", "small"].map(|n| Split(format!("s3://bucket/text/{n}.csv"))));
    assert_eq!(source.size(&splits[0]), text.len() as u64);
    let mut reader = source.reader(&splits[0], None).unwrap();
    let (rows, bad, end, state) = drain(&mut *reader, Offset::START, || (8192, 4 << 20), None);
    assert_eq!((rows.num_rows(), end.0, state), (149_997, text.len() as u64, ReadState::End));
    assert_eq!(
        bad.iter().map(|b| (b.line, &b.bytes[..])).collect::<Vec<_>>(),
        [50_001, 100_001, 150_001].map(|l| (l, &b"bad\n"[..]))
    );
    // From the middle on, as a late reader would.
    let middle = bad[1].offset;
    let (rest, bad, _, _) = drain(&mut *source.reader(&splits[0], None).unwrap(), middle, || (1000, 1 << 20), None);
    assert_eq!((rest.num_rows(), bad[0].line), (49_999, 100_001));
    assert_eq!(table(&read_all(&mut *source.reader(&splits[1], Some(&[0])).unwrap()).0), strings(&[&["-1"]]));
    // Columns are inferred as from files.
    let pairs = s3("csv", &[("header", "true")]);
    let own = [("connector".to_string(), "file".to_string()), ("path".into(), "s3://bucket/text/small.csv".into())];
    let options = Options::new(own.into_iter().chain(pairs)).unwrap();
    let inferred = connect::source("file").unwrap().infer_schema(&options, 10).unwrap();
    assert_eq!(inferred.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>(), ["t", "id"]);
}

#[test]
#[ignore = "needs tests/s3.sh"]
fn s3_objects_of_parquet_are_read_by_column() {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..200_000));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(
        (0..200_000u64).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))),
    ));
    let batch = RecordBatch::try_from_iter([("id", ids), ("t", texts)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    put("parquet/a.parquet", &bytes);
    let s = schema(&[("id", "int8"), ("t", "text")]);
    let source = open_s3("s3://bucket/parquet/", "parquet", &[], &s).unwrap();
    let rows = read_all(&mut *source.reader(&source.splits().unwrap()[0], None).unwrap()).0;
    assert_eq!(rows.column(0), batch.column(0));
    assert_eq!(table(&rows.slice(199_999, 1)), table(&batch.slice(199_999, 1)));
    put("parquet/b.parquet", "PAR1");
    let e = open_s3("s3://bucket/parquet/*", "parquet", &[], &s).err().unwrap();
    assert_eq!(e.state().code(), "XX001");
    assert!(e.message().contains("s3://bucket/parquet/b.parquet"), "{e}");
}

#[test]
#[ignore = "needs tests/s3.sh"]
fn s3_objects_are_followed_by_name_and_pinned() {
    let s = schema(&[("id", "int8")]);
    let source = open_s3("s3://bucket/follow/*.json", "json", &[("follow", "true")], &s).unwrap();
    assert_eq!(source.splits().unwrap(), []);
    assert_eq!(source.poll_interval().as_secs(), 10);
    put("follow/b.json", "{\"id\":1}\n{\"id\":2}");
    assert_eq!(everything(&*source), strings(&[&["1"], &["2"]]));
    put("follow/a.json", "{\"id\":3}\n");
    assert_eq!(everything(&*source), strings(&[&["3"], &["1"], &["2"]]));
    let splits = source.splits().unwrap();
    let mut open_before = source.reader(&splits[1], None).unwrap();
    put("follow/b.json", "{\"id\":1}\n{\"id\":9}");
    for e in [source.splits().unwrap_err(), open_before.read(Offset::START, 10, 100, None).unwrap_err()] {
        assert_eq!(e.state().code(), "XX001");
        assert!(e.message().contains("s3://bucket/follow/b.json"), "{e}");
    }
    let source = open_s3("s3://bucket/follow/*.json", "json", &[("follow", "true")], &s).unwrap();
    source.splits().unwrap();
    request("DELETE", "follow/b.json", b"");
    assert!(source.splits().unwrap_err().message().contains("removed"));
    let e = open_s3("s3://bucket/follow/a.json", "json", &[("follow", "true")], &s).err().unwrap();
    assert_eq!((e.state().code(), e.hint().is_some()), ("22023", true));
}

#[test]
#[ignore = "needs tests/s3.sh"]
fn s3_refusals_have_a_state_and_a_hint_and_no_secret() {
    let s = schema(&[("id", "int8")]);
    let e = open_s3("s3://bucket/none.csv", "csv", &[], &s).err().unwrap();
    assert_eq!((e.state().code(), e.hint().is_some()), ("58P01", true), "{e}");
    let e = open_s3("s3://bucket/none*.csv", "csv", &[], &s).err().unwrap();
    assert_eq!((e.state().code(), e.hint().is_some()), ("58P01", true), "{e}");
    let e = open_s3("s3://nobucket/a.csv", "csv", &[], &s).err().unwrap();
    assert!(["58P01", "58030"].contains(&e.state().code()), "{e:?}");
    let e = open_s3("s3://nobucket/*.csv", "csv", &[], &s).err().unwrap();
    assert!(["58P01", "58030"].contains(&e.state().code()), "{e:?}");
    // Nobody listens there.
    let secret = "wJalrXUtnFEMI";
    let pairs = [
        ("format", "csv"),
        ("s3.allow_http", "true"),
        ("s3.endpoint", "http://127.0.0.1:1"),
        ("s3.access_key_id", "someone"),
        ("s3.secret_access_key", secret),
    ];
    let e = open(Path::new("s3://bucket/a.csv"), &pairs, &s).err().unwrap();
    assert_eq!((e.state().code(), e.hint().is_some()), ("58030", true));
    assert!(!format!("{e:?}").contains(secret), "{e:?}");
    // Without permission to go unencrypted.
    let pairs = [("format", "csv"), ("s3.endpoint", "http://127.0.0.1:1"), ("s3.allow_http", "false")];
    let e = open(Path::new("s3://bucket/a.csv"), &pairs, &s).err().unwrap();
    assert!(e.hint().unwrap().contains("s3.allow_http"), "{e:?}");
}
