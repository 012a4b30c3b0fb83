//! The serialised form of an expression: its nodes in postfix order, each naming how many operands it takes.
//!
//! A nested form would be limited by the recursion limits of the serialiser (128 in serde_json) and would recurse on
//! bytes that come from outside. Here a reader keeps a stack of its own and checks the depth as it goes.

use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};

use super::{DEPTH_MAX, Expr, Is, Literal};

/// One node without its operands, which precede it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Step {
    Column(usize),
    Literal(Literal),
    /// Operands: left, right.
    Binary(String),
    Not,
    Negative,
    Is {
        negated: bool,
        what: Is,
    },
    /// Operands: operand if `operand`, then `branches` pairs of condition and value, then the default if `otherwise`.
    Case {
        operand: bool,
        branches: usize,
        otherwise: bool,
    },
    Cast {
        to: DataType,
        safe: bool,
    },
    /// Operands: expression, then `list` values.
    InList {
        list: usize,
        negated: bool,
    },
    InSet {
        values: Literal,
        negated: bool,
    },
    /// Operands: expression, pattern.
    Like {
        negated: bool,
        case_insensitive: bool,
    },
    Call {
        function: String,
        args: usize,
    },
}

impl From<Expr> for Vec<Step> {
    fn from(expr: Expr) -> Vec<Step> {
        let mut steps = Vec::new();
        push(&expr, &mut steps);
        steps
    }
}

fn push(expr: &Expr, steps: &mut Vec<Step>) {
    for child in expr.children() {
        push(child, steps);
    }
    steps.push(match expr {
        Expr::Column(i) => Step::Column(*i),
        Expr::Literal(l) => Step::Literal(l.clone()),
        Expr::Binary { op, .. } => Step::Binary(op.clone()),
        Expr::Not(_) => Step::Not,
        Expr::Negative(_) => Step::Negative,
        Expr::Is { negated, what, .. } => Step::Is { negated: *negated, what: *what },
        Expr::Case { operand, branches, otherwise } => {
            Step::Case { operand: operand.is_some(), branches: branches.len(), otherwise: otherwise.is_some() }
        }
        Expr::Cast { to, safe, .. } => Step::Cast { to: to.clone(), safe: *safe },
        Expr::InList { list, negated, .. } => Step::InList { list: list.len(), negated: *negated },
        Expr::InSet { values, negated, .. } => Step::InSet { values: values.clone(), negated: *negated },
        Expr::Like { negated, case_insensitive, .. } => {
            Step::Like { negated: *negated, case_insensitive: *case_insensitive }
        }
        Expr::Call { function, args } => Step::Call { function: function.clone(), args: args.len() },
    });
}

/// Finished subtrees with their depths, the last one on top.
#[derive(Default)]
struct Stack(Vec<(Expr, usize)>);

impl Stack {
    /// Takes the top `n` trees in the order in which they were pushed; raises `depth` to the deepest of them.
    fn take(&mut self, n: usize, depth: &mut usize) -> Result<std::vec::IntoIter<Expr>, String> {
        let at = self.0.len().checked_sub(n).ok_or("an expression step lacks operands")?;
        let taken: Vec<Expr> = self
            .0
            .drain(at..)
            .map(|(expr, d)| {
                *depth = (*depth).max(d);
                expr
            })
            .collect();
        Ok(taken.into_iter())
    }

    fn one(&mut self, depth: &mut usize) -> Result<Box<Expr>, String> {
        next(&mut self.take(1, depth)?)
    }
}

fn next(operands: &mut std::vec::IntoIter<Expr>) -> Result<Box<Expr>, String> {
    operands.next().map(Box::new).ok_or_else(|| "an expression step lacks operands".to_owned())
}

impl TryFrom<Vec<Step>> for Expr {
    type Error = String;

    fn try_from(steps: Vec<Step>) -> Result<Expr, String> {
        let mut stack = Stack::default();
        for step in steps {
            let mut depth = 0;
            let expr = match step {
                Step::Column(i) => Expr::Column(i),
                Step::Literal(l) => Expr::Literal(l),
                Step::Binary(op) => {
                    let mut two = stack.take(2, &mut depth)?;
                    Expr::Binary { op, left: next(&mut two)?, right: next(&mut two)? }
                }
                Step::Not => Expr::Not(stack.one(&mut depth)?),
                Step::Negative => Expr::Negative(stack.one(&mut depth)?),
                Step::Is { negated, what } => Expr::Is { negated, what, expr: stack.one(&mut depth)? },
                Step::Case { operand, branches, otherwise } => {
                    let count = branches.saturating_mul(2).saturating_add(operand as usize + otherwise as usize);
                    let mut all = stack.take(count, &mut depth)?;
                    let operand = if operand { Some(next(&mut all)?) } else { None };
                    let mut pairs = Vec::with_capacity(branches);
                    for _ in 0..branches {
                        pairs.push((*next(&mut all)?, *next(&mut all)?));
                    }
                    let otherwise = if otherwise { Some(next(&mut all)?) } else { None };
                    Expr::Case { operand, branches: pairs, otherwise }
                }
                Step::Cast { to, safe } => Expr::Cast { expr: stack.one(&mut depth)?, to, safe },
                Step::InList { list, negated } => {
                    let mut all = stack.take(list.saturating_add(1), &mut depth)?;
                    Expr::InList { expr: next(&mut all)?, list: all.collect(), negated }
                }
                Step::InSet { values, negated } => Expr::InSet { expr: stack.one(&mut depth)?, values, negated },
                Step::Like { negated, case_insensitive } => {
                    let mut two = stack.take(2, &mut depth)?;
                    Expr::Like { expr: next(&mut two)?, pattern: next(&mut two)?, negated, case_insensitive }
                }
                Step::Call { function, args } => Expr::Call { function, args: stack.take(args, &mut depth)?.collect() },
            };
            if depth >= DEPTH_MAX {
                return Err(format!("an expression is deeper than {DEPTH_MAX} levels"));
            }
            stack.0.push((expr, depth + 1));
        }
        match (stack.0.pop(), stack.0.is_empty()) {
            (Some((expr, _)), true) => Ok(expr),
            _ => Err("an expression does not end in one value".to_owned()),
        }
    }
}
