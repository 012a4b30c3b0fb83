//! Changes → the row groups of a Parquet file.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use flow::{ChangeBatch, Epoch, Error, Result, SqlState};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::format::records::{CHANGE_COLUMNS, refuse_deletions};
use crate::format::sql_type_name;

use super::options::SinkMode;

/// Encoded bytes of a row group at most, which are in memory until it is written.
const GROUP_BYTES: usize = 32 << 20;

/// Makes the rows of files out of changes.
pub struct Columns {
    /// What stands in the files.
    schema: SchemaRef,
    changes: bool,
}

impl Columns {
    /// Errors: `0A000` a type without a form in Parquet, `42701` a column named like one that the mode adds.
    pub fn new(schema: &Schema, mode: SinkMode) -> Result<Columns> {
        let changes = mode == SinkMode::Changes;
        let mut fields = Vec::new();
        if changes {
            fields.push(Field::new(CHANGE_COLUMNS[0], DataType::Utf8, false));
            fields.push(Field::new(CHANGE_COLUMNS[1], DataType::Int64, false));
        }
        for field in schema.fields() {
            if !storable(field.data_type()) {
                let kind = sql_type_name(field.data_type());
                return Err(Error::unsupported(format!("values of type {kind} are not written to Parquet"))
                    .with_detail(format!("Column \"{}\" is of this type.", field.name()))
                    .with_hint("Cast the column to text in the sink's query."));
            }
            if changes && CHANGE_COLUMNS.contains(&field.name().as_str()) {
                return Err(Error::new(
                    SqlState::DuplicateColumn,
                    format!("column \"{}\" has the name of a column that the sink adds", field.name()),
                )
                .with_hint("Rename the column in the sink's query."));
            }
            fields.push(Field::new(field.name(), field.data_type().clone(), field.is_nullable()));
        }
        if fields.is_empty() {
            return Err(Error::unsupported("rows without columns are not written to Parquet")
                .with_hint("Choose columns in the sink's query."));
        }
        Ok(Columns { schema: Arc::new(Schema::new(fields)), changes })
    }

    /// A row for each copy of each change. Errors: `0A000` a deletion where rows are only added.
    pub fn rows(&self, epoch: Epoch, change: &ChangeBatch) -> Result<RecordBatch> {
        if !self.changes {
            refuse_deletions(change)?;
        }
        let mut copies = Vec::with_capacity(change.num_rows());
        for row in 0..change.num_rows() {
            let number = u32::try_from(row)
                .map_err(|_| Error::new(SqlState::ProgramLimitExceeded, "too many changes in one batch"))?;
            let count = usize::try_from(change.weight(row).unsigned_abs()).unwrap_or(usize::MAX);
            copies.extend(std::iter::repeat_n(number, count));
        }
        let as_they_are = copies.len() == change.num_rows() && copies.windows(2).all(|pair| pair[0] < pair[1]);
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        if self.changes {
            let op = |row: &u32| if change.weight(*row as usize) > 0 { "insert" } else { "delete" };
            let number = i64::try_from(epoch.0).map_err(|_| Error::internal("an epoch beyond bigint"))?;
            columns.push(Arc::new(StringArray::from_iter_values(copies.iter().map(op))));
            columns.push(Arc::new(Int64Array::from_value(number, copies.len())));
        }
        if as_they_are {
            columns.extend(change.rows.columns().iter().cloned());
        } else {
            let copies = UInt32Array::from(copies);
            for column in change.rows.columns() {
                columns.push(arrow::compute::take(column, &copies, None)?);
            }
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    /// Begins a file.
    pub fn begin(&self) -> Result<ColumnFile> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_max_row_group_bytes(Some(GROUP_BYTES))
            .build();
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(&self.schema), options);
        Ok(ColumnFile { writer: writer.map_err(failed)? })
    }
}

/// A file that takes rows.
pub struct ColumnFile {
    writer: ArrowWriter<Vec<u8>>,
}

impl ColumnFile {
    pub fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.writer.write(rows).map_err(failed)
    }

    /// The bytes of whole row groups that were not taken yet.
    pub fn take(&mut self) -> Vec<u8> {
        // The writer counts the bytes that went through it, and asks no more of what is below.
        std::mem::take(self.writer.inner_mut())
    }

    /// The rest of the file, with its footer.
    pub fn finish(self) -> Result<Vec<u8>> {
        self.writer.into_inner().map_err(failed)
    }

    /// About the bytes that [`finish`](Self::finish) would give.
    pub fn held_bytes(&self) -> usize {
        self.writer.inner().len() + self.writer.in_progress_size()
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        self.writer.inner().capacity() + self.writer.memory_size()
    }
}

fn failed(e: ParquetError) -> Error {
    Error::internal(format!("rows could not be written to Parquet: {e}"))
}

/// Whether a canonical type has a form in Parquet that reads back as the same.
fn storable(data_type: &DataType) -> bool {
    use DataType::*;
    match data_type {
        Boolean | Int16 | Int32 | Int64 | Float32 | Float64 | Decimal128(..) | Utf8View | Utf8 | Binary | Date32 => {
            true
        }
        Time64(TimeUnit::Microsecond) | Timestamp(TimeUnit::Microsecond, _) => true,
        List(item) => !matches!(item.data_type(), List(_)) && storable(item.data_type()),
        _ => false,
    }
}
