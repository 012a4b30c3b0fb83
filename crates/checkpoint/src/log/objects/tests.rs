use std::sync::Condvar;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::door::{Answer, Failure, NoRest, Store, TRIES_MAX};
use crate::faulty::{Fault, FaultyStore, MemoryStore, storm};
use crate::log::Log;

/// A door as which no other process writes.
fn door(store: Arc<dyn Store>, generation: u64) -> Door {
    Door::new(store, Arc::new(NoRest), 1000 + generation).of_generation(Generation(generation))
}

fn open(store: &Arc<MemoryStore>, generation: u64) -> Log {
    try_open(store.clone(), generation).unwrap().0
}

/// A log, and what is in it.
fn try_open(store: Arc<dyn Store>, generation: u64) -> Result<(Log, Vec<String>)> {
    let mut seen = Vec::new();
    let log = Log::open_in_store(&door(store, generation), &format!("writer {generation}"), |record| {
        seen.push(String::from_utf8_lossy(record).into_owned());
        Ok(())
    })?;
    Ok((log, seen))
}

/// What the next generation finds.
fn content(store: &Arc<MemoryStore>, generation: u64) -> Vec<String> {
    try_open(store.clone(), generation).unwrap().1
}

fn write(log: &Log, record: &str) -> Result<()> {
    log.append(&[record.as_bytes()])?;
    log.sync().map(drop)
}

/// The same content in other objects.
fn rewrite(log: &Log) -> Result<()> {
    let until = log.end();
    let mut rewrite = log.begin_rewrite()?;
    for record in log.records(until)? {
        rewrite.append(&record?)?;
    }
    rewrite.sync()?;
    rewrite.take_place(log, until)
}

fn tidy(log: &Log) -> Result<()> {
    while log.tidy()? {}
    Ok(())
}

fn names(store: &MemoryStore, folder: &str) -> Vec<String> {
    store.list(folder).unwrap().into_iter().map(|listed| listed.name).collect()
}

#[test]
fn what_was_synced_is_read_back_in_order_and_the_rest_is_gone() {
    let store = MemoryStore::new();
    let (log, seen) = try_open(store.clone(), 1).unwrap();
    assert!(seen.is_empty() && log.is_empty());
    log.append(&[b"fir", b"st"]).unwrap();
    let until = log.append(&[b"second"]).unwrap();
    assert_eq!(log.sync().unwrap(), until);
    // Nothing to do makes no object.
    log.sync().unwrap();
    assert_eq!(names(&store, LOG), ["log/0000000001", "log/0000000002"]);
    write(&log, "third").unwrap();
    log.append(&[b"never synced"]).unwrap();
    assert_eq!(log.len(), 4 * 4 + 5 + 6 + 5 + 12);
    let records: Vec<_> = log.records(log.end()).unwrap().map(|r| r.unwrap()).collect();
    assert_eq!(records, [&b"first"[..], b"second", b"third", b"never synced"].map(<[u8]>::to_vec));
    assert_eq!(log.records(until).unwrap().count(), 2);
    assert_eq!(content(&store, 2), ["first", "second", "third"]);
    assert_eq!(log.append(&[]).unwrap_err().state(), SqlState::InternalError);
}

#[test]
fn one_sync_stores_what_everybody_has_appended() {
    let store = MemoryStore::new();
    let log = open(&store, 1);
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let log = &log;
            scope.spawn(move || (0..50).for_each(|n| write(log, &format!("{writer}/{n}")).unwrap()));
        }
    });
    let seen = content(&store, 2);
    assert_eq!(seen.len(), 400);
    for writer in 0..8 {
        let of = seen.iter().filter(|r| r.starts_with(&format!("{writer}/"))).cloned().collect::<Vec<_>>();
        assert_eq!(of, (0..50).map(|n| format!("{writer}/{n}")).collect::<Vec<_>>());
    }
}

#[test]
fn who_was_taken_over_from_acknowledges_nothing_and_is_told_once_by_whom() {
    let store = MemoryStore::new();
    let first = open(&store, 1);
    let told: Arc<Mutex<Vec<Error>>> = Arc::default();
    let tell = Arc::clone(&told);
    first.on_failure(Box::new(move |error| lock(&tell).push(error.clone())));
    write(&first, "kept").unwrap();
    first.append(&[b"too late"]).unwrap();
    let (second, seen) = try_open(store.clone(), 2).unwrap();
    assert_eq!(seen, ["kept"]);
    let refused = first.sync().unwrap_err();
    assert_eq!(refused.state(), SqlState::AdminShutdown);
    assert!(refused.detail().unwrap().contains("writer 2"), "{refused}");
    for again in [first.sync().map(drop), first.append(&[b"x"]).map(drop), first.begin_rewrite().map(drop)] {
        assert_eq!(again.unwrap_err(), refused);
    }
    assert!(first.tidy().is_err());
    assert_eq!(*lock(&told), [refused]);
    write(&second, "second").unwrap();
    assert_eq!(content(&store, 3), ["kept", "second"]);
    // An older generation does not come back, nor does the same one.
    for generation in [1, 2, 3] {
        assert_eq!(try_open(store.clone(), generation).err().unwrap().state(), SqlState::ObjectInUse);
    }
}

#[test]
fn who_has_lost_the_store_of_checkpoints_has_lost_the_log_in_it() {
    let store = MemoryStore::new();
    let log = open(&store, 1);
    log.append(&[b"not acknowledged"]).unwrap();
    let told = log.lose_store(Error::new(SqlState::ObjectInUse, "taken over").with_detail("Generation 2."));
    assert_eq!(told.state(), SqlState::AdminShutdown);
    let refused = log.sync().unwrap_err();
    assert_eq!((refused.state(), refused.detail()), (SqlState::AdminShutdown, Some("Generation 2.")));
    let folder = tempfile::tempdir().unwrap();
    let own = Log::open(folder.path(), |_| Ok(())).unwrap();
    assert_eq!(own.lose_store(refused.clone()), refused);
    write(&own, "a log of its own").unwrap();
}

#[test]
fn a_store_that_is_away_is_waited_for_and_that_is_said() {
    let memory = MemoryStore::new();
    let faulty = FaultyStore::scripted(memory.clone(), []);
    let (log, _) = try_open(faulty.clone(), 1).unwrap();
    let told: Arc<Mutex<Vec<Option<SqlState>>>> = Arc::default();
    let tell = Arc::clone(&told);
    log.on_stall(Box::new(move |cause| lock(&tell).push(cause.map(Error::state))));
    for fault in [Fault::Status(503), Fault::AnswerLost, Fault::Dropped] {
        faulty.script(vec![fault; 2 * TRIES_MAX as usize + 3]);
        write(&log, &format!("{fault:?}")).unwrap();
    }
    faulty.script([Fault::Full]);
    write(&log, "full").unwrap();
    let io = Some(SqlState::IoError);
    assert_eq!(*lock(&told), [io, None, io, None, io, None, Some(SqlState::DiskFull), None]);
    // A server that stops waits no longer; then nobody knows, and nothing is acknowledged any more.
    log.hurry();
    faulty.script([Fault::AnswerLost; TRIES_MAX as usize]);
    assert_eq!(write(&log, "who knows").unwrap_err().state(), SqlState::IoError);
    assert_eq!(log.check().unwrap_err().state(), SqlState::IoError);
    assert_eq!(content(&memory, 2), ["Status(503)", "AnswerLost", "Dropped", "full", "who knows"]);
}

#[test]
fn what_waits_is_bounded_and_large_records_go_alone() {
    let memory = MemoryStore::new();
    let log = open(&memory, 1);
    let large = vec![b'x'; ENTRY_BYTES + 1];
    log.append(&[b"small"]).unwrap();
    log.append(&[&large]).unwrap();
    log.append(&[b"last"]).unwrap();
    log.sync().unwrap();
    // The claim, and one entry for each: they do not fit together.
    assert_eq!(names(&memory, LOG).len(), 4);
    for _ in 0..7 {
        log.append(&[&large]).unwrap();
    }
    let refused = log.append(&[&large]).unwrap_err();
    assert!(refused.state() == SqlState::IoError && refused.may_pass(), "{refused}");
    log.sync().unwrap();
    log.append(&[b"again"]).unwrap();
}

#[test]
fn a_rewritten_log_holds_what_it_was_given_and_what_came_meanwhile() {
    let store = MemoryStore::new();
    let log = open(&store, 1);
    for n in 0..10 {
        log.append(&[format!("old {n}").as_bytes()]).unwrap();
        if n % 2 == 0 {
            log.sync().unwrap();
        }
    }
    // In the middle of what will be one entry, and not stored yet.
    let until = log.end();
    log.append(&[b"meanwhile"]).unwrap();
    let mut rewrite = log.begin_rewrite().unwrap();
    assert_eq!(log.records(until).unwrap().count(), 10);
    rewrite.append(b"new").unwrap();
    let from = rewrite.copy(&log, until, 1).unwrap();
    assert_eq!(log.bytes_after(from), 0);
    log.append(&[b"later"]).unwrap();
    rewrite.sync().unwrap();
    rewrite.take_place(&log, from).unwrap();
    assert!(log.records(until).is_err() && log.begin_rewrite().unwrap().take_place(&log, until).is_err());
    write(&log, "newer").unwrap();
    let expected = ["new", "meanwhile", "later", "newer"];
    let kept: Vec<_> = log.records(log.end()).unwrap().map(|r| String::from_utf8(r.unwrap()).unwrap()).collect();
    assert_eq!(kept, expected);
    assert_eq!(content(&store, 2), expected);
    let log = open(&store, 3);
    tidy(&log).unwrap();
    // Three claims, the part, what came meanwhile with later and newer, the base.
    assert_eq!((names(&store, LOG).len(), names(&store, LOG_PARTS).len()), (6, 1));
    assert_eq!(content(&store, 4), expected);
}

#[test]
fn a_rewrite_that_is_given_up_leaves_the_log_as_it_was() {
    let store = MemoryStore::new();
    let log = open(&store, 1);
    write(&log, "old").unwrap();
    let mut rewrite = log.begin_rewrite().unwrap();
    rewrite.append(b"new").unwrap();
    rewrite.sync().unwrap();
    assert_eq!(names(&store, LOG_PARTS).len(), 1);
    drop(rewrite);
    assert_eq!(names(&store, LOG_PARTS), [""; 0]);
    assert_eq!(content(&store, 2), ["old"]);
}

#[test]
fn objects_stay_few_however_many_syncs_there_are() {
    let store = MemoryStore::new();
    let log = open(&store, 1);
    let mut expected = Vec::new();
    for n in 0..500 {
        expected.push(format!("record number {n}"));
        write(&log, &expected[n]).unwrap();
        tidy(&log).unwrap();
        let objects = store.names().len();
        assert!(objects < 20, "{objects} objects after {n} syncs: {:?}", store.names());
    }
    let kept: Vec<_> = log.records(log.end()).unwrap().map(|r| String::from_utf8(r.unwrap()).unwrap()).collect();
    assert_eq!(kept, expected);
    assert_eq!(content(&store, 2), expected);
    // A position from before is in the middle of a part.
    let log = open(&store, 3);
    for n in 0..2 {
        write(&log, &format!("new {n}")).unwrap();
    }
    let until = log.end();
    let mut rewrite = log.begin_rewrite().unwrap();
    rewrite.append(b"all that was").unwrap();
    for n in 2..9 {
        write(&log, &format!("new {n}")).unwrap();
    }
    tidy(&log).unwrap();
    rewrite.take_place(&log, until).unwrap();
    tidy(&log).unwrap();
    let expected: Vec<String> = ["all that was".into()].into_iter().chain((2..9).map(|n| format!("new {n}"))).collect();
    assert_eq!(content(&store, 4), expected);
}

#[test]
fn what_somebody_reads_is_not_removed_meanwhile() {
    let store = MemoryStore::new();
    let log = open(&store, 1);
    for n in 0..6 {
        write(&log, &format!("{n}")).unwrap();
    }
    let mut records = log.records(log.end()).unwrap();
    assert_eq!(records.next().unwrap().unwrap(), b"0");
    rewrite(&log).unwrap();
    tidy(&log).unwrap();
    assert_eq!(records.by_ref().collect::<Result<Vec<_>>>().unwrap().len(), 5);
    drop(records);
    tidy(&log).unwrap();
    assert_eq!(names(&store, LOG), ["log/0000000001", "log/0000000008"]);
}

#[test]
fn an_object_that_is_missing_or_damaged_is_named_and_nothing_is_dropped() {
    let fresh = || {
        let store = MemoryStore::new();
        let log = open(&store, 1);
        for n in 0..6 {
            write(&log, &format!("{n}")).unwrap();
        }
        tidy(&log).unwrap();
        write(&log, "last").unwrap();
        store
    };
    let needed: Vec<String> = {
        let store = fresh();
        // The claim of before the base is needed by nobody who reads.
        store.names().into_iter().filter(|name| name != "log/0000000001").collect()
    };
    assert!(needed.len() >= 3 && needed.iter().any(|name| name.starts_with(LOG_PARTS)), "{needed:?}");
    let newest = needed.iter().filter(|name| name.starts_with("log/")).max().unwrap().clone();
    for name in needed {
        let store = fresh();
        let bytes = store.raw(&name).unwrap();
        let mut flipped = bytes.to_vec();
        flipped[bytes.len() / 2] ^= 1;
        store.overwrite(&name, flipped.into());
        let refused = try_open(store.clone(), 2).err().unwrap();
        assert!(refused.state() == SqlState::DataCorrupted && refused.message().contains(&name), "{name}: {refused}");
        store.overwrite(&name, bytes);
        assert_eq!(content(&store, 3).len(), 7, "{name}");
        // The newest one is no proof of itself: without it the log ends before.
        if name != newest {
            let store = fresh();
            store.delete(&name).unwrap();
            let refused = try_open(store, 2).err().unwrap();
            assert!(refused.message().contains(&name) && refused.message().contains("missing"), "{name}: {refused}");
        }
    }
    let store = fresh();
    names(&store, LOG).iter().for_each(|name| store.delete(name).unwrap());
    assert_eq!(try_open(store, 2).err().unwrap().state(), SqlState::DataCorrupted);
}

#[test]
fn a_look_changes_nothing() {
    let store = MemoryStore::new();
    let looked = |store: &Arc<MemoryStore>| {
        let mut seen = 0;
        let count = |_: &[u8]| {
            seen += 1;
            Ok(())
        };
        let found = Log::look_in_store(&door(store.clone(), 0), count).unwrap();
        (found, seen)
    };
    assert_eq!(looked(&store), (None, 0));
    let log = open(&store, 1);
    for n in 0..7 {
        write(&log, &format!("{n}")).unwrap();
    }
    tidy(&log).unwrap();
    let before = store.names();
    let (found, seen) = looked(&store);
    assert_eq!((found.unwrap().1, seen), (log.len(), 7));
    assert_eq!(store.names(), before);
    write(&log, "still the writer").unwrap();
}

/// Lets a writer sleep at one of its requests, before or after this takes effect.
struct Sleeper {
    inner: Arc<MemoryStore>,
    /// The number of the request at which it sleeps.
    at: usize,
    after: bool,
    requests: AtomicUsize,
    sleep: Box<dyn Fn() + Send + Sync>,
}

impl Sleeper {
    fn pass<T>(&self, request: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let sleeps = self.requests.fetch_add(1, Ordering::SeqCst) + 1 == self.at;
        if sleeps && !self.after {
            (self.sleep)();
        }
        let answer = request();
        if sleeps && self.after {
            (self.sleep)();
            // It has slept too long for the answer.
            return Err(Failure::Transient("timed out".into()));
        }
        answer
    }
}

impl Store for Sleeper {
    fn create(&self, name: &str, bytes: &Bytes) -> Result<Answer, Failure> {
        self.pass(|| self.inner.create(name, bytes))
    }
    fn read(&self, name: &str) -> Result<Option<Bytes>, Failure> {
        self.pass(|| self.inner.read(name))
    }
    fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
        self.pass(|| self.inner.list(folder))
    }
    fn delete(&self, name: &str) -> Result<(), Failure> {
        self.pass(|| self.inner.delete(name))
    }
    fn place(&self) -> String {
        "memory".into()
    }
}

/// A writer's whole life: it takes over, writes, packs, writes anew, removes. Gives what was acknowledged.
fn life(store: Arc<dyn Store>, generation: u64) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let lives = (|| -> Result<()> {
        let (log, _) = try_open(store, generation)?;
        let mut put = |record: &str| -> Result<()> {
            let record = format!("{generation}{record}");
            write(&log, &record)?;
            acknowledged.push(record);
            Ok(())
        };
        put("a")?;
        put("b")?;
        tidy(&log)?;
        rewrite(&log)?;
        put("c")?;
        tidy(&log)?;
        put("d")?;
        put("e")?;
        put("f")?;
        tidy(&log)?;
        put("g")
    })();
    if let Err(error) = lives {
        assert!(
            matches!(error.state(), SqlState::AdminShutdown | SqlState::ObjectInUse | SqlState::DataCorrupted),
            "{error}"
        );
        // Only who reads what its successor has removed is told of damage.
        assert!(error.state() != SqlState::DataCorrupted || error.message().contains("missing"), "{error}");
    }
    acknowledged
}

/// Whoever comes next finds everything that was acknowledged, once, and each writer's records in their order.
fn check(store: &Arc<MemoryStore>, acknowledged: &[Vec<String>], what: &str) {
    let (log, seen) = try_open(store.clone(), 99).unwrap_or_else(|e| panic!("{what}: {e}"));
    for writer in acknowledged {
        let mut left = seen.iter();
        for record in writer {
            assert!(left.any(|r| r == record), "{what}: {record} was acknowledged and is not in its place in {seen:?}");
        }
    }
    let once: BTreeSet<&String> = seen.iter().collect();
    assert_eq!(once.len(), seen.len(), "{what}: twice in {seen:?}");
    // Nothing is left behind but claims and what is needed.
    tidy(&log).unwrap();
    drop(log);
    let (log, again) = try_open(store.clone(), 100).unwrap();
    assert_eq!(again, seen, "{what}");
    assert!(store.names().len() < 16, "{what}: {:?}", store.names());
    drop(log);
}

fn requests_of(life_of: impl Fn(Arc<dyn Store>)) -> usize {
    let counted = Arc::new(Sleeper {
        inner: MemoryStore::new(),
        at: usize::MAX,
        after: false,
        requests: AtomicUsize::new(0),
        sleep: Box::new(|| {}),
    });
    life_of(counted.clone());
    counted.requests.load(Ordering::SeqCst)
}

/// A writer dies at each of its requests, before or after this takes effect.
#[test]
fn a_crash_at_any_request_loses_nothing_that_was_acknowledged() {
    /// From one request on nothing gets through.
    struct Dies {
        inner: Arc<MemoryStore>,
        left: AtomicUsize,
        after: bool,
    }
    impl Dies {
        fn pass<T>(&self, request: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
            let dead = || Failure::Lasting(Error::new(SqlState::AdminShutdown, "dead"));
            match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
                Ok(1) if self.after => request().and(Err(dead())),
                Ok(0) | Err(_) => Err(dead()),
                Ok(1) => Err(dead()),
                Ok(_) => request(),
            }
        }
    }
    impl Store for Dies {
        fn create(&self, name: &str, bytes: &Bytes) -> Result<Answer, Failure> {
            self.pass(|| self.inner.create(name, bytes))
        }
        fn read(&self, name: &str) -> Result<Option<Bytes>, Failure> {
            self.pass(|| self.inner.read(name))
        }
        fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
            self.pass(|| self.inner.list(folder))
        }
        fn delete(&self, name: &str) -> Result<(), Failure> {
            self.pass(|| self.inner.delete(name))
        }
        fn place(&self) -> String {
            "memory".into()
        }
    }
    let requests = requests_of(|store| drop(life(store, 1)));
    assert!(requests > 30, "{requests}");
    let mut lost = 0;
    for at in 1..=requests {
        for after in [false, true] {
            let store = MemoryStore::new();
            let dies = Dies { inner: store.clone(), left: AtomicUsize::new(at), after };
            let first = life(Arc::new(dies), 1);
            lost += 7 - first.len();
            let second = life(store.clone(), 2);
            assert_eq!(second.len(), 7);
            check(&store, &[first, second], &format!("request {at}, after: {after}"));
        }
    }
    assert!(lost > 100);
}

/// One writer sleeps at each of its requests while the next one takes over, which sleeps itself while the first goes on.
#[test]
fn two_writers_in_all_orders_of_one_sleep_each_lose_nothing_that_was_acknowledged() {
    /// Where the second writer is.
    #[derive(Default)]
    struct Meeting {
        second_waits: Mutex<bool>,
        first_is_done: Mutex<bool>,
        changed: Condvar,
    }
    impl Meeting {
        fn set(&self, flag: &Mutex<bool>) {
            *lock(flag) = true;
            self.changed.notify_all();
        }
        fn wait(&self, flag: &Mutex<bool>) {
            let mut set = lock(flag);
            while !*set {
                (set, _) = self.changed.wait_timeout(set, Duration::from_millis(1)).unwrap();
            }
        }
    }
    let requests = requests_of(|store| drop(life(store, 1)));
    let (mut shut_out, mut runs) = (0, 0);
    for first_at in 1..=requests {
        // All of them for the second, thinned out so that each of the first meets other ones's.
        let seconds = (1..=requests + 20).filter(|second_at| (second_at + first_at) % 3 == 0);
        for second_at in seconds.chain([usize::MAX]) {
            for after in [[false, false], [false, true], [true, false], [true, true]] {
                let store = MemoryStore::new();
                let meeting: Arc<Meeting> = Arc::default();
                let second: Arc<Mutex<Option<std::thread::JoinHandle<Vec<String>>>>> = Arc::default();
                let second_store = {
                    let meeting = Arc::clone(&meeting);
                    Arc::new(Sleeper {
                        inner: store.clone(),
                        at: second_at,
                        after: after[1],
                        requests: AtomicUsize::new(0),
                        sleep: Box::new(move || {
                            meeting.set(&meeting.second_waits);
                            meeting.wait(&meeting.first_is_done);
                        }),
                    })
                };
                let first_store = {
                    let (meeting, second) = (Arc::clone(&meeting), Arc::clone(&second));
                    Arc::new(Sleeper {
                        inner: store.clone(),
                        at: first_at,
                        after: after[0],
                        requests: AtomicUsize::new(0),
                        sleep: Box::new(move || {
                            let (meeting, store) = (Arc::clone(&meeting), second_store.clone());
                            let met = Arc::clone(&meeting);
                            *lock(&second) = Some(std::thread::spawn(move || {
                                let done = life(store, 2);
                                met.set(&met.second_waits);
                                done
                            }));
                            meeting.wait(&meeting.second_waits);
                        }),
                    })
                };
                let first = life(first_store, 1);
                meeting.set(&meeting.first_is_done);
                let second = lock(&second).take().unwrap().join().unwrap();
                runs += 1;
                shut_out += usize::from(first.len() < 7);
                let what = format!("first sleeps at {first_at}, second at {second_at}, after: {after:?}");
                assert!(second_at != usize::MAX || second.len() == 7, "{what}: {second:?}");
                check(&store, &[first, second], &what);
            }
        }
    }
    println!("{runs} orders, in {shut_out} of them the first writer was shut out");
    assert!(runs > 1000 && shut_out > runs / 2);
}

/// The first has no answer to a create that has taken effect, and its successor has removed what was created.
#[test]
fn an_entry_that_is_created_again_after_it_was_removed_was_read_by_the_successor() {
    let store = MemoryStore::new();
    let requests = requests_of(|store| {
        let (log, _) = try_open(store, 1).unwrap();
        write(&log, "a").unwrap();
    });
    let sleeps = {
        let store = store.clone();
        Sleeper {
            inner: store.clone(),
            at: requests,
            after: true,
            requests: AtomicUsize::new(0),
            sleep: Box::new(move || {
                let (log, seen) = try_open(store.clone(), 2).unwrap();
                assert_eq!(seen, ["a"]);
                rewrite(&log).unwrap();
                tidy(&log).unwrap();
                assert!(store.raw("log/0000000002").is_none());
                write(&log, "b").unwrap();
            }),
        }
    };
    let (log, _) = try_open(Arc::new(sleeps), 1).unwrap();
    write(&log, "a").unwrap();
    assert!(store.raw("log/0000000002").is_some());
    assert_eq!(write(&log, "c").unwrap_err().state(), SqlState::AdminShutdown);
    let log = open(&store, 3);
    tidy(&log).unwrap();
    assert!(store.raw("log/0000000002").is_none());
    assert_eq!(content(&store, 4), ["a", "b"]);
}

#[test]
fn writers_that_take_over_from_each_other_in_a_storm_lose_nothing() {
    for seed in 0..150u64 {
        let store = MemoryStore::new();
        let mut rng = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |n: u64| {
            rng ^= rng << 13;
            rng ^= rng >> 7;
            rng ^= rng << 17;
            rng % n
        };
        let mut writers: Vec<(Log, Vec<String>)> = Vec::new();
        let mut generation = 0;
        for step in 0..120 {
            if writers.is_empty() || below(20) == 0 {
                generation += 1;
                let faulty = FaultyStore::seeded(store.clone(), Arc::new(NoRest), storm(), seed * 1000 + generation);
                if let Ok((log, _)) = try_open(faulty, generation) {
                    writers.push((log, Vec::new()));
                }
                continue;
            }
            // The older ones do not know yet.
            let chosen = writers.len() - 1 - below(writers.len().min(3) as u64) as usize;
            let (log, acknowledged) = &mut writers[chosen];
            match below(6) {
                0 => drop(rewrite(log)),
                1 | 2 => drop(log.tidy()),
                _ => {
                    let record = format!("{chosen}/{step}");
                    if write(log, &record).is_ok() {
                        acknowledged.push(record);
                    }
                }
            }
        }
        let acknowledged: Vec<Vec<String>> = writers.into_iter().map(|(_, acknowledged)| acknowledged).collect();
        let (_, seen) = try_open(store.clone(), 1000).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        for record in acknowledged.iter().flatten() {
            assert_eq!(seen.iter().filter(|r| *r == record).count(), 1, "seed {seed}: {record} in {seen:?}");
        }
    }
}

/// Lets something happen before an object is read, after which it does not list for a while.
struct Between {
    objects: Arc<MemoryStore>,
    read: String,
    happens: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    away: AtomicUsize,
}

impl Store for Between {
    fn create(&self, name: &str, bytes: &Bytes) -> Result<Answer, Failure> {
        self.objects.create(name, bytes)
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, Failure> {
        if name == self.read
            && let Some(happens) = lock(&self.happens).take()
        {
            happens();
        }
        self.objects.read(name)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
        let has_happened = lock(&self.happens).is_none();
        if has_happened && self.away.load(Ordering::Relaxed) > 0 {
            self.away.fetch_sub(1, Ordering::Relaxed);
            return Err(Failure::Transient("the store is away".into()));
        }
        self.objects.list(folder)
    }

    fn delete(&self, name: &str) -> Result<(), Failure> {
        self.objects.delete(name)
    }

    fn place(&self) -> String {
        self.objects.place()
    }
}

#[test]
fn who_is_taken_over_from_while_it_reads_does_not_call_the_log_damaged() {
    for away in [0, TRIES_MAX as usize] {
        let objects = MemoryStore::new();
        let log = open(&objects, 1);
        (0..3).for_each(|n| write(&log, &format!("record {n}")).unwrap());
        let successor = Arc::clone(&objects);
        let take_over = move || {
            let log = open(&successor, 3);
            rewrite(&log).unwrap();
            tidy(&log).unwrap();
        };
        let between = Between {
            objects: Arc::clone(&objects),
            read: entry_name(3),
            happens: Mutex::new(Some(Box::new(take_over))),
            away: AtomicUsize::new(away),
        };
        let refused = try_open(Arc::new(between), 2).err().unwrap();
        // Where the store does not say what has become of the entry, nobody knows yet.
        let expected = if away == 0 { SqlState::ObjectInUse } else { SqlState::IoError };
        assert_eq!(refused.state(), expected, "{refused}");
        // Who had it open before is told the same.
        let read = log.records(log.end()).unwrap().find_map(Result::err).unwrap();
        assert_eq!(read.state(), SqlState::ObjectInUse, "{read}");
    }
}
