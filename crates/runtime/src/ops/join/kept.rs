//! What a join tells checkpoints, and how it comes back.
//!
//! A side is the multiset of its rows, or of their keys where only those are counted. All else follows: chains, totals, what
//! `NOT IN` knows, and how many matches a row has. Only where rows of the other side are forgotten before this side's can a row
//! have had matches that nothing shows any more; there each row is told with its number of matches.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use flow::process::{PartKind, StatePart};
use flow::{ChangeBatch, Diff, Error, Result};
use plan::ChangeKind;

use super::side::{Side, out_of_range};
use super::{Join, LEFT};
use crate::ops::emit::record;
use crate::ops::row_table::{NONE, RowTable};
use crate::ops::tracked::{TrackedRows, check_restored, damaged};

/// Rows of a batch that is told, at most.
const CHUNK: usize = 1 << 16;

/// What checkpoints know of a side, and what they have yet to be told.
pub struct Kept {
    /// In which a side is told.
    schema: SchemaRef,
    /// Whether having a match is all that counts, because none is taken back.
    matched_or_not: bool,
    /// By row; by key where only the rows of a key are counted. Says no more than that changes are to be told, for a side that
    /// [only grows](Side::only_grows).
    pub rows: TrackedRows,
    /// By row, where rows are told with their matches: the number that checkpoints know.
    degrees: Vec<i64>,
    /// Of a side that only grows, the first row that they do not know.
    from: usize,
    /// Rows that they know and that are not there any more.
    gone: Vec<ChangeBatch>,
    gone_bytes: usize,
}

impl Kept {
    /// What is told with `schema` to nobody yet.
    pub fn new(schema: SchemaRef, matched_or_not: bool) -> Kept {
        let rows = TrackedRows::default();
        Kept { schema, matched_or_not, rows, degrees: Vec::new(), from: 0, gone: Vec::new(), gone_bytes: 0 }
    }

    fn note_gone(&mut self, rows: &[u32], columns: Vec<ArrayRef>) -> Result<()> {
        let weights = rows.iter().map(|row| -self.rows.told(*row)).collect();
        let gone = ChangeBatch::new(record(&self.schema, columns, rows.len())?, Diff::from_weights(weights));
        self.gone_bytes += gone.bytes();
        self.gone.push(gone);
        rows.iter().for_each(|row| self.rows.tell(*row, 0));
        Ok(())
    }

    /// `rows` are about to go. Returns those that checkpoints know.
    fn known(&mut self, rows: &[u32]) -> Vec<u32> {
        rows.iter().for_each(|row| self.rows.changed.clear(*row));
        rows.iter().copied().filter(|row| self.rows.told(*row) != 0).collect()
    }

    pub fn bytes(&self) -> usize {
        self.rows.bytes() + self.degrees.capacity() * 8 + self.gone_bytes
    }
}

/// Rows that have changed, with what is to be added to their weights, and the matches that they are told with.
#[derive(Default)]
struct Changed {
    rows: Vec<u32>,
    weights: Vec<i64>,
    degrees: Vec<i64>,
}

impl Side {
    /// Sets the schema in which the side is told; `matches` is of what kind its matches are.
    pub fn will_be_told(&mut self, matches: ChangeKind) -> Result<()> {
        let degrees = self.keeps_degrees.then(|| Arc::new(Field::new("matches", DataType::Int64, false)));
        let schema = match self.stored {
            true => Schema::new(self.schema.fields().iter().cloned().chain(degrees).collect::<Vec<_>>()),
            false => self.schema.project(&self.key_columns)?,
        };
        self.kept = Kept::new(Arc::new(schema), matches == ChangeKind::AppendOnly);
        Ok(())
    }

    /// From now on, what changes is to be told. What is there is known.
    pub fn track(&mut self) {
        if self.only_grows() {
            self.kept.from = self.rows.size();
            self.kept.rows.start(Vec::new());
            return;
        }
        self.kept.rows.start(if self.stored { self.weights.clone() } else { self.totals.clone() });
        if self.keeps_degrees {
            self.kept.degrees = (0..self.weights.len()).map(|row| self.told_degree(row)).collect();
        }
    }

    /// The number of matches of a row, as it is told.
    fn told_degree(&self, row: usize) -> i64 {
        let degree = self.degrees[row];
        if self.kept.matched_or_not { degree.min(1) } else { degree }
    }

    /// Rows are about to go: notes what checkpoints know of them.
    pub fn bury(&mut self, rows: &[u32]) -> Result<()> {
        let known = self.kept.known(rows);
        if known.is_empty() {
            return Ok(());
        }
        let mut columns = self.rows.gather_all(&known)?;
        if self.keeps_degrees {
            let degrees = Int64Array::from_iter_values(known.iter().map(|row| self.kept.degrees[*row as usize]));
            columns.push(Arc::new(degrees));
        }
        self.kept.note_gone(&known, columns)
    }

    /// The same of keys, where only the rows of each are counted; `all` are the join keys.
    pub fn bury_keys(&mut self, all: &RowTable, keys: &[u32]) -> Result<()> {
        let known = self.kept.known(keys);
        if known.is_empty() {
            return Ok(());
        }
        self.kept.note_gone(&known, all.gather_all(&known)?)
    }

    /// Tells what has changed since the last time, or with `early` what of it may well stay so; `keys` are the join keys.
    pub fn tell(&mut self, keys: &RowTable, early: bool, mut out: impl FnMut(ChangeBatch)) -> Result<()> {
        if !self.kept.rows.is_on() {
            return Ok(());
        }
        self.kept.gone_bytes = 0;
        self.kept.gone.drain(..).for_each(&mut out);
        let marks = &mut self.kept.rows.changed;
        let rows = if early { marks.take_old() } else { marks.take() };
        let changed = match (self.only_grows(), self.keeps_degrees) {
            (true, _) => self.new_rows(),
            (false, true) => self.changed_matches(rows),
            (false, false) => self.changed_weights(rows)?,
        };
        let table = if self.stored { &self.rows } else { keys };
        for start in (0..changed.rows.len()).step_by(CHUNK) {
            let range = start..changed.rows.len().min(start + CHUNK);
            let mut columns = table.gather_all(&changed.rows[range.clone()])?;
            if self.keeps_degrees {
                columns.push(Arc::new(Int64Array::from(changed.degrees[range.clone()].to_vec())));
            }
            let diff = Diff::from_weights(changed.weights[range.clone()].to_vec());
            out(ChangeBatch::new(record(&self.kept.schema, columns, range.len())?, diff));
        }
        Ok(())
    }

    fn new_rows(&mut self) -> Changed {
        let (from, to) = (self.kept.from, self.rows.size());
        self.kept.from = to;
        Changed {
            rows: (from as u32..to as u32).collect(),
            weights: self.weights[from..to].to_vec(),
            degrees: Vec::new(),
        }
    }

    fn changed_weights(&mut self, rows: Vec<u32>) -> Result<Changed> {
        let weights = if self.stored { &self.weights } else { &self.totals };
        let mut changed = Changed::default();
        for row in rows {
            let (was, is) = (self.kept.rows.told(row), weights[row as usize]);
            if was != is {
                changed.rows.push(row);
                changed.weights.push(is.checked_sub(was).ok_or_else(out_of_range)?);
                self.kept.rows.tell(row, is);
            }
        }
        Ok(changed)
    }

    fn changed_matches(&mut self, rows: Vec<u32>) -> Changed {
        let mut changed = Changed::default();
        self.kept.degrees.resize(self.weights.len(), 0);
        for row in rows {
            let r = row as usize;
            let was = (self.kept.degrees[r], self.kept.rows.told(row));
            let is = (self.told_degree(r), self.weights[r]);
            if was != is {
                for (degree, weight) in [(was.0, -was.1), is].into_iter().filter(|(_, weight)| *weight != 0) {
                    changed.rows.push(row);
                    changed.degrees.push(degree);
                    changed.weights.push(weight);
                }
                self.kept.degrees[r] = is.0;
                self.kept.rows.tell(row, is.1);
            }
        }
        changed
    }

    /// About the bytes that the next [`tell`](Self::tell) makes.
    pub fn untold_bytes(&self, keys: &RowTable) -> usize {
        let rows = match self.only_grows() && self.kept.rows.is_on() {
            true => self.rows.size() - self.kept.from,
            false => self.kept.rows.changed.count(),
        };
        let table = if self.stored { &self.rows } else { keys };
        self.kept.gone_bytes + rows * (table.bytes() / table.size().max(1))
    }
}

impl Join {
    /// What [`flow::ProcessFunction::freeze`] tells, or `freeze_early`.
    pub(super) fn tell(&mut self, early: bool, out: &mut Vec<(usize, ChangeBatch)>) -> Result<()> {
        for (port, side) in self.sides.iter_mut().enumerate() {
            side.tell(&self.keys, early, |changes| out.push((port, changes)))?;
        }
        Ok(())
    }

    pub(super) fn state_parts(&self) -> Vec<StatePart> {
        let part = |port: usize| {
            let side = &self.sides[port];
            let names = match (side.stored, side.keeps_degrees) {
                (false, _) => ["left_keys", "right_keys"],
                (true, false) => ["left", "right"],
                (true, true) => ["left_matched", "right_matched"],
            };
            let columns =
                if side.stored { (0..side.schema.fields().len()).collect() } else { side.key_columns.clone() };
            let schema = Arc::clone(&side.kept.schema);
            StatePart { name: names[port].into(), schema, kind: PartKind::Counted, port, columns }
        };
        vec![part(0), part(1)]
    }

    /// Takes rows of a side back.
    pub(super) fn restore_rows(&mut self, port: usize, batch: &ChangeBatch) -> Result<()> {
        let side = self.sides.get(port).ok_or_else(|| Error::internal("a join has two sides"))?;
        check_restored(batch, &side.kept.schema)?;
        let (rows, columns) = (batch.num_rows(), batch.rows.columns());
        let width = side.schema.fields().len();
        let keys: Vec<ArrayRef> = match side.stored {
            true => side.key_columns.iter().map(|n| Arc::clone(&columns[*n])).collect(),
            false => columns.to_vec(),
        };
        self.number_keys(&keys, rows)?;
        if port != LEFT {
            self.count_right(&keys, &batch.diff, rows)?;
        }
        let side = &mut self.sides[port];
        if side.counts_totals {
            side.add_totals(&self.key_ids, &batch.diff)?;
        }
        if side.stored {
            let own = record(&side.schema, columns[..width].to_vec(), rows)?;
            side.apply(&own, &batch.diff, &self.key_ids)?;
            side.note_times(&own)?;
        }
        if side.keeps_degrees {
            let matches = columns[width].as_primitive::<Int64Type>();
            if matches.null_count() > 0 || matches.values().iter().any(|n| *n < 0) {
                return Err(damaged("A row of it has fewer matches than none."));
            }
            for (row, matches) in side.ids.iter().zip(matches.values()) {
                side.degrees[*row as usize] = *matches;
            }
        }
        // What is restored has been so before.
        side.settle()
    }

    /// Counts the matches of rows that were told without. Both sides are complete.
    pub(super) fn count_matches(&mut self) -> Result<()> {
        let counts = [0, 1].map(|n| self.sides[n].counts_degrees && !self.sides[n].keeps_degrees);
        if !counts.contains(&true) {
            return Ok(());
        }
        let mut pairs: [Vec<u32>; 2] = [Vec::new(), Vec::new()];
        for key in 0..self.keys.size() as u32 {
            let mut left = self.sides[0].head(key);
            while left != NONE {
                let mut right = self.sides[1].head(key);
                while right != NONE {
                    pairs[0].push(left);
                    pairs[1].push(right);
                    right = self.sides[1].next(right);
                    if pairs[0].len() >= self.batch_rows {
                        self.count_pairs(&mut pairs, counts)?;
                    }
                }
                left = self.sides[0].next(left);
            }
        }
        self.count_pairs(&mut pairs, counts)
    }

    /// Adds to the matches of the rows in `pairs` for which the condition is true. Leaves them empty.
    fn count_pairs(&mut self, pairs: &mut [Vec<u32>; 2], counts: [bool; 2]) -> Result<()> {
        let Some(condition) = self.condition.as_ref().filter(|_| !pairs[0].is_empty()) else { return Ok(()) };
        let width = self.sides[0].schema.fields().len();
        let mask = condition.holds(pairs[0].len(), |n| {
            let (side, column) = if n < width { (0, n) } else { (1, n - width) };
            self.sides[side].rows.gather(column, &pairs[side])
        })?;
        for i in mask.values().set_indices() {
            for side in [0, 1].into_iter().filter(|side| counts[*side]) {
                let weight = self.sides[1 - side].weights[pairs[1 - side][i] as usize];
                let degree = &mut self.sides[side].degrees[pairs[side][i] as usize];
                *degree = degree.checked_add(weight).ok_or_else(out_of_range)?;
            }
        }
        pairs.iter_mut().for_each(Vec::clear);
        Ok(())
    }
}
