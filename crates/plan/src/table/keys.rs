//! Rules about what determines what in a plan.
//!
//! DataFusion notes functional dependencies in the schemas of a plan. An aggregate takes "the key of one side of a join
//! below, which occurs many times" for "determines everything here", so that sort and grouping columns that matter are
//! dropped above. These rules keep its optimiser from reading the notes.

use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchemaRef, FunctionalDependencies, Result};
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

/// Drops repeated expressions of ORDER BY and GROUP BY.
#[derive(Debug, Default)]
pub struct DropRepeated;

impl OptimizerRule for DropRepeated {
    fn name(&self) -> &str {
        "drop_repeated"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match plan {
            LogicalPlan::Sort(mut sort) => {
                let before = sort.expr.len();
                let mut kept = Vec::with_capacity(before);
                for key in sort.expr {
                    if !kept.iter().any(|k: &datafusion::logical_expr::SortExpr| k.expr == key.expr) {
                        kept.push(key);
                    }
                }
                sort.expr = kept;
                let changed = sort.expr.len() < before;
                Ok(Transformed::new_transformed(LogicalPlan::Sort(sort), changed))
            }
            LogicalPlan::Aggregate(aggregate) => {
                let repeated = |i: usize| aggregate.group_expr[..i].contains(&aggregate.group_expr[i]);
                if !(0..aggregate.group_expr.len()).any(repeated) {
                    return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
                }
                let kept = (0..aggregate.group_expr.len()).filter(|i| !repeated(*i));
                let kept = kept.map(|i| aggregate.group_expr[i].clone()).collect();
                let once = datafusion::logical_expr::Aggregate::try_new(aggregate.input, kept, aggregate.aggr_expr)?;
                Ok(Transformed::yes(LogicalPlan::Aggregate(once)))
            }
            other => Ok(Transformed::no(other)),
        }
    }
}

/// Takes the functional dependencies out of all schemas; to be applied right before a rule that reads them.
#[derive(Debug, Default)]
pub struct ForgetKeys;

fn forget(schema: &mut DFSchemaRef) -> Result<()> {
    if !schema.functional_dependencies().is_empty() {
        let bare = schema.as_ref().clone().with_functional_dependencies(FunctionalDependencies::empty())?;
        *schema = Arc::new(bare);
    }
    Ok(())
}

impl OptimizerRule for ForgetKeys {
    fn name(&self) -> &str {
        "forget_keys"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    /// The plan stays the same, so this never counts as a change that another round of the optimiser must look at.
    fn rewrite(&self, mut plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match &mut plan {
            LogicalPlan::Aggregate(node) => forget(&mut node.schema)?,
            LogicalPlan::Join(node) => forget(&mut node.schema)?,
            LogicalPlan::Projection(node) => forget(&mut node.schema)?,
            LogicalPlan::SubqueryAlias(node) => forget(&mut node.schema)?,
            LogicalPlan::TableScan(node) => forget(&mut node.projected_schema)?,
            LogicalPlan::Union(node) => forget(&mut node.schema)?,
            LogicalPlan::Unnest(node) => forget(&mut node.schema)?,
            LogicalPlan::Window(node) => forget(&mut node.schema)?,
            // The others have the schema of their input, or none of their own.
            _ => {}
        }
        Ok(Transformed::no(plan))
    }
}
