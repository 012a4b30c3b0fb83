//! What checkpoints keep of groups and of the calls over them, and what has changed in it since the last one.
//!
//! The format, for groups as for sessions: the first part has one row for each group, the parts after it belong to those calls
//! that keep values below the group. Every column may be NULL, as a deletion tells nothing beside its key.
//!
//! | part | key | other columns |
//! |---|---|---|
//! | `groups` | `key 0`, `key 1`, … (the group) | `rows` (bigint), then the columns of each call, see [`Saved::Columns`] |
//! | `sessions` | `key 0`, … (the partition), `opened` | `first`, `last` (timestamps), `rows`, the columns of each call |
//! | `values N` (of call N) | the key of the group, `value` | `count` (bigint): how often the value is there |
//!
//! The column of a field of call N is named `call N field`. Where input only ever grows, a count may be less than the number of
//! rows, but not zero: there it matters alone whether there are any.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, Int64Array, new_null_array};
use arrow::compute::concat;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use flow::process::{PartKind, StatePart};
use flow::{ChangeBatch, Diff, Error, Result, SqlState};

use super::Call;
use crate::ops::cells::Bits;
use crate::ops::emit::record;
use crate::ops::tracked::Marks;

/// Rows per batch of a checkpoint.
pub const CHUNK: usize = 1 << 16;
/// Of values below groups so much may wait for a checkpoint.
const EARLY_VALUES_BYTES: usize = if cfg!(test) { 200 } else { 2 << 20 };
/// What a field of a group's row takes, about.
const FIELD_BYTES: usize = 10;

/// Where checkpoints keep what an accumulator has.
pub enum Saved {
    /// In fields of the group's row.
    Columns(Vec<(&'static str, DataType)>),
    /// In a part of its own: values of this type, each with its count.
    Values(DataType),
}

/// Values below groups, with their counts; 0 says that a value is gone.
pub struct Values {
    pub groups: Vec<u32>,
    pub values: ArrayRef,
    pub counts: Vec<i64>,
}

pub fn damaged(what: &str) -> Error {
    Error::new(SqlState::DataCorrupted, "the state of an aggregate is damaged").with_detail(what.to_string())
}

/// The numbers of a column in which none is missing.
pub fn integers(column: &ArrayRef) -> Result<&[i64]> {
    let numbers = column.as_primitive_opt::<Int64Type>().filter(|n| n.null_count() == 0);
    numbers.map(|n| n.values().as_ref()).ok_or_else(|| damaged("A number is missing."))
}

/// The `N` numbers of each group in columns: the first `M` as bigint each, while all of them fit and the others are zero. Else
/// these are NULL and one more column has all `N`, 16 bytes each, little-endian.
pub fn save_numbers<const N: usize, const M: usize>(groups: &[u32], of: impl Fn(usize) -> [i128; N]) -> Vec<ArrayRef> {
    let mut short: [Vec<Option<i64>>; M] = std::array::from_fn(|_| Vec::with_capacity(groups.len()));
    let mut wide = BinaryBuilder::new();
    for group in groups {
        let numbers = of(*group as usize);
        let fits = numbers[..M].iter().all(|n| i64::try_from(*n).is_ok()) && numbers[M..].iter().all(|n| *n == 0);
        for (column, number) in short.iter_mut().zip(numbers) {
            column.push(i64::try_from(number).ok().filter(|_| fits));
        }
        if fits {
            wide.append_null();
        } else {
            wide.append_value(numbers.map(i128::to_le_bytes).concat());
        }
    }
    let mut columns: Vec<ArrayRef> = short.into_iter().map(|c| Arc::new(Int64Array::from(c)) as ArrayRef).collect();
    columns.push(Arc::new(wide.finish()));
    columns
}

/// Reads what [`save_numbers`] wrote: `put(row, numbers)`.
pub fn load_numbers<const N: usize, const M: usize>(
    columns: &[ArrayRef],
    mut put: impl FnMut(usize, [i128; N]),
) -> Result<()> {
    let wide = binary(&columns[M])?;
    for row in 0..wide.len() {
        let mut numbers = [0i128; N];
        if wide.is_null(row) {
            for (number, column) in numbers.iter_mut().zip(&columns[..M]) {
                let column = column.as_primitive_opt::<Int64Type>().filter(|c| c.is_valid(row));
                *number = column.map(|c| c.value(row).into()).ok_or_else(|| damaged("A number is missing."))?;
            }
        } else {
            let (parts, rest) = wide.value(row).as_chunks::<16>();
            if parts.len() != N || !rest.is_empty() {
                return Err(damaged("A wide number has another length."));
            }
            numbers.iter_mut().zip(parts).for_each(|(number, bytes)| *number = i128::from_le_bytes(*bytes));
        }
        put(row, numbers);
    }
    Ok(())
}

pub fn binary(column: &ArrayRef) -> Result<&BinaryArray> {
    column.as_binary_opt::<i32>().ok_or_else(|| damaged("A column has another type."))
}

/// Which of numbered pieces of state have changed since the last checkpoint, and which it has.
#[derive(Default)]
pub struct Tracked {
    changed: Marks,
    told: Bits,
}

impl Tracked {
    /// The checkpoint has this piece.
    pub fn tell(&mut self, piece: u32) {
        self.told.set(piece as usize, true);
    }

    #[inline(always)]
    pub fn mark(&mut self, piece: u32) {
        self.changed.set(piece);
    }

    /// The piece goes, and another may get its number, which marks it. Returns whether the checkpoint has it.
    pub fn forget(&mut self, piece: u32) -> bool {
        self.changed.clear(piece);
        let told = self.told.get(piece as usize);
        self.told.set(piece as usize, false);
        told
    }

    /// The changed pieces that are still there, or with `early` those that may well stay as they are. They count as told.
    pub fn take(&mut self, early: bool, lives: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut list = if early { self.changed.take_old() } else { self.changed.take() };
        list.retain(|piece| {
            let lives = lives(*piece);
            if lives {
                self.told.set(*piece as usize, true);
            }
            lives
        });
        list
    }

    pub fn bytes(&self) -> usize {
        self.changed.bytes() + self.told.bytes()
    }
}

/// The keys of rows of one part that a checkpoint has and that are gone.
#[derive(Default)]
struct Gone {
    keys: Vec<Vec<ArrayRef>>,
    rows: usize,
    bytes: usize,
}

impl Gone {
    fn push(&mut self, keys: Vec<ArrayRef>) {
        self.rows += keys.first().map_or(0, |k| k.len());
        self.bytes += keys.iter().map(|k| k.get_array_memory_size()).sum::<usize>();
        self.keys.push(keys);
    }

    /// The deletions of a part with this shape.
    fn take(&mut self, part: &StatePart) -> Result<Option<ChangeBatch>> {
        let Gone { keys, rows, .. } = std::mem::take(self);
        if rows == 0 {
            return Ok(None);
        }
        let mut columns = Vec::with_capacity(part.schema.fields().len());
        for (n, field) in part.schema.fields().iter().enumerate() {
            let pieces: Vec<&dyn Array> = keys.iter().filter_map(|k| k.get(n)).map(|k| k.as_ref()).collect();
            columns.push(if pieces.is_empty() { new_null_array(field.data_type(), rows) } else { concat(&pieces)? });
        }
        Ok(Some(ChangeBatch::delete(record(&part.schema, columns, rows)?)))
    }
}

/// The parts of a function over groups, and what has changed in them.
pub struct Checkpointed {
    parts: Vec<StatePart>,
    /// The calls that the parts after the first belong to.
    value_calls: Vec<usize>,
    /// `None` until changes are to be told.
    tracked: Option<Tracked>,
    /// By part.
    gone: Vec<Gone>,
}

impl Checkpointed {
    /// `keys` tell the groups apart, the first of them being the input's `columns`; `own` are the other columns of a group beside
    /// those of its calls.
    pub fn new(
        name: &'static str,
        keys: Vec<(String, DataType)>,
        own: Vec<(String, DataType)>,
        calls: &[Call],
        columns: &[usize],
    ) -> Checkpointed {
        let width = keys.len();
        let part = |name, fields: Vec<(String, DataType)>, key| {
            let fields: Vec<Field> = fields.into_iter().map(|(name, t)| Field::new(name, t, true)).collect();
            let schema = Arc::new(Schema::new(fields));
            StatePart { name, schema, kind: PartKind::Keyed { key }, port: 0, columns: columns.to_vec() }
        };
        let mut groups: Vec<(String, DataType)> = keys.iter().cloned().chain(own).collect();
        let (mut parts, mut value_calls) = (Vec::new(), Vec::new());
        for (n, call) in calls.iter().enumerate() {
            match call.accumulator.as_ref().map(|a| a.saved()) {
                None => {}
                Some(Saved::Columns(fields)) => {
                    groups.extend(fields.into_iter().map(|(field, t)| (format!("call {n} {field}"), t)));
                }
                Some(Saved::Values(value)) => {
                    let fields = [("value".to_string(), value), ("count".to_string(), DataType::Int64)];
                    let fields = keys.iter().cloned().chain(fields).collect();
                    parts.push(part(format!("values {n}").into(), fields, width + 1));
                    value_calls.push(n);
                }
            }
        }
        parts.insert(0, part(name.into(), groups, width));
        let gone = parts.iter().map(|_| Gone::default()).collect();
        Checkpointed { parts, value_calls, tracked: None, gone }
    }

    pub fn parts(&self) -> &[StatePart] {
        &self.parts
    }

    /// From now on changes are noted. `told` are the groups that the checkpoint has.
    pub fn track(&mut self, calls: &mut [Call], told: impl Iterator<Item = u32>) {
        let mut tracked = Tracked::default();
        told.for_each(|group| tracked.tell(group));
        self.tracked = Some(tracked);
        for accumulator in calls.iter_mut().filter_map(|c| c.accumulator.as_mut()) {
            accumulator.track();
        }
    }

    /// Where changed groups are marked, once they are to be told.
    #[inline(always)]
    pub fn changes(&mut self) -> Option<&mut Tracked> {
        self.tracked.as_mut()
    }

    /// The epoch's last row is in: lets the calls settle. `keys` gives the keys of groups.
    pub fn settle(&mut self, calls: &mut [Call], keys: impl Fn(&[u32]) -> Result<Vec<ArrayRef>>) -> Result<()> {
        for accumulator in calls.iter_mut().filter_map(|c| c.accumulator.as_mut()) {
            accumulator.settle()?;
        }
        self.note_values(calls, &keys)
    }

    /// Makes the calls forget `groups`, whose `keys` are still there, and notes what checkpoints have of them.
    pub fn forget(
        &mut self,
        groups: &[u32],
        calls: &mut [Call],
        keys: impl Fn(&[u32]) -> Result<Vec<ArrayRef>>,
    ) -> Result<()> {
        if groups.is_empty() {
            return Ok(());
        }
        for accumulator in calls.iter_mut().filter_map(|c| c.accumulator.as_mut()) {
            accumulator.clear(groups)?;
        }
        if let Some(tracked) = &mut self.tracked {
            let told: Vec<u32> = groups.iter().copied().filter(|g| tracked.forget(*g)).collect();
            if !told.is_empty() {
                self.gone[0].push(keys(&told)?);
            }
        }
        self.note_values(calls, &keys)
    }

    /// Notes values that are gone under the keys of their groups, before a group's number may be another's.
    fn note_values(&mut self, calls: &mut [Call], keys: &impl Fn(&[u32]) -> Result<Vec<ArrayRef>>) -> Result<()> {
        if self.tracked.is_none() {
            return Ok(());
        }
        for (call, gone) in self.value_calls.iter().zip(&mut self.gone[1..]) {
            let Some(accumulator) = &mut calls[*call].accumulator else { continue };
            for Values { groups, values, .. } in accumulator.gone()? {
                let mut columns = keys(&groups)?;
                columns.push(values);
                gone.push(columns);
            }
        }
        Ok(())
    }

    /// What [`flow::ProcessFunction::freeze`] tells, or `freeze_early`. `own` gives the columns of groups beside keys and calls.
    ///
    /// Deletions come first: of what is gone a new one of the same key may be there by now.
    pub fn freeze(
        &mut self,
        early: bool,
        calls: &mut [Call],
        lives: impl Fn(u32) -> bool,
        keys: impl Fn(&[u32]) -> Result<Vec<ArrayRef>>,
        own: impl Fn(&[u32]) -> Vec<ArrayRef>,
        out: &mut Vec<(usize, ChangeBatch)>,
    ) -> Result<()> {
        // Values that come and go are told together with those that went.
        let values = !early || self.values_bytes(calls) > EARLY_VALUES_BYTES;
        let Some(tracked) = &mut self.tracked else { return Ok(()) };
        for (n, (part, gone)) in
            self.parts.iter().zip(&mut self.gone).enumerate().take(if values { usize::MAX } else { 1 })
        {
            out.extend(gone.take(part)?.map(|deletions| (n, deletions)));
        }
        for groups in tracked.take(early, lives).chunks(CHUNK) {
            let mut columns = keys(groups)?;
            columns.extend(own(groups));
            for accumulator in calls.iter_mut().filter_map(|c| c.accumulator.as_mut()) {
                columns.extend(accumulator.save(groups)?);
            }
            out.push((0, ChangeBatch::insert(record(&self.parts[0].schema, columns, groups.len())?)));
        }
        for (n, call) in self.value_calls.iter().enumerate().filter(|_| values) {
            let Some(accumulator) = &mut calls[*call].accumulator else { continue };
            for Values { groups, values, counts } in accumulator.changed()? {
                let weights = counts.iter().map(|count| if *count == 0 { -1 } else { 1 }).collect();
                let mut columns = keys(&groups)?;
                columns.extend([values, Arc::new(Int64Array::from(counts)) as ArrayRef]);
                let rows = record(&self.parts[n + 1].schema, columns, groups.len())?;
                out.push((n + 1, ChangeBatch::new(rows, Diff::from_weights(weights))));
            }
        }
        Ok(())
    }

    /// Checks that rows of a checkpoint are of this part.
    pub fn check(&self, part: usize, rows: &ChangeBatch) -> Result<()> {
        let schema = &self.parts.get(part).ok_or_else(|| Error::internal("an aggregate has no such part"))?.schema;
        let columns = rows.rows.columns();
        let fits = columns.len() == schema.fields().len()
            && columns.iter().zip(schema.fields()).all(|(c, f)| c.data_type() == f.data_type());
        if fits && rows.diff == Diff::Insert { Ok(()) } else { Err(damaged("The rows are of another shape.")) }
    }

    /// Takes up the columns of a part beside keys and the function's own: row `i` is of `groups[i]`.
    pub fn load(&self, part: usize, calls: &mut [Call], groups: &[u32], mut columns: &[ArrayRef]) -> Result<()> {
        if let Some(call) = part.checked_sub(1).and_then(|n| self.value_calls.get(n)) {
            if integers(&columns[1])?.iter().any(|count| *count <= 0) || columns[0].logical_null_count() > 0 {
                return Err(damaged("A value is there less than once."));
            }
            return match &mut calls[*call].accumulator {
                Some(accumulator) => accumulator.load(groups, columns),
                None => Ok(()),
            };
        }
        for accumulator in calls.iter_mut().filter_map(|c| c.accumulator.as_mut()) {
            if let Saved::Columns(fields) = accumulator.saved() {
                let (now, later) = columns.split_at(fields.len());
                accumulator.load(groups, now)?;
                columns = later;
            }
        }
        Ok(())
    }

    /// Of values below groups: bytes held for checkpoints alone.
    fn values_bytes(&self, calls: &[Call]) -> usize {
        let calls = calls.iter().filter_map(|c| c.accumulator.as_ref()).map(|a| a.tracked_bytes()).sum::<usize>();
        calls + self.gone[1..].iter().map(|g| g.bytes).sum::<usize>()
    }

    /// About the bytes that are to be told.
    pub fn tracked_bytes(&self, calls: &[Call]) -> usize {
        let groups = self.tracked.as_ref().map_or(0, |t| t.changed.count()) * self.parts[0].schema.fields().len();
        self.values_bytes(calls) + self.gone[0].bytes + groups * FIELD_BYTES
    }

    pub fn bytes(&self) -> usize {
        self.tracked.as_ref().map_or(0, Tracked::bytes)
    }
}

/// Names for the key columns of a part.
pub fn key_columns(types: &[DataType]) -> Vec<(String, DataType)> {
    types.iter().enumerate().map(|(n, t)| (format!("key {n}"), t.clone())).collect()
}
