//! How much input lies before the jobs that no epoch waits for: those that catch up, and sinks.
//!
//! An epoch is not held up by them, so nothing else would keep a fast source from laying all that it has before a slow job. A source
//! that all of them lag behind waits; one that others read too waits only if views that catch up would take too much memory, and then
//! until they have caught up: to fail them, or others with them, would be worse than to come later for once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;

use flow::{Epoch, RelationId};

use super::ClockLoop;

/// Bytes of input that were sent to the slots, by epoch.
#[derive(Default)]
pub(super) struct Sent {
    /// By epoch, what was sent up to its end. Only epochs that some job has not finished.
    ends: VecDeque<(Epoch, u64)>,
    /// What was sent before the first of them.
    before: u64,
}

impl Sent {
    fn all(&self) -> u64 {
        self.ends.back().map_or(self.before, |(_, end)| *end)
    }

    /// The next epoch was cut.
    pub fn cut(&mut self, epoch: Epoch, bytes: u64) {
        self.ends.push_back((epoch, self.all() + bytes));
    }

    /// Bytes in the epochs after `done`.
    fn after(&self, done: Epoch) -> u64 {
        let at = self.ends.partition_point(|(epoch, _)| *epoch <= done);
        let before = at.checked_sub(1).and_then(|at| self.ends.get(at)).map_or(self.before, |(_, end)| *end);
        self.all() - before
    }

    /// Nobody asks for what is after an earlier epoch than `done` any more.
    fn forget(&mut self, done: Epoch) {
        while let Some((_, end)) = self.ends.pop_front_if(|(epoch, _)| *epoch <= done) {
            self.before = end;
        }
    }
}

impl ClockLoop {
    /// Tells sources how much lies before the jobs that they feed.
    pub(super) fn note_lags(&mut self) {
        let mut oldest = self.cut;
        let mut ahead_of = HashMap::new();
        let (mut catching_up, mut before_views) = (HashSet::new(), 0);
        for job in self.jobs.values().filter(|job| !job.attached) {
            // While it back-fills, all that has come since its start waits.
            let done = job.finished_epoch().unwrap_or(Epoch(job.first.0 - 1));
            let bytes = self.sent.after(done) as usize;
            if bytes > 0 {
                ahead_of.insert(job.relation, bytes);
            }
            if job.is_view {
                catching_up.insert(job.relation);
                before_views += bytes;
            }
            oldest = oldest.min(done);
        }
        self.sent.forget(oldest);
        self.clock.set_ahead_of(ahead_of);
        self.clock.set_catching_up(catching_up, before_views);
    }
}

impl super::Clock {
    fn set_ahead_of(&self, ahead_of: HashMap<RelationId, usize>) {
        if *self.ahead_of.read() != ahead_of {
            *self.ahead_of.write() = ahead_of;
        }
    }

    /// How many bytes of input may lie before all views that catch up until the sources that they read wait for them.
    pub fn set_catch_up_max(&self, bytes: usize) {
        self.catch_up_max.store(bytes, Ordering::Relaxed);
    }

    /// These views catch up, with so much input before them all.
    fn set_catching_up(&self, views: HashSet<RelationId>, bytes: usize) {
        if bytes > self.catch_up_max.load(Ordering::Relaxed) {
            *self.waited_for.write() = views;
        } else if !self.waited_for.read().is_subset(&views) {
            self.waited_for.write().retain(|view| views.contains(view));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_after_an_epoch_are_those_of_later_ones() {
        let mut sent = Sent::default();
        assert_eq!(sent.after(Epoch(4)), 0);
        for (epoch, bytes) in [(5, 10), (6, 0), (7, 300)] {
            sent.cut(Epoch(epoch), bytes);
        }
        let after = |sent: &Sent| [3, 5, 6, 7, 9].map(|done| sent.after(Epoch(done)));
        assert_eq!(after(&sent), [310, 300, 300, 0, 0]);
        sent.forget(Epoch(5));
        assert_eq!(after(&sent), [300, 300, 300, 0, 0]);
        sent.forget(Epoch(7));
        assert_eq!((after(&sent), sent.ends.len()), ([0; 5], 0));
        sent.cut(Epoch(8), 1);
        assert_eq!(after(&sent), [1, 1, 1, 1, 0]);
    }
}
