//! A worker's answers to readers of the view rows that it has.
//!
//! A scan takes its snapshot when it is opened, and sends rows while its reader has credit; a few services take turns at
//! all of them, so one long scan holds up no other. Work that the reader has sent along is done on the rows before, by the
//! same services, a piece at a turn; so it stops where its reader is gone, and what it holds counts against this worker's limit.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::task::Poll;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use flow::{ChangeBatch, Epoch, Error, RelationId, Result, SqlState};
use parking_lot::Mutex;
use query::work::{Memory, Running};
use runtime::Budget;
use runtime::service::wait_for_message;
use runtime::slot::Shared;
use runtime::{Service, Stepped};
use state::Scan;
use tracing::error;

use crate::connection::Connection;
use crate::ground::Ground;
use crate::message::{self, FromWorker, frame_with, pieces};

/// Bytes of a scan that may be on their way to its reader.
pub const SCAN_CREDIT_BYTES: i64 = 4 << 20;
/// Batches of a scan's turn.
const TURN_BATCHES: usize = 4;
/// Services that read, at least; there are as many as slots.
const READERS_MIN: usize = 2;
/// The part of the worker's memory limit, one in so many, that reads may hold: jobs need the rest.
const MEMORY_SHARE: usize = 4;

/// Bytes that the work of readers holds on a worker.
#[derive(Debug)]
struct Held {
    budget: Budget,
    held: AtomicUsize,
}

impl Held {
    fn most(&self) -> usize {
        self.budget.limit() / MEMORY_SHARE
    }
}

impl Memory for Held {
    fn take(&self, bytes: usize) -> Result<()> {
        let held = self.held.fetch_add(bytes, Ordering::AcqRel) + bytes;
        // Not recorded where it does not fit: a job that grows meanwhile would stop for it.
        let fits = self.budget.used().saturating_add(bytes) <= self.budget.limit();
        if held <= self.most() && fits && self.budget.change(0, bytes).is_ok() {
            return Ok(());
        }
        self.held.fetch_sub(bytes, Ordering::AcqRel);
        Err(Error::new(SqlState::OutOfMemory, "out of memory").with_detail(format!(
            "Queries on a worker may hold {} MiB of its memory_limit of {} MiB, of which {} MiB are in use.",
            self.most() >> 20,
            self.budget.limit() >> 20,
            self.budget.used() >> 20,
        )))
    }

    fn take_anyway(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::AcqRel);
        // It is recorded all the same.
        let _ = self.budget.change(0, bytes);
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::AcqRel);
        // To become less does not fail.
        let _ = self.budget.change(bytes, 0);
    }

    fn taken(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }
}

/// What a scan gives.
enum Rows {
    /// The shard's rows, of which so many are read.
    Plain(Scan, u64),
    /// What is to come of work on them, which has not begun.
    Ordered(Order),
    Worked(Running),
    /// It is over.
    None,
}

/// Work on the rows of a scan.
struct Order {
    rows: Scan,
    schema: SchemaRef,
    work: Vec<u8>,
    batch_rows: usize,
}

impl Rows {
    /// The next rows, or nothing yet.
    fn next(&mut self, memory: &Arc<Held>) -> Poll<Option<Result<RecordBatch>>> {
        match self {
            Rows::Plain(rows, read) => Poll::Ready(rows.next().inspect(|rows| {
                *read += rows.as_ref().map_or(0, |rows| rows.num_rows() as u64);
            })),
            Rows::Ordered(_) => {
                if let Rows::Ordered(order) = std::mem::replace(self, Rows::None) {
                    let Order { rows, schema, work, batch_rows } = order;
                    let memory = Arc::clone(memory) as Arc<dyn Memory>;
                    match Running::start(&work, &schema, Box::new(rows), batch_rows, memory) {
                        Ok(running) => *self = Rows::Worked(running),
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    }
                }
                Poll::Pending
            }
            Rows::Worked(running) => running.advance(),
            Rows::None => Poll::Ready(None),
        }
    }

    /// Rows of the shard that were read.
    fn read(&self) -> u64 {
        match self {
            Rows::Plain(_, read) => *read,
            Rows::Worked(running) => running.read(),
            Rows::Ordered(_) | Rows::None => 0,
        }
    }
}

/// A scan of one shard.
struct Open {
    number: u64,
    rows: Mutex<Rows>,
    credit: AtomicI64,
    /// It waits for its turn, or has it.
    queued: AtomicBool,
    cancelled: AtomicBool,
}

enum Turn {
    Scan(Arc<Open>),
    Count { request: u64, relation: RelationId, epoch: Epoch },
    End,
}

/// The reads of one session.
pub struct Reads {
    session: u64,
    shared: Shared,
    coordinator: Arc<Connection>,
    scans: Arc<Mutex<HashMap<u64, Arc<Open>>>>,
    turns: Sender<Turn>,
    readers: usize,
    memory: Arc<Held>,
}

fn no_store() -> Error {
    Error::new(SqlState::ObjectNotInPrerequisiteState, "the view is being dropped or replaced")
}

impl Reads {
    /// Starts the services of a worker with so many slots; they end when this is dropped.
    pub fn start(
        session: u64,
        slots: usize,
        shared: &Shared,
        coordinator: &Arc<Connection>,
        ground: &dyn Ground,
    ) -> Result<Reads> {
        let (turns, waiting) = unbounded();
        let (scans, readers) = (Arc::default(), slots.max(READERS_MIN));
        let memory = Arc::new(Held { budget: shared.budget.clone(), held: AtomicUsize::new(0) });
        for n in 0..readers {
            let reader = Reader {
                session,
                number: n,
                memory: Arc::clone(&memory),
                shared: shared.clone(),
                coordinator: Arc::clone(coordinator),
                scans: Arc::clone(&scans),
                waiting: waiting.clone(),
                again: turns.clone(),
            };
            // It is not waited for.
            drop(ground.start_service(Box::new(reader))?);
        }
        let (shared, coordinator) = (shared.clone(), Arc::clone(coordinator));
        Ok(Reads { session, shared, coordinator, scans, turns, readers, memory })
    }

    /// Bytes that the work of readers holds now.
    pub fn held(&self) -> usize {
        self.memory.taken()
    }

    /// The row with a key.
    pub fn point(&self, request: u64, relation: RelationId, epoch: Epoch, key: &[u8], projection: Option<&[usize]>) {
        let found = || -> Result<Option<Vec<u8>>> {
            let key = message::rows(key)?.rows;
            let store = self.shared.stores.get(relation).ok_or_else(no_store)?;
            let row = store.snapshot(epoch)?.point(key.columns(), projection)?;
            row.map(|row| flow::wire::encode(&ChangeBatch::insert(row))).transpose()
        };
        let (found, body) = match found() {
            Ok(row) => (Ok(row.is_some()), row.unwrap_or_default()),
            Err(error) => (Err(error), Vec::new()),
        };
        if let Ok(frame) = frame_with(self.session, &FromWorker::Row { request, found }, body) {
            self.coordinator.send(frame);
        }
    }

    pub fn count(&self, request: u64, relation: RelationId, epoch: Epoch) {
        // The services live as long as this.
        let _ = self.turns.send(Turn::Count { request, relation, epoch });
    }

    /// Begins a scan, with work to be done on its rows or none: what it reads is held from here on.
    pub fn open(
        &self,
        number: u64,
        relation: RelationId,
        epoch: Epoch,
        shard: usize,
        projection: Option<&[usize]>,
        batch_rows: usize,
        work: &[u8],
    ) {
        let rows = || -> Result<Rows> {
            let store = self.shared.stores.get(relation).ok_or_else(no_store)?;
            let snapshot = store.snapshot(epoch)?;
            let rows = snapshot.scan_shard(shard, projection, batch_rows.max(1))?;
            if work.is_empty() {
                return Ok(Rows::Plain(rows, 0));
            }
            let schema = match projection {
                Some(columns) => Arc::new(snapshot.schema().project(columns)?),
                None => Arc::clone(snapshot.schema()),
            };
            Ok(Rows::Ordered(Order { rows, schema, work: work.to_vec(), batch_rows }))
        };
        match rows() {
            Ok(rows) => {
                let open = Arc::new(Open {
                    number,
                    rows: Mutex::new(rows),
                    credit: AtomicI64::new(SCAN_CREDIT_BYTES),
                    queued: AtomicBool::new(true),
                    cancelled: AtomicBool::new(false),
                });
                self.scans.lock().insert(number, Arc::clone(&open));
                let _ = self.turns.send(Turn::Scan(open));
            }
            Err(error) => {
                self.coordinator.say(self.session, &FromWorker::ScanEnd { scan: number, outcome: Err(error) });
            }
        }
    }

    pub fn credit(&self, number: u64, bytes: u64) {
        let open = self.scans.lock().get(&number).cloned();
        if let Some(open) = open {
            open.credit.fetch_add(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::AcqRel);
            if !open.queued.swap(true, Ordering::AcqRel) {
                let _ = self.turns.send(Turn::Scan(open));
            }
        }
    }

    pub fn cancel(&self, number: u64) {
        if let Some(open) = self.scans.lock().remove(&number) {
            open.cancelled.store(true, Ordering::Release);
        }
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        for (_, open) in self.scans.lock().drain() {
            open.cancelled.store(true, Ordering::Release);
        }
        // The readers hold senders of their own.
        for _ in 0..self.readers {
            let _ = self.turns.send(Turn::End);
        }
    }
}

struct Reader {
    session: u64,
    number: usize,
    memory: Arc<Held>,
    shared: Shared,
    coordinator: Arc<Connection>,
    scans: Arc<Mutex<HashMap<u64, Arc<Open>>>>,
    waiting: Receiver<Turn>,
    again: Sender<Turn>,
}

impl Service for Reader {
    fn name(&self) -> String {
        format!("read-{}", self.number)
    }

    fn step(&mut self) -> Stepped {
        match self.waiting.try_recv() {
            Err(TryRecvError::Empty) => return Stepped::Idle,
            Err(TryRecvError::Disconnected) | Ok(Turn::End) => return Stepped::Ended,
            Ok(Turn::Count { request, relation, epoch }) => {
                let count = || -> Result<u64> {
                    let store = self.shared.stores.get(relation).ok_or_else(no_store)?;
                    Ok(store.snapshot(epoch)?.num_rows() as u64)
                };
                self.coordinator.say(self.session, &FromWorker::Count { request, rows: count() });
            }
            Ok(Turn::Scan(open)) => {
                // A fault in what a reader has sent ends its read, and not all reads after it.
                let turn = catch_unwind(AssertUnwindSafe(|| self.turn(&open))).unwrap_or_else(|_| {
                    error!("the work on a shard has panicked");
                    Err(Error::internal("the work on a shard has panicked")
                        .with_hint("SET select_on_workers = off lets the coordinator do it."))
                });
                if let Err(error) = turn {
                    self.end(&open, Err(error));
                }
            }
        }
        Stepped::Worked
    }

    fn wait(&mut self) {
        wait_for_message(&self.waiting, None);
    }
}

impl Reader {
    fn end(&self, open: &Open, outcome: Result<u64>) {
        self.scans.lock().remove(&open.number);
        self.coordinator.say(self.session, &FromWorker::ScanEnd { scan: open.number, outcome });
    }

    /// Sends some rows of a scan, while there is credit.
    fn turn(&self, open: &Arc<Open>) -> Result<()> {
        let mut rows = open.rows.lock();
        for _ in 0..TURN_BATCHES {
            if open.cancelled.load(Ordering::Acquire) {
                return Ok(());
            }
            if open.credit.load(Ordering::Acquire) <= 0 {
                open.queued.store(false, Ordering::Release);
                // Credit may have come between the two.
                if open.credit.load(Ordering::Acquire) <= 0 || open.queued.swap(true, Ordering::AcqRel) {
                    return Ok(());
                }
            }
            let next = match rows.next(&self.memory) {
                Poll::Ready(next) => next.transpose(),
                // A piece of the work is done.
                Poll::Pending => break,
            };
            let Some(batch) = next.inspect_err(|_| *rows = Rows::None)? else {
                let read = rows.read();
                *rows = Rows::None;
                self.end(open, Ok(read));
                return Ok(());
            };
            for body in pieces(&ChangeBatch::insert(batch))? {
                let frame = frame_with(self.session, &FromWorker::Rows { scan: open.number }, body)?;
                // The reader gives the bytes of the frame back.
                open.credit.fetch_sub(i64::try_from(frame.len()).unwrap_or(i64::MAX), Ordering::AcqRel);
                self.coordinator.send(frame);
            }
        }
        let _ = self.again.send(Turn::Scan(Arc::clone(open)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_hold_their_share_of_the_memory_and_leave_the_rest_to_jobs() {
        let budget = Budget::new(1000);
        let held = Held { budget: budget.clone(), held: AtomicUsize::new(0) };
        held.take(200).unwrap();
        let error = held.take(100).unwrap_err();
        assert_eq!((error.state().code(), held.taken(), budget.used()), ("53200", 200, 200), "{error}");
        held.take(50).unwrap();
        held.give_back(250);
        assert_eq!((held.taken(), budget.used()), (0, 0));
        // Where jobs have all of it, there is none for reads, and no job is told so.
        budget.change(0, 950).unwrap();
        assert!(held.take(100).is_err());
        budget.change(0, 50).unwrap();
        held.take_anyway(10);
        assert_eq!((held.taken(), budget.used()), (10, 1010));
    }
}
