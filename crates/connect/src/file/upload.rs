//! Objects that a sink writes: staged in parts while they grow, and published by a copy inside of the service.
//!
//! An upload that is left open over a crash would be the other way; but the service may end it when it likes, it can not be
//! listed, and completing it a second time fails. A staged object has none of this, and costs one copy.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use bytes::Bytes;
use flow::{Error, Result};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{Error as StoreError, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};

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
    parts: Option<Box<dyn MultipartUpload>>,
    /// The part that is on its way; the next one waits for it.
    sent: Option<Receiver<Asked<()>>>,
}

impl Upload {
    pub fn new(bucket: &Arc<Bucket>, key: &str) -> Result<Upload> {
        let key = bucket.key(key)?;
        Ok(Upload { bucket: Arc::clone(bucket), key, buffer: Vec::new(), whole: None, parts: None, sent: None })
    }

    pub fn take(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Sends whole parts. Errors: `58030`, after which it may be called again; `XX001` a part that was sent did not arrive.
    pub fn push(&mut self) -> Result<()> {
        while self.buffer.len() > PART_BYTES {
            self.begin()?;
            let rest = self.buffer.split_off(PART_BYTES);
            self.send(rest)?;
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        if self.parts.is_none() {
            let (store, key) = (Arc::clone(&self.bucket.store), self.key.clone());
            let asked = start(async move { store.put_multipart(&key).await })?;
            self.parts = Some(answer(asked)?.map_err(|e| self.refused(&e))?);
        }
        Ok(())
    }

    /// Sends what is in the buffer as a part, and goes on with `rest`.
    fn send(&mut self, rest: Vec<u8>) -> Result<()> {
        let part = std::mem::replace(&mut self.buffer, rest);
        self.wait()?;
        if let Some(parts) = &mut self.parts {
            self.sent = Some(start(parts.put_part(PutPayload::from(part)))?);
        }
        Ok(())
    }

    /// A part that did not arrive cannot be sent again under its number.
    fn wait(&mut self) -> Result<()> {
        match self.sent.take() {
            Some(sent) => answer(sent)?.map_err(|e| lost(&self.refused(&e))),
            None => Ok(()),
        }
    }

    /// Errors: as [`push`](Self::push).
    pub fn finish(&mut self) -> Result<()> {
        if self.parts.is_none() {
            let whole = self.whole.get_or_insert_with(|| std::mem::take(&mut self.buffer).into()).clone();
            return self.bucket.put(self.key.as_ref(), whole);
        }
        self.send(Vec::new())?;
        self.wait()?;
        if let Some(mut parts) = self.parts.take() {
            let asked = start(async move { parts.complete().await })?;
            answer(asked)?.map_err(|e| lost(&self.refused(&e)))?;
        }
        Ok(())
    }

    pub fn held_bytes(&self) -> usize {
        let whole = self.whole.as_ref().map_or(0, Bytes::len);
        self.buffer.capacity() + whole + if self.sent.is_some() { PART_BYTES } else { 0 }
    }

    fn refused(&self, e: &StoreError) -> Error {
        self.bucket.refused("write", self.key.as_ref(), e)
    }
}

impl Drop for Upload {
    /// Parts of an object that will never be whole are given back, as far as the service can be reached.
    fn drop(&mut self) {
        if let Some(mut parts) = self.parts.take() {
            let aborted = start(async move {
                if let Err(e) = parts.abort().await {
                    tracing::debug!(error = %e, "could not abort an upload");
                }
            });
            drop(aborted);
        }
    }
}
