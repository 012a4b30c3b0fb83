//! Operators that are thrown away and come back from what they have told, beside the same ones that run on.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arrow::datatypes::DataType;
use flow::hash::{hash_columns, slot_of_vnode, vnode};
use flow::process::{WATERMARK_END, WATERMARK_START};
use flow::{ChangeBatch, Epoch, ProcessFunction, SlotId, SqlState};
use plan::stream::{JoinKind, RankKind, SortKey, TimeClock, TimeColumn};
use plan::{ChangeKind, Expr, TaskOp};
use state::Store;

use super::*;
use crate::parts::merge;
use crate::terminal::materialize;

/// Where the rows of an input lie.
#[derive(Clone, Debug)]
enum Spread {
    Hash(Vec<usize>),
    Anywhere,
    Everywhere,
    One,
}

/// An operator as it starts: makes its instances for a number of slots.
struct Stage<'a> {
    start: &'a dyn Fn(usize) -> Vec<Box<dyn ProcessFunction>>,
    inputs: Vec<SchemaRef>,
    spread: Vec<Spread>,
}

/// Everything that happens in one epoch.
struct Events {
    changes: Vec<(usize, Vec<(Row, i64)>)>,
    /// By port, what is promised from the epoch's end on.
    watermarks: Vec<i64>,
    now_us: i64,
}

/// Starts `op` on some slots.
fn starter(
    op: &TaskOp,
    inputs: &[SchemaRef],
    output: &SchemaRef,
    batch_rows: usize,
) -> impl Fn(usize) -> Vec<Box<dyn ProcessFunction>> + use<> {
    let task = Task {
        id: TaskId(0),
        op: op.clone(),
        inputs: vec![],
        schema: output.clone(),
        change_kind: ChangeKind::Retract,
    };
    let inputs = inputs.to_vec();
    move |slots| {
        let context = |slot: usize| OpContext { batch_rows, ..OpContext::new(SlotId(slot as u16), slots) };
        (0..slots).map(|slot| instantiate(&task, &inputs, &context(slot)).unwrap()).collect()
    }
}

/// The rows of `batch` by slot; `columns` are where the columns that decide are found.
fn divide(rng: &mut Rng, batch: &ChangeBatch, spread: &Spread, columns: &[usize], slots: usize) -> Vec<ChangeBatch> {
    let owners: Vec<usize> = match spread {
        Spread::Everywhere => return vec![batch.clone(); slots],
        Spread::One => vec![0; batch.num_rows()],
        Spread::Anywhere => (0..batch.num_rows()).map(|_| rng.below(slots as u64) as usize).collect(),
        Spread::Hash(hashed) => {
            let place = |n: &usize| columns.iter().position(|c| c == n).expect("a part lacks what spreads it");
            let hashed: Vec<ArrayRef> = hashed.iter().map(|n| batch.rows.column(place(n)).clone()).collect();
            let hashes = hash_columns(&hashed, batch.num_rows()).unwrap();
            hashes.iter().map(|hash| slot_of_vnode(vnode(*hash), slots)).collect()
        }
    };
    let of = |slot: usize| -> Vec<u32> { (0..owners.len()).filter(|i| owners[*i] == slot).map(|i| i as u32).collect() };
    (0..slots)
        .map(|slot| match of(slot) {
            all if all.len() == batch.num_rows() => batch.clone(),
            some if some.is_empty() => batch.slice(0, 0),
            some => batch.take(&UInt32Array::from(some)).unwrap(),
        })
        .collect()
}

/// Brings a whole epoch to the instances, which were promised `before` until then, and returns their net output.
fn advance(
    rng: &mut Rng,
    stage: &Stage,
    slots: &mut [Box<dyn ProcessFunction>],
    epoch: u64,
    before: &[i64],
    events: &Events,
) -> Bag {
    let mut out: Vec<ChangeBatch> = Vec::new();
    for (port, changes) in &events.changes {
        let schema = &stage.inputs[*port];
        let columns: Vec<usize> = (0..schema.fields().len()).collect();
        let parts = divide(rng, &batch(schema, changes), &stage.spread[*port], &columns, slots.len());
        for (function, part) in slots.iter_mut().zip(parts).filter(|(_, part)| part.num_rows() > 0) {
            function.process(*port, part, &mut out).unwrap();
        }
    }
    for function in slots {
        for (port, watermark_us) in events.watermarks.iter().enumerate().filter(|(port, w)| **w > before[*port]) {
            function.on_watermark(port, *watermark_us).unwrap();
        }
        function.on_time(events.now_us).unwrap();
        function.finish_epoch(Epoch(epoch), &mut out).unwrap();
    }
    let mut net = Bag::new();
    out.iter().flat_map(rows_of).for_each(|(row, weight)| add(&mut net, row, weight));
    net
}

/// What a function has told since it began, by part.
type History = Vec<Vec<ChangeBatch>>;

/// With `early` some of what there is to tell.
fn freeze(stage: &Stage, slots: &mut [Box<dyn ProcessFunction>], early: bool, history: &mut History) {
    for (slot, function) in slots.iter_mut().enumerate() {
        let parts = function.parts();
        let mut told = Vec::new();
        if early { function.freeze_early(&mut told) } else { function.freeze(&mut told) }.unwrap();
        for (part, change) in told {
            assert_eq!(change.schema(), parts[part].schema);
            // What every slot has is told by one.
            if slot == 0 || !matches!(stage.spread[parts[part].port], Spread::Everywhere) {
                history[part].push(change);
            }
        }
        if !early {
            let mut again = Vec::new();
            function.freeze(&mut again).unwrap();
            assert!(again.is_empty() && function.tracked_bytes() == 0, "frozen twice");
        }
    }
}

/// New instances with the content of all parts.
fn restore(
    rng: &mut Rng,
    stage: &Stage,
    slots: usize,
    history: &mut History,
    last: &Events,
) -> Vec<Box<dyn ProcessFunction>> {
    let mut functions = (stage.start)(slots);
    for (n, part) in functions[0].parts().into_iter().enumerate() {
        let content = merge(part.kind, &part.schema, std::mem::take(&mut history[n]), true).unwrap();
        for (function, own) in
            functions.iter_mut().zip(divide(rng, &content, &stage.spread[part.port], &part.columns, slots))
        {
            let mut offset = 0;
            while offset < own.num_rows() {
                let length = (1 + rng.below(30) as usize).min(own.num_rows() - offset);
                function.restore(n, own.slice(offset, length)).unwrap();
                offset += length;
            }
        }
        history[n] = vec![content];
    }
    for function in &mut functions {
        function.restored(&last.watermarks, last.now_us).unwrap();
        function.track();
    }
    functions
}

/// Runs an operator over `epochs` epochs of `events`; beside it one that is told about, thrown away and restored on another number
/// of slots. Both must say the same. Returns what a checkpoint would hold at the end, by part.
fn survives(
    rng: &mut Rng,
    what: &str,
    stage: &Stage,
    epochs: u64,
    mut events: impl FnMut(&mut Rng) -> Events,
    mut look: impl FnMut(Epoch),
) -> Vec<ChangeBatch> {
    let mut alone = (stage.start)(1);
    let count = |rng: &mut Rng| 1 + rng.below(3) as usize;
    let mut slots = (stage.start)(count(rng));
    slots.iter_mut().for_each(|function| function.track());
    let parts = slots[0].parts();
    let mut history: History = vec![Vec::new(); parts.len()];
    let mut before = vec![WATERMARK_START; stage.inputs.len()];
    for epoch in 1..=epochs {
        let events = events(rng);
        let expected = advance(rng, stage, &mut alone, epoch, &before, &events);
        let got = advance(rng, stage, &mut slots, epoch, &before, &events);
        before.clone_from(&events.watermarks);
        assert_eq!(got, expected, "epoch {epoch} of {what}");
        assert!(alone.iter().all(|function| function.tracked_bytes() == 0));
        look(Epoch(epoch));
        if rng.chance(40) {
            freeze(stage, &mut slots, true, &mut history);
        }
        if rng.chance(60) {
            freeze(stage, &mut slots, false, &mut history);
            if rng.chance(30) {
                for (part, told) in parts.iter().zip(&mut history) {
                    *told = vec![merge(part.kind, &part.schema, std::mem::take(told), false).unwrap()];
                }
            }
            if rng.chance(60) {
                let new = count(rng);
                slots = restore(rng, stage, new, &mut history, &events);
                // What is restored is known already.
                for function in &mut slots {
                    let mut told = Vec::new();
                    function.freeze(&mut told).unwrap();
                    assert!(told.is_empty(), "restored state is told again");
                }
            }
        }
    }
    freeze(stage, &mut slots, false, &mut history);
    parts.iter().zip(history).map(|(part, told)| merge(part.kind, &part.schema, told, true).unwrap()).collect()
}

/// About half of a pane in which joins forget rows.
const STEP_US: i64 = 30_000;

fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// What the times of rows follow.
#[derive(Clone, Copy, PartialEq)]
enum Follows {
    /// They are not below it.
    Watermark,
    /// The first is the processing time of the row's epoch.
    Clock,
    /// They are around it.
    Nothing,
}

/// An input whose last two columns are times, the second not before the first.
struct Timed {
    feed: Feed,
    watermark_us: i64,
    now_us: i64,
    follows: Follows,
}

impl Timed {
    fn new(types: &[DataType], domains: &[u64], kind: ChangeKind) -> Timed {
        let (types, domains) = ([types, &[timestamp(), timestamp()]].concat(), [domains, &[1, 1]].concat());
        let feed = Feed::new(&types, &domains, kind);
        Timed { feed, watermark_us: WATERMARK_START, now_us: 0, follows: Follows::Watermark }
    }

    fn row(&self, rng: &mut Rng) -> Row {
        let fields = self.feed.schema.fields().iter().zip(&self.feed.domains);
        let plain = fields.len() - 2;
        let mut row: Row = fields.take(plain).map(|(f, d)| random_value(rng, f.data_type(), *d)).collect();
        if self.follows != Follows::Clock && rng.chance(6) {
            row.extend([V::Null, V::Null]);
            return row;
        }
        let time_us = match self.follows {
            Follows::Watermark => self.watermark_us.max(0) + rng.below(12) as i64 * STEP_US,
            Follows::Clock => self.now_us,
            Follows::Nothing => self.now_us + (rng.below(12) as i64 - 4) * STEP_US,
        };
        // A row that may be taken away until a time is final must still be there then.
        let same = self.follows == Follows::Watermark && self.feed.kind == ChangeKind::Retract;
        let more_us = if same { 0 } else { rng.below(5) as i64 * STEP_US };
        row.extend([int(time_us), int(time_us + more_us)]);
        row
    }

    /// Random changes that keep the promise of the watermark, which then moves on.
    fn epoch(&mut self, rng: &mut Rng) -> Vec<(Row, i64)> {
        let mut changes = Vec::new();
        if self.watermark_us == WATERMARK_END {
            return changes;
        }
        let retracts = self.feed.kind == ChangeKind::Retract;
        for _ in 0..*rng.pick(&[0, 1, 3, 20, 50]) {
            let time = self.feed.schema.fields().len() - 2;
            let open = |row: &Row| row[time].is_null() || row[time].as_int() >= self.watermark_us as i128;
            let present: Vec<(Row, i64)> =
                self.feed.bag.iter().filter(|(row, _)| open(row)).map(|(row, w)| (row.clone(), *w)).collect();
            if retracts && !present.is_empty() && rng.chance(45) {
                let (row, weight) = rng.pick(&present).clone();
                let taken = if rng.chance(70) { weight } else { 1 + rng.below(weight as u64) as i64 };
                add(&mut self.feed.bag, row.clone(), -taken);
                changes.push((row, -taken));
            } else {
                let row = self.row(rng);
                let weight = if rng.chance(80) { 1 } else { 1 + rng.below(4) as i64 };
                add(&mut self.feed.bag, row.clone(), weight);
                changes.push((row, weight));
            }
            if retracts && rng.chance(10) {
                let row = self.row(rng);
                changes.extend([(row.clone(), 2), (row, -2)]);
            }
        }
        for n in (1..changes.len()).rev() {
            changes.swap(n, rng.below(n as u64 + 1) as usize);
        }
        changes
    }

    fn advance_watermark(&mut self, rng: &mut Rng) {
        if rng.chance(1) {
            self.watermark_us = WATERMARK_END;
        } else if rng.chance(70) && self.watermark_us != WATERMARK_END {
            self.watermark_us = self.watermark_us.max(0) + rng.below(6) as i64 * STEP_US + rng.below(3) as i64;
        }
    }
}

/// Changes of several inputs in random batches, in a random order.
fn shuffled(rng: &mut Rng, inputs: Vec<Vec<(Row, i64)>>) -> Vec<(usize, Vec<(Row, i64)>)> {
    let mut batches = Vec::new();
    for (port, changes) in inputs.into_iter().enumerate() {
        let mut rest = changes.as_slice();
        while !rest.is_empty() {
            let most = *rng.pick(&[1, 5, 100]);
            let (now, later) = rest.split_at((1 + rng.below(most) as usize).min(rest.len()));
            batches.push((port, now.to_vec()));
            rest = later;
        }
    }
    for n in (1..batches.len()).rev() {
        batches.swap(n, rng.below(n as u64 + 1) as usize);
    }
    batches
}

fn kind(rng: &mut Rng) -> ChangeKind {
    if rng.chance(40) { ChangeKind::AppendOnly } else { ChangeKind::Retract }
}

fn compare(op: &str, left: usize, right: usize) -> Expr {
    Expr::Binary { op: op.into(), left: Box::new(Expr::Column(left)), right: Box::new(Expr::Column(right)) }
}

fn event(column: usize) -> TimeColumn {
    TimeColumn { column, after_us: 1, clock: TimeClock::Event }
}

/// Where rows lie that are kept one by one.
fn one_by_one(kind: ChangeKind, columns: usize) -> Spread {
    match kind {
        ChangeKind::AppendOnly => Spread::Anywhere,
        ChangeKind::Retract => Spread::Hash((0..columns).collect()),
    }
}

const LEFT: [DataType; 4] = [DataType::Int64, DataType::Float64, DataType::Utf8View, DataType::Int32];
const RIGHT: [DataType; 3] = [DataType::Int64, DataType::Float64, DataType::Int32];

#[test]
fn joins_survive() {
    let mut matched = 0;
    for seed in 1..=700 {
        let mut rng = Rng::new(seed);
        let join = *rng.pick(&[
            JoinKind::Inner,
            JoinKind::Left,
            JoinKind::Right,
            JoinKind::Full,
            JoinKind::LeftSemi,
            JoinKind::LeftAnti,
        ]);
        let kinds = [kind(&mut rng), kind(&mut rng)];
        let null_aware = join == JoinKind::LeftAnti && rng.chance(50);
        // Columns 4 and 5 of the left side and 3 and 4 of the right side are times.
        let on = if null_aware {
            rng.pick(&[vec![(0, 0)], vec![(1, 1)]]).clone()
        } else {
            rng.pick(&[vec![(0, 0)], vec![(1, 1)], vec![(1, 1), (0, 0)], vec![], vec![(4, 3)], vec![(0, 0), (4, 3)]])
                .clone()
        };
        let (mut conditions, mut expires) = (Vec::new(), [None, None]);
        if !null_aware && rng.chance(60) {
            if rng.chance(40) {
                conditions.push(compare("<", 3, 8));
            }
            if rng.chance(60) {
                conditions.push(compare("<=", 4, 10));
                expires[1] = Some(event(4));
            }
            if rng.chance(60) {
                conditions.push(compare(">=", 5, 9));
                expires[0] = Some(event(5));
            }
        }
        if on.contains(&(4, 3)) {
            expires = [Some(event(4)), Some(event(3))];
        }
        if rng.chance(20) {
            expires = [None, None];
        }
        let both = |left, right| Expr::Binary { op: "AND".into(), left: Box::new(left), right: Box::new(right) };
        let op = TaskOp::Join {
            kind: join,
            on: on.clone(),
            nulls_equal: !null_aware && rng.chance(30),
            filter: conditions.into_iter().reduce(both),
            left_kind: kinds[0],
            right_kind: kinds[1],
            left_unique: rng.chance(30),
            right_unique: rng.chance(30),
            expires,
            null_aware,
        };
        let spread = if null_aware || on.is_empty() {
            match join {
                JoinKind::Right | JoinKind::Full => vec![Spread::One, Spread::One],
                _ => vec![one_by_one(kinds[0], LEFT.len() + 2), Spread::Everywhere],
            }
        } else {
            let some = &on[..1 + rng.below(on.len() as u64) as usize];
            vec![
                Spread::Hash(some.iter().map(|(l, _)| *l).collect()),
                Spread::Hash(some.iter().map(|(_, r)| *r).collect()),
            ]
        };
        let domain = *rng.pick(&[2, 5, 15]);
        let mut sides =
            [Timed::new(&LEFT, &[domain, 4, 3, 6], kinds[0]), Timed::new(&RIGHT, &[domain, 4, 6], kinds[1])];
        let half = matches!(join, JoinKind::LeftSemi | JoinKind::LeftAnti);
        let inputs: Vec<SchemaRef> = sides.iter().map(|s| s.feed.schema.clone()).collect();
        let shown = if half { &inputs[..1] } else { &inputs[..] };
        let types: Vec<DataType> =
            shown.iter().flat_map(|s| s.fields().iter().map(|f| f.data_type().clone())).collect();
        let batch_rows = *rng.pick(&[1, 7, 8192]);
        let start = starter(&op, &inputs, &schema(&types), batch_rows);
        matched += usize::from(start(1)[0].parts().iter().any(|part| part.name.ends_with("matched")));
        let stage = Stage { start: &start, inputs, spread };
        let what = format!("seed {seed}, {:?}, {op:?}", stage.spread);
        let next = |rng: &mut Rng| {
            let inputs = sides.iter_mut().map(|side| side.epoch(rng)).collect();
            sides.iter_mut().for_each(|side| side.advance_watermark(rng));
            let watermarks = sides.iter().map(|side| side.watermark_us).collect();
            Events { changes: shuffled(rng, inputs), watermarks, now_us: 0 }
        };
        survives(&mut rng, &what, &stage, 12, next, |_| ());
    }
    assert!(matched > 30, "{matched} joins that keep matches");
}

#[test]
fn top_n_survives() {
    let mut closed = 0;
    for seed in 1..=700 {
        let mut rng = Rng::new(seed);
        let kind = kind(&mut rng);
        let order = (0..rng.below(3))
            .map(|_| SortKey { column: rng.below(6) as usize, descending: rng.chance(50), nulls_first: rng.chance(50) })
            .collect();
        let partition = rng.pick(&[vec![], vec![0], vec![1], vec![2, 0], vec![4], vec![4, 0]]).clone();
        let arrivals = kind == ChangeKind::AppendOnly && rng.chance(30);
        let time = TimeColumn { after_us: 0, clock: TimeClock::Processing, ..event(4) };
        let closes = partition.contains(&4).then_some(if arrivals { time } else { event(4) });
        closed += usize::from(closes.is_some());
        let op = TaskOp::TopN {
            partition: partition.clone(),
            order,
            offset: *rng.pick(&[0, 0, 0, 1, 4]),
            limit: *rng.pick(&[Some(1), Some(3), Some(10), Some(0), None]),
            rank: *rng.pick(&[RankKind::RowNumber, RankKind::RowNumber, RankKind::Rank, RankKind::DenseRank]),
            emit_rank: rng.chance(40),
            input_kind: kind,
            closes,
        };
        let mut input = Timed::new(&LEFT, &[3, 6, 4, 5], kind);
        input.follows = if arrivals { Follows::Clock } else { Follows::Watermark };
        let mut types: Vec<DataType> = input.feed.schema.fields().iter().map(|f| f.data_type().clone()).collect();
        if matches!(op, TaskOp::TopN { emit_rank: true, .. }) {
            types.push(DataType::UInt64);
        }
        let inputs = vec![input.feed.schema.clone()];
        let batch_rows = *rng.pick(&[1, 7, 8192]);
        let start = starter(&op, &inputs, &schema(&types), batch_rows);
        let spread = if partition.is_empty() { Spread::One } else { Spread::Hash(partition) };
        let stage = Stage { start: &start, inputs, spread: vec![spread] };
        let what = format!("seed {seed}, {op:?}");
        let next = |rng: &mut Rng| {
            input.now_us += rng.below(4) as i64 * STEP_US + 1;
            let rows = input.epoch(rng);
            input.advance_watermark(rng);
            Events { changes: shuffled(rng, vec![rows]), watermarks: vec![input.watermark_us], now_us: input.now_us }
        };
        survives(&mut rng, &what, &stage, 12, next, |_| ());
    }
    assert!(closed > 100, "{closed} Top-N that close");
}

#[test]
fn temporal_filters_survive() {
    for seed in 1..=400 {
        let mut rng = Rng::new(seed);
        let kind = kind(&mut rng);
        let bound = |rng: &mut Rng, columns: &[&[usize]]| -> Vec<(usize, i64)> {
            rng.pick(columns).iter().map(|c| (*c, (rng.below(9) as i64 - 4) * STEP_US)).collect()
        };
        // Columns 2 and 3 are times.
        let (mut from, mut until) = (Vec::new(), Vec::new());
        while from.is_empty() && until.is_empty() {
            from = bound(&mut rng, &[&[], &[2], &[3], &[2, 3]]);
            until = bound(&mut rng, &[&[], &[3], &[2], &[2, 3]]);
        }
        let op = TaskOp::TemporalFilter { from, until };
        let mut input = Timed::new(&[DataType::Int64, DataType::Utf8View], &[3, 3], kind);
        let inputs = vec![input.feed.schema.clone()];
        let batch_rows = *rng.pick(&[1, 7, 8192]);
        let start = starter(&op, &inputs, &inputs[0], batch_rows);
        let stage = Stage { start: &start, inputs: inputs.clone(), spread: vec![one_by_one(kind, 4)] };
        let what = format!("seed {seed}, {op:?}");
        input.follows = Follows::Nothing;
        let next = |rng: &mut Rng| {
            let rows = input.epoch(rng);
            input.now_us += rng.below(5) as i64 * STEP_US;
            Events { changes: shuffled(rng, vec![rows]), watermarks: vec![WATERMARK_START], now_us: input.now_us }
        };
        survives(&mut rng, &what, &stage, 14, next, |_| ());
    }
}

#[test]
fn constant_rows_come_once_for_all() {
    let schema = schema(&[DataType::Int64]);
    let mut ipc = Vec::new();
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(&mut ipc, &schema).unwrap();
    writer.write(&batch(&schema, &[(vec![int(1)], 1)]).rows).unwrap();
    writer.finish().unwrap();
    drop(writer);
    let start = starter(&TaskOp::Values { ipc }, &[], &schema, 8192);
    let stage = Stage { start: &start, inputs: vec![], spread: vec![] };
    for seed in 1..=10 {
        let next = |_: &mut Rng| Events { changes: vec![], watermarks: vec![], now_us: 0 };
        survives(&mut Rng::new(seed), &format!("seed {seed}"), &stage, 5, next, |_| ());
    }
}

#[test]
fn views_survive() {
    for seed in 1..=60 {
        let mut rng = Rng::new(seed);
        let mut feed = Feed::new(&LEFT, &[4, 4, 3, 6], kind(&mut rng));
        let (view, bag) = (feed.schema.clone(), RefCell::new(Bag::new()));
        // The store of the instances that were started last.
        let newest: RefCell<Option<Arc<Store>>> = RefCell::new(None);
        let start = |slots: usize| -> Vec<Box<dyn ProcessFunction>> {
            let store = Store::new(view.clone(), None, slots).unwrap();
            *newest.borrow_mut() = Some(Arc::clone(&store));
            let floor = Arc::new(AtomicU64::new(0));
            let function = |slot| materialize(Arc::clone(&store), &view, SlotId(slot as u16), Arc::clone(&floor));
            (0..slots).map(function).collect()
        };
        let stage = Stage { start: &start, inputs: vec![view.clone()], spread: vec![Spread::Hash(vec![0, 1])] };
        let next = |rng: &mut Rng| {
            let changes = feed.epoch(rng);
            *bag.borrow_mut() = feed.bag.clone();
            Events { changes: shuffled(rng, vec![changes]), watermarks: vec![WATERMARK_START], now_us: 0 }
        };
        let look = |epoch| {
            let store = newest.borrow().clone().unwrap();
            let mut seen = Bag::new();
            for rows in store.snapshot(epoch).unwrap().scan(None, 100).unwrap() {
                rows_of(&ChangeBatch::insert(rows.unwrap())).into_iter().for_each(|(row, w)| add(&mut seen, row, w));
            }
            assert_eq!(seen, *bag.borrow(), "seed {seed} epoch {epoch}");
        };
        let content = survives(&mut rng, &format!("seed {seed}"), &stage, 12, next, look);
        assert_eq!(super::bag(&rows_of(&content[0])), feed.bag);
    }
}

fn full_join(expires: bool) -> (TaskOp, Vec<SchemaRef>, SchemaRef) {
    let time = expires.then_some(event(1));
    let op = TaskOp::Join {
        kind: JoinKind::Full,
        on: vec![(0, 0), (1, 1)],
        nulls_equal: false,
        filter: expires.then(|| compare("<=", 2, 5)),
        left_kind: ChangeKind::Retract,
        right_kind: ChangeKind::AppendOnly,
        left_unique: false,
        right_unique: false,
        expires: [time, time],
        null_aware: false,
    };
    let side = schema(&[DataType::Int64, timestamp(), DataType::Int64]);
    let output = [side.fields().to_vec(), side.fields().to_vec()].concat();
    let types: Vec<DataType> = output.iter().map(|f| f.data_type().clone()).collect();
    (op, vec![side.clone(), side], schema(&types))
}

fn top_10(kind: ChangeKind, partition: Vec<usize>) -> TaskOp {
    TaskOp::TopN {
        closes: partition.contains(&1).then_some(event(1)),
        partition,
        order: vec![SortKey { column: 2, descending: true, nulls_first: false }],
        offset: 0,
        limit: Some(10),
        rank: RankKind::RowNumber,
        emit_rank: kind == ChangeKind::AppendOnly,
        input_kind: kind,
    }
}

/// Rows (key, time, value) with the numbers `from .. to`.
fn rows(from: i64, to: i64) -> Vec<(Row, i64)> {
    (from..to).map(|n| (vec![int(n % 10_000), int(n / 100 * STEP_US), int(n)], 1)).collect()
}

#[test]
fn one_changed_row_is_told_alone() {
    let (join, sides, pairs) = full_join(false);
    let side = &sides[..1];
    let ranked = schema(&[DataType::Int64, timestamp(), DataType::Int64, DataType::UInt64]);
    let filter = TaskOp::TemporalFilter { from: vec![(1, i64::MIN)], until: vec![(1, i64::MAX / 2)] };
    let cases = [
        (join, &sides[..], &pairs),
        (top_10(ChangeKind::Retract, vec![0]), side, &side[0]),
        (top_10(ChangeKind::AppendOnly, vec![0]), side, &ranked),
        (top_10(ChangeKind::AppendOnly, vec![]), side, &ranked),
        (filter, side, &side[0]),
    ];
    for (op, inputs, output) in cases {
        let mut function = starter(&op, inputs, output, 8192)(1).remove(0);
        function.track();
        let all = |rows: Vec<(Row, i64)>| (0..inputs.len()).map(|port| (port, rows.clone())).collect::<Vec<_>>();
        run_epochs(&mut *function, inputs, &[all(rows(0, 100_000))]);
        assert!(function.tracked_bytes() > 0);
        function.freeze(&mut Vec::new()).unwrap();
        run_epochs(&mut *function, inputs, &[all(rows(100_000, 100_001))]);
        let mut told = Vec::new();
        function.freeze(&mut told).unwrap();
        let (rows, bytes) = told.iter().fold((0, 0), |(n, b), (_, c)| (n + c.num_rows(), b + c.bytes()));
        assert!((1..=4).contains(&rows) && bytes < 2000, "{rows} rows, {bytes} bytes of {op:?}");
    }
}

#[test]
fn a_global_top_10_tells_what_it_keeps() {
    let ranked = schema(&[DataType::Int64, timestamp(), DataType::Int64, DataType::UInt64]);
    let inputs = [schema(&[DataType::Int64, timestamp(), DataType::Int64])];
    let mut function = starter(&top_10(ChangeKind::AppendOnly, vec![]), &inputs, &ranked, 8192)(1).remove(0);
    function.track();
    let mut descending = rows(0, 100_000);
    descending.reverse();
    run_epochs(&mut *function, &inputs, &[vec![(0, descending)]]);
    let mut told = Vec::new();
    function.freeze(&mut told).unwrap();
    let count: usize = told.iter().map(|(_, change)| change.num_rows()).sum();
    assert!(count < 100, "{count} rows of 10");
}

/// What is told of what a watermark ends: the content of the parts does not grow for ever.
#[test]
fn what_is_over_leaves_the_checkpoint() {
    let (join, sides, pairs) = full_join(true);
    let side = &sides[..1];
    let ranked = schema(&[DataType::Int64, timestamp(), DataType::Int64, DataType::UInt64]);
    let cases = [
        (join, &sides[..], &pairs),
        (top_10(ChangeKind::Retract, vec![0, 1]), side, &side[0]),
        (top_10(ChangeKind::AppendOnly, vec![1]), side, &ranked),
        (TaskOp::TemporalFilter { from: vec![], until: vec![(1, 0)] }, side, &side[0]),
    ];
    for (op, inputs, output) in cases {
        let start = starter(&op, inputs, output, 8192);
        let spread = match &op {
            TaskOp::TemporalFilter { .. } => Spread::Anywhere,
            _ => Spread::Hash(vec![1]),
        };
        let stage = Stage { start: &start, inputs: inputs.to_vec(), spread: vec![spread; inputs.len()] };
        let mut epoch = 0;
        let next = |_: &mut Rng| {
            epoch += 1;
            let over_us = epoch * 10 * STEP_US;
            let rows = rows((epoch - 1) * 1000, epoch * 1000);
            let changes = (0..inputs.len()).map(|port| (port, rows.clone())).collect();
            Events { changes, watermarks: vec![over_us; inputs.len()], now_us: over_us - 2 * STEP_US }
        };
        let content = survives(&mut Rng::new(1), &format!("{op:?}"), &stage, 10, next, |_| ());
        for part in content {
            assert!(part.num_rows() <= 1000, "{} rows of {op:?}", part.num_rows());
        }
    }
}

/// A checkpoint costs what is left at its end, not what came and went before it.
#[test]
fn a_join_does_not_tell_what_came_and_went() {
    let told_rows = |function: &mut dyn ProcessFunction| {
        let mut told = Vec::new();
        function.freeze(&mut told).unwrap();
        told.iter().map(|(_, change)| change.num_rows()).sum::<usize>()
    };
    for expires in [false, true] {
        let (join, sides, pairs) = full_join(expires);
        let mut function = starter(&join, &sides, &pairs, 8192)(1).remove(0);
        function.track();
        let mut most = 0;
        for epoch in 1..=50 {
            let new = rows((epoch - 1) * 1000, epoch * 1000);
            let old = if expires { vec![] } else { rows((epoch - 2).max(0) * 1000, (epoch - 1) * 1000) };
            let gone = old.into_iter().map(|(row, _)| (row, -1));
            // Rows are taken back on the left alone.
            for (port, side) in sides.iter().enumerate().take(if expires { 2 } else { 1 }) {
                let changes: Vec<(Row, i64)> = new.iter().cloned().chain(gone.clone()).collect();
                function.process(port, batch(side, &changes), &mut Vec::new()).unwrap();
                if expires {
                    function.on_watermark(port, epoch * 10 * STEP_US).unwrap();
                }
            }
            function.finish_epoch(Epoch(epoch as u64), &mut Vec::new()).unwrap();
            most = most.max(function.tracked_bytes());
        }
        // About a pane of an epoch's rows stays in each side.
        let told = told_rows(&mut *function);
        assert!((1..=4000).contains(&told), "{told} rows of 100,000, expires: {expires}");
        assert!(most < 4 << 20, "{most} bytes");
        assert_eq!(told_rows(&mut *function), 0);
    }
}

#[test]
fn damaged_state_is_refused() {
    let (join, sides, pairs) = full_join(false);
    let cases = [(join, &sides[..], &pairs), (top_10(ChangeKind::Retract, vec![0]), &sides[..1], &sides[0])];
    for (op, inputs, output) in cases {
        let function = || starter(&op, inputs, output, 8192)(1).remove(0);
        let gone: Vec<(Row, i64)> = rows(0, 3).into_iter().map(|(row, _)| (row, -1)).collect();
        let error = function().restore(0, batch(&inputs[0], &gone)).unwrap_err();
        assert_eq!(error.state(), SqlState::DataCorrupted);
        let other = batch(&schema(&[DataType::Int64]), &[(vec![int(1)], 1)]);
        assert_eq!(function().restore(0, other).unwrap_err().state(), SqlState::DataCorrupted);
    }
}

#[test]
fn what_waits_to_be_told_keeps_no_other_rows_alive() {
    let input = schema(&[DataType::Int64, timestamp(), DataType::Utf8View]);
    let mut function =
        starter(&top_10(ChangeKind::Retract, vec![0]), std::slice::from_ref(&input), &input, 8192)(1).remove(0);
    function.track();
    let row = |n: i64| (vec![int(n), int(0), text(&format!("a text of some length, number {n}"))], 1);
    let all = batch(&input, &(0..10_000).map(row).collect::<Vec<_>>());
    function.process(0, all.slice(5000, 2), &mut Vec::new()).unwrap();
    let charged = function.tracked_bytes();
    let mut told = Vec::new();
    function.freeze(&mut told).unwrap();
    let held: usize = told[0].1.rows.columns().iter().map(|c| c.get_buffer_memory_size()).sum();
    assert!(charged > 0 && held < 2000, "{charged} bytes charged, {held} held");
}
