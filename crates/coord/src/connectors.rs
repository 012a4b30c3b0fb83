//! From what the catalog stores of a connector to the connector itself.

use arrow::datatypes::SchemaRef;
use catalog::Connector;
use connect::options::{OptionReader, OptionSpec};
use connect::{Options, SinkRequest, SinkWriter, Source};
use flow::{Error, Result, SqlState};

fn name(connector: &Connector) -> Result<&str> {
    connector.name().ok_or_else(|| {
        Error::new(SqlState::InvalidParameterValue, "option \"connector\" is missing")
            .with_hint("Add connector = 'file' to WITH (…).")
    })
}

/// The options of `WITH` together with those of `FORMAT … ENCODE …`.
pub fn options(connector: &Connector) -> Result<Options> {
    let options = Options::new(&connector.options)?;
    match &connector.format {
        None => Ok(options),
        Some(format) => options.with_encode(&format.format, &format.encode, &format.options),
    }
}

/// The options of `WITH (…)` that belong to the watermark and not to the connector.
static WATERMARK_OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "idle_timeout",
        values: "a time from 1ms to 24h",
        default: None,
        required: false,
        meaning: "After so long without rows a split does not hold the watermark back.",
    },
    OptionSpec {
        name: "allowed_lateness",
        values: "a time from 1ms to 24h",
        default: None,
        required: false,
        meaning: "Rows that are so little behind the watermark are not late yet.",
    },
];

/// Takes the options of the watermark out of `options`: (idle timeout, allowed lateness) in microseconds.
pub fn take_watermark_options(options: &mut Vec<(String, String)>) -> Result<(Option<i64>, Option<i64>)> {
    let is_own = |name: &str| WATERMARK_OPTIONS.iter().any(|spec| spec.name == name);
    let own = Options::new(options.iter().filter(|(name, _)| is_own(name)).map(|(k, v)| (k, v)))?;
    options.retain(|(name, _)| !is_own(name));
    let reader = OptionReader::new("a watermark", &own, WATERMARK_OPTIONS)?;
    let given = |name: &str| -> Result<Option<i64>> {
        reader.given(name).map(|_| reader.duration(name)).transpose().map(|d| d.map(|d| d.as_micros() as i64))
    };
    Ok((given("idle_timeout")?, given("allowed_lateness")?))
}

/// The options of `CREATE MATERIALIZED VIEW … WITH (…)`.
static VIEW_OPTIONS: &[OptionSpec] = &[OptionSpec {
    name: "change_retention",
    values: "0, or a time from 1ms to 24h",
    default: Some("0"),
    required: false,
    meaning: "For so long changes are kept for SUBSCRIBE … AS OF EPOCH.",
}];

/// The change retention of a materialized view in microseconds.
pub fn view_options(options: &[(String, String)]) -> Result<Option<i64>> {
    let options = Options::new(options.iter().map(|(k, v)| (k, v)))?;
    let reader = OptionReader::new("a materialized view", &options, VIEW_OPTIONS)?;
    match reader.text("change_retention").trim() {
        "0" | "0s" => Ok(None),
        _ => Ok(Some(reader.duration("change_retention")?.as_micros() as i64)),
    }
}

/// The options of a materialized view as they are written.
pub fn view_option_texts(query: &catalog::Query) -> Vec<(String, String)> {
    let text = |us: i64| ("change_retention".to_string(), format!("{} ms", us / 1_000));
    query.change_retention_us.map(text).into_iter().collect()
}

/// The options of a watermark as they are written.
pub fn watermark_options(watermark: &catalog::Watermark) -> Vec<(String, String)> {
    let text = |name: &str, us: i64| (name.to_string(), format!("{} ms", us / 1_000));
    let lateness = (watermark.allowed_lateness_us > 0).then_some(watermark.allowed_lateness_us);
    let idle = watermark.idle_timeout_us.map(|us| text("idle_timeout", us));
    idle.into_iter().chain(lateness.map(|us| text("allowed_lateness", us))).collect()
}

/// Opens a source, checking everything that can be checked.
pub fn open_source(connector: &Connector, schema: &SchemaRef) -> Result<Box<dyn Source>> {
    connect::source(name(connector)?)?.open(&options(connector)?, schema)
}

/// The columns of a source that was declared without any.
pub fn infer_source(connector: &Connector) -> Result<SchemaRef> {
    /// Records that are looked at.
    const SAMPLE_ROWS: usize = 1000;
    connect::source(name(connector)?)?.infer_schema(&options(connector)?, SAMPLE_ROWS)
}

/// Checks a sink's options without touching its target.
pub fn check_sink(connector: &Connector, schema: SchemaRef, append_only: bool) -> Result<()> {
    let options = options(connector)?;
    connect::sink(name(connector)?)?.validate(&SinkRequest { options: &options, schema, append_only })
}

/// Opens a sink for writing from nothing.
pub fn open_sink(connector: &Connector, schema: SchemaRef, append_only: bool) -> Result<Box<dyn SinkWriter>> {
    let options = options(connector)?;
    connect::sink(name(connector)?)?.open(&SinkRequest { options: &options, schema, append_only })
}
