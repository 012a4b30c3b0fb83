//! What a standing query cannot do is refused with the reason and what to write instead.

use flow::SqlState;

use crate::bench_relations::Relations;

#[track_caller]
fn check(relations: &Relations, sql: &str, state: SqlState, message: &str) {
    match relations.stream(sql) {
        Ok(node) => panic!("{sql} was accepted:\n{}", plan::explain::stream(&node)),
        Err(e) => {
            assert_eq!(e.state(), state, "{sql}: {e}");
            assert!(e.message().contains(message), "{sql}: {e}");
            let first = e.message().chars().next().unwrap();
            assert!(!first.is_uppercase() || e.message().chars().nth(1).is_some_and(char::is_uppercase), "{e}");
        }
    }
}

#[test]
fn refusals_name_the_construct() {
    let r = &Relations::new(1, 5);
    let unsupported = SqlState::FeatureNotSupported;
    check(r, "SELECT string_agg(kind, ',') FROM orders", unsupported, "aggregate string_agg");
    check(r, "SELECT corr(amount, account) FROM orders", unsupported, "aggregate corr");
    check(r, "SELECT sum(amount) OVER (PARTITION BY account) FROM orders", unsupported, "window function sum");
    check(r, "SELECT lag(amount) OVER (ORDER BY order_id) FROM orders", unsupported, "window function lag");
    check(r, "SELECT order_id FROM orders WHERE extract(hour FROM now()) > 5", unsupported, "now()");
    check(r, "SELECT random() FROM orders", unsupported, "volatile function random");
    check(r, "SELECT unnest([1, 2]), unnest([3])", unsupported, "unnest");
    check(
        r,
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT n FROM t",
        unsupported,
        "WITH RECURSIVE",
    );
    check(r, "SELECT named_struct('a', amount) AS s FROM orders", unsupported, "column \"s\"");
}

#[test]
fn planning_errors_have_their_states() {
    let r = &Relations::new(1, 5);
    check(r, "SELECT nope FROM orders", SqlState::UndefinedColumn, "column \"nope\" does not exist");
    check(r, "SELECT o.nope FROM orders o", SqlState::UndefinedColumn, "column o.nope does not exist");
    check(r, "SELECT x.amount FROM orders o", SqlState::UndefinedTable, "missing FROM-clause entry for table \"x\"");
    check(r, "SELECT 1 FROM nope", SqlState::UndefinedTable, "relation \"nope\" does not exist");
    check(r, "SELECT nope(amount) FROM orders", SqlState::UndefinedFunction, "function nope does not exist");
    check(
        r,
        "SELECT account FROM orders o JOIN events e ON o.account = e.account",
        SqlState::AmbiguousColumn,
        "column reference \"account\" is ambiguous",
    );
    check(r, "SELECT owner, count(*) FROM accounts GROUP BY region", SqlState::GroupingError, "must appear in");
    check(r, "SELECT 1 UNION SELECT 1, 2", SqlState::SyntaxError, "same number of columns");
    check(r, "SELECT owner FROM accounts WHERE count(*) > 1", SqlState::GroupingError, "not allowed in WHERE");
}

#[test]
fn a_misspelt_column_is_hinted_at_and_placed() {
    let r = Relations::new(1, 5);
    let e = r.stream("SELECT amuont FROM orders").unwrap_err();
    assert_eq!(e.hint(), Some("Perhaps you meant to reference the column orders.amount."));
}

/// DataFusion's own tree walks need the large stack that planner threads have.
#[test]
fn deep_expressions_are_refused_and_long_chains_are_not() {
    let planner = std::thread::Builder::new().stack_size(64 << 20).spawn(deep_and_long).unwrap();
    planner.join().unwrap();
}

fn deep_and_long() {
    let r = Relations::new(1, 5);
    let long = (0..200).map(|i| format!("amount = {i}")).collect::<Vec<_>>().join(" OR ");
    r.stream(&format!("SELECT order_id FROM orders WHERE {long}")).unwrap();
    let list = (0..20_000).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
    r.stream(&format!("SELECT order_id FROM orders WHERE amount IN ({list})")).unwrap();
    let sum = vec!["amount"; 450].join(" + ");
    r.stream(&format!("SELECT {sum} FROM orders")).unwrap();
    let sum = format!("amount = 1{}", " < true".repeat(430));
    check(&r, &format!("SELECT {sum} FROM orders"), SqlState::StatementTooComplex, "nested too deeply");
}
