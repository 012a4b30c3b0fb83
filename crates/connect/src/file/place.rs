//! Where the files of a source are: one path or every file that matches a pattern, on disk or in a bucket.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use flow::{Error, Result, SqlState};
use glob::{MatchOptions, Pattern};

use super::io_error;
use super::objects::{Bucket, Object, S3Options};

/// `*` stays inside a folder and finds no hidden file.
const MATCH: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// A file as it was when it was found. Readers refuse another one that stands in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The path; the name of the file's split.
    pub name: String,
    /// In bytes.
    pub size: u64,
    pub mark: Mark,
}

/// What tells a file from another one of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Device, inode, and when it was made, where the file system knows: an inode is used again once its file is gone.
    Local(u64, u64, Option<SystemTime>),
    Object(Object),
}

impl Mark {
    pub fn of(metadata: &Metadata) -> Mark {
        Mark::Local(metadata.dev(), metadata.ino(), metadata.created().ok())
    }
}

impl Found {
    /// Errors: `58P01`, `42501`, `58030` it cannot be looked at; `42809` it is no regular file.
    pub fn local(name: &str) -> Result<Found> {
        let path = Path::new(name);
        let metadata = std::fs::metadata(path).map_err(|e| io_error("open file", path, &e))?;
        if metadata.is_dir() {
            return Err(Error::new(SqlState::WrongObjectType, format!("\"{name}\" is a directory"))
                .with_hint(format!("Write '{name}/' for all of its files.")));
        }
        if !metadata.is_file() {
            return Err(Error::new(SqlState::WrongObjectType, format!("\"{name}\" is not a regular file")));
        }
        Ok(Found { name: name.into(), size: metadata.len(), mark: Mark::of(&metadata) })
    }

    /// Whether it may grow: objects are written once.
    pub fn grows(&self) -> bool {
        matches!(self.mark, Mark::Local(..))
    }

    /// `XX001`: the file is not what was found or read before. `how`: `it was truncated`.
    pub fn changed(&self, how: &str) -> Error {
        Error::new(SqlState::DataCorrupted, format!("file \"{}\" changed while it was read: {how}", self.name))
            .with_detail("A file source may only grow at its end; rows that were read cannot be taken back.")
            .with_hint("Drop the source and create it again to read its files from their start.")
    }
}

/// What stands in the option `path`.
pub enum Place {
    File(String),
    Pattern(String),
    Object { bucket: Arc<Bucket>, key: String },
    Objects { bucket: Arc<Bucket>, keys: Pattern },
}

const S3: &str = "s3://";

impl Place {
    /// Errors: `22023` a pattern that is none, an unusable bucket; `0A000` an address that is not S3's.
    pub fn new(path: &str, s3: &S3Options) -> Result<Place> {
        let place = |bucket: Option<Arc<Bucket>>, path: &str| -> Result<Place> {
            let text = match path.is_empty() || path.ends_with('/') {
                true => format!("{path}*"),
                false => path.to_string(),
            };
            if !text.contains(WILD) {
                return Ok(match bucket {
                    Some(bucket) => Place::Object { bucket, key: text },
                    None => Place::File(text),
                });
            }
            let keys = Pattern::new(&text).map_err(|e| {
                Error::new(SqlState::InvalidParameterValue, format!("\"{path}\" is not a pattern: {}", e.msg))
                    .with_hint(
                        "In a path, * ? and [ are patterns; write [*], [?] and [[] for the characters themselves.",
                    )
            })?;
            Ok(match bucket {
                Some(bucket) => Place::Objects { bucket, keys },
                None => Place::Pattern(text),
            })
        };
        match bucket_and_key(path, "read from")? {
            Some((bucket, key)) => place(Some(Arc::new(Bucket::s3(bucket, s3)?)), key),
            None => place(None, path),
        }
    }

    pub fn is_pattern(&self) -> bool {
        matches!(self, Place::Pattern(_) | Place::Objects { .. })
    }

    pub fn is_remote(&self) -> bool {
        matches!(self, Place::Object { .. } | Place::Objects { .. })
    }

    /// The files that are there now, ordered by name. Errors: as [`Found::local`]; `42501` a folder that cannot be read; as
    /// [`Bucket::list`].
    pub fn list(&self) -> Result<Vec<Found>> {
        let mut found = match self {
            Place::File(path) => vec![Found::local(path)?],
            Place::Object { bucket, key } => vec![bucket.object(key)?],
            Place::Pattern(pattern) => local_files(pattern)?,
            Place::Objects { bucket, keys } => {
                let text = keys.as_str();
                let plain = text.find(WILD).map_or(text, |wild| &text[..wild]);
                let folder = plain.rfind('/').map_or("", |end| &plain[..=end]);
                bucket.list(folder, |key| keys.matches_with(key, MATCH))?
            }
        };
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found.dedup_by(|a, b| a.name == b.name);
        Ok(found)
    }

    /// `58P01`: nothing matches the pattern.
    pub fn nothing(&self) -> Error {
        let text = match self {
            Place::File(text) | Place::Pattern(text) => text.clone(),
            Place::Object { bucket, key } => bucket.name_of(key),
            Place::Objects { bucket, keys } => bucket.name_of(keys.as_str()),
        };
        Error::new(SqlState::UndefinedFile, format!("no file matches \"{text}\"")).with_hint(
            "Check the path (a relative one starts at the server's working directory), or add follow = 'true' to wait \
             for files, with the columns declared.",
        )
    }
}

/// Bucket and key of an address of S3; `None` for a path of the server. `how`: `read from`. Errors: `22023` an address without a
/// bucket, `0A000` an address of something else.
pub fn bucket_and_key<'a>(path: &'a str, how: &str) -> Result<Option<(&'a str, &'a str)>> {
    match (path.strip_prefix(S3), path.split_once("://")) {
        (Some(rest), _) => {
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() || bucket.contains(WILD) {
                return Err(Error::new(SqlState::InvalidParameterValue, format!("\"{path}\" does not name a bucket"))
                    .with_hint("Write s3://bucket/path."));
            }
            Ok(Some((bucket, key)))
        }
        (None, Some((scheme, _))) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            Err(Error::unsupported(format!("files cannot be {how} \"{scheme}://\""))
                .with_hint("Use a path of the server or s3://bucket/path."))
        }
        _ => Ok(None),
    }
}

/// What makes a path a pattern.
const WILD: [char; 3] = ['*', '?', '['];

fn local_files(pattern: &str) -> Result<Vec<Found>> {
    let paths = glob::glob_with(pattern, MATCH).map_err(|e| Error::internal(format!("a pattern: {}", e.msg)))?;
    let mut found = Vec::new();
    for path in paths {
        let path: PathBuf = path.map_err(|e| io_error("read folder", e.path(), e.error()))?;
        if path.is_dir() {
            continue;
        }
        let name = path.to_str().ok_or_else(|| {
            Error::new(
                SqlState::CharacterNotInRepertoire,
                format!("the name of file \"{}\" is not UTF-8", path.display()),
            )
            .with_hint("Rename the file, or write a pattern that does not match it.")
        })?;
        match Found::local(name) {
            Ok(file) => found.push(file),
            // It went away between the two looks.
            Err(e) if e.state() == SqlState::UndefinedFile && !path.is_symlink() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(place: &Place, root: &Path) -> Vec<String> {
        let root = format!("{}/", root.display());
        place.list().unwrap().into_iter().map(|f| f.name.strip_prefix(&root).unwrap().to_string()).collect()
    }

    #[test]
    fn patterns_find_regular_files_in_the_order_of_their_names() {
        let root = tempfile::tempdir().unwrap();
        for name in
            ["b.json", "a.json", "c.csv", ".hidden.json", "d1/p1.json", "d2/p2.json", "d2/deep/p3.json", "x[1].json"]
        {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "{}").unwrap();
        }
        std::fs::create_dir(root.path().join("folder.json")).unwrap();
        let at = |pattern: &str| {
            let place = Place::new(&format!("{}/{pattern}", root.path().display()), &S3Options::default()).unwrap();
            names(&place, root.path())
        };
        assert_eq!(at("*.json"), ["a.json", "b.json", "x[1].json"]);
        assert_eq!(at("?.json"), ["a.json", "b.json"]);
        assert_eq!(at("[bc].*"), ["b.json", "c.csv"]);
        assert_eq!(at("d?/p?.json"), ["d1/p1.json", "d2/p2.json"]);
        assert_eq!(at("d2/**/*.json"), ["d2/deep/p3.json", "d2/p2.json"]);
        assert_eq!(at("d2/"), ["d2/p2.json"]);
        assert_eq!(at("x[[]1].json"), ["x[1].json"]);
        assert_eq!(at("none*"), [""; 0]);
        assert_eq!(at("a.json"), ["a.json"]);
    }

    #[test]
    fn what_is_no_pattern_or_no_file_is_refused_by_name() {
        let state = |path: &str| Place::new(path, &S3Options::default()).err().unwrap().state().code();
        assert_eq!(["a[", "a***", "s3://", "s3:///x", "s3://b*/x"].map(state), ["22023"; 5]);
        assert_eq!(["gs://b/x", "https://b/x"].map(state), ["0A000"; 2]);
        let folder = tempfile::tempdir().unwrap();
        let e = Found::local(folder.path().to_str().unwrap()).unwrap_err();
        assert_eq!((e.state().code(), e.hint().is_some()), ("42809", true));
        let e = Found::local("/nonexistent/x.csv").unwrap_err();
        assert_eq!(e.state().code(), "58P01");
    }
}
