//! The coordinator's list of workers: they come to it, say how many slots they have, and are there as long as they are heard.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use coord::Time;
use flow::hash::VNODES;
use flow::{Error, Result, SqlState};
use parking_lot::{Condvar, Mutex};
use runtime::{WorkerState, WorkerStatus};
use tracing::{debug, info, warn};

use crate::connection::{Connection, Incoming, Pulse};
use crate::handshake::{Caller, Identity, Known, Welcome, accept};
use crate::message::{self, FromWorker, ToWorker};
use crate::session::Session;

/// Workers that may be known at once.
pub const WORKERS_MAX: usize = 256;
/// Callers whose handshake may be under way at once; others are turned away unheard.
pub const HANDSHAKES_MAX: usize = 64;
/// How long a listener rests when it cannot accept.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What a coordinator needs to know its workers.
#[derive(Clone)]
pub struct RosterConfig {
    pub identity: Identity,
    /// Workers that the jobs run on; more are spare.
    pub workers: usize,
    pub pulse: Pulse,
    pub time: Time,
    /// Random: sessions are numbered from it.
    pub nonce: u64,
}

/// A worker that a session may be begun with.
#[derive(Clone)]
pub struct Chosen {
    pub id: u32,
    pub address: String,
    pub slots: usize,
    pub(crate) connection: Arc<Connection>,
}

struct Registered {
    address: String,
    slots: usize,
    /// Absent while it is away.
    connection: Option<Arc<Connection>>,
    heard_us: Arc<AtomicI64>,
    started_us: i64,
}

#[derive(Default)]
struct State {
    workers: BTreeMap<u32, Registered>,
    next: u32,
    session: Option<Arc<Session>>,
    /// Why no worker is let in: another coordinator leads, or the cluster is over.
    standby: Option<Error>,
}

/// The workers of a cluster.
pub struct Roster {
    config: RosterConfig,
    addr: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
    sessions: AtomicU64,
    closed: AtomicBool,
}

/// Accepts connections until `closed`, each on a thread of its own, and no more than [`HANDSHAKES_MAX`] that are not known yet.
pub(crate) fn listen(
    listener: TcpListener,
    name: &'static str,
    closed: impl Fn() -> bool + Send + 'static,
    serve: impl Fn(TcpStream, HandshakePlace) + Send + Sync + 'static,
) -> Result<()> {
    let (serve, open) = (Arc::new(serve), Arc::new(AtomicUsize::new(0)));
    let accept = move || {
        loop {
            let stream = listener.accept();
            if closed() {
                return;
            }
            let Ok((stream, _)) = stream else {
                // Out of handles, as a rule: they come back.
                std::thread::sleep(ACCEPT_REST);
                continue;
            };
            if open.fetch_add(1, Ordering::AcqRel) >= HANDSHAKES_MAX {
                open.fetch_sub(1, Ordering::AcqRel);
                warn!(limit = HANDSHAKES_MAX, "too many callers at once; one is turned away");
                continue;
            }
            let (serve, place) = (Arc::clone(&serve), HandshakePlace(Arc::clone(&open)));
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || serve(stream, place));
            if let Err(error) = thread {
                warn!(%error, "a caller is turned away: no thread can be started");
            }
        }
    };
    let thread = std::thread::Builder::new().name(format!("{name}-listen")).spawn(accept);
    thread.map(drop).map_err(|e| Error::internal(format!("cannot start the thread that listens for nodes: {e}")))
}

/// Lets a thread that blocks in accept look whether it is to end.
pub(crate) fn wake_listener(addr: SocketAddr) {
    let ip = match addr.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    // If nobody listens there any more, it has ended.
    let _ = TcpStream::connect_timeout(&(ip, addr.port()).into(), ACCEPT_REST);
}

/// One of the callers whose handshake is under way, until this is dropped.
pub(crate) struct HandshakePlace(Arc<AtomicUsize>);

impl Drop for HandshakePlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Roster {
    /// Listens for workers. Errors: `42501` the address is open to other machines and there is no token.
    pub fn listen(listener: TcpListener, config: RosterConfig) -> Result<Arc<Roster>> {
        let addr = listener.local_addr().map_err(|e| Error::internal(format!("a listener without an address: {e}")))?;
        check_token(addr, &config.identity.token)?;
        let roster = Arc::new(Roster {
            sessions: AtomicU64::new(config.nonce),
            config,
            addr,
            state: Mutex::default(),
            changed: Condvar::new(),
            closed: AtomicBool::new(false),
        });
        let (ends, serves) = (Arc::clone(&roster), Arc::clone(&roster));
        let closed = move || ends.closed.load(Ordering::Acquire);
        listen(listener, "workers", closed, move |stream, place| serves.serve(stream, place))?;
        Ok(roster)
    }

    /// Where workers come to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn pulse(&self) -> Pulse {
        self.config.pulse
    }

    /// Lets all workers go and hears no more of them.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        wake_listener(self.addr);
        let state = self.state.lock();
        state.workers.values().filter_map(|w| w.connection.as_ref()).for_each(|connection| connection.close());
    }

    /// The cluster is over: tells all workers to end, and waits until their connections have ended, no longer than the time-out of the
    /// pulse. Who comes later is refused, for this cause.
    pub fn dismiss(&self, cause: Error) {
        let mut state = self.state.lock();
        state.standby = Some(cause);
        for worker in state.workers.values() {
            if let Some(connection) = &worker.connection {
                connection.say(0, &ToWorker::Leave);
            }
        }
        while state.workers.values().any(|worker| worker.connection.is_some()) {
            if self.changed.wait_for(&mut state, self.config.pulse.timeout).timed_out() {
                return;
            }
        }
    }

    /// Lets no worker in, for this cause, and lets those go that are here, so that they look for the coordinator that leads; `None`:
    /// this one does.
    pub fn stand_by(&self, cause: Option<Error>) {
        let mut state = self.state.lock();
        if cause.is_some() {
            state.workers.values().filter_map(|w| w.connection.as_ref()).for_each(|connection| connection.close());
        }
        state.standby = cause;
    }

    /// Every worker that has come, in the order in which they came first.
    pub fn workers(&self) -> Vec<WorkerStatus> {
        let state = self.state.lock();
        let session = state.session.as_ref();
        let status = |(id, worker): (&u32, &Registered)| WorkerStatus {
            id: *id,
            address: worker.address.clone(),
            slots: worker.slots,
            state: match (&worker.connection, session) {
                (None, _) => WorkerState::Away,
                (Some(_), None) => WorkerState::Waiting,
                (Some(_), Some(session)) if session.has(*id) => WorkerState::Running,
                (Some(_), Some(_)) => WorkerState::Spare,
            },
            heard_us: Some(worker.heard_us.load(Ordering::Relaxed)),
            started_us: Some(worker.started_us),
        };
        state.workers.iter().map(status).collect()
    }

    /// Why jobs cannot run for now: there are too few workers. `None`: there are enough.
    pub fn missing(&self) -> Option<Error> {
        let workers = self.workers();
        let here = workers.iter().filter(|worker| worker.state != WorkerState::Away).count();
        if here >= self.config.workers {
            return None;
        }
        let away: Vec<String> = workers
            .iter()
            .filter(|worker| worker.state == WorkerState::Away)
            .map(|worker| format!("worker {} ({})", worker.id, worker.address))
            .collect();
        let mut detail = format!("{} workers are needed, {here} are here.", self.config.workers);
        if !away.is_empty() {
            detail.push_str(&format!(" Away: {}.", away.join(", ")));
        }
        Some(
            Error::new(SqlState::CannotConnectNow, "the cluster waits for workers").with_detail(detail).with_hint(
                format!("Start workers with --coordinator-addr {}; cluster_workers says how many.", self.addr),
            ),
        )
    }

    /// The workers to begin a session with, once there are enough; waits for them no longer than `at_most`.
    pub fn choose(&self, at_most: Duration) -> Option<Vec<Chosen>> {
        let mut state = self.state.lock();
        loop {
            let here = state.workers.iter().filter_map(|(id, worker)| {
                let connection = worker.connection.as_ref().filter(|connection| !connection.is_closed())?;
                let (address, connection) = (worker.address.clone(), Arc::clone(connection));
                Some(Chosen { id: *id, address, slots: worker.slots, connection })
            });
            let chosen: Vec<Chosen> = here.take(self.config.workers).collect();
            if chosen.len() == self.config.workers {
                return Some(chosen);
            }
            if self.changed.wait_for(&mut state, at_most).timed_out() {
                return None;
            }
        }
    }

    /// Unlike every other, of any coordinator.
    pub(crate) fn next_session(&self) -> u64 {
        // 0 is of no session.
        self.sessions.fetch_add(1, Ordering::Relaxed).max(1)
    }

    pub(crate) fn enter(&self, session: &Arc<Session>) {
        self.state.lock().session = Some(Arc::clone(session));
    }

    pub(crate) fn leave(&self, number: u64) {
        let left = self.state.lock().session.take_if(|session| session.number() == number);
        drop(left);
    }

    /// On the thread of one caller, until its connection ends.
    fn serve(self: &Arc<Self>, stream: TcpStream, place: HandshakePlace) {
        let from = stream.peer_addr().map_or_else(|_| "unknown".into(), |addr| addr.to_string());
        let admit = |caller: &Caller| self.admit(caller);
        let (known, caller, welcome) = match accept(stream, &self.config.identity, admit) {
            Ok(accepted) => accepted,
            // It calls again and again.
            Err(error) if error.state() == SqlState::CannotConnectNow => {
                debug!(from, %error, "a worker is sent on to the leader");
                return;
            }
            Err(error) => {
                warn!(from, %error, hint = error.hint(), "a caller is refused");
                return;
            }
        };
        drop(place);
        if let Caller::Standby { address } = &caller {
            info!(address, "a standby has called");
        }
        let Caller::Worker { address, slots } = caller else { return };
        match self.register(known, welcome.worker, &address, slots) {
            Ok((connection, incoming, heard_us)) => self.hear(welcome.worker, &connection, incoming, &heard_us),
            Err(error) => warn!(from, %error, "a worker cannot be registered"),
        }
    }

    /// Whether a caller may come, and its number.
    fn admit(&self, caller: &Caller) -> Result<Welcome> {
        let refuse = |message: &str, detail: String, hint: &str| {
            Err(Error::new(SqlState::InvalidAuthorization, message).with_detail(detail).with_hint(hint))
        };
        let Pulse { heartbeat, timeout } = self.config.pulse;
        let cluster = self.config.identity.cluster.clone().unwrap_or_default();
        if let Caller::Standby { .. } = caller {
            return Ok(Welcome { cluster, worker: 0, heartbeat, timeout });
        }
        let Caller::Worker { address, slots } = caller else {
            return refuse(
                "a coordinator has no slots",
                "A worker calls it as if it were another worker.".into(),
                "Give each worker a worker_addr of its own, which is not the coordinator's.",
            );
        };
        if *slots == 0 || *slots > VNODES {
            return refuse(
                "a worker has too few or too many slots",
                format!("From 1 to {VNODES} are possible, {slots} came."),
                "Start it with another number of --slots.",
            );
        }
        let mut state = self.state.lock();
        if let Some(standby) = &state.standby {
            return Err(standby.clone());
        }
        let known = state.workers.iter().find(|(_, worker)| worker.address == *address).map(|(id, _)| *id);
        let worker = match known {
            Some(id) => id,
            None if state.workers.len() >= WORKERS_MAX => {
                // The number of one that is gone is taken again only where there are no others.
                let gone = state.workers.iter().find(|(_, w)| w.connection.is_none()).map(|(id, _)| *id);
                match gone {
                    Some(id) => drop(state.workers.remove(&id)),
                    None => {
                        return refuse(
                            "the cluster has too many workers",
                            format!("The most is {WORKERS_MAX}."),
                            "Stop some, or give fewer of them more slots.",
                        );
                    }
                }
                state.next += 1;
                state.next
            }
            None => {
                state.next += 1;
                state.next
            }
        };
        Ok(Welcome { cluster, worker, heartbeat, timeout })
    }

    fn register(
        &self,
        known: Known,
        id: u32,
        address: &str,
        slots: usize,
    ) -> Result<(Arc<Connection>, Incoming, Arc<AtomicI64>)> {
        let beat = Box::new(|| message::frame(0, &ToWorker::Beat));
        let (connection, incoming) =
            Connection::start(known, &format!("to-worker-{id}"), self.config.pulse, false, beat)?;
        let now_us = self.config.time.now_us();
        let heard_us = Arc::new(AtomicI64::new(now_us));
        let registered = Registered {
            address: address.to_string(),
            slots,
            connection: Some(Arc::clone(&connection)),
            heard_us: Arc::clone(&heard_us),
            started_us: now_us,
        };
        let before = {
            let mut state = self.state.lock();
            if let Some(standby) = &state.standby {
                connection.close();
                return Err(standby.clone());
            }
            let before = state.workers.insert(id, registered).and_then(|worker| worker.connection);
            if before.is_some()
                && let Some(session) = state.session.clone().filter(|session| session.has(id))
            {
                // The process that had its slots is gone, though its connection has not said so yet.
                drop(state);
                session.lose(id, &Error::new(SqlState::ConnectionFailure, "another process has taken its address"));
            }
            before
        };
        if let Some(before) = before {
            before.close();
        }
        info!(worker = id, address, slots, "a worker has come");
        self.changed.notify_all();
        Ok((connection, incoming, heard_us))
    }

    /// Takes what a worker says until it is away.
    fn hear(&self, id: u32, connection: &Arc<Connection>, mut incoming: Incoming, heard_us: &AtomicI64) {
        let error = loop {
            let frame = match incoming.next_frame() {
                Ok(frame) => frame,
                Err(error) => break error,
            };
            heard_us.store(self.config.time.now_us(), Ordering::Relaxed);
            let session = self.state.lock().session.clone();
            let taken = match session.filter(|session| session.number() == frame.session && session.has(id)) {
                Some(session) => session.take(id, &frame),
                // Of a session that is over; or a sign of life that belongs to none.
                None => message::parse::<FromWorker>(&frame).map(drop),
            };
            if let Err(error) = taken {
                break error;
            }
        };
        connection.close();
        let session = {
            let mut state = self.state.lock();
            let mine = |c: &Arc<Connection>| Arc::ptr_eq(c, connection);
            if let Some(worker) = state.workers.get_mut(&id)
                && worker.connection.as_ref().is_some_and(mine)
            {
                worker.connection = None;
                state.session.clone().filter(|session| session.has(id))
            } else {
                // Another process has come in its place.
                None
            }
        };
        debug!(worker = id, %error, "a worker's connection has ended");
        match session {
            Some(session) => session.lose(id, &error),
            None => info!(worker = id, "a worker has gone"),
        }
        self.changed.notify_all();
    }
}

/// Refuses to be open to other machines without a token. Errors: `42501`.
pub fn check_token(addr: SocketAddr, token: &str) -> Result<()> {
    if addr.ip().is_loopback() || !token.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        SqlState::InsufficientPrivilege,
        format!("a cluster address that is open to others needs a token: {addr}"),
    )
    .with_detail("Whoever reaches it could offer slots and read rows.")
    .with_hint("Set cluster_token to the same secret on all nodes, or bind to 127.0.0.1."))
}
