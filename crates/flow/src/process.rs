//! Process functions: the one interface that every operator, built in or written by a user, implements.

use arrow::datatypes::DataType;

use crate::change::ChangeBatch;
use crate::error::Result;
use crate::ids::Epoch;

/// One keyed state of a process function, as `EXPLAIN (LAYER process)` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct StateDeclaration {
    pub name: &'static str,
    /// Types of the key columns; empty for state that is one value per slot.
    pub key: Vec<DataType>,
    /// What is kept per key, in words: `rows of the left input`, `sum, count`.
    pub holds: String,
    /// Whether anything bounds the number of keys, and what.
    pub bounded_by: Option<String>,
}

/// What a process function keeps and waits for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declaration {
    pub states: Vec<StateDeclaration>,
    /// Whether the function ever sets a timer.
    pub timers: bool,
}

/// The watermark of an input that promises nothing.
pub const WATERMARK_START: i64 = i64::MIN;
/// The watermark of an input that has ended.
pub const WATERMARK_END: i64 = i64::MAX;

/// Takes the output of a process function.
pub trait Collector {
    /// Sends `batch` to everything downstream. Empty batches are dropped.
    fn emit(&mut self, batch: ChangeBatch);
}

impl Collector for Vec<ChangeBatch> {
    fn emit(&mut self, batch: ChangeBatch) {
        if batch.num_rows() > 0 {
            self.push(batch);
        }
    }
}

/// The batch (columnar) form of a process function: one instance per slot, owning the state of that slot's keys.
///
/// The runtime calls [`process`](Self::process) any number of times, then [`finish_epoch`](Self::finish_epoch) once, and
/// so on; every call of one instance comes from one thread. All rows of an epoch arrive before its `finish_epoch`, from
/// every upstream slot. A function may emit in either call; what it emits in `finish_epoch(e)` still belongs to epoch `e`.
///
/// A function that returns an error is never called again: the job stops with that error.
pub trait ProcessFunction: Send {
    /// What the function keeps and waits for; constant over its life.
    fn declare(&self) -> Declaration;

    /// Takes changes from input `port` (0-based, in the order of the task's inputs). The batch is never empty and has the
    /// schema that the plan declares for that input.
    fn process(&mut self, port: usize, batch: ChangeBatch, out: &mut dyn Collector) -> Result<()>;

    /// All input of `epoch` has been processed: emit what waited for the epoch's end. Dirty keys are emitted here, once,
    /// as old → new, and not at all when old equals new.
    fn finish_epoch(&mut self, epoch: Epoch, out: &mut dyn Collector) -> Result<()>;

    /// What input `port` is promised from the end of this epoch on: no row with a time below `watermark_us` follows, and
    /// none at all after [`WATERMARK_END`]. Called before [`finish_epoch`](Self::finish_epoch), only when the promise has
    /// grown.
    fn on_watermark(&mut self, _port: usize, _watermark_us: i64) -> Result<()> {
        Ok(())
    }

    /// The earliest moment of processing time that this instance waits for, in microseconds since the Unix epoch. An epoch
    /// is opened when it is due.
    fn next_timer(&self) -> Option<i64> {
        None
    }

    /// The processing time of the epoch, equal for all functions and slots: when its input was complete. Called before
    /// [`finish_epoch`](Self::finish_epoch) of every epoch, after its rows. Later epochs have later times; the portions of what
    /// a job reads when it starts all have that of its start.
    fn on_time(&mut self, _now_us: i64) -> Result<()> {
        Ok(())
    }

    /// Bytes of state held, for the memory budget; must be cheap (kept up to date, not counted on demand).
    fn state_bytes(&self) -> usize {
        0
    }

    /// Rows of state read or written since the start, for the proof that a change costs work in proportion to itself.
    fn rows_touched(&self) -> u64 {
        0
    }
}
