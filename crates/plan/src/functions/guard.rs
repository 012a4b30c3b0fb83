//! Ad-hoc plans whose AND and OR do not fail on rows that their left side has already decided.
//!
//! DataFusion evaluates both sides of `b <> 0 AND a / b > 1` on whole batches, and even turns a Boolean CASE into such a
//! form. Where the right side can fail, the operator becomes the one of standing queries, which then evaluates it on the
//! undecided rows only.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::BinaryExpr;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};

use super::{arithmetic, cast, chain, library, single_row};
use crate::expr::GuardedLogic;

/// Guards the predicates of filters and the expressions of projections.
#[derive(Debug)]
pub struct GuardedPredicates;

impl PhysicalOptimizerRule for GuardedPredicates {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(plan.transform_up(guard_node)?.data)
    }

    fn name(&self) -> &str {
        "guarded_predicates"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn guard_node(node: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    if let Some(filter) = node.downcast_ref::<FilterExec>() {
        let guarded = guard(Arc::clone(filter.predicate()))?;
        if guarded.transformed {
            let filter = FilterExecBuilder::from(filter).with_predicate(guarded.data).build()?;
            return Ok(Transformed::yes(Arc::new(filter)));
        }
    } else if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
        let mut changed = false;
        let mut exprs = Vec::with_capacity(projection.expr().len());
        for item in projection.expr() {
            let guarded = guard(Arc::clone(&item.expr))?;
            changed |= guarded.transformed;
            exprs.push(ProjectionExpr { expr: guarded.data, alias: item.alias.clone() });
        }
        if changed {
            let projection = ProjectionExec::try_new(exprs, Arc::clone(projection.input()))?;
            return Ok(Transformed::yes(Arc::new(projection)));
        }
    }
    Ok(Transformed::no(node))
}

fn guard(expr: Arc<dyn PhysicalExpr>) -> Result<Transformed<Arc<dyn PhysicalExpr>>> {
    expr.transform_up(|e| {
        let Some(binary) = e.downcast_ref::<BinaryExpr>() else { return Ok(Transformed::no(e)) };
        if !matches!(binary.op(), Operator::And | Operator::Or) || !can_fail(binary.right())? {
            return Ok(Transformed::no(e));
        }
        let conjunction = *binary.op() == Operator::And;
        let guarded = GuardedLogic::new(Arc::clone(binary.left()), conjunction, Arc::clone(binary.right()));
        Ok(Transformed::yes(Arc::new(guarded)))
    })
}

/// Whether the expression calls one of our functions, whose checks make them fail.
fn can_fail(expr: &Arc<dyn PhysicalExpr>) -> Result<bool> {
    expr.exists(|e| {
        Ok(e.downcast_ref::<ScalarFunctionExpr>().is_some_and(|call| {
            let name = call.name();
            library::of(call.fun()).is_some()
                || name == arithmetic::Negate::NAME
                || name == single_row::NAME
                || chain::is_chain(call.fun())
                || arithmetic::Op::ALL.iter().any(|op| op.sign() == name)
                || cast::TARGETS.iter().any(|(target, _)| *target == name)
        }))
    })
}
