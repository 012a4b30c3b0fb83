//! A client's conversation after the greeting: which message comes next, the simple query protocol, and what both
//! protocols have in common.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::ArrayRef;
use bytes::Bytes;
use flow::{Error, Result, SqlState};
use pgwire::messages::response::{CommandComplete, ReadyForQuery};
use pgwire::messages::startup::ParameterStatus;

use crate::backend::{ParsedStatement, Prepared, Response, Session, TransactionStatus};
use crate::cancel::CancelHandle;
use crate::copy;
use crate::encode::{Format, row_description};
use crate::extended::{Portal, Statement};
use crate::failure::Failure;
use crate::message::read_string;
use crate::rows::{RowSource, Sent};
use crate::transport::{Frame, Transport};

/// Ready, with the error that ends the session, after `limit`; never without one.
async fn idle_too_long(limit: Option<Duration>, status: TransactionStatus) -> Error {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
    match status {
        TransactionStatus::Idle => {
            Error::new(SqlState::IdleSessionTimeout, "terminating connection due to idle-session timeout")
        }
        _ => {
            Error::new(SqlState::IdleInTransactionTimeout, "terminating connection due to idle-in-transaction timeout")
        }
    }
}

/// The state of a conversation, apart from the socket.
pub(crate) struct Connection {
    pub(crate) session: Box<dyn Session>,
    pub(crate) cancel: Arc<CancelHandle>,
    pub(crate) statements: HashMap<String, Arc<Statement>>,
    pub(crate) portals: HashMap<String, Portal>,
    /// An implicit transaction is open in the session.
    pub(crate) implicit: bool,
    /// An extended message failed: everything up to the next Sync is skipped.
    skip_to_sync: bool,
    /// How long the client may stay silent after ReadyForQuery.
    idle_limit: Option<Duration>,
}

impl Connection {
    pub(crate) fn new(session: Box<dyn Session>, cancel: Arc<CancelHandle>) -> Connection {
        Connection {
            session,
            cancel,
            statements: HashMap::new(),
            portals: HashMap::new(),
            implicit: false,
            skip_to_sync: false,
            idle_limit: None,
        }
    }

    /// Answers messages until the client leaves (`Ok`), is gone, or cannot be talked to any longer.
    pub(crate) async fn run(&mut self, transport: &mut Transport) -> Result<(), Failure> {
        self.ready(transport)?;
        loop {
            let frame = match transport.buffered_frame()? {
                Some(frame) => frame,
                None => tokio::select! {
                    biased;
                    frame = transport.read_frame() => frame?,
                    error = self.cancel.stopped() => return Err(Failure::Fatal(error)),
                    error = idle_too_long(self.idle_limit, self.session.transaction_status()) => {
                        return Err(Failure::Fatal(error));
                    }
                },
            };
            // Only the time between ReadyForQuery and the next message counts as idle.
            self.idle_limit = None;
            if frame.kind == b'X' {
                return Ok(());
            }
            if self.cancel.is_terminated() {
                return Err(Failure::Fatal(self.cancel.stopped().await));
            }
            self.answer(frame, transport).await?;
            transport.flush_if_full().await?;
        }
    }

    async fn answer(&mut self, frame: Frame, transport: &mut Transport) -> Result<(), Failure> {
        let Frame { kind, body } = frame;
        match kind {
            b'S' => {
                self.skip_to_sync = false;
                let ended = self.end_implicit(true).await;
                self.report(ended.map_err(Failure::from), transport).await?;
                self.ready(transport)?;
            }
            _ if self.skip_to_sync => {}
            b'Q' => {
                self.cancel.begin();
                let outcome = self.simple_query(body, transport).await;
                self.cancel.end();
                self.report(outcome, transport).await?;
                self.ready(transport)?;
            }
            b'F' => {
                let error = Error::unsupported("function calls by the fast path are not supported");
                self.report(Err(error.into()), transport).await?;
                self.ready(transport)?;
            }
            b'P' | b'B' | b'D' | b'E' | b'C' => {
                self.cancel.begin();
                let outcome = match kind {
                    b'P' => self.on_parse(body, transport).await,
                    b'B' => self.on_bind(body, transport),
                    b'D' => self.on_describe(body, transport),
                    b'E' => self.on_execute(body, transport).await,
                    _ => self.on_close(body, transport),
                };
                self.cancel.end();
                self.skip_to_sync = outcome.is_err();
                self.report(outcome, transport).await?;
            }
            b'H' => transport.flush().await?,
            // What a client still sends after its COPY has failed.
            b'd' | b'c' | b'f' => {}
            other => return Err(Failure::protocol(format!("unexpected message type {other}"))),
        }
        Ok(())
    }

    /// Tells a failed statement to the client and to the transaction that it was part of; passes other failures on.
    async fn report(&mut self, outcome: Result<(), Failure>, transport: &mut Transport) -> Result<(), Failure> {
        let failed = match outcome {
            Ok(()) => return Ok(()),
            Err(Failure::Statement(failed)) => failed,
            Err(other) => return Err(other),
        };
        self.put_notices(transport);
        transport.put_error(&failed.error, failed.context.as_deref());
        if let Err(error) = self.end_implicit(false).await {
            // The statement's own error has been told already, and a client expects no second one.
            tracing::warn!(%error, "roll back an implicit transaction");
        }
        if self.session.transaction_status() == TransactionStatus::InTransaction {
            self.session.fail_transaction();
        }
        self.portals.clear();
        Ok(())
    }

    fn put_notices(&mut self, transport: &mut Transport) {
        for notice in self.session.take_notices() {
            transport.put_notice(&notice);
        }
    }

    /// Ends a round: changed settings, and ReadyForQuery.
    fn ready(&mut self, transport: &mut Transport) -> Result<(), Failure> {
        self.put_notices(transport);
        for (name, value) in self.session.take_parameter_changes() {
            transport.put(&ParameterStatus::new(name, value))?;
        }
        self.idle_limit = self.session.wait_for_client();
        use pgwire::messages::response::TransactionStatus as Wire;
        let status = match self.session.transaction_status() {
            TransactionStatus::Idle => {
                self.portals.clear();
                Wire::Idle
            }
            TransactionStatus::InTransaction => Wire::Transaction,
            TransactionStatus::Failed => Wire::Error,
        };
        Ok(transport.put(&ReadyForQuery::new(status))?)
    }

    /// Joins what follows into one implicit transaction, unless a transaction is open.
    pub(crate) async fn begin_implicit(&mut self) -> Result<()> {
        if !self.implicit && self.session.transaction_status() == TransactionStatus::Idle {
            self.session.begin_implicit().await?;
            self.implicit = true;
        }
        Ok(())
    }

    async fn end_implicit(&mut self, commit: bool) -> Result<()> {
        if std::mem::take(&mut self.implicit) { self.session.end_implicit(commit).await } else { Ok(()) }
    }

    /// In a failed transaction only its end is accepted.
    pub(crate) fn refuse_if_failed(&self, ends_transaction: bool) -> Result<()> {
        if self.session.transaction_status() == TransactionStatus::Failed && !ends_transaction {
            return Err(Error::new(
                SqlState::InFailedTransaction,
                "current transaction is aborted, commands ignored until end of transaction block",
            ));
        }
        Ok(())
    }

    /// What a statement that has been executed means for the transaction and for the portals.
    pub(crate) fn after_statement(&mut self, ends_transaction: bool) {
        if ends_transaction || self.session.transaction_status() != TransactionStatus::Idle {
            // Ended, or turned into an explicit one by BEGIN.
            self.implicit = false;
        }
        if ends_transaction {
            self.portals.clear();
        }
    }

    async fn simple_query(&mut self, body: Bytes, transport: &mut Transport) -> Result<(), Failure> {
        let sql = read_string(body)?;
        // As in Postgres: the unnamed statement and portal do not outlive a simple query.
        self.statements.remove("");
        self.portals.remove("");
        let statements = self.session.parse(&sql)?;
        if statements.is_empty() {
            transport.put_empty(b'I');
            return Ok(());
        }
        let last = statements.len() - 1;
        for (i, statement) in statements.iter().enumerate() {
            self.refuse_if_failed(statement.ends_transaction)?;
            if last > 0 {
                self.begin_implicit().await?;
            }
            let tag = self.simple_statement(statement, transport).await?;
            self.after_statement(statement.ends_transaction);
            if i == last {
                // Only when everything is committed may the client hear that the last statement is complete.
                self.end_implicit(true).await?;
            }
            self.complete(tag, transport)?;
        }
        Ok(())
    }

    /// Notices, then CommandComplete; `None` stands for an empty statement.
    pub(crate) fn complete(&mut self, tag: Option<String>, transport: &mut Transport) -> Result<(), Failure> {
        self.put_notices(transport);
        match tag {
            Some(tag) => transport.put(&CommandComplete::new(tag))?,
            None => transport.put_empty(b'I'),
        }
        Ok(())
    }

    async fn simple_statement(
        &mut self,
        statement: &ParsedStatement,
        transport: &mut Transport,
    ) -> Result<Option<String>, Failure> {
        let prepared = self.session.prepare(statement, &[]).await?;
        if !prepared.parameters.is_empty() {
            return Err(Error::new(SqlState::UndefinedParameter, "there is no parameter $1").into());
        }
        match self.execute(&prepared, Vec::new(), transport).await? {
            Response::Rows { schema, batches, tag } => {
                transport.put(&row_description(&schema, &[]))?;
                let formats = vec![Format::Text; schema.fields().len()];
                let settings = self.session.text_settings();
                let mut rows = RowSource::new(&schema, batches, tag, &formats, settings);
                match rows.send(transport, &self.cancel, None).await? {
                    Sent::End(tag) => Ok(Some(tag)),
                    Sent::Limit => Err(Error::internal("a result without a limit was suspended").into()),
                }
            }
            other => self.finish_without_rows(other, transport).await,
        }
    }

    /// Executes, watching for the client's departure.
    pub(crate) async fn execute(
        &mut self,
        prepared: &Prepared,
        parameters: Vec<ArrayRef>,
        transport: &mut Transport,
    ) -> Result<Response, Failure> {
        self.cancel.check()?;
        let mut work = self.session.execute(prepared, parameters);
        let mut gone = false;
        loop {
            tokio::select! {
                biased;
                response = &mut work => return Ok(response?),
                // The statement is asked to stop, and waited for: dropping it half-way could leave half of its work.
                () = transport.disconnected(), if !gone => {
                    gone = true;
                    self.cancel.cancel();
                }
            }
        }
    }

    /// Carries out every response other than rows. Returns the command tag, or `None` for an empty statement.
    pub(crate) async fn finish_without_rows(
        &mut self,
        response: Response,
        transport: &mut Transport,
    ) -> Result<Option<String>, Failure> {
        match response {
            Response::Rows { .. } => Err(Error::internal("rows where none were expected").into()),
            Response::Command { tag } => Ok(Some(tag.into_owned())),
            Response::Empty => Ok(None),
            Response::CopyIn(copy) => {
                self.put_notices(transport);
                let settings = self.session.text_settings();
                copy::input::receive(copy, settings, transport, &self.cancel).await.map(Some)
            }
            Response::CopyOut(copy) => {
                self.put_notices(transport);
                let settings = self.session.text_settings();
                copy::output::send(copy, settings, transport, &self.cancel).await.map(Some)
            }
            Response::Deallocate { name: None } => {
                self.statements.clear();
                Ok(Some("DEALLOCATE ALL".to_string()))
            }
            Response::Deallocate { name: Some(name) } => match self.statements.remove(&name) {
                Some(_) => Ok(Some("DEALLOCATE".to_string())),
                None => Err(crate::extended::no_such_statement(&name).into()),
            },
        }
    }
}
