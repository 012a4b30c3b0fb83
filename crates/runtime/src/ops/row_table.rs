//! Distinct rows under dense numbers, found by value: the keys of an aggregate, the keys and the rows of a join.
//!
//! A row's number stays while the row stays; the numbers of removed rows are used again. Whatever an operator knows about
//! a row lives in plain vectors beside the table, indexed by that number.

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use flow::{Error, Result};
use hashbrown::HashTable;

use super::cells::{BatchColumn, Cells};

/// "No row", in links and look-ups.
pub const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Entry {
    /// Bits of the hash, so that a look-up rarely reads a row that is not the one.
    tag: u32,
    id: u32,
}

#[inline(always)]
fn tag(hash: u64) -> u32 {
    (hash >> 24) as u32
}

/// Entries from which on an index is split.
const SPLIT_AT: usize = 1 << 16;
/// Parts of a split index.
const PARTS: usize = 64;

/// Row numbers by hash. A large one is split: a hash table grows at a stroke, which would hold up everything else on its
/// slot for as long as moving a million entries takes.
struct Index {
    /// One, or [`PARTS`].
    parts: Vec<HashTable<Entry>>,
}

/// The lowest bits choose the part, the highest are those of few vnodes: tables get the middle ones first.
#[inline(always)]
fn table_hash(hash: u64) -> u64 {
    hash.rotate_left(32)
}

impl Index {
    fn new() -> Index {
        Index { parts: vec![HashTable::new()] }
    }

    #[inline(always)]
    fn part(&mut self, hash: u64) -> &mut HashTable<Entry> {
        let part = hash as usize & (self.parts.len() - 1);
        &mut self.parts[part]
    }

    /// Splits the index if it is large by now. `hashes` are the rows' by number.
    fn split(&mut self, hashes: &[u64]) {
        let [whole] = self.parts.as_mut_slice() else { return };
        if whole.len() < SPLIT_AT {
            return;
        }
        let whole = std::mem::take(whole);
        self.parts = (0..PARTS).map(|_| HashTable::with_capacity(2 * SPLIT_AT / PARTS)).collect();
        for entry in whole {
            let hash = hashes[entry.id as usize];
            self.part(hash).insert_unique(table_hash(hash), entry, |e| table_hash(hashes[e.id as usize]));
        }
    }

    fn remove(&mut self, hash: u64, id: u32) {
        if let Ok(entry) = self.part(hash).find_entry(table_hash(hash), |e| e.id == id) {
            entry.remove();
        }
    }

    fn allocation_size(&self) -> usize {
        self.parts.iter().map(HashTable::allocation_size).sum()
    }
}

/// See the module. With `index` the rows are distinct; without it every added row gets a number of its own.
pub struct RowTable {
    columns: Vec<Cells>,
    index: Option<Index>,
    /// By row number; empty without an index.
    hashes: Vec<u64>,
    free: Vec<u32>,
    /// Numbers given out so far, those on the free list included.
    size: usize,
}

/// How the index compares and writes rows; one form per fast path, so that the loop is compiled for each.
trait Access {
    fn equal(&self, id: usize, i: usize) -> bool;
    fn write(&mut self, id: usize, i: usize);
}

struct General<'a> {
    columns: &'a mut [Cells],
    batch: &'a [BatchColumn],
}

impl Access for General<'_> {
    #[inline(always)]
    fn equal(&self, id: usize, i: usize) -> bool {
        self.columns.iter().zip(self.batch).all(|(c, b)| c.equal(id, b, i))
    }

    #[inline(always)]
    fn write(&mut self, id: usize, i: usize) {
        for (c, b) in self.columns.iter_mut().zip(self.batch) {
            c.write(id, b, i);
        }
    }
}

struct One<'a> {
    column: &'a mut Cells,
    batch: &'a BatchColumn,
}

impl Access for One<'_> {
    #[inline(always)]
    fn equal(&self, id: usize, i: usize) -> bool {
        self.column.equal(id, self.batch, i)
    }

    #[inline(always)]
    fn write(&mut self, id: usize, i: usize) {
        self.column.write(id, self.batch, i);
    }
}

struct Plain64<'a> {
    store: &'a mut Vec<u64>,
    batch: &'a [u64],
}

impl Access for Plain64<'_> {
    #[inline(always)]
    fn equal(&self, id: usize, i: usize) -> bool {
        self.store[id] == self.batch[i]
    }

    #[inline(always)]
    fn write(&mut self, id: usize, i: usize) {
        if id == self.store.len() {
            self.store.push(self.batch[i]);
        } else {
            self.store[id] = self.batch[i];
        }
    }
}

impl RowTable {
    /// An empty table of rows with columns of `types`.
    pub fn new<'a>(types: impl IntoIterator<Item = &'a DataType>, indexed: bool) -> RowTable {
        RowTable {
            columns: types.into_iter().map(Cells::new).collect(),
            index: indexed.then(Index::new),
            hashes: Vec::new(),
            free: Vec::new(),
            size: 0,
        }
    }

    /// Numbers given out so far: vectors beside the table need this length.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The number of every row of `batch` into `ids`; rows not yet there are added, and their positions in the batch go
    /// to `fresh` (only the first of several equal ones). `hashes` are `flow::hash` of the same columns. Only for a table with
    /// an index.
    pub fn upsert(
        &mut self,
        batch: &[BatchColumn],
        hashes: &[u64],
        ids: &mut Vec<u32>,
        fresh: &mut Vec<u32>,
    ) -> Result<()> {
        ids.clear();
        fresh.clear();
        if self.size + hashes.len() >= NONE as usize {
            return Err(Error::new(flow::SqlState::ProgramLimitExceeded, "too many rows in one operator's state"));
        }
        let RowTable { columns, index, hashes: stored, free, size } = self;
        let Some(index) = index else {
            return Err(Error::internal("a row table without an index was searched"));
        };
        index.split(stored);
        let mut state = IndexState { index, stored, free, size };
        match (columns.as_mut_slice(), batch) {
            ([column], [only]) => match column.plain64(only) {
                Some((store, batch)) => state.upsert(&mut Plain64 { store, batch }, hashes, ids, fresh),
                None => state.upsert(&mut One { column, batch: only }, hashes, ids, fresh),
            },
            (columns, batch) => state.upsert(&mut General { columns, batch }, hashes, ids, fresh),
        }
        Ok(())
    }

    /// Whether row `id` equals row `i` of `batch`.
    #[inline]
    pub fn equal(&self, id: u32, batch: &[BatchColumn], i: usize) -> bool {
        self.columns.iter().zip(batch).all(|(c, b)| c.equal(id as usize, b, i))
    }

    /// Adds row `i` of `batch` under a new number, whatever is there already. Only for a table without an index.
    pub fn push(&mut self, batch: &[BatchColumn], i: usize) -> u32 {
        debug_assert!(self.index.is_none());
        let id = self.free.pop().unwrap_or_else(|| {
            self.size += 1;
            (self.size - 1) as u32
        });
        for (c, b) in self.columns.iter_mut().zip(batch) {
            c.write(id as usize, b, i);
        }
        id
    }

    /// Adds the first `rows` rows of `batch` under new numbers in a row and returns the first. Only for a table without an
    /// index from which nothing was removed.
    pub fn extend(&mut self, batch: &[BatchColumn], rows: usize) -> u32 {
        debug_assert!(self.index.is_none() && self.free.is_empty());
        let start = self.size;
        for (c, b) in self.columns.iter_mut().zip(batch) {
            c.extend(start, b, rows);
        }
        self.size += rows;
        start as u32
    }

    /// Removes row `id`, which is present; its number may come back for another row.
    pub fn remove(&mut self, id: u32) {
        if let Some(index) = &mut self.index {
            index.remove(self.hashes[id as usize], id);
        }
        for column in &mut self.columns {
            column.clear(id as usize);
        }
        self.free.push(id);
    }

    /// Column `column` of the rows `ids`.
    pub fn gather(&self, column: usize, ids: &[u32]) -> Result<ArrayRef> {
        self.columns[column].gather(ids)
    }

    /// All columns of the rows `ids`.
    pub fn gather_all(&self, ids: &[u32]) -> Result<Vec<ArrayRef>> {
        self.columns.iter().map(|c| c.gather(ids)).collect()
    }

    pub fn is_null(&self, column: usize, id: u32) -> bool {
        self.columns[column].is_null(id as usize)
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.columns.iter().map(Cells::bytes).sum::<usize>()
            + self.index.as_ref().map_or(0, Index::allocation_size)
            + self.hashes.capacity() * 8
            + self.free.capacity() * 4
    }
}

struct IndexState<'a> {
    index: &'a mut Index,
    stored: &'a mut Vec<u64>,
    free: &'a mut Vec<u32>,
    size: &'a mut usize,
}

impl IndexState<'_> {
    #[inline(always)]
    fn upsert<A: Access>(&mut self, rows: &mut A, hashes: &[u64], ids: &mut Vec<u32>, fresh: &mut Vec<u32>) {
        let IndexState { index, stored, free, size } = self;
        ids.reserve(hashes.len());
        for (i, hash) in hashes.iter().enumerate() {
            let part = index.part(*hash);
            let found = part.find(table_hash(*hash), |e| e.tag == tag(*hash) && rows.equal(e.id as usize, i));
            let id = match found {
                Some(e) => e.id,
                None => {
                    let id = match free.pop() {
                        Some(id) => {
                            stored[id as usize] = *hash;
                            id
                        }
                        None => {
                            stored.push(*hash);
                            **size += 1;
                            (**size - 1) as u32
                        }
                    };
                    rows.write(id as usize, i);
                    let entry = Entry { tag: tag(*hash), id };
                    part.insert_unique(table_hash(*hash), entry, |e| table_hash(stored[e.id as usize]));
                    fresh.push(i as u32);
                    id
                }
            };
            ids.push(id);
        }
    }
}
