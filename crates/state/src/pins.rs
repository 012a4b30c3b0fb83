//! Which epochs readers still need.
//!
//! A pin keeps every version visible at its epoch readable. The law: compaction never goes beyond
//! [`Pins::min_pinned`], and nothing can be pinned below what `min_pinned` has already handed out, or a reader would be
//! promised rows that are gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use flow::{Epoch, Error, Result, SqlState};
use parking_lot::Mutex;

/// The pinned epochs of all readers. How many pins there may be and how old they may become is the caller's policy.
#[derive(Default)]
pub struct Pins {
    registry: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    /// Readers per epoch.
    pinned: BTreeMap<Epoch, usize>,
    /// The highest epoch that `min_pinned` returned: versions that died at or before it may be gone.
    floor: Epoch,
}

/// Keeps one epoch readable until dropped.
pub struct Pin {
    pins: Arc<Pins>,
    epoch: Epoch,
}

/// The refusal of a read at an epoch whose versions may have been compacted away.
pub(crate) fn too_old(epoch: Epoch, floor: Epoch) -> Error {
    Error::new(SqlState::ObjectNotInPrerequisiteState, "snapshot too old")
        .with_detail(format!("epoch {epoch} was asked for, the oldest readable epoch is {floor}"))
        .with_hint("run the query again; it will read the newest completed epoch")
}

impl Pins {
    pub fn new() -> Arc<Pins> {
        Arc::new(Pins::default())
    }

    /// Pins `epoch`; refused (`55000`) when its versions may already be compacted away.
    pub fn pin(self: &Arc<Self>, epoch: Epoch) -> Result<Pin> {
        let mut registry = self.registry.lock();
        if epoch < registry.floor {
            return Err(too_old(epoch, registry.floor));
        }
        *registry.pinned.entry(epoch).or_insert(0) += 1;
        Ok(Pin { pins: Arc::clone(self), epoch })
    }

    /// Pins the newest completed epoch, which `completed` reads while no floor can move: this never fails.
    pub fn pin_latest(self: &Arc<Self>, completed: impl FnOnce() -> Epoch) -> Pin {
        let mut registry = self.registry.lock();
        // Whoever raised the floor had seen that epoch completed.
        let epoch = completed().max(registry.floor);
        *registry.pinned.entry(epoch).or_insert(0) += 1;
        Pin { pins: Arc::clone(self), epoch }
    }

    /// The oldest epoch that anyone may still read, given that all epochs up to `completed` are completed: pass it to
    /// `Store::maintain`. From now on nothing below it can be pinned.
    pub fn min_pinned(&self, completed: Epoch) -> Epoch {
        let mut registry = self.registry.lock();
        let oldest = registry.pinned.keys().next().copied().unwrap_or(completed);
        registry.floor = registry.floor.max(oldest.min(completed));
        registry.floor
    }

    /// Number of pins held now.
    pub fn count(&self) -> usize {
        self.registry.lock().pinned.values().sum()
    }

    /// The oldest pinned epoch, if any is pinned.
    pub fn oldest(&self) -> Option<Epoch> {
        self.registry.lock().pinned.keys().next().copied()
    }
}

impl Pin {
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl Clone for Pin {
    fn clone(&self) -> Pin {
        *self.pins.registry.lock().pinned.entry(self.epoch).or_insert(0) += 1;
        Pin { pins: Arc::clone(&self.pins), epoch: self.epoch }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut registry = self.pins.registry.lock();
        if let Some(readers) = registry.pinned.get_mut(&self.epoch) {
            *readers -= 1;
            if *readers == 0 {
                registry.pinned.remove(&self.epoch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_follows_the_oldest_pin_and_never_goes_back() {
        let pins = Pins::new();
        let five = pins.pin(Epoch(5)).unwrap();
        let other = five.clone();
        let seven = pins.pin_latest(|| Epoch(7));
        assert_eq!((pins.count(), pins.oldest()), (3, Some(Epoch(5))));
        assert_eq!(pins.min_pinned(Epoch(9)), Epoch(5));
        drop(five);
        assert_eq!(pins.min_pinned(Epoch(9)), Epoch(5));
        drop(other);
        assert_eq!(pins.min_pinned(Epoch(9)), Epoch(7));
        assert_eq!(pins.pin(Epoch(6)).err().map(|e| e.state()), Some(SqlState::ObjectNotInPrerequisiteState));
        drop(seven);
        assert_eq!(pins.min_pinned(Epoch(9)), Epoch(9));
        assert_eq!(pins.pin_latest(|| Epoch(8)).epoch(), Epoch(9));
        assert_eq!((pins.count(), pins.oldest()), (0, None));
    }
}
