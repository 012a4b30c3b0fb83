//! What an engine finds when it starts: the last checkpoint, and which jobs can go on from it.
//!
//! Law: a job goes on from its state only if that state is the one of its present definition over the present shape of its
//! inputs, and if every input goes on from the same checkpoint. Any other job is made anew from what its inputs hold.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use catalog::{Catalog, Definition, RelationKind};
use checkpoint::CommitPermit;
use checkpoint::door::{Door, Rest, Store, ThreadRest};
use checkpoint::local::LocalStore;
use checkpoint::manifest::{JobState, Manifest, PortWatermark, SegmentRef};
use checkpoint::owner::{Checkpoint, Owner};
use flow::{Epoch, Error, RelationId, Result, SqlState, TaskId};
use plan::process::PLAN_VERSION;
use plan::{ProcessPlan, TaskOp};
use runtime::Restore;
use tracing::{info, warn};

use crate::checkpoints::Coordinated;
use crate::clock::Restored;
use crate::connectors;
use crate::engine::CheckpointConfig;

/// The store of checkpoints, owned by a new generation.
pub struct Kept {
    pub config: CheckpointConfig,
    pub door: Arc<Door>,
    pub newest: Option<Found>,
    /// Numbers the segments of the generation.
    pub counter: Arc<AtomicU64>,
    pub owner: Owner,
    /// Tells the data directory from every other one.
    pub origin: String,
}

/// The newest checkpoint.
#[derive(Clone)]
pub struct Found {
    pub manifest: Arc<Manifest>,
    pub coordinated: Arc<Coordinated>,
    pub permit: CommitPermit,
    /// Its sinks have committed.
    pub committed: bool,
    /// It is a savepoint that is older than the newest checkpoint.
    pub rewound: bool,
}

/// What the log says of the time since the checkpoint.
#[derive(Default)]
pub struct Since {
    /// Relations that were made, changed or dropped.
    pub altered: BTreeSet<RelationId>,
    /// By job, the first epoch that it has shown after it last started from nothing; of all times.
    pub started: HashMap<RelationId, Epoch>,
    /// By relation, the newest epoch whose changes the log does not tell apart from earlier ones any more.
    pub merged: HashMap<RelationId, Epoch>,
    /// Where the last checkpoint was made.
    pub kept_in: Option<String>,
    /// Sinks that stay stopped, because they may have published what no checkpoint knows of.
    pub stuck: BTreeSet<RelationId>,
}

/// A job that goes on.
pub struct RestoredJob {
    pub plan: ProcessPlan,
    pub inputs: BTreeSet<RelationId>,
    pub from: JobStart,
}

/// What it goes on from.
pub struct JobStart {
    pub restored: Restored,
    /// Of a sink that delivers exactly once.
    pub prepared: Option<ResumedSink>,
}

/// What a sink goes on from.
pub struct ResumedSink {
    pub identity: String,
    pub permit: CommitPermit,
    pub prepared: Vec<u8>,
}

/// The relations that a plan reads.
pub fn inputs(plan: &ProcessPlan) -> BTreeSet<RelationId> {
    let relation = |op: &TaskOp| match op {
        TaskOp::Relation { relation, .. } => Some(*relation),
        _ => None,
    };
    plan.tasks.iter().filter_map(|task| relation(&task.op)).collect()
}

/// The segments of each slot, oldest first.
fn chains(job: &JobState) -> Vec<Vec<SegmentRef>> {
    let mut chains = vec![Vec::new(); job.slots as usize];
    for segment in &job.segments {
        if let Some(chain) = chains.get_mut(segment.slot as usize) {
            chain.push(segment.clone());
        }
    }
    chains
}

/// By task and port.
fn watermarks(job: &JobState, tasks: usize) -> Vec<Vec<i64>> {
    let mut watermarks = vec![Vec::new(); tasks];
    for PortWatermark { task, watermark_us, .. } in &job.watermarks {
        // They are kept in the order of the ports.
        if let Some(ports) = watermarks.get_mut(task.0 as usize) {
            ports.push(*watermark_us);
        }
    }
    watermarks
}

/// The inverse of what a job goes on from.
pub fn port_watermarks(watermarks: &[Vec<i64>]) -> Vec<PortWatermark> {
    let ports = |(task, ports): (usize, &Vec<i64>)| -> Vec<PortWatermark> {
        let port = |(port, watermark_us): (usize, &i64)| PortWatermark {
            task: TaskId(task as u32),
            port: port as u32,
            watermark_us: *watermark_us,
        };
        ports.iter().enumerate().map(port).collect()
    };
    watermarks.iter().enumerate().flat_map(ports).collect()
}

impl Found {
    /// Whether a sink that does not go on may have published already: then it cannot begin anew without repeating it.
    pub fn has_published(&self, sink: RelationId, since: &Since) -> bool {
        if self.rewound || since.stuck.contains(&sink) {
            return since.started.contains_key(&sink) || self.coordinated.identities.contains_key(&sink.0);
        }
        let begun_after = since.started.get(&sink).is_some_and(|first| *first > self.manifest.epoch);
        self.coordinated.identities.contains_key(&sink.0) && !begun_after
    }

    /// The jobs that go on.
    pub fn restorable(&self, catalog: &Catalog, since: &Since) -> Result<HashMap<RelationId, RestoredJob>> {
        let mut found: HashMap<RelationId, RestoredJob> = HashMap::new();
        // Tables that a sink fills are filled anew.
        let filled: BTreeSet<RelationId> = catalog
            .relations()
            .filter_map(|r| match &r.definition {
                Definition::Sink(sink) => sink.into,
                _ => None,
            })
            .collect();
        let mut left: Vec<(RelationId, &JobState, ProcessPlan)> = Vec::new();
        for job in &self.manifest.jobs {
            let relation = RelationId(job.job.0);
            let once = catalog.relation(relation).map(|r| connectors::delivers_once(r)).transpose()?.unwrap_or(false);
            if once && (self.rewound || since.stuck.contains(&relation)) {
                // What it has published since would come again.
                continue;
            }
            if let Some(plan) = self.usable(relation, job, catalog, since)? {
                left.push((relation, job, plan));
            }
        }
        // Views come before their readers.
        loop {
            let before = left.len();
            for (relation, job, plan) in std::mem::take(&mut left) {
                let inputs = inputs(&plan);
                let told_apart =
                    |input: &RelationId| since.merged.get(input).is_none_or(|until| *until <= self.manifest.epoch);
                let stands = |input: &RelationId| match catalog.relation(*input).map(|r| r.kind()) {
                    Some(RelationKind::Table) => {
                        !since.altered.contains(input) && !filled.contains(input) && told_apart(input)
                    }
                    Some(RelationKind::Source) => {
                        !since.altered.contains(input) && told_apart(input) && self.coordinated.source(*input).is_some()
                    }
                    Some(RelationKind::MaterializedView) => found.contains_key(input),
                    _ => false,
                };
                if inputs.iter().all(stands) {
                    let prepared = self.manifest.sinks.iter().find(|s| s.sink == relation);
                    let from = JobStart {
                        restored: Restored {
                            incarnation: Epoch(job.incarnation),
                            state: Arc::new(Restore {
                                chains: chains(job),
                                bases: job.bases.clone(),
                                watermarks: watermarks(job, plan.tasks.len()),
                                now_us: self.manifest.now_us,
                            }),
                        },
                        prepared: prepared.map(|s| ResumedSink {
                            identity: self.coordinated.identities.get(&relation.0).cloned().unwrap_or_default(),
                            permit: self.permit,
                            prepared: s.prepared.bytes().to_vec(),
                        }),
                    };
                    found.insert(relation, RestoredJob { plan, inputs, from });
                } else {
                    left.push((relation, job, plan));
                }
            }
            if left.len() == before {
                break;
            }
        }
        for (relation, _, _) in left {
            info!(relation = relation.0, "an input of the job has changed; it is made anew");
        }
        Ok(found)
    }

    /// The job's plan, if the state is that of its present definition.
    fn usable(
        &self,
        relation: RelationId,
        job: &JobState,
        catalog: &Catalog,
        since: &Since,
    ) -> Result<Option<ProcessPlan>> {
        let kind = catalog.relation(relation).map(|r| r.kind());
        if !matches!(kind, Some(RelationKind::MaterializedView | RelationKind::Sink)) {
            return Ok(None);
        }
        let same = since.started.get(&relation).is_none_or(|first| first.0 == job.incarnation);
        if !same {
            return Ok(None);
        }
        let plan: ProcessPlan = serde_json::from_str(&job.plan).map_err(|e| {
            Error::new(SqlState::DataCorrupted, format!("the stored plan of job {} cannot be read", job.job))
                .with_detail(e.to_string())
        })?;
        if plan.version != PLAN_VERSION {
            warn!(
                relation = relation.0,
                version = plan.version,
                "the stored plan is of another version; the job is made anew"
            );
            return Ok(None);
        }
        Ok(Some(plan))
    }
}

/// How often the newest checkpoint is looked for whose manifest goes while it is read.
const ORIGIN_LOOKS_MAX: usize = 8;

/// Refuses checkpoints that another data directory has written: taking them over would show its rows, and clear away what it
/// needs. Nothing is changed. Errors: `55000`; `58030`, `42501` the store does not answer. What is damaged is for later to say.
pub(crate) fn check_origin(door: &Door, origin: &str) -> Result<()> {
    for _ in 0..ORIGIN_LOOKS_MAX {
        let lines = checkpoint::fsck::checkpoints(door).or_else(|e| match e.state() {
            SqlState::DataCorrupted => Ok(Vec::new()),
            _ => Err(e),
        })?;
        let Some(line) = lines.iter().rfind(|line| line.damage.is_none()) else { return Ok(()) };
        let manifest = match checkpoint::fsck::manifest_of(door, line) {
            Ok(manifest) => manifest,
            // Who leads now has cleared it away between the two requests.
            Err(e) if e.state() == SqlState::DataCorrupted => continue,
            Err(e) => return Err(e),
        };
        let written: Coordinated = serde_json::from_value(manifest.coordinator).unwrap_or_default();
        if written.origin.is_empty() || written.origin == origin {
            return Ok(());
        }
        let message = format!("the checkpoints in {} are of another data directory", door.place());
        return Err(Error::new(SqlState::ObjectNotInPrerequisiteState, message)
            .with_detail(format!("They are of {}; this one is {origin}.", written.origin))
            .with_hint("Choose another checkpoint_url, or start the server on the data directory that wrote them."));
    }
    Ok(())
}

impl Kept {
    /// Opens the store below the data directory as a new generation, and finds the newest checkpoint.
    /// `origin` tells the data directory from every other one.
    pub fn open(data_dir: &Path, config: CheckpointConfig, origin: &str) -> Result<Kept> {
        let nonce = config.nonce;
        let store: Arc<dyn Store> = match &config.store {
            Some(store) => Arc::clone(store),
            None => Arc::new(LocalStore::open(&data_dir.join("checkpoints"))?),
        };
        let rest: Arc<dyn Rest> = match &config.rest {
            Some(rest) => Arc::clone(rest),
            None => Arc::new(ThreadRest::seeded(nonce)),
        };
        let door = Door::new(store, rest, nonce);
        check_origin(&door, origin)?;
        door.probe()?;
        let mut latest = None;
        let (owner, newest) = match &config.savepoint {
            Some(name) => {
                let lines = checkpoint::fsck::checkpoints(&door)?;
                latest = lines.into_iter().rfind(|c| c.savepoint.is_none()).map(|line| line.manifest);
                Owner::open_savepoint(&door, name)?
            }
            None => Owner::open(&door, None)?,
        };
        let newest = newest.map(|Checkpoint { manifest, permit, committed }| -> Result<Found> {
            let coordinated = serde_json::from_value(manifest.coordinator.clone()).map_err(|e| {
                let message = format!("object \"{}\" of a checkpoint cannot be used", manifest.name());
                Error::new(SqlState::DataCorrupted, message).with_detail(e.to_string())
            })?;
            let rewound = config.savepoint.is_some() && latest != Some(manifest.name().to_string());
            Ok(Found { manifest, coordinated: Arc::new(coordinated), permit, committed, rewound })
        });
        let (newest, door) = (newest.transpose()?, Arc::new(owner.door().clone()));
        Ok(Kept { config, door, newest, counter: Arc::default(), owner, origin: origin.to_string() })
    }
}
