//! Feeds a new job with what its inputs held when it was created, in chunks, while live changes wait behind.

use std::sync::Arc;

use arrow::array::RecordBatch;
use flow::{ChangeBatch, RelationId, Result, SlotId};
use runtime::job::partition;
use runtime::{Tick, ToSlot, Worker};
use state::{Pin, Snapshot};
use tracing::debug;

use crate::clock::{Clock, Event, Started};

/// Rows of one chunk over all slots: small, so that a job that lives elsewhere on the slot does not wait long.
const CHUNK_ROWS: usize = 8192;
/// Rows of one batch.
const BATCH_ROWS: usize = 2048;
/// Chunks that may be under way at once.
const CHUNKS_AHEAD: u32 = 2;

/// Rows of one input in some order.
pub type Rows = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// One input of the job, opened once the snapshot epoch is complete.
pub struct BackfillInput {
    pub relation: RelationId,
    pub rows: InputRows,
}

/// Where the rows of an input come from.
pub enum InputRows {
    /// A table or a view; `sharded` says that shard *i* belongs to slot *i* (views), `route` names the columns by which
    /// the rows are spread over the slots (tables whose rows can be taken away).
    Store { open: Box<dyn FnOnce() -> Result<Snapshot> + Send>, sharded: bool, route: Option<Arc<[usize]>> },
    /// A source, read again up to the snapshot's offsets; the total is an estimate in rows.
    Source { open: Box<dyn FnOnce() -> Result<Rows> + Send> },
}

/// What a feeder works on.
pub struct Backfill {
    pub clock: Arc<Clock>,
    pub worker: Arc<dyn Worker>,
    pub relation: RelationId,
    pub started: Started,
    pub inputs: Vec<BackfillInput>,
    /// Keeps the snapshot readable.
    pub pin: Pin,
}

impl Backfill {
    /// Starts the feeder thread. Failures go to the clock, which stops the job.
    pub fn spawn(self) -> Result<()> {
        let name = format!("backfill-{}", self.relation);
        std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                let (clock, deployment) = (Arc::clone(&self.clock), self.started.deployment);
                if let Err(error) = self.run() {
                    clock.send(Event::BackfillFailed { deployment, error });
                }
            })
            .map(|_| ())
            .map_err(|e| flow::Error::internal(format!("cannot start a back-fill thread: {e}")))
    }

    fn run(self) -> Result<()> {
        let Backfill { clock, worker, relation, started, inputs, pin } = self;
        futures::executor::block_on(clock.wait_completed(started.snapshot))?;
        let mut feed = Feed {
            clock: &clock,
            worker: &worker,
            relation,
            started: &started,
            chunk: 0,
            rows: 0,
            done: 0,
            total: 0,
            next_slot: 0,
        };
        let mut opened = Vec::new();
        for input in inputs {
            match input.rows {
                InputRows::Store { open, sharded, route } => {
                    let snapshot = open()?;
                    feed.total += snapshot.num_rows() as u64;
                    opened.push((input.relation, Opened::Store(snapshot, sharded, route)));
                }
                InputRows::Source { open } => opened.push((input.relation, Opened::Rows(open()?))),
            }
        }
        for (input, rows) in opened {
            let alive = match rows {
                Opened::Store(snapshot, sharded, route) => feed.store(input, &snapshot, sharded, route.as_deref())?,
                Opened::Rows(rows) => feed.rows(input, rows, None, None)?,
            };
            if !alive {
                debug!(relation = relation.0, "back-fill ends: the job is gone");
                return Ok(());
            }
        }
        let last = Tick { epoch: started.first.epoch, chunk: feed.chunk };
        let then = Tick::end_of(started.first.epoch);
        worker.broadcast(&ToSlot::BackfillBarrier { deployment: started.deployment, tick: last, then });
        clock.board.set_backfill(relation, feed.done, feed.done);
        // The job's first epoch has to end, also when nothing else comes.
        clock.commit(true, |_| Ok(Vec::new()))?;
        drop(pin);
        Ok(())
    }
}

enum Opened {
    Store(Snapshot, bool, Option<Arc<[usize]>>),
    Rows(Rows),
}

struct Feed<'a> {
    clock: &'a Clock,
    worker: &'a Arc<dyn Worker>,
    relation: RelationId,
    started: &'a Started,
    chunk: u32,
    /// Rows sent in this chunk.
    rows: usize,
    done: u64,
    total: u64,
    next_slot: usize,
}

impl Feed<'_> {
    fn store(
        &mut self,
        input: RelationId,
        snapshot: &Snapshot,
        sharded: bool,
        route: Option<&[usize]>,
    ) -> Result<bool> {
        for shard in 0..snapshot.shards() {
            let slot = sharded.then_some(SlotId(shard as u16));
            if !self.rows(input, Box::new(snapshot.scan_shard(shard, None, BATCH_ROWS)?), slot, route)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends rows to their slot, by their route, or to the slots in turn. Returns false when the job is gone.
    fn rows(&mut self, input: RelationId, rows: Rows, slot: Option<SlotId>, route: Option<&[usize]>) -> Result<bool> {
        let slots = self.worker.slots();
        for batch in rows {
            let batch = batch?;
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
                    let message = ToSlot::Backfill { deployment, relation: input, tick, rows };
                    self.worker.send(SlotId(slot as u16), message);
                }
                if self.rows >= CHUNK_ROWS && !self.end_chunk() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn tick(&self) -> Tick {
        Tick { epoch: self.started.first.epoch, chunk: self.chunk }
    }

    fn end_chunk(&mut self) -> bool {
        let tick = self.tick();
        self.chunk += 1;
        self.rows = 0;
        let deployment = self.started.deployment;
        self.worker.broadcast(&ToSlot::BackfillBarrier { deployment, tick, then: self.tick() });
        self.clock.board.set_backfill(self.relation, self.done, self.total.max(self.done));
        match self.chunk.checked_sub(CHUNKS_AHEAD) {
            Some(behind) => {
                let tick = Tick { epoch: tick.epoch, chunk: behind };
                self.clock.board.wait_tick(deployment, tick)
            }
            None => true,
        }
    }
}
