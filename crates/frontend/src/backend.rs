//! The contract between the protocol and the server behind it.
//!
//! One [`Backend`] serves the process; it opens one [`Session`] per connection. The protocol drives a session from one
//! task, one call at a time, in this order for each statement: [`Session::parse`], [`Session::prepare`],
//! [`Session::execute`]. A simple query does all three at once; the extended protocol does them in separate messages.

use std::any::Any;
use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use flow::Result;
use futures::stream::BoxStream;

use crate::cancel::CancelHandle;
use crate::copy::CopyOptions;
use crate::settings::TextSettings;

/// Batches of rows of one schema, ending at the first error.
pub type BatchStream = BoxStream<'static, Result<RecordBatch>>;

/// What a client said when it connected, after it has been authenticated.
#[derive(Clone, Debug)]
pub struct Startup {
    pub user: String,
    /// The database named by the client, or else the user's name as Postgres has it.
    pub database: String,
    pub application_name: String,
    /// Every other start-up parameter, with the `-c name=value` pairs of `options` merged in. Names in lower case. These
    /// are the session's initial settings; `client_encoding` is dealt with by the frontend and not in here.
    pub parameters: HashMap<String, String>,
    /// The process id that the client was told; unique among open connections.
    pub pid: i32,
    pub remote: SocketAddr,
    /// Says when the running statement must stop; the session keeps it for its life. See [`CancelHandle`].
    pub cancel: Arc<CancelHandle>,
}

/// The server behind the protocol.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Opens a session, or refuses it (unknown database, server not ready). The error goes to the client as FATAL.
    async fn open(&self, startup: Startup) -> Result<Box<dyn Session>>;
}

/// One statement of a query string.
#[derive(Clone)]
pub struct ParsedStatement {
    /// COMMIT, ROLLBACK and their like: what may still run in a failed transaction. Everything else is refused there by
    /// the frontend with `25P02`.
    pub ends_transaction: bool,
    /// The session's own form of the statement.
    pub body: Arc<dyn Any + Send + Sync>,
}

/// A statement that has been analysed and can be executed any number of times.
#[derive(Clone)]
pub struct Prepared {
    /// The type of `$1`, `$2`, ... None is left undetermined (`42P18` otherwise).
    pub parameters: Vec<DataType>,
    /// Their Postgres types, where the Arrow types do not tell them; may be shorter.
    pub parameter_oids: Vec<Option<u32>>,
    /// The columns of the result, or `None` when the statement returns no rows.
    pub columns: Option<SchemaRef>,
    /// The session's own form of the plan.
    pub plan: Arc<dyn Any + Send + Sync>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// Not in an explicit transaction.
    Idle,
    /// After BEGIN.
    InTransaction,
    /// After BEGIN and an error: only the end of the transaction is accepted.
    Failed,
}

/// How the command tag of a result with rows is formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsTag {
    /// The words followed by the number of rows sent: `SELECT`, `FETCH`, `INSERT 0`, `UPDATE`, `DELETE`.
    Counted(&'static str),
    /// The words alone: `SHOW`, `EXPLAIN`.
    Fixed(&'static str),
}

impl RowsTag {
    pub const SELECT: RowsTag = RowsTag::Counted("SELECT");
    pub const FETCH: RowsTag = RowsTag::Counted("FETCH");
    pub const INSERT: RowsTag = RowsTag::Counted("INSERT 0");
    pub const UPDATE: RowsTag = RowsTag::Counted("UPDATE");
    pub const DELETE: RowsTag = RowsTag::Counted("DELETE");
    pub const SHOW: RowsTag = RowsTag::Fixed("SHOW");
    pub const EXPLAIN: RowsTag = RowsTag::Fixed("EXPLAIN");

    /// The whole tag for a result of so many rows.
    pub(crate) fn of(self, rows: u64) -> String {
        match self {
            RowsTag::Counted(words) => format!("{words} {rows}"),
            RowsTag::Fixed(words) => words.to_string(),
        }
    }
}

/// What executing a statement comes to.
pub enum Response {
    /// Rows, as they become available. The stream belongs to the portal: it may be read long after `execute` returned,
    /// with other statements in between, and is dropped at the end of the transaction.
    Rows { schema: SchemaRef, batches: BatchStream, tag: RowsTag },
    /// No rows; `tag` is the whole command tag, such as `INSERT 0 3` or `CREATE TABLE`.
    Command { tag: Cow<'static, str> },
    /// COPY ... FROM STDIN.
    CopyIn(CopyIn),
    /// COPY ... TO STDOUT.
    CopyOut(CopyOut),
    /// DEALLOCATE of a statement that the session itself did not prepare: `None` is ALL.
    Deallocate { name: Option<String> },
    /// The statement was empty.
    Empty,
}

impl Response {
    pub fn command(tag: impl Into<Cow<'static, str>>) -> Response {
        Response::Command { tag: tag.into() }
    }
}

/// Rows that a client is about to send.
pub struct CopyIn {
    /// The table's name, for the context of errors.
    pub table: String,
    /// The columns that the client sends, in the order of the statement. The batches pushed to `sink` have these names
    /// and types, with every column nullable: NOT NULL is the sink's to check.
    pub schema: SchemaRef,
    pub options: CopyOptions,
    pub sink: Box<dyn CopySink>,
}

/// Takes the rows of one COPY FROM. Dropped without a call to `finish`, it must leave nothing behind: that is what
/// happens on any error, on CopyFail and when the client goes away.
#[async_trait]
pub trait CopySink: Send {
    /// Takes at most 8192 rows. An error ends the COPY.
    async fn push(&mut self, batch: RecordBatch) -> Result<()>;

    /// All rows have been pushed: makes them part of the transaction, or durable when there is none. Returns the number
    /// of rows for the command tag.
    async fn finish(self: Box<Self>) -> Result<u64>;
}

/// Rows that a client is about to receive.
pub struct CopyOut {
    pub schema: SchemaRef,
    pub options: CopyOptions,
    pub batches: BatchStream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeSeverity {
    Debug,
    Log,
    Info,
    Notice,
    Warning,
}

impl NoticeSeverity {
    pub(crate) fn word(self) -> &'static str {
        match self {
            NoticeSeverity::Debug => "DEBUG",
            NoticeSeverity::Log => "LOG",
            NoticeSeverity::Info => "INFO",
            NoticeSeverity::Notice => "NOTICE",
            NoticeSeverity::Warning => "WARNING",
        }
    }
}

/// Something the client should know that is not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub severity: NoticeSeverity,
    /// The five characters: `00000` for notices, `01000` for warnings, unless something fits better.
    pub code: &'static str,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl Notice {
    pub fn plain(message: impl Into<String>) -> Notice {
        Notice::new(NoticeSeverity::Notice, "00000", message)
    }

    pub fn warning(message: impl Into<String>) -> Notice {
        Notice::new(NoticeSeverity::Warning, "01000", message)
    }

    pub fn new(severity: NoticeSeverity, code: &'static str, message: impl Into<String>) -> Notice {
        Notice { severity, code, message: message.into(), detail: None, hint: None }
    }
}

/// One client's conversation. Dropping it ends the session and rolls back what is open.
///
/// Error positions count characters from 1 in the string that was given to [`parse`](Session::parse), whichever call
/// reports them.
#[async_trait]
pub trait Session: Send {
    /// Splits `sql` into statements. Text with nothing but white space, comments and semicolons is an empty list. A syntax
    /// error anywhere refuses the whole string.
    fn parse(&mut self, sql: &str) -> Result<Vec<ParsedStatement>>;

    /// Analyses one statement. `declared` holds the types that the client named for `$1`, `$2`, ...; it may be shorter
    /// than the list of parameters, and `None` leaves the choice to the analysis.
    async fn prepare(&mut self, statement: &ParsedStatement, declared: &[Option<DataType>]) -> Result<Prepared>;

    /// Runs a prepared statement. `parameters` holds one array of one row per entry of `prepared.parameters`, of exactly
    /// that type. The future is never dropped before it is ready, except when the connection ends: to be stopped, it
    /// watches [`Startup::cancel`].
    ///
    /// The plan may be older than the latest change of the catalog: the session re-analyses if it must. If the columns
    /// have then changed, the frontend refuses with "cached plan must not change result type".
    async fn execute(&mut self, prepared: &Prepared, parameters: Vec<ArrayRef>) -> Result<Response>;

    /// The state of the explicit transaction; an implicit one counts as `Idle`.
    fn transaction_status(&self) -> TransactionStatus;

    /// An error happened inside an explicit transaction: from here on it is `Failed`. Only called when
    /// [`transaction_status`](Session::transaction_status) is `InTransaction`.
    fn fail_transaction(&mut self);

    /// Opens the implicit transaction that joins the statements of one query string, or of one pipeline up to Sync. Not
    /// called for a statement that stands alone: that one commits by itself. Called with no transaction open. A BEGIN
    /// inside turns it into an explicit one, which then also holds what came before.
    async fn begin_implicit(&mut self) -> Result<()>;

    /// Ends the implicit transaction, if it is still open: after a BEGIN or a COMMIT inside it there may be nothing to do.
    /// Never touches an explicit transaction.
    async fn end_implicit(&mut self, commit: bool) -> Result<()>;

    /// The notices since the last call, in order.
    fn take_notices(&mut self) -> Vec<Notice> {
        Vec::new()
    }

    /// The settings that a client is told about (`TimeZone`, `DateStyle`, `IntervalStyle`, `application_name`, ...), with
    /// their values at the start. The frontend adds those that never change.
    fn reported_parameters(&self) -> Vec<(String, String)>;

    /// Those of them whose value has changed since the last call.
    fn take_parameter_changes(&mut self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// The columns of the open SQL cursor of that name: to clients cursors are portals.
    fn cursor_columns(&self, _name: &str) -> Option<SchemaRef> {
        None
    }

    /// Closes that cursor, if it is open.
    fn close_cursor(&mut self, _name: &str) {}

    /// The client has its answer and it is its turn: called before each ReadyForQuery. Gives how long the session may now
    /// wait for the client, if there is a limit.
    fn wait_for_client(&mut self) -> Option<Duration> {
        None
    }

    /// How values are written as text, by the session's present settings. Called for each execution.
    fn text_settings(&self) -> TextSettings;
}
