//! Reading a file of text as rows: from an offset to the next, in portions that never change what is read.

use std::sync::Arc;

use arrow::datatypes::{Fields, Schema, SchemaRef};
use flow::{Error, Result, SqlState};

use crate::format::decode::{Decoder, Fault};
use crate::format::infer::{self, Guess};
use crate::format::spans::{ScanLimits, ScanStop, Spans};
use crate::format::speculate::Speculator;
use crate::format::{Format, csv, input, json};
use crate::options;
use crate::source::{BAD_RECORD_BYTES_MAX, BadRecord, Offset, OnError, Progress, ReadOutcome, ReadState, SourceReader};

use super::options::{FileSourceOptions, Header};
use super::read::{Input, RECORD_BYTES_MAX};

/// Records that are scanned and then decoded at a time: their spans and bytes fit the processor's cache.
const BLOCK_RECORDS: usize = 1024;

/// The most input of one read, whatever the caller asks for. Keeps every offset inside a batch below 2³¹.
const READ_BYTES_MAX: usize = 64 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Where the records begin and which column each field is.
#[derive(Clone, Debug)]
pub struct Layout {
    data_start: u64,
    /// CSV: for each field of a record, the declared column.
    fields: Vec<Option<usize>>,
}

impl Layout {
    /// `None`: the followed file is still too short to tell. Errors: `42703` a declared column that the header lacks, `22P04`
    /// an unusable header.
    pub fn find(input: &mut Input, options: &FileSourceOptions, schema: &Schema) -> Result<Option<Layout>> {
        let by_position: Vec<Option<usize>> = (0..schema.fields().len()).map(Some).collect();
        let Some(start) = after_mark(input)? else {
            return Ok(None);
        };
        if options.format != Format::Csv || options.header == Header::None {
            return Ok(Some(Layout { data_start: start, fields: by_position }));
        }
        match read_header(input, options, start)? {
            Some((names, data_start)) => {
                let fields = match options.header {
                    Header::Names => by_name(&names, schema, input)?,
                    _ => by_position,
                };
                Ok(Some(Layout { data_start, fields }))
            }
            None if input.follows() => Ok(None),
            None => Ok(Some(Layout { data_start: input.end(), fields: by_position })),
        }
    }
}

/// The offset behind a byte order mark; `None`: a followed file is too short to tell.
fn after_mark(input: &mut Input) -> Result<Option<u64>> {
    while input.bytes(0).len() < BYTE_ORDER_MARK.len() && input.more(0)? {}
    let bytes = input.bytes(0);
    if bytes.starts_with(BYTE_ORDER_MARK) {
        Ok(Some(BYTE_ORDER_MARK.len() as u64))
    } else if input.follows() && bytes.len() < BYTE_ORDER_MARK.len() && BYTE_ORDER_MARK.starts_with(bytes) {
        Ok(None)
    } else {
        Ok(Some(0))
    }
}

/// The names in the first record at or after `start`, and the offset behind it. `None`: it does not end yet, or there is none.
fn read_header(input: &mut Input, options: &FileSourceOptions, start: u64) -> Result<Option<(Vec<String>, u64)>> {
    loop {
        let at_end = !input.follows() && input.at_end(start);
        match csv::first_record(input.bytes(start), options.delimiter, at_end, RECORD_BYTES_MAX) {
            Ok(Some((names, length))) => return Ok(Some((names, start + length as u64))),
            Ok(None) if input.more(start)? => {}
            Ok(None) => return Ok(None),
            Err(reason) => {
                return Err(Error::new(SqlState::BadCopyFileFormat, format!("the header cannot be read: {reason}"))
                    .with_detail(format!("File \"{}\", line 1.", input.name())));
            }
        }
    }
}

/// For each field of the header, the declared column of that name: exactly, else ignoring case.
fn by_name(names: &[String], schema: &Schema, input: &Input) -> Result<Vec<Option<usize>>> {
    let mut fields = vec![None; names.len()];
    for (column, field) in schema.fields().iter().enumerate() {
        let name = field.name();
        let exact = names.iter().position(|n| n.trim() == name);
        let found = exact.or_else(|| names.iter().position(|n| n.trim().eq_ignore_ascii_case(name)));
        match found.and_then(|i| fields.get_mut(i)) {
            Some(slot @ None) => *slot = Some(column),
            Some(Some(_)) => {
                return Err(Error::new(
                    SqlState::AmbiguousColumn,
                    format!("column \"{name}\" shares a field of the header"),
                )
                .with_detail(format!("The header of \"{}\" is: {}.", input.name(), names.join(", "))));
            }
            None => {
                let error = Error::new(
                    SqlState::UndefinedColumn,
                    format!("column \"{name}\" is not in the header of the file"),
                )
                .with_detail(format!("The header of \"{}\" is: {}.", input.name(), names.join(", ")));
                return Err(match options::nearest(name, names.iter().map(|n| n.trim())) {
                    Some(near) => error.with_hint(format!("Perhaps the column is \"{near}\".")),
                    None => error.with_hint("Use header = 'skip' to take columns by their position."),
                });
            }
        }
    }
    Ok(fields)
}

enum Scanner {
    Csv(csv::Splitter),
    Json(Box<Speculator>),
}

/// Reads one file.
pub struct TextReader {
    options: Arc<FileSourceOptions>,
    /// Whether more may come at the end of the file.
    follow: bool,
    declared: SchemaRef,
    schema: SchemaRef,
    /// What is decoded and so checked: declared columns, and their fields.
    decoded: Vec<usize>,
    fields: Fields,
    /// What is delivered: indices into `decoded`.
    projection: Vec<usize>,
    layout: Option<Layout>,
    scanner: Option<Scanner>,
    decoder: Decoder,
    spans: Spans,
    input: Input,
    position: u64,
    /// A followed record that is too long and has no line end yet: (its start, where the search goes on).
    unended: Option<(u64, u64)>,
    /// Where each row in the decoder starts, if that is wanted.
    starts: Option<Vec<u64>>,
    /// Where each row of the last batch starts.
    places: Vec<u64>,
}

impl SourceReader for TextReader {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn read(&mut self, from: Offset, max_rows: usize, max_bytes: usize, limit: Option<Offset>) -> Result<ReadOutcome> {
        let end = self.input.end();
        if from.0 > end || limit.is_some_and(|l| l.0 > end) {
            self.input.refresh()?;
            let end = self.input.end();
            if from.0 > end || limit.is_some_and(|l| l.0 > end) {
                return Err(self.input.changed(&format!("it has {end} bytes and had more")));
            }
        }
        if !self.find_layout()? {
            return self.finish(from.0, ReadState::CaughtUp, Vec::new());
        }
        let data_start = self.layout.as_ref().map_or(0, |l| l.data_start);
        let limit = limit.map_or(u64::MAX, |l| l.0);
        if from.0 < data_start && limit < data_start {
            return self.finish(from.0, ReadState::End, Vec::new());
        }
        self.read_records(from.0.max(data_start), max_rows.max(1), max_bytes.clamp(1, READ_BYTES_MAX), limit)
    }

    fn progress(&self) -> Progress {
        Progress { done: self.position, total: self.input.end() }
    }

    fn keep_places(&mut self) {
        self.starts = Some(Vec::new());
    }

    fn places(&self) -> &[u64] {
        &self.places
    }
}

/// A record that is left out, before its line is looked up.
struct Refused {
    start: u64,
    end: u64,
    column: Option<usize>,
    reason: String,
}

impl TextReader {
    /// A reader of the file `input` that delivers the columns `wanted`. Errors: `0A000` a type that text does not hold.
    pub fn new(
        options: Arc<FileSourceOptions>,
        declared: &SchemaRef,
        wanted: Vec<usize>,
        layout: Option<Layout>,
        input: Input,
    ) -> Result<TextReader> {
        let schema = Arc::new(declared.project(&wanted)?);
        // Readers that leave records out must leave out the same ones, whichever columns they want.
        let (decoded, projection) = match options.on_error {
            OnError::Skip => ((0..declared.fields().len()).collect(), wanted),
            OnError::Stop => (wanted.clone(), (0..wanted.len()).collect()),
        };
        let fields: Fields = decoded.iter().filter_map(|c| declared.fields().get(*c).cloned()).collect();
        Ok(TextReader {
            declared: Arc::clone(declared),
            schema,
            decoder: Decoder::with_projection(fields.clone(), &projection)?,
            spans: Spans::new(fields.len()),
            fields,
            decoded,
            projection,
            scanner: None,
            layout,
            follow: input.follows(),
            input,
            position: 0,
            unended: None,
            starts: None,
            places: Vec::new(),
            options,
        })
    }

    /// Finds the layout and makes the scanner, if that has not happened. False: the file is still too short.
    fn find_layout(&mut self) -> Result<bool> {
        if self.layout.is_none() {
            self.input.refresh()?;
            self.layout = Layout::find(&mut self.input, &self.options, &self.declared)?;
        }
        let Some(layout) = &self.layout else {
            return Ok(false);
        };
        if self.scanner.is_none() {
            self.scanner = Some(match self.options.format {
                Format::Csv => {
                    let target = |column: &Option<usize>| self.decoded.iter().position(|d| Some(*d) == *column);
                    let targets = layout.fields.iter().map(target).collect();
                    Scanner::Csv(csv::Splitter::new(
                        self.options.delimiter,
                        &self.options.null,
                        targets,
                        self.decoded.len(),
                    ))
                }
                _ => {
                    let names = self.fields.iter().map(|f| f.name().clone()).collect();
                    Scanner::Json(Box::new(Speculator::new(names)))
                }
            });
        }
        Ok(true)
    }

    fn read_records(&mut self, start: u64, max_rows: usize, max_bytes: usize, limit: u64) -> Result<ReadOutcome> {
        let mut refused: Vec<Refused> = Vec::new();
        let mut position = start;
        self.input.begin(start);
        let state = loop {
            if position >= limit {
                break ReadState::End;
            }
            let records = self.decoder.rows() + refused.len();
            let used = usize::try_from(position - start).unwrap_or(usize::MAX);
            if records >= max_rows || used >= max_bytes {
                break ReadState::More;
            }
            if self.input.bytes(position).is_empty() && !self.more(position)? {
                break if self.follow { ReadState::CaughtUp } else { ReadState::End };
            }
            let limits = ScanLimits {
                records: (max_rows - records).min(BLOCK_RECORDS),
                start_before: usize::try_from(limit - position).unwrap_or(usize::MAX).min(max_bytes - used),
                at_end: !self.follow && self.input.at_end(position),
                record_bytes_max: RECORD_BYTES_MAX,
            };
            let block_start = position;
            let stop = self.scan_block(block_start, limits, &mut refused)?;
            if self.options.on_error == OnError::Stop
                && let Some(outcome) = self.stop_at_first_bad(block_start, &refused)?
            {
                return Ok(outcome);
            }
            position += self.spans.consumed as u64;
            match stop {
                ScanStop::Limit => {}
                ScanStop::Incomplete => {
                    if !self.more(position)? {
                        break ReadState::CaughtUp;
                    }
                }
                ScanStop::TooLong => {
                    let Some(end) = self.end_of_long_record(position)? else {
                        break ReadState::CaughtUp;
                    };
                    let reason = format!("the record is longer than {RECORD_BYTES_MAX} bytes");
                    refused.push(Refused { start: position, end, column: None, reason });
                    if self.options.on_error == OnError::Stop
                        && let Some(outcome) = self.stop_at_first_bad(block_start, &refused)?
                    {
                        return Ok(outcome);
                    }
                    position = end;
                }
            }
        };
        self.finish(position, state, refused)
    }

    /// More bytes behind the window that starts at `position`; looks whether a followed file has grown.
    fn more(&mut self, position: u64) -> Result<bool> {
        if self.input.more(position)? {
            return Ok(true);
        }
        self.input.refresh()?;
        self.input.more(position)
    }

    fn scan_block(&mut self, position: u64, limits: ScanLimits, refused: &mut Vec<Refused>) -> Result<ScanStop> {
        let scanner = self.scanner.as_mut().ok_or_else(|| Error::internal("a file reader without scanner"))?;
        let block = self.input.bytes(position);
        let rows_before = self.decoder.rows();
        let stop = match scanner {
            Scanner::Csv(splitter) => {
                self.spans.clear();
                let stop = splitter.scan(block, limits, &mut self.spans);
                self.decoder.append(block, position, &mut self.spans);
                stop
            }
            Scanner::Json(json) => json.read(block, position, limits, &mut self.decoder, &mut self.spans),
        };
        if let Some(starts) = &mut self.starts {
            let rows = self.decoder.rows() - rows_before;
            if self.spans.rows() == rows {
                starts.extend(self.spans.records.iter().map(|r| position + u64::from(r.0)));
            } else {
                // Records of one shape leave no spans; each is a line.
                starts.extend(line_starts(&block[..self.spans.consumed]).map(|at| position + at as u64));
            }
            if starts.len() != self.decoder.rows() {
                return Err(Error::internal("a file reader lost the place of a row"));
            }
        }
        for bad in self.spans.malformed.drain(..) {
            let (start, end) = (position + u64::from(bad.start), position + u64::from(bad.end));
            refused.push(Refused { start, end, column: None, reason: bad.reason });
        }
        Ok(stop)
    }

    /// With ON ERROR STOP: the good records before the first bad one, or, when there are none, the error. `block_start` is
    /// where the block in `spans` starts; no block before it had a bad record.
    fn stop_at_first_bad(&mut self, block_start: u64, refused: &[Refused]) -> Result<Option<ReadOutcome>> {
        let unread = self.decoder.first_fault();
        let unread =
            unread.map(|(_, f)| Refused { start: f.start, end: f.end, column: f.column, reason: f.reason.clone() });
        let Some(first) = refused.iter().chain(&unread).min_by_key(|r| r.start) else {
            return Ok(None);
        };
        let behind = |r: &&(u32, u32)| block_start + u64::from(r.0) >= first.start;
        let keep = self.decoder.rows() - self.spans.records.iter().rev().take_while(behind).count();
        if keep > 0 {
            let (batch, _) = self.decoder.finish(&self.schema, &self.projection, keep)?;
            self.take_places(&[], keep);
            self.position = first.start;
            return Ok(Some(ReadOutcome { batch, next: Offset(first.start), state: ReadState::More, errors: vec![] }));
        }
        let bad = self.report(first)?;
        self.take_places(&[], 0);
        self.decoder.finish(&self.schema, &self.projection, 0)?;
        Err(self.refusal(&bad))
    }

    /// The error that a bad record stops the source with.
    fn refusal(&self, bad: &BadRecord) -> Error {
        const SHOWN_BYTES: usize = 200;
        let column = bad.column.as_ref().map_or_else(String::new, |c| format!(", column \"{c}\""));
        let text = String::from_utf8_lossy(bad.bytes.get(..SHOWN_BYTES).unwrap_or(&bad.bytes));
        let more = if bad.bytes.len() > SHOWN_BYTES { "…" } else { "" };
        let error = Error::new(SqlState::InvalidTextRepresentation, bad.reason.clone()).with_detail(format!(
            "File \"{}\", line {}{column}: {}{more}",
            self.input.name(),
            bad.line,
            text.trim_end()
        ));
        if bad.line == 1 && self.options.format == Format::Csv && self.options.header == Header::None {
            error.with_hint("If the first line holds column names, add header = 'true'.")
        } else {
            error.with_hint("Correct the file, or use on_error = 'skip' to leave out malformed records.")
        }
    }

    fn end_of_long_record(&mut self, start: u64) -> Result<Option<u64>> {
        self.input.refresh()?;
        let from = self.unended.filter(|(s, _)| *s == start).map_or(start, |(_, searched)| searched);
        let end = self.input.after_line_end(from)?;
        self.unended = end.is_none().then_some((start, self.input.end()));
        Ok(end)
    }

    fn finish(&mut self, next: u64, state: ReadState, refused: Vec<Refused>) -> Result<ReadOutcome> {
        let (batch, faults) = self.decoder.finish(&self.schema, &self.projection, usize::MAX)?;
        self.take_places(&faults, usize::MAX);
        let faults = faults.into_iter();
        let mut refused: Vec<Refused> = faults
            .map(|f| Refused { start: f.start, end: f.end, column: f.column, reason: f.reason })
            .chain(refused)
            .collect();
        refused.sort_by_key(|r| r.start);
        let errors = refused.iter().map(|r| self.report(r)).collect::<Result<Vec<BadRecord>>>()?;
        if state == ReadState::CaughtUp && batch.num_rows() == 0 {
            self.decoder.rest()?;
            self.spans.rest();
        }
        self.position = next;
        Ok(ReadOutcome { batch, next: Offset(next), state, errors })
    }

    /// The places of the batch that was finished: of the first `keep` rows without those of `faults`, which are in order.
    fn take_places(&mut self, faults: &[Fault], keep: usize) {
        if let Some(starts) = &mut self.starts {
            let mut faulty = faults.iter().map(|f| f.start).peekable();
            self.places.clear();
            let kept = starts.drain(..).take(keep);
            self.places.extend(kept.filter(|start| faulty.next_if_eq(start).is_none()));
        }
    }

    fn report(&mut self, refused: &Refused) -> Result<BadRecord> {
        let column = refused.column.and_then(|c| self.fields.get(c)).map(|f| f.name().clone());
        Ok(BadRecord {
            offset: Offset(refused.start),
            line: self.input.line_of(refused.start)?,
            column,
            reason: refused.reason.clone(),
            bytes: self.input.sample(refused.start, refused.end, BAD_RECORD_BYTES_MAX)?,
        })
    }
}

/// Where the lines of `block` start that are not blank.
fn line_starts(block: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let ends = memchr::memchr_iter(b'\n', block).map(|end| end + 1).chain([block.len()]);
    let mut start = 0;
    let lines = ends.map(move |end| (std::mem::replace(&mut start, end), end));
    lines.filter(|(start, end)| !block[*start..*end].trim_ascii().is_empty()).map(|(start, _)| start)
}

/// Columns guessed from the beginning of the file. Errors: `42P16` it shows none.
pub fn infer_schema(options: &FileSourceOptions, input: &mut Input, sample_rows: usize) -> Result<SchemaRef> {
    let name = input.name().to_string();
    let nothing = |what: &str| {
        Error::new(SqlState::InvalidTableDefinition, format!("the columns cannot be inferred: {what}"))
            .with_detail(format!("File \"{}\".", name))
            .with_hint("Declare the columns.")
    };
    if options.format == Format::Csv && options.header != Header::Names {
        return Err(nothing("a CSV file tells its columns only by a header")
            .with_hint("Declare the columns, or add header = 'true' if the first line holds their names."));
    }
    let start = after_mark(input)?.unwrap_or(0);
    let mut columns: Vec<(String, Guess)> = Vec::new();
    let mut data_start = start;
    if options.format == Format::Csv {
        let (names, next) = read_header(input, options, start)?.ok_or_else(|| nothing("the file has no header yet"))?;
        data_start = next;
        for name in names {
            let name = name.trim().to_string();
            if name.is_empty() || columns.iter().any(|(n, _)| *n == name) {
                return Err(nothing("a name in the header is empty or stands there twice"));
            }
            columns.push((name, Guess::Unknown));
        }
    }
    // The sample has to fit the window; a file of giant records gives a smaller sample.
    let mut limits = ScanLimits {
        records: sample_rows.max(1),
        start_before: usize::MAX,
        at_end: false,
        record_bytes_max: RECORD_BYTES_MAX,
    };
    loop {
        limits.at_end = !input.follows() && input.at_end(data_start);
        let block = input.bytes(data_start);
        let enough = match options.format {
            Format::Csv => sample_csv(block, options, limits, &mut columns),
            _ => sample_json(block, limits, &mut columns),
        };
        if enough || block.len() > RECORD_BYTES_MAX || !input.more(data_start)? {
            break;
        }
    }
    if columns.is_empty() {
        return Err(nothing("the file holds no record"));
    }
    Ok(infer::schema(&columns))
}

/// Merges the guesses from the records of `block`; malformed ones are passed over. True when there are enough.
fn sample_csv(block: &[u8], options: &FileSourceOptions, limits: ScanLimits, columns: &mut [(String, Guess)]) -> bool {
    let width = columns.len();
    let splitter = csv::Splitter::new(options.delimiter, &options.null, (0..width).map(Some).collect(), width);
    let mut spans = Spans::new(width);
    splitter.scan(block, limits, &mut spans);
    for (index, (_, guess)) in columns.iter_mut().enumerate() {
        for span in spans.column(index).filter(|s| s.kind != crate::format::spans::Kind::Null) {
            let bytes = block.get(span.start as usize..span.end as usize).unwrap_or(&[]);
            let text = String::from_utf8_lossy(bytes);
            let text = input::unescape(&text, span.kind).map_or_else(|_| "".into(), |t| t.into_owned());
            *guess = guess.merge(Guess::of_field(&text));
        }
    }
    spans.total() >= limits.records
}

/// As [`sample_csv`]; columns are added in the order in which keys appear.
fn sample_json(block: &[u8], limits: ScanLimits, columns: &mut Vec<(String, Guess)>) -> bool {
    let mut lines = 0;
    let mut rest = block;
    while lines < limits.records {
        let line = match memchr::memchr(b'\n', rest) {
            Some(end) => {
                let line = &rest[..end];
                rest = &rest[end + 1..];
                line
            }
            None if limits.at_end && !rest.is_empty() => std::mem::take(&mut rest),
            None => return false,
        };
        lines += usize::from(!line.trim_ascii().is_empty());
        for (name, span) in json::members(line).unwrap_or_default() {
            let bytes = line.get(span.start as usize..span.end as usize).unwrap_or(&[]);
            let guess = Guess::of(&String::from_utf8_lossy(bytes), span.kind);
            match columns.iter_mut().find(|(n, _)| *n == name) {
                Some((_, known)) => *known = known.merge(guess),
                None => columns.push((name, guess)),
            }
        }
    }
    true
}
