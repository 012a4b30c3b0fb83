//! The first rows of each partition: `ORDER BY … LIMIT`, and `ROW_NUMBER`, `RANK` or `DENSE_RANK` with a bound.
//!
//! A partition is an ordered multiset of row keys. A key is the row itself in order-preserving bytes: the columns of the
//! ordering first, then all others, so rows that tie in the ordering stand in the order of their bytes on every slot and
//! in every replay (trap "ties in Top-N must be deterministic").
//!
//! What a partition showed at the end of the last epoch is kept; an epoch reads the first rows anew for the partitions
//! that it touched and emits the difference. That costs in proportion to offset + limit, not to the partition. With an
//! offset alone the *skipped* rows are the short list: input passes through, and the change of that list is taken back.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, PrimitiveArray, RecordBatch, UInt32Array};
use arrow::compute::{SortOptions, take};
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimestampMicrosecondType, UInt64Type};
use flow::hash::hash_columns;
use flow::keys::KeyEncoder;
use flow::process::{Declaration, PartKind, StateDeclaration, StatePart, WATERMARK_START};
use flow::{ChangeBatch, Collector, Diff, Epoch, Error, ProcessFunction, Result, SqlState};
use plan::stream::RankKind;
use plan::{ChangeKind, TaskOp};

use super::aggregate::check_append_only;
use super::cells::{BatchColumn, Bits};
use super::emit::{Outbox, check_types, record};
use super::multiset::Multiset;
use super::panes::{Panes, time_at};
use super::row_table::RowTable;
use super::tracked::{Tracked, check_restored};
use super::{OpContext, changelog_violation};

/// A row of a partition: its ordering columns, then its other columns, as bytes that sort as the rows do.
#[derive(Clone, Debug)]
struct Key {
    /// The first bytes as a number, zeros for those that are missing: most comparisons need not follow the pointer.
    prefix: u128,
    bytes: Arc<[u8]>,
    /// Length of the ordering columns' part; rows that are equal there tie.
    sort_len: u32,
}

fn prefix(bytes: &[u8]) -> u128 {
    let mut first = [0u8; 16];
    let length = bytes.len().min(16);
    first[..length].copy_from_slice(&bytes[..length]);
    u128::from_be_bytes(first)
}

impl Key {
    fn new(bytes: &[u8], sort_len: u32) -> Key {
        Key { prefix: prefix(bytes), bytes: bytes.into(), sort_len }
    }

    /// What an entry with this key costs.
    fn cost(&self) -> usize {
        ENTRY + self.bytes.len()
    }

    fn sort(&self) -> &[u8] {
        &self.bytes[..self.sort_len as usize]
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.sort_len as usize..]
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        // Where one key is a prefix of another the zeros tie, and the bytes decide.
        self.prefix.cmp(&other.prefix).then_with(|| self.bytes.cmp(&other.bytes))
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.bytes
    }
}

/// A row among the first: how often, and under which rank (0 if ranks are not shown).
#[derive(Clone, Debug)]
struct Placed {
    key: Key,
    rank: u64,
    count: i64,
}

#[derive(Default)]
struct Partition {
    rows: Multiset<Key>,
    /// As of the end of the last epoch.
    shown: Vec<Placed>,
    /// Append-only input: rows beyond this key can never be among the first again.
    bound: Option<Key>,
}

/// Where an input column is found in the state.
#[derive(Clone, Copy)]
enum Place {
    Partition(usize),
    Sort(usize),
    Rest(usize),
}

/// Which rows of a partition are "the first".
#[derive(Clone, Copy)]
struct Window {
    kind: RankKind,
    /// Ranks in `after + 1 ..= end`.
    after: u64,
    end: u64,
    ranks: bool,
}

/// What tells a checkpoint how the rows that are kept change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tells {
    /// The input: all of its rows are kept.
    Input,
    /// The output: what is kept is what is shown, but for copies of the last row beyond the window, which change nothing.
    Output,
    /// What comes in past the bounds and what is trimmed.
    Kept,
}

pub struct TopN {
    input: SchemaRef,
    input_kind: ChangeKind,
    schema: SchemaRef,
    window: Window,
    /// Everything but the window is shown: only with an offset and no limit.
    complement: bool,
    partition: Vec<usize>,
    partition_types: Vec<DataType>,
    sort_columns: Vec<usize>,
    rest_columns: Vec<usize>,
    sort: KeyEncoder,
    rest: KeyEncoder,
    places: Vec<Place>,
    numbers: RowTable,
    partitions: Vec<Partition>,
    changed: Vec<u32>,
    is_changed: Bits,
    /// Rows whose multiplicity is below zero for the moment.
    negative: usize,
    closing: Option<Closing>,
    tells: Tells,
    tracked: Tracked,
    /// Rows that were forgotten and not yet told; with [`Tells::Kept`] alone.
    trimmed: Pending,
    outboxes: [Outbox; 2],
    batch_rows: usize,
    touched: u64,
    heap: usize,
    ids: Vec<u32>,
    fresh: Vec<u32>,
}

/// When partitions end.
struct Closing {
    panes: Panes,
    /// Which of the partition's columns the time is.
    place: usize,
    /// By partition; [`GONE`] when it is not there.
    times: Vec<i64>,
}

const GONE: i64 = i64::MIN;

/// Rows that leave or enter the output, not yet decoded.
#[derive(Default)]
struct Pending {
    partitions: Vec<u32>,
    keys: Vec<Key>,
    ranks: Vec<u64>,
    weights: Vec<i64>,
}

impl Pending {
    fn push(&mut self, partition: u32, key: &Key, rank: u64, weight: i64) {
        self.partitions.push(partition);
        self.keys.push(key.clone());
        self.ranks.push(rank);
        self.weights.push(weight);
    }
}

impl Window {
    /// The first rows of a partition in order; the number of rows read goes to `touched`.
    fn first(&self, rows: &Multiset<Key>, touched: &mut u64) -> Vec<Placed> {
        let mut first = Vec::new();
        let mut seen = 0u64;
        let mut dense = 0u64;
        let mut rank = 0u64;
        let mut previous: Option<&Key> = None;
        rows.walk(|key, weight| {
            let count = weight.max(0) as u64;
            if self.kind == RankKind::RowNumber {
                if seen >= self.end {
                    return false;
                }
                *touched += 1;
                let from = seen.max(self.after);
                seen = seen.saturating_add(count);
                let to = seen.min(self.end);
                if self.ranks {
                    first.extend((from..to).map(|n| Placed { key: key.clone(), rank: n + 1, count: 1 }));
                } else if to > from {
                    first.push(Placed { key: key.clone(), rank: 0, count: (to - from) as i64 });
                }
                return true;
            }
            if previous.is_none_or(|p| p.sort() != key.sort()) {
                dense += 1;
                rank = if self.kind == RankKind::Rank { seen.saturating_add(1) } else { dense };
                previous = Some(key);
            }
            if rank > self.end {
                return false;
            }
            *touched += 1;
            seen = seen.saturating_add(count);
            if rank > self.after {
                first.push(Placed { key: key.clone(), rank: if self.ranks { rank } else { 0 }, count: count as i64 });
            }
            true
        });
        first
    }

    /// Drops what can never be among the first again if rows are only added; `dropped` sees it.
    fn trim(&self, partition: &mut Partition, dropped: impl FnMut(&Key, i64)) {
        let (mut seen, mut dense, mut kept) = (0u64, 0u64, 0usize);
        let mut last: Option<&Key> = None;
        let mut full = false;
        partition.rows.walk(|key, weight| {
            let ties = last.is_some_and(|l| l.sort() == key.sort());
            let used = if self.kind == RankKind::DenseRank { dense } else { seen };
            if used >= self.end && (self.kind == RankKind::RowNumber || !ties) {
                return false;
            }
            if !ties {
                dense += 1;
            }
            seen = seen.saturating_add(weight.max(0) as u64);
            kept += 1;
            last = Some(key);
            full = (if self.kind == RankKind::DenseRank { dense } else { seen }) >= self.end;
            true
        });
        let Some(last) = last.cloned() else { return };
        partition.rows.truncate(kept, &last, dropped);
        if full {
            partition.bound = Some(last);
        }
    }
}

/// What an entry of a partition costs beside its bytes: key, count, share of a tree node, allocation.
const ENTRY: usize = 96;

impl TopN {
    /// `op` is a `TaskOp::TopN`.
    pub fn new(op: &TaskOp, input: &SchemaRef, schema: SchemaRef, ctx: &OpContext) -> Result<TopN> {
        let TaskOp::TopN { partition, order, offset, limit, rank, emit_rank, input_kind, closes } = op else {
            return Err(Error::internal("not a Top-N"));
        };
        let width = input.fields().len();
        if partition.iter().chain(order.iter().map(|k| &k.column)).any(|n| *n >= width) {
            return Err(Error::internal("a Top-N names no input column"));
        }
        let column_type = |n: &usize| input.field(*n).data_type().clone();
        let mut partition_columns = partition.clone();
        partition_columns.sort_unstable();
        partition_columns.dedup();
        // A column orders once, and a partition column does not order at all.
        let mut sort_columns: Vec<usize> = Vec::new();
        let mut sort_fields = Vec::new();
        for key in order {
            if !partition_columns.contains(&key.column) && !sort_columns.contains(&key.column) {
                sort_columns.push(key.column);
                let options = SortOptions { descending: key.descending, nulls_first: key.nulls_first };
                sort_fields.push((column_type(&key.column), options));
            }
        }
        let rest_columns: Vec<usize> =
            (0..width).filter(|n| !partition_columns.contains(n) && !sort_columns.contains(n)).collect();
        let at = |list: &[usize], n: usize| list.iter().position(|m| *m == n);
        let places = (0..width)
            .map(|n| {
                at(&partition_columns, n)
                    .map(Place::Partition)
                    .or_else(|| at(&sort_columns, n).map(Place::Sort))
                    .or_else(|| at(&rest_columns, n).map(Place::Rest))
                    .ok_or_else(|| Error::internal("a Top-N lost a column"))
            })
            .collect::<Result<_>>()?;
        let complement = limit.is_none() && !*emit_rank;
        let window = if complement {
            Window { kind: *rank, after: 0, end: *offset, ranks: false }
        } else {
            let end = limit.map_or(u64::MAX, |limit| offset.saturating_add(limit));
            Window { kind: *rank, after: *offset, end, ranks: *emit_rank }
        };
        let partition_types: Vec<DataType> = partition_columns.iter().map(column_type).collect();
        let rest_types: Vec<DataType> = rest_columns.iter().map(column_type).collect();
        let outbox = || Outbox::new(schema.clone(), ctx.batch_rows);
        let closing = closes.map(|time| {
            let place = at(&partition_columns, time.column);
            let place = place.ok_or_else(|| Error::internal("a Top-N ends by a column that is not its partition's"))?;
            Ok::<_, Error>(Closing { panes: Panes::new(time), place, times: Vec::new() })
        });
        let closing = closing.transpose()?;
        let tells = if *input_kind != ChangeKind::AppendOnly || window.end == u64::MAX {
            Tells::Input
        } else if window.after == 0 && !window.ranks && !complement {
            Tells::Output
        } else {
            Tells::Kept
        };
        Ok(TopN {
            tells,
            tracked: Tracked::default(),
            trimmed: Pending::default(),
            input: input.clone(),
            input_kind: *input_kind,
            window,
            complement,
            numbers: RowTable::new(&partition_types, true),
            partition: partition_columns,
            partition_types,
            sort: KeyEncoder::with_order(sort_fields)?,
            sort_columns,
            rest: KeyEncoder::new(&rest_types)?,
            rest_columns,
            places,
            partitions: Vec::new(),
            changed: Vec::new(),
            is_changed: Bits::default(),
            negative: 0,
            closing,
            outboxes: [outbox(), outbox()],
            schema,
            batch_rows: ctx.batch_rows.max(1),
            touched: 0,
            heap: 0,
            ids: Vec::new(),
            fresh: Vec::new(),
        })
    }

    /// Whether rows beyond the window can be forgotten.
    fn forgets(&self) -> bool {
        self.tells != Tells::Input
    }

    /// Drops what partition `id` need not keep.
    fn trim(&mut self, id: u32) {
        let (mut freed, tells) = (0, self.tells == Tells::Kept && self.tracked.is_on());
        let TopN { window, partitions, trimmed, .. } = self;
        window.trim(&mut partitions[id as usize], |key, count| {
            freed += key.cost();
            if tells {
                trimmed.push(id, key, 0, count);
            }
        });
        self.heap = self.heap.saturating_sub(freed);
    }

    /// Tells the checkpoint that rows are not kept any longer. Leaves the list empty.
    fn tell_gone(&mut self, gone: &mut Pending) -> Result<()> {
        for start in (0..gone.keys.len()).step_by(self.batch_rows) {
            let range = start..gone.keys.len().min(start + self.batch_rows);
            let columns = self.columns(gone, range.clone())?;
            let diff = Diff::from_weights(gone.weights[range.clone()].iter().map(|w| -w).collect());
            self.tracked.push(0, &self.input, &columns, range.len(), diff)?;
        }
        *gone = Pending::default();
        Ok(())
    }

    /// Takes the rows of a batch into their partitions.
    fn store(&mut self, batch: &ChangeBatch) -> Result<()> {
        let columns_of = |columns: &[usize]| -> Vec<ArrayRef> {
            columns.iter().map(|n| Arc::clone(batch.rows.column(*n))).collect()
        };
        let keys = columns_of(&self.partition);
        let hashes = hash_columns(&keys, batch.num_rows())?;
        self.numbers.upsert(&BatchColumn::all(&keys)?, &hashes, &mut self.ids, &mut self.fresh)?;
        if self.partitions.len() < self.numbers.size() {
            self.partitions.resize_with(self.numbers.size(), Partition::default);
        }
        if let Some(closing) = &mut self.closing {
            let times = keys.get(closing.place).and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
            let times = times.ok_or_else(|| Error::internal("a Top-N ends by a column that is no timestamp"))?;
            closing.times.resize(self.numbers.size(), GONE);
            let Closing { panes, times: of, .. } = closing;
            panes.note(self.fresh.iter().map(|i| {
                let (row, id) = (*i as usize, self.ids[*i as usize]);
                let time = time_at(times, row);
                of[id as usize] = time;
                (time, id)
            }));
        }
        for id in &self.ids {
            if !self.is_changed.get(*id as usize) {
                self.is_changed.set(*id as usize, true);
                self.changed.push(*id);
            }
        }
        let sorts = match self.sort_columns.is_empty() {
            true => None,
            false => Some(self.sort.encode(&columns_of(&self.sort_columns))?),
        };
        let sort_bytes = |i: usize| sorts.as_ref().map_or(&[][..], |rows| rows.row(i).data());
        // With a bound on most partitions, few rows get past it: encode the other columns of those only.
        let partitions = &self.partitions;
        let candidates: Vec<u32> = (0..batch.num_rows())
            .filter(|i| match &partitions[self.ids[*i] as usize].bound {
                Some(bound) => sort_bytes(*i) <= bound.sort(),
                None => true,
            })
            .map(|i| i as u32)
            .collect();
        if candidates.is_empty() {
            return Ok(());
        }
        let rests = if self.rest_columns.is_empty() {
            None
        } else if candidates.len() == batch.num_rows() {
            Some(self.rest.encode(&columns_of(&self.rest_columns))?)
        } else {
            let indices = UInt32Array::from(candidates.clone());
            let columns = columns_of(&self.rest_columns);
            let columns = columns.iter().map(|c| take(c, &indices, None)).collect::<Result<Vec<_>, _>>()?;
            Some(self.rest.encode(&columns)?)
        };
        let forgets = self.forgets();
        let tells = self.tells == Tells::Kept && self.tracked.is_on();
        let mut entered: Vec<u32> = Vec::new();
        let entries_max = self.window.end.saturating_mul(2).saturating_add(16);
        let mut scratch = Vec::new();
        for (n, i) in candidates.iter().enumerate() {
            let i = *i as usize;
            let sort = sort_bytes(i);
            scratch.clear();
            scratch.extend_from_slice(sort);
            if let Some(rows) = &rests {
                scratch.extend_from_slice(rows.row(n).data());
            }
            let partition = &mut self.partitions[self.ids[i] as usize];
            if partition.bound.as_ref().is_some_and(|b| self.window.kind == RankKind::RowNumber && *scratch > *b.bytes)
            {
                continue;
            }
            let sort_len = sort.len() as u32;
            let keep = |bytes: &[u8]| Key::new(bytes, sort_len);
            let first = prefix(&scratch);
            let order = |key: &Key, bytes: &[u8]| key.prefix.cmp(&first).then_with(|| (*key.bytes).cmp(bytes));
            let (before, after) =
                partition.rows.add(scratch.as_slice(), batch.weight(i), keep, order).ok_or_else(|| {
                    Error::new(SqlState::NumericValueOutOfRange, "the multiplicity of a row is out of range")
                })?;
            if tells {
                entered.push(i as u32);
            }
            self.touched += 1;
            self.negative += usize::from(before >= 0 && after < 0);
            self.negative -= usize::from(before < 0 && after >= 0);
            if before == 0 {
                self.heap += ENTRY + scratch.len();
            } else if after == 0 {
                self.heap = self.heap.saturating_sub(ENTRY + scratch.len());
            }
            if forgets && partition.rows.len() as u64 > entries_max && self.window.kind == RankKind::RowNumber {
                self.trim(self.ids[i]);
            }
        }
        if entered.is_empty() {
            return Ok(());
        }
        let entered = UInt32Array::from(entered);
        let columns = batch.rows.columns().iter().map(|c| take(c, &entered, None)).collect::<Result<Vec<_>, _>>()?;
        let diff = Diff::from_weights(entered.values().iter().map(|i| batch.weight(*i as usize)).collect());
        self.tracked.push(0, &self.input, &columns, entered.len(), diff)
    }

    /// Some of the rows of a list, in the columns of the input.
    fn columns(&self, pending: &Pending, range: Range<usize>) -> Result<Vec<ArrayRef>> {
        let keys = &pending.keys[range.clone()];
        let partitions = self.numbers.gather_all(&pending.partitions[range])?;
        let decode = |encoder: &KeyEncoder, columns: &[usize], bytes: &dyn Fn(&Key) -> &[u8]| {
            if columns.is_empty() { Ok(Vec::new()) } else { encoder.decode(keys.iter().map(bytes)) }
        };
        let sorts = decode(&self.sort, &self.sort_columns, &|k| k.sort())?;
        let rests = decode(&self.rest, &self.rest_columns, &|k| k.rest())?;
        let columns = self.places.iter().map(|place| {
            Arc::clone(match place {
                Place::Partition(n) => &partitions[*n],
                Place::Sort(n) => &sorts[*n],
                Place::Rest(n) => &rests[*n],
            })
        });
        Ok(columns.collect())
    }

    fn emit(&mut self, pending: &Pending, diff: Diff, out: &mut dyn Collector) -> Result<()> {
        for start in (0..pending.keys.len()).step_by(self.batch_rows) {
            let range = start..pending.keys.len().min(start + self.batch_rows);
            let rows = range.len();
            let mut columns = self.columns(pending, range.clone())?;
            if self.window.ranks {
                columns.push(self.rank_column(&pending.ranks[range.clone()])?);
            }
            let weights = &pending.weights[range];
            let diff = if weights.iter().all(|w| *w == 1) {
                diff.clone()
            } else {
                let sign = diff.weight(0);
                Diff::from_weights(weights.iter().map(|w| w * sign).collect())
            };
            if self.tells == Tells::Output {
                self.tracked.push(0, &self.input, &columns, rows, diff.clone())?;
            }
            let outbox = &mut self.outboxes[usize::from(diff.weight(0) > 0)];
            outbox.push(columns, rows, diff, out)?;
        }
        Ok(())
    }

    fn rank_column(&self, ranks: &[u64]) -> Result<ArrayRef> {
        let last = self.schema.fields().last().map(|f| f.data_type());
        match last {
            Some(DataType::UInt64) => Ok(Arc::new(PrimitiveArray::<UInt64Type>::from(ranks.to_vec()))),
            Some(DataType::Int64) => {
                Ok(Arc::new(PrimitiveArray::<Int64Type>::from_iter_values(ranks.iter().map(|r| *r as i64))))
            }
            _ => Err(Error::internal("the rank column of a Top-N is not a 64-bit integer")),
        }
    }
}

/// What separates two lists of first rows, both in the order of (key, rank).
fn difference(partition: u32, old: &[Placed], new: &[Placed], gone: &mut Pending, come: &mut Pending) {
    let (mut o, mut n) = (0, 0);
    let put = |to: &mut Pending, placed: &Placed, weight: i64| to.push(partition, &placed.key, placed.rank, weight);
    while o < old.len() || n < new.len() {
        let order = match (old.get(o), new.get(n)) {
            (Some(a), Some(b)) => a.key.cmp(&b.key).then(a.rank.cmp(&b.rank)),
            (Some(_), None) => Ordering::Less,
            _ => Ordering::Greater,
        };
        match order {
            Ordering::Less => {
                put(gone, &old[o], old[o].count);
                o += 1;
            }
            Ordering::Greater => {
                put(come, &new[n], new[n].count);
                n += 1;
            }
            Ordering::Equal => {
                match new[n].count - old[o].count {
                    0 => {}
                    more @ 1.. => put(come, &new[n], more),
                    fewer => put(gone, &old[o], -fewer),
                }
                o += 1;
                n += 1;
            }
        }
    }
}

impl ProcessFunction for TopN {
    fn declare(&self) -> Declaration {
        let by_ranks = self.forgets().then(|| format!("{} ranks per partition", self.window.end));
        let bounded_by = self.closing.as_ref().map(|c| c.panes.time.clock.words().to_owned()).or(by_ranks);
        let rows = StateDeclaration {
            name: "rows",
            key: self.partition_types.clone(),
            holds: "rows in order, rows shown".into(),
            bounded_by,
        };
        Declaration { states: vec![rows], timers: false }
    }

    fn process(&mut self, _port: usize, batch: ChangeBatch, out: &mut dyn Collector) -> Result<()> {
        check_types(&batch, &self.input)?;
        check_append_only(self.input_kind, &batch.diff)?;
        if self.complement {
            let rows: RecordBatch = record(&self.schema, batch.rows.columns().to_vec(), batch.num_rows())?;
            out.emit(ChangeBatch::new(rows, batch.diff.clone()));
        }
        if self.window.end == 0 {
            return Ok(());
        }
        if self.tells == Tells::Input {
            self.tracked.push(0, &self.input, batch.rows.columns(), batch.num_rows(), batch.diff.clone())?;
        }
        self.store(&batch)
    }

    fn finish_epoch(&mut self, _epoch: Epoch, out: &mut dyn Collector) -> Result<()> {
        if self.negative > 0 {
            return Err(changelog_violation("a row of a Top-N"));
        }
        let (mut gone, mut come) = (Pending::default(), Pending::default());
        let changed = std::mem::take(&mut self.changed);
        for id in &changed {
            let partition = &mut self.partitions[*id as usize];
            let first = self.window.first(&partition.rows, &mut self.touched);
            let old = std::mem::replace(&mut partition.shown, first);
            difference(*id, &old, &partition.shown, &mut gone, &mut come);
            if self.forgets() {
                self.trim(*id);
            }
            if gone.keys.len() + come.keys.len() >= self.batch_rows {
                self.emit_both(&mut gone, &mut come, out)?;
            }
        }
        self.emit_both(&mut gone, &mut come, out)?;
        for outbox in &mut self.outboxes {
            outbox.flush(out)?;
        }
        let mut trimmed = std::mem::take(&mut self.trimmed);
        self.tell_gone(&mut trimmed)?;
        for id in changed {
            self.is_changed.set(id as usize, false);
            let partition = &self.partitions[id as usize];
            if partition.rows.len() == 0 && partition.bound.is_none() {
                self.partitions[id as usize] = Partition::default();
                self.numbers.remove(id);
                if let Some(closing) = &mut self.closing {
                    closing.times[id as usize] = GONE;
                }
            }
        }
        self.close()
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

    fn parts(&self) -> Vec<StatePart> {
        if self.window.end == 0 {
            return Vec::new();
        }
        let columns = (0..self.input.fields().len()).collect();
        let schema = Arc::clone(&self.input);
        vec![StatePart { name: "rows".into(), schema, kind: PartKind::Counted, port: 0, columns }]
    }

    fn track(&mut self) {
        self.tracked.start();
    }

    fn freeze(&mut self, out: &mut Vec<(usize, ChangeBatch)>) -> Result<()> {
        self.tracked.tell(out);
        Ok(())
    }

    fn tracked_bytes(&self) -> usize {
        self.tracked.bytes()
    }

    fn restore(&mut self, _part: usize, rows: ChangeBatch) -> Result<()> {
        check_restored(&rows, &self.input)?;
        self.store(&rows)
    }

    fn restored(&mut self, watermarks_us: &[i64], now_us: i64) -> Result<()> {
        if let Some(closing) = &mut self.closing {
            closing.panes.on_watermark(watermarks_us.first().copied().unwrap_or(WATERMARK_START));
            closing.panes.on_time(now_us);
        }
        for id in std::mem::take(&mut self.changed) {
            self.is_changed.set(id as usize, false);
            let partition = &mut self.partitions[id as usize];
            partition.shown = self.window.first(&partition.rows, &mut self.touched);
            if self.forgets() {
                self.trim(id);
            }
        }
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        let closing = self.closing.as_ref().map_or(0, |c| c.panes.bytes() + c.times.capacity() * 8);
        self.numbers.bytes()
            + self.partitions.capacity() * size_of::<Partition>()
            + self.heap
            + closing
            + self.tracked.bytes()
    }

    fn rows_touched(&self) -> u64 {
        self.touched
    }
}

impl TopN {
    /// Forgets the partitions that are final; what they show stays.
    fn close(&mut self) -> Result<()> {
        let Some(closing) = &mut self.closing else { return Ok(()) };
        let mut closed: Vec<u32> = Vec::new();
        while let Some((time, ids)) = closing.panes.take_due() {
            for id in ids {
                // Not one that lost its last row, or whose number serves another.
                if closing.times[id as usize] == time {
                    closing.times[id as usize] = GONE;
                    closed.push(id);
                }
            }
        }
        let mut told = Pending::default();
        for id in &closed {
            let partition = &self.partitions[*id as usize];
            match self.tells {
                _ if !self.tracked.is_on() => {}
                Tells::Output => partition.shown.iter().for_each(|p| told.push(*id, &p.key, 0, p.count)),
                Tells::Input | Tells::Kept => partition.rows.walk(|key, count| {
                    told.push(*id, key, 0, count);
                    true
                }),
            }
            if told.keys.len() >= self.batch_rows {
                self.tell_gone(&mut told)?;
            }
        }
        self.tell_gone(&mut told)?;
        for id in closed {
            let partition = std::mem::take(&mut self.partitions[id as usize]);
            partition.rows.walk(|key, _| {
                self.heap = self.heap.saturating_sub(key.cost());
                true
            });
            self.numbers.remove(id);
        }
        Ok(())
    }

    fn emit_both(&mut self, gone: &mut Pending, come: &mut Pending, out: &mut dyn Collector) -> Result<()> {
        let (gone, come) = (std::mem::take(gone), std::mem::take(come));
        // The complement shows a row exactly if it is not among the first.
        let (gone_diff, come_diff) =
            if self.complement { (Diff::Insert, Diff::Delete) } else { (Diff::Delete, Diff::Insert) };
        self.emit(&gone, gone_diff, out)?;
        self.emit(&come, come_diff, out)
    }
}
