//! COPY: its options, rows in and rows out.

pub(crate) mod binary;
pub(crate) mod input;
pub(crate) mod output;
pub(crate) mod split;

use flow::{Error, Result, SqlState};

use crate::settings::check_client_encoding;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyFormat {
    Text,
    Csv,
    Binary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyHeader {
    No,
    Yes,
    /// The names in the header must be those of the columns.
    Match,
}

/// The form of the rows, checked and complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyOptions {
    pub format: CopyFormat,
    pub delimiter: u8,
    /// What stands for NULL.
    pub null: String,
    pub header: CopyHeader,
    /// CSV only.
    pub quote: u8,
    /// CSV only: what stands before a quote inside quotes.
    pub escape: u8,
    /// CSV, TO: columns that are always quoted, by position.
    pub force_quote: Vec<usize>,
    /// CSV, FROM: columns in which the null string is text, by position.
    pub force_not_null: Vec<usize>,
    /// CSV, FROM: columns in which the null string is NULL even in quotes, by position.
    pub force_null: Vec<usize>,
}

/// The value of one option as the statement gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyOptionValue {
    /// The name alone, as in `(HEADER)`.
    None,
    /// A word, a string or a number.
    Text(String),
    /// Column names in parentheses.
    Columns(Vec<String>),
    /// `*`
    All,
}

impl CopyOptions {
    pub fn text() -> CopyOptions {
        CopyOptions {
            format: CopyFormat::Text,
            delimiter: b'\t',
            null: "\\N".to_string(),
            header: CopyHeader::No,
            quote: b'"',
            escape: b'"',
            force_quote: Vec::new(),
            force_not_null: Vec::new(),
            force_null: Vec::new(),
        }
    }

    pub fn csv() -> CopyOptions {
        CopyOptions { format: CopyFormat::Csv, delimiter: b',', null: String::new(), ..CopyOptions::text() }
    }

    /// The options of a statement: names in any case, as in `WITH (FORMAT csv, HEADER)`. `columns` are the columns that are
    /// copied and `from` tells the direction. Refuses what PostgreSQL refuses.
    pub fn parse(options: &[(String, CopyOptionValue)], columns: &[&str], from: bool) -> Result<CopyOptions> {
        let mut seen: Vec<String> = Vec::new();
        let mut format = CopyFormat::Text;
        let options: Vec<(String, &CopyOptionValue)> =
            options.iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        for (name, value) in &options {
            if seen.contains(name) {
                return Err(syntax("conflicting or redundant options"));
            }
            seen.push(name.clone());
            if name == "format" {
                format = match text_of(name, value)?.to_ascii_lowercase().as_str() {
                    "text" => CopyFormat::Text,
                    "csv" => CopyFormat::Csv,
                    "binary" => CopyFormat::Binary,
                    other => {
                        let message = format!("COPY format \"{other}\" not recognized");
                        return Err(Error::new(SqlState::InvalidParameterValue, message));
                    }
                };
            }
        }
        let csv = format == CopyFormat::Csv;
        let binary = format == CopyFormat::Binary;
        let mut parsed = if csv { CopyOptions::csv() } else { CopyOptions::text() };
        parsed.format = format;
        let mut escape = None;
        for (name, value) in &options {
            let only_csv = |what: &str| {
                if csv { Ok(()) } else { Err(Error::unsupported(format!("COPY {what} available only in CSV mode"))) }
            };
            match name.as_str() {
                "delimiter" | "null" | "header" if binary => {
                    let option = name.to_ascii_uppercase();
                    return Err(syntax(&format!("cannot specify {option} in BINARY mode")));
                }
                "format" | "freeze" => {}
                "delimiter" => parsed.delimiter = byte_of("delimiter", &text_of(name, value)?)?,
                "null" => parsed.null = text_of(name, value)?,
                "header" => parsed.header = header_of(value)?,
                "quote" => {
                    only_csv("quote")?;
                    parsed.quote = byte_of("quote", &text_of(name, value)?)?;
                }
                "escape" => {
                    only_csv("escape")?;
                    escape = Some(byte_of("escape", &text_of(name, value)?)?);
                }
                "force_quote" => {
                    only_csv("force quote")?;
                    only(!from, "COPY force quote only available using COPY TO")?;
                    parsed.force_quote = columns_of(name, value, columns)?;
                }
                "force_not_null" => {
                    only_csv("force not null")?;
                    only(from, "COPY force not null only available using COPY FROM")?;
                    parsed.force_not_null = columns_of(name, value, columns)?;
                }
                "force_null" => {
                    only_csv("force null")?;
                    only(from, "COPY force null only available using COPY FROM")?;
                    parsed.force_null = columns_of(name, value, columns)?;
                }
                "encoding" => check_client_encoding(&text_of(name, value)?)?,
                other => return Err(syntax(&format!("option \"{other}\" not recognized"))),
            }
        }
        parsed.escape = escape.unwrap_or(parsed.quote);
        parsed.check()?;
        Ok(parsed)
    }

    fn check(&self) -> Result<()> {
        let invalid = |message: &str| Err(Error::new(SqlState::InvalidParameterValue, message));
        let csv = self.format == CopyFormat::Csv;
        if matches!(self.delimiter, b'\n' | b'\r') {
            return invalid("COPY delimiter cannot be newline or carriage return");
        }
        if self.null.contains(['\n', '\r']) {
            return invalid("COPY null representation cannot use newline or carriage return");
        }
        if !csv && b"\\.abcdefghijklmnopqrstuvwxyz0123456789".contains(&self.delimiter) {
            return invalid(&format!("COPY delimiter cannot be \"{}\"", self.delimiter as char));
        }
        if csv && self.delimiter == self.quote {
            return invalid("COPY delimiter and quote must be different");
        }
        if self.null.as_bytes().contains(&self.delimiter) {
            return Err(Error::unsupported("COPY delimiter must not appear in the NULL specification"));
        }
        if csv && self.null.as_bytes().contains(&self.quote) {
            return Err(Error::unsupported("CSV quote character must not appear in the NULL specification"));
        }
        Ok(())
    }
}

fn syntax(message: &str) -> Error {
    Error::new(SqlState::SyntaxError, message)
}

fn only(right_direction: bool, message: &str) -> Result<()> {
    if right_direction { Ok(()) } else { Err(Error::unsupported(message)) }
}

fn text_of(name: &str, value: &CopyOptionValue) -> Result<String> {
    match value {
        CopyOptionValue::Text(text) => Ok(text.clone()),
        CopyOptionValue::None => Err(syntax(&format!("{name} requires a parameter"))),
        _ => Err(syntax(&format!("argument to option \"{name}\" must be a single value"))),
    }
}

fn byte_of(name: &str, value: &str) -> Result<u8> {
    match value.as_bytes() {
        [byte] => Ok(*byte),
        _ => Err(Error::unsupported(format!("COPY {name} must be a single one-byte character"))),
    }
}

fn header_of(value: &CopyOptionValue) -> Result<CopyHeader> {
    let word = match value {
        CopyOptionValue::None => return Ok(CopyHeader::Yes),
        value => text_of("header", value)?.to_ascii_lowercase(),
    };
    match word.as_str() {
        "true" | "on" | "1" => Ok(CopyHeader::Yes),
        "false" | "off" | "0" => Ok(CopyHeader::No),
        "match" => Ok(CopyHeader::Match),
        _ => Err(syntax("header requires a Boolean value or \"match\"")),
    }
}

fn columns_of(name: &str, value: &CopyOptionValue, columns: &[&str]) -> Result<Vec<usize>> {
    match value {
        CopyOptionValue::All => Ok((0..columns.len()).collect()),
        CopyOptionValue::Columns(names) => names
            .iter()
            .map(|wanted| {
                columns.iter().position(|column| column == wanted).ok_or_else(|| {
                    let option = name.to_ascii_uppercase();
                    let message = format!("{option} column \"{wanted}\" not referenced by COPY");
                    Error::new(SqlState::InvalidColumnReference, message)
                })
            })
            .collect(),
        _ => {
            let message = format!("argument to option \"{name}\" must be a list of column names");
            Err(Error::new(SqlState::InvalidParameterValue, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked_as_in_postgres() {
        let text = |value: &str| CopyOptionValue::Text(value.to_string());
        let parse = |options: &[(&str, CopyOptionValue)]| {
            let options: Vec<_> = options.iter().map(|(n, v)| (n.to_string(), v.clone())).collect();
            CopyOptions::parse(&options, &["a", "b"], true)
        };
        let csv = parse(&[("FORMAT", text("csv")), ("HEADER", CopyOptionValue::None), ("quote", text("'"))]).unwrap();
        assert_eq!((csv.quote, csv.escape, csv.header), (b'\'', b'\'', CopyHeader::Yes));
        let columns = CopyOptionValue::Columns(vec!["b".to_string()]);
        let csv = parse(&[("format", text("csv")), ("force_null", columns)]).unwrap();
        assert_eq!(csv.force_null, [1]);
        let refused = |options: &[(&str, CopyOptionValue)], expected: &str| {
            assert_eq!(parse(options).unwrap_err().message(), expected);
        };
        refused(&[("quote", text("'"))], "COPY quote available only in CSV mode");
        refused(&[("delimiter", text("ab"))], "COPY delimiter must be a single one-byte character");
        refused(&[("delimiter", text("a"))], "COPY delimiter cannot be \"a\"");
        refused(&[("null", text("\n"))], "COPY null representation cannot use newline or carriage return");
        refused(&[("nonsense", text("1"))], "option \"nonsense\" not recognized");
        refused(&[("null", text("")), ("NULL", text(""))], "conflicting or redundant options");
    }
}
