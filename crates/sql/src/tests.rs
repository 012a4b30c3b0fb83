//! Tests that go through the crate's public entries.

mod limits;
mod parsing;
mod queries;
