//! From DataFusion's physical expressions back to our tree: for parts of an ad-hoc plan that run in another process.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Operator, ScalarUDF, Volatility};
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, CastExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr, NotExpr, TryCastExpr,
};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};

use super::convert::IN_SET_MIN;
use super::{Expr, Is, Literal, balanced, bind, sql_type};
use crate::functions;

/// Levels of nesting above which an expression stays where it is: whoever gets it binds and evaluates it on a small stack.
const LEVELS_MAX: usize = 100;

/// What the names of DataFusion's functions begin with that read the session's options; ours get what they need as arguments.
const READ_OPTIONS: [&str; 2] = ["to_timestamp", "to_unixtime"];

/// The tree that means the same as `expr` over `input` in any process of this build; `None` if there is none: functions
/// whose value depends on session, time or chance, subqueries, and what the tree cannot hold.
pub fn from_physical(expr: &Arc<dyn PhysicalExpr>, input: &SchemaRef) -> Option<Expr> {
    let tree = convert(expr, LEVELS_MAX)?;
    // What binds otherwise there would be of another type.
    let bound = bind(&tree, input).ok()?;
    (bound.data_type(input).ok()? == expr.data_type(input).ok()?).then_some(tree)
}

fn convert(expr: &Arc<dyn PhysicalExpr>, levels: usize) -> Option<Expr> {
    let levels = levels.checked_sub(1)?;
    let child = |e: &Arc<dyn PhysicalExpr>| convert(e, levels);
    let boxed = |e: &Arc<dyn PhysicalExpr>| child(e).map(Box::new);
    if let Some(column) = expr.downcast_ref::<Column>() {
        return Some(Expr::Column(column.index()));
    }
    if let Some(value) = constant(expr) {
        return Some(Expr::Literal(Literal::from_scalar(value).ok()?));
    }
    if let Some(binary) = expr.downcast_ref::<BinaryExpr>() {
        let op = binary.op().to_string();
        return match binary.op() {
            Operator::And | Operator::Or => {
                let operands = operands(expr, *binary.op()).into_iter().map(child).collect::<Option<_>>()?;
                balanced(&op, operands)
            }
            // Whether they wrap or fail does not show; those of SQL are functions.
            Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Divide | Operator::Modulo => None,
            _ if !super::bind::is_operator(&op) => None,
            _ => Some(Expr::Binary { op, left: boxed(binary.left())?, right: boxed(binary.right())? }),
        };
    }
    if let Some(not) = expr.downcast_ref::<NotExpr>() {
        return Some(Expr::Not(boxed(not.arg())?));
    }
    if let Some(is) = expr.downcast_ref::<IsNullExpr>() {
        return Some(Expr::Is { negated: false, what: Is::Null, expr: boxed(is.arg())? });
    }
    if let Some(is) = expr.downcast_ref::<IsNotNullExpr>() {
        return Some(Expr::Is { negated: true, what: Is::Null, expr: boxed(is.arg())? });
    }
    if let Some(case) = expr.downcast_ref::<CaseExpr>() {
        let mut branches = Vec::with_capacity(case.when_then_expr().len());
        for (when, then) in case.when_then_expr() {
            branches.push((child(when)?, child(then)?));
        }
        let operand = match case.expr() {
            Some(e) => Some(boxed(e)?),
            None => None,
        };
        let otherwise = match case.else_expr() {
            Some(e) => Some(boxed(e)?),
            None => None,
        };
        return Some(Expr::Case { operand, branches, otherwise });
    }
    if let Some(cast) = expr.downcast_ref::<CastExpr>() {
        let to = cast.cast_type().clone();
        return if cast.cast_options().safe {
            None
        } else {
            Some(Expr::Cast { expr: boxed(cast.expr())?, to, safe: false })
        };
    }
    if let Some(cast) = expr.downcast_ref::<TryCastExpr>() {
        return Some(Expr::Cast { expr: boxed(cast.expr())?, to: cast.cast_type().clone(), safe: true });
    }
    if let Some(list) = expr.downcast_ref::<InListExpr>() {
        let (of, negated) = (boxed(list.expr())?, list.negated());
        if let Some(values) = constants(list.list()) {
            let array = ScalarValue::iter_to_array(values).ok()?;
            let text = format!("{} values of type {}", array.len(), sql_type(array.data_type()));
            return Some(Expr::InSet { expr: of, values: Literal::from_array(&array, text).ok()?, negated });
        }
        let list = list.list().iter().map(child).collect::<Option<_>>()?;
        return Some(Expr::InList { expr: of, list, negated });
    }
    if let Some(like) = expr.downcast_ref::<LikeExpr>() {
        return Some(Expr::Like {
            expr: boxed(like.expr())?,
            pattern: boxed(like.pattern())?,
            negated: like.negated(),
            case_insensitive: like.case_insensitive(),
        });
    }
    let call = expr.downcast_ref::<ScalarFunctionExpr>().filter(|call| is_known_everywhere(call.fun()))?;
    let args = call.args().iter().map(child).collect::<Option<_>>()?;
    Some(Expr::Call { function: call.fun().name().to_owned(), args })
}

fn constant(expr: &Arc<dyn PhysicalExpr>) -> Option<&ScalarValue> {
    expr.downcast_ref::<datafusion::physical_expr::expressions::Literal>().map(|literal| literal.value())
}

/// The values of a long list of constants of one type.
fn constants(list: &[Arc<dyn PhysicalExpr>]) -> Option<Vec<ScalarValue>> {
    let values: Vec<ScalarValue> = list.iter().map(|e| constant(e).cloned()).collect::<Option<_>>()?;
    let first = values.first()?.data_type();
    (values.len() >= IN_SET_MIN && values.iter().all(|v| v.data_type() == first)).then_some(values)
}

/// The operands of a chain of one associative operator, in reading order, found without recursion.
fn operands(expr: &Arc<dyn PhysicalExpr>, op: Operator) -> Vec<&Arc<dyn PhysicalExpr>> {
    let (mut operands, mut pending) = (Vec::new(), vec![expr]);
    while let Some(e) = pending.pop() {
        match e.downcast_ref::<BinaryExpr>() {
            Some(binary) if *binary.op() == op => pending.extend([binary.right(), binary.left()]),
            _ => operands.push(e),
        }
    }
    operands
}

/// Whether the function's name and arguments are all that its value depends on, in every process of this build.
fn is_known_everywhere(function: &ScalarUDF) -> bool {
    let name = function.name();
    function.signature().volatility == Volatility::Immutable
        && !READ_OPTIONS.iter().any(|begin| name.starts_with(begin) && functions::declared(name).is_none())
        && functions::scalar(name).is_some_and(|known| *known == *function)
}
