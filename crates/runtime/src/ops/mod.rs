//! The operators: every [`plan::TaskOp`] that computes, as a [`flow::ProcessFunction`] over whole batches.
//!
//! Laws that all of them keep:
//! * An operator's output of an epoch is exactly `f(input after) − f(input before)`, whatever the order and the batching
//!   of the epoch's changes. Weights may be any non-zero integers, and a deletion may come before its insertion.
//! * At the epoch's end no multiplicity is negative. One that is breaks the contract of the input, and the operator says
//!   so ("changelog violation") instead of carrying on with wrong state.
//! * Work is in proportion to the change: state is reached through indexes and lists of what the epoch touched.
//!
//! Reading order: [`cells`], [`row_table`], [`multiset`] and [`panes`] hold rows, [`emit`] shapes output batches, [`tracked`] keeps what
//! checkpoints are to be told; [`stateless`], [`aggregate`], [`join`] and [`topn`] are the operators; [`consolidate`] nets an epoch's
//! changes by row.

pub(crate) mod cells;
pub(crate) mod emit;
mod multiset;
mod panes;
mod row_table;
pub(crate) mod tracked;

mod aggregate;
mod consolidate;
mod join;
mod stateless;
mod temporal;
mod topn;

pub use consolidate::consolidate;

use arrow::datatypes::SchemaRef;
use flow::{Error, ProcessFunction, Result, SlotId};
use plan::{ChangeKind, Task, TaskOp};

/// Where an instance runs and how large its batches should be.
#[derive(Clone, Copy, Debug)]
pub struct OpContext {
    pub slot: SlotId,
    /// Number of slots of the job.
    pub slots: usize,
    /// Rows per output batch to aim for. Larger batches are split, smaller pieces are put together within an epoch.
    pub batch_rows: usize,
}

impl OpContext {
    pub const BATCH_ROWS: usize = 8192;

    pub fn new(slot: SlotId, slots: usize) -> OpContext {
        OpContext { slot, slots, batch_rows: Self::BATCH_ROWS }
    }
}

/// One instance of `task` for the slot in `ctx`. `inputs` are the schemas of the task's inputs in port order.
///
/// Errors: expressions that do not bind, types that an operator cannot take (`0A000`), and an internal error for the tasks
/// that the runtime carries out itself (relations, materialisation, delivery).
pub fn instantiate(task: &Task, inputs: &[SchemaRef], ctx: &OpContext) -> Result<Box<dyn ProcessFunction>> {
    let input = |port: usize| {
        inputs.get(port).cloned().ok_or_else(|| Error::internal(format!("task {} lacks input {port}", task.id)))
    };
    let schema = task.schema.clone();
    Ok(match &task.op {
        TaskOp::Values { ipc } => Box::new(stateless::Values::new(ipc, schema, ctx)?),
        TaskOp::Project { exprs } => Box::new(stateless::Project::new(exprs, &input(0)?, schema)?),
        TaskOp::Filter { predicate } => Box::new(stateless::Filter::new(predicate, &input(0)?)?),
        TaskOp::Union => Box::new(stateless::Union::new(schema)),
        TaskOp::Unnest { column } => Box::new(stateless::Unnest::new(*column, schema)),
        TaskOp::Aggregate { group, calls, input_kind, closes, on_close } => {
            let closes = aggregate::Closes { time: *closes, emits: *on_close };
            Box::new(aggregate::Aggregate::new(group, calls, *input_kind, closes, &input(0)?, schema, ctx)?)
        }
        TaskOp::ProcessingTime => Box::new(temporal::ProcessingTime::new(input(0)?, schema)),
        TaskOp::TemporalFilter { from, until } => Box::new(temporal::TemporalFilter::new(from, until, &input(0)?, ctx)),
        TaskOp::Session { keys, time, gap_us, calls, closes, on_close } => {
            let (times, ends) = ((*time, *gap_us), aggregate::Closes { time: *closes, emits: *on_close });
            Box::new(aggregate::Session::new(keys, times, calls, ends, &input(0)?, schema, ctx)?)
        }
        TaskOp::EmitOnClose { time } => {
            // What is held may be taken back until it is final.
            Box::new(aggregate::Aggregate::holding(*time, ChangeKind::Retract, &input(0)?, schema, ctx)?)
        }
        TaskOp::Join { .. } => Box::new(join::Join::new(&task.op, &input(0)?, &input(1)?, schema, ctx)?),
        TaskOp::TopN { .. } => Box::new(topn::TopN::new(&task.op, &input(0)?, schema, ctx)?),
        TaskOp::Relation { .. } | TaskOp::Materialize { .. } | TaskOp::Deliver { .. } => {
            return Err(Error::internal(format!("task {} is not an operator", task.id)));
        }
    })
}

/// A row that would be present fewer than zero times at an epoch's end.
fn changelog_violation(what: &str) -> Error {
    Error::internal("changelog violation").with_detail(format!(
        "At the end of the epoch {what} has a negative multiplicity: something was taken away that was never there."
    ))
}

#[cfg(test)]
mod tests;
