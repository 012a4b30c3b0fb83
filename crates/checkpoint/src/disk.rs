//! What the log asks of the file system, so that a simulation can stand in for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

/// The file system under the log.
pub trait Disk: Send + Sync {
    /// Takes space, so that a later write into it does not find the disk full.
    fn allocate(&self, file: &File, from: u64, bytes: u64) -> io::Result<()>;

    /// Writes all bytes, or some of them before an error. Durable only after [`sync`](Self::sync).
    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Makes everything written so far durable. After an error nobody knows what is.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// The machine's.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn allocate(&self, file: &File, from: u64, bytes: u64) -> io::Result<()> {
        Ok(fallocate(file, FallocateFlags::empty(), from, bytes)?)
    }

    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}
