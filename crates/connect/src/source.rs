//! The contract of sources: splits that are read in ranges between offsets.
//!
//! A [`SourceConnector`] turns options into a [`Source`]; a source has [`Split`]s; a [`SourceReader`] reads one split from
//! any offset on. Several readers of one source exist at a time: the live one, and one for each back-fill. They agree
//! because reading is a function of (split, range, columns): equal ranges give equal rows, in equal order, in whatever
//! portions they are asked for.

use std::fmt;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use flow::Result;
use serde::{Deserialize, Serialize};

use crate::include::Include;
use crate::options::{OptionSpec, Options};

/// A position in a split, always at a boundary between records; its unit is the connector's (file: bytes).
///
/// Offsets of one split are ordered as its records are. [`Offset::START`] is before the first record of every split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub u64);

impl Offset {
    pub const START: Offset = Offset(0);
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A part of a source that is read in order, by one reader at a time for each purpose. The name is stable over restarts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Split(pub String);

/// What a malformed record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnError {
    /// The source stops with an error at that record; the records before it are delivered.
    Stop,
    /// The record is left out, and reported in [`ReadOutcome::errors`].
    Skip,
}

/// Whether there is more to read after a portion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadState {
    /// There may be more now: read again at once.
    More,
    /// Nothing complete follows now; more may come. Read again after [`Source::poll_interval`].
    CaughtUp,
    /// Nothing follows in the asked range, ever.
    End,
}

/// A record that could not be turned into a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// Where the record starts.
    pub offset: Offset,
    /// 1-based line of the file on which the record starts; 0 where the split has no lines.
    pub line: u64,
    /// The column at fault, when the record as such could be read.
    pub column: Option<String>,
    /// What is wrong, in lower case, without the position.
    pub reason: String,
    /// The first [`BAD_RECORD_BYTES_MAX`] bytes of the record.
    pub bytes: Vec<u8>,
}

/// Bytes of a malformed record that are kept for the user to look at.
pub const BAD_RECORD_BYTES_MAX: usize = 4096;

/// One portion of a split.
#[derive(Clone, Debug)]
pub struct ReadOutcome {
    /// The rows of `[from, next)` without the malformed ones: the projected columns, in the order asked for, in canonical
    /// types. May be empty.
    pub batch: RecordBatch,
    /// Where to go on.
    pub next: Offset,
    pub state: ReadState,
    /// The malformed records of `[from, next)`, in order. Always empty with [`OnError::Stop`].
    pub errors: Vec<BadRecord>,
}

/// How far a reader is, in the connector's unit of size (file: bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    /// Known size now; grows when a growing file is followed.
    pub total: u64,
}

/// A kind of source, found by name with [`crate::source`].
pub trait SourceConnector: Send + Sync {
    fn name(&self) -> &'static str;

    /// The table of options, `connector` included.
    fn options(&self) -> &'static [OptionSpec];

    /// What `INCLUDE` can make columns of.
    fn includes(&self) -> &'static [Include] {
        &[Include::Partition, Include::Offset]
    }

    /// Column names and types guessed from the first `sample_rows` records, for `CREATE SOURCE` without columns. Every
    /// column is nullable. Errors as [`open`](Self::open), and `42P16` when the sample shows no columns.
    fn infer_schema(&self, options: &Options, sample_rows: usize) -> Result<SchemaRef>;

    /// Checks the options, the schema and the reachability of the data. Called at CREATE and at every start.
    ///
    /// `schema`: the declared columns in canonical types; a column that is not nullable makes a record without a value
    /// for it malformed. Errors: `22023`/`42704` options, `58P01` no such file, `42501` not readable, `0A000` a column type
    /// that the format cannot hold, `42703` a column that the data does not have.
    fn open(&self, options: &Options, schema: &SchemaRef) -> Result<Box<dyn Source>>;
}

/// An opened source. Cheap to share; readers hold their own handles.
pub trait Source: Send + Sync {
    /// The declared columns.
    fn schema(&self) -> &SchemaRef;

    /// Whether the source ends. The extent of a bounded source is fixed when it is opened.
    fn bounded(&self) -> bool;

    fn on_error(&self) -> OnError;

    /// What [`Progress`] counts, in the plural.
    fn unit(&self) -> &'static str {
        "bytes"
    }

    /// How long to wait after [`ReadState::CaughtUp`].
    fn poll_interval(&self) -> Duration;

    /// How many offsets of each split become due in a second of real time; `None`: whatever there is can be read. Whoever
    /// drives a reader has the clock, and passes what is due as the limit.
    fn pace(&self) -> Option<u64> {
        None
    }

    /// Whether a reader without a limit would never see an end: the source makes its rows.
    fn endless(&self) -> bool {
        false
    }

    /// All splits now, ordered by name. A split never disappears. Those of a bounded source never change, and it has at least
    /// one; a source that is not bounded may have none yet, and more each time. Blocking, as a reader is. Errors: as
    /// [`SourceReader::read`], and what is wrong with a new split.
    fn splits(&self) -> Result<Vec<Split>>;

    /// Known size of a split now, in the unit of [`Progress`]: for the progress of splits that no reader has begun.
    fn size(&self, _split: &Split) -> u64 {
        0
    }

    /// How many splits that have more are read in turns; the others wait. `usize::MAX`: all of them.
    fn turns(&self) -> usize {
        usize::MAX
    }

    /// A split as users know it: the path of a file.
    fn split_text(&self, split: &Split) -> String {
        split.0.clone()
    }

    /// Whether readers know where each row is; see [`SourceReader::places`].
    fn has_places(&self) -> bool {
        false
    }

    /// A reader of one split that decodes only `columns` (indices into [`schema`](Self::schema), in the order wanted;
    /// `None`: all). With [`OnError::Skip`] the other columns are checked too, so that readers with different
    /// columns leave out the same records; with [`OnError::Stop`] a value that no one reads is not looked at.
    fn reader(&self, split: &Split, columns: Option<&[usize]>) -> Result<Box<dyn SourceReader>>;
}

/// Reads one split. Blocking: call it from a thread that may wait for a disk or a network.
pub trait SourceReader: Send {
    /// The schema of the batches: the projected columns.
    fn schema(&self) -> &SchemaRef;

    /// Reads records from `from` on: at most `max_rows`, about `max_bytes` of input (at least one record if there is one),
    /// and only records that start before `limit`.
    ///
    /// `from` and `limit` must be [`Offset::START`] or offsets that a reader of this split has returned; anything else is
    /// an error of the caller that may surface as a malformed record. Reading the same range again gives the same rows.
    /// Errors: `22P02` a malformed record with [`OnError::Stop`] (detail: file and line), `XX001` the data
    /// changed behind the reader's back (truncated, replaced), `58030` input failed. After an error the source stops.
    fn read(&mut self, from: Offset, max_rows: usize, max_bytes: usize, limit: Option<Offset>) -> Result<ReadOutcome>;

    /// How far the last read got.
    fn progress(&self) -> Progress;

    /// From now on [`places`](Self::places) are wanted. Only for readers of sources that have them.
    fn keep_places(&mut self) {}

    /// Where each row of the last batch starts, in offsets of the split; the same for every range that holds the row.
    fn places(&self) -> &[u64] {
        &[]
    }
}
