//! One input of a join as state: its rows with their weights, chained by join key.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use flow::hash::hash_columns;
use flow::{Diff, Error, Result, SqlState};
use plan::ChangeKind;
use plan::stream::TimeColumn;

use super::kept::Kept;
use crate::ops::cells::{BatchColumn, Bits};
use crate::ops::panes::{Panes, time_at};
use crate::ops::row_table::{NONE, RowTable};

/// How an arriving change finds the row that it adds to or takes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Find {
    /// Rows only come: every one is new.
    Never,
    /// Rows only come, and leave when their time is over.
    New,
    /// The join key (nearly) identifies the row: look along the key's chain.
    Chain,
    /// By an index over the whole row.
    Index,
}

/// A row that the epoch changed, as it was before the epoch.
#[derive(Clone, Copy)]
pub struct Before {
    pub row: u32,
    pub weight: i64,
    pub degree: i64,
}

pub struct Side {
    pub schema: SchemaRef,
    pub key_columns: Vec<usize>,
    pub kind: ChangeKind,
    /// Whether the rows themselves are kept, not only their number per key.
    pub stored: bool,
    /// Whether rows appear in the output by having or lacking a match: outer, semi and anti joins.
    pub preserved: bool,
    /// Whether matches are counted per row (with an extra condition) instead of per key.
    pub counts_degrees: bool,
    /// Whether these cannot be counted anew from the rows, because rows of the other side are forgotten before their matches.
    pub keeps_degrees: bool,
    /// Whether the weights of a key's rows are summed, because the other side is preserved without a condition.
    pub counts_totals: bool,
    find: Find,
    pub rows: RowTable,
    /// By row, as are `degrees`, `keys`, `next`, `prev`, `before_at`.
    pub weights: Vec<i64>,
    /// Sum of the weights of the other side's rows that match.
    pub degrees: Vec<i64>,
    /// Empty for a side that is neither preserved nor loses rows.
    keys: Vec<u32>,
    next: Vec<u32>,
    /// Empty for a side that loses no rows.
    prev: Vec<u32>,
    /// By key: the first row of its chain.
    heads: Vec<u32>,
    /// By key: sum of the weights.
    pub(super) totals: Vec<i64>,
    /// Rows whose weight is below zero for the moment.
    pub negative: usize,
    /// Rows that this epoch changed, if preserved; `before_at` finds a row's entry.
    pub changed: Vec<Before>,
    before_at: Vec<u32>,
    /// Keys whose total this epoch changed, with the total before.
    pub changed_keys: Vec<(u32, i64)>,
    is_changed_key: Bits,
    /// Rows whose weight became zero in this call, if not preserved.
    zeroed: Vec<u32>,
    /// Keys that may have lost their last row in this epoch.
    pub maybe_empty: Vec<u32>,
    /// Row of every change of the batch last applied, and whether that change made it.
    pub ids: Vec<u32>,
    pub is_fresh: Vec<bool>,
    fresh: Vec<u32>,
    /// When rows can be forgotten, by 2^[`PANE_BITS`] microseconds of that time.
    expiring: Option<Panes>,
    /// What checkpoints know.
    pub kept: Kept,
}

/// Rows are forgotten about 65 ms of event time at a time.
const PANE_BITS: u32 = 16;

pub fn out_of_range() -> Error {
    Error::new(SqlState::NumericValueOutOfRange, "the multiplicity of a row is out of range")
}

/// Sorts numbers of which each is there once. They mostly lie close together, and then are read from a set of bits.
fn sort_descending(numbers: &mut Vec<u32>) {
    let (Some(least), Some(most)) = (numbers.iter().min().copied(), numbers.iter().max().copied()) else { return };
    let words = (most - least) as usize / 64 + 1;
    if words > numbers.len() {
        return numbers.sort_unstable_by_key(|number| std::cmp::Reverse(*number));
    }
    let mut bits = vec![0u64; words];
    for number in numbers.drain(..) {
        let at = number - least;
        bits[at as usize / 64] |= 1 << (at % 64);
    }
    for (n, mut word) in bits.into_iter().enumerate().rev() {
        while word != 0 {
            let highest = 63 - word.leading_zeros();
            numbers.push(least + n as u32 * 64 + highest);
            word &= !(1 << highest);
        }
    }
}

impl Side {
    pub fn new(
        schema: SchemaRef,
        key_columns: Vec<usize>,
        kind: ChangeKind,
        unique: bool,
        expires: Option<TimeColumn>,
    ) -> Side {
        let find = match (kind, unique) {
            (ChangeKind::AppendOnly, _) if expires.is_some() => Find::New,
            (ChangeKind::AppendOnly, _) => Find::Never,
            (ChangeKind::Retract, true) => Find::Chain,
            (ChangeKind::Retract, false) => Find::Index,
        };
        let rows = RowTable::new(schema.fields().iter().map(|f| f.data_type()), find == Find::Index);
        let kept = Kept::new(Arc::clone(&schema), false);
        Side {
            schema,
            key_columns,
            kind,
            stored: true,
            preserved: false,
            counts_degrees: false,
            keeps_degrees: false,
            counts_totals: false,
            find,
            rows,
            weights: Vec::new(),
            degrees: Vec::new(),
            keys: Vec::new(),
            next: Vec::new(),
            prev: Vec::new(),
            heads: Vec::new(),
            totals: Vec::new(),
            negative: 0,
            changed: Vec::new(),
            before_at: Vec::new(),
            changed_keys: Vec::new(),
            is_changed_key: Bits::default(),
            zeroed: Vec::new(),
            maybe_empty: Vec::new(),
            ids: Vec::new(),
            is_fresh: Vec::new(),
            fresh: Vec::new(),
            expiring: expires.map(|time| Panes::coarse(time, PANE_BITS)),
            kept,
        }
    }

    /// Notes when the rows that the batch last applied has made will be over.
    pub fn note_times(&mut self, batch: &RecordBatch) -> Result<()> {
        let Some(expiring) = &mut self.expiring else { return Ok(()) };
        let times = batch.columns().get(expiring.time.column);
        let times = times.and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
        let times = times.ok_or_else(|| Error::internal("rows expire by a column that is no timestamp"))?;
        let fresh = self.ids.iter().zip(&self.is_fresh).enumerate().filter(|(_, (_, fresh))| **fresh);
        expiring.note(fresh.map(|(i, (id, _))| (time_at(times, i), *id)));
        Ok(())
    }

    /// Whether rows leave when the watermark says so.
    pub fn expires(&self) -> bool {
        self.expiring.is_some()
    }

    /// Takes out the rows whose time is over when the watermark is at `watermark_us`, for [`forget`](Self::forget); the highest number
    /// comes first.
    pub fn take_over(&mut self, watermark_us: i64) -> Result<Vec<u32>> {
        let mut over = Vec::new();
        let Some(expiring) = &mut self.expiring else { return Ok(over) };
        while let Some((pane, mut rows)) = expiring.take_until(watermark_us) {
            if self.find != Find::New {
                // Rows may have gone before, and others taken their numbers.
                rows.sort_unstable();
                rows.dedup();
                rows.retain(|row| self.weights[*row as usize] != 0);
                let times = self.rows.gather(expiring.time.column, &rows)?;
                let times = times.as_primitive::<TimestampMicrosecondType>();
                let mut i = 0;
                rows.retain(|_| {
                    let time = time_at(times, i);
                    i += 1;
                    expiring.pane_of(time) == pane
                });
            }
            over.append(&mut rows);
        }
        // Numbers that become free are given again last first: so rows that come together lie beside each other, whatever
        // order those before them came in.
        sort_descending(&mut over);
        Ok(over)
    }

    /// Whether a row that came stays as it is for ever, so that rows are in the order in which they came.
    pub fn only_grows(&self) -> bool {
        self.find == Find::Never && self.stored && !self.keeps_degrees
    }

    /// Forgets rows whose time is over. They leave no trace in the output.
    pub fn forget(&mut self, rows: &[u32]) -> Result<()> {
        self.bury(rows)?;
        for row in rows {
            if self.counts_totals {
                // Rows of the other side under this key are over with it.
                let key = self.keys[*row as usize] as usize;
                self.totals[key] -= self.weights[*row as usize];
            }
            self.weights[*row as usize] = 0;
            self.remove(*row);
        }
        Ok(())
    }

    /// Makes room for keys `0 .. size`.
    pub fn resize_keys(&mut self, size: usize) {
        if self.heads.len() < size {
            self.heads.resize(size, NONE);
            if self.counts_totals {
                self.totals.resize(size, 0);
            }
        }
    }

    #[inline(always)]
    pub fn head(&self, key: u32) -> u32 {
        self.heads[key as usize]
    }

    #[inline(always)]
    pub fn next(&self, row: u32) -> u32 {
        self.next[row as usize]
    }

    pub fn key_of(&self, row: u32) -> u32 {
        self.keys[row as usize]
    }

    pub fn total(&self, key: u32) -> i64 {
        self.totals[key as usize]
    }

    /// Whether nothing is left under `key`.
    pub fn lacks(&self, key: u32) -> bool {
        self.heads[key as usize] == NONE && (!self.counts_totals || self.totals[key as usize] == 0)
    }

    /// Adds the weights of a batch to the totals of its rows' keys.
    pub fn add_totals(&mut self, keys: &[u32], diff: &Diff) -> Result<()> {
        for (i, key) in keys.iter().enumerate() {
            let total = &mut self.totals[*key as usize];
            if !self.is_changed_key.get(*key as usize) {
                self.is_changed_key.set(*key as usize, true);
                self.changed_keys.push((*key, *total));
            }
            *total = total.checked_add(diff.weight(i)).ok_or_else(out_of_range)?;
            if *total == 0 {
                self.maybe_empty.push(*key);
            }
            if !self.stored {
                self.kept.rows.mark(*key);
            }
        }
        Ok(())
    }

    /// Adds a batch to the state; `keys` are its rows' join keys. Fills `ids` and `is_fresh`.
    pub fn apply(&mut self, batch: &RecordBatch, diff: &Diff, keys: &[u32]) -> Result<()> {
        let columns: &[ArrayRef] = batch.columns();
        let cells = BatchColumn::all(columns)?;
        self.is_fresh.clear();
        if self.find == Find::Index {
            let hashes = hash_columns(columns, batch.num_rows())?;
            let mut ids = std::mem::take(&mut self.ids);
            let mut fresh = std::mem::take(&mut self.fresh);
            self.rows.upsert(&cells, &hashes, &mut ids, &mut fresh)?;
            self.is_fresh.resize(keys.len(), false);
            for i in &fresh {
                let i = *i as usize;
                self.is_fresh[i] = true;
                self.link(ids[i], keys[i]);
            }
            for (i, id) in ids.iter().enumerate() {
                self.add_weight(*id, diff.weight(i))?;
            }
            (self.ids, self.fresh) = (ids, fresh);
            return Ok(());
        }
        if self.rows.size() + keys.len() >= NONE as usize {
            return Err(Error::new(SqlState::ProgramLimitExceeded, "too many rows in one side of a join"));
        }
        self.ids.clear();
        if self.find == Find::New {
            for (i, key) in keys.iter().enumerate() {
                let row = self.rows.push(&cells, i);
                self.link(row, *key);
                self.ids.push(row);
                self.is_fresh.push(true);
                self.add_weight(row, diff.weight(i))?;
            }
            return Ok(());
        }
        if self.find == Find::Never {
            let start = self.rows.extend(&cells, keys.len());
            self.is_fresh.resize(keys.len(), true);
            for (i, key) in keys.iter().enumerate() {
                let row = start + i as u32;
                self.link(row, *key);
                self.ids.push(row);
                self.add_weight(row, diff.weight(i))?;
            }
            return Ok(());
        }
        for (i, key) in keys.iter().enumerate() {
            let mut row = self.heads[*key as usize];
            while row != NONE && !self.rows.equal(row, &cells, i) {
                row = self.next[row as usize];
            }
            self.is_fresh.push(row == NONE);
            if row == NONE {
                row = self.rows.push(&cells, i);
                self.link(row, *key);
            }
            self.ids.push(row);
            self.add_weight(row, diff.weight(i))?;
        }
        Ok(())
    }

    fn link(&mut self, row: u32, key: u32) {
        let r = row as usize;
        if r >= self.weights.len() {
            let size = self.rows.size();
            self.weights.resize(size, 0);
            self.next.resize(size, NONE);
            if self.find != Find::Never {
                self.prev.resize(size, NONE);
            }
            if self.find != Find::Never || self.preserved {
                self.keys.resize(size, NONE);
            }
            if self.preserved {
                self.before_at.resize(size, NONE);
            }
            if self.counts_degrees {
                self.degrees.resize(size, 0);
            }
        }
        self.weights[r] = 0;
        if self.counts_degrees {
            self.degrees[r] = 0;
        }
        let head = std::mem::replace(&mut self.heads[key as usize], row);
        self.next[r] = head;
        // Rows that never leave need no way back.
        if self.find != Find::Never {
            self.prev[r] = NONE;
            if head != NONE {
                self.prev[head as usize] = row;
            }
        }
        if self.find != Find::Never || self.preserved {
            self.keys[r] = key;
        }
    }

    fn add_weight(&mut self, row: u32, weight: i64) -> Result<()> {
        if self.preserved {
            self.note(row);
        }
        if !self.only_grows() {
            self.kept.rows.mark(row);
        }
        let slot = &mut self.weights[row as usize];
        let before = *slot;
        let after = before.checked_add(weight).ok_or_else(out_of_range)?;
        *slot = after;
        self.negative += usize::from(before >= 0 && after < 0);
        self.negative -= usize::from(before < 0 && after >= 0);
        if after == 0 && !self.preserved {
            self.zeroed.push(row);
        }
        Ok(())
    }

    /// Keeps what `row` was before the epoch, the first time that the epoch changes it.
    fn note(&mut self, row: u32) {
        let r = row as usize;
        if self.before_at[r] == NONE {
            self.before_at[r] = self.changed.len() as u32;
            let degree = if self.counts_degrees { self.degrees[r] } else { 0 };
            self.changed.push(Before { row, weight: self.weights[r], degree });
        }
    }

    /// Adds `weight` to the number of matches of `row`.
    pub fn add_degree(&mut self, row: u32, weight: i64) -> Result<()> {
        self.note(row);
        if self.keeps_degrees {
            self.kept.rows.mark(row);
        }
        let degree = &mut self.degrees[row as usize];
        *degree = degree.checked_add(weight).ok_or_else(out_of_range)?;
        Ok(())
    }

    /// The weight of `row` before the epoch.
    pub fn weight_before(&self, row: u32) -> i64 {
        match self.before_at[row as usize] {
            NONE => self.weights[row as usize],
            n => self.changed[n as usize].weight,
        }
    }

    /// Ends a batch: rows that are gone leave, unless the epoch's end still needs them.
    pub fn sweep(&mut self) -> Result<()> {
        let mut zeroed = std::mem::take(&mut self.zeroed);
        if !zeroed.is_empty() {
            zeroed.sort_unstable();
            zeroed.dedup();
            zeroed.retain(|row| self.weights[*row as usize] == 0);
            self.bury(&zeroed)?;
            for row in zeroed.drain(..) {
                self.remove(row);
            }
        }
        self.zeroed = zeroed;
        Ok(())
    }

    /// Ends the epoch: forgets what was before it, and rows that are gone leave.
    pub fn settle(&mut self) -> Result<()> {
        let mut changed = std::mem::take(&mut self.changed);
        if self.kept.rows.is_on() {
            let gone = changed.iter().map(|before| before.row).filter(|row| self.weights[*row as usize] == 0);
            let gone: Vec<u32> = gone.collect();
            self.bury(&gone)?;
        }
        for before in changed.drain(..) {
            self.before_at[before.row as usize] = NONE;
            if self.weights[before.row as usize] == 0 {
                self.remove(before.row);
            }
        }
        self.changed = changed;
        for (key, _) in self.changed_keys.drain(..) {
            self.is_changed_key.set(key as usize, false);
        }
        Ok(())
    }

    fn remove(&mut self, row: u32) {
        let (key, next, prev) = (self.keys[row as usize], self.next[row as usize], self.prev[row as usize]);
        if prev == NONE {
            self.heads[key as usize] = next;
        } else {
            self.next[prev as usize] = next;
        }
        if next != NONE {
            self.prev[next as usize] = prev;
        }
        if self.heads[key as usize] == NONE {
            self.maybe_empty.push(key);
        }
        self.rows.remove(row);
    }

    pub fn bytes(&self) -> usize {
        let per_row = self.weights.capacity() * 8
            + self.degrees.capacity() * 8
            + (self.keys.capacity() + self.next.capacity() + self.prev.capacity() + self.before_at.capacity()) * 4;
        let panes = self.expiring.as_ref().map_or(0, Panes::bytes);
        self.rows.bytes() + self.kept.bytes() + per_row + panes + self.heads.capacity() * 4 + self.totals.capacity() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_sorted_close_together_and_far_apart() {
        for step in [1, 3, 64, 65, 1000, 4_000_000] {
            for count in [0u32, 1, 2, 63, 64, 65, 1000] {
                let offset = u32::MAX - step * 1000;
                let descending: Vec<u32> = (0..count).rev().map(|n| offset + n * step).collect();
                let mut numbers: Vec<u32> = (0..count).map(|n| offset + (n * 7 % count) * step).collect();
                if count % 7 == 0 {
                    numbers = descending.iter().rev().copied().collect();
                }
                sort_descending(&mut numbers);
                assert_eq!(numbers, descending, "{count} numbers {step} apart");
            }
        }
    }
}
