//! The net of an epoch's changes, row by row.

use arrow::array::UInt32Array;
use arrow::compute::take_record_batch;
use arrow::datatypes::SchemaRef;
use flow::hash::hash_columns;
use flow::{ChangeBatch, Diff, Error, Result, SqlState};
use hashbrown::HashTable;

use super::cells::BatchColumn;

/// The net change of `batches` (all of `schema`): every row once with the sum of its weights, rows with sum zero left out,
/// in the order of first appearance. Rows are compared as SQL groups them: NULL, −0.0 and NaN equal their like.
///
/// If everything is inserted there is nothing to net: the rows come back as they are, equal ones several times.
pub fn consolidate(batches: Vec<ChangeBatch>, schema: &SchemaRef) -> Result<ChangeBatch> {
    let all = ChangeBatch::concat(schema, &batches)?;
    if all.diff == Diff::Insert || all.num_rows() == 0 {
        return Ok(all);
    }
    if all.num_rows() > u32::MAX as usize {
        return Err(Error::new(SqlState::ProgramLimitExceeded, "too many changes in one epoch"));
    }
    let columns = BatchColumn::all(all.rows.columns())?;
    let hashes = hash_columns(all.rows.columns(), all.num_rows())?;
    let mut index: HashTable<u32> = HashTable::with_capacity(all.num_rows() / 2);
    let mut firsts: Vec<u32> = Vec::with_capacity(all.num_rows());
    let mut weights: Vec<i64> = Vec::with_capacity(all.num_rows());
    for (i, hash) in hashes.iter().enumerate() {
        let found = index.find(*hash, |n| {
            let first = firsts[*n as usize] as usize;
            hashes[first] == *hash && columns.iter().all(|c| c.equal_rows(first, i))
        });
        let weight = all.weight(i);
        match found {
            Some(n) => {
                let sum = &mut weights[*n as usize];
                *sum = sum.checked_add(weight).ok_or_else(|| {
                    Error::new(SqlState::NumericValueOutOfRange, "the multiplicity of a row is out of range")
                })?;
            }
            None => {
                let n = firsts.len() as u32;
                firsts.push(i as u32);
                weights.push(weight);
                index.insert_unique(*hash, n, |n| hashes[firsts[*n as usize] as usize]);
            }
        }
    }
    let unchanged = firsts.len() == all.num_rows();
    if unchanged {
        return Ok(all);
    }
    let mut kept = 0;
    for n in 0..firsts.len() {
        if weights[n] != 0 {
            firsts[kept] = firsts[n];
            weights[kept] = weights[n];
            kept += 1;
        }
    }
    firsts.truncate(kept);
    weights.truncate(kept);
    let rows = take_record_batch(&all.rows, &UInt32Array::from(firsts))?;
    Ok(ChangeBatch::new(rows, Diff::from_weights(weights)))
}
