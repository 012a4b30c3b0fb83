//! The rows of views, which workers have, as the coordinator's readers see them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema, SchemaRef};
use flow::hash::{hash_columns, slot_of_vnode, vnode};
use flow::{ChangeBatch, Epoch, Error, RelationId, Result, SqlState};
use futures::future::{BoxFuture, FutureExt, ready, try_join_all};
use futures::stream::{BoxStream, Stream, StreamExt};
use parking_lot::Mutex;
use state::{Batches, ChangeLog, ChangeRoom, Elsewhere, Follower, RelationSnapshot, RelationStore, Worked};

use crate::message::{ToWorker, ViewSize};
use crate::session::{Answered, ScanRows, Session};

/// A view's rows. A view that is deployed anew is another one.
pub(crate) struct RemoteView {
    session: Arc<Session>,
    relation: RelationId,
    schema: SchemaRef,
    /// On how many slots its job works: where a key is to be looked for first.
    parallelism: AtomicUsize,
    changes: Arc<ChangeLog>,
    /// One begins to follow after the other.
    following: Arc<futures::lock::Mutex<()>>,
    /// By worker, as last told.
    sizes: Mutex<BTreeMap<u32, ViewSize>>,
}

fn other_answer() -> Error {
    Error::new(SqlState::ProtocolViolation, "a worker answers another question")
}

impl RemoteView {
    pub fn new(session: &Arc<Session>, relation: RelationId, schema: SchemaRef) -> Arc<RemoteView> {
        let (parallelism, sizes) = (AtomicUsize::new(session.all_slots()), Mutex::default());
        let session = Arc::clone(session);
        let (changes, following) = (Arc::default(), Arc::default());
        Arc::new(RemoteView { session, relation, schema, parallelism, changes, following, sizes })
    }

    /// The same view after its job has moved: whoever follows its changes goes on.
    pub fn successor(&self) -> Arc<RemoteView> {
        Arc::new(RemoteView {
            session: Arc::clone(&self.session),
            relation: self.relation,
            schema: Arc::clone(&self.schema),
            parallelism: AtomicUsize::new(self.session.all_slots()),
            changes: Arc::clone(&self.changes),
            following: Arc::clone(&self.following),
            sizes: Mutex::new(self.sizes.lock().clone()),
        })
    }

    pub fn set_parallelism(&self, slots: usize) {
        self.parallelism.store(slots.max(1), Ordering::Relaxed);
    }

    pub fn note_size(&self, worker: u32, size: ViewSize) {
        self.sizes.lock().insert(worker, size);
    }

    /// Takes changes up that a worker has handed on; says that nobody wants them if that is so.
    pub fn take_up(&self, epoch: Epoch, change: &ChangeBatch) {
        if self.changes.is_on() {
            self.changes.take_up(epoch, change);
        } else if let Some(_alone) = self.following.try_lock()
            && !self.changes.is_on()
        {
            self.session.unfollow(self.relation);
        }
    }
}

impl RelationStore for RemoteView {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn at(self: Arc<Self>, epoch: Epoch) -> Result<Arc<dyn RelationSnapshot>> {
        Ok(Arc::new(RemoteSnapshot { view: self, epoch }))
    }

    fn live_rows(&self) -> usize {
        self.sizes.lock().values().map(|size| size.rows as usize).sum()
    }

    fn bytes(&self) -> usize {
        self.sizes.lock().values().map(|size| size.bytes as usize).sum()
    }

    fn changes(&self) -> &Arc<ChangeLog> {
        &self.changes
    }

    fn follow(self: Arc<Self>, room: &Arc<ChangeRoom>) -> BoxFuture<'static, Result<Follower>> {
        let room = Arc::clone(room);
        async move {
            let _alone = self.following.lock().await;
            let (follower, was_off) = self.changes.follow_from_elsewhere(&room);
            if was_off {
                let relation = self.relation;
                let mut written = Epoch(0);
                for answer in self.session.ask_all(|request| ToWorker::Follow { request, relation }).await? {
                    let Answered::Written(epoch) = answer else { return Err(other_answer()) };
                    written = written.max(epoch);
                }
                self.changes.settle(&follower, written);
            }
            Ok(follower)
        }
        .boxed()
    }
}

/// A view at one epoch.
struct RemoteSnapshot {
    view: Arc<RemoteView>,
    epoch: Epoch,
}

impl RelationSnapshot for RemoteSnapshot {
    fn schema(&self) -> &SchemaRef {
        &self.view.schema
    }

    fn shards(&self) -> usize {
        self.view.session.all_slots()
    }

    fn count(&self) -> BoxFuture<'static, Result<usize>> {
        let (relation, epoch) = (self.view.relation, self.epoch);
        let answers = self.view.session.ask_all(|request| ToWorker::Count { request, relation, epoch });
        async move {
            let mut rows = 0;
            for answer in answers.await? {
                let Answered::Count(n) = answer else { return Err(other_answer()) };
                rows += n as usize;
            }
            Ok(rows)
        }
        .boxed()
    }

    fn scan_shard(&self, shard: usize, projection: Option<&[usize]>, batch_rows: usize) -> Result<Batches> {
        let rows = self.open(shard, projection, batch_rows, Vec::new())?;
        let rows = rows.filter_map(|rows| {
            ready(match rows {
                Ok(Worked::Rows { rows, .. }) => Some(Ok(rows)),
                Ok(Worked::Done { .. }) => None,
                Err(error) => Some(Err(error)),
            })
        });
        Ok(rows.boxed())
    }

    fn elsewhere(&self) -> Option<&dyn Elsewhere> {
        Some(self)
    }

    fn point(&self, key: &[ArrayRef], projection: Option<&[usize]>) -> BoxFuture<'static, Result<Option<RecordBatch>>> {
        match self.ask_for(key, projection) {
            Ok(found) => found,
            Err(error) => ready(Err(error)).boxed(),
        }
    }
}

impl Elsewhere for RemoteSnapshot {
    fn workers(&self) -> usize {
        self.view.session.worker_count()
    }

    fn live_rows(&self) -> Option<usize> {
        let sizes = self.view.sizes.lock();
        (sizes.len() >= self.workers()).then(|| sizes.values().map(|size| size.rows as usize).sum())
    }

    fn work(
        &self,
        shard: usize,
        projection: Option<&[usize]>,
        batch_rows: usize,
        work: Vec<u8>,
    ) -> Result<BoxStream<'static, Result<Worked>>> {
        Ok(self.open(shard, projection, batch_rows, work)?.boxed())
    }
}

impl RemoteSnapshot {
    fn open(&self, shard: usize, projection: Option<&[usize]>, batch_rows: usize, work: Vec<u8>) -> Result<RemoteScan> {
        let (relation, epoch, projection) = (self.view.relation, self.epoch, projection.map(<[usize]>::to_vec));
        let session = Arc::clone(&self.view.session);
        let open = |scan| ToWorker::Scan { scan, relation, epoch, shard, projection, batch_rows };
        let (scan, rows) = session.open_scan(shard, work, open)?;
        Ok(RemoteScan { session, shard, scan, rows })
    }

    fn ask_for(
        &self,
        key: &[ArrayRef],
        projection: Option<&[usize]>,
    ) -> Result<BoxFuture<'static, Result<Option<RecordBatch>>>> {
        let hash = hash_columns(key, 1)?.first().copied().unwrap_or_default();
        let likely = slot_of_vnode(vnode(hash), self.view.parallelism.load(Ordering::Relaxed));
        let fields: Vec<Field> = key.iter().map(|c| Field::new("", c.data_type().clone(), true)).collect();
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(1));
        let row = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), key.to_vec(), &options)?;
        let body = flow::wire::encode(&ChangeBatch::insert(row))?;
        let (relation, epoch) = (self.view.relation, self.epoch);
        let projection = projection.map(<[usize]>::to_vec);
        let session = Arc::clone(&self.view.session);
        Ok(async move {
            let ask = |line: usize| {
                let projection = projection.clone();
                session.ask(line, |request| ToWorker::Point { request, relation, epoch, projection }, body.clone())
            };
            let mut order = session.order_from(likely).into_iter();
            // A view that is spread by its key has the row with this worker, and nowhere else.
            let Some(first) = order.next() else { return Ok(None) };
            match ask(first).await? {
                Answered::Row(None) => {}
                Answered::Row(found) => return Ok(found),
                _ => return Err(other_answer()),
            }
            for answer in try_join_all(order.map(ask)).await? {
                match answer {
                    Answered::Row(None) => {}
                    Answered::Row(found) => return Ok(found),
                    _ => return Err(other_answer()),
                }
            }
            Ok(None)
        }
        .boxed())
    }
}

/// The rows of one shard, or what comes of work on them, as they come.
struct RemoteScan {
    session: Arc<Session>,
    shard: usize,
    scan: u64,
    rows: ScanRows,
}

impl Stream for RemoteScan {
    type Item = Result<Worked>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.rows.poll_next_unpin(context);
        if let Poll::Ready(Some(Ok(Worked::Rows { bytes, .. }))) = &next {
            self.session.credit(self.shard, self.scan, *bytes);
        }
        next
    }
}

impl Drop for RemoteScan {
    fn drop(&mut self) {
        self.session.cancel(self.shard, self.scan);
    }
}
