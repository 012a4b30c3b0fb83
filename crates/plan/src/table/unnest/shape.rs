//! Questions about plans and expressions with subqueries.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, JoinType, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Cast, Distinct, Expr, FetchType, LogicalPlan, Operator, SkipType};

use crate::table::relation_of;

pub(super) fn has_subquery(expr: &Expr) -> bool {
    expr.exists(|e| Ok(matches!(e, Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_)))).unwrap_or(true)
}

/// Whether a plan holds subqueries or LATERAL, and whether it holds comparisons with ANY or ALL of a subquery.
pub(super) fn subqueries_of(plan: &LogicalPlan) -> Result<(bool, bool)> {
    let (mut any, mut comparisons) = (false, false);
    plan.apply_with_subqueries(|node| {
        any |= matches!(node, LogicalPlan::Subquery(_));
        node.apply_expressions(|expr| {
            expr.apply(|e| {
                comparisons |= matches!(e, Expr::SetComparison(_));
                any |= matches!(
                    e,
                    Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_)
                );
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok((any, comparisons))
}

fn refers(expr: &Expr, outer: Option<&DFSchema>) -> Result<bool> {
    expr.exists(|e| {
        Ok(match (e, outer) {
            (Expr::OuterReferenceColumn(_, column), Some(outer)) => outer.has_column(column),
            (Expr::OuterReferenceColumn(..), None) => true,
            _ => false,
        })
    })
}

/// Whether an expression of the plan reads a column of `outer`. Subqueries that are left inside read only the plan itself.
pub(super) fn reads_outer(plan: &LogicalPlan, outer: &DFSchema) -> Result<bool> {
    reads(plan, Some(outer))
}

/// Whether an expression of the plan reads any query around it.
pub(super) fn reads_any_outer(plan: &LogicalPlan) -> Result<bool> {
    reads(plan, None)
}

fn reads(plan: &LogicalPlan, outer: Option<&DFSchema>) -> Result<bool> {
    let mut found = false;
    plan.apply(|node| {
        node.apply_expressions(|expr| {
            found |= refers(expr, outer)?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Whether `expr` reads a column of `outer`.
pub(super) fn expr_reads_outer(expr: &Expr, outer: &DFSchema) -> Result<bool> {
    refers(expr, Some(outer))
}

/// The columns of `outer` that the plan reads, each once.
pub(super) fn outer_columns(plan: &LogicalPlan, outer: &DFSchema) -> Result<Vec<Column>> {
    let mut columns = Vec::new();
    plan.apply(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|e| {
                if let Expr::OuterReferenceColumn(_, column) = e
                    && outer.has_column(column)
                    && !columns.contains(column)
                {
                    columns.push(column.clone());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(columns)
}

/// Whether everything that `condition` reads, also in its subqueries, is a column of `side`.
pub(super) fn reads_only(condition: &Expr, side: &DFSchema) -> Result<bool> {
    let mut inside = true;
    condition.apply(|e| {
        match e {
            Expr::Column(column) => inside &= side.has_column(column),
            Expr::Exists(exists) => inside &= outer_references_within(&exists.subquery.subquery, side)?,
            Expr::InSubquery(i) => inside &= outer_references_within(&i.subquery.subquery, side)?,
            Expr::ScalarSubquery(subquery) => inside &= outer_references_within(&subquery.subquery, side)?,
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(inside)
}

fn outer_references_within(plan: &LogicalPlan, side: &DFSchema) -> Result<bool> {
    let mut inside = true;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|e| {
                if let Expr::OuterReferenceColumn(_, column) = e {
                    inside &= side.has_column(column);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(inside)
}

/// What matters of a subquery of which only "has it rows" is asked.
pub(super) fn without_select_list(plan: LogicalPlan) -> Result<LogicalPlan> {
    Ok(match plan {
        LogicalPlan::Projection(p) if !p.expr.iter().any(has_subquery) => {
            without_select_list(Arc::unwrap_or_clone(p.input))?
        }
        LogicalPlan::SubqueryAlias(a) => without_select_list(Arc::unwrap_or_clone(a.input))?,
        LogicalPlan::Sort(s) if s.fetch.is_none() => without_select_list(Arc::unwrap_or_clone(s.input))?,
        LogicalPlan::Distinct(Distinct::All(input)) => without_select_list(Arc::unwrap_or_clone(input))?,
        LogicalPlan::Limit(limit) => {
            let skips = !matches!(limit.get_skip_type()?, SkipType::Literal(0));
            match limit.get_fetch_type()? {
                FetchType::Literal(None) if !skips => without_select_list(Arc::unwrap_or_clone(limit.input))?,
                FetchType::Literal(Some(n)) if n > 0 && !skips => {
                    without_select_list(Arc::unwrap_or_clone(limit.input))?
                }
                _ => LogicalPlan::Limit(limit),
            }
        }
        other => other,
    })
}

/// Whether it follows from the plan's form that it has at most one row for given outer values.
pub(super) fn at_most_one_row(plan: &LogicalPlan) -> bool {
    one_row(plan, &[])
}

/// `fixed`: columns of the plan that hold one value.
fn one_row(plan: &LogicalPlan, fixed: &[usize]) -> bool {
    match plan {
        LogicalPlan::Projection(p) => {
            let below = fixed.iter().filter_map(|i| {
                let column = plain_column(p.expr.get(*i)?)?;
                p.input.schema().maybe_index_of_column(column)
            });
            one_row(&p.input, &below.collect::<Vec<_>>())
        }
        LogicalPlan::SubqueryAlias(a) => one_row(&a.input, fixed),
        LogicalPlan::Sort(s) => s.fetch == Some(1) || one_row(&s.input, fixed),
        LogicalPlan::Distinct(Distinct::All(input)) => one_row(input, fixed),
        LogicalPlan::Filter(f) => {
            let mut fixed = fixed.to_vec();
            let constant = |e: &Expr| !e.any_column_refs() && !has_subquery(e);
            for conjunct in split_conjunction(&f.predicate) {
                let Expr::BinaryExpr(b) = conjunct else { continue };
                if b.op != Operator::Eq {
                    continue;
                }
                for (column, value) in [(&b.left, &b.right), (&b.right, &b.left)] {
                    if constant(value)
                        && let Some(column) = plain_column(column)
                        && let Some(index) = f.input.schema().maybe_index_of_column(column)
                    {
                        fixed.push(index);
                    }
                }
            }
            one_row(&f.input, &fixed)
        }
        LogicalPlan::Aggregate(a) => a.group_expr.is_empty(),
        LogicalPlan::Limit(limit) => {
            matches!(limit.get_fetch_type(), Ok(FetchType::Literal(Some(n))) if n <= 1) || one_row(&limit.input, fixed)
        }
        LogicalPlan::EmptyRelation(_) => true,
        LogicalPlan::Values(values) => values.values.len() <= 1,
        LogicalPlan::Join(join) => {
            let width = join.left.schema().fields().len();
            let left: Vec<usize> = fixed.iter().copied().filter(|i| *i < width).collect();
            let right: Vec<usize> = fixed.iter().filter_map(|i| i.checked_sub(width)).collect();
            match join.join_type {
                JoinType::Inner | JoinType::Left => one_row(&join.left, &left) && one_row(&join.right, &right),
                JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => one_row(&join.left, &left),
                _ => false,
            }
        }
        LogicalPlan::TableScan(scan) => {
            let Some(source) = relation_of(&scan.source) else { return false };
            let place = |i: &usize| match &scan.projection {
                Some(columns) => columns.get(*i).copied(),
                None => Some(*i),
            };
            let fixed: Vec<usize> = fixed.iter().filter_map(place).collect();
            source.unique_keys.iter().any(|key| key.iter().all(|c| fixed.contains(c)))
        }
        _ => false,
    }
}

/// The column that `expr` is, also under casts between whole numbers: they keep different values apart, or fail.
fn plain_column(expr: &Expr) -> Option<&Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Alias(alias) => plain_column(&alias.expr),
        Expr::Cast(Cast { expr, field }) if field.data_type().is_integer() => plain_column(expr),
        Expr::ScalarFunction(ScalarFunction { func, args })
            if matches!(func.name(), "int2" | "int4" | "int8") && args.len() == 1 =>
        {
            let column = plain_column(args.first()?)?;
            Some(column)
        }
        _ => None,
    }
}

/// Whether DataFusion turns this correlated scalar subquery into a join rightly: one global aggregate over filters that
/// hold plain columns equal to outer values of the query directly around it.
pub(super) fn datafusion_decorrelates(plan: &LogicalPlan, outer: &DFSchema) -> Result<bool> {
    let mut node = plan;
    let aggregate = loop {
        match node {
            LogicalPlan::Projection(p) if !p.expr.iter().any(|e| e.contains_outer() || has_subquery(e)) => {
                node = &p.input;
            }
            LogicalPlan::SubqueryAlias(a) => node = &a.input,
            LogicalPlan::Aggregate(a) if a.group_expr.is_empty() => break a,
            _ => return Ok(false),
        }
    };
    if aggregate.aggr_expr.is_empty() || aggregate.aggr_expr.iter().any(|e| e.contains_outer() || has_subquery(e)) {
        return Ok(false);
    }
    only_equalities(&aggregate.input, outer)
}

fn only_equalities(plan: &LogicalPlan, outer: &DFSchema) -> Result<bool> {
    Ok(match plan {
        LogicalPlan::Filter(f) => {
            let mut fits = true;
            for conjunct in split_conjunction(&f.predicate) {
                fits &= !has_subquery(conjunct);
                if conjunct.contains_outer() {
                    fits &= matches!(conjunct, Expr::BinaryExpr(b) if b.op == Operator::Eq
                        && (is_pair(&b.left, &b.right, outer)? || is_pair(&b.right, &b.left, outer)?));
                }
            }
            fits && only_equalities(&f.input, outer)?
        }
        LogicalPlan::SubqueryAlias(a) => only_equalities(&a.input, outer)?,
        LogicalPlan::Projection(p) => {
            !p.expr.iter().any(|e| e.contains_outer() || has_subquery(e)) && only_equalities(&p.input, outer)?
        }
        LogicalPlan::Join(join) if join.join_type == JoinType::Inner => {
            let conditions = join.on.iter().flat_map(|(l, r)| [l, r]).chain(&join.filter);
            !conditions.into_iter().any(|e| e.contains_outer() || has_subquery(e))
                && only_equalities(&join.left, outer)?
                && only_equalities(&join.right, outer)?
        }
        other => !reads_any_outer(other)? && !subqueries_of(other)?.0,
    })
}

/// Whether `column = value` with a column of the subquery and an expression over the query around it.
fn is_pair(column: &Expr, value: &Expr, outer: &DFSchema) -> Result<bool> {
    let plain = match column {
        Expr::Column(_) => true,
        Expr::Cast(cast) => matches!(cast.expr.as_ref(), Expr::Column(_)),
        _ => false,
    };
    let mut inside = true;
    value.apply(|e| {
        match e {
            Expr::OuterReferenceColumn(_, c) => inside &= outer.has_column(c),
            Expr::Column(_) => inside = false,
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(plain && inside)
}
