//! Ad-hoc SELECT and the reading half of DML: table plans run by DataFusion at one epoch of everything they touch.
//!
//! [`read`] connects DataFusion's scans to the snapshots that a statement pinned; [`point`] answers reads by key without
//! DataFusion; [`run`] executes a plan as a stream of batches; [`system`] is `pg_catalog` and its kin.

pub mod point;
pub mod read;
pub mod run;
pub mod system;

pub use point::PointRead;
pub use read::{ReadView, RelationRows, relation_provider};
pub use run::{base_state, collect, execute, execute_optimized, optimize, statement_state};
