//! Who loads the engine and checks what it reads. Each is a future that is polled when its turn is drawn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coord::Session;
use coord::clock::Clock;
use flow::{Error, SqlState};
use parking_lot::Mutex;

use crate::rng::Rng;
use crate::sql::{has_moved, log_has_failed, passes, run, told};
use crate::world::{ACCOUNTS, GROUPS, Kind, Known, MADE, Table};

/// What the clients of one incarnation share.
#[derive(Clone)]
pub struct Scene {
    pub known: Arc<Mutex<Known>>,
    pub views: Arc<Vec<(&'static str, &'static str)>>,
    pub makes: bool,
    /// Clients begin nothing new.
    pub stop: Arc<AtomicBool>,
    /// An object is damaged: jobs may be stopped for it.
    pub damaged: bool,
    /// The disk fails at times, and then the log does for good.
    pub trouble: bool,
    /// Workers and coordinators come and go: what needs them may fail.
    pub moves: bool,
    /// Which engine of a cluster it is.
    pub reign: u64,
}

impl Scene {
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub fn violated(&self, what: impl Into<String>) {
        self.known.lock().violated(what);
    }

    /// Whether a failure of a read is no violation.
    pub fn excused(&self, error: &Error) -> bool {
        let damage = matches!(error.state(), SqlState::DataCorrupted | SqlState::ObjectNotInPrerequisiteState);
        (self.damaged && damage) || (self.trouble && log_has_failed(error)) || (self.moves && has_moved(error))
    }
}

/// Leaves it to the scheduler when to go on.
pub async fn pause(polls: usize) {
    for _ in 0..polls {
        let mut told = false;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut told, true) {
                return std::task::Poll::Ready(());
            }
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
    }
}

/// Makes tables, sources, views and sinks, from where an earlier life has come to.
pub async fn set_up(mut session: Session, scene: Scene, statements: Arc<Vec<String>>, clock: Arc<Clock>) {
    let from = scene.known.lock().set_up;
    for (n, statement) in statements.iter().enumerate().skip(from) {
        let mut tries = 0;
        loop {
            match run(&mut session, statement).await {
                Ok(_) => break,
                // The answer of the first try was lost with the process.
                Err(e)
                    if (n == from || tries > 0)
                        && matches!(e.state(), SqlState::DuplicateTable | SqlState::DuplicateObject) =>
                {
                    break;
                }
                // After a failed sync the next life goes on.
                Err(e) if clock.durability().failed.is_some() || told(&e).contains("failed sync") => return,
                // A short write; a start on a disk that is full.
                Err(e) if e.may_pass() && tries < 20 => {
                    tries += 1;
                    pause(50).await;
                }
                Err(e) if scene.moves && has_moved(&e) => return,
                Err(e) => return scene.violated(format!("{statement}: {}", told(&e))),
            }
        }
        let mut known = scene.known.lock();
        // A later engine may have come further.
        known.set_up = known.set_up.max(n + 1);
    }
}

/// Every view is its query, right after a start.
pub async fn compare_all(mut session: Session, scene: Scene) {
    for (view, query) in scene.views.iter() {
        compare(&mut session, &scene, view, query).await;
    }
}

/// What a crash has left of the tables is what was acknowledged, and perhaps what was on its way. Returns whether it could be read;
/// an engine that another has followed may show what was true before.
pub async fn look_back(session: &mut Session, scene: &Scene) -> bool {
    if !scene.known.lock().follow(scene.reign) {
        return false;
    }
    let mut seen = true;
    match run(session, "SELECT k, g, v FROM t").await {
        Ok(rows) => {
            let found = table(&rows);
            let mut known = scene.known.lock();
            if known.reign != scene.reign {
                return false;
            }
            let maybe = known.maybe.take();
            let took_effect = maybe.as_ref() == Some(&found);
            if found != known.table && maybe.as_ref() != Some(&found) {
                let what = format!("t is {found:?}\n  acknowledged {:?}\n  or then {maybe:?}", known.table);
                known.violated(what);
            }
            known.table = found;
            known.settle(Kind::Table, took_effect);
        }
        Err(e) if scene.excused(&e) => seen = false,
        Err(e) => scene.violated(format!("t cannot be read: {}", told(&e))),
    }
    match number(session, "SELECT count(*) FROM transfers").await {
        Ok(found) => {
            let mut known = scene.known.lock();
            if known.reign != scene.reign {
                return false;
            }
            let most = known.transfers + usize::from(known.transfer_maybe);
            if !(known.transfers..=most).contains(&found) {
                let what = format!("{found} transfers, {} acknowledged", known.transfers);
                known.violated(what);
            }
            let took_effect = found > known.transfers;
            known.transfers = found;
            known.transfer_maybe = false;
            known.settle(Kind::Transfer, took_effect);
        }
        Err(e) if scene.excused(&e) => seen = false,
        Err(e) => scene.violated(format!("transfers cannot be read: {}", told(&e))),
    }
    seen
}

async fn number(session: &mut Session, query: &str) -> Result<usize, Error> {
    let rows = run(session, query).await?;
    let number = rows.first().and_then(|row| row.first()?.parse().ok());
    number.ok_or_else(|| Error::internal(format!("{query} gives {rows:?}")))
}

fn table(rows: &[Vec<String>]) -> Table {
    let int = |text: &String| text.parse().unwrap_or(i64::MIN);
    rows.iter().map(|row| (int(&row[0]), (int(&row[1]), int(&row[2])))).collect()
}

/// A statement on `t`, and what it makes of the table.
fn change(table: &mut Table, rng: &mut Rng) -> String {
    let (k, g, v) = (rng.below(12) as i64, rng.below(GROUPS) as i64, rng.below(40) as i64);
    match rng.below(5) {
        0 => {
            table.remove(&k);
            format!("DELETE FROM t WHERE k = {k}")
        }
        1 => {
            table.values_mut().filter(|row| row.0 == g).for_each(|row| row.1 = v);
            format!("UPDATE t SET v = {v} WHERE g = {g}")
        }
        _ => {
            table.insert(k, (g, v));
            format!("INSERT INTO t VALUES ({k}, {g}, {v}) ON CONFLICT (k) DO UPDATE SET g = {g}, v = {v}")
        }
    }
}

/// Changes `t`, and moves money.
pub async fn writer(mut session: Session, scene: Scene, mut rng: Rng, clock: Arc<Clock>) {
    while !scene.stopped() {
        pause(rng.below(6)).await;
        let done = if rng.one_in(3) {
            transfer(&mut session, &scene, &mut rng).await
        } else {
            write(&mut session, &scene, &mut rng).await
        };
        match done {
            Ok(()) => {}
            // It is told of after the restart what became of it.
            Err(e) if passes(&e) => {
                if session.transaction_status() != coord::session::transaction::Status::Idle {
                    let _ = run(&mut session, "ROLLBACK").await;
                }
                // After a failed sync only a restart tells.
                if clock.durability().failed.is_some() || told(&e).contains("failed sync") {
                    return;
                }
                // Refused, so it has no effect.
                look_back_at_refused(&mut session, &scene).await;
            }
            Err(e) => return scene.violated(format!("a write fails: {}", told(&e))),
        }
    }
}

async fn look_back_at_refused(session: &mut Session, scene: &Scene) {
    let (rows, count) =
        (run(session, "SELECT k, g, v FROM t").await, number(session, "SELECT count(*) FROM transfers").await);
    if [rows.as_ref().err(), count.as_ref().err()].into_iter().flatten().any(|e| scene.excused(e)) {
        return;
    }
    let mut known = scene.known.lock();
    let same = rows.as_ref().is_ok_and(|rows| table(rows) == known.table);
    if !same || count.as_ref().ok() != Some(&known.transfers) {
        let what = format!("a refused write has an effect: {rows:?}, {count:?}, not {:?}", known.table);
        known.violated(what);
    }
    (known.maybe, known.transfer_maybe) = (None, false);
}

pub async fn write(session: &mut Session, scene: &Scene, rng: &mut Rng) -> Result<(), Error> {
    let mut after = scene.known.lock().table.clone();
    let several = rng.one_in(3);
    let statements: Vec<String> =
        (0..if several { 1 + rng.below(3) } else { 1 }).map(|_| change(&mut after, rng)).collect();
    {
        let mut known = scene.known.lock();
        known.maybe = Some(after.clone());
        known.begun(Kind::Table, scene.reign);
    }
    if several {
        run(session, "BEGIN").await?;
    }
    for statement in &statements {
        run(session, statement).await?;
    }
    if several {
        run(session, "COMMIT").await?;
    }
    let mut known = scene.known.lock();
    if known.acknowledged(Kind::Table, scene.reign) {
        known.table = after;
        known.maybe = None;
    }
    Ok(())
}

pub async fn transfer(session: &mut Session, scene: &Scene, rng: &mut Rng) -> Result<(), Error> {
    let id = scene.known.lock().transfers;
    // The first ones give every account a credit and a debit.
    let (from, to) = match id {
        id if id < ACCOUNTS => (id, (id + 1) % ACCOUNTS),
        _ => (rng.below(ACCOUNTS), rng.below(ACCOUNTS)),
    };
    {
        let mut known = scene.known.lock();
        known.transfer_maybe = true;
        known.begun(Kind::Transfer, scene.reign);
    }
    run(session, &format!("INSERT INTO transfers VALUES ({id}, {from}, {to}, {})", rng.below(100))).await?;
    let mut known = scene.known.lock();
    if known.acknowledged(Kind::Transfer, scene.reign) {
        known.transfers = id + 1;
        known.transfer_maybe = false;
    }
    Ok(())
}

/// Until every account has a credit and a debit. False: the engine has gone.
pub async fn enough_transfers(mut session: Session, scene: Scene, mut rng: Rng) -> bool {
    while scene.known.lock().transfers < ACCOUNTS {
        if let Err(e) = transfer(&mut session, &scene, &mut rng).await {
            if !scene.excused(&e) {
                scene.violated(format!("a transfer fails: {}", told(&e)));
            }
            return false;
        }
    }
    true
}

/// Reads the total, and compares views with their queries.
pub async fn reader(mut session: Session, scene: Scene, mut rng: Rng) {
    while !scene.stopped() {
        pause(rng.below(12)).await;
        let is_complete = {
            let known = scene.known.lock();
            known.reign == scene.reign && known.transfers >= ACCOUNTS
        };
        if is_complete {
            read_total(&mut session, &scene).await;
        }
        if rng.one_in(2) {
            let (view, query) = rng.pick(&scene.views);
            compare(&mut session, &scene, view, query).await;
        }
        scene.known.lock().reads += 1;
    }
}

async fn read_total(session: &mut Session, scene: &Scene) {
    match run(session, "SELECT total, accounts FROM total").await {
        Ok(rows) if rows == [["0".to_string(), ACCOUNTS.to_string()]] => {}
        Ok(rows) => scene.violated(format!("the total is {rows:?}")),
        Err(e) if scene.excused(&e) || e.state() == SqlState::AdminShutdown => {}
        Err(e) => scene.violated(format!("the total cannot be read: {}", told(&e))),
    }
}

/// A view and its query, at one epoch.
pub async fn compare(session: &mut Session, scene: &Scene, view: &str, query: &str) {
    let both = async {
        run(session, "BEGIN READ ONLY").await?;
        let mut found = run(session, &format!("SELECT * FROM {view}")).await?;
        let mut expected = run(session, query).await?;
        run(session, "COMMIT").await?;
        found.sort();
        expected.sort();
        Ok::<_, Error>((found, expected))
    };
    match both.await {
        Ok((found, expected)) if found == expected => {}
        Ok((found, expected)) => {
            let only = |one: &[Vec<String>], other: &[Vec<String>]| -> Vec<String> {
                one.iter().filter(|row| !other.contains(row)).map(|row| row.join("|")).take(8).collect()
            };
            let jobs = run(session, "SHOW JOBS").await;
            scene.violated(format!(
                "view {view} has {} rows, its query {}; only in the view {:?}, only in the query {:?}; {jobs:?}",
                found.len(),
                expected.len(),
                only(&found, &expected),
                only(&expected, &found)
            ));
        }
        Err(e) => {
            let _ = run(session, "ROLLBACK").await;
            if !scene.excused(&e) && e.state() != SqlState::AdminShutdown {
                scene.violated(format!("view {view} cannot be compared: {}", told(&e)));
            }
        }
    }
}

/// Asks for checkpoints.
pub async fn keeper(mut session: Session, scene: Scene, mut rng: Rng) {
    while !scene.stopped() {
        pause(10 + rng.below(60)).await;
        match run(&mut session, "CHECKPOINT").await {
            Ok(_) => scene.known.lock().checkpoints += 1,
            Err(e) if passes(&e) => {}
            Err(e) if scene.excused(&e) => return,
            Err(e) => return scene.violated(format!("CHECKPOINT fails: {}", told(&e))),
        }
    }
}

/// How much of what was sent has come to `seen`, and of what is made to `made_seen`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    pub on_time: usize,
    pub late: usize,
    pub made: usize,
}

/// When all is calm: waits until everything that was sent has come, and compares everything. False: the engine has gone.
pub async fn audit(mut session: Session, scene: Scene, sent: usize, arrived: Arc<Mutex<Arrived>>) -> bool {
    loop {
        match arrivals(&mut session, scene.makes).await {
            Ok(now) => {
                *arrived.lock() = now;
                if now.on_time + now.late == sent && (!scene.makes || now.made == MADE) {
                    break;
                }
                if now.on_time + now.late > sent {
                    scene.violated(format!("{now:?} of {sent} rows have come"));
                    return true;
                }
            }
            Err(e) if scene.excused(&e) => return false,
            Err(e) => {
                scene.violated(format!("what has come cannot be read: {}", told(&e)));
                return true;
            }
        }
        pause(20).await;
    }
    if !look_back(&mut session, &scene).await {
        return false;
    }
    for (view, query) in scene.views.iter() {
        compare(&mut session, &scene, view, query).await;
    }
    let sums = format!("{}", MADE * (MADE - 1) / 2);
    if scene.makes {
        match run(&mut session, "SELECT ids FROM made_seen").await {
            Ok(rows) if rows == [[sums]] => {}
            Err(e) if scene.excused(&e) => return false,
            other => scene.violated(format!("made_seen gives {other:?}")),
        }
    }
    let ids = "SELECT (SELECT ids FROM seen) + (SELECT coalesce(sum(id), 0) FROM \"e$late\")";
    match number(&mut session, ids).await {
        Ok(ids) if ids == sent * (sent - 1) / 2 => {}
        Err(e) if scene.excused(&e) => return false,
        other => scene.violated(format!("the ids that have come add up to {other:?} of {sent} rows")),
    }
    read_total(&mut session, &scene).await;
    // What has come is published with a checkpoint, or with the one after it.
    for _ in 0..2 {
        match run(&mut session, "CHECKPOINT").await {
            Ok(_) => {}
            Err(e) if scene.excused(&e) => return false,
            Err(e) => scene.violated(format!("the last CHECKPOINT fails: {}", told(&e))),
        }
    }
    true
}

async fn arrivals(session: &mut Session, makes: bool) -> Result<Arrived, Error> {
    run(session, "BEGIN READ ONLY").await?;
    let on_time = number(session, "SELECT n FROM seen").await?;
    let late = number(session, "SELECT count(*) FROM \"e$late\"").await?;
    run(session, "COMMIT").await?;
    let made = if makes { number(session, "SELECT n FROM made_seen").await? } else { 0 };
    Ok(Arrived { on_time, late, made })
}
