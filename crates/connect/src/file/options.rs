//! The options of the connector `file`, read and checked.

use std::path::PathBuf;
use std::time::Duration;

use flow::{Error, Result, SqlState};

use crate::format::Format;
use crate::format::records::{PRIMARY_KEY, primary_key};
use crate::options::{OptionReader, OptionSpec, Options, RowForm};
use crate::sink::Delivery;
use crate::source::OnError;

use super::objects::S3Options;

const fn spec(
    name: &'static str,
    values: &'static str,
    default: Option<&'static str>,
    required: bool,
    meaning: &'static str,
) -> OptionSpec {
    OptionSpec { name, values, default, required, meaning }
}

/// The options of a file source, as documented in `docs/connectors/file.md`.
pub static SOURCE_OPTIONS: &[OptionSpec] = &[
    spec("connector", "file", None, true, "Chooses this connector."),
    spec(
        "path",
        "a path or pattern",
        None,
        true,
        "The file to read, or a pattern with * ? [ ] or a folder with / at its end for many; s3://bucket/… for objects. A relative path starts at the server's working directory.",
    ),
    spec(
        "format",
        "csv, json, parquet",
        None,
        true,
        "CSV, one JSON object a line, or Parquet; also written ENCODE CSV, ENCODE JSON or ENCODE PARQUET.",
    ),
    spec(
        "follow",
        "true, false",
        Some("false"),
        false,
        "Whether to wait for more lines at the end of each file, and for more files.",
    ),
    spec(
        "header",
        "true, false, skip",
        Some("false"),
        false,
        "CSV: true finds columns by the names in the first line; skip ignores that line.",
    ),
    spec("delimiter", "one ASCII character, \\t, tab", Some(","), false, "CSV: what separates fields."),
    spec("null", "a text", Some(""), false, "CSV: the field without quotes that means NULL."),
    spec(
        "on_error",
        "skip, stop",
        Some("skip"),
        false,
        "Whether a malformed record is left out and kept in the table of errors, or stops the source.",
    ),
    spec(
        "poll_interval",
        "a time from 1ms to 24h",
        None,
        false,
        "How often followed files are looked at. Without it: 100ms, and 10s for objects.",
    ),
    spec("s3.endpoint", "a URL", None, false, "The address of the service, if it is not AWS."),
    spec("s3.region", "a text", None, false, "The region of the bucket."),
    spec("s3.access_key_id", "a text", None, false, "Who reads the bucket."),
    spec("s3.secret_access_key", "a text", None, false, "The secret that belongs to the key; never shown."),
    spec("s3.allow_http", "true, false", None, false, "Whether the endpoint may be reached without encryption."),
];

/// The options of a file sink, as documented in `docs/connectors/file.md`.
pub static SINK_OPTIONS: &[OptionSpec] = &[
    spec("connector", "file", None, true, "Chooses this connector."),
    spec(
        "path",
        "a path",
        None,
        true,
        "The file to write; what it holds is lost. With exactly_once a folder, or s3://bucket/folder/. A relative path starts at the server's working directory.",
    ),
    spec(
        "format",
        "csv, json, parquet",
        None,
        true,
        "CSV, one JSON object a line, or with exactly_once Parquet; also written ENCODE CSV, ENCODE JSON or ENCODE PARQUET.",
    ),
    spec(
        DELIVERY,
        "rewritten, exactly_once",
        Some("rewritten"),
        false,
        "rewritten: one file, written anew when the server starts; exactly_once: a folder to which each checkpoint adds files.",
    ),
    spec(
        "mode",
        "append, changes, snapshot",
        None,
        false,
        "append: rows as they come; changes: rows with op and epoch; snapshot: the file is replaced by the whole result. Without it: append where rows are only added, else snapshot.",
    ),
    spec("header", "true, false", Some("true"), false, "CSV: whether the first line holds the column names."),
    spec("delimiter", "one ASCII character, \\t, tab", Some(","), false, "CSV: what separates fields."),
    spec("null", "a text", Some(""), false, "CSV: how NULL is written, without quotes."),
    spec(
        "flush_interval",
        "a time from 1ms to 24h",
        Some("1s"),
        false,
        "Mode snapshot: the shortest time between two replacements of the file.",
    ),
    PRIMARY_KEY,
    spec(
        PARTITION_BY,
        "names of columns, separated by commas",
        None,
        false,
        "exactly_once, FORMAT PLAIN: the columns whose values name folders, as in day=2026-01-01/.",
    ),
    spec(
        ROLL_SIZE,
        "a size from 1kB to 1GB",
        Some("128MB"),
        false,
        "exactly_once: the size from which on a file is followed by another one.",
    ),
    spec(
        ROLL_INTERVAL,
        "a time from 1ms to 24h",
        Some("60s"),
        false,
        "exactly_once: the time after which a file is followed by another one. A checkpoint ends every file.",
    ),
    spec("s3.endpoint", "a URL", None, false, "The address of the service, if it is not AWS."),
    spec("s3.region", "a text", None, false, "The region of the bucket."),
    spec("s3.access_key_id", "a text", None, false, "Who writes the bucket."),
    spec("s3.secret_access_key", "a text", None, false, "The secret that belongs to the key; never shown."),
    spec("s3.allow_http", "true, false", None, false, "Whether the endpoint may be reached without encryption."),
];

const DELIVERY: &str = "delivery";
pub(super) const PARTITION_BY: &str = "partition_by";
const ROLL_SIZE: &str = "roll_size";
const ROLL_INTERVAL: &str = "roll_interval";

/// Bytes of a published file at most: a store copies an object in one request.
const ROLL_BYTES_MAX: u64 = 1 << 30;

/// Whether and how the first line of a CSV file is a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    None,
    /// Columns are found by name.
    Names,
    /// Columns are taken by position.
    Skip,
}

/// The options of a file source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSourceOptions {
    /// A path or a pattern, as written.
    pub path: String,
    pub format: Format,
    pub follow: bool,
    pub header: Header,
    pub delimiter: u8,
    pub null: String,
    pub on_error: OnError,
    /// As written.
    pub poll_interval: Option<Duration>,
    pub s3: S3Options,
}

const FORMATS: &[(&str, Format)] = &[
    ("csv", Format::Csv),
    ("json", Format::Json),
    ("ndjson", Format::Json),
    ("jsonl", Format::Json),
    ("parquet", Format::Parquet),
];

impl FileSourceOptions {
    /// Errors: `42704` unknown option, `22023` missing option or wrong value.
    pub fn read(options: &Options) -> Result<FileSourceOptions> {
        let reader = OptionReader::new("source connector \"file\"", options, SOURCE_OPTIONS)?;
        let format = reader.one_of("format", FORMATS)?;
        only_for_csv(&reader, format, &["header", "delimiter", "null"])?;
        let header = match reader.text("header").to_ascii_lowercase().as_str() {
            "skip" => Header::Skip,
            _ if reader.boolean("header")? => Header::Names,
            _ => Header::None,
        };
        let follow = reader.boolean("follow")?;
        Ok(FileSourceOptions {
            path: reader.text("path").into(),
            format,
            follow,
            header,
            delimiter: reader.ascii_char("delimiter")?,
            null: null_text(&reader)?,
            on_error: reader.one_of("on_error", &[("stop", OnError::Stop), ("skip", OnError::Skip)])?,
            poll_interval: reader.given("poll_interval").map(|_| reader.duration("poll_interval")).transpose()?,
            s3: s3_options(&reader)?,
        })
    }
}

fn s3_options(reader: &OptionReader<'_>) -> Result<S3Options> {
    let text = |name: &str| reader.given(name).filter(|v| !v.is_empty()).map(str::to_string);
    let options = S3Options {
        endpoint: text("s3.endpoint"),
        region: text("s3.region"),
        access_key_id: text("s3.access_key_id"),
        secret_access_key: text("s3.secret_access_key"),
        allow_http: reader.given("s3.allow_http").map(|_| reader.boolean("s3.allow_http")).transpose()?,
    };
    if options != S3Options::default() && !reader.text("path").starts_with("s3://") {
        return Err(Error::new(
            SqlState::InvalidParameterValue,
            "the options s3.… are only for a path that begins with s3://",
        )
        .with_detail(format!("The path is '{}'.", reader.text("path"))));
    }
    Ok(options)
}

/// What a file sink writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkMode {
    /// One line for each added row.
    Append,
    /// One line for each change, with `op` and `epoch`.
    Changes,
    /// The whole result, replaced atomically.
    Snapshot,
}

/// The options of a file sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSinkOptions {
    pub path: PathBuf,
    pub format: Format,
    /// As written; see [`mode_for`](Self::mode_for).
    pub mode: Option<SinkMode>,
    pub header: bool,
    pub delimiter: u8,
    pub null: String,
    pub flush_interval: Duration,
    /// The word after FORMAT; only PLAIN has modes.
    pub form: RowForm,
    pub primary_key: Option<String>,
    /// For exactly-once delivery: `path` is a folder.
    pub folder: Option<FolderOptions>,
}

/// What says how files come into a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderOptions {
    /// Names of columns, as written.
    pub partition_by: Option<String>,
    pub roll_bytes: u64,
    pub roll_interval: Duration,
    pub s3: S3Options,
}

impl FileSinkOptions {
    /// Errors: `42704` unknown option, `22023` missing option or wrong value.
    pub fn read(options: &Options) -> Result<FileSinkOptions> {
        let reader = OptionReader::with_forms("sink connector \"file\"", options, SINK_OPTIONS)?;
        let form = options.form();
        let format = reader.one_of("format", FORMATS)?;
        let deliveries = [("rewritten", false), ("exactly_once", true)];
        let folder = match reader.one_of(DELIVERY, &deliveries)? {
            true => Some(FolderOptions::read(&reader, form)?),
            false => {
                refuse_what_needs_a_folder(&reader, format)?;
                None
            }
        };
        if format == Format::Parquet && form != RowForm::Plain {
            return Err(Error::unsupported(format!("FORMAT {} ENCODE PARQUET is not supported", form.keyword()))
                .with_hint(format!("Use FORMAT PLAIN ENCODE PARQUET or FORMAT {} ENCODE JSON.", form.keyword())));
        }
        only_for_csv(&reader, format, &["header", "delimiter", "null"])?;
        let modes = [("append", SinkMode::Append), ("changes", SinkMode::Changes), ("snapshot", SinkMode::Snapshot)];
        let mode = match reader.given("mode") {
            Some(_) if form != RowForm::Plain => {
                return Err(Error::new(
                    SqlState::InvalidParameterValue,
                    format!("option \"mode\" is only for FORMAT PLAIN, not for FORMAT {}", form.keyword()),
                )
                .with_hint("Leave the option out: the format says what is written."));
            }
            Some(_) => Some(reader.one_of("mode", &modes)?),
            None => None,
        };
        if folder.is_some() && mode == Some(SinkMode::Snapshot) {
            return Err(Error::unsupported("a file sink in mode 'snapshot' does not deliver exactly once")
                .with_detail("Exactly once delivers files that are never changed again; a snapshot is replaced.")
                .with_hint("Use mode = 'changes', FORMAT UPSERT or FORMAT DEBEZIUM, or delivery = 'rewritten'."));
        }
        Ok(FileSinkOptions {
            path: PathBuf::from(reader.text("path")),
            format,
            mode,
            header: reader.boolean("header")?,
            delimiter: reader.ascii_char("delimiter")?,
            null: null_text(&reader)?,
            flush_interval: reader.duration("flush_interval")?,
            form,
            primary_key: primary_key(&reader, form)?.map(str::to_string),
            folder,
        })
    }

    pub fn delivery(&self) -> Delivery {
        if self.folder.is_some() { Delivery::ExactlyOnce } else { Delivery::Rewritten }
    }

    /// The mode for input of which rows are only added, or also taken away. Errors: `0A000` for a mode that only adds over rows
    /// that are taken away.
    pub fn mode_for(&self, append_only: bool) -> Result<SinkMode> {
        match self.mode {
            None | Some(SinkMode::Append) if !append_only && self.folder.is_some() => {
                Err(Error::unsupported("a file sink that adds rows to a folder cannot take rows away")
                    .with_detail("Rows of the sink's input change or disappear.")
                    .with_hint("Use mode = 'changes' for a log of changes, or FORMAT UPSERT or FORMAT DEBEZIUM."))
            }
            Some(SinkMode::Append) if !append_only => {
                Err(Error::unsupported("a file sink in mode 'append' cannot take rows away")
                    .with_detail("Rows of the sink's input change or disappear.")
                    .with_hint(
                        "Use mode = 'snapshot' for the current result, or mode = 'changes' for a log of changes.",
                    ))
            }
            Some(mode) => Ok(mode),
            None if append_only => Ok(SinkMode::Append),
            None => Ok(SinkMode::Snapshot),
        }
    }
}

impl FolderOptions {
    fn read(reader: &OptionReader<'_>, form: RowForm) -> Result<FolderOptions> {
        if reader.given("flush_interval").is_some() {
            return Err(Error::new(
                SqlState::InvalidParameterValue,
                "option \"flush_interval\" is not for delivery = 'exactly_once'",
            )
            .with_hint("Leave the option out: files are published by checkpoints."));
        }
        if reader.given(PARTITION_BY).is_some() && form != RowForm::Plain {
            return Err(Error::new(
                SqlState::InvalidParameterValue,
                format!("option \"{PARTITION_BY}\" is only for FORMAT PLAIN, not for FORMAT {}", form.keyword()),
            )
            .with_detail("The changes of a key must stay in the order of the files.")
            .with_hint("Leave the option out, or use FORMAT PLAIN."));
        }
        Ok(FolderOptions {
            partition_by: reader.given(PARTITION_BY).map(str::to_string),
            roll_bytes: reader.bytes(ROLL_SIZE, 1 << 10, ROLL_BYTES_MAX)?,
            roll_interval: reader.duration(ROLL_INTERVAL)?,
            s3: s3_options(reader)?,
        })
    }
}

/// Errors: `22023`, `0A000` for what one file does not have.
fn refuse_what_needs_a_folder(reader: &OptionReader<'_>, format: Format) -> Result<()> {
    let hint = "Add delivery = 'exactly_once' to write files into a folder.";
    if format == Format::Parquet {
        return Err(Error::unsupported("a file sink that is written anew does not write Parquet")
            .with_hint("Add delivery = 'exactly_once', or use format = 'csv' or format = 'json'."));
    }
    if reader.text("path").starts_with("s3://") {
        return Err(Error::unsupported("a file sink that is written anew does not write objects").with_hint(hint));
    }
    let only = [PARTITION_BY, ROLL_SIZE, ROLL_INTERVAL];
    match only.into_iter().find(|name| reader.given(name).is_some()) {
        Some(name) => Err(Error::new(
            SqlState::InvalidParameterValue,
            format!("option \"{name}\" is only for delivery = 'exactly_once'"),
        )
        .with_hint(hint)),
        None => s3_options(reader).map(drop),
    }
}

fn only_for_csv(reader: &OptionReader<'_>, format: Format, names: &[&str]) -> Result<()> {
    match names.iter().find(|name| format != Format::Csv && reader.given(name).is_some()) {
        Some(name) => Err(reader.invalid(name).with_detail("The option is only for the format csv.")),
        None => Ok(()),
    }
}

/// The null text: nothing that a field without quotes could not be.
fn null_text(reader: &OptionReader<'_>) -> Result<String> {
    let null = reader.text("null");
    let delimiter = reader.ascii_char("delimiter")?;
    if null.bytes().any(|b| b == delimiter || matches!(b, b'"' | b'\n' | b'\r' | 0)) {
        return Err(reader.invalid("null").with_detail("It must not hold the delimiter, a quote or a line end."));
    }
    Ok(null.into())
}
