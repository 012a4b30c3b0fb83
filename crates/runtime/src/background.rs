//! A second thread of each slot, for jobs that still back-fill and for state that is thrown away.
//!
//! A step on a slot's own thread makes every other job there wait until it is over, and a table that doubles makes a step
//! long. So the machine of a detached job is lent to this thread, which works at a lower priority: when the slot's own
//! thread wakes up, the system lets it go first, in the middle of a step. Messages stay with the slot; a machine that is
//! lent gets them when it is back.

use std::thread::{JoinHandle, Thread};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use flow::{Error, Result};

use crate::exits::{Exits, ForSlot};
use crate::job::Machine;
use crate::message::DeploymentId;

/// Priority of threads whose work may wait, as the difference in niceness from the others.
const NICE: i32 = 10;
/// Steps of one turn: what arrives for the job meanwhile waits as long.
const STEPS: usize = 8;

/// Makes the calling thread one of the background. Where the system refuses, it works at the priority of the others.
pub fn stand_back() {
    let _ = rustix::process::nice(NICE);
}

/// A machine that has done its turn.
pub struct Lent {
    pub deployment: DeploymentId,
    pub machine: Box<Machine>,
    /// Whether it did something, or why its job must stop.
    pub stepped: Result<bool>,
    /// What only the slot can do.
    pub left: Vec<ForSlot>,
}

enum Errand {
    Run(DeploymentId, Box<Machine>),
    Drop(Box<Machine>),
}

/// The slot's end of its background thread, which ends when this is dropped.
///
/// The thread sleeps until it is woken by name. To wait for the channel itself would be to give way again and again before
/// sleeping, and on a busy machine a thread that stands back and gives way may not get its turn for a second.
pub struct Background {
    /// Absent only while it is being dropped.
    errands: Option<Sender<Errand>>,
    thread: Thread,
    returned: Receiver<Lent>,
}

impl Background {
    /// Starts the thread of the slot that these are the exits of.
    pub fn start(exits: Exits, stack_bytes: usize) -> Result<(Background, JoinHandle<()>)> {
        let (errands, todo) = unbounded();
        let (done, returned) = unbounded();
        let thread = std::thread::Builder::new()
            .name(format!("slot-{}-back", exits.slot.0))
            .stack_size(stack_bytes)
            .spawn(move || {
                stand_back();
                loop {
                    match todo.try_recv() {
                        Ok(Errand::Run(deployment, machine)) => {
                            if done.send(turn(&exits, deployment, machine)).is_err() {
                                // The slot is gone: nobody waits for what is left.
                                return;
                            }
                        }
                        Ok(Errand::Drop(machine)) => drop(machine),
                        Err(TryRecvError::Empty) => std::thread::park(),
                        Err(TryRecvError::Disconnected) => return,
                    }
                }
            })
            .map_err(|e| Error::internal(format!("cannot start a slot's background thread: {e}")))?;
        Ok((Background { errands: Some(errands), thread: thread.thread().clone(), returned }, thread))
    }

    fn send(&self, errand: Errand) {
        if let Some(errands) = &self.errands {
            let _ = errands.send(errand);
            self.thread.unpark();
        }
    }

    /// Lets `machine` do some steps; it comes back by [`returned`](Background::returned).
    pub fn run(&self, deployment: DeploymentId, machine: Box<Machine>) {
        self.send(Errand::Run(deployment, machine));
    }

    pub fn drop_machine(&self, machine: Box<Machine>) {
        self.send(Errand::Drop(machine));
    }

    pub fn returned(&self) -> &Receiver<Lent> {
        &self.returned
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.errands = None;
        self.thread.unpark();
    }
}

/// Steps until the machine has something for its slot, has nothing to do, or has had its share.
fn turn(exits: &Exits, deployment: DeploymentId, mut machine: Box<Machine>) -> Lent {
    let mut left = Vec::new();
    let mut stepped = Ok(false);
    for _ in 0..STEPS {
        match exits.step(deployment, &mut machine, &mut left) {
            Ok(true) => stepped = Ok(true),
            Ok(false) => break,
            Err(e) => {
                stepped = Err(e);
                break;
            }
        }
        if !left.is_empty() {
            break;
        }
    }
    Lent { deployment, machine, stepped, left }
}
