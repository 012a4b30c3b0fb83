//! EXPLAIN texts of the three layers.
//!
//! The texts are indented trees, the result on top. On a stream edge `[…]` gives what is known of it: how it changes, its
//! unique keys, where its rows lie. A process plan lists its tasks in the order of ids, each with its inputs, how rows
//! come to it, and what it keeps.

mod process;
mod stream;

use datafusion::logical_expr::LogicalPlan;

pub use process::{process, process_dot, process_json};
pub use stream::{stream, stream_dot, stream_json};

/// The table plan as an indented tree.
pub fn table(plan: &LogicalPlan) -> String {
    plan.display_indent().to_string()
}

/// The table plan in Graphviz's language.
pub fn table_dot(plan: &LogicalPlan) -> String {
    plan.display_graphviz().to_string()
}

/// The table plan as JSON, in the form of PostgreSQL's `EXPLAIN (FORMAT JSON)`.
pub fn table_json(plan: &LogicalPlan) -> String {
    plan.display_pg_json().to_string()
}

/// `text` as a Graphviz string.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
