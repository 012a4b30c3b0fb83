//! The connector `file`: CSV, NDJSON or Parquet files as a source, bounded or followed while they grow, and text files as a
//! sink.
//!
//! Each file of a source is a split, named by its path; its offsets are bytes from the file's start, always where a record
//! starts (Parquet: rows). The law that equal ranges give equal rows needs files that are only appended to; a followed file that shrinks, is
//! replaced, disappears, or no longer continues the bytes that were read is an error, never a silent restart.

mod chunks;
mod objects;
mod options;
mod parquet;
mod place;
mod read;
mod source;
mod text;

mod snapshot;
mod write;

pub use options::{FileSinkOptions, FileSourceOptions, SINK_OPTIONS, SOURCE_OPTIONS, SinkMode};
pub use read::RECORD_BYTES_MAX;

use std::path::Path;

use arrow::datatypes::SchemaRef;
use flow::{Error, Result, SqlState};

use crate::include::Include;
use crate::options::{Form, OptionSpec, Options};
use crate::sink::{SinkConnector, SinkRequest, SinkWriter};
use crate::source::{Source, SourceConnector};

/// `WITH (connector = 'file', …)`.
pub struct FileConnector;

impl SourceConnector for FileConnector {
    fn name(&self) -> &'static str {
        "file"
    }

    fn options(&self) -> &'static [OptionSpec] {
        SOURCE_OPTIONS
    }

    fn includes(&self) -> &'static [Include] {
        &[Include::File, Include::Partition, Include::Offset]
    }

    fn infer_schema(&self, options: &Options, sample_rows: usize) -> Result<SchemaRef> {
        source::infer_schema(&FileSourceOptions::read(options)?, sample_rows)
    }

    fn open(&self, options: &Options, schema: &SchemaRef) -> Result<Box<dyn Source>> {
        Ok(Box::new(source::FileSource::open(FileSourceOptions::read(options)?, schema)?))
    }
}

impl SinkConnector for FileConnector {
    fn name(&self) -> &'static str {
        "file"
    }

    fn options(&self) -> &'static [OptionSpec] {
        SINK_OPTIONS
    }

    fn forms(&self) -> &'static [Form] {
        crate::format::records::FORMS
    }

    fn validate(&self, request: &SinkRequest<'_>) -> Result<()> {
        write::validate(&FileSinkOptions::read(request.options)?, request)
    }

    fn open(&self, request: &SinkRequest<'_>) -> Result<Box<dyn SinkWriter>> {
        write::open(FileSinkOptions::read(request.options)?, request)
    }
}

/// What the operating system's refusal means for the user. `action`: a verb phrase, `open file`.
pub(crate) fn io_error(action: &str, path: &Path, e: &std::io::Error) -> Error {
    use std::io::ErrorKind as K;
    let state = match e.kind() {
        K::NotFound | K::NotADirectory => SqlState::UndefinedFile,
        K::PermissionDenied | K::ReadOnlyFilesystem => SqlState::InsufficientPrivilege,
        K::StorageFull | K::QuotaExceeded | K::FileTooLarge => SqlState::DiskFull,
        K::IsADirectory => SqlState::WrongObjectType,
        _ => SqlState::IoError,
    };
    let error = Error::new(state, format!("could not {action} \"{}\": {}", path.display(), reason(e)));
    match state {
        SqlState::UndefinedFile if path.is_relative() => {
            error.with_hint("A relative path starts at the server's working directory.")
        }
        SqlState::DiskFull => error.with_hint("Free space on the disk, then start the job again."),
        _ => error,
    }
}

/// The system's words without Rust's `(os error N)`, in lower case.
fn reason(e: &std::io::Error) -> String {
    let text = e.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}
