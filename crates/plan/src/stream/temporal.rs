//! The present in a standing query: conditions on `now()`, and `PROCTIME()`.
//!
//! A condition that compares something of a row with `now()` says from when on the row is there, or until when. So it becomes
//! an operator that waits (`TemporalFilter`), not an expression that would have to be computed for every row again and again.
//! `PROCTIME()` becomes a column that has the time of the epoch in which the row came.

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use flow::{Error, Result};

use super::time::constant_us;
use super::{ChangeKind, StreamNode};
use crate::expr::{self, Expr, sql_type};
use crate::functions::moment::{NOW, PROCTIME};

/// A row is there from, or until, the moment that an expression gives plus `shift_us`.
struct Bound {
    until: bool,
    moment: Expr,
    shift_us: i64,
}

fn is_call(e: &Expr, name: &str) -> bool {
    matches!(e, Expr::Call { function, args } if function == name && args.is_empty())
}

/// Whether the expression asks for the present.
fn reads(e: &Expr, name: &str) -> bool {
    is_call(e, name) || e.children().into_iter().any(|child| reads(child, name))
}

/// Which moment the expression asks for, if any.
pub(super) fn moment_of(e: &Expr) -> Option<&'static str> {
    [NOW, PROCTIME].into_iter().find(|name| reads(e, name))
}

/// `c` if the expression is `now()` plus `c` microseconds.
fn now_plus(e: &Expr) -> Option<i64> {
    match e {
        e if is_call(e, NOW) => Some(0),
        Expr::Call { function, args } => match (function.as_str(), args.as_slice()) {
            ("+", [e, by]) | ("+", [by, e]) if constant_us(by).is_some() => now_plus(e)?.checked_add(constant_us(by)?),
            ("-", [e, by]) => now_plus(e)?.checked_sub(constant_us(by)?),
            _ => None,
        },
        _ => None,
    }
}

/// The microseconds of a constant length of time, which the comparison of intervals has made a number of nanoseconds.
fn length_us(e: &Expr) -> Option<i64> {
    let Expr::Literal(literal) = e else { return None };
    let nanoseconds = match literal.to_scalar().ok()? {
        ScalarValue::Int64(Some(n)) => i128::from(n),
        ScalarValue::Decimal128(Some(n), _, 0) => n,
        _ => return None,
    };
    (nanoseconds % 1_000 == 0).then(|| i64::try_from(nanoseconds / 1_000).ok())?
}

/// The operator with its sides exchanged.
fn mirrored(op: &str) -> Option<&'static str> {
    Some(match op {
        "<" => ">",
        "<=" => ">=",
        ">" => "<",
        ">=" => "<=",
        _ => return None,
    })
}

/// What the comparison `left op right` says of the present, if it compares the present with something of the row.
fn bound(op: &str, left: &Expr, right: &Expr) -> Option<Bound> {
    let (op, moment, plus_us) = match (now_plus(left), now_plus(right)) {
        // now() + c op moment
        (Some(c), None) => (op, right.clone(), c.checked_neg()?),
        (None, Some(c)) => (mirrored(op)?, left.clone(), c.checked_neg()?),
        // now() + c - moment op by, or moment - (now() + c) op by
        _ => {
            let (op, difference, by) = match (length_us(left), length_us(right)) {
                (None, Some(by)) => (op, left, by),
                (Some(by), None) => (mirrored(op)?, right, by),
                _ => return None,
            };
            // Lengths are compared as numbers.
            let Expr::Call { function, args } = difference else { return None };
            let (function, args) = match (function.as_str(), args.as_slice()) {
                ("interval_order", [Expr::Call { function, args }]) => (function, args),
                _ => return None,
            };
            match (function.as_str(), args.as_slice()) {
                ("-", [now, moment]) if now_plus(now).is_some() => {
                    (op, moment.clone(), by.checked_sub(now_plus(now)?)?)
                }
                ("-", [moment, now]) if now_plus(now).is_some() => {
                    (mirrored(op)?, moment.clone(), by.checked_neg()?.checked_sub(now_plus(now)?)?)
                }
                _ => return None,
            }
        }
    };
    if reads(&moment, NOW) {
        return None;
    }
    // now() op moment + shift
    Some(match op {
        "<" => Bound { until: true, moment, shift_us: plus_us },
        "<=" => Bound { until: true, moment, shift_us: plus_us.checked_add(1)? },
        ">" => Bound { until: false, moment, shift_us: plus_us.checked_add(1)? },
        ">=" => Bound { until: false, moment, shift_us: plus_us },
        _ => return None,
    })
}

fn conjuncts(e: Expr, into: &mut Vec<Expr>) {
    match e {
        Expr::Binary { op, left, right } if op == "AND" => {
            conjuncts(*left, into);
            conjuncts(*right, into);
        }
        e => into.push(e),
    }
}

/// The refusal of the present where it cannot be had.
pub(crate) fn unsupported(name: &str) -> Error {
    let error = Error::unsupported(format!("this use of {name}() is not supported in a standing query"));
    match name {
        NOW => error.with_detail("A row must be there from a moment on, or until a moment.").with_hint(
            "Compare one time of the row with now() in WHERE, joined by AND: ts > now() - INTERVAL '1 hour'.",
        ),
        _ => error
            .with_detail("It is the time at which a row came, so the row must be one that never changes.")
            .with_hint(
                "Select PROCTIME() as a column of rows that are only added: SELECT *, PROCTIME() AS at FROM source.",
            ),
    }
}

impl StreamNode {
    /// Takes the conditions on `now()` out of `predicate`: the node under them, and what is left.
    pub(super) fn filter_by_present(self, predicate: Expr) -> Result<(StreamNode, Option<Expr>)> {
        if reads(&predicate, PROCTIME) {
            return Err(unsupported(PROCTIME));
        }
        if !reads(&predicate, NOW) {
            return Ok((self, Some(predicate)));
        }
        let mut all = Vec::new();
        conjuncts(predicate, &mut all);
        let (mut moments, mut bounds, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        for e in all {
            if !reads(&e, NOW) {
                rest.push(e);
                continue;
            }
            let found = match &e {
                Expr::Binary { op, left, right } => bound(op, left, right),
                _ => None,
            };
            let Bound { until, moment, shift_us } = found.ok_or_else(|| unsupported(NOW))?;
            let field = expr::field_of(&moment, &self.schema)?;
            if !matches!(field.data_type(), DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, _)) {
                return Err(unsupported(NOW)
                    .with_detail(format!("now() is compared with a value of type {}.", sql_type(field.data_type()))));
            }
            moments.push(moment);
            bounds.push((until, shift_us));
        }
        let width = self.width();
        let (node, places) = self.extend(moments)?;
        let (mut from, mut until) = (Vec::new(), Vec::new());
        for (place, (is_until, shift_us)) in places.into_iter().zip(bounds) {
            if is_until { until.push((place, shift_us)) } else { from.push((place, shift_us)) }
        }
        let node = node.temporal_filter(from, until).pick(&(0..width).collect::<Vec<_>>())?;
        Ok((node, Expr::all(rest)))
    }

    /// The node with the time of a row's coming in a last column, if `exprs` ask for it, and `exprs` over that.
    pub(super) fn with_processing_time(self, mut exprs: Vec<Expr>) -> Result<(StreamNode, Vec<Expr>)> {
        if exprs.iter().any(|e| reads(e, NOW)) {
            return Err(unsupported(NOW));
        }
        if !exprs.iter().any(|e| reads(e, PROCTIME)) {
            return Ok((self, exprs));
        }
        if self.traits.change_kind != ChangeKind::AppendOnly {
            return Err(unsupported(PROCTIME));
        }
        fn replace(e: &mut Expr, column: usize) {
            if is_call(e, PROCTIME) {
                *e = Expr::Column(column);
                return;
            }
            e.children_mut().into_iter().for_each(|child| replace(child, column));
        }
        let column = self.width();
        exprs.iter_mut().for_each(|e| replace(e, column));
        Ok((self.processing_time(), exprs))
    }
}
