//! What a cluster is not given by mistake: nodes that do not belong together, data of another version, a store that cannot keep a
//! promise, settings that are none. The real program says what is wrong and what to do, and ends.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::connection::Pulse;
use cluster::handshake::{Caller, call};
use cluster::{Identity, Roster, RosterConfig, Wanted};
use coord::Time;

use crate::process::Server;
use crate::standby::free_port;

const TOKEN: &str = "a token of the test";
const PATIENCE: Duration = Duration::from_secs(60);

fn millstream(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command.args(arguments).args(["--config", "/dev/null"]).env("MILLSTREAM_CLUSTER_TOKEN", TOKEN).stdin(Stdio::null());
    command
}

/// Runs the program to its end, which must be a refusal in these words with a hint.
#[track_caller]
fn refused(command: &mut Command, words: &[&str]) {
    let ended = command.output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    let missing: Vec<_> = words.iter().filter(|word| !told.contains(**word)).collect();
    assert!(!ended.status.success() && missing.is_empty(), "{missing:?} not in: {told}");
    assert!(told.contains("HINT: "), "{told}");
    assert!(!told.contains("panicked"), "{told}");
}

fn coordinator(data: &Path, cluster: SocketAddr) -> Server {
    let cluster = cluster.to_string();
    let environment = [("MILLSTREAM_CLUSTER_TOKEN", TOKEN), ("MILLSTREAM_CLUSTER_ADDR", &cluster)];
    Server::try_start_as(&["coordinator"], data, &environment).unwrap()
}

fn worker(coordinator: SocketAddr) -> Command {
    millstream(&["worker", "--slots", "1", "--memory-limit", "256MiB", "--coordinator-addr", &coordinator.to_string()])
}

/// A coordinator of another build, in this process.
fn other_build(build: &str) -> Arc<Roster> {
    let identity = Identity { build: build.into(), ..Identity::new(Some("cluster".into()), TOKEN.into()) };
    let pulse = Pulse { heartbeat: Duration::from_millis(100), timeout: Duration::from_secs(10) };
    let wanted = Wanted { workers: 1, least: 1, patience: pulse.timeout, settle: pulse.timeout };
    let config = RosterConfig { identity, wanted, pulse, time: Time::system(), steady: Time::steady(), nonce: 1 };
    Roster::listen(TcpListener::bind("127.0.0.1:0").unwrap(), config).unwrap()
}

#[test]
fn nodes_of_another_version_are_refused_by_both_sides() {
    // A worker that comes to a coordinator of another build ends, and says so.
    let newer = other_build("9.9.9");
    refused(&mut worker(newer.addr()), &["cannot work with one of version 9.9.9", "Run the same program on all nodes"]);
    assert!(newer.workers().is_empty());
    newer.close();
    // A coordinator turns an older worker away, and one that speaks another protocol, and goes on.
    let data = tempfile::tempdir().unwrap();
    let coordinator = coordinator(data.path(), free_port());
    let addr = coordinator.cluster.unwrap();
    let older = Identity { build: "0.0.1".into(), ..Identity::new(None, TOKEN.into()) };
    let caller = |_| Caller::Worker { address: "127.0.0.1:1".into(), slots: 1 };
    let error = call(&addr.to_string(), &older, caller).err().unwrap();
    assert!(error.message().contains("a node of version 0.0.1 cannot work"), "{error}");
    assert!(error.hint().unwrap().contains("same program"));
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(&[&b"MILLSTRM"[..], &u32::MAX.to_le_bytes()].concat()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("protocol version"), "{answer}");
    assert!(call(&addr.to_string(), &Identity::new(None, TOKEN.into()), caller).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_does_not_change_its_cluster() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let addr = free_port();
    let mut first = coordinator(one.path(), addr);
    let mut process = worker(addr).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // Its cluster is there.
    let begun = tokio::time::Instant::now();
    while first.try_client().await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "the worker does not come");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    first.kill();
    // Another cluster's coordinator at the same address.
    let _second = coordinator(other.path(), addr);
    let ended = tokio::task::spawn_blocking(move || {
        let mut told = String::new();
        process.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        (process.wait().unwrap(), told)
    });
    let (status, told) = tokio::time::timeout(PATIENCE, ended).await.expect("the worker does not end").unwrap();
    assert!(!status.success() && told.contains("the node belongs to another cluster"), "{told}");
    assert!(told.contains("HINT: Point the worker to its own coordinator"), "{told}");
}

#[test]
fn data_of_a_newer_version_are_left_alone() {
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("VERSION"), "999\n").unwrap();
    let text = data.path().display().to_string();
    let words = ["has format version 999", "This program reads versions up to 1", "newer program"];
    for role in ["coordinator", "server"] {
        let arguments = [role, "--pg-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--data-dir", &text];
        refused(millstream(&arguments).env("MILLSTREAM_CLUSTER_ADDR", "127.0.0.1:0"), &words);
    }
    std::fs::write(data.path().join("a.sql"), "SELECT 1").unwrap();
    let script = data.path().join("a.sql").display().to_string();
    let run =
        ["run", "--cluster", &script, "--pg-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--data-dir", &text];
    refused(millstream(&run).args(["--cluster-addr", "127.0.0.1:0", "--workers", "1"]), &words);
    assert_eq!(std::fs::read_to_string(data.path().join("VERSION")).unwrap(), "999\n");
}

#[test]
fn a_shared_store_of_a_newer_version_is_left_alone() {
    let (data, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let url = format!("file://{}", store.path().display());
    let environment = [
        ("MILLSTREAM_CLUSTER_TOKEN", TOKEN),
        ("MILLSTREAM_CLUSTER_ADDR", "127.0.0.1:0"),
        ("MILLSTREAM_HIGH_AVAILABILITY", "store"),
        ("MILLSTREAM_CHECKPOINT_URL", &url),
    ];
    drop(Server::try_start_as(&["coordinator"], data.path(), &environment).unwrap());
    // What tells the cluster from every other one, as a later program would write it.
    let object = store.path().join("cluster/id");
    let mut bytes = std::fs::read(&object).unwrap();
    bytes[8] = 9;
    std::fs::write(&object, bytes).unwrap();
    let text = data.path().display().to_string();
    let arguments = ["coordinator", "--pg-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--data-dir", &text];
    refused(millstream(&arguments).envs(environment), &["cluster/id", "format version 9", "newer program"]);
}

/// An S3 service in this process that takes every PUT, whatever its conditions say.
struct Careless {
    addr: SocketAddr,
}

type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

impl Careless {
    fn start() -> Careless {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, objects) = (listener.local_addr().unwrap(), Objects::default());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let objects = Arc::clone(&objects);
                // One request a connection; a client that goes away is none of our business.
                std::thread::spawn(move || answer(stream, &objects).unwrap_or_default());
            }
        });
        Careless { addr }
    }
}

fn answer(stream: TcpStream, objects: &Objects) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().replace("%2F", "/"));
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let key = path.strip_prefix("/bucket/").unwrap_or_default().to_string();
    let mut objects = objects.lock().unwrap();
    let (status, answer) = match method {
        "PUT" => {
            objects.insert(key, body);
            ("200 OK", Vec::new())
        }
        "DELETE" => {
            objects.remove(&key);
            ("204 No Content", Vec::new())
        }
        "POST" => {
            let mut deleted = String::new();
            for part in String::from_utf8_lossy(&body).split("<Key>").skip(1) {
                let key = part.split('<').next().unwrap_or_default();
                objects.remove(key);
                deleted.push_str(&format!("<Deleted><Key>{key}</Key></Deleted>"));
            }
            ("200 OK", format!("<DeleteResult>{deleted}</DeleteResult>").into_bytes())
        }
        _ if key.is_empty() => {
            let prefix = query.split('&').find_map(|part| part.strip_prefix("prefix=")).unwrap_or_default();
            let listed: String = objects
                .iter()
                .filter(|(key, _)| key.starts_with(prefix))
                .map(|(key, bytes)| {
                    format!(
                        "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"e\"</ETag><Size>{}</Size></Contents>",
                        bytes.len()
                    )
                })
                .collect();
            let page = format!(
                "<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>"
            );
            ("200 OK", page.into_bytes())
        }
        _ => match objects.get(&key) {
            Some(bytes) => ("200 OK", bytes.clone()),
            None => ("404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>".to_vec()),
        },
    };
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"e\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nConnection: close\r\n\r\n",
        answer.len()
    )?;
    if method != "HEAD" {
        stream.write_all(&answer)?;
    }
    stream.flush()
}

#[test]
fn a_store_without_conditional_writes_is_refused() {
    let careless = Careless::start();
    for highly_available in ["none", "store"] {
        let data = tempfile::tempdir().unwrap();
        let text = data.path().display().to_string();
        let arguments = ["coordinator", "--pg-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--data-dir", &text];
        let mut command = millstream(&arguments);
        command
            .env("MILLSTREAM_CLUSTER_ADDR", "127.0.0.1:0")
            .env("MILLSTREAM_CHECKPOINT_URL", format!("s3://bucket/{highly_available}"))
            .env("MILLSTREAM_HIGH_AVAILABILITY", highly_available)
            .envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")])
            .env("AWS_ENDPOINT", format!("http://{}", careless.addr))
            .env("AWS_ALLOW_HTTP", "true");
        let words = [
            "cannot keep checkpoints",
            "it overwrites an object that was to be created only if absent",
            "If-None-Match",
        ];
        if highly_available == "store" {
            refused(&mut command, &words);
            continue;
        }
        // Without a standby the store is first needed when a worker has come.
        let addr = free_port();
        let mut process = command
            .env("MILLSTREAM_CLUSTER_ADDR", addr.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut worker = worker(addr).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut told = String::new();
        process.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        let status = process.wait().unwrap();
        worker.kill().unwrap();
        worker.wait().unwrap();
        assert!(!status.success() && words.iter().all(|word| told.contains(word)), "{told}");
    }
}

#[test]
fn settings_that_are_none_are_told_by_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.yaml");
    let with = |settings: &str, arguments: &[&str]| {
        std::fs::write(&file, settings).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command.args(arguments).arg("--config").arg(&file).current_dir(folder.path()).stdin(Stdio::null());
        command
    };
    let coordinator = ["coordinator"];
    refused(
        &mut with("cluster_worker: 3\n", &coordinator),
        &["cluster_worker", "conf/millstream.yaml lists every key"],
    );
    refused(&mut with("cluster_workers: many\n", &coordinator), &["cluster_workers", "many"]);
    refused(&mut with("cluster_workers: 0\n", &coordinator), &["cluster_workers is 0"]);
    refused(
        &mut with("heartbeat_interval: 1 fortnight\n", &coordinator),
        &["heartbeat_interval", "1 fortnight", "50ms to 10min"],
    );
    refused(&mut with("heartbeat_interval: 9s\n", &coordinator), &["heartbeat_timeout must be at least twice"]);
    refused(&mut with("workers_timeout: 0s\n", &["worker"]), &["workers_timeout", "1s to 24h"]);
    refused(&mut with("coordinator_addr: \"\"\n", &["worker"]), &["a worker needs the address of a coordinator"]);
    refused(
        &mut with("cluster_addr: 0.0.0.0:0\npg_addr: 127.0.0.1:0\nhttp_addr: 127.0.0.1:0\n", &coordinator),
        &["needs a token"],
    );
}
