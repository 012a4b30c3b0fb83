//! Where data comes in and goes out: sources, sinks, and the formats that they share.
//!
//! Reading order: [`options`] reads what stands in `WITH (…)`, [`source`] and [`sink`] are the contracts that every
//! connector fulfils, [`format`] turns bytes into typed columns and back, and then one folder per connector.
//!
//! The law of sources: **the same range of a split always gives the same rows**. Recovery, back-fill of a new view and
//! replay rest on it. The law of sinks: rows are published at the end of an epoch, or by its checkpoint, never in its middle.
//!
//! No clock is read here; whoever drives a sink passes the time.

pub mod options;
pub mod sink;
pub mod source;

pub mod format;
pub mod include;

mod random;

pub mod blackhole;
pub mod datagen;
pub mod file;
pub mod nexmark;
pub mod stdout;

pub use include::Include;
pub use options::{OptionSpec, Options};
pub use sink::{Delivery, SinkConnector, SinkRequest, SinkWriter};
pub use source::{
    BadRecord, Offset, OnError, Progress, ReadOutcome, ReadState, Source, SourceConnector, SourceReader, Split,
};

use flow::{Error, Result, SqlState};

static SOURCES: &[&dyn SourceConnector] =
    &[&file::FileConnector, &nexmark::NexmarkConnector, &datagen::DatagenConnector];
static SINKS: &[&dyn SinkConnector] = &[&file::FileConnector, &stdout::StdoutConnector, &blackhole::BlackholeConnector];

/// The source connector of this name, as in `WITH (connector = '…')`. Errors: `42704` with the names that exist.
pub fn source(name: &str) -> Result<&'static dyn SourceConnector> {
    let known = SOURCES.iter().copied().find(|c| c.name().eq_ignore_ascii_case(name));
    known.ok_or_else(|| unknown_connector("source", name, SOURCES.iter().map(|c| c.name())))
}

/// The sink connector of this name, as in `WITH (connector = '…')`. Errors: `42704` with the names that exist.
pub fn sink(name: &str) -> Result<&'static dyn SinkConnector> {
    let known = SINKS.iter().copied().find(|c| c.name().eq_ignore_ascii_case(name));
    known.ok_or_else(|| unknown_connector("sink", name, SINKS.iter().map(|c| c.name())))
}

fn unknown_connector(role: &str, name: &str, known: impl Iterator<Item = &'static str>) -> Error {
    let known: Vec<&str> = known.collect();
    let error = Error::new(SqlState::UndefinedObject, format!("{role} connector \"{name}\" does not exist"))
        .with_detail(format!("The {role} connectors are: {}.", known.join(", ")));
    match options::nearest(name, known.iter().copied()) {
        Some(near) => error.with_hint(format!("Perhaps you meant connector = '{near}'.")),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_unknown_connector_is_refused_with_the_nearest_name() {
        assert_eq!(super::source("FILE").unwrap().name(), "file");
        assert_eq!(super::sink("blackhole").unwrap().name(), "blackhole");
        let e = super::source("fiel").err().unwrap();
        assert_eq!(e.state().code(), "42704");
        assert_eq!(e.hint(), Some("Perhaps you meant connector = 'file'."));
        assert!(super::source("blackhole").is_err());
    }
}
