//! Aggregates and sessions that are frozen, thrown away and restored, perhaps over another number of slots, against one instance
//! that goes on undisturbed.

use arrow::compute::concat_batches;
use flow::hash::{hash_columns, slot_of_vnode, vnode};
use flow::keys::KeyEncoder;
use flow::process::{PartKind, StatePart, WATERMARK_START};
use flow::{Result, SqlState};
use plan::stream::{AggCall, AggFunction, TimeClock, TimeColumn};

use super::*;

const DECIMAL: DataType = DataType::Decimal128(12, 2);
const TIME: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

/// The input of all histories: 6 is for FILTER, 7 the time.
const TYPES: [DataType; 8] = [
    DataType::Int32,
    DataType::Utf8View,
    DataType::Float64,
    DECIMAL,
    DataType::Boolean,
    DataType::Int64,
    DataType::Boolean,
    TIME,
];
const DOMAINS: [u64; 7] = [4, 5, 6, 7, 2, 5, 2];
const AT: usize = 7;

/// What the checkpoints so far come to.
struct Store {
    parts: Vec<StatePart>,
    /// By part: key → row.
    rows: Vec<BTreeMap<Vec<u8>, RecordBatch>>,
}

impl Store {
    fn new(parts: Vec<StatePart>) -> Store {
        let rows = parts.iter().map(|_| BTreeMap::new()).collect();
        Store { parts, rows }
    }

    fn merge(&mut self, changes: Vec<(usize, ChangeBatch)>) {
        for (n, batch) in changes {
            let part = &self.parts[n];
            assert_eq!(batch.schema(), part.schema);
            let PartKind::Keyed { key } = part.kind else { panic!("the parts of aggregates are keyed") };
            let columns = &batch.rows.columns()[..key];
            let types: Vec<DataType> = columns.iter().map(|c| c.data_type().clone()).collect();
            let keys = (key > 0).then(|| KeyEncoder::new(&types).unwrap().encode(columns).unwrap());
            for i in 0..batch.num_rows() {
                let key = keys.as_ref().map_or(vec![], |k| k.row(i).data().to_vec());
                match batch.weight(i) {
                    1 => drop(self.rows[n].insert(key, batch.rows.slice(i, 1))),
                    -1 => drop(self.rows[n].remove(&key)),
                    other => panic!("weight {other} in a keyed part"),
                }
            }
        }
    }

    fn sizes(&self) -> Vec<usize> {
        self.rows.iter().map(BTreeMap::len).collect()
    }
}

/// The instances of an operator in all slots.
struct Fleet {
    slots: Vec<Box<dyn ProcessFunction>>,
    /// The input columns by which rows are spread; in slot 0 if there are none.
    spread: Vec<usize>,
}

struct Setting {
    op: TaskOp,
    input: SchemaRef,
    output: SchemaRef,
    batch_rows: usize,
    spread: Vec<usize>,
}

impl Setting {
    fn fleet(&self, slots: usize) -> Fleet {
        let task = Task {
            id: TaskId(0),
            op: self.op.clone(),
            inputs: vec![],
            schema: self.output.clone(),
            change_kind: ChangeKind::Retract,
        };
        let make = |slot: usize| {
            let ctx = OpContext { slot: SlotId(slot as u16), slots, batch_rows: self.batch_rows };
            instantiate(&task, std::slice::from_ref(&self.input), &ctx).unwrap()
        };
        Fleet { slots: (0..slots).map(make).collect(), spread: self.spread.clone() }
    }
}

impl Fleet {
    /// The rows of `batch` by slot, which lie by `columns`.
    fn split(&self, batch: &ChangeBatch, columns: &[usize]) -> Vec<ChangeBatch> {
        let rows = batch.num_rows();
        let mut of_slot: Vec<Vec<u32>> = vec![vec![]; self.slots.len()];
        if columns.is_empty() {
            of_slot[0] = (0..rows as u32).collect();
        } else {
            let columns: Vec<ArrayRef> = columns.iter().map(|n| Arc::clone(batch.rows.column(*n))).collect();
            for (i, hash) in hash_columns(&columns, rows).unwrap().into_iter().enumerate() {
                of_slot[slot_of_vnode(vnode(hash), self.slots.len())].push(i as u32);
            }
        }
        of_slot.into_iter().map(|rows| batch.take(&UInt32Array::from(rows)).unwrap()).collect()
    }

    /// Runs an epoch and returns its net output.
    fn epoch(&mut self, number: u64, batches: &[ChangeBatch], watermark: Option<i64>, now: i64) -> Bag {
        let mut out: Vec<ChangeBatch> = Vec::new();
        for batch in batches {
            let split = self.split(batch, &self.spread);
            for (function, batch) in self.slots.iter_mut().zip(split).filter(|(_, b)| b.num_rows() > 0) {
                function.process(0, batch, &mut out).unwrap();
            }
        }
        for function in &mut self.slots {
            if let Some(watermark) = watermark {
                function.on_watermark(0, watermark).unwrap();
            }
            function.on_time(now).unwrap();
            function.finish_epoch(Epoch(number), &mut out).unwrap();
        }
        let mut net = Bag::new();
        for (row, weight) in out.iter().flat_map(rows_of) {
            add(&mut net, row, weight);
        }
        net
    }

    fn freeze_early(&mut self) -> Vec<(usize, ChangeBatch)> {
        let mut changes = Vec::new();
        self.slots.iter_mut().for_each(|function| function.freeze_early(&mut changes).unwrap());
        changes
    }

    fn freeze(&mut self) -> Vec<(usize, ChangeBatch)> {
        let mut changes = Vec::new();
        for function in &mut self.slots {
            function.freeze(&mut changes).unwrap();
            assert_eq!(function.tracked_bytes(), 0);
        }
        changes
    }

    /// Restores the content of `store` in small batches, in any order.
    fn restore(&mut self, store: &Store, rng: &mut Rng, watermark: i64, now: i64) {
        let mut batches = Vec::new();
        for (n, rows) in store.rows.iter().enumerate() {
            let mut rows: Vec<&RecordBatch> = rows.values().collect();
            for i in (1..rows.len()).rev() {
                rows.swap(i, rng.below(i as u64 + 1) as usize);
            }
            let most = *rng.pick(&[1, 10, 1000]);
            batches.extend(rows.chunks(most).map(|c| (n, concat_batches(&store.parts[n].schema, c.to_vec()).unwrap())));
        }
        for i in (1..batches.len()).rev() {
            batches.swap(i, rng.below(i as u64 + 1) as usize);
        }
        for (n, rows) in batches {
            let part = &store.parts[n];
            let columns: Vec<usize> = self
                .spread
                .iter()
                .map(|column| part.columns.iter().position(|c| c == column).expect("a part tells where its rows lie"))
                .collect();
            let split = self.split(&ChangeBatch::insert(rows), &columns);
            for (function, rows) in self.slots.iter_mut().zip(split).filter(|(_, b)| b.num_rows() > 0) {
                function.restore(n, rows).unwrap();
            }
        }
        for function in &mut self.slots {
            function.restored(&[watermark], now).unwrap();
            function.track();
        }
    }
}

fn call(function: AggFunction, arg: Option<usize>, output: DataType) -> AggCall {
    AggCall { function, arg, distinct: false, filter: None, output }
}

fn distinct(call: AggCall) -> AggCall {
    AggCall { distinct: true, ..call }
}

fn random_calls(rng: &mut Rng) -> Vec<AggCall> {
    use AggFunction::*;
    let mut calls = Vec::new();
    for _ in 0..rng.below(5) {
        let arg = rng.below(6) as usize;
        let arg_type = TYPES[arg].clone();
        let (function, arg, output) = match rng.below(7) {
            0 => (Count, None, DataType::Int64),
            1 => (Count, Some(arg), DataType::Int64),
            2 | 3 => match arg_type {
                DataType::Float64 => (Sum, Some(arg), DataType::Float64),
                DECIMAL => (Avg, Some(arg), DataType::Decimal128(16, 6)),
                // Its extreme integers leave 64 bits.
                DataType::Int64 => (Sum, Some(arg), DataType::Decimal128(38, 0)),
                DataType::Utf8View => (Avg, Some(2), DataType::Float64),
                _ => (Sum, Some(0), DataType::Int64),
            },
            4 => (Min, Some(arg), arg_type),
            5 => (Max, Some(arg), arg_type),
            _ => (if rng.chance(50) { BoolAnd } else { BoolOr }, Some(4), DataType::Boolean),
        };
        let distinct = arg.is_some() && rng.chance(35);
        let filter = rng.chance(30).then_some(6);
        calls.push(AggCall { function, arg, distinct, filter, output });
    }
    calls
}

fn output_of(group: &[usize], more: &[DataType], calls: &[AggCall]) -> SchemaRef {
    let mut types: Vec<DataType> = group.iter().map(|n| TYPES[*n].clone()).collect();
    types.extend_from_slice(more);
    types.extend(calls.iter().map(|c| c.output.clone()));
    schema(&types)
}

/// With what the input can do, and how long after its time a row is final.
fn random_setting(rng: &mut Rng) -> (Setting, ChangeKind, i64) {
    let kind = if rng.chance(30) { ChangeKind::AppendOnly } else { ChangeKind::Retract };
    let clock = if rng.chance(70) { TimeClock::Event } else { TimeClock::Processing };
    let calls = random_calls(rng);
    let (input, batch_rows) = (schema(&TYPES), *rng.pick(&[1, 7, 8192]));
    let after_us = *rng.pick(&[0, 1, 9]);
    let (op, output, group, kind, after_us) = match rng.below(10) {
        0..4 => {
            let group = rng.pick(&[vec![], vec![0], vec![1], vec![2], vec![0, 1], vec![5, 2, 4], vec![3, 7]]).clone();
            let output = output_of(&group, &[], &calls);
            let op = TaskOp::Aggregate { group: group.clone(), calls, input_kind: kind, closes: None, on_close: false };
            (op, output, group, kind, after_us)
        }
        4..7 => {
            let group = rng.pick(&[vec![7], vec![0, 7], vec![7, 1], vec![2, 7]]).clone();
            let column = group.iter().position(|n| *n == AT).unwrap();
            let closes = Some(TimeColumn { column, after_us, clock });
            let output = output_of(&group, &[], &calls);
            let on_close = rng.chance(50);
            let op = TaskOp::Aggregate { group: group.clone(), calls, input_kind: kind, closes, on_close };
            (op, output, group, kind, after_us)
        }
        7 => {
            let op = TaskOp::EmitOnClose { time: TimeColumn { column: AT, after_us: 1, clock } };
            (op, input.clone(), (0..TYPES.len()).collect(), ChangeKind::Retract, 1)
        }
        _ => {
            let keys = rng.pick(&[vec![], vec![0], vec![1], vec![0, 4]]).clone();
            let output = output_of(&keys, &[TIME, TIME], &calls);
            let closes = TimeColumn { column: keys.len() + 1, after_us: 0, clock };
            let closes = rng.chance(75).then_some(closes);
            let (gap_us, on_close) = (*rng.pick(&[2, 5]), closes.is_some() && rng.chance(50));
            let op = TaskOp::Session { keys: keys.clone(), time: AT, gap_us, calls, closes, on_close };
            // A session ends its gap after a row.
            (op, output, keys, ChangeKind::AppendOnly, 1)
        }
    };
    // Rows may lie by fewer columns than the group has.
    let spread = if group.len() > 1 && rng.chance(50) { vec![*rng.pick(&group)] } else { group };
    (Setting { op, input, output, batch_rows, spread }, kind, after_us)
}

/// The changes of an epoch: no row that comes or goes has a time before `least`.
fn random_changes(rng: &mut Rng, bag: &mut Bag, kind: ChangeKind, least: i64) -> Vec<(Row, i64)> {
    let mut changes = Vec::new();
    for _ in 0..*rng.pick(&[0, 1, 4, 25]) {
        let open = |row: &Row| row[AT].is_null() || row[AT].as_int() >= least as i128;
        let present: Vec<&Row> = bag.keys().filter(|row| open(row)).collect();
        if kind == ChangeKind::Retract && !present.is_empty() && rng.chance(50) {
            let row = (*rng.pick(&present)).clone();
            let weight = bag[&row];
            let taken = if rng.chance(70) { weight } else { 1 + rng.below(weight as u64) as i64 };
            add(bag, row.clone(), -taken);
            changes.push((row, -taken));
            continue;
        }
        let mut row: Row = TYPES[..AT].iter().zip(DOMAINS).map(|(t, domain)| random_value(rng, t, domain)).collect();
        if rng.chance(4) {
            row[2] = float(*rng.pick(&[1e300, -1e300, 1e-300]));
        }
        row.push(if rng.chance(4) { V::Null } else { int(least + rng.below(30) as i64) });
        let weight = if rng.chance(80) { 1 } else { 1 + rng.below(4) as i64 };
        add(bag, row.clone(), weight);
        changes.push((row.clone(), weight));
        if kind == ChangeKind::Retract && rng.chance(10) {
            // Comes and goes within the epoch.
            add(bag, row.clone(), -weight);
            changes.push((row, -weight));
        }
    }
    for n in (1..changes.len()).rev() {
        changes.swap(n, rng.below(n as u64 + 1) as usize);
    }
    changes
}

fn check(seed: u64) {
    let mut rng = Rng::new(seed);
    let (setting, kind, after_us) = random_setting(&mut rng);
    let mut steady = setting.fleet(1);
    let mut slots = 1 + rng.below(3) as usize;
    let mut moving = setting.fleet(slots);
    let mut store = Store::new(moving.slots[0].parts());
    moving.slots.iter_mut().for_each(|f| f.track());
    let (mut bag, mut watermark, mut now) = (Bag::new(), WATERMARK_START, 0);
    for epoch in 1..=14 {
        let changes = random_changes(&mut rng, &mut bag, kind, now - after_us + 1);
        let most = *rng.pick(&[1, 6, 100]);
        let batches: Vec<ChangeBatch> = changes.chunks(most).map(|c| batch(&setting.input, c)).collect();
        // Watermark and clock are one here, so that no row comes too late for either.
        now += *rng.pick(&[0, 1, 6, 20]);
        let grown = (now > 0 && now > watermark).then_some(now);
        watermark = grown.unwrap_or(watermark);
        let expected = steady.epoch(epoch, &batches, grown, now);
        let found = moving.epoch(epoch, &batches, grown, now);
        assert_eq!(found, expected, "seed {seed} epoch {epoch} slots {slots} op {:?}", setting.op);
        if rng.chance(40) {
            store.merge(moving.freeze_early());
        }
        if rng.chance(50) {
            store.merge(moving.freeze());
            assert!(moving.freeze().is_empty(), "seed {seed}: nothing has changed");
            if rng.chance(60) {
                slots = 1 + rng.below(3) as usize;
                moving = setting.fleet(slots);
                moving.restore(&store, &mut rng, watermark, now);
                assert!(moving.freeze().is_empty(), "seed {seed}: what is restored is known");
            }
        }
    }
}

#[test]
fn restored_aggregates_go_on_as_if_nothing_had_happened() {
    for seed in 1..=900 {
        check(seed);
    }
}

fn simple(group: Vec<usize>, calls: Vec<AggCall>, types: &[DataType]) -> Setting {
    let mut output: Vec<DataType> = group.iter().map(|n| types[*n].clone()).collect();
    output.extend(calls.iter().map(|c| c.output.clone()));
    let spread = group.clone();
    let input_kind = ChangeKind::Retract;
    let op = TaskOp::Aggregate { group, calls, input_kind, closes: None, on_close: false };
    Setting { op, input: schema(types), output: schema(&output), batch_rows: 8192, spread }
}

/// By part the (insertions, deletions) of a freeze.
fn counted(changes: &[(usize, ChangeBatch)], parts: usize) -> Vec<(usize, usize)> {
    let mut counts = vec![(0, 0); parts];
    for (n, batch) in changes {
        for i in 0..batch.num_rows() {
            if batch.weight(i) > 0 { counts[*n].0 += 1 } else { counts[*n].1 += 1 }
        }
    }
    counts
}

#[test]
fn a_checkpoint_costs_what_has_changed() {
    let types = [DataType::Int64, DataType::Int64];
    let calls = vec![
        call(AggFunction::Sum, Some(1), DataType::Int64),
        call(AggFunction::Max, Some(1), DataType::Int64),
        distinct(call(AggFunction::Count, Some(1), DataType::Int64)),
    ];
    for (group, groups) in [(vec![0], 1000), (vec![], 1)] {
        let setting = simple(group, calls.clone(), &types);
        let mut fleet = setting.fleet(1);
        fleet.slots[0].track();
        let row = |n: i64| vec![int(n % 1000), int(n)];
        let epoch = |fleet: &mut Fleet, changes: &[(Row, i64)]| {
            fleet.epoch(1, &[batch(&setting.input, changes)], None, 0);
            fleet.freeze()
        };
        let rows: Vec<(Row, i64)> = (0..20_000).map(|n| (row(n), 1)).collect();
        assert_eq!(counted(&epoch(&mut fleet, &rows), 3), [(groups, 0), (20_000, 0), (20_000, 0)]);
        assert_eq!(counted(&epoch(&mut fleet, &[(row(7), -1)]), 3), [(1, 0), (0, 1), (0, 1)]);
        assert_eq!(counted(&epoch(&mut fleet, &[(row(8), 1)]), 3), [(1, 0), (1, 0), (1, 0)]);
        assert_eq!(counted(&epoch(&mut fleet, &[(row(9), 1), (row(9), -1)]), 3)[1..], [(0, 0), (0, 0)]);
    }
}

#[test]
fn a_group_that_comes_and_goes_between_two_checkpoints_is_not_told() {
    let calls = vec![
        call(AggFunction::Min, Some(0), DataType::Utf8View),
        distinct(call(AggFunction::Count, Some(0), DataType::Int64)),
    ];
    let setting = simple(vec![0], calls, &[DataType::Utf8View]);
    let mut fleet = setting.fleet(1);
    fleet.slots[0].track();
    let epoch = |fleet: &mut Fleet, key: &str, weight: i64| {
        fleet.epoch(1, &[batch(&setting.input, &[(vec![text(key)], weight)])], None, 0);
    };
    epoch(&mut fleet, "a", 1);
    epoch(&mut fleet, "a", -1);
    assert!(fleet.freeze().is_empty());
    // The number of one that is known goes to another, which goes too.
    epoch(&mut fleet, "a", 1);
    fleet.freeze();
    epoch(&mut fleet, "a", -1);
    assert!(fleet.slots[0].tracked_bytes() > 0);
    epoch(&mut fleet, "b", 1);
    epoch(&mut fleet, "b", -1);
    assert_eq!(counted(&fleet.freeze(), 3), [(0, 1); 3]);
    // And back within one interval: the deletion comes before the insertion.
    epoch(&mut fleet, "c", 2);
    let mut store = Store::new(fleet.slots[0].parts());
    store.merge(fleet.freeze());
    epoch(&mut fleet, "c", -2);
    epoch(&mut fleet, "d", 1);
    epoch(&mut fleet, "c", 1);
    let changes = fleet.freeze();
    assert_eq!(counted(&changes, 3), [(2, 1); 3]);
    store.merge(changes);
    assert_eq!(store.sizes(), [2, 2, 2]);
}

#[test]
fn a_key_keeps_its_negative_zero() {
    let setting = simple(vec![0], vec![call(AggFunction::Count, None, DataType::Int64)], &[DataType::Float64]);
    let zero = |v: f64, diff: Diff| {
        let rows = RecordBatch::try_new(setting.input.clone(), vec![Arc::new(Float64Array::from(vec![v]))]).unwrap();
        ChangeBatch::new(rows, diff)
    };
    let mut fleet = setting.fleet(1);
    fleet.slots[0].track();
    fleet.epoch(1, &[zero(-0.0, Diff::Insert)], None, 0);
    let mut store = Store::new(fleet.slots[0].parts());
    store.merge(fleet.freeze());
    let mut fleet = setting.fleet(1);
    fleet.restore(&store, &mut Rng::new(1), WATERMARK_START, 0);
    let mut out: Vec<ChangeBatch> = Vec::new();
    fleet.slots[0].process(0, zero(0.0, Diff::Delete), &mut out).unwrap();
    fleet.slots[0].finish_epoch(Epoch(2), &mut out).unwrap();
    assert_eq!((out.len(), out[0].diff.clone()), (1, Diff::Delete));
    assert!(out[0].rows.column(0).as_primitive::<Float64Type>().value(0).is_sign_negative());
}

#[test]
fn damaged_state_is_refused() {
    let calls =
        vec![call(AggFunction::Sum, Some(1), DataType::Int64), call(AggFunction::Min, Some(1), DataType::Int64)];
    let setting = simple(vec![0], calls, &[DataType::Int64, DataType::Int64]);
    let parts = setting.fleet(1).slots[0].parts();
    assert_eq!(parts.iter().map(|p| p.name.as_ref()).collect::<Vec<_>>(), ["groups", "values 1"]);
    let names: Vec<String> = parts[0].schema.fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(names, ["key 0", "rows", "call 0 sum", "call 0 wide", "call 0 count"]);
    let ints = |v: i64| Arc::new(Int64Array::from(vec![v])) as ArrayRef;
    let wide = |bytes: Option<&[u8]>| Arc::new(BinaryArray::from(vec![bytes])) as ArrayRef;
    let refused = |rows: Vec<(usize, Vec<ArrayRef>)>| {
        let mut fleet = setting.fleet(1);
        let restore = || -> Result<()> {
            for (part, columns) in rows {
                let schema: Vec<Field> = columns.iter().map(|c| Field::new("x", c.data_type().clone(), true)).collect();
                let rows = RecordBatch::try_new(Arc::new(Schema::new(schema)), columns).unwrap();
                fleet.slots[0].restore(part, ChangeBatch::insert(rows))?;
            }
            fleet.slots[0].restored(&[WATERMARK_START], 0)
        };
        restore().err().map(|e| e.state())
    };
    let group = |key: i64, rows: i64| vec![ints(key), ints(rows), ints(5), wide(None), ints(rows)];
    let value = |key: i64, count: i64| vec![ints(key), ints(5), ints(count)];
    assert_eq!(refused(vec![(1, value(1, 2)), (0, group(1, 2))]), None);
    for rows in [
        vec![(0, group(1, 2)), (0, group(1, 2))],
        vec![(0, group(1, 0))],
        vec![(0, group(1, 2)), (1, value(1, 0))],
        vec![(0, group(1, 2)), (1, value(2, 2))],
        vec![(0, vec![ints(1), ints(2), ints(5), wide(Some(b"short")), ints(2)])],
        vec![(0, value(1, 1))],
    ] {
        assert_eq!(refused(rows), Some(SqlState::DataCorrupted));
    }
}

#[test]
fn a_global_aggregate_over_nothing_is_told_and_comes_out_once() {
    let setting = simple(vec![], vec![call(AggFunction::Count, None, DataType::Int64)], &[DataType::Int64]);
    let mut fleet = setting.fleet(2);
    fleet.slots.iter_mut().for_each(|f| f.track());
    assert_eq!(fleet.epoch(1, &[], None, 0), bag(&[(vec![int(0)], 1)]));
    let mut store = Store::new(fleet.slots[0].parts());
    store.merge(fleet.freeze());
    assert_eq!(store.sizes(), [1]);
    let mut fleet = setting.fleet(3);
    fleet.restore(&store, &mut Rng::new(1), WATERMARK_START, 0);
    assert_eq!(fleet.epoch(2, &[], None, 0), Bag::new());
    let rows = batch(&setting.input, &[(vec![int(7)], 2)]);
    assert_eq!(fleet.epoch(3, &[rows], None, 0), bag(&[(vec![int(0)], -1), (vec![int(2)], 1)]));
}

#[test]
fn what_was_final_is_final_after_a_restore() {
    for clock in [TimeClock::Event, TimeClock::Processing] {
        let closes = Some(TimeColumn { column: 0, after_us: 0, clock });
        let ends = Some(TimeColumn { column: 1, after_us: 0, clock });
        let (calls, input_kind) = (vec![], ChangeKind::AppendOnly);
        let grouped = TaskOp::Aggregate { group: vec![0], calls: calls.clone(), input_kind, closes, on_close: true };
        let session = TaskOp::Session { keys: vec![], time: 0, gap_us: 5, calls, closes: ends, on_close: true };
        for (op, output) in [(grouped, schema(&[TIME])), (session, schema(&[TIME, TIME]))] {
            let setting = Setting { op, input: schema(&[TIME]), output, batch_rows: 8192, spread: vec![] };
            let mut fleet = setting.fleet(1);
            let store = Store::new(fleet.slots[0].parts());
            fleet.restore(&store, &mut Rng::new(1), 100, 100);
            let mut out: Vec<ChangeBatch> = Vec::new();
            let rows = batch(&setting.input, &[(vec![int(90)], 1), (vec![int(101)], 1)]);
            fleet.slots[0].process(0, rows, &mut out).unwrap();
            fleet.slots[0].finish_epoch(Epoch(1), &mut out).unwrap();
            let times: Vec<V> = out.iter().flat_map(rows_of).map(|(row, _)| row[0].clone()).collect();
            assert_eq!(times, [int(90)], "{clock:?}");
        }
    }
}
