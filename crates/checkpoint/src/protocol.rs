//! Which checkpoint is the truth, who may make the next one, and what may be cleared away: pure decisions over what was seen.
//!
//! A coordinator becomes a **generation** by creating the next numbered object. The **records** are numbered without a hole, each
//! created only if absent; the newest one is the truth. A new generation's first record takes over the manifest of the
//! newest one: from then on the number that an older generation would need is taken, so it cannot claim anything any more. A
//! checkpoint is claimed by the next record, after its segments and its manifest are durable. After a create the claimant looks
//! again, since a name whose object was deleted is free for a writer that slept: only the newest record of the newest generation
//! gives a permit. With it the sinks commit; then the marker is written, and only then can the next record be claimed. So at most the
//! newest record's commit is unfinished, and whoever takes over finishes it before any source starts.
//!
//! Records say from which number on they are retained. That number never goes down, and everything is cleared away against
//! it: what the newest record does not retain no later generation will need, so that even the deletion of a zombie hits nothing
//! that lives. The partner of this law is [`sweep`], which never touches what is of a newer generation or on its way into a
//! later checkpoint.
//!
//! `exhaustive` runs these decisions in all orders of two coordinators with crashes, lost answers and late requests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use flow::{Epoch, Error, SqlState};
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;
use crate::names::ObjectName;
use crate::permit::{CommitPermit, Generation};

#[cfg(test)]
mod exhaustive;

/// Version of the records. One of a newer version is refused.
pub const FORMAT_VERSION: u32 = 1;

/// Which manifest is meant, and its very bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ManifestRef {
    pub name: String,
    pub epoch: Epoch,
    /// Of its payload.
    pub bytes: u64,
    pub crc32: u32,
}

impl ManifestRef {
    /// A reference to `manifest`, whose encoded form is `payload`.
    pub fn of(manifest: &Manifest, payload: &[u8]) -> ManifestRef {
        let (bytes, crc32) = (payload.len() as u64, crc32fast::hash(payload));
        ManifestRef { name: manifest.name().to_string(), epoch: manifest.epoch, bytes, crc32 }
    }
}

/// The content of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EpochRecord {
    pub format: u32,
    pub number: u64,
    pub generation: Generation,
    /// The newest epoch that any checkpoint so far had. Later epochs are greater, also after going back to an older checkpoint.
    pub epoch: Epoch,
    /// `None`: before the first checkpoint.
    pub manifest: Option<ManifestRef>,
    /// Records from this number on are retained, and what they need.
    pub retained_from: u64,
    /// The manifest's sinks had committed when the record was made.
    pub committed: bool,
    /// Segments of the record's generation with a counter up to this one are needed by it, held by a running job, or garbage.
    pub counter: u64,
}

impl EpochRecord {
    pub fn name(&self) -> ObjectName {
        ObjectName::Record(self.number)
    }

    /// The object's payload.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|e| Error::internal(format!("write epoch record: {e}")))
    }

    /// The inverse of [`encode`](Self::encode) for the record `number`. Errors: `XX001`.
    pub fn decode(number: u64, payload: &[u8]) -> Result<EpochRecord, Error> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let name = ObjectName::Record(number);
        let damaged = |e: &dyn fmt::Display| {
            Error::new(SqlState::DataCorrupted, format!("object \"{name}\" is not a record of an epoch: {e}"))
        };
        let version: Version = serde_json::from_slice(payload).map_err(|e| damaged(&e))?;
        if version.format > FORMAT_VERSION {
            return Err(Error::new(
                SqlState::DataCorrupted,
                format!("object \"{name}\" has format version {}", version.format),
            )
            .with_detail(format!("This program reads versions up to {FORMAT_VERSION}."))
            .with_hint("Use the newer program that wrote it."));
        }
        let record: EpochRecord = serde_json::from_slice(payload).map_err(|e| damaged(&e))?;
        if record.number == number { Ok(record) } else { Err(damaged(&"it has another number than its name")) }
    }

    fn next(&self) -> u64 {
        self.number + 1
    }
}

/// Why a coordinator must stop: it has no effect any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    #[error("generation {} has taken over the checkpoints from generation {}", newest.0, mine.0)]
    Generation { mine: Generation, newest: Generation },
    #[error("record {newest} was made by another process, this one was about to make record {mine}")]
    Record { mine: u64, newest: u64 },
}

impl From<Stopped> for Error {
    fn from(stopped: Stopped) -> Error {
        Error::new(SqlState::ObjectInUse, "another server has taken over the checkpoints")
            .with_detail(format!("{stopped}."))
            .with_hint("Stop one of the two servers.")
    }
}

/// The next generation after those that are listed. It is ours once its object is created by us, and only if a look after
/// that shows no newer one.
pub fn next_generation(listed: impl IntoIterator<Item = Generation>) -> Generation {
    Generation(listed.into_iter().map(|generation| generation.0).max().unwrap_or(0) + 1)
}

/// The newest numbers in the store, at one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Look {
    pub generation: Generation,
    pub record: Option<u64>,
}

/// How a manifest reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ManifestSeen {
    Whole,
    Missing,
    /// Unreadable, or not the bytes that the record means.
    Damaged(String),
}

/// What a coordinator sees when it opens the store, gathered in the order of the fields after its generation was created.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Observed {
    /// The newest record of the first look.
    pub newest: Option<EpochRecord>,
    /// Whether that record's marker is there.
    pub marked: bool,
    /// Whether anything is there that only comes after a first record: manifests, markers, segments.
    pub traces: bool,
    /// The record to go on from, the newest or an older one that was asked for; `None` if it is not there.
    pub base: Option<EpochRecord>,
    /// How the manifest of the base reads, if it has one.
    pub manifest: Option<ManifestSeen>,
    /// The last look.
    pub look: Look,
}

/// How to go on after opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Create this record. If another one has its number, look again.
    TakeOver(EpochRecord),
    /// A record came in between.
    LookAgain,
    Stop(Stopped),
    /// Nothing is changed until a human has looked.
    Refuse(Refusal),
}

/// What is wrong with the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the manifest of record {record} is missing")]
    ManifestMissing { record: u64, object: String },
    #[error("the manifest of record {record} is damaged: {why}")]
    ManifestDamaged { record: u64, object: String, why: String },
    #[error("all epoch records are gone, but there are checkpoints")]
    RecordsGone,
    #[error("there is no record {record} to go back to")]
    NotRetained { record: u64, from: u64, to: u64 },
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let error = |state| Error::new(state, refusal.to_string());
        match &refusal {
            Refusal::ManifestMissing { object, .. } | Refusal::ManifestDamaged { object, .. } => {
                error(SqlState::DataCorrupted)
                    .with_detail(format!("It is object \"{object}\"; nothing was changed."))
                    .with_hint("Restore the object from a backup, or start from an older checkpoint that is retained.")
            }
            Refusal::RecordsGone => {
                error(SqlState::DataCorrupted).with_hint("Restore the objects below \"epoch\" from a backup.")
            }
            Refusal::NotRetained { from, to, .. } => {
                error(SqlState::UndefinedObject).with_detail(format!("Records {from} to {to} are retained."))
            }
        }
    }
}

/// The first record of a generation. `asked`: the record to go on from, if not the newest.
pub fn open(mine: Generation, asked: Option<u64>, seen: &Observed) -> Opening {
    if seen.look.generation > mine {
        return Opening::Stop(Stopped::Generation { mine, newest: seen.look.generation });
    }
    if seen.look.record != seen.newest.as_ref().map(|newest| newest.number) {
        return Opening::LookAgain;
    }
    let Some(newest) = &seen.newest else {
        // A list that shows nothing is not yet an empty store: going on from nothing would forget all state.
        return match asked {
            _ if seen.traces => Opening::Refuse(Refusal::RecordsGone),
            Some(record) => Opening::Refuse(Refusal::NotRetained { record, from: 0, to: 0 }),
            None => Opening::TakeOver(EpochRecord {
                format: FORMAT_VERSION,
                number: 1,
                generation: mine,
                epoch: Epoch(0),
                manifest: None,
                retained_from: 1,
                committed: true,
                counter: 0,
            }),
        };
    };
    if newest.generation > mine {
        return Opening::Stop(Stopped::Generation { mine, newest: newest.generation });
    }
    let wanted = asked.unwrap_or(newest.number);
    let missing = Refusal::NotRetained { record: wanted, from: newest.retained_from, to: newest.number };
    let Some(base) = seen.base.as_ref().filter(|base| base.number == wanted && wanted >= newest.retained_from) else {
        return Opening::Refuse(missing);
    };
    match (&base.manifest, &seen.manifest) {
        (None, _) | (Some(_), Some(ManifestSeen::Whole)) => {}
        (Some(meant), Some(ManifestSeen::Damaged(why))) => {
            let (record, object, why) = (base.number, meant.name.clone(), why.clone());
            return Opening::Refuse(Refusal::ManifestDamaged { record, object, why });
        }
        (Some(meant), Some(ManifestSeen::Missing) | None) => {
            let (record, object) = (base.number, meant.name.clone());
            return Opening::Refuse(Refusal::ManifestMissing { record, object });
        }
    }
    Opening::TakeOver(EpochRecord {
        format: FORMAT_VERSION,
        number: newest.next(),
        generation: mine,
        epoch: newest.epoch,
        manifest: base.manifest.clone(),
        retained_from: newest.retained_from,
        // An older record's commit was finished before the next one was claimed.
        committed: if base.number == newest.number { newest.committed || seen.marked } else { true },
        counter: 0,
    })
}

/// The first record of a generation that goes on from a savepoint. `manifest`: how the savepoint's manifest reads. That of the
/// newest record does not matter, so a damaged one is gone back behind.
pub fn open_savepoint(mine: Generation, meant: &ManifestRef, manifest: &ManifestSeen, seen: &Observed) -> Opening {
    let object = meant.name.clone();
    let record = seen.newest.as_ref().map_or(0, |newest| newest.number);
    match manifest {
        ManifestSeen::Whole => {}
        ManifestSeen::Damaged(why) => {
            return Opening::Refuse(Refusal::ManifestDamaged { record, object, why: why.clone() });
        }
        ManifestSeen::Missing => return Opening::Refuse(Refusal::ManifestMissing { record, object }),
    }
    let newest = Observed { base: seen.newest.clone(), manifest: Some(ManifestSeen::Whole), ..seen.clone() };
    match open(mine, None, &newest) {
        // The commit of any other checkpoint was finished before the next one was claimed.
        Opening::TakeOver(record) if record.manifest.as_ref() != Some(meant) => {
            Opening::TakeOver(EpochRecord { manifest: Some(meant.clone()), committed: true, ..record })
        }
        opening => opening,
    }
}

/// What a claimant knows of its create.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Created,
    /// Another writer's record has the number.
    Exists,
    /// No answer: the record may be there, or come to be there later.
    Unknown,
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    Won(Claimed),
    /// Create the same record again: no other one of this generation may have its number.
    Again,
    Stop(Stopped),
}

/// A record that is the truth and ours. Only [`claimed`] makes one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claimed {
    record: EpochRecord,
}

impl Claimed {
    pub fn record(&self) -> &EpochRecord {
        &self.record
    }

    /// The right to commit the sinks of the record's manifest; `None` if there is no manifest.
    pub fn permit(&self) -> Option<CommitPermit> {
        let manifest = self.record.manifest.as_ref()?;
        Some(CommitPermit::of_claimed(self.record.generation, manifest.epoch))
    }
}

/// Whether a record is ours. `look` was taken after the create.
pub fn claimed(record: &EpochRecord, outcome: Outcome, look: Look) -> Claim {
    if look.generation > record.generation {
        return Claim::Stop(Stopped::Generation { mine: record.generation, newest: look.generation });
    }
    match (outcome, look.record) {
        // Created where a deleted record has been: the truth has gone on without us.
        (_, Some(newest)) if newest > record.number => Claim::Stop(Stopped::Record { mine: record.number, newest }),
        (Outcome::Created, Some(newest)) if newest == record.number => Claim::Won(Claimed { record: record.clone() }),
        (Outcome::Exists, newest) => {
            Claim::Stop(Stopped::Record { mine: record.number, newest: newest.unwrap_or(record.number) })
        }
        (Outcome::Created | Outcome::Unknown, _) => Claim::Again,
    }
}

/// Why no checkpoint can be claimed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    #[error("the commit of checkpoint {} is not finished", .0.0)]
    Uncommitted(Epoch),
    #[error("epoch {} is not after epoch {}", epoch.0, newest.0)]
    EpochNotNew { epoch: Epoch, newest: Epoch },
}

/// The record that claims a checkpoint whose manifest is durable. `committed`: the commit of `head` is finished, and its marker
/// durable. `retained`: how many records are to be kept with this one.
pub fn next_record(
    head: &EpochRecord,
    committed: bool,
    manifest: ManifestRef,
    counter: u64,
    retained: u64,
) -> Result<EpochRecord, Unready> {
    if !committed {
        return Err(Unready::Uncommitted(head.epoch));
    }
    if manifest.epoch <= head.epoch {
        return Err(Unready::EpochNotNew { epoch: manifest.epoch, newest: head.epoch });
    }
    let number = head.next();
    let retained_from = (number + 1).saturating_sub(retained.max(1)).max(head.retained_from);
    Ok(EpochRecord {
        format: FORMAT_VERSION,
        number,
        generation: head.generation,
        epoch: manifest.epoch,
        manifest: Some(manifest),
        retained_from,
        committed: false,
        counter,
    })
}

/// What clearing away is decided by.
#[derive(Clone, Debug)]
pub struct Sweep<'a> {
    /// The newest record, which is ours.
    pub head: &'a EpochRecord,
    /// What is in the store, listed after `head` was claimed.
    pub listed: &'a [ObjectName],
    /// By retained record and savepoint what it needs; `None` if that could not be read.
    pub needed: &'a BTreeMap<ObjectName, Option<BTreeSet<ObjectName>>>,
    /// What running jobs hold for a later checkpoint although the newest one does not name it.
    pub held: &'a BTreeSet<ObjectName>,
}

/// Why nothing is cleared away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hold {
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("what \"{0}\" needs is not known")]
    Unread(ObjectName),
}

/// What nothing needs any more, in the order in which it is to be deleted: a record goes before what it names, so that a crash
/// half-way leaves no record without its manifest. Before the deletion the fence is looked at again: [`may_delete`].
pub fn sweep(facts: &Sweep<'_>) -> Result<Vec<ObjectName>, Hold> {
    let head = facts.head;
    let mut needed: BTreeSet<&ObjectName> = BTreeSet::new();
    let retained = (head.retained_from..=head.number).map(ObjectName::Record);
    let savepoints = facts.listed.iter().filter(|name| matches!(name, ObjectName::Savepoint(_))).cloned();
    for pin in retained.chain(savepoints) {
        // A failed read is no licence: what it would have named is not known.
        match facts.needed.get(&pin) {
            Some(Some(names)) => needed.extend(names),
            _ => return Err(Hold::Unread(pin)),
        }
    }
    let mut dead = Vec::new();
    for name in facts.listed {
        let is_dead = match name {
            ObjectName::Generation(newest) if *newest > head.generation => {
                return Err(Stopped::Generation { mine: head.generation, newest: *newest }.into());
            }
            ObjectName::Record(newest) if *newest > head.number => {
                return Err(Stopped::Record { mine: head.number, newest: *newest }.into());
            }
            ObjectName::Generation(generation) => *generation < head.generation,
            ObjectName::Record(number) | ObjectName::Committed(number) => *number < head.retained_from,
            ObjectName::Savepoint(_) => false,
            ObjectName::Manifest { generation, epoch } => {
                *generation < head.generation || (*generation == head.generation && *epoch <= head.epoch)
            }
            // What is above the counter is on its way into a later checkpoint.
            ObjectName::Segment(segment) => {
                segment.generation < head.generation
                    || (segment.generation == head.generation && segment.counter <= head.counter)
            }
        };
        if is_dead && !needed.contains(name) && !facts.held.contains(name) {
            dead.push(name.clone());
        }
    }
    let rank = |name: &ObjectName| match name {
        ObjectName::Record(_) => 0,
        ObjectName::Committed(_) => 1,
        ObjectName::Manifest { .. } => 2,
        ObjectName::Segment(_) => 3,
        ObjectName::Savepoint(_) | ObjectName::Generation(_) => 4,
    };
    dead.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.cmp(b)));
    Ok(dead)
}

/// Whether what was planned may still be deleted. `look` was taken just before.
pub fn may_delete(head: &EpochRecord, look: Look) -> Result<(), Stopped> {
    if look.generation > head.generation {
        return Err(Stopped::Generation { mine: head.generation, newest: look.generation });
    }
    match look.record {
        Some(newest) if newest > head.number => Err(Stopped::Record { mine: head.number, newest }),
        _ => Ok(()),
    }
}

/// The objects that a manifest needs: its own, its segments, and what the coordinator's part names. That part is opaque, so any
/// text in it that is the name of a segment counts.
pub fn needs(manifest: &Manifest) -> BTreeSet<ObjectName> {
    fn walk(value: &serde_json::Value, names: &mut BTreeSet<ObjectName>) {
        match value {
            serde_json::Value::String(text) => {
                names.extend(ObjectName::parse(text).filter(|name| matches!(name, ObjectName::Segment(_))));
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| walk(value, names)),
            serde_json::Value::Object(fields) => fields.values().for_each(|value| walk(value, names)),
            _ => {}
        }
    }
    let segments = manifest.segments().filter_map(|segment| segment.object()).filter_map(ObjectName::parse);
    let mut names: BTreeSet<ObjectName> = segments.chain([manifest.name()]).collect();
    walk(&manifest.coordinator, &mut names);
    names
}

#[cfg(test)]
mod tests {
    use flow::JobId;

    use super::*;
    use crate::names::SegmentName;

    fn segment(generation: u64, counter: u64) -> ObjectName {
        ObjectName::Segment(SegmentName { job: JobId(1), generation: Generation(generation), counter, slot: 0 })
    }

    fn manifest(generation: u64, epoch: u64) -> ObjectName {
        ObjectName::Manifest { generation: Generation(generation), epoch: Epoch(epoch) }
    }

    fn record(generation: u64, number: u64, epoch: u64, retained_from: u64) -> EpochRecord {
        let name = manifest(generation, epoch).to_string();
        EpochRecord {
            format: FORMAT_VERSION,
            number,
            generation: Generation(generation),
            epoch: Epoch(epoch),
            manifest: Some(ManifestRef { name, epoch: Epoch(epoch), bytes: 1, crc32: 1 }),
            retained_from,
            committed: false,
            counter: 10,
        }
    }

    fn look(generation: u64, record: u64) -> Look {
        Look { generation: Generation(generation), record: Some(record) }
    }

    fn observed(newest: Option<EpochRecord>, generation: u64) -> Observed {
        let number = newest.as_ref().map(|newest| newest.number);
        Observed {
            base: newest.clone(),
            newest,
            marked: false,
            traces: true,
            manifest: Some(ManifestSeen::Whole),
            look: Look { generation: Generation(generation), record: number },
        }
    }

    #[test]
    fn new_generation_takes_over_the_newest_manifest_and_leaves_its_commit_to_be_finished() {
        let newest = record(3, 7, 100, 5);
        let Opening::TakeOver(first) = open(Generation(4), None, &observed(Some(newest.clone()), 4)) else { panic!() };
        assert_eq!((first.number, first.generation, first.epoch), (8, Generation(4), Epoch(100)));
        assert_eq!((&first.manifest, first.retained_from, first.committed), (&newest.manifest, 5, false));
        let marked = Observed { marked: true, ..observed(Some(newest), 4) };
        let Opening::TakeOver(first) = open(Generation(4), None, &marked) else { panic!() };
        assert!(first.committed);
    }

    #[test]
    fn coordinator_stops_when_a_newer_generation_or_record_is_there() {
        let newest = record(3, 7, 100, 5);
        for seen in [observed(Some(newest.clone()), 5), observed(Some(record(5, 8, 100, 5)), 4)] {
            assert!(matches!(open(Generation(4), None, &seen), Opening::Stop(_)));
        }
        assert!(matches!(claimed(&newest, Outcome::Created, look(4, 7)), Claim::Stop(_)));
        assert!(matches!(claimed(&newest, Outcome::Created, look(3, 8)), Claim::Stop(_)));
        assert!(matches!(claimed(&newest, Outcome::Exists, look(3, 7)), Claim::Stop(_)));
        assert!(matches!(claimed(&newest, Outcome::Unknown, look(3, 7)), Claim::Again));
        assert!(matches!(claimed(&newest, Outcome::Unknown, look(3, 6)), Claim::Again));
        let Claim::Won(won) = claimed(&newest, Outcome::Created, look(3, 7)) else { panic!() };
        assert_eq!(won.permit(), Some(CommitPermit::of_claimed(Generation(3), Epoch(100))));
    }

    #[test]
    fn empty_checkpoint_is_not_restored_where_there_were_checkpoints() {
        let seen = observed(None, 2);
        assert_eq!(open(Generation(2), None, &seen), Opening::Refuse(Refusal::RecordsGone));
        let fresh = Observed { traces: false, ..seen };
        let Opening::TakeOver(first) = open(Generation(2), None, &fresh) else { panic!() };
        assert_eq!((first.number, first.manifest), (1, None));
        assert!(matches!(open(Generation(2), Some(3), &fresh), Opening::Refuse(Refusal::NotRetained { .. })));
    }

    #[test]
    fn damaged_or_missing_manifest_is_refused_by_name_and_never_skipped() {
        let newest = record(3, 7, 100, 5);
        for (manifest, word) in
            [(ManifestSeen::Missing, "missing"), (ManifestSeen::Damaged("cut".into()), "damaged: cut")]
        {
            let seen = Observed { manifest: Some(manifest), ..observed(Some(newest.clone()), 4) };
            let Opening::Refuse(refusal) = open(Generation(4), None, &seen) else { panic!() };
            let error = Error::from(refusal);
            assert_eq!(error.state(), SqlState::DataCorrupted);
            assert!(error.message().contains(word), "{error}");
            assert!(error.detail().unwrap().contains("manifest/0000000003-0000000100"), "{error}");
            // Unless a record came in between, and this one was cleared away.
            let seen = Observed { look: look(4, 8), ..seen };
            assert_eq!(open(Generation(4), None, &seen), Opening::LookAgain);
        }
    }

    #[test]
    fn older_record_is_taken_when_asked_for_and_epochs_go_on_from_the_newest() {
        let (newest, older) = (record(3, 7, 100, 5), record(3, 5, 80, 3));
        let seen = Observed { base: Some(older.clone()), ..observed(Some(newest.clone()), 4) };
        let Opening::TakeOver(first) = open(Generation(4), Some(5), &seen) else { panic!() };
        assert_eq!((first.number, first.epoch, &first.manifest), (8, Epoch(100), &older.manifest));
        assert!(first.committed);
        let gone = Observed { base: Some(record(3, 4, 70, 3)), ..seen };
        assert!(matches!(open(Generation(4), Some(4), &gone), Opening::Refuse(Refusal::NotRetained { .. })));
    }

    #[test]
    fn epoch_numbers_never_restart() {
        let head = record(3, 7, 100, 5);
        let meant = |epoch| ManifestRef { name: "m".into(), epoch: Epoch(epoch), bytes: 1, crc32: 1 };
        for epoch in [0, 1, 100] {
            assert!(matches!(next_record(&head, true, meant(epoch), 1, 1), Err(Unready::EpochNotNew { .. })));
        }
        assert_eq!(next_record(&head, false, meant(101), 1, 1), Err(Unready::Uncommitted(Epoch(100))));
        let next = next_record(&head, true, meant(101), 11, 3).unwrap();
        assert_eq!((next.number, next.epoch, next.retained_from, next.committed), (8, Epoch(101), 6, false));
        // What was given up is not taken back.
        assert_eq!(next_record(&head, true, meant(101), 11, 100).unwrap().retained_from, 5);
    }

    /// Retained: records 6 and 7.
    fn check_sweep(
        listed: &[ObjectName],
        needed: &[(ObjectName, Option<&[ObjectName]>)],
        dead: Result<&[ObjectName], Hold>,
    ) {
        let head = record(3, 7, 100, 6);
        let pins = [(ObjectName::Record(6), Some(&[][..])), (ObjectName::Record(7), Some(&[][..]))];
        let needed: BTreeMap<_, _> = pins
            .into_iter()
            .chain(needed.iter().cloned())
            .map(|(pin, names)| (pin, names.map(|names| names.iter().cloned().collect())))
            .collect();
        let held = [segment(3, 4)].into();
        let found = sweep(&Sweep { head: &head, listed, needed: &needed, held: &held });
        assert_eq!(found.as_deref(), dead.as_ref().map(|names| *names));
    }

    #[test]
    fn sweep_deletes_a_record_before_what_it_names_and_keeps_what_is_retained() {
        let listed = [
            ObjectName::Generation(Generation(2)),
            ObjectName::Generation(Generation(3)),
            segment(2, 99),
            segment(3, 5),
            segment(3, 6),
            manifest(3, 90),
            manifest(3, 100),
            ObjectName::Record(5),
            ObjectName::Record(7),
            ObjectName::Committed(5),
            ObjectName::Committed(6),
        ];
        let dead = [
            ObjectName::Record(5),
            ObjectName::Committed(5),
            manifest(3, 90),
            segment(2, 99),
            segment(3, 5),
            ObjectName::Generation(Generation(2)),
        ];
        let needed = [segment(3, 6), manifest(3, 100)];
        check_sweep(&listed, &[(ObjectName::Record(7), Some(&needed))], Ok(&dead));
    }

    #[test]
    fn sweep_keeps_what_is_uploaded_but_not_published_and_what_is_of_a_newer_generation() {
        let listed = [segment(3, 11), manifest(3, 101), segment(4, 1), manifest(4, 1), segment(3, 4)];
        check_sweep(&listed, &[], Ok(&[]));
    }

    #[test]
    fn sweep_keeps_what_a_savepoint_uses() {
        let savepoint = ObjectName::Savepoint("s".into());
        let listed = [savepoint.clone(), segment(1, 1), segment(1, 2), manifest(1, 9)];
        let needed = [segment(1, 1), manifest(1, 9)];
        check_sweep(&listed, &[(savepoint, Some(&needed))], Ok(&[segment(1, 2)]));
    }

    #[test]
    fn failed_read_of_one_checkpoint_deletes_nothing() {
        let savepoint = ObjectName::Savepoint("s".into());
        let listed = [savepoint.clone(), segment(1, 2)];
        check_sweep(&listed, &[(ObjectName::Record(6), None)], Err(Hold::Unread(ObjectName::Record(6))));
        check_sweep(&listed, &[(savepoint.clone(), None)], Err(Hold::Unread(savepoint.clone())));
        check_sweep(&listed, &[], Err(Hold::Unread(savepoint)));
    }

    #[test]
    fn fence_holds_back_deletions() {
        let stopped = Stopped::Generation { mine: Generation(3), newest: Generation(4) };
        check_sweep(&[segment(1, 1), ObjectName::Generation(Generation(4))], &[], Err(stopped.into()));
        let stopped = Stopped::Record { mine: 7, newest: 8 };
        check_sweep(&[segment(1, 1), ObjectName::Record(8)], &[], Err(stopped.into()));
        let head = record(3, 7, 100, 6);
        assert!(may_delete(&head, look(3, 7)).is_ok());
        assert!(may_delete(&head, look(4, 7)).is_err());
        assert!(may_delete(&head, look(3, 8)).is_err());
    }

    #[test]
    fn manifest_needs_its_segments_and_what_the_coordinator_names() {
        let (name, other) = (segment(1, 1), segment(1, 2));
        let sides = serde_json::json!({ "sides": [{ "segment": { "object": other.to_string() } }], "path": "jobs/x" });
        let manifest = Manifest {
            coordinator: sides,
            jobs: vec![crate::manifest::JobState {
                bases: Vec::new(),
                job: JobId(1),
                incarnation: 0,
                slots: 1,
                plan: String::new(),
                watermarks: vec![],
                segments: vec![
                    crate::manifest::SegmentRef::in_object(name.to_string(), 0, 1, b"", vec![]),
                    crate::manifest::SegmentRef::inline(0, 1, vec![], vec![]),
                ],
            }],
            ..Manifest::default()
        };
        assert_eq!(needs(&manifest), [manifest.name(), name, other].into());
    }

    #[test]
    fn records_come_back_and_newer_or_misplaced_ones_are_refused() {
        let record = record(3, 7, 100, 5);
        let bytes = record.encode().unwrap();
        assert_eq!(EpochRecord::decode(7, &bytes).unwrap(), record);
        assert_eq!(EpochRecord::decode(8, &bytes).unwrap_err().state(), SqlState::DataCorrupted);
        assert!(EpochRecord::decode(7, b"{\"format\":2,\"new\":1}").unwrap_err().hint().unwrap().contains("newer"));
        assert!(EpochRecord::decode(7, b"{}").is_err());
    }
}
