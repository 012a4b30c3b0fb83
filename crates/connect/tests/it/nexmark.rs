//! The nexmark source through the contract of sources.

use std::collections::BTreeSet;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Int64Type, SchemaRef};
use connect::{Offset, Options, ReadState, Source, Split};

fn options(pairs: &[(&str, &str)]) -> Options {
    let own = [("connector", "nexmark")];
    Options::new(own.iter().chain(pairs).map(|(k, v)| (*k, *v))).unwrap()
}

fn open(pairs: &[(&str, &str)]) -> Box<dyn Source> {
    let connector = connect::source("nexmark").unwrap();
    let schema = connector.infer_schema(&options(pairs), 1).unwrap();
    connector.open(&options(pairs), &schema).unwrap()
}

/// The rows of a split in portions of `rows`, up to `limit`.
fn read(source: &dyn Source, split: &Split, rows: usize, limit: Option<Offset>) -> RecordBatch {
    let mut reader = source.reader(split, None).unwrap();
    let (mut at, mut batches) = (Offset::START, Vec::new());
    loop {
        let outcome = reader.read(at, rows, usize::MAX, limit).unwrap();
        assert!(outcome.batch.num_rows() <= rows && outcome.next >= at);
        at = outcome.next;
        batches.push(outcome.batch);
        if outcome.state != ReadState::More {
            assert_eq!(outcome.state, ReadState::End);
            return concat_batches(source.schema(), &batches).unwrap();
        }
    }
}

#[test]
fn the_rows_are_the_same_in_any_portions_and_the_kinds_have_their_share() {
    for (table, share) in [("person", 1), ("auction", 3), ("bid", 46)] {
        let source = open(&[("table", table), ("events", "20000")]);
        let whole = read(&*source, &Split("000".into()), 100_000, None);
        assert_eq!(whole.num_rows(), 20_000 / 50 * share);
        for rows in [1, 7, 1024] {
            assert_eq!(read(&*source, &Split("000".into()), rows, None), whole, "{table} in portions of {rows}");
        }
    }
}

#[test]
fn splits_share_the_rows_without_loss_or_repetition() {
    for table in ["auction", "bid"] {
        let whole = read(&*open(&[("table", table), ("events", "12345")]), &Split("000".into()), 8192, None);
        let rows = |batch: &RecordBatch| -> Vec<String> {
            (0..batch.num_rows()).map(|n| format!("{:?}", batch.slice(n, 1).columns())).collect()
        };
        let whole: BTreeSet<String> = rows(&whole).into_iter().collect();
        for splits in ["2", "3", "64"] {
            let source = open(&[("table", table), ("events", "12345"), ("splits", splits)]);
            let parts: Vec<String> =
                source.splits().unwrap().iter().flat_map(|s| rows(&read(&*source, s, 333, None))).collect();
            assert_eq!(parts.len(), whole.len(), "{table} in {splits} splits");
            assert_eq!(parts.into_iter().collect::<BTreeSet<_>>(), whole);
        }
    }
}

#[test]
fn a_limit_ends_the_range_and_what_follows_joins_it() {
    let source = open(&[("table", "bid"), ("events", "5000"), ("splits", "2")]);
    for split in source.splits().unwrap() {
        let whole = read(&*source, &split, 8192, None);
        for limit in [0, 1, 50, 1000, 1001, 2500, 4999, 5000, 9999] {
            let first = read(&*source, &split, 100, Some(Offset(limit)));
            let mut reader = source.reader(&split, None).unwrap();
            let rest = reader.read(Offset(limit), 100_000, usize::MAX, None).unwrap().batch;
            assert_eq!(concat_batches(source.schema(), [&first, &rest]).unwrap(), whole, "limit {limit}");
        }
    }
}

#[test]
fn a_reader_makes_the_columns_that_are_asked_for() {
    let source = open(&[("table", "bid"), ("events", "1000")]);
    let split = Split("000".into());
    let whole = read(&*source, &split, 8192, None);
    let mut reader = source.reader(&split, Some(&[5, 0])).unwrap();
    let two = reader.read(Offset::START, 8192, usize::MAX, None).unwrap().batch;
    assert_eq!(two, whole.project(&[5, 0]).unwrap());
    let mut reader = source.reader(&split, Some(&[])).unwrap();
    assert_eq!(reader.read(Offset::START, 8192, usize::MAX, None).unwrap().batch.num_rows(), 920);
}

#[test]
fn bids_name_auctions_that_exist_and_another_seed_gives_other_rows() {
    let split = Split("000".into());
    let bids = read(&*open(&[("table", "bid"), ("events", "100000")]), &split, 8192, None);
    let auctions = read(&*open(&[("table", "auction"), ("events", "100000")]), &split, 8192, None);
    let known: BTreeSet<i64> = auctions.column(0).as_primitive::<Int64Type>().values().iter().copied().collect();
    let named = bids.column(0).as_primitive::<Int64Type>().values();
    let missing = named.iter().filter(|a| !known.contains(a)).count();
    // Some bids are ahead of their auction, the last of them for good.
    assert!(missing < 200, "{missing}");
    let other = read(&*open(&[("table", "bid"), ("events", "100000"), ("seed", "1")]), &split, 8192, None);
    assert_ne!(other.column(0), bids.column(0));
    assert_eq!(other.column(5), bids.column(5));
}

#[test]
fn wrong_options_and_columns_are_refused_by_name() {
    let connector = connect::source("nexmark").unwrap();
    let refused = |pairs: &[(&str, &str)], schema: Option<SchemaRef>| {
        let schema = schema.map_or_else(|| connector.infer_schema(&options(pairs), 1), Ok);
        let error = schema.and_then(|s| connector.open(&options(pairs), &s)).err().unwrap();
        format!("{} {} | {}", error.state().code(), error.message(), error.hint().unwrap_or(""))
    };
    for (pairs, want) in [
        (
            &[("table", "bids")][..],
            "22023 invalid value for option \"table\" of source connector \"nexmark\": 'bids' | Perhaps you meant 'bid'.",
        ),
        (&[], "22023 source connector \"nexmark\" needs the option \"table\" | Write WITH (…, table = '…')."),
        (
            &[("table", "bid"), ("events", "0")],
            "22023 invalid value for option \"events\" of source connector \"nexmark\": '0' | ",
        ),
        (
            &[("table", "bid"), ("event_rat", "5")],
            "42704 source connector \"nexmark\" has no option \"event_rat\" | Perhaps you meant \"event_rate\".",
        ),
        (
            &[("table", "bid"), ("start_time", "today")],
            "22023 invalid value for option \"start_time\" of source connector \"nexmark\": 'today' | ",
        ),
    ] {
        assert_eq!(refused(pairs, None), want);
    }
    let bid = [("table", "bid")];
    assert_eq!(
        refused(&bid, Some(crate::schema(&[("auctoin", "int8")]))),
        "42703 the nexmark table \"bid\" has no column \"auctoin\" | Perhaps you meant \"auction\"."
    );
    assert_eq!(
        refused(&bid, Some(crate::schema(&[("auction", "text")]))),
        "42804 column \"auction\" of the nexmark table \"bid\" is of type bigint, not text | Leave the columns out to get all of them with their types."
    );
}
