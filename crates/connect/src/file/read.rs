//! Bytes of a file that may be growing: a window over it, its size, and the proof that it is still the same file.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use flow::{Error, Result, SqlState};

use super::io_error;

/// The longest record, in bytes. A longer one is malformed.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// Bytes that are read at a time.
const STEP_BYTES: usize = 1 << 20;

/// Bytes before the end of what was read that are compared when a followed file has grown.
const TAIL_BYTES: usize = 64;

/// An open file and the part of it that is in memory.
pub struct Input {
    path: PathBuf,
    file: File,
    /// Device and inode at opening.
    identity: (u64, u64),
    /// Bytes from the start that may be read: fixed for a bounded input, growing for a followed one.
    end: u64,
    follow: bool,
    /// The window: `buffer[..filled]` holds the file from `base` on.
    buffer: Vec<u8>,
    base: u64,
    filled: usize,
    /// The last bytes that were read, and where they start.
    tail: (u64, Vec<u8>),
    /// The last counted place: (offset, line number there).
    counted: (u64, u64),
}

impl Input {
    /// Opens a regular file. `end`: where a bounded input ends, if that was fixed before.
    pub fn open(path: &Path, follow: bool, end: Option<u64>) -> Result<Input> {
        // Looked at before it is opened: opening a named pipe would wait for a writer.
        let metadata = std::fs::metadata(path).map_err(|e| io_error("open file", path, &e))?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() { "a directory" } else { "not a regular file" };
            return Err(Error::new(SqlState::WrongObjectType, format!("\"{}\" is {what}", path.display())));
        }
        let file = File::open(path).map_err(|e| io_error("open file", path, &e))?;
        let metadata = file.metadata().map_err(|e| io_error("read file", path, &e))?;
        let mut input = Input {
            path: path.to_path_buf(),
            file,
            identity: identity(&metadata),
            end: end.unwrap_or(metadata.len()),
            follow,
            buffer: Vec::new(),
            base: 0,
            filled: 0,
            tail: (0, Vec::new()),
            counted: (0, 1),
        };
        input.check(&metadata)?;
        if follow {
            input.end = metadata.len();
        }
        Ok(input)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the readable bytes end now.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Looks whether a followed file has grown. Errors: `XX001` it has become shorter, or another file stands in its place.
    pub fn refresh(&mut self) -> Result<()> {
        let metadata = self.file.metadata().map_err(|e| io_error("read file", &self.path, &e))?;
        self.check(&metadata)?;
        if self.follow {
            self.end = metadata.len();
            let at_path = std::fs::metadata(&self.path);
            match at_path {
                Ok(m) if identity(&m) == self.identity => {}
                Ok(_) => return Err(self.changed("it was replaced by another file")),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Err(self.changed("it was removed or renamed"));
                }
                Err(e) => return Err(io_error("read file", &self.path, &e)),
            }
        }
        Ok(())
    }

    fn check(&self, metadata: &Metadata) -> Result<()> {
        if metadata.len() < self.end {
            return Err(self.changed(&format!("it was truncated from {} to {} bytes", self.end, metadata.len())));
        }
        Ok(())
    }

    /// `XX001`: the file is not what was read before.
    pub fn changed(&self, how: &str) -> Error {
        Error::new(
            SqlState::DataCorrupted,
            format!("file \"{}\" changed while it was read: {how}", self.path.display()),
        )
        .with_detail("A file source may only grow at its end; rows that were read cannot be taken back.")
        .with_hint("Drop the source and create it again to read the file from its start.")
    }

    /// The bytes in memory from `from` on; at least one after [`more`](Self::more) returned true.
    pub fn bytes(&self, from: u64) -> &[u8] {
        let skip = from.checked_sub(self.base).and_then(|s| usize::try_from(s).ok());
        skip.and_then(|s| self.buffer.get(s..self.filled)).unwrap_or(&[])
    }

    /// Whether [`bytes`](Self::bytes) reaches the end of the readable bytes.
    pub fn at_end(&self, from: u64) -> bool {
        from + self.bytes(from).len() as u64 >= self.end
    }

    /// Reads more behind [`bytes`](Self::bytes)`(from)`, dropping what is before `from`. False at the end.
    pub fn more(&mut self, from: u64) -> Result<bool> {
        let kept = self.bytes(from).len();
        if self.at_end(from) {
            if kept == 0 && self.follow {
                // An idle follower holds no memory.
                (self.buffer, self.base, self.filled) = (Vec::new(), from, 0);
            }
            return Ok(false);
        }
        if self.follow {
            self.verify_tail()?;
        }
        self.buffer.copy_within(self.filled - kept..self.filled, 0);
        (self.base, self.filled) = (from, kept);
        let left = self.end - from - kept as u64;
        // Doubling keeps the copying of a long record linear.
        let step = usize::try_from(left).unwrap_or(usize::MAX).min(STEP_BYTES.max(kept));
        if self.buffer.len() < kept + step {
            self.buffer.resize(kept + step, 0);
        }
        read_exact(&self.file, &mut self.buffer[kept..kept + step], from + kept as u64).map_err(|e| self.failed(&e))?;
        self.filled = kept + step;
        let tail_start = self.filled.saturating_sub(TAIL_BYTES);
        self.tail = (from + tail_start as u64, self.buffer[tail_start..self.filled].to_vec());
        Ok(true)
    }

    /// A file that was truncated and written anew may have grown beyond the old size; its bytes betray it.
    fn verify_tail(&self) -> Result<()> {
        let (start, known) = &self.tail;
        let mut now = vec![0; known.len()];
        read_exact(&self.file, &mut now, *start).map_err(|e| self.failed(&e))?;
        if now == *known { Ok(()) } else { Err(self.changed("bytes that were already read are different")) }
    }

    /// The position after the first line end at or after `from`, searched without keeping the bytes. `None`: there is none
    /// yet. A bounded input ends with a line end in effect.
    pub fn after_line_end(&self, from: u64) -> Result<Option<u64>> {
        let mut at = from;
        let mut block = vec![0; STEP_BYTES];
        while at < self.end {
            let length = usize::try_from(self.end - at).unwrap_or(usize::MAX).min(block.len());
            read_exact(&self.file, &mut block[..length], at).map_err(|e| self.failed(&e))?;
            if let Some(i) = memchr::memchr(b'\n', &block[..length]) {
                return Ok(Some(at + i as u64 + 1));
            }
            at += length as u64;
        }
        Ok((!self.follow).then_some(self.end))
    }

    /// The 1-based line on which `offset` lies. Counts from the last such place on, so ascending calls are cheap.
    pub fn line_of(&mut self, offset: u64) -> Result<u64> {
        let (mut at, mut line) = if self.counted.0 <= offset { self.counted } else { (0, 1) };
        let mut block = vec![0; STEP_BYTES.min(usize::try_from(offset - at).unwrap_or(STEP_BYTES))];
        while at < offset {
            let length = usize::try_from(offset - at).unwrap_or(usize::MAX).min(block.len());
            read_exact(&self.file, &mut block[..length], at).map_err(|e| self.failed(&e))?;
            line += memchr::memchr_iter(b'\n', &block[..length]).count() as u64;
            at += length as u64;
        }
        self.counted = (offset, line);
        Ok(line)
    }

    /// Up to `bytes_max` bytes of `start .. end`.
    pub fn sample(&self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<u8>> {
        let length = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX).min(bytes_max);
        let mut bytes = vec![0; length];
        read_exact(&self.file, &mut bytes, start).map_err(|e| self.failed(&e))?;
        Ok(bytes)
    }

    fn failed(&self, e: &std::io::Error) -> Error {
        match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.changed("it was truncated"),
            _ => io_error("read file", &self.path, e),
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn read_exact(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    file.read_exact_at(buffer, offset)
}
