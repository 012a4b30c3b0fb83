//! What the system catalogs ask of the running engine.

use std::fmt;
use std::sync::Arc;

use flow::RelationId;
use query::system::{JobInfo, SourceInfo, SystemSource};

use crate::engine::Engine;
use crate::job::Phase;

/// The engine as the system catalogs see it.
pub struct EngineStatus(pub Arc<Engine>);

impl fmt::Debug for EngineStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineStatus")
    }
}

impl SystemSource for EngineStatus {
    fn jobs(&self) -> Vec<JobInfo> {
        let jobs = self.0.clock.board.all();
        jobs.into_iter()
            .map(|(relation, job)| JobInfo {
                relation,
                state: job.phase.name().to_string(),
                error: match &job.phase {
                    Phase::Failed(e) => Some(e.to_string()),
                    _ => None,
                },
                progress: job.backfill.map(|(done, total)| done as f64 / total.max(1) as f64),
                state_bytes: self.relation_bytes(relation).unwrap_or(0) as i64,
                epoch: job.finished.filter(|t| t.is_end()).map(|t| t.epoch.0 as i64),
                ..JobInfo::default()
            })
            .collect()
    }

    fn sources(&self) -> Vec<SourceInfo> {
        self.0
            .sources
            .all()
            .iter()
            .map(|handle| {
                let status = handle.status();
                let state = match (&status.failed, status.ended, status.consumers) {
                    (Some(_), _, _) => "failed",
                    (None, Some(_), _) => "ended",
                    (None, None, 0) => "idle",
                    _ => "running",
                };
                SourceInfo {
                    relation: handle.relation,
                    state: state.into(),
                    rows_read: status.rows as i64,
                    bytes_read: status.bytes.0 as i64,
                    error: status.failed.map(|e| e.to_string()),
                }
            })
            .collect()
    }

    fn row_estimate(&self, relation: RelationId) -> Option<u64> {
        match self.0.table(relation) {
            Some(table) => Some(table.store.live_rows() as u64),
            None => self.0.worker.shared().stores.get(relation).map(|s| s.live_rows() as u64),
        }
    }

    fn relation_bytes(&self, relation: RelationId) -> Option<u64> {
        match self.0.table(relation) {
            Some(table) => Some(table.store.bytes() as u64),
            None => self.0.worker.shared().stores.get(relation).map(|s| s.bytes() as u64),
        }
    }

    fn epoch(&self) -> u64 {
        self.0.clock.completed().0
    }
}
