//! Sessions of the coordinator behind the frontend's `Session` trait.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use catalog::Settings;
use coord::session::copy::CopyPlan;
use coord::session::transaction::Status;
use coord::session::{Outcome, Prepared as Planned};
use coord::sessions::OpenSession;
use coord::{Engine, Session as CoordSession};
use datafusion::execution::context::SessionState;
use flow::{Error, Result, SqlState};
use frontend::backend::{CopyIn, CopyOut, CopySink, NoticeSeverity};
use frontend::copy::CopyHeader;
use frontend::settings::FloatDigits;
use frontend::{
    Backend, ByteaOutput, CancelHandle, CopyFormat, CopyOptions, IntervalStyle, Notice, ParsedStatement, Prepared,
    Response, RowsTag, Session, Startup, TextSettings, TimeZone, TransactionStatus,
};
use futures::StreamExt;
use query::system::ActivityInfo;
use sql::statement::{Parsed, Statement};
use tokio::sync::Mutex;

use crate::standing::{Engines, LOGIN_WAIT_MAX, STATEMENT_WAIT_MAX};

/// The engine of the moment with what sessions are made from.
pub struct Server {
    engines: Arc<Engines>,
    base: SessionState,
}

impl Server {
    pub fn new(engines: Arc<Engines>, base: SessionState) -> Server {
        Server { engines, base }
    }

    pub fn engines(&self) -> &Arc<Engines> {
        &self.engines
    }

    /// A session that no client is connected to.
    pub fn session(&self, engine: &Arc<Engine>, user: &str, database: &str, pid: i32) -> CoordSession {
        let settings = Settings::new(|name| TimeZone::parse(name).ok().map(TimeZone::show));
        CoordSession::new(Arc::clone(engine), self.base.clone(), settings, user.into(), database.into(), pid)
    }
}

#[async_trait]
impl Backend for Server {
    async fn open(&self, startup: Startup) -> Result<Box<dyn Session>> {
        // Clients that name no database get their user's name; PostgreSQL users expect that to fail, but here `dev` is
        // where everything is.
        let engine = match self.engines.last() {
            // Whoever asks how it stands need not wait.
            Some(engine) => engine,
            None => self.engines.ready(LOGIN_WAIT_MAX).await?,
        };
        let catalog = engine.catalog();
        let named = catalog.database(&startup.database).is_some();
        let database = if !named && startup.database == startup.user { "dev" } else { &startup.database };
        if catalog.database(database).is_none() {
            return Err(Error::new(SqlState::InvalidCatalogName, format!("database \"{database}\" does not exist"))
                .with_hint("Connect to database dev."));
        }
        let mut session = self.session(&engine, &startup.user, database, startup.pid);
        session.settings.set_default("session_authorization", &startup.user)?;
        if !startup.application_name.is_empty() {
            session.settings.set_default("application_name", &startup.application_name)?;
        }
        for (name, value) in &startup.parameters {
            session.settings.set_default(name, value)?;
        }
        let client = (startup.remote.ip().to_string(), startup.remote.port());
        session.client = Some(client.clone());
        let now_us = engine.config.time.now_us();
        let activity = ActivityInfo {
            pid: startup.pid,
            database: database.to_string(),
            user: startup.user,
            application_name: startup.application_name,
            client: Some(client),
            state: "idle".to_string(),
            started_at_us: Some(now_us),
            state_changed_at_us: Some(now_us),
            ..ActivityInfo::default()
        };
        let cancel = Arc::clone(&startup.cancel);
        let stop = move |whole_session| if whole_session { cancel.terminate() } else { cancel.cancel() };
        let open = engine.sessions.open(activity, Box::new(stop));
        let (engines, session) = (Arc::clone(&self.engines), Arc::new(Mutex::new(session)));
        Ok(Box::new(Connected { engines, session, cancel: startup.cancel, open }))
    }
}

/// One client's session.
struct Connected {
    engines: Arc<Engines>,
    /// Shared with a COPY in progress, which outlives the call that started it; never contended.
    session: Arc<Mutex<CoordSession>>,
    cancel: Arc<CancelHandle>,
    /// Its place in `pg_stat_activity`.
    open: OpenSession,
}

impl Connected {
    fn with<T>(&self, read: impl FnOnce(&mut CoordSession) -> T) -> Option<T> {
        self.session.try_lock().ok().map(|mut session| read(&mut session))
    }
}

/// Ends `work` when the client cancels or the time is up.
async fn bounded<T>(
    cancel: &CancelHandle,
    limit: Option<Duration>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match limit {
        None => cancel.run(work).await,
        Some(limit) => match tokio::time::timeout(limit, cancel.run(work)).await {
            Ok(done) => done,
            Err(_) => Err(timed_out()),
        },
    }
}

/// Ends `work` when the engine that does it is interrupted. What is done by then counts.
async fn unless_interrupted<T>(
    engines: &Engines,
    engine: &Arc<Engine>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        done = work => done.map_err(|error| engines.explain(engine, error)),
        cause = engines.interrupted(engine) => Err(cause),
    }
}

/// Lets the session go on with the engine of the moment. A statement that only asks how things stand takes the last one.
async fn join(engines: &Engines, session: &mut CoordSession, statement: &Statement) -> Result<Arc<Engine>> {
    let engine = match statement {
        Statement::Show(_) => engines.last().unwrap_or_else(|| Arc::clone(session.engine())),
        // What ends a transaction has nothing to wait for.
        Statement::Rollback { .. } if engines.running().is_err() => Arc::clone(session.engine()),
        _ => engines.ready(STATEMENT_WAIT_MAX).await?,
    };
    if !Arc::ptr_eq(&engine, session.engine()) {
        session.move_to(Arc::clone(&engine))?;
    }
    Ok(engine)
}

fn timed_out() -> Error {
    Error::new(SqlState::QueryCanceled, "canceling statement due to statement timeout")
}

fn busy() -> Error {
    Error::internal("the session is busy")
}

#[async_trait]
impl Session for Connected {
    fn parse(&mut self, sql: &str) -> Result<Vec<ParsedStatement>> {
        let statements = self.with(|s| s.parse(sql)).ok_or_else(busy)??;
        Ok(statements
            .into_iter()
            .map(|parsed| ParsedStatement {
                ends_transaction: matches!(
                    parsed.statement,
                    Statement::Commit { .. } | Statement::Rollback { .. } | Statement::RollbackTo(_)
                ),
                body: Arc::new(parsed),
            })
            .collect())
    }

    async fn prepare(&mut self, statement: &ParsedStatement, declared: &[Option<DataType>]) -> Result<Prepared> {
        let parsed =
            Arc::clone(&statement.body).downcast::<Parsed>().map_err(|_| Error::internal("not a statement"))?;
        let mut session = self.session.lock().await;
        let limit = session.statement_timeout();
        let plan = async {
            let engine = join(&self.engines, &mut session, &parsed.statement).await?;
            self.open.move_to(&engine.sessions);
            session.prepare(&parsed, declared).await
        };
        let planned = bounded(&self.cancel, limit, plan).await?;
        Ok(Prepared {
            parameters: planned.parameters.clone(),
            parameter_oids: planned.parameter_oids.clone(),
            columns: planned.columns.clone(),
            plan: Arc::new(planned),
        })
    }

    async fn execute(&mut self, prepared: &Prepared, parameters: Vec<ArrayRef>) -> Result<Response> {
        let planned = prepared.plan.downcast_ref::<Planned>().ok_or_else(|| Error::internal("not a plan"))?;
        let mut session = self.session.lock().await;
        self.open.runs(&planned.parsed, session.engine().config.time.now_us());
        let limit = session.statement_timeout();
        let deadline = limit.map(|limit| tokio::time::Instant::now() + limit);
        let run = async {
            let engine = join(&self.engines, &mut session, &planned.parsed.statement).await?;
            self.open.move_to(&engine.sessions);
            // What only asks how things stand is answered by an engine that is interrupted, too.
            if matches!(planned.parsed.statement, Statement::Show(_)) {
                return Ok((session.execute(planned, &parameters).await?, engine));
            }
            let outcome = unless_interrupted(&self.engines, &engine, session.execute(planned, &parameters)).await?;
            Ok((outcome, engine))
        };
        let (outcome, engine) = bounded(&self.cancel, limit, run).await?;
        Ok(match outcome {
            Outcome::Rows { schema, rows, tag, counted } => {
                let (cancel, engines) = (Arc::clone(&self.cancel), Arc::clone(&self.engines));
                let explain = move |error| engines.explain(&engine, error);
                let mut rows = rows.map(move |batch| cancel.check().and(batch).map_err(&explain)).boxed();
                // The time that rows take counts too.
                let mut late = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
                let batches = futures::stream::poll_fn(move |context| {
                    if let Some(time) = &mut late
                        && time.as_mut().poll(context).is_ready()
                    {
                        late = None;
                        return Poll::Ready(Some(Err(timed_out())));
                    }
                    rows.poll_next_unpin(context)
                })
                .boxed();
                let tag = if counted { RowsTag::Counted(tag) } else { RowsTag::Fixed(tag) };
                Response::Rows { schema, batches, tag }
            }
            Outcome::Done(tag) => Response::command(tag),
            Outcome::Deallocate(name) => Response::Deallocate { name },
            Outcome::CopyTo(copy) => {
                let options = copy_options(&copy.options, &copy.schema);
                Response::CopyOut(CopyOut { schema: copy.schema, options, batches: copy.rows })
            }
            Outcome::CopyFrom(copy) => {
                let options = copy_options(&copy.options, &copy.schema);
                let (engines, session) = (Arc::clone(&self.engines), Arc::clone(&self.session));
                let sink = CopyRows { engines, session, plan: copy.plan, batches: Vec::new() };
                Response::CopyIn(CopyIn { table: copy.table, schema: copy.schema, options, sink: Box::new(sink) })
            }
        })
    }

    fn transaction_status(&self) -> TransactionStatus {
        match self.with(|s| s.transaction_status()) {
            Some(Status::InTransaction) => TransactionStatus::InTransaction,
            Some(Status::Failed) => TransactionStatus::Failed,
            Some(Status::Idle) | None => TransactionStatus::Idle,
        }
    }

    fn fail_transaction(&mut self) {
        self.with(CoordSession::fail_transaction);
    }

    async fn begin_implicit(&mut self) -> Result<()> {
        self.session.lock().await.begin_implicit();
        Ok(())
    }

    async fn end_implicit(&mut self, commit: bool) -> Result<()> {
        let mut session = self.session.lock().await;
        let engine = Arc::clone(session.engine());
        unless_interrupted(&self.engines, &engine, session.end_implicit(commit)).await
    }

    fn take_notices(&mut self) -> Vec<Notice> {
        let notices = self.with(CoordSession::take_notices).unwrap_or_default();
        notices
            .into_iter()
            .map(|n| {
                let severity = if n.warning { NoticeSeverity::Warning } else { NoticeSeverity::Notice };
                Notice { detail: n.detail, ..Notice::new(severity, n.code, n.message) }
            })
            .collect()
    }

    fn reported_parameters(&self) -> Vec<(String, String)> {
        self.with(|s| s.settings.reported().map(|(n, v)| (n.to_string(), v.to_string())).collect()).unwrap_or_default()
    }

    fn take_parameter_changes(&mut self) -> Vec<(String, String)> {
        self.with(CoordSession::take_parameter_changes).unwrap_or_default()
    }

    fn cursor_columns(&self, name: &str) -> Option<SchemaRef> {
        self.with(|s| s.cursor_columns(name).ok()).flatten()
    }

    fn close_cursor(&mut self, name: &str) {
        self.with(|s| s.close_cursor(Some(name)).is_ok());
    }

    fn wait_for_client(&mut self) -> Option<Duration> {
        let open = &self.open;
        self.session.try_lock().ok().and_then(|session| {
            let (state, limit) = match session.transaction_status() {
                Status::Idle => ("idle", "idle_session_timeout"),
                Status::InTransaction => ("idle in transaction", "idle_in_transaction_session_timeout"),
                Status::Failed => ("idle in transaction (aborted)", "idle_in_transaction_session_timeout"),
            };
            let application_name = session.settings.get("application_name").unwrap_or_default();
            open.waits(state, application_name, session.engine().config.time.now_us());
            session.settings.duration_ms(limit).map(Duration::from_millis)
        })
    }

    fn text_settings(&self) -> TextSettings {
        self.with(|s| {
            // Every value was accepted by SET, so each of these parses.
            let get = |name: &str| s.settings.get(name).unwrap_or_default();
            let defaults = TextSettings::default();
            let (date_style, date_order) =
                frontend::settings::parse_date_style(get("DateStyle"), defaults.date_style, defaults.date_order)
                    .unwrap_or((defaults.date_style, defaults.date_order));
            TextSettings {
                now_us: Some(s.engine().config.time.now_us()),
                time_zone: TimeZone::parse(get("TimeZone")).unwrap_or(defaults.time_zone),
                date_style,
                date_order,
                interval_style: IntervalStyle::parse(get("IntervalStyle")).unwrap_or(defaults.interval_style),
                bytea_output: ByteaOutput::parse(get("bytea_output")).unwrap_or(defaults.bytea_output),
                extra_float_digits: FloatDigits::parse(get("extra_float_digits"))
                    .unwrap_or(defaults.extra_float_digits),
            }
        })
        .unwrap_or_default()
    }
}

/// Collects the rows of a COPY FROM; nothing is changed before all of them are there.
struct CopyRows {
    engines: Arc<Engines>,
    session: Arc<Mutex<CoordSession>>,
    plan: CopyPlan,
    batches: Vec<RecordBatch>,
}

#[async_trait]
impl CopySink for CopyRows {
    async fn push(&mut self, batch: RecordBatch) -> Result<()> {
        self.batches.push(self.plan.rows(&batch)?);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<u64> {
        let mut session = self.session.lock().await;
        let engine = Arc::clone(session.engine());
        unless_interrupted(&self.engines, &engine, session.copy_rows(&self.plan, self.batches)).await
    }
}

fn copy_options(options: &sql::statement::CopyOptions, schema: &arrow::datatypes::SchemaRef) -> CopyOptions {
    let positions = |names: &[String]| names.iter().filter_map(|n| schema.index_of(n).ok()).collect();
    CopyOptions {
        format: match options.format {
            sql::statement::CopyFormat::Text => CopyFormat::Text,
            sql::statement::CopyFormat::Csv => CopyFormat::Csv,
            sql::statement::CopyFormat::Binary => CopyFormat::Binary,
        },
        delimiter: options.delimiter,
        null: options.null.clone(),
        header: match options.header {
            sql::statement::CopyHeader::None => CopyHeader::No,
            sql::statement::CopyHeader::Present => CopyHeader::Yes,
            sql::statement::CopyHeader::Match => CopyHeader::Match,
        },
        quote: options.quote,
        escape: options.escape,
        force_quote: match options.force_quote_all {
            true => (0..schema.fields().len()).collect(),
            false => positions(&options.force_quote),
        },
        force_not_null: positions(&options.force_not_null),
        force_null: positions(&options.force_null),
    }
}
