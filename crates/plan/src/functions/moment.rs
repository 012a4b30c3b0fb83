//! `now()` and `PROCTIME()` as a standing query knows them: names without a value, which lowering takes out.
//!
//! For a statement that runs now they are constants, which the SQL layer puts in; here they must be neither folded nor moved.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

/// The processing time of the epoch that is being worked on: moves by itself.
pub const NOW: &str = "now";
/// The processing time of the epoch in which a row came.
pub const PROCTIME: &str = "proctime";

/// The function that SQL calls `name`; `None` if a standing query has no such moment.
pub fn standing(name: &str) -> Option<Arc<ScalarUDF>> {
    let name = match name {
        "now" | "current_timestamp" | "transaction_timestamp" | "statement_timestamp" => NOW,
        "proctime" => PROCTIME,
        _ => return None,
    };
    let signature = Signature::nullary(Volatility::Volatile);
    Some(Arc::new(ScalarUDF::from(Moment { name, signature })))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Moment {
    name: &'static str,
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
        Ok(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(DataFusionError::External(Box::new(crate::stream::no_moment(self.name))))
    }
}
