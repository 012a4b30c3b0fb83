//! The options of the connector `nexmark`, read and checked.

use flow::{Error, Result, SqlState};

use crate::format::temporal;
use crate::options::{OptionReader, OptionSpec, Options};

use super::events::{EVENTS_MAX, Kind, Stream};

/// The options of a nexmark source, as documented in `docs/connectors/nexmark.md`.
pub static OPTIONS: &[OptionSpec] = &[
    spec("connector", "nexmark", None, true, "Chooses this connector."),
    spec("table", "person, auction, bid", None, true, "Which of the three kinds of events are the rows."),
    spec(
        "events",
        "a number from 1 to 1000000000000",
        None,
        false,
        "Events of all three kinds together, after which the source ends. Without it: no end.",
    ),
    spec(
        "rate",
        "a number from 1 to 1000000000",
        None,
        false,
        "Events of all three kinds a second. Without it: as fast as they are taken.",
    ),
    spec(
        "event_rate",
        "a number from 1 to 1000000000",
        Some("10000"),
        false,
        "Events of all three kinds in one second of event time.",
    ),
    spec("start_time", "a timestamp", Some("2015-07-15 00:00:00"), false, "Event time of the first event."),
    spec(
        "splits",
        "a number from 1 to 256",
        Some("1"),
        false,
        "Splits of the source, read side by side by as many threads as there are slots; the rows are the same for any.",
    ),
    spec(
        "full_rows",
        "true, false",
        Some("false"),
        false,
        "Whether to make every column of a row, also those that nobody reads; for measurements.",
    ),
    spec("seed", "a number from 0 to 18446744073709551615", Some("0"), false, "Another seed gives other rows."),
    spec(
        "disorder",
        "a number from 1 to 1000000",
        Some("1"),
        false,
        "Event times are shuffled within groups of so many events; 1 keeps them in order.",
    ),
];

const fn spec(
    name: &'static str,
    values: &'static str,
    default: Option<&'static str>,
    required: bool,
    meaning: &'static str,
) -> OptionSpec {
    OptionSpec { name, values, default, required, meaning }
}

/// The options of a nexmark source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NexmarkOptions {
    pub kind: Kind,
    pub stream: Stream,
    /// Events after which the source ends; `None`: never.
    pub events: Option<u64>,
    /// Events a second of real time.
    pub rate: Option<u64>,
    pub splits: u64,
    /// Whether columns that nobody reads are made and thrown away.
    pub full_rows: bool,
}

impl NexmarkOptions {
    /// Errors: `42704` unknown option, `22023` missing option or wrong value.
    pub fn read(options: &Options) -> Result<NexmarkOptions> {
        let reader = OptionReader::new("source connector \"nexmark\"", options, OPTIONS)?;
        let kinds = [("person", Kind::Person), ("auction", Kind::Auction), ("bid", Kind::Bid)];
        let given = |name: &str, least, most| match reader.given(name) {
            Some(_) => reader.number(name, least, most).map(Some),
            None => Ok(None),
        };
        let start_us = temporal::timestamp(reader.text("start_time").as_bytes());
        Ok(NexmarkOptions {
            kind: reader.one_of("table", &kinds)?,
            events: given("events", 1, EVENTS_MAX)?,
            rate: given("rate", 1, RATE_MAX)?,
            splits: reader.number("splits", 1, SPLITS_MAX)?,
            full_rows: reader.boolean("full_rows")?,
            stream: Stream {
                seed: reader.number("seed", 0, u64::MAX)?,
                event_rate: reader.number("event_rate", 1, RATE_MAX)?,
                start_us: start_us.map_err(|_| reader.invalid("start_time"))?,
                disorder: reader.number("disorder", 1, 1_000_000)?,
            },
        })
    }
}

const RATE_MAX: u64 = 1_000_000_000;
const SPLITS_MAX: u64 = 256;

/// `42703`: a declared column that the table does not have.
pub(super) fn no_such_column(kind: Kind, column: &str) -> Error {
    let names: Vec<&str> = kind.columns().iter().map(|(name, _)| *name).collect();
    let error = Error::new(
        SqlState::UndefinedColumn,
        format!("the nexmark table \"{}\" has no column \"{column}\"", kind.name()),
    )
    .with_detail(format!("Its columns are: {}.", names.join(", ")));
    match crate::options::nearest(column, names.iter().copied()) {
        Some(near) => error.with_hint(format!("Perhaps you meant \"{near}\".")),
        None => error.with_hint("Leave the columns out to get all of them."),
    }
}
