//! The archive of jobs that have ended: one object for each beside the checkpoints, which `millstream history` shows when no
//! server runs.
//!
//! Law: the clock tells, and waits for nothing. The archive is written by a service of its own; what it cannot write while the store
//! is away waits, up to [`WAITING_MAX`], and what is given up is counted. A server that dies forgets what it had not written yet: the
//! archive is a chronicle, no part of what makes jobs right.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use catalog::{Catalog, Relation};
use checkpoint::door::{Door, PutNew};
use checkpoint::names::HISTORY;
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use flow::{Epoch, Error, RelationId, Result};
use parking_lot::Mutex;
use plan::ProcessPlan;
use runtime::service::wait_for_message;
use runtime::{Join, Pause, Service, Stepped};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::checkpoints::CheckpointStatus;
use crate::execution::Execution;
use crate::session::show::create_statement;
use crate::time::Time;

/// The form of what is written.
const VERSION: u32 = 1;
/// Ended jobs that may wait for the store.
pub const WAITING_MAX: usize = 1000;
/// How long the service rests after the store has refused.
const REST: Duration = Duration::from_secs(5);
/// After so many new records those that are too many or too old are cleared away.
const PRUNE_EVERY: u64 = 16;

/// How long ended jobs are remembered.
#[derive(Clone, Copy, Debug)]
pub struct HistoryConfig {
    /// The newest so many; 0: nothing is archived.
    pub retained: usize,
    /// `None`: as long as there are not too many.
    pub age: Option<Duration>,
}

impl Default for HistoryConfig {
    fn default() -> HistoryConfig {
        HistoryConfig { retained: 1000, age: Some(Duration::from_secs(30 * 86_400)) }
    }
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndState {
    /// Dropped after everything that it reads had ended, so that nothing more could have come.
    Finished,
    /// Dropped before.
    Cancelled,
    /// Stopped by an error.
    Failed,
}

impl EndState {
    pub fn name(self) -> &'static str {
        match self {
            EndState::Finished => "finished",
            EndState::Cancelled => "cancelled",
            EndState::Failed => "failed",
        }
    }
}

/// What is known of a job when it starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobFacts {
    pub oid: u32,
    pub database: String,
    pub schema: String,
    pub name: String,
    /// `materialized view` or `sink`.
    pub kind: String,
    pub owner: String,
    /// The statement that makes it again; options that are secret are not shown.
    pub statement: String,
    /// What it reads, as `schema.name`.
    pub inputs: Vec<String>,
    /// Of this start of the job, in microseconds since the Unix epoch.
    pub started_us: i64,
}

impl JobFacts {
    /// `relation` is a materialized view or a sink of `catalog`.
    pub fn new(catalog: &Catalog, relation: &Relation, inputs: &[RelationId], started_us: i64) -> JobFacts {
        let name_of = |oid| catalog.relation(oid).map(|r| sql::Name::qualified(&r.schema, &r.name));
        let input = |oid: &RelationId| {
            catalog.relation(*oid).map_or_else(|| format!("(dropped {oid})"), |relation| relation.qualified_name())
        };
        JobFacts {
            oid: relation.oid.0,
            database: relation.database.clone(),
            schema: relation.schema.clone(),
            name: relation.name.clone(),
            kind: relation.kind().noun().to_string(),
            owner: relation.owner.clone(),
            statement: create_statement(relation, &name_of).unwrap_or_default(),
            inputs: inputs.iter().map(input).collect(),
            started_us,
        }
    }
}

/// A job that has ended, as the clock tells it.
pub struct Ended {
    pub facts: Arc<JobFacts>,
    pub state: EndState,
    pub error: Option<Error>,
    pub plan: Arc<ProcessPlan>,
    pub parallelism: usize,
    /// The first epoch that it has shown, over all restarts from its own state, and the newest that every slot has finished.
    pub first: Epoch,
    pub last: Option<Epoch>,
    /// Rows and bytes of its view at the end; `None` for sinks.
    pub rows: Option<u64>,
    pub bytes: Option<u64>,
    /// Rows of state that its operators have touched since its start; `None`: in other processes.
    pub rows_touched: Option<u64>,
}

/// An error as it is archived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndError {
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

/// A checkpoint that was kept when the job ended and that came after its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndCheckpoint {
    pub epoch: u64,
    pub created_us: i64,
    pub duration_us: Option<i64>,
    pub pause_us: Option<i64>,
    /// Of all jobs together.
    pub bytes: Option<u64>,
}

/// The record of a job that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndedJob {
    pub version: u32,
    /// Of the server that ran it.
    pub server_version: String,
    #[serde(flatten)]
    pub facts: JobFacts,
    pub state: EndState,
    pub ended_us: i64,
    pub error: Option<EndError>,
    pub parallelism: usize,
    pub first_epoch: u64,
    pub last_epoch: Option<u64>,
    pub rows: Option<u64>,
    pub state_bytes: Option<u64>,
    pub rows_touched: Option<u64>,
    /// The process plan as `EXPLAIN (LAYER process)` shows it.
    pub plan: String,
    pub checkpoints: Vec<EndCheckpoint>,
}

/// The service's face.
pub struct History {
    sender: Sender<Errand>,
    join: Mutex<Option<Box<dyn Join>>>,
}

enum Errand {
    Ended(Box<Ended>, i64),
    Stop,
}

/// The clock's side.
#[derive(Clone)]
pub struct Chronicler {
    sender: Sender<Errand>,
    time: Time,
}

impl Chronicler {
    /// Hands a job that has ended to the archive, at once.
    pub fn tell(&self, ended: Ended) {
        // The service ends after the clock.
        let _ = self.sender.send(Errand::Ended(Box::new(ended), self.time.now_us()));
    }
}

/// The checkpoints that are kept.
pub type Shown = Arc<dyn Fn() -> Vec<CheckpointStatus> + Send + Sync>;

impl History {
    /// Lets the service work; `None` if nothing is to be kept.
    pub fn start(
        execution: &dyn Execution,
        door: Arc<Door>,
        config: HistoryConfig,
        time: Time,
        checkpoints: Shown,
    ) -> Result<Option<(History, Chronicler)>> {
        if config.retained == 0 {
            return Ok(None);
        }
        let (sender, inbox) = unbounded();
        let chronicler = Chronicler { sender: sender.clone(), time: time.clone() };
        let service = HistoryService {
            archive: Archive { door },
            config,
            time,
            checkpoints,
            inbox,
            waiting: VecDeque::new(),
            rest: None,
            written: 0,
            stopping: false,
        };
        let join = Mutex::new(Some(execution.start_service(Box::new(service))?));
        Ok(Some((History { sender, join }, chronicler)))
    }

    /// Writes what waits, once, and ends the service.
    pub fn stop(&self) {
        let _ = self.sender.send(Errand::Stop);
        let join = self.join.lock().take();
        if let Some(mut join) = join {
            join.join();
        }
    }
}

struct HistoryService {
    archive: Archive,
    config: HistoryConfig,
    time: Time,
    checkpoints: Shown,
    inbox: Receiver<Errand>,
    waiting: VecDeque<EndedJob>,
    /// After the store has refused.
    rest: Option<Pause>,
    /// Since the archive was cleared up last.
    written: u64,
    stopping: bool,
}

impl Service for HistoryService {
    fn name(&self) -> String {
        "history".into()
    }

    fn stands_back(&self) -> bool {
        true
    }

    fn step(&mut self) -> Stepped {
        match self.inbox.try_recv() {
            Ok(Errand::Ended(ended, at_us)) => {
                let record = self.record(*ended, at_us);
                self.waiting.push_back(record);
                if self.waiting.len() > WAITING_MAX {
                    self.waiting.pop_front();
                    metrics::counter!("millstream_history_records_given_up").increment(1);
                    warn!("the archive of ended jobs cannot be written; the oldest record was given up");
                }
                return Stepped::Worked;
            }
            Ok(Errand::Stop) | Err(TryRecvError::Disconnected) => self.stopping = true,
            Err(TryRecvError::Empty) => {}
        }
        let now_us = self.time.now_us();
        if !self.stopping && self.rest.is_some_and(|rest| rest.left(now_us).is_some()) {
            return Stepped::Idle;
        }
        self.rest = None;
        let Some(record) = self.waiting.front() else {
            return if self.stopping { Stepped::Ended } else { Stepped::Idle };
        };
        match self.archive.write(record) {
            Ok(()) => {
                self.waiting.pop_front();
                if self.written.is_multiple_of(PRUNE_EVERY)
                    && let Err(error) = self.archive.prune(&self.config, now_us)
                {
                    warn!(%error, "old records of ended jobs could not be cleared away");
                }
                self.written += 1;
                Stepped::Worked
            }
            Err(error) => {
                warn!(%error, waiting = self.waiting.len(), "the archive of ended jobs cannot be written");
                if self.stopping {
                    return Stepped::Ended;
                }
                self.rest = Some(Pause::new(now_us, REST));
                Stepped::Idle
            }
        }
    }

    fn wait(&mut self) {
        let left = self.rest.map(|rest| rest.left(self.time.now_us()).unwrap_or_default());
        wait_for_message(&self.inbox, left);
    }
}

impl HistoryService {
    fn record(&self, ended: Ended, at_us: i64) -> EndedJob {
        let checkpoints = (self.checkpoints)().into_iter().filter(|c| c.created_us >= ended.facts.started_us);
        EndedJob {
            version: VERSION,
            server_version: env!("CARGO_PKG_VERSION").to_string(),
            state: ended.state,
            ended_us: at_us,
            error: ended.error.as_ref().map(|error| EndError {
                sqlstate: error.state().code().to_string(),
                message: error.message().to_string(),
                detail: error.detail().map(str::to_string),
                hint: error.hint().map(str::to_string),
            }),
            parallelism: ended.parallelism,
            first_epoch: ended.first.0,
            last_epoch: ended.last.map(|epoch| epoch.0),
            rows: ended.rows,
            state_bytes: ended.bytes,
            rows_touched: ended.rows_touched,
            plan: plan::explain::process(&ended.plan),
            checkpoints: checkpoints
                .map(|c| EndCheckpoint {
                    epoch: c.epoch.0,
                    created_us: c.created_us,
                    duration_us: c.duration_us,
                    pause_us: c.pause_us,
                    bytes: c.bytes,
                })
                .collect(),
            facts: ended.facts.as_ref().clone(),
        }
    }
}

/// The records of ended jobs in a store.
#[derive(Clone)]
pub struct Archive {
    pub door: Arc<Door>,
}

/// Digits of the time in a name, so that names sort by it.
const TIME_DIGITS: usize = 17;

impl Archive {
    /// Adds a record. Errors: those of [`Door::put_new`].
    pub fn write(&self, record: &EndedJob) -> Result<()> {
        let payload = serde_json::to_vec(record).map_err(|e| Error::internal(format!("write an ended job: {e}")))?;
        // Two ends at one microsecond are told apart by a number.
        for number in 0..WAITING_MAX {
            let at = record.ended_us.max(0);
            let name = format!("{HISTORY}/{at:0TIME_DIGITS$}-{}-{number}", record.facts.oid);
            if self.door.put_new(&name, &payload)? == PutNew::Created {
                return Ok(());
            }
        }
        Err(Error::internal("the archive has too many records of one moment"))
    }

    /// The ids of all records, the newest first.
    pub fn ids(&self) -> Result<Vec<String>> {
        let listed = self.door.list(HISTORY)?;
        let id = |name: &str| name.strip_prefix(HISTORY)?.strip_prefix('/').map(str::to_string);
        Ok(listed.iter().rev().filter_map(|object| id(&object.name)).collect())
    }

    /// A record; `None` if there is none of this id. Errors: those of [`Door::get`]; `XX001` when it is of a later version or no record.
    pub fn read(&self, id: &str) -> Result<Option<EndedJob>> {
        let Some(payload) = self.door.get(&format!("{HISTORY}/{id}"))? else { return Ok(None) };
        let damaged = |why: String| {
            Error::new(
                flow::SqlState::DataCorrupted,
                format!("the record \"{id}\" of an ended job cannot be read: {why}"),
            )
        };
        let record: EndedJob = serde_json::from_slice(&payload).map_err(|e| damaged(e.to_string()))?;
        if record.version > VERSION {
            return Err(damaged(format!("it has version {}, this build knows {VERSION}", record.version))
                .with_hint("Use the version of millstream that wrote it, or a later one."));
        }
        Ok(Some(record))
    }

    /// Removes what is too much or too old at `now_us`.
    pub fn prune(&self, config: &HistoryConfig, now_us: i64) -> Result<()> {
        let oldest_us = config.age.map_or(i64::MIN, |age| now_us.saturating_sub(age.as_micros() as i64));
        for (n, id) in self.ids()?.into_iter().enumerate() {
            let ended_us = id.split('-').next().and_then(|digits| digits.parse::<i64>().ok());
            if n >= config.retained || ended_us.is_some_and(|ended_us| ended_us < oldest_us) {
                self.door.delete(&format!("{HISTORY}/{id}"))?;
            }
        }
        Ok(())
    }
}
