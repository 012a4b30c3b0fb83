//! What an aggregate keeps per group: one typed column per field, updated a batch at a time, linear under retraction.

use std::borrow::Borrow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, PrimitiveArray};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::compute::cast;
use arrow::datatypes::*;
use flow::{Diff, Error, Result, SqlState};
use hashbrown::HashMap;
use plan::ChangeKind;
use plan::functions::aggregate::average;
use plan::stream::{AggCall, AggFunction};

use super::distinct::Distinct;
use super::exact_sum::ExactSums;
use super::extreme::{self, Form, Ordered, Sortable};
use super::saved::{CHUNK, Saved, Values, damaged, integers, load_numbers, save_numbers};
use crate::ops::changelog_violation;
use crate::ops::multiset::Multiset;

/// One aggregate call over all groups of an instance. Groups are dense numbers; a number is cleared before it is reused.
pub trait Accumulator: Send {
    /// Makes room for groups `0 .. groups`.
    fn resize(&mut self, groups: usize);

    /// Adds rows: row `i` of `arg` belongs to `groups[i]` and counts `diff.weight(i)` times. Rows outside `keep` (NULL
    /// arguments, rows that the call's FILTER drops) are passed over.
    fn update(&mut self, groups: &[u32], arg: &ArrayRef, keep: Option<&BooleanBuffer>, diff: &Diff) -> Result<()>;

    /// The epoch's last `update` is done; called once before `evaluate` reads the epoch's result.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    /// The results of `groups`, in that order. Between an epoch's first `update` and its `settle`, only groups that the
    /// epoch has not touched may be evaluated.
    fn evaluate(&mut self, groups: &[u32]) -> Result<ArrayRef>;

    /// Adds the rows of group `from`, which is cleared after the epoch's `settle`, to group `into`. Only over append-only input.
    fn merge(&mut self, from: u32, into: u32) -> Result<()>;

    /// Forgets groups.
    fn clear(&mut self, groups: &[u32]) -> Result<()>;

    fn bytes(&self) -> usize;

    /// Where checkpoints keep what is here; constant.
    fn saved(&self) -> Saved;

    /// The fields of `groups`, in the order of [`Saved::Columns`]; nothing for [`Saved::Values`].
    fn save(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>>;

    /// Takes up what checkpoints keep: fields of `groups` that are new, or for [`Saved::Values`] values and their counts. The
    /// groups count as touched until [`settle`](Self::settle).
    fn load(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Result<()>;

    /// From now on changes of values are to be told.
    fn track(&mut self) {}

    /// Values that checkpoints have and that have gone for good since the last call, which is before the numbers of their groups
    /// are given to others.
    fn gone(&mut self) -> Result<Vec<Values>> {
        Ok(Vec::new())
    }

    /// The other values that have changed since the last call, each once. Comes after [`gone`](Self::gone).
    fn changed(&mut self) -> Result<Vec<Values>> {
        Ok(Vec::new())
    }

    /// Bytes held only for the two.
    fn tracked_bytes(&self) -> usize {
        0
    }

    /// Entries of state below the group read or written since the start.
    fn touched(&self) -> u64 {
        0
    }
}

/// An accumulator for `call` over an argument of type `arg` (for `count(*)` any type).
pub fn accumulator(call: &AggCall, arg: &DataType, kind: ChangeKind) -> Result<Box<dyn Accumulator>> {
    let plain = plain(call, arg, kind)?;
    let multiplicity_matters = matches!(call.function, AggFunction::Count | AggFunction::Sum | AggFunction::Avg);
    Ok(if call.distinct && multiplicity_matters { Box::new(Distinct::new(arg, kind, plain)) } else { plain })
}

fn plain(call: &AggCall, arg: &DataType, kind: ChangeKind) -> Result<Box<dyn Accumulator>> {
    let refuse = || Error::unsupported(format!("{:?} of type {arg} is not supported", call.function));
    Ok(match call.function {
        AggFunction::Count => Box::new(Count::default()),
        AggFunction::Sum | AggFunction::Avg => match arg {
            DataType::Float32 | DataType::Float64 => {
                Box::new(FloatSum::new(call.function == AggFunction::Avg, call.output.clone()))
            }
            DataType::Interval(IntervalUnit::MonthDayNano) if call.function == AggFunction::Sum => {
                Box::new(IntervalSum::default())
            }
            integer if integer.is_integer() || matches!(integer, DataType::Decimal128(_, _)) => {
                Box::new(IntegerSum::new(integer, call)?)
            }
            _ => return Err(refuse()),
        },
        AggFunction::Min | AggFunction::Max => {
            let greatest = call.function == AggFunction::Max;
            let data_type = arg.clone();
            match (extreme::form(arg), kind) {
                (Form::Small, ChangeKind::AppendOnly) => Box::new(Best::<extreme::Small>::new(data_type, greatest)),
                (Form::Wide, ChangeKind::AppendOnly) => Box::new(Best::<extreme::Wide>::new(data_type, greatest)),
                (Form::Bytes, ChangeKind::AppendOnly) => Box::new(Best::<extreme::Bytes>::new(data_type, greatest)),
                (Form::Small, ChangeKind::Retract) => Box::new(Ranked::<extreme::Small>::new(data_type, greatest)),
                (Form::Wide, ChangeKind::Retract) => Box::new(Ranked::<extreme::Wide>::new(data_type, greatest)),
                (Form::Bytes, ChangeKind::Retract) => Box::new(Ranked::<extreme::Bytes>::new(data_type, greatest)),
            }
        }
        AggFunction::BoolAnd | AggFunction::BoolOr if *arg == DataType::Boolean => {
            Box::new(BoolCounts { and: call.function == AggFunction::BoolAnd, ..BoolCounts::default() })
        }
        AggFunction::BoolAnd | AggFunction::BoolOr => return Err(refuse()),
    })
}

/// Calls `f(row, weight)` for every row of `0 .. rows` in `keep`. Compiled once per form, so that the common forms have
/// constant weights and no bit tests.
#[inline(always)]
pub fn each(rows: usize, keep: Option<&BooleanBuffer>, diff: &Diff, mut f: impl FnMut(usize, i64)) {
    match (keep, diff) {
        (None, Diff::Insert) => (0..rows).for_each(|i| f(i, 1)),
        (None, Diff::Delete) => (0..rows).for_each(|i| f(i, -1)),
        (None, Diff::Weights(w)) => w.iter().enumerate().for_each(|(i, w)| f(i, *w)),
        (Some(keep), Diff::Insert) => keep.set_indices().for_each(|i| f(i, 1)),
        (Some(keep), Diff::Delete) => keep.set_indices().for_each(|i| f(i, -1)),
        (Some(keep), Diff::Weights(w)) => keep.set_indices().for_each(|i| f(i, w[i])),
    }
}

pub fn too_many_rows() -> Error {
    Error::new(SqlState::NumericValueOutOfRange, "the number of rows in a group is out of range")
}

/// Row counts per group that notice when they leave the range.
#[derive(Default)]
pub struct Counts(pub Vec<i64>);

impl Counts {
    pub fn update(&mut self, groups: &[u32], keep: Option<&BooleanBuffer>, diff: &Diff) -> Result<()> {
        let mut overflow = false;
        let counts = &mut self.0;
        each(groups.len(), keep, diff, |i, w| {
            let (sum, over) = counts[groups[i] as usize].overflowing_add(w);
            counts[groups[i] as usize] = sum;
            overflow |= over;
        });
        if overflow { Err(too_many_rows()) } else { Ok(()) }
    }

    /// Moves the rows of one group to another.
    pub fn merge(&mut self, from: u32, into: u32) -> Result<()> {
        let moved = std::mem::take(&mut self.0[from as usize]);
        let sum = self.0[into as usize].checked_add(moved).ok_or_else(too_many_rows)?;
        self.0[into as usize] = sum;
        Ok(())
    }

    fn clear(&mut self, groups: &[u32]) {
        groups.iter().for_each(|g| self.0[*g as usize] = 0);
    }

    /// The counts of `groups` as a column.
    pub fn save(&self, groups: &[u32]) -> ArrayRef {
        Arc::new(groups.iter().map(|g| self.0[*g as usize]).collect::<Int64Array>())
    }

    /// Takes up what [`save`](Self::save) wrote.
    fn load(&mut self, groups: &[u32], column: &ArrayRef) -> Result<()> {
        let counts = integers(column)?;
        if counts.iter().any(|n| *n < 0) {
            return Err(damaged("A count is negative."));
        }
        groups.iter().zip(counts).for_each(|(g, n)| self.0[*g as usize] = *n);
        Ok(())
    }

    /// The count of `group`, which at an epoch's end is not negative.
    fn settled(&self, group: u32) -> Result<i64> {
        let count = self.0[group as usize];
        if count < 0 { Err(changelog_violation("an aggregated value")) } else { Ok(count) }
    }
}

/// `count(x)`, and `count(*)` with a FILTER.
#[derive(Default)]
struct Count {
    counts: Counts,
}

impl Accumulator for Count {
    fn resize(&mut self, groups: usize) {
        self.counts.0.resize(groups, 0);
    }

    fn update(&mut self, groups: &[u32], _arg: &ArrayRef, keep: Option<&BooleanBuffer>, diff: &Diff) -> Result<()> {
        self.counts.update(groups, keep, diff)
    }

    fn evaluate(&mut self, groups: &[u32]) -> Result<ArrayRef> {
        let counts = groups.iter().map(|g| self.counts.settled(*g)).collect::<Result<Vec<i64>>>()?;
        Ok(Arc::new(Int64Array::from(counts)))
    }

    fn merge(&mut self, from: u32, into: u32) -> Result<()> {
        self.counts.merge(from, into)
    }

    fn clear(&mut self, groups: &[u32]) -> Result<()> {
        self.counts.clear(groups);
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.counts.0.capacity() * 8
    }

    fn saved(&self) -> Saved {
        Saved::Columns(vec![("count", DataType::Int64)])
    }

    fn save(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.counts.save(groups)])
    }

    fn load(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Result<()> {
        self.counts.load(groups, &columns[0])
    }
}

/// Exact sums of 128-bit numbers with 64-bit weights: what does not fit in 128 bits is counted aside in units of 2¹²⁸, so
/// that a sum may leave the range and come back.
#[derive(Default)]
struct WideSums {
    low: Vec<i128>,
    high: HashMap<u32, i128>,
}

impl WideSums {
    #[inline(always)]
    fn add(&mut self, group: u32, value: i128, weight: i64) {
        let low = &mut self.low[group as usize];
        if weight == 1 {
            let (sum, overflow) = low.overflowing_add(value);
            *low = sum;
            if overflow {
                self.carry(group, if value > 0 { 1 } else { -1 });
            }
        } else if weight == -1 {
            let (sum, overflow) = low.overflowing_sub(value);
            *low = sum;
            if overflow {
                self.carry(group, if value < 0 { 1 } else { -1 });
            }
        } else {
            self.add_product(group, value, weight);
        }
    }

    fn add_product(&mut self, group: u32, value: i128, weight: i64) {
        let (magnitude, factor) = (value.unsigned_abs(), weight.unsigned_abs() as u128);
        // 128 × 64 bits in two halves; a weight is at most 2⁶³, so neither half overflows.
        let lower = (magnitude & u64::MAX as u128) * factor;
        let upper = (magnitude >> 64) * factor + (lower >> 64);
        let term = ((upper << 64) | (lower & u64::MAX as u128)) as i128;
        let mut units = (upper >> 64) as i128 + i128::from(term < 0);
        let low = &mut self.low[group as usize];
        if (value < 0) != (weight < 0) {
            let (sum, overflow) = low.overflowing_sub(term);
            *low = sum;
            units = -units;
            if overflow {
                units += if term < 0 { 1 } else { -1 };
            }
        } else {
            let (sum, overflow) = low.overflowing_add(term);
            *low = sum;
            if overflow {
                units += if term > 0 { 1 } else { -1 };
            }
        }
        if units != 0 {
            self.carry(group, units);
        }
    }

    #[cold]
    fn carry(&mut self, group: u32, units: i128) {
        let high = self.high.entry(group).or_default();
        *high += units;
        if *high == 0 {
            self.high.remove(&group);
        }
    }

    fn merge(&mut self, from: u32, into: u32) {
        let (low, high) = (std::mem::take(&mut self.low[from as usize]), self.high.remove(&from));
        self.add(into, low, 1);
        if let Some(units) = high {
            self.carry(into, units);
        }
    }

    /// The sum, if 128 bits hold it.
    fn value(&self, group: u32) -> Option<i128> {
        if !self.high.is_empty() && self.high.contains_key(&group) { None } else { Some(self.low[group as usize]) }
    }

    fn clear(&mut self, groups: &[u32]) {
        for group in groups {
            self.low[*group as usize] = 0;
            if !self.high.is_empty() {
                self.high.remove(group);
            }
        }
    }

    fn save(&self, groups: &[u32]) -> Vec<ArrayRef> {
        save_numbers::<2, 1>(groups, |g| {
            let high = if self.high.is_empty() { 0 } else { self.high.get(&(g as u32)).copied().unwrap_or(0) };
            [self.low[g], high]
        })
    }

    fn load(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Result<()> {
        load_numbers::<2, 1>(columns, |row, [low, high]| {
            self.low[groups[row] as usize] = low;
            if high != 0 {
                self.high.insert(groups[row], high);
            }
        })
    }
}

/// What an integer or decimal sum becomes when it is read.
enum Reading {
    Int64,
    UInt64,
    /// Times `factor`, as a decimal of this precision and scale.
    Decimal {
        factor: i128,
        precision: u8,
        scale: i8,
    },
    /// `sum ÷ divisor ÷ count`.
    FloatAverage {
        divisor: f64,
    },
    /// `sum ÷ count` with so many more digits than the sum has, as ad-hoc queries compute it.
    DecimalAverage {
        digits: u8,
        precision: u8,
        scale: i8,
    },
}

/// `sum` and `avg` of integers and decimals, exact.
struct IntegerSum {
    sums: WideSums,
    counts: Counts,
    reading: Reading,
}

fn power_of_ten(exponent: i32) -> Option<i128> {
    u32::try_from(exponent).ok().and_then(|e| 10i128.checked_pow(e))
}

impl IntegerSum {
    fn new(arg: &DataType, call: &AggCall) -> Result<IntegerSum> {
        let arg_scale = if let DataType::Decimal128(_, scale) = arg { *scale } else { 0 };
        let refuse =
            || Error::unsupported(format!("{:?} of type {arg} as {} is not supported", call.function, call.output));
        let average = call.function == AggFunction::Avg;
        let reading = match &call.output {
            DataType::Int64 if !average && arg_scale == 0 => Reading::Int64,
            DataType::UInt64 if !average && arg_scale == 0 => Reading::UInt64,
            DataType::Decimal128(precision, scale) => {
                let digits = u8::try_from(*scale as i32 - arg_scale as i32).map_err(|_| refuse())?;
                let factor = power_of_ten(digits.into()).ok_or_else(refuse)?;
                let (precision, scale) = (*precision, *scale);
                if average {
                    Reading::DecimalAverage { digits, precision, scale }
                } else {
                    Reading::Decimal { factor, precision, scale }
                }
            }
            DataType::Float64 if average => Reading::FloatAverage { divisor: 10f64.powi(arg_scale as i32) },
            _ => return Err(refuse()),
        };
        Ok(IntegerSum { sums: WideSums::default(), counts: Counts::default(), reading })
    }
}

fn numeric_overflow(message: &str) -> Error {
    Error::new(SqlState::NumericValueOutOfRange, message)
}

impl Accumulator for IntegerSum {
    fn resize(&mut self, groups: usize) {
        self.sums.low.resize(groups, 0);
        self.counts.0.resize(groups, 0);
    }

    fn update(&mut self, groups: &[u32], arg: &ArrayRef, keep: Option<&BooleanBuffer>, diff: &Diff) -> Result<()> {
        self.counts.update(groups, keep, diff)?;
        let sums = &mut self.sums;
        macro_rules! add {
            ($array:expr, $t:ty) => {{
                let array = $array;
                let values = array.as_primitive::<$t>().values();
                each(groups.len(), keep, diff, |i, w| sums.add(groups[i], values[i] as i128, w))
            }};
        }
        match arg.data_type() {
            DataType::Int64 => add!(arg, Int64Type),
            DataType::UInt64 => add!(arg, UInt64Type),
            DataType::Int32 => add!(arg, Int32Type),
            DataType::Decimal128(_, _) => add!(arg, Decimal128Type),
            _ => add!(cast(arg, &DataType::Int64)?, Int64Type),
        }
        Ok(())
    }

    fn evaluate(&mut self, groups: &[u32]) -> Result<ArrayRef> {
        // NULL where no row counts.
        let mut present = Vec::with_capacity(groups.len());
        for group in groups {
            present.push(self.counts.settled(*group)? > 0);
        }
        let nulls = NullBuffer::from(present);
        let nulls = (nulls.null_count() > 0).then_some(nulls);
        let sum = |group: u32, overflow: &str| self.sums.value(group).ok_or_else(|| numeric_overflow(overflow));
        let decimals = |value: &dyn Fn(i128, i64) -> Option<i128>, precision: u8, scale: i8| -> Result<ArrayRef> {
            let limit = power_of_ten(precision as i32).unwrap_or(i128::MAX);
            let mut values = Vec::with_capacity(groups.len());
            for group in groups {
                let sum = sum(*group, "numeric field overflow")?;
                let count = self.counts.0[*group as usize].max(1);
                let value = value(sum, count).filter(|v| v.unsigned_abs() < limit.unsigned_abs());
                values.push(value.ok_or_else(|| {
                    numeric_overflow("numeric field overflow")
                        .with_detail(format!("The result does not fit numeric({precision},{scale})."))
                })?);
            }
            Ok(Arc::new(Decimal128Array::new(values.into(), nulls.clone()).with_precision_and_scale(precision, scale)?))
        };
        Ok(match &self.reading {
            Reading::Int64 => {
                let values = groups.iter().map(|g| {
                    let sum = sum(*g, "bigint out of range")?;
                    i64::try_from(sum).map_err(|_| numeric_overflow("bigint out of range"))
                });
                Arc::new(Int64Array::new(values.collect::<Result<Vec<_>>>()?.into(), nulls))
            }
            Reading::UInt64 => {
                let values = groups.iter().map(|g| {
                    let sum = sum(*g, "bigint out of range")?;
                    u64::try_from(sum).map_err(|_| numeric_overflow("bigint out of range"))
                });
                Arc::new(PrimitiveArray::<UInt64Type>::new(values.collect::<Result<Vec<_>>>()?.into(), nulls))
            }
            Reading::Decimal { factor, precision, scale } => {
                decimals(&|sum, _| sum.checked_mul(*factor), *precision, *scale)?
            }
            Reading::DecimalAverage { digits, precision, scale } => {
                decimals(&|sum, count| average(sum, count, *digits), *precision, *scale)?
            }
            Reading::FloatAverage { divisor } => {
                let values = groups.iter().map(|g| {
                    let sum = sum(*g, "numeric field overflow")?;
                    Ok(sum as f64 / divisor / self.counts.0[*g as usize].max(1) as f64)
                });
                Arc::new(Float64Array::new(values.collect::<Result<Vec<_>>>()?.into(), nulls))
            }
        })
    }

    fn merge(&mut self, from: u32, into: u32) -> Result<()> {
        self.sums.merge(from, into);
        self.counts.merge(from, into)
    }

    fn clear(&mut self, groups: &[u32]) -> Result<()> {
        self.sums.clear(groups);
        self.counts.clear(groups);
        Ok(())
    }

    /// `wide`, if the sum does not fit in `sum`: its lower 128 bits and its units of 2¹²⁸.
    fn saved(&self) -> Saved {
        Saved::Columns(vec![("sum", DataType::Int64), ("wide", DataType::Binary), ("count", DataType::Int64)])
    }

    fn save(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let mut columns = self.sums.save(groups);
        columns.push(self.counts.save(groups));
        Ok(columns)
    }

    fn load(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Result<()> {
        self.sums.load(groups, columns)?;
        self.counts.load(groups, &columns[2])
    }

    fn bytes(&self) -> usize {
        self.sums.low.capacity() * 16 + self.counts.0.capacity() * 8 + self.sums.high.capacity() * 32
    }
}

/// `sum` and `avg` of floating-point numbers.
struct FloatSum {
    sums: ExactSums,
    counts: Counts,
    average: bool,
    output: DataType,
}

impl FloatSum {
    fn new(average: bool, output: DataType) -> FloatSum {
        FloatSum { sums: ExactSums::default(), counts: Counts::default(), average, output }
    }
}

impl Accumulator for FloatSum {
    fn resize(&mut self, groups: usize) {
        self.sums.resize(groups);
        self.counts.0.resize(groups, 0);
    }

    fn update(&mut self, groups: &[u32], arg: &ArrayRef, keep: Option<&BooleanBuffer>, diff: &Diff) -> Result<()> {
        self.counts.update(groups, keep, diff)?;
        let widened;
        let doubles = if *arg.data_type() == DataType::Float64 {
            arg.as_primitive::<Float64Type>()
        } else {
            widened = cast(arg, &DataType::Float64)?;
            widened.as_primitive::<Float64Type>()
        };
        let (values, sums) = (doubles.values(), &mut self.sums);
        each(groups.len(), keep, diff, |i, w| sums.add(groups[i], values[i], w));
        Ok(())
    }

    fn evaluate(&mut self, groups: &[u32]) -> Result<ArrayRef> {
        let mut values = Vec::with_capacity(groups.len());
        let mut present = Vec::with_capacity(groups.len());
        for group in groups {
            let count = self.counts.settled(*group)?;
            present.push(count > 0);
            let sum = self.sums.value(*group);
            values.push(if self.average { sum / count.max(1) as f64 } else { sum });
        }
        let array: ArrayRef = Arc::new(Float64Array::new(values.into(), Some(NullBuffer::from(present))));
        Ok(if self.output == DataType::Float64 { array } else { cast(&array, &self.output)? })
    }

    fn merge(&mut self, from: u32, into: u32) -> Result<()> {
        self.sums.merge(from, into);
        self.counts.merge(from, into)
    }

    fn clear(&mut self, groups: &[u32]) -> Result<()> {
        groups.iter().for_each(|g| self.sums.clear(*g));
        self.counts.clear(groups);
        Ok(())
    }

    /// The sum of `high`, `low` and `rest`, see [`ExactSums::save`].
    fn saved(&self) -> Saved {
        let sums = [("high", DataType::Float64), ("low", DataType::Float64), ("rest", DataType::Binary)];
        Saved::Columns(sums.into_iter().chain([("count", DataType::Int64)]).collect())
    }

    fn save(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let mut columns = self.sums.save(groups);
        columns.push(self.counts.save(groups));
        Ok(columns)
    }

    fn load(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Result<()> {
        self.sums.load(groups, columns)?;
        self.counts.load(groups, &columns[3])
    }

    fn bytes(&self) -> usize {
        self.sums.bytes() + self.counts.0.capacity() * 8
    }
}

/// `sum` of intervals, field by field.
#[derive(Default)]
struct IntervalSum {
    months: Vec<i128>,
    days: Vec<i128>,
    nanoseconds: Vec<i128>,
    counts: Counts,
}

impl Accumulator for IntervalSum {
    fn resize(&mut self, groups: usize) {
        self.months.resize(groups, 0);
        self.days.resize(groups, 0);
        self.nanoseconds.resize(groups, 0);
        self.counts.0.resize(groups, 0);
    }

    fn update(&mut self, groups: &[u32], arg: &ArrayRef, keep: Option<&BooleanBuffer>, diff: &Diff) -> Result<()> {
        self.counts.update(groups, keep, diff)?;
        let values = arg.as_primitive::<IntervalMonthDayNanoType>().values();
        let IntervalSum { months, days, nanoseconds, .. } = self;
        let mut overflow = false;
        each(groups.len(), keep, diff, |i, w| {
            let (v, g, w) = (values[i], groups[i] as usize, w as i128);
            // 64 × 63 bits fit; only the running sums can leave the range.
            for (sum, term) in [
                (&mut months[g], v.months as i128 * w),
                (&mut days[g], v.days as i128 * w),
                (&mut nanoseconds[g], v.nanoseconds as i128 * w),
            ] {
                let (next, over) = sum.overflowing_add(term);
                *sum = next;
                overflow |= over;
            }
        });
        if overflow { Err(numeric_overflow("interval out of range")) } else { Ok(()) }
    }

    fn evaluate(&mut self, groups: &[u32]) -> Result<ArrayRef> {
        let value = |g: &u32| -> Result<Option<IntervalMonthDayNano>> {
            if self.counts.settled(*g)? == 0 {
                return Ok(None);
            }
            let g = *g as usize;
            match (self.months[g].try_into(), self.days[g].try_into(), self.nanoseconds[g].try_into()) {
                (Ok(months), Ok(days), Ok(nanoseconds)) => {
                    Ok(Some(IntervalMonthDayNano::new(months, days, nanoseconds)))
                }
                _ => Err(numeric_overflow("interval out of range")),
            }
        };
        let values = groups.iter().map(value).collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(values.into_iter().collect::<PrimitiveArray<IntervalMonthDayNanoType>>()))
    }

    fn merge(&mut self, from: u32, into: u32) -> Result<()> {
        let (f, g) = (from as usize, into as usize);
        for sums in [&mut self.months, &mut self.days, &mut self.nanoseconds] {
            let moved = std::mem::take(&mut sums[f]);
            sums[g] = sums[g].checked_add(moved).ok_or_else(|| numeric_overflow("interval out of range"))?;
        }
        self.counts.merge(from, into)
    }

    fn clear(&mut self, groups: &[u32]) -> Result<()> {
        for group in groups {
            let g = *group as usize;
            (self.months[g], self.days[g], self.nanoseconds[g], self.counts.0[g]) = (0, 0, 0, 0);
        }
        Ok(())
    }

    /// `wide`, if one of the three does not fit: all of them.
    fn saved(&self) -> Saved {
        let sums = [("months", DataType::Int64), ("days", DataType::Int64), ("nanoseconds", DataType::Int64)];
        Saved::Columns(sums.into_iter().chain([("wide", DataType::Binary), ("count", DataType::Int64)]).collect())
    }

    fn save(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let mut columns = save_numbers::<3, 3>(groups, |g| [self.months[g], self.days[g], self.nanoseconds[g]]);
        columns.push(self.counts.save(groups));
        Ok(columns)
    }

    fn load(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Result<()> {
        load_numbers::<3, 3>(columns, |row, numbers| {
            let g = groups[row] as usize;
            [self.months[g], self.days[g], self.nanoseconds[g]] = numbers;
        })?;
        self.counts.load(groups, &columns[4])
    }

    fn bytes(&self) -> usize {
        self.months.capacity() * 56
    }
}

/// `bool_and` and `bool_or`.
#[derive(Default)]
struct BoolCounts {
    trues: Counts,
    falses: Counts,
    and: bool,
}

impl Accumulator for BoolCounts {
    fn resize(&mut self, groups: usize) {
        self.trues.0.resize(groups, 0);
        self.falses.0.resize(groups, 0);
    }

    fn update(&mut self, groups: &[u32], arg: &ArrayRef, keep: Option<&BooleanBuffer>, diff: &Diff) -> Result<()> {
        let values = arg.as_boolean().values();
        let (trues, falses) = match keep {
            None => (values.clone(), !values),
            Some(keep) => (values & keep, &(!values) & keep),
        };
        self.trues.update(groups, Some(&trues), diff)?;
        self.falses.update(groups, Some(&falses), diff)
    }

    fn evaluate(&mut self, groups: &[u32]) -> Result<ArrayRef> {
        let value = |g: &u32| -> Result<Option<bool>> {
            let (trues, falses) = (self.trues.settled(*g)?, self.falses.settled(*g)?);
            Ok((trues > 0 || falses > 0).then_some(if self.and { falses == 0 } else { trues > 0 }))
        };
        Ok(Arc::new(groups.iter().map(value).collect::<Result<BooleanArray>>()?))
    }

    fn merge(&mut self, from: u32, into: u32) -> Result<()> {
        self.trues.merge(from, into)?;
        self.falses.merge(from, into)
    }

    fn clear(&mut self, groups: &[u32]) -> Result<()> {
        self.trues.clear(groups);
        self.falses.clear(groups);
        Ok(())
    }

    fn saved(&self) -> Saved {
        Saved::Columns(vec![("trues", DataType::Int64), ("falses", DataType::Int64)])
    }

    fn save(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.trues.save(groups), self.falses.save(groups)])
    }

    fn load(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Result<()> {
        self.trues.load(groups, &columns[0])?;
        self.falses.load(groups, &columns[1])
    }

    fn bytes(&self) -> usize {
        (self.trues.0.capacity() + self.falses.0.capacity()) * 8
    }
}

/// `min` and `max` over append-only input: the best value so far.
struct Best<O: Ordered> {
    values: Vec<Option<O::Kept>>,
    data_type: DataType,
    greatest: bool,
    heap: usize,
}

impl<O: Ordered> Best<O> {
    fn new(data_type: DataType, greatest: bool) -> Self {
        Best { values: Vec::new(), data_type, greatest, heap: 0 }
    }
}

impl<O: Ordered> Accumulator for Best<O> {
    fn resize(&mut self, groups: usize) {
        self.values.resize(groups, None);
    }

    fn update(&mut self, groups: &[u32], arg: &ArrayRef, keep: Option<&BooleanBuffer>, diff: &Diff) -> Result<()> {
        let batch = Sortable::new(arg)?;
        let Best { values, greatest, heap, .. } = self;
        each(groups.len(), keep, diff, |i, _| {
            let seen = O::seen(&batch, i);
            let best = &mut values[groups[i] as usize];
            let better = match best {
                None => true,
                Some(kept) => {
                    let kept: &O::Seen = (*kept).borrow();
                    if *greatest { seen > kept } else { seen < kept }
                }
            };
            if better {
                *heap += O::heap(seen);
                if let Some(old) = best.replace(O::keep(seen)) {
                    *heap -= O::heap(old.borrow());
                }
            }
        });
        Ok(())
    }

    fn evaluate(&mut self, groups: &[u32]) -> Result<ArrayRef> {
        let values: Vec<Option<O::Kept>> = groups.iter().map(|g| self.values[*g as usize].clone()).collect();
        O::array(&values, &self.data_type)
    }

    fn merge(&mut self, from: u32, into: u32) -> Result<()> {
        let Some(moved) = self.values[from as usize].take() else { return Ok(()) };
        let best = &mut self.values[into as usize];
        let better = match best {
            None => true,
            Some(kept) => {
                let (kept, moved): (&O::Seen, &O::Seen) = ((*kept).borrow(), moved.borrow());
                if self.greatest { moved > kept } else { moved < kept }
            }
        };
        let dropped = if better { best.replace(moved) } else { Some(moved) };
        self.heap -= dropped.map_or(0, |d| O::heap(d.borrow()));
        Ok(())
    }

    fn clear(&mut self, groups: &[u32]) -> Result<()> {
        for group in groups {
            if let Some(old) = self.values[*group as usize].take() {
                self.heap -= O::heap(old.borrow());
            }
        }
        Ok(())
    }

    fn saved(&self) -> Saved {
        Saved::Columns(vec![("value", self.data_type.clone())])
    }

    fn save(&mut self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(groups)?])
    }

    fn load(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Result<()> {
        let valid = columns[0].logical_nulls().map(|n| n.into_inner());
        self.update(groups, &columns[0], valid.as_ref(), &Diff::Insert)
    }

    fn bytes(&self) -> usize {
        self.values.capacity() * size_of::<Option<O::Kept>>() + self.heap
    }
}

/// `min` and `max` over input that takes rows away: all values of the group in order.
struct Ranked<O: Ordered> {
    groups: Vec<Multiset<O::Kept>>,
    data_type: DataType,
    greatest: bool,
    /// (group, value) pairs whose multiplicity is below zero for the moment.
    negative: usize,
    heap: usize,
    touched: u64,
    /// `None` until changes are to be told.
    changed: Option<Changed<O::Kept>>,
}

/// What has changed in values since the last checkpoint.
struct Changed<K> {
    /// By group the changed values. The number of one is how often the checkpoint has it, and one more, as no number is zero.
    values: HashMap<u32, Multiset<K>>,
    /// Values of groups that are gone.
    gone: Vec<(u32, K)>,
    bytes: usize,
}

impl<K> Default for Changed<K> {
    fn default() -> Self {
        Changed { values: HashMap::new(), gone: Vec::new(), bytes: 0 }
    }
}

impl<O: Ordered> Ranked<O> {
    /// One entry costs its value, its count and its share of a tree node.
    const ENTRY: usize = size_of::<O::Kept>() + 16;

    fn new(data_type: DataType, greatest: bool) -> Self {
        Ranked { groups: Vec::new(), data_type, greatest, negative: 0, heap: 0, touched: 0, changed: None }
    }

    /// Entries in the form in which they are told.
    fn values(&self, entries: &[(u32, O::Kept, i64)]) -> Result<Vec<Values>> {
        let values = entries.chunks(CHUNK).map(|chunk| {
            let values: Vec<Option<O::Kept>> = chunk.iter().map(|(_, value, _)| Some(value.clone())).collect();
            Ok(Values {
                groups: chunk.iter().map(|(group, _, _)| *group).collect(),
                values: O::array(&values, &self.data_type)?,
                counts: chunk.iter().map(|(_, _, count)| *count).collect(),
            })
        });
        values.collect()
    }
}

impl<O: Ordered> Accumulator for Ranked<O> {
    fn resize(&mut self, groups: usize) {
        self.groups.resize_with(groups, Multiset::default);
    }

    fn update(&mut self, groups: &[u32], arg: &ArrayRef, keep: Option<&BooleanBuffer>, diff: &Diff) -> Result<()> {
        let batch = Sortable::new(arg)?;
        let Ranked { groups: sets, negative, heap, touched, changed, .. } = self;
        let mut overflow = false;
        each(groups.len(), keep, diff, |i, w| {
            let seen = O::seen(&batch, i);
            let cost = Self::ENTRY + O::heap(seen);
            *touched += 1;
            match sets[groups[i] as usize].add(seen, w, O::keep, |kept, seen| kept.borrow().cmp(seen)) {
                None => overflow = true,
                Some((before, after)) => {
                    if before == 0 {
                        *heap += cost;
                    } else if after == 0 {
                        *heap = heap.saturating_sub(cost);
                    }
                    *negative += usize::from(before >= 0 && after < 0);
                    *negative -= usize::from(before < 0 && after >= 0);
                    if let Some(changed) = changed {
                        let set = changed.values.entry(groups[i]).or_default();
                        let order = |kept: &O::Kept, seen: &O::Seen| kept.borrow().cmp(seen);
                        // What the first change finds is what the last checkpoint has.
                        if set.get(seen, order).is_none() {
                            set.add(seen, before.saturating_add(1), O::keep, order);
                            changed.bytes += cost;
                        }
                    }
                }
            }
        });
        if overflow { Err(too_many_rows()) } else { Ok(()) }
    }

    fn settle(&mut self) -> Result<()> {
        if self.negative > 0 { Err(changelog_violation("a value under min or max")) } else { Ok(()) }
    }

    fn evaluate(&mut self, groups: &[u32]) -> Result<ArrayRef> {
        let values: Vec<Option<O::Kept>> = groups
            .iter()
            .map(|g| {
                let set = &self.groups[*g as usize];
                if self.greatest { set.last() } else { set.first() }.cloned()
            })
            .collect();
        O::array(&values, &self.data_type)
    }

    fn merge(&mut self, _from: u32, _into: u32) -> Result<()> {
        Err(Error::internal("groups of an input that takes rows away are merged"))
    }

    fn clear(&mut self, groups: &[u32]) -> Result<()> {
        let Ranked { groups: sets, heap, changed, .. } = self;
        let order = |kept: &O::Kept, seen: &O::Seen| kept.borrow().cmp(seen);
        for group in groups {
            // A group that the watermark ends still has its values.
            let set = std::mem::take(&mut sets[*group as usize]);
            let before = changed.as_mut().and_then(|c| c.values.remove(group)).unwrap_or_default();
            set.walk(|value, _| {
                *heap = heap.saturating_sub(Self::ENTRY + O::heap(value.borrow()));
                if let Some(changed) = changed
                    && before.get(value.borrow(), order).is_none()
                {
                    changed.gone.push((*group, value.clone()));
                    changed.bytes += Self::ENTRY + O::heap(value.borrow());
                }
                true
            });
            if let Some(changed) = changed {
                before.walk(|value, count| {
                    if count > 1 {
                        changed.gone.push((*group, value.clone()));
                    } else {
                        changed.bytes -= Self::ENTRY + O::heap(value.borrow());
                    }
                    true
                });
            }
        }
        Ok(())
    }

    fn saved(&self) -> Saved {
        Saved::Values(self.data_type.clone())
    }

    fn save(&mut self, _groups: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(Vec::new())
    }

    fn load(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Result<()> {
        self.update(groups, &columns[0], None, &Diff::from_weights(integers(&columns[1])?.to_vec()))
    }

    fn track(&mut self) {
        self.changed = Some(Changed::default());
    }

    fn gone(&mut self) -> Result<Vec<Values>> {
        let Some(changed) = &mut self.changed else { return Ok(Vec::new()) };
        let gone: Vec<_> = changed.gone.drain(..).map(|(group, value)| (group, value, 0)).collect();
        changed.bytes -= gone.iter().map(|(_, value, _)| Self::ENTRY + O::heap(value.borrow())).sum::<usize>();
        self.values(&gone)
    }

    fn changed(&mut self) -> Result<Vec<Values>> {
        let Some(changed) = &mut self.changed else { return Ok(Vec::new()) };
        changed.bytes = 0;
        let mut groups: Vec<_> = std::mem::take(&mut changed.values).into_iter().collect();
        groups.sort_unstable_by_key(|(group, _)| *group);
        let mut entries = Vec::new();
        for (group, before) in groups {
            let set = &self.groups[group as usize];
            before.walk(|value, before| {
                let now = set.get(value.borrow(), |kept, seen| kept.borrow().cmp(seen)).unwrap_or(0);
                if now != before - 1 {
                    entries.push((group, value.clone(), now));
                }
                true
            });
        }
        self.values(&entries)
    }

    fn tracked_bytes(&self) -> usize {
        self.changed.as_ref().map_or(0, |c| c.bytes)
    }

    fn bytes(&self) -> usize {
        self.groups.capacity() * size_of::<Multiset<O::Kept>>() + self.heap
    }

    fn touched(&self) -> u64 {
        self.touched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_sums_leave_the_range_and_come_back() {
        let mut sums = WideSums::default();
        sums.low.resize(1, 0);
        for (value, weight) in [(i128::MAX, i64::MAX), (i128::MAX, 1), (i128::MIN, -7), (i128::MIN, i64::MIN), (42, 1)]
        {
            sums.add(0, value, weight);
        }
        assert_eq!(sums.value(0), None);
        for (value, weight) in
            [(i128::MAX, -i64::MAX), (i128::MAX, -1), (i128::MIN, 7), (i128::MIN, i64::MAX), (i128::MIN, 1)]
        {
            sums.add(0, value, weight);
        }
        assert_eq!(sums.value(0), Some(42));
    }

    #[test]
    fn saved_sums_are_the_same_sums() {
        let mut sums = WideSums::default();
        sums.low.resize(4, 0);
        sums.add(0, i64::MIN.into(), 1);
        sums.add(1, i64::MAX.into(), 2);
        sums.add(2, i128::MAX, i64::MAX);
        sums.add(3, i128::MIN, i64::MAX);
        let columns = sums.save(&[0, 1, 2, 3]);
        assert_eq!((columns[0].null_count(), columns[1].null_count()), (3, 1));
        let mut again = WideSums::default();
        again.low.resize(4, 0);
        again.load(&[0, 1, 2, 3], &columns).unwrap();
        assert_eq!((again.low, again.high), (sums.low, sums.high));

        let mut intervals = IntervalSum::default();
        intervals.resize(2);
        let value = IntervalMonthDayNano::new(-3, i32::MAX, i64::MIN);
        let arg: ArrayRef = Arc::new(PrimitiveArray::<IntervalMonthDayNanoType>::from(vec![value, value]));
        intervals.update(&[0, 1], &arg, None, &Diff::from_weights(vec![1, i64::MAX])).unwrap();
        let columns = intervals.save(&[1, 0]).unwrap();
        let mut again = IntervalSum::default();
        again.resize(2);
        again.load(&[1, 0], &columns).unwrap();
        assert_eq!(again.months, intervals.months);
        assert_eq!((again.days, again.nanoseconds), (intervals.days, intervals.nanoseconds));
        assert_eq!(again.counts.0, [1, i64::MAX]);
    }
}
