//! What objects are called. A name that was given once is never given to other content: whoever chooses one puts its own
//! generation, or a number created only if absent, into it.

use std::fmt;

use flow::{Epoch, JobId};

use crate::permit::Generation;

/// Digits of a number in a name, so that names sort as their numbers do. Larger numbers only get longer.
const DIGITS: usize = 10;

pub const GENERATIONS: &str = "generation";
pub const RECORDS: &str = "epoch";
pub const MANIFESTS: &str = "manifest";
pub const COMMITTED: &str = "committed";
pub const SEGMENTS: &str = "jobs";
pub const SAVEPOINTS: &str = "savepoint";
pub const PROBES: &str = "probe";
/// Records of jobs that have ended; no checkpoint needs them.
pub const HISTORY: &str = "history";
/// The log of coordinators that take over from each other: its numbered objects, and what stands for many of them. See
/// [`crate::log`].
pub const LOG: &str = "log";
pub const LOG_PARTS: &str = "logpart";
/// Signs of life of the coordinator that leads. See [`crate::lease`].
pub const LEASES: &str = "lease";
/// What tells the cluster from every other one.
pub const CLUSTER: &str = "cluster/id";
/// The script of an application that owns the store, and how it has ended.
pub const APPLICATION_SCRIPT: &str = "application/script";
pub const APPLICATION_END: &str = "application/end";

/// The object of a segment: state of one slot of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    pub job: JobId,
    pub generation: Generation,
    /// Given out in ascending order by the coordinator of the generation, never twice. What lies above the counter of the
    /// newest checkpoint may still be on its way into a later one.
    pub counter: u64,
    pub slot: u32,
}

/// A name that the protocol of checkpoints gives. The store may hold others; they are none of its business.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    Generation(Generation),
    Segment(SegmentName),
    Manifest { generation: Generation, epoch: Epoch },
    Record(u64),
    Committed(u64),
    Savepoint(String),
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectName::Generation(Generation(n)) => write!(f, "{GENERATIONS}/{n:0DIGITS$}"),
            ObjectName::Segment(SegmentName { job, generation: Generation(g), counter, slot }) => {
                write!(f, "{SEGMENTS}/{job}/{g:0DIGITS$}-{counter:0DIGITS$}-slot{slot}.seg")
            }
            ObjectName::Manifest { generation: Generation(g), epoch: Epoch(e) } => {
                write!(f, "{MANIFESTS}/{g:0DIGITS$}-{e:0DIGITS$}")
            }
            ObjectName::Record(n) => write!(f, "{RECORDS}/{n:0DIGITS$}"),
            ObjectName::Committed(n) => write!(f, "{COMMITTED}/{n:0DIGITS$}"),
            ObjectName::Savepoint(name) => write!(f, "{SAVEPOINTS}/{name}"),
        }
    }
}

impl ObjectName {
    /// The inverse of `to_string`; `None` for a name that it would not give.
    pub fn parse(text: &str) -> Option<ObjectName> {
        let (folder, rest) = text.split_once('/')?;
        let name = match folder {
            GENERATIONS => ObjectName::Generation(Generation(rest.parse().ok()?)),
            RECORDS => ObjectName::Record(rest.parse().ok()?),
            COMMITTED => ObjectName::Committed(rest.parse().ok()?),
            SAVEPOINTS => ObjectName::Savepoint(rest.to_string()),
            MANIFESTS => {
                let (generation, epoch) = rest.split_once('-')?;
                ObjectName::Manifest {
                    generation: Generation(generation.parse().ok()?),
                    epoch: Epoch(epoch.parse().ok()?),
                }
            }
            SEGMENTS => {
                let (job, rest) = rest.split_once('/')?;
                let (generation, rest) = rest.strip_suffix(".seg")?.split_once('-')?;
                let (counter, slot) = rest.split_once("-slot")?;
                ObjectName::Segment(SegmentName {
                    job: JobId(job.parse().ok()?),
                    generation: Generation(generation.parse().ok()?),
                    counter: counter.parse().ok()?,
                    slot: slot.parse().ok()?,
                })
            }
            _ => return None,
        };
        // One number has one name: `+1` and `01` are not what we wrote.
        (name.to_string() == text).then_some(name)
    }
}

/// What is in an object, by the folder of its name. The codes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Kind {
    Other = 0,
    Generation = 1,
    Segment = 2,
    Manifest = 3,
    Record = 4,
    Committed = 5,
    Savepoint = 6,
    Probe = 7,
    History = 8,
    Log = 9,
    LogPart = 10,
    Lease = 11,
    Cluster = 12,
    Application = 13,
}

impl Kind {
    pub fn of(name: &str) -> Kind {
        match name.split_once('/').map_or("", |(folder, _)| folder) {
            GENERATIONS => Kind::Generation,
            SEGMENTS => Kind::Segment,
            MANIFESTS => Kind::Manifest,
            RECORDS => Kind::Record,
            COMMITTED => Kind::Committed,
            SAVEPOINTS => Kind::Savepoint,
            PROBES => Kind::Probe,
            HISTORY => Kind::History,
            LOG => Kind::Log,
            LOG_PARTS => Kind::LogPart,
            LEASES => Kind::Lease,
            "cluster" => Kind::Cluster,
            "application" => Kind::Application,
            _ => Kind::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_sort_as_their_numbers() {
        let segment = SegmentName { job: JobId(7), generation: Generation(3), counter: 12, slot: 1 };
        for name in [
            ObjectName::Generation(Generation(1)),
            ObjectName::Segment(segment),
            ObjectName::Manifest { generation: Generation(2), epoch: Epoch(u64::MAX) },
            ObjectName::Record(12_345_678_901),
            ObjectName::Committed(0),
            ObjectName::Savepoint("before-upgrade".into()),
        ] {
            assert_eq!(ObjectName::parse(&name.to_string()), Some(name.clone()), "{name}");
        }
        assert!(ObjectName::Record(9).to_string() < ObjectName::Record(10).to_string());
        for alien in ["epoch/9", "epoch/+000000009", "epoch/", "epoch", "log/1", "jobs/1/a.seg", "manifest/0000000001"]
        {
            assert_eq!(ObjectName::parse(alien), None, "{alien}");
        }
    }
}
