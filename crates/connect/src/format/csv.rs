//! CSV: finds records and fields. RFC 4180 with PostgreSQL's NULL rule: an unquoted field equal to the null text is NULL.
//!
//! A field that begins with `"` is quoted: it ends at the next `"` that is not doubled, and may hold delimiters and line
//! ends. A `"` elsewhere is an ordinary character. Records end with LF or CRLF; blank lines between records are skipped
//! unless records have one field. A record that is malformed as such (an unending quote, text after a closing quote)
//! covers its first line only, so that reading goes on at the next line whatever follows.

use std::fmt;

use memchr::{memchr, memchr2};

use super::spans::{Kind, Malformed, ScanLimits, ScanStop, Span, Spans};

const QUOTE: u8 = b'"';

/// How far ahead quotes are looked for: many short lines share one search.
const QUOTE_SEARCH_BYTES: usize = 4096;

/// Finds fields and puts the wanted ones into [`Spans`].
#[derive(Clone, Debug)]
pub struct Splitter {
    delimiter: u8,
    null: Vec<u8>,
    /// For each field of a record, the span column that takes it.
    targets: Vec<Option<u32>>,
    width: usize,
}

/// What is wrong with a record as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    FieldCount { found: usize, wanted: usize },
    UnendingQuote,
    TextAfterQuote,
    TooLong { bytes_max: usize },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::FieldCount { found, wanted } => write!(f, "the record has {found} fields instead of {wanted}"),
            Fault::UnendingQuote => f.write_str("a quoted field does not end"),
            Fault::TextAfterQuote => f.write_str("text follows a closing quote"),
            Fault::TooLong { bytes_max } => write!(f, "the record is longer than {bytes_max} bytes"),
        }
    }
}

/// How the record at some byte went.
enum Record {
    Good {
        next: usize,
    },
    /// `next`: where reading goes on, if the block shows it.
    Bad {
        fault: Fault,
        next: Option<usize>,
    },
    Blank {
        next: usize,
    },
    Incomplete,
}

impl Splitter {
    /// `targets`: one entry a field of the file, in file order, with the span column that takes it (each of `0 .. width`
    /// once). `null` is the unquoted text that means NULL.
    pub fn new(delimiter: u8, null: &str, targets: Vec<Option<usize>>, width: usize) -> Splitter {
        let targets = targets.into_iter().map(|t| t.map(|t| t as u32)).collect();
        Splitter { delimiter, null: null.as_bytes().to_vec(), targets, width }
    }

    /// Appends the records of `block` to `spans`, going on from `spans.consumed`.
    pub fn scan(&self, block: &[u8], limits: ScanLimits, spans: &mut Spans) -> ScanStop {
        debug_assert_eq!(spans.width, self.width);
        let mut position = spans.consumed;
        let mut quote = position;
        loop {
            spans.consumed = position;
            if spans.total() >= limits.records || position >= limits.start_before || position >= block.len() {
                return ScanStop::Limit;
            }
            let before = spans.values.len();
            match self.record(block, position, &mut quote, limits, spans) {
                Record::Good { next } => {
                    spans.records.push((position as u32, next as u32));
                    position = next;
                }
                Record::Blank { next } => position = next,
                Record::Bad { fault, next } => {
                    spans.values.truncate(before);
                    let Some(next) = next else {
                        return ScanStop::TooLong;
                    };
                    let (start, end, reason) = (position as u32, next as u32, fault.to_string());
                    spans.malformed.push(Malformed { start, end, reason });
                    position = next;
                }
                Record::Incomplete => {
                    spans.values.truncate(before);
                    return ScanStop::Incomplete;
                }
            }
        }
    }

    /// `quote`: there is no quote between the record's start and there. Moved on as far as the record needs.
    #[inline]
    fn record(&self, block: &[u8], start: usize, quote: &mut usize, limits: ScanLimits, spans: &mut Spans) -> Record {
        let too_long = Fault::TooLong { bytes_max: limits.record_bytes_max };
        // The line that starts here. It is the record unless a quote comes before its end.
        let line_end = find(block, start, b'\n');
        let first_line_next = if line_end < block.len() {
            Some(line_end + 1)
        } else if limits.at_end {
            Some(block.len())
        } else {
            None
        };
        *quote = start.max(*quote);
        while *quote < line_end && block.get(*quote) != Some(&QUOTE) {
            let to = line_end.max(*quote + QUOTE_SEARCH_BYTES).min(block.len());
            *quote = find(&block[..to], *quote, QUOTE);
        }
        if *quote >= line_end {
            return match first_line_next {
                Some(next) if next - start <= limits.record_bytes_max => {
                    self.plain_line(block, start, line_end, next, spans)
                }
                None if block.len() - start <= limits.record_bytes_max => Record::Incomplete,
                next => Record::Bad { fault: too_long, next },
            };
        }
        self.quoted_record(block, start, first_line_next, limits, spans)
    }

    /// A line without quotes: `block[start .. line_end]`.
    #[inline]
    fn plain_line(&self, block: &[u8], start: usize, line_end: usize, next: usize, spans: &mut Spans) -> Record {
        let mut end = line_end;
        if end > start && block[end - 1] == b'\r' {
            end -= 1;
        }
        if end == start && self.targets.len() != 1 {
            return Record::Blank { next };
        }
        let base = spans.values.len();
        spans.values.resize(base + self.width, Span::NULL);
        let row = &mut spans.values[base..];
        let line = &block[start..end];
        let mut targets = self.targets.iter();
        let mut fields = 0;
        let mut field_start = 0;
        let mut put = |from: usize, to: usize| {
            fields += 1;
            if let Some(Some(target)) = targets.next()
                && line[from..to] != *self.null
                && let Some(span) = row.get_mut(*target as usize)
            {
                *span = Span { start: (start + from) as u32, end: (start + to) as u32, kind: Kind::Plain };
            }
        };
        for at in memchr::memchr_iter(self.delimiter, line) {
            put(field_start, at);
            field_start = at + 1;
        }
        put(field_start, line.len());
        if fields == self.targets.len() {
            Record::Good { next }
        } else {
            Record::Bad { fault: self.wrong_count(fields), next: Some(next) }
        }
    }

    /// A record with at least one quote before its first line end.
    fn quoted_record(
        &self,
        block: &[u8],
        start: usize,
        first_line_next: Option<usize>,
        limits: ScanLimits,
        spans: &mut Spans,
    ) -> Record {
        let too_long = Fault::TooLong { bytes_max: limits.record_bytes_max };
        let base = spans.values.len();
        spans.values.resize(base + self.width, Span::NULL);
        let mut fields = 0usize;
        let mut at = start;
        loop {
            // One field, starting at `at`.
            let target = self.targets.get(fields).copied().flatten();
            fields += 1;
            let (span, after) = if block.get(at) == Some(&QUOTE) {
                match self.quoted_field(block, at) {
                    Some(found) => found,
                    None if limits.at_end => {
                        return Record::Bad { fault: Fault::UnendingQuote, next: first_line_next };
                    }
                    None if block.len() - start > limits.record_bytes_max => {
                        return Record::Bad { fault: too_long, next: first_line_next };
                    }
                    None => return Record::Incomplete,
                }
            } else {
                let rest = &block[at.min(block.len())..];
                let end = at + memchr2(self.delimiter, b'\n', rest).unwrap_or(rest.len());
                if end == block.len() && !limits.at_end {
                    if block.len() - start > limits.record_bytes_max {
                        return Record::Bad { fault: too_long, next: first_line_next };
                    }
                    return Record::Incomplete;
                }
                let is_last = block.get(end) != Some(&self.delimiter);
                let text_end = if is_last && end > at && block[end - 1] == b'\r' { end - 1 } else { end };
                let kind = if block[at..text_end] == *self.null { Kind::Null } else { Kind::Plain };
                (Span { start: at as u32, end: text_end as u32, kind }, end)
            };
            if let Some(slot) = target.and_then(|t| spans.values.get_mut(base + t as usize)) {
                *slot = span;
            }
            // What follows the field.
            let next = match &block[after..] {
                [c, ..] if *c == self.delimiter => {
                    at = after + 1;
                    continue;
                }
                [b'\n', ..] => after + 1,
                [b'\r', b'\n', ..] => after + 2,
                [b'\r'] if limits.at_end => after + 1,
                [] if limits.at_end => after,
                [] | [b'\r'] if block.len() - start > limits.record_bytes_max => {
                    return Record::Bad { fault: too_long, next: first_line_next };
                }
                [] | [b'\r'] => return Record::Incomplete,
                _ => {
                    // Without the end of its first line the extent of the record is not known yet.
                    return match first_line_next {
                        None if block.len() - start <= limits.record_bytes_max => Record::Incomplete,
                        next => Record::Bad { fault: Fault::TextAfterQuote, next },
                    };
                }
            };
            if next - start > limits.record_bytes_max {
                return Record::Bad { fault: too_long, next: first_line_next };
            }
            return if fields == self.targets.len() {
                Record::Good { next }
            } else {
                Record::Bad { fault: self.wrong_count(fields), next: Some(next) }
            };
        }
    }

    /// The field whose opening quote is at `open`, and the position after its closing quote.
    fn quoted_field(&self, block: &[u8], open: usize) -> Option<(Span, usize)> {
        let start = open + 1;
        let mut kind = Kind::Plain;
        let mut at = start;
        loop {
            at += memchr(QUOTE, block.get(at..)?)?;
            if block.get(at + 1) == Some(&QUOTE) {
                kind = Kind::CsvEscaped;
                at += 2;
                continue;
            }
            return Some((Span { start: start as u32, end: at as u32, kind }, at + 1));
        }
    }

    fn wrong_count(&self, found: usize) -> Fault {
        Fault::FieldCount { found, wanted: self.targets.len() }
    }
}

/// Position of `byte` at or after `from`; the block's length if there is none.
#[inline]
fn find(block: &[u8], from: usize, byte: u8) -> usize {
    block.get(from..).and_then(|rest| memchr(byte, rest)).map_or(block.len(), |i| from + i)
}

/// The fields of the first record of `block` as text, and where the next record starts; `None` when it does not end yet.
/// Blank lines before it are skipped. Errors: the reason why it is malformed.
pub fn first_record(
    block: &[u8],
    delimiter: u8,
    at_end: bool,
    record_bytes_max: usize,
) -> Result<Option<(Vec<String>, usize)>, String> {
    let start = block.iter().take_while(|c| matches!(c, b'\r' | b'\n')).count();
    let limits = ScanLimits { records: 1, start_before: usize::MAX, at_end, record_bytes_max };
    if start == block.len() {
        return Ok(None);
    }
    // The number of fields is found by asking for one field first.
    let mut width = 1;
    loop {
        let splitter = Splitter::new(delimiter, "", (0..width).map(Some).collect(), width);
        let mut spans = Spans::new(width);
        match splitter.record(block, start, &mut 0, limits, &mut spans) {
            Record::Good { next } => {
                let mut texts = Vec::with_capacity(width);
                for span in &spans.values {
                    let bytes = block.get(span.start as usize..span.end as usize).unwrap_or(&[]);
                    let text = std::str::from_utf8(bytes).map_err(|_| "it is not valid UTF-8".to_string())?;
                    texts
                        .push(super::input::unescape(text, span.kind).map_or_else(|_| text.into(), |t| t.into_owned()));
                }
                return Ok(Some((texts, next)));
            }
            Record::Bad { fault: Fault::FieldCount { found, .. }, .. } if found > width => width = found,
            Record::Bad { fault, .. } => return Err(fault.to_string()),
            Record::Blank { .. } | Record::Incomplete => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests;
