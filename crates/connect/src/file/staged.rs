//! What a sink remembers of the files that it staged: the bytes that go into a checkpoint, and what is to be done with each.
//!
//! A file is known by its name and nothing else: the sink's identity, the epoch of the checkpoint that ended it, and a number that the sink
//! never uses again. Whether it was published is found by looking for that name, with the length and the checksum that were
//! prepared; numbers and epochs are never compared for it, because after a rewind lower ones are published too.

use checkpoint::CommitPermit;
use flow::{Epoch, Error, Result, SqlState};
use serde::{Deserialize, Serialize};

/// The folder inside of the target that holds what readers must not see. Patterns and readers of tables pass over names
/// with a dot.
pub const STAGING: &str = ".millstream-staged";

/// Format of [`Prepared`]. Later ones must read the earlier ones.
const VERSION: u32 = 1;

/// Characters of an identity.
const IDENTITY_CHARS_MAX: usize = 100;

/// A file that is durable and not visible, or visible already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedFile {
    /// The name in the folder of staged files.
    pub staged: String,
    /// Where it is published, below the target.
    pub path: String,
    pub bytes: u64,
    pub crc32: u32,
}

impl StagedFile {
    /// Whether `crc32` over `bytes` says that it is this file.
    pub fn is(&self, bytes: u64, crc32: u32) -> bool {
        (self.bytes, self.crc32) == (bytes, crc32)
    }
}

/// What a checkpoint keeps of a sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    version: u32,
    pub epoch: Epoch,
    /// Whether no epoch was written yet.
    pub first: bool,
    /// Rows written from the sink's beginning.
    pub rows: u64,
    /// The number of the next file.
    pub next: u64,
    /// All files that no commit is known to have published, those of earlier epochs included.
    pub files: Vec<StagedFile>,
}

impl Prepared {
    pub fn new(epoch: Epoch, first: bool, rows: u64, next: u64, files: Vec<StagedFile>) -> Prepared {
        Prepared { version: VERSION, epoch, first, rows, next, files }
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::internal(format!("what a sink prepared cannot be written: {e}")))
    }

    /// Errors: `XX001` for bytes that are none, `0A000` of a later version, `XX000` of another epoch than the permit's.
    pub fn read(bytes: &[u8], permit: &CommitPermit) -> Result<Prepared> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let damaged = |what: String| {
            Error::new(
                SqlState::DataCorrupted,
                format!("what the checkpoint holds of a file sink cannot be read: {what}"),
            )
        };
        let head: Head = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        if head.version > VERSION {
            return Err(Error::unsupported(
                "the checkpoint of a file sink was written by a later version of the server",
            )
            .with_hint("Start the version that wrote it, or a later one."));
        }
        let prepared: Prepared = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        for file in &prepared.files {
            let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
            if !file.path.split('/').all(plain) || !plain(&file.staged) || file.staged.contains('/') {
                return Err(damaged(format!("\"{}\" is not the name of a file", file.path)));
            }
        }
        if prepared.epoch != permit.epoch() {
            return Err(Error::internal(format!(
                "a file sink was asked to commit epoch {} with what it prepared for epoch {}",
                permit.epoch(),
                prepared.epoch
            )));
        }
        Ok(prepared)
    }
}

/// The names that one writer gives.
#[derive(Clone, Debug)]
pub struct Names {
    identity: String,
    attempt: u64,
    /// `csv`.
    extension: &'static str,
}

impl Names {
    /// Errors: `0A000` without an identity, `XX000` one that is none.
    pub fn new(identity: &str, attempt: u64, extension: &'static str) -> Result<Names> {
        if identity.is_empty() {
            return Err(Error::unsupported("delivery = 'exactly_once' needs checkpoints, and there are none here"));
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if identity.len() > IDENTITY_CHARS_MAX || !identity.chars().all(fits) {
            return Err(Error::internal(format!("\"{identity}\" is not an identity of a sink")));
        }
        Ok(Names { identity: identity.into(), attempt, extension })
    }

    /// In the folder of staged files. No two writers give the same.
    pub fn staged(&self, number: u64) -> String {
        format!("{}.{}.{number}.staged", self.identity, self.attempt)
    }

    /// Where readers find it.
    pub fn published(&self, epoch: Epoch, number: u64) -> String {
        format!("part-{}-{:012}-{number:06}.{}", self.identity, epoch.0, self.extension)
    }

    /// The note of the last commit, in the folder of staged files.
    pub fn note(&self) -> String {
        format!("{}.committed", self.identity)
    }

    /// Whether `name` was staged for the same sink by a writer that this one replaces. A later writer's files are not.
    pub fn replaces(&self, name: &str) -> bool {
        let mut parts = name.split('.');
        let own = parts.next() == Some(self.identity.as_str());
        let attempt = parts.next().and_then(|attempt| attempt.parse::<u64>().ok());
        let staged = parts.next().is_some_and(|n| n.parse::<u64>().is_ok()) && parts.next() == Some("staged");
        own && staged && parts.next().is_none() && attempt.is_some_and(|attempt| attempt <= self.attempt)
    }
}

/// What stands under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Nothing,
    /// A file of the length and, where it was looked at, the checksum that were prepared.
    Same,
    Other,
}

/// What is to be done with a file that may be seen now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Publish,
    /// An earlier commit has published it.
    Done,
    /// It is neither staged nor published.
    Missing,
    /// What is staged is not what was prepared.
    Damaged,
    /// Another file has its name.
    Foreign,
}

impl Step {
    pub fn of(staged: Seen, published: Seen) -> Step {
        match (published, staged) {
            (Seen::Same, _) => Step::Done,
            (Seen::Other, _) => Step::Foreign,
            (Seen::Nothing, Seen::Same) => Step::Publish,
            (Seen::Nothing, Seen::Other) => Step::Damaged,
            (Seen::Nothing, Seen::Nothing) => Step::Missing,
        }
    }

    /// `XX001` where the file cannot be published. `staged`, `published`: its names for a person.
    pub fn failure(self, staged: &str, published: &str) -> Option<Error> {
        let corrupted = |message: String| Error::new(SqlState::DataCorrupted, message);
        match self {
            Step::Publish | Step::Done => None,
            Step::Missing => Some(
                corrupted(format!("file \"{published}\" cannot be published: what was staged for it is gone"))
                    .with_detail(format!("It was staged as \"{staged}\" before the checkpoint."))
                    .with_hint(format!("Never remove files from a folder \"{STAGING}\" while its sink exists.")),
            ),
            Step::Damaged => Some(
                corrupted(format!("file \"{published}\" cannot be published: what was staged for it was changed"))
                    .with_detail(format!("It was staged as \"{staged}\" before the checkpoint.")),
            ),
            Step::Foreign => Some(
                corrupted(format!("file \"{published}\" cannot be published: another file stands in its place"))
                    .with_hint("Move that file away, then start the job again."),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::Generation;

    use super::*;

    fn permit(epoch: u64) -> CommitPermit {
        CommitPermit::of_claimed(Generation(1), Epoch(epoch))
    }

    #[test]
    fn what_is_prepared_reads_back_and_what_is_not_is_refused() {
        let file = StagedFile { staged: "a.1.0.staged".into(), path: "d=1/part".into(), bytes: 7, crc32: 9 };
        let prepared = Prepared::new(Epoch(4), true, 3, 1, vec![file]);
        let bytes = prepared.to_bytes().unwrap();
        assert_eq!(
            String::from_utf8(bytes.clone()).unwrap(),
            r#"{"version":1,"epoch":4,"first":true,"rows":3,"next":1,"files":[{"staged":"a.1.0.staged","path":"d=1/part","bytes":7,"crc32":9}]}"#
        );
        assert_eq!(Prepared::read(&bytes, &permit(4)), Ok(prepared));
        let state =
            |text: &str, epoch: u64| Prepared::read(text.as_bytes(), &permit(epoch)).unwrap_err().state().code();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(state(&text, 5), "XX000");
        assert_eq!(state(&text[1..], 4), "XX001");
        assert_eq!(state(&text.replace(":1,\"epoch", ":2,\"new"), 4), "0A000");
        for bad in ["../part", "a//b", "/etc/passwd", "a/./b", ""] {
            assert_eq!(state(&text.replace("d=1/part", bad), 4), "XX001", "{bad}");
        }
        assert_eq!(state(&text.replace("a.1.0.staged", "../a"), 4), "XX001");
    }

    #[test]
    fn a_writer_replaces_earlier_ones_of_its_own_sink_alone() {
        let names = Names::new("16400-7", 3, "csv").unwrap();
        assert_eq!(names.staged(12), "16400-7.3.12.staged");
        assert_eq!(names.published(Epoch(9), 12), "part-16400-7-000000000009-000012.csv");
        for mine in ["16400-7.3.12.staged", "16400-7.0.1.staged"] {
            assert!(names.replaces(mine), "{mine}");
        }
        for other in [
            "16400-7.4.1.staged",
            "16400-70.1.1.staged",
            "16400-7.committed",
            "16400-7.x.1.staged",
            "16400-7.1.1.staged.x",
        ] {
            assert!(!names.replaces(other), "{other}");
        }
        assert_eq!(Names::new("", 1, "csv").unwrap_err().state().code(), "0A000");
        assert_eq!(Names::new("a.b", 1, "csv").unwrap_err().state().code(), "XX000");
    }

    #[test]
    fn a_file_is_published_once_whatever_is_found() {
        use Seen::*;
        let all = [Nothing, Same, Other];
        for staged in all {
            assert_eq!(Step::of(staged, Same), Step::Done);
            assert_eq!(Step::of(staged, Other), Step::Foreign);
        }
        assert_eq!(all.map(|staged| Step::of(staged, Nothing)), [Step::Missing, Step::Publish, Step::Damaged]);
    }
}
