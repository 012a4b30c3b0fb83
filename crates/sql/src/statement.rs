//! What a statement says, before anything is looked up.
//!
//! Queries, expressions and types stay sqlparser's syntax trees (their spans give error positions); everything around them
//! is Millstream's own, checked to be something that Postgres or Millstream has. Names are already folded to lower case
//! unless quoted.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use datafusion::sql::sqlparser::ast;

pub use datafusion::sql::sqlparser::ast::{Expr, Query};

/// One statement of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub statement: Statement,
    /// The statement's own text, without the semicolon.
    pub text: String,
    /// 0-based character offset of `text` in [`source`](Self::source).
    pub position: usize,
    /// The whole text that was parsed. Positions in errors and spans in syntax trees refer to it.
    pub source: Arc<str>,
}

/// A possibly qualified name of a relation, as written, folded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Name {
    pub database: Option<String>,
    pub schema: Option<String>,
    pub name: String,
    /// 1-based character offset into the source text, 0 if unknown. Not part of the identity of a name.
    pub position: usize,
}

impl Name {
    /// An unqualified name.
    pub fn bare(name: impl Into<String>) -> Name {
        Name { database: None, schema: None, name: name.into(), position: 0 }
    }

    pub fn qualified(schema: impl Into<String>, name: impl Into<String>) -> Name {
        Name { database: None, schema: Some(schema.into()), name: name.into(), position: 0 }
    }
}

impl fmt::Display for Name {
    /// As it can be written in a statement: quoted where needed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.database, &self.schema].into_iter().flatten() {
            write!(f, "{}.", crate::names::quote(part))?;
        }
        f.write_str(&crate::names::quote(&self.name))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Statement {
    /// SELECT, VALUES, TABLE, WITH … SELECT.
    Query(Box<Query>),
    Insert(Box<Insert>),
    Update(Box<Update>),
    Delete(Box<Delete>),
    Truncate(Vec<Name>),
    Subscribe(Box<Subscribe>),
    /// VACUUM and ANALYZE of these relations, or of all.
    Maintain {
        tag: &'static str,
        names: Vec<Name>,
    },
    /// UNLISTEN of any channel.
    Unlisten,
    Copy(Box<Copy>),

    CreateTable(Box<CreateTable>),
    /// CREATE TABLE … AS, and SELECT … INTO.
    CreateTableAs(Box<CreateTableAs>),
    CreateSource(Box<CreateSource>),
    CreateSink(Box<CreateSink>),
    /// CREATE VIEW and CREATE MATERIALIZED VIEW.
    CreateView(Box<CreateView>),
    CreateSchema {
        name: Name,
        if_not_exists: bool,
    },
    CreateDatabase {
        name: String,
        if_not_exists: bool,
    },
    Drop(Drop),
    Alter(Alter),
    /// ALTER SYSTEM SET name …, or RESET name: a value for the whole server.
    AlterSystem(Set),
    Comment(Comment),

    Show(Show),
    /// SET of one session setting.
    Set(Set),
    /// RESET name; `None` is RESET ALL.
    Reset(Option<String>),
    Flush,
    Checkpoint,
    /// CREATE SAVEPOINT: keeps a checkpoint by name. Not the SAVEPOINT of a transaction.
    CreateSavepoint(String),
    DropSavepoint {
        name: String,
        if_exists: bool,
    },
    Explain(Box<Explain>),

    Begin(TransactionModes),
    Commit {
        chain: bool,
    },
    Rollback {
        chain: bool,
    },
    Savepoint(String),
    /// ROLLBACK TO SAVEPOINT.
    RollbackTo(String),
    /// RELEASE SAVEPOINT.
    Release(String),
    /// SET TRANSACTION, or SET SESSION CHARACTERISTICS AS TRANSACTION when `session`.
    SetTransaction {
        modes: TransactionModes,
        session: bool,
    },

    Prepare {
        name: String,
        types: Vec<ast::DataType>,
        statement: Box<Parsed>,
    },
    Execute {
        name: String,
        arguments: Vec<Expr>,
    },
    /// `None` is DEALLOCATE ALL.
    Deallocate(Option<String>),
    Discard(Discard),

    DeclareCursor(Box<DeclareCursor>),
    Fetch(Fetch),
    /// `None` is CLOSE ALL.
    CloseCursor(Option<String>),
}

/// The kinds of objects that share the statements DROP, ALTER and COMMENT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    Table,
    Source,
    Sink,
    View,
    MaterializedView,
    Schema,
    Database,
    Column,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ObjectKind::Table => "table",
            ObjectKind::Source => "source",
            ObjectKind::Sink => "sink",
            ObjectKind::View => "view",
            ObjectKind::MaterializedView => "materialized view",
            ObjectKind::Schema => "schema",
            ObjectKind::Database => "database",
            ObjectKind::Column => "column",
        })
    }
}

/// One column of CREATE TABLE or CREATE SOURCE.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnDefinition {
    pub name: String,
    /// As written; [`crate::types::arrow_type`] gives the canonical Arrow type.
    pub sql_type: ast::DataType,
    pub not_null: bool,
    /// The text of the DEFAULT expression.
    pub default: Option<DefaultExpr>,
    /// 1-based character offset of the column's name.
    pub position: usize,
}

/// `WATERMARK FOR column AS column [- interval]`.
#[derive(Clone, Debug, PartialEq)]
pub struct WatermarkDefinition {
    pub column: String,
    /// The interval that is taken off, if one is.
    pub delay: Option<Expr>,
    /// What stands behind AS.
    pub text: String,
    /// 1-based character offset of the column's name.
    pub position: usize,
}

/// A DEFAULT expression: its tree and its text.
#[derive(Clone, Debug, PartialEq)]
pub struct DefaultExpr {
    pub expr: Expr,
    pub text: String,
}

/// What an insert of a key that exists does, declared with the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// `23505`.
    #[default]
    Error,
    Overwrite,
    DoNothing,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CreateTable {
    pub name: Name,
    pub if_not_exists: bool,
    pub or_replace: bool,
    pub columns: Vec<ColumnDefinition>,
    /// Columns of the primary key, in key order; empty without one. They are NOT NULL.
    pub primary_key: Vec<String>,
    pub watermark: Option<WatermarkDefinition>,
    pub append_only: bool,
    pub on_conflict: OnConflict,
    /// `WITH (k = 'v', …)`.
    pub options: Options,
    pub format: Option<Format>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CreateTableAs {
    pub name: Name,
    pub if_not_exists: bool,
    /// Column names given before AS; may be fewer than the query's columns.
    pub columns: Vec<String>,
    pub query: Box<Query>,
    /// `false`: WITH NO DATA.
    pub with_data: bool,
}

/// `WITH (name = value, …)` in written order. Names are folded, values are text.
pub type Options = Vec<(String, String)>;

/// `FORMAT PLAIN ENCODE JSON (…)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    /// Upper case: `PLAIN`.
    pub format: String,
    /// Upper case: `JSON`, `CSV`.
    pub encode: String,
    pub options: Options,
    /// Where the clause begins; 0 when it was not parsed.
    pub position: usize,
}

/// `INCLUDE kind [AS name]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludeDefinition {
    pub kind: String,
    pub name: Option<String>,
    pub position: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CreateSource {
    pub name: Name,
    pub if_not_exists: bool,
    pub or_replace: bool,
    pub columns: Vec<ColumnDefinition>,
    /// Declared key; checked by nobody, used by UPSERT formats.
    pub primary_key: Vec<String>,
    pub watermark: Option<WatermarkDefinition>,
    pub include: Vec<IncludeDefinition>,
    pub options: Options,
    pub format: Option<Format>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CreateSink {
    /// `CREATE SINK INTO t FROM v` has no name of its own.
    pub name: Name,
    pub if_not_exists: bool,
    pub or_replace: bool,
    /// `INTO table`.
    pub into: Option<Name>,
    pub from: SinkFrom,
    pub options: Options,
    pub format: Option<Format>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum SinkFrom {
    Relation(Name),
    Query {
        query: Box<Query>,
        text: String,
        /// `EMIT ON WINDOW CLOSE`.
        emit_on_close: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct CreateView {
    pub name: Name,
    pub materialized: bool,
    pub if_not_exists: bool,
    pub or_replace: bool,
    /// Column names given before AS; may be fewer than the query's columns.
    pub columns: Vec<String>,
    pub options: Options,
    pub query: Box<Query>,
    /// The query's text as written.
    pub query_text: String,
    /// `EMIT ON WINDOW CLOSE`.
    pub emit_on_close: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Drop {
    pub kind: ObjectKind,
    pub if_exists: bool,
    /// For databases and schemas only `name` (and, for schemas, `schema` as its database) is set.
    pub names: Vec<Name>,
    pub cascade: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Alter {
    pub kind: ObjectKind,
    pub if_exists: bool,
    pub name: Name,
    /// In the order written; a RENAME stands alone.
    pub actions: Vec<AlterAction>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum AlterAction {
    RenameTo(String),
    RenameColumn {
        from: String,
        to: String,
    },
    AddColumn {
        column: Box<ColumnDefinition>,
        if_not_exists: bool,
    },
    DropColumn {
        name: String,
        if_exists: bool,
        cascade: bool,
    },
    SetDefault {
        name: String,
        /// `None` is DROP DEFAULT.
        default: Option<Box<DefaultExpr>>,
    },
    SetNotNull {
        name: String,
        not_null: bool,
    },
    SetSchema(String),
    OwnerTo(String),
    /// Of a source.
    Pause,
    Resume,
    /// SET (name = value, …), of a source.
    SetOptions(Options),
    /// SET PARALLELISM n, of a materialized view or a sink; `None` is DEFAULT.
    SetParallelism(Option<u32>),
    /// RESET (name, …), of a source.
    ResetOptions(Vec<String>),
}

/// COMMENT ON kind name IS text.
#[derive(Clone, Debug, PartialEq)]
pub struct Comment {
    pub kind: ObjectKind,
    /// For a column: the relation.
    pub name: Name,
    pub column: Option<String>,
    pub comment: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Show {
    /// SHOW name.
    Setting(String),
    /// SHOW ALL.
    All,
    /// SHOW TABLES, VIEWS, … [FROM schema] [LIKE pattern].
    Objects {
        kind: ShowKind,
        schema: Option<String>,
        like: Option<String>,
    },
    Columns(Name),
    Create {
        kind: ObjectKind,
        name: Name,
    },
    Jobs,
    Checkpoints,
    Savepoints,
    Subscriptions,
    Workers,
    Coordinators,
    Watermarks,
    /// EXPLAIN WATERMARK name.
    WatermarkOf(Name),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShowKind {
    Tables,
    Sources,
    Sinks,
    Views,
    MaterializedViews,
    Schemas,
    Databases,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// Folded; `TIME ZONE` is `timezone`.
    pub name: String,
    pub value: SetValue,
    /// Until the end of the transaction only.
    pub local: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum SetValue {
    Default,
    /// Values as text; several when a list was given (`search_path`).
    Values(Vec<String>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionModes {
    /// READ ONLY is `Some(true)`, READ WRITE `Some(false)`.
    pub read_only: Option<bool>,
    pub isolation: Option<Isolation>,
    pub deferrable: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    ReadUncommitted,
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Explain {
    pub analyze: bool,
    pub verbose: bool,
    pub layer: ExplainLayer,
    pub format: ExplainFormat,
    pub statement: Statement,
    /// Text of the explained statement.
    pub text: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExplainLayer {
    Table,
    #[default]
    Stream,
    Process,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExplainFormat {
    #[default]
    Text,
    Json,
    Dot,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Insert {
    pub table: Name,
    pub alias: Option<String>,
    /// Target columns with their 1-based positions; empty means all, in order.
    pub columns: Vec<(String, usize)>,
    /// `None` is DEFAULT VALUES.
    pub source: Option<Box<Query>>,
    pub on_conflict: Option<Conflict>,
    pub returning: Option<Vec<ast::SelectItem>>,
}

/// ON CONFLICT of an INSERT.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    pub target: ConflictTarget,
    /// DO UPDATE; `None` is DO NOTHING.
    pub update: Option<ConflictUpdate>,
    /// 1-based character offset of the statement, for errors about the clause.
    pub position: usize,
}

/// Which constraint an ON CONFLICT is about.
#[derive(Clone, Debug, PartialEq)]
pub enum ConflictTarget {
    /// Any.
    Any,
    Columns(Vec<String>),
    /// ON CONSTRAINT name.
    Constraint(String),
}

/// DO UPDATE SET … [WHERE …].
#[derive(Clone, Debug, PartialEq)]
pub struct ConflictUpdate {
    pub assignments: Vec<Assignment>,
    pub selection: Option<Expr>,
}

/// `column = value` of SET.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    pub column: String,
    /// 1-based character offset of the column.
    pub position: usize,
    pub value: Expr,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// WITH before the statement.
    pub with: Option<ast::With>,
    pub table: Name,
    pub alias: Option<String>,
    pub assignments: Vec<Assignment>,
    /// What FROM joins to the table.
    pub from: Vec<ast::TableWithJoins>,
    pub selection: Option<Expr>,
    pub returning: Option<Vec<ast::SelectItem>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Delete {
    /// WITH before the statement.
    pub with: Option<ast::With>,
    pub table: Name,
    pub alias: Option<String>,
    /// What USING joins to the table.
    pub using: Vec<ast::TableWithJoins>,
    pub selection: Option<Expr>,
    pub returning: Option<Vec<ast::SelectItem>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    pub target: CopyTarget,
    pub direction: CopyDirection,
    pub options: CopyOptions,
}

#[derive(Clone, Debug, PartialEq)]
pub enum CopyTarget {
    Table {
        name: Name,
        columns: Vec<(String, usize)>,
    },
    /// COPY (query) TO only.
    Query {
        query: Box<Query>,
        text: String,
    },
    /// COPY (SUBSCRIBE …) TO only.
    Subscribe(Box<Subscribe>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyDirection {
    FromStdin,
    ToStdout,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyFormat {
    #[default]
    Text,
    Csv,
    Binary,
}

/// COPY's options with Postgres' defaults filled in for the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyOptions {
    pub format: CopyFormat,
    pub header: CopyHeader,
    /// One byte.
    pub delimiter: u8,
    pub null: String,
    /// CSV only; one byte.
    pub quote: u8,
    /// CSV only; one byte.
    pub escape: u8,
    /// CSV TO: columns always quoted.
    pub force_quote: Vec<String>,
    pub force_quote_all: bool,
    /// CSV FROM: columns never matched against `null`.
    pub force_not_null: Vec<String>,
    /// CSV FROM: quoted values are matched against `null` too.
    pub force_null: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyHeader {
    #[default]
    None,
    /// First line is skipped (FROM) or written (TO).
    Present,
    /// FROM: the first line must name the columns in order.
    Match,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    All,
    Plans,
    Sequences,
    Temp,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DeclareCursor {
    pub name: String,
    pub binary: bool,
    pub hold: bool,
    pub scroll: Option<bool>,
    pub query: CursorQuery,
}

/// What a cursor is declared for.
#[derive(Clone, Debug, PartialEq)]
pub enum CursorQuery {
    Query(Box<Query>),
    Subscribe(Box<Subscribe>),
}

/// SUBSCRIBE: a relation's rows, then its changes as they come.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscribe {
    pub from: SubscribeFrom,
    /// 1-based character offset of what is subscribed to.
    pub position: usize,
    /// `AS OF EPOCH`: only changes of later epochs.
    pub as_of: Option<u64>,
    /// Whether the rows that are there come first.
    pub snapshot: bool,
    /// Whether rows say up to which epoch everything has been sent.
    pub progress: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum SubscribeFrom {
    Relation(Name),
    /// `(SELECT …)`.
    Query(Box<Query>),
}

/// FETCH or MOVE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    pub cursor: String,
    /// MOVE: skip rows without returning them.
    pub only_move: bool,
    pub direction: FetchDirection,
    /// How long to wait for the first row of a subscription; without one, for ever.
    pub timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchDirection {
    /// NEXT, FORWARD n, a bare count. Negative goes back.
    Forward(i64),
    ForwardAll,
    BackwardAll,
    First,
    Last,
    Absolute(i64),
    Relative(i64),
}

impl Statement {
    /// The command tag's words without counts, as Postgres reports them: `CREATE TABLE`, `SELECT`.
    pub fn tag(&self) -> &'static str {
        match self {
            Statement::Query(_) => "SELECT",
            Statement::Subscribe(_) => "SUBSCRIBE",
            Statement::Insert(_) => "INSERT",
            Statement::Update(_) => "UPDATE",
            Statement::Delete(_) => "DELETE",
            Statement::Truncate(_) => "TRUNCATE TABLE",
            Statement::Maintain { tag, .. } => tag,
            Statement::Unlisten => "UNLISTEN",
            Statement::Copy(_) => "COPY",
            Statement::CreateTable(_) => "CREATE TABLE",
            Statement::CreateTableAs(_) => "CREATE TABLE AS",
            Statement::Savepoint(_) => "SAVEPOINT",
            Statement::RollbackTo(_) => "ROLLBACK",
            Statement::Release(_) => "RELEASE",
            Statement::CreateSource(_) => "CREATE SOURCE",
            Statement::CreateSink(_) => "CREATE SINK",
            Statement::CreateView(v) if v.materialized => "CREATE MATERIALIZED VIEW",
            Statement::CreateView(_) => "CREATE VIEW",
            Statement::CreateSchema { .. } => "CREATE SCHEMA",
            Statement::CreateDatabase { .. } => "CREATE DATABASE",
            Statement::Drop(d) => match d.kind {
                ObjectKind::Table => "DROP TABLE",
                ObjectKind::Source => "DROP SOURCE",
                ObjectKind::Sink => "DROP SINK",
                ObjectKind::View => "DROP VIEW",
                ObjectKind::MaterializedView => "DROP MATERIALIZED VIEW",
                ObjectKind::Schema => "DROP SCHEMA",
                ObjectKind::Database => "DROP DATABASE",
                ObjectKind::Column => "ALTER TABLE",
            },
            Statement::Alter(a) => match a.kind {
                ObjectKind::Table | ObjectKind::Column => "ALTER TABLE",
                ObjectKind::Source => "ALTER SOURCE",
                ObjectKind::Sink => "ALTER SINK",
                ObjectKind::View => "ALTER VIEW",
                ObjectKind::MaterializedView => "ALTER MATERIALIZED VIEW",
                ObjectKind::Schema => "ALTER SCHEMA",
                ObjectKind::Database => "ALTER DATABASE",
            },
            Statement::AlterSystem(_) => "ALTER SYSTEM",
            Statement::Comment(_) => "COMMENT",
            Statement::Show(_) => "SHOW",
            Statement::Set(_) | Statement::SetTransaction { .. } => "SET",
            Statement::Reset(_) => "RESET",
            Statement::Flush => "FLUSH",
            Statement::Checkpoint => "CHECKPOINT",
            Statement::CreateSavepoint(_) => "CREATE SAVEPOINT",
            Statement::DropSavepoint { .. } => "DROP SAVEPOINT",
            Statement::Explain(_) => "EXPLAIN",
            Statement::Begin(_) => "BEGIN",
            Statement::Commit { .. } => "COMMIT",
            Statement::Rollback { .. } => "ROLLBACK",
            Statement::Prepare { .. } => "PREPARE",
            Statement::Execute { .. } => "EXECUTE",
            Statement::Deallocate(Some(_)) => "DEALLOCATE",
            Statement::Deallocate(None) => "DEALLOCATE ALL",
            Statement::Discard(Discard::All) => "DISCARD ALL",
            Statement::Discard(Discard::Plans) => "DISCARD PLANS",
            Statement::Discard(Discard::Sequences) => "DISCARD SEQUENCES",
            Statement::Discard(Discard::Temp) => "DISCARD TEMP",
            Statement::DeclareCursor(_) => "DECLARE CURSOR",
            Statement::Fetch(f) if f.only_move => "MOVE",
            Statement::Fetch(_) => "FETCH",
            Statement::CloseCursor(_) => "CLOSE CURSOR",
        }
    }
}
