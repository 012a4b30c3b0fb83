//! An engine in a scratch folder, and SQL on it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use coord::engine::{CheckpointConfig, Replanner};
use coord::execution::{Execution, Threads};
use coord::history::HistoryConfig;
use coord::session::replan::StoredQueries;
use coord::session::{Outcome, Session};
use coord::{Engine, EngineConfig, Time};
use datafusion::execution::context::SessionState;
use flow::{RelationId, Result};
use futures::TryStreamExt;

/// A small deterministic generator (xorshift, Marsaglia 2003): a failing seed replays.
pub struct Rng(pub u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// The seed of this run: `MILLSTREAM_SEED`, or the same one every time.
pub fn seed() -> u64 {
    std::env::var("MILLSTREAM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1)
}

/// A scratch folder, in memory where the machine offers it: these tests are about meaning, not about disks.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// What an engine of a test is opened with.
pub fn config(folder: &Path, slots: usize, batch_rows: usize) -> EngineConfig {
    let (data_dir, time) = (folder.into(), Time::system());
    let (memory_limit, disk, checkpoints) = (2 << 30, None, None);
    let log_bytes_min = coord::compaction::LOG_BYTES_MIN;
    EngineConfig { data_dir, slots, memory_limit, batch_rows, time, disk, log_bytes_min, checkpoints, shared_log: None }
}

/// The same with checkpoints, taken when a statement says so.
pub fn keeping(folder: &Path, slots: usize, batch_rows: usize) -> EngineConfig {
    static NONCE: AtomicU64 = AtomicU64::new(1);
    let nonce = NONCE.fetch_add(1, Ordering::Relaxed);
    let timeout = Duration::from_secs(600);
    let checkpoints = Some(CheckpointConfig {
        store: None,
        rest: None,
        savepoint: None,
        interval: None,
        retained: 2,
        history: HistoryConfig::default(),
        timeout,
        nonce,
    });
    EngineConfig { checkpoints, ..config(folder, slots, batch_rows) }
}

/// An engine with its own data.
pub struct Instance {
    pub engine: Arc<Engine>,
    base: SessionState,
}

impl Instance {
    pub fn open(folder: &Path, slots: usize, batch_rows: usize) -> Instance {
        Instance::with_memory(folder, slots, batch_rows, 2 << 30)
    }

    pub fn with_memory(folder: &Path, slots: usize, batch_rows: usize, memory_limit: usize) -> Instance {
        let config = EngineConfig { memory_limit, ..config(folder, slots, batch_rows) };
        Instance::with(config, Arc::new(Threads::default()))
    }

    /// An engine whose slots, clock and feeders run as `execution` lets them.
    pub fn with(config: EngineConfig, execution: Arc<dyn Execution>) -> Instance {
        Instance::replanned(config, execution, Arc::new(StoredQueries))
    }

    /// The same with another way to plan what is stored.
    pub fn replanned(config: EngineConfig, execution: Arc<dyn Execution>, replanner: Arc<dyn Replanner>) -> Instance {
        let (memory_limit, slots) = (config.memory_limit, config.slots);
        let engine = Engine::open_with(config, execution).unwrap();
        let base = query::base_state(memory_limit, slots).unwrap();
        engine.recover_jobs(&replanner);
        Instance { engine, base }
    }

    pub fn oid(&self, name: &str) -> RelationId {
        self.engine.catalog().relation_named("dev", "public", name).unwrap().oid
    }

    pub fn session(&self) -> Session {
        let settings =
            catalog::Settings::new(|name| plan::functions::zone::Zone::parse(name).map(|_| name.to_string()));
        Session::new(Arc::clone(&self.engine), self.base.clone(), settings, "tester".into(), "dev".into(), 1)
    }

    /// Stops everything and releases the data folder.
    pub async fn close(self) {
        let engine = Arc::clone(&self.engine);
        tokio::task::spawn_blocking(move || engine.shutdown()).await.unwrap();
    }
}

impl Drop for Instance {
    /// A test that fails leaves no generator behind that takes the processors from the others.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let engine = Arc::clone(&self.engine);
            std::thread::spawn(move || engine.shutdown());
        }
    }
}

/// What a statement gave.
#[derive(Debug)]
pub enum Answer {
    /// The announced columns, and the rows.
    Rows(SchemaRef, Vec<RecordBatch>),
    Tag(String),
}

/// Runs every statement of `text`; the answer is the last one's. Like the server, a failing statement fails its
/// transaction.
pub async fn run(session: &mut Session, text: &str) -> Result<Answer> {
    let mut answer = Answer::Tag(String::new());
    for parsed in session.parse(text)? {
        let ran = async {
            let failed = session.transaction_status() == coord::session::transaction::Status::Failed;
            let ends = matches!(
                parsed.statement,
                sql::statement::Statement::Commit { .. }
                    | sql::statement::Statement::Rollback { .. }
                    | sql::statement::Statement::RollbackTo(_)
            );
            if failed && !ends {
                return Err(flow::Error::new(
                    flow::SqlState::InFailedTransaction,
                    "current transaction is aborted, commands ignored until end of transaction block",
                ));
            }
            let prepared = session.prepare(&Arc::new(parsed), &[]).await?;
            match session.execute(&prepared, &[]).await? {
                Outcome::Rows { schema, rows, .. } => Ok(Answer::Rows(schema, rows.try_collect().await?)),
                Outcome::Done(tag) => Ok(Answer::Tag(tag)),
                _ => Ok(Answer::Tag(String::new())),
            }
        };
        match ran.await {
            Ok(a) => answer = a,
            Err(e) => {
                if session.transaction_status() == coord::session::transaction::Status::InTransaction {
                    session.fail_transaction();
                }
                return Err(e);
            }
        }
    }
    Ok(answer)
}

/// Runs statements that must succeed.
pub async fn ok(session: &mut Session, text: &str) {
    if let Err(e) = run(session, text).await {
        panic!("{text}\nfailed: {e} {:?}", e.hint());
    }
}

/// The rows of a query as text, in order.
pub async fn rows(session: &mut Session, text: &str) -> Vec<Vec<String>> {
    match run(session, text).await {
        Ok(Answer::Rows(_, batches)) => batches.iter().flat_map(render).collect(),
        Ok(Answer::Tag(tag)) => panic!("{text}\ngave no rows but {tag}"),
        Err(e) => panic!("{text}\nfailed: {e} {:?}", e.hint()),
    }
}

/// The SQLSTATE of a statement that must fail.
pub async fn state_of(session: &mut Session, text: &str) -> String {
    match run(session, text).await {
        Ok(_) => panic!("{text}\nsucceeded"),
        Err(e) => e.state().code().to_string(),
    }
}

/// Values in PostgreSQL's text form; NULL as `NULL`, the empty string as `(empty)`.
pub fn render(batch: &RecordBatch) -> Vec<Vec<String>> {
    use arrow::array::Array;
    let zone = plan::functions::zone::Zone::parse("UTC").unwrap();
    let columns: Vec<_> = batch
        .columns()
        .iter()
        .map(|c| plan::functions::cast::to_text(c, &zone).unwrap())
        .zip(batch.columns().iter().map(|c| c.data_type().clone()))
        .collect();
    (0..batch.num_rows())
        .map(|row| {
            columns
                .iter()
                .map(|(text, data_type)| {
                    if text.is_null(row) {
                        return "NULL".to_string();
                    }
                    match (text.value(row), data_type) {
                        ("true", arrow::datatypes::DataType::Boolean) => "t".into(),
                        ("false", arrow::datatypes::DataType::Boolean) => "f".into(),
                        ("", _) => "(empty)".into(),
                        (value, _) => value.to_string(),
                    }
                })
                .collect()
        })
        .collect()
}
