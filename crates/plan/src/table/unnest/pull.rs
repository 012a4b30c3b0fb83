//! Correlated filters moved up, to become the condition of a join.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, JoinType, Result};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Distinct, Expr, Filter, Join, LogicalPlan, Operator, Projection, SubqueryAlias};

use super::shape::{expr_reads_outer, has_subquery, reads_outer};
use super::{Unnesting, renamed};

/// A subquery whose own expressions read nothing of the query around it any more.
pub(super) struct Pulled {
    /// The subquery's columns, and after them those that only the conditions read.
    pub plan: LogicalPlan,
    /// Which rows belong to given outer values: over columns of `plan` and outer references.
    pub conditions: Vec<Expr>,
}

/// `plan` with its correlated filters taken out; `None` if something else than such filters reads `outer`, or if a filter
/// stands below an operator that it cannot pass. `only_existence`: how often a row comes does not matter.
pub(super) fn pull(
    unnesting: &mut Unnesting,
    plan: &LogicalPlan,
    outer: &DFSchema,
    only_existence: bool,
) -> Result<Option<Pulled>> {
    if !reads_outer(plan, outer)? {
        return Ok(Some(Pulled { plan: plan.clone(), conditions: vec![] }));
    }
    match plan {
        LogicalPlan::Filter(filter) => {
            let Some(mut below) = pull(unnesting, &filter.input, outer, only_existence)? else { return Ok(None) };
            let mut kept = Vec::new();
            for conjunct in split_conjunction_owned(filter.predicate.clone()) {
                match expr_reads_outer(&conjunct, outer)? {
                    true if has_subquery(&conjunct) => return Ok(None),
                    true => below.conditions.push(conjunct),
                    false => kept.push(conjunct),
                }
            }
            if let Some(predicate) = conjunction(kept) {
                below.plan = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(below.plan))?);
            }
            Ok(Some(below))
        }
        LogicalPlan::Projection(projection) => {
            for expr in &projection.expr {
                if expr_reads_outer(expr, outer)? {
                    return Ok(None);
                }
            }
            let Some(below) = pull(unnesting, &projection.input, outer, only_existence)? else { return Ok(None) };
            let read = columns_of(&below.conditions)?;
            let mut exprs = projection.expr.clone();
            let mut shown = Vec::with_capacity(read.len());
            for column in &read {
                let name = format!("__c{}", unnesting.next());
                exprs.push(Expr::Column(column.clone()).alias(&name));
                shown.push(Column::new_unqualified(name));
            }
            let conditions =
                below.conditions.into_iter().map(|c| renamed(c, &read, &shown)).collect::<Result<Vec<_>>>()?;
            let plan = LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(below.plan))?);
            Ok(Some(Pulled { plan, conditions }))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let Some(below) = pull(unnesting, &alias.input, outer, only_existence)? else { return Ok(None) };
            let own = below.plan.schema().columns();
            let shown: Vec<Column> =
                own.iter().map(|c| Column::new(Some(alias.alias.clone()), c.name.clone())).collect();
            let conditions =
                below.conditions.into_iter().map(|c| renamed(c, &own, &shown)).collect::<Result<Vec<_>>>()?;
            let plan = SubqueryAlias::try_new(Arc::new(below.plan), alias.alias.clone())?;
            Ok(Some(Pulled { plan: LogicalPlan::SubqueryAlias(plan), conditions }))
        }
        LogicalPlan::Join(join) if join.join_type == JoinType::Inner => {
            pull_join(unnesting, join, outer, only_existence)
        }
        LogicalPlan::Sort(sort) if sort.fetch.is_none() => pull(unnesting, &sort.input, outer, only_existence),
        LogicalPlan::Distinct(Distinct::All(input)) if only_existence => pull(unnesting, input, outer, true),
        _ => Ok(None),
    }
}

fn pull_join(unnesting: &mut Unnesting, join: &Join, outer: &DFSchema, only_existence: bool) -> Result<Option<Pulled>> {
    for (left, right) in &join.on {
        if expr_reads_outer(left, outer)? || expr_reads_outer(right, outer)? {
            return Ok(None);
        }
    }
    let Some(left) = pull(unnesting, &join.left, outer, only_existence)? else { return Ok(None) };
    let Some(right) = pull(unnesting, &join.right, outer, only_existence)? else { return Ok(None) };
    let mut conditions = left.conditions;
    conditions.extend(right.conditions);
    let mut kept = Vec::new();
    for conjunct in join.filter.clone().map(split_conjunction_owned).unwrap_or_default() {
        match expr_reads_outer(&conjunct, outer)? {
            true => conditions.push(conjunct),
            false => kept.push(conjunct),
        }
    }
    let original = Arc::clone(&join.schema);
    let joined = Join::try_new(
        Arc::new(left.plan),
        Arc::new(right.plan),
        join.on.clone(),
        conjunction(kept),
        join.join_type,
        join.join_constraint,
        join.null_equality,
        false,
    )?;
    let mut plan = LogicalPlan::Join(joined);
    // Columns that only conditions read come after the join's own.
    if plan.schema().fields().len() > original.fields().len() {
        let mut columns = original.columns();
        for column in plan.schema().columns() {
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        let exprs = columns.into_iter().map(Expr::Column).collect();
        plan = LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(plan))?);
    }
    Ok(Some(Pulled { plan, conditions }))
}

/// The columns that expressions read, each once.
fn columns_of(exprs: &[Expr]) -> Result<Vec<Column>> {
    let mut columns = Vec::new();
    for expr in exprs {
        expr.apply(|e| {
            if let Expr::Column(column) = e
                && !columns.contains(column)
            {
                columns.push(column.clone());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(columns)
}

/// The conditions as pairs of an outer and an inner expression that must be equal; `None` if one is something else.
pub(super) fn equalities(conditions: &[Expr]) -> Option<Vec<(Expr, Expr)>> {
    let is_inner = |e: &Expr| !e.contains_outer() && e.any_column_refs();
    let is_outer = |e: &Expr| e.contains_outer() && !e.any_column_refs();
    let pair = |condition: &Expr| match condition {
        Expr::BinaryExpr(b) if b.op == Operator::Eq => {
            let (l, r) = (b.left.as_ref(), b.right.as_ref());
            if is_outer(l) && is_inner(r) {
                Some((l.clone(), r.clone()))
            } else if is_outer(r) && is_inner(l) {
                Some((r.clone(), l.clone()))
            } else {
                None
            }
        }
        _ => None,
    };
    conditions.iter().map(pair).collect()
}
