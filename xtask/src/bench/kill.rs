//! Crashes: the server is killed at random moments while clients write, and must come back with every acknowledged row.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio_postgres::Client;

use super::measure::{Latencies, Report};
use super::server::Server;
use super::{Options, Result};

const ROUNDS: u64 = 20;
const CLIENTS: u64 = 2;
const BATCH_ROWS_MAX: i64 = 50;

/// Ids that were sent in one INSERT, and whether it was acknowledged.
struct Sent {
    ids: Range<i64>,
    acknowledged: bool,
}

/// A view and the query that must give the same rows.
const COMPARED: &[(&str, &str)] = &[
    (
        "SELECT g::text, n::text, s::text FROM by_group",
        "SELECT g::text, count(*)::text, sum(v)::text FROM kept GROUP BY g",
    ),
    (
        "SELECT id::text, name, v::text FROM named",
        "SELECT k.id::text, n.name, k.v::text FROM kept k JOIN names n ON k.g = n.g WHERE k.v > 50",
    ),
    (
        "SELECT count(*)::text, sum(n)::text, max(s)::text FROM by_group",
        "SELECT groups::text, n::text, most::text FROM summary",
    ),
];

pub async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let mut server = Server::start(options).await?;
    let client = server.connect().await?;
    client
        .batch_execute(
            "CREATE TABLE kept (id bigint PRIMARY KEY, g bigint, v bigint);
             CREATE TABLE names (g bigint PRIMARY KEY, name text);
             CREATE MATERIALIZED VIEW by_group AS SELECT g, count(*) AS n, sum(v) AS s FROM kept GROUP BY g;
             CREATE MATERIALIZED VIEW named AS SELECT k.id, n.name, k.v FROM kept k JOIN names n ON k.g = n.g WHERE k.v > 50;
             CREATE MATERIALIZED VIEW summary AS SELECT count(*) AS groups, sum(n) AS n, max(s) AS most FROM by_group;
             INSERT INTO names VALUES (0, 'zero'), (1, 'one'), (2, 'two'), (3, 'three')",
        )
        .await?;
    drop(client);
    let sent = Arc::new(Mutex::new(Vec::<Sent>::new()));
    let mut random = SmallRng::seed_from_u64(7);
    let (mut lost, mut torn, mut unequal) = (0u64, 0u64, 0u64);
    let mut starts = Latencies::default();
    let rounds = options.rounds_or(ROUNDS);
    for round in 0..rounds {
        let mut writers = Vec::new();
        for writer in 0..CLIENTS {
            let client = server.connect().await?;
            // Ids of different writers and rounds never meet.
            let first = ((round * CLIENTS + writer) as i64) << 32;
            writers.push(tokio::spawn(write(client, Arc::clone(&sent), first)));
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(20..1500))).await;
        server.kill()?;
        for writer in writers {
            writer.await?;
        }
        starts.add(server.restart().await?);
        let client = server.connect().await?;
        let statements: Vec<(Range<i64>, bool)> = sent.lock().iter().map(|s| (s.ids.clone(), s.acknowledged)).collect();
        let (l, t) = check_rows(&client, &statements).await?;
        let u = check_views(&client).await?;
        lost += l;
        torn += t;
        unequal += u;
        let count = statements.len();
        eprintln!("   round {}: {count} statements, {l} lost rows, {t} torn statements, {u} unequal views", round + 1);
    }
    let usage = server.usage()?;
    let sent = sent.lock();
    report.value("kill9.rounds", rounds as f64, "rounds", usage);
    let acknowledged: i64 = sent.iter().filter(|s| s.acknowledged).map(|s| s.ids.end - s.ids.start).sum();
    report.value("kill9.acknowledged", acknowledged as f64, "rows", usage);
    report.value("kill9.lost", lost as f64, "rows", usage);
    report.value("kill9.torn", torn as f64, "statements", usage);
    report.value("kill9.unequal_views", unequal as f64, "views", usage);
    report.latencies("kill9.restart", &starts, usage);
    if lost + torn + unequal == 0 { Ok(()) } else { Err("the server lost or tore something".into()) }
}

/// Inserts until the connection breaks.
async fn write(client: Client, sent: Arc<Mutex<Vec<Sent>>>, first: i64) {
    let mut random = SmallRng::seed_from_u64(first as u64);
    let mut next = first;
    loop {
        let ids = next..next + random.random_range(1..=BATCH_ROWS_MAX);
        next = ids.end;
        let values: Vec<String> = ids.clone().map(|id| format!("({id}, {}, {})", id % 7, id % 101)).collect();
        let place = {
            let mut sent = sent.lock();
            sent.push(Sent { ids, acknowledged: false });
            sent.len() - 1
        };
        let insert = format!("INSERT INTO kept VALUES {}", values.join(", "));
        if client.batch_execute(&insert).await.is_err() {
            return;
        }
        sent.lock()[place].acknowledged = true;
    }
}

/// Acknowledged rows that are missing, and statements of which a part is there.
async fn check_rows(client: &Client, sent: &[(Range<i64>, bool)]) -> Result<(u64, u64)> {
    let rows = client.query("SELECT id FROM kept", &[]).await?;
    let there: HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    let (mut lost, mut torn) = (0, 0);
    for (ids, acknowledged) in sent {
        let length = (ids.end - ids.start) as u64;
        let found = ids.clone().filter(|id| there.contains(id)).count() as u64;
        lost += if *acknowledged { length - found } else { 0 };
        torn += u64::from(found != 0 && found != length);
    }
    Ok((lost, torn))
}

/// Views that differ from their query.
async fn check_views(client: &Client) -> Result<u64> {
    let mut unequal = 0;
    for (view, query) in COMPARED {
        let (left, right) = (sorted(client, view).await?, sorted(client, query).await?);
        if left != right {
            unequal += 1;
            eprintln!("   {view} gives {} rows, {query} {}", left.len(), right.len());
        }
    }
    Ok(unequal)
}

async fn sorted(client: &Client, query: &str) -> Result<Vec<Vec<Option<String>>>> {
    let rows = client.query(query, &[]).await?;
    let mut rows: Vec<Vec<Option<String>>> =
        rows.iter().map(|row| (0..row.len()).map(|c| row.get(c)).collect()).collect();
    rows.sort();
    Ok(rows)
}
