//! The process plan: the tasks of one job, their inputs and exchanges. What runs.

use arrow::datatypes::SchemaRef;
use flow::{JobId, RelationId, TaskId};
use serde::{Deserialize, Serialize};

use crate::expr::Expr;
use crate::stream::{AggCall, ChangeKind, JoinKind, RankKind, SortKey, TimeColumn};

mod lower;

pub use lower::{Terminal, ViewTraits, lower, view_traits};

/// Raised whenever the meaning of a stored or transmitted process plan changes.
pub const PLAN_VERSION: u32 = 4;

/// One job: its tasks in topological order (inputs before readers). The last task is the terminal one
/// ([`TaskOp::Materialize`] or [`TaskOp::Deliver`]). A task may have several readers, and one reader may take it on
/// several ports (a self join).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessPlan {
    pub version: u32,
    pub job: JobId,
    pub tasks: Vec<Task>,
}

/// A process function with its place in the job. Every slot runs one instance of every task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Equal to the task's index in [`ProcessPlan::tasks`].
    pub id: TaskId,
    pub op: TaskOp,
    /// In the order of the function's ports.
    pub inputs: Vec<Input>,
    /// Schema of what the task emits.
    pub schema: SchemaRef,
    /// What the changes that the task emits can be.
    pub change_kind: ChangeKind,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    pub from: TaskId,
    pub exchange: Exchange,
    /// Where the rows lie that come over this input, at any parallelism: state over them is restored by it.
    pub placed: Placed,
}

/// Which slot the rows of an input come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placed {
    /// Any; none of them is taken away again.
    Anywhere,
    /// The one that owns the vnode of these columns of the sender's schema.
    Hash(Vec<usize>),
    /// Slot 0.
    Single,
    /// Every slot has all of them.
    Everywhere,
}

/// How rows get from the slots of one task to the slots of the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exchange {
    /// Stay on the slot: a direct call.
    Forward,
    /// To the slot that owns the vnode of these columns of the *sender's* schema (`flow::hash`).
    Hash(Vec<usize>),
    /// Everything to slot 0.
    Gather,
    /// Everything to every slot.
    Broadcast,
}

/// The process function of a task. Column numbers refer to the (concatenated) input schema.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TaskOp {
    /// Changes of a relation, projected to `columns` of its schema. No inputs; the runtime feeds it.
    Relation {
        relation: RelationId,
        columns: Vec<usize>,
    },
    /// Constant rows, emitted once, by slot 0, in the job's first epoch. `ipc` is one Arrow IPC stream.
    Values {
        ipc: Vec<u8>,
    },
    Project {
        exprs: Vec<Expr>,
    },
    /// Keeps rows for which the predicate is true.
    Filter {
        predicate: Expr,
    },
    /// All inputs, as they come. Schemas are equal.
    Union,
    /// Output: group columns, then one column per call. With no group columns there is one row over all input, present
    /// from the first epoch even without input, made by slot 0 (the input is gathered).
    Aggregate {
        group: Vec<usize>,
        calls: Vec<AggCall>,
        input_kind: ChangeKind,
        /// An output column, one of the group's, by which the watermark says that a group is final and can be forgotten.
        closes: Option<TimeColumn>,
        /// A group comes out once, when it is final; `closes` is set.
        on_close: bool,
    },
    /// The processing time of the epoch, a timestamptz, as a last column of each row.
    ProcessingTime,
    /// Rows that are there while the processing time is at or after every `from` column and before every `until` column, each
    /// plus so many microseconds. A row with NULL in one of them is never there.
    TemporalFilter {
        from: Vec<(usize, i64)>,
        until: Vec<(usize, i64)>,
    },
    /// Sessions of each partition: maximal runs of rows whose times are at most `gap_us` apart. Input is append-only. Output:
    /// the keys, `window_start`, `window_end` (the last time plus the gap), then one column per call.
    Session {
        keys: Vec<usize>,
        time: usize,
        gap_us: i64,
        calls: Vec<AggCall>,
        /// When a session is final, by an output column, its end; `None`: never.
        closes: Option<TimeColumn>,
        /// A session comes out once, when it is final; `closes` is set.
        on_close: bool,
    },
    /// One row for each element of the list in `column`, which gives way to the element; none for NULL or an empty list.
    Unnest {
        column: usize,
    },
    /// Holds each row back until its event time is final, then sends it once.
    EmitOnClose {
        time: TimeColumn,
    },
    /// Inputs: left, right. Output: left columns then right columns; semi and anti joins output left columns only.
    Join {
        kind: JoinKind,
        /// Pairs (left column, right column) of equal types; empty for a cross or pure inequality join.
        on: Vec<(usize, usize)>,
        /// NULL keys match each other (`IS NOT DISTINCT FROM`).
        nulls_equal: bool,
        /// Over left columns ++ right columns; part of the match condition, not a filter after it.
        filter: Option<Expr>,
        left_kind: ChangeKind,
        right_kind: ChangeKind,
        /// Whether the join keys contain a unique key of that side, so that a probe meets at most one row.
        left_unique: bool,
        right_unique: bool,
        /// By side, a column of it by which the watermark says that a row will meet no further row of the other side, so that
        /// it can be forgotten: of the other input, and where the side's own rows can be taken away, of both.
        expires: [Option<TimeColumn>; 2],
        /// `NOT IN (subquery)`: with a NULL on the right nothing qualifies; a NULL left key qualifies only against an
        /// empty right side. Set only with [`JoinKind::LeftAnti`] and exactly one key pair; the right input is broadcast.
        null_aware: bool,
    },
    /// The first rows of each partition. Ties beyond `order` break by the bytes of the whole row.
    TopN {
        partition: Vec<usize>,
        order: Vec<SortKey>,
        offset: u64,
        /// `None`: no upper bound (OFFSET alone).
        limit: Option<u64>,
        rank: RankKind,
        /// Append the rank as a last `Int64`/`UInt64` column of the output schema.
        emit_rank: bool,
        input_kind: ChangeKind,
        /// A column of the partition by which its partition is final and can be forgotten.
        closes: Option<TimeColumn>,
    },
    /// Writes the relation's view store. `key` is a unique key of the rows, if one is known: the store is distributed and
    /// indexed by it; otherwise by the whole row. Emits the epoch's net change for readers downstream.
    Materialize {
        relation: RelationId,
        key: Option<Vec<usize>>,
    },
    /// Hands each epoch's net change to the sink of the job.
    Deliver {
        sink: RelationId,
    },
}
