//! `millstream health`: asks a server on this machine over HTTP how it is, for containers that have no other program to ask with.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use flow::{Error, Result, SqlState};

use crate::config::Config;
use crate::{HealthArgs, ServerArgs};

/// How long an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
/// The most that is read of one.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Succeeds when the answer is 200, and prints its body either way. Errors: `08006` nobody answers; `57P03` it says that it is not well.
pub fn run(args: &HealthArgs) -> Result<()> {
    let flags = ServerArgs { http_addr: args.http_addr.clone(), config: args.config.clone(), ..ServerArgs::default() };
    let addr = from_here(Config::load(&flags)?.http_addr);
    let path = if args.ready { "/health" } else { "/live" };
    let (status, body) = get(addr, path).map_err(|e| {
        Error::new(SqlState::ConnectionFailure, format!("nobody answers at http://{addr}{path}: {e}"))
            .with_hint("Name the address with --http-addr; that of a history server is its history_addr.")
    })?;
    println!("{body}");
    if status == 200 {
        return Ok(());
    }
    Err(Error::new(SqlState::CannotConnectNow, format!("http://{addr}{path} answers with {status}")))
}

/// Who listens on every address is reached on this one.
fn from_here(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::from((ip, addr.port()))
}

/// Status and body.
fn get(addr: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, ANSWER_TIME_MAX)?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    stream.set_write_timeout(Some(ANSWER_TIME_MAX))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let no_http = || std::io::Error::other("what comes is no HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(no_http)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(no_http)?;
    Ok((status, body.to_string()))
}
