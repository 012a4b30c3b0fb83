//! What the log says at a start, and the records that stand for it when most of it is overwritten.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use catalog::{Catalog, CatalogChange, Relation, RelationKind};
use checkpoint::Log;
use flow::{ChangeBatch, Epoch, RelationId, Result};
use state::owned;
use tracing::{info, warn};

use crate::compaction;
use crate::locks::Locks;
use crate::record::{self, Record};
use crate::recovery::{Found, RestoredJob, Since};
use crate::table::Table;

/// Rows of one record of a rewritten log.
pub(crate) const ROWS: usize = 65_536;

/// The log with everything read back from it.
pub(super) struct Recovered {
    pub log: Log,
    pub catalog: Catalog,
    pub tables: HashMap<RelationId, Arc<Table>>,
    pub reserved: Epoch,
    pub left: Recovery,
}

/// What is left to do after the log was read.
#[derive(Default)]
pub(super) struct Recovery {
    /// What restored jobs have not seen of their tables.
    pub unseen: BTreeMap<RelationId, Vec<ChangeBatch>>,
    pub jobs: HashMap<RelationId, RestoredJob>,
    /// Sinks that have published and cannot go on.
    pub stuck: BTreeSet<RelationId>,
    /// Those of them of which no later start would know otherwise.
    pub newly_stuck: Vec<RelationId>,
    /// Where the log says that checkpoints are kept.
    pub kept_in: Option<String>,
}

/// What records say, read one after the other, but for rows.
pub(crate) struct Facts {
    /// As the last record has left it.
    pub catalog: Catalog,
    pub reserved: Epoch,
    pub since: Since,
    /// By relation, its newest epoch.
    pub changed: HashMap<RelationId, Epoch>,
    /// By sink into a table: the number of the record from which on its rows count.
    sinks_started: HashMap<RelationId, usize>,
    number: usize,
}

impl Facts {
    pub fn new() -> Facts {
        Facts {
            catalog: Catalog::new(),
            reserved: Epoch(0),
            since: Since::default(),
            changed: HashMap::new(),
            sinks_started: HashMap::new(),
            number: 0,
        }
    }

    /// `until` is the checkpoint's epoch.
    pub fn take(&mut self, record: Record, until: Epoch) -> Result<()> {
        self.number += 1;
        if let Some(snapshot) = record.catalog_snapshot {
            self.catalog = snapshot;
        }
        self.since.stuck.extend(record.stuck);
        self.since.merged.extend(record.merged);
        self.since.started.extend(record.job_started);
        self.since.kept_in = record.kept_in.or(self.since.kept_in.take());
        for change in &record.catalog {
            self.catalog.apply(change)?;
            for relation in shapes(change) {
                self.note_change(relation, record.epoch);
                if record.epoch > until {
                    self.since.altered.insert(relation);
                }
            }
        }
        self.reserved = self.reserved.max(record.reserved_epochs.unwrap_or_default());
        if let Some(sink) = record.sink_started {
            self.sinks_started.insert(sink, self.number);
        }
        Ok(())
    }

    pub fn note_change(&mut self, relation: RelationId, epoch: Epoch) {
        let newest = self.changed.entry(relation).or_default();
        *newest = epoch.max(*newest);
    }

    /// Whether rows of record `number` (from 1) are derived anew: those of a living sink are; of a dropped one, what it derived last
    /// stays.
    pub fn is_derived(&self, origin: Option<RelationId>, number: usize) -> bool {
        origin.is_some_and(|sink| {
            self.catalog.relation(sink).is_some() || self.sinks_started.get(&sink).is_some_and(|from| number < *from)
        })
    }

    /// The records that say all this; those of rows follow them.
    pub fn head(&self) -> Result<Vec<Vec<u8>>> {
        let mut merged = self.changed.clone();
        for (relation, epoch) in &self.since.merged {
            let newest = merged.entry(*relation).or_default();
            *newest = (*newest).max(*epoch);
        }
        merged.retain(|relation, _| self.catalog.relation(*relation).is_some());
        let mut head = vec![
            record::catalog_snapshot(&self.catalog)?,
            record::reserve_epochs(self.reserved)?,
            record::merged(merged.into_iter().collect())?,
            record::stuck(self.since.stuck.iter().copied().collect())?,
        ];
        if let Some(place) = &self.since.kept_in {
            head.push(record::kept_in(place)?);
        }
        let started: BTreeMap<_, _> = self.since.started.iter().collect();
        for (job, first) in started {
            head.push(record::job_started(*job, *first)?);
        }
        let sinks: BTreeSet<_> = self.sinks_started.keys().filter(|s| self.catalog.relation(**s).is_some()).collect();
        for sink in sinks {
            head.push(record::sink_started(*sink)?);
        }
        Ok(head)
    }
}

/// The tables that the records of a log make. Rows mean what their table was when they were logged, so the catalog is lived through
/// once more beside them.
pub(crate) struct Tables {
    pub tables: HashMap<RelationId, Arc<Table>>,
    then: Catalog,
    locks: Arc<Locks>,
}

impl Tables {
    pub fn new(locks: &Arc<Locks>) -> Tables {
        Tables { tables: HashMap::new(), then: Catalog::new(), locks: Arc::clone(locks) }
    }

    /// Follows what the record does to the catalog. Only tables that are in `last` are kept.
    pub fn follow(&mut self, record: &mut Record, last: &Catalog) -> Result<()> {
        if let Some(snapshot) = record.catalog_snapshot.take() {
            self.then = snapshot;
            for relation in self.then.relations().filter(|r| r.kind() == RelationKind::Table) {
                self.tables.insert(relation.oid, Arc::new(Table::new(relation, &self.locks)?));
            }
        }
        for change in &record.catalog {
            self.then.apply(change)?;
            self.follow_change(change, last)?;
        }
        Ok(())
    }

    fn follow_change(&mut self, change: &CatalogChange, last: &Catalog) -> Result<()> {
        match change {
            CatalogChange::CreateRelation(relation) | CatalogChange::Replace(relation) => {
                if let Some(relation) = self.then.relation(relation.oid).filter(|r| r.kind() == RelationKind::Table)
                    && last.relation(relation.oid).is_some()
                {
                    self.tables.insert(relation.oid, Arc::new(Table::new(relation, &self.locks)?));
                }
            }
            CatalogChange::Reshape { relation, columns, .. } => {
                if let (Some(relation), Some(table)) =
                    (self.then.relation(relation.oid), self.tables.get(&relation.oid))
                {
                    let reshaped = table.reshaped(relation, columns)?;
                    self.tables.insert(relation.oid, Arc::new(reshaped));
                }
            }
            CatalogChange::Drop { relations, .. } => {
                for relation in relations {
                    self.tables.remove(relation);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Adds rows to a table, if it is there.
    pub fn apply(&self, relation: RelationId, changes: &ChangeBatch) -> Result<()> {
        if let Some(table) = self.tables.get(&relation) {
            table.store.apply(0, Epoch(1), changes)?;
            table.store.maintain(Epoch(1))?;
        }
        Ok(())
    }
}

/// Rows of a table as a record of a rewritten log, of no epoch.
pub(crate) fn row_record(relation: RelationId, rows: &RecordBatch, origin: Option<RelationId>) -> Result<Vec<u8>> {
    // A slice of texts would be written with all that it is a slice of.
    let columns = rows.columns().iter().map(owned).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    let rows = RecordBatch::try_new_with_options(rows.schema(), columns, &options)?;
    record::rows(relation, ChangeBatch::insert(rows), Epoch(0), origin)
}

/// Opens the log with `open` and reads it twice: the catalog first, because which rows are derived by a sink depends on its last
/// state, and so does which jobs go on from the checkpoint. A log above `log_bytes_min` is rewritten when most of it is
/// overwritten.
pub(super) fn recover(
    open: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Log>,
    locks: &Arc<Locks>,
    checkpoint: Option<&Found>,
    log_bytes_min: u64,
) -> Result<Recovered> {
    let until = checkpoint.map_or(Epoch::MAX, |c| c.manifest.epoch);
    let mut facts = Facts::new();
    let log = open(&mut |bytes: &[u8]| facts.take(record::decode_catalog(bytes)?, until))?;
    let jobs = checkpoint.map_or_else(|| Ok(HashMap::new()), |found| found.restorable(&facts.catalog, &facts.since))?;
    // Only what a restored job reads is fed to anyone.
    let read: BTreeSet<RelationId> = jobs.values().flat_map(|job| job.inputs.iter().copied()).collect();
    let mut tables = Tables::new(locks);
    let mut unseen: BTreeMap<RelationId, Vec<(Epoch, ChangeBatch)>> = BTreeMap::new();
    let mut number = 0;
    for bytes in log.records(log.end())? {
        number += 1;
        let mut record = record::decode(&bytes?)?;
        tables.follow(&mut record, &facts.catalog)?;
        for rows in record.rows {
            let derived = facts.is_derived(rows.origin, number);
            if record.epoch > until && read.contains(&rows.relation) && !derived {
                if tables.tables.contains_key(&rows.relation) {
                    unseen.entry(rows.relation).or_default().push((record.epoch, rows.changes));
                }
                continue;
            }
            facts.note_change(rows.relation, record.epoch);
            if !derived {
                tables.apply(rows.relation, &rows.changes)?;
            }
        }
    }
    let tables = tables.tables;
    let live: usize = tables.values().map(|t| t.store.bytes()).sum();
    let left: usize = unseen.values().flatten().map(|(_, changes)| changes.bytes()).sum();
    if compaction::is_overwritten(log.len(), (live + left) as u64, log_bytes_min) {
        info!(bytes = log.len(), "rewriting the log");
        rewrite(&log, &facts, &tables, &unseen)?;
    }
    let Facts { catalog, reserved, since, .. } = facts;
    // Checkpoints that are gone, or are looked for in another place, knew what sinks have published.
    let lost = checkpoint.is_none() && since.kept_in.is_some();
    if let (true, Some(place)) = (lost, &since.kept_in) {
        warn!(place, "no checkpoint is found, though the log says where they are kept");
    }
    let is_stuck = |relation: &&Arc<Relation>| {
        let sink = relation.oid;
        let published = match checkpoint {
            Some(found) => found.has_published(sink, &since),
            None => since.started.contains_key(&sink) && (lost || since.stuck.contains(&sink)),
        };
        // One whose connector is not known here cannot start either.
        let once = crate::connectors::delivers_once(relation).unwrap_or(true);
        relation.kind() == RelationKind::Sink && once && !jobs.contains_key(&sink) && published
    };
    let stuck: BTreeSet<RelationId> = catalog.relations().filter(is_stuck).map(|r| r.oid).collect();
    let lasting = lost || checkpoint.is_some_and(|c| c.rewound);
    let newly_stuck = stuck.iter().filter(|sink| lasting && !since.stuck.contains(sink)).copied().collect();
    let without_epochs = |(relation, all): (RelationId, Vec<(Epoch, ChangeBatch)>)| {
        (relation, all.into_iter().map(|(_, changes)| changes).collect())
    };
    let unseen = unseen.into_iter().map(without_epochs).collect();
    let left = Recovery { unseen, jobs, stuck, newly_stuck, kept_in: since.kept_in };
    Ok(Recovered { log, catalog, tables, reserved, left })
}

/// Relations whose rows are something else after this change.
fn shapes(change: &CatalogChange) -> Vec<RelationId> {
    match change {
        CatalogChange::CreateRelation(relation) | CatalogChange::Replace(relation) => vec![relation.oid],
        CatalogChange::Reshape { relation, .. } => vec![relation.oid],
        CatalogChange::Drop { relations, .. } => relations.clone(),
        _ => Vec::new(),
    }
}

/// Leaves a log that holds just the present state: the tables as the checkpoint's epoch has left them, and what restored jobs have
/// not seen of the time after it, still told apart.
fn rewrite(
    log: &Log,
    facts: &Facts,
    tables: &HashMap<RelationId, Arc<Table>>,
    unseen: &BTreeMap<RelationId, Vec<(Epoch, ChangeBatch)>>,
) -> Result<()> {
    let mut rewrite = log.begin_rewrite()?;
    for record in facts.head()? {
        rewrite.append(&record)?;
    }
    let tables: BTreeMap<_, _> = tables.iter().collect();
    for (relation, table) in tables {
        for rows in table.store.snapshot(Epoch(1))?.scan(None, ROWS)? {
            rewrite.append(&row_record(*relation, &rows?, None)?)?;
        }
    }
    for (relation, all) in unseen {
        for (epoch, changes) in all {
            rewrite.append(&record::rows(*relation, changes.clone(), *epoch, None)?)?;
        }
    }
    rewrite.take_place(log, log.end())
}
