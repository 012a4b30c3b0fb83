//! The only room that knows other machines: how coordinator and workers find each other, what they say, and how they notice
//! that the other is away.
//!
//! [`frame`] is how bytes are cut on a connection, [`message`] what they mean, [`handshake`] who may speak at all, and
//! [`connection`] a connection that lives. [`roster`] is the coordinator's list of workers; [`session`] its side of one engine's life:
//! it stands where slots would be in one process ([`runtime::Worker`]), and [`views`] where their rows would be.
//! [`node`] is a worker: it runs slots for one session after the other, with [`links`] to the slots of other workers and
//! [`reads`] for readers of the view rows that it has; [`ground`] is what it stands on: threads and sockets, or a test.
//!
//! Law: a session is one life of an engine. Everything that is said belongs to one, and what belongs to an earlier one is
//! dropped unread. A session ends as a whole: when any of its workers is away, all of them forget their slots, and the
//! engine starts again from its log and the last durable checkpoint, on the workers that are there then.
//!
//! Law: whoever receives never stops reading. What may wait is bounded by its sender, by credits in bytes for each queue and
//! each scan; so a slow job or reader holds up nothing but itself.

pub mod connection;
pub mod frame;
pub mod ground;
pub mod handshake;
pub mod links;
pub mod message;
pub mod node;
pub mod reads;
pub mod roster;
pub mod session;
pub mod views;

pub use handshake::Identity;
pub use node::{Node, NodeConfig};
pub use roster::{Roster, RosterConfig, Wanted};
pub use session::Slots;
