//! COPY TO STDOUT: one CopyData message for each row.

use flow::{Error, Result, SqlState};
use pgwire::messages::copy::CopyOutResponse;

use crate::backend::CopyOut;
use crate::cancel::CancelHandle;
use crate::copy::{CopyFormat, CopyHeader, CopyOptions, binary};
use crate::encode::cell::Cells;
use crate::encode::{BatchRows, Format, RowEncoder};
use crate::failure::Failure;
use crate::rows::{flush_or_stop, next_batch};
use crate::settings::TextSettings;
use crate::transport::{FLUSH_BYTES, Transport};

/// Sends the rows of a COPY. Returns the command tag.
pub(crate) async fn send(
    copy: CopyOut,
    settings: TextSettings,
    transport: &mut Transport,
    cancel: &CancelHandle,
) -> Result<String, Failure> {
    let CopyOut { schema, options, mut batches } = copy;
    let columns = schema.fields().len();
    let is_binary = options.format == CopyFormat::Binary;
    let format = if is_binary { Format::Binary } else { Format::Text };
    transport.put(&CopyOutResponse::new(format.code() as i8, columns as i16, vec![format.code(); columns]))?;
    let encoder = RowEncoder::new(&schema, &vec![format; columns], settings);
    let writer = LineWriter::new(&options, columns);
    // The header of the binary form comes in one message with what follows it, as from PostgreSQL: there are clients
    // that take each message for a row.
    let mut greeting = is_binary;
    if !is_binary && options.header != CopyHeader::No {
        write_message(&mut transport.output, |out| {
            for (i, field) in schema.fields().iter().enumerate() {
                if i > 0 {
                    out.push(writer.delimiter);
                }
                let start = out.len();
                out.extend_from_slice(field.name().as_bytes());
                writer.protect(start, false, out);
            }
            out.push(b'\n');
            Ok(())
        })?;
    }
    let mut rows = 0u64;
    while let Some(batch) = next_batch(&mut batches, transport, cancel).await? {
        let batch = encoder.bind(&batch)?;
        for i in 0..batch.rows {
            write_message(&mut transport.output, |out| {
                if std::mem::take(&mut greeting) {
                    binary::write_header(out);
                }
                if is_binary { binary::write_row(&batch, i, out) } else { writer.write_row(&batch, i, out) }
            })?;
            rows += 1;
            if transport.output.len() >= FLUSH_BYTES {
                flush_or_stop(transport, cancel).await?;
            }
        }
    }
    if is_binary {
        write_message(&mut transport.output, |out| {
            if greeting {
                binary::write_header(out);
            }
            binary::write_end(out);
            Ok(())
        })?;
    }
    transport.put_empty(b'c');
    Ok(format!("COPY {rows}"))
}

/// Appends a CopyData message with the body that `write` appends. On an error `out` is as before.
fn write_message(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
    let start = out.len();
    out.extend_from_slice(&[b'd', 0, 0, 0, 0]);
    let written = write(out).and_then(|()| {
        i32::try_from(out.len() - start - 1)
            .map_err(|_| Error::new(SqlState::ProgramLimitExceeded, "a row is too large to be sent"))
    });
    match written {
        Ok(length) => {
            out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

struct LineWriter {
    csv: bool,
    delimiter: u8,
    quote: u8,
    escape: u8,
    null: Vec<u8>,
    force_quote: Vec<bool>,
    /// A line of only `\.` would end the data.
    single: bool,
}

impl LineWriter {
    fn new(options: &CopyOptions, columns: usize) -> LineWriter {
        LineWriter {
            csv: options.format == CopyFormat::Csv,
            delimiter: options.delimiter,
            quote: options.quote,
            escape: options.escape,
            null: options.null.as_bytes().to_vec(),
            force_quote: (0..columns).map(|i| options.force_quote.contains(&i)).collect(),
            single: columns == 1,
        }
    }

    fn write_row(&self, batch: &BatchRows, i: usize, out: &mut Vec<u8>) -> Result<()> {
        for (column, cell) in batch.cells.iter().enumerate() {
            if column > 0 {
                out.push(self.delimiter);
            }
            self.write_cell(cell, i, self.force_quote.get(column).copied().unwrap_or(false), out)?;
        }
        out.push(b'\n');
        Ok(())
    }

    fn write_cell(&self, cell: &Cells, i: usize, force_quote: bool, out: &mut Vec<u8>) -> Result<()> {
        if cell.is_null(i) {
            out.extend_from_slice(&self.null);
            return Ok(());
        }
        let start = out.len();
        cell.write_text(i, out)?;
        self.protect(start, force_quote, out);
        Ok(())
    }

    /// Quotes or escapes the value that begins at `start`, where it must be.
    fn protect(&self, start: usize, force_quote: bool, out: &mut Vec<u8>) {
        if self.csv {
            let value = &out[start..];
            let needed = force_quote
                || *value == *self.null
                || (self.single && value == b"\\.")
                || value.iter().any(|b| *b == self.delimiter || *b == self.quote || matches!(b, b'\n' | b'\r'));
            if !needed {
                return;
            }
            let value = out.split_off(start);
            out.push(self.quote);
            for byte in value {
                if byte == self.quote || byte == self.escape {
                    out.push(self.escape);
                }
                out.push(byte);
            }
            out.push(self.quote);
            return;
        }
        let special = |b: &u8| *b == b'\\' || *b == self.delimiter || (8..=13).contains(b);
        if !out[start..].iter().any(special) {
            return;
        }
        let value = out.split_off(start);
        for byte in value {
            let letter = match byte {
                8 => b'b',
                9 => b't',
                10 => b'n',
                11 => b'v',
                12 => b'f',
                13 => b'r',
                other if other == b'\\' || other == self.delimiter => other,
                plain => {
                    out.push(plain);
                    continue;
                }
            };
            out.extend_from_slice(&[b'\\', letter]);
        }
    }
}
