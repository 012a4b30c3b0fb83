//! Subqueries that DataFusion cannot take apart as they stand.
//!
//! A correlated scalar subquery must be an aggregate, correlated by equalities only. Three rules get there: a subquery
//! over a relation that is always empty is NULL; an outer expression that the subquery equates with one of its own columns is
//! replaced by that column elsewhere; a condition on the outer row alone moves out into a CASE.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, FunctionArguments, GroupByExpr, JoinOperator, Query, Select, SelectItem, SetExpr,
    TableFactor, TableWithJoins, UnaryOperator, Visitor, VisitorMut,
};
use sql::walk::Walk;

use super::{build, sets, system_relation};
use crate::system::content;

fn take(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, build::null())
}

/// Replaces scalar subqueries that can never find a row, top down, so that what is inside them needs no rule.
pub struct Pruning;

impl VisitorMut for Pruning {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        if always_empty(&select.from) && !aggregates(select) {
            // No row is ever made, so nothing in the list is ever evaluated.
            for expr in select.projection.iter_mut().filter_map(super::item_expr) {
                expr.walk_mut(&mut NullSubqueries);
            }
            if let Some(condition) = &mut select.selection {
                condition.walk_mut(&mut NullSubqueries);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Subquery(query) if finds_nothing(query) => *expr = build::null(),
            Expr::Subquery(query) if counts_nothing(query) => *expr = build::number(0),
            Expr::Function(f) => {
                if matches!(&f.args, FunctionArguments::Subquery(query) if finds_nothing(query)) {
                    *expr = build::empty_texts();
                }
            }
            Expr::Exists { subquery, negated } if finds_nothing(subquery) => {
                *expr = build::value(datafusion::sql::sqlparser::ast::Value::Boolean(*negated));
            }
            Expr::Case { operand: None, conditions, else_result, .. } => {
                conditions.retain(|branch| !asks_for_absent_kind(&branch.condition));
                if conditions.is_empty() {
                    *expr = else_result.take().map_or_else(build::null, |e| *e);
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// `t.typtype = 'd'`: there are no domains, composite types, enums or multiranges.
fn asks_for_absent_kind(condition: &Expr) -> bool {
    let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = condition else { return false };
    build::column_name(left).is_some_and(|name| name == "typtype")
        && build::string_value(right).is_some_and(|kind| ["d", "c", "e", "m"].contains(&kind))
}

struct NullSubqueries;

impl VisitorMut for NullSubqueries {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let array = matches!(expr, Expr::Function(f) if matches!(f.args, FunctionArguments::Subquery(_)));
        match expr {
            Expr::Subquery(_) => *expr = build::null(),
            _ if array => *expr = build::empty_texts(),
            Expr::Exists { negated, .. } => {
                *expr = build::value(datafusion::sql::sqlparser::ast::Value::Boolean(*negated))
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn finds_nothing(query: &Query) -> bool {
    match &*query.body {
        SetExpr::Select(select) => query.with.is_none() && always_empty(&select.from) && !counts(select),
        _ => false,
    }
}

/// `SELECT count(*)` over what is always empty.
fn counts_nothing(query: &Query) -> bool {
    let SetExpr::Select(select) = &*query.body else { return false };
    let [SelectItem::UnnamedExpr(item)] = &select.projection[..] else { return false };
    let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(e, _) if e.is_empty());
    let counts = build::as_call(item).is_some_and(|(name, _)| name == "count");
    counts && !grouped && select.having.is_none() && query.with.is_none() && always_empty(&select.from)
}

/// Whether a FROM clause has no rows whatever the catalog holds.
fn always_empty(from: &[TableWithJoins]) -> bool {
    fn factor(factor: &TableFactor) -> bool {
        match factor {
            TableFactor::Table { name, args: None, .. } => {
                system_relation(name).is_some_and(|r| !content::has_content(r))
            }
            TableFactor::NestedJoin { table_with_joins, .. } => always_empty(std::slice::from_ref(table_with_joins)),
            TableFactor::Derived { subquery, .. } => finds_nothing(subquery),
            _ => false,
        }
    }
    from.iter().any(|t| {
        let mut empty = factor(&t.relation);
        for join in &t.joins {
            empty = match &join.join_operator {
                JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_) => {
                    empty || factor(&join.relation)
                }
                JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => empty,
                _ => empty && factor(&join.relation),
            };
        }
        empty
    })
}

const AGGREGATES: [&str; 14] = [
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "array_agg",
    "string_agg",
    "bool_and",
    "bool_or",
    "every",
    "first_value",
    "last_value",
    "json_agg",
    "json_object_agg",
];

/// Whether the SELECT list itself calls one of these, outside of subqueries.
fn calls(select: &Select, wanted: &[&str]) -> bool {
    struct Search<'a> {
        wanted: &'a [&'a str],
        depth: usize,
        found: bool,
    }
    impl Visitor for Search<'_> {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.depth += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.depth -= 1;
            ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if let (Some((name, _)), 0) = (build::as_call(expr), self.depth) {
                self.found |= self.wanted.contains(&name.as_str());
            }
            ControlFlow::Continue(())
        }
    }
    let mut search = Search { wanted, depth: 0, found: false };
    select.projection.walk(&mut search);
    search.found
}

fn aggregates(select: &Select) -> bool {
    calls(select, &AGGREGATES)
}

/// `count` of no rows is 0, where every other aggregate is NULL.
fn counts(select: &Select) -> bool {
    calls(select, &["count"])
}

/// Makes correlated scalar subqueries fit. The query's own parts have been rewritten before.
pub fn expression(expr: &mut Expr) {
    let Expr::Subquery(query) = expr else { return };
    let SetExpr::Select(select) = &mut *query.body else { return };
    let own = relation_names(&select.from);
    let Some(condition) = &mut select.selection else { return };
    if outer_qualifiers(condition, &own).is_empty() {
        return;
    }
    let mut conditions = conjuncts(take(condition));
    substitute_equals(&mut conditions, &own);
    let (outer_only, rest): (Vec<Expr>, Vec<Expr>) = conditions.into_iter().partition(|c| {
        let (inner, outer) = qualifiers(c, &own);
        !outer.is_empty() && inner.is_empty() && !has_subquery(c)
    });
    select.selection = conjunction(rest);
    let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(e, _) if e.is_empty());
    let aggregated = aggregates(select);
    // At most one row, by the nature of the catalogs or of an aggregate: LIMIT 1 says the same.
    if !grouped && is_limit_one(query) {
        query.limit_clause = None;
    }
    if !grouped && !aggregated {
        let _ = sets::aggregate_single_column(query, "first_value");
    }
    if let Some(condition) = conjunction(outer_only) {
        let subquery = take(expr);
        *expr = build::when(condition, subquery);
    }
}

/// EXISTS and IN are for conditions; in a SELECT list a count and an array say the same.
pub fn select(select: &mut Select) {
    struct Count;
    impl VisitorMut for Count {
        type Break = ();
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::InSubquery { expr: needle, subquery, negated } = expr {
                let mut list = subquery.clone();
                if sets::aggregate_single_column(&mut list, "array_agg").is_some() {
                    let found = build::call("array_has", vec![Expr::Subquery(list), take(needle)]);
                    let no = build::value(datafusion::sql::sqlparser::ast::Value::Boolean(false));
                    let found = build::call("coalesce", vec![found, no]);
                    *expr = match *negated {
                        true => Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(found) },
                        false => found,
                    };
                }
            }
            if let Expr::Exists { subquery, negated } = expr {
                let op = if *negated { BinaryOperator::Eq } else { BinaryOperator::Gt };
                if let Some(mut count) = count_rows(subquery) {
                    expression(&mut count);
                    let left = Box::new(build::call("coalesce", vec![count, build::number(0)]));
                    let comparison = Expr::BinaryOp { left, op, right: Box::new(build::number(0)) };
                    *expr = Expr::Nested(Box::new(comparison));
                }
            }
            ControlFlow::Continue(())
        }
    }
    for expr in select.projection.iter_mut().filter_map(super::item_expr) {
        expr.walk_mut(&mut Count);
    }
}

/// `(SELECT count(1) FROM …)` for a subquery that is a plain SELECT.
fn count_rows(query: &Query) -> Option<Expr> {
    let mut query = query.clone();
    let SetExpr::Select(select) = &mut *query.body else { return None };
    let plain = matches!(&select.group_by, GroupByExpr::Expressions(e, _) if e.is_empty()) && select.having.is_none();
    if !plain || query.limit_clause.is_some() || query.with.is_some() {
        return None;
    }
    query.order_by = None;
    select.distinct = None;
    select.projection = vec![SelectItem::UnnamedExpr(build::call("count", vec![build::number(1)]))];
    Some(Expr::Subquery(Box::new(query)))
}

fn is_limit_one(query: &Query) -> bool {
    use datafusion::sql::sqlparser::ast::LimitClause;
    matches!(&query.limit_clause, Some(LimitClause::LimitOffset { limit: Some(n), offset: None, .. }) if n.to_string() == "1")
}

/// The names by which the relations of a FROM clause are called.
pub fn relation_names(from: &[TableWithJoins]) -> BTreeSet<String> {
    fn factor(factor: &TableFactor, names: &mut BTreeSet<String>) {
        let alias = match factor {
            TableFactor::Table { name, alias, .. } => match alias {
                Some(alias) => Some(alias),
                None => {
                    names.extend(build::parts(name).pop());
                    None
                }
            },
            TableFactor::Derived { alias, .. }
            | TableFactor::Function { alias, .. }
            | TableFactor::TableFunction { alias, .. }
            | TableFactor::UNNEST { alias, .. } => alias.as_ref(),
            TableFactor::NestedJoin { table_with_joins, alias } => {
                names.extend(relation_names(std::slice::from_ref(table_with_joins)));
                alias.as_ref()
            }
            _ => None,
        };
        names.extend(alias.map(|a| build::fold(&a.name)));
    }
    let mut names = BTreeSet::new();
    for table in from {
        factor(&table.relation, &mut names);
        table.joins.iter().for_each(|j| factor(&j.relation, &mut names));
    }
    names
}

/// The relations that an expression's qualified columns name: those of `own`, and others. A subquery's own relations count
/// as neither.
fn qualifiers(expr: &Expr, own: &BTreeSet<String>) -> (BTreeSet<String>, BTreeSet<String>) {
    struct Search {
        columns: Vec<Option<String>>,
        nested: BTreeSet<String>,
    }
    impl Visitor for Search {
        type Break = ();
        fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
            self.nested.extend(relation_names(&select.from));
            ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match expr {
                Expr::CompoundIdentifier(parts) if parts.len() >= 2 => {
                    self.columns.push(parts.get(parts.len() - 2).map(build::fold));
                }
                Expr::Identifier(_) => self.columns.push(None),
                _ => {}
            }
            ControlFlow::Continue(())
        }
    }
    let mut search = Search { columns: Vec::new(), nested: BTreeSet::new() };
    expr.walk(&mut search);
    let (mut inner, mut outer) = (BTreeSet::new(), BTreeSet::new());
    for column in search.columns {
        match column {
            // A column without a qualifier is taken for one of the nearest relations.
            None => {
                inner.insert(String::new());
            }
            Some(name) if own.contains(&name) => {
                inner.insert(name);
            }
            Some(name) if search.nested.contains(&name) => {}
            Some(name) => {
                outer.insert(name);
            }
        }
    }
    (inner, outer)
}

fn outer_qualifiers(expr: &Expr, own: &BTreeSet<String>) -> BTreeSet<String> {
    qualifiers(expr, own).1
}

fn has_subquery(expr: &Expr) -> bool {
    struct Search(bool);
    impl Visitor for Search {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.0 = true;
            ControlFlow::Break(())
        }
    }
    let mut search = Search(false);
    expr.walk(&mut search);
    search.0
}

/// The terms of a conjunction, parentheses taken off.
fn conjuncts(expr: Expr) -> Vec<Expr> {
    match expr {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            let mut all = conjuncts(*left);
            all.extend(conjuncts(*right));
            all
        }
        Expr::Nested(inner) => conjuncts(*inner),
        other => vec![other],
    }
}

/// The terms joined by AND, in parentheses where they are not atoms; none for no terms.
fn conjunction(terms: Vec<Expr>) -> Option<Expr> {
    terms
        .into_iter()
        .map(|t| match t {
            Expr::BinaryOp { .. } | Expr::UnaryOp { op: UnaryOperator::Not, .. } => Expr::Nested(Box::new(t)),
            other => other,
        })
        .reduce(|left, right| Expr::BinaryOp { left: Box::new(left), op: BinaryOperator::And, right: Box::new(right) })
}

/// `c.oid = a.x AND a.x <> t.y` is `c.oid = a.x AND c.oid <> t.y`.
fn substitute_equals(conditions: &mut [Expr], own: &BTreeSet<String>) {
    let mut equal: Vec<(usize, Expr, Expr)> = Vec::new();
    for (i, condition) in conditions.iter().enumerate() {
        let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = condition else { continue };
        for (inner, outer) in [(left, right), (right, left)] {
            let is_column =
                matches!(**inner, Expr::CompoundIdentifier(_)) && matches!(**outer, Expr::CompoundIdentifier(_));
            if is_column && qualifiers(inner, own).1.is_empty() && qualifiers(outer, own).0.is_empty() {
                equal.push((i, (**outer).clone(), (**inner).clone()));
            }
        }
    }
    struct Replace<'a> {
        from: &'a Expr,
        to: &'a Expr,
    }
    impl VisitorMut for Replace<'_> {
        type Break = ();
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if expr == self.from {
                *expr = self.to.clone();
            }
            ControlFlow::Continue(())
        }
    }
    for (defined_by, from, to) in &equal {
        for (i, condition) in conditions.iter_mut().enumerate() {
            let is_equality = matches!(condition, Expr::BinaryOp { op: BinaryOperator::Eq, .. });
            if i != *defined_by && !is_equality {
                condition.walk_mut(&mut Replace { from, to });
            }
        }
    }
}
