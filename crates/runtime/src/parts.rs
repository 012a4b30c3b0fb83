//! How changes of a part of state add up: what the changes of several checkpoints come to, and what a part holds in the end.

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::SchemaRef;
use flow::hash::hash_columns;
use flow::process::PartKind;
use flow::{ChangeBatch, Diff, Error, Result, SqlState};
use hashbrown::HashTable;
use state::owned;

use crate::ops::cells::BatchColumn;
use crate::ops::consolidate;
use crate::ops::emit::record;
use crate::ops::tracked::damaged;

/// The sum of `batches`, changes of one part with `schema` in the order in which they count.
///
/// Of a [`PartKind::Counted`] part every row comes with the sum of its weights; rows with sum zero are left out, and if all are
/// insertions, equal rows may come several times. Of a [`PartKind::Keyed`] part every key comes with its last change, as one
/// insertion or one deletion. Rows and keys are compared as SQL groups them. With `whole` the batches are all changes since the
/// part was empty, so what comes back is its content: insertions alone.
///
/// Nothing of the batches is kept alive by the result. Errors: `XX001` when the changes take away a row that is not there
/// (only with `whole`, and of a counted part).
pub fn merge(kind: PartKind, schema: &SchemaRef, batches: Vec<ChangeBatch>, whole: bool) -> Result<ChangeBatch> {
    let merged = match kind {
        PartKind::Counted if schema.fields().is_empty() => equal_rows(schema, &batches)?,
        PartKind::Counted => consolidate(batches, schema)?,
        PartKind::Keyed { key } => last_of_each_key(key, schema, &batches, whole)?,
    };
    if whole && (0..merged.num_rows()).any(|i| merged.weight(i) < 0) {
        let columns: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        let part = columns.join(", ");
        return Err(damaged(&format!("In the part ({part}) a row is taken away that is not there.")));
    }
    let rows = merged.num_rows();
    let columns = merged.rows.columns().iter().map(owned).collect::<Result<Vec<ArrayRef>>>()?;
    Ok(ChangeBatch::new(record(schema, columns, rows)?, merged.diff))
}

/// Rows without columns are all equal.
fn equal_rows(schema: &SchemaRef, batches: &[ChangeBatch]) -> Result<ChangeBatch> {
    let mut weights = batches.iter().flat_map(|b| (0..b.num_rows()).map(|i| b.weight(i)));
    let sum = weights
        .try_fold(0i64, |sum, weight| sum.checked_add(weight))
        .ok_or_else(|| Error::new(SqlState::NumericValueOutOfRange, "the multiplicity of a row is out of range"))?;
    let rows = usize::from(sum != 0);
    Ok(ChangeBatch::new(record(schema, Vec::new(), rows)?, Diff::from_weights(vec![sum; rows])))
}

fn last_of_each_key(key: usize, schema: &SchemaRef, batches: &[ChangeBatch], whole: bool) -> Result<ChangeBatch> {
    let all = ChangeBatch::concat(schema, batches)?;
    if all.num_rows() > u32::MAX as usize {
        return Err(Error::new(SqlState::ProgramLimitExceeded, "too many changes of one part of state"));
    }
    let keys = all.rows.columns().get(..key).ok_or_else(|| Error::internal("a part has fewer columns than its key"))?;
    let hashes = hash_columns(keys, all.num_rows())?;
    let cells = BatchColumn::all(keys)?;
    // The last change of every key, in the order of the keys' first appearance.
    let mut lasts: Vec<u32> = Vec::new();
    let mut index: HashTable<u32> = HashTable::new();
    for (i, hash) in hashes.iter().enumerate() {
        let found = index.find(*hash, |n| {
            let last = lasts[*n as usize] as usize;
            hashes[last] == *hash && cells.iter().all(|c| c.equal_rows(last, i))
        });
        match found {
            Some(n) => lasts[*n as usize] = i as u32,
            None => {
                let n = lasts.len() as u32;
                lasts.push(i as u32);
                index.insert_unique(*hash, n, |n| hashes[lasts[*n as usize] as usize]);
            }
        }
    }
    if whole {
        lasts.retain(|i| all.weight(*i as usize) > 0);
    }
    let weights = lasts.iter().map(|i| all.weight(*i as usize).signum()).collect();
    let rows = lasts.len();
    let indices = UInt32Array::from(lasts);
    let columns = all.rows.columns().iter().map(|c| take(c, &indices, None)).collect::<Result<Vec<_>, _>>()?;
    let rows: RecordBatch = record(schema, columns, rows)?;
    Ok(ChangeBatch::new(rows, Diff::from_weights(weights)))
}
