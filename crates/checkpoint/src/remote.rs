//! Objects of a bucket, over the `object_store` crate.
//!
//! Requests run in a small runtime of their own or of the caller; the threads that ask wait. There are no retries here: the door
//! makes them, so that the limit and the rests are ours.

use std::future::Future;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use flow::{Error, Result, SqlState};
use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig};
use tokio::runtime::{Handle, Runtime};

use crate::door::{Answer, Failure, Listed, Store};

/// How long one request may take before it counts as lost.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Characters of a message of the service.
const WORDS_CHARS_MAX: usize = 300;

static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();

/// A part of a bucket.
pub struct RemoteStore {
    store: Arc<dyn ObjectStore>,
    /// The folder of the bucket that holds everything; may be empty.
    prefix: String,
    place: String,
    /// What no message may show.
    secrets: Vec<String>,
    handle: Handle,
}

impl RemoteStore {
    /// The bucket `name` of S3, below `prefix`. Endpoint, region and credentials come from `AWS_…` in the environment; `options` by
    /// the names of these variables, in lower case, take their place. Errors: `22023` they do not make a client.
    pub fn s3(name: &str, prefix: &str, options: &[(String, String)]) -> Result<RemoteStore> {
        let refuse = |e: &dyn std::fmt::Display| {
            Error::new(SqlState::InvalidParameterValue, format!("bucket \"{name}\" cannot be reached: {e}"))
        };
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(name);
        let environment =
            ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"].into_iter().filter_map(|n| std::env::var(n).ok());
        let mut secrets: Vec<String> = environment.collect();
        for (key, value) in options {
            builder = builder.with_config(key.parse().map_err(|e: object_store::Error| refuse(&e))?, value);
            if key.contains("secret") || key.contains("token") {
                secrets.push(value.clone());
            }
        }
        let builder = builder.with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
        let store = builder.build().map_err(|e| refuse(&words(&e, &secrets)))?;
        RemoteStore::over(Arc::new(store), prefix, format!("s3://{name}/{prefix}"), secrets, None)
    }

    /// Any store, below `prefix`. `place`: what it is called in messages; `secrets`: what no message may show; `handle`: where
    /// requests run, if not in a runtime of their own.
    pub fn over(
        store: Arc<dyn ObjectStore>,
        prefix: &str,
        place: String,
        secrets: Vec<String>,
        handle: Option<Handle>,
    ) -> Result<RemoteStore> {
        let handle = match handle {
            Some(handle) => handle,
            None => runtime()?.handle().clone(),
        };
        let secrets = secrets.into_iter().filter(|secret| !secret.is_empty()).collect();
        Ok(RemoteStore { store, prefix: prefix.trim_matches('/').to_string(), place, secrets, handle })
    }

    fn key(&self, name: &str) -> Key {
        Key::from_iter(self.prefix.split('/').chain(name.split('/')).filter(|part| !part.is_empty()))
    }

    fn name_of(&self, key: &Key) -> Option<String> {
        let below = key.as_ref().strip_prefix(&self.prefix)?;
        Some(below.trim_start_matches('/').to_string())
    }

    /// Runs a request and waits for its end.
    fn ask<T: Send + 'static>(
        &self,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<object_store::Result<T>, Failure> {
        let (sender, receiver) = sync_channel(1);
        self.handle.spawn(async move {
            // Fails only when nobody waits any more.
            let _ = sender.send(tokio::time::timeout(REQUEST_TIMEOUT, request).await);
        });
        match receiver.recv() {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Failure::Transient(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))),
            Err(_) => Err(Failure::Lasting(Error::internal("a request to an object store was dropped"))),
        }
    }

    fn failed(&self, action: &str, e: &object_store::Error) -> Failure {
        use object_store::Error as E;
        let state = match e {
            E::NotFound { .. } => SqlState::UndefinedFile,
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => SqlState::InsufficientPrivilege,
            E::NotSupported { .. } | E::NotImplemented { .. } => SqlState::FeatureNotSupported,
            E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => SqlState::InvalidParameterValue,
            _ => return Failure::Transient(words(e, &self.secrets)),
        };
        let message = format!("could not {action} in {}: {}", self.place, words(e, &self.secrets));
        Failure::Lasting(
            Error::new(state, message).with_hint("Check the bucket, its endpoint and AWS_… in the environment."),
        )
    }
}

fn runtime() -> Result<&'static Runtime> {
    let build = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("checkpoints").enable_io().enable_time().build()
    };
    let cannot =
        |e: &std::io::Error| Error::new(SqlState::IoError, format!("cannot start the thread of the object store: {e}"));
    RUNTIME.get_or_init(build).as_ref().map_err(cannot)
}

/// What the service said, in short and without secrets.
fn words(e: &object_store::Error, secrets: &[String]) -> String {
    let mut text = e.to_string();
    for secret in secrets {
        text = text.replace(secret.as_str(), "********");
    }
    match text.char_indices().nth(WORDS_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl Store for RemoteStore {
    fn create(&self, name: &str, bytes: &Bytes) -> Result<Answer, Failure> {
        let (store, key, payload) = (Arc::clone(&self.store), self.key(name), PutPayload::from(bytes.clone()));
        let create = PutOptions::from(PutMode::Create);
        match self.ask(async move { store.put_opts(&key, payload, create).await })? {
            Ok(_) => Ok(Answer::Created),
            // A 409 is reported as one of these, whether or not anything is there.
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(Answer::Refused)
            }
            Err(e) => Err(self.failed(&format!("create \"{name}\""), &e)),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, Failure> {
        let (store, key) = (Arc::clone(&self.store), self.key(name));
        let request = async move {
            let found = store.get(&key).await?;
            let size = found.meta.size;
            Ok((size, found.bytes().await?))
        };
        match self.ask(request)? {
            Ok((size, bytes)) if size == bytes.len() as u64 => Ok(Some(bytes)),
            Ok((size, bytes)) => {
                Err(Failure::Transient(format!("the answer ended after {} of {size} bytes", bytes.len())))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed(&format!("read \"{name}\""), &e)),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure> {
        let (store, below) = (Arc::clone(&self.store), self.key(folder));
        let answer = self.ask(async move { store.list(Some(&below)).try_collect::<Vec<ObjectMeta>>().await })?;
        let metas = answer.map_err(|e| self.failed(&format!("list \"{folder}\""), &e))?;
        let listed = |meta: &ObjectMeta| Some(Listed { name: self.name_of(&meta.location)?, bytes: meta.size });
        Ok(metas.iter().filter_map(listed).collect())
    }

    fn delete(&self, name: &str) -> Result<(), Failure> {
        let (store, key) = (Arc::clone(&self.store), self.key(name));
        match self.ask(async move { store.delete(&key).await })? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed(&format!("delete \"{name}\""), &e)),
        }
    }

    fn place(&self) -> String {
        self.place.clone()
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::door::{Door, NoRest, PutNew};

    fn store(prefix: &str) -> RemoteStore {
        RemoteStore::over(Arc::new(InMemory::new()), prefix, "s3://b/x".into(), vec!["sesame".into(), "".into()], None)
            .unwrap()
    }

    #[test]
    fn objects_are_created_read_listed_and_deleted_below_a_prefix_or_none() {
        for prefix in ["", "a/b", "/a/"] {
            let store = Arc::new(store(prefix));
            let [one, two] = [1, 2].map(|nonce| Door::new(store.clone(), Arc::new(NoRest), nonce));
            one.probe().unwrap();
            assert_eq!(one.put_new("epoch/0000000001", b"one").unwrap(), PutNew::Created);
            assert_eq!(one.put_new("epoch/0000000001", b"one").unwrap(), PutNew::Created);
            let PutNew::Exists(found) = two.put_new("epoch/0000000001", b"one").unwrap() else { panic!("two winners") };
            assert_eq!(found.writer, one.writer());
            two.put_new("jobs/7/a.seg", b"state").unwrap();
            let names = |folder: &str| one.list(folder).unwrap().into_iter().map(|l| l.name).collect::<Vec<_>>();
            assert_eq!(names(""), ["epoch/0000000001", "jobs/7/a.seg"], "prefix {prefix:?}");
            assert_eq!(names("jobs"), ["jobs/7/a.seg"]);
            one.delete("jobs/7/a.seg").unwrap();
            assert_eq!(one.get("jobs/7/a.seg").unwrap(), None);
            one.delete("jobs/7/a.seg").unwrap();
        }
    }

    #[test]
    fn refusals_are_told_from_what_may_pass_and_show_no_secret() {
        let store = store("");
        let generic = |text: &str| object_store::Error::Generic { store: "S3", source: text.to_string().into() };
        let Failure::Transient(text) = store.failed("read", &generic("503 for sesame")) else { panic!("lasting") };
        assert!(text.contains("503 for ********"), "{text}");
        let Failure::Transient(text) = store.failed("read", &generic(&"x".repeat(10_000))) else { panic!("lasting") };
        assert!(text.chars().count() <= WORDS_CHARS_MAX + 1);
        let denied = object_store::Error::PermissionDenied { path: "x".into(), source: "no".into() };
        let Failure::Lasting(e) = store.failed("read \"x\"", &denied) else { panic!("transient") };
        assert_eq!(e.state(), SqlState::InsufficientPrivilege);
    }

    #[test]
    fn s3_takes_options_and_refuses_unknown_ones() {
        let options = |key: &str, value: &str| vec![(key.to_string(), value.to_string())];
        RemoteStore::s3("bucket", "p", &options("aws_region", "eu-central-1")).unwrap();
        let error = RemoteStore::s3("bucket", "p", &options("no_such_thing", "x")).err().unwrap();
        assert_eq!(error.state(), SqlState::InvalidParameterValue);
    }
}
