//! The engine: catalog, tables, jobs and clock of one server, and the DDL that changes them.
//!
//! Law: a catalog change is logged and synced before it takes effect; it is checked so thoroughly before that it cannot
//! fail after. DDL statements exclude each other; they never wait for data of another job.

mod place;
pub(crate) mod replay;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use catalog::settings::CHECKPOINT_INTERVAL;
use catalog::{Catalog, Definition, Relation, RelationKind, SideKind};
use checkpoint::{DataDirectory, Disk, Generation, Log};
use connect::sink::Delivery;
use flow::{ChangeBatch, Epoch, Error, JobId, RelationId, Result, SqlState};
use futures::future::Either;
use parking_lot::{Mutex, RwLock};
use plan::process::{Terminal, ViewTraits};
use plan::stream::{ChangeKind, Distribution, TimeColumn};
use plan::table::RelationSource;
use plan::{ProcessPlan, StreamNode, TaskOp};
use runtime::slot::Shared;
use runtime::{Budget, Depot, FromSlot, Worker, WorkerState};
use state::{Pin, Pins, RelationSnapshot, RelationStore};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use self::place::open_log;
pub use self::place::{SharedLog, cluster_id};
use self::replay::{Recovery, recover};
use crate::backfill::{Backfill, BackfillInput, InputRows};
use crate::checkpoints::{Capture, Keeper};
use crate::clock::{Clock, ClockLoop, Deploy, Durable, EPOCH_BLOCK, Event, Feeder, Started, ends_with_the_engine};
use crate::compaction::{Compaction, Prefix, SharedTables};
use crate::connectors::SinkRows;
use crate::execution::{Execution, Threads};
use crate::history::{EndState, History, HistoryConfig, JobFacts};
use crate::into_table::TableSink;
use crate::job::{JobStatus, Phase};
use crate::locks::Locks;
use crate::record;
use crate::recovery::{JobStart, Kept};
use crate::sessions::Sessions;
use crate::sinks::Sinks;
use crate::sources::{Sides, Sources};
use crate::stalls::Waiting;
use crate::subscriptions::Why;
use crate::table::Table;
use crate::tidy::Tidying;
use crate::time::Time;

/// What an engine needs to start.
#[derive(Clone)]
pub struct EngineConfig {
    pub data_dir: PathBuf,
    pub slots: usize,
    /// Bytes that jobs and tables may hold.
    pub memory_limit: usize,
    /// Rows of a batch under load.
    pub batch_rows: usize,
    pub time: Time,
    /// Under the log; `None`: the machine's.
    pub disk: Option<Arc<dyn Disk>>,
    /// A log above this is rewritten when most of it is overwritten; see [`LOG_BYTES_MIN`](crate::compaction::LOG_BYTES_MIN). 0: whenever it can be.
    pub log_bytes_min: u64,
    /// Where state is kept over restarts; `None`: nowhere, everything is made anew from its inputs.
    pub checkpoints: Option<CheckpointConfig>,
    /// The log lies in the store of checkpoints, where other coordinators can go on with it; `None`: in the data directory.
    pub shared_log: Option<SharedLog>,
}

/// The shortest time between two checkpoints.
/// So much of the memory may be taken by input that waits for views which catch up, or at least this; then their sources wait for them.
const CATCH_UP_SHARE: usize = 4;
const CATCH_UP_MIN: usize = 64 << 20;
const CHECKPOINT_INTERVAL_MIN: Duration = Duration::from_millis(250);

/// Reads how often checkpoints are taken. Errors: `22023`.
pub fn checkpoint_interval(text: &str) -> Result<Duration> {
    connect::options::parse_duration(text.trim()).filter(|i| *i >= CHECKPOINT_INTERVAL_MIN).ok_or_else(|| {
        let message = format!("invalid value for {CHECKPOINT_INTERVAL}: \"{text}\"");
        Error::new(SqlState::InvalidParameterValue, message).with_hint("Write a time from 250ms to 24h.")
    })
}

/// How checkpoints are taken.
#[derive(Clone)]
pub struct CheckpointConfig {
    /// Where they are kept; `None`: in a folder of the data directory.
    pub store: Option<Arc<dyn checkpoint::door::Store>>,
    /// How the time between two tries of a request passes; `None`: asleep.
    pub rest: Option<Arc<dyn checkpoint::door::Rest>>,
    /// The first epoch after so long is made durable; `None`: only when a statement says so.
    pub interval: Option<Duration>,
    /// The savepoint to start from, instead of from the newest checkpoint.
    pub savepoint: Option<String>,
    /// Checkpoints that are kept.
    pub retained: usize,
    /// How long jobs that have ended are remembered, beside the checkpoints.
    pub history: HistoryConfig,
    /// A sink whose target does not answer for so long is stopped, so that it holds up no checkpoint any more.
    pub timeout: Duration,
    /// Random, so that no two processes write under one name.
    pub nonce: u64,
}

/// A standing query, lowered and ready to deploy once its object has an OID.
pub struct StandingQuery {
    pub node: StreamNode,
    /// Relations that it reads.
    pub inputs: BTreeSet<RelationId>,
}

/// Turns stored definitions back into standing queries; implemented by the session layer, which knows SQL.
pub trait Replanner: Send + Sync {
    fn replan(&self, engine: &Arc<Engine>, catalog: &Catalog, relation: &Relation) -> Result<StandingQuery>;
}

pub struct Engine {
    pub config: EngineConfig,
    pub clock: Arc<Clock>,
    pub pins: Arc<Pins>,
    pub budget: Budget,
    pub sources: Arc<Sources>,
    pub sinks: Arc<Sinks>,
    pub sessions: Arc<Sessions>,
    pub log: Arc<Log>,
    pub worker: Arc<dyn Worker>,
    execution: Arc<dyn Execution>,
    /// What stores the state of jobs, if the slots are in this process.
    depot: Option<Arc<Depot>>,
    keeper: Option<Arc<Keeper>>,
    history: Option<History>,
    /// What the jobs of the last checkpoint go on from, until they are started.
    recovery: Mutex<Recovery>,
    catalog: RwLock<Catalog>,
    /// Of rows, tables and the catalog.
    pub locks: Arc<Locks>,
    tables: SharedTables,
    pub compaction: Arc<Compaction>,
    tidying: Option<Tidying>,
    views: RwLock<HashMap<RelationId, ViewTraits>>,
    /// When this process opened the data directory, in microseconds since the Unix epoch.
    pub started_us: i64,
    /// As which it owns the checkpoints, if there are any.
    generation: Option<Generation>,
    /// No table changes any more.
    tables_ended: AtomicBool,
    /// Owned until the shutdown.
    directory: Mutex<Option<Arc<DataDirectory>>>,
}

/// The clock's answer about a job.
type Starting = oneshot::Receiver<Result<Started>>;

/// Restored jobs that are starting.
struct Recovering {
    starting: Vec<(Arc<Relation>, BTreeSet<RelationId>, Starting)>,
    outcomes: Vec<(Arc<Relation>, BTreeSet<RelationId>, Result<Started>)>,
    unseen: BTreeMap<RelationId, Vec<ChangeBatch>>,
    anew: Vec<Anew>,
}

/// A job that begins anew.
struct Anew {
    relation: Arc<Relation>,
    plan: ProcessPlan,
    keys: Vec<Vec<usize>>,
    inputs: BTreeSet<RelationId>,
}

impl Recovering {
    /// Waits until each has started or cannot.
    async fn started(&mut self) {
        for (relation, inputs, started) in self.starting.drain(..) {
            let started = started.await.unwrap_or_else(|_| Err(crate::clock::shutting_down()));
            self.outcomes.push((relation, inputs, started));
        }
    }
}

impl Engine {
    /// Opens a data directory: replays the log, starts slots and clock. Standing queries are started by
    /// [`recover_jobs`](Engine::recover_jobs).
    pub fn open(config: EngineConfig) -> Result<Arc<Engine>> {
        Engine::open_with(config, Arc::new(Threads::default()))
    }

    /// [`open`](Engine::open) with another way to let slots, clock and feeders run.
    pub fn open_with(config: EngineConfig, execution: Arc<dyn Execution>) -> Result<Arc<Engine>> {
        let directory = match &config.shared_log {
            Some(shared) => Arc::clone(&shared.directory),
            None => Arc::new(DataDirectory::open(&config.data_dir)?),
        };
        let locks: Arc<Locks> = Arc::default();
        let open = |c: CheckpointConfig| {
            let origin = match &config.shared_log {
                Some(shared) => shared.cluster.clone(),
                None => directory.identity(c.nonce)?,
            };
            Kept::open(&config.data_dir, c, &origin)
        };
        let mut kept = config.checkpoints.clone().map(open).transpose()?;
        let newest = kept.as_ref().and_then(|k| k.newest.as_ref());
        // Only now: no checkpoint of an older owner can come after the newest one, so neither can a rewrite of the log up to it.
        let door = kept.as_ref().map(|k| &*k.door);
        let open = |replay: &mut dyn FnMut(&[u8]) -> Result<()>| open_log(&config, &directory, door, replay);
        let recovered = recover(open, &locks, newest, config.log_bytes_min)?;
        if let (Some(kept), Some(interval)) = (&mut kept, recovered.catalog.system(CHECKPOINT_INTERVAL)) {
            kept.config.interval = Some(checkpoint_interval(interval)?);
        }
        // Everything recovered belongs to an epoch before the first one.
        let first = recovered.reserved.max(Epoch(2));
        let reserved = Epoch(first.0 + EPOCH_BLOCK);
        let log = Arc::new(recovered.log);
        log.append(&[&record::reserve_epochs(reserved)?])?;
        if let Some(kept) = &kept
            && kept.newest.is_some()
            && recovered.left.kept_in.as_deref() != Some(kept.door.place().as_str())
        {
            log.append(&[&record::kept_in(&kept.door.place())?])?;
        }
        if !recovered.left.newly_stuck.is_empty() {
            log.append(&[&record::stuck(recovered.left.newly_stuck.clone())?])?;
        }
        log.sync()?;

        let budget = Budget::new(config.memory_limit);
        for table in recovered.tables.values() {
            // A table that no longer fits must still be readable: the limit then refuses growth.
            let _ = budget.change(0, table.store.bytes());
        }
        let (clock, events) = Clock::new(first, config.time.clone());
        for relation in recovered.catalog.relations().filter(|r| r.kind() == RelationKind::Table) {
            clock.set_route(relation.oid, route(relation));
            set_gate(relation, &recovered.catalog, &recovered.tables, &clock)?;
        }
        let sender = Arc::clone(&clock);
        let told = Arc::clone(&clock);
        log.on_failure(Box::new(move |cause| told.log_failed(cause)));
        let told = Arc::clone(&clock);
        log.on_stall(Box::new(move |cause| match cause {
            Some(cause) => {
                warn!(error = %cause, "the log waits for its store");
                told.stalls.set(Waiting::Log, cause.clone());
            }
            None => {
                info!("the log goes on");
                told.stalls.clear(Waiting::Log);
            }
        }));
        let reports: Arc<dyn Fn(FromSlot) + Send + Sync> = Arc::new(move |m| sender.send(Event::FromSlot(m)));
        let mut shared = Shared::new(budget.clone(), config.batch_rows);
        if let Some(kept) = &kept {
            let (door, counter, time) = (Arc::clone(&kept.door), Arc::clone(&kept.counter), config.time.clone());
            shared.depot =
                execution.start_depot(door, counter, Arc::clone(&reports), Arc::new(move || time.now_us()))?;
        }
        let worker = execution.start_slots(config.slots, shared.clone(), reports)?;
        let (pins, tables) = (Pins::new(), Arc::new(RwLock::new(recovered.tables)));
        let compaction = Compaction::new(&log, &pins, &tables, &locks, &execution, config.log_bytes_min);
        clock.set_catch_up_max((budget.limit() / CATCH_UP_SHARE).max(CATCH_UP_MIN));
        let sources = Sources::new(Arc::clone(&execution), Arc::clone(&clock), shared.clone(), config.slots);
        let sources = Arc::new(sources);
        let sinks = Sinks::new(Arc::clone(&execution), Arc::clone(&clock), config.time.clone(), config.slots);
        let sinks = Arc::new(sinks);

        let generation = kept.as_ref().map(|kept| kept.owner.generation());
        let history = kept.as_ref().map(|kept| (Arc::clone(&kept.door), kept.config.history));
        let keeper = kept
            .map(|kept| {
                let (sources, counter) = (Arc::clone(&sources), Arc::clone(&kept.counter));
                let capture = Capture { sources, counter, compaction: Arc::clone(&compaction) };
                let (clock, sinks, log) = (Arc::clone(&clock), Arc::clone(&sinks), Arc::clone(&log));
                Keeper::start(&*execution, kept, capture, clock, sinks, Arc::clone(&worker), log)
            })
            .transpose()?;
        let stamped_us = keeper.as_ref().and_then(|k| k.found().map(|found| found.manifest.now_us));
        let schedule = keeper.as_ref().and_then(|keeper| keeper.schedule());
        let (deliver_to, trim) = (Arc::clone(&sinks), Arc::clone(&sources));
        let (pins_at, slots) = (Arc::clone(&pins), Arc::clone(&worker));
        let (feeds, time) = (Arc::clone(&clock.feeds), config.time.clone());
        let (history, chronicler) = match (history, &keeper) {
            (Some((door, config)), Some(keeper)) => {
                let keeper = Arc::clone(keeper);
                History::start(&*execution, door, config, clock.time.clone(), Arc::new(move || keeper.all()))?.unzip()
            }
            _ => (None, None),
        };
        let event_loop = ClockLoop::new(
            Arc::clone(&clock),
            Arc::clone(&worker),
            Arc::clone(&log),
            config.time.clone(),
            reserved,
            Box::new(move |message| deliver_to.deliver(message)),
            Box::new(move |completed| {
                let oldest = pins_at.min_pinned(completed);
                slots.holdings().raise_floor(oldest);
                trim.trim(oldest);
                feeds.tell(completed, time.now_us());
            }),
            schedule,
            chronicler,
            stamped_us,
        );
        let event_loop = match &keeper {
            Some(_) => event_loop,
            // Without checkpoints every job begins anew at a start: nothing is ever told apart.
            None => {
                let compaction = Arc::clone(&compaction);
                let rewrite = move |epoch| compaction.prefix(epoch).into_iter().for_each(Prefix::begin);
                event_loop.with_cuts(Box::new(rewrite))
            }
        };
        execution.start_clock(event_loop, events)?;

        let tidying = Tidying::start(&*execution, &log)?;
        let started_us = config.time.now_us();
        let engine = Arc::new(Engine {
            started_us,
            generation,
            tables_ended: AtomicBool::new(false),
            config,
            clock,
            pins,
            budget,
            sources,
            sinks,
            sessions: Arc::default(),
            log,
            worker,
            execution,
            depot: shared.depot,
            keeper,
            history,
            recovery: Mutex::new(recovered.left),
            catalog: RwLock::new(recovered.catalog),
            locks,
            tables,
            compaction,
            tidying,
            views: RwLock::default(),
            directory: Mutex::new(Some(directory)),
        });
        engine.restore_sides()?;
        engine.open_sources();
        Ok(engine)
    }

    fn open_sources(&self) {
        for relation in self.catalog().relations() {
            if relation.kind() == RelationKind::Source
                && let Err(error) = self.open_source(relation)
            {
                error!(source = relation.name, %error, "source cannot be opened");
                self.clock.board.set_failed(relation.oid, error);
            }
        }
    }

    /// Opens the reader of a source that was just added to the catalog.
    pub fn open_source(&self, relation: &Relation) -> Result<()> {
        let connector =
            relation.definition.connector().ok_or_else(|| Error::internal("a source without a connector"))?;
        let include = match &relation.definition {
            Definition::Source(source) => &source.include[..],
            _ => &[],
        };
        let source = crate::connectors::open_source(connector, &Arc::new(relation.arrow_schema()), include)?;
        let sides = self.catalog().sides(relation.oid);
        let side = |kind: SideKind| sides.iter().find(|(_, k)| *k == kind).and_then(|(oid, _)| self.table(*oid));
        let sides = Sides::new(side(SideKind::Late), side(SideKind::Errors))?;
        let before = Epoch(self.clock.completed().0);
        let kept = self.keeper.as_ref().and_then(|keeper| keeper.source(relation.oid)).map(|kept| (kept, before));
        self.sources.add(relation, source, sides, kept);
        Ok(())
    }

    /// Brings back the rows of side tables that are not in the log: those of sources.
    fn restore_sides(&self) -> Result<()> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        for (relation, rows) in keeper.sides()? {
            if let Some(table) = self.table(relation) {
                table.store.apply(0, Epoch(1), &rows)?;
            }
        }
        Ok(())
    }

    /// Starts every view and sink of the catalog again. Those whose state is in the last checkpoint go on from it, and have
    /// started when this returns; the others read their inputs, each once these are up to date. Called on a runtime.
    pub fn recover_jobs(self: &Arc<Self>, replanner: &Arc<dyn Replanner>) {
        let mut recovering = self.begin_recovery(replanner);
        futures::executor::block_on(recovering.started());
        self.finish_recovery(recovering);
    }

    /// The same for a caller that lets the engine's parts work meanwhile.
    pub async fn recover(self: &Arc<Self>, replanner: &Arc<dyn Replanner>) {
        let mut recovering = self.begin_recovery(replanner);
        recovering.started().await;
        self.finish_recovery(recovering);
    }

    fn begin_recovery(self: &Arc<Self>, replanner: &Arc<dyn Replanner>) -> Recovering {
        let catalog = self.catalog();
        let mut jobs: Vec<Arc<Relation>> = catalog
            .relations()
            .filter(|r| matches!(r.kind(), RelationKind::MaterializedView | RelationKind::Sink))
            .cloned()
            .collect();
        // Inputs have lower OIDs, except after CREATE OR REPLACE; order by dependence.
        let order = catalog.drop_order(&jobs.iter().map(|r| r.oid).collect::<Vec<_>>());
        jobs.sort_by_key(|r| std::cmp::Reverse(order.iter().position(|oid| *oid == r.oid)));
        let Recovery { unseen, jobs: mut restored, stuck, .. } = std::mem::take(&mut *self.recovery.lock());
        let (mut starting, mut anew) = (Vec::new(), Vec::new());
        if let Some(keeper) = &self.keeper {
            // A sink that begins anew has nothing of that checkpoint to commit.
            let sinks =
                keeper.found().iter().flat_map(|found| &found.manifest.sinks).map(|s| s.sink).collect::<Vec<_>>();
            sinks.into_iter().filter(|sink| !restored.contains_key(sink)).for_each(|sink| keeper.resumed(sink));
        }
        for relation in jobs {
            self.clock.board.expect(relation.oid);
            let planned = replanner
                .replan(self, &catalog, &relation)
                .and_then(|query| Ok((self.process_plan(&query, &relation)?, query)));
            let (plan, query) = match planned {
                Ok(planned) => planned,
                Err(error) => {
                    error!(relation = relation.name, %error, "job cannot be planned");
                    self.clock.board.set_failed(relation.oid, error);
                    continue;
                }
            };
            // Views on this view are planned from its traits before it runs.
            let traits = plan::process::view_traits(&query.node);
            let keys = traits.unique_keys.clone();
            self.views.write().insert(relation.oid, traits);
            match restored.remove(&relation.oid) {
                Some(job) => match self.deploy(&relation, job.plan, &keys, &query.inputs, Some(job.from)) {
                    Ok(started) => {
                        if let Some(keeper) = &self.keeper {
                            keeper.resumed(relation.oid);
                        }
                        starting.push((relation, query.inputs, started));
                    }
                    Err(error) => self.cannot_start(&relation, error),
                },
                None if stuck.contains(&relation.oid) => self.cannot_start(&relation, has_published(&relation)),
                None => anew.push(Anew { relation, plan, keys, inputs: query.inputs }),
            }
        }
        Recovering { starting, outcomes: Vec::new(), unseen, anew }
    }

    fn finish_recovery(self: &Arc<Self>, recovering: Recovering) {
        let Recovering { outcomes, unseen, anew, .. } = recovering;
        let mut subscribed = Vec::new();
        for (relation, inputs, started) in outcomes {
            match started {
                Ok(_) => subscribed.push((relation, inputs)),
                Err(error) => self.cannot_start(&relation, error),
            }
        }
        if let Err(error) = self.feed_unseen(unseen) {
            error!(%error, "rows of the log cannot be fed to the views");
            for (relation, _) in &subscribed {
                self.clock.send(Event::StopJob { relation: relation.oid, error: error.clone() });
            }
        }
        for (relation, inputs) in subscribed {
            if let Err(error) = self.follow_inputs(&relation, &inputs) {
                self.cannot_start(&relation, error);
            }
        }
        // Last: the first of them to start lets its sources be read, and a job that goes on must be there before.
        for Anew { relation, plan, keys, inputs } in anew {
            let engine = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = engine.start_job(&relation, plan, &keys, inputs).await {
                    engine.cannot_start(&relation, error);
                }
            });
        }
        self.clock.send(Event::Recovered);
    }

    fn cannot_start(&self, relation: &Relation, error: Error) {
        error!(relation = relation.name, %error, "job cannot be started");
        self.clock.board.set_failed(relation.oid, error);
    }

    /// Brings what was committed after the checkpoint into the tables and to the jobs that were restored.
    fn feed_unseen(&self, unseen: BTreeMap<RelationId, Vec<ChangeBatch>>) -> Result<()> {
        if unseen.is_empty() {
            return Ok(());
        }
        let epoch = self.clock.commit(true, |epoch| {
            let mut inputs = Vec::new();
            for (relation, changes) in unseen {
                let Some(table) = self.table(relation) else { continue };
                let net = runtime::ops::consolidate(changes, table.store.schema())?;
                if net.num_rows() > 0 {
                    let before = table.store.bytes();
                    table.store.apply(0, epoch, &net)?;
                    let _ = self.budget.change(before, table.store.bytes());
                    table.pass_again(&net, self.clock.time.now_us())?;
                    inputs.push((relation, net));
                }
            }
            Ok(inputs)
        })?;
        // Clients were told of it before the restart.
        self.clock.acknowledge(epoch);
        Ok(())
    }

    /// The catalog as it is now.
    pub fn catalog(&self) -> Catalog {
        self.catalog.read().clone()
    }

    pub fn table(&self, relation: RelationId) -> Option<Arc<Table>> {
        self.tables.read().get(&relation).cloned()
    }

    pub fn view_traits(&self, relation: RelationId) -> Option<ViewTraits> {
        self.views.read().get(&relation).cloned()
    }

    /// The key by which the relation's store can be read directly.
    pub fn index_key(&self, relation: RelationId) -> Option<Vec<usize>> {
        match self.table(relation) {
            Some(table) => table.store.key().map(<[usize]>::to_vec),
            None => self.view_traits(relation)?.key,
        }
    }

    /// The relation as the planner sees it. `traits` are those of a view that is not up yet.
    pub fn relation_source(&self, relation: &Relation, traits: Option<&ViewTraits>) -> RelationSource {
        let schema = Arc::new(relation.arrow_schema());
        let name = relation.name.clone();
        let times = relation.watermark().map(|w| TimeColumn::declared(w.column)).into_iter().collect();
        match &relation.definition {
            Definition::Table(table) => {
                let kind = if table.append_only { ChangeKind::AppendOnly } else { ChangeKind::Retract };
                let keys = if table.primary_key.is_empty() { vec![] } else { vec![table.primary_key.clone()] };
                let distribution = match (&keys[..], table.append_only) {
                    ([key], false) => Distribution::Hash(key.clone()),
                    _ => Distribution::Arbitrary,
                };
                RelationSource::new(relation.oid, name, schema, kind, keys, distribution, false).with_times(times)
            }
            Definition::Source(_) => {
                let bounded = self.sources.get(relation.oid).is_some_and(|s| s.source.bounded());
                let kind = ChangeKind::AppendOnly;
                RelationSource::new(relation.oid, name, schema, kind, vec![], Distribution::Arbitrary, bounded)
                    .with_times(times)
            }
            _ => match traits.cloned().or_else(|| self.view_traits(relation.oid)) {
                Some(t) => RelationSource::new(
                    relation.oid,
                    name,
                    schema,
                    t.change_kind,
                    t.unique_keys,
                    t.distribution,
                    t.bounded,
                )
                .with_times(t.times),
                None => RelationSource::new(
                    relation.oid,
                    name,
                    schema,
                    ChangeKind::Retract,
                    vec![],
                    Distribution::Arbitrary,
                    false,
                ),
            },
        }
    }

    /// The tables among `relations`, if the catalog still has this version: what was planned with it may read them.
    pub fn tables_at(&self, version: u64, relations: &BTreeSet<RelationId>) -> Option<HashMap<RelationId, Arc<Table>>> {
        let catalog = self.catalog.read();
        let tables = self.tables.read();
        let table = |oid: &RelationId| Some((*oid, Arc::clone(tables.get(oid)?)));
        (catalog.version() == version).then(|| relations.iter().filter_map(table).collect())
    }

    /// Makes a new catalog and its tables visible, all at once. `changed` are tables that are new or were made anew,
    /// `gone` those that were dropped. The change is in the log, and its author owns the catalog.
    pub fn publish_catalog(&self, next: &Catalog, changed: &[Arc<Table>], gone: &[RelationId]) {
        let mut catalog = self.catalog.write();
        let mut tables = self.tables.write();
        for oid in gone {
            self.clock.set_route(*oid, None);
            self.clock.remove_gate(*oid);
            if let Some(old) = tables.remove(oid) {
                let _ = self.budget.change(old.store.bytes(), 0);
            }
        }
        for table in changed {
            if let Some(relation) = next.relation(table.relation) {
                self.clock.set_route(relation.oid, route(relation));
            }
            // What cannot be refused any more is only counted; the limit shows at the next rows.
            let _ = self.budget.change(0, table.store.bytes());
            if let Some(old) = tables.insert(table.relation, Arc::clone(table)) {
                let _ = self.budget.change(old.store.bytes(), 0);
            }
        }
        for table in changed {
            if let Some(relation) = next.relation(table.relation)
                && let Err(error) = set_gate(relation, next, &tables, &self.clock)
            {
                error!(table = relation.name, %error, "the table's watermark cannot be set");
            }
        }
        *catalog = next.clone();
        drop(tables);
        drop(catalog);
        // Whoever comes from here on finds the new tables.
        let until = self.clock.completed();
        for oid in gone {
            self.clock.feeds.end(*oid, Why::Dropped, until);
        }
        for table in changed {
            self.clock.feeds.end(table.relation, Why::Altered, until);
        }
    }

    /// The process plan of a view or sink.
    pub fn process_plan(&self, query: &StandingQuery, relation: &Relation) -> Result<ProcessPlan> {
        let terminal = match relation.kind() {
            RelationKind::Sink => Terminal::Deliver { sink: relation.oid },
            _ => Terminal::Materialize { relation: relation.oid },
        };
        plan::process::lower(&query.node, JobId(relation.oid.0), terminal)
    }

    /// Deploys the job of a view or sink that is in the catalog; returns when it has started, not when it has caught up.
    /// `keys` are the keys of its rows.
    pub async fn start_job(
        self: &Arc<Self>,
        relation: &Arc<Relation>,
        plan: ProcessPlan,
        keys: &[Vec<usize>],
        inputs: BTreeSet<RelationId>,
    ) -> Result<()> {
        for input in &inputs {
            self.wait_ready(*input).await?;
        }
        let started = self.deploy(relation, plan, keys, &inputs, None)?;
        started.await.map_err(|_| crate::clock::shutting_down())??;
        self.follow_inputs(relation, &inputs)
    }

    /// Asks the clock to start a job.
    fn deploy(
        self: &Arc<Self>,
        relation: &Arc<Relation>,
        plan: ProcessPlan,
        keys: &[Vec<usize>],
        inputs: &BTreeSet<RelationId>,
        restore: Option<JobStart>,
    ) -> Result<oneshot::Receiver<Result<Started>>> {
        let is_view = relation.kind() == RelationKind::MaterializedView;
        let (mut kept, mut into_table) = (is_view, false);
        let mut identity = String::new();
        if let Definition::Sink(sink) = &relation.definition {
            let writer = match sink.into {
                Some(table) => {
                    into_table = true;
                    TableSink::open(self, relation.oid, table)?
                }
                None => {
                    let last = plan.tasks.last().ok_or_else(|| Error::internal("an empty plan"))?;
                    let delivery = crate::connectors::delivery(&sink.connector)?;
                    kept = match delivery {
                        Delivery::ExactlyOnce => true,
                        Delivery::AtLeastOnce => self.keeper.is_some(),
                        Delivery::Rewritten => false,
                    };
                    let resumed = restore.as_ref().and_then(|r| r.prepared.as_ref());
                    identity = match (resumed, &self.keeper) {
                        (Some(sink), _) => sink.identity.clone(),
                        (None, Some(keeper)) => keeper.new_identity(relation.oid),
                        (None, None) if kept => return Err(needs_checkpoints(relation)),
                        (None, None) => String::new(),
                    };
                    let rows = SinkRows {
                        schema: Arc::clone(&last.schema),
                        append_only: last.change_kind == ChangeKind::AppendOnly,
                        keys,
                        relation: &crate::connectors::sink_input(&self.catalog(), relation),
                        identity: &identity,
                        attempt: self.keeper.as_ref().map_or(0, |keeper| keeper.new_attempt()),
                    };
                    match resumed {
                        Some(from) => {
                            crate::connectors::resume_sink(&sink.connector, &rows, &from.permit, &from.prepared)?
                        }
                        None => crate::connectors::open_sink(&sink.connector, &rows)?,
                    }
                }
            };
            self.sinks.start(relation.oid, writer, kept.then_some(identity))?;
        }
        let (reply, answer) = oneshot::channel();
        let engine = Arc::clone(self);
        let (oid, wanted) = (relation.oid, inputs.clone());
        for input in inputs {
            let columns = plan.tasks.iter().filter_map(|task| match &task.op {
                TaskOp::Relation { relation, columns } if relation == input => Some(columns.iter().copied()),
                _ => None,
            });
            self.sources.want(*input, oid, columns.flatten().collect());
        }
        let deploy = Deploy {
            relation: oid,
            plan: Arc::new(plan),
            facts: Arc::new(self.job_facts(relation, inputs)),
            inputs: inputs.iter().copied().collect(),
            is_view,
            kept,
            into_table,
            parallelism: self.parallelism(relation.parallelism()),
            restore: restore.map(|r| r.restored),
            start: Box::new(move |started| engine.start_backfill(oid, started, &wanted)),
            reply,
        };
        self.clock.send(Event::Deploy(deploy));
        Ok(answer)
    }

    fn job_facts(&self, relation: &Relation, inputs: &BTreeSet<RelationId>) -> JobFacts {
        let inputs: Vec<RelationId> = inputs.iter().copied().collect();
        JobFacts::new(&self.catalog(), relation, &inputs, self.config.time.now_us())
    }

    /// Whether nothing can change any more in what a job reads.
    fn inputs_ended(&self, relation: RelationId) -> bool {
        let Some(job) = self.clock.board.status(relation) else { return false };
        let ended = |input: &RelationId| match self.sources.get(*input) {
            Some(source) => source.status().ended.is_some(),
            None if self.table(*input).is_some() => self.tables_ended.load(Ordering::Relaxed),
            None => self.inputs_ended(*input),
        };
        job.inputs.iter().all(ended)
    }

    /// Whoever wrote into the tables has ended: a job that is dropped from now on has finished if its sources have ended too.
    pub fn end_tables(&self) {
        self.tables_ended.store(true, Ordering::Relaxed);
    }

    /// Lets the sources that a job reads be read, and keeps its changes if it declares so.
    fn follow_inputs(self: &Arc<Self>, relation: &Arc<Relation>, inputs: &BTreeSet<RelationId>) -> Result<()> {
        for input in inputs {
            self.sources.subscribe(*input, relation.oid)?;
        }
        if relation.change_retention_us().is_some() {
            let (engine, relation) = (Arc::clone(self), Arc::clone(relation));
            tokio::spawn(async move {
                // A view that fails has no changes to keep.
                if engine.wait_ready(relation.oid).await.is_ok() {
                    engine.retain_changes(&relation).await;
                }
            });
        }
        Ok(())
    }

    /// Makes everything that was acknowledged before part of a checkpoint, and waits until it is durable.
    pub async fn checkpoint(&self) -> Result<Epoch> {
        let (reply, answer) = oneshot::channel();
        self.clock.send(Event::Checkpoint { reply });
        answer.await.map_err(|_| crate::clock::shutting_down())?
    }

    /// Refuses a parallelism that there are not enough slots for. Errors: `53400`.
    pub fn check_parallelism(&self, wanted: Option<u32>) -> Result<()> {
        let slots = self.config.slots;
        match wanted.filter(|wanted| *wanted as usize > slots) {
            None => Ok(()),
            Some(wanted) => {
                let message = format!("parallelism {wanted} needs {wanted} slots, and the server has {slots}");
                let refused = Error::new(SqlState::ConfigurationLimitExceeded, message);
                let (all, most) = (self.worker.processes(), self.worker.processes_wanted());
                if most == 1 {
                    return Err(refused.with_hint("Start the server with more slots (--slots), or ask for less."));
                }
                let running = all.iter().filter(|w| matches!(w.state, WorkerState::Running | WorkerState::Leaving));
                Err(refused
                    .with_detail(format!(
                        "All {slots} are free for it, since jobs share slots; they are of {} workers, and cluster_workers \
                         is {most}.",
                        running.count()
                    ))
                    .with_hint("Start more workers, or workers with more slots (--slots), or ask for less."))
            }
        }
    }

    /// On how many slots a job works that wants so many.
    fn parallelism(&self, wanted: Option<u32>) -> usize {
        wanted.map_or(self.config.slots, |wanted| (wanted as usize).clamp(1, self.config.slots))
    }

    /// Moves the state of a running job to another number of slots, by way of a checkpoint, and waits until it has shown an epoch
    /// there. Writers wait meanwhile, readers do not. Errors: `55000` the job does not keep up, or checkpoints do not hold its
    /// state; `53100`, `58030` its state cannot be stored.
    pub async fn set_parallelism(&self, relation: RelationId, wanted: Option<u32>) -> Result<()> {
        self.wait_ready(relation).await?;
        // Those that read it may have to move with it. One that has stopped does not.
        for (reader, _) in self.clock.board.all().iter().filter(|(_, job)| job.inputs.contains(&relation)) {
            let _ = self.wait_ready(*reader).await;
        }
        let (reply, answer) = oneshot::channel();
        let parallelism = self.parallelism(wanted);
        self.clock.send(Event::Rescale { relation, parallelism, catalog: self.catalog(), reply });
        answer.await.map_err(|_| crate::clock::shutting_down())?
    }

    /// What keeps checkpoints. Errors: `55000` nothing does.
    pub fn checkpoints(&self) -> Result<&Arc<Keeper>> {
        self.keeper.as_ref().ok_or_else(|| {
            Error::new(SqlState::ObjectNotInPrerequisiteState, "checkpoints are switched off")
                .with_hint("Start the server with a checkpoint_interval.")
        })
    }

    /// Waits until a checkpoint holds everything up to `epoch`. Errors: `55000` none are taken, `53100`, `58030`.
    pub async fn wait_kept(&self, epoch: Epoch) -> Result<()> {
        if self.checkpoints()?.durable() < epoch {
            self.checkpoint().await?;
        }
        Ok(())
    }

    /// Why a job does not get on for now, though it runs.
    pub fn stalled(&self, relation: RelationId, job: &JobStatus) -> Option<Error> {
        if matches!(job.phase, Phase::Failed(_)) {
            return None;
        }
        let kept = self.keeper.is_some() && (job.is_view || self.sinks.identity(relation).is_some());
        self.clock.stalls.of_job(relation, kept)
    }

    /// Where a job stands, in a few words.
    pub fn job_state(&self, relation: RelationId, job: &JobStatus) -> String {
        match self.stalled(relation, job) {
            Some(cause) => format!("stalled: {}", cause.message()),
            None => job.phase.name().to_string(),
        }
    }

    /// Brings what `ALTER SYSTEM` has set into force.
    pub fn apply_system(&self, catalog: &Catalog) {
        let Some(keeper) = &self.keeper else { return };
        let configured = self.config.checkpoints.as_ref().and_then(|c| c.interval);
        // It was checked before it was logged.
        let set = catalog.system(CHECKPOINT_INTERVAL).and_then(|text| checkpoint_interval(text).ok());
        keeper.set_interval(set.or(configured));
        // The clock waits as long as it knows.
        self.clock.send(Event::Input);
    }

    /// As which this process owns the store of checkpoints, if there is one: each start has the next.
    pub fn generation(&self) -> Option<Generation> {
        self.generation
    }

    /// Where clients find this process, as other coordinators are told; `local` where there are none.
    pub fn address(&self) -> &str {
        self.config.shared_log.as_ref().map_or("local", |shared| &shared.address)
    }

    /// What keeps checkpoints, if anything does.
    pub fn keeper(&self) -> Option<&Arc<Keeper>> {
        self.keeper.as_ref()
    }

    /// Keeps the changes of a view that is up to date for as long as it declares.
    pub async fn retain_changes(&self, relation: &Relation) {
        if let Some(us) = relation.change_retention_us()
            && let Some(store) = self.worker.holdings().view(relation.oid)
        {
            // It keeps the log on until what is retained does.
            let follower = match Arc::clone(&store).follow(&self.clock.feeds.room).await {
                Ok(follower) => follower,
                Err(error) => {
                    warn!(relation = relation.name, %error, "the changes of a view cannot be kept");
                    return;
                }
            };
            self.clock.feeds.retain(relation.oid, follower.log(), us, self.clock.completed());
            if !self.is_stored_in(relation.oid, &store) {
                self.clock.feeds.end(relation.oid, Why::Dropped, self.clock.completed());
            }
        }
    }

    /// The store of a view.
    pub fn view_store(&self, relation: RelationId) -> Result<Arc<dyn RelationStore>> {
        self.worker.holdings().view(relation).ok_or_else(|| self.no_store(relation))
    }

    /// The store of a table or view.
    pub fn store(&self, relation: RelationId) -> Option<Arc<dyn RelationStore>> {
        match self.table(relation) {
            Some(table) => Some(Arc::clone(&table.store) as Arc<dyn RelationStore>),
            None => self.worker.holdings().view(relation),
        }
    }

    /// Whether `store` still holds the rows of a table or view.
    pub fn is_stored_in(&self, relation: RelationId, store: &Arc<dyn RelationStore>) -> bool {
        self.store(relation).is_some_and(|now| std::ptr::addr_eq(Arc::as_ptr(&now), Arc::as_ptr(store)))
    }

    fn no_store(&self, relation: RelationId) -> Error {
        // The slots are gone, and what they had of views with them: the view is not.
        if let Some(cause) = self.clock.stalls.of_workers() {
            return cause;
        }
        self.clock.board.failure(relation).map_or_else(
            || Error::new(SqlState::ObjectNotInPrerequisiteState, "the view is being dropped or replaced"),
            |cause| self.failed_view(relation, &cause),
        )
    }

    /// On the clock thread: decides whether the job must back-fill, and starts the feeder. `None`: nothing to feed.
    fn start_backfill(
        self: &Arc<Self>,
        job: RelationId,
        started: &Started,
        inputs: &BTreeSet<RelationId>,
    ) -> Option<Feeder> {
        let mut feeds = Vec::new();
        for input in inputs {
            let relation = *input;
            let epoch = started.snapshot;
            if let Some(table) = self.table(relation) {
                if table.store.live_rows() + table.store.dead_rows() > 0 {
                    let open = Box::new(move || Arc::clone(&table.store).at(epoch));
                    let route = self.clock.route(relation);
                    feeds.push(BackfillInput { relation, rows: InputRows::Store { open, sharded: false, route } });
                }
            } else if let Some(source) = self.sources.get(relation) {
                if let Some(positions) = source.positions(epoch) {
                    let open = Box::new(move || source.rows_until(Some(positions), None));
                    feeds.push(BackfillInput { relation, rows: InputRows::Source { open } });
                }
            } else {
                let engine = Arc::clone(self);
                let open = Box::new(move || engine.view_snapshot(relation, epoch));
                feeds.push(BackfillInput { relation, rows: InputRows::Store { open, sharded: true, route: None } });
            }
        }
        if feeds.is_empty() {
            return None;
        }
        let engine = Arc::clone(self);
        let started = started.clone();
        // The pin is taken now: the snapshot must stay readable until the feeder runs.
        let pinned = self.pins.pin(started.snapshot);
        Some(Box::new(move || {
            let deployment = started.deployment;
            let (clock, worker) = (Arc::clone(&engine.clock), Arc::clone(&engine.worker));
            let feeder = pinned
                .and_then(|pin| engine.execution.start_feeder(Backfill::new(clock, worker, job, started, feeds, pin)));
            if let Err(error) = feeder {
                engine.clock.send(Event::BackfillFailed { deployment, error });
            }
        }))
    }

    /// The rows of a view at a completed epoch. Errors: `55000` the view is younger than that, or has stopped.
    pub fn view_snapshot(&self, relation: RelationId, epoch: Epoch) -> Result<Arc<dyn RelationSnapshot>> {
        let snapshot = self.view_store(relation)?.at(epoch)?;
        // Looked at afterwards: the store may be that of a view that was made anew just now.
        match self.clock.board.status(relation) {
            Some(job) if epoch < job.readable => Err(self.younger(relation, epoch, job.readable)),
            _ => Ok(snapshot),
        }
    }

    fn noun_and_name(&self, relation: RelationId) -> (&'static str, String) {
        let catalog = self.catalog();
        let found = catalog.relation(relation);
        found.map_or_else(|| ("relation", relation.to_string()), |r| (r.kind().noun(), r.name.clone()))
    }

    fn younger(&self, relation: RelationId, epoch: Epoch, first: Epoch) -> Error {
        let (noun, name) = self.noun_and_name(relation);
        let message = format!("{noun} \"{name}\" is younger than the snapshot of this transaction");
        Error::new(SqlState::ObjectNotInPrerequisiteState, message)
            .with_detail(format!("The transaction reads epoch {epoch}; the {noun} has rows from epoch {first} on."))
            .with_hint("End the transaction and run the query again; it will read the newest completed epoch.")
    }

    /// The error of every read of a view whose job has stopped.
    pub fn failed_view(&self, relation: RelationId, cause: &Error) -> Error {
        let (noun, name) = self.noun_and_name(relation);
        if ends_with_the_engine(cause) {
            return is_away(format!("{noun} \"{name}\" cannot be read now"), cause);
        }
        let mut detail = format!("It stopped with: {} (SQLSTATE {}).", cause.message(), cause.state().code());
        if let Some(more) = cause.detail() {
            detail.push(' ');
            detail.push_str(more);
        }
        Error::new(SqlState::ObjectNotInPrerequisiteState, format!("{noun} \"{name}\" has stopped"))
            .with_detail(detail)
            .with_hint(match cause.hint() {
                Some(hint) => hint.to_string(),
                None => format!("Correct the data or the query, then drop and create the {noun} again."),
            })
    }

    /// Waits until a relation can be read: at once for tables and sources, when it has caught up for a view. Errors: `55000` its
    /// job has stopped; `57P03`, `57P01` it has lost a worker or the coordinator; `58030`, `53100` the log has failed, so that it never will.
    pub async fn wait_ready(&self, relation: RelationId) -> Result<()> {
        let up = self.clock.board.wait_for(|board| match board.status(relation).map(|s| s.phase) {
            None | Some(Phase::Running) => Some(Ok(())),
            Some(Phase::Failed(cause)) => Some(Err(cause)),
            Some(_) => None,
        });
        let failed = self.clock.log_failure(None);
        futures::pin_mut!(up, failed);
        match futures::future::select(up, failed).await {
            Either::Left((outcome, _)) => outcome.map_err(|cause| self.failed_view(relation, &cause)),
            Either::Right((cause, _)) => {
                let (noun, name) = self.noun_and_name(relation);
                if ends_with_the_engine(&cause) {
                    return Err(is_away(format!("{noun} \"{name}\" cannot catch up now"), &cause));
                }
                Err(Error::new(cause.state(), format!("{noun} \"{name}\" cannot catch up: the log has failed"))
                    .with_detail(cause.to_string())
                    .with_hint("Check the disk and restart the server."))
            }
        }
    }

    /// Notes the traits of a view that is about to start.
    pub fn set_view_traits(&self, relation: RelationId, traits: ViewTraits) {
        self.views.write().insert(relation, traits);
    }

    /// Stops and forgets relations that the catalog no longer has; dependants come first.
    pub async fn drop_storage(&self, relations: &[Arc<Relation>]) -> Result<()> {
        let (reply, done) = oneshot::channel();
        let state = |r: &Arc<Relation>| match self.inputs_ended(r.oid) {
            true => EndState::Finished,
            false => EndState::Cancelled,
        };
        let ending = relations.iter().map(|r| (r.oid, state(r))).collect();
        self.clock.send(Event::Remove { relations: ending, reply });
        done.await.map_err(|_| crate::clock::shutting_down())?;
        for relation in relations {
            if let Some(keeper) = &self.keeper {
                keeper.resumed(relation.oid);
            }
            self.sources.unsubscribe(relation.oid);
            match relation.kind() {
                // Gone with the catalog's change.
                RelationKind::Table => {}
                RelationKind::Source => self.sources.remove(relation.oid),
                RelationKind::MaterializedView => {
                    self.views.write().remove(&relation.oid);
                }
                RelationKind::Sink => {
                    // Waiting for the writer's end may take a while.
                    let (sinks, oid) = (Arc::clone(&self.sinks), relation.oid);
                    tokio::task::spawn_blocking(move || sinks.stop(oid))
                        .await
                        .map_err(|e| Error::internal(format!("stopping a sink: {e}")))?;
                }
                RelationKind::View => {}
            }
        }
        Ok(())
    }

    /// Pins the newest completed epoch.
    pub fn pin(&self) -> Pin {
        self.pins.pin_latest(|| self.clock.completed())
    }

    /// The oldest epoch that a reader may still want.
    pub fn floor(&self) -> Epoch {
        self.worker.holdings().floor()
    }

    /// Waits until every bounded source that is read has ended and every job and sink has seen all of it.
    pub async fn wait_bounded(&self) -> Result<()> {
        loop {
            let mut last = Epoch(0);
            let mut open = false;
            for handle in self.sources.all() {
                let status = handle.status();
                if let Some(failed) = status.failed {
                    return Err(failed);
                }
                match status.ended {
                    Some(epoch) => last = last.max(epoch),
                    None => open |= status.bounded && status.consumers > 0 && !status.held,
                }
            }
            if !open {
                return self.wait_all(last).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Waits until epoch `epoch` is complete, visible in every view and published by every sink.
    pub async fn wait_all(&self, epoch: Epoch) -> Result<()> {
        self.clock.wait_completed(epoch).await?;
        for relation in self.catalog().relations() {
            match relation.kind() {
                RelationKind::MaterializedView => self.wait_ready(relation.oid).await?,
                RelationKind::Sink => loop {
                    if let Some(cause) = self.clock.board.failure(relation.oid) {
                        return Err(self.failed_view(relation.oid, &cause));
                    }
                    match self.sinks.status(relation.oid) {
                        Some(status) if status.published >= epoch => break,
                        _ => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                    }
                },
                _ => {}
            }
        }
        Ok(())
    }

    /// Ends an epoch and waits for it: everything acknowledged before is visible after. What FLUSH does.
    pub async fn flush(&self) -> Result<Epoch> {
        let epoch = self.clock.commit(true, |_| Ok(Vec::new()))?;
        self.clock.wait_completed(epoch).await?;
        Ok(epoch)
    }

    /// Durability as committers see it, for the health check.
    pub fn durable(&self) -> Durable {
        self.clock.durability()
    }

    /// The slots are gone, for this cause: jobs say so, writes are refused, and what is committed is durable when this returns.
    /// The engine has to be shut down, and another one to be opened on its data.
    pub async fn interrupt(&self, cause: &Error) {
        self.clock.stalls.set(Waiting::Workers, cause.clone());
        let (reply, done) = oneshot::channel();
        self.clock.send(Event::Interrupt { cause: cause.clone(), reply });
        // Fails only if the clock has ended already.
        let _ = done.await;
    }

    /// Stops clock, slots, sources and sinks. Acknowledged work is durable already.
    pub fn shutdown(&self) {
        // Nobody waits for a store that is away.
        self.log.hurry();
        if let Some(depot) = &self.depot {
            depot.begin_to_stop();
        }
        for handle in self.sources.all() {
            self.sources.remove(handle.relation);
        }
        self.sinks.stop_all();
        self.clock.send(Event::Shutdown);
        self.execution.stop();
        if let Some(history) = &self.history {
            history.stop();
        }
        if let Some(keeper) = &self.keeper {
            keeper.stop();
        }
        self.compaction.stop();
        if let Some(tidying) = &self.tidying {
            tidying.stop();
        }
        if let Some(depot) = &self.depot {
            depot.stop();
        }
        // Sessions may outlive the engine's work; the data may be opened again all the same.
        self.log.close();
        *self.directory.lock() = None;
        info!("engine stopped");
    }
}

/// What passes by itself, with what happened to whom.
fn is_away(message: String, cause: &Error) -> Error {
    let detail =
        cause.detail().map_or_else(|| cause.message().to_string(), |more| format!("{}; {more}", cause.message()));
    let told = Error::new(cause.state(), message).with_detail(detail);
    told.with_hint(cause.hint().unwrap_or("Try again: it goes on by itself."))
}

fn has_published(sink: &Relation) -> Error {
    Error::new(
        SqlState::ObjectNotInPrerequisiteState,
        format!("sink \"{}\" cannot go on where it was without repeating what it has published", sink.name),
    )
    .with_detail("It may have published what the checkpoint that the server has started from does not know of.")
    .with_hint("Drop the sink and create it again, with another folder if rows must not be repeated.")
}

fn needs_checkpoints(sink: &Relation) -> Error {
    Error::new(
        SqlState::ObjectNotInPrerequisiteState,
        format!("sink \"{}\" needs checkpoints to deliver exactly once", sink.name),
    )
    .with_hint("Run it in a server that keeps checkpoints, or leave out delivery = 'exactly_once'.")
}

/// Puts the gate before a table that declares a watermark.
fn set_gate(
    relation: &Relation,
    catalog: &Catalog,
    tables: &HashMap<RelationId, Arc<Table>>,
    clock: &Arc<Clock>,
) -> Result<()> {
    let Some(watermark) = relation.table().and_then(|t| t.watermark.as_ref()) else { return Ok(()) };
    let late = catalog.sides(relation.oid).into_iter().find(|(_, kind)| *kind == SideKind::Late);
    let late = late.and_then(|(oid, _)| tables.get(&oid));
    let (Some(table), Some(late)) = (tables.get(&relation.oid), late) else {
        return Err(Error::internal("a table with a watermark has no table of late rows"));
    };
    table.set_gate(watermark, Arc::clone(late), clock)
}

/// The columns by which a table's rows are spread over the slots; `None` for rows that never go.
fn route(relation: &Relation) -> Option<Vec<usize>> {
    let table = relation.table().filter(|t| !t.append_only)?;
    Some(if table.primary_key.is_empty() { (0..relation.columns.len()).collect() } else { table.primary_key.clone() })
}
