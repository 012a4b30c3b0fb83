//! Bounded files: values, errors, portions, projection.

use std::fmt::Write as _;

use connect::{Offset, ReadState};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

const ALL_TYPES: &[(&str, &str)] = &[
    ("b", "bool"),
    ("i2", "int2"),
    ("i4", "int4"),
    ("i8", "int8"),
    ("f4", "float4"),
    ("f8", "float8"),
    ("n", "numeric(10,2)"),
    ("t", "text"),
    ("y", "bytea"),
    ("d", "date"),
    ("tm", "time"),
    ("ts", "timestamp"),
    ("tz", "timestamptz"),
    ("iv", "interval"),
    ("a", "int4[]"),
    ("at", "text[]"),
];

#[test]
fn csv_and_json_give_the_same_values_of_every_type() {
    let folder = Folder::new();
    let csv = folder.write(
        "a.csv",
        "t,1,-2,3,1.5,-2.5e3,12.345,\"a \"\"quoted\"\", text\",\\x00ff,2024-02-29,01:02:03.5,2024-02-29 01:02:03,2024-02-29 01:02:03+02,1 day 02:00:00,\"{1,NULL,3}\",\"{a,\"\"b,c\"\",NULL}\"\n\
         ,,,,,,,,,,,,,,,\n",
    );
    let json = folder.write(
        "a.json",
        r#"{"b":true,"i2":1,"i4":-2.0,"i8":3e0,"f4":1.5,"f8":-2.5e3,"n":12.345,"t":"a \"quoted\", text","y":"\\x00ff","d":"2024-02-29","tm":"01:02:03.5","ts":"2024-02-29T01:02:03","tz":"2024-02-29T01:02:03+02:00","iv":"P1DT2H","a":[1,null,3],"at":["a","b,c",null]}
{"b":null,"i2":null,"x":[{}]}
"#,
    );
    let schema = schema(ALL_TYPES);
    let (from_csv, bad) = read_all(&mut *reader(&csv, &[("format", "csv")], &schema));
    assert_eq!(bad, []);
    let (from_json, bad) = read_all(&mut *reader(&json, &[("format", "json")], &schema));
    assert_eq!(bad, []);
    assert_eq!(table(&from_csv), table(&from_json));
    assert_eq!(from_csv, from_json);
    let first = &table(&from_csv)[0];
    assert_eq!(
        first[..9],
        ["true", "1", "-2", "3", "1.5", "-2500.0", "12.35", "a \"quoted\", text", "00ff"].map(String::from)
    );
    assert_eq!(first[12], "2024-02-28T23:02:03Z");
    assert!(table(&from_csv)[1].iter().all(|v| v == "NULL"));
}

#[test]
fn json_text_columns_hold_nested_values_and_numbers_as_written() {
    let folder = Folder::new();
    let path = folder.write("a.json", "{\"t\":{\"x\": [1, 2]}}\n{\"t\":1.50}\n{\"t\":\"\\u00e9\\n\"}\n{\"t\":true}\n");
    let (rows, _) = read_all(&mut *reader(&path, &[("format", "json")], &schema(&[("t", "text")])));
    assert_eq!(table(&rows), strings(&[&["{\"x\": [1, 2]}"], &["1.50"], &["é\n"], &["true"]]));
}

#[test]
fn a_malformed_record_stops_the_source_after_the_rows_before_it() {
    let folder = Folder::new();
    let path = folder.write("a.csv", "1,a\n2,\"b\nb\"\nx3,c\n4,d\n");
    let schema = schema(&[("id", "int8"), ("t", "text")]);
    let mut reader = reader(&path, &[("format", "csv"), ("on_error", "stop")], &schema);
    let first = reader.read(Offset::START, 100, 1 << 20, None).unwrap();
    assert_eq!((first.batch.num_rows(), first.next, first.state), (2, Offset(12), ReadState::More));
    let e = reader.read(first.next, 100, 1 << 20, None).unwrap_err();
    assert_eq!(e.state().code(), "22P02");
    assert_eq!(e.message(), "invalid input syntax for type bigint: \"x3\"");
    assert_eq!(e.detail().unwrap(), format!("File \"{}\", line 4, column \"id\": x3,c", path.display()));
    assert!(e.hint().is_some());
    // The same again: an error is as deterministic as rows are.
    assert_eq!(reader.read(first.next, 1, 1, None).unwrap_err(), e);
    assert_eq!(reader.read(Offset::START, 100, 1 << 20, None).unwrap().batch, first.batch);
}

#[test]
fn a_header_that_was_not_announced_is_hinted_at() {
    let folder = Folder::new();
    let path = folder.write("a.csv", "id\n1\n");
    let mut r = reader(&path, &[("format", "csv"), ("on_error", "stop")], &schema(&[("id", "int8")]));
    let e = r.read(Offset::START, 10, 100, None).unwrap_err();
    assert_eq!(e.hint(), Some("If the first line holds column names, add header = 'true'."));
}

#[test]
fn skipped_records_are_reported_with_place_and_reason() {
    let folder = Folder::new();
    let path = folder.write("a.csv", b"1,a,1\nx,b,2\n3,c\n4,\"d\n5,\xff,3\n6,\0,4\n7,g,\n99999,h,5\n8,i,6");
    let schema = schema(&[("id", "int2"), ("t", "text"), ("n", "int4!")]);
    let (rows, bad) = read_all(&mut *reader(&path, &[("format", "csv"), ("on_error", "skip")], &schema));
    assert_eq!(table(&rows), strings(&[&["1", "a", "1"], &["8", "i", "6"]]));
    let got: Vec<(u64, Option<&str>, &str)> =
        bad.iter().map(|b| (b.line, b.column.as_deref(), b.reason.as_str())).collect();
    let want = [
        (2, Some("id"), "invalid input syntax for type smallint: \"x\""),
        (3, None, "the record has 2 fields instead of 3"),
        (4, None, "a quoted field does not end"),
        (5, None, "invalid UTF-8 at byte 3 of the record"),
        (6, None, "a NUL character at byte 3 of the record"),
        (7, Some("n"), "null value in column \"n\", which is NOT NULL"),
        (8, Some("id"), "value \"99999\" is out of range for type smallint"),
    ];
    assert_eq!(got, want);
    assert_eq!((bad[0].offset, &bad[0].bytes[..]), (Offset(6), &b"x,b,2\n"[..]));
}

#[test]
fn invalid_text_in_json_spoils_its_record_only() {
    let folder = Folder::new();
    let path = folder
        .write("a.json", b"{\"t\":\"a\"}\n{\"t\":\"\xff\"}\n{\"t\":\"\\ud800\"}\n{\"t\":\"\\u0000\"}\n{\"t\":\"b\"}\n");
    let (rows, bad) =
        read_all(&mut *reader(&path, &[("format", "json"), ("on_error", "skip")], &schema(&[("t", "text")])));
    assert_eq!(
        (table(&rows), bad.iter().map(|b| b.line).collect::<Vec<_>>()),
        (strings(&[&["a"], &["b"]]), vec![2, 3, 4])
    );
}

#[test]
fn headers_find_columns_by_name_or_are_skipped() {
    let folder = Folder::new();
    let path = folder.write("a.csv", "\u{feff}B;\"a\";extra\n1;x;?\n2;y;!\n");
    let schema_ab = schema(&[("a", "text"), ("b", "int8")]);
    let pairs = [("format", "csv"), ("header", "true"), ("delimiter", ";")];
    let (rows, _) = read_all(&mut *reader(&path, &pairs, &schema_ab));
    assert_eq!(table(&rows), strings(&[&["x", "1"], &["y", "2"]]));
    let pairs = [("format", "csv"), ("header", "skip"), ("delimiter", ";")];
    let (rows, _) = read_all(&mut *reader(&path, &pairs, &schema(&[("p", "int8"), ("q", "text"), ("r", "text")])));
    assert_eq!(table(&rows), strings(&[&["1", "x", "?"], &["2", "y", "!"]]));
    let e = open(&path, &[("format", "csv"), ("header", "true"), ("delimiter", ";")], &schema(&[("extro", "text")]))
        .err()
        .unwrap();
    assert_eq!((e.state().code(), e.hint()), ("42703", Some("Perhaps the column is \"extra\".")));
    // A byte order mark without a header, and an empty file with one.
    let path = folder.write("b.csv", "\u{feff}7\n");
    assert_eq!(
        table(&read_all(&mut *reader(&path, &[("format", "csv")], &schema(&[("i", "int8")]))).0),
        strings(&[&["7"]])
    );
    let path = folder.write("c.csv", "");
    assert_eq!(
        read_all(&mut *reader(&path, &[("format", "csv"), ("header", "true")], &schema(&[("i", "int8")]))).0.num_rows(),
        0
    );
}

#[test]
fn null_text_applies_to_fields_without_quotes() {
    let folder = Folder::new();
    let path = folder.write("a.csv", "NULL,\"NULL\",\n");
    let s = schema(&[("a", "text"), ("b", "text"), ("c", "text")]);
    let (rows, _) = read_all(&mut *reader(&path, &[("format", "csv"), ("null", "NULL")], &s));
    assert_eq!(rows.column(0).null_count(), 1);
    assert_eq!(table(&rows), strings(&[&["NULL", "NULL", ""]]));
    assert_eq!(rows.column(1).null_count() + rows.column(2).null_count(), 0);
}

#[test]
fn opening_says_what_is_wrong_with_file_options_and_columns() {
    let folder = Folder::new();
    let path = folder.write("a.csv", "1\n");
    let s = schema(&[("a", "int8")]);
    let code = |path: &Path, pairs: &[(&str, &str)], s: &SchemaRef| open(path, pairs, s).err().unwrap().state().code();
    assert_eq!(code(&folder.path("missing.csv"), &[("format", "csv")], &s), "58P01");
    assert_eq!(code(folder.0.path(), &[("format", "csv")], &s), "42809");
    assert_eq!(code(&path, &[], &s), "22023");
    assert_eq!(code(&path, &[("format", "xml")], &s), "22023");
    assert_eq!(code(&path, &[("format", "csv"), ("folow", "true")], &s), "42704");
    assert_eq!(code(&path, &[("format", "json"), ("delimiter", ";")], &s), "22023");
    assert_eq!(code(&path, &[("format", "csv"), ("null", "a,b")], &s), "22023");
    assert_eq!(code(&path, &[("format", "csv"), ("poll_interval", "0ms")], &s), "22023");
    let odd: SchemaRef = Arc::new(Schema::new(vec![Field::new("a", DataType::UInt8, true)]));
    assert_eq!(code(&path, &[("format", "csv")], &odd), "0A000");
}

/// A CSV or JSON text with good, blank and malformed records, and quotes over line ends.
fn messy(rng: &mut SmallRng, json: bool, records: usize) -> Vec<u8> {
    let mut text = String::new();
    let mut out = Vec::new();
    for i in 0..records {
        match (rng.random_range(0..12), json) {
            (0, _) => text.push('\n'),
            (1, false) => text.push_str("x,bad id,\n"),
            (1, true) => text.push_str("{\"id\":\"x\"}\n"),
            (2, false) => text.push_str("1,too,many,fields\n"),
            (2, true) => text.push_str("{\"id\":1\n"),
            (3, false) => writeln!(text, "{i},\"two\nlines \"\"{i}\"\"\",1.5\r").unwrap(),
            (3, true) => writeln!(text, "{{\"t\":\"esc\\n\\\"{i}\",\"id\":{i}}}\r").unwrap(),
            (4, false) => text.push_str("5,\"open\n"),
            (4, true) => text.push_str("[]\n"),
            (5, _) => {
                out.extend_from_slice(text.as_bytes());
                text.clear();
                out.extend_from_slice(if json { b"{\"id\":9,\"t\":\"\xfe\"}\n" } else { b"9,\xfe,1\n" });
            }
            (_, false) => {
                writeln!(text, "{i},{},{}", "väl".repeat(rng.random_range(0..12)), rng.random_range(0..99)).unwrap()
            }
            (_, true) => writeln!(
                text,
                "{{\"id\":{i},\"t\":\"{}\",\"f\":{}}}",
                "väl".repeat(rng.random_range(0..12)),
                rng.random_range(0..99)
            )
            .unwrap(),
        }
    }
    out.extend_from_slice(text.as_bytes());
    if rng.random() && out.last() == Some(&b'\n') {
        out.pop();
    }
    out
}

#[test]
fn portions_limits_and_readers_do_not_change_what_is_read() {
    let mut rng = SmallRng::seed_from_u64(11);
    let folder = Folder::new();
    let schema = schema(&[("id", "int8"), ("t", "text"), ("f", "float8")]);
    for round in 0..60 {
        let json = round % 2 == 0;
        let text = messy(&mut rng, json, 120);
        let path = folder.write("messy", &text);
        let pairs = [("format", if json { "json" } else { "csv" }), ("on_error", "skip")];
        let (want, want_bad) = read_all(&mut *reader(&path, &pairs, &schema));
        let mut reader = reader(&path, &pairs, &schema);
        let (got, bad, end, state) =
            drain(&mut *reader, Offset::START, || (rng.random_range(1..9), rng.random_range(1..200)), None);
        assert_eq!((&got, &bad, state), (&want, &want_bad, ReadState::End), "round {round}");
        assert_eq!(end.0, text.len() as u64);
        assert_eq!(reader.progress(), connect::Progress { done: end.0, total: end.0 });
        // Two ranges that meet anywhere give together what one range gives; the same reader may go back.
        let cut = loop {
            let rows = rng.random_range(1..60);
            let some = reader.read(Offset::START, rows, 1 << 20, None).unwrap();
            if some.next.0 > 0 {
                break some.next;
            }
        };
        let (a, mut bad_a, at, state) = drain(&mut *reader, Offset::START, || (7, 90), Some(cut));
        assert_eq!((at, state), (cut, ReadState::End));
        let (b, bad_b, _, _) = drain(&mut *reader, cut, || (1000, 1 << 20), None);
        bad_a.extend(bad_b);
        assert_eq!(
            (arrow::compute::concat_batches(&schema, [&a, &b]).unwrap(), bad_a),
            (want, want_bad),
            "round {round}"
        );
    }
}

#[test]
fn projection_decodes_less_and_changes_nothing_else() {
    let folder = Folder::new();
    let mut rng = SmallRng::seed_from_u64(12);
    let schema = schema(&[("id", "int8"), ("t", "text"), ("f", "float8")]);
    for json in [false, true] {
        let path = folder.write("messy", messy(&mut rng, json, 300));
        let source =
            open(&path, &[("format", if json { "json" } else { "csv" }), ("on_error", "skip")], &schema).unwrap();
        let split = &source.splits().unwrap()[0];
        let (all, bad) = read_all(&mut *source.reader(split, None).unwrap());
        for columns in [vec![], vec![2], vec![1, 0], vec![0, 1, 2]] {
            let mut reader = source.reader(split, Some(&columns)).unwrap();
            let (some, some_bad) = read_all(&mut *reader);
            assert_eq!((some.num_rows(), &some), (all.num_rows(), &all.project(&columns).unwrap()));
            assert_eq!(some_bad, bad);
        }
    }
    // With on_error = 'stop', a value that no one reads does not matter.
    let path = folder.write("a.csv", "1,a,x\n2,b,1\n");
    let source = open(&path, &[("format", "csv"), ("on_error", "stop")], &schema).unwrap();
    let mut some = source.reader(&split(&path), Some(&[1])).unwrap();
    assert_eq!(table(&read_all(&mut *some).0), strings(&[&["a"], &["b"]]));
    let mut all = source.reader(&split(&path), None).unwrap();
    assert!(all.read(Offset::START, 10, 100, None).is_err());
}

#[test]
fn an_overlong_record_is_refused_and_reading_goes_on_behind_it() {
    let folder = Folder::new();
    let long = "x".repeat(connect::file::RECORD_BYTES_MAX + 10);
    let s = schema(&[("id", "int8"), ("t", "text")]);
    for (format, text) in [
        ("csv", format!("1,a\n2,{long}\n3,\"open\n4,d\n{}5,e\n", "6,f\n".repeat(3))),
        ("json", format!("{{\"id\":1}}\n{{\"id\":2,\"t\":\"{long}\"}}\n{{\"id\":3}}\n")),
    ] {
        let path = folder.write("long", &text);
        let (rows, bad) = read_all(&mut *reader(&path, &[("format", format), ("on_error", "skip")], &s));
        assert_eq!((rows.num_rows(), bad.len()), if format == "csv" { (6, 2) } else { (2, 1) });
        assert_eq!((bad[0].line, &bad[0].reason[..]), (2, "the record is longer than 16777216 bytes"));
        assert_eq!(bad[0].bytes.len(), connect::source::BAD_RECORD_BYTES_MAX);
        let mut stop = reader(&path, &[("format", format), ("on_error", "stop")], &s);
        let first = stop.read(Offset::START, 100, 1 << 30, None).unwrap();
        assert_eq!(first.batch.num_rows(), 1);
        assert_eq!(stop.read(first.next, 100, 1 << 30, None).unwrap_err().state().code(), "22P02");
        // Now the window already holds the long record: still the row before it comes first.
        let again = stop.read(Offset::START, 100, 1 << 30, None).unwrap();
        assert_eq!((again.batch, again.next), (first.batch, first.next));
    }
}

#[test]
fn random_bytes_are_rows_or_errors_but_never_a_panic() {
    let mut rng = SmallRng::seed_from_u64(13);
    let folder = Folder::new();
    let schema = schema(ALL_TYPES);
    let seed = "t,1,-2,3,1.5,-2.5e3,12.345,\"a \"\"q\"\"\",\\x00ff,2024-02-29,01:02:03.5,2024-02-29 01:02:03,2024-02-29 01:02:03+02,1 day 02:00:00,\"{1,NULL,3}\",\"{a,\"\"b,c\"\",NULL}\"\n";
    let seed_json = "{\"b\":true,\"i2\":1,\"i4\":-2,\"i8\":3,\"f4\":1.5,\"f8\":-2.5e3,\"n\":12.345,\"t\":\"a \\\"q\\\"\",\"y\":\"\\\\x00ff\",\"d\":\"2024-02-29\",\"tm\":\"01:02:03.5\",\"ts\":\"2024-02-29T01:02:03\",\"tz\":\"2024-02-29T01:02:03+02:00\",\"iv\":\"P1DT2H\",\"a\":[1,null,3],\"at\":[\"a\",\"b,c\",null]}\n";
    for round in 0..800 {
        let json = round % 2 == 0;
        let mut bytes = if json { seed_json } else { seed }.repeat(3).into_bytes();
        for _ in 0..rng.random_range(0..12) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..4) {
                0 => bytes[at] = rng.random(),
                1 => drop(bytes.drain(at..(at + rng.random_range(0..9)).min(bytes.len()))),
                2 => bytes.insert(at, b"\"\n,{}[]:\\0-e."[rng.random_range(0..13)]),
                _ => bytes[at] = b"\"\n,{}[]:\\09-e. \xff\0"[rng.random_range(0..17)],
            }
            if bytes.is_empty() {
                bytes = (0..40).map(|_| rng.random()).collect();
            }
        }
        let path = folder.write("noise", &bytes);
        let pairs = [("format", if json { "json" } else { "csv" }), ("on_error", "skip")];
        let mut reader = reader(&path, &pairs, &schema);
        let (_, _, end, state) = drain(&mut *reader, Offset::START, || (5, 100), None);
        assert_eq!((end.0, state), (bytes.len() as u64, ReadState::End), "{:?}", String::from_utf8_lossy(&bytes));
        // An offset that no reader gave must not panic either.
        let _ = reader.read(Offset(rng.random_range(0..=bytes.len() as u64)), 10, 100, None);
        let _ = connect::source("file").unwrap().infer_schema(&options(&path, &pairs), 10);
    }
}

#[test]
fn schemas_are_inferred_from_a_sample() {
    let folder = Folder::new();
    let infer = |path: &Path, pairs: &[(&str, &str)], rows| {
        connect::source("file").unwrap().infer_schema(&options(path, pairs), rows)
    };
    let show = |s: SchemaRef| {
        let columns =
            s.fields().iter().map(|f| format!("{} {}", f.name(), connect::format::sql_type_name(f.data_type())));
        columns.collect::<Vec<_>>().join(", ")
    };
    let csv = folder.write("a.csv", "Id,when,ok,price,zip,note,day,at\n1,2024-01-02 03:04:05,true,1,01234,,2024-01-02,2024-01-02T00:00:00Z\n2,2024-01-02,false,2.5,12345,\"x\",2024-01-03,2024-01-02T00:00:00+01\n3,oops,,,,,,\n");
    let pairs = [("format", "csv"), ("header", "true")];
    assert_eq!(
        show(infer(&csv, &pairs, 2).unwrap()),
        "id bigint, when timestamp, ok boolean, price double precision, zip text, note text, day date, at timestamptz"
    );
    assert!(show(infer(&csv, &pairs, 100).unwrap()).contains("when text"));
    let json = folder.write("a.json", "{\"id\":1,\"Name\":\"x\",\"at\":\"2024-01-02T03:04:05\"}\nnonsense\n{\"id\":2.5,\"tags\":[1],\"ok\":true,\"day\":\"2024-01-02\"}");
    assert_eq!(
        show(infer(&json, &[("format", "json")], 100).unwrap()),
        "id double precision, name text, at timestamp, tags text, ok boolean, day date"
    );
    // What is inferred can be read.
    let s = infer(&json, &[("format", "json")], 100).unwrap();
    let (rows, bad) = read_all(&mut *reader(&json, &[("format", "json"), ("on_error", "skip")], &s));
    assert_eq!((rows.num_rows(), bad.len(), rows.column(1).null_count()), (2, 1, 1));
    assert_eq!(infer(&csv, &[("format", "csv")], 10).unwrap_err().state().code(), "42P16");
    assert_eq!(infer(&folder.write("e", ""), &[("format", "json")], 10).unwrap_err().state().code(), "42P16");
}
