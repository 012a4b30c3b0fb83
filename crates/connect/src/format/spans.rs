//! Where the values of a block of records are: the meeting point of scanners and decoders.

/// How the bytes of a value are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No value: SQL NULL.
    Null,
    /// The bytes are the text of the value.
    Plain,
    /// CSV: the bytes stand between quotes and hold doubled quotes.
    CsvEscaped,
    /// JSON: the bytes stand between quotes and hold backslash escapes.
    JsonEscaped,
    /// JSON: a number token.
    JsonNumber,
    /// JSON: `true` or `false`.
    JsonBoolean,
    /// JSON: an object or array, as written, without surrounding blanks.
    JsonNested,
}

/// One value: bytes `start .. end` of the scanned block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
    pub kind: Kind,
}

impl Span {
    pub const NULL: Span = Span { start: 0, end: 0, kind: Kind::Null };
}

/// A record whose values could not even be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    pub start: u32,
    pub end: u32,
    pub reason: String,
}

/// The values of a block of records, row by row, `width` to a row.
#[derive(Clone, Debug, Default)]
pub struct Spans {
    pub width: usize,
    /// `rows() * width` values.
    pub values: Vec<Span>,
    /// Start and end of every well-formed record, in order.
    pub records: Vec<(u32, u32)>,
    pub malformed: Vec<Malformed>,
    /// Bytes of the block that have been consumed: up to the start of the next record.
    pub consumed: usize,
}

impl Spans {
    pub fn new(width: usize) -> Spans {
        Spans { width, ..Spans::default() }
    }

    pub fn clear(&mut self) {
        self.values.clear();
        self.records.clear();
        self.malformed.clear();
        self.consumed = 0;
    }

    /// Gives memory back while nothing comes.
    pub fn rest(&mut self) {
        *self = Spans::new(self.width);
    }

    pub fn rows(&self) -> usize {
        self.records.len()
    }

    /// Records of both kinds.
    pub fn total(&self) -> usize {
        self.records.len() + self.malformed.len()
    }

    /// The values of `column`, row by row.
    #[inline]
    pub fn column(&self, column: usize) -> impl ExactSizeIterator<Item = Span> + '_ {
        let values = self.values.get(column..).unwrap_or(&[]);
        values.iter().step_by(self.width.max(1)).copied()
    }
}

/// How far a scanner may go in one call.
#[derive(Clone, Copy, Debug)]
pub struct ScanLimits {
    /// Records, good and bad.
    pub records: usize,
    /// Records that start at or after this byte of the block are left alone.
    pub start_before: usize,
    /// The block ends where the input ends: a last record needs no line end.
    pub at_end: bool,
    /// A longer record is malformed; scanning goes on after the next line end.
    pub record_bytes_max: usize,
}

/// Why a scanner stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanStop {
    /// `records` or `start_before` was reached, or the block is used up exactly.
    Limit,
    /// The record at `consumed` does not end inside the block.
    Incomplete,
    /// The record at `consumed` is longer than `record_bytes_max` and its first line does not end inside the block.
    TooLong,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_every_width_th_value() {
        let mut spans = Spans::new(2);
        for i in 0..6 {
            spans.values.push(Span { start: i, end: i, kind: Kind::Plain });
        }
        assert_eq!(spans.column(1).map(|s| s.start).collect::<Vec<_>>(), [1, 3, 5]);
        assert_eq!(Spans::new(0).column(0).count(), 0);
    }
}
