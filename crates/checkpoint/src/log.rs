//! The append-only log: one file of checksummed records, group-committed.
//!
//! Layout of a segment `NNNNNNNNNN.log`: an 8-byte magic, then records of `length u32 · crc32 u32 · payload`, little
//! endian, then zeros up to the preallocated size. Space is preallocated *before* a record is written, so that a full
//! disk refuses the record (`53100`) instead of losing it at sync time. Small records go to blocks that already hold
//! zeros: a block's first write changes metadata, and a sync would then wait for the file system's journal and so, on
//! ext4, for the pages that anybody else has just written.
//!
//! A crash can tear only the tail that was never synced. On opening, the first record that does not check out ends the
//! log, unless a whole record follows it: then synced data is damaged, and opening fails with `XX001` rather than
//! dropping what came after.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use flow::{Error, Result, SqlState};

use crate::directory::{io_error, sync_folder};
use crate::disk::{Disk, SystemDisk};

const MAGIC: &[u8; 8] = b"MSLOG\x00\x00\x01";
const HEADER_BYTES: usize = 8;
/// Space taken from the file system at a time.
const PREALLOCATE_BYTES: u64 = 16 << 20;
/// Bytes filled with zeros at a time, ahead of small records.
const ZEROED_BYTES: u64 = 256 << 10;
/// A record above this is refused: it could not be read back into memory with certainty.
pub const RECORD_BYTES_MAX: usize = 1 << 30;

/// A byte position in the log: everything before it belongs to earlier appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

/// The open log. Appends are serialised; [`sync`](Log::sync) runs beside them.
pub struct Log {
    path: PathBuf,
    file: File,
    disk: Arc<dyn Disk>,
    tail: Mutex<Tail>,
    durable: AtomicU64,
    /// Set by a failed sync: the kernel may have dropped the pages, so nothing may be acknowledged any more.
    broken: AtomicBool,
    /// Set by [`close`](Log::close).
    closed: AtomicBool,
}

struct Tail {
    /// Where the next record starts.
    end: u64,
    /// File size obtained so far.
    allocated: u64,
    /// Blocks before this have been written.
    written: u64,
}

impl Log {
    /// Opens the newest segment in `folder` (creating the first), handing each whole record to `replay` in order.
    /// Older segments and unfinished successors are removed.
    pub fn open(folder: &Path, replay: impl FnMut(&[u8]) -> Result<()>) -> Result<Log> {
        Log::open_on(Arc::new(SystemDisk), folder, replay)
    }

    /// The same on another disk than the machine's.
    pub fn open_on(disk: Arc<dyn Disk>, folder: &Path, mut replay: impl FnMut(&[u8]) -> Result<()>) -> Result<Log> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(folder).map_err(|e| io_error("read folder", folder, &e))? {
            let path = entry.map_err(|e| io_error("read folder", folder, &e))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.ends_with(".tmp") {
                fs::remove_file(&path).map_err(|e| io_error("remove", &path, &e))?;
            } else if let Some(number) = name.strip_suffix(".log").and_then(|n| n.parse::<u64>().ok()) {
                segments.push((number, path));
            }
        }
        segments.sort();
        let Some((_, path)) = segments.pop() else {
            return Self::create(disk, folder, 1);
        };
        let (file, end) = read_segment(&path, &mut replay)?;
        for (_, old) in segments {
            fs::remove_file(&old).map_err(|e| io_error("remove", &old, &e))?;
        }
        let log = Log {
            path,
            tail: Mutex::new(Tail { end, allocated: end, written: end }),
            durable: AtomicU64::new(end),
            broken: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            file,
            disk,
        };
        // Whatever a torn tail left behind must not be taken for a record later.
        log.file.set_len(end).and_then(|()| log.file.sync_all()).map_err(|e| io_error("truncate", &log.path, &e))?;
        Ok(log)
    }

    /// Hands each whole record of the newest segment in `folder` to `seen`, in order, and changes nothing. Returns the segment
    /// and the bytes of its whole records; `None` if there is no segment. Errors: as [`open`](Log::open).
    pub fn look(folder: &Path, mut seen: impl FnMut(&[u8]) -> Result<()>) -> Result<Option<(PathBuf, u64)>> {
        let mut newest = None;
        for entry in fs::read_dir(folder).map_err(|e| io_error("read folder", folder, &e))? {
            let path = entry.map_err(|e| io_error("read folder", folder, &e))?.path();
            let number =
                path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".log")?.parse::<u64>().ok());
            newest = newest.max(number.map(|n| (n, path)));
        }
        let Some((_, path)) = newest else { return Ok(None) };
        let (_, end) = read_segment(&path, &mut seen)?;
        Ok(Some((path, end)))
    }

    fn create(disk: Arc<dyn Disk>, folder: &Path, number: u64) -> Result<Log> {
        let path = folder.join(format!("{number:010}.log"));
        let temporary = folder.join(format!("{number:010}.tmp"));
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&temporary)
            .map_err(|e| io_error("create", &temporary, &e))?;
        file.write_all_at(MAGIC, 0).and_then(|()| file.sync_all()).map_err(|e| io_error("write", &temporary, &e))?;
        fs::rename(&temporary, &path).map_err(|e| io_error("rename", &path, &e))?;
        sync_folder(folder)?;
        let end = MAGIC.len() as u64;
        Ok(Log {
            path,
            file,
            disk,
            tail: Mutex::new(Tail { end, allocated: end, written: end }),
            durable: AtomicU64::new(end),
            broken: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    /// Replaces the log by a new segment that holds exactly `records`: the way to forget what was overwritten.
    /// A crash leaves either the old log or the new one.
    pub fn rewrite(self, records: impl IntoIterator<Item = Result<Vec<u8>>>) -> Result<Log> {
        let folder = self.path.parent().unwrap_or(Path::new(".")).to_path_buf();
        let number = self
            .path
            .file_stem()
            .and_then(|n| n.to_str())
            .and_then(|n| n.parse::<u64>().ok())
            .ok_or_else(|| Error::internal("log segment without a number"))?;
        let path = folder.join(format!("{:010}.log", number + 1));
        let temporary = folder.join(format!("{:010}.tmp", number + 1));
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&temporary)
            .map_err(|e| io_error("create", &temporary, &e))?;
        let mut end = 0u64;
        let mut put = |bytes: &[u8]| -> Result<()> {
            file.write_all_at(bytes, end).map_err(|e| io_error("write", &temporary, &e))?;
            end += bytes.len() as u64;
            Ok(())
        };
        put(MAGIC)?;
        for record in records {
            let record = record?;
            put(&header(&[&record])?)?;
            put(&record)?;
        }
        file.sync_all().map_err(|e| io_error("sync", &temporary, &e))?;
        fs::rename(&temporary, &path).map_err(|e| io_error("rename", &path, &e))?;
        sync_folder(&folder)?;
        fs::remove_file(&self.path).map_err(|e| io_error("remove", &self.path, &e))?;
        Ok(Log {
            path,
            file,
            disk: self.disk,
            tail: Mutex::new(Tail { end, allocated: end, written: end }),
            durable: AtomicU64::new(end),
            broken: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    /// Appends one record (the concatenation of `parts`) and returns the position after it. On an error the log is
    /// as if the call had not been made.
    ///
    /// Errors: `53100` disk full, `58030` other failures, `54000` for a record above [`RECORD_BYTES_MAX`].
    pub fn append(&self, parts: &[&[u8]]) -> Result<Position> {
        let header = header(parts)?;
        let total = (HEADER_BYTES + parts.iter().map(|p| p.len()).sum::<usize>()) as u64;
        let mut tail = self.lock();
        self.check()?;
        if tail.end + total > tail.allocated {
            let size = (tail.end + total - tail.allocated).next_multiple_of(PREALLOCATE_BYTES);
            self.disk.allocate(&self.file, tail.allocated, size).map_err(|e| io_error("extend", &self.path, &e))?;
            tail.allocated += size;
        }
        let start = tail.end;
        if start + total > tail.written && total <= ZEROED_BYTES {
            let from = tail.written.max(start);
            let to = (start + total).max(from + ZEROED_BYTES).min(tail.allocated);
            let zeros = vec![0; (to - from) as usize];
            self.disk.write(&self.file, &zeros, from).map_err(|e| io_error("extend", &self.path, &e))?;
            tail.written = to;
        }
        let written = (|| {
            // The header goes last: until it is there, the bytes after it mean nothing.
            let mut at = start + HEADER_BYTES as u64;
            for part in parts {
                self.disk.write(&self.file, part, at)?;
                at += part.len() as u64;
            }
            self.disk.write(&self.file, &header, start)
        })();
        if let Err(e) = written {
            // Best effort; a record that did not check out ends the log on opening anyway.
            let _ = self.disk.write(&self.file, &[0; HEADER_BYTES], start);
            return Err(io_error("append to", &self.path, &e));
        }
        tail.end = start + total;
        tail.written = tail.written.max(tail.end);
        Ok(Position(tail.end))
    }

    /// Makes everything appended before the call durable and returns up to where.
    ///
    /// After a failure the log refuses everything (`58030`): the kernel may have dropped what it could not write.
    pub fn sync(&self) -> Result<Position> {
        self.check()?;
        let end = self.lock().end;
        if end > self.durable.load(Ordering::Acquire) {
            if let Err(e) = self.disk.sync(&self.file) {
                self.broken.store(true, Ordering::Release);
                return Err(io_error("sync", &self.path, &e));
            }
            self.durable.fetch_max(end, Ordering::AcqRel);
        }
        Ok(Position(end))
    }

    /// Refuses everything from now on: another log may be opened on the same folder, though somebody still holds this one.
    pub fn close(&self) {
        // Nobody is in the middle of an append.
        let _tail = self.lock();
        self.closed.store(true, Ordering::Release);
    }

    /// Bytes of records in the log.
    pub fn len(&self) -> u64 {
        self.lock().end
    }

    /// Whether the log holds no record.
    pub fn is_empty(&self) -> bool {
        self.len() == MAGIC.len() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(SqlState::AdminShutdown, "the log is closed"));
        }
        if self.broken.load(Ordering::Acquire) {
            return Err(Error::new(SqlState::IoError, "the log is read-only after a failed sync")
                .with_hint("Check the disk and restart the server."));
        }
        Ok(())
    }
}

fn header(parts: &[&[u8]]) -> Result<[u8; HEADER_BYTES]> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    if length > RECORD_BYTES_MAX {
        return Err(Error::new(SqlState::ProgramLimitExceeded, "transaction is too large for one log record")
            .with_detail(format!("It has {length} bytes; the limit is {RECORD_BYTES_MAX}."))
            .with_hint("Commit in smaller parts."));
    }
    let mut crc = crc32fast::Hasher::new();
    parts.iter().for_each(|p| crc.update(p));
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&(length as u32).to_le_bytes());
    header[4..].copy_from_slice(&crc.finalize().to_le_bytes());
    Ok(header)
}

/// What stands at a position of a segment.
enum Found {
    Record {
        payload: Vec<u8>,
        next: u64,
    },
    /// Not a whole record; `next` is where one would follow if only the payload is damaged.
    Broken {
        next: Option<u64>,
    },
    /// Zeros or the end of the file.
    Nothing,
}

fn record_at(file: &File, at: u64, size: u64) -> std::io::Result<Found> {
    if at + HEADER_BYTES as u64 > size {
        return Ok(Found::Nothing);
    }
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, at)?;
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as u64;
    let crc = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    if length == 0 && crc == 0 {
        return Ok(Found::Nothing);
    }
    let start = at + HEADER_BYTES as u64;
    if length as usize > RECORD_BYTES_MAX || start + length > size {
        return Ok(Found::Broken { next: None });
    }
    let mut payload = vec![0; length as usize];
    file.read_exact_at(&mut payload, start)?;
    let next = start + length;
    if crc32fast::hash(&payload) == crc {
        Ok(Found::Record { payload, next })
    } else {
        Ok(Found::Broken { next: Some(next) })
    }
}

fn read_segment(path: &Path, replay: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(|e| io_error("open", path, &e))?;
    let size = file.metadata().map_err(|e| io_error("read", path, &e))?.len();
    let mut magic = [0; 8];
    file.read_exact(&mut magic).map_err(|e| io_error("read", path, &e))?;
    if &magic != MAGIC {
        return Err(Error::new(SqlState::DataCorrupted, format!("\"{}\" is not a log segment", path.display())));
    }
    let mut at = MAGIC.len() as u64;
    loop {
        match record_at(&file, at, size).map_err(|e| io_error("read", path, &e))? {
            Found::Record { payload, next } => {
                replay(&payload)?;
                at = next;
            }
            Found::Nothing => return Ok((file, at)),
            Found::Broken { next } => {
                let follower = match next {
                    Some(next) => record_at(&file, next, size).map_err(|e| io_error("read", path, &e))?,
                    None => Found::Nothing,
                };
                if matches!(follower, Found::Record { .. }) {
                    return Err(Error::new(SqlState::DataCorrupted, "the log is damaged")
                        .with_detail(format!("The record at byte {at} of \"{}\" fails its checksum.", path.display()))
                        .with_hint("Restore the file from a backup; nothing was changed."));
                }
                return Ok((file, at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(folder: &Path) -> Result<Vec<Vec<u8>>> {
        let mut seen = Vec::new();
        Log::open(folder, |r| {
            seen.push(r.to_vec());
            Ok(())
        })?;
        Ok(seen)
    }

    fn segment(folder: &Path) -> PathBuf {
        fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .find(|p| p.extension().is_some_and(|e| e == "log"))
            .unwrap()
    }

    #[test]
    fn what_was_synced_is_read_back_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path(), |_| panic!("empty")).unwrap();
        for i in 0..1000u32 {
            log.append(&[b"record ", &i.to_le_bytes()]).unwrap();
        }
        log.sync().unwrap();
        drop(log);
        let seen = records(folder.path()).unwrap();
        assert_eq!(seen.len(), 1000);
        assert_eq!(seen[999], [b"record ".as_slice(), &999u32.to_le_bytes()].concat());
        assert_eq!(records(folder.path()).unwrap(), seen);
    }

    #[test]
    fn torn_tail_is_dropped_at_every_byte() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path(), |_| Ok(())).unwrap();
        log.append(&[b"first"]).unwrap();
        let before = log.len();
        log.append(&[b"second record"]).unwrap();
        let after = log.len();
        drop(log);
        let path = segment(folder.path());
        let whole = fs::read(&path).unwrap();
        for cut in before..after {
            fs::write(&path, &whole[..cut as usize]).unwrap();
            assert_eq!(records(folder.path()).unwrap(), vec![b"first".to_vec()], "cut at {cut}");
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(records(folder.path()).unwrap().len(), 2);
    }

    #[test]
    fn damage_before_a_whole_record_refuses_to_open() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path(), |_| Ok(())).unwrap();
        log.append(&[b"first"]).unwrap();
        log.append(&[b"second"]).unwrap();
        log.sync().unwrap();
        drop(log);
        let path = segment(folder.path());
        let mut bytes = fs::read(&path).unwrap();
        bytes[MAGIC.len() + HEADER_BYTES] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(records(folder.path()).unwrap_err().state(), SqlState::DataCorrupted);
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn rewritten_log_holds_only_the_given_records() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path(), |_| Ok(())).unwrap();
        for _ in 0..10 {
            log.append(&[b"old"]).unwrap();
        }
        let log = log.rewrite([Ok(b"new".to_vec())]).unwrap();
        log.append(&[b"newer"]).unwrap();
        log.sync().unwrap();
        drop(log);
        assert_eq!(records(folder.path()).unwrap(), vec![b"new".to_vec(), b"newer".to_vec()]);
    }
}
