//! Text to [`Statement`]s.
//!
//! One tokeniser pass, limits checked on the tokens, then one statement after the other: queries and expressions by
//! sqlparser, the statements around them here, by the first words. Errors read as Postgres' do and carry the position of
//! the token at fault.

mod copy;
mod create;
mod dml;
mod drop_alter;
mod explain;
mod session;
mod show;
mod subscribe;

use std::sync::Arc;

use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer};
use flow::{Error, Result, SqlState};

use crate::dialect::MillstreamDialect;
use crate::limits::{Limits, check_text, check_tokens, with_large_stack};
use crate::names::{self, Source};
use crate::statement::{CreateTableAs, Name, Options, Parsed, Statement};
use crate::windows;

/// Guards inside sqlparser against recursion; [`check_tokens`] has refused anything that would reach it.
const PARSER_RECURSION_MAX: usize = 20_000;

/// Parses every statement of `text`. An error in any of them is an error of the whole text, as in Postgres.
///
/// Errors: `42601` for syntax, `0A000` for what Postgres has and Millstream has not, `54000`/`54001` beyond `limits`; all
/// with a 1-based character position into `text`.
pub fn parse(text: &str, limits: &Limits) -> Result<Vec<Parsed>> {
    check_text(text, limits)?;
    with_large_stack(|| {
        let dialect = MillstreamDialect::default();
        let source = Source::new(text);
        let tokens = tokenize(&dialect, &source)?;
        check_tokens(&tokens, &source, limits)?;
        let shared: Arc<str> = Arc::from(text);
        let mut reader = Reader::new(&dialect, tokens, &source);
        reader.check_relations()?;
        let mut statements = Vec::new();
        loop {
            while reader.parser.consume_token(&Token::SemiColon) {}
            if reader.at_end() {
                return Ok(statements);
            }
            statements.push(reader.parsed(&shared)?);
            if !reader.at_end() && !reader.parser.consume_token(&Token::SemiColon) {
                return Err(reader.unexpected());
            }
        }
    })
}

/// Parses one query, such as a stored view definition.
pub fn parse_query(text: &str) -> Result<Box<ast::Query>> {
    sub_parse(text, |reader| reader.query())
}

/// Parses one scalar expression, such as a stored DEFAULT.
pub fn parse_expr(text: &str) -> Result<ast::Expr> {
    sub_parse(text, |reader| reader.expr())
}

fn sub_parse<T>(text: &str, read: impl FnOnce(&mut Reader<'_>) -> Read<T>) -> Result<T> {
    with_large_stack(|| {
        let dialect = MillstreamDialect::default();
        let source = Source::new(text);
        let tokens = tokenize(&dialect, &source)?;
        check_tokens(&tokens, &source, &Limits::default())?;
        let mut reader = Reader::new(&dialect, tokens, &source);
        reader.check_relations()?;
        let value = read(&mut reader).map_err(|e| reader.failure(e))?;
        if reader.at_end() { Ok(value) } else { Err(reader.unexpected()) }
    })
}

fn tokenize(dialect: &MillstreamDialect, source: &Source<'_>) -> Result<Vec<TokenWithSpan>> {
    let tokens = Tokenizer::new(dialect, source.text).tokenize_with_location().map_err(|e| {
        let message = e.message.to_lowercase();
        let start = source.byte(e.location);
        let message = if message.contains("unterminated string") {
            format!("unterminated quoted string at or near \"{}\"", excerpt(&source.text[start..]))
        } else if message.contains("expected close delimiter") {
            format!("unterminated quoted identifier at or near \"{}\"", excerpt(&source.text[start..]))
        } else if message.contains("comment") {
            "unterminated /* comment".to_string()
        } else {
            format!("syntax error: {message}")
        };
        Error::new(SqlState::SyntaxError, message).with_position(source.position(e.location))
    })?;
    let tokens = split_operators(tokens);
    Ok(if windows::may_hold(source.text) { windows::without_table_words(tokens) } else { tokens })
}

/// A query written here, whose positions mean nothing.
pub(crate) fn parse_template(text: &str) -> Result<Box<ast::Query>> {
    let dialect = MillstreamDialect::default();
    let parsed = Parser::new(&dialect).try_with_sql(text).and_then(|mut parser| parser.parse_query());
    parsed.map_err(|e| Error::internal(format!("a query of our own does not parse: {e}")))
}

/// A relation in FROM.
pub(crate) fn table_factor(name: ast::ObjectName) -> Result<ast::TableFactor> {
    let mut query = parse_template("SELECT * FROM t")?;
    let factor = match query.body.as_mut() {
        ast::SetExpr::Select(select) => select.from.pop().map(|from| from.relation),
        _ => None,
    };
    match factor {
        Some(ast::TableFactor::Table {
            alias,
            args,
            with_hints,
            version,
            with_ordinality,
            partitions,
            json_path,
            sample,
            index_hints,
            ..
        }) => Ok(ast::TableFactor::Table {
            name,
            alias,
            args,
            with_hints,
            version,
            with_ordinality,
            partitions,
            json_path,
            sample,
            index_hints,
        }),
        _ => Err(Error::internal("a query of our own does not read a table")),
    }
}

/// Ends operators where Postgres ends them: one does not end in `+` or `-` unless it also holds one of ``~ ! @ # % ^ & | ` ?``.
/// So `>=-1` is `>= -1`.
fn split_operators(tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let whole = |t: &Token| match t {
        Token::CustomBinaryOperator(sign) => {
            !sign.ends_with(['+', '-']) || sign.contains(['~', '!', '@', '#', '%', '^', '&', '|', '`', '?'])
        }
        _ => true,
    };
    if tokens.iter().all(|t| whole(&t.token)) {
        return tokens;
    }
    let mut out = Vec::with_capacity(tokens.len() + 4);
    for token in tokens {
        let Token::CustomBinaryOperator(sign) = &token.token else {
            out.push(token);
            continue;
        };
        if whole(&token.token) {
            out.push(token);
            continue;
        }
        let front = sign.trim_end_matches(['+', '-']);
        // An operator of signs alone keeps its first one.
        let (front, signs) = if front.is_empty() { sign.split_at(1) } else { sign.split_at(front.len()) };
        let first = match front {
            "=" => Token::Eq,
            "<" => Token::Lt,
            ">" => Token::Gt,
            "<=" => Token::LtEq,
            ">=" => Token::GtEq,
            "<>" => Token::Neq,
            "*" => Token::Mul,
            "/" => Token::Div,
            "+" => Token::Plus,
            "-" => Token::Minus,
            other => Token::CustomBinaryOperator(other.to_string()),
        };
        let mut at = token.span.start;
        let mut push = |token: Token, length: usize| {
            let end = Location { line: at.line, column: at.column + length as u64 };
            out.push(TokenWithSpan { token, span: Span { start: at, end } });
            at = end;
        };
        push(first, front.len());
        for sign in signs.chars() {
            push(if sign == '+' { Token::Plus } else { Token::Minus }, 1);
        }
    }
    out
}

/// The first characters of a text, for an error message.
fn excerpt(text: &str) -> String {
    text.chars().take(40).collect()
}

/// What stops the reading of a statement: a syntax error of sqlparser's, to be put into Postgres' words, or one of ours.
#[derive(Debug)]
pub(crate) enum Failure {
    Syntax(ParserError),
    Error(Error),
}

pub(crate) type Read<T> = std::result::Result<T, Failure>;

impl From<ParserError> for Failure {
    fn from(e: ParserError) -> Failure {
        Failure::Syntax(e)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Error(e)
    }
}

/// Reads one text's tokens from the front.
pub(crate) struct Reader<'a> {
    dialect: &'a MillstreamDialect,
    pub parser: Parser<'a>,
    pub source: &'a Source<'a>,
    /// Byte offset at which the tokens end: the text's end, or less for a part of it.
    end: usize,
}

impl<'a> Reader<'a> {
    fn new(dialect: &'a MillstreamDialect, tokens: Vec<TokenWithSpan>, source: &'a Source<'a>) -> Reader<'a> {
        dialect.allow(tokens.len());
        let parser = Parser::new(dialect).with_recursion_limit(PARSER_RECURSION_MAX).with_tokens_with_locations(tokens);
        Reader { dialect, parser, source, end: source.text.len() }
    }

    /// sqlparser takes any word for a relation's name, so that `FROM WHERE` reads a table called `where`.
    fn check_relations(&self) -> Result<()> {
        let mut after_from = false;
        for i in 0.. {
            let token = self.parser.token_at(i);
            match &token.token {
                Token::EOF => break,
                Token::Whitespace(_) => continue,
                Token::Word(w) if w.quote_style.is_none() => {
                    let is_clause = matches!(
                        w.keyword,
                        Keyword::WHERE
                            | Keyword::GROUP
                            | Keyword::HAVING
                            | Keyword::ORDER
                            | Keyword::LIMIT
                            | Keyword::OFFSET
                            | Keyword::UNION
                            | Keyword::INTERSECT
                            | Keyword::EXCEPT
                            | Keyword::ON
                            | Keyword::FROM
                            | Keyword::JOIN
                            | Keyword::AND
                            | Keyword::OR
                    );
                    if after_from && is_clause {
                        return Err(self.error_at(token));
                    }
                    after_from = matches!(w.keyword, Keyword::FROM | Keyword::JOIN);
                }
                _ => after_from = false,
            }
        }
        Ok(())
    }

    /// Reads one statement with its text.
    fn parsed(&mut self, shared: &Arc<str>) -> Result<Parsed> {
        let start = self.byte();
        let statement = self.statement(shared).map_err(|e| self.failure(e))?;
        let text = self.text_from(start);
        Ok(Parsed { statement, text, position: self.source.character(start), source: Arc::clone(shared) })
    }

    /// Reads one statement, by its first word.
    fn statement(&mut self, shared: &Arc<str>) -> Read<Statement> {
        let token = self.parser.peek_token_ref().clone();
        let Token::Word(word) = &token.token else {
            return match token.token {
                Token::LParen => self.select(),
                _ => self.fail(),
            };
        };
        if word.quote_style.is_some() {
            return self.fail();
        }
        match word.value.to_ascii_uppercase().as_str() {
            "SELECT" | "VALUES" | "TABLE" => self.select(),
            "WITH" => self.with(),
            "INSERT" => self.insert(),
            "UPDATE" => self.update(),
            "DELETE" => self.delete(),
            "TRUNCATE" => self.truncate(),
            "COPY" => self.copy(),
            "CREATE" => self.create(),
            "DROP" => self.drop(),
            "ALTER" => self.alter(),
            "COMMENT" => self.comment(),
            "SHOW" => self.show(),
            "SET" => self.set(),
            "RESET" => self.reset(),
            "FLUSH" => {
                self.parser.next_token();
                Ok(Statement::Flush)
            }
            "CHECKPOINT" => {
                self.parser.next_token();
                Ok(Statement::Checkpoint)
            }
            "EXPLAIN" => self.explain(shared),
            "BEGIN" | "START" => self.begin(),
            "COMMIT" | "END" => self.commit(),
            "ROLLBACK" | "ABORT" => self.rollback(),
            "PREPARE" => self.prepare(shared),
            "EXECUTE" => self.execute(),
            "DEALLOCATE" => self.deallocate(),
            "DISCARD" => self.discard(),
            "DECLARE" => self.declare(),
            "FETCH" | "MOVE" => self.fetch(),
            "CLOSE" => self.close(),
            "GRANT" | "REVOKE" | "REASSIGN" => {
                self.refuse("privileges are not supported", "Everyone who can connect may do everything for now.")
            }
            "SAVEPOINT" => self.savepoint(),
            "RELEASE" => self.release(),
            "UNLISTEN" => self.unlisten(),
            "LISTEN" | "NOTIFY" => self.refuse("LISTEN and NOTIFY are not supported", "Read a view instead."),
            "LOCK" => self.refuse("LOCK is not supported", "Readers never block; remove the statement."),
            "VACUUM" | "ANALYZE" | "ANALYSE" => self.maintain(),
            "REINDEX" | "CLUSTER" => {
                let what = format!("{} is not supported", word.value.to_uppercase());
                self.refuse(&what, "Storage needs no maintenance statements; remove it.")
            }
            "MERGE" => self.refuse("MERGE is not supported", "Use INSERT, UPDATE and DELETE in one transaction."),
            "CALL" | "DO" => self.refuse("procedural code is not supported", "Send the statements from the client."),
            "SUBSCRIBE" => Ok(Statement::Subscribe(self.subscribe()?)),
            "SECURITY" | "IMPORT" | "LOAD" | "REFRESH" => {
                let what = format!("{} is not supported", word.value.to_uppercase());
                self.refuse(&what, "Materialized views are always up to date and need no REFRESH.")
            }
            _ => self.fail(),
        }
    }

    /// A query, or SELECT … INTO.
    fn select(&mut self) -> Read<Statement> {
        let query = self.query()?;
        self.creates_table(query)
    }

    /// SELECT … INTO is CREATE TABLE … AS.
    fn creates_table(&self, mut query: Box<ast::Query>) -> Read<Statement> {
        let ast::SetExpr::Select(select) = query.body.as_mut() else { return Ok(Statement::Query(query)) };
        let Some(into) = select.into.take() else { return Ok(Statement::Query(query)) };
        let name = names::relation_name(&into.name, self.source)?;
        if into.temporary || into.unlogged {
            return Err(Error::unsupported("temporary and unlogged relations are not supported")
                .with_hint("Create a plain table and drop it.")
                .with_position(name.position)
                .into());
        }
        Ok(Statement::CreateTableAs(Box::new(CreateTableAs {
            name,
            if_not_exists: false,
            columns: Vec::new(),
            query,
            with_data: true,
        })))
    }

    // ---- what every statement is made of ----

    pub fn query(&mut self) -> Read<Box<ast::Query>> {
        let at = self.parser.peek_token_ref().span.start;
        let query = self.query_or_change()?;
        if matches!(
            query.body.as_ref(),
            ast::SetExpr::Insert(_) | ast::SetExpr::Update(_) | ast::SetExpr::Delete(_) | ast::SetExpr::Merge(_)
        ) {
            return Err(Error::unsupported("data-modifying statements in WITH are not supported")
                .with_hint("Put the WITH clause into the query of INSERT … SELECT.")
                .with_position(self.source.position(at))
                .into());
        }
        Ok(query)
    }

    /// A query, or a data-modifying statement behind WITH.
    pub(super) fn query_or_change(&mut self) -> Read<Box<ast::Query>> {
        let mut query = self.parser.parse_query()?;
        if windows::may_hold(self.source.text) {
            windows::expand(&mut query, self.source)?;
        }
        Ok(query)
    }

    pub fn expr(&mut self) -> Read<ast::Expr> {
        Ok(self.parser.parse_expr()?)
    }

    /// A relation's name.
    pub fn name(&mut self) -> Read<Name> {
        let name = self.parser.parse_object_name(false)?;
        Ok(names::relation_name(&name, self.source)?)
    }

    /// An identifier, folded, with its 1-based position.
    pub fn ident(&mut self) -> Read<(String, usize)> {
        let at = self.position();
        let ident = self.parser.parse_identifier()?;
        Ok((names::fold(&ident), at))
    }

    /// `(a, b, c)`.
    pub fn ident_list(&mut self) -> Read<Vec<(String, usize)>> {
        self.parser.expect_token(&Token::LParen)?;
        let mut list = vec![self.ident()?];
        while self.parser.consume_token(&Token::Comma) {
            list.push(self.ident()?);
        }
        self.parser.expect_token(&Token::RParen)?;
        Ok(list)
    }

    /// Whether the next token is this unquoted word.
    pub fn peek_word(&self, word: &str) -> bool {
        self.peek_nth_word(0, word)
    }

    pub fn peek_nth_word(&self, n: usize, word: &str) -> bool {
        match &self.parser.peek_nth_token_ref(n).token {
            Token::Word(w) => w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word),
            _ => false,
        }
    }

    /// Consumes these unquoted words if all of them come next.
    pub fn words(&mut self, words: &[&str]) -> bool {
        let all = words.iter().enumerate().all(|(n, word)| self.peek_nth_word(n, word));
        if all {
            for _ in words {
                self.parser.next_token();
            }
        }
        all
    }

    pub fn word(&mut self, word: &str) -> bool {
        self.words(&[word])
    }

    pub fn expect_word(&mut self, word: &str) -> Read<()> {
        if self.word(word) { Ok(()) } else { self.fail() }
    }

    pub fn if_exists(&mut self) -> bool {
        self.words(&["IF", "EXISTS"])
    }

    pub fn if_not_exists(&mut self) -> bool {
        self.words(&["IF", "NOT", "EXISTS"])
    }

    /// `[WITH] (name = value, …)`, the parenthesis not yet consumed.
    pub fn options(&mut self) -> Read<Options> {
        self.parser.expect_token(&Token::LParen)?;
        let mut options = Options::new();
        if self.parser.consume_token(&Token::RParen) {
            return Ok(options);
        }
        loop {
            let at = self.position();
            let mut name = self.option_name()?;
            while self.parser.consume_token(&Token::Period) {
                name = format!("{name}.{}", self.option_name()?);
            }
            let value = if self.parser.consume_token(&Token::Eq) { self.setting_value()? } else { "true".to_string() };
            if options.iter().any(|(n, _)| *n == name) {
                return Err(Error::new(SqlState::SyntaxError, format!("option \"{name}\" is given twice"))
                    .with_position(at)
                    .into());
            }
            options.push((name, value));
            if !self.parser.consume_token(&Token::Comma) {
                break;
            }
        }
        self.parser.expect_token(&Token::RParen)?;
        Ok(options)
    }

    /// An option's name may be any word, also a reserved one, or a string.
    fn option_name(&mut self) -> Read<String> {
        let token = self.parser.next_token();
        match token.token {
            Token::Word(w) if w.quote_style.is_none() => Ok(w.value.to_lowercase()),
            Token::Word(w) => Ok(w.value),
            Token::SingleQuotedString(s) => Ok(s),
            _ => {
                self.parser.prev_token();
                self.fail()
            }
        }
    }

    /// One value of SET or of an option, as text.
    pub fn setting_value(&mut self) -> Read<String> {
        let negative = self.parser.consume_token(&Token::Minus);
        if !negative {
            let _ = self.parser.consume_token(&Token::Plus);
        }
        let token = self.parser.next_token();
        match token.token {
            Token::Number(n, _) => Ok(if negative { format!("-{n}") } else { n }),
            _ if negative => {
                self.parser.prev_token();
                self.fail()
            }
            Token::SingleQuotedString(s) | Token::EscapedStringLiteral(s) => Ok(s),
            Token::DollarQuotedString(s) => Ok(s.value),
            Token::Word(w) if w.quote_style.is_none() => Ok(w.value.to_lowercase()),
            Token::Word(w) => Ok(w.value),
            _ => {
                self.parser.prev_token();
                self.fail()
            }
        }
    }

    pub fn string(&mut self) -> Read<String> {
        let token = self.parser.next_token();
        match token.token {
            Token::SingleQuotedString(s) | Token::EscapedStringLiteral(s) => Ok(s),
            Token::DollarQuotedString(s) => Ok(s.value),
            _ => {
                self.parser.prev_token();
                self.fail()
            }
        }
    }

    /// A query that may be followed by `WITH (…)`, which sqlparser would take for a table hint of its last relation.
    /// Gives the query and its text; what follows it is left unread.
    pub fn query_before_with(&mut self) -> Read<(Box<ast::Query>, String, bool)> {
        let start = self.byte();
        let Some(stop) = self.find_trailing_with() else {
            let query = self.query()?;
            let text = self.text_from(start);
            return Ok((query, text, self.emit_on_close()));
        };
        // Parse the tokens up to WITH on their own, then step over them.
        let first = self.parser.index();
        let tokens: Vec<TokenWithSpan> = (first..stop).map(|i| self.parser.token_at(i).clone()).collect();
        let mut part = Reader::new(self.dialect, tokens, self.source);
        part.end = self.source.byte(self.parser.token_at(stop).span.start);
        let query = match part.query() {
            Ok(query) => query,
            Err(e) => return Err(part.failure(e).into()),
        };
        let text = part.text_from(start);
        let emit_on_close = part.emit_on_close();
        if !part.at_end() {
            return Err(part.unexpected().into());
        }
        let with = self.parser.token_at(stop).span.start;
        while !self.at_end() && self.parser.peek_token_ref().span.start != with {
            self.parser.advance_token();
        }
        Ok((query, text, emit_on_close))
    }

    /// Index of the last `WITH (` outside any parenthesis before the statement's end.
    fn find_trailing_with(&self) -> Option<usize> {
        let mut depth = 0usize;
        let mut found = None;
        let mut i = self.parser.index();
        loop {
            match &self.parser.token_at(i).token {
                Token::EOF => return found,
                Token::SemiColon if depth == 0 => return found,
                Token::LParen => depth += 1,
                Token::RParen => depth = depth.saturating_sub(1),
                Token::Word(w) if depth == 0 && w.keyword == Keyword::WITH && w.quote_style.is_none() => {
                    let mut next = i + 1;
                    while matches!(self.parser.token_at(next).token, Token::Whitespace(_)) {
                        next += 1;
                    }
                    if self.parser.token_at(next).token == Token::LParen {
                        found = Some(i);
                    }
                }
                _ => {}
            }
            i += 1;
        }
    }

    // ---- positions and errors ----

    pub fn at_end(&self) -> bool {
        self.parser.peek_token_ref().token == Token::EOF
    }

    /// Byte offset of the next token.
    pub fn byte(&self) -> usize {
        let token = self.parser.peek_token_ref();
        if token.token == Token::EOF { self.end } else { self.source.byte(token.span.start) }
    }

    /// 1-based character offset of the next token.
    pub fn position(&self) -> usize {
        self.source.character(self.byte()) + 1
    }

    /// The text from a byte offset to the end of the last token read.
    pub fn text_from(&self, start: usize) -> String {
        let mut i = self.parser.index();
        while i > 0 {
            i -= 1;
            let token = self.parser.token_at(i);
            if !matches!(token.token, Token::Whitespace(_) | Token::EOF) {
                let end = self.source.byte(token.span.end);
                return self.source.text.get(start..end).unwrap_or_default().to_string();
            }
        }
        String::new()
    }

    /// The syntax error at the next token.
    pub fn unexpected(&self) -> Error {
        let token = self.parser.peek_token_ref();
        self.error_at(token)
    }

    pub fn fail<T>(&self) -> Read<T> {
        Err(self.unexpected().into())
    }

    /// `0A000` at the next token.
    pub fn refuse<T>(&self, message: &str, hint: &str) -> Read<T> {
        Err(Error::unsupported(message).with_hint(hint).with_position(self.position()).into())
    }

    fn error_at(&self, token: &TokenWithSpan) -> Error {
        if token.token == Token::EOF {
            return Error::new(SqlState::SyntaxError, "syntax error at end of input")
                .with_position(self.source.character(self.end) + 1);
        }
        let start = self.source.byte(token.span.start);
        let end = self.source.byte(token.span.end).max(start);
        let near = excerpt(self.source.text.get(start..end).unwrap_or_default());
        Error::new(SqlState::SyntaxError, format!("syntax error at or near \"{near}\""))
            .with_position(self.source.character(start) + 1)
    }

    /// Puts sqlparser's error into Postgres' words.
    pub fn failure(&self, failure: Failure) -> Error {
        let message = match failure {
            Failure::Error(e) => return e,
            Failure::Syntax(ParserError::RecursionLimitExceeded) => {
                return Error::new(SqlState::StatementTooComplex, "statement is too complex");
            }
            Failure::Syntax(ParserError::ParserError(m) | ParserError::TokenizerError(m)) => m,
        };
        let (words, at) = split_location(&message);
        let token = match at {
            // Some messages give the place of the token after the one that they name.
            Some(at) => match (self.token_starting(at), words.rsplit_once("found: ")) {
                (Some(there), Some((_, found))) if there.token.to_string() != found.trim() => {
                    Some(self.token_found(words).unwrap_or(there))
                }
                (there, _) => there,
            },
            None if words.contains("found: EOF") => None,
            None => Some(self.token_found(words).unwrap_or_else(|| self.parser.peek_token_ref().clone())),
        };
        let error = match &token {
            Some(token) => self.error_at(token),
            None => Error::new(SqlState::SyntaxError, "syntax error at end of input")
                .with_position(self.source.character(self.end) + 1),
        };
        let words = words.trim_start_matches("sql parser error: ");
        match words.strip_prefix("Expected: ").and_then(|w| w.split(", found:").next()) {
            Some(expected) if !expected.is_empty() => error.with_detail(format!("Expected {expected}.")),
            _ if words.is_empty() => error,
            _ => error.with_detail(format!("{words}.")),
        }
    }

    /// The token that a message without a place says it found: one of the last that were read.
    fn token_found(&self, words: &str) -> Option<TokenWithSpan> {
        let (_, found) = words.rsplit_once("found: ")?;
        let last = self.parser.index();
        (last.saturating_sub(8)..=last + 1)
            .rev()
            .map(|i| self.parser.token_at(i))
            .find(|token| token.token.to_string() == found.trim())
            .cloned()
    }

    fn token_starting(&self, at: Location) -> Option<TokenWithSpan> {
        let mut i = 0;
        loop {
            let token = self.parser.token_at(i);
            if token.token == Token::EOF {
                return None;
            }
            if token.span.start == at {
                return Some(token.clone());
            }
            i += 1;
        }
    }
}

/// Splits sqlparser's ` at Line: 1, Column: 2` off the end of a message.
fn split_location(message: &str) -> (&str, Option<Location>) {
    let Some((words, location)) = message.rsplit_once(" at Line: ") else {
        return (message, None);
    };
    let location = location
        .split_once(", Column: ")
        .and_then(|(line, column)| Some(Location { line: line.parse().ok()?, column: column.trim().parse().ok()? }));
    match location {
        Some(location) => (words, Some(location)),
        None => (message, None),
    }
}
