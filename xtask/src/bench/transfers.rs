//! Ten-account transfers (Jamie Brandon, "Internal consistency in streaming systems", 2021) over the wire, at scale.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio_postgres::Client;

use super::measure::{Latencies, Report, ms_since, now};
use super::server::Server;
use super::{Options, Result};

const ROWS: u64 = 1_000_000;
const READERS: usize = 4;
const BATCH_ROWS: u64 = 1_000;
const ACCOUNTS: u64 = 10;

const VIEWS: &str = "
    CREATE TABLE transfers (id bigint PRIMARY KEY, from_account int, to_account int, amount bigint);
    CREATE MATERIALIZED VIEW accepted AS SELECT * FROM transfers WHERE amount > 0;
    CREATE MATERIALIZED VIEW credits AS SELECT to_account AS account, sum(amount) AS credits FROM accepted GROUP BY to_account;
    CREATE MATERIALIZED VIEW debits AS SELECT from_account AS account, sum(amount) AS debits FROM accepted GROUP BY from_account;
    CREATE MATERIALIZED VIEW balance AS SELECT c.account, credits - debits AS balance FROM credits c JOIN debits d ON c.account = d.account;
    CREATE MATERIALIZED VIEW total AS SELECT sum(balance) AS total FROM balance;
    CREATE MATERIALIZED VIEW accepted_sum AS SELECT sum(amount) AS amount FROM accepted;
    CREATE MATERIALIZED VIEW self_join AS SELECT a.id, b.id AS other FROM accepted a LEFT JOIN accepted b ON a.id = b.id;
    CREATE MATERIALIZED VIEW partners AS SELECT count(*) AS n, count(other) AS matched FROM self_join";

/// One row: the total, credits, debits, accepted amount, and self-join rows without a partner.
const CHECK: &str = "
    SELECT (SELECT total FROM total)::text, (SELECT sum(credits) FROM credits)::text, (SELECT sum(debits) FROM debits)::text,
           (SELECT amount FROM accepted_sum)::text, (SELECT n - matched FROM partners)::text";
/// The same without help by views: the rows of the join are read.
const CHECK_BY_ROWS: &str = "
    SELECT (SELECT sum(balance) FROM balance)::text, (SELECT sum(credits) FROM credits)::text,
           (SELECT sum(debits) FROM debits)::text, (SELECT sum(amount) FROM accepted)::text,
           (SELECT count(*) FROM self_join WHERE other IS NULL)::text";

#[derive(Default)]
struct Seen {
    done: AtomicBool,
    reads: AtomicU64,
    violations: AtomicU64,
}

pub async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let rows = options.rows_or(ROWS);
    let server = Server::start(options).await?;
    let client = server.connect().await?;
    client.batch_execute(VIEWS).await?;
    // Every account has both sides from the start, so that the inner join of the balance leaves nobody out.
    let first: Vec<String> = (0..ACCOUNTS as i64).map(|a| format!("({}, {a}, {}, 1)", -1 - a, (a + 1) % 10)).collect();
    client.batch_execute(&format!("INSERT INTO transfers VALUES {}", first.join(", "))).await?;
    client.batch_execute("FLUSH").await?;

    let seen = Arc::new(Seen::default());
    let mut readers = Vec::new();
    for reader in 0..READERS {
        let (client, seen) = (server.connect().await?, Arc::clone(&seen));
        // The last reader reads every row of the views, which is slow.
        let query = if reader + 1 == READERS { CHECK_BY_ROWS } else { CHECK };
        readers.push(tokio::spawn(async move {
            let check = client.prepare(query).await?;
            let mut latencies = Latencies::default();
            while !seen.done.load(Ordering::Relaxed) {
                let start = now();
                verify(&client, &check, &seen).await?;
                latencies.add(ms_since(start));
            }
            Result::Ok(latencies)
        }));
    }
    let definer = {
        let (client, seen) = (server.connect().await?, Arc::clone(&seen));
        tokio::spawn(async move {
            let mut times = Latencies::default();
            while !seen.done.load(Ordering::Relaxed) {
                let start = now();
                client
                    .batch_execute("CREATE MATERIALIZED VIEW beside AS SELECT from_account, count(*) AS n FROM accepted GROUP BY from_account")
                    .await?;
                times.add(ms_since(start));
                client.batch_execute("DROP MATERIALIZED VIEW beside").await?;
            }
            Result::Ok(times)
        })
    };

    let (before, start) = (server.usage()?, now());
    let mut random = SmallRng::seed_from_u64(1);
    let mut id = 0;
    while id < rows {
        let mut values = Vec::new();
        for next in id..(id + BATCH_ROWS).min(rows) {
            // A few are refused by the filter.
            let (from, to, amount) =
                (random.random_range(0..ACCOUNTS), random.random_range(0..ACCOUNTS), random.random_range(-2..48i64));
            values.push(format!("({next}, {from}, {to}, {amount})"));
        }
        id += values.len() as u64;
        client.batch_execute(&format!("INSERT INTO transfers VALUES {}", values.join(", "))).await?;
        if random.random_range(0..10) == 0 {
            client.execute(&format!("DELETE FROM transfers WHERE id = {}", random.random_range(0..id)), &[]).await?;
        }
        if id % (BATCH_ROWS * 100) == 0 {
            let (reads, wrong) = (seen.reads.load(Ordering::Relaxed), seen.violations.load(Ordering::Relaxed));
            eprintln!("   {id} transfers, {reads} reads, {wrong} violations");
        }
    }
    let elapsed_ms = ms_since(start);
    seen.done.store(true, Ordering::Relaxed);
    let mut latencies = Latencies::default();
    for (number, reader) in readers.into_iter().enumerate() {
        let found = reader.await??;
        if number + 1 == READERS {
            report.latencies("transfers.read_by_rows", &found, server.usage()?.since(before));
        } else {
            latencies.merge(found);
        }
    }
    let defined = definer.await??;
    let usage = server.usage()?.since(before);
    let check = client.prepare(CHECK_BY_ROWS).await?;
    verify(&client, &check, &seen).await?;
    let violations = seen.violations.load(Ordering::Relaxed);
    report.value("transfers.rows_per_second", rows as f64 / elapsed_ms * 1e3, "rows/s", usage);
    report.latencies("transfers.read", &latencies, usage);
    report.latencies("transfers.create_view_beside", &defined, usage);
    report.value("transfers.reads", seen.reads.load(Ordering::Relaxed) as f64, "reads", usage);
    report.value("transfers.violations", violations as f64, "reads", usage);
    if violations == 0 { Ok(()) } else { Err(format!("{violations} inconsistent reads").into()) }
}

async fn verify(client: &Client, check: &tokio_postgres::Statement, seen: &Seen) -> Result<()> {
    let row = client.query_one(check, &[]).await?;
    let found: Vec<Option<String>> = (0..5).map(|column| row.get(column)).collect();
    let zero = Some("0".to_string());
    let right = found[0] == zero && found[1] == found[2] && found[2] == found[3] && found[4] == zero;
    seen.reads.fetch_add(1, Ordering::Relaxed);
    if !right && seen.violations.fetch_add(1, Ordering::Relaxed) < 10 {
        eprintln!("   violation: total, credits, debits, accepted, alone = {found:?}");
    }
    Ok(())
}
