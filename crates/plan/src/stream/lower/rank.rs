//! Ranking windows: `row_number`, `rank` and `dense_rank`, and the filters on them that make a Top-N.
//!
//! The pattern is a filter on the rank, over projections and aliases, over the window. A bound from above becomes the
//! limit of a Top-N, which then keeps its partitions short; without one the whole partition is ranked.

use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr as df;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Filter, LogicalPlan, Operator, Projection, Window};
use flow::Result;

use super::super::{RankKind, StreamNode};
use super::{Lowering, sort_keys};
use crate::expr::{Expr, from_datafusion, window_unsupported};

/// Ranks that a filter lets through, of one window expression.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    /// Which expression of the window.
    index: usize,
    /// First rank let through, from 1.
    first: u64,
    /// Last rank let through.
    last: Option<u64>,
}

impl Lowering {
    /// The Top-N that `filter` makes of a ranking window below it; `None` if there is no such window.
    pub(super) fn ranked_filter(&mut self, filter: &Filter) -> Result<Option<StreamNode>> {
        let mut above: Vec<&Projection> = Vec::new();
        let mut below: &LogicalPlan = &filter.input;
        let window = loop {
            match below {
                LogicalPlan::Projection(p) => {
                    above.push(p);
                    below = &p.input;
                }
                LogicalPlan::SubqueryAlias(a) => below = &a.input,
                LogicalPlan::Window(window) => break window,
                _ => return Ok(None),
            }
        };
        let base = window.input.schema().fields().len();
        // Which window expression a column of the filter's input is.
        let source = |column: usize| -> Option<usize> {
            let mut column = column;
            for p in &above {
                let Expr::Column(c) = from_datafusion(p.expr.get(column)?, p.input.schema()).ok()? else { return None };
                column = c;
            }
            column.checked_sub(base)
        };
        let schema = filter.input.schema();
        let mut rest = Vec::new();
        let mut bound: Option<Bound> = None;
        for conjunct in split_conjunction(&filter.predicate) {
            let ranges = ranges(conjunct, schema, &source);
            let usable = ranges.filter(|b| {
                let kind = window.window_expr.get(b.index).and_then(|e| rank_kind(e).ok());
                // An offset counts rows; ranks with ties may skip numbers.
                let offset_fits = b.first == 1 || kind == Some(RankKind::RowNumber);
                offset_fits && bound.is_none_or(|have| have.index == b.index)
            });
            match (usable, &mut bound) {
                (Some(new), Some(have)) => {
                    have.first = have.first.max(new.first);
                    have.last = [have.last, new.last].into_iter().flatten().min();
                }
                (Some(new), none) => *none = Some(new),
                (None, _) => rest.push(from_datafusion(conjunct, schema)?),
            }
        }
        let mut node = self.window(window, bound)?;
        for p in above.into_iter().rev() {
            node = self.projection(node, p)?;
        }
        Ok(Some(match Expr::all(rest) {
            Some(predicate) => node.filter(predicate)?,
            None => node,
        }))
    }

    /// The window's ranks as columns after its input's, cut to `bound`.
    pub(super) fn window(&mut self, window: &Window, bound: Option<Bound>) -> Result<StreamNode> {
        let input = self.plan(&window.input)?;
        let schema = window.input.schema();
        // A plan without columns is lowered to one that nothing reads; ranks come after the plan's own.
        let base = schema.fields().len();
        let calls = window.window_expr.iter().map(|e| Ok((rank_kind(e)?, call(e)?))).collect::<Result<Vec<_>>>()?;
        let mut computed = Vec::new();
        for (_, f) in &calls {
            for e in f.params.partition_by.iter().chain(f.params.order_by.iter().map(|s| &s.expr)) {
                computed.push(from_datafusion(e, schema)?);
            }
        }
        let (mut node, places) = input.extend(computed)?;
        let mut places = places.into_iter();
        let mut ranked = Vec::with_capacity(calls.len());
        for (kind, f) in &calls {
            let partition: Vec<usize> = places.by_ref().take(f.params.partition_by.len()).collect();
            let order: Vec<usize> = places.by_ref().take(f.params.order_by.len()).collect();
            ranked.push((*kind, deduplicated(partition), sort_keys(&order, &f.params.order_by)));
        }
        // The one that cuts rows comes last: the others rank all rows.
        let mut sequence: Vec<usize> = (0..ranked.len()).collect();
        if let Some(b) = bound {
            sequence.retain(|i| *i != b.index);
            sequence.push(b.index);
        }
        let mut columns = vec![0; ranked.len()];
        for i in sequence {
            let Some((kind, partition, order)) = ranked.get(i).cloned() else { continue };
            let range = match bound {
                Some(b) if b.index == i => {
                    let skipped = b.first - 1;
                    (skipped, b.last.map(|last| last.saturating_sub(skipped)))
                }
                _ => (0, None),
            };
            let name = match kind {
                RankKind::RowNumber => "row_number",
                RankKind::Rank => "rank",
                RankKind::DenseRank => "dense_rank",
            };
            if let Some(place) = columns.get_mut(i) {
                *place = node.width();
            }
            node = node.top_n(partition, order, range, kind, Some(name));
        }
        let picked: Vec<usize> = (0..base).chain(columns).collect();
        node.pick(&picked)
    }
}

fn deduplicated(columns: Vec<usize>) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::with_capacity(columns.len());
    for c in columns {
        if !kept.contains(&c) {
            kept.push(c);
        }
    }
    kept
}

fn call(e: &df::Expr) -> Result<&WindowFunction> {
    match e {
        df::Expr::Alias(a) => call(&a.expr),
        df::Expr::WindowFunction(f) => Ok(f),
        other => Err(flow::Error::internal(format!("{other} is not a window function"))),
    }
}

fn rank_kind(e: &df::Expr) -> Result<RankKind> {
    let f = call(e)?;
    match f.fun.name().to_ascii_lowercase().as_str() {
        _ if f.params.filter.is_some() || f.params.distinct => Err(window_unsupported(f.fun.name())),
        "row_number" => Ok(RankKind::RowNumber),
        "rank" => Ok(RankKind::Rank),
        "dense_rank" => Ok(RankKind::DenseRank),
        _ if super::session::is_session(e) => Err(super::session::ungrouped()),
        name => Err(window_unsupported(name)),
    }
}

/// The ranks that a conjunct lets through, if it compares one rank with a whole number.
fn ranges(conjunct: &df::Expr, schema: &DFSchema, source: &impl Fn(usize) -> Option<usize>) -> Option<Bound> {
    let rank = |e: &df::Expr| match uncast(e) {
        df::Expr::Column(c) => schema.maybe_index_of_column(c).and_then(source),
        _ => None,
    };
    match conjunct {
        df::Expr::BinaryExpr(b) => {
            let (index, op, n) = match (rank(&b.left), number(&b.right)) {
                (Some(index), Some(n)) => (index, b.op, n),
                _ => (rank(&b.right)?, b.op.swap()?, number(&b.left)?),
            };
            let at_most = |n: i64| u64::try_from(n).unwrap_or(0);
            let at_least = |n: i64| u64::try_from(n).unwrap_or(1).max(1);
            let (first, last) = match op {
                Operator::LtEq => (1, Some(at_most(n))),
                Operator::Lt => (1, Some(at_most(n.saturating_sub(1)))),
                Operator::GtEq => (at_least(n), None),
                Operator::Gt => (at_least(n.saturating_add(1)), None),
                Operator::Eq => (at_least(n), Some(at_most(n))),
                _ => return None,
            };
            Some(Bound { index, first, last })
        }
        df::Expr::Between(b) if !b.negated => {
            let (low, high) = (number(&b.low)?, number(&b.high)?);
            let first = u64::try_from(low).unwrap_or(1).max(1);
            Some(Bound { index: rank(&b.expr)?, first, last: Some(u64::try_from(high).unwrap_or(0)) })
        }
        _ => None,
    }
}

/// `e` without casts between whole numbers, or to a type that holds them all; our casts are calls of the target type.
fn uncast(e: &df::Expr) -> &df::Expr {
    match e {
        df::Expr::Cast(c) if holds_ranks(c.field.data_type()) => uncast(&c.expr),
        df::Expr::ScalarFunction(f) if matches!(f.func.name(), "int4" | "int8" | "numeric") => {
            match f.args.as_slice() {
                [value, ..] if scale(&f.args) >= 0 => uncast(value),
                _ => e,
            }
        }
        df::Expr::Alias(a) => uncast(&a.expr),
        e => e,
    }
}

fn holds_ranks(t: &DataType) -> bool {
    t.is_integer() || matches!(t, DataType::Decimal128(p, s) if *s >= 0 && i32::from(*p) - i32::from(*s) >= 18)
}

/// The scale that `numeric(value, precision, scale)` rounds to; 0 for casts without one.
fn scale(args: &[df::Expr]) -> i32 {
    match args.get(2) {
        Some(df::Expr::Literal(ScalarValue::Int32(Some(scale)), _)) => *scale,
        _ => 0,
    }
}

/// The whole number that a constant is.
fn number(e: &df::Expr) -> Option<i64> {
    let df::Expr::Literal(value, _) = uncast(e) else { return None };
    match value {
        ScalarValue::Decimal128(Some(unscaled), _, scale) => {
            let unit = 10i128.checked_pow(u32::try_from(*scale).ok()?)?;
            if unscaled % unit == 0 { i64::try_from(unscaled / unit).ok() } else { None }
        }
        v if v.data_type().is_integer() => match v.cast_to(&DataType::Int64) {
            Ok(ScalarValue::Int64(n)) => n,
            _ => None,
        },
        _ => None,
    }
}
