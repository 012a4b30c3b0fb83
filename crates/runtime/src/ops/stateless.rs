//! Operators without state: constant rows, projection, selection, union.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{filter, filter_record_batch, prep_null_mask_filter, take};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc::reader::StreamReader;
use datafusion::physical_expr::PhysicalExpr;
use flow::process::Declaration;
use flow::{ChangeBatch, Collector, Diff, Epoch, Error, ProcessFunction, Result};
use plan::Expr;

use super::OpContext;
use super::emit::record;

/// Constant rows, sent once by slot 0 at the end of the first epoch.
pub struct Values {
    batches: Vec<RecordBatch>,
}

impl Values {
    pub fn new(ipc: &[u8], schema: SchemaRef, ctx: &OpContext) -> Result<Values> {
        let mut batches = Vec::new();
        if ctx.slot.0 == 0 {
            for batch in StreamReader::try_new(ipc, None)? {
                let batch = batch?;
                batches.push(record(&schema, batch.columns().to_vec(), batch.num_rows())?);
            }
        }
        Ok(Values { batches })
    }
}

impl ProcessFunction for Values {
    fn declare(&self) -> Declaration {
        Declaration::default()
    }

    fn process(&mut self, _port: usize, _batch: ChangeBatch, _out: &mut dyn Collector) -> Result<()> {
        Err(Error::internal("constant rows have no input"))
    }

    fn finish_epoch(&mut self, _epoch: Epoch, out: &mut dyn Collector) -> Result<()> {
        for batch in self.batches.drain(..) {
            out.emit(ChangeBatch::insert(batch));
        }
        Ok(())
    }

    fn restored(&mut self, _watermarks_us: &[i64], _now_us: i64) -> Result<()> {
        // The first epoch is long over.
        self.batches.clear();
        Ok(())
    }
}

enum Column {
    Input(usize),
    Computed(Arc<dyn PhysicalExpr>),
}

/// One output column per expression. Plain columns are passed on without evaluation.
pub struct Project {
    columns: Vec<Column>,
    schema: SchemaRef,
}

impl Project {
    pub fn new(exprs: &[Expr], input: &SchemaRef, schema: SchemaRef) -> Result<Project> {
        let columns = exprs
            .iter()
            .map(|expr| match expr {
                Expr::Column(n) if *n < input.fields().len() => Ok(Column::Input(*n)),
                computed => Ok(Column::Computed(plan::expr::bind(computed, input)?)),
            })
            .collect::<Result<_>>()?;
        Ok(Project { columns, schema })
    }
}

impl ProcessFunction for Project {
    fn declare(&self) -> Declaration {
        Declaration::default()
    }

    fn process(&mut self, _port: usize, batch: ChangeBatch, out: &mut dyn Collector) -> Result<()> {
        let columns: Vec<ArrayRef> = self
            .columns
            .iter()
            .map(|column| match column {
                Column::Input(n) => Ok(Arc::clone(batch.rows.column(*n))),
                Column::Computed(expr) => plan::expr::evaluate(expr, &batch.rows),
            })
            .collect::<Result<_>>()?;
        let rows = record(&self.schema, columns, batch.num_rows())?;
        out.emit(ChangeBatch::new(rows, batch.diff));
        Ok(())
    }

    fn finish_epoch(&mut self, _epoch: Epoch, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }
}

/// Keeps the rows for which the predicate is true; false and NULL drop.
pub struct Filter {
    predicate: Arc<dyn PhysicalExpr>,
}

impl Filter {
    pub fn new(predicate: &Expr, input: &SchemaRef) -> Result<Filter> {
        Ok(Filter { predicate: plan::expr::bind(predicate, input)? })
    }
}

/// The rows where `mask` is true, as a mask without NULL. Anything but a Boolean column is a bug of the planner.
pub(super) fn true_rows(mask: &ArrayRef) -> Result<BooleanArray> {
    if *mask.data_type() != DataType::Boolean {
        return Err(Error::internal(format!("a condition has type {} instead of Boolean", mask.data_type())));
    }
    let mask = mask.as_boolean();
    Ok(if mask.null_count() > 0 { prep_null_mask_filter(mask) } else { mask.clone() })
}

impl ProcessFunction for Filter {
    fn declare(&self) -> Declaration {
        Declaration::default()
    }

    fn process(&mut self, _port: usize, batch: ChangeBatch, out: &mut dyn Collector) -> Result<()> {
        let mask = true_rows(&plan::expr::evaluate(&self.predicate, &batch.rows)?)?;
        let kept = mask.true_count();
        if kept == batch.num_rows() {
            out.emit(batch);
        } else if kept > 0 {
            let rows = filter_record_batch(&batch.rows, &mask)?;
            let diff = match batch.diff {
                Diff::Weights(w) => {
                    let kept = filter(&Int64Array::new(w, None), &mask)?;
                    Diff::from_weights(kept.as_primitive::<arrow::datatypes::Int64Type>().values().to_vec())
                }
                same => same,
            };
            out.emit(ChangeBatch::new(rows, diff));
        }
        Ok(())
    }

    fn finish_epoch(&mut self, _epoch: Epoch, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }
}

/// One row for each element of a list column, which gives way to the element.
pub struct Unnest {
    column: usize,
    schema: SchemaRef,
}

impl Unnest {
    pub fn new(column: usize, schema: SchemaRef) -> Unnest {
        Unnest { column, schema }
    }
}

impl ProcessFunction for Unnest {
    fn declare(&self) -> Declaration {
        Declaration::default()
    }

    fn process(&mut self, _port: usize, batch: ChangeBatch, out: &mut dyn Collector) -> Result<()> {
        let lists = batch.rows.columns().get(self.column).and_then(|c| c.as_list_opt::<i32>());
        let lists = lists.ok_or_else(|| Error::internal("unnest of a column that is no list"))?;
        let offsets = lists.value_offsets();
        let mut rows: Vec<u32> = Vec::with_capacity(lists.values().len());
        let mut elements: Vec<u32> = Vec::with_capacity(lists.values().len());
        for row in (0..lists.len()).filter(|row| lists.is_valid(*row)) {
            for element in offsets[row]..offsets[row + 1] {
                rows.push(row as u32);
                elements.push(element as u32);
            }
        }
        let (rows, elements) = (UInt32Array::from(rows), UInt32Array::from(elements));
        let columns = batch.rows.columns().iter().enumerate().map(|(i, column)| match i == self.column {
            true => take(lists.values(), &elements, None),
            false => take(column, &rows, None),
        });
        let columns = columns.collect::<std::result::Result<Vec<ArrayRef>, _>>()?;
        let diff = match &batch.diff {
            Diff::Weights(w) => Diff::from_weights(rows.values().iter().map(|row| w[*row as usize]).collect()),
            same => same.clone(),
        };
        out.emit(ChangeBatch::new(record(&self.schema, columns, rows.len())?, diff));
        Ok(())
    }

    fn finish_epoch(&mut self, _epoch: Epoch, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }
}

/// All inputs as they come, under the output's field names.
pub struct Union {
    schema: SchemaRef,
}

impl Union {
    pub fn new(schema: SchemaRef) -> Union {
        Union { schema }
    }
}

impl ProcessFunction for Union {
    fn declare(&self) -> Declaration {
        Declaration::default()
    }

    fn process(&mut self, _port: usize, batch: ChangeBatch, out: &mut dyn Collector) -> Result<()> {
        let rows = record(&self.schema, batch.rows.columns().to_vec(), batch.num_rows())?;
        out.emit(ChangeBatch::new(rows, batch.diff));
        Ok(())
    }

    fn finish_epoch(&mut self, _epoch: Epoch, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }
}
