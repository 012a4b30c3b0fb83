//! Objects as files of a folder.
//!
//! A file is written under a temporary name, synced, and takes its name only if that is free; then the folder is synced. So an
//! object is there whole and durably, or not at all.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flow::{Error, Result, SqlState};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::crash;
use crate::directory::{io_error, sync_folder};
use crate::door::{Answer, Failure, Listed, Store};
use crate::names::MANIFESTS;

/// Where files are before they have their name. No object's name begins with a dot.
const TEMPORARY: &str = ".tmp";

/// Nobody writes a file for so long: one that is older and still has no name was left behind by a crash.
const LEFT_BEHIND_AGE: Duration = Duration::from_secs(3600);

/// A folder of objects.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    temporary: AtomicU64,
    /// Folders whose own creation is known to be durable.
    folders: Mutex<HashSet<PathBuf>>,
}

impl LocalStore {
    /// Creates the folder if needed, and clears away what a crash left unnamed. The folder has one owner: see
    /// [`crate::DataDirectory`].
    pub fn open(root: &Path) -> Result<LocalStore> {
        let temporary = root.join(TEMPORARY);
        fs::create_dir_all(&temporary).map_err(|e| io_error("create folder", &temporary, &e))?;
        for entry in fs::read_dir(&temporary).map_err(|e| io_error("read folder", &temporary, &e))? {
            let path = entry.map_err(|e| io_error("read folder", &temporary, &e))?.path();
            fs::remove_file(&path).map_err(|e| io_error("remove", &path, &e))?;
        }
        sync_folder(root)?;
        if let Some(parent) = root.parent() {
            sync_folder(parent)?;
        }
        Ok(LocalStore { root: root.to_path_buf(), temporary: AtomicU64::new(0), folders: Mutex::default() })
    }

    /// The same in a folder that another process owns, which is there already: what has no name yet may be being written by
    /// others. Errors: `58P01` the folder is not there.
    pub fn share(root: &Path) -> Result<LocalStore> {
        if !root.join(TEMPORARY).is_dir() {
            return Err(Error::new(
                SqlState::UndefinedFile,
                format!("\"{}\" is no folder of checkpoints", root.display()),
            ));
        }
        Ok(LocalStore { root: root.to_path_buf(), temporary: AtomicU64::new(0), folders: Mutex::default() })
    }

    /// The same in a folder that several processes own together; it is created if needed. What has no name yet may be being
    /// written by others, so only what is older than [`LEFT_BEHIND_AGE`] is cleared away, by the file system's own clock.
    pub fn join(root: &Path) -> Result<LocalStore> {
        let temporary = root.join(TEMPORARY);
        fs::create_dir_all(&temporary).map_err(|e| io_error("create folder", &temporary, &e))?;
        sync_folder(root)?;
        if let Some(parent) = root.parent() {
            sync_folder(parent)?;
        }
        let store = LocalStore::share(root)?;
        let now = store.write_temporary(&[])?;
        let modified = |path: &Path| fs::metadata(path).and_then(|found| found.modified());
        let young = modified(&now).map_err(|e| io_error("read", &now, &e))?;
        for entry in fs::read_dir(&temporary).map_err(|e| io_error("read folder", &temporary, &e))? {
            let path = entry.map_err(|e| io_error("read folder", &temporary, &e))?.path();
            // One that is gone has its name.
            let age = modified(&path).ok().and_then(|old| young.duration_since(old).ok());
            if age.is_some_and(|age| age > LEFT_BEHIND_AGE) {
                let _ = fs::remove_file(&path);
            }
        }
        let _ = fs::remove_file(&now);
        Ok(store)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes and syncs a new file without a name. Two processes in one folder do not meet: the name is taken only if free.
    fn write_temporary(&self, bytes: &[u8]) -> Result<PathBuf> {
        loop {
            let number = self.temporary.fetch_add(1, Ordering::Relaxed);
            let path = self.root.join(TEMPORARY).join(format!("{}-{number}", std::process::id()));
            let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(io_error("create", &path, &e)),
            };
            if let Err(e) = file.write_all(bytes).and_then(|()| file.sync_all()) {
                // After a failed sync the kernel may have dropped what it could not write: such a file is never kept.
                let _ = fs::remove_file(&path);
                return Err(io_error("write", &path, &e));
            }
            return Ok(path);
        }
    }

    /// Creates the folders from the root to `folder`, each durably: one that exists may be another thread's, or a dead process's,
    /// that did not come to sync it.
    fn create_folder(&self, folder: &Path) -> Result<()> {
        let mut known = self.folders.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if known.contains(folder) {
            return Ok(());
        }
        let below = folder.strip_prefix(&self.root).map_err(|_| Error::internal("a folder outside of the store"))?;
        let mut at = self.root.clone();
        for part in below.components() {
            let parent = at.clone();
            at.push(part);
            match fs::create_dir(&at) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(io_error("create folder", &at, &e)),
            }
            sync_folder(&parent)?;
        }
        known.insert(folder.to_path_buf());
        Ok(())
    }

    fn collect(&self, folder: &Path, listed: &mut Vec<Listed>) -> Result<()> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(io_error("read folder", folder, &e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| io_error("read folder", folder, &e))?;
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().first() == Some(&b'.') {
                continue;
            }
            let kind = entry.file_type().map_err(|e| io_error("read", &path, &e))?;
            if kind.is_dir() {
                self.collect(&path, listed)?;
                continue;
            }
            let bytes = match entry.metadata() {
                Ok(metadata) => metadata.len(),
                // Deleted in between.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(io_error("read", &path, &e)),
            };
            let name = path.strip_prefix(&self.root).ok().map(Path::as_os_str).and_then(OsStr::to_str);
            listed.extend(name.map(|name| Listed { name: name.to_string(), bytes }));
        }
        Ok(())
    }
}

/// Gives `from` the name `to` unless that is taken. After `Created` there is no `from` any more.
fn rename_new(from: &Path, to: &Path) -> std::io::Result<Answer> {
    let refused_or = |e: Errno| if e == Errno::EXIST { Ok(Answer::Refused) } else { Err(e.into()) };
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(Answer::Created),
        // Not every file system knows the flag. A hard link is refused where a file is as well.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match rustix::fs::link(from, to) {
            Ok(()) => {
                // Else it is cleared away later.
                let _ = fs::remove_file(from);
                Ok(Answer::Created)
            }
            Err(e) => refused_or(e),
        },
        Err(e) => refused_or(e),
    }
}

impl Store for LocalStore {
    fn create(&self, name: &str, bytes: &Bytes) -> Result<Answer, Failure> {
        let path = self.path(name);
        let folder = path.parent().unwrap_or(&self.root);
        self.create_folder(folder).map_err(Failure::Lasting)?;
        let temporary = self.write_temporary(bytes).map_err(Failure::Lasting)?;
        let renamed = rename_new(&temporary, &path);
        // One that was renamed is gone, and a process on another machine may have made another of its name since.
        if !matches!(renamed, Ok(Answer::Created)) {
            let _ = fs::remove_file(&temporary);
        }
        let answer = renamed.map_err(|e| Failure::Lasting(io_error("create", &path, &e)))?;
        if name.starts_with(MANIFESTS) {
            crash::point("C7");
        }
        // Also when it was refused: it may be our own file, whose folder could not be synced the first time.
        sync_folder(folder).map_err(Failure::Lasting)?;
        Ok(answer)
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, Failure> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(Failure::Lasting(io_error("read", &path, &e))),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
        let mut listed = Vec::new();
        self.collect(&self.path(folder), &mut listed).map_err(Failure::Lasting)?;
        Ok(listed)
    }

    /// Not synced: an object that comes back after a crash is deleted again with the next collection, and nothing refers to it.
    fn delete(&self, name: &str) -> Result<(), Failure> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Failure::Lasting(io_error("remove", &path, &e))),
        }
    }

    fn place(&self) -> String {
        format!("\"{}\"", self.root.display())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::door::{Door, NoRest, PutNew};

    fn door(root: &Path, nonce: u64) -> Door {
        Door::new(Arc::new(LocalStore::open(root).unwrap()), Arc::new(NoRest), nonce)
    }

    #[test]
    fn objects_are_created_read_listed_and_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let door = door(&folder.path().join("objects"), 1);
        door.probe().unwrap();
        assert_eq!(door.list("").unwrap(), []);
        assert_eq!(door.put_new("jobs/7/a.seg", b"state").unwrap(), PutNew::Created);
        door.put_new("epoch/0000000001", b"record").unwrap();
        assert_eq!(door.get("jobs/7/a.seg").unwrap().unwrap(), b"state".as_slice());
        assert_eq!(door.get("jobs/7/b.seg").unwrap(), None);
        let names = |folder: &str| -> Vec<String> {
            door.list(folder).unwrap().into_iter().map(|listed| listed.name).collect()
        };
        assert_eq!(names(""), ["epoch/0000000001", "jobs/7/a.seg"]);
        assert_eq!(names("jobs"), ["jobs/7/a.seg"]);
        assert_eq!(names("jobs/8"), [""; 0]);
        door.delete("jobs/7/a.seg").unwrap();
        door.delete("jobs/7/a.seg").unwrap();
        assert_eq!(names("jobs"), [""; 0]);
    }

    #[test]
    fn of_many_who_create_one_name_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let first = door(root, 0);
        let doors: Vec<Door> = (1..9).map(|nonce| door(root, nonce)).collect();
        let won = std::thread::scope(|scope| {
            let put = |door: Door| {
                scope.spawn(move || (door.writer().nonce, door.put_new("epoch/0000000001", b"mine").unwrap()))
            };
            let tries: Vec<_> = doors.into_iter().map(put).collect();
            tries.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
        });
        let winner = first.get_object("epoch/0000000001").unwrap().unwrap().writer.nonce;
        for (nonce, outcome) in won {
            assert_eq!(outcome == PutNew::Created, nonce == winner);
        }
        assert_eq!(fs::read_dir(root.join(TEMPORARY)).unwrap().count(), 0);
    }

    #[test]
    fn what_a_crash_left_unnamed_is_cleared_away_and_never_listed() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(TEMPORARY)).unwrap();
        fs::write(folder.path().join(TEMPORARY).join("1-0"), "half").unwrap();
        let door = door(folder.path(), 1);
        assert_eq!(door.list("").unwrap(), []);
        assert!(!folder.path().join(TEMPORARY).join("1-0").exists());
    }

    #[test]
    fn who_shares_a_folder_leaves_what_its_owner_is_writing() {
        let folder = tempfile::tempdir().unwrap();
        let nothing = LocalStore::share(folder.path()).err().unwrap();
        assert_eq!(nothing.state(), SqlState::UndefinedFile);
        let owner = door(folder.path(), 1);
        owner.put_new("manifest/a", b"payload").unwrap();
        let unnamed = folder.path().join(TEMPORARY).join("1-0");
        fs::write(&unnamed, "half").unwrap();
        let guest = Door::new(Arc::new(LocalStore::share(folder.path()).unwrap()), Arc::new(NoRest), 2);
        assert_eq!(guest.get("manifest/a").unwrap().unwrap(), b"payload".as_slice());
        assert!(unnamed.exists());
    }

    #[test]
    fn who_joins_clears_away_only_what_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("made");
        let first = LocalStore::join(&root).unwrap();
        let (young, old) = (root.join(TEMPORARY).join("1-0"), root.join(TEMPORARY).join("1-1"));
        fs::write(&young, "half").unwrap();
        let file = fs::File::create(&old).unwrap();
        let written = file.metadata().unwrap().modified().unwrap();
        file.set_modified(written - LEFT_BEHIND_AGE - Duration::from_secs(60)).unwrap();
        let second = LocalStore::join(&root).unwrap();
        assert!(young.exists() && !old.exists());
        let doors = [(first, 1), (second, 2)].map(|(s, nonce)| Door::new(Arc::new(s), Arc::new(NoRest), nonce));
        assert_eq!(doors[0].put_new("log/0000000001", b"x").unwrap(), PutNew::Created);
        assert!(matches!(doors[1].put_new("log/0000000001", b"x").unwrap(), PutNew::Exists(_)));
        assert_eq!(fs::read_dir(root.join(TEMPORARY)).unwrap().count(), 1);
    }

    #[test]
    fn file_that_was_cut_or_changed_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let door = door(folder.path(), 1);
        door.put_new("manifest/a", b"payload").unwrap();
        let path = folder.path().join("manifest/a");
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[42] ^= 1;
        for damaged in [&whole[..20], &whole[..whole.len() - 1], &flipped, &[]] {
            fs::write(&path, damaged).unwrap();
            let error = door.get("manifest/a").unwrap_err();
            assert_eq!(error.state(), flow::SqlState::DataCorrupted);
            assert!(error.message().contains("manifest/a"), "{error}");
        }
    }

    #[test]
    fn names_cannot_leave_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let door = door(folder.path(), 1);
        for name in ["../x", "/etc/passwd", "a/../../x", "", "a//b", ".tmp/x", "a b", "a\0"] {
            assert_eq!(door.put_new(name, b"").unwrap_err().state(), flow::SqlState::InvalidName, "{name:?}");
            assert_eq!(door.get(name).unwrap_err().state(), flow::SqlState::InvalidName, "{name:?}");
            assert_eq!(door.delete(name).unwrap_err().state(), flow::SqlState::InvalidName, "{name:?}");
        }
    }

    #[test]
    fn full_disk_is_said_as_such() {
        // A file system that takes files but no bytes.
        let full = Path::new("/dev/full");
        if full.exists() {
            let e = OpenOptions::new().write(true).open(full).unwrap().write_all(b"x").unwrap_err();
            assert_eq!(io_error("write", full, &e).state(), flow::SqlState::DiskFull);
        }
    }
}
