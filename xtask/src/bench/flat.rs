//! Whether what a windowed query holds stays the same however long it runs.
//!
//! NEXMark q5, q7, q8 and q11, closed by the watermark, over the generator; no view keeps results, so what the server holds for its
//! jobs is their state. It is looked at all the time: the greatest value between 30 and 40 % of the events, when windows have begun
//! to close, against that of the last tenth.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use super::measure::Report;
use super::server::Server;
use super::{Options, Result};

const EVENTS: u64 = 20_000_000;
/// Events a second of real time: less than any of the queries can take, or what waits would be measured.
const RATE: u64 = 1_000_000;
const QUERIES: [&str; 4] = ["q5", "q7", "q8", "q11"];
const SAMPLE: Duration = Duration::from_millis(20);
/// More than this between the two parts is growth, not noise: by a factor, and in bytes.
const GROWTH_MAX: f64 = 1.25;
const NOISE_MB: f64 = 4.0;

pub async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let events = options.rows_or(EVENTS);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql-tests/nexmark");
    let mut grown = Vec::new();
    for query in QUERIES {
        let text = std::fs::read_to_string(folder.join(format!("{query}.sql")))?;
        let server = Server::start(options).await?;
        let client = server.connect().await?;
        for table in ["person", "auction", "bid"] {
            client
                .batch_execute(&format!("CREATE SOURCE {table} (WATERMARK FOR date_time AS date_time - INTERVAL '4 seconds') WITH (connector = 'nexmark', table = '{table}', events = {events}, event_rate = 10000, rate = {RATE})"))
                .await?;
        }
        client
            .batch_execute(&format!("CREATE SINK out AS {text} EMIT ON WINDOW CLOSE WITH (connector = 'blackhole')"))
            .await?;
        let mut samples: Vec<(f64, f64)> = Vec::new();
        loop {
            // Sources that nobody reads stand still.
            let (mut done, mut ended) = (0f64, true);
            for row in client.query("SHOW SOURCES", &[]).await? {
                let rows = row.get::<_, &str>("rows").parse::<f64>()?;
                let total = events as f64
                    * match row.get::<_, &str>("name") {
                        "person" => 0.02,
                        "auction" => 0.06,
                        _ => 0.92,
                    };
                done = done.max(rows / total);
                ended &= row.get::<_, &str>("status") != "running";
            }
            samples.push((done, memory_used(server.http_port())?));
            if ended && done > 0.0 {
                break;
            }
            tokio::time::sleep(SAMPLE).await;
        }
        let most = |from: f64, to: f64| {
            let within = samples.iter().filter(|(done, _)| (from..to).contains(done)).map(|(_, bytes)| *bytes / 1e6);
            within.fold(0.0, f64::max)
        };
        let (early, late) = (most(0.3, 0.4), most(0.9, 1.0));
        let usage = server.usage()?;
        report.value(format!("flat.{query}.at_30_percent"), early, "MB", usage);
        report.value(format!("flat.{query}.at_the_end"), late, "MB", usage);
        if late > early * GROWTH_MAX + NOISE_MB {
            grown.push(format!("{query} from {early:.1} to {late:.1} MB"));
        }
    }
    if grown.is_empty() { Ok(()) } else { Err(format!("state grows: {}", grown.join(", ")).into()) }
}

/// Bytes that tables, views and jobs hold.
fn memory_used(port: u16) -> Result<f64> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let value = answer.lines().find_map(|l| l.strip_prefix("millstream_memory_used_bytes "));
    value.and_then(|v| v.trim().parse().ok()).ok_or_else(|| "the server does not tell its memory".into())
}
