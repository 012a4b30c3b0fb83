//! How fresh a chain of views is: from sending an INSERT until another session reads the changed row.

use std::time::Duration;

use tokio_postgres::{Client, Statement};

use super::measure::{Latencies, Report, ms_since, now};
use super::server::Server;
use super::{Options, Result};

const ROUNDS: u64 = 300;
const WARM_UP_ROUNDS: u64 = 50;
const KEYS: i64 = 1000;
/// A change that takes longer is lost or stuck.
const WAIT_MS_MAX: f64 = 60_000.0;

/// A chain of three views over a table, one session that writes and one that reads.
pub struct Chain {
    writer: Client,
    reader: Client,
    insert: Statement,
    select: Statement,
    /// Rows that were written.
    written: i64,
}

impl Chain {
    pub async fn create(server: &Server) -> Result<Chain> {
        let (writer, reader) = (server.connect().await?, server.connect().await?);
        writer
            .batch_execute(
                "CREATE TABLE chain_events (id bigint PRIMARY KEY, k bigint, v bigint);
                 CREATE MATERIALIZED VIEW chain_1 AS SELECT k, count(*) AS n, max(id) AS last FROM chain_events GROUP BY k;
                 CREATE MATERIALIZED VIEW chain_2 AS SELECT k, n, last FROM chain_1 WHERE n > 0;
                 CREATE MATERIALIZED VIEW chain_3 AS SELECT k, max(last) AS last, max(n) AS n FROM chain_2 GROUP BY k",
            )
            .await?;
        let insert = writer.prepare("INSERT INTO chain_events VALUES ($1, $2, $3)").await?;
        let select = reader.prepare("SELECT last FROM chain_3 WHERE k = $1").await?;
        let mut chain = Chain { writer, reader, insert, select, written: 0 };
        for _ in 0..WARM_UP_ROUNDS {
            chain.round().await?;
        }
        Ok(chain)
    }

    /// Milliseconds until the acknowledgement, and until the other session saw the row.
    pub async fn round(&mut self) -> Result<(f64, f64)> {
        self.written += 1;
        let (id, key) = (self.written, self.written % KEYS);
        let start = now();
        let write = async {
            self.writer.execute(&self.insert, &[&id, &key, &1i64]).await?;
            Ok(ms_since(start))
        };
        let read = async {
            loop {
                let row = self.reader.query_opt(&self.select, &[&key]).await?;
                if row.is_some_and(|row| row.get::<_, i64>(0) >= id) {
                    return Ok(ms_since(start));
                }
                if ms_since(start) > WAIT_MS_MAX {
                    return Err(format!("row {id} was not seen after {WAIT_MS_MAX} ms").into());
                }
            }
        };
        let (acknowledged, seen): (Result<f64>, Result<f64>) = tokio::join!(write, read);
        Ok((acknowledged?, seen?))
    }

    /// `count` rounds with a pause between them, so that rounds fall on every phase of an epoch. Answers with the
    /// latencies of the acknowledgement and of the sight.
    pub async fn rounds(&mut self, count: u64) -> Result<(Latencies, Latencies)> {
        let (mut acknowledged, mut seen) = (Latencies::default(), Latencies::default());
        for round in 0..count {
            let (a, s) = self.round().await?;
            acknowledged.add(a);
            seen.add(s);
            tokio::time::sleep(Duration::from_micros(round * 977 % 10_000)).await;
        }
        Ok((acknowledged, seen))
    }
}

pub async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let server = Server::start(options).await?;
    let mut chain = Chain::create(&server).await?;
    let before = server.usage()?;
    let (acknowledged, seen) = chain.rounds(options.rounds_or(ROUNDS)).await?;
    let usage = server.usage()?.since(before);
    report.latencies("chain.acknowledged", &acknowledged, usage);
    report.latencies("chain.seen", &seen, usage);
    Ok(())
}
