//! What all shards of a store agree on, and batches brought into that shape.

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::take_arrays;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::util::display::array_value_to_string;
use flow::hash::hash_columns;
use flow::{Error, Result};

use crate::values::{Cells, Values};

/// What makes two rows of a relation the same row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Columns (0-based) of a unique key: at most one row per key at any epoch.
    Key(Vec<usize>),
    /// The whole row; duplicates are stored once with their number.
    Row,
    /// Nothing: rows are only added, or taken away by [`RowId`](crate::RowId). No index is kept.
    Unindexed,
}

pub(crate) struct Layout {
    pub(crate) schema: SchemaRef,
    pub(crate) identity: Identity,
    /// The columns that the index hashes.
    pub(crate) columns: Vec<usize>,
    pub(crate) all: Vec<usize>,
}

impl Layout {
    /// Fails when a key column does not exist or has a type that cannot be a key.
    pub(crate) fn new(schema: SchemaRef, identity: Identity) -> Result<Layout> {
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        let columns = match &identity {
            Identity::Key(columns) => columns.clone(),
            Identity::Row => all.clone(),
            Identity::Unindexed => vec![],
        };
        if let Some(c) = columns.iter().find(|c| **c >= all.len()) {
            return Err(Error::internal(format!("key column {c} of a relation with {} columns", all.len())));
        }
        // Deletions compare whole rows, so every column must be comparable, not only the key's.
        if identity != Identity::Unindexed {
            let empty: Vec<ArrayRef> =
                schema.fields().iter().map(|f| arrow::array::new_empty_array(f.data_type())).collect();
            for column in &empty {
                Values::new(column)?;
            }
            hash_columns(&columns.iter().map(|c| empty[*c].clone()).collect::<Vec<_>>(), 0)?;
        }
        Ok(Layout { schema, identity, columns, all })
    }

    pub(crate) fn is_indexed(&self) -> bool {
        self.identity != Identity::Unindexed
    }

    /// `batch` under the store's schema. Its columns must have the same types in the same order.
    pub(crate) fn adopt(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        self.batch(batch.columns().to_vec(), batch.num_rows())
    }

    pub(crate) fn batch(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
            .map_err(|e| Error::internal("rows do not fit the relation's schema").with_detail(e.to_string()))
    }

    /// The index hash of each row; empty when there is no index.
    pub(crate) fn hashes(&self, batch: &RecordBatch) -> Result<Vec<u64>> {
        if !self.is_indexed() {
            return Ok(vec![]);
        }
        let key: Vec<ArrayRef> = self.columns.iter().map(|c| batch.column(*c).clone()).collect();
        hash_columns(&key, batch.num_rows())
    }

    /// The types of the unique key; an error for relations without one.
    pub(crate) fn check_key(&self, key: &[ArrayRef]) -> Result<()> {
        if !matches!(self.identity, Identity::Key(_)) {
            return Err(Error::internal("key lookup in a relation without a unique key"));
        }
        let fits = key.len() == self.columns.len()
            && key.iter().zip(&self.columns).all(|(k, c)| k.data_type() == self.schema.field(*c).data_type())
            && key.windows(2).all(|w| w[0].len() == w[1].len());
        if fits {
            return Ok(());
        }
        let given: Vec<&DataType> = key.iter().map(|k| k.data_type()).collect();
        Err(Error::internal("lookup key does not fit the relation's key").with_detail(format!("given types {given:?}")))
    }

    /// `Key (a, b)=(1, x)` for the error's DETAIL.
    pub(crate) fn describe(&self, batch: &RecordBatch, row: usize) -> String {
        let columns = if self.is_indexed() { &self.columns } else { &self.all };
        let names: Vec<&str> = columns.iter().map(|c| self.schema.field(*c).name().as_str()).collect();
        let values: Vec<String> = columns
            .iter()
            .map(|c| array_value_to_string(batch.column(*c), row).unwrap_or_else(|_| "?".to_owned()))
            .collect();
        format!("Key ({})=({})", names.join(", "), values.join(", "))
    }
}

/// A batch on its way into the store: aligned with the layout, hashed, comparable.
pub(crate) struct Incoming {
    pub(crate) rows: RecordBatch,
    pub(crate) cells: Cells,
    pub(crate) hashes: Vec<u64>,
}

impl Incoming {
    pub(crate) fn new(layout: &Layout, batch: &RecordBatch) -> Result<Incoming> {
        let rows = layout.adopt(batch)?;
        let hashes = layout.hashes(&rows)?;
        Ok(Incoming { cells: Cells::new(&rows), rows, hashes })
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.num_rows()
    }

    /// The rows at `indices`, in that order. All rows in order are not copied.
    pub(crate) fn take(&self, layout: &Layout, indices: &[u32]) -> Result<(RecordBatch, Vec<u64>)> {
        if indices.len() == self.len() && indices.iter().enumerate().all(|(i, row)| i == *row as usize) {
            return Ok((self.rows.clone(), self.hashes.clone()));
        }
        let columns = take_arrays(self.rows.columns(), &UInt32Array::from(indices.to_vec()), None)?;
        let hashes =
            if self.hashes.is_empty() { vec![] } else { indices.iter().map(|i| self.hashes[*i as usize]).collect() };
        Ok((layout.batch(columns, indices.len())?, hashes))
    }
}
