//! The names of a query's output columns, as PostgreSQL gives them.

use std::collections::HashSet;

use catalog::types;
use datafusion::sql::sqlparser::ast::{AccessExpr, Expr, Query, SelectItem, SetExpr};

use super::build;

/// The projection that names the output: the first SELECT of a set operation.
fn naming_projection(body: &mut SetExpr) -> Option<&mut Vec<SelectItem>> {
    match body {
        SetExpr::Select(select) => Some(&mut select.projection),
        SetExpr::Query(query) => naming_projection(&mut query.body),
        SetExpr::SetOperation { left, .. } => naming_projection(left),
        _ => None,
    }
}

/// The names that PostgreSQL gives to a query's output columns, from its text before any rewriting; none when a `*` hides how
/// many there are.
pub fn names(query: &mut Query) -> Option<Vec<String>> {
    let projection = naming_projection(&mut query.body)?;
    projection
        .iter()
        .map(|item| match item {
            SelectItem::UnnamedExpr(expr) => Some(postgres_name(expr).unwrap_or_else(|| "?column?".to_string())),
            SelectItem::ExprWithAlias { alias, .. } => Some(build::fold(alias)),
            _ => None,
        })
        .collect()
}

/// Gives every output column its name, and one of its own to each whose name is there already, since DataFusion wants them
/// distinct.
pub fn apply(query: &mut Query, names: &[String]) {
    let Some(projection) = naming_projection(&mut query.body) else { return };
    let mut used = HashSet::new();
    // Where rows are unnested, DataFusion sees the names of input and output columns side by side.
    let unnests = projection.iter_mut().filter_map(super::item_expr).any(|e| contains_unnest(e));
    for (i, (item, name)) in projection.iter_mut().zip(names).enumerate() {
        let distinct = used.insert(name);
        let plain_column = matches!(&*item, SelectItem::UnnamedExpr(e) if build::column_name(e).as_ref() == Some(name));
        let given = matches!(&*item, SelectItem::ExprWithAlias { .. });
        if distinct && (plain_column || given) {
            continue;
        }
        // Not a name that anyone can have written, because the position is part of it.
        let alias = if distinct && !unnests { name.clone() } else { format!("{name}:{i}") };
        if let Some(expr) = super::item_expr(item) {
            let expr = std::mem::replace(expr, build::null());
            *item = SelectItem::ExprWithAlias { expr, alias: build::ident(&alias) };
        }
    }
}

/// PostgreSQL's `FigureColname`: the column, the function, the type of a cast of a constant.
fn postgres_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) => build::column_name(expr),
        Expr::Nested(inner) => postgres_name(inner),
        Expr::Function(f) => build::parts(&f.name).pop(),
        Expr::Cast { expr, data_type, .. } => {
            Some(postgres_name(expr).unwrap_or_else(|| type_name(&data_type.to_string())))
        }
        Expr::CompoundFieldAccess { root, access_chain } => {
            let field = access_chain.iter().rev().find_map(|access| match access {
                AccessExpr::Dot(Expr::Identifier(field)) => Some(build::fold(field)),
                _ => None,
            });
            field.or_else(|| postgres_name(root))
        }
        Expr::Case { else_result, .. } => {
            Some(else_result.as_deref().and_then(postgres_name).unwrap_or_else(|| "case".to_string()))
        }
        Expr::Exists { .. } => Some("exists".to_string()),
        Expr::Array(_) => Some("array".to_string()),
        Expr::Substring { .. } => Some("substring".to_string()),
        Expr::Trim { .. } => Some("btrim".to_string()),
        Expr::Extract { .. } => Some("extract".to_string()),
        Expr::Subquery(query) => match &*query.body {
            SetExpr::Select(select) => match select.projection.first()? {
                SelectItem::UnnamedExpr(expr) => postgres_name(expr),
                SelectItem::ExprWithAlias { alias, .. } => Some(build::fold(alias)),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

/// `int8` for `BIGINT`.
fn type_name(written: &str) -> String {
    let known = types::parse(written).and_then(|(oid, _)| types::by_oid(oid).or_else(|| types::element_of(oid)));
    known.map_or_else(|| written.rsplit('.').next().unwrap_or(written).to_lowercase(), |t| t.name.to_string())
}

fn contains_unnest(expr: &Expr) -> bool {
    build::as_call(expr).is_some_and(|(name, _)| name == "unnest")
}
