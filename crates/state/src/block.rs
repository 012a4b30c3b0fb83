//! An immutable run of rows with the epochs between which each is visible.
//!
//! Row `o` is visible at epoch `e` when `born(o) <= e < died(o)`. Rows never change; only `died` is written after a block
//! is published, once per row, by the shard's writer. The law that lets readers go on without locks: a death is stored
//! before its epoch completes, and a reader's epoch is completed, so the deaths a reader may see half-written are all
//! later than its epoch and mean "visible" either way.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use arrow::array::RecordBatch;
use arrow::buffer::BooleanBuffer;

use crate::values::Cells;

/// Rows in a full block; `u16`-sized so that rewriting one takes a few milliseconds at most.
pub const BLOCK_ROWS: usize = 64 * 1024;

/// `died` of a row that is alive.
pub(crate) const ALIVE: u64 = u64::MAX;

/// The row numbers of a block, ascending.
pub(crate) enum Numbers {
    /// `base, base + 1, …`
    Dense,
    /// Offsets from `base`, after rows in between have been dropped.
    Sparse(Box<[u32]>),
}

/// The epochs in which the rows of a block were added.
pub(crate) enum Born {
    Same(u64),
    Each(Box<[u64]>),
}

/// What a reader at some epoch sees of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Visibility {
    All,
    None,
    Some,
}

pub(crate) struct Block {
    base: u64,
    numbers: Numbers,
    rows: RecordBatch,
    cells: Cells,
    born: Born,
    born_min: u64,
    born_max: u64,
    /// How often each row occurs; `None` when every row occurs once.
    counts: Option<Box<[u64]>>,
    /// Allocated at the first death: append-only relations never pay for it.
    died: OnceLock<Box<[AtomicU64]>>,
    dead: AtomicUsize,
    died_min: AtomicU64,
    /// Whether the block waits in its shard's queue for compaction.
    pub(crate) queued: AtomicBool,
    /// Without `died`.
    bytes: usize,
}

impl Block {
    /// `base` is the number of the first row; `numbers`, `born`, `counts` and `died` have one entry per row of `rows`.
    pub(crate) fn new(
        base: u64,
        numbers: Numbers,
        rows: RecordBatch,
        born: Born,
        counts: Option<Box<[u64]>>,
        died: Option<Vec<u64>>,
    ) -> Block {
        let (born_min, born_max) = match &born {
            Born::Same(epoch) => (*epoch, *epoch),
            Born::Each(each) => (each.iter().copied().min().unwrap_or(ALIVE), each.iter().copied().max().unwrap_or(0)),
        };
        let mut bytes = size_of::<Block>() + rows.num_columns() * 160;
        bytes += rows.columns().iter().map(|c| c.get_array_memory_size()).sum::<usize>();
        if let Numbers::Sparse(offsets) = &numbers {
            bytes += offsets.len() * 4;
        }
        if let Born::Each(each) = &born {
            bytes += each.len() * 8;
        }
        bytes += counts.as_ref().map_or(0, |c| c.len() * 8);
        let (mut dead, mut died_min) = (0, ALIVE);
        let died = match died {
            Some(epochs) => {
                for epoch in &epochs {
                    dead += (*epoch != ALIVE) as usize;
                    died_min = died_min.min(*epoch);
                }
                OnceLock::from(epochs.into_iter().map(AtomicU64::new).collect::<Box<[AtomicU64]>>())
            }
            None => OnceLock::new(),
        };
        Block {
            base,
            numbers,
            cells: Cells::new(&rows),
            rows,
            born,
            born_min,
            born_max,
            counts,
            died,
            dead: AtomicUsize::new(dead),
            died_min: AtomicU64::new(died_min),
            queued: AtomicBool::new(false),
            bytes,
        }
    }

    pub(crate) fn rows(&self) -> &RecordBatch {
        &self.rows
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.num_rows()
    }

    pub(crate) fn cells(&self) -> &Cells {
        &self.cells
    }

    /// The number of the first row.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    #[inline]
    pub(crate) fn number(&self, offset: usize) -> u64 {
        match &self.numbers {
            Numbers::Dense => self.base + offset as u64,
            Numbers::Sparse(offsets) => self.base + offsets[offset] as u64,
        }
    }

    /// Where row `number` is in this block, if it is.
    #[inline]
    pub(crate) fn offset(&self, number: u64) -> Option<usize> {
        let relative = number.checked_sub(self.base)?;
        match &self.numbers {
            Numbers::Dense => ((relative as usize) < self.len()).then_some(relative as usize),
            Numbers::Sparse(offsets) => offsets.binary_search(&u32::try_from(relative).ok()?).ok(),
        }
    }

    #[inline]
    pub(crate) fn born(&self, offset: usize) -> u64 {
        match &self.born {
            Born::Same(epoch) => *epoch,
            Born::Each(each) => each[offset],
        }
    }

    #[inline]
    pub(crate) fn died(&self, offset: usize) -> u64 {
        self.died.get().map_or(ALIVE, |died| died[offset].load(Relaxed))
    }

    /// How often the row occurs.
    #[inline]
    pub(crate) fn count(&self, offset: usize) -> u64 {
        self.counts.as_ref().map_or(1, |counts| counts[offset])
    }

    pub(crate) fn counts(&self) -> Option<&[u64]> {
        self.counts.as_deref()
    }

    /// Rows that died, whatever the epoch.
    pub(crate) fn dead(&self) -> usize {
        self.dead.load(Relaxed)
    }

    pub(crate) fn is_mostly_dead(&self) -> bool {
        self.dead() * 2 > self.len()
    }

    /// Bytes held, the epochs of death included.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.died.get().map_or(0, |died| died.len() * 8)
    }

    /// Ends the visibility of an alive row at `epoch`. Only the shard's writer calls it. Returns the bytes allocated.
    pub(crate) fn kill(&self, offset: usize, epoch: u64) -> usize {
        let mut allocated = 0;
        let died = self.died.get_or_init(|| {
            allocated = self.len() * 8;
            (0..self.len()).map(|_| AtomicU64::new(ALIVE)).collect()
        });
        debug_assert_eq!(died[offset].load(Relaxed), ALIVE, "a row dies once");
        self.died_min.fetch_min(epoch, Relaxed);
        died[offset].store(epoch, Relaxed);
        self.dead.fetch_add(1, Relaxed);
        allocated
    }

    /// Whether no reader at `floor` or later sees the row any more: it died by then, or was never visible at all.
    #[inline]
    pub(crate) fn is_reclaimable(&self, offset: usize, floor: u64) -> bool {
        let died = self.died(offset);
        died != ALIVE && (died <= floor || died <= self.born(offset))
    }

    /// What a reader at `epoch` sees, from the block's bounds alone.
    pub(crate) fn visibility(&self, epoch: u64) -> Visibility {
        if self.born_min > epoch {
            Visibility::None
        } else if self.born_max <= epoch && self.died_min.load(Relaxed) > epoch {
            Visibility::All
        } else {
            Visibility::Some
        }
    }

    /// Which of the rows `from .. from + len` a reader at `epoch` sees.
    pub(crate) fn mask(&self, epoch: u64, from: usize, len: usize) -> BooleanBuffer {
        match (&self.born, self.died.get()) {
            (Born::Same(born), None) if *born <= epoch => BooleanBuffer::new_set(len),
            (Born::Same(born), Some(died)) if *born <= epoch => {
                let died = &died[from..from + len];
                BooleanBuffer::collect_bool(len, |i| died[i].load(Relaxed) > epoch)
            }
            (Born::Same(_), _) => BooleanBuffer::new_unset(len),
            (Born::Each(born), None) => {
                let born = &born[from..from + len];
                BooleanBuffer::collect_bool(len, |i| born[i] <= epoch)
            }
            (Born::Each(born), Some(died)) => {
                let (born, died) = (&born[from..from + len], &died[from..from + len]);
                BooleanBuffer::collect_bool(len, |i| born[i] <= epoch && died[i].load(Relaxed) > epoch)
            }
        }
    }

    /// Rows visible at `epoch`, each as often as it occurs.
    pub(crate) fn visible_rows(&self, epoch: u64) -> u64 {
        let visibility = self.visibility(epoch);
        match (visibility, &self.counts) {
            (Visibility::None, _) => 0,
            (Visibility::All, None) => self.len() as u64,
            (Visibility::All, Some(counts)) => counts.iter().sum(),
            (Visibility::Some, None) => self.mask(epoch, 0, self.len()).count_set_bits() as u64,
            (Visibility::Some, Some(counts)) => self.mask(epoch, 0, self.len()).set_indices().map(|o| counts[o]).sum(),
        }
    }
}
