//! Point reads: many clients, each with a prepared SELECT by the key of a large view.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::load;
use super::measure::{Latencies, Report, ms_since, now};
use super::server::Server;
use super::{Options, Result};

const ROWS: u64 = 1_000_000;
const CLIENTS: u64 = 16;
const SECONDS: u64 = 10;
const WARM_UP_MS: f64 = 2_000.0;

pub async fn point(options: &Options, report: &mut Report) -> Result<()> {
    let rows = options.rows_or(ROWS);
    let measured_ms = options.rounds_or(SECONDS) as f64 * 1e3;
    let server = Server::start(options).await?;
    let client = server.connect().await?;
    client
        .batch_execute(
            "CREATE TABLE facts (id bigint PRIMARY KEY, g bigint, v bigint);
             CREATE MATERIALIZED VIEW by_key AS SELECT id, sum(v) AS s, count(*) AS n FROM facts GROUP BY id",
        )
        .await?;
    load::copy_rows(&client, "facts", 0..rows).await?;
    load::wait_for_rows(&client, "SELECT count(*) FROM by_key", rows).await?;

    let start = now();
    let mut readers = Vec::new();
    for seed in 0..CLIENTS {
        let client = server.connect().await?;
        readers.push(tokio::spawn(async move {
            let select = client.prepare("SELECT n FROM by_key WHERE id = $1").await?;
            let mut random = SmallRng::seed_from_u64(seed);
            let mut latencies = Latencies::default();
            while ms_since(start) < WARM_UP_MS + measured_ms {
                let key = random.random_range(0..rows as i64);
                let sent = now();
                let row = client.query_one(&select, &[&key]).await?;
                if row.get::<_, i64>(0) != 1 {
                    return Err(format!("key {key} has a wrong count").into());
                }
                if ms_since(start) > WARM_UP_MS {
                    latencies.add(ms_since(sent));
                }
            }
            Result::Ok(latencies)
        }));
    }
    tokio::time::sleep(Duration::from_millis(WARM_UP_MS as u64)).await;
    let before = server.usage()?;
    let mut latencies = Latencies::default();
    for reader in readers {
        latencies.merge(reader.await??);
    }
    let usage = server.usage()?.since(before);
    report.latencies("point.read", &latencies, usage);
    report.value("point.reads_per_second", latencies.len() as f64 / measured_ms * 1e3, "1/s", usage);
    report.value("point.reads_per_cpu_second", latencies.len() as f64 / usage.cpu_s, "1/cpu-s", usage);
    Ok(())
}
