//! Transactions and DML.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use catalog::{Catalog, OnConflict, Relation};
use datafusion::common::ScalarValue;
use datafusion::datasource::MemTable;
use datafusion::logical_expr::LogicalPlan;
use flow::{Error, RelationId, Result, SqlState};
use sql::statement::{Isolation, Name, Parsed, Statement, TransactionModes};
use sql::{DeletePlan, InsertPlan, Planner, Returning, UpdatePlan};
use state::Pin;

use super::names::{SessionNames, scanned, writable};
use super::read::{conform, values};
use super::{Outcome, Session, rows_outcome};
use crate::table::WriteSet;

/// Whether statements stand alone or belong together.
pub enum Transaction {
    None,
    /// Statements of one query string or pipeline.
    Implicit(Open),
    /// BEGIN … COMMIT.
    Explicit(Open),
    /// After an error in BEGIN … COMMIT.
    Failed(Open),
}

/// An open transaction.
#[derive(Default)]
pub struct Open {
    pin: Option<Arc<Pin>>,
    writes: WriteSet,
    read_only: bool,
    /// Settings to put back at the end: (name, value before if it had one, also after a commit).
    settings: Vec<(String, Option<String>, bool)>,
}

/// A planned INSERT, UPDATE or DELETE.
pub struct WritePlan {
    relation: Arc<Relation>,
    kind: WriteKind,
}

enum WriteKind {
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

/// How a transaction appears to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Idle,
    InTransaction,
    Failed,
}

impl Session {
    pub fn transaction_status(&self) -> Status {
        match self.transaction {
            Transaction::None | Transaction::Implicit(_) => Status::Idle,
            Transaction::Explicit(_) => Status::InTransaction,
            Transaction::Failed(_) => Status::Failed,
        }
    }

    pub(super) fn in_transaction(&self) -> bool {
        !matches!(self.transaction, Transaction::None)
    }

    fn open(&mut self) -> Option<&mut Open> {
        match &mut self.transaction {
            Transaction::None => None,
            Transaction::Implicit(open) | Transaction::Explicit(open) | Transaction::Failed(open) => Some(open),
        }
    }

    pub(super) fn uncommitted(&self) -> Option<&WriteSet> {
        match &self.transaction {
            Transaction::None => None,
            Transaction::Implicit(open) | Transaction::Explicit(open) | Transaction::Failed(open) => Some(&open.writes),
        }
    }

    /// The epoch that a read sees: one for a whole transaction, else the newest.
    pub(super) fn transaction_pin(&mut self) -> Arc<Pin> {
        let engine = Arc::clone(&self.engine);
        match self.open() {
            Some(open) => Arc::clone(open.pin.get_or_insert_with(|| Arc::new(engine.pin()))),
            None => Arc::new(engine.pin()),
        }
    }

    pub(super) fn check_read_only(&self, statement: &Statement) -> Result<()> {
        let read_only = match &self.transaction {
            Transaction::Explicit(open) | Transaction::Implicit(open) => open.read_only,
            _ => false,
        } || self.settings.flag("default_transaction_read_only")
            && !matches!(self.transaction, Transaction::Explicit(_));
        let writes = matches!(
            statement,
            Statement::Insert(_)
                | Statement::Update(_)
                | Statement::Delete(_)
                | Statement::Truncate(_)
                | Statement::CreateTable(_)
                | Statement::CreateSource(_)
                | Statement::CreateSink(_)
                | Statement::CreateView(_)
                | Statement::CreateSchema { .. }
                | Statement::CreateDatabase { .. }
                | Statement::Drop(_)
                | Statement::Alter(_)
                | Statement::Comment(_)
        ) || matches!(statement, Statement::Copy(c) if c.direction == sql::statement::CopyDirection::FromStdin);
        if read_only && writes {
            return Err(Error::new(
                SqlState::ReadOnlyTransaction,
                format!("cannot execute {} in a read-only transaction", statement.tag()),
            ));
        }
        Ok(())
    }

    /// An error inside BEGIN … COMMIT: only its end is accepted from here on, and its writes are void.
    pub fn fail_transaction(&mut self) {
        self.wanted.lock().clear();
        self.transaction = match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::Explicit(open) => {
                // Locks are released at once; nothing of it can be committed any more.
                Transaction::Failed(Open { settings: open.settings, ..Open::default() })
            }
            other => other,
        };
        self.cursors.retain(|_, c| c.hold);
    }

    pub fn begin_implicit(&mut self) {
        if matches!(self.transaction, Transaction::None) {
            self.transaction = Transaction::Implicit(Open::default());
        }
    }

    pub async fn end_implicit(&mut self, commit: bool) -> Result<()> {
        match commit {
            true => self.apply_wanted_settings(),
            false => self.wanted.lock().clear(),
        }
        if !matches!(self.transaction, Transaction::Implicit(_)) {
            return Ok(());
        }
        let Transaction::Implicit(open) = std::mem::replace(&mut self.transaction, Transaction::None) else {
            return Ok(());
        };
        self.cursors.retain(|_, c| c.hold);
        self.end(open, commit).await
    }

    pub(super) fn begin(&mut self, modes: &TransactionModes) -> Result<Outcome> {
        match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::None => self.transaction = Transaction::Explicit(Open::default()),
            Transaction::Implicit(open) => self.transaction = Transaction::Explicit(open),
            other => {
                self.transaction = other;
                self.warn("25001", "there is already a transaction in progress");
            }
        }
        self.set_modes(modes)?;
        Ok(Outcome::Done("BEGIN".into()))
    }

    fn set_modes(&mut self, modes: &TransactionModes) -> Result<()> {
        // Every level is at least snapshot isolation here, which fulfils what the weaker ones promise.
        if modes.isolation == Some(Isolation::Serializable) {
            self.notice("transactions run with snapshot isolation");
        }
        if let (Some(read_only), Some(open)) = (modes.read_only, self.open()) {
            open.read_only = read_only;
        }
        Ok(())
    }

    pub(super) fn set_transaction(&mut self, modes: &TransactionModes, session: bool) -> Result<Outcome> {
        if session {
            if let Some(read_only) = modes.read_only {
                self.settings.set("default_transaction_read_only", if read_only { "on" } else { "off" })?;
            }
        } else if self.in_transaction() {
            self.set_modes(modes)?;
        } else {
            self.warn("25P01", "SET TRANSACTION can only be used in transaction blocks");
        }
        Ok(Outcome::Done("SET".into()))
    }

    pub(super) async fn commit(&mut self, chain: bool) -> Result<Outcome> {
        match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::None => {
                self.warn("25P01", "there is no transaction in progress");
                Ok(Outcome::Done("COMMIT".into()))
            }
            Transaction::Failed(open) => {
                self.restore_settings(open, false);
                self.next_in_chain(chain);
                Ok(Outcome::Done("ROLLBACK".into()))
            }
            Transaction::Implicit(open) => {
                self.warn("25P01", "there is no transaction in progress");
                self.end(open, true).await?;
                Ok(Outcome::Done("COMMIT".into()))
            }
            Transaction::Explicit(open) => {
                self.cursors.retain(|_, c| c.hold);
                self.end(open, true).await?;
                self.next_in_chain(chain);
                Ok(Outcome::Done("COMMIT".into()))
            }
        }
    }

    fn next_in_chain(&mut self, chain: bool) {
        if chain {
            self.transaction = Transaction::Explicit(Open::default());
        }
    }

    pub(super) fn rollback(&mut self, chain: bool) -> Result<Outcome> {
        match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::None => self.warn("25P01", "there is no transaction in progress"),
            Transaction::Implicit(open) => {
                self.warn("25P01", "there is no transaction in progress");
                self.restore_settings(open, false);
            }
            Transaction::Explicit(open) | Transaction::Failed(open) => {
                self.restore_settings(open, false);
                self.next_in_chain(chain);
            }
        }
        self.cursors.retain(|_, c| c.hold);
        Ok(Outcome::Done("ROLLBACK".into()))
    }

    pub(super) fn remember_setting(&mut self, name: &str, before: Option<String>, local: bool) {
        if let Some(open) = self.open() {
            open.settings.push((name.to_string(), before, local));
        }
    }

    fn restore_settings(&mut self, open: Open, committed: bool) {
        for (name, before, local) in open.settings.into_iter().rev() {
            if local || !committed {
                // The value was accepted before.
                let _ = match before {
                    Some(before) => self.settings.set(&name, &before).map(|_| ()),
                    None => self.settings.reset(&name),
                };
                self.note_changed(&name);
            }
        }
    }

    async fn end(&mut self, mut open: Open, commit: bool) -> Result<()> {
        let writes = std::mem::take(&mut open.writes);
        open.pin = None;
        self.restore_settings(open, commit);
        if commit { self.commit_writes(writes).await } else { Ok(()) }
    }

    async fn commit_writes(&mut self, writes: WriteSet) -> Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        let engine = &self.engine;
        let epoch = writes.commit(&engine.clock, &engine.log, &engine.budget, engine.floor())?;
        if let Some(epoch) = epoch {
            self.written = self.written.max(epoch);
            self.engine.clock.wait_durable(epoch).await?;
        }
        Ok(())
    }

    /// Takes the transaction's write set, or a fresh one for a statement that stands alone.
    fn take_writes(&mut self) -> WriteSet {
        self.open().map(|o| std::mem::take(&mut o.writes)).unwrap_or_default()
    }

    /// Puts the write set back, or commits it when the statement stands alone.
    async fn return_writes(&mut self, writes: WriteSet) -> Result<()> {
        match self.open() {
            Some(open) => {
                open.writes = writes;
                Ok(())
            }
            None => self.commit_writes(writes).await,
        }
    }

    pub(super) fn plan_write(
        &self,
        parsed: &Parsed,
        declared: &[Option<DataType>],
        catalog: &Catalog,
    ) -> Result<WritePlan> {
        let system = self.system_catalog(catalog);
        let names = SessionNames::new(&self.engine, catalog, self.scope(), Some(&system));
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
                let on_conflict = if plan.do_nothing { OnConflict::DoNothing } else { declared_conflict };
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

    fn refuse_sink_target(&self, relation: &Relation) -> Result<()> {
        match self.engine.sink_into(relation.oid) {
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
        let mut writes = self.take_writes();
        match self.write(&mut writes, write, parameters).await {
            Ok(outcome) => {
                self.return_writes(writes).await?;
                Ok(outcome)
            }
            Err(error) => {
                // A failed statement leaves an implicit or explicit transaction to its end, which will be a rollback;
                // a partly filled write set must not survive it.
                drop(writes);
                Err(error)
            }
        }
    }

    async fn write(&mut self, writes: &mut WriteSet, write: &WritePlan, parameters: &[ArrayRef]) -> Result<Outcome> {
        let relation = &write.relation;
        let table = self.engine.table(relation.oid).ok_or_else(|| Error::internal("table without storage"))?;
        let timeout = self.lock_timeout();
        // The lock comes first: what the statement reads of its target is the head.
        writes.writes(&table, relation, timeout).await?;
        let values = values(parameters)?;
        let rows = self.run_locked(writes, write.bind(&values)?, relation.oid).await?;
        let schema = Arc::clone(table.store.schema());
        let target = writes.writes(&table, relation, timeout).await?;
        let (count, affected) = match &write.kind {
            WriteKind::Insert(_, on_conflict) => {
                let mut count = 0;
                for rows in &rows {
                    count += target.insert(conform(rows.clone(), &schema)?, *on_conflict)?;
                }
                (count, rows)
            }
            WriteKind::Delete(_) => {
                let mut count = 0;
                for rows in &rows {
                    count += target.delete(conform(rows.clone(), &schema)?)?;
                }
                (count, rows)
            }
            WriteKind::Update(_) => {
                let width = relation.columns.len();
                let (old, new): (Vec<usize>, Vec<usize>) = (0..2 * width).partition(|c| *c < width);
                let mut count = 0;
                for rows in &rows {
                    count += target.delete(conform(rows.project(&old)?, &schema)?)?;
                }
                let mut updated = Vec::new();
                for rows in &rows {
                    let rows = conform(rows.project(&new)?, &schema)?;
                    target.insert(rows.clone(), OnConflict::Error)?;
                    updated.push(rows);
                }
                (count, updated)
            }
        };
        let Some(returning) = write.returning() else {
            return Ok(Outcome::Done(format!("{} {count}", write.tag())));
        };
        let affected = affected.into_iter().map(|b| under(&b, &schema)).collect::<Result<Vec<_>>>()?;
        let table =
            MemTable::try_new(Arc::clone(&schema), vec![affected]).map_err(plan::error::from_datafusion_error)?;
        let plan = returning.over(Arc::new(table), &values)?;
        let relations = scanned(&plan)?;
        let view = self.view(&relations).await?;
        let (_, rows) = query::collect(&self.statement_state(), &plan, Arc::new(view)).await?;
        let rows = rows.into_iter().map(|b| conform(b, &returning.schema)).collect::<Result<Vec<_>>>()?;
        Ok(rows_outcome(Arc::clone(&returning.schema), rows, write.tag(), true))
    }

    /// Runs the reading half of a write: its target at the head with this transaction's changes, everything else at one
    /// epoch.
    async fn run_locked(
        &mut self,
        writes: &WriteSet,
        plan: LogicalPlan,
        target: RelationId,
    ) -> Result<Vec<RecordBatch>> {
        let relations = scanned(&plan)?;
        let mut view = self.view(&relations).await?;
        view.heads.insert(target);
        for relation in &relations {
            if let Some(changed) = writes.get(*relation) {
                view.heads.insert(*relation);
                if !changed.changes().is_empty() {
                    let rows = super::read::with_changes(&self.engine, *relation, changed.changes())?;
                    view.replaced.insert(*relation, rows);
                }
            }
        }
        let (_, rows) = query::collect(&self.statement_state(), &plan, Arc::new(view)).await?;
        Ok(rows)
    }

    pub(super) async fn truncate(&mut self, names: &[Name]) -> Result<Outcome> {
        let catalog = self.engine.catalog();
        let mut writes = self.take_writes();
        for name in names {
            let relation = writable(&catalog, &self.scope(), name)?;
            self.refuse_sink_target(&relation)?;
            let table = self.engine.table(relation.oid).ok_or_else(|| Error::internal("table without storage"))?;
            let timeout = self.lock_timeout();
            let changes = writes.writes(&table, &relation, timeout).await?.changes().to_vec();
            let rows = super::read::with_changes(&self.engine, relation.oid, &changes)?;
            let target = writes.writes(&table, &relation, timeout).await?;
            for rows in rows {
                target.delete(rows)?;
            }
        }
        self.return_writes(writes).await?;
        Ok(Outcome::Done("TRUNCATE TABLE".into()))
    }

    /// Adds the rows of a COPY.
    pub(super) async fn insert_rows(&mut self, relation: &Arc<Relation>, batches: Vec<RecordBatch>) -> Result<u64> {
        self.refuse_sink_target(relation)?;
        let table = self.engine.table(relation.oid).ok_or_else(|| Error::internal("table without storage"))?;
        let on_conflict = relation.table().map_or(OnConflict::Error, |t| t.on_conflict);
        let timeout = self.lock_timeout();
        let mut writes = self.take_writes();
        let target = writes.writes(&table, relation, timeout).await?;
        let mut count = 0;
        for rows in batches {
            count += rows.num_rows() as u64;
            target.insert(rows, on_conflict)?;
        }
        self.return_writes(writes).await?;
        Ok(count)
    }
}

/// The same columns under the table's own schema.
fn under(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = conform(batch.clone(), schema)?.columns().to_vec();
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}
