//! DataFusion's errors in the words of SQL.
//!
//! DataFusion reports most planning errors as text. The mapping goes by the kind of the error where there is one and by
//! the fixed parts of the text otherwise; a text that is not known keeps a state that is true of its kind.

use datafusion::common::{Column, TableReference};
use datafusion::common::{DataFusionError, SchemaError};
use flow::{Error, SqlState};

/// Ends the part of an internal column name that is shown: names repeat in an answer but not in a plan.
pub const REPEATED_NAME_END: char = '\u{1f}';

/// The name of a plan's column as the client sees it.
pub fn shown_name(name: &str) -> &str {
    name.split(REPEATED_NAME_END).next().unwrap_or(name)
}

/// The SQL error that `error` stands for. An error of ours that travelled through DataFusion comes back unchanged.
pub fn from_datafusion_error(error: DataFusionError) -> Error {
    convert(error, None)
}

/// As [`from_datafusion_error`], with the position where DataFusion knows a place in `text`, the statement it planned.
pub fn from_datafusion_error_in(text: &str, error: DataFusionError) -> Error {
    convert(error, Some(text))
}

fn convert(error: DataFusionError, text: Option<&str>) -> Error {
    match error {
        DataFusionError::ArrowError(e, _) => from_arrow(*e),
        DataFusionError::External(e) => from_external(e),
        DataFusionError::Context(_, e) => convert(*e, text),
        DataFusionError::Shared(e) => match std::sync::Arc::try_unwrap(e) {
            Ok(e) => convert(e, text),
            Err(shared) => from_shared(&shared),
        },
        DataFusionError::Diagnostic(diagnostic, e) => {
            let converted = convert(*e, text);
            let place = diagnostic.span.and_then(|s| position(text?, s.start.line, s.start.column));
            match place {
                Some(position) if converted.position().is_none() => converted.with_position(position),
                _ => converted,
            }
        }
        DataFusionError::Collection(errors) => match errors.into_iter().next() {
            Some(e) => convert(e, text),
            None => Error::internal("an empty collection of errors"),
        },
        DataFusionError::SchemaError(e, _) => from_schema(*e),
        DataFusionError::Plan(m) => from_plan(&m),
        DataFusionError::NotImplemented(m) => Error::unsupported(sentence(&m)),
        DataFusionError::Execution(m) => from_execution(&m),
        DataFusionError::ResourcesExhausted(m) => Error::new(SqlState::OutOfMemory, "out of memory").with_detail(m),
        DataFusionError::SQL(e, _) => Error::new(SqlState::SyntaxError, sentence(&parser_message(&e.to_string()))),
        DataFusionError::IoError(e) => match e.kind() {
            std::io::ErrorKind::StorageFull => Error::new(SqlState::DiskFull, "no space left on the disk"),
            _ => Error::new(SqlState::IoError, e.to_string()),
        },
        DataFusionError::Configuration(m) => Error::new(SqlState::InvalidParameterValue, sentence(&m)),
        DataFusionError::Internal(m) => Error::internal(first_line(&m)),
        other => Error::internal(first_line(&other.strip_backtrace())),
    }
}

fn from_external(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    let error = match error.downcast::<Error>() {
        Ok(ours) => return *ours,
        Err(other) => other,
    };
    let error = match error.downcast::<DataFusionError>() {
        Ok(inner) => return from_datafusion_error(*inner),
        Err(other) => other,
    };
    match error.downcast::<arrow::error::ArrowError>() {
        Ok(inner) => from_arrow(*inner),
        Err(other) => Error::internal(other.to_string()),
    }
}

/// An error that others still hold: what can be read of it without owning it.
fn from_shared(error: &DataFusionError) -> Error {
    match error.find_root() {
        DataFusionError::External(e) => match e.downcast_ref::<Error>() {
            Some(ours) => ours.clone(),
            None => Error::internal(e.to_string()),
        },
        DataFusionError::ResourcesExhausted(m) => {
            Error::new(SqlState::OutOfMemory, "out of memory").with_detail(m.clone())
        }
        DataFusionError::Plan(m) => from_plan(m),
        DataFusionError::Execution(m) => from_execution(m),
        DataFusionError::NotImplemented(m) => Error::unsupported(sentence(m)),
        DataFusionError::ArrowError(e, _) => from_arrow_text(e),
        other => Error::internal(first_line(&other.strip_backtrace())),
    }
}

fn from_arrow(error: arrow::error::ArrowError) -> Error {
    match error {
        arrow::error::ArrowError::ExternalError(e) => from_external(e),
        other => from_arrow_text(&other),
    }
}

fn from_arrow_text(error: &arrow::error::ArrowError) -> Error {
    use arrow::error::ArrowError as A;
    match error {
        A::DivideByZero => Error::new(SqlState::DivisionByZero, "division by zero"),
        A::ArithmeticOverflow(m) => {
            Error::new(SqlState::NumericValueOutOfRange, "value out of range").with_detail(m.clone())
        }
        A::CastError(m) | A::ParseError(m) => from_cast(m),
        A::InvalidArgumentError(m) | A::ComputeError(m) => from_execution(m),
        A::MemoryError(m) => Error::new(SqlState::OutOfMemory, "out of memory").with_detail(m.clone()),
        A::IoError(m, _) => Error::new(SqlState::IoError, m.clone()),
        A::ExternalError(e) => match e.downcast_ref::<Error>() {
            Some(ours) => ours.clone(),
            None => Error::internal(e.to_string()),
        },
        other => Error::internal(other.to_string()),
    }
}

/// A value that does not fit the type that it was to become. Arrow's texts, told as Postgres tells them.
fn from_cast(m: &str) -> Error {
    // "Cannot cast string 'x' to value of Int32 type"
    if let Some(rest) = m.strip_prefix("Cannot cast string '")
        && let Some((value, to)) = rest.rsplit_once("' to value of ")
    {
        let to = to.trim_end_matches(" type");
        return Error::new(
            SqlState::InvalidTextRepresentation,
            format!("invalid input syntax for type {}: \"{value}\"", sql_type_of_name(to)),
        );
    }
    if let Some(rest) = m.strip_prefix("Can't cast value ")
        && let Some((value, to)) = rest.rsplit_once(" to type ")
    {
        return Error::new(
            SqlState::NumericValueOutOfRange,
            format!("value {value} is out of range for type {}", sql_type_of_name(to)),
        );
    }
    if let Some(rest) = m.strip_prefix("Error parsing timestamp from '") {
        let value = rest.split("': ").next().unwrap_or(rest);
        return Error::new(
            SqlState::InvalidDatetimeFormat,
            format!("invalid input syntax for type timestamp: \"{value}\""),
        );
    }
    let lower = m.to_lowercase();
    if lower.contains("overflow") || lower.contains("too large") || lower.contains("out of range") {
        return Error::new(SqlState::NumericValueOutOfRange, "value out of range").with_detail(m.to_owned());
    }
    if m.starts_with("Cannot cast") || m.starts_with("Casting from") || m.contains("not supported") {
        return Error::new(SqlState::CannotCoerce, sentence(m));
    }
    Error::new(SqlState::InvalidTextRepresentation, sentence(m))
}

fn sql_type_of_name(arrow: &str) -> String {
    match arrow {
        "Boolean" => "boolean".into(),
        "Int8" | "Int16" | "UInt8" => "smallint".into(),
        "Int32" | "UInt16" => "integer".into(),
        "Int64" | "UInt32" | "UInt64" => "bigint".into(),
        "Float32" => "real".into(),
        "Float64" => "double precision".into(),
        "Date32" | "Date64" => "date".into(),
        name if name.starts_with("Decimal") => "numeric".into(),
        name if name.starts_with("Timestamp") => "timestamp".into(),
        name if name.starts_with("Time") => "time".into(),
        name if name.starts_with("Interval") => "interval".into(),
        name => name.to_lowercase(),
    }
}

fn from_execution(m: &str) -> Error {
    let lower = m.to_lowercase();
    if lower.contains("divide by zero") || lower.contains("division by zero") {
        return Error::new(SqlState::DivisionByZero, "division by zero");
    }
    if lower.contains("overflow") || lower.contains("out of range") || lower.contains("too large to store") {
        return Error::new(SqlState::NumericValueOutOfRange, "value out of range").with_detail(first_line(m));
    }
    if lower.contains("scalar subquery") && lower.contains("more than one row") {
        return Error::new(
            SqlState::CardinalityViolation,
            "more than one row returned by a subquery used as an expression",
        );
    }
    if lower.contains("regular expression") || lower.contains("regex parse error") {
        return Error::new(SqlState::InvalidParameterValue, "invalid regular expression").with_detail(first_line(m));
    }
    if lower.contains("error parsing timestamp") || lower.contains("unable to parse") {
        return Error::new(SqlState::InvalidDatetimeFormat, sentence(m));
    }
    Error::new(SqlState::DataException, sentence(m))
}

fn quoted(column: &Column) -> String {
    match &column.relation {
        Some(relation) => format!("{}.{}", shown_name(relation.table()), shown_name(&column.name)),
        None => format!("\"{}\"", shown_name(&column.name)),
    }
}

fn from_schema(error: SchemaError) -> Error {
    match error {
        SchemaError::AmbiguousReference { field } => {
            Error::new(SqlState::AmbiguousColumn, format!("column reference \"{}\" is ambiguous", field.name))
        }
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            Error::new(SqlState::DuplicateColumn, format!("column \"{name}\" specified more than once"))
        }
        SchemaError::FieldNotFound { field, valid_fields } => {
            let same_name = |v: &&Column| {
                v.name.contains(REPEATED_NAME_END)
                    && shown_name(&v.name) == field.name
                    && field.relation.as_ref().is_none_or(|r| v.relation.as_ref().is_some_and(|v| same_relation(v, r)))
            };
            if valid_fields.iter().filter(same_name).count() > 1 {
                let message = format!("column reference \"{}\" is ambiguous", field.name);
                return Error::new(SqlState::AmbiguousColumn, message);
            }
            // A qualifier that no column has is a missing table, not a missing column.
            if let Some(relation) = &field.relation
                && !valid_fields.is_empty()
                && !valid_fields.iter().any(|v| v.relation.as_ref().is_some_and(|r| same_relation(r, relation)))
            {
                return Error::new(
                    SqlState::UndefinedTable,
                    format!("missing FROM-clause entry for table \"{}\"", shown_name(relation.table())),
                );
            }
            let missing = Error::new(SqlState::UndefinedColumn, format!("column {} does not exist", quoted(&field)));
            match nearest(&field, &valid_fields) {
                Some(near) => missing.with_hint(format!("Perhaps you meant to reference the column {}.", quoted(near))),
                None => missing,
            }
        }
    }
}

fn same_relation(a: &TableReference, b: &TableReference) -> bool {
    a.table() == b.table()
}

fn nearest<'a>(field: &Column, valid: &'a [Column]) -> Option<&'a Column> {
    let wanted = field.name.to_lowercase();
    valid
        .iter()
        .map(|c| (distance(&wanted, &c.name.to_lowercase()), c))
        .filter(|(d, _)| *d * 3 <= wanted.chars().count().max(3))
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// The text between the first pair of `quote` in `m`.
fn between(m: &str, quote: char) -> Option<&str> {
    let (_, rest) = m.split_once(quote)?;
    rest.split_once(quote).map(|(inner, _)| inner)
}

fn from_plan(m: &str) -> Error {
    let m = m.strip_prefix("Error during planning: ").unwrap_or(m);
    let lower = m.to_lowercase();
    // An error of ours that DataFusion has put into its own words.
    if let Some((_, ours)) = m.split_once("user-defined coercion failed with: External error: ")
        && let Some((state, message)) = ours
            .match_indices(" (")
            .find_map(|(at, _)| Some((SqlState::from_code(ours.get(at + 2..at + 7)?)?, &ours[..at])))
    {
        let error = Error::new(state, message);
        return match (state, message.split_once(' ')) {
            (SqlState::UndefinedFunction, Some((what, _))) => error.with_hint(format!(
                "No {what} matches the given name and argument types. You might need to add explicit type casts."
            )),
            _ => error,
        };
    }
    if lower.starts_with("unary operator '-'") {
        return Error::new(SqlState::UndefinedFunction, "operator does not exist: - for this type")
            .with_detail(first_line(m));
    }
    if let Some(rest) = m.strip_prefix("Invalid function '") {
        let name = rest.split('\'').next().unwrap_or(rest);
        let e = Error::new(SqlState::UndefinedFunction, format!("function {name} does not exist"));
        return match rest.split_once("Did you mean '").and_then(|(_, s)| s.split_once('\'')) {
            Some((near, _)) => e.with_hint(format!("Perhaps you meant the function {near}.")),
            None => e,
        };
    }
    if lower.starts_with("table '") && lower.contains("not found") {
        let name = between(m, '\'').unwrap_or_default();
        let name = name.rsplit('.').next().unwrap_or(name);
        return Error::new(SqlState::UndefinedTable, format!("relation \"{name}\" does not exist"));
    }
    if let Some(name) = m.strip_prefix("Table not found: ") {
        return Error::new(SqlState::UndefinedTable, format!("relation \"{name}\" does not exist"));
    }
    if lower.starts_with("aggregate function calls cannot be nested") {
        return Error::new(SqlState::GroupingError, "aggregate function calls cannot be nested");
    }
    if let Some(name) = m.strip_prefix("Invalid qualifier ") {
        let message = format!("missing FROM-clause entry for table \"{}\"", shown_name(name.trim()));
        return Error::new(SqlState::UndefinedTable, message);
    }
    if lower.contains("must appear in the group by clause") {
        let e = match between(m, '"') {
            Some(column) => Error::new(
                SqlState::GroupingError,
                format!("column \"{column}\" must appear in the GROUP BY clause or be used in an aggregate function"),
            ),
            None => Error::new(
                SqlState::GroupingError,
                "a column must appear in the GROUP BY clause or be used in an aggregate function",
            ),
        };
        return e.with_detail(first_line(m));
    }
    if lower.contains("aggregate functions are not allowed in the where clause") {
        return Error::new(SqlState::GroupingError, "aggregate functions are not allowed in WHERE")
            .with_hint("Use HAVING.");
    }
    if lower.contains("scalar subquery must be aggregated to return at most one row") {
        return scalar_subquery_unsupported();
    }
    if lower.contains("failed to coerce arguments")
        || lower.contains("no function matches")
        || lower.starts_with("function '")
        || lower.starts_with("the function '")
        || lower.starts_with("for function '")
        || lower.contains("does not support zero arguments")
    {
        if let (Some(name), Some((_, rest))) = (between(m, '\''), m.split_once("coercion from "))
            && let Some((types, _)) = rest.split_once(" to the signature")
        {
            let hint =
                "No function matches the given name and argument types. You might need to add explicit type casts.";
            let types: Vec<String> =
                types.trim_matches(['[', ']']).split(", ").map(|t| sql_types_in(t.trim())).collect();
            let message = format!("function {name}({}) does not exist", types.join(", "));
            return Error::new(SqlState::UndefinedFunction, message).with_hint(hint);
        }
        let e = match between(m, '\'') {
            Some(name) => Error::new(
                SqlState::UndefinedFunction,
                format!("function {name} does not exist for these argument types"),
            ),
            None => Error::new(SqlState::UndefinedFunction, "no function matches the given argument types"),
        };
        return e.with_detail(first_line(m)).with_hint("You might need to add explicit type casts.");
    }
    if let Some(rest) = m.strip_prefix("Cannot infer common argument type for logical boolean operation ") {
        let what = if rest.contains(" OR ") { "OR" } else { "AND" };
        let operands = rest.split([' ']).filter(|w| !matches!(*w, "AND" | "OR" | "Boolean" | "Null"));
        let message = match operands.into_iter().next() {
            Some(t) => format!("argument of {what} must be type boolean, not type {}", sql_types_in(t)),
            None => format!("argument of {what} must be type boolean"),
        };
        return Error::new(SqlState::DatatypeMismatch, message);
    }
    if let Some(rest) =
        ["Cannot coerce arithmetic expression ", "Cannot infer common argument type for comparison operation "]
            .iter()
            .find_map(|p| m.strip_prefix(p))
    {
        let types = rest.strip_suffix(" to valid types").unwrap_or(rest);
        return Error::new(SqlState::UndefinedFunction, format!("operator does not exist: {}", sql_types_in(types)))
            .with_hint("No operator matches the given argument types. You might need to add explicit type casts.");
    }
    if lower.starts_with("cannot infer common") || lower.starts_with("cannot get result type for") {
        return Error::new(SqlState::UndefinedFunction, "operator does not exist for these argument types")
            .with_detail(first_line(m))
            .with_hint("You might need to add explicit type casts.");
    }
    if lower.contains("ambiguous") {
        return Error::new(SqlState::AmbiguousColumn, sentence(m));
    }
    if lower.contains("different number of columns") || lower.contains("different number of fields") {
        let kind = if lower.starts_with("except") {
            "EXCEPT"
        } else if lower.starts_with("intersect") {
            "INTERSECT"
        } else {
            "UNION"
        };
        return Error::new(SqlState::SyntaxError, format!("each {kind} query must have the same number of columns"));
    }
    if lower.contains("unique expression names") {
        return Error::new(SqlState::DuplicateColumn, "two columns have the same name")
            .with_detail(first_line(m))
            .with_hint("Give one of them another name with AS.");
    }
    if lower.contains("must be boolean") || lower.contains("non-boolean") || lower.contains("requires a boolean") {
        return Error::new(SqlState::DatatypeMismatch, sentence(m));
    }
    if lower.contains("coerce") || lower.contains("common type") || lower.contains("incompatible inputs") {
        return Error::new(SqlState::DatatypeMismatch, sentence(m))
            .with_hint("You might need to add explicit type casts.");
    }
    if lower.contains("only supports") || lower.contains("cannot cast") {
        return Error::new(SqlState::DatatypeMismatch, sentence(m));
    }
    if lower.starts_with("order by") || lower.starts_with("cannot find column with position") {
        return Error::new(SqlState::InvalidColumnReference, sentence(m));
    }
    if lower.contains("placeholder") {
        return Error::new(SqlState::UndefinedParameter, sentence(m));
    }
    if lower.contains("specified more than once") || lower.contains("defined multiple times") {
        return Error::new(SqlState::DuplicateObject, sentence(m));
    }
    if lower.contains("divide by zero") {
        return Error::new(SqlState::DivisionByZero, "division by zero");
    }
    if lower.contains("not supported") || lower.contains("unsupported") || lower.contains("not implemented") {
        return Error::unsupported(sentence(m));
    }
    Error::new(SqlState::SyntaxError, sentence(m))
}

/// `0A000` for a scalar subquery of which nothing says that it returns at most one row.
pub(crate) fn scalar_subquery_unsupported() -> Error {
    Error::unsupported("a scalar subquery that could return more than one row is not supported")
        .with_detail("Nothing in it says that it returns at most one row.")
        .with_hint("Aggregate it (SELECT max(x) …), add LIMIT 1, or compare its table's whole primary key by =.")
}

/// `Int64 + Utf8View` as `bigint + text`.
fn sql_types_in(m: &str) -> String {
    let mut words = Vec::new();
    for word in first_line(m).split(' ') {
        words.push(match word {
            "Utf8" | "LargeUtf8" | "Utf8View" => "text".to_owned(),
            "Binary" | "LargeBinary" | "BinaryView" => "bytea".to_owned(),
            w if w.chars().next().is_some_and(char::is_uppercase) && !w.contains("(") => sql_type_of_name(w),
            w if w.starts_with("Decimal") => "numeric".to_owned(),
            w if w.starts_with("Timestamp") => "timestamp".to_owned(),
            w => w.to_owned(),
        });
    }
    words.join(" ")
}

fn parser_message(m: &str) -> String {
    m.strip_prefix("sql parser error: ").unwrap_or(m).to_owned()
}

fn first_line(m: &str) -> String {
    m.lines().next().unwrap_or_default().trim().to_owned()
}

/// The first line of `m` as a primary message: lower case at the start unless it starts with a name or keyword, and no
/// full stop at the end.
fn sentence(m: &str) -> String {
    let line = first_line(m);
    let line = line.trim_end_matches('.');
    let mut chars = line.chars();
    match (chars.next(), chars.next()) {
        (Some(a), Some(b)) if a.is_uppercase() && !b.is_uppercase() => {
            let mut lowered: String = a.to_lowercase().collect();
            lowered.push_str(line.get(a.len_utf8()..).unwrap_or_default());
            lowered
        }
        _ => line.to_owned(),
    }
}

/// 1-based character offset of a 1-based line and column.
fn position(text: &str, line: u64, column: u64) -> Option<usize> {
    if line == 0 || column == 0 {
        return None;
    }
    let before: usize = text.split('\n').take(line as usize - 1).map(|l| l.chars().count() + 1).sum();
    Some(before + column as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_ours_comes_back_unchanged() {
        let ours = Error::new(SqlState::DivisionByZero, "division by zero").with_hint("do not");
        let wrapped = DataFusionError::Context("x".into(), Box::new(DataFusionError::External(Box::new(ours.clone()))));
        assert_eq!(from_datafusion_error(wrapped), ours);
        let through_arrow = DataFusionError::ArrowError(
            Box::new(arrow::error::ArrowError::ExternalError(Box::new(ours.clone()))),
            None,
        );
        assert_eq!(from_datafusion_error(through_arrow), ours);
        let shared = std::sync::Arc::new(DataFusionError::External(Box::new(ours.clone())));
        let _held = std::sync::Arc::clone(&shared);
        assert_eq!(from_datafusion_error(DataFusionError::Shared(shared)), ours);
    }

    #[test]
    fn casts_are_told_as_postgres_tells_them() {
        let text = "Cannot cast string 'ab'c' to value of Int32 type";
        let e = from_arrow(arrow::error::ArrowError::CastError(text.into()));
        assert_eq!(e.state(), SqlState::InvalidTextRepresentation);
        assert_eq!(e.message(), "invalid input syntax for type integer: \"ab'c\"");
        let e = from_arrow(arrow::error::ArrowError::CastError("Can't cast value 300 to type Int8".into()));
        assert_eq!(e.state(), SqlState::NumericValueOutOfRange);
    }

    #[test]
    fn positions_count_characters_over_lines() {
        assert_eq!(position("select\n  é, x", 2, 6), Some(13));
        assert_eq!(position("select", 0, 0), None);
    }

    #[test]
    fn sentences_start_in_lower_case_except_names() {
        assert_eq!(sentence("Cannot do this.\nmore"), "cannot do this");
        assert_eq!(sentence("UNION is odd"), "UNION is odd");
    }
}
