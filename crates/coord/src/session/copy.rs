//! COPY: rows from and to the client. The frontend turns bytes into batches and back.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, new_null_array};
use arrow::compute::take;
use arrow::datatypes::{Field, Schema, SchemaRef};
use catalog::{Relation, RelationKind};
use flow::{Error, Result, SqlState};
use sql::statement::{Copy, CopyDirection, CopyOptions, CopyTarget, Parsed};

use super::names::{character_limit, writable};
use super::{Outcome, Rows, Session, planning};

/// A COPY FROM that waits for its rows. [`Session::copy_rows`] takes them all at the end.
pub struct CopyFrom {
    pub table: String,
    /// The columns that the client sends, all nullable.
    pub schema: SchemaRef,
    pub options: CopyOptions,
    pub plan: CopyPlan,
}

/// How the sent columns become the table's.
#[derive(Clone)]
pub struct CopyPlan {
    relation: Arc<Relation>,
    columns: Vec<ColumnSource>,
}

#[derive(Clone)]
enum ColumnSource {
    Sent(usize),
    /// One value for every row.
    Default(ArrayRef),
}

impl CopyPlan {
    /// A batch of sent columns as rows of the table.
    pub fn rows(&self, sent: &RecordBatch) -> Result<RecordBatch> {
        let rows = sent.num_rows();
        let columns = self
            .columns
            .iter()
            .zip(&self.relation.columns)
            .map(|(source, column)| match source {
                ColumnSource::Sent(i) => fitted(sent.column(*i), column),
                ColumnSource::Default(value) => {
                    Ok(take(value.as_ref(), &arrow::array::UInt32Array::from_value(0, rows), None)?)
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let fields: Vec<Field> = self.relation.columns.iter().map(|c| c.field().with_nullable(true)).collect();
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
    }
}

/// The values of a column as it takes them: no longer than it allows.
fn fitted(values: &ArrayRef, column: &catalog::Column) -> Result<ArrayRef> {
    let (Some(limit), Some(texts)) = (character_limit(column), values.as_string_view_opt()) else {
        return Ok(Arc::clone(values));
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let cut = plan::functions::varchar::fit(texts, limit).map_err(plan::error::from_datafusion_error)?;
    Ok(cut.map_or_else(|| Arc::clone(values), |cut| Arc::new(cut) as ArrayRef))
}

/// A COPY TO with its rows.
pub struct CopyTo {
    pub schema: SchemaRef,
    pub options: CopyOptions,
    pub rows: Rows,
}

impl Session {
    pub(super) async fn copy(&mut self, copy: &Copy, parsed: &Arc<Parsed>) -> Result<Outcome> {
        match (&copy.target, copy.direction) {
            (CopyTarget::Table { name, columns }, CopyDirection::FromStdin) => {
                let catalog = self.catalog();
                let relation = writable(&catalog, &self.scope(), name)?;
                let sent = positions(&relation, columns)?;
                let sources = relation
                    .columns
                    .iter()
                    .enumerate()
                    .map(|(i, column)| match (sent.iter().position(|s| *s == i), &column.default) {
                        (Some(place), _) => Ok(ColumnSource::Sent(place)),
                        (None, Some(default)) => {
                            let expr = sql::parse_expr(default)?;
                            Ok(ColumnSource::Default(self.constant(&expr, default, &column.data_type)?))
                        }
                        (None, None) => Ok(ColumnSource::Default(new_null_array(&column.data_type, 1))),
                    })
                    .collect::<Result<Vec<_>>>()?;
                let fields: Vec<Field> =
                    sent.iter().map(|i| relation.columns[*i].field().with_nullable(true)).collect();
                Ok(Outcome::CopyFrom(CopyFrom {
                    table: relation.name.clone(),
                    schema: Arc::new(Schema::new(fields)),
                    options: copy.options.clone(),
                    plan: CopyPlan { relation, columns: sources },
                }))
            }
            (CopyTarget::Query { .. } | CopyTarget::Subscribe(_), CopyDirection::FromStdin) => {
                Err(Error::new(SqlState::SyntaxError, "COPY FROM needs a table"))
            }
            (CopyTarget::Subscribe(subscribe), CopyDirection::ToStdout) => {
                let plan = self.plan_subscribe_now(subscribe, &parsed.source)?;
                let (parameters, _) = plan.parameters();
                if !parameters.is_empty() {
                    return Err(Error::new(SqlState::UndefinedParameter, "there is no parameter $1"));
                }
                let (schema, rows) = self.subscribed(&plan, &[]).await?;
                Ok(Outcome::CopyTo(CopyTo { schema, options: copy.options.clone(), rows }))
            }
            (target, CopyDirection::ToStdout) => {
                let (text, what);
                let query = match target {
                    CopyTarget::Query { query, .. } => query.as_ref(),
                    CopyTarget::Subscribe(_) => return Err(Error::internal("a subscription is not a query")),
                    CopyTarget::Table { name, columns } => {
                        let list = match columns.as_slice() {
                            [] => "*".to_string(),
                            some => some.iter().map(|(c, _)| sql::names::quote(c)).collect::<Vec<_>>().join(", "),
                        };
                        text = format!("SELECT {list} FROM {name}");
                        what = sql::parse_query(&text)?;
                        &what
                    }
                };
                let catalog = self.catalog();
                let long = planning::is_long(&parsed.source);
                let plan = planning::compute(long, || self.plan_query(query, &parsed.source, &[], &catalog))?;
                match self.run_query(&plan, None, &[], long).await? {
                    Outcome::Rows { schema, rows, .. } => {
                        Ok(Outcome::CopyTo(CopyTo { schema, options: copy.options.clone(), rows }))
                    }
                    _ => Err(Error::internal("a query without rows")),
                }
            }
        }
    }

    /// Adds what a COPY FROM has received.
    pub async fn copy_rows(&mut self, plan: &CopyPlan, batches: Vec<RecordBatch>) -> Result<u64> {
        self.insert_rows(&plan.relation, batches).await
    }
}

fn positions(relation: &Relation, columns: &[(String, usize)]) -> Result<Vec<usize>> {
    debug_assert_eq!(relation.kind(), RelationKind::Table);
    if columns.is_empty() {
        return Ok((0..relation.columns.len()).collect());
    }
    let mut seen = BTreeSet::new();
    columns
        .iter()
        .map(|(name, at)| {
            let index = relation.column_index(name).ok_or_else(|| {
                Error::new(
                    SqlState::UndefinedColumn,
                    format!("column \"{name}\" of relation \"{}\" does not exist", relation.name),
                )
                .with_position(*at)
            })?;
            match seen.insert(index) {
                true => Ok(index),
                false => {
                    Err(Error::new(SqlState::DuplicateColumn, format!("column \"{name}\" specified more than once"))
                        .with_position(*at))
                }
            }
        })
        .collect()
}
