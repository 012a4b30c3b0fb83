//! Tests of whole statements against an engine in this process.

mod bytes;
mod checkpoints;
mod compaction;
mod event_time;
mod fixtures;
mod harness;
mod isolation;
mod log_failures;
mod messages;
mod nexmark;
mod pages;
mod parallelism;
mod planted;
mod processing_time;
mod random_views;
mod recovery;
mod s3;
mod savepoints;
mod slt_files;
mod sources_and_sinks;
mod sql_tests;
mod stalls;
mod stepped;
mod subscribe;
mod touched;
mod transfers;
