//! Which columns identify a row: how unique keys pass through operators.
//!
//! A key is a set of columns such that at an epoch's end no two rows are equal in all of them, NULL counting as a value.
//! The empty key says that there is at most one row.

use arrow::datatypes::Schema;

use super::JoinKind;
use crate::expr::Expr;

/// Keys that an edge remembers; more are dropped, widest first.
const KEYS_MAX: usize = 8;

/// Sorted columns, no key twice, none that contains another, smallest first.
pub(crate) fn normalise(mut keys: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    for key in &mut keys {
        key.sort_unstable();
        key.dedup();
    }
    keys.sort_by(|a, b| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
    let mut kept: Vec<Vec<usize>> = Vec::new();
    for key in keys {
        if !kept.iter().any(|k| k.iter().all(|c| key.contains(c))) {
            kept.push(key);
        }
    }
    kept.truncate(KEYS_MAX);
    kept
}

/// Whether `columns` contain a key, so that fixing them leaves at most one row.
pub(crate) fn contains_key(keys: &[Vec<usize>], columns: &[usize]) -> bool {
    keys.iter().any(|key| key.iter().all(|c| columns.contains(c)))
}

/// Keys in other column numbers; a key with a column that has no new number is lost.
pub(super) fn map_keys(keys: &[Vec<usize>], map: impl Fn(usize) -> Option<usize>) -> Vec<Vec<usize>> {
    normalise(keys.iter().filter_map(|key| key.iter().map(|c| map(*c)).collect()).collect())
}

/// Keys of the rows for which `predicate` is true: a column that equals a constant tells no rows apart, and of two equal
/// columns one is enough.
pub(super) fn filtered_keys(keys: &[Vec<usize>], predicate: &Expr) -> Vec<Vec<usize>> {
    let mut fixed = Vec::new();
    let mut equal = Vec::new();
    equalities(predicate, &mut fixed, &mut equal);
    let mut all = Vec::with_capacity(keys.len());
    for key in keys {
        let mut key: Vec<usize> = key.iter().copied().filter(|c| !fixed.contains(c)).collect();
        for (a, b) in &equal {
            // A column that equals itself is not NULL, and tells rows apart as before.
            if a != b && key.contains(a) {
                key.retain(|c| c != b);
            }
        }
        all.push(key);
    }
    normalise(all)
}

/// Columns that `predicate` holds equal to a constant, and pairs of columns that it holds equal.
fn equalities(predicate: &Expr, fixed: &mut Vec<usize>, equal: &mut Vec<(usize, usize)>) {
    match predicate {
        Expr::Binary { op, left, right } if op == "AND" => {
            equalities(left, fixed, equal);
            equalities(right, fixed, equal);
        }
        Expr::Binary { op, left, right } if op == "=" || op == "IS NOT DISTINCT FROM" => {
            match (left.as_ref(), right.as_ref()) {
                (Expr::Column(c), Expr::Literal(_)) | (Expr::Literal(_), Expr::Column(c)) => fixed.push(*c),
                (Expr::Column(a), Expr::Column(b)) => equal.push((*a, *b)),
                _ => {}
            }
        }
        Expr::Is { negated: false, what: crate::expr::Is::Null, expr } => {
            if let Expr::Column(c) = expr.as_ref() {
                fixed.push(*c);
            }
        }
        _ => {}
    }
}

/// One side of a join, as key derivation sees it.
pub(super) struct Side<'a> {
    pub keys: &'a [Vec<usize>],
    pub schema: &'a Schema,
    /// The side's join key columns.
    pub on: Vec<usize>,
}

/// Keys of a join's output (left columns, then right columns for the kinds that have them).
pub(super) fn join_keys(kind: JoinKind, left: &Side, right: &Side) -> Vec<Vec<usize>> {
    if matches!(kind, JoinKind::LeftSemi | JoinKind::LeftAnti) {
        return left.keys.to_vec();
    }
    let width = left.schema.fields().len();
    let mut keys = Vec::new();
    // A side that meets at most one partner keeps its own keys, unless rows of the other side appear without it.
    if contains_key(right.keys, &right.on) && matches!(kind, JoinKind::Inner | JoinKind::Left) {
        keys.extend(left.keys.iter().cloned());
    }
    if contains_key(left.keys, &left.on) && matches!(kind, JoinKind::Inner | JoinKind::Right) {
        keys.extend(right.keys.iter().map(|key| key.iter().map(|c| c + width).collect()));
    }
    for l in left.keys {
        for r in right.keys {
            // In a full join an unmatched left and an unmatched right row could both be all NULL in the key.
            let told_apart = l.iter().any(|c| !left.schema.field(*c).is_nullable())
                || r.iter().any(|c| !right.schema.field(*c).is_nullable());
            if kind == JoinKind::Full && !told_apart {
                continue;
            }
            let mut key = l.clone();
            for c in r {
                let partner = right.on.iter().position(|o| o == c).map(|i| left.on[i]);
                let implied =
                    matches!(kind, JoinKind::Inner | JoinKind::Left) && partner.is_some_and(|p| l.contains(&p));
                if !implied {
                    key.push(c + width);
                }
            }
            keys.push(key);
        }
    }
    normalise(keys)
}
