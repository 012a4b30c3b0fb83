//! The stream plan: a tree of change-stream operators, each edge with derived traits.
//!
//! [`lower`] makes it from an optimised table plan. Nodes are built only by the constructors in `build`, which derive the
//! traits of the new edge from those of its inputs: `keys` says which columns identify a row, `placement` which slot
//! holds it. Traits hold of the relation at an epoch's end; within an epoch changes come in any order.

use arrow::datatypes::SchemaRef;
use flow::RelationId;
use serde::{Deserialize, Serialize};

use crate::expr::Expr;

mod build;
mod keys;
mod lower;
mod placement;
mod time;
mod types;

pub(crate) use keys::contains_key;
pub use lower::lower;
pub(crate) use placement::placement;
pub use time::TimeColumn;
pub(crate) use time::expiries;
pub use types::{canonical_schema, canonical_type};

/// What the changes on an edge can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// Rows are only ever added.
    AppendOnly,
    /// Rows are added and taken away; every deletion names a row that is present at the epoch's end.
    Retract,
}

/// What is known of an edge, derived bottom-up.
#[derive(Clone, Debug, PartialEq)]
pub struct Traits {
    pub change_kind: ChangeKind,
    /// Column sets that identify a row; the empty set means at most one row. Smallest first.
    pub unique_keys: Vec<Vec<usize>>,
    pub distribution: Distribution,
    /// The input ends (all leaves are bounded).
    pub bounded: bool,
    /// Columns of event time, by column.
    pub times: Vec<TimeColumn>,
}

/// Which slot holds a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Distribution {
    Arbitrary,
    /// The slot that owns the vnode of these columns, in this order.
    Hash(Vec<usize>),
    /// Slot 0.
    Single,
}

/// One operator of the stream plan with its inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamNode {
    pub op: StreamOp,
    pub inputs: Vec<StreamNode>,
    pub schema: SchemaRef,
    pub traits: Traits,
}

/// The change-stream operators; fields as in [`crate::process::TaskOp`].
#[derive(Clone, Debug, PartialEq)]
pub enum StreamOp {
    Relation {
        relation: RelationId,
        name: String,
        columns: Vec<usize>,
    },
    Values {
        ipc: Vec<u8>,
    },
    Project {
        exprs: Vec<Expr>,
    },
    Filter {
        predicate: Expr,
    },
    Union,
    /// A list column gives way to its elements, one row each.
    Unnest {
        column: usize,
    },
    /// `on_close`: a group comes out once, when its window has closed.
    Aggregate {
        group: Vec<usize>,
        calls: Vec<AggCall>,
        on_close: bool,
    },
    /// Sessions of each partition with aggregates over them.
    Session {
        keys: Vec<usize>,
        time: usize,
        gap_us: i64,
        calls: Vec<AggCall>,
        on_close: bool,
    },
    /// Holds each row back until its event time is final.
    EmitOnClose {
        time: TimeColumn,
    },
    Join {
        kind: JoinKind,
        on: Vec<(usize, usize)>,
        nulls_equal: bool,
        filter: Option<Expr>,
        null_aware: bool,
    },
    TopN {
        partition: Vec<usize>,
        order: Vec<SortKey>,
        offset: u64,
        limit: Option<u64>,
        rank: RankKind,
        emit_rank: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinKind {
    Inner,
    Left,
    Right,
    Full,
    LeftSemi,
    LeftAnti,
}

/// How a Top-N counts rows of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RankKind {
    /// `ROW_NUMBER()` and `LIMIT`.
    RowNumber,
    Rank,
    DenseRank,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SortKey {
    pub column: usize,
    pub descending: bool,
    pub nulls_first: bool,
}

/// One aggregate call of an Aggregate. Arguments and filters are input columns (a Project below computes them).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AggCall {
    pub function: AggFunction,
    /// `None` only for `Count` over rows (`count(*)`).
    pub arg: Option<usize>,
    pub distinct: bool,
    /// A Boolean input column: rows where it is not true are left out.
    pub filter: Option<usize>,
    /// Type of the result column, equal to what DataFusion's batch aggregate returns.
    pub output: arrow::datatypes::DataType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AggFunction {
    Count,
    Sum,
    Avg,
    Min,
    Max,
    BoolAnd,
    BoolOr,
}
