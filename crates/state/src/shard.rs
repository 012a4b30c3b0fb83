//! One shard of a store: its block list, its index, and the one writer that changes them.
//!
//! Readers take the published list (a pointer behind a short lock) and probe the index; the writer works on a copy of the
//! list and publishes it. Order matters in one place: the floor is raised *before* versions below it disappear from the
//! list or the index, and readers check it *after* they have read, so that a reader that lost the race is refused
//! instead of missing rows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_arrays;
use flow::{ChangeBatch, Diff, Epoch, Error, Result};
use parking_lot::{Mutex, RwLock};

use crate::block::{ALIVE, BLOCK_ROWS, Block, Born, Numbers};
use crate::decide::{Doomed, Head, Place, Plan};
use crate::index::Index;
use crate::layout::{Incoming, Layout};
use crate::list::BlockList;
use crate::owned::owned;

/// Index entries changed under one hold of the index lock: a point read waits for some tens of microseconds at most.
const INDEX_BATCH: usize = 512;

pub(crate) struct Shard {
    pub(crate) layout: Arc<Layout>,
    pub(crate) list: RwLock<Arc<BlockList>>,
    pub(crate) index: RwLock<Index>,
    /// Readers at an epoch below may miss rows.
    pub(crate) floor: AtomicU64,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) counters: Counters,
}

#[derive(Default)]
pub(crate) struct Counters {
    /// Bytes of the blocks in the published list.
    pub(crate) block_bytes: AtomicUsize,
    pub(crate) live: AtomicUsize,
    pub(crate) dead: AtomicUsize,
    pub(crate) rows_touched: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Writer {
    /// The number that the next row gets.
    next: u64,
    pub(crate) epoch: u64,
    /// Blocks whose dead are the majority, as (epoch by which that was so, first row number), oldest first: once the floor
    /// has reached the epoch, rewriting the block frees at least half of it.
    pub(crate) mostly_dead: VecDeque<(u64, u64)>,
    /// Deaths since the last maintenance, which pay for its work.
    pub(crate) deaths: usize,
}

/// Rows to append: index hashes per row (empty without an index), and how often each occurs.
struct Addition {
    rows: RecordBatch,
    hashes: Vec<u64>,
    counts: Option<Vec<u64>>,
}

impl Shard {
    pub(crate) fn new(layout: Arc<Layout>) -> Shard {
        Shard {
            layout,
            list: RwLock::new(Arc::new(BlockList::default())),
            index: RwLock::new(Index::new()),
            floor: AtomicU64::new(0),
            writer: Mutex::new(Writer::default()),
            counters: Counters::default(),
        }
    }

    /// The published block list.
    pub(crate) fn current(&self) -> Arc<BlockList> {
        Arc::clone(&self.list.read())
    }

    pub(crate) fn publish(&self, list: BlockList) {
        let old = std::mem::replace(&mut *self.list.write(), Arc::new(list));
        // Outside of the lock: this may free blocks.
        drop(old);
    }

    pub(crate) fn touch(&self, rows: usize) {
        self.counters.rows_touched.fetch_add(rows as u64, Relaxed);
    }

    fn open_epoch(&self, writer: &mut Writer, epoch: Epoch) -> Result<u64> {
        // The two highest numbers mean "alive" and "read at the head".
        if epoch.0 < writer.epoch.max(self.floor.load(Acquire)) || epoch.0 >= ALIVE - 1 {
            return Err(Error::internal("change for an epoch that is already completed")
                .with_detail(format!("epoch {epoch} after epoch {}", writer.epoch)));
        }
        writer.epoch = epoch.0;
        Ok(epoch.0)
    }

    /// Applies the net change of (part of) an epoch; changes nothing on error.
    pub(crate) fn apply(&self, epoch: Epoch, change: &ChangeBatch) -> Result<()> {
        let writer = &mut *self.writer.lock();
        let epoch = self.open_epoch(writer, epoch)?;
        if let Diff::Weights(weights) = &change.diff
            && weights.len() != change.num_rows()
        {
            return Err(Error::internal("a change has fewer weights than rows"));
        }
        if change.num_rows() == 0 {
            return Ok(());
        }
        let list = self.current();
        let incoming = Incoming::new(&self.layout, &change.rows)?;
        let plan = {
            let head = Head { layout: &self.layout, list: &list, index: &self.index.read() };
            head.decide(&incoming, &change.diff, &mut Doomed::new())?
        };
        self.touch(change.num_rows());
        let addition = self.addition(&incoming, &plan)?;
        self.carry_out(writer, epoch, &list, &plan.kills, addition.into_iter().collect())
    }

    /// Undoes the last change, of so many rows.
    pub(crate) fn take_back(&self, epoch: Epoch, rows: usize, negated: &ChangeBatch) -> Result<()> {
        if self.layout.is_indexed() {
            return self.apply(epoch, negated);
        }
        let writer = &mut *self.writer.lock();
        let epoch = self.open_epoch(writer, epoch)?;
        let list = self.current();
        // Rows without an index are numbered as they come.
        let kills = (writer.next.saturating_sub(rows as u64)..writer.next).map(|number| list.locate(number));
        let kills = kills.collect::<Option<Vec<Place>>>();
        let kills = kills.ok_or_else(|| Error::internal("a change to take back is not there"))?;
        self.kill(writer, epoch, &list, &kills);
        Ok(())
    }

    /// Takes away one copy of a row per occurrence of its number in `deletes` and adds `inserts`; changes nothing on error.
    pub(crate) fn write(&self, epoch: Epoch, deletes: &[u64], inserts: Option<&RecordBatch>) -> Result<()> {
        let writer = &mut *self.writer.lock();
        let epoch = self.open_epoch(writer, epoch)?;
        let list = self.current();
        let mut doomed = Doomed::with_capacity(deletes.len());
        for number in deletes {
            *doomed.entry(*number).or_insert(0) += 1;
        }
        for (number, copies) in &doomed {
            let stored = match list.locate(*number) {
                Some((at, offset)) if list.block(at).died(offset) == ALIVE => list.block(at).count(offset),
                _ => 0,
            };
            if stored < *copies {
                return Err(Error::internal("deletion of a row that is not there"));
            }
        }
        let mut kills = vec![];
        let mut additions = vec![];
        if let Some(inserts) = inserts.filter(|rows| rows.num_rows() > 0) {
            let incoming = Incoming::new(&self.layout, inserts)?;
            let plan = {
                let head = Head { layout: &self.layout, list: &list, index: &self.index.read() };
                head.decide(&incoming, &Diff::Insert, &mut doomed)?
            };
            additions.extend(self.addition(&incoming, &plan)?);
            kills = plan.kills;
            self.touch(inserts.num_rows());
        }
        let mut remainders = vec![];
        for (number, copies) in doomed {
            if let Some((at, offset)) = list.locate(number) {
                kills.push((at, offset));
                let rest = list.block(at).count(offset) - copies;
                if rest > 0 {
                    remainders.push((at, offset, rest));
                }
            }
        }
        remainders.sort_unstable();
        for same_block in remainders.chunk_by(|a, b| a.0 == b.0) {
            let block = list.block(same_block[0].0).rows();
            let offsets = UInt32Array::from_iter_values(same_block.iter().map(|r| r.1 as u32));
            let columns = take_arrays(block.columns(), &offsets, None)?;
            let rows = self.layout.batch(columns, same_block.len())?;
            let hashes = self.layout.hashes(&rows)?;
            let counts = Some(same_block.iter().map(|r| r.2).collect());
            additions.push(Addition { rows, hashes, counts });
        }
        self.touch(deletes.len());
        self.carry_out(writer, epoch, &list, &kills, additions)
    }

    fn addition(&self, incoming: &Incoming, plan: &Plan) -> Result<Option<Addition>> {
        if plan.adds.is_empty() {
            return Ok(None);
        }
        let (rows, hashes) = incoming.take(&self.layout, &plan.adds)?;
        Ok(Some(Addition { rows, hashes, counts: plan.counts.clone() }))
    }

    /// Makes a plan real. What can fail comes first.
    fn carry_out(
        &self,
        writer: &mut Writer,
        epoch: u64,
        list: &BlockList,
        kills: &[Place],
        additions: Vec<Addition>,
    ) -> Result<()> {
        let mut next = writer.next;
        let mut blocks = vec![];
        let mut entries: Vec<(u64, u64)> = vec![];
        for addition in additions {
            let total = addition.rows.num_rows();
            for from in (0..total).step_by(BLOCK_ROWS) {
                let rows = (total - from).min(BLOCK_ROWS);
                let columns = addition.rows.columns().iter().map(|c| owned(&c.slice(from, rows)));
                let batch = self.layout.batch(columns.collect::<Result<Vec<_>>>()?, rows)?;
                let counts = addition.counts.as_ref().map(|c| &c[from..from + rows]);
                let counts = counts.filter(|c| c.iter().any(|c| *c != 1)).map(Box::from);
                blocks.push(Block::new(next, Numbers::Dense, batch, Born::Same(epoch), counts, None));
                if self.layout.is_indexed() {
                    entries.extend(addition.hashes[from..from + rows].iter().copied().zip(next..));
                }
                next += rows as u64;
            }
        }
        self.kill(writer, epoch, list, kills);
        writer.next = next;
        for entries in entries.chunks(INDEX_BATCH) {
            let mut index = self.index.write();
            for (hash, number) in entries {
                index.insert(*hash, *number);
            }
        }
        if blocks.is_empty() {
            return Ok(());
        }
        let mut list = list.clone();
        for block in blocks {
            self.counters.live.fetch_add(block.len(), Relaxed);
            self.counters.block_bytes.fetch_add(block.bytes(), Relaxed);
            self.touch(block.len());
            list.tail.push(Arc::new(block));
        }
        let merged = self.settle_tail(writer, &mut list);
        // The rows are in the list whether or not merging went well.
        self.publish(list);
        self.forget(&merged?);
        Ok(())
    }

    fn kill(&self, writer: &mut Writer, epoch: u64, list: &BlockList, kills: &[Place]) {
        let mut allocated = 0;
        for (at, offset) in kills {
            let block = list.block(*at);
            allocated += block.kill(*offset, epoch);
            self.note_deaths(writer, block);
        }
        writer.deaths += kills.len();
        self.touch(kills.len());
        self.counters.block_bytes.fetch_add(allocated, Relaxed);
        self.counters.live.fetch_sub(kills.len(), Relaxed);
        self.counters.dead.fetch_add(kills.len(), Relaxed);
    }

    /// Queues a block for compaction once most of it is dead.
    pub(crate) fn note_deaths(&self, writer: &mut Writer, block: &Block) {
        if block.is_mostly_dead() && !block.queued.swap(true, Relaxed) {
            writer.mostly_dead.push_back((writer.epoch, block.base()));
        }
    }

    /// Takes rows that nobody sees out of the index.
    pub(crate) fn forget(&self, dropped: &[(u64, u64)]) {
        if !self.layout.is_indexed() {
            return;
        }
        for dropped in dropped.chunks(INDEX_BATCH) {
            let mut index = self.index.write();
            for (hash, number) in dropped {
                index.remove(*hash, *number);
            }
        }
    }

    /// No reader below `floor` any more. Never goes back.
    pub(crate) fn raise_floor(&self, floor: u64) -> u64 {
        self.floor.fetch_max(floor, Release).max(floor)
    }
}
