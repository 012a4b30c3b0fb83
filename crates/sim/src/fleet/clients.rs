//! Who loads the engines of a cluster. Each engine has clients of its own; those of one that another has followed must be refused.

use std::sync::Arc;

use coord::Session;
use coord::clock::Clock;
use flow::SqlState;
use futures::FutureExt;
use futures::future::join_all;
use parking_lot::Mutex;

use crate::clients::{self, Arrived, Scene};
use crate::rng::Rng;
use crate::sql::{has_moved, run, told};

use super::coordinator::Task;
use super::here;

/// Looks what earlier engines have left, makes what is missing, and then writes, reads and asks for checkpoints.
pub fn all(
    scene: &Scene,
    statements: Arc<Vec<String>>,
    sessions: [Session; 4],
    rngs: [Rng; 2],
    clock: Arc<Clock>,
) -> Vec<Task> {
    let [first, writes, reads, keeps] = sessions;
    let [mut rng, other] = rngs;
    let keeper = other.clone();
    let scene = scene.clone();
    vec![Box::pin(async move {
        if !begin(first, &scene, statements, &clock).await {
            return;
        }
        let writer = writer(writes, scene.clone(), rng.split());
        let reader = clients::reader(reads, scene.clone(), other);
        let keeper = clients::keeper(keeps, scene.clone(), keeper);
        join_all([writer.boxed_local(), reader.boxed_local(), keeper.boxed_local()]).await;
    })]
}

/// False: the engine has gone meanwhile.
async fn begin(mut session: Session, scene: &Scene, statements: Arc<Vec<String>>, clock: &Arc<Clock>) -> bool {
    let (made, all) = (scene.known.lock().set_up, statements.len());
    let is_seen = made <= 1 || clients::look_back(&mut session, scene).await;
    if !scene.known.lock().follow(scene.reign) {
        intrude(&mut session, scene).await;
        return false;
    }
    if !is_seen {
        return false;
    }
    clients::set_up(session, scene.clone(), statements, Arc::clone(clock)).await;
    let known = scene.known.lock();
    known.reign == scene.reign && known.set_up == all
}

/// Writes until it is refused. It is told later what became of a statement that has failed: by the next engine.
async fn writer(mut session: Session, scene: Scene, mut rng: Rng) {
    while !scene.stopped() {
        clients::pause(rng.below(6)).await;
        if scene.known.lock().reign != scene.reign {
            return intrude(&mut session, &scene).await;
        }
        let done = match rng.one_in(3) {
            true => clients::transfer(&mut session, &scene, &mut rng).await,
            false => clients::write(&mut session, &scene, &mut rng).await,
        };
        match done {
            Ok(()) => {}
            Err(e) if has_moved(&e) => return,
            Err(e) => return scene.violated(format!("a write fails: {}", told(&e))),
        }
    }
}

/// A later engine has looked back: what is begun here now has to be refused.
async fn intrude(session: &mut Session, scene: &Scene) {
    match run(session, "INSERT INTO t VALUES (-1, -1, -1)").await {
        Ok(_) => {
            let now = scene.known.lock().reign;
            scene.violated(format!("engine {} acknowledges a write although engine {now} has begun", scene.reign));
        }
        // It may have slept since before the table was made.
        Err(e) if has_moved(&e) || e.state() == SqlState::UndefinedTable => {}
        Err(e) => scene.violated(format!("a write to an engine that has gone fails otherwise: {}", told(&e))),
    }
}

/// When all is calm: everything arrives.
pub fn last(
    scene: &Scene,
    statements: Arc<Vec<String>>,
    sessions: [Session; 3],
    rng: Rng,
    clock: Arc<Clock>,
    sent: usize,
) -> Task {
    let scene = scene.clone();
    let [first, transfers, audits] = sessions;
    Box::pin(async move {
        if !begin(first, &scene, statements, &clock).await {
            return;
        }
        if !clients::enough_transfers(transfers, scene.clone(), rng).await {
            return;
        }
        let arrived: Arc<Mutex<Arrived>> = Arc::default();
        if !clients::audit(audits, scene.clone(), sent, Arc::clone(&arrived)).await {
            return;
        }
        let Some(fleet) = here() else { return };
        let (rows, in_windows) = fleet.world.borrow().published();
        let on_time = arrived.lock().on_time;
        if rows != on_time {
            scene.violated(format!("{rows} rows are published of {:?}", *arrived.lock()));
        }
        // The windows of the last rows are open.
        let open = 2;
        if fleet.world.borrow().windows && in_windows as usize + open != on_time {
            scene.violated(format!("windows have {in_windows} rows and {open} are open, of {:?}", *arrived.lock()));
        }
        fleet.audited.set(true);
    })
}
