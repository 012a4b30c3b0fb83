//! `millstream`: the one binary.
//!
//! A request's journey: bytes arrive in `frontend::serve` → [`adapter`] hands statements to `coord::Session` →
//! `sql::parse` and `sql::Planner` make a table plan → an ad-hoc query runs in `query::execute` at a pinned epoch, a
//! standing one goes through `plan::stream::lower` and `plan::process::lower` to the slots of `runtime` → a write joins the
//! open epoch of `coord::clock::Clock` → rows go back through `frontend`'s encoder.

mod adapter;
mod application;
mod client;
mod config;
mod coordinator;
mod demo;
mod health;
mod history;
mod http;
mod jobs;
mod leadership;
mod local_workers;
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
    /// Run a SQL script to the end of its inputs and print its results; with --cluster, on a cluster of its own.
    ///
    /// Ends with 0 when everything is done, 1 when a statement or a job has failed. On a cluster also with 3 when it could not get
    /// its workers, 130 when it was cancelled, 143 when this coordinator was stopped and another one goes on.
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
    /// Ask a server, coordinator or history server on this machine whether it lives; ends with 1 if not.
    Health(HealthArgs),
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
    #[arg(skip)]
    workers_timeout: Option<String>,
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
    /// End when the standard input ends: for a worker that lives as long as the process that has started it.
    #[arg(long, hide = true)]
    until_input_ends: bool,
}

#[derive(Args, Clone)]
pub struct RunArgs {
    /// The script; `-` reads standard input.
    file: PathBuf,
    /// Compute threads; with --workers, of each of these [default: one a core]
    #[arg(long)]
    slots: Option<usize>,
    /// Memory for tables, views and jobs; with --workers, of each process [default: half of the machine's]
    #[arg(long)]
    memory_limit: Option<String>,
    /// Do not show progress.
    #[arg(long)]
    quiet: bool,
    /// Run on a cluster of its own, which ends with the script: this process is the coordinator
    #[arg(long)]
    cluster: bool,
    /// A cluster of its own for each job of the script (each sink, each query, each view that nothing else reads), side by side
    #[arg(long, requires = "cluster", conflicts_with_all = ["high_availability", "pg_addr", "http_addr", "cluster_addr"])]
    per_job: bool,
    /// Workers that this process starts itself, on this machine [default: none, they come from elsewhere]
    #[arg(long, requires = "cluster")]
    workers: Option<usize>,
    /// Workers that the jobs run on [default: those of --workers, or 1]
    #[arg(long, requires = "cluster")]
    cluster_workers: Option<usize>,
    /// How long to wait for workers before giving up [default: 2min]
    #[arg(long, requires = "cluster")]
    workers_timeout: Option<String>,
    /// Folder of all durable data, which stays [default: one that is removed at the end]
    #[arg(long, requires = "cluster")]
    data_dir: Option<PathBuf>,
    /// Address of the Postgres wire [default: 127.0.0.1:7432]
    #[arg(long, requires = "cluster")]
    pg_addr: Option<String>,
    /// Address of health and metrics over HTTP [default: 127.0.0.1:7480]
    #[arg(long, requires = "cluster")]
    http_addr: Option<String>,
    /// Where this process listens for workers [default: 127.0.0.1:7490]
    #[arg(long, requires = "cluster")]
    cluster_addr: Option<String>,
    /// Where checkpoints are kept, s3://bucket/prefix or file:///a/folder [default: a folder of the data directory]
    #[arg(long, requires = "cluster")]
    checkpoint_url: Option<String>,
    /// none, or store: another process that runs the same script takes over when this one is gone [default: none]
    #[arg(long, requires = "cluster")]
    high_availability: Option<String>,
    /// Configuration file [default: conf/millstream.yaml if it exists]
    #[arg(long, requires = "cluster")]
    config: Option<PathBuf>,
    /// Form of the log: text or json [default: text]
    #[arg(long, requires = "cluster")]
    log_format: Option<String>,
    /// What is logged: error, warn, info, debug, or a filter of tracing [default: info]
    #[arg(long, requires = "cluster")]
    log_level: Option<String>,
    /// Cancel the script when the standard input ends.
    #[arg(long, requires = "cluster", hide = true)]
    until_input_ends: bool,
}

impl RunArgs {
    /// The settings of the coordinator that runs the script, on this data directory.
    fn server(&self, data_dir: PathBuf) -> ServerArgs {
        ServerArgs {
            data_dir: Some(data_dir),
            pg_addr: self.pg_addr.clone(),
            http_addr: self.http_addr.clone(),
            config: self.config.clone(),
            memory_limit: self.memory_limit.clone(),
            checkpoint_url: self.checkpoint_url.clone(),
            cluster_addr: self.cluster_addr.clone(),
            cluster_workers: self.cluster_workers.or(self.workers.filter(|workers| *workers > 0)),
            high_availability: self.high_availability.clone(),
            workers_timeout: self.workers_timeout.clone(),
            log_format: self.log_format.clone(),
            log_level: self.log_level.clone(),
            ..ServerArgs::default()
        }
    }
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
pub struct HealthArgs {
    /// Where it answers over HTTP [default: http_addr of the configuration]
    #[arg(long)]
    http_addr: Option<String>,
    /// Configuration file that names it [default: conf/millstream.yaml if it exists]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Ask whether it answers clients (GET /health), not only whether it lives (GET /live).
    #[arg(long)]
    ready: bool,
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
        Command::Run(args) => match run::run(&args) {
            Ok(code) => return ExitCode::from(code),
            Err(error) => Err(error),
        },
        Command::Sql(args) => client::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::History(args) => history::run(&args),
        Command::Health(args) => health::run(&args),
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
            tell(&error);
            ExitCode::FAILURE
        }
    }
}

/// Says on standard error what has gone wrong.
pub fn tell(error: &flow::Error) {
    eprintln!("millstream: {}", error.message());
    if let Some(detail) = error.detail() {
        eprintln!("DETAIL: {detail}");
    }
    if let Some(hint) = error.hint() {
        eprintln!("HINT: {hint}");
    }
}
