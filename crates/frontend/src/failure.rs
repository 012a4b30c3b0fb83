//! Errors and notices on their way to the client.

use bytes::BytesMut;
use flow::{Error, SqlState};
use pgwire::messages::Message;
use pgwire::messages::response::{ErrorResponse, NoticeResponse};

use crate::backend::Notice;

/// Why a message could not be answered as asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The statement failed; the conversation goes on.
    Statement(Box<StatementFailure>),
    /// The conversation cannot go on: told to the client, then the connection is closed.
    Fatal(Error),
    /// The client is gone; there is nobody to tell.
    Disconnected,
}

#[derive(Debug)]
pub(crate) struct StatementFailure {
    pub(crate) error: Error,
    /// Where it happened, such as the line of a COPY: the field `W`.
    pub(crate) context: Option<String>,
}

impl Failure {
    pub(crate) fn protocol(message: impl Into<String>) -> Failure {
        Failure::Fatal(Error::new(SqlState::ProtocolViolation, message))
    }

    pub(crate) fn in_context(error: Error, context: String) -> Failure {
        Failure::Statement(Box::new(StatementFailure { error, context: Some(context) }))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error.state() {
            // A session that is told to go away does not continue after the statement.
            SqlState::AdminShutdown => Failure::Fatal(error),
            _ => Failure::Statement(Box::new(StatementFailure { error, context: None })),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(_: std::io::Error) -> Failure {
        Failure::Disconnected
    }
}

/// The most characters of a message, detail or hint; texts may quote the client's own input.
const TEXT_BYTES_MAX: usize = 16 * 1024;

fn field(code: u8, text: &str) -> (u8, String) {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // A zero byte would end the field early and garble the rest.
    (code, text[..end].replace('\0', ""))
}

/// Appends an ErrorResponse. `severity` is `ERROR` or `FATAL`.
pub(crate) fn write_error(
    severity: &str,
    error: &Error,
    context: Option<&str>,
    scratch: &mut BytesMut,
    out: &mut Vec<u8>,
) {
    let mut fields = vec![
        field(b'S', severity),
        field(b'V', severity),
        field(b'C', error.state().code()),
        field(b'M', error.message()),
    ];
    fields.extend(error.detail().map(|detail| field(b'D', detail)));
    fields.extend(error.hint().map(|hint| field(b'H', hint)));
    fields.extend(error.position().map(|position| (b'P', position.to_string())));
    fields.extend(context.map(|context| field(b'W', context)));
    append(&ErrorResponse::new(fields), scratch, out);
}

pub(crate) fn write_notice(notice: &Notice, scratch: &mut BytesMut, out: &mut Vec<u8>) {
    let severity = notice.severity.word();
    let mut fields =
        vec![field(b'S', severity), field(b'V', severity), field(b'C', notice.code), field(b'M', &notice.message)];
    fields.extend(notice.detail.as_deref().map(|detail| field(b'D', detail)));
    fields.extend(notice.hint.as_deref().map(|hint| field(b'H', hint)));
    append(&NoticeResponse::new(fields), scratch, out);
}

fn append(message: &impl Message, scratch: &mut BytesMut, out: &mut Vec<u8>) {
    scratch.clear();
    // Fails only above 2 GB, which the fields' bounds rule out.
    if message.encode(scratch).is_ok() {
        out.extend_from_slice(scratch);
    }
}
