//! The socket: whole messages in, one write per batch of messages out.

use bytes::{Buf, Bytes, BytesMut};
use flow::{Error, SqlState};
use pgwire::messages::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::Notice;
use crate::config::{MESSAGE_BYTES_MAX, SMALL_MESSAGE_BYTES_MAX, STARTUP_PACKET_BYTES_MAX};
use crate::encode::write_message;
use crate::failure::{Failure, write_error, write_notice};

/// Outgoing bytes beyond which the socket is written although there is more to come.
pub(crate) const FLUSH_BYTES: usize = 64 * 1024;

/// What an idle connection may keep of a buffer that has grown.
const BUFFER_BYTES_KEPT_MAX: usize = 1024 * 1024;

/// Room that is asked for when there is no telling how much will come.
const READ_BYTES: usize = 8 * 1024;
const READ_BYTES_MAX: usize = 256 * 1024;

/// A message as it came: its type and its body without the length.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) body: Bytes,
}

pub(crate) struct Transport {
    stream: TcpStream,
    input: BytesMut,
    read_bytes: usize,
    /// Whole messages that have not been written yet, but for the first `written` bytes.
    pub(crate) output: Vec<u8>,
    written: usize,
    pub(crate) scratch: BytesMut,
}

impl Transport {
    pub(crate) fn new(stream: TcpStream) -> Transport {
        Transport {
            stream,
            input: BytesMut::new(),
            read_bytes: READ_BYTES,
            output: Vec::new(),
            written: 0,
            scratch: BytesMut::new(),
        }
    }

    /// Reads what is there. Memory grows with the bytes that have come, never with a length that was only claimed.
    async fn fill(&mut self) -> Result<(), Failure> {
        self.input.reserve(self.read_bytes);
        let room = self.input.capacity() - self.input.len();
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(Failure::Disconnected),
            n => {
                // A full read says that there is more: larger steps for bulk data, small ones for everybody else.
                self.read_bytes = if n == room { (self.read_bytes * 2).min(READ_BYTES_MAX) } else { READ_BYTES };
                Ok(())
            }
        }
    }

    /// The packet of the greeting: a length and that many bytes less four, without a type.
    pub(crate) async fn read_startup_packet(&mut self) -> Result<Bytes, Failure> {
        loop {
            if let Some(length) = self.input.first_chunk::<4>() {
                let length = i32::from_be_bytes(*length);
                if length < 8 || length as usize > STARTUP_PACKET_BYTES_MAX {
                    return Err(Failure::protocol("invalid length of startup packet"));
                }
                if self.input.len() >= length as usize {
                    let mut packet = self.input.split_to(length as usize);
                    packet.advance(4);
                    return Ok(packet.freeze());
                }
            }
            self.fill().await?;
        }
    }

    /// The next message if it has come already.
    fn take_frame(&mut self, body_bytes_max: usize) -> Result<Option<Frame>, Failure> {
        let Some(&[kind, a, b, c, d]) = self.input.first_chunk::<5>() else { return Ok(None) };
        let small = match kind {
            b'Q' | b'P' | b'B' | b'F' | b'd' | b'p' => false,
            b'C' | b'D' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f' => true,
            _ => return Err(Failure::protocol(format!("invalid frontend message type {kind}"))),
        };
        let length = i32::from_be_bytes([a, b, c, d]);
        let limit = if small { SMALL_MESSAGE_BYTES_MAX.min(body_bytes_max) } else { body_bytes_max };
        if length < 4 {
            return Err(Failure::protocol("invalid message length"));
        }
        let length = length as usize;
        if length > limit {
            let error = Error::new(SqlState::ProtocolViolation, "invalid message length")
                .with_detail(format!("A message of {length} bytes exceeds the limit of {limit} bytes."));
            return Err(Failure::Fatal(error));
        }
        if self.input.len() < length + 1 {
            return Ok(None);
        }
        let mut frame = self.input.split_to(length + 1);
        frame.advance(5);
        Ok(Some(Frame { kind, body: frame.freeze() }))
    }

    /// The next message if it has come already; never waits.
    pub(crate) fn buffered_frame(&mut self) -> Result<Option<Frame>, Failure> {
        self.take_frame(MESSAGE_BYTES_MAX)
    }

    /// The type of the message that is next in the buffer, if its first byte has come.
    pub(crate) fn peek_kind(&self) -> Option<u8> {
        self.input.first().copied()
    }

    /// Waits for the next message, having written everything first.
    pub(crate) async fn read_frame(&mut self) -> Result<Frame, Failure> {
        self.read_frame_within(MESSAGE_BYTES_MAX).await
    }

    /// The same with another bound, for clients that are not logged in. Safe to drop while it waits.
    pub(crate) async fn read_frame_within(&mut self, body_bytes_max: usize) -> Result<Frame, Failure> {
        loop {
            if let Some(frame) = self.take_frame(body_bytes_max)? {
                return Ok(frame);
            }
            self.flush().await?;
            if self.input.is_empty() && self.input.capacity() > BUFFER_BYTES_KEPT_MAX {
                self.input = BytesMut::new();
            }
            self.fill().await?;
        }
    }

    /// Writes everything that waits. Safe to drop and to call again.
    pub(crate) async fn flush(&mut self) -> Result<(), Failure> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]).await {
                Ok(n) if n > 0 => self.written += n,
                _ => return Err(Failure::Disconnected),
            }
        }
        self.written = 0;
        if self.output.capacity() > BUFFER_BYTES_KEPT_MAX {
            self.output = Vec::new();
        } else {
            self.output.clear();
        }
        Ok(())
    }

    /// Writes if so much waits that it should not wait longer.
    pub(crate) async fn flush_if_full(&mut self) -> Result<(), Failure> {
        if self.output.len() >= FLUSH_BYTES { self.flush().await } else { Ok(()) }
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Appends a message of the `pgwire` crate.
    pub(crate) fn put(&mut self, message: &impl Message) -> flow::Result<()> {
        write_message(message, &mut self.scratch, &mut self.output)
    }

    /// Appends a message that has no body.
    pub(crate) fn put_empty(&mut self, kind: u8) {
        self.output.extend_from_slice(&[kind, 0, 0, 0, 4]);
    }

    pub(crate) fn put_error(&mut self, error: &Error, context: Option<&str>) {
        write_error("ERROR", error, context, &mut self.scratch, &mut self.output);
    }

    pub(crate) fn put_fatal(&mut self, error: &Error) {
        write_error("FATAL", error, None, &mut self.scratch, &mut self.output);
    }

    pub(crate) fn put_notice(&mut self, notice: &Notice) {
        write_notice(notice, &mut self.scratch, &mut self.output);
    }

    /// Ready once the client is gone. Pending for ever when there is unread input, as that must be read first.
    ///
    /// A client may close its sending side only, and still wait for the answer; from here that looks the same as one that
    /// has left. It gets a moment for its answer before its statement is given up.
    pub(crate) async fn disconnected(&self) {
        const GRACE: std::time::Duration = std::time::Duration::from_secs(2);
        let mut byte = [0u8; 1];
        match self.stream.peek(&mut byte).await {
            Ok(0) => tokio::time::sleep(GRACE).await,
            Ok(_) => std::future::pending().await,
            Err(_) => {}
        }
    }

    /// Drops a message that a panic left unfinished, so that what follows is still understood.
    pub(crate) fn drop_partial_message(&mut self) {
        let mut end = 0;
        while let Some(length) = self.output.get(end + 1..).and_then(|rest| rest.first_chunk::<4>()) {
            let next = end + 1 + u32::from_be_bytes(*length) as usize;
            if next <= end + 4 || next > self.output.len() {
                break;
            }
            end = next;
        }
        self.output.truncate(end);
    }

    /// Says what is left to say and closes. Reads on for a moment, since closing with unread input would reset the
    /// connection before the client has seen the last message.
    pub(crate) async fn close(mut self) {
        const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(2);
        const LINGER: std::time::Duration = std::time::Duration::from_millis(500);
        const LINGER_BYTES_MAX: usize = 1024 * 1024;
        match tokio::time::timeout(LAST_WORDS, self.flush()).await {
            Ok(Ok(())) if self.stream.shutdown().await.is_ok() => {}
            _ => return,
        }
        let _ = tokio::time::timeout(LINGER, async {
            let mut read = 0;
            while read < LINGER_BYTES_MAX {
                self.input.clear();
                self.input.reserve(READ_BYTES);
                match self.stream.read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => read += n,
                }
            }
        })
        .await;
    }
}
