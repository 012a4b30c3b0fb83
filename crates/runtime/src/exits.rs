//! The ways out of a slot: to the slots of its peers, and to the coordinator.
//!
//! Whoever steps a machine sends on what it has to say to others, so that a machine that is lent to the background stays there
//! while it works: to go back to the slot with every batch would cost two changes of threads for each.

use flow::{ChangeBatch, RelationId, Result, SlotId};
use tracing::warn;

use crate::freeze::Frozen;
use crate::job::{End, Machine, Outgoing, Work, WorkKind, task_id};
use crate::message::{DeploymentId, FromSlot, Owed, Tick, ToSlot};
use crate::slot::Reports;
use crate::worker::Outbox;

/// What a machine leaves to its slot.
#[derive(Debug)]
pub enum ForSlot {
    /// Net changes of a view at a tick, for the jobs that read it.
    Published { view: RelationId, tick: Tick, changes: Vec<ChangeBatch> },
    /// Changes of the state, for the depot.
    Frozen(Frozen),
    /// See [`Outgoing::Finished`].
    Finished { tick: Tick, now_us: i64, watermark_us: i64 },
}

#[derive(Clone)]
pub struct Exits {
    pub slot: SlotId,
    /// By slot, with the own one.
    pub peers: Vec<Outbox>,
    pub reports: Reports,
}

impl Exits {
    /// Lets `machine` do one piece of work and sends on what goes to other slots or to a sink; what only its slot can do comes into
    /// `left`. False: there is nothing to do now. Errors: those of the work, by which the job ends.
    pub fn step(&self, deployment: DeploymentId, machine: &mut Machine, left: &mut Vec<ForSlot>) -> Result<bool> {
        let (mut out, mut freed) = (Vec::new(), false);
        let stepped = machine.step(&mut out, &mut freed);
        if freed {
            // Slots of other processes wait for what is given back to them.
            for peer in self.peers.iter().filter(|peer| peer.is_here()) {
                peer.send(ToSlot::Wake);
            }
        }
        let worked = stepped?;
        for outgoing in out {
            left.extend(self.send_on(deployment, machine, outgoing)?);
        }
        Ok(worked)
    }

    fn send_on(&self, deployment: DeploymentId, machine: &mut Machine, outgoing: Outgoing) -> Result<Option<ForSlot>> {
        let own = self.slot.0 as usize;
        match outgoing {
            Outgoing::Rows { slot, task, port, tick, changes } => {
                let counted = machine.count(deployment, slot, task, &changes);
                if slot == own {
                    machine.enqueue(Work { task, port, tick, kind: WorkKind::rows(changes) });
                    return Ok(None);
                }
                let (task, port, owed) = (task_id(task), port as u16, Owed::default());
                let rows = ToSlot::Exchange { deployment, task, port, tick, changes, owed };
                if !self.peers[slot].send_rows(rows, counted)? {
                    warn!(slot, "peer slot is gone");
                }
            }
            Outgoing::Barrier { slot, task, port, tick, now_us, watermark_us } => {
                if slot == own {
                    let kind = WorkKind::Barrier { then: None, now_us, watermark_us };
                    machine.enqueue(Work { task, port, tick, kind });
                    return Ok(None);
                }
                let (task, port) = (task_id(task), port as u16);
                let barrier = ToSlot::ExchangeBarrier { deployment, task, port, tick, now_us, watermark_us };
                if !self.peers[slot].send(barrier) {
                    warn!(slot, "peer slot is gone");
                }
            }
            Outgoing::Result { tick, changes } => match machine.end {
                End::View(view) => return Ok(Some(ForSlot::Published { view, tick, changes })),
                End::Sink(sink) => {
                    for changes in changes {
                        let changes = Some(changes);
                        (self.reports)(FromSlot::Deliver { slot: self.slot, deployment, sink, tick, changes });
                    }
                }
            },
            Outgoing::Frozen(frozen) => return Ok(Some(ForSlot::Frozen(frozen))),
            Outgoing::Finished { tick, now_us, watermark_us } => {
                return Ok(Some(ForSlot::Finished { tick, now_us, watermark_us }));
            }
        }
        Ok(None)
    }
}
