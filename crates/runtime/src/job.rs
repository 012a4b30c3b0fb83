//! One job on one slot: its face, which the slot speaks to, and its machine, which holds queues by level, aligns barriers
//! and dispatches what the tasks emit. The machine can be lent to the slot's background thread; see `crate::background`.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, UInt32Array};
use flow::hash::{hash_columns, slot_of_vnode, vnode};
use flow::process::{StatePart, WATERMARK_END, WATERMARK_START};
use flow::{ChangeBatch, Error, ProcessFunction, RelationId, Result, SlotId, TaskId};
use plan::process::{Input, Task};
use plan::{Exchange, Placed, ProcessPlan, TaskOp};

use crate::depot::Instance;
use crate::freeze::{Freezing, Frozen};
use crate::message::{Counted, DeploymentId, Owed, Restore, Spread, Tick};
use crate::ops::{self, OpContext};
use crate::slot::Shared;
use crate::terminal;

/// Bytes that may wait in the queues of one level of one job on one slot before the levels above it pause.
pub const QUEUE_BYTES_MAX: usize = 32 << 20;

/// Bytes waiting in each (slot, level) queue of one deployment; shared by its instances on all slots.
#[derive(Debug)]
pub struct QueueBytes {
    levels: usize,
    cells: Vec<AtomicUsize>,
}

/// Of a slot in another process a cell counts what this process has sent there and not been given back.
impl QueueBytes {
    pub fn new(slots: usize, levels: usize) -> QueueBytes {
        QueueBytes { levels, cells: (0..slots * levels).map(|_| AtomicUsize::new(0)).collect() }
    }

    fn cell(&self, slot: usize, level: usize) -> &AtomicUsize {
        &self.cells[slot * self.levels + level]
    }

    pub fn add(&self, slot: usize, level: usize, bytes: usize) {
        self.cell(slot, level).fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns true when the queue has just got room again.
    pub fn remove(&self, slot: usize, level: usize, bytes: usize) -> bool {
        if level >= self.levels || slot * self.levels + level >= self.cells.len() {
            // Said by another process.
            return false;
        }
        let before = self.cell(slot, level).fetch_sub(bytes, Ordering::Relaxed);
        before >= QUEUE_BYTES_MAX && before.saturating_sub(bytes) < QUEUE_BYTES_MAX
    }

    /// Whether any queue above `level` is full. The highest level never waits, so something can always run.
    fn full_above(&self, level: usize) -> bool {
        let slots = self.cells.len() / self.levels.max(1);
        (0..slots)
            .any(|slot| (level + 1..self.levels).any(|l| self.cell(slot, l).load(Ordering::Relaxed) >= QUEUE_BYTES_MAX))
    }
}

/// Something for a task to do.
#[derive(Debug)]
pub struct Work {
    pub task: usize,
    pub port: usize,
    pub tick: Tick,
    pub kind: WorkKind,
}

#[derive(Debug)]
pub enum WorkKind {
    /// What is owed for them is given back when they leave the queue.
    Rows(ChangeBatch, Owed),
    /// The channel has nothing more for this tick. Leaves are told the tick that follows.
    Barrier {
        then: Option<Tick>,
        now_us: i64,
        /// What the channel promises from the tick's end on.
        watermark_us: i64,
    },
}

impl WorkKind {
    /// Rows of this process.
    pub fn rows(changes: ChangeBatch) -> WorkKind {
        WorkKind::Rows(changes, Owed::default())
    }
}

/// What a job sends out of its slot's instance while it works.
#[derive(Debug)]
pub enum Outgoing {
    Rows {
        slot: usize,
        task: usize,
        port: usize,
        tick: Tick,
        changes: ChangeBatch,
    },
    Barrier {
        slot: usize,
        task: usize,
        port: usize,
        tick: Tick,
        now_us: i64,
        watermark_us: i64,
    },
    /// Net changes of a tick by the terminal task.
    Result {
        tick: Tick,
        changes: Vec<ChangeBatch>,
    },
    /// Changes of the state, for the depot.
    Frozen(Frozen),
    /// The terminal task has finished the tick, of this processing time; what it promises from then on.
    Finished {
        tick: Tick,
        now_us: i64,
        watermark_us: i64,
    },
}

/// Where a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    View(RelationId),
    Sink(RelationId),
}

struct TaskInstance {
    /// Absent for leaves that only pass relation changes on.
    function: Option<Box<dyn ProcessFunction>>,
    level: usize,
    ports: Vec<Port>,
    /// The tick being worked on; for inner tasks unknown between two ticks.
    current: Option<Tick>,
    /// Work of later ticks, in order of arrival.
    stash: VecDeque<Work>,
    outputs: Vec<Output>,
}

struct Port {
    channels: usize,
    arrived: usize,
    /// The least that the channels have promised at this tick.
    promised_us: i64,
    /// What the function has been told.
    watermark_us: i64,
}

impl Port {
    fn new(channels: usize) -> Port {
        Port { channels, arrived: 0, promised_us: WATERMARK_END, watermark_us: WATERMARK_START }
    }
}

#[derive(Clone)]
struct Output {
    task: usize,
    port: usize,
    route: Route,
}

/// How rows come from one task to the next.
#[derive(Clone, Debug, PartialEq)]
enum Route {
    /// They stay on their slot.
    Forward,
    /// Each slot's rows go to one of those that the job works on.
    Fold,
    /// To the first slot.
    Gather,
    /// To every slot that the job works on.
    Broadcast,
    /// By these columns.
    Hash(Vec<usize>),
}

/// The routes of a job's rows, by task and port.
pub struct Wiring(Vec<Vec<Route>>);

impl Wiring {
    /// For a job that is spread over some of `slots` slots. Errors: `XX000` the plan is not in order.
    pub fn new(plan: &ProcessPlan, spread: &Spread, slots: usize) -> Result<Wiring> {
        let few = spread.parallelism < slots;
        let route = |task: usize, input: &Input| -> Result<Route> {
            let from = input.from.0 as usize;
            let upstream = plan.tasks.get(from).filter(|_| from < task);
            let upstream = upstream.ok_or_else(|| Error::internal("plan is not in order"))?;
            if slots == 1 {
                // One slot needs no exchange at all.
                return Ok(Route::Forward);
            }
            Ok(match (&input.exchange, &upstream.op) {
                (Exchange::Gather, _) => Route::Gather,
                (Exchange::Broadcast, _) => Route::Broadcast,
                (Exchange::Hash(columns), _) => Route::Hash(columns.clone()),
                (Exchange::Forward, TaskOp::Relation { relation, .. }) => match &input.placed {
                    Placed::Hash(columns) if few || spread.elsewhere.contains(relation) => Route::Hash(columns.clone()),
                    _ if few => Route::Fold,
                    _ => Route::Forward,
                },
                (Exchange::Forward, _) => Route::Forward,
            })
        };
        let routes = |(n, task): (usize, &Task)| task.inputs.iter().map(|input| route(n, input)).collect();
        Ok(Wiring(plan.tasks.iter().enumerate().map(routes).collect::<Result<_>>()?))
    }

    /// The level of each task: how many exchanges lie before it on its longest path.
    pub fn levels(&self, plan: &ProcessPlan) -> Vec<usize> {
        let mut levels = vec![0; plan.tasks.len()];
        for (i, task) in plan.tasks.iter().enumerate() {
            for (input, route) in task.inputs.iter().zip(&self.0[i]) {
                let step = usize::from(*route != Route::Forward);
                levels[i] = levels[i].max(levels[input.from.0 as usize] + step);
            }
        }
        levels
    }
}

/// The instance of a deployment on one slot, as its slot sees it.
pub struct Job {
    pub deployment: DeploymentId,
    pub end: End,
    pub attached: bool,
    /// Leaves by the relation they follow: (task, relation, projected columns, fed by a view of this worker).
    pub leaves: Vec<Leaf>,
    /// Bytes charged to the budget for this instance.
    pub charged: usize,
    slot: usize,
    task_levels: Vec<usize>,
    queued: Arc<QueueBytes>,
    /// Absent while it is lent.
    machine: Option<Box<Machine>>,
    /// Work that has arrived while the machine is lent.
    waiting: Vec<Work>,
    next_timer: Option<i64>,
}

/// What does a job's work on one slot: the tasks with their state and their queues.
pub struct Machine {
    pub end: End,
    slot: usize,
    slots: usize,
    parallelism: usize,
    tasks: Vec<TaskInstance>,
    levels: Vec<VecDeque<Work>>,
    queued: Arc<QueueBytes>,
    /// Bytes waiting in the stashes of all tasks.
    stashed: usize,
    /// Of a job whose state checkpoints keep.
    freezing: Option<Freezing>,
}

/// What a job on one slot starts from, beside its plan.
pub struct Start<'a> {
    pub first: Tick,
    pub parallelism: usize,
    pub wiring: &'a Wiring,
    /// Whether checkpoints keep its state.
    pub kept: bool,
    pub restore: Option<&'a Restore>,
}

/// A task without inputs.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub task: usize,
    /// `None` for constant rows.
    pub relation: Option<RelationId>,
    pub columns: Vec<usize>,
    /// Barriers come from the view's own job on this slot instead of from the coordinator.
    pub follows_view: bool,
}

impl Job {
    /// Instantiates every task of `plan` for `slot`. `is_view` says which relations a job of this worker maintains.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        deployment: DeploymentId,
        plan: &ProcessPlan,
        start: &Start<'_>,
        slot: SlotId,
        slots: usize,
        shared: &Shared,
        queued: Arc<QueueBytes>,
        is_view: impl Fn(RelationId) -> bool,
    ) -> Result<Job> {
        let task_levels = start.wiring.levels(plan);
        let parallelism = start.parallelism;
        let context = OpContext { slot, slots: parallelism, batch_rows: shared.batch_rows };
        let mut tasks: Vec<TaskInstance> = Vec::with_capacity(plan.tasks.len());
        let mut leaves = Vec::new();
        let mut end = None;
        let mut parts: Vec<Vec<StatePart>> = Vec::new();
        let mut anew = Vec::new();
        for (i, task) in plan.tasks.iter().enumerate() {
            let mut schemas = Vec::new();
            let mut ports = Vec::new();
            for (port, input) in task.inputs.iter().enumerate() {
                let from = input.from.0 as usize;
                schemas.push(Arc::clone(&plan.tasks[from].schema));
                let route = start.wiring.0[i][port].clone();
                ports.push(Port::new(if route == Route::Forward { 1 } else { slots }));
                tasks[from].outputs.push(Output { task: i, port, route });
            }
            let mut function = match &task.op {
                TaskOp::Relation { relation, columns } => {
                    leaves.push(Leaf {
                        task: i,
                        relation: Some(*relation),
                        columns: columns.clone(),
                        follows_view: is_view(*relation),
                    });
                    None
                }
                TaskOp::Materialize { relation, key } => {
                    end = Some(End::View(*relation));
                    let store = shared.stores.create(*relation, &task.schema, key.clone(), slots)?;
                    Some(terminal::materialize(store, &task.schema, slot, Arc::clone(&shared.floor)))
                }
                TaskOp::Deliver { sink } => {
                    end = Some(End::Sink(*sink));
                    Some(terminal::deliver(&task.schema, task.change_kind))
                }
                _ => Some(ops::instantiate(task, &schemas, &context)?),
            };
            parts.push(function.as_ref().map_or_else(Vec::new, |f| f.parts()));
            if let Some(function) = &mut function {
                if let Some(restore) = start.restore {
                    let watermarks = restore.watermarks.get(i).map_or(&[][..], Vec::as_slice);
                    let place = (slot, parallelism);
                    anew.extend(crate::freeze::restore(function.as_mut(), i, task, restore, place, shared)?);
                    function.restored(watermarks, restore.now_us)?;
                    for (port, watermark_us) in ports.iter_mut().zip(watermarks) {
                        port.watermark_us = *watermark_us;
                    }
                }
                if start.kept {
                    function.track();
                }
            }
            if task.inputs.is_empty() && function.is_some() {
                leaves.push(Leaf { task: i, relation: None, columns: Vec::new(), follows_view: false });
            }
            tasks.push(TaskInstance {
                function,
                level: task_levels[i],
                current: task.inputs.is_empty().then_some(start.first),
                ports,
                stash: VecDeque::new(),
                outputs: Vec::new(),
            });
        }
        let level_count = task_levels.iter().max().map_or(1, |l| l + 1);
        let depot = shared.depot.as_ref().filter(|_| start.kept);
        let freezing = depot.map(|depot| Freezing::new(Arc::clone(&shared.freeze_at), plan.tasks.len(), depot.clock()));
        if let Some(depot) = depot {
            let own = start.restore.and_then(|r| r.own_chain(slot, parallelism));
            let chain = own.unwrap_or_default().to_vec();
            let base = start.restore.filter(|_| !chain.is_empty()).and_then(|r| r.bases.get(slot.0 as usize));
            let base = base.copied().unwrap_or(0);
            depot.open(deployment, Instance { job: plan.job, slot, slots: parallelism, parts, chain, base });
            depot.take(deployment, slot, Frozen { changes: anew, seal: None });
        }
        let end = end.ok_or_else(|| Error::internal("plan has no terminal task"))?;
        let machine = Box::new(Machine {
            end,
            slot: slot.0 as usize,
            slots,
            parallelism,
            tasks,
            levels: (0..level_count).map(|_| VecDeque::new()).collect(),
            queued: Arc::clone(&queued),
            stashed: 0,
            freezing,
        });
        Ok(Job {
            deployment,
            end,
            attached: false,
            leaves,
            charged: 0,
            slot: slot.0 as usize,
            task_levels,
            queued,
            next_timer: machine.next_timer(),
            machine: Some(machine),
            waiting: Vec::new(),
        })
    }

    /// Puts work into its queue. `counted` says that its bytes were already added by the sender.
    pub fn enqueue(&mut self, work: Work, counted: bool) {
        let Some(level) = self.task_levels.get(work.task).copied() else { return };
        if let (WorkKind::Rows(changes, _), false) = (&work.kind, counted) {
            self.queued.add(self.slot, level, changes.bytes());
        }
        match &mut self.machine {
            Some(machine) => machine.enqueue(work),
            None => self.waiting.push(work),
        }
    }

    /// The machine, unless it is lent.
    pub fn machine(&mut self) -> Option<&mut Machine> {
        self.machine.as_deref_mut()
    }

    /// Lends the machine if it has something to do.
    pub fn lend(&mut self) -> Option<Box<Machine>> {
        self.machine.take_if(|machine| machine.runnable())
    }

    /// The machine for good, unless it is lent.
    pub fn into_machine(self) -> Option<Box<Machine>> {
        self.machine
    }

    /// Takes the machine back and hands it what has arrived meanwhile.
    pub fn put_back(&mut self, mut machine: Box<Machine>) {
        for work in self.waiting.drain(..) {
            machine.enqueue(work);
        }
        self.machine = Some(machine);
    }

    /// Notes what the slot wants to know of the machine after it has worked. Returns the bytes it holds.
    pub fn note(&mut self) -> usize {
        let Some(machine) = &self.machine else { return self.charged };
        self.next_timer = machine.next_timer();
        machine.state_bytes()
    }

    /// The earliest timer of any task, as of the last work done.
    pub fn next_timer(&self) -> Option<i64> {
        self.next_timer
    }

    /// Rows of state touched so far, over all tasks. `None` while the machine is lent.
    pub fn rows_touched(&self) -> Option<u64> {
        self.machine.as_ref().map(|machine| machine.rows_touched())
    }
}

impl Machine {
    /// Bytes that the tasks hold and that wait for them on this slot: the change log of a job that lags counts too.
    fn state_bytes(&self) -> usize {
        let queued: usize =
            (0..self.levels.len()).map(|level| self.queued.cell(self.slot, level).load(Ordering::Relaxed)).sum();
        queued
            + self.stashed
            + self.freezing.as_ref().map_or(0, Freezing::bytes)
            + self.tasks.iter().filter_map(|t| t.function.as_ref()).map(|f| f.state_bytes()).sum::<usize>()
    }

    fn next_timer(&self) -> Option<i64> {
        self.tasks.iter().filter_map(|t| t.function.as_ref()).filter_map(|f| f.next_timer()).min()
    }

    /// Counts rows that go to a task on `slot` as waiting there.
    pub fn count(&self, deployment: DeploymentId, slot: usize, task: usize, changes: &ChangeBatch) -> Counted {
        let (level, bytes) = (self.tasks[task].level, changes.bytes());
        self.queued.add(slot, level, bytes);
        Counted { deployment, slot: SlotId(slot as u16), level: level as u16, bytes }
    }

    /// Puts work into its queue whose bytes are counted.
    pub fn enqueue(&mut self, work: Work) {
        self.levels[self.tasks[work.task].level].push_back(work);
    }

    fn rows_touched(&self) -> u64 {
        self.tasks.iter().filter_map(|t| t.function.as_ref()).map(|f| f.rows_touched()).sum()
    }

    /// The level whose work comes next, downstream first.
    fn next_level(&self) -> Option<usize> {
        (0..self.levels.len()).rev().find(|level| !self.levels[*level].is_empty() && !self.queued.full_above(*level))
    }

    fn runnable(&self) -> bool {
        self.next_level().is_some()
    }

    /// Does one piece of work. Returns false when nothing can run now; `freed` is set when a queue got room that other
    /// slots may be waiting for.
    pub fn step(&mut self, out: &mut Vec<Outgoing>, freed: &mut bool) -> Result<bool> {
        let Some(level) = self.next_level() else { return Ok(false) };
        let Some(mut work) = self.levels[level].pop_front() else { return Ok(false) };
        if let WorkKind::Rows(changes, owed) = &mut work.kind {
            *freed |= self.queued.remove(self.slot, level, changes.bytes());
            drop(std::mem::take(owed));
        }
        // A bug in a kernel stops this job, not the slot.
        match catch_unwind(AssertUnwindSafe(|| self.run(work, out))) {
            Ok(done) => done.map(|()| true),
            Err(panic) => Err(panic_error(panic)),
        }
    }

    fn run(&mut self, work: Work, out: &mut Vec<Outgoing>) -> Result<()> {
        let task = &mut self.tasks[work.task];
        match task.current {
            Some(current) if work.tick > current => {
                if let WorkKind::Rows(changes, _) = &work.kind {
                    self.stashed += changes.bytes();
                }
                task.stash.push_back(work);
                return Ok(());
            }
            // A view that this leaf follows may still be finishing epochs that the back-fill's snapshot contains.
            Some(current) if work.tick < current && task.ports.is_empty() => return Ok(()),
            Some(current) if work.tick < current => return Err(Error::internal("work of a finished tick")),
            Some(_) => {}
            None => task.current = Some(work.tick),
        }
        match work.kind {
            WorkKind::Rows(changes, _) => self.process(work.task, work.port, work.tick, changes, out),
            WorkKind::Barrier { then, now_us, watermark_us } => {
                let instance = &mut self.tasks[work.task];
                if let Some(port) = instance.ports.get_mut(work.port) {
                    port.arrived += 1;
                    port.promised_us = port.promised_us.min(watermark_us);
                }
                if instance.ports.iter().any(|p| p.arrived < p.channels) {
                    let aligned = || instance.ports.iter().any(|p| p.arrived == p.channels);
                    if cfg!(debug_assertions)
                        && aligned()
                        && self.freezing.as_ref().is_some_and(|f| f.is_due(work.tick))
                    {
                        checkpoint::crash::point("C2");
                    }
                    return Ok(());
                }
                self.finish_tick(work.task, work.tick, then, now_us, watermark_us, out)
            }
        }
    }

    fn process(
        &mut self,
        task: usize,
        port: usize,
        tick: Tick,
        changes: ChangeBatch,
        out: &mut Vec<Outgoing>,
    ) -> Result<()> {
        if changes.num_rows() == 0 {
            return Ok(());
        }
        match &mut self.tasks[task].function {
            None => self.dispatch(task, tick, vec![changes], out),
            Some(function) => {
                let mut emitted = Vec::new();
                function.process(port, changes, &mut emitted)?;
                self.dispatch(task, tick, emitted, out)
            }
        }
    }

    /// Every channel of the task has ended the tick. `leaf_us` is the watermark of a task without inputs.
    fn finish_tick(
        &mut self,
        task: usize,
        tick: Tick,
        then: Option<Tick>,
        now_us: i64,
        leaf_us: i64,
        out: &mut Vec<Outgoing>,
    ) -> Result<()> {
        let instance = &mut self.tasks[task];
        let mut grown = Vec::new();
        for (n, port) in instance.ports.iter_mut().enumerate() {
            port.arrived = 0;
            let promised_us = std::mem::replace(&mut port.promised_us, WATERMARK_END);
            // A chunk of back-fill promises nothing, and takes nothing back.
            if tick.is_end() && promised_us > port.watermark_us {
                port.watermark_us = promised_us;
                grown.push((n, promised_us));
            }
        }
        let watermark_us = instance.ports.iter().map(|p| p.watermark_us).min().unwrap_or(leaf_us);
        if let Some(function) = &mut instance.function {
            let mut emitted = Vec::new();
            for (port, promised_us) in grown {
                function.on_watermark(port, promised_us)?;
            }
            function.on_time(now_us)?;
            function.finish_epoch(tick.epoch, &mut emitted)?;
            self.dispatch(task, tick, emitted, out)?;
        }
        self.freeze(task, tick, now_us, out)?;
        let instance = &mut self.tasks[task];
        instance.current = then;
        // Stashed work precedes anything that arrives from now on.
        let stash = std::mem::take(&mut instance.stash);
        let level = instance.level;
        let outputs = instance.outputs.clone();
        for work in stash.into_iter().rev() {
            if let WorkKind::Rows(changes, _) = &work.kind {
                self.stashed -= changes.bytes();
                self.queued.add(self.slot, level, changes.bytes());
            }
            self.levels[level].push_front(work);
        }
        if task + 1 == self.tasks.len() {
            out.push(Outgoing::Finished { tick, now_us, watermark_us });
        }
        for Output { task, port, route } in outputs {
            if route == Route::Forward {
                let kind = WorkKind::Barrier { then: None, now_us, watermark_us };
                // Through `run`, because another port of that task may still be in an earlier tick.
                self.run(Work { task, port, tick, kind }, out)?;
            } else {
                for slot in 0..self.slots {
                    out.push(Outgoing::Barrier { slot, task, port, tick, now_us, watermark_us });
                }
            }
        }
        Ok(())
    }

    /// Takes what has changed in the task's state, which is as of the end of `tick`, if a checkpoint is due there or much waits
    /// to be told. The terminal task is the last to finish a tick, and hands on what all of them have told until then.
    fn freeze(&mut self, task: usize, tick: Tick, now_us: i64, out: &mut Vec<Outgoing>) -> Result<()> {
        let Some(freezing) = &mut self.freezing else { return Ok(()) };
        let instance = &mut self.tasks[task];
        freezing.take(task, tick, instance.function.as_deref_mut())?;
        if freezing.is_due(tick) {
            freezing.note(task, instance.ports.iter().map(|p| p.watermark_us).collect());
        }
        if task + 1 == self.tasks.len()
            && let Some(frozen) = freezing.hand_on(tick, now_us)
        {
            out.push(Outgoing::Frozen(frozen));
        }
        Ok(())
    }

    fn dispatch(&mut self, task: usize, tick: Tick, emitted: Vec<ChangeBatch>, out: &mut Vec<Outgoing>) -> Result<()> {
        if emitted.is_empty() {
            return Ok(());
        }
        if task + 1 == self.tasks.len() {
            out.push(Outgoing::Result { tick, changes: emitted });
            return Ok(());
        }
        let outputs = self.tasks[task].outputs.clone();
        let last = outputs.len().saturating_sub(1);
        let mut emitted = Some(emitted);
        for (n, output) in outputs.into_iter().enumerate() {
            let batches = if n == last { emitted.take() } else { emitted.clone() }.unwrap_or_default();
            for changes in batches {
                let Output { task, port, route } = &output;
                match route {
                    Route::Forward => {
                        let work = Work { task: *task, port: *port, tick, kind: WorkKind::rows(changes) };
                        self.run(work, out)?;
                    }
                    Route::Fold => {
                        let slot = self.slot % self.parallelism;
                        out.push(Outgoing::Rows { slot, task: *task, port: *port, tick, changes });
                    }
                    Route::Gather => out.push(Outgoing::Rows { slot: 0, task: *task, port: *port, tick, changes }),
                    Route::Broadcast => {
                        for slot in 0..self.parallelism {
                            let changes = changes.clone();
                            out.push(Outgoing::Rows { slot, task: *task, port: *port, tick, changes });
                        }
                    }
                    Route::Hash(columns) => {
                        for (slot, changes) in partition(&changes, columns, self.parallelism)? {
                            out.push(Outgoing::Rows { slot, task: *task, port: *port, tick, changes });
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Splits `changes` by the slot that owns each row's key; slots without rows are left out.
pub fn partition(changes: &ChangeBatch, columns: &[usize], slots: usize) -> Result<Vec<(usize, ChangeBatch)>> {
    if slots == 1 {
        return Ok(vec![(0, changes.clone())]);
    }
    let keys: Vec<ArrayRef> = columns.iter().map(|c| Arc::clone(changes.rows.column(*c))).collect();
    let hashes = hash_columns(&keys, changes.num_rows())?;
    let owners: Vec<u8> = hashes.iter().map(|hash| slot_of_vnode(vnode(*hash), slots) as u8).collect();
    let (indices, ends) = by_owner(&owners, slots);
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let spans = starts.zip(&ends).map(|(start, end)| (start, end - start)).enumerate();
    let spans: Vec<(usize, (usize, usize))> = spans.filter(|(_, (_, rows))| *rows > 0).collect();
    if let [(slot, _)] = spans[..] {
        return Ok(vec![(slot, changes.clone())]);
    }
    let indices = UInt32Array::from(indices);
    let part = |(slot, (start, rows))| Ok((slot, changes.take(&indices.slice(start, rows))?));
    spans.into_iter().map(part).collect()
}

/// The numbers of rows by their owner, those of the first slot before those of the next, each in their order; and where those of each
/// slot end.
fn by_owner(owners: &[u8], slots: usize) -> (Vec<u32>, Vec<usize>) {
    /// Up to so many slots one pass for each, in which no step waits for the one before it, is faster than a counting sort.
    const PASSES_MAX: usize = 4;
    let rows = owners.len();
    let mut ends = vec![0usize; slots];
    if slots <= PASSES_MAX {
        // A row that is another slot's is overwritten by the next; the last one may be beyond the end.
        let mut indices = vec![0u32; rows + 1];
        let mut placed = 0;
        for (slot, end) in ends.iter_mut().enumerate() {
            for (row, owner) in owners.iter().enumerate() {
                indices[placed] = row as u32;
                placed += usize::from(*owner as usize == slot);
            }
            *end = placed;
        }
        indices.truncate(rows);
        return (indices, ends);
    }
    owners.iter().for_each(|owner| ends[*owner as usize] += 1);
    let mut placed = 0;
    for end in &mut ends {
        let rows = std::mem::replace(end, placed);
        placed += rows;
    }
    let mut indices = vec![0u32; rows];
    for (row, owner) in owners.iter().enumerate() {
        let end = &mut ends[*owner as usize];
        indices[*end] = row as u32;
        *end += 1;
    }
    (indices, ends)
}

fn panic_error(panic: Box<dyn std::any::Any + Send>) -> Error {
    let what = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("unknown cause");
    Error::internal(format!("an operator failed unexpectedly: {what}"))
        .with_hint("This is a bug in Millstream; please report the view's SQL.")
}

/// The index of a task as the plan numbers it.
pub fn task_id(task: usize) -> TaskId {
    TaskId(task as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stay_in_order_within_their_slot() {
        for slots in 1..=9 {
            for rows in [0u32, 1, 2, 100] {
                let owners: Vec<u8> = (0..rows).map(|row| (row * 7 % 11) as u8 % slots as u8).collect();
                let (indices, ends) = by_owner(&owners, slots);
                let of = |slot: usize| (0..rows).filter(move |row| (row * 7 % 11) as usize % slots == slot);
                assert_eq!(indices, (0..slots).flat_map(of).collect::<Vec<u32>>(), "{slots} slots");
                let counts = (0..slots).map(|slot| of(slot).count());
                let expected: Vec<usize> = counts
                    .scan(0, |sum, rows| {
                        *sum += rows;
                        Some(*sum)
                    })
                    .collect();
                assert_eq!(ends, expected, "{slots} slots");
            }
        }
    }
}
