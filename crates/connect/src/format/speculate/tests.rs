use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::*;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::*;
use crate::format::decode::Fault;

const RECORD_BYTES_MAX: usize = 1 << 12;

/// Key, type, and texts of values as they usually are.
fn keys() -> Vec<(&'static str, DataType, Vec<String>)> {
    let strings = |texts: &[&str]| texts.iter().map(|t| format!("\"{t}\"")).collect::<Vec<_>>();
    let plain = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect::<Vec<_>>();
    let item = |data_type| DataType::List(Arc::new(Field::new("item", data_type, true)));
    vec![
        (
            "id",
            DataType::Int64,
            plain(&["0", "7", "-12", "1234567", "12345678", "123456789012345", "1234567890123456", "-0"]),
        ),
        ("small", DataType::Int16, plain(&["1", "-32768", "32767", "55"])),
        ("number", DataType::Int32, plain(&["2147483647", "-2147483648", "99999999", "3"])),
        (
            "name",
            DataType::Utf8View,
            strings(&["", "Ann", "twelve bytes", "thirteen byte", &"long ".repeat(20), "väl"]),
        ),
        ("price", DataType::Decimal128(12, 2), plain(&["1", "12.5", "-0.25", "99999999.99", "1.005", "0"])),
        ("score", DataType::Float64, plain(&["1.5", "-0.0", "123456.789", "0.30000000000000004", "1e10", "7"])),
        ("ratio", DataType::Float32, plain(&["0.1", "16777217", "3.4e38", "2"])),
        ("paid", DataType::Boolean, plain(&["true", "false"])),
        (
            "at",
            DataType::Timestamp(TimeUnit::Microsecond, None),
            strings(&[
                "2015-07-15 00:00:03.897",
                "2024-02-29T23:59:59",
                "0001-01-01 00:00:00.000001",
                "1969-12-31 12:00",
            ]),
        ),
        (
            "zoned",
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            strings(&["2015-07-15 00:00:03.8Z", "2024-02-29T23:59:59+02:00", "2000-01-01 00:00:00"]),
        ),
        ("day", DataType::Date32, strings(&["2015-07-15", "1600-02-29"])),
        ("span", DataType::Interval(IntervalUnit::MonthDayNano), strings(&["1 day", "P1M"])),
        ("bytes", DataType::Binary, strings(&["abc", "plain"])),
        ("list", item(DataType::Int64), plain(&["[1,2]", "[]", "[null]"])),
        ("texts", item(DataType::Utf8View), plain(&["[\"a\", \"b\\n\"]", "[]"])),
        ("more", DataType::Utf8View, strings(&["x", "https://example.com/a/b/c?query=1", "日本語のテキスト"])),
    ]
}

/// Values that are rare at any key: of other types, out of range, malformed, or not even a value.
const ODD: &[&str] = &[
    "null",
    "true",
    "false",
    "1",
    "-1",
    "1e3",
    "1.0",
    "2.5e-1",
    "01",
    "1.",
    "-",
    "+1",
    "1e",
    "1E+2",
    "99999999999999999999",
    "123456789012345678",
    "1234567890123456789",
    "-9223372036854775808",
    "9223372036854775808",
    "1e400",
    "32768",
    "0.000000001",
    "12345678.12345678",
    "123456789012.12345678901234567890",
    "\"1\"",
    "\" 2 \"",
    "\"\\u0041\\n\"",
    "\"\\ud83d\\ude00\"",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "\"\\q\"",
    "\"a\tb\"",
    "\"open",
    "\"2015-07-15\"",
    "\"2015-02-30 00:00:00\"",
    "\"2015-07-15 24:00:00\"",
    "\"2015-07-15 23:59:60\"",
    "\"2015-07-15  00:00:03\"",
    "\"2015-07-15 00:00:03.\"",
    "\"2015-07-15 00:00:03.8971234\"",
    "\" 2015-07-15 00:00:03 \"",
    "\"2015-07-15 00:00:03 Z\"",
    "\"2015-13-15 00:00:03\"",
    "\"2015-07-15x00:00:03\"",
    "\"\\\\x00ff\"",
    "\"true\"",
    "\"yes\"",
    "[1,2]",
    "[1,",
    "[\"a\\u00e4\",null]",
    "{}",
    "{\"a\":[{\"b\":\"]}\"}]}",
    "{\"a\":1 }",
    "{a}",
    "tru",
    "nul",
    "",
    "NaN",
    "\"{1,NULL}\"",
    "\"{1\"",
];

/// How a writer writes: blanks after `{`, before `:`, after `:`, before `,`, after `,`, before `}`, and at the line's end.
type Style = [&'static str; 7];

const STYLES: &[Style] = &[
    ["", "", "", "", "", "", "\n"],
    ["", "", " ", "", " ", "", "\n"],
    [" ", "\t", "  ", " ", "\t ", " ", " \r\n"],
    ["", "", "", "", "", "", "\r\n"],
];

/// A text of records; `deviating` of a thousand deviate from their neighbours.
fn records(rng: &mut SmallRng, count: usize, deviating: u32) -> Vec<u8> {
    let keys = keys();
    let mut out = Vec::new();
    let mut style = STYLES.choose(rng).unwrap();
    let mut order: Vec<usize> = (0..keys.len()).collect();
    for i in 0..count {
        if i % 400 == 399 {
            // Another writer takes over, and does not know all keys.
            style = STYLES.choose(rng).unwrap();
            order = (0..keys.len()).filter(|_| rng.random_range(0..8) > 0).collect();
            let shift = rng.random_range(0..order.len().max(1));
            order.rotate_left(shift);
        }
        let mut members: Vec<(String, Vec<u8>)> = order
            .iter()
            .filter_map(|k| keys.get(*k))
            .map(|(key, _, values)| (format!("\"{key}\""), values.choose(rng).unwrap().clone().into_bytes()))
            .collect();
        members.insert(members.len() / 2, ("\"other\"".into(), format!("\"unwanted {i}\"").into_bytes()));
        members.insert(members.len() / 3, ("\"count\"".into(), i.to_string().into_bytes()));
        let mut style = *style;
        if rng.random_range(0..1000) < deviating {
            let place = rng.random_range(0..members.len());
            match rng.random_range(0..14) {
                0 => drop(members.remove(place)),
                1 => members.insert(0, members[place].clone()),
                2 => {
                    let key = members[place].0.clone();
                    members.push((key, ODD.choose(rng).unwrap().as_bytes().to_vec()));
                }
                3 => members.swap(place, 0),
                4 => members[place].0 = members[place].0.to_uppercase(),
                5 => members[place].0 = members[place].0.replacen('a', "\\u0061", 1),
                6 => style[rng.random_range(0..6)] = ["", " ", "\t", "\n", "\0", "\u{a0}"].choose(rng).unwrap(),
                7 => members[place].1 = b"\"\xff\xfe\"".to_vec(),
                8 => members[place].1 = b"\"a\0b\"".to_vec(),
                9 => out
                    .extend_from_slice([&b"\n"[..], b" \r\n", b"[1]\n", b"{}\n", b"{\n", b"\0\n"].choose(rng).unwrap()),
                10 => members[place].1 = format!("\"{}\"", "é".repeat(rng.random_range(0..2500))).into_bytes(),
                _ => members[place].1 = ODD.choose(rng).unwrap().as_bytes().to_vec(),
            }
        }
        out.extend_from_slice(b"{");
        out.extend_from_slice(style[0].as_bytes());
        for (i, (key, value)) in members.iter().enumerate() {
            if i > 0 {
                out.extend_from_slice(style[3].as_bytes());
                out.push(b',');
                out.extend_from_slice(style[4].as_bytes());
            }
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(style[1].as_bytes());
            out.push(b':');
            out.extend_from_slice(style[2].as_bytes());
            out.extend_from_slice(value);
        }
        out.extend_from_slice(style[5].as_bytes());
        out.push(b'}');
        out.extend_from_slice(style[6].as_bytes());
    }
    if rng.random() {
        out.pop();
    }
    out
}

/// What was read: the good rows, and start, end, column and reason of every record that was left out.
type Read = (RecordBatch, Vec<(u64, u64, Option<usize>, String)>);

/// Reads `text` in portions of `portion()` records and bytes and windows of `window()` bytes, as a reader of files does.
fn read(
    text: &[u8],
    fields: &Fields,
    projection: &[usize],
    speculate: bool,
    mut portion: impl FnMut() -> (usize, usize, usize),
) -> (Read, usize) {
    let names: Vec<String> = fields.iter().map(|f| f.name().clone()).collect();
    let schema = Arc::new(Schema::new(fields.clone()).project(projection).unwrap());
    let mut decoder = Decoder::with_projection(fields.clone(), projection).unwrap();
    let mut speculator = Speculator::new(names.clone());
    let mut scanner = json::Scanner::new(names);
    let mut spans = Spans::new(fields.len());
    let (mut batches, mut bad, mut at, mut speculated) = (Vec::new(), Vec::new(), 0, 0);
    let mut window = 0;
    while at < text.len() {
        let (records, bytes, step) = portion();
        let before = decoder.rows();
        window = window.max((at + step).min(text.len()));
        let block = &text[at..window];
        let at_end = window == text.len();
        let limits = ScanLimits { records, start_before: bytes, at_end, record_bytes_max: RECORD_BYTES_MAX };
        let stop = if speculate {
            speculator.read(block, at as u64, limits, &mut decoder, &mut spans)
        } else {
            spans.clear();
            let stop = scanner.scan(block, limits, &mut spans);
            decoder.append(block, at as u64, &mut spans);
            stop
        };
        if spans.total() == 0 {
            speculated += decoder.rows() - before;
        }
        assert!(decoder.rows() - before + spans.malformed.len() <= records);
        let here = |m: u32| at as u64 + u64::from(m);
        bad.extend(spans.malformed.drain(..).map(|m| (here(m.start), here(m.end), None, m.reason)));
        at += spans.consumed;
        match stop {
            ScanStop::Limit => {}
            ScanStop::Incomplete => window = (window + step).min(text.len()),
            ScanStop::TooLong => {
                let end = memchr(b'\n', &text[at..]).map_or(text.len(), |l| at + l + 1);
                let reason = format!("the record is longer than {RECORD_BYTES_MAX} bytes");
                bad.push((at as u64, end as u64, None, reason));
                at = end;
                window = window.max(end);
            }
        }
        if records % 3 == 0 || at >= text.len() {
            let (batch, faults) = decoder.finish(&schema, projection, usize::MAX).unwrap();
            batches.push(batch);
            bad.extend(faults.into_iter().map(|Fault { start, end, column, reason }| (start, end, column, reason)));
        }
    }
    bad.sort();
    ((concat_batches(&schema, &batches).unwrap(), bad), speculated)
}

fn exact(text: &[u8], fields: &Fields, projection: &[usize]) -> Read {
    read(text, fields, projection, false, || (usize::MAX / 3 * 3, usize::MAX, usize::MAX / 2)).0
}

/// Some of the keys as columns, in any order, some of them NOT NULL, some under names that only match ignoring case.
fn some_fields(rng: &mut SmallRng) -> (Fields, Vec<usize>) {
    let keys = keys();
    let mut fields: Vec<Field> = Vec::new();
    let share = rng.random_range(1..=4);
    for (key, data_type, _) in &keys {
        if rng.random_range(0..4) < share {
            let name = if rng.random_range(0..10) == 0 { key.to_uppercase() } else { key.to_string() };
            let text = rng.random_range(0..8) == 0;
            let data_type = if text { DataType::Utf8View } else { data_type.clone() };
            fields.insert(rng.random_range(0..=fields.len()), Field::new(name, data_type, rng.random_range(0..9) > 0));
        }
    }
    if rng.random_range(0..5) == 0 {
        fields.push(Field::new("absent", DataType::Int64, true));
    }
    let projection = (0..fields.len()).filter(|_| rng.random_range(0..4) > 0).collect();
    (fields.into(), projection)
}

fn all_fields() -> Fields {
    keys().into_iter().map(|(key, data_type, _)| Field::new(key, data_type, true)).collect()
}

#[test]
fn speculation_reads_what_the_exact_path_reads() {
    let mut rng = SmallRng::seed_from_u64(1);
    let (mut speculated, mut read_in_all) = (0, 0);
    for round in 0..120 {
        let deviating = *[0, 5, 50, 300, 1000].choose(&mut rng).unwrap();
        let count = if round % 10 == 0 { 3000 } else { 500 };
        let text = records(&mut rng, count, deviating);
        let (fields, projection) = some_fields(&mut rng);
        let want = exact(&text, &fields, &projection);
        for size in [1, 7, 100, 5000] {
            let mut own = SmallRng::seed_from_u64(round + size);
            let mut portion = || {
                let records = own.random_range(1..=size as usize);
                (records, own.random_range(1..=size as usize * 500), own.random_range(1..=size as usize * 300))
            };
            let (got, fast) = read(&text, &fields, &projection, true, &mut portion);
            assert_eq!(got.1, want.1, "round {round}, portions up to {size}");
            assert_eq!(got.0, want.0, "round {round}, portions up to {size}");
            speculated += fast;
            read_in_all += got.0.num_rows();
        }
        // Readers with any projection leave out the same records, as long as they check all columns.
        let all: Vec<usize> = (0..fields.len()).collect();
        let (whole, _) = read(&text, &fields, &all, true, || (300, usize::MAX, 1 << 16));
        assert_eq!(whole.1, want.1, "round {round}");
        assert_eq!(whole.0.project(&projection).unwrap(), want.0, "round {round}");
    }
    assert!(speculated * 4 > read_in_all, "only {speculated} of {read_in_all} rows were speculated");
}

#[test]
fn speculation_reads_what_serde_json_reads() {
    let mut rng = SmallRng::seed_from_u64(2);
    let fields = all_fields();
    let projection: Vec<usize> = (0..fields.len()).collect();
    let (mut compared, mut left_out) = (0, 0);
    for round in 0..40 {
        let deviating = *[10, 200, 1000].choose(&mut rng).unwrap();
        let text = records(&mut rng, 500, deviating);
        let ((batch, bad), _) = read(&text, &fields, &projection, true, || (1 + round % 90, usize::MAX, 1 << 14));
        let (mut row, mut start) = (0, 0);
        for line in text.split_inclusive(|b| *b == b'\n') {
            let place = start;
            start += line.len() as u64;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let parsed: Result<serde_json::Map<String, Value>, _> = serde_json::from_slice(line);
            if bad.iter().any(|b| b.0 == place) {
                left_out += 1;
                continue;
            }
            let shown = String::from_utf8_lossy(line).into_owned();
            let parsed = match parsed {
                Ok(parsed) => parsed,
                // serde_json refuses numbers that no double holds and broken escapes, which do not matter in keys
                // without a column.
                Err(e) => {
                    let harmless = ["1e400", "\\q", "\\ud800"].iter().any(|h| shown.contains(h));
                    assert!(harmless, "serde_json refuses {shown}: {e}");
                    row += 1;
                    continue;
                }
            };
            for (column, field) in fields.iter().enumerate() {
                let folded = parsed.keys().any(|k| k != field.name() && k.eq_ignore_ascii_case(field.name()));
                if !folded {
                    same(&batch, row, column, parsed.get(field.name()).unwrap_or(&Value::Null), &shown);
                    compared += 1;
                }
            }
            row += 1;
        }
        assert_eq!(row, batch.num_rows());
    }
    assert!(compared > 50_000 && left_out > 500, "{compared} values compared, {left_out} records left out");
}

/// Fails if the value in `batch` is not `want`, as far as JSON alone says what it is.
fn same(batch: &RecordBatch, row: usize, column: usize, want: &Value, line: &str) {
    let array = batch.column(column);
    assert_eq!(array.is_null(row), want.is_null(), "column {column} of {line}");
    match (array.data_type(), want) {
        (DataType::Utf8View, Value::String(text)) => assert_eq!(array.as_string_view().value(row), text, "{line}"),
        (DataType::Int64, Value::Number(n)) if n.is_i64() => {
            assert_eq!(array.as_primitive::<Int64Type>().value(row), n.as_i64().unwrap(), "{line}")
        }
        (DataType::Int32, Value::Number(n)) if n.is_i64() => {
            assert_eq!(i64::from(array.as_primitive::<Int32Type>().value(row)), n.as_i64().unwrap(), "{line}")
        }
        (DataType::Int16, Value::Number(n)) if n.is_i64() => {
            assert_eq!(i64::from(array.as_primitive::<Int16Type>().value(row)), n.as_i64().unwrap(), "{line}")
        }
        (DataType::Boolean, Value::Bool(b)) => assert_eq!(array.as_boolean().value(row), *b, "{line}"),
        (DataType::Float64, Value::Number(n)) => {
            let (got, want) = (array.as_primitive::<Float64Type>().value(row), n.as_f64().unwrap());
            // serde_json may miss the nearest double by one.
            assert!((got - want).abs() <= want.abs() * f64::EPSILON, "{got} for {want} in {line}");
        }
        (DataType::Decimal128(_, 2), Value::Number(n)) => {
            let (got, want) = (array.as_primitive::<Decimal128Type>().value(row), n.as_f64().unwrap());
            assert!((got as f64 / 100.0 - want).abs() <= 0.005_000_1, "{got} for {want} in {line}");
        }
        (DataType::List(item), Value::Array(items)) if item.data_type() == &DataType::Int64 => {
            let got = array.as_list::<i32>().value(row);
            let got: Vec<Option<i64>> = got.as_primitive::<Int64Type>().iter().collect();
            assert_eq!(got, items.iter().map(Value::as_i64).collect::<Vec<_>>(), "{line}");
        }
        _ => {}
    }
}

#[test]
fn mutated_bytes_are_read_as_the_exact_path_reads_them() {
    let mut rng = SmallRng::seed_from_u64(3);
    for round in 0..1500 {
        let mut text = records(&mut rng, 12, 0);
        for _ in 0..rng.random_range(1..15) {
            if text.is_empty() {
                break;
            }
            let at = rng.random_range(0..text.len());
            match rng.random_range(0..5) {
                0 => text[at] = rng.random(),
                1 => drop(text.drain(at..(at + rng.random_range(0..9)).min(text.len()))),
                2 => text.insert(at, *b"\"\n,{}[]:\\0-e. ".choose(&mut rng).unwrap()),
                3 => {
                    let copy = text[at..(at + rng.random_range(0..400)).min(text.len())].to_vec();
                    text.splice(at..at, copy);
                }
                _ => text[at] = *b"\"\n,{}[]:\\09-e. \xff\0\xc3".choose(&mut rng).unwrap(),
            }
        }
        let (fields, projection) = some_fields(&mut rng);
        let want = exact(&text, &fields, &projection);
        let size = rng.random_range(1..40);
        let (got, _) = read(&text, &fields, &projection, true, || (size, usize::MAX, 64 * size));
        assert_eq!(got, want, "round {round}: {}", String::from_utf8_lossy(&text));
    }
}

#[test]
fn values_that_do_not_look_as_expected_do_not_end_a_run() {
    let fields: Fields = vec![
        Field::new("a", DataType::Int64, true),
        Field::new("t", DataType::Utf8View, true),
        Field::new("gone", DataType::Utf8View, true),
    ]
    .into();
    let lines = [
        r#"{"a":null,"t":null,"u":1}"#,
        r#"{"a":12345678901234567,"t":"esc\"aped","u":"x"}"#,
        r#"{"a":1e3,"t":{"nested":[1]},"u":null}"#,
        r#"{"a":"7","t":12.50,"u":{"n":1}}"#,
        r#"{"a":null,"t":"日本","u":"\u0041"}"#,
    ];
    let text = lines.join("\n") + "\n" + &lines.join("\n") + "\n";
    let projection = [0, 1, 2];
    let (got, speculated) = read(text.as_bytes(), &fields, &projection, true, || (99, usize::MAX, 1 << 20));
    assert_eq!(got, exact(text.as_bytes(), &fields, &projection));
    assert_eq!((got.0.num_rows(), got.1.len(), speculated), (10, 0, 10));
    assert_eq!(got.0.column(1).as_string_view().value(2), "{\"nested\":[1]}");
}

#[test]
fn records_that_never_look_alike_are_left_to_the_exact_path() {
    let fields: Fields = vec![Field::new("a", DataType::Int64, true)].into();
    let mixed = |i: usize| format!("{{{}\"a\":{i}}}\n", format!("\"k{}\":0,", i * 7919 % 97).repeat(1 + i % 5));
    let text: String = (0..4000).map(mixed).collect();
    let mut speculator = Speculator::new(vec!["a".into()]);
    let mut decoder = Decoder::new(fields).unwrap();
    let mut spans = Spans::new(1);
    let limits =
        ScanLimits { records: 1024, start_before: usize::MAX, at_end: true, record_bytes_max: RECORD_BYTES_MAX };
    let (mut at, mut calls) = (0, 0);
    while at < text.len() {
        speculator.read(&text.as_bytes()[at..], at as u64, limits, &mut decoder, &mut spans);
        at += spans.consumed;
        calls += 1;
    }
    assert_eq!(decoder.rows(), 4000);
    assert!(calls < 600, "{calls} calls");
}
