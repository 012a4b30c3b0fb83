//! What SQL can ask about Millstream itself: `pg_catalog`, `information_schema` and `ms_catalog`, as PostgreSQL 15 has
//! them, so that clients written for PostgreSQL find their way.
//!
//! Law: one [`SystemCatalog`] is one snapshot. All of its tables and functions answer from the same catalog version and the
//! same session, whatever DDL happens meanwhile.
//!
//! Reading order: [`layout`] lists the relations and their columns, [`source`] is what the server must tell, [`rows`] turns
//! values into columns, [`content`] fills the relations, [`provider`] gives them to DataFusion, [`functions`] are
//! PostgreSQL's system information functions, [`registry`] lists all functions, [`rewrite`] turns what DataFusion's planner lacks into what it has.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use catalog::Catalog;
use datafusion::catalog::TableProvider;
use datafusion::logical_expr::ScalarUDF;
use flow::Result;

pub mod content;
pub mod functions;
pub mod layout;
pub mod provider;
pub mod registry;
pub mod rewrite;
pub mod rows;
pub mod source;

pub use layout::PG_TYPE;
pub use source::{ActivityInfo, CoordinatorInfo, JobInfo, NoSource, SessionInfo, SourceInfo, SystemSource, WorkerInfo};

/// One catalog version seen from one session.
#[derive(Debug)]
pub struct Snapshot {
    pub catalog: Catalog,
    pub session: SessionInfo,
    pub source: Arc<dyn SystemSource>,
}

/// The system relations and functions for one statement of one session. Cheap to make; relations are built when scanned.
#[derive(Clone, Debug)]
pub struct SystemCatalog {
    snapshot: Arc<Snapshot>,
}

impl SystemCatalog {
    pub fn new(catalog: Catalog, session: SessionInfo, source: Arc<dyn SystemSource>) -> SystemCatalog {
        SystemCatalog { snapshot: Arc::new(Snapshot { catalog, session, source }) }
    }

    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// The system relation `schema.name`; with no schema, the one in `pg_catalog`, which is searched before everything else.
    pub fn table(&self, schema: Option<&str>, name: &str) -> Option<Arc<dyn TableProvider>> {
        let relation = layout::relation(schema.unwrap_or("pg_catalog"), name)?;
        Some(Arc::new(provider::SystemTable::new(Arc::clone(&self.snapshot), relation)))
    }

    /// The columns of a system relation, without its rows.
    pub fn schema(&self, schema: Option<&str>, name: &str) -> Option<SchemaRef> {
        layout::relation(schema.unwrap_or("pg_catalog"), name).map(|r| r.arrow_schema())
    }

    /// All rows of a system relation; none when there is no such relation.
    pub fn rows(&self, schema: Option<&str>, name: &str) -> Option<Result<RecordBatch>> {
        let relation = layout::relation(schema.unwrap_or("pg_catalog"), name)?;
        Some(content::build(&self.snapshot, relation))
    }

    /// The system information functions, bound to this snapshot. Their names are without a schema: [`rewrite`] takes
    /// `pg_catalog.` off.
    pub fn functions(&self) -> Vec<Arc<ScalarUDF>> {
        functions::all(&self.snapshot)
    }

    /// The system information function with this name.
    pub fn function(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        functions::named(&self.snapshot, name)
    }
}
