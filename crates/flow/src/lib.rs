//! The shared contract of Millstream: what moves through a dataflow and what it may rely on.
//!
//! Reading order: [`ids`] names things, [`error`] says what went wrong in the words of SQL, [`change`] is what travels on
//! every edge, [`hash`] and [`keys`] decide where a row lives and when two keys are the same, [`process`] is the interface
//! that every operator implements.
//!
//! This crate does no I/O, reads no clock and draws no random numbers.

pub mod change;
pub mod error;
pub mod hash;
pub mod identifier;
pub mod ids;
pub mod keys;
pub mod process;
pub mod wire;

pub use change::{ChangeBatch, Diff};
pub use error::{Error, Result, SqlState};
pub use ids::{Epoch, JobId, RelationId, SlotId, TaskId};
pub use process::{Collector, Declaration, ProcessFunction};
