//! The store of checkpoints as an incarnation sees it: with weather, full at times, and dead when the incarnation is.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use checkpoint::crash;
use checkpoint::door::{Answer, Failure, Listed, Rest, Store};
use checkpoint::faulty::{FaultyStore, Weather};
use checkpoint::names::MANIFESTS;
use flow::{Error, SqlState};
use parking_lot::Mutex;

/// Everything that has happened, as a number.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<DefaultHasher>>);

impl Trace {
    pub fn note(&self, what: impl Hash) {
        what.hash(&mut *self.0.lock());
    }

    pub fn hash(&self) -> u64 {
        self.0.lock().finish()
    }
}

/// Time passes on the world's clock.
pub struct ClockRest(pub Arc<AtomicI64>);

impl Rest for ClockRest {
    fn rest(&self, at_most: Duration) {
        self.0.fetch_add(at_most.as_micros() as i64, Ordering::Relaxed);
    }
}

/// What a request to the store may do to who makes it.
pub trait Fate: Send + Sync {
    /// A request comes to the store. It may unwind.
    fn before_request(&self);
    /// A request has taken effect. It may unwind.
    fn after_request(&self);
    /// Nothing it asks for has an effect any more.
    fn is_dead(&self) -> bool;
}

/// One incarnation's way to the objects.
pub struct SimStore {
    weather: Arc<FaultyStore>,
    /// In memory a manifest has no crash point of its own.
    in_memory: bool,
    full: AtomicBool,
    trace: Trace,
    fate: Box<dyn Fate>,
}

impl SimStore {
    pub fn new(
        objects: Arc<dyn Store>,
        in_memory: bool,
        weather: Weather,
        seed: u64,
        rest: Arc<dyn Rest>,
        trace: Trace,
        fate: Box<dyn Fate>,
    ) -> Arc<SimStore> {
        let weather = FaultyStore::seeded(objects, rest, weather, seed);
        Arc::new(SimStore { weather, in_memory, full: AtomicBool::new(false), trace, fate })
    }

    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    /// Requests meet no faults any more.
    pub fn calm(&self) {
        self.weather.calm();
    }

    /// Faults that requests have met.
    pub fn faults(&self) -> usize {
        self.weather.met().len()
    }

    fn request<T>(&self, what: &str, name: &str, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        self.trace.note((what, name));
        self.fate.before_request();
        if self.fate.is_dead() {
            return Err(Failure::Lasting(Error::new(SqlState::IoError, "the process is dead")));
        }
        let done = work();
        self.trace.note(done.is_ok());
        if done.is_ok() {
            self.fate.after_request();
        }
        done
    }
}

impl Store for SimStore {
    fn create(&self, name: &str, bytes: &Bytes) -> Result<Answer, Failure> {
        self.trace.note(bytes.len());
        self.request("create", name, || {
            if self.full.load(Ordering::Relaxed) {
                return Err(Failure::Lasting(Error::new(SqlState::DiskFull, "no space left on device")));
            }
            let answer = self.weather.create(name, bytes)?;
            if self.in_memory && name.starts_with(MANIFESTS) {
                crash::point("C7");
            }
            Ok(answer)
        })
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, Failure> {
        self.request("read", name, || self.weather.read(name))
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
        self.request("list", folder, || self.weather.list(folder))
    }

    fn delete(&self, name: &str) -> Result<(), Failure> {
        self.request("delete", name, || self.weather.delete(name))
    }

    fn place(&self) -> String {
        "the simulated store".into()
    }

    fn requests_at_once(&self) -> usize {
        1
    }
}
