//! Where a job ends: the view store, or the way out to a sink.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::SchemaRef;
use flow::process::{PartKind, StateDeclaration, StatePart};
use flow::{ChangeBatch, Collector, Declaration, Diff, Epoch, ProcessFunction, RelationId, Result, SlotId};
use parking_lot::RwLock;
use plan::ChangeKind;
use state::{Store, owned};

use crate::ops::consolidate;
use crate::ops::emit::record;
use crate::ops::tracked::{Tracked, check_restored};

/// The view stores of one worker, by relation: written by the slots, read by whoever pins an epoch.
#[derive(Clone, Default)]
pub struct Stores(Arc<RwLock<HashMap<RelationId, Arc<Store>>>>);

impl Stores {
    /// The store of a relation, if one exists.
    pub fn get(&self, relation: RelationId) -> Option<Arc<Store>> {
        self.0.read().get(&relation).cloned()
    }

    /// The store that all slots of one deployment share: made by the first slot that asks. The coordinator removes the
    /// store of an earlier deployment first.
    pub fn create(
        &self,
        relation: RelationId,
        schema: &SchemaRef,
        key: Option<Vec<usize>>,
        shards: usize,
    ) -> Result<Arc<Store>> {
        let mut stores = self.0.write();
        if let Some(store) = stores.get(&relation) {
            return Ok(Arc::clone(store));
        }
        let store = Store::new(Arc::clone(schema), key, shards)?;
        stores.insert(relation, Arc::clone(&store));
        Ok(store)
    }

    /// Puts an empty store in the place of a relation's, for another deployment of the same job that goes on after `epoch`; see
    /// [`Store::successor`].
    pub fn succeed(&self, relation: RelationId, epoch: Epoch) {
        let mut stores = self.0.write();
        if let Some(store) = stores.get_mut(&relation) {
            *store = store.successor(epoch);
        }
    }

    /// Forgets a store; readers that hold it keep it.
    pub fn remove(&self, relation: RelationId) {
        self.0.write().remove(&relation);
    }

    /// Every store, in no particular order.
    pub fn all(&self) -> Vec<(RelationId, Arc<Store>)> {
        self.0.read().iter().map(|(id, store)| (*id, Arc::clone(store))).collect()
    }
}

/// The terminal function of a materialized view on one slot: nets the changes of a tick, writes them to the slot's shard
/// of the store, and emits them for readers downstream.
///
/// `floor` is the oldest epoch that readers may still want. Restored rows are there before every epoch: the store can be read
/// at any that follows the checkpoint.
pub fn materialize(
    store: Arc<Store>,
    schema: &SchemaRef,
    slot: SlotId,
    floor: Arc<AtomicU64>,
) -> Box<dyn ProcessFunction> {
    let schema = Arc::clone(schema);
    let (shard, tracked) = (slot.0 as usize, Tracked::default());
    Box::new(Materialize { store, schema, shard, floor, pending: Vec::new(), bytes: 0, tracked })
}

struct Materialize {
    store: Arc<Store>,
    schema: SchemaRef,
    shard: usize,
    floor: Arc<AtomicU64>,
    pending: Vec<ChangeBatch>,
    bytes: usize,
    tracked: Tracked,
}

impl ProcessFunction for Materialize {
    fn declare(&self) -> Declaration {
        let key = self.schema.fields().iter().map(|f| f.data_type().clone()).collect();
        let rows = StateDeclaration { name: "view", key, holds: "the view's rows".into(), bounded_by: None };
        Declaration { states: vec![rows], timers: false }
    }

    fn process(&mut self, _port: usize, batch: ChangeBatch, _out: &mut dyn Collector) -> Result<()> {
        self.bytes += batch.bytes();
        self.pending.push(batch);
        Ok(())
    }

    fn finish_epoch(&mut self, epoch: Epoch, out: &mut dyn Collector) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.bytes = 0;
        let net = net_change(std::mem::take(&mut self.pending), &self.schema)?;
        if net.num_rows() > 0 {
            // In memory of its own once, which the store and the checkpoint share.
            let columns = net.rows.columns().iter().map(owned).collect::<Result<Vec<_>>>()?;
            let net = ChangeBatch::new(record(&self.schema, columns, net.num_rows())?, net.diff);
            self.store.apply(self.shard, epoch, &net)?;
            // A job that lags writes epochs below the global floor.
            let floor = Epoch(self.floor.load(Ordering::Acquire)).min(epoch);
            self.store.maintain_shard(self.shard, floor)?;
            self.tracked.push(0, &self.schema, net.rows.columns(), net.num_rows(), net.diff.clone())?;
            out.emit(net);
        }
        Ok(())
    }

    fn parts(&self) -> Vec<StatePart> {
        let columns = (0..self.schema.fields().len()).collect();
        let schema = Arc::clone(&self.schema);
        vec![StatePart { name: "rows".into(), schema, kind: PartKind::Counted, port: 0, columns }]
    }

    fn track(&mut self) {
        self.tracked.start();
    }

    fn freeze(&mut self, out: &mut Vec<(usize, ChangeBatch)>) -> Result<()> {
        self.tracked.tell(out);
        Ok(())
    }

    fn tracked_bytes(&self) -> usize {
        self.tracked.bytes()
    }

    fn restore(&mut self, _part: usize, rows: ChangeBatch) -> Result<()> {
        check_restored(&rows, &self.schema)?;
        self.store.apply(self.shard, Epoch(0), &rows)
    }

    fn state_bytes(&self) -> usize {
        // The shard is a share of the store; an even split is close enough for a budget.
        self.bytes + self.tracked.bytes() + self.store.bytes() / self.store.shards().max(1)
    }
}

/// The terminal function of a sink on one slot: emits the net change of a tick at its end.
pub fn deliver(schema: &SchemaRef, kind: ChangeKind) -> Box<dyn ProcessFunction> {
    Box::new(Deliver { schema: Arc::clone(schema), kind, pending: Vec::new(), bytes: 0 })
}

struct Deliver {
    schema: SchemaRef,
    kind: ChangeKind,
    pending: Vec<ChangeBatch>,
    bytes: usize,
}

impl ProcessFunction for Deliver {
    fn declare(&self) -> Declaration {
        Declaration::default()
    }

    fn process(&mut self, _port: usize, batch: ChangeBatch, out: &mut dyn Collector) -> Result<()> {
        if self.kind == ChangeKind::AppendOnly {
            out.emit(batch);
        } else {
            self.bytes += batch.bytes();
            self.pending.push(batch);
        }
        Ok(())
    }

    fn finish_epoch(&mut self, _epoch: Epoch, out: &mut dyn Collector) -> Result<()> {
        self.bytes = 0;
        if !self.pending.is_empty() {
            out.emit(net_change(std::mem::take(&mut self.pending), &self.schema)?);
        }
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        self.bytes
    }
}

/// The net change of a tick. Pure insertions need no netting: nothing can cancel.
fn net_change(pending: Vec<ChangeBatch>, schema: &SchemaRef) -> Result<ChangeBatch> {
    if pending.iter().all(|b| b.diff == Diff::Insert) {
        ChangeBatch::concat(schema, &pending)
    } else {
        consolidate(pending, schema)
    }
}
