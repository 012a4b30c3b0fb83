//! A relation at one epoch.
//!
//! The snapshot owns the block lists it was made with, so scans always finish. Point reads also use the live index: rows
//! younger than the lists are skipped, and a reader whose epoch has fallen below the floor is refused rather than told that
//! a row is not there. A pin keeps that from happening.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::interleave;
use arrow::datatypes::SchemaRef;
use flow::hash::{hash_columns, slot_of_vnode, vnode};
use flow::{Epoch, Error, Result};
use hashbrown::HashMap;

use crate::block::Block;
use crate::index::Index;
use crate::list::BlockList;
use crate::scan::{Cursor, Scan, ScanWithIds};
use crate::store::{RowId, Store};
use crate::values::Values;

/// Keys looked up under one hold of the index lock.
const LOOKUP_BATCH: usize = 512;

/// A relation at one epoch; cheap to make and to clone.
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) store: Arc<Store>,
    pub(crate) epoch: u64,
    pub(crate) lists: Vec<Arc<BlockList>>,
}

impl Snapshot {
    pub fn schema(&self) -> &SchemaRef {
        self.store.schema()
    }

    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    pub fn shards(&self) -> usize {
        self.lists.len()
    }

    /// Visible rows, each as often as it occurs. Costs a pass over the epochs of those blocks that have dead or younger
    /// rows, nothing for the others.
    pub fn num_rows(&self) -> usize {
        self.lists.iter().flat_map(|l| l.iter()).map(|b| b.visible_rows(self.epoch)).sum::<u64>() as usize
    }

    /// All visible rows in batches of at most `batch_rows`, duplicates repeated. `projection` selects columns, in the
    /// order given. Batches share memory with the store where they can.
    pub fn scan(&self, projection: Option<&[usize]>, batch_rows: usize) -> Result<Scan> {
        self.scan_part(0, 1, projection, batch_rows)
    }

    /// The part of [`scan`](Self::scan) that lies in one shard.
    pub fn scan_shard(&self, shard: usize, projection: Option<&[usize]>, batch_rows: usize) -> Result<Scan> {
        let list = self.lists.get(shard).ok_or_else(|| Error::internal(format!("no shard {shard} in this store")))?;
        let blocks = list.iter().map(|b| (shard, Arc::clone(b))).collect();
        Ok(Scan::new(Cursor::new(self, blocks, projection, batch_rows, false)?))
    }

    /// Part `part` of `parts` of [`scan`](Self::scan): together the parts return every row once. Parts are whole blocks
    /// and of about equal size.
    pub fn scan_part(
        &self,
        part: usize,
        parts: usize,
        projection: Option<&[usize]>,
        batch_rows: usize,
    ) -> Result<Scan> {
        Ok(Scan::new(Cursor::new(self, self.part(part, parts), projection, batch_rows, false)?))
    }

    /// Like [`scan`](Self::scan), with the id of each row; a row that occurs n times comes n times with the same id.
    pub fn scan_with_ids(&self, projection: Option<&[usize]>, batch_rows: usize) -> Result<ScanWithIds> {
        Ok(ScanWithIds::new(Cursor::new(self, self.part(0, 1), projection, batch_rows, true)?))
    }

    fn part(&self, part: usize, parts: usize) -> Vec<(usize, Arc<Block>)> {
        let total: usize = self.lists.iter().flat_map(|l| l.iter()).map(|b| b.len()).sum();
        let mut before = 0;
        let mut blocks = vec![];
        for (shard, list) in self.lists.iter().enumerate() {
            for block in list.iter() {
                // The part in which the block's middle lies.
                let middle = before + block.len() / 2;
                if middle as u128 * parts as u128 / total.max(1) as u128 == part as u128 {
                    blocks.push((shard, Arc::clone(block)));
                }
                before += block.len();
            }
        }
        blocks
    }

    /// The row with the unique key `key` (one array per key column, one row each, of the column's type), projected;
    /// `None` when there is none at this epoch. An internal error for relations without a unique key.
    pub fn point(&self, key: &[ArrayRef], projection: Option<&[usize]>) -> Result<Option<RecordBatch>> {
        self.store.layout.check_key(key)?;
        if key.iter().any(|k| k.len() != 1) {
            return Err(Error::internal("a point read takes one key"));
        }
        let hash = hash_columns(key, 1)?[0];
        let key: Vec<Values> = key.iter().map(Values::new).collect::<Result<_>>()?;
        let mut found = None;
        for shard in self.shard_order(hash) {
            let index = self.store.shards[shard].index.read();
            if let Some(place) = self.find(&index, shard, hash, index.newest(hash), &key, 0)? {
                found = Some((shard, place));
                break;
            }
        }
        self.check_floor()?;
        let Some((shard, (at, offset))) = found else {
            return Ok(None);
        };
        let rows = self.lists[shard].block(at).rows();
        Ok(Some(match projection {
            None => rows.slice(offset, 1),
            Some(columns) => {
                let schema = Arc::new(self.schema().project(columns)?);
                let columns = columns.iter().map(|c| rows.column(*c).slice(offset, 1)).collect();
                RecordBatch::try_new_with_options(schema, columns, &RecordBatchOptions::new().with_row_count(Some(1)))?
            }
        }))
    }

    /// For each row of `key` (one array per key column, of the column's type) the row with that unique key, if any.
    pub fn lookup_keys(&self, key: &[ArrayRef]) -> Result<Vec<Option<RowId>>> {
        self.store.layout.check_key(key)?;
        let rows = key.first().map_or(1, |k| k.len());
        let hashes = hash_columns(key, rows)?;
        let key: Vec<Values> = key.iter().map(Values::new).collect::<Result<_>>()?;
        let mut ids = Vec::with_capacity(rows);
        while ids.len() < rows {
            let indexes: Vec<_> = self.store.shards.iter().map(|s| s.index.read()).collect();
            let keys = ids.len()..rows.min(ids.len() + LOOKUP_BATCH);
            // Probes of the likely shards in a loop of their own, so that their cache misses overlap.
            let likely: Vec<(usize, Option<u64>)> = hashes[keys.clone()]
                .iter()
                .map(|hash| {
                    let shard = slot_of_vnode(vnode(*hash), indexes.len());
                    (shard, indexes[shard].newest(*hash))
                })
                .collect();
            for (i, (likely, likely_newest)) in keys.zip(likely) {
                let mut id = None;
                for shard in self.shard_order(hashes[i]) {
                    let index = &indexes[shard];
                    let newest = if shard == likely { likely_newest } else { index.newest(hashes[i]) };
                    if let Some((at, offset)) = self.find(index, shard, hashes[i], newest, &key, i)? {
                        id = Some(RowId::new(shard, self.lists[shard].block(at).number(offset)));
                        break;
                    }
                }
                ids.push(id);
            }
        }
        self.check_floor()?;
        Ok(ids)
    }

    /// The rows with the unique keys `key` that exist, in the order of the keys.
    pub fn points(&self, key: &[ArrayRef], projection: Option<&[usize]>) -> Result<RecordBatch> {
        let ids: Vec<RowId> = self.lookup_keys(key)?.into_iter().flatten().collect();
        self.take(&ids, projection)
    }

    /// The rows with these ids, in this order, projected. Ids come from a snapshot at the same epoch or, for the head,
    /// from before the next [`maintain`](Store::maintain); an unknown id is an internal error.
    pub fn take(&self, ids: &[RowId], projection: Option<&[usize]>) -> Result<RecordBatch> {
        let mut slots: HashMap<(usize, usize), usize> = HashMap::new();
        let mut blocks: Vec<&Arc<Block>> = vec![];
        let mut indices = Vec::with_capacity(ids.len());
        for id in ids {
            let place = self.lists.get(id.shard()).and_then(|list| list.locate(id.number()));
            let Some((at, offset)) = place else {
                return Err(Error::internal("no row with this id").with_detail(format!("{id:?}")));
            };
            let slot = *slots.entry((id.shard(), at)).or_insert_with(|| {
                blocks.push(self.lists[id.shard()].block(at));
                blocks.len() - 1
            });
            indices.push((slot, offset));
        }
        let columns = projection.unwrap_or(&self.store.layout.all);
        let schema = Arc::new(self.schema().project(columns)?);
        if ids.is_empty() {
            return Ok(RecordBatch::new_empty(schema));
        }
        let take = |c: &usize| {
            let parts: Vec<&dyn Array> = blocks.iter().map(|b| b.rows().column(*c).as_ref()).collect();
            interleave(&parts, &indices)
        };
        let taken = columns.iter().map(take).collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(ids.len()));
        Ok(RecordBatch::try_new_with_options(schema, taken, &options)?)
    }

    /// All shards, the one that owns the hash first: it has the row when the relation is distributed by its key.
    fn shard_order(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let shards = self.lists.len();
        let first = slot_of_vnode(vnode(hash), shards);
        (first..shards).chain(0..first)
    }

    /// The version of key `key[i]` that is visible here; `newest` is the newest row with its hash. Versions of a key do not
    /// overlap and come newest first, so the first that was born in time decides.
    #[inline]
    fn find(
        &self,
        index: &Index,
        shard: usize,
        hash: u64,
        newest: Option<u64>,
        key: &[Values],
        i: usize,
    ) -> Result<Option<(usize, usize)>> {
        let list = &self.lists[shard];
        let mut number = newest;
        while let Some(row) = number {
            if let Some((at, offset)) = list.locate(row) {
                let block = list.block(at);
                if block.born(offset) <= self.epoch
                    && block.cells().holds_key(offset, &self.store.layout.columns, key, i)?
                {
                    return Ok((block.died(offset) > self.epoch).then_some((at, offset)));
                }
            }
            number = index.older(hash, row);
        }
        Ok(None)
    }
}
