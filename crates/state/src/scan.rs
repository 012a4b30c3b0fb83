//! Reading a snapshot from end to end, in batches.

use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{FilterBuilder, concat_batches, take};
use arrow::datatypes::SchemaRef;
use flow::{Error, Result};

use crate::block::{Block, Visibility};
use crate::snapshot::Snapshot;
use crate::store::RowId;

type Piece = (RecordBatch, Vec<RowId>);

/// Goes through blocks and returns what is visible, piece by piece; pieces are never empty.
pub(crate) struct Cursor {
    epoch: u64,
    schema: SchemaRef,
    columns: Vec<usize>,
    batch_rows: usize,
    with_ids: bool,
    blocks: std::vec::IntoIter<(usize, Arc<Block>)>,
    current: Option<(usize, Arc<Block>)>,
    /// The next row of the current block.
    offset: usize,
    /// How many copies of that row have been returned.
    copies: u64,
}

impl Cursor {
    pub(crate) fn new(
        snapshot: &Snapshot,
        blocks: Vec<(usize, Arc<Block>)>,
        projection: Option<&[usize]>,
        batch_rows: usize,
        with_ids: bool,
    ) -> Result<Cursor> {
        let (schema, columns) = match projection {
            None => (snapshot.schema().clone(), snapshot.store.layout.all.clone()),
            Some(columns) => (Arc::new(snapshot.schema().project(columns)?), columns.to_vec()),
        };
        Ok(Cursor {
            epoch: snapshot.epoch,
            schema,
            columns,
            batch_rows: batch_rows.max(1),
            with_ids,
            blocks: blocks.into_iter(),
            current: None,
            offset: 0,
            copies: 0,
        })
    }

    fn next_piece(&mut self) -> Result<Option<Piece>> {
        loop {
            let (shard, block) = match &self.current {
                Some((shard, block)) if self.offset < block.len() => (*shard, Arc::clone(block)),
                _ => {
                    self.current = self.blocks.next();
                    (self.offset, self.copies) = (0, 0);
                    match &self.current {
                        None => return Ok(None),
                        Some((_, block)) if block.visibility(self.epoch) == Visibility::None => {
                            self.offset = block.len()
                        }
                        Some(_) => {}
                    }
                    continue;
                }
            };
            let piece = match block.counts() {
                None => self.plain_piece(shard, &block)?,
                Some(counts) => self.counted_piece(shard, &block, counts)?,
            };
            if let Some(piece) = piece {
                return Ok(Some(piece));
            }
        }
    }

    fn batch(&self, rows: usize, column: impl FnMut(&usize) -> Result<arrow::array::ArrayRef>) -> Result<RecordBatch> {
        let columns = self.columns.iter().map(column).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)
    }

    /// The next window of a block whose rows occur once.
    fn plain_piece(&mut self, shard: usize, block: &Block) -> Result<Option<Piece>> {
        let from = self.offset;
        let len = (block.len() - from).min(self.batch_rows);
        self.offset += len;
        let mask = match block.visibility(self.epoch) {
            Visibility::All => None,
            _ => Some(block.mask(self.epoch, from, len)),
        };
        let visible = mask.as_ref().map_or(len, |m| m.count_set_bits());
        if visible == 0 {
            return Ok(None);
        }
        let id = |offset: usize| RowId::new(shard, block.number(from + offset));
        match mask {
            Some(mask) if visible < len => {
                let ids = if self.with_ids { mask.set_indices().map(id).collect() } else { vec![] };
                let filter = FilterBuilder::new(&BooleanArray::new(mask, None)).optimize().build();
                let rows = self.batch(visible, |c| Ok(filter.filter(&block.rows().column(*c).slice(from, len))?))?;
                Ok(Some((rows, ids)))
            }
            _ => {
                let ids = if self.with_ids { (0..len).map(id).collect() } else { vec![] };
                Ok(Some((self.batch(len, |c| Ok(block.rows().column(*c).slice(from, len)))?, ids)))
            }
        }
    }

    /// The next rows of a block with duplicates, each repeated as often as it occurs.
    fn counted_piece(&mut self, shard: usize, block: &Block, counts: &[u64]) -> Result<Option<Piece>> {
        let (from, len) = (self.offset, (block.len() - self.offset).min(self.batch_rows));
        let mask = block.mask(self.epoch, from, len);
        let mut indices: Vec<u32> = vec![];
        while self.offset < from + len && indices.len() < self.batch_rows {
            if !mask.value(self.offset - from) {
                self.offset += 1;
                continue;
            }
            let copies = (counts[self.offset] - self.copies).min((self.batch_rows - indices.len()) as u64);
            indices.resize(indices.len() + copies as usize, self.offset as u32);
            self.copies += copies;
            if self.copies == counts[self.offset] {
                (self.offset, self.copies) = (self.offset + 1, 0);
            }
        }
        if indices.is_empty() {
            return Ok(None);
        }
        let ids = match self.with_ids {
            true => indices.iter().map(|o| RowId::new(shard, block.number(*o as usize))).collect(),
            false => vec![],
        };
        let indices = UInt32Array::from(indices);
        let rows = self.batch(indices.len(), |c| Ok(take(block.rows().column(*c), &indices, None)?))?;
        Ok(Some((rows, ids)))
    }
}

/// Joins the small pieces that young or mostly dead blocks give into batches of a useful size.
struct Gather {
    cursor: Cursor,
    waiting: Vec<Piece>,
    waiting_rows: usize,
    done: bool,
}

impl Gather {
    fn new(cursor: Cursor) -> Gather {
        Gather { cursor, waiting: vec![], waiting_rows: 0, done: false }
    }

    fn next_batch(&mut self) -> Result<Option<Piece>> {
        while !self.done {
            let Some(piece) = self.cursor.next_piece()? else {
                self.done = true;
                break;
            };
            let rows = piece.0.num_rows();
            let full = self.waiting_rows > 0 && self.waiting_rows + rows > self.cursor.batch_rows;
            let ready = if full { self.flush()? } else { None };
            self.waiting.push(piece);
            self.waiting_rows += rows;
            if ready.is_some() {
                return Ok(ready);
            }
            if self.waiting_rows * 2 > self.cursor.batch_rows {
                return self.flush();
            }
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<Option<Piece>> {
        self.waiting_rows = 0;
        if self.waiting.len() <= 1 {
            return Ok(self.waiting.pop());
        }
        let pieces = std::mem::take(&mut self.waiting);
        let ids = pieces.iter().flat_map(|p| p.1.iter().copied()).collect();
        if self.cursor.columns.is_empty() {
            let rows = pieces.iter().map(|p| p.0.num_rows()).sum();
            let columnless = |_: &usize| Err(Error::internal("no column to read"));
            return Ok(Some((self.cursor.batch(rows, columnless)?, ids)));
        }
        Ok(Some((concat_batches(&self.cursor.schema, pieces.iter().map(|p| &p.0))?, ids)))
    }

    fn next(&mut self) -> Option<Result<Piece>> {
        let next = self.next_batch().transpose();
        if matches!(next, Some(Err(_))) {
            self.done = true;
            self.waiting.clear();
            self.waiting_rows = 0;
        }
        next
    }
}

/// The rows of a snapshot, batch by batch. After an error it ends.
pub struct Scan(Gather);

impl Scan {
    pub(crate) fn new(cursor: Cursor) -> Scan {
        Scan(Gather::new(cursor))
    }

    /// The schema of the batches, projected.
    pub fn schema(&self) -> &SchemaRef {
        &self.0.cursor.schema
    }
}

impl Iterator for Scan {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|piece| piece.map(|(rows, _)| rows))
    }
}

/// Like [`Scan`], with the ids of the rows.
pub struct ScanWithIds(Gather);

impl ScanWithIds {
    pub(crate) fn new(cursor: Cursor) -> ScanWithIds {
        ScanWithIds(Gather::new(cursor))
    }
}

impl Iterator for ScanWithIds {
    type Item = Result<(RecordBatch, Vec<RowId>)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}
