//! The server is killed while rows flow from a file through a join and a window to files: each row is there once.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::process::Server;

const ROUNDS: usize = 8;
const KEYS: usize = 20;

/// Adds rows with the ids of `ids` to the input, in portions that may end in the middle of a line.
fn append(input: &Path, ids: std::ops::Range<usize>) {
    let mut file = OpenOptions::new().create(true).append(true).open(input).unwrap();
    let line = |id: usize| {
        let (hour, minute, second) = (id / 36_000, id / 600 % 60, id / 10 % 60);
        format!("{{\"id\":{id},\"k\":{},\"at\":\"2026-01-01 {hour:02}:{minute:02}:{second:02}\"}}\n", id % KEYS)
    };
    let text: String = ids.map(line).collect();
    for piece in text.as_bytes().chunks(1000) {
        file.write_all(piece).unwrap();
    }
}

/// How often each id stands in the published files. What is staged does not count.
fn published(folder: &Path) -> BTreeMap<usize, usize> {
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        for line in fs::read_to_string(&path).unwrap().lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{path:?}: {e}: {line}"));
            let (id, name) = (row["id"].as_u64().unwrap() as usize, row["name"].as_str().unwrap());
            assert_eq!(name, format!("name {}", id % KEYS));
            *seen.entry(id).or_default() += 1;
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_and_repeats_nothing() {
    let seed: u64 = std::env::var("MILLSTREAM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let rounds = std::env::var("MILLSTREAM_KILLS").ok().and_then(|s| s.parse().ok()).unwrap_or(ROUNDS);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = move |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n
    };
    let folder = tempfile::tempdir().unwrap();
    let (data, input, out) = (folder.path().join("data"), folder.path().join("in.ndjson"), folder.path().join("out"));
    fs::create_dir(&data).unwrap();
    append(&input, 0..100);
    let mut sent = 100;
    let mut server = Server::start_on(&data, 2, "250ms");
    let client = server.client().await;
    client
        .batch_execute(&format!(
            "CREATE TABLE names (k int, name text) APPEND ONLY;
             INSERT INTO names SELECT n, 'name ' || n FROM generate_series(0, {}) AS g (n);
             CREATE SOURCE e (id int, k int, at timestamp, WATERMARK FOR at AS at - INTERVAL '1 second')
                 WITH (connector = 'file', path = '{}', format = 'json', follow = 'true', poll_interval = '5ms');
             CREATE MATERIALIZED VIEW minutes AS SELECT window_start, count(*) AS n, sum(id) AS ids
                 FROM TUMBLE(e, at, INTERVAL '1 minute') GROUP BY window_start;
             CREATE SINK k AS SELECT e.id, names.name FROM e JOIN names ON e.k = names.k
                 WITH (connector = 'file', path = '{}', delivery = 'exactly_once') FORMAT PLAIN ENCODE JSON",
            KEYS - 1,
            input.display(),
            out.display()
        ))
        .await
        .unwrap();
    drop(client);
    for round in 0..rounds {
        for _ in 0..1 + below(6) {
            let more = 1 + below(400) as usize;
            append(&input, sent..sent + more);
            sent += more;
            tokio::time::sleep(Duration::from_millis(below(150))).await;
        }
        server.kill();
        let seen = published(&out);
        assert!(seen.values().all(|n| *n == 1) && seen.keys().all(|id| *id < sent), "seed {seed}, round {round}");
        server = Server::start_on(&data, 1 + below(3) as usize, "250ms");
    }
    append(&input, sent..sent + 50);
    sent += 50;
    for _ in 0..600 {
        if published(&out).len() == sent {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let seen = published(&out);
    let lost: Vec<usize> = (0..sent).filter(|id| !seen.contains_key(id)).collect();
    let repeated: Vec<usize> = seen.iter().filter(|(_, n)| **n > 1).map(|(id, _)| *id).collect();
    assert!(lost.is_empty() && repeated.is_empty(), "seed {seed}: {sent} sent, lost {lost:?}, repeated {repeated:?}");
    let client = server.client().await;
    let row = client.query_one("SELECT sum(n)::text, sum(ids)::text FROM minutes", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), sent.to_string(), "seed {seed}");
    assert_eq!(row.get::<_, String>(1), (sent * (sent - 1) / 2).to_string(), "seed {seed}");
}
