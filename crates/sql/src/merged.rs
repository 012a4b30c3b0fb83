//! What cannot be said to DataFusion without knowing columns: USING and NATURAL, INTERSECT ALL and EXCEPT ALL.
//!
//! USING joins by columns of the same name and shows them once: the left one, the right one after a RIGHT JOIN, and
//! whichever is there after a FULL JOIN. Such a join is written with ON, the merged names and `*` of its SELECT are
//! replaced by what they mean; qualified names go on naming the columns of either side.
//!
//! The ALL forms count copies: each row gets its number among equal rows, and the numbered rows are intersected or
//! subtracted as sets.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, Cte, Expr, Ident, JoinConstraint, JoinOperator, ObjectName, Query, Select, SelectItem,
    SetExpr, SetOperator, SetQuantifier, TableFactor, TableWithJoins, VisitorMut,
};
use flow::{Error, Result, SqlState};

use crate::names;
use crate::planner::Planner;
use crate::rewrite::{call, query_of, row_number, select_from, shown, table_alias};
use crate::statement::Name;
use crate::walk::Walk;

/// Rewrites `query`, which was parsed from `source`, in place. `depth` counts the views around.
pub(crate) fn rewrite(query: &mut Query, planner: &Planner<'_>, source: &str, depth: usize) -> Result<()> {
    if !concerns(source) {
        return Ok(());
    }
    let mut merger = Merger { planner, source, depth, ctes: Vec::new(), levels: Vec::new(), aliases: 0 };
    query.try_walk_mut(&mut merger)
}

/// Whether the text could hold one of these forms.
fn concerns(source: &str) -> bool {
    let text = source.as_bytes();
    let holds =
        |at: usize, word: &str| text.get(at..at + word.len()).is_some_and(|w| w.eq_ignore_ascii_case(word.as_bytes()));
    text.iter().enumerate().any(|(at, byte)| match byte | 0x20 {
        b'u' => holds(at, "using"),
        b'n' => holds(at, "natural"),
        b'i' => holds(at, "intersect"),
        b'e' => holds(at, "except"),
        _ => false,
    })
}

type Step = ControlFlow<Box<Error>>;

struct Merger<'a> {
    planner: &'a Planner<'a>,
    source: &'a str,
    depth: usize,
    /// Those in scope, outermost first.
    ctes: Vec<Cte>,
    /// How many were in scope around each open query.
    levels: Vec<usize>,
    aliases: usize,
}

/// A column of a FROM clause, in the order of `*`.
#[derive(Clone)]
struct Visible {
    name: String,
    /// What the unqualified name means.
    expr: Expr,
    merged: bool,
}

impl VisitorMut for Merger<'_> {
    type Break = Box<Error>;

    fn pre_visit_query(&mut self, query: &mut Query) -> Step {
        self.levels.push(self.ctes.len());
        if let Some(with) = &query.with {
            self.ctes.extend(with.cte_tables.iter().cloned());
        }
        let output_order = query.order_by.take();
        let (order, step) = match query.body.as_mut() {
            SetExpr::Select(select) => {
                let mut order = output_order;
                let step = self.select(select, order.as_mut());
                (order, step)
            }
            body => (output_order, self.body(body)),
        };
        query.order_by = order;
        match step {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(Box::new(error)),
        }
    }

    fn post_visit_query(&mut self, _: &mut Query) -> Step {
        if let Some(before) = self.levels.pop() {
            self.ctes.truncate(before);
        }
        ControlFlow::Continue(())
    }
}

impl Merger<'_> {
    fn body(&mut self, body: &mut SetExpr) -> Result<()> {
        match body {
            SetExpr::Select(select) => self.select(select, None),
            SetExpr::SetOperation { op, set_quantifier, left, right } => {
                self.body(left)?;
                self.body(right)?;
                let counts_copies = matches!(set_quantifier, SetQuantifier::All | SetQuantifier::AllByName)
                    && matches!(op, SetOperator::Intersect | SetOperator::Except);
                if counts_copies {
                    let (op, left, right) = (*op, left.as_ref().clone(), right.as_ref().clone());
                    *body = self.with_copies(op, left, right)?;
                }
                Ok(())
            }
            // Other queries are visited on their own.
            _ => Ok(()),
        }
    }

    /// `left op ALL right` without ALL.
    fn with_copies(&mut self, op: SetOperator, left: SetExpr, right: SetExpr) -> Result<SetExpr> {
        let names = self.columns_of_body(&left)?;
        let other = self.columns_of_body(&right)?;
        if names.len() != other.len() {
            let message = format!("each {op} query must have the same number of columns");
            return Err(Error::new(SqlState::SyntaxError, message));
        }
        let n = names.len();
        let inner: Vec<String> = (0..n).map(|i| format!("c{i}")).collect();
        let mut side = |body: SetExpr| {
            let alias = self.fresh_alias();
            let column = |name: &String| Expr::Identifier(Ident::with_quote('"', name));
            let numbered = row_number(inner.iter().map(column).collect());
            let mut projection: Vec<SelectItem> = inner.iter().map(|c| SelectItem::UnnamedExpr(column(c))).collect();
            projection.push(SelectItem::ExprWithAlias { expr: numbered, alias: Ident::with_quote('"', "copy") });
            select_over(query_of(body), &alias, &inner, projection)
        };
        let both = SetExpr::SetOperation {
            op,
            set_quantifier: SetQuantifier::None,
            left: Box::new(side(left)),
            right: Box::new(side(right)),
        };
        let projection = inner
            .iter()
            .zip(names)
            .map(|(column, name)| SelectItem::ExprWithAlias {
                expr: Expr::Identifier(Ident::with_quote('"', column)),
                alias: Ident::with_quote('"', name),
            })
            .collect();
        let alias = self.fresh_alias();
        let mut columns = inner;
        columns.push("copy".to_string());
        Ok(select_over(query_of(both), &alias, &columns, projection))
    }

    fn fresh_alias(&mut self) -> String {
        self.aliases += 1;
        format!("__m{}", self.aliases)
    }

    fn select(&mut self, select: &mut Select, order: Option<&mut ast::OrderBy>) -> Result<()> {
        if !select.from.iter().any(merges) {
            return Ok(());
        }
        let mut columns = Vec::new();
        for item in &mut select.from {
            columns.extend(self.joined(item)?);
        }
        let mut projection = Vec::with_capacity(select.projection.len());
        for item in std::mem::take(&mut select.projection) {
            match item {
                SelectItem::Wildcard(_) => projection.extend(columns.iter().map(shown_column)),
                SelectItem::UnnamedExpr(Expr::Identifier(name)) => match meaning(&columns, &names::fold(&name)) {
                    Some(column) => projection.push(shown_column(column)),
                    None => projection.push(SelectItem::UnnamedExpr(Expr::Identifier(name))),
                },
                other => projection.push(other),
            }
        }
        // ORDER BY sees the names of the output first.
        let output: Vec<String> = projection.iter().filter_map(output_name).collect();
        select.projection = projection;
        let from = std::mem::take(&mut select.from);
        let replaced = self.replace(&columns, &[], select);
        select.from = from;
        replaced?;
        match order {
            Some(order) => self.replace(&columns, &output, order),
            None => Ok(()),
        }
    }

    /// Replaces the merged names, but for those in `hidden`, in `tree`.
    fn replace(&mut self, columns: &[Visible], hidden: &[String], tree: &mut dyn Walk) -> Result<()> {
        let mut replace = Replace { merger: self, columns, hidden: vec![hidden.to_vec()] };
        tree.walk_mut(&mut replace);
        Ok(())
    }

    /// Writes the joins of one FROM item with ON; returns its columns.
    fn joined(&mut self, item: &mut TableWithJoins) -> Result<Vec<Visible>> {
        let mut columns = self.factor(&mut item.relation)?;
        for join in &mut item.joins {
            let right = self.factor(&mut join.relation)?;
            let Some(constraint) = constraint_of(&mut join.join_operator) else {
                columns.extend(right);
                continue;
            };
            let shared: Vec<String> = match constraint {
                JoinConstraint::Using(names) => names.iter().map(using_name).collect::<Result<_>>()?,
                JoinConstraint::Natural => {
                    let shared = columns.iter().map(|c| c.name.clone());
                    shared.filter(|name| right.iter().any(|c| c.name == *name)).collect()
                }
                JoinConstraint::On(condition) => {
                    let (left, all) = (columns.clone(), right);
                    let visible: Vec<Visible> = left.into_iter().chain(all).collect();
                    if visible.iter().any(|c| c.merged) {
                        self.replace(&visible, &[], condition)?;
                    }
                    columns = visible;
                    continue;
                }
                JoinConstraint::None => {
                    columns.extend(right);
                    continue;
                }
            };
            let natural = matches!(constraint, JoinConstraint::Natural);
            let (mut condition, mut merged) = (None, Vec::with_capacity(shared.len()));
            for name in &shared {
                let l = common(&columns, name, "left", natural)?.expr.clone();
                let r = common(&right, name, "right", natural)?.expr.clone();
                let equal = binary(l.clone(), BinaryOperator::Eq, r.clone());
                condition = Some(match condition {
                    Some(before) => binary(before, BinaryOperator::And, equal),
                    None => equal,
                });
                merged.push((name.clone(), l, r));
            }
            let condition = condition.unwrap_or_else(|| Expr::Value(ast::Value::Boolean(true).into()));
            *constraint = JoinConstraint::On(condition);
            let kind = &join.join_operator;
            let shown = merged.into_iter().map(|(name, l, r)| {
                let expr = match kind {
                    JoinOperator::Right(_) | JoinOperator::RightOuter(_) => r,
                    JoinOperator::FullOuter(_) => call("coalesce", vec![l, r]),
                    _ => l,
                };
                Visible { name, expr, merged: true }
            });
            let rest = |c: &Visible| !shared.contains(&c.name);
            columns = shown.chain(columns.into_iter().filter(rest)).chain(right.into_iter().filter(rest)).collect();
        }
        Ok(columns)
    }

    /// The columns of a relation in FROM, named by its alias.
    fn factor(&mut self, factor: &mut TableFactor) -> Result<Vec<Visible>> {
        if let TableFactor::NestedJoin { table_with_joins, alias: None } = factor {
            return self.joined(table_with_joins);
        }
        // A join with an alias is a relation like a subquery: only the alias names its columns.
        if let TableFactor::NestedJoin { table_with_joins, alias: Some(alias) } = factor {
            let mut select = select_from(ObjectName(Vec::new()), None, vec![wildcard()], None);
            select.from = vec![table_with_joins.as_ref().clone()];
            let subquery = Box::new(query_of(SetExpr::Select(Box::new(select))));
            *factor = TableFactor::Derived { lateral: false, subquery, alias: Some(alias.clone()), sample: None };
        }
        let fresh = self.fresh_alias();
        let qualifier = match factor {
            TableFactor::Table { name, alias: None, .. } => {
                name.0.last().and_then(|p| p.as_ident()).cloned().unwrap_or_else(|| Ident::new(""))
            }
            TableFactor::Table { alias: Some(alias), .. } => alias.name.clone(),
            TableFactor::Derived { alias, .. }
            | TableFactor::Function { alias, .. }
            | TableFactor::TableFunction { alias, .. }
            | TableFactor::UNNEST { alias, .. } => alias.get_or_insert_with(|| table_alias(&fresh)).name.clone(),
            other => {
                let message = format!("USING and NATURAL beside {other} are not supported");
                return Err(Error::unsupported(message).with_hint("Write the join with ON."));
            }
        };
        let names = self.columns_of(factor)?;
        let column = |name: String| Visible {
            expr: Expr::CompoundIdentifier(vec![qualifier.clone(), Ident::with_quote('"', &name)]),
            name,
            merged: false,
        };
        Ok(names.into_iter().map(column).collect())
    }

    /// The names of a relation's columns.
    fn columns_of(&self, factor: &TableFactor) -> Result<Vec<String>> {
        if let TableFactor::Table { name, alias, args: None, .. } = factor
            && alias.as_ref().is_none_or(|a| a.columns.is_empty())
        {
            let mut parts = names::parts(name)?.into_iter().rev();
            let (table, schema, database) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
            let is_cte = schema.is_none() && self.ctes.iter().any(|c| names::fold(&c.alias.name) == table);
            let by_id = crate::definition::marker_id(&table);
            let relation = match by_id {
                Some((id, _)) => self.planner.resolver.relation_by_id(id),
                None => self.planner.resolver.relation(&Name { database, schema, name: table, position: 0 }),
            };
            if !is_cte && let Some(relation) = relation {
                // A stored definition sees the columns that there were when it was written.
                let width = by_id.and_then(|(_, width)| width).unwrap_or(relation.columns.len());
                return Ok(relation.columns.into_iter().take(width).map(|c| c.name).collect());
            }
        }
        let mut select = select_from(ObjectName(Vec::new()), None, vec![wildcard()], None);
        select.from = vec![TableWithJoins { relation: factor.clone(), joins: Vec::new() }];
        self.columns_of_body(&SetExpr::Select(Box::new(select)))
    }

    fn columns_of_body(&self, body: &SetExpr) -> Result<Vec<String>> {
        let mut query = query_of(body.clone());
        if !self.ctes.is_empty() {
            query.with = Some(ast::With {
                with_token: ast::helpers::attached_token::AttachedToken::empty(),
                recursive: false,
                cte_tables: self.ctes.clone(),
            });
        }
        let raw = self.planner.raw_query(query, self.source, &[], self.depth)?;
        Ok(raw.plan.schema().fields().iter().map(|f| shown(f.name()).to_string()).collect())
    }
}

/// Puts the meaning of merged names in their place, also in subqueries that have no column of that name.
struct Replace<'m, 'a> {
    merger: &'m mut Merger<'a>,
    columns: &'m [Visible],
    /// Names that mean something else, for each open query.
    hidden: Vec<Vec<String>>,
}

impl VisitorMut for Replace<'_, '_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        let mut names = Vec::new();
        let mut pending = vec![query.body.as_ref()];
        while let Some(body) = pending.pop() {
            match body {
                SetExpr::SetOperation { left, right, .. } => pending.extend([left.as_ref(), right.as_ref()]),
                SetExpr::Select(select) => {
                    let before = self.merger.ctes.len();
                    self.merger.ctes.extend(query.with.iter().flat_map(|w| w.cte_tables.iter().cloned()));
                    for item in &select.from {
                        for factor in std::iter::once(&item.relation).chain(item.joins.iter().map(|j| &j.relation)) {
                            // A relation that cannot be planned on its own is correlated, or fails when it is planned.
                            names.extend(self.merger.columns_of(factor).unwrap_or_default());
                        }
                    }
                    self.merger.ctes.truncate(before);
                }
                _ => {}
            }
        }
        self.hidden.push(names);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.hidden.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Identifier(ident) = expr {
            let name = names::fold(ident);
            if !self.hidden.iter().any(|h| h.contains(&name))
                && let Some(column) = meaning(self.columns, &name)
            {
                *expr = column.expr.clone();
            }
        }
        ControlFlow::Continue(())
    }
}

/// Whether an item of FROM has a join of this module, outside subqueries.
pub(crate) fn merges(item: &TableWithJoins) -> bool {
    let nested = |factor: &TableFactor| match factor {
        TableFactor::NestedJoin { table_with_joins, .. } => merges(table_with_joins),
        _ => false,
    };
    nested(&item.relation)
        || item.joins.iter().any(|join| {
            let mut operator = join.join_operator.clone();
            nested(&join.relation)
                || matches!(constraint_of(&mut operator), Some(JoinConstraint::Using(_) | JoinConstraint::Natural))
        })
}

fn constraint_of(operator: &mut JoinOperator) -> Option<&mut JoinConstraint> {
    match operator {
        JoinOperator::Join(c)
        | JoinOperator::Inner(c)
        | JoinOperator::Left(c)
        | JoinOperator::LeftOuter(c)
        | JoinOperator::Right(c)
        | JoinOperator::RightOuter(c)
        | JoinOperator::FullOuter(c)
        | JoinOperator::CrossJoin(c) => Some(c),
        _ => None,
    }
}

fn using_name(name: &ObjectName) -> Result<String> {
    match names::parts(name)?.as_slice() {
        [name] => Ok(name.clone()),
        _ => Err(Error::new(SqlState::SyntaxError, "syntax error in USING: column names have no qualifier")),
    }
}

/// The one column `name` of a side of a USING.
fn common<'c>(columns: &'c [Visible], name: &str, side: &str, natural: bool) -> Result<&'c Visible> {
    let mut found = columns.iter().filter(|c| c.name == name);
    match (found.next(), found.next()) {
        (Some(column), None) => Ok(column),
        (Some(_), Some(_)) => {
            let message = format!("common column name \"{name}\" appears more than once in {side} table");
            Err(Error::new(SqlState::AmbiguousColumn, message))
        }
        (None, _) if natural => Err(Error::internal("a natural join on a column that is not there")),
        (None, _) => {
            let message = format!("column \"{name}\" specified in USING clause does not exist in {side} table");
            Err(Error::new(SqlState::UndefinedColumn, message))
        }
    }
}

/// The merged column that the unqualified `name` means; `None` if it is another column, or more than one.
fn meaning<'c>(columns: &'c [Visible], name: &str) -> Option<&'c Visible> {
    let mut found = columns.iter().filter(|c| c.name == name);
    match (found.next(), found.next()) {
        (Some(column), None) if column.merged => Some(column),
        _ => None,
    }
}

fn shown_column(column: &Visible) -> SelectItem {
    match &column.expr {
        Expr::CompoundIdentifier(_) => SelectItem::UnnamedExpr(column.expr.clone()),
        expr => SelectItem::ExprWithAlias { expr: expr.clone(), alias: Ident::with_quote('"', &column.name) },
    }
}

fn output_name(item: &SelectItem) -> Option<String> {
    match item {
        SelectItem::ExprWithAlias { alias, .. } => Some(names::fold(alias)),
        SelectItem::UnnamedExpr(Expr::Identifier(name)) => Some(names::fold(name)),
        SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => parts.last().map(names::fold),
        _ => None,
    }
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

fn wildcard() -> SelectItem {
    SelectItem::Wildcard(Default::default())
}

/// `SELECT projection FROM (subquery) AS alias (columns)`.
fn select_over(subquery: Query, alias: &str, columns: &[String], projection: Vec<SelectItem>) -> SetExpr {
    let mut select = select_from(ObjectName(Vec::new()), None, projection, None);
    let mut alias = table_alias(alias);
    alias.columns =
        columns.iter().map(|c| ast::TableAliasColumnDef { name: Ident::with_quote('"', c), data_type: None }).collect();
    let relation =
        TableFactor::Derived { lateral: false, subquery: Box::new(subquery), alias: Some(alias), sample: None };
    select.from = vec![TableWithJoins { relation, joins: Vec::new() }];
    SetExpr::Select(Box::new(select))
}
