//! Evaluating expressions without columns while planning.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DFSchema, DataFusionError, ScalarValue};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::physical_expr::create_physical_expr;

/// The value of an analysed expression that reads no column.
pub(crate) fn evaluate(expr: &Expr, options: &ConfigOptions) -> Result<ScalarValue, DataFusionError> {
    let mut properties = ExecutionProps::new();
    properties.config_options = Some(Arc::new(options.clone()));
    let physical = create_physical_expr(expr, &DFSchema::empty(), &properties, &PhysicalPlanningContext::default())?;
    let batch = RecordBatch::try_new_with_options(
        Arc::new(Schema::empty()),
        Vec::new(),
        &arrow::array::RecordBatchOptions::new().with_row_count(Some(1)),
    )?;
    let value = physical.evaluate(&batch)?.into_array(1)?;
    ScalarValue::try_from_array(&value, 0)
}
