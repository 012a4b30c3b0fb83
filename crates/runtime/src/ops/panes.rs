//! Pieces of state by the time at which they are final, so that those which are over are found without a search.
//!
//! What a piece is, a group, a session, a partition, a row, is its owner's: here it is a number. A piece that has gone, or whose
//! number another has taken, may still be here; whoever takes it out looks.

use std::collections::BTreeMap;

use arrow::array::{Array, PrimitiveArray};
use arrow::datatypes::TimestampMicrosecondType;
use flow::process::WATERMARK_START;
use plan::stream::{TimeClock, TimeColumn};

/// Bytes that a pane is reckoned at beside its pieces.
const PANE_BYTES: usize = 64;

/// The value of a time column by which a row is noted: NULL is never final.
#[inline(always)]
pub fn time_at(times: &PrimitiveArray<TimestampMicrosecondType>, row: usize) -> i64 {
    if times.is_valid(row) { times.value(row) } else { i64::MAX }
}

pub struct Panes {
    pub time: TimeColumn,
    /// Times that differ in these bits alone share a pane, which stands under the last of them.
    within: i64,
    /// What has been reached: by the watermark, or by the processing time.
    reached_us: i64,
    by_time: BTreeMap<i64, Vec<u32>>,
    /// For how many pieces there is room in all panes.
    room: usize,
}

impl Panes {
    /// A pane for every value of the time column.
    pub fn new(time: TimeColumn) -> Panes {
        Panes::coarse(time, 0)
    }

    /// A pane for every 2^`bits` microseconds: its pieces are final together, when the last of them are.
    pub fn coarse(time: TimeColumn, bits: u32) -> Panes {
        let within = (1 << bits) - 1;
        Panes { time, within, reached_us: WATERMARK_START, by_time: BTreeMap::new(), room: 0 }
    }

    /// The pane of a value of the time column, as [`take_due`](Self::take_due) names it.
    #[inline(always)]
    pub fn pane_of(&self, time: i64) -> i64 {
        time | self.within
    }

    /// Notes pieces, each with its value of the time column.
    #[inline(always)]
    pub fn note(&mut self, pieces: impl IntoIterator<Item = (i64, u32)>) {
        let mut open: Option<(i64, &mut Vec<u32>)> = None;
        for (time, piece) in pieces {
            let name = time | self.within;
            // Most pieces belong where the one before them does.
            let pane = match open {
                Some((last, pane)) if last == name => pane,
                _ => self.by_time.entry(name).or_default(),
            };
            let before = pane.capacity();
            pane.push(piece);
            self.room += pane.capacity() - before;
            open = Some((name, pane));
        }
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

    /// The earliest pane that is final, with its pieces.
    pub fn take_due(&mut self) -> Option<(i64, Vec<u32>)> {
        self.take_until(self.reached_us)
    }

    /// The same, had `reached_us` been reached.
    pub fn take_until(&mut self, reached_us: i64) -> Option<(i64, Vec<u32>)> {
        let due = |time: &i64| time.saturating_add(self.time.after_us) <= reached_us;
        let pane = self.by_time.first_entry().filter(|pane| due(pane.key()))?;
        let (time, pieces) = pane.remove_entry();
        self.room -= pieces.capacity();
        Some((time, pieces))
    }

    /// When processing time makes the next value final; `None` if the watermark does.
    pub fn next_timer(&self) -> Option<i64> {
        let earliest = self.by_time.keys().next().filter(|_| self.time.clock == TimeClock::Processing);
        earliest.map(|time| time.saturating_add(self.time.after_us))
    }

    pub fn bytes(&self) -> usize {
        self.by_time.len() * PANE_BYTES + self.room * size_of::<u32>()
    }
}
