//! Work on the rows of a shard that is done in the process that has them: filters, projections, the first half of an
//! aggregate, the first rows.
//!
//! A reader describes it in [`Step`]s over the shard's scan and sends it as [`encode`] writes it; who has the shard runs it
//! ([`Running`]), a piece at a time, with DataFusion's own operators. Expressions and aggregates travel as `plan`'s trees and
//! registered names: they mean the same in every process of one build, whatever the session.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use arrow::array::RecordBatch;
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DataFusionError;
use datafusion::execution::memory_pool::{MemoryPool, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::prelude::SessionConfig;
use flow::{Error, Result, SqlState};
use futures::stream::{self, Stream, StreamExt};
use parking_lot::Mutex;
use plan::error::from_datafusion_error;
use plan::expr::{Expr, bind};
use serde::{Deserialize, Serialize};

use crate::read::{RowIterator, external};

/// Batches of the shard that a piece of work takes: between two pieces it can be ended.
const PIECE_BATCHES: usize = 1;

/// One step of the work, over the columns of the step before it, first those of the scan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Keeps the rows for which it is true.
    Filter(Expr),
    /// Columns with their names.
    Project(Vec<(Expr, String)>),
    /// The groups' columns, then what each call has in between, as DataFusion's partial aggregate gives it. A group may come
    /// more than once. The last step.
    Aggregate { group: Vec<(Expr, String)>, calls: Vec<Call> },
    /// The first rows in this order.
    First { order: Vec<Order>, rows: usize },
    /// No more rows than this.
    Limit(usize),
}

/// One call of an aggregate function, neither distinct nor ordered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Call {
    /// As it is registered.
    pub function: String,
    pub args: Vec<Expr>,
    pub filter: Option<Expr>,
    pub ignore_nulls: bool,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub expr: Expr,
    pub descending: bool,
    pub nulls_first: bool,
}

/// The steps as they travel.
pub(crate) fn encode(steps: &[Step]) -> Result<Vec<u8>> {
    serde_json::to_vec(steps).map_err(|e| Error::internal(format!("the work on a shard cannot be written: {e}")))
}

/// The steps in the words of EXPLAIN; `columns` are those of the scan.
pub(crate) fn describe(steps: &[Step], columns: &Schema) -> String {
    let names =
        |names: Vec<&str>| Schema::new(names.iter().map(|n| Field::new(*n, DataType::Null, true)).collect::<Vec<_>>());
    let mut columns = names(columns.fields().iter().map(|f| f.name().as_str()).collect());
    let mut said = Vec::new();
    for step in steps {
        let list = |exprs: &[(Expr, String)]| -> Vec<String> {
            exprs.iter().map(|(e, _)| e.named(&columns).to_string()).collect()
        };
        match step {
            Step::Filter(predicate) => said.push(format!("filter {}", predicate.named(&columns))),
            Step::Project(exprs) => {
                // That fewer columns go on is no news.
                if !exprs.iter().all(|(e, _)| matches!(e, Expr::Column(_))) {
                    said.push(format!("project {}", list(exprs).join(", ")));
                }
                columns = names(exprs.iter().map(|(_, name)| name.as_str()).collect());
            }
            Step::Aggregate { group, calls } => {
                let mut all = list(group);
                let by = if all.is_empty() { String::new() } else { format!(" by {}", all.join(", ")) };
                all = calls.iter().map(|call| call.describe(&columns)).collect();
                let calls = if all.is_empty() { String::new() } else { format!(": {}", all.join(", ")) };
                said.push(format!("aggregate{by}{calls}"));
            }
            Step::First { order, rows } => {
                let key = |o: &Order| {
                    let nulls = match (o.descending, o.nulls_first) {
                        (false, true) => " NULLS FIRST",
                        (true, false) => " NULLS LAST",
                        _ => "",
                    };
                    format!("{}{}{nulls}", o.expr.named(&columns), if o.descending { " DESC" } else { "" })
                };
                let order: Vec<String> = order.iter().map(key).collect();
                said.push(format!("first {rows} by {}", order.join(", ")));
            }
            Step::Limit(rows) => said.push(format!("limit {rows}")),
        }
    }
    if said.is_empty() { "all rows".to_string() } else { said.join(", then ") }
}

impl Call {
    fn describe(&self, columns: &Schema) -> String {
        let args: Vec<String> = match self.args.as_slice() {
            [Expr::Literal(_)] if self.function == "count" => vec!["*".into()],
            args => args.iter().map(|e| e.named(columns).to_string()).collect(),
        };
        let filter = self.filter.as_ref().map(|f| format!(" FILTER (WHERE {})", f.named(columns)));
        format!("{}({}){}", self.function, args.join(", "), filter.unwrap_or_default())
    }
}

/// What bounds the memory of work.
pub trait Memory: fmt::Debug + Send + Sync {
    /// Takes so many bytes. Errors: `53200` there are not so many, and none were taken.
    fn take(&self, bytes: usize) -> Result<()>;

    /// Takes them even where there are not so many.
    fn take_anyway(&self, bytes: usize);

    fn give_back(&self, bytes: usize);

    /// Bytes that are taken.
    fn taken(&self) -> usize;
}

/// [`Memory`] as DataFusion's operators ask for it.
#[derive(Debug)]
struct Pool(Arc<dyn Memory>);

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl MemoryPool for Pool {
    fn name(&self) -> &str {
        "reads"
    }

    fn grow(&self, _: &MemoryReservation, additional: usize) {
        self.0.take_anyway(additional);
    }

    fn shrink(&self, _: &MemoryReservation, shrink: usize) {
        self.0.give_back(shrink);
    }

    fn try_grow(&self, _: &MemoryReservation, additional: usize) -> Result<(), DataFusionError> {
        // An aggregate that hears exactly this sends what it has so far and goes on.
        self.0.take(additional).map_err(|e| {
            DataFusionError::ResourcesExhausted(e.detail().map_or_else(|| e.message().to_string(), str::to_string))
        })
    }

    fn reserved(&self) -> usize {
        self.0.taken()
    }
}

/// Work that is being done. It needs no runtime: whoever calls [`advance`](Self::advance) does a piece of it.
pub struct Running {
    rows: SendableRecordBatchStream,
    read: Arc<AtomicU64>,
}

impl Running {
    /// Begins `work`, as [`encode`] wrote it, over `rows` with the columns of `schema`. Nothing is read yet.
    ///
    /// Errors: `XX001` it cannot be read, `42883` this build does not have a function of it, `XX000` it does not fit the columns.
    pub fn start(
        work: &[u8],
        schema: &SchemaRef,
        rows: RowIterator,
        batch_rows: usize,
        memory: Arc<dyn Memory>,
    ) -> Result<Running> {
        let steps: Vec<Step> = serde_json::from_slice(work).map_err(|e| {
            Error::new(SqlState::DataCorrupted, "the work on a shard cannot be read").with_detail(e.to_string())
        })?;
        let read = Arc::new(AtomicU64::new(0));
        let shard = Shard {
            schema: Arc::clone(schema),
            rows: Mutex::new(Some(Pieces { rows, left: PIECE_BATCHES, read: Arc::clone(&read) })),
        };
        let start = || -> Result<SendableRecordBatchStream, DataFusionError> {
            let leaf =
                StreamingTableExec::try_new(Arc::clone(schema), vec![Arc::new(shard)], None, vec![], false, None)?;
            let mut plan: Arc<dyn ExecutionPlan> = Arc::new(leaf);
            for step in &steps {
                plan = over(plan, step)?;
            }
            let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(Pool(memory))).build_arc()?;
            let config = SessionConfig::new().with_batch_size(batch_rows.max(1));
            let context = TaskContext::default().with_session_config(config).with_runtime(runtime);
            plan.execute(0, Arc::new(context))
        };
        Ok(Running { rows: start().map_err(from_datafusion_error)?, read })
    }

    /// Does a piece of the work: the next rows that come of it, `None` when it is done, or nothing yet.
    pub fn advance(&mut self) -> Poll<Option<Result<RecordBatch>>> {
        // Nothing in it waits for anybody but its caller.
        let next = self.rows.poll_next_unpin(&mut Context::from_waker(Waker::noop()));
        next.map(|rows| rows.map(|rows| rows.map_err(from_datafusion_error)))
    }

    /// Rows of the shard that have been read.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// The operator of a step.
fn over(input: Arc<dyn ExecutionPlan>, step: &Step) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    let schema = input.schema();
    let bound =
        |expr: &Expr| -> Result<Arc<dyn PhysicalExpr>, DataFusionError> { bind(expr, &schema).map_err(external) };
    Ok(match step {
        Step::Filter(predicate) => Arc::new(FilterExec::try_new(bound(predicate)?, input)?),
        Step::Project(exprs) => {
            let mut columns = Vec::with_capacity(exprs.len());
            for (expr, name) in exprs {
                columns.push(ProjectionExpr { expr: bound(expr)?, alias: name.clone() });
            }
            Arc::new(ProjectionExec::try_new(columns, input)?)
        }
        Step::Aggregate { group, calls } => {
            let mut columns = Vec::with_capacity(group.len());
            for (expr, name) in group {
                columns.push((bound(expr)?, name.clone()));
            }
            let group =
                if columns.is_empty() { PhysicalGroupBy::default() } else { PhysicalGroupBy::new_single(columns) };
            let (mut aggregates, mut filters) = (Vec::with_capacity(calls.len()), Vec::with_capacity(calls.len()));
            for call in calls {
                let function = plan::functions::aggregate(&call.function).ok_or_else(|| {
                    let message = format!("aggregate function {} does not exist", call.function);
                    external(Error::new(SqlState::UndefinedFunction, message))
                })?;
                let args = call.args.iter().map(bound).collect::<Result<Vec<_>, _>>()?;
                let call_over = AggregateExprBuilder::new(function, args)
                    .schema(Arc::clone(&schema))
                    .alias(&call.name)
                    .with_ignore_nulls(call.ignore_nulls)
                    .build()?;
                aggregates.push(Arc::new(call_over));
                filters.push(call.filter.as_ref().map(bound).transpose()?);
            }
            Arc::new(AggregateExec::try_new(AggregateMode::Partial, group, aggregates, filters, input, schema)?)
        }
        Step::First { order, rows } => {
            let mut keys = Vec::with_capacity(order.len());
            for o in order {
                let options = SortOptions { descending: o.descending, nulls_first: o.nulls_first };
                keys.push(PhysicalSortExpr { expr: bound(&o.expr)?, options });
            }
            let Some(keys) = LexOrdering::new(keys) else {
                return Err(external(Error::internal("the first rows in no order")));
            };
            Arc::new(SortExec::new(keys, input).with_fetch(Some(*rows)))
        }
        Step::Limit(rows) => Arc::new(LocalLimitExec::new(input, *rows)),
    })
}

/// The shard's rows, once.
struct Shard {
    schema: SchemaRef,
    rows: Mutex<Option<Pieces>>,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shard")
    }
}

impl PartitionStream for Shard {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = match self.rows.lock().take() {
            Some(pieces) => pieces.map(|rows| rows.map_err(external)).boxed(),
            None => stream::iter([Err(external(Error::internal("work was started twice")))]).boxed(),
        };
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows))
    }
}

/// Rows that make a pause after every piece, so that work on them can be left and gone on with.
struct Pieces {
    rows: RowIterator,
    /// Batches of this piece that are left.
    left: usize,
    read: Arc<AtomicU64>,
}

impl Stream for Pieces {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.left == 0 {
            self.left = PIECE_BATCHES;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.left -= 1;
        let next = self.rows.next();
        if let Some(Ok(rows)) = &next {
            self.read.fetch_add(rows.num_rows() as u64, Ordering::Relaxed);
        }
        Poll::Ready(next)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicUsize;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{Decimal128Type, Int64Type};

    use super::*;

    #[derive(Debug)]
    struct Bounded {
        most: usize,
        taken: AtomicUsize,
    }

    impl Memory for Bounded {
        fn take(&self, bytes: usize) -> Result<()> {
            if self.taken() + bytes > self.most {
                return Err(Error::new(SqlState::OutOfMemory, "out of memory").with_detail("The test has no more."));
            }
            self.take_anyway(bytes);
            Ok(())
        }

        fn take_anyway(&self, bytes: usize) {
            self.taken.fetch_add(bytes, Ordering::Relaxed);
        }

        fn give_back(&self, bytes: usize) {
            self.taken.fetch_sub(bytes, Ordering::Relaxed);
        }

        fn taken(&self) -> usize {
            self.taken.load(Ordering::Relaxed)
        }
    }

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true), Field::new("v", DataType::Int64, true)]))
    }

    fn shard(batches: i64) -> RowIterator {
        Box::new((0..batches).map(|batch| -> Result<RecordBatch> {
            let k: Int64Array = (0..1000).map(|row| (batch * 1000 + row) % 5000).collect();
            let v: Int64Array = (0..1000_i64).map(|row| (row % 3 > 0).then_some(row)).collect();
            Ok(RecordBatch::try_new(schema(), vec![Arc::new(k), Arc::new(v)])?)
        }))
    }

    fn run(steps: &[Step], batches: i64, most: usize) -> (Result<Vec<RecordBatch>>, usize, u64) {
        let memory = Arc::new(Bounded { most, taken: AtomicUsize::new(0) });
        let (mut given, mut pieces) = (Vec::new(), 0);
        let work = encode(steps).unwrap();
        let mut running = Running::start(&work, &schema(), shard(batches), 1000, Arc::clone(&memory) as _).unwrap();
        let outcome = loop {
            match running.advance() {
                Poll::Pending => pieces += 1,
                Poll::Ready(Some(Ok(rows))) => given.push(rows),
                Poll::Ready(Some(Err(error))) => break Err(error),
                Poll::Ready(None) => break Ok(given),
            }
        };
        let read = running.read();
        drop(running);
        assert_eq!(memory.taken(), 0);
        (outcome, pieces, read)
    }

    fn sums() -> Vec<Step> {
        let call = |function: &str, arg| Call {
            function: function.into(),
            args: vec![arg],
            filter: None,
            ignore_nulls: false,
            name: function.into(),
        };
        let group = vec![(Expr::Column(0), "k".to_string())];
        vec![Step::Aggregate { group, calls: vec![call("count", Expr::Column(1)), call("sum", Expr::Column(1))] }]
    }

    /// Group to count and sum, however often a group comes.
    fn together(batches: &[RecordBatch]) -> BTreeMap<i64, (i64, i128)> {
        let mut all: BTreeMap<i64, (i64, i128)> = BTreeMap::new();
        for batch in batches {
            let number = |c: usize, row| batch.column(c).as_primitive::<Int64Type>().value(row);
            for row in 0..batch.num_rows() {
                let group = all.entry(number(0, row)).or_default();
                group.0 += number(1, row);
                group.1 += batch.column(3).as_primitive::<Decimal128Type>().value(row);
            }
        }
        all
    }

    #[test]
    fn work_is_done_in_pieces_and_with_less_memory_sends_groups_more_than_once() {
        let (all, pieces, read) = run(&sums(), 40, usize::MAX);
        let all = all.unwrap();
        assert_eq!(all.iter().map(RecordBatch::num_rows).sum::<usize>(), 5000);
        assert!(pieces >= 39 && read == 40_000, "{pieces} pieces, {read} rows");
        let (in_parts, _, _) = run(&sums(), 40, 300_000);
        let in_parts = in_parts.unwrap();
        assert!(in_parts.iter().map(RecordBatch::num_rows).sum::<usize>() > 5000);
        assert_eq!(together(&in_parts), together(&all));
        let first = Step::First {
            order: vec![Order { expr: Expr::Column(1), descending: true, nulls_first: false }],
            rows: 900,
        };
        let (error, _, _) = run(&[first], 40, 1000);
        assert_eq!(error.unwrap_err().state(), SqlState::OutOfMemory);
    }

    #[test]
    fn bytes_that_are_no_work_are_refused() {
        for work in [&b"[{"[..], b"{}", b"[{\"Limit\":-1}]"] {
            let memory = Arc::new(Bounded { most: 0, taken: AtomicUsize::new(0) });
            let error = Running::start(work, &schema(), shard(1), 1000, memory).err().unwrap();
            assert_eq!(error.state(), SqlState::DataCorrupted);
        }
        let memory = Arc::new(Bounded { most: 0, taken: AtomicUsize::new(0) });
        let work = encode(&[Step::Filter(Expr::Column(9))]).unwrap();
        assert!(Running::start(&work, &schema(), shard(1), 1000, memory).is_err());
    }

    #[test]
    fn explain_reads_like_the_query() {
        let steps = [
            Step::Project(vec![(Expr::Column(1), "w".into()), (Expr::Column(0), "k".into())]),
            Step::Project(vec![(Expr::Column(0), "w".into()), (Expr::Not(Box::new(Expr::Column(1))), "k".into())]),
            Step::Filter(Expr::Is { negated: true, what: plan::expr::Is::Null, expr: Box::new(Expr::Column(0)) }),
            Step::First { order: vec![Order { expr: Expr::Column(0), descending: true, nulls_first: false }], rows: 3 },
            Step::Limit(2),
        ];
        let said = describe(&steps, &schema());
        assert_eq!(
            said,
            "project w, NOT k, then filter w IS NOT NULL, then first 3 by w DESC NULLS LAST, then limit 2"
        );
        assert_eq!(describe(&sums(), &schema()), "aggregate by k: count(v), sum(v)");
    }
}
