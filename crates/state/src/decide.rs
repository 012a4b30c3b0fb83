//! What a change does to a shard, decided before anything is touched.
//!
//! The law: a batch counts by its net effect, whatever the order of its rows, and a batch that breaks the changelog (it
//! takes away what is not there, or adds a second row for a unique key) changes nothing.

use flow::hash::hash_columns;
use flow::{Diff, Error, Result, SqlState};
use hashbrown::hash_table::Entry;
use hashbrown::{HashMap, HashTable};

use crate::block::ALIVE;
use crate::index::Index;
use crate::layout::{Identity, Incoming, Layout};
use crate::list::BlockList;
use crate::values::Cells;

const NONE: u32 = u32::MAX;

/// Position of a block in the current list and offset of a row in it.
pub(crate) type Place = (usize, usize);

/// The outcome: rows that end, and rows of the batch that begin.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) kills: Vec<Place>,
    /// Indices into the batch.
    pub(crate) adds: Vec<u32>,
    /// How often each of `adds` occurs from now on; `None` when all occur once.
    pub(crate) counts: Option<Vec<u64>>,
}

/// Copies per row number that the same statement takes away by row id.
pub(crate) type Doomed = HashMap<u64, u64>;

/// The alive rows of a shard as its writer sees them.
pub(crate) struct Head<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) list: &'a BlockList,
    pub(crate) index: &'a Index,
}

impl Head<'_> {
    /// The newest row with the hash of each of `rows`. One tight loop, so that the cache misses of many probes overlap.
    fn newest(&self, incoming: &Incoming, rows: &[u32]) -> Vec<Option<u64>> {
        rows.iter().map(|row| self.index.newest(incoming.hashes[*row as usize])).collect()
    }

    /// The alive row with the identity of row `i`, whose hash has `newest` as its newest row. Of equal rows only the newest
    /// can be alive, so the walk ends at the first equal one; other rows in a chain are hash collisions.
    fn alive(&self, incoming: &Incoming, i: usize, newest: Option<u64>) -> Result<Option<Place>> {
        let hash = incoming.hashes[i];
        let mut at = newest;
        while let Some(number) = at {
            if let Some((position, offset)) = self.list.locate(number) {
                let block = self.list.block(position);
                if incoming.cells.same(i, block.cells(), offset, &self.layout.columns)? {
                    return Ok((block.died(offset) == ALIVE).then_some((position, offset)));
                }
            }
            at = self.index.older(hash, number);
        }
        Ok(None)
    }

    fn number(&self, place: Place) -> u64 {
        self.list.block(place.0).number(place.1)
    }

    /// Resolves `incoming` with the weights of `diff`. `doomed` rows count as taken away; those that the plan ends are
    /// removed from it, so that whoever ends the rest does not end them twice.
    pub(crate) fn decide(&self, incoming: &Incoming, diff: &Diff, doomed: &mut Doomed) -> Result<Plan> {
        match self.layout.identity {
            Identity::Unindexed => self.decide_unindexed(incoming, diff),
            Identity::Row => self.decide_rows(incoming, diff, doomed),
            Identity::Key(_) => {
                if let Some(plan) = self.decide_keys(incoming, diff, doomed)? {
                    return Ok(plan);
                }
                let (net, diff, origin) = self.consolidate(incoming, diff)?;
                match self.decide_keys(&net, &diff, doomed)? {
                    Some(mut plan) => {
                        for row in &mut plan.adds {
                            *row = origin[*row as usize];
                        }
                        Ok(plan)
                    }
                    None => Err(self.ambiguous(&net, &diff)),
                }
            }
        }
    }

    fn decide_unindexed(&self, incoming: &Incoming, diff: &Diff) -> Result<Plan> {
        let counts = match diff {
            Diff::Insert => None,
            Diff::Weights(weights) if weights.iter().all(|w| *w > 0) => {
                Some(weights.iter().map(|w| *w as u64).collect())
            }
            _ => return Err(violation("an append-only relation was given a deletion", String::new())),
        };
        Ok(Plan { kills: vec![], adds: (0..incoming.len() as u32).collect(), counts })
    }

    /// Bag semantics: the net number of each distinct row is added to the number stored.
    fn decide_rows(&self, incoming: &Incoming, diff: &Diff, doomed: &mut Doomed) -> Result<Plan> {
        let groups = group(incoming.len(), &incoming.hashes, &incoming.cells, &self.layout.columns)?;
        let mut net = vec![0i64; groups.firsts.len()];
        for (i, group) in groups.of_row.iter().enumerate() {
            net[*group as usize] += diff.weight(i);
        }
        let mut plan = Plan::default();
        let mut counts = vec![];
        let newest = self.newest(incoming, &groups.firsts);
        for ((first, net), newest) in groups.firsts.iter().zip(net).zip(newest) {
            if net == 0 {
                continue;
            }
            let place = self.alive(incoming, *first as usize, newest)?;
            let mut stored = 0;
            if let Some(place) = place {
                stored = self.list.block(place.0).count(place.1);
                stored -= doomed.remove(&self.number(place)).unwrap_or(0);
                plan.kills.push(place);
            }
            let Some(count) = stored.checked_add_signed(net) else {
                let row = self.layout.describe(&incoming.rows, *first as usize);
                return Err(absent(format!("{row}: {stored} stored, change {net}")));
            };
            if count > 0 {
                plan.adds.push(*first);
                counts.push(count);
            }
        }
        plan.counts = counts.iter().any(|c| *c != 1).then_some(counts);
        Ok(plan)
    }

    /// One row per key: a key may lose the row it has and gain one. `None` when a key has more changes than that in this
    /// batch, so that its net effect is not obvious.
    fn decide_keys(&self, incoming: &Incoming, diff: &Diff, doomed: &mut Doomed) -> Result<Option<Plan>> {
        let groups = group(incoming.len(), &incoming.hashes, &incoming.cells, &self.layout.columns)?;
        let mut changes = vec![(NONE, NONE); groups.firsts.len()];
        for (i, group) in groups.of_row.iter().enumerate() {
            let (minus, plus) = &mut changes[*group as usize];
            let slot = match diff.weight(i) {
                1 => plus,
                -1 => minus,
                _ => return Ok(None),
            };
            if std::mem::replace(slot, i as u32) != NONE {
                return Ok(None);
            }
        }
        let mut plan = Plan { adds: Vec::with_capacity(changes.len()), ..Plan::default() };
        let newest = self.newest(incoming, &groups.firsts);
        for ((minus, plus), newest) in changes.into_iter().zip(newest) {
            let all = &self.layout.all;
            if minus != NONE
                && plus != NONE
                && incoming.cells.same(minus as usize, &incoming.cells, plus as usize, all)?
            {
                continue;
            }
            let row = if plus == NONE { minus } else { plus } as usize;
            let place = self.alive(incoming, row, newest)?.filter(|place| !doomed.contains_key(&self.number(*place)));
            if minus != NONE {
                let minus = minus as usize;
                let Some(place) = place else {
                    return Err(absent(self.layout.describe(&incoming.rows, minus)));
                };
                if !incoming.cells.same(minus, self.list.block(place.0).cells(), place.1, all)? {
                    let key = self.layout.describe(&incoming.rows, minus);
                    return Err(absent(format!("{key} has other values")));
                }
                plan.kills.push(place);
            } else if place.is_some() {
                return Err(duplicate(self.layout.describe(&incoming.rows, row)));
            }
            if plus != NONE {
                plan.adds.push(plus);
            }
        }
        Ok(Some(plan))
    }

    /// The batch with one row per distinct row and its net weight, and where each row came from.
    fn consolidate(&self, incoming: &Incoming, diff: &Diff) -> Result<(Incoming, Diff, Vec<u32>)> {
        let hashes = hash_columns(incoming.rows.columns(), incoming.len())?;
        let groups = group(incoming.len(), &hashes, &incoming.cells, &self.layout.all)?;
        let mut net = vec![0i64; groups.firsts.len()];
        for (i, group) in groups.of_row.iter().enumerate() {
            net[*group as usize] += diff.weight(i);
        }
        let (origin, weights): (Vec<u32>, Vec<i64>) =
            groups.firsts.iter().zip(net).filter(|(_, net)| *net != 0).unzip();
        let (rows, hashes) = incoming.take(self.layout, &origin)?;
        Ok((Incoming { cells: Cells::new(&rows), rows, hashes }, Diff::from_weights(weights), origin))
    }

    /// Names what is wrong with a consolidated batch that still changes one key more than once in one direction.
    fn ambiguous(&self, net: &Incoming, diff: &Diff) -> Error {
        let mut seen = HashMap::new();
        for i in 0..net.len() {
            let weight = diff.weight(i);
            let again = seen.insert((net.hashes[i], weight > 0), i).is_some();
            if again || weight.abs() > 1 {
                let key = self.layout.describe(&net.rows, i);
                return if weight > 0 { duplicate(key) } else { absent(key) };
            }
        }
        violation("several changes of one unique key", String::new())
    }
}

/// The rows of a batch by identity.
struct Groups {
    /// The first row of each group, in order of appearance.
    firsts: Vec<u32>,
    /// The group of each row.
    of_row: Vec<u32>,
}

fn group(rows: usize, hashes: &[u64], cells: &Cells, columns: &[usize]) -> Result<Groups> {
    let mut groups = Groups { firsts: Vec::with_capacity(rows), of_row: Vec::with_capacity(rows) };
    if rows == 1 {
        groups.firsts.push(0);
        groups.of_row.push(0);
        return Ok(groups);
    }
    let mut table: HashTable<u32> = HashTable::with_capacity(rows);
    let mut failed = None;
    for (i, &hash) in hashes.iter().enumerate().take(rows) {
        let firsts = &groups.firsts;
        let same = |group: &u32| {
            let first = firsts[*group as usize] as usize;
            hashes[first] == hash
                && cells.same(first, cells, i, columns).unwrap_or_else(|e| {
                    failed = Some(e);
                    false
                })
        };
        // Not the hash itself: its top bits are much alike within a shard.
        match table.entry(hash.rotate_left(32), same, |group| hashes[firsts[*group as usize] as usize].rotate_left(32))
        {
            Entry::Occupied(entry) => groups.of_row.push(*entry.get()),
            Entry::Vacant(entry) => {
                let group = groups.firsts.len() as u32;
                entry.insert(group);
                groups.firsts.push(i as u32);
                groups.of_row.push(group);
            }
        }
    }
    match failed {
        Some(e) => Err(e),
        None => Ok(groups),
    }
}

/// The first row of `hashes`/`cells` that repeats an earlier one, and that earlier row.
pub(crate) fn first_repeat(
    rows: usize,
    hashes: &[u64],
    cells: &Cells,
    columns: &[usize],
) -> Result<Option<(usize, usize)>> {
    let groups = group(rows, hashes, cells, columns)?;
    Ok(groups.of_row.iter().enumerate().find_map(|(i, group)| {
        let first = groups.firsts[*group as usize] as usize;
        (first != i).then_some((first, i))
    }))
}

fn violation(message: &str, detail: String) -> Error {
    let e = Error::internal(format!("changelog violation: {message}"));
    if detail.is_empty() { e } else { e.with_detail(detail) }
}

fn absent(detail: String) -> Error {
    violation("deletion of a row that is not there", detail)
}

fn duplicate(key: String) -> Error {
    Error::new(SqlState::UniqueViolation, "duplicate key value violates unique constraint")
        .with_detail(format!("{key} already exists."))
}
