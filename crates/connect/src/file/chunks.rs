//! Ranges of a file's bytes in any order, as the Parquet reader asks for them.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes};
use flow::{Error, Result};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::io_error;
use super::objects::ObjectRanges;
use super::place::{Found, Mark};

/// The least that is read at a time where the length is not known.
const STEP_BYTES: usize = 64 << 10;

/// Where ranges come from.
pub trait Ranges: Send + Sync {
    /// Bytes of the whole.
    fn size(&self) -> u64;

    /// Exactly `length` bytes from `offset` on, which are there. Errors: `XX001` the file has changed, `58030`.
    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes>;
}

/// A file of the operating system.
struct Local {
    found: Found,
    file: File,
}

impl Ranges for Local {
    fn size(&self) -> u64 {
        self.found.size
    }

    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let mut buffer = vec![0; length];
        self.file.read_exact_at(&mut buffer, offset).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.found.changed("it was truncated"),
            _ => io_error("read file", Path::new(&self.found.name), &e),
        })?;
        Ok(buffer.into())
    }
}

/// The bytes of one file. Cheap to clone.
#[derive(Clone)]
pub struct Chunks {
    ranges: Arc<dyn Ranges>,
    /// Why a range could not be read: the Parquet reader keeps only the words of an error.
    failed: Arc<Mutex<Option<Error>>>,
}

impl Chunks {
    /// The file that was found, as large as it was, of which so many columns are read. Errors: `XX001` another one or a shorter
    /// one is there; `42501`, `58030`.
    pub fn open(found: &Found, columns: usize) -> Result<Chunks> {
        if let Mark::Object(object) = &found.mark {
            return Ok(Chunks::new(Arc::new(ObjectRanges::new(found, object, columns))));
        }
        let path = Path::new(&found.name);
        let file = File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => found.changed("it was removed or renamed"),
            _ => io_error("open file", path, &e),
        })?;
        let metadata = file.metadata().map_err(|e| io_error("read file", path, &e))?;
        if Mark::of(&metadata) != found.mark {
            return Err(found.changed("it was replaced by another file"));
        }
        if metadata.len() != found.size {
            let sizes = format!("it had {} bytes and has {}", found.size, metadata.len());
            return Err(found.changed(&sizes));
        }
        Ok(Chunks::new(Arc::new(Local { found: found.clone(), file })))
    }

    pub fn new(ranges: Arc<dyn Ranges>) -> Chunks {
        Chunks { ranges, failed: Arc::default() }
    }

    /// Why the last range could not be read, if one could not.
    pub fn failure(&self) -> Option<Error> {
        self.failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }

    fn range(&self, offset: u64, length: usize) -> parquet::errors::Result<Bytes> {
        if offset.checked_add(length as u64).is_none_or(|end| end > self.ranges.size()) {
            let size = self.ranges.size();
            return Err(ParquetError::EOF(format!("{length} bytes at byte {offset} of {size} are not there")));
        }
        self.ranges.read_at(offset, length).map_err(|e| {
            let words = ParquetError::General(e.message().to_string());
            *self.failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(e);
            words
        })
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.ranges.size()
    }
}

impl ChunkReader for Chunks {
    type T = Forward;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Forward> {
        Ok(Forward { chunks: self.clone(), at: start, block: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.range(start, length)
    }
}

/// Reads on from an offset.
pub struct Forward {
    chunks: Chunks,
    /// Behind `block`.
    at: u64,
    block: Bytes,
}

impl Read for Forward {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.block.is_empty() {
            let left = usize::try_from(self.chunks.len().saturating_sub(self.at)).unwrap_or(usize::MAX);
            let length = left.min(STEP_BYTES.max(buffer.len()));
            if length == 0 || buffer.is_empty() {
                return Ok(0);
            }
            self.block = self.chunks.range(self.at, length).map_err(std::io::Error::other)?;
            self.at += length as u64;
        }
        let length = buffer.len().min(self.block.len());
        self.block.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
