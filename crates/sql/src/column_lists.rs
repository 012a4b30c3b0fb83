//! Column lists that name only the first columns (`FROM t AS x(p)`, `WITH x(p) AS …`), which PostgreSQL fills up with the
//! relation's own names and DataFusion refuses; and names in WITH that come twice.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Cte, Ident, JoinConstraint, JoinOperator, ObjectName, Query, SelectItem, SelectItemQualifiedWildcardKind, SetExpr,
    TableAlias, TableAliasColumnDef, TableFactor, TableWithJoins, VisitorMut,
};
use flow::{Error, SqlState};

use crate::names::{self, Source};
use crate::resolver::Resolver;
use crate::rewrite::output_name;
use crate::walk::Walk;
use crate::walk::Walk;

/// Fills up the column lists in `query`.
///
/// Errors: `42712` for a WITH query whose name is taken.
pub(crate) fn complete(query: &mut dyn Walk, resolver: &dyn Resolver, source: &Source<'_>) -> flow::Result<()> {
    let mut lists = Lists { resolver, source, scopes: Vec::new() };
    query.try_walk_mut(&mut lists)
}

struct Lists<'a> {
    resolver: &'a dyn Resolver,
    source: &'a Source<'a>,
    /// Columns of the WITH queries around, innermost last; `None` where they are not known.
    scopes: Vec<HashMap<String, Option<Vec<String>>>>,
}

impl VisitorMut for Lists<'_> {
    type Break = Box<Error>;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Box<Error>> {
        self.scopes.push(HashMap::new());
        let Some(with) = &mut query.with else { return ControlFlow::Continue(()) };
        for cte in &mut with.cte_tables {
            let name = names::fold(&cte.alias.name);
            if self.scopes.last().is_some_and(|scope| scope.contains_key(&name)) {
                let message = format!("WITH query name \"{name}\" specified more than once");
                let error = Error::new(SqlState::DuplicateAlias, message);
                let at = cte.alias.name.span.start;
                return ControlFlow::Break(Box::new(if at.line > 0 {
                    error.with_position(self.source.position(at))
                } else {
                    error
                }));
            }
            let columns = self.cte(cte);
            if let Some(scope) = self.scopes.last_mut() {
                scope.insert(name, columns);
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<Box<Error>> {
        self.scopes.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Box<Error>> {
        let own = match factor {
            TableFactor::Table { alias: Some(alias), args: None, name, .. } if !alias.columns.is_empty() => {
                self.relation(name)
            }
            TableFactor::Derived { alias: Some(alias), subquery, .. } if !alias.columns.is_empty() => {
                self.query(subquery)
            }
            _ => None,
        };
        if let (
            Some(own),
            TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. },
        ) = (own, factor)
        {
            fill(alias, own);
        }
        ControlFlow::Continue(())
    }
}

/// Appends the names of the columns that the list leaves out.
fn fill(alias: &mut TableAlias, own: Vec<String>) {
    let given = alias.columns.len();
    if given == 0 {
        return;
    }
    alias.columns.extend(
        own.into_iter()
            .skip(given)
            .map(|name| TableAliasColumnDef { name: Ident::with_quote('"', name), data_type: None }),
    );
}

fn renamed(own: Option<Vec<String>>, alias: Option<&TableAlias>) -> Option<Vec<String>> {
    let mut own = own?;
    for (name, column) in own.iter_mut().zip(alias.iter().flat_map(|a| &a.columns)) {
        *name = names::fold(&column.name);
    }
    Some(own)
}

impl Lists<'_> {
    fn cte(&mut self, cte: &mut Cte) -> Option<Vec<String>> {
        let own = self.query(&cte.query);
        if let Some(own) = own.clone() {
            fill(&mut cte.alias, own);
        }
        renamed(own, Some(&cte.alias))
    }

    fn relation(&self, name: &ObjectName) -> Option<Vec<String>> {
        if let [part] = name.0.as_slice() {
            let name = names::fold(part.as_ident()?);
            if let Some(columns) = self.scopes.iter().rev().find_map(|scope| scope.get(&name)) {
                return columns.clone();
            }
        }
        let relation = self.resolver.relation(&names::relation_name(name, self.source).ok()?)?;
        Some(relation.columns.iter().map(|c| c.name.clone()).collect())
    }

    /// The names of a query's columns, where the text and the catalog tell.
    fn query(&mut self, query: &Query) -> Option<Vec<String>> {
        let mut scope = HashMap::new();
        for cte in query.with.iter().flat_map(|w| &w.cte_tables) {
            self.scopes.push(std::mem::take(&mut scope));
            let columns = self.query(&cte.query);
            scope = self.scopes.pop().unwrap_or_default();
            scope.insert(names::fold(&cte.alias.name), renamed(columns, Some(&cte.alias)));
        }
        self.scopes.push(scope);
        let columns = self.body(&query.body);
        self.scopes.pop();
        columns
    }

    fn body(&mut self, body: &SetExpr) -> Option<Vec<String>> {
        match body {
            SetExpr::Query(query) => self.query(query),
            SetExpr::SetOperation { left, .. } => self.body(left),
            SetExpr::Values(values) => {
                let count = values.rows.first()?.len();
                Some((1..=count).map(|n| format!("column{n}")).collect())
            }
            SetExpr::Select(select) => {
                let mut columns = Vec::new();
                for item in &select.projection {
                    match item {
                        SelectItem::UnnamedExpr(expr) => {
                            columns.push(output_name(expr).unwrap_or_else(|| "?column?".to_string()));
                        }
                        SelectItem::ExprWithAlias { alias, .. } => columns.push(names::fold(alias)),
                        SelectItem::Wildcard(_) => {
                            for from in &select.from {
                                columns.extend(self.joined(from)?);
                            }
                        }
                        SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                            let wanted = name.0.last()?.as_ident().map(names::fold)?;
                            let mut factors = select
                                .from
                                .iter()
                                .flat_map(|f| std::iter::once(&f.relation).chain(f.joins.iter().map(|j| &j.relation)));
                            let factor = factors.find(|f| shown_name(f).as_deref() == Some(wanted.as_str()))?;
                            columns.extend(self.factor(factor)?);
                        }
                        _ => return None,
                    }
                }
                Some(columns)
            }
            _ => None,
        }
    }

    fn joined(&mut self, from: &TableWithJoins) -> Option<Vec<String>> {
        let mut columns = self.factor(&from.relation)?;
        for join in &from.joins {
            let constraint = match &join.join_operator {
                JoinOperator::Join(c)
                | JoinOperator::Inner(c)
                | JoinOperator::Left(c)
                | JoinOperator::LeftOuter(c)
                | JoinOperator::Right(c)
                | JoinOperator::RightOuter(c)
                | JoinOperator::FullOuter(c) => Some(c),
                JoinOperator::CrossJoin(_) => None,
                _ => return None,
            };
            if matches!(constraint, Some(JoinConstraint::Using(_) | JoinConstraint::Natural)) {
                return None;
            }
            columns.extend(self.factor(&join.relation)?);
        }
        Some(columns)
    }

    fn factor(&mut self, factor: &TableFactor) -> Option<Vec<String>> {
        match factor {
            TableFactor::Table { name, alias, args: None, .. } => renamed(self.relation(name), alias.as_ref()),
            TableFactor::Derived { subquery, alias, .. } => renamed(self.query(subquery), alias.as_ref()),
            TableFactor::NestedJoin { table_with_joins, alias } => {
                renamed(self.joined(table_with_joins), alias.as_ref())
            }
            _ => None,
        }
    }
}

/// The name by which a relation in FROM is referred to.
fn shown_name(factor: &TableFactor) -> Option<String> {
    match factor {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => {
            Some(names::fold(&alias.name))
        }
        TableFactor::Table { name, alias: None, .. } => name.0.last()?.as_ident().map(names::fold),
        _ => None,
    }
}
