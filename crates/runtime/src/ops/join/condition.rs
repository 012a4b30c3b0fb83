//! The extra condition of a join, over candidate pairs, reading only the columns it names.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::physical_expr::PhysicalExpr;
use flow::{Error, Result};
use plan::Expr;

use crate::ops::emit::record;
use crate::ops::stateless::true_rows;

pub struct Condition {
    expr: Arc<dyn PhysicalExpr>,
    /// Columns of left ++ right that the condition reads, in the order of `schema`.
    used: Vec<usize>,
    schema: SchemaRef,
}

impl Condition {
    pub fn new(filter: &Expr, left: &SchemaRef, right: &SchemaRef) -> Result<Condition> {
        let mut used = Vec::new();
        filter.visit_columns(&mut |n| used.push(n));
        used.sort_unstable();
        used.dedup();
        let fields = used
            .iter()
            .map(|n| {
                let field = left.fields().get(*n).or_else(|| right.fields().get(n.wrapping_sub(left.fields().len())));
                field.cloned().ok_or_else(|| Error::internal("a join condition names no input column"))
            })
            .collect::<Result<Vec<_>>>()?;
        let schema = Arc::new(Schema::new(fields));
        let renumbered = filter.clone().map_columns(&|n| used.binary_search(&n).unwrap_or(n));
        Ok(Condition { expr: plan::expr::bind(&renumbered, &schema)?, used, schema })
    }

    /// For which of `pairs` candidate pairs the condition is true. `column` gives a column of left ++ right over the pairs.
    pub fn holds(&self, pairs: usize, mut column: impl FnMut(usize) -> Result<ArrayRef>) -> Result<BooleanArray> {
        let columns = self.used.iter().map(|n| column(*n)).collect::<Result<Vec<_>>>()?;
        let batch = record(&self.schema, columns, pairs)?;
        true_rows(&plan::expr::evaluate(&self.expr, &batch)?)
    }
}
