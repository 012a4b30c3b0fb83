//! Turning what DataFusion's planner lacks into what it has, on the syntax tree, before planning.
//!
//! Two sets of rules. Those on names and types ([`names`]) hold for every query: `pg_catalog.` in front of functions and
//! types, `OPERATOR(pg_catalog.~)`, `COLLATE`, `::regclass`. Those on shapes ([`subqueries`], [`sets`]) are only for queries
//! that read the system relations: they assume what is true of these, above all that a correlated scalar subquery over
//! them finds at most one row.
//!
//! Reading order: [`build`] makes syntax trees, then [`names`], [`literals`], [`sets`],
//! [`subqueries`], [`output`].

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, ObjectName, Query, Select, SelectItem, SetExpr, Statement, TableFactor, Visitor, VisitorMut,
};
use sql::walk::Walk;

use super::layout;

mod build;
mod literals;
mod names;
mod output;
mod sets;
mod subqueries;

/// What a rewritten query is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rewritten {
    /// Whether it reads a system relation.
    pub reads_system: bool,
    /// The names that PostgreSQL gives to the output columns; none when a `*` among them hides how many there are. The
    /// planned columns have names of their own where two of these are equal.
    pub output_names: Option<Vec<String>>,
}

/// Rewrites a query in place.
pub fn rewrite(query: &mut Query) -> Rewritten {
    let reads_system = reads_system(query);
    let output_names = output::names(query);
    query.walk_mut(&mut names::Names);
    names::show_registered(query);
    if reads_system {
        query.walk_mut(&mut subqueries::Pruning);
        query.walk_mut(&mut Shapes);
    }
    if let Some(names) = &output_names {
        output::apply(query, names);
    }
    Rewritten { reads_system, output_names }
}

/// Rewrites a statement in place if it is a query; others are left alone.
pub fn rewrite_statement(statement: &mut Statement) -> Option<Rewritten> {
    match statement {
        Statement::Query(query) => Some(rewrite(query)),
        Statement::Explain { statement, .. } => rewrite_statement(statement),
        _ => None,
    }
}

/// Whether a query names a system relation anywhere.
pub fn reads_system(query: &Query) -> bool {
    struct Search {
        found: bool,
    }
    impl Visitor for Search {
        type Break = ();
        fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<()> {
            self.found |= system_relation(name).is_some() || build::is_table_function(name, "pg_get_keywords");
            if self.found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    let mut search = Search { found: false };
    query.walk(&mut search);
    search.found
}

/// The system relation that a name in a FROM clause means, if it means one.
fn system_relation(name: &ObjectName) -> Option<&'static layout::SystemRelation> {
    let parts: Vec<String> = build::parts(name);
    match parts.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [name] => layout::relation("pg_catalog", name),
        [.., schema, name] => layout::relation(schema, name),
        [] => None,
    }
}

/// The rules on shapes, bottom up.
struct Shapes;

impl VisitorMut for Shapes {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        literals::expression(expr);
        sets::expression(expr);
        subqueries::expression(expr);
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        literals::recursive_counters(query);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        literals::table_oids(select);
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        sets::lateral_lists(select);
        sets::select(select);
        subqueries::select(select);
        ControlFlow::Continue(())
    }

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        sets::table_factor(factor);
        ControlFlow::Continue(())
    }
}

/// Calls `f` on the projection of every SELECT that makes the query's own output rows.
fn for_each_output_select(body: &mut SetExpr, f: &mut impl FnMut(&mut Vec<SelectItem>)) {
    match body {
        SetExpr::Select(select) => f(&mut select.projection),
        SetExpr::Query(query) => for_each_output_select(&mut query.body, f),
        SetExpr::SetOperation { left, right, .. } => {
            for_each_output_select(left, f);
            for_each_output_select(right, f);
        }
        _ => {}
    }
}

/// The expression of a projected item, if it is one expression.
fn item_expr(item: &mut SelectItem) -> Option<&mut Expr> {
    match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
