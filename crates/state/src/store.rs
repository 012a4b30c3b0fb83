//! One relation as readers see it.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use flow::hash::{VNODES, hash_columns};
use flow::{ChangeBatch, Epoch, Error, Result};
use parking_lot::RwLock;

use crate::block::ALIVE;
use crate::changes::ChangeLog;
use crate::decide::first_repeat;
use crate::layout::{Identity, Layout};
use crate::pins::too_old;
use crate::shard::Shard;
use crate::snapshot::Snapshot;
use crate::values::Cells;

const NUMBER_BITS: u32 = 48;

/// One version of a row in a store. Stays valid until the version is dead and below the floor; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(u64);

impl RowId {
    #[inline]
    pub(crate) fn new(shard: usize, number: u64) -> RowId {
        RowId((shard as u64) << NUMBER_BITS | number)
    }

    pub fn shard(self) -> usize {
        (self.0 >> NUMBER_BITS) as usize
    }

    /// The row's number in its shard.
    pub(crate) fn number(self) -> u64 {
        self.0 & ((1 << NUMBER_BITS) - 1)
    }
}

/// The versions of one relation's rows, in shards with one writer each.
///
/// Which shard a row belongs to is the caller's decision; the versions of one key (or of one row, without a key) must
/// always go to the same shard. Methods that change a shard take a lock of that shard, so calling them from several
/// threads is safe, but the epochs of one shard must not go back.
pub struct Store {
    pub(crate) layout: Arc<Layout>,
    pub(crate) shards: Box<[Shard]>,
    /// Of [`apply`](Self::apply).
    pub(crate) changes: Arc<ChangeLog>,
    /// What is read up to an epoch, instead of this store.
    before: RwLock<Option<(Epoch, Arc<Store>)>>,
}

impl Store {
    /// An empty store. `key` names the columns of a unique key (an empty list: at most one row); without one, rows are
    /// identified by all their columns and counted. `shards` is 1 ..= 256.
    pub fn new(schema: SchemaRef, key: Option<Vec<usize>>, shards: usize) -> Result<Arc<Store>> {
        Self::with_identity(schema, key.map_or(Identity::Row, Identity::Key), shards)
    }

    /// Like [`new`](Self::new); [`Identity::Unindexed`] makes the cheapest store, for relations that only grow or whose
    /// rows are deleted by [`RowId`] alone.
    pub fn with_identity(schema: SchemaRef, identity: Identity, shards: usize) -> Result<Arc<Store>> {
        if shards == 0 || shards > VNODES {
            return Err(Error::internal(format!("a store of {shards} shards")));
        }
        let layout = Arc::new(Layout::new(schema, identity)?);
        let shards = (0..shards).map(|_| Shard::new(Arc::clone(&layout))).collect();
        Ok(Arc::new(Store { layout, shards, changes: Arc::default(), before: RwLock::default() }))
    }

    /// An empty store of the same shape, to whose shards the rows as of the end of `epoch` will be brought otherwise than they
    /// are here. Readers up to that epoch still read this store; who reads a later one finds it complete by then. Whoever
    /// follows this store follows that one: the changes go on where these end.
    pub fn successor(self: &Arc<Self>, epoch: Epoch) -> Arc<Store> {
        let shards = self.shards.iter().map(|_| Shard::new(Arc::clone(&self.layout))).collect();
        let (layout, changes) = (Arc::clone(&self.layout), Arc::clone(&self.changes));
        Arc::new(Store { layout, shards, changes, before: RwLock::new(Some((epoch, Arc::clone(self)))) })
    }

    /// Lets the predecessors go that nobody reads any more: `floor` is the oldest epoch that somebody may.
    pub fn forget_before(&self, floor: Epoch) {
        let unread = self.before.write().take_if(|(until, _)| *until < floor);
        // It may be large.
        drop(unread);
        let before = self.before.read().as_ref().map(|(_, before)| Arc::clone(before));
        if let Some(before) = before {
            before.forget_before(floor);
        }
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.layout.schema
    }

    pub fn identity(&self) -> &Identity {
        &self.layout.identity
    }

    /// The columns of the unique key, if the relation has one.
    pub fn key(&self) -> Option<&[usize]> {
        match &self.layout.identity {
            Identity::Key(columns) => Some(columns),
            _ => None,
        }
    }

    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    fn shard(&self, shard: usize) -> Result<&Shard> {
        self.shards.get(shard).ok_or_else(|| Error::internal(format!("no shard {shard} in this store")))
    }

    /// Applies the net change of (part of) `epoch` to a shard: the order of the rows in `change` does not matter, but over
    /// the batch no row may be taken away that is not there (`XX000`) and no unique key may get a second row (`23505`).
    /// On error nothing is changed. Several calls for one epoch are fine as long as each is consistent by itself; an epoch
    /// lower than that of an earlier call is an internal error. Followers (see [`follow`](Self::follow)) get `change`.
    pub fn apply(&self, shard: usize, epoch: Epoch, change: &ChangeBatch) -> Result<()> {
        self.shard(shard)?.apply(epoch, change)?;
        self.changes.push(epoch, change);
        Ok(())
    }

    /// Undoes an [`apply`](Self::apply) of this change in this epoch, the shard's last one: also of rows that are else only added.
    pub fn take_back(&self, shard: usize, epoch: Epoch, change: &ChangeBatch) -> Result<()> {
        let negated = ChangeBatch::new(change.rows.clone(), change.diff.negate());
        self.shard(shard)?.take_back(epoch, change.num_rows(), &negated)?;
        self.changes.push(epoch, &negated);
        Ok(())
    }

    /// Takes away the rows `deletes` (one copy per occurrence of an id) and adds `inserts`, all or nothing: `XX000` when a
    /// row is not alive, `23505` when a unique key would get a second row. Followers learn of changes by
    /// [`apply`](Self::apply) alone.
    pub fn write(&self, shard: usize, epoch: Epoch, deletes: &[RowId], inserts: Option<&RecordBatch>) -> Result<()> {
        if deletes.iter().any(|id| id.shard() != shard) {
            return Err(Error::internal(format!("row of another shard given to shard {shard}")));
        }
        let numbers: Vec<u64> = deletes.iter().map(|id| id.number()).collect();
        self.shard(shard)?.write(epoch, &numbers, inserts)
    }

    /// [`write`](Self::write) of insertions only.
    pub fn insert(&self, shard: usize, epoch: Epoch, rows: &RecordBatch) -> Result<()> {
        self.write(shard, epoch, &[], Some(rows))
    }

    /// [`write`](Self::write) of deletions only.
    pub fn delete_rows(&self, shard: usize, epoch: Epoch, rows: &[RowId]) -> Result<()> {
        self.write(shard, epoch, rows, None)
    }

    /// The first row of `rows` whose unique key repeats that of an earlier row in `rows`, as (earlier, later); `None` for
    /// relations without a key.
    pub fn repeated_key(&self, rows: &RecordBatch) -> Result<Option<(usize, usize)>> {
        if self.key().is_none() {
            return Ok(None);
        }
        let rows = self.layout.adopt(rows)?;
        let key: Vec<ArrayRef> = self.layout.columns.iter().map(|c| rows.column(*c).clone()).collect();
        let hashes = hash_columns(&key, rows.num_rows())?;
        first_repeat(rows.num_rows(), &hashes, &Cells::new(&rows), &self.layout.columns)
    }

    /// What a reader at `epoch` sees. The epoch must be completed for this relation, or be [`Epoch::MAX`] for the head,
    /// which is consistent only while nobody writes. Refused with `55000` when versions that such a reader needs may be
    /// gone already.
    pub fn snapshot(self: &Arc<Self>, epoch: Epoch) -> Result<Snapshot> {
        if let Some((until, before)) = &*self.before.read()
            && epoch <= *until
        {
            return before.snapshot(epoch);
        }
        // `ALIVE` itself would hide the rows that are alive.
        let epoch = epoch.0.min(ALIVE - 1);
        let lists = self.shards.iter().map(|s| s.current()).collect();
        let snapshot = Snapshot { store: Arc::clone(self), epoch, lists };
        snapshot.check_floor()?;
        Ok(snapshot)
    }

    /// The newest state, completed or not: for the writer of a table itself.
    pub fn head(self: &Arc<Self>) -> Result<Snapshot> {
        self.snapshot(Epoch::MAX)
    }

    /// Tells the store that nobody will read below `min_pinned` (see [`Pins::min_pinned`](crate::Pins::min_pinned)) and
    /// lets it drop what no longer can be seen. Call it after every epoch; the work is bounded and paid for by the changes
    /// since the last call. Returns whether more could be dropped at once, by another call.
    pub fn maintain(&self, min_pinned: Epoch) -> Result<bool> {
        let mut more = false;
        for shard in &self.shards {
            more |= shard.maintain(min_pinned)?;
        }
        Ok(more)
    }

    /// [`maintain`](Self::maintain) for one shard, by its writer.
    pub fn maintain_shard(&self, shard: usize, min_pinned: Epoch) -> Result<bool> {
        self.shard(shard)?.maintain(min_pinned)
    }

    /// The lowest epoch at which this store can be read.
    pub fn floor(&self) -> Epoch {
        Epoch(self.shards.iter().map(|s| s.floor.load(Acquire)).max().unwrap_or(0))
    }

    /// Bytes of memory held: blocks and index. What only readers with an older block list hold is not counted.
    pub fn bytes(&self) -> usize {
        let shard = |s: &Shard| s.counters.block_bytes.load(Relaxed) + s.index.read().bytes();
        self.shards.iter().map(shard).sum()
    }

    /// Row versions alive at the head; a counted duplicate is one.
    pub fn live_rows(&self) -> usize {
        self.shards.iter().map(|s| s.counters.live.load(Relaxed)).sum()
    }

    /// Row versions that have died and still take memory.
    pub fn dead_rows(&self) -> usize {
        self.shards.iter().map(|s| s.counters.dead.load(Relaxed)).sum()
    }

    pub fn blocks(&self) -> usize {
        self.shards.iter().map(|s| s.current().len()).sum()
    }

    /// Rows looked up, ended, added or rewritten since the start: the proof that a change costs work in proportion.
    pub fn rows_touched(&self) -> u64 {
        self.shards.iter().map(|s| s.counters.rows_touched.load(Relaxed)).sum()
    }
}

impl Snapshot {
    /// Fails when versions that this reader needs may be gone. Meaningful only after what it guards has been read.
    pub(crate) fn check_floor(&self) -> Result<()> {
        let floor = self.store.floor();
        if self.epoch < floor.0 { Err(too_old(Epoch(self.epoch), floor)) } else { Ok(()) }
    }
}
