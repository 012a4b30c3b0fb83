//! Ordered multisets: what a retractable minimum or the first rows of a partition are read from.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A set with at most this many different values is a sorted vector.
const FLAT_MAX: usize = 24;

/// Values with their multiplicities, in order. Multiplicities are never zero but may be negative within an epoch.
pub enum Multiset<K> {
    Flat(Vec<(K, i64)>),
    Tree(BTreeMap<K, i64>),
}

impl<K> Default for Multiset<K> {
    fn default() -> Self {
        Multiset::Flat(Vec::new())
    }
}

impl<K: Ord> Multiset<K> {
    /// Adds `weight` to the multiplicity of `value` and returns it before and after. `None`: out of range. `keep` makes a
    /// value to be kept; `order` compares as `Ord` does, perhaps with less work.
    pub fn add<S: Ord + ?Sized>(
        &mut self,
        value: &S,
        weight: i64,
        keep: impl Fn(&S) -> K,
        order: impl Fn(&K, &S) -> Ordering,
    ) -> Option<(i64, i64)>
    where
        K: Borrow<S>,
    {
        match self {
            Multiset::Flat(entries) => match entries.binary_search_by(|(k, _)| order(k, value)) {
                Ok(n) => {
                    let before = entries[n].1;
                    let after = before.checked_add(weight)?;
                    if after == 0 {
                        entries.remove(n);
                    } else {
                        entries[n].1 = after;
                    }
                    Some((before, after))
                }
                Err(n) => {
                    entries.insert(n, (keep(value), weight));
                    if entries.len() > FLAT_MAX {
                        *self = Multiset::Tree(std::mem::take(entries).into_iter().collect());
                    }
                    Some((0, weight))
                }
            },
            Multiset::Tree(entries) => match entries.get_mut(value) {
                Some(count) => {
                    let before = *count;
                    let after = before.checked_add(weight)?;
                    if after == 0 {
                        entries.remove(value);
                    } else {
                        *count = after;
                    }
                    Some((before, after))
                }
                None => {
                    entries.insert(keep(value), weight);
                    Some((0, weight))
                }
            },
        }
    }

    pub fn first(&self) -> Option<&K> {
        match self {
            Multiset::Flat(entries) => entries.first().map(|(k, _)| k),
            Multiset::Tree(entries) => entries.first_key_value().map(|(k, _)| k),
        }
    }

    pub fn last(&self) -> Option<&K> {
        match self {
            Multiset::Flat(entries) => entries.last().map(|(k, _)| k),
            Multiset::Tree(entries) => entries.last_key_value().map(|(k, _)| k),
        }
    }

    /// Number of different values.
    pub fn len(&self) -> usize {
        match self {
            Multiset::Flat(entries) => entries.len(),
            Multiset::Tree(entries) => entries.len(),
        }
    }

    /// Visits values in order until `visit` returns false.
    pub fn walk<'a>(&'a self, mut visit: impl FnMut(&'a K, i64) -> bool) {
        match self {
            Multiset::Flat(entries) => {
                let _ = entries.iter().all(|(k, n)| visit(k, *n));
            }
            Multiset::Tree(entries) => {
                let _ = entries.iter().all(|(k, n)| visit(k, *n));
            }
        }
    }

    /// Keeps the first `kept` values, of which the last is `last`; `dropped` sees the others.
    pub fn truncate(&mut self, kept: usize, last: &K, mut dropped: impl FnMut(&K, i64)) {
        match self {
            Multiset::Flat(entries) => {
                entries.iter().skip(kept).for_each(|(k, n)| dropped(k, *n));
                entries.truncate(kept);
            }
            Multiset::Tree(entries) => {
                while let Some(entry) = entries.last_entry() {
                    if entry.key() <= last {
                        break;
                    }
                    dropped(entry.key(), *entry.get());
                    entry.remove();
                }
            }
        }
    }

    /// The multiplicity of `value`, if it is there.
    pub fn get<S: Ord + ?Sized>(&self, value: &S, order: impl Fn(&K, &S) -> Ordering) -> Option<i64>
    where
        K: Borrow<S>,
    {
        match self {
            Multiset::Flat(entries) => entries.binary_search_by(|(k, _)| order(k, value)).ok().map(|n| entries[n].1),
            Multiset::Tree(entries) => entries.get(value).copied(),
        }
    }
}
