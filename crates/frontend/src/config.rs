//! Limits and options of the listener.

use std::time::Duration;

use flow::{Error, Result, SqlState};

/// Bytes that a client may send before it is logged in, per message.
pub const STARTUP_PACKET_BYTES_MAX: usize = 64 * 1024;

/// Bytes of one message after the login, its length field included.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bytes of those messages that hold no more than names: Close, Describe, Execute, Sync, Flush, Terminate, CopyDone and
/// CopyFail. The same figure as in Postgres.
pub const SMALL_MESSAGE_BYTES_MAX: usize = 10_000;

/// Prepared statements plus portals that one session may hold.
pub const NAMED_OBJECTS_MAX: usize = 100_000;

/// How the frontend greets and bounds its clients.
#[derive(Clone, Debug)]
pub struct FrontendConfig {
    /// Connections beyond this number are refused with `53300`.
    pub connections_max: usize,
    /// A client that is not logged in by then is disconnected.
    pub login_timeout: Duration,
    /// What clients take for the version of PostgreSQL that they talk to.
    pub server_version: String,
    /// With a verifier, every client must prove by SCRAM-SHA-256 that it knows the password; without, all are trusted.
    pub password: Option<ScramVerifier>,
    /// How long running statements get to stop after the shutdown began.
    pub shutdown_grace: Duration,
}

impl Default for FrontendConfig {
    fn default() -> FrontendConfig {
        FrontendConfig {
            connections_max: 1000,
            login_timeout: Duration::from_secs(10),
            server_version: "15.14".to_string(),
            password: None,
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

/// What the server keeps of a password: enough to check a proof of it, not enough to log in elsewhere.
#[derive(Clone)]
pub struct ScramVerifier {
    pub(crate) salt: Vec<u8>,
    pub(crate) salted_password: Vec<u8>,
}

impl std::fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScramVerifier(..)")
    }
}

impl ScramVerifier {
    /// Derives the verifier of `password`. Takes some milliseconds, by design.
    pub fn from_password(password: &str) -> Result<ScramVerifier> {
        if password.is_empty() {
            return Err(Error::new(SqlState::InvalidParameterValue, "the password must not be empty"));
        }
        let mut salt = [0u8; 16];
        getrandom::fill(&mut salt).map_err(|e| Error::internal(format!("the system gives no random numbers: {e}")))?;
        let iterations = pgwire::api::auth::sasl::scram::SCRAM_ITERATIONS;
        let salted_password = pgwire::api::auth::sasl::scram::gen_salted_password(password, &salt, iterations);
        Ok(ScramVerifier { salt: salt.to_vec(), salted_password })
    }
}
