//! What an operator has yet to tell the checkpoint: the changes of its state since it was last asked.
//!
//! [`Tracked`] has them as batches that went through the operator anyway, kept by reference. They stay for as long as a checkpoint
//! is away, so a column that would keep much more alive than its own rows is copied out of what it shares.
//!
//! [`TrackedRows`] has only the numbers of the rows that changed, so that what comes and goes between two checkpoints is never
//! told.

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use flow::{ChangeBatch, Diff, Error, Result, SqlState};
use state::owned;

use super::cells::Bits;
use super::emit::{check_types, record};

/// Nothing is kept, and nothing costs, until [`start`](Self::start).
#[derive(Default)]
pub struct Tracked {
    on: bool,
    changes: Vec<(usize, ChangeBatch)>,
    bytes: usize,
}

impl Tracked {
    pub fn start(&mut self) {
        self.on = true;
    }

    /// Whether changes are to be told at all.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Notes changes of `part`, whose schema is `schema`.
    pub fn push(
        &mut self,
        part: usize,
        schema: &SchemaRef,
        columns: &[ArrayRef],
        rows: usize,
        diff: Diff,
    ) -> Result<()> {
        if !self.on || rows == 0 {
            return Ok(());
        }
        let columns = columns.iter().map(owned).collect::<Result<Vec<_>>>()?;
        let change = ChangeBatch::new(record(schema, columns, rows)?, diff);
        self.bytes += change.bytes();
        self.changes.push((part, change));
        Ok(())
    }

    /// Hands over what there is to tell.
    pub fn tell(&mut self, out: &mut Vec<(usize, ChangeBatch)>) {
        self.bytes = 0;
        out.append(&mut self.changes);
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Which of numbered rows have another weight than the checkpoint knows. Nothing is kept, and nothing costs, until
/// [`start`](Self::start).
#[derive(Default)]
pub struct TrackedRows {
    on: bool,
    /// By number: the weight that the checkpoint knows.
    told: Vec<i64>,
    changed: Bits,
    /// The changed ones, once each.
    list: Vec<u32>,
}

impl TrackedRows {
    /// The checkpoint knows these weights, by number.
    pub fn start(&mut self, told: Vec<i64>) {
        self.on = true;
        self.told = told;
    }

    pub fn is_on(&self) -> bool {
        self.on
    }

    /// The weight of a row may have changed.
    #[inline(always)]
    pub fn mark(&mut self, row: u32) {
        if self.on && !self.changed.get(row as usize) {
            self.changed.set(row as usize, true);
            self.list.push(row);
        }
    }

    pub fn told(&self, row: u32) -> i64 {
        self.told.get(row as usize).copied().unwrap_or(0)
    }

    /// The checkpoint is told of this weight.
    pub fn tell(&mut self, row: u32, weight: i64) {
        if row as usize >= self.told.len() {
            self.told.resize(row as usize + 1, 0);
        }
        self.told[row as usize] = weight;
    }

    /// The marked rows, some of which may not be there any more. They are not marked any longer.
    pub fn take(&mut self) -> Vec<u32> {
        let list = std::mem::take(&mut self.list);
        list.iter().for_each(|row| self.changed.set(*row as usize, false));
        list
    }

    /// How many rows are marked.
    pub fn marked(&self) -> usize {
        self.list.len()
    }

    pub fn bytes(&self) -> usize {
        self.told.capacity() * 8 + self.changed.bytes() + self.list.capacity() * 4
    }
}

/// Rows of a state that nothing can have written.
pub fn damaged(what: &str) -> Error {
    Error::new(SqlState::DataCorrupted, "the state of a checkpoint is damaged").with_detail(what.to_owned())
}

/// Checks that restored rows have the schema of their part and are there.
pub fn check_restored(rows: &ChangeBatch, schema: &SchemaRef) -> Result<()> {
    if let Err(e) = check_types(rows, schema) {
        return Err(damaged(e.detail().unwrap_or("Its rows have another schema.")));
    }
    if (0..rows.num_rows()).any(|i| rows.weight(i) <= 0) {
        return Err(damaged("A row of it is there fewer than one time."));
    }
    Ok(())
}
