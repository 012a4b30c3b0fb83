//! `millstream run --cluster`, as real processes: a script that has a cluster of its own, and one that has a cluster for each job.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use crate::history::History;
use crate::process::{addr_in, told};

const TOKEN: &str = "a token of the test";
/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(20);

/// Where a script lies, and what it leaves.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Place {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        std::fs::create_dir(folder.path().join("temporary")).unwrap();
        Place { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// `millstream run --cluster …` in this folder, with free ports.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command.args(["run", "--cluster", "--config", "/dev/null"]);
        if !arguments.contains(&"--per-job") {
            for flag in ["--pg-addr", "--http-addr", "--cluster-addr"] {
                if !arguments.contains(&flag) {
                    command.args([flag, "127.0.0.1:0"]);
                }
            }
        }
        command
            .args(["--memory-limit", "256MiB"])
            .args(arguments)
            .current_dir(self.folder.path())
            .env("TMPDIR", self.path("temporary"))
            .env("MILLSTREAM_CLUSTER_TOKEN", TOKEN)
            .env("MILLSTREAM_CHECKPOINT_INTERVAL", "250ms")
            .env("MILLSTREAM_HEARTBEAT_INTERVAL", "200ms")
            .env("MILLSTREAM_HEARTBEAT_TIMEOUT", "3s")
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments).output().unwrap())
    }

    /// Nothing of what processes have kept for themselves is there any more.
    fn assert_clean(&self) {
        let left: Vec<_> = std::fs::read_dir(self.path("temporary")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// What a process has come to.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    fn of(output: Output) -> Ended {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    fn expect(&self, code: i32, words: &[&str]) {
        let missing: Vec<_> = words.iter().filter(|word| !self.err.contains(**word)).collect();
        assert!(
            self.code == Some(code) && missing.is_empty(),
            "{:?}, {missing:?} not in: {}\n{}",
            self.code,
            self.err,
            self.out
        );
    }
}

/// One that runs, and the addresses that its log tells.
struct Running {
    process: Child,
    cluster: SocketAddr,
    pg: SocketAddr,
    http: SocketAddr,
    out: std::thread::JoinHandle<String>,
}

impl Running {
    fn start(place: &Place, arguments: &[&str]) -> Running {
        let mut command = place.command(arguments);
        command.args(["--log-format", "json", "--log-level", "info"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut out = process.stdout.take().unwrap();
        let out = std::thread::spawn(move || {
            let mut text = String::new();
            out.read_to_string(&mut text).unwrap();
            text
        });
        let mut cluster = None;
        let addresses = told(&mut process, |entry| {
            cluster = cluster.or_else(|| addr_in(entry, "cluster"));
            addr_in(entry, "pg").zip(addr_in(entry, "http"))
        });
        let (pg, http) = addresses.unwrap_or_else(|| panic!("it ended before it was ready: {:?}", process.wait()));
        Running { process, cluster: cluster.unwrap(), pg, http, out }
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.process.id().to_string()]).status().unwrap().success());
    }

    /// Ends it as a crash does.
    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Its code, and what it has printed.
    fn ended(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        while self.process.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(LOOK);
        }
        let code = self.process.wait().unwrap().code();
        let out = std::mem::replace(&mut self.out, std::thread::spawn(String::new));
        (code, out.join().unwrap())
    }

    /// The rows of a query, once it is answered and `enough` says that they are.
    async fn rows_when(&self, sql: &str, enough: impl Fn(&[String]) -> bool) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let mut config = tokio_postgres::Config::new();
            config.host(self.pg.ip().to_string()).port(self.pg.port()).user("tester").dbname("dev");
            if let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await {
                tokio::spawn(connection);
                if let Ok(found) = client.query(sql, &[]).await {
                    let found: Vec<String> = found.iter().map(|row| row.get::<_, String>(0)).collect();
                    if enough(&found) {
                        return found;
                    }
                }
            }
            assert!(begun.elapsed() < PATIENCE, "{sql} is not answered");
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Processes whose command line says this, other than the one with this id.
fn processes(saying: &str, but: u32) -> Vec<u32> {
    let of = |entry: std::fs::DirEntry| -> Option<u32> {
        let id = entry.file_name().to_string_lossy().parse::<u32>().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        (id != but && line.contains(saying)).then_some(id)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect()
}

/// The local workers of a coordinator.
fn workers_of(coordinator: SocketAddr) -> Vec<u32> {
    processes(&format!("worker --until-input-ends --coordinator-addr {coordinator}"), 0)
}

fn assert_no_workers(coordinator: SocketAddr) {
    let begun = Instant::now();
    while !workers_of(coordinator).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "{:?} are left", workers_of(coordinator));
        std::thread::sleep(LOOK);
    }
}

/// A worker that comes from elsewhere.
fn worker(coordinator: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(["worker", "--coordinator-addr", coordinator, "--slots", "1", "--config", "/dev/null"])
        .args(["--memory-limit", "256MiB"])
        .env("MILLSTREAM_CLUSTER_TOKEN", TOKEN)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Everything that a script may hold: DML, a block, sources, views on views, sinks of both kinds, queries.
const SCRIPT: &str = "SET timezone = 'UTC';
CREATE TABLE names (k int PRIMARY KEY, name text);
INSERT INTO names VALUES (0, 'zero'), (1, 'one');
BEGIN;
INSERT INTO names VALUES (2, 'two');
UPDATE names SET name = 'ONE' WHERE k = 1;
COMMIT;
CREATE SOURCE numbers (n bigint) WITH (connector = 'datagen', rows = 3000, ROWSfields.n.kind = 'sequence');
CREATE MATERIALIZED VIEW named AS SELECT n, name FROM numbers JOIN names ON n % 3 = k;
CREATE MATERIALIZED VIEW counts AS SELECT name, count(*) AS n, sum(n) AS s FROM named GROUP BY name;
CREATE SINK lines AS SELECT n, name FROM named WITH (connector = 'file', path = 'lines.csv') FORMAT PLAIN ENCODE CSV;
CREATE SINK once AS SELECT n FROM numbers
    WITH (connector = 'file', path = 'once', delivery = 'exactly_once') FORMAT PLAIN ENCODE JSON;
CREATE SINK names_out FROM names WITH (connector = 'file', path = 'names.csv') FORMAT PLAIN ENCODE CSV;
SELECT * FROM counts ORDER BY name;
INSERT INTO names VALUES (7, 'seven');
SELECT count(*) AS all_names FROM names;
";

/// The script, its source as fast as it can be or with so many rows a second.
fn script(rate: Option<u32>) -> String {
    SCRIPT.replace("ROWS", &rate.map_or(String::new(), |rate| format!("rate = {rate}, ")))
}

/// What [`SCRIPT`] prints and writes, whatever has happened to its processes.
#[track_caller]
fn assert_done(place: &Place, out: &str) {
    for row in [
        "| ONE  | 1000 | 1499500 |",
        "| two  | 1000 | 1500500 |",
        "| zero | 1000 | 1498500 |",
        "(3 rows)",
        "| 4         |",
    ] {
        assert!(out.contains(row), "{row} is not in:\n{out}");
    }
    assert_written(place);
}

#[track_caller]
fn assert_written(place: &Place) {
    let mut published: Vec<String> = Vec::new();
    let mut open = vec![place.path("once")];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let (path, name) = {
                let entry = entry.unwrap();
                (entry.path(), entry.file_name().to_string_lossy().into_owned())
            };
            if name.starts_with(['.', '_']) {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else {
                published.extend(std::fs::read_to_string(path).unwrap().lines().map(str::to_string));
            }
        }
    }
    published.sort();
    let mut expected: Vec<String> = (0..3000).map(|n| format!("{{\"n\":{n}}}")).collect();
    expected.sort();
    assert_eq!(published.len(), 3000);
    assert_eq!(published, expected);
}

#[test]
fn an_application_ends_with_its_script_and_leaves_what_it_was_asked_for() {
    let place = Place::new();
    place.write("a.sql", &script(None));
    let arguments = ["a.sql", "--quiet", "--workers", "2", "--slots", "2", "--data-dir", "data"];
    let ended = place.run(&arguments);
    ended.expect(0, &["the application has ended"]);
    assert_done(&place, &ended.out);
    assert_eq!(place.read("lines.csv").lines().filter(|line| line.contains(",two")).count(), 1000);
    assert_eq!(place.read("names.csv").lines().filter(|line| line.contains("seven")).count(), 1);
    place.assert_clean();
    // Its jobs are in the archive, as those of a server are; they have finished, those over tables too.
    let history = History::start(&place.path("data"));
    let mut jobs = history.list("");
    jobs.sort();
    let finished = |name: &str| (format!("public.{name}"), "finished".to_string());
    assert_eq!(jobs, ["counts", "lines", "named", "names_out", "once"].map(finished));
    // It is not run again on the same data, and another script not at all.
    let again = place.run(&arguments);
    again.expect(0, &["the application has ended here before"]);
    assert_eq!(again.out, "");
    place.write("b.sql", "SELECT 1");
    let other = place.run(&["b.sql", "--workers", "1", "--data-dir", "data"]);
    other.expect(1, &["the data are those of another application", "HINT: Give each application a data directory"]);
}

#[test]
fn workers_that_come_from_elsewhere_end_with_the_application() {
    let place = Place::new();
    place.write("a.sql", &script(None));
    let running = Running::start(&place, &["a.sql", "--quiet", "--cluster-workers", "2"]);
    let mut workers = [worker(&running.cluster.to_string()), worker(&running.cluster.to_string())];
    let (code, out) = running.ended();
    assert_eq!(code, Some(0));
    assert_done(&place, &out);
    for worker in &mut workers {
        assert_eq!(worker.wait().unwrap().code(), Some(0));
    }
    place.assert_clean();
}

#[test]
fn a_statement_that_fails_ends_the_application_and_nothing_is_left() {
    let place = Place::new();
    let run = |text: &str, more: &[&str]| {
        place.write("a.sql", text);
        place.run(&[&["a.sql", "--quiet", "--workers", "1", "--slots", "2"][..], more].concat())
    };
    let bad = "CREATE TABLE t (k int);\nINSERT INTO t VALUES (1);\nCREATE MATERIALIZED VIEW v AS\n  SELECT k, nothing FROM t;\nSELECT 1;\n";
    let ended = run(bad, &["--data-dir", "failed"]);
    ended.expect(1, &["millstream: statement 3, line 4:", "nothing"]);
    // The end is final: the same script on the same data ends so again.
    run(bad, &["--data-dir", "failed"]).expect(1, &["the application has ended here before", "statement 3, line 4:"]);
    // What cannot be read starts nothing.
    run("SELECT 1;\nSELEC 2;\n", &[]).expect(1, &["line 2:", "SELEC"]);
    // A job that stops: the script ends, and says with what.
    let ended = run(
        "CREATE TABLE t (k int);\nCREATE MATERIALIZED VIEW good AS SELECT count(*) AS n FROM t;\n\
         CREATE MATERIALIZED VIEW v AS SELECT 1 / k AS x FROM t;\nINSERT INTO t VALUES (0);\n",
        &["--data-dir", "stopped"],
    );
    ended.expect(1, &["materialized view \"v\" has stopped", "division by zero"]);
    let mut jobs = History::start(&place.path("stopped")).list("");
    jobs.sort();
    assert_eq!(jobs.len(), 2, "{jobs:?}");
    assert_eq!(jobs[0], ("public.good".to_string(), "cancelled".to_string()));
    assert_eq!(jobs[1], ("public.v".to_string(), "failed".to_string()));
    // Not enough slots: how many are wanted, and how many there are.
    let ended =
        run("CREATE TABLE t (k int);\nCREATE MATERIALIZED VIEW v WITH (parallelism = 9) AS SELECT k FROM t", &[]);
    ended.expect(1, &["statement 2, line 2:", "parallelism 9 needs 9 slots, and the server has 2", "HINT"]);
    place.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_application_needs_and_does_not_get_is_said() {
    let place = Place::new();
    place.write("a.sql", "SELECT 1");
    place.run(&["missing.sql"]).expect(1, &["cannot read \"missing.sql\"", "No such file"]);
    let ended = place.run(&["a.sql", "--cluster-workers", "2", "--workers-timeout", "1s"]);
    ended.expect(
        3,
        &["the cluster waits for workers", "has waited 1 s", "2 workers are needed, 0 are here", "HINT: Start workers"],
    );
    // Its own worker is one of two.
    let arguments = ["a.sql", "--workers", "1", "--slots", "1", "--cluster-workers", "2", "--workers-timeout", "15s"];
    place.run(&arguments).expect(3, &["2 workers are needed, 1 are here"]);
    for flag in ["--pg-addr", "--http-addr", "--cluster-addr"] {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap().to_string();
        let ended = place.run(&["a.sql", "--workers", "1", flag, &addr]);
        ended.expect(1, &[&format!("cannot listen on {addr}"), "HINT"]);
    }
    // The data of a server are not an application's.
    let data = place.path("of-a-server");
    std::fs::create_dir(&data).unwrap();
    {
        let mut server = crate::process::Server::start_on(&data, 1, "250ms");
        server.client().await.batch_execute("CREATE TABLE kept (k int)").await.unwrap();
        server.terminate();
        server.wait_ended(PATIENCE).await.unwrap();
    }
    let ended = place.run(&["a.sql", "--workers", "1", "--data-dir", "of-a-server"]);
    ended.expect(1, &["the data directory is that of a server", "public.kept", "HINT"]);
    place
        .run(&["a.sql", "--workers", "1", "--workers-timeout", "soon"])
        .expect(1, &["invalid value for workers_timeout"]);
    let open = ["a.sql", "--workers", "1", "--cluster-workers", "2", "--cluster-addr", "0.0.0.0:0"];
    place.run(&open).expect(1, &["would not reach those of this one", "HINT: Set cluster_addr"]);
    // Flags of a cluster without one.
    let output =
        Command::new(env!("CARGO_BIN_EXE_millstream")).args(["run", "a.sql", "--workers", "2"]).output().unwrap();
    Ended::of(output).expect(2, &["--cluster"]);
    place.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_without_an_end_runs_until_it_is_cancelled() {
    let place = Place::new();
    place.write("in.ndjson", "{\"k\":1}\n{\"k\":2}\n");
    place.write(
        "a.sql",
        "CREATE SOURCE s (k int) WITH (connector = 'file', path = 'in.ndjson', follow = 'true') FORMAT PLAIN ENCODE JSON;
         CREATE MATERIALIZED VIEW v AS SELECT k FROM s;
         CREATE SINK out FROM v WITH (connector = 'file', path = 'out.csv') FORMAT PLAIN ENCODE CSV;",
    );
    for signal in ["-INT", "-TERM"] {
        let data = format!("data{signal}");
        let running =
            Running::start(&place, &["a.sql", "--quiet", "--workers", "2", "--slots", "1", "--data-dir", &data]);
        // It answers clients meanwhile, and says how it is.
        let found = running.rows_when("SELECT k::text FROM v ORDER BY k", |rows| rows.len() == 2).await;
        assert_eq!(found, ["1", "2"]);
        let health = Command::new(env!("CARGO_BIN_EXE_millstream"))
            .args(["health", "--ready", "--config", "/dev/null", "--http-addr", &running.http.to_string()])
            .output()
            .unwrap();
        assert!(
            health.status.success() && String::from_utf8_lossy(&health.stdout).contains("\"status\":\"ok\""),
            "{health:?}"
        );
        let cluster = running.cluster;
        assert_eq!(workers_of(cluster).len(), 2);
        running.signal(signal);
        assert_eq!(running.ended().0, Some(130));
        assert!(workers_of(cluster).is_empty());
        let mut jobs = History::start(&place.path(&data)).list("");
        jobs.sort();
        let cancelled = |name: &str| (format!("public.{name}"), "cancelled".to_string());
        assert_eq!(jobs, ["\"out\"", "v"].map(cancelled));
    }
    place.assert_clean();
}

/// The coordinator is killed, and a worker is: each statement is carried out once, and the source is read once.
#[tokio::test(flavor = "multi_thread")]
async fn an_application_goes_on_where_it_was_when_its_processes_die() {
    let place = Place::new();
    place.write("a.sql", &script(Some(600)));
    let arguments = ["a.sql", "--quiet", "--workers", "2", "--slots", "1", "--data-dir", "data"];
    let mut running = Running::start(&place, &arguments);
    let some = |rows: &[String]| rows[0].parse::<u64>().unwrap() > 200;
    running.rows_when("SELECT count(*)::text FROM named", some).await;
    running.kill();
    // Its workers end with it, though nobody has told them.
    assert_no_workers(running.cluster);
    let running = Running::start(&place, &arguments);
    running.rows_when("SELECT count(*)::text FROM named", some).await;
    let victim = workers_of(running.cluster)[0];
    assert!(Command::new("kill").args(["-KILL", &victim.to_string()]).status().unwrap().success());
    let cluster = running.cluster;
    let (code, out) = running.ended();
    assert_eq!(code, Some(0));
    assert_done(&place, &out);
    assert_no_workers(cluster);
    place.assert_clean();
}

/// Two coordinators run the same script on one store: one of them dies, the other goes on, and whoever comes later learns the end.
#[tokio::test(flavor = "multi_thread")]
async fn another_coordinator_goes_on_with_the_application() {
    let place = Place::new();
    place.write("a.sql", &script(Some(400)));
    let url = format!("file://{}", place.path("store").display());
    let own = |name: &'static str| {
        let (ha, workers) = (["--high-availability", "store", "--checkpoint-url"], ["--workers", "2", "--slots", "1"]);
        [&["a.sql", "--quiet", "--data-dir", name][..], &ha[..], &[url.as_str()][..], &workers[..]].concat()
    };
    let mut first = Running::start(&place, &own("a"));
    first.rows_when("SELECT count(*)::text FROM named", |rows| rows[0] != "0").await;
    let second = Running::start(&place, &own("b"));
    // A standby is alive and not ready.
    let asks = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command.args(["health", "--config", "/dev/null", "--http-addr", &second.http.to_string()]).args(more);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let begun = Instant::now();
    while !asks(&["--ready"]).1.contains("standby") {
        assert!(begun.elapsed() < PATIENCE, "{:?}", asks(&["--ready"]));
        std::thread::sleep(LOOK);
    }
    assert!(asks(&[]).0 && !asks(&["--ready"]).0);
    first.kill();
    let third = Running::start(&place, &own("c"));
    // Whichever of them goes on: the one that stood by meanwhile ends too, with the same code, and so does one that starts now.
    // On a slow machine the first has printed some rows already.
    let ended = [first.ended(), second.ended(), third.ended()];
    assert_eq!(ended[1..].iter().map(|(code, _)| *code).collect::<Vec<_>>(), [Some(0); 2]);
    assert_done(&place, &ended.map(|(_, out)| out).concat());
    let late = place.run(&own("d"));
    late.expect(0, &["the application has ended here before"]);
    let shown = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(["history", "--config", "/dev/null", "--history-addr", "127.0.0.1:0"])
        .env("MILLSTREAM_CHECKPOINT_URL", &url)
        .env("MILLSTREAM_LOG_FORMAT", "json")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let history = History::of(shown);
    let jobs = history.list("");
    assert_eq!((jobs.len(), jobs.iter().all(|(_, state)| state == "finished")), (5, true), "{jobs:?}");
}

/// A coordinator that is told to stop leaves the application to another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_stopped_leaves_the_application_to_the_other() {
    let place = Place::new();
    place.write("a.sql", &script(Some(500)));
    let url = format!("file://{}", place.path("store").display());
    let own = |name: &'static str| {
        let (ha, workers) = (["--high-availability", "store", "--checkpoint-url"], ["--workers", "1", "--slots", "2"]);
        [&["a.sql", "--quiet", "--data-dir", name][..], &ha[..], &[url.as_str()][..], &workers[..]].concat()
    };
    let first = Running::start(&place, &own("a"));
    first.rows_when("SELECT count(*)::text FROM named", |rows| rows[0] != "0").await;
    let second = Running::start(&place, &own("b"));
    first.signal("-TERM");
    assert_eq!(first.ended().0, Some(143));
    let (code, out) = second.ended();
    assert_eq!(code, Some(0));
    assert_done(&place, &out);
}

#[test]
fn each_job_of_a_script_has_a_cluster_of_its_own() {
    let place = Place::new();
    place.write(
        "jobs.sql",
        "CREATE SOURCE numbers (n bigint) WITH (connector = 'datagen', rows = 500, fields.n.kind = 'sequence');
         CREATE TABLE factors (k int, f int);
         INSERT INTO factors VALUES (0, 2), (1, 3);
         CREATE MATERIALIZED VIEW products AS SELECT n * f AS p FROM numbers JOIN factors ON n % 2 = k;
         CREATE SINK good FROM products WITH (connector = 'file', path = 'good.csv') FORMAT PLAIN ENCODE CSV;
         CREATE SINK bad AS SELECT 100 / n AS x FROM numbers
             WITH (connector = 'file', path = 'bad.csv') FORMAT PLAIN ENCODE CSV;
         SELECT sum(p) AS total FROM products;",
    );
    let started = Instant::now();
    let ended = place.run(&["jobs.sql", "--per-job", "--workers", "1", "--slots", "1", "--data-dir", "data"]);
    // One fails, and takes nothing from the others.
    ended.expect(1, &["job good: finished", "job bad: failed", "division by zero", "job query-7: finished"]);
    assert!(ended.out.contains("query-7: | 312000 |"), "{}", ended.out);
    assert_eq!(place.read("good.csv").lines().filter(|line| !line.starts_with('p')).count(), 500);
    assert!(started.elapsed() < PATIENCE);
    // Each has what it needs and no more.
    assert!(!place.read("data/bad/job.sql").contains("factors") && place.read("data/good/job.sql").contains("factors"));
    let jobs = |name: &str| {
        let mut jobs = History::start(&place.path(name)).list("");
        jobs.sort();
        jobs
    };
    let job = |name: &str, state: &str| (format!("public.{name}"), state.to_string());
    assert_eq!(jobs("data/good/data"), [job("good", "finished"), job("products", "finished")]);
    assert_eq!(jobs("data/bad/data"), [job("bad", "failed")]);
    place.assert_clean();
    place.write("drop.sql", "CREATE TABLE t (k int);\nDROP TABLE t;\n");
    place.run(&["drop.sql", "--per-job"]).expect(1, &["statement 2, line 2: DROP TABLE belongs to no job", "HINT"]);
}

#[test]
fn the_clusters_of_jobs_end_when_their_script_is_cancelled() {
    let place = Place::new();
    place.write(
        "jobs.sql",
        "CREATE SOURCE numbers (n bigint) WITH (connector = 'datagen', rate = 100, fields.n.kind = 'sequence');
         CREATE MATERIALIZED VIEW a AS SELECT count(*) AS n FROM numbers;
         CREATE MATERIALIZED VIEW b AS SELECT max(n) AS n FROM numbers;",
    );
    let mut command =
        place.command(&["jobs.sql", "--per-job", "--workers", "1", "--slots", "1", "--log-level", "info"]);
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let (mut endless, mut told) = (0, String::new());
    for line in lines.map_while(Result::ok) {
        told.push_str(&line);
        told.push('\n');
        if line.contains("runs until it is cancelled") {
            endless += 1;
            if endless == 2 {
                let sent = Command::new("kill").args(["-TERM", &process.id().to_string()]).status().unwrap();
                assert!(sent.success());
            }
        }
    }
    assert_eq!(process.wait().unwrap().code(), Some(130), "{told}");
    assert!(told.contains("job a: cancelled") && told.contains("job b: cancelled"), "{told}");
    let temporary = place.path("temporary");
    assert!(processes(&temporary.display().to_string(), std::process::id()).is_empty());
    place.assert_clean();
}
