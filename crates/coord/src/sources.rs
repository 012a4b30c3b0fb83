//! The shared readers of sources: one thread a source feeds every job that reads it.
//!
//! Law: the positions of a source at an epoch are fixed with the epoch's input, under the same lease. So "the source as of
//! epoch *e*" is the range from its start to those positions, and reading that range again gives the same rows: that is
//! how a later view back-fills and how an ad-hoc SELECT agrees with the views.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use connect::{Offset, Progress, ReadState, Source, SourceReader, Split};
use flow::{ChangeBatch, Epoch, Error, RelationId, Result};
use parking_lot::{Condvar, Mutex};
use tracing::{info, warn};

use crate::backfill::Rows;
use crate::clock::{Clock, Event};
use crate::time::Time;

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
    state: Mutex<State>,
    wake: Condvar,
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
    fn new(relation: RelationId, source: Box<dyn Source>, paused: bool) -> SourceHandle {
        let state = Mutex::new(State { paused, ..State::default() });
        SourceHandle { relation, source: Arc::from(source), state, wake: Condvar::new() }
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
        let mut readers = Vec::new();
        for split in splits {
            let limit = until.as_ref().and_then(|p| p.get(&split).copied());
            if limit != Some(Offset::START) {
                readers.push((self.source.reader(&split, columns)?, limit));
            }
        }
        Ok(Box::new(RangeRows { readers: readers.into_iter(), current: None }))
    }
}

/// Reads ranges of splits, one after the other.
struct RangeRows {
    readers: std::vec::IntoIter<(Box<dyn SourceReader>, Option<Offset>)>,
    current: Option<(Box<dyn SourceReader>, Offset, Option<Offset>)>,
}

impl RangeRows {
    fn read(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let Some((reader, at, limit)) = &mut self.current else {
                match self.readers.next() {
                    None => return Ok(None),
                    Some((reader, limit)) => self.current = Some((reader, Offset::START, limit)),
                }
                continue;
            };
            if limit.is_some_and(|l| *at >= l) {
                self.current = None;
                continue;
            }
            let outcome = reader.read(*at, READ_ROWS, READ_BYTES, *limit)?;
            *at = outcome.next;
            if outcome.state != ReadState::More {
                self.current = None;
            }
            if outcome.batch.num_rows() > 0 {
                return Ok(Some(outcome.batch));
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
    time: Time,
    handles: Mutex<HashMap<RelationId, Arc<SourceHandle>>>,
    /// New sources start paused.
    paused: Mutex<bool>,
}

impl Sources {
    pub fn new(clock: Arc<Clock>, time: Time) -> Sources {
        Sources { clock, time, handles: Mutex::default(), paused: Mutex::new(false) }
    }

    pub fn add(&self, relation: RelationId, source: Box<dyn Source>) {
        let handle = SourceHandle::new(relation, source, *self.paused.lock());
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
            let (clock, time) = (Arc::clone(&self.clock), self.time.clone());
            std::thread::Builder::new()
                .name(format!("source-{relation}"))
                .spawn(move || run(&handle, &clock, &time))
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

fn run(handle: &Arc<SourceHandle>, clock: &Clock, time: &Time) {
    if let Err(error) = read_all(handle, clock, time) {
        warn!(relation = handle.relation.0, %error, "source stopped");
        let consumers: Vec<RelationId> = {
            let mut state = handle.state.lock();
            state.failed = Some(error.clone());
            state.consumers.iter().copied().collect()
        };
        for relation in consumers {
            clock.send(Event::StopJob { relation, error: error.clone() });
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

/// Waits until the source may read.
fn wait_turn(handle: &SourceHandle, clock: &Clock) -> Turn {
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
    while clock.pending_bytes() > PENDING_BYTES_MAX {
        std::thread::sleep(BACK_PRESSURE_WAIT);
        if handle.state.lock().stopped {
            return Turn::Stop;
        }
    }
    turn
}

fn read_all(handle: &Arc<SourceHandle>, clock: &Clock, time: &Time) -> Result<()> {
    let mut open: Vec<OpenSplit> = Vec::new();
    let mut pace = handle.source.pace().map(|rate| Pace { rate, due: 0.0, since_us: time.now_us() });
    loop {
        for split in handle.source.splits()? {
            if !open.iter().any(|o| o.split == split) {
                let reader = handle.source.reader(&split, None)?;
                open.push(OpenSplit { split, reader, at: Offset::START, ended: false });
            }
        }
        let mut more = false;
        for n in 0..open.len() {
            if open[n].ended {
                continue;
            }
            let turn = wait_turn(handle, clock);
            if turn == Turn::Stop {
                return Ok(());
            }
            let due = pace.as_mut().map(|pace| {
                let now_us = time.now_us();
                if turn == Turn::Resume {
                    pace.since_us = now_us;
                }
                pace.due(now_us)
            });
            let OpenSplit { reader, at, ended, .. } = &mut open[n];
            if due.is_some_and(|due| due <= *at) {
                continue;
            }
            let outcome = reader.read(*at, READ_ROWS, READ_BYTES, due)?;
            *at = outcome.next;
            // What ends before its limit has ended; what reaches it waits for the next.
            *ended = outcome.state == ReadState::End && due.is_none_or(|due| outcome.next < due);
            more |= outcome.state == ReadState::More;
            let progress = open
                .iter()
                .map(|o| o.reader.progress())
                .fold(Progress::default(), |a, p| Progress { done: a.done + p.done, total: a.total + p.total });
            let positions: Positions = open.iter().map(|o| (o.split.clone(), o.at)).collect();
            let rows = outcome.batch.num_rows();
            if !outcome.errors.is_empty() {
                metrics::counter!("millstream_source_skipped_rows").increment(outcome.errors.len() as u64);
                for bad in outcome.errors.iter().take(10) {
                    warn!(
                        relation = handle.relation.0,
                        line = bad.line,
                        reason = bad.reason,
                        "malformed record skipped"
                    );
                }
            }
            metrics::counter!("millstream_source_rows").increment(rows as u64);
            let commit = |epoch: Epoch| {
                let mut state = handle.state.lock();
                state.history.insert(epoch, positions);
                state.rows += rows as u64;
                state.skipped += outcome.errors.len() as u64;
                state.progress = progress;
                let changes = ChangeBatch::insert(outcome.batch);
                Ok(if rows > 0 { vec![(handle.relation, changes)] } else { Vec::new() })
            };
            if rows > 0 || !outcome.errors.is_empty() {
                clock.commit(false, commit)?;
            }
        }
        if open.iter().all(|o| o.ended) {
            // An epoch of its own, so that waiting for it is waiting for everything before it.
            clock.commit(true, |epoch| {
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
            handle.wake.wait_for(&mut state, handle.source.poll_interval());
            if state.stopped {
                return Ok(());
            }
        }
    }
}
