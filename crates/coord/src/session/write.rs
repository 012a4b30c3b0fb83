//! DML: INSERT, UPDATE, DELETE, TRUNCATE, and the rows of COPY.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, interleave_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Int64Type, Schema, SchemaRef};
use catalog::{Catalog, OnConflict, Relation};
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::datasource::MemTable;
use datafusion::logical_expr::LogicalPlan;
use flow::keys::KeyEncoder;
use flow::{Error, RelationId, Result, SqlState};
use hashbrown::HashSet;
use sql::statement::{Name, Parsed, Statement};
use sql::{ConflictPlan, ConflictUpdatePlan, DeletePlan, InsertPlan, Joined, Planner, Returning, UpdatePlan};
use tokio::sync::OwnedMutexGuard;

use super::names::{scanned, writable};
use super::read::{conform, values};
use super::{Outcome, Session, rows_outcome};
use crate::table::{Mark, Refused, Table, TableWrites};

/// A planned INSERT, UPDATE or DELETE.
pub struct WritePlan {
    relation: Arc<Relation>,
    kind: WriteKind,
}

enum WriteKind {
    /// The conflict behaviour holds unless the plan says DO UPDATE.
    Insert(InsertPlan, OnConflict),
    Update(UpdatePlan),
    Delete(DeletePlan),
}

impl WritePlan {
    fn returning(&self) -> Option<&Returning> {
        match &self.kind {
            WriteKind::Insert(plan, _) => plan.returning.as_ref(),
            WriteKind::Update(plan) => plan.returning.as_ref(),
            WriteKind::Delete(plan) => plan.returning.as_ref(),
        }
    }

    pub fn returning_schema(&self) -> Option<SchemaRef> {
        self.returning().map(|r| Arc::clone(&r.schema))
    }

    pub fn parameters(&self) -> &[DataType] {
        match &self.kind {
            WriteKind::Insert(plan, _) => &plan.parameters,
            WriteKind::Update(plan) => &plan.parameters,
            WriteKind::Delete(plan) => &plan.parameters,
        }
    }

    pub fn parameter_oids(&self) -> &[Option<u32>] {
        match &self.kind {
            WriteKind::Insert(plan, _) => &plan.parameter_oids,
            WriteKind::Update(plan) => &plan.parameter_oids,
            WriteKind::Delete(plan) => &plan.parameter_oids,
        }
    }

    fn bind(&self, values: &[ScalarValue]) -> Result<LogicalPlan> {
        match &self.kind {
            WriteKind::Insert(plan, _) => plan.bind(values),
            WriteKind::Update(plan) => plan.bind(values),
            WriteKind::Delete(plan) => plan.bind(values),
        }
    }

    fn tag(&self) -> &'static str {
        match self.kind {
            WriteKind::Insert(..) => "INSERT 0",
            WriteKind::Update(_) => "UPDATE",
            WriteKind::Delete(_) => "DELETE",
        }
    }
}

impl Session {
    pub(super) fn plan_write(
        &self,
        parsed: &Parsed,
        declared: &[Option<DataType>],
        catalog: &Catalog,
    ) -> Result<WritePlan> {
        let system = self.system_catalog(catalog);
        let names = self.names(catalog, Some(&system));
        let planner = Planner::new(&names, self.planning())?;
        let source = parsed.source.as_ref();
        let find = |table: &sql::Relation| {
            catalog.relation(table.id).cloned().ok_or_else(|| Error::internal("a planned table is gone"))
        };
        match &parsed.statement {
            Statement::Insert(insert) => {
                let plan = planner.insert(insert, source, declared)?;
                let relation = find(&plan.table)?;
                let declared_conflict = relation.table().map_or(OnConflict::Error, |t| t.on_conflict);
                let on_conflict = match plan.on_conflict {
                    Some(ConflictPlan::DoNothing) => OnConflict::DoNothing,
                    Some(ConflictPlan::Update(_)) => OnConflict::Error,
                    None => declared_conflict,
                };
                Ok(WritePlan { relation, kind: WriteKind::Insert(plan, on_conflict) })
            }
            Statement::Update(update) => {
                let plan = planner.update(update, source, declared)?;
                Ok(WritePlan { relation: find(&plan.table)?, kind: WriteKind::Update(plan) })
            }
            Statement::Delete(delete) => {
                let plan = planner.delete(delete, source, declared)?;
                Ok(WritePlan { relation: find(&plan.table)?, kind: WriteKind::Delete(plan) })
            }
            _ => Err(Error::internal("not a write")),
        }
    }

    /// The sink that writes into a table, as this session sees it.
    pub(super) fn sink_into(&self, table: RelationId) -> Option<Arc<Relation>> {
        let into = |r: &&Arc<Relation>| matches!(&r.definition, catalog::Definition::Sink(s) if s.into == Some(table));
        self.catalog().relations().find(into).cloned()
    }

    fn refuse_sink_target(&self, relation: &Relation) -> Result<()> {
        match self.sink_into(relation.oid) {
            None => Ok(()),
            Some(sink) => Err(Error::new(
                SqlState::ObjectNotInPrerequisiteState,
                format!("table \"{}\" is written by sink \"{}\"", relation.name, sink.name),
            )
            .with_hint("Drop the sink first, or change what it reads.")),
        }
    }

    pub(super) async fn run_write(&mut self, write: &WritePlan, parameters: &[ArrayRef]) -> Result<Outcome> {
        self.refuse_sink_target(&write.relation)?;
        let values = values(parameters)?;
        self.begin_single();
        let outcome = self.write_until_free(write, &values).await;
        self.end_single(outcome.is_ok()).await?;
        outcome
    }

    /// Runs a write again until nobody else's lock is in its way.
    async fn write_until_free(&mut self, write: &WritePlan, values: &[ScalarValue]) -> Result<Outcome> {
        let relation = &write.relation;
        let table = self.table(relation.oid).ok_or_else(|| self.has_changed())?;
        loop {
            let mark = self.writes()?.mark();
            let latch = table.latch().await;
            match self.write(&table, write, values).await {
                Ok(outcome) => return Ok(outcome),
                Err(refused) => self.give_way(&table, &mark, latch, refused).await?,
            }
        }
    }

    /// Takes back what a refused statement did, and waits for the lock in its way. A failed one has changed nothing, whatever
    /// becomes of its transaction.
    async fn give_way(
        &mut self,
        table: &Table,
        mark: &Mark,
        latch: OwnedMutexGuard<()>,
        refused: Refused,
    ) -> Result<()> {
        let met = table.changed();
        self.writes()?.undo(mark);
        drop(latch);
        match refused {
            // A client that tries again takes a key that exists for its own first try: the row that has it must be durable.
            Refused::Failed(error) if error.state() == SqlState::UniqueViolation => {
                self.engine.clock.wait_durable(met).await?;
                Err(error)
            }
            Refused::Failed(error) => Err(error),
            Refused::Busy(busy) => self.wait(busy).await,
        }
    }

    /// Begins to write a table, which must still be the one that the statement was planned for.
    fn open_table(&mut self, table: &Arc<Table>, relation: &Arc<Relation>) -> Result<(), Refused> {
        self.writes()?.open(table, relation)?;
        // Nobody can change the table from here on, but somebody may have until now.
        match self.table(relation.oid) {
            Some(now) if Arc::ptr_eq(&now, table) => Ok(()),
            _ => Err(self.has_changed().into()),
        }
    }

    /// One attempt of a write, under the latch of its table.
    async fn write(
        &mut self,
        table: &Arc<Table>,
        write: &WritePlan,
        values: &[ScalarValue],
    ) -> Result<Outcome, Refused> {
        let relation = &write.relation;
        self.open_table(table, relation)?;
        let rows = self.run_at_head(write.bind(values)?, relation.oid).await?;
        let schema = Arc::clone(table.store.schema());
        let oid = relation.oid;
        let width = relation.columns.len();
        // The affected rows, then what was joined to them.
        let affected: Vec<Vec<RecordBatch>> = match &write.kind {
            WriteKind::Insert(InsertPlan { on_conflict: Some(ConflictPlan::Update(update)), .. }, _) => {
                vec![self.upsert(table, write, update, rows, values).await?]
            }
            WriteKind::Insert(_, on_conflict) => {
                let mut inserted = Vec::new();
                for rows in rows {
                    let rows = conform(rows, &schema)?;
                    let kept = self.writes()?.insert(oid, rows.clone(), *on_conflict)?;
                    let all = kept.len() == rows.num_rows();
                    inserted.push(if all { rows } else { take_record_batch(&rows, &UInt32Array::from(kept))? });
                }
                vec![inserted]
            }
            WriteKind::Delete(plan) => {
                let rows = distinct_targets(rows, relation, plan.joined.as_ref())?;
                let old: Vec<usize> = (0..width).collect();
                let mut deleted = Vec::new();
                for rows in &rows {
                    let rows = conform(rows.project(&old)?, &schema)?;
                    self.writes()?.delete(oid, rows.clone())?;
                    deleted.push(rows);
                }
                with_joined(deleted, &rows, plan.joined.as_ref())?
            }
            WriteKind::Update(plan) => {
                let rows = distinct_targets(rows, relation, plan.joined.as_ref())?;
                let (old, new): (Vec<usize>, Vec<usize>) = (0..2 * width).partition(|c| *c < width);
                for rows in &rows {
                    self.writes()?.delete(oid, conform(rows.project(&old)?, &schema)?)?;
                }
                let mut updated = Vec::new();
                for rows in &rows {
                    let rows = conform(rows.project(&new)?, &schema)?;
                    self.writes()?.insert(oid, rows.clone(), OnConflict::Error)?;
                    updated.push(rows);
                }
                with_joined(updated, &rows, plan.joined.as_ref())?
            }
        };
        let count: usize = affected[0].iter().map(RecordBatch::num_rows).sum();
        let Some(returning) = write.returning() else {
            return Ok(Outcome::Done(format!("{} {count}", write.tag())));
        };
        let mut sources: Vec<Arc<dyn TableProvider>> = Vec::with_capacity(affected.len());
        let single = affected.len() == 1;
        for (part, batches) in affected.into_iter().enumerate() {
            let declared = if part == 0 {
                Arc::clone(&schema)
            } else {
                batches.first().map_or_else(|| Arc::new(Schema::empty()), |b| b.schema())
            };
            let mut rows =
                concat_batches(&declared, &batches.iter().map(|b| under(b, &declared)).collect::<Result<Vec<_>>>()?)?;
            if !single {
                rows = sql::dml::with_number(&declared, rows.columns().to_vec(), rows.num_rows())?;
            }
            sources.push(memory(vec![rows])?);
        }
        let plan = returning.over(&sources, values)?;
        let relations = scanned(&plan)?;
        let view = self.view(&relations, None).await?;
        let (_, rows) = query::collect(&self.statement_state(), &plan, Arc::new(view)).await?;
        let rows = rows.into_iter().map(|b| conform(b, &returning.schema)).collect::<Result<Vec<_>>>()?;
        Ok(rows_outcome(Arc::clone(&returning.schema), rows, write.tag(), true))
    }

    /// INSERT … ON CONFLICT DO UPDATE of `proposed`; gives the rows inserted and updated, in their order.
    async fn upsert(
        &mut self,
        table: &Arc<Table>,
        write: &WritePlan,
        update: &ConflictUpdatePlan,
        proposed: Vec<RecordBatch>,
        values: &[ScalarValue],
    ) -> Result<Vec<RecordBatch>, Refused> {
        let relation = &write.relation;
        let oid = relation.oid;
        let schema = Arc::clone(table.store.schema());
        let proposed = proposed.into_iter().map(|b| conform(b, &schema)).collect::<Result<Vec<_>>>()?;
        let nullable = nullable(&schema);
        let proposed = concat_batches(&nullable, &proposed)?;
        let clashes = self.writes()?.clashes(oid, &proposed, &mut HashSet::new())?;
        let mut clashing = clashes.positions.iter().copied().peekable();
        let fresh: Vec<u32> =
            (0..proposed.num_rows() as u32).filter(|row| clashing.next_if_eq(row).is_none()).collect();
        let inserted = take_record_batch(&proposed, &UInt32Array::from(fresh.clone()))?;
        self.writes()?.insert(oid, inserted.clone(), OnConflict::Error)?;
        if clashes.positions.is_empty() {
            return Ok(vec![inserted]);
        }
        let pairs = clashes.positions.len();
        let wanted = take_record_batch(&proposed, &UInt32Array::from(clashes.positions.clone()))?;
        let existing = memory(vec![sql::dml::with_number(&schema, clashes.existing.clone(), pairs)?])?;
        let excluded = memory(vec![sql::dml::with_number(&schema, wanted.columns().to_vec(), pairs)?])?;
        let plan = update.over(existing, excluded, values)?;
        let rows = self.run_at_head(plan, oid).await?;
        let columns: Vec<usize> = (1..=relation.columns.len()).collect();
        let existing = RecordBatch::try_new(Arc::clone(&nullable), clashes.existing)?;
        let mut numbers = Vec::new();
        let mut updated = Vec::new();
        for rows in &rows {
            let number = rows.column(0).as_primitive_opt::<Int64Type>();
            let number = number.ok_or_else(|| Error::internal("the pairs of an update have no numbers"))?;
            numbers.extend(number.values().iter().map(|n| *n as u32));
            updated.push(conform(rows.project(&columns)?, &schema)?);
        }
        let updated = concat_batches(&nullable, &updated)?;
        let old = take_record_batch(&existing, &UInt32Array::from(numbers.clone()))?;
        self.writes()?.delete(oid, old)?;
        self.writes()?.insert(oid, updated.clone(), OnConflict::Error)?;
        // In the order in which they were proposed.
        let mut order: Vec<(u32, (usize, usize))> = fresh.iter().enumerate().map(|(i, row)| (*row, (0, i))).collect();
        let of_pair = |n: &u32| clashes.positions.get(*n as usize).copied().unwrap_or(u32::MAX);
        order.extend(numbers.iter().enumerate().map(|(i, n)| (of_pair(n), (1, i))));
        order.sort_unstable();
        let places: Vec<(usize, usize)> = order.into_iter().map(|(_, place)| place).collect();
        Ok(vec![interleave_record_batch(&[&inserted, &updated], &places)?])
    }

    /// Runs the reading half of a write: its target at the head with this transaction's changes, everything else at one
    /// epoch.
    async fn run_at_head(&mut self, plan: LogicalPlan, target: RelationId) -> Result<Vec<RecordBatch>> {
        let relations = scanned(&plan)?;
        let view = self.view(&relations, Some(target)).await?;
        let (_, rows) = query::collect(&self.statement_state(), &plan, Arc::new(view)).await?;
        Ok(rows)
    }

    pub(super) async fn truncate(&mut self, names: &[Name]) -> Result<Outcome> {
        self.begin_single();
        let outcome = self.truncate_all(names).await;
        self.end_single(outcome.is_ok()).await?;
        outcome?;
        Ok(Outcome::Done("TRUNCATE TABLE".into()))
    }

    async fn truncate_all(&mut self, names: &[Name]) -> Result<()> {
        let catalog = self.catalog();
        for name in names {
            let relation = writable(&catalog, &self.scope(), name)?;
            self.refuse_sink_target(&relation)?;
            let table = self.table(relation.oid).ok_or_else(|| self.has_changed())?;
            // Nobody else may write the table until the end of the transaction.
            self.own_table(&table).await?;
            let _latch = table.latch().await;
            let emptied = self.empty(&table, &relation);
            emptied.map_err(|refused| match refused {
                Refused::Failed(error) => error,
                Refused::Busy(_) => Error::internal("a table that is owned is locked"),
            })?;
        }
        Ok(())
    }

    fn empty(&mut self, table: &Arc<Table>, relation: &Arc<Relation>) -> Result<(), Refused> {
        self.open_table(table, relation)?;
        let writes = self.writes()?;
        let own = writes.get(relation.oid).map(TableWrites::reader);
        let head = table.store.head()?;
        let own = own.ok_or_else(|| Error::internal("a table is written before it is opened"))?;
        for rows in own.rows(head)? {
            writes.delete(relation.oid, rows?)?;
        }
        Ok(())
    }

    /// Adds the rows of a COPY.
    pub(super) async fn insert_rows(&mut self, relation: &Arc<Relation>, batches: Vec<RecordBatch>) -> Result<u64> {
        self.refuse_sink_target(relation)?;
        self.clear_cancelled();
        self.begin_single();
        let outcome = self.insert_until_free(relation, &batches).await;
        self.end_single(outcome.is_ok()).await?;
        outcome
    }

    pub(super) async fn insert_until_free(&mut self, relation: &Arc<Relation>, batches: &[RecordBatch]) -> Result<u64> {
        let table = self.table(relation.oid).ok_or_else(|| self.has_changed())?;
        loop {
            let mark = self.writes()?.mark();
            let latch = table.latch().await;
            match self.insert_batches(&table, relation, batches) {
                Ok(count) => return Ok(count),
                Err(refused) => self.give_way(&table, &mark, latch, refused).await?,
            }
        }
    }

    fn insert_batches(
        &mut self,
        table: &Arc<Table>,
        relation: &Arc<Relation>,
        batches: &[RecordBatch],
    ) -> Result<u64, Refused> {
        self.open_table(table, relation)?;
        let on_conflict = relation.table().map_or(OnConflict::Error, |t| t.on_conflict);
        let mut count = 0;
        for rows in batches {
            count += rows.num_rows() as u64;
            self.writes()?.insert(relation.oid, rows.clone(), on_conflict)?;
        }
        Ok(count)
    }
}

/// A table of rows at hand.
fn memory(rows: Vec<RecordBatch>) -> Result<Arc<dyn TableProvider>> {
    let schema = rows.first().map_or_else(|| Arc::new(Schema::empty()), RecordBatch::schema);
    let table = MemTable::try_new(schema, vec![rows]).map_err(plan::error::from_datafusion_error)?;
    Ok(Arc::new(table))
}

/// The rows of a join that change their target: of several for one row of the table the first, as in PostgreSQL any.
fn distinct_targets(rows: Vec<RecordBatch>, relation: &Relation, joined: Option<&Joined>) -> Result<Vec<RecordBatch>> {
    let Some(joined) = joined else { return Ok(rows) };
    let identity: Vec<usize> = joined.number.map_or_else(|| relation.primary_key().to_vec(), |number| vec![number]);
    let mut seen: HashSet<Box<[u8]>> = HashSet::new();
    let mut distinct = Vec::with_capacity(rows.len());
    for rows in rows {
        let columns: Vec<ArrayRef> = identity.iter().map(|c| Arc::clone(rows.column(*c))).collect();
        let types: Vec<DataType> = columns.iter().map(|c| c.data_type().clone()).collect();
        let keys = KeyEncoder::new(&types)?.encode(&columns)?;
        let first: BooleanArray = keys.iter().map(|key| Some(seen.insert(key.data().into()))).collect();
        distinct.push(filter_record_batch(&rows, &first)?);
    }
    Ok(distinct)
}

/// The affected rows, and for each joined relation its columns of `rows`.
fn with_joined(
    affected: Vec<RecordBatch>,
    rows: &[RecordBatch],
    joined: Option<&Joined>,
) -> Result<Vec<Vec<RecordBatch>>> {
    let mut parts = vec![affected];
    for range in joined.map_or(&[][..], |j| &j.parts) {
        let columns: Vec<usize> = range.clone().collect();
        parts.push(rows.iter().map(|b| Ok(b.project(&columns)?)).collect::<Result<Vec<_>>>()?);
    }
    Ok(parts)
}

fn nullable(schema: &SchemaRef) -> SchemaRef {
    Arc::new(Schema::new(schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect::<Vec<_>>()))
}

/// The same columns under the table's own schema.
fn under(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = conform(batch.clone(), schema)?.columns().to_vec();
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}
