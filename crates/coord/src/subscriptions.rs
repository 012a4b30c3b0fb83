//! Who follows which relation: subscriptions are woken when an epoch with changes of theirs is complete, and end with
//! their relation.
//!
//! Law: a subscription costs its relation's writers one shared batch per change and the clock one look per epoch; nobody
//! waits for it. What it has not read is kept within bounds; beyond them it has fallen behind, loses what was kept for it,
//! the rest of its snapshot too, and is told so when it reads next.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use flow::{Epoch, Error, RelationId, Result, SqlState};
use parking_lot::Mutex;
use state::{ChangeLog, ChangeRoom, Follower};
use tokio::sync::watch;

use crate::session::Rows;

/// Changes of one relation that are kept for subscriptions that have not read them, and for `change_retention`.
pub const CHANGES_BYTES_MAX: usize = 64 << 20;
/// The same of all relations together.
pub const CHANGES_BYTES_ALL_MAX: usize = 256 << 20;
/// Subscriptions that may be open at once.
pub const SUBSCRIPTIONS_MAX: usize = 1000;
/// A retention is kept to this fraction of itself.
const RETENTION_STEPS: i64 = 64;

/// Why the changes of a relation come to an end.
#[derive(Clone, Debug)]
pub enum Why {
    Dropped,
    /// A table has got other columns.
    Altered,
    Failed(Error),
    ShuttingDown,
}

/// The end of a relation's changes.
#[derive(Clone, Debug)]
pub struct Ended {
    pub why: Why,
    /// Up to this epoch they are whole.
    pub until: Epoch,
}

/// What subscriptions of a relation wait for.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// Changes up to this epoch can be read.
    pub complete: Epoch,
    pub ended: Option<Ended>,
}

/// One relation that is followed.
pub struct Feed {
    relation: RelationId,
    /// Of the store that holds the relation's rows; the store itself may be dropped.
    pub log: Arc<ChangeLog>,
    news: watch::Sender<News>,
    /// The epoch of the last news.
    told: AtomicU64,
    readers: Mutex<BTreeMap<u64, Arc<Reader>>>,
    retention: Mutex<Option<Retention>>,
}

struct Retention {
    us: i64,
    /// Epochs with the time at which they were complete, oldest first.
    marks: VecDeque<(Epoch, i64)>,
}

/// What is known of one subscription, by itself and by `SHOW SUBSCRIPTIONS`.
pub struct Reader {
    pub relation: RelationId,
    pub pid: i32,
    pub user: String,
    pub started_us: i64,
    pub follower: Follower,
    /// Everything up to this epoch has been handed out.
    pub epoch: AtomicU64,
    pub rows: AtomicU64,
    /// What is left of the snapshot. It keeps blocks alive, not epochs; taken away from a reader that falls behind.
    pub snapshot: Mutex<Option<Rows>>,
}

/// A subscription's place; it ends when this is dropped.
pub struct Seat {
    feeds: Arc<Feeds>,
    pub feed: Arc<Feed>,
    pub reader: Arc<Reader>,
    id: u64,
}

/// All relations that are followed.
pub struct Feeds {
    pub room: Arc<ChangeRoom>,
    feeds: Mutex<BTreeMap<RelationId, Arc<Feed>>>,
    /// How many there are, so that a clock without any looks no further.
    len: AtomicUsize,
    open: AtomicUsize,
    next: AtomicU64,
}

impl Default for Feeds {
    fn default() -> Feeds {
        Feeds {
            room: ChangeRoom::new(CHANGES_BYTES_MAX, CHANGES_BYTES_ALL_MAX),
            feeds: Mutex::default(),
            len: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            next: AtomicU64::new(0),
        }
    }
}

impl Feeds {
    /// The feed of `relation`, whose changes are in `log`. `begin` gives it a use before anyone finds it without one.
    fn feed(&self, relation: RelationId, log: &Arc<ChangeLog>, begin: impl FnOnce(&Feed)) -> Arc<Feed> {
        let mut feeds = self.feeds.lock();
        if let Some(feed) = feeds.get(&relation).filter(|f| Arc::ptr_eq(&f.log, log)) {
            begin(feed);
            return Arc::clone(feed);
        }
        let feed = Arc::new(Feed {
            relation,
            log: Arc::clone(log),
            news: watch::Sender::default(),
            told: AtomicU64::new(0),
            readers: Mutex::default(),
            retention: Mutex::default(),
        });
        begin(&feed);
        feeds.insert(relation, Arc::clone(&feed));
        self.len.store(feeds.len(), Ordering::Release);
        feed
    }

    /// Begins a subscription that reads by `follower`. Errors: `53400` when there are too many.
    pub fn subscribe(
        self: &Arc<Self>,
        relation: RelationId,
        follower: Follower,
        pid: i32,
        user: &str,
        now_us: i64,
    ) -> Result<Seat> {
        if self.open.fetch_add(1, Ordering::AcqRel) >= SUBSCRIPTIONS_MAX {
            self.open.fetch_sub(1, Ordering::AcqRel);
            return Err(Error::new(SqlState::ConfigurationLimitExceeded, "too many subscriptions")
                .with_detail(format!("{SUBSCRIPTIONS_MAX} are open."))
                .with_hint("End some; SHOW SUBSCRIPTIONS lists them with their process ids."));
        }
        let log = Arc::clone(follower.log());
        let reader = Arc::new(Reader {
            relation,
            pid,
            user: user.to_string(),
            started_us: now_us,
            follower,
            epoch: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            snapshot: Mutex::new(None),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let seated = Arc::clone(&reader);
        let feed = self.feed(relation, &log, |feed| {
            feed.readers.lock().insert(id, seated);
        });
        Ok(Seat { feeds: Arc::clone(self), feed, reader, id })
    }

    /// Keeps the changes of a relation, which somebody follows now, for so long from now on.
    pub fn retain(&self, relation: RelationId, log: &Arc<ChangeLog>, us: i64, completed: Epoch) {
        self.feed(relation, log, |feed| {
            let mut retention = feed.retention.lock();
            if retention.is_none() {
                log.retain_after(Some(completed));
            }
            let marks = retention.take().map(|r| r.marks).unwrap_or_default();
            *retention = Some(Retention { us, marks });
        });
    }

    /// On the clock's thread: epochs up to `completed` can be read.
    pub fn tell(&self, completed: Epoch, now_us: i64) {
        if self.len.load(Ordering::Acquire) == 0 {
            return;
        }
        let feeds: Vec<Arc<Feed>> = self.feeds.lock().values().cloned().collect();
        for feed in feeds {
            feed.tell(completed, now_us);
        }
    }

    /// The changes of a relation end; up to `until` they are whole.
    pub fn end(&self, relation: RelationId, why: Why, until: Epoch) {
        let feed = {
            let mut feeds = self.feeds.lock();
            let feed = feeds.remove(&relation);
            self.len.store(feeds.len(), Ordering::Release);
            feed
        };
        if let Some(feed) = feed {
            feed.log.retain_after(None);
            feed.news.send_modify(|news| news.ended = Some(Ended { why, until }));
            // An idle reader must not keep the rows of what is gone.
            let readers: Vec<Arc<Reader>> = feed.readers.lock().values().cloned().collect();
            readers.iter().for_each(|reader| reader.drop_snapshot());
        }
    }

    /// Ends everything.
    pub fn close(&self, until: Epoch) {
        let relations: Vec<RelationId> = self.feeds.lock().keys().copied().collect();
        relations.into_iter().for_each(|relation| self.end(relation, Why::ShuttingDown, until));
    }

    /// The open subscriptions, in the order in which they began.
    pub fn readers(&self) -> Vec<Arc<Reader>> {
        let feeds: Vec<Arc<Feed>> = self.feeds.lock().values().cloned().collect();
        let mut readers: Vec<(u64, Arc<Reader>)> = Vec::new();
        for feed in feeds {
            readers.extend(feed.readers.lock().iter().map(|(id, reader)| (*id, Arc::clone(reader))));
        }
        readers.sort_by_key(|(id, _)| *id);
        readers.into_iter().map(|(_, reader)| reader).collect()
    }

    /// Takes a feed away that nobody needs.
    fn tidy(&self, feed: &Arc<Feed>) {
        let mut feeds = self.feeds.lock();
        let unused = feed.readers.lock().is_empty() && feed.retention.lock().is_none();
        if unused && feeds.get(&feed.relation).is_some_and(|f| Arc::ptr_eq(f, feed)) {
            feeds.remove(&feed.relation);
            self.len.store(feeds.len(), Ordering::Release);
        }
    }
}

impl Feed {
    /// What to wait for.
    pub fn news(&self) -> watch::Receiver<News> {
        self.news.subscribe()
    }

    fn tell(&self, completed: Epoch, now_us: i64) {
        if let Some(retention) = self.retention.lock().as_mut()
            && let Some(after) = retention.passed(completed, now_us)
        {
            self.log.retain_after(Some(after));
        }
        if self.log.newest().0 <= self.told.load(Ordering::Relaxed) {
            return;
        }
        self.told.store(completed.0, Ordering::Relaxed);
        self.news.send_modify(|news| news.complete = completed);
        for reader in self.readers.lock().values() {
            if reader.follower.is_behind() {
                reader.drop_snapshot();
            }
        }
    }
}

impl Reader {
    /// Takes away what is left of the snapshot, unless it is being read at this moment.
    fn drop_snapshot(&self) {
        if let Some(mut snapshot) = self.snapshot.try_lock() {
            let gone = snapshot.take();
            drop(snapshot);
            drop(gone);
        }
    }
}

impl Retention {
    /// Notes a complete epoch; gives the newest one that is out of date.
    fn passed(&mut self, completed: Epoch, now_us: i64) -> Option<Epoch> {
        if self.marks.back().is_none_or(|(_, at)| now_us - at >= self.us / RETENTION_STEPS) {
            self.marks.push_back((completed, now_us));
        }
        let mut after = None;
        while self.marks.front().is_some_and(|(_, at)| now_us - at > self.us) {
            after = self.marks.pop_front().map(|(epoch, _)| epoch);
        }
        after
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.feed.readers.lock().remove(&self.id);
        self.feeds.open.fetch_sub(1, Ordering::AcqRel);
        self.feeds.tidy(&self.feed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_lets_go_of_what_is_older_and_remembers_few_epochs() {
        let mut retention = Retention { us: 64_000, marks: VecDeque::new() };
        for n in 0..10_000u64 {
            let now = n as i64 * 100;
            let after = retention.passed(Epoch(n), now);
            // An epoch that is let go was complete for the whole time.
            assert!(after.is_none_or(|e| now - e.0 as i64 * 100 > 64_000), "{n}: {after:?}");
            assert!(retention.marks.len() <= RETENTION_STEPS as usize + 2);
            let oldest = retention.marks.front().map_or(0, |(e, _)| e.0) as i64 * 100;
            assert!(now - oldest <= 64_000);
        }
    }
}
