//! Where the log is: in the data directory, or in the store of checkpoints, where several coordinators take it over from each other.
//!
//! Law: a data directory has one log. When it is moved to a store, the directory says so for good, and what it had itself is gone:
//! an old log must never be opened again as if nothing had come after it.

use std::sync::Arc;

use checkpoint::disk::SystemDisk;
use checkpoint::door::{Door, PutNew};
use checkpoint::names::CLUSTER;
use checkpoint::{DataDirectory, Log};
use flow::{Error, Result, SqlState};
use tracing::info;

use super::EngineConfig;
use crate::recovery::check_origin;

/// The log is in the store of checkpoints.
#[derive(Clone, Debug)]
pub struct SharedLog {
    /// Where clients find this process.
    pub address: String,
    /// What tells the cluster from every other one: see [`cluster_id`].
    pub cluster: String,
    /// Owned for longer than an engine lives.
    pub directory: Arc<DataDirectory>,
}

/// What tells the cluster of a store from every other one: what the first of its coordinators has had in its data directory.
/// `own`: what this one has. Errors: `55000` the store has checkpoints of another data directory; `58030`, `42501`.
pub fn cluster_id(door: &Door, own: &str) -> Result<String> {
    let text = |payload: &[u8]| String::from_utf8_lossy(payload).into_owned();
    if let Some(found) = door.get(CLUSTER)? {
        return Ok(text(&found));
    }
    // Of a server that was alone until now, perhaps: of this one then.
    if let Err(other) = check_origin(door, own) {
        // They may be of a cluster that has begun since.
        return door.get(CLUSTER)?.map(|found| text(&found)).ok_or(other);
    }
    Ok(match door.put_new(CLUSTER, own.as_bytes())? {
        PutNew::Created => own.to_string(),
        PutNew::Exists(found) => text(&found.payload),
    })
}

fn elsewhere(directory: &DataDirectory, place: &str, hint: &str) -> Error {
    let message = format!("the log of data directory \"{}\" is kept in {place}", directory.path().display());
    Error::new(SqlState::ObjectNotInPrerequisiteState, message)
        .with_detail("It was moved there, and may have grown since.")
        .with_hint(hint)
}

/// Opens the log. `door`: as the generation that owns the checkpoints, if there are any. A log that the data directory has itself is
/// moved to the store when it is to be there. Errors: of [`Log`]; `55000` it is kept elsewhere, or there are two.
pub(super) fn open_log(
    config: &EngineConfig,
    directory: &DataDirectory,
    door: Option<&Door>,
    replay: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Log> {
    let (kept_in, folder) = (directory.log_kept_in()?, directory.log_folder());
    let Some(shared) = &config.shared_log else {
        return match kept_in {
            Some(place) => Err(elsewhere(
                directory,
                &place,
                "Start a coordinator with high_availability: store, or choose another data directory.",
            )),
            None => Log::open_on(config.disk.clone().unwrap_or_else(|| Arc::new(SystemDisk)), &folder, replay),
        };
    };
    let door = door.ok_or_else(|| {
        Error::new(SqlState::ObjectNotInPrerequisiteState, "a log in the store of checkpoints needs checkpoints")
            .with_hint("Set a checkpoint_interval.")
    })?;
    let place = door.place();
    if let Some(at) = kept_in.as_ref().filter(|at| **at != place) {
        return Err(elsewhere(
            directory,
            at,
            "Use that checkpoint_url, or an empty data directory for a coordinator of another cluster.",
        ));
    }
    if kept_in.is_some() && !Log::is_in_store(door)? {
        return Err(Error::new(SqlState::DataCorrupted, format!("the log is gone from {place}"))
            .with_detail("It was there: the data directory says so.")
            .with_hint("Restore the objects below \"log\" and \"logpart\" from a backup; nothing was changed."));
    }
    let own = Log::look(&folder, |_| Ok(()))?;
    if own.is_some() && directory.identity(0)? != shared.cluster {
        return Err(Error::new(
            SqlState::ObjectNotInPrerequisiteState,
            format!("data directory \"{}\" has a log of its own", directory.path().display()),
        )
        .with_detail(format!("The log of cluster {} is in {place}.", shared.cluster))
        .with_hint("Start a standby with an empty data directory."));
    }
    let log = Log::open_in_store(door, &format!("the coordinator at {}", shared.address), &mut *replay)?;
    if own.is_some() && log.is_empty() {
        info!(place, "moving the log to the store");
        let mut rewrite = log.begin_rewrite()?;
        Log::look(&folder, |record| rewrite.append(record))?;
        rewrite.take_place(&log, log.end())?;
        for record in log.records(log.end())? {
            replay(&record?)?;
        }
    }
    directory.keep_log_in(&place)?;
    Ok(log)
}
