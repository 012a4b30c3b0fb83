//! A backend without SQL: a handful of commands that bring out every path of the protocol.

use std::any::Any;
use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StringViewArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use flow::{Error, Result, SqlState};
use futures::{StreamExt, stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::*;

/// What the sessions of one fake server share: the committed rows and what has been asked of the transactions.
#[derive(Default)]
pub(super) struct Store {
    pub(super) committed: Vec<String>,
    pub(super) log: Vec<String>,
    /// The rows of the last COPY FROM that came to its end.
    pub(super) copied: Option<RecordBatch>,
}

#[derive(Default)]
pub(super) struct Fake {
    pub(super) store: Arc<Mutex<Store>>,
}

#[async_trait]
impl Backend for Fake {
    async fn open(&self, startup: Startup) -> Result<Box<dyn Session>> {
        if startup.database == "missing" {
            return Err(Error::new(SqlState::InvalidCatalogName, "database \"missing\" does not exist"));
        }
        let time_zone = match startup.parameters.get("timezone") {
            Some(name) => TimeZone::parse(name)?,
            None => TimeZone::Utc,
        };
        let settings = TextSettings { time_zone, ..TextSettings::default() };
        Ok(Box::new(FakeSession {
            startup,
            store: Arc::clone(&self.store),
            settings,
            status: TransactionStatus::Idle,
            pending: Vec::new(),
            transactional: false,
            notices: Vec::new(),
            changes: Vec::new(),
        }))
    }
}

struct FakeSession {
    startup: Startup,
    store: Arc<Mutex<Store>>,
    settings: TextSettings,
    status: TransactionStatus,
    /// Rows inserted in the open transaction.
    pending: Vec<String>,
    transactional: bool,
    notices: Vec<Notice>,
    changes: Vec<(String, String)>,
}

type Command = Vec<String>;

fn schema_of(columns: &[(&str, DataType)]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|(n, t)| Field::new(*n, t.clone(), true)).collect::<Vec<_>>()))
}

/// `n:int4|t:text` as a schema; names of Postgres types.
pub(super) fn schema_named(columns: &str) -> SchemaRef {
    let field = |column: &str| {
        let (name, type_name) = column.split_once(':').unwrap_or((column, column));
        let pg = types::PgType::named(type_name).unwrap();
        let mut data_type = types::data_type_of(pg.oid).unwrap();
        if let (DataType::Decimal128(..), true) = (&data_type, pg.typmod >= 4) {
            data_type = DataType::Decimal128(((pg.typmod - 4) >> 16) as u8, ((pg.typmod - 4) & 0x7ff) as i8);
        }
        Field::new(name, data_type, true).with_metadata([(types::PG_TYPE.to_string(), type_name.to_string())].into())
    };
    Arc::new(Schema::new(columns.split('|').map(field).collect::<Vec<_>>()))
}

impl FakeSession {
    fn commit(&mut self) {
        let mut store = self.store.lock().unwrap();
        store.committed.append(&mut self.pending);
    }

    fn log(&self, entry: &str) {
        self.store.lock().unwrap().log.push(entry.to_string());
    }
}

fn rows_response(schema: SchemaRef, batches: Vec<RecordBatch>) -> Response {
    Response::Rows { schema, batches: stream::iter(batches.into_iter().map(Ok)).boxed(), tag: RowsTag::SELECT }
}

#[async_trait]
impl Session for FakeSession {
    fn parse(&mut self, sql: &str) -> Result<Vec<ParsedStatement>> {
        let mut statements = Vec::new();
        for text in sql.split(';').filter(|text| !text.trim().is_empty()) {
            let mut words: Command = text.split_whitespace().map(str::to_string).collect();
            match words[0].as_str() {
                "START" => words[0] = "begin".to_string(),
                // The form that psql lets through.
                "copy" => {
                    words[0] = "copyin".to_string();
                    words.truncate(3);
                }
                "COMMIT" => words[0] = "commit".to_string(),
                "ROLLBACK" => words[0] = "rollback".to_string(),
                _ => {}
            }
            if words[0] == "syntax" {
                let position = sql.find("syntax").unwrap() + 1;
                return Err(Error::new(SqlState::SyntaxError, "syntax error at or near \"syntax\"")
                    .with_position(position)
                    .with_detail("It says so.")
                    .with_hint("Do not say so."));
            }
            let ends_transaction = matches!(words[0].as_str(), "commit" | "rollback");
            statements.push(ParsedStatement { ends_transaction, body: Arc::new(words) });
        }
        Ok(statements)
    }

    async fn prepare(&mut self, statement: &ParsedStatement, declared: &[Option<DataType>]) -> Result<Prepared> {
        let words = statement.body.downcast_ref::<Command>().unwrap().clone();
        let argument = words.get(1).cloned().unwrap_or_default();
        let (parameters, columns) = match words[0].as_str() {
            "rows" => (vec![], Some(schema_of(&[("n", DataType::Int32), ("t", DataType::Utf8View)]))),
            "count" => (vec![], Some(schema_of(&[("count", DataType::Int32)]))),
            "slow" => (vec![], Some(schema_of(&[("n", DataType::Int32)]))),
            "types" => (vec![], Some(super::every_type().schema())),
            "echo" => {
                let schema = schema_named(&words[1..].join(" "));
                (schema.fields().iter().map(|f| f.data_type().clone()).collect(), Some(schema))
            }
            "declared" => (declared.iter().map(|d| d.clone().unwrap_or(DataType::Utf8View)).collect(), None),
            "insert" if argument == "$1" => (vec![DataType::Utf8View], None),
            "unknown" => return Err(Error::new(SqlState::UndefinedTable, "relation \"unknown\" does not exist")),
            _ => (vec![], None),
        };
        Ok(Prepared { parameters, parameter_oids: Vec::new(), columns, plan: Arc::new(words) })
    }

    async fn execute(&mut self, prepared: &Prepared, parameters: Vec<ArrayRef>) -> Result<Response> {
        let plan: &(dyn Any + Send + Sync) = prepared.plan.as_ref();
        let words = plan.downcast_ref::<Command>().unwrap();
        let argument = words.get(1).map_or("", String::as_str);
        let done = |tag: &'static str| Ok(Response::command(tag));
        match words[0].as_str() {
            "rows" => {
                let rows: i32 = argument.parse().unwrap();
                let schema = prepared.columns.clone().unwrap();
                let batch_schema = Arc::clone(&schema);
                let batches = stream::iter((0..rows).step_by(1000)).map(move |from| {
                    let numbers: Vec<i32> = (from..rows.min(from + 1000)).collect();
                    let texts = StringViewArray::from_iter_values(numbers.iter().map(|n| format!("row {n}")));
                    let columns: Vec<ArrayRef> = vec![Arc::new(Int32Array::from(numbers)), Arc::new(texts)];
                    Ok(RecordBatch::try_new(Arc::clone(&batch_schema), columns)?)
                });
                Ok(Response::Rows { schema, batches: batches.boxed(), tag: RowsTag::SELECT })
            }
            "slow" => {
                // One row now, the others never.
                let schema = prepared.columns.clone().unwrap();
                let row: ArrayRef = Arc::new(Int32Array::from(vec![1]));
                let batch = RecordBatch::try_new(Arc::clone(&schema), vec![row])?;
                let batches = stream::iter([Ok(batch)]).chain(stream::pending()).boxed();
                Ok(Response::Rows { schema, batches, tag: RowsTag::SELECT })
            }
            "types" => {
                let batch = super::every_type();
                Ok(rows_response(batch.schema(), vec![batch]))
            }
            "count" => {
                let rows = self.store.lock().unwrap().committed.len() + self.pending.len();
                let column: ArrayRef = Arc::new(Int32Array::from(vec![rows as i32]));
                let schema = prepared.columns.clone().unwrap();
                Ok(rows_response(Arc::clone(&schema), vec![RecordBatch::try_new(schema, vec![column])?]))
            }
            "echo" => {
                let schema = prepared.columns.clone().unwrap();
                Ok(rows_response(Arc::clone(&schema), vec![RecordBatch::try_new(schema, parameters)?]))
            }
            "insert" => {
                let row = match parameters.first() {
                    Some(array) => arrow::util::display::array_value_to_string(array, 0)?,
                    None => argument.to_string(),
                };
                self.pending.push(row);
                if !self.transactional {
                    self.commit();
                }
                done("INSERT 0 1")
            }
            "fail" => Err(Error::new(SqlState::DivisionByZero, "division by zero")),
            "begin" => {
                self.transactional = true;
                self.status = TransactionStatus::InTransaction;
                done("BEGIN")
            }
            "commit" => {
                let failed = self.status == TransactionStatus::Failed;
                if failed {
                    self.pending.clear()
                } else {
                    self.commit()
                }
                self.transactional = false;
                self.status = TransactionStatus::Idle;
                done(if failed { "ROLLBACK" } else { "COMMIT" })
            }
            "rollback" => {
                self.pending.clear();
                self.transactional = false;
                self.status = TransactionStatus::Idle;
                done("ROLLBACK")
            }
            "sleep" => {
                let cancel = Arc::clone(&self.startup.cancel);
                cancel.run(std::future::pending::<Result<()>>()).await?;
                done("SLEEP")
            }
            "panic" => panic!("as was asked for"),
            "notice" => {
                self.notices.push(Notice::plain("to be noticed"));
                done("NOTICE")
            }
            "set" => {
                let value = words.get(2).cloned().unwrap_or_default();
                if argument == "TimeZone" {
                    self.settings.time_zone = TimeZone::parse(&value)?;
                }
                self.changes.push((argument.to_string(), value));
                done("SET")
            }
            "deallocate" => {
                let name = (argument != "all").then(|| argument.to_string());
                Ok(Response::Deallocate { name })
            }
            "declared" => {
                let types: Vec<String> = prepared.parameters.iter().map(|t| t.to_string()).collect();
                Ok(Response::Command { tag: Cow::Owned(types.join(" ")) })
            }
            "copyin" | "copyout" => {
                let options = match argument {
                    "csv" => CopyOptions::csv(),
                    "binary" => CopyOptions { format: CopyFormat::Binary, ..CopyOptions::text() },
                    "header" => CopyOptions { header: copy::CopyHeader::Match, ..CopyOptions::csv() },
                    _ => CopyOptions::text(),
                };
                let schema = schema_named(&words[2..].join(" "));
                if words[0] == "copyin" {
                    let sink = Box::new(FakeSink { store: Arc::clone(&self.store), batches: Vec::new() });
                    return Ok(Response::CopyIn(CopyIn { table: "t".to_string(), schema, options, sink }));
                }
                let copied = self.store.lock().unwrap().copied.clone();
                let batch = copied.ok_or_else(|| Error::internal("nothing has been copied in"))?;
                let batches = stream::iter([Ok(batch)]).boxed();
                Ok(Response::CopyOut(CopyOut { schema, options, batches }))
            }
            other => Err(Error::new(SqlState::SyntaxError, format!("no such command: {other}"))),
        }
    }

    fn transaction_status(&self) -> TransactionStatus {
        self.status
    }

    fn fail_transaction(&mut self) {
        self.pending.clear();
        self.status = TransactionStatus::Failed;
    }

    async fn begin_implicit(&mut self) -> Result<()> {
        self.log("begin implicit");
        self.transactional = true;
        Ok(())
    }

    async fn end_implicit(&mut self, commit: bool) -> Result<()> {
        self.log(if commit { "commit implicit" } else { "roll back implicit" });
        if commit {
            self.commit()
        } else {
            self.pending.clear()
        }
        self.transactional = false;
        Ok(())
    }

    fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    fn reported_parameters(&self) -> Vec<(String, String)> {
        vec![
            ("application_name".to_string(), self.startup.application_name.clone()),
            ("TimeZone".to_string(), self.settings.time_zone.show()),
        ]
    }

    fn take_parameter_changes(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.changes)
    }

    fn text_settings(&self) -> TextSettings {
        self.settings
    }
}

struct FakeSink {
    store: Arc<Mutex<Store>>,
    batches: Vec<RecordBatch>,
}

#[async_trait]
impl CopySink for FakeSink {
    async fn push(&mut self, batch: RecordBatch) -> Result<()> {
        assert!(batch.num_rows() > 0 && batch.num_rows() <= 8192);
        self.batches.push(batch);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<u64> {
        let Some(first) = self.batches.first() else { return Ok(0) };
        let all = concat_batches(&first.schema(), &self.batches)?;
        let rows = all.num_rows() as u64;
        self.store.lock().unwrap().copied = Some(all);
        Ok(rows)
    }
}

/// A running server on a port of its own.
pub(super) struct Server {
    pub(super) port: u16,
    pub(super) store: Arc<Mutex<Store>>,
    pub(super) stop: Option<oneshot::Sender<()>>,
    pub(super) task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(config: FrontendConfig) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let fake = Fake::default();
        let store = Arc::clone(&fake.store);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            serve(listener, Arc::new(fake), config, stopped).await.unwrap();
        });
        Server { port, store, stop: Some(stop), task }
    }

    pub(super) async fn socket(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    pub(super) async fn client(&self) -> tokio_postgres::Client {
        let config = format!("host=127.0.0.1 port={} user=tester dbname=dev", self.port);
        let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}
