//! COPY with every spelling of its options that Postgres takes: the parenthesised list, the older keyword list, and the
//! defaults that depend on the format.

use datafusion::sql::sqlparser::tokenizer::Token;
use flow::{Error, SqlState};

use super::{Read, Reader};
use crate::statement::{Copy, CopyDirection, CopyFormat, CopyHeader, CopyOptions, CopyTarget, Statement};

/// Options as given; what is absent takes the format's default.
#[derive(Default)]
struct Given {
    format: Option<CopyFormat>,
    header: Option<CopyHeader>,
    delimiter: Option<(String, usize)>,
    null: Option<String>,
    quote: Option<(String, usize)>,
    escape: Option<(String, usize)>,
    force_quote: Vec<String>,
    force_quote_all: bool,
    force_not_null: Vec<String>,
    force_null: Vec<String>,
}

impl Reader<'_> {
    pub(super) fn copy(&mut self) -> Read<Statement> {
        self.expect_word("COPY")?;
        let target = if self.parser.peek_token_ref().token == Token::LParen && self.peek_nth_word(1, "SUBSCRIBE") {
            self.parser.expect_token(&Token::LParen)?;
            let subscribe = self.subscribe()?;
            self.parser.expect_token(&Token::RParen)?;
            CopyTarget::Subscribe(subscribe)
        } else if self.parser.consume_token(&Token::LParen) {
            let start = self.byte();
            let query = self.query()?;
            let text = self.text_from(start);
            self.parser.expect_token(&Token::RParen)?;
            CopyTarget::Query { query, text }
        } else {
            self.word("BINARY");
            let name = self.name()?;
            let columns =
                if self.parser.peek_token_ref().token == Token::LParen { self.ident_list()? } else { Vec::new() };
            CopyTarget::Table { name, columns }
        };
        let direction = if matches!(target, CopyTarget::Table { .. }) && self.word("FROM") {
            if !self.word("STDIN") {
                return self.refuse(
                    "COPY FROM a file or program of the server is not supported",
                    "Use COPY … FROM STDIN (psql's \\copy), or CREATE SOURCE … WITH (connector = 'file').",
                );
            }
            CopyDirection::FromStdin
        } else {
            self.expect_word("TO")?;
            if !self.word("STDOUT") {
                return self.refuse(
                    "COPY TO a file or program of the server is not supported",
                    "Use COPY … TO STDOUT (psql's \\copy), or CREATE SINK … WITH (connector = 'file').",
                );
            }
            CopyDirection::ToStdout
        };
        let mut given = Given::default();
        self.word("WITH");
        if self.parser.peek_token_ref().token == Token::LParen {
            self.copy_option_list(&mut given)?;
        } else {
            self.copy_keywords(&mut given)?;
        }
        if self.peek_word("WHERE") {
            return self.refuse("COPY … WHERE is not supported", "Filter before loading, or in a view.");
        }
        let options = given.with_defaults()?;
        Ok(Statement::Copy(Box::new(Copy { target, direction, options })))
    }

    /// `(FORMAT csv, HEADER true, …)`.
    fn copy_option_list(&mut self, given: &mut Given) -> Read<()> {
        self.parser.expect_token(&Token::LParen)?;
        loop {
            let at = self.position();
            let option = self.ident()?.0;
            match option.as_str() {
                "format" => given.format = Some(self.copy_format()?),
                "header" => given.header = Some(self.copy_header()?),
                "delimiter" => given.delimiter = Some((self.string()?, at)),
                "null" => given.null = Some(self.string()?),
                "quote" => given.quote = Some((self.string()?, at)),
                "escape" => given.escape = Some((self.string()?, at)),
                "encoding" => self.copy_encoding()?,
                "freeze" => {
                    if !matches!(self.parser.peek_token_ref().token, Token::Comma | Token::RParen) {
                        self.setting_value()?;
                    }
                }
                "force_quote" if self.parser.consume_token(&Token::Mul) => given.force_quote_all = true,
                "force_quote" => given.force_quote = self.copy_columns()?,
                "force_not_null" => given.force_not_null = self.copy_columns()?,
                "force_null" => given.force_null = self.copy_columns()?,
                _ => {
                    return Err(Error::new(SqlState::SyntaxError, format!("option \"{option}\" not recognized"))
                        .with_position(at)
                        .into());
                }
            }
            if !self.parser.consume_token(&Token::Comma) {
                break;
            }
        }
        self.parser.expect_token(&Token::RParen)?;
        Ok(())
    }

    /// The spelling of Postgres before 9.0: `CSV HEADER DELIMITER ';' NULL AS ''`.
    fn copy_keywords(&mut self, given: &mut Given) -> Read<()> {
        loop {
            let at = self.position();
            if self.word("CSV") {
                given.format = Some(CopyFormat::Csv);
            } else if self.word("BINARY") {
                given.format = Some(CopyFormat::Binary);
            } else if self.word("HEADER") {
                given.header = Some(CopyHeader::Present);
            } else if self.word("DELIMITER") || self.word("DELIMITERS") {
                self.word("AS");
                given.delimiter = Some((self.string()?, at));
            } else if self.word("NULL") {
                self.word("AS");
                given.null = Some(self.string()?);
            } else if self.word("QUOTE") {
                self.word("AS");
                given.quote = Some((self.string()?, at));
            } else if self.word("ESCAPE") {
                self.word("AS");
                given.escape = Some((self.string()?, at));
            } else if self.word("ENCODING") {
                self.copy_encoding()?;
            } else if self.word("FREEZE") {
                // Changes nothing here.
            } else if self.words(&["FORCE", "QUOTE"]) {
                if self.parser.consume_token(&Token::Mul) {
                    given.force_quote_all = true;
                } else {
                    given.force_quote = self.bare_columns()?;
                }
            } else if self.words(&["FORCE", "NOT", "NULL"]) {
                given.force_not_null = self.bare_columns()?;
            } else if self.words(&["FORCE", "NULL"]) {
                given.force_null = self.bare_columns()?;
            } else {
                return Ok(());
            }
        }
    }

    fn copy_columns(&mut self) -> Read<Vec<String>> {
        Ok(self.ident_list()?.into_iter().map(|(name, _)| name).collect())
    }

    fn bare_columns(&mut self) -> Read<Vec<String>> {
        let mut columns = vec![self.ident()?.0];
        while self.parser.consume_token(&Token::Comma) {
            columns.push(self.ident()?.0);
        }
        Ok(columns)
    }

    fn copy_format(&mut self) -> Read<CopyFormat> {
        let at = self.position();
        let format = self.setting_value()?.to_lowercase();
        match format.as_str() {
            "text" => Ok(CopyFormat::Text),
            "csv" => Ok(CopyFormat::Csv),
            "binary" => Ok(CopyFormat::Binary),
            _ => Err(Error::new(SqlState::InvalidParameterValue, format!("COPY format \"{format}\" not recognized"))
                .with_hint("Use text or csv.")
                .with_position(at)
                .into()),
        }
    }

    fn copy_header(&mut self) -> Read<CopyHeader> {
        if matches!(self.parser.peek_token_ref().token, Token::Comma | Token::RParen) {
            return Ok(CopyHeader::Present);
        }
        let at = self.position();
        match self.setting_value()?.to_lowercase().as_str() {
            "true" | "on" | "1" => Ok(CopyHeader::Present),
            "false" | "off" | "0" => Ok(CopyHeader::None),
            "match" => Ok(CopyHeader::Match),
            _ => Err(Error::new(SqlState::SyntaxError, "header requires a Boolean value or \"match\"")
                .with_position(at)
                .into()),
        }
    }

    fn copy_encoding(&mut self) -> Read<()> {
        let at = self.position();
        let encoding = self.string()?;
        let folded: String = encoding.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
        if matches!(folded.as_str(), "utf8" | "unicode" | "sqlascii") {
            return Ok(());
        }
        Err(Error::unsupported(format!("encoding \"{encoding}\" is not supported"))
            .with_hint("Convert the data to UTF8.")
            .with_position(at)
            .into())
    }
}

impl Given {
    fn with_defaults(self) -> Read<CopyOptions> {
        let format = self.format.unwrap_or_default();
        let csv = format == CopyFormat::Csv;
        if format == CopyFormat::Binary {
            for (given, name) in [
                (self.delimiter.is_some(), "DELIMITER"),
                (self.null.is_some(), "NULL"),
                (self.header.is_some(), "HEADER"),
            ] {
                if given {
                    let message = format!("cannot specify {name} in BINARY mode");
                    return Err(Error::new(SqlState::SyntaxError, message).into());
                }
            }
        }
        if !csv {
            for (given, name) in [
                (self.quote.is_some(), "QUOTE"),
                (self.escape.is_some(), "ESCAPE"),
                (self.force_quote_all || !self.force_quote.is_empty(), "FORCE_QUOTE"),
                (!self.force_not_null.is_empty(), "FORCE_NOT_NULL"),
                (!self.force_null.is_empty(), "FORCE_NULL"),
            ] {
                if given {
                    return Err(Error::unsupported(format!("COPY {name} requires CSV mode")).into());
                }
            }
        }
        let delimiter = one_byte("delimiter", self.delimiter, if csv { b',' } else { b'\t' })?;
        let quote = one_byte("quote", self.quote, b'"')?;
        let escape = one_byte("escape", self.escape, quote)?;
        let invalid = |message: &str| Err(Error::new(SqlState::InvalidParameterValue, message).into());
        if matches!(delimiter, b'\n' | b'\r') {
            return invalid("COPY delimiter cannot be newline or carriage return");
        }
        if csv && delimiter == quote {
            return invalid("COPY delimiter and quote must be different");
        }
        if !csv && b"\\.abcdefghijklmnopqrstuvwxyz0123456789".contains(&delimiter) {
            return invalid("COPY delimiter cannot be a letter, a digit, a dot or a backslash");
        }
        let null = self.null.unwrap_or_else(|| if csv { String::new() } else { "\\N".to_string() });
        if null.contains(['\n', '\r']) {
            return invalid("COPY null representation cannot use newline or carriage return");
        }
        if null.as_bytes().contains(&delimiter) {
            return invalid("COPY delimiter character must not appear in the NULL specification");
        }
        Ok(CopyOptions {
            format,
            header: self.header.unwrap_or_default(),
            delimiter,
            null,
            quote,
            escape,
            force_quote: self.force_quote,
            force_quote_all: self.force_quote_all,
            force_not_null: self.force_not_null,
            force_null: self.force_null,
        })
    }
}

fn one_byte(what: &str, given: Option<(String, usize)>, default: u8) -> Read<u8> {
    match given {
        None => Ok(default),
        Some((text, at)) => match text.as_bytes() {
            [byte] => Ok(*byte),
            _ => Err(Error::unsupported(format!("COPY {what} must be a single one-byte character"))
                .with_position(at)
                .into()),
        },
    }
}
