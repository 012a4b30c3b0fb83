//! How bytes are cut on a connection: frames of a length, the session they belong to, a head and a body.
//!
//! ```text
//! length u32 · head length u32 · session u64 · head (JSON) · body
//! ```
//!
//! All numbers are little-endian; `length` counts head and body. Memory is taken as bytes come, never for what a length says.

use std::io::{self, Read, Write};

use flow::{Error, Result, SqlState};

/// Bytes of head and body of a frame between nodes that know each other: the largest row goes in one.
pub const FRAME_BYTES_MAX: usize = 1 << 30;
/// Bytes of a frame before the other is known.
pub const HANDSHAKE_BYTES_MAX: usize = 16 << 10;
/// Bytes of a frame's head: the plan of a job with what it goes on from is the largest.
pub const HEAD_BYTES_MAX: usize = 256 << 20;

const PREFIX_BYTES: usize = 16;

/// One frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// 0 for what belongs to none.
    pub session: u64,
    pub head: Vec<u8>,
    pub body: Vec<u8>,
}

impl Frame {
    /// Bytes of head and body.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Writes a frame. Errors: `InvalidInput` it is larger than a frame may be.
pub fn write(out: &mut impl Write, frame: &Frame) -> io::Result<()> {
    let too_large = || io::Error::new(io::ErrorKind::InvalidInput, "a frame is too large");
    if frame.len() > FRAME_BYTES_MAX || frame.head.len() > HEAD_BYTES_MAX {
        return Err(too_large());
    }
    let length = u32::try_from(frame.len()).map_err(|_| too_large())?;
    let head = u32::try_from(frame.head.len()).map_err(|_| too_large())?;
    let mut prefix = [0; PREFIX_BYTES];
    prefix[..4].copy_from_slice(&length.to_le_bytes());
    prefix[4..8].copy_from_slice(&head.to_le_bytes());
    prefix[8..].copy_from_slice(&frame.session.to_le_bytes());
    out.write_all(&prefix)?;
    out.write_all(&frame.head)?;
    out.write_all(&frame.body)
}

/// Reads a frame of at most `bytes_max`; `None` when the other has closed the connection between two frames.
///
/// Errors: `08P01` what came is no frame, or a larger one; `08006` the connection has ended or nothing comes.
pub fn read(from: &mut impl Read, bytes_max: usize) -> Result<Option<Frame>> {
    let mut prefix = [0; PREFIX_BYTES];
    let mut have = 0;
    while have < PREFIX_BYTES {
        match from.read(&mut prefix[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(ended()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(broken(&e)),
        }
    }
    let number = |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]) as usize;
    let (length, head) = (number(0), number(4));
    let session = u64::from(number(8) as u32) | (number(12) as u64) << 32;
    if length > bytes_max {
        let error = Error::new(SqlState::ProtocolViolation, "a frame is too large");
        return Err(error.with_detail(format!("It says {length} bytes; {bytes_max} are taken here.")));
    }
    if head > length || head > HEAD_BYTES_MAX {
        let error = Error::new(SqlState::ProtocolViolation, "what came is no frame");
        return Err(error.with_detail(format!("It says that {head} of its {length} bytes are its head.")));
    }
    let mut exactly = |bytes: usize| -> Result<Vec<u8>> {
        let mut taken = Vec::new();
        from.by_ref().take(bytes as u64).read_to_end(&mut taken).map_err(|e| broken(&e))?;
        if taken.len() == bytes { Ok(taken) } else { Err(ended()) }
    };
    Ok(Some(Frame { session, head: exactly(head)?, body: exactly(length - head)? }))
}

fn ended() -> Error {
    Error::new(SqlState::ConnectionFailure, "the connection has ended in the middle of a frame")
}

fn broken(e: &io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Error::new(SqlState::ConnectionFailure, "nothing has come for too long")
        }
        _ => Error::new(SqlState::ConnectionFailure, format!("the connection is broken: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_however_they_are_cut() {
        let frames = [
            Frame::default(),
            Frame { session: 7, head: b"{}".to_vec(), body: Vec::new() },
            Frame { session: u64::MAX, head: b"\"x\"".to_vec(), body: vec![9; 300_000] },
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| write(&mut bytes, frame).unwrap());
        /// Gives one byte at a time.
        struct Bytewise<'a>(&'a [u8]);
        impl Read for Bytewise<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let n = into.len().min(1);
                self.0.read(&mut into[..n])
            }
        }
        let mut from = Bytewise(&bytes);
        for frame in &frames {
            assert_eq!(read(&mut from, FRAME_BYTES_MAX).unwrap().as_ref(), Some(frame));
        }
        assert_eq!(read(&mut from, FRAME_BYTES_MAX).unwrap(), None);
    }

    #[test]
    fn lengths_that_lie_are_refused_and_take_no_memory() {
        let prefix = |length: u32, head: u32| {
            let mut bytes = [length.to_le_bytes(), head.to_le_bytes()].concat();
            bytes.extend([0; 8]);
            bytes
        };
        for (bytes, state) in [
            (prefix(u32::MAX, 0), "08P01"),
            (prefix(10, 11), "08P01"),
            (prefix(1 << 29, 1 << 29), "08P01"),
            // The rest never comes.
            (prefix(1 << 29, 0), "08006"),
            (vec![1, 2, 3], "08006"),
        ] {
            assert_eq!(read(&mut &bytes[..], FRAME_BYTES_MAX).unwrap_err().state().code(), state);
        }
    }
}
