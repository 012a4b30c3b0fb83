//! `sum` and `avg` for ad-hoc queries, with the results of the standing ones.
//!
//! DataFusion's own wrap on overflow and add floats in the order in which rows come. These keep integers and decimals in
//! 128 bits and fail when the result does not fit, and keep floats as an unevaluated pair of doubles (Dekker 1971, Knuth's
//! two-sum), rounded once, when read.

use std::collections::HashSet;
use std::mem::size_of;
use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::*;
use datafusion::common::{DataFusionError, Result, ScalarValue, internal_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{
    Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature, Volatility,
};

use super::arithmetic::out_of_range;
use super::decimal::power;
use super::overload::{Type, no_function};

/// Digits after the point of an average of whole numbers; PostgreSQL gives 16 significant ones or more.
const AVERAGE_SCALE: i8 = 18;

/// `sum` or `avg`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct SumOrAverage {
    average: bool,
    signature: Signature,
}

impl SumOrAverage {
    pub fn sum() -> SumOrAverage {
        SumOrAverage { average: false, signature: Signature::user_defined(Volatility::Immutable) }
    }

    pub fn average() -> SumOrAverage {
        SumOrAverage { average: true, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for SumOrAverage {
    fn name(&self) -> &str {
        if self.average { "avg" } else { "sum" }
    }

    fn aliases(&self) -> &[String] {
        &[]
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let [argument] = arguments else {
            return plan_err!("function {} takes one argument", self.name());
        };
        Ok(vec![match argument {
            DataType::UInt64 => DataType::Decimal128(20, 0),
            DataType::Int64 | DataType::UInt32 => DataType::Int64,
            t if t.is_integer() => DataType::Int32,
            t if t.is_floating() => DataType::Float64,
            DataType::Null => DataType::Int32,
            DataType::Decimal128(p, s) => DataType::Decimal128(*p, *s),
            DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => DataType::Decimal128(*p, *s),
            DataType::Interval(_) | DataType::Duration(_) if !self.average => {
                DataType::Interval(IntervalUnit::MonthDayNano)
            }
            other => {
                return Err(DataFusionError::External(Box::new(no_function(self.name(), std::slice::from_ref(other)))));
            }
        }])
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        let [argument] = arguments else {
            return plan_err!("function {} takes one argument", self.name());
        };
        Ok(match argument {
            DataType::Int32 | DataType::Int64 if self.average => DataType::Decimal128(38, AVERAGE_SCALE),
            DataType::Decimal128(p, s) if self.average => {
                let integer_digits = (*p as i8 - *s).max(1);
                DataType::Decimal128(38, AVERAGE_SCALE.max(*s).min(38 - integer_digits))
            }
            DataType::Int32 => DataType::Int64,
            DataType::Int64 => DataType::Decimal128(38, 0),
            DataType::Decimal128(p, s) => DataType::Decimal128((*p + 10).min(38), *s),
            other => other.clone(),
        })
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let sums = self.sums(&args)?;
        Ok(if args.is_distinct {
            Box::new(Distinct { sums, seen: HashSet::new(), argument: argument_type(&args) })
        } else {
            Box::new(Single { sums })
        })
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let argument = args.input_fields.first().map_or(DataType::Null, |f| f.data_type().clone());
        let field = |what: &str, t: DataType| Arc::new(Field::new(format_state_name(args.name, what), t, true));
        if args.is_distinct {
            return Ok(vec![field("distinct", DataType::new_list(argument, true))]);
        }
        let mut fields = vec![field("count", DataType::Int64)];
        fields.extend(
            Form::of(&argument)?.state_types().into_iter().enumerate().map(|(i, t)| field(&format!("sum{i}"), t)),
        );
        Ok(fields)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(self.sums(&args)?))
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn order_sensitivity(&self) -> datafusion::logical_expr::utils::AggregateOrderSensitivity {
        datafusion::logical_expr::utils::AggregateOrderSensitivity::Insensitive
    }
}

impl SumOrAverage {
    fn sums(&self, args: &AccumulatorArgs) -> Result<Sums> {
        let argument = argument_type(args);
        Ok(Sums {
            form: Form::of(&argument)?,
            argument,
            average: self.average,
            result: args.return_field.data_type().clone(),
            counts: Vec::new(),
            wide: Vec::new(),
            high: Vec::new(),
            low: Vec::new(),
            special: Vec::new(),
        })
    }
}

fn argument_type(args: &AccumulatorArgs) -> DataType {
    args.expr_fields.first().map_or(DataType::Null, |f| f.data_type().clone())
}

/// Whether PostgreSQL has the aggregate over arguments of these types. Names that it has not are let through.
///
/// Errors: `42883`.
pub(super) fn check_arguments(name: &str, given: &[DataType]) -> flow::Result<()> {
    use Type::*;
    let [argument] = given else { return Ok(()) };
    let t = Type::of(argument);
    let number = matches!(t, Int2 | Int4 | Int8 | Numeric | Float4 | Float8);
    let takes = match name {
        "sum" | "avg" => number || matches!(t, Interval | Unknown),
        "min" | "max" => !matches!(t, Bool | Bytea),
        "bool_and" | "bool_or" => matches!(t, Bool | Unknown),
        "bit_and" | "bit_or" | "bit_xor" => matches!(t, Int2 | Int4 | Int8 | Unknown),
        "stddev" | "stddev_samp" | "stddev_pop" | "var_samp" | "var_pop" => number || t == Unknown,
        _ => true,
    };
    if takes || t == Other { Ok(()) } else { Err(no_function(name, given)) }
}

/// What is kept per group.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// `wide`.
    Integer,
    /// `high`, `low`, `special`.
    Float,
    /// `wide` packs months and days, `high`-free: months, days and nanoseconds in three numbers of `wide`.
    Interval,
}

impl Form {
    fn of(argument: &DataType) -> Result<Form> {
        match argument {
            DataType::Int32 | DataType::Int64 | DataType::Decimal128(_, _) => Ok(Form::Integer),
            DataType::Float64 => Ok(Form::Float),
            DataType::Interval(IntervalUnit::MonthDayNano) => Ok(Form::Interval),
            other => internal_err!("no sum of {other}"),
        }
    }

    fn state_types(self) -> Vec<DataType> {
        match self {
            Form::Integer => vec![DataType::Decimal128(38, 0)],
            Form::Float => vec![DataType::Float64; 3],
            Form::Interval => vec![DataType::Decimal128(38, 0); 3],
        }
    }

    /// Numbers of `wide` a group.
    fn width(self) -> usize {
        match self {
            Form::Integer => 1,
            Form::Float => 0,
            Form::Interval => 3,
        }
    }
}

/// The sums of many groups.
#[derive(Debug)]
struct Sums {
    form: Form,
    argument: DataType,
    average: bool,
    result: DataType,
    counts: Vec<i64>,
    wide: Vec<i128>,
    high: Vec<f64>,
    low: Vec<f64>,
    /// Sum of the infinities and NaNs, which would poison the pair.
    special: Vec<f64>,
}

impl Sums {
    fn resize(&mut self, groups: usize) {
        self.counts.resize(groups, 0);
        self.wide.resize(groups * self.form.width(), 0);
        if self.form == Form::Float {
            self.high.resize(groups, 0.0);
            self.low.resize(groups, 0.0);
            self.special.resize(groups, 0.0);
        }
    }

    fn add_float(&mut self, group: usize, value: f64) {
        if !value.is_finite() {
            self.special[group] += value;
            return;
        }
        let (s, e) = two_sum(self.high[group], value);
        let (high, low) = two_sum(s, self.low[group] + e);
        if high.is_finite() {
            (self.high[group], self.low[group]) = (high, low);
        } else {
            self.special[group] += s;
        }
    }

    fn add_wide(&mut self, at: usize, value: i128) -> Result<()> {
        match self.wide[at].checked_add(value) {
            Some(sum) => {
                self.wide[at] = sum;
                Ok(())
            }
            None => Err(overflow(&self.result)),
        }
    }

    /// Adds, or takes away if `sign` is -1, every valid value for which `filter` is true.
    fn update(
        &mut self,
        values: &ArrayRef,
        groups: impl Fn(usize) -> usize,
        filter: Option<&BooleanArray>,
        sign: i64,
    ) -> Result<()> {
        let values =
            if values.data_type() == &self.argument { Arc::clone(values) } else { cast(values, &self.argument)? };
        let kept = |i: usize| values.is_valid(i) && filter.is_none_or(|f| f.is_valid(i) && f.value(i));
        for i in (0..values.len()).filter(|i| kept(*i)) {
            self.counts[groups(i)] += sign;
        }
        match (self.form, &self.argument) {
            (Form::Float, _) => {
                let floats = values.as_primitive::<Float64Type>();
                for i in (0..values.len()).filter(|i| kept(*i)) {
                    self.add_float(groups(i), floats.value(i) * sign as f64);
                }
            }
            (Form::Integer, DataType::Int32) => {
                let integers = values.as_primitive::<Int32Type>();
                for i in (0..values.len()).filter(|i| kept(*i)) {
                    self.add_wide(groups(i), i128::from(integers.value(i)) * i128::from(sign))?;
                }
            }
            (Form::Integer, DataType::Int64) => {
                let integers = values.as_primitive::<Int64Type>();
                for i in (0..values.len()).filter(|i| kept(*i)) {
                    self.add_wide(groups(i), i128::from(integers.value(i)) * i128::from(sign))?;
                }
            }
            (Form::Integer, _) => {
                let decimals = values.as_primitive::<Decimal128Type>();
                for i in (0..values.len()).filter(|i| kept(*i)) {
                    self.add_wide(groups(i), decimals.value(i) * i128::from(sign))?;
                }
            }
            (Form::Interval, _) => {
                let intervals = values.as_primitive::<IntervalMonthDayNanoType>();
                let sign = i128::from(sign);
                for i in (0..values.len()).filter(|i| kept(*i)) {
                    let (v, at) = (intervals.value(i), groups(i) * 3);
                    self.add_wide(at, i128::from(v.months) * sign)?;
                    self.add_wide(at + 1, i128::from(v.days) * sign)?;
                    self.add_wide(at + 2, i128::from(v.nanoseconds) * sign)?;
                }
            }
        }
        Ok(())
    }

    fn merge(&mut self, states: &[ArrayRef], groups: impl Fn(usize) -> usize) -> Result<()> {
        let Some((counts, sums)) = states.split_first() else {
            return internal_err!("a sum's state without columns");
        };
        let counts = counts.as_primitive::<Int64Type>();
        for i in (0..counts.len()).filter(|i| counts.is_valid(*i)) {
            let group = groups(i);
            self.counts[group] += counts.value(i);
            match (self.form, sums) {
                (Form::Float, [high, low, special]) => {
                    self.add_float(group, high.as_primitive::<Float64Type>().value(i));
                    self.add_float(group, low.as_primitive::<Float64Type>().value(i));
                    self.special[group] += special.as_primitive::<Float64Type>().value(i);
                }
                (form, sums) if sums.len() == form.width() => {
                    for (n, sum) in sums.iter().enumerate() {
                        self.add_wide(group * form.width() + n, sum.as_primitive::<Decimal128Type>().value(i))?;
                    }
                }
                _ => return internal_err!("a sum's state of a wrong shape"),
            }
        }
        Ok(())
    }

    /// The state columns of the groups that `emit_to` names, which are forgotten.
    fn take_state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let groups = match emit_to {
            EmitTo::All => self.counts.len(),
            EmitTo::First(n) => n,
        };
        let counts = emit_to.take_needed(&mut self.counts);
        let mut state: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(counts))];
        match self.form {
            Form::Float => {
                for column in [&mut self.high, &mut self.low, &mut self.special] {
                    state.push(Arc::new(Float64Array::from(emit_to.take_needed(column))));
                }
            }
            form => {
                let rest = self.wide.split_off(groups * form.width());
                let taken = std::mem::replace(&mut self.wide, rest);
                for n in 0..form.width() {
                    let column: Vec<i128> = taken.iter().skip(n).step_by(form.width()).copied().collect();
                    state.push(Arc::new(Decimal128Array::from(column).with_precision_and_scale(38, 0)?));
                }
            }
        }
        Ok(state)
    }

    /// The results that a state stands for.
    fn read(&self, state: &[ArrayRef]) -> Result<ArrayRef> {
        let Some((counts, sums)) = state.split_first() else {
            return internal_err!("a sum's state without columns");
        };
        let counts = counts.as_primitive::<Int64Type>().values();
        let nulls = NullBuffer::from_iter(counts.iter().map(|c| *c > 0));
        let nulls = (nulls.null_count() > 0).then_some(nulls);
        let wide = |n: usize| -> Result<&[i128]> {
            match sums.get(n) {
                Some(column) => Ok(column.as_primitive::<Decimal128Type>().values()),
                None => internal_err!("a sum's state of a wrong shape"),
            }
        };
        let per_group = 0..counts.len();
        Ok(match (self.form, &self.result) {
            (Form::Float, _) => {
                let [high, low, special] = sums else { return internal_err!("a sum's state of a wrong shape") };
                let column = |c: &ArrayRef| c.as_primitive::<Float64Type>().values().clone();
                let (high, low, special) = (column(high), column(low), column(special));
                let values = per_group.map(|i| {
                    let sum = if special[i] == 0.0 { high[i] + low[i] } else { special[i] };
                    if self.average { sum / counts[i].max(1) as f64 } else { sum }
                });
                Arc::new(Float64Array::new(values.collect(), nulls))
            }
            (Form::Integer, DataType::Decimal128(p, s)) => {
                let limit = power(*p).unsigned_abs();
                let argument_scale = if let DataType::Decimal128(_, s) = self.argument { s } else { 0 };
                let digits = (*s - argument_scale).max(0) as u8;
                let sums = wide(0)?;
                let values = per_group.map(|i| {
                    let value = if self.average { average(sums[i], counts[i], digits) } else { Some(sums[i]) };
                    value.filter(|v| v.unsigned_abs() < limit).ok_or_else(|| overflow(&self.result))
                });
                let values = values.collect::<Result<Vec<i128>>>()?;
                Arc::new(Decimal128Array::new(values.into(), nulls).with_precision_and_scale(*p, *s)?)
            }
            (Form::Integer, _) => {
                let sums = wide(0)?;
                let values = per_group.map(|i| i64::try_from(sums[i]).map_err(|_| overflow(&self.result)));
                Arc::new(Int64Array::new(values.collect::<Result<Vec<i64>>>()?.into(), nulls))
            }
            (Form::Interval, _) => {
                let (months, days, nanos) = (wide(0)?, wide(1)?, wide(2)?);
                let values = per_group.map(|i| {
                    match (i32::try_from(months[i]), i32::try_from(days[i]), i64::try_from(nanos[i])) {
                        (Ok(m), Ok(d), Ok(n)) => Ok(IntervalMonthDayNano::new(m, d, n)),
                        _ => Err(overflow(&self.result)),
                    }
                });
                Arc::new(IntervalMonthDayNanoArray::new(values.collect::<Result<Vec<_>>>()?.into(), nulls))
            }
        })
    }

    fn bytes(&self) -> usize {
        self.counts.capacity() * 8
            + self.wide.capacity() * 16
            + (self.high.capacity() + self.low.capacity() + self.special.capacity()) * 8
    }
}

/// `sum ÷ count` with `digits` more digits than the sum has, half away from zero; `None` where 128 bits do not hold it.
pub fn average(sum: i128, count: i64, digits: u8) -> Option<i128> {
    let count = i128::from(count.max(1));
    let factor = power(digits);
    // The whole part first: the sum times the factor might not fit.
    let whole = (sum / count).checked_mul(factor)?;
    let rest = (sum % count).checked_mul(factor)?;
    let (part, left) = (rest / count, rest % count);
    let up = if left.abs() >= count - left.abs() && left != 0 { left.signum() } else { 0 };
    whole.checked_add(part + up)
}

/// `a + b` as the rounded sum and its exact error.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let bb = s - a;
    (s, (a - (s - bb)) + (b - bb))
}

fn overflow(result: &DataType) -> DataFusionError {
    let error = match result {
        DataType::Decimal128(p, s) => super::decimal::overflow_error(*p, *s),
        other => out_of_range(other),
    };
    DataFusionError::External(Box::new(error))
}

impl GroupsAccumulator for Sums {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.resize(total_num_groups);
        match values.first() {
            Some(values) => self.update(values, |i| group_indices[i], filter, 1),
            None => internal_err!("a sum without an argument"),
        }
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let state = self.take_state(emit_to)?;
        self.read(&state)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.take_state(emit_to)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.resize(total_num_groups);
        self.merge(values, |i| group_indices[i])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let Some(values) = values.first() else { return internal_err!("a sum without an argument") };
        let mut each = Sums {
            form: self.form,
            argument: self.argument.clone(),
            average: self.average,
            result: self.result.clone(),
            counts: Vec::new(),
            wide: Vec::new(),
            high: Vec::new(),
            low: Vec::new(),
            special: Vec::new(),
        };
        each.resize(values.len());
        each.update(values, |i| i, filter, 1)?;
        each.take_state(EmitTo::All)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.bytes()
    }
}

/// One group.
#[derive(Debug)]
struct Single {
    sums: Sums,
}

impl Single {
    /// A copy of the state as columns of one row; the sum goes on.
    fn columns(&mut self) -> Result<Vec<ArrayRef>> {
        self.sums.resize(1);
        let state = self.sums.take_state(EmitTo::All)?;
        self.sums.resize(1);
        self.sums.merge(&state, |_| 0)?;
        Ok(state)
    }
}

impl Accumulator for Single {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.sums.resize(1);
        match values.first() {
            Some(values) => self.sums.update(values, |_| 0, None, 1),
            None => internal_err!("a sum without an argument"),
        }
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        match values.first() {
            Some(values) => self.sums.update(values, |_| 0, None, -1),
            None => internal_err!("a sum without an argument"),
        }
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let state = self.columns()?;
        ScalarValue::try_from_array(&self.sums.read(&state)?, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.columns()?.iter().map(|c| ScalarValue::try_from_array(c, 0)).collect()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.sums.resize(1);
        self.sums.merge(states, |_| 0)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.sums.bytes()
    }
}

/// One group in which every value counts once.
#[derive(Debug)]
struct Distinct {
    sums: Sums,
    /// The values' bits, the zeros and the NaNs of floats being one value each.
    seen: HashSet<i128>,
    argument: DataType,
}

impl Distinct {
    fn add(&mut self, values: &ArrayRef) -> Result<()> {
        let values =
            if values.data_type() == &self.argument { Arc::clone(values) } else { cast(values, &self.argument)? };
        let nulls = values.nulls().cloned();
        let bits: Vec<i128> = match &self.argument {
            DataType::Int32 => values.as_primitive::<Int32Type>().values().iter().map(|v| i128::from(*v)).collect(),
            DataType::Int64 => values.as_primitive::<Int64Type>().values().iter().map(|v| i128::from(*v)).collect(),
            DataType::Decimal128(_, _) => values.as_primitive::<Decimal128Type>().values().to_vec(),
            DataType::Float64 => {
                let floats = values.as_primitive::<Float64Type>().values().iter();
                let canonical = |v: f64| if v.is_nan() { f64::NAN } else { v + 0.0 };
                floats.map(|v| i128::from(canonical(*v).to_bits())).collect()
            }
            DataType::Interval(_) => {
                let intervals = values.as_primitive::<IntervalMonthDayNanoType>().values().iter();
                let pack = |v: &IntervalMonthDayNano| {
                    i128::from(v.months) << 96 | i128::from(v.days as u32) << 64 | i128::from(v.nanoseconds as u64)
                };
                intervals.map(pack).collect()
            }
            other => return internal_err!("no distinct sum of {other}"),
        };
        for (i, bits) in bits.into_iter().enumerate() {
            if nulls.as_ref().is_none_or(|n| n.is_valid(i)) {
                self.seen.insert(bits);
            }
        }
        Ok(())
    }

    /// The distinct values, in ascending order of their bits so that the result depends on nothing else.
    fn values(&self) -> Result<ArrayRef> {
        let mut bits: Vec<i128> = self.seen.iter().copied().collect();
        bits.sort_unstable();
        Ok(match &self.argument {
            DataType::Int32 => Arc::new(bits.iter().map(|b| Some(*b as i32)).collect::<Int32Array>()),
            DataType::Int64 => Arc::new(bits.iter().map(|b| Some(*b as i64)).collect::<Int64Array>()),
            DataType::Decimal128(p, s) => Arc::new(Decimal128Array::from(bits).with_precision_and_scale(*p, *s)?),
            DataType::Float64 => {
                Arc::new(bits.iter().map(|b| Some(f64::from_bits(*b as u64))).collect::<Float64Array>())
            }
            _ => {
                let unpack = |b: &i128| {
                    Some(IntervalMonthDayNano::new((b >> 96) as i32, (b >> 64) as u32 as i32, *b as u64 as i64))
                };
                Arc::new(bits.iter().map(unpack).collect::<IntervalMonthDayNanoArray>())
            }
        })
    }
}

impl Accumulator for Distinct {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        values.iter().try_for_each(|values| self.add(values))
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let values = self.values()?;
        self.sums.resize(1);
        self.sums.take_state(EmitTo::All)?;
        self.sums.resize(1);
        self.sums.update(&values, |_| 0, None, 1)?;
        let state = self.sums.take_state(EmitTo::All)?;
        ScalarValue::try_from_array(&self.sums.read(&state)?, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values = self.values()?;
        let field = Arc::new(Field::new("item", self.argument.clone(), true));
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([values.len()]);
        Ok(vec![ScalarValue::List(Arc::new(ListArray::try_new(field, offsets, values, None)?))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for state in states {
            for list in state.as_list::<i32>().iter().flatten() {
                self.add(&list)?;
            }
        }
        Ok(())
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.seen.capacity() * 24 + self.sums.bytes()
    }
}
