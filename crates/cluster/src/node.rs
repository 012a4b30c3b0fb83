//! A worker: it comes to the coordinator, and runs its share of the slots for one session after the other.
//!
//! Law: slots work only while the coordinator is heard. When its connection ends, or nothing comes from it for the time-out,
//! they stop and everything that they hold is forgotten; what they have stored counts only if the coordinator says so.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use checkpoint::names::ObjectName;
use checkpoint::permit::Generation;
use coord::Time;
use coord::waiting::wait_until;
use flow::{Epoch, Error, RelationId, Result, SlotId, SqlState};
use parking_lot::{Condvar, Mutex};
use runtime::slot::{Reports, Shared};
use runtime::worker::Holdings;
use runtime::{Budget, Depot, FromSlot, Link, Place, Share, ToSlot};
use tracing::{info, warn};

use crate::connection::{Beat, Connection, Hears, Pulse};
use crate::frame::Frame;
use crate::ground::{Ground, Machine, Way};
use crate::handshake::{Caller, Identity, Known, Welcome, accept, call};
use crate::links::{Credits, Deliveries, PeerLink};
use crate::message::{self, Begin, FromPeer, FromWorker, Member, StorePlace, ToPeer, ToWorker, ViewSize, frame_with};
use crate::reads::Reads;
use crate::roster::{HandshakePlace, check_token, listen, wake_listener};

/// How long a worker rests before it calls the coordinator again.
const CALL_REST: Duration = Duration::from_millis(500);
/// How long a worker that is stopped in order waits until the jobs have moved to others.
const LEAVE_TIME_MAX: Duration = Duration::from_secs(30);
/// How long another worker may wait for a session that it knows of already.
const SESSION_WAIT_MAX: Duration = Duration::from_secs(10);

/// What a worker needs to know.
#[derive(Clone)]
pub struct NodeConfig {
    /// Where the coordinator listens for workers, as `host:port`; where several take over from each other, all of them, separated by
    /// commas.
    pub coordinator: String,
    pub slots: usize,
    pub token: String,
    /// Bytes that the views and jobs of this worker may hold.
    pub memory_limit: usize,
    pub time: Time,
    /// Random: no two processes write objects under one name.
    pub nonce: u64,
}

/// A worker's process.
pub struct Node {
    config: NodeConfig,
    ground: Arc<dyn Ground>,
    /// Where other workers connect.
    addr: SocketAddr,
    identity: Mutex<Identity>,
    current: Mutex<Current>,
    changed: Condvar,
    leaves: AtomicBool,
    closed: AtomicBool,
}

#[derive(Default)]
struct Current {
    coordinator: Option<Arc<Connection>>,
    slots: Option<Arc<Slots>>,
    pulse: Option<Pulse>,
}

/// The slots of one session on this worker, with all that they hold.
pub(crate) struct Slots {
    session: u64,
    place: Place,
    pub share: Arc<dyn Share>,
    shared: Shared,
    coordinator: Arc<Connection>,
    reads: Reads,
    links: Vec<Arc<PeerLink>>,
    /// Connections of other workers to slots here.
    peers: Mutex<Vec<Arc<Connection>>>,
    /// It has been said that it cannot go on, or it has ended.
    over: AtomicBool,
}

impl Slots {
    /// Hands a message to a slot here. Errors: `08P01` it is not here.
    pub fn send(&self, slot: SlotId, message: ToSlot) -> Result<()> {
        if !self.place.holds(slot.0 as usize) {
            return Err(Error::new(SqlState::ProtocolViolation, format!("slot {slot} is not one of this worker")));
        }
        self.share.send(slot, message);
        Ok(())
    }

    /// Another worker is not heard any more.
    pub fn lost_peer(&self, worker: u32, cause: &Error) {
        let what = format!("worker {worker} is not heard any more");
        self.broken(Error::new(SqlState::ConnectionFailure, what).with_detail(cause.to_string()));
    }

    /// Tells the coordinator, once, that the session cannot go on.
    fn broken(&self, cause: Error) {
        if !self.over.swap(true, Ordering::AcqRel) {
            info!(error = %cause, "the session cannot go on");
            self.coordinator.say(self.session, &FromWorker::Broken(cause));
        }
    }

    /// Stops the slots and lets everything go.
    fn end(&self) {
        self.over.store(true, Ordering::Release);
        if let Some(depot) = &self.shared.depot {
            depot.begin_to_stop();
        }
        self.share.stop();
        if let Some(depot) = &self.shared.depot {
            depot.stop();
        }
        self.links.iter().for_each(|link| link.close());
        self.peers.lock().drain(..).for_each(|peer| peer.close());
    }

    fn sizes(&self) -> Vec<ViewSize> {
        let size = |(relation, store): (RelationId, Arc<state::Store>)| ViewSize {
            relation,
            rows: store.live_rows() as u64,
            bytes: store.bytes() as u64,
        };
        self.shared.stores.all().into_iter().map(size).collect()
    }

    fn follow(&self, request: u64, relation: RelationId) {
        let (session, coordinator) = (self.session, Arc::clone(&self.coordinator));
        let Some(store) = self.shared.stores.get(relation) else {
            let gone = Error::new(SqlState::ObjectNotInPrerequisiteState, "the view is being dropped or replaced");
            coordinator.say(session, &FromWorker::Following { request, written: Err(gone) });
            return;
        };
        let to = Arc::clone(&coordinator);
        let tap: state::Tap = Arc::new(move |epoch: Epoch, change: &flow::ChangeBatch| {
            let frames = message::pieces(change).and_then(|pieces| {
                let frame = |body| frame_with(session, &FromWorker::Change { relation, epoch }, body);
                pieces.into_iter().map(frame).collect::<Result<Vec<Frame>>>()
            });
            match frames {
                Ok(frames) => {
                    for frame in frames {
                        to.send(frame);
                    }
                }
                // Followers would miss it.
                Err(error) => {
                    to.say(session, &FromWorker::Broken(error));
                }
            }
        });
        store.hand_on_changes(Some(tap), |written| {
            coordinator.say(session, &FromWorker::Following { request, written: Ok(written) });
        });
    }

    /// What must not be cleared away.
    fn held(&self, request: u64, counter: u64) {
        let counter = AtomicU64::new(counter);
        let held = self.shared.held(&counter).unwrap_or_default();
        let names = held.iter().map(ObjectName::to_string).collect();
        let counter = counter.load(Ordering::Relaxed);
        self.coordinator.say(self.session, &FromWorker::Held { request, names, counter });
    }

    /// What the coordinator says. Errors: what came cannot be understood.
    fn take(&self, message: ToWorker, body: &[u8]) -> Result<()> {
        match message {
            ToWorker::Beat | ToWorker::Begin(_) | ToWorker::End | ToWorker::Leave => {}
            ToWorker::Slot(slot, message) => self.send(slot, message::join(message, body, None)?)?,
            ToWorker::Slots(message) => {
                let message = message::join(message, body, None)?;
                let slots = self.place.first..self.place.first + self.place.count;
                slots.for_each(|slot| self.share.send(SlotId(slot as u16), message.clone()));
            }
            ToWorker::Floor(floor) => self.shared.raise_floor(floor),
            ToWorker::ForgetView(relation) => self.shared.forget_view(relation),
            ToWorker::SucceedView(relation, epoch) => self.shared.succeed_view(relation, epoch),
            ToWorker::ForgetBefore(relation, floor) => self.shared.forget_before(relation, floor),
            ToWorker::Held { request, counter } => self.held(request, counter),
            ToWorker::Follow { request, relation } => self.follow(request, relation),
            ToWorker::Unfollow(relation) => {
                if let Some(store) = self.shared.stores.get(relation) {
                    store.hand_on_changes(None, |_| {});
                }
            }
            ToWorker::Count { request, relation, epoch } => self.reads.count(request, relation, epoch),
            ToWorker::Point { request, relation, epoch, projection } => {
                self.reads.point(request, relation, epoch, body, projection.as_deref());
            }
            ToWorker::Scan { scan, relation, epoch, shard, projection, batch_rows } => {
                self.reads.open(scan, relation, epoch, shard, projection.as_deref(), batch_rows, body);
            }
            ToWorker::Credit { scan, bytes } => self.reads.credit(scan, bytes),
            ToWorker::Cancel { scan } => self.reads.cancel(scan),
        }
        Ok(())
    }
}

/// Sends what a slot reports.
fn report(coordinator: &Connection, session: u64, report: FromSlot) -> Result<()> {
    for (report, body) in message::split_report(report)? {
        coordinator.send(frame_with(session, &FromWorker::Report(report), body)?);
    }
    Ok(())
}

impl Node {
    /// Listens for other workers. Errors: `42501` the address is open to other machines and there is no token.
    pub fn listen(listener: TcpListener, config: NodeConfig) -> Result<Arc<Node>> {
        let addr = listener.local_addr().map_err(|e| Error::internal(format!("a listener without an address: {e}")))?;
        check_token(addr, &config.token)?;
        let node = Node::new(addr, config, Arc::new(Machine));
        let (ends, serves) = (Arc::clone(&node), Arc::clone(&node));
        let closed = move || ends.closed.load(Ordering::Acquire);
        listen(listener, "peers", closed, move |stream, place| serves.serve_peer(stream, place))?;
        Ok(node)
    }

    /// A worker that nobody listens for yet.
    pub fn new(addr: SocketAddr, config: NodeConfig, ground: Arc<dyn Ground>) -> Arc<Node> {
        Arc::new(Node {
            identity: Mutex::new(Identity::new(None, config.token.clone())),
            config,
            ground,
            addr,
            current: Mutex::default(),
            changed: Condvar::new(),
            leaves: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    /// Where other workers connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Bytes that the work of readers of the views holds here now, of the memory limit.
    pub fn held_by_reads(&self) -> usize {
        self.current.lock().slots.as_ref().map_or(0, |slots| slots.reads.held())
    }

    /// Works until [`close`](Self::close), or until the coordinator says that the cluster is over. Errors: the coordinator refuses this worker, for a cause that does not pass by itself.
    pub fn run(self: &Arc<Self>) -> Result<()> {
        let addresses: Vec<&str> =
            self.config.coordinator.split(',').map(str::trim).filter(|a| !a.is_empty()).collect();
        if addresses.is_empty() {
            return Err(Error::new(SqlState::InvalidParameterValue, "a worker needs the address of a coordinator")
                .with_hint("Set coordinator_addr to host:port, or to several of them, separated by commas."));
        }
        let (mut told, mut next) = (vec![None; addresses.len()], 0);
        while !self.closed.load(Ordering::Acquire) && !self.leaves.load(Ordering::Acquire) {
            let (address, told) = (addresses[next], &mut told[next]);
            next = (next + 1) % addresses.len();
            let port = self.addr.port();
            let (bound, slots) = (self.addr.ip(), self.config.slots);
            // One that listens everywhere is reached where it reaches the coordinator.
            let me = |local: IpAddr| Caller::Worker {
                address: SocketAddr::from((if bound.is_unspecified() { local } else { bound }, port)).to_string(),
                slots,
            };
            let identity = self.identity.lock().clone();
            match call(address, &identity, me) {
                Ok((known, welcome)) => {
                    *told = None;
                    self.serve(address, known, &welcome)?;
                }
                Err(error) if error.state() == SqlState::InvalidAuthorization => return Err(error),
                Err(error) => {
                    if told.as_ref() != Some(&error) {
                        match error.state() {
                            SqlState::CannotConnectNow => {
                                info!(coordinator = address, %error, "sent on to another one")
                            }
                            _ => warn!(coordinator = address, %error, "the coordinator is not there; calling again"),
                        }
                        *told = Some(error);
                    }
                }
            }
            // One that leads may be the next.
            if next == 0 && !self.closed.load(Ordering::Acquire) {
                std::thread::sleep(CALL_REST);
            }
        }
        Ok(())
    }

    /// Ends [`run`](Self::run) when the coordinator has let the jobs go on without this worker; or after [`LEAVE_TIME_MAX`].
    pub fn leave(&self) {
        self.leaves.store(true, Ordering::Release);
        let mut current = self.current.lock();
        if let Some(coordinator) = &current.coordinator {
            info!("the worker leaves when the jobs have moved to others");
            coordinator.say(0, &FromWorker::Leaving);
        }
        // The coordinator closes the connection.
        if !wait_until(&self.changed, &mut current, LEAVE_TIME_MAX, |current| current.coordinator.is_none()) {
            warn!("the coordinator does not let the worker go in time");
        }
        drop(current);
        self.close();
    }

    /// Ends [`run`](Self::run).
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        wake_listener(self.addr);
        if let Some(coordinator) = &self.current.lock().coordinator {
            coordinator.close();
        }
    }

    /// Does what the coordinator says until it is away.
    fn serve(self: &Arc<Self>, address: &str, known: Known, welcome: &Welcome) -> Result<()> {
        let pulse = Pulse { heartbeat: welcome.heartbeat, timeout: welcome.timeout };
        let (coordinator, incoming) = Connection::start(known, "to-coordinator", pulse, true, self.beat())?;
        let mut orders = self.attach(welcome, coordinator);
        info!(worker = welcome.worker, coordinator = address, cluster = welcome.cluster, "known to the coordinator");
        incoming.hear(&mut orders);
        Ok(())
    }

    /// What is said to the coordinator in even intervals.
    pub fn beat(self: &Arc<Self>) -> Beat {
        let beats = Arc::downgrade(self);
        Box::new(move || {
            let slots = beats.upgrade().and_then(|node| node.current.lock().slots.clone());
            let (session, sizes) = slots.map_or((0, Vec::new()), |slots| (slots.session, slots.sizes()));
            message::frame(session, &FromWorker::Beat(sizes))
        })
    }

    /// Takes orders from a coordinator that has let this worker in.
    pub fn attach(self: &Arc<Self>, welcome: &Welcome, coordinator: Arc<Connection>) -> Orders {
        self.identity.lock().cluster = Some(welcome.cluster.clone());
        let pulse = Pulse { heartbeat: welcome.heartbeat, timeout: welcome.timeout };
        {
            let mut current = self.current.lock();
            current.coordinator = Some(Arc::clone(&coordinator));
            current.pulse = Some(pulse);
        }
        let orders = Orders { node: Arc::clone(self), me: welcome.worker, coordinator, pulse };
        orders.end_if_closed();
        orders
    }

    fn forget_session(&self) {
        let slots = self.current.lock().slots.take();
        if let Some(slots) = slots {
            slots.end();
        }
    }

    /// Starts the slots of a session, and connects them to those of the other workers.
    fn begin(
        self: &Arc<Self>,
        me: u32,
        session: u64,
        begin: &Begin,
        coordinator: &Arc<Connection>,
        pulse: Pulse,
    ) -> Result<()> {
        let odd = |what: &str| Error::new(SqlState::ProtocolViolation, format!("a session cannot begin: {what}"));
        let me = begin.members.iter().find(|member| member.worker == me);
        let me = me.ok_or_else(|| odd("this worker is not one of its members"))?;
        let place = Place { first: me.first, count: me.count, total: begin.slots };
        if place.total > flow::hash::VNODES || place.first + place.count > place.total {
            return Err(odd("its slots do not add up"));
        }
        let to = Arc::clone(coordinator);
        let reports: Reports = Arc::new(move |message| {
            if let Err(error) = report(&to, session, message) {
                // What a slot has to say cannot be left out.
                to.say(session, &FromWorker::Broken(error));
            }
        });
        let mut shared = Shared::new(Budget::new(self.config.memory_limit), begin.batch_rows.max(1));
        shared.raise_floor(begin.floor);
        if let Some((place, generation)) = &begin.store {
            shared.depot = Some(self.start_depot(place, *generation, &reports)?);
        }
        let links: Vec<(usize, usize, Arc<PeerLink>)> =
            begin.members.iter().map(|member| (member.first, member.count, PeerLink::new(session))).collect();
        let link_of = |slot: SlotId| -> Arc<dyn Link> {
            let holds = |(first, count, _): &&(usize, usize, Arc<PeerLink>)| {
                (*first..first + count).contains(&(slot.0 as usize))
            };
            match links.iter().find(holds) {
                Some((_, _, link)) => Arc::clone(link) as Arc<dyn Link>,
                // Members that do not add up: what is sent there ends the job.
                None => PeerLink::new(session),
            }
        };
        let share = self.ground.start_slots(place, &link_of, shared.clone(), &reports)?;
        let slots = Arc::new(Slots {
            session,
            place,
            share,
            reads: Reads::start(session, place.count, &shared, coordinator, &*self.ground)?,
            shared,
            coordinator: Arc::clone(coordinator),
            links: links.iter().map(|(_, _, link)| Arc::clone(link)).collect(),
            peers: Mutex::default(),
            over: AtomicBool::new(false),
        });
        // Others may connect from here on.
        self.current.lock().slots = Some(Arc::clone(&slots));
        self.changed.notify_all();
        for (member, (_, _, link)) in begin.members.iter().zip(&links) {
            if member.worker != me.worker {
                self.connect(&slots, me.worker, member, link, pulse).map_err(|e| {
                    if e.state() == SqlState::ConnectionFailure {
                        coordinator.say(session, &FromWorker::Unreached(member.worker));
                    }
                    Error::new(e.state(), format!("worker {} is not reached at {}", member.worker, member.address))
                        .with_detail(e.to_string())
                        .with_hint("Workers connect to each other: worker_addr must be reachable from all nodes.")
                })?;
            }
        }
        info!(session, slots = place.count, of = place.total, "slots have started");
        Ok(())
    }

    fn start_depot(&self, place: &StorePlace, generation: Generation, reports: &Reports) -> Result<Arc<Depot>> {
        let door = Arc::new(self.ground.door(place, self.config.nonce)?.of_generation(generation));
        let time = self.config.time.clone();
        let now_us = Arc::new(move || time.now_us());
        let (depot, service) = Depot::new(door, Arc::default(), Arc::clone(reports), now_us);
        depot.started(self.ground.start_service(Box::new(service))?);
        Ok(depot)
    }

    /// Connects to the slots of another worker.
    fn connect(&self, slots: &Arc<Slots>, me: u32, to: &Member, link: &Arc<PeerLink>, pulse: Pulse) -> Result<()> {
        let (identity, session, worker) = (self.identity.lock().clone(), slots.session, to.worker);
        let beat = Box::new(move || message::frame(session, &ToPeer::Beat));
        let hears = Box::new(Credits { session, worker, slots: Arc::downgrade(slots) });
        let (address, me) = (to.address.clone(), Caller::Peer { session, worker: me });
        link.connect(self.ground.connect(Way { address, me, identity, pulse, beat, hears })?);
        Ok(())
    }

    /// On the thread of another worker's connection, until it ends.
    fn serve_peer(self: &Arc<Self>, stream: TcpStream, place: HandshakePlace) {
        let identity = self.identity.lock().clone();
        let mut found = None;
        let admit = |caller: &Caller| {
            let (peer, welcome) = self.admit_peer(caller)?;
            found = Some(peer);
            Ok(welcome)
        };
        let accepted = accept(stream, &identity, admit);
        drop(place);
        let (known, peer) = match (accepted, found) {
            (Ok((known, _, _)), Some(peer)) => (known, peer),
            (Err(error), _) => {
                warn!(%error, hint = error.hint(), "a caller is refused");
                return;
            }
            (Ok(_), None) => return,
        };
        match Connection::start(known, "to-peer", peer.pulse, false, peer.beat()) {
            Ok((connection, incoming)) => {
                let mut deliveries = peer.attach(&connection);
                drop((peer, connection));
                incoming.hear(&mut *deliveries);
            }
            Err(error) => peer.slots.broken(error),
        }
    }

    /// Whether another worker may connect to slots that are here. Waits for its session, of which it may have heard earlier. Errors: `28000`
    /// the caller is no worker; `08006` its session does not run here.
    pub fn admit_peer(&self, caller: &Caller) -> Result<(Peer, Welcome)> {
        let (slots, worker) = self.wait_session(caller)?;
        let pulse = self.current.lock().pulse.ok_or_else(|| Error::internal("a session without a coordinator"))?;
        let cluster = self.identity.lock().cluster.clone().unwrap_or_default();
        let welcome = Welcome { cluster, worker: 0, heartbeat: pulse.heartbeat, timeout: pulse.timeout };
        Ok((Peer { slots, worker, pulse }, welcome))
    }

    /// The slots of the session that a caller is of, and its number. Another worker may hear of a session earlier than this one.
    fn wait_session(&self, caller: &Caller) -> Result<(Arc<Slots>, u32)> {
        let Caller::Peer { session, worker } = caller else {
            return Err(Error::new(SqlState::InvalidAuthorization, "a worker is no coordinator")
                .with_detail("Another worker offers its slots to it.")
                .with_hint("coordinator_addr must be the coordinator's cluster_addr."));
        };
        let mut current = self.current.lock();
        let wanted = |current: &Current| current.slots.clone().filter(|slots| slots.session == *session);
        wait_until(&self.changed, &mut current, SESSION_WAIT_MAX, |current| wanted(&*current).is_some());
        if let Some(slots) = wanted(&current) {
            return Ok((slots, *worker));
        }
        let mine = current.slots.as_ref().map_or_else(|| "none".into(), |slots| slots.session.to_string());
        Err(Error::new(SqlState::ConnectionFailure, "a worker of another session is refused")
            .with_detail(format!("Session {mine} runs here; worker {worker} is of session {session}."))
            .with_hint("It ends by itself: the coordinator begins another session."))
    }
}

/// Takes the orders of a coordinator, until its connection ends.
pub struct Orders {
    node: Arc<Node>,
    /// The number of this worker.
    me: u32,
    coordinator: Arc<Connection>,
    pulse: Pulse,
}

impl Orders {
    fn end_if_closed(&self) {
        if self.node.closed.load(Ordering::Acquire) {
            self.coordinator.close();
        }
    }
}

impl Hears for Orders {
    fn take(&mut self, frame: &Frame) -> Result<()> {
        let (node, coordinator) = (&self.node, &self.coordinator);
        match message::parse(frame)? {
            ToWorker::Beat => {}
            ToWorker::Begin(begin) => {
                node.forget_session();
                let answer = match node.begin(self.me, frame.session, &begin, coordinator, self.pulse) {
                    Ok(()) => FromWorker::Ready,
                    Err(error) => {
                        warn!(%error, "the session cannot begin");
                        node.forget_session();
                        FromWorker::Broken(error)
                    }
                };
                coordinator.say(frame.session, &answer);
            }
            ToWorker::End => {
                node.forget_session();
                coordinator.say(frame.session, &FromWorker::Ended);
            }
            ToWorker::Leave => {
                info!("the cluster is over");
                node.closed.store(true, Ordering::Release);
                wake_listener(node.addr);
            }
            message => {
                let slots = node.current.lock().slots.clone();
                // Others are of a session that has not begun here, or is over.
                if let Some(slots) = slots.filter(|slots| slots.session == frame.session) {
                    slots.take(message, &frame.body)?;
                }
            }
        }
        self.end_if_closed();
        Ok(())
    }

    fn ended(&mut self, cause: &Error) {
        self.coordinator.close();
        self.node.forget_session();
        self.node.current.lock().coordinator = None;
        self.node.changed.notify_all();
        if !self.node.closed.load(Ordering::Acquire) && !self.node.leaves.load(Ordering::Acquire) {
            warn!(error = %cause, "the coordinator is away; the slots have stopped");
        }
    }
}

/// Another worker that may connect to the slots of a session.
pub struct Peer {
    slots: Arc<Slots>,
    worker: u32,
    pulse: Pulse,
}

impl Peer {
    /// What is said to it when there is nothing to say.
    pub fn beat(&self) -> Beat {
        let session = self.slots.session;
        Box::new(move || message::frame(session, &FromPeer::Beat))
    }

    /// Takes what it sends on this connection.
    pub fn attach(&self, connection: &Arc<Connection>) -> Box<dyn Hears> {
        self.slots.peers.lock().push(Arc::clone(connection));
        if self.slots.over.load(Ordering::Acquire) {
            connection.close();
        }
        Box::new(Deliveries::new(&self.slots, self.slots.session, self.worker, connection))
    }
}
