//! The connector `nexmark`: the event stream of the NEXMark benchmark, made on the fly.
//!
//! An event is a function of its number and the options that name the stream, so any reader can start anywhere. An offset
//! is the number of the event that comes next, in every split; a split owns every n-th run of [`RUN`] events.

mod columns;
mod events;
mod options;

pub use options::{NexmarkOptions, OPTIONS};

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, Schema, SchemaRef};
use flow::{Error, Result, SqlState};

use crate::options::{OptionSpec, Options};
use crate::source::{Offset, OnError, Progress, ReadOutcome, ReadState, Source, SourceConnector, SourceReader, Split};

use columns::Column;
use events::CYCLE;

/// Events in a row that belong to one split: whole cycles, so that every split has all kinds.
const RUN: u64 = 20 * CYCLE;
/// About the bytes of a row, for the caller's limit.
const ROW_BYTES: usize = 128;
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// `WITH (connector = 'nexmark', …)`.
pub struct NexmarkConnector;

impl SourceConnector for NexmarkConnector {
    fn name(&self) -> &'static str {
        "nexmark"
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn infer_schema(&self, options: &Options, _sample_rows: usize) -> Result<SchemaRef> {
        let kind = NexmarkOptions::read(options)?.kind;
        let field = |(name, column): &(&str, Column)| Field::new(*name, column.data_type(), true);
        Ok(Arc::new(Schema::new(kind.columns().iter().map(field).collect::<Vec<_>>())))
    }

    fn open(&self, options: &Options, schema: &SchemaRef) -> Result<Box<dyn Source>> {
        let options = NexmarkOptions::read(options)?;
        let columns = schema.fields().iter().map(|field| column(&options, field)).collect::<Result<Vec<Column>>>()?;
        Ok(Box::new(NexmarkSource { options, schema: Arc::clone(schema), columns }))
    }
}

/// What a declared column holds. Errors: `42703` no such column, `42804` of another type.
fn column(options: &NexmarkOptions, field: &Field) -> Result<Column> {
    let known = options.kind.columns().iter().find(|(name, _)| *name == field.name());
    let Some((name, column)) = known else {
        return Err(options::no_such_column(options.kind, field.name()));
    };
    if *field.data_type() != column.data_type() {
        let (want, have) =
            (crate::format::sql_type_name(&column.data_type()), crate::format::sql_type_name(field.data_type()));
        return Err(Error::new(
            SqlState::DatatypeMismatch,
            format!("column \"{name}\" of the nexmark table \"{}\" is of type {want}, not {have}", options.kind.name()),
        )
        .with_hint("Leave the columns out to get all of them with their types."));
    }
    Ok(*column)
}

/// One of the three tables of an event stream.
pub struct NexmarkSource {
    options: NexmarkOptions,
    schema: SchemaRef,
    columns: Vec<Column>,
}

impl Source for NexmarkSource {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn bounded(&self) -> bool {
        self.options.events.is_some()
    }

    fn on_error(&self) -> OnError {
        OnError::Stop
    }

    fn poll_interval(&self) -> Duration {
        POLL_INTERVAL
    }

    fn unit(&self) -> &'static str {
        "events"
    }

    fn pace(&self) -> Option<u64> {
        self.options.rate
    }

    fn endless(&self) -> bool {
        self.options.events.is_none()
    }

    fn splits(&self) -> Result<Vec<Split>> {
        Ok((0..self.options.splits).map(|n| Split(format!("{n:03}"))).collect())
    }

    fn has_places(&self) -> bool {
        true
    }

    fn reader(&self, split: &Split, columns: Option<&[usize]>) -> Result<Box<dyn SourceReader>> {
        let number = split.0.parse().ok().filter(|n| *n < self.options.splits);
        let split = number.ok_or_else(|| Error::internal(format!("the source has no split \"{}\"", split.0)))?;
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let wanted = columns.unwrap_or(&all);
        Ok(Box::new(NexmarkReader {
            schema: Arc::new(self.schema.project(wanted)?),
            columns: wanted.iter().filter_map(|c| self.columns.get(*c).copied()).collect(),
            options: self.options.clone(),
            split,
            position: 0,
            keeps_places: false,
            places: Vec::new(),
        }))
    }
}

struct NexmarkReader {
    options: NexmarkOptions,
    schema: SchemaRef,
    columns: Vec<Column>,
    split: u64,
    position: u64,
    keeps_places: bool,
    /// The numbers of the rows of the last batch, if they are kept.
    places: Vec<u64>,
}

impl NexmarkReader {
    /// The numbers of the next events of this table and split, at most `max` of them, from `from` and below `end`; and
    /// where to go on.
    fn events(&self, from: u64, end: u64, max: usize) -> (Vec<u64>, u64) {
        let mut events = Vec::with_capacity(max);
        let places = self.options.kind.places();
        let mut cycle = from / CYCLE;
        let mut next = from;
        while next < end && events.len() < max {
            let run = cycle * CYCLE / RUN;
            let behind = (run + self.options.splits - self.split) % self.options.splits;
            if behind != 0 {
                // The next run of this split.
                cycle = (run + self.options.splits - behind) * RUN / CYCLE;
                next = (cycle * CYCLE).min(end);
                continue;
            }
            let first = (cycle * CYCLE + places.start).max(next);
            let last = (cycle * CYCLE + places.end).min(end).min(first + (max - events.len()) as u64);
            events.extend(first..last.max(first));
            next = if events.len() < max { ((cycle + 1) * CYCLE).min(end) } else { last };
            cycle += 1;
        }
        (events, next)
    }
}

impl SourceReader for NexmarkReader {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn read(&mut self, from: Offset, max_rows: usize, max_bytes: usize, limit: Option<Offset>) -> Result<ReadOutcome> {
        let end = self.options.events.unwrap_or(events::EVENTS_MAX);
        let stop = limit.map_or(end, |l| l.0.min(end));
        let max = max_rows.min(max_bytes / ROW_BYTES).max(1);
        let (events, next) = self.events(from.0, stop, max);
        let next = next.max(from.0);
        if self.keeps_places {
            self.places.clone_from(&events);
        }
        let rows = RecordBatchOptions::new().with_row_count(Some(events.len()));
        let (stream, kind) = (&self.options.stream, self.options.kind);
        let columns = columns::generate(stream, kind, &self.columns, &events);
        if self.options.full_rows {
            let unread = kind.columns().iter().map(|(_, c)| *c).filter(|c| !self.columns.contains(c));
            std::hint::black_box(columns::generate(stream, kind, &unread.collect::<Vec<_>>(), &events));
        }
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &rows)?;
        self.position = next;
        let state = if next >= stop { ReadState::End } else { ReadState::More };
        Ok(ReadOutcome { batch, next: Offset(next), state, errors: Vec::new() })
    }

    fn progress(&self) -> Progress {
        Progress { done: self.position, total: self.options.events.unwrap_or(self.position) }
    }

    fn keep_places(&mut self) {
        self.keeps_places = true;
    }

    fn places(&self) -> &[u64] {
        &self.places
    }
}
