//! Tests of whole statements against an engine in this process.

mod bytes;
mod event_time;
mod harness;
mod isolation;
mod messages;
mod nexmark;
mod random_views;
mod recovery;
mod sources_and_sinks;
mod sql_tests;
mod stepped;
mod subscribe;
mod touched;
mod transfers;
