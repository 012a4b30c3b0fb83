//! What an open transaction has done to the catalog, for its own eyes until COMMIT.
//!
//! Law: the transaction owns the catalog ([`crate::locks`]) from its first DDL statement to its end, so the catalog that
//! it goes on from is the server's, and its OIDs are free. Nothing here has an effect outside before the commit: tables
//! exist but are unknown to others, views have no job yet and are read as their queries.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use catalog::{Catalog, CatalogChange, Definition, Relation, RelationKind};
use flow::{Error, RelationId, Result, SqlState};
use plan::ProcessPlan;
use plan::process::ViewTraits;
use tracing::error;

use crate::engine::Engine;
use crate::table::Table;

/// A view or sink whose job starts at the commit.
#[derive(Clone)]
pub struct PendingJob {
    pub relation: Arc<Relation>,
    pub plan: ProcessPlan,
    pub inputs: BTreeSet<RelationId>,
    pub traits: ViewTraits,
}

/// A source that a transaction has stopped to read. If the transaction comes to nothing, the source goes on.
pub struct Hold {
    engine: Arc<Engine>,
    relation: RelationId,
    kept: AtomicBool,
}

impl Hold {
    /// Stops the reading; gives where it stands.
    pub fn new(engine: &Arc<Engine>, relation: RelationId) -> (Hold, BTreeMap<String, u64>) {
        let stands = engine.sources.hold(relation);
        (Hold { engine: Arc::clone(engine), relation, kept: AtomicBool::new(false) }, stands)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Relaxed) {
            self.engine.sources.set_reading(&self.engine.catalog(), Some(self.relation));
        }
    }
}

/// A transaction's own version of the catalog. Clones share everything; a savepoint keeps one.
#[derive(Clone)]
pub struct PrivateCatalog {
    pub catalog: Catalog,
    changes: Vec<CatalogChange>,
    /// Tables made or reshaped by the transaction.
    tables: HashMap<RelationId, Arc<Table>>,
    /// Relations of the server's catalog that are gone or replaced, dependants first.
    gone: Vec<Arc<Relation>>,
    jobs: Vec<PendingJob>,
    sources: Vec<RelationId>,
    holds: Vec<Arc<Hold>>,
}

impl PrivateCatalog {
    pub fn new(catalog: Catalog) -> PrivateCatalog {
        PrivateCatalog {
            catalog,
            changes: Vec::new(),
            tables: HashMap::new(),
            gone: Vec::new(),
            jobs: Vec::new(),
            sources: Vec::new(),
            holds: Vec::new(),
        }
    }

    pub fn changes(&self) -> &[CatalogChange] {
        &self.changes
    }

    /// Applies a change for this transaction.
    pub fn apply(&mut self, change: CatalogChange) -> Result<()> {
        self.catalog.apply(&change)?;
        self.changes.push(change);
        Ok(())
    }

    /// A table that others do not know, or not in this shape.
    pub fn table(&self, relation: RelationId) -> Option<&Arc<Table>> {
        self.tables.get(&relation)
    }

    pub fn add_table(&mut self, table: Arc<Table>) {
        self.tables.insert(table.relation, table);
    }

    pub fn add_source(&mut self, relation: RelationId) {
        self.sources.push(relation);
    }

    pub fn add_hold(&mut self, hold: Hold) {
        self.holds.push(Arc::new(hold));
    }

    pub fn add_job(&mut self, job: PendingJob) {
        self.jobs.push(job);
    }

    /// The traits of a view whose job has not started.
    pub fn pending_view(&self, relation: RelationId) -> Option<&ViewTraits> {
        self.jobs.iter().find(|j| j.relation.oid == relation).map(|j| &j.traits)
    }

    /// Forgets the storage of a relation: it is dropped or replaced. `known` is the relation as others know it, if they do.
    pub fn remove(&mut self, relation: RelationId, known: Option<&Arc<Relation>>) {
        self.tables.remove(&relation);
        self.jobs.retain(|j| j.relation.oid != relation);
        self.sources.retain(|s| *s != relation);
        if let Some(known) = known
            && !self.gone.iter().any(|g| g.oid == relation)
        {
            self.gone.push(Arc::clone(known));
        }
    }

    /// Tables that have been dropped.
    pub fn gone_tables(&self) -> Vec<RelationId> {
        let dropped = self.gone.iter().filter(|r| r.kind() == RelationKind::Table && !self.tables.contains_key(&r.oid));
        dropped.map(|r| r.oid).collect()
    }

    /// Makes everything visible to others; the changes are in the log.
    pub fn publish(&self, engine: &Engine) {
        for job in &self.jobs {
            if job.relation.kind() == RelationKind::MaterializedView {
                // Who reads the view before its job has caught up waits.
                engine.clock.board.expect(job.relation.oid);
            }
        }
        let tables: Vec<Arc<Table>> = self.tables.values().cloned().collect();
        engine.publish_catalog(&self.catalog, &tables, &self.gone_tables());
        if self.changes.iter().any(|change| matches!(change, CatalogChange::SetReading { .. })) {
            engine.sources.set_reading(&self.catalog, None);
        }
        if self.changes.iter().any(|change| matches!(change, CatalogChange::SetSystem { .. })) {
            engine.apply_system(&self.catalog);
        }
        self.holds.iter().for_each(|hold| hold.kept.store(true, Ordering::Relaxed));
    }

    /// After the commit: stops what is gone, opens sources, starts jobs. Gives the views that catch up now.
    pub async fn start(self, engine: Arc<Engine>) -> Result<Vec<RelationId>> {
        if !self.gone.is_empty() {
            engine.drop_storage(&self.gone).await?;
        }
        for oid in &self.sources {
            let catalog = engine.catalog();
            let Some(relation) = catalog.relation(*oid) else { continue };
            if let Err(error) = engine.open_source(relation) {
                engine.clock.board.set_failed(*oid, error.clone());
                return Err(error);
            }
        }
        let mut views = Vec::new();
        for job in self.jobs {
            let oid = job.relation.oid;
            let keys = job.traits.unique_keys.clone();
            if job.relation.kind() == RelationKind::MaterializedView {
                engine.clock.board.expect(oid);
                engine.set_view_traits(oid, job.traits);
                views.push(oid);
            }
            if let Err(failed) = engine.start_job(&job.relation, job.plan, &keys, job.inputs).await {
                error!(relation = job.relation.name, error = %failed, "job cannot be started");
                engine.clock.board.set_failed(oid, failed.clone());
                return Err(failed);
            }
        }
        Ok(views)
    }
}

/// Refuses DDL that cannot be part of a transaction block.
pub fn refuse_in_block(tag: &str) -> Error {
    Error::new(SqlState::ActiveSqlTransaction, format!("{tag} cannot run inside a transaction block"))
        .with_hint("Run it before BEGIN or after COMMIT.")
}

/// Whether a relation's definition is a query of its own.
pub fn query_text(relation: &Relation) -> Option<&str> {
    match &relation.definition {
        Definition::View(query) | Definition::MaterializedView(query) => Some(&query.sql),
        _ => None,
    }
}
