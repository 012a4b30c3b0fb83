//! The right to publish: what a sink needs to make an epoch's output visible.

use flow::Epoch;

/// Counts the owners of a store: every start of a coordinator takes the next one, and effects of an older one are void.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// Says that a checkpoint of this epoch is durable and was claimed by this generation, so that its output may be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitPermit {
    generation: Generation,
    epoch: Epoch,
}

impl CommitPermit {
    /// Only for whoever has seen the epoch's record in the store and knows it for the newest: see
    /// [`Claimed::permit`](crate::protocol::Claimed::permit). Tests of sinks make their own.
    pub fn of_claimed(generation: Generation, epoch: Epoch) -> CommitPermit {
        CommitPermit { generation, epoch }
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}
