//! `min` and `max` of floats for ad-hoc queries, with infinities and NaN in PostgreSQL's order.
//!
//! DataFusion's begin with the largest finite number and pass NaN over. Floats travel through them as integers of the same
//! order; all other types go straight through.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, AggregateFunctionSimplification, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, SetMonotonicity, Signature,
    StatisticsArgs,
};

/// `min` or `max`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Extreme {
    inner: Arc<AggregateUDF>,
}

impl Extreme {
    pub const NAMES: [&'static str; 2] = ["min", "max"];

    pub fn new(inner: Arc<AggregateUDF>) -> Extreme {
        Extreme { inner }
    }
}

/// Floats as integers that have the floats' order: -0 is 0, and NaN is the greatest.
fn to_keys(floats: &ArrayRef) -> Result<ArrayRef> {
    let wide = cast(floats, &DataType::Float64)?;
    let key = |v: f64| {
        let bits = if v.is_nan() { f64::NAN.to_bits() } else { (v + 0.0).to_bits() } as i64;
        // The bits of negative numbers count the other way.
        bits ^ (((bits >> 63) as u64) >> 1) as i64
    };
    Ok(Arc::new(wide.as_primitive::<Float64Type>().unary::<_, Int64Type>(key)))
}

fn from_keys(keys: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    let value = |key: i64| f64::from_bits((key ^ (((key >> 63) as u64) >> 1) as i64) as u64);
    let wide: ArrayRef = Arc::new(keys.as_primitive::<Int64Type>().unary::<_, Float64Type>(value));
    Ok(cast(&wide, to)?)
}

fn keys_of(values: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    values.iter().map(to_keys).collect()
}

/// Runs `f` with the arguments of an aggregate over keys in the place of floats.
fn over_keys<T>(args: &AccumulatorArgs, f: impl FnOnce(AccumulatorArgs) -> Result<T>) -> Result<T> {
    let key = |f: &FieldRef| Arc::new(Field::new(f.name(), DataType::Int64, true));
    let fields: Vec<FieldRef> = args.expr_fields.iter().map(key).collect();
    f(AccumulatorArgs {
        return_field: key(&args.return_field),
        schema: args.schema,
        ignore_nulls: args.ignore_nulls,
        order_bys: args.order_bys,
        is_reversed: args.is_reversed,
        name: args.name,
        is_distinct: args.is_distinct,
        exprs: args.exprs,
        expr_fields: &fields,
    })
}

impl AggregateUDFImpl for Extreme {
    fn name(&self) -> &str {
        self.inner.name()
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

    fn return_field(&self, arguments: &[FieldRef]) -> Result<FieldRef> {
        self.inner.return_field(arguments)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        if args.return_field.data_type().is_floating() {
            return Ok(vec![Arc::new(Field::new(format_state_name(args.name, "key"), DataType::Int64, true))]);
        }
        self.inner.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let result = args.return_field.data_type().clone();
        if !result.is_floating() {
            return self.inner.accumulator(args);
        }
        let inner = over_keys(&args, |args| self.inner.accumulator(args))?;
        Ok(Box::new(ByKey { inner, result }))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        let result = args.return_field.data_type().clone();
        if !result.is_floating() {
            return self.inner.create_groups_accumulator(args);
        }
        let inner = over_keys(&args, |args| self.inner.create_groups_accumulator(args))?;
        Ok(Box::new(GroupsByKey { inner, result }))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let result = args.return_field.data_type().clone();
        if !result.is_floating() {
            return self.inner.create_sliding_accumulator(args);
        }
        let inner = over_keys(&args, |args| self.inner.create_sliding_accumulator(args))?;
        Ok(Box::new(ByKey { inner, result }))
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn simplify(&self) -> Option<AggregateFunctionSimplification> {
        self.inner.simplify()
    }

    fn is_descending(&self) -> Option<bool> {
        self.inner.is_descending()
    }

    fn value_from_stats(&self, statistics: &StatisticsArgs) -> Option<ScalarValue> {
        if statistics.return_type.is_floating() { None } else { self.inner.value_from_stats(statistics) }
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.inner.inner().set_monotonicity(data_type)
    }
}

#[derive(Debug)]
struct ByKey {
    inner: Box<dyn Accumulator>,
    result: DataType,
}

impl Accumulator for ByKey {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.update_batch(&keys_of(values)?)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let key = self.inner.evaluate()?.to_array()?;
        ScalarValue::try_from_array(&from_keys(&key, &self.result)?, 0)
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.inner.merge_batch(states)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.retract_batch(&keys_of(values)?)
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }
}

struct GroupsByKey {
    inner: Box<dyn GroupsAccumulator>,
    result: DataType,
}

impl GroupsAccumulator for GroupsByKey {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.inner.update_batch(&keys_of(values)?, group_indices, filter, total_num_groups)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        from_keys(&self.inner.evaluate(emit_to)?, &self.result)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.inner.state(emit_to)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.inner.merge_batch(values, group_indices, total_num_groups)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        self.inner.convert_to_state(&keys_of(values)?, filter)
    }

    fn size(&self) -> usize {
        self.inner.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::Float64Array;

    #[test]
    fn keys_have_the_order_of_floats_and_lead_back_to_them() {
        let ascending = [f64::NEG_INFINITY, -1e300, -1.5, -1e-300, 0.0, 1e-300, 2.5, f64::INFINITY, f64::NAN];
        let floats: ArrayRef = Arc::new(Float64Array::from(ascending.to_vec()));
        let keys = to_keys(&floats).unwrap();
        assert!(keys.as_primitive::<Int64Type>().values().is_sorted());
        let back = from_keys(&keys, &DataType::Float64).unwrap();
        for (i, v) in ascending.into_iter().enumerate() {
            assert_eq!(back.as_primitive::<Float64Type>().value(i).to_bits(), v.to_bits());
        }
        let zeros: ArrayRef = Arc::new(Float64Array::from(vec![-0.0, 0.0]));
        let keys = to_keys(&zeros).unwrap();
        assert_eq!(keys.as_primitive::<Int64Type>().value(0), keys.as_primitive::<Int64Type>().value(1));
    }
}
