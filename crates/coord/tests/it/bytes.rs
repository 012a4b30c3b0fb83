//! A wire on which every message travels as bytes: what arrives is what the bytes say, so nothing that cannot be
//! serialised rides along.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use flow::SlotId;
use parking_lot::Mutex;
use runtime::{FromSlot, ToSlot, Wire};
use serde::Serialize;
use serde::de::DeserializeOwned;

#[derive(Default)]
pub struct Bytes(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// How often each kind of message was sent.
    kinds: BTreeMap<String, usize>,
    problems: Vec<String>,
    /// Over all messages so far, in their order.
    hash: DefaultHasher,
}

impl Bytes {
    /// What did not come back as it was.
    pub fn problems(&self) -> Vec<String> {
        self.0.lock().problems.clone()
    }

    /// The kinds of messages seen so far, with their numbers.
    pub fn kinds(&self) -> BTreeMap<String, usize> {
        self.0.lock().kinds.clone()
    }

    /// A hash over every message so far, to whom it went and in which order.
    pub fn hash(&self) -> u64 {
        self.0.lock().hash.finish()
    }

    fn travel<M: Serialize + DeserializeOwned>(&self, to: Option<SlotId>, message: M) -> M {
        let back = || -> Result<(String, M), String> {
            let bytes = serde_json::to_vec(&message).map_err(|e| e.to_string())?;
            let back: M = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
            if serde_json::to_vec(&back).map_err(|e| e.to_string())? != bytes {
                return Err(format!("comes back changed: {}", String::from_utf8_lossy(&bytes)));
            }
            let mut seen = self.0.lock();
            to.map(|slot| slot.0).hash(&mut seen.hash);
            bytes.hash(&mut seen.hash);
            // A message is its kind alone, or an object with its kind as the only key.
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            let kind = text.split('"').nth(1).unwrap_or_default().to_string();
            Ok((kind, back))
        };
        match back() {
            Ok((kind, back)) => {
                *self.0.lock().kinds.entry(kind).or_default() += 1;
                back
            }
            Err(problem) => {
                self.0.lock().problems.push(problem);
                message
            }
        }
    }
}

impl Wire for Bytes {
    fn to_slot(&self, slot: SlotId, message: ToSlot) -> ToSlot {
        self.travel(Some(slot), message)
    }

    fn reported(&self, message: FromSlot) -> FromSlot {
        self.travel(None, message)
    }
}
