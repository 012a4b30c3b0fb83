//! Tests of whole statements against an engine in this process.

mod harness;
mod sql_tests;
mod transfers;
mod recovery;
mod isolation;
mod sources_and_sinks;
