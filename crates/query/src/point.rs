//! Reads by key without DataFusion: `SELECT … FROM v WHERE key = $1`.
//!
//! Recognised once, when the statement is prepared; an execution then costs one probe of the key index.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator, TableScan};
use datafusion::physical_expr::PhysicalExpr;
use flow::{RelationId, Result};
use plan::expr::{bind, evaluate, from_datafusion};
use plan::table::relation_of;

use crate::read::{ReadView, RelationRows};

/// A compiled read by full key.
pub struct PointRead {
    pub relation: RelationId,
    key: Vec<KeyPart>,
    /// Columns of the relation, when the select list is nothing but columns.
    columns: Option<Vec<usize>>,
    exprs: Vec<Arc<dyn PhysicalExpr>>,
    schema: SchemaRef,
}

enum KeyPart {
    Literal(ArrayRef),
    /// 0-based number of the parameter.
    Parameter(usize),
}

impl PointRead {
    /// Recognises `plan` (analysed, not optimised) as a read of one relation whose filters fix each column of the key by
    /// which its store is indexed, and nothing else. `key_of` names that key.
    pub fn compile(plan: &LogicalPlan, key_of: impl Fn(RelationId) -> Option<Vec<usize>>) -> Option<PointRead> {
        let LogicalPlan::Projection(projection) = plan else { return None };
        let LogicalPlan::Filter(filter) = projection.input.as_ref() else { return None };
        let scan = scan_of(&filter.input)?;
        if !scan.filters.is_empty() || scan.fetch.is_some() || scan.projection.is_some() {
            return None;
        }
        source_as_provider(&scan.source).ok()?;
        let source = relation_of(&scan.source)?;
        let key_columns = key_of(source.relation).filter(|k| !k.is_empty())?;
        let mut parts: Vec<Option<KeyPart>> = key_columns.iter().map(|_| None).collect();
        let mut conjuncts = Vec::new();
        split_and(&filter.predicate, &mut conjuncts);
        for conjunct in conjuncts {
            let (name, part) = equality(conjunct, &source.schema)?;
            let index = source.schema.index_of(name).ok()?;
            let place = key_columns.iter().position(|c| *c == index)?;
            // A second condition on the same column is not a plain read by key.
            if parts[place].replace(part).is_some() {
                return None;
            }
        }
        let key = parts.into_iter().collect::<Option<Vec<_>>>()?;
        let schema: SchemaRef = Arc::new(Schema::new(projection.schema.as_arrow().fields().clone()));
        let input = projection.input.schema();
        let mut columns = Some(Vec::new());
        let mut exprs = Vec::new();
        for expr in &projection.expr {
            let expr = from_datafusion(expr, input).ok()?;
            match (&expr, &mut columns) {
                (plan::Expr::Column(c), Some(columns)) => columns.push(*c),
                _ => columns = None,
            }
            exprs.push(bind(&expr, &source.schema).ok()?);
        }
        Some(PointRead { relation: source.relation, key, columns, exprs, schema })
    }

    /// Columns of the result.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The row, or no row. `parameters` hold one row each, of the key columns' types.
    pub async fn read(&self, parameters: &[ArrayRef], view: &dyn ReadView) -> Result<RecordBatch> {
        let empty = || RecordBatch::new_empty(Arc::clone(&self.schema));
        let mut key = Vec::with_capacity(self.key.len());
        for part in &self.key {
            let value = match part {
                KeyPart::Literal(value) => Some(value),
                KeyPart::Parameter(n) => parameters.get(*n),
            };
            match value {
                // Nothing equals NULL.
                Some(value) if value.is_null(0) => return Ok(empty()),
                Some(value) => key.push(Arc::clone(value)),
                None => return Err(flow::Error::internal("a parameter of a prepared read is missing")),
            }
        }
        let RelationRows::Snapshot(snapshot) = view.rows(self.relation)? else {
            return Err(flow::Error::internal("a read by key needs a store"));
        };
        let Some(row) = snapshot.point(&key, self.columns.as_deref()).await? else {
            return Ok(empty());
        };
        let columns = match self.columns {
            Some(_) => row.columns().to_vec(),
            None => self.exprs.iter().map(|e| evaluate(e, &row)).collect::<Result<_>>()?,
        };
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

fn scan_of(plan: &LogicalPlan) -> Option<&TableScan> {
    match plan {
        LogicalPlan::TableScan(scan) => Some(scan),
        LogicalPlan::SubqueryAlias(alias) => scan_of(&alias.input),
        _ => None,
    }
}

fn split_and<'a>(expr: &'a Expr, out: &mut Vec<&'a Expr>) {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            split_and(left, out);
            split_and(right, out);
        }
        other => out.push(other),
    }
}

/// `column = $n` or `column = literal`, of the column's own type.
fn equality<'a>(expr: &'a Expr, schema: &SchemaRef) -> Option<(&'a str, KeyPart)> {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = expr else { return None };
    let (column, value) = match (left.as_ref(), right.as_ref()) {
        (Expr::Column(c), value) | (value, Expr::Column(c)) => (c, value),
        _ => return None,
    };
    let data_type = schema.field_with_name(&column.name).ok()?.data_type();
    let part = match value {
        Expr::Literal(literal, _) if &literal.data_type() == data_type => {
            KeyPart::Literal(ScalarValue::to_array_of_size(literal, 1).ok()?)
        }
        Expr::Placeholder(p) if p.field.as_ref().is_some_and(|f| f.data_type() == data_type) => {
            KeyPart::Parameter(p.id.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)?)
        }
        _ => return None,
    };
    Some((&column.name, part))
}
