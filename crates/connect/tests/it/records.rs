//! The forms of sinks: what their records say, replayed, is the content at each epoch.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Float64Array, Int64Array, StringViewArray};
use connect::{SinkRequest, SinkWriter};
use flow::{ChangeBatch, Diff, Epoch};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::*;

/// `g`, `v`, `k`, `t`; the key is (k, g).
type Row = (Option<i64>, Option<i64>, Option<&'static str>, &'static str);
type Changes = Vec<(Row, i64)>;
type Key = (Option<&'static str>, Option<i64>);

const KEY: [usize; 2] = [2, 0];

fn columns() -> SchemaRef {
    schema(&[("g", "int8"), ("v", "float8"), ("k", "text"), ("t", "text")])
}

fn key_of(row: &Row) -> Key {
    (row.2, row.0)
}

fn batch(rows: &[(Row, i64)]) -> ChangeBatch {
    let g = Int64Array::from_iter(rows.iter().map(|(r, _)| r.0));
    let v = Float64Array::from_iter(rows.iter().map(|(r, _)| r.1.map(|v| v as f64 / 2.0)));
    let k = StringViewArray::from_iter(rows.iter().map(|(r, _)| r.2));
    let t = StringViewArray::from_iter_values(rows.iter().map(|(r, _)| r.3));
    let batch = RecordBatch::try_new(columns(), vec![Arc::new(g), Arc::new(v), Arc::new(k), Arc::new(t)]).unwrap();
    ChangeBatch::new(batch, Diff::from_weights(rows.iter().map(|r| r.1).collect()))
}

fn object(row: &Row) -> Value {
    // A whole number is written without a point.
    let half = |v: i64| if v % 2 == 0 { json!(v / 2) } else { json!(v as f64 / 2.0) };
    json!({"g": row.0, "v": row.1.map(half), "k": row.2, "t": row.3})
}

fn sink(
    path: &Path,
    form: &str,
    encode: &str,
    pairs: &[(&str, &str)],
    keys: &[Vec<usize>],
) -> flow::Result<Box<dyn SinkWriter>> {
    let options = options(path, pairs).with_encode(form, encode, Vec::<(String, String)>::new())?;
    let request = SinkRequest {
        options: &options,
        schema: columns(),
        append_only: false,
        keys,
        relation: "public.r",
        identity: "",
        attempt: 0,
    };
    connect::sink("file").unwrap().validate(&request)?;
    connect::sink("file").unwrap().open(&request)
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const TEXTS: [&str; 4] = ["", "a\"b,c", "é\nf", "NULL"];

/// Random epochs over rows of which each key is there at most once: the changes of each, and the content after it.
fn history(rng: &mut SmallRng, epochs: u64) -> Vec<(Changes, BTreeMap<Key, Row>)> {
    let mut now: BTreeMap<Key, Row> = BTreeMap::new();
    let some = |rng: &mut SmallRng, n: i64| Some(rng.random_range(0..n)).filter(|_| rng.random_range(0..4) > 0);
    (0..epochs)
        .map(|_| {
            let mut changes = Vec::new();
            for _ in 0..rng.random_range(0..12) {
                let k = [None, Some("x"), Some("y,\"z\""), Some("")][rng.random_range(0..4)];
                let row = (some(rng, 3), some(rng, 5), k, TEXTS[rng.random_range(0..4)]);
                // A key may go and come back, with the same row or another, any number of times.
                if let Some(old) = now.remove(&key_of(&row)) {
                    changes.push((old, -1));
                }
                if rng.random_range(0..3) > 0 {
                    now.insert(key_of(&row), row);
                    changes.push((row, 1));
                }
            }
            // Within an epoch nothing says what came first.
            for i in (1..changes.len()).rev() {
                changes.swap(i, rng.random_range(0..=i));
            }
            (changes, now.clone())
        })
        .collect()
}

fn feed(writer: &mut dyn SinkWriter, rng: &mut SmallRng, epoch: u64, changes: &[(Row, i64)]) {
    let mut rest = changes;
    while !rest.is_empty() {
        let (some, more) = rest.split_at(rng.random_range(1..=rest.len()));
        writer.write(Epoch(epoch), &batch(some)).unwrap();
        rest = more;
    }
    writer.finish_epoch(Epoch(epoch), epoch as i64 * 1_000 + 7).unwrap();
}

#[test]
fn upserts_replayed_are_the_content_at_each_epoch() {
    for seed in 0..60 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let folder = Folder::new();
        let (json, csv) = (folder.path("out.json"), folder.path("out.csv"));
        let mut writers = [
            sink(&json, "UPSERT", "JSON", &[("primary_key", "k, g")], &[vec![0, 2]]).unwrap(),
            sink(&csv, "UPSERT", "CSV", &[("primary_key", "K,G"), ("null", "NULL")], &[vec![0, 2]]).unwrap(),
        ];
        let history = history(&mut rng, 30);
        for (epoch, (changes, _)) in (1..).zip(&history) {
            for writer in &mut writers {
                feed(writer.as_mut(), &mut rng, epoch, changes);
            }
        }
        let mut records = lines(&json).into_iter().peekable();
        let mut now: BTreeMap<String, Value> = BTreeMap::new();
        let before = history.iter().map(|(_, content)| content).collect::<Vec<_>>();
        for (n, (_, content)) in history.iter().enumerate() {
            let epoch = n as u64 + 1;
            let mut seen = BTreeSet::new();
            while let Some(record) = records.next_if(|r| r["epoch"] == json!(epoch)) {
                let key = record["key"].to_string();
                assert!(seen.insert(key.clone()), "seed {seed}: two records of {key} in epoch {epoch}");
                match record["op"].as_str().unwrap() {
                    "upsert" => {
                        let known = now.insert(key, record["row"].clone());
                        assert_ne!(known.as_ref(), Some(&record["row"]), "seed {seed}: nothing has changed");
                    }
                    "delete" => {
                        assert_eq!(record["row"], Value::Null);
                        assert!(now.remove(&key).is_some(), "seed {seed}: {key} was not there");
                    }
                    other => panic!("{other}"),
                }
            }
            let want: BTreeMap<String, Value> =
                content.values().map(|r| (json!({"k": r.2, "g": r.0}).to_string(), object(r))).collect();
            assert_eq!(now, want, "seed {seed} epoch {epoch} of {}", before.len());
        }
        assert_eq!(records.next(), None);
        // The same from CSV, read by the file source.
        let read = schema(&[
            ("op", "text"),
            ("epoch", "int8"),
            ("key.k", "text"),
            ("key.g", "int8"),
            ("g", "int8"),
            ("v", "float8"),
            ("k", "text"),
            ("t", "text"),
        ]);
        let mut reader = reader(&csv, &[("format", "csv"), ("header", "true"), ("null", "NULL")], &read);
        let mut now: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
        let (rows, bad) = read_all(reader.as_mut());
        assert!(bad.is_empty(), "{bad:?}");
        let mut rows = table(&rows).into_iter().peekable();
        for (epoch, (_, content)) in (1..).zip(&history) {
            while let Some(row) = rows.next_if(|r| r[1] == format!("{epoch}")) {
                let key = row[2..4].to_vec();
                if row[0] == "upsert" {
                    now.insert(key, row[4..].to_vec());
                } else {
                    assert_eq!((row[0].as_str(), &row[4..]), ("delete", &table(&nulls())[0][..]));
                    assert!(now.remove(&key).is_some());
                }
            }
            let rows: Vec<(Row, i64)> = content.values().map(|r| (*r, 1)).collect();
            let mut want = table(&batch(&rows).rows);
            want.sort();
            let mut have: Vec<Vec<String>> = now.values().cloned().collect();
            have.sort();
            assert_eq!(have, want, "seed {seed} epoch {epoch}");
        }
        assert_eq!(rows.next(), None);
    }
}

fn nulls() -> RecordBatch {
    let columns: Vec<_> = columns().fields().iter().map(|f| arrow::array::new_null_array(f.data_type(), 1)).collect();
    let names = ["a", "b", "c", "d"];
    RecordBatch::try_from_iter_with_nullable(names.into_iter().zip(columns).map(|(n, c)| (n, c, true))).unwrap()
}

#[test]
fn debezium_replayed_is_the_content_at_each_epoch() {
    for seed in 0..60 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let folder = Folder::new();
        let (keyed, keyless) = (folder.path("keyed.json"), folder.path("keyless.json"));
        let mut with_key = sink(&keyed, "debezium", "json", &[], &[KEY.to_vec()]).unwrap();
        let mut without = sink(&keyless, "debezium", "json", &[], &[]).unwrap();
        let history = history(&mut rng, 30);
        for (epoch, (changes, _)) in (1..).zip(&history) {
            feed(with_key.as_mut(), &mut rng, epoch, changes);
            // Without a key rows may be there several times.
            let twice: Vec<(Row, i64)> = changes.iter().map(|(r, w)| (*r, w * 2)).collect();
            feed(without.as_mut(), &mut rng, epoch, &twice);
        }
        for (path, times) in [(&keyed, 1), (&keyless, 2)] {
            let mut records = lines(path).into_iter().peekable();
            let mut now: BTreeMap<String, i64> = BTreeMap::new();
            for (epoch, (_, content)) in (1u64..).zip(&history) {
                let mut keys = BTreeSet::new();
                while let Some(record) = records.next_if(|r| r["source"]["epoch"] == json!(epoch)) {
                    assert_eq!(record["source"]["relation"], "public.r");
                    assert_eq!(record["ts_ms"], json!(epoch));
                    let (before, after) = (&record["before"], &record["after"]);
                    let op = match (before.is_null(), after.is_null()) {
                        (true, false) if epoch == 1 => "r",
                        (true, false) => "c",
                        (false, true) => "d",
                        (false, false) => "u",
                        _ => panic!("{record}"),
                    };
                    assert_eq!(record["op"], op);
                    for (row, weight) in [(before, -1), (after, 1)] {
                        if !row.is_null() {
                            *now.entry(row.to_string()).or_default() += weight;
                        }
                    }
                    if times == 1 {
                        let known = if after.is_null() { before } else { after };
                        assert!(keys.insert(format!("{} {}", known["k"], known["g"])), "seed {seed}: {record}");
                    } else {
                        assert_ne!(op, "u");
                    }
                }
                now.retain(|_, n| *n != 0);
                let want: BTreeMap<String, i64> = content.values().map(|r| (object(r).to_string(), times)).collect();
                assert_eq!(now, want, "seed {seed} epoch {epoch}");
            }
            assert_eq!(records.next(), None);
        }
    }
}

#[test]
fn records_look_as_documented() {
    let folder = Folder::new();
    let path = folder.path("out");
    let epochs: [&[(Row, i64)]; 4] = [
        &[((Some(1), Some(2), Some("a"), "x"), 1), ((None, None, None, ""), 1)],
        // A column that is not of the key changes; a key goes and returns as it was.
        &[
            ((Some(1), Some(2), Some("a"), "x"), -1),
            ((Some(1), Some(4), Some("a"), "x"), 1),
            ((None, None, None, ""), -1),
            ((None, None, None, ""), 1),
        ],
        &[((None, None, None, ""), -1)],
        // The key changes.
        &[((Some(1), Some(4), Some("a"), "x"), -1), ((Some(9), Some(4), Some("a"), "x"), 1)],
    ];
    let write = |form: &str, encode: &str, pairs: &[(&str, &str)]| {
        let mut writer = sink(&path, form, encode, pairs, &[KEY.to_vec()]).unwrap();
        for (epoch, changes) in (5..).zip(epochs) {
            let before = std::fs::read_to_string(&path).unwrap();
            writer.write(Epoch(epoch), &batch(changes)).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), before, "nothing comes before the epoch's end");
            assert!(writer.state_bytes() > 0);
            writer.finish_epoch(Epoch(epoch), 1_700_000_000_123_456).unwrap();
        }
        // What belongs to no finished epoch is not published.
        writer.write(Epoch(99), &batch(epochs[0])).unwrap();
        writer.close().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(writer.rows_written(), text.lines().count() as u64 - u64::from(encode == "CSV"));
        text
    };
    let upsert = concat!(
        r#"{"op":"upsert","epoch":5,"key":{"k":"a","g":1},"row":{"g":1,"v":1,"k":"a","t":"x"}}"#,
        "\n",
        r#"{"op":"upsert","epoch":5,"key":{"k":null,"g":null},"row":{"g":null,"v":null,"k":null,"t":""}}"#,
        "\n",
        r#"{"op":"upsert","epoch":6,"key":{"k":"a","g":1},"row":{"g":1,"v":2,"k":"a","t":"x"}}"#,
        "\n",
        r#"{"op":"delete","epoch":7,"key":{"k":null,"g":null},"row":null}"#,
        "\n",
        r#"{"op":"delete","epoch":8,"key":{"k":"a","g":1},"row":null}"#,
        "\n",
        r#"{"op":"upsert","epoch":8,"key":{"k":"a","g":9},"row":{"g":9,"v":2,"k":"a","t":"x"}}"#,
        "\n",
    );
    assert_eq!(write("UPSERT", "JSON", &[]), upsert);
    let csv = "op,epoch,key.k,key.g,g,v,k,t\nupsert,5,a,1,1,1,a,x\nupsert,5,,,,,,\"\"\nupsert,6,a,1,1,2,a,x\n\
               delete,7,,,,,,\ndelete,8,a,1,,,,\nupsert,8,a,9,9,2,a,x\n";
    assert_eq!(write("UPSERT", "CSV", &[]), csv);
    let debezium = write("DEBEZIUM", "JSON", &[]);
    let mut debezium = debezium.lines();
    assert_eq!(
        debezium.next().unwrap(),
        r#"{"before":null,"after":{"g":1,"v":1,"k":"a","t":"x"},"op":"r","ts_ms":1700000000123,"source":{"relation":"public.r","epoch":5}}"#
    );
    assert_eq!(
        debezium.nth(1).unwrap(),
        r#"{"before":{"g":1,"v":1,"k":"a","t":"x"},"after":{"g":1,"v":2,"k":"a","t":"x"},"op":"u","ts_ms":1700000000123,"source":{"relation":"public.r","epoch":6}}"#
    );
    assert_eq!(debezium.count(), 3);
}

#[test]
fn a_row_that_is_known_to_be_alone_needs_no_columns_as_key() {
    let folder = Folder::new();
    let path = folder.path("out");
    let mut writer = sink(&path, "UPSERT", "JSON", &[], &[vec![]]).unwrap();
    let (old, new) = ((Some(1), None, None, ""), (Some(2), None, None, ""));
    feed(writer.as_mut(), &mut SmallRng::seed_from_u64(1), 1, &[(old, 1)]);
    feed(writer.as_mut(), &mut SmallRng::seed_from_u64(1), 2, &[(new, 1), (old, -1)]);
    feed(writer.as_mut(), &mut SmallRng::seed_from_u64(1), 3, &[(new, -1)]);
    let keys: Vec<(Value, Value)> = lines(&path).iter().map(|r| (r["key"].clone(), r["row"]["g"].clone())).collect();
    assert_eq!(keys, [(json!({}), json!(1)), (json!({}), json!(2)), (json!({}), Value::Null)]);
}

#[test]
fn many_changes_of_one_epoch_are_netted_before_its_end() {
    let folder = Folder::new();
    let path = folder.path("out");
    let mut writer = sink(&path, "UPSERT", "JSON", &[], &[KEY.to_vec()]).unwrap();
    let rows: Vec<(Row, i64)> = (0..40_000).map(|g| ((Some(g), Some(1), Some("k"), "x"), 1)).collect();
    let mut most = 0;
    for _ in 0..60 {
        writer.write(Epoch(1), &batch(&rows)).unwrap();
        let gone: Vec<(Row, i64)> = rows.iter().map(|(r, _)| (*r, -1)).collect();
        writer.write(Epoch(1), &batch(&gone)).unwrap();
        most = most.max(writer.state_bytes());
    }
    assert!(most < 100 << 20, "{most} bytes held");
    writer.write(Epoch(1), &batch(&rows)).unwrap();
    writer.finish_epoch(Epoch(1), 0).unwrap();
    assert_eq!(lines(&path).len(), rows.len());
}

#[test]
fn a_key_that_does_not_hold_stops_the_sink() {
    let folder = Folder::new();
    let rows: &[(Row, i64)] = &[((Some(1), Some(1), None, "a"), 1), ((Some(1), Some(2), None, "b"), 1)];
    for rows in [rows, &[(rows[0].0, 2)], &[(rows[0].0, -1), (rows[1].0, -1)]] {
        let mut writer = sink(&folder.path("out"), "UPSERT", "JSON", &[], &[KEY.to_vec()]).unwrap();
        writer.write(Epoch(1), &batch(rows)).unwrap();
        assert_eq!(writer.finish_epoch(Epoch(1), 0).unwrap_err().state().code(), "XX000");
        assert_eq!(std::fs::read_to_string(folder.path("out")).unwrap(), "");
    }
}

#[test]
fn wrong_forms_and_keys_are_refused_with_what_helps() {
    let folder = Folder::new();
    let path = folder.path("out");
    let refused = |form: &str, encode: &str, pairs: &[(&str, &str)], keys: &[Vec<usize>]| {
        let e = sink(&path, form, encode, pairs, keys).err().unwrap();
        (e.state().code().to_string(), e.hint().unwrap_or("").to_string())
    };
    let known = [KEY.to_vec()];
    let (state, hint) = refused("UPSERT", "JSON", &[], &[]);
    assert_eq!(state, "22023");
    assert!(hint.contains("primary key"), "{hint}");
    let (state, hint) = refused("UPSERT", "JSON", &[("primary_key", "g")], &known);
    assert_eq!((state.as_str(), hint.as_str()), ("22023", "Write primary_key = 'k, g', or leave it out."));
    assert_eq!(refused("UPSERT", "JSON", &[("primary_key", "g")], &[]).0, "22023");
    assert_eq!(refused("UPSERT", "JSON", &[("primary_key", "k,g,K")], &known).0, "42701");
    assert_eq!(refused("UPSERT", "JSON", &[("primary_key", "")], &known).0, "42703");
    assert_eq!(refused("DEBEZIUM", "JSON", &[("primary_key", "nothing")], &known).0, "42703");
    assert_eq!(refused("PLAIN", "JSON", &[("primary_key", "k,g")], &known).0, "22023");
    assert_eq!(refused("UPSERT", "JSON", &[("mode", "changes")], &known).0, "22023");
    assert_eq!(refused("DEBEZIUM", "CSV", &[], &known).0, "0A000");
    let (state, hint) = refused("UPSERT", "JSON", &[("primry_key", "k,g")], &known);
    assert_eq!((state.as_str(), hint.as_str()), ("42704", "Perhaps you meant \"primary_key\"."));
    let check = |connector: &str, form: &str, encode: &str| {
        let sink = connect::sink(connector).unwrap();
        connect::options::check_form("sink", sink.forms(), form, encode).err()
    };
    assert_eq!(check("stdout", "UPSERT", "csv"), None);
    let e = check("file", "DEBEZIUM", "CSV").unwrap();
    assert_eq!((e.state().code(), e.hint()), ("0A000", Some("Use FORMAT DEBEZIUM ENCODE JSON.")));
    assert!(check("file", "UPSERT", "AVRO").unwrap().detail().unwrap().contains("FORMAT UPSERT ENCODE JSON | CSV"));
    assert_eq!(check("blackhole", "PLAIN", "JSON").unwrap().hint(), Some("Leave the clause out."));
    assert!(!path.exists(), "a refused sink leaves no file");
    let source = options(&path, &[]).with_encode("UPSERT", "JSON", Vec::<(String, String)>::new()).unwrap();
    let e = connect::source("file").unwrap().infer_schema(&source, 10).unwrap_err();
    assert_eq!(e.state().code(), "0A000");
}
