//! Which of several functions of one name a call means: PostgreSQL's type resolution over its implicit casts.
//!
//! A bare string literal or NULL is of type *unknown* until its place gives it one. In a plan it is what the SQL planner
//! makes of it: `Utf8` or `Null`; a value of type text is `Utf8View`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};
use flow::{Error, SqlState};

use super::type_name;

/// The SQL types that functions are declared over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Unknown,
    Bool,
    Int2,
    Int4,
    Int8,
    Numeric,
    Float4,
    Float8,
    Text,
    Bytea,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    /// An array of text.
    Texts,
    /// An array of anything.
    AnyArray,
    /// A value of any type.
    Any,
    /// A type that no declared function takes.
    Other,
}

/// Groups of types between which PostgreSQL prefers to choose one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Category {
    Boolean,
    Number,
    String,
    Bytes,
    Moment,
    Span,
    Array,
    Pseudo,
    Unknown,
}

impl Type {
    pub fn of(t: &DataType) -> Type {
        match t {
            DataType::Null | DataType::Utf8 => Type::Unknown,
            DataType::Utf8View | DataType::LargeUtf8 => Type::Text,
            DataType::Boolean => Type::Bool,
            DataType::Int8 | DataType::UInt8 | DataType::Int16 => Type::Int2,
            DataType::UInt16 | DataType::Int32 => Type::Int4,
            DataType::UInt32 | DataType::Int64 => Type::Int8,
            DataType::Float16 | DataType::Float32 => Type::Float4,
            DataType::Float64 => Type::Float8,
            DataType::UInt64
            | DataType::Decimal32(_, _)
            | DataType::Decimal64(_, _)
            | DataType::Decimal128(_, _)
            | DataType::Decimal256(_, _) => Type::Numeric,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                Type::Bytea
            }
            DataType::Date32 | DataType::Date64 => Type::Date,
            DataType::Time32(_) | DataType::Time64(_) => Type::Time,
            DataType::Timestamp(_, None) => Type::Timestamp,
            DataType::Timestamp(_, Some(_)) => Type::Timestamptz,
            DataType::Interval(_) | DataType::Duration(_) => Type::Interval,
            DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => {
                match Type::of(f.data_type()) {
                    Type::Text | Type::Unknown => Type::Texts,
                    _ => Type::AnyArray,
                }
            }
            DataType::Dictionary(_, value) => Type::of(value),
            _ => Type::Other,
        }
    }

    /// The Arrow type of an argument of this type that is given a value of type `from`.
    pub fn arrow(self, from: &DataType) -> DataType {
        match self {
            Type::Bool => DataType::Boolean,
            Type::Int2 => DataType::Int16,
            Type::Int4 => DataType::Int32,
            Type::Int8 => DataType::Int64,
            Type::Float4 => DataType::Float32,
            Type::Float8 => DataType::Float64,
            Type::Numeric => match from {
                DataType::Decimal128(_, _) => from.clone(),
                DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => DataType::Decimal128(*p, *s),
                DataType::Decimal256(_, s) => DataType::Decimal128(38, (*s).min(38)),
                DataType::UInt64 => DataType::Decimal128(20, 0),
                _ => match Type::of(from) {
                    Type::Int2 => DataType::Decimal128(5, 0),
                    Type::Int4 => DataType::Decimal128(10, 0),
                    Type::Int8 => DataType::Decimal128(19, 0),
                    _ => DataType::Decimal128(38, 18),
                },
            },
            Type::Text => DataType::Utf8View,
            Type::Bytea => DataType::Binary,
            Type::Date => DataType::Date32,
            Type::Time => DataType::Time64(TimeUnit::Microsecond),
            Type::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Type::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Type::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
            Type::Texts => DataType::List(Arc::new(Field::new("item", DataType::Utf8View, true))),
            Type::AnyArray | Type::Any | Type::Other | Type::Unknown => match Type::of(from) {
                Type::Unknown => DataType::Utf8View,
                _ => super::canonical(from),
            },
        }
    }

    fn category(self) -> Category {
        match self {
            Type::Unknown => Category::Unknown,
            Type::Bool => Category::Boolean,
            Type::Int2 | Type::Int4 | Type::Int8 | Type::Numeric | Type::Float4 | Type::Float8 => Category::Number,
            Type::Text => Category::String,
            Type::Bytea => Category::Bytes,
            Type::Date | Type::Timestamp | Type::Timestamptz => Category::Moment,
            Type::Time | Type::Interval => Category::Span,
            Type::Texts | Type::AnyArray => Category::Array,
            Type::Any | Type::Other => Category::Pseudo,
        }
    }

    fn is_preferred(self) -> bool {
        matches!(self, Type::Bool | Type::Float8 | Type::Text | Type::Timestamptz | Type::Interval)
    }

    /// Whether a value of type `self` may stand where `to` is wanted, without a cast in the text.
    pub fn converts_to(self, to: Type) -> bool {
        let rank = |t: Type| match t {
            Type::Int2 => Some(0),
            Type::Int4 => Some(1),
            Type::Int8 => Some(2),
            Type::Numeric => Some(3),
            Type::Float4 => Some(4),
            Type::Float8 => Some(5),
            _ => None,
        };
        if self == to || to == Type::Any {
            return true;
        }
        match (self, to) {
            (Type::Unknown, _) => to != Type::Other,
            (Type::Date, Type::Timestamp | Type::Timestamptz) | (Type::Timestamp, Type::Timestamptz) => true,
            (Type::Time, Type::Interval) => true,
            (Type::Texts, Type::AnyArray) => true,
            _ => matches!((rank(self), rank(to)), (Some(a), Some(b)) if a < b),
        }
    }
}

/// The arguments that one function takes.
#[derive(Clone, Copy, Debug)]
pub struct Arguments {
    pub types: &'static [Type],
    /// The last type may come any number of times.
    pub variadic: bool,
}

impl Arguments {
    fn at(&self, i: usize) -> Type {
        self.types[i.min(self.types.len() - 1)]
    }

    fn takes(&self, count: usize) -> bool {
        if self.variadic { count >= self.types.len() } else { count == self.types.len() }
    }
}

/// The index of the candidate that a call with arguments of `given` types means.
pub fn resolve(candidates: &[Arguments], given: &[Type]) -> Option<usize> {
    let fits = |c: &Arguments| c.takes(given.len()) && given.iter().enumerate().all(|(i, t)| t.converts_to(c.at(i)));
    let mut left: Vec<usize> = (0..candidates.len()).filter(|i| fits(&candidates[*i])).collect();
    // Exactly the types given.
    if let Some(exact) = left.iter().find(|c| given.iter().enumerate().all(|(i, t)| candidates[**c].at(i) == *t)) {
        return Some(*exact);
    }
    let keep_best = |left: &mut Vec<usize>, score: &dyn Fn(&Arguments) -> usize| {
        let best = left.iter().map(|c| score(&candidates[*c])).max().unwrap_or_default();
        left.retain(|c| score(&candidates[*c]) == best);
    };
    keep_best(&mut left, &|c| given.iter().enumerate().filter(|(i, t)| c.at(*i) == **t).count());
    keep_best(&mut left, &|c| {
        let preferred = |(i, t): (usize, &Type)| {
            let to = c.at(i);
            *t != Type::Unknown && (to == *t || to.is_preferred() && to.category() == t.category())
        };
        given.iter().enumerate().filter(|(i, t)| preferred((*i, t))).count()
    });
    if left.len() > 1 && given.contains(&Type::Unknown) {
        // Each unknown argument takes the category on which the candidates agree; a string if one takes strings.
        for (i, _) in given.iter().enumerate().filter(|(_, t)| **t == Type::Unknown) {
            let category = |c: &usize| candidates[*c].at(i).category();
            let chosen = if left.iter().any(|c| category(c) == Category::String) {
                Category::String
            } else {
                let first = left.first().map(category)?;
                if left.iter().any(|c| category(c) != first) {
                    continue;
                }
                first
            };
            left.retain(|c| category(c) == chosen);
            if left.iter().any(|c| candidates[*c].at(i).is_preferred()) {
                left.retain(|c| candidates[*c].at(i).is_preferred());
            }
        }
        if left.len() > 1 {
            // The unknown ones are as the known ones, where those are all alike.
            let mut known = given.iter().copied().filter(|t| *t != Type::Unknown);
            if let Some(first) = known.next()
                && known.all(|t| t == first)
            {
                let same: Vec<usize> = left
                    .iter()
                    .copied()
                    .filter(|c| (0..given.len()).all(|i| first.converts_to(candidates[*c].at(i))))
                    .collect();
                if !same.is_empty() {
                    left = same;
                }
            }
        }
    }
    match left.as_slice() {
        [] => None,
        // What is left differs in ways that PostgreSQL would call ambiguous; the first is declared to be the usual one.
        [first, ..] => Some(*first),
    }
}

/// The type that values of different types are brought to: in CASE, COALESCE, UNION, IN and comparisons. `None` where they
/// have none in common; unknown if all are.
pub fn common(types: &[DataType]) -> Option<DataType> {
    let mut found: Option<DataType> = None;
    for t in types {
        if Type::of(t) == Type::Unknown {
            continue;
        }
        found = Some(match found {
            None => super::canonical(t),
            Some(so_far) => both(&so_far, t)?,
        });
    }
    Some(found.unwrap_or(DataType::Utf8))
}

/// The type to which two known types are brought.
fn both(a: &DataType, b: &DataType) -> Option<DataType> {
    let b = &super::canonical(b);
    if a == b {
        return Some(a.clone());
    }
    let (ta, tb) = (Type::of(a), Type::of(b));
    match (ta, tb) {
        (Type::Numeric, _) if tb.category() == Category::Number && !matches!(tb, Type::Float4 | Type::Float8) => {
            Some(wider(a, &Type::Numeric.arrow(b)))
        }
        (_, Type::Numeric) if ta.category() == Category::Number && !matches!(ta, Type::Float4 | Type::Float8) => {
            Some(wider(&Type::Numeric.arrow(a), b))
        }
        (Type::AnyArray | Type::Texts, Type::AnyArray | Type::Texts) => match (a, b) {
            (DataType::List(x), DataType::List(y)) => {
                let element = common(&[x.data_type().clone(), y.data_type().clone()])?;
                let element = if element == DataType::Utf8 { DataType::Utf8View } else { element };
                Some(DataType::List(Arc::new(Field::new("item", element, true))))
            }
            _ => None,
        },
        (Type::Other, _) | (_, Type::Other) => None,
        _ if ta.category() != tb.category() => None,
        _ if ta == tb => Some(a.clone()),
        _ if ta.converts_to(tb) => Some(b.clone()),
        _ if tb.converts_to(ta) => Some(a.clone()),
        _ => None,
    }
}

/// A decimal that holds the values of both: of the larger scale, with the larger integer part.
fn wider(a: &DataType, b: &DataType) -> DataType {
    match (a, b) {
        (DataType::Decimal128(p1, s1), DataType::Decimal128(p2, s2)) => {
            let scale = (*s1).max(*s2);
            let integer = (*p1 as i16 - *s1 as i16).max(*p2 as i16 - *s2 as i16);
            let precision = (integer + scale as i16).clamp(1, 38) as u8;
            DataType::Decimal128(precision, scale.min(precision as i8))
        }
        _ => a.clone(),
    }
}

/// What two values are compared as: their common type, with numbers against floats as double precision. `None` where
/// PostgreSQL has no such operator.
pub fn comparison(a: &DataType, b: &DataType) -> Option<DataType> {
    let (ta, tb) = (Type::of(a), Type::of(b));
    match (ta, tb) {
        (Type::Float4, Type::Float4) => Some(DataType::Float32),
        (Type::Float4 | Type::Float8, _) if tb.category() == Category::Number => Some(DataType::Float64),
        (_, Type::Float4 | Type::Float8) if ta.category() == Category::Number => Some(DataType::Float64),
        _ => common(&[a.clone(), b.clone()]),
    }
}

/// `42883` for a call that no function of the name takes.
pub fn no_function(name: &str, arguments: &[DataType]) -> Error {
    let types: Vec<String> = arguments.iter().map(written).collect();
    Error::new(SqlState::UndefinedFunction, format!("function {name}({}) does not exist", types.join(", ")))
        .with_hint("No function matches the given name and argument types. You might need to add explicit type casts.")
}

/// `42883` for an operator that does not exist between these types.
pub fn no_operator(sign: &str, left: &DataType, right: &DataType) -> Error {
    Error::new(
        SqlState::UndefinedFunction,
        format!("operator does not exist: {} {sign} {}", written(left), written(right)),
    )
    .with_hint("No operator matches the given name and argument types. You might need to add explicit type casts.")
}

/// The type as a message names it; a literal that has no type yet is unknown.
pub fn written(t: &DataType) -> String {
    if Type::of(t) == Type::Unknown { "unknown".to_string() } else { type_name(t) }
}

/// Whether a value of type `from` can be stored in a column of type `to` without a cast in the text.
pub fn assignable(from: &DataType, to: &DataType) -> bool {
    use Type::*;
    let (f, t) = (Type::of(from), Type::of(to));
    match (f, t) {
        (Other, _) | (_, Other) => true,
        // Everything can be stored as its text.
        (_, Text) | (Unknown, _) => true,
        _ if f.category() == Category::Number && t.category() == Category::Number => true,
        (Timestamp, Date | Time) | (Timestamptz, Date | Time | Timestamp) | (Interval, Time) => true,
        (Texts | AnyArray, Texts | AnyArray) => true,
        _ => f.converts_to(t),
    }
}

/// Whether PostgreSQL can cast between the types at all, in a CAST that is written.
pub fn castable(from: &DataType, to: &DataType) -> bool {
    use Type::*;
    let (f, t) = (Type::of(from), Type::of(to));
    let number = |t: Type| t.category() == Category::Number;
    match (f, t) {
        _ if f == t => true,
        // By the text forms of the types.
        (Unknown | Text, _) | (_, Text | Unknown) => true,
        (Other, _) | (_, Other) => true,
        _ if number(f) && number(t) => true,
        (Bool, Int4) | (Int4, Bool) => true,
        (Date, Timestamp | Timestamptz) => true,
        (Timestamp, Date | Time | Timestamptz) | (Timestamptz, Date | Time | Timestamp) => true,
        (Time, Interval) | (Interval, Time) => true,
        (Texts | AnyArray, Texts | AnyArray) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::Type::*;
    use super::*;

    fn chosen(candidates: &[&'static [Type]], given: &[Type]) -> Option<usize> {
        let candidates: Vec<Arguments> = candidates.iter().map(|types| Arguments { types, variadic: false }).collect();
        resolve(&candidates, given)
    }

    #[test]
    fn calls_mean_what_postgres_takes_them_to_mean() {
        // round(numeric), round(float8)
        assert_eq!(chosen(&[&[Numeric], &[Float8]], &[Int4]), Some(1));
        assert_eq!(chosen(&[&[Numeric], &[Float8]], &[Numeric]), Some(0));
        assert_eq!(chosen(&[&[Numeric], &[Float8]], &[Float4]), Some(1));
        assert_eq!(chosen(&[&[Numeric], &[Float8]], &[Text]), None);
        // round(numeric, int)
        assert_eq!(chosen(&[&[Numeric, Int4]], &[Float8, Int4]), None);
        assert_eq!(chosen(&[&[Numeric, Int4]], &[Int8, Int4]), Some(0));
        // length(text), length(bytea) of an unknown literal
        assert_eq!(chosen(&[&[Bytea], &[Text]], &[Unknown]), Some(1));
        // mod(int2, int2), mod(int4, int4), mod(int8, int8), mod(numeric, numeric)
        let modulo: [&[Type]; 4] = [&[Int2, Int2], &[Int4, Int4], &[Int8, Int8], &[Numeric, Numeric]];
        assert_eq!(chosen(&modulo, &[Int4, Int8]), Some(2));
        assert_eq!(chosen(&modulo, &[Int4, Unknown]), Some(1));
        assert_eq!(chosen(&modulo, &[Float8, Int4]), None);
        // date_trunc(text, timestamp), (text, timestamptz), (text, interval)
        let trunc: [&[Type]; 3] = [&[Text, Timestamp], &[Text, Timestamptz], &[Text, Interval]];
        assert_eq!(chosen(&trunc, &[Unknown, Date]), Some(1));
        assert_eq!(chosen(&trunc, &[Unknown, Timestamp]), Some(0));
    }

    #[test]
    fn values_of_unlike_types_have_a_common_one_or_none() {
        assert_eq!(common(&[DataType::Int32, DataType::Utf8, DataType::Int64]), Some(DataType::Int64));
        assert_eq!(common(&[DataType::Decimal128(6, 2), DataType::Int32]), Some(DataType::Decimal128(12, 2)));
        assert_eq!(common(&[DataType::Decimal128(6, 2), DataType::Float64]), Some(DataType::Float64));
        assert_eq!(common(&[DataType::Int32, DataType::Date32]), None);
        assert_eq!(common(&[DataType::Utf8, DataType::Null]), Some(DataType::Utf8));
        assert_eq!(comparison(&DataType::Float32, &DataType::Decimal128(2, 1)), Some(DataType::Float64));
    }
}
