//! Functions that return sets or composites, and table functions: `unnest` is the one that DataFusion has.

use datafusion::sql::sqlparser::ast::{
    AccessExpr, BinaryOperator, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause,
    FunctionArguments, Ident, JoinConstraint, JoinOperator, ObjectName, OrderByKind, Query, Select, SelectItem,
    SetExpr, TableAlias, TableAliasColumnDef, TableFactor,
};

use super::{build, names, system_relation};
use crate::system::layout::SystemRelation;

fn take(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, build::null())
}

fn unnest(list: Expr) -> Expr {
    build::call("unnest", vec![list])
}

/// `generate_series(first, number of elements + first - 1)` as a list.
fn positions(list: Expr, first: i64) -> Expr {
    let length = build::cast(build::call("array_length", vec![list]), DataType::BigInt(None));
    let last = match first {
        1 => length,
        _ => Expr::BinaryOp {
            left: Box::new(length),
            op: BinaryOperator::Plus,
            right: Box::new(build::number(first - 1)),
        },
    };
    build::call("generate_series", vec![build::number(first), last])
}

/// Composite access and `ARRAY(SELECT …)`, wherever they stand.
pub fn expression(expr: &mut Expr) {
    let replaced = options_display(expr)
        .or_else(|| list_subquery(expr))
        .or_else(|| array_subquery(expr))
        .or_else(|| field_access(expr));
    if let Some(replaced) = replaced {
        *expr = replaced;
    }
}

/// `array_to_string(ARRAY(SELECT … FROM pg_options_to_table(x)), ', ')`, with which psql and pg_dump show options.
fn options_display(expr: &Expr) -> Option<Expr> {
    let (name, arguments) = build::as_call(expr)?;
    if name != "array_to_string" {
        return None;
    }
    // The inner ARRAY(…) has become a scalar subquery by now.
    let Expr::Subquery(query) = arguments.first()? else { return None };
    let SetExpr::Select(select) = &*query.body else { return None };
    let [from] = &select.from[..] else { return None };
    let args = match &from.relation {
        TableFactor::Table { name, args: Some(args), .. } if build::is_table_function(name, "pg_options_to_table") => {
            &args.args
        }
        TableFactor::Function { name, args, .. } if build::is_table_function(name, "pg_options_to_table") => args,
        _ => return None,
    };
    match &args[..] {
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(options))] => {
            Some(build::call("pg_options_text", vec![options.clone()]))
        }
        _ => None,
    }
}

/// `ARRAY(SELECT 'prefix' || x FROM unnest(list) x)`, which needs no subquery.
fn list_subquery(expr: &Expr) -> Option<Expr> {
    let Expr::Function(Function { name, args: FunctionArguments::Subquery(query), .. }) = expr else { return None };
    let SetExpr::Select(select) = &*query.body else { return None };
    let ([from], [SelectItem::UnnamedExpr(item)], None) = (&select.from[..], &select.projection[..], &select.selection)
    else {
        return None;
    };
    // The table function has become UNNEST by now, with its column named.
    let TableFactor::UNNEST { alias: Some(alias), array_exprs, .. } = &from.relation else { return None };
    let ([list], [column]) = (&array_exprs[..], &alias.columns[..]) else { return None };
    let is_column = |e: &Expr| build::column_name(e).is_some_and(|name| name == build::fold(&column.name));
    if build::system_name(name).as_deref() != Some("array") || !from.joins.is_empty() || query.order_by.is_some() {
        return None;
    }
    match item {
        Expr::BinaryOp { left, op: BinaryOperator::StringConcat, right } if is_column(right) => {
            Some(build::call("array_prefix", vec![(**left).clone(), list.clone()]))
        }
        column if is_column(column) => Some(list.clone()),
        _ => None,
    }
}

/// `ARRAY(SELECT x … ORDER BY y)` as `(SELECT array_agg(x ORDER BY y) …)`.
fn array_subquery(expr: &mut Expr) -> Option<Expr> {
    let Expr::Function(Function { name, args: FunctionArguments::Subquery(query), .. }) = expr else { return None };
    if build::system_name(name).as_deref() != Some("array") {
        return None;
    }
    let mut query = (**query).clone();
    aggregate_single_column(&mut query, "array_agg")?;
    Some(Expr::Subquery(Box::new(query)))
}

/// Turns a query of one column into `SELECT aggregate(column ORDER BY …)`. None when it is grouped, limited, distinct or
/// aggregated already.
pub fn aggregate_single_column(query: &mut Query, aggregate: &str) -> Option<()> {
    if query.with.is_some() || query.limit_clause.is_some() || query.fetch.is_some() {
        return None;
    }
    let SetExpr::Select(select) = &mut *query.body else { return None };
    let [item] = &mut select.projection[..] else { return None };
    let column = take(super::item_expr(item)?);
    let distinct = select.distinct.take();
    let mut order = match query.order_by.take().map(|o| o.kind) {
        Some(OrderByKind::Expressions(order)) => order,
        _ => Vec::new(),
    };
    for by in &mut order {
        // ORDER BY 1 is the column itself; inside an aggregate it would be a constant.
        if matches!(&by.expr, Expr::Value(v) if v.to_string() == "1") {
            by.expr = column.clone();
        }
    }
    let mut aggregated = build::call(aggregate, vec![column]);
    if let Expr::Function(Function { args: FunctionArguments::List(list), .. }) = &mut aggregated {
        if distinct.is_some() {
            list.duplicate_treatment = Some(datafusion::sql::sqlparser::ast::DuplicateTreatment::Distinct);
        }
        if !order.is_empty() {
            list.clauses.push(FunctionArgumentClause::OrderBy(order));
        }
    }
    *item = SelectItem::UnnamedExpr(aggregated);
    Some(())
}

/// `(_pg_expandarray(list)).n` and `(composite).field`.
fn field_access(expr: &mut Expr) -> Option<Expr> {
    let Expr::CompoundFieldAccess { root, access_chain } = expr else { return None };
    let [AccessExpr::Dot(Expr::Identifier(field))] = &access_chain[..] else { return None };
    let field = build::fold(field);
    let inner = match &**root {
        Expr::Nested(inner) => &**inner,
        other => other,
    };
    if let Some((name, arguments)) = build::as_call(inner)
        && (name == "_pg_expandarray" || name == "pg_expandarray")
    {
        let list = (*arguments.first()?).clone();
        return match field.as_str() {
            "n" => Some(unnest(positions(list, 1))),
            "x" => Some(unnest(list)),
            _ => None,
        };
    }
    Some(build::call("get_field", vec![inner.clone(), build::string(&field)]))
}

/// Set-returning functions in a SELECT list.
pub fn select(select: &mut Select) {
    for item in &mut select.projection {
        let named = match item {
            SelectItem::UnnamedExpr(expr) => build::as_call(expr).map(|(name, _)| name),
            _ => None,
        };
        let Some(expr) = super::item_expr(item) else { continue };
        let Some(replaced) = set_call(expr) else { continue };
        *expr = replaced;
        if let (SelectItem::UnnamedExpr(expr), Some(name)) = (&mut *item, named) {
            // unnest(generate_series(…)) would get that as its name.
            *item = SelectItem::ExprWithAlias { expr: take(expr), alias: build::ident(&name) };
        }
    }
}

fn set_call(expr: &Expr) -> Option<Expr> {
    let (name, arguments) = build::as_call(expr)?;
    let owned = || arguments.iter().map(|e| (*e).clone()).collect::<Vec<_>>();
    match name.as_str() {
        "generate_series" | "pg_partition_ancestors" => Some(unnest(build::call(&name, owned()))),
        "generate_subscripts" => {
            let list = *arguments.first()?;
            Some(unnest(positions(list.clone(), if names::is_vector(list) { 0 } else { 1 })))
        }
        "_pg_expandarray" => Some(unnest(build::call("pg_expandarray", owned()))),
        _ => None,
    }
}

/// Table functions in FROM: lists are unnested, under the name that PostgreSQL gives to the one column.
pub fn table_factor(factor: &mut TableFactor) {
    if let TableFactor::UNNEST { alias: Some(alias), array_exprs, .. } = factor
        && alias.columns.is_empty()
        && array_exprs.len() == 1
    {
        alias.columns.push(TableAliasColumnDef { name: alias.name.clone(), data_type: None });
    }
    let (name, args, alias, with_ordinality) = match factor {
        TableFactor::Table { name, args: Some(args), alias, with_ordinality, .. } => {
            (name, &args.args, alias, *with_ordinality)
        }
        TableFactor::Function { name, args, alias, with_ordinality, .. } => (name, &*args, alias, *with_ordinality),
        _ => return,
    };
    let Some(function) = build::system_name(name) else { return };
    let arguments: Vec<Expr> = args
        .iter()
        .filter_map(|a| match a {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) => Some(e.clone()),
            _ => None,
        })
        .collect();
    let mut alias = alias.take().unwrap_or_else(|| TableAlias {
        explicit: true,
        name: Ident::new(&function),
        columns: Vec::new(),
        at: None,
    });
    let list = match (function.as_str(), &arguments[..]) {
        ("pg_get_keywords", []) => {
            let name = ObjectName::from(vec![Ident::new("ms_catalog"), Ident::new("keywords")]);
            *factor = build::table(name, alias);
            return;
        }
        ("unnest", [list]) => list.clone(),
        ("generate_series", _) => build::call("generate_series", arguments),
        ("generate_subscripts", [list, _]) => positions(list.clone(), if names::is_vector(list) { 0 } else { 1 }),
        ("pg_partition_ancestors", _) => build::call(&function, arguments),
        // A function of one value is a relation of one row.
        ("string_to_array" | "current_schemas", _) => {
            let column = alias.columns.first().map_or_else(|| alias.name.clone(), |c| c.name.clone());
            let expr = build::call(&function, arguments);
            *factor = build::values(SelectItem::ExprWithAlias { expr, alias: column }, alias.name);
            return;
        }
        _ => {
            restore(factor, alias, &function);
            return;
        }
    };
    if alias.columns.is_empty() {
        alias.columns.push(TableAliasColumnDef { name: alias.name.clone(), data_type: None });
    }
    *factor = TableFactor::UNNEST {
        alias: Some(alias),
        array_exprs: vec![list],
        with_offset: false,
        with_offset_alias: None,
        with_ordinality,
    };
}

/// `FROM r CROSS JOIN unnest(r.list) [WITH ORDINALITY] AS u(x, n)`: DataFusion cannot unnest a column of another relation of
/// the same FROM, but it can join `(SELECT r.key, unnest(r.list) AS x, … FROM r) AS u` by the key.
pub fn lateral_lists(select: &mut Select) {
    let mut extra_conditions = Vec::new();
    let mut known: Vec<Known> = Vec::new();
    for table in &mut select.from {
        if let Some(condition) = joined_list(&mut table.relation, &known) {
            extra_conditions.push(condition);
        }
        known.extend(Known::of(&table.relation));
        for join in &mut table.joins {
            if let Some(condition) = joined_list(&mut join.relation, &known) {
                let constraint = JoinConstraint::On(condition);
                join.join_operator = match &join.join_operator {
                    JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => JoinOperator::LeftOuter(constraint),
                    _ => JoinOperator::Inner(constraint),
                };
            }
            known.extend(Known::of(&join.relation));
        }
    }
    for condition in extra_conditions {
        select.selection = Some(match select.selection.take() {
            None => condition,
            Some(first) => Expr::BinaryOp {
                left: Box::new(Expr::Nested(Box::new(first))),
                op: BinaryOperator::And,
                right: Box::new(condition),
            },
        });
    }
}

/// A system relation of a FROM clause whose rows have a key.
struct Known {
    alias: Ident,
    name: ObjectName,
    key: &'static str,
    relation: &'static SystemRelation,
}

impl Known {
    fn of(factor: &TableFactor) -> Option<Known> {
        let TableFactor::Table { name, alias, args: None, .. } = factor else { return None };
        let relation = system_relation(name)?;
        // The first column is the key wherever it is the object's own OID.
        let key = relation.columns.first().map(|c| c.name).filter(|c| *c == "oid" || *c == "indexrelid")?;
        let alias = alias.as_ref().map_or_else(|| Ident::new(relation.name), |a| a.name.clone());
        Some(Known { alias, name: name.clone(), key, relation })
    }
}

/// Replaces an UNNEST over a column of a relation before it; gives the join's condition.
fn joined_list(factor: &mut TableFactor, known: &[Known]) -> Option<Expr> {
    let TableFactor::UNNEST { alias: Some(alias), array_exprs, with_ordinality, .. } = &*factor else { return None };
    let [list] = &array_exprs[..] else { return None };
    let column = build::column_name(list)?;
    let qualifier = match list {
        Expr::CompoundIdentifier(parts) => parts.iter().rev().nth(1).map(build::fold),
        _ => None,
    };
    let source = known.iter().find(|k| match &qualifier {
        Some(q) => build::fold(&k.alias) == *q,
        None => k.relation.columns.iter().any(|c| c.name == column),
    })?;
    const KEY: &str = "key of the list";
    let mut projection = vec![SelectItem::ExprWithAlias {
        expr: Expr::CompoundIdentifier(vec![source.alias.clone(), Ident::new(source.key)]),
        alias: build::ident(KEY),
    }];
    let mut columns = alias.columns.iter().map(|c| c.name.clone());
    projection.push(SelectItem::ExprWithAlias { expr: unnest(list.clone()), alias: columns.next()? });
    if *with_ordinality {
        let alias = columns.next().unwrap_or_else(|| Ident::new("ordinality"));
        projection.push(SelectItem::ExprWithAlias { expr: unnest(positions(list.clone(), 1)), alias });
    }
    let inner = TableAlias { explicit: true, name: source.alias.clone(), columns: Vec::new(), at: None };
    let outer = TableAlias { explicit: true, name: alias.name.clone(), columns: Vec::new(), at: None };
    let condition = Expr::BinaryOp {
        left: Box::new(Expr::CompoundIdentifier(vec![source.alias.clone(), Ident::new(source.key)])),
        op: BinaryOperator::Eq,
        right: Box::new(Expr::CompoundIdentifier(vec![alias.name.clone(), build::ident(KEY)])),
    };
    *factor = build::derived(projection, build::table(source.name.clone(), inner), outer);
    Some(condition)
}

/// Puts back the alias of a table function that stays, without a schema in front of its name.
fn restore(factor: &mut TableFactor, given: TableAlias, function: &str) {
    if let TableFactor::Table { name, alias, .. } | TableFactor::Function { name, alias, .. } = factor {
        *name = build::function_name(function);
        *alias = Some(given);
    }
}
