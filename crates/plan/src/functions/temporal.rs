//! Arithmetic of dates, times, timestamps and intervals with Postgres' result types.

use arrow::array::{ArrayRef, Datum};
use arrow::compute::kernels::numeric;
use arrow::datatypes::*;
use arrow::error::ArrowError;
use flow::{Error, SqlState};

use super::arithmetic::{Op, Types, array, division_by_zero, external, zip};

pub(super) const US_PER_DAY: i64 = 86_400_000_000;
const NS_PER_DAY: i64 = 86_400_000_000_000;
const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);
const TIME: DataType = DataType::Time64(TimeUnit::Microsecond);
const TIMESTAMP: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

/// The typing of an operator with at least one temporal operand.
pub(super) fn types(op: Op, left: &DataType, right: &DataType) -> Option<Types> {
    use DataType::{Date32, Interval, Time64, Timestamp};
    let number = |t: &DataType| t.is_integer() || t.is_floating() || matches!(t, DataType::Decimal128(_, _));
    let typed = |left: &DataType, right: &DataType, result: &DataType| {
        Some(Types { left: left.clone(), right: right.clone(), result: result.clone() })
    };
    match (op, left, right) {
        (Op::Add | Op::Sub, Date32, r) if r.is_integer() => typed(&Date32, &DataType::Int32, &Date32),
        (Op::Add, l, Date32) if l.is_integer() => typed(&DataType::Int32, &Date32, &Date32),
        (Op::Sub, Date32, Date32) => typed(&Date32, &Date32, &DataType::Int32),
        (Op::Add | Op::Sub, Date32, Interval(_)) => typed(&TIMESTAMP, &INTERVAL, &TIMESTAMP),
        (Op::Add, Interval(_), Date32) => typed(&INTERVAL, &TIMESTAMP, &TIMESTAMP),
        (Op::Add, Date32, Time64(_)) => typed(&TIMESTAMP, &TIME, &TIMESTAMP),
        (Op::Add, Time64(_), Date32) => typed(&TIME, &TIMESTAMP, &TIMESTAMP),
        (Op::Add | Op::Sub, Timestamp(_, _), Interval(_)) => typed(left, &INTERVAL, left),
        (Op::Add, Interval(_), Timestamp(_, _)) => typed(&INTERVAL, right, right),
        (Op::Add, Timestamp(_, _), Time64(_)) => typed(left, &TIME, left),
        (Op::Add, Time64(_), Timestamp(_, _)) => typed(&TIME, right, right),
        (Op::Sub, Timestamp(_, None), Timestamp(_, None)) => typed(left, right, &INTERVAL),
        (Op::Sub, Timestamp(_, Some(_)), Timestamp(_, _) | Date32) => typed(left, left, &INTERVAL),
        (Op::Sub, Timestamp(_, None) | Date32, Timestamp(_, Some(_))) => typed(right, right, &INTERVAL),
        (Op::Sub, Timestamp(_, None), Date32) | (Op::Sub, Date32, Timestamp(_, None)) => {
            typed(&TIMESTAMP, &TIMESTAMP, &INTERVAL)
        }
        (Op::Add | Op::Sub, Time64(_), Interval(_)) => typed(&TIME, &INTERVAL, &TIME),
        (Op::Add, Interval(_), Time64(_)) => typed(&INTERVAL, &TIME, &TIME),
        (Op::Sub, Time64(_), Time64(_)) => typed(&TIME, &TIME, &INTERVAL),
        (Op::Add | Op::Sub, Interval(_), Interval(_)) => typed(&INTERVAL, &INTERVAL, &INTERVAL),
        (Op::Mul | Op::Div, Interval(_), r) if number(r) => typed(&INTERVAL, &DataType::Float64, &INTERVAL),
        (Op::Mul, l, Interval(_)) if number(l) => typed(&DataType::Float64, &INTERVAL, &INTERVAL),
        _ => None,
    }
}

pub(super) fn evaluate(op: Op, left: &dyn Datum, right: &dyn Datum, result: &DataType) -> Result<ArrayRef, ArrowError> {
    use DataType::{Date32, Int32, Interval, Time64, Timestamp};
    type Iv = IntervalMonthDayNanoType;
    let (lt, rt) = (left.get().0.data_type().clone(), right.get().0.data_type().clone());
    match (op, &lt, &rt) {
        (Op::Add, Date32, Int32) => Ok(array(zip::<Date32Type, Int32Type, Date32Type>(left, right, |d, n| {
            d.checked_add(n).ok_or_else(date_range)
        })?)),
        (Op::Sub, Date32, Int32) => Ok(array(zip::<Date32Type, Int32Type, Date32Type>(left, right, |d, n| {
            d.checked_sub(n).ok_or_else(date_range)
        })?)),
        (Op::Add, Int32, Date32) => evaluate(op, right, left, result),
        (Op::Sub, Date32, Date32) => Ok(array(zip::<Date32Type, Date32Type, Int32Type>(left, right, |a, b| {
            a.checked_sub(b).ok_or_else(date_range)
        })?)),
        (Op::Sub, Timestamp(_, _), Timestamp(_, _)) => {
            Ok(array(zip::<TimestampMicrosecondType, TimestampMicrosecondType, Iv>(left, right, |a, b| {
                let us = a.checked_sub(b).ok_or_else(timestamp_range)?;
                let days = i32::try_from(us / US_PER_DAY).map_err(|_| interval_range())?;
                Ok(IntervalMonthDayNano::new(0, days, us % US_PER_DAY * 1_000))
            })?))
        }
        (Op::Add, Timestamp(_, _), Time64(_)) => Ok(array(
            zip::<TimestampMicrosecondType, Time64MicrosecondType, TimestampMicrosecondType>(left, right, |a, b| {
                a.checked_add(b).ok_or_else(timestamp_range)
            })?
            .with_data_type(result.clone()),
        )),
        (Op::Add, Time64(_), Timestamp(_, _)) | (Op::Add, Interval(_), Timestamp(_, _) | Time64(_)) => {
            evaluate(op, right, left, result)
        }
        (Op::Add | Op::Sub, Time64(_), Interval(_)) => {
            Ok(array(zip::<Time64MicrosecondType, Iv, Time64MicrosecondType>(left, right, |t, i| {
                let shift = i.nanoseconds / 1_000 % US_PER_DAY;
                let moved = if op == Op::Add { t + shift } else { t - shift };
                Ok(moved.rem_euclid(US_PER_DAY))
            })?))
        }
        (Op::Sub, Time64(_), Time64(_)) => {
            Ok(array(zip::<Time64MicrosecondType, Time64MicrosecondType, Iv>(left, right, |a, b| {
                Ok(IntervalMonthDayNano::new(0, 0, (a - b) * 1_000))
            })?))
        }
        (Op::Mul, Interval(_), DataType::Float64) => Ok(array(zip::<Iv, Float64Type, Iv>(left, right, scale)?)),
        (Op::Mul, DataType::Float64, Interval(_)) => {
            Ok(array(zip::<Float64Type, Iv, Iv>(left, right, |f, i| scale(i, f))?))
        }
        (Op::Div, Interval(_), DataType::Float64) => Ok(array(zip::<Iv, Float64Type, Iv>(left, right, |i, f| {
            if f == 0.0 { Err(external(division_by_zero())) } else { scale(i, 1.0 / f) }
        })?)),
        (Op::Add, _, _) => numeric::add(left, right).map_err(range_of(result)),
        (Op::Sub, _, _) => numeric::sub(left, right).map_err(range_of(result)),
        _ => Err(ArrowError::ComputeError(format!("no arithmetic {lt} {} {rt}", op.sign()))),
    }
}

/// The length by which intervals are compared, in nanoseconds: a month is 30 days, a day 24 hours.
pub(super) fn span(i: IntervalMonthDayNano) -> i128 {
    (i128::from(i.months) * 30 + i128::from(i.days)) * i128::from(NS_PER_DAY) + i128::from(i.nanoseconds)
}

/// An interval times a number: what a field cannot hold in whole goes to the next smaller one, a month being 30 days.
fn scale(i: IntervalMonthDayNano, f: f64) -> Result<IntervalMonthDayNano, ArrowError> {
    if !f.is_finite() {
        return Err(interval_range());
    }
    let months = i.months as f64 * f;
    let days = i.days as f64 * f + months.fract() * 30.0;
    // A sum that is whole but for the last bits of the float is whole.
    let days = if (days - days.round()).abs() < 1e-9 { days.round() } else { days };
    let nanos = i.nanoseconds as f64 * f + days.fract() * NS_PER_DAY as f64;
    // Postgres keeps microseconds.
    let nanos = (nanos / 1_000.0).round() * 1_000.0;
    let fits = |v: f64, max: f64| v.abs() <= max;
    if !fits(months, i32::MAX as f64) || !fits(days, i32::MAX as f64) || !fits(nanos, i64::MAX as f64) {
        return Err(interval_range());
    }
    Ok(IntervalMonthDayNano::new(months.trunc() as i32, days.trunc() as i32, nanos as i64))
}

fn range_of(result: &DataType) -> impl Fn(ArrowError) -> ArrowError {
    let is_interval = matches!(result, DataType::Interval(_));
    move |e| match e {
        ArrowError::ArithmeticOverflow(_) | ArrowError::ComputeError(_) if is_interval => interval_range(),
        ArrowError::ArithmeticOverflow(_) | ArrowError::ComputeError(_) => timestamp_range(),
        other => other,
    }
}

fn date_range() -> ArrowError {
    external(Error::new(SqlState::DatetimeFieldOverflow, "date out of range"))
}

pub(super) fn timestamp_range() -> ArrowError {
    external(Error::new(SqlState::DatetimeFieldOverflow, "timestamp out of range"))
}

fn interval_range() -> ArrowError {
    external(Error::new(SqlState::DatetimeFieldOverflow, "interval out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_of_an_interval_go_to_the_smaller_field() {
        let month = IntervalMonthDayNano::new(1, 0, 0);
        assert_eq!(scale(month, 0.5).unwrap(), IntervalMonthDayNano::new(0, 15, 0));
        let day = IntervalMonthDayNano::new(0, 1, 0);
        assert_eq!(scale(day, 1.5).unwrap(), IntervalMonthDayNano::new(0, 1, NS_PER_DAY / 2));
        assert_eq!(scale(day, 1.0 / 3.0).unwrap().nanoseconds, NS_PER_DAY / 3);
        assert!(scale(day, f64::MAX).is_err());
    }
}
