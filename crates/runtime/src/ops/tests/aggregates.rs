use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::DataType;
use flow::{ChangeBatch, Epoch, SlotId, SqlState};
use plan::stream::{AggCall, AggFunction, TimeClock, TimeColumn};
use plan::{ChangeKind, TaskOp};

use super::*;

const DECIMAL: DataType = DataType::Decimal128(12, 2);

fn call(function: AggFunction, arg: Option<usize>, output: DataType) -> AggCall {
    AggCall { function, arg, distinct: false, filter: None, output }
}

fn aggregate(group: Vec<usize>, calls: Vec<AggCall>, input_kind: ChangeKind) -> TaskOp {
    TaskOp::Aggregate { group, calls, input_kind, closes: None, on_close: false }
}

fn output_schema(input: &SchemaRef, group: &[usize], calls: &[AggCall]) -> SchemaRef {
    let mut types: Vec<DataType> = group.iter().map(|n| input.field(*n).data_type().clone()).collect();
    types.extend(calls.iter().map(|c| c.output.clone()));
    schema(&types)
}

/// The exact sum of the tests' doubles (multiples of a quarter, NaN, infinities), rounded once.
fn sum_floats(values: &[(f64, i64)]) -> f64 {
    let has = |v: f64| values.iter().any(|(x, _)| *x == v);
    if values.iter().any(|(x, _)| x.is_nan()) || (has(f64::INFINITY) && has(f64::NEG_INFINITY)) {
        return f64::NAN;
    }
    for v in [f64::INFINITY, f64::NEG_INFINITY] {
        if has(v) {
            return v;
        }
    }
    values.iter().map(|(x, w)| (x * 4.0) as i128 * *w as i128).sum::<i128>() as f64 / 4.0
}

fn twin_call(call: &AggCall, arg_type: Option<&DataType>, rows: &[(&Row, i64)]) -> V {
    let passes = |row: &Row| call.filter.is_none_or(|f| row[f] == V::Bool(true));
    let mut values: Vec<(V, i64)> = Vec::new();
    for (row, weight) in rows.iter().filter(|(row, _)| passes(row)) {
        let value = call.arg.map_or(V::Bool(true), |n| row[n].clone());
        if !value.is_null() {
            values.push((value, *weight));
        }
    }
    if call.distinct {
        let set: BTreeSet<V> = values.iter().map(|(v, _)| v.clone()).collect();
        values = set.into_iter().map(|v| (v, 1)).collect();
    }
    let count: i64 = values.iter().map(|(_, w)| *w).sum();
    if call.function == AggFunction::Count {
        return int(count);
    }
    if count == 0 {
        return V::Null;
    }
    match call.function {
        AggFunction::Min => values.iter().map(|(v, _)| v.clone()).min().unwrap(),
        AggFunction::Max => values.iter().map(|(v, _)| v.clone()).max().unwrap(),
        AggFunction::BoolAnd => V::Bool(values.iter().all(|(v, _)| *v == V::Bool(true))),
        AggFunction::BoolOr => V::Bool(values.iter().any(|(v, _)| *v == V::Bool(true))),
        _ if arg_type == Some(&DataType::Float64) => {
            let floats: Vec<(f64, i64)> = values.iter().map(|(v, w)| (v.as_f64(), *w)).collect();
            let sum = sum_floats(&floats);
            float(if call.function == AggFunction::Sum { sum } else { sum / count as f64 })
        }
        function => {
            let sum: i128 = values.iter().map(|(v, w)| v.as_int() * *w as i128).sum();
            match (function, &call.output) {
                (AggFunction::Sum, _) => V::Int(sum),
                // Four more digits, half away from zero.
                (_, DataType::Decimal128(_, _)) => {
                    let (twice, count) = (2 * sum * 10_000, i128::from(count));
                    V::Int((twice + twice.signum() * count) / (2 * count))
                }
                _ => float(sum as f64 / count as f64),
            }
        }
    }
}

fn twin(group: &[usize], calls: &[AggCall], input: &SchemaRef, bag: &Bag) -> Bag {
    let mut groups: BTreeMap<Row, Vec<(&Row, i64)>> = BTreeMap::new();
    if group.is_empty() {
        groups.insert(vec![], vec![]);
    }
    for (row, weight) in bag {
        groups.entry(group.iter().map(|n| row[*n].clone()).collect()).or_default().push((row, *weight));
    }
    let mut out = Bag::new();
    for (mut key, rows) in groups {
        for call in calls {
            key.push(twin_call(call, call.arg.map(|n| input.field(n).data_type()), &rows));
        }
        add(&mut out, key, 1);
    }
    out
}

/// Each group leaves at most once and enters at most once in an epoch, and never as the row that left.
fn emits_once(group: usize, changes: &[(Row, i64)]) {
    let mut seen = BTreeMap::new();
    for (row, weight) in changes {
        assert!(*weight == 1 || *weight == -1);
        let old = seen.insert((row[..group].to_vec(), *weight), row.clone());
        assert!(old.is_none(), "emitted twice: {row:?}");
        if let Some(other) = seen.get(&(row[..group].to_vec(), -*weight)) {
            assert_ne!(other, row, "not suppressed");
        }
    }
}

fn check(seed: u64, types: &[DataType], domains: &[u64], group: Vec<usize>, calls: Vec<AggCall>, kind: ChangeKind) {
    let input = schema(types);
    let output = output_schema(&input, &group, &calls);
    let op = aggregate(group.clone(), calls.clone(), kind);
    let feed = Feed::new(types, domains, kind);
    let width = group.len();
    against_twin(
        seed,
        8,
        &op,
        &output,
        vec![feed],
        |bags| twin(&group, &calls, &input, bags[0]),
        |changes| emits_once(width, changes),
    );
}

/// Integers that neither the sums of the tests nor their twins overflow.
const TYPES: [DataType; 7] = [
    DataType::Int32,
    DataType::Utf8View,
    DataType::Float64,
    DECIMAL,
    DataType::Boolean,
    DataType::Date32,
    DataType::Boolean,
];
const DOMAINS: [u64; 7] = [5, 4, 9, 7, 2, 6, 2];

fn random_calls(rng: &mut Rng) -> Vec<AggCall> {
    use AggFunction::*;
    let mut calls = Vec::new();
    for _ in 0..rng.below(5) {
        let arg = rng.below(6) as usize;
        let arg_type = TYPES[arg].clone();
        let (function, arg, output) = match rng.below(7) {
            0 => (Count, None, DataType::Int64),
            1 => (Count, Some(arg), DataType::Int64),
            2 => match arg_type {
                DataType::Float64 => (Sum, Some(arg), DataType::Float64),
                DECIMAL => (Sum, Some(arg), DataType::Decimal128(22, 2)),
                _ => (Sum, Some(0), DataType::Int64),
            },
            3 => match arg_type {
                DataType::Float64 => (Avg, Some(arg), DataType::Float64),
                DECIMAL => (Avg, Some(arg), DataType::Decimal128(16, 6)),
                _ => (Avg, Some(0), DataType::Float64),
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

#[test]
fn aggregates_equal_their_twin() {
    for seed in 1..=250 {
        let mut rng = Rng::new(seed);
        let group = rng.pick(&[vec![], vec![0], vec![1], vec![2], vec![0, 1], vec![5, 2, 4], vec![3]]).clone();
        let kind = if rng.chance(30) { ChangeKind::AppendOnly } else { ChangeKind::Retract };
        let calls = random_calls(&mut rng);
        if group.is_empty() && calls.is_empty() {
            continue;
        }
        check(seed, &TYPES, &DOMAINS, group, calls, kind);
    }
}

#[test]
fn groups_of_extreme_integers_and_many_keys_equal_their_twin() {
    for seed in 1..=40 {
        let calls = vec![
            call(AggFunction::Count, None, DataType::Int64),
            call(AggFunction::Min, Some(0), DataType::Int64),
            call(AggFunction::Max, Some(1), DataType::Utf8View),
        ];
        let kind = if seed % 3 == 0 { ChangeKind::AppendOnly } else { ChangeKind::Retract };
        check(seed, &[DataType::Int64, DataType::Utf8View], &[200, 60], vec![0], calls, kind);
    }
}

#[test]
fn distinct_is_an_aggregate_without_calls() {
    for seed in 1..=40 {
        let kind = if seed % 2 == 0 { ChangeKind::AppendOnly } else { ChangeKind::Retract };
        check(seed, &[DataType::Int64, DataType::Float64], &[6, 3], vec![0, 1], vec![], kind);
    }
}

#[test]
fn global_aggregate_over_empty_input_is_one_row() {
    let input = schema(&[DataType::Int64]);
    let calls = vec![
        call(AggFunction::Count, None, DataType::Int64),
        call(AggFunction::Sum, Some(0), DataType::Int64),
        call(AggFunction::Max, Some(0), DataType::Int64),
    ];
    let output = output_schema(&input, &[], &calls);
    let op = aggregate(vec![], calls, ChangeKind::Retract);
    let mut function = make(&op, std::slice::from_ref(&input), &output, 8192);
    let empty = vec![int(0), V::Null, V::Null];
    let seven = vec![int(2), int(7), int(5)];
    let nets = run_epochs(
        &mut *function,
        std::slice::from_ref(&input),
        &[
            vec![],
            vec![(0, vec![(vec![int(5)], 1), (vec![int(2)], 1)])],
            vec![],
            vec![(0, vec![(vec![int(5)], -1), (vec![int(2)], -1)])],
        ],
    );
    assert_eq!(nets[0], bag(&[(empty.clone(), 1)]));
    assert_eq!(nets[1], bag(&[(empty.clone(), -1), (seven.clone(), 1)]));
    assert_eq!(nets[2], Bag::new());
    assert_eq!(nets[3], bag(&[(seven, -1), (empty, 1)]));

    // Only slot 0 has the row.
    let task = plan::Task { id: flow::TaskId(0), op, inputs: vec![], schema: output, change_kind: ChangeKind::Retract };
    let mut other = instantiate(&task, &[input], &OpContext::new(SlotId(1), 2)).unwrap();
    let mut out: Vec<ChangeBatch> = Vec::new();
    other.finish_epoch(Epoch(1), &mut out).unwrap();
    assert!(out.is_empty());
}

#[test]
fn count_distinct_keeps_multiplicity() {
    let input = schema(&[DataType::Utf8View]);
    let calls = vec![AggCall { distinct: true, ..call(AggFunction::Count, Some(0), DataType::Int64) }];
    let output = output_schema(&input, &[], &calls);
    let mut function =
        make(&aggregate(vec![], calls, ChangeKind::Retract), std::slice::from_ref(&input), &output, 8192);
    let nets = run_epochs(
        &mut *function,
        &[input],
        &[
            vec![(0, vec![(vec![text("a")], 2), (vec![text("b")], 1)])],
            // One of two goes: still there.
            vec![(0, vec![(vec![text("a")], -1)])],
            vec![(0, vec![(vec![text("a")], -1)])],
        ],
    );
    assert_eq!(nets[0], bag(&[(vec![int(2)], 1)]));
    assert_eq!(nets[1], Bag::new());
    assert_eq!(nets[2], bag(&[(vec![int(2)], -1), (vec![int(1)], 1)]));
}

#[test]
fn float_sums_return_to_the_batch_answer() {
    let input = schema(&[DataType::Float64]);
    let calls =
        vec![call(AggFunction::Sum, Some(0), DataType::Float64), call(AggFunction::Avg, Some(0), DataType::Float64)];
    let output = output_schema(&input, &[], &calls);
    let mut function =
        make(&aggregate(vec![], calls, ChangeKind::Retract), std::slice::from_ref(&input), &output, 8192);
    let f = |v: f64, w: i64| (vec![float(v)], w);
    let nets = run_epochs(
        &mut *function,
        &[input],
        &[
            vec![(0, vec![f(1.0, 1)])],
            vec![(0, vec![f(1e16, 1), f(f64::INFINITY, 1), f(f64::NAN, 1), f(1e308, 3)])],
            vec![(0, vec![f(1e16, -1), f(f64::INFINITY, -1), f(f64::NAN, -1), f(1e308, -3)])],
        ],
    );
    let one = vec![float(1.0), float(1.0)];
    let nan = vec![float(f64::NAN), float(f64::NAN)];
    assert_eq!(nets[1], bag(&[(one.clone(), -1), (nan.clone(), 1)]));
    assert_eq!(nets[2], bag(&[(nan, -1), (one, 1)]));
}

#[test]
fn sums_beyond_bigint_are_an_error_only_if_they_stay() {
    let input = schema(&[DataType::Int64]);
    let calls = vec![call(AggFunction::Sum, Some(0), DataType::Int64)];
    let output = output_schema(&input, &[], &calls);
    let op = aggregate(vec![], calls, ChangeKind::Retract);
    let mut function = make(&op, std::slice::from_ref(&input), &output, 8192);
    let nets = run_epochs(
        &mut *function,
        std::slice::from_ref(&input),
        &[vec![
            (0, vec![(vec![int(i64::MAX)], 1), (vec![int(i64::MAX)], 5)]),
            (0, vec![(vec![int(i64::MIN)], 5), (vec![int(3)], 1)]),
        ]],
    );
    assert_eq!(nets[0], bag(&[(vec![int(i64::MAX - 2)], 1)]));
    let mut out: Vec<ChangeBatch> = Vec::new();
    function.process(0, batch(&input, &[(vec![int(100)], 1)]), &mut out).unwrap();
    let error = function.finish_epoch(Epoch(2), &mut out).unwrap_err();
    assert_eq!((error.state(), error.message()), (SqlState::NumericValueOutOfRange, "bigint out of range"));
}

#[test]
fn decimal_averages_overflow_loudly() {
    let input = schema(&[DataType::Decimal128(38, 10)]);
    let calls = vec![call(AggFunction::Avg, Some(0), DataType::Decimal128(38, 14))];
    let output = output_schema(&input, &[], &calls);
    let mut function =
        make(&aggregate(vec![], calls, ChangeKind::Retract), std::slice::from_ref(&input), &output, 8192);
    let mut out: Vec<ChangeBatch> = Vec::new();
    let huge = V::Int(10i128.pow(37));
    function.process(0, batch(&input, &[(vec![huge], 1)]), &mut out).unwrap();
    let error = function.finish_epoch(Epoch(1), &mut out).unwrap_err();
    assert_eq!(error.state(), SqlState::NumericValueOutOfRange);
}

#[test]
fn changelog_violations_are_loud() {
    let input = schema(&[DataType::Int64, DataType::Int64]);
    let group_counts = vec![call(AggFunction::Count, None, DataType::Int64)];
    let minimum = vec![call(AggFunction::Min, Some(1), DataType::Int64)];
    let distinct = vec![AggCall { distinct: true, ..call(AggFunction::Sum, Some(1), DataType::Int64) }];
    let row = |k: i64, v: i64, w: i64| (vec![int(k), int(v)], w);
    for calls in [vec![], group_counts, minimum, distinct] {
        let output = output_schema(&input, &[0], &calls);
        // The second case keeps the group's count at zero, but takes away a value that was never there.
        for changes in [vec![row(1, 1, -1)], vec![row(1, 1, 2), row(1, 2, -1)]] {
            if changes.len() > 1 && calls.iter().all(|c| c.function == AggFunction::Count) {
                continue;
            }
            let op = aggregate(vec![0], calls.clone(), ChangeKind::Retract);
            let mut function = make(&op, std::slice::from_ref(&input), &output, 8192);
            let mut out: Vec<ChangeBatch> = Vec::new();
            function.process(0, batch(&input, &changes), &mut out).unwrap();
            let error = function.finish_epoch(Epoch(1), &mut out).unwrap_err();
            assert_eq!((error.state(), error.message()), (SqlState::InternalError, "changelog violation"));
        }
        let op = aggregate(vec![0], calls, ChangeKind::AppendOnly);
        let mut function = make(&op, std::slice::from_ref(&input), &output, 8192);
        let error = function.process(0, batch(&input, &[row(1, 1, 1), row(1, 1, -1)]), &mut Vec::new()).unwrap_err();
        assert_eq!(error.message(), "changelog violation");
    }
}

#[test]
fn one_changed_row_touches_one_group() {
    let input = schema(&[DataType::Int64, DataType::Int64]);
    let calls = vec![
        call(AggFunction::Sum, Some(1), DataType::Int64),
        call(AggFunction::Max, Some(1), DataType::Int64),
        AggCall { distinct: true, ..call(AggFunction::Count, Some(1), DataType::Int64) },
    ];
    let output = output_schema(&input, &[0], &calls);
    let mut function =
        make(&aggregate(vec![0], calls, ChangeKind::Retract), std::slice::from_ref(&input), &output, 8192);
    let rows: Vec<(Row, i64)> = (0..100_000).map(|n| (vec![int(n % 1000), int(n)], 1)).collect();
    run_epochs(&mut *function, std::slice::from_ref(&input), &[vec![(0, rows)]]);
    let before = function.rows_touched();
    run_epochs(&mut *function, &[input], &[vec![(0, vec![(vec![int(7), int(7)], -1)])]]);
    assert!(function.rows_touched() - before <= 10, "{} rows touched", function.rows_touched() - before);
}

#[test]
fn state_is_freed_with_the_rows() {
    let input = schema(&[DataType::Utf8View, DataType::Utf8View]);
    let calls = vec![
        call(AggFunction::Min, Some(1), DataType::Utf8View),
        AggCall { distinct: true, ..call(AggFunction::Count, Some(1), DataType::Int64) },
    ];
    let output = output_schema(&input, &[0], &calls);
    let mut function =
        make(&aggregate(vec![0], calls, ChangeKind::Retract), std::slice::from_ref(&input), &output, 8192);
    let mut sizes = Vec::new();
    for round in 0..12 {
        let rows: Vec<(Row, i64)> = (0..5000)
            .map(|n| {
                (vec![text(&format!("a key of the round {round} number {n}")), text(&format!("a longer value {n}"))], 1)
            })
            .collect();
        let gone = rows.iter().map(|(row, _)| (row.clone(), -1)).collect();
        run_epochs(&mut *function, std::slice::from_ref(&input), &[vec![(0, rows)], vec![(0, gone)]]);
        sizes.push(function.state_bytes());
    }
    assert!(sizes[11] <= sizes[1] * 2 + (4 << 20), "{sizes:?}");
}

/// Times are often so fine that hardly two windows end together; what is final at once must come out together all the same.
#[test]
fn what_is_final_at_once_comes_out_in_batches_in_order_of_time() {
    let time = DataType::Timestamp(TimeUnit::Microsecond, None);
    let final_at = |column, after_us| TimeColumn { column, after_us, clock: TimeClock::Event };
    let input = schema(&[DataType::Int64, time.clone()]);
    let group = vec![0, 1];
    let held = TaskOp::EmitOnClose { time: final_at(1, 1) };
    let grouped = |input_kind| {
        let closes = Some(final_at(1, 1));
        TaskOp::Aggregate { group: group.clone(), calls: vec![], input_kind, closes, on_close: true }
    };
    let closes = Some(final_at(2, 0));
    let session = TaskOp::Session { keys: vec![0], time: 1, gap_us: 5, calls: vec![], closes, on_close: true };
    let cases = [
        (grouped(ChangeKind::AppendOnly), input.clone()),
        (grouped(ChangeKind::Retract), input.clone()),
        (held, input.clone()),
        (session, schema(&[DataType::Int64, time.clone(), time])),
    ];
    for (op, output) in cases {
        let task = Task {
            id: TaskId(1),
            op: op.clone(),
            inputs: Vec::new(),
            schema: output,
            change_kind: ChangeKind::AppendOnly,
        };
        let mut function =
            instantiate(&task, std::slice::from_ref(&input), &OpContext { batch_rows: 64, ..context() }).unwrap();
        // A thousand keys, each with a time of its own; the latest come first.
        let rows: Vec<(Row, i64)> = (0..1000).rev().map(|n| (vec![int(n), int(10 * n)], 1)).collect();
        let mut out: Vec<ChangeBatch> = Vec::new();
        function.process(0, batch(&input, &rows), &mut out).unwrap();
        function.finish_epoch(Epoch(1), &mut out).unwrap();
        assert!(out.is_empty(), "{op:?}");
        function.on_watermark(0, 6400).unwrap();
        function.finish_epoch(Epoch(2), &mut out).unwrap();
        let emitted: Vec<i128> = out.iter().flat_map(rows_of).map(|(row, _)| row[0].as_int()).collect();
        assert_eq!(emitted, (0..640).collect::<Vec<i128>>(), "{op:?}");
        assert!(out.len() <= 10, "{} batches by {op:?}", out.len());
    }
}
