//! Change batches: rows with a weight, kept out of band so that the schema stays the user's.

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::buffer::ScalarBuffer;
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef};

use crate::error::Result;

/// How often each row of a batch is added (positive) or taken away (negative).
///
/// `Insert` and `Delete` cost nothing per row; an append-only stream carries only `Insert`.
#[derive(Clone, Debug, PartialEq)]
pub enum Diff {
    /// Every row is added once.
    Insert,
    /// Every row is taken away once.
    Delete,
    /// One weight per row; never zero.
    Weights(ScalarBuffer<i64>),
}

impl Diff {
    /// The weight of row `i`.
    #[inline]
    pub fn weight(&self, i: usize) -> i64 {
        match self {
            Diff::Insert => 1,
            Diff::Delete => -1,
            Diff::Weights(w) => w[i],
        }
    }

    /// `Weights` with all-equal ±1 content becomes `Insert` or `Delete`.
    pub fn from_weights(weights: Vec<i64>) -> Diff {
        if weights.iter().all(|w| *w == 1) {
            Diff::Insert
        } else if weights.iter().all(|w| *w == -1) {
            Diff::Delete
        } else {
            Diff::Weights(weights.into())
        }
    }

    /// The same rows with the opposite sign.
    pub fn negate(&self) -> Diff {
        match self {
            Diff::Insert => Diff::Delete,
            Diff::Delete => Diff::Insert,
            Diff::Weights(w) => Diff::Weights(w.iter().map(|w| -w).collect()),
        }
    }
}

/// A set of row changes: `rows` in the relation's own schema and a [`Diff`] of the same length.
///
/// Within an epoch the changes of an edge are an *unordered multiset*: an operator may see the deletion of a row before
/// its insertion, and only at the epoch's end is every multiplicity non-negative.
#[derive(Clone, Debug)]
pub struct ChangeBatch {
    pub rows: RecordBatch,
    pub diff: Diff,
}

impl ChangeBatch {
    pub fn new(rows: RecordBatch, diff: Diff) -> ChangeBatch {
        if let Diff::Weights(w) = &diff {
            debug_assert_eq!(w.len(), rows.num_rows());
        }
        ChangeBatch { rows, diff }
    }

    /// All rows added once.
    pub fn insert(rows: RecordBatch) -> ChangeBatch {
        ChangeBatch { rows, diff: Diff::Insert }
    }

    /// All rows taken away once.
    pub fn delete(rows: RecordBatch) -> ChangeBatch {
        ChangeBatch { rows, diff: Diff::Delete }
    }

    pub fn num_rows(&self) -> usize {
        self.rows.num_rows()
    }

    pub fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }

    #[inline]
    pub fn weight(&self, i: usize) -> i64 {
        self.diff.weight(i)
    }

    /// The rows at `indices`, in that order, with their weights.
    pub fn take(&self, indices: &UInt32Array) -> Result<ChangeBatch> {
        let rows = take_record_batch(&self.rows, indices)?;
        let diff = match &self.diff {
            Diff::Weights(w) => Diff::from_weights(indices.values().iter().map(|i| w[*i as usize]).collect()),
            same => same.clone(),
        };
        Ok(ChangeBatch { rows, diff })
    }

    /// Rows `offset .. offset + length`, without copying.
    pub fn slice(&self, offset: usize, length: usize) -> ChangeBatch {
        let diff = match &self.diff {
            Diff::Weights(w) => Diff::Weights(w.slice(offset, length)),
            same => same.clone(),
        };
        ChangeBatch { rows: self.rows.slice(offset, length), diff }
    }

    /// The weights as an Arrow column, for kernels and for display.
    pub fn weights(&self) -> Int64Array {
        match &self.diff {
            Diff::Insert => Int64Array::from_value(1, self.num_rows()),
            Diff::Delete => Int64Array::from_value(-1, self.num_rows()),
            Diff::Weights(w) => Int64Array::new(w.clone(), None),
        }
    }

    /// Bytes of memory held by the row buffers, for queue and budget accounting: always the same for the same rows. Counts only
    /// the rows' own part of a sliced buffer where Arrow can tell; long texts in views are reckoned from some of them.
    pub fn bytes(&self) -> usize {
        let mut bytes = 64;
        for column in self.rows.columns() {
            bytes += column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size());
            bytes += match column.data_type() {
                DataType::Utf8View => long_bytes(column.as_string_view().views()),
                DataType::BinaryView => long_bytes(column.as_binary_view().views()),
                _ => 0,
            };
        }
        if let Diff::Weights(w) = &self.diff {
            bytes += w.len() * 8;
        }
        bytes
    }

    /// One batch with the rows of all, in order. `schema` names the result's schema when `batches` is empty.
    pub fn concat(schema: &SchemaRef, batches: &[ChangeBatch]) -> Result<ChangeBatch> {
        if batches.len() == 1 {
            return Ok(batches[0].clone());
        }
        let rows = concat_batches(schema, batches.iter().map(|b| &b.rows))?;
        let diff = if batches.iter().all(|b| b.diff == Diff::Insert) {
            Diff::Insert
        } else {
            Diff::from_weights(batches.iter().flat_map(|b| (0..b.num_rows()).map(|i| b.weight(i))).collect())
        };
        Ok(ChangeBatch { rows, diff })
    }
}

/// What the texts of `views` hold beside the views themselves, which have short ones in them. Arrow does not count it, and to add up
/// every length would cost as much as an operator: up to 64 of them, evenly spread, stand for all.
fn long_bytes(views: &[u128]) -> usize {
    const SAMPLES: usize = 64;
    const INLINE: u32 = 12;
    let step = views.len().div_ceil(SAMPLES).max(1);
    let (mut samples, mut bytes) = (0, 0);
    for view in views.iter().step_by(step) {
        let length = *view as u32;
        samples += 1;
        bytes += if length > INLINE { length as usize } else { 0 };
    }
    (bytes * views.len()).checked_div(samples).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, RecordBatch, StringViewArray};

    use super::ChangeBatch;

    #[test]
    fn the_texts_of_views_count_with_the_rows_that_have_them() {
        let bytes = |text: &str| {
            let texts: ArrayRef = Arc::new(StringViewArray::from_iter_values((0..1000).map(|_| text)));
            let batch = ChangeBatch::insert(RecordBatch::try_from_iter([("t", texts)]).unwrap());
            (batch.bytes(), batch.slice(0, 100).bytes())
        };
        let (short, long) = (bytes("short"), bytes(&"long".repeat(50)));
        assert_eq!(long.0 - short.0, 200 * 1000);
        assert_eq!(long.1 - short.1, 200 * 100);
        assert!(short.0 < 20_000, "{short:?}");
    }
}
