//! Feeds a new job with what its inputs held when it was created, in chunks, while live changes wait behind.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use arrow::array::RecordBatch;
use flow::{ChangeBatch, Epoch, Error, RelationId, Result, SlotId};
use futures::future::{Either, select};
use runtime::job::partition;
use runtime::{Tick, ToSlot, Worker};
use state::{Pin, RelationSnapshot};
use tracing::debug;

use crate::clock::{Clock, Event, Started};
use crate::waiting::{block_on, iterate};

/// Rows of one chunk over all slots: small, so that progress shows and little memory is under way.
const CHUNK_ROWS: usize = 4096;
/// Rows of one batch, which is one step of the slot's background: messages of the job wait as long.
const BATCH_ROWS: usize = 1024;
/// Chunks that may be under way at once.
const CHUNKS_AHEAD: u32 = 2;

/// Rows of one input in some order.
pub type Rows = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// Opens what a table or view held.
pub type OpenSnapshot = Box<dyn FnOnce() -> Result<Arc<dyn RelationSnapshot>> + Send>;

/// One input of the job, opened once the snapshot epoch is complete.
pub struct BackfillInput {
    pub relation: RelationId,
    pub rows: InputRows,
}

/// Where the rows of an input come from.
pub enum InputRows {
    /// A table or a view; `sharded` says that shard *i* belongs to slot *i* (views), `route` names the columns by which
    /// the rows are spread over the slots (tables whose rows can be taken away).
    Store { open: OpenSnapshot, sharded: bool, route: Option<Arc<[usize]>> },
    /// A source, read again up to the snapshot's offsets; the total is an estimate in rows.
    Source { open: Box<dyn FnOnce() -> Result<Rows> + Send> },
}

/// What a feeder works on, piece by piece: [`step`](Backfill::step) does a bounded one and never waits.
pub struct Backfill {
    clock: Arc<Clock>,
    worker: Arc<dyn Worker>,
    relation: RelationId,
    started: Started,
    inputs: VecDeque<BackfillInput>,
    /// Inputs that are open but not read to their end.
    opened: VecDeque<Opened>,
    stage: Stage,
    /// The chunk being sent, and the rows sent in it.
    chunk: u32,
    rows: usize,
    done: u64,
    total: u64,
    next_slot: usize,
    /// Keeps the snapshot readable.
    _pin: Pin,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The snapshot's epoch is not complete yet.
    Waiting,
    Feeding,
}

/// What a piece of a feeder's work led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// There is more to do.
    More,
    /// Nothing can be done before this epoch is complete.
    UntilCompleted(Epoch),
    /// Nothing can be done before the job has finished this tick.
    UntilFinished(Tick),
    /// Everything is sent.
    All,
}

/// An open input: whose rows they are, and where they go.
struct Opened {
    relation: RelationId,
    parts: VecDeque<(Option<SlotId>, Rows)>,
    route: Option<Arc<[usize]>>,
}

impl Backfill {
    pub fn new(
        clock: Arc<Clock>,
        worker: Arc<dyn Worker>,
        relation: RelationId,
        started: Started,
        inputs: Vec<BackfillInput>,
        pin: Pin,
    ) -> Backfill {
        Backfill {
            clock,
            worker,
            relation,
            started,
            inputs: inputs.into(),
            opened: VecDeque::new(),
            stage: Stage::Waiting,
            chunk: 0,
            rows: 0,
            done: 0,
            total: 0,
            next_slot: 0,
            _pin: pin,
        }
    }

    /// What the feeder's thread is called.
    pub fn name(&self) -> String {
        format!("backfill-{}", self.relation)
    }

    /// Feeds to the end on the calling thread. Failures go to the clock, which stops the job.
    pub fn run(mut self) {
        loop {
            match self.step() {
                Fed::More => {}
                Fed::UntilCompleted(epoch) => {
                    let completed = pin!(self.clock.wait_completed(epoch));
                    let gone = pin!(self.clock.board.wait_gone(self.started.deployment));
                    match block_on(select(completed, gone)) {
                        Either::Left((Ok(()), _)) => {}
                        Either::Left((Err(error), _)) => return self.fail(error),
                        Either::Right(_) => {
                            debug!(relation = self.relation.0, "back-fill ends before it began: the job is gone");
                            return;
                        }
                    }
                }
                Fed::UntilFinished(tick) => {
                    if !self.clock.board.wait_tick(self.started.deployment, tick) {
                        debug!(relation = self.relation.0, "back-fill ends: the job is gone");
                        return;
                    }
                }
                Fed::All => return,
            }
        }
    }

    /// Whether nothing keeps the feeder from going on after `fed`. `None`: the job is gone, and the feeder with it.
    pub fn ready(&self, fed: Fed) -> Option<bool> {
        match fed {
            Fed::More | Fed::All => Some(true),
            Fed::UntilCompleted(epoch) => Some(self.clock.completed() >= epoch),
            Fed::UntilFinished(tick) => self.clock.board.finished(self.started.deployment, tick),
        }
    }

    /// Does one piece of work. After a failure, which goes to the clock, everything counts as fed.
    pub fn step(&mut self) -> Fed {
        match self.try_step() {
            Ok(fed) => fed,
            Err(error) => {
                self.fail(error);
                Fed::All
            }
        }
    }

    fn fail(&self, error: Error) {
        self.clock.send(Event::BackfillFailed { deployment: self.started.deployment, error });
    }

    fn try_step(&mut self) -> Result<Fed> {
        if self.stage == Stage::Waiting {
            if self.clock.completed() < self.started.snapshot {
                return Ok(Fed::UntilCompleted(self.started.snapshot));
            }
            self.open()?;
            self.stage = Stage::Feeding;
        }
        let Some(input) = self.opened.front_mut() else { return self.finish() };
        let Some((slot, rows)) = input.parts.front_mut() else {
            self.opened.pop_front();
            return Ok(Fed::More);
        };
        let (slot, relation, route) = (*slot, input.relation, input.route.clone());
        match rows.next() {
            Some(batch) => self.send(relation, &batch?, slot, route.as_deref())?,
            None => {
                input.parts.pop_front();
                return Ok(Fed::More);
            }
        }
        Ok(if self.rows >= CHUNK_ROWS { self.end_chunk() } else { Fed::More })
    }

    fn open(&mut self) -> Result<()> {
        for input in std::mem::take(&mut self.inputs) {
            let relation = input.relation;
            let opened = match input.rows {
                InputRows::Store { open, sharded, route } => {
                    let snapshot = open()?;
                    self.total += block_on(snapshot.count())? as u64;
                    let mut parts = VecDeque::new();
                    for shard in 0..snapshot.shards() {
                        let rows: Rows = Box::new(iterate(snapshot.scan_shard(shard, None, BATCH_ROWS)?));
                        parts.push_back((sharded.then_some(SlotId(shard as u16)), rows));
                    }
                    Opened { relation, parts, route }
                }
                InputRows::Source { open } => Opened { relation, parts: [(None, open()?)].into(), route: None },
            };
            self.opened.push_back(opened);
        }
        Ok(())
    }

    /// Sends rows to their slot, by their route, or to the slots in turn.
    fn send(
        &mut self,
        relation: RelationId,
        batch: &RecordBatch,
        slot: Option<SlotId>,
        route: Option<&[usize]>,
    ) -> Result<()> {
        let slots = self.worker.slots();
        for start in (0..batch.num_rows()).step_by(BATCH_ROWS) {
            let piece = ChangeBatch::insert(batch.slice(start, BATCH_ROWS.min(batch.num_rows() - start)));
            self.rows += piece.num_rows();
            self.done += piece.num_rows() as u64;
            let parts = match (slot, route) {
                (Some(slot), _) => vec![(slot.0 as usize, piece)],
                (None, Some(route)) if slots > 1 => partition(&piece, route, slots)?,
                _ => {
                    self.next_slot = (self.next_slot + 1) % slots;
                    vec![(self.next_slot, piece)]
                }
            };
            let (deployment, tick) = (self.started.deployment, self.tick());
            for (slot, rows) in parts {
                self.worker.send(SlotId(slot as u16), ToSlot::Backfill { deployment, relation, tick, rows });
            }
        }
        Ok(())
    }

    fn tick(&self) -> Tick {
        Tick { epoch: self.started.first.epoch, chunk: self.chunk }
    }

    fn end_chunk(&mut self) -> Fed {
        let tick = self.tick();
        self.chunk += 1;
        self.rows = 0;
        let deployment = self.started.deployment;
        self.worker.broadcast(&ToSlot::BackfillBarrier {
            deployment,
            tick,
            then: self.tick(),
            now_us: self.started.now_us,
        });
        self.clock.board.set_backfill(self.relation, self.done, self.total.max(self.done));
        match self.chunk.checked_sub(CHUNKS_AHEAD) {
            Some(behind) => Fed::UntilFinished(Tick { epoch: tick.epoch, chunk: behind }),
            None => Fed::More,
        }
    }

    /// The live changes follow the last chunk.
    fn finish(&mut self) -> Result<Fed> {
        let (deployment, tick) = (self.started.deployment, self.tick());
        let then = Tick::end_of(self.started.first.epoch);
        self.worker.broadcast(&ToSlot::BackfillBarrier { deployment, tick, then, now_us: self.started.now_us });
        self.clock.board.set_backfill(self.relation, self.done, self.done);
        // The job's first epoch has to end, also when nothing else comes.
        self.clock.commit(true, |_| Ok(Vec::new()))?;
        Ok(Fed::All)
    }
}
