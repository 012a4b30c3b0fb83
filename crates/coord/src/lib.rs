//! The coordinator: catalog and tables, the epoch clock and the jobs it drives, sources and sinks, and SQL sessions on top.
//!
//! A statement's journey: [`session`] parses and plans it (crate `sql`), a SELECT pins the newest completed epoch and runs
//! in crate `query`; a write collects a [`table::WriteSet`], which joins the open epoch of the [`clock`]; DDL changes the
//! catalog through the [`engine`] and deploys or removes jobs. The clock's event loop is the only place that talks to
//! the slots' control side; [`backfill`], [`sources`] and [`sinks`] work around it; [`execution`] says on which thread.
//!
//! No network here: slots are behind `runtime::Worker`, whose messages are serialisable.

pub mod backfill;
pub mod checkpoints;
pub mod clock;
pub mod compaction;
pub mod connectors;
mod driver;
pub mod engine;
pub mod execution;
pub mod gate;
pub mod history;
pub mod into_table;
pub mod job;
pub mod locks;
pub mod record;
pub mod recovery;
pub mod session;
pub mod sessions;
pub mod sides;
pub mod sinks;
pub mod sources;
pub mod stalls;
pub mod status;
pub mod subscriptions;
pub mod table;
mod tidy;
pub mod time;
pub mod waiting;

pub use engine::{Engine, EngineConfig};
pub use session::Session;
pub use time::Time;
