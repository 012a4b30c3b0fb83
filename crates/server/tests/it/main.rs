//! The server as its clients see it: the binary, over TCP, through tokio-postgres and through bytes of its own.

mod application;
mod cluster;
mod demo;
mod history;
mod killed;
mod log_rewrite;
mod manifests;
mod offline;
#[path = "../../../coord/tests/it/page_blocks.rs"]
mod page_blocks;
mod process;
mod protocol;
mod refusals;
mod sessions;
#[path = "../../../coord/tests/it/slt_files.rs"]
mod slt_files;
mod sql_tests;
mod standby;
mod subscribe;
mod tour;
mod values;
