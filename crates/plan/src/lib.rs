//! The three-layer plan: the narrow waist between SQL text and running operators.
//!
//! ```text
//! table::…  DataFusion LogicalPlan    what to compute            (built by crate `sql`)
//!    │ stream::lower
//! stream::StreamPlan                  change streams with traits (keys, change kind, distribution)
//!    │ process::lower
//! process::ProcessPlan                tasks and exchanges        (run by crate `runtime`)
//! ```
//!
//! A process plan is a versioned, serialisable value: it holds no DataFusion object. Scalar expressions are [`expr::Expr`]
//! trees that a worker binds to physical expressions with [`expr::bind`].

pub mod error;
pub mod expr;
pub mod functions;
pub mod process;
pub mod stream;
pub mod table;

pub mod explain;

pub use expr::Expr;
pub use process::{Exchange, Placed, ProcessPlan, Task, TaskOp};
pub use stream::{ChangeKind, StreamNode, StreamOp, Traits};
