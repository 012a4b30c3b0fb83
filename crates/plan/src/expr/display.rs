//! Expressions as a reader of EXPLAIN would write them.

use std::fmt::{self, Display};

use arrow::datatypes::{DataType, Schema, TimeUnit};

use super::{Expr, Is};
use crate::stream::{AggCall, AggFunction};

/// An expression shown with the column names of its input.
pub struct Named<'a> {
    pub(super) expr: &'a Expr,
    pub(super) schema: Option<&'a Schema>,
}

impl Display for Expr {
    /// Columns appear by position, as `#2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Named { expr: self, schema: None }.fmt(f)
    }
}

/// Our own arithmetic functions are named by their sign (`functions::arithmetic`) and read as operators.
fn infix(function: &str) -> Option<&str> {
    matches!(function, "+" | "-" | "*" | "/" | "%").then_some(function)
}

fn is_negation(function: &str) -> bool {
    function == "negate"
}

/// How tightly an expression binds; operands that bind less tightly get parentheses.
fn precedence(expr: &Expr) -> u8 {
    match expr {
        Expr::Binary { op, .. } => operator_precedence(op),
        Expr::Call { function, args } if args.len() == 2 => infix(function).map_or(10, operator_precedence),
        Expr::Call { function, args } if args.len() == 1 && is_negation(function) => 9,
        Expr::Negative(_) => 9,
        Expr::Not(_) => 3,
        Expr::Is { .. } | Expr::InList { .. } | Expr::InSet { .. } | Expr::Like { .. } => 4,
        _ => 10,
    }
}

fn operator_precedence(op: &str) -> u8 {
    match op {
        "OR" => 1,
        "AND" => 2,
        "=" | "!=" | "<>" | "<" | "<=" | ">" | ">=" | "IS DISTINCT FROM" | "IS NOT DISTINCT FROM" => 4,
        "+" | "-" => 6,
        "*" | "/" | "%" => 7,
        _ => 5,
    }
}

impl Named<'_> {
    fn child<'b>(&'b self, expr: &'b Expr) -> Named<'b> {
        Named { expr, schema: self.schema }
    }

    /// `expr`, in parentheses if it binds less tightly than `at_least`.
    fn operand(&self, f: &mut fmt::Formatter<'_>, expr: &Expr, at_least: u8) -> fmt::Result {
        if precedence(expr) < at_least { write!(f, "({})", self.child(expr)) } else { self.child(expr).fmt(f) }
    }

    fn list(&self, f: &mut fmt::Formatter<'_>, exprs: &[Expr]) -> fmt::Result {
        for (i, e) in exprs.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            self.child(e).fmt(f)?;
        }
        Ok(())
    }

    fn binary(&self, f: &mut fmt::Formatter<'_>, op: &str, left: &Expr, right: &Expr) -> fmt::Result {
        let p = operator_precedence(op);
        let op = if op == "!=" { "<>" } else { op };
        let associative = matches!(op, "AND" | "OR");
        self.operand(f, left, p)?;
        write!(f, " {op} ")?;
        self.operand(f, right, if associative { p } else { p + 1 })
    }
}

impl Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.expr {
            Expr::Column(i) => match self.schema.and_then(|s| s.fields().get(*i)) {
                Some(field) => f.write_str(field.name()),
                None => write!(f, "#{i}"),
            },
            Expr::Literal(l) => f.write_str(&l.text),
            Expr::Binary { op, left, right } => self.binary(f, op, left, right),
            Expr::Not(e) => {
                f.write_str("NOT ")?;
                self.operand(f, e, 5)
            }
            Expr::Negative(e) => {
                f.write_str("-")?;
                self.operand(f, e, 9)
            }
            Expr::Is { negated, what, expr } => {
                self.operand(f, expr, 5)?;
                let what = match what {
                    Is::Null => "NULL",
                    Is::True => "TRUE",
                    Is::False => "FALSE",
                    Is::Unknown => "UNKNOWN",
                };
                write!(f, " IS {}{what}", if *negated { "NOT " } else { "" })
            }
            Expr::Case { operand, branches, otherwise } => {
                f.write_str("CASE")?;
                if let Some(e) = operand {
                    write!(f, " {}", self.child(e))?;
                }
                for (when, then) in branches {
                    write!(f, " WHEN {} THEN {}", self.child(when), self.child(then))?;
                }
                if let Some(e) = otherwise {
                    write!(f, " ELSE {}", self.child(e))?;
                }
                f.write_str(" END")
            }
            Expr::Cast { expr, to, safe } => {
                let word = if *safe { "TRY_CAST" } else { "CAST" };
                write!(f, "{word}({} AS {})", self.child(expr), sql_type(to))
            }
            Expr::InList { expr, list, negated } => {
                self.operand(f, expr, 5)?;
                f.write_str(if *negated { " NOT IN (" } else { " IN (" })?;
                self.list(f, list)?;
                f.write_str(")")
            }
            Expr::InSet { expr, values, negated } => {
                self.operand(f, expr, 5)?;
                write!(f, "{} IN ({})", if *negated { " NOT" } else { "" }, values.text)
            }
            Expr::Like { expr, pattern, negated, case_insensitive } => {
                self.operand(f, expr, 5)?;
                f.write_str(if *negated { " NOT" } else { "" })?;
                f.write_str(if *case_insensitive { " ILIKE " } else { " LIKE " })?;
                self.operand(f, pattern, 5)
            }
            Expr::Call { function, args } => match args.as_slice() {
                [left, right] if infix(function).is_some() => {
                    self.binary(f, infix(function).unwrap_or_default(), left, right)
                }
                [e] if is_negation(function) => {
                    f.write_str("-")?;
                    self.operand(f, e, 9)
                }
                args => {
                    write!(f, "{function}(")?;
                    self.list(f, args)?;
                    f.write_str(")")
                }
            },
        }
    }
}

/// An aggregate call shown with the column names of its input.
pub struct NamedCall<'a> {
    call: &'a AggCall,
    schema: &'a Schema,
}

impl AggCall {
    /// The call with the names of `schema` in place of column numbers, for EXPLAIN and for naming its result.
    pub fn named<'a>(&'a self, schema: &'a Schema) -> NamedCall<'a> {
        NamedCall { call: self, schema }
    }
}

impl Display for NamedCall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let column = |c: usize| Expr::Column(c).named(self.schema).to_string();
        let name = match self.call.function {
            AggFunction::Count => "count",
            AggFunction::Sum => "sum",
            AggFunction::Avg => "avg",
            AggFunction::Min => "min",
            AggFunction::Max => "max",
            AggFunction::BoolAnd => "bool_and",
            AggFunction::BoolOr => "bool_or",
        };
        let distinct = if self.call.distinct { "DISTINCT " } else { "" };
        write!(f, "{name}({distinct}{})", self.call.arg.map_or_else(|| "*".to_owned(), column))?;
        match self.call.filter {
            Some(filter) => write!(f, " FILTER ({})", column(filter)),
            None => Ok(()),
        }
    }
}

/// The SQL name of an Arrow type, for messages and EXPLAIN; types that SQL does not have show as Arrow writes them.
pub fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Null => "unknown".into(),
        DataType::Boolean => "boolean".into(),
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint".into(),
        DataType::Int32 | DataType::UInt16 => "integer".into(),
        DataType::Int64 | DataType::UInt32 => "bigint".into(),
        DataType::UInt64 => "numeric(20,0)".into(),
        DataType::Float16 | DataType::Float32 => "real".into(),
        DataType::Float64 => "double precision".into(),
        DataType::Decimal32(p, s)
        | DataType::Decimal64(p, s)
        | DataType::Decimal128(p, s)
        | DataType::Decimal256(p, s) => format!("numeric({p},{s})"),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "bytea".into()
        }
        DataType::Date32 | DataType::Date64 => "date".into(),
        DataType::Time32(_) | DataType::Time64(_) => "time".into(),
        DataType::Timestamp(TimeUnit::Microsecond, None) => "timestamp".into(),
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => "timestamptz".into(),
        DataType::Timestamp(_, None) => "timestamp".into(),
        DataType::Timestamp(_, Some(_)) => "timestamptz".into(),
        DataType::Interval(_) | DataType::Duration(_) => "interval".into(),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            format!("{}[]", sql_type(item.data_type()))
        }
        DataType::Dictionary(_, value) => sql_type(value),
        other => other.to_string(),
    }
}
