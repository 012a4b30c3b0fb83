//! SQL text to statements and table plans.
//!
//! ```text
//! text ── parse ──▶ Parsed { statement, text, position }     limits checked, syntax errors as Postgres words them
//!   statement ── Planner::query ──▶ QueryPlan                 names bound through a Resolver, types coerced
//!             ── Planner::insert/update/delete ──▶ …Plan      rows to add and to take away
//!   QueryPlan ── bind(values) ──▶ LogicalPlan                 runs in a session_state, or is lowered by `plan`
//! ```
//!
//! A journey: the frontend [`parse`]s what a client sent. For DDL the [`Statement`] says everything; a view's query is
//! planned with [`Settings::standing`] to check it and learn its columns ([`QueryPlan::view_columns`]), and stored as
//! [`definition::qualify`] writes it, with relations by id. An ad-hoc query is planned with [`Settings::at`] the time of
//! its transaction, bound to its parameters and executed in a [`session_state`]. Both kinds of plan use the functions and
//! the analyser of `plan::functions`, so the same text gives the same rows.
//!
//! The crate reads no clock and no network; the time is an argument. Deep statements need a deep stack: parsing and
//! planning provide it themselves, and whoever optimises, executes or drops a plan does so inside [`with_large_stack`].

pub mod statement;

pub mod limits;

pub mod parser;

pub mod names;
pub mod types;

pub mod resolver;

pub mod planner;

pub mod dml;

pub mod definition;

pub mod session;

pub mod walk;
mod windows;

mod clock;
mod constant;
mod context;
mod dialect;
mod forms;
mod limit;
mod locate;
mod merged;
mod origin;
mod rewrite;
mod rows;
mod scopes;

pub use dml::{ConflictPlan, ConflictUpdatePlan, DeletePlan, InsertPlan, Joined, Returning, UpdatePlan};
pub use limits::{Limits, with_large_stack};
pub use parser::{parse, parse_expr, parse_query};
pub use planner::{Planner, QueryPlan, Settings};
pub use resolver::{Column, Content, Relation, RelationKind, Resolver};
pub use session::session_state;
pub use statement::{Name, Parsed, Statement};

#[cfg(test)]
mod tests;
