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
use crate::ops::row_table::NONE;
use crate::ops::tracked::{check_restored, damaged};

/// The schema in which a side is told.
pub fn told_schema(side: &Side) -> Result<SchemaRef> {
    let fields = side.schema.fields();
    if !side.stored {
        return Ok(Arc::new(side.schema.project(&side.key_columns)?));
    }
    if !side.keeps_degrees {
        return Ok(Arc::clone(&side.schema));
    }
    let matches = Arc::new(Field::new("matches", DataType::Int64, false));
    Ok(Arc::new(Schema::new(fields.iter().cloned().chain([matches]).collect::<Vec<_>>())))
}

impl Join {
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
            let schema = Arc::clone(&self.told[port]);
            StatePart { name: names[port].into(), schema, kind: PartKind::Counted, port, columns }
        };
        vec![part(0), part(1)]
    }

    /// Tells a batch of input, but for a side whose rows are told with their matches at the epoch's end.
    pub(super) fn tell_input(&mut self, port: usize, batch: &ChangeBatch) -> Result<()> {
        let side = &self.sides[port];
        if !self.tracked.is_on() || side.keeps_degrees {
            return Ok(());
        }
        let columns = batch.rows.columns();
        let keys = || side.key_columns.iter().map(|n| Arc::clone(&columns[*n])).collect::<Vec<_>>();
        let columns = if side.stored { columns.to_vec() } else { keys() };
        self.tracked.push(port, &self.told[port], &columns, batch.num_rows(), batch.diff.clone())
    }

    /// The number of matches as it is told. Whether there are any is all that counts if none is taken back.
    fn told_degree(&self, port: usize, degree: i64) -> i64 {
        match self.sides[1 - port].kind {
            ChangeKind::AppendOnly => degree.min(1),
            ChangeKind::Retract => degree,
        }
    }

    /// Tells how the epoch has changed the rows of a side with their matches. Called before the side settles.
    pub(super) fn tell_changed(&mut self, port: usize) -> Result<()> {
        let side = &self.sides[port];
        if !self.tracked.is_on() || !side.keeps_degrees {
            return Ok(());
        }
        let (mut rows, mut degrees, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for before in &side.changed {
            let row = before.row as usize;
            let was = (self.told_degree(port, before.degree), before.weight);
            let is = (self.told_degree(port, side.degrees[row]), side.weights[row]);
            if was != is {
                for (degree, weight) in [(was.0, -was.1), is].into_iter().filter(|(_, weight)| *weight != 0) {
                    rows.push(before.row);
                    degrees.push(degree);
                    weights.push(weight);
                }
            }
        }
        self.tell_rows(port, &rows, Some(&degrees), &weights)
    }

    /// Tells that rows are about to be forgotten.
    pub(super) fn tell_over(&mut self, port: usize, rows: &[u32]) -> Result<()> {
        if !self.tracked.is_on() {
            return Ok(());
        }
        let side = &self.sides[port];
        let weights: Vec<i64> = rows.iter().map(|row| -side.weights[*row as usize]).collect();
        let degree = |row: &u32| self.told_degree(port, side.degrees[*row as usize]);
        let degrees: Option<Vec<i64>> = side.keeps_degrees.then(|| rows.iter().map(degree).collect());
        self.tell_rows(port, rows, degrees.as_deref(), &weights)
    }

    fn tell_rows(&mut self, port: usize, rows: &[u32], degrees: Option<&[i64]>, weights: &[i64]) -> Result<()> {
        for start in (0..rows.len()).step_by(self.batch_rows) {
            let range = start..rows.len().min(start + self.batch_rows);
            let mut columns = self.sides[port].rows.gather_all(&rows[range.clone()])?;
            columns.extend(degrees.map(|d| Arc::new(Int64Array::from(d[range.clone()].to_vec())) as ArrayRef));
            let diff = Diff::from_weights(weights[range.clone()].to_vec());
            self.tracked.push(port, &self.told[port], &columns, range.len(), diff)?;
        }
        Ok(())
    }

    /// Takes rows of a side back.
    pub(super) fn restore_rows(&mut self, port: usize, batch: &ChangeBatch) -> Result<()> {
        let schema = self.told.get(port).ok_or_else(|| Error::internal("a join has two sides"))?;
        check_restored(batch, schema)?;
        let (rows, columns) = (batch.num_rows(), batch.rows.columns());
        let side = &self.sides[port];
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
        side.settle();
        Ok(())
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
