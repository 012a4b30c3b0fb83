//! DataFusion's functions in PostgreSQL's types: COALESCE, NULLIF, GREATEST and LEAST with arguments brought together as
//! PostgreSQL does, and functions of arrays that count.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use flow::{Error, SqlState};

use super::overload::{self, Type};

/// A function whose arguments all have one type.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct OneType {
    inner: Arc<ScalarUDF>,
    signature: Signature,
}

impl OneType {
    pub const NAMES: [&'static str; 4] = ["coalesce", "nullif", "greatest", "least"];

    pub fn new(inner: Arc<ScalarUDF>) -> OneType {
        OneType { inner, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

/// `42804` for values in `what` that have no type in common.
pub(super) fn unmatched(what: &str, types: &[DataType]) -> Error {
    let mut so_far = DataType::Utf8;
    for t in types {
        match overload::common(&[so_far.clone(), t.clone()]) {
            Some(common) => so_far = common,
            None => {
                let message = format!(
                    "{what} types {} and {} cannot be matched",
                    overload::written(&so_far),
                    overload::written(t)
                );
                return Error::new(SqlState::DatatypeMismatch, message);
            }
        }
    }
    Error::new(SqlState::DatatypeMismatch, format!("{what} types cannot be matched"))
}

impl ScalarUDFImpl for OneType {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let is_nullif = self.name() == "nullif";
        if given.is_empty() || is_nullif && given.len() != 2 {
            return Err(DataFusionError::External(Box::new(overload::no_function(self.name(), given))));
        }
        let found = match given {
            [left, right] if is_nullif => overload::comparison(left, right),
            _ => overload::common(given),
        };
        match found {
            Some(t) if Type::of(&t) == Type::Unknown => Ok(vec![DataType::Utf8View; given.len()]),
            Some(t) => Ok(vec![t; given.len()]),
            None if is_nullif => {
                Err(DataFusionError::External(Box::new(overload::no_operator("=", &given[0], &given[1]))))
            }
            None => Err(DataFusionError::External(Box::new(unmatched(&self.name().to_ascii_uppercase(), given)))),
        }
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        Ok(given.first().cloned().unwrap_or(DataType::Utf8View))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn simplify(&self, args: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.inner.simplify(args, context)
    }

    fn conditional_arguments<'a>(&self, args: &'a [Expr]) -> Option<(Vec<&'a Expr>, Vec<&'a Expr>)> {
        self.inner.conditional_arguments(args)
    }

    fn short_circuits(&self) -> bool {
        self.inner.short_circuits()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.inner.invoke_with_args(args)
    }
}

/// A function that gives an unsigned number where PostgreSQL gives an integer.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Counted {
    inner: Arc<ScalarUDF>,
}

impl Counted {
    pub const NAMES: [&'static str; 4] = ["array_length", "array_ndims", "array_position", "cardinality"];

    pub fn new(inner: Arc<ScalarUDF>) -> Counted {
        Counted { inner }
    }
}

impl ScalarUDFImpl for Counted {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(given)
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int32)
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        args.return_field = Arc::new(Field::new(self.name(), DataType::UInt64, true));
        self.inner.invoke_with_args(args)?.cast_to(&DataType::Int32, None)
    }
}
