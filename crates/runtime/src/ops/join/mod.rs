//! Inner, outer, semi and anti joins of two change streams: the symmetric hash join.
//!
//! Laws:
//! * Inner pairs go out at once. A change of one side meets the other side's state as it is now and enters its own side's
//!   state before the next batch, so over an epoch the pairs add up to `new ⋈ new − old ⋈ old` in whatever order the
//!   batches come.
//! * A row that appears by *lacking* (outer, anti) or *having* (semi) a match goes out only at the epoch's end, by
//!   comparing "matched" before and after the epoch. So no row is ever padded with NULLs that the epoch as a whole does
//!   not show (trap "outer joins must not show a transient NULL row inside an epoch").
//! * Matches are counted in weights, which add up whatever the order. Without an extra condition all rows of a key share
//!   one count, so a change on one side of a popular key costs nothing until the count leaves or reaches zero; semi and
//!   anti joins then need no rows of their right side at all. With a condition each row has a count of its own.

mod condition;
mod kept;
mod side;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, UInt32Array, new_null_array};
use arrow::buffer::NullBuffer;
use arrow::compute::{take, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef};
use flow::hash::hash_columns;
use flow::process::{Declaration, StateDeclaration, StatePart, WATERMARK_START};
use flow::{ChangeBatch, Collector, Diff, Epoch, Error, ProcessFunction, Result, SqlState};
use plan::stream::JoinKind;
use plan::{ChangeKind, TaskOp};

use super::aggregate::check_append_only;
use super::cells::BatchColumn;
use super::emit::{Outbox, check_types, record};
use super::row_table::{NONE, RowTable};
use super::{OpContext, changelog_violation};
use condition::Condition;
use side::Side;

const LEFT: usize = 0;

/// What `NOT IN` needs to know of its whole right side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RightSide {
    /// No rows: every left row qualifies, even with a NULL key.
    Empty,
    /// A NULL among the keys: nothing qualifies.
    HasNull,
    /// Left rows with a key that does not occur qualify.
    Plain,
}

#[derive(Clone, Copy)]
struct NullAware {
    rows: i64,
    nulls: i64,
    /// As of the end of the last epoch.
    settled: RightSide,
}

impl NullAware {
    fn now(&self) -> RightSide {
        match (self.rows, self.nulls) {
            (0, _) => RightSide::Empty,
            (_, 0) => RightSide::Plain,
            _ => RightSide::HasNull,
        }
    }
}

pub struct Join {
    kind: JoinKind,
    key_types: Vec<DataType>,
    /// NULL keys are keys like others (always so for `NOT IN`, which looks at them itself).
    nulls_are_keys: bool,
    condition: Option<Condition>,
    null_aware: Option<NullAware>,
    /// The join keys of both sides, numbered once.
    keys: RowTable,
    sides: [Side; 2],
    schema: SchemaRef,
    outbox: Outbox,
    batch_rows: usize,
    touched: u64,
    /// By port.
    watermarks: [i64; 2],
    key_ids: Vec<u32>,
    fresh: Vec<u32>,
}

impl Join {
    /// `op` is a `TaskOp::Join`.
    pub fn new(op: &TaskOp, left: &SchemaRef, right: &SchemaRef, schema: SchemaRef, ctx: &OpContext) -> Result<Join> {
        let TaskOp::Join {
            kind,
            on,
            nulls_equal,
            filter,
            left_kind,
            right_kind,
            left_unique,
            right_unique,
            null_aware,
            expires,
        } = op
        else {
            return Err(Error::internal("not a join"));
        };
        let types = |schema: &SchemaRef, columns: &mut dyn Iterator<Item = usize>| -> Result<Vec<DataType>> {
            columns
                .map(|n| schema.fields().get(n).map(|f| f.data_type().clone()))
                .collect::<Option<_>>()
                .ok_or_else(|| Error::internal("a join key names no input column"))
        };
        let key_types = types(left, &mut on.iter().map(|p| p.0))?;
        if key_types != types(right, &mut on.iter().map(|p| p.1))? {
            return Err(Error::internal("the keys of a join have different types"));
        }
        if *null_aware && (*kind != JoinKind::LeftAnti || on.len() != 1 || filter.is_some()) {
            return Err(Error::unsupported("NOT IN with this combination of keys and conditions is not supported")
                .with_hint("Write it as NOT EXISTS with the conditions in the subquery."));
        }
        let condition = filter.as_ref().map(|f| Condition::new(f, left, right)).transpose()?;
        let mut sides = [
            Side::new(left.clone(), on.iter().map(|p| p.0).collect(), *left_kind, *left_unique, expires[0]),
            Side::new(right.clone(), on.iter().map(|p| p.1).collect(), *right_kind, *right_unique, expires[1]),
        ];
        let half = matches!(kind, JoinKind::LeftSemi | JoinKind::LeftAnti);
        sides[0].preserved = half || matches!(kind, JoinKind::Left | JoinKind::Full);
        sides[1].preserved = matches!(kind, JoinKind::Right | JoinKind::Full);
        for n in 0..2 {
            sides[n].counts_degrees = sides[n].preserved && condition.is_some();
            sides[1 - n].counts_totals = sides[n].preserved && condition.is_none();
        }
        sides[1].stored = !half || condition.is_some() || expires[1].is_some();
        // By a time that is a key of both, rows of one key are over together, with their matches.
        let together = match expires {
            [Some(l), Some(r)] => on.contains(&(l.column, r.column)) && l.after_us == r.after_us,
            _ => false,
        };
        for n in 0..2 {
            sides[n].keeps_degrees = sides[n].counts_degrees && expires[1 - n].is_some() && !together;
        }
        for n in 0..2 {
            let matches = sides[1 - n].kind;
            sides[n].will_be_told(matches)?;
        }
        let null_aware = null_aware.then_some(NullAware { rows: 0, nulls: 0, settled: RightSide::Empty });
        Ok(Join {
            kind: *kind,
            keys: RowTable::new(&key_types, true),
            key_types,
            nulls_are_keys: *nulls_equal || null_aware.is_some(),
            condition,
            null_aware,
            sides,
            outbox: Outbox::new(schema.clone(), ctx.batch_rows),
            schema,
            batch_rows: ctx.batch_rows.max(1),
            touched: 0,
            watermarks: [WATERMARK_START; 2],
            key_ids: Vec::new(),
            fresh: Vec::new(),
        })
    }

    /// Whether the output holds left rows only.
    fn half(&self) -> bool {
        matches!(self.kind, JoinKind::LeftSemi | JoinKind::LeftAnti)
    }

    /// Sends the rows with a NULL key, which match nothing, on their way and gives the others back.
    fn pass_null_keys(
        &mut self,
        port: usize,
        batch: ChangeBatch,
        out: &mut dyn Collector,
    ) -> Result<Option<ChangeBatch>> {
        let columns = self.sides[port].key_columns.iter().map(|n| batch.rows.column(*n));
        let nulls = columns.fold(None, |all, column| NullBuffer::union(all.as_ref(), column.logical_nulls().as_ref()));
        let Some(nulls) = nulls.filter(|n| n.null_count() > 0) else {
            return Ok(Some(batch));
        };
        let rows = |null: bool| -> UInt32Array {
            (0..nulls.len()).filter(|i| nulls.is_null(*i) == null).map(|i| i as u32).collect::<Vec<_>>().into()
        };
        if self.sides[port].preserved && self.kind != JoinKind::LeftSemi {
            let lone = batch.take(&rows(true))?;
            let columns = self.padded(port, lone.rows.columns().to_vec(), lone.num_rows());
            out.emit(ChangeBatch::new(record(&self.schema, columns, lone.num_rows())?, lone.diff));
        }
        let rest = rows(false);
        if rest.is_empty() { Ok(None) } else { Ok(Some(batch.take(&rest)?)) }
    }

    /// Rows of side `port` as output rows without a partner.
    fn padded(&self, port: usize, mut own: Vec<ArrayRef>, rows: usize) -> Vec<ArrayRef> {
        if self.half() {
            return own;
        }
        let nulls = self.sides[1 - port].schema.fields().iter().map(|f| new_null_array(f.data_type(), rows));
        if port == LEFT {
            own.extend(nulls);
            own
        } else {
            nulls.chain(own).collect()
        }
    }

    /// Numbers the join keys in `columns` into `key_ids`.
    fn number_keys(&mut self, columns: &[ArrayRef], rows: usize) -> Result<()> {
        let hashes = hash_columns(columns, rows)?;
        let cells = BatchColumn::all(columns)?;
        self.keys.upsert(&cells, &hashes, &mut self.key_ids, &mut self.fresh)?;
        for side in &mut self.sides {
            side.resize_keys(self.keys.size());
        }
        Ok(())
    }

    /// Counts rows of the right side with these join keys for `NOT IN`.
    fn count_right(&mut self, keys: &[ArrayRef], diff: &Diff, rows: usize) -> Result<()> {
        let Some(aware) = &mut self.null_aware else { return Ok(()) };
        let nulls = keys.first().and_then(|key| key.logical_nulls());
        for i in 0..rows {
            let weight = diff.weight(i);
            let null = nulls.as_ref().is_some_and(|n| n.is_null(i));
            let rows = aware.rows.checked_add(weight);
            let nulls = aware.nulls.checked_add(if null { weight } else { 0 });
            let (Some(rows), Some(nulls)) = (rows, nulls) else {
                return Err(Error::new(SqlState::NumericValueOutOfRange, "the number of rows is out of range"));
            };
            (aware.rows, aware.nulls) = (rows, nulls);
        }
        Ok(())
    }

    /// Meets the batch last applied to side `port` with the state of the other side.
    fn probe(&mut self, port: usize, batch: &ChangeBatch, out: &mut dyn Collector) -> Result<()> {
        // Semi and anti joins only count: for a left row that was there before, nothing is new.
        let fresh_only = self.half() && port == LEFT;
        let (mut here, mut there): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        for i in 0..batch.num_rows() {
            if fresh_only && !self.sides[port].is_fresh[i] {
                continue;
            }
            let mut row = self.sides[1 - port].head(self.key_ids[i]);
            while row != NONE {
                here.push(i as u32);
                there.push(row);
                row = self.sides[1 - port].next(row);
                if here.len() >= self.batch_rows {
                    self.meet(port, batch, &mut here, &mut there, out)?;
                }
            }
        }
        self.meet(port, batch, &mut here, &mut there, out)
    }

    /// Takes candidate pairs (rows of the batch, rows of the other side's state) of equal keys: applies the condition,
    /// counts matches, emits pairs. Leaves both lists empty.
    fn meet(
        &mut self,
        port: usize,
        batch: &ChangeBatch,
        here: &mut Vec<u32>,
        there: &mut Vec<u32>,
        out: &mut dyn Collector,
    ) -> Result<()> {
        self.touched += here.len() as u64;
        let left_columns = self.sides[0].schema.fields().len();
        if let Some(condition) = &self.condition {
            if here.is_empty() {
                return Ok(());
            }
            let indices = UInt32Array::from(here.clone());
            let other = &self.sides[1 - port];
            let mask = condition.holds(here.len(), |n| {
                let (side, column) = if n < left_columns { (0, n) } else { (1, n - left_columns) };
                if side == port {
                    Ok(take(batch.rows.column(column), &indices, None)?)
                } else {
                    other.rows.gather(column, there)
                }
            })?;
            if mask.true_count() < here.len() {
                let mut kept = 0;
                for i in mask.values().set_indices() {
                    here[kept] = here[i];
                    there[kept] = there[i];
                    kept += 1;
                }
                here.truncate(kept);
                there.truncate(kept);
            }
            for (i, row) in here.iter().zip(there.iter()) {
                let i = *i as usize;
                if self.sides[1 - port].counts_degrees {
                    self.sides[1 - port].add_degree(*row, batch.weight(i))?;
                }
                if self.sides[port].counts_degrees && self.sides[port].is_fresh[i] {
                    let own = self.sides[port].ids[i];
                    let weight = self.sides[1 - port].weights[*row as usize];
                    if weight != 0 {
                        self.sides[port].add_degree(own, weight)?;
                    }
                }
            }
        }
        if !self.half() && !here.is_empty() {
            self.emit_pairs(port, batch, here, there, out)?;
        }
        here.clear();
        there.clear();
        Ok(())
    }

    fn emit_pairs(
        &mut self,
        port: usize,
        batch: &ChangeBatch,
        here: &mut Vec<u32>,
        there: &mut Vec<u32>,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let other = &self.sides[1 - port];
        let mut weights = Vec::with_capacity(here.len());
        let mut kept = 0;
        for n in 0..here.len() {
            let weight =
                batch.weight(here[n] as usize).checked_mul(other.weights[there[n] as usize]).ok_or_else(|| {
                    Error::new(SqlState::NumericValueOutOfRange, "the multiplicity of a row is out of range")
                })?;
            // Rows that this epoch has taken away may still be in the state, with weight zero.
            if weight != 0 {
                here[kept] = here[n];
                there[kept] = there[n];
                weights.push(weight);
                kept += 1;
            }
        }
        here.truncate(kept);
        there.truncate(kept);
        if kept == 0 {
            return Ok(());
        }
        let whole = kept == batch.num_rows() && here.iter().enumerate().all(|(n, i)| n == *i as usize);
        let mut own = if whole {
            batch.rows.columns().to_vec()
        } else {
            take_record_batch(&batch.rows, &UInt32Array::from(here.clone()))?.columns().to_vec()
        };
        let mut partners = other.rows.gather_all(there)?;
        let columns = if port == LEFT {
            own.append(&mut partners);
            own
        } else {
            partners.append(&mut own);
            partners
        };
        out.emit(ChangeBatch::new(record(&self.schema, columns, kept)?, Diff::from_weights(weights)));
        Ok(())
    }

    /// Whether a row of a preserved side is in the output (alone), given whether it has a match.
    fn shows(&self, matched: bool, key: u32, right: RightSide) -> bool {
        match self.kind {
            JoinKind::LeftSemi => matched,
            _ if self.null_aware.is_some() => match right {
                RightSide::Empty => true,
                RightSide::HasNull => false,
                RightSide::Plain => !matched && !self.keys.is_null(0, key),
            },
            _ => !matched,
        }
    }

    /// The epoch's changes of side `port`'s lone rows: row numbers and weights.
    fn lone_changes(&mut self, port: usize) -> Result<(Vec<u32>, Vec<i64>)> {
        let (mut rows, mut weights) = (Vec::new(), Vec::new());
        let mut touched = 0;
        let (own, other) = (&self.sides[port], &self.sides[1 - port]);
        let mut change = |row: u32, before: i64, after: i64| {
            if before != after {
                rows.push(row);
                weights.push(after - before);
            }
        };
        let weigh = |shown: bool, weight: i64| if shown { weight } else { 0 };
        let plain = RightSide::Plain;
        if own.counts_degrees {
            for before in &own.changed {
                let (row, degree) = (before.row, own.degrees[before.row as usize]);
                if degree < 0 {
                    return Err(changelog_violation("a match"));
                }
                let key = own.key_of(row);
                let old = weigh(self.shows(before.degree > 0, key, plain), before.weight);
                change(row, old, weigh(self.shows(degree > 0, key, plain), own.weights[row as usize]));
            }
        } else {
            let (was, is) = match &self.null_aware {
                Some(aware) => (aware.settled, aware.now()),
                None => (plain, plain),
            };
            // Keys that must be gone through row by row, with their total before the epoch.
            let mut whole: BTreeMap<u32, i64> = BTreeMap::new();
            for (key, before) in &other.changed_keys {
                let after = other.total(*key);
                if after < 0 {
                    return Err(changelog_violation("a row of a join's input"));
                }
                if was != is || (*before > 0) != (after > 0) {
                    whole.insert(*key, *before);
                }
            }
            if was != is {
                for key in 0..self.keys.size() as u32 {
                    whole.entry(key).or_insert_with(|| other.total(key));
                }
            }
            for (key, before) in &whole {
                let old = self.shows(*before > 0, *key, was);
                let new = self.shows(other.total(*key) > 0, *key, is);
                let mut row = own.head(*key);
                while row != NONE {
                    touched += 1;
                    change(row, weigh(old, own.weight_before(row)), weigh(new, own.weights[row as usize]));
                    row = own.next(row);
                }
            }
            for before in &own.changed {
                let key = own.key_of(before.row);
                if !whole.contains_key(&key) && self.shows(other.total(key) > 0, key, is) {
                    change(before.row, before.weight, own.weights[before.row as usize]);
                }
            }
        }
        self.touched += touched;
        Ok((rows, weights))
    }

    fn emit_lone(&mut self, port: usize, rows: &[u32], weights: &[i64], out: &mut dyn Collector) -> Result<()> {
        for (rows, weights) in rows.chunks(self.batch_rows).zip(weights.chunks(self.batch_rows)) {
            let own = self.sides[port].rows.gather_all(rows)?;
            let columns = self.padded(port, own, rows.len());
            self.outbox.push(columns, rows.len(), Diff::from_weights(weights.to_vec()), out)?;
        }
        self.outbox.flush(out)
    }

    /// Frees the keys under which the epoch left nothing.
    fn drop_empty_keys(&mut self) -> Result<()> {
        let mut keys = std::mem::take(&mut self.sides[0].maybe_empty);
        keys.append(&mut self.sides[1].maybe_empty);
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| self.sides.iter().all(|side| side.lacks(*key)));
        for side in self.sides.iter_mut().filter(|side| !side.stored) {
            side.bury_keys(&self.keys, &keys)?;
        }
        for key in keys {
            self.keys.remove(key);
        }
        Ok(())
    }
}

impl ProcessFunction for Join {
    fn declare(&self) -> Declaration {
        let side = |n: usize, name: &'static str| {
            let side = &self.sides[n];
            let mut holds = if side.stored { format!("rows of the {name} input") } else { "row count".to_string() };
            if side.counts_degrees {
                holds.push_str(", matches per row");
            }
            let bounded_by = side.expires().then(|| "the watermark".to_string());
            StateDeclaration { name, key: self.key_types.clone(), holds, bounded_by }
        };
        Declaration { states: vec![side(0, "left"), side(1, "right")], timers: false }
    }

    fn process(&mut self, port: usize, batch: ChangeBatch, out: &mut dyn Collector) -> Result<()> {
        if port > 1 {
            return Err(Error::internal("a join has two inputs"));
        }
        check_types(&batch, &self.sides[port].schema)?;
        check_append_only(self.sides[port].kind, &batch.diff)?;
        let batch = if self.nulls_are_keys {
            batch
        } else {
            match self.pass_null_keys(port, batch, out)? {
                Some(batch) => batch,
                None => return Ok(()),
            }
        };
        self.touched += batch.num_rows() as u64;
        let key_columns = self.sides[port].key_columns.iter();
        let keys: Vec<ArrayRef> = key_columns.map(|n| Arc::clone(batch.rows.column(*n))).collect();
        self.number_keys(&keys, batch.num_rows())?;
        if port != LEFT {
            self.count_right(&keys, &batch.diff, batch.num_rows())?;
        }
        let side = &mut self.sides[port];
        if side.counts_totals {
            side.add_totals(&self.key_ids, &batch.diff)?;
        }
        if side.stored {
            side.apply(&batch.rows, &batch.diff, &self.key_ids)?;
            side.note_times(&batch.rows)?;
        }
        if !self.half() || self.condition.is_some() {
            self.probe(port, &batch, out)?;
        }
        self.sides[port].sweep()
    }

    fn finish_epoch(&mut self, _epoch: Epoch, out: &mut dyn Collector) -> Result<()> {
        if self.sides.iter().any(|side| side.negative > 0)
            || self.null_aware.is_some_and(|aware| aware.rows < 0 || aware.nulls < 0)
        {
            return Err(changelog_violation("a row of a join's input"));
        }
        for port in 0..2 {
            if self.sides[port].preserved {
                let (rows, weights) = self.lone_changes(port)?;
                self.emit_lone(port, &rows, &weights, out)?;
            }
        }
        for port in 0..2 {
            self.sides[port].settle()?;
        }
        if let Some(aware) = &mut self.null_aware {
            aware.settled = aware.now();
        }
        // What tells of a row whether it has a match must not forget one side before the other.
        let together = self.sides.iter().any(|side| side.preserved);
        for port in 0..2 {
            let side = &mut self.sides[port];
            let own = together || side.kind == ChangeKind::Retract;
            let own_us = if own { self.watermarks[port] } else { i64::MAX };
            let over = side.take_over(self.watermarks[1 - port].min(own_us))?;
            self.sides[port].forget(&over)?;
        }
        self.drop_empty_keys()
    }

    fn on_watermark(&mut self, port: usize, watermark_us: i64) -> Result<()> {
        self.watermarks[port] = watermark_us;
        Ok(())
    }

    fn parts(&self) -> Vec<StatePart> {
        self.state_parts()
    }

    fn track(&mut self) {
        self.sides.iter_mut().for_each(Side::track);
    }

    fn freeze(&mut self, out: &mut Vec<(usize, ChangeBatch)>) -> Result<()> {
        self.tell(false, out)
    }

    fn freeze_early(&mut self, out: &mut Vec<(usize, ChangeBatch)>) -> Result<()> {
        self.tell(true, out)
    }

    fn tracked_bytes(&self) -> usize {
        self.sides.iter().map(|side| side.untold_bytes(&self.keys)).sum()
    }

    fn restore(&mut self, part: usize, rows: ChangeBatch) -> Result<()> {
        let lost = usize::from(checkpoint::planted::is("join_row") && rows.num_rows() > 0);
        let rows = if lost > 0 { rows.slice(0, rows.num_rows() - lost) } else { rows };
        self.restore_rows(part, &rows)
    }

    fn restored(&mut self, watermarks_us: &[i64], _now_us: i64) -> Result<()> {
        for (watermark, restored) in self.watermarks.iter_mut().zip(watermarks_us) {
            *watermark = *restored;
        }
        if let Some(aware) = &mut self.null_aware {
            aware.settled = aware.now();
        }
        self.count_matches()
    }

    fn state_bytes(&self) -> usize {
        self.keys.bytes() + self.sides.iter().map(Side::bytes).sum::<usize>()
    }

    fn rows_touched(&self) -> u64 {
        self.touched
    }
}
