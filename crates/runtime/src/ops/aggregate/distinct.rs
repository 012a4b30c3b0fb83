//! DISTINCT inside an aggregate call: a value counts once however often it is there.
//!
//! Every value of every group is kept with its multiplicity (trap "DISTINCT drops multiplicity"). Within an epoch only
//! multiplicities move; at the end the values that came and the values that went pass on to the inner accumulator once.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, UInt32Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter;
use arrow::datatypes::{DataType, UInt32Type};
use flow::hash::hash_columns;
use flow::{Diff, Result};

use super::accumulate::{Accumulator, each, too_many_rows};
use crate::ops::cells::{BatchColumn, Bits};
use crate::ops::changelog_violation;
use crate::ops::row_table::RowTable;

pub struct Distinct {
    /// (group, value).
    entries: RowTable,
    multiplicities: Vec<i64>,
    /// Entries that the epoch changed, with their multiplicity before it.
    changed: Vec<(u32, i64)>,
    is_changed: Bits,
    inner: Box<dyn Accumulator>,
    touched: u64,
    ids: Vec<u32>,
    fresh: Vec<u32>,
}

impl Distinct {
    pub fn new(arg: &DataType, inner: Box<dyn Accumulator>) -> Distinct {
        Distinct {
            entries: RowTable::new([&DataType::UInt32, arg], true),
            multiplicities: Vec::new(),
            changed: Vec::new(),
            is_changed: Bits::default(),
            inner,
            touched: 0,
            ids: Vec::new(),
            fresh: Vec::new(),
        }
    }
}

impl Accumulator for Distinct {
    fn resize(&mut self, groups: usize) {
        self.inner.resize(groups);
    }

    fn update(&mut self, groups: &[u32], arg: &ArrayRef, keep: Option<&BooleanBuffer>, diff: &Diff) -> Result<()> {
        let groups: ArrayRef = Arc::new(UInt32Array::from(groups.to_vec()));
        let columns = match keep {
            None => [groups, Arc::clone(arg)],
            Some(keep) => {
                let mask = BooleanArray::new(keep.clone(), None);
                [filter(&groups, &mask)?, filter(arg, &mask)?]
            }
        };
        let rows = columns[0].len();
        if rows == 0 {
            return Ok(());
        }
        let hashes = hash_columns(&columns, rows)?;
        let batch = BatchColumn::all(&columns)?;
        self.entries.upsert(&batch, &hashes, &mut self.ids, &mut self.fresh)?;
        self.multiplicities.resize(self.entries.size(), 0);
        let Distinct { ids, multiplicities, changed, is_changed, .. } = self;
        let (mut overflow, mut n) = (false, 0);
        each(arg.len(), keep, diff, |_, w| {
            let id = ids[n];
            n += 1;
            let multiplicity = &mut multiplicities[id as usize];
            if !is_changed.get(id as usize) {
                is_changed.set(id as usize, true);
                changed.push((id, *multiplicity));
            }
            let (next, over) = multiplicity.overflowing_add(w);
            *multiplicity = next;
            overflow |= over;
        });
        self.touched += rows as u64;
        if overflow { Err(too_many_rows()) } else { Ok(()) }
    }

    fn settle(&mut self) -> Result<()> {
        let (mut came, mut went) = (Vec::new(), Vec::new());
        for (id, before) in &self.changed {
            let after = self.multiplicities[*id as usize];
            match (*before > 0, after) {
                (_, ..=-1) => return Err(changelog_violation("a value under DISTINCT")),
                (true, 0) => went.push(*id),
                (false, 1..) => came.push(*id),
                _ => {}
            }
        }
        for (ids, diff) in [(&came, Diff::Insert), (&went, Diff::Delete)] {
            if !ids.is_empty() {
                let groups = self.entries.gather(0, ids)?;
                let values = self.entries.gather(1, ids)?;
                self.inner.update(groups.as_primitive::<UInt32Type>().values(), &values, None, &diff)?;
            }
        }
        for (id, _) in self.changed.drain(..) {
            self.is_changed.set(id as usize, false);
            if self.multiplicities[id as usize] == 0 {
                self.entries.remove(id);
            }
        }
        self.inner.settle()
    }

    fn evaluate(&mut self, groups: &[u32]) -> Result<ArrayRef> {
        self.inner.evaluate(groups)
    }

    fn clear(&mut self, group: u32) {
        // The group's entries went with its last rows; a changelog that left some has failed in `settle`.
        self.inner.clear(group);
    }

    fn bytes(&self) -> usize {
        self.entries.bytes() + self.multiplicities.capacity() * 8 + self.inner.bytes()
    }

    fn touched(&self) -> u64 {
        self.touched + self.inner.touched()
    }
}
