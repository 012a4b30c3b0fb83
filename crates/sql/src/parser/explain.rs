//! EXPLAIN.

use std::sync::Arc;

use datafusion::sql::sqlparser::tokenizer::Token;
use flow::{Error, SqlState};

use super::{Read, Reader};
use crate::statement::{Explain, ExplainFormat, ExplainLayer, Show, Statement};

impl Reader<'_> {
    pub(super) fn explain(&mut self, shared: &Arc<str>) -> Read<Statement> {
        let at = self.position();
        self.expect_word("EXPLAIN")?;
        if self.word("WATERMARK") {
            return Ok(Statement::Show(Show::WatermarkOf(self.name()?)));
        }
        let mut analyze = false;
        let mut verbose = false;
        let mut layer = None;
        let mut format = ExplainFormat::Text;
        let next = self.parser.peek_nth_token_ref(1);
        let is_query = matches!(&next.token, Token::LParen)
            || ["SELECT", "WITH", "VALUES", "TABLE"].iter().any(|w| self.peek_nth_word(1, w));
        if self.parser.peek_token_ref().token == Token::LParen && !is_query {
            self.parser.next_token();
            loop {
                let at = self.position();
                let option = self.ident()?.0;
                let next = &self.parser.peek_token_ref().token;
                let value = if matches!(next, Token::Comma | Token::RParen) {
                    "true".to_string()
                } else {
                    self.setting_value()?.to_lowercase()
                };
                let on = || match value.as_str() {
                    "true" | "on" | "1" => Some(true),
                    "false" | "off" | "0" => Some(false),
                    _ => None,
                };
                let known = match option.as_str() {
                    "analyze" => on().map(|v| analyze = v),
                    "verbose" => on().map(|v| verbose = v),
                    // Postgres' further options change only what its own plans show.
                    "costs" | "settings" | "buffers" | "wal" | "timing" | "summary" | "generic_plan" => {
                        on().map(|_| ())
                    }
                    "layer" => match value.as_str() {
                        "table" => {
                            layer = Some(ExplainLayer::Table);
                            Some(())
                        }
                        "stream" => {
                            layer = Some(ExplainLayer::Stream);
                            Some(())
                        }
                        "process" => {
                            layer = Some(ExplainLayer::Process);
                            Some(())
                        }
                        _ => None,
                    },
                    "format" => match value.as_str() {
                        "text" => {
                            format = ExplainFormat::Text;
                            Some(())
                        }
                        "json" => {
                            format = ExplainFormat::Json;
                            Some(())
                        }
                        "dot" => {
                            format = ExplainFormat::Dot;
                            Some(())
                        }
                        _ => None,
                    },
                    _ => {
                        return Err(Error::new(
                            SqlState::SyntaxError,
                            format!("unrecognized EXPLAIN option \"{option}\""),
                        )
                        .with_hint("Use LAYER table|stream|process and FORMAT text|json|dot.")
                        .with_position(at)
                        .into());
                    }
                };
                if known.is_none() {
                    return Err(Error::new(
                        SqlState::InvalidParameterValue,
                        format!("unrecognized value for EXPLAIN option \"{option}\": \"{value}\""),
                    )
                    .with_position(at)
                    .into());
                }
                if !self.parser.consume_token(&Token::Comma) {
                    break;
                }
            }
            self.parser.expect_token(&Token::RParen)?;
        } else {
            analyze = self.word("ANALYZE");
            verbose = self.word("VERBOSE");
        }
        let start = self.byte();
        let statement = self.statement(shared)?;
        let text = self.text_from(start);
        let explainable = matches!(
            statement,
            Statement::Query(_)
                | Statement::Insert(_)
                | Statement::Update(_)
                | Statement::Delete(_)
                | Statement::CreateView(_)
                | Statement::CreateSink(_)
        );
        if !explainable {
            return Err(Error::new(SqlState::SyntaxError, format!("{} cannot be explained", statement.tag()))
                .with_hint("EXPLAIN takes SELECT, INSERT, UPDATE, DELETE, CREATE VIEW and CREATE SINK.")
                .with_position(self.source.character(start) + 1)
                .into());
        }
        if analyze && !matches!(statement, Statement::Query(_)) {
            return Err(Error::unsupported("EXPLAIN ANALYZE is supported for SELECT only")
                .with_hint("Leave ANALYZE out.")
                .with_position(at)
                .into());
        }
        let standing = matches!(statement, Statement::CreateView(_) | Statement::CreateSink(_));
        let layer = layer.unwrap_or(if standing { ExplainLayer::Stream } else { ExplainLayer::Table });
        Ok(Statement::Explain(Box::new(Explain { analyze, verbose, layer, format, statement, text })))
    }
}
