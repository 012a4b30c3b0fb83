//! The connectors through their public contract. One binary: linking is the cost.

mod bad;
mod datagen;
mod docs;
mod exactly_once;
mod follow;
mod include;
mod many;
mod nexmark;
mod parquet;
mod records;
mod round_trip;
mod s3;
mod sink;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, IntervalUnit, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use connect::{BadRecord, Offset, Options, ReadOutcome, ReadState, Source, SourceReader, Split};

#[global_allocator]
static ALLOCATOR: bad::Counting = bad::Counting;

/// A folder that disappears with the test, and files in it.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

pub fn options(path: &Path, pairs: &[(&str, &str)]) -> Options {
    let own = [("connector", "file"), ("path", path.to_str().unwrap())];
    Options::new(own.iter().chain(pairs).map(|(k, v)| (*k, *v))).unwrap()
}

pub fn open(path: &Path, pairs: &[(&str, &str)], schema: &SchemaRef) -> flow::Result<Box<dyn Source>> {
    connect::source("file").unwrap().open(&options(path, pairs), schema)
}

pub fn reader(path: &Path, pairs: &[(&str, &str)], schema: &SchemaRef) -> Box<dyn SourceReader> {
    open(path, pairs, schema).unwrap().reader(&split(path), None).unwrap()
}

/// The split that a file is.
pub fn split(path: &Path) -> Split {
    Split(path.to_str().unwrap().into())
}

/// Columns `name type …` in canonical types; `!` after a type means NOT NULL.
pub fn schema(columns: &[(&str, &str)]) -> SchemaRef {
    let fields = columns.iter().map(|(name, kind)| {
        let (kind, nullable) = kind.strip_suffix('!').map_or((*kind, true), |k| (k, false));
        Field::new(*name, data_type(kind), nullable)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn data_type(kind: &str) -> DataType {
    if let Some(item) = kind.strip_suffix("[]") {
        return DataType::List(Arc::new(Field::new("item", data_type(item), true)));
    }
    match kind {
        "bool" => DataType::Boolean,
        "int2" => DataType::Int16,
        "int4" => DataType::Int32,
        "int8" => DataType::Int64,
        "float4" => DataType::Float32,
        "float8" => DataType::Float64,
        "numeric" => DataType::Decimal128(38, 18),
        "numeric(10,2)" => DataType::Decimal128(10, 2),
        "text" => DataType::Utf8View,
        "bytea" => DataType::Binary,
        "date" => DataType::Date32,
        "time" => DataType::Time64(TimeUnit::Microsecond),
        "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, None),
        "timestamptz" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        "interval" => DataType::Interval(IntervalUnit::MonthDayNano),
        other => panic!("no such type in these tests: {other}"),
    }
}

/// Everything from `from` to the end or to where the input has caught up, in portions of the given size.
pub fn drain(
    reader: &mut dyn SourceReader,
    mut from: Offset,
    mut portion: impl FnMut() -> (usize, usize),
    limit: Option<Offset>,
) -> (RecordBatch, Vec<BadRecord>, Offset, ReadState) {
    let (mut batches, mut errors) = (Vec::new(), Vec::new());
    loop {
        let (max_rows, max_bytes) = portion();
        let ReadOutcome { batch, next, state, errors: bad } = reader.read(from, max_rows, max_bytes, limit).unwrap();
        assert!(batch.num_rows() + bad.len() <= max_rows, "more rows than asked for");
        assert!(next > from || state != ReadState::More, "no progress at {from}");
        batches.push(batch);
        errors.extend(bad);
        from = next;
        if state != ReadState::More {
            let batch = concat_batches(reader.schema(), &batches).unwrap();
            return (batch, errors, from, state);
        }
    }
}

pub fn read_all(reader: &mut dyn SourceReader) -> (RecordBatch, Vec<BadRecord>) {
    let (batch, errors, _, _) = drain(reader, Offset::START, || (8192, 1 << 20), None);
    (batch, errors)
}

/// A batch as a table of texts, to compare and to show.
pub fn table(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = arrow::util::display::FormatOptions::new().with_null("NULL");
    // Arrow shows zones only by their offset.
    let shown = |c: &ArrayRef| match c.data_type() {
        DataType::Timestamp(_, Some(_)) => {
            Arc::new(c.as_primitive::<TimestampMicrosecondType>().clone().with_timezone("+00:00")) as ArrayRef
        }
        _ => Arc::clone(c),
    };
    let arrays: Vec<ArrayRef> = batch.columns().iter().map(shown).collect();
    let columns: Vec<_> =
        arrays.iter().map(|c| arrow::util::display::ArrayFormatter::try_new(c.as_ref(), &options).unwrap()).collect();
    (0..batch.num_rows()).map(|row| columns.iter().map(|c| c.value(row).to_string()).collect()).collect()
}

pub fn strings(rows: &[&[&str]]) -> Vec<Vec<String>> {
    rows.iter().map(|r| r.iter().map(|v| v.to_string()).collect()).collect()
}
