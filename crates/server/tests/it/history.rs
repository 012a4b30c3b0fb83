//! `millstream history` on the jobs that a server has run, beside it and after it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::process::{Server, addr_in, told};

/// A history server of the test's own.
pub struct History {
    process: Child,
    addr: SocketAddr,
}

impl History {
    pub fn start(data: &Path) -> History {
        let process = Command::new(env!("CARGO_BIN_EXE_millstream"))
            .args(["history", "--history-addr", "127.0.0.1:0", "--config", "/dev/null", "--data-dir"])
            .arg(data)
            .env("MILLSTREAM_LOG_FORMAT", "json")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        History::of(process)
    }

    /// One that was just started, with a JSON log that nobody has read.
    pub fn of(mut process: Child) -> History {
        let addr =
            told(&mut process, |entry| addr_in(entry, "addr")).expect("the history server ended before it was ready");
        History { process, addr }
    }

    /// Status and body.
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
    }

    fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Name and state of the listed jobs, the newest first.
    pub fn list(&self, query: &str) -> Vec<(String, String)> {
        let listed = self.json(&format!("/api/jobs{query}"));
        let text = |job: &Value, key: &str| job[key].as_str().unwrap().to_string();
        listed["jobs"].as_array().unwrap().iter().map(|job| (text(job, "name"), text(job, "state"))).collect()
    }
}

impl Drop for History {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, state)| (name.to_string(), state.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_jobs_are_shown_when_no_server_runs() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut server = Server::start_on(&data, 2, "250ms");
    let client = server.client().await;
    let statements = "CREATE TABLE t (k int, v int);
        INSERT INTO t VALUES (1, 10), (2, 20);
        CREATE MATERIALIZED VIEW sums AS SELECT k, sum(v) AS s FROM t GROUP BY k;
        CREATE MATERIALIZED VIEW \"<b>shares\" AS SELECT k, 100 / v AS share FROM t;
        CREATE SOURCE numbers (n bigint) WITH (connector = 'datagen', rows = 100, fields.n.kind = 'sequence');
        CREATE SINK out FROM numbers WITH (connector = 'blackhole');
        CHECKPOINT";
    for statement in statements.split(';') {
        client.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }
    let history = History::start(&data);
    assert_eq!(history.list(""), []);
    // The source of the sink ends by itself.
    loop {
        let row = client.query_one("SHOW SOURCES", &[]).await.unwrap();
        if row.get::<_, &str>("status") == "ended" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for statement in ["FLUSH", "DROP SINK out", "DROP MATERIALIZED VIEW sums", "INSERT INTO t VALUES (3, 0)"] {
        client.batch_execute(statement).await.unwrap();
    }
    let failure = client.query("SELECT * FROM \"<b>shares\"", &[]).await.unwrap_err();
    assert_eq!(failure.code().unwrap().code(), "55000");
    client.batch_execute("DROP MATERIALIZED VIEW \"<b>shares\"").await.unwrap();
    drop(client);
    server.terminate();
    assert!(server.wait_ended(Duration::from_secs(30)).await.unwrap().success());

    let shares = "public.\"<b>shares\"";
    let all = pairs(&[(shares, "failed"), ("public.sums", "cancelled"), ("public.\"out\"", "finished")]);
    assert_eq!(history.list(""), all);
    // It needs nothing of the server, and another one finds the same.
    drop(history);
    let history = History::start(&data);
    assert_eq!(history.list(""), all);
    assert_eq!(history.list("?state=failed"), all[..1]);
    assert_eq!(history.list("?state=finished"), all[2..]);

    let listed = history.json("/api/jobs");
    let id = |n: usize| listed["jobs"][n]["id"].as_str().unwrap().to_string();
    assert_eq!(history.list(&format!("?before={}", id(1))), all[2..]);
    let failed = history.json(&format!("/api/jobs/{}", id(0)));
    assert_eq!(failed["error"]["sqlstate"], "22012");
    assert!(failed["statement"].as_str().unwrap().contains("100 / v"), "{failed}");
    let sums = history.json(&format!("/api/jobs/{}", id(1)));
    assert_eq!((&sums["rows"], &sums["parallelism"]), (&2.into(), &2.into()));
    assert_eq!(sums["inputs"], serde_json::json!(["public.t"]));
    assert!(sums["plan"].as_str().unwrap().contains("sum"), "{sums}");
    assert!(!sums["checkpoints"].as_array().unwrap().is_empty(), "{sums}");
    assert!(sums["started_us"].as_i64().unwrap() < sums["ended_us"].as_i64().unwrap());

    // What users wrote is text on the pages.
    for path in ["/".to_string(), format!("/jobs/{}", id(0))] {
        let (status, page) = history.get(&path);
        assert_eq!(status, 200);
        assert!(page.contains("&lt;b&gt;shares") && !page.contains("<b>shares"), "{page}");
    }
    for bad in ["/api/jobs/nobody", "/jobs/nobody", "/api/jobs/..%2f..%2flog", "/jobs/%00"] {
        assert_eq!(history.get(bad).0, 404, "{bad}");
    }
    assert_eq!(history.get("/?state=gone").0, 400);
    assert_eq!(history.get("/health").0, 200);
    assert_eq!(history.get("/live").0, 200);
}

/// The archive keeps the newest so many.
#[tokio::test(flavor = "multi_thread")]
async fn old_records_are_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let retained = [("MILLSTREAM_HISTORY_RETAINED", "3")];
    let mut server = Server::try_start_with(&data, 1, "250ms", &retained).unwrap();
    let client = server.client().await;
    client.batch_execute("CREATE TABLE t (k int)").await.unwrap();
    for n in 0..20 {
        client.batch_execute(&format!("CREATE MATERIALIZED VIEW v{n} AS SELECT k FROM t")).await.unwrap();
        client.batch_execute(&format!("DROP MATERIALIZED VIEW v{n}")).await.unwrap();
    }
    drop(client);
    server.terminate();
    assert!(server.wait_ended(Duration::from_secs(30)).await.unwrap().success());
    let history = History::start(&data);
    let left = history.list("");
    // Cleared up with the 17th record; what came after it stays until the next time.
    assert_eq!(left.len(), 6, "{left:?}");
    assert_eq!(left[0].0, "public.v19");
}

#[test]
fn a_folder_without_checkpoints_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(["history", "--history-addr", "127.0.0.1:0", "--config", "/dev/null", "--data-dir"])
        .arg(folder.path())
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("is no folder of checkpoints"), "{error}");
    assert!(error.contains("HINT: Give the data directory"), "{error}");
}
