//! Which columns of an edge are event times, and from when on a watermark makes their values final.

use arrow::datatypes::IntervalMonthDayNano;
use datafusion::common::ScalarValue;
use serde::{Deserialize, Serialize};

use super::{ChangeKind, JoinKind, StreamNode, StreamOp};
use crate::expr::Expr;

/// An event-time column of an edge. Once a value plus `after_us` is at or below the watermark, the value is *final*: no later
/// change has it, or a smaller one.
///
/// The time of a row itself is final when the watermark has passed it (1), a window's end when the watermark has reached it
/// (0), a window's start one window later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeColumn {
    pub column: usize,
    pub after_us: i64,
}

impl TimeColumn {
    /// The column by which the watermark of a relation is made.
    pub fn declared(column: usize) -> TimeColumn {
        TimeColumn { column, after_us: 1 }
    }
}

const US_PER_DAY: i64 = 86_400_000_000;

/// `after_us` of `expr` over columns of which `times` are event times; for an array, of its elements. `None` if it is no
/// event time.
pub(super) fn after(expr: &Expr, times: &[TimeColumn]) -> Option<i64> {
    match expr {
        Expr::Column(c) => times.iter().find(|t| t.column == *c).map(|t| t.after_us),
        Expr::Call { function, args } => match (function.as_str(), args.as_slice()) {
            ("+", [time, by]) | ("+", [by, time]) if constant_us(by).is_some() => {
                after(time, times)?.checked_sub(constant_us(by)?)
            }
            ("-", [time, by]) => after(time, times)?.checked_add(constant_us(by)?),
            // The newest row of a window lies just before its end.
            ("tumble_start", [time, size, ..]) | ("date_bin", [size, time, _]) => {
                after(time, times)?.checked_add(constant_us(size)? - 1)
            }
            ("hop_starts", [time, _, size, ..]) => after(time, times)?.checked_add(constant_us(size)? - 1),
            ("date_trunc", [Expr::Literal(unit), time, ..]) => {
                let unit = unit.to_scalar().ok()?;
                after(time, times)?.checked_add(unit_us(unit.try_as_str().flatten()?)? - 1)
            }
            _ => None,
        },
        _ => None,
    }
}

/// A constant interval without months, in microseconds.
pub(super) fn constant_us(expr: &Expr) -> Option<i64> {
    let Expr::Literal(literal) = expr else { return None };
    let Ok(ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano { months: 0, days, nanoseconds }))) =
        literal.to_scalar()
    else {
        return None;
    };
    i64::from(days).checked_mul(US_PER_DAY)?.checked_add(nanoseconds / 1_000)
}

/// No less than the longest stretch that `date_trunc` gives one value: in a time zone a day may have 25 hours, and more
/// over the years.
fn unit_us(unit: &str) -> Option<i64> {
    const HOUR: i64 = 3_600_000_000;
    Some(match unit.to_ascii_lowercase().trim_end_matches('s') {
        "microsecond" => 1,
        "millisecond" => 1_000,
        "second" => 1_000_000,
        "minute" => 60_000_000,
        "hour" => 2 * HOUR,
        "day" => US_PER_DAY + 2 * HOUR,
        "week" => 7 * US_PER_DAY + 2 * HOUR,
        "month" => 31 * US_PER_DAY + 2 * HOUR,
        "quarter" => 92 * US_PER_DAY + 2 * HOUR,
        "year" => 366 * US_PER_DAY + 2 * HOUR,
        _ => return None,
    })
}

/// The event times of what `op` gives, in its output columns.
///
/// A column stays an event time only where nothing later can change a row that has a final value in it. So a join keeps
/// only times that its keys equate or its conditions bound, and a Top-N only those of its partition.
pub(super) fn times(op: &StreamOp, inputs: &[StreamNode]) -> Vec<TimeColumn> {
    let of = |i: usize| inputs.get(i).map_or(&[][..], |n| n.traits.times.as_slice());
    let found = |i: usize, column: usize| of(i).iter().find(|t| t.column == column);
    let mut times = Vec::new();
    match op {
        // Set by the constructor.
        StreamOp::Relation { .. } | StreamOp::Values { .. } => {}
        StreamOp::Project { exprs } => {
            for (column, e) in exprs.iter().enumerate() {
                times.extend(after(e, of(0)).map(|after_us| TimeColumn { column, after_us }));
            }
        }
        StreamOp::Filter { .. } | StreamOp::Unnest { .. } | StreamOp::EmitOnClose { .. } => times.extend(of(0)),
        StreamOp::Union => {
            for first in of(0) {
                let all: Option<Vec<i64>> =
                    (0..inputs.len()).map(|i| found(i, first.column).map(|t| t.after_us)).collect();
                let after_us = all.and_then(|all| all.into_iter().max());
                times.extend(after_us.map(|after_us| TimeColumn { column: first.column, after_us }));
            }
        }
        StreamOp::Aggregate { group, .. } => {
            for (column, g) in group.iter().enumerate() {
                times.extend(found(0, *g).map(|t| TimeColumn { column, ..*t }));
            }
        }
        // A row stretches a session that ends at or after its own time.
        StreamOp::Session { keys, time, .. } => {
            times.extend(found(0, *time).map(|t| TimeColumn { column: keys.len() + 1, ..*t }));
        }
        StreamOp::TopN { partition, .. } => {
            times.extend(of(0).iter().filter(|t| partition.contains(&t.column)));
        }
        StreamOp::Join { kind, on, filter, null_aware: false, .. } => {
            let width = inputs.first().map_or(0, StreamNode::width);
            // A row that has met its last partner is final in all of its pairs.
            if let [left, right] = inputs {
                let [of_left, of_right] = expiries(left, right, on, filter.as_ref());
                let own = |i: usize, met: TimeColumn| {
                    let own = found(i, met.column)?;
                    Some(TimeColumn { column: met.column, after_us: own.after_us.max(met.after_us) })
                };
                if !matches!(kind, JoinKind::Right | JoinKind::Full) {
                    times.extend(of_left.and_then(|met| own(0, met)));
                }
                if matches!(kind, JoinKind::Inner | JoinKind::Right) {
                    let place = |t: TimeColumn| TimeColumn { column: width + t.column, ..t };
                    times.extend(of_right.and_then(|met| own(1, met)).map(place));
                }
            }
            for (left, right) in on {
                let (Some(l), Some(r)) = (found(0, *left), found(1, *right)) else { continue };
                let after_us = l.after_us.max(r.after_us);
                // The column of a side that may be filled with NULL is no time: NULL is never final.
                if !matches!(kind, JoinKind::Right | JoinKind::Full) {
                    times.push(TimeColumn { column: *left, after_us });
                }
                if matches!(kind, JoinKind::Inner | JoinKind::Right) {
                    times.push(TimeColumn { column: width + right, after_us });
                }
            }
        }
        StreamOp::Join { .. } => {}
    }
    normalise(times)
}

/// When rows of each side of a join are of no more use: by a time that the keys equate, or by a condition that bounds the
/// other side's time from above, as in `bid.time <= auction.expires`.
///
/// A row that holds `v` in the column has met its last partner once `v + after_us` is at or below the watermark.
pub(crate) fn expiries(
    left: &StreamNode,
    right: &StreamNode,
    on: &[(usize, usize)],
    filter: Option<&Expr>,
) -> [Option<TimeColumn>; 2] {
    let width = left.width();
    let sides = [left, right];
    let mut bounds = Vec::new();
    if let Some(filter) = filter {
        conjuncts(filter, &mut |e| bounds.extend(bound(e)));
    }
    [0, 1].map(|side| {
        let (own, other) = (sides[side], sides[1 - side]);
        let own_time = |column: usize| own.traits.times.iter().find(|t| t.column == column);
        let other_time = |column: usize| other.traits.times.iter().find(|t| t.column == column);
        let by_key = on.iter().find_map(|(l, r)| {
            let (mine, theirs) = if side == 0 { (*l, *r) } else { (*r, *l) };
            let (mine, theirs) = (own_time(mine)?, other_time(theirs)?);
            Some(TimeColumn { column: mine.column, after_us: mine.after_us.max(theirs.after_us) })
        });
        let place = |column: usize| if column < width { (0, column) } else { (1, column - width) };
        let by_bound = || {
            bounds.iter().find_map(|Bound { least, most, by_us }| {
                let ((of_least, least), (of_most, most)) = (place(*least), place(*most));
                if of_least == side || of_most != side {
                    return None;
                }
                // Their time is at most ours plus `by_us`.
                let after_us = by_us.checked_add(other_time(least)?.after_us)?;
                let is_time = matches!(own.schema.field(most).data_type(), arrow::datatypes::DataType::Timestamp(..));
                match own.traits.change_kind {
                    ChangeKind::AppendOnly => is_time.then_some(TimeColumn { column: most, after_us }),
                    // A row that may still be taken away must still be there.
                    ChangeKind::Retract => {
                        own_time(most).map(|t| TimeColumn { column: most, after_us: after_us.max(t.after_us) })
                    }
                }
            })
        };
        by_key.or_else(by_bound)
    })
}

/// `least <= most + by_us`, between two columns.
struct Bound {
    least: usize,
    most: usize,
    by_us: i64,
}

fn conjuncts(e: &Expr, visit: &mut impl FnMut(&Expr)) {
    match e {
        Expr::Binary { op, left, right } if op == "AND" => {
            conjuncts(left, visit);
            conjuncts(right, visit);
        }
        e => visit(e),
    }
}

fn bound(e: &Expr) -> Option<Bound> {
    let Expr::Binary { op, left, right } = e else { return None };
    let (small, great) = match op.as_str() {
        "<=" | "<" => (left, right),
        ">=" | ">" => (right, left),
        _ => return None,
    };
    let ((least, less_us), (most, more_us)) = (shifted(small)?, shifted(great)?);
    Some(Bound { least, most, by_us: more_us.checked_sub(less_us)? })
}

/// A column plus a constant interval.
fn shifted(e: &Expr) -> Option<(usize, i64)> {
    match e {
        Expr::Column(c) => Some((*c, 0)),
        Expr::Call { function, args } => match (function.as_str(), args.as_slice()) {
            ("+", [e, by]) | ("+", [by, e]) if constant_us(by).is_some() => {
                let (column, us) = shifted(e)?;
                Some((column, us.checked_add(constant_us(by)?)?))
            }
            ("-", [e, by]) => {
                let (column, us) = shifted(e)?;
                Some((column, us.checked_sub(constant_us(by)?)?))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Of equal columns the one that is final first is enough.
pub(super) fn normalise(mut times: Vec<TimeColumn>) -> Vec<TimeColumn> {
    times.sort_by_key(|t| (t.column, t.after_us));
    times.dedup_by_key(|t| t.column);
    times
}
