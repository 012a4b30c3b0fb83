//! SUBSCRIBE: the rows of a relation, then its changes, epoch by epoch.
//!
//! A subscription starts at an epoch *e* that its relation's log of changes reaches back to: the snapshot is read at *e*, the
//! changes after it come from the log ([`state::Follower`]), each epoch netted, sorted and whole. So the rows up to any
//! epoch, added up, are what SELECT gives at that epoch.

use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use arrow::array::new_null_array;
use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, StringViewArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use catalog::{Catalog, Relation, RelationKind};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::LogicalPlan;
use flow::keys::KeyEncoder;
use flow::{ChangeBatch, Diff, Epoch, Error, RelationId, Result, SqlState};
use futures::{StreamExt, TryStreamExt};
use query::{ReadView, RelationRows};
use runtime::ops::consolidate;
use sql::planner::Settings;
use sql::statement::{Subscribe, SubscribeFrom};
use sql::{Planner, QueryPlan};
use state::{EpochChanges, Followed, RelationSnapshot, RelationStore};
use tokio::sync::watch;

use super::names::scanned;
use super::read::{conform, values};
use super::{Outcome, Rows, Session, planning};
use crate::engine::Engine;
use crate::subscriptions::{CHANGES_BYTES_MAX, Ended, News, Seat, Why};

/// Rows of one batch.
const BATCH_ROWS: usize = 8192;
/// Bytes of changes that are taken out of the log at once; one epoch may be more.
const READ_BYTES: usize = 1 << 20;

/// A SUBSCRIBE that has been planned.
pub struct SubscribePlan {
    relation: Arc<Relation>,
    /// The columns of the result.
    pub schema: SchemaRef,
    /// What is asked of the relation.
    query: QueryPlan,
    /// Whether the query is more than the relation as it is.
    computes: bool,
    as_of: Option<Epoch>,
    snapshot: bool,
    progress: bool,
}

impl SubscribePlan {
    pub fn parameters(&self) -> (&[DataType], &[Option<u32>]) {
        (&self.query.parameters, &self.query.parameter_oids)
    }
}

impl Session {
    pub(super) fn plan_subscribe(
        &self,
        subscribe: &Subscribe,
        source: &str,
        declared: &[Option<DataType>],
        catalog: &Catalog,
    ) -> Result<SubscribePlan> {
        let at = |error: Error| match error.position() {
            None if subscribe.position > 0 => error.with_position(subscribe.position),
            _ => error,
        };
        let (query, plain) = match &subscribe.from {
            SubscribeFrom::Relation(name) => {
                let scope = self.scope();
                let relation = catalog.resolve(&scope.database, &scope.search_path, &super::define::parts(name));
                let relation = relation.map_err(at)?;
                if relation.kind() == RelationKind::Sink {
                    return Err(at(Error::new(
                        SqlState::WrongObjectType,
                        format!("\"{}\" is a sink, which has no rows of its own", relation.name),
                    )
                    .with_hint("Subscribe to what it reads.")));
                }
                let text = format!("SELECT * FROM {name}");
                let every = sql::parse_query(&text)?;
                let query = self.plan_query(&every, &text, &[], catalog);
                let plain = matches!(relation.kind(), RelationKind::Table | RelationKind::MaterializedView);
                (query.map_err(at)?, plain)
            }
            SubscribeFrom::Query(query) => {
                // As for a view: what it says may not depend on when it is asked.
                let names = self.names(catalog, None);
                let planner = Planner::new(&names, Settings::standing(self.time_zone()))?;
                (planner.query(query, source, declared)?, false)
            }
        };
        let relation = match query.relations.as_slice() {
            [one] => catalog.relation(*one).cloned(),
            _ => None,
        };
        // A plain view counts among what is read, with what it reads.
        let scanned = scanned(&query.plan)?;
        let relation = match (relation, scanned.len()) {
            (Some(relation), 1) if scanned.contains(&relation.oid) => relation,
            (_, 1) => {
                let found = scanned.first().and_then(|oid| catalog.relation(*oid)).cloned();
                found.ok_or_else(|| at(stateful("the query reads no relation")))?
            }
            (_, n) => return Err(at(stateful(&format!("the query reads {n} relations")))),
        };
        if relation.kind() == RelationKind::Source {
            return Err(at(Error::unsupported(format!("SUBSCRIBE to source \"{}\" is not supported", relation.name))
                .with_detail("A source keeps no rows.")
                .with_hint(format!(
                    "Create a view and subscribe to it: CREATE MATERIALIZED VIEW v AS SELECT * FROM {}.",
                    sql::names::quote(&relation.name)
                ))));
        }
        if !plain {
            stateless(&query.plan).map_err(at)?;
        }
        let mut fields = vec![Field::new("epoch", DataType::Int64, true), Field::new("op", DataType::Utf8View, true)];
        fields.extend(query.schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)));
        Ok(SubscribePlan {
            relation,
            schema: Arc::new(Schema::new(fields)),
            query,
            computes: !plain,
            as_of: subscribe.as_of.map(Epoch),
            snapshot: subscribe.snapshot,
            progress: subscribe.progress,
        })
    }

    /// Starts a subscription; the rows are those of SUBSCRIBE itself, of a cursor or of COPY.
    pub(super) async fn run_subscribe(&mut self, plan: &SubscribePlan, parameters: &[ArrayRef]) -> Result<Outcome> {
        let wrote = self.uncommitted().is_some_and(|writes| !writes.is_empty());
        if wrote || self.private().is_some() {
            return Err(Error::new(
                SqlState::ActiveSqlTransaction,
                "SUBSCRIBE cannot follow changes in the same transaction",
            )
            .with_detail("A subscription shows what is committed, not what its own transaction has changed.")
            .with_hint("COMMIT first."));
        }
        let engine = Arc::clone(&self.engine);
        let oid = plan.relation.oid;
        if self.table(oid).is_none() {
            engine.wait_ready(oid).await?;
        }
        let store = match engine.tables_at(self.planned, &BTreeSet::from([oid])) {
            Some(tables) => match tables.get(&oid) {
                Some(table) => Arc::clone(&table.store) as Arc<dyn RelationStore>,
                None => engine.view_store(oid)?,
            },
            None => return Err(self.has_changed()),
        };
        let filter = match plan.computes {
            false => None,
            true => {
                let state = self.statement_state();
                let bound = plan.query.bind(values(parameters)?)?;
                Some(Filter { plan: query::optimize(&state, &bound)?, state, schema: Arc::clone(&plan.query.schema) })
            }
        };
        let now_us = engine.config.time.now_us();
        let news_before = engine.clock.completed();
        let follower = Arc::clone(&store).follow(&engine.clock.feeds.room).await?;
        let seat = engine.clock.feeds.subscribe(oid, follower, self.pid, &self.user, now_us)?;
        // What was written before the log began is only in the snapshot, so that must be of a later epoch.
        if store.changes().since() > news_before {
            engine.flush().await?;
        }
        let seen = self.written.max(engine.clock.acknowledged()).max(store.changes().since());
        engine.clock.wait_completed(seen).await?;
        let pin = engine.pin();
        let start = plan.as_of.unwrap_or(pin.epoch());
        if start > pin.epoch() {
            return Err(Error::new(SqlState::InvalidParameterValue, format!("epoch {start} is not complete yet"))
                .with_detail(format!("The newest complete epoch is {}.", pin.epoch()))
                .with_hint("AS OF EPOCH takes an epoch that a subscription has shown."));
        }
        if !seat.reader.follower.start_after(start) {
            let oldest = store.changes().since();
            return Err(Error::new(
                SqlState::SnapshotTooOld,
                format!("changes after epoch {start} are not kept any more"),
            )
            .with_detail(format!("The oldest epoch that \"{}\" can go on from is {oldest}.", plan.relation.name))
            .with_hint(
                "Subscribe without AS OF EPOCH, which begins with a snapshot; CREATE MATERIALIZED VIEW … WITH \
                     (change_retention = '10 minutes') keeps changes for so long.",
            ));
        }
        if plan.snapshot {
            let snapshot = Arc::clone(&store).at(start)?;
            let rows: Rows = match &filter {
                // Its scans may be opened when the first rows are asked for, or later: the epoch is kept until the last.
                Some(filter) => {
                    let rows = filter.rows(oid, RelationRows::Snapshot(snapshot)).await?;
                    let held = futures::stream::unfold((rows, pin), |(mut rows, pin)| async move {
                        Some((rows.next().await?, (rows, pin)))
                    });
                    Box::pin(held)
                }
                // The scan holds its blocks, and the log what comes after: nothing needs the epoch from here on.
                None => snapshot.scan(None, BATCH_ROWS)?,
            };
            *seat.reader.snapshot.lock() = Some(rows);
        }
        let news = seat.feed.news();
        if !engine.is_stored_in(oid, &store) {
            return Err(self.has_changed());
        }
        seat.reader.epoch.store(start.0, Ordering::Relaxed);
        let types: Vec<DataType> = plan.query.schema.fields().iter().map(|f| f.data_type().clone()).collect();
        let subscription = Subscription {
            completed: engine.clock.watch_completed(),
            relation: Arc::clone(&plan.relation),
            stored: Arc::clone(store.schema()),
            schema: Arc::clone(&plan.schema),
            encoder: KeyEncoder::new(&types)?,
            columns: Arc::clone(&plan.query.schema),
            in_snapshot: plan.snapshot,
            progress: plan.progress,
            told: None,
            epoch: start,
            changes: VecDeque::new(),
            rest: None,
            over: false,
            filter,
            engine,
            seat,
            news,
        };
        let rows = futures::stream::unfold(subscription, |mut subscription| async move {
            if subscription.over {
                return None;
            }
            let next = subscription.next().await;
            subscription.over = next.is_err();
            Some((next, subscription))
        });
        Ok(Outcome::Rows { schema: Arc::clone(&plan.schema), rows: Box::pin(rows), tag: "SUBSCRIBE", counted: true })
    }

    /// The rows of [`run_subscribe`](Self::run_subscribe).
    pub(super) async fn subscribed(
        &mut self,
        plan: &SubscribePlan,
        parameters: &[ArrayRef],
    ) -> Result<(SchemaRef, Rows)> {
        match self.run_subscribe(plan, parameters).await? {
            Outcome::Rows { schema, rows, .. } => Ok((schema, rows)),
            _ => Err(Error::internal("a subscription without rows")),
        }
    }

    /// [`plan_subscribe`](Self::plan_subscribe) for a statement that plans when it runs.
    pub(super) fn plan_subscribe_now(&self, subscribe: &Subscribe, source: &str) -> Result<SubscribePlan> {
        let catalog = self.catalog();
        planning::compute(planning::is_long(source), || self.plan_subscribe(subscribe, source, &[], &catalog))
    }
}

/// The refusal of a query whose changes do not follow from those of one relation, row by row.
fn stateful(detail: &str) -> Error {
    Error::unsupported("SUBSCRIBE to this query is not supported")
        .with_detail(format!(
            "Only columns, expressions and a filter over one relation can be subscribed to; {detail}."
        ))
        .with_hint("Create a materialized view of the query and subscribe to that.")
}

/// Whether each row of the result comes from one row of the relation.
fn stateless(plan: &LogicalPlan) -> Result<()> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => {}
            LogicalPlan::TableScan(scan) if scan.fetch.is_none() => {}
            other => {
                let line = other.display().to_string();
                found.get_or_insert_with(|| line.split([':', ' ', '(']).next().unwrap_or_default().to_lowercase());
            }
        }
        let volatile = node.expressions().iter().any(|e| e.is_volatile());
        if volatile {
            found.get_or_insert_with(|| "a volatile function".to_string());
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(plan::error::from_datafusion_error)?;
    match found {
        None => Ok(()),
        Some(what) => Err(stateful(&format!("the query has: {what}"))),
    }
}

/// A stateless query over rows of one relation.
struct Filter {
    state: SessionState,
    plan: LogicalPlan,
    schema: SchemaRef,
}

/// One relation's rows, given.
struct OneRelation {
    relation: RelationId,
    rows: Given,
}

enum Given {
    Snapshot(Arc<dyn RelationSnapshot>),
    Batch(RecordBatch),
}

impl ReadView for OneRelation {
    fn rows(&self, relation: RelationId) -> Result<RelationRows> {
        if relation != self.relation {
            return Err(Error::internal("a subscription reads a relation that it does not follow"));
        }
        Ok(match &self.rows {
            Given::Snapshot(snapshot) => RelationRows::Snapshot(Arc::clone(snapshot)),
            Given::Batch(batch) => RelationRows::Batches(vec![batch.clone()]),
        })
    }
}

impl Filter {
    async fn rows(&self, relation: RelationId, rows: RelationRows) -> Result<Rows> {
        let rows = match rows {
            RelationRows::Snapshot(snapshot) => Given::Snapshot(snapshot),
            RelationRows::Batches(mut batches) => match batches.pop() {
                Some(batch) => Given::Batch(batch),
                None => return Ok(Box::pin(futures::stream::empty())),
            },
            _ => return Err(Error::internal("a subscription reads rows of a transaction")),
        };
        let view = Arc::new(OneRelation { relation, rows });
        let (_, rows) = query::execute_optimized(&self.state, &self.plan, view).await?;
        let schema = Arc::clone(&self.schema);
        Ok(Box::pin(rows.map(move |batch| batch.and_then(|b| conform(b, &schema)))))
    }

    /// What the query makes of a net change.
    async fn change(&self, relation: RelationId, change: &ChangeBatch) -> Result<ChangeBatch> {
        let mut parts = Vec::new();
        for (deleted, diff) in [(true, Diff::Delete), (false, Diff::Insert)] {
            let indices = (0..change.num_rows()).flat_map(|row| {
                let weight = change.weight(row);
                let copies = if (weight < 0) == deleted { weight.unsigned_abs() } else { 0 };
                std::iter::repeat_n(row as u32, usize::try_from(copies).unwrap_or(usize::MAX))
            });
            let indices = UInt32Array::from_iter_values(indices);
            if indices.is_empty() {
                continue;
            }
            let rows = change.take(&indices)?.rows;
            let rows: Vec<RecordBatch> =
                self.rows(relation, RelationRows::Batches(vec![rows])).await?.try_collect().await?;
            parts.extend(rows.into_iter().map(|rows| ChangeBatch::new(rows, diff.clone())));
        }
        consolidate(parts, &nullable(&self.schema))
    }
}

/// The schema that [`conform`] gives.
fn nullable(schema: &SchemaRef) -> SchemaRef {
    Arc::new(Schema::new(schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect::<Vec<_>>()))
}

/// The net change of one epoch in the order in which it is handed out, from `next` on.
struct Sorted {
    epoch: Epoch,
    rows: RecordBatch,
    /// (row, whether it goes, copies that are left)
    order: Vec<(u32, bool, u64)>,
    next: usize,
}

/// A subscription that is being read.
struct Subscription {
    engine: Arc<Engine>,
    relation: Arc<Relation>,
    seat: Seat,
    news: watch::Receiver<News>,
    completed: watch::Receiver<Epoch>,
    /// Of the relation's store.
    stored: SchemaRef,
    schema: SchemaRef,
    /// Without `epoch` and `op`.
    columns: SchemaRef,
    encoder: KeyEncoder,
    filter: Option<Filter>,
    in_snapshot: bool,
    progress: bool,
    /// The epoch of the last progress row.
    told: Option<Epoch>,
    /// Everything up to this epoch has been taken out of the log.
    epoch: Epoch,
    changes: VecDeque<EpochChanges>,
    rest: Option<Sorted>,
    over: bool,
}

impl Subscription {
    /// The next rows. Waits for them; dropping the future loses nothing.
    async fn next(&mut self) -> Result<RecordBatch> {
        loop {
            if self.in_snapshot {
                match self.snapshot_rows().await {
                    Some(rows) => {
                        let rows = rows?;
                        if rows.num_rows() > 0 {
                            let op = StringViewArray::from_iter_values(std::iter::repeat_n("insert", rows.num_rows()));
                            return self.stamped(self.epoch, op, rows.columns().to_vec());
                        }
                    }
                    None if self.seat.reader.snapshot.lock().take().is_none() => {
                        return Err(match &self.news.borrow().ended {
                            Some(ended) => self.ended(ended),
                            None => self.behind(self.seat.feed.log.since()),
                        });
                    }
                    None => self.in_snapshot = false,
                }
                continue;
            }
            if let Some(rest) = &mut self.rest {
                let (epoch, op, columns) = rest.take()?;
                if rest.next == rest.order.len() {
                    self.rest = None;
                }
                return self.stamped(epoch, op, columns);
            }
            if let Some(changes) = self.changes.front() {
                self.rest = self.sorted(changes).await?;
                self.changes.pop_front();
                continue;
            }
            self.seat.reader.epoch.store(self.epoch.0, Ordering::Relaxed);
            if self.progress && self.told != Some(self.epoch) {
                self.told = Some(self.epoch);
                let op = StringViewArray::from_iter_values(["progress"]);
                let nulls = self.columns.fields().iter().map(|f| new_null_array(f.data_type(), 1)).collect();
                return self.stamped(self.epoch, op, nulls);
            }
            // The end is noted before any later epoch is complete, so it must be looked for after.
            let completed = *self.completed.borrow_and_update();
            let ended = self.news.borrow_and_update().ended.clone();
            let until = ended.as_ref().map_or(completed, |ended| ended.until.min(completed));
            if until > self.epoch {
                match self.seat.reader.follower.read(until, READ_BYTES) {
                    Followed::Behind(gone) => return Err(self.behind(gone)),
                    Followed::Changes { epochs, more } => {
                        self.epoch = match epochs.last() {
                            Some(last) if more => last.epoch,
                            _ => until,
                        };
                        self.changes.extend(epochs);
                        continue;
                    }
                }
            }
            if let Some(ended) = ended {
                return Err(self.ended(&ended));
            }
            let closed = match self.progress {
                false => self.news.changed().await.is_err(),
                true => tokio::select! {
                    news = self.news.changed() => news.is_err(),
                    completed = self.completed.changed() => completed.is_err(),
                },
            };
            if closed {
                return Err(crate::clock::shutting_down());
            }
        }
    }

    /// The next rows of the snapshot. `None` leaves what is left of it in its place, which is nothing, if it has been
    /// read to its end, and no place when it has been taken away.
    async fn snapshot_rows(&self) -> Option<Result<RecordBatch>> {
        poll_fn(|context| match &mut *self.seat.reader.snapshot.lock() {
            Some(rows) => rows.poll_next_unpin(context),
            None => Poll::Ready(None),
        })
        .await
    }

    /// The net change of an epoch, deletions first, by the bytes of the rows; `None` when it nets to nothing.
    async fn sorted(&self, changes: &EpochChanges) -> Result<Option<Sorted>> {
        let mut net = consolidate(changes.batches.clone(), &self.stored)?;
        if let Some(filter) = &self.filter {
            net = filter.change(self.relation.oid, &net).await?;
        }
        if net.num_rows() == 0 {
            return Ok(None);
        }
        let keys = self.encoder.encode(conform(net.rows.clone(), &self.columns)?.columns())?;
        let mut order: Vec<(u32, bool, u64)> = (0..net.num_rows())
            .map(|row| (row as u32, net.weight(row) < 0, net.weight(row).unsigned_abs()))
            .filter(|(_, _, copies)| *copies > 0)
            .collect();
        order.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| keys.row(a.0 as usize).cmp(&keys.row(b.0 as usize))));
        Ok((!order.is_empty()).then_some(Sorted { epoch: changes.epoch, rows: net.rows, order, next: 0 }))
    }

    /// Rows of the result.
    fn stamped(&self, epoch: Epoch, op: StringViewArray, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
        let rows = op.len();
        self.seat.reader.rows.fetch_add(rows as u64, Ordering::Relaxed);
        let epoch = Int64Array::from_value(i64::try_from(epoch.0).unwrap_or(i64::MAX), rows);
        let mut all: Vec<ArrayRef> = vec![Arc::new(epoch), Arc::new(op)];
        all.extend(columns);
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(unnamed(&all), all, &options)?;
        conform(batch, &self.schema)
    }

    fn behind(&self, gone: Epoch) -> Error {
        Error::new(
            SqlState::OutOfMemory,
            format!("the subscription to \"{}\" has fallen behind", self.relation.name),
        )
        .with_detail(format!(
            "It has read up to epoch {}; of what came then only changes after epoch {gone} fit into the {} MiB that are kept.",
            self.seat.reader.epoch.load(Ordering::Relaxed),
            CHANGES_BYTES_MAX >> 20
        ))
        .with_hint(format!(
            "Read faster, or subscribe to less. Start again with a snapshot; AS OF EPOCH can go on from epoch {gone} or later."
        ))
    }

    fn ended(&self, ended: &Ended) -> Error {
        let (noun, name) = (self.relation.kind().noun(), &self.relation.name);
        let gone = |what: &str, hint: &str| {
            Error::new(
                SqlState::ObjectNotInPrerequisiteState,
                format!("the subscription has ended: {noun} \"{name}\" has been {what}"),
            )
            .with_detail(format!("Changes up to epoch {} have been sent.", ended.until))
            .with_hint(hint)
        };
        match &ended.why {
            Why::Dropped => gone("dropped or replaced", "Subscribe to another relation, or again once it is there."),
            Why::Altered => gone("altered", "Subscribe again to get its new columns."),
            Why::Failed(cause) => self.engine.failed_view(self.relation.oid, cause),
            Why::ShuttingDown => crate::clock::shutting_down(),
        }
    }
}

/// A schema for columns whose names do not matter.
fn unnamed(columns: &[ArrayRef]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|c| Field::new("", c.data_type().clone(), true)).collect::<Vec<_>>()))
}

impl Sorted {
    /// The next rows: their epoch, what happened to each, their columns.
    fn take(&mut self) -> Result<(Epoch, StringViewArray, Vec<ArrayRef>)> {
        let (mut indices, mut ops) = (Vec::new(), Vec::new());
        while indices.len() < BATCH_ROWS
            && let Some((row, goes, copies)) = self.order.get_mut(self.next)
        {
            let now = (*copies).min((BATCH_ROWS - indices.len()) as u64);
            indices.resize(indices.len() + now as usize, *row);
            ops.resize(indices.len(), if *goes { "delete" } else { "insert" });
            *copies -= now;
            if *copies == 0 {
                self.next += 1;
            }
        }
        let indices = UInt32Array::from(indices);
        let columns = self.rows.columns().iter().map(|c| take(c.as_ref(), &indices, None)).collect::<Result<_, _>>()?;
        Ok((self.epoch, StringViewArray::from_iter_values(ops), columns))
    }
}
