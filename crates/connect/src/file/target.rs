//! Where a sink's files go: a folder of the server or a prefix of a bucket, each with a hidden folder of what is staged.
//!
//! On disk a file is published by renaming it, which a reader sees wholly or not at all; files are made durable before, and the
//! folders after, so that no name outlives a crash without its bytes. What a bucket does is in `upload`.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{crash, planted};
use flow::{Error, Result, SqlState};

use super::io_error;
use super::objects::{Bucket, S3Options};
use super::place::bucket_and_key;
use super::staged::{STAGING, Seen, StagedFile, Step};
use super::upload::Upload;
use super::write::folder_of;

/// Bytes that are read at a time for a checksum.
const BLOCK_BYTES: usize = 1 << 18;

pub enum Target {
    Folder(PathBuf),
    /// The prefix is empty or ends with `/`.
    Bucket {
        bucket: Arc<Bucket>,
        prefix: String,
    },
}

/// A staged file that grows.
pub enum Output {
    File { file: File, path: PathBuf },
    Object(Box<Upload>),
}

impl Target {
    /// Errors: `22023` an address or options that are none; `0A000` a place that is not written.
    pub fn new(path: &Path, s3: &S3Options) -> Result<Target> {
        let text = path.to_string_lossy();
        Ok(match bucket_and_key(&text, "written to")? {
            None => Target::Folder(path.to_path_buf()),
            Some((bucket, key)) => {
                let mut prefix = key.trim_matches('/').to_string();
                if !prefix.is_empty() {
                    prefix.push('/');
                }
                let bucket = Arc::new(Bucket::s3(bucket, s3)?);
                bucket.key(&prefix)?;
                Target::Bucket { bucket, prefix }
            }
        })
    }

    /// Whether files can go there, as far as it is known without writing. Errors: `58P01`, `42501`, `42809`.
    pub fn check(&self) -> Result<()> {
        let Target::Folder(root) = self else { return Ok(()) };
        let folder = match std::fs::metadata(root) {
            Ok(metadata) if metadata.is_dir() => return Ok(()),
            Ok(_) => {
                let message = format!("\"{}\" is not a folder", root.display());
                return Err(Error::new(SqlState::WrongObjectType, message)
                    .with_hint("With delivery = 'exactly_once' the path is a folder, to which files are added."));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => folder_of(root),
            Err(e) => return Err(io_error("open folder", root, &e)),
        };
        // The last folder of the path is made.
        let metadata = std::fs::metadata(folder).map_err(|e| io_error("open folder", folder, &e))?;
        if metadata.is_dir() {
            return Ok(());
        }
        Err(Error::new(SqlState::UndefinedFile, format!("\"{}\" is not a folder", folder.display())))
    }

    /// Makes the folder, if it is not there. Errors: as [`check`](Self::check), `53100`, `58030`.
    pub fn create(&self) -> Result<()> {
        self.check()?;
        match self {
            Target::Folder(root) => {
                create_folder(root).map_err(|e| io_error("create folder", root, &e))?;
                sync_folder(folder_of(root))
            }
            Target::Bucket { .. } => Ok(()),
        }
    }

    /// Makes the folder of staged files in one that is there. Errors: `53100`, `58030` the target is away.
    pub fn create_staging(&self) -> Result<()> {
        match self {
            Target::Folder(root) => {
                let staging = root.join(STAGING);
                create_folder(&staging).map_err(|e| away("create folder", &staging, &e))?;
                sync_folder(root)
            }
            Target::Bucket { .. } => Ok(()),
        }
    }

    /// Begins a staged file of a name that no other has. Errors: `53100`, `58030`.
    pub fn stage(&self, name: &str) -> Result<Output> {
        Ok(match self {
            Target::Folder(root) => {
                let path = root.join(STAGING).join(name);
                let file = OpenOptions::new().write(true).create_new(true).open(&path);
                Output::File { file: file.map_err(|e| away("create file", &path, &e))?, path }
            }
            Target::Bucket { bucket, prefix } => {
                Output::Object(Box::new(Upload::new(bucket, &format!("{prefix}{STAGING}/{name}"))?))
            }
        })
    }

    /// The names of staged files stay after a crash; the files themselves are durable when they are finished.
    pub fn sync_staged(&self) -> Result<()> {
        match self {
            Target::Folder(root) => sync_folder(&root.join(STAGING)),
            Target::Bucket { .. } => Ok(()),
        }
    }

    /// Publishes those that are not published yet, durably. `verify`: compare the bytes of what is staged too, not its length
    /// alone. Errors: `XX001` one cannot be published, `53100`, `58030`.
    pub fn publish(&self, files: &[StagedFile], verify: bool) -> Result<()> {
        match self {
            Target::Folder(root) => publish_renaming(root, files, verify),
            Target::Bucket { bucket, prefix } => bucket.publish(prefix, files, verify),
        }
    }

    /// The names in the folder of staged files.
    pub fn staged_names(&self) -> Result<Vec<String>> {
        match self {
            Target::Folder(root) => {
                let staging = root.join(STAGING);
                let failed = |e: std::io::Error| away("read folder", &staging, &e);
                let mut names = Vec::new();
                for entry in std::fs::read_dir(&staging).map_err(failed)? {
                    // Names that are not UTF-8 are not ours.
                    names.extend(entry.map_err(failed)?.file_name().into_string().ok());
                }
                Ok(names)
            }
            Target::Bucket { bucket, prefix } => bucket.names_below(&format!("{prefix}{STAGING}/")),
        }
    }

    pub fn remove_staged(&self, names: &[String]) -> Result<()> {
        match self {
            Target::Folder(root) => {
                for path in names.iter().map(|name| root.join(STAGING).join(name)) {
                    remove(&path)?;
                }
                Ok(())
            }
            Target::Bucket { bucket, prefix } => {
                bucket.remove(names.iter().map(|name| format!("{prefix}{STAGING}/{name}")).collect())
            }
        }
    }

    /// Keeps a small text in the folder of staged files. It may be lost in a crash, and is never half there.
    pub fn note(&self, name: &str, bytes: &[u8]) -> Result<()> {
        match self {
            Target::Folder(root) => {
                let path = root.join(STAGING).join(name);
                let beside = root.join(STAGING).join(format!("{name}.tmp"));
                std::fs::write(&beside, bytes).map_err(|e| away("write file", &beside, &e))?;
                std::fs::rename(&beside, &path).map_err(|e| away("write file", &path, &e))
            }
            Target::Bucket { bucket, prefix } => bucket.put(&format!("{prefix}{STAGING}/{name}"), bytes.to_vec()),
        }
    }

    /// What [`note`](Self::note) kept.
    pub fn noted(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Target::Folder(root) => {
                let path = root.join(STAGING).join(name);
                match std::fs::read(&path) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(away("read file", &path, &e)),
                }
            }
            Target::Bucket { bucket, prefix } => bucket.get(&format!("{prefix}{STAGING}/{name}")),
        }
    }
}

impl Output {
    /// Takes the file's bytes from `at` on, which is where the earlier ones end. After an error that may pass it takes the same
    /// again.
    pub fn write(&mut self, bytes: &[u8], at: u64) -> Result<()> {
        match self {
            Output::File { file, path } => file.write_all_at(bytes, at).map_err(|e| away("write file", path, &e)),
            Output::Object(upload) => {
                upload.take(bytes);
                Ok(())
            }
        }
    }

    /// Sends what was taken and is large enough to be sent. After an error that may pass it may be called again.
    pub fn push(&mut self) -> Result<()> {
        match self {
            Output::File { .. } => Ok(()),
            Output::Object(upload) => upload.push(),
        }
    }

    /// Makes the bytes durable; the name is so after [`Target::sync_staged`]. After an error that may pass it may be called
    /// again. Errors: `XX001` what was taken is lost.
    pub fn finish(&mut self) -> Result<()> {
        match self {
            // The system may have dropped what it could not write, and says so only once.
            Output::File { file, path } => file.sync_all().map_err(|e| lost(&away("write file", path, &e))),
            Output::Object(upload) => upload.finish(),
        }
    }

    /// Bytes of memory that are held.
    pub fn held_bytes(&self) -> usize {
        match self {
            Output::File { .. } => 0,
            Output::Object(upload) => upload.held_bytes(),
        }
    }
}

/// A refusal in the midst of writing: what was there when the sink was created is away.
pub fn away(action: &str, path: &Path, e: &std::io::Error) -> Error {
    gone(io_error(action, path, e))
}

/// `58030` in place of `58P01`.
pub fn gone(e: Error) -> Error {
    if e.state() != SqlState::UndefinedFile {
        return e;
    }
    Error::new(SqlState::IoError, e.message())
        .with_hint("Make the sink's target reachable again (is a disk mounted?), then start the job again.")
}

/// A failure after which what was written is not there, so that trying again would not help.
pub fn lost(e: &Error) -> Error {
    Error::new(SqlState::DataCorrupted, "output of a sink is lost before it was published")
        .with_detail(e.to_string())
        .with_hint("Restart the server: the sink goes on from the last checkpoint.")
}

fn create_folder(path: &Path) -> std::io::Result<()> {
    match std::fs::create_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|e| away("write folder", path, &e))
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(away("remove file", path, &e)),
        _ => Ok(()),
    }
}

fn publish_renaming(root: &Path, files: &[StagedFile], verify: bool) -> Result<()> {
    let mut changed = BTreeSet::new();
    for (n, file) in files.iter().enumerate() {
        let (staged, published) = (root.join(STAGING).join(&file.staged), root.join(&file.path));
        // A rename that an earlier commit did may not be durable: the folder is synced for it too.
        let mut folder = root.to_path_buf();
        changed.insert(folder.clone());
        let parents: Vec<&str> = file.path.split('/').collect();
        for part in &parents[..parents.len().saturating_sub(1)] {
            folder.push(part);
            if changed.insert(folder.clone()) {
                create_folder(&folder).map_err(|e| away("create folder", &folder, &e))?;
            }
        }
        let look = |verify: bool| -> Result<Step> {
            Ok(Step::of(seen(&staged, file, verify)?, seen(&published, file, true)?))
        };
        let mut step = look(verify)?;
        if step == Step::Publish {
            match std::fs::rename(&staged, &published) {
                Ok(()) => {
                    if planted::is("commit_twice") {
                        let again = published.with_extension("again");
                        std::fs::copy(&published, &again).map_err(|e| away("publish file", &again, &e))?;
                    }
                    if n + 1 < files.len() {
                        crash::point("C10");
                    }
                    continue;
                }
                // Another writer of the same sink has published it between the two looks.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => step = look(false)?,
                Err(e) => return Err(away("publish file", &published, &e)),
            }
        }
        if let Some(e) = step.failure(&staged.display().to_string(), &published.display().to_string()) {
            return Err(e);
        }
        remove(&staged)?;
    }
    changed.iter().try_for_each(|folder| sync_folder(folder))
}

/// What stands at `path`. Without `verify` a file of the right length counts as the same.
fn seen(path: &Path, file: &StagedFile, verify: bool) -> Result<Seen> {
    let failed = |e: std::io::Error| away("open file", path, &e);
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Seen::Nothing),
        Err(e) => return Err(failed(e)),
    };
    if !metadata.is_file() || metadata.len() != file.bytes {
        return Ok(Seen::Other);
    }
    if !verify {
        return Ok(Seen::Same);
    }
    let mut content = File::open(path).map_err(failed)?;
    let (mut hash, mut block) = (crc32fast::Hasher::new(), vec![0; BLOCK_BYTES]);
    let mut length = 0;
    loop {
        match content.read(&mut block).map_err(|e| away("read file", path, &e))? {
            0 => break,
            read => {
                hash.update(&block[..read]);
                length += read as u64;
            }
        }
    }
    Ok(if file.is(length, hash.finalize()) { Seen::Same } else { Seen::Other })
}
