//! The log is rewritten while the server runs, when most of it is overwritten.
//!
//! Law: what replaces the log up to a position says the same as it did, for every start that may come. The position is that of
//! the cut of an epoch, before which lie the transactions of all epochs up to it and of none after. That epoch is a durable
//! checkpoint's, so no start needs to tell apart what came before; what came after is copied as it is. See
//! `docs/design/0008-log-compaction.md`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrow::array::RecordBatch;
use catalog::{Definition, RelationKind};
use checkpoint::log::{Records, Rewrite};
use checkpoint::{Log, Position, crash};
use flow::{ChangeBatch, Epoch, Error, RelationId, Result, SqlState};
use parking_lot::{Mutex, RwLock};
use runtime::ops::consolidate;
use runtime::{Join, Service, Stepped};
use state::{Pin, Pins, Scan};
use tracing::{info, warn};

use crate::engine::replay::{Facts, ROWS, Tables, row_record};
use crate::execution::Execution;
use crate::into_table::signed;
use crate::locks::Locks;
use crate::record;
use crate::table::Table;

/// A log above this is rewritten when most of it is overwritten, unless a configuration says otherwise.
pub const LOG_BYTES_MIN: u64 = 16 << 20;
/// Bytes of records that a step reads or copies.
const STEP_BYTES: u64 = 4 << 20;
/// What may be left to copy when nobody can commit: about what a disk takes in a millisecond.
const LAST_BYTES_MAX: u64 = 256 << 10;
/// Rounds of copying, of which each has to do what came in the one before.
const ROUNDS_MAX: usize = 8;

/// Whether a log is worth rewriting: `live` is what tables hold of it, in memory. With a least size of 0 it always is.
pub(crate) fn is_overwritten(bytes: u64, live: u64, bytes_min: u64) -> bool {
    bytes_min == 0 || (bytes > bytes_min && bytes / 2 > live)
}

/// Tables by relation, as the engine has them.
pub type SharedTables = Arc<RwLock<HashMap<RelationId, Arc<Table>>>>;

/// When the log is rewritten, and the service that does it.
pub struct Compaction {
    log: Arc<Log>,
    pins: Arc<Pins>,
    tables: SharedTables,
    locks: Arc<Locks>,
    execution: Arc<dyn Execution>,
    bytes_min: u64,
    /// There is no other rewrite before the log is so large.
    next_bytes: AtomicU64,
    busy: AtomicBool,
    stopped: AtomicBool,
    /// The newest service.
    service: Mutex<Option<Box<dyn Join>>>,
}

/// What the log says up to the cut of an epoch.
pub struct Prefix {
    epoch: Epoch,
    until: Position,
    /// As they were at the cut.
    tables: BTreeMap<RelationId, Arc<Table>>,
    /// Keeps their rows of the epoch readable.
    _pin: Pin,
    compaction: Arc<Compaction>,
}

impl Prefix {
    /// No start needs to tell apart any more what it holds: lets a service rewrite it.
    pub fn begin(self) {
        let compaction = Arc::clone(&self.compaction);
        let mut service = compaction.service.lock();
        if compaction.stopped.load(Ordering::Acquire) {
            return;
        }
        info!(bytes = compaction.log.len(), epoch = self.epoch.0, "rewriting the log");
        compaction.busy.store(true, Ordering::Release);
        let begun = compaction.log.records(self.until).and_then(|records| {
            let work = Compactor { prefix: self, facts: Facts::new(), stage: Stage::Facts(records) };
            compaction.execution.start_service(Box::new(work))
        });
        match begun {
            Ok(join) => *service = Some(join),
            Err(error) => compaction.ended(Err(error)),
        }
    }
}

impl Compaction {
    pub fn new(
        log: &Arc<Log>,
        pins: &Arc<Pins>,
        tables: &SharedTables,
        locks: &Arc<Locks>,
        execution: &Arc<dyn Execution>,
        bytes_min: u64,
    ) -> Arc<Compaction> {
        Arc::new(Compaction {
            log: Arc::clone(log),
            pins: Arc::clone(pins),
            tables: Arc::clone(tables),
            locks: Arc::clone(locks),
            execution: Arc::clone(execution),
            bytes_min,
            next_bytes: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            service: Mutex::new(None),
        })
    }

    /// Called at the cut of `epoch`, while nobody commits: what is to be rewritten, if anything is.
    pub fn prefix(self: &Arc<Self>, epoch: Epoch) -> Option<Prefix> {
        let bytes = self.log.len();
        let least = self.bytes_min.max(self.next_bytes.load(Ordering::Relaxed));
        if bytes <= least || self.busy.load(Ordering::Acquire) {
            return None;
        }
        let tables = self.tables.read();
        let live: usize = tables.values().map(|t| t.store.bytes()).sum();
        if !is_overwritten(bytes, live as u64, self.bytes_min) {
            return None;
        }
        let tables = tables.iter().map(|(relation, table)| (*relation, Arc::clone(table))).collect();
        let pin = self.pins.pin(epoch).ok()?;
        Some(Prefix { epoch, until: self.log.end(), tables, _pin: pin, compaction: Arc::clone(self) })
    }

    /// A rewrite is over: the log's new size, or why it is as it was.
    fn ended(&self, outcome: Result<u64>) {
        let next_bytes = match outcome {
            Ok(bytes) => {
                info!(bytes, "the log is rewritten");
                metrics::counter!("millstream_log_rewrites").increment(1);
                bytes * 2
            }
            Err(error) => {
                // It is tried again, but not with every checkpoint on a disk that is full.
                warn!(%error, "the log could not be rewritten");
                self.log.len() + self.bytes_min
            }
        };
        // With a least size of 0 nothing is waited for.
        self.next_bytes.store(if self.bytes_min == 0 { 0 } else { next_bytes }, Ordering::Relaxed);
        self.busy.store(false, Ordering::Release);
    }

    /// Whether a rewrite is under way.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// There is no other from now on, and the one under way is given up.
    pub fn stop(&self) {
        let service = {
            let mut service = self.service.lock();
            self.stopped.store(true, Ordering::Release);
            service.take()
        };
        if let Some(mut service) = service {
            service.join();
        }
    }
}

/// The service of one rewrite.
struct Compactor {
    prefix: Prefix,
    facts: Facts,
    stage: Stage,
}

enum Stage {
    /// Reads what the prefix says beside rows.
    Facts(Records),
    /// Reads the rows of tables that sinks fill: which of them are the sinks' and which are not is said only there.
    Own {
        records: Records,
        number: usize,
        sinks: BTreeMap<RelationId, RelationId>,
        tables: Tables,
    },
    /// Writes rows.
    Rows {
        rewrite: Rewrite,
        rows: VecDeque<Rows>,
    },
    /// Copies what came after the prefix, in rounds: so many bytes are left of this one.
    Copy {
        rewrite: Rewrite,
        from: Position,
        left: u64,
        rounds: usize,
    },
    Done,
}

/// Rows of a table to be written, and the sink that has derived them.
enum Rows {
    Scanned {
        relation: RelationId,
        scan: Scan,
        origin: Option<RelationId>,
    },
    /// What a sink has changed in a table that had rows before; deletions come first.
    Derived {
        relation: RelationId,
        changes: ChangeBatch,
        origin: RelationId,
    },
}

impl Service for Compactor {
    fn name(&self) -> String {
        "log-rewrite".into()
    }

    fn step(&mut self) -> Stepped {
        let compaction = Arc::clone(&self.prefix.compaction);
        if compaction.stopped.load(Ordering::Acquire) {
            return Stepped::Ended;
        }
        match self.go_on(&compaction) {
            Ok(()) if matches!(self.stage, Stage::Done) => compaction.ended(Ok(compaction.log.len())),
            Ok(()) => return Stepped::Worked,
            Err(error) => compaction.ended(Err(error)),
        }
        Stepped::Ended
    }

    /// There is always something to do.
    fn wait(&mut self) {}

    fn stands_back(&self) -> bool {
        true
    }
}

impl Compactor {
    fn go_on(&mut self, compaction: &Compaction) -> Result<()> {
        let Compactor { prefix, facts, stage } = self;
        let log = &compaction.log;
        *stage = match std::mem::replace(stage, Stage::Done) {
            Stage::Facts(mut records) => match read_some(&mut records, |bytes| {
                let record = record::decode_catalog(bytes)?;
                for relation in &record.touched {
                    facts.note_change(*relation, record.epoch);
                }
                facts.take(record, prefix.epoch)
            })? {
                true => Stage::Facts(records),
                false => after_facts(prefix, facts)?,
            },
            Stage::Own { mut records, mut number, sinks, mut tables } => {
                let more = read_some(&mut records, |bytes| {
                    number += 1;
                    let mut record = record::decode_of(bytes, |relation| sinks.contains_key(&relation))?;
                    tables.follow(&mut record, &facts.catalog)?;
                    for rows in record.rows.iter().filter(|rows| !facts.is_derived(rows.origin, number)) {
                        tables.apply(rows.relation, &rows.changes)?;
                    }
                    Ok(())
                })?;
                match more {
                    true => Stage::Own { records, number, sinks, tables },
                    false => begin_rows(prefix, facts, &sinks, &tables)?,
                }
            }
            Stage::Rows { mut rewrite, mut rows } => match rows.pop_front() {
                Some(next) => {
                    if let Some(rest) = write_some(&mut rewrite, next)? {
                        rows.push_front(rest);
                    }
                    Stage::Rows { rewrite, rows }
                }
                None => {
                    crash::point("L0");
                    let left = log.bytes_after(prefix.until);
                    Stage::Copy { rewrite, from: prefix.until, left, rounds: 0 }
                }
            },
            Stage::Copy { mut rewrite, from, left, rounds } if left > 0 => {
                let to = rewrite.copy(log, from, left.min(STEP_BYTES))?;
                Stage::Copy { rewrite, from: to, left: left.saturating_sub(to.bytes_since(from)), rounds }
            }
            Stage::Copy { mut rewrite, from, rounds, .. } => {
                rewrite.sync()?;
                let left = log.bytes_after(from);
                if left <= LAST_BYTES_MAX {
                    rewrite.take_place(log, from)?;
                    Stage::Done
                } else if rounds < ROUNDS_MAX {
                    Stage::Copy { rewrite, from, left, rounds: rounds + 1 }
                } else {
                    return Err(Error::new(SqlState::ProgramLimitExceeded, "the log grows faster than it is copied"));
                }
            }
            Stage::Done => Stage::Done,
        };
        Ok(())
    }
}

fn after_facts(prefix: &Prefix, facts: &Facts) -> Result<Stage> {
    let into = |r: &Arc<catalog::Relation>| match &r.definition {
        Definition::Sink(sink) => sink.into.map(|table| (table, r.oid)),
        _ => None,
    };
    let sinks: BTreeMap<_, _> = facts.catalog.relations().filter_map(into).collect();
    let tables = Tables::new(&prefix.compaction.locks);
    if sinks.is_empty() {
        return begin_rows(prefix, facts, &sinks, &tables);
    }
    Ok(Stage::Own { records: prefix.compaction.log.records(prefix.until)?, number: 0, sinks, tables })
}

/// `sinks`: by table the sink that fills it; `own`: what such tables have of their own.
fn begin_rows(prefix: &Prefix, facts: &Facts, sinks: &BTreeMap<RelationId, RelationId>, own: &Tables) -> Result<Stage> {
    let mut rewrite = prefix.compaction.log.begin_rewrite()?;
    for record in facts.head()? {
        rewrite.append(&record)?;
    }
    let mut rows = VecDeque::new();
    for (relation, table) in &prefix.tables {
        let Some(known) = facts.catalog.relation(*relation) else { continue };
        let of = known.side().and_then(|side| facts.catalog.relation(side.of));
        if of.is_some_and(|of| of.kind() == RelationKind::Source) {
            // Their rows are in checkpoints.
            continue;
        }
        let now = || table.store.snapshot(prefix.epoch)?.scan(None, ROWS);
        let (relation, sink) = (*relation, sinks.get(relation).copied());
        let before = own.tables.get(&relation).filter(|t| sink.is_some() && t.store.live_rows() > 0);
        match (sink, before) {
            (Some(origin), Some(before)) => {
                let before = || before.store.snapshot(Epoch(1))?.scan(None, ROWS);
                rows.push_back(Rows::Scanned { relation, scan: before()?, origin: None });
                let now = now()?.map(|rows| rows.map(ChangeBatch::insert));
                let gone = before()?.map(|rows| rows.map(ChangeBatch::delete));
                let changes = consolidate(now.chain(gone).collect::<Result<_>>()?, table.store.schema())?;
                rows.push_back(Rows::Derived { relation, changes, origin });
            }
            (origin, _) => rows.push_back(Rows::Scanned { relation, scan: now()?, origin }),
        }
    }
    Ok(Stage::Rows { rewrite, rows })
}

/// Hands some records to `take`; false when there are no more.
fn read_some(records: &mut Records, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<bool> {
    let mut bytes = 0;
    while bytes < STEP_BYTES {
        let Some(record) = records.next() else { return Ok(false) };
        let record = record?;
        bytes += record.len() as u64;
        take(&record)?;
    }
    Ok(true)
}

/// Writes one record of rows; gives what is left.
fn write_some(rewrite: &mut Rewrite, rows: Rows) -> Result<Option<Rows>> {
    match rows {
        Rows::Scanned { relation, mut scan, origin } => {
            let Some(batch) = scan.next() else { return Ok(None) };
            rewrite.append(&row_record(relation, &batch?, origin)?)?;
            Ok(Some(Rows::Scanned { relation, scan, origin }))
        }
        Rows::Derived { relation, changes, origin } => {
            let slices = |rows: RecordBatch| {
                let starts = (0..rows.num_rows()).step_by(ROWS);
                starts.map(move |start| rows.slice(start, ROWS.min(rows.num_rows() - start)))
            };
            // A key whose row is another one since has both.
            for rows in slices(signed(&changes, false)?) {
                rewrite.append(&record::rows(relation, ChangeBatch::delete(rows), Epoch(0), Some(origin))?)?;
            }
            for rows in slices(signed(&changes, true)?) {
                rewrite.append(&row_record(relation, &rows, Some(origin))?)?;
            }
            Ok(None)
        }
    }
}
