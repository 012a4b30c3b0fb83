//! The contract of sinks: changes come in epochs and are published when an epoch is finished.
//!
//! A [`SinkConnector`] turns a [`SinkRequest`] into a [`SinkWriter`]. One writer receives all changes of the sink. No writer
//! reads a clock: `now_us` (microseconds since the Unix epoch, or any clock that never goes back) comes from the caller.

use arrow::datatypes::SchemaRef;
use checkpoint::CommitPermit;
use flow::{ChangeBatch, Epoch, Error, Result};

use crate::options::{Form, OptionSpec, Options};

/// What a sink is asked to write.
#[derive(Clone, Debug)]
pub struct SinkRequest<'a> {
    pub options: &'a Options,
    /// The columns of the rows, in canonical types.
    pub schema: SchemaRef,
    /// Whether the rows are only ever added.
    pub append_only: bool,
    /// Sets of columns that tell the rows apart at an epoch's end, NULL counting as a value; the shortest first. The empty
    /// set says that there is at most one row.
    pub keys: &'a [Vec<usize>],
    /// What the rows come from, as records name it.
    pub relation: &'a str,
    /// Tells what this sink publishes from whatever else is published at the same target, by any server at any time: 1 to 100
    /// ASCII letters, digits, `-` and `_`. The same when a checkpoint is gone on with, another one when the sink begins anew.
    /// Only for sinks that are not rewritten; empty for [`SinkConnector::validate`], or where there are no checkpoints.
    pub identity: &'a str,
    /// Tells this writer from every other one of the same identity, also from one that is believed dead and is not: greater
    /// than that of every writer opened before.
    pub attempt: u64,
}

/// What a sink promises of the epochs that it has published, over any crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Each change exactly once: output is staged, becomes durable with a checkpoint, and is published after it.
    ExactlyOnce,
    /// Each change at least once: published at once, and what came after the last checkpoint again after a restart.
    AtLeastOnce,
    /// After a restart the whole content is delivered anew: published at once, repeated by a restart.
    Rewritten,
}

/// A kind of sink, found by name with [`crate::sink`].
pub trait SinkConnector: Send + Sync {
    fn name(&self) -> &'static str;

    /// The table of options, `connector` included.
    fn options(&self) -> &'static [OptionSpec];

    /// The forms of `FORMAT … ENCODE …` that the connector writes; empty when it takes no such clause.
    fn forms(&self) -> &'static [Form];

    /// Everything that can be checked at CREATE, without touching the target's content. Errors: `22023`/`42704` options,
    /// `0A000` a mode or column type that does not fit, `58P01`/`42501` a place that cannot be written.
    fn validate(&self, request: &SinkRequest<'_>) -> Result<()>;

    /// Starts writing from nothing: the caller will deliver the whole content of the relation, then its changes. Errors as
    /// [`validate`](Self::validate), and `53100`/`58030` from the target.
    fn open(&self, request: &SinkRequest<'_>) -> Result<Box<dyn SinkWriter>>;

    /// What a sink with these options promises.
    fn delivery(&self, _options: &Options) -> Result<Delivery> {
        Ok(Delivery::Rewritten)
    }

    /// Goes on where a checkpoint has left a sink that is not rewritten. `prepared` is what
    /// [`SinkWriter::prepare`] gave for it. Where each change comes exactly once, first finishes the commit that `permit` allows, whether or not it had begun; then
    /// clears away what was staged after it. The caller delivers the changes of later epochs. Errors as [`open`](Self::open),
    /// and `XX001` when what was prepared is not there any more.
    fn resume(
        &self,
        _request: &SinkRequest<'_>,
        _permit: &CommitPermit,
        _prepared: &[u8],
    ) -> Result<Box<dyn SinkWriter>> {
        Err(Error::internal("a sink that is rewritten cannot go on"))
    }
}

/// Takes the changes of one sink, from one thread at a time.
///
/// After an error that may pass ([`Error::may_pass`]: the target is full or away) nothing is lost. What
/// [`write`](Self::write) and [`finish_epoch`](Self::finish_epoch) were given was taken: [`make_up`](Self::make_up) is called
/// until it succeeds, before anything else but `close`; every other method is called again itself. After any other error
/// nothing is called again.
pub trait SinkWriter: Send {
    /// Takes changes of the epoch that is open: later than every finished one. The batch has the request's schema.
    /// Errors: `0A000` for a deletion where the mode takes none, `53100` target full.
    fn write(&mut self, epoch: Epoch, change: &ChangeBatch) -> Result<()>;

    /// All changes of `epoch` have been written; publishes them, or notes that they are due at
    /// [`next_flush_us`](Self::next_flush_us). Epochs come in ascending order; those without changes may be left out.
    fn finish_epoch(&mut self, epoch: Epoch, now_us: i64) -> Result<()>;

    /// Does what `write` or `finish_epoch` has taken over and could not do.
    fn make_up(&mut self) -> Result<()> {
        Ok(())
    }

    /// When [`flush`](Self::flush) wants to be called, on the clock of `now_us`; `None` when everything finished is
    /// published.
    fn next_flush_us(&self) -> Option<i64> {
        None
    }

    /// Publishes every finished epoch that is not published yet. Changes of an unfinished epoch stay back.
    fn flush(&mut self, now_us: i64) -> Result<()>;

    /// Publishes what is finished, durably, and drops what is not. The writer is done after it.
    fn close(&mut self) -> Result<()>;

    /// The last epoch that readers of the target can see, whole.
    fn published(&self) -> Epoch;

    /// Makes everything up to `epoch`, which is finished, durable without making it visible; where changes may come again it is
    /// visible already. Returns what [`commit`](Self::commit) and [`SinkConnector::resume`] need, in a format that stays readable.
    /// Not for sinks that are rewritten. No change of a later epoch was written before.
    fn prepare(&mut self, _epoch: Epoch) -> Result<Vec<u8>> {
        Err(Error::internal("a sink that is rewritten was asked to prepare"))
    }

    /// Makes visible what was prepared for the permit's epoch. May be called again after an error or a crash with the same
    /// effect as once. Changes of later epochs may have been written since `prepare`, and stay invisible.
    fn commit(&mut self, _permit: &CommitPermit, _prepared: &[u8]) -> Result<()> {
        Err(Error::internal("a sink that is rewritten was asked to commit"))
    }

    /// Rows written to the target, for the statistics.
    fn rows_written(&self) -> u64;

    /// Bytes of memory held for the sink's content, for the memory budget. Cheap.
    fn state_bytes(&self) -> usize {
        0
    }
}
