//! Scalar expressions as a serialisable tree, and their binding to DataFusion's physical expressions.
//!
//! The tree is ours so that a stored or transmitted process plan does not depend on DataFusion's own serialised form,
//! which changes between versions (design note `docs/design/0001-expressions.md`).
//!
//! [`from_datafusion`] makes a tree from an analysed logical expression, [`bind`] makes a physical expression from a tree
//! and the schema of its input, [`from_physical`] goes back, [`evaluate`] runs it on one batch. Trees are at most [`DEPTH_MAX`] deep, so none of the
//! recursive walks over them can exhaust a stack; long chains of AND and OR are balanced on the way in.

use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};

mod bind;
mod convert;
mod display;
mod guard;
mod literal;
mod physical;
mod postfix;

pub use crate::error::{from_datafusion_error, from_datafusion_error_in};
pub(crate) use bind::is_key_type;
pub use bind::{bind, evaluate, field_of};
pub use convert::from_datafusion;
pub(crate) use convert::window_unsupported;
pub use display::{Named, sql_type};
pub(crate) use guard::GuardedLogic;
pub(crate) use literal::encode_batch;
pub use physical::from_physical;

/// Levels of nesting that an expression may have; deeper ones are refused with `54001`.
pub const DEPTH_MAX: usize = 416;

/// A scalar expression over the columns of one input batch.
///
/// Serialised as a postfix list (see `postfix`), so that depth costs no recursion in any serialiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "Vec<postfix::Step>", try_from = "Vec<postfix::Step>")]
pub enum Expr {
    /// Column by position.
    Column(usize),
    Literal(Literal),
    Binary {
        op: String,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    Not(Box<Expr>),
    Negative(Box<Expr>),
    /// `IS [NOT] NULL | TRUE | FALSE | UNKNOWN`.
    Is {
        negated: bool,
        what: Is,
        expr: Box<Expr>,
    },
    /// `CASE [operand] WHEN … THEN … [ELSE …] END`.
    Case {
        operand: Option<Box<Expr>>,
        branches: Vec<(Expr, Expr)>,
        otherwise: Option<Box<Expr>>,
    },
    /// `safe` gives NULL where the cast fails (TRY_CAST).
    Cast {
        expr: Box<Expr>,
        to: DataType,
        safe: bool,
    },
    InList {
        expr: Box<Expr>,
        list: Vec<Expr>,
        negated: bool,
    },
    /// `IN` over constants of one type: `values` holds all of them, so that a long list stays one array.
    InSet {
        expr: Box<Expr>,
        values: Literal,
        negated: bool,
    },
    Like {
        expr: Box<Expr>,
        pattern: Box<Expr>,
        negated: bool,
        case_insensitive: bool,
    },
    /// A scalar function by its registered name.
    Call {
        function: String,
        args: Vec<Expr>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Is {
    Null,
    True,
    False,
    Unknown,
}

/// A typed constant: an Arrow IPC stream of a one-column batch, so that every type keeps every bit. One row, except in
/// [`Expr::InSet`], which holds one row per value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Literal {
    pub data_type: DataType,
    pub ipc: Vec<u8>,
    /// For display only.
    pub text: String,
}

impl Expr {
    /// The smallest trees directly under this one, in order.
    pub fn children(&self) -> Vec<&Expr> {
        match self {
            Expr::Column(_) | Expr::Literal(_) => vec![],
            Expr::Binary { left, right, .. } => vec![left, right],
            Expr::Not(e) | Expr::Negative(e) => vec![e],
            Expr::Is { expr, .. } | Expr::Cast { expr, .. } | Expr::InSet { expr, .. } => vec![expr],
            Expr::Case { operand, branches, otherwise } => {
                let mut children: Vec<&Expr> = operand.iter().map(|e| e.as_ref()).collect();
                children.extend(branches.iter().flat_map(|(when, then)| [when, then]));
                children.extend(otherwise.iter().map(|e| e.as_ref()));
                children
            }
            Expr::InList { expr, list, .. } => std::iter::once(expr.as_ref()).chain(list).collect(),
            Expr::Like { expr, pattern, .. } => vec![expr, pattern],
            Expr::Call { args, .. } => args.iter().collect(),
        }
    }

    pub(crate) fn children_mut(&mut self) -> Vec<&mut Expr> {
        match self {
            Expr::Column(_) | Expr::Literal(_) => vec![],
            Expr::Binary { left, right, .. } => vec![left, right],
            Expr::Not(e) | Expr::Negative(e) => vec![e],
            Expr::Is { expr, .. } | Expr::Cast { expr, .. } | Expr::InSet { expr, .. } => vec![expr],
            Expr::Case { operand, branches, otherwise } => {
                let mut children: Vec<&mut Expr> = operand.iter_mut().map(|e| e.as_mut()).collect();
                children.extend(branches.iter_mut().flat_map(|(when, then)| [when, then]));
                children.extend(otherwise.iter_mut().map(|e| e.as_mut()));
                children
            }
            Expr::InList { expr, list, .. } => std::iter::once(expr.as_mut()).chain(list).collect(),
            Expr::Like { expr, pattern, .. } => vec![expr, pattern],
            Expr::Call { args, .. } => args.iter_mut().collect(),
        }
    }

    /// Calls `visit` with every column number in the tree, in reading order, repeats included.
    pub fn visit_columns(&self, visit: &mut impl FnMut(usize)) {
        if let Expr::Column(i) = self {
            visit(*i);
        }
        for child in self.children() {
            child.visit_columns(visit);
        }
    }

    /// The same tree over other column numbers.
    pub fn map_columns(mut self, map: &impl Fn(usize) -> usize) -> Expr {
        self.replace_columns(&|i| Expr::Column(map(i)));
        self
    }

    /// Puts `with(i)` in the place of every column `i`.
    pub fn replace_columns(&mut self, with: &impl Fn(usize) -> Expr) {
        if let Expr::Column(i) = self {
            *self = with(*i);
            return;
        }
        for child in self.children_mut() {
            child.replace_columns(with);
        }
    }

    /// Levels of nesting; a column or literal has one.
    pub fn depth(&self) -> usize {
        1 + self.children().into_iter().map(Expr::depth).max().unwrap_or(0)
    }

    /// `left AND right`.
    pub fn and(self, right: Expr) -> Expr {
        Expr::Binary { op: "AND".into(), left: Box::new(self), right: Box::new(right) }
    }

    /// All of `predicates`, as a balanced tree in the same order; `None` when there are none.
    pub fn all(predicates: Vec<Expr>) -> Option<Expr> {
        balanced("AND", predicates)
    }

    /// The expression with the names of `schema` in place of column numbers, for EXPLAIN.
    pub fn named<'a>(&'a self, schema: &'a arrow::datatypes::Schema) -> Named<'a> {
        Named { expr: self, schema: Some(schema) }
    }
}

/// `operands` joined by the associative operator `op` in a tree of least depth, in the same order.
fn balanced(op: &str, mut operands: Vec<Expr>) -> Option<Expr> {
    while operands.len() > 1 {
        let mut next = Vec::with_capacity(operands.len().div_ceil(2));
        let mut rest = operands.into_iter();
        while let Some(left) = rest.next() {
            next.push(match rest.next() {
                Some(right) => Expr::Binary { op: op.into(), left: Box::new(left), right: Box::new(right) },
                None => left,
            });
        }
        operands = next;
    }
    operands.pop()
}

#[cfg(test)]
mod tests;
