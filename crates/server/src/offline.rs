//! `millstream fsck` and `millstream state`: what lies in a data directory while no server uses it.

use std::collections::BTreeMap;

use arrow::util::pretty::pretty_format_batches;
use catalog::Catalog;
use checkpoint::door::Door;
use checkpoint::fsck::{self, CheckpointLine};
use checkpoint::lease::{Holder, Leases};
use checkpoint::local::LocalStore;
use checkpoint::manifest::{JobState, SegmentRef};
use checkpoint::{DataDirectory, Log};
use chrono::DateTime;
use coord::record;
use flow::process::{WATERMARK_END, WATERMARK_START};
use flow::{Epoch, Error, Result, SqlState, TaskId};
use plan::ProcessPlan;

use crate::StateCommand;
use crate::config::Config;

/// An owned data directory and what is in it.
struct Offline {
    /// `None`: everything is in a store.
    _directory: Option<DataDirectory>,
    door: Door,
    catalog: Catalog,
    log: LogFound,
}

/// What is in the log.
#[derive(Default)]
struct LogFound {
    place: String,
    records: u64,
    bytes: u64,
    /// The newest epoch of a transaction.
    epoch: Epoch,
    /// Where checkpoints were last made.
    kept_in: Option<String>,
    /// Up to where it does not tell transactions apart: it was rewritten.
    merged: Option<Epoch>,
}

impl Offline {
    /// Errors: `58P01` no data directory, `55006` a server uses it, `XX001` a newer version or a damaged log; `55000` the log was moved
    /// to a store.
    fn open(config: &Config) -> Result<Offline> {
        let directory = match config.is_highly_available()? {
            true => None,
            false => Some(DataDirectory::open_existing(&config.data_dir)?),
        };
        if let Some(directory) = &directory
            && let Some(place) = directory.log_kept_in()?
        {
            let message = format!("the log of data directory \"{}\" is kept in {place}", directory.path().display());
            return Err(Error::new(SqlState::ObjectNotInPrerequisiteState, message)
                .with_hint("Set high_availability to store, and checkpoint_url to that place."));
        }
        let door = config.door(LocalStore::open)?;
        let (mut catalog, mut log) = (Catalog::new(), LogFound::default());
        let seen = |bytes: &[u8]| -> Result<()> {
            let record = record::decode(bytes)?;
            if let Some(snapshot) = record.catalog_snapshot {
                catalog = snapshot;
            }
            for change in &record.catalog {
                catalog.apply(change)?;
            }
            log.kept_in = record.kept_in.or(log.kept_in.take());
            log.merged = record.merged.iter().map(|(_, epoch)| *epoch).max().or(log.merged);
            log.records += 1;
            log.epoch = log.epoch.max(record.epoch);
            Ok(())
        };
        let newest = match &directory {
            Some(directory) => {
                Log::look(&directory.log_folder(), seen)?.map(|(path, n)| (path.display().to_string(), n))
            }
            None => {
                Log::look_in_store(&door, seen)?.map(|(object, n)| (format!("\"{object}\" in {}", door.place()), n))
            }
        };
        if let Some((place, bytes)) = newest {
            (log.place, log.bytes) = (place, bytes);
        }
        Ok(Offline { _directory: directory, door, catalog, log })
    }

    fn name_of(&self, job: &JobState) -> String {
        self.catalog
            .relations()
            .find(|r| r.oid.0 == job.job.0)
            .map_or_else(|| "(dropped)".to_string(), |r| r.qualified_name())
    }

    /// The newest checkpoint, or the one of an epoch, or a savepoint.
    fn checkpoint(&self, wanted: Option<&str>) -> Result<CheckpointLine> {
        let mut lines = fsck::checkpoints(&self.door)?;
        match wanted {
            None => lines.retain(|line| line.savepoint.is_none()),
            Some(wanted) => lines.retain(|line| match &line.savepoint {
                Some(name) => name == wanted,
                None => line.epoch.0.to_string() == wanted,
            }),
        }
        lines.pop().ok_or_else(|| {
            let message = match wanted {
                None => "there is no checkpoint".to_string(),
                Some(wanted) => format!("there is no checkpoint or savepoint \"{wanted}\""),
            };
            Error::new(SqlState::UndefinedObject, message).with_hint("millstream state ls shows those that there are.")
        })
    }
}

/// `millstream fsck`. True if everything is whole.
pub fn check(config: &Config, repair_orphans: bool) -> Result<bool> {
    let offline = Offline::open(config)?;
    let log = &offline.log;
    let merged = log.merged.map(|epoch| format!(", merged up to epoch {epoch}")).unwrap_or_default();
    let LogFound { place, records, bytes, epoch, .. } = log;
    println!("log {place}: {records} records, {bytes} bytes, newest epoch {epoch}{merged}: whole");
    let report = fsck::fsck(&offline.door)?;
    println!("{report}");
    if let Some(place) = log.kept_in.as_ref().filter(|_| report.records.is_none()) {
        println!("MISSING: the log says that there are checkpoints in {place}, and none is found in {}", report.place);
        return Ok(false);
    }
    if repair_orphans && report.is_whole() {
        if config.is_highly_available()? {
            nobody_leads(config, &offline.door)?;
        }
        let swept = fsck::repair_orphans(&offline.door)?;
        println!("removed {} orphans, {} bytes", swept.objects, swept.bytes);
    } else if repair_orphans {
        println!("orphans stay: nothing is removed from a damaged store");
    }
    Ok(report.is_whole())
}

/// A store of several coordinators belongs to no data directory that could be owned meanwhile. Errors: `55006` one of them leads.
fn nobody_leads(config: &Config, door: &Door) -> Result<()> {
    let leases = Leases::new(door.clone(), Holder::default());
    let Some(before) = leases.look()?.filter(|seen| !seen.sign.released) else { return Ok(()) };
    std::thread::sleep(config.heartbeat_timeout()?);
    match leases.look()? {
        Some(now) if now.number != before.number => {
            let message = format!("the store {} is in use by a coordinator", door.place());
            Err(Error::new(SqlState::ObjectInUse, message)
                .with_detail(format!("It answers clients at {}.", now.sign.holder.pg_addr))
                .with_hint("Stop all coordinators first."))
        }
        _ => Ok(()),
    }
}

/// `millstream state`.
pub fn state(config: &Config, command: &StateCommand) -> Result<()> {
    let offline = Offline::open(config)?;
    match command {
        StateCommand::Ls => list(&offline),
        StateCommand::Show { job, checkpoint, task, part, limit } => {
            let line = offline.checkpoint(checkpoint.as_deref())?;
            let manifest = fsck::manifest_of(&offline.door, &line)?;
            let found = manifest.jobs.iter().find(|j| offline.name_of(j) == *job || j.job.0.to_string() == *job);
            let found = found.or_else(|| {
                let short = |j: &&JobState| offline.name_of(j).rsplit('.').next() == Some(job);
                manifest.jobs.iter().find(short)
            });
            let state = found.ok_or_else(|| {
                let known: Vec<String> = manifest.jobs.iter().map(|j| offline.name_of(j)).collect();
                Error::new(SqlState::UndefinedObject, format!("checkpoint {} has no job \"{job}\"", line.epoch))
                    .with_detail(format!("It has: {}.", known.join(", ")))
            })?;
            show(&offline, state, *task, part.as_deref(), *limit)
        }
    }
}

/// The checkpoints, and the jobs of each.
fn list(offline: &Offline) -> Result<()> {
    let lines = fsck::checkpoints(&offline.door)?;
    if lines.is_empty() {
        println!("no checkpoints");
    }
    for line in &lines {
        println!("{line}, made {}", time(line.created_us));
        if line.damage.is_some() {
            continue;
        }
        let manifest = fsck::manifest_of(&offline.door, line)?;
        for job in &manifest.jobs {
            let bytes: u64 = job.segments.iter().map(|s| s.bytes).sum();
            println!(
                "  {:<6} {:<24} {} slots, {} segments, {bytes} bytes, since epoch {}{}",
                job.job.0,
                offline.name_of(job),
                job.slots,
                job.segments.len(),
                job.incarnation,
                watermark(job)
            );
        }
    }
    Ok(())
}

/// The least promise that a job was given.
fn watermark(job: &JobState) -> String {
    let given = job.watermarks.iter().map(|w| w.watermark_us).filter(|us| *us != WATERMARK_START).min();
    given.map_or_else(String::new, |us| format!(", watermark {}", time(us)))
}

fn time(us: i64) -> String {
    match us {
        WATERMARK_END => "ended".to_string(),
        us => DateTime::from_timestamp_micros(us)
            .map_or_else(|| format!("{us} µs"), |at| at.format("%Y-%m-%d %H:%M:%S%.6fZ").to_string()),
    }
}

/// The parts of a job's state, or the rows of one.
fn show(offline: &Offline, job: &JobState, task: Option<u32>, part: Option<&str>, limit: usize) -> Result<()> {
    let plan: ProcessPlan = serde_json::from_str(&job.plan).map_err(|e| {
        Error::new(SqlState::DataCorrupted, format!("the stored plan of job {} cannot be read", job.job))
            .with_detail(e.to_string())
    })?;
    let mut chains: BTreeMap<u32, Vec<SegmentRef>> = BTreeMap::new();
    for segment in &job.segments {
        chains.entry(segment.slot).or_default().push(segment.clone());
    }
    let chains: Vec<Vec<SegmentRef>> = chains.into_values().collect();
    let stored = |task: TaskId, part: &str| {
        let of =
            |s: &SegmentRef| s.parts.iter().filter(|p| p.task == task && p.part == part).map(|p| p.bytes).sum::<u64>();
        job.segments.iter().map(of).sum::<u64>()
    };
    let mut matched = false;
    for (n, parts) in runtime::depot::parts_of(&plan)?.iter().enumerate() {
        let id = TaskId(n as u32);
        for found in parts {
            if task.is_some_and(|t| t != id.0) || part.is_some_and(|p| p != found.name) {
                continue;
            }
            matched = true;
            let contents = runtime::depot::whole_content(&offline.door, &chains, n, found)?;
            let rows: usize = contents.iter().map(|c| c.num_rows()).sum();
            println!("task {id}, part {}: {rows} rows, {} bytes stored", found.name, stored(id, &found.name));
            let columns = found.schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type()));
            println!("  {}", columns.collect::<Vec<_>>().join(", "));
            if task.is_some() || part.is_some() {
                print_rows(contents.into_iter().map(|c| c.rows).collect(), limit)?;
            }
        }
    }
    if matched {
        return Ok(());
    }
    Err(Error::new(SqlState::UndefinedObject, "the job has no such task or part")
        .with_hint("millstream state show JOB lists them."))
}

fn print_rows(batches: Vec<arrow::array::RecordBatch>, limit: usize) -> Result<()> {
    let all: usize = batches.iter().map(|b| b.num_rows()).sum();
    let mut left = limit;
    let mut shown = Vec::new();
    for batch in batches {
        let rows = batch.num_rows().min(left);
        left -= rows;
        if rows > 0 {
            shown.push(batch.slice(0, rows));
        }
    }
    if !shown.is_empty() {
        println!("{}", pretty_format_batches(&shown)?);
    }
    if all > limit {
        println!("({limit} of {all} rows; --limit shows more)");
    }
    Ok(())
}
