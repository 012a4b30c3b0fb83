//! The server's engine in one seeded thread, over a store and a disk that fail and a clock that is set: what it does next, which
//! request fails and where it dies is drawn from a seed, and a seed plays the same every time.
//!
//! [`fleet`](mod@fleet) does the same with a cluster of such processes. Here is one alone:
//!
//! [`world`] is what survives a crash: the disk, the store, the files and what clients know of them. [`machine`] steps one
//! incarnation of the engine, [`doom`] ends it, [`clients`] load it and check what they read, [`life`] is from a start to a
//! crash, and [`play`](mod@play) is one seed. Only in builds with debug assertions: crash points and planted bugs are in no other.
#![cfg(debug_assertions)]

pub mod clients;
pub mod doom;
pub mod fleet;
pub mod life;
pub mod machine;
pub mod play;
pub mod rng;
pub mod sql;
pub mod store;
pub mod world;
