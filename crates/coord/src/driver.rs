//! The service that reads one source: at its pace, only the columns that somebody wants, into the epoch that is open.
//!
//! Columns that no job reads are filled with nothing, so that rows keep the relation's schema; no job looks at them. A job that
//! wants more columns says so before it is deployed, and rows that were read before that are read again.

mod ahead;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, SchemaRef};
use connect::{BadRecord, Offset, Progress, ReadOutcome, ReadState, SourceReader, Split};
use flow::{ChangeBatch, Epoch, Error, RelationId, Result};
use runtime::slot::Shared;
use runtime::{Service, Stepped};
use tracing::{info, warn};

use crate::clock::{Clock, Event, SPREAD_MAX};
use crate::driver::ahead::{Ahead, Asked, Portion};
use crate::execution::Execution;
use crate::gate::Late;
use crate::sides;
use crate::sources::{Handles, NO_BACKLOG, Positions, READ_BYTES, READ_ROWS, SourceHandle};

/// How long a reader that must wait for the flow sleeps at a time.
const BACK_PRESSURE_WAIT: Duration = Duration::from_millis(1);
/// Late rows are shown whole: after one, all columns are read for so many portions.
const WHOLE_PORTIONS: u32 = 64;

/// A split that was found.
struct OpenSplit {
    split: Split,
    /// None before its turn, after its end, and while the split is read ahead.
    reader: Option<Box<dyn SourceReader>>,
    /// What the reader decodes.
    columns: Vec<usize>,
    at: Offset,
    /// There may be more to read at once.
    busy: bool,
    ended: bool,
    /// When it was last read.
    progress: Progress,
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

/// Keeps a source to its rate limit: a bucket that fills with the time and holds little, so that rows come evenly and a
/// stall is not made up for.
struct Bucket {
    rate: u64,
    rows: f64,
    since_us: i64,
}

impl Bucket {
    /// The most that is let through at once.
    const FULL_US: f64 = 100_000.0;
    /// What is waited for when the bucket is empty.
    const PORTION_US: f64 = 10_000.0;

    fn new(rate: u64, now_us: i64) -> Bucket {
        Bucket { rate, rows: 0.0, since_us: now_us }
    }

    fn worth(&self, us: f64) -> f64 {
        (self.rate as f64 * us / 1e6).max(1.0)
    }

    /// Rows that may be read now; 0: first [`wait`](Self::wait).
    fn ready(&mut self, now_us: i64) -> usize {
        let elapsed_us = now_us.saturating_sub(self.since_us).max(0);
        self.since_us = now_us;
        self.rows = (self.rows + elapsed_us as f64 * self.rate as f64 / 1e6).min(self.worth(Bucket::FULL_US));
        if self.rows < self.worth(Bucket::PORTION_US) { 0 } else { self.rows as usize }
    }

    fn take(&mut self, rows: usize) {
        self.rows -= rows as f64;
    }

    /// How long until a portion is ready.
    fn wait(&self) -> Duration {
        let missing = (self.worth(Bucket::PORTION_US) - self.rows).max(0.0);
        Duration::from_micros((missing * 1e6 / self.rate as f64).ceil() as u64)
    }
}

/// Reads one source for as long as it lives.
pub(crate) struct Driver {
    handle: Arc<SourceHandle>,
    /// All sources.
    others: Handles,
    clock: Arc<Clock>,
    shared: Shared,
    execution: Arc<dyn Execution>,
    /// How many threads may read ahead, and these, once there are several splits.
    threads: usize,
    ahead: Option<Ahead>,
    /// Rows of a portion.
    rows: usize,
    /// A column of nothing for each column of the source, as long as a portion.
    nothing: Vec<ArrayRef>,
    /// Portions for which all columns are read.
    whole: u32,
    open: Vec<OpenSplit>,
    found: HashSet<Split>,
    /// When new splits were looked for last.
    looked_us: Option<i64>,
    bucket: Option<Bucket>,
    /// Absent for a source without one, and before the first split was looked for.
    pace: Option<Pace>,
    /// Under a rate limit the splits take turns in being the first.
    round: usize,
    turn: Option<Turn>,
    /// Nobody has wanted rows since the last portion.
    unwanted: bool,
    waits: Waits,
}

/// Where the reader is in a round over all splits.
#[derive(Clone, Copy)]
struct Turn {
    next: usize,
    /// There is more to read at once.
    more: bool,
    /// Something was read: a pause or a rate may hold all who could.
    read: bool,
    /// Splits with more to read at once.
    busy: usize,
}

/// What a reader that found nothing to do waits for.
#[derive(Clone, Copy)]
enum Waits {
    Nothing,
    /// Somebody who wants rows.
    Readers,
    /// Room in the flow.
    Flow,
    /// A portion that is read ahead.
    Ahead,
    /// New rows, or rows that are due.
    Rows,
}

impl Service for Driver {
    fn name(&self) -> String {
        format!("source-{}", self.handle.relation)
    }

    fn step(&mut self) -> Stepped {
        self.try_step().unwrap_or_else(|error| {
            self.fail(&error);
            Stepped::Ended
        })
    }

    fn wait(&mut self) {
        let handle = Arc::clone(&self.handle);
        let mut state = handle.state.lock();
        match self.waits {
            Waits::Nothing => {}
            Waits::Readers => {
                while !state.stopped && (state.paused || state.consumers.is_empty()) {
                    handle.wake.wait(&mut state);
                }
            }
            Waits::Flow => {
                drop(state);
                std::thread::sleep(BACK_PRESSURE_WAIT);
            }
            Waits::Ahead => {
                drop(state);
                self.ahead.iter().for_each(Ahead::wait);
            }
            Waits::Rows if state.stopped => {}
            Waits::Rows => {
                let poll = handle.source.poll_interval();
                let wait = match &self.bucket {
                    Some(bucket) if state.held.is_none() => bucket.wait().min(poll),
                    _ => poll,
                };
                handle.wake.wait_for(&mut state, wait);
            }
        }
    }
}

impl Driver {
    /// `threads`: how many may read its splits side by side.
    pub(crate) fn new(
        handle: Arc<SourceHandle>,
        others: Handles,
        clock: Arc<Clock>,
        shared: Shared,
        execution: Arc<dyn Execution>,
        threads: usize,
    ) -> Result<Driver> {
        let fields = handle.source.schema().fields();
        let rows = READ_ROWS * threads.clamp(1, SPREAD_MAX);
        let nothing = fields.iter().map(|f| nothing(f.data_type(), f.is_nullable(), rows)).collect::<Result<_>>()?;
        Ok(Driver {
            handle,
            others,
            clock,
            shared,
            execution,
            threads,
            ahead: None,
            rows,
            nothing,
            whole: 0,
            open: Vec::new(),
            found: HashSet::new(),
            looked_us: None,
            bucket: None,
            pace: None,
            round: 0,
            turn: None,
            unwanted: false,
            waits: Waits::Nothing,
        })
    }

    /// Tells the other sources how far this one is, if there is more of it to read at once.
    fn note_backlog(&self, more: bool) {
        let reached_us = self.handle.gate.as_ref().filter(|_| more).and_then(|gate| gate.reached_us());
        self.handle.backlog_us.store(reached_us.unwrap_or(NO_BACKLOG), Ordering::Relaxed);
    }

    fn fail(&self, error: &Error) {
        self.note_backlog(false);
        let handle = &self.handle;
        warn!(relation = handle.relation.0, %error, "source stopped");
        let mut consumers: Vec<RelationId> = {
            let mut state = handle.state.lock();
            state.failed = Some(error.clone());
            state.consumers.iter().copied().collect()
        };
        consumers.sort_unstable();
        if self.clock.durability().failed.is_some() {
            // Nothing comes any more until the server starts again; what is there stays readable.
            return;
        }
        for relation in consumers {
            self.clock.send(Event::StopJob { relation, error: error.clone() });
        }
    }

    /// The columns to read now, and the version of the wishes that they come from.
    fn columns(&self) -> (Vec<usize>, u64) {
        let state = self.handle.state.lock();
        let mut columns: Vec<usize> = match self.whole {
            0 => state.wanted.values().flatten().copied().collect(),
            _ => (0..self.nothing.len()).collect(),
        };
        columns.extend(self.handle.gate.as_ref().map(|gate| gate.declared.column));
        columns.sort_unstable();
        columns.dedup();
        (columns, state.wishes)
    }

    /// Looks for splits, reads a portion of one, or finds that there is nothing to do.
    fn try_step(&mut self) -> Result<Stepped> {
        if self.handle.state.lock().stopped {
            return Ok(Stepped::Ended);
        }
        match self.turn {
            None => {
                self.look_for_splits()?;
                let busy = self.open.iter().filter(|o| o.busy).count();
                self.round += 1;
                self.turn = Some(Turn { next: 0, more: false, read: false, busy });
                Ok(Stepped::Worked)
            }
            Some(turn) if turn.next < self.open.len() => self.read_split(turn),
            Some(turn) => self.end_round(turn),
        }
    }

    fn look_for_splits(&mut self) -> Result<()> {
        let (handle, source) = (Arc::clone(&self.handle), Arc::clone(&self.handle.source));
        let now_us = self.clock.time.now_us();
        let poll_us = source.poll_interval().as_micros() as i64;
        // A paused source has the splits that it had.
        let grows = !source.bounded() && handle.state.lock().held.is_none();
        if self.looked_us.is_some_and(|at: i64| !grows || now_us.saturating_sub(at) < poll_us) {
            return Ok(());
        }
        // Where a checkpoint has left the splits.
        let kept = handle.state.lock().history.last_key_value().map(|(_, p)| p.clone()).unwrap_or_default();
        if self.looked_us.is_none() {
            let paced = kept.values().max().map_or(0.0, |at| at.0 as f64);
            self.pace = source.pace().map(|rate| Pace { rate, due: paced, since_us: now_us });
        }
        self.looked_us = Some(now_us);
        for split in source.splits()? {
            if self.found.contains(&split) {
                continue;
            }
            if let Some(gate) = &handle.gate {
                gate.add_split(&split, now_us);
            }
            self.found.insert(split.clone());
            let progress = Progress { done: 0, total: source.size(&split) };
            let at = kept.get(&split).copied().unwrap_or(Offset::START);
            let (columns, reader) = (Vec::new(), None);
            self.open.push(OpenSplit { split, reader, columns, at, busy: false, ended: false, progress });
        }
        Ok(())
    }

    fn idle(&mut self, waits: Waits) -> Result<Stepped> {
        if matches!(waits, Waits::Readers | Waits::Rows) {
            self.note_backlog(false);
        }
        self.waits = waits;
        Ok(Stepped::Idle)
    }

    /// Reads a portion of the split whose turn it is.
    fn read_split(&mut self, mut turn: Turn) -> Result<Stepped> {
        let (handle, source) = (Arc::clone(&self.handle), Arc::clone(&self.handle.source));
        let n = if self.bucket.is_some() { (turn.next + self.round) % self.open.len() } else { turn.next };
        turn.next += 1;
        if self.open[n].ended {
            self.turn = Some(turn);
            return Ok(Stepped::Worked);
        }
        let asked = self.ahead.as_ref().is_some_and(|ahead| ahead.is_asked(n));
        if self.open[n].reader.is_none() && !asked && turn.busy >= source.turns() {
            turn.more = true;
            self.turn = Some(turn);
            return Ok(Stepped::Worked);
        }
        let (wanted, behind) = {
            let mut state = handle.state.lock();
            state.backpressured = self.clock.are_behind(&state.consumers);
            (!state.paused && !state.consumers.is_empty(), state.backpressured)
        };
        if !wanted {
            self.unwanted = true;
            return self.idle(Waits::Readers);
        }
        if behind || self.clock.is_full() || handle.is_ahead(&self.others) {
            return self.idle(Waits::Flow);
        }
        let asked = match &mut self.ahead {
            Some(ahead) => ahead.take(n),
            None => Asked::Nothing,
        };
        if let Asked::Pending = asked {
            return self.idle(Waits::Ahead);
        }
        let resumes = std::mem::take(&mut self.unwanted);
        self.turn = Some(turn);
        let now_us = self.clock.time.now_us();
        let due = self.pace.as_mut().map(|pace| {
            if resumes {
                pace.since_us = now_us;
            }
            pace.due(now_us)
        });
        let (held, rate) = {
            let state = handle.state.lock();
            (state.held.clone(), state.rate_limit)
        };
        let held = held.and_then(|held| SourceHandle::limit(&held, &self.open[n].split));
        if let (Some(pace), true) = (&mut self.pace, held.is_some_and(|held| held <= self.open[n].at)) {
            // What would have become due in a pause does not.
            pace.due = pace.due.min(self.open[n].at.0 as f64);
        }
        let limit = due.into_iter().chain(held).min();
        if limit.is_some() || rate.is_some() {
            self.note_backlog(false);
        }
        if limit.is_some_and(|limit| limit <= self.open[n].at) {
            return Ok(Stepped::Worked);
        }
        if self.bucket.as_ref().map(|b| b.rate) != rate {
            self.bucket = rate.map(|rate| Bucket::new(rate, now_us));
        }
        let rows = match &mut self.bucket {
            None => self.rows,
            Some(bucket) => bucket.ready(now_us).min(self.rows),
        };
        if rows == 0 {
            return Ok(Stepped::Worked);
        }
        let (columns, wishes) = self.columns();
        let free = limit.is_none() && rate.is_none();
        let split = &mut self.open[n];
        let from = split.at;
        let read = match asked {
            Asked::Here(portion, outcome)
                if free && portion.from == from && portion.wishes == wishes && portion.columns == columns =>
            {
                split.columns = portion.columns;
                split.reader = Some(portion.reader);
                Some(outcome?)
            }
            Asked::Here(..) | Asked::Pending | Asked::Nothing => None,
        };
        let reader = match &mut split.reader {
            Some(reader) if split.columns == columns => reader,
            other => {
                split.columns = columns;
                other.insert(source.reader(&split.split, Some(&split.columns))?)
            }
        };
        let outcome = match read {
            Some(outcome) => outcome,
            None => reader.read(from, rows, READ_BYTES, limit)?,
        };
        turn.read = true;
        split.progress = reader.progress();
        turn.busy -= usize::from(split.busy);
        split.busy = outcome.state == ReadState::More;
        split.at = outcome.next;
        // What ends before its limit has ended; what reaches it waits for the next.
        split.ended = outcome.state == ReadState::End && limit.is_none_or(|limit| outcome.next < limit);
        if let Some(bucket) = &mut self.bucket {
            bucket.take(outcome.batch.num_rows() + outcome.errors.len());
        }
        if !self.deliver(n, from, outcome, wishes)? {
            let split = &mut self.open[n];
            (split.at, split.ended, split.busy) = (from, false, true);
        }
        let split = &mut self.open[n];
        turn.busy += usize::from(split.busy);
        turn.more |= split.busy;
        if split.ended {
            split.reader = None;
        }
        if free {
            self.note_backlog(self.open.iter().any(|split| split.busy));
            self.read_ahead(turn.next)?;
        }
        self.turn = Some(turn);
        Ok(Stepped::Worked)
    }

    /// Lets the splits whose turns come next be read meanwhile, if they have more.
    fn read_ahead(&mut self, next: usize) -> Result<()> {
        if self.threads < 2 || self.open.len() < 2 {
            return Ok(());
        }
        let (columns, wishes) = self.columns();
        let ahead = match &mut self.ahead {
            Some(ahead) => ahead,
            none => none.insert(Ahead::start(&*self.execution, self.handle.relation, self.threads, self.rows)?),
        };
        for n in (next..next + self.open.len()).take(ahead.reach()) {
            let split = n % self.open.len();
            let open = &mut self.open[split];
            if !ahead.has_room() {
                break;
            }
            if open.busy
                && open.columns == columns
                && let Some(reader) = open.reader.take()
            {
                ahead.ask(Portion { split, reader, columns: columns.clone(), wishes, from: open.at });
            }
        }
        Ok(())
    }

    /// Every split has had its turn.
    fn end_round(&mut self, turn: Turn) -> Result<Stepped> {
        let handle = Arc::clone(&self.handle);
        self.turn = None;
        if self.open.iter().all(|o| o.ended) {
            self.note_backlog(false);
        }
        if handle.source.bounded() && self.open.iter().all(|o| o.ended) {
            // An epoch of its own, so that waiting for it is waiting for everything before it.
            self.clock.commit(true, |epoch| {
                handle.state.lock().ended = Some(epoch);
                Ok(Vec::new())
            })?;
            info!(relation = handle.relation.0, rows = handle.state.lock().rows, "source has ended");
            return Ok(Stepped::Ended);
        }
        if turn.more && turn.read { Ok(Stepped::Worked) } else { self.idle(Waits::Rows) }
    }

    /// Hands what was read of split `n` from `from` on to the flow, in the epoch that is open. False: a job has wished for
    /// more columns since, and it must be read again.
    fn deliver(&mut self, n: usize, from: Offset, outcome: ReadOutcome, wishes: u64) -> Result<bool> {
        let handle = Arc::clone(&self.handle);
        self.whole = self.whole.saturating_sub(1);
        let (open, split) = (&self.open, &self.open[n]);
        let (rows, errors) = (outcome.batch.num_rows() as u64, outcome.errors.len() as u64);
        if rows == 0 && errors == 0 {
            if let (true, Some(gate)) = (split.ended, &handle.gate) {
                gate.end_split(&split.split);
                // The watermark may move without a row.
                self.clock.commit(false, |_| Ok(Vec::new()))?;
            }
            return Ok(true);
        }
        let progress = open
            .iter()
            .map(|o| o.progress)
            .fold(Progress::default(), |a, p| Progress { done: a.done + p.done, total: a.total + p.total });
        let positions: Positions = open.iter().map(|o| (o.split.clone(), o.at)).collect();
        let batch = self.widened(handle.source.schema(), &split.columns, &outcome.batch)?;
        let mut sides = handle.sides.lock();
        let (mut delivered, mut late_came) = (true, false);
        let this = &*self;
        this.clock.commit(false, |epoch| {
            let mut state = handle.state.lock();
            let beyond =
                |held: &Arc<Positions>| SourceHandle::limit(held, &split.split).is_some_and(|l| outcome.next > l);
            if state.wishes != wishes || state.held.as_ref().is_some_and(beyond) {
                delivered = false;
                return Ok(Vec::new());
            }
            let mut inputs = Vec::new();
            let shown = handle.source.split_text(&split.split);
            let on_time = match &handle.gate {
                None => batch,
                Some(gate) => {
                    let passed = gate.measure(batch)?;
                    let first_row = gate.admit(&split.split, &passed, this.clock.time.now_us())?;
                    if split.ended {
                        gate.end_split(&split.split);
                    }
                    if let (Some(mut late), Some(side)) = (passed.late, &mut sides.late) {
                        if split.columns.len() < this.nothing.len() {
                            late = this.whole_rows(&split.split, from, outcome.next, late)?;
                        }
                        late_came = true;
                        let rows = sides::late_rows(&side.table, &late, &shown, first_row)?;
                        inputs.push((side.table.relation, side.add(rows, epoch, &this.shared.budget)?));
                    }
                    passed.on_time
                }
            };
            if let (false, Some(side)) = (outcome.errors.is_empty(), &mut sides.errors) {
                let rows = sides::error_rows(&side.table, &outcome.errors, &shown)?;
                inputs.push((side.table.relation, side.add(rows, epoch, &this.shared.budget)?));
            }
            state.history.insert(epoch, positions);
            state.rows += rows;
            state.skipped += errors;
            state.progress = progress;
            if on_time.num_rows() > 0 {
                inputs.push((handle.relation, ChangeBatch::insert(on_time)));
            }
            Ok(inputs)
        })?;
        if late_came {
            self.whole = WHOLE_PORTIONS;
        }
        if delivered {
            metrics::counter!("millstream_source_rows").increment(rows);
            self.tell(&outcome.errors);
        }
        let floor = Epoch(self.shared.floor.load(Ordering::Acquire));
        for side in [&sides.late, &sides.errors].into_iter().flatten() {
            side.maintain(floor, &self.shared.budget)?;
        }
        Ok(delivered)
    }

    /// `batch`, which has `columns` of the source, in the source's schema.
    fn widened(&self, schema: &SchemaRef, columns: &[usize], batch: &RecordBatch) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        if columns.len() == self.nothing.len() {
            return Ok(batch.clone());
        }
        let mut wide = Vec::with_capacity(self.nothing.len());
        for (column, (nothing, field)) in self.nothing.iter().zip(schema.fields()).enumerate() {
            wide.push(match columns.iter().position(|c| *c == column) {
                Some(at) => Arc::clone(batch.column(at)),
                None if rows <= nothing.len() => nothing.slice(0, rows),
                None => new_null_array(field.data_type(), rows),
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(schema), wide, &options)?)
    }

    /// The late rows with all of their columns: their range is read once more.
    fn whole_rows(&self, split: &Split, from: Offset, until: Offset, late: Late) -> Result<Late> {
        let mut reader = self.handle.source.reader(split, None)?;
        let (mut at, mut batches) = (from, Vec::new());
        while at < until {
            let outcome = reader.read(at, self.rows, READ_BYTES, Some(until))?;
            batches.push(outcome.batch);
            if outcome.next <= at {
                break;
            }
            at = outcome.next;
        }
        let rows = concat_batches(self.handle.source.schema(), &batches)?;
        let numbers = arrow::array::UInt32Array::from_iter_values(late.numbers.iter().map(|n| *n as u32));
        let rows = arrow::compute::take_record_batch(&rows, &numbers)
            .map_err(|_| Error::internal("a range of a source gave other rows when it was read again"))?;
        Ok(Late { rows, ..late })
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

/// Values that nobody looks at: NULL, or zero where the column takes no NULL.
fn nothing(data_type: &DataType, nullable: bool, rows: usize) -> Result<ArrayRef> {
    let nulls = new_null_array(data_type, rows);
    if nullable {
        return Ok(nulls);
    }
    let zeros = nulls.to_data().into_builder().nulls(None).build()?;
    Ok(arrow::array::make_array(zeros))
}
