//! The project's own commands: `cargo xtask ci` runs every check, `cargo xtask doors` the crate table alone,
//! `cargo xtask bench` measures a server from outside, `cargo xtask soak` lets one work and die for long, `cargo xtask failures` breaks
//! a cluster in every way, `cargo xtask sql-tests` runs all SQL tests over one.

mod accounts;
mod bench;
mod doors;
mod failures;
mod soak;
mod sql_tests;

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let outcome = match args.next().as_deref() {
        Some("ci") => ci(),
        Some("doors") => doors::check(),
        Some("bench") => bench::run(args),
        Some("soak") => soak::run(args),
        Some("sql-tests") => sql_tests::run(args),
        Some("failures") => failures::run(args),
        _ => Err(format!(
            "usage: cargo xtask ci | cargo xtask doors | {} | {} | {} | {} | {}",
            bench::USAGE,
            bench::NEXMARK_USAGE,
            soak::USAGE,
            failures::USAGE,
            sql_tests::USAGE
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// fmt, doors, clippy, tests, in this order: the cheap ones first.
fn ci() -> Result<(), String> {
    step("fmt", &["fmt", "--all", "--check"])?;
    doors::check()?;
    step("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    step("tests", &["test", "--workspace"])
}

/// Cargo as a shell would start it. What `cargo run` tells the program that it runs must not reach the next one: a build script
/// that looks at it (ring's) would run again for each way of calling cargo, and DataFusion be compiled after it.
fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") || told == "CARGO_BIN_NAME" {
            command.env_remove(&name);
        }
    }
    command
}

fn step(name: &str, args: &[&str]) -> Result<(), String> {
    eprintln!("== {name}");
    let status = cargo().args(args).status().map_err(|e| format!("{name}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name} failed")) }
}
