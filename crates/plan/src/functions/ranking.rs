//! `row_number`, `rank`, `dense_rank` and `ntile` with the signed types that Postgres gives them; DataFusion counts unsigned.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::{SortOptions, cast};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{PartitionEvaluatorArgs, WindowUDFFieldArgs};
use datafusion::logical_expr::{LimitEffect, PartitionEvaluator, Signature, WindowUDF, WindowUDFImpl};
use datafusion::physical_expr::PhysicalExpr;

/// The type of the ranking function `name`; `None` if it is not one.
fn result_type(name: &str) -> Option<DataType> {
    match name {
        "row_number" | "rank" | "dense_rank" => Some(DataType::Int64),
        "ntile" => Some(DataType::Int32),
        _ => None,
    }
}

/// `function`, or it with a signed result if it is a ranking function.
pub(super) fn signed(function: Arc<WindowUDF>) -> Arc<WindowUDF> {
    match result_type(function.name()) {
        Some(result) => Arc::new(WindowUDF::from(Ranking { counted: function, result })),
        None => function,
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Ranking {
    counted: Arc<WindowUDF>,
    result: DataType,
}

impl WindowUDFImpl for Ranking {
    fn name(&self) -> &str {
        self.counted.name()
    }

    fn aliases(&self) -> &[String] {
        self.counted.aliases()
    }

    fn signature(&self) -> &Signature {
        self.counted.signature()
    }

    fn partition_evaluator(&self, args: PartitionEvaluatorArgs) -> Result<Box<dyn PartitionEvaluator>> {
        let counted = self.counted.partition_evaluator_factory(args)?;
        Ok(Box::new(SignedEvaluator { counted, result: self.result.clone() }))
    }

    fn field(&self, args: WindowUDFFieldArgs) -> Result<FieldRef> {
        let field = self.counted.field(args)?;
        Ok(Arc::new(field.as_ref().clone().with_data_type(self.result.clone())))
    }

    fn sort_options(&self) -> Option<SortOptions> {
        self.counted.sort_options()
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.counted.coerce_types(arguments)
    }

    fn limit_effect(&self, args: &[Arc<dyn PhysicalExpr>]) -> LimitEffect {
        self.counted.inner().limit_effect(args)
    }
}

#[derive(Debug)]
struct SignedEvaluator {
    counted: Box<dyn PartitionEvaluator>,
    result: DataType,
}

impl PartitionEvaluator for SignedEvaluator {
    fn memoize(&mut self, state: &mut datafusion::logical_expr::window_state::WindowAggState) -> Result<()> {
        self.counted.memoize(state)
    }

    fn get_range(&self, row: usize, rows: usize) -> Result<Range<usize>> {
        self.counted.get_range(row, rows)
    }

    fn is_causal(&self) -> bool {
        self.counted.is_causal()
    }

    fn evaluate_all(&mut self, values: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        Ok(cast(&self.counted.evaluate_all(values, rows)?, &self.result)?)
    }

    fn evaluate(&mut self, values: &[ArrayRef], range: &Range<usize>) -> Result<ScalarValue> {
        self.counted.evaluate(values, range)?.cast_to(&self.result)
    }

    fn evaluate_all_with_rank(&self, rows: usize, ranks: &[Range<usize>]) -> Result<ArrayRef> {
        Ok(cast(&self.counted.evaluate_all_with_rank(rows, ranks)?, &self.result)?)
    }

    fn supports_bounded_execution(&self) -> bool {
        self.counted.supports_bounded_execution()
    }

    fn uses_window_frame(&self) -> bool {
        self.counted.uses_window_frame()
    }

    fn include_rank(&self) -> bool {
        self.counted.include_rank()
    }
}
