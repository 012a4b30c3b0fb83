//! `millstream fsck` and `millstream state` on what a killed server has left.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::process::Server;

fn millstream(data: &Path, args: &[&str]) -> (String, String, bool) {
    let Output { stdout, stderr, status } = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(args)
        .args(["--config", "/dev/null", "--data-dir"])
        .arg(data)
        .output()
        .unwrap();
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), status.success())
}

/// A data directory with checkpoints, left by a server that was killed.
async fn left(folder: &Path) -> PathBuf {
    let data = folder.join("data");
    std::fs::create_dir(&data).unwrap();
    let mut server = Server::start_on(&data, 2, "250ms");
    let client = server.client().await;
    let statements = "CREATE TABLE t (k int, v int);
        CREATE MATERIALIZED VIEW sums AS SELECT k, sum(v) AS s FROM t GROUP BY k;
        INSERT INTO t SELECT n % 7, n FROM generate_series(1, 100) AS g (n);
        CHECKPOINT;
        INSERT INTO t VALUES (1, 1);
        CHECKPOINT";
    for statement in statements.split(';') {
        client.batch_execute(statement).await.unwrap();
    }
    // While the server runs the directory is its own.
    let (_, error, good) = millstream(&data, &["fsck"]);
    assert!(!good && error.contains("is in use by another process"), "{error}");
    server.kill();
    data
}

/// The segments of the job, oldest first.
fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(segments(&path));
        } else if path.to_string_lossy().contains("/jobs/") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_offline_tools_say_what_is_there_and_what_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let data = left(folder.path()).await;
    let (report, error, good) = millstream(&data, &["fsck"]);
    assert!(good, "{report}{error}");
    assert!(report.contains("records, ") && report.ends_with("whole\n"), "{report}");

    let (list, error, good) = millstream(&data, &["state", "ls"]);
    assert!(good, "{error}");
    assert!(list.contains("sums"), "{list}");
    let (parts, error, good) = millstream(&data, &["state", "show", "sums"]);
    assert!(good, "{error}");
    assert!(parts.lines().any(|line| line.starts_with("task ") && line.contains(" 7 rows")), "{parts}");
    let task = parts.lines().filter_map(|l| l.strip_prefix("task ")?.split(',').next()).next_back().unwrap();
    let (rows, error, good) = millstream(&data, &["state", "show", "sums", "--task", task, "--limit", "3"]);
    assert!(good && rows.contains("(3 of 7 rows; --limit shows more)"), "{rows}{error}");
    let (_, error, good) = millstream(&data, &["state", "show", "sum"]);
    assert!(!good && error.contains("has no job \"sum\"") && error.contains("sums"), "{error}");
    let (_, error, good) = millstream(&data, &["state", "show", "sums", "--checkpoint", "1"]);
    assert!(!good && error.contains("no checkpoint or savepoint \"1\""), "{error}");

    // What nothing needs is told, and removed when that is asked for.
    let known = segments(&data.join("checkpoints"));
    let name = known[0].file_name().unwrap().to_str().unwrap();
    let counter = name.split('-').nth(1).unwrap();
    // Counters begin with 1.
    let orphan =
        known[0].with_file_name(name.replacen(&format!("-{counter}-"), &format!("-{}-", "0".repeat(counter.len())), 1));
    std::fs::copy(&known[0], &orphan).unwrap();
    let (report, _, good) = millstream(&data, &["fsck"]);
    assert!(good && report.contains("orphan "), "{report}");
    let (report, error, good) = millstream(&data, &["fsck", "--repair-orphans"]);
    assert!(good && report.contains("removed "), "{report}{error}");
    let (report, _, good) = millstream(&data, &["fsck"]);
    assert!(good && !report.contains("orphan "), "{report}");

    // Each segment that is needed, damaged and missing.
    for path in segments(&data.join("checkpoints")) {
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        let middle = whole.len() / 2;
        flipped[middle] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        let (report, _, good) = millstream(&data, &["fsck", "--repair-orphans"]);
        assert!(!good && report.contains("DAMAGED") && report.contains("orphans stay"), "{path:?}: {report}");
        let (_, error, good) = millstream(&data, &["state", "show", "sums"]);
        assert!(!good && error.contains("jobs/"), "{error}");
        std::fs::remove_file(&path).unwrap();
        let (report, _, good) = millstream(&data, &["fsck"]);
        assert!(!good && report.contains("missing"), "{path:?}: {report}");
        std::fs::write(&path, &whole).unwrap();
    }
    let (report, _, good) = millstream(&data, &["fsck"]);
    assert!(good, "{report}");

    // Checkpoints that are not where the log says.
    std::fs::rename(data.join("checkpoints"), folder.path().join("elsewhere")).unwrap();
    let (report, _, good) = millstream(&data, &["fsck"]);
    assert!(!good && report.contains("MISSING: the log says that there are checkpoints in"), "{report}");
}

#[test]
fn a_folder_that_is_no_data_directory_and_one_of_a_newer_version_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_, error, good) = millstream(folder.path(), &["fsck"]);
    assert!(!good && error.contains("is not a data directory") && error.contains("HINT"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    std::fs::create_dir(folder.path().join("log")).unwrap();
    std::fs::write(folder.path().join("VERSION"), "99\n").unwrap();
    let (_, error, good) = millstream(folder.path(), &["state", "ls"]);
    assert!(!good && error.contains("format version 99"), "{error}");
}

/// Checkpoints in a bucket: the server goes on from them, the tools read them there, and another data directory does not get them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tests/s3.sh"]
async fn checkpoints_are_kept_in_a_bucket() {
    let endpoint = std::env::var("MILLSTREAM_S3_ENDPOINT").expect("run tests/s3.sh");
    let folder = tempfile::tempdir().unwrap();
    let bucket = [
        ("MILLSTREAM_CHECKPOINT_URL", "s3://bucket/server-checkpoints"),
        ("AWS_ENDPOINT", &endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "someone"),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI"),
    ];
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let start = |data: &Path, slots: usize| Server::try_start_with(data, slots, "10s", &bucket);
    let mut server = start(&data, 2).unwrap();
    let client = server.client().await;
    for statement in [
        "CREATE TABLE t (k int, v int)",
        "CREATE MATERIALIZED VIEW sums AS SELECT k, sum(v) AS s FROM t GROUP BY k",
        "INSERT INTO t SELECT n % 7, n FROM generate_series(1, 100) AS g (n)",
        "CHECKPOINT",
        "INSERT INTO t VALUES (1, 1)",
    ] {
        client.batch_execute(statement).await.unwrap();
    }
    server.kill();
    assert!(!data.join("checkpoints").exists());
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    assert!(start(&other, 1).is_err());
    let fsck = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(["fsck", "--config", "/dev/null", "--data-dir"])
        .arg(&data)
        .envs(bucket)
        .output()
        .unwrap();
    let report = String::from_utf8(fsck.stdout).unwrap();
    assert!(fsck.status.success() && report.contains("s3://bucket/server-checkpoints"), "{report}");
    let server = start(&data, 1).unwrap();
    let client = server.client().await;
    let row = client.query_one("SELECT s::text FROM sums WHERE k = 1", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), (1..=100).filter(|n| n % 7 == 1).sum::<i64>().wrapping_add(1).to_string());
    let row = client.query_one("SELECT count(*)::text FROM t", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "101");
}
