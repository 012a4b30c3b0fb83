//! The coordinator's list of workers: they come to it, say how many slots they have, and are there as long as they are heard.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use coord::Time;
use coord::waiting::wait_until;
use flow::hash::VNODES;
use flow::{Error, Result, SqlState};
use parking_lot::{Condvar, Mutex};
use runtime::{WorkerState, WorkerStatus};
use tracing::{debug, info, warn};

use crate::connection::{Beat, Connection, Hears, Pulse};
use crate::frame::Frame;
use crate::handshake::{Caller, Identity, Welcome, accept};
use crate::message::{self, FromWorker, ToWorker};
use crate::session::Session;

/// Workers that may be known at once.
pub const WORKERS_MAX: usize = 256;
/// Callers whose handshake may be under way at once; others are turned away unheard.
pub const HANDSHAKES_MAX: usize = 64;
/// By how many doublings a pair of workers that do not reach each other is tried more rarely.
const CUT_DOUBLINGS_MAX: u32 = 5;
/// How long a listener rests when it cannot accept.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// On how many workers the jobs are to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// More are spare.
    pub workers: usize,
    /// With fewer the jobs wait.
    pub least: usize,
    /// How long workers that are missing are waited for, from when the least are there.
    pub patience: Duration,
    /// How long a worker has to stay until jobs that run on too few spread over it.
    pub settle: Duration,
}

impl Wanted {
    /// Whether `fit` workers, which reach each other, are enough to begin with, where `here` are there and the least of them have been for
    /// this time.
    fn are_enough(&self, fit: usize, here: usize, waited: Duration) -> bool {
        // Waiting brings no way between workers that are there.
        let all = fit >= self.workers || here >= self.workers;
        fit >= self.least && (all || waited >= self.patience)
    }
}

/// Why running jobs should begin anew on other workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This worker is being stopped in order.
    Leaves(u32),
    /// So many have come, and have stayed.
    Joined(usize),
}

/// What a coordinator needs to know its workers.
#[derive(Clone)]
pub struct RosterConfig {
    pub identity: Identity,
    pub wanted: Wanted,
    pub pulse: Pulse,
    pub time: Time,
    /// Never goes back; see [`Time::steady`].
    pub steady: Time,
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
    /// Since when it is there, by the steady clock.
    came_us: i64,
    /// It is being stopped in order.
    leaves: bool,
}

impl Registered {
    /// Whether a session may be begun with it.
    fn is_here(&self) -> bool {
        !self.leaves && self.connection.as_ref().is_some_and(|connection| !connection.is_closed())
    }
}

/// Two workers that did not reach each other when a session began.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// By the steady clock: then it is tried again.
    until_us: i64,
    times: u32,
}

#[derive(Default)]
struct State {
    workers: BTreeMap<u32, Registered>,
    next: u32,
    session: Option<Arc<Session>>,
    /// Since when the least workers are there, while no session runs; by the steady clock.
    enough_us: Option<i64>,
    /// The next session begins without waiting for workers that are missing.
    at_once: bool,
    /// The smaller number of a pair comes first.
    cuts: BTreeMap<(u32, u32), Cut>,
    /// Why no worker is let in: another coordinator leads, or the cluster is over.
    standby: Option<Error>,
}

fn pair(a: u32, b: u32) -> (u32, u32) {
    (a.min(b), a.max(b))
}

impl State {
    fn reach(&self, a: u32, b: u32, now_us: i64) -> bool {
        self.cuts.get(&pair(a, b)).is_none_or(|cut| cut.until_us <= now_us)
    }
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
        let roster = Roster::new(addr, config);
        let (ends, serves) = (Arc::clone(&roster), Arc::clone(&roster));
        let closed = move || ends.closed.load(Ordering::Acquire);
        listen(listener, "workers", closed, move |stream, place| serves.serve(stream, place))?;
        Ok(roster)
    }

    /// A list that nobody listens for yet.
    pub fn new(addr: SocketAddr, config: RosterConfig) -> Arc<Roster> {
        Arc::new(Roster {
            sessions: AtomicU64::new(config.nonce),
            config,
            addr,
            state: Mutex::default(),
            changed: Condvar::new(),
            closed: AtomicBool::new(false),
        })
    }

    /// Where workers come to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn pulse(&self) -> Pulse {
        self.config.pulse
    }

    pub fn wanted(&self) -> Wanted {
        self.config.wanted
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
        wait_until(&self.changed, &mut state, self.config.pulse.timeout, |state| {
            !state.workers.values().any(|worker| worker.connection.is_some())
        });
    }

    /// Lets no worker in, for this cause, and lets those go that are here, so that they look for the coordinator that leads; `None`:
    /// this one does.
    pub fn stand_by(&self, cause: Option<Error>) {
        let mut state = self.state.lock();
        if cause.is_some() {
            state.workers.values().filter_map(|w| w.connection.as_ref()).for_each(|connection| connection.close());
        }
        // Whoever comes to a leader comes anew.
        (state.enough_us, state.at_once) = (None, false);
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
                (Some(_), _) if worker.leaves => WorkerState::Leaving,
                (Some(_), None) => WorkerState::Waiting,
                (Some(_), Some(session)) if session.has(*id) => WorkerState::Running,
                (Some(_), Some(session)) if session.workers().count() < self.config.wanted.workers => {
                    WorkerState::Joining
                }
                (Some(_), Some(_)) => WorkerState::Spare,
            },
            heard_us: Some(worker.heard_us.load(Ordering::Relaxed)),
            started_us: Some(worker.started_us),
        };
        state.workers.iter().map(status).collect()
    }

    /// Why jobs do not run for now: workers are missing. `None`: all are there.
    pub fn missing(&self) -> Option<Error> {
        let workers = self.workers();
        let is_here = |worker: &&WorkerStatus| !matches!(worker.state, WorkerState::Away | WorkerState::Leaving);
        let here = workers.iter().filter(is_here).count();
        let Wanted { workers: wanted, least, patience, .. } = self.config.wanted;
        if here >= wanted {
            return None;
        }
        let away: Vec<String> = workers
            .iter()
            .filter(|worker| worker.state == WorkerState::Away)
            .map(|worker| format!("worker {} ({})", worker.id, worker.address))
            .collect();
        let mut detail = format!("{wanted} workers are needed, {here} are here.");
        if !away.is_empty() {
            detail.push_str(&format!(" Away: {}.", away.join(", ")));
        }
        if here >= least {
            detail.push_str(&format!(" The jobs go on without those that do not come within {patience:?}."));
        } else {
            detail.push_str(&format!(" At least {least} must be there."));
        }
        Some(Error::new(SqlState::CannotConnectNow, "the cluster waits for workers").with_detail(detail).with_hint(
            format!(
                "Start workers with --coordinator-addr {}; cluster_workers says how many, cluster_workers_min how few \
                 will do.",
                self.addr
            ),
        ))
    }

    /// The workers to begin a session with, once there are enough; waits for them no longer than `at_most`. All of them reach each
    /// other, as far as is known.
    pub fn choose(&self, at_most: Duration) -> Option<Vec<Chosen>> {
        let wanted = self.config.wanted;
        let mut state = self.state.lock();
        loop {
            let now_us = self.config.steady.now_us();
            let (mut here, mut chosen) = (0, Vec::<Chosen>::new());
            for (id, worker) in state.workers.iter().filter(|(_, worker)| worker.is_here()) {
                here += 1;
                let reached = chosen.iter().all(|other| state.reach(other.id, *id, now_us));
                if let Some(connection) = &worker.connection
                    && reached
                    && chosen.len() < wanted.workers
                {
                    let (address, connection) = (worker.address.clone(), Arc::clone(connection));
                    chosen.push(Chosen { id: *id, address, slots: worker.slots, connection });
                }
            }
            if here < wanted.least {
                (state.enough_us, state.at_once) = (None, false);
            } else {
                let since_us = *state.enough_us.get_or_insert(now_us);
                let waited = match state.at_once {
                    true => Duration::MAX,
                    false => Duration::from_micros(now_us.saturating_sub(since_us).try_into().unwrap_or(0)),
                };
                if wanted.are_enough(chosen.len(), here, waited) {
                    return Some(chosen);
                }
            }
            if self.changed.wait_for(&mut state, at_most).timed_out() {
                return None;
            }
        }
    }

    /// Lets the next session begin with the workers that are there.
    pub fn at_once(&self) {
        self.state.lock().at_once = true;
    }

    /// Why the session that runs should end and another one begin, if there is a reason.
    pub fn change(&self) -> Option<Change> {
        let state = self.state.lock();
        let session = state.session.as_ref()?;
        if let Some(leaves) = session.workers().find(|id| state.workers.get(id).is_some_and(|worker| worker.leaves)) {
            return Some(Change::Leaves(leaves));
        }
        let missing = self.config.wanted.workers.saturating_sub(session.workers().count());
        let now_us = self.config.steady.now_us();
        let settle_us = i64::try_from(self.config.wanted.settle.as_micros()).unwrap_or(i64::MAX);
        let joins = |(id, worker): &(&u32, &Registered)| {
            worker.is_here()
                && !session.has(**id)
                && now_us.saturating_sub(worker.came_us) >= settle_us
                && session.workers().all(|member| state.reach(member, **id, now_us))
        };
        let joined = state.workers.iter().filter(joins).count().min(missing);
        (joined > 0).then_some(Change::Joined(joined))
    }

    /// The jobs cannot spread over those that have come now: they have to stay once more for as long.
    pub fn put_off(&self) {
        let mut state = self.state.lock();
        let State { workers, session, .. } = &mut *state;
        let now_us = self.config.steady.now_us();
        let spare = |id: &u32| session.as_ref().is_none_or(|session| !session.has(*id));
        workers.iter_mut().filter(|(id, _)| spare(id)).for_each(|(_, worker)| worker.came_us = now_us);
    }

    /// Two workers do not reach each other: they are not put into one session for a while, and longer each time.
    pub(crate) fn note_cut(&self, a: u32, b: u32) {
        let mut state = self.state.lock();
        let times = state.cuts.get(&pair(a, b)).map_or(0, |cut| cut.times);
        let now_us = self.config.steady.now_us();
        if state.reach(a, b, now_us) {
            let pause = self.config.wanted.settle.max(self.config.pulse.timeout) * (1 << times.min(CUT_DOUBLINGS_MAX));
            let until_us = now_us.saturating_add(i64::try_from(pause.as_micros()).unwrap_or(i64::MAX));
            state.cuts.insert(pair(a, b), Cut { until_us, times: times + 1 });
            warn!(worker = a, other = b, pause = ?pause, "workers do not reach each other; jobs do not run on both for now");
        }
    }

    /// The workers of a session have reached each other.
    pub(crate) fn reached(&self, session: &Session) {
        self.state.lock().cuts.retain(|(a, b), _| !(session.has(*a) && session.has(*b)));
    }

    /// Unlike every other, of any coordinator.
    pub(crate) fn next_session(&self) -> u64 {
        // 0 is of no session.
        self.sessions.fetch_add(1, Ordering::Relaxed).max(1)
    }

    pub(crate) fn enter(&self, session: &Arc<Session>) {
        let mut state = self.state.lock();
        (state.enough_us, state.at_once) = (None, false);
        state.session = Some(Arc::clone(session));
    }

    pub(crate) fn leave(&self, number: u64) {
        let left = {
            let mut state = self.state.lock();
            // Nothing holds them any more.
            let leaving = state.workers.values().filter(|worker| worker.leaves);
            leaving.filter_map(|worker| worker.connection.as_ref()).for_each(|connection| connection.close());
            state.session.take_if(|session| session.number() == number)
        };
        drop(left);
    }

    /// A worker is being stopped. Errors: nothing runs on it, so that it can go.
    fn lets_go(&self, id: u32) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(worker) = state.workers.get_mut(&id) {
            worker.leaves = true;
        }
        info!(worker = id, "a worker is being stopped");
        match state.session.as_ref().is_some_and(|session| session.has(id)) {
            true => Ok(()),
            false => Err(Error::new(SqlState::AdminShutdown, "the worker leaves")),
        }
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
        let name = format!("to-worker-{}", welcome.worker);
        let registered = Connection::start(known, &name, self.config.pulse, false, self.beat()).and_then(
            |(connection, incoming)| Ok((self.register(connection, welcome.worker, &address, slots)?, incoming)),
        );
        match registered {
            Ok((mut reports, incoming)) => incoming.hear(&mut reports),
            Err(error) => warn!(from, %error, "a worker cannot be registered"),
        }
    }

    /// What is said to a worker when there is nothing to say.
    pub fn beat(&self) -> Beat {
        Box::new(|| message::frame(0, &ToWorker::Beat))
    }

    /// Whether a caller may come, and its number. Errors: `28000` it may not; `57P03` this coordinator does not lead.
    pub fn admit(&self, caller: &Caller) -> Result<Welcome> {
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

    /// A worker has come that was admitted under this number. Errors: `57P03` this coordinator does not lead.
    pub fn register(
        self: &Arc<Self>,
        connection: Arc<Connection>,
        id: u32,
        address: &str,
        slots: usize,
    ) -> Result<FromOne> {
        let now_us = self.config.time.now_us();
        let heard_us = Arc::new(AtomicI64::new(now_us));
        let registered = Registered {
            address: address.to_string(),
            slots,
            connection: Some(Arc::clone(&connection)),
            heard_us: Arc::clone(&heard_us),
            started_us: now_us,
            came_us: self.config.steady.now_us(),
            leaves: false,
        };
        let before = {
            let mut state = self.state.lock();
            if let Some(standby) = &state.standby {
                connection.close();
                return Err(standby.clone());
            }
            // Whatever kept it from others may be over.
            state.cuts.retain(|(a, b), _| *a != id && *b != id);
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
        Ok(FromOne { roster: Arc::clone(self), id, connection, heard_us })
    }
}

/// Takes what one worker says, until it is away.
pub struct FromOne {
    roster: Arc<Roster>,
    id: u32,
    connection: Arc<Connection>,
    heard_us: Arc<AtomicI64>,
}

impl Hears for FromOne {
    fn take(&mut self, frame: &Frame) -> Result<()> {
        self.heard_us.store(self.roster.config.time.now_us(), Ordering::Relaxed);
        let session = self.roster.state.lock().session.clone();
        match session.filter(|session| session.number() == frame.session && session.has(self.id)) {
            Some(session) => session.take(self.id, frame),
            None => match message::parse::<FromWorker>(frame)? {
                FromWorker::Leaving => self.roster.lets_go(self.id),
                // Of a session that is over; or a sign of life that belongs to none.
                _ => Ok(()),
            },
        }
    }

    fn ended(&mut self, cause: &Error) {
        let (id, roster) = (self.id, &self.roster);
        self.connection.close();
        let session = {
            let mut state = roster.state.lock();
            let mine = |c: &Arc<Connection>| Arc::ptr_eq(c, &self.connection);
            if let Some(worker) = state.workers.get_mut(&id)
                && worker.connection.as_ref().is_some_and(mine)
            {
                worker.connection = None;
                if worker.leaves {
                    state.workers.remove(&id);
                }
                state.session.clone().filter(|session| session.has(id))
            } else {
                // Another process has come in its place.
                None
            }
        };
        debug!(worker = id, error = %cause, "a worker's connection has ended");
        match session {
            Some(session) => session.lose(id, cause),
            None => info!(worker = id, "a worker has gone"),
        }
        roster.changed.notify_all();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_workers_are_waited_for_and_unreachable_ones_are_not() {
        let (patience, settle) = (Duration::from_secs(15), Duration::from_secs(30));
        let wanted = Wanted { workers: 3, least: 2, patience, settle };
        let (never, long) = (Duration::ZERO, patience);
        for (fit, here, waited, enough) in [
            (3, 3, never, true),
            (2, 2, never, false),
            (2, 2, long, true),
            (1, 1, Duration::MAX, false),
            // Two of three reach each other.
            (2, 3, never, true),
            (1, 3, Duration::MAX, false),
            // More than are wanted are here, and some of them fit.
            (2, 5, never, true),
        ] {
            assert_eq!(wanted.are_enough(fit, here, waited), enough, "{fit} {here} {waited:?}");
        }
    }

    #[test]
    fn a_pair_that_is_cut_is_tried_again_ever_more_rarely() {
        let second = Duration::from_secs(1);
        let now_us = Arc::new(AtomicI64::new(0));
        let clock = Arc::clone(&now_us);
        let config = RosterConfig {
            identity: Identity::new(None, String::new()),
            wanted: Wanted { workers: 3, least: 1, patience: second, settle: 2 * second },
            pulse: Pulse { heartbeat: second, timeout: second },
            time: Time::system(),
            steady: Time::from_fn(move || clock.load(Ordering::Relaxed)),
            nonce: 1,
        };
        let roster = Roster::listen(TcpListener::bind("127.0.0.1:0").unwrap(), config).unwrap();
        let reach = |a, b| roster.state.lock().reach(a, b, now_us.load(Ordering::Relaxed));
        assert!(reach(1, 2));
        for pause_s in [2, 4, 8, 16, 32, 64, 64] {
            // Both of them say so.
            roster.note_cut(2, 1);
            roster.note_cut(1, 2);
            now_us.fetch_add(pause_s * 1_000_000 - 1, Ordering::Relaxed);
            assert!(!reach(1, 2) && !reach(2, 1) && reach(1, 3), "{pause_s}");
            now_us.fetch_add(1, Ordering::Relaxed);
            assert!(reach(1, 2), "{pause_s}");
        }
        roster.close();
    }
}
