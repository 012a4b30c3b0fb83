//! The stream plan as text.

use std::fmt::Write;

use arrow::datatypes::Schema;
use serde_json::{Value, json};

use super::quoted;
use crate::expr::Expr;
use crate::stream::{AggCall, ChangeKind, Distribution, JoinKind, RankKind, SortKey, StreamNode, StreamOp};

/// The stream plan as an indented tree, each operator with the traits of the edge that it feeds.
pub fn stream(node: &StreamNode) -> String {
    let mut text = String::new();
    tree(node, 0, &mut text);
    text
}

fn tree(node: &StreamNode, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    let _ = writeln!(text, "{indent}{}  [{}]", describe(node), traits(node));
    for input in &node.inputs {
        tree(input, depth + 1, text);
    }
}

/// The stream plan in Graphviz's language.
pub fn stream_dot(node: &StreamNode) -> String {
    let mut text = String::from("digraph stream {\n  node [shape=box];\n");
    let mut next = 0;
    dot(node, &mut next, &mut text);
    text.push_str("}\n");
    text
}

fn dot(node: &StreamNode, next: &mut usize, text: &mut String) -> usize {
    let id = *next;
    *next += 1;
    let _ = writeln!(text, "  n{id} [label={}];", quoted(&describe(node)));
    for input in &node.inputs {
        let from = dot(input, next, text);
        let _ = writeln!(text, "  n{from} -> n{id} [label={}];", quoted(&traits(input)));
    }
    id
}

/// The stream plan as JSON: operator, output columns, traits, inputs.
pub fn stream_json(node: &StreamNode) -> Value {
    json!({
        "operator": describe(node),
        "columns": node.schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>(),
        "change_kind": change_kind(node.traits.change_kind),
        "unique_keys": node.traits.unique_keys.iter().map(|k| names(&node.schema, k)).collect::<Vec<_>>(),
        "distribution": distribution(&node.schema, &node.traits.distribution),
        "bounded": node.traits.bounded,
        "times": names(&node.schema, &node.traits.times.iter().map(|t| t.column).collect::<Vec<_>>()),
        "inputs": node.inputs.iter().map(stream_json).collect::<Vec<_>>(),
    })
}

pub(super) fn change_kind(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::AppendOnly => "append-only",
        ChangeKind::Retract => "retract",
    }
}

pub(super) fn names(schema: &Schema, columns: &[usize]) -> Vec<String> {
    let name = |c: &usize| schema.fields().get(*c).map_or_else(|| format!("#{c}"), |f| f.name().clone());
    columns.iter().map(name).collect()
}

pub(super) fn list(schema: &Schema, columns: &[usize]) -> String {
    names(schema, columns).join(", ")
}

fn distribution(schema: &Schema, distribution: &Distribution) -> String {
    match distribution {
        Distribution::Arbitrary => "arbitrary".into(),
        Distribution::Hash(columns) => format!("hash({})", list(schema, columns)),
        Distribution::Single => "single".into(),
    }
}

fn traits(node: &StreamNode) -> String {
    let t = &node.traits;
    let mut parts = vec![change_kind(t.change_kind).to_owned()];
    for key in &t.unique_keys {
        parts.push(match key.is_empty() {
            true => "one row".to_owned(),
            false => format!("key ({})", list(&node.schema, key)),
        });
    }
    parts.push(distribution(&node.schema, &t.distribution));
    if !t.times.is_empty() {
        parts.push(format!("time ({})", list(&node.schema, &t.times.iter().map(|t| t.column).collect::<Vec<_>>())));
    }
    if t.bounded {
        parts.push("bounded".to_owned());
    }
    parts.join(", ")
}

fn describe(node: &StreamNode) -> String {
    let input = |i: usize| node.inputs.get(i).map_or_else(|| Schema::empty().into(), |n| n.schema.clone());
    match &node.op {
        StreamOp::Relation { name, .. } => {
            format!("Relation {name} ({})", list(&node.schema, &(0..node.width()).collect::<Vec<_>>()))
        }
        StreamOp::Values { .. } => "Values".into(),
        StreamOp::Project { exprs } => format!("Project {}", projected(exprs, &input(0), &node.schema)),
        StreamOp::Filter { predicate } => format!("Filter {}", predicate.named(&input(0))),
        StreamOp::Union => "Union".into(),
        StreamOp::Unnest { column } => format!("Unnest {}", list(&input(0), &[*column])),
        StreamOp::EmitOnClose { time } => format!("EmitOnClose of {}", list(&node.schema, &[time.column])),
        StreamOp::Aggregate { group, calls, on_close } => {
            let closes = if *on_close { ", on close" } else { "" };
            format!("{}{closes}", aggregate(group, calls, &input(0)))
        }
        StreamOp::Session { keys, gap_us, calls, on_close, .. } => {
            let closes = if *on_close { ", on close" } else { "" };
            format!("{}{closes}", session(keys, *gap_us, calls, &input(0)))
        }
        StreamOp::Join { kind, on, nulls_equal, filter, null_aware } => {
            join(*kind, on, *nulls_equal, filter.as_ref(), *null_aware, &input(0), &input(1))
        }
        StreamOp::TopN { partition, order, offset, limit, rank, emit_rank } => {
            top_n(partition, order, (*offset, *limit), *rank, *emit_rank, &input(0))
        }
    }
}

pub(super) fn projected(exprs: &[Expr], input: &Schema, output: &Schema) -> String {
    let one = |(i, e): (usize, &Expr)| {
        let (text, name) = (e.named(input).to_string(), output.fields().get(i).map(|f| f.name().as_str()));
        match name {
            Some(name) if name != text => format!("{text} AS {name}"),
            _ => text,
        }
    };
    exprs.iter().enumerate().map(one).collect::<Vec<_>>().join(", ")
}

pub(super) fn aggregate(group: &[usize], calls: &[AggCall], input: &Schema) -> String {
    let calls: Vec<String> = calls.iter().map(|c| c.named(input).to_string()).collect();
    match (group.is_empty(), calls.is_empty()) {
        (false, true) => format!("Distinct {}", list(input, group)),
        (true, _) => format!("Aggregate {}", calls.join(", ")),
        (false, false) => format!("Aggregate {} by {}", calls.join(", "), list(input, group)),
    }
}

pub(super) fn session(keys: &[usize], gap_us: i64, calls: &[AggCall], input: &Schema) -> String {
    let calls: Vec<String> = calls.iter().map(|c| c.named(input).to_string()).collect();
    let calls = if calls.is_empty() { String::new() } else { format!(" {}", calls.join(", ")) };
    let by = if keys.is_empty() { String::new() } else { format!(" by {}", list(input, keys)) };
    format!("Session{calls}{by}, gap {} s", gap_us as f64 / 1e6)
}

pub(super) fn join(
    kind: JoinKind,
    on: &[(usize, usize)],
    nulls_equal: bool,
    filter: Option<&Expr>,
    null_aware: bool,
    left: &Schema,
    right: &Schema,
) -> String {
    let kind = match kind {
        JoinKind::Inner => "InnerJoin",
        JoinKind::Left => "LeftJoin",
        JoinKind::Right => "RightJoin",
        JoinKind::Full => "FullJoin",
        JoinKind::LeftSemi => "SemiJoin",
        JoinKind::LeftAnti if null_aware => "NotInJoin",
        JoinKind::LeftAnti => "AntiJoin",
    };
    let equal = if nulls_equal { "IS NOT DISTINCT FROM" } else { "=" };
    let mut conditions: Vec<String> =
        on.iter().map(|(l, r)| format!("{} {equal} {}", list(left, &[*l]), list(right, &[*r]))).collect();
    if let Some(filter) = filter {
        let both: Vec<_> = left.fields().iter().chain(right.fields()).cloned().collect();
        conditions.push(filter.named(&Schema::new(both)).to_string());
    }
    if conditions.is_empty() {
        format!("{kind} of all pairs")
    } else {
        format!("{kind} on {}", conditions.join(" AND "))
    }
}

pub(super) fn top_n(
    partition: &[usize],
    order: &[SortKey],
    (offset, limit): (u64, Option<u64>),
    rank: RankKind,
    emit_rank: bool,
    input: &Schema,
) -> String {
    let mut text = match limit {
        Some(n) => format!("TopN {n}"),
        None => "TopN all".to_owned(),
    };
    if offset > 0 {
        let _ = write!(text, " after {offset}");
    }
    match rank {
        RankKind::RowNumber => {}
        RankKind::Rank => text.push_str(" by rank"),
        RankKind::DenseRank => text.push_str(" by dense rank"),
    }
    if !partition.is_empty() {
        let _ = write!(text, " per {}", list(input, partition));
    }
    if !order.is_empty() {
        let key = |k: &SortKey| {
            let nulls = match (k.descending, k.nulls_first) {
                (false, true) => " NULLS FIRST",
                (true, false) => " NULLS LAST",
                _ => "",
            };
            format!("{}{}{nulls}", list(input, &[k.column]), if k.descending { " DESC" } else { "" })
        };
        let _ = write!(text, " order by {}", order.iter().map(key).collect::<Vec<_>>().join(", "));
    }
    if emit_rank {
        text.push_str(" with rank");
    }
    text
}
