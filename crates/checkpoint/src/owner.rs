//! The coordinator's hand in the store: carries out what [`crate::protocol`] decides, through the door.
//!
//! Opening makes this process the newest generation and takes over the newest checkpoint. From then on whoever owned the store
//! before has no effect any more, and learns it at its next claim.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flow::{Error, Result, SqlState};
use serde::{Deserialize, Serialize};

use crate::crash;
use crate::door::{Door, Listed, PutNew};
use crate::manifest::Manifest;
use crate::names::{COMMITTED, GENERATIONS, MANIFESTS, ObjectName, RECORDS, SAVEPOINTS, SEGMENTS};
use crate::permit::{CommitPermit, Generation};
use crate::planted;
use crate::protocol::{
    self, Claim, Claimed, EpochRecord, Hold, Look, ManifestRef, ManifestSeen, Observed, Opening, Outcome, Refusal,
    Stopped, Sweep,
};

/// How often opening looks again because another process was faster.
pub const LOOKS_MAX: usize = 32;

/// How often a claim is made again whose record does not show.
const CLAIMS_MAX: usize = 3;

/// Deletions between two looks at the fence.
const DELETIONS_A_LOOK: usize = 100;

/// A checkpoint whose sinks are to commit, or have.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub manifest: Arc<Manifest>,
    /// Allows the sinks of the manifest to commit.
    pub permit: CommitPermit,
    /// They have committed already.
    pub committed: bool,
}

/// A checkpoint that is kept by name until it is dropped: the object's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Savepoint {
    pub name: String,
    /// The record that it was made from.
    pub record: u64,
    pub created_us: i64,
    pub manifest: ManifestRef,
}

/// What was cleared away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub objects: usize,
    /// With their envelopes.
    pub bytes: u64,
}

/// The store as its newest generation. One thread uses it at a time.
#[derive(Debug)]
pub struct Owner {
    door: Door,
    claimed: Claimed,
    committed: bool,
    /// By number the manifests of retained records, as far as they could be read.
    kept: BTreeMap<u64, Arc<Manifest>>,
    /// What was claimed without an answer: it may be the truth.
    unsure: Option<(EpochRecord, Arc<Manifest>)>,
}

/// The newest numbers.
fn look(door: &Door) -> Result<Look> {
    let newest = |folder: &str| -> Result<Option<u64>> { Ok(numbers(&door.list(folder)?).last().copied()) };
    Ok(Look { generation: Generation(newest(GENERATIONS)?.unwrap_or(0)), record: newest(RECORDS)? })
}

/// The numbers of numbered objects, ascending.
fn numbers(listed: &[Listed]) -> Vec<u64> {
    let number = |object: &Listed| match ObjectName::parse(&object.name)? {
        ObjectName::Generation(Generation(n)) | ObjectName::Record(n) | ObjectName::Committed(n) => Some(n),
        _ => None,
    };
    let mut numbers: Vec<u64> = listed.iter().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// A record, if it is there. Errors: `XX001` damaged.
pub(crate) fn read_record(door: &Door, number: u64) -> Result<Option<EpochRecord>> {
    let payload = door.get(&ObjectName::Record(number).to_string())?;
    payload.map(|payload| EpochRecord::decode(number, &payload)).transpose()
}

/// How a manifest reads; an error only if the store does not answer.
pub(crate) fn read_manifest(door: &Door, meant: &ManifestRef) -> Result<Result<Manifest, ManifestSeen>> {
    let damaged = |e: Error| {
        let why = format!("{}{}", e.message(), e.hint().map(|hint| format!(" ({hint})")).unwrap_or_default());
        Err(ManifestSeen::Damaged(why))
    };
    let payload = match door.get(&meant.name) {
        Ok(Some(payload)) => payload,
        Ok(None) => return Ok(Err(ManifestSeen::Missing)),
        Err(e) if e.state() == SqlState::DataCorrupted => return Ok(damaged(e)),
        Err(e) => return Err(e),
    };
    if payload.len() as u64 != meant.bytes || crc32fast::hash(&payload) != meant.crc32 {
        return Ok(Err(ManifestSeen::Damaged("it is not the one that was claimed".into())));
    }
    Ok(Manifest::decode(&payload).or_else(damaged))
}

/// A savepoint, if it is there. Errors: `XX001` damaged.
pub(crate) fn read_savepoint(door: &Door, name: &str) -> Result<Option<Savepoint>> {
    let object = ObjectName::Savepoint(name.to_string()).to_string();
    let Some(payload) = door.get(&object)? else { return Ok(None) };
    serde_json::from_slice(&payload)
        .map(Some)
        .map_err(|e| Error::new(SqlState::DataCorrupted, format!("object \"{object}\" is not a savepoint: {e}")))
}

fn no_savepoint(name: &str) -> Error {
    Error::new(SqlState::UndefinedObject, format!("savepoint \"{name}\" does not exist"))
        .with_hint("SHOW SAVEPOINTS lists them, and so does millstream state ls.")
}

/// What became of a record that was put.
enum Put {
    Ours(Claimed),
    Taken(Stopped),
}

/// Creates a record and looks again.
fn claim(door: &Door, record: &EpochRecord) -> Result<Put> {
    let (name, payload) = (record.name().to_string(), record.encode()?);
    for _ in 0..CLAIMS_MAX {
        let outcome = match door.put_new(&name, &payload)? {
            PutNew::Created => Outcome::Created,
            PutNew::Exists(_) => Outcome::Exists,
        };
        match protocol::claimed(record, outcome, look(door)?) {
            Claim::Won(claimed) => return Ok(Put::Ours(claimed)),
            Claim::Stop(stopped) => return Ok(Put::Taken(stopped)),
            Claim::Again => {}
        }
    }
    Err(Error::new(SqlState::IoError, format!("object \"{name}\" was created, but is not listed"))
        .with_hint("Use a store that lists at once what was created."))
}

fn name_taken(name: &str) -> Error {
    Error::new(SqlState::DuplicateObject, format!("savepoint \"{name}\" already exists"))
        .with_hint("Choose another name, or drop that savepoint first.")
}

impl Owner {
    /// Becomes the newest generation and goes on from the newest checkpoint, or from the retained record that is `asked` for.
    /// Returns that checkpoint; `None` if there was none yet. If it is not committed, its sinks must commit, and
    /// [`committed`](Self::committed) be called, before any source starts.
    ///
    /// Errors: `XX001` a checkpoint is missing or damaged, named; nothing was changed then but the generation. `55006` another
    /// process became the owner meanwhile; `42704` there is no such record; `58030`, `42501`.
    pub fn open(door: &Door, asked: Option<u64>) -> Result<(Owner, Option<Checkpoint>)> {
        Owner::take_over(door, asked, |generation, observed, manifest| {
            Ok((protocol::open(generation, asked, &observed), manifest))
        })
    }

    /// The same from a savepoint: what was made durable after it stays retained, but is not gone on from. Errors: as
    /// [`open`](Self::open); `42704` there is no such savepoint.
    pub fn open_savepoint(door: &Door, name: &str) -> Result<(Owner, Option<Checkpoint>)> {
        // Before anybody is shut out.
        let found = read_savepoint(door, name)?.ok_or_else(|| no_savepoint(name))?;
        Owner::take_over(door, None, |generation, observed, _| {
            let (seen, manifest) = match read_manifest(door, &found.manifest)? {
                Ok(manifest) => (ManifestSeen::Whole, Some(manifest)),
                Err(seen) => (seen, None),
            };
            Ok((protocol::open_savepoint(generation, &found.manifest, &seen, &observed), manifest))
        })
    }

    /// Looks and claims until a first record of a new generation is there. `decide`: that record, and the manifest that it names.
    fn take_over(
        door: &Door,
        asked: Option<u64>,
        decide: impl Fn(Generation, Observed, Option<Manifest>) -> Result<(Opening, Option<Manifest>)>,
    ) -> Result<(Owner, Option<Checkpoint>)> {
        let door = Owner::new_generation(door)?;
        for _ in 0..LOOKS_MAX {
            let Some((observed, manifest)) = Owner::observe(&door, asked)? else { continue };
            let (opening, manifest) = decide(door.writer().generation, observed, manifest)?;
            let record = match opening {
                Opening::TakeOver(record) => record,
                Opening::LookAgain => continue,
                Opening::Stop(stopped) => return Err(stopped.into()),
                Opening::Refuse(refusal) => return Err(refusal.into()),
            };
            match claim(&door, &record)? {
                Put::Ours(claimed) => return Ok(Owner::of(door, claimed, manifest)),
                Put::Taken(stopped @ Stopped::Generation { .. }) => return Err(stopped.into()),
                Put::Taken(Stopped::Record { .. }) => {}
            }
        }
        Err(Error::new(SqlState::ObjectInUse, "other servers take over the checkpoints all the time")
            .with_detail(format!("Looked {LOOKS_MAX} times at {}.", door.place()))
            .with_hint("Stop the other servers."))
    }

    fn new_generation(door: &Door) -> Result<Door> {
        for _ in 0..LOOKS_MAX {
            let listed = numbers(&door.list(GENERATIONS)?);
            let mine = protocol::next_generation(listed.into_iter().map(Generation));
            let door = door.of_generation(mine);
            if door.put_new(&ObjectName::Generation(mine).to_string(), &[])? == PutNew::Created {
                return Ok(door);
            }
        }
        Err(Error::new(SqlState::ObjectInUse, "other servers take over the checkpoints all the time")
            .with_hint("Stop the other servers."))
    }

    /// Looks at the store; `None` if what was seen was cleared away meanwhile.
    fn observe(door: &Door, asked: Option<u64>) -> Result<Option<(Observed, Option<Manifest>)>> {
        let number = numbers(&door.list(RECORDS)?).last().copied();
        let newest = match number {
            Some(number) => match read_record(door, number)? {
                Some(record) => Some(record),
                None => return Ok(None),
            },
            None => None,
        };
        let marked = match number {
            Some(number) => door.get(&ObjectName::Committed(number).to_string())?.is_some(),
            None => false,
        };
        let mut traces = newest.is_some();
        for folder in [MANIFESTS, COMMITTED, SEGMENTS, SAVEPOINTS] {
            traces = traces || !door.list(folder)?.is_empty();
        }
        let base = match asked {
            Some(asked) if Some(asked) != number => read_record(door, asked)?,
            _ => newest.clone(),
        };
        let read = match base.as_ref().and_then(|base| base.manifest.as_ref()) {
            Some(meant) => Some(read_manifest(door, meant)?),
            None => None,
        };
        let (seen, manifest) = match read {
            Some(Ok(manifest)) => (Some(ManifestSeen::Whole), Some(manifest)),
            Some(Err(seen)) => (Some(seen), None),
            None => (None, None),
        };
        let look = look(door)?;
        Ok(Some((Observed { newest, marked, traces, base, manifest: seen, look }, manifest)))
    }

    fn of(door: Door, claimed: Claimed, manifest: Option<Manifest>) -> (Owner, Option<Checkpoint>) {
        let record = claimed.record();
        let mut owner = Owner {
            committed: record.committed,
            kept: manifest.map(|manifest| (record.number, Arc::new(manifest))).into_iter().collect(),
            unsure: None,
            claimed,
            door,
        };
        for number in owner.head().retained_from..owner.head().number {
            // What cannot be read now holds up clearing away, not the start.
            if let Ok(Some(manifest)) = owner.manifest_of(number) {
                owner.kept.insert(number, manifest);
            }
        }
        let newest = owner.newest();
        (owner, newest)
    }

    /// The manifest of a record; `None` if it has none. Errors: `XX001`, also if the record is not there.
    fn manifest_of(&self, number: u64) -> Result<Option<Arc<Manifest>>> {
        if let Some(kept) = self.kept.get(&number) {
            return Ok(Some(Arc::clone(kept)));
        }
        let gone =
            || Error::new(SqlState::DataCorrupted, format!("object \"{}\" is missing", ObjectName::Record(number)));
        let record = match number == self.head().number {
            true => self.head().clone(),
            false => read_record(&self.door, number)?.ok_or_else(gone)?,
        };
        let Some(meant) = &record.manifest else { return Ok(None) };
        self.whole(number, meant).map(|manifest| Some(Arc::new(manifest)))
    }

    fn whole(&self, record: u64, meant: &ManifestRef) -> Result<Manifest> {
        let object = meant.name.clone();
        read_manifest(&self.door, meant)?.map_err(|seen| match seen {
            ManifestSeen::Damaged(why) => Refusal::ManifestDamaged { record, object, why }.into(),
            ManifestSeen::Missing | ManifestSeen::Whole => Refusal::ManifestMissing { record, object }.into(),
        })
    }

    /// The door, as which this generation's segments are to be written.
    pub fn door(&self) -> &Door {
        &self.door
    }

    pub fn generation(&self) -> Generation {
        self.head().generation
    }

    /// The newest record, as far as this process knows.
    pub fn head(&self) -> &EpochRecord {
        self.claimed.record()
    }

    /// The manifests of retained records, oldest first.
    pub fn manifests(&self) -> impl Iterator<Item = (u64, &Arc<Manifest>)> {
        self.kept.iter().map(|(number, manifest)| (*number, manifest))
    }

    /// The newest checkpoint.
    pub fn newest(&self) -> Option<Checkpoint> {
        let manifest = Arc::clone(self.kept.get(&self.head().number)?);
        Some(Checkpoint { manifest, permit: self.claimed.permit()?, committed: self.committed })
    }

    /// Makes a checkpoint durable and the newest, whose segments are durable. `retained`: how many records are kept with it.
    /// Returns the right to commit its sinks, and the bytes written here.
    ///
    /// After `58030` the checkpoint may have become the newest all the same: [`settle`](Self::settle) finds out, and the next call
    /// does so first. Errors: `55006` another process has taken over, this one must stop; `55000` the commit of the newest
    /// checkpoint is not finished.
    pub fn publish(&mut self, manifest: &Manifest, retained: usize) -> Result<(CommitPermit, u64)> {
        self.settle()?;
        if manifest.generation != self.generation() {
            return Err(Error::internal("a manifest of another generation"));
        }
        let (name, payload) = (manifest.name().to_string(), manifest.encode()?);
        let meant = ManifestRef::of(manifest, &payload);
        let record = protocol::next_record(self.head(), self.committed, meant, manifest.counter, retained as u64)
            .map_err(|e| Error::new(SqlState::ObjectNotInPrerequisiteState, e.to_string()))?;
        if let PutNew::Exists(_) = self.door.put_new(&name, &payload)? {
            return Err(Error::new(SqlState::ObjectInUse, format!("object \"{name}\" was written by another process")));
        }
        crash::point("C8");
        self.unsure = Some((record, Arc::new(manifest.clone())));
        self.settle()?;
        let permit = self.claimed.permit().ok_or_else(|| Error::internal("a checkpoint without a manifest"))?;
        Ok((permit, payload.len() as u64))
    }

    /// Finds out what became of a checkpoint whose claim had no answer: it is the newest now, or this process must stop. Does
    /// nothing if there is none. See [`newest`](Self::newest) after it. Errors as [`publish`](Self::publish).
    pub fn settle(&mut self) -> Result<()> {
        let Some((record, manifest)) = &self.unsure else { return Ok(()) };
        match claim(&self.door, record)? {
            Put::Ours(claimed) => {
                self.kept.insert(record.number, Arc::clone(manifest));
                self.kept.retain(|number, _| *number >= claimed.record().retained_from);
                self.claimed = claimed;
                self.committed = false;
                self.unsure = None;
                Ok(())
            }
            Put::Taken(stopped) => Err(stopped.into()),
        }
    }

    /// Notes durably that the sinks of the newest checkpoint have committed.
    pub fn committed(&mut self) -> Result<()> {
        if !self.committed {
            // Whoever noted it: it is so.
            self.door.put_new(&ObjectName::Committed(self.head().number).to_string(), &[])?;
            self.committed = true;
        }
        Ok(())
    }

    /// Removes what nothing needs any more. `held`: see [`Sweep`]. Errors: `55006` another process has taken over; `XX001`,
    /// `58030` when what a retained checkpoint needs cannot be read: nothing was removed then.
    pub fn collect(&mut self, held: &BTreeSet<ObjectName>) -> Result<Swept> {
        let listed = self.door.list("")?;
        let sizes: BTreeMap<ObjectName, u64> =
            listed.iter().filter_map(|l| Some((ObjectName::parse(&l.name)?, l.bytes))).collect();
        let names: Vec<ObjectName> = sizes.keys().cloned().collect();
        let mut needed = BTreeMap::new();
        for number in self.head().retained_from..=self.head().number {
            let manifest = self.manifest_of(number)?;
            let needs = manifest.as_deref().map(protocol::needs).unwrap_or_default();
            self.kept.extend(manifest.map(|manifest| (number, manifest)));
            needed.insert(ObjectName::Record(number), Some(needs));
        }
        for name in &names {
            let ObjectName::Savepoint(savepoint) = name else { continue };
            let needs = match read_savepoint(&self.door, savepoint)? {
                Some(savepoint) => protocol::needs(&self.whole(savepoint.record, &savepoint.manifest)?),
                // Dropped meanwhile.
                None => BTreeSet::new(),
            };
            needed.insert(name.clone(), Some(needs));
        }
        let mut dead =
            protocol::sweep(&Sweep { head: self.head(), listed: &names, needed: &needed, held }).map_err(|hold| {
                match hold {
                    Hold::Stopped(stopped) => stopped.into(),
                    Hold::Unread(_) => Error::internal(hold.to_string()),
                }
            })?;
        crash::point("C13");
        if planted::is("live_object") {
            let live = |name: &&ObjectName| matches!(name, ObjectName::Segment(_)) && !dead.contains(name);
            dead.extend(names.iter().find(live).cloned());
        }
        let mut swept = Swept::default();
        for (i, name) in dead.iter().enumerate() {
            if i % DELETIONS_A_LOOK == 0 {
                protocol::may_delete(self.head(), look(&self.door)?)?;
            }
            self.door.delete(&name.to_string())?;
            swept.objects += 1;
            swept.bytes += sizes.get(name).copied().unwrap_or(0);
            if i + 1 < dead.len() {
                crash::point("C14");
            }
        }
        Ok(swept)
    }

    /// Whether a savepoint can have this name. Errors: `42710` it is taken, `42602` it is not a name; `58030`.
    pub fn check_name(&self, name: &str) -> Result<()> {
        if name.contains('/') {
            return Err(Error::new(SqlState::InvalidName, format!("\"{name}\" is not a name of a savepoint")));
        }
        match self.door.get(&ObjectName::Savepoint(name.to_string()).to_string())? {
            Some(_) => Err(name_taken(name)),
            None => Ok(()),
        }
    }

    /// Keeps a retained checkpoint under a name, until it is dropped. Errors: `42704` the record is not retained or holds no
    /// checkpoint; of [`check_name`](Self::check_name).
    pub fn keep(&mut self, name: &str, number: u64, created_us: i64) -> Result<()> {
        self.check_name(name)?;
        let (from, to) = (self.head().retained_from, self.head().number);
        let not_retained = || Error::from(Refusal::NotRetained { record: number, from, to });
        if !(from..=to).contains(&number) {
            return Err(not_retained());
        }
        let record = match number == to {
            true => Some(self.head().clone()),
            false => read_record(&self.door, number)?,
        };
        let manifest = record.and_then(|record| record.manifest).ok_or_else(not_retained)?;
        let savepoint = Savepoint { name: name.to_string(), record: number, created_us, manifest };
        let payload = serde_json::to_vec(&savepoint).map_err(|e| Error::internal(format!("write savepoint: {e}")))?;
        match self.door.put_new(&ObjectName::Savepoint(name.to_string()).to_string(), &payload)? {
            PutNew::Created => Ok(()),
            PutNew::Exists(_) => Err(name_taken(name)),
        }
    }

    /// Gives up a savepoint; what only it needs goes with the next [`collect`](Self::collect). Errors: `42704` there is none.
    pub fn drop_savepoint(&mut self, name: &str) -> Result<()> {
        let object = ObjectName::Savepoint(name.to_string()).to_string();
        if self.door.get(&object)?.is_none() {
            return Err(no_savepoint(name));
        }
        protocol::may_delete(self.head(), look(&self.door)?)?;
        self.door.delete(&object)
    }
}

#[cfg(test)]
mod tests;
