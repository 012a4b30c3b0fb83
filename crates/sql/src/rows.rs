//! Rows compared with rows: `(a, b) = (c, d)`, `(a, b) IN (…)`. DataFusion compares structs, whose NULLs are values; in SQL
//! a row comparison is unknown if it depends on a NULL.

use datafusion::sql::sqlparser::ast::{self, BinaryOperator, Expr, Ident, ObjectName, Query, SelectItem, SetExpr};

use crate::rewrite::{null, number, query_of, select_from, table_alias};

/// Writes the conjuncts of a WHERE that are `row IN (subquery)`, where only true counts, as EXISTS.
pub(crate) fn condition(expr: &mut Expr) {
    let mut pending = vec![expr];
    while let Some(expr) = pending.pop() {
        match expr {
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => pending.extend([left.as_mut(), right.as_mut()]),
            Expr::Nested(inner) => pending.push(inner),
            Expr::InSubquery { expr: row, subquery, negated } => {
                let Some(row) = row_of(row) else { continue };
                let (equal, candidates) = candidates(row, subquery);
                let found = if *negated { Expr::IsNotFalse(Box::new(Expr::Nested(Box::new(equal)))) } else { equal };
                *expr = exists(candidates, found, *negated);
            }
            _ => {}
        }
    }
}

/// Writes one comparison of rows as comparisons of their columns.
pub(crate) fn comparison(expr: &mut Expr) {
    let written = match expr {
        Expr::BinaryOp { left, op, right } => match (row_of(left), row_of(right)) {
            (Some(left), Some(right)) if left.len() == right.len() => compare(left, op, right),
            _ => None,
        },
        Expr::InList { expr: row, list, negated } => row_of(row).and_then(|row| {
            let mut any: Option<Expr> = None;
            for candidate in list.iter() {
                let candidate = row_of(candidate).filter(|c| c.len() == row.len())?;
                let equal = compare(row, &BinaryOperator::Eq, candidate)?;
                any = Some(match any {
                    Some(before) => binary(before, BinaryOperator::Or, equal),
                    None => equal,
                });
            }
            any.map(|any| if *negated { not(any) } else { nested(any) })
        }),
        Expr::InSubquery { expr: row, subquery, negated } => row_of(row).map(|row| {
            let (equal, candidates) = candidates(row, subquery);
            let unknown = Expr::IsNull(Box::new(nested(equal.clone())));
            let when = |condition: Expr, result: Expr| ast::CaseWhen { condition, result };
            let value = |v: bool| Expr::Value(ast::Value::Boolean(v).into());
            let membership = Expr::Case {
                case_token: ast::helpers::attached_token::AttachedToken::empty(),
                end_token: ast::helpers::attached_token::AttachedToken::empty(),
                operand: None,
                conditions: vec![
                    when(exists(candidates.clone(), equal, false), value(true)),
                    when(exists(candidates, unknown, false), null()),
                ],
                else_result: Some(Box::new(value(false))),
            };
            if *negated { not(membership) } else { membership }
        }),
        _ => None,
    };
    if let Some(written) = written {
        *expr = written;
    }
}

/// The columns of a row that is written as one.
fn row_of(expr: &Expr) -> Option<&[Expr]> {
    match expr {
        Expr::Tuple(columns) if columns.len() > 1 => Some(columns),
        Expr::Nested(inner) => row_of(inner),
        _ => None,
    }
}

/// `row = candidate` over the rows of a subquery, and the subquery as a relation with names of its own.
fn candidates(row: &[Expr], subquery: &Query) -> (Expr, Query) {
    let names: Vec<Ident> = (0..row.len()).map(|i| Ident::with_quote('"', format!("__in{i}"))).collect();
    let candidate: Vec<Expr> = names.iter().cloned().map(Expr::Identifier).collect();
    let equal = compare(row, &BinaryOperator::Eq, &candidate).unwrap_or_else(null);
    let mut alias = table_alias("__in");
    alias.columns = names.into_iter().map(|name| ast::TableAliasColumnDef { name, data_type: None }).collect();
    let relation = ast::TableFactor::Derived {
        lateral: false,
        subquery: Box::new(subquery.clone()),
        alias: Some(alias),
        sample: None,
    };
    let one = vec![SelectItem::UnnamedExpr(number("1"))];
    let mut select = select_from(ObjectName(Vec::new()), None, one, None);
    select.from = vec![ast::TableWithJoins { relation, joins: Vec::new() }];
    (equal, query_of(SetExpr::Select(Box::new(select))))
}

fn exists(mut candidates: Query, condition: Expr, negated: bool) -> Expr {
    if let SetExpr::Select(select) = candidates.body.as_mut() {
        select.selection = Some(condition);
    }
    Expr::Exists { subquery: Box::new(candidates), negated }
}

/// `left op right`, column by column from the left; `None` for an operator that rows do not have.
fn compare(left: &[Expr], op: &BinaryOperator, right: &[Expr]) -> Option<Expr> {
    let pairs = || left.iter().zip(right);
    let each = |op: BinaryOperator, with: BinaryOperator| {
        let compared = pairs().map(|(l, r)| binary(nested(l.clone()), op.clone(), nested(r.clone())));
        compared.reduce(|a, b| binary(a, with.clone(), b)).map(nested)
    };
    let strict = match op {
        BinaryOperator::Eq => return each(BinaryOperator::Eq, BinaryOperator::And),
        BinaryOperator::NotEq => return each(BinaryOperator::NotEq, BinaryOperator::Or),
        BinaryOperator::Lt | BinaryOperator::LtEq => BinaryOperator::Lt,
        BinaryOperator::Gt | BinaryOperator::GtEq => BinaryOperator::Gt,
        _ => return None,
    };
    // (a, b) < (c, d) is a < c OR (a = c AND b < d); the last columns are compared by the operator itself.
    let mut ordered: Option<Expr> = None;
    for (l, r) in pairs().rev() {
        let (l, r) = (nested(l.clone()), nested(r.clone()));
        ordered = Some(match ordered {
            None => binary(l, op.clone(), r),
            Some(later) => {
                let equal = binary(l.clone(), BinaryOperator::Eq, r.clone());
                let later = nested(binary(equal, BinaryOperator::And, nested(later)));
                binary(binary(l, strict.clone(), r), BinaryOperator::Or, later)
            }
        });
    }
    ordered.map(nested)
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

fn nested(expr: Expr) -> Expr {
    match expr {
        plain @ (Expr::Nested(_) | Expr::Value(_) | Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => plain,
        other => Expr::Nested(Box::new(other)),
    }
}

fn not(expr: Expr) -> Expr {
    Expr::UnaryOp { op: ast::UnaryOperator::Not, expr: Box::new(nested(expr)) }
}
