//! Expressions with a grammar of their own (`EXTRACT(… FROM …)`, `SUBSTRING(… FROM …)`, `LIKE … ESCAPE`, rows) as calls of
//! the functions that PostgreSQL runs for them.

use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, CeilFloorKind, DateTimeField, Expr, FunctionArg, FunctionArgExpr, FunctionArgOperator,
    FunctionArguments, TrimWhereField, UnaryOperator, Value, ValueWithSpan,
};
use flow::{Error, Result, SqlState};

use crate::names;
use crate::rewrite::{binary, call, negation, null, number, text};

fn take(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, null())
}

/// The call that `expr` stands for, if it is one of these forms; its parts are taken out of it.
pub(crate) fn as_call(expr: &mut Expr) -> Option<Expr> {
    Some(match expr {
        Expr::Extract { field, expr, .. } => {
            let field = field.to_string().trim_matches(['\'', '"']).to_lowercase();
            call("extract", vec![text(&field), take(expr)])
        }
        Expr::Substring { expr, substring_from, substring_for, .. } => {
            let mut args = vec![take(expr)];
            args.push(substring_from.as_deref_mut().map_or_else(|| number("1"), take));
            args.extend(substring_for.as_deref_mut().map(take));
            call("substring", args)
        }
        Expr::Position { expr, r#in } => call("position", vec![take(r#in), take(expr)]),
        Expr::Overlay { expr, overlay_what, overlay_from, overlay_for } => {
            let mut args = vec![take(expr), take(overlay_what), take(overlay_from)];
            args.extend(overlay_for.as_deref_mut().map(take));
            call("overlay", args)
        }
        Expr::Trim { trim_where, trim_what, expr, trim_characters } => {
            let name = match trim_where {
                Some(TrimWhereField::Leading) => "ltrim",
                Some(TrimWhereField::Trailing) => "rtrim",
                _ => "btrim",
            };
            let mut args = vec![take(expr)];
            args.extend(trim_what.as_deref_mut().map(take));
            args.extend(trim_characters.take().into_iter().flatten());
            call(name, args)
        }
        Expr::Ceil { expr, field: CeilFloorKind::DateTimeField(DateTimeField::NoDateTime) } => {
            call("ceil", vec![take(expr)])
        }
        Expr::Floor { expr, field: CeilFloorKind::DateTimeField(DateTimeField::NoDateTime) } => {
            call("floor", vec![take(expr)])
        }
        Expr::AtTimeZone { timestamp, time_zone } => call("timezone", vec![take(time_zone), take(timestamp)]),
        Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } => {
            let escape = literal(escape_char.take()?)?;
            if escape != "\\" {
                **pattern = call("like_escape", vec![take(pattern), text(&escape)]);
            }
            return None;
        }
        Expr::SimilarTo { negated, expr, pattern, escape_char } => {
            let mut args = vec![take(expr), take(pattern)];
            args.extend(escape_char.take().and_then(literal).map(|e| text(&e)));
            let test = call("similar_to", args);
            if *negated { negation(test) } else { test }
        }
        Expr::UnaryOp { op, expr } => {
            let name = match op {
                UnaryOperator::BitwiseNot => "~",
                UnaryOperator::PGSquareRoot => "sqrt",
                UnaryOperator::PGCubeRoot => "cbrt",
                UnaryOperator::PGAbs => "abs",
                _ => return None,
            };
            call(name, vec![take(expr)])
        }
        Expr::BinaryOp { left, op: BinaryOperator::Overlaps, right } => match (left.as_mut(), right.as_mut()) {
            (Expr::Tuple(a), Expr::Tuple(b)) if a.len() == 2 && b.len() == 2 => {
                call("overlaps", a.drain(..).chain(b.drain(..)).collect())
            }
            _ => return None,
        },
        Expr::Interval(interval) => interval_form(interval)?,
        Expr::Identifier(ident)
            if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("current_schema") =>
        {
            call("current_schema", Vec::new())
        }
        Expr::Function(function) => {
            function_form(function);
            return None;
        }
        _ => return None,
    })
}

/// `INTERVAL '…' [field [TO field]]` as the cast of its text.
fn interval_form(interval: &mut ast::Interval) -> Option<Expr> {
    let Expr::Value(value) = interval.value.as_ref() else { return None };
    let mut written = literal(value.clone())?;
    if let (Some(unit), Ok(_)) = (&interval.leading_field, written.trim().parse::<f64>()) {
        // A bare number counts the last field that is named.
        let unit = interval.last_field.as_ref().unwrap_or(unit);
        written = format!("{written} {}", unit.to_string().to_lowercase());
    }
    Some(Expr::Cast {
        kind: ast::CastKind::Cast,
        expr: Box::new(text(&written)),
        data_type: ast::DataType::Interval { fields: None, precision: None },
        array: false,
        format: None,
    })
}

fn literal(value: ValueWithSpan) -> Option<String> {
    match value.value {
        Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => Some(text),
        _ => None,
    }
}

/// `age(x)` counts from today; `make_interval(days => 3)` names its arguments.
fn function_form(function: &mut ast::Function) {
    let name = function.name.0.last().and_then(|p| p.as_ident()).map(names::fold).unwrap_or_default();
    let FunctionArguments::List(list) = &mut function.args else { return };
    match (name.as_str(), list.args.as_slice()) {
        ("age", [FunctionArg::Unnamed(_)]) => {
            let today = call("current_date", Vec::new());
            list.args.insert(0, FunctionArg::Unnamed(FunctionArgExpr::Expr(today)));
        }
        ("make_interval", args) if args.iter().any(|a| matches!(a, FunctionArg::Named { .. })) => {
            const NAMES: [&str; 7] = ["years", "months", "weeks", "days", "hours", "mins", "secs"];
            let mut by_place: [Option<FunctionArgExpr>; 7] = Default::default();
            for (i, arg) in list.args.iter().enumerate() {
                match arg {
                    FunctionArg::Unnamed(value) if i < 7 => by_place[i] = Some(value.clone()),
                    FunctionArg::Named {
                        name,
                        arg,
                        operator: FunctionArgOperator::RightArrow | FunctionArgOperator::Assignment,
                    } => match NAMES.iter().position(|n| *n == names::fold(name)) {
                        Some(at) => by_place[at] = Some(arg.clone()),
                        None => return,
                    },
                    _ => return,
                }
            }
            let zero = || FunctionArgExpr::Expr(number("0"));
            list.args = by_place.into_iter().map(|v| FunctionArg::Unnamed(v.unwrap_or_else(zero))).collect();
        }
        _ => {}
    }
}

/// A comparison of two rows, field by field.
///
/// Errors: `42601` for rows of unlike lengths.
pub(crate) fn compare_rows(expr: Expr) -> Result<Expr> {
    let (left, right, op) = match expr {
        Expr::BinaryOp { left, op, right } => (*left, *right, Some(op)),
        Expr::IsDistinctFrom(left, right) => (*left, *right, None),
        Expr::IsNotDistinctFrom(left, right) => {
            return Ok(negation(compare_rows(Expr::IsDistinctFrom(left, right))?));
        }
        other => return Ok(other),
    };
    let (Expr::Tuple(left), Expr::Tuple(right)) = (left, right) else { return Ok(null()) };
    if left.len() != right.len() {
        return Err(Error::new(SqlState::SyntaxError, "unequal number of entries in row expressions"));
    }
    let pairs = left.into_iter().zip(right);
    let all = |tests: Vec<Expr>, op: BinaryOperator| {
        let joined = tests.into_iter().reduce(|a, b| binary(a, op.clone(), b)).unwrap_or_else(null);
        Expr::Nested(Box::new(joined))
    };
    Ok(match op {
        None => all(pairs.map(|(l, r)| Expr::IsDistinctFrom(Box::new(l), Box::new(r))).collect(), BinaryOperator::Or),
        Some(BinaryOperator::Eq) => {
            all(pairs.map(|(l, r)| binary(l, BinaryOperator::Eq, r)).collect(), BinaryOperator::And)
        }
        Some(BinaryOperator::NotEq) => {
            all(pairs.map(|(l, r)| binary(l, BinaryOperator::NotEq, r)).collect(), BinaryOperator::Or)
        }
        Some(op) => {
            // a < x OR (a = x AND (b < y OR …)); only the last pair may be equal.
            let strict = match op {
                BinaryOperator::Lt | BinaryOperator::LtEq => BinaryOperator::Lt,
                BinaryOperator::Gt | BinaryOperator::GtEq => BinaryOperator::Gt,
                other => {
                    let message = format!("operator {other} is not supported between rows");
                    return Err(Error::unsupported(message).with_hint("Compare the fields one by one."));
                }
            };
            let mut pairs: Vec<(Expr, Expr)> = pairs.collect();
            let Some((l, r)) = pairs.pop() else { return Ok(null()) };
            let mut test = binary(l, op, r);
            while let Some((l, r)) = pairs.pop() {
                let equal = binary(l.clone(), BinaryOperator::Eq, r.clone());
                let rest = Expr::Nested(Box::new(binary(equal, BinaryOperator::And, test)));
                test = Expr::Nested(Box::new(binary(binary(l, strict.clone(), r), BinaryOperator::Or, rest)));
            }
            Expr::Nested(Box::new(test))
        }
    })
}
