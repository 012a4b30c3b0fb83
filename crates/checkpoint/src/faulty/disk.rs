//! A disk for simulation: full, failing in the middle of a write or at a sync, and dead with what it had not synced. The names of
//! files are durable at once.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::disk::Disk;

/// Called before a request is carried out. It may unwind.
pub type OnRequest = Box<dyn FnMut(&'static str) + Send>;

/// A file system that keeps in mind what is not durable yet.
#[derive(Default)]
pub struct FaultyDisk {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    full: bool,
    short_write: bool,
    failing_sync: bool,
    dead: bool,
    on_request: Option<OnRequest>,
    /// What a crash may undo, oldest first.
    unsynced: Vec<Unsynced>,
}

/// A write that is not durable.
struct Unsynced {
    file: File,
    inode: u64,
    at: u64,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl FaultyDisk {
    pub fn new() -> Arc<FaultyDisk> {
        Arc::default()
    }

    /// No more space can be taken, or it can again.
    pub fn set_full(&self, full: bool) {
        lock(&self.state).full = full;
    }

    /// The next write fails after half of its bytes.
    pub fn shorten_next_write(&self) {
        lock(&self.state).short_write = true;
    }

    /// The next sync fails.
    pub fn fail_next_sync(&self) {
        lock(&self.state).failing_sync = true;
    }

    pub fn on_request(&self, on_request: OnRequest) {
        lock(&self.state).on_request = Some(on_request);
    }

    /// The machine loses its power: nothing has an effect any more, and of what was not synced either a prefix is there or, as the
    /// disk likes, any part, one of its writes perhaps torn. `draw` gives a number below its argument.
    pub fn crash(&self, mut draw: impl FnMut(usize) -> usize) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.dead = true;
        state.on_request = None;
        let unsynced = std::mem::take(&mut state.unsynced);
        for write in unsynced.iter().rev() {
            write.file.write_all_at(&write.before, write.at)?;
        }
        let torn = draw(unsynced.len() + 1);
        let in_order = draw(2) == 0;
        for (n, write) in unsynced.iter().enumerate() {
            let there = if in_order { n < torn } else { draw(2) == 0 };
            let bytes = match (n == torn, there) {
                (true, _) => draw(write.after.len() + 1),
                (false, true) => write.after.len(),
                (false, false) => 0,
            };
            write.file.write_all_at(&write.after[..bytes], write.at)?;
        }
        Ok(())
    }

    fn request(&self, request: &'static str) -> io::Result<()> {
        // The lock is not held: it may unwind.
        let on_request = lock(&self.state).on_request.take();
        if let Some(mut on_request) = on_request {
            on_request(request);
            lock(&self.state).on_request = Some(on_request);
        }
        match lock(&self.state).dead {
            true => Err(io::Error::other("the disk is dead")),
            false => Ok(()),
        }
    }
}

impl Disk for FaultyDisk {
    fn allocate(&self, _: &File, _: u64, _: u64) -> io::Result<()> {
        self.request("allocate")?;
        match lock(&self.state).full {
            true => Err(io::ErrorKind::StorageFull.into()),
            // Files have holes; nothing else takes space from them.
            false => Ok(()),
        }
    }

    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        self.request("write")?;
        let mut state = lock(&self.state);
        let short = std::mem::take(&mut state.short_write);
        let bytes = if short { &bytes[..bytes.len() / 2] } else { bytes };
        let mut before = vec![0; bytes.len()];
        let mut read = 0;
        while read < before.len() {
            match file.read_at(&mut before[read..], at + read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        let inode = file.metadata()?.ino();
        state.unsynced.push(Unsynced { file: file.try_clone()?, inode, at, before, after: bytes.to_vec() });
        file.write_all_at(bytes, at)?;
        if short { Err(io::Error::other("short write")) } else { Ok(()) }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.request("sync")?;
        let mut state = lock(&self.state);
        if std::mem::take(&mut state.failing_sync) {
            return Err(io::Error::other("could not sync"));
        }
        let inode = file.metadata()?.ino();
        state.unsynced.retain(|write| write.inode != inode);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;

    fn records(folder: &std::path::Path) -> Vec<Vec<u8>> {
        let mut seen = Vec::new();
        Log::open(folder, |record| {
            seen.push(record.to_vec());
            Ok(())
        })
        .unwrap();
        seen
    }

    #[test]
    fn what_was_synced_survives_every_crash_and_of_the_rest_a_prefix() {
        let (mut kept, mut lost) = (0, 0);
        for seed in 0..400u64 {
            let folder = tempfile::tempdir().unwrap();
            let disk = FaultyDisk::new();
            let log = Log::open_on(disk.clone(), folder.path(), |_| Ok(())).unwrap();
            let record = |n: u8| vec![n; 10 + usize::from(n) * 7];
            for n in 0..3 {
                log.append(&[&record(n)]).unwrap();
            }
            log.sync().unwrap();
            for n in 3..8 {
                log.append(&[&record(n)]).unwrap();
            }
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            disk.crash(|below| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state % below.max(1) as u64) as usize
            })
            .unwrap();
            assert!(log.append(&[b"too late"]).is_err());
            let seen = records(folder.path());
            assert!(seen.len() >= 3, "seed {seed}");
            assert!(seen.iter().zip(0..).all(|(found, n)| *found == record(n)), "seed {seed}");
            kept += seen.len() - 3;
            lost += 8 - seen.len();
        }
        assert!(kept > 100 && lost > 100, "{kept} kept, {lost} lost");
    }

    #[test]
    fn a_record_that_the_disk_did_not_take_is_not_in_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new();
        let log = Log::open_on(disk.clone(), folder.path(), |_| Ok(())).unwrap();
        disk.set_full(true);
        assert_eq!(log.append(&[b"full"]).unwrap_err().state(), flow::SqlState::DiskFull);
        disk.set_full(false);
        log.append(&[b"first"]).unwrap();
        disk.shorten_next_write();
        assert_eq!(log.append(&[b"short"]).unwrap_err().state(), flow::SqlState::IoError);
        log.append(&[b"second"]).unwrap();
        log.sync().unwrap();
        disk.fail_next_sync();
        log.append(&[b"third"]).unwrap();
        assert_eq!(log.sync().unwrap_err().state(), flow::SqlState::IoError);
        assert!(log.append(&[b"fourth"]).is_err() && log.sync().is_err());
        drop(log);
        assert_eq!(records(folder.path())[..2], [b"first".to_vec(), b"second".to_vec()]);
    }
}
