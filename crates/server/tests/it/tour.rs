//! The tour of the README, statement by statement, on a cluster that `bin/start-cluster.sh` has started, and on a server that is alone: the
//! answers are the same.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;
use tokio_postgres::{Client, Config, SimpleQueryMessage};

use crate::cluster::client_of;
use crate::page_blocks::blocks;
use crate::process::Server;
use crate::standby::free_port;

const WORKERS: usize = 3;
const SLOTS: usize = 2;
/// How long an answer may take to be the same: files are read at their own pace.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
/// What the page takes for granted, as `coord/tests/it/pages.rs` does.
const CLICKS: &str = "{\"usr\":\"a\",\"page\":\"/\",\"at\":\"2026-01-01 00:00:00\"}\n";
/// A query over a source that never ends has another answer every time.
const ENDLESS: &str = "SELECT * FROM hot";
/// Of `SHOW JOBS`: name, kind, status, SQLSTATE and error. The others are numbers of epochs and of objects, and times.
const OF_JOBS: [usize; 5] = [1, 2, 3, 7, 8];

/// A copy of what is shipped, with a cluster in it.
struct Shipped {
    home: TempDir,
    pg: SocketAddr,
}

impl Shipped {
    /// `bin`, and `conf` with `WORKERS` workers on this machine and ports of their own.
    fn start() -> Shipped {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let home = tempfile::tempdir().unwrap();
        for folder in ["bin", "conf"] {
            std::fs::create_dir(home.path().join(folder)).unwrap();
            for entry in std::fs::read_dir(root.join(folder)).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), home.path().join(folder).join(entry.file_name())).unwrap();
            }
        }
        std::fs::write(home.path().join("conf/workers"), "localhost\n".repeat(WORKERS)).unwrap();
        let (pg, http, cluster) = (free_port(), free_port(), free_port());
        let file = home.path().join("conf/millstream.yaml");
        let mut settings = std::fs::read_to_string(&file).unwrap();
        for (default, own) in [
            ("pg_addr: 127.0.0.1:7432", format!("pg_addr: {pg}")),
            ("http_addr: 127.0.0.1:7480", format!("http_addr: {http}")),
            ("cluster_addr: 127.0.0.1:7490", format!("cluster_addr: {cluster}")),
            ("coordinator_addr: 127.0.0.1:7490", format!("coordinator_addr: {cluster}")),
            ("slots: 0", format!("slots: {SLOTS}")),
            ("memory_limit: auto", "memory_limit: 256MiB".to_string()),
        ] {
            assert!(settings.contains(&format!("\n{default}\n")), "conf/millstream.yaml has no line {default}");
            settings = settings.replace(&format!("\n{default}\n"), &format!("\n{own}\n"));
        }
        std::fs::write(&file, settings).unwrap();
        let shipped = Shipped { home, pg };
        shipped.run("start-cluster.sh");
        let begun = Instant::now();
        while std::net::TcpStream::connect(shipped.pg).is_err() {
            let log = || std::fs::read_to_string(shipped.home.path().join("run/coordinator.log")).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "nobody listens: {}", log());
            std::thread::sleep(LOOK);
        }
        shipped
    }

    fn run(&self, script: &str) {
        let ran = Command::new(self.home.path().join("bin").join(script))
            .env("MILLSTREAM_BIN", env!("CARGO_BIN_EXE_millstream"))
            .output()
            .unwrap();
        assert!(ran.status.success(), "{script}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        config.host(self.pg.ip().to_string()).port(self.pg.port()).user("tester");
        config
    }

    /// Processes of this cluster, by what its scripts have noted.
    fn processes(&self) -> Vec<u32> {
        let mut found: Vec<u32> = Vec::new();
        for file in ["run/coordinator.pid", "run/workers"] {
            let noted = std::fs::read_to_string(self.home.path().join(file)).unwrap_or_default();
            found.extend(noted.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok()));
        }
        found
    }
}

impl Drop for Shipped {
    fn drop(&mut self) {
        // A test that has failed has not stopped them.
        for process in self.processes() {
            let _ = Command::new("kill").args(["-KILL", &process.to_string()]).status();
        }
    }
}

/// What a statement has answered, as far as it must be the same.
async fn answer(client: &Client, statement: &str) -> Result<Vec<String>, String> {
    let messages = client.simple_query(statement).await.map_err(|e| {
        let code = e.code().unwrap_or_else(|| panic!("{statement}: {e:?}"));
        code.code().to_string()
    })?;
    let is_jobs = statement.to_uppercase().starts_with("SHOW JOBS");
    let mut rows: Vec<String> = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            let shown = (0..row.len()).filter(|c| !is_jobs || OF_JOBS.contains(c));
            rows.push(shown.map(|c| row.get(c).unwrap_or("NULL")).collect::<Vec<_>>().join(" | "));
        }
    }
    Ok(rows)
}

/// One of the two, with a folder for the files that the page speaks of.
struct Side {
    client: Client,
    files: PathBuf,
}

impl Side {
    async fn new(config: &Config, files: PathBuf) -> Side {
        std::fs::create_dir(&files).unwrap();
        std::fs::write(files.join("clicks.ndjson"), CLICKS).unwrap();
        Side { client: client_of(config, "dev").await, files }
    }

    /// Without what is this side's own: its folder, and times since something happened.
    async fn ask(&self, statement: &str) -> Result<Vec<String>, String> {
        let files = format!("{}/", self.files.display());
        let rows = answer(&self.client, &statement.replace("path = '", &format!("path = '{files}"))).await?;
        let plain = |row: String| {
            let mut parts = row.split(" s ago").map(str::to_string).collect::<Vec<_>>();
            let last = parts.pop().unwrap_or_default();
            for part in &mut parts {
                *part = part.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.').to_string();
            }
            parts.push(last);
            parts.join("N s ago").replace(&files, "")
        };
        Ok(rows.into_iter().map(plain).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tour_of_the_readme_has_the_same_answers_on_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Shipped::start();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let server = Server::start_on(&data, WORKERS * SLOTS, "10s");
    let alone = Side::new(&server.config(), folder.path().join("alone")).await;
    let cluster = Side::new(&shipped.config(), folder.path().join("cluster")).await;
    let workers = cluster.ask("SELECT slots, state FROM ms_catalog.workers").await.unwrap();
    assert_eq!(workers, vec![format!("{SLOTS} | running"); WORKERS]);

    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let (mut asked, mut rows) = (0, 0);
    for block in blocks(&page).iter().filter(|block| block.language == "sql" && block.word != "no-run") {
        let (mut in_block, mut failed) = (false, 0);
        for parsed in sql::parse(&block.text, &sql::Limits::default()).unwrap() {
            let statement = parsed.text;
            let reads = ["SELECT", "SHOW", "EXPLAIN"].iter().any(|word| statement.to_uppercase().starts_with(word));
            let begun = Instant::now();
            let (mut one, mut other) = (alone.ask(&statement).await, cluster.ask(&statement).await);
            if statement == ENDLESS {
                let few = |answer: &Result<Vec<String>, String>| answer.as_ref().unwrap().len() <= 5;
                assert!(few(&one) && few(&other), "{one:?} {other:?}");
                continue;
            }
            while reads && one != other && begun.elapsed() < PATIENCE {
                tokio::time::sleep(LOOK).await;
                (one, other) = (alone.ask(&statement).await, cluster.ask(&statement).await);
            }
            assert_eq!(one, other, "README.md, block of line {}: {statement}\nalone, and on the cluster", block.line);
            asked += 1;
            rows += one.as_ref().map_or(0, Vec::len);
            failed += usize::from(one.is_err());
            match statement.to_uppercase().as_str() {
                "BEGIN" => in_block = true,
                "COMMIT" => in_block = false,
                _ => {}
            }
            if !in_block {
                for side in [&alone, &cluster] {
                    side.ask("FLUSH").await.unwrap();
                }
            }
        }
        assert_eq!(failed > 0, block.word == "error", "README.md, block of line {}", block.line);
    }
    assert!(asked >= 30 && rows >= 20, "{asked} statements, {rows} rows");
    println!("{asked} statements, {rows} rows");
    // What the sink has written.
    let begun = Instant::now();
    let written = |side: &Side| {
        let text = std::fs::read_to_string(side.files.join("pages.csv")).unwrap_or_default();
        // Numbers of epochs differ; those of rows are compared above.
        let known = |cell: &str| if cell.parse::<u64>().is_ok() { "N".to_string() } else { cell.to_string() };
        text.lines().map(|line| line.split(',').map(known).collect::<Vec<_>>().join(",")).collect::<Vec<_>>()
    };
    while written(&alone) != written(&cluster) || written(&alone).len() < 2 {
        assert!(begun.elapsed() < PATIENCE, "{:?} {:?}", written(&alone), written(&cluster));
        tokio::time::sleep(LOOK).await;
    }
    // In order, and nothing is left.
    let processes = shipped.processes();
    assert_eq!(processes.len(), WORKERS + 1);
    shipped.run("stop-cluster.sh");
    let begun = Instant::now();
    while processes.iter().any(|process| Path::new(&format!("/proc/{process}")).exists() && !is_zombie(*process)) {
        assert!(begun.elapsed() < PATIENCE, "{processes:?} do not end");
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether a process has ended and nobody has waited for it.
fn is_zombie(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}
