//! SUBSCRIBE, and the options that it shares with FETCH.

use std::time::Duration;

use datafusion::sql::sqlparser::tokenizer::Token;
use flow::{Error, SqlState};

use super::{Read, Reader};
use crate::statement::{Subscribe, SubscribeFrom};

/// The longest time that FETCH can be told to wait.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

impl Reader<'_> {
    /// `SUBSCRIBE [TO] relation | (query) [AS OF EPOCH n] [WITH (snapshot [= b], progress [= b])]`.
    pub(super) fn subscribe(&mut self) -> Read<Box<Subscribe>> {
        self.expect_word("SUBSCRIBE")?;
        self.word("TO");
        let position = self.position();
        let from = if self.parser.consume_token(&Token::LParen) {
            let query = self.query()?;
            self.parser.expect_token(&Token::RParen)?;
            SubscribeFrom::Query(query)
        } else {
            SubscribeFrom::Relation(self.name()?)
        };
        let as_of = if self.word("AS") {
            self.expect_word("OF")?;
            self.expect_word("EPOCH")?;
            Some(self.epoch()?)
        } else {
            None
        };
        if self.peek_word("UP") {
            return self.refuse("SUBSCRIBE … UP TO is not supported", "Cancel the statement, or close the cursor.");
        }
        let (mut snapshot, mut progress) = (None, None);
        if self.word("WITH") {
            self.each_option(|reader, name, at| {
                let place = match name {
                    "snapshot" => &mut snapshot,
                    "progress" => &mut progress,
                    _ => {
                        return Err(unknown_option(name, at, "SUBSCRIBE has the options snapshot and progress.").into());
                    }
                };
                if place.is_some() {
                    return Err(twice(name, at).into());
                }
                *place = Some((reader.option_flag(name)?, at));
                Ok(())
            })?;
        }
        if let (Some(_), Some((true, at))) = (as_of, snapshot) {
            return Err(Error::unsupported("AS OF EPOCH and a snapshot exclude each other")
                .with_detail("What a relation held at a past epoch is not kept, only what has changed since.")
                .with_hint("Leave snapshot out: AS OF EPOCH goes on after what was read before.")
                .with_position(at)
                .into());
        }
        let snapshot = snapshot.map_or(as_of.is_none(), |(given, _)| given);
        let progress = progress.is_some_and(|(given, _)| given);
        Ok(Box::new(Subscribe { from, position, as_of, snapshot, progress }))
    }

    /// The number of an epoch.
    fn epoch(&mut self) -> Read<u64> {
        let at = self.position();
        let Token::Number(digits, _) = &self.parser.peek_token_ref().token else { return self.fail() };
        let epoch = digits.parse::<i64>().ok().and_then(|n| u64::try_from(n).ok());
        let Some(epoch) = epoch else {
            return Err(Error::new(SqlState::InvalidParameterValue, format!("{digits} is not an epoch"))
                .with_hint("Epochs are whole numbers, as in the column \"epoch\" of a subscription.")
                .with_position(at)
                .into());
        };
        self.parser.next_token();
        Ok(epoch)
    }

    /// `WITH (timeout = '1s')` of FETCH.
    pub(super) fn fetch_timeout(&mut self) -> Read<Option<Duration>> {
        let mut timeout = None;
        if self.word("WITH") {
            self.each_option(|reader, name, at| {
                if name != "timeout" {
                    return Err(unknown_option(name, at, "FETCH has the option timeout.").into());
                }
                if timeout.is_some() {
                    return Err(twice(name, at).into());
                }
                let _ = reader.parser.consume_token(&Token::Eq);
                let at = reader.position();
                let text = reader.setting_value()?;
                timeout = Some(duration(&text).ok_or_else(|| {
                    Error::new(
                        SqlState::InvalidParameterValue,
                        format!("invalid value for option \"timeout\": '{text}'"),
                    )
                    .with_detail("Allowed: a time from 0s to 24h.")
                    .with_hint("Write a number and its unit: '500 ms', '1s', '2 minutes'.")
                    .with_position(at)
                })?);
                Ok(())
            })?;
        }
        Ok(timeout)
    }

    /// `(name …, name …)`: `read` gets each option's name and its position, and reads what follows it.
    fn each_option(&mut self, mut read: impl FnMut(&mut Self, &str, usize) -> Read<()>) -> Read<()> {
        self.parser.expect_token(&Token::LParen)?;
        loop {
            let (name, at) = self.ident()?;
            read(self, &name, at)?;
            if !self.parser.consume_token(&Token::Comma) {
                break;
            }
        }
        self.parser.expect_token(&Token::RParen)?;
        Ok(())
    }

    /// `[= true | false]`.
    fn option_flag(&mut self, name: &str) -> Read<bool> {
        let equals = self.parser.consume_token(&Token::Eq);
        if !equals && matches!(self.parser.peek_token_ref().token, Token::Comma | Token::RParen) {
            return Ok(true);
        }
        let at = self.position();
        match self.setting_value()?.to_lowercase().as_str() {
            "true" | "on" | "1" => Ok(true),
            "false" | "off" | "0" => Ok(false),
            other => Err(Error::new(
                SqlState::InvalidParameterValue,
                format!("invalid value for option \"{name}\": '{other}'"),
            )
            .with_hint("Use true or false.")
            .with_position(at)
            .into()),
        }
    }
}

fn unknown_option(name: &str, at: usize, hint: &str) -> Error {
    Error::new(SqlState::InvalidParameterValue, format!("unrecognized option \"{name}\""))
        .with_hint(hint)
        .with_position(at)
}

fn twice(name: &str, at: usize) -> Error {
    Error::new(SqlState::SyntaxError, format!("option \"{name}\" is given twice")).with_position(at)
}

/// A number with its unit; seconds without one.
fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit_ms: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "ms" | "millisecond" | "milliseconds" => 1,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1_000,
        "m" | "min" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).filter(|d| *d <= TIMEOUT_MAX)
}
