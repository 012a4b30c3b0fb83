//! Bytes of COPY FROM to lines, and lines to fields.
//!
//! Two passes: one finds the ends of lines and can stop anywhere and go on when more bytes come, so that a long line is not
//! read twice; the other splits whole lines. Fields are ranges of the buffer; nothing is copied here.

use std::borrow::Cow;

use flow::{Error, SqlState};

use crate::copy::{CopyFormat, CopyOptions};

/// How lines end: fixed by the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineEnd {
    Unknown,
    Newline,
    CarriageReturn,
    Both,
}

/// What is to be done with the bytes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldKind {
    /// They are the value.
    Plain,
    /// The value is NULL.
    Null,
    /// Backslash escapes of the text format.
    Escaped,
    /// Quotes and escapes of CSV.
    Quoted,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    start: u32,
    end: u32,
    kind: FieldKind,
}

/// A line without its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Lines of input up to and including this one, counting from 1.
    pub(crate) number: u64,
}

/// What is next in the input.
#[derive(Debug)]
pub(crate) enum Next {
    Line(Line),
    /// More bytes are needed.
    Incomplete,
    /// The line `\.`, or the end of the data.
    End,
}

#[cold]
fn bad(message: &str) -> Error {
    Error::new(SqlState::BadCopyFileFormat, message)
}

/// Finds the lines in a growing buffer.
pub(crate) struct Lines {
    csv: bool,
    quote: u8,
    escape: u8,
    line_end: LineEnd,
    /// Where the line at hand starts, how far it has been looked at, and whether that is inside quotes.
    start: usize,
    looked_at: usize,
    in_quotes: bool,
    number: u64,
    ended: bool,
}

impl Lines {
    pub(crate) fn new(options: &CopyOptions) -> Lines {
        Lines {
            csv: options.format == CopyFormat::Csv,
            quote: options.quote,
            escape: options.escape,
            line_end: LineEnd::Unknown,
            start: 0,
            looked_at: 0,
            in_quotes: false,
            number: 0,
            ended: false,
        }
    }

    /// The first byte that is still needed.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// The line at hand, for an error about it.
    pub(crate) fn number(&self) -> u64 {
        self.number + 1
    }

    /// The first `n` bytes of the buffer have been removed.
    pub(crate) fn removed(&mut self, n: usize) {
        self.start -= n;
        self.looked_at -= n;
    }

    /// The next line of `buffer`; `complete` says that nothing will be added to it.
    pub(crate) fn next(&mut self, buffer: &[u8], complete: bool) -> Result<Next, Error> {
        if self.ended {
            return Ok(Next::End);
        }
        let found = if self.csv { self.find_csv(buffer, complete) } else { self.find_text(buffer, complete)? };
        let (end, next_start) = match found {
            Some(found) => found,
            None if !complete => return Ok(Next::Incomplete),
            None if self.in_quotes => return Err(bad("unterminated CSV quoted field")),
            None if self.start == buffer.len() => {
                self.ended = true;
                return Ok(Next::End);
            }
            None => (buffer.len(), buffer.len()),
        };
        self.number += 1;
        let line = Line { start: self.start, end, number: self.number };
        (self.start, self.looked_at) = (next_start, next_start);
        if buffer[line.start..line.end] == *b"\\." {
            self.ended = true;
            return Ok(Next::End);
        }
        Ok(Next::Line(line))
    }

    /// Whether an end of line at `at` is one, and of which kind; `None` if the byte after it decides and is not there.
    fn end_at(&mut self, buffer: &[u8], at: usize, complete: bool) -> Option<Option<(usize, usize)>> {
        let newline = buffer[at] == b'\n';
        if self.line_end == LineEnd::Unknown {
            self.line_end = match (newline, buffer.get(at + 1)) {
                (true, _) => LineEnd::Newline,
                (false, Some(b'\n')) => LineEnd::Both,
                (false, None) if !complete => return None,
                (false, _) => LineEnd::CarriageReturn,
            };
        }
        Some(match self.line_end {
            LineEnd::Newline if newline => Some((at, at + 1)),
            LineEnd::CarriageReturn if !newline => Some((at, at + 1)),
            LineEnd::Both if !newline && buffer.get(at + 1) == Some(&b'\n') => Some((at, at + 2)),
            LineEnd::Both if !newline && at + 1 == buffer.len() && !complete => return None,
            _ => None,
        })
    }

    /// The end of a line of text, and the start of the next. A backslash takes an end of line into the data.
    fn find_text(&mut self, buffer: &[u8], complete: bool) -> Result<Option<(usize, usize)>, Error> {
        loop {
            let rest = &buffer[self.looked_at..];
            let found = match self.line_end {
                LineEnd::Newline => memchr::memchr(b'\n', rest),
                _ => memchr::memchr2(b'\n', b'\r', rest),
            };
            let Some(at) = found.map(|offset| self.looked_at + offset) else {
                self.looked_at = buffer.len();
                return Ok(None);
            };
            let backslashes = buffer[self.start..at].iter().rev().take_while(|b| **b == b'\\').count();
            if backslashes % 2 == 1 {
                // An escaped carriage return and newline are one end of line.
                if buffer[at] == b'\r' && at + 1 == buffer.len() && !complete {
                    self.looked_at = at;
                    return Ok(None);
                }
                let both = buffer[at] == b'\r' && buffer.get(at + 1) == Some(&b'\n');
                self.looked_at = at + 1 + usize::from(both);
                continue;
            }
            match self.end_at(buffer, at, complete) {
                None => {
                    self.looked_at = at;
                    return Ok(None);
                }
                Some(Some(end)) => return Ok(Some(end)),
                Some(None) => {
                    let (name, escape) =
                        if buffer[at] == b'\n' { ("newline", "\\n") } else { ("carriage return", "\\r") };
                    return Err(bad(&format!("literal {name} found in data"))
                        .with_hint(format!("Use \"{escape}\" to represent {name}.")));
                }
            }
        }
    }

    /// The end of a CSV record. Ends of line inside quotes belong to the data but count as lines.
    fn find_csv(&mut self, buffer: &[u8], complete: bool) -> Option<(usize, usize)> {
        loop {
            let at = self.looked_at;
            if self.in_quotes {
                // Only the quote, the escape and line ends matter.
                let found = memchr::memchr3(self.quote, self.escape, b'\n', &buffer[at..]);
                let Some(at) = found.map(|offset| at + offset) else {
                    self.looked_at = buffer.len();
                    return None;
                };
                let byte = buffer[at];
                if byte == b'\n' && byte != self.quote && byte != self.escape {
                    self.number += 1;
                    self.looked_at = at + 1;
                } else if byte == self.escape && self.escape != self.quote {
                    match buffer.get(at + 1) {
                        None if !complete => {
                            self.looked_at = at;
                            return None;
                        }
                        Some(next) if *next == self.quote || *next == self.escape => self.looked_at = at + 2,
                        _ => self.looked_at = at + 1,
                    }
                } else {
                    // A doubled quote closes and opens again, which comes to the same.
                    self.in_quotes = false;
                    self.looked_at = at + 1;
                }
                continue;
            }
            let found = memchr::memchr3(self.quote, b'\n', b'\r', &buffer[at..]);
            let Some(at) = found.map(|offset| at + offset) else {
                self.looked_at = buffer.len();
                return None;
            };
            if buffer[at] == self.quote {
                self.in_quotes = true;
                self.looked_at = at + 1;
                continue;
            }
            match self.end_at(buffer, at, complete) {
                None => {
                    self.looked_at = at;
                    return None;
                }
                Some(Some(end)) => return Some(end),
                // Left in the line, where the split finds and refuses it.
                Some(None) => self.looked_at = at + 1,
            }
        }
    }
}

/// How the lines of one COPY are split into fields.
pub(crate) struct Splitter {
    csv: bool,
    delimiter: u8,
    quote: u8,
    escape: u8,
    null: Vec<u8>,
    force_not_null: Vec<bool>,
    force_null: Vec<bool>,
}

impl Splitter {
    pub(crate) fn new(options: &CopyOptions, columns: usize) -> Splitter {
        let chosen = |positions: &[usize]| (0..columns).map(|i| positions.contains(&i)).collect();
        Splitter {
            csv: options.format == CopyFormat::Csv,
            delimiter: options.delimiter,
            quote: options.quote,
            escape: options.escape,
            null: options.null.as_bytes().to_vec(),
            force_not_null: chosen(&options.force_not_null),
            force_null: chosen(&options.force_null),
        }
    }

    /// Appends the fields of the line `buffer[start .. end]`.
    pub(crate) fn split(&self, buffer: &[u8], line: Line, fields: &mut Vec<Field>) -> Result<(), Error> {
        let bytes = &buffer[..line.end];
        if self.csv { self.split_csv(bytes, line.start, fields) } else { self.split_text(bytes, line.start, fields) }
    }

    #[inline]
    fn split_text(&self, bytes: &[u8], mut start: usize, fields: &mut Vec<Field>) -> Result<(), Error> {
        loop {
            let mut at = start;
            let mut kind = FieldKind::Plain;
            while let Some(&byte) = bytes.get(at) {
                if byte == self.delimiter {
                    break;
                }
                if byte == b'\\' {
                    kind = FieldKind::Escaped;
                    at += 1;
                }
                at += 1;
            }
            let end = at.min(bytes.len());
            if bytes[start..end] == *self.null {
                kind = FieldKind::Null;
            }
            fields.push(Field { start: start as u32, end: end as u32, kind });
            if end == bytes.len() {
                return Ok(());
            }
            start = end + 1;
        }
    }

    fn split_csv(&self, bytes: &[u8], mut start: usize, fields: &mut Vec<Field>) -> Result<(), Error> {
        let first = fields.len();
        loop {
            let column = fields.len() - first;
            let chosen = |list: &[bool]| list.get(column).copied().unwrap_or(false);
            let mut at = start;
            let mut quoted = false;
            while let Some(&byte) = bytes.get(at) {
                if byte == self.quote {
                    quoted = true;
                    at = self.after_quotes(bytes, at + 1)?;
                    continue;
                }
                if byte == self.delimiter {
                    break;
                }
                if matches!(byte, b'\r' | b'\n') {
                    let name = if byte == b'\r' { "carriage return" } else { "newline" };
                    return Err(bad(&format!("unquoted {name} found in data"))
                        .with_hint(format!("Use quoted CSV field to represent {name}.")));
                }
                at += 1;
            }
            let mut field = Field { start: start as u32, end: at as u32, kind: FieldKind::Plain };
            if quoted {
                let inner = bytes.get(start + 1..at.saturating_sub(1)).unwrap_or_default();
                let simple = bytes[start] == self.quote
                    && at >= start + 2
                    && memchr::memchr2(self.quote, self.escape, inner).is_none();
                if simple {
                    // The quotes stand around the whole and nothing is escaped: the value is what is between them.
                    (field.start, field.end) = (field.start + 1, field.end - 1);
                } else {
                    field.kind = FieldKind::Quoted;
                }
                if chosen(&self.force_null) && *self.value(bytes, field).unwrap_or_default() == *self.null {
                    field.kind = FieldKind::Null;
                }
            } else if bytes[start..at] == *self.null && !chosen(&self.force_not_null) {
                field.kind = FieldKind::Null;
            }
            fields.push(field);
            if at >= bytes.len() {
                return Ok(());
            }
            start = at + 1;
        }
    }

    /// The place after the quote that closes what `at` is inside of.
    fn after_quotes(&self, bytes: &[u8], mut at: usize) -> Result<usize, Error> {
        loop {
            let offset = memchr::memchr2(self.quote, self.escape, bytes.get(at..).unwrap_or_default())
                .ok_or_else(|| bad("unterminated CSV quoted field"))?;
            at += offset;
            let next = bytes.get(at + 1).copied();
            if bytes[at] == self.escape && (next == Some(self.quote) || next == Some(self.escape)) {
                at += 2;
            } else if bytes[at] == self.quote {
                return Ok(at + 1);
            } else {
                at += 1;
            }
        }
    }

    /// The value of a field, `None` for NULL.
    #[inline]
    pub(crate) fn value<'a>(&self, buffer: &'a [u8], field: Field) -> Option<Cow<'a, [u8]>> {
        let bytes = &buffer[field.start as usize..field.end as usize];
        match field.kind {
            FieldKind::Plain => Some(Cow::Borrowed(bytes)),
            FieldKind::Null => None,
            FieldKind::Escaped => Some(Cow::Owned(unescape(bytes))),
            FieldKind::Quoted => Some(Cow::Owned(self.unquote(bytes))),
        }
    }

    fn unquote(&self, bytes: &[u8]) -> Vec<u8> {
        let mut value = Vec::with_capacity(bytes.len());
        let (mut in_quotes, mut at) = (false, 0);
        while let Some(&byte) = bytes.get(at) {
            let next = bytes.get(at + 1).copied();
            if in_quotes && byte == self.escape && (next == Some(self.quote) || next == Some(self.escape)) {
                value.extend(next);
                at += 2;
                continue;
            }
            if byte == self.quote {
                in_quotes = !in_quotes;
            } else {
                value.push(byte);
            }
            at += 1;
        }
        value
    }
}

/// Undoes the backslash escapes of the text format.
fn unescape(bytes: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            value.push(byte);
            continue;
        }
        // A backslash at the very end stands for nothing.
        let Some(escaped) = rest.next() else { break };
        let mut digits = |mut number: u32, base: u32, most: usize| {
            let mut taken = 0;
            while taken < most
                && let Some(digit) = rest.peek().and_then(|b| (*b as char).to_digit(base))
            {
                number = number * base + digit;
                taken += 1;
                rest.next();
            }
            (taken > 0).then_some(number)
        };
        value.push(match escaped {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            b'0'..=b'7' => {
                let first = u32::from(escaped - b'0');
                digits(first, 8, 2).unwrap_or(first) as u8
            }
            b'x' => digits(0, 16, 2).map_or(b'x', |number| number as u8),
            other => other,
        });
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits `input`, given to the splitter in pieces of `piece` bytes.
    fn rows(options: &CopyOptions, input: &[u8], piece: usize) -> Result<Vec<Vec<Option<String>>>, Error> {
        let (mut lines, splitter) = (Lines::new(options), Splitter::new(options, 2));
        let (mut buffer, mut rows) = (Vec::new(), Vec::new());
        let mut pieces = input.chunks(piece.max(1));
        loop {
            let piece = pieces.next();
            buffer.extend_from_slice(piece.unwrap_or_default());
            loop {
                match lines.next(&buffer, piece.is_none())? {
                    Next::Line(line) => {
                        let mut fields = Vec::new();
                        splitter.split(&buffer, line, &mut fields)?;
                        let text =
                            |f: &Field| splitter.value(&buffer, *f).map(|v| String::from_utf8(v.to_vec()).unwrap());
                        rows.push(fields.iter().map(text).collect());
                    }
                    Next::Incomplete => break,
                    Next::End => return Ok(rows),
                }
            }
            let start = lines.start();
            buffer.drain(..start);
            lines.removed(start);
        }
    }

    fn check(options: &CopyOptions, input: &str, expected: Result<&[&[Option<&str>]], &str>) {
        // However the bytes are cut into messages, the rows are the same.
        for piece in [1, 2, 3, 1000] {
            match (rows(options, input.as_bytes(), piece), expected) {
                (Ok(found), Ok(expected)) => {
                    let found: Vec<Vec<Option<&str>>> =
                        found.iter().map(|row| row.iter().map(Option::as_deref).collect()).collect();
                    assert_eq!(found, expected, "{input:?} in pieces of {piece}");
                }
                (Err(error), Err(expected)) => assert_eq!(error.message(), expected, "{input:?}"),
                (found, expected) => panic!("{input:?} in pieces of {piece}: {found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn text_lines_split_as_in_postgres() {
        let text = CopyOptions::text();
        check(&text, "1\ta\n2\t\\N\n", Ok(&[&[Some("1"), Some("a")], &[Some("2"), None]]));
        check(&text, "1\ta\r\n2\tb\r\n", Ok(&[&[Some("1"), Some("a")], &[Some("2"), Some("b")]]));
        check(&text, "1\ra\r", Ok(&[&[Some("1")], &[Some("a")]]));
        check(&text, "a\\tb\\\\\tc\\\nd", Ok(&[&[Some("a\tb\\"), Some("c\nd")]]));
        check(&text, "\\101\\x42\\x\\q\t\\\\N\n", Ok(&[&[Some("ABxq"), Some("\\N")]]));
        check(&text, "\n\n", Ok(&[&[Some("")], &[Some("")]]));
        check(&text, "1\n\\.\nignored\n", Ok(&[&[Some("1")]]));
        check(&text, "", Ok(&[]));
        check(&text, "a\\", Ok(&[&[Some("a")]]));
        check(&text, "a\r\nb\nc\r\n", Err("literal newline found in data"));
    }

    #[test]
    fn csv_records_split_as_in_postgres() {
        let csv = CopyOptions::csv();
        check(&csv, "1,a\n2,\n", Ok(&[&[Some("1"), Some("a")], &[Some("2"), None]]));
        check(&csv, "\"\",\"a,b\"\n", Ok(&[&[Some(""), Some("a,b")]]));
        check(&csv, "\"x\"\"y\",\"l1\nl2\"\n", Ok(&[&[Some("x\"y"), Some("l1\nl2")]]));
        check(&csv, "a\"b,c\"d,e\r\nf\r\n", Ok(&[&[Some("ab,cd"), Some("e")], &[Some("f")]]));
        check(&csv, "\"open\n", Err("unterminated CSV quoted field"));
        check(&csv, "a\nb\rc\n", Err("unquoted carriage return found in data"));
        check(&csv, "1\n\\.\nx\n", Ok(&[&[Some("1")]]));
        let escaped = CopyOptions { escape: b'\\', ..CopyOptions::csv() };
        check(&escaped, "\"a\\\"b\",\"c\\\\\"\n", Ok(&[&[Some("a\"b"), Some("c\\")]]));
        let forced = CopyOptions { force_null: vec![0], force_not_null: vec![1], ..CopyOptions::csv() };
        check(&forced, "\"\",\n", Ok(&[&[None, Some("")]]));
    }
}
