//! From DataFusion's analysed logical expressions to our tree.

use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr as df;
use datafusion::logical_expr::Operator;
use flow::{Error, Result, SqlState};

use super::{DEPTH_MAX, Expr, Is, Literal, balanced, bind, sql_type};
use crate::error::from_datafusion_error;

/// Constants in an IN list from which on they are kept as one array.
pub(super) const IN_SET_MIN: usize = 8;

/// The tree of `expr`, its columns by their position in `schema`; aliases are dropped.
///
/// The expression must have been analysed (types coerced) and must hold no aggregate, window function or subquery.
/// Errors: `0A000` naming what we do not have, `42703` for a column that `schema` lacks, `54001` for too deep a tree.
pub fn from_datafusion(expr: &df::Expr, schema: &DFSchema) -> Result<Expr> {
    convert(expr, schema, DEPTH_MAX)
}

pub(super) fn too_deep() -> Error {
    Error::new(SqlState::StatementTooComplex, "expression is nested too deeply")
        .with_detail(format!("An expression may have {DEPTH_MAX} levels of nesting."))
        .with_hint("Compute parts of it in a subquery or in a view.")
}

fn convert(expr: &df::Expr, schema: &DFSchema, depth: usize) -> Result<Expr> {
    let Some(depth) = depth.checked_sub(1) else { return Err(too_deep()) };
    let child = |e: &df::Expr| convert(e, schema, depth);
    let boxed = |e: &df::Expr| child(e).map(Box::new);
    let is = |e: &df::Expr, what: Is, negated: bool| Ok(Expr::Is { negated, what, expr: boxed(e)? });
    match expr {
        // A name is no level.
        df::Expr::Alias(alias) => convert(&alias.expr, schema, depth + 1),
        df::Expr::Column(c) => Ok(Expr::Column(schema.index_of_column(c).map_err(from_datafusion_error)?)),
        df::Expr::Literal(value, _) => Ok(Expr::Literal(Literal::from_scalar(value)?)),
        df::Expr::BinaryExpr(binary) if matches!(binary.op, Operator::And | Operator::Or) => {
            let mut operands = Vec::new();
            for operand in chain(expr, binary.op) {
                operands.push(child(operand)?);
            }
            balanced(&binary.op.to_string(), operands).ok_or_else(|| Error::internal("an empty chain of operands"))
        }
        df::Expr::BinaryExpr(binary) => {
            let op = binary.op.to_string();
            if !bind::is_operator(&op) {
                return Err(Error::unsupported(format!("operator {op} is not supported in a standing query")));
            }
            Ok(Expr::Binary { op, left: boxed(&binary.left)?, right: boxed(&binary.right)? })
        }
        df::Expr::Not(e) => Ok(Expr::Not(boxed(e)?)),
        df::Expr::Negative(e) => Ok(Expr::Negative(boxed(e)?)),
        df::Expr::IsNull(e) => is(e, Is::Null, false),
        df::Expr::IsNotNull(e) => is(e, Is::Null, true),
        df::Expr::IsTrue(e) => is(e, Is::True, false),
        df::Expr::IsNotTrue(e) => is(e, Is::True, true),
        df::Expr::IsFalse(e) => is(e, Is::False, false),
        df::Expr::IsNotFalse(e) => is(e, Is::False, true),
        df::Expr::IsUnknown(e) => is(e, Is::Unknown, false),
        df::Expr::IsNotUnknown(e) => is(e, Is::Unknown, true),
        df::Expr::Between(b) => {
            let (low, high, join) = if b.negated { ("<", ">", "OR") } else { (">=", "<=", "AND") };
            let value = child(&b.expr)?;
            let compare = |op: &str, bound: Expr| Expr::Binary {
                op: op.into(),
                left: Box::new(value.clone()),
                right: Box::new(bound),
            };
            Ok(Expr::Binary {
                op: join.into(),
                left: Box::new(compare(low, child(&b.low)?)),
                right: Box::new(compare(high, child(&b.high)?)),
            })
        }
        df::Expr::Like(like) => {
            if like.escape_char.is_some_and(|c| c != '\\') {
                return Err(Error::unsupported("LIKE with an ESCAPE character other than backslash is not supported")
                    .with_hint("Escape with a backslash, or match with a regular expression (~)."));
            }
            Ok(Expr::Like {
                expr: boxed(&like.expr)?,
                pattern: boxed(&like.pattern)?,
                negated: like.negated,
                case_insensitive: like.case_insensitive,
            })
        }
        df::Expr::SimilarTo(_) => Err(Error::unsupported("SIMILAR TO is not supported in a standing query")
            .with_hint("Use a regular expression: expression ~ 'pattern'.")),
        df::Expr::Case(case) => {
            let operand = case.expr.as_ref().map(|e| boxed(e)).transpose()?;
            let mut branches = Vec::with_capacity(case.when_then_expr.len());
            for (when, then) in &case.when_then_expr {
                branches.push((child(when)?, child(then)?));
            }
            let otherwise = case.else_expr.as_ref().map(|e| boxed(e)).transpose()?;
            Ok(Expr::Case { operand, branches, otherwise })
        }
        df::Expr::Cast(cast) => {
            Ok(Expr::Cast { expr: boxed(&cast.expr)?, to: cast.field.data_type().clone(), safe: false })
        }
        df::Expr::TryCast(cast) => {
            Ok(Expr::Cast { expr: boxed(&cast.expr)?, to: cast.field.data_type().clone(), safe: true })
        }
        df::Expr::ScalarFunction(call) => {
            let name = call.func.name();
            if crate::functions::scalar(name).is_none() {
                return Err(Error::unsupported(format!("function {name} is not supported in a standing query")));
            }
            let args = call.args.iter().map(child).collect::<Result<_>>()?;
            Ok(Expr::Call { function: name.to_owned(), args })
        }
        df::Expr::InList(list) => match constants(&list.list) {
            Some(values) if values.len() >= IN_SET_MIN => {
                let array = ScalarValue::iter_to_array(values).map_err(from_datafusion_error)?;
                let text = format!("{} values of type {}", array.len(), sql_type(array.data_type()));
                let values = Literal::from_array(&array, text)?;
                Ok(Expr::InSet { expr: boxed(&list.expr)?, values, negated: list.negated })
            }
            _ => Ok(Expr::InList {
                expr: boxed(&list.expr)?,
                list: list.list.iter().map(child).collect::<Result<_>>()?,
                negated: list.negated,
            }),
        },
        df::Expr::AggregateFunction(f) => Err(Error::new(
            SqlState::GroupingError,
            format!("aggregate function {} is not allowed here", f.func.name()),
        )),
        df::Expr::WindowFunction(f) => Err(window_unsupported(f.fun.name())),
        df::Expr::ScalarSubquery(_) => Err(subquery_unsupported("a scalar subquery")),
        df::Expr::Exists(_) => Err(subquery_unsupported("EXISTS")),
        df::Expr::InSubquery(_) => Err(subquery_unsupported("IN (subquery)")),
        df::Expr::SetComparison(_) => Err(subquery_unsupported("a comparison with ANY or ALL (subquery)")),
        df::Expr::OuterReferenceColumn(_, column) => Err(Error::unsupported(format!(
            "this use of the outer column \"{}\" in a subquery is not supported",
            column.name
        ))
        .with_hint("Write the subquery as a join.")),
        df::Expr::Placeholder(p) => {
            Err(Error::new(SqlState::UndefinedParameter, format!("there is no parameter {}", p.id))
                .with_hint("Standing queries take no parameters: write the value itself."))
        }
        df::Expr::Unnest(_) => Err(Error::unsupported("unnest is not supported in a standing query")),
        df::Expr::GroupingSet(_) => Err(Error::unsupported("grouping sets are not supported here")),
        df::Expr::ScalarVariable(_, names) => {
            Err(Error::unsupported(format!("variable {} is not supported in a standing query", names.join("."))))
        }
        df::Expr::HigherOrderFunction(f) => Err(Error::unsupported(format!(
            "function {} with a lambda argument is not supported in a standing query",
            f.func.name()
        ))),
        df::Expr::Lambda(_) | df::Expr::LambdaVariable(_) => {
            Err(Error::unsupported("lambda expressions are not supported in a standing query"))
        }
        #[expect(deprecated)]
        df::Expr::Wildcard { .. } => Err(Error::internal("an unexpanded * in an analysed plan")),
    }
}

/// The operands of a chain of one associative operator, in reading order, found without recursion.
fn chain(expr: &df::Expr, op: Operator) -> Vec<&df::Expr> {
    let mut operands = Vec::new();
    let mut pending = vec![expr];
    while let Some(e) = pending.pop() {
        match e {
            df::Expr::BinaryExpr(b) if b.op == op => {
                pending.push(&b.right);
                pending.push(&b.left);
            }
            operand => operands.push(operand),
        }
    }
    operands
}

/// The values of `list` if all are constants of one type.
fn constants(list: &[df::Expr]) -> Option<Vec<ScalarValue>> {
    let mut values: Vec<ScalarValue> = Vec::with_capacity(list.len());
    for e in list {
        match e {
            df::Expr::Literal(v, _) if values.first().is_none_or(|f| f.data_type() == v.data_type()) => {
                values.push(v.clone());
            }
            _ => return None,
        }
    }
    Some(values)
}

fn subquery_unsupported(what: &str) -> Error {
    Error::unsupported(format!("{what} in this place is not supported in a standing query"))
        .with_hint("Use it in WHERE, or write it as a join.")
}

/// `0A000` for a window function outside the Top-N pattern.
pub(crate) fn window_unsupported(function: &str) -> Error {
    Error::unsupported(format!("window function {function} is not supported in a standing query"))
        .with_detail("OVER is supported where it ranks rows of which the first are kept.")
        .with_hint(
            "Rank in a subquery and filter it: SELECT … FROM (SELECT *, row_number() OVER (PARTITION BY … ORDER BY …) \
             AS rn FROM …) WHERE rn <= 10.",
        )
}
