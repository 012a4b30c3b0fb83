//! The rows that a sink has published, each with a number of its own: which are lost, repeated, alien, or came too early.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Keys of the input; each row's other cells follow from its number.
pub const KEYS: u64 = 20;

/// What was read. A file that is published never changes, so each is read once.
pub struct Published {
    folder: PathBuf,
    /// The files that were read, and their lengths.
    read: BTreeMap<PathBuf, u64>,
    /// Of the files of each epoch, the smallest and the largest number.
    epochs: BTreeMap<u64, (u64, u64)>,
    /// A bit for each number.
    seen: Vec<u64>,
    /// Different rows.
    pub rows: u64,
    pub repeated: u64,
    pub alien: u64,
    pub wrong: Vec<String>,
}

impl Published {
    pub fn new(folder: &Path) -> Published {
        Published {
            folder: folder.to_path_buf(),
            read: BTreeMap::new(),
            epochs: BTreeMap::new(),
            seen: Vec::new(),
            rows: 0,
            repeated: 0,
            alien: 0,
            wrong: Vec::new(),
        }
    }

    pub fn files(&self) -> u64 {
        self.read.len() as u64
    }

    /// Reads the files that are new; `sent` says how many rows have been written by now.
    pub fn look(&mut self, sent: impl Fn() -> u64) {
        let mut files = BTreeMap::new();
        list(&self.folder, &mut files);
        for (path, length) in &self.read {
            match files.get(path) {
                Some(now) if now == length => {}
                Some(now) => {
                    self.wrong.push(format!("{} had {length} bytes and has {now}", path.display()));
                }
                None => self.wrong.push(format!("{} was published and is gone", path.display())),
            }
        }
        for (path, length) in files {
            if !self.read.contains_key(&path) {
                match fs::read(&path) {
                    // Asked after the file was read: more may have been sent meanwhile.
                    Ok(content) => self.take(&path, &content, sent()),
                    Err(error) => self.wrong.push(format!("{}: {error}", path.display())),
                }
                self.read.insert(path, length);
            }
        }
    }

    fn take(&mut self, path: &Path, content: &[u8], sent: u64) {
        let Some(epoch) = epoch_of(path) else {
            self.wrong.push(format!("{} is no name of a file of a checkpoint", path.display()));
            return;
        };
        if !content.ends_with(b"\n") {
            self.wrong.push(format!("{} ends inside of a line", path.display()));
        }
        for line in String::from_utf8_lossy(content).lines() {
            match number_of(line).filter(|number| *number < sent) {
                Some(number) => self.note(number, epoch),
                None => {
                    self.alien += 1;
                    self.wrong.push(format!("{}: nobody has sent {line}", path.display()));
                }
            }
        }
    }

    fn note(&mut self, number: u64, epoch: u64) {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            self.repeated += 1;
            return;
        }
        self.seen[word] |= bit;
        self.rows += 1;
        let (least, most) = self.epochs.entry(epoch).or_insert((number, number));
        (*least, *most) = ((*least).min(number), (*most).max(number));
    }

    /// Of the numbers below `sent` those that are not there.
    pub fn lost(&self, sent: u64) -> Vec<u64> {
        let there = |number: &u64| self.seen.get((number / 64) as usize).is_some_and(|w| w & 1 << (number % 64) != 0);
        (0..sent).filter(|number| !there(number)).collect()
    }

    /// How many epochs have published a row before one that was sent earlier. Within an epoch there is no order.
    pub fn reordered(&self) -> u64 {
        let (mut most, mut reordered) = (None, 0);
        for (least_here, most_here) in self.epochs.values() {
            reordered += u64::from(most.is_some_and(|most| *least_here < most));
            most = most.max(Some(*most_here));
        }
        reordered
    }
}

/// The epoch in the name of a file: `part-<identity>-<epoch>-<number>.ndjson`.
fn epoch_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_prefix("part-")?.strip_suffix(".ndjson")?;
    name.rsplit('-').nth(1)?.parse().ok()
}

/// The number of a row, if the row is as that number's must be.
fn number_of(line: &str) -> Option<u64> {
    let (number, rest) = line.strip_prefix("{\"id\":")?.split_once(',')?;
    let number: u64 = number.parse().ok()?;
    let key = number % KEYS;
    (rest == format!("\"name\":\"name {key}\",\"half\":{}}}", key % 2)).then_some(number)
}

/// The files below a folder and their lengths. What is staged lies in a hidden folder and does not count.
fn list(folder: &Path, files: &mut BTreeMap<PathBuf, u64>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = entry.metadata() else { continue };
        if !metadata.is_dir() {
            files.insert(path, metadata.len());
        } else if !entry.file_name().to_string_lossy().starts_with('.') {
            list(&path, files);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: u64) -> String {
        format!("{{\"id\":{id},\"name\":\"name {}\",\"half\":{}}}\n", id % KEYS, id % 2)
    }

    #[test]
    fn lost_repeated_alien_and_early_rows_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let half = folder.path().join("half=0");
        fs::create_dir_all(&half).unwrap();
        fs::create_dir_all(folder.path().join(".millstream-staged")).unwrap();
        fs::write(folder.path().join(".millstream-staged/x"), line(7)).unwrap();
        let file = |epoch: u64, ids: &[u64]| {
            let text: String = ids.iter().map(|id| line(*id)).collect();
            fs::write(half.join(format!("part-16400-7-{epoch:012}-000001.ndjson")), text).unwrap();
        };
        let mut published = Published::new(folder.path());
        file(3, &[1, 0]);
        file(4, &[2, 3]);
        published.look(|| 10);
        assert_eq!((published.rows, published.repeated, published.alien, published.reordered()), (4, 0, 0, 0));
        assert_eq!(published.lost(5), [4]);
        // One again, one that comes later than one of an earlier epoch, one that was not sent.
        file(5, &[2, 9]);
        file(6, &[5, 12]);
        published.look(|| 10);
        assert_eq!((published.rows, published.repeated, published.alien, published.reordered()), (6, 1, 1, 1));
        fs::remove_file(half.join("part-16400-7-000000000003-000001.ndjson")).unwrap();
        published.look(|| 10);
        assert!(published.wrong.last().unwrap().contains("is gone"), "{:?}", published.wrong);
        assert_eq!(number_of("{\"id\":3,\"name\":\"name 4\",\"half\":1}"), None);
    }
}
