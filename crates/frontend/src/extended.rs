//! The extended query protocol: Parse, Bind, Describe, Execute, Close.
//!
//! Statements between two Syncs are one implicit transaction, with one shortcut: an Execute that is alone in its round and
//! whose Sync has already arrived runs as a statement of its own, as nothing can follow that it would have to be joined to.

use std::sync::Arc;

use arrow::array::ArrayRef;
use bytes::Bytes;
use flow::{Error, Result, SqlState};
use pgwire::messages::data::ParameterDescription;

use crate::backend::{ParsedStatement, Prepared, Response, RowsTag};
use crate::config::NAMED_OBJECTS_MAX;
use crate::connection::Connection;
use crate::decode::{decode_parameter, is_open};
use crate::encode::{Format, formats_of, row_description, same_description};
use crate::failure::Failure;
use crate::message::{Bind, Execute, Parse, Target};
use crate::rows::{RowSource, Sent};
use crate::transport::Transport;
use crate::types::{PgType, data_type_of};

/// A prepared statement.
pub(crate) struct Statement {
    /// `None` for the empty query string.
    parsed: Option<ParsedStatement>,
    prepared: Prepared,
    /// The types that the client knows its parameters by.
    parameter_oids: Vec<u32>,
}

impl Statement {
    fn ends_transaction(&self) -> bool {
        self.parsed.as_ref().is_some_and(|parsed| parsed.ends_transaction)
    }
}

/// A statement with its parameters, ready to run or running.
pub(crate) struct Portal {
    statement: Arc<Statement>,
    parameters: Vec<ArrayRef>,
    formats: Vec<Format>,
    state: PortalState,
}

enum PortalState {
    Ready,
    /// Rows have been asked for, and there may be more.
    Suspended(Box<RowSource>),
    /// Every row has been sent.
    Exhausted(RowsTag),
    /// A command without rows has been carried out.
    Done,
}

pub(crate) fn no_such_statement(name: &str) -> Error {
    let message = match name {
        "" => "unnamed prepared statement does not exist".to_string(),
        name => format!("prepared statement \"{name}\" does not exist"),
    };
    Error::new(SqlState::InvalidSqlStatementName, message)
}

fn no_such_portal(name: &str) -> Error {
    Error::new(SqlState::InvalidCursorName, format!("portal \"{name}\" does not exist"))
}

impl Connection {
    fn check_room(&self) -> Result<()> {
        if self.statements.len() + self.portals.len() >= NAMED_OBJECTS_MAX {
            return Err(Error::new(
                SqlState::ConfigurationLimitExceeded,
                format!("a session cannot hold more than {NAMED_OBJECTS_MAX} prepared statements and portals"),
            )
            .with_hint("Close those that are no longer used, or run DEALLOCATE ALL."));
        }
        Ok(())
    }

    pub(crate) async fn on_parse(&mut self, body: Bytes, transport: &mut Transport) -> Result<(), Failure> {
        let Parse { name, query, types } = Parse::read(body)?;
        self.check_room()?;
        if name.is_empty() {
            // Gone even if the new one turns out to be wrong.
            self.statements.remove("");
        }
        let mut parsed = self.session.parse(&query)?;
        if parsed.len() > 1 {
            return Err(
                Error::new(SqlState::SyntaxError, "cannot insert multiple commands into a prepared statement").into()
            );
        }
        let parsed = parsed.pop();
        self.refuse_if_failed(parsed.as_ref().is_none_or(|p| p.ends_transaction))?;
        if self.statements.contains_key(&*name) {
            let message = format!("prepared statement \"{}\" already exists", &*name);
            return Err(Error::new(SqlState::DuplicatePreparedStatement, message).into());
        }
        let mut declared = Vec::with_capacity(types.len());
        for oid in &types {
            declared.push(match *oid {
                open if is_open(open) => None,
                oid => Some(data_type_of(oid).ok_or_else(|| {
                    Error::new(SqlState::UndefinedObject, format!("type with OID {oid} is not supported"))
                })?),
            });
        }
        let prepared = match &parsed {
            Some(parsed) => self.session.prepare(parsed, &declared).await?,
            None => Prepared { parameters: Vec::new(), parameter_oids: Vec::new(), columns: None, plan: Arc::new(()) },
        };
        let oid_of = |(i, data_type)| match types.get(i) {
            Some(oid) if !is_open(*oid) => *oid,
            _ => match prepared.parameter_oids.get(i) {
                Some(Some(oid)) => *oid,
                _ => PgType::of(data_type).oid,
            },
        };
        let parameter_oids = prepared.parameters.iter().enumerate().map(oid_of).collect();
        self.statements.insert(name.to_string(), Arc::new(Statement { parsed, prepared, parameter_oids }));
        transport.put_empty(b'1');
        Ok(())
    }

    pub(crate) fn on_bind(&mut self, body: Bytes, transport: &mut Transport) -> Result<(), Failure> {
        let bind = Bind::read(body)?;
        self.check_room()?;
        let statement = self.statements.get(&*bind.statement).ok_or_else(|| no_such_statement(&bind.statement))?;
        let statement = Arc::clone(statement);
        let violation = |message: String| Error::new(SqlState::ProtocolViolation, message);
        let (formats, values) = (&bind.parameter_formats, &bind.parameters);
        if formats.len() > 1 && formats.len() != values.len() {
            let (f, v) = (formats.len(), values.len());
            return Err(violation(format!("bind message has {f} parameter formats but {v} parameters")).into());
        }
        if values.len() != statement.parameter_oids.len() {
            return Err(violation(format!(
                "bind message supplies {} parameters, but prepared statement \"{}\" requires {}",
                values.len(),
                &*bind.statement,
                statement.parameter_oids.len()
            ))
            .into());
        }
        self.refuse_if_failed(statement.ends_transaction() || statement.parsed.is_none())?;
        if bind.portal.is_empty() {
            self.portals.remove("");
        } else if self.portals.contains_key(&*bind.portal) {
            let message = format!("cursor \"{}\" already exists", &*bind.portal);
            return Err(Error::new(SqlState::DuplicateCursor, message).into());
        }
        let settings = self.session.text_settings();
        let mut parameters = Vec::with_capacity(values.len());
        for (i, value) in values.iter().enumerate() {
            let format = match formats.as_slice() {
                [] => Format::Text,
                [one] => Format::from_code(*one)?,
                many => Format::from_code(many.get(i).copied().unwrap_or(0))?,
            };
            let (Some(oid), Some(target)) = (statement.parameter_oids.get(i), statement.prepared.parameters.get(i))
            else {
                return Err(Error::internal("a prepared statement lacks the type of a parameter").into());
            };
            let array = decode_parameter(value.as_deref(), format, *oid, target, &settings)
                .map_err(|error| Failure::in_context(error, format!("unnamed portal parameter ${}", i + 1)))?;
            parameters.push(array);
        }
        let columns = statement.prepared.columns.as_ref().map_or(0, |schema| schema.fields().len());
        let formats = match columns {
            // Postgres accepts any formats for a statement without a result.
            0 => Vec::new(),
            columns => formats_of(&bind.result_formats, columns)?,
        };
        let portal = Portal { statement, parameters, formats, state: PortalState::Ready };
        self.portals.insert(bind.portal.to_string(), portal);
        transport.put_empty(b'2');
        Ok(())
    }

    pub(crate) fn on_describe(&mut self, body: Bytes, transport: &mut Transport) -> Result<(), Failure> {
        let no_formats = Vec::new();
        let (statement, formats) = match Target::read(body, "DESCRIBE")? {
            Target::Statement(name) => {
                let statement = self.statements.get(&*name).ok_or_else(|| no_such_statement(&name))?;
                self.refuse_if_failed(statement.prepared.columns.is_none())?;
                transport.put(&ParameterDescription::new(statement.parameter_oids.clone()))?;
                (statement, &no_formats)
            }
            Target::Portal(name) => {
                if !self.portals.contains_key(&*name)
                    && let Some(schema) = self.session.cursor_columns(&name)
                {
                    self.refuse_if_failed(false)?;
                    transport.put(&row_description(&schema, &[]))?;
                    return Ok(());
                }
                let portal = self.portals.get(&*name).ok_or_else(|| no_such_portal(&name))?;
                self.refuse_if_failed(portal.statement.prepared.columns.is_none())?;
                (&portal.statement, &portal.formats)
            }
        };
        match &statement.prepared.columns {
            Some(schema) => transport.put(&row_description(schema, formats))?,
            None => transport.put_empty(b'n'),
        }
        Ok(())
    }

    pub(crate) fn on_close(&mut self, body: Bytes, transport: &mut Transport) -> Result<(), Failure> {
        match Target::read(body, "CLOSE")? {
            Target::Statement(name) => drop(self.statements.remove(&*name)),
            Target::Portal(name) => match self.portals.remove(&*name) {
                Some(_) => {}
                None => self.session.close_cursor(&name),
            },
        }
        transport.put_empty(b'3');
        Ok(())
    }

    pub(crate) async fn on_execute(&mut self, body: Bytes, transport: &mut Transport) -> Result<(), Failure> {
        let Execute { portal: name, rows_max } = Execute::read(body)?;
        // Out of the map while it runs: an error or the end of the transaction then drops it by itself.
        let mut portal = self.portals.remove(&*name).ok_or_else(|| no_such_portal(&name))?;
        let ends_transaction = portal.statement.ends_transaction();
        if portal.statement.parsed.is_none() {
            self.portals.insert(name.to_string(), portal);
            transport.put_empty(b'I');
            return Ok(());
        }
        self.refuse_if_failed(ends_transaction)?;
        let limit = u64::try_from(rows_max).ok().filter(|rows| *rows > 0);
        let mut rows = match portal.state {
            PortalState::Suspended(rows) => rows,
            PortalState::Exhausted(tag) => {
                portal.state = PortalState::Exhausted(tag);
                self.portals.insert(name.to_string(), portal);
                return self.complete(Some(tag.of(0)), transport);
            }
            PortalState::Done => {
                let message = format!("portal \"{}\" cannot be run", &*name);
                return Err(Error::new(SqlState::ObjectNotInPrerequisiteState, message).into());
            }
            PortalState::Ready => {
                if self.implicit || transport.peek_kind() != Some(b'S') {
                    self.begin_implicit().await?;
                }
                let parameters = std::mem::take(&mut portal.parameters);
                let response = self.execute(&portal.statement.prepared, parameters, transport).await?;
                match response {
                    Response::Rows { schema, batches, tag } => {
                        let described = portal.statement.prepared.columns.as_ref();
                        if !described.is_some_and(|described| same_description(described, &schema)) {
                            return Err(Error::unsupported("cached plan must not change result type").into());
                        }
                        let settings = self.session.text_settings();
                        Box::new(RowSource::new(&schema, batches, tag, &portal.formats, settings))
                    }
                    other => {
                        let tag = self.finish_without_rows(other, transport).await?;
                        self.after_statement(ends_transaction);
                        if !ends_transaction {
                            portal.state = PortalState::Done;
                            self.portals.insert(name.to_string(), portal);
                        }
                        return self.complete(tag, transport);
                    }
                }
            }
        };
        match rows.send(transport, &self.cancel, limit).await? {
            Sent::Limit => {
                portal.state = PortalState::Suspended(rows);
                self.portals.insert(name.to_string(), portal);
                transport.put_empty(b's');
                Ok(())
            }
            Sent::End(tag) => {
                portal.state = PortalState::Exhausted(rows.tag());
                self.after_statement(ends_transaction);
                self.portals.insert(name.to_string(), portal);
                self.complete(Some(tag), transport)
            }
        }
    }
}
