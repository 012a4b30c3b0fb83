//! The binary format of COPY: a signature, rows as counted fields in their binary forms, and an end mark.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};
use flow::{Error, SqlState};

use crate::config::MESSAGE_BYTES_MAX;
use crate::copy::input::{BATCH_BYTES, BATCH_ROWS, nullable};
use crate::decode::binary::decode_column;
use crate::encode::BatchRows;
use crate::failure::Failure;
use crate::types::PgType;

/// What every file starts with, before flags and the length of the header's extension.
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

/// Bytes before the rows when there is no extension.
const HEADER_BYTES: usize = 19;

/// The header of what is sent: no flags, no extension.
pub(crate) fn write_header(out: &mut Vec<u8>) {
    out.extend_from_slice(SIGNATURE);
    out.extend_from_slice(&[0; 8]);
}

pub(crate) fn write_row(batch: &BatchRows, i: usize, out: &mut Vec<u8>) -> flow::Result<()> {
    out.extend_from_slice(&(batch.cells.len() as i16).to_be_bytes());
    batch.cells.iter().try_for_each(|cell| cell.write_field(i, out))
}

pub(crate) fn write_end(out: &mut Vec<u8>) {
    out.extend_from_slice(&(-1i16).to_be_bytes());
}

/// The place of a value in the buffer; `None` for NULL.
type Place = Option<(u32, u32)>;

/// Turns bytes into batches.
pub(crate) struct BinaryDecoder {
    table: String,
    schema: SchemaRef,
    oids: Vec<u32>,
    buffer: Vec<u8>,
    /// How far the buffer has been split into rows.
    at: usize,
    /// Row by row, the values that have been split off but not decoded yet.
    places: Vec<Place>,
    rows: usize,
    /// Rows in the batches so far.
    rows_before: u64,
    greeted: bool,
    ended: bool,
}

#[cold]
fn bad(message: impl Into<String>) -> Error {
    Error::new(SqlState::BadCopyFileFormat, message)
}

impl BinaryDecoder {
    pub(crate) fn new(table: String, schema: &SchemaRef) -> BinaryDecoder {
        BinaryDecoder {
            table,
            oids: schema.fields().iter().map(|field| PgType::of_field(field).oid).collect(),
            schema: Arc::new(Schema::new_with_metadata(nullable(schema), schema.metadata().clone())),
            buffer: Vec::new(),
            at: 0,
            places: Vec::new(),
            rows: 0,
            rows_before: 0,
            greeted: false,
            ended: false,
        }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.buffer.len() - self.at + bytes.len() > MESSAGE_BYTES_MAX + BATCH_BYTES {
            let error = Error::new(SqlState::ProgramLimitExceeded, "a row of COPY data is too long");
            return Err(Failure::in_context(error, self.at_line()));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn at_line(&self) -> String {
        format!("COPY {}, line {}", self.table, self.rows_before + self.rows as u64 + 1)
    }

    /// The next batch of 1 to 8192 rows: as soon as it is full, or once the input is `complete` and has rows left.
    pub(crate) fn next_batch(&mut self, complete: bool) -> Result<Option<RecordBatch>, Failure> {
        let in_context = |decoder: &BinaryDecoder, error: Error| Failure::in_context(error, decoder.at_line());
        while self.rows < BATCH_ROWS && self.at < BATCH_BYTES {
            let before = self.places.len();
            match self.split_row() {
                Ok(true) => self.rows += 1,
                Ok(false) => {
                    self.places.truncate(before);
                    if complete && self.at < self.buffer.len() {
                        return Err(in_context(self, bad("unexpected EOF in COPY data")));
                    }
                    if complete && !self.greeted {
                        return Err(in_context(self, bad("COPY file signature not recognized")));
                    }
                    if !complete || self.rows == 0 {
                        return Ok(None);
                    }
                    return self.decode_rows().map(Some);
                }
                Err(error) => return Err(in_context(self, error)),
            }
        }
        self.decode_rows().map(Some)
    }

    /// Appends the places of the next row's values; false if there is no whole row.
    fn split_row(&mut self) -> flow::Result<bool> {
        if !self.greeted && !self.read_header()? {
            return Ok(false);
        }
        if self.ended {
            return if self.at < self.buffer.len() {
                Err(bad("received copy data after EOF marker"))
            } else {
                Ok(false)
            };
        }
        let mut at = self.at;
        let Some(count) = self.buffer[at..].first_chunk::<2>() else { return Ok(false) };
        let count = i16::from_be_bytes(*count);
        at += 2;
        if count == -1 {
            (self.ended, self.at) = (true, at);
            return self.split_row();
        }
        if usize::try_from(count) != Ok(self.oids.len()) {
            return Err(bad(format!("row field count is {count}, expected {}", self.oids.len())));
        }
        for _ in 0..count {
            let Some(size) = self.buffer[at..].first_chunk::<4>() else { return Ok(false) };
            let size = i32::from_be_bytes(*size);
            at += 4;
            if size == -1 {
                self.places.push(None);
                continue;
            }
            let size = usize::try_from(size).map_err(|_| bad("invalid field size"))?;
            if size > MESSAGE_BYTES_MAX {
                return Err(bad("invalid field size"));
            }
            if size > self.buffer.len() - at {
                return Ok(false);
            }
            self.places.push(Some((at as u32, (at + size) as u32)));
            at += size;
        }
        self.at = at;
        Ok(true)
    }

    fn read_header(&mut self) -> flow::Result<bool> {
        let known = self.buffer.len().min(SIGNATURE.len());
        if self.buffer[..known] != SIGNATURE[..known] {
            return Err(bad("COPY file signature not recognized"));
        }
        let Some([flags, length]) = self
            .buffer
            .get(SIGNATURE.len()..HEADER_BYTES)
            .map(|words| [0, 4].map(|at| words[at..].first_chunk::<4>().map_or(0, |word| i32::from_be_bytes(*word))))
        else {
            return Ok(false);
        };
        if flags as u32 & 0xffff_0000 != 0 {
            return Err(bad("unrecognized critical flags in COPY file header"));
        }
        let length = usize::try_from(length).map_err(|_| bad("invalid COPY file header (missing length)"))?;
        if self.buffer.len() - HEADER_BYTES < length {
            return Ok(false);
        }
        self.at = HEADER_BYTES + length;
        self.greeted = true;
        Ok(true)
    }

    /// Decodes the collected rows, which are at least one.
    fn decode_rows(&mut self) -> Result<RecordBatch, Failure> {
        let columns = self.oids.len();
        let mut arrays = Vec::with_capacity(columns);
        let mut first_bad: Option<(usize, usize, Error)> = None;
        for (column, (field, type_oid)) in self.schema.fields().iter().zip(&self.oids).enumerate() {
            let cells = (0..self.rows).map(|row| {
                self.places[row * columns + column].map(|(start, end)| &self.buffer[start as usize..end as usize])
            });
            match decode_column(cells, *type_oid, field.data_type()) {
                Ok(array) => arrays.push(array),
                Err(bad) if first_bad.as_ref().is_none_or(|(row, ..)| bad.row < *row) => {
                    first_bad = Some((bad.row, column, bad.error));
                }
                Err(_) => {}
            }
        }
        if let Some((row, column, error)) = first_bad {
            let line = self.rows_before + row as u64 + 1;
            let name = self.schema.field(column).name();
            return Err(Failure::in_context(error, format!("COPY {}, line {line}, column {name}", self.table)));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        let batch =
            RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options).map_err(Error::from)?;
        self.rows_before += self.rows as u64;
        self.rows = 0;
        self.places.clear();
        self.buffer.drain(..self.at);
        self.at = 0;
        Ok(batch)
    }
}
