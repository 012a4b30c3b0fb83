//! The options of the connector `file`, read and checked.

use std::path::PathBuf;
use std::time::Duration;

use flow::{Error, Result, SqlState};

use crate::format::Format;
use crate::format::records::{PRIMARY_KEY, primary_key};
use crate::options::{OptionReader, OptionSpec, Options, RowForm};
use crate::source::OnError;

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
    spec("path", "a path", None, true, "The file to read; a relative path starts at the server's working directory."),
    spec("format", "csv, json", None, true, "CSV, or one JSON object a line; also written ENCODE CSV or ENCODE JSON."),
    spec("follow", "true, false", Some("false"), false, "Whether to wait for more lines at the end of the file."),
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
    spec("poll_interval", "a time from 1ms to 24h", Some("100ms"), false, "How often a followed file is looked at."),
];

/// The options of a file sink, as documented in `docs/connectors/file.md`.
pub static SINK_OPTIONS: &[OptionSpec] = &[
    spec("connector", "file", None, true, "Chooses this connector."),
    spec(
        "path",
        "a path",
        None,
        true,
        "The file to write; what it holds is lost. A relative path starts at the server's working directory.",
    ),
    spec("format", "csv, json", None, true, "CSV, or one JSON object a line; also written ENCODE CSV or ENCODE JSON."),
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
];

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
    pub path: PathBuf,
    pub format: Format,
    pub follow: bool,
    pub header: Header,
    pub delimiter: u8,
    pub null: String,
    pub on_error: OnError,
    pub poll_interval: Duration,
}

const FORMATS: &[(&str, Format)] =
    &[("csv", Format::Csv), ("json", Format::Json), ("ndjson", Format::Json), ("jsonl", Format::Json)];

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
            path: PathBuf::from(reader.text("path")),
            format,
            follow,
            header,
            delimiter: reader.ascii_char("delimiter")?,
            null: null_text(&reader)?,
            on_error: reader.one_of("on_error", &[("stop", OnError::Stop), ("skip", OnError::Skip)])?,
            poll_interval: reader.duration("poll_interval")?,
        })
    }
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
}

impl FileSinkOptions {
    /// Errors: `42704` unknown option, `22023` missing option or wrong value.
    pub fn read(options: &Options) -> Result<FileSinkOptions> {
        let reader = OptionReader::with_forms("sink connector \"file\"", options, SINK_OPTIONS)?;
        let form = options.form();
        let format = reader.one_of("format", FORMATS)?;
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
        })
    }

    /// The mode for input of which rows are only added, or also taken away. Errors: `0A000` for mode `append` over rows that
    /// are taken away.
    pub fn mode_for(&self, append_only: bool) -> Result<SinkMode> {
        match self.mode {
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
