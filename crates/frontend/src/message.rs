//! The bodies of the messages that a client sends.
//!
//! Read here and not by `pgwire`, whose decoders take the counts and lengths inside a body on trust.

use bytes::Bytes;
use flow::{Error, SqlState};

use crate::failure::Failure;

/// A place in a body; every read is checked.
pub(crate) struct Reader {
    body: Bytes,
}

impl Reader {
    pub(crate) fn new(body: Bytes) -> Reader {
        Reader { body }
    }

    fn take(&mut self, n: usize) -> Result<Bytes, Failure> {
        if n > self.body.len() {
            return Err(malformed("insufficient data left in message"));
        }
        Ok(self.body.split_to(n))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Failure> {
        let bytes = self.take(N)?;
        <[u8; N]>::try_from(&bytes[..]).map_err(|_| malformed("insufficient data left in message"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Failure> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Failure> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn i32(&mut self) -> Result<i32, Failure> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    /// The next `n` bytes.
    pub(crate) fn bytes(&mut self, n: usize) -> Result<Bytes, Failure> {
        self.take(n)
    }

    /// Text up to a zero byte.
    pub(crate) fn string(&mut self) -> Result<Text, Failure> {
        let end = memchr::memchr(0, &self.body).ok_or_else(|| malformed("invalid string in message"))?;
        let bytes = self.body.split_to(end);
        let _zero = self.body.split_to(1);
        match std::str::from_utf8(&bytes) {
            Ok(_) => Ok(Text(bytes)),
            // Postgres too lets the conversation go on after text in a broken encoding.
            Err(error) => {
                let bad = &bytes[error.valid_up_to()..];
                let shown: Vec<String> =
                    bad.iter().take(error.error_len().unwrap_or(1)).map(|b| format!("0x{b:02x}")).collect();
                let message = format!("invalid byte sequence for encoding \"UTF8\": {}", shown.join(" "));
                Err(Error::new(SqlState::CharacterNotInRepertoire, message).into())
            }
        }
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), Failure> {
        if self.body.is_empty() { Ok(()) } else { Err(malformed("invalid message format")) }
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Reader) -> Result<T, Failure>) -> Result<Vec<T>, Failure> {
        let count = self.u16()?;
        // Each item takes two bytes at least: a count alone reserves nothing.
        let mut items = Vec::with_capacity(usize::from(count).min(self.body.len() / 2));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }
}

/// A body that does not hold what its message must hold: an error, after which the conversation goes on, since the
/// message's length was sound.
pub(crate) fn malformed(message: &str) -> Failure {
    Error::new(SqlState::ProtocolViolation, message).into()
}

/// Text that has been checked to be UTF-8, still in the buffer that it came in.
#[derive(Clone, Debug)]
pub(crate) struct Text(Bytes);

impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

pub(crate) struct Parse {
    pub(crate) name: Text,
    pub(crate) query: Text,
    /// Type OIDs of the first parameters; 0 where the client leaves the choice.
    pub(crate) types: Vec<u32>,
}

impl Parse {
    pub(crate) fn read(body: Bytes) -> Result<Parse, Failure> {
        let mut reader = Reader::new(body);
        let (name, query) = (reader.string()?, reader.string()?);
        let types = reader.list(|r| r.i32().map(|oid| oid as u32))?;
        reader.end()?;
        Ok(Parse { name, query, types })
    }
}

pub(crate) struct Bind {
    pub(crate) portal: Text,
    pub(crate) statement: Text,
    pub(crate) parameter_formats: Vec<i16>,
    pub(crate) parameters: Vec<Option<Bytes>>,
    pub(crate) result_formats: Vec<i16>,
}

impl Bind {
    pub(crate) fn read(body: Bytes) -> Result<Bind, Failure> {
        let mut reader = Reader::new(body);
        let (portal, statement) = (reader.string()?, reader.string()?);
        let parameter_formats = reader.list(|r| r.u16().map(|code| code as i16))?;
        let parameters = reader.list(|r| match r.i32()? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| malformed("insufficient data left in message"))?;
                r.take(length).map(Some)
            }
        })?;
        let result_formats = reader.list(|r| r.u16().map(|code| code as i16))?;
        reader.end()?;
        Ok(Bind { portal, statement, parameter_formats, parameters, result_formats })
    }
}

/// What Describe and Close name.
pub(crate) enum Target {
    Statement(Text),
    Portal(Text),
}

impl Target {
    /// `message` is `DESCRIBE` or `CLOSE`, for the error.
    pub(crate) fn read(body: Bytes, message: &str) -> Result<Target, Failure> {
        let mut reader = Reader::new(body);
        let kind = reader.u8()?;
        let name = reader.string()?;
        reader.end()?;
        match kind {
            b'S' => Ok(Target::Statement(name)),
            b'P' => Ok(Target::Portal(name)),
            other => Err(malformed(&format!("invalid {message} message subtype {other}"))),
        }
    }
}

pub(crate) struct Execute {
    pub(crate) portal: Text,
    /// 0 or less is no limit.
    pub(crate) rows_max: i32,
}

impl Execute {
    pub(crate) fn read(body: Bytes) -> Result<Execute, Failure> {
        let mut reader = Reader::new(body);
        let (portal, rows_max) = (reader.string()?, reader.i32()?);
        reader.end()?;
        Ok(Execute { portal, rows_max })
    }
}

/// The one string of Query, CopyFail and PasswordMessage.
pub(crate) fn read_string(body: Bytes) -> Result<Text, Failure> {
    let mut reader = Reader::new(body);
    let text = reader.string()?;
    reader.end()?;
    Ok(text)
}
