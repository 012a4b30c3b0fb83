//! Looks at a store of checkpoints from outside: is everything there that is needed, what is there that nothing needs, and what do the
//! checkpoints consist of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use flow::{Epoch, Error, JobId, Result, SqlState};

use crate::door::Door;
use crate::envelope::ENVELOPE_BYTES;
use crate::manifest::{Manifest, SegmentPlace, SegmentRef};
use crate::names::{Kind, ObjectName};
use crate::owner::{Owner, Swept, read_manifest, read_record, read_savepoint};
use crate::permit::Generation;
use crate::protocol::{EpochRecord, ManifestRef, ManifestSeen, needs};

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub object: String,
    /// What is wrong, and who needs the object.
    pub what: String,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub place: String,
    pub objects: usize,
    /// With envelopes, like all sizes of objects here.
    pub bytes: u64,
    /// The newest generation.
    pub generation: Generation,
    /// First and last of the retained records.
    pub records: Option<(u64, u64)>,
    /// Whether the sinks of the newest checkpoint have committed.
    pub committed: bool,
    pub savepoints: Vec<String>,
    /// Segments that were read and compared.
    pub segments: usize,
    pub problems: Vec<Problem>,
    /// What no retained checkpoint and no savepoint needs.
    pub orphans: Vec<(String, u64)>,
    /// What has no name of ours.
    pub aliens: Vec<(String, u64)>,
}

impl Report {
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} objects, {} bytes, generation {}",
            self.place, self.objects, self.bytes, self.generation.0
        )?;
        match self.records {
            Some((from, to)) => writeln!(f, "records {from} to {to}, {} segments read", self.segments)?,
            None => writeln!(f, "no records")?,
        }
        if self.records.is_some() && !self.committed {
            writeln!(f, "the commit of the newest checkpoint is unfinished; the next start finishes it")?;
        }
        for savepoint in &self.savepoints {
            writeln!(f, "savepoint {savepoint}")?;
        }
        for (name, bytes) in &self.orphans {
            writeln!(f, "orphan {name}, {bytes} bytes")?;
        }
        for (name, bytes) in &self.aliens {
            writeln!(f, "unknown {name}, {bytes} bytes")?;
        }
        for problem in &self.problems {
            writeln!(f, "DAMAGED {}: {}", problem.object, problem.what)?;
        }
        match self.problems.len() {
            0 => write!(f, "whole"),
            n => write!(f, "{n} objects are missing or damaged"),
        }
    }
}

/// Turns what is wrong with an object into words; an error that is not about the object is passed on.
fn wrong<T>(read: Result<T>) -> Result<Result<T, String>> {
    match read {
        Ok(found) => Ok(Ok(found)),
        Err(e) if e.state() == SqlState::DataCorrupted => Ok(Err(e.message().to_string())),
        Err(e) => Err(e),
    }
}

struct Check<'a> {
    door: &'a Door,
    sizes: BTreeMap<String, u64>,
    report: Report,
    needed: BTreeSet<String>,
    /// Manifests and segments that were looked at already: savepoints share them with records.
    done: BTreeSet<String>,
}

impl Check<'_> {
    fn problem(&mut self, object: &str, what: impl Into<String>) {
        self.report.problems.push(Problem { object: object.to_string(), what: what.into() });
    }

    /// A manifest and all that it needs. `by`: who needs it.
    fn manifest(&mut self, meant: &ManifestRef, by: &str) -> Result<()> {
        self.needed.insert(meant.name.clone());
        if !self.done.insert(meant.name.clone()) {
            return Ok(());
        }
        let manifest = match read_manifest(self.door, meant)? {
            Ok(manifest) => manifest,
            Err(ManifestSeen::Damaged(why)) => {
                self.problem(&meant.name, format!("the manifest of {by} is damaged: {why}"));
                return Ok(());
            }
            Err(_) => {
                self.problem(&meant.name, format!("the manifest of {by} is missing"));
                return Ok(());
            }
        };
        for segment in manifest.segments() {
            self.segment(segment, by)?;
        }
        for name in needs(&manifest) {
            let name = name.to_string();
            self.needed.insert(name.clone());
            // What the coordinator names: its size is not known here.
            if self.done.insert(name.clone()) {
                self.object(&name, by)?;
            }
        }
        Ok(())
    }

    fn segment(&mut self, segment: &SegmentRef, by: &str) -> Result<()> {
        let name = match &segment.place {
            SegmentPlace::Inline(blob) => {
                if let Err(e) = segment.check(blob.bytes()) {
                    self.problem("(inline)", format!("a segment in the manifest of {by}: {}", e.message()));
                }
                return Ok(());
            }
            SegmentPlace::Object(name) => name,
        };
        self.needed.insert(name.clone());
        if !self.done.insert(name.clone()) {
            return Ok(());
        }
        if let Some(payload) = self.object(name, by)? {
            if let Err(e) = segment.check(&payload) {
                self.problem(name, format!("{by} needs another content: {}", e.detail().unwrap_or(e.message())));
            } else if self.sizes.get(name) != Some(&(segment.bytes + ENVELOPE_BYTES as u64)) {
                self.problem(name, "it is listed with another size than it has");
            }
        }
        Ok(())
    }

    fn object(&mut self, name: &str, by: &str) -> Result<Option<bytes::Bytes>> {
        let found = match wrong(self.door.get(name))? {
            Ok(Some(payload)) => {
                self.report.segments += 1;
                return Ok(Some(payload));
            }
            Ok(None) => format!("{by} needs it, and it is missing"),
            Err(why) => why,
        };
        self.problem(name, found);
        Ok(None)
    }

    fn records(&mut self, names: &[ObjectName]) -> Result<()> {
        let numbers: BTreeSet<u64> = names
            .iter()
            .filter_map(|name| match name {
                ObjectName::Record(number) => Some(*number),
                _ => None,
            })
            .collect();
        let Some(newest) = numbers.last().copied() else {
            let trace = names.iter().find(|name| !matches!(name, ObjectName::Generation(_)));
            if let Some(trace) = trace {
                self.problem(&trace.to_string(), "there are checkpoints, but all epoch records are gone");
            }
            return Ok(());
        };
        let mut from = newest;
        let mut number = newest;
        loop {
            let name = ObjectName::Record(number).to_string();
            self.needed.insert(name.clone());
            match wrong(read_record(self.door, number))? {
                Ok(Some(record)) => {
                    if number == newest {
                        from = record.retained_from.min(newest);
                        self.report.committed =
                            record.committed || self.sizes.contains_key(&ObjectName::Committed(newest).to_string());
                    }
                    if let Some(meant) = &record.manifest {
                        self.manifest(meant, &format!("record {number}"))?;
                    }
                }
                Ok(None) => self.problem(&name, "a hole in the chain of records"),
                Err(why) => self.problem(&name, why),
            }
            if number <= from {
                break;
            }
            number -= 1;
        }
        self.report.records = Some((from, newest));
        self.needed.extend((from..=newest).map(|n| ObjectName::Committed(n).to_string()));
        Ok(())
    }
}

/// Reads everything that a retained record or a savepoint needs. To be called while no server uses the store: one that clears
/// away meanwhile looks like damage. Errors: `58030`, `42501`; damage is in the report.
pub fn fsck(door: &Door) -> Result<Report> {
    let listed = door.list("")?;
    let names: Vec<ObjectName> = listed.iter().filter_map(|object| ObjectName::parse(&object.name)).collect();
    let generations = names.iter().filter_map(|name| match name {
        ObjectName::Generation(generation) => Some(*generation),
        _ => None,
    });
    let generation = generations.max().unwrap_or_default();
    let report = Report {
        place: door.place(),
        objects: listed.len(),
        bytes: listed.iter().map(|object| object.bytes).sum(),
        generation,
        ..Report::default()
    };
    let sizes = listed.iter().map(|object| (object.name.clone(), object.bytes)).collect();
    let needed = [ObjectName::Generation(generation).to_string()].into();
    let mut check = Check { door, sizes, report, needed, done: BTreeSet::new() };
    check.records(&names)?;
    for name in &names {
        let ObjectName::Savepoint(savepoint) = name else { continue };
        check.needed.insert(name.to_string());
        check.report.savepoints.push(savepoint.clone());
        match wrong(read_savepoint(door, savepoint))? {
            Ok(Some(found)) => check.manifest(&found.manifest, &format!("savepoint \"{savepoint}\""))?,
            Ok(None) => {}
            Err(why) => check.problem(&name.to_string(), why),
        }
    }
    let Check { mut report, needed, .. } = check;
    for object in listed {
        if ObjectName::parse(&object.name).is_none() {
            // The remains of a probe are ours.
            match Kind::of(&object.name) {
                Kind::Probe => report.orphans.push((object.name, object.bytes)),
                _ => report.aliens.push((object.name, object.bytes)),
            }
        } else if !needed.contains(&object.name) {
            report.orphans.push((object.name, object.bytes));
        }
    }
    Ok(report)
}

/// Removes the orphans that clearing away would remove as well: as a new generation, so that a server that still runs has no
/// effect any more. Errors: `XX001` something is missing or damaged, and nothing was removed; `55006`, `58030`.
pub fn repair_orphans(door: &Door) -> Result<Swept> {
    let report = fsck(door)?;
    if let Some(problem) = report.problems.first() {
        return Err(Error::new(SqlState::DataCorrupted, "orphans are not removed from a damaged store")
            .with_detail(format!("Object \"{}\": {}.", problem.object, problem.what))
            .with_hint("Restore what is missing from a backup first."));
    }
    let (mut owner, _) = Owner::open(door, None)?;
    owner.collect(&BTreeSet::new())
}

/// One job of a checkpoint, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobLine {
    pub job: JobId,
    pub incarnation: u64,
    pub slots: u32,
    pub segments: usize,
    /// Of its segments, those in the manifest included.
    pub bytes: u64,
    /// Rows of changes in them.
    pub rows: u64,
}

/// One checkpoint, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointLine {
    /// The record's number, or the one that a savepoint was made from.
    pub record: u64,
    /// The name, of a savepoint.
    pub savepoint: Option<String>,
    pub generation: Generation,
    pub epoch: Epoch,
    pub created_us: i64,
    pub manifest: String,
    pub bytes: u64,
    pub sinks: usize,
    pub jobs: Vec<JobLine>,
    /// Why its manifest cannot be read.
    pub damage: Option<String>,
}

impl fmt::Display for CheckpointLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.savepoint {
            write!(f, "savepoint {name} of ")?;
        }
        write!(f, "record {}: epoch {}, generation {}", self.record, self.epoch, self.generation.0)?;
        match &self.damage {
            Some(damage) => write!(f, ", DAMAGED: {damage}"),
            None => write!(f, ", {} jobs, {} sinks, {} bytes", self.jobs.len(), self.sinks, self.bytes),
        }
    }
}

fn job_lines(manifest: &Manifest) -> Vec<JobLine> {
    let line = |job: &crate::manifest::JobState| JobLine {
        job: job.job,
        incarnation: job.incarnation,
        slots: job.slots,
        segments: job.segments.len(),
        bytes: job.segments.iter().map(|segment| segment.bytes).sum(),
        rows: job.segments.iter().flat_map(|segment| &segment.parts).map(|part| part.rows).sum(),
    };
    manifest.jobs.iter().map(line).collect()
}

fn line(door: &Door, record: u64, savepoint: Option<String>, meant: &ManifestRef) -> Result<CheckpointLine> {
    let mut line = CheckpointLine {
        record,
        savepoint,
        generation: Generation::default(),
        epoch: meant.epoch,
        created_us: 0,
        manifest: meant.name.clone(),
        bytes: 0,
        sinks: 0,
        jobs: Vec::new(),
        damage: None,
    };
    match read_manifest(door, meant)? {
        Ok(manifest) => {
            line.generation = manifest.generation;
            line.created_us = manifest.created_us;
            line.sinks = manifest.sinks.len();
            line.bytes = manifest.segments().map(|segment| segment.bytes).sum();
            line.jobs = job_lines(&manifest);
        }
        Err(ManifestSeen::Damaged(why)) => line.damage = Some(why),
        Err(_) => line.damage = Some("the manifest is missing".into()),
    }
    Ok(line)
}

/// The checkpoints in a store, oldest first, then the savepoints. A record that took over the checkpoint before it is not told
/// twice. Errors: `XX001` a record or savepoint that cannot be read, `58030`.
pub fn checkpoints(door: &Door) -> Result<Vec<CheckpointLine>> {
    let names: Vec<ObjectName> = door.list("")?.iter().filter_map(|object| ObjectName::parse(&object.name)).collect();
    let mut lines = Vec::new();
    let mut last: Option<EpochRecord> = None;
    for name in &names {
        let ObjectName::Record(number) = name else { continue };
        let Some(record) = read_record(door, *number)? else { continue };
        if let Some(meant) = &record.manifest
            && last.as_ref().and_then(|last| last.manifest.as_ref()) != Some(meant)
        {
            lines.push(line(door, *number, None, meant)?);
        }
        last = Some(record);
    }
    for name in &names {
        let ObjectName::Savepoint(savepoint) = name else { continue };
        if let Some(found) = read_savepoint(door, savepoint)? {
            lines.push(line(door, found.record, Some(savepoint.clone()), &found.manifest)?);
        }
    }
    Ok(lines)
}

/// The manifest that a line of [`checkpoints`] is about. Errors: `XX001` it is missing or damaged.
pub fn manifest_of(door: &Door, line: &CheckpointLine) -> Result<Manifest> {
    let damaged = |what: &str| Error::new(SqlState::DataCorrupted, format!("object \"{}\" {what}", line.manifest));
    if let Some(damage) = &line.damage {
        return Err(damaged(&format!("cannot be used: {damage}")));
    }
    Manifest::decode(&door.get(&line.manifest)?.ok_or_else(|| damaged("is missing"))?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flow::{RelationId, TaskId};

    use super::*;
    use crate::door::{NoRest, Store};
    use crate::faulty::MemoryStore;
    use crate::manifest::{JobState, PartRef, PreparedSink};
    use crate::names::SegmentName;

    /// Two checkpoints with two segments each, a savepoint of the first.
    fn store() -> (Arc<MemoryStore>, Door) {
        let store = MemoryStore::new();
        let door = Door::new(store.clone(), Arc::new(NoRest), 1);
        let (mut owner, _) = Owner::open(&door, None).unwrap();
        let part = PartRef { task: TaskId(1), part: "rows".into(), schema: String::new(), rows: 5, bytes: 9 };
        let mut segments = vec![SegmentRef::inline(0, 1, b"inline".to_vec(), vec![])];
        for n in 1..=2 {
            let put = |counter| {
                let generation = owner.generation();
                let name = SegmentName { job: JobId(7), generation, counter, slot: 0 };
                let name = ObjectName::Segment(name).to_string();
                owner.door().put_new(&name, format!("segment {counter}").as_bytes()).unwrap();
                (name, format!("segment {counter}"))
            };
            let (name, bytes) = put(n * 2);
            segments.push(SegmentRef::in_object(name, 0, 1, bytes.as_bytes(), vec![part.clone()]));
            let (side, _) = put(n * 2 + 1);
            let job = JobState {
                bases: Vec::new(),
                job: JobId(7),
                incarnation: 1,
                slots: 1,
                plan: String::new(),
                watermarks: vec![],
                segments: segments.clone(),
            };
            let manifest = Manifest {
                epoch: Epoch(n * 10),
                generation: owner.generation(),
                counter: n * 2 + 1,
                coordinator: serde_json::json!({ "side": side }),
                jobs: vec![job],
                sinks: vec![PreparedSink { sink: RelationId(3), prepared: vec![1].into() }],
                ..Manifest::default()
            };
            owner.publish(&manifest, 2).unwrap();
            owner.committed().unwrap();
        }
        owner.keep("first", 2, 77).unwrap();
        (store, door)
    }

    #[test]
    fn whole_store_is_whole_and_its_orphans_are_listed_and_removed() {
        let (store, door) = store();
        let report = fsck(&door).unwrap();
        assert!(report.is_whole(), "{report}");
        assert_eq!((report.records, report.committed, report.segments), (Some((2, 3)), true, 4));
        // The first record, of before the first checkpoint, is not retained.
        assert_eq!(report.orphans.len(), 1, "{report}");
        let stray = "jobs/7/0000000001-0000000009-slot0.seg";
        door.put_new(stray, b"never published").unwrap();
        door.put_new("notes/mine", b"a stranger's").unwrap();
        let report = fsck(&door).unwrap();
        assert!(report.orphans.iter().any(|(name, _)| name == stray), "{report}");
        assert_eq!(report.aliens.len(), 1);
        assert!(report.to_string().contains(&format!("orphan {stray}")));
        assert!(repair_orphans(&door).unwrap().objects >= 2);
        let report = fsck(&door).unwrap();
        assert!(report.is_whole() && report.orphans.is_empty(), "{report}");
        assert!(store.names().contains(&"notes/mine".to_string()));
    }

    #[test]
    fn every_object_that_is_missing_or_damaged_is_named() {
        let (store, door) = store();
        let marker = |name: &str| name.starts_with("committed") || name.starts_with("generation");
        for name in store.names().iter().filter(|name| !marker(name) && *name != "epoch/0000000001") {
            let whole = store.raw(name).unwrap();
            let mut flipped = whole.to_vec();
            flipped[45] ^= 4;
            for damage in [Some(whole.slice(..whole.len() - 1)), Some(flipped.into()), None] {
                match &damage {
                    Some(bytes) => store.overwrite(name, bytes.clone()),
                    None => store.delete(name).unwrap(),
                }
                let report = fsck(&door).unwrap();
                // Without the newest record, the one before is the newest; without its savepoint, there is none.
                let shortened = damage.is_none() && (name == "epoch/0000000003" || name.starts_with("savepoint"));
                let named = report.problems.iter().any(|problem| problem.object == *name);
                assert!(named || shortened, "{name}, {damage:?}: {report}");
                if named {
                    assert!(report.to_string().contains(&format!("DAMAGED {name}")));
                    let before = store.names();
                    assert_eq!(repair_orphans(&door).unwrap_err().state(), SqlState::DataCorrupted);
                    assert_eq!(store.names(), before);
                }
                store.overwrite(name, whole.clone());
            }
        }
        assert!(fsck(&door).unwrap().is_whole());
    }

    #[test]
    fn checkpoints_and_savepoints_are_shown_with_their_jobs() {
        let (_, door) = store();
        Owner::open(&door, None).unwrap();
        let lines = checkpoints(&door).unwrap();
        let told: Vec<(u64, u64, Option<&str>)> =
            lines.iter().map(|l| (l.record, l.epoch.0, l.savepoint.as_deref())).collect();
        assert_eq!(told, [(2, 10, None), (3, 20, None), (2, 10, Some("first"))]);
        let job = &lines[1].jobs[0];
        assert_eq!((job.job, job.segments, job.rows, job.bytes), (JobId(7), 3, 10, 6 + 9 + 9));
        assert!(lines[2].to_string().starts_with("savepoint first of record 2: epoch 10"), "{}", lines[2]);
    }

    #[test]
    fn empty_store_is_whole() {
        let door = Door::new(MemoryStore::new(), Arc::new(NoRest), 1);
        let report = fsck(&door).unwrap();
        assert!(report.is_whole() && report.records.is_none(), "{report}");
        assert_eq!(checkpoints(&door).unwrap(), []);
    }
}
