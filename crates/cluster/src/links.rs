//! The ways from a worker's slots to those of another worker: one connection for each direction, on which rows go to the
//! other's slots, and what they owe comes back.

use std::sync::{Arc, OnceLock, Weak};

use flow::{Error, Result, SlotId, SqlState};
use runtime::{Counted, GiveBack, Link, ToSlot};

use crate::connection::{Connection, Hears};
use crate::frame::Frame;
use crate::message::{self, FromPeer, ToPeer};
use crate::node::Slots;

/// The way to the slots of one other worker.
pub(crate) struct PeerLink {
    session: u64,
    /// There before the first message of a job.
    connection: OnceLock<Arc<Connection>>,
}

impl PeerLink {
    pub fn new(session: u64) -> Arc<PeerLink> {
        Arc::new(PeerLink { session, connection: OnceLock::new() })
    }

    pub fn connect(&self, connection: Arc<Connection>) {
        // It is connected once.
        let _ = self.connection.set(connection);
    }

    pub fn close(&self) {
        if let Some(connection) = self.connection.get() {
            connection.close();
        }
    }

    fn post(&self, slot: SlotId, message: ToSlot, counted: Option<Counted>) -> Result<bool> {
        let Some(connection) = self.connection.get() else { return Ok(false) };
        for (message, body) in message::split(message, counted)? {
            if !connection.send(message::frame_with(self.session, &ToPeer::Slot(slot, message), body)?) {
                // Who reads the connection ends the session.
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Link for PeerLink {
    fn send(&self, slot: SlotId, message: ToSlot) -> bool {
        matches!(self.post(slot, message, None), Ok(true))
    }

    fn send_rows(&self, slot: SlotId, rows: ToSlot, counted: Counted) -> Result<bool> {
        self.post(slot, rows, Some(counted))
    }
}

/// Takes what comes back on a connection to another worker.
pub(crate) struct Credits {
    pub session: u64,
    pub worker: u32,
    pub slots: Weak<Slots>,
}

impl Hears for Credits {
    fn take(&mut self, frame: &Frame) -> Result<()> {
        if let FromPeer::Credit(counted) = message::parse(frame)?
            && let Some(slots) = self.slots.upgrade()
            && frame.session == self.session
        {
            slots.share.credit(&counted);
        }
        Ok(())
    }

    fn ended(&mut self, cause: &Error) {
        if let Some(slots) = self.slots.upgrade() {
            slots.lost_peer(self.worker, cause);
        }
    }
}

/// Hands on what another worker sends to slots of this one.
pub(crate) struct Deliveries {
    session: u64,
    worker: u32,
    slots: Weak<Slots>,
    connection: Arc<Connection>,
    give_back: GiveBack,
}

impl Deliveries {
    pub fn new(slots: &Arc<Slots>, session: u64, worker: u32, connection: &Arc<Connection>) -> Deliveries {
        let back = Arc::downgrade(connection);
        let give_back: GiveBack = Arc::new(move |counted| {
            // A sender that is gone waits for nothing.
            if let Some(connection) = back.upgrade() {
                connection.say(session, &FromPeer::Credit(counted));
            }
        });
        Deliveries { session, worker, slots: Arc::downgrade(slots), connection: Arc::clone(connection), give_back }
    }
}

impl Hears for Deliveries {
    fn take(&mut self, frame: &Frame) -> Result<()> {
        let ToPeer::Slot(slot, message) = message::parse(frame)? else { return Ok(()) };
        let message = message::join(message, &frame.body, Some(&self.give_back))?;
        match self.slots.upgrade() {
            Some(slots) if frame.session == self.session => slots.send(slot, message),
            _ => Err(Error::new(SqlState::ConnectionFailure, "the session is over")),
        }
    }

    fn ended(&mut self, cause: &Error) {
        self.connection.close();
        if let Some(slots) = self.slots.upgrade() {
            slots.lost_peer(self.worker, cause);
        }
    }
}
