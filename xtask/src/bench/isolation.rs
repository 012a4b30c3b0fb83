//! Whether the trouble of one job reaches another: the latency of a chain of views while something else fails or is slow.

use std::time::Duration;

use super::chain::Chain;
use super::load;
use super::measure::{Latencies, Report};
use super::server::Server;
use super::{Options, Result};

const ROUNDS: u64 = 150;
const ROWS: u64 = 2_000_000;

pub async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let rounds = options.rounds_or(ROUNDS);
    let rows = options.rows_or(ROWS);
    let server = Server::start(options).await?;
    let mut chain = Chain::create(&server).await?;
    let side = server.connect().await?;

    eprintln!("   loading {rows} rows");
    side.batch_execute("CREATE TABLE large (id bigint PRIMARY KEY, g bigint, v bigint)").await?;
    load::copy_rows(&side, "large", 0..rows).await?;
    side.batch_execute("CREATE TABLE fragile (id bigint PRIMARY KEY, v bigint); FLUSH").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;

    let before = server.usage()?;
    let (_, seen) = chain.rounds(rounds).await?;
    report.latencies("isolation.alone", &seen, server.usage()?.since(before));

    // A view that stops with an error, again and again.
    let before = server.usage()?;
    let mut seen = Latencies::default();
    let steps = 10;
    for step in 0..steps {
        side.batch_execute("CREATE MATERIALIZED VIEW failing AS SELECT id, 100 / v AS q FROM fragile").await?;
        side.batch_execute(&format!("INSERT INTO fragile VALUES ({step}, 0)")).await?;
        seen.merge(chain.rounds((rounds / steps).max(1)).await?.1);
        let failed = side.simple_query("SELECT * FROM failing").await;
        if failed.is_ok() {
            return Err("a view that divides by zero did not stop".into());
        }
        side.batch_execute("DROP MATERIALIZED VIEW failing; DELETE FROM fragile").await?;
    }
    report.latencies("isolation.view_fails", &seen, server.usage()?.since(before));

    // A view that reads a large table from its start, while the chain is measured until it is done.
    let before = server.usage()?;
    let creator = server.connect().await?;
    let mut backfill = tokio::spawn(async move {
        creator
            .batch_execute(
                "CREATE MATERIALIZED VIEW filled AS SELECT id, sum(v) AS s, max(g) AS g FROM large GROUP BY id",
            )
            .await
    });
    let mut seen = Latencies::default();
    while !backfill.is_finished() {
        seen.merge(chain.rounds(1).await?.1);
    }
    (&mut backfill).await??;
    report.latencies("isolation.back_fill", &seen, server.usage()?.since(before));

    // A sink that replaces a file of the whole large table as often as it can, while the table changes.
    let before = server.usage()?;
    let target = server.scratch().join("slow.csv");
    side.batch_execute(&format!(
        "CREATE SINK slow AS SELECT id, g, v FROM large WITH (connector = 'file', path = '{}', mode = 'snapshot', flush_interval = '1ms') FORMAT PLAIN ENCODE CSV",
        target.display()
    ))
    .await?;
    let mut seen = Latencies::default();
    for step in 0..steps {
        side.batch_execute(&format!("UPDATE large SET v = v + 1 WHERE id = {step}")).await?;
        seen.merge(chain.rounds((rounds / steps).max(1)).await?.1);
    }
    report.latencies("isolation.slow_sink", &seen, server.usage()?.since(before));
    Ok(())
}
