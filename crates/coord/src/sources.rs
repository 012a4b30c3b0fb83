//! The shared readers of sources: one thread a source feeds every job that reads it.
//!
//! Law: the positions of a source at an epoch are fixed with the epoch's input, under the same lease. So "the source as of
//! epoch *e*" is the range from its start to those positions, and reading that range again gives the same rows: that is
//! how a later view back-fills and how an ad-hoc SELECT agrees with the views.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use catalog::Watermark;
use connect::{BadRecord, Offset, Progress, ReadOutcome, ReadState, Source, SourceReader, Split};
use flow::{ChangeBatch, Epoch, Error, RelationId, Result};
use parking_lot::{Condvar, Mutex};
use runtime::slot::Shared;
use tracing::{info, warn};

use crate::backfill::Rows;
use crate::clock::{Clock, Event};
use crate::gate::Gate;
use crate::sides::{self, SideTable};
use crate::table::Table;

/// Input that may wait for the next cut before readers pause.
const PENDING_BYTES_MAX: usize = 32 << 20;
/// One portion of a split.
const READ_ROWS: usize = 8192;
const READ_BYTES: usize = 4 << 20;
/// How long a reader that must wait for the flow sleeps at a time.
const BACK_PRESSURE_WAIT: Duration = Duration::from_millis(1);

/// Positions of all splits.
pub type Positions = BTreeMap<Split, Offset>;

/// One source of the catalog, opened.
pub struct SourceHandle {
    pub relation: RelationId,
    pub source: Arc<dyn Source>,
    /// Before every reader, if the source declares a watermark.
    pub gate: Option<Arc<Gate>>,
    sides: Mutex<Sides>,
    state: Mutex<State>,
    wake: Condvar,
}

/// Where the source's late rows and malformed records go.
#[derive(Default)]
pub struct Sides {
    pub late: Option<SideTable>,
    pub errors: Option<SideTable>,
}

impl Sides {
    /// The side tables of a relation.
    pub fn new(late: Option<Arc<Table>>, errors: Option<Arc<Table>>) -> Sides {
        Sides { late: late.map(SideTable::new), errors: errors.map(SideTable::new) }
    }
}

#[derive(Default)]
struct State {
    /// Jobs that read the source.
    consumers: HashSet<RelationId>,
    /// Readers wait until a script has declared all of its views.
    paused: bool,
    running: bool,
    stopped: bool,
    /// Positions after each epoch that has input of this source; the newest last.
    history: BTreeMap<Epoch, Positions>,
    /// All splits of a bounded source are read; everything is in epochs up to this one.
    ended: Option<Epoch>,
    failed: Option<Error>,
    skipped: u64,
    rows: u64,
    /// What is read and known, over all splits, in the connector's unit.
    progress: Progress,
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
    pub ended: Option<Epoch>,
    pub failed: Option<Error>,
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
        let (source, sides) = (Arc::from(source), Mutex::new(sides));
        SourceHandle { relation, source, gate, sides, state, wake: Condvar::new() }
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
            ended: state.ended,
            failed: state.failed.clone(),
        }
    }

    /// Positions as of `epoch`; `None` before the first input.
    pub fn positions(&self, epoch: Epoch) -> Option<Positions> {
        self.state.lock().history.range(..=epoch).next_back().map(|(_, p)| p.clone())
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

/// All sources.
pub struct Sources {
    clock: Arc<Clock>,
    shared: Shared,
    handles: Mutex<HashMap<RelationId, Arc<SourceHandle>>>,
    /// New sources start paused.
    paused: Mutex<bool>,
}

impl Sources {
    pub fn new(clock: Arc<Clock>, shared: Shared) -> Sources {
        Sources { clock, shared, handles: Mutex::default(), paused: Mutex::new(false) }
    }

    /// Takes an opened source. `watermark` is what its relation declares.
    pub fn add(&self, relation: RelationId, source: Box<dyn Source>, watermark: Option<Watermark>, sides: Sides) {
        let gate = watermark.map(|w| Arc::new(Gate::new(relation, w, self.clock.time.now_us())));
        if let Some(gate) = &gate {
            self.clock.add_gate(Arc::clone(gate));
        }
        let handle = SourceHandle::new(relation, source, gate, sides, *self.paused.lock());
        self.handles.lock().insert(relation, Arc::new(handle));
    }

    pub fn get(&self, relation: RelationId) -> Option<Arc<SourceHandle>> {
        self.handles.lock().get(&relation).cloned()
    }

    pub fn all(&self) -> Vec<Arc<SourceHandle>> {
        self.handles.lock().values().cloned().collect()
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
            let driver = Driver { handle, clock: Arc::clone(&self.clock), shared: self.shared.clone() };
            std::thread::Builder::new()
                .name(format!("source-{relation}"))
                .spawn(move || driver.run())
                .map_err(|e| Error::internal(format!("cannot start a source thread: {e}")))?;
        }
        Ok(())
    }

    /// A job is gone. Without readers the source stands still.
    pub fn unsubscribe(&self, job: RelationId) {
        for handle in self.all() {
            handle.state.lock().consumers.remove(&job);
        }
    }
}

struct OpenSplit {
    split: Split,
    reader: Box<dyn SourceReader>,
    at: Offset,
    ended: bool,
}

/// Which offsets of a paced source are due. Time in which nobody reads the source does not count; time in which the flow
/// cannot take more does, so that the rate holds over a stall.
struct Pace {
    /// Offsets a second.
    rate: u64,
    /// What was due at `since_us`.
    due: f64,
    since_us: i64,
}

impl Pace {
    fn due(&mut self, now_us: i64) -> Offset {
        let elapsed_us = now_us.saturating_sub(self.since_us).max(0);
        self.due += elapsed_us as f64 * self.rate as f64 / 1e6;
        self.since_us = now_us;
        Offset(self.due as u64)
    }
}

/// Whether a reader may go on.
#[derive(PartialEq, Eq)]
enum Turn {
    Read,
    /// As `Read`, after a time in which nobody wanted rows.
    Resume,
    Stop,
}

/// Reads one source for as long as it lives.
struct Driver {
    handle: Arc<SourceHandle>,
    clock: Arc<Clock>,
    shared: Shared,
}

impl Driver {
    fn run(self) {
        let handle = &self.handle;
        if let Err(error) = self.read_all() {
            warn!(relation = handle.relation.0, %error, "source stopped");
            let consumers: Vec<RelationId> = {
                let mut state = handle.state.lock();
                state.failed = Some(error.clone());
                state.consumers.iter().copied().collect()
            };
            for relation in consumers {
                self.clock.send(Event::StopJob { relation, error: error.clone() });
            }
        }
    }

    /// Waits until the source may read.
    fn wait_turn(&self) -> Turn {
        let handle = &self.handle;
        let mut turn = Turn::Read;
        {
            let mut state = handle.state.lock();
            while !state.stopped && (state.paused || state.consumers.is_empty()) {
                turn = Turn::Resume;
                handle.wake.wait(&mut state);
            }
            if state.stopped {
                return Turn::Stop;
            }
        }
        while self.clock.pending_bytes() > PENDING_BYTES_MAX {
            std::thread::sleep(BACK_PRESSURE_WAIT);
            if handle.state.lock().stopped {
                return Turn::Stop;
            }
        }
        turn
    }

    fn read_all(&self) -> Result<()> {
        let (handle, source) = (&self.handle, &self.handle.source);
        let mut open: Vec<OpenSplit> = Vec::new();
        let mut pace = source.pace().map(|rate| Pace { rate, due: 0.0, since_us: self.clock.time.now_us() });
        loop {
            for split in source.splits()? {
                if !open.iter().any(|o| o.split == split) {
                    if let Some(gate) = &handle.gate {
                        gate.add_split(&split, self.clock.time.now_us());
                    }
                    let reader = source.reader(&split, None)?;
                    open.push(OpenSplit { split, reader, at: Offset::START, ended: false });
                }
            }
            let mut more = false;
            for n in 0..open.len() {
                if open[n].ended {
                    continue;
                }
                let turn = self.wait_turn();
                if turn == Turn::Stop {
                    return Ok(());
                }
                let due = pace.as_mut().map(|pace| {
                    let now_us = self.clock.time.now_us();
                    if turn == Turn::Resume {
                        pace.since_us = now_us;
                    }
                    pace.due(now_us)
                });
                if due.is_some_and(|due| due <= open[n].at) {
                    continue;
                }
                let OpenSplit { reader, at, ended, .. } = &mut open[n];
                let outcome = reader.read(*at, READ_ROWS, READ_BYTES, due)?;
                *at = outcome.next;
                // What ends before its limit has ended; what reaches it waits for the next.
                *ended = outcome.state == ReadState::End && due.is_none_or(|due| outcome.next < due);
                more |= outcome.state == ReadState::More;
                self.deliver(&open, n, outcome)?;
            }
            if open.iter().all(|o| o.ended) {
                // An epoch of its own, so that waiting for it is waiting for everything before it.
                self.clock.commit(true, |epoch| {
                    handle.state.lock().ended = Some(epoch);
                    Ok(Vec::new())
                })?;
                info!(relation = handle.relation.0, rows = handle.state.lock().rows, "source has ended");
                return Ok(());
            }
            if !more {
                let mut state = handle.state.lock();
                if state.stopped {
                    return Ok(());
                }
                handle.wake.wait_for(&mut state, source.poll_interval());
                if state.stopped {
                    return Ok(());
                }
            }
        }
    }

    /// Hands what was read of split `n` to the flow, in the epoch that is open.
    fn deliver(&self, open: &[OpenSplit], n: usize, outcome: ReadOutcome) -> Result<()> {
        let handle = &self.handle;
        let (rows, errors) = (outcome.batch.num_rows() as u64, outcome.errors.len() as u64);
        let ended = open[n].ended;
        if rows == 0 && errors == 0 {
            if let (true, Some(gate)) = (ended, &handle.gate) {
                gate.end_split(&open[n].split);
            }
            return Ok(());
        }
        self.tell(&outcome.errors);
        metrics::counter!("millstream_source_rows").increment(rows);
        let progress = open
            .iter()
            .map(|o| o.reader.progress())
            .fold(Progress::default(), |a, p| Progress { done: a.done + p.done, total: a.total + p.total });
        let positions: Positions = open.iter().map(|o| (o.split.clone(), o.at)).collect();
        let split = &open[n];
        let mut sides = handle.sides.lock();
        self.clock.commit(false, |epoch| {
            let mut inputs = Vec::new();
            let shown = handle.source.split_text(&split.split);
            let on_time = match &handle.gate {
                None => outcome.batch,
                Some(gate) => {
                    let passed = gate.measure(outcome.batch)?;
                    let first_row = gate.admit(&split.split, &passed, self.clock.time.now_us())?;
                    if ended {
                        gate.end_split(&split.split);
                    }
                    if let (Some(late), Some(side)) = (passed.late, &mut sides.late) {
                        let rows = sides::late_rows(&side.table, &late, &shown, first_row)?;
                        inputs.push((side.table.relation, side.add(rows, epoch, &self.shared.budget)?));
                    }
                    passed.on_time
                }
            };
            if let (false, Some(side)) = (outcome.errors.is_empty(), &mut sides.errors) {
                let rows = sides::error_rows(&side.table, &outcome.errors, &shown)?;
                inputs.push((side.table.relation, side.add(rows, epoch, &self.shared.budget)?));
            }
            let mut state = handle.state.lock();
            state.history.insert(epoch, positions);
            state.rows += rows;
            state.skipped += errors;
            state.progress = progress;
            if on_time.num_rows() > 0 {
                inputs.push((handle.relation, ChangeBatch::insert(on_time)));
            }
            Ok(inputs)
        })?;
        let floor = Epoch(self.shared.floor.load(Ordering::Acquire));
        for side in [&sides.late, &sides.errors].into_iter().flatten() {
            side.maintain(floor, &self.shared.budget)?;
        }
        Ok(())
    }

    /// Counts malformed records, and logs the first of them.
    fn tell(&self, errors: &[BadRecord]) {
        const LOGGED: usize = 10;
        metrics::counter!("millstream_source_skipped_rows").increment(errors.len() as u64);
        for bad in errors.iter().take(LOGGED) {
            let relation = self.handle.relation.0;
            warn!(relation, line = bad.line, reason = bad.reason, "malformed record skipped");
        }
    }
}
