//! Event time: the gate before each relation that declares a watermark.
//!
//! Law: the watermark of a relation moves only at a cut, and never back. A row that joins an epoch is late iff its time lies
//! before the watermark of the cut before, less the allowed lateness. So every reader of the relation gets the same rows, and
//! a watermark *w* that a reader is told promises that no row with a time below *w* follows.
//!
//! The watermark is the least, over the splits that have not ended and are not idle, of the newest time seen less the delay.
//! When every split has ended it is [`Gate::END`], or, where more splits may come, the newest time of all less the delay.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::TimestampMicrosecondType;
use catalog::Watermark;
use connect::Split;
use flow::{Error, RelationId, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The gate of one relation.
pub struct Gate {
    pub relation: RelationId,
    pub declared: Watermark,
    /// Whether no split follows when all have ended.
    bounded: bool,
    state: Mutex<State>,
}

struct State {
    splits: BTreeMap<Split, SplitTime>,
    /// As of the last cut.
    watermark_us: i64,
    /// When it last moved, on the machine's clock.
    moved_us: i64,
    late_rows: u64,
}

/// What is known of one split.
struct SplitTime {
    /// The newest event time, at [`Gate::START`] before the first row.
    newest_us: i64,
    /// When a row last came, on the machine's clock; at first, when the split was found.
    active_us: i64,
    idle: bool,
    ended: bool,
    /// Rows that have come to the gate.
    rows: u64,
    /// Which of them were late, by their number from 0, ascending.
    late: Arc<Vec<u64>>,
}

/// Rows that came to the gate together.
pub struct Passed {
    pub on_time: RecordBatch,
    /// The late ones, with the numbers that they have among the rows given, and the watermark that they were measured by.
    pub late: Option<Late>,
    /// How many rows came, and the newest of their times.
    count: u64,
    newest_us: i64,
}

pub struct Late {
    pub rows: RecordBatch,
    pub numbers: Vec<usize>,
    pub watermark_us: i64,
}

/// A gate as a checkpoint keeps it: as of a cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateState {
    pub watermark_us: i64,
    pub late_rows: u64,
    pub splits: Vec<SplitState>,
}

/// One split in a [`GateState`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitState {
    pub split: Split,
    pub newest_us: i64,
    pub idle: bool,
    pub ended: bool,
    pub rows: u64,
    /// Numbers of the late rows.
    pub late: Arc<Vec<u64>>,
}

/// One split, for `SHOW WATERMARKS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitStatus {
    pub split: String,
    /// `None` before the first row.
    pub newest_us: Option<i64>,
    pub active_us: i64,
    pub idle: bool,
    pub ended: bool,
    /// Whether the relation's watermark waits for this split.
    pub holds: bool,
}

/// The gate, for `SHOW WATERMARKS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateStatus {
    /// `None` before the first; [`Gate::END`] after the last row.
    pub watermark_us: Option<i64>,
    pub moved_us: i64,
    pub late_rows: u64,
    pub splits: Vec<SplitStatus>,
}

impl Gate {
    /// The watermark before any row.
    pub const START: i64 = i64::MIN;
    /// The watermark when nothing follows.
    pub const END: i64 = i64::MAX;

    pub fn new(relation: RelationId, declared: Watermark, bounded: bool, now_us: i64) -> Gate {
        let state = State { splits: BTreeMap::new(), watermark_us: Gate::START, moved_us: now_us, late_rows: 0 };
        Gate { relation, declared, bounded, state: Mutex::new(state) }
    }

    /// As of the last cut, if no row was admitted since.
    pub fn state(&self) -> GateState {
        let state = self.state.lock();
        let splits = state.splits.iter().map(|(split, time)| SplitState {
            split: split.clone(),
            newest_us: time.newest_us,
            idle: time.idle,
            ended: time.ended,
            rows: time.rows,
            late: Arc::clone(&time.late),
        });
        GateState { watermark_us: state.watermark_us, late_rows: state.late_rows, splits: splits.collect() }
    }

    /// Goes on from a checkpoint. The machine's clock begins anew for every split.
    pub fn restore(&self, mut kept: GateState, now_us: i64) {
        if checkpoint::planted::is("watermark") {
            kept.watermark_us = Gate::START;
            kept.splits.iter_mut().for_each(|split| split.newest_us = Gate::START);
        }
        let mut state = self.state.lock();
        state.watermark_us = kept.watermark_us;
        state.moved_us = now_us;
        state.late_rows = kept.late_rows;
        let splits = kept.splits.into_iter().map(|s| {
            let SplitState { split, newest_us, idle, ended, rows, late } = s;
            (split, SplitTime { newest_us, active_us: now_us, idle, ended, rows, late })
        });
        state.splits = splits.collect();
    }

    /// Lets the watermark wait for a split from now on.
    pub fn add_split(&self, split: &Split, now_us: i64) {
        self.state.lock().splits.entry(split.clone()).or_insert_with(|| SplitTime {
            newest_us: Gate::START,
            active_us: now_us,
            idle: false,
            ended: false,
            rows: 0,
            late: Arc::default(),
        });
    }

    /// Nothing follows in this split.
    pub fn end_split(&self, split: &Split) {
        if let Some(time) = self.state.lock().splits.get_mut(split) {
            time.ended = true;
        }
    }

    /// Which of the next rows are on time, in the epoch that is open. A row without event time never is.
    pub fn measure(&self, rows: RecordBatch) -> Result<Passed> {
        let times = rows.columns().get(self.declared.column);
        let times = times.and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
        let times = times.ok_or_else(|| Error::internal("a watermark over a column that is no timestamp"))?;
        let watermark_us = self.state.lock().watermark_us;
        let limit_us = self.promised(watermark_us);
        let (count, newest_us) = (rows.num_rows() as u64, arrow::compute::max(times).unwrap_or(Gate::START));
        let oldest = arrow::compute::min(times).unwrap_or(Gate::START);
        if times.null_count() == 0 && oldest >= limit_us {
            return Ok(Passed { on_time: rows, late: None, count, newest_us });
        }
        let on_time: BooleanArray =
            (0..times.len()).map(|n| Some(times.is_valid(n) && times.value(n) >= limit_us)).collect();
        let numbers: Vec<usize> = (0..times.len()).filter(|n| !on_time.value(*n)).collect();
        let late = filter_record_batch(&rows, &arrow::compute::not(&on_time)?)?;
        let on_time = filter_record_batch(&rows, &on_time)?;
        Ok(Passed { on_time, late: Some(Late { rows: late, numbers, watermark_us }), count, newest_us })
    }

    /// Counts rows of a split as come, in the epoch in which they were measured. Returns the number in the split of the
    /// first of them.
    pub fn admit(&self, split: &Split, passed: &Passed, now_us: i64) -> Result<u64> {
        let mut state = self.state.lock();
        let State { splits, late_rows, .. } = &mut *state;
        let Some(time) = splits.get_mut(split) else {
            return Err(Error::internal(format!("rows of the unknown split \"{}\"", split.0)));
        };
        let first = time.rows;
        time.rows += passed.count;
        time.active_us = now_us;
        time.idle = false;
        time.newest_us = time.newest_us.max(passed.newest_us);
        if let Some(late) = &passed.late {
            Arc::make_mut(&mut time.late).extend(late.numbers.iter().map(|n| first + *n as u64));
            *late_rows += late.numbers.len() as u64;
        }
        Ok(first)
    }

    /// Rows of a split that have come so far.
    pub fn rows(&self, split: &Split) -> u64 {
        self.state.lock().splits.get(split).map_or(0, |time| time.rows)
    }

    /// Moves the watermark at a cut. Returns what readers are promised from then on.
    pub fn advance(&self, now_us: i64) -> i64 {
        let mut state = self.state.lock();
        if let Some(timeout_us) = self.declared.idle_timeout_us {
            for time in state.splits.values_mut() {
                time.idle |= now_us.saturating_sub(time.active_us) >= timeout_us;
            }
        }
        let open = || state.splits.values().filter(|t| !t.ended);
        let next = if state.splits.is_empty() {
            Gate::START
        } else if open().next().is_none() {
            let newest = state.splits.values().map(|t| t.newest_us).max();
            newest.filter(|_| !self.bounded).map_or(Gate::END, |t| t.saturating_sub(self.declared.delay_us))
        } else {
            let waited = open().filter(|t| !t.idle).map(|t| t.newest_us);
            waited.min().map_or(Gate::START, |t| t.saturating_sub(self.declared.delay_us))
        };
        if next > state.watermark_us {
            state.watermark_us = next;
            state.moved_us = now_us;
        }
        self.promised(state.watermark_us)
    }

    /// When a split falls idle next, on the machine's clock.
    pub fn next_idle_us(&self) -> Option<i64> {
        let timeout_us = self.declared.idle_timeout_us?;
        let state = self.state.lock();
        let waited = state.splits.values().filter(|t| !t.ended && !t.idle);
        waited.map(|t| t.active_us.saturating_add(timeout_us)).min()
    }

    /// How far the rows have come in event time, in microseconds: the newest time of the slowest split that has begun and is neither
    /// idle nor at its end. `None`: there is no such split.
    pub fn reached_us(&self) -> Option<i64> {
        let state = self.state.lock();
        let waited = state.splits.values().filter(|t| !t.ended && !t.idle && t.newest_us != Gate::START);
        waited.map(|t| t.newest_us).min()
    }

    fn promised(&self, watermark_us: i64) -> i64 {
        match watermark_us {
            Gate::START | Gate::END => watermark_us,
            // A watermark in between must stay one.
            w => w.saturating_sub(self.declared.allowed_lateness_us).max(Gate::START + 1),
        }
    }

    /// Which rows of each split were late, by their number from 0.
    pub fn late_rows(&self) -> BTreeMap<Split, Arc<Vec<u64>>> {
        self.state.lock().splits.iter().map(|(split, time)| (split.clone(), Arc::clone(&time.late))).collect()
    }

    pub fn status(&self) -> GateStatus {
        let state = self.state.lock();
        let seen = |us: i64| (us != Gate::START).then_some(us);
        let slowest = state.splits.values().filter(|t| !t.ended && !t.idle).map(|t| t.newest_us).min();
        let splits = state.splits.iter().map(|(split, time)| SplitStatus {
            split: split.0.clone(),
            newest_us: seen(time.newest_us),
            active_us: time.active_us,
            idle: time.idle && !time.ended,
            ended: time.ended,
            holds: !time.ended && !time.idle && Some(time.newest_us) == slowest,
        });
        GateStatus {
            watermark_us: seen(state.watermark_us),
            moved_us: state.moved_us,
            late_rows: state.late_rows,
            splits: splits.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, TimestampMicrosecondArray};

    use super::*;

    fn gate(delay_us: i64, idle_timeout_us: Option<i64>, allowed_lateness_us: i64) -> Gate {
        let declared =
            Watermark { column: 0, expression: String::new(), delay_us, idle_timeout_us, allowed_lateness_us };
        Gate::new(RelationId(1), declared, true, 0)
    }

    fn rows(times: &[Option<i64>]) -> RecordBatch {
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(times.to_vec()));
        RecordBatch::try_from_iter_with_nullable([("ts", times, true)]).unwrap()
    }

    fn split(name: &str) -> Split {
        Split(name.into())
    }

    fn pass(gate: &Gate, from: &str, rows: RecordBatch, now_us: i64) -> Passed {
        let passed = gate.measure(rows).unwrap();
        gate.admit(&split(from), &passed, now_us).unwrap();
        passed
    }

    fn late(gate: &Gate, from: &str, times: &[i64]) -> Vec<usize> {
        let times: Vec<Option<i64>> = times.iter().copied().map(Some).collect();
        let passed = pass(gate, from, rows(&times), 0);
        let late = passed.late.map(|l| l.numbers).unwrap_or_default();
        assert_eq!(passed.on_time.num_rows() + late.len(), times.len());
        late
    }

    #[test]
    fn a_row_is_measured_by_the_cut_before_and_not_by_its_neighbours() {
        let gate = gate(10, None, 0);
        gate.add_split(&split("a"), 0);
        assert!(late(&gate, "a", &[100, 5, 300]).is_empty());
        assert!(late(&gate, "a", &[1]).is_empty());
        assert_eq!(gate.advance(0), 290);
        assert_eq!(late(&gate, "a", &[289, 290, 1000, 0]), [0, 3]);
        assert_eq!(gate.advance(0), 990);
        assert_eq!(*gate.late_rows()[&split("a")], [4, 7]);
        assert_eq!(gate.status().late_rows, 2);
    }

    #[test]
    fn the_slowest_split_holds_the_watermark_until_it_is_idle_or_ends() {
        let gate = gate(0, Some(1_000), 0);
        gate.add_split(&split("a"), 0);
        gate.add_split(&split("b"), 0);
        late(&gate, "a", &[500]);
        assert_eq!(gate.advance(10), Gate::START);
        late(&gate, "b", &[100]);
        assert_eq!(gate.advance(10), 100);
        let holds: Vec<bool> = gate.status().splits.iter().map(|s| s.holds).collect();
        assert_eq!(holds, [false, true]);
        assert_eq!(gate.next_idle_us(), Some(1_000));
        pass(&gate, "a", rows(&[Some(600)]), 900);
        assert_eq!(gate.advance(1_000), 600);
        // It never moves back, whoever comes again.
        let again = pass(&gate, "b", rows(&[Some(200), Some(700)]), 1_000);
        assert_eq!(again.late.unwrap().numbers, [0]);
        assert_eq!(gate.advance(1_000), 600);
        gate.end_split(&split("a"));
        assert_eq!(gate.advance(1_000), 700);
        gate.end_split(&split("b"));
        assert_eq!(gate.advance(1_000), Gate::END);
        assert_eq!(gate.next_idle_us(), None);
    }

    #[test]
    fn splits_that_have_ended_hold_nothing_and_others_may_follow() {
        let mut gate = gate(10, None, 0);
        gate.bounded = false;
        gate.add_split(&split("a"), 0);
        gate.add_split(&split("b"), 0);
        late(&gate, "a", &[100]);
        gate.end_split(&split("a"));
        assert_eq!(gate.advance(0), Gate::START);
        late(&gate, "b", &[500]);
        assert_eq!(gate.advance(0), 490);
        gate.end_split(&split("b"));
        assert_eq!(gate.advance(0), 490);
        // A new split waits for its first row, and is measured as any other.
        gate.add_split(&split("c"), 0);
        assert_eq!(gate.advance(0), 490);
        assert_eq!(late(&gate, "c", &[489, 700]), [0]);
        assert_eq!(gate.advance(0), 690);
        gate.end_split(&split("c"));
        assert_eq!(gate.advance(0), 690);
    }

    #[test]
    fn allowed_lateness_moves_the_promise_and_not_the_watermark() {
        let gate = gate(10, None, 50);
        gate.add_split(&split("a"), 0);
        late(&gate, "a", &[1_000]);
        assert_eq!(gate.advance(0), 940);
        assert_eq!(gate.status().watermark_us, Some(990));
        assert_eq!(late(&gate, "a", &[940, 939]), [1]);
    }

    #[test]
    fn a_row_without_a_time_is_late_and_times_at_the_ends_do_not_overflow() {
        let gate = gate(i64::MAX, None, i64::MAX);
        gate.add_split(&split("a"), 0);
        let passed = pass(&gate, "a", rows(&[None, Some(i64::MIN), Some(i64::MAX)]), 0);
        assert_eq!(passed.late.unwrap().numbers, [0]);
        assert!(gate.advance(0) > Gate::START);
        assert!(late(&gate, "a", &[i64::MAX]).is_empty());
    }
}
