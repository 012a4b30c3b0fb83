//! Who may speak: the first frame on a connection says what the caller is, the second what the one who was called thinks of it.
//!
//! ```text
//! "MILLSTRM" · protocol version u32 · frame with a Hello        ← frame with an Answer
//! ```
//!
//! Law: nothing is believed, kept or answered at length before magic, version and token are right.

use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use flow::{Error, Result, SqlState};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::frame::{self, Frame, HANDSHAKE_BYTES_MAX};
use crate::message::{self, parse};

const MAGIC: &[u8; 8] = b"MILLSTRM";
/// Of everything in this crate that goes over a connection.
pub const PROTOCOL_VERSION: u32 = 3;
/// The build of this program: nodes of one cluster are of the same.
pub const BUILD_VERSION: &str = env!("CARGO_PKG_VERSION");

/// How long a caller may take for each piece of its first frame.
const PIECE_TIME_MAX: Duration = Duration::from_secs(1);
/// In how many pieces it may come: so a stranger who sends byte by byte costs a thread for seconds.
const PIECES_MAX: usize = 16;
/// How long a worker that is called may take to answer: it may have to wait for the coordinator itself.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);
/// How long a coordinator may take, which waits for nobody.
const COORDINATOR_ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
/// How long it may take to connect.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// What the nodes of one cluster have in common.
#[derive(Clone)]
pub struct Identity {
    /// What tells the cluster's data directory from every other one; a worker learns it from the coordinator.
    pub cluster: Option<String>,
    /// Empty: none is asked for, which is right on loopback alone.
    pub token: String,
    pub build: String,
}

impl Identity {
    pub fn new(cluster: Option<String>, token: String) -> Identity {
        Identity { cluster, token, build: BUILD_VERSION.into() }
    }
}

/// What a caller is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Caller {
    /// A worker that offers slots, to the coordinator.
    Worker { address: String, slots: usize },
    /// A worker of this session, to another.
    Peer { session: u64, worker: u32 },
    /// A coordinator that stands by, to the one that leads: it wants to know whether it belongs to it.
    Standby { address: String },
}

#[derive(Serialize, Deserialize)]
struct Hello {
    build: String,
    cluster: Option<String>,
    token: String,
    caller: Caller,
}

/// What a caller is told who is welcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub cluster: String,
    /// The number of a worker that has come to the coordinator; 0 between workers.
    pub worker: u32,
    pub heartbeat: Duration,
    pub timeout: Duration,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Welcome(Welcome),
    Refused(Error),
}

fn refused(message: String, detail: String, hint: &str) -> Error {
    Error::new(SqlState::InvalidAuthorization, message).with_detail(detail).with_hint(hint)
}

/// Whether two secrets are the same, in a time that does not tell where they differ.
fn same_secret(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut differ = a.len() ^ b.len();
    for n in 0..a.len().max(b.len()) {
        let of = |bytes: &[u8]| bytes.get(n).copied().unwrap_or(0);
        differ |= usize::from(of(a) ^ of(b));
    }
    std::hint::black_box(differ) == 0
}

fn check(hello: &Hello, mine: &Identity) -> Result<()> {
    if !same_secret(&hello.token, &mine.token) {
        return Err(refused(
            "the cluster token is wrong".into(),
            match (hello.token.is_empty(), mine.token.is_empty()) {
                (true, _) => "A token is expected, and none came.".into(),
                (_, true) => "None is expected, and one came.".into(),
                _ => "Another one is expected than came.".into(),
            },
            "Give coordinator and workers the same cluster_token.",
        ));
    }
    if hello.build != mine.build {
        return Err(refused(
            format!("a node of version {} cannot work with one of version {}", hello.build, mine.build),
            format!("{} is expected, {} came.", mine.build, hello.build),
            "Run the same program on all nodes.",
        ));
    }
    if let (Some(theirs), Some(ours)) = (&hello.cluster, &mine.cluster)
        && theirs != ours
    {
        return Err(refused(
            "the node belongs to another cluster".into(),
            format!("Cluster {ours} is expected, a node of {theirs} came."),
            "Point the worker to its own coordinator, or start it anew.",
        ));
    }
    Ok(())
}

/// A connection whose two ends know each other.
pub struct Known {
    pub stream: TcpStream,
    /// What has come after the handshake may be in its buffer already.
    pub reader: BufReader<TcpStream>,
}

/// Waits no longer than a stranger is worth.
struct Patient<'a> {
    stream: &'a mut BufReader<TcpStream>,
    pieces: usize,
}

impl Read for Patient<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.pieces += 1;
        if self.pieces > PIECES_MAX {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        self.stream.read(into)
    }
}

fn failed(what: &str, e: &std::io::Error) -> Error {
    Error::new(SqlState::ConnectionFailure, format!("{what}: {e}"))
}

fn write_frame(stream: &mut TcpStream, message: &impl Serialize) -> Result<()> {
    let mut bytes = Vec::new();
    let written = frame::write(&mut bytes, &message::frame(0, message)?).and_then(|()| stream.write_all(&bytes));
    written.map_err(|e| failed("the connection is broken", &e))
}

fn read_frame<M: DeserializeOwned>(from: &mut impl Read) -> Result<M> {
    let frame: Option<Frame> = frame::read(from, HANDSHAKE_BYTES_MAX)?;
    let frame = frame.ok_or_else(|| Error::new(SqlState::ConnectionFailure, "the other has closed the connection"))?;
    parse(&frame)
}

/// Hears who calls, and answers: `admit` says whether the caller is welcome once it is known to be of the cluster.
///
/// Errors: why it was refused, which it has been told; `08P01`, `08006` what came is no handshake.
pub fn accept(
    mut stream: TcpStream,
    mine: &Identity,
    admit: impl FnOnce(&Caller) -> Result<Welcome>,
) -> Result<(Known, Caller, Welcome)> {
    let set = |stream: &TcpStream| -> std::io::Result<TcpStream> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PIECE_TIME_MAX))?;
        stream.set_write_timeout(Some(PIECE_TIME_MAX))?;
        stream.try_clone()
    };
    let mut reader = BufReader::new(set(&stream).map_err(|e| failed("a connection cannot be used", &e))?);
    let mut patient = Patient { stream: &mut reader, pieces: 0 };
    let mut start = [0; MAGIC.len() + 4];
    patient.read_exact(&mut start).map_err(|e| failed("a caller does not say what it is", &e))?;
    if &start[..MAGIC.len()] != MAGIC {
        return Err(Error::new(SqlState::ProtocolViolation, "a caller is no node of Millstream")
            .with_hint("Clients connect to pg_addr."));
    }
    let version = u32::from_le_bytes([start[8], start[9], start[10], start[11]]);
    let admitted = match version {
        PROTOCOL_VERSION => {
            let hello: Hello = read_frame(&mut patient)?;
            check(&hello, mine).and_then(|()| admit(&hello.caller)).map(|welcome| (hello.caller, welcome))
        }
        other => Err(refused(
            format!("a node of protocol version {other} cannot work with one of version {PROTOCOL_VERSION}"),
            format!("Version {PROTOCOL_VERSION} is expected, {other} came."),
            "Run the same program on all nodes.",
        )),
    };
    match admitted {
        Ok((caller, welcome)) => {
            write_frame(&mut stream, &Answer::Welcome(welcome.clone()))?;
            Ok((Known { stream, reader }, caller, welcome))
        }
        Err(error) => {
            // It may have gone already.
            let _ = write_frame(&mut stream, &Answer::Refused(error.clone()));
            Err(error)
        }
    }
}

/// Calls a node. `me` says what the caller is, given its own end of the connection.
///
/// Errors: `28000` it refuses, with its reason; `57P03` it is a coordinator that stands by; `08006` it cannot be reached or does not
/// answer; `08P01` it is no node.
pub fn call(address: &str, mine: &Identity, me: impl FnOnce(IpAddr) -> Caller) -> Result<(Known, Welcome)> {
    let unreachable = |e: std::io::Error| failed(&format!("cannot connect to {address}"), &e);
    let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(unreachable)?.collect();
    let mut outcome = Err(std::io::ErrorKind::AddrNotAvailable.into());
    for address in addresses {
        outcome = TcpStream::connect_timeout(&address, CONNECT_TIME_MAX);
        if outcome.is_ok() {
            break;
        }
    }
    let mut stream = outcome.map_err(unreachable)?;
    let caller = me(stream.local_addr().map_err(unreachable)?.ip());
    let time = match caller {
        Caller::Peer { .. } => ANSWER_TIME_MAX,
        Caller::Worker { .. } | Caller::Standby { .. } => COORDINATOR_ANSWER_TIME_MAX,
    };
    let set = |stream: &TcpStream| -> std::io::Result<TcpStream> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(time))?;
        stream.set_write_timeout(Some(time))?;
        stream.try_clone()
    };
    let mut reader = BufReader::new(set(&stream).map_err(unreachable)?);
    let (build, cluster, token) = (mine.build.clone(), mine.cluster.clone(), mine.token.clone());
    let hello = Hello { build, cluster, token, caller };
    let mut bytes = [&MAGIC[..], &PROTOCOL_VERSION.to_le_bytes()].concat();
    frame::write(&mut bytes, &message::frame(0, &hello)?).map_err(unreachable)?;
    stream.write_all(&bytes).map_err(unreachable)?;
    match read_frame(&mut reader)? {
        Answer::Refused(error) => Err(error),
        Answer::Welcome(welcome) => match &mine.cluster {
            Some(ours) if *ours != welcome.cluster => Err(refused(
                "the node belongs to another cluster".into(),
                format!("Cluster {ours} is expected; {address} is of {}.", welcome.cluster),
                "Point the worker to its own coordinator, or start it anew.",
            )),
            _ => Ok((Known { stream, reader }, welcome)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_the_same_only_if_all_of_them_is() {
        assert!(same_secret("", "") && same_secret("abc", "abc"));
        assert!(!same_secret("abc", "abd") && !same_secret("abc", "ab") && !same_secret("", "a"));
        assert!(!same_secret("ab\0", "ab"));
    }
}
