//! What makes things durable: the data directory with its owner, the append-only log in it, and checkpoints in an object store.
//!
//! The law of the log: [`log::Log::append`] may be lost by a crash until [`log::Log::sync`] has returned; what was
//! synced is read back, in order and whole, by the next [`log::Log::open`], or opening fails and names the damage.
//!
//! Reading order of checkpoints: [`names`] says what objects are called, [`envelope`] how each one looks, [`door`] how they are
//! created and read, [`local`] and [`remote`] where they are kept; [`segment`] and [`manifest`] are what a checkpoint consists of;
//! [`protocol`] decides which one is the truth, [`owner`] carries that out, [`fsck`] looks at the result.
//!
//! Coordinators that take over from each other keep their log beside the checkpoints ([`log`]); [`lease`] says which one should
//! lead.

pub mod crash;
pub mod directory;
pub mod disk;
pub mod log;
pub mod permit;

pub mod door;
pub mod envelope;
pub mod fsck;
pub mod lease;
pub mod local;
pub mod manifest;
pub mod names;
pub mod owner;
pub mod protocol;
pub mod remote;
pub mod segment;

pub mod faulty;
pub mod planted;

pub use directory::DataDirectory;
pub use disk::Disk;
pub use door::{Door, PutNew};
pub use log::{Log, Position};
pub use manifest::Manifest;
pub use owner::Owner;
pub use permit::{CommitPermit, Generation};
