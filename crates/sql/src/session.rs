//! The DataFusion session that executes ad-hoc plans, with the analyser and functions that all plans share.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::execution::context::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::prelude::SessionConfig;

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
    options
}

/// A session for `LogicalPlan`s of [`Planner`](crate::Planner): `create_physical_plan` optimises and plans them. They are
/// analysed already, and must not be again: a small bigint parameter in the place of a literal would become an integer.
///
/// `runtime` carries the memory pool; `partitions` is how many threads one query may use. Building one takes about a
/// millisecond: keep it, and clone it where a statement needs its own.
pub fn session_state(runtime: Arc<RuntimeEnv>, partitions: usize, zone: &str) -> SessionState {
    let config =
        SessionConfig::from(options(zone)).with_target_partitions(partitions.max(1)).with_batch_size(BATCH_ROWS);
    let mut physical = PhysicalOptimizer::new().rules;
    physical.push(Arc::new(plan::functions::guard::GuardedPredicates));
    SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        .with_analyzer_rules(Vec::new())
        .with_physical_optimizer_rules(physical)
        .with_expr_planners(plan::functions::expr_planners())
        .with_scalar_functions(plan::functions::scalars())
        .with_aggregate_functions(plan::functions::aggregates())
        .with_window_functions(plan::functions::windows())
        .build()
}
