//! What makes things durable: the data directory with its owner, and the append-only log in it.
//!
//! The law of this crate: [`log::Log::append`] may be lost by a crash until [`log::Log::sync`] has returned; what was
//! synced is read back, in order and whole, by the next [`log::Log::open`], or opening fails and names the damage.

pub mod directory;
pub mod log;
pub mod permit;

pub use directory::DataDirectory;
pub use log::{Log, Position};
pub use permit::{CommitPermit, Generation};
