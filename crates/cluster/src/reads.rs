//! A worker's answers to readers of the view rows that it has.
//!
//! A scan takes its snapshot when it is opened, and sends rows while its reader has credit; a few services take turns at
//! all of them, so one long scan holds up no other.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use flow::{ChangeBatch, Epoch, Error, RelationId, Result, SqlState};
use parking_lot::Mutex;
use runtime::service::wait_for_message;
use runtime::slot::Shared;
use runtime::{Service, Stepped};
use state::Scan;

use crate::connection::Connection;
use crate::ground::Ground;
use crate::message::{self, FromWorker, frame_with, pieces};

/// Bytes of a scan that may be on their way to its reader.
pub const SCAN_CREDIT_BYTES: i64 = 4 << 20;
/// Batches of a scan's turn.
const TURN_BATCHES: usize = 4;
/// Services that read.
const READERS: usize = 2;

/// A scan of one shard.
struct Open {
    number: u64,
    rows: Mutex<Scan>,
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
}

fn no_store() -> Error {
    Error::new(SqlState::ObjectNotInPrerequisiteState, "the view is being dropped or replaced")
}

impl Reads {
    /// Starts the services; they end when this is dropped.
    pub fn start(session: u64, shared: &Shared, coordinator: &Arc<Connection>, ground: &dyn Ground) -> Result<Reads> {
        let (turns, waiting) = unbounded();
        let scans = Arc::default();
        for n in 0..READERS {
            let reader = Reader {
                session,
                number: n,
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
        Ok(Reads { session, shared, coordinator, scans, turns })
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

    /// Begins a scan: what it reads is held from here on.
    pub fn open(
        &self,
        number: u64,
        relation: RelationId,
        epoch: Epoch,
        shard: usize,
        projection: Option<&[usize]>,
        batch_rows: usize,
    ) {
        let rows = || -> Result<Scan> {
            let store = self.shared.stores.get(relation).ok_or_else(no_store)?;
            store.snapshot(epoch)?.scan_shard(shard, projection, batch_rows.max(1))
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
        for _ in 0..READERS {
            let _ = self.turns.send(Turn::End);
        }
    }
}

struct Reader {
    session: u64,
    number: usize,
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
                if let Err(error) = self.turn(&open) {
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
    fn end(&self, open: &Open, outcome: Result<()>) {
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
            let Some(batch) = rows.next().transpose()? else {
                self.end(open, Ok(()));
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
