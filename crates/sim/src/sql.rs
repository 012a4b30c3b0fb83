//! SQL on an engine, and its answers as text.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch, StringViewArray};
use coord::Engine;
use coord::session::{Outcome, Session};
use datafusion::execution::context::SessionState;
use flow::{Error, Result, SqlState};
use futures::TryStreamExt;

pub fn session(engine: &Arc<Engine>, base: &SessionState) -> Session {
    let settings = catalog::Settings::new(|name| plan::functions::zone::Zone::parse(name).map(|_| name.to_string()));
    Session::new(Arc::clone(engine), base.clone(), settings, "tester".into(), "dev".into(), 1)
}

/// Runs statements; the answer is the rows of the last one. Like the server, a failing statement fails its transaction.
pub async fn run(session: &mut Session, text: &str) -> Result<Vec<Vec<String>>> {
    let mut answer = Vec::new();
    for parsed in session.parse(text)? {
        let ran = async {
            let prepared = session.prepare(&Arc::new(parsed), &[]).await?;
            match session.execute(&prepared, &[]).await? {
                Outcome::Rows { rows, .. } => {
                    let batches: Vec<RecordBatch> = rows.try_collect().await?;
                    batches.iter().map(render).collect::<Result<Vec<_>>>().map(|rows| rows.concat())
                }
                _ => Ok(Vec::new()),
            }
        };
        match ran.await {
            Ok(rows) => answer = rows,
            Err(e) => {
                if session.transaction_status() == coord::session::transaction::Status::InTransaction {
                    session.fail_transaction();
                }
                return Err(e);
            }
        }
    }
    Ok(answer)
}

/// Values in PostgreSQL's text form; NULL as `NULL`.
fn render(batch: &RecordBatch) -> Result<Vec<Vec<String>>> {
    let zone = plan::functions::zone::Zone::parse("UTC").ok_or_else(|| Error::internal("no zone UTC"))?;
    let columns = batch.columns().iter().map(|c| Ok(plan::functions::cast::to_text(c, &zone)?));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let cell = |row: usize, text: &StringViewArray| match text.is_null(row) {
        true => "NULL".to_string(),
        false => text.value(row).to_string(),
    };
    Ok((0..batch.num_rows()).map(|row| columns.iter().map(|text| cell(row, text)).collect()).collect())
}

/// Whether something failed because the log takes nothing any more before the next start.
pub fn log_has_failed(error: &Error) -> bool {
    let text = told(error);
    ["could not sync", "after a failed sync"].iter().any(|what| text.contains(what))
}

/// Whether a statement failed for want of something that comes back by itself.
pub fn passes(error: &Error) -> bool {
    error.may_pass() || error.state() == SqlState::AdminShutdown
}

/// Whether a statement failed because a worker is away, or another coordinator leads.
pub fn has_moved(error: &Error) -> bool {
    error.may_pass()
        || matches!(
            error.state(),
            SqlState::CannotConnectNow
                | SqlState::AdminShutdown
                | SqlState::ConnectionFailure
                | SqlState::SerializationFailure
        )
}

/// The error with everything that is known of it.
pub fn told(error: &Error) -> String {
    let more = [error.detail(), error.hint()].into_iter().flatten().collect::<Vec<_>>().join("; ");
    format!("{} ({}); {more}", error.message(), error.state().code())
}
