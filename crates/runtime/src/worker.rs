//! Slots put to work: as one thread each, or stepped by a test in an order drawn from its seed. Slots of one job may be spread
//! over several processes; then each process has some of them, and links to the others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use checkpoint::names::ObjectName;
use crossbeam_channel::{Sender, unbounded};
use flow::{Epoch, Error, RelationId, Result, SlotId};
use parking_lot::Mutex;
use state::RelationStore;

use crate::background::Background;
use crate::exits::Exits;
use crate::message::{Counted, FromSlot, ToSlot};
use crate::slot::{Reports, Shared, Slot};

/// What every message passes through on its way. Within a process there is nothing; a test sees each message, and may
/// hand on what its bytes say instead of the message itself.
pub trait Wire: Send + Sync {
    fn to_slot(&self, slot: SlotId, message: ToSlot) -> ToSlot;
    fn reported(&self, message: FromSlot) -> FromSlot;
}

/// The way to a slot of another process. Messages of one sender to one slot arrive in order.
pub trait Link: Send + Sync {
    /// Sends a message that carries no rows. False when the slot is gone.
    fn send(&self, slot: SlotId, message: ToSlot) -> bool;

    /// Sends rows of an exchange ([`ToSlot::Exchange`]) that the sender counts as waiting there. When they do not wait any more
    /// they are given back by [`Share::credit`]. False when the slot is gone. Errors: `54000` a row is too large to go.
    fn send_rows(&self, slot: SlotId, rows: ToSlot, counted: Counted) -> Result<bool>;
}

#[derive(Clone)]
enum Way {
    Here(Sender<ToSlot>),
    Away(Arc<dyn Link>),
}

/// The way to a slot's inbox.
#[derive(Clone)]
pub struct Outbox {
    slot: SlotId,
    way: Way,
    wire: Option<Arc<dyn Wire>>,
}

impl Outbox {
    /// Messages of one sender arrive in order. False when the slot is gone.
    pub fn send(&self, message: ToSlot) -> bool {
        match &self.way {
            Way::Here(inbox) => inbox.send(self.pass(message)).is_ok(),
            Way::Away(link) => link.send(self.slot, self.pass(message)),
        }
    }

    /// Sends rows of an exchange, which are counted as waiting for the slot. False when the slot is gone. Errors: `54000`.
    pub fn send_rows(&self, rows: ToSlot, counted: Counted) -> Result<bool> {
        match &self.way {
            Way::Here(inbox) => Ok(inbox.send(self.pass(rows)).is_ok()),
            Way::Away(link) => link.send_rows(self.slot, self.pass(rows), counted),
        }
    }

    fn pass(&self, message: ToSlot) -> ToSlot {
        match &self.wire {
            Some(wire) => wire.to_slot(self.slot, message),
            None => message,
        }
    }

    /// Whether the slot is one of this process.
    pub fn is_here(&self) -> bool {
        matches!(self.way, Way::Here(_))
    }
}

/// Where a process with slots stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// Its slots work.
    Running,
    /// It is there, and its slots are not needed.
    Spare,
    /// It is there, and jobs have not started.
    Waiting,
    /// It is there, and jobs that run on too few will spread over it when it has stayed for a while.
    Joining,
    /// It is being stopped in order, and works until the jobs have moved to others.
    Leaving,
    /// Nothing is heard of it.
    Away,
}

impl WorkerState {
    /// As `SHOW WORKERS` prints it.
    pub fn name(self) -> &'static str {
        match self {
            WorkerState::Running => "running",
            WorkerState::Spare => "spare",
            WorkerState::Waiting => "waiting",
            WorkerState::Joining => "joining",
            WorkerState::Leaving => "leaving",
            WorkerState::Away => "away",
        }
    }
}

/// A process with slots, for `SHOW WORKERS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    pub id: u32,
    /// `local` for the coordinator's own.
    pub address: String,
    pub slots: usize,
    pub state: WorkerState,
    /// When something was heard of it last, and when it came, in microseconds since the Unix epoch.
    pub heard_us: Option<i64>,
    pub started_us: Option<i64>,
}

/// The slots as the coordinator sees them.
pub trait Worker: Send + Sync {
    /// Number of slots.
    fn slots(&self) -> usize;

    /// Rows of a batch under load.
    fn batch_rows(&self) -> usize;

    /// Hands a message to one slot; messages arrive in the order of the calls.
    fn send(&self, slot: SlotId, message: ToSlot);

    /// What the slots hold beside their messages.
    fn holdings(&self) -> &dyn Holdings;

    /// What the slots share, if they are in this process.
    fn shared(&self) -> Option<&Shared>;

    /// The processes that the slots are in.
    fn processes(&self) -> Vec<WorkerStatus> {
        let (address, state) = ("local".into(), WorkerState::Running);
        vec![WorkerStatus { id: 1, address, slots: self.slots(), state, heard_us: None, started_us: None }]
    }

    /// On how many processes jobs are to run.
    fn processes_wanted(&self) -> usize {
        1
    }

    /// Hands a clone of `message` to every slot.
    fn broadcast(&self, message: &ToSlot) {
        (0..self.slots()).for_each(|s| self.send(SlotId(s as u16), message.clone()));
    }
}

/// Slots of one process among several, as that process sees them.
pub trait Share: Worker {
    /// Takes back what was counted as waiting for a slot of another process, and wakes slots that may have waited for it.
    fn credit(&self, counted: &Counted);

    /// Stops the slots after the work at hand.
    fn stop(&self);
}

/// What slots hold beside their messages: the rows of views, and state on its way to the store. What is asked here takes effect
/// between the messages to the slots that were sent before and those that are sent after.
pub trait Holdings: Send + Sync {
    /// The oldest epoch that readers may still want.
    fn floor(&self) -> Epoch;

    /// No reader will want an older epoch than `floor`, which only grows and is not above the newest completed one.
    fn raise_floor(&self, floor: Epoch);

    /// The rows of a view, if a job of it has been deployed.
    fn view(&self, relation: RelationId) -> Option<Arc<dyn RelationStore>>;

    /// Forgets the rows of a view; readers that hold them keep them.
    fn forget_view(&self, relation: RelationId);

    /// Another deployment of a view's job goes on after `epoch`; see [`state::Store::successor`].
    fn succeed_view(&self, relation: RelationId, epoch: Epoch);

    /// Nobody wants what a view had before it was succeeded, if that was below the floor.
    fn forget_before(&self, relation: RelationId, floor: Epoch);

    /// The objects of checkpoints that must not be cleared away although the newest one may not name them. Raises `counter` to
    /// the number of the newest object that was named, and no object is named below it any more. Errors: `57P03` slots are away.
    fn held(&self, counter: &AtomicU64) -> Result<BTreeSet<ObjectName>>;
}

impl Holdings for Shared {
    fn floor(&self) -> Epoch {
        Epoch(self.floor.load(Ordering::Acquire))
    }

    fn raise_floor(&self, floor: Epoch) {
        self.floor.fetch_max(floor.0, Ordering::AcqRel);
    }

    fn view(&self, relation: RelationId) -> Option<Arc<dyn RelationStore>> {
        self.stores.get(relation).map(|store| store as Arc<dyn RelationStore>)
    }

    fn forget_view(&self, relation: RelationId) {
        self.stores.remove(relation);
    }

    fn succeed_view(&self, relation: RelationId, epoch: Epoch) {
        self.stores.succeed(relation, epoch);
    }

    fn forget_before(&self, relation: RelationId, floor: Epoch) {
        if let Some(store) = self.stores.get(relation) {
            store.forget_before(floor);
        }
    }

    fn held(&self, counter: &AtomicU64) -> Result<BTreeSet<ObjectName>> {
        Ok(self.depot.as_ref().map(|depot| depot.held(counter)).unwrap_or_default())
    }
}

/// Which slots of a cluster are those of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub first: usize,
    pub count: usize,
    /// Slots of all processes.
    pub total: usize,
}

impl Place {
    /// All slots are here.
    pub fn whole(slots: usize) -> Place {
        Place { first: 0, count: slots, total: slots }
    }

    pub fn holds(&self, slot: usize) -> bool {
        (self.first..self.first + self.count).contains(&slot)
    }
}

/// The ways to slots of other processes. Not asked for those of this one.
pub type Links<'a> = &'a dyn Fn(SlotId) -> Arc<dyn Link>;

fn make_slots(
    place: Place,
    links: Option<Links<'_>>,
    shared: &Shared,
    reports: &Reports,
    wire: Option<&Arc<dyn Wire>>,
    mut background: impl FnMut(&Exits) -> Result<Option<Background>>,
) -> Result<(Vec<Outbox>, Vec<Slot>)> {
    let reports: Reports = match wire {
        Some(wire) => {
            let (wire, reports) = (Arc::clone(wire), Arc::clone(reports));
            Arc::new(move |message| reports(wire.reported(message)))
        }
        None => Arc::clone(reports),
    };
    let mut inboxes = Vec::with_capacity(place.count);
    let peers = (0..place.total)
        .map(|n| {
            let slot = SlotId(n as u16);
            let way = if place.holds(n) {
                let (sender, inbox) = unbounded();
                inboxes.push((slot, inbox));
                Way::Here(sender)
            } else {
                let links = links.ok_or_else(|| Error::internal(format!("no way leads to slot {slot}")))?;
                Way::Away(links(slot))
            };
            Ok(Outbox { slot, way, wire: wire.cloned() })
        })
        .collect::<Result<Vec<Outbox>>>()?;
    let states = inboxes
        .into_iter()
        .map(|(slot, inbox)| {
            let exits = Exits { slot, peers: peers.clone(), reports: Arc::clone(&reports) };
            let background = background(&exits)?;
            Ok(Slot::new(shared.clone(), inbox, exits, background))
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
        ThreadWorker::start_at(Place::whole(slots), None, shared, reports, wire)
    }

    /// Starts threads for the slots of `place`; `links` lead to the others.
    pub fn start_at(
        place: Place,
        links: Option<Links<'_>>,
        shared: Shared,
        reports: &Reports,
        wire: Option<&Arc<dyn Wire>>,
    ) -> Result<ThreadWorker> {
        let mut threads = Vec::new();
        let (peers, states) = make_slots(place, links, &shared, reports, wire, |exits| {
            let (background, thread) = Background::start(exits.clone(), STACK_BYTES)?;
            threads.push(thread);
            Ok(Some(background))
        })?;
        for mut slot in states {
            let thread = std::thread::Builder::new()
                .name(format!("slot-{}", slot.id()))
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
}

/// Wakes the slots that are here, if what was counted has made room.
fn take_back(shared: &Shared, peers: &[Outbox], counted: &Counted) {
    if shared.credit(counted) {
        for peer in peers.iter().filter(|peer| peer.is_here()) {
            peer.send(ToSlot::Wake);
        }
    }
}

impl Share for ThreadWorker {
    fn credit(&self, counted: &Counted) {
        take_back(&self.shared, &self.peers, counted);
    }

    /// Waits for the threads.
    fn stop(&self) {
        for peer in self.peers.iter().filter(|peer| peer.is_here()) {
            peer.send(ToSlot::Shutdown);
        }
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

    fn batch_rows(&self) -> usize {
        self.shared.batch_rows
    }

    fn holdings(&self) -> &dyn Holdings {
        &self.shared
    }

    fn shared(&self) -> Option<&Shared> {
        Some(&self.shared)
    }
}

/// Slots without threads: the caller decides which slot steps next.
pub struct SteppedWorker {
    shared: Shared,
    peers: Vec<Outbox>,
    /// Those that are not at work just now; nothing once it is stopped.
    states: Mutex<Option<Vec<Slot>>>,
}

impl SteppedWorker {
    pub fn new(slots: usize, shared: Shared, reports: &Reports, wire: Option<&Arc<dyn Wire>>) -> Result<SteppedWorker> {
        SteppedWorker::new_at(Place::whole(slots), None, shared, reports, wire)
    }

    /// The slots of `place`; `links` lead to the others.
    pub fn new_at(
        place: Place,
        links: Option<Links<'_>>,
        shared: Shared,
        reports: &Reports,
        wire: Option<&Arc<dyn Wire>>,
    ) -> Result<SteppedWorker> {
        let (peers, states) = make_slots(place, links, &shared, reports, wire, |_| Ok(None))?;
        Ok(SteppedWorker { shared, peers, states: Mutex::new(Some(states)) })
    }

    /// Steps one slot; false when it had nothing to do, is elsewhere, or has stopped.
    pub fn step(&self, slot: SlotId) -> bool {
        let taken = self.states.lock().as_mut().and_then(|states| {
            let at = states.iter().position(|state| state.id() == slot)?;
            Some(states.swap_remove(at))
        });
        let Some(mut state) = taken else { return false };
        // Others may work in the middle of it, and stop all slots.
        let worked = state.step();
        if let Some(states) = self.states.lock().as_mut() {
            states.push(state);
        }
        worked
    }
}

impl Share for SteppedWorker {
    fn credit(&self, counted: &Counted) {
        take_back(&self.shared, &self.peers, counted);
    }

    fn stop(&self) {
        let states = self.states.lock().take();
        drop(states);
    }
}

impl Worker for SteppedWorker {
    fn slots(&self) -> usize {
        self.peers.len()
    }

    fn send(&self, slot: SlotId, message: ToSlot) {
        self.peers[slot.0 as usize].send(message);
    }

    fn batch_rows(&self) -> usize {
        self.shared.batch_rows
    }

    fn holdings(&self) -> &dyn Holdings {
        &self.shared
    }

    fn shared(&self) -> Option<&Shared> {
        Some(&self.shared)
    }
}
