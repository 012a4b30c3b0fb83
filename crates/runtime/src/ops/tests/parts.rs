use arrow::datatypes::DataType;
use flow::process::PartKind;
use flow::{ChangeBatch, Diff, SqlState};

use super::*;
use crate::parts::merge;

const TYPES: [DataType; 4] = [DataType::Int64, DataType::Float64, DataType::Utf8View, DataType::Int32];

/// Changes in random batches, in order.
fn batches(rng: &mut Rng, schema: &SchemaRef, mut rest: &[(Row, i64)]) -> Vec<ChangeBatch> {
    let mut batches = Vec::new();
    while !rest.is_empty() {
        let (now, later) = rest.split_at((1 + rng.below(9) as usize).min(rest.len()));
        batches.push(batch(schema, now));
        rest = later;
    }
    batches
}

/// Merges the batches at once, or some of them before.
fn merge_somehow(rng: &mut Rng, kind: PartKind, schema: &SchemaRef, batches: Vec<ChangeBatch>) -> ChangeBatch {
    let first = rng.below(batches.len() as u64 + 1) as usize;
    let (first, later) = batches.split_at(first);
    let mut all = vec![merge(kind, schema, first.to_vec(), false).unwrap()];
    if rng.chance(50) {
        all.push(merge(kind, schema, later.to_vec(), false).unwrap());
    } else {
        all.extend(later.iter().cloned());
    }
    merge(kind, schema, all, rng.chance(50)).unwrap()
}

#[test]
fn counted_changes_add_up() {
    for seed in 1..=200 {
        let mut rng = Rng::new(seed);
        let mut feed = Feed::new(&TYPES, &[3, 4, 3, 2], ChangeKind::Retract);
        let changes: Vec<(Row, i64)> = (0..3).flat_map(|_| feed.epoch(&mut rng)).collect();
        let batches = batches(&mut rng, &feed.schema, &changes);
        let merged = merge_somehow(&mut rng, PartKind::Counted, &feed.schema, batches);
        let rows = rows_of(&merged);
        assert!(rows.iter().all(|(_, w)| *w > 0), "seed {seed}");
        assert_eq!(bag(&rows), feed.bag, "seed {seed}");
    }
}

#[test]
fn the_last_change_of_a_key_counts() {
    for seed in 1..=300 {
        let mut rng = Rng::new(seed);
        let schema = schema(&TYPES);
        let key = rng.below(4) as usize;
        let changes: Vec<(Row, i64)> = (0..rng.below(80))
            .map(|_| {
                let row = schema.fields().iter().map(|f| random_value(&mut rng, f.data_type(), 4)).collect();
                (row, if rng.chance(35) { -1 } else { 1 })
            })
            .collect();
        let mut model: std::collections::BTreeMap<Row, (Row, i64)> = Default::default();
        for (row, weight) in &changes {
            model.insert(row[..key].to_vec(), (row.clone(), *weight));
        }
        let batches = batches(&mut rng, &schema, &changes);
        let kind = PartKind::Keyed { key };
        let change = merge(kind, &schema, batches.clone(), false).unwrap();
        // Of a deletion the key counts alone.
        let shown = |(row, weight): (Row, i64)| if weight > 0 { (row, 1) } else { (row[..key].to_vec(), -1) };
        let mut got: Vec<(Row, i64)> = rows_of(&change).into_iter().map(shown).collect();
        got.sort();
        let mut expected: Vec<(Row, i64)> = model.values().cloned().map(shown).collect();
        expected.sort();
        assert_eq!(got, expected, "seed {seed} key {key}");

        let live: Vec<(Row, i64)> = model.into_values().filter(|(_, weight)| *weight > 0).collect();
        let whole = merge(kind, &schema, batches.clone(), true).unwrap();
        assert!(whole.diff == Diff::Insert || whole.num_rows() == 0);
        let partly = merge(kind, &schema, vec![merge_somehow(&mut rng, kind, &schema, batches)], true).unwrap();
        for whole in [whole, partly] {
            let mut got = rows_of(&whole);
            got.sort_by(|a, b| a.0[..key].cmp(&b.0[..key]));
            assert_eq!(got, live, "seed {seed} key {key}");
        }
    }
}

#[test]
fn a_part_from_which_too_much_was_taken_is_damaged() {
    let schema = schema(&[DataType::Int64]);
    let rows = || vec![batch(&schema, &[(vec![int(1)], 1), (vec![int(2)], 1)]), batch(&schema, &[(vec![int(1)], -2)])];
    let error = merge(PartKind::Counted, &schema, rows(), true).unwrap_err();
    assert_eq!(error.state(), SqlState::DataCorrupted);
    assert!(error.detail().unwrap().contains("(c0)"));
    let change = merge(PartKind::Counted, &schema, rows(), false).unwrap();
    assert_eq!(bag(&rows_of(&change)), bag(&[(vec![int(1)], -1), (vec![int(2)], 1)]));
}

#[test]
fn rows_without_columns_are_counted() {
    let schema = schema(&[]);
    let rows = |weights: &[i64]| batch(&schema, &weights.iter().map(|w| (vec![], *w)).collect::<Vec<_>>());
    let merged = |batches, whole| merge(PartKind::Counted, &schema, batches, whole).map(|m| rows_of(&m));
    assert_eq!(merged(vec![rows(&[1, 1]), rows(&[3, -1])], true).unwrap(), [(vec![], 4)]);
    assert_eq!(merged(vec![rows(&[1, 1]), rows(&[-2])], true).unwrap(), []);
    assert_eq!(merged(vec![rows(&[-2])], false).unwrap(), [(vec![], -2)]);
    assert!(merged(vec![rows(&[-2])], true).is_err());
}

#[test]
fn nothing_merges_to_nothing() {
    let schema = schema(&TYPES);
    for kind in [PartKind::Counted, PartKind::Keyed { key: 0 }, PartKind::Keyed { key: 2 }] {
        for whole in [false, true] {
            assert_eq!(merge(kind, &schema, vec![], whole).unwrap().num_rows(), 0);
        }
    }
}

#[test]
fn what_is_merged_keeps_nothing_else_alive() {
    let schema = schema(&[DataType::Int64, DataType::Utf8View]);
    let row = |n: i64, weight: i64| (vec![int(n), text(&format!("a text of some length, number {n}"))], weight);
    let come: Vec<(Row, i64)> = (0..10_000).map(|n| row(n, 1)).collect();
    let gone: Vec<(Row, i64)> = (1..10_000).map(|n| row(n, -1)).collect();
    let merged = merge(PartKind::Counted, &schema, vec![batch(&schema, &come), batch(&schema, &gone)], true).unwrap();
    let held: usize = merged.rows.columns().iter().map(|c| c.get_buffer_memory_size()).sum();
    assert_eq!((rows_of(&merged), held < 1000), (vec![row(0, 1)], true), "{held} bytes");
}
