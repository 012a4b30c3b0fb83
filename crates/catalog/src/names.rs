//! Identifiers: their limits, their quoting, and the nearest name to a mistyped one.

use std::borrow::Cow;

use flow::{Error, Result, SqlState};

/// Longest identifier in bytes; longer ones are cut, as PostgreSQL does.
pub const MAX_IDENTIFIER_BYTES: usize = 63;

/// Most columns that a table, view or sink may have.
pub const MAX_COLUMNS: usize = 1600;

/// Most columns of a primary key.
pub const MAX_PRIMARY_KEY_COLUMNS: usize = 32;

/// Most relations of one server.
pub const MAX_RELATIONS: usize = 100_000;

/// Schemas whose content Millstream makes itself; no user object lives there.
pub const VIRTUAL_SCHEMAS: [&str; 3] = ["pg_catalog", "information_schema", "ms_catalog"];

/// System columns of PostgreSQL's tables, which no user column may be called.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// `name` cut to [`MAX_IDENTIFIER_BYTES`] at a character boundary.
pub fn truncate_identifier(name: &str) -> &str {
    if name.len() <= MAX_IDENTIFIER_BYTES {
        return name;
    }
    let mut end = MAX_IDENTIFIER_BYTES;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// An identifier that can be stored: not empty, without NUL, cut to the limit.
pub(crate) fn checked_identifier(name: &str) -> Result<String> {
    if name.is_empty() {
        return Err(Error::new(SqlState::SyntaxError, "zero-length delimited identifier"));
    }
    if name.contains('\0') {
        return Err(Error::new(SqlState::InvalidName, "identifier must not contain a null character"));
    }
    Ok(truncate_identifier(name).to_string())
}

pub(crate) fn is_system_column(name: &str) -> bool {
    SYSTEM_COLUMNS.contains(&name)
}

/// Whether `name` is one of the schemas that Millstream fills itself (or PostgreSQL's reserved `pg_…`).
pub fn is_system_schema(name: &str) -> bool {
    VIRTUAL_SCHEMAS.contains(&name) || name.starts_with("pg_")
}

/// `name` as SQL must write it: quoted when it has upper-case or odd characters or is a reserved word.
pub fn quote_identifier(name: &str) -> Cow<'_, str> {
    let mut bytes = name.bytes();
    let plain = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if plain && RESERVED_WORDS.binary_search(&name).is_err() {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(format!("\"{}\"", name.replace('"', "\"\"")))
    }
}

/// PostgreSQL's reserved words, sorted.
pub fn reserved_words() -> &'static [&'static str] {
    RESERVED_WORDS
}

/// `text` as an SQL string constant.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// PostgreSQL's reserved words (and those that cannot name a column or type unquoted), sorted.
const RESERVED_WORDS: &[&str] = &[
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "authorization",
    "between",
    "bigint",
    "binary",
    "bit",
    "boolean",
    "both",
    "case",
    "cast",
    "char",
    "character",
    "check",
    "coalesce",
    "collate",
    "collation",
    "column",
    "concurrently",
    "constraint",
    "create",
    "cross",
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "dec",
    "decimal",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "exists",
    "extract",
    "false",
    "fetch",
    "float",
    "for",
    "foreign",
    "freeze",
    "from",
    "full",
    "grant",
    "greatest",
    "group",
    "grouping",
    "having",
    "ilike",
    "in",
    "initially",
    "inner",
    "inout",
    "int",
    "integer",
    "intersect",
    "interval",
    "into",
    "is",
    "isnull",
    "join",
    "lateral",
    "leading",
    "least",
    "left",
    "like",
    "limit",
    "localtime",
    "localtimestamp",
    "national",
    "natural",
    "nchar",
    "none",
    "normalize",
    "not",
    "notnull",
    "null",
    "nullif",
    "numeric",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "out",
    "outer",
    "overlaps",
    "overlay",
    "placing",
    "position",
    "precision",
    "primary",
    "real",
    "references",
    "returning",
    "right",
    "row",
    "select",
    "session_user",
    "setof",
    "similar",
    "smallint",
    "some",
    "substring",
    "symmetric",
    "system_user",
    "table",
    "tablesample",
    "then",
    "time",
    "timestamp",
    "to",
    "trailing",
    "treat",
    "trim",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "values",
    "varchar",
    "variadic",
    "verbose",
    "when",
    "where",
    "window",
    "with",
    "xmlattributes",
    "xmlconcat",
    "xmlelement",
    "xmlexists",
    "xmlforest",
    "xmlnamespaces",
    "xmlparse",
    "xmlpi",
    "xmlroot",
    "xmlserialize",
    "xmltable",
];

/// The candidate nearest to `wanted`, if one is near enough to be what was meant.
///
/// Near enough: at most a third of the characters changed (transpositions count one), and at least one change allowed.
pub fn nearest<'a>(wanted: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted: Vec<char> = wanted.chars().take(MAX_IDENTIFIER_BYTES).flat_map(char::to_lowercase).collect();
    let limit = (wanted.len() / 3).clamp(1, 3);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let chars: Vec<char> = candidate.chars().flat_map(char::to_lowercase).collect();
        if chars.len().abs_diff(wanted.len()) > limit {
            continue;
        }
        let distance = edit_distance(&wanted, &chars);
        // Ties go to the name first in the alphabet, so that the hint does not depend on the order of a hash map.
        if distance <= limit && best.is_none_or(|b| (distance, candidate) < b) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, name)| name)
}

/// Damerau's distance with adjacent transpositions ("optimal string alignment").
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for j in 0..b.len() {
            let mut cost = (previous[j] + usize::from(a[i] != b[j])).min(previous[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                cost = cost.min(before[j - 1] + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut previous, row);
    }
    previous[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_only_where_sql_needs_it() {
        assert!(RESERVED_WORDS.is_sorted());
        for (name, expected) in [
            ("orders", "orders"),
            ("_x1", "_x1"),
            ("1x", "\"1x\""),
            ("Order", "\"Order\""),
            ("select", "\"select\""),
            ("a\"b", "\"a\"\"b\""),
            ("", "\"\""),
        ] {
            assert_eq!(quote_identifier(name), expected);
        }
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\b"), "E'a\\\\b'");
    }

    #[test]
    fn long_names_are_cut_at_a_character() {
        let name = "ä".repeat(40);
        assert_eq!(truncate_identifier(&name).len(), 62);
        assert_eq!(truncate_identifier("short"), "short");
    }

    #[test]
    fn the_nearest_name_is_found_and_far_ones_are_not() {
        let names = ["orders", "order_lines", "customers"];
        assert_eq!(nearest("oders", names), Some("orders"));
        assert_eq!(nearest("odrers", names), Some("orders"));
        assert_eq!(nearest("Customer", names), Some("customers"));
        assert_eq!(nearest("payments", names), None);
    }
}
