//! The blocks of a shard in the order of their row numbers.
//!
//! A list is immutable once published. It has two parts so that publishing one more row does not copy the pointers of a
//! hundred million: `sealed` blocks are large and shared between versions of the list, the `tail` is short.

use std::sync::Arc;

use crate::block::Block;

/// Blocks with ascending row numbers.
#[derive(Clone, Default)]
pub(crate) struct Run {
    /// First row number of each block, kept beside the pointers because every probe searches it.
    bases: Vec<u64>,
    blocks: Vec<Arc<Block>>,
}

impl Run {
    pub(crate) fn blocks(&self) -> &[Arc<Block>] {
        &self.blocks
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn push(&mut self, block: Arc<Block>) {
        self.bases.push(block.base());
        self.blocks.push(block);
    }

    /// Puts `blocks` in the place of those in `range`.
    pub(crate) fn replace(&mut self, range: std::ops::Range<usize>, blocks: Vec<Arc<Block>>) {
        self.bases.splice(range.clone(), blocks.iter().map(|b| b.base()));
        self.blocks.splice(range, blocks);
    }

    /// Removes and returns the first `n` blocks.
    fn drain_front(&mut self, n: usize) -> Vec<Arc<Block>> {
        self.bases.drain(..n);
        self.blocks.drain(..n).collect()
    }

    /// Position and offset of row `number`.
    #[inline]
    fn locate(&self, number: u64) -> Option<(usize, usize)> {
        let at = self.bases.partition_point(|base| *base <= number).checked_sub(1)?;
        Some((at, self.blocks[at].offset(number)?))
    }
}

#[derive(Clone, Default)]
pub(crate) struct BlockList {
    pub(crate) sealed: Arc<Run>,
    pub(crate) tail: Run,
}

impl BlockList {
    /// Number of blocks.
    pub(crate) fn len(&self) -> usize {
        self.sealed.len() + self.tail.len()
    }

    pub(crate) fn block(&self, position: usize) -> &Arc<Block> {
        match position.checked_sub(self.sealed.len()) {
            None => &self.sealed.blocks[position],
            Some(position) => &self.tail.blocks[position],
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Block>> {
        self.sealed.blocks.iter().chain(&self.tail.blocks)
    }

    /// Position of the block and offset in it of row `number`; `None` when it has been dropped or is younger than this
    /// list.
    #[inline]
    pub(crate) fn locate(&self, number: u64) -> Option<(usize, usize)> {
        match self.tail.bases.first() {
            Some(first) if number >= *first => {
                self.tail.locate(number).map(|(at, offset)| (at + self.sealed.len(), offset))
            }
            _ => self.sealed.locate(number),
        }
    }

    /// Position of the block whose first row is `base`.
    pub(crate) fn position(&self, base: u64) -> Option<usize> {
        match self.tail.bases.first() {
            Some(first) if base >= *first => self.tail.bases.binary_search(&base).ok().map(|at| at + self.sealed.len()),
            _ => self.sealed.bases.binary_search(&base).ok(),
        }
    }

    /// Puts `block`, or nothing, in the place of the one at `position`.
    pub(crate) fn replace(&mut self, position: usize, block: Option<Arc<Block>>) {
        let blocks = Vec::from_iter(block);
        match position.checked_sub(self.sealed.len()) {
            None => Arc::make_mut(&mut self.sealed).replace(position..position + 1, blocks),
            Some(position) => self.tail.replace(position..position + 1, blocks),
        }
    }

    /// Moves the first `n` blocks of the tail to the sealed part.
    pub(crate) fn seal(&mut self, n: usize) {
        let blocks = self.tail.drain_front(n);
        let sealed = Arc::make_mut(&mut self.sealed);
        for block in blocks {
            sealed.push(block);
        }
    }
}
