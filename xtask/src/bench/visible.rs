//! How soon an event shows: from the moment at which it was to be written until a SELECT over the wire answers with it.
//!
//! Open loop: events are appended to three NDJSON files by a schedule that no answer holds up, and carry their moment. Two
//! views as in NEXMark stand over the files: the average winning price of a category (q4), and who both came and sold within ten
//! seconds (q8). A reader asks each for its newest moment, again and again; every event since its last answer has shown now. The
//! same once more while a sink over one of the sources has lost its target and writes nothing.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::measure::{Latencies, Report, ms_since, now};
use super::server::Server;
use super::{Options, Result};

/// Events a second: 2 persons, 6 auctions and 92 bids of 100.
const RATE: u64 = 100_000;
const SECONDS: u64 = 60;
const WARM_UP_SECONDS: u64 = 10;
/// Until a sink has noticed that it has no folder.
const STOPS_MAX: Duration = Duration::from_secs(30);
/// Events written at a time: every two milliseconds.
const PORTION: u64 = RATE / 500;

const VIEWS: &str = "
    CREATE MATERIALIZED VIEW winning AS
        SELECT a.id, a.category, max(b.price) AS final, max(b.sent) AS sent
        FROM auction a JOIN bid b ON a.id = b.auction
        WHERE b.date_time BETWEEN a.date_time AND a.expires GROUP BY a.id, a.category;
    CREATE MATERIALIZED VIEW visible_q4 AS SELECT category, avg(final) AS price, max(sent) AS sent FROM winning GROUP BY category;
    CREATE MATERIALIZED VIEW both AS
        SELECT p.id, p.name, p.window_start, max(a.sent) AS sent
        FROM (SELECT id, name, window_start, window_end FROM TUMBLE(person, date_time, INTERVAL '10 seconds')) p
        JOIN (SELECT seller, window_start, window_end, max(sent) AS sent FROM TUMBLE(auction, date_time, INTERVAL '10 seconds') GROUP BY seller, window_start, window_end) a
          ON p.id = a.seller AND p.window_start = a.window_start AND p.window_end = a.window_end
        GROUP BY p.id, p.name, p.window_start;
    CREATE MATERIALIZED VIEW visible_q8 AS SELECT max(sent) AS sent, count(*) AS n FROM both";

pub async fn run(options: &Options, report: &mut Report) -> Result<()> {
    measure(options, false, report).await?;
    measure(options, true, report).await
}

/// With `stopped` a sink over the bids stands still meanwhile.
async fn measure(options: &Options, stopped: bool, report: &mut Report) -> Result<()> {
    let server = Server::start(options).await?;
    let client = server.connect().await?;
    let seconds = WARM_UP_SECONDS + options.rounds_or(SECONDS);
    let mut files = Vec::new();
    for (table, columns) in [
        ("person", "id bigint, name text, date_time timestamp, sent bigint"),
        ("auction", "id bigint, category bigint, seller bigint, date_time timestamp, expires timestamp, sent bigint"),
        (
            "bid",
            "auction bigint, bidder bigint, price bigint, channel text, url text, date_time timestamp, sent bigint",
        ),
    ] {
        let path = server.scratch().join(format!("{table}.json"));
        files.push(File::create(&path)?);
        let path = path.display();
        client
            .batch_execute(&format!("CREATE SOURCE {table} ({columns}, WATERMARK FOR date_time AS date_time - INTERVAL '1 second') WITH (connector = 'file', path = '{path}', format = 'json', follow = 'true', poll_interval = '2ms')"))
            .await?;
    }
    client.batch_execute(VIEWS).await?;
    if stopped {
        stop_a_sink(&server, &mut files[2]).await?;
    }
    let start = now();
    let ended = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for view in ["visible_q4", "visible_q8"] {
        readers.push((view, tokio::spawn(read(server.connect().await?, view, start, Arc::clone(&ended)))));
    }
    let writer = std::thread::spawn(move || write(files, start, seconds));
    tokio::time::sleep(Duration::from_secs(WARM_UP_SECONDS)).await;
    let before = server.usage()?;
    let behind = tokio::task::spawn_blocking(move || writer.join()).await?.map_err(|_| "the writer failed")??;
    ended.store(true, Ordering::Relaxed);
    let usage = server.usage()?.since(before);
    let suffix = if stopped { ".sink_stopped" } else { "" };
    report.value(format!("visible.writer_behind{suffix}"), behind, "ms", usage);
    for (view, reader) in readers {
        report.latencies(view.replace("visible_", "visible.") + suffix, &reader.await??, usage);
    }
    if stopped && !sink_state(&client).await?.starts_with("stalled") {
        return Err(format!("the sink did not stand still: it is {}", sink_state(&client).await?).into());
    }
    Ok(())
}

/// Lets a sink over the bids, which delivers exactly once, lose its folder.
async fn stop_a_sink(server: &Server, bids: &mut File) -> Result<()> {
    let (client, side) = (server.connect().await?, server.connect().await?);
    let folder = server.scratch().join("stopped");
    client
        .batch_execute(&format!("CREATE SINK stopped AS SELECT auction, price FROM bid WITH (connector = 'file', path = '{}', delivery = 'exactly_once') FORMAT PLAIN ENCODE JSON; CHECKPOINT", folder.display()))
        .await?;
    std::fs::rename(&folder, server.scratch().join("away"))?;
    // A bid on no auction, from long ago: something to publish.
    writeln!(
        bids,
        r#"{{"auction":-1,"bidder":0,"price":0,"channel":"","url":"","date_time":"2000-01-01 00:00:00","sent":0}}"#
    )?;
    // It waits for the sink, which notices.
    tokio::spawn(async move { while side.batch_execute("CHECKPOINT").await.is_ok() {} });
    let start = now();
    while !sink_state(&client).await?.starts_with("stalled") {
        if start.elapsed() > STOPS_MAX {
            return Err(format!("the sink does not stand still: it is {}", sink_state(&client).await?).into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn sink_state(client: &Client) -> Result<String> {
    let jobs = client.query("SHOW JOBS", &[]).await?;
    let sink = jobs.iter().find(|row| row.get::<_, &str>("name").contains("stopped"));
    Ok(sink.ok_or("the sink is gone")?.get("status"))
}

/// Writes events as they are due. Answers with the milliseconds by which it was late at worst.
fn write(mut files: Vec<File>, start: Instant, seconds: u64) -> Result<f64> {
    let mut texts = [const { String::new() }; 3];
    let mut behind = 0f64;
    for portion in 0..seconds * RATE / PORTION {
        let due = Duration::from_micros(portion * PORTION * 1_000_000 / RATE);
        if let Some(wait) = due.checked_sub(start.elapsed()) {
            std::thread::sleep(wait);
        }
        behind = behind.max(ms_since(start) - due.as_secs_f64() * 1e3);
        for event in portion * PORTION..(portion + 1) * PORTION {
            append(&mut texts, event);
        }
        for (file, text) in files.iter_mut().zip(&mut texts) {
            file.write_all(text.as_bytes())?;
            text.clear();
        }
    }
    Ok(behind)
}

/// One event as a line; ids follow the events as in NEXMark, and every hundredth auction is hot.
fn append(texts: &mut [String; 3], event: u64) {
    use std::fmt::Write;
    let us = event * 1_000_000 / RATE;
    let time = |us: u64| {
        let (s, us) = (us / 1_000_000, us % 1_000_000);
        format!("2026-01-01 {:02}:{:02}:{:02}.{us:06}", s / 3600, s / 60 % 60, s % 60)
    };
    let (round, place) = (event / 100, event % 100);
    let mixed = event.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    let at = time(us);
    let _ = match place {
        0 | 1 => {
            let id = round * 2 + place;
            writeln!(texts[0], r#"{{"id":{id},"name":"person {id}","date_time":"{at}","sent":{us}}}"#)
        }
        2..8 => {
            let (id, seller) = (round * 6 + place - 2, (round * 2).saturating_sub(mixed % 200));
            writeln!(
                texts[1],
                r#"{{"id":{id},"category":{},"seller":{seller},"date_time":"{at}","expires":"{}","sent":{us}}}"#,
                10 + mixed % 5,
                time(us + 2_000_000)
            )
        }
        _ => {
            let newest = round * 6;
            let auction = if mixed.is_multiple_of(2) { newest / 100 * 100 } else { newest.saturating_sub(mixed % 600) };
            writeln!(
                texts[2],
                r#"{{"auction":{auction},"bidder":{},"price":{},"channel":"channel-{}","url":"https://www.example.com/item?id={mixed}","date_time":"{at}","sent":{us}}}"#,
                mixed % 20_000,
                100 + mixed % 1_000_000,
                mixed % 10_000
            )
        }
    };
}

/// For every event that shows in `view` its delay, once for each that the answers tell apart.
async fn read(client: Client, view: &'static str, start: Instant, ended: Arc<AtomicBool>) -> Result<Latencies> {
    let newest = client.prepare(&format!("SELECT max(sent) FROM {view}")).await?;
    let mut latencies = Latencies::default();
    let mut seen = 0;
    while !ended.load(Ordering::Relaxed) {
        let sent: Option<i64> = client.query_one(&newest, &[]).await?.get(0);
        let (at_us, sent) = (start.elapsed().as_micros() as i64, sent.unwrap_or(0));
        if sent > seen {
            // Events at even distances between the last one seen and this one.
            if seen >= WARM_UP_SECONDS as i64 * 1_000_000 {
                (1..=10).for_each(|n| latencies.add((at_us - (seen + (sent - seen) * n / 10)) as f64 / 1e3));
            }
            seen = sent;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    if seen == 0 { Err(format!("{view} never showed an event").into()) } else { Ok(latencies) }
}

#[cfg(test)]
mod tests {
    use super::append;

    #[test]
    fn a_hundred_events_are_two_persons_six_auctions_and_bids() {
        let mut texts = [const { String::new() }; 3];
        (0..100).for_each(|event| append(&mut texts, event));
        assert_eq!(texts.map(|t| t.lines().count()), [2, 6, 92]);
    }
}
