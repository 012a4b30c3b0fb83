//! The store's side of checkpoints: the generation's fence, manifests, records and what is cleared away.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use checkpoint::door::{Door, PutNew};
use checkpoint::manifest::Manifest;
use checkpoint::names::{GENERATIONS, ObjectName, RECORDS};
use checkpoint::{CommitPermit, Generation};
use flow::{Epoch, Error, Result, SqlState};
use serde::{Deserialize, Serialize};

use crate::checkpoints::Coordinated;
use crate::recovery::Found;

/// What an epoch record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EpochRecord {
    generation: Generation,
    epoch: Epoch,
    manifest: String,
}

/// Puts checkpoints into the store, one after the other.
pub struct Publisher {
    door: Arc<Door>,
    generation: Generation,
    /// The number of the newest record.
    number: u64,
    /// By record number the manifest and what it needs, the oldest first.
    kept: BTreeMap<u64, (String, Manifest)>,
}

fn damaged(name: &str, what: impl std::fmt::Display) -> Error {
    Error::new(SqlState::DataCorrupted, format!("object \"{name}\" of a checkpoint cannot be used: {what}"))
        .with_hint("Nothing was changed. Bring the object back, or look at the store with millstream fsck.")
}

/// The numbers of the objects in a folder, ascending.
fn numbers(door: &Door, folder: &str) -> Result<Vec<u64>> {
    let number = |name: &str| match ObjectName::parse(name)? {
        ObjectName::Generation(Generation(n)) | ObjectName::Record(n) | ObjectName::Committed(n) => Some(n),
        _ => None,
    };
    let mut numbers: Vec<u64> = door.list(folder)?.iter().filter_map(|object| number(&object.name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn needed(door: &Door, name: &str) -> Result<Bytes> {
    door.get(name)?.ok_or_else(|| damaged(name, "it is missing"))
}

/// Becomes the newest generation: nothing of an older one takes effect any more.
pub fn take_over(door: &Door) -> Result<Generation> {
    loop {
        let next = Generation(numbers(door, GENERATIONS)?.last().copied().unwrap_or(0) + 1);
        let name = ObjectName::Generation(next).to_string();
        if let PutNew::Created = door.of_generation(next).put_new(&name, &[])? {
            return Ok(next);
        }
    }
}

impl Publisher {
    /// Reads what is there. Returns the newest checkpoint too.
    pub fn open(door: Arc<Door>, generation: Generation) -> Result<(Publisher, Option<Found>)> {
        let mut kept = BTreeMap::new();
        let mut newest = None;
        for number in numbers(&door, RECORDS)? {
            let name = ObjectName::Record(number).to_string();
            let record: EpochRecord = serde_json::from_slice(&needed(&door, &name)?).map_err(|e| damaged(&name, e))?;
            let bytes = needed(&door, &record.manifest)?;
            let manifest = Manifest::decode(&bytes)?;
            newest = Some((number, record.clone(), manifest.clone()));
            kept.insert(number, (record.manifest, manifest));
        }
        let number = newest.as_ref().map_or(0, |(number, _, _)| *number);
        let found = newest.map(|(_, record, manifest)| -> Result<Found> {
            let coordinated: Coordinated =
                serde_json::from_value(manifest.coordinator.clone()).map_err(|e| damaged(&record.manifest, e))?;
            Ok(Found {
                manifest: Arc::new(manifest),
                coordinated: Arc::new(coordinated),
                permit: CommitPermit::of_claimed(record.generation, record.epoch),
            })
        });
        Ok((Publisher { door, generation, number, kept }, found.transpose()?))
    }

    /// The checkpoints in the store, the oldest first.
    pub fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        self.kept.values().map(|(_, manifest)| manifest)
    }

    /// Makes a checkpoint durable and the newest. Returns the right to commit its sinks, and the bytes written here.
    pub fn publish(&mut self, manifest: &Manifest) -> Result<(CommitPermit, u64)> {
        self.check_fence()?;
        let (name, bytes) = (manifest.name().to_string(), manifest.encode()?);
        if let PutNew::Exists(_) = self.door.put_new(&name, &bytes)? {
            return Err(damaged(&name, "it exists already"));
        }
        let record = EpochRecord { generation: self.generation, epoch: manifest.epoch, manifest: name.clone() };
        let record = serde_json::to_vec(&record).map_err(|e| Error::internal(format!("epoch record: {e}")))?;
        let number = self.number + 1;
        let record_name = ObjectName::Record(number).to_string();
        if let PutNew::Exists(_) = self.door.put_new(&record_name, &record)? {
            return Err(self.fenced());
        }
        self.number = number;
        self.kept.insert(number, (name, manifest.clone()));
        let written = (bytes.len() + record.len()) as u64;
        Ok((CommitPermit::of_claimed(self.generation, manifest.epoch), written))
    }

    fn fenced(&self) -> Error {
        Error::new(SqlState::ObjectInUse, "another server has taken over the checkpoints")
            .with_detail(format!("They are in {}; this server is generation {}.", self.door.place(), self.generation.0))
            .with_hint("Stop one of the two servers.")
    }

    fn check_fence(&self) -> Result<()> {
        let newest = numbers(&self.door, GENERATIONS)?.last().copied().unwrap_or(0);
        if newest > self.generation.0 { Err(self.fenced()) } else { Ok(()) }
    }

    /// Notes that the sinks of the newest checkpoint have committed.
    pub fn committed(&mut self) -> Result<()> {
        self.door.put_new(&ObjectName::Committed(self.number).to_string(), &[]).map(|_| ())
    }

    /// Removes what only checkpoints before the last `retained` need.
    pub fn collect(&mut self, retained: usize) -> Result<()> {
        let old = self.kept.len().saturating_sub(retained.max(1));
        if old == 0 {
            return Ok(());
        }
        self.check_fence()?;
        let gone: Vec<u64> = self.kept.keys().copied().take(old).collect();
        let live: HashSet<String> =
            self.kept.iter().filter(|(n, _)| !gone.contains(n)).flat_map(|(_, (_, m))| objects(m)).collect();
        for number in gone {
            let Some((name, manifest)) = self.kept.remove(&number) else { continue };
            for object in objects(&manifest).filter(|object| !live.contains(object)) {
                self.door.delete(&object)?;
            }
            // The record goes before what it names, so that no record is without its manifest.
            self.door.delete(&ObjectName::Record(number).to_string())?;
            self.door.delete(&name)?;
            self.door.delete(&ObjectName::Committed(number).to_string())?;
        }
        Ok(())
    }
}

/// The objects that a manifest names.
fn objects(manifest: &Manifest) -> impl Iterator<Item = String> {
    let sides: Coordinated = serde_json::from_value(manifest.coordinator.clone()).unwrap_or_default();
    let sides: Vec<String> = sides.sides.iter().filter_map(|s| s.segment.object().map(str::to_string)).collect();
    let segments: Vec<String> = manifest.segments().filter_map(|s| s.object().map(str::to_string)).collect();
    segments.into_iter().chain(sides)
}
