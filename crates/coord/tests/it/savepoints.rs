//! Checkpoints that are kept by name, starts that go back to one, and reads that wait for one.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use coord::EngineConfig;
use coord::execution::Threads;
use flow::SqlState;

use crate::harness::{Instance, config, keeping, ok, rows, run, scratch};

fn open_from(folder: &Path, slots: usize, savepoint: Option<&str>) -> Instance {
    let mut config: EngineConfig = keeping(folder, slots, 64);
    config.checkpoints.as_mut().unwrap().savepoint = savepoint.map(str::to_string);
    Instance::with(config, Arc::new(Threads::default()))
}

fn append(path: &Path, numbers: std::ops::Range<i64>) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    for n in numbers {
        writeln!(file, "{{\"n\":{n}}}").unwrap();
    }
}

/// Status and SQLSTATE of a job.
async fn status(s: &mut coord::Session, name: &str) -> [String; 2] {
    let jobs = rows(s, "SHOW JOBS").await;
    let job = jobs.iter().find(|row| row[1].ends_with(name)).unwrap_or_else(|| panic!("no job {name}"));
    [job[3].clone(), job[7].clone()]
}

/// Waits until the query answers so.
async fn wait_for(s: &mut coord::Session, query: &str, expected: &str) {
    for _ in 0..500 {
        if rows(s, query).await == [[expected]] {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{query}: {:?} instead of {expected}", rows(s, query).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_goes_back_to_a_savepoint() {
    let folder = scratch();
    let (data, input, out) = (folder.path().join("data"), folder.path().join("in.json"), folder.path().join("out"));
    append(&input, 0..100);
    let instance = open_from(&data, 2, None);
    let mut s = instance.session();
    let source = format!(
        "CREATE SOURCE f (n int) WITH (connector = 'file', path = '{}', format = 'json', follow = 'true', poll_interval = '5ms')",
        input.display()
    );
    ok(&mut s, &source).await;
    ok(&mut s, "CREATE TABLE t (k int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW sums AS SELECT count(*) AS n, sum(n) AS s FROM f").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW rows_of_t AS SELECT count(*) AS n FROM t").await;
    let sink = format!(
        "CREATE SINK o FROM f WITH (connector = 'file', path = '{}', delivery = 'exactly_once') FORMAT PLAIN ENCODE JSON",
        out.display()
    );
    ok(&mut s, &sink).await;
    ok(&mut s, "INSERT INTO t VALUES (1)").await;
    wait_for(&mut s, "SELECT n::text FROM sums", "100").await;
    // A job belongs to checkpoints once it has caught up.
    while status(&mut s, ".o").await[0] != "running" {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    ok(&mut s, "CREATE SAVEPOINT early").await;
    let shown = rows(&mut s, "SHOW SAVEPOINTS").await;
    assert_eq!((shown.len(), shown[0][0].as_str(), shown[0][3].as_str()), (1, "early", "3"));
    // Names and places.
    let state = |e: flow::Error| e.state();
    let before = instance.engine.keeper().unwrap().durable();
    assert_eq!(run(&mut s, "CREATE SAVEPOINT early").await.map_err(state).err(), Some(SqlState::DuplicateObject));
    assert_eq!(run(&mut s, "CREATE SAVEPOINT \"a/b\"").await.map_err(state).err(), Some(SqlState::InvalidName));
    // No checkpoint is made for what is refused.
    assert_eq!(instance.engine.keeper().unwrap().durable(), before);
    assert_eq!(run(&mut s, "DROP SAVEPOINT late").await.map_err(state).err(), Some(SqlState::UndefinedObject));
    ok(&mut s, "DROP SAVEPOINT IF EXISTS late").await;
    ok(&mut s, "BEGIN").await;
    let refused = run(&mut s, "CREATE SAVEPOINT other").await.err().unwrap();
    assert_eq!(refused.state(), SqlState::ActiveSqlTransaction);
    assert!(refused.hint().unwrap().contains("SAVEPOINT name"));
    ok(&mut s, "ROLLBACK").await;
    // More of everything, and checkpoints enough that only the name keeps the first.
    ok(&mut s, &sink.replace("SINK o", "SINK younger").replace("/out'", "/younger'")).await;
    append(&input, 100..300);
    wait_for(&mut s, "SELECT n::text FROM sums", "300").await;
    for k in 2..6 {
        ok(&mut s, &format!("INSERT INTO t VALUES ({k})")).await;
        ok(&mut s, "CHECKPOINT").await;
    }
    drop(s);
    instance.close().await;

    // The lines that the views had read after the savepoint come out otherwise now.
    let text = std::fs::read_to_string(&input).unwrap().replace("{\"n\":299}", "{\"n\":999}");
    std::fs::write(&input, text).unwrap();
    let instance = open_from(&data, 3, Some("early"));
    let mut s = instance.session();
    wait_for(&mut s, "SELECT n::text FROM sums", "300").await;
    let expected = (0..299).sum::<i64>() + 999;
    wait_for(&mut s, "SELECT s::text FROM sums", &expected.to_string()).await;
    // Tables keep all of their rows, and their views count them.
    assert_eq!(rows(&mut s, "SELECT n::text FROM rows_of_t").await, [["5"]]);
    // What the sink has published since would come twice.
    assert_eq!(status(&mut s, ".o").await, ["failed", "55000"]);
    assert_eq!(status(&mut s, ".younger").await, ["failed", "55000"]);
    drop(s);
    instance.close().await;
    // Also after starts that come before the next checkpoint, with the name and without.
    for from in [None, Some("early"), None] {
        let instance = open_from(&data, 2, from);
        let mut s = instance.session();
        wait_for(&mut s, "SELECT s::text FROM sums", &expected.to_string()).await;
        assert_eq!(status(&mut s, ".o").await, ["failed", "55000"], "{from:?}");
        if from.is_some() {
            ok(&mut s, "CHECKPOINT").await;
        }
        drop(s);
        instance.close().await;
    }

    // From now on that is the truth, without the savepoint too.
    let instance = open_from(&data, 1, None);
    let mut s = instance.session();
    wait_for(&mut s, "SELECT s::text FROM sums", &expected.to_string()).await;
    ok(&mut s, "DROP SAVEPOINT early").await;
    assert!(rows(&mut s, "SHOW SAVEPOINTS").await.is_empty());
    drop(s);
    instance.close().await;
    let mut config = keeping(&data, 1, 64);
    config.checkpoints.as_mut().unwrap().savepoint = Some("early".into());
    assert_eq!(coord::Engine::open(config).err().unwrap().state(), SqlState::UndefinedObject);
    let instance = open_from(&data, 1, None);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_read_shows_what_a_checkpoint_holds() {
    let folder = scratch();
    let instance = open_from(folder.path(), 2, None);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM t").await;
    assert!(run(&mut s, "SET read_durability = 'sometimes'").await.is_err());
    ok(&mut s, "SET read_durability = 'durable'").await;
    for k in 1..4 {
        ok(&mut s, &format!("INSERT INTO t VALUES ({k})")).await;
        let before = instance.engine.keeper().unwrap().durable();
        assert_eq!(rows(&mut s, "SELECT n::text FROM n").await, [[k.to_string()]]);
        let after = instance.engine.keeper().unwrap().durable();
        assert!(after > before, "{before} {after}");
        // Nothing has changed since: no checkpoint is needed.
        assert_eq!(rows(&mut s, "SELECT n::text FROM n").await, [[k.to_string()]]);
        assert_eq!(instance.engine.keeper().unwrap().durable(), after);
    }
    ok(&mut s, "RESET read_durability").await;
    drop(s);
    instance.close().await;
    // Without checkpoints nothing is ever held by one.
    let other = scratch();
    let instance = Instance::with(config(other.path(), 1, 64), Arc::new(Threads::default()));
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int)").await;
    ok(&mut s, "SET read_durability = 'durable'").await;
    let refused = run(&mut s, "SELECT * FROM t").await.err().unwrap();
    assert_eq!(refused.state(), SqlState::ObjectNotInPrerequisiteState);
    assert_eq!(run(&mut s, "CREATE SAVEPOINT a").await.err().unwrap().state(), SqlState::ObjectNotInPrerequisiteState);
    drop(s);
    instance.close().await;
}

/// A sink that has published does not begin anew because its checkpoints are looked for in the wrong place.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_checkpoints_a_sink_that_has_published_stays_stopped() {
    let folder = scratch();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    let instance = open_from(&data, 2, None);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int) APPEND ONLY").await;
    let sink = format!(
        "CREATE SINK o FROM t WITH (connector = 'file', path = '{}', delivery = 'exactly_once') FORMAT PLAIN ENCODE JSON",
        out.display()
    );
    ok(&mut s, &sink).await;
    ok(&mut s, "INSERT INTO t VALUES (1), (2)").await;
    ok(&mut s, "CHECKPOINT").await;
    drop(s);
    instance.close().await;
    std::fs::rename(data.join("checkpoints"), folder.path().join("elsewhere")).unwrap();
    for _ in 0..2 {
        let instance = open_from(&data, 1, None);
        let mut s = instance.session();
        assert_eq!(status(&mut s, ".o").await, ["failed", "55000"]);
        ok(&mut s, "CHECKPOINT").await;
        drop(s);
        instance.close().await;
    }
    let published = std::fs::read_dir(&out).unwrap().filter(|e| e.as_ref().unwrap().path().is_file()).count();
    assert_eq!(published, 1);
}
