//! The connector `datagen`: rows made by a rule for each column.
//!
//! A value is a function of the row's number, the seed and the column's place, so any reader can start anywhere. An offset is
//! the number of the row that comes next; a split owns every n-th run of [`RUN`] rows.

mod columns;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::concat;
use arrow::datatypes::SchemaRef;
use flow::{Error, Result, SqlState};

use crate::options::{OptionReader, OptionSpec, Options, nearest};
use crate::random::Pool;
use crate::source::{Offset, OnError, Progress, ReadOutcome, ReadState, Source, SourceConnector, SourceReader, Split};

use columns::{Column, Given};

/// Rows in a row that belong to one split.
const RUN: u64 = 1_000;
/// More rows than this are refused.
const ROWS_MAX: u64 = 1_000_000_000_000;
const RATE_MAX: u64 = 1_000_000_000;
const SPLITS_MAX: u64 = 256;
/// About the bytes of a value, for the caller's limit.
const VALUE_BYTES: usize = 16;
const POLL_INTERVAL: Duration = Duration::from_millis(1);
const OWNER: &str = "source connector \"datagen\"";

/// The options of a datagen source, as documented in `docs/connectors/datagen.md`; those of columns are beside it.
pub static OPTIONS: &[OptionSpec] = &[
    spec("connector", "datagen", None, true, "Chooses this connector."),
    spec(
        "rows",
        "a number from 1 to 1000000000000",
        None,
        false,
        "Rows after which the source ends. Without it: no end.",
    ),
    spec("rate", "a number from 1 to 1000000000", None, false, "Rows a second. Without it: as fast as they are taken."),
    spec(
        "splits",
        "a number from 1 to 256",
        Some("1"),
        false,
        "Splits of the source, read side by side by as many threads as there are slots; the rows are the same for any.",
    ),
    spec(
        "seed",
        "a number from 0 to 18446744073709551615",
        Some("0"),
        false,
        "Another seed gives other random values.",
    ),
];

const fn spec(
    name: &'static str,
    values: &'static str,
    default: Option<&'static str>,
    required: bool,
    meaning: &'static str,
) -> OptionSpec {
    OptionSpec { name, values, default, required, meaning }
}

/// `WITH (connector = 'datagen', …)`.
pub struct DatagenConnector;

/// The options that are not of a column.
struct Settings {
    rows: Option<u64>,
    rate: Option<u64>,
    splits: u64,
    seed: u64,
}

/// The settings, and what is said of each column. Errors: `42704` unknown option, `22023` wrong value.
fn read_options(options: &Options) -> Result<(Settings, Vec<Given<'_>>)> {
    let mut given: Vec<Given<'_>> = Vec::new();
    let mut own = Vec::new();
    for (name, value) in options.pairs() {
        let Some((column, word)) = name.strip_prefix("fields.").and_then(|n| n.rsplit_once('.')) else {
            own.push((name, value));
            continue;
        };
        match given.iter_mut().find(|g| g.column == column) {
            Some(known) => known.pairs.push((word, value)),
            None => given.push(Given { column, pairs: vec![(word, value)] }),
        }
    }
    let own = Options::new(own)?;
    let reader = OptionReader::new(OWNER, &own, OPTIONS)?;
    let number = |name: &str, most| match reader.given(name) {
        Some(_) => reader.number(name, 1, most).map(Some),
        None => Ok(None),
    };
    let settings = Settings {
        rows: number("rows", ROWS_MAX)?,
        rate: number("rate", RATE_MAX)?,
        splits: reader.number("splits", 1, SPLITS_MAX)?,
        seed: reader.number("seed", 0, u64::MAX)?,
    };
    Ok((settings, given))
}

impl SourceConnector for DatagenConnector {
    fn name(&self) -> &'static str {
        "datagen"
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn infer_schema(&self, _options: &Options, _sample_rows: usize) -> Result<SchemaRef> {
        Err(Error::new(SqlState::InvalidTableDefinition, "a datagen source needs its columns declared")
            .with_hint("Write CREATE SOURCE name (column type, …) WITH (connector = 'datagen', …)."))
    }

    fn open(&self, options: &Options, schema: &SchemaRef) -> Result<Box<dyn Source>> {
        let (settings, given) = read_options(options)?;
        let names: Vec<String> = schema.fields().iter().map(|f| f.name().to_lowercase()).collect();
        if let Some(stray) = given.iter().find(|g| !names.iter().any(|n| n == g.column)) {
            let column = stray.column;
            let error = Error::new(
                SqlState::UndefinedColumn,
                format!("{OWNER} has options for the column \"{column}\", which is not declared"),
            );
            return Err(match nearest(column, names.iter().map(String::as_str)) {
                Some(near) => error.with_hint(format!("Perhaps you meant \"{near}\".")),
                None => error,
            });
        }
        let pool = Arc::new(Pool::new(settings.seed, 0));
        let mut columns = Vec::with_capacity(names.len());
        for (lane, (field, name)) in schema.fields().iter().zip(&names).enumerate() {
            let nothing = Given { column: name, pairs: Vec::new() };
            let given = given.iter().find(|g| g.column == name).unwrap_or(&nothing);
            columns.push(Arc::new(Column::new(field, given, lane as u64, &pool)?));
        }
        Ok(Box::new(DatagenSource { settings: Arc::new(settings), schema: Arc::clone(schema), columns }))
    }
}

/// Rows by a rule for each column.
pub struct DatagenSource {
    settings: Arc<Settings>,
    schema: SchemaRef,
    columns: Vec<Arc<Column>>,
}

impl Source for DatagenSource {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn bounded(&self) -> bool {
        self.settings.rows.is_some()
    }

    fn on_error(&self) -> OnError {
        OnError::Stop
    }

    fn unit(&self) -> &'static str {
        "rows"
    }

    fn poll_interval(&self) -> Duration {
        POLL_INTERVAL
    }

    fn pace(&self) -> Option<u64> {
        self.settings.rate
    }

    fn endless(&self) -> bool {
        self.settings.rows.is_none()
    }

    fn splits(&self) -> Result<Vec<Split>> {
        Ok((0..self.settings.splits).map(|n| Split(format!("{n:03}"))).collect())
    }

    fn has_places(&self) -> bool {
        true
    }

    fn reader(&self, split: &Split, columns: Option<&[usize]>) -> Result<Box<dyn SourceReader>> {
        let number = split.0.parse().ok().filter(|n| *n < self.settings.splits);
        let split = number.ok_or_else(|| Error::internal(format!("the source has no split \"{}\"", split.0)))?;
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let wanted = columns.unwrap_or(&all);
        Ok(Box::new(DatagenReader {
            schema: Arc::new(self.schema.project(wanted)?),
            columns: wanted.iter().filter_map(|c| self.columns.get(*c).cloned()).collect(),
            settings: Arc::clone(&self.settings),
            split,
            position: 0,
            keeps_places: false,
            places: Vec::new(),
        }))
    }
}

struct DatagenReader {
    settings: Arc<Settings>,
    schema: SchemaRef,
    columns: Vec<Arc<Column>>,
    split: u64,
    position: u64,
    keeps_places: bool,
    /// The numbers of the rows of the last batch, if they are kept.
    places: Vec<u64>,
}

impl DatagenReader {
    /// The ranges of rows of this split from `from` on and below `end`, at most `max` rows; and where to go on.
    fn ranges(&self, from: u64, end: u64, max: u64) -> (Vec<(u64, u64)>, u64) {
        let (mut ranges, mut left, mut next) = (Vec::new(), max, from);
        while next < end && left > 0 {
            let run = next / RUN;
            let behind = (run + self.settings.splits - self.split) % self.settings.splits;
            if behind != 0 {
                next = ((run + self.settings.splits - behind) * RUN).min(end);
                continue;
            }
            let last = if self.settings.splits == 1 { end } else { ((run + 1) * RUN).min(end) }.min(next + left);
            ranges.push((next, last - next));
            left -= last - next;
            next = last;
        }
        (ranges, next)
    }
}

impl SourceReader for DatagenReader {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn read(&mut self, from: Offset, max_rows: usize, max_bytes: usize, limit: Option<Offset>) -> Result<ReadOutcome> {
        let end = self.settings.rows.unwrap_or(ROWS_MAX);
        let stop = limit.map_or(end, |l| l.0.min(end));
        let max = max_rows.min(max_bytes / (VALUE_BYTES * self.columns.len().max(1))).max(1);
        let (ranges, next) = self.ranges(from.0, stop, max as u64);
        let seed = self.settings.seed;
        let column = |column: &Arc<Column>| -> Result<ArrayRef> {
            let parts: Vec<ArrayRef> = ranges.iter().map(|(n, rows)| column.values(seed, *n, *rows as usize)).collect();
            match &parts[..] {
                [] => Ok(column.values(seed, 0, 0)),
                [one] => Ok(Arc::clone(one)),
                many => Ok(concat(&many.iter().map(|p| p.as_ref()).collect::<Vec<_>>())?),
            }
        };
        if self.keeps_places {
            self.places.clear();
            self.places.extend(ranges.iter().flat_map(|(first, rows)| *first..first + rows));
        }
        let columns = self.columns.iter().map(column).collect::<Result<Vec<ArrayRef>>>()?;
        let rows = ranges.iter().map(|(_, rows)| *rows as usize).sum();
        let rows = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &rows)?;
        self.position = next.max(from.0);
        let state = if self.position >= stop { ReadState::End } else { ReadState::More };
        Ok(ReadOutcome { batch, next: Offset(self.position), state, errors: Vec::new() })
    }

    fn progress(&self) -> Progress {
        Progress { done: self.position, total: self.settings.rows.unwrap_or(self.position) }
    }

    fn keep_places(&mut self) {
        self.keeps_places = true;
    }

    fn places(&self) -> &[u64] {
        &self.places
    }
}
