//! The DataFusion session that executes ad-hoc plans, with the analyser and functions that all plans share.

use std::sync::{Arc, OnceLock};

use datafusion::common::config::ConfigOptions;
use datafusion::execution::context::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::optimizer::{Optimizer, OptimizerRule};
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::prelude::SessionConfig;
use plan::table::{DropRepeated, ForgetKeys};

/// Rows in a batch of an ad-hoc query.
const BATCH_ROWS: usize = 8_192;

/// Settings of the SQL planner and of execution. `zone` is the session's time zone.
pub fn options(zone: &str) -> ConfigOptions {
    let mut options = ConfigOptions::default();
    let parser = &mut options.sql_parser;
    parser.parse_float_as_decimal = true;
    parser.enable_ident_normalization = true;
    parser.map_string_types_to_utf8view = true;
    parser.support_varchar_with_length = true;
    parser.collect_spans = true;
    parser.default_null_ordering = "nulls_max".to_string();
    options.execution.time_zone = Some(zone.to_string());
    options.optimizer.skip_failed_rules = false;
    // A rule may write an expression that cannot be NULL as one of which that no longer shows, and a UNION above keeps the
    // schema of before.
    options.execution.skip_physical_aggregate_schema_check = true;
    // Nothing that is scanned here can use filters that arise while a query runs, and a join's filter that passes a
    // constant column of a UNION fails on the types of its values.
    options.optimizer.enable_topk_dynamic_filter_pushdown = false;
    options.optimizer.enable_join_dynamic_filter_pushdown = false;
    options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    options.optimizer.enable_dynamic_filter_pushdown = false;
    options
}

/// [`options`], made once for the zone that most sessions have.
pub(crate) fn shared_options(zone: &str) -> Arc<ConfigOptions> {
    static UTC: OnceLock<Arc<ConfigOptions>> = OnceLock::new();
    match zone {
        "UTC" => Arc::clone(UTC.get_or_init(|| Arc::new(options(zone)))),
        _ => Arc::new(options(zone)),
    }
}

/// A session for `LogicalPlan`s of [`Planner`](crate::Planner): `create_physical_plan` optimises and plans them. They are
/// analysed already, and must not be again: a small bigint parameter in the place of a literal would become an integer.
///
/// `runtime` carries the memory pool; `partitions` is how many threads one query may use. It knows hardly a
/// function by name: plans hold the functions themselves, and every statement clones the session.
pub fn session_state(runtime: Arc<RuntimeEnv>, partitions: usize, zone: &str) -> SessionState {
    let config =
        SessionConfig::from(options(zone)).with_target_partitions(partitions.max(1)).with_batch_size(BATCH_ROWS);
    let mut rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> = Vec::new();
    for rule in Optimizer::new().rules {
        match rule.name() {
            // It splits DISTINCT into two aggregates, and a sum of sums is of another type than the sum.
            "single_distinct_aggregation_to_group_by" => {}
            "eliminate_duplicated_expr" => rules.push(Arc::new(DropRepeated)),
            "optimize_projections" => rules.extend([Arc::new(ForgetKeys), rule]),
            _ => rules.push(rule),
        }
    }
    // What can be pushed down was pushed down in the logical plan. This one finds columns by name where two inputs of a
    // join have columns of the same name.
    let mut physical = PhysicalOptimizer::new().rules;
    physical.retain(|r| !r.name().starts_with("FilterPushdown"));
    physical.push(Arc::new(plan::functions::guard::GuardedPredicates));
    SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_analyzer_rules(Vec::new())
        .with_optimizer_rules(rules)
        // The optimiser looks this one up by name, for DISTINCT ON.
        .with_aggregate_functions(plan::functions::aggregate("first_value").into_iter().collect())
        .with_physical_optimizer_rules(physical)
        .build()
}
