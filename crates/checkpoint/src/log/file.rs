//! The log as one file of checksummed records.
//!
//! It lies in a segment `NNNNNNNNNN.log`; how, says `format`. Space is preallocated *before* a record is written, so that a full
//! disk refuses the record (`53100`) instead of losing it at sync time. Small records go to blocks that already hold
//! zeros: a block's first write changes metadata, and a sync would then wait for the file system's journal and so, on
//! ext4, for the pages that anybody else has just written.
//!
//! A crash can tear only the tail that was never synced. On opening that tail is dropped; anything else that does not check out
//! is damage, and opening fails with `XX001` rather than dropping what was acknowledged.
//!
//! A [`FileRewrite`] puts another segment in the log's place while records go on to be appended.

mod format;
mod rewrite;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use flow::{Error, Result, SqlState};

use self::format::{HEADER_BYTES, Header, MAGIC, VERSION};
pub(super) use self::rewrite::{FileRecords, FileRewrite};
use super::{Position, Standing};
use crate::directory::{io_error, sync_folder};
use crate::disk::Disk;

/// Space taken from the file system at a time.
const PREALLOCATE_BYTES: u64 = 16 << 20;
/// Bytes filled with zeros at a time, ahead of small records.
const ZEROED_BYTES: u64 = 256 << 10;

/// The open log. Appends are serialised; [`sync`](FileLog::sync) runs beside them.
pub(super) struct FileLog {
    folder: PathBuf,
    disk: Arc<dyn Disk>,
    tail: Mutex<Tail>,
    /// Failed by a failed sync: the kernel may have dropped the pages, so nothing may be acknowledged any more.
    standing: Arc<Standing>,
}

/// One file of the log.
struct Segment {
    number: u64,
    path: PathBuf,
    file: File,
    /// Everything before is durable.
    durable: AtomicU64,
}

struct Tail {
    segment: Arc<Segment>,
    /// Where the next record starts.
    end: u64,
    /// File size obtained so far.
    allocated: u64,
    /// Blocks before this have been written.
    written: u64,
}

impl Tail {
    /// Of a file that is durable as a whole.
    fn at_end_of(number: u64, path: PathBuf, file: File, end: u64) -> Tail {
        let segment = Arc::new(Segment { number, path, file, durable: AtomicU64::new(end) });
        // The mark behind the last record.
        let written = end + HEADER_BYTES as u64;
        Tail { segment, end, allocated: written, written }
    }
}

/// The number that a file of the log's folder has as a segment.
fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".log")?.parse().ok()
}

/// A segment's own name, and the one that it has until it is whole.
fn paths(folder: &Path, number: u64) -> (PathBuf, PathBuf) {
    (folder.join(format!("{number:010}.log")), folder.join(format!("{number:010}.tmp")))
}

fn create_file(path: &Path) -> Result<File> {
    let made = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path);
    made.map_err(|e| io_error("create", path, &e))
}

impl FileLog {
    pub fn open(
        disk: Arc<dyn Disk>,
        folder: &Path,
        standing: &Arc<Standing>,
        mut replay: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<FileLog> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(folder).map_err(|e| io_error("read folder", folder, &e))? {
            let path = entry.map_err(|e| io_error("read folder", folder, &e))?.path();
            if path.extension().is_some_and(|e| e == "tmp") {
                fs::remove_file(&path).map_err(|e| io_error("remove", &path, &e))?;
            } else if let Some(number) = number_of(&path) {
                segments.push((number, path));
            }
        }
        segments.sort();
        let Some((number, path)) = segments.pop() else {
            return Self::create(disk, folder, 1, standing);
        };
        let read = format::read(&path, &mut replay)?;
        for (_, old) in segments {
            fs::remove_file(&old).map_err(|e| io_error("remove", &old, &e))?;
        }
        let log = FileLog::at(disk, folder, Tail::at_end_of(number, path.clone(), read.file, read.end), standing);
        if read.version < VERSION {
            return log.of_version_1(&path);
        }
        {
            let tail = log.lock();
            // Whatever a torn tail left behind must not be taken for a record later.
            let file = &tail.segment.file;
            let mark = Header::mark(tail.end).encode(tail.end);
            let done = file.set_len(tail.end).and_then(|()| log.disk.write(file, &mark, tail.end));
            done.and_then(|()| log.disk.sync(file)).map_err(|e| io_error("truncate", &path, &e))?;
        }
        Ok(log)
    }

    fn at(disk: Arc<dyn Disk>, folder: &Path, tail: Tail, standing: &Arc<Standing>) -> FileLog {
        FileLog { folder: folder.to_path_buf(), disk, tail: Mutex::new(tail), standing: Arc::clone(standing) }
    }

    /// The same records in a segment of the present version.
    fn of_version_1(self, path: &Path) -> Result<FileLog> {
        let mut rewrite = self.begin_rewrite()?;
        format::read(path, &mut |record: &[u8]| rewrite.append(record))?;
        rewrite.take_place(&self, self.end())?;
        Ok(self)
    }

    pub fn look(folder: &Path, mut seen: impl FnMut(&[u8]) -> Result<()>) -> Result<Option<(PathBuf, u64)>> {
        let mut newest = None;
        for entry in fs::read_dir(folder).map_err(|e| io_error("read folder", folder, &e))? {
            let path = entry.map_err(|e| io_error("read folder", folder, &e))?.path();
            newest = newest.max(number_of(&path).map(|n| (n, path)));
        }
        let Some((_, path)) = newest else { return Ok(None) };
        let read = format::read(&path, &mut seen)?;
        Ok(Some((path, read.end)))
    }

    fn create(disk: Arc<dyn Disk>, folder: &Path, number: u64, standing: &Arc<Standing>) -> Result<FileLog> {
        let (path, temporary) = paths(folder, number);
        let file = create_file(&temporary)?;
        let end = MAGIC.len() as u64;
        let content = [&MAGIC[..], &Header::mark(end).encode(end)].concat();
        let written = disk.write(&file, &content, 0).and_then(|()| disk.sync(&file));
        written.map_err(|e| io_error("write", &temporary, &e))?;
        fs::rename(&temporary, &path).map_err(|e| io_error("rename", &path, &e))?;
        sync_folder(folder)?;
        Ok(FileLog::at(disk, folder, Tail::at_end_of(number, path, file, end), standing))
    }

    pub fn append(&self, parts: &[&[u8]]) -> Result<Position> {
        let mut header = Header::of(parts, 0)?;
        let total = HEADER_BYTES as u64 + u64::from(header.length);
        let mut tail = self.lock();
        self.standing.check()?;
        let segment = Arc::clone(&tail.segment);
        header.synced = segment.durable.load(Ordering::Acquire);
        // With room for the mark behind it.
        let needed = tail.end + total + HEADER_BYTES as u64;
        if needed > tail.allocated {
            let size = (needed - tail.allocated).next_multiple_of(PREALLOCATE_BYTES);
            let allocated = self.disk.allocate(&segment.file, tail.allocated, size);
            allocated.map_err(|e| io_error("extend", &segment.path, &e))?;
            tail.allocated += size;
        }
        let start = tail.end;
        if needed > tail.written && total <= ZEROED_BYTES {
            let from = tail.written.max(start);
            let to = needed.max(from + ZEROED_BYTES).min(tail.allocated);
            let zeros = vec![0; (to - from) as usize];
            let zeroed = self.disk.write(&segment.file, &zeros, from);
            zeroed.map_err(|e| io_error("extend", &segment.path, &e))?;
            tail.written = to;
        }
        let written = (|| {
            // The header goes last: until it is there, the bytes after it mean nothing.
            let mut at = start + HEADER_BYTES as u64;
            for part in parts {
                self.disk.write(&segment.file, part, at)?;
                at += part.len() as u64;
            }
            self.disk.write(&segment.file, &header.encode(start), start)
        })();
        if let Err(e) = written {
            self.mark(&tail);
            return Err(io_error("append to", &segment.path, &e));
        }
        tail.end = start + total;
        tail.written = tail.written.max(tail.end);
        Ok(Position { segment: segment.number, at: tail.end })
    }

    pub fn sync(&self) -> Result<Position> {
        self.standing.check()?;
        let (segment, end) = {
            let tail = self.lock();
            (Arc::clone(&tail.segment), tail.end)
        };
        if end > segment.durable.load(Ordering::Acquire) {
            if let Err(e) = self.disk.sync(&segment.file) {
                return Err(self.fail(io_error("sync", &segment.path, &e)));
            }
            // If another segment has taken the place meanwhile, that one holds the same and is durable.
            segment.durable.fetch_max(end, Ordering::AcqRel);
            let tail = self.lock();
            if Arc::ptr_eq(&tail.segment, &segment) {
                self.mark(&tail);
            }
        }
        Ok(Position { segment: segment.number, at: end })
    }

    /// Says behind the last record how far the log is durable. Best effort: a crash may lose it in any case, and then a damaged
    /// record of the last sync passes for a torn one. What is at that place means nothing, so half a mark does no harm.
    fn mark(&self, tail: &Tail) {
        let synced = tail.segment.durable.load(Ordering::Acquire);
        let _ = self.disk.write(&tail.segment.file, &Header::mark(synced).encode(tail.end), tail.end);
    }

    /// After a failed sync. Gives the error back.
    fn fail(&self, error: Error) -> Error {
        let hint = "Check the disk and restart the server.";
        let later = Error::new(SqlState::IoError, "the log is read-only after a failed sync").with_hint(hint);
        self.standing.fail(error.with_hint(hint), later)
    }

    pub fn end(&self) -> Position {
        let tail = self.lock();
        Position { segment: tail.segment.number, at: tail.end }
    }

    pub fn close(&self) {
        // Nobody is in the middle of an append.
        let _tail = self.lock();
        self.standing.close();
    }

    pub fn len(&self) -> u64 {
        self.lock().end
    }

    pub fn is_empty(&self) -> bool {
        self.len() == MAGIC.len() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
