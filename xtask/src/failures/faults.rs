//! What is done to the cluster: each cell is a kind of fault and what it hits, with the crash point where there is one.

use std::fmt;

/// What a fault hits, by what it does at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Leader,
    Standby,
    Worker,
    /// Another one than that of [`Worker`](Self::Worker).
    OtherWorker,
    Client,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Standby => "standby",
            Role::Worker | Role::OtherWorker => "worker",
            Role::Client => "client",
        }
    }
}

/// How a link is cut between two machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// In both directions.
    Whole,
    /// What the first sends is lost.
    OneWay,
    /// In both, again and again for a moment.
    Flapping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// kill -9; started again soon.
    Kill(&'static [Role]),
    /// kill -9 of every process, and `fsck` before any of them starts.
    KillAll,
    /// kill -9 of a worker that comes back only when the jobs have gone on without it.
    Left,
    /// kill -9 of a worker; one on another machine comes instead.
    Replaced,
    /// SIGTERM.
    Terminate(Role),
    /// SIGSTOP for longer than a lease, then SIGCONT.
    Stop(Role),
    Link(Cut, Role, Role),
    /// Every link of one machine.
    Isolate(Role),
    /// A process that has the point dies at it: a worker, or a coordinator that has just taken over.
    Crash(&'static str),
}

/// The crash points that are in workers; the others are in the coordinator that leads.
const OF_WORKERS: [&str; 7] = ["C1", "C2", "C3", "C4", "C5", "C15", "C16"];
const POINTS: [&str; 17] =
    ["C0", "C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "C10", "C11", "C12", "C13", "C14", "C15", "C16"];

impl Fault {
    /// Each once.
    pub fn all() -> Vec<Fault> {
        use Role::{Client, Leader, OtherWorker, Standby, Worker};
        let mut all = vec![
            Fault::Kill(&[Worker]),
            Fault::Kill(&[Leader]),
            Fault::Kill(&[Standby]),
            Fault::Kill(&[Leader, Worker]),
            Fault::Kill(&[Worker, OtherWorker]),
            Fault::KillAll,
            Fault::Left,
            Fault::Replaced,
            Fault::Terminate(Worker),
            Fault::Terminate(Leader),
            Fault::Stop(Worker),
            Fault::Stop(Leader),
            Fault::Stop(Standby),
            Fault::Isolate(Worker),
            Fault::Isolate(Leader),
        ];
        for cut in [Cut::Whole, Cut::OneWay, Cut::Flapping] {
            for (from, to) in [(Leader, Worker), (Worker, OtherWorker), (Client, Leader)] {
                all.push(Fault::Link(cut, from, to));
            }
        }
        for (from, to) in [(Worker, Leader), (Leader, Client)] {
            all.push(Fault::Link(Cut::OneWay, from, to));
        }
        all.extend(POINTS.map(Fault::Crash));
        all
    }

    /// What it is done by, without what it hits.
    pub fn kind(self) -> &'static str {
        match self {
            Fault::Kill(_) | Fault::KillAll => "kill -9",
            Fault::Left => "kill -9, back late",
            Fault::Replaced => "kill -9, replaced",
            Fault::Terminate(_) => "SIGTERM",
            Fault::Stop(_) => "SIGSTOP, SIGCONT",
            Fault::Link(Cut::Whole, ..) => "link cut",
            Fault::Link(Cut::OneWay, ..) => "link cut one way",
            Fault::Link(Cut::Flapping, ..) => "link flaps",
            Fault::Isolate(_) => "isolated",
            Fault::Crash(_) => "crash point",
        }
    }

    /// Whether a worker has the crash point.
    pub fn is_of_worker(point: &str) -> bool {
        OF_WORKERS.contains(&point)
    }
}

/// As `--only` knows it: `kill/worker`, `link-one-way/leader-worker`, `crash/C7`.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill(roles) => {
                let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
                write!(f, "kill/{}", names.join("+"))
            }
            Fault::KillAll => f.write_str("kill/all"),
            Fault::Left => f.write_str("left/worker"),
            Fault::Replaced => f.write_str("replaced/worker"),
            Fault::Terminate(role) => write!(f, "term/{}", role.name()),
            Fault::Stop(role) => write!(f, "stop/{}", role.name()),
            Fault::Link(cut, from, to) => {
                let cut = match cut {
                    Cut::Whole => "link",
                    Cut::OneWay => "link-one-way",
                    Cut::Flapping => "link-flaps",
                };
                write!(f, "{cut}/{}-{}", from.name(), to.name())
            }
            Fault::Isolate(role) => write!(f, "isolated/{}", role.name()),
            Fault::Crash(point) => write!(f, "crash/{point}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_name_of_its_own() {
        let mut names: Vec<String> = Fault::all().iter().map(Fault::to_string).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "{names:?}");
        for name in ["kill/leader+worker", "link-one-way/worker-leader", "link/worker-worker", "crash/C16"] {
            assert!(names.iter().any(|known| known == name), "{name}");
        }
    }
}
