//! Another content in the log's place: the way to forget what was overwritten, while records go on to be appended.

use flow::Result;

use super::file::{FileRecords, FileRewrite};
use super::objects::{ObjectRecords, ObjectRewrite};
use super::{Log, Place, Position};

/// Records that lie in the log. Errors of an item: `XX001` it is damaged, `58030`.
pub struct Records {
    of: RecordsOf,
}

enum RecordsOf {
    Folder(FileRecords),
    Store(ObjectRecords),
}

impl Iterator for Records {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Result<Vec<u8>>> {
        match &mut self.of {
            RecordsOf::Folder(records) => records.next(),
            RecordsOf::Store(records) => records.next(),
        }
    }
}

/// What is being written beside the log. Dropped before it has taken the log's place, it is removed.
pub struct Rewrite {
    of: RewriteOf,
}

enum RewriteOf {
    Folder(FileRewrite),
    Store(ObjectRewrite),
}

impl Log {
    /// Begins another content. There may be one at a time. Errors: `58030`, `53100`.
    pub fn begin_rewrite(&self) -> Result<Rewrite> {
        Ok(Rewrite {
            of: match &self.place {
                Place::Folder(log) => RewriteOf::Folder(log.begin_rewrite()?),
                Place::Store(log) => RewriteOf::Store(log.begin_rewrite()?),
            },
        })
    }

    /// The records of the log from its start to `until`. They can be read while others are appended.
    pub fn records(&self, until: Position) -> Result<Records> {
        Ok(Records {
            of: match &self.place {
                Place::Folder(log) => RecordsOf::Folder(log.records(until)?),
                Place::Store(log) => RecordsOf::Store(log.records(until)?),
            },
        })
    }

    /// How many bytes follow `from`.
    pub fn bytes_after(&self, from: Position) -> u64 {
        self.end().bytes_since(from)
    }
}

impl Rewrite {
    /// Errors: `53100`, `58030`, `54000` the record is too large.
    pub fn append(&mut self, record: &[u8]) -> Result<()> {
        match &mut self.of {
            RewriteOf::Folder(rewrite) => rewrite.append(record),
            RewriteOf::Store(rewrite) => rewrite.append(record),
        }
    }

    /// Makes what is written so far durable. Errors: `53100`, `58030`.
    pub fn sync(&mut self) -> Result<()> {
        match &mut self.of {
            RewriteOf::Folder(rewrite) => rewrite.sync(),
            RewriteOf::Store(rewrite) => rewrite.sync(),
        }
    }

    /// Takes over records of the log from `from` on, at least `bytes` of them if there are so many. Returns where it has come to.
    /// Errors: as [`append`](Self::append), and of [`Records`].
    pub fn copy(&mut self, log: &Log, from: Position, bytes: u64) -> Result<Position> {
        match (&mut self.of, &log.place) {
            (RewriteOf::Folder(rewrite), Place::Folder(log)) => rewrite.copy(log, from, bytes),
            (RewriteOf::Store(rewrite), Place::Store(log)) => rewrite.copy(log, from),
            _ => Err(another_log()),
        }
    }

    /// Takes over what the log has from `from` on, and becomes the log. In a folder nobody can append meanwhile, so there should be
    /// little left to copy, and what was written should have been [`sync`](Self::sync)ed. After an error the log is as it was,
    /// unless it says itself that it has failed. Errors: `53100`, `58030`, `XX001`; `57P01` another process has taken over.
    pub fn take_place(self, log: &Log, from: Position) -> Result<()> {
        match (self.of, &log.place) {
            (RewriteOf::Folder(rewrite), Place::Folder(log)) => rewrite.take_place(log, from),
            (RewriteOf::Store(rewrite), Place::Store(log)) => rewrite.take_place(log, from),
            _ => Err(another_log()),
        }
    }
}

fn another_log() -> flow::Error {
    flow::Error::internal("a rewrite of another log")
}
