//! `INCLUDE kind AS column`: columns that tell where a row comes from, filled from the split and the offset and not from the
//! row.
//!
//! Only what is the same whenever a range is read again can be a column, so there is no time of a file, which changes with
//! every append, and no time of reading.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, StringViewArray, StringViewBuilder};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, SchemaRef};
use flow::{Error, Result, SqlState};

use crate::options::nearest;
use crate::source::{Offset, OnError, Progress, ReadOutcome, Source, SourceConnector, SourceReader, Split};

/// What an included column tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// The path of the file.
    File,
    /// The split as users know it: the path of a file, the number of a split.
    Partition,
    /// Where the row starts in its split: the byte in a file, the number of a made row.
    Offset,
}

impl Include {
    /// The word after INCLUDE.
    pub fn word(self) -> &'static str {
        match self {
            Include::File => "file",
            Include::Partition => "partition",
            Include::Offset => "offset",
        }
    }

    /// The name of a column that is given none.
    pub fn default_name(self) -> String {
        format!("_{}", self.word())
    }

    /// The type of the column, which is never NULL.
    pub fn data_type(self) -> DataType {
        match self {
            Include::File | Include::Partition => DataType::Utf8View,
            Include::Offset => DataType::Int64,
        }
    }

    /// The kind that `word` names. Errors: `42704` with what `connector` offers.
    pub fn of(word: &str, connector: &dyn SourceConnector) -> Result<Include> {
        let offered = connector.includes();
        if let Some(include) = offered.iter().find(|i| i.word().eq_ignore_ascii_case(word)) {
            return Ok(*include);
        }
        let words: Vec<&str> = offered.iter().map(|i| i.word()).collect();
        let error = Error::new(
            SqlState::UndefinedObject,
            format!("source connector \"{}\" cannot include \"{word}\"", connector.name()),
        )
        .with_detail(format!("It can include: {}.", words.join(", ")));
        Err(match nearest(word, words) {
            Some(near) => error.with_hint(format!("Perhaps you meant INCLUDE {near}.")),
            None => error,
        })
    }
}

/// `source` with the columns `included` behind its own. `schema` has all of them. Errors: `0A000` rows of the source have no
/// offset.
pub fn included(source: Box<dyn Source>, included: &[Include], schema: &SchemaRef) -> Result<Box<dyn Source>> {
    if included.is_empty() {
        return Ok(source);
    }
    if included.contains(&Include::Offset) && !source.has_places() {
        return Err(Error::unsupported("rows of this source have no offset, so it cannot be included")
            .with_hint("Leave INCLUDE offset out."));
    }
    Ok(Box::new(IncludedSource { source, included: included.to_vec(), schema: Arc::clone(schema) }))
}

struct IncludedSource {
    source: Box<dyn Source>,
    included: Vec<Include>,
    schema: SchemaRef,
}

impl Source for IncludedSource {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn bounded(&self) -> bool {
        self.source.bounded()
    }

    fn on_error(&self) -> OnError {
        self.source.on_error()
    }

    fn unit(&self) -> &'static str {
        self.source.unit()
    }

    fn poll_interval(&self) -> Duration {
        self.source.poll_interval()
    }

    fn pace(&self) -> Option<u64> {
        self.source.pace()
    }

    fn endless(&self) -> bool {
        self.source.endless()
    }

    fn splits(&self) -> Result<Vec<Split>> {
        self.source.splits()
    }

    fn size(&self, split: &Split) -> u64 {
        self.source.size(split)
    }

    fn turns(&self) -> usize {
        self.source.turns()
    }

    fn split_text(&self, split: &Split) -> String {
        self.source.split_text(split)
    }

    fn has_places(&self) -> bool {
        self.source.has_places()
    }

    fn reader(&self, split: &Split, columns: Option<&[usize]>) -> Result<Box<dyn SourceReader>> {
        let own = self.source.schema().fields().len();
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let wanted = columns.unwrap_or(&all);
        let (mut inner, mut parts) = (Vec::new(), Vec::new());
        for column in wanted {
            parts.push(match column.checked_sub(own) {
                None => {
                    inner.push(*column);
                    Part::Read(inner.len() - 1)
                }
                Some(n) => match self.included.get(n) {
                    Some(Include::Offset) => Part::Offset,
                    Some(Include::File | Include::Partition) => Part::Split,
                    None => return Err(Error::internal("a column that the source does not have")),
                },
            });
        }
        let mut reader = self.source.reader(split, Some(&inner))?;
        if parts.contains(&Part::Offset) {
            reader.keep_places();
        }
        Ok(Box::new(IncludedReader {
            reader,
            schema: Arc::new(self.schema.project(wanted)?),
            parts,
            split: self.source.split_text(split),
            texts: StringViewArray::new_null(0),
        }))
    }
}

/// Where a column of a batch comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A column that was read.
    Read(usize),
    Split,
    Offset,
}

struct IncludedReader {
    reader: Box<dyn SourceReader>,
    schema: SchemaRef,
    parts: Vec<Part>,
    split: String,
    /// The text of the split, as often as the longest batch so far had rows.
    texts: StringViewArray,
}

impl IncludedReader {
    /// `rows` times the text of the split, which is kept once.
    fn texts(&mut self, rows: usize) -> Result<ArrayRef> {
        if self.texts.len() < rows {
            let mut texts = StringViewBuilder::with_capacity(rows);
            let length = u32::try_from(self.split.len()).map_err(|_| Error::internal("a split of 4 GiB"))?;
            let block = texts.append_block(Buffer::from(self.split.as_bytes()));
            for _ in 0..rows {
                texts.try_append_view(block, 0, length)?;
            }
            self.texts = texts.finish();
        }
        Ok(Arc::new(self.texts.slice(0, rows)))
    }
}

impl SourceReader for IncludedReader {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn read(&mut self, from: Offset, max_rows: usize, max_bytes: usize, limit: Option<Offset>) -> Result<ReadOutcome> {
        let outcome = self.reader.read(from, max_rows, max_bytes, limit)?;
        let rows = outcome.batch.num_rows();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.parts.len());
        for n in 0..self.parts.len() {
            columns.push(match self.parts[n] {
                Part::Read(column) => Arc::clone(outcome.batch.column(column)),
                Part::Split => self.texts(rows)?,
                Part::Offset => {
                    let places = self.reader.places();
                    if places.len() != rows {
                        return Err(Error::internal("a reader does not know where its rows are"));
                    }
                    // Files of 2^63 bytes do not exist.
                    Arc::new(Int64Array::from_iter_values(places.iter().map(|place| *place as i64)))
                }
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        Ok(ReadOutcome { batch, ..outcome })
    }

    fn progress(&self) -> Progress {
        self.reader.progress()
    }

    fn keep_places(&mut self) {
        self.reader.keep_places();
    }

    fn places(&self) -> &[u64] {
        self.reader.places()
    }
}
