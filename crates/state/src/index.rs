//! From the hash of a key to the versions of its rows, newest first.
//!
//! One entry per hash names the newest row; older rows with the same hash hang behind it in a doubly linked chain, so that
//! adding a version and dropping any version cost O(1) however often a hot key is updated. Only rows that share their hash
//! with another version have a link. Row numbers never change, so merging blocks leaves the index alone.

use flow::hash::hash_u64;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// The index is split by hash so that growing a table moves 1/64 of the entries at a time.
const PARTITIONS: usize = 64;

const NONE: u64 = u64::MAX;

struct Head {
    hash: u64,
    row: u64,
}

struct Link {
    row: u64,
    newer: u64,
    older: u64,
}

#[derive(Default)]
struct Partition {
    heads: HashTable<Head>,
    links: HashTable<Link>,
}

/// Rows by hash; holds row numbers only, the caller compares keys.
pub(crate) struct Index {
    partitions: Box<[Partition]>,
}

/// A shard sees few values of a hash's top bits (its vnodes), and the partition number uses the lowest: the tables get
/// the middle ones as their tag and position.
#[inline]
fn table_hash(hash: u64) -> u64 {
    hash.rotate_left(32)
}

impl Partition {
    fn link(&self, row: u64) -> Option<&Link> {
        self.links.find(hash_u64(row), |l| l.row == row)
    }

    fn set_link(&mut self, row: u64, set: impl FnOnce(&mut Link)) {
        let link = self.links.entry(hash_u64(row), |l| l.row == row, |l| hash_u64(l.row));
        set(link.or_insert(Link { row, newer: NONE, older: NONE }).into_mut());
    }

    /// A row without neighbours needs no link.
    fn clear_link(&mut self, row: u64, clear: impl FnOnce(&mut Link)) {
        if let Ok(mut entry) = self.links.find_entry(hash_u64(row), |l| l.row == row) {
            let link = entry.get_mut();
            clear(link);
            if link.newer == NONE && link.older == NONE {
                entry.remove();
            }
        }
    }

    /// Gives memory back after mass deletion; amortised by the removals that emptied the table.
    fn shrink(&mut self) {
        if self.heads.capacity() > 64 && self.heads.len() * 8 < self.heads.capacity() {
            self.heads.shrink_to(self.heads.len() * 2, |h| table_hash(h.hash));
        }
        if self.links.capacity() > 64 && self.links.len() * 8 < self.links.capacity() {
            self.links.shrink_to(self.links.len() * 2, |l| hash_u64(l.row));
        }
    }
}

impl Index {
    pub(crate) fn new() -> Index {
        Index { partitions: (0..PARTITIONS).map(|_| Partition::default()).collect() }
    }

    #[inline]
    fn partition(&self, hash: u64) -> &Partition {
        &self.partitions[hash as usize % PARTITIONS]
    }

    /// The newest row with this hash.
    #[inline]
    pub(crate) fn newest(&self, hash: u64) -> Option<u64> {
        self.partition(hash).heads.find(table_hash(hash), |h| h.hash == hash).map(|h| h.row)
    }

    /// The next older row with the same hash.
    #[inline]
    pub(crate) fn older(&self, hash: u64, row: u64) -> Option<u64> {
        self.partition(hash).link(row).map(|l| l.older).filter(|older| *older != NONE)
    }

    /// Adds `row` as the newest with this hash. Row numbers are never added twice.
    pub(crate) fn insert(&mut self, hash: u64, row: u64) {
        let partition = &mut self.partitions[hash as usize % PARTITIONS];
        let older = match partition.heads.entry(table_hash(hash), |h| h.hash == hash, |h| table_hash(h.hash)) {
            Entry::Vacant(entry) => {
                entry.insert(Head { hash, row });
                return;
            }
            Entry::Occupied(mut entry) => std::mem::replace(&mut entry.get_mut().row, row),
        };
        partition.set_link(older, |l| l.newer = row);
        partition.set_link(row, |l| l.older = older);
    }

    /// Forgets `row`; nothing happens when it is not there.
    pub(crate) fn remove(&mut self, hash: u64, row: u64) {
        let partition = &mut self.partitions[hash as usize % PARTITIONS];
        let (newer, older) = match partition.links.find_entry(hash_u64(row), |l| l.row == row) {
            Ok(entry) => {
                let (link, _) = entry.remove();
                (link.newer, link.older)
            }
            Err(_) => (NONE, NONE),
        };
        if newer != NONE {
            partition.clear_link(newer, |l| l.older = older);
        } else if let Ok(mut head) = partition.heads.find_entry(table_hash(hash), |h| h.hash == hash && h.row == row) {
            if older == NONE {
                head.remove();
            } else {
                head.get_mut().row = older;
            }
        }
        if older != NONE {
            partition.clear_link(older, |l| l.newer = newer);
        }
        partition.shrink();
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> usize {
        let tables: usize = self.partitions.iter().map(|p| p.heads.allocation_size() + p.links.allocation_size()).sum();
        tables + PARTITIONS * size_of::<Partition>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(index: &Index, hash: u64) -> Vec<u64> {
        let mut rows = vec![];
        let mut at = index.newest(hash);
        while let Some(row) = at {
            rows.push(row);
            at = index.older(hash, row);
        }
        rows
    }

    #[test]
    fn chains_run_from_newest_to_oldest_and_lose_any_member() {
        let mut index = Index::new();
        for row in 0..6 {
            index.insert(99, row);
        }
        index.insert(100, 6);
        assert_eq!(chain(&index, 99), [5, 4, 3, 2, 1, 0]);
        for (gone, rest) in [(3, vec![5, 4, 2, 1, 0]), (5, vec![4, 2, 1, 0]), (0, vec![4, 2, 1]), (4, vec![2, 1])] {
            index.remove(99, gone);
            assert_eq!(chain(&index, 99), rest);
        }
        index.remove(99, 77);
        index.remove(99, 1);
        assert_eq!(chain(&index, 99), [2]);
        assert!(index.partition(99).links.is_empty());
        index.remove(99, 2);
        assert_eq!((chain(&index, 99), chain(&index, 100)), (vec![], vec![6]));
    }

    #[test]
    fn memory_is_given_back() {
        let mut index = Index::new();
        for row in 0..200_000u64 {
            index.insert(hash_u64(row), row);
        }
        let full = index.bytes();
        for row in 0..200_000u64 {
            index.remove(hash_u64(row), row);
        }
        assert!(index.bytes() * 10 < full);
    }
}
