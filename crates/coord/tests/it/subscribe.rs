//! SUBSCRIBE: the rows and the changes that it sends are, added up, what SELECT gives at every epoch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arrow::array::RecordBatch;
use coord::Session;
use coord::session::{Outcome, Rows};
use coord::subscriptions::{CHANGES_BYTES_MAX, SUBSCRIPTIONS_MAX};
use flow::{Epoch, Error, Result};
use futures::executor::block_on_stream;
use futures::task::{ArcWake, waker};
use futures::{FutureExt, StreamExt};

use crate::harness::{Instance, Rng, ok, render, rows, run, scratch, seed, state_of};

/// Long enough for anything that comes at all.
const SOON: Duration = Duration::from_secs(20);

type Bag = BTreeMap<Vec<String>, i64>;

async fn try_subscribe(session: &mut Session, text: &str) -> Result<Rows> {
    let parsed = session.parse(text)?.remove(0);
    let prepared = session.prepare(&Arc::new(parsed), &[]).await?;
    match session.execute(&prepared, &[]).await? {
        Outcome::Rows { schema, rows, tag, counted } => {
            assert_eq!((tag, counted), ("SUBSCRIBE", true));
            assert_eq!(prepared.columns, Some(schema));
            Ok(rows)
        }
        Outcome::CopyTo(copy) => Ok(copy.rows),
        _ => panic!("{text} gave no rows"),
    }
}

async fn subscribe(session: &mut Session, text: &str) -> Rows {
    match try_subscribe(session, text).await {
        Ok(rows) => rows,
        Err(e) => panic!("{text}\nfailed: {e} {:?} {:?}", e.detail(), e.hint()),
    }
}

/// The next rows of a subscription.
async fn next(rows: &mut Rows) -> Result<RecordBatch> {
    tokio::time::timeout(SOON, rows.next()).await.expect("nothing comes").expect("a subscription has no end")
}

/// How a subscription ends.
async fn end(rows: &mut Rows) -> Error {
    loop {
        if let Err(error) = next(rows).await {
            assert!(tokio::time::timeout(SOON, rows.next()).await.unwrap().is_none());
            return error;
        }
    }
}

/// What a reader of a subscription with progress knows.
#[derive(Default)]
struct Reader {
    state: Bag,
    /// Everything up to this epoch has come.
    epoch: u64,
    /// Each row as (epoch, op, rest).
    log: Vec<(u64, String, Vec<String>)>,
}

impl Reader {
    /// Takes rows, checking their order; says whether one of them was progress.
    fn take(&mut self, batch: &RecordBatch) -> bool {
        let mut progress = false;
        for mut row in render(batch) {
            let rest = row.split_off(2);
            let (epoch, op) = (row[0].parse::<u64>().unwrap(), row[1].clone());
            let last = self.log.last().map_or(0, |(epoch, ..)| *epoch);
            assert!(epoch >= last, "epoch {epoch} after {last}");
            match op.as_str() {
                "progress" => {
                    assert!(rest.iter().all(|v| v == "NULL"));
                    self.epoch = epoch;
                    progress = true;
                }
                "insert" => *self.state.entry(rest.clone()).or_default() += 1,
                "delete" => {
                    let inserted =
                        self.log.iter().rev().take_while(|(e, ..)| *e == epoch).any(|(_, op, _)| op == "insert");
                    assert!(!inserted, "a delete after an insert of epoch {epoch}");
                    *self.state.entry(rest.clone()).or_default() -= 1;
                }
                other => panic!("op {other}"),
            }
            self.log.push((epoch, op, rest));
        }
        if progress {
            self.state.retain(|_, n| *n != 0);
            assert!(self.state.values().all(|n| *n > 0), "a row less than none");
        }
        progress
    }

    /// Reads until everything up to `epoch` is there.
    async fn until(&mut self, rows: &mut Rows, epoch: u64) {
        while self.epoch < epoch {
            self.take(&next(rows).await.unwrap());
        }
    }
}

/// What a relation holds at an epoch that is pinned.
fn held(instance: &Instance, name: &str, epoch: Epoch) -> Bag {
    let relation = instance.oid(name);
    let snapshot = instance.engine.store(relation).unwrap().at(epoch).unwrap();
    let mut bag = Bag::new();
    for batch in block_on_stream(snapshot.scan(None, 1000).unwrap()) {
        render(&batch.unwrap()).into_iter().for_each(|row| *bag.entry(row).or_default() += 1);
    }
    bag
}

async fn flush(session: &mut Session) -> u64 {
    ok(session, "FLUSH").await;
    session.engine().clock.completed().0
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_first_then_whole_epochs_deletes_before_inserts_in_the_order_of_their_bytes() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m AS SELECT v, k FROM t WHERE k < 100").await;
    ok(&mut s, "INSERT INTO t VALUES (2, 'b'), (1, 'a'), (200, 'z')").await;
    let mut other = instance.session();
    let mut sub = subscribe(&mut other, "SUBSCRIBE m").await;
    let mut snapshot = render(&next(&mut sub).await.unwrap());
    snapshot.sort();
    let first = snapshot[0][0].clone();
    assert_eq!(snapshot, [[&first, "insert", "a", "1"], [&first, "insert", "b", "2"]]);
    ok(&mut s, "BEGIN; UPDATE t SET v = v || v WHERE k < 3; INSERT INTO t VALUES (4, 'd'), (3, 'c'); DELETE FROM t WHERE k = 200; COMMIT").await;
    let change = render(&next(&mut sub).await.unwrap());
    let epoch = change[0][0].clone();
    assert!(epoch.parse::<u64>().unwrap() > first.parse().unwrap());
    let wanted = [
        ("delete", "a", "1"),
        ("delete", "b", "2"),
        ("insert", "aa", "1"),
        ("insert", "bb", "2"),
        ("insert", "c", "3"),
        ("insert", "d", "4"),
    ];
    assert_eq!(change, wanted.map(|(op, v, k)| [&epoch, op, v, k]));
    // What nets to nothing is not sent.
    ok(&mut s, "BEGIN; UPDATE t SET v = 'x' WHERE k = 1; UPDATE t SET v = 'aa' WHERE k = 1; COMMIT").await;
    ok(&mut s, "DELETE FROM t WHERE k = 4").await;
    let change = render(&next(&mut sub).await.unwrap());
    assert_eq!(change.len(), 1, "{change:?}");
    assert_eq!(change[0][1..], ["delete", "d", "4"]);
    instance.close().await;
}

/// Random transactions by several writers, beside subscriptions to a table, a view with a key and one with duplicates that
/// begin at any time: at every epoch that was looked at, each of them has exactly what was there.
#[test]
fn a_subscription_added_up_is_what_select_gives_at_every_epoch() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(16 << 20).build().unwrap();
    for seed in seed()..seed() + 3 {
        println!("MILLSTREAM_SEED={seed} cargo test --test it a_subscription_added_up");
        runtime.block_on(async { tokio::spawn(added_up(seed)).await.unwrap() });
    }
}

async fn added_up(seed: u64) {
    const RELATIONS: [&str; 4] = ["t", "groups", "bag", "first"];
    let folder = scratch();
    let instance = Arc::new(Instance::open(folder.path(), 2, 64));
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, g int, v bigint)").await;
    ok(
        &mut s,
        "CREATE MATERIALIZED VIEW groups AS SELECT g, count(*) AS n, sum(v) AS s, max(v) AS top FROM t GROUP BY g",
    )
    .await;
    ok(&mut s, "CREATE MATERIALIZED VIEW bag AS SELECT g, v % 3 AS r FROM t").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW first AS SELECT k, v FROM t ORDER BY v DESC, k LIMIT 5").await;
    ok(&mut s, "INSERT INTO t SELECT x::int, (x % 7)::int, x FROM generate_series(1, 50) AS x").await;
    let mut writers = Vec::new();
    for writer in 0..3u64 {
        let mut session = instance.session();
        writers.push(tokio::spawn(async move {
            let mut rng = Rng::new(seed * 31 + writer);
            for _ in 0..60 {
                // Each writer has keys of its own, so that none waits for another for long.
                let mut text = String::from("BEGIN");
                for _ in 0..1 + rng.below(3) {
                    let (k, g, v) = (rng.below(40) as u64 * 3 + writer, rng.below(7), rng.below(1000));
                    text += &match rng.below(5) {
                        0 => format!("; DELETE FROM t WHERE k = {k}"),
                        1 => format!("; UPDATE t SET g = {g} WHERE k % 9 = {writer}"),
                        2 => format!("; UPDATE t SET v = v + {v} WHERE k = {k}"),
                        _ => format!(
                            "; INSERT INTO t VALUES ({k}, {g}, {v}) ON CONFLICT (k) DO UPDATE SET v = excluded.v"
                        ),
                    };
                }
                text += if rng.below(6) == 0 { "; ROLLBACK" } else { "; COMMIT" };
                if let Err(e) = run(&mut session, &text).await {
                    assert!(matches!(e.state().code(), "40001" | "40P01"), "{text}: {e}");
                    ok(&mut session, "ROLLBACK").await;
                }
            }
        }));
    }
    // What was there, at epochs that are looked at meanwhile.
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (instance, stop) = (Arc::clone(&instance), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut seen: BTreeMap<u64, Vec<Bag>> = BTreeMap::new();
            while !stop.load(Ordering::Relaxed) {
                let pin = instance.engine.pin();
                let bags = RELATIONS.iter().map(|name| held(&instance, name, pin.epoch())).collect();
                seen.insert(pin.epoch().0, bags);
                tokio::task::yield_now().await;
            }
            seen
        })
    };
    let mut readers = Vec::new();
    for n in 0..12usize {
        let (mut session, stop) = (instance.session(), Arc::clone(&stop));
        readers.push(tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(n as u64 * 7)).await;
            let mut rows = subscribe(&mut session, &format!("SUBSCRIBE {} WITH (progress)", RELATIONS[n % 4])).await;
            let (mut reader, mut states) = (Reader::default(), BTreeMap::new());
            while !stop.load(Ordering::Relaxed) {
                let Ok(Some(batch)) = tokio::time::timeout(Duration::from_millis(50), rows.next()).await else {
                    continue;
                };
                if reader.take(&batch.unwrap()) {
                    states.insert(reader.epoch, reader.state.clone());
                }
                if n % 3 == 0 {
                    // A slow one, which reads several epochs at once.
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }
            (n % 4, states)
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let last = flush(&mut s).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let seen = watcher.await.unwrap();
    let mut compared = 0;
    for reader in readers {
        let (relation, states) = reader.await.unwrap();
        assert!(states.last_key_value().is_some_and(|(epoch, _)| *epoch >= last), "not read to the end");
        for (epoch, state) in &states {
            if let Some(bags) = seen.get(epoch) {
                assert_eq!(*state, bags[relation], "{} at epoch {epoch}", RELATIONS[relation]);
                compared += 1;
            }
        }
    }
    assert!(compared > 100, "{compared} epochs compared");
    let instance = Arc::into_inner(instance).expect("nobody else has it");
    drop(s);
    instance.close().await;
}

#[test]
fn money_that_moves_between_accounts_is_whole_in_every_epoch() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(16 << 20).build().unwrap();
    runtime.block_on(async { tokio::spawn(money()).await.unwrap() });
}

async fn money() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    for text in [
        "CREATE TABLE transfers (id bigint PRIMARY KEY, from_account int, to_account int, amount bigint)",
        "CREATE MATERIALIZED VIEW credits AS SELECT to_account AS account, sum(amount) AS credits FROM transfers GROUP BY to_account",
        "CREATE MATERIALIZED VIEW debits AS SELECT from_account AS account, sum(amount) AS debits FROM transfers GROUP BY from_account",
        "CREATE MATERIALIZED VIEW balance AS SELECT c.account, (credits - debits)::bigint AS balance FROM credits c JOIN debits d ON c.account = d.account",
    ] {
        ok(&mut s, text).await;
    }
    let first: Vec<String> = (0..10).map(|a| format!("({}, {a}, {}, 1)", -1 - a, (a + 1) % 10)).collect();
    ok(&mut s, &format!("INSERT INTO transfers VALUES {}", first.join(", "))).await;
    let mut other = instance.session();
    flush(&mut other).await;
    let mut sub = subscribe(&mut other, "SUBSCRIBE balance WITH (progress)").await;
    let done = Arc::new(AtomicUsize::new(0));
    let mut writers = Vec::new();
    for writer in 0..2u64 {
        let (mut session, done) = (instance.session(), Arc::clone(&done));
        writers.push(tokio::spawn(async move {
            let mut rng = Rng::new(seed() + writer);
            for n in 0..150 {
                let id = n * 2 + writer;
                let (from, to, amount) = (rng.below(10), rng.below(10), rng.below(50));
                ok(&mut session, &format!("INSERT INTO transfers VALUES ({id}, {from}, {to}, {amount})")).await;
            }
            ok(&mut session, "FLUSH").await;
            done.fetch_max(session.engine().clock.completed().0 as usize, Ordering::AcqRel);
        }));
    }
    let (mut reader, mut checked, mut changes) = (Reader::default(), 0, 0);
    loop {
        let finished = writers.iter().all(|w| w.is_finished());
        if finished && reader.epoch >= done.load(Ordering::Acquire) as u64 {
            break;
        }
        // The last epoch may have come before its writer has ended.
        let Ok(batch) = tokio::time::timeout(Duration::from_millis(100), sub.next()).await else { continue };
        let before = reader.log.len();
        if reader.take(&batch.unwrap().unwrap()) {
            let total: i64 = reader.state.keys().map(|row| row[1].parse::<i64>().unwrap()).sum();
            assert_eq!((total, reader.state.len()), (0, 10), "epoch {}", reader.epoch);
            checked += 1;
        }
        changes += reader.log.len() - before;
    }
    assert!(checked > 20 && changes > 300, "{checked} epochs, {changes} changes");
    for writer in writers {
        writer.await.unwrap();
    }
    drop(sub);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_goes_on_after_an_epoch_as_if_it_had_never_stopped() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    ok(
        &mut s,
        "CREATE MATERIALIZED VIEW m WITH (change_retention = '1 hour') AS SELECT v, count(*) AS n FROM t GROUP BY v",
    )
    .await;
    ok(&mut s, "CREATE MATERIALIZED VIEW brief AS SELECT v, count(*) AS n FROM t GROUP BY v").await;
    let shown = rows(&mut s, "SHOW CREATE MATERIALIZED VIEW m").await;
    assert!(shown[0][1].contains(" WITH (change_retention = '3600000 ms') AS "), "{shown:?}");
    let mut other = instance.session();
    let mut whole = subscribe(&mut other, "SUBSCRIBE m WITH (progress)").await;
    let (mut uninterrupted, mut stops) = (Reader::default(), Vec::new());
    let mut rng = Rng::new(seed());
    for n in 0..60 {
        ok(&mut s, &format!("INSERT INTO t VALUES ({n}, {})", rng.below(5))).await;
        ok(&mut s, &format!("UPDATE t SET v = {} WHERE k = {}", rng.below(5), rng.below(60))).await;
        uninterrupted.until(&mut whole, flush(&mut s).await).await;
        stops.push(uninterrupted.epoch);
    }
    let last = uninterrupted.epoch;
    let changes = |reader: &Reader, after: u64| -> Vec<(u64, String, Vec<String>)> {
        reader.log.iter().filter(|(epoch, op, _)| *epoch > after && op != "progress").cloned().collect()
    };
    drop(whole);
    for stop in stops.iter().step_by(7) {
        let mut sub = subscribe(&mut other, &format!("SUBSCRIBE m AS OF EPOCH {stop} WITH (progress)")).await;
        let mut reader = Reader::default();
        // The net changes may have been less than none here: there is no snapshot below them.
        while reader.epoch < last {
            let batch = next(&mut sub).await.unwrap();
            for mut row in render(&batch) {
                let rest = row.split_off(2);
                let epoch = row[0].parse().unwrap();
                if row[1] == "progress" {
                    reader.epoch = epoch;
                }
                reader.log.push((epoch, row[1].clone(), rest));
            }
        }
        assert_eq!(changes(&reader, 0), changes(&uninterrupted, *stop), "after {stop}");
    }
    // Before the view was there, not yet complete, and not kept.
    let e = try_subscribe(&mut other, "SUBSCRIBE m AS OF EPOCH 1").await.err().unwrap();
    assert_eq!(e.state().code(), "72000");
    let oldest: u64 = e.detail().unwrap().trim_end_matches('.').rsplit(' ').next().unwrap().parse().unwrap();
    drop(subscribe(&mut other, &format!("SUBSCRIBE m AS OF EPOCH {oldest}")).await);
    assert_eq!(state_of(&mut other, &format!("SUBSCRIBE m AS OF EPOCH {}", oldest - 1)).await, "72000");
    assert_eq!(state_of(&mut other, &format!("SUBSCRIBE m AS OF EPOCH {}", last + 1_000_000)).await, "22023");
    assert_eq!(state_of(&mut other, &format!("SUBSCRIBE brief AS OF EPOCH {}", stops[0])).await, "72000");
    for (options, state) in [("change_retention = 'soon'", "22023"), ("change_retentions = '1s'", "42704")] {
        let text = format!("CREATE MATERIALIZED VIEW x WITH ({options}) AS SELECT v FROM t");
        assert_eq!(state_of(&mut s, &text).await, state, "{text}");
    }
    instance.close().await;
    // A restart makes views again from their inputs: their earlier changes are not known.
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    assert_eq!(rows(&mut s, "SELECT sum(n) FROM m").await, [["60"]]);
    assert_eq!(state_of(&mut s, &format!("SUBSCRIBE m AS OF EPOCH {last}")).await, "72000");
    let relation = instance.oid("m");
    let log = Arc::clone(instance.engine.view_store(relation).unwrap().changes());
    let kept = async {
        while log.bytes() == 0 {
            ok(&mut s, "UPDATE t SET v = v + 1").await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, kept).await.expect("changes are kept again after a restart");
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retention_ends_and_what_is_older_is_forgotten() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 1, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m WITH (change_retention = '200 ms') AS SELECT k FROM t").await;
    ok(&mut s, "INSERT INTO t VALUES (1)").await;
    let early = flush(&mut s).await;
    drop(subscribe(&mut s, &format!("SUBSCRIBE m AS OF EPOCH {early}")).await);
    for k in 2..40 {
        ok(&mut s, &format!("INSERT INTO t VALUES ({k})")).await;
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    assert_eq!(state_of(&mut s, &format!("SUBSCRIBE m AS OF EPOCH {early}")).await, "72000");
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_ends_with_its_relation_and_says_why() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    ok(&mut s, "INSERT INTO t VALUES (1, 5)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW dropped AS SELECT k FROM t").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW replaced AS SELECT k FROM t").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW fails AS SELECT k, 10 / v AS q FROM t").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW after_it AS SELECT count(*) AS n FROM fails").await;
    ok(&mut s, "CREATE TABLE gone (k int)").await;
    ok(&mut s, "CREATE TABLE altered (k int)").await;
    let mut sessions: Vec<_> = (0..6).map(|_| instance.session()).collect();
    let mut subs = Vec::new();
    for (session, name) in sessions.iter_mut().zip(["dropped", "replaced", "fails", "after_it", "gone", "altered"]) {
        subs.push(subscribe(session, &format!("SUBSCRIBE {name}")).await);
    }
    assert_eq!(rows(&mut s, "SHOW SUBSCRIPTIONS").await.len(), 6);
    // What was complete before comes before the end.
    ok(&mut s, "INSERT INTO t VALUES (2, 2)").await;
    flush(&mut s).await;
    let (first, second) = (next(&mut subs[2]).await.unwrap(), next(&mut subs[2]).await.unwrap());
    assert_eq!(first.num_rows() + second.num_rows(), 2);
    ok(&mut s, "DROP MATERIALIZED VIEW dropped").await;
    ok(&mut s, "CREATE OR REPLACE MATERIALIZED VIEW replaced AS SELECT v FROM t").await;
    ok(&mut s, "INSERT INTO t VALUES (3, 0)").await;
    ok(&mut s, "DROP TABLE gone").await;
    ok(&mut s, "ALTER TABLE altered ADD COLUMN more int DEFAULT 7").await;
    let mut wanted = [
        ("55000", "dropped"),
        ("55000", "dropped or replaced"),
        ("55000", "has stopped"),
        ("55000", "has stopped"),
        ("55000", "dropped"),
        ("55000", "altered"),
    ]
    .into_iter();
    for sub in &mut subs {
        let (state, words) = wanted.next().unwrap();
        let e = end(sub).await;
        assert!(e.state().code() == state && e.message().contains(words), "{words}: {e:?}");
        assert!(e.hint().is_some() && e.detail().is_some(), "{e:?}");
    }
    assert!(end_detail(&mut s, "SUBSCRIBE fails").await.contains("division by zero"));
    // A subscription that begins now sees the new shape.
    ok(&mut s, "INSERT INTO altered (k) VALUES (1)").await;
    let mut sub = subscribe(&mut sessions[5], "SUBSCRIBE altered").await;
    assert_eq!(render(&next(&mut sub).await.unwrap())[0][1..], ["insert", "1", "7"]);
    let mut last = subscribe(&mut sessions[0], "SUBSCRIBE t WITH (snapshot = false)").await;
    drop(subs);
    drop(sub);
    assert_eq!(rows(&mut s, "SHOW SUBSCRIPTIONS").await.len(), 1);
    instance.close().await;
    assert_eq!(end(&mut last).await.state().code(), "57P01");
}

async fn end_detail(session: &mut Session, text: &str) -> String {
    try_subscribe(session, text).await.err().unwrap().detail().unwrap().to_string()
}

/// Counts how often it is woken.
struct Wakes(AtomicUsize);

impl ArcWake for Wakes {
    fn wake_by_ref(wakes: &Arc<Self>) {
        wakes.0.fetch_add(1, Ordering::AcqRel);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_subscription_is_not_even_woken() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY); CREATE TABLE busy (k int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m AS SELECT k FROM t").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW b AS SELECT count(*) AS n FROM busy").await;
    let mut other = instance.session();
    let mut sub = subscribe(&mut other, "SUBSCRIBE m").await;
    let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
    let waker = waker(Arc::clone(&wakes));
    let mut poll = || sub.poll_next_unpin(&mut Context::from_waker(&waker));
    assert!(poll().is_pending());
    // The first epoch after its start may be news to it.
    ok(&mut s, "INSERT INTO busy VALUES (0)").await;
    flush(&mut s).await;
    assert!(poll().is_pending());
    let before = wakes.0.load(Ordering::Acquire);
    for k in 1..=100 {
        ok(&mut s, &format!("INSERT INTO busy VALUES ({k})")).await;
    }
    flush(&mut s).await;
    assert_eq!(rows(&mut s, "SELECT n FROM b").await, [["101"]]);
    assert_eq!(wakes.0.load(Ordering::Acquire), before);
    ok(&mut s, "INSERT INTO t VALUES (1)").await;
    flush(&mut s).await;
    let woken = async {
        while wakes.0.load(Ordering::Acquire) == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(SOON, woken).await.expect("a change wakes it");
    let Poll::Ready(Some(Ok(batch))) = poll() else { panic!("no rows") };
    assert_eq!(batch.num_rows(), 1);
    // Without subscriptions no change is kept.
    let log = Arc::clone(instance.engine.view_store(instance.oid("m")).unwrap().changes());
    drop(sub);
    ok(&mut s, "INSERT INTO t VALUES (2)").await;
    flush(&mut s).await;
    assert_eq!((log.bytes(), instance.engine.clock.feeds.room.used()), (0, 0));
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_does_not_read_is_left_behind_and_holds_nothing_up() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    ok(&mut s, "INSERT INTO t SELECT x::int, 'first' FROM generate_series(1, 20000) AS x").await;
    let (mut idle, mut quick) = (instance.session(), instance.session());
    ok(&mut idle, "BEGIN; DECLARE c CURSOR FOR SUBSCRIBE t").await;
    assert_eq!(rows(&mut idle, "FETCH 5 c").await.len(), 5);
    let mut sub = subscribe(&mut quick, "SUBSCRIBE t WITH (snapshot = false)").await;
    let room = Arc::clone(&instance.engine.clock.feeds.room);
    let (mut written, mut read) = (0usize, 0usize);
    while written < CHANGES_BYTES_MAX + (CHANGES_BYTES_MAX >> 2) {
        // 2,000 rows of 4 KB, twice: deleted and inserted.
        ok(&mut s, &format!("UPDATE t SET v = repeat(md5(k::text || '{written}'), 125) WHERE k <= 2000")).await;
        written += 2000 * 4000;
        assert!(room.used() <= CHANGES_BYTES_MAX, "{} bytes", room.used());
        while let Some(Some(batch)) = sub.next().now_or_never() {
            read += batch.unwrap().num_rows();
        }
    }
    flush(&mut s).await;
    // Whoever reads gets everything.
    let rounds = written / (2000 * 4000);
    while read < rounds * 4000 {
        read += next(&mut sub).await.unwrap().num_rows();
    }
    assert_eq!(read, rounds * 4000);
    // The pins of the store do not know of either.
    // The rewriting of a log that has grown so much does, for as long as it takes.
    let unpinned = async {
        while instance.engine.pins.count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(SOON, unpinned).await.expect("nobody pins an epoch");
    // What was at hand may still come; then the end.
    let error = loop {
        match run(&mut idle, "FETCH 100000 c").await {
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert_eq!(error.state().code(), "53200");
    assert!(error.message().contains("fallen behind") && error.hint().unwrap().contains("AS OF EPOCH"), "{error:?}");
    drop(idle);
    drop(sub);
    assert_eq!(room.used(), 0);
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_gives_what_is_there_and_waits_no_longer_than_told() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY)").await;
    ok(&mut s, "INSERT INTO t VALUES (1), (2), (3)").await;
    let mut c = instance.session();
    assert_eq!(state_of(&mut c, "DECLARE c CURSOR FOR SUBSCRIBE t").await, "25P01");
    ok(&mut c, "BEGIN READ ONLY; DECLARE c CURSOR FOR SUBSCRIBE t WITH (progress)").await;
    assert_eq!(rows(&mut c, "FETCH 2 c").await.len(), 2);
    let more = rows(&mut c, "FETCH ALL c").await;
    assert_eq!(more.iter().map(|r| r[1].as_str()).collect::<Vec<_>>(), ["insert", "progress"]);
    assert!(rows(&mut c, "FETCH ALL c WITH (timeout = '0s')").await.is_empty());
    let started = tokio::time::Instant::now();
    assert!(rows(&mut c, "FETCH 10 c WITH (timeout = '200 ms')").await.is_empty());
    assert!(started.elapsed() >= Duration::from_millis(200));
    // Without a timeout: as soon as there is one.
    let waiting = tokio::spawn(async move {
        let found = rows(&mut c, "FETCH 100 c").await;
        (c, found)
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    ok(&mut s, "INSERT INTO t VALUES (4)").await;
    let (mut c, found) = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
    assert_eq!(found[0][1..], ["insert", "4"]);
    ok(&mut s, "DELETE FROM t WHERE k < 3").await;
    flush(&mut s).await;
    let started = tokio::time::Instant::now();
    let mut found = Vec::new();
    while found.len() < 2 {
        found.extend(
            rows(&mut c, "FETCH 1 c WITH (timeout = '1 min')").await.into_iter().filter(|r| r[1] != "progress"),
        );
    }
    assert!(started.elapsed() < SOON);
    assert_eq!(
        (found[0][1..].to_vec(), found[1][1..].to_vec()),
        (vec!["delete".into(), "1".into()], vec!["delete".to_string(), "2".into()])
    );
    ok(&mut s, "INSERT INTO t VALUES (8), (9)").await;
    flush(&mut s).await;
    ok(&mut c, "MOVE 1 c WITH (timeout = '10 s')").await;
    assert_eq!(state_of(&mut c, "FETCH BACKWARD 1 c").await, "55000");
    ok(&mut c, "ROLLBACK").await;
    assert_eq!(state_of(&mut c, "FETCH 1 c").await, "34000");
    ok(&mut c, "BEGIN; DECLARE q CURSOR FOR SELECT k FROM t").await;
    assert_eq!(state_of(&mut c, "FETCH 1 q WITH (timeout = '1s')").await, "22023");
    ok(&mut c, "ROLLBACK").await;
    // One that outlives its transaction, and is closed.
    ok(&mut c, "DECLARE h CURSOR WITH HOLD FOR SUBSCRIBE t").await;
    assert_eq!(rows(&mut c, "FETCH ALL h").await.len(), 4);
    assert_eq!(rows(&mut c, "SHOW SUBSCRIPTIONS").await.len(), 1);
    ok(&mut c, "CLOSE h").await;
    assert!(rows(&mut c, "SHOW SUBSCRIPTIONS").await.is_empty());
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_and_a_filter_can_be_subscribed_to_and_more_needs_a_view() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, g int, v varchar(5))").await;
    ok(&mut s, "CREATE TABLE d (g int)").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m AS SELECT k, g, v FROM t").await;
    ok(&mut s, "CREATE VIEW plain AS SELECT g, k + 1 AS next FROM m WHERE k < 10").await;
    ok(&mut s, "INSERT INTO t VALUES (1, 1, 'a'), (2, 1, 'b'), (30, 1, 'c')").await;
    let mut other = instance.session();
    let mut sub =
        subscribe(&mut other, "SUBSCRIBE (SELECT g * 10 AS ten, 'known' AS now FROM m WHERE k < 10) WITH (progress)")
            .await;
    let mut reader = Reader::default();
    reader.until(&mut sub, flush(&mut s).await).await;
    let bag = |rows: &[(&str, &str, i64)]| {
        rows.iter().map(|(a, b, n)| (vec![a.to_string(), b.to_string()], *n)).collect::<Bag>()
    };
    assert_eq!(reader.state, bag(&[("10", "known", 2)]));
    // A change of what is not selected is none; one that leaves the filter is a deletion.
    let before = reader.log.len();
    ok(&mut s, "UPDATE t SET v = 'z'").await;
    reader.until(&mut sub, flush(&mut s).await).await;
    assert!(reader.log[before..].iter().all(|(_, op, _)| op == "progress"));
    ok(&mut s, "BEGIN; UPDATE t SET k = 40 WHERE k = 2; UPDATE t SET g = 7 WHERE k = 1; INSERT INTO t VALUES (3, 7, 'n'); COMMIT").await;
    reader.until(&mut sub, flush(&mut s).await).await;
    assert_eq!(reader.state, bag(&[("70", "known", 2)]));
    drop(sub);
    let mut sub = subscribe(&mut other, "SUBSCRIBE plain WITH (progress)").await;
    let mut reader = Reader::default();
    reader.until(&mut sub, flush(&mut s).await).await;
    assert_eq!(reader.state, bag(&[("7", "2", 1), ("7", "4", 1)]));
    drop(sub);
    // The whole key in the filter: the snapshot is read by it.
    let mut sub = subscribe(&mut other, "SUBSCRIBE (SELECT v FROM t WHERE k = 3)").await;
    assert_eq!(render(&next(&mut sub).await.unwrap())[0][1..], ["insert", "n"]);
    ok(&mut s, "UPDATE t SET v = 'm' WHERE k = 3").await;
    let change = render(&next(&mut sub).await.unwrap());
    assert_eq!(
        (change[0][1..].to_vec(), change[1][1..].to_vec()),
        (vec!["delete".into(), "n".into()], vec!["insert".to_string(), "m".into()])
    );
    drop(sub);
    // COPY sends the same.
    let mut sub = subscribe(&mut other, "COPY (SUBSCRIBE d WITH (progress)) TO STDOUT").await;
    assert_eq!(render(&next(&mut sub).await.unwrap())[0][1], "progress");
    drop(sub);
    ok(&mut s, "CREATE SOURCE src (n bigint) WITH (connector = 'datagen', \"fields.n.kind\" = 'sequence', \"fields.n.start\" = 1, \"fields.n.end\" = 3)").await;
    for (text, state, position) in [
        ("SUBSCRIBE (SELECT count(*) FROM m)", "0A000", 11),
        ("SUBSCRIBE (SELECT g, sum(k) FROM m GROUP BY g)", "0A000", 11),
        ("SUBSCRIBE (SELECT DISTINCT g FROM m)", "0A000", 11),
        ("SUBSCRIBE (SELECT * FROM m LIMIT 1)", "0A000", 11),
        ("SUBSCRIBE (SELECT k FROM m ORDER BY k)", "0A000", 11),
        ("SUBSCRIBE (SELECT m.k FROM m JOIN d ON m.g = d.g)", "0A000", 11),
        ("SUBSCRIBE (SELECT k FROM m WHERE g IN (SELECT g FROM d))", "0A000", 11),
        ("SUBSCRIBE (SELECT k FROM m UNION ALL SELECT g FROM m)", "0A000", 11),
        ("SUBSCRIBE (SELECT k, row_number() OVER (ORDER BY k) FROM m)", "0A000", 11),
        ("SUBSCRIBE (SELECT 1)", "0A000", 11),
        ("SUBSCRIBE (SELECT random() FROM m)", "0A000", 11),
        ("SUBSCRIBE (SELECT nothing FROM m)", "42703", 19),
        ("SUBSCRIBE nothing", "42P01", 11),
        ("SUBSCRIBE TO public.nothing", "42P01", 14),
        ("SUBSCRIBE src", "0A000", 11),
    ] {
        let e = try_subscribe(&mut other, text).await.err().unwrap_or_else(|| panic!("{text} is accepted"));
        assert_eq!((e.state().code(), e.position()), (state, Some(position)), "{text}: {e:?}");
        assert!(state != "0A000" || e.hint().is_some(), "{text}");
    }
    for text in ["SUBSCRIBE (SELECT now() FROM m)", "SUBSCRIBE (SELECT relname FROM pg_class)"] {
        assert!(try_subscribe(&mut other, text).await.is_err(), "{text}");
    }
    instance.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_about_what_is_committed() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 1, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY)").await;
    ok(&mut s, "BEGIN; INSERT INTO t VALUES (1)").await;
    assert_eq!(state_of(&mut s, "SUBSCRIBE t").await, "25001");
    assert_eq!(state_of(&mut s, "SUBSCRIBE t").await, "25P02");
    ok(&mut s, "ROLLBACK; BEGIN; CREATE TABLE mine (k int)").await;
    assert_eq!(state_of(&mut s, "SUBSCRIBE mine").await, "25001");
    ok(&mut s, "ROLLBACK").await;
    // The session's own writes are part of its snapshot, at once.
    for k in 0..50 {
        ok(&mut s, &format!("INSERT INTO t VALUES ({k})")).await;
        let mut sub = subscribe(&mut s, "SUBSCRIBE t").await;
        assert_eq!(next(&mut sub).await.unwrap().num_rows(), k + 1);
    }
    // A commit that is refused leaves no change behind.
    let mut sub = subscribe(&mut s, "SUBSCRIBE t WITH (snapshot = false)").await;
    assert_eq!(state_of(&mut s, "INSERT INTO t VALUES (1000), (1)").await, "23505");
    ok(&mut s, "TRUNCATE t").await;
    let gone = next(&mut sub).await.unwrap();
    assert_eq!(gone.num_rows(), 50);
    assert!(render(&gone).iter().all(|row| row[1] == "delete"));
    drop(sub);
    let mut open = Vec::new();
    for _ in 0..SUBSCRIPTIONS_MAX {
        open.push(subscribe(&mut s, "SUBSCRIBE t").await);
    }
    assert_eq!(state_of(&mut s, "SUBSCRIBE t").await, "53400");
    open.pop();
    open.push(subscribe(&mut s, "SUBSCRIBE t").await);
    drop(open);
    assert!(rows(&mut s, "SHOW SUBSCRIPTIONS").await.is_empty());
    instance.close().await;
}

/// One change of a large view costs its readers that change.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_large_view_is_found_without_looking_at_the_view() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    ok(&mut s, "CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    ok(&mut s, "INSERT INTO t SELECT x::int, 1 FROM generate_series(1, 200000) AS x").await;
    ok(&mut s, "CREATE MATERIALIZED VIEW m AS SELECT k, v FROM t").await;
    let mut other = instance.session();
    let mut sub = subscribe(&mut other, "SUBSCRIBE m WITH (snapshot = false)").await;
    let store = instance.engine.worker.shared().unwrap().stores.get(instance.oid("m")).unwrap();
    ok(&mut s, "UPDATE t SET v = 2 WHERE k = 777").await;
    flush(&mut s).await;
    let touched = store.rows_touched();
    assert_eq!(next(&mut sub).await.unwrap().num_rows(), 2);
    assert_eq!((store.rows_touched(), store.changes().rows_read()), (touched, 2));
    instance.close().await;
}
