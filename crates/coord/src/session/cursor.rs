//! Cursors: DECLARE, FETCH, MOVE, CLOSE. A cursor holds its result's epoch, not its rows: they are read as fetched. One of a
//! subscription holds no epoch: what it has not read is kept for it within bounds.

use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use flow::{Error, Result, SqlState};
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use sql::QueryPlan;
use sql::statement::{DeclareCursor, Fetch, FetchDirection};

use super::subscribe::SubscribePlan;
use super::{Outcome, Rows, Session, rows_outcome};

/// An open cursor.
pub struct Cursor {
    schema: SchemaRef,
    /// Never locked: the mutex makes the session shareable between threads.
    rows: Mutex<Rows>,
    /// Fetched from `rows` but not yet handed out.
    ahead: Option<RecordBatch>,
    /// `WITH HOLD`: lives on after the transaction.
    pub hold: bool,
    /// Rows come as they are made: FETCH takes what is there.
    endless: bool,
}

impl Cursor {
    /// The next `count` rows, fewer at the end.
    async fn next(&mut self, count: u64) -> Result<Vec<RecordBatch>> {
        let mut wanted = usize::try_from(count).unwrap_or(usize::MAX);
        let mut taken = Vec::new();
        while wanted > 0 {
            let batch = match self.ahead.take() {
                Some(batch) => batch,
                None => match self.rows.get_mut().next().await {
                    None => break,
                    Some(batch) => batch?,
                },
            };
            if batch.num_rows() > wanted {
                self.ahead = Some(batch.slice(wanted, batch.num_rows() - wanted));
                taken.push(batch.slice(0, wanted));
                wanted = 0;
            } else {
                wanted -= batch.num_rows();
                taken.push(batch);
            }
        }
        Ok(taken)
    }

    /// At most `count` of the rows that are there now. Without any, waits for the first one: `timeout` at most, or for
    /// ever. Nothing is lost when this is dropped while it waits.
    async fn next_available(&mut self, count: u64, timeout: Option<Duration>) -> Result<Vec<RecordBatch>> {
        let mut wanted = usize::try_from(count).unwrap_or(usize::MAX);
        let mut taken = Vec::new();
        while wanted > 0 {
            let ready = match self.ahead.take() {
                Some(batch) => Some(Some(Ok(batch))),
                None => self.rows.get_mut().next().now_or_never(),
            };
            let batch = match ready {
                // What came before an end is given first; the stream keeps its end for the next FETCH.
                Some(None) => break,
                Some(Some(Err(error))) if taken.is_empty() => return Err(error),
                Some(Some(Err(error))) => {
                    *self.rows.get_mut() = Box::pin(futures::stream::once(async move { Err(error) }));
                    break;
                }
                Some(Some(Ok(batch))) => batch,
                None if !taken.is_empty() => break,
                None => {
                    let next = self.rows.get_mut().next();
                    let next = match timeout {
                        None => next.await,
                        Some(timeout) if timeout.is_zero() => break,
                        Some(timeout) => match tokio::time::timeout(timeout, next).await {
                            Ok(next) => next,
                            Err(_) => break,
                        },
                    };
                    match next {
                        None => break,
                        Some(batch) => batch?,
                    }
                }
            };
            let rows = batch.num_rows().min(wanted);
            if rows < batch.num_rows() {
                self.ahead = Some(batch.slice(rows, batch.num_rows() - rows));
            }
            wanted -= rows;
            taken.push(batch.slice(0, rows));
        }
        Ok(taken)
    }
}

impl Session {
    fn cursor(&mut self, name: &str) -> Result<&mut Cursor> {
        self.cursors.get_mut(name).ok_or_else(|| no_cursor(name))
    }

    /// The columns of an open cursor.
    pub fn cursor_columns(&self, name: &str) -> Result<SchemaRef> {
        self.cursors.get(name).map(|c| SchemaRef::clone(&c.schema)).ok_or_else(|| no_cursor(name))
    }

    pub(super) async fn declare(
        &mut self,
        declare: &DeclareCursor,
        plan: &QueryPlan,
        parameters: &[ArrayRef],
        long: bool,
    ) -> Result<Outcome> {
        self.check_declare(declare)?;
        if let Outcome::Rows { schema, rows, .. } = self.run_query(plan, None, parameters, long).await? {
            self.open_cursor(declare, schema, rows, false);
        }
        Ok(Outcome::Done("DECLARE CURSOR".into()))
    }

    pub(super) async fn declare_subscribe(
        &mut self,
        declare: &DeclareCursor,
        plan: &SubscribePlan,
        parameters: &[ArrayRef],
    ) -> Result<Outcome> {
        self.check_declare(declare)?;
        let (schema, rows) = self.subscribed(plan, parameters).await?;
        self.open_cursor(declare, schema, rows, true);
        Ok(Outcome::Done("DECLARE CURSOR".into()))
    }

    fn open_cursor(&mut self, declare: &DeclareCursor, schema: SchemaRef, rows: Rows, endless: bool) {
        let cursor = Cursor { schema, rows: Mutex::new(rows), ahead: None, hold: declare.hold, endless };
        self.cursors.insert(declare.name.clone(), cursor);
    }

    fn check_declare(&self, declare: &DeclareCursor) -> Result<()> {
        if !declare.hold && !self.in_transaction() {
            return Err(Error::new(
                SqlState::NoActiveTransaction,
                "DECLARE CURSOR can only be used in transaction blocks",
            )
            .with_hint("Start with BEGIN, or declare the cursor WITH HOLD."));
        }
        if declare.scroll == Some(true) {
            return Err(Error::unsupported("SCROLL cursors are not supported")
                .with_hint("Declare the cursor without SCROLL and fetch forward."));
        }
        if self.cursors.contains_key(&declare.name) {
            return Err(Error::new(
                SqlState::InvalidCursorState,
                format!("cursor \"{}\" already exists", declare.name),
            ));
        }
        Ok(())
    }

    pub(super) async fn fetch(&mut self, fetch: &Fetch) -> Result<Outcome> {
        let count = match fetch.direction {
            FetchDirection::Forward(n) | FetchDirection::Relative(n) if n >= 0 => n.unsigned_abs(),
            FetchDirection::ForwardAll => u64::MAX,
            _ => {
                return Err(Error::new(SqlState::ObjectNotInPrerequisiteState, "cursor can only scan forward")
                    .with_hint("Fetch NEXT, FORWARD n or ALL."));
            }
        };
        let cursor = self.cursor(&fetch.cursor)?;
        let schema = SchemaRef::clone(&cursor.schema);
        let rows = match (cursor.endless, fetch.timeout) {
            (true, timeout) => cursor.next_available(count, timeout).await?,
            (false, None) => cursor.next(count).await?,
            (false, Some(_)) => {
                return Err(Error::new(
                    SqlState::InvalidParameterValue,
                    format!("cursor \"{}\" has no timeout: it is not one of a subscription", fetch.cursor),
                )
                .with_hint("Leave WITH (timeout …) out: the cursor's rows are all there."));
            }
        };
        if fetch.only_move {
            let moved: usize = rows.iter().map(RecordBatch::num_rows).sum();
            return Ok(Outcome::Done(format!("MOVE {moved}")));
        }
        Ok(rows_outcome(schema, rows, "FETCH", true))
    }

    /// Closes one cursor, or all.
    pub fn close_cursor(&mut self, name: Option<&str>) -> Result<Outcome> {
        match name {
            None => self.cursors.clear(),
            Some(name) => {
                self.cursors.remove(name).ok_or_else(|| no_cursor(name))?;
            }
        }
        Ok(Outcome::Done(if name.is_some() { "CLOSE CURSOR" } else { "CLOSE CURSOR ALL" }.into()))
    }
}

fn no_cursor(name: &str) -> Error {
    // 34000 is PostgreSQL's code for it.
    Error::new(SqlState::InvalidCursorName, format!("cursor \"{name}\" does not exist"))
}
