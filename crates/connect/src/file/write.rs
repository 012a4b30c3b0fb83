//! Writing records to a file as they come: the modes `append` and `changes`, and the other forms of rows.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use flow::{ChangeBatch, Epoch, Error, Result, SqlState};

use crate::format::Format;
use crate::format::encode::{Encoder, LineFormat};
use crate::format::records::{Content, Records};
use crate::options::RowForm;
use crate::sink::{SinkRequest, SinkWriter};

use super::io_error;
use super::options::{FileSinkOptions, SinkMode};
use super::snapshot::SnapshotWriter;

/// Encoded lines that are held back before they are written, within an epoch.
const BUFFER_BYTES: usize = 1 << 20;

/// What the sink writes.
enum Kind {
    /// The whole result, again and again.
    Snapshot(Encoder),
    /// Records as they come.
    Log(Records),
}

/// Checks what does not need the file to be touched.
pub fn validate(options: &FileSinkOptions, request: &SinkRequest<'_>) -> Result<()> {
    let snapshot = matches!(kind(options, request)?, Kind::Snapshot(_));
    if let Ok(metadata) = std::fs::metadata(&options.path) {
        // A device takes lines, but it cannot be replaced by a file; a pipe would make the server wait for its reader.
        let device = metadata.file_type().is_char_device() && !snapshot;
        if !metadata.is_file() && !device {
            let what = if metadata.is_dir() { "a directory" } else { "not a regular file" };
            let error = Error::new(SqlState::WrongObjectType, format!("\"{}\" is {what}", options.path.display()));
            return Err(match metadata.is_dir() {
                true => error.with_hint("Add delivery = 'exactly_once' to write files into a folder."),
                false => error,
            });
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
    Ok(match kind(&options, request)? {
        Kind::Snapshot(encoder) => Box::new(SnapshotWriter::open(options, request.schema.clone(), encoder)?),
        Kind::Log(records) => Box::new(LogWriter::open(options, records)?),
    })
}

fn kind(options: &FileSinkOptions, request: &SinkRequest<'_>) -> Result<Kind> {
    let format = match options.format {
        Format::Csv => LineFormat::Csv { delimiter: options.delimiter, null: options.null.clone() },
        _ => LineFormat::Json,
    };
    let content = match options.form {
        RowForm::Plain => match options.mode_for(request.append_only)? {
            SinkMode::Snapshot => return Ok(Kind::Snapshot(Encoder::new(&request.schema, format, &[])?)),
            SinkMode::Append => Content::Rows,
            SinkMode::Changes => Content::Changes,
        },
        form => Content::of(form, request.append_only),
    };
    Ok(Kind::Log(Records::new(request, format, content, options.primary_key.as_deref())?))
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
    lines: LineFile,
    records: Records,
    buffer: Vec<u8>,
    /// Bytes of the file that belong to finished epochs.
    finished_length: u64,
    /// The epoch whose lines are in the buffer to its end.
    finishing: Option<Epoch>,
    published: Epoch,
    rows: u64,
}

struct LineFile {
    path: PathBuf,
    file: File,
    /// Bytes of the file that are whole lines.
    length: u64,
    /// What follows them may be a part of a line.
    torn: bool,
}

impl LineFile {
    /// Writes whole lines, and empties `buffer`.
    fn write(&mut self, buffer: &mut Vec<u8>) -> Result<()> {
        let failed = |e: std::io::Error| io_error("write file", &self.path, &e);
        if self.torn {
            self.file.seek(SeekFrom::Start(self.length)).map_err(failed)?;
            self.torn = false;
        }
        if let Err(e) = self.file.write_all(buffer) {
            self.torn = true;
            // A full disk may have taken half a line: take it back, so that the file stays readable.
            if let Err(trim) = self.file.set_len(self.length) {
                tracing::warn!(path = %self.path.display(), error = %trim, "could not take back a torn line");
            }
            return Err(failed(e));
        }
        self.length += buffer.len() as u64;
        buffer.clear();
        Ok(())
    }
}

impl LogWriter {
    fn open(options: FileSinkOptions, records: Records) -> Result<LogWriter> {
        let path = options.path;
        let file = File::create(&path).map_err(|e| io_error("create file", &path, &e))?;
        let mut lines = LineFile { path, file, length: 0, torn: false };
        let mut buffer = Vec::new();
        if options.header {
            records.header(&mut buffer);
        }
        lines.write(&mut buffer)?;
        let finished_length = lines.length;
        Ok(LogWriter { lines, records, buffer, finished_length, finishing: None, published: Epoch(0), rows: 0 })
    }
}

impl SinkWriter for LogWriter {
    fn write(&mut self, epoch: Epoch, change: &ChangeBatch) -> Result<()> {
        self.rows += self.records.write(epoch, change, &mut self.buffer)?;
        if self.buffer.len() >= BUFFER_BYTES { self.lines.write(&mut self.buffer) } else { Ok(()) }
    }

    fn finish_epoch(&mut self, epoch: Epoch, now_us: i64) -> Result<()> {
        let LogWriter { lines, records, buffer, .. } = self;
        let mut full = false;
        self.rows += records.finish(epoch, now_us, buffer, &mut |buffer| {
            // What the file does not take waits in the buffer.
            full = full || lines.write(buffer).is_err();
            Ok(())
        })?;
        self.finishing = Some(epoch);
        self.make_up()
    }

    fn make_up(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.lines.write(&mut self.buffer)?;
        }
        if let Some(epoch) = self.finishing.take() {
            self.finished_length = self.lines.length;
            self.published = epoch;
        }
        Ok(())
    }

    fn flush(&mut self, _now_us: i64) -> Result<()> {
        // Finished epochs are already in the file.
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.buffer.clear();
        let LineFile { path, file, length, .. } = &self.lines;
        if *length > self.finished_length {
            file.set_len(self.finished_length).map_err(|e| io_error("write file", path, &e))?;
        }
        file.sync_all().map_err(|e| io_error("write file", path, &e))
    }

    fn published(&self) -> Epoch {
        self.published
    }

    fn rows_written(&self) -> u64 {
        self.rows
    }

    fn state_bytes(&self) -> usize {
        self.buffer.capacity() + self.records.state_bytes()
    }
}
