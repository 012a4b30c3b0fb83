//! Bytes of a file that may be growing: a window over it, its size, and the proof that it is still the same file.

use std::fs::{File, Metadata};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flow::{Error, Result};

use super::io_error;
use super::objects::ForwardObject;
use super::place::{Found, Mark};

/// The longest record, in bytes. A longer one is malformed.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// Bytes that are read at a time.
const STEP_BYTES: usize = 1 << 20;

/// Bytes before the end of what was read that are compared when a followed file has grown.
const TAIL_BYTES: usize = 64;

/// Where bytes come from.
enum Handle {
    /// Not opened yet, or idle: a folder may hold more files than a process may open.
    Closed,
    File(File),
    /// One reader goes forwards, the other looks up what is reported.
    Object(Box<ForwardObject>, Box<ForwardObject>),
}

/// An open file and the part of it that is in memory.
pub struct Input {
    file: Found,
    handle: Handle,
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
    /// The same for bytes that an object gave and will not give again; ahead of `counted`.
    passed: (u64, u64),
}

impl Input {
    /// The bytes of a file that was found: all of them that are there now if it is followed, else those that were there.
    /// Errors: `XX001` it is not the file that was found, or shorter.
    pub fn open(file: &Found, follow: bool) -> Result<Input> {
        let handle = match &file.mark {
            Mark::Local(..) => Handle::Closed,
            Mark::Object(object) => {
                let reader = || Box::new(ForwardObject::new(file, object));
                Handle::Object(reader(), reader())
            }
        };
        let mut input = Input {
            file: file.clone(),
            handle,
            end: file.size,
            follow: follow && file.grows(),
            buffer: Vec::new(),
            base: 0,
            filled: 0,
            tail: (0, Vec::new()),
            counted: (0, 1),
            passed: (0, 1),
        };
        input.refresh()?;
        Ok(input)
    }

    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// Whether more may come at the end.
    pub fn follows(&self) -> bool {
        self.follow
    }

    /// Where the readable bytes end now.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Looks whether a followed file has grown. Errors: `XX001` it has become shorter, or another file stands in its place.
    pub fn refresh(&mut self) -> Result<()> {
        if matches!(self.handle, Handle::Object(..)) {
            return Ok(());
        }
        let path = Path::new(&self.file.name);
        let at_path = std::fs::metadata(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => self.file.changed("it was removed or renamed"),
            _ => io_error("read file", path, &e),
        });
        let metadata = match (&self.handle, at_path) {
            // What a bounded reader has opened may lose its name.
            (Handle::File(open), _) if !self.follow => open.metadata().map_err(|e| io_error("read file", path, &e))?,
            (_, at_path) => at_path?,
        };
        self.check(&metadata)?;
        if self.follow {
            self.end = metadata.len();
        }
        Ok(())
    }

    fn check(&self, metadata: &Metadata) -> Result<()> {
        if Mark::of(metadata) != self.file.mark {
            return Err(self.changed("it was replaced by another file"));
        }
        if metadata.len() < self.end {
            return Err(self.changed(&format!("it was truncated from {} to {} bytes", self.end, metadata.len())));
        }
        Ok(())
    }

    /// `XX001`: the file is not what was read before.
    pub fn changed(&self, how: &str) -> Error {
        self.file.changed(how)
    }

    /// Fills `buffer` with the file from `offset` on. `aside`: not on the way through the file.
    fn read_exact(&mut self, buffer: &mut [u8], offset: u64, aside: bool) -> Result<()> {
        let path = Path::new(&self.file.name);
        if let Handle::Closed = self.handle {
            let file = File::open(path).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => self.file.changed("it was removed or renamed"),
                _ => io_error("open file", path, &e),
            })?;
            self.check(&file.metadata().map_err(|e| io_error("read file", path, &e))?)?;
            self.handle = Handle::File(file);
        }
        let file = match &mut self.handle {
            Handle::File(file) => file,
            Handle::Object(forward, _) if !aside => return forward.read_exact(buffer, offset),
            Handle::Object(_, other) => return other.read_exact(buffer, offset),
            Handle::Closed => return Err(Error::internal("a file that is not open")),
        };
        file.read_exact_at(buffer, offset).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.file.changed("it was truncated"),
            _ => io_error("read file", path, &e),
        })
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
                // An idle follower holds no memory and no file.
                (self.buffer, self.base, self.filled, self.handle) = (Vec::new(), from, 0, Handle::Closed);
            }
            return Ok(false);
        }
        if self.follow {
            self.verify_tail()?;
        }
        self.pass(from);
        self.buffer.copy_within(self.filled - kept..self.filled, 0);
        (self.base, self.filled) = (from, kept);
        let left = self.end - from - kept as u64;
        // Doubling keeps the copying of a long record linear.
        let step = usize::try_from(left).unwrap_or(usize::MAX).min(STEP_BYTES.max(kept));
        if self.buffer.len() < kept + step {
            self.buffer.resize(kept + step, 0);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = self.read_exact(&mut buffer[kept..kept + step], from + kept as u64, false);
        self.buffer = buffer;
        read?;
        self.filled = kept + step;
        let tail_start = self.filled.saturating_sub(TAIL_BYTES);
        self.tail = (from + tail_start as u64, self.buffer[tail_start..self.filled].to_vec());
        Ok(true)
    }

    /// Counts the lines before `to`, which is in memory, of an object: looking them up later would mean to get it again.
    fn pass(&mut self, to: u64) {
        let at = |offset: u64| offset.checked_sub(self.base).and_then(|at| usize::try_from(at).ok());
        if let (Handle::Object(..), Some(from), Some(until)) = (&self.handle, at(self.passed.0), at(to))
            && from <= until
            && until <= self.filled
        {
            let lines = memchr::memchr_iter(b'\n', &self.buffer[from..until]).count() as u64;
            self.passed = (to, self.passed.1 + lines);
        }
    }

    /// Reading goes on at `from`: what is reported from now on lies behind it.
    pub fn begin(&mut self, from: u64) {
        self.pass(from);
        if self.passed.0 == from {
            self.counted = self.passed;
        }
    }

    /// A file that was truncated and written anew may have grown beyond the old size; its bytes betray it.
    fn verify_tail(&mut self) -> Result<()> {
        let mut now = vec![0; self.tail.1.len()];
        self.read_exact(&mut now, self.tail.0, true)?;
        if now == self.tail.1 { Ok(()) } else { Err(self.changed("bytes that were already read are different")) }
    }

    /// The position after the first line end at or after `from`, searched without keeping the bytes. `None`: there is none
    /// yet. A bounded input ends with a line end in effect.
    pub fn after_line_end(&mut self, from: u64) -> Result<Option<u64>> {
        let mut at = from;
        let mut block = vec![0; STEP_BYTES];
        while at < self.end {
            let length = usize::try_from(self.end - at).unwrap_or(usize::MAX).min(block.len());
            self.read_exact(&mut block[..length], at, true)?;
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
            self.read_exact(&mut block[..length], at, true)?;
            line += memchr::memchr_iter(b'\n', &block[..length]).count() as u64;
            at += length as u64;
        }
        self.counted = (offset, line);
        Ok(line)
    }

    /// Up to `bytes_max` bytes of `start .. end`.
    pub fn sample(&mut self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<u8>> {
        let length = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX).min(bytes_max);
        let mut bytes = vec![0; length];
        self.read_exact(&mut bytes, start, true)?;
        Ok(bytes)
    }
}
