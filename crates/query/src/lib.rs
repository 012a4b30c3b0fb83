//! Ad-hoc SELECT and the reading half of DML: table plans run by DataFusion at one epoch of everything they touch.
//!
//! [`read`] connects DataFusion's scans to the snapshots that a statement pinned; [`point`] answers reads by key without
//! DataFusion; [`run`] executes a plan as a stream of batches; [`elsewhere`] lets other processes work on the rows that they
//! have, and [`work`] is how they are told and do it; [`system`] is `pg_catalog` and its kin.

pub mod elsewhere;
pub mod point;
pub mod read;
pub mod run;
pub mod system;
pub mod work;

pub use point::PointRead;
pub use read::{ReadView, RelationRows, relation_provider};
pub use run::{base_state, collect, execute, execute_optimized, explain_elsewhere, measure, optimize, statement_state};
