//! The server as its clients see it: the binary, over TCP, through tokio-postgres and through bytes of its own.

mod cluster;
mod demo;
mod history;
mod killed;
mod log_rewrite;
mod offline;
mod process;
mod protocol;
mod sessions;
#[path = "../../../coord/tests/it/slt_files.rs"]
mod slt_files;
mod sql_tests;
mod standby;
mod subscribe;
mod values;
