//! A worker: the product's node, whose slots and services are stepped, and which comes to coordinators and to other workers over the
//! simulated network.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use checkpoint::door::Door;
use cluster::connection::Connection;
use cluster::ground::{Ground, Way};
use cluster::handshake::Caller;
use cluster::message::StorePlace;
use cluster::{Node, NodeConfig};
use coord::Time;
use flow::{Error, Result, SlotId, SqlState};
use parking_lot::Mutex;
use runtime::slot::{Reports, Shared};
use runtime::worker::Links;
use runtime::{Join, Place, Service, Share, SteppedWorker};

use crate::machine::Shelves;
use crate::store::SimStore;

use super::net::End;
use super::process::{Body, OthersWork, Process};
use super::{COORDINATORS, Fleet, here};

/// How long a worker rests before it calls again, in microseconds.
const CALL_REST_US: i64 = 30_000;
/// Slots of a worker at most.
const SLOTS_MAX: usize = 2;
const MEMORY: usize = 1 << 30;

/// Where a machine is reached.
pub fn address(host: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host as u8 + 1], 7000))
}

/// What the node stands on.
pub struct Stepped {
    number: usize,
    store: Arc<SimStore>,
    share: Mutex<Option<(Place, Arc<SteppedWorker>)>>,
    services: Shelves,
}

impl Ground for Stepped {
    fn start_slots(&self, place: Place, links: Links<'_>, shared: Shared, reports: &Reports) -> Result<Arc<dyn Share>> {
        let share = Arc::new(SteppedWorker::new_at(place, Some(links), shared, reports, None)?);
        *self.share.lock() = Some((place, Arc::clone(&share)));
        Ok(share)
    }

    fn start_service(&self, service: Box<dyn Service>) -> Result<Box<dyn Join>> {
        Ok(self.services.start(service))
    }

    fn door(&self, _: &StorePlace, nonce: u64) -> Result<Door> {
        Ok(Door::new(Arc::clone(&self.store) as _, Arc::new(OthersWork), nonce))
    }

    fn connect(&self, way: Way) -> Result<Arc<Connection>> {
        let unreached = |what: &str| Error::new(SqlState::ConnectionFailure, format!("{}: {what}", way.address));
        let fleet = here().ok_or_else(|| Error::internal("no fleet"))?;
        let me = fleet.process(self.number).ok_or_else(|| Error::internal("no process"))?;
        let to = (COORDINATORS..fleet.hosts.len()).find(|host| address(*host).to_string() == way.address);
        let to = to.and_then(|host| fleet.awake(host)).ok_or_else(|| unreached("nobody listens there"))?;
        if !(fleet.net.goes(&fleet, me.host, to.host) && fleet.net.goes(&fleet, to.host, me.host)) {
            return Err(unreached("it is not reached"));
        }
        let Body::Worker(worker) = &to.body else { return Err(unreached("it is no worker")) };
        let (peer, _) =
            fleet.enter(&to, || worker.node.admit_peer(&way.me)).unwrap_or_else(|| Err(unreached("it has died")))?;
        let (mine, outgoing) = Connection::by_hand(way.beat);
        let (theirs, back) = Connection::by_hand(peer.beat());
        let deliveries = peer.attach(&theirs);
        let now_us = fleet.now_us();
        let end = End::new(&me, Arc::clone(&mine), outgoing, false, way.hears, now_us);
        fleet.net.connect(end, End::new(&to, theirs, back, false, deliveries, now_us));
        Ok(mine)
    }
}

/// A worker's process.
pub struct Worker {
    node: Arc<Node>,
    ground: Arc<Stepped>,
    slots: usize,
    coordinator: Mutex<Option<Arc<Connection>>>,
    next: Cell<usize>,
    call_us: AtomicI64,
}

impl Worker {
    pub fn new(fleet: &Fleet, host: usize, number: usize, store: &Arc<SimStore>) -> Worker {
        let slots = 1 + host % SLOTS_MAX;
        let now = Arc::clone(&fleet.world.borrow().now);
        let seed = fleet.world.borrow().seed;
        let config = NodeConfig {
            coordinator: String::new(),
            slots,
            token: String::new(),
            memory_limit: MEMORY,
            time: Time::from_fn(move || now.load(Ordering::Relaxed)),
            nonce: seed.wrapping_mul(10_000) + number as u64,
        };
        let (share, services) = (Mutex::default(), Shelves::default());
        let ground = Arc::new(Stepped { number, store: Arc::clone(store), share, services });
        let node = Node::new(address(host), config, Arc::clone(&ground) as Arc<dyn Ground>);
        let (coordinator, next, call_us) = (Mutex::default(), Cell::new(fleet.below(COORDINATORS)), AtomicI64::new(0));
        Worker { node, ground, slots, coordinator, next, call_us }
    }

    /// One thing that a worker does; false: there was nothing to do.
    pub fn step(&self, fleet: &Fleet, process: &Rc<Process>) -> bool {
        let chosen = fleet.below(840);
        match chosen % 7 {
            0..=3 => {
                let share = self.ground.share.lock().clone();
                let Some((place, share)) = share else { return self.call(fleet, process) };
                let slot = SlotId((place.first + chosen / 7 % place.count.max(1)) as u16);
                fleet.enter(process, || share.step(slot)).unwrap_or(false)
            }
            4 | 5 => fleet.enter(process, || self.ground.services.serve(chosen / 7)).unwrap_or(false),
            _ => self.call(fleet, process),
        }
    }

    /// What it has.
    pub fn describe(&self) -> String {
        let place = self.ground.share.lock().as_ref().map(|(place, _)| *place);
        let is_known = self.coordinator.lock().as_ref().is_some_and(|connection| !connection.is_closed());
        format!("slots {place:?}, connected: {is_known}, {} services", self.ground.services.count())
    }

    /// Calls one coordinator after the other, unless it has one.
    fn call(&self, fleet: &Fleet, process: &Rc<Process>) -> bool {
        let is_known = self.coordinator.lock().as_ref().is_some_and(|connection| !connection.is_closed());
        let now_us = fleet.now_us();
        if is_known || now_us < self.call_us.load(Ordering::Relaxed) {
            return false;
        }
        self.call_us.store(now_us + CALL_REST_US, Ordering::Relaxed);
        let host = self.next.get();
        self.next.set((host + 1) % COORDINATORS);
        let Some(leader) = fleet.awake(host) else { return false };
        if !(fleet.net.goes(fleet, process.host, host) && fleet.net.goes(fleet, host, process.host)) {
            return false;
        }
        let Body::Coordinator(coordinator) = &leader.body else { return false };
        let (roster, address) = (coordinator.roster(), self.node.addr().to_string());
        let caller = Caller::Worker { address: address.clone(), slots: self.slots };
        let Some(Ok(welcome)) = fleet.enter(&leader, || roster.admit(&caller)) else { return false };
        let (theirs, back) = Connection::by_hand(roster.beat());
        let registered =
            fleet.enter(&leader, || roster.register(Arc::clone(&theirs), welcome.worker, &address, self.slots));
        let Some(Ok(reports)) = registered else { return false };
        let (mine, outgoing) = Connection::by_hand(self.node.beat());
        *self.coordinator.lock() = Some(Arc::clone(&mine));
        let orders = self.node.attach(&welcome, Arc::clone(&mine));
        fleet.tell(|| format!("{process} comes to {leader} as worker {}", welcome.worker));
        let end = End::new(process, mine, outgoing, true, Box::new(orders), now_us);
        fleet.net.connect(end, End::new(&leader, theirs, back, false, Box::new(reports), now_us));
        true
    }

    /// Lets go of everything.
    pub fn free(&self) {
        self.ground.services.clear();
        let share = self.ground.share.lock().take();
        if let Some((_, share)) = share {
            share.stop();
        }
        drop(self.coordinator.lock().take());
    }
}
