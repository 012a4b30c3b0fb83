//! Looks at the store from outside: of what coordinators write one after the other, nothing of an older generation may come after a newer
//! one's.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use checkpoint::door::{Answer, Failure, Listed, Store};
use checkpoint::envelope;
use checkpoint::faulty::MemoryStore;
use checkpoint::names::{COMMITTED, LOG, RECORDS};
use parking_lot::Mutex;

use crate::world::Known;

/// By number, the generation that has written an object.
type Written = BTreeMap<u64, u64>;

/// The objects, and who has created them.
pub struct Witness {
    objects: Arc<MemoryStore>,
    known: Arc<Mutex<Known>>,
    written: Mutex<BTreeMap<&'static str, Written>>,
}

impl Witness {
    pub fn new(objects: Arc<MemoryStore>, known: Arc<Mutex<Known>>) -> Arc<Witness> {
        Arc::new(Witness { objects, known, written: Mutex::default() })
    }

    /// Numbered objects that were seen, and their generations.
    pub fn seen(&self) -> usize {
        self.written.lock().values().map(BTreeMap::len).sum()
    }

    /// Whether a record after this one is there.
    fn is_behind(&self, number: u64) -> bool {
        let records = self.objects.list(RECORDS).unwrap_or_default();
        let numbers = records.iter().filter_map(|object| object.name.split_once('/')?.1.parse::<u64>().ok());
        numbers.max().is_some_and(|newest| newest > number)
    }

    fn note(&self, name: &str, bytes: &Bytes) {
        let Some((folder, number)) = name.split_once('/') else { return };
        let Some(folder) = [LOG, RECORDS, COMMITTED].into_iter().find(|known| *known == folder) else { return };
        let (Ok(number), Ok(object)) = (number.parse(), envelope::open(name, bytes)) else { return };
        let generation = object.writer.generation.0;
        // A name that was cleared away is free for who slept. It gains nothing by it: a newer record is there.
        if folder != LOG && self.is_behind(number) {
            return;
        }
        let mut written = self.written.lock();
        let written = written.entry(folder).or_default();
        let was = written.insert(number, generation).filter(|was| *was != generation);
        let before = written.range(..number).next_back().filter(|(_, older)| **older > generation);
        let after = written.range(number + 1..).next().filter(|(_, newer)| **newer < generation);
        let wrong = [was.map(|was| (number, was)), before.map(|(n, g)| (*n, *g)), after.map(|(n, g)| (*n, *g))];
        for (other, of) in wrong.into_iter().flatten() {
            let what = format!("{name} is of generation {generation}, and {folder}/{other} of {of}");
            self.known.lock().violated(what);
        }
    }
}

impl Store for Witness {
    fn create(&self, name: &str, bytes: &Bytes) -> Result<Answer, Failure> {
        let answer = self.objects.create(name, bytes)?;
        if answer == Answer::Created {
            self.note(name, bytes);
        }
        Ok(answer)
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, Failure> {
        self.objects.read(name)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
        self.objects.list(folder)
    }

    fn delete(&self, name: &str) -> Result<(), Failure> {
        self.objects.delete(name)
    }

    fn place(&self) -> String {
        self.objects.place()
    }
}
