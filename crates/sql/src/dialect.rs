//! The dialect that sqlparser sees: PostgreSQL's, under its own type so that there is one place for our differences.

use std::any::TypeId;

use datafusion::sql::sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};

/// PostgreSQL's grammar. sqlparser asks `dialect_of!(self is PostgreSqlDialect)` in many places; [`Dialect::dialect`]
/// answers with that type, and every method that `PostgreSqlDialect` overrides is passed on.
#[derive(Debug, Default)]
pub struct MillstreamDialect(PostgreSqlDialect);

macro_rules! as_in_postgres {
    ($($method:ident),* $(,)?) => { $(fn $method(&self) -> bool { self.0.$method() })* };
}

impl Dialect for MillstreamDialect {
    fn dialect(&self) -> TypeId {
        TypeId::of::<PostgreSqlDialect>()
    }

    fn identifier_quote_style(&self, identifier: &str) -> Option<char> {
        self.0.identifier_quote_style(identifier)
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        self.0.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        self.0.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.0.is_identifier_part(ch)
    }

    fn is_reserved_for_identifier(&self, kw: Keyword) -> bool {
        self.0.is_reserved_for_identifier(kw)
    }

    fn is_custom_operator_part(&self, ch: char) -> bool {
        self.0.is_custom_operator_part(ch)
    }

    fn get_next_precedence(&self, parser: &Parser) -> Option<Result<u8, ParserError>> {
        self.0.get_next_precedence(parser)
    }

    fn prec_value(&self, prec: Precedence) -> u8 {
        self.0.prec_value(prec)
    }

    as_in_postgres! {
        supports_unicode_string_literal, supports_filter_during_aggregation, supports_group_by_expr, allow_extract_custom,
        allow_extract_single_quotes, supports_create_index_with_clause, supports_explain_with_utility_options,
        supports_listen_notify, supports_factorial_operator, supports_bitwise_shift_operators, supports_comment_on,
        supports_load_extension, supports_named_fn_args_with_colon_operator, supports_named_fn_args_with_expr_name,
        supports_empty_projections, supports_nested_comments, supports_string_escape_constant,
        supports_numeric_literal_underscores, supports_array_typedef_with_brackets, supports_geometric_types,
        supports_set_names, supports_alter_column_type_using, supports_notnull_operator, supports_interval_options,
        supports_insert_table_alias, supports_create_table_like_parenthesized, supports_select_wildcard_with_alias,
        supports_comma_separated_trim, supports_xml_expressions,
    }

    /// `/*+ … */` is a comment here.
    fn supports_comment_optimizer_hint(&self) -> bool {
        false
    }
}
