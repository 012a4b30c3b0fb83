//! How large and how deep a statement may be. Checked on the tokens, before any recursive code sees them.
//!
//! Every recursive walk of this crate, of sqlparser and of DataFusion over a statement that passed [`check_tokens`] fits
//! into [`STACK_BYTES`]; [`with_large_stack`] provides such a stack.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan};
use flow::{Error, Result, SqlState};

use crate::names::Source;

/// Limits of one text. The defaults suit a server; a test may set smaller ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one text, which may hold several statements.
    pub text_bytes_max: usize,
    /// Tokens of one text, white space aside.
    pub tokens_max: usize,
    /// Parentheses, brackets and CASEs inside one another.
    pub nesting_max: usize,
    /// Operators at one level of nesting, commas aside: `1 + 1 + …`. They make a tree as deep as there are operators.
    pub chain_max: usize,
    /// Relations in one FROM, and set operations in one statement.
    pub relations_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            text_bytes_max: TEXT_BYTES_MAX,
            tokens_max: TOKENS_MAX,
            nesting_max: NESTING_MAX,
            chain_max: CHAIN_MAX,
            relations_max: RELATIONS_MAX,
        }
    }
}

pub const TEXT_BYTES_MAX: usize = 16 << 20;
pub const TOKENS_MAX: usize = 2_000_000;
pub const NESTING_MAX: usize = 200;
pub const CHAIN_MAX: usize = 5_000;
pub const RELATIONS_MAX: usize = 500;

/// Levels of an expression in a plan, after constants are folded, AND and OR are balanced and chains are one call. Execution
/// recurses as deep, on the ordinary stacks of its threads, and the time of planning grows with the cube.
pub const EXPRESSION_DEPTH_MAX: usize = 200;

/// Stack of [`with_large_stack`], in bytes. Only touched pages cost memory.
pub const STACK_BYTES: usize = 512 << 20;

/// Runs `work` with a stack of [`STACK_BYTES`], on this thread. Parsing, planning, optimising and *dropping* the results
/// recurse as deep as the statement, so all of them belong inside. A call inside a call costs nothing.
pub fn with_large_stack<R>(work: impl FnOnce() -> R) -> R {
    stacker::maybe_grow(STACK_BYTES / 2, STACK_BYTES, work)
}

/// Refuses a text that is too long: `54000`.
pub fn check_text(text: &str, limits: &Limits) -> Result<()> {
    if text.len() > limits.text_bytes_max {
        return Err(Error::new(SqlState::ProgramLimitExceeded, "statement text is too long")
            .with_detail(format!("The text has {} bytes; the limit is {}.", text.len(), limits.text_bytes_max))
            .with_hint("Split the statement, or load rows with COPY … FROM STDIN."));
    }
    Ok(())
}

/// Refuses tokens that would make a tree too deep or too large: `54001`.
pub fn check_tokens(tokens: &[TokenWithSpan], source: &Source<'_>, limits: &Limits) -> Result<()> {
    // One counter of operators per open level. A comma or a keyword that starts a clause begins a new chain; in FROM a
    // comma is a join.
    let mut chains: Vec<Chain> = vec![Chain::default()];
    let mut set_operations = 0usize;
    let mut unary = 0usize;
    let mut count = 0usize;
    for token in tokens {
        let at = token.span.start;
        if matches!(token.token, Token::Whitespace(_)) {
            continue;
        }
        count += 1;
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => open(&mut chains, at, source, limits)?,
            Token::RParen | Token::RBracket | Token::RBrace => close(&mut chains),
            Token::SemiColon => {
                chains.clear();
                chains.push(Chain::default());
                set_operations = 0;
            }
            Token::Comma if chains.last().is_some_and(|c| c.in_from) => relation(&mut chains, at, source, limits)?,
            Token::Comma => reset(&mut chains, false),
            Token::Word(w) => match w.keyword {
                Keyword::CASE => open(&mut chains, at, source, limits)?,
                Keyword::END if chains.len() > 1 => close(&mut chains),
                Keyword::FROM => reset(&mut chains, true),
                Keyword::SELECT
                | Keyword::WHERE
                | Keyword::HAVING
                | Keyword::GROUP
                | Keyword::ORDER
                | Keyword::WHEN
                | Keyword::THEN
                | Keyword::ELSE => reset(&mut chains, false),
                Keyword::JOIN => relation(&mut chains, at, source, limits)?,
                Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT => {
                    set_operations += 1;
                    if set_operations > limits.relations_max {
                        return Err(too_complex("set operations", limits.relations_max, at, source));
                    }
                }
                Keyword::AND | Keyword::OR | Keyword::NOT | Keyword::LIKE | Keyword::ILIKE | Keyword::IS => {
                    link(&mut chains, at, source, limits)?
                }
                _ => {}
            },
            Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::EscapedStringLiteral(_)
            | Token::Placeholder(_)
            | Token::Period => {}
            _ => link(&mut chains, at, source, limits)?,
        }
        // `- - - 1` and `NOT NOT x` nest like parentheses.
        let prefix = match &token.token {
            Token::Minus | Token::Plus | Token::Tilde => true,
            Token::Word(w) => matches!(w.keyword, Keyword::NOT | Keyword::EXPLAIN | Keyword::PREPARE),
            _ => false,
        };
        unary = if prefix { unary + 1 } else { 0 };
        if unary > limits.nesting_max {
            return Err(too_complex("operators in a row", limits.nesting_max, at, source));
        }
    }
    if count > limits.tokens_max {
        return Err(Error::new(SqlState::ProgramLimitExceeded, "statement has too many tokens")
            .with_detail(format!("The text has {count} tokens; the limit is {}.", limits.tokens_max))
            .with_hint("Split the statement, or load rows with COPY … FROM STDIN."));
    }
    Ok(())
}

/// One open level of nesting.
#[derive(Clone, Copy, Default)]
struct Chain {
    operators: usize,
    relations: usize,
    in_from: bool,
}

fn open(chains: &mut Vec<Chain>, at: Location, source: &Source<'_>, limits: &Limits) -> Result<()> {
    chains.push(Chain::default());
    if chains.len() > limits.nesting_max + 1 {
        return Err(too_complex("levels of nesting", limits.nesting_max, at, source));
    }
    Ok(())
}

fn close(chains: &mut Vec<Chain>) {
    if chains.len() > 1 {
        chains.pop();
    }
}

fn reset(chains: &mut [Chain], in_from: bool) {
    if let Some(chain) = chains.last_mut() {
        *chain = Chain { operators: 0, relations: 0, in_from };
    }
}

fn relation(chains: &mut [Chain], at: Location, source: &Source<'_>, limits: &Limits) -> Result<()> {
    if let Some(chain) = chains.last_mut() {
        chain.relations += 1;
        if chain.relations >= limits.relations_max {
            return Err(too_complex("relations in one FROM", limits.relations_max, at, source));
        }
    }
    Ok(())
}

fn link(chains: &mut [Chain], at: Location, source: &Source<'_>, limits: &Limits) -> Result<()> {
    if let Some(chain) = chains.last_mut() {
        chain.operators += 1;
        if chain.operators > limits.chain_max {
            return Err(too_complex("operators in one expression", limits.chain_max, at, source)
                .with_hint("Use IN (…) or a join with VALUES instead of a long chain of operators."));
        }
    }
    Ok(())
}

fn too_complex(what: &str, limit: usize, at: Location, source: &Source<'_>) -> Error {
    Error::new(SqlState::StatementTooComplex, "statement is too complex")
        .with_detail(format!("It has more than {limit} {what}."))
        .with_position(source.position(at))
}
