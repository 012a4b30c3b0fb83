//! `session_start(at, gap)` and `session_end(at, gap)`: what SESSION in FROM is made of.
//!
//! They are window functions over a partition in the order of `at`: rows that are at most `gap` apart belong together; a
//! session starts at its first row, and ends `gap` after its last. A standing query runs them as an operator of its own.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::{
    DataType, Field, FieldRef, IntervalMonthDayNanoType, IntervalUnit, TimeUnit, TimestampMicrosecondType,
};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::function::{PartitionEvaluatorArgs, WindowUDFFieldArgs};
use datafusion::logical_expr::{LimitEffect, PartitionEvaluator, Signature, Volatility, WindowUDF, WindowUDFImpl};
use datafusion::physical_expr::PhysicalExpr;
use flow::{Error, SqlState};

use super::library::windows::length_us;
use super::type_name;

pub(crate) const START: &str = "session_start";
pub(crate) const END: &str = "session_end";

/// Both functions.
pub(super) fn functions() -> [Arc<WindowUDF>; 2] {
    [false, true].map(|end| {
        let signature = Signature::user_defined(Volatility::Immutable);
        Arc::new(WindowUDF::from(SessionBound { end, signature }))
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SessionBound {
    end: bool,
    signature: Signature,
}

fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

impl WindowUDFImpl for SessionBound {
    fn name(&self) -> &str {
        if self.end { END } else { START }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let refuse = |what: &str, given: &DataType| {
            let message = format!("the {what} of a session is of type {}", type_name(given));
            let error = Error::new(SqlState::DatatypeMismatch, message);
            external(match what {
                "time" => error.with_hint("Name a column of type timestamp or timestamptz."),
                _ => error.with_hint("Write an interval: INTERVAL '10 seconds'."),
            })
        };
        match arguments {
            [DataType::Timestamp(_, zone), gap] => {
                let at = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
                match gap {
                    DataType::Interval(_) | DataType::Null => {
                        Ok(vec![at, DataType::Interval(IntervalUnit::MonthDayNano)])
                    }
                    other => Err(refuse("gap", other)),
                }
            }
            [at, _] => Err(refuse("time", at)),
            _ => Err(external(
                Error::new(SqlState::UndefinedFunction, format!("{} takes a time and a gap", self.name()))
                    .with_hint("Write SESSION(table, time, gap PARTITION BY key) in FROM."),
            )),
        }
    }

    fn field(&self, args: WindowUDFFieldArgs) -> Result<FieldRef> {
        let at = args.get_input_field(0);
        let data_type = at.map_or(DataType::Timestamp(TimeUnit::Microsecond, None), |f| f.data_type().clone());
        Ok(Arc::new(Field::new(args.name(), data_type, true)))
    }

    fn partition_evaluator(&self, _: PartitionEvaluatorArgs) -> Result<Box<dyn PartitionEvaluator>> {
        Ok(Box::new(Sessions { end: self.end }))
    }

    fn limit_effect(&self, _: &[Arc<dyn PhysicalExpr>]) -> LimitEffect {
        LimitEffect::Unknown
    }
}

#[derive(Debug)]
struct Sessions {
    end: bool,
}

impl PartitionEvaluator for Sessions {
    fn evaluate_all(&mut self, values: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        let [at, gap] = values else {
            return Err(external(Error::internal("a session without its time and gap")));
        };
        let gaps = gap.as_primitive::<IntervalMonthDayNanoType>();
        let gap = if gaps.is_empty() || gaps.is_null(0) {
            None
        } else {
            Some(gap_us(&ScalarValue::IntervalMonthDayNano(Some(gaps.value(0)))).map_err(external)?)
        };
        let at_type = at.data_type().clone();
        let times = at.as_primitive::<TimestampMicrosecondType>();
        let Some(gap) = gap else { return Ok(arrow::array::new_null_array(&at_type, rows)) };
        let mut bounds: Vec<Option<i64>> = Vec::with_capacity(rows);
        let mut from = 0;
        while from < rows {
            if times.is_null(from) {
                bounds.push(None);
                from += 1;
                continue;
            }
            let (first, mut last) = (times.value(from), times.value(from));
            let mut to = from + 1;
            while to < rows && times.is_valid(to) && times.value(to) <= last.saturating_add(gap) {
                last = last.max(times.value(to));
                to += 1;
            }
            let bound = if self.end { last.checked_add(gap).ok_or_else(|| external(out_of_range()))? } else { first };
            bounds.extend((from..to).map(|_| Some(bound)));
            from = to;
        }
        Ok(Arc::new(TimestampMicrosecondArray::from(bounds).with_data_type(at_type)))
    }
}

fn out_of_range() -> Error {
    Error::new(SqlState::DatetimeFieldOverflow, "the end of a session is out of range")
}

/// The gap of a session in microseconds. Errors: `22023` if it is not positive, `0A000` for months.
pub(crate) fn gap_us(gap: &ScalarValue) -> flow::Result<i64> {
    let ScalarValue::IntervalMonthDayNano(Some(gap)) = gap else {
        return Err(Error::new(SqlState::InvalidParameterValue, "the gap of a session must not be NULL")
            .with_hint("Write an interval: INTERVAL '10 seconds'."));
    };
    match length_us(*gap, "gap of a session")? {
        us if us > 0 => Ok(us),
        _ => Err(Error::new(SqlState::InvalidParameterValue, "the gap of a session must be greater than zero")),
    }
}
