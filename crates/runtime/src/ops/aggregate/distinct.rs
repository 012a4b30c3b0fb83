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
use plan::ChangeKind;

use super::accumulate::{Accumulator, each, too_many_rows};
use super::saved::{CHUNK, Saved, Tracked, Values, integers};
use crate::ops::cells::{BatchColumn, Bits};
use crate::ops::changelog_violation;
use crate::ops::row_table::{NONE, RowTable};

pub struct Distinct {
    arg: DataType,
    /// (group, value).
    entries: RowTable,
    multiplicities: Vec<i64>,
    /// The first entry of each group; the others follow in `links`.
    first: Vec<u32>,
    /// The entries of the same group before and after each entry.
    links: Vec<Link>,
    /// Entries that the epoch changed, with their multiplicity before it.
    changed: Vec<(u32, i64)>,
    is_changed: Bits,
    inner: Box<dyn Accumulator>,
    /// Rows are never taken away, so it only matters whether a value is there.
    grows: bool,
    /// The entries that checkpoints have; `None` until changes are to be told.
    tracked: Option<Tracked>,
    gone: Vec<Values>,
    touched: u64,
    ids: Vec<u32>,
    fresh: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

const UNLINKED: Link = Link { before: NONE, after: NONE };

impl Distinct {
    pub fn new(arg: &DataType, kind: ChangeKind, inner: Box<dyn Accumulator>) -> Distinct {
        Distinct {
            arg: arg.clone(),
            entries: RowTable::new([&DataType::UInt32, arg], true),
            multiplicities: Vec::new(),
            first: Vec::new(),
            links: Vec::new(),
            changed: Vec::new(),
            is_changed: Bits::default(),
            inner,
            grows: kind == ChangeKind::AppendOnly,
            tracked: None,
            gone: Vec::new(),
            touched: 0,
            ids: Vec::new(),
            fresh: Vec::new(),
        }
    }

    /// The entries of `group`.
    fn of_group(&self, group: u32) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut id = self.first[group as usize];
        while id != NONE {
            ids.push(id);
            id = self.links[id as usize].after;
        }
        ids
    }

    /// Notes those of these entries, which are about to be removed, that a checkpoint has.
    fn note_gone(&mut self, ids: &[u32]) -> Result<()> {
        let Some(tracked) = &mut self.tracked else { return Ok(()) };
        let told: Vec<u32> = ids.iter().copied().filter(|id| tracked.forget(*id)).collect();
        for ids in told.chunks(CHUNK) {
            let gone = self.values(ids, vec![0; ids.len()])?;
            self.gone.push(gone);
        }
        Ok(())
    }

    fn values(&self, ids: &[u32], counts: Vec<i64>) -> Result<Values> {
        let groups = self.entries.gather(0, ids)?;
        let groups = groups.as_primitive::<UInt32Type>().values().to_vec();
        Ok(Values { groups, values: self.entries.gather(1, ids)?, counts })
    }

    /// Forgets an entry of `group`.
    fn remove(&mut self, group: u32, id: u32) {
        let Link { before, after } = std::mem::replace(&mut self.links[id as usize], UNLINKED);
        match before {
            NONE => self.first[group as usize] = after,
            before => self.links[before as usize].after = after,
        }
        if after != NONE {
            self.links[after as usize].before = before;
        }
        self.entries.remove(id);
    }

    /// Finds or makes the entries of (group, value) pairs: their numbers go to `ids`.
    fn enter(&mut self, columns: &[ArrayRef; 2]) -> Result<()> {
        let rows = columns[0].len();
        let hashes = hash_columns(columns, rows)?;
        let batch = BatchColumn::all(columns)?;
        self.entries.upsert(&batch, &hashes, &mut self.ids, &mut self.fresh)?;
        self.multiplicities.resize(self.entries.size(), 0);
        self.links.resize(self.entries.size(), UNLINKED);
        let groups = columns[0].as_primitive::<UInt32Type>().values();
        for i in &self.fresh {
            let (id, group) = (self.ids[*i as usize], groups[*i as usize] as usize);
            let after = std::mem::replace(&mut self.first[group], id);
            self.links[id as usize] = Link { before: NONE, after };
            if after != NONE {
                self.links[after as usize].before = id;
            }
        }
        self.touched += rows as u64;
        Ok(())
    }

    /// Counts entry `ids[n]` `weight` times more. Returns whether the number was too large.
    #[inline(always)]
    fn count(&mut self, n: usize, weight: i64) -> bool {
        let id = self.ids[n];
        let multiplicity = &mut self.multiplicities[id as usize];
        if !self.is_changed.get(id as usize) {
            self.is_changed.set(id as usize, true);
            self.changed.push((id, *multiplicity));
        }
        let (next, overflow) = multiplicity.overflowing_add(weight);
        *multiplicity = next;
        overflow
    }
}

impl Accumulator for Distinct {
    fn resize(&mut self, groups: usize) {
        self.first.resize(groups, NONE);
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
        if columns[0].is_empty() {
            return Ok(());
        }
        self.enter(&columns)?;
        let (mut overflow, mut n) = (false, 0);
        each(arg.len(), keep, diff, |_, w| {
            overflow |= self.count(n, w);
            n += 1;
        });
        if overflow { Err(too_many_rows()) } else { Ok(()) }
    }

    fn merge(&mut self, from: u32, into: u32) -> Result<()> {
        let ids = self.of_group(from);
        if ids.is_empty() {
            return Ok(());
        }
        let weights: Vec<i64> = ids.iter().map(|id| self.multiplicities[*id as usize]).collect();
        let values = self.entries.gather(1, &ids)?;
        let mut overflow = false;
        // The inner accumulator is told at the end of the epoch, of both.
        for (group, sign) in [(into, 1), (from, -1)] {
            self.enter(&[Arc::new(UInt32Array::from(vec![group; ids.len()])), Arc::clone(&values)])?;
            weights.iter().enumerate().for_each(|(n, w)| overflow |= self.count(n, sign * w));
        }
        if overflow { Err(too_many_rows()) } else { Ok(()) }
    }

    fn settle(&mut self) -> Result<()> {
        let (mut came, mut went) = (Vec::new(), Vec::new());
        for (id, before) in &self.changed {
            let after = self.multiplicities[*id as usize];
            if let Some(tracked) = &mut self.tracked
                && after != *before
                && (*before == 0 || !self.grows)
            {
                tracked.mark(*id);
            }
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
        let mut empty = Vec::new();
        for (id, _) in self.changed.drain(..) {
            self.is_changed.set(id as usize, false);
            if self.multiplicities[id as usize] == 0 {
                empty.push(id);
            }
        }
        if !empty.is_empty() {
            self.note_gone(&empty)?;
            let groups = self.entries.gather(0, &empty)?;
            for (group, id) in groups.as_primitive::<UInt32Type>().values().iter().zip(empty) {
                self.remove(*group, id);
            }
        }
        self.inner.settle()
    }

    fn evaluate(&mut self, groups: &[u32]) -> Result<ArrayRef> {
        self.inner.evaluate(groups)
    }

    fn clear(&mut self, groups: &[u32]) -> Result<()> {
        // A group that the watermark ends still has its values.
        let ids: Vec<(u32, u32)> =
            groups.iter().flat_map(|g| self.of_group(*g).into_iter().map(|id| (*g, id))).collect();
        if self.tracked.is_some() {
            self.note_gone(&ids.iter().map(|(_, id)| *id).collect::<Vec<u32>>())?;
        }
        for (group, id) in ids {
            self.multiplicities[id as usize] = 0;
            self.remove(group, id);
        }
        self.inner.clear(groups)
    }

    /// The inner accumulator has what follows from the values.
    fn saved(&self) -> Saved {
        Saved::Values(self.arg.clone())
    }

    fn save(&mut self, _groups: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(Vec::new())
    }

    fn load(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Result<()> {
        self.update(groups, &columns[0], None, &Diff::from_weights(integers(&columns[1])?.to_vec()))
    }

    fn track(&mut self) {
        let mut tracked = Tracked::default();
        let there = self.multiplicities.iter().enumerate().filter(|(_, n)| **n > 0);
        there.for_each(|(id, _)| tracked.tell(id as u32));
        self.tracked = Some(tracked);
    }

    fn gone(&mut self) -> Result<Vec<Values>> {
        Ok(std::mem::take(&mut self.gone))
    }

    fn changed(&mut self) -> Result<Vec<Values>> {
        let Some(tracked) = &mut self.tracked else { return Ok(Vec::new()) };
        let ids = tracked.take(false, |id| self.multiplicities[id as usize] > 0);
        let counts = |ids: &[u32]| ids.iter().map(|id| self.multiplicities[*id as usize]).collect();
        ids.chunks(CHUNK).map(|ids| self.values(ids, counts(ids))).collect()
    }

    fn bytes(&self) -> usize {
        self.entries.bytes()
            + self.multiplicities.capacity() * 8
            + self.first.capacity() * 4
            + self.links.capacity() * size_of::<Link>()
            + self.tracked.as_ref().map_or(0, Tracked::bytes)
            + self.inner.bytes()
    }

    fn touched(&self) -> u64 {
        self.touched + self.inner.touched()
    }
}
