//! NOT IN (subquery) before DataFusion decorrelates it.
//!
//! DataFusion plans a NOT IN that is a whole conjunct of WHERE as a null-aware anti join, which is right when the
//! subquery is uncorrelated. Where NOT IN is correlated, stands under OR, or tests a constant, its plan treats NULL as
//! "not found", which SQL does not. Those become `NOT EXISTS (SELECT … WHERE (x = y) IS NOT FALSE)`: in a place where
//! NULL and FALSE mean the same, as everywhere in WHERE below AND and OR, the two are equal.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, DataFusionError, ExprSchema};
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::{BinaryExpr, Expr, Filter, LogicalPlan, Operator, Subquery};
use flow::{Error, Result};

use crate::error::from_datafusion_error;

/// `plan` with every NOT IN (subquery) in a form that keeps SQL's meaning of NULL through decorrelation.
///
/// Errors: `0A000` for IN (subquery) where its NULL could be told from FALSE, as under `IS NULL`.
pub fn rewrite_not_in(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_down_with_subqueries(|node| match node {
        LogicalPlan::Filter(filter) if has_in_subquery(&filter.predicate) => {
            let Filter { predicate, input, .. } = filter;
            let mut conjuncts = Vec::new();
            for conjunct in datafusion::logical_expr::utils::split_conjunction_owned(predicate) {
                conjuncts.push(rewrite_conjunct(conjunct, input.schema())?);
            }
            let predicate = datafusion::logical_expr::utils::conjunction(conjuncts)
                .ok_or_else(|| external(Error::internal("a filter without a predicate")))?;
            Ok(Transformed::yes(LogicalPlan::Filter(Filter::try_new(predicate, input)?)))
        }
        node => Ok(Transformed::no(node)),
    })
    .map(|t| t.data)
    .map_err(from_datafusion_error)
}

fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

fn has_in_subquery(expr: &Expr) -> bool {
    expr.exists(|e| Ok(matches!(e, Expr::InSubquery(_)))).unwrap_or(true)
}

fn rewrite_conjunct(conjunct: Expr, outer: &DFSchema) -> Result<Expr, DataFusionError> {
    match conjunct {
        Expr::Not(inner) => match *inner {
            Expr::InSubquery(i) => rewrite_conjunct(Expr::InSubquery(InSubquery { negated: !i.negated, ..i }), outer),
            inner => rewrite_true_part(Expr::Not(Box::new(inner)), outer),
        },
        Expr::InSubquery(i) if i.negated && i.subquery.outer_ref_columns.is_empty() && reads_columns(&i.expr) => {
            Ok(Expr::InSubquery(i))
        }
        e => rewrite_true_part(e, outer),
    }
}

fn reads_columns(expr: &Expr) -> bool {
    expr.exists(|e| Ok(matches!(e, Expr::Column(_)))).unwrap_or(true)
}

/// Rewrites an expression of which only "is it true" matters.
fn rewrite_true_part(expr: Expr, outer: &DFSchema) -> Result<Expr, DataFusionError> {
    match expr {
        e if !has_in_subquery(&e) => Ok(e),
        Expr::Alias(alias) => rewrite_true_part(*alias.expr, outer),
        Expr::BinaryExpr(b) if matches!(b.op, Operator::And | Operator::Or) => Ok(Expr::BinaryExpr(BinaryExpr {
            left: Box::new(rewrite_true_part(*b.left, outer)?),
            op: b.op,
            right: Box::new(rewrite_true_part(*b.right, outer)?),
        })),
        Expr::IsTrue(e) => rewrite_true_part(*e, outer),
        Expr::Not(inner) => match *inner {
            Expr::Not(e) => rewrite_true_part(*e, outer),
            Expr::BinaryExpr(b) if matches!(b.op, Operator::And | Operator::Or) => {
                let op = if b.op == Operator::And { Operator::Or } else { Operator::And };
                let negated = BinaryExpr { left: Box::new(Expr::Not(b.left)), op, right: Box::new(Expr::Not(b.right)) };
                rewrite_true_part(Expr::BinaryExpr(negated), outer)
            }
            Expr::InSubquery(i) => rewrite_true_part(Expr::InSubquery(InSubquery { negated: !i.negated, ..i }), outer),
            _ => Err(external(in_value_unsupported())),
        },
        Expr::InSubquery(i) if i.negated => not_exists(i, outer),
        Expr::InSubquery(i) if !has_in_subquery(&i.expr) => Ok(Expr::InSubquery(i)),
        _ => Err(external(in_value_unsupported())),
    }
}

fn in_value_unsupported() -> Error {
    Error::unsupported("IN (subquery) as a value is not supported in a standing query")
        .with_detail("Here its NULL would have to be told from its FALSE.")
        .with_hint("Use IN (subquery) as a condition in WHERE, or write EXISTS.")
}

/// `x NOT IN (SELECT y …)` as `NOT EXISTS (SELECT … WHERE (x = y) IS NOT FALSE)`; `outer` is what `x` reads.
fn not_exists(i: InSubquery, outer: &DFSchema) -> Result<Expr, DataFusionError> {
    let InSubquery { expr, subquery, .. } = i;
    let Subquery { subquery: plan, mut outer_ref_columns, spans } = subquery;
    if has_in_subquery(&expr) {
        return Err(external(in_value_unsupported()));
    }
    let tested = expr
        .transform(|e| match e {
            Expr::Column(column) => {
                let field = Arc::clone(outer.field_from_column(&column)?);
                let reference = Expr::OuterReferenceColumn(field, column);
                if !outer_ref_columns.contains(&reference) {
                    outer_ref_columns.push(reference.clone());
                }
                Ok(Transformed::yes(reference))
            }
            e => Ok(Transformed::no(e)),
        })?
        .data;
    let Some(found) = plan.schema().columns().into_iter().next() else {
        return Err(external(Error::internal("a subquery of IN without a column")));
    };
    let not_false = tested.eq(Expr::Column(found)).is_not_false();
    let filtered = Filter::try_new(not_false, plan)?;
    Ok(Expr::Exists(Exists {
        subquery: Subquery { subquery: Arc::new(LogicalPlan::Filter(filtered)), outer_ref_columns, spans },
        negated: true,
    }))
}
