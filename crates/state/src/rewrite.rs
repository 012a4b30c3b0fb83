//! Several blocks made one, without the rows that nobody can see any more.

use arrow::array::{Array, ArrayRef, BooleanArray, UInt32Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{FilterBuilder, concat, take_arrays};
use flow::Result;
use flow::hash::hash_columns;

use crate::block::{ALIVE, Block, Born, Numbers};
use crate::layout::Layout;
use crate::owned::owned;

/// The outcome of [`rewrite`].
pub(crate) struct Rewritten {
    /// `None` when no row is left.
    pub(crate) block: Option<Block>,
    /// Index hash and number of each row left out, for the index to forget; the hash is 0 when there is no index.
    pub(crate) dropped: Vec<(u64, u64)>,
}

/// Whether the row numbers of `blocks` (ascending, never empty) can be held by one block.
pub(crate) fn fits_one(blocks: &[impl AsRef<Block>]) -> bool {
    match (blocks.first(), blocks.last()) {
        (Some(first), Some(last)) => {
            let (first, last) = (first.as_ref(), last.as_ref());
            last.number(last.len() - 1) - first.base() <= u32::MAX as u64
        }
        _ => false,
    }
}

/// Copies `blocks`, adjacent and in order, into one, leaving out what no reader at `floor` or later sees. Epochs of birth
/// up to `floor` are forgotten: all readers see those rows alike.
pub(crate) fn rewrite(layout: &Layout, blocks: &[impl AsRef<Block>], floor: u64) -> Result<Rewritten> {
    let mut pieces: Vec<Vec<ArrayRef>> = Vec::with_capacity(blocks.len());
    let mut dropped = vec![];
    let rows_max = blocks.iter().map(|b| b.as_ref().len()).sum();
    let mut numbers: Vec<u64> = Vec::with_capacity(rows_max);
    let mut born: Vec<u64> = Vec::with_capacity(rows_max);
    let mut died: Vec<u64> = Vec::with_capacity(rows_max);
    let mut counts: Vec<u64> = Vec::with_capacity(rows_max);
    for block in blocks {
        let block = block.as_ref();
        let keep = match block.dead() {
            0 => None,
            _ => Some(BooleanBuffer::collect_bool(block.len(), |o| !block.is_reclaimable(o, floor))),
        };
        let keep = keep.filter(|keep| keep.count_set_bits() < block.len());
        let mut carry = |o: usize| {
            numbers.push(block.number(o));
            born.push(block.born(o));
            died.push(block.died(o));
            counts.push(block.count(o));
        };
        match keep {
            None => {
                (0..block.len()).for_each(&mut carry);
                pieces.push(block.rows().columns().to_vec());
            }
            Some(keep) => {
                keep.set_indices().for_each(&mut carry);
                let gone = UInt32Array::from_iter_values((!&keep).set_indices().map(|o| o as u32));
                if layout.is_indexed() {
                    let key: Vec<ArrayRef> = layout.columns.iter().map(|c| block.rows().column(*c).clone()).collect();
                    let hashes = hash_columns(&take_arrays(&key, &gone, None)?, gone.len())?;
                    dropped.extend(hashes.iter().zip(gone.values()).map(|(h, o)| (*h, block.number(*o as usize))));
                } else {
                    dropped.extend(gone.values().iter().map(|o| (0, block.number(*o as usize))));
                }
                if keep.count_set_bits() > 0 {
                    let filter = FilterBuilder::new(&BooleanArray::new(keep, None)).optimize().build();
                    let kept = block.rows().columns().iter().map(|c| filter.filter(c));
                    pieces.push(kept.collect::<Result<Vec<_>, _>>()?);
                }
            }
        }
    }
    if numbers.is_empty() {
        return Ok(Rewritten { block: None, dropped });
    }
    let mut columns = Vec::with_capacity(layout.all.len());
    for c in 0..layout.all.len() {
        let parts: Vec<&dyn Array> = pieces.iter().map(|p| p[c].as_ref()).collect();
        columns.push(owned(&concat(&parts)?)?);
    }
    let rows = layout.batch(columns, numbers.len())?;
    let base = numbers[0];
    let dense = numbers.last().is_some_and(|last| last - base == numbers.len() as u64 - 1);
    let numbers = match dense {
        true => Numbers::Dense,
        // Callers have made sure of the range, see `fits_one`.
        false => Numbers::Sparse(numbers.iter().map(|n| (n - base) as u32).collect()),
    };
    let born_max = born.iter().copied().max().unwrap_or(0);
    let born = match born_max <= floor || born.iter().all(|b| *b == born_max) {
        true => Born::Same(born_max),
        false => Born::Each(born.into()),
    };
    let counts = counts.iter().any(|c| *c != 1).then(|| counts.into_boxed_slice());
    let died = died.iter().any(|d| *d != ALIVE).then_some(died);
    Ok(Rewritten { block: Some(Block::new(base, numbers, rows, born, counts, died)), dropped })
}
