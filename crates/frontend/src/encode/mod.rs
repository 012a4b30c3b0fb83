//! Arrow columns to the values of DataRow messages, and the text of COPY.
//!
//! What a column is and in which format it goes is decided once per batch ([`RowEncoder::bind`]); a row is then a walk over
//! cells that already know their typed array. Text is exactly PostgreSQL's, binary exactly what its `*send` functions give.

pub(crate) mod cell;
pub(crate) mod datetime;
pub(crate) mod number;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, SchemaRef};
use bytes::{BufMut, BytesMut};
use flow::{Error, Result, SqlState};
use pgwire::messages::data::{FieldDescription, RowDescription};

use crate::encode::cell::Cells;
use crate::settings::TextSettings;
use crate::types::{PG_COLUMN, PgType, oid};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Binary,
}

impl Format {
    pub(crate) fn from_code(code: i16) -> Result<Format> {
        match code {
            0 => Ok(Format::Text),
            1 => Ok(Format::Binary),
            other => Err(Error::new(SqlState::InvalidParameterValue, format!("unsupported format code: {other}"))),
        }
    }

    pub(crate) fn code(self) -> i16 {
        match self {
            Format::Text => 0,
            Format::Binary => 1,
        }
    }
}

/// The format of each of `columns` columns from the codes of a Bind message: none is all text, one is for all.
pub(crate) fn formats_of(codes: &[i16], columns: usize) -> Result<Vec<Format>> {
    match codes {
        [] => Ok(vec![Format::Text; columns]),
        [one] => Ok(vec![Format::from_code(*one)?; columns]),
        many if many.len() == columns => many.iter().map(|code| Format::from_code(*code)).collect(),
        many => Err(Error::new(
            SqlState::ProtocolViolation,
            format!("bind message has {} result formats but query has {columns} columns", many.len()),
        )),
    }
}

/// The RowDescription message of a result.
pub(crate) fn row_description(schema: &SchemaRef, formats: &[Format]) -> RowDescription {
    let describe = |(i, field): (usize, &std::sync::Arc<Field>)| {
        let of = PgType::of_field(field);
        let format = formats.get(i).copied().unwrap_or(Format::Text);
        let (relation, number) = column_of(field).unwrap_or_default();
        FieldDescription::new(field.name().clone(), relation, number, of.oid, of.typlen, of.typmod, format.code())
    };
    RowDescription::new(schema.fields().iter().enumerate().map(describe).collect())
}

/// The relation and the column that a field shows unchanged.
fn column_of(field: &Field) -> Option<(i32, i16)> {
    let (relation, number) = field.metadata().get(PG_COLUMN)?.split_once('.')?;
    // OIDs are unsigned; the wire carries the same four bytes.
    Some((relation.parse::<u32>().ok()?.cast_signed(), number.parse().ok()?))
}

/// How the rows of one result are written.
pub(crate) struct RowEncoder {
    columns: Vec<(u32, Format)>,
    settings: TextSettings,
}

impl RowEncoder {
    pub(crate) fn new(schema: &SchemaRef, formats: &[Format], settings: TextSettings) -> RowEncoder {
        let column = |(i, field): (usize, &std::sync::Arc<Field>)| {
            (PgType::of_field(field).oid, formats.get(i).copied().unwrap_or(Format::Text))
        };
        RowEncoder { columns: schema.fields().iter().enumerate().map(column).collect(), settings }
    }

    /// Fixes the typed form of every column of `batch`.
    pub(crate) fn bind(&self, batch: &RecordBatch) -> Result<BatchRows> {
        if batch.num_columns() != self.columns.len() {
            return Err(Error::internal(format!(
                "a result of {} columns holds a batch of {}",
                self.columns.len(),
                batch.num_columns()
            )));
        }
        let cells = batch
            .columns()
            .iter()
            .zip(&self.columns)
            .map(|(array, (type_oid, format))| Cells::new(array, *type_oid, *format, self.settings))
            .collect::<Result<Vec<_>>>()?;
        Ok(BatchRows { cells, rows: batch.num_rows() })
    }
}

/// One batch, ready to be written row by row.
pub(crate) struct BatchRows {
    pub(crate) cells: Vec<Cells>,
    pub(crate) rows: usize,
}

impl BatchRows {
    /// Appends the DataRow message of row `i`. On an error `out` is as before.
    pub(crate) fn write_data_row(&self, i: usize, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.push(b'D');
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(self.cells.len() as u16).to_be_bytes());
        for cell in &self.cells {
            if let Err(error) = cell.write_field(i, out) {
                out.truncate(start);
                return Err(error);
            }
        }
        let length = out.len() - start - 1;
        match i32::try_from(length) {
            Ok(length) => out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes()),
            Err(_) => {
                out.truncate(start);
                return Err(Error::new(SqlState::ProgramLimitExceeded, "a row is too large to be sent"));
            }
        }
        Ok(())
    }
}

/// Whether two results look the same to a client that described the first and fetches the second.
pub(crate) fn same_description(a: &SchemaRef, b: &SchemaRef) -> bool {
    let oids = |schema: &SchemaRef| schema.fields().iter().map(|f| PgType::of_field(f).oid).collect::<Vec<_>>();
    std::sync::Arc::ptr_eq(a, b) || oids(a) == oids(b)
}

/// Appends a message of the `pgwire` crate.
pub(crate) fn write_message<M: pgwire::messages::Message>(
    message: &M,
    scratch: &mut BytesMut,
    out: &mut Vec<u8>,
) -> Result<()> {
    scratch.clear();
    message.encode(scratch).map_err(|e| Error::new(SqlState::ProgramLimitExceeded, e.to_string()))?;
    out.put_slice(scratch);
    Ok(())
}

/// Types whose binary form differs from the plain one of the Arrow array that holds them.
pub(crate) fn is_oid_like(type_oid: u32) -> bool {
    matches!(type_oid, oid::OID | oid::XID | oid::CID | oid::REGPROC | oid::REGCLASS | oid::REGTYPE)
}
