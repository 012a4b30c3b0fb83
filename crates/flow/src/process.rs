//! Process functions: the one interface that every operator, built in or written by a user, implements.

use std::borrow::Cow;

use arrow::datatypes::{DataType, SchemaRef};

use crate::change::ChangeBatch;
use crate::error::{Error, Result};
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

/// One part of a function's state as checkpoints keep it: a table whose rows carry typed columns of the state.
///
/// The content of a part is what the changes of all checkpoints so far come to, see [`PartKind`]. Its shape belongs to the
/// format of checkpoints: a part that changes gets another name.
#[derive(Clone, Debug, PartialEq)]
pub struct StatePart {
    /// Unique within the function.
    pub name: Cow<'static, str>,
    pub schema: SchemaRef,
    pub kind: PartKind,
    /// The rows lie where the rows of this input lie.
    pub port: usize,
    /// By leading column of `schema` the column of that input which it holds, so that a row's slot can be told from it. It
    /// covers the columns by which the input is spread over the slots.
    pub columns: Vec<usize>,
}

/// How the changes of a part add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// The content is a multiset of rows: the sum of all changes.
    Counted,
    /// The first `key` columns tell the rows apart. An insertion takes the place of the row with that key, if there is one; a
    /// deletion ends it, and only its key columns count. The order of changes matters. With `key` 0 there is at most one row.
    Keyed { key: usize },
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

    /// The parts of the state that a checkpoint keeps; constant over the function's life. A function without parts is as good
    /// as new between two epochs, but for what [`on_watermark`](Self::on_watermark) and [`on_time`](Self::on_time) have told it.
    fn parts(&self) -> Vec<StatePart> {
        Vec::new()
    }

    /// From now on the changes of the state are to be told by [`freeze`](Self::freeze). Called at most once, before the first
    /// epoch of this instance and after [`restored`](Self::restored).
    fn track(&mut self) {}

    /// Appends what has changed in each part (by its index in [`parts`](Self::parts)) since the last call, or since
    /// [`track`](Self::track): the whole state, if it began empty. Called between two epochs, on the thread that runs the
    /// function, so it is quick: batches are passed on by reference, or what must be copied is in proportion to the change.
    /// Batches are in the part's schema; those of one part in the order in which they count.
    fn freeze(&mut self, _out: &mut Vec<(usize, ChangeBatch)>) -> Result<()> {
        Ok(())
    }

    /// Appends a part of what [`freeze`](Self::freeze) would, and does not tell that again. Called between two checkpoints, so that
    /// little is left to tell when one is due: what may well change again, or go, is better left out.
    fn freeze_early(&mut self, out: &mut Vec<(usize, ChangeBatch)>) -> Result<()> {
        self.freeze(out)
    }

    /// About the bytes that [`freeze`](Self::freeze) would tell now: [`freeze_early`](Self::freeze_early) is called when they grow.
    fn tracked_bytes(&self) -> usize {
        0
    }

    /// Takes rows of the content of a part into the state of a new instance: those that belong to its slot, each row of a
    /// counted part once with its multiplicity, each row of a keyed part as an insertion. Nothing is emitted for them.
    /// Errors: `XX001` for rows that the function cannot have written.
    fn restore(&mut self, _part: usize, _rows: ChangeBatch) -> Result<()> {
        Err(Error::internal("rows of a state that the function does not have"))
    }

    /// All parts are restored, perhaps without a row: the instance is where the checkpoint's epoch ended, so what a function
    /// does once at its start is done. `watermarks_us` are what the ports were promised until then, `now_us` is that
    /// epoch's processing time.
    fn restored(&mut self, _watermarks_us: &[i64], _now_us: i64) -> Result<()> {
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
