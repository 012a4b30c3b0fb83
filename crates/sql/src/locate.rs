//! Positions for errors that came without one: the first token that is the name the error is about.

use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use flow::{Error, SqlState};

use crate::dialect::MillstreamDialect;
use crate::names::{Source, fold};

/// `error` with the position of the identifier that its message names, if it has none and the text holds the identifier.
pub(crate) fn complete(error: Error, source: &Source<'_>) -> Error {
    if error.position().is_some() {
        return error;
    }
    let names_something = matches!(
        error.state(),
        SqlState::UndefinedColumn
            | SqlState::UndefinedTable
            | SqlState::UndefinedFunction
            | SqlState::AmbiguousColumn
            | SqlState::GroupingError
            | SqlState::DuplicateColumn
            | SqlState::WrongObjectType
            | SqlState::InvalidTextRepresentation
    );
    if !names_something {
        return error;
    }
    if let Some(rest) = error.message().strip_prefix("operator does not exist: ") {
        // The sign stands between the types, or before the one.
        let sign = rest.split(' ').find(|w| !w.is_empty() && w.chars().all(|c| "+-*/<>=~!@#%^&|?".contains(c)));
        return match sign.and_then(|sign| find_sign(source, sign)) {
            Some(position) => error.with_position(position),
            None => error,
        };
    }
    let Some(name) = subject(error.message()) else { return error };
    match find(source, name) {
        Some(position) => error.with_position(position),
        None => error,
    }
}

/// An error of a view's own definition: its position would point into a text that the user does not see.
pub(crate) fn inside_view(error: Error) -> Error {
    let mut bare = Error::new(error.state(), error.message());
    if let Some(detail) = error.detail() {
        bare = bare.with_detail(detail);
    }
    if let Some(hint) = error.hint() {
        bare = bare.with_hint(hint);
    }
    bare
}

/// The identifier that a message is about: what is quoted, or what follows `column`, `relation` or `function`.
fn subject(message: &str) -> Option<&str> {
    let raw = if let Some((_, rest)) = message.split_once('"') {
        rest.split_once('"').map(|(name, _)| name)?
    } else {
        let (_, rest) = ["column ", "relation ", "function ", "operator does not exist: "]
            .iter()
            .find_map(|word| message.split_once(word))?;
        rest.split([' ', '(']).next()?
    };
    let last = raw.rsplit('.').next().unwrap_or(raw);
    (!last.is_empty()).then_some(last)
}

/// 1-based position of the first operator with this sign, if it is the only one.
fn find_sign(source: &Source<'_>, sign: &str) -> Option<usize> {
    let dialect = MillstreamDialect::default();
    let tokens = Tokenizer::new(&dialect, source.text).tokenize_with_location().ok()?;
    let is_sign = |t: &Token| {
        let written = t.to_string();
        written == sign || sign == "<>" && written == "!="
    };
    let mut found = tokens.iter().filter(|t| is_sign(&t.token));
    let first = found.next()?;
    found.next().is_none().then(|| source.position(first.span.start))
}

/// 1-based position of the first identifier or string that is `name`.
fn find(source: &Source<'_>, name: &str) -> Option<usize> {
    let dialect = MillstreamDialect::default();
    let tokens = Tokenizer::new(&dialect, source.text).tokenize_with_location().ok()?;
    let found = tokens.iter().find(|t| match &t.token {
        Token::Word(w) => {
            fold(&datafusion::sql::sqlparser::ast::Ident {
                value: w.value.clone(),
                quote_style: w.quote_style,
                span: t.span,
            }) == name
        }
        Token::SingleQuotedString(s) => s == name,
        _ => false,
    })?;
    Some(source.position(found.span.start))
}
