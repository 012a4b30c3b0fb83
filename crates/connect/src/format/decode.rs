//! Spans → typed Arrow columns, one column at a time.
//!
//! Every record adds one value to every column, so nothing has to be undone: a value that cannot be read becomes NULL for
//! the moment, its record is noted as faulty, and faulty records are filtered out when the batch is finished.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::builder::{BinaryBuilder, BooleanBuilder, NullBufferBuilder, PrimitiveBuilder, StringViewBuilder};
use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, BooleanArray, ListArray, RecordBatch, RecordBatchOptions, new_empty_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::*;
use flow::{Error, Result};

use super::input::{self, BadValue, Parsed};
use super::json;
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
        let mut decoder = Decoder { fields, columns: Vec::new(), capacity: 0, rows: 0, faults: BTreeMap::new() };
        decoder.columns = decoder.new_columns()?;
        Ok(decoder)
    }

    fn new_columns(&self) -> Result<Vec<Column>> {
        let column = |f: &FieldRef| {
            Column::new(f.data_type(), self.capacity).ok_or_else(|| {
                Error::unsupported(format!(
                    "column \"{}\" of type {} cannot be read from text records",
                    f.name(),
                    sql_type_name(f.data_type())
                ))
            })
        };
        self.fields.iter().map(column).collect()
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
        let fresh = self.new_columns()?;
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
            let array =
                arrays.get(*index).ok_or_else(|| Error::internal("projection of a column that is not decoded"))?;
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
enum Column {
    Boolean(BooleanBuilder),
    Int16(PrimitiveBuilder<Int16Type>),
    Int32(PrimitiveBuilder<Int32Type>),
    Int64(PrimitiveBuilder<Int64Type>),
    Float32(PrimitiveBuilder<Float32Type>),
    Float64(PrimitiveBuilder<Float64Type>),
    Decimal(PrimitiveBuilder<Decimal128Type>, u8, i8),
    Date(PrimitiveBuilder<Date32Type>),
    Time(PrimitiveBuilder<Time64MicrosecondType>),
    Timestamp(PrimitiveBuilder<TimestampMicrosecondType>),
    Timestamptz(PrimitiveBuilder<TimestampMicrosecondType>),
    Interval(PrimitiveBuilder<IntervalMonthDayNanoType>),
    Binary(BinaryBuilder),
    Text(StringViewBuilder),
    List(Box<ListColumn>),
}

struct ListColumn {
    field: FieldRef,
    items: Column,
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
}

/// A builder of values that are read one by one.
trait Slot {
    type Value;
    fn put(&mut self, value: Self::Value);
    fn put_null(&mut self);
}

impl<T: ArrowPrimitiveType> Slot for PrimitiveBuilder<T> {
    type Value = T::Native;
    #[inline]
    fn put(&mut self, value: T::Native) {
        self.append_value(value);
    }
    fn put_null(&mut self) {
        self.append_null();
    }
}

impl Slot for BooleanBuilder {
    type Value = bool;
    #[inline]
    fn put(&mut self, value: bool) {
        self.append_value(value);
    }
    fn put_null(&mut self) {
        self.append_null();
    }
}

impl Slot for BinaryBuilder {
    type Value = Vec<u8>;
    fn put(&mut self, value: Vec<u8>) {
        self.append_value(value);
    }
    fn put_null(&mut self) {
        self.append_null();
    }
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
            Column::Timestamptz(b) => $call(b, $($arg,)* |t, _| temporal::timestamptz(t)),
            Column::Interval(b) => $call(b, $($arg,)* |t, _| temporal::interval(t)),
            Column::Binary(b) => $call(b, $($arg,)* |t, _| input::bytea(t)),
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
            DataType::Boolean => Column::Boolean(BooleanBuilder::with_capacity(capacity)),
            DataType::Int16 => Column::Int16(PrimitiveBuilder::with_capacity(capacity)),
            DataType::Int32 => Column::Int32(PrimitiveBuilder::with_capacity(capacity)),
            DataType::Int64 => Column::Int64(PrimitiveBuilder::with_capacity(capacity)),
            DataType::Float32 => Column::Float32(PrimitiveBuilder::with_capacity(capacity)),
            DataType::Float64 => Column::Float64(PrimitiveBuilder::with_capacity(capacity)),
            DataType::Decimal128(p, s) => {
                Column::Decimal(PrimitiveBuilder::with_capacity(capacity).with_data_type(data_type.clone()), *p, *s)
            }
            DataType::Date32 => Column::Date(PrimitiveBuilder::with_capacity(capacity)),
            DataType::Time64(TimeUnit::Microsecond) => Column::Time(PrimitiveBuilder::with_capacity(capacity)),
            DataType::Timestamp(TimeUnit::Microsecond, None) => {
                Column::Timestamp(PrimitiveBuilder::with_capacity(capacity))
            }
            DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => {
                Column::Timestamptz(PrimitiveBuilder::with_capacity(capacity).with_data_type(data_type.clone()))
            }
            DataType::Interval(IntervalUnit::MonthDayNano) => {
                Column::Interval(PrimitiveBuilder::with_capacity(capacity))
            }
            DataType::Binary => Column::Binary(BinaryBuilder::new()),
            DataType::Utf8View => Column::Text(StringViewBuilder::with_capacity(capacity)),
            DataType::List(field) if !matches!(field.data_type(), DataType::List(_)) => {
                Column::List(Box::new(ListColumn {
                    field: Arc::clone(field),
                    items: Column::new(field.data_type(), capacity)?,
                    offsets: vec![0],
                    nulls: NullBufferBuilder::new(capacity),
                }))
            }
            _ => return None,
        })
    }

    /// Adds one value for every record of the block.
    fn fill(&mut self, source: &Source<'_>, faults: &mut Faults<'_>) {
        for_slot!(self, fill_slot(source, faults), Column::Text(b) => fill_text(b, source, faults), Column::List(b) => b.fill(source, faults))
    }

    /// Adds one element of a list. After an error nothing was added.
    fn push(&mut self, text: &str, kind: Kind) -> Parsed<()> {
        let bytes = text.as_bytes();
        for_slot!(self, push_slot(bytes, kind), Column::Text(b) => {
            b.append_value(text);
            Ok(())
        }, Column::List(_) => Err(BadValue::Other("nested arrays are not supported".into())))
    }

    fn push_null(&mut self) {
        fn null<S: Slot>(slot: &mut S, _: impl Fn(&[u8], Kind) -> Parsed<S::Value>) {
            slot.put_null();
        }
        for_slot!(self, null(), Column::Text(b) => b.append_null(), Column::List(b) => b.push_null())
    }

    fn finish(self) -> Result<ArrayRef> {
        Ok(match self {
            Column::Boolean(mut b) => Arc::new(b.finish()),
            Column::Int16(mut b) => Arc::new(b.finish()),
            Column::Int32(mut b) => Arc::new(b.finish()),
            Column::Int64(mut b) => Arc::new(b.finish()),
            Column::Float32(mut b) => Arc::new(b.finish()),
            Column::Float64(mut b) => Arc::new(b.finish()),
            Column::Decimal(mut b, ..) => Arc::new(b.finish()),
            Column::Date(mut b) => Arc::new(b.finish()),
            Column::Time(mut b) => Arc::new(b.finish()),
            Column::Timestamp(mut b) | Column::Timestamptz(mut b) => Arc::new(b.finish()),
            Column::Interval(mut b) => Arc::new(b.finish()),
            Column::Binary(mut b) => Arc::new(b.finish()),
            Column::Text(mut b) => Arc::new(b.finish()),
            Column::List(mut b) => {
                let offsets = OffsetBuffer::new(b.offsets.into());
                Arc::new(ListArray::try_new(b.field, offsets, b.items.finish()?, b.nulls.finish())?)
            }
        })
    }
}

#[inline]
fn fill_slot<S: Slot>(
    slot: &mut S,
    source: &Source<'_>,
    faults: &mut Faults<'_>,
    parse: impl Fn(&[u8], Kind) -> Parsed<S::Value>,
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

fn push_slot<S: Slot>(
    slot: &mut S,
    text: &[u8],
    kind: Kind,
    parse: impl Fn(&[u8], Kind) -> Parsed<S::Value>,
) -> Parsed<()> {
    if kind == Kind::JsonNested {
        return Err(BadValue::Syntax);
    }
    parse(text, kind).map(|value| slot.put(value))
}

fn fill_text(builder: &mut StringViewBuilder, source: &Source<'_>, faults: &mut Faults<'_>) {
    let spans = faults.spans;
    for (row, span) in spans.column(faults.index).enumerate() {
        let text = source.text(span);
        match span.kind {
            Kind::Null => builder.append_null(),
            Kind::Plain | Kind::JsonNumber | Kind::JsonBoolean | Kind::JsonNested => builder.append_value(text),
            Kind::CsvEscaped | Kind::JsonEscaped => match input::unescape(text, span.kind) {
                Ok(text) => builder.append_value(text),
                Err(bad) => {
                    builder.append_null();
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
            let read = match span.kind {
                Kind::Null => {
                    self.push_null();
                    continue;
                }
                Kind::JsonNested => self.json_elements(text),
                kind => input::unescape(text, kind).and_then(|text| self.literal_elements(&text)),
            };
            match read {
                Ok(()) => self.nulls.append_non_null(),
                Err(bad) => {
                    // Elements that were already added stay, hidden behind this NULL.
                    self.nulls.append_null();
                    faults.bad_value(row, text, bad);
                }
            }
            self.end_row();
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
        self.nulls.append_null();
        self.end_row();
    }

    fn end_row(&mut self) {
        // A batch is far smaller than 2³¹ bytes of text (`READ_BYTES_MAX` of the readers), so the length fits.
        self.offsets.push(self.items.len() as i32);
    }
}

impl Column {
    fn len(&self) -> usize {
        use arrow::array::ArrayBuilder;
        match self {
            Column::Boolean(b) => b.len(),
            Column::Int16(b) => b.len(),
            Column::Int32(b) => b.len(),
            Column::Int64(b) => b.len(),
            Column::Float32(b) => b.len(),
            Column::Float64(b) => b.len(),
            Column::Decimal(b, ..) => b.len(),
            Column::Date(b) => b.len(),
            Column::Time(b) => b.len(),
            Column::Timestamp(b) | Column::Timestamptz(b) => b.len(),
            Column::Interval(b) => b.len(),
            Column::Binary(b) => b.len(),
            Column::Text(b) => b.len(),
            Column::List(b) => b.offsets.len() - 1,
        }
    }
}
