//! Processing time: the moment of a row's coming as a column, and rows that are there only for a time.
//!
//! What a row's epoch is is known when it ends, so both hold an epoch's rows until then.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, TimestampMicrosecondArray};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{filter, filter_record_batch};
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimestampMicrosecondType};
use flow::hash::hash_columns;
use flow::process::{Declaration, PartKind, StateDeclaration, StatePart};
use flow::{ChangeBatch, Collector, Diff, Epoch, Error, ProcessFunction, Result};

use super::cells::{BatchColumn, Bits};
use super::emit::{Outbox, check_types, record};
use super::row_table::RowTable;
use super::tracked::{Tracked, check_restored, damaged};
use super::{OpContext, changelog_violation};

/// Appends the processing time of a row's epoch.
pub struct ProcessingTime {
    input: SchemaRef,
    schema: SchemaRef,
    rows: Vec<ChangeBatch>,
    now_us: i64,
}

impl ProcessingTime {
    pub fn new(input: SchemaRef, schema: SchemaRef) -> ProcessingTime {
        ProcessingTime { input, schema, rows: Vec::new(), now_us: 0 }
    }
}

impl ProcessFunction for ProcessingTime {
    fn declare(&self) -> Declaration {
        Declaration::default()
    }

    fn process(&mut self, _port: usize, batch: ChangeBatch, _out: &mut dyn Collector) -> Result<()> {
        check_types(&batch, &self.input)?;
        self.rows.push(batch);
        Ok(())
    }

    fn on_time(&mut self, now_us: i64) -> Result<()> {
        self.now_us = now_us;
        Ok(())
    }

    fn finish_epoch(&mut self, _epoch: Epoch, out: &mut dyn Collector) -> Result<()> {
        for batch in std::mem::take(&mut self.rows) {
            let rows = batch.num_rows();
            let mut columns = batch.rows.columns().to_vec();
            columns.push(Arc::new(TimestampMicrosecondArray::from_value(self.now_us, rows).with_timezone("UTC")));
            out.emit(ChangeBatch::new(record(&self.schema, columns, rows)?, batch.diff));
        }
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        self.rows.iter().map(ChangeBatch::bytes).sum()
    }
}

/// Always there, from the beginning or to the end.
const NEVER_ENDS: i64 = i64::MAX;

/// Rows that are there from the latest of some columns on, and until the earliest of others.
///
/// A row that ends is kept to be taken away; one that has not begun, to be brought. What has begun and never ends passes.
pub struct TemporalFilter {
    input: SchemaRef,
    from: Vec<(usize, i64)>,
    until: Vec<(usize, i64)>,
    /// Changes of the epoch.
    arrived: Vec<ChangeBatch>,
    now_us: i64,
    /// Distinct rows that will come or go.
    rows: RowTable,
    /// By row: how often it is there, when it begins and ends, and whether it has begun.
    counts: Vec<i64>,
    from_us: Vec<i64>,
    until_us: Vec<i64>,
    begun: Bits,
    /// Rows by when they begin, of those that have not, and by when they end, of those that have. A row that was taken away is
    /// still here, and so is its number when it serves another: what counts is what stands by the row.
    begins: BTreeMap<i64, Vec<u32>>,
    ends: BTreeMap<i64, Vec<u32>>,
    deletes: Outbox,
    inserts: Outbox,
    tracked: Tracked,
    touched: u64,
    ids: Vec<u32>,
    fresh: Vec<u32>,
}

impl TemporalFilter {
    pub fn new(from: &[(usize, i64)], until: &[(usize, i64)], input: &SchemaRef, ctx: &OpContext) -> TemporalFilter {
        let types: Vec<DataType> = input.fields().iter().map(|f| f.data_type().clone()).collect();
        TemporalFilter {
            input: Arc::clone(input),
            from: from.to_vec(),
            until: until.to_vec(),
            arrived: Vec::new(),
            now_us: i64::MIN,
            rows: RowTable::new(&types, true),
            counts: Vec::new(),
            from_us: Vec::new(),
            until_us: Vec::new(),
            begun: Bits::default(),
            begins: BTreeMap::new(),
            ends: BTreeMap::new(),
            deletes: Outbox::new(Arc::clone(input), ctx.batch_rows),
            inserts: Outbox::new(Arc::clone(input), ctx.batch_rows),
            tracked: Tracked::default(),
            touched: 0,
            ids: Vec::new(),
            fresh: Vec::new(),
        }
    }

    /// For each row of a batch the moment that the columns of `bounds` give together.
    fn moments(batch: &ChangeBatch, bounds: &[(usize, i64)], none: i64, pick: fn(i64, i64) -> i64) -> Result<Vec<i64>> {
        let mut moments = vec![none; batch.num_rows()];
        for (column, shift_us) in bounds {
            let times =
                batch.rows.columns().get(*column).and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
            let times = times.ok_or_else(|| Error::internal("now() is compared with a column that is no timestamp"))?;
            for (moment, time) in moments.iter_mut().zip(times.values()) {
                *moment = pick(*moment, time.saturating_add(*shift_us));
            }
        }
        Ok(moments)
    }

    /// Brings and takes away the rows whose moment has come.
    fn pass_time(&mut self, out: &mut dyn Collector) -> Result<()> {
        while let Some(entry) = self.begins.first_entry().filter(|e| *e.key() <= self.now_us) {
            let mut due = entry.remove();
            // The number of a row that was taken away and came again is here twice.
            due.sort_unstable();
            due.dedup();
            let now_us = self.now_us;
            let (mut come, mut over) = (Vec::new(), Vec::new());
            for id in due {
                let i = id as usize;
                if self.counts[i] == 0 || self.begun.get(i) || self.from_us[i] > now_us {
                    continue;
                }
                // One that begins and ends between two epochs was never seen.
                if self.until_us[i] > now_us {
                    self.begun.set(i, true);
                    come.push(id);
                }
                match self.until_us[i] {
                    NEVER_ENDS => over.push(id),
                    until if until > now_us => self.ends.entry(until).or_default().push(id),
                    _ => over.push(id),
                }
            }
            self.emit(&come, 1, out)?;
            self.tell_gone(&over)?;
            over.into_iter().for_each(|id| self.forget(id));
        }
        while let Some(entry) = self.ends.first_entry().filter(|e| *e.key() <= self.now_us) {
            let (until, mut due) = entry.remove_entry();
            due.sort_unstable();
            due.dedup();
            due.retain(|id| {
                self.counts[*id as usize] != 0 && self.begun.get(*id as usize) && self.until_us[*id as usize] == until
            });
            self.emit(&due, -1, out)?;
            self.tell_gone(&due)?;
            due.into_iter().for_each(|id| self.forget(id));
        }
        Ok(())
    }

    fn emit(&mut self, ids: &[u32], sign: i64, out: &mut dyn Collector) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        self.touched += ids.len() as u64;
        let weights = ids.iter().map(|id| sign * self.counts[*id as usize]).collect();
        let outbox = if sign > 0 { &mut self.inserts } else { &mut self.deletes };
        outbox.push(self.rows.gather_all(ids)?, ids.len(), Diff::from_weights(weights), out)
    }

    /// Tells the checkpoint that rows are not kept any longer.
    fn tell_gone(&mut self, ids: &[u32]) -> Result<()> {
        if !self.tracked.is_on() || ids.is_empty() {
            return Ok(());
        }
        let diff = Diff::from_weights(ids.iter().map(|id| -self.counts[*id as usize]).collect());
        self.tracked.push(0, &self.input, &self.rows.gather_all(ids)?, ids.len(), diff)
    }

    fn forget(&mut self, id: u32) {
        self.rows.remove(id);
        self.counts[id as usize] = 0;
        self.begun.set(id as usize, false);
    }

    /// Takes rows into the state, which begin and end at `moments`. Fills `ids` and `fresh`.
    fn keep(&mut self, batch: &ChangeBatch, moments: &[(i64, i64)]) -> Result<()> {
        let columns: Vec<ArrayRef> = batch.rows.columns().to_vec();
        let hashes = hash_columns(&columns, batch.num_rows())?;
        self.rows.upsert(&BatchColumn::all(&columns)?, &hashes, &mut self.ids, &mut self.fresh)?;
        let size = self.rows.size();
        for all in [&mut self.counts, &mut self.from_us, &mut self.until_us] {
            all.resize(size, 0);
        }
        for i in &self.fresh {
            let id = self.ids[*i as usize] as usize;
            (self.from_us[id], self.until_us[id]) = moments[*i as usize];
        }
        for (i, id) in self.ids.iter().enumerate() {
            self.counts[*id as usize] += batch.diff.weight(i);
        }
        Ok(())
    }

    /// Takes the changes of one batch.
    fn take(&mut self, batch: ChangeBatch, out: &mut dyn Collector) -> Result<()> {
        let valid = self.from.iter().chain(&self.until).filter_map(|(c, _)| batch.rows.column(*c).logical_nulls());
        let valid = valid.map(|n| n.into_inner()).reduce(|a, b| &a & &b);
        let batch = match valid.filter(|v| v.count_set_bits() < batch.num_rows()) {
            Some(valid) => only(&batch, &valid)?,
            None => batch,
        };
        let from = Self::moments(&batch, &self.from, i64::MIN, i64::max)?;
        let until = Self::moments(&batch, &self.until, NEVER_ENDS, i64::min)?;
        let (rows, now_us) = (batch.num_rows(), self.now_us);
        let lives = |i: usize| from[i] <= now_us && now_us < until[i];
        let there = BooleanBuffer::collect_bool(rows, lives);
        // What is over, or never is, needs nothing; what has begun and never ends is not kept.
        let kept = BooleanBuffer::collect_bool(rows, |i| {
            now_us < until[i] && from[i] < until[i] && (until[i] != NEVER_ENDS || from[i] > now_us)
        });
        if kept.count_set_bits() > 0 {
            let batch = only(&batch, &kept)?;
            self.tracked.push(0, &self.input, batch.rows.columns(), batch.num_rows(), batch.diff.clone())?;
            let moments: Vec<(i64, i64)> = kept.set_indices().map(|i| (from[i], until[i])).collect();
            self.keep(&batch, &moments)?;
            for i in &self.fresh {
                let id = self.ids[*i as usize];
                let (from_us, until_us) = moments[*i as usize];
                if from_us <= now_us {
                    self.begun.set(id as usize, true);
                    self.ends.entry(until_us).or_default().push(id);
                } else {
                    self.begins.entry(from_us).or_default().push(id);
                }
            }
            self.touched += self.ids.len() as u64;
        }
        match there.count_set_bits() {
            0 => Ok(()),
            all if all == rows => {
                out.emit(batch);
                Ok(())
            }
            _ => {
                out.emit(only(&batch, &there)?);
                Ok(())
            }
        }
    }
}

/// The rows of `batch` in `mask`.
fn only(batch: &ChangeBatch, mask: &BooleanBuffer) -> Result<ChangeBatch> {
    let mask = BooleanArray::new(mask.clone(), None);
    let rows = filter_record_batch(&batch.rows, &mask)?;
    let diff = match &batch.diff {
        Diff::Weights(w) => {
            let kept = filter(&Int64Array::new(w.clone(), None), &mask)?;
            Diff::from_weights(kept.as_primitive::<Int64Type>().values().to_vec())
        }
        same => same.clone(),
    };
    Ok(ChangeBatch::new(rows, diff))
}

impl ProcessFunction for TemporalFilter {
    fn declare(&self) -> Declaration {
        let rows = StateDeclaration {
            name: "rows",
            key: self.input.fields().iter().map(|f| f.data_type().clone()).collect(),
            holds: "number of rows, begin, end".into(),
            bounded_by: (!self.until.is_empty()).then(|| "the clock".into()),
        };
        Declaration { states: vec![rows], timers: true }
    }

    fn process(&mut self, _port: usize, batch: ChangeBatch, _out: &mut dyn Collector) -> Result<()> {
        check_types(&batch, &self.input)?;
        self.arrived.push(batch);
        Ok(())
    }

    fn on_time(&mut self, now_us: i64) -> Result<()> {
        self.now_us = self.now_us.max(now_us);
        Ok(())
    }

    fn finish_epoch(&mut self, _epoch: Epoch, out: &mut dyn Collector) -> Result<()> {
        self.pass_time(out)?;
        let mut met: Vec<u32> = Vec::new();
        for batch in std::mem::take(&mut self.arrived) {
            self.ids.clear();
            self.take(batch, out)?;
            met.extend(&self.ids);
        }
        met.sort_unstable();
        met.dedup();
        for id in met {
            match self.counts[id as usize] {
                0 => self.forget(id),
                ..0 => return Err(changelog_violation("a row that is there for a time")),
                _ => {}
            }
        }
        self.deletes.flush(out)?;
        self.inserts.flush(out)
    }

    fn parts(&self) -> Vec<StatePart> {
        let columns = (0..self.input.fields().len()).collect();
        let schema = Arc::clone(&self.input);
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
        check_restored(&rows, &self.input)?;
        let from = Self::moments(&rows, &self.from, i64::MIN, i64::max)?;
        let until = Self::moments(&rows, &self.until, NEVER_ENDS, i64::min)?;
        let moments: Vec<(i64, i64)> = from.into_iter().zip(until).collect();
        self.keep(&rows, &moments)
    }

    fn restored(&mut self, _watermarks_us: &[i64], now_us: i64) -> Result<()> {
        self.now_us = now_us;
        for id in 0..self.counts.len() as u32 {
            let (from_us, until_us) = (self.from_us[id as usize], self.until_us[id as usize]);
            // What had begun by that time was shown, and what was over or would stay for ever was not kept.
            let begun = from_us <= now_us;
            if until_us <= now_us || (begun && until_us == NEVER_ENDS) {
                return Err(damaged("It has a row that is over."));
            }
            self.begun.set(id as usize, begun);
            let (moments, moment) = if begun { (&mut self.ends, until_us) } else { (&mut self.begins, from_us) };
            moments.entry(moment).or_default().push(id);
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<i64> {
        [&self.begins, &self.ends].into_iter().filter_map(|moments| moments.keys().next().copied()).min()
    }

    fn state_bytes(&self) -> usize {
        let numbers: usize = [&self.begins, &self.ends].iter().map(|m| m.len() * 48).sum();
        self.rows.bytes()
            + self.counts.capacity() * 28
            + self.arrived.iter().map(ChangeBatch::bytes).sum::<usize>()
            + numbers
            + self.tracked.bytes()
    }

    fn rows_touched(&self) -> u64 {
        self.touched
    }
}
