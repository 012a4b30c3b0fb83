//! Stores for tests and for simulation: one in memory, and one that does to its requests what services and disks do.
//!
//! The faults are either a list, in the order in which requests come, or drawn from a seed: the same seed and the same requests
//! meet the same faults. [`disk`] is the same for the file system under the log.

pub mod disk;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use flow::{Error, Result, SqlState};

use crate::door::{Answer, Failure, Listed, Rest, Store};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Objects in memory. Several doors over one of them see the same objects.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<String, Bytes>>,
}

impl MemoryStore {
    pub fn new() -> Arc<MemoryStore> {
        Arc::default()
    }

    /// Puts bytes under a name as they are, whatever is there: what damage and strangers do.
    pub fn overwrite(&self, name: &str, bytes: Bytes) {
        lock(&self.objects).insert(name.to_string(), bytes);
    }

    /// The bytes of an object with its envelope.
    pub fn raw(&self, name: &str) -> Option<Bytes> {
        lock(&self.objects).get(name).cloned()
    }

    pub fn names(&self) -> Vec<String> {
        lock(&self.objects).keys().cloned().collect()
    }
}

impl Store for MemoryStore {
    fn create(&self, name: &str, bytes: &Bytes) -> Result<Answer, Failure> {
        let mut objects = lock(&self.objects);
        if objects.contains_key(name) {
            return Ok(Answer::Refused);
        }
        objects.insert(name.to_string(), bytes.clone());
        Ok(Answer::Created)
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, Failure> {
        Ok(self.raw(name))
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
        let below =
            |name: &str| folder.is_empty() || name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
        let objects = lock(&self.objects);
        let found = objects.iter().filter(|(name, _)| below(name));
        Ok(found.map(|(name, bytes)| Listed { name: name.clone(), bytes: bytes.len() as u64 }).collect())
    }

    fn delete(&self, name: &str) -> Result<(), Failure> {
        lock(&self.objects).remove(name);
        Ok(())
    }

    fn place(&self) -> String {
        "memory".into()
    }
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The service answers with this status (500, 503, 429) and does nothing.
    Status(u16),
    /// The request never arrives.
    Dropped,
    /// The request takes effect, its answer is lost.
    AnswerLost,
    /// A create is refused by a conflict (409), although nothing is there.
    Conflict,
    /// A create is refused by its condition (412) although the object is not there: a stale cache.
    Precondition,
    /// A read gives only the first half of the bytes, without an error.
    Truncated,
    /// A read gives all bytes, one bit of them wrong.
    Flipped,
    /// A create overwrites what is there.
    ConditionIgnored,
    /// The request takes this many milliseconds.
    Slow(u64),
    /// A create fails for want of space.
    Full,
    /// A create fails after it has left half of the bytes under the name: a disk without care.
    ShortWrite,
}

/// How often, of a thousand requests, which fault is drawn.
pub type Weather = Vec<(Fault, u32)>;

/// Bad but passing weather: everything that a service may do to a client, no damage that lasts.
pub fn storm() -> Weather {
    vec![
        (Fault::Status(500), 30),
        (Fault::Status(503), 50),
        (Fault::Status(429), 30),
        (Fault::Dropped, 30),
        (Fault::AnswerLost, 60),
        (Fault::Conflict, 30),
        (Fault::Precondition, 10),
        (Fault::Truncated, 20),
        (Fault::Flipped, 10),
        (Fault::Slow(40), 20),
    ]
}

#[derive(Debug)]
struct Sky {
    next: VecDeque<Fault>,
    weather: Weather,
    state: u64,
    /// What has happened so far.
    met: Vec<(String, Fault)>,
}

/// A store with faults before another one.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    rest: Arc<dyn Rest>,
    sky: Mutex<Sky>,
}

impl FaultyStore {
    /// These faults for the next requests, then none.
    pub fn scripted(inner: Arc<dyn Store>, faults: impl IntoIterator<Item = Fault>) -> Arc<FaultyStore> {
        let sky = Sky { next: faults.into_iter().collect(), weather: Vec::new(), state: 0, met: Vec::new() };
        Arc::new(FaultyStore { inner, rest: Arc::new(crate::door::NoRest), sky: Mutex::new(sky) })
    }

    /// Faults drawn from `seed`. `rest` passes the time of slow requests.
    pub fn seeded(inner: Arc<dyn Store>, rest: Arc<dyn Rest>, weather: Weather, seed: u64) -> Arc<FaultyStore> {
        let sky = Sky { next: VecDeque::new(), weather, state: seed, met: Vec::new() };
        Arc::new(FaultyStore { inner, rest, sky: Mutex::new(sky) })
    }

    /// No more faults from now on.
    pub fn calm(&self) {
        let mut sky = lock(&self.sky);
        sky.next.clear();
        sky.weather.clear();
    }

    /// These faults for the next requests.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.sky).next.extend(faults);
    }

    /// The faults that requests have met so far, each with the request.
    pub fn met(&self) -> Vec<(String, Fault)> {
        lock(&self.sky).met.clone()
    }

    fn draw(&self, request: &str, name: &str) -> Fault {
        let mut sky = lock(&self.sky);
        let fault = match sky.next.pop_front() {
            Some(fault) => fault,
            None => {
                sky.state = sky.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut mixed = sky.state;
                mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                let mut left = ((mixed >> 33) % 1000) as u32;
                let drawn = sky.weather.iter().find(|(_, share)| {
                    let hit = left < *share;
                    left = left.saturating_sub(*share);
                    hit
                });
                drawn.map_or(Fault::None, |(fault, _)| *fault)
            }
        };
        if fault != Fault::None {
            sky.met.push((format!("{request} {name}"), fault));
        }
        fault
    }

    /// What any request may meet; the rest is for the caller.
    fn common<T>(&self, fault: Fault, request: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        match fault {
            Fault::Status(code) => Err(Failure::Transient(format!("status {code}"))),
            Fault::Dropped => Err(Failure::Transient("timed out".into())),
            Fault::AnswerLost => request().and(Err(Failure::Transient("timed out".into()))),
            Fault::Slow(ms) => {
                self.rest.rest(Duration::from_millis(ms));
                request()
            }
            _ => request(),
        }
    }
}

impl Store for FaultyStore {
    fn create(&self, name: &str, bytes: &Bytes) -> Result<Answer, Failure> {
        let fault = self.draw("create", name);
        match fault {
            Fault::Conflict | Fault::Precondition => Ok(Answer::Refused),
            Fault::ConditionIgnored => {
                self.inner.delete(name)?;
                self.inner.create(name, bytes)
            }
            Fault::Full => {
                Err(Failure::Lasting(Error::new(SqlState::DiskFull, "could not write: no space left on device")))
            }
            Fault::ShortWrite => {
                self.inner.create(name, &bytes.slice(..bytes.len() / 2))?;
                Err(Failure::Transient("short write".into()))
            }
            fault => self.common(fault, || self.inner.create(name, bytes)),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, Failure> {
        let fault = self.draw("read", name);
        let found = self.common(fault, || self.inner.read(name))?;
        Ok(found.map(|bytes| match fault {
            Fault::Truncated => bytes.slice(..bytes.len() / 2),
            Fault::Flipped if !bytes.is_empty() => {
                let mut flipped = bytes.to_vec();
                flipped[bytes.len() / 2] ^= 1;
                flipped.into()
            }
            _ => bytes,
        }))
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
        self.common(self.draw("list", folder), || self.inner.list(folder))
    }

    fn delete(&self, name: &str) -> Result<(), Failure> {
        self.common(self.draw("delete", name), || self.inner.delete(name))
    }

    fn place(&self) -> String {
        self.inner.place()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::{Door, NoRest, PutNew, TRIES_MAX};

    fn scripted(faults: &[Fault]) -> (Arc<MemoryStore>, Arc<FaultyStore>, Door) {
        let memory = MemoryStore::new();
        let faulty = FaultyStore::scripted(memory.clone(), faults.iter().copied());
        let door = Door::new(faulty.clone(), Arc::new(NoRest), 1);
        (memory, faulty, door)
    }

    fn other(memory: &Arc<MemoryStore>) -> Door {
        Door::new(memory.clone(), Arc::new(NoRest), 2)
    }

    #[test]
    fn failures_that_pass_are_tried_again() {
        for fault in [Fault::Status(500), Fault::Status(503), Fault::Status(429), Fault::Dropped, Fault::AnswerLost] {
            let (memory, _, door) = scripted(&[fault, fault]);
            assert_eq!(door.put_new("epoch/1", b"x").unwrap(), PutNew::Created, "{fault:?}");
            assert_eq!(memory.names(), ["epoch/1"]);
            for fault in [fault, Fault::Truncated, Fault::Flipped] {
                let (_, faulty, reader) = scripted(&[]);
                reader.put_new("epoch/1", b"x").unwrap();
                faulty.script([fault, fault]);
                assert_eq!(reader.get("epoch/1").unwrap().unwrap(), b"x".as_slice(), "{fault:?}");
                assert_eq!(faulty.met().len(), 2);
            }
            let (_, faulty, door) = scripted(&[fault]);
            assert_eq!(door.list("").unwrap(), []);
            faulty.script([fault]);
            door.delete("epoch/1").unwrap();
        }
    }

    #[test]
    fn failures_that_do_not_pass_end_with_what_was_tried() {
        let faults: Vec<Fault> = (0..TRIES_MAX).map(|i| Fault::Status(if i == 0 { 500 } else { 503 })).collect();
        let (_, faulty, door) = scripted(&faults);
        let error = door.put_new("epoch/1", b"x").unwrap_err();
        assert_eq!(error.state(), SqlState::IoError);
        let detail = error.detail().unwrap();
        assert_eq!(detail, format!("Tried {TRIES_MAX} times: status 500 (1×), status 503 ({}×).", TRIES_MAX - 1));
        assert_eq!(faulty.met().len(), TRIES_MAX as usize);
        faulty.script([Fault::Full]);
        assert_eq!(door.put_new("epoch/1", b"x").unwrap_err().state(), SqlState::DiskFull);
    }

    #[test]
    fn rests_between_tries_double_up_to_a_limit() {
        #[derive(Default)]
        struct Noted(Mutex<Vec<Duration>>);
        impl Rest for Noted {
            fn rest(&self, at_most: Duration) {
                lock(&self.0).push(at_most);
            }
        }
        let noted = Arc::new(Noted::default());
        let faulty = FaultyStore::scripted(MemoryStore::new(), [Fault::Dropped; 100]);
        Door::new(faulty, noted.clone(), 1).list("").unwrap_err();
        let rests: Vec<u128> = lock(&noted.0).iter().map(Duration::as_millis).collect();
        assert_eq!(rests, [50, 100, 200, 400, 800, 1600, 3200]);
    }

    #[test]
    fn retried_put_that_meets_its_own_earlier_success_is_created() {
        let (memory, _, door) = scripted(&[Fault::AnswerLost, Fault::None]);
        assert_eq!(door.put_new("epoch/1", b"mine").unwrap(), PutNew::Created);
        // The same bytes of another writer are not ours.
        let PutNew::Exists(found) = other(&memory).put_new("epoch/1", b"mine").unwrap() else { panic!("two owners") };
        assert_eq!(found.writer, door.writer());
        // Nor is what we wrote as another generation.
        let PutNew::Exists(_) = door.of_generation(crate::Generation(2)).put_new("epoch/1", b"mine").unwrap() else {
            panic!("two owners")
        };
    }

    #[test]
    fn conflict_of_which_nothing_landed_is_not_taken_for_an_object() {
        for fault in [Fault::Conflict, Fault::Precondition] {
            let (memory, _, door) = scripted(&[fault, Fault::None, fault]);
            assert_eq!(door.put_new("epoch/1", b"mine").unwrap(), PutNew::Created);
            assert_eq!(memory.names(), ["epoch/1"]);
        }
        let (memory, _, door) = scripted(&[Fault::Conflict]);
        other(&memory).put_new("epoch/1", b"theirs").unwrap();
        let PutNew::Exists(found) = door.put_new("epoch/1", b"mine").unwrap() else { panic!("two owners") };
        assert_eq!(found.payload, b"theirs".as_slice());
    }

    #[test]
    fn two_owners_on_a_store_that_ignores_conditions_are_refused_by_the_probe() {
        let (memory, _, door) = scripted(&[Fault::None, Fault::ConditionIgnored]);
        let error = door.probe().unwrap_err();
        assert_eq!(error.state(), SqlState::FeatureNotSupported);
        assert_eq!(memory.names(), [""; 0]);
        door.probe().unwrap();
        assert_eq!(memory.names(), [""; 0]);
    }

    #[test]
    fn probe_passes_in_a_storm_and_leaves_nothing_behind() {
        for seed in 0..200 {
            let memory = MemoryStore::new();
            let faulty = FaultyStore::seeded(memory.clone(), Arc::new(NoRest), storm(), seed);
            Door::new(faulty, Arc::new(NoRest), seed).probe().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert_eq!(memory.names(), [""; 0], "seed {seed}");
        }
    }

    #[test]
    fn one_of_two_owns_a_name_in_any_storm() {
        for seed in 0..300 {
            let memory = MemoryStore::new();
            let outcomes = [1, 2].map(|nonce| {
                let faulty = FaultyStore::seeded(memory.clone(), Arc::new(NoRest), storm(), seed * 2 + nonce);
                Door::new(faulty, Arc::new(NoRest), nonce).put_new("epoch/1", b"x").unwrap()
            });
            assert_eq!(outcomes.iter().filter(|o| **o == PutNew::Created).count(), 1, "seed {seed}");
        }
    }

    #[test]
    fn half_written_object_is_damage_and_never_ours() {
        let (_, _, door) = scripted(&[Fault::ShortWrite]);
        let error = door.put_new("epoch/1", b"a long enough payload").unwrap_err();
        assert_eq!(error.state(), SqlState::DataCorrupted);
        assert!(error.message().contains("epoch/1"), "{error}");
    }

    #[test]
    fn same_seed_meets_the_same_faults() {
        let run = |seed| {
            let faulty = FaultyStore::seeded(MemoryStore::new(), Arc::new(NoRest), storm(), seed);
            let door = Door::new(faulty.clone(), Arc::new(NoRest), 1);
            for i in 0..50 {
                let _ = door.put_new(&format!("epoch/{i}"), b"x");
                let _ = door.list("epoch");
            }
            faulty.met()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }
}
