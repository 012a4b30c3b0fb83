//! Tables at their head: constraint checks, the write set of a transaction, and its commit.
//!
//! Law: whoever changes a table holds its head lock from the first write to the commit, so what a statement sees of a
//! table it writes is the head plus its own changes. A commit applies to the stores in the open epoch, is logged, and only
//! then joins the epoch's input; if the log refuses it, the stores are put back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use catalog::{OnConflict, Relation};
use flow::keys::KeyEncoder;
use flow::{ChangeBatch, Epoch, Error, RelationId, Result, SqlState};
use indexmap::IndexMap;
use runtime::Budget;
use runtime::ops::consolidate;
use state::{Identity, Store};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::clock::Clock;
use crate::record;

/// How long a statement waits for another transaction's table lock before it is taken for a deadlock.
const DEADLOCK_WAIT: Duration = Duration::from_secs(30);

/// A table's rows and the lock of its head.
pub struct Table {
    pub relation: RelationId,
    pub store: Arc<Store>,
    head: Arc<Mutex<()>>,
}

impl Table {
    /// An empty table as `relation` declares it.
    pub fn new(relation: &Relation) -> Result<Table> {
        let schema = Arc::new(relation.arrow_schema());
        let append_only = relation.table().is_some_and(|t| t.append_only);
        let identity = match relation.primary_key() {
            [] if append_only => Identity::Unindexed,
            [] => Identity::Row,
            key => Identity::Key(key.to_vec()),
        };
        Ok(Table { relation: relation.oid, store: Store::with_identity(schema, identity, 1)?, head: Arc::default() })
    }

    /// Takes the head lock. `timeout` is the session's `lock_timeout`.
    pub async fn lock(&self, timeout: Option<Duration>) -> Result<OwnedMutexGuard<()>> {
        let lock = Arc::clone(&self.head).lock_owned();
        match tokio::time::timeout(timeout.unwrap_or(DEADLOCK_WAIT), lock).await {
            Ok(guard) => Ok(guard),
            Err(_) if timeout.is_some() => {
                Err(Error::new(SqlState::LockNotAvailable, "canceling statement due to lock timeout"))
            }
            Err(_) => Err(Error::new(SqlState::DeadlockDetected, "deadlock detected")
                .with_detail(format!("The table's lock was not free for {} s.", DEADLOCK_WAIT.as_secs()))
                .with_hint("Write tables in the same order in every transaction, and keep transactions short.")),
        }
    }
}

/// Where the newest version of a key is, as this transaction sees it.
#[derive(Clone, Copy)]
enum Own {
    /// Taken away by this transaction.
    Deleted,
    /// Row `row` of change `change`.
    Inserted { change: usize, row: usize },
}

/// What one transaction does to one table.
pub struct TableWrites {
    table: Arc<Table>,
    relation: Arc<Relation>,
    _head: OwnedMutexGuard<()>,
    changes: Vec<ChangeBatch>,
    own: HashMap<Box<[u8]>, Own>,
    keys: Option<KeyEncoder>,
}

impl TableWrites {
    pub fn new(table: Arc<Table>, relation: Arc<Relation>, head: OwnedMutexGuard<()>) -> Result<TableWrites> {
        let key = relation.primary_key();
        let types: Vec<_> = key.iter().map(|c| relation.columns[*c].data_type.clone()).collect();
        let keys = if key.is_empty() { None } else { Some(KeyEncoder::new(&types)?) };
        Ok(TableWrites { table, relation, _head: head, changes: Vec::new(), own: HashMap::new(), keys })
    }

    /// The changes so far: reading the table in this transaction is its head plus these.
    pub fn changes(&self) -> &[ChangeBatch] {
        &self.changes
    }

    /// Adds rows that have the table's columns. Returns how many were added.
    ///
    /// Errors: `23502` NULL in a NOT NULL column, `23505` a key that exists (with [`OnConflict::Error`]).
    pub fn insert(&mut self, rows: RecordBatch, on_conflict: OnConflict) -> Result<u64> {
        self.not_null(&rows)?;
        let rows = RecordBatch::try_new(Arc::clone(self.table.store.schema()), rows.columns().to_vec())?;
        let count = rows.num_rows();
        if count == 0 {
            return Ok(0);
        }
        let Some(keys) = &self.keys else {
            self.changes.push(ChangeBatch::insert(rows));
            return Ok(count as u64);
        };
        let key_columns: Vec<ArrayRef> =
            self.relation.primary_key().iter().map(|c| Arc::clone(rows.column(*c))).collect();
        let encoded = keys.encode(&key_columns)?;
        let head = self.table.store.head()?;
        let stored = head.lookup_keys(&key_columns)?;
        // Where the rows of this call will stand if any is kept; rows keep their place in `kept`.
        let change = self.changes.len();
        let mut kept: Vec<Option<u32>> = Vec::with_capacity(count);
        let mut replaced = Vec::new();
        let mut superseded: Vec<(usize, usize)> = Vec::new();
        for (row, id) in stored.iter().enumerate() {
            let key = encoded.row(row);
            let existing = self.own.get(key.data()).copied();
            let exists = match existing {
                Some(Own::Deleted) => false,
                Some(Own::Inserted { .. }) => true,
                None => id.is_some(),
            };
            if exists {
                match on_conflict {
                    OnConflict::Error => return Err(self.duplicate_key(&key_columns, row)),
                    OnConflict::DoNothing => continue,
                    OnConflict::Overwrite => match existing {
                        Some(Own::Inserted { change: c, row: r }) if c == change => kept[r] = None,
                        Some(Own::Inserted { change, row }) => superseded.push((change, row)),
                        _ => replaced.extend(*id),
                    },
                }
            }
            self.own.insert(key.data().into(), Own::Inserted { change, row: kept.len() });
            kept.push(Some(row as u32));
        }
        let added = kept.len() as u64;
        // A row that a later one of the same call overwrites is never added, but keeps its place for `own`.
        let all = UInt32Array::from_iter_values(kept.iter().map(|k| k.unwrap_or(0)));
        if added > 0 {
            let rows = take_record_batch(&rows, &all)?;
            self.changes.push(ChangeBatch::insert(rows));
        }
        let cancelled: Vec<u32> = kept.iter().enumerate().filter(|(_, k)| k.is_none()).map(|(i, _)| i as u32).collect();
        if !cancelled.is_empty() {
            let rows = self.changes[change].take(&UInt32Array::from(cancelled))?.rows;
            self.changes.push(ChangeBatch::delete(rows));
        }
        if !replaced.is_empty() {
            self.changes.push(ChangeBatch::delete(head.take(&replaced, None)?));
        }
        for (change, row) in superseded {
            let old = self.changes[change].slice(row, 1).rows;
            self.changes.push(ChangeBatch::delete(old));
        }
        Ok(added)
    }

    /// Takes away rows, given whole, that the transaction sees.
    pub fn delete(&mut self, rows: RecordBatch) -> Result<u64> {
        let count = rows.num_rows() as u64;
        if count == 0 {
            return Ok(0);
        }
        if self.relation.table().is_some_and(|t| t.append_only) {
            return Err(Error::new(
                SqlState::WrongObjectType,
                format!("table \"{}\" is append-only", self.relation.name),
            )
            .with_hint("Its rows cannot be updated or deleted; create the table without APPEND ONLY."));
        }
        let rows = RecordBatch::try_new(Arc::clone(self.table.store.schema()), rows.columns().to_vec())?;
        if let Some(keys) = &self.keys {
            let columns: Vec<ArrayRef> =
                self.relation.primary_key().iter().map(|c| Arc::clone(rows.column(*c))).collect();
            for key in &keys.encode(&columns)? {
                self.own.insert(key.data().into(), Own::Deleted);
            }
        }
        self.changes.push(ChangeBatch::delete(rows));
        Ok(count)
    }

    fn not_null(&self, rows: &RecordBatch) -> Result<()> {
        for (column, values) in self.relation.columns.iter().zip(rows.columns()) {
            if !column.nullable && values.null_count() > 0 {
                let row = (0..values.len()).find(|i| values.is_null(*i)).unwrap_or(0);
                return Err(Error::new(
                    SqlState::NotNullViolation,
                    format!(
                        "null value in column \"{}\" of relation \"{}\" violates not-null constraint",
                        column.name, self.relation.name
                    ),
                )
                .with_detail(format!("Failing row contains ({}).", display_row(rows.columns(), row))));
            }
        }
        Ok(())
    }

    fn duplicate_key(&self, key: &[ArrayRef], row: usize) -> Error {
        let table = self.relation.table();
        let constraint = table
            .and_then(|t| t.key.as_ref())
            .map_or_else(|| format!("{}_pkey", self.relation.name), |k| k.name.clone());
        let columns: Vec<&str> =
            self.relation.primary_key().iter().map(|c| self.relation.columns[*c].name.as_str()).collect();
        Error::new(
            SqlState::UniqueViolation,
            format!("duplicate key value violates unique constraint \"{constraint}\""),
        )
        .with_detail(format!("Key ({})=({}) already exists.", columns.join(", "), display_row(key, row)))
    }

    fn net(&mut self) -> Result<ChangeBatch> {
        let schema = Arc::clone(self.table.store.schema());
        let changes = std::mem::take(&mut self.changes);
        if changes.iter().all(|c| c.diff == flow::Diff::Insert) {
            ChangeBatch::concat(&schema, &changes)
        } else {
            consolidate(changes, &schema)
        }
    }
}

/// The values of one row as PostgreSQL's details show them.
fn display_row(columns: &[ArrayRef], row: usize) -> String {
    let options = FormatOptions::default().with_null("null");
    let show = |c: &ArrayRef| match ArrayFormatter::try_new(c.as_ref(), &options) {
        Ok(formatter) => formatter.value(row).to_string(),
        Err(_) => "?".to_string(),
    };
    columns.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// What one transaction does to all tables.
#[derive(Default)]
pub struct WriteSet {
    tables: IndexMap<RelationId, TableWrites>,
    /// Set for the writes of `CREATE SINK … INTO`.
    origin: Option<RelationId>,
}

impl WriteSet {
    /// A write set whose rows are derived by sink `origin`.
    pub fn of_sink(origin: RelationId) -> WriteSet {
        WriteSet { tables: IndexMap::new(), origin: Some(origin) }
    }

    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    pub fn get(&self, relation: RelationId) -> Option<&TableWrites> {
        self.tables.get(&relation)
    }

    /// The writes to `table`, taking its head lock on first use.
    pub async fn writes(
        &mut self,
        table: &Arc<Table>,
        relation: &Arc<Relation>,
        timeout: Option<Duration>,
    ) -> Result<&mut TableWrites> {
        if !self.tables.contains_key(&table.relation) {
            let head = table.lock(timeout).await?;
            let writes = TableWrites::new(Arc::clone(table), Arc::clone(relation), head)?;
            self.tables.insert(table.relation, writes);
        }
        self.tables.get_mut(&table.relation).ok_or_else(|| Error::internal("write set lost a table"))
    }

    /// [`writes`](Self::writes) for a thread without a runtime.
    pub fn writes_blocking(&mut self, table: &Arc<Table>, relation: &Arc<Relation>) -> Result<&mut TableWrites> {
        if !self.tables.contains_key(&table.relation) {
            let head = Arc::clone(&table.head).blocking_lock_owned();
            let writes = TableWrites::new(Arc::clone(table), Arc::clone(relation), head)?;
            self.tables.insert(table.relation, writes);
        }
        self.tables.get_mut(&table.relation).ok_or_else(|| Error::internal("write set lost a table"))
    }

    /// Commits everything in one epoch and one log record. Returns the epoch, or `None` when nothing changed. The caller
    /// waits for durability before it acknowledges. `floor` is the oldest epoch that readers may still want.
    pub fn commit(self, clock: &Clock, log: &checkpoint::Log, budget: &Budget, floor: Epoch) -> Result<Option<Epoch>> {
        let mut net = Vec::new();
        let mut tables = Vec::new();
        let mut guards = Vec::new();
        for (relation, mut writes) in self.tables {
            let changes = writes.net()?;
            if changes.num_rows() > 0 {
                net.push((relation, changes));
                tables.push(Arc::clone(&writes.table));
            }
            guards.push(writes);
        }
        if net.is_empty() {
            return Ok(None);
        }
        let record = record::rows(&net, self.origin)?;
        let epoch = clock.commit(true, |epoch| {
            let mut applied = 0;
            let mut outcome = Ok(());
            for ((_, changes), table) in net.iter().zip(&tables) {
                let before = table.store.bytes();
                outcome = table.store.apply(0, epoch, changes);
                if outcome.is_err() {
                    break;
                }
                applied += 1;
                outcome = budget.change(before, table.store.bytes());
                if outcome.is_err() {
                    break;
                }
            }
            let outcome = outcome.and_then(|()| log.append(&[&record]).map(|_| ()));
            if let Err(error) = outcome {
                for ((_, changes), table) in net.iter().zip(&tables).take(applied) {
                    let before = table.store.bytes();
                    table.store.apply(0, epoch, &ChangeBatch::new(changes.rows.clone(), changes.diff.negate()))?;
                    // Only growth can be refused, and this gives back.
                    let _ = budget.change(before, table.store.bytes());
                }
                return Err(error);
            }
            Ok(net)
        })?;
        for table in &tables {
            let before = table.store.bytes();
            table.store.maintain(floor)?;
            let _ = budget.change(before, table.store.bytes());
        }
        drop(guards);
        Ok(Some(epoch))
    }
}
