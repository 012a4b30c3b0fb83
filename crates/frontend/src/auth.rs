//! Proving a password by SCRAM-SHA-256.

use bytes::Bytes;
use flow::{Error, SqlState};
use pgwire::api::auth::sasl::SCRAM_SHA_256_METHOD;
use pgwire::api::auth::sasl::scram::{ScramSecret, ScramServerAuth};
use pgwire::messages::startup::Authentication;

use crate::config::{STARTUP_PACKET_BYTES_MAX, ScramVerifier};
use crate::failure::Failure;
use crate::message::{Reader, malformed};
use crate::transport::Transport;

/// The same answer whether the user or the password is wrong.
fn refused(user: &str) -> Failure {
    Failure::Fatal(Error::new(SqlState::InvalidPassword, format!("password authentication failed for user \"{user}\"")))
}

fn violated(message: &str) -> Failure {
    Failure::protocol(message)
}

async fn password_message(transport: &mut Transport) -> Result<Bytes, Failure> {
    let frame = transport.read_frame_within(STARTUP_PACKET_BYTES_MAX).await?;
    match frame.kind {
        b'p' => Ok(frame.body),
        other => Err(violated(&format!("expected SASL response, got message type {other}"))),
    }
}

/// Asks the client for the proof. Returns once it has been given.
pub(crate) async fn authenticate(
    transport: &mut Transport,
    verifier: &ScramVerifier,
    user: &str,
) -> Result<(), Failure> {
    transport.put(&Authentication::SASL(vec![SCRAM_SHA_256_METHOD.to_string()]))?;
    let mut initial = Reader::new(password_message(transport).await?);
    let read_initial = |initial: &mut Reader| {
        let mechanism = initial.string()?;
        let length = initial.i32()?;
        let length = usize::try_from(length).map_err(|_| malformed("malformed SCRAM message"))?;
        let first = initial.bytes(length)?;
        Ok::<_, Failure>((mechanism, first))
    };
    let (mechanism, client_first) = read_initial(&mut initial).map_err(|_| violated("malformed SCRAM message"))?;
    if &*mechanism != SCRAM_SHA_256_METHOD {
        return Err(violated("client selected an invalid SASL authentication mechanism"));
    }
    let secret =
        ScramSecret::SaltedPassword { salt: verifier.salt.clone(), salted_password: verifier.salted_password.clone() };
    let (server_first, waiting) = ScramServerAuth::new()
        .on_client_first_message_with_secret(&client_first, secret)
        .map_err(|_| violated("malformed SCRAM message"))?;
    transport.put(&Authentication::SASLContinue(server_first.into()))?;
    let client_final = password_message(transport).await?;
    let server_final = waiting.on_client_final_message(&client_final).map_err(|_| refused(user))?;
    transport.put(&Authentication::SASLFinal(server_final.into()))?;
    Ok(())
}
