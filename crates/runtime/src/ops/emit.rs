//! Shaping of output batches.

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use flow::{ChangeBatch, Collector, Diff, Error, Result};

/// A batch of `rows` rows; columns that do not fit the schema are a bug of the planner or of an operator.
pub fn record(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
        .map_err(|e| Error::internal("an operator made rows that do not fit its schema").with_detail(e.to_string()))
}

/// Checks that an incoming batch has the column types that the operator was built for.
pub fn check_types(batch: &ChangeBatch, schema: &SchemaRef) -> Result<()> {
    let columns = batch.rows.columns();
    let fits = columns.len() == schema.fields().len()
        && columns.iter().zip(schema.fields()).all(|(c, f)| c.data_type() == f.data_type());
    if fits {
        return Ok(());
    }
    Err(Error::internal("an operator got rows of another schema").with_detail(format!(
        "Expected ({}), got ({}).",
        schema.fields().iter().map(|f| f.data_type().to_string()).collect::<Vec<_>>().join(", "),
        columns.iter().map(|c| c.data_type().to_string()).collect::<Vec<_>>().join(", ")
    )))
}

/// Puts small pieces together and splits large ones, so that batches leave with about the target number of rows.
pub struct Outbox {
    schema: SchemaRef,
    target: usize,
    pieces: Vec<ChangeBatch>,
    rows: usize,
}

impl Outbox {
    pub fn new(schema: SchemaRef, target: usize) -> Outbox {
        Outbox { schema, target: target.max(1), pieces: Vec::new(), rows: 0 }
    }

    pub fn push(&mut self, columns: Vec<ArrayRef>, rows: usize, diff: Diff, out: &mut dyn Collector) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        self.pieces.push(ChangeBatch::new(record(&self.schema, columns, rows)?, diff));
        self.rows += rows;
        if self.rows >= self.target { self.flush(out) } else { Ok(()) }
    }

    /// Sends what is left. Every caller ends its `process` or `finish_epoch` with it.
    pub fn flush(&mut self, out: &mut dyn Collector) -> Result<()> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let batch = ChangeBatch::concat(&self.schema, &self.pieces)?;
        self.pieces.clear();
        self.rows = 0;
        let rows = batch.num_rows();
        if rows < self.target * 2 {
            out.emit(batch);
            return Ok(());
        }
        let mut offset = 0;
        while offset < rows {
            let length = self.target.min(rows - offset);
            out.emit(batch.slice(offset, length));
            offset += length;
        }
        Ok(())
    }
}
