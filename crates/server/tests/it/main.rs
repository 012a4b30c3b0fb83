//! The server as its clients see it: the binary, over TCP, through tokio-postgres and through bytes of its own.

mod demo;
mod killed;
mod offline;
mod process;
mod protocol;
mod sessions;
mod subscribe;
mod values;
