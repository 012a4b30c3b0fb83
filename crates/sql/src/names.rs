//! Identifiers: folding, quoting, and where they stand in the text.

use datafusion::sql::sqlparser::ast::{Ident, ObjectName};
use datafusion::sql::sqlparser::keywords::{
    ALL_KEYWORDS, ALL_KEYWORDS_INDEX, RESERVED_FOR_COLUMN_ALIAS, RESERVED_FOR_TABLE_ALIAS,
};
use datafusion::sql::sqlparser::tokenizer::Location;
use flow::{Error, Result, SqlState};

use crate::statement::Name;

/// Folds an identifier as Postgres does: lower case unless quoted.
pub fn fold(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// The identifier as it can be written in a statement: quoted if it would fold, is not an identifier, or is reserved.
pub fn quote(name: &str) -> String {
    let plain = name.chars().next().is_some_and(|c| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !is_reserved(name);
    if plain { name.to_string() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn is_reserved(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    match ALL_KEYWORDS.binary_search(&upper.as_str()) {
        Ok(i) => {
            let keyword = ALL_KEYWORDS_INDEX[i];
            RESERVED_FOR_COLUMN_ALIAS.contains(&keyword)
                || RESERVED_FOR_TABLE_ALIAS.contains(&keyword)
                || flow::identifier::RESERVED_WORDS.binary_search(&name).is_ok()
        }
        Err(_) => false,
    }
}

/// Text with the positions of its lines, to turn the parser's line and column into Postgres' character offset.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    pub text: &'a str,
    /// Byte offset of the start of each line.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    pub fn new(text: &'a str) -> Source<'a> {
        let mut lines = vec![0];
        lines.extend(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1));
        Source { text, lines }
    }

    /// Byte offset of a location; the end of the text for a location beyond it.
    pub fn byte(&self, at: Location) -> usize {
        if at.line == 0 {
            return 0;
        }
        let Some(start) = self.lines.get(at.line as usize - 1).copied() else {
            return self.text.len();
        };
        let column = (at.column as usize).saturating_sub(1);
        match self.text[start..].char_indices().nth(column) {
            Some((i, _)) => start + i,
            None => self.text.len(),
        }
    }

    /// 1-based character offset of a location.
    pub fn position(&self, at: Location) -> usize {
        self.character(self.byte(at)) + 1
    }

    /// 0-based character offset of a byte offset.
    pub fn character(&self, byte: usize) -> usize {
        self.text[..byte].chars().count()
    }
}

/// The parts of an object name, folded.
pub fn parts(name: &ObjectName) -> Result<Vec<String>> {
    name.0
        .iter()
        .map(|part| {
            part.as_ident()
                .map(fold)
                .ok_or_else(|| Error::new(SqlState::SyntaxError, format!("\"{name}\" is not a name")))
        })
        .collect()
}

/// A relation's name with its position.
pub fn relation_name(name: &ObjectName, source: &Source<'_>) -> Result<Name> {
    let position = start_of(name).map_or(0, |at| source.position(at));
    let mut parts = parts(name)?.into_iter().rev();
    let result =
        Name { name: parts.next().unwrap_or_default(), schema: parts.next(), database: parts.next(), position };
    if parts.next().is_some() || result.name.is_empty() {
        return Err(Error::new(
            SqlState::SyntaxError,
            format!("improper qualified name (too many dotted names): {name}"),
        )
        .with_position(position.max(1)));
    }
    Ok(result)
}

/// Where the first part of a name stands, if the tree came from text.
pub fn start_of(name: &ObjectName) -> Option<Location> {
    let ident = name.0.first()?.as_ident()?;
    (ident.span.start.line > 0).then_some(ident.span.start)
}

/// The candidate that is closest to a misspelt `name`, if one is close enough to be meant.
pub fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .filter(|c| *c != name)
        .map(|c| (datafusion::common::utils::datafusion_strsim::levenshtein(name, c), c))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_only_where_needed() {
        assert_eq!(quote("orders"), "orders");
        assert_eq!(quote("Orders"), "\"Orders\"");
        assert_eq!(quote("order"), "\"order\"");
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote("1st"), "\"1st\"");
        assert_eq!(quote(""), "\"\"");
    }

    #[test]
    fn positions_count_characters_not_bytes() {
        let source = Source::new("a\nñé x");
        assert_eq!(source.position(Location { line: 2, column: 4 }), 6);
        assert_eq!(source.position(Location { line: 9, column: 1 }), 7);
    }

    #[test]
    fn a_near_name_is_suggested_and_a_far_one_is_not() {
        assert_eq!(closest("custmer", ["customer", "orders"]), Some("customer"));
        assert_eq!(closest("x", ["customer", "orders"]), None);
    }
}
