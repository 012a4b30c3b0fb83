//! The process plan as text.

use std::fmt::Write;

use arrow::datatypes::{Schema, SchemaRef};
use serde_json::Value;

use super::quoted;
use super::stream::{aggregate, change_kind, join, list, projected, session, top_n};
use crate::process::{Exchange, ProcessPlan, Task, TaskOp};
use crate::stream::{AggCall, AggFunction, ChangeKind, JoinKind};

/// The tasks of a process plan, terminal first, each with its inputs, their exchanges, and what it keeps.
pub fn process(plan: &ProcessPlan) -> String {
    let mut text = String::new();
    for task in plan.tasks.iter().rev() {
        let _ = writeln!(text, "task {}: {}  [{}]", task.id, describe(plan, task), change_kind(task.change_kind));
        for input in &task.inputs {
            let from = schema_of(plan, input.from.0 as usize);
            let _ = writeln!(text, "  from task {} {}", input.from, exchange(&input.exchange, &from));
        }
        if let Some(state) = state(plan, task) {
            let _ = writeln!(text, "  keeps {state}");
        }
    }
    text
}

/// The process plan in Graphviz's language.
pub fn process_dot(plan: &ProcessPlan) -> String {
    let mut text = String::from("digraph process {\n  node [shape=box];\n");
    for task in &plan.tasks {
        let _ = writeln!(text, "  t{} [label={}];", task.id, quoted(&describe(plan, task)));
        for input in &task.inputs {
            let from = schema_of(plan, input.from.0 as usize);
            let label = quoted(&exchange(&input.exchange, &from));
            let _ = writeln!(text, "  t{} -> t{} [label={label}];", input.from, task.id);
        }
    }
    text.push_str("}\n");
    text
}

/// The process plan as JSON, in its serialised form.
pub fn process_json(plan: &ProcessPlan) -> Result<Value, flow::Error> {
    serde_json::to_value(plan).map_err(|e| flow::Error::internal(format!("write a process plan as JSON: {e}")))
}

fn schema_of(plan: &ProcessPlan, task: usize) -> SchemaRef {
    plan.tasks.get(task).map_or_else(|| Schema::empty().into(), |t| t.schema.clone())
}

fn exchange(exchange: &Exchange, from: &Schema) -> String {
    match exchange {
        Exchange::Forward => "forward".into(),
        Exchange::Hash(columns) => format!("hash({})", list(from, columns)),
        Exchange::Gather => "gather".into(),
        Exchange::Broadcast => "broadcast".into(),
    }
}

fn input_schema(plan: &ProcessPlan, task: &Task, port: usize) -> SchemaRef {
    task.inputs.get(port).map_or_else(|| Schema::empty().into(), |i| schema_of(plan, i.from.0 as usize))
}

fn describe(plan: &ProcessPlan, task: &Task) -> String {
    let input = |port: usize| input_schema(plan, task, port);
    match &task.op {
        TaskOp::Relation { relation, .. } => {
            let columns: Vec<usize> = (0..task.schema.fields().len()).collect();
            format!("Relation {relation} ({})", list(&task.schema, &columns))
        }
        TaskOp::Values { .. } => "Values".into(),
        TaskOp::Project { exprs } => format!("Project {}", projected(exprs, &input(0), &task.schema)),
        TaskOp::Filter { predicate } => format!("Filter {}", predicate.named(&input(0))),
        TaskOp::Union => "Union".into(),
        TaskOp::Unnest { column } => format!("Unnest {}", list(&input(0), &[*column])),
        TaskOp::EmitOnClose { time } => format!("EmitOnClose of {}", list(&task.schema, &[time.column])),
        TaskOp::Aggregate { group, calls, on_close, .. } => {
            let closes = if *on_close { ", on close" } else { "" };
            format!("{}{closes}", aggregate(group, calls, &input(0)))
        }
        TaskOp::Session { keys, gap_us, calls, on_close, .. } => {
            let closes = if *on_close { ", on close" } else { "" };
            format!("{}{closes}", session(keys, *gap_us, calls, &input(0)))
        }
        TaskOp::Join { kind, on, nulls_equal, filter, null_aware, .. } => {
            join(*kind, on, *nulls_equal, filter.as_ref(), *null_aware, &input(0), &input(1))
        }
        TaskOp::TopN { partition, order, offset, limit, rank, emit_rank, .. } => {
            top_n(partition, order, (*offset, *limit), *rank, *emit_rank, &input(0))
        }
        TaskOp::Materialize { relation, key } => match key {
            Some(key) if key.is_empty() => format!("Materialize {relation} (one row)"),
            Some(key) => format!("Materialize {relation} key ({})", list(&task.schema, key)),
            None => format!("Materialize {relation} by whole row"),
        },
        TaskOp::Deliver { sink } => format!("Deliver to {sink}"),
    }
}

/// What the task keeps between epochs, in words; `None` for the stateless ones.
fn state(plan: &ProcessPlan, task: &Task) -> Option<String> {
    let input = |port: usize| input_schema(plan, task, port);
    match &task.op {
        TaskOp::Relation { .. }
        | TaskOp::Values { .. }
        | TaskOp::Project { .. }
        | TaskOp::Filter { .. }
        | TaskOp::Union
        | TaskOp::Unnest { .. }
        | TaskOp::Deliver { .. } => None,
        TaskOp::EmitOnClose { time } => {
            Some(format!("rows until {} is behind the watermark", list(&task.schema, &[time.column])))
        }
        TaskOp::Session { keys, calls, after_us, .. } => {
            let until = after_us.map_or("", |_| ", until the watermark has passed it");
            let per = if keys.is_empty() { String::new() } else { format!(" of each ({})", list(&input(0), keys)) };
            Some(format!("each session{per}: start, end, {}{until}", held(calls, ChangeKind::AppendOnly)))
        }
        TaskOp::Aggregate { group, calls, input_kind, closes, .. } => {
            let what = match (calls.is_empty(), *input_kind) {
                (true, ChangeKind::AppendOnly) => "that it was seen".to_owned(),
                (true, ChangeKind::Retract) => "its number of rows".to_owned(),
                (false, kind) => held(calls, kind),
            };
            Some(match group.is_empty() {
                true => format!("one group: {what}"),
                false => {
                    let until =
                        closes.map(|t| format!(", until {} is behind the watermark", list(&task.schema, &[t.column])));
                    format!("for each ({}): {what}{}", list(&input(0), group), until.unwrap_or_default())
                }
            })
        }
        TaskOp::Join { kind, on, left_unique, right_unique, null_aware, expires, .. } => {
            let (left, right): (Vec<usize>, Vec<usize>) = on.iter().copied().unzip();
            let side = |n: usize, name: &str, key: &[usize], unique: bool| {
                let schema = input(n);
                let rows = match (key.is_empty(), unique) {
                    (true, _) => format!("{name} rows"),
                    (false, true) => format!("one {name} row for each ({})", list(&schema, key)),
                    (false, false) => format!("{name} rows by ({})", list(&schema, key)),
                };
                match expires[n] {
                    Some(t) => format!("{rows}, until {} is behind the watermark", list(&schema, &[t.column])),
                    None => rows,
                }
            };
            let mut parts = vec![side(0, "left", &left, *left_unique), side(1, "right", &right, *right_unique)];
            if !matches!(kind, JoinKind::Inner) || *null_aware {
                parts.push("number of matches of each outer row".to_owned());
            }
            Some(parts.join("; "))
        }
        TaskOp::TopN { partition, input_kind, limit, .. } => {
            let rows = match (input_kind, limit) {
                (ChangeKind::AppendOnly, Some(n)) => format!("the first {n} rows"),
                _ => "all rows in order".to_owned(),
            };
            Some(match partition.is_empty() {
                true => rows,
                false => format!("for each ({}): {rows}", list(&input(0), partition)),
            })
        }
        TaskOp::Materialize { .. } => Some("the view's rows".to_owned()),
    }
}

fn held(calls: &[AggCall], kind: ChangeKind) -> String {
    let mut parts = vec!["number of rows".to_owned()];
    for call in calls {
        let what = match call.function {
            _ if call.distinct => "values with their counts",
            AggFunction::Count => "count",
            AggFunction::Sum | AggFunction::Avg => "sum and count",
            AggFunction::Min | AggFunction::Max if kind == ChangeKind::Retract => "values with their counts",
            AggFunction::Min | AggFunction::Max => "extreme",
            AggFunction::BoolAnd | AggFunction::BoolOr => "counts of true and false",
        };
        if !parts.iter().any(|p| p == what) {
            parts.push(what.to_owned());
        }
    }
    parts.join(", ")
}
