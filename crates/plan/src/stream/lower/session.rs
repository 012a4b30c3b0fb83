//! GROUP BY over session windows.
//!
//! The pattern is an aggregate, over projections, aliases and filters, over the window functions that `SESSION` in FROM stands
//! for. It becomes one operator, because a session is known only by its rows: their number is what a standing query must
//! not keep.

use datafusion::logical_expr as df;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::{Aggregate, Filter, LogicalPlan, Projection, Window};
use flow::{Error, Result};

use super::super::{AggCall, StreamNode};
use super::Lowering;
use super::aggregate::{Call, calls};
use crate::expr::{Expr, from_datafusion};
use crate::functions::session::{END, START, gap_us};

enum Above<'a> {
    Projection(&'a Projection),
    Filter(&'a Filter),
}

/// The window function that `e` is.
fn function(e: &df::Expr) -> Option<&WindowFunction> {
    match e {
        df::Expr::Alias(a) => function(&a.expr),
        df::Expr::WindowFunction(f) => Some(f),
        _ => None,
    }
}

/// Whether `e` is a bound of a session.
pub(super) fn is_session(e: &df::Expr) -> bool {
    function(e).is_some_and(|f| matches!(f.fun.name(), START | END))
}

/// The refusal of sessions that are not grouped by.
pub(super) fn ungrouped() -> Error {
    Error::unsupported("SESSION without GROUP BY is not supported in a standing query")
        .with_detail("Every row would change whenever its session grows.")
        .with_hint("Aggregate: SELECT key, window_start, window_end, count(*) FROM SESSION(…) GROUP BY key, window_start, window_end.")
}

/// What an expression over the aggregate's input is over the window's output.
fn down(mut e: Expr, above: &[Above<'_>]) -> Result<Expr> {
    for step in above {
        if let Above::Projection(p) = step {
            let exprs = p.expr.iter().map(|e| from_datafusion(e, p.input.schema())).collect::<Result<Vec<_>>>()?;
            e.replace_columns(&|c| exprs.get(c).cloned().unwrap_or(Expr::Column(c)));
        }
    }
    Ok(e)
}

impl Lowering {
    /// The sessions that `aggregate` groups by; `None` if there are none right below it.
    pub(super) fn sessions(&mut self, aggregate: &Aggregate) -> Result<Option<StreamNode>> {
        let mut above: Vec<Above<'_>> = Vec::new();
        let mut below: &LogicalPlan = &aggregate.input;
        let window = loop {
            match below {
                LogicalPlan::Projection(p) => {
                    above.push(Above::Projection(p));
                    below = &p.input;
                }
                LogicalPlan::Filter(f) => {
                    above.push(Above::Filter(f));
                    below = &f.input;
                }
                LogicalPlan::SubqueryAlias(a) => below = &a.input,
                LogicalPlan::Window(window) if window.window_expr.iter().any(is_session) => break window,
                _ => return Ok(None),
            }
        };
        let schema = aggregate.input.schema();
        let mut group = Vec::new();
        for e in &aggregate.group_expr {
            if matches!(e, df::Expr::GroupingSet(_)) {
                return Err(Error::unsupported("grouping sets over SESSION are not supported in a standing query")
                    .with_hint("Group by the keys and the window in a view, and that view by grouping sets."));
            }
            let e = down(from_datafusion(e, schema)?, &above)?;
            if !group.contains(&e) {
                group.push(e);
            }
        }
        let calls = calls(aggregate, schema, group.len())?;
        let mut conditions = Vec::new();
        for (n, step) in above.iter().enumerate() {
            if let Above::Filter(f) = step {
                let predicate = from_datafusion(&f.predicate, f.input.schema())?;
                conditions.push(down(predicate, above.get(n + 1..).unwrap_or_default())?);
            }
        }
        let calls = calls.into_iter().map(|call| {
            let Call { function, arg, distinct, filter, output } = call;
            let arg = arg.map(|e| down(e, &above)).transpose()?;
            let filter = filter.map(|e| down(e, &above)).transpose()?;
            Ok(Call { function, arg, distinct, filter, output })
        });
        let calls = calls.collect::<Result<Vec<_>>>()?;
        self.grouped_sessions(window, &group, calls, conditions).map(Some)
    }

    /// Sessions of `window`, grouped; everything is over the window's output columns.
    fn grouped_sessions(
        &mut self,
        window: &Window,
        group: &[Expr],
        calls: Vec<Call>,
        conditions: Vec<Expr>,
    ) -> Result<StreamNode> {
        let schema = window.input.schema();
        let base = schema.fields().len();
        let bounds: Vec<&WindowFunction> = window.window_expr.iter().filter_map(function).collect();
        let Some(first) = bounds.first().filter(|_| window.window_expr.iter().all(is_session)) else {
            return Err(ungrouped());
        };
        let same = |f: &&WindowFunction| {
            let (f, first) = (&f.params, &first.params);
            f.args == first.args && f.partition_by == first.partition_by && f.order_by == first.order_by
        };
        let ([at, gap], true) = (first.params.args.as_slice(), bounds.iter().all(same)) else {
            return Err(ungrouped());
        };
        let Expr::Literal(gap) = from_datafusion(gap, schema)? else {
            return Err(Error::unsupported("the gap of a session must be a constant")
                .with_hint("Write an interval: INTERVAL '10 seconds'."));
        };
        let gap_us = gap_us(&gap.to_scalar()?)?;
        // What the operator reads, in a projection below it.
        let mut exprs: Vec<Expr> = Vec::new();
        let mut place = |e: Expr| match exprs.iter().position(|have| *have == e) {
            Some(i) => i,
            None => {
                exprs.push(e);
                exprs.len() - 1
            }
        };
        let mut keys: Vec<usize> = Vec::new();
        let mut key_exprs: Vec<Expr> = Vec::new();
        for e in &first.params.partition_by {
            let e = from_datafusion(e, schema)?;
            if !key_exprs.contains(&e) {
                keys.push(place(e.clone()));
                key_exprs.push(e);
            }
        }
        let time = place(from_datafusion(at, schema)?);
        let (start, end) = (keys.len(), keys.len() + 1);
        // A key, or a bound, as a column of the operator's output.
        let output = |e: &Expr| match e {
            Expr::Column(c) if *c >= base => {
                bounds.get(*c - base).map(|f| if f.fun.name() == START { start } else { end })
            }
            e => key_exprs.iter().position(|key| key == e),
        };
        let mut grouped = Vec::with_capacity(group.len());
        for e in group {
            grouped.push(output(e).ok_or_else(|| {
                Error::unsupported("grouping sessions by other columns is not supported in a standing query")
                    .with_detail("A session is known by the PARTITION BY of SESSION and its window.")
                    .with_hint("Partition by all columns that you group by, or group by the PARTITION BY columns, window_start and window_end alone.")
            })?);
        }
        if !(grouped.contains(&start) || grouped.contains(&end)) || !(0..keys.len()).all(|k| grouped.contains(&k)) {
            return Err(Error::unsupported(
                "grouping several sessions into one row is not supported in a standing query here",
            )
            .with_detail("GROUP BY lacks a column of PARTITION BY, or the window.")
            .with_hint(
                "Group by the PARTITION BY columns, window_start and window_end in a view, and group that view.",
            ));
        }
        let mut made = Vec::with_capacity(calls.len());
        for call in calls {
            let mut read = |e: Expr| -> Result<usize> {
                let mut bound = false;
                e.visit_columns(&mut |c| bound |= c >= base);
                if bound {
                    return Err(Error::unsupported(
                        "aggregates over window_start or window_end of a session are not supported in a standing query",
                    )
                    .with_hint("Group by them in a view, and aggregate the view."));
                }
                Ok(place(e))
            };
            made.push(AggCall {
                function: call.function,
                arg: call.arg.map(&mut read).transpose()?,
                distinct: call.distinct,
                filter: call.filter.map(&mut read).transpose()?,
                output: call.output,
            });
        }
        let input = self.plan(&window.input)?;
        let named = exprs.into_iter().map(|e| {
            let name = e.named(&input.schema).to_string();
            (e, name)
        });
        let named = named.collect();
        let input = input.project(named)?;
        let names = made.iter().map(|c| c.named(&input.schema).to_string()).collect();
        let calls = made.len();
        let mut node = input.session(keys, time, gap_us, made, names)?;
        for condition in conditions {
            let mut fits = true;
            condition.visit_columns(&mut |c| fits &= output(&Expr::Column(c)).is_some());
            if !fits {
                return Err(Error::unsupported("a condition on rows of sessions is not supported in a standing query")
                    .with_detail("It leaves out rows that still belong to their sessions.")
                    .with_hint("Leave the rows out before: SESSION((SELECT … WHERE …), time, gap PARTITION BY key)."));
            }
            node = node.filter(condition.map_columns(&|c| output(&Expr::Column(c)).unwrap_or_default()))?;
        }
        let picked: Vec<usize> = grouped.into_iter().chain((0..calls).map(|c| end + 1 + c)).collect();
        node.pick(&picked)
    }
}
