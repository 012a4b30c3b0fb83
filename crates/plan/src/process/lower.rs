//! From the stream plan to tasks and exchanges.
//!
//! Every stream operator becomes one task; equal subtrees become one task with several readers, so a relation that a
//! query names twice is read once. Exchanges come from [`crate::stream::placement`], the same function that derived the
//! distributions of the stream plan.

use flow::{JobId, RelationId, Result, TaskId};

use super::{Exchange, Input, PLAN_VERSION, Placed, ProcessPlan, Task, TaskOp};
use crate::stream::{ChangeKind, Distribution, StreamNode, StreamOp, TimeColumn, contains_key, expiries, placement};

/// What the last task of a job does with the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// Store it as the contents of a view.
    Materialize { relation: RelationId },
    /// Hand it to a sink.
    Deliver { sink: RelationId },
}

/// What a reader of a materialized view may rely on: the `RelationSource` of the view.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewTraits {
    pub change_kind: ChangeKind,
    pub unique_keys: Vec<Vec<usize>>,
    /// As the view is stored and its changes come out.
    pub distribution: Distribution,
    pub bounded: bool,
    pub times: Vec<TimeColumn>,
    /// The key by which the store is distributed and indexed; `None`: by the whole row.
    pub key: Option<Vec<usize>>,
}

/// The tasks that run `node`, ending in `terminal`.
pub fn lower(node: &StreamNode, job: JobId, terminal: Terminal) -> Result<ProcessPlan> {
    let mut tasks = Tasks { tasks: Vec::new(), made: Vec::new() };
    let from = tasks.add(node)?;
    let change_kind = node.traits.change_kind;
    let (op, exchange) = match terminal {
        Terminal::Materialize { relation } => {
            let stored = view_traits(node);
            let exchange = match (&stored.distribution, &node.traits.distribution) {
                (want, have) if want == have => Exchange::Forward,
                (Distribution::Hash(columns), _) => Exchange::Hash(columns.clone()),
                _ => Exchange::Gather,
            };
            (TaskOp::Materialize { relation, key: stored.key }, exchange)
        }
        // A sink has one writer, so that its order and its exactly-once bookkeeping have one place.
        Terminal::Deliver { sink } => {
            let exchange = if node.is_single() { Exchange::Forward } else { Exchange::Gather };
            (TaskOp::Deliver { sink }, exchange)
        }
    };
    let placed = placed(&exchange, &node.traits.distribution);
    tasks.push(op, vec![Input { from, exchange, placed }], node.schema.clone(), change_kind)?;
    Ok(ProcessPlan { version: PLAN_VERSION, job, tasks: tasks.tasks })
}

/// The traits of a view that stores the rows of `node`.
///
/// The key is the smallest unique key, or one that equals the distribution that the rows already have. A view of at most
/// one row lies on slot 0. A keyless view is distributed by all its columns.
pub fn view_traits(node: &StreamNode) -> ViewTraits {
    let traits = &node.traits;
    let hashed = match &traits.distribution {
        Distribution::Hash(columns) if !columns.is_empty() => Some(columns),
        _ => None,
    };
    let lies_by_key = hashed.filter(|columns| {
        traits.unique_keys.iter().any(|key| key.len() == columns.len() && columns.iter().all(|c| key.contains(c)))
    });
    let key = match lies_by_key {
        Some(columns) => Some(columns.clone()),
        // A key with columns serves point reads; the empty one only says that there is one row.
        None => traits.unique_keys.iter().find(|k| !k.is_empty()).or(traits.unique_keys.first()).cloned(),
    };
    let distribution = match &key {
        Some(key) if key.is_empty() => Distribution::Single,
        Some(key) => Distribution::Hash(key.clone()),
        None => Distribution::Hash((0..node.width()).collect()),
    };
    ViewTraits {
        change_kind: traits.change_kind,
        unique_keys: traits.unique_keys.clone(),
        distribution,
        bounded: traits.bounded,
        times: traits.times.clone(),
        key,
    }
}

/// The tasks made so far, and the stream nodes that they run.
struct Tasks<'a> {
    tasks: Vec<Task>,
    made: Vec<(&'a StreamNode, TaskId)>,
}

impl<'a> Tasks<'a> {
    fn add(&mut self, node: &'a StreamNode) -> Result<TaskId> {
        if let Some((_, task)) = self.made.iter().find(|(made, _)| *made == node) {
            return Ok(*task);
        }
        let mut from = Vec::with_capacity(node.inputs.len());
        for input in &node.inputs {
            from.push(self.add(input)?);
        }
        let exchanges = placement(&node.op, &node.inputs).exchanges;
        let inputs = from.into_iter().zip(exchanges).zip(&node.inputs).map(|((from, exchange), input)| {
            let placed = placed(&exchange, &input.traits.distribution);
            Input { from, exchange, placed }
        });
        let inputs = inputs.collect();
        let task = self.push(task_op(node), inputs, node.schema.clone(), node.traits.change_kind)?;
        self.made.push((node, task));
        Ok(task)
    }

    fn push(
        &mut self,
        op: TaskOp,
        inputs: Vec<Input>,
        schema: arrow::datatypes::SchemaRef,
        change_kind: ChangeKind,
    ) -> Result<TaskId> {
        let id =
            u32::try_from(self.tasks.len()).map_err(|_| flow::Error::internal("a job with more than 2^32 tasks"))?;
        self.tasks.push(Task { id: TaskId(id), op, inputs, schema, change_kind });
        Ok(TaskId(id))
    }
}

/// Where rows lie that lay by `before` and have gone through `exchange`.
fn placed(exchange: &Exchange, before: &Distribution) -> Placed {
    match (exchange, before) {
        (Exchange::Hash(columns), _) => Placed::Hash(columns.clone()),
        (Exchange::Gather, _) => Placed::Single,
        (Exchange::Broadcast, _) => Placed::Everywhere,
        (Exchange::Forward, Distribution::Hash(columns)) => Placed::Hash(columns.clone()),
        (Exchange::Forward, Distribution::Single) => Placed::Single,
        (Exchange::Forward, Distribution::Arbitrary) => Placed::Anywhere,
    }
}

fn task_op(node: &StreamNode) -> TaskOp {
    let kind = |i: usize| node.inputs.get(i).map_or(ChangeKind::Retract, |n| n.traits.change_kind);
    match &node.op {
        StreamOp::Relation { relation, columns, .. } => {
            TaskOp::Relation { relation: *relation, columns: columns.clone() }
        }
        StreamOp::Values { ipc } => TaskOp::Values { ipc: ipc.clone() },
        StreamOp::Project { exprs } => TaskOp::Project { exprs: exprs.clone() },
        StreamOp::Filter { predicate } => TaskOp::Filter { predicate: predicate.clone() },
        StreamOp::Union => TaskOp::Union,
        StreamOp::Unnest { column } => TaskOp::Unnest { column: *column },
        StreamOp::EmitOnClose { time } => TaskOp::EmitOnClose { time: *time },
        StreamOp::Aggregate { group, calls, on_close } => TaskOp::Aggregate {
            group: group.clone(),
            calls: calls.clone(),
            input_kind: kind(0),
            closes: node.traits.times.first().copied(),
            on_close: *on_close,
        },
        StreamOp::ProcessingTime => TaskOp::ProcessingTime,
        StreamOp::TemporalFilter { from, until } => TaskOp::TemporalFilter { from: from.clone(), until: until.clone() },
        StreamOp::Session { keys, time, gap_us, calls, on_close } => TaskOp::Session {
            keys: keys.clone(),
            time: *time,
            gap_us: *gap_us,
            calls: calls.clone(),
            closes: node.traits.times.first().copied(),
            on_close: *on_close,
        },
        StreamOp::Join { kind: join, on, nulls_equal, filter, null_aware } => {
            let unique = |i: usize, columns: Vec<usize>| {
                node.inputs.get(i).is_some_and(|n| contains_key(&n.traits.unique_keys, &columns))
            };
            TaskOp::Join {
                kind: *join,
                on: on.clone(),
                nulls_equal: *nulls_equal,
                filter: filter.clone(),
                left_kind: kind(0),
                right_kind: kind(1),
                left_unique: unique(0, on.iter().map(|p| p.0).collect()),
                right_unique: unique(1, on.iter().map(|p| p.1).collect()),
                expires: match node.inputs.as_slice() {
                    [left, right] if !*null_aware => expiries(left, right, on, filter.as_ref()),
                    _ => [None, None],
                },
                null_aware: *null_aware,
            }
        }
        StreamOp::TopN { partition, order, offset, limit, rank, emit_rank } => TaskOp::TopN {
            partition: partition.clone(),
            order: order.clone(),
            offset: *offset,
            limit: *limit,
            rank: *rank,
            emit_rank: *emit_rank,
            input_kind: kind(0),
            closes: node.traits.times.first().copied(),
        },
    }
}
