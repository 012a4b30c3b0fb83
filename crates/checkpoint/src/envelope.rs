//! The form of every object: who wrote it, what it is, and a checksum over all of it.
//!
//! The writer's id lies in the content because not every store keeps attributes, and because it is how a writer tells its own
//! earlier success from another's: a request may take effect although its answer was lost.
//!
//! Layout, little endian: magic (8 bytes) · format version u32 · kind u32 · generation u64 · nonce u64 · payload length u64 ·
//! payload · CRC-32 of all before it u32.

use std::fmt;

use bytes::Bytes;
use flow::{Error, SqlState};

use crate::names::Kind;
use crate::permit::Generation;

/// Version of the layout. An object of a newer one is refused.
pub const FORMAT_VERSION: u32 = 1;

/// Bytes of a payload.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 30;

/// Bytes that the envelope adds to a payload.
pub const ENVELOPE_BYTES: usize = HEADER_BYTES + 4;

const MAGIC: &[u8; 8] = b"MILLSOBJ";
const HEADER_BYTES: usize = 40;

/// Who wrote an object. No two processes have the same nonce, also when they believe in the same generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Writer {
    pub generation: Generation,
    pub nonce: u64,
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}, writer {:016x}", self.generation.0, self.nonce)
    }
}

/// An object as it was read, its checksum verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub writer: Writer,
    pub payload: Bytes,
}

/// Why bytes are not an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("it is cut off after {found} of {expected} bytes")]
    Truncated { found: usize, expected: usize },
    #[error("its checksum does not fit")]
    Checksum,
    #[error("it is not an object of Millstream")]
    Alien,
    #[error("it is of another kind than its name says")]
    Kind,
    #[error("it has format version {0}, this program reads up to {FORMAT_VERSION}")]
    Newer(u32),
}

impl Damage {
    /// Whether another read may well give whole bytes.
    pub fn may_pass(&self) -> bool {
        matches!(self, Damage::Truncated { .. } | Damage::Checksum | Damage::Alien)
    }

    /// `XX001`, naming the object.
    pub fn of(&self, name: &str) -> Error {
        match self {
            Damage::Newer(_) => {
                Error::new(SqlState::DataCorrupted, format!("object \"{name}\" cannot be read: {self}"))
                    .with_hint("Use the newer program that wrote it.")
            }
            _ => Error::new(SqlState::DataCorrupted, format!("object \"{name}\" is damaged: {self}"))
                .with_hint("Restore the object from a backup; nothing was changed."),
        }
    }
}

/// Errors: `54000` above [`PAYLOAD_BYTES_MAX`].
pub fn seal(name: &str, writer: Writer, payload: &[u8]) -> Result<Bytes, Error> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(Error::new(SqlState::ProgramLimitExceeded, format!("object \"{name}\" is too large"))
            .with_detail(format!("It has {} bytes; the limit is {PAYLOAD_BYTES_MAX}.", payload.len())));
    }
    let mut bytes = Vec::with_capacity(payload.len() + ENVELOPE_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&(Kind::of(name) as u32).to_le_bytes());
    bytes.extend_from_slice(&writer.generation.0.to_le_bytes());
    bytes.extend_from_slice(&writer.nonce.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(payload);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    Ok(bytes.into())
}

/// The inverse of [`seal`]. The payload shares the memory of `bytes`.
pub fn open(name: &str, bytes: &Bytes) -> Result<Object, Damage> {
    let truncated = |expected| Damage::Truncated { found: bytes.len(), expected };
    if bytes.len() < ENVELOPE_BYTES {
        let known = bytes.len().min(MAGIC.len());
        return Err(if bytes[..known] == MAGIC[..known] { truncated(ENVELOPE_BYTES) } else { Damage::Alien });
    }
    if &bytes[..8] != MAGIC {
        return Err(Damage::Alien);
    }
    let version = u32_at(bytes, 8);
    if version > FORMAT_VERSION {
        return Err(Damage::Newer(version));
    }
    let length = u64_at(bytes, 32);
    if length > PAYLOAD_BYTES_MAX as u64 {
        return Err(Damage::Checksum);
    }
    let end = HEADER_BYTES + length as usize;
    if bytes.len() < end + 4 {
        return Err(truncated(end + 4));
    }
    if bytes.len() > end + 4 || crc32fast::hash(&bytes[..end]) != u32_at(bytes, end) {
        return Err(Damage::Checksum);
    }
    if u32_at(bytes, 12) != Kind::of(name) as u32 {
        return Err(Damage::Kind);
    }
    let writer = Writer { generation: Generation(u64_at(bytes, 16)), nonce: u64_at(bytes, 24) };
    Ok(Object { writer, payload: bytes.slice(HEADER_BYTES..end) })
}

/// `at + 4` is inside of `bytes`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITER: Writer = Writer { generation: Generation(7), nonce: 0xdead_beef_0000_0001 };

    #[test]
    fn objects_come_back_as_they_were() {
        for payload in [b"".as_slice(), b"x", &[7; 10_000]] {
            let bytes = seal("epoch/0000000001", WRITER, payload).unwrap();
            assert_eq!(bytes.len(), payload.len() + ENVELOPE_BYTES);
            let object = open("epoch/0000000001", &bytes).unwrap();
            assert_eq!((object.writer, &object.payload[..]), (WRITER, payload));
        }
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let whole = seal("manifest/a", WRITER, b"some payload").unwrap();
        for cut in 0..whole.len() {
            let damage = open("manifest/a", &whole.slice(..cut)).unwrap_err();
            assert!(matches!(damage, Damage::Truncated { .. }), "cut at {cut}: {damage:?}");
        }
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            open("manifest/a", &bytes.into()).unwrap_err();
        }
        let mut longer = whole.to_vec();
        longer.push(0);
        assert_eq!(open("manifest/a", &longer.into()), Err(Damage::Checksum));
    }

    #[test]
    fn newer_version_is_refused_with_a_hint() {
        let mut bytes = seal("epoch/1", WRITER, b"").unwrap().to_vec();
        bytes[8] = 2;
        let damage = open("epoch/1", &bytes.into()).unwrap_err();
        assert_eq!(damage, Damage::Newer(2));
        let error = damage.of("epoch/1");
        assert_eq!(error.state(), SqlState::DataCorrupted);
        assert!(error.hint().unwrap().contains("newer program"), "{error}");
    }

    #[test]
    fn object_under_a_name_of_another_kind_is_refused() {
        let bytes = seal("epoch/1", WRITER, b"").unwrap();
        assert_eq!(open("manifest/1", &bytes), Err(Damage::Kind));
    }
}
