//! The dialect that sqlparser sees: PostgreSQL's, under its own type so that there is one place for our differences.

use std::any::TypeId;
use std::cell::Cell;

use datafusion::sql::sqlparser::ast::Expr;
use datafusion::sql::sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use datafusion::sql::sqlparser::keywords::{Keyword, RESERVED_FOR_COLUMN_ALIAS};
use datafusion::sql::sqlparser::parser::{Parser, ParserError};

/// PostgreSQL's grammar. sqlparser asks `dialect_of!(self is PostgreSqlDialect)` in many places; [`Dialect::dialect`]
/// answers with that type, and every method that `PostgreSqlDialect` overrides is passed on.
///
/// It also counts the parser's steps. sqlparser tries some constructs twice, which takes exponential time on nested ones
/// that are wrong (`cast(cast(cast(…`); beyond the allowance the parse ends as too complex.
#[derive(Debug)]
pub struct MillstreamDialect {
    postgres: PostgreSqlDialect,
    steps_left: Cell<u64>,
}

/// Steps for each token of the text, and for any text.
const STEPS_PER_TOKEN: u64 = 50;
const STEPS_MIN: u64 = 100_000;

impl Default for MillstreamDialect {
    fn default() -> MillstreamDialect {
        MillstreamDialect { postgres: PostgreSqlDialect {}, steps_left: Cell::new(STEPS_MIN) }
    }
}

impl MillstreamDialect {
    /// Allows as many steps as parsing `tokens` can need.
    pub fn allow(&self, tokens: usize) {
        self.steps_left.set(STEPS_MIN + STEPS_PER_TOKEN * tokens as u64);
    }
}

macro_rules! as_in_postgres {
    ($($method:ident),* $(,)?) => { $(fn $method(&self) -> bool { self.postgres.$method() })* };
}

impl Dialect for MillstreamDialect {
    fn dialect(&self) -> TypeId {
        TypeId::of::<PostgreSqlDialect>()
    }

    fn identifier_quote_style(&self, identifier: &str) -> Option<char> {
        self.postgres.identifier_quote_style(identifier)
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        self.postgres.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        self.postgres.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.postgres.is_identifier_part(ch)
    }

    fn is_reserved_for_identifier(&self, kw: Keyword) -> bool {
        self.postgres.is_reserved_for_identifier(kw)
    }

    fn is_custom_operator_part(&self, ch: char) -> bool {
        self.postgres.is_custom_operator_part(ch)
    }

    fn get_next_precedence(&self, parser: &Parser) -> Option<Result<u8, ParserError>> {
        self.postgres.get_next_precedence(parser)
    }

    fn prec_value(&self, prec: Precedence) -> u8 {
        self.postgres.prec_value(prec)
    }

    as_in_postgres! {
        supports_unicode_string_literal, supports_filter_during_aggregation, supports_group_by_expr, allow_extract_custom,
        allow_extract_single_quotes, supports_create_index_with_clause, supports_explain_with_utility_options,
        supports_listen_notify, supports_factorial_operator, supports_bitwise_shift_operators, supports_comment_on,
        supports_load_extension, supports_empty_projections, supports_nested_comments, supports_string_escape_constant,
        supports_numeric_literal_underscores, supports_array_typedef_with_brackets, supports_geometric_types,
        supports_set_names, supports_alter_column_type_using, supports_notnull_operator, supports_interval_options,
        supports_insert_table_alias, supports_create_table_like_parenthesized, supports_comma_separated_trim, supports_xml_expressions,
    }

    fn parse_prefix(&self, _: &mut Parser) -> Option<Result<Expr, ParserError>> {
        match self.steps_left.get().checked_sub(1) {
            Some(left) => {
                self.steps_left.set(left);
                None
            }
            None => Some(Err(ParserError::RecursionLimitExceeded)),
        }
    }

    /// Words that Postgres takes for an alias only after AS.
    fn is_column_alias(&self, kw: &Keyword, _: &mut Parser) -> bool {
        !RESERVED_FOR_COLUMN_ALIAS.contains(kw)
            && !matches!(
                kw,
                Keyword::ARRAY
                    | Keyword::CREATE
                    | Keyword::FETCH
                    | Keyword::GRANT
                    | Keyword::INTO
                    | Keyword::ON
                    | Keyword::RETURNING
                    | Keyword::TO
                    | Keyword::WINDOW
                    | Keyword::WITH
                    | Keyword::FOR
            )
    }

    /// `/*+ … */` is a comment here.
    fn supports_comment_optimizer_hint(&self) -> bool {
        false
    }
}
