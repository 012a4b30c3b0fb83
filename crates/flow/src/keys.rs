//! When two keys are the same: the canonical byte form of a row.
//!
//! Built on `arrow::row`, whose bytes also sort as the values do. Before encoding, −0.0 becomes 0.0 and every NaN becomes
//! one NaN, because SQL groups and joins them so (trap "−0.0 and NaN as keys").

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float32Array, Float64Array};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use arrow::row::{RowConverter, Rows, SortField};

use crate::error::Result;

/// Encodes columns of fixed types into comparable, hashable row bytes. Equal keys have equal bytes; NULL equals NULL.
pub struct KeyEncoder {
    converter: RowConverter,
}

impl KeyEncoder {
    /// Keys in ascending order, NULL last.
    pub fn new(types: &[DataType]) -> Result<KeyEncoder> {
        Self::with_order(types.iter().map(|t| (t.clone(), SortOptions { descending: false, nulls_first: false })))
    }

    /// Keys whose bytes sort by the given options, column by column.
    pub fn with_order(fields: impl IntoIterator<Item = (DataType, SortOptions)>) -> Result<KeyEncoder> {
        let fields = fields.into_iter().map(|(t, o)| SortField::new_with_options(t, o)).collect();
        Ok(KeyEncoder { converter: RowConverter::new(fields)? })
    }

    /// One encoded row per row of `columns`, in order.
    pub fn encode(&self, columns: &[ArrayRef]) -> Result<Rows> {
        let columns: Vec<ArrayRef> = columns.iter().map(canonical).collect();
        Ok(self.converter.convert_columns(&columns)?)
    }

    /// The columns back from their bytes (with −0.0 and NaN in canonical form).
    pub fn decode<'a>(&self, rows: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        let parser = self.converter.parser();
        Ok(self.converter.convert_rows(rows.into_iter().map(|bytes| parser.parse(bytes)))?)
    }
}

/// `column` with −0.0 as 0.0 and one NaN; other types unchanged and not copied.
pub fn canonical(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Float64 => {
            let a = column.as_primitive::<Float64Type>();
            if a.values().iter().all(|v| v.to_bits() != (-0.0f64).to_bits() && !v.is_nan()) {
                return Arc::clone(column);
            }
            let values = a.values().iter().map(|v| {
                if *v == 0.0 {
                    0.0
                } else if v.is_nan() {
                    f64::NAN
                } else {
                    *v
                }
            });
            Arc::new(Float64Array::new(values.collect(), a.nulls().cloned()))
        }
        DataType::Float32 => {
            let a = column.as_primitive::<Float32Type>();
            if a.values().iter().all(|v| v.to_bits() != (-0.0f32).to_bits() && !v.is_nan()) {
                return Arc::clone(column);
            }
            let values = a.values().iter().map(|v| {
                if *v == 0.0 {
                    0.0
                } else if v.is_nan() {
                    f32::NAN
                } else {
                    *v
                }
            });
            Arc::new(Float32Array::new(values.collect(), a.nulls().cloned()))
        }
        _ => Arc::clone(column),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_have_equal_bytes_and_order_is_kept() {
        let encoder = KeyEncoder::new(&[DataType::Float64]).unwrap();
        let column: ArrayRef = Arc::new(Float64Array::from(vec![
            Some(-0.0),
            Some(0.0),
            Some(-1.5),
            None,
            Some(-f64::NAN),
            Some(f64::NAN),
        ]));
        let rows = encoder.encode(&[column]).unwrap();
        assert_eq!(rows.row(0), rows.row(1));
        assert_eq!(rows.row(4), rows.row(5));
        assert!(rows.row(2) < rows.row(0) && rows.row(0) < rows.row(4) && rows.row(4) < rows.row(3));
    }
}
