//! Change batches as bytes: one Arrow IPC stream of the rows, with the weights as a last column where they vary.
//!
//! Used wherever rows leave memory: the log, and messages between coordinator and workers.

use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::change::{ChangeBatch, Diff};
use crate::error::{Error, Result, SqlState};

/// Key of the schema metadata that says how weights are kept: `insert`, `delete` or `column`.
const DIFF_KEY: &str = "millstream.diff";
const WEIGHT_COLUMN: &str = "millstream.weight";

/// The rows and weights of `change` as one self-describing byte string.
pub fn encode(change: &ChangeBatch) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    encode_to(change, &mut bytes)?;
    Ok(bytes)
}

/// Appends what [`encode`] gives. After an error some of it may be there.
pub fn encode_to(change: &ChangeBatch, bytes: &mut Vec<u8>) -> Result<()> {
    let schema = change.rows.schema();
    let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
    let mut columns = change.rows.columns().to_vec();
    let kind = match &change.diff {
        Diff::Insert => "insert",
        Diff::Delete => "delete",
        Diff::Weights(weights) => {
            fields.push(Arc::new(Field::new(WEIGHT_COLUMN, DataType::Int64, false)));
            columns.push(Arc::new(Int64Array::new(weights.clone(), None)));
            "column"
        }
    };
    let metadata = [(DIFF_KEY.to_string(), kind.to_string())].into();
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    let options = RecordBatchOptions::new().with_row_count(Some(change.num_rows()));
    let rows = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options)?;
    let mut writer = StreamWriter::try_new(bytes, &schema)?;
    writer.write(&rows)?;
    writer.finish()?;
    Ok(())
}

/// The inverse of [`encode`]. Fails with `XX001` on anything that `encode` did not write.
pub fn decode(bytes: &[u8]) -> Result<ChangeBatch> {
    let damaged = |what: String| Error::new(SqlState::DataCorrupted, format!("change batch is damaged: {what}"));
    let mut reader = StreamReader::try_new(bytes, None).map_err(|e| damaged(e.to_string()))?;
    let rows = match reader.next() {
        Some(Ok(rows)) => rows,
        Some(Err(e)) => return Err(damaged(e.to_string())),
        None => return Err(damaged("no rows".into())),
    };
    let schema = rows.schema();
    match schema.metadata().get(DIFF_KEY).map(String::as_str) {
        Some("insert") => Ok(ChangeBatch::insert(plain(rows)?)),
        Some("delete") => Ok(ChangeBatch::delete(plain(rows)?)),
        Some("column") => {
            let last = rows.num_columns().checked_sub(1).ok_or_else(|| damaged("no weights".into()))?;
            let weights = rows
                .column(last)
                .as_primitive_opt::<Int64Type>()
                .filter(|w| w.null_count() == 0)
                .ok_or_else(|| damaged("weights of a wrong type".into()))?
                .values()
                .clone();
            let kept: Vec<usize> = (0..last).collect();
            Ok(ChangeBatch { rows: plain(rows.project(&kept)?)?, diff: Diff::Weights(weights) })
        }
        _ => Err(damaged("no diff".into())),
    }
}

fn plain(rows: RecordBatch) -> Result<RecordBatch> {
    let schema: SchemaRef = Arc::new(Schema::new(rows.schema().fields().clone()));
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema, rows.columns().to_vec(), &options)?)
}

impl Serialize for ChangeBatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&encode(self).map_err(ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for ChangeBatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ChangeBatch, D::Error> {
        decode(&Vec::<u8>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, StringViewArray};

    #[test]
    fn change_batches_come_back_as_they_were() {
        let column: ArrayRef =
            Arc::new(StringViewArray::from(vec![Some("a"), None, Some("a text beyond twelve bytes")]));
        let rows = RecordBatch::try_from_iter_with_nullable([("t", column, true)]).unwrap();
        for diff in [Diff::Insert, Diff::Delete, Diff::Weights(vec![1, -2, 3].into())] {
            let back = decode(&encode(&ChangeBatch::new(rows.clone(), diff.clone())).unwrap()).unwrap();
            assert_eq!((back.rows, back.diff), (rows.clone(), diff));
        }
        assert!(decode(b"not arrow").is_err());
    }
}
