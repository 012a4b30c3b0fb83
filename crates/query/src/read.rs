//! Scans at a pinned epoch.
//!
//! A prepared plan names relations, not snapshots: which epoch it reads is decided when it runs, by the [`ReadView`] that
//! the execution carries as an extension of its session configuration. So one plan serves any number of executions.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use flow::{RelationId, Result};
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use plan::table::{RelationProvider, RelationReader, RelationSource};
use state::{Batches, RelationSnapshot, Snapshot};

use crate::elsewhere::ShardsExec;

/// Rows a scan hands out at a time.
pub(crate) const SCAN_ROWS: usize = 8192;

/// Rows in some order, read as they are asked for.
pub type RowIterator = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// Opens the rows of a relation, projected; called once per scan.
pub type OpenRows = Box<dyn FnOnce(Option<&[usize]>) -> Result<RowIterator> + Send>;

/// The rows of one relation, as a statement sees them.
pub enum RelationRows {
    /// What a store held at an epoch.
    Snapshot(Arc<dyn RelationSnapshot>),
    /// What the store of a table held, with a transaction's own changes on top.
    Changed { snapshot: Snapshot, changes: Arc<dyn Changes> },
    /// Rows made for this statement, with the relation's whole schema.
    Batches(Vec<RecordBatch>),
    /// Rows read from outside, such as a source's file.
    Stream(OpenRows),
}

/// A transaction's own changes of a relation with a key.
pub trait Changes: Send + Sync {
    /// Which rows (whole ones of the relation) the changes leave as they are.
    fn unchanged(&self, rows: &RecordBatch) -> Result<BooleanArray>;

    /// The rows that the changes put in, whole.
    fn added(&self) -> Result<RecordBatch>;

    /// What the changes make of the key (one value a column): `None` when they do not touch it, else its row or no row.
    fn point(&self, key: &[ArrayRef]) -> Result<Option<RecordBatch>>;
}

/// Decides what each relation looks like to one statement: one epoch for all of them, and the statement's own
/// transaction on top.
pub trait ReadView: Send + Sync {
    /// The rows of `relation`. Called once for every scan of it.
    fn rows(&self, relation: RelationId) -> Result<RelationRows>;

    /// Whether those who have the shards of a relation may do a part of the statement's work on them.
    fn works_elsewhere(&self) -> bool {
        true
    }
}

/// Carries a [`ReadView`] through DataFusion's session configuration.
pub(crate) struct ReadViewExtension(pub Arc<dyn ReadView>);

/// A relation as a DataFusion table that reads through the execution's [`ReadView`].
pub fn relation_provider(source: RelationSource, key: Option<Vec<usize>>) -> RelationProvider {
    let (relation, name, schema) = (source.relation, source.name.clone(), Arc::clone(&source.schema));
    let reader = Arc::new(PinnedReader { relation, name, schema, key });
    RelationProvider { source, reader }
}

struct PinnedReader {
    relation: RelationId,
    name: String,
    schema: SchemaRef,
    /// The unique key by which the store is indexed.
    key: Option<Vec<usize>>,
}

impl fmt::Debug for PinnedReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedReader({})", self.relation)
    }
}

pub(crate) fn external(error: flow::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

impl PinnedReader {
    /// The value that a filter `column = literal` asks of a key column.
    fn key_value(&self, filter: &Expr) -> Option<(usize, ScalarValue)> {
        let Expr::BinaryExpr(binary) = filter else { return None };
        if binary.op != Operator::Eq {
            return None;
        }
        let (column, literal) = match (binary.left.as_ref(), binary.right.as_ref()) {
            (Expr::Column(c), Expr::Literal(l, _)) | (Expr::Literal(l, _), Expr::Column(c)) => (c, l),
            _ => return None,
        };
        let index = self.schema.index_of(&column.name).ok()?;
        let in_key = self.key.as_ref()?.contains(&index);
        // Only exact types: the literal has been coerced to the column's by then.
        (in_key && &literal.data_type() == self.schema.field(index).data_type()).then(|| (index, literal.clone()))
    }

    /// One array per key column, if the filters fix the whole key.
    fn key_of(&self, filters: &[Expr]) -> Option<Vec<ArrayRef>> {
        let values: Vec<(usize, ScalarValue)> = filters.iter().filter_map(|f| self.key_value(f)).collect();
        let key = self.key.as_ref().filter(|k| !k.is_empty())?;
        key.iter()
            .map(|column| {
                let (_, value) = values.iter().find(|(c, v)| c == column && !v.is_null())?;
                value.to_array_of_size(1).ok()
            })
            .collect()
    }
}

#[async_trait]
impl RelationReader for PinnedReader {
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Vec<TableProviderFilterPushDown> {
        filters
            .iter()
            .map(|f| match self.key_value(f) {
                // The filter stays above the scan: it may name only a part of the key.
                Some(_) => TableProviderFilterPushDown::Inexact,
                None => TableProviderFilterPushDown::Unsupported,
            })
            .collect()
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let Some(view) = state.config().get_extension::<ReadViewExtension>() else {
            return Err(external(flow::Error::internal("a relation is read without a pinned epoch")));
        };
        let rows = view.0.rows(self.relation).map_err(external)?;
        let projected = match projection {
            None => Arc::clone(&self.schema),
            Some(columns) => Arc::new(self.schema.project(columns)?),
        };
        let snapshot = match rows {
            RelationRows::Snapshot(snapshot) => snapshot,
            RelationRows::Batches(batches) => {
                let batches = batches.iter().map(|b| under_schema(b, &self.schema)).collect::<Result<Vec<_>, _>>()?;
                let plan = MemorySourceConfig::try_new_exec(&[batches], Arc::clone(&self.schema), projection.cloned())?;
                return Ok(plan);
            }
            RelationRows::Changed { snapshot, changes } => {
                if let Some(key) = self.key_of(filters) {
                    let own = changes.point(&key).map_err(external)?;
                    let found = match own {
                        Some(rows) => Some(rows),
                        None => snapshot.point(&key, None).map_err(external)?,
                    };
                    let found = found.iter().map(|b| under_schema(b, &self.schema)).collect::<Result<Vec<_>, _>>()?;
                    let source =
                        MemorySourceConfig::try_new_exec(&[found], Arc::clone(&self.schema), projection.cloned())?;
                    return Ok(source);
                }
                let open: OpenRows = Box::new(move |columns| changed_rows(&snapshot, changes, columns));
                let partition = OnceRows {
                    schema: Arc::clone(&projected),
                    open: Mutex::new(Some(open)),
                    projection: projection.cloned(),
                };
                return streaming(projected, vec![Arc::new(partition)], limit);
            }
            RelationRows::Stream(open) => {
                let partition = OnceRows {
                    schema: Arc::clone(&projected),
                    open: Mutex::new(Some(open)),
                    projection: projection.cloned(),
                };
                return streaming(projected, vec![Arc::new(partition)], limit);
            }
        };
        if let Some(key) = self.key_of(filters) {
            let found = snapshot.point(&key, projection.map(Vec::as_slice)).await.map_err(external)?;
            let batches = found.iter().map(|b| under_schema(b, &projected)).collect::<Result<Vec<_>, _>>()?;
            return Ok(MemorySourceConfig::try_new_exec(&[batches], projected, None)?);
        }
        let works = view.0.works_elsewhere();
        if let Some(scan) = ShardsExec::scan(&self.name, &snapshot, projection, &projected, limit, works) {
            return Ok(Arc::new(scan));
        }
        let partitions = (0..snapshot.shards())
            .map(|shard| {
                Arc::new(SnapshotShard {
                    schema: Arc::clone(&projected),
                    snapshot: Arc::clone(&snapshot),
                    shard,
                    projection: projection.cloned(),
                }) as Arc<dyn PartitionStream>
            })
            .collect();
        streaming(projected, partitions, limit)
    }
}

fn streaming(
    schema: SchemaRef,
    partitions: Vec<Arc<dyn PartitionStream>>,
    limit: Option<usize>,
) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    Ok(Arc::new(StreamingTableExec::try_new(schema, partitions, None, vec![], false, limit)?))
}

struct SnapshotShard {
    schema: SchemaRef,
    snapshot: Arc<dyn RelationSnapshot>,
    shard: usize,
    projection: Option<Vec<usize>>,
}

impl fmt::Debug for SnapshotShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotShard({})", self.shard)
    }
}

impl PartitionStream for SnapshotShard {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = self.snapshot.scan_shard(self.shard, self.projection.as_deref(), SCAN_ROWS);
        stream_of(&self.schema, rows.unwrap_or_else(|error| stream::iter([Err(error)]).boxed()))
    }
}

/// Rows that can be opened once: a plan runs once.
struct OnceRows {
    schema: SchemaRef,
    open: Mutex<Option<OpenRows>>,
    projection: Option<Vec<usize>>,
}

impl fmt::Debug for OnceRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnceRows")
    }
}

impl PartitionStream for OnceRows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let open = self.open.lock().take();
        let rows = open
            .ok_or_else(|| flow::Error::internal("a scan was started twice"))
            .and_then(|open| open(self.projection.as_deref()))
            .unwrap_or_else(|error| Box::new(std::iter::once(Err(error))));
        stream_of(&self.schema, stream::iter(rows).boxed())
    }
}

/// The rows of a snapshot that the changes leave, then those that they put in.
pub fn changed_rows(snapshot: &Snapshot, changes: Arc<dyn Changes>, columns: Option<&[usize]>) -> Result<RowIterator> {
    let columns = columns.map(<[usize]>::to_vec);
    let project = move |rows: RecordBatch| -> Result<RecordBatch> {
        match &columns {
            None => Ok(rows),
            Some(columns) => Ok(rows.project(columns)?),
        }
    };
    let added = changes.added()?;
    let left = snapshot.scan(None, SCAN_ROWS)?.map(move |rows| {
        let rows = rows?;
        Ok(filter_record_batch(&rows, &changes.unchanged(&rows)?)?)
    });
    Ok(Box::new(left.chain(std::iter::once(Ok(added))).map(move |rows| rows.and_then(&project))))
}

/// The same columns under the plan's schema: a column may have been renamed since its store was made.
pub(crate) fn under_schema(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, DataFusionError> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &options)?)
}

/// Batches as DataFusion wants them.
fn stream_of(schema: &SchemaRef, rows: Batches) -> SendableRecordBatchStream {
    let declared = Arc::clone(schema);
    let batches = rows.map(move |batch| {
        let batch = batch.map_err(external)?;
        under_schema(&batch, &declared)
    });
    Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), batches))
}
