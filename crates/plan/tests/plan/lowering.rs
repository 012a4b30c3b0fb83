use crate::bench_relations::Relations;

#[test]
fn show() {
    let r = Relations::new(1, 10);
    for sql in [
        "SELECT * FROM orders",
        "SELECT account, count(*), sum(amount) FROM orders GROUP BY account",
        "SELECT a.owner, o.amount FROM orders o JOIN accounts a ON o.account = a.id WHERE o.amount > 3 AND a.region < 2",
        "SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY account ORDER BY amount DESC) rn FROM orders) WHERE rn <= 3",
        "SELECT order_id FROM orders WHERE account NOT IN (SELECT account FROM events)",
        "SELECT order_id FROM orders o WHERE amount > (SELECT avg(amount) FROM orders i WHERE i.account = o.account)",
        "SELECT region, owner, count(*), grouping(region) FROM accounts GROUP BY ROLLUP(region, owner)",
        "SELECT amount FROM orders ORDER BY price DESC LIMIT 5",
        "SELECT count(*) FROM events",
    ] {
        println!("== {sql}\n{}{}\n{}", plan::explain::table(&r.optimized(sql).unwrap()), r.explain_stream(sql), r.explain_process(sql));
    }
}
