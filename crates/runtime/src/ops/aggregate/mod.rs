//! GROUP BY, DISTINCT and global aggregates.
//!
//! Law: a group exists while its row count is positive (never "while its sum is non-zero"), and an epoch emits for every
//! group that it touched the old row away and the new row in, once, or nothing if they are equal.
//!
//! The old row is not stored: it is computed from the accumulators when the epoch first touches the group, which is the
//! last moment at which they still hold the old state.

mod accumulate;
mod distinct;
mod exact_sum;
mod extreme;
mod saved;
mod session;

pub use session::Session;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, NullArray, PrimitiveArray};
use arrow::buffer::BooleanBuffer;
use arrow::compute::kernels::cmp::distinct as differs;
use arrow::compute::{cast, filter};
use arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};
use flow::hash::hash_columns;
use flow::keys::{KeyEncoder, canonical};
use flow::process::{Declaration, StateDeclaration, StatePart};
use flow::{ChangeBatch, Collector, Diff, Epoch, Error, ProcessFunction, Result};
use plan::ChangeKind;
use plan::stream::{AggCall, AggFunction, TimeClock, TimeColumn};

use super::cells::{BatchColumn, Bits};
use super::emit::{Outbox, check_types};
use super::panes::{Panes, time_at};
use super::row_table::RowTable;
use super::{OpContext, changelog_violation};
use accumulate::{Accumulator, Counts, accumulator};
use saved::{Checkpointed, damaged, integers, key_columns};

/// One output column beside the group columns.
struct Call {
    arg: Option<usize>,
    filter: Option<usize>,
    output: DataType,
    /// `None` for a `count(*)` without FILTER: that is the group's row count.
    accumulator: Option<Box<dyn Accumulator>>,
}

/// What the watermark does to groups.
struct Closing {
    panes: Panes,
    /// Whether groups come out when they close, and only then.
    emits: bool,
    /// Whether a group stands for equal rows, and comes out as often as it has rows.
    holds_rows: bool,
}

/// Groups that an epoch touched first in one batch, with their rows as they were before it.
struct Before {
    groups: Vec<u32>,
    /// One array per call.
    values: Vec<ArrayRef>,
}

pub struct Aggregate {
    input: SchemaRef,
    input_kind: ChangeKind,
    group: Vec<usize>,
    group_types: Vec<DataType>,
    calls: Vec<Call>,
    words: String,
    groups: RowTable,
    rows: Counts,
    /// Groups touched in this epoch: those that were there before it …
    before: Vec<Before>,
    /// … and those that it made.
    born: Vec<u32>,
    touched_now: Bits,
    /// There is one group, over all rows, which stays without rows.
    global: bool,
    /// A global aggregate lives in slot 0 only.
    idle: bool,
    /// What the watermark does to groups.
    closing: Option<Closing>,
    checkpointed: Checkpointed,
    deletes: Outbox,
    inserts: Outbox,
    batch_rows: usize,
    touched: u64,
    ids: Vec<u32>,
    fresh: Vec<u32>,
}

impl Aggregate {
    /// What checkpoints are told.
    fn tell(&mut self, early: bool, out: &mut Vec<(usize, ChangeBatch)>) -> Result<()> {
        let (global, rows) = (self.global, &self.rows);
        let lives = |group: u32| global || rows.0[group as usize] > 0;
        let keys = |groups: &[u32]| self.groups.gather_all(groups);
        self.checkpointed.freeze(early, &mut self.calls, lives, keys, |groups| vec![rows.save(groups)], out)
    }

    pub fn new(
        group: &[usize],
        calls: &[AggCall],
        input_kind: ChangeKind,
        closes: Closes,
        input: &SchemaRef,
        schema: SchemaRef,
        ctx: &OpContext,
    ) -> Result<Aggregate> {
        let column_type = |n: usize| {
            let field = input.fields().get(n);
            field.map(|f| f.data_type().clone()).ok_or_else(|| Error::internal("an aggregate names no input column"))
        };
        let group_types = group.iter().map(|n| column_type(*n)).collect::<Result<Vec<_>>>()?;
        let made = make_calls(calls, input, input_kind)?;
        let words = words(calls);
        let mut aggregate = Aggregate {
            input: input.clone(),
            input_kind,
            group: group.to_vec(),
            groups: RowTable::new(&group_types, true),
            checkpointed: Checkpointed::new(
                "groups",
                key_columns(&group_types),
                vec![("rows".into(), DataType::Int64)],
                &made,
                group,
            ),
            group_types,
            calls: made,
            words,
            rows: Counts::default(),
            before: Vec::new(),
            born: Vec::new(),
            touched_now: Bits::default(),
            global: group.is_empty(),
            idle: group.is_empty() && ctx.slot.0 != 0,
            closing: closes.time.map(|time| Closing {
                panes: Panes::new(time),
                emits: closes.emits,
                holds_rows: false,
            }),
            deletes: Outbox::new(schema.clone(), ctx.batch_rows),
            inserts: Outbox::new(schema, ctx.batch_rows),
            batch_rows: ctx.batch_rows.max(1),
            touched: 0,
            ids: Vec::new(),
            fresh: Vec::new(),
        };
        if aggregate.global && !aggregate.idle {
            // Born before any input, so that the first epoch emits it even over nothing.
            aggregate.number_groups(&[], 1)?;
            aggregate.touch(&Diff::Insert)?;
        }
        Ok(aggregate)
    }

    /// The function that holds rows back until their time is final: every distinct row is a group.
    pub fn holding(
        time: TimeColumn,
        input_kind: ChangeKind,
        input: &SchemaRef,
        schema: SchemaRef,
        ctx: &OpContext,
    ) -> Result<Aggregate> {
        let all: Vec<usize> = (0..input.fields().len()).collect();
        let closes = Closes { time: Some(time), emits: true };
        let mut aggregate = Aggregate::new(&all, &[], input_kind, closes, input, schema, ctx)?;
        if let Some(closing) = &mut aggregate.closing {
            closing.holds_rows = true;
        }
        Ok(aggregate)
    }

    /// Notes when new groups will be final. `keys` are the group columns of the batch that `ids` and `fresh` are of.
    fn note_times(&mut self, keys: &[ArrayRef]) -> Result<()> {
        let Some(closing) = &mut self.closing else { return Ok(()) };
        if self.fresh.is_empty() {
            return Ok(());
        }
        let times = times_of(keys.get(closing.panes.time.column))?;
        let (fresh, ids) = (&self.fresh, &self.ids);
        closing.panes.note(fresh.iter().map(|i| (time_at(times, *i as usize), ids[*i as usize])));
        Ok(())
    }

    /// Emits and forgets the groups that the watermark has made final.
    fn close(&mut self, out: &mut dyn Collector) -> Result<()> {
        let Some(closing) = &mut self.closing else { return Ok(()) };
        let (emits, holds_rows) = (closing.emits, closing.holds_rows);
        // All panes together: times are often so fine that each has one group.
        let mut due = Vec::new();
        while let Some((time, groups)) = closing.panes.take_due() {
            due.extend(groups.into_iter().map(|group| (time, group)));
        }
        let groups = self.still_there(due)?;
        for chunk in groups.chunks(self.batch_rows) {
            if emits && holds_rows {
                let columns = self.groups.gather_all(chunk)?;
                let weights = chunk.iter().map(|g| self.rows.0[*g as usize]).collect();
                self.inserts.push(columns, chunk.len(), Diff::from_weights(weights), out)?;
            } else if emits {
                self.emit_born(chunk, out)?;
            }
        }
        self.inserts.flush(out)?;
        groups.iter().for_each(|g| self.rows.0[*g as usize] = 0);
        self.forget(&groups)
    }

    /// Those of the groups, which were noted under these times, that have not gone before, each once, in order of time.
    fn still_there(&self, mut due: Vec<(i64, u32)>) -> Result<Vec<u32>> {
        due.retain(|(_, group)| self.rows.0[*group as usize] > 0);
        let (Some(closing), ChangeKind::Retract) = (&self.closing, self.input_kind) else {
            return Ok(due.into_iter().map(|(_, group)| group).collect());
        };
        // Groups may have gone and come again, and others taken their numbers.
        due.sort_unstable();
        due.dedup();
        let (noted, mut groups): (Vec<i64>, Vec<u32>) = due.into_iter().unzip();
        let times = self.groups.gather(closing.panes.time.column, &groups)?;
        let times = times_of(Some(&times))?;
        let mut row = 0;
        groups.retain(|_| {
            let stays = time_at(times, row) == noted[row];
            row += 1;
            stays
        });
        Ok(groups)
    }

    /// Fills `ids` and `fresh` for a batch with these group columns and makes room for new groups.
    fn number_groups(&mut self, keys: &[ArrayRef], rows: usize) -> Result<()> {
        let hashes = hash_columns(keys, rows)?;
        let batch = BatchColumn::all(keys)?;
        self.groups.upsert(&batch, &hashes, &mut self.ids, &mut self.fresh)?;
        let size = self.groups.size();
        if self.rows.0.len() < size {
            self.rows.0.resize(size, 0);
            for call in &mut self.calls {
                if let Some(accumulator) = &mut call.accumulator {
                    accumulator.resize(size);
                }
            }
        }
        Ok(())
    }

    /// Notes the groups in `ids` as touched and keeps the old rows of those that the epoch meets for the first time.
    fn touch(&mut self, diff: &Diff) -> Result<()> {
        for i in &self.fresh {
            let id = self.ids[*i as usize];
            self.touched_now.set(id as usize, true);
            self.born.push(id);
        }
        if self.closing.as_ref().is_some_and(|c| c.emits) {
            // What a group was does not matter; only that it may have lost its last row.
            if *diff != Diff::Insert {
                for id in &self.ids {
                    if !self.touched_now.get(*id as usize) {
                        self.touched_now.set(*id as usize, true);
                        self.born.push(*id);
                    }
                }
            }
            return Ok(());
        }
        if self.calls.is_empty() && *diff == Diff::Insert {
            // DISTINCT: more of the same changes nothing about a group that is there.
            return Ok(());
        }
        let mut met = Vec::new();
        for id in &self.ids {
            if !self.touched_now.get(*id as usize) {
                self.touched_now.set(*id as usize, true);
                met.push(*id);
            }
        }
        if !met.is_empty() {
            let values = self.evaluate(&met)?;
            self.before.push(Before { groups: met, values });
        }
        Ok(())
    }

    /// The calls' results for `groups`.
    fn evaluate(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        evaluate_calls(&mut self.calls, &self.rows, groups)
    }

    fn lives(&self, group: u32) -> bool {
        self.global || self.rows.0[group as usize] > 0
    }

    fn emit_before(&mut self, before: Before, out: &mut dyn Collector) -> Result<()> {
        let Before { groups, values: old } = before;
        let alive: BooleanBuffer = groups.iter().map(|g| self.lives(*g)).collect();
        let new = self.evaluate(&groups)?;
        let mut changed = BooleanBuffer::new_unset(groups.len());
        for (old, new) in old.iter().zip(&new) {
            changed = &changed | &different(old, new)?;
        }
        let deleted = BooleanArray::new(&!&alive | &changed, None);
        let inserted = BooleanArray::new(&alive & &changed, None);
        for (mask, values, diff) in [(deleted, &old, Diff::Delete), (inserted, &new, Diff::Insert)] {
            let count = mask.true_count();
            if count == 0 {
                continue;
            }
            let picked: Vec<u32> = mask.values().set_indices().map(|i| groups[i]).collect();
            let mut columns = self.groups.gather_all(&picked)?;
            for value in values {
                columns.push(if count == groups.len() { Arc::clone(value) } else { filter(value, &mask)? });
            }
            let outbox = if diff == Diff::Delete { &mut self.deletes } else { &mut self.inserts };
            outbox.push(columns, count, diff, out)?;
        }
        Ok(())
    }

    fn emit_born(&mut self, groups: &[u32], out: &mut dyn Collector) -> Result<()> {
        let alive: Vec<u32> = groups.iter().copied().filter(|g| self.lives(*g)).collect();
        if !alive.is_empty() {
            let mut columns = self.groups.gather_all(&alive)?;
            columns.extend(self.evaluate(&alive)?);
            self.inserts.push(columns, alive.len(), Diff::Insert, out)?;
        }
        Ok(())
    }

    /// Ends the epoch for `groups`: frees those that have no rows.
    fn release(&mut self, mut groups: Vec<u32>) -> Result<()> {
        groups.iter().for_each(|g| self.touched_now.set(*g as usize, false));
        groups.retain(|g| !self.lives(*g));
        self.forget(&groups)
    }

    fn forget(&mut self, groups: &[u32]) -> Result<()> {
        self.checkpointed.forget(groups, &mut self.calls, |groups| self.groups.gather_all(groups))?;
        groups.iter().for_each(|g| self.groups.remove(*g));
        Ok(())
    }

    /// Marks the groups of a batch that the next checkpoint is to have anew.
    fn mark_changed(&mut self) {
        let holds_rows = self.closing.as_ref().is_some_and(|c| c.holds_rows);
        let Some(changes) = self.checkpointed.changes() else { return };
        if self.calls.is_empty() && self.input_kind == ChangeKind::AppendOnly && !holds_rows {
            // How many rows a group has does not matter.
            self.fresh.iter().for_each(|i| changes.mark(self.ids[*i as usize]));
        } else {
            self.ids.iter().for_each(|id| changes.mark(*id));
        }
    }
}

/// The accumulators of `calls` over an input.
fn make_calls(calls: &[AggCall], input: &SchemaRef, kind: ChangeKind) -> Result<Vec<Call>> {
    let column_type = |n: usize| {
        let field = input.fields().get(n);
        field.map(|f| f.data_type().clone()).ok_or_else(|| Error::internal("an aggregate names no input column"))
    };
    let mut made = Vec::with_capacity(calls.len());
    for call in calls {
        let counts_rows = call.function == AggFunction::Count && call.arg.is_none();
        if call.arg.is_none() && !counts_rows {
            return Err(Error::internal("an aggregate call lacks its argument"));
        }
        if let Some(filter) = call.filter
            && column_type(filter)? != DataType::Boolean
        {
            return Err(Error::internal("the FILTER of an aggregate is not Boolean"));
        }
        let arg_type = call.arg.map_or(Ok(DataType::Null), column_type)?;
        let accumulator = match (counts_rows, call.filter) {
            (true, None) => None,
            _ => Some(accumulator(call, &arg_type, kind)?),
        };
        made.push(Call { arg: call.arg, filter: call.filter, output: call.output.clone(), accumulator });
    }
    Ok(made)
}

/// The calls as the description of the state shows them.
fn words(calls: &[AggCall]) -> String {
    calls.iter().map(|c| format!("{:?}", c.function).to_lowercase()).collect::<Vec<_>>().join(", ")
}

/// Adds a batch to the accumulators: row `i` belongs to `groups[i]`.
fn update_calls(calls: &mut [Call], groups: &[u32], batch: &ChangeBatch) -> Result<()> {
    let mut nothing: Option<ArrayRef> = None;
    for call in calls {
        let keep = kept(batch, call);
        let Some(accumulator) = &mut call.accumulator else { continue };
        let arg = match call.arg {
            Some(n) => batch.rows.column(n),
            None => nothing.get_or_insert_with(|| Arc::new(NullArray::new(batch.num_rows()))),
        };
        accumulator.update(groups, arg, keep.as_ref(), &batch.diff)?;
    }
    Ok(())
}

/// The calls' results for `groups`, which have so many `rows`.
fn evaluate_calls(calls: &mut [Call], rows: &Counts, groups: &[u32]) -> Result<Vec<ArrayRef>> {
    let mut values = Vec::with_capacity(calls.len());
    for call in calls {
        let value: ArrayRef = match &mut call.accumulator {
            Some(accumulator) => accumulator.evaluate(groups)?,
            None => Arc::new(groups.iter().map(|g| rows.0[*g as usize]).collect::<Int64Array>()),
        };
        // The plan may ask for another layout of the same values, as text in views.
        values.push(if *value.data_type() == call.output { value } else { cast(&value, &call.output)? });
    }
    Ok(values)
}

/// When groups are final, and what happens then.
#[derive(Clone, Copy, Debug, Default)]
pub struct Closes {
    /// An output column, one of the group's.
    pub time: Option<TimeColumn>,
    /// Whether groups come out only then.
    pub emits: bool,
}

fn times_of(column: Option<&ArrayRef>) -> Result<&PrimitiveArray<TimestampMicrosecondType>> {
    let times = column.and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
    times.ok_or_else(|| Error::internal("a window is closed by a column that is no timestamp"))
}

/// Where two columns of one type differ as SQL groups values (NULL equals NULL).
fn different(old: &ArrayRef, new: &ArrayRef) -> Result<BooleanBuffer> {
    let (old, new) = (canonical(old), canonical(new));
    if let Ok(mask) = differs(&old, &new) {
        return Ok(mask.values().clone());
    }
    // Nested types have no comparison kernel.
    let encoder = KeyEncoder::new(std::slice::from_ref(old.data_type()))?;
    let (old, new) = (encoder.encode(&[old])?, encoder.encode(&[new])?);
    Ok(old.iter().zip(new.iter()).map(|(a, b)| a.data() != b.data()).collect())
}

/// The rows that count for a call: its FILTER is true and its argument is not NULL.
fn kept(batch: &ChangeBatch, call: &Call) -> Option<BooleanBuffer> {
    let valid = call.arg.and_then(|n| batch.rows.column(n).logical_nulls());
    let valid = valid.filter(|n| n.null_count() > 0).map(|n| n.into_inner());
    let passed = call.filter.map(|n| {
        let mask = batch.rows.column(n).as_boolean();
        match mask.nulls() {
            Some(nulls) => mask.values() & nulls.inner(),
            None => mask.values().clone(),
        }
    });
    match (valid, passed) {
        (Some(valid), Some(passed)) => Some(&valid & &passed),
        (valid, passed) => valid.or(passed),
    }
}

/// Append-only input is a promise of the plan that cheaper state relies on.
pub(super) fn check_append_only(kind: ChangeKind, diff: &Diff) -> Result<()> {
    let keeps = match (kind, diff) {
        (ChangeKind::Retract, _) | (_, Diff::Insert) => true,
        (_, Diff::Delete) => false,
        (_, Diff::Weights(w)) => w.iter().all(|w| *w > 0),
    };
    if keeps { Ok(()) } else { Err(changelog_violation("a row of an append-only input")) }
}

impl ProcessFunction for Aggregate {
    fn declare(&self) -> Declaration {
        let holds = if self.calls.is_empty() { "row count".into() } else { format!("row count, {}", self.words) };
        let groups = StateDeclaration {
            name: "groups",
            key: self.group_types.clone(),
            holds,
            bounded_by: match (&self.closing, self.global) {
                (Some(closing), _) => Some(closing.panes.time.clock.words().into()),
                (None, true) => Some("one row".into()),
                (None, false) => None,
            },
        };
        Declaration {
            states: vec![groups],
            timers: self.closing.as_ref().is_some_and(|c| c.emits && c.panes.time.clock == TimeClock::Processing),
        }
    }

    fn process(&mut self, _port: usize, batch: ChangeBatch, _out: &mut dyn Collector) -> Result<()> {
        check_types(&batch, &self.input)?;
        check_append_only(self.input_kind, &batch.diff)?;
        if self.idle {
            return Err(Error::internal("rows of a global aggregate reached a slot other than 0"));
        }
        let rows = batch.num_rows();
        let keys: Vec<ArrayRef> = self.group.iter().map(|n| Arc::clone(batch.rows.column(*n))).collect();
        self.number_groups(&keys, rows)?;
        self.note_times(&keys)?;
        self.mark_changed();
        self.touch(&batch.diff)?;
        self.touched += rows as u64;
        self.rows.update(&self.ids, None, &batch.diff)?;
        update_calls(&mut self.calls, &self.ids, &batch)
    }

    fn finish_epoch(&mut self, _epoch: Epoch, out: &mut dyn Collector) -> Result<()> {
        self.checkpointed.settle(&mut self.calls, |groups| self.groups.gather_all(groups))?;
        let before = std::mem::take(&mut self.before);
        let born = std::mem::take(&mut self.born);
        let met = before.iter().flat_map(|b| &b.groups).chain(&born).copied().collect::<Vec<u32>>();
        if met.iter().any(|g| self.rows.0[*g as usize] < 0) {
            return Err(changelog_violation("a group"));
        }
        for segment in before {
            self.emit_before(segment, out)?;
        }
        if self.closing.as_ref().is_none_or(|c| !c.emits) {
            for chunk in born.chunks(self.batch_rows) {
                self.emit_born(chunk, out)?;
            }
        }
        self.deletes.flush(out)?;
        self.inserts.flush(out)?;
        self.release(met)?;
        self.close(out)
    }

    fn on_watermark(&mut self, _port: usize, watermark_us: i64) -> Result<()> {
        if let Some(closing) = &mut self.closing {
            closing.panes.on_watermark(watermark_us);
        }
        Ok(())
    }

    fn on_time(&mut self, now_us: i64) -> Result<()> {
        if let Some(closing) = &mut self.closing {
            closing.panes.on_time(now_us);
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<i64> {
        self.closing.as_ref().filter(|c| c.emits)?.panes.next_timer()
    }

    fn parts(&self) -> Vec<StatePart> {
        self.checkpointed.parts().to_vec()
    }

    fn track(&mut self) {
        self.checkpointed.track(&mut self.calls, 0..self.groups.size() as u32);
        if let Some(changes) = self.checkpointed.changes() {
            // The group without input of a new instance.
            self.born.iter().for_each(|g| changes.mark(*g));
        }
    }

    fn freeze(&mut self, out: &mut Vec<(usize, ChangeBatch)>) -> Result<()> {
        self.tell(false, out)
    }

    fn freeze_early(&mut self, out: &mut Vec<(usize, ChangeBatch)>) -> Result<()> {
        self.tell(true, out)
    }

    fn tracked_bytes(&self) -> usize {
        self.checkpointed.tracked_bytes(&self.calls)
    }

    fn restore(&mut self, part: usize, rows: ChangeBatch) -> Result<()> {
        self.checkpointed.check(part, &rows)?;
        if self.idle {
            return Err(damaged("A global aggregate has rows in a slot other than 0."));
        }
        let (keys, mut columns) = rows.rows.columns().split_at(self.group.len());
        self.number_groups(keys, rows.num_rows())?;
        self.note_times(keys)?;
        if part == 0 {
            let least = if self.global { 0 } else { 1 };
            for (group, count) in self.ids.iter().zip(integers(&columns[0])?) {
                let rows = &mut self.rows.0[*group as usize];
                if *rows != 0 || *count < least {
                    return Err(damaged("A group is there twice, or without rows."));
                }
                *rows = *count;
            }
            columns = &columns[1..];
        }
        self.checkpointed.load(part, &mut self.calls, &self.ids, columns)
    }

    fn restored(&mut self, watermarks_us: &[i64], now_us: i64) -> Result<()> {
        for accumulator in self.calls.iter_mut().filter_map(|c| c.accumulator.as_mut()) {
            accumulator.settle()?;
        }
        if !self.global && self.rows.0.contains(&0) {
            return Err(damaged("There are values of a group that is not there."));
        }
        // The group without input came out when the job began.
        for group in std::mem::take(&mut self.born) {
            self.touched_now.set(group as usize, false);
        }
        if let Some(closing) = &mut self.closing {
            watermarks_us.iter().for_each(|watermark| closing.panes.on_watermark(*watermark));
            closing.panes.on_time(now_us);
        }
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        let calls = self.calls.iter().filter_map(|c| c.accumulator.as_ref()).map(|a| a.bytes()).sum::<usize>();
        let panes = self.closing.as_ref().map_or(0, |c| c.panes.bytes());
        self.groups.bytes()
            + self.rows.0.capacity() * 8
            + self.touched_now.bytes()
            + self.checkpointed.bytes()
            + calls
            + panes
    }

    fn rows_touched(&self) -> u64 {
        self.touched + self.calls.iter().filter_map(|c| c.accumulator.as_ref()).map(|a| a.touched()).sum::<u64>()
    }
}
