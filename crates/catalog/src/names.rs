//! Identifiers: their limits, their quoting, and the nearest name to a mistyped one.

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

/// `text` as an SQL string constant.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

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
    fn literals_are_quoted_as_sql_needs_it() {
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
