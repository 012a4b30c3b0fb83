//! How fast bulk data and small statements go through. Run with
//! `cargo test --release -p millstream-frontend rates -- --ignored --nocapture --test-threads 1`.

use tokio::time::Instant;

use super::fake::{Server, schema_named};
use crate::copy::input::Decoder;
use crate::encode::{Format, RowEncoder};
use crate::{CopyOptions, FrontendConfig, TextSettings};

fn rate(what: &str, count: usize, bytes: usize, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{what}: {:.2} M/s, {:.0} MB/s", count as f64 / seconds / 1e6, bytes as f64 / seconds / 1e6);
}

#[test]
#[ignore = "a measurement"]
fn rates_of_copy_and_of_rows() {
    const ROWS: usize = 1_000_000;
    let text: String = (0..ROWS)
        .map(|i| {
            format!("{i}\tcustomer {}\t{}.{:02}\t2024-01-{:02} 10:11:12\n", i % 1000, i % 9999, i % 100, i % 28 + 1)
        })
        .collect();
    let columns = "id:int8|name:text|amount:numeric(10,2)|at:timestamp";
    let schema = schema_named(columns);
    for (name, options, text) in
        [("text", CopyOptions::text(), text.clone()), ("csv", CopyOptions::csv(), text.replace('\t', ","))]
    {
        let start = Instant::now();
        let mut decoder = Decoder::new("t".to_string(), &schema, &options, TextSettings::default());
        let mut batches = Vec::new();
        for piece in text.as_bytes().chunks(64 * 1024) {
            decoder.feed(piece).unwrap();
            while let Some(batch) = decoder.next_batch(false).unwrap() {
                batches.push(batch);
            }
        }
        while let Some(batch) = decoder.next_batch(true).unwrap() {
            batches.push(batch);
        }
        rate(&format!("COPY FROM {name}, rows of 4 columns"), ROWS, text.len(), start);
        for format in [Format::Text, Format::Binary] {
            let start = Instant::now();
            let encoder = RowEncoder::new(&schema, &[format; 4], TextSettings::default());
            let (mut out, mut bytes) = (Vec::new(), 0);
            for batch in &batches {
                let rows = encoder.bind(batch).unwrap();
                for i in 0..rows.rows {
                    rows.write_data_row(i, &mut out).unwrap();
                    if out.len() > 64 * 1024 {
                        bytes += out.len();
                        out.clear();
                    }
                }
            }
            rate(&format!("DataRow {format:?}, rows of 4 columns"), ROWS, bytes, start);
        }
    }
    let values: Vec<f64> = (0..ROWS).map(|i| (i as f64).sqrt()).collect();
    let start = Instant::now();
    let mut out = Vec::new();
    for value in &values {
        crate::encode::number::write_float8(&mut out, *value, 1);
    }
    rate("float8 text", ROWS, out.len(), start);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn rates_of_point_reads() {
    const CLIENTS: usize = 16;
    const READS: usize = 5_000;
    let server = Server::start(FrontendConfig::default()).await;
    let mut tasks = Vec::new();
    let start = Instant::now();
    for _ in 0..CLIENTS {
        let client = server.client().await;
        tasks.push(tokio::spawn(async move {
            let statement = client.prepare("echo a:int4").await.unwrap();
            let mut longest = std::time::Duration::ZERO;
            for i in 0..READS as i32 {
                let start = Instant::now();
                client.query_one(&statement, &[&i]).await.unwrap();
                longest = longest.max(start.elapsed());
            }
            longest
        }));
    }
    let mut longest = std::time::Duration::ZERO;
    for task in tasks {
        longest = longest.max(task.await.unwrap());
    }
    rate("reads by prepared statement, client and server on two threads", CLIENTS * READS, 0, start);
    println!("longest {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "serves until it is killed, for clients run by hand"]
async fn by_hand() {
    let server = Server::start(FrontendConfig::default()).await;
    println!("port {}", server.port);
    std::future::pending::<()>().await;
}
