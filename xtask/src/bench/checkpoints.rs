//! What checkpoints cost: the speed of q4, q5 and q8 with them and without, what an idle server writes, and how long state of
//! about a gigabyte takes until it answers again after a crash.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio_postgres::Client;

use super::measure::{Latencies, Report, ms_since, now};
use super::server::Server;
use super::{Options, Result};

/// With so many events q4 and q5 run for about half a minute, so that checkpoints are due, and q8 for six to ten seconds.
const QUERIES: [(&str, u64); 3] = [("q4", 120_000_000), ("q5", 50_000_000), ("q8", 300_000_000)];
const ROUNDS: u64 = 3;
/// The last is for the pauses, of which ten seconds would show too few.
const INTERVALS: [&str; 3] = ["off", "10s", "1s"];
/// Events whose bids make a gigabyte of a view.
const RESTORED_EVENTS: u64 = 4_500_000;
const IDLE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(20);
const INTERVAL: &str = "MILLSTREAM_CHECKPOINT_INTERVAL";

pub async fn run(options: &Options, report: &mut Report) -> Result<()> {
    for (query, events) in QUERIES {
        speed(query, options.rows_or(events), options, report).await?;
    }
    idle(options, report).await?;
    restore(options, report).await
}

async fn create_sources(client: &Client, events: u64, rows: &str) -> Result<()> {
    for table in ["person", "auction", "bid"] {
        client
            .batch_execute(&format!("CREATE SOURCE {table} (WATERMARK FOR date_time AS date_time - INTERVAL '4 seconds') WITH (connector = 'nexmark', table = '{table}', events = {events}, event_rate = 10000{rows})"))
            .await?;
    }
    Ok(())
}

/// Waits until every source that is read has ended. Returns how long slots stood still for each checkpoint meanwhile, in milliseconds.
async fn sources_end(client: &Client) -> Result<BTreeMap<String, f64>> {
    let mut pauses = BTreeMap::new();
    loop {
        for row in client.query("SHOW CHECKPOINTS", &[]).await? {
            let pause = row.get::<_, Option<&str>>("pause").and_then(|p| p.strip_suffix(" ms")?.parse().ok());
            pauses.extend(pause.map(|pause: f64| (row.get::<_, &str>("epoch").to_string(), pause)));
        }
        let rows = client.query("SHOW SOURCES", &[]).await?;
        let status = |row: &tokio_postgres::Row| row.get::<_, &str>("status").to_string();
        if rows.iter().all(|row| matches!(status(row).as_str(), "ended" | "idle")) {
            client.batch_execute("FLUSH").await?;
            return Ok(pauses);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Events a second and a CPU-second, with checkpoints and without, one after the other.
async fn speed(query: &str, events: u64, options: &Options, report: &mut Report) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql-tests/nexmark");
    let text = std::fs::read_to_string(folder.join(format!("{query}.sql")))?;
    let (mut ratios, mut pauses) = (Vec::new(), Latencies::default());
    for round in 0..options.rounds_or(ROUNDS) {
        let mut speeds = Vec::new();
        for interval in INTERVALS {
            let server = Server::start_with(options, &[(INTERVAL, interval)]).await?;
            let client = server.connect().await?;
            create_sources(&client, events, "").await?;
            let (start, before) = (now(), server.usage()?);
            client.batch_execute(&format!("CREATE MATERIALIZED VIEW out AS {text}")).await?;
            sources_end(&client).await?.into_values().for_each(|ms| pauses.add(ms));
            let speed = events as f64 / ms_since(start) * 1e3;
            report.value(
                format!("checkpoints.{query}.{interval}.{round}"),
                speed,
                "events/s",
                server.usage()?.since(before),
            );
            if interval != "off" {
                let all = client.query("SHOW CHECKPOINTS", &[]).await?;
                let last = all.first().map_or("0", |row| row.get::<_, &str>("bytes"));
                report.value(
                    format!("checkpoints.{query}.bytes.{round}"),
                    last.parse().unwrap_or(0.0),
                    "bytes of the last",
                    server.usage()?,
                );
            }
            speeds.push(speed);
        }
        ratios.push(speeds[1] / speeds[0]);
    }
    ratios.sort_by(f64::total_cmp);
    report.value(format!("checkpoints.{query}.ratio"), ratios[ratios.len() / 2], "of the speed", Default::default());
    report.latencies(format!("checkpoints.{query}.pause"), &pauses, Default::default());
    Ok(())
}

/// With a checkpoint due every 250 ms and nothing changing, nothing is written.
async fn idle(options: &Options, report: &mut Report) -> Result<()> {
    let server = Server::start_with(options, &[(INTERVAL, "250ms")]).await?;
    let client = server.connect().await?;
    client.batch_execute("CREATE TABLE t (k int, v int)").await?;
    client.batch_execute("CREATE MATERIALIZED VIEW sums AS SELECT k, sum(v) AS s FROM t GROUP BY k").await?;
    client.batch_execute("INSERT INTO t SELECT n % 1000, n FROM generate_series(1, 100000) AS g (n)").await?;
    client.batch_execute("CHECKPOINT").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, usage) = (server.written_bytes()?, server.usage()?);
    tokio::time::sleep(IDLE).await;
    let written = server.written_bytes()? - before;
    report.value("checkpoints.idle.written", written as f64, "bytes", server.usage()?.since(usage));
    // A change of one row costs a checkpoint of its size.
    client.batch_execute("INSERT INTO t VALUES (1, 1)").await?;
    client.batch_execute("CHECKPOINT").await?;
    let all = client.query("SHOW CHECKPOINTS", &[]).await?;
    let bytes = |row: &tokio_postgres::Row, name: &str| row.get::<_, &str>(name).parse::<f64>().unwrap_or(0.0);
    let newest = all.first().ok_or("no checkpoint")?;
    report.value("checkpoints.one_row.bytes", bytes(newest, "bytes"), "bytes", server.usage()?);
    report.value("checkpoints.one_row.state", bytes(newest, "state_bytes"), "bytes", server.usage()?);
    if written > 0 { Err(format!("an idle server wrote {written} bytes").into()) } else { Ok(()) }
}

/// A view of whole bids: killed after a checkpoint, until it answers again.
async fn restore(options: &Options, report: &mut Report) -> Result<()> {
    let mut server = Server::start_with(options, &[(INTERVAL, "24h")]).await?;
    let client = server.connect().await?;
    create_sources(&client, RESTORED_EVENTS, ", full_rows = true").await?;
    client.batch_execute("CREATE MATERIALIZED VIEW bids AS SELECT * FROM bid").await?;
    client
        .batch_execute("CREATE MATERIALIZED VIEW n AS SELECT auction, count(*) AS n FROM bids GROUP BY auction")
        .await?;
    sources_end(&client).await?;
    let start = now();
    client.batch_execute("CHECKPOINT").await?;
    let usage = server.usage()?;
    report.value("checkpoints.store", ms_since(start), "ms", usage);
    let all = client.query("SHOW CHECKPOINTS", &[]).await?;
    let bytes: f64 = all.first().ok_or("no checkpoint")?.get::<_, &str>("state_bytes").parse()?;
    report.value("checkpoints.state", bytes / 1e6, "MB", usage);
    let expected: i64 = client.query_one("SELECT count(*) FROM bids", &[]).await?.get(0);
    drop(client);
    server.kill()?;
    let start = now();
    server.restart().await?;
    let client = server.connect().await?;
    let first: i64 = client.query_one("SELECT n FROM n LIMIT 1", &[]).await?.get(0);
    report.value("checkpoints.restore", ms_since(start), "ms to the first answer", server.usage()?);
    let found: i64 = client.query_one("SELECT count(*) FROM bids", &[]).await?.get(0);
    if found == expected && first > 0 { Ok(()) } else { Err(format!("{found} bids instead of {expected}").into()) }
}
