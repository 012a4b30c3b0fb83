//! Objects of a bucket: listed, and read in ranges from threads that may wait. `upload` writes them.
//!
//! An object never changes in place; its size and its e-tag at opening say which one is meant, and every answer is compared
//! with them.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use flow::{Error, Result, SqlState};
use object_store::aws::AmazonS3Builder;
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, RetryConfig};
use tokio::runtime::Runtime;

use super::chunks::Ranges;
use super::place::{Found, Mark};

/// Bytes of the first range that is read of an object: often only its header is wanted.
const FIRST_BYTES: u64 = 256 << 10;

/// Bytes of a later range. One is in memory while the next one comes.
const RANGE_BYTES: u64 = 4 << 20;

/// Ranges of a Parquet file that are kept, beside one for each column that is read.
const KEPT_RANGES: usize = 4;

/// How long a request is tried again.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES_MAX: usize = 5;

/// Where the requests of all sources run; sources themselves wait in threads of their own.
static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();

fn runtime() -> Result<&'static Runtime> {
    let build = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("object-store").enable_io().enable_time().build()
    };
    let cannot =
        |e: &std::io::Error| Error::new(SqlState::IoError, format!("cannot start the threads of object stores: {e}"));
    RUNTIME.get_or_init(build).as_ref().map_err(cannot)
}

/// Starts a request. The answer comes over the channel, so that the caller may be any thread.
pub(super) fn start<T: Send + 'static>(request: impl Future<Output = T> + Send + 'static) -> Result<Receiver<T>> {
    let (sender, receiver) = sync_channel(1);
    runtime()?.spawn(async move {
        // Fails only when nobody waits any more.
        let _ = sender.send(request.await);
    });
    Ok(receiver)
}

pub(super) fn answer<T>(receiver: Receiver<T>) -> Result<T> {
    receiver.recv().map_err(|_| Error::internal("a request to an object store was dropped"))
}

/// How an S3 service is reached, as far as it is not told by `AWS_…` in the environment.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct S3Options {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
    pub allow_http: Option<bool>,
}

impl fmt::Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Options")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// A bucket, and who asks for its objects.
pub struct Bucket {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The same service, for objects in parts.
    pub(super) parts: Arc<dyn MultipartStore>,
    /// `s3://bucket/`, before the key in the name of a split.
    root: String,
    /// What no message may show.
    secrets: Vec<String>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.root)
    }
}

impl Bucket {
    /// Errors: `22023` the options do not make a client.
    pub fn s3(name: &str, options: &S3Options) -> Result<Bucket> {
        let retry = RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(name).with_retry(retry);
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(region) = &options.region {
            builder = builder.with_region(region);
        }
        if let Some(id) = &options.access_key_id {
            builder = builder.with_access_key_id(id);
        }
        if let Some(secret) = &options.secret_access_key {
            builder = builder.with_secret_access_key(secret);
        }
        if let Some(allow) = options.allow_http {
            builder = builder.with_allow_http(allow);
        }
        let from_environment =
            ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"].into_iter().filter_map(|n| std::env::var(n).ok());
        let secrets = options.secret_access_key.iter().chain(&options.access_key_id).cloned().chain(from_environment);
        let secrets: Vec<String> = secrets.filter(|s| !s.is_empty()).collect();
        match builder.build() {
            Ok(store) => {
                let store = Arc::new(store);
                let parts = Arc::clone(&store);
                Ok(Bucket::over(store, parts, &format!("s3://{name}/"), secrets))
            }
            Err(e) => Err(Error::new(
                SqlState::InvalidParameterValue,
                format!("bucket \"{name}\" cannot be reached: {}", words(&e, &secrets)),
            )
            .with_hint("Check the options s3.endpoint, s3.region, s3.access_key_id and s3.secret_access_key.")),
        }
    }

    /// A bucket of any store. `root`: what stands before a key in a name.
    pub fn over(
        store: Arc<dyn ObjectStore>,
        parts: Arc<dyn MultipartStore>,
        root: &str,
        secrets: Vec<String>,
    ) -> Bucket {
        Bucket { store, parts, root: root.into(), secrets }
    }

    pub fn name_of(&self, key: &str) -> String {
        format!("{}{key}", self.root)
    }

    /// The object of this key. Errors: `58P01` there is none; `42501`, `58030`.
    pub fn object(self: &Arc<Bucket>, key: &str) -> Result<Found> {
        let at = Key::parse(key).map_err(|e| self.no_key(key, &e))?;
        let (store, location) = (Arc::clone(&self.store), at.clone());
        let head = GetOptions { head: true, ..GetOptions::default() };
        let asked = start(async move { store.get_opts(&location, head).await.map(|result| result.meta) })?;
        let meta = answer(asked)?.map_err(|e| self.failed(&format!("open \"{}\"", self.name_of(key)), &e))?;
        Ok(self.found(meta))
    }

    /// The objects whose keys `matches`, below the folder `prefix`. Errors: `42501`, `58030`.
    pub fn list(self: &Arc<Bucket>, prefix: &str, matches: impl Fn(&str) -> bool) -> Result<Vec<Found>> {
        use futures::TryStreamExt;
        let below = Key::parse(prefix.trim_end_matches('/')).map_err(|e| self.no_key(prefix, &e))?;
        let store = Arc::clone(&self.store);
        let asked = start(async move { store.list(Some(&below)).try_collect::<Vec<ObjectMeta>>().await })?;
        let listed = answer(asked)?.map_err(|e| self.failed(&format!("list \"{}{prefix}\"", self.root), &e))?;
        Ok(listed.into_iter().filter(|meta| matches(meta.location.as_ref())).map(|meta| self.found(meta)).collect())
    }

    fn found(self: &Arc<Bucket>, meta: ObjectMeta) -> Found {
        let name = self.name_of(meta.location.as_ref());
        // Where there is no e-tag, the time of the last change is compared.
        let tag = meta.e_tag.clone().unwrap_or_else(|| meta.last_modified.to_rfc3339());
        let object = Object { bucket: Arc::clone(self), key: meta.location, e_tag: meta.e_tag, tag };
        Found { name, size: meta.size, mark: Mark::Object(object) }
    }

    pub(super) fn no_key(&self, key: &str, e: &object_store::path::Error) -> Error {
        Error::new(SqlState::InvalidParameterValue, format!("\"{}{key}\" is not the name of an object: {e}", self.root))
    }

    /// What a refusal of the store means for the user. `action`: a verb phrase, `open "s3://…"`.
    pub(super) fn failed(&self, action: &str, e: &object_store::Error) -> Error {
        use object_store::Error as E;
        let state = match e {
            E::NotFound { .. } => SqlState::UndefinedFile,
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => SqlState::InsufficientPrivilege,
            _ => SqlState::IoError,
        };
        let error = Error::new(state, format!("could not {action}: {}", words(e, &self.secrets)));
        match state {
            SqlState::UndefinedFile => error.with_hint("Check the bucket, the path and the option s3.endpoint."),
            SqlState::InsufficientPrivilege => error.with_hint(
                "Check s3.access_key_id and s3.secret_access_key, or AWS_… in the server's environment.",
            ),
            _ => error.with_hint("Check s3.endpoint and s3.region, and that the service can be reached (s3.allow_http = 'true' for http)."),
        }
    }
}

/// What the store said, in short and without secrets.
fn words(e: &object_store::Error, secrets: &[String]) -> String {
    const CHARS_MAX: usize = 300;
    let between = |text: &str, start: &str, end: &str| {
        text.split_once(start).and_then(|(_, rest)| rest.split_once(end)).map(|(inner, _)| inner.to_string())
    };
    let mut text = e.to_string();
    if let object_store::Error::NotFound { .. } = e {
        text = "there is no such object".into();
    } else if let Some(code) = between(&text, "<Code>", "</Code>") {
        let message = between(&text, "<Message>", "</Message>").unwrap_or_default();
        text = format!("{code}: {message}");
    }
    for secret in secrets {
        text = text.replace(secret.as_str(), "********");
    }
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Which object of a bucket, as it was when it was found.
#[derive(Clone, Debug)]
pub struct Object {
    bucket: Arc<Bucket>,
    key: Key,
    e_tag: Option<String>,
    tag: String,
}

impl PartialEq for Object {
    fn eq(&self, other: &Object) -> bool {
        self.key == other.key && self.tag == other.tag
    }
}

impl Eq for Object {}

impl Object {
    /// Asks for a range of the object, which is not empty and inside of it.
    fn request(&self, size: u64, range: Range<u64>) -> Result<Asked> {
        let (store, key, e_tag) = (Arc::clone(&self.bucket.store), self.key.clone(), self.e_tag.clone());
        let wanted = range.clone();
        let options = GetOptions {
            if_match: e_tag.clone(),
            range: Some(GetRange::Bounded(range.clone())),
            ..GetOptions::default()
        };
        let receiver = start(async move {
            let result = store.get_opts(&key, options).await.map_err(Refused::Store)?;
            if result.meta.size != size || (e_tag.is_some() && result.meta.e_tag != e_tag) {
                return Err(Refused::Changed);
            }
            let bytes = result.bytes().await.map_err(Refused::Store)?;
            if bytes.len() as u64 == wanted.end - wanted.start { Ok(bytes) } else { Err(Refused::Changed) }
        })?;
        Ok(Asked { start: range.start, receiver })
    }

    fn take(&self, found: &Found, asked: Asked) -> Result<Bytes> {
        answer(asked.receiver)?.map_err(|refused| match refused {
            Refused::Changed | Refused::Store(object_store::Error::Precondition { .. }) => {
                found.changed("it was replaced by another object")
            }
            Refused::Store(object_store::Error::NotFound { .. }) => found.changed("it was removed"),
            Refused::Store(e) => self.bucket.failed(&format!("read \"{}\"", found.name), &e),
        })
    }
}

enum Refused {
    Changed,
    Store(object_store::Error),
}

/// A range that was asked for.
struct Asked {
    start: u64,
    receiver: Receiver<std::result::Result<Bytes, Refused>>,
}

/// Reads an object forwards: while one range is used, the next one comes.
pub struct ForwardObject {
    found: Found,
    object: Object,
    /// Start and bytes of the range that was read last.
    block: (u64, Bytes),
    ahead: Option<Asked>,
}

impl ForwardObject {
    pub fn new(found: &Found, object: &Object) -> ForwardObject {
        ForwardObject { found: found.clone(), object: object.clone(), block: (0, Bytes::new()), ahead: None }
    }

    /// Fills `buffer` with the bytes from `offset` on, which are inside of the object. Errors: `XX001` it is another object
    /// now, or gone; `42501`, `58030`.
    pub fn read_exact(&mut self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let (start, bytes) = &self.block;
            let inside =
                at.checked_sub(*start).and_then(|skip| usize::try_from(skip).ok()).and_then(|skip| bytes.get(skip..));
            match inside.filter(|rest| !rest.is_empty()) {
                Some(rest) => {
                    let length = rest.len().min(buffer.len() - done);
                    buffer[done..done + length].copy_from_slice(&rest[..length]);
                    done += length;
                }
                None => self.fetch(at)?,
            }
        }
        Ok(())
    }

    /// Gets the range from `at` on, and asks for the one behind it if the reader goes forwards.
    fn fetch(&mut self, at: u64) -> Result<()> {
        let size = self.found.size;
        if at >= size {
            return Err(self.found.changed("it was truncated"));
        }
        let forwards = !self.block.1.is_empty() && at == self.block.0 + self.block.1.len() as u64;
        let asked = match self.ahead.take().filter(|asked| asked.start == at) {
            Some(asked) => asked,
            None => {
                let length = if forwards { RANGE_BYTES } else { FIRST_BYTES };
                self.object.request(size, at..size.min(at + length))?
            }
        };
        let bytes = self.object.take(&self.found, asked)?;
        let next = at + bytes.len() as u64;
        self.block = (at, bytes);
        if forwards && next < size {
            self.ahead = Some(self.object.request(size, next..size.min(next + RANGE_BYTES))?);
        }
        Ok(())
    }
}

/// Ranges of an object in any order, in aligned blocks of which the last used are kept.
pub struct ObjectRanges {
    found: Found,
    object: Object,
    kept: Mutex<Kept>,
}

struct Kept {
    /// Start and bytes, the last used at the end.
    blocks: VecDeque<(u64, Bytes)>,
    most: usize,
}

impl ObjectRanges {
    /// `columns`: how many places of the object are read by turns.
    pub fn new(found: &Found, object: &Object, columns: usize) -> ObjectRanges {
        let kept = Kept { blocks: VecDeque::new(), most: KEPT_RANGES + columns };
        ObjectRanges { found: found.clone(), object: object.clone(), kept: Mutex::new(kept) }
    }

    fn block(&self, start: u64) -> Result<Bytes> {
        let mut kept = self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let bytes = match kept.blocks.iter().position(|(at, _)| *at == start) {
            Some(place) => kept.blocks.remove(place).map(|(_, bytes)| bytes).unwrap_or_default(),
            None => {
                let asked = self.object.request(self.found.size, start..self.found.size.min(start + RANGE_BYTES))?;
                self.object.take(&self.found, asked)?
            }
        };
        kept.blocks.push_back((start, bytes.clone()));
        if kept.blocks.len() > kept.most {
            kept.blocks.pop_front();
        }
        Ok(bytes)
    }
}

impl Ranges for ObjectRanges {
    fn size(&self) -> u64 {
        self.found.size
    }

    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let end = offset + length as u64;
        let mut start = offset - offset % RANGE_BYTES;
        let mut whole = Vec::new();
        while start < end {
            let block = self.block(start)?;
            let from = usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
            let until = usize::try_from((end - start).min(block.len() as u64)).unwrap_or(usize::MAX);
            if from >= until {
                break;
            }
            if until - from == length {
                return Ok(block.slice(from..until));
            }
            whole.extend_from_slice(&block[from..until]);
            start += RANGE_BYTES;
        }
        if whole.len() == length { Ok(whole.into()) } else { Err(self.found.changed("it was truncated")) }
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::{ObjectStoreExt, PutPayload};

    use super::*;

    fn bucket() -> Arc<Bucket> {
        let objects = Arc::new(InMemory::new());
        let parts = Arc::clone(&objects);
        Arc::new(Bucket::over(objects, parts, "memory://", vec!["sesame".into()]))
    }

    fn put(bucket: &Bucket, key: &str, bytes: Vec<u8>) {
        let (store, key) = (Arc::clone(&bucket.store), Key::parse(key).unwrap());
        answer(start(async move { store.put(&key, PutPayload::from(bytes)).await }).unwrap()).unwrap().unwrap();
    }

    fn object(found: &Found) -> &Object {
        match &found.mark {
            Mark::Object(object) => object,
            other => panic!("{other:?}"),
        }
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n * 7 + n / 251) as u8).collect()
    }

    #[test]
    fn objects_are_listed_below_a_folder() {
        let bucket = bucket();
        for key in ["in/a.csv", "in/deep/b.csv", "inner/c.csv"] {
            put(&bucket, key, vec![1]);
        }
        let names = |prefix: &str| -> Vec<String> {
            bucket.list(prefix, |key| key.ends_with(".csv")).unwrap().into_iter().map(|f| f.name).collect()
        };
        assert_eq!(names("in/"), ["memory://in/a.csv", "memory://in/deep/b.csv"]);
        assert_eq!(names("").len(), 3);
        let e = bucket.object("in/none.csv").unwrap_err();
        assert_eq!((e.state().code(), e.hint().is_some()), ("58P01", true));
    }

    #[test]
    fn ranges_forwards_and_in_any_order_give_the_bytes() {
        let bucket = bucket();
        let bytes = pattern(2 * RANGE_BYTES as usize + 1_000_003);
        put(&bucket, "a", bytes.clone());
        let found = bucket.object("a").unwrap();
        assert_eq!(found.size, bytes.len() as u64);
        let mut forwards = ForwardObject::new(&found, object(&found));
        let mut got = vec![0; bytes.len()];
        for (n, part) in got.chunks_mut(300_007).enumerate() {
            forwards.read_exact(part, n as u64 * 300_007).unwrap();
        }
        assert!(got == bytes);
        // Back, and on from there.
        let mut some = vec![0; 1000];
        forwards.read_exact(&mut some, 17).unwrap();
        assert_eq!(some, bytes[17..1017]);
        assert_eq!(forwards.read_exact(&mut some, found.size - 10).unwrap_err().state().code(), "XX001");
        let ranges = ObjectRanges::new(&found, object(&found), 1);
        for (at, length) in
            [(0, 10), (RANGE_BYTES - 5, 10), (RANGE_BYTES * 2 - 1, 500_000), (found.size - 1, 1), (3, 5_000_000)]
        {
            assert!(ranges.read_at(at, length).unwrap() == bytes[at as usize..][..length], "{at} {length}");
        }
        assert!(ranges.kept.lock().unwrap().blocks.len() <= 5);
    }

    #[test]
    fn an_object_that_is_replaced_or_removed_stops_its_readers() {
        let bucket = bucket();
        put(&bucket, "a", pattern(1000));
        let found = bucket.object("a").unwrap();
        let mut reader = ForwardObject::new(&found, object(&found));
        put(&bucket, "a", pattern(1000));
        let e = reader.read_exact(&mut [0; 10], 0).unwrap_err();
        assert_eq!(e.state().code(), "XX001");
        assert!(e.message().contains("memory://a") && e.message().contains("replaced"), "{e}");
        let found = bucket.object("a").unwrap();
        let (store, key) = (Arc::clone(&bucket.store), Key::parse("a").unwrap());
        answer(start(async move { store.delete(&key).await }).unwrap()).unwrap().unwrap();
        let e = ObjectRanges::new(&found, object(&found), 1).read_at(0, 10).unwrap_err();
        assert!(e.message().contains("removed"), "{e}");
    }

    #[test]
    fn messages_hold_no_secrets_and_no_pages() {
        let source = "<Error><Code>SignatureDoesNotMatch</Code><Message>key sesame is wrong</Message><StringToSign>x</StringToSign></Error>";
        let e = object_store::Error::Generic { store: "S3", source: source.into() };
        assert_eq!(words(&e, &["sesame".into()]), "SignatureDoesNotMatch: key ******** is wrong");
        let e = object_store::Error::Generic { store: "S3", source: "sesame ".repeat(500).into() };
        let text = words(&e, &["sesame".into()]);
        assert!(!text.contains("sesame") && text.chars().count() == 301, "{text}");
        let options = S3Options { secret_access_key: Some("sesame".into()), ..S3Options::default() };
        assert!(!format!("{options:?}").contains("sesame"));
    }
}
