//! The view store: what readers see of tables and materialized views.
//!
//! A [`Store`] holds one relation as shards; a shard is a list of immutable blocks of rows, each row with the epochs of its
//! birth and death, and an index from key to versions. One writer per shard applies the net change of each epoch; readers
//! take a [`Snapshot`] at a completed epoch and scan or point-read it without ever holding up the writer. [`Pins`] says
//! which epochs readers still need, and the store forgets what lies below.
//!
//! Reading order: [`block`] defines when a row is visible, [`list`] and [`index`] find rows, [`decide`] turns a change into
//! what ends and what begins, [`shard`] carries it out, [`merge`] and [`rewrite`] keep blocks few, [`snapshot`] and [`scan`]
//! read, [`changes`] keeps what changed for those who follow; [`view`] is how readers ask, whose rows may be in another
//! process. This crate does no I/O, reads no clock and draws no random numbers.

mod block;
mod changes;
mod decide;
mod index;
mod layout;
mod list;
mod merge;
mod owned;
mod pins;
mod rewrite;
mod scan;
mod shard;
mod snapshot;
mod store;
mod values;
mod view;

pub use block::BLOCK_ROWS;
pub use changes::{ChangeLog, ChangeRoom, EpochChanges, Followed, Follower, Tap};
pub use layout::Identity;
pub use owned::owned;
pub use pins::{Pin, Pins};
pub use scan::{Scan, ScanWithIds};
pub use snapshot::Snapshot;
pub use store::{RowId, Store};
pub use view::{Batches, Elsewhere, RelationSnapshot, RelationStore, Worked};
