//! What the log says at a start, and how it is written anew when most of it is overwritten.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use catalog::{Catalog, CatalogChange, Relation, RelationKind};
use checkpoint::{DataDirectory, Disk, Log};
use flow::{ChangeBatch, Epoch, Error, RelationId, Result};
use tracing::{info, warn};

use crate::locks::Locks;
use crate::record;
use crate::recovery::{Found, RestoredJob, Since};
use crate::table::Table;

/// A log above this is rewritten at start when most of it is overwritten.
const REWRITE_LOG_BYTES_MIN: u64 = 16 << 20;

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

/// Reads the log twice: the catalog first, because which rows are derived by a sink depends on its last state, and so does
/// which jobs go on from the checkpoint.
pub(super) fn recover(
    directory: &DataDirectory,
    disk: Arc<dyn Disk>,
    locks: &Arc<Locks>,
    checkpoint: Option<&Found>,
) -> Result<Recovered> {
    let mut catalog = Catalog::new();
    let mut reserved = Epoch(0);
    // By sink: the number of the record from which on its rows count.
    let mut started: HashMap<RelationId, usize> = HashMap::new();
    let mut since = Since::default();
    // By relation, its newest epoch in the log.
    let mut changed: HashMap<RelationId, Epoch> = HashMap::new();
    let until = checkpoint.map_or(Epoch::MAX, |c| c.manifest.epoch);
    let mut number = 0;
    Log::open_on(Arc::clone(&disk), &directory.log_folder(), |bytes| {
        let record = record::decode_catalog(bytes)?;
        if let Some(snapshot) = record.catalog_snapshot {
            catalog = snapshot;
        }
        since.stuck.extend(record.stuck);
        if let Some(place) = record.kept_in {
            since.kept_in = Some(place);
        }
        for (relation, epoch) in record.merged {
            since.merged.insert(relation, epoch);
        }
        for change in &record.catalog {
            catalog.apply(change)?;
            for relation in shapes(change) {
                let newest = changed.entry(relation).or_default();
                *newest = record.epoch.max(*newest);
            }
            if record.epoch > until {
                since.altered.extend(shapes(change));
            }
        }
        reserved = reserved.max(record.reserved_epochs.unwrap_or_default());
        number += 1;
        if let Some(sink) = record.sink_started {
            started.insert(sink, number);
        }
        if let Some((job, first)) = record.job_started {
            since.started.insert(job, first);
        }
        Ok(())
    })?;
    let jobs = checkpoint.map_or_else(|| Ok(HashMap::new()), |found| found.restorable(&catalog, &since))?;
    // Only what a restored job reads is fed to anyone.
    let read: BTreeSet<RelationId> = jobs.values().flat_map(|job| job.inputs.iter().copied()).collect();
    // Rows mean what their table was when they were logged, so the catalog is lived through once more beside them.
    let mut tables: HashMap<RelationId, Arc<Table>> = HashMap::new();
    let mut unseen: BTreeMap<RelationId, Vec<(Epoch, ChangeBatch)>> = BTreeMap::new();
    let mut then = Catalog::new();
    number = 0;
    let log = Log::open_on(disk, &directory.log_folder(), |bytes| {
        number += 1;
        let record = record::decode(bytes)?;
        if let Some(snapshot) = record.catalog_snapshot {
            then = snapshot;
            for relation in then.relations().filter(|r| r.kind() == RelationKind::Table) {
                tables.insert(relation.oid, Arc::new(Table::new(relation, locks)?));
            }
        }
        for change in &record.catalog {
            then.apply(change)?;
            follow(change, &then, &catalog, &mut tables, locks)?;
        }
        for rows in record.rows {
            // A living sink derives all of its rows again; of a dropped one, what it derived last stays.
            let derived = rows.origin.is_some_and(|sink| {
                catalog.relation(sink).is_some() || started.get(&sink).is_some_and(|from| number < *from)
            });
            if record.epoch > until && read.contains(&rows.relation) && !derived {
                if tables.contains_key(&rows.relation) {
                    unseen.entry(rows.relation).or_default().push((record.epoch, rows.changes));
                }
                continue;
            }
            let newest = changed.entry(rows.relation).or_default();
            *newest = record.epoch.max(*newest);
            if let (Some(table), false) = (tables.get(&rows.relation), derived) {
                table.store.apply(0, Epoch(1), &rows.changes)?;
                table.store.maintain(Epoch(1))?;
            }
        }
        Ok(())
    })?;
    let live: usize = tables.values().map(|t: &Arc<Table>| t.store.bytes()).sum();
    let left: usize = unseen.values().flatten().map(|(_, changes)| changes.bytes()).sum();
    let log = if log.len() > REWRITE_LOG_BYTES_MIN && log.len() / 2 > (live + left) as u64 {
        info!(bytes = log.len(), "rewriting the log");
        for (relation, epoch) in &since.merged {
            let newest = changed.entry(*relation).or_default();
            *newest = (*newest).max(*epoch);
        }
        changed.retain(|relation, _| catalog.relation(*relation).is_some());
        rewrite(log, &catalog, &tables, reserved, &since, changed, &unseen)?
    } else {
        log
    };
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
        relation.kind() == RelationKind::Sink && !jobs.contains_key(&sink) && published
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

/// What a catalog change means for the tables, of which only those that are still there at the end are kept.
fn follow(
    change: &CatalogChange,
    then: &Catalog,
    last: &Catalog,
    tables: &mut HashMap<RelationId, Arc<Table>>,
    locks: &Arc<Locks>,
) -> Result<()> {
    match change {
        CatalogChange::CreateRelation(relation) | CatalogChange::Replace(relation) => {
            if let Some(relation) = then.relation(relation.oid).filter(|r| r.kind() == RelationKind::Table)
                && last.relation(relation.oid).is_some()
            {
                tables.insert(relation.oid, Arc::new(Table::new(relation, locks)?));
            }
        }
        CatalogChange::Reshape { relation, columns, .. } => {
            if let (Some(relation), Some(table)) = (then.relation(relation.oid), tables.get(&relation.oid)) {
                let reshaped = table.reshaped(relation, columns)?;
                tables.insert(relation.oid, Arc::new(reshaped));
            }
        }
        CatalogChange::Drop { relations, .. } => {
            for relation in relations {
                tables.remove(relation);
            }
        }
        _ => {}
    }
    Ok(())
}

/// The log that holds just the present state: the tables as the checkpoint's epoch has left them, and what restored jobs have not
/// seen of the time after it, still told apart.
fn rewrite(
    log: Log,
    catalog: &Catalog,
    tables: &HashMap<RelationId, Arc<Table>>,
    reserved: Epoch,
    since: &Since,
    changed: HashMap<RelationId, Epoch>,
    unseen: &BTreeMap<RelationId, Vec<(Epoch, ChangeBatch)>>,
) -> Result<Log> {
    let merged = record::merged(changed.into_iter().collect());
    let stuck = record::stuck(since.stuck.iter().copied().collect());
    let head = [record::catalog_snapshot(catalog), record::reserve_epochs(reserved), merged, stuck];
    let head = head.into_iter().chain(since.kept_in.iter().map(|place| record::kept_in(place)));
    let started = since.started.iter().map(|(job, first)| record::job_started(*job, *first));
    let mut scans = Vec::new();
    for (relation, table) in tables {
        scans.push((*relation, table.store.snapshot(Epoch(1))?.scan(None, 65_536)?));
    }
    let rows = scans
        .into_iter()
        .flat_map(|(relation, scan)| scan.map(move |batch| Ok((relation, ChangeBatch::insert(batch?), Epoch(0)))));
    let later = unseen.iter().flat_map(|(relation, all)| {
        all.iter().map(|(epoch, changes)| Ok::<_, Error>((*relation, changes.clone(), *epoch)))
    });
    let rows = rows.chain(later).map(|row: Result<_>| {
        let (relation, changes, epoch) = row?;
        record::rows(relation, changes, epoch)
    });
    log.rewrite(head.chain(started).chain(rows))
}
