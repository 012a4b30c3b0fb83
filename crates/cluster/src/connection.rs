//! A connection that lives: one thread writes what is queued, and says something when there is nothing to say; the other end
//! counts as away when nothing has come from it for the time-out.
//!
//! What is said and what is heard knows no socket: it is queued in a [`Connection`], and comes to something that [`Hears`]. A test
//! moves the frames itself, with [`Connection::by_hand`].

use std::io::{BufReader, BufWriter, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use flow::{Error, Result, SqlState};
use serde::Serialize;

use crate::frame::{self, FRAME_BYTES_MAX, Frame};
use crate::handshake::Known;
use crate::message;

/// Bytes of the writer's buffer.
const BUFFER_BYTES: usize = 256 << 10;

/// How long silence lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// After so long without anything else a node says that it is there.
    pub heartbeat: Duration,
    /// After so long without anything from it, it is away.
    pub timeout: Duration,
}

/// Makes what is said when there is nothing to say.
pub type Beat = Box<dyn Fn() -> Result<Frame> + Send>;

/// Takes what comes on a connection.
pub trait Hears: Send {
    /// Errors: what came cannot be understood, or the connection is to end.
    fn take(&mut self, frame: &Frame) -> Result<()>;

    /// The connection has ended, for this cause. Nothing comes after it.
    fn ended(&mut self, cause: &Error);
}

/// The sending end. What is queued is bounded by who sends: by credits, or because it waits for answers.
pub struct Connection {
    queue: Sender<Frame>,
    /// Absent where a test moves the frames.
    stream: Option<TcpStream>,
    closed: Arc<AtomicBool>,
}

/// The receiving end.
pub struct Incoming {
    reader: BufReader<TcpStream>,
}

/// What a test sends on a connection without a socket.
pub struct Outgoing {
    waiting: Receiver<Frame>,
    beat: Beat,
}

impl Outgoing {
    /// What was queued next.
    pub fn next_frame(&self) -> Option<Frame> {
        self.waiting.try_recv().ok()
    }

    /// What is said when there is nothing to say.
    pub fn beat(&self) -> Result<Frame> {
        (self.beat)()
    }
}

impl Connection {
    /// Starts the writing thread, called `name`. `steady`: it says something in even intervals, however much else it says.
    pub fn start(
        known: Known,
        name: &str,
        pulse: Pulse,
        steady: bool,
        beat: Beat,
    ) -> Result<(Arc<Connection>, Incoming)> {
        let Known { stream, reader } = known;
        let failed = |e: std::io::Error| Error::internal(format!("a connection cannot be used: {e}"));
        // The clone in the reader is the same socket.
        stream.set_read_timeout(Some(pulse.timeout)).map_err(failed)?;
        stream.set_write_timeout(Some(pulse.timeout)).map_err(failed)?;
        let (queue, waiting) = unbounded();
        let closed = Arc::new(AtomicBool::new(false));
        let (writer, done) = (stream.try_clone().map_err(failed)?, Arc::clone(&closed));
        std::thread::Builder::new()
            .name(name.to_string())
            .spawn(move || {
                let mut out = BufWriter::with_capacity(BUFFER_BYTES, writer);
                if let Err(error) = write_all(&mut out, &waiting, pulse.heartbeat, steady, &beat) {
                    tracing::debug!(%error, "a connection is over");
                }
                done.store(true, Ordering::Release);
                // The reader ends with it.
                let _ = out.get_ref().shutdown(Shutdown::Both);
            })
            .map_err(|e| Error::internal(format!("cannot start the thread \"{name}\": {e}")))?;
        Ok((Arc::new(Connection { queue, stream: Some(stream), closed }), Incoming { reader }))
    }

    /// A connection without a socket and without threads.
    pub fn by_hand(beat: Beat) -> (Arc<Connection>, Outgoing) {
        let (queue, waiting) = unbounded();
        (Arc::new(Connection { queue, stream: None, closed: Arc::default() }), Outgoing { waiting, beat })
    }

    /// Queues a frame. False when the connection is over.
    pub fn send(&self, frame: Frame) -> bool {
        !self.closed.load(Ordering::Acquire) && self.queue.send(frame).is_ok()
    }

    /// Queues a message without rows. False when the connection is over.
    pub fn say(&self, session: u64, message: &impl Serialize) -> bool {
        match message::frame(session, message) {
            Ok(frame) => self.send(frame),
            Err(error) => {
                tracing::error!(%error, "a message is lost, and the connection with it");
                self.close();
                false
            }
        }
    }

    /// Ends the connection in both directions; what is queued is lost.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if let Some(stream) = &self.stream {
            // It may have ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

fn write_all(
    out: &mut BufWriter<TcpStream>,
    waiting: &Receiver<Frame>,
    heartbeat: Duration,
    steady: bool,
    beat: &Beat,
) -> Result<()> {
    let failed = |e: std::io::Error| Error::new(SqlState::ConnectionFailure, format!("the connection is broken: {e}"));
    let ticks = if steady { crossbeam_channel::tick(heartbeat) } else { crossbeam_channel::never() };
    loop {
        let next = match waiting.try_recv() {
            Ok(next) => Some(next),
            // Nobody can send any more.
            Err(crossbeam_channel::TryRecvError::Disconnected) => return Ok(()),
            Err(crossbeam_channel::TryRecvError::Empty) => {
                out.flush().map_err(failed)?;
                match waiting.recv_timeout(heartbeat) {
                    Ok(next) => Some(next),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
        };
        let is_due = ticks.try_recv().is_ok();
        match next {
            Some(next) => frame::write(out, &next).map_err(failed)?,
            None if steady => {}
            None => frame::write(out, &beat()?).map_err(failed)?,
        }
        if is_due {
            frame::write(out, &beat()?).map_err(failed)?;
        }
    }
}

impl Incoming {
    /// Hands on what comes, until the connection ends.
    pub fn hear(mut self, to: &mut dyn Hears) {
        let cause = loop {
            if let Err(cause) = self.next_frame().and_then(|frame| to.take(&frame)) {
                break cause;
            }
        };
        to.ended(&cause);
    }

    /// The next frame. Errors: `08006` the other has closed the connection, or nothing has come for the time-out; `08P01`.
    pub fn next_frame(&mut self) -> Result<Frame> {
        let next = frame::read(&mut self.reader, FRAME_BYTES_MAX)?;
        next.ok_or_else(|| Error::new(SqlState::ConnectionFailure, "the other has closed the connection"))
    }
}
