//! Session windows: GROUP BY over stretches of activity of each partition.
//!
//! A session is a maximal run of a partition's rows in which neighbours are at most the gap apart. Its window starts at the
//! first row and ends the gap after the last. A row opens a session, stretches one, or joins two; the accumulators of the
//! later one then move into the earlier one. Input is append-only: a row taken away could split a session, for which all of
//! its rows would have to be kept.
//!
//! A partition nearly always has one open session, so that is what a look-up meets first.
//!
//! A session that is stretched to an earlier row is still the same, so checkpoints know it by the time of the row that opened it:
//! sessions of a partition never overlap, and one that takes in another keeps its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray, UInt32Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter;
use arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};
use flow::hash::hash_columns;
use flow::process::{Declaration, StateDeclaration, StatePart};
use flow::{ChangeBatch, Collector, Diff, Epoch, Error, ProcessFunction, Result, SqlState};
use plan::ChangeKind;
use plan::stream::{AggCall, TimeClock};

use super::accumulate::Counts;
use super::saved::{Checkpointed, damaged, integers, key_columns};
use super::{Call, Closes, check_append_only, different, evaluate_calls, make_calls, update_calls, words};
use crate::ops::OpContext;
use crate::ops::cells::{BatchColumn, Bits};
use crate::ops::emit::{Outbox, check_types};
use crate::ops::panes::Panes;
use crate::ops::row_table::{NONE, RowTable};

/// Bytes that a session in a tree is reckoned at.
const TREE_ENTRY: usize = 48;

/// The sessions of one partition. They never overlap.
#[derive(Default)]
enum Sessions {
    #[default]
    None,
    One(u32),
    /// By start.
    Many(BTreeMap<i64, u32>),
}

/// What every session has, by its number.
#[derive(Default)]
struct Table {
    partition: Vec<u32>,
    /// The time of the row that opened it.
    opened: Vec<i64>,
    first: Vec<i64>,
    last: Vec<i64>,
    /// The end under which the watermark finds it; [`UNNOTED`] when it is gone.
    noted: Vec<i64>,
    rows: Counts,
    free: Vec<u32>,
}

const UNNOTED: i64 = i64::MIN;

impl Table {
    fn open(&mut self, partition: u32, at: i64) -> u32 {
        match self.free.pop() {
            Some(session) => {
                let s = session as usize;
                (self.partition[s], self.opened[s], self.first[s], self.last[s]) = (partition, at, at, at);
                session
            }
            None => {
                self.partition.push(partition);
                self.opened.push(at);
                self.first.push(at);
                self.last.push(at);
                self.noted.push(UNNOTED);
                self.rows.0.push(0);
                (self.partition.len() - 1) as u32
            }
        }
    }

    /// Whether a row at `at` belongs to `session`.
    #[inline(always)]
    fn reaches(&self, session: u32, at: i64, gap_us: i64) -> bool {
        let s = session as usize;
        at.saturating_add(gap_us) >= self.first[s] && at <= self.last[s].saturating_add(gap_us)
    }
}

/// When sessions end. One that was stretched since it was noted is noted again when its turn comes.
struct Ending {
    panes: Panes,
    /// Whether sessions come out when they are final, and only then.
    emits: bool,
}

/// Sessions that an epoch touched first in one batch, as they were before it.
struct Before {
    sessions: Vec<u32>,
    /// First and last row, then one array for each call.
    values: Vec<ArrayRef>,
}

pub struct Session {
    input: SchemaRef,
    keys: Vec<usize>,
    key_types: Vec<DataType>,
    time: usize,
    time_type: DataType,
    gap_us: i64,
    calls: Vec<Call>,
    words: String,
    partitions: RowTable,
    of_partition: Vec<Sessions>,
    in_trees: usize,
    table: Table,
    before: Vec<Before>,
    born: Vec<u32>,
    /// Sessions that were joined to others in this epoch; their numbers are free after it.
    joined: Vec<u32>,
    touched_now: Bits,
    ending: Option<Ending>,
    checkpointed: Checkpointed,
    /// Sessions by partition and the time that they were opened at, only while they are restored.
    restoring: hashbrown::HashMap<(u32, i64), u32>,
    deletes: Outbox,
    inserts: Outbox,
    batch_rows: usize,
    touched: u64,
    /// The partition of each row of a batch, then its session.
    ids: Vec<u32>,
    fresh: Vec<u32>,
}

/// What finding the sessions of one batch has brought.
#[derive(Default)]
struct Found {
    /// Sessions from before the epoch that it met first here, with their first and last row.
    met: Vec<(u32, i64, i64)>,
    /// Joined sessions with what they were joined to, in order.
    joins: Vec<(u32, u32)>,
}

impl Session {
    /// What checkpoints are told.
    fn tell(&mut self, early: bool, out: &mut Vec<(usize, ChangeBatch)>) -> Result<()> {
        let (table, time_type) = (&self.table, &self.time_type);
        let keys = Keys { partitions: &self.partitions, table, time_type };
        let own = |sessions: &[u32]| {
            let of = |from: &[i64]| times(time_type, sessions.iter().map(|s| from[*s as usize]));
            vec![of(&table.first), of(&table.last), table.rows.save(sessions)]
        };
        let lives = |session: u32| table.rows.0[session as usize] > 0;
        self.checkpointed.freeze(early, &mut self.calls, lives, |sessions| keys.of(sessions), own, out)
    }

    /// `ends`: when a session is final, by its end.
    ///
    /// Output: the key columns, `window_start`, `window_end`, then one column for each call.
    pub fn new(
        keys: &[usize],
        (time, gap_us): (usize, i64),
        calls: &[AggCall],
        ends: Closes,
        input: &SchemaRef,
        schema: SchemaRef,
        ctx: &OpContext,
    ) -> Result<Session> {
        let column_type = |n: usize| {
            let field = input.fields().get(n);
            field.map(|f| f.data_type().clone()).ok_or_else(|| Error::internal("a session names no input column"))
        };
        let key_types = keys.iter().map(|n| column_type(*n)).collect::<Result<Vec<_>>>()?;
        let time_type = column_type(time)?;
        let words = words(calls);
        let calls = make_calls(calls, input, ChangeKind::AppendOnly)?;
        let mut key = key_columns(&key_types);
        key.push(("opened".into(), time_type.clone()));
        let own = vec![
            ("first".into(), time_type.clone()),
            ("last".into(), time_type.clone()),
            ("rows".into(), DataType::Int64),
        ];
        let checkpointed = Checkpointed::new("sessions", key, own, &calls, keys);
        Ok(Session {
            input: Arc::clone(input),
            keys: keys.to_vec(),
            partitions: RowTable::new(&key_types, true),
            key_types,
            time,
            time_type,
            gap_us,
            calls,
            words,
            of_partition: Vec::new(),
            in_trees: 0,
            table: Table::default(),
            before: Vec::new(),
            born: Vec::new(),
            joined: Vec::new(),
            touched_now: Bits::default(),
            ending: ends.time.map(|time| Ending { panes: Panes::new(time), emits: ends.emits }),
            checkpointed,
            restoring: hashbrown::HashMap::new(),
            deletes: Outbox::new(Arc::clone(&schema), ctx.batch_rows),
            inserts: Outbox::new(schema, ctx.batch_rows),
            batch_rows: ctx.batch_rows.max(1),
            touched: 0,
            ids: Vec::new(),
            fresh: Vec::new(),
        })
    }

    fn emits_on_close(&self) -> bool {
        self.ending.as_ref().is_some_and(|e| e.emits)
    }

    /// Turns the partitions in `ids` into sessions.
    fn find(&mut self, times: &[i64]) -> Found {
        let mut found = Found::default();
        for (i, at) in times.iter().enumerate() {
            let partition = self.ids[i];
            self.ids[i] = match &self.of_partition[partition as usize] {
                Sessions::One(one) if self.table.reaches(*one, *at, self.gap_us) => {
                    let one = *one;
                    self.meet(one, &mut found);
                    let s = one as usize;
                    self.table.first[s] = self.table.first[s].min(*at);
                    self.table.last[s] = self.table.last[s].max(*at);
                    one
                }
                _ => self.find_slowly(partition, *at, &mut found),
            };
        }
        found
    }

    /// The session of a row that opens one, or whose partition has several.
    fn find_slowly(&mut self, partition: u32, at: i64, found: &mut Found) -> u32 {
        let place = &mut self.of_partition[partition as usize];
        if let Sessions::One(one) = place {
            self.in_trees += 1;
            *place = Sessions::Many(BTreeMap::from([(self.table.first[*one as usize], *one)]));
        }
        let Sessions::Many(tree) = place else {
            let session = self.table.open(partition, at);
            *place = Sessions::One(session);
            return self.bear(session);
        };
        let gap_us = self.gap_us;
        let reached = |s: &u32| self.table.reaches(*s, at, gap_us);
        let earlier = tree.range(..=at).next_back().map(|(_, s)| *s).filter(reached);
        let later = match at.checked_add(1) {
            Some(next) => tree.range(next..).next().map(|(_, s)| *s).filter(reached),
            None => None,
        };
        match (earlier, later) {
            (None, None) => {
                let session = self.table.open(partition, at);
                tree.insert(at, session);
                self.in_trees += 1;
                self.bear(session)
            }
            (Some(session), None) => {
                self.meet(session, found);
                let last = &mut self.table.last[session as usize];
                *last = at.max(*last);
                session
            }
            (None, Some(session)) => {
                let first = std::mem::replace(&mut self.table.first[session as usize], at);
                tree.remove(&first);
                tree.insert(at, session);
                self.meet_stretched(session, first, found);
                session
            }
            (Some(into), Some(from)) => {
                tree.remove(&self.table.first[from as usize]);
                if tree.len() == 1 {
                    self.of_partition[partition as usize] = Sessions::One(into);
                    self.in_trees -= 2;
                } else {
                    self.in_trees -= 1;
                }
                self.meet(into, found);
                self.meet(from, found);
                self.table.last[into as usize] = self.table.last[from as usize];
                self.table.noted[from as usize] = UNNOTED;
                self.joined.push(from);
                found.joins.push((from, into));
                into
            }
        }
    }

    /// Notes a session that the epoch has made.
    fn bear(&mut self, session: u32) -> u32 {
        self.touched_now.set(session as usize, true);
        self.born.push(session);
        session
    }

    /// Notes a session that the epoch touches, before it is changed.
    fn meet(&mut self, session: u32, found: &mut Found) {
        self.meet_stretched(session, self.table.first[session as usize], found);
    }

    fn meet_stretched(&mut self, session: u32, first: i64, found: &mut Found) {
        if !self.touched_now.get(session as usize) {
            self.touched_now.set(session as usize, true);
            found.met.push((session, first, self.table.last[session as usize]));
        }
    }

    /// Makes the calls follow `found`, and `ids` what the joined sessions have become.
    fn follow(&mut self, found: Found) -> Result<()> {
        let size = self.table.partition.len();
        for call in &mut self.calls {
            if let Some(accumulator) = &mut call.accumulator {
                accumulator.resize(size);
            }
        }
        if !found.met.is_empty() && !self.emits_on_close() {
            let sessions: Vec<u32> = found.met.iter().map(|m| m.0).collect();
            let mut values = vec![
                self.times(found.met.iter().map(|m| m.1).collect()),
                self.times(found.met.iter().map(|m| m.2).collect()),
            ];
            values.extend(evaluate_calls(&mut self.calls, &self.table.rows, &sessions)?);
            self.before.push(Before { sessions, values });
        } else {
            // What they were need not be told, but that they are not as they were must be forgotten after the epoch.
            self.born.extend(found.met.iter().map(|m| m.0));
        }
        if found.joins.is_empty() {
            return Ok(());
        }
        let mut became: hashbrown::HashMap<u32, u32> = hashbrown::HashMap::new();
        for (from, into) in found.joins {
            self.table.rows.merge(from, into)?;
            for call in &mut self.calls {
                if let Some(accumulator) = &mut call.accumulator {
                    accumulator.merge(from, into)?;
                }
            }
            became.insert(from, into);
        }
        for id in &mut self.ids {
            while let Some(into) = became.get(id) {
                *id = *into;
            }
        }
        Ok(())
    }

    fn times(&self, values: Vec<i64>) -> ArrayRef {
        times(&self.time_type, values.into_iter())
    }

    fn lives(&self, session: u32) -> bool {
        self.table.rows.0[session as usize] > 0
    }

    /// First and last row of `sessions`, then the calls' results.
    fn values(&mut self, sessions: &[u32]) -> Result<Vec<ArrayRef>> {
        let mut values = vec![
            self.times(sessions.iter().map(|s| self.table.first[*s as usize]).collect()),
            self.times(sessions.iter().map(|s| self.table.last[*s as usize]).collect()),
        ];
        values.extend(evaluate_calls(&mut self.calls, &self.table.rows, sessions)?);
        Ok(values)
    }

    /// The output rows of `sessions` with these values.
    fn columns(&self, sessions: &[u32], mut values: Vec<ArrayRef>) -> Result<Vec<ArrayRef>> {
        let partitions: Vec<u32> = sessions.iter().map(|s| self.table.partition[*s as usize]).collect();
        let mut columns = self.partitions.gather_all(&partitions)?;
        let ends = values[1].as_primitive::<TimestampMicrosecondType>().try_unary(|last| {
            last.checked_add(self.gap_us)
                .ok_or_else(|| Error::new(SqlState::DatetimeFieldOverflow, "the end of a session is out of range"))
        });
        let ends: PrimitiveArray<TimestampMicrosecondType> = ends?;
        values[1] = Arc::new(ends.with_data_type(self.time_type.clone()));
        columns.extend(values);
        Ok(columns)
    }

    fn emit_before(&mut self, before: Before, out: &mut dyn Collector) -> Result<()> {
        let Before { sessions, values: old } = before;
        let alive: BooleanBuffer = sessions.iter().map(|s| self.lives(*s)).collect();
        let new = self.values(&sessions)?;
        let mut changed = BooleanBuffer::new_unset(sessions.len());
        for (old, new) in old.iter().zip(&new) {
            changed = &changed | &different(old, new)?;
        }
        let deleted = BooleanArray::new(&!&alive | &changed, None);
        let inserted = BooleanArray::new(&alive & &changed, None);
        for (mask, values, diff) in [(deleted, &old, Diff::Delete), (inserted, &new, Diff::Insert)] {
            let picked: Vec<u32> = mask.values().set_indices().map(|i| sessions[i]).collect();
            if picked.is_empty() {
                continue;
            }
            let values = values.iter().map(|v| filter(v, &mask)).collect::<std::result::Result<Vec<_>, _>>()?;
            let columns = self.columns(&picked, values)?;
            let outbox = if diff == Diff::Delete { &mut self.deletes } else { &mut self.inserts };
            outbox.push(columns, picked.len(), diff, out)?;
        }
        Ok(())
    }

    fn emit(&mut self, sessions: &[u32], out: &mut dyn Collector) -> Result<()> {
        if sessions.is_empty() {
            return Ok(());
        }
        let values = self.values(sessions)?;
        let columns = self.columns(sessions, values)?;
        self.inserts.push(columns, sessions.len(), Diff::Insert, out)
    }

    /// Puts the numbers of sessions that are gone back, their partitions not yet being given to others.
    fn forget(&mut self, sessions: &[u32]) -> Result<()> {
        let keys = Keys { partitions: &self.partitions, table: &self.table, time_type: &self.time_type };
        self.checkpointed.forget(sessions, &mut self.calls, |sessions| keys.of(sessions))?;
        for session in sessions {
            self.table.rows.0[*session as usize] = 0;
            self.table.noted[*session as usize] = UNNOTED;
        }
        self.table.free.extend(sessions);
        Ok(())
    }

    /// Emits and forgets the sessions that the watermark has made final.
    fn close(&mut self, out: &mut dyn Collector) -> Result<()> {
        let Some(ending) = &mut self.ending else { return Ok(()) };
        // All ends together: nearly each has one session.
        let mut closed = Vec::new();
        while let Some((end, noted)) = ending.panes.take_due() {
            for session in noted {
                let s = session as usize;
                // One that was joined to another, or whose number has been given to another.
                if self.table.noted[s] != end {
                    continue;
                }
                let now = self.table.last[s].saturating_add(self.gap_us);
                if now > end {
                    self.table.noted[s] = now;
                    ending.panes.note([(now, session)]);
                } else {
                    self.table.noted[s] = UNNOTED;
                    closed.push(session);
                }
            }
        }
        if ending.emits {
            for chunk in closed.chunks(self.batch_rows) {
                self.emit(chunk, out)?;
            }
            self.inserts.flush(out)?;
        }
        self.forget(&closed)?;
        closed.iter().for_each(|session| self.leave_partition(*session));
        Ok(())
    }

    fn leave_partition(&mut self, session: u32) {
        let partition = self.table.partition[session as usize];
        let place = &mut self.of_partition[partition as usize];
        match place {
            Sessions::Many(tree) => {
                tree.remove(&self.table.first[session as usize]);
                self.in_trees -= 1;
                if tree.len() == 1
                    && let Some((_, one)) = tree.pop_first()
                {
                    self.in_trees -= 1;
                    *place = Sessions::One(one);
                }
            }
            _ => {
                *place = Sessions::None;
                self.partitions.remove(partition);
            }
        }
    }

    /// Lets the watermark find the sessions that the epoch has made.
    fn note_ends(&mut self) {
        let Some(ending) = &mut self.ending else { return };
        for session in &self.born {
            let s = *session as usize;
            if self.table.noted[s] == UNNOTED && self.table.rows.0[s] > 0 {
                note_end(&mut self.table, &mut ending.panes, *session, self.gap_us);
            }
        }
    }

    /// Puts a restored session into its partition.
    fn enter_partition(&mut self, session: u32) -> Result<()> {
        let place = &mut self.of_partition[self.table.partition[session as usize] as usize];
        let first = self.table.first[session as usize];
        match place {
            Sessions::None => *place = Sessions::One(session),
            Sessions::One(one) => {
                let tree = BTreeMap::from([(self.table.first[*one as usize], *one), (first, session)]);
                if tree.len() < 2 {
                    return Err(damaged("Two sessions overlap."));
                }
                self.in_trees += 2;
                *place = Sessions::Many(tree);
            }
            Sessions::Many(tree) => {
                if tree.insert(first, session).is_some() {
                    return Err(damaged("Two sessions overlap."));
                }
                self.in_trees += 1;
            }
        }
        Ok(())
    }
}

/// What the keys of sessions are read from.
struct Keys<'a> {
    partitions: &'a RowTable,
    table: &'a Table,
    time_type: &'a DataType,
}

impl Keys<'_> {
    /// The partition, and when the session was opened.
    fn of(&self, sessions: &[u32]) -> Result<Vec<ArrayRef>> {
        let partitions: Vec<u32> = sessions.iter().map(|s| self.table.partition[*s as usize]).collect();
        let mut columns = self.partitions.gather_all(&partitions)?;
        columns.push(times(self.time_type, sessions.iter().map(|s| self.table.opened[*s as usize])));
        Ok(columns)
    }
}

fn times(time_type: &DataType, values: impl Iterator<Item = i64>) -> ArrayRef {
    let times: PrimitiveArray<TimestampMicrosecondType> = values.collect::<Vec<i64>>().into();
    Arc::new(times.with_data_type(time_type.clone()))
}

/// The times of a checkpoint's column, in which none is missing.
fn times_in(column: &ArrayRef) -> Result<&[i64]> {
    let times = column.as_primitive_opt::<TimestampMicrosecondType>().filter(|t| t.null_count() == 0);
    times.map(|t| t.values().as_ref()).ok_or_else(|| damaged("A time is missing."))
}

/// Lets the watermark find a session.
fn note_end(table: &mut Table, panes: &mut Panes, session: u32, gap_us: i64) {
    let s = session as usize;
    let end = table.last[s].saturating_add(gap_us);
    // The least number stands for "not noted"; nothing so early is ever due later than the next one.
    let end = end.max(UNNOTED + 1);
    table.noted[s] = end;
    panes.note([(end, session)]);
}

impl ProcessFunction for Session {
    fn declare(&self) -> Declaration {
        let holds = if self.calls.is_empty() { "start, end".into() } else { format!("start, end, {}", self.words) };
        let sessions = StateDeclaration {
            name: "sessions",
            key: self.key_types.clone(),
            holds,
            bounded_by: self.ending.as_ref().map(|e| e.panes.time.clock.words().into()),
        };
        Declaration {
            states: vec![sessions],
            timers: self.ending.as_ref().is_some_and(|e| e.emits && e.panes.time.clock == TimeClock::Processing),
        }
    }

    fn process(&mut self, _port: usize, mut batch: ChangeBatch, _out: &mut dyn Collector) -> Result<()> {
        check_types(&batch, &self.input)?;
        check_append_only(ChangeKind::AppendOnly, &batch.diff)?;
        if let Some(nulls) = batch.rows.column(self.time).logical_nulls().filter(|n| n.null_count() > 0) {
            // A row without a time is in no session.
            let timed: Vec<u32> = nulls.inner().set_indices().map(|i| i as u32).collect();
            if timed.is_empty() {
                return Ok(());
            }
            batch = batch.take(&UInt32Array::from(timed))?;
        }
        let times = batch.rows.column(self.time);
        let times = times
            .as_primitive_opt::<TimestampMicrosecondType>()
            .ok_or_else(|| Error::internal("the time of a session is no timestamp"))?;
        let rows = batch.num_rows();
        let keys: Vec<ArrayRef> = self.keys.iter().map(|n| Arc::clone(batch.rows.column(*n))).collect();
        let hashes = hash_columns(&keys, rows)?;
        self.partitions.upsert(&BatchColumn::all(&keys)?, &hashes, &mut self.ids, &mut self.fresh)?;
        self.of_partition.resize_with(self.partitions.size(), Sessions::default);
        if self.table.partition.len() + rows >= NONE as usize {
            return Err(Error::new(SqlState::ProgramLimitExceeded, "too many sessions in one operator's state"));
        }
        let found = self.find(times.values());
        self.follow(found)?;
        if let Some(changes) = self.checkpointed.changes() {
            // A session that took in another has a row of the batch too: the one that joined them.
            self.ids.iter().for_each(|session| changes.mark(*session));
        }
        self.touched += rows as u64;
        self.table.rows.update(&self.ids, None, &batch.diff)?;
        update_calls(&mut self.calls, &self.ids, &batch)
    }

    fn finish_epoch(&mut self, _epoch: Epoch, out: &mut dyn Collector) -> Result<()> {
        let keys = Keys { partitions: &self.partitions, table: &self.table, time_type: &self.time_type };
        self.checkpointed.settle(&mut self.calls, |sessions| keys.of(sessions))?;
        for before in std::mem::take(&mut self.before) {
            before.sessions.iter().for_each(|s| self.touched_now.set(*s as usize, false));
            self.emit_before(before, out)?;
        }
        self.note_ends();
        let mut born = std::mem::take(&mut self.born);
        born.iter().for_each(|s| self.touched_now.set(*s as usize, false));
        if !self.emits_on_close() {
            born.retain(|s| self.lives(*s));
            for chunk in born.chunks(self.batch_rows) {
                self.emit(chunk, out)?;
            }
        }
        self.deletes.flush(out)?;
        self.inserts.flush(out)?;
        let joined = std::mem::take(&mut self.joined);
        self.forget(&joined)?;
        self.close(out)
    }

    fn on_watermark(&mut self, _port: usize, watermark_us: i64) -> Result<()> {
        if let Some(ending) = &mut self.ending {
            ending.panes.on_watermark(watermark_us);
        }
        Ok(())
    }

    fn on_time(&mut self, now_us: i64) -> Result<()> {
        if let Some(ending) = &mut self.ending {
            ending.panes.on_time(now_us);
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<i64> {
        self.ending.as_ref().filter(|e| e.emits)?.panes.next_timer()
    }

    fn parts(&self) -> Vec<StatePart> {
        self.checkpointed.parts().to_vec()
    }

    fn track(&mut self) {
        self.checkpointed.track(&mut self.calls, 0..self.table.partition.len() as u32);
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
        let (keys, mut columns) = rows.rows.columns().split_at(self.keys.len());
        let hashes = hash_columns(keys, rows.num_rows())?;
        self.partitions.upsert(&BatchColumn::all(keys)?, &hashes, &mut self.ids, &mut self.fresh)?;
        self.of_partition.resize_with(self.partitions.size(), Sessions::default);
        for (id, opened) in self.ids.iter_mut().zip(times_in(&columns[0])?) {
            let table = &mut self.table;
            *id = *self.restoring.entry((*id, *opened)).or_insert_with_key(|(p, at)| table.open(*p, *at));
        }
        columns = &columns[1..];
        let size = self.table.partition.len();
        for accumulator in self.calls.iter_mut().filter_map(|c| c.accumulator.as_mut()) {
            accumulator.resize(size);
        }
        if part == 0 {
            let (first, last, counts) = (times_in(&columns[0])?, times_in(&columns[1])?, integers(&columns[2])?);
            for (i, session) in self.ids.iter().enumerate() {
                let s = *session as usize;
                let spans = first[i] <= self.table.opened[s] && self.table.opened[s] <= last[i];
                if self.table.rows.0[s] != 0 || counts[i] < 1 || !spans {
                    return Err(damaged("A session is there twice, or is none."));
                }
                (self.table.first[s], self.table.last[s], self.table.rows.0[s]) = (first[i], last[i], counts[i]);
            }
            columns = &columns[3..];
        }
        self.checkpointed.load(part, &mut self.calls, &self.ids, columns)
    }

    fn restored(&mut self, watermarks_us: &[i64], now_us: i64) -> Result<()> {
        self.restoring = hashbrown::HashMap::new();
        for accumulator in self.calls.iter_mut().filter_map(|c| c.accumulator.as_mut()) {
            accumulator.settle()?;
        }
        if self.table.rows.0.contains(&0) {
            return Err(damaged("There are values of a session that is not there."));
        }
        for session in 0..self.table.partition.len() as u32 {
            self.enter_partition(session)?;
            if let Some(ending) = &mut self.ending {
                note_end(&mut self.table, &mut ending.panes, session, self.gap_us);
            }
        }
        if let Some(ending) = &mut self.ending {
            watermarks_us.iter().for_each(|watermark| ending.panes.on_watermark(*watermark));
            ending.panes.on_time(now_us);
        }
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        let calls = self.calls.iter().filter_map(|c| c.accumulator.as_ref()).map(|a| a.bytes()).sum::<usize>();
        let ends = self.ending.as_ref().map_or(0, |e| e.panes.bytes());
        self.partitions.bytes()
            + self.of_partition.capacity() * size_of::<Sessions>()
            + self.in_trees * TREE_ENTRY
            + self.table.partition.capacity() * (4 + 8 + 8 + 8 + 8 + 8)
            + self.touched_now.bytes()
            + self.checkpointed.bytes()
            + calls
            + ends
    }

    fn rows_touched(&self) -> u64 {
        self.touched + self.calls.iter().filter_map(|c| c.accumulator.as_ref()).map(|a| a.touched()).sum::<u64>()
    }
}
