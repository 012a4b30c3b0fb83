//! From what the catalog stores of a connector to the connector itself.

use arrow::datatypes::SchemaRef;
use catalog::Connector;
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
