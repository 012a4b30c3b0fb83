//! Freezing the state of a job at the end of an epoch, and bringing it back.
//!
//! Law: what is handed on with a seal is, together with everything handed on before, the state of every task as of the end
//! of the sealed epoch, neither more nor less, though tasks upstream may be epochs ahead.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use checkpoint::crash;
use checkpoint::manifest::SegmentRef;
use flow::{ChangeBatch, Epoch, Error, ProcessFunction, Result, SlotId};
use plan::{Placed, Task};

use crate::depot::Share;
use crate::message::{Restore, Tick};
use crate::service::NowUs;
use crate::slot::Shared;

/// Bytes that a function may hold only to tell them, before it is asked between two checkpoints.
const EARLY_BYTES: usize = 4 << 20;

/// Changes of one part of one task's state.
#[derive(Debug)]
pub struct FrozenChange {
    pub task: usize,
    pub part: usize,
    pub changes: ChangeBatch,
}

/// The state is whole as of the end of this epoch.
#[derive(Clone, Debug)]
pub struct Seal {
    pub epoch: Epoch,
    pub watermarks: Vec<Vec<i64>>,
    pub now_us: i64,
    /// Microseconds for which the tasks stood still to freeze their state.
    pub pause_us: i64,
}

/// What one instance of a job hands to the depot.
#[derive(Debug)]
pub struct Frozen {
    pub changes: Vec<FrozenChange>,
    pub seal: Option<Seal>,
}

impl Frozen {
    pub fn bytes(&self) -> usize {
        self.changes.iter().map(|c| c.changes.bytes()).sum()
    }
}

/// The freezing side of a job's machine.
pub struct Freezing {
    at: Arc<AtomicU64>,
    /// In the order of ticks, for each task.
    told: VecDeque<(Tick, FrozenChange)>,
    bytes: usize,
    watermarks: Vec<Vec<i64>>,
    /// Measures the pauses.
    clock: NowUs,
    /// Since the last seal.
    pause_us: i64,
}

impl Freezing {
    pub fn new(at: Arc<AtomicU64>, tasks: usize, clock: NowUs) -> Freezing {
        Freezing { at, told: VecDeque::new(), bytes: 0, watermarks: vec![Vec::new(); tasks], clock, pause_us: 0 }
    }

    pub fn is_due(&self, tick: Tick) -> bool {
        tick.is_end() && self.at.load(Ordering::Acquire) == tick.epoch.0
    }

    pub fn take(
        &mut self,
        task: usize,
        tick: Tick,
        function: Option<&mut (dyn ProcessFunction + 'static)>,
    ) -> Result<()> {
        let due = self.is_due(tick);
        if let Some(function) = function
            && (due || function.tracked_bytes() > EARLY_BYTES)
        {
            let mut changes = Vec::new();
            // Only for a checkpoint: nothing else looks at the time in the flow.
            let since_us = due.then(|| (self.clock)());
            if due {
                function.freeze(&mut changes)?;
                crash::point("C1");
            } else {
                function.freeze_early(&mut changes)?;
            }
            for (part, changes) in changes {
                if changes.num_rows() > 0 {
                    self.bytes += changes.bytes();
                    self.told.push_back((tick, FrozenChange { task, part, changes }));
                }
            }
            self.pause_us += since_us.map_or(0, |since_us| (self.clock)().saturating_sub(since_us).max(0));
        }
        Ok(())
    }

    pub fn note(&mut self, task: usize, watermarks: Vec<i64>) {
        self.watermarks[task] = watermarks;
    }

    /// What was told of ticks up to `tick`, which every task has finished.
    pub fn hand_on(&mut self, tick: Tick, now_us: i64) -> Option<Frozen> {
        let due = self.is_due(tick);
        if !due && self.told.is_empty() {
            return None;
        }
        let (ready, later): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.told).into_iter().partition(|(t, _)| *t <= tick);
        self.told = later;
        self.bytes -= ready.iter().map(|(_, c)| c.changes.bytes()).sum::<usize>();
        let seal = due.then(|| Seal {
            epoch: tick.epoch,
            watermarks: self.watermarks.clone(),
            now_us,
            pause_us: std::mem::take(&mut self.pause_us),
        });
        let changes: Vec<FrozenChange> = ready.into_iter().map(|(_, change)| change).collect();
        (due || !changes.is_empty()).then_some(Frozen { changes, seal })
    }

    /// Bytes that wait to be handed on.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Restore {
    /// What slot `slot` of `slots` had, if the job had as many.
    pub fn own_chain(&self, slot: SlotId, slots: usize) -> Option<&[SegmentRef]> {
        let chains = self.chains.iter().filter(|_| self.chains.len() == slots);
        chains.map(Vec::as_slice).nth(slot.0 as usize)
    }
}

/// Fills a new function with the rows of its slot, `place.0` of the `place.1` that the job works on. With another parallelism than
/// before they are also what its slot stores first: nothing of what the old slots have stored is only its own.
pub fn restore(
    function: &mut dyn ProcessFunction,
    index: usize,
    task: &Task,
    restore: &Restore,
    place: (SlotId, usize),
    shared: &Shared,
) -> Result<Vec<FrozenChange>> {
    let mut anew = Vec::new();
    let parts = function.parts();
    if parts.is_empty() || place.0.0 as usize >= place.1 {
        return Ok(anew);
    }
    let depot = shared.depot.as_ref().ok_or_else(|| Error::internal("a job is restored where nothing is kept"))?;
    let moved = restore.own_chain(place.0, place.1).is_none();
    for (n, part) in parts.iter().enumerate() {
        let placed = task.inputs.get(part.port).map_or(&Placed::Single, |input| &input.placed);
        let share = Share { task: index, part, placed, slot: place.0.0 as usize, slots: place.1 };
        for rows in depot.content(&restore.chains, &share)? {
            for start in (0..rows.num_rows()).step_by(shared.batch_rows) {
                function.restore(n, rows.slice(start, shared.batch_rows.min(rows.num_rows() - start)))?;
            }
            crash::point("C15");
            if moved {
                crash::point("C16");
            }
            if moved && rows.num_rows() > 0 {
                anew.push(FrozenChange { task: index, part: n, changes: rows });
            }
        }
    }
    Ok(anew)
}
