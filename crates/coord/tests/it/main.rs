//! Tests of whole statements against an engine in this process.

mod harness;
mod isolation;
mod recovery;
mod sources_and_sinks;
mod sql_tests;
mod transfers;
