//! `single_row(value, rows)`: the value of a subquery that must have had at most one row.

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::{DataFusionError, Result, ScalarValue, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use flow::{Error, SqlState};

/// The name under which the planner of subqueries calls the function.
pub const NAME: &str = "single_row";

/// The first argument as it is; `21000` where the second, a count of rows, is more than one.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct SingleRow {
    signature: Signature,
}

impl SingleRow {
    pub fn new() -> SingleRow {
        SingleRow { signature: Signature::any(2, Volatility::Immutable) }
    }
}

impl Default for SingleRow {
    fn default() -> SingleRow {
        SingleRow::new()
    }
}

impl ScalarUDFImpl for SingleRow {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments {
            [value, DataType::Int64] => Ok(value.clone()),
            _ => plan_err!("{NAME} takes a value and a bigint"),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value, rows] = args.args.as_slice() else { return plan_err!("{NAME} takes a value and a bigint") };
        let several = match rows {
            ColumnarValue::Scalar(ScalarValue::Int64(rows)) => rows.is_some_and(|n| n > 1),
            ColumnarValue::Array(rows) => rows.as_primitive::<Int64Type>().iter().flatten().any(|n| n > 1),
            ColumnarValue::Scalar(_) => return plan_err!("{NAME} takes a value and a bigint"),
        };
        if several {
            let message = "more than one row returned by a subquery used as an expression";
            let error = Error::new(SqlState::CardinalityViolation, message);
            return Err(DataFusionError::External(Box::new(error)));
        }
        Ok(value.clone())
    }
}
