//! Typed constants and their bytes.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::common::ScalarValue;
use flow::{Error, Result};

use super::Literal;
use crate::error::from_datafusion_error;

/// Characters of a constant that EXPLAIN shows.
const TEXT_MAX: usize = 80;

impl Literal {
    /// The constant as a literal; `text` is written as SQL would write it.
    pub fn from_scalar(value: &ScalarValue) -> Result<Literal> {
        let array = value.to_array().map_err(from_datafusion_error)?;
        Ok(Literal { data_type: array.data_type().clone(), ipc: encode_array(&array)?, text: shown(value) })
    }

    /// The constant back. Errors are `XX001`: the bytes are not what [`from_scalar`](Self::from_scalar) wrote.
    pub fn to_scalar(&self) -> Result<ScalarValue> {
        let array = self.to_array()?;
        if array.len() != 1 {
            return Err(corrupted("a literal does not hold one value"));
        }
        ScalarValue::try_from_array(&array, 0).map_err(from_datafusion_error)
    }

    /// Many constants of one type, one row each, in order.
    pub fn from_array(array: &ArrayRef, text: String) -> Result<Literal> {
        Ok(Literal { data_type: array.data_type().clone(), ipc: encode_array(array)?, text })
    }

    /// All rows of the literal, in order.
    pub fn to_array(&self) -> Result<ArrayRef> {
        let batches = decode_batches(&self.ipc)?;
        match batches.as_slice() {
            [batch] if batch.num_columns() == 1 && batch.column(0).data_type() == &self.data_type => {
                Ok(Arc::clone(batch.column(0)))
            }
            _ => Err(corrupted("a literal does not hold one column of its type")),
        }
    }
}

fn corrupted(message: &str) -> Error {
    Error::new(flow::SqlState::DataCorrupted, message)
}

fn encode_array(array: &ArrayRef) -> Result<Vec<u8>> {
    let schema = Arc::new(Schema::new(vec![Field::new("v", array.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema, vec![Arc::clone(array)])?;
    encode_batch(&batch)
}

/// `batch` as one Arrow IPC stream.
pub(crate) fn encode_batch(batch: &RecordBatch) -> Result<Vec<u8>> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(batch)?;
    writer.finish()?;
    Ok(writer.into_inner()?)
}

/// The batches of one Arrow IPC stream.
pub(crate) fn decode_batches(ipc: &[u8]) -> Result<Vec<RecordBatch>> {
    let reader = StreamReader::try_new(ipc, None)?;
    Ok(reader.collect::<Result<Vec<_>, _>>()?)
}

fn shown(value: &ScalarValue) -> String {
    let text = match value {
        v if v.is_null() => "NULL".to_owned(),
        ScalarValue::Utf8(Some(s)) | ScalarValue::LargeUtf8(Some(s)) | ScalarValue::Utf8View(Some(s)) => {
            format!("'{}'", s.replace('\'', "''"))
        }
        v if matches!(
            v.data_type(),
            DataType::Date32
                | DataType::Date64
                | DataType::Time32(_)
                | DataType::Time64(_)
                | DataType::Timestamp(_, _)
                | DataType::Interval(_)
        ) =>
        {
            let formatted = v.to_array().ok().and_then(|a| {
                let formatter = arrow::util::display::ArrayFormatter::try_new(&a, &Default::default()).ok()?;
                formatter.value(0).try_to_string().ok()
            });
            format!("'{}'", formatted.unwrap_or_else(|| v.to_string()))
        }
        v => v.to_string(),
    };
    if text.chars().count() > TEXT_MAX {
        let mut cut: String = text.chars().take(TEXT_MAX).collect();
        cut.push('…');
        return cut;
    }
    text
}
