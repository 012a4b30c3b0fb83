//! Writing rows or changes to a file as they come: the modes `append` and `changes`.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use flow::{ChangeBatch, Epoch, Error, Result, SqlState};

use crate::format::Format;
use crate::format::encode::{Encoder, Lead, LineFormat};
use crate::sink::{SinkRequest, SinkWriter};

use super::io_error;
use super::options::{FileSinkOptions, SinkMode};
use super::snapshot::SnapshotWriter;

/// Encoded lines that are held back before they are written, within an epoch.
const BUFFER_BYTES: usize = 1 << 20;

/// Columns that the mode `changes` puts in front.
pub const CHANGE_COLUMNS: [&str; 2] = ["op", "epoch"];

/// Checks what does not need the file to be touched.
pub fn validate(options: &FileSinkOptions, request: &SinkRequest<'_>) -> Result<()> {
    let mode = options.mode_for(request.append_only)?;
    encoder(options, request, mode)?;
    if let Ok(metadata) = std::fs::metadata(&options.path) {
        // A device takes lines, but it cannot be replaced by a file; a pipe would make the server wait for its reader.
        let device = metadata.file_type().is_char_device() && mode != SinkMode::Snapshot;
        if !metadata.is_file() && !device {
            let what = if metadata.is_dir() { "a directory" } else { "not a regular file" };
            return Err(Error::new(SqlState::WrongObjectType, format!("\"{}\" is {what}", options.path.display())));
        }
        let writable = OpenOptions::new().append(true).open(&options.path);
        writable.map_err(|e| io_error("write file", &options.path, &e))?;
    }
    let folder = folder_of(&options.path);
    let metadata = std::fs::metadata(folder).map_err(|e| io_error("open folder", folder, &e))?;
    if !metadata.is_dir() {
        return Err(Error::new(SqlState::UndefinedFile, format!("\"{}\" is not a folder", folder.display())));
    }
    Ok(())
}

pub fn open(options: FileSinkOptions, request: &SinkRequest<'_>) -> Result<Box<dyn SinkWriter>> {
    validate(&options, request)?;
    let mode = options.mode_for(request.append_only)?;
    let encoder = encoder(&options, request, mode)?;
    Ok(match mode {
        SinkMode::Snapshot => Box::new(SnapshotWriter::open(options, request.schema.clone(), encoder)?),
        SinkMode::Append | SinkMode::Changes => Box::new(LogWriter::open(options, mode, encoder)?),
    })
}

fn encoder(options: &FileSinkOptions, request: &SinkRequest<'_>, mode: SinkMode) -> Result<Encoder> {
    let format = match options.format {
        Format::Csv => LineFormat::Csv { delimiter: options.delimiter, null: options.null.clone() },
        _ => LineFormat::Json,
    };
    let leads: &[&str] = if mode == SinkMode::Changes { &CHANGE_COLUMNS } else { &[] };
    Encoder::new(&request.schema, format, leads)
}

/// The folder that holds `path`.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Adds lines at the file's end. The file always ends with a whole line.
struct LogWriter {
    path: PathBuf,
    file: File,
    mode: SinkMode,
    encoder: Encoder,
    buffer: Vec<u8>,
    /// Bytes of the file that are whole lines.
    length: u64,
    /// Bytes of the file that belong to finished epochs.
    finished_length: u64,
    published: Epoch,
    rows: u64,
}

impl LogWriter {
    fn open(options: FileSinkOptions, mode: SinkMode, encoder: Encoder) -> Result<LogWriter> {
        let path = options.path;
        let file = File::create(&path).map_err(|e| io_error("create file", &path, &e))?;
        let mut buffer = Vec::new();
        if options.header {
            encoder.header(&mut buffer);
        }
        let mut writer = LogWriter {
            path,
            file,
            mode,
            encoder,
            buffer,
            length: 0,
            finished_length: 0,
            published: Epoch(0),
            rows: 0,
        };
        writer.write_out()?;
        writer.finished_length = writer.length;
        Ok(writer)
    }

    fn write_out(&mut self) -> Result<()> {
        if let Err(e) = self.file.write_all(&self.buffer) {
            // A full disk may have taken half a line: take it back, so that the file stays readable.
            let trimmed = self.file.set_len(self.length).and_then(|()| self.file.seek(SeekFrom::End(0)));
            if let Err(trim) = trimmed {
                tracing::warn!(path = %self.path.display(), error = %trim, "could not take back a torn line");
            }
            return Err(io_error("write file", &self.path, &e));
        }
        self.length += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl SinkWriter for LogWriter {
    fn write(&mut self, epoch: Epoch, change: &ChangeBatch) -> Result<()> {
        let rows = &change.rows;
        let written = match self.mode {
            SinkMode::Changes => self.encoder.rows(
                rows,
                |row| change.weight(row).unsigned_abs(),
                |row| {
                    let op = if change.weight(row) > 0 { "insert" } else { "delete" };
                    [Lead::Text(op), Lead::Number(epoch.0)]
                },
                &mut self.buffer,
            )?,
            _ => {
                if (0..change.num_rows()).any(|row| change.weight(row) < 0) {
                    return Err(Error::unsupported("a file sink in mode 'append' was asked to take a row away")
                        .with_hint("Use mode = 'snapshot' or mode = 'changes'."));
                }
                self.encoder.rows(rows, |row| change.weight(row).unsigned_abs(), |_| [], &mut self.buffer)?
            }
        };
        self.rows += written;
        if self.buffer.len() >= BUFFER_BYTES { self.write_out() } else { Ok(()) }
    }

    fn finish_epoch(&mut self, epoch: Epoch, _now_us: i64) -> Result<()> {
        if !self.buffer.is_empty() {
            self.write_out()?;
        }
        self.finished_length = self.length;
        self.published = epoch;
        Ok(())
    }

    fn flush(&mut self, _now_us: i64) -> Result<()> {
        // Finished epochs are already in the file.
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.buffer.clear();
        if self.length > self.finished_length {
            self.file.set_len(self.finished_length).map_err(|e| io_error("write file", &self.path, &e))?;
        }
        self.file.sync_all().map_err(|e| io_error("write file", &self.path, &e))
    }

    fn published(&self) -> Epoch {
        self.published
    }

    fn rows_written(&self) -> u64 {
        self.rows
    }

    fn state_bytes(&self) -> usize {
        self.buffer.capacity()
    }
}
