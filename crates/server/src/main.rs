//! `millstream`: the one binary.
//!
//! A request's journey: bytes arrive in `frontend::serve` → [`adapter`] hands statements to `coord::Session` →
//! `sql::parse` and `sql::Planner` make a table plan → an ad-hoc query runs in `query::execute` at a pinned epoch, a
//! standing one goes through `plan::stream::lower` and `plan::process::lower` to the slots of `runtime` → a write joins the
//! open epoch of `coord::clock::Clock` → rows go back through `frontend`'s encoder.

mod adapter;
mod client;
mod config;
mod coordinator;
mod demo;
mod history;
mod http;
mod leadership;
mod logging;
mod offline;
mod run;
mod serve;
mod standing;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A SQL-first streaming database.
#[derive(Parser)]
#[command(name = "millstream", version, about, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server: everything in one process.
    Server(ServerArgs),
    /// Run the coordinator of a cluster: it answers clients and keeps the tables, workers do the work.
    Coordinator(ServerArgs),
    /// Run a worker of a cluster: slots for the coordinator's jobs.
    Worker(WorkerArgs),
    /// Run a SQL script to the end of its bounded inputs and print its results.
    Run(RunArgs),
    /// A small SQL client.
    Sql(SqlArgs),
    /// Read everything that the checkpoints of a data directory need, and its log, while no server uses it.
    ///
    /// Ends with 1 if something is missing or damaged.
    Fsck(FsckArgs),
    /// Show the state in the checkpoints of a data directory while no server uses it.
    State(StateArgs),
    /// Show jobs that have ended over HTTP; no server needs to run.
    History(HistoryArgs),
    /// Start a server, feed it with orders, and show views of them live.
    Demo(DemoArgs),
}

/// Settings of the server; each overrides the environment (`MILLSTREAM_…`), which overrides the file.
#[derive(Args, Clone, Default)]
pub struct ServerArgs {
    /// Folder of all durable data [default: ./millstream-data]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Address of the Postgres wire [default: 127.0.0.1:7432]
    #[arg(long)]
    pg_addr: Option<String>,
    /// Address of health and metrics over HTTP [default: 127.0.0.1:7480]
    #[arg(long)]
    http_addr: Option<String>,
    /// Configuration file [default: conf/millstream.yaml if it exists]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Compute threads [default: one a core]
    #[arg(long)]
    slots: Option<usize>,
    /// Memory for tables, views and jobs, such as 512MiB or 4GiB [default: half of the machine's]
    #[arg(long)]
    memory_limit: Option<String>,
    /// Where checkpoints are kept, s3://bucket/prefix or file:///a/folder [default: a folder of the data directory]
    #[arg(long)]
    checkpoint_url: Option<String>,
    /// Go back to this savepoint: views and sources go on from it, tables keep all of their rows
    #[arg(long)]
    from_savepoint: Option<String>,
    /// Where a coordinator listens for workers [default: 127.0.0.1:7490]
    #[arg(long)]
    cluster_addr: Option<String>,
    /// Workers that a coordinator's jobs run on [default: 1]
    #[arg(long)]
    cluster_workers: Option<usize>,
    /// Where a coordinator's log is: none (in its data directory), or store (beside the checkpoints, so that another coordinator
    /// can take over) [default: none]
    #[arg(long)]
    high_availability: Option<String>,
    #[arg(skip)]
    coordinator_addr: Option<String>,
    #[arg(skip)]
    worker_addr: Option<String>,
    /// Form of the log: text or json [default: text]
    #[arg(long)]
    log_format: Option<String>,
    /// What is logged: error, warn, info, debug, or a filter of tracing [default: info]
    #[arg(long)]
    log_level: Option<String>,
}

/// Settings of a worker.
#[derive(Args, Clone, Default)]
pub struct WorkerArgs {
    /// Where the coordinator listens for workers; several, separated by commas, if others take over from it [default: 127.0.0.1:7490]
    #[arg(long)]
    coordinator_addr: Option<String>,
    /// Where this worker listens for others; port 0 is any [default: 127.0.0.1:0]
    #[arg(long)]
    worker_addr: Option<String>,
    /// Configuration file [default: conf/millstream.yaml if it exists]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Compute threads [default: one a core]
    #[arg(long)]
    slots: Option<usize>,
    /// Memory for views and jobs, such as 512MiB or 4GiB [default: half of the machine's]
    #[arg(long)]
    memory_limit: Option<String>,
    /// Form of the log: text or json [default: text]
    #[arg(long)]
    log_format: Option<String>,
    /// What is logged: error, warn, info, debug, or a filter of tracing [default: info]
    #[arg(long)]
    log_level: Option<String>,
}

#[derive(Args)]
pub struct RunArgs {
    /// The script; `-` reads standard input.
    file: PathBuf,
    /// Compute threads [default: one a core]
    #[arg(long)]
    slots: Option<usize>,
    /// Memory for tables, views and jobs [default: half of the machine's]
    #[arg(long)]
    memory_limit: Option<String>,
    /// Do not show progress.
    #[arg(long)]
    quiet: bool,
}

#[derive(Args)]
pub struct SqlArgs {
    /// Statements to run; without it they are read from standard input.
    #[arg(short = 'c', long)]
    command: Vec<String>,
    /// Host of the server.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port of the server.
    #[arg(short, long, default_value_t = 7432)]
    port: u16,
    /// Database.
    #[arg(short, long, default_value = "dev")]
    database: String,
    /// User.
    #[arg(short, long, default_value = "millstream")]
    user: String,
}

/// Which data directory.
#[derive(Args)]
pub struct DataArgs {
    /// Folder of all durable data [default: as of the server]
    #[arg(long, global = true)]
    data_dir: Option<PathBuf>,
    /// Configuration file that names it [default: conf/millstream.yaml if it exists]
    #[arg(long, global = true)]
    config: Option<PathBuf>,
}

impl DataArgs {
    fn config(&self) -> flow::Result<config::Config> {
        let args = ServerArgs { data_dir: self.data_dir.clone(), config: self.config.clone(), ..ServerArgs::default() };
        config::Config::load(&args)
    }
}

#[derive(Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Address of the pages over HTTP [default: 127.0.0.1:7482]
    #[arg(long)]
    history_addr: Option<SocketAddr>,
}

#[derive(Args)]
pub struct FsckArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Remove objects that no checkpoint needs.
    #[arg(long)]
    repair_orphans: bool,
}

#[derive(Args)]
pub struct StateArgs {
    #[command(flatten)]
    data: DataArgs,
    #[command(subcommand)]
    command: StateCommand,
}

#[derive(Subcommand)]
pub enum StateCommand {
    /// The checkpoints and savepoints, with the jobs of each.
    Ls,
    /// The state of one job: its parts, or the rows of some of them.
    Show {
        /// Name or number of the view or sink.
        job: String,
        /// Epoch of a checkpoint, or name of a savepoint [default: the newest checkpoint]
        #[arg(long)]
        checkpoint: Option<String>,
        /// Show the rows of this task.
        #[arg(long)]
        task: Option<u32>,
        /// Show the rows of this part.
        #[arg(long)]
        part: Option<String>,
        /// Rows to show of each part.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
}

#[derive(Args)]
pub struct DemoArgs {
    /// Address of the Postgres wire.
    #[arg(long, default_value = "127.0.0.1:7432")]
    pg_addr: String,
    /// Address of health and metrics over HTTP.
    #[arg(long, default_value = "127.0.0.1:7480")]
    http_addr: String,
    /// Seconds to run; 0 runs until Ctrl-C.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// Orders written a second.
    #[arg(long, default_value_t = 200)]
    rate: u64,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Server(args) => serve::run(&args),
        Command::Coordinator(args) => coordinator::run(&args),
        Command::Worker(args) => worker::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Sql(args) => client::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::History(args) => history::run(&args),
        Command::State(args) => args.data.config().and_then(|config| offline::state(&config, &args.command)),
        Command::Fsck(args) => match args.data.config().and_then(|c| offline::check(&c, args.repair_orphans)) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millstream: {}", error.message());
            if let Some(detail) = error.detail() {
                eprintln!("DETAIL: {detail}");
            }
            if let Some(hint) = error.hint() {
                eprintln!("HINT: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}
