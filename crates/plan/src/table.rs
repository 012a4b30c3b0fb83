//! The table plan: which DataFusion optimiser rules run, and what a relation looks like to them.
//!
//! A table plan is a DataFusion `LogicalPlan`, the same for bounded and unbounded input. [`optimize`] runs those logical
//! rules that are right for standing queries: they may not fold the clock into a constant, may not rely on an input
//! that ends, and may leave only operators that [`crate::stream::lower`] knows.

mod keys;
mod optimize;
mod relation;
mod unnest;

pub use keys::{DropRepeated, ForgetKeys};
pub use optimize::optimize;
pub use relation::{RelationProvider, RelationReader, RelationSource, relation_of};
pub use unnest::UnnestSubqueries;
