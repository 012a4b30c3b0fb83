//! Long chains of arithmetic as one call: `a + b - c …` with its operands side by side.
//!
//! DataFusion asks every level of an expression for its name and its type again and again, and both descend to the leaves:
//! a sum of hundreds of terms written as a tree takes minutes to plan, and a deep tree needs a deep stack. The call has the
//! steps in its name, so that it can be found again by name on another machine. Values, types and errors are those of the
//! tree: the steps are taken from left to right with the same kernels.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result, plan_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::arithmetic::{self, Arithmetic, Op, Types};

/// Levels of a tree from which on it is written as a chain.
const LEVELS_MIN: usize = 16;

/// What every chain's name begins with; the signs of its steps follow.
const PREFIX: &str = "arithmetic ";

/// `((first op₁ second) op₂ third) …` with one step for each operand but the first.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    name: String,
    steps: Vec<Op>,
    signature: Signature,
}

impl Chain {
    fn new(steps: Vec<Op>) -> Chain {
        let signs = steps.iter().map(|op| op.sign());
        let name = std::iter::once(PREFIX).chain(signs).collect();
        Chain { name, steps, signature: Signature::user_defined(Volatility::Immutable) }
    }

    /// The types of each step over operands of these types, and whether every step goes on with the result of the step
    /// before as it is.
    fn types(&self, arguments: &[DataType]) -> Option<Vec<Types>> {
        let (first, others) = arguments.split_first()?;
        if others.len() != self.steps.len() {
            return None;
        }
        let mut taken: Vec<Types> = Vec::with_capacity(self.steps.len());
        for (op, operand) in self.steps.iter().zip(others) {
            let before = taken.last().map_or(first, |t| &t.result);
            let types = arithmetic::types(*op, before, operand)?;
            if taken.last().is_some_and(|t| t.result != types.left) {
                return None;
            }
            taken.push(types);
        }
        Some(taken)
    }

    fn types_of(&self, arguments: &[DataType]) -> Result<Vec<Types>> {
        match self.types(arguments) {
            Some(types) => Ok(types),
            None => plan_err!("a chain of {} steps does not take these {} types", self.steps.len(), arguments.len()),
        }
    }

    /// The steps with their operands, in the order they are taken.
    pub(super) fn display(&self, args: &[Expr], text: &mut String) {
        text.push('(');
        for (i, arg) in args.iter().enumerate() {
            if let Some(op) = i.checked_sub(1).and_then(|i| self.steps.get(i)) {
                text.push(' ');
                text.push_str(op.sign());
                text.push(' ');
            }
            arithmetic::operand(arg, text);
        }
        text.push(')');
    }
}

impl ScalarUDFImpl for Chain {
    fn name(&self) -> &str {
        &self.name
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        let mut text = String::new();
        self.display(args, &mut text);
        Ok(text)
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let types = self.types_of(arguments)?;
        let first = types.first().map(|t| t.left.clone());
        Ok(first.into_iter().chain(types.into_iter().map(|t| t.right)).collect())
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match self.types_of(arguments)?.pop() {
            Some(last) => Ok(last.result),
            None => plan_err!("a chain without a step"),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let types: Vec<DataType> = args.arg_fields.iter().map(|f| f.data_type().clone()).collect();
        let types = self.types_of(&types)?;
        let mut values = args.args.into_iter();
        let Some(mut value) = values.next() else { return plan_err!("a chain without operands") };
        for ((op, types), right) in self.steps.iter().zip(&types).zip(values) {
            value = arithmetic::apply_to(*op, &value, &right, &types.result)?;
        }
        Ok(value)
    }
}

/// Whether a function is a chain.
pub fn is_chain(function: &ScalarUDF) -> bool {
    function.inner().downcast_ref::<Chain>().is_some()
}

/// The chain of this name.
pub fn by_name(name: &str) -> Option<Arc<ScalarUDF>> {
    let signs = name.strip_prefix(PREFIX)?;
    let op = |sign: char| Op::ALL.into_iter().find(|op| op.sign().starts_with(sign));
    let steps = signs.chars().map(op).collect::<Option<Vec<Op>>>()?;
    (!steps.is_empty()).then(|| Arc::new(ScalarUDF::from(Chain::new(steps))))
}

/// `left op right` as a chain, made of the operands, if `left` is one already or a tall tree.
pub fn grow(op: Op, left: &mut Expr, right: &mut Expr, schema: &DFSchema) -> Option<Expr> {
    if !is_tall(left) {
        return None;
    }
    let (before, operand) = (left.get_type(schema).ok()?, right.get_type(schema).ok()?);
    // A step that converts what is before it begins a new chain.
    arithmetic::types(op, &before, &operand).filter(|types| types.left == before)?;
    let (mut steps, mut operands) = (Vec::new(), Vec::new());
    unroll(std::mem::take(left), schema, &mut steps, &mut operands);
    steps.push(op);
    operands.push(std::mem::take(right));
    let chain = ScalarUDF::from(Chain::new(steps));
    Some(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(chain), operands)))
}

fn is_tall(expr: &Expr) -> bool {
    let mut node = expr;
    for _ in 0..LEVELS_MIN {
        let Expr::ScalarFunction(call) = node else { return false };
        if is_chain(&call.func) {
            return true;
        }
        match (call.func.inner().downcast_ref::<Arithmetic>(), call.args.first()) {
            (Some(_), Some(left)) => node = left,
            _ => return false,
        }
    }
    true
}

/// Appends the steps and operands of a tree's left edge, as far down as each step goes on with what it gets.
fn unroll(expr: Expr, schema: &DFSchema, steps: &mut Vec<Op>, operands: &mut Vec<Expr>) {
    let mut edge = Vec::new();
    let mut node = expr;
    loop {
        match node {
            Expr::ScalarFunction(call) if is_step(&call, schema) => {
                let op = call.func.inner().downcast_ref::<Arithmetic>().map(Arithmetic::op);
                let mut args = call.args.into_iter();
                match (op, args.next(), args.next()) {
                    (Some(op), Some(left), Some(right)) => {
                        edge.push((op, right));
                        node = left;
                    }
                    // `is_step` has seen both.
                    _ => return,
                }
            }
            Expr::ScalarFunction(call) => {
                match call.func.inner().downcast_ref::<Chain>() {
                    Some(chain) => {
                        steps.extend(&chain.steps);
                        operands.extend(call.args);
                    }
                    None => operands.push(Expr::ScalarFunction(call)),
                }
                break;
            }
            other => {
                operands.push(other);
                break;
            }
        }
    }
    for (op, right) in edge.into_iter().rev() {
        steps.push(op);
        operands.push(right);
    }
}

/// Whether a call is arithmetic that takes its left operand as it is.
fn is_step(call: &ScalarFunction, schema: &DFSchema) -> bool {
    let Some(arithmetic) = call.func.inner().downcast_ref::<Arithmetic>() else { return false };
    let [left, right] = call.args.as_slice() else { return false };
    let (Ok(left), Ok(right)) = (left.get_type(schema), right.get_type(schema)) else { return false };
    arithmetic::types(arithmetic.op(), &left, &right).is_some_and(|types| types.left == left)
}
