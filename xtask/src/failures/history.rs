//! Whether one coordinator after the other acts on the store, and never two: the entries of the log and the records of
//! checkpoints are numbered, and whoever writes one must not be older than who has written the one before.
//!
//! A thread looks at the folder all the time, since what nothing needs any more is removed. Of the log, what begins a coordinator's time
//! stays for ever, so a generation cannot pass unseen.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::cluster::generation_of;

/// Between two looks.
const REST: Duration = Duration::from_millis(20);
/// Folders of numbered objects that one generation after the other writes.
const FOLDERS: [&str; 3] = ["log", "epoch", "committed"];

/// The generation of each numbered object that was seen.
#[derive(Default)]
struct Written(BTreeMap<u64, u64>);

impl Written {
    /// Notes an object, and says what is wrong with it.
    fn note(&mut self, number: u64, generation: u64) -> Option<String> {
        let was = self.0.insert(number, generation).filter(|was| *was != generation);
        let before = self.0.range(..number).next_back().filter(|(_, older)| **older > generation);
        if let Some((other, newer)) = before {
            return Some(format!("{number} is of generation {generation}, but {other} before it is of {newer}"));
        }
        let after = self.0.range(number + 1..).next().filter(|(_, newer)| **newer < generation);
        if let Some((other, older)) = after {
            return Some(format!("{number} is of generation {generation}, but {other} after it is of {older}"));
        }
        was.map(|was| format!("{number} was of generation {was} and is of {generation}"))
    }
}

/// What was seen.
#[derive(Default)]
pub struct Seen {
    pub objects: u64,
    pub generations: u64,
    pub violations: Vec<String>,
}

/// A thread that looks until it is asked what it has seen.
pub struct Watch {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Watch {
    pub fn start(store: PathBuf) -> Watch {
        let ends = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            let mut written: BTreeMap<&str, Written> = BTreeMap::new();
            let mut seen = Seen::default();
            loop {
                // Looked at once more after the end.
                let last = end.load(Ordering::Acquire);
                for folder in FOLDERS {
                    look(&store.join(folder), folder, written.entry(folder).or_default(), &mut seen);
                }
                if last {
                    let mut generations: Vec<u64> = written.values().flat_map(|w| w.0.values().copied()).collect();
                    generations.sort_unstable();
                    generations.dedup();
                    seen.generations = generations.len() as u64;
                    return seen;
                }
                std::thread::sleep(REST);
            }
        });
        Watch { ends, thread }
    }

    pub fn end(self) -> Seen {
        self.ends.store(true, Ordering::Release);
        let failed =
            |_| Seen { violations: vec!["the thread that looks at the store has failed".into()], ..Seen::default() };
        self.thread.join().unwrap_or_else(failed)
    }
}

fn look(folder: &Path, name: &str, written: &mut Written, seen: &mut Seen) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else { continue };
        // An entry keeps its content: those that were seen need no second look.
        if written.0.contains_key(&number) {
            continue;
        }
        let Some(generation) = generation_of(&entry.path()) else { continue };
        seen.objects += 1;
        if let Some(wrong) = written.note(number, generation) {
            seen.violations.push(format!("two coordinators act at once: {name}/{wrong}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_generation_after_a_newer_one_is_found_in_whatever_order_it_is_seen() {
        let mut written = Written::default();
        for (number, generation) in [(1, 1), (2, 1), (5, 3), (3, 2), (4, 2), (5, 3)] {
            assert_eq!(written.note(number, generation), None);
        }
        assert!(written.note(6, 2).unwrap().contains("5 before it is of 3"));
        assert!(written.note(0, 2).unwrap().contains("1 after it is of 1"));
        assert!(written.note(2, 2).is_some());
        assert_eq!(written.note(7, 4), None);
    }

    #[test]
    fn objects_of_a_folder_are_read_by_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        fs::create_dir(&log).unwrap();
        let object = |generation: u64| [&[0; 16][..], &generation.to_le_bytes(), &[0; 24]].concat();
        for (name, generation) in [("0000000001", 1), ("0000000002", 2), ("0000000003", 1), (".tmp", 9)] {
            fs::write(log.join(name), object(generation)).unwrap();
        }
        let seen = Watch::start(folder.path().to_path_buf()).end();
        assert_eq!((seen.objects, seen.generations, seen.violations.len()), (3, 2, 1), "{:?}", seen.violations);
    }
}
