//! Runs a table plan with DataFusion.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::execution::context::SessionState;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use flow::Result;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use plan::error::from_datafusion_error;

use crate::elsewhere::{WorkWhereRowsAre, lines};
use crate::read::{ReadView, ReadViewExtension};

/// The state that every statement's state is made from. `memory_limit` bounds (in bytes) what all running queries together
/// may hold; `partitions` is the parallelism of one.
pub fn base_state(memory_limit: usize, partitions: usize) -> Result<SessionState> {
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(GreedyMemoryPool::new(memory_limit)))
        .build_arc()
        .map_err(from_datafusion_error)?;
    let state = sql::session_state(runtime, partitions, "UTC");
    let mut rules = state.physical_optimizers().to_vec();
    rules.insert(0, Arc::new(WorkWhereRowsAre));
    Ok(SessionStateBuilder::new_from_existing(state).with_physical_optimizer_rules(rules).build())
}

/// The state of one statement in a session with this time zone.
pub fn statement_state(base: &SessionState, time_zone: &str) -> SessionState {
    let mut state = base.clone();
    if base.config_options().execution.time_zone.as_deref() != Some(time_zone) {
        state.config_mut().options_mut().execution.time_zone = Some(time_zone.to_string());
    }
    state
}

/// Result rows as they are computed.
pub type Batches = BoxStream<'static, Result<RecordBatch>>;

/// Optimises and starts `plan`, reading every relation through `view`. Nothing is computed before the stream is polled.
pub async fn execute(
    state: &SessionState,
    plan: &LogicalPlan,
    view: Arc<dyn ReadView>,
) -> Result<(SchemaRef, Batches)> {
    let plan = optimize(state, plan)?;
    execute_optimized(state, &plan, view).await
}

/// The optimised form of `plan`, for [`execute_optimized`]. Computes, and may do so for long.
pub fn optimize(state: &SessionState, plan: &LogicalPlan) -> Result<LogicalPlan> {
    sql::with_large_stack(|| state.optimize(plan)).map_err(from_datafusion_error)
}

/// Starts a plan that has been through [`optimize`].
pub async fn execute_optimized(
    state: &SessionState,
    plan: &LogicalPlan,
    view: Arc<dyn ReadView>,
) -> Result<(SchemaRef, Batches)> {
    let (state, physical) = physical(state, plan, view).await?;
    let schema = physical.schema();
    let stream = execute_stream(physical, state.task_ctx()).map_err(from_datafusion_error)?;
    Ok((schema, stream.map(|batch| batch.map_err(from_datafusion_error)).boxed()))
}

async fn physical(
    state: &SessionState,
    plan: &LogicalPlan,
    view: Arc<dyn ReadView>,
) -> Result<(SessionState, Arc<dyn ExecutionPlan>)> {
    let mut state = state.clone();
    state.config_mut().set_extension(Arc::new(ReadViewExtension(view)));
    let physical = state.query_planner().create_physical_plan(plan, &state).await.map_err(from_datafusion_error)?;
    Ok((state, physical))
}

/// What other processes would do for a plan that has been through [`optimize`]: lines for EXPLAIN, none in one process.
pub async fn explain_elsewhere(
    state: &SessionState,
    plan: &LogicalPlan,
    view: Arc<dyn ReadView>,
) -> Result<Vec<String>> {
    Ok(lines(&physical(state, plan, view).await?.1, false))
}

/// Runs a plan that has been through [`optimize`] to its end. Returns the number of rows that it gave, and what other
/// processes have done for it, as [`explain_elsewhere`] with what was read there and sent.
pub async fn measure(
    state: &SessionState,
    plan: &LogicalPlan,
    view: Arc<dyn ReadView>,
) -> Result<(usize, Vec<String>)> {
    let (state, physical) = physical(state, plan, view).await?;
    let mut batches = execute_stream(Arc::clone(&physical), state.task_ctx()).map_err(from_datafusion_error)?;
    let mut rows = 0;
    while let Some(batch) = batches.next().await {
        rows += batch.map_err(from_datafusion_error)?.num_rows();
    }
    Ok((rows, lines(&physical, true)))
}

/// Runs `plan` to its end.
pub async fn collect(
    state: &SessionState,
    plan: &LogicalPlan,
    view: Arc<dyn ReadView>,
) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    let (schema, batches) = execute(state, plan, view).await?;
    Ok((schema, batches.try_collect().await?))
}
