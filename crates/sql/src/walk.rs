//! Walks over syntax trees behind one erased visitor.
//!
//! sqlparser's own walk is generic over its visitor, and a syntax tree has hundreds of node types: every visitor type
//! compiles the whole walk again, which took most of the time that this crate and `query` needed to build. Here it is
//! compiled once a kind of walk, and a visitor is called through a pointer.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, ObjectName, OrderBy, Query, Select, SelectItem, Statement, TableFactor, ValueWithSpan, Visit, VisitMut,
    Visitor, VisitorMut,
};
use flow::{Error, Result};

/// A syntax tree that can be walked.
pub trait Walk {
    /// Shows every node to `visitor`, until it breaks off.
    fn walk(&self, visitor: &mut dyn Visitor<Break = ()>);

    /// Lets `visitor` change every node, until it breaks off.
    fn walk_mut(&mut self, visitor: &mut dyn VisitorMut<Break = ()>);

    /// Lets `visitor` change every node; an error that it breaks off with is the result.
    fn try_walk_mut(&mut self, visitor: &mut dyn VisitorMut<Break = Box<Error>>) -> Result<()>;
}

macro_rules! walk {
    ($($tree:ty),+) => {$(
        impl Walk for $tree {
            fn walk(&self, visitor: &mut dyn Visitor<Break = ()>) {
                let _: ControlFlow<()> = self.visit(&mut Shown(visitor));
            }

            fn walk_mut(&mut self, visitor: &mut dyn VisitorMut<Break = ()>) {
                let _: ControlFlow<()> = self.visit(&mut Changed(visitor));
            }

            fn try_walk_mut(&mut self, visitor: &mut dyn VisitorMut<Break = Box<Error>>) -> Result<()> {
                match self.visit(&mut Changed(visitor)) {
                    ControlFlow::Break(error) => Err(*error),
                    ControlFlow::Continue(()) => Ok(()),
                }
            }
        }
    )+};
}

walk!(Query, Select, Expr, Vec<SelectItem>, OrderBy);

struct Shown<'a>(&'a mut dyn Visitor<Break = ()>);

struct Changed<'a, B>(&'a mut dyn VisitorMut<Break = B>);

macro_rules! forward {
    ($($hook:ident: $node:ty),+) => {
        impl Visitor for Shown<'_> {
            type Break = ();
            $(fn $hook(&mut self, node: &$node) -> ControlFlow<()> {
                self.0.$hook(node)
            })+
        }

        impl<B> VisitorMut for Changed<'_, B> {
            type Break = B;
            $(fn $hook(&mut self, node: &mut $node) -> ControlFlow<B> {
                self.0.$hook(node)
            })+
        }
    };
}

forward!(
    pre_visit_query: Query,
    post_visit_query: Query,
    pre_visit_select: Select,
    post_visit_select: Select,
    pre_visit_relation: ObjectName,
    post_visit_relation: ObjectName,
    pre_visit_table_factor: TableFactor,
    post_visit_table_factor: TableFactor,
    pre_visit_expr: Expr,
    post_visit_expr: Expr,
    pre_visit_statement: Statement,
    post_visit_statement: Statement,
    pre_visit_value: ValueWithSpan,
    post_visit_value: ValueWithSpan
);
