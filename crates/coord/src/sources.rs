//! The shared readers of sources: one service a source feeds every job that reads it.
//!
//! Law: the positions of a source at an epoch are fixed with the epoch's input, under the same lease. So "the source as of
//! epoch *e*" is the range from its start to those positions, and reading that range again gives the same rows: that is
//! how a later view back-fills and how an ad-hoc SELECT agrees with the views.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use catalog::{Catalog, Definition, Relation};
use connect::{Offset, Progress, ReadState, Source, SourceReader, Split};
use flow::{Epoch, Error, RelationId, Result};
use parking_lot::{Condvar, Mutex};
use runtime::slot::Shared;
use serde::{Deserialize, Serialize};

use crate::backfill::Rows;
use crate::clock::Clock;
use crate::driver::Driver;
use crate::execution::Execution;
use crate::gate::{Gate, GateState};
use crate::sides::SideTable;
use crate::table::Table;

/// One portion of a split, for one slot.
pub(crate) const READ_ROWS: usize = 8192;
pub(crate) const READ_BYTES: usize = 4 << 20;
/// How far one source may be ahead of another in event time, while both have more to read at once and the same jobs read them.
const AHEAD_MAX: Duration = Duration::from_secs(10);
/// Where a source is that nobody needs to wait for.
pub(crate) const NO_BACKLOG: i64 = i64::MAX;

/// Where a split is held that has been read to its end.
const END: Offset = Offset(u64::MAX);

/// Positions of all splits.
pub type Positions = BTreeMap<Split, Offset>;

/// A source as a checkpoint keeps it: as of a cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceState {
    pub relation: RelationId,
    /// Absent before the first input.
    pub positions: Option<Positions>,
    pub rows: u64,
    pub skipped: u64,
    pub gate: Option<GateState>,
}

/// One source of the catalog, opened.
pub struct SourceHandle {
    pub relation: RelationId,
    pub source: Arc<dyn Source>,
    /// Before every reader, if the source declares a watermark.
    pub gate: Option<Arc<Gate>>,
    pub(crate) sides: Mutex<Sides>,
    /// The tables of `sides`: late rows, malformed records.
    side_tables: [Option<Arc<Table>>; 2],
    pub(crate) state: Mutex<State>,
    /// How far the source has come in event time, in microseconds, while there is more to read at once; else [`NO_BACKLOG`].
    pub(crate) backlog_us: AtomicI64,
    pub(crate) wake: Condvar,
}

/// Where the source's late rows and malformed records go.
#[derive(Default)]
pub struct Sides {
    pub late: Option<SideTable>,
    pub errors: Option<SideTable>,
}

impl Sides {
    /// The side tables of a relation, with the rows that are in them.
    pub fn new(late: Option<Arc<Table>>, errors: Option<Arc<Table>>) -> Result<Sides> {
        let open = |table: Option<Arc<Table>>| table.map(SideTable::recovered).transpose();
        Ok(Sides { late: open(late)?, errors: open(errors)? })
    }
}

#[derive(Default)]
pub(crate) struct State {
    /// Jobs that read the source.
    pub(crate) consumers: HashSet<RelationId>,
    /// The columns that each job reads, from before it is deployed on.
    pub(crate) wanted: HashMap<RelationId, Vec<usize>>,
    /// Grows whenever `wanted` does.
    pub(crate) wishes: u64,
    /// Readers wait until a script has declared all of its views.
    pub(crate) paused: bool,
    /// The source is paused: nothing behind these positions is read.
    pub(crate) held: Option<Arc<Positions>>,
    /// Nothing is read until sinks have written what waits for them.
    pub(crate) backpressured: bool,
    /// Rows a second that are read at most.
    pub(crate) rate_limit: Option<u64>,
    running: bool,
    pub(crate) stopped: bool,
    /// Positions after each epoch that has input of this source; the newest last.
    pub(crate) history: BTreeMap<Epoch, Positions>,
    /// All splits of a bounded source are read; everything is in epochs up to this one.
    pub(crate) ended: Option<Epoch>,
    pub(crate) failed: Option<Error>,
    pub(crate) skipped: u64,
    pub(crate) rows: u64,
    /// What is read and known, over all splits, in the connector's unit.
    pub(crate) progress: Progress,
}

/// What `SHOW SOURCES` and the script runner want to know.
#[derive(Clone, Debug, Default)]
pub struct SourceStatus {
    pub rows: u64,
    pub skipped: u64,
    pub progress: Progress,
    /// What `progress` counts.
    pub unit: &'static str,
    pub bounded: bool,
    pub consumers: usize,
    /// The reader has not been let go yet.
    pub waiting: bool,
    /// The source is paused.
    pub held: bool,
    /// It waits for sinks.
    pub backpressured: bool,
    pub ended: Option<Epoch>,
    pub failed: Option<Error>,
}

impl SourceStatus {
    /// The state in one word.
    pub fn word(&self) -> &'static str {
        match (&self.failed, self.ended, self.consumers) {
            (Some(_), _, _) => "failed",
            (None, Some(_), _) => "ended",
            (None, None, _) if self.held => "paused",
            (None, None, 0) => "idle",
            (None, None, _) if self.backpressured => "backpressured",
            _ => "running",
        }
    }
}

impl SourceHandle {
    fn new(
        relation: RelationId,
        source: Box<dyn Source>,
        gate: Option<Arc<Gate>>,
        sides: Sides,
        paused: bool,
    ) -> SourceHandle {
        let state = Mutex::new(State { paused, ..State::default() });
        let side_tables = [&sides.late, &sides.errors].map(|side| side.as_ref().map(|s| Arc::clone(&s.table)));
        let (source, sides) = (Arc::from(source), Mutex::new(sides));
        let (backlog_us, wake) = (AtomicI64::new(NO_BACKLOG), Condvar::new());
        SourceHandle { relation, source, gate, sides, side_tables, state, backlog_us, wake }
    }

    /// Takes over how the catalog wants the source to be read.
    fn set_reading(&self, relation: &Relation) {
        let Definition::Source(source) = &relation.definition else { return };
        let mut state = self.state.lock();
        state.rate_limit = source.rate_limit;
        state.held = source.paused.as_ref().map(|paused| {
            Arc::new(paused.iter().map(|(split, offset)| (Split(split.clone()), Offset(*offset))).collect())
        });
        drop(state);
        self.wake.notify_all();
    }

    /// Whether a source that has more to read is behind this one in event time, so that what both are read for waits for it anyway.
    /// Does not hold for a source that somebody reads who does not read the other.
    pub(crate) fn is_ahead(&self, others: &Handles) -> bool {
        let at_us = self.backlog_us.load(Ordering::Relaxed);
        if at_us == NO_BACKLOG {
            return false;
        }
        let is_behind = |other: &&Arc<SourceHandle>| {
            other.backlog_us.load(Ordering::Relaxed) < at_us.saturating_sub(AHEAD_MAX.as_micros() as i64)
        };
        let behind: Vec<Arc<SourceHandle>> = others.lock().values().filter(is_behind).cloned().collect();
        if behind.is_empty() {
            return false;
        }
        let consumers = self.state.lock().consumers.clone();
        behind.iter().any(|other| consumers.is_subset(&other.state.lock().consumers))
    }

    pub fn status(&self) -> SourceStatus {
        let state = self.state.lock();
        SourceStatus {
            rows: state.rows,
            skipped: state.skipped,
            progress: state.progress,
            unit: self.source.unit(),
            bounded: self.source.bounded(),
            consumers: state.consumers.len(),
            waiting: state.paused,
            held: state.held.is_some(),
            backpressured: state.backpressured,
            ended: state.ended,
            failed: state.failed.clone(),
        }
    }

    /// What a checkpoint keeps, as of a cut at which no row is on its way.
    fn kept(&self) -> SourceState {
        let state = self.state.lock();
        SourceState {
            relation: self.relation,
            positions: state.history.last_key_value().map(|(_, p)| p.clone()),
            rows: state.rows,
            skipped: state.skipped,
            gate: self.gate.as_ref().map(|gate| gate.state()),
        }
    }

    /// Goes on from a checkpoint: everything up to its positions is in epochs up to `epoch`.
    fn restore(&self, kept: SourceState, epoch: Epoch, now_us: i64) {
        let mut state = self.state.lock();
        if let Some(positions) = kept.positions {
            state.history.insert(epoch, positions);
        }
        state.rows = kept.rows;
        state.skipped = kept.skipped;
        if let (Some(gate), Some(kept)) = (&self.gate, kept.gate) {
            gate.restore(kept, now_us);
        }
    }

    /// Positions as of `epoch`; `None` before the first input.
    pub fn positions(&self, epoch: Epoch) -> Option<Positions> {
        self.state.lock().history.range(..=epoch).next_back().map(|(_, p)| p.clone())
    }

    /// How far `held` lets a split be read; `None`: to its end.
    pub(crate) fn limit(held: &Positions, split: &Split) -> Option<Offset> {
        Some(held.get(split).copied().unwrap_or(Offset::START)).filter(|limit| *limit != END)
    }

    /// Forgets positions that no reader can ask for any more.
    fn trim(&self, floor: Epoch) {
        let mut state = self.state.lock();
        if let Some(keep) = state.history.range(..=floor).next_back().map(|(e, _)| *e) {
            state.history = state.history.split_off(&keep);
        }
    }

    /// The rows of the source up to `until`, or everything there is now when it has not been read yet. Errors: `0A000`
    /// without `until` for a source that never ends.
    pub fn rows_until(&self, until: Option<Positions>, columns: Option<&[usize]>) -> Result<Rows> {
        if until.is_none() && self.source.endless() {
            return Err(Error::unsupported("a source that never ends cannot be read to its end")
                .with_detail("No view or sink reads the source yet, so there is no moment to read it as of.")
                .with_hint("Read it through a materialized view, or bound the source."));
        }
        let splits = match &until {
            Some(positions) => positions.keys().cloned().collect(),
            None => self.source.splits()?,
        };
        let late = self.gate.as_ref().filter(|_| until.is_some()).map(|g| g.late_rows()).unwrap_or_default();
        let mut ranges = VecDeque::new();
        for split in splits {
            let limit = until.as_ref().and_then(|p| p.get(&split).copied());
            if limit != Some(Offset::START) {
                let reader = self.source.reader(&split, columns)?;
                let late = late.get(&split).cloned().unwrap_or_default();
                ranges.push_back(Range { reader, at: Offset::START, limit, late, rows: 0, late_before: 0 });
            }
        }
        Ok(Box::new(RangeRows { ranges }))
    }
}

/// Reads ranges of splits, one after the other.
struct RangeRows {
    ranges: VecDeque<Range>,
}

/// What is left to read of one split.
struct Range {
    reader: Box<dyn SourceReader>,
    at: Offset,
    limit: Option<Offset>,
    /// Rows to leave out, by their number in the split.
    late: Arc<Vec<u64>>,
    /// Rows read so far, and how many of them were late.
    rows: u64,
    late_before: usize,
}

impl Range {
    /// `rows` without those that were late when they came.
    fn without_late(&mut self, rows: RecordBatch) -> Result<RecordBatch> {
        let first = self.rows;
        self.rows += rows.num_rows() as u64;
        let left = &self.late[self.late_before..];
        let here = left.partition_point(|n| *n < self.rows);
        self.late_before += here;
        if here == 0 {
            return Ok(rows);
        }
        let mut on_time = vec![true; rows.num_rows()];
        for number in &left[..here] {
            on_time[(number - first) as usize] = false;
        }
        Ok(filter_record_batch(&rows, &BooleanArray::from(on_time))?)
    }
}

impl RangeRows {
    fn read(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let Some(range) = self.ranges.front_mut() else { return Ok(None) };
            if range.limit.is_some_and(|l| range.at >= l) {
                self.ranges.pop_front();
                continue;
            }
            let outcome = range.reader.read(range.at, READ_ROWS, READ_BYTES, range.limit)?;
            range.at = outcome.next;
            let rows = range.without_late(outcome.batch)?;
            if outcome.state != ReadState::More {
                self.ranges.pop_front();
            }
            if rows.num_rows() > 0 {
                return Ok(Some(rows));
            }
        }
    }
}

impl Iterator for RangeRows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Result<RecordBatch>> {
        self.read().transpose()
    }
}

/// The sources that there are.
pub(crate) type Handles = Arc<Mutex<HashMap<RelationId, Arc<SourceHandle>>>>;

/// All sources.
pub struct Sources {
    execution: Arc<dyn Execution>,
    clock: Arc<Clock>,
    shared: Shared,
    threads: usize,
    handles: Handles,
    /// New sources start paused.
    paused: Mutex<bool>,
}

impl Sources {
    /// `threads`: how many may read the splits of one source side by side.
    pub fn new(execution: Arc<dyn Execution>, clock: Arc<Clock>, shared: Shared, threads: usize) -> Sources {
        Sources { execution, clock, shared, threads, handles: Handles::default(), paused: Mutex::new(false) }
    }

    /// Every source as of a cut at which no row is on its way.
    pub fn kept(&self) -> Vec<SourceState> {
        self.all().iter().map(|h| h.kept()).collect()
    }

    /// The side tables of all sources, as of a cut at which no row is on its way, each with a count that has grown if rows came.
    pub fn kept_sides(&self) -> Vec<(u64, Arc<Table>)> {
        let mut found = Vec::new();
        for handle in self.all() {
            let late = handle.gate.as_ref().map_or(0, |gate| gate.status().late_rows);
            let skipped = handle.state.lock().skipped;
            for (count, table) in [late, skipped].into_iter().zip(&handle.side_tables) {
                found.extend(table.as_ref().map(|table| (count, Arc::clone(table))));
            }
        }
        found
    }

    /// Takes the opened source of a relation, which goes on from `kept`, everything until then being in epochs up to `epoch`.
    pub fn add(&self, relation: &Relation, source: Box<dyn Source>, sides: Sides, kept: Option<(SourceState, Epoch)>) {
        let (declared, relation) = (relation, relation.oid);
        let gate = declared
            .watermark()
            .cloned()
            .map(|w| Arc::new(Gate::new(relation, w, source.bounded(), self.clock.time.now_us())));
        if let Some(gate) = &gate {
            self.clock.add_gate(Arc::clone(gate));
        }
        let handle = SourceHandle::new(relation, source, gate, sides, *self.paused.lock());
        let handle = Arc::new(handle);
        if let Some((kept, epoch)) = kept {
            handle.restore(kept, epoch, self.clock.time.now_us());
        }
        handle.set_reading(declared);
        self.handles.lock().insert(relation, handle);
    }

    /// Stops the reading of a source where it is, and gives that place. Nothing that is read from now on reaches a job.
    pub fn hold(&self, relation: RelationId) -> BTreeMap<String, u64> {
        let Some(handle) = self.get(relation) else { return BTreeMap::new() };
        let mut state = handle.state.lock();
        let mut positions = state.history.last_key_value().map(|(_, p)| p.clone()).unwrap_or_default();
        if state.ended.is_some() {
            // All of it was read, and is read again after a restart.
            positions.values_mut().for_each(|p| *p = END);
        }
        let stored = positions.iter().map(|(split, offset)| (split.0.clone(), offset.0)).collect();
        state.held = Some(Arc::new(positions));
        stored
    }

    /// Lets every source, or only one, be read as `catalog` says.
    pub fn set_reading(&self, catalog: &Catalog, only: Option<RelationId>) {
        for handle in self.all().into_iter().filter(|h| only.is_none_or(|only| h.relation == only)) {
            if let Some(relation) = catalog.relation(handle.relation) {
                handle.set_reading(relation);
            }
        }
    }

    pub fn get(&self, relation: RelationId) -> Option<Arc<SourceHandle>> {
        self.handles.lock().get(&relation).cloned()
    }

    /// Every source, by its OID.
    pub fn all(&self) -> Vec<Arc<SourceHandle>> {
        let mut all: Vec<_> = self.handles.lock().values().cloned().collect();
        all.sort_unstable_by_key(|handle| handle.relation);
        all
    }

    /// Stops reading and forgets the source.
    pub fn remove(&self, relation: RelationId) {
        if let Some(handle) = self.handles.lock().remove(&relation) {
            handle.state.lock().stopped = true;
            handle.wake.notify_all();
            self.clock.remove_gate(relation);
        }
    }

    /// Holds back all readers (`true`) or lets them go.
    pub fn pause(&self, paused: bool) {
        *self.paused.lock() = paused;
        for handle in self.all() {
            handle.state.lock().paused = paused;
            handle.wake.notify_all();
        }
    }

    /// Drops positions below the oldest readable epoch.
    pub fn trim(&self, floor: Epoch) {
        self.all().iter().for_each(|h| h.trim(floor));
    }

    /// Registers a reading job and starts the reader if it does not run yet.
    pub fn subscribe(&self, relation: RelationId, job: RelationId) -> Result<()> {
        let Some(handle) = self.get(relation) else { return Ok(()) };
        let start = {
            let mut state = handle.state.lock();
            state.consumers.insert(job);
            !std::mem::replace(&mut state.running, true)
        };
        handle.wake.notify_all();
        if start {
            let (clock, execution) = (Arc::clone(&self.clock), Arc::clone(&self.execution));
            let others = Arc::clone(&self.handles);
            let driver = Driver::new(handle, others, clock, self.shared.clone(), execution, self.threads)?;
            // It ends when the source is gone; nobody waits for that.
            drop(self.execution.start_service(Box::new(driver))?);
        }
        Ok(())
    }

    /// Says which columns a job will read; before it is deployed, so that no row reaches it without them.
    pub fn want(&self, relation: RelationId, job: RelationId, columns: Vec<usize>) {
        if let Some(handle) = self.get(relation) {
            let mut state = handle.state.lock();
            state.wanted.insert(job, columns);
            state.wishes += 1;
        }
    }

    /// A job is gone. Without readers the source stands still.
    pub fn unsubscribe(&self, job: RelationId) {
        for handle in self.all() {
            let mut state = handle.state.lock();
            state.consumers.remove(&job);
            // Who reads more columns than are wanted loses nothing.
            state.wanted.remove(&job);
        }
    }
}
