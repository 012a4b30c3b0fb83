//! Stream and process plans of each construct, as EXPLAIN shows them.

use crate::bench_relations::Relations;

/// Columns of source text before the continuation lines of an expected tree.
const MARGIN: &str = "         ";

#[track_caller]
fn check(actual: &str, expected: &str) {
    let expected: Vec<&str> = expected.lines().map(|l| l.strip_prefix(MARGIN).unwrap_or(l)).collect();
    assert_eq!(actual.trim_end(), expected.join("\n"), "\n{actual}");
}

#[track_caller]
fn stream(sql: &str, expected: &str) {
    check(&Relations::new(1, 1).explain_stream(sql), expected);
}

#[track_caller]
fn process(sql: &str, expected: &str) {
    check(&Relations::new(1, 1).explain_process(sql), expected);
}

#[test]
fn a_scan_keeps_key_and_distribution() {
    stream(
        "SELECT * FROM orders",
        "Relation orders (order_id, account, amount, kind, price, at)  [retract, key (order_id), hash(order_id)]",
    );
    stream(
        "SELECT kind, value FROM events WHERE value > 1",
        "Filter value > 1  [append-only, arbitrary]
           Relation events (kind, value)  [append-only, arbitrary]",
    );
}

#[test]
fn a_constant_key_means_one_row() {
    stream(
        "SELECT id, owner FROM accounts WHERE id = 5",
        "Filter id = 5  [retract, one row, hash(id)]
           Relation accounts (id, owner)  [retract, key (id), hash(id)]",
    );
}

#[test]
fn grouping_by_what_lies_together_needs_no_exchange() {
    process(
        "SELECT account, count(*) AS n, sum(amount) AS total FROM orders GROUP BY account",
        "task 3: Materialize 9 key (account)  [retract]
           from task 2 forward
           keeps the view's rows
         task 2: Project account, count(*) AS n, sum(amount) AS total  [retract]
           from task 1 forward
         task 1: Aggregate count(*), sum(amount) by account  [retract]
           from task 0 hash(account)
           keeps for each (account): number of rows, count, sum and count
         task 0: Relation 2 (account, amount)  [retract]",
    );
    // order_id already decides the slot, and with it every group.
    process(
        "SELECT order_id, kind, count(*) AS n FROM orders GROUP BY order_id, kind",
        "task 3: Materialize 9 key (order_id)  [retract]
           from task 2 forward
           keeps the view's rows
         task 2: Project order_id, kind, count(*) AS n  [retract]
           from task 1 forward
         task 1: Aggregate count(*) by order_id, kind  [retract]
           from task 0 forward
           keeps for each (order_id, kind): number of rows, count
         task 0: Relation 2 (order_id, kind)  [retract]",
    );
}

#[test]
fn distinct_over_append_only_stays_append_only() {
    stream(
        "SELECT DISTINCT account, kind FROM events",
        "Distinct account, kind  [append-only, key (account, kind), hash(account, kind)]
           Relation events (account, kind)  [append-only, arbitrary]",
    );
    // The primary key already makes the rows distinct.
    stream("SELECT DISTINCT id, owner FROM accounts", "Relation accounts (id, owner)  [retract, key (id), hash(id)]");
}

#[test]
fn a_join_moves_only_the_side_that_lies_elsewhere() {
    process(
        "SELECT o.order_id, a.owner FROM orders o JOIN accounts a ON o.account = a.id",
        "task 4: Materialize 9 key (order_id)  [retract]
           from task 3 hash(order_id)
           keeps the view's rows
         task 3: Project order_id, owner  [retract]
           from task 2 forward
         task 2: InnerJoin on account = id  [retract]
           from task 0 hash(account)
           from task 1 forward
           keeps left rows by (account); one right row for each (id)
         task 1: Relation 1 (id, owner)  [retract]
         task 0: Relation 2 (order_id, account)  [retract]",
    );
    stream(
        "SELECT a.id, o.order_id FROM accounts a FULL JOIN orders o ON a.id = o.account",
        "Project id, order_id  [retract, key (id, order_id), arbitrary]
           FullJoin on id = account  [retract, key (id, order_id), arbitrary]
             Relation accounts (id)  [retract, key (id), hash(id)]
             Relation orders (order_id, account)  [retract, key (order_id), hash(order_id)]",
    );
}

#[test]
fn a_self_join_reads_its_relation_once() {
    process(
        "SELECT a.id, b.id AS other FROM accounts a JOIN accounts b ON a.id = b.id",
        "task 3: Materialize 9 key (id)  [retract]
           from task 2 forward
           keeps the view's rows
         task 2: Project id, id AS other  [retract]
           from task 1 forward
         task 1: InnerJoin on id = id  [retract]
           from task 0 forward
           from task 0 forward
           keeps one left row for each (id); one right row for each (id)
         task 0: Relation 1 (id)  [retract]",
    );
}

#[test]
fn keys_of_different_types_meet_in_a_common_one() {
    stream(
        "SELECT a.id FROM accounts a JOIN accounts b ON a.id = b.region",
        "Project id  [retract, hash(id)]
           InnerJoin on id = CAST(region AS bigint)  [retract, hash(id)]
             Relation accounts (id)  [retract, key (id), hash(id)]
             Project region, CAST(region AS bigint)  [retract, arbitrary]
               Relation accounts (region)  [retract, arbitrary]",
    );
}

#[test]
fn a_filter_on_a_rank_is_a_top_n() {
    stream(
        "SELECT order_id, amount FROM (SELECT *, row_number() OVER (PARTITION BY account ORDER BY amount DESC) AS rn \
         FROM orders) t WHERE rn <= 3",
        "Project order_id, amount  [retract, key (order_id), arbitrary]
           TopN 3 per account order by amount DESC  [retract, key (order_id), hash(account)]
             Relation orders (order_id, account, amount)  [retract, key (order_id), hash(order_id)]",
    );
    stream(
        "SELECT account, amount FROM (SELECT *, row_number() OVER (PARTITION BY account ORDER BY amount) AS rn \
         FROM orders) t WHERE rn = 1",
        "Project account, amount  [retract, key (account), hash(account)]
           TopN 1 per account order by amount  [retract, key (account), hash(account)]
             Relation orders (account, amount)  [retract, arbitrary]",
    );
}

#[test]
fn limits_are_global() {
    stream(
        "SELECT amount FROM orders ORDER BY price DESC LIMIT 5 OFFSET 2",
        "Project amount  [retract, single]
           TopN 5 after 2 order by price DESC  [retract, single]
             Relation orders (amount, price)  [retract, arbitrary]",
    );
    // A standing query has no order of rows.
    stream("SELECT id FROM accounts ORDER BY owner", "Relation accounts (id)  [retract, key (id), hash(id)]");
}

#[test]
fn a_global_aggregate_has_one_row() {
    process(
        "SELECT count(*) FROM events",
        "task 2: Materialize 9 (one row)  [retract]
           from task 1 forward
           keeps the view's rows
         task 1: Aggregate count(*)  [retract]
           from task 0 gather
           keeps one group: number of rows, count
         task 0: Relation 3 (account)  [append-only]",
    );
}

#[test]
fn not_in_is_null_aware_and_in_is_a_semi_join() {
    process(
        "SELECT order_id FROM orders WHERE account NOT IN (SELECT account FROM events)",
        "task 4: Materialize 9 key (order_id)  [retract]
           from task 3 forward
           keeps the view's rows
         task 3: Project order_id  [retract]
           from task 2 forward
         task 2: NotInJoin on account = account  [retract]
           from task 0 forward
           from task 1 broadcast
           keeps left rows by (account); right rows by (account); number of matches of each outer row
         task 1: Relation 3 (account)  [append-only]
         task 0: Relation 2 (order_id, account)  [retract]",
    );
    stream(
        "SELECT kind FROM events WHERE account IN (SELECT account FROM events WHERE value > 1)",
        "Project kind  [append-only, arbitrary]
           SemiJoin on account = c0  [append-only, hash(account)]
             Relation events (account, kind)  [append-only, arbitrary]
             Project account AS c0  [append-only, arbitrary]
               Filter value > 1  [append-only, arbitrary]
                 Relation events (account, value)  [append-only, arbitrary]",
    );
}

#[test]
fn a_scalar_subquery_is_a_join_with_one_row() {
    stream(
        "SELECT id, (SELECT max(amount) FROM orders) AS m FROM accounts",
        "Project id, max(amount) AS m  [retract, key (id), hash(id)]
           LeftJoin of all pairs  [retract, key (id), hash(id)]
             Relation accounts (id)  [retract, key (id), hash(id)]
             Aggregate max(amount)  [retract, one row, single]
               Relation orders (amount)  [retract, arbitrary]",
    );
}

#[test]
fn the_other_formats_name_every_operator() {
    let r = Relations::new(1, 1);
    let sql = "SELECT kind, count(*) AS n FROM events WHERE value > 1 GROUP BY kind";
    let node = r.stream(sql).unwrap();
    let json = plan::explain::stream_json(&node);
    assert_eq!(json["unique_keys"], serde_json::json!([["kind"]]));
    assert_eq!(json["inputs"][0]["inputs"][0]["inputs"][0]["operator"], "Filter value > 1");
    let dot = plan::explain::stream_dot(&node);
    assert_eq!(dot.matches("->").count(), 4, "{dot}");
    assert!(plan::explain::table_dot(&r.optimized(sql).unwrap()).contains("digraph"));
}

/// Plans of the depth that is let through fit the stack of an ordinary thread.
#[test]
fn many_joins_fit_the_stack() {
    let mut sql = "SELECT a0.id FROM accounts a0".to_owned();
    for i in 1..60 {
        sql.push_str(&format!(" LEFT JOIN accounts a{i} ON a{i}.id = a0.id + {i}"));
    }
    let node = Relations::new(1, 1).stream(&sql).unwrap();
    assert_eq!(plan::explain::stream(&node).matches("LeftJoin").count(), 59);
}
