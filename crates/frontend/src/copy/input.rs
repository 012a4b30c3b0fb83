//! COPY FROM STDIN: CopyData messages to batches of typed columns.
//!
//! Lines are collected as ranges of fields; a full batch is then parsed column by column, so that the type of a column is
//! looked at once for thousands of values. Of several bad values the one in the first line is reported, as if the lines
//! had been parsed one after the other.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field as SchemaField, Schema, SchemaRef};
use flow::{Error, SqlState};
use pgwire::messages::copy::CopyInResponse;

use crate::backend::CopyIn;
use crate::cancel::CancelHandle;
use crate::config::MESSAGE_BYTES_MAX;
use crate::copy::binary::BinaryDecoder;
use crate::copy::split::{Field, Line, Lines, Next, Splitter};
use crate::copy::{CopyFormat, CopyHeader, CopyOptions};
use crate::decode::number::quoted;
use crate::decode::parse_column;
use crate::failure::Failure;
use crate::message::read_string;
use crate::settings::TextSettings;
use crate::transport::Transport;

/// Rows of a batch.
pub(crate) const BATCH_ROWS: usize = 8192;

/// Bytes of text after which a batch is not filled any further.
pub(crate) const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Bytes of one line.
const LINE_BYTES_MAX: usize = MESSAGE_BYTES_MAX;

/// Takes the rows of a COPY until the client says that it is done. Returns the command tag.
pub(crate) async fn receive(
    copy: CopyIn,
    settings: TextSettings,
    transport: &mut Transport,
    cancel: &CancelHandle,
) -> Result<String, Failure> {
    let CopyIn { table, schema, options, mut sink } = copy;
    let binary = options.format == CopyFormat::Binary;
    let mut decoder = if binary {
        RowDecoder::Binary(BinaryDecoder::new(table, &schema))
    } else {
        RowDecoder::Lines(Box::new(Decoder::new(table, &schema, &options, settings)))
    };
    let columns = schema.fields().len();
    let format = i16::from(binary);
    transport.put(&CopyInResponse::new(format as i8, columns as i16, vec![format; columns]))?;
    loop {
        let frame = match transport.buffered_frame()? {
            Some(frame) => frame,
            None => tokio::select! {
                biased;
                frame = transport.read_frame() => frame?,
                error = cancel.stopped() => return Err(error.into()),
            },
        };
        cancel.check()?;
        match frame.kind {
            b'd' => {
                decoder.feed(&frame.body)?;
                while let Some(batch) = decoder.next_batch(false)? {
                    sink.push(batch).await?;
                }
            }
            b'c' => {
                while let Some(batch) = decoder.next_batch(true)? {
                    sink.push(batch).await?;
                }
                let rows = sink.finish().await?;
                return Ok(format!("COPY {rows}"));
            }
            b'f' => {
                let reason = read_string(frame.body)?;
                let message = format!("COPY from stdin failed: {}", &*reason);
                let context = decoder.at_line();
                return Err(Failure::in_context(Error::new(SqlState::QueryCanceled, message), context));
            }
            // Clients that send Sync right after Execute cannot know yet that this became a COPY.
            b'H' | b'S' => {}
            b'X' => return Err(Failure::Disconnected),
            other => {
                // What the client takes for a new statement cannot be told from data any more.
                let message = format!("unexpected message type 0x{other:02X} during COPY from stdin");
                transport.put_error(&Error::new(SqlState::ProtocolViolation, message), Some(&decoder.at_line()));
                return Err(Failure::protocol("terminating connection because protocol synchronization was lost"));
            }
        }
    }
}

/// Either form of rows.
enum RowDecoder {
    Lines(Box<Decoder>),
    Binary(BinaryDecoder),
}

impl RowDecoder {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            RowDecoder::Lines(decoder) => decoder.feed(bytes),
            RowDecoder::Binary(decoder) => decoder.feed(bytes),
        }
    }

    fn next_batch(&mut self, complete: bool) -> Result<Option<RecordBatch>, Failure> {
        match self {
            RowDecoder::Lines(decoder) => decoder.next_batch(complete),
            RowDecoder::Binary(decoder) => decoder.next_batch(complete),
        }
    }

    fn at_line(&self) -> String {
        match self {
            RowDecoder::Lines(decoder) => decoder.at_line(),
            RowDecoder::Binary(decoder) => decoder.at_line(),
        }
    }
}

/// The columns of a batch as the sink gets them. NOT NULL is for the sink to check: it knows the defaults and says which
/// row failed.
pub(crate) fn nullable(schema: &Schema) -> Vec<SchemaField> {
    schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect()
}

/// Turns lines into batches.
pub(crate) struct Decoder {
    table: String,
    schema: SchemaRef,
    settings: TextSettings,
    header: CopyHeader,
    lines: Lines,
    splitter: Splitter,
    buffer: Vec<u8>,
    /// Row by row, the fields of the lines that have been split but not parsed yet, and those lines.
    fields: Vec<Field>,
    rows: Vec<Line>,
}

impl Decoder {
    pub(crate) fn new(table: String, schema: &SchemaRef, options: &CopyOptions, settings: TextSettings) -> Decoder {
        let fields = nullable(schema);
        Decoder {
            table,
            settings,
            header: options.header,
            lines: Lines::new(options),
            splitter: Splitter::new(options, fields.len()),
            schema: Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())),
            buffer: Vec::new(),
            fields: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Adds the body of a CopyData message.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.buffer.len() - self.lines.start() + bytes.len() > LINE_BYTES_MAX + BATCH_BYTES {
            let error = Error::new(SqlState::ProgramLimitExceeded, "a line of COPY data is too long")
                .with_detail(format!("The limit is {LINE_BYTES_MAX} bytes."));
            return Err(Failure::in_context(error, self.at_line()));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn at_line(&self) -> String {
        format!("COPY {}, line {}", self.table, self.lines.number())
    }

    fn in_line(&self, line: Line) -> String {
        let text = &self.buffer[line.start..line.end];
        format!("COPY {}, line {}: {}", self.table, line.number, quoted(&text[..text.len().min(100)]))
    }

    /// The next batch of 1 to 8192 rows: as soon as it is full, or once the input is `complete` and has rows left.
    pub(crate) fn next_batch(&mut self, complete: bool) -> Result<Option<RecordBatch>, Failure> {
        let columns = self.schema.fields().len();
        loop {
            let bytes = self.lines.start() - self.rows.first().map_or(self.lines.start(), |line| line.start);
            if self.rows.len() == BATCH_ROWS || bytes >= BATCH_BYTES {
                return self.parse_rows().map(Some);
            }
            let next = self.lines.next(&self.buffer, complete);
            let line = match next.map_err(|error| Failure::in_context(error, self.at_line()))? {
                Next::Line(line) => line,
                Next::End if !self.rows.is_empty() && complete => return self.parse_rows().map(Some),
                Next::End => {
                    if self.rows.is_empty() {
                        // After the end-of-data line nothing counts any more.
                        self.discard(self.buffer.len());
                    }
                    return Ok(None);
                }
                Next::Incomplete => {
                    if self.rows.is_empty() {
                        self.discard(self.lines.start());
                    }
                    return Ok(None);
                }
            };
            let before = self.fields.len();
            self.splitter
                .split(&self.buffer, line, &mut self.fields)
                .map_err(|error| Failure::in_context(error, self.in_line(line)))?;
            let found = self.fields.len() - before;
            if self.header != CopyHeader::No {
                self.check_header(line, before)?;
                self.header = CopyHeader::No;
                self.fields.truncate(before);
                continue;
            }
            if found != columns {
                let error = if found > columns {
                    Error::new(SqlState::BadCopyFileFormat, "extra data after last expected column")
                } else {
                    let name = self.schema.field(found).name();
                    Error::new(SqlState::BadCopyFileFormat, format!("missing data for column \"{name}\""))
                };
                // A bad value in an earlier line comes first.
                self.fields.truncate(before);
                if !self.rows.is_empty() {
                    let context = self.in_line(line);
                    self.parse_rows()?;
                    return Err(Failure::in_context(error, context));
                }
                return Err(Failure::in_context(error, self.in_line(line)));
            }
            self.rows.push(line);
        }
    }

    fn check_header(&self, line: Line, first: usize) -> Result<(), Failure> {
        if self.header != CopyHeader::Match {
            return Ok(());
        }
        let columns = self.schema.fields();
        let names = &self.fields[first..];
        let bad = |message: String| {
            Err(Failure::in_context(Error::new(SqlState::BadCopyFileFormat, message), self.in_line(line)))
        };
        if names.len() != columns.len() {
            let (got, expected) = (names.len(), columns.len());
            return bad(format!("wrong number of fields in header line: got {got}, expected {expected}"));
        }
        for (i, (field, column)) in names.iter().zip(columns).enumerate() {
            let got = self.splitter.value(&self.buffer, *field);
            if got.as_deref() != Some(column.name().as_bytes()) {
                let got = got.map_or("null value".to_string(), |got| quoted(&got));
                let n = i + 1;
                return bad(format!(
                    "column name mismatch in header line field {n}: got {got}, expected \"{}\"",
                    column.name()
                ));
            }
        }
        Ok(())
    }

    /// Parses the collected rows, which are at least one.
    fn parse_rows(&mut self) -> Result<RecordBatch, Failure> {
        let columns = self.schema.fields().len();
        let mut arrays = Vec::with_capacity(columns);
        let mut first_bad: Option<(usize, usize, Error)> = None;
        for (column, field) in self.schema.fields().iter().enumerate() {
            let cells =
                (0..self.rows.len()).map(|row| self.splitter.value(&self.buffer, self.fields[row * columns + column]));
            match parse_column(field.data_type(), cells, &self.settings) {
                Ok(array) => arrays.push(array),
                Err(bad) if first_bad.as_ref().is_none_or(|(row, ..)| bad.row < *row) => {
                    first_bad = Some((bad.row, column, bad.error));
                }
                Err(_) => {}
            }
        }
        if let Some((row, column, error)) = first_bad {
            let number = self.rows.get(row).map_or(0, |line| line.number);
            let value = self
                .fields
                .get(row * columns + column)
                .and_then(|field| self.splitter.value(&self.buffer, *field))
                .map_or("null input".to_string(), |value| quoted(&value[..value.len().min(100)]));
            let name = self.schema.field(column).name();
            let context = match value.as_str() {
                "null input" => format!("COPY {}, line {number}, column {name}: null input", self.table),
                value => format!("COPY {}, line {number}, column {name}: {value}", self.table),
            };
            return Err(Failure::in_context(error, context));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows.len()));
        let batch =
            RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options).map_err(Error::from)?;
        self.fields.clear();
        self.rows.clear();
        self.discard(self.lines.start());
        Ok(batch)
    }

    /// Forgets the first `n` bytes, which nothing refers to any longer.
    fn discard(&mut self, n: usize) {
        let start = self.lines.start();
        if n <= start {
            self.buffer.drain(..n);
            self.lines.removed(n);
        } else {
            self.buffer.drain(..start);
            self.lines.removed(start);
            self.buffer.clear();
        }
    }
}
