//! The append-only log: checksummed records, group-committed, in a folder of this machine or in the store of checkpoints.
//!
//! What both keep: an append may be lost until a sync has returned; what was synced is read back in order and whole, or opening
//! fails and names the damage. A log that can be written no more says so once, and acknowledges nothing from then on.
//!
//! `file` is the log of a server that is alone: one file, one sync of the disk for everybody. `objects` is the log of
//! coordinators that take over from each other: numbered objects that are created only if absent, so that whoever begins to
//! write has shut out whoever wrote before. Nobody outside of here knows which of the two it has, but for who opens it.

mod file;
mod objects;
mod rewrite;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use flow::{Error, Result, SqlState};

use self::file::FileLog;
use self::objects::ObjectLog;
pub use self::rewrite::{Records, Rewrite};
use crate::disk::{Disk, SystemDisk};
use crate::door::Door;
use crate::names::LOG;

/// A record above this is refused: it could not be read back into memory with certainty.
pub const RECORD_BYTES_MAX: usize = 1 << 30;

/// A byte position in the log: everything before it belongs to earlier appends. It means nothing any more when a [`Rewrite`] has
/// taken the log's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    segment: u64,
    at: u64,
}

impl Position {
    /// How far it is from an earlier position of the same log.
    pub fn bytes_since(self, earlier: Position) -> u64 {
        self.at.saturating_sub(earlier.at)
    }
}

/// Called once, with the cause, when the log can be written no more.
pub type OnFailure = Box<dyn Fn(&Error) + Send + Sync>;

/// Called with the cause when a sync is held up by a store that is away, and with `None` when it goes on.
pub type OnStall = Box<dyn Fn(Option<&Error>) + Send + Sync>;

/// Whether a log can be written.
#[derive(Default)]
struct Standing {
    /// What everybody is told since the log has failed.
    failed: OnceLock<Error>,
    closed: AtomicBool,
    on_failure: OnceLock<OnFailure>,
}

impl Standing {
    /// Errors: `57P01` it is closed; what it has failed with.
    fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(SqlState::AdminShutdown, "the log is closed"));
        }
        match self.failed.get() {
            Some(failed) => Err(failed.clone()),
            None => Ok(()),
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Nothing is acknowledged any more: whoever comes is told `later`. Tells `cause` to who asked, and gives it back.
    fn fail(&self, cause: Error, later: Error) -> Error {
        if self.failed.set(later).is_ok()
            && let Some(tell) = self.on_failure.get()
        {
            tell(&cause);
        }
        cause
    }

    fn on_failure(&self, on_failure: OnFailure) {
        let told = self.on_failure.set(on_failure);
        if let (Ok(()), Some(failed), Some(tell)) = (told, self.failed.get(), self.on_failure.get()) {
            tell(failed);
        }
    }
}

enum Place {
    Folder(FileLog),
    Store(Box<ObjectLog>),
}

/// The open log. Appends are serialised; [`sync`](Log::sync) runs beside them.
pub struct Log {
    place: Place,
    standing: Arc<Standing>,
}

impl Log {
    /// Opens the newest segment in `folder` (creating the first), handing each whole record to `replay` in order.
    /// Older segments and unfinished successors are removed; one of an older version is written anew.
    pub fn open(folder: &Path, replay: impl FnMut(&[u8]) -> Result<()>) -> Result<Log> {
        Log::open_on(Arc::new(SystemDisk), folder, replay)
    }

    /// The same on another disk than the machine's.
    pub fn open_on(disk: Arc<dyn Disk>, folder: &Path, replay: impl FnMut(&[u8]) -> Result<()>) -> Result<Log> {
        let standing = Arc::default();
        let log = FileLog::open(disk, folder, &standing, replay)?;
        Ok(Log { place: Place::Folder(log), standing })
    }

    /// Begins to write the log in the store as the door's generation, and so shuts out whoever wrote it before; then hands each
    /// record to `replay` in order. `holder`: what others are told of this process.
    ///
    /// Errors: `55006` a newer generation writes it; `XX001` something of it is missing or damaged, named; `58030`, `42501`,
    /// `53100` the store does not do what it is asked: then somebody may have been shut out all the same.
    pub fn open_in_store(door: &Door, holder: &str, replay: impl FnMut(&[u8]) -> Result<()>) -> Result<Log> {
        let standing = Arc::default();
        let log = ObjectLog::open(door, holder, &standing, replay)?;
        Ok(Log { place: Place::Store(Box::new(log)), standing })
    }

    /// Hands each whole record of the newest segment in `folder` to `seen`, in order, and changes nothing. Returns the segment
    /// and the bytes of its whole records; `None` if there is no segment. Errors: as [`open`](Log::open).
    pub fn look(folder: &Path, seen: impl FnMut(&[u8]) -> Result<()>) -> Result<Option<(PathBuf, u64)>> {
        FileLog::look(folder, seen)
    }

    /// Whether there is a log in the store. Errors: `58030`, `42501`.
    pub fn is_in_store(door: &Door) -> Result<bool> {
        Ok(!door.list(LOG)?.is_empty())
    }

    /// What [`look`](Log::look) does, for a log in the store: returns its newest object and the bytes of its records. Errors: as
    /// [`open_in_store`](Log::open_in_store).
    pub fn look_in_store(door: &Door, seen: impl FnMut(&[u8]) -> Result<()>) -> Result<Option<(String, u64)>> {
        ObjectLog::look(door, seen)
    }

    /// Calls `on_failure` when the log fails, or at once if it has. The first to ask is the one that is told.
    pub fn on_failure(&self, on_failure: OnFailure) {
        self.standing.on_failure(on_failure);
    }

    /// Calls `on_stall` when a sync has to wait for its store, and when it goes on. Before somebody has asked to be told, a sync does
    /// not wait but fails. The first to ask is the one that is told.
    pub fn on_stall(&self, on_stall: OnStall) {
        if let Place::Store(log) = &self.place {
            log.on_stall(on_stall);
        }
    }

    /// Appends one record (the concatenation of `parts`) and returns the position after it. On an error the log is
    /// as if the call had not been made.
    ///
    /// Errors: `53100` disk full, `58030` other failures, `54000` for a record above [`RECORD_BYTES_MAX`]; of
    /// [`check`](Self::check).
    pub fn append(&self, parts: &[&[u8]]) -> Result<Position> {
        match &self.place {
            Place::Folder(log) => log.append(parts),
            Place::Store(log) => log.append(parts),
        }
    }

    /// Makes everything appended before the call durable and returns up to where.
    ///
    /// After a failure the log refuses everything: a disk may have dropped what it could not write (`58030`), another process may
    /// have taken over (`57P01`). A store that is away is waited for, since nothing is lost by that: see [`on_stall`](Self::on_stall).
    pub fn sync(&self) -> Result<Position> {
        match &self.place {
            Place::Folder(log) => log.sync(),
            Place::Store(log) => log.sync(),
        }
    }

    /// Where the next record will stand.
    pub fn end(&self) -> Position {
        match &self.place {
            Place::Folder(log) => log.end(),
            Place::Store(log) => log.end(),
        }
    }

    /// Who waits in a sync waits no longer than for the request that is under way: the server stops.
    pub fn hurry(&self) {
        if let Place::Store(log) = &self.place {
            log.hurry();
        }
    }

    /// Refuses everything from now on: another log may be opened on the same place, though somebody still holds this one.
    pub fn close(&self) {
        match &self.place {
            Place::Folder(log) => log.close(),
            Place::Store(log) => log.close(),
        }
    }

    /// Another process has become the owner of the store of checkpoints, for this cause. If the log is there too it is not this
    /// process's any more, and fails. Returns what clients are told.
    pub fn lose_store(&self, cause: Error) -> Error {
        match &self.place {
            Place::Folder(_) => cause,
            Place::Store(_) => {
                let lost = objects::taken_over(cause.detail().unwrap_or_else(|| cause.message()).to_string());
                self.standing.fail(lost.clone(), lost)
            }
        }
    }

    /// Does some of what need not be done at once: keeps the number of objects small, and removes what nothing needs any more.
    /// Returns whether there may be more to do. Errors: of the store; nothing is lost by them, and it may be called again.
    pub fn tidy(&self) -> Result<bool> {
        match &self.place {
            Place::Folder(_) => Ok(false),
            Place::Store(log) => log.tidy(),
        }
    }

    /// Whether [`tidy`](Self::tidy) ever has something to do.
    pub fn needs_tidying(&self) -> bool {
        matches!(self.place, Place::Store(_))
    }

    /// Bytes of records in the log.
    pub fn len(&self) -> u64 {
        match &self.place {
            Place::Folder(log) => log.len(),
            Place::Store(log) => log.end().at,
        }
    }

    /// Whether the log holds no record.
    pub fn is_empty(&self) -> bool {
        match &self.place {
            Place::Folder(log) => log.is_empty(),
            Place::Store(log) => log.end().at == 0,
        }
    }

    /// Whether it can be written. Errors: `57P01` it is closed, or another process has taken over; `58030` after a failed sync.
    pub fn check(&self) -> Result<()> {
        self.standing.check()
    }
}
