//! Parquet files.

use std::fs::File;

use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::file::properties::WriterProperties;
use arrow::array::*;
use arrow::datatypes::*;
use connect::{Offset, ReadState};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

const PARQUET: &[(&str, &str)] = &[("format", "parquet")];

fn write(path: &Path, batch: &RecordBatch, group_rows: usize, compression: Compression) {
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_max_row_group_row_count(Some(group_rows))
        .set_data_page_row_count_limit(50)
        .set_write_batch_size(50)
        .build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

fn numbers(rows: i64) -> RecordBatch {
    RecordBatch::try_from_iter([
        ("Id", Arc::new(Int64Array::from_iter_values(0..rows)) as ArrayRef),
        ("t", Arc::new(StringArray::from_iter_values((0..rows).map(|n| format!("text {n}"))))),
        ("x", Arc::new(Float64Array::from_iter((0..rows).map(|n| (n % 3 > 0).then_some(n as f64))))),
    ])
    .unwrap()
}

fn infer(path: &Path) -> flow::Result<SchemaRef> {
    connect::source("file").unwrap().infer_schema(&options(path, PARQUET), 10)
}

fn shown(s: &SchemaRef) -> String {
    let columns = s.fields().iter().map(|f| format!("{} {}", f.name(), connect::format::sql_type_name(f.data_type())));
    columns.collect::<Vec<_>>().join(", ")
}

#[test]
fn every_type_becomes_the_canonical_one() {
    let folder = Folder::new();
    let path = folder.path("a.parquet");
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None]);
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("b", Arc::new(BooleanArray::from(vec![Some(true), None])) as ArrayRef, true),
        ("i1", Arc::new(Int8Array::from(vec![Some(-8), None])), true),
        ("u1", Arc::new(UInt8Array::from(vec![Some(255), None])), true),
        ("u2", Arc::new(UInt16Array::from(vec![Some(65535), None])), true),
        ("u4", Arc::new(UInt32Array::from(vec![Some(u32::MAX), None])), true),
        ("u8", Arc::new(UInt64Array::from(vec![Some(u64::MAX), None])), true),
        ("f", Arc::new(Float32Array::from(vec![Some(1.5), None])), true),
        ("n", Arc::new(Decimal128Array::from(vec![Some(-12345), None]).with_precision_and_scale(10, 2).unwrap()), true),
        ("t", Arc::new(StringArray::from(vec![Some("é"), None])), true),
        ("d", Arc::new(StringArray::from(vec![Some("x"), None]).slice(0, 2)), true),
        ("y", Arc::new(BinaryArray::from_opt_vec(vec![Some(b"\0\xff"), None])), true),
        (
            "fy",
            Arc::new(
                FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some([1u8, 2]), None].into_iter(), 2).unwrap(),
            ),
            true,
        ),
        ("day", Arc::new(Date32Array::from(vec![Some(19782), None])), true),
        ("tm", Arc::new(Time64NanosecondArray::from(vec![Some(1_999), None])), true),
        ("ms", Arc::new(TimestampMillisecondArray::from(vec![Some(-1), None])), true),
        ("ns", Arc::new(TimestampNanosecondArray::from(vec![Some(-1), None])), true),
        ("tz", Arc::new(TimestampMicrosecondArray::from(vec![Some(1), None]).with_timezone("+02:00")), true),
        ("a", Arc::new(lists), true),
    ])
    .unwrap();
    write(&path, &batch, 100, Compression::SNAPPY);
    let s = infer(&path).unwrap();
    assert_eq!(
        shown(&s),
        "b boolean, i1 smallint, u1 smallint, u2 integer, u4 bigint, u8 numeric(20,0), f real, n numeric(10,2), t text, \
         d text, y bytea, fy bytea, day date, tm time, ms timestamp, ns timestamp, tz timestamptz, a integer[]"
    );
    let (rows, bad) = read_all(&mut *reader(&path, PARQUET, &s));
    assert_eq!(bad, []);
    let want = [
        "true",
        "-8",
        "255",
        "65535",
        "4294967295",
        "18446744073709551615",
        "1.5",
        "-123.45",
        "é",
        "x",
        "00ff",
        "0102",
        "2024-02-29",
        "00:00:00.000001",
        "1969-12-31T23:59:59.999",
        "1969-12-31T23:59:59.999999",
        "1970-01-01T00:00:00.000001Z",
        "[1, NULL]",
    ];
    assert_eq!(table(&rows)[0], want.map(String::from));
    assert!(table(&rows)[1].iter().all(|v| v == "NULL"), "{:?}", table(&rows)[1]);
    // Wider types of the same kind take the values too.
    let wide = schema(&[("i1", "int8"), ("u2", "numeric"), ("f", "float8"), ("a", "int4[]")]);
    let (rows, _) = read_all(&mut *reader(&path, PARQUET, &wide));
    assert_eq!(table(&rows)[0], ["-8", "65535.000000000000000000", "1.5", "[1, NULL]"].map(String::from));
}

#[test]
fn any_range_in_any_portions_gives_the_same_rows() {
    let folder = Folder::new();
    let mut rng = SmallRng::seed_from_u64(31);
    let s = schema(&[("id", "int8"), ("t", "text"), ("x", "float8")]);
    for (round, compression) in
        [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())]
            .into_iter()
            .enumerate()
    {
        let path = folder.path(&format!("{round}.parquet"));
        write(&path, &numbers(1000), 130, compression);
        let source = open(&path, PARQUET, &s).unwrap();
        let split = split(&path);
        let (want, bad) = read_all(&mut *source.reader(&split, None).unwrap());
        assert_eq!((want.num_rows(), bad.len()), (1000, 0));
        assert_eq!(table(&want)[999], ["999", "text 999", "NULL"].map(String::from));
        for _ in 0..60 {
            let (a, b) = (rng.random_range(0..=1000), rng.random_range(0..=1000));
            let (from, until) = (a.min(b), a.max(b));
            let columns: Vec<usize> = [vec![], vec![2], vec![1, 0], vec![0, 1, 2]][rng.random_range(0..4)].clone();
            let mut reader = source.reader(&split, Some(&columns)).unwrap();
            let (rows, _, end, state) = drain(
                &mut *reader,
                Offset(from),
                || (rng.random_range(1..300), rng.random_range(1..20_000)),
                Some(Offset(until)),
            );
            assert_eq!((end, state), (Offset(until), ReadState::End));
            let want = want.slice(from as usize, (until - from) as usize).project(&columns).unwrap();
            assert_eq!((rows.num_rows(), &rows), (want.num_rows(), &want), "{from}..{until} of {columns:?}");
            // The same reader goes back.
            let again = reader.read(Offset(0), 5, 1 << 20, None).unwrap();
            assert_eq!((again.batch.num_rows(), again.next), (5, Offset(5)));
        }
        let mut reader = source.reader(&split, None).unwrap();
        read_all(&mut *reader);
        assert_eq!(reader.progress().done, std::fs::metadata(&path).unwrap().len());
        assert_eq!(source.size(&split), reader.progress().total);
    }
}

#[test]
fn the_events_of_nexmark_come_back_as_they_were() {
    let folder = Folder::new();
    for kind in ["person", "auction", "bid"] {
        let own = Options::new([("connector", "nexmark"), ("table", kind), ("events", "20000")]).unwrap();
        let connector = connect::source("nexmark").unwrap();
        let s = connector.infer_schema(&own, 0).unwrap();
        let made = connector.open(&own, &s).unwrap();
        let (want, _) = read_all(&mut *made.reader(&made.splits().unwrap()[0], None).unwrap());
        let path = folder.path(kind);
        write(&path, &want, 5000, Compression::SNAPPY);
        assert_eq!(infer(&path).unwrap(), s);
        let (rows, bad) = read_all(&mut *reader(&path, PARQUET, &s));
        assert!(rows == want && bad.is_empty() && rows.num_rows() > 300, "{kind}");
    }
}

#[test]
fn only_the_wanted_columns_are_read() {
    let folder = Folder::new();
    let path = folder.path("a.parquet");
    write(&path, &numbers(1000), 1000, Compression::UNCOMPRESSED);
    let s = schema(&[("id", "int8"), ("t", "text"), ("x", "float8")]);
    let source = open(&path, PARQUET, &s).unwrap();
    // The pages of column t are spoiled behind the reader's back: who does not read it does not notice.
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|w| w == b"text 100").unwrap();
    bytes[at - 400..at + 400].fill(0xff);
    std::fs::write(&path, &bytes).unwrap();
    let (rows, _) = read_all(&mut *source.reader(&split(&path), Some(&[0, 2])).unwrap());
    assert_eq!(rows.num_rows(), 1000);
    let mut all = source.reader(&split(&path), Some(&[1])).unwrap();
    let e = all.read(Offset::START, 8192, 1 << 20, None).unwrap_err();
    assert_eq!(e.state().code(), "XX001");
    let start = format!("row group 0 of Parquet file \"{}\" cannot be read: ", path.display());
    assert!(e.message().starts_with(&start), "{e}");
}

#[test]
fn declared_columns_are_checked_against_the_footer() {
    let folder = Folder::new();
    let path = folder.path("a.parquet");
    let mut batch = numbers(3);
    let nested = StructArray::from(vec![(
        Arc::new(Field::new("v", DataType::Int32, true)),
        Arc::new(Int32Array::from(vec![1, 2, 3])) as ArrayRef,
    )]);
    batch = RecordBatch::try_from_iter_with_nullable(
        batch
            .schema()
            .fields()
            .iter()
            .zip(batch.columns())
            .map(|(f, c)| (f.name().clone(), Arc::clone(c), true))
            .chain([
                ("s".to_string(), Arc::new(nested) as ArrayRef, true),
                ("z".to_string(), Arc::new(TimestampMicrosecondArray::from(vec![1, 2, 3]).with_timezone("UTC")), true),
            ]),
    )
    .unwrap();
    write(&path, &batch, 100, Compression::SNAPPY);
    let refused = |columns: &[(&str, &str)]| open(&path, PARQUET, &schema(columns)).err().unwrap();
    let e = refused(&[("idd", "int8")]);
    assert_eq!((e.state().code(), e.hint()), ("42703", Some("Perhaps the column is \"id\".")));
    assert!(e.detail().unwrap().contains("a.parquet"));
    for (column, declared, have) in [
        ("id", "int4", "bigint"),
        ("id", "text", "bigint"),
        ("x", "float4", "double precision"),
        ("t", "int4", "text"),
        ("z", "timestamp", "timestamptz"),
    ] {
        let e = refused(&[(column, declared)]);
        assert_eq!(e.state().code(), "42804", "{e}");
        let want = connect::format::sql_type_name(schema(&[("c", declared)]).field(0).data_type());
        assert!(e.message().contains(column) && e.message().contains(have) && e.message().contains(&want), "{e}");
        assert_eq!(e.hint().unwrap(), format!("Declare the column as {have}, and cast it in a view."));
    }
    assert_eq!(refused(&[("s", "text")]).state().code(), "0A000");
    let e = infer(&path).unwrap_err();
    assert_eq!((e.state().code(), e.hint()), ("0A000", Some("Declare the other columns.")));
    let e = open(&path, &[("format", "parquet"), ("header", "true")], &schema(&[("id", "int8")])).err().unwrap();
    assert_eq!(e.state().code(), "22023");
    let e = open(&path, &[("format", "parquet"), ("follow", "true")], &schema(&[("id", "int8")])).err().unwrap();
    assert_eq!((e.state().code(), e.hint().is_some()), ("22023", true));
    // One of many that differs is named.
    let other = RecordBatch::try_from_iter([("id", Arc::new(StringArray::from(vec!["x"])) as ArrayRef)]).unwrap();
    write(&folder.path("b.parquet"), &other, 10, Compression::SNAPPY);
    let e = open(&folder.path("*.parquet"), PARQUET, &schema(&[("id", "int8")])).err().unwrap();
    assert_eq!(e.state().code(), "42804");
    assert!(e.detail().unwrap().contains("b.parquet"), "{:?}", e.detail());
}

#[test]
fn a_file_that_is_cut_short_or_no_parquet_is_refused_at_create() {
    let folder = Folder::new();
    let path = folder.path("a.parquet");
    write(&path, &numbers(1000), 100, Compression::SNAPPY);
    let whole = std::fs::read(&path).unwrap();
    let s = schema(&[("id", "int8")]);
    for length in [0, 3, 4, 8, 11, whole.len() / 2, whole.len() - 5, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        for e in [open(&path, PARQUET, &s).err().unwrap(), infer(&path).unwrap_err()] {
            assert_eq!((e.state().code(), e.hint().is_some()), ("XX001", true), "{length}: {e}");
            assert!(e.message().contains("a.parquet"), "{e}");
        }
    }
    // Cut while it is read.
    std::fs::write(&path, &whole).unwrap();
    let source = open(&path, PARQUET, &s).unwrap();
    let mut reader = source.reader(&split(&path), None).unwrap();
    reader.read(Offset::START, 10, 1000, None).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(5_000).unwrap();
    let e = reader.read(Offset(950), 10, 1000, None).unwrap_err();
    assert_eq!(e.state().code(), "XX001");
    assert!(e.message().contains("truncated"), "{e}");
    assert_eq!(source.reader(&split(&path), None).err().unwrap().state().code(), "XX001");
}

#[test]
fn random_damage_is_an_error_and_never_a_panic() {
    let folder = Folder::new();
    let mut rng = SmallRng::seed_from_u64(32);
    let path = folder.path("a.parquet");
    write(&path, &numbers(300), 100, Compression::SNAPPY);
    let whole = std::fs::read(&path).unwrap();
    let s = schema(&[("id", "int8"), ("t", "text"), ("x", "float8")]);
    let (mut read, mut refused) = (0, 0);
    for round in 0..600 {
        let mut bytes = whole.clone();
        // Half of the time in the footer.
        let from = if round % 2 == 0 { 0 } else { whole.len() - 900 };
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(from..bytes.len());
            bytes[at] = rng.random();
        }
        std::fs::write(&path, &bytes).unwrap();
        let source = match open(&path, PARQUET, &s) {
            Ok(source) => source,
            Err(e) => {
                assert!(["XX001", "42703", "42804", "0A000"].contains(&e.state().code()), "{e}");
                refused += 1;
                continue;
            }
        };
        let mut reader = source.reader(&split(&path), None).unwrap();
        let mut at = Offset::START;
        loop {
            match reader.read(at, 8192, 1 << 20, None) {
                Ok(outcome) if outcome.state == ReadState::End => {
                    read += 1;
                    break;
                }
                Ok(outcome) => at = outcome.next,
                Err(e) => {
                    assert_eq!(e.state().code(), "XX001", "{e}");
                    refused += 1;
                    break;
                }
            }
        }
    }
    assert!(read > 20 && refused > 100, "{read} read, {refused} refused");
}

#[test]
fn a_value_that_sql_does_not_hold_stops_the_source_and_null_is_left_out() {
    let folder = Folder::new();
    let path = folder.path("a.parquet");
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from(vec![Some(1), None, Some(3), None])) as ArrayRef, true),
        ("t", Arc::new(StringArray::from(vec!["a", "b", "c", "d"])), true),
        ("z", Arc::new(StringArray::from(vec!["a", "b\0", "c", "d"])), true),
        ("d", Arc::new(Date32Array::from(vec![1, 2, i32::MAX, 4])), true),
        ("ms", Arc::new(TimestampMillisecondArray::from(vec![1, 2, i64::MAX, 4])), true),
    ])
    .unwrap();
    write(&path, &batch, 100, Compression::SNAPPY);
    for (column, kind, what) in [("z", "text", "U+0000"), ("d", "date", "out of range"), ("ms", "timestamp", "verflow")]
    {
        for on_error in ["skip", "stop"] {
            let mut r = reader(&path, &[("format", "parquet"), ("on_error", on_error)], &schema(&[(column, kind)]));
            let e = r.read(Offset::START, 100, 1 << 20, None).unwrap_err();
            assert_eq!(e.state().code(), "XX001");
            assert!(e.message().contains(what) && e.message().contains(column), "{e}");
        }
    }
    let s = schema(&[("id", "int8!"), ("t", "text")]);
    let source = open(&path, PARQUET, &s).unwrap();
    for columns in [None, Some(&[1usize][..])] {
        let (rows, bad) = read_all(&mut *source.reader(&split(&path), columns).unwrap());
        assert_eq!(rows.num_rows(), 2, "readers of other columns leave out the same rows");
        let bad: Vec<_> = bad.iter().map(|b| (b.offset.0, b.column.as_deref(), b.reason.as_str())).collect();
        let reason = "null value in column \"id\", which is NOT NULL";
        assert_eq!(bad, [(1, Some("id"), reason), (3, Some("id"), reason)]);
    }
    let mut stop = reader(&path, &[("format", "parquet"), ("on_error", "stop")], &s);
    let first = stop.read(Offset::START, 100, 1 << 20, None).unwrap();
    assert_eq!((first.batch.num_rows(), first.next), (1, Offset(1)));
    let e = stop.read(first.next, 100, 1 << 20, None).unwrap_err();
    assert_eq!((e.state().code(), e.message()), ("22P02", "null value in column \"id\", which is NOT NULL"));
    assert!(e.detail().unwrap().contains("row 1"), "{e:?}");
}

#[test]
fn a_followed_folder_takes_new_files_whole() {
    let folder = Folder::new();
    let s = schema(&[("id", "int8")]);
    let source = open(&folder.path("*.parquet"), &[("format", "parquet"), ("follow", "true")], &s).unwrap();
    assert_eq!(source.splits().unwrap(), []);
    write(&folder.path("a.parquet"), &numbers(10), 100, Compression::SNAPPY);
    let splits = source.splits().unwrap();
    let (rows, _, _, state) =
        drain(&mut *source.reader(&splits[0], None).unwrap(), Offset::START, || (8192, 1 << 20), None);
    assert_eq!((rows.num_rows(), state), (10, ReadState::End));
    // A file that is still being written stops the source.
    folder.write("b.parquet", b"PAR1");
    let e = source.splits().unwrap_err();
    assert_eq!(e.state().code(), "XX001");
    assert!(e.message().contains("b.parquet") && e.hint().unwrap().contains("rename"), "{e}");
    write(&folder.path("b.parquet"), &numbers(10), 100, Compression::SNAPPY);
    assert_eq!(source.splits().unwrap().len(), 2);
    write(&folder.path("a.parquet"), &numbers(11), 100, Compression::SNAPPY);
    assert_eq!(source.splits().unwrap_err().state().code(), "XX001");
}

#[test]
fn included_offsets_are_the_numbers_of_the_rows_without_those_that_are_left_out() {
    let folder = Folder::new();
    let path = folder.path("places.parquet");
    write(&path, &numbers(1_000), 300, Compression::UNCOMPRESSED);
    // Every third row lacks its x, which the source does not allow.
    let own = schema(&[("id", "int8"), ("x", "float8!")]);
    let all = schema(&[("id", "int8"), ("x", "float8!"), ("o", "int8!")]);
    let source = open(&path, PARQUET, &own).unwrap();
    let source = connect::include::included(source, &[connect::Include::Offset], &all).unwrap();
    let mut reader = source.reader(&split(&path), Some(&[2, 0])).unwrap();
    let mut portions = SmallRng::seed_from_u64(7);
    let portion = || (portions.random_range(1..400), portions.random_range(1..10_000));
    let (batch, errors, ..) = drain(reader.as_mut(), Offset::START, portion, None);
    let expected: Vec<i64> = (0..1_000).filter(|n| n % 3 > 0).collect();
    for column in batch.columns() {
        assert_eq!(column.as_primitive::<Int64Type>().values().to_vec(), expected);
    }
    assert_eq!(errors.len(), 334);
}
