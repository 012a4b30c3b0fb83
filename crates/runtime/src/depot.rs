//! Where the state of jobs is stored: one service of a worker encodes what slots have frozen and puts it into the store.
//!
//! The state of a job on a slot is a chain of segments, each with the changes since the one before. A chain that has grown
//! to several times its content is replaced by the content, and small segments at its end are put together.
//!
//! A segment of few bytes is no object of its own but stands in the manifests, as long as there are few of them in a chain.
//!
//! A segment holds chunks by task and part; a chunk is a change batch as `flow::wire` writes it.
//!
//! A full disk, or a store that is away, holds everything up: the same segment is put again and again until it is there. Slots
//! go on meanwhile, up to a bound of what may wait.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use checkpoint::door::{Door, PutNew};
use checkpoint::manifest::{PartRef, SegmentPlace, SegmentRef};
use checkpoint::names::{ObjectName, SegmentName};
use checkpoint::segment::{SegmentReader, SegmentWriter};
use checkpoint::{crash, planted};
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use flow::hash::{hash_columns, slot_of_vnode, vnode};
use flow::process::{PartKind, StatePart};
use flow::{ChangeBatch, Diff, Epoch, Error, JobId, Result, SlotId, SqlState, TaskId};
use parking_lot::Mutex;
use plan::process::{Input, Task};
use plan::{Placed, ProcessPlan, TaskOp};
use state::owned;
use tracing::warn;

use crate::freeze::{Frozen, Seal};
use crate::message::{DeploymentId, FromSlot, StoredState};
use crate::ops::emit::record;
use crate::ops::{self, OpContext};
use crate::parts::merge;
use crate::service::{Join, NowUs, Pause, Service, Stepped, wait_for_message};
use crate::slot::Reports;
use crate::terminal::{self, Stores};

/// A segment is put into the store when it has so many bytes, though its checkpoint is not whole.
const SEGMENT_BYTES: usize = 64 << 20;
/// A segment of at most so many bytes stands in manifests, as long as those of its chain that do come to no more than the second
/// number: every checkpoint writes them once more.
const INLINE_BYTES: u64 = 2 << 10;
const INLINE_BYTES_CHAIN: u64 = 4 << 10;
/// Rows of a chunk at most.
const CHUNK_ROWS: usize = 64 << 10;
/// Segments of a chain that are put together at least.
const TAIL_SEGMENTS: usize = 4;
/// Larger ones are not put together.
const TAIL_BYTES: u64 = 16 << 20;
/// Bytes of a chunk, about, at most.
const CHUNK_BYTES: usize = 8 << 20;
/// Memory of a segment that is kept for the next one after a checkpoint is whole.
const SPARE_BYTES: usize = 1 << 20;
/// A chain is replaced when it has so many times the bytes that its content had.
const CHAIN_GROWTH: u64 = 3;

/// Bytes that may wait to be stored before slots wait too.
const WAITING_BYTES_MAX: usize = 256 << 20;
/// How long a slot sleeps at a time while too much waits.
const FULL_WAIT: Duration = Duration::from_millis(1);

/// The rest before a segment is put again that the store did not take; it doubles up to the longest.
const REST_FIRST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(5);

/// One job on one slot.
#[derive(Debug)]
pub struct Instance {
    pub job: JobId,
    pub slot: SlotId,
    pub slots: usize,
    /// By task.
    pub parts: Vec<Vec<StatePart>>,
    pub chain: Vec<SegmentRef>,
    /// The chain's bytes when it last held nothing but content; 0: nobody knows.
    pub base: u64,
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
    now_us: NowUs,
    counter: Arc<AtomicU64>,
    errands: Sender<Errand>,
    /// Bytes that wait to be stored.
    waiting: Arc<AtomicUsize>,
    /// Slots do not wait any more.
    ending: AtomicBool,
    held: Held,
    /// Nothing is stored any more.
    ended: Arc<AtomicBool>,
    join: Mutex<Option<Box<dyn Join>>>,
}

impl Depot {
    /// The depot, and the service that stores what it takes. `counter` numbers the objects of the door's generation.
    pub fn new(
        door: Arc<Door>,
        counter: Arc<AtomicU64>,
        reports: Reports,
        now_us: NowUs,
    ) -> (Arc<Depot>, DepotService) {
        let (errands, todo) = unbounded();
        let (waiting, held, ended) = (Arc::default(), Held::default(), Arc::default());
        let service = DepotService {
            door: Arc::clone(&door),
            counter: Arc::clone(&counter),
            reports,
            now_us: Arc::clone(&now_us),
            todo,
            waiting: Arc::clone(&waiting),
            in_chains: Arc::clone(&held),
            ended: Arc::clone(&ended),
            instances: HashMap::new(),
            spare: Vec::new(),
            held_up: None,
            told_full: false,
        };
        let (ending, join) = (AtomicBool::new(false), Mutex::new(None));
        (Arc::new(Depot { door, now_us, counter, errands, waiting, ending, held, ended, join }), service)
    }

    /// What slots measure their pauses with.
    pub fn clock(&self) -> NowUs {
        Arc::clone(&self.now_us)
    }

    /// The service was started; [`stop`](Self::stop) waits for its end.
    pub fn started(&self, join: Box<dyn Join>) {
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
        let ended = || self.ending.load(Ordering::Relaxed) || self.ended.load(Ordering::Relaxed);
        while self.waiting.load(Ordering::Relaxed) > WAITING_BYTES_MAX && !ended() {
            std::thread::sleep(FULL_WAIT);
        }
        self.waiting.fetch_add(frozen.bytes(), Ordering::Relaxed);
        self.send(Errand::Take(deployment, slot, frozen));
    }

    /// A job is gone from a slot.
    pub fn close(&self, deployment: DeploymentId, slot: SlotId) {
        self.send(Errand::Close(deployment, slot));
    }

    /// What must not be cleared away although the newest checkpoint may not name it yet. Objects that are named from here on
    /// get numbers above `counter`, which is raised to that of the newest there is.
    pub fn held(&self, counter: &AtomicU64) -> BTreeSet<ObjectName> {
        // Names are given under this lock.
        let held = self.held.lock();
        self.counter.fetch_max(counter.load(Ordering::Relaxed), Ordering::Relaxed);
        counter.fetch_max(self.counter.load(Ordering::Relaxed), Ordering::Relaxed);
        held.clone()
    }

    /// No slot waits for the store from now on: they are to end.
    pub fn begin_to_stop(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Ends the service. What is not stored yet belongs to no checkpoint.
    pub fn stop(&self) {
        self.send(Errand::Stop);
        let join = self.join.lock().take();
        if let Some(mut join) = join {
            join.join();
        }
    }

    /// The rows of a part that belong to a slot, as the chains of all slots that there were have them.
    pub fn content(&self, chains: &[Vec<SegmentRef>], share: &Share<'_>) -> Result<Vec<ChangeBatch>> {
        let mut found = Vec::new();
        for (from, chain) in chains.iter().enumerate() {
            if !overlaps((from, chains.len()), share) {
                continue;
            }
            let rows = content(&self.door, chain, share.task, share.part, true)?;
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

/// What a chain says of a part, merged; with `whole` it begins with the first segment.
fn content(door: &Door, chain: &[SegmentRef], task: usize, part: &StatePart, whole: bool) -> Result<ChangeBatch> {
    let task = TaskId(task as u32);
    let mut batches = Vec::new();
    let holds = |segment: &&SegmentRef| segment.parts.iter().any(|p| p.task == task && p.part == *part.name);
    for segment in chain.iter().filter(holds) {
        let reader = SegmentReader::open(bytes_of(door, segment)?)?;
        for chunk in reader.chunks(task, &part.name) {
            batches.push(shaped(flow::wire::decode(&chunk)?, part)?);
        }
    }
    merge(part.kind, &part.schema, batches, whole)
}

/// All that the chains of a job's slots say of a part. Shape: the part's columns; a row of a counted part may come several
/// times. Errors: `XX001` missing or damaged segments.
pub fn whole_content(
    door: &Door,
    chains: &[Vec<SegmentRef>],
    task: usize,
    part: &StatePart,
) -> Result<Vec<ChangeBatch>> {
    chains.iter().map(|chain| content(door, chain, task, part, true)).collect()
}

/// The parts of each task's state, by task. Errors: as when the plan is started.
pub fn parts_of(plan: &ProcessPlan) -> Result<Vec<Vec<StatePart>>> {
    let context = OpContext { slot: SlotId(0), slots: 1, batch_rows: CHUNK_ROWS };
    let stores = Stores::default();
    let parts = |task: &Task| {
        let input = |input: &Input| plan.tasks.get(input.from.0 as usize).map(|from| Arc::clone(&from.schema));
        let schemas: Option<Vec<SchemaRef>> = task.inputs.iter().map(input).collect();
        let schemas = schemas.ok_or_else(|| Error::internal("plan is not in order"))?;
        let function = match &task.op {
            TaskOp::Relation { .. } | TaskOp::Deliver { .. } => return Ok(Vec::new()),
            TaskOp::Materialize { relation, key } => {
                let store = stores.create(*relation, &task.schema, key.clone(), 1)?;
                terminal::materialize(store, &task.schema, SlotId(0), Arc::default())
            }
            _ => ops::instantiate(task, &schemas, &context)?,
        };
        Ok(function.parts())
    };
    plan.tasks.iter().map(parts).collect()
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
    /// Segments that are whole, but not in the store yet.
    whole: VecDeque<Segment>,
    /// What is to be told when they are.
    seal: Option<Seal>,
    /// Bytes of what was taken and is not stored yet.
    waiting: usize,
}

/// A segment on its way to the store.
struct Segment {
    /// Given when it becomes an object.
    name: Option<SegmentName>,
    bytes: Vec<u8>,
    parts: Vec<PartRef>,
}

/// What waits for the store, and everything behind it.
struct HeldUp {
    at: (DeploymentId, SlotId),
    /// The rest after the next failure.
    rest: Duration,
    /// Until it is tried again.
    pause: Pause,
    cause: Error,
    behind: VecDeque<Errand>,
}

/// Stores what the [`Depot`] takes, in the order in which it came.
pub struct DepotService {
    door: Arc<Door>,
    counter: Arc<AtomicU64>,
    reports: Reports,
    now_us: NowUs,
    todo: Receiver<Errand>,
    /// See [`Depot`].
    waiting: Arc<AtomicUsize>,
    in_chains: Held,
    ended: Arc<AtomicBool>,
    instances: HashMap<(DeploymentId, SlotId), Kept>,
    /// The memory of a segment that is stored, for the next one: the system clears what it gives.
    spare: Vec<u8>,
    held_up: Option<HeldUp>,
    /// It was reported that too much waits.
    told_full: bool,
}

impl Service for DepotService {
    fn name(&self) -> String {
        "depot".into()
    }

    fn step(&mut self) -> Stepped {
        if self.held_up.as_ref().is_some_and(|held_up| held_up.pause.left((self.now_us)()).is_none()) {
            self.again();
            return Stepped::Worked;
        }
        match self.todo.try_recv() {
            Ok(Errand::Stop) | Err(TryRecvError::Disconnected) => Stepped::Ended,
            Err(TryRecvError::Empty) => Stepped::Idle,
            Ok(errand) => {
                self.take_errand(errand);
                Stepped::Worked
            }
        }
    }

    fn wait(&mut self) {
        let left = self.held_up.as_ref().map(|held_up| held_up.pause.left((self.now_us)()).unwrap_or_default());
        wait_for_message(&self.todo, left);
    }
}

impl Drop for DepotService {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl DepotService {
    /// Does what is asked for, or lets it wait behind what is held up.
    fn take_errand(&mut self, errand: Errand) {
        match &mut self.held_up {
            None => self.do_errand(errand),
            Some(held_up) => match errand {
                Errand::Close(deployment, slot) if held_up.at == (deployment, slot) => {
                    self.do_errand(errand);
                    self.go_on();
                }
                errand => {
                    held_up.behind.push_back(errand);
                    self.tell_if_full();
                }
            },
        }
    }

    fn do_errand(&mut self, errand: Errand) {
        match errand {
            Errand::Open(deployment, instance) => {
                self.in_chains.lock().extend(instance.chain.iter().filter_map(name_of));
                let at = (deployment, instance.slot);
                let (open, parts, whole) = (SegmentWriter::new(), Vec::new(), VecDeque::new());
                self.instances.insert(at, Kept { instance, open, parts, whole, seal: None, waiting: 0 });
            }
            Errand::Close(deployment, slot) => {
                if let Some(kept) = self.instances.remove(&(deployment, slot)) {
                    self.waiting.fetch_sub(kept.waiting, Ordering::Relaxed);
                    self.let_go(&kept.instance.chain);
                    let mut held = self.in_chains.lock();
                    for name in kept.whole.iter().filter_map(|segment| segment.name) {
                        held.remove(&ObjectName::Segment(name));
                    }
                }
            }
            Errand::Take(deployment, slot, mut frozen) => {
                let at = (deployment, slot);
                if planted::is("delta") {
                    frozen.changes.pop();
                }
                let (epoch, bytes) = (frozen.seal.as_ref().map(|s| s.epoch), frozen.bytes());
                if epoch.is_some() {
                    crash::point("C3");
                }
                let Some(mut kept) = self.instances.remove(&at) else {
                    self.waiting.fetch_sub(bytes, Ordering::Relaxed);
                    return;
                };
                kept.waiting += bytes;
                let encoded = self.encode(&mut kept, frozen);
                self.instances.insert(at, kept);
                match encoded {
                    Ok(()) => self.store_whole(at),
                    Err(error) => self.cannot_store(at, epoch, error),
                }
            }
            // The service is over then.
            Errand::Stop => {}
        }
    }

    /// The store may take what it did not before.
    fn again(&mut self) {
        if let Some(at) = self.held_up.as_ref().map(|held_up| held_up.at) {
            self.store_whole(at);
        }
    }

    /// What was held up is stored, or is gone: does what waited behind it.
    fn go_on(&mut self) {
        let Some(held_up) = self.held_up.take() else { return };
        self.told_full = false;
        (self.reports)(FromSlot::Storing { cause: None, full: false });
        for errand in held_up.behind {
            self.take_errand(errand);
        }
    }

    fn hold_up(&mut self, at: (DeploymentId, SlotId), cause: Error) {
        let (rest, behind) = match self.held_up.take() {
            Some(before) => (before.rest, before.behind),
            None => (REST_FIRST, VecDeque::new()),
        };
        if behind.is_empty() && rest == REST_FIRST {
            warn!(error = %cause, "state cannot be stored for now");
        }
        (self.reports)(FromSlot::Storing { cause: Some(cause.clone()), full: self.told_full });
        let pause = Pause::new((self.now_us)(), rest);
        self.held_up = Some(HeldUp { at, rest: (rest * 2).min(REST_MAX), pause, cause, behind });
        self.tell_if_full();
    }

    fn tell_if_full(&mut self) {
        if let Some(held_up) = &self.held_up
            && !self.told_full
            && self.waiting.load(Ordering::Relaxed) > WAITING_BYTES_MAX / 2
        {
            self.told_full = true;
            (self.reports)(FromSlot::Storing { cause: Some(held_up.cause.clone()), full: true });
        }
    }

    /// What was told is lost to the chain, so it never makes a whole state any more.
    fn cannot_store(&mut self, at: (DeploymentId, SlotId), epoch: Option<Epoch>, error: Error) {
        self.do_errand(Errand::Close(at.0, at.1));
        (self.reports)(FromSlot::NotStored { slot: at.1, deployment: at.0, epoch: epoch.unwrap_or_default(), error });
    }

    /// Turns what has changed into segments.
    fn encode(&mut self, kept: &mut Kept, frozen: Frozen) -> Result<()> {
        // Together, so that what comes and goes is not stored, and chunks are not small.
        let mut by_part: BTreeMap<(usize, usize), Vec<ChangeBatch>> = BTreeMap::new();
        for change in frozen.changes {
            by_part.entry((change.task, change.part)).or_default().push(change.changes);
        }
        for ((task, part), changes) in by_part {
            let StatePart { kind, schema, .. } = &kept.instance.parts[task][part];
            let added = changes.iter().all(|c| c.diff == Diff::Insert);
            let groups = match kind {
                // There is nothing to net.
                PartKind::Counted if added && !schema.fields().is_empty() => in_groups(schema, changes)?,
                kind => vec![merge(*kind, schema, changes, false)?],
            };
            for chunk in groups.iter().flat_map(chunks) {
                let Kept { instance, open, parts, .. } = kept;
                add(open, parts, task, &instance.parts[task][part], &chunk?)?;
                if kept.open.len() >= SEGMENT_BYTES {
                    self.end_segment(kept)?;
                }
            }
        }
        if frozen.seal.is_some() {
            self.end_segment(kept)?;
            kept.seal = frozen.seal;
        }
        Ok(())
    }

    /// Ends the open segment, if there is anything in it.
    fn end_segment(&mut self, kept: &mut Kept) -> Result<()> {
        if !kept.open.is_empty() {
            let next = SegmentWriter::reusing(std::mem::take(&mut self.spare));
            let (writer, parts) = (std::mem::replace(&mut kept.open, next), std::mem::take(&mut kept.parts));
            kept.whole.push_back(Segment { name: None, bytes: writer.finish()?, parts });
        }
        Ok(())
    }

    /// Stores a segment behind those in `chain`. After an error that may pass it may be tried again: it keeps its name.
    fn put(&self, instance: &Instance, chain: &[SegmentRef], segment: &mut Segment) -> Result<SegmentRef> {
        let Segment { name, bytes, parts } = segment;
        let inline: u64 = chain.iter().filter(|s| s.object().is_none()).map(|s| s.bytes).sum();
        let slot = u32::from(instance.slot.0);
        let len = bytes.len() as u64;
        if name.is_none() && len <= INLINE_BYTES && inline + len <= INLINE_BYTES_CHAIN {
            return Ok(SegmentRef::inline(slot, instance.slots as u32, bytes.clone(), parts.clone()));
        }
        let name = name.get_or_insert_with(|| {
            let mut held = self.in_chains.lock();
            let name = new_name(&self.door, &self.counter, instance.job, instance.slot);
            held.insert(ObjectName::Segment(name));
            name
        });
        put_segment(&self.door, instance.slots, *name, bytes, parts)
    }

    /// Puts the whole segments of an instance into the store, and reports its state if it is sealed.
    fn store_whole(&mut self, at: (DeploymentId, SlotId)) {
        let Some(mut kept) = self.instances.remove(&at) else { return };
        match self.store(&mut kept) {
            Ok(state) => {
                let (bytes, seal) = (std::mem::take(&mut kept.waiting), kept.seal.take());
                self.instances.insert(at, kept);
                self.waiting.fetch_sub(bytes, Ordering::Relaxed);
                if let (Some(state), Some(Seal { epoch, .. })) = (state, seal) {
                    crash::point("C5");
                    (self.reports)(FromSlot::Stored { slot: at.1, deployment: at.0, epoch, state });
                }
                self.go_on();
            }
            Err(cause) if cause.may_pass() => {
                self.instances.insert(at, kept);
                self.hold_up(at, cause);
            }
            Err(error) => {
                let epoch = kept.seal.as_ref().map(|s| s.epoch);
                self.instances.insert(at, kept);
                self.cannot_store(at, epoch, error);
                self.go_on();
            }
        }
    }

    /// May be called again after an error that may pass.
    fn store(&mut self, kept: &mut Kept) -> Result<Option<StoredState>> {
        while let Some(mut segment) = kept.whole.pop_front() {
            match self.put(&kept.instance, &kept.instance.chain, &mut segment) {
                Ok(stored) => {
                    kept.instance.chain.push(stored);
                    if segment.bytes.capacity() > self.spare.capacity() {
                        self.spare = segment.bytes;
                    }
                    crash::point("C4");
                }
                Err(error) => {
                    // Under the same name: it may be there already.
                    kept.whole.push_front(segment);
                    return Err(error);
                }
            }
        }
        let Some(Seal { watermarks, now_us, pause_us, .. }) = kept.seal.clone() else { return Ok(None) };
        self.spare.shrink_to(SPARE_BYTES);
        kept.open.shrink_to(SPARE_BYTES);
        if kept.instance.base == 0 {
            kept.instance.base = bytes_in(&kept.instance.chain);
        }
        if let Some(from) = too_long(&kept.instance.chain, kept.instance.base) {
            self.shorten(kept, from)?;
        }
        let Instance { chain, base, .. } = &kept.instance;
        Ok(Some(StoredState { chain: chain.clone(), base: *base, watermarks, now_us, pause_us }))
    }

    fn let_go(&self, chain: &[SegmentRef]) {
        let mut held = self.in_chains.lock();
        for name in chain.iter().filter_map(name_of) {
            held.remove(&name);
        }
    }

    /// Replaces the segments of the chain from `from` on by others that say the same.
    fn shorten(&mut self, kept: &mut Kept, from: usize) -> Result<()> {
        let mut chain = kept.instance.chain[..from].to_vec();
        let outcome = self.write_anew(kept, from, &mut chain);
        // Nothing is lost: it is made anew, under other names.
        let gone = if outcome.is_ok() { &kept.instance.chain[from..] } else { &chain[from..] };
        self.let_go(gone);
        outcome?;
        kept.instance.chain = chain;
        if from == 0 {
            kept.instance.base = bytes_in(&kept.instance.chain);
        }
        Ok(())
    }

    /// Stores what the segments from `from` on say, and puts it at the end of `chain`.
    fn write_anew(&mut self, kept: &Kept, from: usize, chain: &mut Vec<SegmentRef>) -> Result<()> {
        let (mut writer, mut refs) = (SegmentWriter::new(), Vec::new());
        let end = |writer: &mut SegmentWriter, refs: &mut Vec<PartRef>, chain: &mut Vec<SegmentRef>| -> Result<()> {
            if writer.is_empty() {
                return Ok(());
            }
            let bytes = std::mem::take(writer).finish()?;
            let mut segment = Segment { name: None, bytes, parts: std::mem::take(refs) };
            let stored = self.put(&kept.instance, chain, &mut segment);
            if let (Err(_), Some(name)) = (&stored, segment.name) {
                self.in_chains.lock().remove(&ObjectName::Segment(name));
            }
            chain.push(stored?);
            Ok(())
        };
        for (task, parts) in kept.instance.parts.iter().enumerate() {
            for part in parts {
                let rows = content(&self.door, &kept.instance.chain[from..], task, part, from == 0)?;
                for chunk in chunks(&rows) {
                    add(&mut writer, &mut refs, task, part, &chunk?)?;
                    if writer.len() >= SEGMENT_BYTES {
                        end(&mut writer, &mut refs, chain)?;
                    }
                }
            }
        }
        end(&mut writer, &mut refs, chain)
    }
}

/// A name that no object has had.
fn new_name(door: &Door, counter: &AtomicU64, job: JobId, slot: SlotId) -> SegmentName {
    let counter = counter.fetch_add(1, Ordering::Relaxed) + 1;
    SegmentName { job, generation: door.writer().generation, counter, slot: u32::from(slot.0) }
}

fn name_of(segment: &SegmentRef) -> Option<ObjectName> {
    ObjectName::parse(segment.object()?)
}

/// Stores a segment of one slot of `slots` as a new object; again without effect if an earlier try did it.
fn put_segment(door: &Door, slots: usize, name: SegmentName, bytes: &[u8], parts: &[PartRef]) -> Result<SegmentRef> {
    let object = ObjectName::Segment(name).to_string();
    match door.put_new(&object, bytes)? {
        PutNew::Created => Ok(SegmentRef::in_object(object, name.slot, slots as u32, bytes, parts.to_vec())),
        PutNew::Exists(_) => {
            Err(Error::internal(format!("object \"{object}\" exists, though its name was given out only now")))
        }
    }
}

/// Stores a segment that belongs to no slot as a new object.
pub fn put_single(
    door: &Door,
    counter: &AtomicU64,
    job: JobId,
    writer: SegmentWriter,
    parts: Vec<PartRef>,
) -> Result<SegmentRef> {
    let name = new_name(door, counter, job, SlotId(0));
    put_segment(door, 1, name, &writer.finish()?, &parts)
}

/// Changes in pieces that keep nothing else alive: a slice of texts would be written with all that it is a slice of.
fn chunks(changes: &ChangeBatch) -> impl Iterator<Item = Result<ChangeBatch>> + '_ {
    let rows = changes.num_rows();
    let bytes: usize = changes.rows.columns().iter().map(|c| c.get_array_memory_size()).sum();
    let length = CHUNK_ROWS.min(rows.saturating_mul(CHUNK_BYTES) / bytes.max(1)).max(1);
    (0..rows).step_by(length).map(move |start| {
        let chunk = changes.slice(start, length.min(rows - start));
        let columns = chunk.rows.columns().iter().map(owned).collect::<Result<Vec<_>>>()?;
        Ok(ChangeBatch::new(record(&chunk.rows.schema(), columns, chunk.num_rows())?, chunk.diff))
    })
}

/// Insertions put together to about a chunk each, in their order, so that chunks are neither small nor copied twice.
fn in_groups(schema: &SchemaRef, changes: Vec<ChangeBatch>) -> Result<Vec<ChangeBatch>> {
    let (mut groups, mut group) = (Vec::new(), Vec::new());
    let (mut rows, mut bytes) = (0, 0);
    for change in changes {
        let (more_rows, more_bytes) = (change.num_rows(), change.bytes());
        if !group.is_empty() && (rows + more_rows > CHUNK_ROWS || bytes + more_bytes > CHUNK_BYTES / 2) {
            groups.push(ChangeBatch::concat(schema, &group)?);
            group.clear();
            (rows, bytes) = (0, 0);
        }
        (rows, bytes) = (rows + more_rows, bytes + more_bytes);
        group.push(change);
    }
    if !group.is_empty() {
        groups.push(ChangeBatch::concat(schema, &group)?);
    }
    Ok(groups)
}

/// Adds a chunk to a segment.
fn add(
    writer: &mut SegmentWriter,
    refs: &mut Vec<PartRef>,
    task: usize,
    part: &StatePart,
    chunk: &ChangeBatch,
) -> Result<()> {
    let task = TaskId(task as u32);
    let bytes = writer.add(task, &part.name, |bytes| flow::wire::encode_to(chunk, bytes))?;
    let rows = chunk.num_rows() as u64;
    match refs.iter_mut().find(|r| r.task == task && r.part == *part.name) {
        Some(known) => {
            known.rows += rows;
            known.bytes += bytes;
        }
        None => refs.push(PartRef { task, part: part.name.to_string(), schema: shape(part), rows, bytes }),
    }
    Ok(())
}

/// The types of a part's columns.
fn shape(part: &StatePart) -> String {
    part.schema.fields().iter().map(|f| f.data_type().to_string()).collect::<Vec<_>>().join(", ")
}

fn bytes_in(chain: &[SegmentRef]) -> u64 {
    chain.iter().map(|s| s.bytes).sum()
}

/// From which segment on a chain is better one segment.
///
/// A chain that has grown to several times `base`, the bytes of its content once, is replaced as a whole. Segments at its end that are about as small as those after them are put together, as by a binary counter: so a chain has about the logarithm
/// of the number of its checkpoints, and what a checkpoint adds is written about as often.
fn too_long(chain: &[SegmentRef], base: u64) -> Option<usize> {
    if chain.len() >= TAIL_SEGMENTS && bytes_in(chain) > CHAIN_GROWTH * base {
        return Some(0);
    }
    let (mut from, mut tail) = (chain.len(), 0);
    while let Some(before) = from.checked_sub(1).map(|n| chain[n].bytes)
        && before <= TAIL_BYTES
        && (tail == 0 || before <= 2 * tail)
    {
        from -= 1;
        tail += before;
    }
    (chain.len() - from >= TAIL_SEGMENTS).then_some(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chains of many checkpoints that each add `delta` bytes to a first of `first`; returns the longest, and the bytes written.
    fn grown(first: u64, delta: u64, checkpoints: usize) -> (usize, u64) {
        let segment = |bytes: u64| SegmentRef { bytes, ..SegmentRef::inline(0, 1, Vec::new(), Vec::new()) };
        let (mut chain, mut longest, mut written) = (vec![segment(first)], 0, first);
        for _ in 0..checkpoints {
            chain.push(segment(delta));
            written += delta;
            if let Some(from) = too_long(&chain, first) {
                // The content stays as large as it was.
                let bytes = if from == 0 { first } else { bytes_in(&chain[from..]) };
                chain.truncate(from);
                chain.push(segment(bytes));
                written += bytes;
            }
            longest = longest.max(chain.len());
        }
        (longest, written)
    }

    #[test]
    fn chunks_of_texts_hold_their_own_texts_alone() {
        use arrow::array::{ArrayRef, StringViewArray};
        let texts = (0..200_000).map(|n| format!("a text of more than twelve bytes, number {n}"));
        let column: ArrayRef = Arc::new(StringViewArray::from_iter_values(texts));
        let rows = RecordBatch::try_from_iter([("t", column)]).unwrap();
        let all = ChangeBatch::insert(rows);
        let (mut rows, mut bytes, mut most) = (0, 0, 0);
        for chunk in chunks(&all) {
            let chunk = chunk.unwrap();
            let encoded = flow::wire::encode(&chunk).unwrap();
            (rows, bytes, most) = (rows + chunk.num_rows(), bytes + encoded.len(), most.max(encoded.len()));
            let back = flow::wire::decode(&encoded).unwrap();
            assert_eq!(back.rows.columns(), chunk.rows.columns());
        }
        assert_eq!(rows, 200_000);
        assert!(bytes < 200_000 * 70 && most < 2 * CHUNK_BYTES, "{bytes} bytes, {most} in one");
        // However few rows there are, they come in pieces.
        let large: ArrayRef = Arc::new(StringViewArray::from_iter_values((0..5).map(|_| "x".repeat(6 << 20))));
        let large = ChangeBatch::insert(RecordBatch::try_from_iter([("t", large)]).unwrap());
        assert_eq!(chunks(&large).count(), 5);
    }

    #[test]
    fn chains_stay_short_and_are_seldom_rewritten() {
        for (first, delta) in [(1 << 30, 1000), (1 << 20, 1000), (1000, 1000), (100, 100_000), (0, 10)] {
            let checkpoints = 20_000;
            let (longest, written) = grown(first, delta, checkpoints);
            let told = first + delta * checkpoints as u64;
            assert!(longest <= 24, "{longest} segments of {first} and {delta}");
            assert!(written <= 12 * told, "{written} bytes written for {told}");
        }
        // Large ones are left alone until the whole is rewritten.
        let (longest, written) = grown(1 << 30, 100 << 20, 100);
        assert!(longest <= 22 && written < 25 << 30, "{longest} segments, {written} bytes");
    }
}
