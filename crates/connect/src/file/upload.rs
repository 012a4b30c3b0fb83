//! Objects that a sink writes: staged in parts while they grow, and published by a copy inside of the service.
//!
//! An upload that is left open over a crash would be the other way; but the service may end it when it likes, it can not be
//! listed, and completing it a second time fails. A staged object has none of this, and costs one copy.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use bytes::Bytes;
use flow::{Error, Result};
use futures::{StreamExt, TryStreamExt};
use object_store::multipart::PartId;
use object_store::path::Path as Key;
use object_store::{Error as StoreError, MultipartId, ObjectStore, ObjectStoreExt, PutPayload};

use super::objects::{Bucket, answer, start};
use super::staged::{STAGING, Seen, StagedFile, Step};
use super::target::{gone, lost};

/// Bytes of a part of a large object; a smaller object is written in one request.
const PART_BYTES: usize = 8 << 20;

/// Requests that run at a time for the files of a commit.
const REQUESTS_MAX: usize = 16;

type Asked<T> = std::result::Result<T, StoreError>;

impl Bucket {
    /// Errors: `22023` what no object is named.
    pub fn key(&self, key: &str) -> Result<Key> {
        Key::parse(key).map_err(|e| self.no_key(key, &e))
    }

    /// Writes a whole object, in the place of another one.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Result<()> {
        let (store, at, bytes) = (Arc::clone(&self.store), self.key(key)?, bytes.into());
        let asked = start(async move { store.put(&at, PutPayload::from(bytes)).await })?;
        answer(asked)?.map(drop).map_err(|e| self.refused("write", key, &e))
    }

    /// A whole object, if there is one.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let (store, at) = (Arc::clone(&self.store), self.key(key)?);
        let asked = start(async move {
            match store.get(&at).await {
                Ok(found) => found.bytes().await.map(|bytes| Some(bytes.to_vec())),
                Err(StoreError::NotFound { .. }) => Ok(None),
                Err(e) => Err(e),
            }
        })?;
        answer(asked)?.map_err(|e| self.refused("read", key, &e))
    }

    /// The names of the objects directly below `folder`, which ends with `/`.
    pub fn names_below(&self, folder: &str) -> Result<Vec<String>> {
        let (store, below) = (Arc::clone(&self.store), self.key(folder)?);
        let asked = start(async move { store.list(Some(&below)).try_collect::<Vec<_>>().await })?;
        let listed = answer(asked)?.map_err(|e| self.refused("list", folder, &e))?;
        let name = |key: &Key| key.as_ref().strip_prefix(folder).filter(|name| !name.contains('/')).map(String::from);
        Ok(listed.iter().filter_map(|meta| name(&meta.location)).collect())
    }

    /// Removes objects; those that are not there are passed over.
    pub fn remove(&self, keys: Vec<String>) -> Result<()> {
        let Some(first) = keys.first().cloned() else { return Ok(()) };
        let all = keys.iter().map(|key| self.key(key)).collect::<Result<Vec<Key>>>()?;
        let store = Arc::clone(&self.store);
        let asked = start(async move {
            let requests = all.into_iter().map(|key| delete(Arc::clone(&store), key));
            futures::stream::iter(requests).buffer_unordered(REQUESTS_MAX).try_collect::<Vec<()>>().await
        })?;
        answer(asked)?.map(drop).map_err(|e| self.refused("remove", &first, &e))
    }

    /// Publishes the objects that are not published yet. Errors: as [`super::target::Target::publish`].
    pub fn publish(&self, prefix: &str, files: &[StagedFile], verify: bool) -> Result<()> {
        let mut requests = Vec::with_capacity(files.len());
        for file in files {
            let (staged, published) = (format!("{prefix}{STAGING}/{}", file.staged), format!("{prefix}{}", file.path));
            let (from, to) = (self.key(&staged)?, self.key(&published)?);
            let (store, file) = (Arc::clone(&self.store), file.clone());
            requests.push(async move { (staged, published, publish(&*store, &from, &to, &file, verify).await) });
        }
        let asked =
            start(
                async move { futures::stream::iter(requests).buffer_unordered(REQUESTS_MAX).collect::<Vec<_>>().await },
            )?;
        for (staged, published, step) in answer(asked)? {
            let step = step.map_err(|e| self.refused("publish", &published, &e))?;
            if let Some(e) = step.failure(&self.name_of(&staged), &self.name_of(&published)) {
                return Err(e);
            }
        }
        Ok(())
    }

    fn refused(&self, action: &str, key: &str, e: &StoreError) -> Error {
        gone(self.failed(&format!("{action} \"{}\"", self.name_of(key)), e))
    }
}

/// Takes the step that is due, and returns [`Step::Done`], or the step that is an error.
async fn publish(store: &dyn ObjectStore, from: &Key, to: &Key, file: &StagedFile, verify: bool) -> Asked<Step> {
    let published = seen(store, to, file, true).await?;
    let staged = if verify && published == Seen::Nothing { seen(store, from, file, true).await? } else { Seen::Same };
    let mut step = Step::of(staged, published);
    if step == Step::Publish {
        step = match store.copy(from, to).await {
            Ok(()) => Step::Done,
            // It was published and removed between the two looks, or it is not there.
            Err(StoreError::NotFound { .. }) => Step::of(Seen::Nothing, seen(store, to, file, true).await?),
            Err(e) => return Err(e),
        };
    }
    if step == Step::Done {
        match store.delete(from).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(step)
}

async fn delete(store: Arc<dyn ObjectStore>, key: Key) -> Asked<()> {
    match store.delete(&key).await {
        Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
        Err(e) => Err(e),
    }
}

/// What stands at `key`. Without `verify` an object of the right length counts as the same.
async fn seen(store: &dyn ObjectStore, key: &Key, file: &StagedFile, verify: bool) -> Asked<Seen> {
    match store.head(key).await {
        Ok(meta) if meta.size != file.bytes => return Ok(Seen::Other),
        Ok(_) if !verify => return Ok(Seen::Same),
        Ok(_) => {}
        Err(StoreError::NotFound { .. }) => return Ok(Seen::Nothing),
        Err(e) => return Err(e),
    }
    let found = match store.get(key).await {
        Err(StoreError::NotFound { .. }) => return Ok(Seen::Nothing),
        found => found?,
    };
    let (mut content, mut hash, mut length) = (found.into_stream(), crc32fast::Hasher::new(), 0);
    while let Some(block) = content.try_next().await? {
        hash.update(&block);
        length += block.len() as u64;
    }
    Ok(if file.is(length, hash.finalize()) { Seen::Same } else { Seen::Other })
}

/// An object that grows. It is there when it is finished.
pub struct Upload {
    bucket: Arc<Bucket>,
    key: Key,
    buffer: Vec<u8>,
    /// The whole of an object that is written in one request.
    whole: Option<Bytes>,
    /// What has begun, once there is more than one part.
    id: Option<MultipartId>,
    /// The parts that have arrived, and their bytes.
    arrived: Vec<PartId>,
    arrived_bytes: u64,
    /// The part that is on its way; the next one waits for it.
    sent: Option<Sent>,
    /// The part that did not arrive; it is sent again.
    refused: Option<PutPayload>,
}

struct Sent {
    part: PutPayload,
    answer: Receiver<Asked<PartId>>,
}

impl Upload {
    pub fn new(bucket: &Arc<Bucket>, key: &str) -> Result<Upload> {
        let key = bucket.key(key)?;
        Ok(Upload {
            bucket: Arc::clone(bucket),
            key,
            buffer: Vec::new(),
            whole: None,
            id: None,
            arrived: Vec::new(),
            arrived_bytes: 0,
            sent: None,
            refused: None,
        })
    }

    pub fn take(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Sends whole parts. Errors: `58030`, `42501`, after which it may be called again; `XX001` the service has thrown away what was
    /// sent.
    pub fn push(&mut self) -> Result<()> {
        while self.buffer.len() > PART_BYTES {
            self.begin()?;
            self.wait()?;
            let rest = self.buffer.split_off(PART_BYTES);
            let part = std::mem::replace(&mut self.buffer, rest);
            self.send(PutPayload::from(part))?;
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        if self.id.is_none() {
            let (store, key) = (Arc::clone(&self.bucket.parts), self.key.clone());
            let asked = start(async move { store.create_multipart(&key).await })?;
            self.id = Some(answer(asked)?.map_err(|e| self.failed(&e))?);
        }
        Ok(())
    }

    /// Sends a part, which is kept until it has arrived.
    fn send(&mut self, part: PutPayload) -> Result<()> {
        let Some(id) = self.id.clone() else { return Err(Error::internal("a part of an upload that has not begun")) };
        let (store, key, number) = (Arc::clone(&self.bucket.parts), self.key.clone(), self.arrived.len());
        self.refused = Some(part.clone());
        let payload = part.clone();
        let answer = start(async move { store.put_part(&key, &id, number, payload).await })?;
        self.refused = None;
        self.sent = Some(Sent { part, answer });
        Ok(())
    }

    /// Waits until what was sent has arrived. A part that did not is sent again by the next call.
    fn wait(&mut self) -> Result<()> {
        if let Some(part) = self.refused.take() {
            self.send(part)?;
        }
        let Some(Sent { part, answer: asked }) = self.sent.take() else { return Ok(()) };
        match answer(asked)? {
            Ok(id) => {
                self.arrived.push(id);
                self.arrived_bytes += part.content_length() as u64;
                Ok(())
            }
            Err(e) => {
                self.refused = Some(part);
                Err(self.failed(&e))
            }
        }
    }

    /// Errors: as [`push`](Self::push).
    pub fn finish(&mut self) -> Result<()> {
        if self.id.is_none() {
            let whole = self.whole.get_or_insert_with(|| std::mem::take(&mut self.buffer).into()).clone();
            return self.bucket.put(self.key.as_ref(), whole);
        }
        self.wait()?;
        if !self.buffer.is_empty() {
            let part = std::mem::take(&mut self.buffer);
            self.send(PutPayload::from(part))?;
            self.wait()?;
        }
        if let Some(id) = self.id.clone() {
            let (store, key, arrived) = (Arc::clone(&self.bucket.parts), self.key.clone(), self.arrived.clone());
            let asked = start(async move { store.complete_multipart(&key, &id, arrived).await })?;
            match answer(asked)? {
                // An earlier call may have completed it without an answer.
                Err(e @ StoreError::NotFound { .. }) if !self.is_there()? => return Err(self.failed(&e)),
                Err(StoreError::NotFound { .. }) | Ok(_) => {}
                Err(e) => return Err(self.failed(&e)),
            }
            self.id = None;
        }
        Ok(())
    }

    /// Whether the object is there, of the length that was sent. Nobody else writes it.
    fn is_there(&self) -> Result<bool> {
        let (store, key) = (Arc::clone(&self.bucket.store), self.key.clone());
        match answer(start(async move { store.head(&key).await })?)? {
            Ok(meta) => Ok(meta.size == self.arrived_bytes),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.bucket.refused("write", self.key.as_ref(), &e)),
        }
    }

    pub fn held_bytes(&self) -> usize {
        let whole = self.whole.as_ref().map_or(0, Bytes::len);
        let parts = self.sent.iter().map(|sent| &sent.part).chain(&self.refused);
        self.buffer.capacity() + whole + parts.map(PutPayload::content_length).sum::<usize>()
    }

    /// A request that may be made again, unless the service does not know the upload any more.
    fn failed(&self, e: &StoreError) -> Error {
        let refused = self.bucket.refused("write", self.key.as_ref(), e);
        match e {
            StoreError::NotFound { .. } if self.id.is_some() => lost(&refused),
            _ => refused,
        }
    }
}

impl Drop for Upload {
    /// Parts of an object that will never be whole are given back, as far as the service can be reached.
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let (store, key) = (Arc::clone(&self.bucket.parts), self.key.clone());
            let aborted = start(async move {
                if let Err(e) = store.abort_multipart(&key, &id).await {
                    tracing::debug!(error = %e, "could not abort an upload");
                }
            });
            drop(aborted);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use flow::SqlState;
    use object_store::PutResult;
    use object_store::memory::InMemory;
    use object_store::multipart::MultipartStore;

    use super::*;

    /// A service of which some requests fail: before they have an effect, or after it.
    struct Flaky {
        objects: Arc<InMemory>,
        asked: AtomicUsize,
        fails: fn(usize) -> Option<bool>,
        /// It has thrown the upload away.
        forgets: bool,
    }

    impl Flaky {
        fn new(fails: fn(usize) -> Option<bool>, forgets: bool) -> Arc<Flaky> {
            Arc::new(Flaky { objects: Arc::new(InMemory::new()), asked: AtomicUsize::new(0), fails, forgets })
        }

        async fn request<T>(&self, work: impl Future<Output = Asked<T>> + Send) -> Asked<T> {
            let broken = || StoreError::Generic { store: "S3", source: "the connection was closed".into() };
            match (self.fails)(self.asked.fetch_add(1, Ordering::SeqCst)) {
                Some(false) if self.forgets => {
                    Err(StoreError::NotFound { path: "the upload".into(), source: "NoSuchUpload".into() })
                }
                Some(false) => Err(broken()),
                Some(true) => work.await.and_then(|_| Err(broken())),
                None => work.await,
            }
        }
    }

    #[async_trait::async_trait]
    impl MultipartStore for Flaky {
        async fn create_multipart(&self, path: &Key) -> Asked<MultipartId> {
            self.request(self.objects.create_multipart(path)).await
        }

        async fn put_part(&self, path: &Key, id: &MultipartId, number: usize, data: PutPayload) -> Asked<PartId> {
            self.request(self.objects.put_part(path, id, number, data)).await
        }

        async fn complete_multipart(&self, path: &Key, id: &MultipartId, parts: Vec<PartId>) -> Asked<PutResult> {
            let completed = self.request(self.objects.complete_multipart(path, id, parts)).await;
            // As S3 says it of an upload that is completed already.
            completed.map_err(|e| {
                match e.to_string().contains("No such upload") || e.to_string().contains("not found") {
                    true => StoreError::NotFound { path: path.to_string(), source: "NoSuchUpload".into() },
                    false => e,
                }
            })
        }

        async fn abort_multipart(&self, path: &Key, id: &MultipartId) -> Asked<()> {
            self.objects.abort_multipart(path, id).await
        }
    }

    fn content() -> Vec<u8> {
        (0..3 * PART_BYTES + 1000).map(|n| (n % 251) as u8).collect()
    }

    /// Writes the content as a sink does, asking again after a refusal that may pass. Returns how often that was.
    fn write(flaky: &Arc<Flaky>) -> Result<usize> {
        let (objects, parts) = (Arc::clone(&flaky.objects), Arc::clone(flaky));
        let bucket = Arc::new(Bucket::over(objects, parts, "s3://bucket/", Vec::new()));
        let mut upload = Upload::new(&bucket, "staged")?;
        let mut refusals = 0;
        let mut insist = |ask: &mut dyn FnMut() -> Result<()>| loop {
            match ask() {
                Err(e) if e.may_pass() => refusals += 1,
                done => break done,
            }
            assert!(refusals < 100);
        };
        for piece in content().chunks(1 << 20) {
            upload.take(piece);
            insist(&mut || upload.push())?;
        }
        insist(&mut || upload.finish())?;
        assert_eq!(bucket.get("staged")?.as_deref(), Some(&content()[..]));
        Ok(refusals)
    }

    #[test]
    fn an_upload_that_breaks_off_goes_on_with_the_part_that_did_not_arrive() {
        assert_eq!(write(&Flaky::new(|_| None, false)).unwrap(), 0);
        // The second of each two requests, without an effect or with it.
        assert!(write(&Flaky::new(|n| (n % 2 == 1).then_some(false), false)).unwrap() >= 3);
        assert!(write(&Flaky::new(|n| (n % 2 == 1 && n < 6).then_some(true), false)).unwrap() >= 3);
    }

    #[test]
    fn an_upload_whose_completion_had_no_answer_is_complete() {
        // One begins it, four are parts.
        assert_eq!(write(&Flaky::new(|n| (n == 5).then_some(true), false)).unwrap(), 1);
    }

    #[test]
    fn an_upload_that_the_service_has_thrown_away_is_lost() {
        let refused = write(&Flaky::new(|n| (n == 2).then_some(false), true)).unwrap_err();
        assert_eq!(refused.state(), SqlState::DataCorrupted, "{refused}");
        assert!(refused.hint().unwrap().contains("last checkpoint"));
    }
}
