//! Another segment in the log's place: the way to forget what was overwritten.
//!
//! Law: what a segment holds, and its name, are durable before anything is appended to it, and nothing is appended to the old one
//! from the moment at which the last of it was copied. So whichever of the two a crash leaves as the newest holds everything that
//! was acknowledged.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use flow::{Error, Result, SqlState};

use super::format::{self, HEADER_BYTES, Header, MAGIC};
use super::{FileLog, Position, Segment, Tail, create_file, paths};
use crate::crash;
use crate::directory::{io_error, sync_folder};
use crate::disk::Disk;

/// Bytes that are written at a time.
const WRITE_BYTES: usize = 1 << 20;

/// A segment that is being written beside the log. Dropped before it has taken the log's place, it is removed.
pub struct FileRewrite {
    disk: Arc<dyn Disk>,
    number: u64,
    path: PathBuf,
    temporary: PathBuf,
    file: Option<File>,
    buffer: Vec<u8>,
    /// Bytes in the file; those of the buffer follow.
    written: u64,
}

impl FileLog {
    pub fn begin_rewrite(&self) -> Result<FileRewrite> {
        self.standing.check()?;
        let number = self.end().segment + 1;
        let (path, temporary) = paths(&self.folder, number);
        let file = Some(create_file(&temporary)?);
        let (disk, buffer) = (Arc::clone(&self.disk), MAGIC.to_vec());
        Ok(FileRewrite { disk, number, path, temporary, file, buffer, written: 0 })
    }

    pub fn records(&self, until: Position) -> Result<FileRecords> {
        let segment = self.segment_of(until)?;
        Ok(FileRecords { segment, at: MAGIC.len() as u64, until: until.at })
    }

    fn segment_of(&self, position: Position) -> Result<Arc<Segment>> {
        let segment = Arc::clone(&self.lock().segment);
        if segment.number != position.segment {
            return Err(Error::internal("a position of a log that another one has replaced"));
        }
        Ok(segment)
    }
}

/// Records that lie in one segment.
pub struct FileRecords {
    segment: Arc<Segment>,
    at: u64,
    until: u64,
}

impl FileRecords {
    fn try_next(&mut self) -> Result<Vec<u8>> {
        let Segment { file, path, .. } = &*self.segment;
        let found = format::record_at(file, self.at, self.until).map_err(|e| io_error("read", path, &e))?;
        let (_, payload) = found.ok_or_else(|| {
            Error::new(SqlState::DataCorrupted, "the log is damaged")
                .with_detail(format!("The record at byte {} of \"{}\" fails its checksum.", self.at, path.display()))
                .with_hint("Make a copy of the data directory, and restart the server only when the file is restored.")
        })?;
        self.at += (HEADER_BYTES + payload.len()) as u64;
        Ok(payload)
    }
}

impl Iterator for FileRecords {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Result<Vec<u8>>> {
        if self.at >= self.until {
            return None;
        }
        let next = self.try_next();
        if next.is_err() {
            self.at = self.until;
        }
        Some(next)
    }
}

impl FileRewrite {
    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    pub fn append(&mut self, record: &[u8]) -> Result<()> {
        let at = self.bytes();
        // Nobody sees the segment before all of it is durable.
        self.buffer.extend_from_slice(&Header::of(&[record], at)?.encode(at));
        self.buffer.extend_from_slice(record);
        if self.buffer.len() >= WRITE_BYTES { self.write_out() } else { Ok(()) }
    }

    fn write_out(&mut self) -> Result<()> {
        if let Some(file) = &self.file {
            let written = self.disk.write(file, &self.buffer, self.written);
            written.map_err(|e| io_error("write", &self.temporary, &e))?;
            self.written += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    pub fn sync(&mut self) -> Result<()> {
        self.write_out()?;
        match &self.file {
            Some(file) => self.disk.sync(file).map_err(|e| io_error("sync", &self.temporary, &e)),
            None => Ok(()),
        }
    }

    pub fn copy(&mut self, log: &FileLog, from: Position, bytes: u64) -> Result<Position> {
        let segment = log.segment_of(from)?;
        let until = log.end().at;
        self.copy_of(segment, from.at, until, bytes).map(|at| Position { at, ..from })
    }

    fn copy_of(&mut self, segment: Arc<Segment>, from: u64, until: u64, bytes: u64) -> Result<u64> {
        let mut records = FileRecords { segment, at: from, until };
        while records.at < from.saturating_add(bytes)
            && let Some(record) = records.next()
        {
            self.append(&record?)?;
        }
        Ok(records.at)
    }

    pub fn take_place(mut self, log: &FileLog, from: Position) -> Result<()> {
        let mut tail = log.lock();
        log.standing.check()?;
        let old = Arc::clone(&tail.segment);
        if old.number != from.segment || old.number + 1 != self.number {
            return Err(Error::internal("a log is replaced twice"));
        }
        self.copy_of(Arc::clone(&old), from.at, tail.end, u64::MAX)?;
        let end = self.bytes();
        self.buffer.extend_from_slice(&Header::mark(end).encode(end));
        self.sync()?;
        crash::point("L1");
        fs::rename(&self.temporary, &self.path).map_err(|e| io_error("rename", &self.path, &e))?;
        crash::point("L2");
        let Some(file) = self.file.take() else { return Err(Error::internal("a log is replaced by nothing")) };
        if let Err(e) = sync_folder(&log.folder) {
            // Which of the two a crash would leave is not known, so neither may grow.
            return Err(log.fail(e));
        }
        *tail = Tail::at_end_of(self.number, self.path.clone(), file, end);
        drop(tail);
        crash::point("L3");
        // Else the next start does it.
        let _ = fs::remove_file(&old.path);
        Ok(())
    }
}

impl Drop for FileRewrite {
    fn drop(&mut self) {
        // A process that dies removes nothing; the next start does.
        if self.file.take().is_some() && !std::thread::panicking() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
