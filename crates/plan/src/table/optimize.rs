//! The optimiser of standing queries.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use datafusion::common::alias::AliasGenerator;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, Volatility};
use datafusion::optimizer::common_subexpr_eliminate::CommonSubexprEliminate;
use datafusion::optimizer::decorrelate_lateral_join::DecorrelateLateralJoin;
use datafusion::optimizer::decorrelate_predicate_subquery::DecorrelatePredicateSubquery;
use datafusion::optimizer::eliminate_cross_join::EliminateCrossJoin;
use datafusion::optimizer::eliminate_filter::EliminateFilter;
use datafusion::optimizer::eliminate_group_by_constant::EliminateGroupByConstant;
use datafusion::optimizer::eliminate_limit::EliminateLimit;
use datafusion::optimizer::eliminate_outer_join::EliminateOuterJoin;
use datafusion::optimizer::extract_equijoin_predicate::ExtractEquijoinPredicate;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::optimize_unions::OptimizeUnions;
use datafusion::optimizer::propagate_empty_relation::PropagateEmptyRelation;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::rewrite_set_comparison::RewriteSetComparison;
use datafusion::optimizer::scalar_subquery_to_join::ScalarSubqueryToJoin;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::optimizer::{Optimizer, OptimizerConfig, OptimizerRule};
use flow::{Error, Result};

use super::keys::{DropRepeated, ForgetKeys};
use crate::error::from_datafusion_error;
use crate::functions::moment::{NOW, PROCTIME};

/// The optimised plan of a standing query.
///
/// `plan` has been analysed (types coerced). Of `options` only the optimiser's part is used. Errors: `0A000` for
/// functions whose value changes without a change of the input, and whatever the rules report.
pub fn optimize(plan: LogicalPlan, options: &ConfigOptions) -> Result<LogicalPlan> {
    refuse_unstable_functions(&plan)?;
    let plan = without_order(plan)?;
    let mut options = options.clone();
    options.optimizer.enable_physical_uncorrelated_scalar_subquery = false;
    options.optimizer.filter_null_join_keys = false;
    options.optimizer.skip_failed_rules = false;
    let config = StandingConfig { aliases: Arc::new(AliasGenerator::new()), options: Arc::new(options) };
    Optimizer::with_rules(rules()).optimize(plan, &config, |_, _| {}).map_err(from_datafusion_error)
}

/// The plan without the ORDER BY of its result: rows of a standing query have no order, and columns that only it reads
/// need not be kept.
fn without_order(plan: LogicalPlan) -> Result<LogicalPlan> {
    match plan {
        LogicalPlan::Sort(sort) if sort.fetch.is_none() => without_order(Arc::unwrap_or_clone(sort.input)),
        LogicalPlan::Projection(p) => {
            let input = without_order(Arc::unwrap_or_clone(p.input))?;
            let projection = Projection::try_new_with_schema(p.expr, Arc::new(input), p.schema);
            projection.map(LogicalPlan::Projection).map_err(from_datafusion_error)
        }
        other => Ok(other),
    }
}

/// DataFusion's rules in DataFusion's order, without
/// - the limit rules (`PushDownLimit`): they move an unordered LIMIT below joins, which would change the rows that our
///   order by row bytes picks;
/// - `SingleDistinctToGroupBy` and `ReplaceDistinctWithAggregate`: DISTINCT and DISTINCT ON have operators of their own;
/// - `EliminateDuplicatedExpr`, and what keys OptimizeProjections would read: see [`keys`](super::keys);
/// - `FilterNullJoinKeys`: the join keeps no rows with NULL keys that cannot match;
/// - `UnionsToFilter`, `ExtractLeafExpressions`, `EliminateJoin`: made for scans of files, or for statistics that a
///   standing query does not have.
fn rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    vec![
        Arc::new(RewriteSetComparison::new()),
        Arc::new(OptimizeUnions::new()),
        Arc::new(SimplifyExpressions::new()),
        Arc::new(DecorrelatePredicateSubquery::new()),
        Arc::new(ScalarSubqueryToJoin::new()),
        Arc::new(DecorrelateLateralJoin::new()),
        Arc::new(ExtractEquijoinPredicate::new()),
        Arc::new(DropRepeated),
        Arc::new(EliminateFilter::new()),
        Arc::new(EliminateCrossJoin::new()),
        Arc::new(EliminateLimit::new()),
        Arc::new(PropagateEmptyRelation::new()),
        Arc::new(EliminateOuterJoin::new()),
        Arc::new(PushDownFilter::new()),
        Arc::new(EliminateGroupByConstant::new()),
        Arc::new(CommonSubexprEliminate::new()),
        Arc::new(ForgetKeys),
        Arc::new(OptimizeProjections::new()),
    ]
}

/// Without a start time nothing folds `now()` into a constant.
struct StandingConfig {
    aliases: Arc<AliasGenerator>,
    options: Arc<ConfigOptions>,
}

impl OptimizerConfig for StandingConfig {
    fn query_execution_start_time(&self) -> Option<DateTime<Utc>> {
        None
    }

    fn alias_generator(&self) -> &Arc<AliasGenerator> {
        &self.aliases
    }

    fn options(&self) -> Arc<ConfigOptions> {
        Arc::clone(&self.options)
    }
}

/// Functions of the clock: stable within a statement, but a standing query has no end. Lowering deals with `now()` and
/// `PROCTIME()`.
const CLOCK_FUNCTIONS: [&str; 10] = [
    "current_timestamp",
    "current_date",
    "current_time",
    "today",
    "localtime",
    "localtimestamp",
    "statement_timestamp",
    "transaction_timestamp",
    "clock_timestamp",
    "timeofday",
];

fn refuse_unstable_functions(plan: &LogicalPlan) -> Result<()> {
    let mut refusal = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            use datafusion::common::tree_node::TreeNode;
            expr.apply(|e| {
                if let Expr::ScalarFunction(call) = e {
                    let name = call.func.name();
                    if matches!(name, NOW | PROCTIME) {
                        return Ok(TreeNodeRecursion::Continue);
                    }
                    if CLOCK_FUNCTIONS.contains(&name) {
                        refusal = Some(
                            Error::unsupported(format!("{name}() is not supported in a standing query"))
                                .with_detail("Its value changes although no input changes.")
                                .with_hint("Filter by time where you read the view, or write the time into a column."),
                        );
                    } else if call.func.signature().volatility == Volatility::Volatile {
                        refusal = Some(
                            Error::unsupported(format!(
                                "volatile function {name} is not supported in a standing query"
                            ))
                            .with_detail("Its value differs from call to call, so a result could not be taken back.")
                            .with_hint("Compute the value where the row is inserted."),
                        );
                    }
                }
                Ok(if refusal.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
            })
        })
    })
    .map_err(from_datafusion_error)?;
    refusal.map_or(Ok(()), Err)
}
