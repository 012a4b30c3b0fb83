//! Runs one worker's share of the process plans: slots that own state and call operators on whole batches.
//!
//! [`message`] is everything that coordinator and slots say to each other; [`slot`] is one slot as a state machine that
//! can be stepped without a thread; [`job`] is one job's tasks on one slot, with barrier alignment; [`ops`] are the
//! operators; [`terminal`] is where a job ends; [`freeze`] takes a job's state at the end of an epoch, [`parts`] adds up its
//! changes and [`depot`] stores them; [`exits`] are the ways from a machine to other slots and sinks,
//! [`background`] takes what may wait off the slot's thread; [`worker`] runs
//! slots as threads or hands them to a test to step, and [`service`] does the same for what works beside them.
//!
//! Law: a task finishes tick *t* only after every input channel has passed barrier *t*, and passes the barrier on only
//! after that. So what leaves a job for an epoch is exactly a function of what entered it up to that epoch.

pub mod background;
pub mod budget;
pub mod depot;
pub mod exits;
pub mod freeze;
pub mod job;
pub mod message;
pub mod ops;
pub mod parts;
pub mod service;
pub mod slot;
pub mod terminal;
pub mod worker;

pub use background::stand_back;
pub use budget::Budget;
pub use depot::Depot;
pub use message::{Counted, DeploymentId, FromSlot, GiveBack, Owed, Restore, StoredState, Tick, ToSlot};
pub use service::{Join, NowUs, Pause, Service, Stepped};
pub use slot::Slot;
pub use worker::{
    Holdings, Link, Outbox, Place, Share, SteppedWorker, ThreadWorker, Wire, Worker, WorkerState, WorkerStatus,
};
