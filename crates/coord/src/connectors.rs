//! From what the catalog stores of a connector to the connector itself.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use catalog::{Catalog, Connector, Definition, Relation, Sink, SinkInput};
use checkpoint::CommitPermit;
use connect::options::{OptionReader, OptionSpec, RowForm, nearest};
use connect::sink::Delivery;
use connect::{Include, Options, SinkRequest, SinkWriter, Source};
use flow::{Error, Result, SqlState};
use tokio::runtime::{Handle, RuntimeFlavor};

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

/// The option of `WITH (…)` that says how fast a source is read, whatever its connector.
static RATE_OPTIONS: &[OptionSpec] = &[OptionSpec {
    name: RATE_LIMIT,
    values: "a number from 1 to 1000000000",
    default: None,
    required: false,
    meaning: "Rows a second that are read at most.",
}];

pub const RATE_LIMIT: &str = "rate_limit";

/// Takes the rate limit out of `options`. Errors: `22023` for what is no rate.
pub fn take_rate_limit(options: &mut Vec<(String, String)>) -> Result<Option<u64>> {
    let own = Options::new(options.iter().filter(|(name, _)| name == RATE_LIMIT).map(|(k, v)| (k, v)))?;
    options.retain(|(name, _)| name != RATE_LIMIT);
    let reader = OptionReader::new("a source", &own, RATE_OPTIONS)?;
    reader.given(RATE_LIMIT).map(|_| reader.number(RATE_LIMIT, 1, 1_000_000_000)).transpose()
}

/// Refuses an option that nobody knows and that is nearly one of those that every source takes. Those have been taken out.
fn refuse_nearly_common(connector: &Connector, own: &[OptionSpec]) -> Result<()> {
    let common = || RATE_OPTIONS.iter().chain(WATERMARK_OPTIONS).map(|spec| spec.name);
    for given in connector.options.keys() {
        let known = own.iter().any(|spec| spec.name.eq_ignore_ascii_case(given));
        if known || nearest(given, own.iter().map(|spec| spec.name)).is_some() {
            continue;
        }
        if let Some(near) = nearest(given, common()) {
            return Err(Error::new(SqlState::UndefinedObject, format!("a source has no option \"{given}\""))
                .with_detail(format!("Every source takes: {}.", common().collect::<Vec<_>>().join(", ")))
                .with_hint(format!("Perhaps you meant \"{near}\".")));
        }
    }
    Ok(())
}

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
static VIEW_OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "change_retention",
        values: "0, or a time from 1ms to 24h",
        default: Some("0"),
        required: false,
        meaning: "For so long changes are kept for SUBSCRIBE … AS OF EPOCH.",
    },
    PARALLELISM,
];

const PARALLELISM: OptionSpec = OptionSpec {
    name: "parallelism",
    values: "a number from 1 to that of the slots",
    default: None,
    required: false,
    meaning: "Over so many slots the query is computed; without it over all of them.",
};

static PARALLELISM_OPTIONS: &[OptionSpec] = &[PARALLELISM];

/// Sets what the options of a materialized view say: how long its changes are kept, and its parallelism.
pub fn set_view_options(query: &mut catalog::Query, options: &[(String, String)]) -> Result<()> {
    let options = Options::new(options.iter().map(|(k, v)| (k, v)))?;
    let reader = OptionReader::new("a materialized view", &options, VIEW_OPTIONS)?;
    query.change_retention_us = match reader.text("change_retention").trim() {
        "0" | "0s" => None,
        _ => Some(reader.duration("change_retention")?.as_micros() as i64),
    };
    query.parallelism = parallelism(&reader)?;
    Ok(())
}

fn parallelism(reader: &OptionReader<'_>) -> Result<Option<u32>> {
    let given = reader.given(PARALLELISM.name).map(|_| reader.number(PARALLELISM.name, 1, u64::from(u32::MAX)));
    Ok(given.transpose()?.map(|n| n as u32))
}

/// Takes the parallelism out of the options of a sink; the others are its connector's.
pub fn take_parallelism(options: &mut Vec<(String, String)>) -> Result<Option<u32>> {
    let own = Options::new(options.iter().filter(|(name, _)| name == PARALLELISM.name).map(|(k, v)| (k, v)))?;
    options.retain(|(name, _)| name != PARALLELISM.name);
    parallelism(&OptionReader::new("a sink", &own, PARALLELISM_OPTIONS)?)
}

/// The options of a materialized view as they are written.
pub fn view_option_texts(query: &catalog::Query) -> Vec<(String, String)> {
    let text = |us: i64| ("change_retention".to_string(), format!("{} ms", us / 1_000));
    query.change_retention_us.map(text).into_iter().chain(parallelism_text(query.parallelism)).collect()
}

/// A parallelism as an option is written.
pub fn parallelism_text(parallelism: Option<u32>) -> Option<(String, String)> {
    parallelism.map(|n| (PARALLELISM.name.to_string(), n.to_string()))
}

/// The options of a watermark as they are written.
pub fn watermark_options(watermark: &catalog::Watermark) -> Vec<(String, String)> {
    let text = |name: &str, us: i64| (name.to_string(), format!("{} ms", us / 1_000));
    let lateness = (watermark.allowed_lateness_us > 0).then_some(watermark.allowed_lateness_us);
    let idle = watermark.idle_timeout_us.map(|us| text("idle_timeout", us));
    idle.into_iter().chain(lateness.map(|us| text("allowed_lateness", us))).collect()
}

/// Runs what may wait for a disk or a network: other tasks of this thread go on elsewhere meanwhile.
fn waiting<R>(work: impl FnOnce() -> R) -> R {
    match Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread) {
        true => tokio::task::block_in_place(work),
        false => work(),
    }
}

/// What a word after INCLUDE means to the connector.
pub fn include_of(connector: &Connector, word: &str) -> Result<Include> {
    Include::of(word, connect::source(name(connector)?)?)
}

/// Opens a source, checking everything that can be checked. `include`: the words after INCLUDE, for the last columns of
/// `schema`.
pub fn open_source(connector: &Connector, schema: &SchemaRef, include: &[String]) -> Result<Box<dyn Source>> {
    let included = include.iter().map(|word| include_of(connector, word)).collect::<Result<Vec<Include>>>()?;
    let own: Vec<usize> = (0..schema.fields().len().saturating_sub(included.len())).collect();
    let (source, options) = (connect::source(name(connector)?)?, options(connector)?);
    refuse_nearly_common(connector, source.options())?;
    let own = Arc::new(schema.project(&own)?);
    let source = waiting(|| source.open(&options, &own))?;
    connect::include::included(source, &included, schema)
}

/// The columns of a source that was declared without any.
pub fn infer_source(connector: &Connector) -> Result<SchemaRef> {
    /// Records that are looked at.
    const SAMPLE_ROWS: usize = 1000;
    let (source, options) = (connect::source(name(connector)?)?, options(connector)?);
    refuse_nearly_common(connector, source.options())?;
    waiting(|| source.infer_schema(&options, SAMPLE_ROWS))
}

/// Refuses a FORMAT that no source reads.
pub fn check_source_form(connector: &Connector) -> Result<()> {
    let Some(format) = connector.format.as_ref().filter(|f| f.format != RowForm::Plain.keyword()) else {
        return Ok(());
    };
    Err(Error::unsupported(format!("FORMAT {} is not supported for sources", format.format))
        .with_hint("Use FORMAT PLAIN."))
}

/// Refuses a FORMAT or an ENCODE that the sink's connector does not write.
pub fn check_sink_form(connector: &Connector) -> Result<()> {
    let Some(format) = &connector.format else { return Ok(()) };
    let sink = connect::sink(name(connector)?)?;
    let owner = format!("sink connector \"{}\"", sink.name());
    connect::options::check_form(&owner, sink.forms(), &format.format, &format.encode)
}

/// What the rows of a sink come from, as its records name it: the relation that it reads, or the sink itself.
pub fn sink_input(catalog: &Catalog, sink: &Relation) -> String {
    let input = match &sink.definition {
        Definition::Sink(Sink { input: SinkInput::Relation(oid), .. }) => catalog.relation(*oid),
        _ => None,
    };
    input.map_or_else(|| sink.qualified_name(), |input| input.qualified_name())
}

/// What a sink's connector is told of the rows.
pub struct SinkRows<'a> {
    pub schema: SchemaRef,
    pub append_only: bool,
    pub keys: &'a [Vec<usize>],
    /// What the rows come from.
    pub relation: &'a str,
    /// See [`SinkRequest`].
    pub identity: &'a str,
    pub attempt: u64,
}

impl SinkRows<'_> {
    fn request<'a>(&'a self, options: &'a Options) -> SinkRequest<'a> {
        let SinkRows { schema, append_only, keys, relation, identity, attempt } = self;
        let (schema, append_only, attempt) = (SchemaRef::clone(schema), *append_only, *attempt);
        SinkRequest { options, schema, append_only, keys, relation, identity, attempt }
    }
}

/// Checks a sink's options without touching its target.
pub fn check_sink(connector: &Connector, rows: &SinkRows<'_>) -> Result<()> {
    let options = options(connector)?;
    connect::sink(name(connector)?)?.validate(&rows.request(&options))
}

/// Opens a sink for writing from nothing.
pub fn open_sink(connector: &Connector, rows: &SinkRows<'_>) -> Result<Box<dyn SinkWriter>> {
    let options = options(connector)?;
    connect::sink(name(connector)?)?.open(&rows.request(&options))
}

/// What a sink promises.
pub fn delivery(connector: &Connector) -> Result<Delivery> {
    connect::sink(name(connector)?)?.delivery(&options(connector)?)
}

/// Whether a relation is a sink that must not deliver anything again.
pub fn delivers_once(relation: &Relation) -> Result<bool> {
    match &relation.definition {
        Definition::Sink(sink) if sink.into.is_none() => Ok(delivery(&sink.connector)? == Delivery::ExactlyOnce),
        _ => Ok(false),
    }
}

/// Opens a sink that goes on from a checkpoint.
pub fn resume_sink(
    connector: &Connector,
    rows: &SinkRows<'_>,
    permit: &CommitPermit,
    prepared: &[u8],
) -> Result<Box<dyn SinkWriter>> {
    let options = options(connector)?;
    connect::sink(name(connector)?)?.resume(&rows.request(&options), permit, prepared)
}
