use arrow::datatypes::DataType;
use flow::{ChangeBatch, Epoch, SlotId, SqlState};
use plan::{ChangeKind, Expr, TaskOp};

use super::*;
use crate::ops::consolidate;

fn binary(op: &str, left: Expr, right: Expr) -> Expr {
    Expr::Binary { op: op.into(), left: Box::new(left), right: Box::new(right) }
}

#[test]
fn projections_keep_multiplicity() {
    let types = [DataType::Int32, DataType::Int32];
    let exprs = vec![Expr::Column(1), binary("+", Expr::Column(1), Expr::Column(1))];
    for seed in 1..=20 {
        against_twin(
            seed,
            5,
            &TaskOp::Project { exprs: exprs.clone() },
            &schema(&types),
            vec![Feed::new(&[DataType::Utf8View, DataType::Int32], &[3, 4], ChangeKind::Retract)],
            |bags| {
                let mut out = Bag::new();
                for (row, weight) in bags[0] {
                    let double = if row[1].is_null() { V::Null } else { V::Int(row[1].as_int() * 2) };
                    add(&mut out, vec![row[1].clone(), double], *weight);
                }
                out
            },
            |_| (),
        );
    }
}

#[test]
fn filters_keep_what_is_true() {
    let types = [DataType::Int32, DataType::Int32];
    let predicate = binary("<", Expr::Column(0), Expr::Column(1));
    for seed in 1..=20 {
        against_twin(
            seed,
            5,
            &TaskOp::Filter { predicate: predicate.clone() },
            &schema(&types),
            vec![Feed::new(&types, &[6, 6], ChangeKind::Retract)],
            |bags| {
                let keeps = |row: &Row| !row[0].is_null() && !row[1].is_null() && row[0] < row[1];
                bags[0].iter().filter(|(row, _)| keeps(row)).map(|(row, w)| (row.clone(), *w)).collect()
            },
            |_| (),
        );
    }
}

#[test]
fn division_by_zero_is_an_error_not_null() {
    let input = schema(&[DataType::Int64, DataType::Int64]);
    let op = TaskOp::Project { exprs: vec![binary("/", Expr::Column(0), Expr::Column(1))] };
    let mut function = make(&op, std::slice::from_ref(&input), &schema(&[DataType::Int64]), 8192);
    let mut out: Vec<ChangeBatch> = Vec::new();
    function.process(0, batch(&input, &[(vec![int(7), int(2)], 1)]), &mut out).unwrap();
    let error = function.process(0, batch(&input, &[(vec![int(7), int(0)], 1)]), &mut out).unwrap_err();
    assert_eq!(error.state(), SqlState::DivisionByZero);
}

#[test]
fn union_is_the_sum_of_its_inputs() {
    let types = [DataType::Int64, DataType::Utf8View];
    for seed in 1..=20 {
        let feed = || Feed::new(&types, &[3, 3], ChangeKind::Retract);
        against_twin(
            seed,
            5,
            &TaskOp::Union,
            &schema(&types),
            vec![feed(), feed(), feed()],
            |bags| {
                let mut out = Bag::new();
                bags.iter().flat_map(|b| b.iter()).for_each(|(row, weight)| add(&mut out, row.clone(), *weight));
                out
            },
            |_| (),
        );
    }
}

#[test]
fn values_come_once_from_slot_0() {
    let schema = schema(&[DataType::Int64, DataType::Utf8View]);
    let rows = [(vec![int(1), text("one")], 1), (vec![int(2), V::Null], 1)];
    let mut ipc = Vec::new();
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(&mut ipc, &schema).unwrap();
    writer.write(&batch(&schema, &rows).rows).unwrap();
    writer.finish().unwrap();
    drop(writer);
    let op = TaskOp::Values { ipc };
    let mut function = make(&op, &[], &schema, 8192);
    let nets = run_epochs(&mut *function, &[], &[vec![], vec![]]);
    assert_eq!(nets, vec![bag(&rows), Bag::new()]);

    let task = Task { id: TaskId(0), op, inputs: vec![], schema, change_kind: ChangeKind::AppendOnly };
    let mut other = instantiate(&task, &[], &OpContext::new(SlotId(1), 2)).unwrap();
    let mut out: Vec<ChangeBatch> = Vec::new();
    other.finish_epoch(Epoch(1), &mut out).unwrap();
    assert!(out.is_empty());
}

#[test]
fn terminals_are_not_operators() {
    let task = Task {
        id: TaskId(3),
        op: TaskOp::Deliver { sink: flow::RelationId(1) },
        inputs: vec![],
        schema: schema(&[DataType::Int64]),
        change_kind: ChangeKind::Retract,
    };
    assert!(instantiate(&task, &[], &context()).is_err());
}

#[test]
fn consolidate_nets_changes_by_row() {
    let types = [DataType::Int64, DataType::Float64, DataType::Utf8View];
    for seed in 1..=100 {
        let mut rng = Rng::new(seed);
        let mut feed = Feed::new(&types, &[3, 4, 3], ChangeKind::Retract);
        feed.epoch(&mut rng);
        let changes = feed.epoch(&mut rng);
        let mut batches = Vec::new();
        let mut rest = changes.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at((1 + rng.below(9) as usize).min(rest.len()));
            batches.push(batch(&feed.schema, now));
            rest = later;
        }
        let net = consolidate(batches.clone(), &feed.schema).unwrap();
        let rows = rows_of(&net);
        if net.diff != Diff::Insert || changes.iter().any(|(_, w)| *w != 1) {
            let distinct: std::collections::BTreeSet<&Row> = rows.iter().map(|(row, _)| row).collect();
            assert_eq!(distinct.len(), rows.len(), "seed {seed}");
            assert!(rows.iter().all(|(_, w)| *w != 0));
        }
        assert_eq!(bag(&rows), bag(&changes), "seed {seed}");
    }
}

#[test]
fn consolidate_of_nothing_is_empty() {
    let schema = schema(&[DataType::Int64]);
    assert_eq!(consolidate(vec![], &schema).unwrap().num_rows(), 0);
    let row = |w: i64| (vec![int(1)], w);
    let net = consolidate(vec![batch(&schema, &[row(1)]), batch(&schema, &[row(-1)])], &schema).unwrap();
    assert_eq!(net.num_rows(), 0);
}

#[test]
fn rows_of_another_schema_are_refused() {
    let calls = vec![plan::stream::AggCall {
        function: plan::stream::AggFunction::Count,
        arg: None,
        distinct: false,
        filter: None,
        output: DataType::Int64,
    }];
    let op =
        TaskOp::Aggregate { group: vec![0], calls, input_kind: ChangeKind::Retract, closes: None, on_close: false };
    let input = schema(&[DataType::Int64]);
    let mut function = make(&op, &[input], &schema(&[DataType::Int64, DataType::Int64]), 8192);
    let other = batch(&schema(&[DataType::Utf8View]), &[(vec![text("x")], 1)]);
    assert!(function.process(0, other, &mut Vec::new()).is_err());
}
