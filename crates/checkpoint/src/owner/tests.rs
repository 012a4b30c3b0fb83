//! The protocol through the door, over stores with faults; the traps of publishing and recovery by name.

use bytes::Bytes;
use flow::{Epoch, JobId, RelationId};

use super::*;
use crate::door::{NoRest, Store};
use crate::envelope::{self, Writer};
use crate::faulty::{Fault, FaultyStore, MemoryStore, storm};
use crate::manifest::{JobState, PreparedSink, SegmentRef};
use crate::names::SegmentName;

fn door(store: Arc<dyn Store>, nonce: u64) -> Door {
    Door::new(store, Arc::new(NoRest), nonce)
}

/// A coordinator whose job writes one segment a checkpoint and needs the last two.
struct Coordinator {
    owner: Owner,
    counter: u64,
    epoch: u64,
    chain: Vec<SegmentRef>,
}

impl Coordinator {
    fn start(store: Arc<dyn Store>, nonce: u64) -> Result<Coordinator> {
        let (mut owner, newest) = Owner::open(&door(store, nonce), None)?;
        let chain = newest.as_ref().map_or(Vec::new(), |newest| newest.manifest.jobs[0].segments.clone());
        if newest.is_some_and(|newest| !newest.committed) {
            owner.committed()?;
        }
        let epoch = owner.head().epoch.0;
        Ok(Coordinator { owner, counter: 0, epoch, chain })
    }

    fn upload(&mut self) -> Result<()> {
        self.counter += 1;
        let name = ObjectName::Segment(SegmentName {
            job: JobId(1),
            generation: self.owner.generation(),
            counter: self.counter,
            slot: 0,
        });
        let bytes = format!("state {} of {}", self.counter, self.owner.generation().0).into_bytes();
        self.owner.door().put_new(&name.to_string(), &bytes)?;
        self.chain.push(SegmentRef::in_object(name.to_string(), 0, 1, &bytes, vec![]));
        if self.chain.len() > 2 {
            self.chain.remove(0);
        }
        Ok(())
    }

    fn manifest(&mut self) -> Manifest {
        self.epoch += 10;
        let segments = self.chain.clone();
        Manifest {
            epoch: Epoch(self.epoch),
            generation: self.owner.generation(),
            previous: self.owner.head().number,
            counter: self.counter,
            jobs: vec![JobState {
                bases: Vec::new(),
                job: JobId(1),
                incarnation: 1,
                slots: 1,
                plan: String::new(),
                watermarks: vec![],
                segments,
            }],
            sinks: vec![PreparedSink { sink: RelationId(2), prepared: b"staged".to_vec().into() }],
            ..Manifest::default()
        }
    }

    fn checkpoint(&mut self) -> Result<CommitPermit> {
        self.upload()?;
        let manifest = self.manifest();
        let (permit, _) = self.owner.publish(&manifest, 2)?;
        self.owner.committed()?;
        Ok(permit)
    }

    fn collect(&mut self) -> Result<Swept> {
        self.owner.collect(&BTreeSet::new())
    }
}

/// Everything that the newest record needs is there.
fn check_whole(store: &Arc<MemoryStore>) {
    let report = crate::fsck::fsck(&door(store.clone(), 99)).unwrap();
    assert!(report.is_whole(), "{report}");
}

#[test]
fn checkpoint_is_found_by_the_next_start_and_numbers_go_on() {
    let store = MemoryStore::new();
    let mut first = Coordinator::start(store.clone(), 1).unwrap();
    assert!(first.owner.newest().is_none());
    let permit = first.checkpoint().unwrap();
    assert_eq!((permit.generation(), permit.epoch()), (Generation(1), Epoch(10)));
    first.checkpoint().unwrap();
    let (owner, newest) = Owner::open(&door(store.clone(), 2), None).unwrap();
    let newest = newest.unwrap();
    assert_eq!((newest.manifest.epoch, newest.committed), (Epoch(20), true));
    assert_eq!(newest.manifest.sinks[0].prepared.bytes(), b"staged".as_slice());
    assert_eq!((owner.generation(), owner.head().number, owner.head().epoch), (Generation(2), 4, Epoch(20)));
    check_whole(&store);
}

#[test]
fn unfinished_commit_is_left_to_the_next_start_until_it_is_noted() {
    let store = MemoryStore::new();
    let mut first = Coordinator::start(store.clone(), 1).unwrap();
    first.upload().unwrap();
    let manifest = first.manifest();
    first.owner.publish(&manifest, 1).unwrap();
    let late = first.manifest();
    let error = first.owner.publish(&late, 1).unwrap_err();
    assert_eq!(error.state(), SqlState::ObjectNotInPrerequisiteState);
    for nonce in 2..4 {
        let (_, newest) = Owner::open(&door(store.clone(), nonce), None).unwrap();
        let newest = newest.unwrap();
        assert!(!newest.committed);
        assert_eq!((newest.permit.generation(), newest.permit.epoch()), (Generation(nonce), Epoch(10)));
    }
    let (mut owner, _) = Owner::open(&door(store.clone(), 4), None).unwrap();
    owner.committed().unwrap();
    let (_, newest) = Owner::open(&door(store, 5), None).unwrap();
    assert!(newest.unwrap().committed);
}

#[test]
fn older_generation_stops_and_has_no_effect() {
    let store = MemoryStore::new();
    let mut old = Coordinator::start(store.clone(), 1).unwrap();
    for _ in 0..3 {
        old.checkpoint().unwrap();
    }
    let mut new = Coordinator::start(store.clone(), 2).unwrap();
    let before = store.names();
    assert_eq!(old.collect().unwrap_err().state(), SqlState::ObjectInUse);
    assert_eq!(store.names(), before);
    assert_eq!(old.checkpoint().unwrap_err().state(), SqlState::ObjectInUse);
    new.checkpoint().unwrap();
    assert_eq!(old.owner.drop_savepoint("s").unwrap_err().state(), SqlState::UndefinedObject);
    new.owner.keep("s", new.owner.head().number, 0).unwrap();
    assert_eq!(old.owner.drop_savepoint("s").unwrap_err().state(), SqlState::ObjectInUse);
    new.collect().unwrap();
    check_whole(&store);
}

#[test]
fn stale_writer_that_creates_a_deleted_name_again_does_not_believe_it_won() {
    let store = MemoryStore::new();
    let mut old = Coordinator::start(store.clone(), 1).unwrap();
    old.checkpoint().unwrap();
    let mut new = Coordinator::start(store.clone(), 2).unwrap();
    for _ in 0..4 {
        new.checkpoint().unwrap();
        new.collect().unwrap();
    }
    // The number that the old one is about to take was taken, and is free again.
    let name = ObjectName::Record(old.owner.head().number + 1).to_string();
    assert!(!store.names().contains(&name));
    let error = old.checkpoint().unwrap_err();
    assert_eq!(error.state(), SqlState::ObjectInUse);
    // What it left behind is not the truth, and goes with the next collection.
    assert!(store.names().contains(&name));
    check_whole(&store);
    new.checkpoint().unwrap();
    new.collect().unwrap();
    assert!(!store.names().contains(&name));
}

#[test]
fn stale_starter_that_creates_a_deleted_generation_again_stops() {
    let store = MemoryStore::new();
    for nonce in 1..4 {
        Coordinator::start(store.clone(), nonce).unwrap().collect().unwrap();
    }
    // One that listed generation 1 long ago: it creates 2, which was cleared away.
    let stale = door(store.clone(), 9).of_generation(Generation(2));
    assert_eq!(stale.put_new(&ObjectName::Generation(Generation(2)).to_string(), &[]).unwrap(), PutNew::Created);
    let (observed, _) = Owner::observe(&stale, None).unwrap().unwrap();
    assert!(matches!(protocol::open(Generation(2), None, &observed), Opening::Stop(_)));
}

#[test]
fn failed_read_deletes_nothing() {
    let store = MemoryStore::new();
    let mut first = Coordinator::start(store.clone(), 1).unwrap();
    first.checkpoint().unwrap();
    first.checkpoint().unwrap();
    first.owner.keep("s", 2, 0).unwrap();
    let faulty = FaultyStore::scripted(store.clone(), []);
    let mut second = Coordinator::start(faulty.clone(), 2).unwrap();
    second.checkpoint().unwrap();
    let before = store.names();
    // The list is answered; the savepoint is not.
    faulty.script(std::iter::once(Fault::None).chain([Fault::Dropped; 8]));
    assert_eq!(second.collect().unwrap_err().state(), SqlState::IoError);
    assert_eq!(store.names(), before);
    // Nor when it is damaged.
    let savepoint = store.raw("savepoint/s").unwrap();
    store.overwrite("savepoint/s", savepoint.slice(..savepoint.len() - 1));
    assert_eq!(second.collect().unwrap_err().state(), SqlState::DataCorrupted);
    assert_eq!(store.names(), before);
    store.overwrite("savepoint/s", savepoint);
    second.collect().unwrap();
    assert!(store.names().len() < before.len());
}

#[test]
fn damaged_or_missing_manifest_of_the_newest_record_refuses_the_start_and_names_it() {
    let store = MemoryStore::new();
    let mut first = Coordinator::start(store.clone(), 1).unwrap();
    first.checkpoint().unwrap();
    first.checkpoint().unwrap();
    let meant = first.owner.head().manifest.clone().unwrap();
    let whole = store.raw(&meant.name).unwrap();
    let writer = Writer { generation: Generation(1), nonce: 7 };
    let other = envelope::seal(&meant.name, writer, &Manifest::default().encode().unwrap()).unwrap();
    for damaged in [Some(whole.slice(..whole.len() / 2)), Some(other), Some(Bytes::new()), None] {
        match damaged {
            Some(bytes) => store.overwrite(&meant.name, bytes),
            None => store.delete(&meant.name).unwrap(),
        }
        let names = store.names();
        let error = Owner::open(&door(store.clone(), 2), None).unwrap_err();
        assert_eq!(error.state(), SqlState::DataCorrupted);
        assert!(error.detail().unwrap().contains(&meant.name), "{error}");
        let grown = store.names().len() - names.len();
        assert_eq!(grown, 1, "only the generation was added");
    }
    // An older one is used only when it is asked for; epochs and records go on from the newest.
    let (owner, base) = Owner::open(&door(store.clone(), 3), Some(2)).unwrap();
    assert_eq!((base.unwrap().manifest.epoch, owner.head().epoch, owner.head().number), (Epoch(10), Epoch(20), 4));
    assert_eq!(Owner::open(&door(store, 4), Some(77)).unwrap_err().state(), SqlState::UndefinedObject);
}

#[test]
fn empty_checkpoint_is_not_restored_when_the_records_are_gone() {
    let store = MemoryStore::new();
    let mut first = Coordinator::start(store.clone(), 1).unwrap();
    first.checkpoint().unwrap();
    for name in store.names().iter().filter(|name| name.starts_with(RECORDS)) {
        store.delete(name).unwrap();
    }
    let error = Owner::open(&door(store, 2), None).unwrap_err();
    assert_eq!(error.state(), SqlState::DataCorrupted);
    assert!(error.message().contains("gone"), "{error}");
}

#[test]
fn upload_that_is_not_published_yet_is_not_cleared_away() {
    let store = MemoryStore::new();
    let mut first = Coordinator::start(store.clone(), 1).unwrap();
    for _ in 0..4 {
        first.checkpoint().unwrap();
    }
    first.upload().unwrap();
    let making = first.chain.last().unwrap().object().unwrap().to_string();
    assert!(first.collect().unwrap().objects > 0);
    assert!(store.names().contains(&making));
    let manifest = first.manifest();
    first.owner.publish(&manifest, 1).unwrap();
    check_whole(&store);
    // Of a generation that is gone, it is garbage.
    first.owner.committed().unwrap();
    first.upload().unwrap();
    let lost = first.chain.last().unwrap().object().unwrap().to_string();
    Coordinator::start(store.clone(), 2).unwrap().collect().unwrap();
    assert!(!store.names().contains(&lost));
    check_whole(&store);
}

#[test]
fn what_a_running_job_holds_is_not_cleared_away() {
    let store = MemoryStore::new();
    let mut first = Coordinator::start(store.clone(), 1).unwrap();
    first.checkpoint().unwrap();
    // A job that lags is left out of some checkpoints, and comes back with its chain.
    let held = ObjectName::parse(first.chain[0].object().unwrap()).unwrap();
    for _ in 0..4 {
        first.checkpoint().unwrap();
    }
    first.owner.collect(&[held.clone()].into()).unwrap();
    assert!(store.names().contains(&held.to_string()));
    first.collect().unwrap();
    assert!(!store.names().contains(&held.to_string()));
}

#[test]
fn savepoint_keeps_what_it_uses_until_it_is_dropped() {
    let store = MemoryStore::new();
    let mut first = Coordinator::start(store.clone(), 1).unwrap();
    first.checkpoint().unwrap();
    first.owner.keep("before", 2, 5).unwrap();
    assert_eq!(first.owner.keep("before", 2, 6).unwrap_err().state(), SqlState::DuplicateObject);
    assert_eq!(first.owner.keep("nothing", 1, 5).unwrap_err().state(), SqlState::UndefinedObject);
    assert_eq!(first.owner.keep("later", 9, 5).unwrap_err().state(), SqlState::UndefinedObject);
    assert_eq!(first.owner.keep("a/b", 2, 5).unwrap_err().state(), SqlState::InvalidName);
    let needed: Vec<String> =
        protocol::needs(&first.owner.newest().unwrap().manifest).iter().map(|n| n.to_string()).collect();
    for nonce in 2..5 {
        let mut next = Coordinator::start(store.clone(), nonce).unwrap();
        for _ in 0..3 {
            next.checkpoint().unwrap();
            next.collect().unwrap();
        }
        assert!(needed.iter().all(|name| store.names().contains(name)));
        check_whole(&store);
    }
    let mut last = Coordinator::start(store.clone(), 5).unwrap();
    last.owner.drop_savepoint("before").unwrap();
    last.collect().unwrap();
    assert!(!needed.iter().any(|name| store.names().contains(name)));
}

#[test]
fn objects_stay_few_however_many_checkpoints_and_starts_there_are() {
    let store = MemoryStore::new();
    let mut counts = Vec::new();
    for nonce in 1..20 {
        let mut next = Coordinator::start(store.clone(), nonce).unwrap();
        for _ in 0..3 {
            next.checkpoint().unwrap();
            next.collect().unwrap();
        }
        counts.push(store.names().len());
        check_whole(&store);
    }
    assert_eq!(counts[2], counts[18], "{counts:?}");
}

#[test]
fn claim_without_an_answer_is_settled_before_the_next_one() {
    for landed in [true, false] {
        let store = MemoryStore::new();
        let faulty = FaultyStore::scripted(store.clone(), []);
        let mut first = Coordinator::start(faulty.clone(), 1).unwrap();
        first.checkpoint().unwrap();
        first.upload().unwrap();
        let manifest = first.manifest();
        // The manifest is put; then no request for the record is answered.
        let fault = if landed { Fault::AnswerLost } else { Fault::Dropped };
        faulty.script([Fault::None, fault].into_iter().chain([Fault::Dropped; 7]));
        assert_eq!(first.owner.publish(&manifest, 2).unwrap_err().state(), SqlState::IoError);
        let later = first.manifest();
        let error = first.owner.publish(&later, 2).unwrap_err();
        assert_eq!(error.state(), SqlState::ObjectNotInPrerequisiteState, "{error}");
        let newest = first.owner.newest().unwrap();
        assert_eq!((newest.manifest.epoch, newest.permit.epoch(), newest.committed), (Epoch(20), Epoch(20), false));
        first.owner.committed().unwrap();
        first.owner.publish(&later, 2).unwrap();
        check_whole(&store);
    }
}

#[test]
fn checkpoints_go_on_through_any_storm_and_restart() {
    for seed in 0..60 {
        let store = MemoryStore::new();
        let (mut made, mut epoch) = (0, 0);
        for nonce in 1..6 {
            let faulty = FaultyStore::seeded(store.clone(), Arc::new(NoRest), storm(), seed * 100 + nonce);
            let Ok(mut next) = Coordinator::start(faulty, nonce) else { continue };
            assert!(next.owner.head().epoch.0 >= epoch, "seed {seed}: epochs went back");
            for _ in 0..4 {
                match next.checkpoint() {
                    Ok(permit) => (made, epoch) = (made + 1, permit.epoch().0),
                    Err(e) if matches!(e.state(), SqlState::IoError | SqlState::ObjectNotInPrerequisiteState) => break,
                    Err(e) => panic!("seed {seed}: {e}"),
                }
                // What could not be read or deleted is left for the next time.
                let _ = next.collect();
            }
            check_whole(&store);
        }
        assert!(made > 0, "seed {seed}: no checkpoint was made");
    }
}

#[test]
fn full_disk_fails_the_checkpoint_and_leaves_the_one_before() {
    let store = MemoryStore::new();
    let faulty = FaultyStore::scripted(store.clone(), []);
    let mut first = Coordinator::start(faulty.clone(), 1).unwrap();
    first.checkpoint().unwrap();
    for before in 0..3 {
        faulty.script([Fault::None; 2].into_iter().take(before).chain([Fault::Full]));
        assert_eq!(first.checkpoint().unwrap_err().state(), SqlState::DiskFull);
        check_whole(&store);
        first.owner.settle().unwrap();
        first.owner.committed().unwrap();
    }
    first.checkpoint().unwrap();
    check_whole(&store);
}
