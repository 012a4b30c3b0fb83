//! The one door to where objects are kept.
//!
//! The law: an object is created once, under a name that was free, and never changes. [`Door::put_new`] says `Created` only if
//! the object is there and is ours, and `Exists` only after it has read the other one. What the store answers to a create is
//! a hint: a request may take effect although its answer was lost, a retry then meets its own earlier success, and a
//! conflict may be reported although nothing landed.
//!
//! A name that was free for a moment because its object was deleted is free for a writer that slept as well. So `Created` alone
//! proves no ownership: see [`crate::protocol`], which looks again after it.
//!
//! Calls block and may come from any thread.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flow::{Error, Result, SqlState};

use crate::envelope::{self, Object, Writer};
use crate::names::PROBES;
use crate::permit::Generation;

/// How often one request is tried in all.
pub const TRIES_MAX: u32 = 8;

/// The rest before the second try; it doubles with each further one, up to [`REST_MAX`].
pub const REST_FIRST: Duration = Duration::from_millis(50);
pub const REST_MAX: Duration = Duration::from_secs(5);

/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 512;

/// An object as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    pub name: String,
    /// With its envelope.
    pub bytes: u64,
}

/// What a store says to a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The object was not there, and is now, durably.
    Created,
    /// Refused, because an object of this name was there, or perhaps for another conflict.
    Refused,
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// May pass: an overloaded or unreachable service, a time-out. The request may have taken effect.
    Transient(String),
    /// Asking again would not help.
    Lasting(Error),
}

/// A back end: one attempt for each call, no retries. Consistent: what was created is read and listed at once.
pub trait Store: Send + Sync {
    /// Stores an object under a name that is free.
    fn create(&self, name: &str, bytes: &Bytes) -> Result<Answer, Failure>;

    /// All bytes of an object; `None` if there is none.
    fn read(&self, name: &str) -> Result<Option<Bytes>, Failure>;

    /// All objects below a folder, or all at all for the empty name; in any order.
    fn list(&self, folder: &str) -> Result<Vec<Listed>, Failure>;

    /// Removes an object if it is there.
    fn delete(&self, name: &str) -> Result<(), Failure>;

    /// Where the objects are, for messages.
    fn place(&self) -> String;

    /// How many requests may be under way at once; 1 where a test counts them.
    fn requests_at_once(&self) -> usize {
        usize::MAX
    }
}

/// Passes the time between two tries.
pub trait Rest: Send + Sync {
    /// Sleeps for a random part of `at_most`, so that many who failed together do not come again together.
    fn rest(&self, at_most: Duration);
}

/// What became of a create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutNew {
    /// The object is there and is ours, now or since an earlier try.
    Created,
    /// Another object has the name: this one.
    Exists(Object),
}

/// A store as one writer uses it.
#[derive(Clone)]
pub struct Door {
    store: Arc<dyn Store>,
    rest: Arc<dyn Rest>,
    writer: Writer,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {}", self.store.place(), self.writer)
    }
}

impl Door {
    /// `nonce`: random, and no other process's.
    pub fn new(store: Arc<dyn Store>, rest: Arc<dyn Rest>, nonce: u64) -> Door {
        Door { store, rest, writer: Writer { generation: Generation(0), nonce } }
    }

    /// The same door, for what is written as this generation.
    pub fn of_generation(&self, generation: Generation) -> Door {
        Door { writer: Writer { generation, ..self.writer }, ..self.clone() }
    }

    pub fn writer(&self) -> Writer {
        self.writer
    }

    /// Where the objects are, for messages.
    pub fn place(&self) -> String {
        self.store.place()
    }

    /// How many requests the store takes at once.
    pub fn requests_at_once(&self) -> usize {
        self.store.requests_at_once()
    }

    /// Creates an object if there is none of this name. The same payload put twice by the same writer is one object.
    ///
    /// Errors: `58030` after [`TRIES_MAX`] tries: then the object may be there or may come to be there later; `42501`, `53100`,
    /// `54000`; `XX001` when there is one already that cannot be read.
    pub fn put_new(&self, name: &str, payload: &[u8]) -> Result<PutNew> {
        check_name(name)?;
        let bytes = envelope::seal(name, self.writer, payload)?;
        let mut tries = Tries::new(self, "create", name);
        loop {
            match self.store.create(name, &bytes) {
                Ok(Answer::Created) => return Ok(PutNew::Created),
                Ok(Answer::Refused) => match self.get_object(name)? {
                    Some(found) if found.writer == self.writer && found.payload == payload => {
                        return Ok(PutNew::Created);
                    }
                    Some(found) => return Ok(PutNew::Exists(found)),
                    None => tries.failed("refused by a conflict, but there is no such object".into())?,
                },
                Err(failure) => tries.again(failure)?,
            }
        }
    }

    /// The payload of an object; `None` if there is none. Errors: `58030`, `42501`; `XX001` when it is damaged, also after reading
    /// it again.
    pub fn get(&self, name: &str) -> Result<Option<Bytes>> {
        Ok(self.get_object(name)?.map(|object| object.payload))
    }

    /// The same, with its writer.
    pub fn get_object(&self, name: &str) -> Result<Option<Object>> {
        check_name(name)?;
        let mut tries = Tries::new(self, "read", name);
        loop {
            let damage = match self.store.read(name) {
                Ok(None) => return Ok(None),
                Ok(Some(bytes)) => match envelope::open(name, &bytes) {
                    Ok(object) => return Ok(Some(object)),
                    Err(damage) => damage,
                },
                Err(failure) => {
                    tries.again(failure)?;
                    continue;
                }
            };
            if !damage.may_pass() || tries.failed(damage.to_string()).is_err() {
                return Err(damage.of(name));
            }
        }
    }

    /// The objects below a folder (`jobs/7`), or all for the empty name; sorted by name. Errors: `58030`, `42501`.
    pub fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        if !folder.is_empty() {
            check_name(folder)?;
        }
        let mut tries = Tries::new(self, "list", folder);
        loop {
            match self.store.list(folder) {
                Ok(mut listed) => {
                    listed.sort();
                    return Ok(listed);
                }
                Err(failure) => tries.again(failure)?,
            }
        }
    }

    /// Removes an object if it is there. Errors: `58030`, `42501`.
    pub fn delete(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let mut tries = Tries::new(self, "delete", name);
        loop {
            match self.store.delete(name) {
                Ok(()) => return Ok(()),
                Err(failure) => tries.again(failure)?,
            }
        }
    }

    /// Sleeps for a random part of `at_most`, for who asks again after a request has failed for good.
    pub fn rest(&self, at_most: Duration) {
        self.rest.rest(at_most);
    }

    /// Tries whether the store keeps the law of this module, with an object that is deleted again. To be called before anything
    /// relies on the store. Errors: `0A000` it overwrites what exists, or does not show what was created.
    pub fn probe(&self) -> Result<()> {
        let name = format!("{PROBES}/{:016x}", self.writer.nonce);
        let refuse = |what: &str| {
            Error::unsupported(format!("{} cannot keep checkpoints: {what}", self.place()))
                .with_hint("Use a store with conditional writes (If-None-Match), or a local folder.")
        };
        // Left behind by nobody: the nonce is ours alone.
        let first = self.put_new(&name, b"first")?;
        let seen = (|| {
            if first != PutNew::Created {
                return Err(refuse("another process has the same random number"));
            }
            let second = self.put_new(&name, b"second")?;
            let winner = self.get(&name)?;
            let listed = self.list(PROBES)?.iter().any(|listed| listed.name == name);
            if second == PutNew::Created || winner.as_deref() != Some(b"first") {
                return Err(refuse("it overwrites an object that was to be created only if absent"));
            }
            if !listed {
                return Err(refuse("it does not list what was created"));
            }
            Ok(())
        })();
        if first == PutNew::Created {
            self.delete(&name)?;
        }
        seen?;
        match self.get(&name)? {
            None => Ok(()),
            Some(_) => Err(refuse("it shows what was deleted")),
        }
    }
}

/// The tries of one request.
struct Tries<'a> {
    door: &'a Door,
    action: &'static str,
    name: &'a str,
    done: u32,
    rest: Duration,
    /// What went wrong, each reason once, with how often.
    reasons: Vec<(String, u32)>,
}

impl<'a> Tries<'a> {
    fn new(door: &'a Door, action: &'static str, name: &'a str) -> Tries<'a> {
        Tries { door, action, name, done: 0, rest: REST_FIRST, reasons: Vec::new() }
    }

    /// Rests after a failure that may pass.
    fn again(&mut self, failure: Failure) -> Result<()> {
        match failure {
            Failure::Transient(reason) => self.failed(reason),
            Failure::Lasting(error) => Err(error),
        }
    }

    fn failed(&mut self, reason: String) -> Result<()> {
        self.done += 1;
        match self.reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, times)) => *times += 1,
            None => self.reasons.push((reason, 1)),
        }
        if self.done >= TRIES_MAX {
            let reasons: Vec<String> = self.reasons.iter().map(|(why, times)| format!("{why} ({times}×)")).collect();
            let what = match self.name {
                "" => self.door.place(),
                name => format!("\"{name}\" in {}", self.door.place()),
            };
            return Err(Error::new(SqlState::IoError, format!("could not {} {what}", self.action))
                .with_detail(format!("Tried {} times: {}.", self.done, reasons.join(", ")))
                .with_hint("Check that the store can be reached and answers."));
        }
        self.door.rest.rest(self.rest);
        self.rest = (self.rest * 2).min(REST_MAX);
        Ok(())
    }
}

/// Names are relative, of letters, digits, `.`, `-`, `_` and `/`, and no part of them begins with a dot.
fn check_name(name: &str) -> Result<()> {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    if name.len() <= NAME_BYTES_MAX && name.split('/').all(plain) {
        return Ok(());
    }
    Err(Error::new(SqlState::InvalidName, format!("\"{name}\" is not a name of an object")))
}

/// Sleeps on the thread that asked, for a random half to whole of the time.
#[derive(Debug)]
pub struct ThreadRest {
    state: std::sync::atomic::AtomicU64,
}

impl ThreadRest {
    pub fn seeded(seed: u64) -> ThreadRest {
        ThreadRest { state: seed.into() }
    }
}

impl Rest for ThreadRest {
    fn rest(&self, at_most: Duration) {
        // Weyl sequence and one round of mixing: spreads sleepers, no more.
        let step = 0x9e37_79b9_7f4a_7c15;
        let drawn = self.state.fetch_add(step, std::sync::atomic::Ordering::Relaxed).wrapping_add(step);
        let mixed = (drawn ^ (drawn >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32;
        let half = at_most / 2;
        std::thread::sleep(half + half.mul_f64(mixed as f64 / f64::from(u32::MAX)));
    }
}

/// Does not sleep.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRest;

impl Rest for NoRest {
    fn rest(&self, _at_most: Duration) {}
}
