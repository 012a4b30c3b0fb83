//! The data directory: one process owns it at a time, and its format version is checked before anything is read.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flow::{Error, Result, SqlState};
use rustix::fs::{FlockOperation, flock};

/// Version of everything stored below a data directory. A directory of a newer version is refused.
pub const FORMAT_VERSION: u32 = 1;

/// The file that says where the log is, if it is not in the data directory.
const LOG_PLACE: &str = "LOG_PLACE";

/// An owned data directory. Dropping it gives up ownership; so does the death of the process, however sudden.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    /// Holds the exclusive `flock`.
    _lock: File,
}

impl DataDirectory {
    /// Creates `path` if needed, takes ownership and checks the version.
    ///
    /// Errors: `55006` when another process owns it, `58030` when it cannot be created or read, `XX001` for a version
    /// that is unreadable or newer than this program.
    pub fn open(path: &Path) -> Result<DataDirectory> {
        fs::create_dir_all(path.join("log")).map_err(|e| io_error("create data directory", path, &e))?;
        let lock_path = path.join("LOCK");
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .map_err(|e| io_error("open lock file", &lock_path, &e))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut owner = String::new();
            let _ = lock.read_to_string(&mut owner);
            let error = Error::new(
                SqlState::ObjectInUse,
                format!("data directory \"{}\" is in use by another process", path.display()),
            )
            .with_hint("Stop the other server, or start this one with another --data-dir.");
            return Err(match owner.trim() {
                "" => error,
                pid => error.with_detail(format!("It is owned by process {pid}.")),
            });
        }
        lock.set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .map_err(|e| io_error("write lock file", &lock_path, &e))?;

        let version_path = path.join("VERSION");
        match fs::read_to_string(&version_path) {
            Ok(text) => match text.trim().parse::<u32>() {
                Ok(version) if version <= FORMAT_VERSION => {}
                Ok(version) => {
                    return Err(Error::new(
                        SqlState::DataCorrupted,
                        format!("data directory \"{}\" has format version {version}", path.display()),
                    )
                    .with_detail(format!("This program reads versions up to {FORMAT_VERSION}."))
                    .with_hint("Use the newer program that wrote it."));
                }
                Err(_) => {
                    return Err(Error::new(
                        SqlState::DataCorrupted,
                        format!("file \"{}\" does not hold a version number", version_path.display()),
                    ));
                }
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                write_durably(&version_path, format!("{FORMAT_VERSION}\n").as_bytes())?;
            }
            Err(e) => return Err(io_error("read", &version_path, &e)),
        }
        Ok(DataDirectory { path: path.to_path_buf(), _lock: lock })
    }

    /// The same for a directory that must be there already: nothing is created. Errors: `58P01` it is not there or is none.
    pub fn open_existing(path: &Path) -> Result<DataDirectory> {
        if !path.join("VERSION").is_file() {
            return Err(Error::new(SqlState::UndefinedFile, format!("\"{}\" is not a data directory", path.display()))
                .with_hint("Name the folder that the server was started with, with --data-dir."));
        }
        DataDirectory::open(path)
    }

    /// What tells this data directory from every other one, over all of its life. `random` is used when it has nothing yet.
    /// Errors: `53100`, `58030`.
    pub fn identity(&self, random: u64) -> Result<String> {
        let path = self.path.join("ID");
        match fs::read_to_string(&path) {
            Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_string()),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_error("read", &path, &e)),
            _ => {
                let id = format!("{random:016x}");
                write_durably(&path, format!("{id}\n").as_bytes())?;
                Ok(id)
            }
        }
    }

    /// Where the log of this data directory is, if it is not in it: it was moved to a store, and may have grown there. Errors:
    /// `58030`.
    pub fn log_kept_in(&self) -> Result<Option<String>> {
        let path = self.path.join(LOG_PLACE);
        match fs::read_to_string(&path) {
            Ok(place) => Ok(Some(place.trim().to_string())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error("read", &path, &e)),
        }
    }

    /// Notes for good that the log is kept in a store, and removes the one that is here. Errors: `53100`, `58030`.
    pub fn keep_log_in(&self, place: &str) -> Result<()> {
        if self.log_kept_in()?.as_deref() != Some(place) {
            write_durably(&self.path.join(LOG_PLACE), format!("{place}\n").as_bytes())?;
        }
        let folder = self.log_folder();
        for entry in fs::read_dir(&folder).map_err(|e| io_error("read folder", &folder, &e))? {
            let path = entry.map_err(|e| io_error("read folder", &folder, &e))?.path();
            fs::remove_file(&path).map_err(|e| io_error("remove", &path, &e))?;
        }
        sync_folder(&folder)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the log's segments.
    pub fn log_folder(&self) -> PathBuf {
        self.path.join("log")
    }
}

/// Writes a small file so that after a crash it holds either the old bytes or the new ones.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(|e| io_error("create", &temporary, &e))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| io_error("write", &temporary, &e))?;
    fs::rename(&temporary, path).map_err(|e| io_error("rename", path, &e))?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Makes creations, renames and removals in `folder` durable.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| io_error("sync folder", folder, &e))
}

/// An operating-system error on `path` as SQL: a full disk is `53100`, everything else `58030`.
pub fn io_error(action: &str, path: &Path, e: &std::io::Error) -> Error {
    if matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
        Error::new(SqlState::DiskFull, "could not write: no space left on device")
            .with_detail(format!("{action} \"{}\": {e}", path.display()))
            .with_hint("Free some disk space; nothing that was acknowledged is lost.")
    } else {
        Error::new(SqlState::IoError, format!("could not {action} \"{}\": {e}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_owner_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDirectory::open(folder.path()).unwrap();
        let refused = DataDirectory::open(folder.path()).unwrap_err();
        assert_eq!(refused.state(), SqlState::ObjectInUse);
        assert!(refused.detail().unwrap().contains(&std::process::id().to_string()));
        drop(first);
        DataDirectory::open(folder.path()).unwrap();
    }

    #[test]
    fn a_log_that_was_moved_leaves_a_note_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let directory = DataDirectory::open(folder.path()).unwrap();
        let log = crate::Log::open(&directory.log_folder(), |_| Ok(())).unwrap();
        drop(log);
        assert_eq!(directory.log_kept_in().unwrap(), None);
        for place in ["s3://bucket/a", "s3://bucket/b", "s3://bucket/b"] {
            directory.keep_log_in(place).unwrap();
            assert_eq!(directory.log_kept_in().unwrap().as_deref(), Some(place));
        }
        assert_eq!(fs::read_dir(directory.log_folder()).unwrap().count(), 0);
    }

    #[test]
    fn newer_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataDirectory::open(folder.path()).unwrap());
        fs::write(folder.path().join("VERSION"), "999\n").unwrap();
        assert_eq!(DataDirectory::open(folder.path()).unwrap_err().state(), SqlState::DataCorrupted);
        fs::write(folder.path().join("VERSION"), "abc").unwrap();
        assert_eq!(DataDirectory::open(folder.path()).unwrap_err().state(), SqlState::DataCorrupted);
    }
}
