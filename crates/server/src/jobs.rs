//! `millstream run --cluster --per-job FILE.sql`: a cluster of its own for each job of a script.
//!
//! This process cuts the script into jobs, and starts an [application](crate::application) for each, with the statements that the job needs
//! and no others. The clusters know nothing of each other: one that fails or is busy takes nothing from another, and what two jobs
//! have in common (a source, a view) each reads and computes for itself.
//!
//! A job is a sink, a query, or a materialized view that nothing else in the script names. It needs what its text names, and what that
//! names in turn; of a table also every statement that writes into it. What is named is judged by words alone: a column that is
//! called like a table lets the table come along, which costs a little and harms nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use flow::{Error, Result, SqlState};
use sql::statement::{Name, Parsed, Statement};

use crate::RunArgs;
use crate::application::{CODE_CANCELLED, CODE_NO_WORKERS, folder_of_this_process};
use crate::run::{line_of, located};
use crate::serve::{input_ends, runtime, told};

/// Clusters that one script may start.
const JOBS_MAX: usize = 64;

/// A part of a script that is worth a cluster.
#[derive(Debug, PartialEq, Eq)]
struct Job {
    name: String,
    /// The statements that it needs, by their indexes, its own among them.
    statements: Vec<usize>,
}

/// What a statement is to the jobs.
enum Role {
    /// All of them need it.
    Shared,
    /// It makes what others name.
    Makes(Name),
    /// It changes the rows of a table.
    Writes(Name),
    /// It is a job: whoever needs it is itself.
    Job(String),
    /// A materialized view, which is a job if nobody names it.
    View(Name),
}

/// Runs each job of the script on a cluster of its own; returns the code with which the process is to end. Errors: the script cannot be cut.
pub fn run(args: &RunArgs, text: &str) -> Result<u8> {
    let statements = sql::parse(text, &sql::Limits::default()).map_err(|e| located(e, text))?;
    let jobs = cut(&statements, text)?;
    let own = args.data_dir.is_none().then(|| folder_of_this_process("jobs"));
    let base = args.data_dir.clone().or_else(|| own.clone()).unwrap_or_default();
    let outcome = run_all(args, &jobs, &statements, &base);
    if let Some(own) = own {
        // The data belong to this run alone.
        let _ = std::fs::remove_dir_all(&own);
    }
    outcome
}

fn run_all(args: &RunArgs, jobs: &[Job], statements: &[Parsed], base: &Path) -> Result<u8> {
    let input = args.until_input_ends.then(input_ends).transpose()?;
    let lives = Arc::<Mutex<Lives>>::default();
    let watching = Arc::clone(&lives);
    let runtime = runtime()?;
    let _entered = runtime.enter();
    let mut told = told(input)?;
    runtime.spawn(async move {
        if told.wait_for(|told| told.is_some()).await.is_ok() {
            cancel(&watching);
        }
    });
    let mut running = Vec::new();
    for job in jobs {
        let started = start(args, job, statements, base, &lives).inspect_err(|_| cancel(&lives))?;
        running.extend(started);
    }
    let mut codes = BTreeMap::new();
    for (job, mut child, output) in running {
        let status = child.wait().map_err(|e| failed("wait for", base, &e))?;
        // It ends with the output.
        if output.join().is_err() {
            eprintln!("millstream: the output of job {job} cannot be read");
        }
        eprintln!("job {job}: {}", in_words(status));
        codes.insert(job, status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
    }
    let ended_with = |code: u8| codes.values().any(|found| *found == code);
    let known = [0, CODE_NO_WORKERS, CODE_CANCELLED];
    Ok(match codes.values().find(|code| !known.contains(code)) {
        Some(_) => 1,
        None if ended_with(CODE_NO_WORKERS) => CODE_NO_WORKERS,
        None if ended_with(CODE_CANCELLED) || codes.len() < jobs.len() => CODE_CANCELLED,
        None => 0,
    })
}

fn in_words(status: ExitStatus) -> String {
    match status.code() {
        Some(0) => "finished".into(),
        Some(code) if code == i32::from(CODE_CANCELLED) => "cancelled".into(),
        Some(code) if code == i32::from(CODE_NO_WORKERS) => "it could not get its workers".into(),
        _ => format!("failed ({status})"),
    }
}

/// What the clusters live as long as.
#[derive(Default)]
struct Lives {
    inputs: Vec<ChildStdin>,
    cancelled: bool,
}

/// Ends every cluster in order, also those that are still to be started.
fn cancel(lives: &Mutex<Lives>) {
    let mut lives = lives.lock().unwrap_or_else(PoisonError::into_inner);
    lives.cancelled = true;
    lives.inputs.clear();
}

fn failed(action: &str, path: &Path, e: &std::io::Error) -> Error {
    Error::new(SqlState::IoError, format!("cannot {action} \"{}\": {e}", path.display()))
}

/// Starts the cluster of one job; `None`: it was cancelled before.
fn start<'a>(
    args: &RunArgs,
    job: &'a Job,
    statements: &[Parsed],
    base: &Path,
    lives: &Mutex<Lives>,
) -> Result<Option<(&'a str, Child, JoinHandle<()>)>> {
    let folder = base.join(&job.name);
    std::fs::create_dir_all(&folder).map_err(|e| failed("create", &folder, &e))?;
    let file = folder.join("job.sql");
    let text: String = job.statements.iter().map(|n| format!("{};\n", statements[*n].text)).collect();
    std::fs::write(&file, text).map_err(|e| failed("write", &file, &e))?;
    let program = std::env::current_exe()
        .map_err(|e| Error::new(SqlState::IoError, format!("this program does not know its own file: {e}")))?;
    let mut command = Command::new(program);
    command.args(["run", "--cluster", "--quiet", "--until-input-ends"]).arg(&file);
    command.args(["--pg-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--cluster-addr", "127.0.0.1:0"]);
    command.args(["--workers", &args.workers.unwrap_or(1).to_string(), "--data-dir"]).arg(folder.join("data"));
    let url = args.checkpoint_url.as_ref().map(|url| format!("{}/{}", url.trim_end_matches('/'), job.name));
    for (flag, value) in [
        ("--slots", args.slots.map(|slots| slots.to_string())),
        ("--memory-limit", args.memory_limit.clone()),
        ("--workers-timeout", args.workers_timeout.clone()),
        ("--checkpoint-url", url),
        ("--config", args.config.as_ref().map(|file| file.display().to_string())),
        ("--log-format", args.log_format.clone()),
        ("--log-level", Some(args.log_level.clone().unwrap_or_else(|| "warn".into()))),
    ] {
        if let Some(value) = value {
            command.args([flag, &value]);
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = {
        let mut lives = lives.lock().unwrap_or_else(PoisonError::into_inner);
        if lives.cancelled {
            return Ok(None);
        }
        let mut child = command.spawn().map_err(|e| {
            Error::new(SqlState::IoError, format!("the cluster of job {} cannot be started: {e}", job.name))
        })?;
        lives.inputs.extend(child.stdin.take());
        child
    };
    let (output, name) = (child.stdout.take(), job.name.clone());
    let show = move || {
        for line in
            output.into_iter().flat_map(|output| BufReader::new(output).lines()).map_while(std::result::Result::ok)
        {
            // Whole lines, each with its job: the jobs speak at the same time. Nobody may listen any more.
            let _ = writeln!(std::io::stdout(), "{name}: {line}");
        }
    };
    let thread = std::thread::Builder::new().name(format!("job-{}", job.name)).spawn(show);
    let thread = thread.map_err(|e| Error::internal(format!("cannot start a thread: {e}")))?;
    Ok(Some((job.name.as_str(), child, thread)))
}

/// What a statement says.
struct Said<'a> {
    text: &'a str,
    /// In lower case, from whatever stands in it: comments and strings too.
    words: HashSet<String>,
}

impl<'a> Said<'a> {
    fn by(text: &'a str) -> Said<'a> {
        let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        Said { text, words: text.split(|c: char| !is_part(c)).map(str::to_lowercase).collect() }
    }

    fn names(&self, name: &Name) -> bool {
        self.words.contains(&name.name) || self.text.contains(&format!("\"{}\"", name.name.replace('"', "\"\"")))
    }
}

fn role(parsed: &Parsed, number: usize) -> Option<Role> {
    Some(match &parsed.statement {
        Statement::Set(_) | Statement::Reset(_) | Statement::CreateSchema { .. } => Role::Shared,
        Statement::CreateTable(create) => Role::Makes(create.name.clone()),
        Statement::CreateTableAs(create) => Role::Makes(create.name.clone()),
        Statement::CreateSource(create) => Role::Makes(create.name.clone()),
        Statement::CreateView(create) if create.materialized => Role::View(create.name.clone()),
        Statement::CreateView(create) => Role::Makes(create.name.clone()),
        Statement::Insert(insert) => Role::Writes(insert.table.clone()),
        Statement::Update(update) => Role::Writes(update.table.clone()),
        Statement::Delete(delete) => Role::Writes(delete.table.clone()),
        Statement::CreateSink(sink) => match &sink.into {
            Some(table) => Role::Writes(table.clone()),
            None => Role::Job(sink.name.name.clone()),
        },
        Statement::Query(_) => Role::Job(format!("query-{number}")),
        _ => return None,
    })
}

/// Cuts a script into jobs. Errors: `0A000` a statement belongs to no job, or there is none; `54000` there are too many.
fn cut(statements: &[Parsed], text: &str) -> Result<Vec<Job>> {
    let mut roles = Vec::new();
    for (n, parsed) in statements.iter().enumerate() {
        roles.push(role(parsed, n + 1).ok_or_else(|| {
            let (number, line) = (n + 1, line_of(text, parsed.position));
            Error::unsupported(format!("statement {number}, line {line}: {} belongs to no job", parsed.statement.tag()))
                .with_detail(
                    "A script that is cut into jobs has definitions, INSERT, UPDATE, DELETE, SET, sinks and queries.",
                )
                .with_hint("Run it as an application: without --per-job.")
        })?);
    }
    let said: Vec<Said<'_>> = statements.iter().map(|parsed| Said::by(&parsed.text)).collect();
    // What a statement needs at once: what makes the names that it says, and what writes into the tables among them.
    let needs = |n: usize| -> BTreeSet<usize> {
        let is_needed = |(_, role): &(usize, &Role)| match role {
            Role::Makes(name) | Role::View(name) | Role::Writes(name) => said[n].names(name),
            Role::Shared => true,
            Role::Job(_) => false,
        };
        roles.iter().enumerate().filter(is_needed).map(|(other, _)| other).filter(|other| *other != n).collect()
    };
    let is_job = |n: usize| match &roles[n] {
        Role::Job(name) => Some(name.clone()),
        Role::View(name) => {
            let is_named = said.iter().enumerate().any(|(other, said)| other != n && said.names(name));
            (!is_named).then(|| name.name.clone())
        }
        // A sink into a table that nobody names has no other purpose.
        Role::Writes(table) if matches!(statements[n].statement, Statement::CreateSink(_)) => {
            let is_read = roles.iter().enumerate().any(|(other, role)| {
                matches!(role, Role::Job(_) | Role::View(_)) && other != n && said[other].names(table)
            });
            (!is_read).then(|| format!("into-{}", table.name))
        }
        _ => None,
    };
    let mut jobs: Vec<Job> = Vec::new();
    for n in 0..statements.len() {
        let Some(name) = is_job(n) else { continue };
        let (mut all, mut open) = (BTreeSet::from([n]), vec![n]);
        while let Some(next) = open.pop() {
            open.extend(needs(next).into_iter().filter(|other| all.insert(*other)).collect::<Vec<_>>());
        }
        // It is the name of a folder, too.
        let plain: String = name.chars().map(|c| if c.is_alphanumeric() || c == '_' { c } else { '-' }).collect();
        let taken = jobs.iter().any(|job| job.name == plain);
        jobs.push(Job {
            name: if taken { format!("{plain}-{}", n + 1) } else { plain },
            statements: all.into_iter().collect(),
        });
    }
    if jobs.is_empty() {
        return Err(Error::unsupported("the script has no job")
            .with_detail("A job is a sink, a query, or a materialized view that nothing else names.")
            .with_hint("Run it as an application: without --per-job."));
    }
    if jobs.len() > JOBS_MAX {
        let message = format!("the script has {} jobs; the most that get a cluster each is {JOBS_MAX}", jobs.len());
        return Err(Error::new(SqlState::ProgramLimitExceeded, message)
            .with_hint("Run it as an application, without --per-job, or cut it into several scripts."));
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(text: &str) -> Vec<(String, Vec<usize>)> {
        let statements = sql::parse(text, &sql::Limits::default()).unwrap();
        let cut = cut(&statements, text).unwrap_or_else(|e| panic!("{e}"));
        cut.into_iter().map(|job| (job.name, job.statements.iter().map(|n| n + 1).collect())).collect()
    }

    #[test]
    fn each_sink_query_and_last_view_is_a_job_with_what_it_needs() {
        let text = "
            SET timezone = 'UTC';
            CREATE SOURCE clicks (usr text, page text, at timestamp, WATERMARK FOR at AS at)
                WITH (connector = 'file', path = 'c') FORMAT PLAIN ENCODE JSON;
            CREATE TABLE names (usr text PRIMARY KEY, name text);
            INSERT INTO names VALUES ('a', 'Ada');
            CREATE TABLE other (k int);
            CREATE MATERIALIZED VIEW minutes AS SELECT window_start, count(*) AS n
                FROM TUMBLE(clicks, at, INTERVAL '1 minute') GROUP BY window_start;
            CREATE SINK out FROM minutes WITH (connector = 'blackhole');
            CREATE MATERIALIZED VIEW \"Named Ones\" AS SELECT name FROM clicks JOIN names USING (usr);
            SELECT * FROM names;
            INSERT INTO names VALUES ('b', 'Bo')";
        assert_eq!(
            jobs(text),
            [
                ("out".to_string(), vec![1, 2, 6, 7]),
                ("Named-Ones".to_string(), vec![1, 2, 3, 4, 8, 10]),
                ("query-9".to_string(), vec![1, 3, 4, 9, 10]),
            ]
        );
    }

    #[test]
    fn what_belongs_to_no_job_is_refused_with_its_place() {
        let refused = |text: &str| {
            let statements = sql::parse(text, &sql::Limits::default()).unwrap();
            cut(&statements, text).unwrap_err()
        };
        let error = refused("CREATE TABLE t (k int);\n\nDROP TABLE t");
        assert!(error.message().starts_with("statement 2, line 3: DROP TABLE"), "{error}");
        assert!(error.hint().unwrap().contains("--per-job"));
        assert_eq!(refused("CREATE TABLE t (k int)").message(), "the script has no job");
        let many = "CREATE TABLE t (k int);".to_string() + &"SELECT k FROM t;".repeat(JOBS_MAX + 1);
        assert_eq!(refused(&many).state(), SqlState::ProgramLimitExceeded);
    }
}
