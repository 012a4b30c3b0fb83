//! `now()` and its relatives, bound to one moment: the start of the transaction, which the caller gives.
//!
//! A statement sees one time. Standing queries know `now()` in conditions and `PROCTIME()` as a column, which the planner makes
//! operators of; what else they ask of the clock is refused with a position before planning.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use plan::functions::zone::Zone;

const US_PER_DAY: i64 = 86_400_000_000;

/// The functions whose value is the time.
pub(crate) const FUNCTIONS: [&str; 12] = [
    "now",
    "current_timestamp",
    "transaction_timestamp",
    "statement_timestamp",
    "clock_timestamp",
    "current_date",
    "today",
    "current_time",
    "localtime",
    "localtimestamp",
    "timeofday",
    "proctime",
];

/// The function `name` with the value that it has at `now_us` (microseconds since 1970 UTC) in `zone`; `None` if it is not
/// one of the clock's.
pub(crate) fn function(name: &str, now_us: i64, zone: &Zone) -> Option<Arc<ScalarUDF>> {
    let local = zone.to_local(now_us).unwrap_or(now_us);
    let value = match name {
        "now"
        | "current_timestamp"
        | "transaction_timestamp"
        | "statement_timestamp"
        | "clock_timestamp"
        | "proctime" => ScalarValue::TimestampMicrosecond(Some(now_us), Some("UTC".into())),
        "current_date" | "today" => {
            ScalarValue::Date32(Some(i32::try_from(local.div_euclid(US_PER_DAY)).unwrap_or(i32::MAX)))
        }
        "current_time" | "localtime" => ScalarValue::Time64Microsecond(Some(local.rem_euclid(US_PER_DAY))),
        "localtimestamp" => ScalarValue::TimestampMicrosecond(Some(local), None),
        "timeofday" => {
            let mut text = String::new();
            plan::functions::format::timestamptz(&mut text, now_us, zone);
            ScalarValue::Utf8View(Some(text))
        }
        _ => return None,
    };
    let name = FUNCTIONS.iter().find(|f| **f == name)?;
    Some(Arc::new(ScalarUDF::from(Moment {
        name,
        value,
        signature: Signature::one_of(
            vec![
                datafusion::logical_expr::TypeSignature::Nullary,
                // `current_timestamp(3)`: the precision is not applied.
                datafusion::logical_expr::TypeSignature::Exact(vec![DataType::Int64]),
            ],
            Volatility::Stable,
        ),
    })))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Moment {
    name: &'static str,
    value: ScalarValue,
    signature: Signature,
}

impl ScalarUDFImpl for Moment {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.value.data_type())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(self.value.clone()))
    }

    fn simplify(&self, _: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        Ok(ExprSimplifyResult::Simplified(Expr::Literal(self.value.clone(), None)))
    }
}
