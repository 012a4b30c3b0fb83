//! Parquet files: rows by number, only the wanted columns, in the engine's own types.
//!
//! An offset is a row of the file, from 0. A reader goes through one row group at a time, so that what is wrong with a page
//! names its row group; to start in the middle it skips the row groups before and selects the rows of the first one.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::CastOptions;
use arrow::datatypes::*;
use arrow::error::ArrowError;
use flow::{Error, Result, SqlState};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelector,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::reader::Length;

use crate::format::sql_type_name;
use crate::options;
use crate::source::{BadRecord, Offset, OnError, Progress, ReadOutcome, ReadState, SourceReader};

use super::chunks::Chunks;

/// Rows that are decoded at a time, unless they are large.
const BATCH_ROWS: usize = 8192;

/// About the bytes that are decoded at a time.
const BATCH_BYTES: u64 = 8 << 20;

/// The footer of a file, and which of its columns is which.
#[derive(Clone)]
pub struct Layout {
    metadata: ArrowReaderMetadata,
    /// For each declared column, the root column of the file.
    roots: Vec<usize>,
    /// The first row of each row group; at last, the number of rows.
    starts: Vec<u64>,
}

impl Layout {
    /// Reads the footer, and finds the columns of `schema` in it. Errors: `XX001` the footer cannot be read; `42703` a declared
    /// column that the file lacks; `42804` a type that does not become the declared one without loss; `0A000` a type that no
    /// column can hold.
    pub fn find(name: &str, chunks: &Chunks, schema: &Schema) -> Result<Layout> {
        let metadata = footer(name, chunks)?;
        let fields = metadata.schema().fields();
        let mut roots = Vec::with_capacity(schema.fields().len());
        for declared in schema.fields() {
            let root = find_field(name, fields, declared.name())?;
            check_type(name, &fields[root], declared)?;
            roots.push(root);
        }
        let mut starts = vec![0u64];
        let mut rows = 0u64;
        for group in metadata.metadata().row_groups() {
            let in_group =
                u64::try_from(group.num_rows()).map_err(|_| corrupt(name, "a row group has fewer than no rows"))?;
            rows = rows.checked_add(in_group).ok_or_else(|| corrupt(name, "it has more rows than can be"))?;
            starts.push(rows);
        }
        Ok(Layout { metadata, roots, starts })
    }

    pub fn rows(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }
}

/// The footer with the types that the columns are read as.
fn footer(name: &str, chunks: &Chunks) -> Result<ArrowReaderMetadata> {
    let broken = |e: ParquetError| chunks.failure().unwrap_or_else(|| corrupt(name, &reason(&e)));
    let options = ArrowReaderOptions::new()
        .with_skip_arrow_metadata(true)
        .with_column_index_policy(PageIndexPolicy::Skip)
        .with_offset_index_policy(PageIndexPolicy::Skip);
    let known = ArrowReaderMetadata::load(chunks, options).map_err(broken)?;
    // Texts as views, and days with nanoseconds (INT96) in the range of timestamps.
    let parquet = known.parquet_schema();
    let fields = known.schema().fields().iter().enumerate().map(|(root, field)| {
        let leaf = (0..parquet.num_columns()).find(|leaf| parquet.get_column_root_idx(*leaf) == root);
        let physical = leaf.map(|leaf| parquet.column(leaf).physical_type());
        let read_as = match (field.data_type(), physical) {
            (DataType::Utf8, _) => DataType::Utf8View,
            (DataType::Timestamp(..), Some(parquet::basic::Type::INT96)) => {
                DataType::Timestamp(TimeUnit::Microsecond, None)
            }
            (other, _) => other.clone(),
        };
        field.as_ref().clone().with_data_type(read_as)
    });
    let schema = Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), known.schema().metadata().clone()));
    let options = ArrowReaderOptions::new().with_schema(schema);
    ArrowReaderMetadata::try_new(Arc::clone(known.metadata()), options).map_err(broken)
}

/// The columns of the file in canonical types, with names in lower case. Errors: as [`Layout::find`]; `42P16` there are none.
pub fn infer_schema(name: &str, chunks: &Chunks) -> Result<SchemaRef> {
    let metadata = footer(name, chunks)?;
    let fields = metadata.schema().fields();
    if fields.is_empty() {
        return Err(Error::new(SqlState::InvalidTableDefinition, "the columns cannot be inferred: the file has none")
            .with_detail(format!("File \"{name}\".")));
    }
    let lower: Vec<String> = fields.iter().map(|f| f.name().to_lowercase()).collect();
    let columns = fields.iter().zip(&lower).map(|(field, low)| {
        let unique = lower.iter().filter(|l| *l == low).count() == 1;
        let column = if unique { low } else { field.name() };
        match canonical(field.data_type()) {
            Some(data_type) => Ok(Field::new(column, data_type, true)),
            None => Err(unreadable(name, field).with_hint("Declare the other columns.")),
        }
    });
    Ok(Arc::new(Schema::new(columns.collect::<Result<Vec<_>>>()?)))
}

/// `XX001`: the file is no Parquet file, or a broken one.
fn corrupt(name: &str, what: &str) -> Error {
    Error::new(SqlState::DataCorrupted, format!("Parquet file \"{name}\" cannot be read: {what}"))
        .with_hint("Write files under a name that the path does not match, and rename them once they are whole.")
}

/// The words of an error without the names of its kinds, in lower case.
fn reason(e: &ParquetError) -> String {
    words(&e.to_string())
}

fn arrow_words(e: &ArrowError) -> String {
    words(&e.to_string())
}

fn words(text: &str) -> String {
    const KINDS: [&str; 9] = [
        "Parquet argument error: ",
        "Parquet error: ",
        "External: ",
        "EOF: ",
        "Arrow: ",
        "NYI: ",
        "Cast error: ",
        "Invalid argument error: ",
        "Compute error: ",
    ];
    let mut text = text;
    while let Some(rest) = KINDS.iter().find_map(|kind| text.strip_prefix(kind)) {
        text = rest;
    }
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// The root column of this name: exactly, else ignoring case.
fn find_field(file: &str, fields: &Fields, name: &str) -> Result<usize> {
    let exact = fields.iter().position(|f| f.name() == name);
    let found = exact.or_else(|| fields.iter().position(|f| f.name().eq_ignore_ascii_case(name)));
    found.ok_or_else(|| {
        let names: Vec<&str> = fields.iter().map(|f| f.name().as_str()).collect();
        let error = Error::new(SqlState::UndefinedColumn, format!("column \"{name}\" is not in the Parquet file"))
            .with_detail(format!("The columns of \"{file}\" are: {}.", names.join(", ")));
        let lower: Vec<String> = names.iter().map(|n| n.to_lowercase()).collect();
        match options::nearest(name, lower.iter().map(String::as_str)) {
            Some(near) => error.with_hint(format!("Perhaps the column is \"{near}\".")),
            None => error.with_hint("Leave the columns out to get all of them with their types."),
        }
    })
}

fn unreadable(file: &str, field: &Field) -> Error {
    Error::unsupported(format!("column \"{}\" of the Parquet file is of a type that no column holds", field.name()))
        .with_detail(format!("Its type in \"{file}\" is {}.", field.data_type()))
}

fn check_type(file: &str, field: &Field, declared: &Field) -> Result<()> {
    let Some(have) = canonical(field.data_type()) else {
        return Err(unreadable(file, field).with_hint("Leave the column out."));
    };
    if widens(&have, declared.data_type()) {
        return Ok(());
    }
    let (have, want) = (sql_type_name(&have), sql_type_name(declared.data_type()));
    Err(Error::new(
        SqlState::DatatypeMismatch,
        format!("column \"{}\" of the Parquet file is of type {have}, which is not read as {want}", declared.name()),
    )
    .with_detail(format!("The file is \"{file}\"; the type in it is {}.", field.data_type()))
    .with_hint(format!("Declare the column as {have}, and cast it in a view.")))
}

/// The canonical type that holds every value of a type of a file. `None`: there is none.
fn canonical(data_type: &DataType) -> Option<DataType> {
    use DataType::*;
    Some(match data_type {
        Boolean => Boolean,
        Int8 | Int16 | UInt8 => Int16,
        Int32 | UInt16 => Int32,
        Int64 | UInt32 => Int64,
        UInt64 => Decimal128(20, 0),
        Float16 | Float32 => Float32,
        Float64 => Float64,
        Decimal128(p, s) if *s >= 0 && i16::from(*s) <= i16::from(*p) => Decimal128(*p, *s),
        Utf8 | LargeUtf8 | Utf8View => Utf8View,
        Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => Binary,
        Date32 => Date32,
        Time32(_) | Time64(_) => Time64(TimeUnit::Microsecond),
        Timestamp(_, None) => Timestamp(TimeUnit::Microsecond, None),
        Timestamp(_, Some(_)) => Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        List(item) if !matches!(item.data_type(), List(_)) => {
            List(Arc::new(Field::new("item", canonical(item.data_type())?, true)))
        }
        _ => return None,
    })
}

/// Whether every value of canonical type `have` is one of `want`.
fn widens(have: &DataType, want: &DataType) -> bool {
    use DataType::*;
    let digits = |t: &DataType| match t {
        Int16 => Some(5),
        Int32 => Some(10),
        Int64 => Some(19),
        _ => None,
    };
    match (have, want) {
        (a, b) if a == b => true,
        (Int16, Int32 | Int64 | Float32 | Float64) | (Int32, Int64 | Float64) | (Float32, Float64) => true,
        (Decimal128(p, s), Decimal128(q, t)) => {
            t >= s && i16::from(*q) - i16::from(*t) >= i16::from(*p) - i16::from(*s)
        }
        (from, Decimal128(q, t)) => digits(from).is_some_and(|d| i16::from(*q) - i16::from(*t) >= d),
        (List(a), List(b)) => widens(a.data_type(), b.data_type()),
        _ => false,
    }
}

/// `array`, as it comes from the file, in the declared type. Errors: what is wrong with a value.
fn convert(array: &ArrayRef, to: &DataType) -> std::result::Result<ArrayRef, String> {
    let out = match (array.data_type(), to) {
        (from, to) if from == to => Arc::clone(array),
        // Nanoseconds are cut off towards the past, so that the order of times stays.
        (DataType::Timestamp(TimeUnit::Nanosecond, _), DataType::Timestamp(..)) => {
            let us = array.as_primitive::<TimestampNanosecondType>();
            let us = us.unary::<_, TimestampMicrosecondType>(|ns| ns.div_euclid(1_000));
            Arc::new(us.with_data_type(to.clone()))
        }
        (DataType::Time64(TimeUnit::Nanosecond), DataType::Time64(TimeUnit::Microsecond)) => {
            let ns = array.as_primitive::<Time64NanosecondType>();
            Arc::new(ns.unary::<_, Time64MicrosecondType>(|ns| ns.div_euclid(1_000)))
        }
        (DataType::List(_), DataType::List(item)) => {
            let list = array.as_list::<i32>();
            let values = convert(list.values(), item.data_type())?;
            let list = arrow::array::ListArray::try_new(
                Arc::clone(item),
                list.offsets().clone(),
                values,
                list.nulls().cloned(),
            );
            Arc::new(list.map_err(|e| arrow_words(&e))?)
        }
        (_, to) => {
            let strict = CastOptions { safe: false, ..CastOptions::default() };
            arrow::compute::cast_with_options(array, to, &strict).map_err(|e| arrow_words(&e))?
        }
    };
    check_values(&out)?;
    Ok(out)
}

/// Refuses what the canonical type holds and SQL does not.
fn check_values(array: &ArrayRef) -> std::result::Result<(), String> {
    match array.data_type() {
        DataType::Utf8View => {
            let texts = array.as_string_view();
            let bad = texts.iter().flatten().any(|text| memchr::memchr(0, text.as_bytes()).is_some());
            if bad { Err("text cannot hold the character U+0000".into()) } else { Ok(()) }
        }
        DataType::Date32 => {
            let dates = array.as_primitive::<Date32Type>();
            let (least, most) = (arrow::compute::min(dates), arrow::compute::max(dates));
            match [least, most].into_iter().flatten().find(|d| !DATES.contains(d)) {
                Some(date) => Err(format!("the date {date} days from 1970-01-01 is out of range")),
                None => Ok(()),
            }
        }
        DataType::Time64(_) => {
            let times = array.as_primitive::<Time64MicrosecondType>();
            let (least, most) = (arrow::compute::min(times), arrow::compute::max(times));
            let day = 0..=crate::format::temporal::US_PER_DAY;
            match [least, most].into_iter().flatten().find(|t| !day.contains(t)) {
                Some(time) => Err(format!("the time of {time} microseconds is out of range")),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// The days that timestamps reach, which are the dates that text formats read.
const DATES: std::ops::RangeInclusive<i32> = -106_751_991..=106_751_991;

/// Reads one file.
pub struct ParquetReader {
    name: String,
    chunks: Chunks,
    /// Bytes of the file.
    size: u64,
    layout: Layout,
    schema: SchemaRef,
    on_error: OnError,
    /// Root columns that are read, ascending, and the declared columns that are made of them.
    read: Vec<usize>,
    /// For each column that is delivered: its place in `read`, and its type.
    delivered: Vec<(usize, DataType)>,
    /// Columns that are NOT NULL and may be NULL in the file: place in `read`, and name.
    required: Vec<(usize, String)>,
    open: Option<Open>,
    /// What was decoded and not delivered yet, and the row that it starts with.
    pending: Option<(u64, RecordBatch)>,
    /// Bytes of a row of it, about.
    row_bytes: usize,
    position: u64,
    keeps_places: bool,
    /// The numbers of the rows of the last batch, if they are kept.
    places: Vec<u64>,
}

/// A row group that is being read.
struct Open {
    group: usize,
    /// The row that comes next out of `rows`.
    next: u64,
    rows: ParquetRecordBatchReader,
}

impl ParquetReader {
    /// A reader of the columns `wanted` of `declared`.
    pub fn new(
        name: &str,
        chunks: Chunks,
        layout: Layout,
        declared: &SchemaRef,
        wanted: &[usize],
        on_error: OnError,
    ) -> Result<ParquetReader> {
        // Whoever leaves a row out must do so whichever columns are read.
        let may_be_null = |column: &usize| {
            !declared.field(*column).is_nullable()
                && layout.roots.get(*column).is_some_and(|root| layout.has_nulls(*root))
        };
        let checked: Vec<usize> = match on_error {
            OnError::Skip => (0..declared.fields().len()).filter(may_be_null).collect(),
            OnError::Stop => wanted.iter().copied().filter(may_be_null).collect(),
        };
        let root = |column: &usize| layout.roots.get(*column).copied().unwrap_or_default();
        let mut read: Vec<usize> = wanted.iter().chain(&checked).map(root).collect();
        read.sort_unstable();
        read.dedup();
        let place = |column: &usize| read.binary_search(&root(column)).unwrap_or_default();
        let delivered = wanted.iter().map(|c| (place(c), declared.field(*c).data_type().clone())).collect();
        let required = checked.iter().map(|c| (place(c), declared.field(*c).name().clone())).collect();
        Ok(ParquetReader {
            name: name.into(),
            size: chunks.len(),
            chunks,
            schema: Arc::new(declared.project(wanted)?),
            layout,
            on_error,
            read,
            delivered,
            required,
            open: None,
            pending: None,
            row_bytes: 0,
            position: 0,
            keeps_places: false,
            places: Vec::new(),
        })
    }

    /// The source stops here: pages cannot be passed over one row at a time.
    fn broken(&self, group: usize, what: &str) -> Error {
        Error::new(
            SqlState::DataCorrupted,
            format!("row group {group} of Parquet file \"{}\" cannot be read: {what}", self.name),
        )
        .with_detail("A Parquet file is read in pages, so its rows cannot be left out one by one.")
        .with_hint("Write the file anew, then drop the source and create it again.")
    }

    /// Decoded rows from row `from` on, at least one; the caller knows that there are some. They are in `pending`.
    fn decode(&mut self, from: u64) -> Result<()> {
        if let Some((start, rows)) = self.pending.take() {
            let skip = from.checked_sub(start).filter(|s| *s < rows.num_rows() as u64);
            if let Some(skip) = skip.and_then(|s| usize::try_from(s).ok()) {
                self.pending = Some((from, rows.slice(skip, rows.num_rows() - skip)));
                return Ok(());
            }
        }
        if self.open.as_ref().is_none_or(|o| o.next != from || from >= self.layout.starts[o.group + 1]) {
            self.open = Some(self.seek(from)?);
        }
        let open = self.open.as_mut().ok_or_else(|| Error::internal("a Parquet reader without a row group"))?;
        let (group, next) = (open.group, open.rows.next());
        let rows = match next {
            Some(Ok(rows)) if rows.num_rows() > 0 => rows,
            Some(Ok(_)) | None => {
                self.open = None;
                return Err(self.broken(group, "it has fewer rows than its footer says"));
            }
            Some(Err(e)) => {
                self.open = None;
                return Err(self.chunks.failure().unwrap_or_else(|| self.broken(group, &arrow_words(&e))));
            }
        };
        open.next += rows.num_rows() as u64;
        self.row_bytes = rows.get_array_memory_size() / rows.num_rows();
        self.pending = Some((from, rows));
        Ok(())
    }

    /// Opens the row group of row `from`, and selects its rows from there on.
    fn seek(&self, from: u64) -> Result<Open> {
        let starts = &self.layout.starts;
        let group = starts.partition_point(|start| *start <= from).saturating_sub(1);
        let metadata = self.layout.metadata.metadata();
        let in_group = metadata.row_groups().get(group).ok_or_else(|| Error::internal("no such row group"))?;
        let parquet = self.layout.metadata.parquet_schema();
        let mask = ProjectionMask::roots(parquet, self.read.iter().copied());
        let size: u64 = (0..in_group.num_columns())
            .filter(|leaf| mask.leaf_included(*leaf))
            .map(|leaf| u64::try_from(in_group.column(leaf).uncompressed_size()).unwrap_or(0))
            .sum();
        let rows = starts[group + 1] - starts[group];
        let batch = BATCH_BYTES / (size / rows.max(1)).max(1);
        let mut builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(self.chunks.clone(), self.layout.metadata.clone())
                .with_row_groups(vec![group])
                .with_projection(mask)
                .with_batch_size(usize::try_from(batch).unwrap_or(BATCH_ROWS).clamp(1, BATCH_ROWS));
        let skip = from - starts[group];
        if skip > 0 {
            let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
            let selectors = vec![RowSelector::skip(number(skip)), RowSelector::select(number(rows - skip))];
            builder = builder.with_row_selection(RowSelection::from(selectors));
        }
        let broken = |e| self.chunks.failure().unwrap_or_else(|| self.broken(group, &reason(&e)));
        let rows = builder.build().map_err(broken)?;
        Ok(Open { group, next: from, rows })
    }

    /// `rows`, whose first is row `start`, as they are delivered, and those that are left out.
    fn deliver(&self, start: u64, rows: &RecordBatch) -> Result<(RecordBatch, Vec<BadRecord>)> {
        let mut errors: Vec<BadRecord> = Vec::new();
        let mut good: Option<Vec<bool>> = None;
        for (place, column) in &self.required {
            let Some(nulls) = rows.column(*place).logical_nulls().filter(|n| n.null_count() > 0) else { continue };
            let good = good.get_or_insert_with(|| vec![true; rows.num_rows()]);
            for row in (0..rows.num_rows()).filter(|row| nulls.is_null(*row)) {
                if std::mem::replace(&mut good[row], false) {
                    errors.push(BadRecord {
                        offset: Offset(start + row as u64),
                        line: 0,
                        column: Some(column.clone()),
                        reason: format!("null value in column \"{column}\", which is NOT NULL"),
                        bytes: Vec::new(),
                    });
                }
            }
        }
        errors.sort_by_key(|e| e.offset);
        let good = good.map(BooleanArray::from);
        let mut columns = Vec::with_capacity(self.delivered.len());
        for ((place, data_type), field) in self.delivered.iter().zip(self.schema.fields()) {
            let column = rows.column(*place);
            let column = match &good {
                Some(good) => arrow::compute::filter(column, good)?,
                None => Arc::clone(column),
            };
            let converted = convert(&column, data_type).map_err(|what| {
                let group = self.layout.starts.partition_point(|s| *s <= start).saturating_sub(1);
                self.broken(group, &format!("{what}, in column \"{}\"", field.name()))
            })?;
            columns.push(converted);
        }
        let count = rows.num_rows() - errors.len();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        Ok((RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?, errors))
    }
}

impl Layout {
    /// Whether a root column may hold NULL, by its definition and by the counts of its row groups.
    fn has_nulls(&self, root: usize) -> bool {
        let parquet = self.metadata.parquet_schema();
        let leaves: Vec<usize> =
            (0..parquet.num_columns()).filter(|l| parquet.get_column_root_idx(*l) == root).collect();
        let optional = leaves.iter().any(|l| parquet.column(*l).max_def_level() > 0);
        let none = |leaf: &usize| {
            self.metadata
                .metadata()
                .row_groups()
                .iter()
                .all(|group| group.column(*leaf).statistics().is_some_and(|s| s.null_count_opt() == Some(0)))
        };
        optional && !leaves.iter().all(none)
    }
}

impl SourceReader for ParquetReader {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn read(&mut self, from: Offset, max_rows: usize, max_bytes: usize, limit: Option<Offset>) -> Result<ReadOutcome> {
        let range: Range<u64> = from.0..limit.map_or(u64::MAX, |l| l.0).min(self.layout.rows());
        self.places.clear();
        if range.is_empty() {
            self.position = from.0;
            self.open = None;
            let batch = RecordBatch::new_empty(Arc::clone(&self.schema));
            return Ok(ReadOutcome { batch, next: from, state: ReadState::End, errors: Vec::new() });
        }
        self.decode(range.start)?;
        let (start, rows) = self.pending.take().ok_or_else(|| Error::internal("a Parquet reader without rows"))?;
        let by_bytes = max_bytes.checked_div(self.row_bytes).map_or(usize::MAX, |rows| rows.max(1));
        let left = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let count = rows.num_rows().min(max_rows.max(1)).min(by_bytes).min(left);
        let (mut batch, mut errors) = self.deliver(start, &rows.slice(0, count))?;
        if count < rows.num_rows() {
            self.pending = Some((start + count as u64, rows.slice(count, rows.num_rows() - count)));
        }
        let mut next = start + count as u64;
        if self.on_error == OnError::Stop
            && let Some(first) = errors.first()
        {
            let before = usize::try_from(first.offset.0 - start).unwrap_or_default();
            if before == 0 {
                return Err(Error::new(SqlState::InvalidTextRepresentation, first.reason.clone())
                    .with_detail(format!("Parquet file \"{}\", row {}.", self.name, first.offset))
                    .with_hint("Correct the file, or use on_error = 'skip' to leave out such rows."));
            }
            next = first.offset.0;
            (batch, errors) = self.deliver(start, &rows.slice(0, before))?;
            self.pending = None;
        }
        if self.keeps_places {
            let mut left_out = errors.iter().map(|e| e.offset.0).peekable();
            self.places.extend((start..next).filter(|row| left_out.next_if_eq(row).is_none()));
        }
        self.position = next;
        let state = if next >= range.end { ReadState::End } else { ReadState::More };
        Ok(ReadOutcome { batch, next: Offset(next), state, errors })
    }

    fn progress(&self) -> Progress {
        // In bytes as for the other formats: rows of a file are of one size, about.
        let rows = u128::from(self.layout.rows().max(1));
        let done = u128::from(self.size) * u128::from(self.position) / rows;
        Progress { done: u64::try_from(done).unwrap_or(self.size), total: self.size }
    }

    fn keep_places(&mut self) {
        self.keeps_places = true;
    }

    fn places(&self) -> &[u64] {
        &self.places
    }
}
