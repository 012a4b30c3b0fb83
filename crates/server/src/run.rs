//! `millstream run FILE.sql`: a script with a server of its own, which ends when its bounded inputs are read. On a cluster of its own it is
//! an [application](crate::application), or [a cluster for each job](crate::jobs).
//!
//! Sources are held back until the script reads something, so that every view declared before sees its input once, as it
//! comes, and nothing is read twice.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use arrow::util::pretty::pretty_format_batches;
use coord::Engine;
use coord::session::{Outcome, Session};
use flow::{Error, Result, SqlState};
use futures::TryStreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use sql::statement::{Parsed, Statement};

use crate::config::Config;
use crate::{RunArgs, ServerArgs};

/// How often progress is drawn.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Runs the script, and says with which code the process is to end. Errors: a statement or a job has failed.
pub fn run(args: &RunArgs) -> Result<u8> {
    let text = read_script(args)?;
    if args.per_job {
        return crate::jobs::run(args, &text);
    }
    if args.cluster {
        return crate::application::run(args, text);
    }
    let folder = std::env::temp_dir().join(format!("millstream-run-{}", std::process::id()));
    let flags = ServerArgs {
        data_dir: Some(folder.clone()),
        slots: args.slots,
        memory_limit: args.memory_limit.clone(),
        ..ServerArgs::default()
    };
    // A script ends with its server: nothing goes on from its state.
    let config = Config { checkpoint_interval: "off".into(), ..Config::load(&flags)? };
    crate::logging::install("text", "warn");
    let outcome = crate::serve::runtime()?.block_on(async {
        let (engine, server) = crate::serve::open_engine(&config)?;
        engine.sources.pause(true);
        let mut session = server.session(&engine, "millstream", "dev", 0);
        let outcome = script(&mut session, &engine, &text, args.quiet).await;
        crate::serve::shut_down(engine).await?;
        outcome
    });
    // The data belongs to this run alone.
    let _ = std::fs::remove_dir_all(&folder);
    outcome.map(|()| 0)
}

fn read_script(args: &RunArgs) -> Result<String> {
    let failed = |e: std::io::Error| {
        Error::new(SqlState::UndefinedFile, format!("cannot read \"{}\": {e}", args.file.display()))
    };
    if args.file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(failed)?;
        return Ok(text);
    }
    std::fs::read_to_string(&args.file).map_err(failed)
}

async fn script(session: &mut Session, engine: &Arc<Engine>, text: &str, quiet: bool) -> Result<()> {
    let statements = session.parse(text).map_err(|e| located(e, text))?;
    for parsed in statements {
        if matches!(parsed.statement, Statement::Query(_)) {
            finish_inputs(engine, quiet).await?;
        }
        statement(session, parsed).await.map_err(|e| located(e, text))?;
        show_notices(session);
    }
    finish_inputs(engine, quiet).await
}

/// Prints what the last statement has to say beside its result.
pub fn show_notices(session: &mut Session) {
    for notice in session.take_notices() {
        eprintln!("{}: {}", if notice.warning { "WARNING" } else { "NOTICE" }, notice.message);
    }
}

/// An error with the line that it points at.
pub fn located(error: Error, text: &str) -> Error {
    let Some(position) = error.position() else { return error };
    let line = line_of(text, position.saturating_sub(1));
    worded(&error, format!("line {line}: {}", error.message()))
}

/// The number of the line with the character at this 0-based offset.
pub fn line_of(text: &str, offset: usize) -> usize {
    text.chars().take(offset).filter(|c| *c == '\n').count() + 1
}

/// The same error in other words.
pub fn worded(error: &Error, message: String) -> Error {
    let mut worded = Error::new(error.state(), message);
    if let Some(detail) = error.detail() {
        worded = worded.with_detail(detail);
    }
    if let Some(hint) = error.hint() {
        worded = worded.with_hint(hint);
    }
    worded
}

/// Runs a statement and prints its rows.
pub async fn statement(session: &mut Session, parsed: Parsed) -> Result<()> {
    let prepared = session.prepare(&Arc::new(parsed), &[]).await?;
    match session.execute(&prepared, &[]).await? {
        Outcome::Rows { rows, .. } => {
            let batches: Vec<_> = rows.try_collect().await?;
            println!("{}", pretty_format_batches(&batches)?);
            let count: usize = batches.iter().map(|b| b.num_rows()).sum();
            println!("({count} {})", if count == 1 { "row" } else { "rows" });
            Ok(())
        }
        Outcome::CopyFrom(_) => {
            Err(Error::unsupported("COPY FROM STDIN needs a client").with_hint("Use a file source."))
        }
        _ => Ok(()),
    }
}

/// Lets the sources go and waits until every bounded one is read and everything that follows from it is done.
pub async fn finish_inputs(engine: &Arc<Engine>, quiet: bool) -> Result<()> {
    engine.clock.let_sources_wait();
    engine.sources.pause(false);
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let style = ProgressStyle::with_template("{bar:30} {percent:>3} % {msg}, {eta} to go")
        .map_err(|e| Error::internal(format!("progress style: {e}")))?;
    bar.set_style(style);
    let done = engine.wait_bounded();
    tokio::pin!(done);
    loop {
        tokio::select! {
            outcome = &mut done => {
                show_progress(engine, &bar);
                bar.finish_and_clear();
                return outcome;
            }
            () = tokio::time::sleep(PROGRESS_INTERVAL) => show_progress(engine, &bar),
        }
    }
}

fn show_progress(engine: &Engine, bar: &ProgressBar) {
    let mut sum = (0, 0, 0);
    for source in engine.sources.all() {
        let status = source.status();
        if status.consumers > 0 {
            sum = (sum.0 + status.progress.done, sum.1 + status.progress.total, sum.2 + status.rows);
        }
    }
    bar.set_length(sum.1);
    bar.set_position(sum.0);
    bar.set_message(format!("{} rows read", sum.2));
}
