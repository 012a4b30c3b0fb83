//! Which slot holds a row: the exchange in front of each input, and the distribution of what comes out.
//!
//! Both the traits of the stream plan and the exchanges of the process plan come from here, so they cannot disagree. An
//! input that already lies right is not moved. The two sides of a join lie right together only when they are hashed by
//! corresponding columns in the same order.

use super::{ChangeKind, Distribution, JoinKind, StreamNode, StreamOp};
use crate::process::Exchange;

/// What [`placement`] decides for one operator.
pub(crate) struct Placement {
    /// One per input.
    pub exchanges: Vec<Exchange>,
    /// Of the operator's output, in its output columns.
    pub output: Distribution,
}

fn forward(output: Distribution, inputs: usize) -> Placement {
    Placement { exchanges: vec![Exchange::Forward; inputs], output }
}

/// `distribution` in other column numbers.
pub(super) fn map_distribution(distribution: &Distribution, map: impl Fn(usize) -> Option<usize>) -> Distribution {
    match distribution {
        Distribution::Hash(columns) => match columns.iter().map(|c| map(*c)).collect() {
            Some(columns) => Distribution::Hash(columns),
            None => Distribution::Arbitrary,
        },
        same => same.clone(),
    }
}

/// Where the rows of `op` come from and lie. `inputs` are its inputs, with their traits derived.
pub(crate) fn placement(op: &StreamOp, inputs: &[StreamNode]) -> Placement {
    let distribution = |i: usize| inputs.get(i).map_or(Distribution::Arbitrary, |n| n.traits.distribution.clone());
    match op {
        // A relation's distribution is that of its source; the constructor sets it.
        StreamOp::Relation { .. } => forward(Distribution::Arbitrary, 0),
        StreamOp::Values { .. } => forward(Distribution::Single, 0),
        StreamOp::Project { exprs } => {
            let schema = inputs.first().map(|n| n.schema.clone());
            let map = |c: usize| schema.as_ref().and_then(|s| super::build::kept_column(exprs, s, c));
            forward(map_distribution(&distribution(0), map), 1)
        }
        StreamOp::Filter { .. } | StreamOp::ProcessingTime => forward(distribution(0), 1),
        StreamOp::EmitOnClose { .. } | StreamOp::TemporalFilter { .. } => {
            let (exchange, output) = found_again(inputs.first());
            Placement { exchanges: vec![exchange], output }
        }
        StreamOp::Unnest { column } => forward(map_distribution(&distribution(0), |c| (c != *column).then_some(c)), 1),
        StreamOp::Union => {
            let first = distribution(0);
            let same = inputs.iter().all(|n| n.traits.distribution == first);
            forward(if same { first } else { Distribution::Arbitrary }, inputs.len())
        }
        StreamOp::Aggregate { group, .. } => {
            let (exchange, lies) = together(distribution(0), group);
            let output = map_distribution(&lies, |c| group.iter().position(|g| *g == c));
            Placement { exchanges: vec![exchange], output }
        }
        StreamOp::Session { keys, .. } => {
            let (exchange, lies) = together(distribution(0), keys);
            let output = map_distribution(&lies, |c| keys.iter().position(|k| *k == c));
            Placement { exchanges: vec![exchange], output }
        }
        StreamOp::TopN { partition, .. } => {
            let (exchange, output) = together(distribution(0), partition);
            Placement { exchanges: vec![exchange], output }
        }
        StreamOp::Join { kind, on, null_aware, .. } => {
            let width = inputs.first().map_or(0, |n| n.schema.fields().len());
            let at_most_one_left = inputs.first().is_some_and(|n| n.traits.unique_keys.iter().any(Vec::is_empty));
            if *null_aware || on.is_empty() {
                unkeyed_join(*kind, inputs, at_most_one_left && !*null_aware, width)
            } else {
                keyed_join(*kind, on, distribution(0), distribution(1), width)
            }
        }
    }
}

/// Brings rows that are equal in `columns` to one slot. Returns the exchange and where the input's rows then lie.
fn together(input: Distribution, columns: &[usize]) -> (Exchange, Distribution) {
    match input {
        Distribution::Single => (Exchange::Forward, Distribution::Single),
        _ if columns.is_empty() => (Exchange::Gather, Distribution::Single),
        Distribution::Hash(hashed) if !hashed.is_empty() && hashed.iter().all(|c| columns.contains(c)) => {
            (Exchange::Forward, Distribution::Hash(hashed))
        }
        _ => (Exchange::Hash(columns.to_vec()), Distribution::Hash(columns.to_vec())),
    }
}

fn keyed_join(
    kind: JoinKind,
    on: &[(usize, usize)],
    left: Distribution,
    right: Distribution,
    width: usize,
) -> Placement {
    if left == Distribution::Single && right == Distribution::Single {
        return forward(Distribution::Single, 2);
    }
    // The pairs by which one side already lies, in that side's order.
    let pairs_of_left = |columns: &[usize]| -> Option<Vec<(usize, usize)>> {
        columns.iter().map(|c| on.iter().find(|(l, _)| l == c).copied()).collect()
    };
    let pairs_of_right = |columns: &[usize]| -> Option<Vec<(usize, usize)>> {
        columns.iter().map(|c| on.iter().find(|(_, r)| r == c).copied()).collect()
    };
    let hashed = |d: &Distribution| match d {
        Distribution::Hash(columns) if !columns.is_empty() => Some(columns.clone()),
        _ => None,
    };
    let pairs = hashed(&left)
        .and_then(|c| pairs_of_left(&c))
        .or_else(|| hashed(&right).and_then(|c| pairs_of_right(&c)))
        .unwrap_or_else(|| on.to_vec());
    let left_columns: Vec<usize> = pairs.iter().map(|(l, _)| *l).collect();
    let right_columns: Vec<usize> = pairs.iter().map(|(_, r)| *r).collect();
    let exchange = |lies: Distribution, columns: &[usize]| match lies {
        Distribution::Hash(c) if c == columns => Exchange::Forward,
        _ => Exchange::Hash(columns.to_vec()),
    };
    let output = match kind {
        JoinKind::Inner | JoinKind::Left | JoinKind::LeftSemi | JoinKind::LeftAnti => {
            Distribution::Hash(left_columns.clone())
        }
        JoinKind::Right => Distribution::Hash(right_columns.iter().map(|c| c + width).collect()),
        // Rows of one side without a partner have NULL in the other side's columns.
        JoinKind::Full => Distribution::Arbitrary,
    };
    Placement { exchanges: vec![exchange(left, &left_columns), exchange(right, &right_columns)], output }
}

/// Without keys every row of one side must meet every row of the other: one side goes to all slots, or both to one.
fn unkeyed_join(kind: JoinKind, inputs: &[StreamNode], at_most_one_left: bool, width: usize) -> Placement {
    let distribution = |i: usize| inputs.get(i).map_or(Distribution::Arbitrary, |n| n.traits.distribution.clone());
    let (left, right) = (distribution(0), distribution(1));
    if left == Distribution::Single && right == Distribution::Single {
        return forward(Distribution::Single, 2);
    }
    let gather = |d: &Distribution| if *d == Distribution::Single { Exchange::Forward } else { Exchange::Gather };
    match kind {
        JoinKind::Right | JoinKind::Full => {
            Placement { exchanges: vec![gather(&left), gather(&right)], output: Distribution::Single }
        }
        JoinKind::Inner if at_most_one_left => {
            let (exchange, right) = found_again(inputs.get(1));
            Placement {
                exchanges: vec![Exchange::Broadcast, exchange],
                output: map_distribution(&right, |c| Some(c + width)),
            }
        }
        _ => {
            let (exchange, left) = found_again(inputs.first());
            Placement { exchanges: vec![exchange, Exchange::Broadcast], output: left }
        }
    }
}

/// Where rows are kept one by one. A row that can be taken away must be found at any parallelism, so if nothing says on
/// which slot it lies, all of it does.
fn found_again(input: Option<&StreamNode>) -> (Exchange, Distribution) {
    match input {
        Some(n) if n.traits.distribution == Distribution::Arbitrary && n.traits.change_kind == ChangeKind::Retract => {
            let all: Vec<usize> = (0..n.schema.fields().len()).collect();
            (Exchange::Hash(all.clone()), Distribution::Hash(all))
        }
        Some(n) => (Exchange::Forward, n.traits.distribution.clone()),
        None => (Exchange::Forward, Distribution::Arbitrary),
    }
}
