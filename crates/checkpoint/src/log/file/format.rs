//! How a segment of the log lies on disk, and how it is read back.
//!
//! Version 2: an 8-byte magic, then records of `length u32 · crc32 of the payload u32 · synced u64 · crc32 u32 · payload`, little
//! endian. The last checksum is of the position and the header before it, so nothing but a header written for that place passes
//! for one. `synced` is a position up to which the log was durable when the header was written. A header without a payload is a
//! *mark*: it stands behind the last record after a sync, and the next record takes its place.
//!
//! The first thing that is not a whole record ends the log. It is a torn tail if no header in the file says that more was
//! synced, wherever that header stands: unsynced records may reach the disk in any order. Otherwise something that was synced is
//! damaged. What cannot be told apart is a damaged record of the very last sync from a torn one when the machine lost its power
//! before the mark reached the disk; when only the process ended, the mark is there.
//!
//! Version 1 had `length u32 · crc32 u32 · payload` and no marks. There, the first record that does not check out is damage if a
//! whole record follows it. It is only read: opening writes it anew.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use flow::{Error, Result, SqlState};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::directory::io_error;
use crate::log::RECORD_BYTES_MAX;

const NAME: &[u8; 7] = b"MSLOG\x00\x00";
/// The version that this build writes.
pub(super) const VERSION: u8 = 2;
pub(super) const MAGIC: &[u8; 8] = b"MSLOG\x00\x00\x02";
pub(super) const HEADER_BYTES: usize = 20;
const HEADER_BYTES_1: u64 = 8;
/// Bytes looked through at a time for headers.
const LOOK_BYTES: usize = 1 << 20;
/// What most of the space behind the last record is; so much of it is passed over in one step.
const ZEROS: [u8; 4096] = [0; 4096];

/// What stands before a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub length: u32,
    crc: u32,
    /// The log was durable up to here.
    pub synced: u64,
}

impl Header {
    /// Errors: `54000` the payload is too large.
    pub fn of(parts: &[&[u8]], synced: u64) -> Result<Header> {
        let length: usize = parts.iter().map(|p| p.len()).sum();
        if length > RECORD_BYTES_MAX {
            return Err(Error::new(SqlState::ProgramLimitExceeded, "transaction is too large for one log record")
                .with_detail(format!("It has {length} bytes; the limit is {RECORD_BYTES_MAX}."))
                .with_hint("Commit in smaller parts."));
        }
        if length == 0 {
            return Err(Error::internal("a log record without content"));
        }
        let mut crc = crc32fast::Hasher::new();
        parts.iter().for_each(|p| crc.update(p));
        Ok(Header { length: length as u32, crc: crc.finalize(), synced })
    }

    pub fn mark(synced: u64) -> Header {
        Header { length: 0, crc: 0, synced }
    }

    /// As it stands at position `at`.
    pub fn encode(&self, at: u64) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.crc.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.synced.to_le_bytes());
        let check = check_of(&bytes[..16], at);
        bytes[16..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES], at: u64) -> Option<Header> {
        let header = Header { length: u32_of(&bytes[..4]), crc: u32_of(&bytes[4..8]), synced: synced_of(bytes) };
        let whole = u32_of(&bytes[16..]) == check_of(&bytes[..16], at);
        (whole && header.length as usize <= RECORD_BYTES_MAX && header.synced <= at).then_some(header)
    }
}

fn check_of(header: &[u8], at: u64) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&at.to_le_bytes());
    crc.update(header);
    crc.finalize()
}

fn u32_of(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
}

fn synced_of(header: &[u8]) -> u64 {
    header[8..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

/// The whole record at `at`, with its header; `None` for anything else.
pub(super) fn record_at(file: &File, at: u64, size: u64) -> io::Result<Option<(Header, Vec<u8>)>> {
    let start = at + HEADER_BYTES as u64;
    if start > size {
        return Ok(None);
    }
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, at)?;
    let Some(header) = Header::decode(&bytes, at).filter(|h| h.length > 0 && start + u64::from(h.length) <= size)
    else {
        return Ok(None);
    };
    let mut payload = vec![0; header.length as usize];
    file.read_exact_at(&mut payload, start)?;
    Ok((crc32fast::hash(&payload) == header.crc).then_some((header, payload)))
}

/// A segment that was read.
pub(super) struct Read {
    pub file: File,
    pub version: u8,
    /// Behind its last whole record.
    pub end: u64,
}

/// Hands each whole record to `seen`, in order. Errors: `XX001` it is no segment, or one of a newer version, or something that was
/// synced is damaged; `58030`.
pub(super) fn read(path: &Path, seen: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<Read> {
    let failed = |e: io::Error| io_error("read", path, &e);
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|e| io_error("open", path, &e))?;
    let size = file.metadata().map_err(failed)?.len();
    let mut magic = [0; 8];
    if size >= magic.len() as u64 {
        file.read_exact_at(&mut magic, 0).map_err(failed)?;
    }
    let version = magic[7];
    if &magic[..7] != NAME || version == 0 {
        return Err(Error::new(SqlState::DataCorrupted, format!("\"{}\" is not a log segment", path.display())));
    }
    let end = match version {
        1 => read_version_1(&file, path, size, seen)?,
        VERSION => read_current(&file, path, size, seen)?,
        newer => {
            let message = format!("log segment \"{}\" has format version {newer}", path.display());
            return Err(Error::new(SqlState::DataCorrupted, message)
                .with_detail(format!("This program reads versions up to {VERSION}."))
                .with_hint("Use the newer program that wrote it."));
        }
    };
    Ok(Read { file, version, end })
}

fn damaged(path: &Path, at: u64) -> Error {
    Error::new(SqlState::DataCorrupted, "the log is damaged")
        .with_detail(format!("The record at byte {at} of \"{}\" fails its checksum.", path.display()))
        .with_hint("Restore the file from a backup; nothing was changed.")
}

fn read_current(file: &File, path: &Path, size: u64, seen: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
    let failed = |e: io::Error| io_error("read", path, &e);
    let mut at = MAGIC.len() as u64;
    while let Some((_, payload)) = record_at(file, at, size).map_err(failed)? {
        seen(&payload)?;
        at += (HEADER_BYTES + payload.len()) as u64;
    }
    if was_synced_beyond(file, at, size).map_err(failed)? {
        return Err(damaged(path, at));
    }
    Ok(at)
}

/// Whether a header from `end` on says that what follows `end` was synced.
fn was_synced_beyond(file: &File, end: u64, size: u64) -> io::Result<bool> {
    let (mut at, mut bytes) = (end, Vec::new());
    while at + HEADER_BYTES as u64 <= size {
        match seek(file, SeekFrom::Data(at)) {
            // A header may begin before what was written.
            Ok(data) => at = at.max(data.saturating_sub(HEADER_BYTES as u64)),
            Err(Errno::NXIO) => return Ok(false),
            // A file system that cannot tell has all of it read.
            Err(_) => {}
        }
        bytes.resize(((size - at) as usize).min(LOOK_BYTES), 0);
        file.read_exact_at(&mut bytes, at)?;
        let mut n = 0;
        while let Some(header) = bytes[n..].first_chunk::<HEADER_BYTES>() {
            if bytes[n..].starts_with(&ZEROS) {
                n += ZEROS.len() - HEADER_BYTES + 1;
                continue;
            }
            let (here, synced) = (at + n as u64, synced_of(header));
            // Nearly nothing else passes this.
            if synced > end && synced <= here && Header::decode(header, here).is_some() {
                return Ok(true);
            }
            n += 1;
        }
        at += (bytes.len() - HEADER_BYTES + 1) as u64;
    }
    Ok(false)
}

/// What stands at a position of a segment of version 1.
enum Found {
    Record {
        payload: Vec<u8>,
        next: u64,
    },
    /// Not a whole record; `next` is where one would follow if only the payload is damaged.
    Broken {
        next: Option<u64>,
    },
    /// Zeros or the end of the file.
    Nothing,
}

fn found_at(file: &File, at: u64, size: u64) -> io::Result<Found> {
    let start = at + HEADER_BYTES_1;
    if start > size {
        return Ok(Found::Nothing);
    }
    let mut header = [0; HEADER_BYTES_1 as usize];
    file.read_exact_at(&mut header, at)?;
    let (length, crc) = (u64::from(u32_of(&header[..4])), u32_of(&header[4..]));
    if length == 0 && crc == 0 {
        return Ok(Found::Nothing);
    }
    if length as usize > RECORD_BYTES_MAX || start + length > size {
        return Ok(Found::Broken { next: None });
    }
    let mut payload = vec![0; length as usize];
    file.read_exact_at(&mut payload, start)?;
    let next = start + length;
    if crc32fast::hash(&payload) == crc {
        Ok(Found::Record { payload, next })
    } else {
        Ok(Found::Broken { next: Some(next) })
    }
}

fn read_version_1(file: &File, path: &Path, size: u64, seen: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
    let failed = |e: io::Error| io_error("read", path, &e);
    let mut at = MAGIC.len() as u64;
    loop {
        match found_at(file, at, size).map_err(failed)? {
            Found::Record { payload, next } => {
                seen(&payload)?;
                at = next;
            }
            Found::Nothing => return Ok(at),
            Found::Broken { next } => {
                let follower = match next {
                    Some(next) => found_at(file, next, size).map_err(failed)?,
                    None => Found::Nothing,
                };
                if matches!(follower, Found::Record { .. }) {
                    return Err(damaged(path, at));
                }
                return Ok(at);
            }
        }
    }
}
