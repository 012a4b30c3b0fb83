//! The datagen source through the contract of sources.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Decimal128Type, Int32Type, Int64Type, TimestampMicrosecondType};
use connect::{Offset, Options, ReadState, Source};

const COLUMNS: &[(&str, &str)] = &[
    ("id", "int8!"),
    ("n", "int4"),
    ("amount", "numeric(10,2)"),
    ("share", "float8"),
    ("name", "text"),
    ("city", "text"),
    ("ok", "bool"),
    ("at", "timestamp"),
    ("day", "date"),
];

fn open(pairs: &[(&str, &str)]) -> flow::Result<Box<dyn Source>> {
    open_columns(COLUMNS, pairs)
}

fn open_columns(columns: &[(&str, &str)], pairs: &[(&str, &str)]) -> flow::Result<Box<dyn Source>> {
    let options = Options::new([("connector", "datagen")].iter().chain(pairs).map(|(k, v)| (*k, *v)))?;
    connect::source("datagen")?.open(&options, &crate::schema(columns))
}

/// All rows, split after split, in portions of `rows`.
fn read(source: &dyn Source, rows: usize) -> RecordBatch {
    let mut batches = Vec::new();
    for split in source.splits().unwrap() {
        let (mut reader, mut at) = (source.reader(&split, None).unwrap(), Offset::START);
        loop {
            let outcome = reader.read(at, rows, usize::MAX, None).unwrap();
            assert!(outcome.batch.num_rows() <= rows);
            at = outcome.next;
            batches.push(outcome.batch);
            if outcome.state == ReadState::End {
                break;
            }
        }
    }
    concat_batches(source.schema(), &batches).unwrap()
}

#[test]
fn columns_hold_what_their_options_say() {
    let source = open(&[
        ("rows", "10000"),
        ("fields.id.kind", "sequence"),
        ("fields.id.start", "5"),
        ("fields.id.step", "2"),
        ("fields.n.kind", "sequence"),
        ("fields.n.start", "1"),
        ("fields.n.end", "3"),
        ("fields.amount.min", "-1.50"),
        ("fields.amount.max", "1.50"),
        ("fields.name.length", "20"),
        ("fields.city.values", "Oslo, Lima,Kyoto"),
        ("fields.city.null_rate", "0.25"),
        ("fields.at.start", "2026-01-01 00:00:00"),
        ("fields.at.step", "10 ms"),
    ]);
    let rows = read(&*source.unwrap(), 1024);
    assert_eq!(rows.num_rows(), 10_000);
    let ids = rows.column(0).as_primitive::<Int64Type>().values();
    assert_eq!((ids[0], ids[1], ids[9_999]), (5, 7, 5 + 2 * 9_999));
    assert_eq!(rows.column(1).as_primitive::<Int32Type>().values()[..5], [1, 2, 3, 1, 2]);
    let amounts = rows.column(2).as_primitive::<Decimal128Type>().values();
    assert_eq!((*amounts.iter().min().unwrap(), *amounts.iter().max().unwrap()), (-150, 150));
    let names = rows.column(4).as_string_view();
    assert!(names.iter().flatten().all(|n| n.len() == 20 && n.bytes().all(|b| b.is_ascii_lowercase())));
    let cities = rows.column(5).as_string_view();
    assert!((2_300..2_700).contains(&cities.null_count()), "{}", cities.null_count());
    assert!(cities.iter().flatten().all(|c| ["Oslo", "Lima", "Kyoto"].contains(&c)));
    let at = rows.column(7).as_primitive::<TimestampMicrosecondType>().values();
    assert_eq!((at[0], at[9_999] - at[0]), (1_767_225_600_000_000, 99_990_000));
    assert!((4_800..5_200).contains(&rows.column(6).as_boolean().true_count()));
    rows.columns().iter().for_each(|c| c.to_data().validate_full().unwrap());
}

#[test]
fn the_rows_do_not_depend_on_portions_and_splits() {
    let whole = read(&*open(&[("rows", "5500")]).unwrap(), 10_000);
    assert_eq!(read(&*open(&[("rows", "5500")]).unwrap(), 77), whole);
    let split = read(&*open(&[("rows", "5500"), ("splits", "3")]).unwrap(), 400);
    // Runs of 1,000 rows go to the splits in turn: 0, 3; then 1, 4; then 2, 5.
    let runs: Vec<RecordBatch> =
        [0, 3, 1, 4, 2, 5].iter().map(|run| whole.slice(run * 1_000, 1_000.min(5_500 - run * 1_000))).collect();
    assert_eq!(split, concat_batches(&whole.schema(), &runs).unwrap());
    assert_ne!(read(&*open(&[("rows", "5500"), ("seed", "1")]).unwrap(), 10_000), whole);
}

#[test]
fn the_whole_range_of_a_type_can_be_asked_for() {
    let columns = [("a", "int8"), ("b", "int2"), ("c", "float8")];
    let options = [
        ("rows", "1000"),
        ("fields.a.min", "-9223372036854775808"),
        ("fields.a.max", "9223372036854775807"),
        ("fields.b.kind", "sequence"),
        ("fields.b.start", "32767"),
        ("fields.c.min", "-1.7e308"),
        ("fields.c.max", "1.7e308"),
    ];
    let rows = read(&*open_columns(&columns, &options).unwrap(), 100);
    let a = rows.column(0).as_primitive::<Int64Type>().values();
    assert!(a.iter().any(|v| *v < i64::MIN / 2) && a.iter().any(|v| *v > i64::MAX / 2));
    assert_eq!(rows.column(1).as_primitive::<arrow::datatypes::Int16Type>().values()[..3], [32767; 3]);
    let c = rows.column(2).as_primitive::<arrow::datatypes::Float64Type>().values();
    assert!(c.iter().all(|v| v.is_finite()));
}

#[test]
fn wrong_options_are_refused_by_name() {
    let refused = |pairs: &[(&str, &str)]| {
        let error = open(pairs).err().unwrap();
        format!("{} {} | {}", error.state().code(), error.message(), error.hint().unwrap_or(""))
    };
    let invalid = "invalid value for option";
    let of = "of source connector \"datagen\"";
    for (pairs, want) in [
        (&[("row", "5")][..], "42704 source connector \"datagen\" has no option \"row\" | Perhaps you meant \"rows\".".into()),
        (&[("rows", "0")], format!("22023 {invalid} \"rows\" {of}: '0' | ")),
        (&[("fields.idd.min", "1")], "42703 source connector \"datagen\" has options for the column \"idd\", which is not declared | Perhaps you meant \"id\".".into()),
        (&[("fields.id.mn", "1")], "42704 source connector \"datagen\" has no option \"fields.id.mn\" | Perhaps you meant \"fields.id.min\".".into()),
        (&[("fields.id.kind", "sequenc")], format!("22023 {invalid} \"fields.id.kind\" {of}: 'sequenc' | Perhaps you meant 'sequence'.")),
        (&[("fields.n.max", "3000000000")], format!("22023 {invalid} \"fields.n.max\" {of}: '3000000000' | ")),
        (&[("fields.n.min", "9"), ("fields.n.max", "8")], format!("22023 {invalid} \"fields.n.max\" {of}: '8' | ")),
        (&[("fields.id.null_rate", "0.5")], format!("22023 {invalid} \"fields.id.null_rate\" {of}: '0.5' | ")),
        (&[("fields.at.step", "1 month")], format!("22023 {invalid} \"fields.at.step\" {of}: '1 month' | ")),
        (&[("fields.at.step", "-1 ms")], format!("22023 {invalid} \"fields.at.step\" {of}: '-1 ms' | ")),
        (&[("fields.name.min", "1")], "22023 option \"fields.name.min\" has no meaning for a text column | ".into()),
        (&[("fields.name.length", "10001")], format!("22023 {invalid} \"fields.name.length\" {of}: '10001' | ")),
        (&[("fields.share.max", "inf")], format!("22023 {invalid} \"fields.share.max\" {of}: 'inf' | ")),
    ] {
        assert_eq!(refused(pairs), want);
    }
    let error = open_columns(&[("x", "interval")], &[]).err().unwrap();
    assert_eq!((error.state().code(), error.message()), ("0A000", "column \"x\" of type interval cannot be generated"));
}
