//! The Postgres session layer: what a client says over a socket, turned into calls on a [`Session`], and Arrow columns
//! turned back into the bytes that Postgres would have sent.
//!
//! The crate knows the protocol and the types, and nothing of SQL, tables or views: those live behind [`Backend`] and
//! [`Session`], which the server implements. Its laws:
//!
//! - Bytes from the socket never panic and never make the server reserve more memory than has arrived.
//! - The answer to any sequence of messages is the one PostgreSQL gives, error or not.
//! - Values go from typed Arrow columns into the outgoing buffer and from received bytes into typed Arrow builders; there
//!   is no value type in between.
//! - One write per batch of messages: the socket is written when the buffer is full or when there is nothing left to do.
//!
//! Reading order: [`backend`] is the contract; `serve` accepts connections, `startup` greets them, `connection` and
//! `extended` run the two query protocols, `copy` moves bulk data, `encode` and `decode` hold the forms of every type.

pub mod backend;
pub mod cancel;
pub mod config;
pub mod copy;
pub mod decode;
pub mod encode;
pub mod settings;
pub mod types;

mod auth;
mod connection;
mod extended;
mod failure;
mod message;
mod rows;
mod serve;
mod startup;
mod transport;

pub use backend::{
    Backend, BatchStream, CopyIn, CopyOut, CopySink, Notice, NoticeSeverity, ParsedStatement, Prepared, Response,
    RowsTag, Session, Startup, TransactionStatus,
};
pub use cancel::CancelHandle;
pub use config::{FrontendConfig, ScramVerifier};
pub use copy::{CopyFormat, CopyOptions};
pub use serve::serve;
pub use settings::{ByteaOutput, DateOrder, DateStyle, IntervalStyle, TextSettings, TimeZone};

#[cfg(test)]
mod tests;
