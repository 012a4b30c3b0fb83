//! What a table, source or view looks like to the planner.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableSource, TableType};
use datafusion::physical_plan::ExecutionPlan;
use flow::RelationId;

use crate::stream::{ChangeKind, Distribution, TimeColumn};

/// A relation as the planner sees it: the metadata from which the traits of a stream plan derive.
#[derive(Clone, Debug, PartialEq)]
pub struct RelationSource {
    pub relation: RelationId,
    pub name: String,
    /// The relation's whole schema, in canonical types.
    pub schema: SchemaRef,
    pub change_kind: ChangeKind,
    /// Column sets that identify a row at an epoch's end, NULL counting as a value like any other. So a primary key
    /// belongs here, and a `UNIQUE` constraint over nullable columns does not.
    pub unique_keys: Vec<Vec<usize>>,
    /// Which slot's changes hold a row.
    pub distribution: Distribution,
    /// Whether the relation's input ends.
    pub bounded: bool,
    /// Columns of event time.
    pub times: Vec<TimeColumn>,
}

impl RelationSource {
    /// Keys with columns outside the schema are left out.
    pub fn new(
        relation: RelationId,
        name: impl Into<String>,
        schema: SchemaRef,
        change_kind: ChangeKind,
        mut unique_keys: Vec<Vec<usize>>,
        distribution: Distribution,
        bounded: bool,
    ) -> RelationSource {
        let width = schema.fields().len();
        unique_keys.retain(|key| key.iter().all(|c| *c < width));
        let (name, times) = (name.into(), Vec::new());
        RelationSource { relation, name, schema, change_kind, unique_keys, distribution, bounded, times }
    }

    /// The relation with these columns of event time; those outside the schema are left out.
    pub fn with_times(mut self, mut times: Vec<TimeColumn>) -> RelationSource {
        times.retain(|t| t.column < self.schema.fields().len());
        self.times = times;
        self
    }
}

// DataFusion is not told of keys: through joins and aggregates it takes "a key determines the row" for "determines all
// that stands beside it", and then drops sort and grouping columns that matter.
impl TableSource for RelationSource {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// Reads a relation's rows for an ad-hoc query; implemented where the data is.
#[async_trait]
pub trait RelationReader: fmt::Debug + Send + Sync {
    /// How well the reader applies each filter itself.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Vec<TableProviderFilterPushDown> {
        vec![TableProviderFilterPushDown::Unsupported; filters.len()]
    }

    /// As [`TableProvider::scan`].
    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> datafusion::common::Result<Arc<dyn ExecutionPlan>>;
}

/// A relation that DataFusion can read, and that the planner of standing queries recognises in the same plan.
#[derive(Debug)]
pub struct RelationProvider {
    pub source: RelationSource,
    pub reader: Arc<dyn RelationReader>,
}

#[async_trait]
impl TableProvider for RelationProvider {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.source.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> datafusion::common::Result<Vec<TableProviderFilterPushDown>> {
        Ok(self.reader.supports_filters_pushdown(filters))
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> datafusion::common::Result<Arc<dyn ExecutionPlan>> {
        self.reader.scan(state, projection, filters, limit).await
    }
}

/// The relation behind a scan: the source itself, or the source of a [`RelationProvider`].
pub fn relation_of(source: &Arc<dyn TableSource>) -> Option<RelationSource> {
    if let Some(relation) = source.downcast_ref::<RelationSource>() {
        return Some(relation.clone());
    }
    let provider = source_as_provider(source).ok()?;
    let provider: &dyn std::any::Any = provider.as_ref();
    provider.downcast_ref::<RelationProvider>().map(|p| p.source.clone())
}
