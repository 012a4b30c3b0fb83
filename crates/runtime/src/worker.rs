//! Slots put to work: as one thread each, or stepped by a test in an order drawn from its seed.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, unbounded};
use flow::{Error, Result, SlotId};
use parking_lot::Mutex;

use crate::background::Background;
use crate::message::{FromSlot, ToSlot};
use crate::slot::{Reports, Shared, Slot};

/// What every message passes through on its way. Within a process there is nothing; a test sees each message, and may
/// hand on what its bytes say instead of the message itself.
pub trait Wire: Send + Sync {
    fn to_slot(&self, slot: SlotId, message: ToSlot) -> ToSlot;
    fn reported(&self, message: FromSlot) -> FromSlot;
}

/// The way to a slot's inbox.
#[derive(Clone)]
pub struct Outbox {
    slot: SlotId,
    inbox: Sender<ToSlot>,
    wire: Option<Arc<dyn Wire>>,
}

impl Outbox {
    /// Messages of one sender arrive in order. False when the slot is gone.
    pub fn send(&self, message: ToSlot) -> bool {
        let message = match &self.wire {
            Some(wire) => wire.to_slot(self.slot, message),
            None => message,
        };
        self.inbox.send(message).is_ok()
    }
}

/// The slots as the coordinator sees them.
pub trait Worker: Send + Sync {
    /// Number of slots.
    fn slots(&self) -> usize;

    /// Hands a message to one slot; messages arrive in the order of the calls.
    fn send(&self, slot: SlotId, message: ToSlot);

    /// What the slots share in this process.
    fn shared(&self) -> &Shared;

    /// Hands a clone of `message` to every slot.
    fn broadcast(&self, message: &ToSlot) {
        (0..self.slots()).for_each(|s| self.send(SlotId(s as u16), message.clone()));
    }
}

fn make_slots(
    slots: usize,
    shared: &Shared,
    reports: &Reports,
    wire: Option<&Arc<dyn Wire>>,
    mut background: impl FnMut(SlotId) -> Result<Option<Background>>,
) -> Result<(Vec<Outbox>, Vec<Slot>)> {
    let reports: Reports = match wire {
        Some(wire) => {
            let (wire, reports) = (Arc::clone(wire), Arc::clone(reports));
            Arc::new(move |message| reports(wire.reported(message)))
        }
        None => Arc::clone(reports),
    };
    let channels: Vec<_> = (0..slots).map(|i| (SlotId(i as u16), unbounded())).collect();
    let peers: Vec<Outbox> = channels
        .iter()
        .map(|(slot, (inbox, _))| Outbox { slot: *slot, inbox: inbox.clone(), wire: wire.cloned() })
        .collect();
    let states = channels
        .into_iter()
        .map(|(slot, (_, inbox))| {
            let background = background(slot)?;
            Ok(Slot::new(slot, shared.clone(), inbox, peers.clone(), Arc::clone(&reports), background))
        })
        .collect::<Result<Vec<Slot>>>()?;
    Ok((peers, states))
}

/// Expressions are evaluated by recursion over their tree.
const STACK_BYTES: usize = 16 << 20;

/// One thread per slot, and one beside it for its background.
pub struct ThreadWorker {
    shared: Shared,
    peers: Vec<Outbox>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl ThreadWorker {
    /// Starts `slots` threads that report to `reports`.
    pub fn start(
        slots: usize,
        shared: Shared,
        reports: &Reports,
        wire: Option<&Arc<dyn Wire>>,
    ) -> Result<ThreadWorker> {
        let mut threads = Vec::new();
        let (peers, states) = make_slots(slots, &shared, reports, wire, |slot| {
            let (background, thread) = Background::start(slot, STACK_BYTES)?;
            threads.push(thread);
            Ok(Some(background))
        })?;
        for (i, mut slot) in states.into_iter().enumerate() {
            let thread = std::thread::Builder::new()
                .name(format!("slot-{i}"))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    while !slot.stopped() {
                        if !slot.step() && !slot.wait() {
                            break;
                        }
                    }
                })
                .map_err(|e| Error::internal(format!("cannot start a slot thread: {e}")))?;
            threads.push(thread);
        }
        Ok(ThreadWorker { shared, peers, threads: Mutex::new(threads) })
    }

    /// Stops the threads after the work at hand and waits for them.
    pub fn stop(&self) {
        self.broadcast(&ToSlot::Shutdown);
        for thread in self.threads.lock().drain(..) {
            // A slot thread cannot panic outside catch_unwind; if it did, there is nothing left to save here.
            let _ = thread.join();
        }
    }
}

impl Worker for ThreadWorker {
    fn slots(&self) -> usize {
        self.peers.len()
    }

    fn send(&self, slot: SlotId, message: ToSlot) {
        // A stopped slot takes nothing, and then nobody waits for its answer.
        self.peers[slot.0 as usize].send(message);
    }

    fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// Slots without threads: the caller decides which slot steps next.
pub struct SteppedWorker {
    shared: Shared,
    peers: Vec<Outbox>,
    states: Mutex<Vec<Slot>>,
}

impl SteppedWorker {
    pub fn new(slots: usize, shared: Shared, reports: &Reports, wire: Option<&Arc<dyn Wire>>) -> Result<SteppedWorker> {
        let (peers, states) = make_slots(slots, &shared, reports, wire, |_| Ok(None))?;
        Ok(SteppedWorker { shared, peers, states: Mutex::new(states) })
    }

    /// Steps one slot; false when it had nothing to do.
    pub fn step(&self, slot: SlotId) -> bool {
        self.states.lock()[slot.0 as usize].step()
    }
}

impl Worker for SteppedWorker {
    fn slots(&self) -> usize {
        self.peers.len()
    }

    fn send(&self, slot: SlotId, message: ToSlot) {
        self.peers[slot.0 as usize].send(message);
    }

    fn shared(&self) -> &Shared {
        &self.shared
    }
}
