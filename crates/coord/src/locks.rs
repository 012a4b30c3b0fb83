//! Who may change what until the end of its transaction: rows, whole tables, and the catalog.
//!
//! Law: a transaction that changes a row, or brings a key into being, holds that row's lock until it ends; so two
//! transactions may write one table at once, and the second to touch a row waits for the first to end and then looks
//! again. A table's exclusive lock (TRUNCATE, ALTER, DROP) excludes every other writer of it. Whoever waits is known to
//! wait for one holder, so a circle is found when it would close, and the statement that would close it fails.
//!
//! Rows are told apart by a 64-bit hash of their key, or of all their columns without one: two rows that share a hash
//! wait for each other without need, which is harmless. The locks are taken for a whole batch under one short mutex.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration;

use flow::{Error, RelationId, Result, SqlState};
use parking_lot::Mutex;
use tokio::sync::watch;

/// How long a statement waits for another transaction's lock when no `lock_timeout` is set.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(600);

type OwnerId = u64;

/// Every lock of an engine.
#[derive(Default)]
pub struct Locks {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: OwnerId,
    tables: HashMap<RelationId, TableLocks>,
    /// Who is changing the catalog.
    catalog: Option<OwnerId>,
    /// Whom each waiting owner waits for.
    waits: HashMap<OwnerId, OwnerId>,
    /// Told when an owner has ended.
    ends: HashMap<OwnerId, watch::Receiver<()>>,
}

/// A row's hash is one already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type RowLocks = HashMap<u64, OwnerId, BuildHasherDefault<AsIs>>;

#[derive(Default)]
struct TableLocks {
    rows: RowLocks,
    /// Transactions that write the table.
    writers: HashSet<OwnerId>,
    exclusive: Option<OwnerId>,
}

impl TableLocks {
    fn is_free(&self) -> bool {
        self.rows.is_empty() && self.writers.is_empty() && self.exclusive.is_none()
    }
}

/// Holds locks; lets go of all of them when it is dropped.
pub struct Owner {
    locks: Arc<Locks>,
    id: OwnerId,
    /// Rows locked, by table, to find them again at the end.
    rows: HashMap<RelationId, Vec<u64>>,
    tables: HashSet<RelationId>,
    _alive: watch::Sender<()>,
}

/// A lock is held by another transaction: wait for its end and try again.
#[derive(Debug)]
pub struct Busy {
    holder: OwnerId,
}

impl Locks {
    pub fn owner(self: &Arc<Self>) -> Owner {
        let (alive, end) = watch::channel(());
        let mut state = self.state.lock();
        state.next += 1;
        let id = state.next;
        state.ends.insert(id, end);
        Owner { locks: Arc::clone(self), id, rows: HashMap::new(), tables: HashSet::new(), _alive: alive }
    }
}

impl Owner {
    /// Becomes a writer of the table, beside others.
    pub fn write_table(&mut self, table: RelationId) -> Result<(), Busy> {
        let state = &mut *self.locks.state.lock();
        let locks = state.tables.entry(table).or_default();
        match locks.exclusive {
            Some(holder) if holder != self.id => Err(Busy { holder }),
            _ => {
                locks.writers.insert(self.id);
                self.tables.insert(table);
                Ok(())
            }
        }
    }

    /// Becomes the only writer of the table.
    pub fn own_table(&mut self, table: RelationId) -> Result<(), Busy> {
        let state = &mut *self.locks.state.lock();
        let locks = state.tables.entry(table).or_default();
        let other = locks.exclusive.filter(|h| *h != self.id);
        let other = other.or_else(|| locks.writers.iter().find(|w| **w != self.id).copied());
        if let Some(holder) = other {
            return Err(Busy { holder });
        }
        locks.exclusive = Some(self.id);
        self.tables.insert(table);
        Ok(())
    }

    /// Locks rows of a table that this owner writes: all of them, or none.
    pub fn lock_rows(&mut self, table: RelationId, rows: &[u64]) -> Result<(), Busy> {
        let state = &mut *self.locks.state.lock();
        let locks = state.tables.entry(table).or_default();
        // Nobody else can hold a row of a table that is written by this owner alone, but somebody may come.
        if locks.exclusive == Some(self.id) {
            return Ok(());
        }
        if locks.writers.len() > 1
            && let Some(holder) = rows.iter().find_map(|r| locks.rows.get(r).filter(|h| **h != self.id))
        {
            return Err(Busy { holder: *holder });
        }
        let held = self.rows.entry(table).or_default();
        locks.rows.reserve(rows.len());
        for row in rows {
            if locks.rows.insert(*row, self.id).is_none() {
                held.push(*row);
            }
        }
        self.tables.insert(table);
        Ok(())
    }

    /// Becomes the one who changes the catalog.
    pub fn own_catalog(&mut self) -> Result<(), Busy> {
        let state = &mut *self.locks.state.lock();
        match state.catalog {
            Some(holder) if holder != self.id => Err(Busy { holder }),
            _ => {
                state.catalog = Some(self.id);
                Ok(())
            }
        }
    }

    /// Lets others change the catalog.
    pub fn leave_catalog(&mut self) {
        let state = &mut *self.locks.state.lock();
        if state.catalog == Some(self.id) {
            state.catalog = None;
        }
    }

    /// Waits for the holder's end. `timeout` is the session's `lock_timeout`.
    ///
    /// Errors: `40P01` when the holder waits, over others perhaps, for this owner; `55P03` after `timeout`.
    pub async fn wait(&self, busy: Busy, timeout: Option<Duration>) -> Result<()> {
        let (mut end, _waiting) = self.begin_wait(busy)?;
        // The sender goes with the owner; it never sends.
        let ended = async move { while end.changed().await.is_ok() {} };
        match tokio::time::timeout(timeout.unwrap_or(LOCK_WAIT_MAX), ended).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Error::new(SqlState::LockNotAvailable, "canceling statement due to lock timeout")),
        }
    }

    /// [`wait`](Self::wait) for a thread without a runtime, as long as it takes.
    pub fn wait_blocking(&self, busy: Busy) -> Result<()> {
        let (mut end, _waiting) = self.begin_wait(busy)?;
        futures::executor::block_on(async move { while end.changed().await.is_ok() {} });
        Ok(())
    }

    fn begin_wait(&self, busy: Busy) -> Result<(watch::Receiver<()>, Waiting<'_>)> {
        let mut state = self.locks.state.lock();
        let mut at = busy.holder;
        // A circle through this owner closes with this wait; longer than the number of waits it cannot be.
        for _ in 0..=state.waits.len() {
            if at == self.id {
                return Err(Error::new(SqlState::DeadlockDetected, "deadlock detected")
                    .with_detail("The transaction that this statement would wait for waits for this transaction.")
                    .with_hint("Write rows and tables in the same order in every transaction, or run it again."));
            }
            match state.waits.get(&at) {
                Some(next) => at = *next,
                None => break,
            }
        }
        let end = match state.ends.get(&busy.holder) {
            Some(end) => end.clone(),
            // It has ended meanwhile: a channel whose sender is gone.
            None => watch::channel(()).1,
        };
        state.waits.insert(self.id, busy.holder);
        Ok((end, Waiting { owner: self }))
    }
}

/// Takes the wait back, also when the statement is cancelled.
struct Waiting<'a> {
    owner: &'a Owner,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.owner.locks.state.lock().waits.remove(&self.owner.id);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let state = &mut *self.locks.state.lock();
        for (table, rows) in &self.rows {
            if let Some(locks) = state.tables.get_mut(table) {
                // All of them, where nobody else writes.
                if locks.rows.len() > rows.len() {
                    for row in rows {
                        locks.rows.remove(row);
                    }
                } else {
                    locks.rows = RowLocks::default();
                }
            }
        }
        for table in &self.tables {
            if let Some(locks) = state.tables.get_mut(table) {
                locks.writers.remove(&self.id);
                if locks.exclusive == Some(self.id) {
                    locks.exclusive = None;
                }
                if locks.is_free() {
                    state.tables.remove(table);
                }
            }
        }
        if state.catalog == Some(self.id) {
            state.catalog = None;
        }
        state.ends.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: RelationId = RelationId(1);
    const U: RelationId = RelationId(2);

    #[test]
    fn rows_are_locked_all_or_none_and_let_go_at_the_end() {
        let locks = Arc::new(Locks::default());
        let (mut a, mut b) = (locks.owner(), locks.owner());
        a.write_table(T).unwrap();
        b.write_table(T).unwrap();
        a.lock_rows(T, &[1, 2]).unwrap();
        a.lock_rows(T, &[2, 3]).unwrap();
        assert!(b.lock_rows(T, &[9, 3]).is_err());
        b.lock_rows(T, &[9]).unwrap();
        assert!(b.own_table(T).is_err());
        drop(a);
        b.lock_rows(T, &[1, 2, 3]).unwrap();
        b.own_table(T).unwrap();
        let mut c = locks.owner();
        assert!(c.write_table(T).is_err());
        drop(b);
        c.write_table(T).unwrap();
        drop(c);
        assert!(locks.state.lock().tables.is_empty());
        assert!(locks.state.lock().ends.is_empty());
    }

    #[test]
    fn a_row_locked_by_a_lone_writer_is_seen_by_the_next() {
        let locks = Arc::new(Locks::default());
        let (mut a, mut b) = (locks.owner(), locks.owner());
        a.write_table(T).unwrap();
        a.lock_rows(T, &[1]).unwrap();
        b.write_table(T).unwrap();
        assert!(b.lock_rows(T, &[1]).is_err());
    }

    #[tokio::test]
    async fn a_circle_of_waits_is_refused_when_it_would_close() {
        let locks = Arc::new(Locks::default());
        let (mut a, mut b, mut c) = (locks.owner(), locks.owner(), locks.owner());
        for owner in [&mut a, &mut b, &mut c] {
            owner.write_table(T).unwrap();
            owner.write_table(U).unwrap();
        }
        a.lock_rows(T, &[1]).unwrap();
        b.lock_rows(T, &[2]).unwrap();
        c.lock_rows(U, &[3]).unwrap();
        let a_for_b = a.lock_rows(T, &[2]).unwrap_err();
        let b_for_c = b.lock_rows(U, &[3]).unwrap_err();
        let c_for_a = c.lock_rows(T, &[1]).unwrap_err();
        let (_, _one) = a.begin_wait(a_for_b).unwrap();
        let (_, _two) = b.begin_wait(b_for_c).unwrap();
        let refused = c.wait(c_for_a, None).await.unwrap_err();
        assert_eq!(refused.state(), SqlState::DeadlockDetected);
    }

    #[tokio::test]
    async fn a_wait_ends_with_the_holder_or_with_the_timeout() {
        let locks = Arc::new(Locks::default());
        let (mut a, mut b) = (locks.owner(), locks.owner());
        a.own_table(T).unwrap();
        let busy = b.write_table(T).unwrap_err();
        let refused = b.wait(busy, Some(Duration::from_millis(5))).await.unwrap_err();
        assert_eq!(refused.state(), SqlState::LockNotAvailable);
        let busy = b.write_table(T).unwrap_err();
        let (done, ()) = tokio::join!(b.wait(busy, None), async { drop(a) });
        done.unwrap();
        b.write_table(T).unwrap();
    }
}
