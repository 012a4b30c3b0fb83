//! Columns that tell where a row comes from.

use std::fmt::Write;

use arrow::array::Int64Array;
use connect::Include;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

/// The source of a file with `offset`, `file` behind its own columns `id`, `t`.
fn included(path: &Path, pairs: &[(&str, &str)]) -> Box<dyn Source> {
    let own = schema(&[("id", "int8"), ("t", "text")]);
    let all = schema(&[("id", "int8"), ("t", "text"), ("o", "int8!"), ("f", "text!")]);
    connect::include::included(open(path, pairs, &own).unwrap(), &[Include::Offset, Include::File], &all).unwrap()
}

/// A file, and where the record of each id starts; malformed records have none.
fn file(rng: &mut SmallRng, format: &str) -> (String, Vec<(i64, i64)>) {
    let (mut text, mut places) = (String::new(), Vec::new());
    // Many records of one shape are read by another path than those of many shapes.
    let odd = [0, 3, 50][rng.random_range(0..3)];
    for id in 0..rng.random_range(0..3_000) {
        let at = text.len() as i64;
        let good = match (format, if rng.random_range(0..100) < odd { rng.random_range(0..5) } else { 9 }) {
            ("csv", 0) => writeln!(text, "{id},\"two\nlines, {id}\"").is_ok(),
            ("csv", 1) => writeln!(text, "{id},too,many").is_err(),
            ("csv", 2) => writeln!(text, "no number,x").is_err(),
            ("csv", 3) => {
                text.push_str("\r\n");
                false
            }
            ("csv", _) => writeln!(text, "{id},text {id}").is_ok(),
            (_, 0) => writeln!(text, "  {{\"t\": null, \"id\": {id}}}").is_ok(),
            (_, 1) => writeln!(text, "{{\"id\": \"x{id}\", \"t\": \"a\"}}").is_err(),
            (_, 2) => writeln!(text, "{{\"id\": ").is_err(),
            (_, 3) => {
                text.push_str(" \n\n");
                false
            }
            _ => writeln!(text, "{{\"id\": {id}, \"t\": \"text {id}\"}}").is_ok(),
        };
        if good {
            places.push((id, at));
        }
    }
    (text, places)
}

#[test]
fn every_row_knows_the_byte_where_it_starts_however_it_is_read() {
    for seed in 0..120 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let format = ["csv", "json"][seed as usize % 2];
        let folder = Folder::new();
        let (text, want) = file(&mut rng, format);
        let path = folder.write("in", &text);
        let source = included(&path, &[("format", format)]);
        for columns in [None, Some(vec![2, 0]), Some(vec![3, 2]), Some(vec![2])] {
            let mut reader = source.reader(&split(&path), columns.as_deref()).unwrap();
            let mut portions = SmallRng::seed_from_u64(seed + 1);
            let portion = || (portions.random_range(1..2_000), portions.random_range(1..100_000));
            let (batch, ..) = drain(reader.as_mut(), Offset::START, portion, None);
            let schema = batch.schema();
            let column = |name: &str| schema.index_of(name).ok().map(|c| batch.column(c));
            let offsets = column("o").unwrap().as_any().downcast_ref::<Int64Array>().unwrap();
            assert_eq!(offsets.values().to_vec(), want.iter().map(|w| w.1).collect::<Vec<_>>(), "seed {seed}");
            if let Some(ids) = column("id") {
                let ids = ids.as_any().downcast_ref::<Int64Array>().unwrap();
                assert_eq!(ids.values().to_vec(), want.iter().map(|w| w.0).collect::<Vec<_>>(), "seed {seed}");
            }
            if let Some(files) = column("f") {
                assert!(files.as_string_view().iter().all(|f| f == path.to_str()), "seed {seed}");
            }
        }
        // A reader that begins anywhere agrees.
        if let Some((_, from)) = want.get(want.len() / 2) {
            let mut reader = source.reader(&split(&path), Some(&[2])).unwrap();
            let (batch, ..) = drain(reader.as_mut(), Offset(*from as u64), || (700, 1 << 20), None);
            assert_eq!(batch.num_rows(), want.len() - want.len() / 2);
            assert_eq!(batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().value(0), *from);
        }
    }
}

#[test]
fn rows_before_a_bad_record_that_stops_the_source_have_places_too() {
    let folder = Folder::new();
    let path = folder.write("in", "1,a\n2,b\nx,c\n");
    let source = included(&path, &[("format", "csv"), ("on_error", "stop")]);
    let mut reader = source.reader(&split(&path), None).unwrap();
    let outcome = reader.read(Offset::START, 100, 1 << 20, None).unwrap();
    let path = path.display().to_string();
    assert_eq!(table(&outcome.batch), strings(&[&["1", "a", "0", &path], &["2", "b", "4", &path]]));
    assert_eq!(reader.read(outcome.next, 100, 1 << 20, None).unwrap_err().state().code(), "22P02");
}

#[test]
fn made_rows_are_known_by_split_and_number() {
    for (connector, pairs, own) in [
        ("datagen", vec![("rows", "10000"), ("splits", "3")], schema(&[("n", "int8")])),
        ("nexmark", vec![("table", "bid"), ("events", "10000"), ("splits", "3")], schema(&[("price", "int8")])),
    ] {
        let connector = connect::source(connector).unwrap();
        let name = [("connector", connector.name())];
        let options = Options::new(name.into_iter().chain(pairs)).unwrap();
        let mut fields = own.fields().to_vec();
        fields.extend(schema(&[("p", "text!"), ("o", "int8!")]).fields().iter().cloned());
        let all: SchemaRef = Arc::new(Schema::new(fields));
        let source = connector.open(&options, &own).unwrap();
        let source = connect::include::included(source, &[Include::Partition, Include::Offset], &all).unwrap();
        let mut seen: Vec<Vec<String>> = Vec::new();
        for split in source.splits().unwrap() {
            let mut reader = source.reader(&split, None).unwrap();
            let (rows, _) = read_all(reader.as_mut());
            let rows = table(&rows);
            assert!(rows.iter().all(|r| r[1] == split.0));
            // A part that is read alone has the same offsets.
            let (part, ..) = drain(reader.as_mut(), Offset::START, || (37, 5_000), None);
            assert_eq!(table(&part), rows);
            seen.extend(rows);
        }
        let mut offsets: Vec<i64> = seen.iter().map(|r| r[2].parse().unwrap()).collect();
        offsets.sort_unstable();
        let every: Vec<i64> = (0..10_000).filter(|n| connector.name() == "datagen" || n % 50 >= 4).collect();
        assert_eq!(offsets, every, "{}", connector.name());
    }
}

#[test]
fn what_a_connector_cannot_include_is_refused_with_what_it_can() {
    let e = Include::of("ofset", connect::source("file").unwrap()).unwrap_err();
    assert_eq!((e.state().code(), e.hint()), ("42704", Some("Perhaps you meant INCLUDE offset.")));
    assert_eq!(e.detail(), Some("It can include: file, partition, offset."));
    let e = Include::of("file", connect::source("datagen").unwrap()).unwrap_err();
    assert_eq!(e.detail(), Some("It can include: partition, offset."));
}
