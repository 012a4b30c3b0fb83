//! Bulk loading, and what a server with views costs when nothing happens.

use std::fmt::Write;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use tokio_postgres::Client;

use super::measure::{Report, ms_since, now};
use super::server::Server;
use super::{Options, Result};

const COPY_ROWS: u64 = 2_000_000;
const WARM_UP_ROWS: u64 = 100_000;
const GROUPS: u64 = 1000;
const IDLE_VIEWS: usize = 10;
const IDLE_ROWS: u64 = 10_000;
const IDLE_SECONDS: u64 = 20;
/// Rows of one message of COPY data.
const CHUNK_ROWS: u64 = 2_000;
const WAIT_MS_MAX: f64 = 600_000.0;

/// Loads rows `(id, id % 1000, 1)` by COPY.
pub async fn copy_rows(client: &Client, table: &str, ids: Range<u64>) -> Result<()> {
    let sink = client.copy_in(&format!("COPY {table} FROM STDIN")).await?;
    let mut sink = std::pin::pin!(sink);
    let mut from = ids.start;
    while from < ids.end {
        let until = (from + CHUNK_ROWS).min(ids.end);
        let mut text = String::with_capacity(32 * CHUNK_ROWS as usize);
        for id in from..until {
            let _ = writeln!(text, "{id}\t{}\t1", id % GROUPS);
        }
        sink.send(Bytes::from(text)).await?;
        from = until;
    }
    let rows = sink.finish().await?;
    if rows == ids.end - ids.start { Ok(()) } else { Err(format!("COPY took {rows} rows").into()) }
}

/// Waits until the single number of `query` is `rows`.
pub async fn wait_for_rows(client: &Client, query: &str, rows: u64) -> Result<()> {
    let start = now();
    loop {
        let found: i64 = client.query_one(query, &[]).await?.get(0);
        if found as u64 == rows {
            return Ok(());
        }
        if ms_since(start) > WAIT_MS_MAX {
            return Err(format!("{query} is {found} instead of {rows}").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn copy(options: &Options, report: &mut Report) -> Result<()> {
    let rows = options.rows_or(COPY_ROWS);
    let server = Server::start(options).await?;
    let client = server.connect().await?;
    client
        .batch_execute(
            "CREATE TABLE loaded (id bigint PRIMARY KEY, g bigint, v bigint);
             CREATE MATERIALIZED VIEW by_group AS SELECT g, count(*) AS n, sum(v) AS s FROM loaded GROUP BY g",
        )
        .await?;
    const SEEN: &str = "SELECT coalesce(sum(n), 0)::bigint FROM by_group";
    copy_rows(&client, "loaded", 0..WARM_UP_ROWS).await?;
    wait_for_rows(&client, SEEN, WARM_UP_ROWS).await?;
    let (before, start) = (server.usage()?, now());
    copy_rows(&client, "loaded", WARM_UP_ROWS..WARM_UP_ROWS + rows).await?;
    let acknowledged_ms = ms_since(start);
    wait_for_rows(&client, SEEN, WARM_UP_ROWS + rows).await?;
    let seen_ms = ms_since(start);
    let usage = server.usage()?.since(before);
    report.value("copy.acknowledged", rows as f64 / acknowledged_ms * 1e3, "rows/s", usage);
    report.value("copy.seen", rows as f64 / seen_ms * 1e3, "rows/s", usage);
    report.value("copy.rows_per_cpu_second", rows as f64 / usage.cpu_s, "1/cpu-s", usage);
    Ok(())
}

pub async fn idle(options: &Options, report: &mut Report) -> Result<()> {
    let rows = options.rows_or(IDLE_ROWS);
    let seconds = options.rounds_or(IDLE_SECONDS);
    let server = Server::start(options).await?;
    let client = server.connect().await?;
    client.batch_execute("CREATE TABLE quiet (id bigint PRIMARY KEY, g bigint, v bigint)").await?;
    for view in 0..IDLE_VIEWS {
        let define = format!(
            "CREATE MATERIALIZED VIEW quiet_{view} AS SELECT g, sum(v) AS s FROM quiet WHERE id % {} = 0 GROUP BY g",
            view + 1
        );
        client.batch_execute(&define).await?;
    }
    copy_rows(&client, "quiet", 0..rows).await?;
    client.batch_execute("FLUSH").await?;
    // What the load left to do is not idleness.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (before, start) = (server.usage()?, now());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let elapsed_s = ms_since(start) / 1e3;
    let usage = server.usage()?.since(before);
    report.value("idle.cpu", usage.cpu_s / elapsed_s * 100.0, "% of core", usage);
    report.value("idle.resident", usage.resident_mb as f64, "MB", usage);
    Ok(())
}
