//! What an exchange between workers costs: rows with wide strings over the connection that workers have, beside the same bytes over plain
//! loopback TCP in the same run; and queries that exchange, in one process and over two workers.
//!
//! The first half is `crates/cluster/examples/exchange.rs`, which says what it does.

use std::process::Command;

use super::measure::Report;
use super::server::Usage;
use super::{Options, Result, nexmark, target_folder};

pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    // Together with the server and of the whole workspace, so that nothing is compiled with other features than for that.
    let what = ["build", "--release", "--workspace", "--bin", "millstream", "--example", "exchange"];
    if !crate::cargo().args(what).status()?.success() {
        return Err("the example cannot be built".into());
    }
    let ran = Command::new(target_folder().join("release/examples/exchange"))
        .args([options.rows_or(2_000_000).to_string(), options.rounds_or(5).to_string()])
        .output()?;
    if !ran.status.success() {
        return Err(String::from_utf8_lossy(&ran.stderr).into_owned().into());
    }
    // Name, value, unit, CPU seconds.
    for line in String::from_utf8_lossy(&ran.stdout).lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [name, value, unit, cpu_s] = fields[..] else { return Err(format!("the example says \"{line}\"").into()) };
        let unit = ["MB/s", "rows/s", "bytes", "ratio"].into_iter().find(|known| *known == unit);
        let usage = Usage { cpu_s: cpu_s.parse()?, ..Usage::default() };
        report.value(format!("exchange.{name}"), value.parse()?, unit.ok_or("an unknown unit")?, usage);
    }
    nexmark::side_by_side(options, report)
}
