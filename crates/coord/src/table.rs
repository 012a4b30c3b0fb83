//! Tables at their head: constraint checks, the write set of a transaction, and its commit.
//!
//! Law: a statement that changes a table holds the table's *latch* while it reads the head and takes the locks of the
//! rows that it changes ([`crate::locks`]); a commit holds the latches of all tables that it changes. So what a statement
//! sees of a table it writes is the head plus its own changes, and what it has locked stays so until its transaction ends.
//! Nobody waits for a row while holding a latch: a statement that meets a locked row lets go, waits and looks again. A
//! commit applies to the stores in the open epoch, is logged, and only then joins the epoch's input; if the log refuses
//! it, the stores are put back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{interleave_record_batch, take, take_record_batch};
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use catalog::{CatalogChange, ColumnSource, OnConflict, Relation, Watermark};
use connect::Split;
use flow::hash::hash_columns;
use flow::keys::KeyEncoder;
use flow::{ChangeBatch, Epoch, Error, RelationId, Result, SqlState};
use hashbrown::{HashMap, HashSet};
use indexmap::IndexMap;
use query::RelationRows;
use query::read::{Changes, RowIterator};
use runtime::Budget;
use runtime::ops::consolidate;
use state::{Identity, Snapshot, Store};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::clock::Clock;
use crate::gate::{Gate, Passed};
use crate::locks::{Busy, Locks, Owner};
use crate::record;
use crate::sides::{self, SideTable};

/// Rows copied at a time when a table changes its shape.
const RESHAPE_ROWS: usize = 65_536;

/// Rows of a table in its new shape.
///
/// Errors: `23502` when a column that is NOT NULL now holds a NULL.
pub fn reshape(schema: &SchemaRef, columns: &[ColumnSource], rows: &RecordBatch) -> Result<RecordBatch> {
    let count = rows.num_rows();
    let arrays = columns
        .iter()
        .map(|source| match source {
            ColumnSource::Kept(column) => rows
                .columns()
                .get(*column)
                .cloned()
                .ok_or_else(|| Error::internal("a reshaped table keeps a column that it does not have")),
            ColumnSource::Value(encoded) => {
                let value = flow::wire::decode(encoded)?.rows;
                let value = value.columns().first().ok_or_else(|| Error::internal("a value without a column"))?;
                Ok(take(value.as_ref(), &UInt32Array::from_value(0, count), None)?)
            }
        })
        .collect::<Result<Vec<_>>>()?;
    for (field, values) in schema.fields().iter().zip(&arrays) {
        if !field.is_nullable() && values.null_count() > 0 {
            return Err(Error::new(
                SqlState::NotNullViolation,
                format!("column \"{}\" contains null values", field.name()),
            ));
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(count));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)?)
}

/// A value for [`ColumnSource::Value`]: an array of one row.
pub fn encode_value(value: &ArrayRef) -> Result<Vec<u8>> {
    let schema = Schema::new(vec![Field::new("value", value.data_type().clone(), true)]);
    flow::wire::encode(&ChangeBatch::insert(RecordBatch::try_new(Arc::new(schema), vec![Arc::clone(value)])?))
}

/// A table's rows, the latch of its head, and the locks that its writers take.
pub struct Table {
    pub relation: RelationId,
    pub store: Arc<Store>,
    latch: Arc<Mutex<()>>,
    locks: Arc<Locks>,
    /// Set once, when the table becomes visible, if it declares a watermark.
    gate: OnceLock<TableGate>,
    /// The newest epoch of a commit in the head.
    changed: AtomicU64,
}

/// The gate of a table, and where its late rows go.
pub struct TableGate {
    gate: Arc<Gate>,
    late: parking_lot::Mutex<SideTable>,
}

/// A table is one split.
const SPLIT: &str = "0";

impl Table {
    /// An empty table as `relation` declares it.
    pub fn new(relation: &Relation, locks: &Arc<Locks>) -> Result<Table> {
        let schema = Arc::new(relation.arrow_schema());
        // Rows of a side table leave it when newer ones come.
        let append_only = relation.table().is_some_and(|t| t.append_only && t.side.is_none());
        let identity = match relation.primary_key() {
            [] if append_only => Identity::Unindexed,
            [] => Identity::Row,
            key => Identity::Key(key.to_vec()),
        };
        let store = Store::with_identity(schema, identity, 1)?;
        Ok(Table {
            relation: relation.oid,
            store,
            latch: Arc::default(),
            locks: Arc::clone(locks),
            gate: OnceLock::new(),
            changed: AtomicU64::new(0),
        })
    }

    /// The newest epoch that a look at the head may have shown: durable rows only, once that is.
    pub fn changed(&self) -> Epoch {
        Epoch(self.changed.load(Ordering::Acquire))
    }

    /// The table in a new shape, with the rows of its head, seen by every reader. Nobody may write meanwhile, and every
    /// commit of it must be complete.
    pub fn reshaped(&self, relation: &Relation, columns: &[ColumnSource]) -> Result<Table> {
        let table = Table::new(relation, &self.locks)?;
        for rows in self.store.head()?.scan(None, RESHAPE_ROWS)? {
            let rows = reshape(table.store.schema(), columns, &rows?)?;
            table.store.apply(0, Epoch(1), &ChangeBatch::insert(rows))?;
        }
        Ok(table)
    }

    /// Puts a gate before the table: rows that are there already have come through it. `late` is its side table.
    pub fn set_gate(&self, watermark: &Watermark, late: Arc<Table>, clock: &Clock) -> Result<()> {
        let now_us = clock.time.now_us();
        let gate = Arc::new(Gate::new(self.relation, watermark.clone(), false, now_us));
        let split = Split(SPLIT.into());
        gate.add_split(&split, now_us);
        // Late rows are older than the newest that was on time, so the table alone gives back where the watermark was.
        for rows in self.store.head()?.scan(None, RESHAPE_ROWS)? {
            gate.admit(&split, &gate.measure(rows?)?, now_us)?;
        }
        gate.advance(now_us);
        clock.add_gate(Arc::clone(&gate));
        let late = parking_lot::Mutex::new(SideTable::recovered(late)?);
        let _ = self.gate.set(TableGate { gate, late });
        Ok(())
    }

    /// Tells the table's gate of rows that have come through it before a restart.
    pub fn pass_again(&self, changes: &ChangeBatch, now_us: i64) -> Result<()> {
        if let Some(gated) = self.gate.get() {
            let passed = gated.gate.measure(changes.rows.clone())?;
            gated.gate.admit(&Split(SPLIT.into()), &passed, now_us)?;
        }
        Ok(())
    }

    /// Takes the latch: the head stands still while it is held.
    pub async fn latch(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.latch).lock_owned().await
    }

    /// [`latch`](Self::latch) for a thread without a runtime.
    pub fn latch_blocking(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.latch).blocking_lock_owned()
    }
}

/// Rows of one table on their way through its gate.
struct Through<'a> {
    gate: &'a TableGate,
    passed: Passed,
    /// As the side table will have them.
    late: Option<RecordBatch>,
}

/// Takes the late rows out of `net`, whose tables are `tables`.
fn measure<'a>(net: &mut [(RelationId, ChangeBatch)], tables: &'a [Arc<Table>]) -> Result<Vec<Through<'a>>> {
    let mut through = Vec::new();
    for ((_, changes), table) in net.iter_mut().zip(tables) {
        let Some(gate) = table.gate.get() else { continue };
        let passed = gate.gate.measure(single_rows(changes)?)?;
        *changes = ChangeBatch::insert(passed.on_time.clone());
        let first = gate.gate.rows(&Split(SPLIT.into()));
        let side = gate.late.lock();
        let late = passed.late.as_ref().map(|l| sides::late_rows(&side.table, l, SPLIT, first)).transpose()?;
        drop(side);
        through.push(Through { gate, passed, late });
    }
    Ok(through)
}

/// The rows of an insertion, each as often as it is added.
fn single_rows(changes: &ChangeBatch) -> Result<RecordBatch> {
    if changes.diff == flow::Diff::Insert {
        return Ok(changes.rows.clone());
    }
    let times = |row: usize| usize::try_from(changes.weight(row)).unwrap_or(0);
    let rows = (0..changes.num_rows()).flat_map(|row| std::iter::repeat_n(row as u32, times(row)));
    Ok(take_record_batch(&changes.rows, &UInt32Array::from_iter_values(rows))?)
}

impl Through<'_> {
    /// What the log keeps of the late rows.
    fn late_change(&self) -> Option<(RelationId, ChangeBatch)> {
        let rows = self.late.clone()?;
        Some((self.gate.late.lock().table.relation, ChangeBatch::insert(rows)))
    }

    /// The rows are in the log: counts them, and adds the late ones to the side table. Gives what its readers get.
    fn admit(self, epoch: Epoch, now_us: i64, budget: &Budget) -> Result<Option<(RelationId, ChangeBatch)>> {
        self.gate.gate.admit(&Split(SPLIT.into()), &self.passed, now_us)?;
        let Some(rows) = self.late else { return Ok(None) };
        let mut side = self.gate.late.lock();
        let change = side.add(rows, epoch, budget)?;
        Ok(Some((side.table.relation, change)))
    }
}

/// Why a write did not happen.
#[derive(Debug)]
pub enum Refused {
    /// Another transaction holds what it needs: take back what the statement did, wait, and run it again.
    Busy(Busy),
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused::Failed(error)
    }
}

impl From<arrow::error::ArrowError> for Refused {
    fn from(error: arrow::error::ArrowError) -> Refused {
        Refused::Failed(error.into())
    }
}

impl From<Busy> for Refused {
    fn from(busy: Busy) -> Refused {
        Refused::Busy(busy)
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

/// Rows that an INSERT proposes and whose keys exist.
pub struct Clashes {
    /// Positions among the proposed rows, ascending.
    pub positions: Vec<u32>,
    /// The columns of the rows that exist, one row for each position; empty without any.
    pub existing: Vec<ArrayRef>,
}

/// Where the transaction's version of each key is.
type OwnKeys = HashMap<Box<[u8]>, Own>;

/// What one transaction does to one table.
pub struct TableWrites {
    table: Arc<Table>,
    relation: Arc<Relation>,
    changes: Vec<ChangeBatch>,
    /// Shared with readers of this transaction, which keep what they saw.
    own: Arc<OwnKeys>,
    keys: Option<Arc<KeyEncoder>>,
    /// What `own` held before, newest last, while [`recording`](Self::recording).
    undo: Vec<(Box<[u8]>, Option<Own>)>,
    /// Set once there is something that a mark must be able to go back to.
    recording: bool,
}

/// A moment in a table's part of a transaction.
#[derive(Clone, Copy, Default)]
struct TableMark {
    changes: usize,
    undo: usize,
}

impl TableWrites {
    fn new(table: Arc<Table>, relation: Arc<Relation>) -> Result<TableWrites> {
        let key = relation.primary_key();
        let types: Vec<_> = key.iter().map(|c| relation.columns[*c].data_type.clone()).collect();
        let keys = if key.is_empty() { None } else { Some(Arc::new(KeyEncoder::new(&types)?)) };
        let (own, undo) = (Arc::default(), Vec::new());
        Ok(TableWrites { table, relation, changes: Vec::new(), own, keys, undo, recording: false })
    }

    /// Whether nothing has been changed yet.
    pub fn is_unchanged(&self) -> bool {
        self.changes.is_empty()
    }

    /// What lays the changes so far over what the transaction reads.
    pub fn reader(&self) -> OwnReader {
        let schema = Arc::clone(self.table.store.schema());
        match &self.keys {
            Some(keys) => OwnReader::Keyed(Arc::new(OwnRows {
                schema,
                own: Arc::clone(&self.own),
                changes: self.changes.iter().map(|c| c.rows.clone()).collect(),
                key: self.relation.primary_key().to_vec(),
                keys: Arc::clone(keys),
            })),
            None => OwnReader::Bag { schema, changes: self.changes.clone() },
        }
    }

    fn mark(&mut self) -> TableMark {
        self.recording |= !self.changes.is_empty();
        TableMark { changes: self.changes.len(), undo: self.undo.len() }
    }

    fn undo(&mut self, mark: TableMark) {
        let own = Arc::make_mut(&mut self.own);
        if mark.changes == 0 {
            own.clear();
            self.undo.clear();
            self.recording = false;
        } else {
            for (key, before) in self.undo.drain(mark.undo..).rev() {
                match before {
                    Some(before) => own.insert(key, before),
                    None => own.remove(&key),
                };
            }
        }
        self.changes.truncate(mark.changes);
    }

    fn set_own(&mut self, key: &[u8], now: Own) {
        let before = Arc::make_mut(&mut self.own).insert(key.into(), now);
        if self.recording {
            self.undo.push((key.into(), before));
        }
    }

    /// Locks the rows by key, or by all columns without one.
    fn lock(&self, owner: &mut Owner, rows: &RecordBatch) -> Result<(), Refused> {
        let columns = if self.keys.is_some() { self.key_columns(rows) } else { rows.columns().to_vec() };
        Ok(owner.lock_rows(self.relation.oid, &hash_columns(&columns, rows.num_rows())?)?)
    }

    /// Adds rows that have the table's columns. Returns which of them were added, by position.
    ///
    /// Errors: `23502` NULL in a NOT NULL column, `23505` a key that exists (with [`OnConflict::Error`]).
    fn insert(&mut self, owner: &mut Owner, rows: RecordBatch, on_conflict: OnConflict) -> Result<Vec<u32>, Refused> {
        self.not_null(&rows)?;
        let rows = RecordBatch::try_new(Arc::clone(self.table.store.schema()), rows.columns().to_vec())?;
        let count = rows.num_rows();
        if count == 0 {
            return Ok(Vec::new());
        }
        let Some(keys) = self.keys.clone() else {
            self.changes.push(ChangeBatch::insert(rows));
            return Ok((0..count as u32).collect());
        };
        self.lock(owner, &rows)?;
        let key_columns = self.key_columns(&rows);
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
                    OnConflict::Error => return Err(self.duplicate_key(&key_columns, row).into()),
                    OnConflict::DoNothing => continue,
                    OnConflict::Overwrite => match existing {
                        Some(Own::Inserted { change: c, row: r }) if c == change => kept[r] = None,
                        Some(Own::Inserted { change, row }) => superseded.push((change, row)),
                        _ => replaced.extend(*id),
                    },
                }
            }
            self.set_own(key.data(), Own::Inserted { change, row: kept.len() });
            kept.push(Some(row as u32));
        }
        if kept.is_empty() {
            return Ok(Vec::new());
        }
        // A row that a later one of the same call overwrites is never added, but keeps its place for `own`.
        let all = UInt32Array::from_iter_values(kept.iter().map(|k| k.unwrap_or(0)));
        self.changes.push(ChangeBatch::insert(take_record_batch(&rows, &all)?));
        let cancelled: Vec<u32> = kept.iter().enumerate().filter(|(_, k)| k.is_none()).map(|(i, _)| i as u32).collect();
        if !cancelled.is_empty() {
            let rows = self.changes[change].take(&UInt32Array::from(cancelled))?.rows;
            self.changes.push(ChangeBatch::delete(rows));
        }
        if !replaced.is_empty() {
            self.changes.push(ChangeBatch::delete(head.take(&replaced, None)?));
        }
        if !superseded.is_empty() {
            let old = self.own_rows(&superseded)?;
            self.changes.push(ChangeBatch::delete(old));
        }
        Ok(kept.into_iter().flatten().collect())
    }

    /// Which of `rows` (with the table's columns) meet a key that exists, and the rows that have it.
    ///
    /// Errors: `23502` as for [`insert`](Self::insert), `21000` for a key that `touched` holds already; it takes the keys
    /// of all rows.
    fn clashes(
        &self,
        owner: &mut Owner,
        rows: &RecordBatch,
        touched: &mut HashSet<Box<[u8]>>,
    ) -> Result<Clashes, Refused> {
        self.not_null(rows)?;
        let Some(keys) = &self.keys else {
            return Err(Error::internal("ON CONFLICT of a table without a key").into());
        };
        self.lock(owner, rows)?;
        let key_columns = self.key_columns(rows);
        let encoded = keys.encode(&key_columns)?;
        let head = self.table.store.head()?;
        let stored = head.lookup_keys(&key_columns)?;
        let mut clashes = Clashes { positions: Vec::new(), existing: Vec::new() };
        let mut ids = Vec::new();
        // By clash: the transaction's own row, or (`None`) the next of `ids`.
        let mut places = Vec::new();
        for (row, id) in stored.iter().enumerate() {
            let key = encoded.row(row);
            if !touched.insert(key.data().into()) {
                return Err(Error::new(
                    SqlState::CardinalityViolation,
                    "ON CONFLICT DO UPDATE command cannot affect row a second time",
                )
                .with_hint(
                    "Ensure that no rows proposed for insertion within the same command have duplicate constrained \
                     values.",
                )
                .into());
            }
            match (self.own.get(key.data()), id) {
                (Some(Own::Deleted), _) | (None, None) => continue,
                (Some(Own::Inserted { change, row }), _) => places.push(Some((*change, *row))),
                (None, Some(id)) => {
                    ids.push(*id);
                    places.push(None);
                }
            }
            clashes.positions.push(row as u32);
        }
        if !places.is_empty() {
            let stored = head.take(&ids, None)?;
            let mut batches = vec![&stored];
            batches.extend(self.changes.iter().map(|c| &c.rows));
            let mut next = 0;
            let indices: Vec<(usize, usize)> = places
                .into_iter()
                .map(|place| match place {
                    Some((change, row)) => (change + 1, row),
                    None => {
                        next += 1;
                        (0, next - 1)
                    }
                })
                .collect();
            clashes.existing = interleave_record_batch(&batches, &indices)?.columns().to_vec();
        }
        Ok(clashes)
    }

    fn key_columns(&self, rows: &RecordBatch) -> Vec<ArrayRef> {
        self.relation.primary_key().iter().map(|c| Arc::clone(rows.column(*c))).collect()
    }

    /// Rows of the transaction's own changes, by change and row.
    fn own_rows(&self, places: &[(usize, usize)]) -> Result<RecordBatch> {
        let batches: Vec<&RecordBatch> = self.changes.iter().map(|c| &c.rows).collect();
        Ok(interleave_record_batch(&batches, places)?)
    }

    /// Takes away rows, given whole, that the transaction sees.
    fn delete(&mut self, owner: &mut Owner, rows: RecordBatch) -> Result<u64, Refused> {
        let count = rows.num_rows() as u64;
        if count == 0 {
            return Ok(0);
        }
        if self.relation.table().is_some_and(|t| t.append_only) {
            return Err(Error::new(
                SqlState::WrongObjectType,
                format!("table \"{}\" is append-only", self.relation.name),
            )
            .with_hint("Its rows cannot be updated or deleted; create the table without APPEND ONLY.")
            .into());
        }
        let rows = RecordBatch::try_new(Arc::clone(self.table.store.schema()), rows.columns().to_vec())?;
        self.lock(owner, &rows)?;
        if let Some(keys) = self.keys.clone() {
            for key in &keys.encode(&self.key_columns(&rows))? {
                self.set_own(key.data(), Own::Deleted);
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

/// A transaction's changes of one table, to be laid over what it reads of it.
#[derive(Clone)]
pub enum OwnReader {
    Keyed(Arc<OwnRows>),
    /// Of a table without a key.
    Bag {
        schema: SchemaRef,
        changes: Vec<ChangeBatch>,
    },
}

impl OwnReader {
    fn is_unchanged(&self) -> bool {
        match self {
            OwnReader::Keyed(rows) => rows.changes.is_empty(),
            OwnReader::Bag { changes, .. } => changes.is_empty(),
        }
    }

    /// The table as the transaction sees it, given what it sees of it without its own changes.
    pub fn over(&self, snapshot: Snapshot) -> Result<RelationRows> {
        if self.is_unchanged() {
            return Ok(RelationRows::Snapshot(Arc::new(snapshot)));
        }
        match self {
            OwnReader::Keyed(rows) => {
                Ok(RelationRows::Changed { snapshot, changes: Arc::clone(rows) as Arc<dyn Changes> })
            }
            OwnReader::Bag { schema, changes } => Ok(RelationRows::Batches(vec![bag(&snapshot, schema, changes)?])),
        }
    }

    /// The rows of [`over`](Self::over), whole.
    pub fn rows(&self, snapshot: Snapshot) -> Result<RowIterator> {
        if self.is_unchanged() {
            return Ok(Box::new(snapshot.scan(None, 8192)?));
        }
        match self {
            OwnReader::Keyed(rows) => query::read::changed_rows(&snapshot, Arc::clone(rows) as Arc<dyn Changes>, None),
            OwnReader::Bag { schema, changes } => Ok(Box::new(std::iter::once(bag(&snapshot, schema, changes)))),
        }
    }
}

/// The rows of a table without a key, with a transaction's own changes.
fn bag(snapshot: &Snapshot, schema: &SchemaRef, changes: &[ChangeBatch]) -> Result<RecordBatch> {
    let mut all: Vec<ChangeBatch> =
        snapshot.scan(None, 8192)?.map(|b| b.map(ChangeBatch::insert)).collect::<Result<_>>()?;
    all.extend(changes.iter().cloned());
    let net = consolidate(all, schema)?;
    let mut indices = Vec::with_capacity(net.num_rows());
    for row in 0..net.num_rows() {
        // Rows that the transaction took away at the head may be younger than what it reads.
        (0..net.weight(row).max(0)).for_each(|_| indices.push(row as u32));
    }
    Ok(net.take(&UInt32Array::from(indices))?.rows)
}

/// A transaction's changes of one keyed table.
pub struct OwnRows {
    schema: SchemaRef,
    own: Arc<OwnKeys>,
    changes: Vec<RecordBatch>,
    key: Vec<usize>,
    keys: Arc<KeyEncoder>,
}

impl OwnRows {
    fn rows(&self, places: &[(usize, usize)]) -> Result<RecordBatch> {
        if places.is_empty() {
            return Ok(RecordBatch::new_empty(Arc::clone(&self.schema)));
        }
        let batches: Vec<&RecordBatch> = self.changes.iter().collect();
        Ok(interleave_record_batch(&batches, places)?)
    }
}

impl Changes for OwnRows {
    fn unchanged(&self, rows: &RecordBatch) -> Result<BooleanArray> {
        let key: Vec<ArrayRef> = self.key.iter().map(|c| Arc::clone(rows.column(*c))).collect();
        let keys = self.keys.encode(&key)?;
        Ok(keys.iter().map(|key| Some(!self.own.contains_key(key.data()))).collect())
    }

    fn added(&self) -> Result<RecordBatch> {
        let mut places: Vec<(usize, usize)> = self
            .own
            .values()
            .filter_map(|own| match own {
                Own::Inserted { change, row } => Some((*change, *row)),
                Own::Deleted => None,
            })
            .collect();
        places.sort_unstable();
        self.rows(&places)
    }

    fn point(&self, key: &[ArrayRef]) -> Result<Option<RecordBatch>> {
        let keys = self.keys.encode(key)?;
        match self.own.get(keys.row(0).data()) {
            None => Ok(None),
            Some(Own::Deleted) => Ok(Some(self.rows(&[])?)),
            Some(Own::Inserted { change, row }) => Ok(Some(self.rows(&[(*change, *row)])?)),
        }
    }
}

/// What one transaction does to all tables, and the locks that it holds.
#[derive(Default)]
pub struct WriteSet {
    tables: IndexMap<RelationId, TableWrites>,
    owner: Option<Owner>,
    /// Set for the writes of `CREATE SINK … INTO`.
    origin: Option<RelationId>,
}

/// A moment in a transaction, to which [`WriteSet::undo`] goes back.
#[derive(Clone, Default)]
pub struct Mark {
    tables: HashMap<RelationId, TableMark>,
}

/// What a transaction does to the catalog, for its commit.
pub struct CatalogPart<'a> {
    pub changes: &'a [CatalogChange],
    /// Makes the changes visible; called when they are in the log.
    pub publish: &'a mut (dyn FnMut() + Send),
}

impl WriteSet {
    /// A write set whose rows are derived by sink `origin`.
    pub fn of_sink(origin: RelationId) -> WriteSet {
        WriteSet { origin: Some(origin), ..WriteSet::default() }
    }

    /// Whether nothing has been changed or locked.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    pub fn get(&self, relation: RelationId) -> Option<&TableWrites> {
        self.tables.get(&relation)
    }

    /// Who holds this transaction's locks.
    pub fn owner(&mut self, locks: &Arc<Locks>) -> &mut Owner {
        self.owner.get_or_insert_with(|| locks.owner())
    }

    /// Begins to write `table`, which readers and other writers may go on to use.
    pub fn open(&mut self, table: &Arc<Table>, relation: &Arc<Relation>) -> Result<(), Refused> {
        self.owner(&table.locks).write_table(table.relation)?;
        if !self.tables.contains_key(&table.relation) {
            self.tables.insert(table.relation, TableWrites::new(Arc::clone(table), Arc::clone(relation))?);
        }
        Ok(())
    }

    /// Becomes the table's only writer.
    pub fn own_table(&mut self, table: &Table) -> Result<(), Busy> {
        self.owner(&table.locks).own_table(table.relation)
    }

    fn writes(&mut self, relation: RelationId) -> Result<(&mut TableWrites, &mut Owner)> {
        match (self.tables.get_mut(&relation), &mut self.owner) {
            (Some(writes), Some(owner)) => Ok((writes, owner)),
            _ => Err(Error::internal("a table is written before it is opened")),
        }
    }

    /// Adds rows that have the table's columns to a table that is [`open`](Self::open). Returns which of them were added,
    /// by position.
    ///
    /// Errors: `23502` NULL in a NOT NULL column, `23505` a key that exists (with [`OnConflict::Error`]).
    pub fn insert(
        &mut self,
        relation: RelationId,
        rows: RecordBatch,
        on_conflict: OnConflict,
    ) -> Result<Vec<u32>, Refused> {
        let (writes, owner) = self.writes(relation)?;
        writes.insert(owner, rows, on_conflict)
    }

    /// Which of `rows` (with the table's columns) meet a key that exists, and the rows that have it.
    ///
    /// Errors: `23502` as for [`insert`](Self::insert), `21000` for a key that `touched` holds already; it takes the keys
    /// of all rows.
    pub fn clashes(
        &mut self,
        relation: RelationId,
        rows: &RecordBatch,
        touched: &mut HashSet<Box<[u8]>>,
    ) -> Result<Clashes, Refused> {
        let (writes, owner) = self.writes(relation)?;
        writes.clashes(owner, rows, touched)
    }

    /// Takes away rows, given whole, that the transaction sees.
    pub fn delete(&mut self, relation: RelationId, rows: RecordBatch) -> Result<u64, Refused> {
        let (writes, owner) = self.writes(relation)?;
        writes.delete(owner, rows)
    }

    /// Waits for the end of the transaction that is in the way.
    pub async fn wait(&self, busy: Busy, timeout: Option<Duration>) -> Result<()> {
        match &self.owner {
            Some(owner) => owner.wait(busy, timeout).await,
            None => Ok(()),
        }
    }

    /// The present moment.
    pub fn mark(&mut self) -> Mark {
        Mark { tables: self.tables.iter_mut().map(|(relation, writes)| (*relation, writes.mark())).collect() }
    }

    /// The newest epoch whose rows statements may have met in the heads of tables.
    pub fn met(&self) -> Epoch {
        self.tables.values().map(|writes| writes.table.changed()).max().unwrap_or_default()
    }

    /// Goes back to `mark`. Locks stay.
    pub fn undo(&mut self, mark: &Mark) {
        for (relation, writes) in &mut self.tables {
            writes.undo(mark.tables.get(relation).copied().unwrap_or_default());
        }
    }

    /// The changes so far to one table, taken out of the transaction with what it knows of the table.
    pub fn take_table(&mut self, relation: RelationId) -> Vec<ChangeBatch> {
        self.tables.shift_remove(&relation).map(|w| w.changes).unwrap_or_default()
    }

    /// Goes on with a table that has been made anew in another shape, given what makes the rows so far fit it.
    pub fn reshape_table(
        &mut self,
        table: &Arc<Table>,
        relation: &Arc<Relation>,
        shape: impl Fn(&RecordBatch) -> Result<RecordBatch>,
    ) -> Result<()> {
        if let Some(writes) = self.tables.get_mut(&table.relation) {
            let mut fresh = TableWrites::new(Arc::clone(table), Arc::clone(relation))?;
            for change in &writes.changes {
                fresh.changes.push(ChangeBatch::new(shape(&change.rows)?, change.diff.clone()));
            }
            // Rows keep their places, and keys their columns.
            fresh.own = Arc::clone(&writes.own);
            *writes = fresh;
        }
        Ok(())
    }

    /// Commits everything in one epoch and one log record. Returns the epoch, or `None` when nothing changed. The caller
    /// waits for durability before it acknowledges. `floor` is the oldest epoch that readers may still want.
    pub async fn commit(
        self,
        clock: &Clock,
        log: &checkpoint::Log,
        budget: &Budget,
        floor: Epoch,
        catalog: Option<CatalogPart<'_>>,
    ) -> Result<Option<Epoch>> {
        // In one order, so that commits do not wait for one another in a circle.
        let mut tables: Vec<Arc<Table>> = self.tables.values().map(|w| Arc::clone(&w.table)).collect();
        tables.sort_by_key(|t| t.relation);
        let mut latches = Vec::with_capacity(tables.len());
        for table in tables {
            latches.push(table.latch().await);
        }
        self.commit_latched(clock, log, budget, floor, catalog)
    }

    /// [`commit`](Self::commit) for a thread without a runtime.
    pub fn commit_blocking(
        self,
        clock: &Clock,
        log: &checkpoint::Log,
        budget: &Budget,
        floor: Epoch,
    ) -> Result<Option<Epoch>> {
        let mut tables: Vec<Arc<Table>> = self.tables.values().map(|w| Arc::clone(&w.table)).collect();
        tables.sort_by_key(|t| t.relation);
        let _latches: Vec<_> = tables.iter().map(|t| t.latch_blocking()).collect();
        self.commit_latched(clock, log, budget, floor, None)
    }

    fn commit_latched(
        self,
        clock: &Clock,
        log: &checkpoint::Log,
        budget: &Budget,
        floor: Epoch,
        mut catalog: Option<CatalogPart<'_>>,
    ) -> Result<Option<Epoch>> {
        let WriteSet { tables: written, owner, origin } = self;
        let mut net = Vec::new();
        let mut tables = Vec::new();
        for (relation, mut writes) in written {
            let changes = writes.net()?;
            if changes.num_rows() > 0 {
                net.push((relation, changes));
                tables.push(writes.table);
            }
        }
        let catalog_changes = catalog.as_ref().map_or(&[][..], |c| c.changes);
        if net.is_empty() && catalog_changes.is_empty() {
            return Ok(None);
        }
        if !net.is_empty() {
            clock.stalls.check()?;
        }
        // What is late depends on the epoch that the rows join.
        let gated = tables.iter().any(|t| t.gate.get().is_some());
        let mut record = if gated { Vec::new() } else { record::transaction(catalog_changes, &net, origin)? };
        let epoch = clock.commit(true, |epoch| {
            let mut through = Vec::new();
            if gated {
                through = measure(&mut net, &tables)?;
                let late = through.iter().filter_map(|t| t.late_change()).collect::<Vec<_>>();
                let logged: Vec<_> = net.iter().cloned().chain(late).collect();
                record = record::transaction(catalog_changes, &logged, origin)?;
            }
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
            let outcome = outcome.and_then(|()| log.append(&[&record, &record::epoch_bytes(epoch)]).map(|_| ()));
            // A change of the catalog takes effect for everyone at once, so it must be safe before.
            let outcome = outcome.and_then(|()| if catalog.is_some() { log.sync().map(|_| ()) } else { Ok(()) });
            if let Err(error) = outcome {
                for ((_, changes), table) in net.iter().zip(&tables).take(applied) {
                    let before = table.store.bytes();
                    table.store.take_back(0, epoch, changes)?;
                    // Only growth can be refused, and this gives back.
                    let _ = budget.change(before, table.store.bytes());
                }
                return Err(error);
            }
            // Not before: an epoch that nothing has joined may never end.
            for table in &tables {
                table.changed.fetch_max(epoch.0, Ordering::Release);
            }
            if let Some(catalog) = &mut catalog {
                (catalog.publish)();
            }
            for through in through {
                net.extend(through.admit(epoch, clock.time.now_us(), budget)?);
            }
            net.retain(|(_, changes)| changes.num_rows() > 0);
            Ok(net)
        })?;
        for table in &tables {
            let before = table.store.bytes();
            table.store.maintain(floor)?;
            let _ = budget.change(before, table.store.bytes());
        }
        // Those who wait for these rows may look now.
        drop(owner);
        Ok(Some(epoch))
    }
}
