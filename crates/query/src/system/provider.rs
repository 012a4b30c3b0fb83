//! A system relation as DataFusion scans it.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;

use super::Snapshot;
use super::content;
use super::layout::SystemRelation;

/// One system relation of one snapshot. Its rows are made when it is scanned, so that a statement which is only described
/// costs nothing.
pub struct SystemTable {
    snapshot: Arc<Snapshot>,
    relation: &'static SystemRelation,
}

impl SystemTable {
    pub fn new(snapshot: Arc<Snapshot>, relation: &'static SystemRelation) -> SystemTable {
        SystemTable { snapshot, relation }
    }
}

impl fmt::Debug for SystemTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SystemTable({}.{})", self.relation.schema, self.relation.name)
    }
}

#[async_trait]
impl TableProvider for SystemTable {
    fn schema(&self) -> SchemaRef {
        self.relation.arrow_schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let batch = content::build(&self.snapshot, self.relation).map_err(external)?;
        let schema = batch.schema();
        Ok(MemorySourceConfig::try_new_exec(&[vec![batch]], schema, projection.cloned())?)
    }
}

/// An error of ours on its way through DataFusion; whoever runs the plan takes it out again by downcasting.
pub(super) fn external(error: flow::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
