//! Transactions: what is open, how it begins and ends, savepoints.

use std::sync::Arc;

use catalog::Catalog;
use flow::{Error, RelationId, Result, SqlState};
use sql::statement::{Isolation, Statement, TransactionModes};
use state::Pin;

use super::private::PrivateCatalog;
use super::{Outcome, Session};
use crate::locks::Busy;
use crate::table::{CatalogPart, Mark, Table, WriteSet};

/// Whether statements stand alone or belong together.
pub enum Transaction {
    None,
    /// One statement that stands alone. Left over after the statement, it was cancelled and is void.
    Single(Open),
    /// Statements of one query string or pipeline.
    Implicit(Open),
    /// BEGIN … COMMIT.
    Explicit(Open),
    /// After an error in BEGIN … COMMIT.
    Failed(Open),
}

/// An open transaction.
#[derive(Default)]
pub struct Open {
    pin: Option<Arc<Pin>>,
    writes: WriteSet,
    private: Option<PrivateCatalog>,
    read_only: bool,
    /// Settings to put back at the end: (name, value before if it had one, also after a commit).
    settings: Vec<(String, Option<String>, bool)>,
    savepoints: Vec<Savepoint>,
}

/// What ROLLBACK TO goes back to.
struct Savepoint {
    name: String,
    mark: Mark,
    private: Option<PrivateCatalog>,
    settings: usize,
}

/// How a transaction appears to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Idle,
    InTransaction,
    Failed,
}

impl Session {
    pub fn transaction_status(&self) -> Status {
        match self.transaction {
            Transaction::None | Transaction::Single(_) | Transaction::Implicit(_) => Status::Idle,
            Transaction::Explicit(_) => Status::InTransaction,
            Transaction::Failed(_) => Status::Failed,
        }
    }

    pub(super) fn in_transaction(&self) -> bool {
        !matches!(self.transaction, Transaction::None | Transaction::Single(_))
    }

    fn open(&self) -> Option<&Open> {
        match &self.transaction {
            Transaction::None => None,
            Transaction::Single(open)
            | Transaction::Implicit(open)
            | Transaction::Explicit(open)
            | Transaction::Failed(open) => Some(open),
        }
    }

    fn open_mut(&mut self) -> Option<&mut Open> {
        match &mut self.transaction {
            Transaction::None => None,
            Transaction::Single(open)
            | Transaction::Implicit(open)
            | Transaction::Explicit(open)
            | Transaction::Failed(open) => Some(open),
        }
    }

    /// The open transaction is void, with all that it has changed. Returns whether there was one that the client has begun.
    pub(super) fn interrupt_transaction(&mut self) -> bool {
        match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::None | Transaction::Single(_) => false,
            Transaction::Implicit(open) => {
                self.transaction = Transaction::Implicit(Open { settings: open.settings, ..Open::default() });
                !open.writes.is_empty() || open.private.is_some()
            }
            Transaction::Failed(open) => {
                self.transaction = Transaction::Failed(Open { settings: open.settings, ..Open::default() });
                false
            }
            Transaction::Explicit(open) => {
                self.transaction = Transaction::Explicit(Open { settings: open.settings, ..Open::default() });
                true
            }
        }
    }

    /// What the open transaction has changed.
    pub(super) fn uncommitted(&self) -> Option<&WriteSet> {
        self.open().map(|o| &o.writes)
    }

    /// What the open transaction changes; there is one while a statement runs that changes something.
    pub(super) fn writes(&mut self) -> Result<&mut WriteSet> {
        self.open_mut().map(|o| &mut o.writes).ok_or_else(|| Error::internal("a change outside of a transaction"))
    }

    /// What the open transaction has done to the catalog.
    pub(super) fn private(&self) -> Option<&PrivateCatalog> {
        self.open().and_then(|o| o.private.as_ref())
    }

    pub(super) fn private_mut(&mut self) -> Result<&mut PrivateCatalog> {
        self.open_mut()
            .and_then(|o| o.private.as_mut())
            .ok_or_else(|| Error::internal("the catalog is changed without being owned"))
    }

    /// The catalog as this session sees it.
    pub(super) fn catalog(&self) -> Catalog {
        self.private().map_or_else(|| self.engine.catalog(), |p| p.catalog.clone())
    }

    /// A table as this session sees it.
    pub(super) fn table(&self, relation: RelationId) -> Option<Arc<Table>> {
        self.private().and_then(|p| p.table(relation)).cloned().or_else(|| self.engine.table(relation))
    }

    /// Whether savepoints are set.
    pub(super) fn has_savepoints(&self) -> bool {
        self.open().is_some_and(|o| !o.savepoints.is_empty())
    }

    /// Takes the right to change the catalog; the first time the private version begins.
    pub(super) async fn own_catalog(&mut self) -> Result<()> {
        loop {
            let locks = Arc::clone(&self.engine.locks);
            match self.writes()?.owner(&locks).own_catalog() {
                Ok(()) => break,
                Err(busy) => self.wait(busy).await?,
            }
        }
        let current = self.engine.catalog();
        if let Some(open) = self.open_mut() {
            open.private.get_or_insert_with(|| PrivateCatalog::new(current));
        }
        Ok(())
    }

    /// Becomes the only writer of a table.
    pub(super) async fn own_table(&mut self, table: &Table) -> Result<()> {
        while let Err(busy) = self.writes()?.own_table(table) {
            self.wait(busy).await?;
        }
        Ok(())
    }

    /// Waits for the transaction that is in the way.
    pub(super) async fn wait(&mut self, busy: Busy) -> Result<()> {
        let timeout = self.lock_timeout();
        self.writes()?.wait(busy, timeout).await
    }

    /// The epoch that a read sees: one for a whole transaction, else the newest.
    pub(super) fn transaction_pin(&mut self) -> Arc<Pin> {
        let engine = Arc::clone(&self.engine);
        match self.open_mut() {
            Some(open) => Arc::clone(open.pin.get_or_insert_with(|| Arc::new(engine.pin()))),
            None => Arc::new(engine.pin()),
        }
    }

    pub(super) fn check_read_only(&self, statement: &Statement) -> Result<()> {
        let read_only = match &self.transaction {
            Transaction::Explicit(open) | Transaction::Implicit(open) => open.read_only,
            _ => false,
        } || self.settings.flag("default_transaction_read_only")
            && !matches!(self.transaction, Transaction::Explicit(_));
        let writes = matches!(
            statement,
            Statement::Insert(_)
                | Statement::Update(_)
                | Statement::Delete(_)
                | Statement::Truncate(_)
                | Statement::CreateTable(_)
                | Statement::CreateTableAs(_)
                | Statement::CreateSource(_)
                | Statement::CreateSink(_)
                | Statement::CreateView(_)
                | Statement::CreateSchema { .. }
                | Statement::CreateDatabase { .. }
                | Statement::Drop(_)
                | Statement::Alter(_)
                | Statement::AlterSystem(_)
                | Statement::Comment(_)
        ) || matches!(statement, Statement::Copy(c) if c.direction == sql::statement::CopyDirection::FromStdin);
        if read_only && writes {
            return Err(Error::new(
                SqlState::ReadOnlyTransaction,
                format!("cannot execute {} in a read-only transaction", statement.tag()),
            ));
        }
        Ok(())
    }

    /// An error inside BEGIN … COMMIT: only its end is accepted from here on, or a return to a savepoint.
    pub fn fail_transaction(&mut self) {
        self.wanted.lock().clear();
        self.transaction = match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::Explicit(open) if open.savepoints.is_empty() => {
                // Locks are released at once; nothing of it can be committed any more.
                Transaction::Failed(Open { settings: open.settings, ..Open::default() })
            }
            Transaction::Explicit(open) => Transaction::Failed(open),
            other => other,
        };
        self.cursors.retain(|_, c| c.hold);
    }

    /// Throws away what a cancelled statement has left.
    pub(super) fn clear_cancelled(&mut self) {
        if matches!(self.transaction, Transaction::Single(_)) {
            self.transaction = Transaction::None;
        }
    }

    /// A statement that stands alone becomes a transaction of its own.
    pub(super) fn begin_single(&mut self) {
        if matches!(self.transaction, Transaction::None) {
            self.transaction = Transaction::Single(Open::default());
        }
    }

    /// The end of a statement that [`begin_single`](Self::begin_single) has prepared.
    pub(super) async fn end_single(&mut self, commit: bool) -> Result<()> {
        match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::Single(open) => self.end(open, commit).await,
            other => {
                self.transaction = other;
                Ok(())
            }
        }
    }

    pub fn begin_implicit(&mut self) {
        self.clear_cancelled();
        if matches!(self.transaction, Transaction::None) {
            self.transaction = Transaction::Implicit(Open::default());
        }
    }

    pub async fn end_implicit(&mut self, commit: bool) -> Result<()> {
        match commit {
            true => self.apply_wanted_settings(),
            false => self.wanted.lock().clear(),
        }
        match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::Implicit(open) => {
                self.cursors.retain(|_, c| c.hold);
                self.end(open, commit).await
            }
            other => {
                self.transaction = other;
                Ok(())
            }
        }
    }

    pub(super) fn begin(&mut self, modes: &TransactionModes) -> Result<Outcome> {
        match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::None | Transaction::Single(_) => self.transaction = Transaction::Explicit(Open::default()),
            Transaction::Implicit(open) => self.transaction = Transaction::Explicit(open),
            other => {
                self.transaction = other;
                self.warn("25001", "there is already a transaction in progress");
            }
        }
        self.set_modes(modes)?;
        Ok(Outcome::Done("BEGIN".into()))
    }

    fn set_modes(&mut self, modes: &TransactionModes) -> Result<()> {
        // Every level is at least snapshot isolation here, which fulfils what the weaker ones promise.
        if modes.isolation == Some(Isolation::Serializable) {
            self.notice("transactions run with snapshot isolation");
        }
        if let (Some(read_only), Some(open)) = (modes.read_only, self.open_mut()) {
            open.read_only = read_only;
        }
        Ok(())
    }

    pub(super) fn set_transaction(&mut self, modes: &TransactionModes, session: bool) -> Result<Outcome> {
        if session {
            if let Some(read_only) = modes.read_only {
                self.settings.set("default_transaction_read_only", if read_only { "on" } else { "off" })?;
            }
        } else if self.in_transaction() {
            self.set_modes(modes)?;
        } else {
            self.warn("25P01", "SET TRANSACTION can only be used in transaction blocks");
        }
        Ok(Outcome::Done("SET".into()))
    }

    pub(super) async fn commit(&mut self, chain: bool) -> Result<Outcome> {
        match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::None | Transaction::Single(_) => {
                self.warn("25P01", "there is no transaction in progress");
                Ok(Outcome::Done("COMMIT".into()))
            }
            Transaction::Failed(open) => {
                self.restore_settings(open.settings, false);
                self.next_in_chain(chain);
                Ok(Outcome::Done("ROLLBACK".into()))
            }
            Transaction::Implicit(open) => {
                self.warn("25P01", "there is no transaction in progress");
                self.end(open, true).await?;
                Ok(Outcome::Done("COMMIT".into()))
            }
            Transaction::Explicit(open) => {
                self.cursors.retain(|_, c| c.hold);
                self.end(open, true).await?;
                self.next_in_chain(chain);
                Ok(Outcome::Done("COMMIT".into()))
            }
        }
    }

    fn next_in_chain(&mut self, chain: bool) {
        if chain {
            self.transaction = Transaction::Explicit(Open::default());
        }
    }

    pub(super) fn rollback(&mut self, chain: bool) -> Result<Outcome> {
        match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::None | Transaction::Single(_) => self.warn("25P01", "there is no transaction in progress"),
            Transaction::Implicit(open) => {
                self.warn("25P01", "there is no transaction in progress");
                self.restore_settings(open.settings, false);
            }
            Transaction::Explicit(open) | Transaction::Failed(open) => {
                self.restore_settings(open.settings, false);
                self.next_in_chain(chain);
            }
        }
        self.cursors.retain(|_, c| c.hold);
        Ok(Outcome::Done("ROLLBACK".into()))
    }

    pub(super) fn savepoint(&mut self, name: &str) -> Result<Outcome> {
        let Transaction::Explicit(open) = &mut self.transaction else {
            return Err(only_in_block("SAVEPOINT"));
        };
        let savepoint = Savepoint {
            name: name.to_string(),
            mark: open.writes.mark(),
            private: open.private.clone(),
            settings: open.settings.len(),
        };
        open.savepoints.push(savepoint);
        Ok(Outcome::Done("SAVEPOINT".into()))
    }

    pub(super) fn release(&mut self, name: &str) -> Result<Outcome> {
        let Transaction::Explicit(open) = &mut self.transaction else {
            return Err(only_in_block("RELEASE SAVEPOINT"));
        };
        let at = open.savepoint(name)?;
        open.savepoints.truncate(at);
        Ok(Outcome::Done("RELEASE".into()))
    }

    /// Takes back everything since a savepoint, which stays. A failed transaction goes on from there.
    pub(super) fn rollback_to(&mut self, name: &str) -> Result<Outcome> {
        let mut open = match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::Explicit(open) | Transaction::Failed(open) => open,
            other => {
                self.transaction = other;
                return Err(only_in_block("ROLLBACK TO SAVEPOINT"));
            }
        };
        let at = match open.savepoint(name) {
            Ok(at) => at,
            Err(error) => {
                self.transaction = Transaction::Failed(open);
                return Err(error);
            }
        };
        open.savepoints.truncate(at + 1);
        let savepoint = &open.savepoints[at];
        open.writes.undo(&savepoint.mark);
        // The right to change the catalog stays; so does its private version, for later statements to go on from.
        let current = self.engine.catalog();
        let before = savepoint.private.clone();
        open.private = open.private.take().map(|_| before.unwrap_or_else(|| PrivateCatalog::new(current)));
        let settings = open.settings.split_off(savepoint.settings.min(open.settings.len()));
        self.transaction = Transaction::Explicit(open);
        self.restore_settings(settings, false);
        Ok(Outcome::Done("ROLLBACK".into()))
    }

    pub(super) fn remember_setting(&mut self, name: &str, before: Option<String>, local: bool) {
        if let Some(open) = self.open_mut() {
            open.settings.push((name.to_string(), before, local));
        }
    }

    fn restore_settings(&mut self, settings: Vec<(String, Option<String>, bool)>, committed: bool) {
        for (name, before, local) in settings.into_iter().rev() {
            if local || !committed {
                // The value was accepted before.
                let _ = match before {
                    Some(before) => self.settings.set(&name, &before).map(|_| ()),
                    None => self.settings.reset(&name),
                };
                self.note_changed(&name);
            }
        }
    }

    async fn end(&mut self, open: Open, commit: bool) -> Result<()> {
        let Open { writes, private, settings, .. } = open;
        self.restore_settings(settings, commit);
        if !commit {
            return Ok(());
        }
        match private.filter(|p| !p.changes().is_empty()) {
            Some(private) => self.commit_catalog(writes, private).await,
            None => self.commit_writes(writes).await,
        }
    }

    async fn commit_writes(&mut self, writes: WriteSet) -> Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        let (engine, met) = (&self.engine, writes.met());
        let epoch = writes.commit(&engine.clock, &engine.log, &engine.budget, engine.floor(), None).await?;
        self.written = self.written.max(epoch.unwrap_or_default());
        // That nothing had to be changed is told for what was there, which must be durable too.
        self.engine.clock.wait_durable(epoch.unwrap_or(met)).await
    }

    /// Commits changes of the catalog with the rows of the same transaction, then lets jobs follow.
    async fn commit_catalog(&mut self, mut writes: WriteSet, private: PrivateCatalog) -> Result<()> {
        for table in private.gone_tables() {
            writes.take_table(table);
        }
        let engine = Arc::clone(&self.engine);
        let mut publish = || private.publish(&engine);
        let part = CatalogPart { changes: private.changes(), publish: &mut publish };
        let epoch = writes.commit(&engine.clock, &engine.log, &engine.budget, engine.floor(), Some(part)).await?;
        if let Some(epoch) = epoch {
            self.written = self.written.max(epoch);
        }
        // The change has happened; a client that goes away must not leave it half done.
        let started = tokio::spawn(private.start(Arc::clone(&self.engine))).await;
        let views = started.map_err(|e| Error::internal(format!("starting jobs: {e}")))??;
        if let Some(epoch) = epoch {
            self.engine.clock.wait_durable(epoch).await?;
        }
        if !self.settings.flag("background_ddl") {
            for view in views {
                self.engine.wait_ready(view).await?;
                if let Some(relation) = self.engine.catalog().relation(view) {
                    // Now, and not only a moment later: what is written from here on can be subscribed to.
                    self.engine.retain_changes(relation).await;
                }
            }
        }
        Ok(())
    }
}

impl Open {
    /// The place of the newest savepoint of this name.
    fn savepoint(&self, name: &str) -> Result<usize> {
        self.savepoints
            .iter()
            .rposition(|s| s.name == name)
            .ok_or_else(|| Error::new(SqlState::InvalidSavepoint, format!("savepoint \"{name}\" does not exist")))
    }
}

fn only_in_block(what: &str) -> Error {
    Error::new(SqlState::NoActiveTransaction, format!("{what} can only be used in transaction blocks"))
        .with_hint("Start with BEGIN.")
}
