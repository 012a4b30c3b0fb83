//! Names of things. Each is a newtype so that an epoch is never mistaken for an object id.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// The object id (Postgres OID) of a table, source, view, materialized view or sink. Never reused.
    RelationId(u32)
);
id!(
    /// The standing dataflow behind a materialized view or a sink; equal to the OID of that object.
    JobId(u32)
);
id!(
    /// A process function inside one job's process plan.
    TaskId(u32)
);
id!(
    /// The logical timestamp: one counter for the whole system, never reused. Epoch 0 is "before anything".
    Epoch(u64)
);
id!(
    /// One compute thread's share of every job.
    SlotId(u16)
);

impl Epoch {
    /// Later than every epoch that will ever be cut: reading at `MAX` reads the head.
    pub const MAX: Epoch = Epoch(u64::MAX);

    /// The epoch that follows this one.
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}
