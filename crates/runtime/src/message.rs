//! What coordinator and slots say to each other. Every message is serialisable, whether or not it crosses a process
//! boundary; within a process batches travel by reference count.

use std::sync::Arc;

use checkpoint::manifest::SegmentRef;
use flow::{ChangeBatch, Epoch, Error, RelationId, SlotId, TaskId};
use plan::ProcessPlan;
use serde::{Deserialize, Serialize};

/// One start of a job. A job that is started again gets a new deployment; ids only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeploymentId(pub u64);

/// A point in a job's progress: an epoch, or one chunk of back-fill before the job's first epoch is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tick {
    pub epoch: Epoch,
    /// 0, 1, … for back-fill chunks; [`Tick::LAST`] for the end of the epoch.
    pub chunk: u32,
}

impl Tick {
    pub const LAST: u32 = u32::MAX;

    pub fn end_of(epoch: Epoch) -> Tick {
        Tick { epoch, chunk: Tick::LAST }
    }

    pub fn is_end(self) -> bool {
        self.chunk == Tick::LAST
    }
}

/// The state of one job on one slot as a checkpoint holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoredState {
    /// Everything ever stored that counts, oldest first.
    pub chain: Vec<SegmentRef>,
    /// The chain's bytes when it last held nothing but content.
    pub base: u64,
    /// By task and port what was promised at the epoch's end.
    pub watermarks: Vec<Vec<i64>>,
    /// The epoch's processing time.
    pub now_us: i64,
    /// Microseconds for which the job's tasks stood still on this slot to freeze it.
    pub pause_us: i64,
}

/// A job's state on all slots that it had, for a start from a checkpoint at any parallelism.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Restore {
    /// By slot.
    pub chains: Vec<Vec<SegmentRef>>,
    /// Of each chain, its bytes when it last held nothing but content; 0 or missing: nobody knows.
    pub bases: Vec<u64>,
    pub watermarks: Vec<Vec<i64>>,
    pub now_us: i64,
}

/// Over which slots a job works.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The job's parallelism: it works on so many slots, the first ones. The others hand on what reaches them.
    pub parallelism: usize,
    /// Those of its inputs that are views of another parallelism than there are slots: their rows do not lie where their keys say.
    pub elsewhere: Vec<RelationId>,
}

/// Rows of an exchange as their sender counts them while they wait in the queue of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    pub deployment: DeploymentId,
    pub slot: SlotId,
    /// Of the queue.
    pub level: u16,
    pub bytes: usize,
}

/// What the slot owes a sender in another process for rows that wait here: it is given back when this is dropped. Within a
/// process nothing is owed, sender and slot count in one place.
#[derive(Default)]
pub struct Owed(Option<(Counted, GiveBack)>);

/// Tells a sender in another process that rows do not wait any more.
pub type GiveBack = Arc<dyn Fn(Counted) + Send + Sync>;

impl Owed {
    pub fn new(counted: Counted, give_back: GiveBack) -> Owed {
        Owed(Some((counted, give_back)))
    }

    /// Whether anything is owed.
    pub fn is_owed(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if let Some((counted, give_back)) = self.0.take() {
            give_back(counted);
        }
    }
}

impl Clone for Owed {
    /// Nothing is owed twice.
    fn clone(&self) -> Owed {
        Owed(None)
    }
}

impl std::fmt::Debug for Owed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_ref().map(|(counted, _)| counted).fmt(f)
    }
}

/// From the coordinator, or from another slot, to a slot. Messages of one sender arrive in order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToSlot {
    /// Start a job whose first tick is `first`. Sent between two epochs, to every slot. With `kept` checkpoints keep its state,
    /// and with `restore` it goes on from one.
    Deploy {
        deployment: DeploymentId,
        plan: Arc<ProcessPlan>,
        spread: Spread,
        first: Tick,
        kept: bool,
        restore: Option<Arc<Restore>>,
    },
    /// Stop a job and forget its state. Sent to every slot.
    Remove {
        deployment: DeploymentId,
    },
    /// Whether the epoch clock waits for this job: an attached job is served before detached ones.
    Attach {
        deployment: DeploymentId,
        attached: bool,
    },
    /// At the end of this epoch the kept jobs freeze their state. Sent before the epoch's barrier, and before the next such
    /// message only when all of them have or are gone.
    Checkpoint {
        epoch: Epoch,
    },
    /// Changes of a table or source in the open epoch.
    Input {
        relation: RelationId,
        epoch: Epoch,
        changes: ChangeBatch,
    },
    /// The epoch's input is complete; `now_us` is its processing time, later than that of earlier epochs, `watermarks` what is
    /// promised of the tables and sources that declare one, from the epoch's end on.
    Barrier {
        epoch: Epoch,
        now_us: i64,
        watermarks: Arc<Vec<(RelationId, i64)>>,
    },
    /// Rows of one input of a job that existed before the job, in chunk `tick`.
    Backfill {
        deployment: DeploymentId,
        relation: RelationId,
        tick: Tick,
        rows: ChangeBatch,
    },
    /// The chunk is complete. With `then` the job goes on with the epoch's live changes, else with the next chunk.
    BackfillBarrier {
        deployment: DeploymentId,
        tick: Tick,
        then: Tick,
        /// The processing time of the job's start.
        now_us: i64,
    },
    /// From another slot (or this one): rows of an exchange. `owed` is given back when they do not wait any more.
    Exchange {
        deployment: DeploymentId,
        task: TaskId,
        port: u16,
        tick: Tick,
        changes: ChangeBatch,
        #[serde(skip)]
        owed: Owed,
    },
    /// From another slot: it has sent everything of this tick over this exchange.
    ExchangeBarrier {
        deployment: DeploymentId,
        task: TaskId,
        port: u16,
        tick: Tick,
        now_us: i64,
        watermark_us: i64,
    },
    /// A queue has room again.
    Wake,
    Shutdown,
}

/// From a slot to the coordinator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromSlot {
    /// The terminal task of each job has finished these ticks on this slot; the newest of each job.
    Progress { slot: SlotId, finished: Vec<(DeploymentId, Tick)>, next_timer_us: Option<i64> },
    /// The job has stopped on this slot and is forgotten there.
    Failed { slot: SlotId, deployment: DeploymentId, error: Error },
    /// A job's state on this slot as of the epoch's end is stored.
    Stored { slot: SlotId, deployment: DeploymentId, epoch: Epoch, state: StoredState },
    /// It could not be stored.
    NotStored { slot: SlotId, deployment: DeploymentId, epoch: Epoch, error: Error },
    /// The store takes no state for now, for this cause; without one, it does again. `full`: so much waits to be stored that
    /// no more should come.
    Storing { cause: Option<Error>, full: bool },
    /// A sink's net change of an epoch on this slot; `changes` is absent when nothing changed.
    Deliver { slot: SlotId, deployment: DeploymentId, sink: RelationId, tick: Tick, changes: Option<ChangeBatch> },
}
