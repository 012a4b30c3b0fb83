//! Plans over relations whose shards are in other processes: what can be done there is.
//!
//! A scan of such a relation is a [`ShardsExec`]. [`WorkWhereRowsAre`] takes the operators above it into it, as far as they can
//! travel ([`crate::work`]): filters, narrowing projections, the partial half of aggregates, the first rows and limits. Nothing
//! else of the plan changes, and what is taken in gives the same columns; the final half of an aggregate stays above, and so
//! do sort and limit.
//!
//! It runs before DataFusion's own physical rules, on the plan as it was made: they see a scan with other columns.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr, conjunction, split_conjunction};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
};
use flow::Error;
use futures::future::ready;
use futures::stream::{self, StreamExt};
use plan::expr::{Expr, from_physical};
use state::{RelationSnapshot, Worked};

use crate::read::{SCAN_ROWS, external, under_schema};
use crate::work::{self, Call, Order, Step};

/// Rows of a relation below which they are sent as they are.
const ROWS_MIN: usize = 1000;
/// The most first rows that each shard picks for itself; it holds them meanwhile.
const FIRST_ROWS_MAX: usize = 10_000;
/// Bytes for which a value of no fixed width counts where columns are compared.
const VALUE_BYTES: usize = 32;
/// Names of aggregates that only collect their arguments: nothing is less for being collected earlier.
const COLLECTING: [&str; 3] = ["array_agg", "string_agg", "nth_value"];

const ROWS_READ: &str = "rows_read";
const ROWS_SENT: &str = "rows_sent";
const BYTES_SENT: &str = "bytes_sent";

/// A scan of a relation whose shards are elsewhere, and the work that is done on them there. One partition a shard.
#[derive(Clone)]
pub(crate) struct ShardsExec {
    relation: String,
    snapshot: Arc<dyn RelationSnapshot>,
    projection: Option<Vec<usize>>,
    /// Columns of the scan.
    scanned: SchemaRef,
    steps: Vec<Step>,
    /// Why all rows are sent as they are.
    as_they_are: Option<&'static str>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

fn properties(schema: &SchemaRef, shards: usize) -> Arc<PlanProperties> {
    let (equivalences, partitions) =
        (EquivalenceProperties::new(Arc::clone(schema)), Partitioning::UnknownPartitioning(shards));
    Arc::new(PlanProperties::new(equivalences, partitions, EmissionType::Incremental, Boundedness::Bounded))
}

impl ShardsExec {
    /// All rows, or at least `limit` of them. `works`: work may be done on them. `None`: the rows are here.
    pub fn scan(
        relation: &str,
        snapshot: &Arc<dyn RelationSnapshot>,
        projection: Option<&Vec<usize>>,
        scanned: &SchemaRef,
        limit: Option<usize>,
        works: bool,
    ) -> Option<ShardsExec> {
        let few = snapshot.elsewhere()?.live_rows().is_some_and(|rows| rows < ROWS_MIN);
        let as_they_are = match (works, few) {
            (false, _) => Some("select_on_workers is off"),
            (true, true) => Some("they are few"),
            (true, false) => None,
        };
        Some(ShardsExec {
            relation: relation.to_string(),
            snapshot: Arc::clone(snapshot),
            projection: projection.cloned(),
            scanned: Arc::clone(scanned),
            steps: limit.filter(|_| as_they_are.is_none()).map(Step::Limit).into_iter().collect(),
            as_they_are,
            properties: properties(scanned, snapshot.shards()),
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    /// With a further step, which gives these columns.
    fn then(&self, step: Step, schema: &SchemaRef) -> ShardsExec {
        let mut next = self.clone();
        next.steps.push(step);
        next.properties = properties(schema, self.snapshot.shards());
        next.metrics = ExecutionPlanMetricsSet::new();
        next
    }

    /// Whether rows may still be left out, put together or chosen from: not once some were chosen.
    fn is_whole(&self) -> bool {
        self.steps.iter().all(|step| matches!(step, Step::Filter(_) | Step::Project(_)))
    }

    /// What EXPLAIN says of it, and after a run what it has measured.
    fn describe(&self, measured: bool) -> String {
        let work = match (self.steps.as_slice(), self.as_they_are) {
            ([], None) => "all rows".to_string(),
            ([], Some(why)) => format!("all rows, {why}"),
            (steps, _) => work::describe(steps, &self.scanned),
        };
        let mut said = format!("{}: {work}", self.relation);
        if measured {
            let metrics = self.metrics.clone_inner();
            let sum = |name: &str| metrics.sum_by_name(name).map_or(0, |value| value.as_usize());
            let (read, sent, bytes) = (sum(ROWS_READ), sum(ROWS_SENT), sum(BYTES_SENT));
            said.push_str(&format!(" (rows read: {read}, sent: {sent} in {bytes} bytes)"));
        }
        said
    }
}

impl fmt::Debug for ShardsExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardsExec({})", self.describe(false))
    }
}

impl DisplayAs for ShardsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardsExec: {}", self.describe(false))
    }
}

impl ExecutionPlan for ShardsExec {
    fn name(&self) -> &'static str {
        "ShardsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { datafusion::common::internal_err!("a scan has no inputs") }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let counter = |name: &'static str| MetricBuilder::new(&self.metrics).counter(name, partition);
        let (read, sent, bytes_sent) = (counter(ROWS_READ), counter(ROWS_SENT), counter(BYTES_SENT));
        let begin = || {
            let there = self.snapshot.elsewhere().ok_or_else(|| Error::internal("the rows are not elsewhere"))?;
            let work = if self.steps.is_empty() { Vec::new() } else { work::encode(&self.steps)? };
            there.work(partition, self.projection.as_deref(), SCAN_ROWS, work)
        };
        let worked = begin().unwrap_or_else(|error| stream::iter([Err(error)]).boxed());
        let declared = Arc::clone(&schema);
        let rows = worked.filter_map(move |worked| {
            ready(match worked {
                Ok(Worked::Rows { rows, bytes }) => {
                    sent.add(rows.num_rows());
                    bytes_sent.add(usize::try_from(bytes).unwrap_or(usize::MAX));
                    Some(under_schema(&rows, &declared))
                }
                Ok(Worked::Done { read: rows }) => {
                    read.add(usize::try_from(rows).unwrap_or(usize::MAX));
                    None
                }
                Err(error) => Some(Err(external(error))),
            })
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// What other processes do for a plan, in lines for EXPLAIN; none if they do nothing. `measured`: it has run.
pub(crate) fn lines(plan: &Arc<dyn ExecutionPlan>, measured: bool) -> Vec<String> {
    let (mut workers, mut shards, mut lines) = (0, 0, Vec::new());
    // The closure does not fail.
    let _ = plan.apply(|node| {
        if let Some(scan) = node.downcast_ref::<ShardsExec>() {
            workers = scan.snapshot.elsewhere().map_or(workers, |there| there.workers().max(workers));
            shards = scan.snapshot.shards().max(shards);
            lines.push(format!("  {}", scan.describe(measured)));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    if !lines.is_empty() {
        let plural = |n: usize, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
        lines.insert(0, format!("On {}, for each of {}:", plural(workers, "worker"), plural(shards, "shard")));
    }
    lines
}

/// Lets the work on shards that are elsewhere be done there.
#[derive(Debug)]
pub(crate) struct WorkWhereRowsAre;

impl PhysicalOptimizerRule for WorkWhereRowsAre {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        // In one process there is never one.
        if !plan.exists(|node| Ok(node.downcast_ref::<ShardsExec>().is_some_and(|scan| scan.as_they_are.is_none())))? {
            return Ok(plan);
        }
        let placed = |node: Arc<dyn ExecutionPlan>| {
            Ok(match place(&node)? {
                Some(placed) => Transformed::yes(placed),
                None => Transformed::no(node),
            })
        };
        Ok(plan.transform_up(placed)?.data)
    }

    fn name(&self) -> &str {
        "work_where_rows_are"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The node with a part of its work done below, if that can be.
fn place(node: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(filter) = node.downcast_ref::<FilterExec>() {
        return place_filter(filter);
    }
    if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
        return Ok(place_projection(projection));
    }
    if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
        return Ok(place_aggregate(aggregate));
    }
    if let Some(sort) = node.downcast_ref::<SortExec>() {
        return Ok(place_first(sort));
    }
    if let Some(limit) = node.downcast_ref::<LocalLimitExec>() {
        let below = whole(limit.input()).map(|below| below.then(Step::Limit(limit.fetch()), &limit.input().schema()));
        return Ok(below.map(|below| Arc::new(LocalLimitExec::new(Arc::new(below), limit.fetch())) as _));
    }
    if let Some(limit) = node.downcast_ref::<GlobalLimitExec>()
        && let Some(fetch) = limit.fetch()
    {
        let rows = Step::Limit(fetch.saturating_add(limit.skip()));
        let below = whole(limit.input()).map(|below| below.then(rows, &limit.input().schema()));
        return Ok(below.map(|below| Arc::new(GlobalLimitExec::new(Arc::new(below), limit.skip(), Some(fetch))) as _));
    }
    Ok(None)
}

/// The scan below, with all of its rows to choose from. A projection between goes along.
fn whole(plan: &Arc<dyn ExecutionPlan>) -> Option<ShardsExec> {
    if let Some(scan) = plan.downcast_ref::<ShardsExec>() {
        return Some(scan.clone()).filter(|scan| scan.as_they_are.is_none() && scan.is_whole());
    }
    let projection = plan.downcast_ref::<ProjectionExec>()?;
    projected(&whole(projection.input())?, projection)
}

fn projected(below: &ShardsExec, projection: &ProjectionExec) -> Option<ShardsExec> {
    let input = projection.input().schema();
    let columns =
        projection.expr().iter().map(|column| Some((from_physical(&column.expr, &input)?, column.alias.clone())));
    Some(below.then(Step::Project(columns.collect::<Option<_>>()?), &projection.schema()))
}

/// Conditions are tested in the order in which they are written: the first ones go, up to one that must stay.
fn place_filter(filter: &FilterExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if filter.projection().is_some() || filter.fetch().is_some() {
        return Ok(None);
    }
    let Some(below) = whole(filter.input()) else { return Ok(None) };
    let input = filter.input().schema();
    let conditions = split_conjunction(filter.predicate());
    let going: Vec<Expr> = conditions.iter().map_while(|condition| from_physical(condition, &input)).collect();
    let staying: Vec<Arc<dyn PhysicalExpr>> = conditions.iter().skip(going.len()).map(|e| Arc::clone(e)).collect();
    let Some(going) = Expr::all(going) else { return Ok(None) };
    let below = Arc::new(below.then(Step::Filter(going), &input));
    if staying.is_empty() {
        return Ok(Some(below));
    }
    let filter = FilterExecBuilder::from(filter).with_predicate(conjunction(staying)).with_input(below).build()?;
    Ok(Some(Arc::new(filter)))
}

/// A projection that makes rows smaller goes; what makes them larger is better done where they arrive.
fn place_projection(projection: &ProjectionExec) -> Option<Arc<dyn ExecutionPlan>> {
    let below = projection.input().downcast_ref::<ShardsExec>().filter(|scan| scan.as_they_are.is_none())?;
    if below.steps.iter().any(|step| matches!(step, Step::Aggregate { .. })) {
        return None;
    }
    let (before, after) = (width(&projection.input().schema()), width(&projection.schema()));
    if after > before || (after == before && below.steps.is_empty()) {
        return None;
    }
    projected(below, projection).map(|below| Arc::new(below) as _)
}

/// About how many bytes a row has.
fn width(schema: &Schema) -> usize {
    let bytes = |t: &DataType| match t {
        DataType::Boolean => 1,
        t => t.primitive_width().unwrap_or(VALUE_BYTES),
    };
    schema.fields().iter().map(|f| bytes(f.data_type())).sum()
}

fn place_aggregate(aggregate: &AggregateExec) -> Option<Arc<dyn ExecutionPlan>> {
    let group = aggregate.group_expr();
    if *aggregate.mode() != AggregateMode::Partial || group.has_grouping_set() || aggregate.limit_options().is_some() {
        return None;
    }
    let (below, input) = (whole(aggregate.input())?, aggregate.input().schema());
    let columns = group.expr().iter().map(|(expr, name)| Some((from_physical(expr, &input)?, name.clone())));
    let group = columns.collect::<Option<Vec<_>>>()?;
    let calls = aggregate.aggr_expr().iter().zip(aggregate.filter_expr());
    let calls = calls.map(|(call, filter)| going_call(call, filter.as_ref(), &input)).collect::<Option<Vec<_>>>()?;
    Some(Arc::new(below.then(Step::Aggregate { group, calls }, &aggregate.schema())))
}

fn going_call(call: &AggregateFunctionExpr, filter: Option<&Arc<dyn PhysicalExpr>>, input: &SchemaRef) -> Option<Call> {
    let function = call.fun();
    let name = function.name();
    let known = plan::functions::aggregate(name).is_some_and(|known| *known == *function);
    if !known || call.is_distinct() || !call.order_bys().is_empty() || call.is_reversed() || COLLECTING.contains(&name)
    {
        return None;
    }
    let filter = match filter {
        Some(filter) => Some(from_physical(filter, input)?),
        None => None,
    };
    Some(Call {
        function: name.to_string(),
        args: call.expressions().iter().map(|arg| from_physical(arg, input)).collect::<Option<_>>()?,
        filter,
        ignore_nulls: call.ignore_nulls(),
        name: call.name().to_string(),
    })
}

/// Each shard picks the first rows of its own; of these the first are taken above.
fn place_first(sort: &SortExec) -> Option<Arc<dyn ExecutionPlan>> {
    let rows = sort.fetch().filter(|rows| *rows <= FIRST_ROWS_MAX)?;
    let (below, input) = (whole(sort.input())?, sort.input().schema());
    let key = |key: &datafusion::physical_expr::PhysicalSortExpr| {
        let (descending, nulls_first) = (key.options.descending, key.options.nulls_first);
        Some(Order { expr: from_physical(&key.expr, &input)?, descending, nulls_first })
    };
    let order = sort.expr().iter().map(key).collect::<Option<Vec<_>>>()?;
    let below = Arc::new(below.then(Step::First { order, rows }, &input));
    let above = SortExec::new(sort.expr().clone(), below).with_fetch(Some(rows));
    Some(Arc::new(above.with_preserve_partitioning(sort.preserve_partitioning())))
}
