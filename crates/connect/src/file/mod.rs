//! The connector `file`: CSV, NDJSON or Parquet files as a source, bounded or followed while they grow; as a sink one text file that
//! is written anew after a restart, or a folder to which checkpoints add files exactly once.
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

mod columns;
mod folder;
mod partition;
mod staged;
mod target;
mod upload;

pub use options::{FileSinkOptions, FileSourceOptions, FolderOptions, SINK_OPTIONS, SOURCE_OPTIONS, SinkMode};
pub use read::RECORD_BYTES_MAX;

use std::path::Path;

use arrow::datatypes::SchemaRef;
use checkpoint::CommitPermit;
use flow::{Error, Result, SqlState};

use crate::include::Include;
use crate::options::{Form, OptionSpec, Options, RowForm};
use crate::sink::{Delivery, SinkConnector, SinkRequest, SinkWriter};
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
        SINK_FORMS
    }

    fn validate(&self, request: &SinkRequest<'_>) -> Result<()> {
        let options = FileSinkOptions::read(request.options)?;
        match &options.folder {
            Some(folder) => folder::validate(&options, folder, request),
            None => write::validate(&options, request),
        }
    }

    fn open(&self, request: &SinkRequest<'_>) -> Result<Box<dyn SinkWriter>> {
        let options = FileSinkOptions::read(request.options)?;
        match &options.folder {
            Some(folder) => folder::open(&options, folder, request),
            None => write::open(options, request),
        }
    }

    fn delivery(&self, options: &Options) -> Result<Delivery> {
        Ok(FileSinkOptions::read(options)?.delivery())
    }

    fn resume(&self, request: &SinkRequest<'_>, permit: &CommitPermit, prepared: &[u8]) -> Result<Box<dyn SinkWriter>> {
        let options = FileSinkOptions::read(request.options)?;
        match &options.folder {
            Some(folder) => folder::resume(&options, folder, request, permit, prepared),
            None => Err(Error::internal("a file sink that is written anew cannot go on")),
        }
    }
}

/// The forms of the sink; Parquet is for delivery exactly once.
static SINK_FORMS: &[Form] = &[
    Form { form: RowForm::Plain, encodings: &["JSON", "CSV", "PARQUET"] },
    Form { form: RowForm::Upsert, encodings: &["JSON", "CSV"] },
    Form { form: RowForm::Debezium, encodings: &["JSON"] },
];

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
