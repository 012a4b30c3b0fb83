use std::collections::BTreeMap;

use arrow::datatypes::DataType;
use flow::{ChangeBatch, Epoch};
use plan::stream::{RankKind, SortKey};
use plan::{ChangeKind, TaskOp};

use super::*;

const TYPES: [DataType; 4] = [DataType::Int64, DataType::Float64, DataType::Utf8View, DataType::Int32];

#[derive(Clone, Debug)]
struct Case {
    partition: Vec<usize>,
    order: Vec<SortKey>,
    offset: u64,
    limit: Option<u64>,
    rank: RankKind,
    emit_rank: bool,
    kind: ChangeKind,
}

impl Case {
    fn op(&self) -> TaskOp {
        TaskOp::TopN {
            partition: self.partition.clone(),
            order: self.order.clone(),
            offset: self.offset,
            limit: self.limit,
            rank: self.rank,
            emit_rank: self.emit_rank,
            input_kind: self.kind,
            closes: None,
        }
    }

    fn output(&self, types: &[DataType]) -> SchemaRef {
        let mut types = types.to_vec();
        if self.emit_rank {
            types.push(DataType::UInt64);
        }
        schema(&types)
    }

    fn compare(&self, a: &Row, b: &Row) -> std::cmp::Ordering {
        for key in &self.order {
            let (x, y) = (&a[key.column], &b[key.column]);
            // NULL's place does not turn with the direction.
            let order = match (x.is_null(), y.is_null()) {
                (true, true) => std::cmp::Ordering::Equal,
                (true, false) if key.nulls_first => std::cmp::Ordering::Less,
                (true, false) => std::cmp::Ordering::Greater,
                (false, true) if key.nulls_first => std::cmp::Ordering::Greater,
                (false, true) => std::cmp::Ordering::Less,
                _ if key.descending => y.cmp(x),
                _ => x.cmp(y),
            };
            if order.is_ne() {
                return order;
            }
        }
        std::cmp::Ordering::Equal
    }

    fn twin(&self, bag: &Bag) -> Bag {
        let mut partitions: BTreeMap<Row, Vec<Row>> = BTreeMap::new();
        for (row, weight) in bag {
            let key = self.partition.iter().map(|n| row[*n].clone()).collect();
            partitions.entry(key).or_default().extend((0..*weight).map(|_| row.clone()));
        }
        let end = self.limit.map_or(u64::MAX, |l| self.offset + l);
        let mut out = Bag::new();
        for rows in partitions.values_mut() {
            rows.sort_by(|a, b| self.compare(a, b).then_with(|| a.cmp(b)));
            let (mut rank, mut dense) = (0u64, 0u64);
            for (n, row) in rows.iter().enumerate() {
                let ties = n > 0 && self.compare(row, &rows[n - 1]).is_eq();
                dense += u64::from(!ties);
                rank = match self.rank {
                    RankKind::RowNumber => n as u64 + 1,
                    RankKind::Rank if ties => rank,
                    RankKind::Rank => n as u64 + 1,
                    RankKind::DenseRank => dense,
                };
                if rank > self.offset && rank <= end {
                    let mut row = row.clone();
                    if self.emit_rank {
                        row.push(V::Int(rank as i128));
                    }
                    add(&mut out, row, 1);
                }
            }
        }
        out
    }
}

fn key(column: usize, descending: bool, nulls_first: bool) -> SortKey {
    SortKey { column, descending, nulls_first }
}

#[test]
fn top_n_equals_its_twin() {
    for seed in 1..=400 {
        let mut rng = Rng::new(seed);
        let mut order = Vec::new();
        for _ in 0..rng.below(3) {
            order.push(key(rng.below(4) as usize, rng.chance(50), rng.chance(50)));
        }
        let case = Case {
            partition: rng.pick(&[vec![], vec![0], vec![1], vec![2, 0]]).clone(),
            order,
            offset: *rng.pick(&[0, 0, 0, 1, 4]),
            limit: *rng.pick(&[Some(1), Some(3), Some(10), Some(0), None]),
            rank: *rng.pick(&[RankKind::RowNumber, RankKind::RowNumber, RankKind::Rank, RankKind::DenseRank]),
            emit_rank: rng.chance(40),
            kind: if rng.chance(40) { ChangeKind::AppendOnly } else { ChangeKind::Retract },
        };
        let feed = Feed::new(&TYPES, &[3, 6, 4, 5], case.kind);
        against_twin(seed, 8, &case.op(), &case.output(&TYPES), vec![feed], |bags| case.twin(bags[0]), |_| ());
    }
}

fn top(limit: u64, kind: ChangeKind) -> Case {
    Case {
        partition: vec![],
        order: vec![key(0, false, false)],
        offset: 0,
        limit: Some(limit),
        rank: RankKind::RowNumber,
        emit_rank: false,
        kind,
    }
}

#[test]
fn ties_break_by_the_row_in_every_order_of_arrival() {
    let types = [DataType::Int64, DataType::Utf8View];
    let case = top(2, ChangeKind::Retract);
    let rows: Vec<(Row, i64)> = ["d", "b", "a", "c"].iter().map(|t| (vec![int(1), text(t)], 1)).collect();
    let mut answers = Vec::new();
    for turn in 0..4 {
        let mut rows = rows.clone();
        rows.rotate_left(turn);
        let mut function = make(&case.op(), &[schema(&types)], &case.output(&types), 8192);
        let epochs: Vec<_> = rows.into_iter().map(|row| vec![(0, vec![row])]).collect();
        let mut shown = Bag::new();
        for net in run_epochs(&mut *function, &[schema(&types)], &epochs) {
            net.into_iter().for_each(|(row, weight)| add(&mut shown, row, weight));
        }
        answers.push(shown);
    }
    let expected = bag(&[(vec![int(1), text("a")], 1), (vec![int(1), text("b")], 1)]);
    assert!(answers.iter().all(|a| *a == expected), "{answers:?}");
}

#[test]
fn a_removed_first_row_is_replaced_by_the_next_best() {
    let types = [DataType::Int64];
    let case = top(1, ChangeKind::Retract);
    let mut function = make(&case.op(), &[schema(&types)], &case.output(&types), 8192);
    let row = |n: i64, w: i64| (vec![int(n)], w);
    let nets = run_epochs(
        &mut *function,
        &[schema(&types)],
        &[vec![(0, vec![row(1, 1), row(2, 3)])], vec![(0, vec![row(1, -1)])], vec![(0, vec![row(2, -2)])]],
    );
    assert_eq!(nets[0], bag(&[row(1, 1)]));
    assert_eq!(nets[1], bag(&[row(1, -1), row(2, 1)]));
    assert_eq!(nets[2], Bag::new());
}

#[test]
fn changelog_violations_of_top_n_are_loud() {
    let types = [DataType::Int64];
    let case = top(1, ChangeKind::Retract);
    let mut function = make(&case.op(), &[schema(&types)], &case.output(&types), 8192);
    let mut out: Vec<ChangeBatch> = Vec::new();
    function.process(0, batch(&schema(&types), &[(vec![int(1)], 1), (vec![int(2)], -1)]), &mut out).unwrap();
    assert_eq!(function.finish_epoch(Epoch(1), &mut out).unwrap_err().message(), "changelog violation");
}

#[test]
fn one_changed_row_touches_the_first_rows_only() {
    let types = [DataType::Int64, DataType::Int64];
    let case = Case { partition: vec![1], ..top(10, ChangeKind::Retract) };
    let mut function = make(&case.op(), &[schema(&types)], &case.output(&types), 8192);
    let rows = (0..100_000).map(|n| (vec![int(n), int(n % 3)], 1)).collect();
    run_epochs(&mut *function, &[schema(&types)], &[vec![(0, rows)]]);
    let before = function.rows_touched();
    run_epochs(&mut *function, &[schema(&types)], &[vec![(0, vec![(vec![int(0), int(0)], -1)])]]);
    assert!(function.rows_touched() - before <= 12);
}

#[test]
fn append_only_input_keeps_the_first_rows_only() {
    let types = [DataType::Int64, DataType::Utf8View];
    for rank in [RankKind::RowNumber, RankKind::Rank, RankKind::DenseRank] {
        let case = Case { rank, ..top(5, ChangeKind::AppendOnly) };
        let mut function = make(&case.op(), &[schema(&types)], &case.output(&types), 8192);
        let row = |n: i64| (vec![int(n), text(&format!("a text of some length {n}"))], 1);
        let mut shown = Bag::new();
        for round in 0..20i64 {
            let rows = (0..2000).map(|n| row((n * 7919 + round * 31) % 40_000 - round)).collect();
            for net in run_epochs(&mut *function, &[schema(&types)], &[vec![(0, rows)]]) {
                net.into_iter().for_each(|(row, weight)| add(&mut shown, row, weight));
            }
        }
        assert!(shown.len() >= 5 && function.state_bytes() < 200_000, "{rank:?} {}", function.state_bytes());
    }
}
