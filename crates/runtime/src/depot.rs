//! Where the state of jobs is stored: one service of a worker encodes what slots have frozen and puts it into the store.
//!
//! The state of a job on a slot is a chain of segments, each with the changes since the one before. A chain that has grown
//! to several times its content is replaced by one segment of the content.
//!
//! A segment holds chunks by task and part; a chunk is a change batch as `flow::wire` writes it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{RecordBatch, RecordBatchOptions, UInt32Array};
use bytes::Bytes;
use checkpoint::door::{Door, PutNew};
use checkpoint::manifest::{PartRef, SegmentPlace, SegmentRef};
use checkpoint::names::{ObjectName, SegmentName};
use checkpoint::segment::{SegmentReader, SegmentWriter};
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use flow::hash::{hash_columns, slot_of_vnode, vnode};
use flow::process::StatePart;
use flow::{ChangeBatch, Error, JobId, Result, SlotId, SqlState, TaskId};
use parking_lot::Mutex;
use plan::Placed;

use crate::freeze::{Frozen, Seal};
use crate::message::{DeploymentId, FromSlot, StoredState};
use crate::parts::merge;
use crate::service::{Join, Service, Stepped, wait_for_message};
use crate::slot::Reports;

/// A segment is put into the store when it has so many bytes, though its checkpoint is not whole.
const SEGMENT_BYTES: usize = 64 << 20;
/// Rows of a chunk at most.
const CHUNK_ROWS: usize = 64 << 10;
/// Segments of a chain from which on it is looked at.
const CHAIN_SEGMENTS: usize = 8;
/// A chain is replaced when it has so many times the bytes of its first segment.
const CHAIN_GROWTH: u64 = 3;

/// Bytes that may wait to be stored before slots wait too.
const WAITING_BYTES_MAX: usize = 256 << 20;
/// How long a slot sleeps at a time while too much waits.
const FULL_WAIT: Duration = Duration::from_millis(1);

/// One job on one slot.
#[derive(Debug)]
pub struct Instance {
    pub job: JobId,
    pub slot: SlotId,
    pub slots: usize,
    /// By task.
    pub parts: Vec<Vec<StatePart>>,
    pub chain: Vec<SegmentRef>,
}

/// Which rows of a part belong to a slot.
pub struct Share<'a> {
    pub task: usize,
    pub part: &'a StatePart,
    pub placed: &'a Placed,
    pub slot: usize,
    pub slots: usize,
}

enum Errand {
    Open(DeploymentId, Instance),
    Take(DeploymentId, SlotId, Frozen),
    Close(DeploymentId, SlotId),
    Stop,
}

/// The objects of running jobs' chains, from before they are created until nothing but old checkpoints names them.
type Held = Arc<Mutex<BTreeSet<ObjectName>>>;

/// The slots' side of the store.
pub struct Depot {
    door: Arc<Door>,
    errands: Sender<Errand>,
    /// Bytes that wait to be stored.
    waiting: Arc<AtomicUsize>,
    held: Held,
    /// Nothing is stored any more.
    ended: Arc<AtomicBool>,
    join: Mutex<Option<Join>>,
}

impl Depot {
    /// The depot, and the service that stores what it takes. `counter` numbers the objects of the door's generation.
    pub fn new(door: Arc<Door>, counter: Arc<AtomicU64>, reports: Reports) -> (Arc<Depot>, DepotService) {
        let (errands, todo) = unbounded();
        let (waiting, held, ended) = (Arc::default(), Held::default(), Arc::default());
        let service = DepotService {
            door: Arc::clone(&door),
            counter,
            reports,
            todo,
            stored: Arc::clone(&waiting),
            in_chains: Arc::clone(&held),
            ended: Arc::clone(&ended),
            instances: HashMap::new(),
        };
        (Arc::new(Depot { door, errands, waiting, held, ended, join: Mutex::new(None) }), service)
    }

    /// The service was started; [`stop`](Self::stop) waits for its end.
    pub fn started(&self, join: Join) {
        *self.join.lock() = Some(join);
    }

    fn send(&self, errand: Errand) {
        // The service ends last of all.
        let _ = self.errands.send(errand);
    }

    /// A job begins to be kept on a slot.
    pub fn open(&self, deployment: DeploymentId, instance: Instance) {
        self.send(Errand::Open(deployment, instance));
    }

    /// Takes what has changed, and waits while too much of it is not stored yet. Once a seal is stored,
    /// [`FromSlot::Stored`] is reported.
    pub fn take(&self, deployment: DeploymentId, slot: SlotId, frozen: Frozen) {
        if frozen.changes.is_empty() && frozen.seal.is_none() {
            return;
        }
        while self.waiting.load(Ordering::Relaxed) > WAITING_BYTES_MAX && !self.ended.load(Ordering::Relaxed) {
            std::thread::sleep(FULL_WAIT);
        }
        self.waiting.fetch_add(frozen.bytes(), Ordering::Relaxed);
        self.send(Errand::Take(deployment, slot, frozen));
    }

    /// A job is gone from a slot.
    pub fn close(&self, deployment: DeploymentId, slot: SlotId) {
        self.send(Errand::Close(deployment, slot));
    }

    /// What must not be cleared away although the newest checkpoint may not name it yet.
    pub fn held(&self) -> BTreeSet<ObjectName> {
        self.held.lock().clone()
    }

    /// Ends the service. What is not stored yet belongs to no checkpoint.
    pub fn stop(&self) {
        self.send(Errand::Stop);
        let join = self.join.lock().take();
        if let Some(join) = join {
            join();
        }
    }

    /// The rows of a part that belong to a slot, as the chains of all slots that there were have them.
    pub fn content(&self, chains: &[Vec<SegmentRef>], share: &Share<'_>) -> Result<Vec<ChangeBatch>> {
        let mut found = Vec::new();
        for (from, chain) in chains.iter().enumerate() {
            if !overlaps((from, chains.len()), share) {
                continue;
            }
            let rows = content(&self.door, chain, share.task, share.part)?;
            let rows = if chains.len() == share.slots { rows } else { only(rows, share)? };
            if rows.num_rows() > 0 {
                found.push(rows);
            }
        }
        Ok(found)
    }
}

/// Whether the slot `from.0` of `from.1` may have held rows of the share.
fn overlaps(from: (usize, usize), share: &Share<'_>) -> bool {
    if from.1 == share.slots {
        return from.0 == share.slot;
    }
    match share.placed {
        Placed::Everywhere => from.0 == 0,
        Placed::Single => from.0 == 0 && share.slot == 0,
        // Whole slots move, each to where its first vnode goes.
        Placed::Anywhere => (0..=u8::MAX)
            .find(|v| slot_of_vnode(*v, from.1) == from.0)
            .is_some_and(|first| slot_of_vnode(first, share.slots) == share.slot),
        Placed::Hash(_) => {
            (0..=u8::MAX).any(|v| slot_of_vnode(v, from.1) == from.0 && slot_of_vnode(v, share.slots) == share.slot)
        }
    }
}

/// Those rows that belong to the share.
fn only(rows: ChangeBatch, share: &Share<'_>) -> Result<ChangeBatch> {
    let Placed::Hash(hashed) = share.placed else { return Ok(rows) };
    let mut keys = Vec::with_capacity(hashed.len());
    for column in hashed {
        let at = share.part.columns.iter().position(|c| c == column);
        let at =
            at.ok_or_else(|| Error::internal(format!("part \"{}\" does not say where rows lie", share.part.name)))?;
        keys.push(Arc::clone(rows.rows.column(at)));
    }
    let hashes = hash_columns(&keys, rows.num_rows())?;
    let mine = hashes.iter().enumerate().filter(|(_, h)| slot_of_vnode(vnode(**h), share.slots) == share.slot);
    let mine = UInt32Array::from_iter_values(mine.map(|(row, _)| row as u32));
    if mine.len() == rows.num_rows() { Ok(rows) } else { rows.take(&mine) }
}

/// What a chain says of a part, merged.
fn content(door: &Door, chain: &[SegmentRef], task: usize, part: &StatePart) -> Result<ChangeBatch> {
    let task = TaskId(task as u32);
    let mut batches = Vec::new();
    let holds = |segment: &&SegmentRef| segment.parts.iter().any(|p| p.task == task && p.part == *part.name);
    for segment in chain.iter().filter(holds) {
        let reader = SegmentReader::open(bytes_of(door, segment)?)?;
        for chunk in reader.chunks(task, &part.name) {
            batches.push(shaped(flow::wire::decode(&chunk)?, part)?);
        }
    }
    merge(part.kind, &part.schema, batches, true)
}

/// The bytes of a segment. Errors: `XX001` when they are not there or not what was written.
pub fn bytes_of(door: &Door, segment: &SegmentRef) -> Result<Bytes> {
    let bytes = match &segment.place {
        SegmentPlace::Inline(blob) => blob.bytes().clone(),
        SegmentPlace::Object(name) => door.get(name)?.ok_or_else(|| {
            Error::new(SqlState::DataCorrupted, format!("object \"{name}\" of a checkpoint is missing"))
                .with_hint("Nothing was changed. Bring the object back, or drop and create the view again.")
        })?,
    };
    segment.check(&bytes)?;
    Ok(bytes)
}

/// A chunk under the schema that the function gives its part; the types must be the same.
fn shaped(change: ChangeBatch, part: &StatePart) -> Result<ChangeBatch> {
    let columns = change.rows.columns().to_vec();
    let options = RecordBatchOptions::new().with_row_count(Some(change.num_rows()));
    let rows = RecordBatch::try_new_with_options(Arc::clone(&part.schema), columns, &options).map_err(|e| {
        Error::new(SqlState::DataCorrupted, format!("part \"{}\" of a job's state has another shape", part.name))
            .with_detail(e.to_string())
    })?;
    Ok(ChangeBatch::new(rows, change.diff))
}

/// One instance as the service knows it.
struct Kept {
    instance: Instance,
    open: SegmentWriter,
    parts: Vec<PartRef>,
}

/// Stores what the [`Depot`] takes, in the order in which it came.
pub struct DepotService {
    door: Arc<Door>,
    counter: Arc<AtomicU64>,
    reports: Reports,
    todo: Receiver<Errand>,
    /// See [`Depot`].
    stored: Arc<AtomicUsize>,
    in_chains: Held,
    ended: Arc<AtomicBool>,
    instances: HashMap<(DeploymentId, SlotId), Kept>,
}

impl Service for DepotService {
    fn name(&self) -> String {
        "depot".into()
    }

    fn step(&mut self) -> Stepped {
        match self.todo.try_recv() {
            Ok(Errand::Stop) | Err(TryRecvError::Disconnected) => Stepped::Ended,
            Err(TryRecvError::Empty) => Stepped::Idle,
            Ok(errand) => {
                self.run(errand);
                Stepped::Worked
            }
        }
    }

    fn wait(&mut self) {
        wait_for_message(&self.todo, None);
    }
}

impl Drop for DepotService {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl DepotService {
    fn run(&mut self, errand: Errand) {
        match errand {
            Errand::Open(deployment, instance) => {
                self.in_chains.lock().extend(instance.chain.iter().filter_map(name_of));
                let kept = Kept { open: SegmentWriter::new(), parts: Vec::new(), instance };
                self.instances.insert((deployment, kept.instance.slot), kept);
            }
            Errand::Close(deployment, slot) => {
                if let Some(kept) = self.instances.remove(&(deployment, slot)) {
                    self.let_go(&kept.instance.chain);
                }
            }
            Errand::Stop => {}
            Errand::Take(deployment, slot, frozen) => {
                let (epoch, bytes) = (frozen.seal.as_ref().map(|s| s.epoch), frozen.bytes());
                let outcome = self.take(deployment, slot, frozen);
                self.stored.fetch_sub(bytes, Ordering::Relaxed);
                match (outcome, epoch) {
                    (Ok(Some(state)), Some(epoch)) => {
                        (self.reports)(FromSlot::Stored { slot, deployment, epoch, state });
                    }
                    (Ok(_), _) => {}
                    (Err(error), epoch) => {
                        // What was told is lost to the chain, so it never makes a whole state any more.
                        self.instances.remove(&(deployment, slot));
                        let epoch = epoch.unwrap_or_default();
                        (self.reports)(FromSlot::NotStored { slot, deployment, epoch, error });
                    }
                }
            }
        }
    }

    fn take(&mut self, deployment: DeploymentId, slot: SlotId, frozen: Frozen) -> Result<Option<StoredState>> {
        let Some(mut kept) = self.instances.remove(&(deployment, slot)) else { return Ok(None) };
        for change in frozen.changes {
            let Kept { instance, open, parts } = &mut kept;
            add(open, parts, change.task, &instance.parts[change.task][change.part], change.changes)?;
            if kept.open.len() >= SEGMENT_BYTES {
                self.store(&mut kept)?;
            }
        }
        let mut stored = None;
        if let Some(Seal { watermarks, now_us, .. }) = frozen.seal {
            self.store(&mut kept)?;
            if overgrown(&kept.instance.chain) {
                self.shorten(&mut kept)?;
            }
            stored = Some(StoredState { chain: kept.instance.chain.clone(), watermarks, now_us });
        }
        self.instances.insert((deployment, slot), kept);
        Ok(stored)
    }

    /// Ends the open segment, if there is anything in it.
    fn store(&mut self, kept: &mut Kept) -> Result<()> {
        if !kept.open.is_empty() {
            let (writer, parts) = (std::mem::take(&mut kept.open), std::mem::take(&mut kept.parts));
            let segment = self.put(&kept.instance, writer, parts)?;
            kept.instance.chain.push(segment);
        }
        Ok(())
    }

    fn put(&mut self, instance: &Instance, writer: SegmentWriter, parts: Vec<PartRef>) -> Result<SegmentRef> {
        let name = new_name(&self.door, &self.counter, instance.job, instance.slot);
        self.in_chains.lock().insert(ObjectName::Segment(name));
        put_segment(&self.door, name, instance.slots, writer, parts)
    }

    fn let_go(&self, chain: &[SegmentRef]) {
        let mut held = self.in_chains.lock();
        for name in chain.iter().filter_map(name_of) {
            held.remove(&name);
        }
    }

    /// Replaces the chain by one segment of its content.
    fn shorten(&mut self, kept: &mut Kept) -> Result<()> {
        let (mut writer, mut refs) = (SegmentWriter::new(), Vec::new());
        for (task, parts) in kept.instance.parts.iter().enumerate() {
            for part in parts {
                let rows = content(&self.door, &kept.instance.chain, task, part)?;
                add(&mut writer, &mut refs, task, part, rows)?;
            }
        }
        let short = match writer.is_empty() {
            true => Vec::new(),
            false => vec![self.put(&kept.instance, writer, refs)?],
        };
        self.let_go(&kept.instance.chain);
        kept.instance.chain = short;
        Ok(())
    }
}

/// A name that no object has had.
pub fn new_name(door: &Door, counter: &AtomicU64, job: JobId, slot: SlotId) -> SegmentName {
    let counter = counter.fetch_add(1, Ordering::Relaxed) + 1;
    SegmentName { job, generation: door.writer().generation, counter, slot: u32::from(slot.0) }
}

fn name_of(segment: &SegmentRef) -> Option<ObjectName> {
    ObjectName::parse(segment.object()?)
}

/// Stores a segment of one slot of `slots` as a new object.
pub fn put_segment(
    door: &Door,
    name: SegmentName,
    slots: usize,
    writer: SegmentWriter,
    parts: Vec<PartRef>,
) -> Result<SegmentRef> {
    let (object, bytes) = (ObjectName::Segment(name).to_string(), writer.finish()?);
    match door.put_new(&object, &bytes)? {
        PutNew::Created => Ok(SegmentRef::in_object(object, name.slot, slots as u32, &bytes, parts)),
        PutNew::Exists(_) => {
            Err(Error::internal(format!("object \"{object}\" exists, though its name was given out only now")))
        }
    }
}

fn add(
    writer: &mut SegmentWriter,
    refs: &mut Vec<PartRef>,
    task: usize,
    part: &StatePart,
    changes: ChangeBatch,
) -> Result<()> {
    // What came and went since the last time need not be stored.
    let changes = merge(part.kind, &part.schema, vec![changes], false)?;
    let task = TaskId(task as u32);
    for start in (0..changes.num_rows()).step_by(CHUNK_ROWS) {
        let chunk = changes.slice(start, CHUNK_ROWS.min(changes.num_rows() - start));
        let bytes = flow::wire::encode(&chunk)?;
        writer.add(task, &part.name, &bytes);
        let (rows, bytes) = (chunk.num_rows() as u64, bytes.len() as u64);
        match refs.iter_mut().find(|r| r.task == task && r.part == *part.name) {
            Some(known) => {
                known.rows += rows;
                known.bytes += bytes;
            }
            None => refs.push(PartRef { task, part: part.name.to_string(), schema: shape(part), rows, bytes }),
        }
    }
    Ok(())
}

/// The types of a part's columns.
fn shape(part: &StatePart) -> String {
    part.schema.fields().iter().map(|f| f.data_type().to_string()).collect::<Vec<_>>().join(", ")
}

fn overgrown(chain: &[SegmentRef]) -> bool {
    let all: u64 = chain.iter().map(|s| s.bytes).sum();
    let first = chain.first().map_or(0, |s| s.bytes);
    chain.len() > CHAIN_SEGMENTS && all > CHAIN_GROWTH * first
}
