//! The greeting: encryption requests, cancel requests, the start-up packet, authentication, and the first messages.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use flow::{Error, Result, SqlState};
use pgwire::messages::startup::{Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey};

use crate::auth;
use crate::backend::Startup;
use crate::cancel::CancelHandle;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::message::Reader;
use crate::serve::{Shared, Slot, random_i32};
use crate::settings::check_client_encoding;
use crate::transport::Transport;

const CANCEL_REQUEST: i32 = 80_877_102;
const SSL_REQUEST: i32 = 80_877_103;
const GSS_ENCRYPTION_REQUEST: i32 = 80_877_104;
const PROTOCOL_MAJOR: i32 = 3;
/// What PostgreSQL 15 announces when a client asks for more: 3.0 as one number.
const PROTOCOL_LATEST: i32 = 3 << 16;

/// Encryption requests that one connection may make before it gets on with it.
const ENCRYPTION_REQUESTS_MAX: usize = 4;

/// Packets before the login, read in the fewest possible steps.
struct Packet {
    minor: i32,
    parameters: HashMap<String, String>,
}

/// Greets a client. `None` when the connection was for a cancel request only.
pub(crate) async fn greet(
    transport: &mut Transport,
    remote: SocketAddr,
    shared: &Arc<Shared>,
) -> std::result::Result<Option<(Connection, Slot)>, Failure> {
    let mut encryption_requests = 0;
    let packet = loop {
        let mut packet = transport.read_startup_packet().await?;
        // The length was at least eight, so the code is there.
        match packet.get_i32() {
            SSL_REQUEST | GSS_ENCRYPTION_REQUEST if encryption_requests < ENCRYPTION_REQUESTS_MAX => {
                encryption_requests += 1;
                transport.output.push(b'N');
                transport.flush().await?;
            }
            CANCEL_REQUEST => {
                let mut reader = Reader::new(packet);
                if let (Ok(pid), Ok(key), Ok(())) = (reader.i32(), reader.i32(), reader.end()) {
                    shared.registry.cancel(pid, key);
                }
                return Ok(None);
            }
            version if version >> 16 == PROTOCOL_MAJOR => {
                break Packet { minor: version & 0xffff, parameters: read_parameters(packet)? };
            }
            version => {
                let (major, minor) = (version as u32 >> 16, version & 0xffff);
                return Err(Failure::Fatal(Error::unsupported(format!(
                    "unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.0"
                ))));
            }
        }
    };
    log_in(packet, transport, remote, shared).await.map(Some)
}

fn read_parameters(packet: Bytes) -> std::result::Result<HashMap<String, String>, Failure> {
    let malformed = || Failure::protocol("invalid startup packet layout: expected terminator as last byte");
    let mut reader = Reader::new(packet);
    let mut parameters = HashMap::new();
    loop {
        let name = reader.string().map_err(|_| malformed())?;
        if name.is_empty() {
            reader.end().map_err(|_| malformed())?;
            return Ok(parameters);
        }
        let value = reader.string().map_err(|_| malformed())?;
        parameters.insert(name.to_ascii_lowercase(), value.to_string());
    }
}

/// The settings in `options`: `-c name=value`, `-cname=value`, `--name=value`; a backslash takes the next character as it is.
fn read_options(options: &str) -> Result<Vec<(String, String)>> {
    let mut words = vec![String::new()];
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => words.iter_mut().last().into_iter().for_each(|word| word.extend(chars.next())),
            c if c.is_ascii_whitespace() => words.push(String::new()),
            c => words.iter_mut().last().into_iter().for_each(|word| word.push(c)),
        }
    }
    let mut settings = Vec::new();
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let invalid = |word: &str| {
            Error::new(SqlState::SyntaxError, format!("invalid command-line argument for server process: {word}"))
        };
        let assignment = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(long), _) => long.to_string(),
            (None, Some("")) => words.next().ok_or_else(|| invalid(&word))?,
            (None, Some(attached)) => attached.to_string(),
            (None, None) => return Err(invalid(&word)),
        };
        let (name, value) = assignment.split_once('=').ok_or_else(|| invalid(&assignment))?;
        settings.push((name.replace('-', "_").to_ascii_lowercase(), value.to_string()));
    }
    Ok(settings)
}

async fn log_in(
    packet: Packet,
    transport: &mut Transport,
    remote: SocketAddr,
    shared: &Arc<Shared>,
) -> std::result::Result<(Connection, Slot), Failure> {
    let Packet { minor, mut parameters } = packet;
    let fatal = |error: Error| Failure::Fatal(error);
    let extensions: Vec<String> = parameters.keys().filter(|name| name.starts_with("_pq_.")).cloned().collect();
    if minor > 0 || !extensions.is_empty() {
        transport.put(&NegotiateProtocolVersion::new(PROTOCOL_LATEST, extensions))?;
    }
    parameters.retain(|name, _| !name.starts_with("_pq_."));
    let user = parameters.remove("user").filter(|user| !user.is_empty()).ok_or_else(|| {
        let message = "no PostgreSQL user name specified in startup packet";
        fatal(Error::new(SqlState::InvalidAuthorization, message))
    })?;
    let database = parameters.remove("database").filter(|d| !d.is_empty()).unwrap_or_else(|| user.clone());
    if let Some(replication) = parameters.remove("replication")
        && !matches!(replication.to_ascii_lowercase().as_str(), "false" | "off" | "no" | "0" | "f" | "n")
    {
        return Err(fatal(Error::unsupported("replication connections are not supported")));
    }
    if let Some(options) = parameters.remove("options") {
        // Settings of their own right win over those inside options, as in Postgres.
        for (name, value) in read_options(&options).map_err(fatal)? {
            parameters.entry(name).or_insert(value);
        }
    }
    if let Some(encoding) = parameters.remove("client_encoding") {
        check_client_encoding(&encoding).map_err(fatal)?;
    }
    let slot = shared.take_slot().map_err(fatal)?;
    if let Some(verifier) = &shared.config.password {
        auth::authenticate(transport, verifier, &user).await?;
    }
    transport.put(&Authentication::Ok)?;
    let cancel = Arc::new(CancelHandle::default());
    let key = random_i32().map_err(fatal)?;
    let slot = slot.register(key, &cancel).map_err(fatal)?;
    let startup = Startup {
        application_name: parameters.get("application_name").cloned().unwrap_or_default(),
        user: user.clone(),
        database,
        parameters,
        pid: slot.pid(),
        remote,
        cancel: Arc::clone(&cancel),
    };
    let session = shared.backend.open(startup).await.map_err(fatal)?;
    let reported = session.reported_parameters();
    let fixed = [
        ("server_version", shared.config.server_version.as_str()),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "on"),
        ("session_authorization", user.as_str()),
        ("in_hot_standby", "off"),
        ("default_transaction_read_only", "off"),
        ("application_name", ""),
        ("DateStyle", "ISO, MDY"),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "UTC"),
    ];
    let unreported = fixed.into_iter().filter(|(name, _)| !reported.iter().any(|r| r.0.eq_ignore_ascii_case(name)));
    for (name, value) in unreported {
        transport.put(&ParameterStatus::new(name.to_string(), value.to_string()))?;
    }
    for (name, value) in &reported {
        transport.put(&ParameterStatus::new(name.clone(), value.clone()))?;
    }
    transport.put(&BackendKeyData::new(slot.pid(), SecretKey::I32(key)))?;
    Ok((Connection::new(session, cancel), slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_hold_settings() {
        let check = |options: &str, expected: &[(&str, &str)]| {
            let found = read_options(options).unwrap();
            let found: Vec<(&str, &str)> = found.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            assert_eq!(found, expected);
        };
        check("", &[]);
        check("-c timezone=UTC --date-style=ISO", &[("timezone", "UTC"), ("date_style", "ISO")]);
        check("-csearch_path=a\\ b", &[("search_path", "a b")]);
        check("-c a=b=c\\", &[("a", "b=c")]);
        assert!(read_options("-x 1").is_err() && read_options("-c").is_err() && read_options("-c name").is_err());
    }
}
