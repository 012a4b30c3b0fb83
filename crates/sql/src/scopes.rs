//! What names stand for in the FROM clauses around them, on the syntax tree.
//!
//! PostgreSQL fills up column lists that name only the first columns (`FROM t AS x(p)`, `WITH x(p) AS …`) with the
//! relation's own names; DataFusion refuses them. DataFusion takes a qualifier for a column where a relation nearby has a
//! column of that name, and does not look for columns in the relations of outer queries; both is settled here.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;

use arrow::datatypes::DataType;
use datafusion::sql::sqlparser::ast::{
    Cte, Distinct, Expr, GroupByExpr, Ident, JoinConstraint, JoinOperator, ObjectName, ObjectNamePart, OrderByKind,
    Query, Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, TableAlias, TableAliasColumnDef, TableFactor,
    TableWithJoins, Visitor, VisitorMut,
};
use datafusion::sql::sqlparser::tokenizer::Location;
use flow::{Error, SqlState};

use crate::merged::merges;
use crate::names::{self, Source};
use crate::resolver::{Relation, Resolver};
use crate::rewrite::{NAME_END, number, output_name, table_alias};
use crate::walk::Walk;

/// The relation of a name that is written, or stored in a definition: with the columns that the definition sees.
fn relation_of(resolver: &dyn Resolver, name: &ObjectName, source: &Source) -> Option<Relation> {
    let name = names::relation_name(name, source).ok()?;
    let Some((id, width)) = crate::definition::marker_id(&name.name) else { return resolver.relation(&name) };
    let mut relation = resolver.relation_by_id(id)?;
    relation.columns.truncate(width.unwrap_or(usize::MAX));
    Some(relation)
}

/// Fills up the column lists in `query`, and makes its qualifiers unmistakable.
///
/// Errors: `42712` for a name that two relations of one FROM or of one WITH have, `42703` for a column that a relation of
/// an outer query has not.
pub(crate) fn complete(query: &mut dyn Walk, resolver: &dyn Resolver, source: &Source<'_>) -> flow::Result<()> {
    let mut lists = Lists {
        resolver,
        source,
        scopes: Vec::new(),
        froms: Vec::new(),
        merges: Vec::new(),
        mistakable: BTreeSet::new(),
    };
    query.try_walk_mut(&mut lists)?;
    if !lists.mistakable.is_empty() {
        query.walk_mut(&mut Rename(lists.mistakable));
    }
    Ok(())
}

struct Lists<'a> {
    resolver: &'a dyn Resolver,
    source: &'a Source<'a>,
    /// Columns of the WITH queries around, innermost last; `None` where they are not known.
    scopes: Vec<HashMap<String, Option<Vec<String>>>>,
    /// The relations in the FROM clauses around, innermost last.
    froms: Vec<Vec<Named>>,
    /// Of each of `froms`, whether it joins by USING or NATURAL, so that a name may stand for a column of several.
    merges: Vec<bool>,
    /// Relations of outer queries with the name of a column that is nearer.
    mistakable: BTreeSet<String>,
}

/// A relation in FROM: the name by which it is referred to, and its columns where they are known.
struct Named {
    name: String,
    columns: Option<Vec<String>>,
}

impl VisitorMut for Lists<'_> {
    type Break = Box<Error>;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Box<Error>> {
        if !self.froms.is_empty() {
            order_by_place(query);
        }
        self.scopes.push(HashMap::new());
        let Some(with) = &mut query.with else {
            self.group_by_key(query);
            return ControlFlow::Continue(());
        };
        for cte in &mut with.cte_tables {
            let name = names::fold(&cte.alias.name);
            if self.scopes.last().is_some_and(|scope| scope.contains_key(&name)) {
                let message = format!("WITH query name \"{name}\" specified more than once");
                return self.fail(Error::new(SqlState::DuplicateAlias, message), cte.alias.name.span.start);
            }
            let columns = self.cte(cte);
            if let Some(scope) = self.scopes.last_mut() {
                scope.insert(name, columns);
            }
        }
        self.group_by_key(query);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<Box<Error>> {
        self.scopes.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Box<Error>> {
        let mut from: Vec<Named> = Vec::new();
        for factor in factors(&select.from) {
            let Some((name, at)) = shown_name(factor) else { continue };
            // Tables of different schemas may share a name; then only their full names refer to them.
            let qualified = matches!(factor, TableFactor::Table { name, alias: None, .. } if name.0.len() > 1);
            if !qualified && from.iter().any(|n| n.name == name) {
                let message = format!("table name \"{name}\" specified more than once");
                return self.fail(Error::new(SqlState::DuplicateAlias, message), at);
            }
            let columns = self.factor(factor);
            from.push(Named { name, columns });
        }
        self.check_having(select, &from)?;
        self.froms.push(from);
        self.merges.push(select.from.iter().any(merges));
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, _: &mut Select) -> ControlFlow<Box<Error>> {
        self.froms.pop();
        self.merges.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Box<Error>> {
        if let Expr::Identifier(ident) = expr {
            return self.check_ambiguous(ident);
        }
        let Expr::CompoundIdentifier(parts) = expr else { return ControlFlow::Continue(()) };
        let [qualifier, column] = parts.as_slice() else { return ControlFlow::Continue(()) };
        let (name, column_name) = (names::fold(qualifier), names::fold(column));
        let Some((nearest, outer)) = self.froms.split_last() else { return ControlFlow::Continue(()) };
        if nearest.iter().any(|n| n.name == name) {
            return ControlFlow::Continue(());
        }
        let Some(found) = outer.iter().rev().find_map(|from| from.iter().find(|n| n.name == name)) else {
            return ControlFlow::Continue(());
        };
        if found.columns.as_ref().is_some_and(|c| !c.contains(&column_name)) {
            let error = Error::new(SqlState::UndefinedColumn, format!("column {name}.{column_name} does not exist"));
            return self.fail(error, qualifier.span.start);
        }
        let hides = |n: &Named| n.columns.as_ref().is_some_and(|c| c.contains(&name));
        if self.froms.iter().any(|from| from.iter().any(hides)) {
            self.mistakable.insert(name);
        }
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

/// Gives relations with mistakable names other ones, of which only the part before the mark is shown.
struct Rename(BTreeSet<String>);

impl Rename {
    fn ident(&self, ident: &mut Ident) {
        let name = names::fold(ident);
        if self.0.contains(&name) {
            *ident = Ident { value: format!("{name}{NAME_END}"), quote_style: Some('"'), span: ident.span };
        }
    }
}

impl VisitorMut for Rename {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        for item in &mut select.projection {
            if let SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) = item
                && let [ObjectNamePart::Identifier(ident)] = name.0.as_mut_slice()
            {
                self.ident(ident);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        let shown = shown_name(factor).map(|(name, _)| name).filter(|name| self.0.contains(name));
        let (TableFactor::Table { alias, .. } | TableFactor::Derived { alias, .. }, Some(name)) = (factor, shown)
        else {
            return ControlFlow::Continue(());
        };
        match alias {
            Some(alias) => self.ident(&mut alias.name),
            None => *alias = Some(table_alias(&format!("{name}{NAME_END}"))),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::CompoundIdentifier(parts) = expr
            && parts.len() >= 2
        {
            let at = parts.len() - 2;
            self.ident(&mut parts[at]);
            if names::fold(&parts[at]).ends_with(NAME_END) {
                // The schema in front named the table that has an alias now.
                parts.drain(..at);
            }
        }
        ControlFlow::Continue(())
    }
}

/// The relations of a FROM clause.
fn factors(from: &[TableWithJoins]) -> Vec<&TableFactor> {
    let mut found = Vec::new();
    let mut pending: Vec<&TableWithJoins> = from.iter().rev().collect();
    while let Some(tables) = pending.pop() {
        for factor in std::iter::once(&tables.relation).chain(tables.joins.iter().map(|j| &j.relation)) {
            match factor {
                TableFactor::NestedJoin { table_with_joins, alias: None } => pending.push(table_with_joins),
                factor => found.push(factor),
            }
        }
    }
    found
}

/// The names of columns that a query mentions anywhere.
#[derive(Default)]
struct Mentioned(BTreeSet<String>);

impl Visitor for Mentioned {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let last = match expr {
            Expr::Identifier(ident) => Some(ident),
            Expr::CompoundIdentifier(parts) => parts.last(),
            _ => None,
        };
        self.0.extend(last.map(names::fold));
        ControlFlow::Continue(())
    }
}

/// Finds a bare name outside subqueries.
struct FindName {
    names: BTreeSet<String>,
    depth: usize,
    found: Option<Ident>,
}

impl Visitor for FindName {
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
        match expr {
            Expr::Identifier(ident) if self.depth == 0 && self.names.contains(&names::fold(ident)) => {
                self.found = Some(ident.clone());
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

/// Names of output columns in ORDER BY as their places. A name that relations of FROM have too would be looked up in the
/// queries around, although the output column is meant.
fn order_by_place(query: &mut Query) {
    let (SetExpr::Select(select), Some(order)) = (query.body.as_ref(), &mut query.order_by) else { return };
    let OrderByKind::Expressions(keys) = &mut order.kind else { return };
    if matches!(select.distinct, Some(Distinct::On(_))) {
        return;
    }
    let names = select.projection.iter().map_while(|item| match item {
        SelectItem::UnnamedExpr(expr) => Some(output_name(expr)),
        SelectItem::ExprWithAlias { alias, .. } => Some(Some(names::fold(alias))),
        // How many columns it stands for is not known here.
        _ => None,
    });
    let names: Vec<Option<String>> = names.collect();
    for key in keys {
        let Expr::Identifier(ident) = &key.expr else { continue };
        let wanted = Some(names::fold(ident));
        let mut places = (1..).zip(&names).filter(|(_, name)| **name == wanted).map(|(place, _)| place);
        if let (Some(place), None) = (places.next(), places.next()) {
            let place: usize = place;
            key.expr = number(&place.to_string());
        }
    }
}

impl Lists<'_> {
    /// Who groups by a table's primary key may use its other columns; those that the query reads join the grouping.
    fn group_by_key(&mut self, query: &mut Query) {
        let SetExpr::Select(select) = query.body.as_ref() else { return };
        let GroupByExpr::Expressions(keys, modifiers) = &select.group_by else { return };
        if keys.is_empty() || !modifiers.is_empty() {
            return;
        }
        let factors: Vec<&TableFactor> = factors(&select.from);
        let all: Vec<(Option<String>, Option<Vec<String>>)> =
            factors.iter().map(|f| (shown_name(f).map(|(name, _)| name), self.factor(f))).collect();
        // Unqualified, a name means a column that only one relation has.
        let owner = |column: &str| {
            let mut having =
                all.iter().filter(|(_, columns)| columns.as_ref().is_none_or(|c| c.iter().any(|n| n == column)));
            match (having.next(), having.next()) {
                (Some((name, _)), None) => name.clone(),
                _ => None,
            }
        };
        let is = |expr: &Expr, table: &str, column: &str| match expr {
            Expr::Identifier(ident) => names::fold(ident) == column && owner(column).as_deref() == Some(table),
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [.., qualifier, ident] => names::fold(qualifier) == table && names::fold(ident) == column,
                _ => false,
            },
            _ => false,
        };
        let wildcard = |i: &SelectItem| matches!(i, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
        let all_columns = select.projection.iter().any(wildcard);
        let mut mentioned = None;
        let mut added = Vec::new();
        for factor in factors {
            let (Some((table, _)), Some(columns)) = (shown_name(factor), self.keyed_columns(factor)) else { continue };
            if !columns.iter().filter(|(_, key)| *key).all(|(c, _)| keys.iter().any(|k| is(k, &table, c))) {
                continue;
            }
            let mentioned = mentioned.get_or_insert_with(|| {
                let mut names = Mentioned::default();
                query.walk(&mut names);
                names.0
            });
            let others = columns.into_iter().filter(|(_, key)| !key).map(|(column, _)| column);
            let read = others.filter(|column| {
                all_columns || mentioned.contains(column) && !keys.iter().any(|k| is(k, &table, column))
            });
            let column = |name: String| {
                Expr::CompoundIdentifier(vec![Ident::with_quote('"', &table), Ident::with_quote('"', name)])
            };
            added.extend(read.map(column));
        }
        if let SetExpr::Select(select) = query.body.as_mut()
            && let GroupByExpr::Expressions(keys, _) = &mut select.group_by
        {
            keys.extend(added);
        }
    }

    /// The columns of a table with a primary key, and whether they belong to it.
    fn keyed_columns(&self, factor: &TableFactor) -> Option<Vec<(String, bool)>> {
        let TableFactor::Table { name, alias, args: None, .. } = factor else { return None };
        if let [part] = name.0.as_slice() {
            let name = names::fold(part.as_ident()?);
            if self.scopes.iter().any(|scope| scope.contains_key(&name)) {
                return None;
            }
        }
        let relation = relation_of(self.resolver, name, self.source)?;
        if relation.primary_key.is_empty() {
            return None;
        }
        let own = relation.columns.iter().map(|c| c.name.clone()).collect();
        let shown = renamed(Some(own), alias.as_ref())?;
        Some((0..).zip(shown).map(|(i, name)| (name, relation.primary_key.contains(&i))).collect())
    }

    /// A name that several relations nearby have does not mean a column of a query around.
    fn check_ambiguous(&self, ident: &Ident) -> ControlFlow<Box<Error>> {
        let Some((nearest, outer)) = self.froms.split_last() else { return ControlFlow::Continue(()) };
        if nearest.len() < 2 || outer.is_empty() {
            return ControlFlow::Continue(());
        }
        let name = names::fold(ident);
        let has = |n: &&Named| n.columns.as_ref().is_some_and(|c| c.contains(&name));
        if nearest.iter().filter(has).count() < 2 || self.merges.last() == Some(&true) {
            return ControlFlow::Continue(());
        }
        let error = Error::new(SqlState::AmbiguousColumn, format!("column reference \"{name}\" is ambiguous"));
        self.fail(error, ident.span.start)
    }

    /// HAVING does not see the names of output columns, and a column that it consists of is boolean.
    fn check_having(&self, select: &Select, from: &[Named]) -> ControlFlow<Box<Error>> {
        let Some(having) = &select.having else { return ControlFlow::Continue(()) };
        if let Expr::Identifier(ident) = having {
            let name = names::fold(ident);
            let types = select
                .from
                .iter()
                .flat_map(|f| std::iter::once(&f.relation).chain(f.joins.iter().map(|j| &j.relation)));
            let found = types.filter_map(|factor| self.column_type(factor, &name)).next();
            if let Some(t) = found.filter(|t| *t != DataType::Boolean) {
                let message =
                    format!("argument of HAVING must be type boolean, not type {}", plan::functions::type_name(&t));
                return self.fail(Error::new(SqlState::DatatypeMismatch, message), ident.span.start);
            }
        }
        // Where not all columns are known the name may be one of them.
        if from.iter().any(|n| n.columns.is_none()) || !self.froms.is_empty() {
            return ControlFlow::Continue(());
        }
        let aliases: Vec<String> = select
            .projection
            .iter()
            .filter_map(|item| match item {
                SelectItem::ExprWithAlias { alias, .. } => Some(names::fold(alias)),
                _ => None,
            })
            .collect();
        let is_column = |name: &String| from.iter().any(|n| n.columns.as_ref().is_some_and(|c| c.contains(name)));
        let mut find =
            FindName { names: aliases.into_iter().filter(|a| !is_column(a)).collect(), depth: 0, found: None };
        having.walk(&mut find);
        match find.found {
            Some(ident) => {
                let message = format!("column \"{}\" does not exist", names::fold(&ident));
                self.fail(Error::new(SqlState::UndefinedColumn, message), ident.span.start)
            }
            None => ControlFlow::Continue(()),
        }
    }

    fn column_type(&self, factor: &TableFactor, column: &str) -> Option<DataType> {
        let TableFactor::Table { name, alias, args: None, .. } = factor else { return None };
        if alias.as_ref().is_some_and(|a| !a.columns.is_empty()) {
            return None;
        }
        if let [part] = name.0.as_slice()
            && let Some(ident) = part.as_ident()
            && self.scopes.iter().any(|scope| scope.contains_key(&names::fold(ident)))
        {
            return None;
        }
        let relation = relation_of(self.resolver, name, self.source)?;
        relation.columns.iter().find(|c| c.name == column).map(|c| c.data_type.clone())
    }

    fn fail(&self, error: Error, at: Location) -> ControlFlow<Box<Error>> {
        ControlFlow::Break(Box::new(if at.line > 0 { error.with_position(self.source.position(at)) } else { error }))
    }

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
        let relation = relation_of(self.resolver, name, self.source)?;
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
                            let factor = factors.find(|f| shown_name(f).is_some_and(|(name, _)| name == wanted))?;
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

/// The name by which a relation in FROM is referred to, and where it stands.
fn shown_name(factor: &TableFactor) -> Option<(String, Location)> {
    let ident = match factor {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => &alias.name,
        TableFactor::Table { name, alias: None, .. } => name.0.last()?.as_ident()?,
        _ => return None,
    };
    Some((names::fold(ident), ident.span.start))
}
