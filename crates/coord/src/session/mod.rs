//! One client's session: statements in, rows and tags out.
//!
//! [`Session::prepare`] looks names up and plans, [`Session::execute`] runs. [`transaction`] begins and ends, [`private`] is
//! what an open transaction has done to the catalog; [`read`] pins epochs, [`write`] is DML, [`define`] and [`reshape`] are
//! DDL, [`show`] answers SHOW and EXPLAIN, [`cursor`] keeps cursors, [`subscribe`] follows relations; [`planning`] is where they compute.

pub mod copy;
pub mod cursor;
pub mod define;
pub mod names;
pub mod planning;
pub mod private;
pub mod read;
pub mod replan;
pub mod reshape;
pub mod show;
pub mod subscribe;
pub mod transaction;
mod watermarks;
pub mod write;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use catalog::{Catalog, Scope, Settings};
use datafusion::execution::context::SessionState;
use flow::{Epoch, Error, Result, SqlState};
use futures::stream::BoxStream;
use parking_lot::Mutex;
use query::PointRead;
use sql::QueryPlan;
use sql::statement::{CursorQuery, Parsed, SetValue, Statement};

use self::copy::{CopyFrom, CopyTo};
use self::cursor::Cursor;
use self::transaction::Transaction;
use crate::engine::Engine;
use crate::status::WantedSetting;

/// Rows of a result as they come.
pub type Rows = BoxStream<'static, Result<RecordBatch>>;

/// What a statement gives back.
pub enum Outcome {
    /// Rows; `tag` is the first word of the command tag, `counted` says whether the number of rows follows it.
    Rows {
        schema: SchemaRef,
        rows: Rows,
        tag: &'static str,
        counted: bool,
    },
    /// Done; the whole command tag.
    Done(String),
    CopyFrom(CopyFrom),
    CopyTo(CopyTo),
    Deallocate(Option<String>),
}

/// A message beside the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub warning: bool,
    pub code: &'static str,
    pub message: String,
    pub detail: Option<String>,
}

/// A statement that has been planned.
#[derive(Clone)]
pub struct Prepared {
    pub parsed: Arc<Parsed>,
    pub parameters: Vec<DataType>,
    /// Their type OIDs, where the Arrow types do not tell them.
    pub parameter_oids: Vec<Option<u32>>,
    /// Columns of the result, if it has rows.
    pub columns: Option<SchemaRef>,
    body: Body,
    /// Version of the catalog and scope of names that the plan was made with.
    version: u64,
    scope: Scope,
    declared: Vec<Option<DataType>>,
    /// For a plan that holds what was true when it was made, such as the time.
    momentary: Option<Arc<Momentary>>,
}

/// How long a plan that reads the clock or the system tables may wait for its first execution, in microseconds.
const MOMENT_US: i64 = 20_000;

/// A plan that serves one execution, right after it was made.
struct Momentary {
    made_us: i64,
    used: AtomicBool,
}

impl Momentary {
    fn at(now_us: i64) -> Momentary {
        Momentary { made_us: now_us, used: AtomicBool::new(false) }
    }

    fn take(&self, now_us: i64) -> bool {
        (0..=MOMENT_US).contains(&(now_us - self.made_us)) && !self.used.swap(true, Ordering::Relaxed)
    }
}

impl Prepared {
    /// Whether the plan may run as it is; it then counts as used.
    fn is_current(&self, catalog: &Catalog, now_us: i64) -> bool {
        self.version == catalog.version() && self.momentary.as_ref().is_none_or(|m| m.take(now_us))
    }
}

#[derive(Clone)]
enum Body {
    /// Interpreted when executed.
    Plain,
    Query {
        plan: Arc<QueryPlan>,
        point: Option<Arc<PointRead>>,
    },
    Write(Arc<write::WritePlan>),
    /// DECLARE of a cursor over this query.
    Declare {
        plan: Arc<QueryPlan>,
    },
    Subscribe(Arc<subscribe::SubscribePlan>),
    /// DECLARE of a cursor over a subscription.
    DeclareSubscribe(Arc<subscribe::SubscribePlan>),
    /// SQL-level EXECUTE of a statement prepared by PREPARE.
    Execute {
        inner: Box<Prepared>,
        arguments: Vec<ArrayRef>,
    },
}

/// One client's session.
pub struct Session {
    engine: Arc<Engine>,
    base: SessionState,
    pub settings: Settings,
    pub user: String,
    pub database: String,
    pub pid: i32,
    /// Address and port of the client, when it came over the network.
    pub client: Option<(String, u16)>,
    transaction: Transaction,
    /// Version of the catalog that the running statement was planned with.
    planned: u64,
    /// Set when the running statement has found that its plan is overtaken.
    stale: AtomicBool,
    /// Reads wait for it: a session sees its own writes.
    written: Epoch,
    notices: Vec<Notice>,
    prepared: HashMap<String, Prepared>,
    cursors: HashMap<String, Cursor>,
    /// Reported settings whose value changed since the client was last told.
    changed: Vec<&'static str>,
    /// Settings that `set_config` has changed and that are not yet in force.
    wanted: Arc<Mutex<Vec<WantedSetting>>>,
    limits: sql::Limits,
}

impl Session {
    pub fn new(
        engine: Arc<Engine>,
        base: SessionState,
        settings: Settings,
        user: String,
        database: String,
        pid: i32,
    ) -> Session {
        Session {
            engine,
            base,
            settings,
            user,
            database,
            pid,
            client: None,
            transaction: Transaction::None,
            planned: 0,
            stale: AtomicBool::new(false),
            written: Epoch(0),
            notices: Vec::new(),
            prepared: HashMap::new(),
            cursors: HashMap::new(),
            changed: Vec::new(),
            wanted: Arc::default(),
            limits: sql::Limits::default(),
        }
    }

    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Goes on with another engine on the same data, between two statements. Errors: `40001` the transaction that was open has
    /// ended with the engine before, and nothing of it has happened.
    pub fn move_to(&mut self, engine: Arc<Engine>) -> Result<()> {
        self.engine = engine;
        self.cursors.clear();
        self.planned = NEVER;
        if self.interrupt_transaction() {
            return Err(Error::new(SqlState::SerializationFailure, "the transaction was interrupted")
                .with_detail(
                    "A worker of the cluster was away, and the jobs have started again. Nothing of it has happened.",
                )
                .with_hint("Run the transaction again."));
        }
        Ok(())
    }

    /// Where unqualified names are looked up.
    pub fn scope(&self) -> Scope {
        Scope::new(self.database.clone(), self.settings.search_path(&self.user))
    }

    /// Splits text into statements.
    pub fn parse(&self, text: &str) -> Result<Vec<Parsed>> {
        planning::compute(planning::is_long(text), || sql::parse(text, &self.limits))
    }

    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Names and values of reported settings that changed since the last call.
    pub fn take_parameter_changes(&mut self) -> Vec<(String, String)> {
        self.apply_wanted_settings();
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|n| (n.to_string(), self.settings.get(n).unwrap_or_default().to_string())).collect()
    }

    fn notice(&mut self, message: impl Into<String>) {
        self.notices.push(Notice { warning: false, code: "00000", message: message.into(), detail: None });
    }

    fn warn(&mut self, code: &'static str, message: impl Into<String>) {
        self.notices.push(Notice { warning: true, code, message: message.into(), detail: None });
    }

    fn catalog_notices(&mut self, notices: Vec<catalog::Notice>) {
        for n in notices {
            self.notices.push(Notice { warning: false, code: n.code, message: n.message, detail: n.detail });
        }
    }

    /// `statement_timeout`, if set.
    pub fn statement_timeout(&self) -> Option<Duration> {
        self.settings.duration_ms("statement_timeout").filter(|ms| *ms > 0).map(Duration::from_millis)
    }

    fn lock_timeout(&self) -> Option<Duration> {
        self.settings.duration_ms("lock_timeout").filter(|ms| *ms > 0).map(Duration::from_millis)
    }

    /// Looks names up and plans. `declared` are the client's types for `$1`, `$2`, …
    pub async fn prepare(&mut self, parsed: &Arc<Parsed>, declared: &[Option<DataType>]) -> Result<Prepared> {
        self.clear_cancelled();
        self.apply_wanted_settings();
        let catalog = self.catalog();
        self.planned = catalog.version();
        let long = planning::is_long(&parsed.text);
        let prepared = planning::compute(long, || self.plan(parsed, declared, &catalog))?;
        planning::interruptible(long).await;
        Ok(prepared)
    }

    fn plan(&mut self, parsed: &Arc<Parsed>, declared: &[Option<DataType>], catalog: &Catalog) -> Result<Prepared> {
        let scope = self.scope();
        let mut prepared = Prepared {
            parsed: Arc::clone(parsed),
            parameters: Vec::new(),
            parameter_oids: Vec::new(),
            columns: None,
            body: Body::Plain,
            // A version that is not the server's may come to be another's.
            version: if self.private().is_some() { NEVER } else { catalog.version() },
            scope,
            declared: declared.to_vec(),
            momentary: None,
        };
        match &parsed.statement {
            Statement::Query(query) => {
                let plan = self.plan_query(query, &parsed.source, declared, catalog)?;
                let key = |relation| match self.table(relation) {
                    Some(table) => table.store.key().map(<[usize]>::to_vec),
                    None => self.engine.index_key(relation),
                };
                let point = PointRead::compile(&plan.plan, key).map(Arc::new);
                prepared.columns = Some(Arc::clone(&plan.schema));
                prepared.parameters = plan.parameters.clone();
                prepared.parameter_oids.clone_from(&plan.parameter_oids);
                if point.is_none() && !lasts(&parsed.text, &plan) {
                    prepared.momentary = Some(Arc::new(Momentary::at(self.engine.config.time.now_us())));
                }
                prepared.body = Body::Query { plan: Arc::new(plan), point };
            }
            Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) => {
                let write = self.plan_write(parsed, declared, catalog)?;
                prepared.columns = write.returning_schema();
                prepared.parameters = write.parameters().to_vec();
                prepared.parameter_oids = write.parameter_oids().to_vec();
                prepared.body = Body::Write(Arc::new(write));
            }
            Statement::DeclareCursor(declare) => match &declare.query {
                CursorQuery::Query(query) => {
                    let plan = self.plan_query(query, &parsed.source, declared, catalog)?;
                    prepared.parameters = plan.parameters.clone();
                    prepared.parameter_oids.clone_from(&plan.parameter_oids);
                    if !lasts(&parsed.text, &plan) {
                        prepared.momentary = Some(Arc::new(Momentary::at(self.engine.config.time.now_us())));
                    }
                    prepared.body = Body::Declare { plan: Arc::new(plan) };
                }
                CursorQuery::Subscribe(subscribe) => {
                    let plan = self.plan_subscribe(subscribe, &parsed.source, declared, catalog)?;
                    let (parameters, oids) = plan.parameters();
                    prepared.parameters = parameters.to_vec();
                    prepared.parameter_oids = oids.to_vec();
                    prepared.body = Body::DeclareSubscribe(Arc::new(plan));
                }
            },
            Statement::Subscribe(subscribe) => {
                let plan = self.plan_subscribe(subscribe, &parsed.source, declared, catalog)?;
                let (parameters, oids) = plan.parameters();
                prepared.parameters = parameters.to_vec();
                prepared.parameter_oids = oids.to_vec();
                prepared.columns = Some(Arc::clone(&plan.schema));
                prepared.body = Body::Subscribe(Arc::new(plan));
            }
            Statement::Show(show) => prepared.columns = Some(self.show_columns(show)),
            Statement::Explain(_) => prepared.columns = Some(text_columns(&["QUERY PLAN"])),
            Statement::Fetch(fetch) if !fetch.only_move => {
                prepared.columns = Some(self.cursor_columns(&fetch.cursor)?);
            }
            Statement::Execute { name, arguments } => {
                let mut inner = self.prepared_statement(name)?.clone();
                let current = inner.is_current(catalog, self.engine.config.time.now_us());
                if !current || inner.scope != self.scope() {
                    inner = self.plan(&Arc::clone(&inner.parsed), &inner.declared.clone(), catalog)?;
                }
                let arguments = self.evaluate_arguments(name, arguments, &inner.parameters, &parsed.source)?;
                prepared.columns = inner.columns.clone();
                prepared.body = Body::Execute { inner: Box::new(inner), arguments };
            }
            _ => {}
        }
        Ok(prepared)
    }

    fn prepared_statement(&self, name: &str) -> Result<&Prepared> {
        self.prepared.get(name).ok_or_else(|| {
            Error::new(SqlState::InvalidSqlStatementName, format!("prepared statement \"{name}\" does not exist"))
        })
    }

    /// Runs a planned statement. `parameters` have one row each.
    pub async fn execute(&mut self, prepared: &Prepared, parameters: &[ArrayRef]) -> Result<Outcome> {
        self.clear_cancelled();
        self.apply_wanted_settings();
        for _ in 0..REPLANS_MAX {
            let outcome = self.execute_planned(prepared, parameters).await;
            // DDL of others came between planning and running: nothing has happened yet.
            if outcome.is_ok() || !std::mem::take(self.stale.get_mut()) {
                return outcome;
            }
        }
        Err(self.has_changed())
    }

    async fn execute_planned(&mut self, prepared: &Prepared, parameters: &[ArrayRef]) -> Result<Outcome> {
        let catalog = self.catalog();
        self.planned = catalog.version();
        let now_us = self.engine.config.time.now_us();
        let stale = !prepared.is_current(&catalog, now_us) || prepared.scope != self.scope();
        let planned;
        let prepared = if stale && !matches!(prepared.body, Body::Plain) {
            let long = planning::is_long(&prepared.parsed.text);
            planned = planning::compute(long, || self.plan(&prepared.parsed, &prepared.declared, &catalog))?;
            planning::interruptible(long).await;
            &planned
        } else {
            prepared
        };
        if let Body::Execute { inner, arguments } = &prepared.body {
            return Box::pin(self.execute_planned(inner, arguments)).await;
        }
        self.check_read_only(&prepared.parsed.statement)?;
        match &prepared.body {
            Body::Query { plan, point } => {
                let long = planning::is_long(&prepared.parsed.text);
                self.run_query(plan, point.as_deref(), parameters, long).await
            }
            Body::Write(write) => self.run_write(write, parameters).await,
            Body::Declare { plan } => match &prepared.parsed.statement {
                Statement::DeclareCursor(declare) => {
                    let long = planning::is_long(&prepared.parsed.text);
                    self.declare(declare, plan, parameters, long).await
                }
                other => Err(Error::internal(format!("{} declares no cursor", other.tag()))),
            },
            Body::Subscribe(plan) => self.run_subscribe(plan, parameters).await,
            Body::DeclareSubscribe(plan) => match &prepared.parsed.statement {
                Statement::DeclareCursor(declare) => self.declare_subscribe(declare, plan, parameters).await,
                other => Err(Error::internal(format!("{} declares no cursor", other.tag()))),
            },
            _ => self.run_plain(prepared).await,
        }
    }

    async fn run_plain(&mut self, prepared: &Prepared) -> Result<Outcome> {
        let parsed = &prepared.parsed;
        match &parsed.statement {
            Statement::Begin(modes) => self.begin(modes),
            Statement::Commit { chain } => self.commit(*chain).await,
            Statement::Rollback { chain } => self.rollback(*chain),
            Statement::Savepoint(name) => self.savepoint(name),
            Statement::RollbackTo(name) => self.rollback_to(name),
            Statement::Release(name) => self.release(name),
            Statement::SetTransaction { modes, session } => self.set_transaction(modes, *session),
            Statement::Set(set) => self.set(&set.name, &set.value, set.local),
            Statement::Reset(name) => self.reset(name.as_deref()),
            Statement::Show(show) => self.show(show).await,
            Statement::Explain(explain) => self.explain(explain, parsed).await,
            Statement::Flush => {
                if self.transaction_status() == transaction::Status::InTransaction {
                    self.refuse_in_transaction("FLUSH")?;
                }
                // What stands before it in the same query string is to be seen.
                self.end_implicit(true).await?;
                let epoch = self.engine.flush().await?;
                self.written = self.written.max(epoch);
                Ok(Outcome::Done("FLUSH".into()))
            }
            Statement::Checkpoint => {
                if self.transaction_status() == transaction::Status::InTransaction {
                    self.refuse_in_transaction("CHECKPOINT")?;
                }
                self.end_implicit(true).await?;
                let epoch = self.engine.checkpoint().await?;
                self.written = self.written.max(epoch);
                Ok(Outcome::Done("CHECKPOINT".into()))
            }
            Statement::CreateSavepoint(name) => {
                if self.transaction_status() == transaction::Status::InTransaction {
                    return Err(self.no_savepoint_here("CREATE SAVEPOINT"));
                }
                self.end_implicit(true).await?;
                let keeper = Arc::clone(self.engine.checkpoints()?);
                keeper.check_name(name).await?;
                let epoch = self.engine.checkpoint().await?;
                keeper.keep(name).await?;
                self.written = self.written.max(epoch);
                Ok(Outcome::Done("CREATE SAVEPOINT".into()))
            }
            Statement::DropSavepoint { name, if_exists } => {
                if self.transaction_status() == transaction::Status::InTransaction {
                    return Err(self.no_savepoint_here("DROP SAVEPOINT"));
                }
                self.end_implicit(true).await?;
                match self.engine.checkpoints()?.drop_savepoint(name).await {
                    Err(e) if *if_exists && e.state() == SqlState::UndefinedObject => {}
                    dropped => dropped?,
                }
                Ok(Outcome::Done("DROP SAVEPOINT".into()))
            }
            Statement::Prepare { name, types, statement } => {
                if self.prepared.contains_key(name) {
                    return Err(Error::new(
                        SqlState::DuplicatePreparedStatement,
                        format!("prepared statement \"{name}\" already exists"),
                    ));
                }
                let declared = types.iter().map(|t| sql::types::arrow_type(t).map(Some)).collect::<Result<Vec<_>>>()?;
                let prepared = self.prepare(&Arc::new(statement.as_ref().clone()), &declared).await?;
                self.prepared.insert(name.clone(), prepared);
                Ok(Outcome::Done("PREPARE".into()))
            }
            Statement::Deallocate(name) => self.deallocate(name.as_deref()),
            Statement::Discard(what) => {
                if *what == sql::statement::Discard::All {
                    self.refuse_in_transaction("DISCARD ALL")?;
                    self.prepared.clear();
                    self.cursors.clear();
                    self.settings.reset_all();
                    self.changed = catalog_reported(&self.settings);
                }
                Ok(Outcome::Done(parsed.statement.tag().into()))
            }
            Statement::Fetch(fetch) => self.fetch(fetch).await,
            Statement::CloseCursor(name) => self.close_cursor(name.as_deref()),
            Statement::Copy(copy) => self.copy(copy, parsed).await,
            // Nothing was ever listened to.
            Statement::Unlisten => Ok(Outcome::Done("UNLISTEN".into())),
            Statement::Maintain { tag, names } => {
                // Storage keeps itself in order; what is asked for is so already.
                self.refuse_in_block(tag)?;
                let (catalog, scope) = (self.engine.catalog(), self.scope());
                for name in names {
                    let found = catalog.resolve(&scope.database, &scope.search_path, &define::parts(name));
                    found.map_err(|e| if name.position > 0 { e.with_position(name.position) } else { e })?;
                }
                Ok(Outcome::Done((*tag).into()))
            }
            Statement::Truncate(names) => self.truncate(names).await,
            _ => self.define(parsed).await,
        }
    }

    fn deallocate(&mut self, name: Option<&str>) -> Result<Outcome> {
        match name {
            None => {
                self.prepared.clear();
                Ok(Outcome::Deallocate(None))
            }
            // A name that SQL did not prepare may be one of the protocol's.
            Some(name) => match self.prepared.remove(name) {
                Some(_) => Ok(Outcome::Done("DEALLOCATE".into())),
                None => Ok(Outcome::Deallocate(Some(name.to_string()))),
            },
        }
    }

    fn set(&mut self, name: &str, value: &SetValue, local: bool) -> Result<Outcome> {
        if local && !self.in_transaction() {
            self.warn("25P01", "SET LOCAL can only be used in transaction blocks");
            return Ok(Outcome::Done("SET".into()));
        }
        match value {
            SetValue::Default => self.change_setting(name, None, local)?,
            SetValue::Values(values) => self.change_setting(name, Some(&values.join(", ")), local)?,
        }
        Ok(Outcome::Done("SET".into()))
    }

    /// Sets or resets a setting, to be taken back if the transaction is.
    fn change_setting(&mut self, name: &str, value: Option<&str>, local: bool) -> Result<()> {
        // A custom setting has no value before it is first set.
        let before = self.settings.get(name).ok().map(str::to_string);
        match value {
            Some(value) => self.settings.set(name, value).map(|_| ())?,
            None => self.settings.reset(name)?,
        }
        self.remember_setting(name, before, local);
        self.note_changed(name);
        Ok(())
    }

    /// Makes the session's own what `set_config` has set while rows were read.
    fn apply_wanted_settings(&mut self) {
        let wanted = std::mem::take(&mut *self.wanted.lock());
        for WantedSetting { name, value, local } in wanted {
            // A local setting of a statement that stood alone has ended with it.
            if !local || self.in_transaction() {
                // It was accepted by the function.
                let _ = self.change_setting(&name, value.as_deref(), local);
            }
        }
    }

    fn reset(&mut self, name: Option<&str>) -> Result<Outcome> {
        match name {
            Some(name) => self.change_setting(name, None, false)?,
            None => {
                self.settings.reset_all();
                self.changed = catalog_reported(&self.settings);
            }
        }
        Ok(Outcome::Done("RESET".into()))
    }

    fn note_changed(&mut self, name: &str) {
        if let Some(setting) = catalog::settings::find(name)
            && self.settings.reported().any(|(n, _)| n == setting.name)
        {
            self.changed.push(setting.name);
        }
    }

    /// VACUUM stands alone, as in PostgreSQL; ANALYZE need not.
    fn refuse_in_block(&self, tag: &str) -> Result<()> {
        match (tag, self.transaction_status()) {
            ("VACUUM", transaction::Status::InTransaction) => self.refuse_in_transaction(tag),
            _ => Ok(()),
        }
    }

    /// A savepoint of the server is another thing than one of a transaction.
    fn no_savepoint_here(&self, what: &str) -> Error {
        Error::new(SqlState::ActiveSqlTransaction, format!("{what} cannot run inside a transaction block"))
            .with_detail("It keeps a checkpoint of the server by name.")
            .with_hint("SAVEPOINT name, without CREATE, marks a place in the transaction to roll back to.")
    }

    fn refuse_in_transaction(&self, what: &str) -> Result<()> {
        if self.in_transaction() {
            return Err(Error::new(
                SqlState::ActiveSqlTransaction,
                format!("{what} cannot run inside a transaction block"),
            ));
        }
        Ok(())
    }
}

fn catalog_reported(settings: &Settings) -> Vec<&'static str> {
    settings.reported().map(|(n, _)| n).collect()
}

/// How often a statement is planned again because the catalog changes under it.
const REPLANS_MAX: usize = 100;

/// A version that no catalog has: the plan is made again for each execution.
const NEVER: u64 = u64::MAX;

/// Whether a plan may be kept: the clock, the session and the system tables are read when planning.
fn lasts(text: &str, plan: &QueryPlan) -> bool {
    const MOMENTARY: [&str; 8] = ["now", "current", "local", "timestamp(", "time_of", "random", "pg_", "session"];
    let text = text.to_lowercase();
    !plan.relations.is_empty()
        && !plan.relations.contains(&flow::RelationId(0))
        && !MOMENTARY.iter().any(|m| text.contains(m))
}

/// Nullable text columns.
fn text_columns(names: &[&str]) -> SchemaRef {
    Arc::new(Schema::new(names.iter().map(|n| Field::new(*n, DataType::Utf8View, true)).collect::<Vec<_>>()))
}

/// A result that is at hand.
fn rows_outcome(schema: SchemaRef, batches: Vec<RecordBatch>, tag: &'static str, counted: bool) -> Outcome {
    let rows = Box::pin(futures::stream::iter(batches.into_iter().map(Ok)));
    Outcome::Rows { schema, rows, tag, counted }
}
