//! `min` and `max` for ad-hoc queries, with the results of the standing ones.
//!
//! DataFusion's own start each group from the greatest or least finite number, so that an infinity alone in its group is
//! lost; these keep floats in Postgres' order, in which NaN is the greatest and −0 equals 0. Other types are DataFusion's.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, PrimitiveArray};
use arrow::datatypes::{DataType, FieldRef, Float32Type, Float64Type};
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, SetMonotonicity, Signature,
    StatisticsArgs,
};

/// `min` or `max`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Extreme {
    inner: Arc<AggregateUDF>,
    greatest: bool,
}

impl Extreme {
    /// Over DataFusion's function of that name.
    pub fn new(inner: Arc<AggregateUDF>) -> Extreme {
        let greatest = inner.name() == "max";
        Extreme { inner, greatest }
    }
}

impl AggregateUDFImpl for Extreme {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arguments)
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arguments)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(match args.return_field.data_type() {
            DataType::Float32 => Box::new(Floats::<Float32Type>::new(self.greatest)),
            DataType::Float64 => Box::new(Floats::<Float64Type>::new(self.greatest)),
            _ => self.inner.accumulator(args)?,
        })
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(match args.return_field.data_type() {
            DataType::Float32 => Box::new(Floats::<Float32Type>::new(self.greatest)),
            DataType::Float64 => Box::new(Floats::<Float64Type>::new(self.greatest)),
            _ => self.inner.create_groups_accumulator(args)?,
        })
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.inner.create_sliding_accumulator(args)
    }

    fn is_descending(&self) -> Option<bool> {
        self.inner.is_descending()
    }

    fn value_from_stats(&self, args: &StatisticsArgs) -> Option<ScalarValue> {
        self.inner.value_from_stats(args)
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn set_monotonicity(&self, _data_type: &DataType) -> SetMonotonicity {
        if self.greatest { SetMonotonicity::Increasing } else { SetMonotonicity::Decreasing }
    }
}

/// A float as SQL compares it.
trait SqlFloat: Copy + PartialOrd + Send + Sync {
    /// One NaN, and no −0.
    fn canonical(self) -> Self;
    fn is_nan(self) -> bool;

    /// Whether `self` comes after `other`; NaN comes after everything.
    fn after(self, other: Self) -> bool {
        if self.is_nan() { !other.is_nan() } else { !other.is_nan() && self > other }
    }
}

macro_rules! sql_float {
    ($t:ty) => {
        impl SqlFloat for $t {
            fn canonical(self) -> $t {
                if self == 0.0 {
                    0.0
                } else if self.is_nan() {
                    <$t>::NAN
                } else {
                    self
                }
            }

            fn is_nan(self) -> bool {
                <$t>::is_nan(self)
            }
        }
    };
}

sql_float!(f32);
sql_float!(f64);

/// The best value of each group, `None` while a group has seen none.
#[derive(Debug)]
struct Floats<T: ArrowPrimitiveType> {
    greatest: bool,
    best: Vec<Option<T::Native>>,
}

impl<T: ArrowPrimitiveType> Floats<T>
where
    T::Native: SqlFloat,
{
    fn new(greatest: bool) -> Floats<T> {
        Floats { greatest, best: Vec::new() }
    }

    fn update(
        &mut self,
        values: &[ArrayRef],
        group: impl Fn(usize) -> usize,
        filter: Option<&BooleanArray>,
    ) -> Result<()> {
        let [values] = values else { return internal_err!("an extreme of other than one argument") };
        let counted = |row: usize| filter.is_none_or(|f| f.is_valid(row) && f.value(row));
        for (row, value) in values.as_primitive::<T>().iter().enumerate() {
            let Some(value) = value.filter(|_| counted(row)) else { continue };
            let value = value.canonical();
            let best = &mut self.best[group(row)];
            let better = best.is_none_or(|b| if self.greatest { value.after(b) } else { b.after(value) });
            if better {
                *best = Some(value);
            }
        }
        Ok(())
    }

    fn take(&mut self, emit_to: EmitTo) -> ArrayRef {
        Arc::new(PrimitiveArray::<T>::from_iter(emit_to.take_needed(&mut self.best)))
    }
}

impl<T: ArrowPrimitiveType> GroupsAccumulator for Floats<T>
where
    T::Native: SqlFloat,
{
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.best.resize(total_num_groups, None);
        self.update(values, |row| group_indices[row], filter)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        Ok(self.take(emit_to))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.take(emit_to)])
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        GroupsAccumulator::update_batch(self, values, group_indices, None, total_num_groups)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let mut each = Floats::<T>::new(self.greatest);
        each.best.resize(values.first().map_or(0, |v| v.len()), None);
        each.update(values, |row| row, filter)?;
        Ok(vec![each.take(EmitTo::All)])
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.best.capacity() * size_of::<Option<T::Native>>()
    }
}

impl<T: ArrowPrimitiveType + std::fmt::Debug> Accumulator for Floats<T>
where
    T::Native: SqlFloat,
{
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.best.resize(1, None);
        self.update(values, |_| 0, None)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let best = self.best.first().copied().flatten();
        ScalarValue::try_from_array(&PrimitiveArray::<T>::from_iter([best]), 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![Accumulator::evaluate(self)?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        Accumulator::update_batch(self, states)
    }

    fn size(&self) -> usize {
        GroupsAccumulator::size(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::Float64Array;

    fn best(greatest: bool, groups: &[&[Option<f64>]]) -> Vec<Option<f64>> {
        let mut floats = Floats::<Float64Type>::new(greatest);
        for (group, values) in groups.iter().enumerate() {
            let column: ArrayRef = Arc::new(Float64Array::from(values.to_vec()));
            let indices = vec![group; values.len()];
            GroupsAccumulator::update_batch(&mut floats, &[column], &indices, None, groups.len()).unwrap();
        }
        let found = GroupsAccumulator::evaluate(&mut floats, EmitTo::All).unwrap();
        found.as_primitive::<Float64Type>().iter().collect()
    }

    #[test]
    fn infinities_and_nan_have_their_place() {
        let infinity = f64::INFINITY;
        let groups: [&[Option<f64>]; 4] = [&[Some(infinity)], &[Some(-infinity), None], &[None], &[Some(-0.0)]];
        assert_eq!(best(false, &groups), [Some(infinity), Some(-infinity), None, Some(0.0)]);
        assert_eq!(best(true, &groups), [Some(infinity), Some(-infinity), None, Some(0.0)]);
        let with_nan: [&[Option<f64>]; 2] = [&[Some(f64::NAN), Some(1.0)], &[Some(2.0), Some(-f64::NAN)]];
        assert_eq!(best(false, &with_nan), [Some(1.0), Some(2.0)]);
        assert!(best(true, &with_nan).iter().all(|v| v.is_some_and(f64::is_nan)));
    }
}
