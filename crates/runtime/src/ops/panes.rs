//! Pieces of state by the time at which they are final, so that those which are over are found without a search.
//!
//! What a piece is, a group, a session, a partition, is its owner's: here it is a number. A piece that has gone, or whose number
//! another has taken, may still be here; whoever takes it out looks.

use std::collections::BTreeMap;

use flow::process::WATERMARK_START;
use plan::stream::{TimeClock, TimeColumn};

pub struct Panes {
    pub time: TimeColumn,
    /// What has been reached: by the watermark, or by the processing time.
    reached_us: i64,
    by_time: BTreeMap<i64, Vec<u32>>,
}

impl Panes {
    pub fn new(time: TimeColumn) -> Panes {
        Panes { time, reached_us: WATERMARK_START, by_time: BTreeMap::new() }
    }

    /// The pieces that have this value in the time column.
    #[inline(always)]
    pub fn at(&mut self, time: i64) -> &mut Vec<u32> {
        self.by_time.entry(time).or_default()
    }

    pub fn on_watermark(&mut self, watermark_us: i64) {
        if self.time.clock == TimeClock::Event {
            self.reached_us = watermark_us;
        }
    }

    pub fn on_time(&mut self, now_us: i64) {
        if self.time.clock == TimeClock::Processing {
            self.reached_us = self.reached_us.max(now_us);
        }
    }

    /// The earliest value that is final, with its pieces.
    pub fn take_due(&mut self) -> Option<(i64, Vec<u32>)> {
        let due = |time: &i64| time.saturating_add(self.time.after_us) <= self.reached_us;
        let pane = self.by_time.first_entry().filter(|pane| due(pane.key()))?;
        Some(pane.remove_entry())
    }

    /// When processing time makes the next value final; `None` if the watermark does.
    pub fn next_timer(&self) -> Option<i64> {
        let earliest = self.by_time.keys().next().filter(|_| self.time.clock == TimeClock::Processing);
        earliest.map(|time| time.saturating_add(self.time.after_us))
    }

    pub fn bytes(&self) -> usize {
        self.by_time.values().map(|pane| 64 + pane.capacity() * size_of::<u32>()).sum()
    }
}
