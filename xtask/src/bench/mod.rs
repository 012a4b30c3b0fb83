//! `cargo xtask bench`: measures a server from outside, over the Postgres wire, as a user would meet it.
//!
//! Every benchmark starts a server of its own on a scratch folder and free loopback ports, warms up, and reports values
//! beside the CPU seconds (user and system, all threads) and the peak memory of the server's process. A benchmark that
//! checks results fails the command when a check fails.

mod chain;
mod checkpoints;
mod exchange;
mod flat;
mod isolation;
mod kill;
mod load;
pub mod measure;
mod nexmark;
mod reads;
pub mod server;
mod transfers;
mod visible;

use std::path::{Path, PathBuf};

use measure::Report;
pub use nexmark::USAGE as NEXMARK_USAGE;

pub type Error = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Error>;

/// The benchmarks, in the order in which they run.
const NAMES: &[&str] = &[
    "chain",
    "point",
    "copy",
    "idle",
    "isolation",
    "transfers",
    "visible",
    "flat",
    "kill9",
    "checkpoints",
    "exchange",
];

/// What the command line chooses.
#[derive(Clone, Debug)]
pub struct Options {
    pub binary: PathBuf,
    /// Instead of each benchmark's own number of rows.
    pub rows: Option<u64>,
    /// Instead of each benchmark's own number of seconds or rounds.
    pub rounds: Option<u64>,
    /// Where scratch folders are made; the system's temporary folder if none.
    pub scratch: Option<PathBuf>,
}

impl Options {
    pub fn rows_or(&self, default: u64) -> u64 {
        self.rows.unwrap_or(default)
    }

    pub fn rounds_or(&self, default: u64) -> u64 {
        self.rounds.unwrap_or(default)
    }
}

pub const USAGE: &str = "cargo xtask bench [chain|point|copy|idle|isolation|transfers|visible|flat|kill9|checkpoints|exchange …] [--binary PATH] [--rows N] [--rounds N] [--scratch DIR] [--csv FILE]";

/// An error with its causes; a driver's own text is only "db error".
pub fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Runs the named benchmarks, or all, and prints a table and CSV.
pub fn run(args: impl Iterator<Item = String>) -> std::result::Result<(), String> {
    let mut names: Vec<String> = Vec::new();
    let (mut binary, mut rows, mut rounds, mut scratch, mut csv) = (None, None, None, None, None);
    let mut args = args.peekable();
    if args.next_if(|first| first == "nexmark").is_some() {
        return nexmark::run(args);
    }
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value; usage: {USAGE}"));
        match arg.as_str() {
            "--binary" => binary = Some(PathBuf::from(value()?)),
            "--rows" => rows = Some(number(&value()?)?),
            "--rounds" => rounds = Some(number(&value()?)?),
            "--scratch" => scratch = Some(PathBuf::from(value()?)),
            "--csv" => csv = Some(PathBuf::from(value()?)),
            name if NAMES.contains(&name) => names.push(name.to_string()),
            other => return Err(format!("there is no benchmark \"{other}\"; usage: {USAGE}")),
        }
    }
    if names.is_empty() {
        names = NAMES.iter().map(|n| n.to_string()).collect();
    }
    let binary = match binary {
        Some(path) => path,
        None => release_build()?,
    };
    let options = Options { binary, rows, rounds, scratch };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))?;
    let mut report = Report::default();
    let mut failures = Vec::new();
    for name in &names {
        eprintln!("== {name}");
        let outcome = runtime.block_on(one(name, &options, &mut report));
        if let Err(error) = outcome {
            let error = told(error.as_ref());
            eprintln!("{name} failed: {error}");
            failures.push(format!("{name}: {error}"));
        }
    }
    println!("{}", report.table());
    println!("{}", report.csv());
    if let Some(file) = csv {
        std::fs::write(&file, report.csv()).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

async fn one(name: &str, options: &Options, report: &mut Report) -> Result<()> {
    match name {
        "chain" => chain::run(options, report).await,
        "point" => reads::point(options, report).await,
        "copy" => load::copy(options, report).await,
        "idle" => load::idle(options, report).await,
        "isolation" => isolation::run(options, report).await,
        "transfers" => transfers::run(options, report).await,
        "visible" => visible::run(options, report).await,
        "flat" => flat::run(options, report).await,
        "kill9" => kill::run(options, report).await,
        "checkpoints" => checkpoints::run(options, report).await,
        "exchange" => exchange::run(options, report),
        other => Err(format!("no benchmark {other}").into()),
    }
}

pub fn number(text: &str) -> std::result::Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| format!("\"{text}\" is not a number"))
}

/// Builds the server as it is shipped, and says where it is.
pub fn release_build() -> std::result::Result<PathBuf, String> {
    let status = crate::cargo()
        .args(["build", "--release", "--workspace", "--bin", "millstream"])
        .status()
        .map_err(|e| format!("cargo build: {e}"))?;
    if !status.success() {
        return Err("cargo build failed".to_string());
    }
    Ok(target_folder().join("release/millstream"))
}

/// Builds the server as the tests do, with points at which it can be let die, and says where it is.
pub fn test_build() -> std::result::Result<PathBuf, String> {
    let status = crate::cargo()
        .args(["test", "--workspace", "--test", "server", "--no-run"])
        .status()
        .map_err(|e| format!("cargo test --no-run: {e}"))?;
    if !status.success() {
        return Err("cargo test --no-run failed".to_string());
    }
    Ok(target_folder().join("debug/millstream"))
}

/// Where cargo puts what it builds.
fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}
