//! The ways from a worker's slots to those of another worker: one connection for each direction, on which rows go to the
//! other's slots, and what they owe comes back.

use std::sync::{Arc, OnceLock, Weak};

use flow::{Error, Result, SlotId, SqlState};
use runtime::{Counted, GiveBack, Link, ToSlot};

use crate::connection::{Connection, Incoming};
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

/// Takes what comes back on a connection to another worker, until it ends. Returns why it did.
pub(crate) fn hear_back(mut incoming: Incoming, session: u64, slots: &Weak<Slots>) -> Error {
    loop {
        let frame = match incoming.next_frame() {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        match message::parse(&frame) {
            Ok(FromPeer::Beat) => {}
            Ok(FromPeer::Credit(counted)) => match slots.upgrade() {
                Some(slots) if frame.session == session => slots.threads.credit(&counted),
                _ => {}
            },
            Err(error) => return error,
        }
    }
}

/// Hands on what another worker sends to slots of this one, until its connection ends. Returns why it did.
pub(crate) fn hear(connection: &Arc<Connection>, mut incoming: Incoming, session: u64, slots: &Weak<Slots>) -> Error {
    let back = Arc::downgrade(connection);
    let give_back: GiveBack = Arc::new(move |counted| {
        // A sender that is gone waits for nothing.
        if let Some(connection) = back.upgrade() {
            connection.say(session, &FromPeer::Credit(counted));
        }
    });
    loop {
        let frame = match incoming.next_frame() {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        let taken = message::parse(&frame).and_then(|message| {
            let ToPeer::Slot(slot, message) = message else { return Ok(()) };
            let message = message::join(message, &frame.body, Some(&give_back))?;
            match slots.upgrade() {
                Some(slots) if frame.session == session => slots.send(slot, message),
                _ => Err(Error::new(SqlState::ConnectionFailure, "the session is over")),
            }
        });
        if let Err(error) = taken {
            return error;
        }
    }
}
