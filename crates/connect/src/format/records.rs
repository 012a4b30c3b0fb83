//! Changes → the records of a sink: rows as they come, or the forms in which the field passes changes on.
//!
//! `UPSERT` and `DEBEZIUM` speak of keys, so the changes of an epoch are netted before they are written: one record for each
//! key that is different at the epoch's end, in the order of the keys. What comes and goes within an epoch is not seen.

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::row::Rows;
use flow::keys::KeyEncoder;
use flow::{ChangeBatch, Diff, Epoch, Error, Result, SqlState};

use super::encode::{Encoder, Lead, LineFormat, Object, Values, writable};
use super::output;
use crate::options::{Form, OptionReader, OptionSpec, RowForm, nearest};
use crate::sink::SinkRequest;

/// The option that says which columns tell rows apart.
pub const PRIMARY_KEY: OptionSpec = OptionSpec {
    name: "primary_key",
    values: "names of columns, separated by commas",
    default: None,
    required: false,
    meaning: "FORMAT UPSERT and DEBEZIUM: the columns that tell rows apart. Without it: the shortest key that is known.",
};

/// The forms of sinks that write lines.
pub static FORMS: &[Form] = &[
    Form { form: RowForm::Plain, encodings: &["JSON", "CSV"] },
    Form { form: RowForm::Upsert, encodings: &["JSON", "CSV"] },
    Form { form: RowForm::Debezium, encodings: &["JSON"] },
];

/// Columns that the mode `changes` puts in front.
pub const CHANGE_COLUMNS: [&str; 2] = ["op", "epoch"];
/// Encoded bytes after which they are handed on, within an epoch.
const CHUNK_BYTES: usize = 1 << 20;
/// Changes of an epoch are netted early when they take so much memory: a back-fill is one long epoch.
const NET_BYTES: usize = 64 << 20;

/// What the records say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Rows that are only ever added.
    Rows,
    /// Every change with `op` and `epoch`.
    Changes,
    /// The new row of each key, or that the key is gone.
    Upsert,
    /// The row before and the row after.
    Debezium,
}

impl Content {
    /// What `form` says of input that is only added to, or also taken away.
    pub fn of(form: RowForm, append_only: bool) -> Content {
        match form {
            RowForm::Plain if append_only => Content::Rows,
            RowForm::Plain => Content::Changes,
            RowForm::Upsert => Content::Upsert,
            RowForm::Debezium => Content::Debezium,
        }
    }
}

/// Writes the changes of one sink as lines.
pub struct Records {
    kind: Kind,
    /// The first epoch shows what was there when the sink began.
    first: bool,
}

enum Kind {
    Rows(Encoder),
    Changes(Encoder),
    Net(Box<Net>),
}

impl Records {
    /// `primary_key`: the value of that option. Errors: `0A000` a column type without a text form, `42701` a column named like
    /// one that the sink adds, `42703`, `42701` and `22023` for a key that is not one.
    pub fn new(
        request: &SinkRequest<'_>,
        format: LineFormat,
        content: Content,
        primary_key: Option<&str>,
    ) -> Result<Records> {
        let schema = &request.schema;
        let kind = match content {
            Content::Rows => Kind::Rows(Encoder::new(schema, format, &[])?),
            Content::Changes => Kind::Changes(Encoder::new(schema, format, &CHANGE_COLUMNS)?),
            Content::Upsert => {
                let key = key(request, primary_key)?.ok_or_else(no_key)?;
                let style = match format {
                    LineFormat::Json => Style::Upsert(Object::new(schema, key.clone())),
                    LineFormat::Csv { delimiter, null } => {
                        let names = key.iter().map(|c| format!("key.{}", schema.field(*c).name()));
                        let leads: Vec<String> = CHANGE_COLUMNS.map(String::from).into_iter().chain(names).collect();
                        let leads: Vec<&str> = leads.iter().map(String::as_str).collect();
                        let header = Encoder::new(schema, LineFormat::Csv { delimiter, null: null.clone() }, &leads)?;
                        Style::UpsertCsv { header, delimiter, null }
                    }
                };
                Kind::Net(Box::new(Net::new(schema, style, Some(key))?))
            }
            Content::Debezium => {
                if format != LineFormat::Json {
                    return Err(Error::unsupported("FORMAT DEBEZIUM needs ENCODE JSON"));
                }
                let mut source = b"\"source\":{\"relation\":".to_vec();
                output::json_string(&mut source, request.relation);
                Kind::Net(Box::new(Net::new(schema, Style::Debezium { source }, key(request, primary_key)?)?))
            }
        };
        Ok(Records { kind, first: true })
    }

    /// The line of column names; JSON has none.
    pub fn header(&self, out: &mut Vec<u8>) {
        match &self.kind {
            Kind::Rows(encoder) | Kind::Changes(encoder) => encoder.header(out),
            Kind::Net(net) => {
                if let Style::UpsertCsv { header, .. } = &net.style {
                    header.header(out);
                }
            }
        }
    }

    /// Takes changes of the open epoch; what needs no netting is appended to `out`. Returns the lines written. Errors:
    /// `0A000` a deletion where rows are only added.
    pub fn write(&mut self, epoch: Epoch, change: &ChangeBatch, out: &mut Vec<u8>) -> Result<u64> {
        let copies = |row: usize| change.weight(row).unsigned_abs();
        match &mut self.kind {
            Kind::Rows(encoder) => {
                refuse_deletions(change)?;
                encoder.rows(&change.rows, copies, |_| [], out)
            }
            Kind::Changes(encoder) => {
                let lead = |row: usize| {
                    let op = if change.weight(row) > 0 { "insert" } else { "delete" };
                    [Lead::Text(op), Lead::Number(epoch.0)]
                };
                encoder.rows(&change.rows, copies, lead, out)
            }
            Kind::Net(net) => net.add(change).map(|()| 0),
        }
    }

    /// All changes of `epoch` are there: appends what was held back. `full` is called now and then to empty `out`, always at
    /// the end of a line. Returns the lines written. Errors: `XX000` two rows of one key.
    pub fn finish(
        &mut self,
        epoch: Epoch,
        now_us: i64,
        out: &mut Vec<u8>,
        full: &mut dyn FnMut(&mut Vec<u8>) -> Result<()>,
    ) -> Result<u64> {
        let first = std::mem::replace(&mut self.first, false);
        match &mut self.kind {
            Kind::Net(net) => net.finish(Moment { epoch, now_us, first }, out, full),
            _ => Ok(0),
        }
    }

    /// Whether the next epoch is the first one.
    pub fn first(&self) -> bool {
        self.first
    }

    /// Goes on where other records have ended, whose [`first`](Self::first) it was.
    pub fn go_on(&mut self, first: bool) {
        self.first = first;
    }

    /// Bytes of the changes that are held back.
    pub fn state_bytes(&self) -> usize {
        match &self.kind {
            Kind::Net(net) => net.bytes,
            _ => 0,
        }
    }
}

/// Errors: `0A000` for a change that takes a row away.
pub fn refuse_deletions(change: &ChangeBatch) -> Result<()> {
    if (0..change.num_rows()).all(|row| change.weight(row) >= 0) {
        return Ok(());
    }
    Err(Error::unsupported("a sink that only adds rows was asked to take a row away")
        .with_hint("Use mode = 'changes', FORMAT UPSERT or FORMAT DEBEZIUM."))
}

/// When an epoch is written.
#[derive(Clone, Copy)]
struct Moment {
    epoch: Epoch,
    now_us: i64,
    first: bool,
}

/// How a record looks.
enum Style {
    /// JSON; the object is the key.
    Upsert(Object),
    UpsertCsv {
        header: Encoder,
        delimiter: u8,
        null: String,
    },
    /// JSON; `source` is the beginning of that member.
    Debezium {
        source: Vec<u8>,
    },
}

/// Nets the changes of an epoch by key.
struct Net {
    schema: SchemaRef,
    style: Style,
    /// The columns that tell rows apart; `None`: a row is known by all of its columns, and may be there several times.
    key: Option<Vec<usize>>,
    row: Object,
    keys: KeyEncoder,
    rows: KeyEncoder,
    pending: Vec<ChangeBatch>,
    bytes: usize,
    net_at: usize,
}

/// A key's change, or one row's where there is no key. Numbers are rows of the net batch.
struct Record {
    before: Option<usize>,
    after: Option<usize>,
    copies: u64,
}

impl Net {
    fn new(schema: &SchemaRef, style: Style, key: Option<Vec<usize>>) -> Result<Net> {
        for field in schema.fields() {
            Values::new(&writable(&arrow::array::new_empty_array(field.data_type()))?)?;
        }
        let types = |columns: &[usize]| -> Vec<DataType> {
            columns.iter().map(|c| schema.field(*c).data_type().clone()).collect()
        };
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        Ok(Net {
            keys: KeyEncoder::new(&types(key.as_deref().unwrap_or(&all)))?,
            rows: KeyEncoder::new(&types(&all))?,
            row: Object::new(schema, all),
            schema: SchemaRef::clone(schema),
            style,
            key,
            pending: Vec::new(),
            bytes: 0,
            net_at: NET_BYTES,
        })
    }

    fn add(&mut self, change: &ChangeBatch) -> Result<()> {
        if change.rows.num_columns() != self.schema.fields().len() {
            return Err(Error::internal("a batch does not have the columns of its sink"));
        }
        self.bytes += change.bytes();
        self.pending.push(change.clone());
        if self.bytes > self.net_at {
            let net = self.take_net()?;
            self.bytes = net.bytes();
            self.pending.push(net);
            self.net_at = NET_BYTES.max(self.bytes * 2);
        }
        Ok(())
    }

    /// The changes so far, every row once, sorted by key and then by row; rows of weight zero left out.
    fn take_net(&mut self) -> Result<ChangeBatch> {
        let all = ChangeBatch::concat(&self.schema, &std::mem::take(&mut self.pending))?;
        self.bytes = 0;
        if u32::try_from(all.num_rows()).is_err() {
            return Err(Error::new(SqlState::ProgramLimitExceeded, "too many changes in one epoch"));
        }
        let rows = encoded(&self.rows, all.rows.columns())?;
        let keys = match &self.key {
            Some(key) => encoded(&self.keys, &key.iter().map(|c| all.rows.column(*c).clone()).collect::<Vec<_>>())?,
            None => None,
        };
        let mut order: Vec<u32> = (0..all.num_rows() as u32).collect();
        order.sort_unstable_by(|a, b| {
            let bytes = |of: &Option<Rows>| of.as_ref().map(|r| r.row(*a as usize).cmp(&r.row(*b as usize)));
            bytes(&keys).unwrap_or(std::cmp::Ordering::Equal).then_with(|| bytes(&rows).unwrap_or(a.cmp(b)))
        });
        let (mut kept, mut weights): (Vec<u32>, Vec<i64>) = (Vec::new(), Vec::new());
        for group in order.chunk_by(|a, b| same(&rows, *a, *b)) {
            let weight: i64 = group.iter().map(|row| all.weight(*row as usize)).sum();
            if weight != 0 {
                kept.push(group[0]);
                weights.push(weight);
            }
        }
        let rows = arrow::compute::take_record_batch(&all.rows, &UInt32Array::from(kept))?;
        Ok(ChangeBatch::new(rows, Diff::from_weights(weights)))
    }

    /// What happened to each key, or to each row. `net` comes from [`take_net`](Self::take_net).
    fn records(&self, net: &ChangeBatch) -> Result<Vec<Record>> {
        let Some(key) = &self.key else {
            let record = |row: usize| {
                let weight = net.weight(row);
                let (before, after) = if weight < 0 { (Some(row), None) } else { (None, Some(row)) };
                Record { before, after, copies: weight.unsigned_abs() }
            };
            return Ok((0..net.num_rows()).map(record).collect());
        };
        let keys = encoded(&self.keys, &key.iter().map(|c| net.rows.column(*c).clone()).collect::<Vec<_>>())?;
        let order: Vec<u32> = (0..net.num_rows() as u32).collect();
        let mut records = Vec::new();
        for group in order.chunk_by(|a, b| same(&keys, *a, *b)) {
            let mut record = Record { before: None, after: None, copies: 1 };
            for row in group.iter().map(|row| *row as usize) {
                let place = match net.weight(row) {
                    -1 => &mut record.before,
                    1 => &mut record.after,
                    _ => return Err(two_rows()),
                };
                if place.replace(row).is_some() {
                    return Err(two_rows());
                }
            }
            records.push(record);
        }
        Ok(records)
    }

    fn finish(
        &mut self,
        at: Moment,
        out: &mut Vec<u8>,
        full: &mut dyn FnMut(&mut Vec<u8>) -> Result<()>,
    ) -> Result<u64> {
        if self.pending.is_empty() {
            return Ok(0);
        }
        self.net_at = NET_BYTES;
        let net = self.take_net()?;
        let records = self.records(&net)?;
        let columns = writable_columns(&net.rows)?;
        let values = columns.iter().map(Values::new).collect::<Result<Vec<Values<'_>>>>()?;
        let mut written = 0;
        for record in &records {
            let start = out.len();
            self.line(record, &values, at, out);
            let end = out.len();
            for _ in 1..record.copies {
                out.extend_from_within(start..end);
            }
            written += record.copies;
            if out.len() >= CHUNK_BYTES {
                full(out)?;
            }
        }
        Ok(written)
    }

    fn line(&self, record: &Record, values: &[Values<'_>], at: Moment, out: &mut Vec<u8>) {
        let Some(known) = record.after.or(record.before) else { return };
        let object = |row: Option<usize>, out: &mut Vec<u8>| match row {
            Some(row) => self.row.write(values, row, out),
            None => out.extend_from_slice(b"null"),
        };
        match &self.style {
            Style::Upsert(key) => {
                let op: &[u8] = if record.after.is_some() { b"{\"op\":\"upsert\"" } else { b"{\"op\":\"delete\"" };
                out.extend_from_slice(op);
                out.extend_from_slice(format!(",\"epoch\":{},\"key\":", at.epoch).as_bytes());
                key.write(values, known, out);
                out.extend_from_slice(b",\"row\":");
                object(record.after, out);
                out.extend_from_slice(b"}\n");
            }
            Style::UpsertCsv { delimiter, null, .. } => {
                let op = if record.after.is_some() { "upsert" } else { "delete" };
                out.extend_from_slice(op.as_bytes());
                out.push(*delimiter);
                out.extend_from_slice(at.epoch.to_string().as_bytes());
                let key = self.key.iter().flatten().map(|c| (*c, true));
                for (column, shown) in key.chain((0..values.len()).map(|c| (c, record.after.is_some()))) {
                    out.push(*delimiter);
                    if shown {
                        values[column].csv(known, *delimiter, null, out);
                    } else {
                        out.extend_from_slice(null.as_bytes());
                    }
                }
                out.push(b'\n');
            }
            Style::Debezium { source } => {
                let op = match (record.before, record.after) {
                    (None, _) if at.first => "r",
                    (None, _) => "c",
                    (Some(_), Some(_)) => "u",
                    (Some(_), None) => "d",
                };
                out.extend_from_slice(b"{\"before\":");
                object(record.before, out);
                out.extend_from_slice(b",\"after\":");
                object(record.after, out);
                let ms = at.now_us.div_euclid(1_000);
                out.extend_from_slice(format!(",\"op\":\"{op}\",\"ts_ms\":{ms},").as_bytes());
                out.extend_from_slice(source);
                out.extend_from_slice(format!(",\"epoch\":{}}}}}\n", at.epoch).as_bytes());
            }
        }
    }
}

/// Comparable bytes of each row; `None` without columns, of which all rows are equal.
fn encoded(encoder: &KeyEncoder, columns: &[ArrayRef]) -> Result<Option<Rows>> {
    if columns.is_empty() { Ok(None) } else { encoder.encode(columns).map(Some) }
}

fn same(rows: &Option<Rows>, a: u32, b: u32) -> bool {
    rows.as_ref().is_none_or(|rows| rows.row(a as usize) == rows.row(b as usize))
}

fn writable_columns(rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
    rows.columns().iter().map(writable).collect()
}

fn two_rows() -> Error {
    Error::internal("a sink got two rows of one key").with_detail("The key of the sink's input does not hold.")
}

fn no_key() -> Error {
    Error::new(SqlState::InvalidParameterValue, "FORMAT UPSERT needs a key, and no key of the sink's input is known")
        .with_detail(
            "Known are the primary key of a table, the columns of GROUP BY and DISTINCT, and what follows from them.",
        )
        .with_hint("Declare a primary key, group by the columns of the key, or use FORMAT DEBEZIUM or FORMAT PLAIN.")
}

/// The key of the sink: as the option says, or the shortest that is known.
fn key(request: &SinkRequest<'_>, option: Option<&str>) -> Result<Option<Vec<usize>>> {
    let Some(option) = option else {
        // The empty key says that there is at most one row.
        return Ok(request.keys.iter().find(|k| !k.is_empty()).or(request.keys.first()).cloned());
    };
    let columns = named_columns(&request.schema, PRIMARY_KEY.name, option)?;
    if request.keys.iter().any(|key| key.iter().all(|c| columns.contains(c))) {
        return Ok(Some(columns));
    }
    let error = Error::new(
        SqlState::InvalidParameterValue,
        format!("the columns of option \"primary_key\" do not tell the rows of the sink apart: '{option}'"),
    );
    let text =
        |key: &Vec<usize>| key.iter().map(|c| request.schema.field(*c).name().as_str()).collect::<Vec<_>>().join(", ");
    Err(match request.keys.iter().find(|key| !key.is_empty()) {
        Some(known) => error
            .with_detail(format!("A key that is known: {}.", text(known)))
            .with_hint(format!("Write primary_key = '{}', or leave it out.", text(known))),
        None => error
            .with_detail("No key of the sink's input is known.")
            .with_hint("Declare a primary key, or group by the columns of the key."),
    })
}

/// The columns that `list`, the value of `option`, names, separated by commas. Errors: `42703`, `42701`.
pub fn named_columns(schema: &Schema, option: &str, list: &str) -> Result<Vec<usize>> {
    let mut columns = Vec::new();
    for name in list.split(',').map(str::trim) {
        let column = column(schema, option, name)?;
        if columns.contains(&column) {
            let message = format!("column \"{name}\" appears twice in option \"{option}\"");
            return Err(Error::new(SqlState::DuplicateColumn, message));
        }
        columns.push(column);
    }
    Ok(columns)
}

/// The column of this name, exactly or ignoring case.
fn column(schema: &Schema, option: &str, name: &str) -> Result<usize> {
    let fields = schema.fields();
    let exact = fields.iter().position(|f| f.name() == name);
    exact.or_else(|| fields.iter().position(|f| f.name().eq_ignore_ascii_case(name))).ok_or_else(|| {
        let message = format!("column \"{name}\" named in option \"{option}\" does not exist");
        let error = Error::new(SqlState::UndefinedColumn, message);
        match nearest(name, fields.iter().map(|f| f.name().as_str())) {
            Some(near) => error.with_hint(format!("Perhaps you meant \"{near}\".")),
            None => error,
        }
    })
}

/// The option `primary_key` as it was written. Errors: `22023` when the form of the rows has no key.
pub fn primary_key<'a>(reader: &OptionReader<'a>, form: RowForm) -> Result<Option<&'a str>> {
    match reader.given(PRIMARY_KEY.name) {
        Some(_) if form == RowForm::Plain => Err(Error::new(
            SqlState::InvalidParameterValue,
            "option \"primary_key\" is only for FORMAT UPSERT and FORMAT DEBEZIUM",
        )
        .with_hint("Write FORMAT UPSERT ENCODE JSON after WITH (…), or leave the option out.")),
        given => Ok(given),
    }
}
