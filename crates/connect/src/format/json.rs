//! NDJSON: one object a line. Finds top-level keys and the extent of their values, without building a tree.
//!
//! Lines of one stream mostly have the same keys in the same order, so the scanner compares each key with the key that stood
//! at that place in the line before, and looks names up only on a surprise. Grammar is checked strictly (RFC 8259);
//! the inside of nested values and string escapes is left to serde_json.
//!
//! Keys match columns exactly or, failing that, ignoring ASCII case; of equal keys the last wins; a missing key is NULL;
//! keys without a column are ignored.

use memchr::memchr;

use super::spans::{Kind, Malformed, ScanLimits, ScanStop, Span, Spans};

/// Finds the wanted values and puts them into [`Spans`].
#[derive(Clone, Debug)]
pub struct Scanner {
    columns: Vec<String>,
    /// What stood at each place of the line before.
    shape: Vec<Known>,
    /// For each column, the number of the line in which an exact key last gave it.
    exact_in_line: Vec<u64>,
    line: u64,
}

/// A key that was looked up.
#[derive(Clone, Debug)]
struct Known {
    /// As written, with its quotes.
    quoted: Vec<u8>,
    target: Option<Target>,
}

#[derive(Clone, Copy, Debug)]
struct Target {
    column: usize,
    exact: bool,
}

type Scan<T> = Result<T, &'static str>;

impl Scanner {
    /// `columns`: the wanted keys; column `i` goes to span column `i`.
    pub fn new(columns: Vec<String>) -> Scanner {
        let exact_in_line = vec![0; columns.len()];
        Scanner { columns, shape: Vec::new(), exact_in_line, line: 0 }
    }

    /// Appends the records of `block` to `spans`, going on from `spans.consumed`.
    pub fn scan(&mut self, block: &[u8], limits: ScanLimits, spans: &mut Spans) -> ScanStop {
        let mut position = spans.consumed;
        loop {
            spans.consumed = position;
            if spans.total() >= limits.records || position >= limits.start_before || position >= block.len() {
                return ScanStop::Limit;
            }
            let rest = &block[position..];
            let (length, next) = match memchr(b'\n', rest) {
                Some(length) => (length, position + length + 1),
                None if limits.at_end => (rest.len(), block.len()),
                None if rest.len() <= limits.record_bytes_max => return ScanStop::Incomplete,
                None => return ScanStop::TooLong,
            };
            let outcome = if next - position > limits.record_bytes_max {
                Err(format!("the record is longer than {} bytes", limits.record_bytes_max))
            } else if rest[..length].trim_ascii().is_empty() {
                position = next;
                continue;
            } else {
                let base = spans.values.len();
                spans.values.resize(base + spans.width, Span::NULL);
                let row = &mut spans.values[base..];
                self.object(block, position, position + length, row).map_err(|(what, at)| {
                    spans.values.truncate(base);
                    format!("invalid JSON: {what} (at byte {} of the line)", at.saturating_sub(position) + 1)
                })
            };
            match outcome {
                Ok(()) => spans.records.push((position as u32, next as u32)),
                Err(reason) => spans.malformed.push(Malformed { start: position as u32, end: next as u32, reason }),
            }
            position = next;
        }
    }

    /// Reads the object in `block[start .. end]`. Errors: what is wrong, and where.
    fn object(
        &mut self,
        block: &[u8],
        start: usize,
        end: usize,
        row: &mut [Span],
    ) -> Result<(), (&'static str, usize)> {
        self.line += 1;
        let mut cursor = Cursor { bytes: &block[..end], at: start };
        let read = self.members(&mut cursor, row);
        read.map_err(|what| (what, cursor.at))
    }

    fn members(&mut self, cursor: &mut Cursor<'_>, row: &mut [Span]) -> Scan<()> {
        cursor.blanks();
        if !cursor.eat(b'{') {
            return Err("the line is not an object");
        }
        cursor.blanks();
        if !cursor.eat(b'}') {
            let mut place = 0;
            loop {
                let target = self.key(cursor, place)?;
                place += 1;
                cursor.blanks();
                if !cursor.eat(b':') {
                    return Err("\":\" expected after a key");
                }
                cursor.blanks();
                let span = cursor.value()?;
                if let Some(Target { column, exact }) = target {
                    // An exact key beats one that only matches ignoring case, whichever comes first.
                    let line = self.line;
                    let given = self.exact_in_line.get_mut(column).filter(|l| exact || **l != line);
                    if let (Some(given), Some(slot)) = (given, row.get_mut(column)) {
                        if exact {
                            *given = line;
                        }
                        *slot = span;
                    }
                }
                cursor.blanks();
                if cursor.eat(b',') {
                    cursor.blanks();
                } else if cursor.eat(b'}') {
                    break;
                } else {
                    return Err("\",\" or \"}\" expected after a value");
                }
            }
        }
        cursor.blanks();
        if cursor.at == cursor.bytes.len() { Ok(()) } else { Err("text follows the object") }
    }

    /// Reads a key with its quotes; `place` is its number in the line.
    #[inline]
    fn key(&mut self, cursor: &mut Cursor<'_>, place: usize) -> Scan<Option<Target>> {
        if let Some(known) = self.shape.get(place)
            && cursor.rest().starts_with(&known.quoted)
        {
            cursor.at += known.quoted.len();
            return Ok(known.target);
        }
        self.unexpected_key(cursor, place)
    }

    fn unexpected_key(&mut self, cursor: &mut Cursor<'_>, place: usize) -> Scan<Option<Target>> {
        let start = cursor.at;
        if !cursor.eat(b'"') {
            return Err("a key in quotes expected");
        }
        let escaped = cursor.string()?;
        let quoted = &cursor.bytes[start..cursor.at];
        let target = if escaped {
            let name: String = serde_json::from_slice(quoted).map_err(|_| "a key holds an invalid escape")?;
            lookup(&self.columns, name.as_bytes())
        } else {
            lookup(&self.columns, &quoted[1..quoted.len() - 1])
        };
        let known = Known { quoted: quoted.to_vec(), target };
        match self.shape.get_mut(place) {
            Some(slot) => *slot = known,
            None if place < SHAPE_KEYS_MAX => self.shape.push(known),
            None => {}
        }
        Ok(target)
    }
}

/// The column that `name` gives.
fn lookup(columns: &[String], name: &[u8]) -> Option<Target> {
    if let Some(column) = columns.iter().position(|c| c.as_bytes() == name) {
        return Some(Target { column, exact: true });
    }
    let column = columns.iter().position(|c| c.as_bytes().eq_ignore_ascii_case(name))?;
    Some(Target { column, exact: false })
}

/// A member of an object: the column that its key gives, and its value.
pub(super) struct Member {
    pub(super) column: Option<usize>,
    pub(super) value: Span,
}

/// The members of the object in `block[start .. end]`, with values as spans of `block`. `None`: it is malformed.
pub(super) fn members_of(block: &[u8], start: usize, end: usize, columns: &[String]) -> Option<Vec<Member>> {
    let mut cursor = Cursor { bytes: block.get(..end)?, at: start };
    let mut out = Vec::new();
    cursor.blanks();
    if !cursor.eat(b'{') {
        return None;
    }
    cursor.blanks();
    while !cursor.eat(b'}') {
        if !out.is_empty() {
            if !cursor.eat(b',') {
                return None;
            }
            cursor.blanks();
        }
        let key = cursor.at;
        if !cursor.eat(b'"') {
            return None;
        }
        cursor.string().ok()?;
        let name: String = serde_json::from_slice(block.get(key..cursor.at)?).ok()?;
        cursor.blanks();
        if !cursor.eat(b':') {
            return None;
        }
        cursor.blanks();
        let value = cursor.value().ok()?;
        out.push(Member { column: lookup(columns, name.as_bytes()).map(|t| t.column), value });
        cursor.blanks();
    }
    cursor.blanks();
    (cursor.at == end).then_some(out)
}

/// Reads the value of any kind that starts at `at` and ends before `end`. The value, and where the text behind it starts.
pub(super) fn value_at(block: &[u8], at: usize, end: usize) -> Option<(Span, usize)> {
    let mut cursor = Cursor { bytes: block.get(..end)?, at };
    let span = cursor.value().ok()?;
    Some((span, cursor.at))
}

/// Keys of a line that are remembered for the next one.
const SHAPE_KEYS_MAX: usize = 1024;

/// The keys and values of one object in `line`, in order, with values as spans of `line`. Errors: what is wrong.
pub fn members(line: &[u8]) -> Result<Vec<(String, Span)>, &'static str> {
    let mut cursor = Cursor { bytes: line, at: 0 };
    let mut out = Vec::new();
    cursor.blanks();
    if !cursor.eat(b'{') {
        return Err("the line is not an object");
    }
    cursor.blanks();
    while !cursor.eat(b'}') {
        if !out.is_empty() {
            if !cursor.eat(b',') {
                return Err("\",\" or \"}\" expected after a value");
            }
            cursor.blanks();
        }
        let start = cursor.at;
        if !cursor.eat(b'"') {
            return Err("a key in quotes expected");
        }
        cursor.string()?;
        let key = serde_json::from_slice(&line[start..cursor.at]).map_err(|_| "a key holds an invalid escape")?;
        cursor.blanks();
        if !cursor.eat(b':') {
            return Err("\":\" expected after a key");
        }
        cursor.blanks();
        out.push((key, cursor.value()?));
        cursor.blanks();
    }
    Ok(out)
}

/// The elements of an array, as spans of `text`. `text` is one JSON value. Errors: it is not an array, or malformed.
pub fn elements(text: &[u8]) -> Result<Vec<Span>, &'static str> {
    let mut cursor = Cursor { bytes: text, at: 0 };
    let mut out = Vec::new();
    cursor.blanks();
    if !cursor.eat(b'[') {
        return Err("it is not an array");
    }
    cursor.blanks();
    if cursor.eat(b']') {
        return Ok(out);
    }
    loop {
        out.push(cursor.value()?);
        cursor.blanks();
        if cursor.eat(b']') {
            return Ok(out);
        }
        if !cursor.eat(b',') {
            return Err("\",\" or \"]\" expected after an element");
        }
        cursor.blanks();
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    #[inline]
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or(&[])
    }

    #[inline]
    fn peek(&self) -> u8 {
        // NUL stands for the end; it is in no grammar rule.
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    #[inline]
    fn eat(&mut self, wanted: u8) -> bool {
        let hit = self.bytes.get(self.at) == Some(&wanted);
        self.at += usize::from(hit);
        hit
    }

    #[inline]
    fn blanks(&mut self) {
        while matches!(self.peek(), b' ' | b'\t' | b'\r' | b'\n') {
            self.at += 1;
        }
    }

    /// Reads a value of any kind, and leaves the cursor after it.
    #[inline]
    fn value(&mut self) -> Scan<Span> {
        let start = self.at;
        let kind = match self.peek() {
            b'"' => {
                self.at += 1;
                let escaped = self.string()?;
                let kind = if escaped { Kind::JsonEscaped } else { Kind::Plain };
                return Ok(Span { start: start as u32 + 1, end: self.at as u32 - 1, kind });
            }
            b'-' | b'0'..=b'9' => {
                self.number()?;
                Kind::JsonNumber
            }
            b't' => self.word(b"true", Kind::JsonBoolean)?,
            b'f' => self.word(b"false", Kind::JsonBoolean)?,
            b'n' => self.word(b"null", Kind::Null)?,
            b'{' | b'[' => {
                self.nested()?;
                Kind::JsonNested
            }
            _ => return Err("a value expected"),
        };
        Ok(Span { start: start as u32, end: self.at as u32, kind })
    }

    fn word(&mut self, word: &[u8], kind: Kind) -> Scan<Kind> {
        if !self.rest().starts_with(word) {
            return Err("a value expected");
        }
        self.at += word.len();
        Ok(kind)
    }

    /// Reads to the end of a string whose opening quote has been read. Returns whether it holds escapes.
    #[inline]
    fn string(&mut self) -> Scan<bool> {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGH: u64 = 0x8080_8080_8080_8080;
        let mut escaped = false;
        loop {
            // Eight bytes at a time to the first quote, backslash or control character. The lowest mark of each test
            // is exact (a borrow can only spoil higher bytes), so the lowest of all is.
            while let Some(eight) = self.bytes.get(self.at..self.at + 8).and_then(|s| <[u8; 8]>::try_from(s).ok()) {
                let word = u64::from_le_bytes(eight);
                let quotes = word ^ (ONES * b'"' as u64);
                let slashes = word ^ (ONES * b'\\' as u64);
                let marks = ((quotes.wrapping_sub(ONES) & !quotes)
                    | (slashes.wrapping_sub(ONES) & !slashes)
                    | (word.wrapping_sub(ONES * 0x20) & !word))
                    & HIGH;
                if marks != 0 {
                    self.at += (marks.trailing_zeros() / 8) as usize;
                    break;
                }
                self.at += 8;
            }
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.at = (self.at + 2).min(self.bytes.len());
                }
                Some(0..=0x1f) => return Err("a control character in a string"),
                Some(_) => self.at += 1,
                None => return Err("a string does not end"),
            }
        }
    }

    #[inline]
    fn digits(&mut self) -> Scan<()> {
        let start = self.at;
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err("a number is malformed") }
    }

    #[inline]
    fn number(&mut self) -> Scan<()> {
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        } else if self.peek().is_ascii_digit() {
            return Err("a number is malformed");
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            if !self.eat(b'+') {
                self.eat(b'-');
            }
            self.digits()?;
        }
        Ok(())
    }

    /// Reads an object or array: finds its end by counting, then has serde_json check the inside.
    fn nested(&mut self) -> Scan<()> {
        let start = self.at;
        let mut depth = 0usize;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    self.string()?;
                    continue;
                }
                Some(b'{' | b'[') => depth += 1,
                Some(b'}' | b']') => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        break;
                    }
                }
                Some(_) => {}
                None => return Err("an object or array does not end"),
            }
            self.at += 1;
        }
        match serde_json::from_slice::<serde::de::IgnoredAny>(&self.bytes[start..self.at]) {
            Ok(_) => Ok(()),
            Err(_) => Err("a nested value is malformed"),
        }
    }
}

#[cfg(test)]
mod tests;
