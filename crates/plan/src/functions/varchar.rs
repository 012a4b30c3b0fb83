//! `varchar(x, n)`: a text that is about to be stored in a column of at most `n` characters.

use arrow::array::{Array, AsArray, StringViewArray, StringViewBuilder};
use arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result, ScalarValue, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use flow::{Error, SqlState};

/// As Postgres' assignment to `varchar(n)`: spaces beyond the limit are cut off, anything else there is `22001`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Varchar {
    signature: Signature,
}

impl Varchar {
    pub const NAME: &'static str = "varchar";

    pub fn new() -> Varchar {
        Varchar { signature: Signature::exact(vec![DataType::Utf8View, DataType::Int64], Volatility::Immutable) }
    }
}

impl Default for Varchar {
    fn default() -> Varchar {
        Varchar::new()
    }
}

impl ScalarUDFImpl for Varchar {
    fn name(&self) -> &str {
        Varchar::NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [text, ColumnarValue::Scalar(ScalarValue::Int64(Some(limit)))] = args.args.as_slice() else {
            return plan_err!("varchar takes a text and a constant limit");
        };
        let limit = usize::try_from(*limit).unwrap_or(0);
        let is_scalar = matches!(text, ColumnarValue::Scalar(_));
        let array = text.to_array(if is_scalar { 1 } else { args.number_rows })?;
        let texts = array.as_string_view();
        let out = match fit(texts, limit)? {
            None => return Ok(text.clone()),
            Some(out) => out,
        };
        Ok(if is_scalar {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&out, 0)?)
        } else {
            ColumnarValue::Array(std::sync::Arc::new(out))
        })
    }
}

/// The texts with the spaces beyond the limit cut off; `None` if there is nothing to cut. `22001` for a text that is too
/// long.
pub fn fit(texts: &StringViewArray, limit: usize) -> std::result::Result<Option<StringViewArray>, DataFusionError> {
    // Most columns hold only short values: bytes bound characters.
    if (0..texts.len()).all(|i| texts.is_null(i) || texts.value(i).len() <= limit) {
        return Ok(None);
    }
    let mut out = StringViewBuilder::with_capacity(texts.len());
    for value in texts {
        match value.map(|v| (v, v.char_indices().nth(limit))) {
            None => out.append_null(),
            Some((v, None)) => out.append_value(v),
            Some((v, Some((end, _)))) if v[end..].chars().all(|c| c == ' ') => out.append_value(&v[..end]),
            Some(_) => {
                let message = format!("value too long for type character varying({limit})");
                let error = Error::new(SqlState::StringDataRightTruncation, message);
                return Err(DataFusionError::External(Box::new(error)));
            }
        }
    }
    Ok(Some(out.finish()))
}
