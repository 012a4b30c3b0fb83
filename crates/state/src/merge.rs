//! Keeping blocks few and mostly alive, at a cost in proportion to the change.
//!
//! Appended blocks are merged size-tiered: when [`FAN_IN`] blocks of a size have gathered at the end of the list they
//! become one of the next size, so a row is rewritten about log₈(64 K) ≈ 5 times whatever the size of the epochs. A block
//! more than half dead is rewritten alone: the dead pay for it. Neither ever rewrites more than a few blocks at a time, so
//! the flow is never held up for long.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use flow::{Epoch, Result};

use crate::block::{BLOCK_ROWS, Block};
use crate::list::BlockList;
use crate::rewrite::{fits_one, rewrite};
use crate::shard::{Shard, Writer};

/// Blocks of one size that are merged into one of the next.
const FAN_IN: usize = 8;
/// A block of at least so many rows, or bytes, is no longer merged with those that follow.
const SEALED_ROWS: usize = BLOCK_ROWS / 2;
const SEALED_BYTES: usize = 32 << 20;
/// A merged block is not larger than this, unless one row is.
const BLOCK_BYTES: usize = 64 << 20;
/// Rows that one call of maintenance may rewrite when recent deaths have paid for less: one large block.
const MAINTAIN_ROWS: usize = BLOCK_ROWS / 2;
/// A neighbour is merged with a compacted block when it is at most so much larger than what was just rewritten.
const NEIGHBOUR_RATIO: usize = 4;

fn tier(block: &Block) -> u32 {
    block.len().max(1).ilog2() / FAN_IN.ilog2()
}

fn is_full(block: &Block) -> bool {
    block.len() >= SEALED_ROWS || block.bytes() >= SEALED_BYTES
}

/// Adjacent ranges of `blocks` that can each become one block.
fn merge_groups(blocks: &[Arc<Block>]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = vec![];
    let (mut rows, mut bytes) = (0, 0);
    for (at, block) in blocks.iter().enumerate() {
        rows += block.len();
        bytes += block.bytes();
        match groups.last_mut() {
            Some(group) if rows <= BLOCK_ROWS && bytes <= BLOCK_BYTES && fits_one(&blocks[group.start..at + 1]) => {
                group.end = at + 1;
            }
            _ => {
                groups.push(at..at + 1);
                (rows, bytes) = (block.len(), block.bytes());
            }
        }
    }
    groups
}

impl Shard {
    /// Merges what has gathered at the end of the list and seals what is full. Returns the rows left out.
    pub(crate) fn settle_tail(&self, writer: &mut Writer, list: &mut BlockList) -> Result<Vec<(u64, u64)>> {
        let mut dropped = vec![];
        while let Some(last) = list.tail.blocks().last() {
            let size = tier(last);
            let gathered = list.tail.blocks().iter().rev().take_while(|b| tier(b) <= size).count();
            if gathered < FAN_IN {
                break;
            }
            let len = list.tail.len();
            if !self.merge_tail(writer, list, len - gathered..len, &mut dropped)? {
                break;
            }
        }
        // Small blocks in front of a full one will not meet others any more: they become one, and are sealed with it.
        while let Some(full) = list.tail.blocks().iter().position(|b| is_full(b)) {
            let before = list.tail.len();
            self.merge_tail(writer, list, 0..full, &mut dropped)?;
            list.seal(full + 1 - (before - list.tail.len()));
        }
        Ok(dropped)
    }

    /// Merges groups inside `range` of the tail. Says whether there are fewer blocks now.
    fn merge_tail(
        &self,
        writer: &mut Writer,
        list: &mut BlockList,
        range: Range<usize>,
        dropped: &mut Vec<(u64, u64)>,
    ) -> Result<bool> {
        let before = list.tail.len();
        // From the back, so that the positions of the groups in front stay right.
        for group in merge_groups(&list.tail.blocks()[range.clone()]).into_iter().rev() {
            if group.len() > 1 {
                let group = range.start + group.start..range.start + group.end;
                let merged = self.rewritten(writer, &list.tail.blocks()[group.clone()], dropped)?;
                list.tail.replace(group, Vec::from_iter(merged));
            }
        }
        Ok(list.tail.len() < before)
    }

    /// The one block that replaces `blocks`, if any row is left, with the counters adjusted.
    fn rewritten(
        &self,
        writer: &mut Writer,
        blocks: &[Arc<Block>],
        dropped: &mut Vec<(u64, u64)>,
    ) -> Result<Option<Arc<Block>>> {
        let done = rewrite(&self.layout, blocks, self.floor.load(Acquire))?;
        let rows: usize = blocks.iter().map(|b| b.len()).sum();
        let old_bytes: usize = blocks.iter().map(|b| b.bytes()).sum();
        self.touch(rows);
        self.counters.dead.fetch_sub(done.dropped.len(), Relaxed);
        if let Some(block) = &done.block {
            self.counters.block_bytes.fetch_add(block.bytes(), Relaxed);
            self.note_deaths(writer, block);
        }
        self.counters.block_bytes.fetch_sub(old_bytes, Relaxed);
        dropped.extend(done.dropped);
        Ok(done.block.map(Arc::new))
    }

    /// Drops versions that nobody at `min_pinned` or later sees, a bounded number of blocks a call. Returns whether more
    /// could be done now.
    pub(crate) fn maintain(&self, min_pinned: Epoch) -> Result<bool> {
        let writer = &mut *self.writer.lock();
        let floor = self.raise_floor(min_pinned.0);
        let mut budget = MAINTAIN_ROWS.max(4 * writer.deaths);
        writer.deaths = 0;
        if writer.mostly_dead.front().is_none_or(|(due, _)| *due > floor) {
            return Ok(false);
        }
        let mut list = BlockList::clone(&self.current());
        let mut dropped = vec![];
        let mut outcome = Ok(());
        while let Some((due, base)) = writer.mostly_dead.front().copied() {
            if due > floor || budget == 0 {
                break;
            }
            writer.mostly_dead.pop_front();
            match self.compact(writer, &mut list, base, &mut dropped) {
                // Even a stale entry costs something; many of them must not hold up the flow either.
                Ok(rows) => budget = budget.saturating_sub(rows.max(8)),
                Err(e) => {
                    outcome = Err(e);
                    break;
                }
            }
        }
        self.publish(list);
        self.forget(&dropped);
        outcome?;
        Ok(writer.mostly_dead.front().is_some_and(|(due, _)| *due <= floor))
    }

    /// Rewrites the block that starts at row `base`, and merges it with its neighbours where that costs no more than in
    /// proportion. Returns the rows rewritten.
    fn compact(
        &self,
        writer: &mut Writer,
        list: &mut BlockList,
        base: u64,
        dropped: &mut Vec<(u64, u64)>,
    ) -> Result<usize> {
        // The block may have been merged with others meanwhile, which dropped its dead.
        let Some(mut at) = list.position(base) else {
            return Ok(0);
        };
        let block = Arc::clone(list.block(at));
        block.queued.store(false, Relaxed);
        if !block.is_mostly_dead() {
            return Ok(0);
        }
        let paid = block.len();
        let compacted = self.rewritten(writer, std::slice::from_ref(&block), dropped)?;
        let mut rewritten = paid;
        let gone = compacted.is_none();
        list.replace(at, compacted);
        if gone {
            return Ok(rewritten);
        }
        // Without this, blocks that lose all but a few rows would stay behind one by one.
        while at < list.sealed.len() {
            let blocks = list.sealed.blocks();
            let size = blocks[at].len();
            let fits = |pair: &[Arc<Block>]| {
                let rows: usize = pair.iter().map(|b| b.len()).sum();
                let bytes: usize = pair.iter().map(|b| b.bytes()).sum();
                rows <= SEALED_ROWS
                    && bytes <= SEALED_BYTES
                    && rows - size <= NEIGHBOUR_RATIO * paid.max(size)
                    && fits_one(pair)
            };
            let start = match at {
                _ if at + 1 < blocks.len() && fits(&blocks[at..at + 2]) => at,
                1.. if fits(&blocks[at - 1..at + 1]) => at - 1,
                _ => break,
            };
            let pair = blocks[start..start + 2].to_vec();
            rewritten += pair.iter().map(|b| b.len()).sum::<usize>();
            let merged = self.rewritten(writer, &pair, dropped)?;
            let gone = merged.is_none();
            Arc::make_mut(&mut list.sealed).replace(start..start + 2, Vec::from_iter(merged));
            if gone {
                break;
            }
            at = start;
        }
        Ok(rewritten)
    }
}
