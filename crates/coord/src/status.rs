//! What the system catalogs ask of the running engine.

use std::fmt;
use std::sync::Arc;

use catalog::Settings;
use flow::{RelationId, Result};
use parking_lot::Mutex;
use query::system::{ActivityInfo, CoordinatorInfo, JobInfo, SourceInfo, SystemSource, WorkerInfo};
use runtime::WorkerStatus;

use crate::engine::Engine;
use crate::job::Phase;

/// A setting that `set_config` has changed; the session makes it its own before its next statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedSetting {
    pub name: String,
    /// None resets.
    pub value: Option<String>,
    /// Until the end of the transaction only.
    pub local: bool,
}

/// The engine as the system catalogs see it from one session.
pub struct EngineStatus {
    pub engine: Arc<Engine>,
    /// The session's settings when the statement was planned.
    pub settings: Arc<Settings>,
    pub wanted: Arc<Mutex<Vec<WantedSetting>>>,
}

impl fmt::Debug for EngineStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineStatus")
    }
}

fn take_setting(settings: &mut Settings, name: &str, value: Option<&str>) -> Result<()> {
    match value {
        Some(value) => settings.set(name, value).map(|_| ()),
        None => settings.reset(name),
    }
}

impl SystemSource for EngineStatus {
    fn jobs(&self) -> Vec<JobInfo> {
        let jobs = self.engine.clock.board.all();
        jobs.into_iter()
            .map(|(relation, job)| JobInfo {
                relation,
                state: self.engine.job_state(relation, &job),
                error: match &job.phase {
                    Phase::Failed(e) => Some(e.to_string()),
                    _ => self.engine.stalled(relation, &job).map(|e| e.to_string()),
                },
                progress: job.backfill.map(|(done, total)| done as f64 / total.max(1) as f64),
                state_bytes: self.relation_bytes(relation).unwrap_or(0) as i64,
                epoch: job.finished.filter(|t| t.is_end()).map(|t| t.epoch.0 as i64),
                ..JobInfo::default()
            })
            .collect()
    }

    fn sources(&self) -> Vec<SourceInfo> {
        self.engine
            .sources
            .all()
            .iter()
            .map(|handle| {
                let status = handle.status();
                SourceInfo {
                    relation: handle.relation,
                    state: status.word().into(),
                    rows_read: status.rows as i64,
                    progress: status.progress.done as i64,
                    total: status.progress.total as i64,
                    unit: status.unit.into(),
                    error: status.failed.map(|e| e.to_string()),
                }
            })
            .collect()
    }

    fn row_estimate(&self, relation: RelationId) -> Option<u64> {
        self.engine.store(relation).map(|store| store.live_rows() as u64)
    }

    fn relation_bytes(&self, relation: RelationId) -> Option<u64> {
        self.engine.store(relation).map(|store| store.bytes() as u64)
    }

    fn epoch(&self) -> u64 {
        self.engine.clock.completed().0
    }

    fn sessions(&self) -> Vec<ActivityInfo> {
        self.engine.sessions.all()
    }

    fn workers(&self) -> Vec<WorkerInfo> {
        let info = |worker: WorkerStatus| WorkerInfo {
            id: worker.id as i32,
            address: worker.address,
            slots: worker.slots as i32,
            state: worker.state.name().into(),
            last_heartbeat_us: worker.heard_us,
            started_at_us: worker.started_us.or(Some(self.engine.started_us)),
        };
        self.engine.worker.processes().into_iter().map(info).collect()
    }

    fn coordinators(&self) -> Vec<CoordinatorInfo> {
        vec![CoordinatorInfo {
            address: self.engine.address().into(),
            state: "leader".into(),
            generation: self.engine.generation().map(|generation| generation.0 as i64),
            started_at_us: Some(self.engine.started_us),
        }]
    }

    fn set_config(&self, name: &str, value: Option<&str>, local: bool) -> Result<String> {
        let mut settings = self.settings.as_ref().clone();
        let mut wanted = self.wanted.lock();
        for w in wanted.iter() {
            take_setting(&mut settings, &w.name, w.value.as_deref())?;
        }
        take_setting(&mut settings, name, value)?;
        wanted.push(WantedSetting { name: name.to_string(), value: value.map(str::to_string), local });
        Ok(settings.get(name).unwrap_or_default().to_string())
    }

    fn cancel(&self, pid: i32, terminate: bool) -> bool {
        self.engine.sessions.stop(pid, terminate)
    }
}
