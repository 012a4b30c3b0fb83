//! Constant rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, new_empty_array};
use arrow::compute::{cast, concat};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::logical_expr::{EmptyRelation, Values};
use flow::{Error, Result};

use super::super::StreamNode;
use crate::expr::{self, from_datafusion};

fn declared(schema: &DFSchema) -> SchemaRef {
    let fields = schema.fields().iter().map(|f| Field::new(f.name(), f.data_type().clone(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// `VALUES`: every row's expressions are constants; they are computed here.
pub(super) fn rows(values: &Values) -> Result<StreamNode> {
    let schema = declared(&values.schema);
    let none = Arc::new(Schema::empty());
    let one_row = RecordBatch::try_new_with_options(
        Arc::clone(&none),
        vec![],
        &RecordBatchOptions::new().with_row_count(Some(1)),
    )?;
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for (i, field) in schema.fields().iter().enumerate() {
        let mut cells: Vec<ArrayRef> = Vec::with_capacity(values.values.len());
        for row in &values.values {
            let e = row.get(i).ok_or_else(|| Error::internal("a row of VALUES is too short"))?;
            let bound = expr::bind(&from_datafusion(e, &DFSchema::empty())?, &none)?;
            cells.push(cast(&expr::evaluate(&bound, &one_row)?, field.data_type())?);
        }
        let cells: Vec<&dyn arrow::array::Array> = cells.iter().map(|c| c.as_ref()).collect();
        columns.push(match cells.is_empty() {
            true => new_empty_array(field.data_type()),
            false => concat(&cells)?,
        });
    }
    StreamNode::values(&RecordBatch::try_new(schema, columns)?)
}

/// No row, or the one row of a SELECT without FROM.
pub(super) fn empty(relation: &EmptyRelation) -> Result<StreamNode> {
    let schema = declared(&relation.schema);
    if schema.fields().is_empty() {
        let rows = if relation.produce_one_row { vec![true] } else { vec![] };
        let schema = Schema::new(vec![Field::new("present", DataType::Boolean, false)]);
        let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(BooleanArray::from(rows))])?;
        return StreamNode::values(&batch);
    }
    if relation.produce_one_row {
        let nulls = schema.fields().iter().map(|f| arrow::array::new_null_array(f.data_type(), 1)).collect();
        return StreamNode::values(&RecordBatch::try_new(schema, nulls)?);
    }
    StreamNode::values(&RecordBatch::new_empty(schema))
}
