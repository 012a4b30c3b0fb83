//! What the system relations need to know from the running server.

use std::fmt::Debug;
use std::sync::Arc;

use catalog::Settings;
use flow::{Error, RelationId, Result};

/// The session that asks.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    pub database: String,
    /// The user who logged in; also the current user, as there is no SET ROLE.
    pub user: String,
    /// Schemas of `search_path`, with `$user` expanded.
    pub search_path: Vec<String>,
    /// The process id that the client was told.
    pub pid: i32,
    /// Client address and port; none on a local socket.
    pub client: Option<(String, u16)>,
    pub settings: Arc<Settings>,
    /// When the statement began, in microseconds since the Unix epoch.
    pub now_us: i64,
    /// When the server began, in microseconds since the Unix epoch.
    pub server_start_us: i64,
}

impl SessionInfo {
    /// The schemas of the search path that exist, without `pg_catalog` unless it was named.
    pub fn existing_path<'a>(&'a self, catalog: &'a catalog::Catalog) -> impl Iterator<Item = &'a str> {
        self.search_path
            .iter()
            .map(String::as_str)
            .filter(|s| catalog.schema(&self.database, s).is_some() || catalog::names::VIRTUAL_SCHEMAS.contains(s))
    }
}

/// A standing dataflow, for `ms_catalog.jobs`.
#[derive(Clone, Debug, Default)]
pub struct JobInfo {
    /// OID of the view or sink that it serves.
    pub relation: RelationId,
    /// `creating`, `running`, `failed`, `stopped`.
    pub state: String,
    /// Why it failed.
    pub error: Option<String>,
    /// Share of the back-fill that is done, 0 to 1.
    pub progress: Option<f64>,
    pub rows_in: i64,
    pub rows_out: i64,
    pub state_bytes: i64,
    /// How far it is behind its inputs.
    pub lag_ms: Option<i64>,
    /// Last finished epoch.
    pub epoch: Option<i64>,
    pub created_at_us: Option<i64>,
}

/// A running source, for `ms_catalog.sources`.
#[derive(Clone, Debug, Default)]
pub struct SourceInfo {
    pub relation: RelationId,
    pub state: String,
    pub rows_read: i64,
    /// How far the reader is, how far it can come now, and what the two count: bytes, events, rows.
    pub progress: i64,
    pub total: i64,
    pub unit: String,
    pub error: Option<String>,
}

/// A process with slots, for `ms_catalog.workers`.
#[derive(Clone, Debug, Default)]
pub struct WorkerInfo {
    pub id: i32,
    /// `local` where the server has its slots itself.
    pub address: String,
    pub slots: i32,
    /// `running`, `spare`, `waiting`, `joining`, `leaving`, `away`.
    pub state: String,
    pub last_heartbeat_us: Option<i64>,
    pub started_at_us: Option<i64>,
}

/// A coordinator, for `ms_catalog.coordinators`.
#[derive(Clone, Debug, Default)]
pub struct CoordinatorInfo {
    /// Where clients find it; `local` where there is no other.
    pub address: String,
    /// `leader`.
    pub state: String,
    /// As which it owns the checkpoints.
    pub generation: Option<i64>,
    pub started_at_us: Option<i64>,
}

/// Another session, for `pg_stat_activity` and `ms_catalog.sessions`.
#[derive(Clone, Debug, Default)]
pub struct ActivityInfo {
    pub pid: i32,
    pub database: String,
    pub user: String,
    pub application_name: String,
    pub client: Option<(String, u16)>,
    /// `active`, `idle`, `idle in transaction`, `idle in transaction (aborted)`.
    pub state: String,
    /// The running or last statement.
    pub query: String,
    pub started_at_us: Option<i64>,
    pub transaction_started_at_us: Option<i64>,
    pub query_started_at_us: Option<i64>,
    pub state_changed_at_us: Option<i64>,
}

/// What the running server knows and the catalog does not. All methods answer at once from memory.
pub trait SystemSource: Debug + Send + Sync {
    fn jobs(&self) -> Vec<JobInfo> {
        Vec::new()
    }

    fn sources(&self) -> Vec<SourceInfo> {
        Vec::new()
    }

    fn sessions(&self) -> Vec<ActivityInfo> {
        Vec::new()
    }

    fn workers(&self) -> Vec<WorkerInfo> {
        Vec::new()
    }

    fn coordinators(&self) -> Vec<CoordinatorInfo> {
        Vec::new()
    }

    /// Estimated rows of a table or materialized view.
    fn row_estimate(&self, _relation: RelationId) -> Option<u64> {
        None
    }

    /// Bytes that a table or materialized view takes.
    fn relation_bytes(&self, _relation: RelationId) -> Option<u64> {
        None
    }

    /// Number of the last finished epoch.
    fn epoch(&self) -> u64 {
        0
    }

    /// Effect of `set_config(name, value, is_local)` on the asking session; gives the new value. `value` none resets.
    fn set_config(&self, name: &str, _value: Option<&str>, _is_local: bool) -> Result<String> {
        Err(Error::unsupported(format!("parameter \"{name}\" cannot be set here")).with_hint("Use SET."))
    }

    /// Effect of `pg_cancel_backend` and `pg_terminate_backend`; false when there is no such session.
    fn cancel(&self, _pid: i32, _terminate: bool) -> bool {
        false
    }
}

/// A server that knows nothing beyond its catalog: for planning, and for tests.
#[derive(Debug)]
pub struct NoSource;

impl SystemSource for NoSource {}
