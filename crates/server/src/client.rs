//! `millstream sql`: a small client over the Postgres wire.

use std::io::{BufRead, IsTerminal, Write};

use flow::{Error, Result, SqlState};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::SqlArgs;

/// Runs the statements of `-c`, or those of standard input, each ended by a semicolon.
pub fn run(args: &SqlArgs) -> Result<()> {
    crate::serve::runtime()?.block_on(async {
        let client = connect(&args.host, args.port, &args.user, &args.database).await?;
        if !args.command.is_empty() {
            for command in &args.command {
                execute(&client, command).await?;
            }
            return Ok(());
        }
        interactive(&client).await
    })
}

/// Connects; the connection's task ends with the client.
pub async fn connect(host: &str, port: u16, user: &str, database: &str) -> Result<Client> {
    let settings = format!("host={host} port={port} user={user} dbname={database} application_name=millstream-sql");
    let (client, connection) = tokio_postgres::connect(&settings, NoTls).await.map_err(|e| {
        Error::new(SqlState::ConnectionFailure, format!("cannot connect to {host}:{port}: {}", reason(&e)))
            .with_hint("Start the server with: millstream server")
    })?;
    tokio::spawn(async move {
        if let Err(e) = connection.await {
            tracing::debug!(error = %e, "connection ended");
        }
    });
    Ok(client)
}

fn reason(e: &tokio_postgres::Error) -> String {
    match e.as_db_error() {
        Some(db) => db.message().to_string(),
        None => std::error::Error::source(e).map_or_else(|| e.to_string(), |s| s.to_string()),
    }
}

async fn interactive(client: &Client) -> Result<()> {
    let terminal = std::io::stdin().is_terminal();
    let mut text = String::new();
    let prompt = |text: &str| {
        if terminal {
            print!("{}", if text.is_empty() { "millstream=> " } else { "millstream-> " });
            // A terminal that cannot be written to ends the loop at the next read.
            let _ = std::io::stdout().flush();
        }
    };
    prompt(&text);
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::new(SqlState::IoError, format!("cannot read input: {e}")))?;
        if text.is_empty() && matches!(line.trim(), "\\q" | "quit" | "exit") {
            return Ok(());
        }
        text.push_str(&line);
        text.push('\n');
        if line.trim_end().ends_with(';') {
            let outcome = execute(client, &text).await;
            text.clear();
            match outcome {
                Err(e) if terminal => report(&e),
                other => other?,
            }
        } else if text.trim().is_empty() {
            text.clear();
        }
        prompt(&text);
    }
    if text.trim().is_empty() { Ok(()) } else { execute(client, &text).await }
}

fn report(error: &Error) {
    eprintln!("ERROR:  {}", error.message());
    if let Some(detail) = error.detail() {
        eprintln!("DETAIL:  {detail}");
    }
    if let Some(hint) = error.hint() {
        eprintln!("HINT:  {hint}");
    }
}

/// Runs statements and prints their results as aligned columns.
async fn execute(client: &Client, text: &str) -> Result<()> {
    let messages = client.simple_query(text).await.map_err(|e| server_error(&e))?;
    let mut header: Vec<String> = Vec::new();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                header = columns.iter().map(|c| c.name().to_string()).collect();
                rows.clear();
            }
            SimpleQueryMessage::Row(row) => {
                rows.push((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_string()).collect());
            }
            SimpleQueryMessage::CommandComplete(_) if !header.is_empty() => {
                print_table(&header, &rows);
                header.clear();
                rows.clear();
            }
            SimpleQueryMessage::CommandComplete(count) => println!("OK {count}"),
            _ => {}
        }
    }
    Ok(())
}

/// A server's error in our own form.
pub fn server_error(e: &tokio_postgres::Error) -> Error {
    let Some(db) = e.as_db_error() else {
        return Error::new(SqlState::ConnectionFailure, reason(e));
    };
    let state = SqlState::from_code(db.code().code()).unwrap_or(SqlState::InternalError);
    let mut error = Error::new(state, format!("{} (SQLSTATE {})", db.message(), db.code().code()));
    if let Some(detail) = db.detail() {
        error = error.with_detail(detail);
    }
    if let Some(hint) = db.hint() {
        error = error.with_hint(hint);
    }
    error
}

/// Prints aligned columns with a header, as psql does.
pub fn print_table(header: &[String], rows: &[Vec<String>]) {
    print!("{}", table(header, rows));
}

/// A table as psql draws it, with its line ends.
pub fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
        cells.chain([header[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(c, w)| format!(" {c:<w$} ")).collect();
        format!("{}\n", padded.join("|").trim_end())
    };
    let rule = widths.iter().map(|w| "-".repeat(w + 2)).collect::<Vec<_>>().join("+");
    let body: String = rows.iter().map(|r| line(r)).collect();
    let count = format!("({} {})", rows.len(), if rows.len() == 1 { "row" } else { "rows" });
    format!("{}{rule}\n{body}{count}\n", line(header))
}
