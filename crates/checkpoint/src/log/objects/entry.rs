//! How an object of the log looks: a head in JSON, and records.
//!
//! ```text
//! entry: head length u32 · head · records          part: records
//! records: (length u32 · bytes)*
//! ```
//!
//! Little endian. The envelope of every object has the checksum over all of it.

use std::collections::BTreeSet;

use bytes::Bytes;
use flow::{Error, Result, SqlState};
use serde::{Deserialize, Serialize};

use crate::names::{LOG, LOG_PARTS};
use crate::permit::Generation;

/// Version of the objects. One of a newer version is refused.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes that stand before a record.
pub const LENGTH_BYTES: u64 = 4;
/// Digits of a number in a name, so that names sort as their numbers do. Larger numbers only get longer.
const DIGITS: usize = 10;

/// What stands first in an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub format: u32,
    pub number: u64,
    pub generation: Generation,
    /// The newest entry before this one that is a base; 0: there is none.
    pub base: u64,
    pub what: What,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// The head's generation begins to write.
    Claim { holder: String },
    /// Records were appended: those that follow the head.
    Records,
    /// Other objects stand for the log up to here.
    Base(Base),
}

/// What the log consists of, as of an entry that says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// In their order.
    pub parts: Vec<Part>,
    /// After them entries count from this number on.
    pub from: u64,
    /// So many bytes of records of that entry do not.
    pub skip: u64,
    /// The entries so far with which a generation has begun. They stay for good.
    pub claims: BTreeSet<u64>,
}

/// An object of records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    /// So many bytes of it do not count, and so many after them do.
    pub skip: u64,
    pub bytes: u64,
}

pub fn entry_name(number: u64) -> String {
    format!("{LOG}/{number:0DIGITS$}")
}

/// The inverse of [`entry_name`]; `None` for a name that it would not give.
pub fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix(LOG)?.strip_prefix('/')?.parse().ok()?;
    (entry_name(number) == name).then_some(number)
}

pub fn part_name(generation: Generation, counter: u64) -> String {
    format!("{LOG_PARTS}/{:0DIGITS$}-{counter:0DIGITS$}", generation.0)
}

/// The generation that has written a part.
pub fn writer_of(name: &str) -> Option<Generation> {
    let (generation, _) = name.strip_prefix(LOG_PARTS)?.strip_prefix('/')?.split_once('-')?;
    generation.parse().ok().map(Generation)
}

pub fn damaged(name: &str, why: impl std::fmt::Display) -> Error {
    Error::new(SqlState::DataCorrupted, format!("object \"{name}\" of the log is damaged: {why}"))
        .with_hint("Restore the object from a backup; nothing was changed.")
}

pub fn missing(name: &str) -> Error {
    Error::new(SqlState::DataCorrupted, format!("object \"{name}\" of the log is missing"))
        .with_detail("It was removed by hand, or by another coordinator that has taken over.")
        .with_hint("Restore the object from a backup, if this is the only coordinator.")
}

/// Adds a record to others.
pub fn add_record(records: &mut Vec<u8>, record: &[u8]) {
    records.extend_from_slice(&(record.len() as u32).to_le_bytes());
    records.extend_from_slice(record);
}

/// Takes the first of records; `None` when there are no more. Errors: `XX001` they do not end with a record.
pub fn take_record(name: &str, records: &mut Bytes) -> Result<Option<Bytes>> {
    if records.is_empty() {
        return Ok(None);
    }
    let length = records.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    match length.filter(|length| records.len() - LENGTH_BYTES as usize >= *length) {
        Some(length) => {
            let mut record = records.split_to(LENGTH_BYTES as usize + length);
            Ok(Some(record.split_off(LENGTH_BYTES as usize)))
        }
        None => Err(damaged(name, "a record is cut off")),
    }
}

/// An entry's payload. Errors: `54000` the head is larger than any entry's.
pub fn encode(head: &Head, records: &[Bytes]) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(head).map_err(|e| Error::internal(format!("write an entry of the log: {e}")))?;
    let length = u32::try_from(json.len())
        .map_err(|_| Error::new(SqlState::ProgramLimitExceeded, "the log consists of too many parts"))?;
    let bytes: usize = records.iter().map(|r| r.len() + LENGTH_BYTES as usize).sum();
    let mut payload = Vec::with_capacity(4 + json.len() + bytes);
    payload.extend_from_slice(&length.to_le_bytes());
    payload.extend_from_slice(&json);
    records.iter().for_each(|record| add_record(&mut payload, record));
    Ok(payload)
}

/// The inverse of [`encode`] for the entry `number`: its head and its records. Errors: `XX001`.
pub fn decode(number: u64, payload: &Bytes) -> Result<(Head, Bytes)> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let name = entry_name(number);
    let length = payload.first_chunk().map_or(usize::MAX, |bytes| u32::from_le_bytes(*bytes) as usize);
    let end = length.saturating_add(4);
    if end > payload.len() {
        return Err(damaged(&name, "its head is cut off"));
    }
    let version: Version = serde_json::from_slice(&payload[4..end]).map_err(|e| damaged(&name, e))?;
    if version.format > FORMAT_VERSION {
        let message = format!("object \"{name}\" of the log has format version {}", version.format);
        return Err(Error::new(SqlState::DataCorrupted, message)
            .with_detail(format!("This program reads versions up to {FORMAT_VERSION}."))
            .with_hint("Use the newer program that wrote it."));
    }
    let head: Head = serde_json::from_slice(&payload[4..end]).map_err(|e| damaged(&name, e))?;
    if head.number != number {
        return Err(damaged(&name, "it has another number than its name"));
    }
    Ok((head, payload.slice(end..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(what: What) -> Head {
        Head { format: FORMAT_VERSION, number: 7, generation: Generation(3), base: 2, what }
    }

    #[test]
    fn entries_come_back_as_they_were_and_what_is_cut_off_is_named() {
        let base = Base {
            parts: vec![Part { name: part_name(Generation(2), 1), skip: 5, bytes: 9 }],
            from: 4,
            skip: 8,
            claims: BTreeSet::from([1, 6]),
        };
        for what in [What::Claim { holder: "a:1".into() }, What::Records, What::Base(base)] {
            let records = [Bytes::from_static(b"first"), Bytes::from_static(b""), Bytes::from_static(b"third")];
            let payload = Bytes::from(encode(&head(what.clone()), &records).unwrap());
            let (found, mut rest) = decode(7, &payload).unwrap();
            assert_eq!(found, head(what));
            for record in records {
                assert_eq!(take_record("log/x", &mut rest).unwrap(), Some(record));
            }
            assert_eq!(take_record("log/x", &mut rest).unwrap(), None);
            assert!(decode(8, &payload).unwrap_err().message().contains("log/0000000008"));
            for cut in 0..payload.len() {
                let read = decode(7, &payload.slice(..cut)).and_then(|(_, mut records)| {
                    while take_record("log/0000000007", &mut records)?.is_some() {}
                    Ok(records)
                });
                // Between two records an envelope would notice.
                if let Err(e) = read {
                    assert!(e.message().contains("log/0000000007"), "cut at {cut}: {e}");
                    assert_eq!(e.state(), SqlState::DataCorrupted);
                }
            }
        }
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let payload = encode(&Head { format: 9, ..head(What::Records) }, &[]).unwrap();
        let refused = decode(7, &payload.into()).unwrap_err();
        assert!(refused.message().contains("format version 9") && refused.hint().unwrap().contains("newer program"));
    }

    #[test]
    fn names_come_back() {
        assert_eq!(number_of(&entry_name(12)), Some(12));
        assert_eq!(number_of(&entry_name(u64::MAX)), Some(u64::MAX));
        for alien in ["log/7", "log/", "log", "logpart/0000000001", "log/+000000007"] {
            assert_eq!(number_of(alien), None, "{alien}");
        }
        assert_eq!(writer_of(&part_name(Generation(5), 9)), Some(Generation(5)));
        assert_eq!(writer_of("logpart/x"), None);
    }
}
