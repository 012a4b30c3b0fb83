//! Spans → typed Arrow columns, one column at a time.
//!
//! Every record adds one value to every column, so nothing has to be undone: a value that cannot be read becomes NULL for
//! the moment, its record is noted as faulty, and faulty records are filtered out when the batch is finished.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, ListArray, NullArray, PrimitiveArray, RecordBatch,
    RecordBatchOptions, new_empty_array,
};
use arrow::buffer::{BooleanBuffer, NullBuffer, OffsetBuffer};
use arrow::datatypes::*;
use flow::{Error, Result};

use super::input::{self, BadValue, Parsed};
use super::json;
use super::slots::{Slots, Texts};
use super::spans::{Kind, Span, Spans};
use super::{sql_type_name, temporal};

/// A record whose values could be found but not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Byte range of the record, in the offsets that the blocks were given.
    pub start: u64,
    pub end: u64,
    /// Index into the decoder's fields.
    pub column: Option<usize>,
    pub reason: String,
}

/// The most rows that room is made for in advance.
const CAPACITY_ROWS_MAX: usize = 8192;

/// Whether values of this type can be read from and written to text records.
pub fn is_supported(data_type: &DataType) -> bool {
    Column::new(data_type, 0).is_some()
}

/// Builds batches from blocks of spans.
pub struct Decoder {
    fields: Fields,
    /// Whether the column is delivered, or only checked.
    kept: Vec<bool>,
    columns: Vec<Column>,
    /// Rows to make room for in a new batch: as many as the last one had. Trickling input must not hold large buffers.
    capacity: usize,
    rows: usize,
    /// By row of the batch under construction.
    faults: BTreeMap<usize, Fault>,
}

impl Decoder {
    /// `fields`: one a span column, in that order. Errors: `0A000` an unsupported type.
    pub fn new(fields: Fields) -> Result<Decoder> {
        let all: Vec<usize> = (0..fields.len()).collect();
        Decoder::with_projection(fields, &all)
    }

    /// As [`new`](Self::new), for batches that only have some columns (indices into `fields`). The others are only checked.
    pub fn with_projection(fields: Fields, projection: &[usize]) -> Result<Decoder> {
        let kept = (0..fields.len()).map(|c| projection.contains(&c)).collect();
        let mut decoder = Decoder { fields, kept, columns: Vec::new(), capacity: 0, rows: 0, faults: BTreeMap::new() };
        decoder.columns = decoder.new_columns()?;
        Ok(decoder)
    }

    fn new_columns(&self) -> Result<Vec<Column>> {
        let column = |(f, kept): (&FieldRef, &bool)| {
            if !kept && f.data_type() == &DataType::Utf8View {
                // Every text is a value, so nothing has to be copied to check it.
                return Ok(Column::Unread(Slots::with_capacity(0)));
            }
            Column::new(f.data_type(), self.capacity).ok_or_else(|| {
                Error::unsupported(format!(
                    "column \"{}\" of type {} cannot be read from text records",
                    f.name(),
                    sql_type_name(f.data_type())
                ))
            })
        };
        self.fields.iter().zip(&self.kept).map(column).collect()
    }

    /// Gives memory back while nothing comes. Only without rows. Errors: as [`new`](Self::new).
    pub fn rest(&mut self) -> Result<()> {
        if self.capacity > 0 && self.rows == 0 {
            self.capacity = 0;
            self.columns = self.new_columns()?;
        }
        Ok(())
    }

    /// Rows since the last [`finish`](Self::finish), faulty ones included.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The first faulty record since the last [`finish`](Self::finish), with its row.
    pub fn first_fault(&self) -> Option<(usize, &Fault)> {
        self.faults.iter().next().map(|(row, fault)| (*row, fault))
    }

    /// Adds the records of `spans`, which refer to `block`, which starts at `offset` of the split. Values of records that
    /// are no valid text are set to NULL in `spans`.
    pub fn append(&mut self, block: &[u8], offset: u64, spans: &mut Spans) {
        let start = spans.records.first().map_or(0, |r| r.0 as usize);
        let end = spans.records.last().map_or(0, |r| r.1 as usize);
        let used = block.get(start..end).unwrap_or(&[]);
        // One check for the whole block is far cheaper than one for each value.
        let text = std::str::from_utf8(used).ok().filter(|_| memchr::memchr(0, used).is_none());
        let source = match text {
            Some(text) => Source::Valid { text, start },
            None => {
                self.refuse_broken_text(block, offset, spans);
                Source::Checked { block }
            }
        };
        for (index, (column, field)) in self.columns.iter_mut().zip(&self.fields).enumerate() {
            let mut sink = Faults { faults: &mut self.faults, spans, offset, base: self.rows, index, field };
            if !field.is_nullable() {
                for (row, span) in spans.column(index).enumerate() {
                    if span.kind == Kind::Null {
                        sink.add(row, format!("null value in column \"{}\", which is NOT NULL", field.name()));
                    }
                }
            }
            column.fill(&source, &mut sink);
        }
        self.rows += spans.rows();
    }

    /// For readers that put values into the columns themselves: the columns and their fields, one value a row in each.
    pub(super) fn columns_mut(&mut self) -> (&mut [Column], &Fields) {
        (&mut self.columns, &self.fields)
    }

    /// Counts `rows` faultless rows whose values were put into [`columns_mut`](Self::columns_mut).
    pub(super) fn added(&mut self, rows: usize) {
        self.rows += rows;
    }

    fn refuse_broken_text(&mut self, block: &[u8], offset: u64, spans: &mut Spans) {
        for row in 0..spans.rows() {
            let (start, end) = spans.records[row];
            let bytes = block.get(start as usize..end as usize).unwrap_or(&[]);
            let reason = match std::str::from_utf8(bytes) {
                Err(e) => format!("invalid UTF-8 at byte {} of the record", e.valid_up_to() + 1),
                Ok(text) => match text.find('\0') {
                    Some(at) => format!("a NUL character at byte {} of the record", at + 1),
                    None => continue,
                },
            };
            self.faults.insert(
                self.rows + row,
                Fault { start: offset + u64::from(start), end: offset + u64::from(end), column: None, reason },
            );
            if let Some(values) = spans.values.get_mut(row * spans.width..(row + 1) * spans.width) {
                values.fill(Span::NULL);
            }
        }
    }

    /// The batch of all good records with the columns `projection` (indices into the fields), then the faulty ones in order.
    /// `keep`: only the first so many rows.
    pub fn finish(
        &mut self,
        schema: &SchemaRef,
        projection: &[usize],
        keep: usize,
    ) -> Result<(RecordBatch, Vec<Fault>)> {
        if self.rows == 0 {
            let options = RecordBatchOptions::new().with_row_count(Some(0));
            let columns = schema.fields().iter().map(|f| new_empty_array(f.data_type())).collect();
            return Ok((RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?, Vec::new()));
        }
        self.capacity = self.rows.min(CAPACITY_ROWS_MAX);
        let mut fresh = self.new_columns()?;
        for (new, last) in fresh.iter_mut().zip(&self.columns) {
            new.expect_as(last);
        }
        let columns = std::mem::replace(&mut self.columns, fresh);
        let arrays = columns.into_iter().map(Column::finish).collect::<Result<Vec<ArrayRef>>>()?;
        let rows = self.rows.min(keep);
        self.rows = 0;
        let faults = std::mem::take(&mut self.faults);
        let faults: Vec<(usize, Fault)> = faults.into_iter().filter(|(row, _)| *row < rows).collect();
        let mut projected = Vec::with_capacity(projection.len());
        let mut good = rows;
        let mask = (!faults.is_empty()).then(|| {
            let mut mask = vec![true; rows];
            for (row, _) in &faults {
                mask[*row] = false;
            }
            good = rows - faults.len();
            BooleanArray::from(mask)
        });
        for index in projection {
            let array = arrays
                .get(*index)
                .filter(|_| self.kept.get(*index) == Some(&true))
                .ok_or_else(|| Error::internal("projection of a column that is not decoded"))?;
            let array = array.slice(0, rows);
            projected.push(match &mask {
                Some(mask) => arrow::compute::filter(&array, mask)?,
                None => array,
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(good));
        let batch = RecordBatch::try_new_with_options(Arc::clone(schema), projected, &options)?;
        Ok((batch, faults.into_iter().map(|(_, fault)| fault).collect()))
    }
}

/// Where spans point, as text.
enum Source<'a> {
    /// Everything from `start` of the block on is known to be valid.
    Valid { text: &'a str, start: usize },
    /// Only the records that were not refused are.
    Checked { block: &'a [u8] },
}

impl<'a> Source<'a> {
    #[inline]
    fn text(&self, span: Span) -> &'a str {
        let (from, to) = (span.start as usize, span.end as usize);
        match self {
            Source::Valid { text, start } => text.get(from.wrapping_sub(*start)..to.wrapping_sub(*start)).unwrap_or(""),
            Source::Checked { block } => block.get(from..to).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or(""),
        }
    }
}

/// Takes the faults of one column.
struct Faults<'a> {
    faults: &'a mut BTreeMap<usize, Fault>,
    spans: &'a Spans,
    offset: u64,
    /// Row of the batch that the block's first record becomes.
    base: usize,
    index: usize,
    field: &'a Field,
}

impl Faults<'_> {
    #[cold]
    fn add(&mut self, row: usize, reason: String) {
        let (start, end) = self.spans.records.get(row).copied().unwrap_or_default();
        let (start, end) = (self.offset + u64::from(start), self.offset + u64::from(end));
        // The first column at fault speaks for the record.
        self.faults.entry(self.base + row).or_insert(Fault { start, end, column: Some(self.index), reason });
    }

    #[cold]
    fn bad_value(&mut self, row: usize, text: &str, bad: BadValue) {
        let name = sql_type_name(self.field.data_type());
        let reason = match bad {
            BadValue::Syntax => format!("invalid input syntax for type {name}: \"{}\"", shown(text)),
            BadValue::OutOfRange => format!("value \"{}\" is out of range for type {name}", shown(text)),
            BadValue::Other(what) => what,
        };
        self.add(row, reason);
    }
}

/// The beginning of a text, for a message.
fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

/// A column under construction.
pub(super) enum Column {
    Boolean(Slots<bool>),
    Int16(Slots<i16>),
    Int32(Slots<i32>),
    Int64(Slots<i64>),
    Float32(Slots<f32>),
    Float64(Slots<f64>),
    Decimal(Slots<i128>, u8, i8),
    Date(Slots<i32>),
    Time(Slots<i64>),
    Timestamp(Slots<i64>),
    Timestamptz(Slots<i64>, DataType),
    Interval(Slots<IntervalMonthDayNano>),
    Binary(Slots<Vec<u8>>),
    Text(Texts),
    /// Texts that are checked and not kept.
    Unread(Slots<()>),
    List(Box<ListColumn>),
}

pub(super) struct ListColumn {
    field: FieldRef,
    items: Column,
    /// One for each value, and whether it is NULL: where its elements end.
    ends: Slots<i32>,
}

/// Calls `$call(builder, arguments…, parse)` for the columns whose values are read one by one.
macro_rules! for_slot {
    ($column:expr, $call:ident($($arg:expr),*), $text:pat => $on_text:expr, $list:pat => $on_list:expr) => {
        match $column {
            Column::Boolean(b) => $call(b, $($arg,)* |t, _| input::boolean(t)),
            Column::Int16(b) => $call(b, $($arg,)* whole::<i16>),
            Column::Int32(b) => $call(b, $($arg,)* whole::<i32>),
            Column::Int64(b) => $call(b, $($arg,)* whole::<i64>),
            Column::Float32(b) => $call(b, $($arg,)* |t, _| input::float::<f32>(t)),
            Column::Float64(b) => $call(b, $($arg,)* |t, _| input::float::<f64>(t)),
            Column::Decimal(b, precision, scale) => {
                let (precision, scale) = (*precision, *scale);
                $call(b, $($arg,)* |t, _| input::decimal(t, precision, scale))
            }
            Column::Date(b) => $call(b, $($arg,)* |t, _| temporal::date(t)),
            Column::Time(b) => $call(b, $($arg,)* |t, _| temporal::time(t)),
            Column::Timestamp(b) => $call(b, $($arg,)* |t, _| temporal::timestamp(t)),
            Column::Timestamptz(b, _) => $call(b, $($arg,)* |t, _| temporal::timestamptz(t)),
            Column::Interval(b) => $call(b, $($arg,)* |t, _| temporal::interval(t)),
            Column::Binary(b) => $call(b, $($arg,)* |t, _| input::bytea(t)),
            Column::Unread(b) => $call(b, $($arg,)* |_, _| Ok(())),
            $text => $on_text,
            $list => $on_list,
        }
    };
}

/// Integers, which JSON may also write as `1e3` or `2.0`.
#[inline]
fn whole<T: TryFrom<i64>>(text: &[u8], kind: Kind) -> Parsed<T> {
    match input::integer(text) {
        Err(BadValue::Syntax) if kind == Kind::JsonNumber => input::integer_from_number(text),
        other => other,
    }
}

impl Column {
    fn new(data_type: &DataType, capacity: usize) -> Option<Column> {
        Some(match data_type {
            DataType::Boolean => Column::Boolean(Slots::with_capacity(capacity)),
            DataType::Int16 => Column::Int16(Slots::with_capacity(capacity)),
            DataType::Int32 => Column::Int32(Slots::with_capacity(capacity)),
            DataType::Int64 => Column::Int64(Slots::with_capacity(capacity)),
            DataType::Float32 => Column::Float32(Slots::with_capacity(capacity)),
            DataType::Float64 => Column::Float64(Slots::with_capacity(capacity)),
            DataType::Decimal128(p, s) => Column::Decimal(Slots::with_capacity(capacity), *p, *s),
            DataType::Date32 => Column::Date(Slots::with_capacity(capacity)),
            DataType::Time64(TimeUnit::Microsecond) => Column::Time(Slots::with_capacity(capacity)),
            DataType::Timestamp(TimeUnit::Microsecond, None) => Column::Timestamp(Slots::with_capacity(capacity)),
            DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => {
                Column::Timestamptz(Slots::with_capacity(capacity), data_type.clone())
            }
            DataType::Interval(IntervalUnit::MonthDayNano) => Column::Interval(Slots::with_capacity(capacity)),
            DataType::Binary => Column::Binary(Slots::with_capacity(capacity)),
            DataType::Utf8View => Column::Text(Texts::with_capacity(capacity)),
            DataType::List(field) if !matches!(field.data_type(), DataType::List(_)) => {
                Column::List(Box::new(ListColumn {
                    field: Arc::clone(field),
                    items: Column::new(field.data_type(), capacity)?,
                    ends: Slots::with_capacity(capacity),
                }))
            }
            _ => return None,
        })
    }

    /// Makes room for texts of as many bytes as `last` holds.
    fn expect_as(&mut self, last: &Column) {
        match (self, last) {
            (Column::Text(texts), Column::Text(last)) => texts.expect_bytes(last.bytes()),
            (Column::List(list), Column::List(last)) => list.items.expect_as(&last.items),
            _ => {}
        }
    }

    /// Adds one value for every record of the block.
    fn fill(&mut self, source: &Source<'_>, faults: &mut Faults<'_>) {
        for_slot!(self, fill_slot(source, faults), Column::Text(b) => fill_text(b, source, faults), Column::List(b) => b.fill(source, faults))
    }

    /// Adds one element of a list. After an error nothing was added.
    fn push(&mut self, text: &str, kind: Kind) -> Parsed<()> {
        let bytes = text.as_bytes();
        for_slot!(self, push_slot(bytes, kind), Column::Text(b) => {
            b.put(text);
            Ok(())
        }, Column::List(_) => Err(BadValue::Other("nested arrays are not supported".into())))
    }

    pub(super) fn push_null(&mut self) {
        fn null<V: Default>(slots: &mut Slots<V>, _: impl Fn(&[u8], Kind) -> Parsed<V>) {
            slots.put_null();
        }
        for_slot!(self, null(), Column::Text(b) => b.put_null(), Column::List(b) => b.push_null())
    }

    /// Adds one value of a record, read as [`fill`](Self::fill) reads it. After an error the column may have to be truncated.
    pub(super) fn take(&mut self, text: &str, kind: Kind) -> Parsed<()> {
        match (self, kind) {
            (column, Kind::Null) => {
                column.push_null();
                Ok(())
            }
            (Column::List(list), kind) => {
                list.elements(text, kind)?;
                list.ends.put(list.items.len() as i32);
                Ok(())
            }
            (column, Kind::CsvEscaped | Kind::JsonEscaped) => column.push(&input::unescape(text, kind)?, Kind::Plain),
            (column, kind) => column.push(text, kind),
        }
    }

    /// Takes back all values from the `rows`-th on.
    pub(super) fn truncate(&mut self, rows: usize) {
        fn shorten<V: Default>(slots: &mut Slots<V>, rows: usize, _: impl Fn(&[u8], Kind) -> Parsed<V>) {
            slots.truncate(rows);
        }
        for_slot!(self, shorten(rows), Column::Text(b) => b.truncate(rows), Column::List(b) => {
            b.ends.truncate(rows);
            let items = b.ends.last().unwrap_or_default();
            b.items.truncate(items as usize);
        })
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Column::Boolean(b) => b.len(),
            Column::Int16(b) => b.len(),
            Column::Int32(b) | Column::Date(b) => b.len(),
            Column::Int64(b) | Column::Time(b) | Column::Timestamp(b) | Column::Timestamptz(b, _) => b.len(),
            Column::Float32(b) => b.len(),
            Column::Float64(b) => b.len(),
            Column::Decimal(b, ..) => b.len(),
            Column::Interval(b) => b.len(),
            Column::Binary(b) => b.len(),
            Column::Text(b) => b.len(),
            Column::Unread(b) => b.len(),
            Column::List(b) => b.ends.len(),
        }
    }

    fn finish(self) -> Result<ArrayRef> {
        fn array<T: ArrowPrimitiveType>(slots: Slots<T::Native>) -> Result<PrimitiveArray<T>>
        where
            T::Native: Default,
        {
            let (values, nulls) = slots.finish();
            Ok(PrimitiveArray::try_new(values.into(), nulls)?)
        }
        Ok(match self {
            Column::Boolean(b) => {
                let (values, nulls) = b.finish();
                Arc::new(BooleanArray::new(BooleanBuffer::from(values), nulls))
            }
            Column::Int16(b) => Arc::new(array::<Int16Type>(b)?),
            Column::Int32(b) => Arc::new(array::<Int32Type>(b)?),
            Column::Int64(b) => Arc::new(array::<Int64Type>(b)?),
            Column::Float32(b) => Arc::new(array::<Float32Type>(b)?),
            Column::Float64(b) => Arc::new(array::<Float64Type>(b)?),
            Column::Decimal(b, precision, scale) => {
                Arc::new(array::<Decimal128Type>(b)?.with_data_type(DataType::Decimal128(precision, scale)))
            }
            Column::Date(b) => Arc::new(array::<Date32Type>(b)?),
            Column::Time(b) => Arc::new(array::<Time64MicrosecondType>(b)?),
            Column::Timestamp(b) => Arc::new(array::<TimestampMicrosecondType>(b)?),
            Column::Timestamptz(b, data_type) => {
                Arc::new(array::<TimestampMicrosecondType>(b)?.with_data_type(data_type))
            }
            Column::Interval(b) => Arc::new(array::<IntervalMonthDayNanoType>(b)?),
            Column::Binary(b) => {
                let (values, nulls) = b.finish();
                let valid = |row: usize| nulls.as_ref().is_none_or(|n: &NullBuffer| n.is_valid(row));
                let rows = values.iter().enumerate().map(|(row, bytes)| valid(row).then_some(bytes.as_slice()));
                Arc::new(rows.collect::<BinaryArray>())
            }
            Column::Text(b) => Arc::new(b.finish()?),
            Column::Unread(b) => Arc::new(NullArray::new(b.len())),
            Column::List(b) => {
                let (ends, nulls) = b.ends.finish();
                let offsets = OffsetBuffer::new(std::iter::once(0).chain(ends).collect());
                Arc::new(ListArray::try_new(b.field, offsets, b.items.finish()?, nulls)?)
            }
        })
    }
}

#[inline]
fn fill_slot<V: Default>(
    slot: &mut Slots<V>,
    source: &Source<'_>,
    faults: &mut Faults<'_>,
    parse: impl Fn(&[u8], Kind) -> Parsed<V>,
) {
    let spans = faults.spans;
    for (row, span) in spans.column(faults.index).enumerate() {
        let text = source.text(span);
        let parsed = match span.kind {
            Kind::Null => {
                slot.put_null();
                continue;
            }
            Kind::Plain | Kind::JsonNumber | Kind::JsonBoolean => parse(text.as_bytes(), span.kind),
            Kind::CsvEscaped | Kind::JsonEscaped => {
                input::unescape(text, span.kind).and_then(|text| parse(text.as_bytes(), Kind::Plain))
            }
            Kind::JsonNested if std::mem::size_of::<V>() == 0 => parse(text.as_bytes(), span.kind),
            Kind::JsonNested => Err(BadValue::Syntax),
        };
        match parsed {
            Ok(value) => slot.put(value),
            Err(bad) => {
                slot.put_null();
                faults.bad_value(row, text, bad);
            }
        }
    }
}

fn push_slot<V: Default>(
    slot: &mut Slots<V>,
    text: &[u8],
    kind: Kind,
    parse: impl Fn(&[u8], Kind) -> Parsed<V>,
) -> Parsed<()> {
    if kind == Kind::JsonNested && std::mem::size_of::<V>() > 0 {
        return Err(BadValue::Syntax);
    }
    parse(text, kind).map(|value| slot.put(value))
}

fn fill_text(texts: &mut Texts, source: &Source<'_>, faults: &mut Faults<'_>) {
    let spans = faults.spans;
    for (row, span) in spans.column(faults.index).enumerate() {
        let text = source.text(span);
        match span.kind {
            Kind::Null => texts.put_null(),
            Kind::Plain | Kind::JsonNumber | Kind::JsonBoolean | Kind::JsonNested => texts.put(text),
            Kind::CsvEscaped | Kind::JsonEscaped => match input::unescape(text, span.kind) {
                Ok(text) => texts.put(&text),
                Err(bad) => {
                    texts.put_null();
                    faults.bad_value(row, text, bad);
                }
            },
        }
    }
}

impl ListColumn {
    fn fill(&mut self, source: &Source<'_>, faults: &mut Faults<'_>) {
        let spans = faults.spans;
        for (row, span) in spans.column(faults.index).enumerate() {
            let text = source.text(span);
            if span.kind == Kind::Null {
                self.push_null();
                continue;
            }
            match self.elements(text, span.kind) {
                Ok(()) => self.ends.put(self.items.len() as i32),
                Err(bad) => {
                    // Elements that were already added stay, hidden behind this NULL.
                    self.push_null();
                    faults.bad_value(row, text, bad);
                }
            }
        }
    }

    /// Adds the elements of one value, which is not NULL.
    fn elements(&mut self, text: &str, kind: Kind) -> Parsed<()> {
        match kind {
            Kind::JsonNested => self.json_elements(text),
            kind => input::unescape(text, kind).and_then(|text| self.literal_elements(&text)),
        }
    }

    fn json_elements(&mut self, text: &str) -> Parsed<()> {
        let elements = json::elements(text.as_bytes()).map_err(|what| BadValue::Other(what.into()))?;
        for span in elements {
            let raw = text.get(span.start as usize..span.end as usize).unwrap_or("");
            match span.kind {
                Kind::Null => self.items.push_null(),
                kind => self.items.push(&input::unescape(raw, kind)?, kind)?,
            }
        }
        Ok(())
    }

    fn literal_elements(&mut self, text: &str) -> Parsed<()> {
        for element in input::array_elements(text)? {
            match element {
                None => self.items.push_null(),
                Some(text) => self.items.push(&text, Kind::Plain)?,
            }
        }
        Ok(())
    }

    fn push_null(&mut self) {
        // A batch is far smaller than 2³¹ bytes of text (`READ_BYTES_MAX` of the readers), so the length fits.
        self.ends.put_null_as(self.items.len() as i32);
    }
}
