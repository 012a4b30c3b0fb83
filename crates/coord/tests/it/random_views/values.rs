//! Types, literals and scalar expressions of the random cases.

use crate::harness::Rng;

/// The types that random tables have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Int,
    Big,
    Num,
    Text,
    Bool,
    Double,
    Ts,
}

pub const TYPES: [Type; 7] = [Type::Int, Type::Big, Type::Num, Type::Text, Type::Bool, Type::Double, Type::Ts];

impl Type {
    pub fn name(self) -> &'static str {
        match self {
            Type::Int => "int",
            Type::Big => "bigint",
            Type::Num => "numeric(12,2)",
            Type::Text => "text",
            Type::Bool => "boolean",
            Type::Double => "double precision",
            Type::Ts => "timestamp",
        }
    }

    pub fn is_number(self) -> bool {
        matches!(self, Type::Int | Type::Big | Type::Num | Type::Double)
    }
}

/// A column in scope: how it is written, and its type.
#[derive(Clone, Debug)]
pub struct Column {
    pub sql: String,
    pub ty: Type,
}

/// Rolls `n` in `of`.
pub fn chance(rng: &mut Rng, n: usize, of: usize) -> bool {
    rng.below(of) < n
}

/// A literal of a small domain, so that keys meet and groups fill.
pub fn literal(rng: &mut Rng, ty: Type) -> String {
    match ty {
        Type::Int => format!("{}", rng.below(9) as i64 - 2),
        Type::Big if chance(rng, 1, 10) => format!("{}", 10_000_000_000i64 + rng.below(3) as i64),
        Type::Big => format!("{}::bigint", rng.below(9) as i64 - 2),
        Type::Num => {
            let (whole, part) = (rng.below(7) as i64 - 2, rng.pick(&["00", "00", "25", "50", "99"]));
            format!("{whole}.{part}::numeric(12,2)")
        }
        Type::Text => {
            let texts = ["a", "b", "c", "d", "ab", "", "B", "it''s", "a text beyond twelve bytes", "Zoë ünï", "a b"];
            format!("'{}'::text", rng.pick(&texts))
        }
        Type::Bool => rng.pick(&["true", "false"]).to_string(),
        Type::Double => match rng.below(16) {
            0 => "'NaN'::double precision".into(),
            1 => "'Infinity'::double precision".into(),
            2 => "1e15::double precision".into(),
            3 => "0.1::double precision".into(),
            4 => "0.7::double precision".into(),
            n => format!("{}::double precision", (n as f64 - 7.0) / 4.0),
        },
        Type::Ts => {
            format!("TIMESTAMP '2024-02-{:02} {:02}:{:02}:00'", 28 + rng.below(2), rng.below(3), 15 * rng.below(4))
        }
    }
}

/// What an INSERT puts into a column.
pub fn stored(rng: &mut Rng, ty: Type, nullable: bool) -> String {
    if nullable && chance(rng, 1, 6) { "NULL".into() } else { literal(rng, ty) }
}

fn column(rng: &mut Rng, columns: &[Column], ty: Type) -> Option<String> {
    let fit: Vec<&Column> = columns.iter().filter(|c| c.ty == ty).collect();
    (!fit.is_empty()).then(|| fit[rng.below(fit.len())].sql.clone())
}

/// A column of the type, or a literal where there is none.
fn leaf(rng: &mut Rng, columns: &[Column], ty: Type) -> String {
    match column(rng, columns, ty) {
        Some(found) if !chance(rng, 1, 8) => found,
        _ => literal(rng, ty),
    }
}

/// An expression of type `ty` over `columns`. None of them can fail: divisors are never zero, products stay small.
pub fn expr(rng: &mut Rng, columns: &[Column], ty: Type, depth: usize) -> String {
    if depth == 0 || chance(rng, 2, 5) {
        return leaf(rng, columns, ty);
    }
    let d = depth - 1;
    match rng.below(5) {
        0 => {
            let (when, then, or) = (condition(rng, columns, d), expr(rng, columns, ty, d), expr(rng, columns, ty, d));
            return format!("CASE WHEN {when} THEN {then} ELSE {or} END");
        }
        1 => return format!("coalesce({}, {})", leaf(rng, columns, ty), expr(rng, columns, ty, d)),
        2 if chance(rng, 1, 3) => return format!("nullif({}, {})", expr(rng, columns, ty, d), leaf(rng, columns, ty)),
        _ => {}
    }
    let a = expr(rng, columns, ty, d);
    match ty {
        Type::Int => match rng.below(8) {
            0 => format!("({a} + {})", expr(rng, columns, ty, d)),
            1 => format!("({a} - {})", expr(rng, columns, ty, d)),
            2 => format!("({a} * 3)"),
            3 => format!("({a} % 4)"),
            4 => format!("abs({a})"),
            5 => format!("({a} / nullif({}, 0))", leaf(rng, columns, ty)),
            6 => format!("length({})", expr(rng, columns, Type::Text, d)),
            _ => format!("extract(minute from {})::int", leaf(rng, columns, Type::Ts)),
        },
        Type::Big => match rng.below(5) {
            0 => format!("({a} + {})", expr(rng, columns, Type::Int, d)),
            1 => format!("({a} - {})", expr(rng, columns, ty, d)),
            2 => format!("({a} % 5)"),
            3 => format!("greatest({a}, {})", leaf(rng, columns, ty)),
            _ => format!("({})::bigint", expr(rng, columns, Type::Int, d)),
        },
        Type::Num => match rng.below(6) {
            0 => format!("({a} + {})", expr(rng, columns, ty, d)),
            1 => format!("({a} - {})", expr(rng, columns, ty, d)),
            2 => format!("({a} * {})", leaf(rng, columns, Type::Int)),
            3 => format!("abs({a})"),
            4 => format!("round({a}, 1)"),
            _ => format!("({})::numeric(12,2)", expr(rng, columns, Type::Int, d)),
        },
        Type::Double => match rng.below(4) {
            0 => format!("({a} + {})", expr(rng, columns, ty, d)),
            1 => format!("({a} * 2)"),
            2 => format!("abs({a})"),
            _ => format!("({})::double precision", expr(rng, columns, Type::Int, d)),
        },
        Type::Text => match rng.below(6) {
            0 => format!("({a} || {})", leaf(rng, columns, ty)),
            1 => format!("upper({a})"),
            2 => format!("substr({a}, 1, 2)"),
            3 => format!("replace({a}, 'a', 'xy')"),
            4 => format!("({})::text", expr(rng, columns, Type::Int, d)),
            _ => format!("lower({a})"),
        },
        Type::Bool => condition(rng, columns, d),
        Type::Ts => match rng.below(3) {
            0 => format!("({a} + INTERVAL '15 minutes')"),
            1 => format!("greatest({a}, {})", leaf(rng, columns, ty)),
            _ => format!("({a} - INTERVAL '1 day')"),
        },
    }
}

/// A condition over `columns`: true, false or NULL.
pub fn condition(rng: &mut Rng, columns: &[Column], depth: usize) -> String {
    if depth > 0 && chance(rng, 1, 3) {
        let (a, b) = (condition(rng, columns, depth - 1), condition(rng, columns, depth - 1));
        return match rng.below(3) {
            0 => format!("({a} AND {b})"),
            1 => format!("({a} OR {b})"),
            _ => format!("NOT ({a})"),
        };
    }
    // Mostly about a type that there is a column of.
    let ty = if columns.is_empty() { rng.pick(&TYPES) } else { columns[rng.below(columns.len())].ty };
    let a = expr(rng, columns, ty, depth.min(1));
    match rng.below(9) {
        0 => format!("{a} IS NULL"),
        1 => format!("{a} IS NOT NULL"),
        2 => format!("({a} IS NOT DISTINCT FROM {})", leaf(rng, columns, ty)),
        3 => format!("({a} IS DISTINCT FROM {})", leaf(rng, columns, ty)),
        4 if ty != Type::Bool => {
            let not = rng.pick(&["", "NOT "]);
            format!("{a} {not}BETWEEN {} AND {}", leaf(rng, columns, ty), leaf(rng, columns, ty))
        }
        5 if ty != Type::Bool => {
            let null = if chance(rng, 1, 8) { ", NULL" } else { "" };
            let not = rng.pick(&["", "NOT "]);
            format!("{a} {not}IN ({}, {}{null})", literal(rng, ty), literal(rng, ty))
        }
        6 if ty == Type::Text => format!("{a} LIKE '{}'", rng.pick(&["a%", "%b%", "_", "%"])),
        _ if ty == Type::Bool => leaf(rng, columns, ty),
        _ => format!("{a} {} {}", rng.pick(&["=", "<>", "<", "<=", ">", ">="]), leaf(rng, columns, ty)),
    }
}
