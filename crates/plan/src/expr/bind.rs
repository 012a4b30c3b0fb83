//! From our expression tree to DataFusion's physical expressions, which evaluate whole batches.

use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::common::config::ConfigOptions;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{self, BinaryExpr, CaseExpr, InListExpr};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use flow::{Error, Result, SqlState};

use super::guard::GuardedLogic;
use super::{DEPTH_MAX, Expr, Is};
use crate::error::from_datafusion_error;
use crate::functions;
use crate::functions::moment::{NOW, PROCTIME};

/// Binds `expr` to the columns of `input`: the result evaluates batches of exactly that schema.
///
/// Errors: `42883` for a function that this build does not have, `54001` for a tree deeper than [`DEPTH_MAX`], `XX000`
/// for a column that the input does not have or operands of types that do not go together.
pub fn bind(expr: &Expr, input: &SchemaRef) -> Result<Arc<dyn PhysicalExpr>> {
    if expr.depth() > DEPTH_MAX {
        return Err(super::convert::too_deep());
    }
    let bound = bind_tree(expr, input)?;
    // Operands of unfit types show only here.
    bound.data_type(input).map_err(from_datafusion_error)?;
    Ok(bound)
}

/// Type and nullability of `expr` over `input`, named as the expression itself.
pub fn field_of(expr: &Expr, input: &SchemaRef) -> Result<FieldRef> {
    bind(expr, input)?.return_field(input).map_err(from_datafusion_error)
}

/// The value of a bound expression for every row of `batch`, in order; a constant is repeated.
pub fn evaluate(expr: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<ArrayRef> {
    expr.evaluate(batch).and_then(|v| v.into_array(batch.num_rows())).map_err(from_datafusion_error)
}

fn options() -> Arc<ConfigOptions> {
    static OPTIONS: OnceLock<Arc<ConfigOptions>> = OnceLock::new();
    Arc::clone(OPTIONS.get_or_init(|| Arc::new(ConfigOptions::default())))
}

fn bind_all<'a>(exprs: impl IntoIterator<Item = &'a Expr>, input: &Schema) -> Result<Vec<Arc<dyn PhysicalExpr>>> {
    exprs.into_iter().map(|e| bind_tree(e, input)).collect()
}

fn bind_tree(expr: &Expr, input: &Schema) -> Result<Arc<dyn PhysicalExpr>> {
    let df = from_datafusion_error;
    Ok(match expr {
        Expr::Column(i) => match input.fields().get(*i) {
            Some(field) => Arc::new(expressions::Column::new(field.name(), *i)),
            None => {
                let have = input.fields().len();
                return Err(Error::internal(format!("column {i} of an input that has {have} columns")));
            }
        },
        Expr::Literal(l) => expressions::lit(l.to_scalar()?),
        Expr::Binary { op, left, right } => bind_binary(op, bind_tree(left, input)?, bind_tree(right, input)?)?,
        Expr::Not(e) => expressions::not(bind_tree(e, input)?).map_err(df)?,
        Expr::Negative(e) => expressions::negative(bind_tree(e, input)?, input).map_err(df)?,
        Expr::Is { negated, what, expr } => bind_is(*negated, *what, bind_tree(expr, input)?)?,
        Expr::Case { operand, branches, otherwise } => {
            let operand = operand.as_ref().map(|e| bind_tree(e, input)).transpose()?;
            let mut bound = Vec::with_capacity(branches.len());
            for (when, then) in branches {
                bound.push((bind_tree(when, input)?, bind_tree(then, input)?));
            }
            let otherwise = otherwise.as_ref().map(|e| bind_tree(e, input)).transpose()?;
            Arc::new(CaseExpr::try_new(operand, bound, otherwise).map_err(df)?)
        }
        Expr::Cast { expr, to, safe: false } => {
            expressions::cast(bind_tree(expr, input)?, input, to.clone()).map_err(df)?
        }
        Expr::Cast { expr, to, safe: true } => {
            expressions::try_cast(bind_tree(expr, input)?, input, to.clone()).map_err(df)?
        }
        Expr::InList { expr, list, negated } => {
            expressions::in_list(bind_tree(expr, input)?, bind_all(list, input)?, negated, input).map_err(df)?
        }
        Expr::InSet { expr, values, negated } => {
            let expr = bind_tree(expr, input)?;
            Arc::new(InListExpr::try_new_from_array(expr, values.to_array()?, *negated, input).map_err(df)?)
        }
        Expr::Like { expr, pattern, negated, case_insensitive } => {
            let (expr, pattern) = (bind_tree(expr, input)?, bind_tree(pattern, input)?);
            expressions::like(*negated, *case_insensitive, expr, pattern, input).map_err(df)?
        }
        // Whatever the present can be had for has been taken out of the expression.
        Expr::Call { function, .. } if matches!(function.as_str(), NOW | PROCTIME) => {
            return Err(crate::stream::no_moment(function));
        }
        Expr::Call { function, args } => {
            let udf = functions::scalar(function).ok_or_else(|| {
                Error::new(SqlState::UndefinedFunction, format!("function {function} does not exist"))
            })?;
            let args = bind_all(args, input)?;
            Arc::new(ScalarFunctionExpr::try_new(udf, args, input, options()).map_err(df)?)
        }
    })
}

fn bind_binary(op: &str, left: Arc<dyn PhysicalExpr>, right: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
    let Some(op) = operator(op) else {
        return Err(Error::new(SqlState::UndefinedFunction, format!("operator {op} does not exist")));
    };
    Ok(match op {
        Operator::And | Operator::Or => Arc::new(GuardedLogic::new(left, op == Operator::And, right)),
        op => Arc::new(BinaryExpr::new(left, op, right).with_fail_on_overflow(true)),
    })
}

fn bind_is(negated: bool, what: Is, expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
    let value = match what {
        Is::Null if negated => return expressions::is_not_null(expr).map_err(from_datafusion_error),
        Is::Null => return expressions::is_null(expr).map_err(from_datafusion_error),
        Is::True => Some(true),
        Is::False => Some(false),
        Is::Unknown => None,
    };
    let op = if negated { Operator::IsDistinctFrom } else { Operator::IsNotDistinctFrom };
    Ok(Arc::new(BinaryExpr::new(expr, op, expressions::lit(ScalarValue::Boolean(value)))))
}

/// The operators that an expression may hold, by their SQL spelling as DataFusion writes it.
fn operator(op: &str) -> Option<Operator> {
    OPERATORS.iter().find(|(text, _)| *text == op).map(|(_, operator)| *operator)
}

/// Whether [`bind`] knows the operator.
pub(super) fn is_operator(op: &str) -> bool {
    operator(op).is_some()
}

const OPERATORS: [(&str, Operator); 28] = [
    ("=", Operator::Eq),
    ("!=", Operator::NotEq),
    ("<", Operator::Lt),
    ("<=", Operator::LtEq),
    (">", Operator::Gt),
    (">=", Operator::GtEq),
    ("+", Operator::Plus),
    ("-", Operator::Minus),
    ("*", Operator::Multiply),
    ("/", Operator::Divide),
    ("%", Operator::Modulo),
    ("AND", Operator::And),
    ("OR", Operator::Or),
    ("IS DISTINCT FROM", Operator::IsDistinctFrom),
    ("IS NOT DISTINCT FROM", Operator::IsNotDistinctFrom),
    ("~", Operator::RegexMatch),
    ("~*", Operator::RegexIMatch),
    ("!~", Operator::RegexNotMatch),
    ("!~*", Operator::RegexNotIMatch),
    ("~~", Operator::LikeMatch),
    ("~~*", Operator::ILikeMatch),
    ("!~~", Operator::NotLikeMatch),
    ("!~~*", Operator::NotILikeMatch),
    ("&", Operator::BitwiseAnd),
    ("|", Operator::BitwiseOr),
    ("<<", Operator::BitwiseShiftLeft),
    (">>", Operator::BitwiseShiftRight),
    ("||", Operator::StringConcat),
];

/// Whether the planner may use a value of this type as a key or compare it; the rest is refused with `0A000`.
pub(crate) fn is_key_type(data_type: &DataType) -> bool {
    !matches!(data_type, DataType::Map(_, _) | DataType::Union(_, _) | DataType::RunEndEncoded(_, _))
}
