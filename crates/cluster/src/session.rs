//! The coordinator's side of one engine's life: workers that have its slots, seen as [`runtime::Worker`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use checkpoint::door::Door;
use checkpoint::names::ObjectName;
use checkpoint::permit::Generation;
use coord::backfill::Backfill;
use coord::clock::{ClockLoop, Event};
use coord::execution::{Execution, Threads};
use coord::waiting::{block_on, wait_until};
use crossbeam_channel::Receiver;
use flow::{Epoch, Error, RelationId, Result, SlotId, SqlState};
use futures::channel::{mpsc, oneshot};
use futures::future::{BoxFuture, FutureExt, try_join_all};
use parking_lot::{Condvar, Mutex, RwLock};
use plan::TaskOp;
use runtime::slot::{Reports, Shared};
use runtime::worker::{Holdings, WorkerStatus};
use runtime::{Depot, FromSlot, Join, NowUs, Service, ToSlot, Worker};
use state::{RelationStore, Worked};
use tracing::{error, info, warn};

use crate::connection::Connection;
use crate::frame::Frame;
use crate::message::{self, Begin, FromWorker, Member, SlotMessage, StorePlace, ToWorker, ViewSize};
use crate::roster::{Chosen, Roster};
use crate::views::RemoteView;

/// How long workers may take to start their slots and to reach each other.
const BEGIN_TIME_MAX: Duration = Duration::from_secs(60);

/// Rows of a scan, or what comes of work on them, as they come.
pub(crate) type ScanRows = mpsc::UnboundedReceiver<Result<Worked>>;
type ScanSender = mpsc::UnboundedSender<Result<Worked>>;

/// What a worker answers.
#[derive(Debug)]
pub(crate) enum Answered {
    Held(Vec<String>, u64),
    Written(Epoch),
    Count(u64),
    Row(Option<RecordBatch>),
}

/// A worker of the session.
struct Line {
    member: Member,
    connection: Arc<Connection>,
}

#[derive(Default)]
struct Standing {
    ready: BTreeSet<u32>,
    ended: BTreeSet<u32>,
    /// Why the session is over.
    lost: Option<Error>,
}

/// One engine's slots, with the workers that have them.
pub struct Session {
    number: u64,
    roster: Arc<Roster>,
    lines: Vec<Line>,
    slots: usize,
    shared: Shared,
    /// The floor that the workers know.
    told_floor: AtomicU64,
    reports: Reports,
    next: AtomicU64,
    requests: Mutex<HashMap<u64, oneshot::Sender<Result<Answered>>>>,
    scans: Mutex<HashMap<u64, ScanSender>>,
    views: RwLock<HashMap<RelationId, Arc<RemoteView>>>,
    /// By worker, what keeps it from storing state, and whether it is full.
    storing: Mutex<BTreeMap<u32, (Error, bool)>>,
    standing: Mutex<Standing>,
    changed: Condvar,
}

/// The error of everything that needs a worker that is away.
pub fn away(cause: &Error) -> Error {
    let told = match cause.detail() {
        Some(detail) => format!("{}; {detail}", cause.message()),
        None => cause.message().to_string(),
    };
    Error::new(SqlState::CannotConnectNow, "a worker of the cluster is away").with_detail(told).with_hint(
        "Try again: the jobs go on when it is back, or on the workers that are left. SHOW WORKERS lists them.",
    )
}

impl Session {
    /// Lets the chosen workers start their slots, and waits until they have. Errors: `57P03` one of them cannot, or is away.
    pub(crate) fn begin(
        roster: &Arc<Roster>,
        chosen: &[Chosen],
        store: Option<(StorePlace, Generation)>,
        shared: Shared,
        reports: Reports,
    ) -> Result<Arc<Session>> {
        let mut lines = Vec::new();
        let mut slots = 0;
        for worker in chosen {
            let (first, count) = (slots, worker.slots);
            let member = Member { worker: worker.id, address: worker.address.clone(), first, count };
            lines.push(Line { member, connection: Arc::clone(&worker.connection) });
            slots += count;
        }
        let begin = Begin {
            members: lines.iter().map(|line| line.member.clone()).collect(),
            slots,
            batch_rows: shared.batch_rows,
            floor: shared.floor(),
            store,
        };
        let session = Arc::new(Session {
            number: roster.next_session(),
            roster: Arc::clone(roster),
            lines,
            slots,
            told_floor: AtomicU64::new(begin.floor.0),
            shared,
            reports,
            next: AtomicU64::new(1),
            requests: Mutex::default(),
            scans: Mutex::default(),
            views: RwLock::default(),
            storing: Mutex::default(),
            standing: Mutex::default(),
            changed: Condvar::new(),
        });
        roster.enter(&session);
        session.tell_all(&ToWorker::Begin(begin));
        match session.wait(BEGIN_TIME_MAX, |standing| standing.ready.len() == session.lines.len()) {
            Ok(true) => {
                roster.reached(&session);
                Ok(session)
            }
            outcome => {
                session.end();
                let slow = || Error::new(SqlState::ConnectionFailure, "workers have not started their slots in time");
                Err(outcome.err().unwrap_or_else(|| away(&slow())))
            }
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn has(&self, worker: u32) -> bool {
        self.workers().any(|member| member == worker)
    }

    /// The numbers of its workers.
    pub(crate) fn workers(&self) -> impl Iterator<Item = u32> {
        self.lines.iter().map(|line| line.member.worker)
    }

    /// Waits until `done`; false: it is not in this time. Errors: the session is lost.
    fn wait(&self, at_most: Duration, done: impl Fn(&Standing) -> bool) -> Result<bool> {
        let mut standing = self.standing.lock();
        let over = |standing: &mut Standing| standing.lost.is_some() || done(standing);
        let is_done = wait_until(&self.changed, &mut standing, at_most, over);
        match &standing.lost {
            Some(lost) => Err(away(lost)),
            None => Ok(is_done),
        }
    }

    /// Waits for a time, or until the session is lost; then why.
    pub fn wait_lost(&self, at_most: Duration) -> Option<Error> {
        self.wait(at_most, |_| false).err()
    }

    /// Ends the session: the workers forget their slots. Waits until they have; one that does not is cut off.
    pub fn end(&self) {
        let stopped = Error::new(SqlState::AdminShutdown, "the jobs have been stopped");
        self.standing.lock().lost.get_or_insert_with(|| stopped.clone());
        self.tell_all(&ToWorker::End);
        self.fail_all(&stopped);
        let mut standing = self.standing.lock();
        let away = |standing: &Standing, line: &Line| {
            !standing.ended.contains(&line.member.worker) && !line.connection.is_closed()
        };
        wait_until(&self.changed, &mut standing, self.roster.pulse().timeout, |standing| {
            let standing = &*standing;
            !self.lines.iter().any(|line| away(standing, line))
        });
        for line in self.lines.iter().filter(|line| away(&standing, line)) {
            warn!(worker = line.member.worker, "a worker does not end its jobs in time; it is cut off");
            line.connection.close();
        }
        drop(standing);
        self.views.write().clear();
        self.roster.leave(self.number);
    }

    /// The session is over: a worker is away.
    pub(crate) fn lose(&self, worker: u32, cause: &Error) {
        self.stop_for(&format!("worker {worker} is away"), cause);
    }

    fn stop_for(&self, what: &str, cause: &Error) {
        let told = Error::new(SqlState::CannotConnectNow, what).with_detail(cause.to_string());
        {
            let mut standing = self.standing.lock();
            if standing.lost.is_none() {
                warn!(error = %cause, "{what}; the jobs stop");
                standing.lost = Some(told.clone());
            }
        }
        self.changed.notify_all();
        self.fail_all(&told);
    }

    /// Whoever waits for an answer gets this one.
    fn fail_all(&self, cause: &Error) {
        for (_, reply) in self.requests.lock().drain() {
            // It may not wait any more.
            let _ = reply.send(Err(away(cause)));
        }
        for (_, rows) in self.scans.lock().drain() {
            let _ = rows.unbounded_send(Err(away(cause)));
        }
    }

    fn tell_all(&self, message: &ToWorker) {
        for line in &self.lines {
            // A worker that is gone is noticed by who reads its connection.
            line.connection.say(self.number, message);
        }
    }

    fn line_of(&self, slot: usize) -> Option<&Line> {
        self.lines.iter().find(|line| (line.member.first..line.member.first + line.member.count).contains(&slot))
    }

    /// Indexes of the workers, the one with `slot` first.
    pub(crate) fn order_from(&self, slot: usize) -> Vec<usize> {
        let first = self.lines.iter().position(|line| line.member.first + line.member.count > slot).unwrap_or(0);
        (first..self.lines.len()).chain(0..first).collect()
    }

    /// How many workers there are.
    pub(crate) fn worker_count(&self) -> usize {
        self.lines.len()
    }

    pub(crate) fn all_slots(&self) -> usize {
        self.slots
    }

    fn lost(&self) -> Option<Error> {
        self.standing.lock().lost.clone()
    }

    /// Asks one worker, by its index. Errors: `57P03` it is away.
    pub(crate) fn ask(
        &self,
        line: usize,
        question: impl FnOnce(u64) -> ToWorker,
        body: Vec<u8>,
    ) -> BoxFuture<'static, Result<Answered>> {
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.requests.lock().insert(request, reply);
        let sent = message::frame_with(self.number, &question(request), body)
            .map(|frame| self.lines.get(line).is_some_and(|line| line.connection.send(frame)));
        let lost = self.lost();
        if !matches!(sent, Ok(true)) || lost.is_some() {
            self.requests.lock().remove(&request);
            let gone = lost.unwrap_or_else(|| Error::new(SqlState::ConnectionFailure, "its connection has ended"));
            return futures::future::ready(Err(sent.err().unwrap_or_else(|| away(&gone)))).boxed();
        }
        async move {
            let gone = || away(&Error::new(SqlState::ConnectionFailure, "its connection has ended"));
            answer.await.unwrap_or_else(|_| Err(gone()))
        }
        .boxed()
    }

    /// Asks all workers.
    pub(crate) fn ask_all(&self, question: impl Fn(u64) -> ToWorker) -> BoxFuture<'static, Result<Vec<Answered>>> {
        let answers: Vec<_> = (0..self.lines.len()).map(|line| self.ask(line, &question, Vec::new())).collect();
        try_join_all(answers).boxed()
    }

    /// Tells all workers that nobody follows a view any more.
    pub(crate) fn unfollow(&self, relation: RelationId) {
        self.tell_all(&ToWorker::Unfollow(relation));
    }

    /// Opens a scan of a shard, with work to be done on it or none. Errors: `57P03`.
    pub(crate) fn open_scan(
        &self,
        shard: usize,
        work: Vec<u8>,
        scan: impl FnOnce(u64) -> ToWorker,
    ) -> Result<(u64, ScanRows)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, rows) = mpsc::unbounded();
        self.scans.lock().insert(number, sender);
        let line = self.line_of(shard).ok_or_else(|| Error::internal(format!("no worker has slot {shard}")))?;
        let sent = message::frame_with(self.number, &scan(number), work).map(|frame| line.connection.send(frame));
        let sent = sent.inspect_err(|_| drop(self.scans.lock().remove(&number)))?;
        if let Some(lost) = self.lost().or_else(|| (!sent).then(|| Error::internal("its connection has ended"))) {
            self.scans.lock().remove(&number);
            return Err(away(&lost));
        }
        Ok((number, rows))
    }

    /// The reader of a scan has taken rows.
    pub(crate) fn credit(&self, shard: usize, scan: u64, bytes: u64) {
        if let Some(line) = self.line_of(shard) {
            line.connection.say(self.number, &ToWorker::Credit { scan, bytes });
        }
    }

    /// The reader of a scan is gone.
    pub(crate) fn cancel(&self, shard: usize, scan: u64) {
        if self.scans.lock().remove(&scan).is_some()
            && let Some(line) = self.line_of(shard)
        {
            line.connection.say(self.number, &ToWorker::Cancel { scan });
        }
    }

    /// What a worker says. Errors: what came cannot be understood.
    pub(crate) fn take(&self, worker: u32, frame: &Frame) -> Result<()> {
        match message::parse(frame)? {
            FromWorker::Beat(sizes) => self.note_sizes(worker, &sizes),
            FromWorker::Ready => self.note(|standing| &mut standing.ready, worker),
            FromWorker::Ended => self.note(|standing| &mut standing.ended, worker),
            FromWorker::Broken(cause) => self.stop_for(&format!("worker {worker} cannot go on"), &cause),
            FromWorker::Unreached(other) => self.roster.note_cut(worker, other),
            // It is told outside of sessions.
            FromWorker::Leaving => {}
            FromWorker::Report(report) => match message::join_report(report, &frame.body)? {
                FromSlot::Storing { cause, full } => self.note_storing(worker, cause, full),
                report => (self.reports)(report),
            },
            FromWorker::Held { request, names, counter } => self.answer(request, Ok(Answered::Held(names, counter))),
            FromWorker::Following { request, written } => self.answer(request, written.map(Answered::Written)),
            FromWorker::Change { relation, epoch } => {
                let view = self.views.read().get(&relation).cloned();
                if let Some(view) = view {
                    view.take_up(epoch, &message::rows(&frame.body)?);
                }
            }
            FromWorker::Count { request, rows } => self.answer(request, rows.map(Answered::Count)),
            FromWorker::Row { request, found } => {
                let row = match found {
                    Ok(true) => message::rows(&frame.body).map(|row| Answered::Row(Some(row.rows))),
                    Ok(false) => Ok(Answered::Row(None)),
                    Err(error) => Err(error),
                };
                self.answer(request, row);
            }
            FromWorker::Rows { scan } => {
                let bytes = frame.len() as u64;
                let rows = message::rows(&frame.body).map(|rows| Worked::Rows { rows: rows.rows, bytes });
                if let Some(to) = self.scans.lock().get(&scan) {
                    // A reader that is gone has said so.
                    let _ = to.unbounded_send(rows);
                }
            }
            FromWorker::ScanEnd { scan, outcome } => {
                if let Some(to) = self.scans.lock().remove(&scan) {
                    let _ = to.unbounded_send(outcome.map(|read| Worked::Done { read }));
                }
            }
        }
        Ok(())
    }

    fn note(&self, among: impl FnOnce(&mut Standing) -> &mut BTreeSet<u32>, worker: u32) {
        among(&mut self.standing.lock()).insert(worker);
        self.changed.notify_all();
    }

    fn answer(&self, request: u64, answer: Result<Answered>) {
        if let Some(reply) = self.requests.lock().remove(&request) {
            // It may not wait any more.
            let _ = reply.send(answer);
        }
    }

    fn note_sizes(&self, worker: u32, sizes: &[ViewSize]) {
        let views = self.views.read();
        for size in sizes {
            if let Some(view) = views.get(&size.relation) {
                view.note_size(worker, *size);
            }
        }
    }

    /// One worker's trouble with the store lasts until that worker takes it back.
    fn note_storing(&self, worker: u32, cause: Option<Error>, full: bool) {
        let mut storing = self.storing.lock();
        match cause {
            Some(cause) => drop(storing.insert(worker, (cause, full))),
            None => drop(storing.remove(&worker)),
        }
        let cause = storing.values().next().map(|(cause, _)| cause.clone());
        let full = storing.values().any(|(_, full)| *full);
        (self.reports)(FromSlot::Storing { cause, full });
    }

    /// Sends a message to one worker. Where a row is too large to go, the job that it is of stops, or else the session.
    fn post(&self, line: &Line, slot: Option<SlotId>, message: ToSlot) {
        let deployment = match &message {
            ToSlot::Backfill { deployment, .. } => Some(*deployment),
            _ => None,
        };
        let to = |message: SlotMessage| match slot {
            Some(slot) => ToWorker::Slot(slot, message),
            None => ToWorker::Slots(message),
        };
        let frames = message::split(message, None).and_then(|pieces| {
            let frame = |(message, body)| message::frame_with(self.number, &to(message), body);
            pieces.into_iter().map(frame).collect::<Result<Vec<Frame>>>()
        });
        match (frames, deployment) {
            (Ok(frames), _) => {
                for frame in frames {
                    line.connection.send(frame);
                }
            }
            (Err(error), Some(deployment)) => {
                let slot = slot.unwrap_or_default();
                (self.reports)(FromSlot::Failed { slot, deployment, error });
            }
            (Err(error), None) => {
                error!(%error, "rows cannot go to a worker");
                self.stop_for("a row is too large for the cluster", &error);
            }
        }
    }

    fn put_view(self: &Arc<Self>, message: &ToSlot) {
        let ToSlot::Deploy { plan, spread, .. } = message else { return };
        for task in &plan.tasks {
            if let TaskOp::Materialize { relation, .. } = &task.op {
                let mut views = self.views.write();
                let view = views
                    .entry(*relation)
                    .or_insert_with(|| RemoteView::new(self, *relation, Arc::clone(&task.schema)));
                view.set_parallelism(spread.parallelism);
            }
        }
    }
}

/// [`Session`] as the coordinator's loop sees it.
struct Workers(Arc<Session>);

impl Worker for Workers {
    fn slots(&self) -> usize {
        self.0.slots
    }

    fn batch_rows(&self) -> usize {
        self.0.shared.batch_rows
    }

    fn send(&self, slot: SlotId, message: ToSlot) {
        if let Some(line) = self.0.line_of(slot.0 as usize) {
            self.0.post(line, Some(slot), message);
        }
    }

    fn holdings(&self) -> &dyn Holdings {
        self
    }

    fn shared(&self) -> Option<&Shared> {
        None
    }

    fn processes(&self) -> Vec<WorkerStatus> {
        self.0.roster.workers()
    }

    fn processes_wanted(&self) -> usize {
        self.0.roster.wanted().workers
    }

    fn broadcast(&self, message: &ToSlot) {
        self.0.put_view(message);
        let floor = self.0.shared.floor();
        if matches!(message, ToSlot::Barrier { .. }) && self.0.told_floor.fetch_max(floor.0, Ordering::AcqRel) < floor.0
        {
            self.0.tell_all(&ToWorker::Floor(floor));
        }
        self.0.lines.iter().for_each(|line| self.0.post(line, None, message.clone()));
    }
}

impl Holdings for Workers {
    fn floor(&self) -> Epoch {
        self.0.shared.floor()
    }

    fn raise_floor(&self, floor: Epoch) {
        // The workers are told with the next barrier.
        self.0.shared.raise_floor(floor);
    }

    fn view(&self, relation: RelationId) -> Option<Arc<dyn RelationStore>> {
        self.0.views.read().get(&relation).map(|view| Arc::clone(view) as Arc<dyn RelationStore>)
    }

    fn forget_view(&self, relation: RelationId) {
        self.0.views.write().remove(&relation);
        self.0.tell_all(&ToWorker::ForgetView(relation));
    }

    fn succeed_view(&self, relation: RelationId, epoch: Epoch) {
        if let Some(view) = self.0.views.write().get_mut(&relation) {
            *view = view.successor();
        }
        self.0.tell_all(&ToWorker::SucceedView(relation, epoch));
    }

    fn forget_before(&self, relation: RelationId, floor: Epoch) {
        self.0.tell_all(&ToWorker::ForgetBefore(relation, floor));
    }

    fn held(&self, counter: &AtomicU64) -> Result<BTreeSet<ObjectName>> {
        let from = counter.load(Ordering::Relaxed);
        let mut held = BTreeSet::new();
        for answer in block_on(self.0.ask_all(|request| ToWorker::Held { request, counter: from }))? {
            let Answered::Held(names, newest) = answer else {
                return Err(Error::new(SqlState::ProtocolViolation, "a worker answers another question"));
            };
            counter.fetch_max(newest, Ordering::Relaxed);
            for name in names {
                held.insert(ObjectName::parse(&name).ok_or_else(|| {
                    Error::new(SqlState::ProtocolViolation, format!("a worker holds \"{name}\", which is no object"))
                })?);
            }
        }
        Ok(held)
    }
}

/// Lets an engine's slots run on workers; its clock, feeders and services run in this process.
pub struct Slots {
    roster: Arc<Roster>,
    chosen: Vec<Chosen>,
    store: StorePlace,
    generation: Mutex<Option<Generation>>,
    here: Arc<dyn Execution>,
    session: Mutex<Option<Arc<Session>>>,
}

impl Slots {
    /// On the workers `chosen`, which store the state of jobs in `store`.
    pub fn new(roster: &Arc<Roster>, chosen: Vec<Chosen>, store: StorePlace) -> Slots {
        Slots::beside(roster, chosen, store, Arc::new(Threads::default()))
    }

    /// The same, with another way to let clock, feeders and services run.
    pub fn beside(roster: &Arc<Roster>, chosen: Vec<Chosen>, store: StorePlace, here: Arc<dyn Execution>) -> Slots {
        let (generation, session) = (Mutex::default(), Mutex::default());
        Slots { roster: Arc::clone(roster), chosen, store, generation, here, session }
    }

    /// Slots of all workers that were chosen.
    pub fn count(&self) -> usize {
        self.chosen.iter().map(|worker| worker.slots).sum()
    }

    /// How many workers were chosen.
    pub fn workers(&self) -> usize {
        self.chosen.len()
    }

    /// The session, once the slots were started.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().clone()
    }
}

impl Execution for Slots {
    fn start_depot(&self, door: Arc<Door>, _: Arc<AtomicU64>, _: Reports, _: NowUs) -> Result<Option<Arc<Depot>>> {
        // The workers number their objects themselves: no two of them have a slot in common.
        *self.generation.lock() = Some(door.writer().generation);
        Ok(None)
    }

    fn start_slots(&self, slots: usize, shared: Shared, reports: Reports) -> Result<Arc<dyn Worker>> {
        if slots != self.count() {
            return Err(Error::internal(format!("{slots} slots are asked of workers that have {}", self.count())));
        }
        let store = self.generation.lock().map(|generation| (self.store.clone(), generation));
        let session = Session::begin(&self.roster, &self.chosen, store, shared, reports)?;
        info!(session = session.number, workers = self.chosen.len(), slots, "the workers have started their slots");
        *self.session.lock() = Some(Arc::clone(&session));
        Ok(Arc::new(Workers(session)))
    }

    fn start_clock(&self, clock: ClockLoop, events: Receiver<Event>) -> Result<()> {
        self.here.start_clock(clock, events)
    }

    fn start_feeder(&self, feeder: Backfill) -> Result<()> {
        self.here.start_feeder(feeder)
    }

    fn start_service(&self, service: Box<dyn Service>) -> Result<Box<dyn Join>> {
        self.here.start_service(service)
    }

    fn stop(&self) {
        self.here.stop();
        let session = self.session();
        if let Some(session) = session {
            session.end();
        }
    }
}
