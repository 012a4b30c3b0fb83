//! `CREATE SINK … INTO table`: a sink whose target is one of our own tables.
//!
//! The rows are logged with the sink as their origin. On restart they are left out while the sink exists, because the
//! sink derives all of them again; once it is dropped they count like any other rows.

use std::sync::{Arc, Weak};

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::filter_record_batch;
use arrow::row::{RowConverter, SortField};
use catalog::{OnConflict, Relation};
use connect::SinkWriter;
use flow::{ChangeBatch, Epoch, Error, RelationId, Result};

use crate::engine::Engine;
use crate::table::{Refused, Table, WriteSet};

/// Writes whole epochs of a sink into a table.
pub struct TableSink {
    engine: Weak<Engine>,
    sink: RelationId,
    table: RelationId,
    pending: Vec<ChangeBatch>,
    bytes: usize,
    finished: Epoch,
    published: Epoch,
    rows: u64,
}

impl TableSink {
    pub fn open(engine: &Arc<Engine>, sink: RelationId, table: RelationId) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(TableSink {
            engine: Arc::downgrade(engine),
            sink,
            table,
            pending: Vec::new(),
            bytes: 0,
            finished: Epoch(0),
            published: Epoch(0),
            rows: 0,
        }))
    }

    fn commit(&mut self) -> Result<()> {
        let Some(engine) = self.engine.upgrade() else { return Ok(()) };
        let catalog = engine.catalog();
        let (Some(table), Some(relation)) = (engine.table(self.table), catalog.relation(self.table)) else {
            return Err(Error::internal("the sink's table is gone"));
        };
        loop {
            // Locks are taken in one go or not at all: a sink never makes others wait while it waits itself.
            let mut set = WriteSet::of_sink(self.sink);
            match self.write_rows(&mut set, &table, relation, &self.pending) {
                Ok(rows) => {
                    set.commit_blocking(&engine.clock, &engine.log, &engine.budget, engine.floor())?;
                    self.rows += rows;
                    self.pending.clear();
                    self.bytes = 0;
                    return Ok(());
                }
                Err(Refused::Failed(error)) => return Err(error),
                Err(Refused::Busy(busy)) => {
                    drop(set);
                    engine.locks.owner().wait_blocking(busy)?;
                }
            }
        }
    }

    fn write_rows(
        &self,
        set: &mut WriteSet,
        table: &Arc<Table>,
        relation: &Arc<Relation>,
        changes: &[ChangeBatch],
    ) -> Result<u64, Refused> {
        let _latch = table.latch_blocking();
        set.open(table, relation)?;
        let mut rows = 0;
        // Deletions first: a key whose row changes comes as both.
        let keyed = !relation.primary_key().is_empty();
        for change in changes {
            let gone = signed(change, false)?;
            let gone = if keyed && rows == 0 { present(table, gone)? } else { gone };
            rows += set.delete(self.table, gone)?;
        }
        for change in changes {
            rows += set.insert(self.table, signed(change, true)?, OnConflict::Overwrite)?.len() as u64;
        }
        Ok(rows)
    }
}

/// The rows that a change adds (or takes away), each as often as its weight says.
pub(crate) fn signed(change: &ChangeBatch, added: bool) -> Result<RecordBatch> {
    let mut indices = Vec::new();
    for row in 0..change.num_rows() {
        let weight = if added { change.weight(row) } else { -change.weight(row) };
        (0..weight).for_each(|_| indices.push(row as u32));
    }
    Ok(change.take(&UInt32Array::from(indices))?.rows)
}

/// Those of `rows` that the keyed table holds exactly so. A row whose key was overwritten by another is not there any more.
fn present(table: &Table, rows: RecordBatch) -> Result<RecordBatch> {
    if rows.num_rows() == 0 {
        return Ok(rows);
    }
    let head = table.store.head()?;
    let key: Vec<ArrayRef> =
        table.store.key().unwrap_or_default().iter().map(|c| Arc::clone(rows.column(*c))).collect();
    let ids = head.lookup_keys(&key)?;
    let found = head.take(&ids.iter().flatten().copied().collect::<Vec<_>>(), None)?;
    let fields = rows.schema().fields().iter().map(|f| SortField::new(f.data_type().clone())).collect();
    let converter = RowConverter::new(fields)?;
    let (wanted, stored) = (converter.convert_columns(rows.columns())?, converter.convert_columns(found.columns())?);
    let mut at = 0;
    let mut same = Vec::with_capacity(ids.len());
    for (row, id) in ids.iter().enumerate() {
        same.push(id.is_some() && wanted.row(row) == stored.row(at));
        at += usize::from(id.is_some());
    }
    Ok(filter_record_batch(&rows, &BooleanArray::from(same))?)
}

impl SinkWriter for TableSink {
    fn write(&mut self, _epoch: Epoch, change: &ChangeBatch) -> Result<()> {
        self.bytes += change.bytes();
        self.pending.push(change.clone());
        Ok(())
    }

    fn finish_epoch(&mut self, epoch: Epoch, _now_us: i64) -> Result<()> {
        self.finished = epoch;
        self.make_up()
    }

    fn make_up(&mut self) -> Result<()> {
        if !self.pending.is_empty() {
            self.commit()?;
        }
        self.published = self.finished;
        Ok(())
    }

    fn flush(&mut self, _now_us: i64) -> Result<()> {
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.pending.clear();
        Ok(())
    }

    fn published(&self) -> Epoch {
        self.published
    }

    fn rows_written(&self) -> u64 {
        self.rows
    }

    fn state_bytes(&self) -> usize {
        self.bytes
    }
}
