//! Statements about the session: settings, transactions, prepared statements, cursors.

use std::sync::Arc;

use datafusion::sql::sqlparser::tokenizer::Token;
use flow::{Error, SqlState};

use super::{Read, Reader};
use crate::statement::{
    CursorQuery, DeclareCursor, Discard, Fetch, FetchDirection, Isolation, Set, SetValue, Statement, TransactionModes,
};

impl Reader<'_> {
    /// `name` or `extension.name`, folded.
    pub(super) fn setting_name(&mut self) -> Read<String> {
        let mut name = self.ident()?.0;
        while self.parser.consume_token(&Token::Period) {
            name = format!("{name}.{}", self.ident()?.0);
        }
        Ok(name.to_lowercase())
    }

    pub(super) fn set(&mut self) -> Read<Statement> {
        self.expect_word("SET")?;
        let session = self.word("SESSION");
        let local = !session && self.word("LOCAL");
        if session && self.words(&["CHARACTERISTICS", "AS", "TRANSACTION"]) {
            return Ok(Statement::SetTransaction { modes: self.transaction_modes()?, session: true });
        }
        if self.word("TRANSACTION") {
            if self.peek_word("SNAPSHOT") {
                return self.refuse("SET TRANSACTION SNAPSHOT is not supported", "Begin a READ ONLY transaction.");
            }
            return Ok(Statement::SetTransaction { modes: self.transaction_modes()?, session: false });
        }
        let set = |name: &str, value: SetValue| Ok(Statement::Set(Set { name: name.to_string(), value, local }));
        if self.words(&["TIME", "ZONE"]) {
            if self.word("DEFAULT") || self.word("LOCAL") {
                return set("timezone", SetValue::Default);
            }
            let interval = self.word("INTERVAL");
            let value = self.setting_value()?;
            if interval {
                while self.word("HOUR") || self.word("TO") || self.word("MINUTE") {}
            }
            return set("timezone", SetValue::Values(vec![value]));
        }
        if self.word("NAMES") {
            if self.word("DEFAULT") {
                return set("client_encoding", SetValue::Default);
            }
            let value = self.setting_value()?;
            return set("client_encoding", SetValue::Values(vec![value]));
        }
        if self.peek_word("ROLE") || self.peek_word("AUTHORIZATION") {
            self.parser.next_token();
            if self.word("DEFAULT") || self.word("NONE") {
                return set("role", SetValue::Default);
            }
            let value = self.setting_value()?;
            return set("role", SetValue::Values(vec![value]));
        }
        if self.word("SCHEMA") {
            let value = self.setting_value()?;
            return set("search_path", SetValue::Values(vec![value]));
        }
        let name = self.setting_name()?;
        if !self.parser.consume_token(&Token::Eq) {
            self.expect_word("TO")?;
        }
        if self.word("DEFAULT") {
            return set(&name, SetValue::Default);
        }
        let mut values = vec![self.setting_value()?];
        while self.parser.consume_token(&Token::Comma) {
            values.push(self.setting_value()?);
        }
        set(&name, SetValue::Values(values))
    }

    pub(super) fn reset(&mut self) -> Read<Statement> {
        self.expect_word("RESET")?;
        if self.word("ALL") {
            return Ok(Statement::Reset(None));
        }
        if self.words(&["TIME", "ZONE"]) {
            return Ok(Statement::Reset(Some("timezone".to_string())));
        }
        if self.words(&["SESSION", "AUTHORIZATION"]) {
            return Ok(Statement::Reset(Some("role".to_string())));
        }
        if self.words(&["TRANSACTION", "ISOLATION", "LEVEL"]) {
            return Ok(Statement::Reset(Some("transaction_isolation".to_string())));
        }
        Ok(Statement::Reset(Some(self.setting_name()?)))
    }

    fn transaction_modes(&mut self) -> Read<TransactionModes> {
        let mut modes = TransactionModes::default();
        loop {
            if self.words(&["READ", "ONLY"]) {
                modes.read_only = Some(true);
            } else if self.words(&["READ", "WRITE"]) {
                modes.read_only = Some(false);
            } else if self.words(&["ISOLATION", "LEVEL"]) {
                modes.isolation = Some(if self.words(&["READ", "UNCOMMITTED"]) {
                    Isolation::ReadUncommitted
                } else if self.words(&["READ", "COMMITTED"]) {
                    Isolation::ReadCommitted
                } else if self.words(&["REPEATABLE", "READ"]) {
                    Isolation::RepeatableRead
                } else if self.word("SERIALIZABLE") {
                    Isolation::Serializable
                } else {
                    return self.fail();
                });
            } else if self.word("DEFERRABLE") {
                modes.deferrable = Some(true);
            } else if self.words(&["NOT", "DEFERRABLE"]) {
                modes.deferrable = Some(false);
            } else {
                return Ok(modes);
            }
            let _ = self.parser.consume_token(&Token::Comma);
        }
    }

    pub(super) fn begin(&mut self) -> Read<Statement> {
        if self.word("START") {
            self.expect_word("TRANSACTION")?;
        } else {
            self.expect_word("BEGIN")?;
            if !self.word("TRANSACTION") {
                self.word("WORK");
            }
        }
        Ok(Statement::Begin(self.transaction_modes()?))
    }

    pub(super) fn commit(&mut self) -> Read<Statement> {
        self.parser.next_token();
        if self.peek_word("PREPARED") {
            return self.refuse("two-phase commit is not supported", "Use COMMIT.");
        }
        Ok(Statement::Commit { chain: self.transaction_end()? })
    }

    pub(super) fn rollback(&mut self) -> Read<Statement> {
        self.parser.next_token();
        if self.peek_word("PREPARED") {
            return self.refuse("two-phase commit is not supported", "Use ROLLBACK.");
        }
        let chain = self.transaction_end()?;
        if self.word("TO") {
            self.word("SAVEPOINT");
            return Ok(Statement::RollbackTo(self.ident()?.0));
        }
        Ok(Statement::Rollback { chain })
    }

    pub(super) fn savepoint(&mut self) -> Read<Statement> {
        self.expect_word("SAVEPOINT")?;
        Ok(Statement::Savepoint(self.ident()?.0))
    }

    pub(super) fn release(&mut self) -> Read<Statement> {
        self.expect_word("RELEASE")?;
        self.word("SAVEPOINT");
        Ok(Statement::Release(self.ident()?.0))
    }

    /// `[WORK | TRANSACTION] [AND [NO] CHAIN]`.
    fn transaction_end(&mut self) -> Read<bool> {
        if !self.word("WORK") {
            self.word("TRANSACTION");
        }
        if self.words(&["AND", "NO", "CHAIN"]) {
            return Ok(false);
        }
        Ok(self.words(&["AND", "CHAIN"]))
    }

    pub(super) fn prepare(&mut self, shared: &Arc<str>) -> Read<Statement> {
        self.expect_word("PREPARE")?;
        if self.peek_word("TRANSACTION") {
            return self.refuse("two-phase commit is not supported", "Use COMMIT.");
        }
        let name = self.ident()?.0;
        let mut types = Vec::new();
        if self.parser.consume_token(&Token::LParen) {
            types.push(self.parser.parse_data_type()?);
            while self.parser.consume_token(&Token::Comma) {
                types.push(self.parser.parse_data_type()?);
            }
            self.parser.expect_token(&Token::RParen)?;
        }
        self.expect_word("AS")?;
        let at = self.position();
        let statement = Box::new(self.parsed(shared)?);
        if !matches!(
            statement.statement,
            Statement::Query(_) | Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_)
        ) {
            return Err(Error::new(SqlState::SyntaxError, "only SELECT, INSERT, UPDATE and DELETE can be prepared")
                .with_position(at)
                .into());
        }
        Ok(Statement::Prepare { name, types, statement })
    }

    pub(super) fn execute(&mut self) -> Read<Statement> {
        self.expect_word("EXECUTE")?;
        let name = self.ident()?.0;
        let mut arguments = Vec::new();
        if self.parser.consume_token(&Token::LParen) && !self.parser.consume_token(&Token::RParen) {
            arguments.push(self.expr()?);
            while self.parser.consume_token(&Token::Comma) {
                arguments.push(self.expr()?);
            }
            self.parser.expect_token(&Token::RParen)?;
        }
        Ok(Statement::Execute { name, arguments })
    }

    pub(super) fn deallocate(&mut self) -> Read<Statement> {
        self.expect_word("DEALLOCATE")?;
        self.word("PREPARE");
        if self.word("ALL") {
            return Ok(Statement::Deallocate(None));
        }
        Ok(Statement::Deallocate(Some(self.ident()?.0)))
    }

    pub(super) fn discard(&mut self) -> Read<Statement> {
        self.expect_word("DISCARD")?;
        for (word, what) in [
            ("ALL", Discard::All),
            ("PLANS", Discard::Plans),
            ("SEQUENCES", Discard::Sequences),
            ("TEMP", Discard::Temp),
            ("TEMPORARY", Discard::Temp),
        ] {
            if self.word(word) {
                return Ok(Statement::Discard(what));
            }
        }
        self.fail()
    }

    pub(super) fn declare(&mut self) -> Read<Statement> {
        self.expect_word("DECLARE")?;
        let name = self.ident()?.0;
        let mut cursor = (false, None);
        loop {
            if self.word("BINARY") {
                cursor.0 = true;
            } else if self.word("SCROLL") {
                cursor.1 = Some(true);
            } else if self.words(&["NO", "SCROLL"]) {
                cursor.1 = Some(false);
            } else if !self.word("INSENSITIVE") && !self.word("ASENSITIVE") {
                break;
            }
        }
        let (binary, scroll) = cursor;
        self.expect_word("CURSOR")?;
        let hold = self.words(&["WITH", "HOLD"]);
        if !hold {
            self.words(&["WITHOUT", "HOLD"]);
        }
        self.expect_word("FOR")?;
        let query = if self.peek_word("SUBSCRIBE") {
            CursorQuery::Subscribe(self.subscribe()?)
        } else {
            CursorQuery::Query(self.query()?)
        };
        Ok(Statement::DeclareCursor(Box::new(DeclareCursor { name, binary, hold, scroll, query })))
    }

    pub(super) fn fetch(&mut self) -> Read<Statement> {
        let only_move = self.word("MOVE");
        if !only_move {
            self.expect_word("FETCH")?;
        }
        let direction = self.fetch_direction()?;
        if !self.word("FROM") {
            self.word("IN");
        }
        let cursor = self.ident()?.0;
        let timeout = self.fetch_timeout()?;
        Ok(Statement::Fetch(Fetch { cursor, only_move, direction, timeout }))
    }

    fn fetch_direction(&mut self) -> Read<FetchDirection> {
        if self.word("NEXT") {
            return Ok(FetchDirection::Forward(1));
        }
        if self.word("PRIOR") {
            return Ok(FetchDirection::Forward(-1));
        }
        if self.word("FIRST") {
            return Ok(FetchDirection::First);
        }
        if self.word("LAST") {
            return Ok(FetchDirection::Last);
        }
        if self.word("ALL") {
            return Ok(FetchDirection::ForwardAll);
        }
        if self.word("ABSOLUTE") {
            return Ok(FetchDirection::Absolute(self.signed()?.unwrap_or(1)));
        }
        if self.word("RELATIVE") {
            return Ok(FetchDirection::Relative(self.signed()?.unwrap_or(1)));
        }
        if self.word("FORWARD") {
            if self.word("ALL") {
                return Ok(FetchDirection::ForwardAll);
            }
            return Ok(FetchDirection::Forward(self.signed()?.unwrap_or(1)));
        }
        if self.word("BACKWARD") {
            if self.word("ALL") {
                return Ok(FetchDirection::BackwardAll);
            }
            return Ok(FetchDirection::Forward(self.signed()?.unwrap_or(1).saturating_neg()));
        }
        Ok(FetchDirection::Forward(self.signed()?.unwrap_or(1)))
    }

    /// An optional signed integer.
    fn signed(&mut self) -> Read<Option<i64>> {
        let sign = self.parser.consume_token(&Token::Minus);
        if !sign {
            let _ = self.parser.consume_token(&Token::Plus);
        }
        let Token::Number(digits, _) = &self.parser.peek_token_ref().token else {
            return if sign { self.fail() } else { Ok(None) };
        };
        let Ok(value) = digits.parse::<i64>() else { return self.fail() };
        self.parser.next_token();
        Ok(Some(if sign { -value } else { value }))
    }

    /// `UNLISTEN channel | *`: pools send it between two users of a connection.
    pub(super) fn unlisten(&mut self) -> Read<Statement> {
        self.expect_word("UNLISTEN")?;
        if !self.parser.consume_token(&Token::Mul) {
            self.ident()?;
        }
        Ok(Statement::Unlisten)
    }

    /// `VACUUM [(options) | FULL FREEZE VERBOSE ANALYZE] [table [(columns)], …]` and `ANALYZE`.
    pub(super) fn maintain(&mut self) -> Read<Statement> {
        let tag = if self.word("VACUUM") { "VACUUM" } else { "ANALYZE" };
        if tag == "ANALYZE" {
            self.parser.next_token();
        }
        if self.parser.consume_token(&Token::LParen) {
            loop {
                self.ident()?;
                if !matches!(self.parser.peek_token_ref().token, Token::Comma | Token::RParen) {
                    self.setting_value()?;
                }
                if !self.parser.consume_token(&Token::Comma) {
                    break;
                }
            }
            self.parser.expect_token(&Token::RParen)?;
        } else {
            let words = ["FULL", "FREEZE", "VERBOSE", "ANALYZE", "ANALYSE"];
            while words.iter().any(|word| (tag == "VACUUM" || *word == "VERBOSE") && self.word(word)) {}
        }
        let mut names = Vec::new();
        while matches!(self.parser.peek_token_ref().token, Token::Word(_)) {
            names.push(self.name()?);
            if self.parser.peek_token_ref().token == Token::LParen {
                self.ident_list()?;
            }
            if !self.parser.consume_token(&Token::Comma) {
                break;
            }
        }
        Ok(Statement::Maintain { tag, names })
    }

    pub(super) fn close(&mut self) -> Read<Statement> {
        self.expect_word("CLOSE")?;
        if self.word("ALL") {
            return Ok(Statement::CloseCursor(None));
        }
        Ok(Statement::CloseCursor(Some(self.ident()?.0)))
    }
}
