//! SELECT: planning, pinning an epoch, running.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use catalog::Catalog;
use catalog::settings::CHECKPOINT_INTERVAL;
use datafusion::common::ScalarValue;
use datafusion::execution::context::SessionState;
use flow::{Epoch, Error, RelationId, Result, SqlState};
use futures::StreamExt;
use query::system::{SessionInfo, SystemCatalog};
use query::{PointRead, ReadView, RelationRows};
use sql::planner::Settings;
use sql::statement::Query;
use sql::{Planner, QueryPlan};
use state::Pin;

use super::names::{SessionNames, scanned};
use super::{Outcome, Session, planning, rows_outcome};
use crate::engine::Engine;
use crate::status::EngineStatus;
use crate::table::{OwnReader, Table};

/// What one statement reads: every relation at one epoch, with the transaction's own writes on top.
pub struct StatementView {
    pub engine: Arc<Engine>,
    pub epoch: Epoch,
    /// Keeps the epoch readable while rows are being read.
    pub pin: Option<Arc<Pin>>,
    /// The tables that the statement was planned for.
    tables: HashMap<RelationId, Arc<Table>>,
    /// The table that the statement writes, which is read at its head.
    head: Option<RelationId>,
    /// What the transaction has changed.
    own: HashMap<RelationId, OwnReader>,
    /// Whether the session lets workers do a part of the work.
    works_elsewhere: bool,
}

impl ReadView for StatementView {
    fn rows(&self, relation: RelationId) -> Result<RelationRows> {
        if let Some(table) = self.tables.get(&relation) {
            let head = self.head == Some(relation);
            let snapshot = if head { table.store.head()? } else { table.store.snapshot(self.epoch)? };
            return match self.own.get(&relation) {
                Some(own) => own.over(snapshot),
                None => Ok(RelationRows::Snapshot(Arc::new(snapshot))),
            };
        }
        if let Some(source) = self.engine.sources.get(relation) {
            // A source that no view reads is read as it is now.
            let until = match source.positions(self.epoch) {
                Some(positions) => Some(positions),
                None if source.status().consumers > 0 && !source.status().waiting => {
                    Some(crate::sources::Positions::new())
                }
                None => None,
            };
            return Ok(RelationRows::Stream(Box::new(move |columns| source.rows_until(until, columns))));
        }
        Ok(RelationRows::Snapshot(self.engine.view_snapshot(relation, self.epoch)?))
    }

    fn works_elsewhere(&self) -> bool {
        self.works_elsewhere
    }
}

impl Session {
    /// DataFusion's state for one statement.
    pub(super) fn statement_state(&self) -> SessionState {
        query::statement_state(&self.base, self.time_zone())
    }

    pub(super) fn time_zone(&self) -> &str {
        self.settings.get("TimeZone").unwrap_or("UTC")
    }

    /// How an ad-hoc statement is planned.
    pub(super) fn planning(&self) -> Settings {
        Settings::at(self.time_zone(), self.engine.config.time.now_us())
    }

    /// The session's settings with those of the whole server as they are now.
    pub(super) fn shown_settings(&self) -> catalog::Settings {
        let mut settings = self.settings.clone();
        let interval_us = self.engine.keeper().map_or(0, |keeper| keeper.interval_us());
        // A fixed setting takes a default, whatever it is.
        let _ = settings.set_default(CHECKPOINT_INTERVAL, &format!("{}ms", interval_us / 1000));
        settings
    }

    pub(super) fn system_catalog(&self, catalog: &Catalog) -> SystemCatalog {
        let settings = Arc::new(self.shown_settings());
        let status = EngineStatus {
            engine: Arc::clone(&self.engine),
            settings: Arc::clone(&settings),
            wanted: Arc::clone(&self.wanted),
        };
        let info = SessionInfo {
            database: self.database.clone(),
            user: self.user.clone(),
            search_path: self.settings.search_path(&self.user),
            pid: self.pid,
            client: self.client.clone(),
            settings,
            now_us: self.engine.config.time.now_us(),
            server_start_us: self.engine.started_us,
        };
        SystemCatalog::new(catalog.clone(), info, Arc::new(status))
    }

    /// Plans an ad-hoc query.
    pub(super) fn plan_query(
        &self,
        query: &Query,
        source: &str,
        declared: &[Option<DataType>],
        catalog: &Catalog,
    ) -> Result<QueryPlan> {
        let system = self.system_catalog(catalog);
        let names = self.names(catalog, Some(&system));
        let planner = Planner::new(&names, self.planning())?;
        if !asks_system(query, source) {
            return planner.query(query, source, declared);
        }
        let mut query = query.clone();
        let rewritten = sql::with_large_stack(|| query::system::rewrite::rewrite(&mut query));
        let mut plan = planner.query(&query, source, declared)?;
        if let Some(names) = rewritten.output_names.filter(|n| n.len() == plan.schema.fields().len()) {
            let fields: Vec<Field> =
                plan.schema.fields().iter().zip(names).map(|(f, n)| f.as_ref().clone().with_name(n)).collect();
            plan.schema = Arc::new(Schema::new(fields));
        }
        Ok(plan)
    }

    /// How names are looked up in `catalog`, which is this session's.
    pub(super) fn names<'a>(&'a self, catalog: &'a Catalog, system: Option<&'a SystemCatalog>) -> SessionNames<'a> {
        SessionNames::new(&self.engine, catalog, self.scope(), system).with_private(self.private())
    }

    /// The error of a statement whose plan has been overtaken by DDL; [`Session::execute`] plans it again.
    pub(super) fn has_changed(&self) -> Error {
        self.stale.store(true, Ordering::Relaxed);
        Error::new(SqlState::SerializationFailure, "the catalog has changed while the statement was planned")
            .with_hint("Run the statement again.")
    }

    /// Waits for what a read of `relations` must see, then fixes its epoch. `head` is the table that the statement writes.
    pub(super) async fn view(
        &mut self,
        relations: &BTreeSet<RelationId>,
        head: Option<RelationId>,
    ) -> Result<StatementView> {
        for relation in relations {
            if self.table(*relation).is_none() {
                self.engine.wait_ready(*relation).await?;
            }
        }
        let seen = self.written.max(self.engine.clock.acknowledged());
        self.engine.clock.wait_completed(seen).await?;
        let pin = self.transaction_pin();
        if !relations.is_empty() && self.settings.get("read_durability")? == "durable" {
            // The pin keeps what is read until it is durable.
            self.engine.wait_kept(pin.epoch()).await?;
        }
        let tables = match self.private() {
            Some(_) => relations.iter().filter_map(|oid| Some((*oid, self.table(*oid)?))).collect(),
            None => match self.engine.tables_at(self.planned, relations) {
                Some(tables) => tables,
                None => return Err(self.has_changed()),
            },
        };
        let mut own = HashMap::new();
        if let Some(writes) = self.uncommitted() {
            for relation in relations {
                if let Some(writes) = writes.get(*relation).filter(|w| !w.is_unchanged()) {
                    own.insert(*relation, writes.reader());
                }
            }
        }
        let (engine, epoch, pin) = (Arc::clone(&self.engine), pin.epoch(), Some(pin));
        let works_elsewhere = self.settings.flag("select_on_workers");
        Ok(StatementView { engine, epoch, pin, tables, head, own, works_elsewhere })
    }

    /// `long`: planning it may take long.
    pub(super) async fn run_query(
        &mut self,
        plan: &QueryPlan,
        point: Option<&PointRead>,
        parameters: &[ArrayRef],
        long: bool,
    ) -> Result<Outcome> {
        if let Some(point) = point {
            let relations = BTreeSet::from([point.relation]);
            let view = self.view(&relations, None).await?;
            if !view.own.contains_key(&point.relation) {
                let row = point.read(parameters, &view).await?;
                let row = conform(row, &plan.schema)?;
                return Ok(rows_outcome(Arc::clone(&plan.schema), vec![row], "SELECT", true));
            }
        }
        let declared = Arc::clone(&plan.schema);
        let plan = plan.bind(values(parameters)?)?;
        let relations = scanned(&plan)?;
        let view = self.view(&relations, None).await?;
        let pin = view.pin.clone();
        let state = self.statement_state();
        let plan = planning::compute(long, || query::optimize(&state, &plan))?;
        planning::interruptible(long).await;
        let (_, rows) = query::execute_optimized(&state, &plan, Arc::new(view)).await?;
        // The rows hold the pin until the last one is read.
        let schema = Arc::clone(&declared);
        let rows = rows.map(move |batch| {
            let _pinned = &pin;
            batch.and_then(|b| conform(b, &schema))
        });
        Ok(Outcome::Rows { schema: declared, rows: Box::pin(rows), tag: "SELECT", counted: true })
    }

    /// Evaluates the arguments of SQL-level EXECUTE.
    pub(super) fn evaluate_arguments(
        &self,
        name: &str,
        arguments: &[sql::statement::Expr],
        types: &[DataType],
        source: &str,
    ) -> Result<Vec<ArrayRef>> {
        if arguments.len() != types.len() {
            return Err(Error::new(
                SqlState::SyntaxError,
                format!("wrong number of parameters for prepared statement \"{name}\""),
            )
            .with_detail(format!("Expected {} parameters but got {}.", types.len(), arguments.len())));
        }
        arguments.iter().zip(types).map(|(expr, data_type)| self.constant(expr, source, data_type)).collect()
    }

    /// The value of an expression without columns: one row.
    pub(super) fn constant(&self, expr: &sql::statement::Expr, source: &str, data_type: &DataType) -> Result<ArrayRef> {
        let catalog = self.catalog();
        let system = self.system_catalog(&catalog);
        let names = self.names(&catalog, Some(&system));
        let value = Planner::new(&names, self.planning())?.constant(expr, source, data_type)?;
        value.to_array_of_size(1).map_err(plan::error::from_datafusion_error)
    }
}

/// Whether a query is one of those that tools put to PostgreSQL's catalogs, which need rewriting first.
fn asks_system(query: &Query, source: &str) -> bool {
    let text = source.to_lowercase();
    let named =
        ["pg_", "::reg", "information_schema", "current_schema", "any(", "any ("].iter().any(|m| text.contains(m));
    named && (query::system::rewrite::reads_system(query) || text.contains("pg_") || text.contains("::reg"))
}

/// Parameters as the planner binds them.
pub fn values(parameters: &[ArrayRef]) -> Result<Vec<ScalarValue>> {
    parameters.iter().map(|p| ScalarValue::try_from_array(p, 0).map_err(plan::error::from_datafusion_error)).collect()
}

/// A batch under the schema that was announced: operators may know of fewer NULLs, or name columns differently.
pub fn conform(batch: RecordBatch, schema: &arrow::datatypes::SchemaRef) -> Result<RecordBatch> {
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| match column.data_type() == field.data_type() {
            true => Ok(Arc::clone(column)),
            false => arrow::compute::cast(column, field.data_type()),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let fields: Vec<_> = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::new(arrow::datatypes::Schema::new(fields)), columns, &options)?)
}
