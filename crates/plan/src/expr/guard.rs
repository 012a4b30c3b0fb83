//! AND and OR that do not fail on rows that their left side has already decided.
//!
//! `WHERE b <> 0 AND a / b > 1` must not stop a standing view with a division by zero. Both sides are evaluated on the
//! whole batch first, which is the fast way; only when that fails is the right side evaluated again, on the undecided
//! rows alone.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::kernels::boolean::{and_kleene, not, or_kleene};
use arrow::compute::prep_null_mask_filter;
use arrow::datatypes::{DataType, Schema};
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, Operator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::BinaryExpr;

/// `left AND right` or `left OR right` of Booleans.
#[derive(Debug, Eq)]
pub(crate) struct GuardedLogic {
    plain: Arc<dyn PhysicalExpr>,
    left: Arc<dyn PhysicalExpr>,
    right: Arc<dyn PhysicalExpr>,
    conjunction: bool,
}

impl GuardedLogic {
    pub(crate) fn new(left: Arc<dyn PhysicalExpr>, conjunction: bool, right: Arc<dyn PhysicalExpr>) -> GuardedLogic {
        let op = if conjunction { Operator::And } else { Operator::Or };
        let plain = Arc::new(BinaryExpr::new(Arc::clone(&left), op, Arc::clone(&right)));
        GuardedLogic { plain, left, right, conjunction }
    }

    fn evaluate_undecided(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let rows = batch.num_rows();
        let left = self.left.evaluate(batch)?.into_array(rows)?;
        let Some(left) = left.as_boolean_opt() else {
            // A NULL constant decides nothing.
            return self.plain.evaluate(batch);
        };
        let decided = if self.conjunction { not(left)? } else { left.clone() };
        let decided = if decided.null_count() > 0 { prep_null_mask_filter(&decided) } else { decided };
        let undecided = not(&decided)?;
        let right = self.right.evaluate_selection(batch, &undecided)?.into_array(rows)?;
        let right = match right.as_boolean_opt() {
            Some(right) => right.clone(),
            None => BooleanArray::new_null(rows),
        };
        let value = if self.conjunction { and_kleene(left, &right)? } else { or_kleene(left, &right)? };
        Ok(ColumnarValue::Array(Arc::new(value)))
    }
}

impl PartialEq for GuardedLogic {
    fn eq(&self, other: &Self) -> bool {
        self.conjunction == other.conjunction && self.left.eq(&other.left) && self.right.eq(&other.right)
    }
}

impl Hash for GuardedLogic {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.conjunction.hash(state);
        self.left.hash(state);
        self.right.hash(state);
    }
}

impl fmt::Display for GuardedLogic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plain.fmt(f)
    }
}

impl PhysicalExpr for GuardedLogic {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.plain.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.plain.nullable(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        match self.plain.evaluate(batch) {
            Ok(value) => Ok(value),
            Err(_) => self.evaluate_undecided(batch),
        }
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.left, &self.right]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        match children.as_slice() {
            [left, right] => Ok(Arc::new(GuardedLogic::new(Arc::clone(left), self.conjunction, Arc::clone(right)))),
            _ => datafusion::common::internal_err!("AND and OR take two operands"),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plain.fmt_sql(f)
    }
}
