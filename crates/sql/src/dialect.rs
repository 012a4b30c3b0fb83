//! The dialect that sqlparser sees: PostgreSQL's, under its own type so that there is one place for our differences.

use std::any::TypeId;
use std::cell::Cell;

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr};
use datafusion::sql::sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use datafusion::sql::sqlparser::keywords::{Keyword, RESERVED_FOR_COLUMN_ALIAS, RESERVED_FOR_TABLE_ALIAS};
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;

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

impl MillstreamDialect {
    /// The bounds after `BETWEEN SYMMETRIC`, in either order.
    fn between_symmetric(&self, parser: &mut Parser, expr: Box<Expr>, negated: bool) -> Result<Expr, ParserError> {
        let precedence = self.prec_value(Precedence::Between);
        let low = Box::new(parser.parse_subexpr(precedence)?);
        parser.expect_keyword(Keyword::AND)?;
        let high = Box::new(parser.parse_subexpr(precedence)?);
        let one = Expr::Between { expr: expr.clone(), negated, low: low.clone(), high: high.clone() };
        let other = Expr::Between { expr, negated, low: high, high: low };
        let op = if negated { BinaryOperator::And } else { BinaryOperator::Or };
        Ok(Expr::Nested(Box::new(Expr::BinaryOp { left: Box::new(one), op, right: Box::new(other) })))
    }
}

/// Whether the word just read is EMIT before `ON WINDOW CLOSE`.
fn begins_emit_clause(parser: &Parser) -> bool {
    let word = |token: &Token, wanted: &str| matches!(token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(wanted));
    word(&parser.get_current_token().token, "emit")
        && ["on", "window", "close"].iter().enumerate().all(|(n, w)| word(&parser.peek_nth_token_ref(n).token, w))
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

    /// `IS [NOT] DISTINCT FROM`, whose right side sqlparser reads up to the end of the condition, and `BETWEEN SYMMETRIC`,
    /// which it does not know.
    fn parse_infix(&self, parser: &mut Parser, left: &Expr, _: u8) -> Option<Result<Expr, ParserError>> {
        let keyword = |n: usize| match &parser.peek_nth_token_ref(n).token {
            Token::Word(w) if w.quote_style.is_none() => w.keyword,
            _ => Keyword::NoKeyword,
        };
        let negated = keyword(usize::from(keyword(0) == Keyword::IS)) == Keyword::NOT;
        let at = usize::from(negated);
        let words =
            if keyword(0) == Keyword::IS && (keyword(1 + at), keyword(2 + at)) == (Keyword::DISTINCT, Keyword::FROM) {
                3 + at
            } else if (keyword(at), keyword(1 + at)) == (Keyword::BETWEEN, Keyword::SYMMETRIC) {
                2 + at
            } else {
                return None;
            };
        let distinct = keyword(0) == Keyword::IS;
        for _ in 0..words {
            parser.next_token();
        }
        let left = Box::new(left.clone());
        Some(if distinct {
            parser.parse_subexpr(self.prec_value(Precedence::Is)).map(|right| match negated {
                false => Expr::IsDistinctFrom(left, Box::new(right)),
                true => Expr::IsNotDistinctFrom(left, Box::new(right)),
            })
        } else {
            self.between_symmetric(parser, left, negated)
        })
    }

    /// Words that Postgres takes for an alias only after AS.
    fn is_table_alias(&self, kw: &Keyword, parser: &mut Parser) -> bool {
        if begins_emit_clause(parser) {
            return false;
        }
        // Words that only other dialects reserve.
        !RESERVED_FOR_TABLE_ALIAS.contains(kw)
            || matches!(
                kw,
                Keyword::TOP
                    | Keyword::SORT
                    | Keyword::VIEW
                    | Keyword::MINUS
                    | Keyword::CLUSTER
                    | Keyword::DISTRIBUTE
                    | Keyword::GLOBAL
                    | Keyword::ANTI
                    | Keyword::SEMI
                    | Keyword::OUTPUT
                    | Keyword::PIVOT
                    | Keyword::UNPIVOT
                    | Keyword::QUALIFY
                    | Keyword::PREWHERE
                    | Keyword::SETTINGS
                    | Keyword::FORMAT
                    | Keyword::START
                    | Keyword::SAMPLE
                    | Keyword::MATCH_CONDITION
                    | Keyword::MATCH_RECOGNIZE
            )
    }

    fn is_column_alias(&self, kw: &Keyword, parser: &mut Parser) -> bool {
        !RESERVED_FOR_COLUMN_ALIAS.contains(kw)
            && !begins_emit_clause(parser)
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
