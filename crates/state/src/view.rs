//! A relation's rows as readers ask for them, wherever its shards are: in this process, as a [`Store`] has them, or with
//! workers elsewhere.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use flow::{Epoch, Result};
use futures::future::{BoxFuture, FutureExt, ready};
use futures::stream::{self, BoxStream, StreamExt};

use crate::changes::{ChangeLog, ChangeRoom, Follower};
use crate::snapshot::Snapshot;
use crate::store::Store;

/// Rows as they come. After an error there are no more.
pub type Batches = BoxStream<'static, Result<RecordBatch>>;

/// What comes of the work on a shard.
#[derive(Debug)]
pub enum Worked {
    /// Rows, and how many bytes they were on their way.
    Rows { rows: RecordBatch, bytes: u64 },
    /// It is done, and so many rows of the shard were read for it.
    Done { read: u64 },
}

/// A relation at one epoch whose shards are in other processes, which can do a part of a reader's work on them, so that
/// only what comes of it travels.
pub trait Elsewhere: Send + Sync {
    /// Number of these processes.
    fn workers(&self) -> usize;

    /// Rows alive at the head, if all processes have told of theirs.
    fn live_rows(&self) -> Option<usize>;

    /// Lets the process of a shard do `work`, which only the reader's crate understands, on its rows; no bytes are no work. The
    /// rows are given to it as by [`RelationSnapshot::scan_shard`], and the same holds for the pin. Dropping the stream ends
    /// the work. Errors of the work come as they were there.
    fn work(
        &self,
        shard: usize,
        projection: Option<&[usize]>,
        batch_rows: usize,
        work: Vec<u8>,
    ) -> Result<BoxStream<'static, Result<Worked>>>;
}

/// A relation at one epoch, which its reader keeps pinned.
pub trait RelationSnapshot: Send + Sync {
    /// The columns.
    fn schema(&self) -> &SchemaRef;

    /// Number of shards; of a view, one a slot.
    fn shards(&self) -> usize;

    /// Rows of all shards, each as often as it occurs.
    fn count(&self) -> BoxFuture<'static, Result<usize>>;

    /// The rows of one shard in batches of at most `batch_rows`, duplicates repeated, the columns in the order of `projection`.
    /// The epoch has to stay pinned until this returns, not longer: what the rows are read from is held from then on.
    fn scan_shard(&self, shard: usize, projection: Option<&[usize]>, batch_rows: usize) -> Result<Batches>;

    /// The same of all shards, one after the other.
    fn scan(&self, projection: Option<&[usize]>, batch_rows: usize) -> Result<Batches> {
        let shards = (0..self.shards()).map(|shard| self.scan_shard(shard, projection, batch_rows));
        Ok(stream::iter(shards.collect::<Result<Vec<Batches>>>()?).flatten().boxed())
    }

    /// The same relation where its shards are, if that is in other processes that work on them for readers.
    fn elsewhere(&self) -> Option<&dyn Elsewhere> {
        None
    }

    /// The row with the unique key `key` (one array a key column, one row each), projected. The epoch has to stay pinned until
    /// the answer is there. Errors: `XX000` the relation has no key.
    fn point(&self, key: &[ArrayRef], projection: Option<&[usize]>) -> BoxFuture<'static, Result<Option<RecordBatch>>>;
}

/// The rows of a relation at all epochs that are still wanted.
pub trait RelationStore: Send + Sync {
    /// The columns.
    fn schema(&self) -> &SchemaRef;

    /// What a reader at `epoch`, which he has pinned, sees. Errors: `55000` rows that he needs may be gone.
    fn at(self: Arc<Self>, epoch: Epoch) -> Result<Arc<dyn RelationSnapshot>>;

    /// Rows alive at the head, as far as they are known here.
    fn live_rows(&self) -> usize;

    /// Bytes of memory held, as far as they are known here.
    fn bytes(&self) -> usize;

    /// The log of what changes, while somebody follows it.
    fn changes(&self) -> &Arc<ChangeLog>;

    /// Follows the changes from the oldest epoch that is there, see [`Store::follow`].
    fn follow(self: Arc<Self>, room: &Arc<ChangeRoom>) -> BoxFuture<'static, Result<Follower>>;
}

impl RelationSnapshot for Snapshot {
    fn schema(&self) -> &SchemaRef {
        Snapshot::schema(self)
    }

    fn shards(&self) -> usize {
        Snapshot::shards(self)
    }

    fn count(&self) -> BoxFuture<'static, Result<usize>> {
        ready(Ok(self.num_rows())).boxed()
    }

    fn scan_shard(&self, shard: usize, projection: Option<&[usize]>, batch_rows: usize) -> Result<Batches> {
        Ok(stream::iter(Snapshot::scan_shard(self, shard, projection, batch_rows)?).boxed())
    }

    fn scan(&self, projection: Option<&[usize]>, batch_rows: usize) -> Result<Batches> {
        // What is small in each shard comes together.
        Ok(stream::iter(Snapshot::scan(self, projection, batch_rows)?).boxed())
    }

    fn point(&self, key: &[ArrayRef], projection: Option<&[usize]>) -> BoxFuture<'static, Result<Option<RecordBatch>>> {
        ready(Snapshot::point(self, key, projection)).boxed()
    }
}

impl RelationStore for Store {
    fn schema(&self) -> &SchemaRef {
        Store::schema(self)
    }

    fn at(self: Arc<Self>, epoch: Epoch) -> Result<Arc<dyn RelationSnapshot>> {
        Ok(Arc::new(self.snapshot(epoch)?))
    }

    fn live_rows(&self) -> usize {
        Store::live_rows(self)
    }

    fn bytes(&self) -> usize {
        Store::bytes(self)
    }

    fn changes(&self) -> &Arc<ChangeLog> {
        Store::changes(self)
    }

    fn follow(self: Arc<Self>, room: &Arc<ChangeRoom>) -> BoxFuture<'static, Result<Follower>> {
        ready(Ok(Store::follow(&self, room))).boxed()
    }
}
