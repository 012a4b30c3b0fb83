//! NDJSON whose records look alike: values straight into columns, without looking for keys.
//!
//! The records of a file mostly have the same keys in the same order, written by the same program. So the bytes between the
//! values of one record (the shape) are compared with those of the next in place, and each value is parsed where it must be:
//!
//! ```text
//! {"id":17,"name":"Ann"}⏎      literal {"id":   number   literal ,"name":"   text   literal }⏎
//! {"id":18,"name":"Bob"}⏎      the same?        → id     the same?           → name  the same?
//! ```
//!
//! One pass reads every byte once; there is no search for line ends and no separate check of UTF-8, because literals were
//! checked when they were learned and strings are checked while their end is looked for.
//!
//! Nothing is decided here that the exact path ([`json::Scanner`](super::json::Scanner) and [`Decoder`]) would decide
//! otherwise: a value that the fast parsers do not know is read as the exact path reads it, and a record that then still does
//! not fit is taken back and left to the exact path, with its errors and their words. So it does not matter for the rows which
//! path a record takes.

use memchr::memchr;

use super::decode::{Column, Decoder};
use super::json;
use super::spans::{Kind, ScanLimits, ScanStop, Span, Spans};
use super::{input, temporal};

/// Reads NDJSON into the columns of a decoder.
pub struct Speculator {
    /// The exact path.
    scanner: json::Scanner,
    /// The wanted keys; column `i` of the decoder is key `i`.
    names: Vec<String>,
    shape: Option<Shape>,
    /// Records in a row that did not have the shape.
    missed_in_row: u32,
    /// Records with and without the shape since the last judgement.
    hits: usize,
    misses: usize,
    /// Records that are still to be left to the exact path without an attempt.
    resting: usize,
    /// How long the next rest is.
    rest: usize,
}

/// After so many misses in a row the shape is learned anew.
const RELEARN_AFTER: u32 = 4;

/// After so many misses it is judged whether speculation pays.
const JUDGED_MISSES: usize = 64;

/// The least and the most records of a rest.
const REST_MIN: usize = 1 << 10;
const REST_MAX: usize = 1 << 16;

/// A longer line is no pattern for others.
const LEARNED_BYTES_MAX: usize = 1 << 16;

impl Speculator {
    /// `names`: the wanted keys; key `i` gives column `i` of the decoder.
    pub fn new(names: Vec<String>) -> Speculator {
        Speculator {
            scanner: json::Scanner::new(names.clone()),
            names,
            shape: None,
            missed_in_row: 0,
            hits: 0,
            misses: 0,
            resting: 0,
            rest: REST_MIN,
        }
    }

    /// Appends records of `block`, which starts at `offset` of the split, to `decoder`: at least one that there is, maybe
    /// fewer than `limits` allow. `spans` is cleared, then tells what was consumed, which records were malformed, and, if any
    /// of them may be faulty, the records that were added to the decoder.
    pub fn read(
        &mut self,
        block: &[u8],
        offset: u64,
        limits: ScanLimits,
        decoder: &mut Decoder,
        spans: &mut Spans,
    ) -> ScanStop {
        spans.clear();
        if self.resting == 0 {
            spans.consumed = self.run(block, limits, decoder);
            if spans.consumed > 0 {
                return ScanStop::Limit;
            }
        }
        // After a miss one record is left to the exact path.
        let records = limits.records.min(self.resting.max(1));
        let stop = self.scanner.scan(block, ScanLimits { records, ..limits }, spans);
        self.resting = self.resting.saturating_sub(spans.total());
        decoder.append(block, offset, spans);
        stop
    }

    /// Appends records from the start of `block` on until one does not have the shape. Returns the bytes that were consumed.
    fn run(&mut self, block: &[u8], limits: ScanLimits, decoder: &mut Decoder) -> usize {
        let base = decoder.rows();
        let (columns, fields) = decoder.columns_mut();
        if self.shape.is_none() {
            let nullable: Vec<bool> = fields.iter().map(|f| f.is_nullable()).collect();
            self.shape = Shape::learn(block, &self.names, &nullable, columns);
        }
        let Some(shape) = &mut self.shape else {
            self.missed();
            return 0;
        };
        let (mut at, mut rows) = (0, 0);
        let mut missed = false;
        while rows < limits.records && at < limits.start_before && at < block.len() {
            match shape.record(block, at, columns).filter(|next| next - at <= limits.record_bytes_max) {
                Some(next) => at = next,
                None => {
                    columns.iter_mut().for_each(|c| c.truncate(base + rows));
                    missed = true;
                    break;
                }
            }
            rows += 1;
        }
        for column in &shape.absent {
            if let Some(column) = columns.get_mut(*column) {
                (0..rows).for_each(|_| column.push_null());
            }
        }
        debug_assert!(columns.iter().all(|c| c.len() == base + rows));
        decoder.added(rows);
        self.hits += rows;
        if rows > 0 {
            self.missed_in_row = 0;
        }
        if missed {
            self.missed();
        }
        at
    }

    fn missed(&mut self) {
        self.misses += 1;
        self.missed_in_row += 1;
        if self.missed_in_row >= RELEARN_AFTER {
            self.shape = None;
            self.missed_in_row = 0;
        }
        if self.misses >= JUDGED_MISSES {
            if self.misses > self.hits {
                self.resting = self.rest;
                self.rest = (self.rest * 2).min(REST_MAX);
            } else {
                self.rest = REST_MIN;
            }
            (self.hits, self.misses) = (0, 0);
        }
    }
}

/// What the records of a run have in common.
struct Shape {
    steps: Vec<Step>,
    /// What stands behind the last value, with the line end.
    tail: Literal,
    /// Wanted columns without a key.
    absent: Vec<usize>,
}

/// One value and what stands before it.
struct Step {
    literal: Literal,
    /// The literal ends with the opening quote of the value.
    quoted: bool,
    action: Action,
    /// The wanted column.
    column: Option<usize>,
    nullable: bool,
}

/// How a value is read as long as it looks as expected. Everything else is [`Step::any`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    /// No expectation.
    Any,
    /// An unwanted string, number.
    PassString,
    PassNumber,
    Text(usize),
    /// A string for a column that is only checked.
    Unread(usize),
    Int16(usize),
    Int32(usize),
    Int64(usize),
    Float64(usize),
    Decimal(usize),
    Boolean(usize),
    Timestamp(usize),
    Timestamptz(usize),
    /// A number or string for a column of any other type.
    Number(usize),
    String(usize),
}

impl Shape {
    /// The shape of the first record of `block`. `None`: it has none that could be relied on.
    fn learn(block: &[u8], names: &[String], nullable: &[bool], columns: &[Column]) -> Option<Shape> {
        let end = memchr(b'\n', block.get(..LEARNED_BYTES_MAX).unwrap_or(block))?;
        let line = block.get(..=end)?;
        if std::str::from_utf8(line).is_err() {
            return None;
        }
        let mut given = vec![false; names.len()];
        let mut steps = Vec::new();
        let mut from = 0;
        for member in json::members_of(line, 0, end, names)? {
            // Of several keys for one column the exact path chooses.
            if let Some(given) = member.column.and_then(|c| given.get_mut(c))
                && std::mem::replace(given, true)
            {
                return None;
            }
            let Span { start, end, kind } = member.value;
            let quoted = matches!(kind, Kind::Plain | Kind::JsonEscaped);
            let (start, end) = (start as usize, end as usize);
            let literal = Literal::new(line.get(from..start)?);
            from = end + usize::from(quoted);
            let column = member.column;
            let nullable = column.is_none_or(|c| nullable.get(c).copied().unwrap_or(false));
            let mut step = Step { literal, quoted, action: Action::Any, column, nullable };
            step.expect(kind, columns);
            steps.push(step);
        }
        if steps.is_empty() {
            return None;
        }
        let absent: Vec<usize> = (0..names.len()).filter(|c| given.get(*c) == Some(&false)).collect();
        if absent.iter().any(|c| nullable.get(*c) != Some(&true)) {
            return None;
        }
        Some(Shape { steps, tail: Literal::new(line.get(from..)?), absent })
    }

    /// Adds the record that starts at `at` to the columns. Returns the start of the next one; `None`: it does not have the
    /// shape, and some columns may already have a value of it.
    #[inline]
    fn record(&mut self, block: &[u8], start: usize, columns: &mut [Column]) -> Option<usize> {
        let mut at = start;
        let mut line_end = None;
        for step in &mut self.steps {
            let value = step.literal.behind(block, at);
            let read = value.and_then(|value| step.read(block, value, columns));
            at = match read {
                Some(next) => next,
                None => step.any(block, at, &mut line_end, columns)?,
            };
        }
        self.tail.behind(block, at)
    }
}

impl Step {
    /// Expects values of `kind` from now on.
    fn expect(&mut self, kind: Kind, columns: &[Column]) {
        let Some(index) = self.column else {
            self.action = match kind {
                Kind::Plain | Kind::JsonEscaped => Action::PassString,
                Kind::JsonNumber => Action::PassNumber,
                _ => Action::Any,
            };
            return;
        };
        self.action = match (kind, columns.get(index)) {
            (Kind::Plain | Kind::JsonEscaped, Some(column)) => match column {
                Column::Unread(_) => Action::Unread(index),
                Column::Text(_) => Action::Text(index),
                Column::Timestamp(_) => Action::Timestamp(index),
                Column::Timestamptz(..) => Action::Timestamptz(index),
                _ => Action::String(index),
            },
            (Kind::JsonNumber, Some(column)) => match column {
                Column::Int16(_) => Action::Int16(index),
                Column::Int32(_) => Action::Int32(index),
                Column::Int64(_) => Action::Int64(index),
                Column::Float64(_) => Action::Float64(index),
                Column::Decimal(..) => Action::Decimal(index),
                _ => Action::Number(index),
            },
            (Kind::JsonBoolean, Some(Column::Boolean(_))) => Action::Boolean(index),
            _ => Action::Any,
        };
    }

    /// Reads the value at `at`, behind the literal, if it looks as expected. Returns what stands behind it, also behind its
    /// closing quote. After `None` no column has got a value.
    #[inline(always)]
    fn read(&self, block: &[u8], at: usize, columns: &mut [Column]) -> Option<usize> {
        macro_rules! slots {
            ($kind:ident, $index:expr) => {
                match columns.get_mut($index) {
                    Some(Column::$kind(slots, ..)) => slots,
                    _ => return None,
                }
            };
        }
        macro_rules! whole {
            ($kind:ident, $index:expr, $type:ty) => {{
                let (value, next) = whole_number(block, at)?;
                slots!($kind, $index).put(<$type>::try_from(value).ok()?);
                Some(next)
            }};
        }
        match self.action {
            Action::Int64(index) => whole!(Int64, index, i64),
            Action::Text(index) => {
                let end = plain_string(block, at)?;
                // SAFETY: `plain_string` has checked this range.
                unsafe { slots!(Text, index).put_range(block, at, end) };
                Some(end + 1)
            }
            Action::Unread(index) => {
                let end = plain_string(block, at)?;
                slots!(Unread, index).put(());
                Some(end + 1)
            }
            Action::PassString => plain_string(block, at).map(|end| end + 1),
            Action::PassNumber => number(block, at),
            Action::Timestamp(index) => {
                let end = plain_string(block, at)?;
                slots!(Timestamp, index).put(temporal::timestamp(block.get(at..end)?).ok()?);
                Some(end + 1)
            }
            Action::Timestamptz(index) => {
                let end = plain_string(block, at)?;
                slots!(Timestamptz, index).put(temporal::timestamptz(block.get(at..end)?).ok()?);
                Some(end + 1)
            }
            Action::Int32(index) => whole!(Int32, index, i32),
            Action::Int16(index) => whole!(Int16, index, i16),
            Action::Decimal(index) => {
                let Some(Column::Decimal(slots, precision, scale)) = columns.get_mut(index) else { return None };
                let (units, next) = decimal(block, at, *precision, *scale)?;
                slots.put(units);
                Some(next)
            }
            Action::Float64(index) => {
                let (value, next) = match short_float(block, at) {
                    Some(read) => read,
                    None => {
                        let next = number(block, at)?;
                        (input::float(block.get(at..next)?).ok()?, next)
                    }
                };
                slots!(Float64, index).put(value);
                Some(next)
            }
            Action::Boolean(index) => {
                let rest = block.get(at..)?;
                let (value, next) = if rest.starts_with(b"true") {
                    (true, at + 4)
                } else if rest.starts_with(b"false") {
                    (false, at + 5)
                } else {
                    return None;
                };
                slots!(Boolean, index).put(value);
                Some(next)
            }
            Action::String(index) => {
                let end = plain_string(block, at)?;
                let text = std::str::from_utf8(block.get(at..end)?).ok()?;
                columns.get_mut(index)?.take(text, Kind::Plain).ok()?;
                Some(end + 1)
            }
            Action::Number(index) => {
                let next = number(block, at)?;
                let text = std::str::from_utf8(block.get(at..next)?).ok()?;
                columns.get_mut(index)?.take(text, Kind::JsonNumber).ok()?;
                Some(next)
            }
            Action::Any => None,
        }
    }

    /// Reads the literal and a value of any kind as the exact path does. `line_end` is where the record's line ends, once
    /// that is known. `None`: the exact path has to look.
    #[cold]
    #[inline(never)]
    fn any(&mut self, block: &[u8], at: usize, line_end: &mut Option<usize>, columns: &mut [Column]) -> Option<usize> {
        // A value that is not a string has no quote where the literal has one.
        let literal = &self.literal.bytes[..self.literal.bytes.len() - usize::from(self.quoted)];
        if !block.get(at..)?.starts_with(literal) {
            return None;
        }
        let end = match *line_end {
            Some(end) => end,
            None => *line_end.insert(at + memchr(b'\n', block.get(at..)?)?),
        };
        let (span, next) = json::value_at(block, at + literal.len(), end)?;
        let text = std::str::from_utf8(block.get(span.start as usize..span.end as usize)?).ok()?;
        if span.kind == Kind::Null && !self.nullable {
            return None;
        }
        if let Some(column) = self.column {
            columns.get_mut(column)?.take(text, span.kind).ok()?;
        }
        if self.action == Action::Any && !self.quoted && span.kind != Kind::Null {
            // The pattern had NULL here, which says nothing about other values.
            self.quoted = matches!(span.kind, Kind::Plain | Kind::JsonEscaped);
            if self.quoted {
                self.literal = Literal::new(&[literal, b"\""].concat());
            }
            self.expect(span.kind, columns);
        }
        Some(next)
    }
}

/// Bytes that must stand where they stood in the pattern.
struct Literal {
    bytes: Vec<u8>,
    /// The first bytes, and which of the word's bits they are.
    word: u128,
    mask: u128,
}

const WORD: usize = 16;

impl Literal {
    fn new(bytes: &[u8]) -> Literal {
        let (mut word, mut mask) = ([0; WORD], [0; WORD]);
        for ((word, mask), byte) in word.iter_mut().zip(&mut mask).zip(bytes) {
            (*word, *mask) = (*byte, 0xff);
        }
        Literal { bytes: bytes.to_vec(), word: u128::from_le_bytes(word), mask: u128::from_le_bytes(mask) }
    }

    /// The place behind the literal, if it stands at `at`.
    #[inline(always)]
    fn behind(&self, block: &[u8], at: usize) -> Option<usize> {
        // One comparison of fixed length instead of a call, as long as there are bytes behind the literal.
        if let Some(chunk) = block.get(at..).and_then(|b| b.first_chunk::<WORD>()) {
            if (u128::from_le_bytes(*chunk) ^ self.word) & self.mask != 0 {
                return None;
            }
            if self.bytes.len() <= WORD {
                return Some(at + self.bytes.len());
            }
        }
        self.behind_by_bytes(block, at)
    }

    #[inline(never)]
    fn behind_by_bytes(&self, block: &[u8], at: usize) -> Option<usize> {
        block.get(at..)?.starts_with(&self.bytes).then_some(at + self.bytes.len())
    }
}

/// The end of a string of valid UTF-8 without escapes and control characters that starts at `at`, behind its quote.
#[inline(always)]
fn plain_string(block: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    while let Some(chunk) = block.get(end..).and_then(|b| b.first_chunk::<WORD>()) {
        let marks = special(chunk);
        if marks != 0 {
            end += marks.trailing_zeros() as usize;
            break;
        }
        // A constant step lets the processor look at the next chunk before it has decided about this one.
        end += WORD;
    }
    // Up to here every byte is printable ASCII or DEL.
    if block.get(end) == Some(&b'"') { Some(end) } else { plain_string_by_bytes(block, at, end) }
}

/// Goes on at `from`, in a text with other characters than ASCII or at the end of the block.
#[inline(never)]
fn plain_string_by_bytes(block: &[u8], at: usize, from: usize) -> Option<usize> {
    let length = block.get(from..)?.iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f))?;
    let end = from + length;
    let text = block.get(at..end)?;
    (block.get(end) == Some(&b'"') && std::str::from_utf8(text).is_ok()).then_some(end)
}

/// A bit for each byte of `chunk` that is a quote, a backslash, a control character or not ASCII, the first byte lowest.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn special(chunk: &[u8; WORD]) -> u32 {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_cmplt_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
    };
    // SAFETY: every x86-64 processor has SSE2, and the load reads the 16 bytes of `chunk`, at any alignment.
    unsafe {
        let bytes = _mm_loadu_si128(chunk.as_ptr().cast());
        let quotes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"' as i8));
        let slashes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\' as i8));
        // As signed numbers, bytes that are not ASCII are below control characters.
        let others = _mm_cmplt_epi8(bytes, _mm_set1_epi8(0x20));
        _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quotes, slashes), others)) as u32
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn special(chunk: &[u8; WORD]) -> u32 {
    let bit = |(i, b): (usize, &u8)| u32::from(matches!(b, b'"' | b'\\' | 0..=0x1f | 0x80..)) << i;
    chunk.iter().enumerate().map(bit).sum()
}

/// The number of digits at the start of `word`, least significant byte first, and their value. Eight may be the beginning of
/// more.
#[inline(always)]
fn digits(word: u64) -> (u64, u32) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let word = word ^ (ONES * b'0' as u64);
    // The high bit of every byte that is above 9.
    let others = (((word & (ONES * 0x7f)) + ONES * 0x76) | word) & (ONES * 0x80);
    let count = others.trailing_zeros() / 8;
    if count == 0 {
        return (0, 0);
    }
    // The digits go to the end of the word, with zeros before them.
    (temporal::eight_digits(word << (64 - 8 * count)), count)
}

#[inline(always)]
fn digits_at(block: &[u8], at: usize) -> Option<(u64, u32)> {
    block.get(at..).and_then(|b| b.first_chunk::<8>()).map(|word| digits(u64::from_le_bytes(*word)))
}

const TENS: [u64; 19] = {
    let mut tens = [1; 19];
    let mut i = 1;
    while i < tens.len() {
        tens[i] = tens[i - 1] * 10;
        i += 1;
    }
    tens
};

/// Digits of a JSON number before its point: up to 15. Their value, and where they end. `None`: there are none, or too many,
/// or a zero leads.
#[inline(always)]
fn leading_digits(block: &[u8], at: usize) -> Option<(u64, usize)> {
    let (value, count) = digits_at(block, at)?;
    match count {
        0 => None,
        2..=7 if block.get(at) == Some(&b'0') => None,
        1..=7 => Some((value, at + count as usize)),
        _ => more_digits(block, at, value),
    }
}

#[inline(never)]
fn more_digits(block: &[u8], at: usize, value: u64) -> Option<(u64, usize)> {
    let (more, count) = digits_at(block, at + 8)?;
    if count == 8 || block.get(at) == Some(&b'0') {
        return None;
    }
    Some((value * TENS.get(count as usize)? + more, at + 8 + count as usize))
}

#[inline(always)]
fn negative(block: &[u8], at: usize) -> bool {
    block.get(at) == Some(&b'-')
}

/// Whether a number goes on with a point or an exponent.
#[inline(always)]
fn goes_on(block: &[u8], at: usize) -> bool {
    matches!(block.get(at), Some(b'.' | b'e' | b'E'))
}

/// A whole number of up to 15 digits, and where it ends.
#[inline(always)]
fn whole_number(block: &[u8], at: usize) -> Option<(i64, usize)> {
    let minus = negative(block, at);
    let (value, next) = leading_digits(block, at + usize::from(minus))?;
    if goes_on(block, next) {
        return None;
    }
    let value = value as i64;
    Some((if minus { -value } else { value }, next))
}

/// Digits of a number with up to 7 behind its point, as one number: its sign, its value, its digits behind the point, and
/// where it ends. Below 10^17.
#[inline(always)]
fn short_number(block: &[u8], at: usize) -> Option<(bool, u64, u32, usize)> {
    let minus = negative(block, at);
    let (mut value, mut next) = leading_digits(block, at + usize::from(minus))?;
    let mut behind = 0;
    if block.get(next) == Some(&b'.') {
        let (part, count) = digits_at(block, next + 1)?;
        if !(1..8).contains(&count) || value >= 10_000_000_000 {
            return None;
        }
        value = value * TENS.get(count as usize)? + part;
        next += 1 + count as usize;
        behind = count;
    }
    (!matches!(block.get(next), Some(b'e' | b'E'))).then_some((minus, value, behind, next))
}

/// A decimal number that needs no rounding as an integer of units of `10^-scale`, and where it ends.
#[inline(always)]
fn decimal(block: &[u8], at: usize, precision: u8, scale: i8) -> Option<(i128, usize)> {
    let (minus, value, behind, next) = short_number(block, at)?;
    let shift = usize::try_from(i32::from(scale) - behind as i32).ok()?;
    // Below 10^17 · 10^18.
    let units = i128::from(value) * i128::from(*TENS.get(shift)?);
    if units >= 10i128.checked_pow(u32::from(precision))? {
        return None;
    }
    Some((if minus { -units } else { units }, next))
}

/// A number whose nearest double is one division away, and where it ends.
#[inline(always)]
fn short_float(block: &[u8], at: usize) -> Option<(f64, usize)> {
    let (minus, value, behind, next) = short_number(block, at)?;
    // Both numbers are exact in a double, so the quotient is rounded once, as it must be.
    if value >= 1 << 53 {
        return None;
    }
    let value = value as f64 / *TENS.get(behind as usize)? as f64;
    Some((if minus { -value } else { value }, next))
}

/// Where the number at `at` ends, by the grammar of JSON.
#[inline(always)]
fn number(block: &[u8], at: usize) -> Option<usize> {
    match whole_number(block, at) {
        Some((_, next)) => Some(next),
        None if matches!(block.get(at), Some(b'-' | b'0'..=b'9')) => Some(json::value_at(block, at, block.len())?.1),
        None => None,
    }
}

#[cfg(test)]
mod tests;
