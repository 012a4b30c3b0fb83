//! The windows of event time: where the tumbling window of a moment starts, and the hopping ones.
//!
//! `tumble_start(at, size [, offset])` and `hop_starts(at, slide, size [, offset])`; what `TUMBLE` and `HOP` in FROM are
//! made of. Windows lie at multiples of their length from 1970-01-01 00:00 (of UTC for `timestamptz`) plus the offset. Sizes are
//! constants, so that a kernel divides and does nothing else per row.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListBuilder, PrimitiveArray, TimestampMicrosecondBuilder};
use arrow::datatypes::{DataType, Field, IntervalMonthDayNano, IntervalMonthDayNanoType, TimestampMicrosecondType};
use flow::{Error, Result, SqlState};

use super::super::temporal::US_PER_DAY;
use super::Type::*;
use super::cells::Call;
use super::{Declared, Gives, bad_argument};

/// Hopping windows that one moment may lie in.
const WINDOWS_MAX: i64 = 10_000;

pub(super) fn declare(d: &mut Declared) {
    for (two, three) in [
        (&[Timestamp, Interval] as &[_], &[Timestamp, Interval, Interval] as &[_]),
        (&[Timestamptz, Interval], &[Timestamptz, Interval, Interval]),
    ] {
        d.of("tumble_start", two, Gives::As(0), tumble_start);
        d.of("tumble_start", three, Gives::As(0), tumble_start);
    }
    for (three, four) in [
        (&[Timestamp, Interval, Interval] as &[_], &[Timestamp, Interval, Interval, Interval] as &[_]),
        (&[Timestamptz, Interval, Interval], &[Timestamptz, Interval, Interval, Interval]),
    ] {
        d.of("hop_starts", three, Gives::By(list_of_first), hop_starts);
        d.of("hop_starts", four, Gives::By(list_of_first), hop_starts);
    }
}

fn list_of_first(types: &[DataType], _: &[Option<datafusion::common::ScalarValue>]) -> DataType {
    let item = types.first().cloned().unwrap_or(DataType::Null);
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

/// A constant interval argument in microseconds; `None` for NULL.
fn length(c: &Call<'_>, i: usize, what: &str) -> Result<Option<i64>> {
    let Some((array, constant)) = c.columns.get(i) else { return Ok(Some(0)) };
    if !constant && c.rows != 1 {
        return Err(Error::unsupported(format!("the {what} of a window must be a constant"))
            .with_hint("Write an interval: INTERVAL '1 minute'."));
    }
    let values = array.as_primitive::<IntervalMonthDayNanoType>();
    if values.is_empty() || values.is_null(0) {
        return Ok(None);
    }
    length_us(values.value(0), &format!("{what} of a window")).map(Some)
}

/// An interval without months in microseconds. Errors: `0A000` for months, `22008` beyond the range.
pub(in crate::functions) fn length_us(value: IntervalMonthDayNano, what: &str) -> Result<i64> {
    if value.months != 0 {
        return Err(Error::unsupported(format!("the {what} cannot hold months or years"))
            .with_hint("Write days, hours, minutes or seconds."));
    }
    let us = i128::from(value.days) * i128::from(US_PER_DAY) + i128::from(value.nanoseconds / 1_000);
    i64::try_from(us).map_err(|_| out_of_range())
}

fn positive(us: i64, what: &str) -> Result<i64> {
    if us > 0 { Ok(us) } else { Err(bad_argument(format!("the {what} of a window must be greater than zero"))) }
}

fn out_of_range() -> Error {
    Error::new(SqlState::DatetimeFieldOverflow, "timestamp out of range")
}

/// The latest multiple of `size` plus `offset` that is not after `at`.
#[inline(always)]
fn start(at: i64, size: i64, offset: i64) -> Option<i64> {
    let since = at.checked_sub(offset)?;
    // Not below the least number, whose remainder may reach further down.
    since.checked_sub(since.rem_euclid(size))?.checked_add(offset)
}

fn at(c: &Call<'_>, row: usize) -> Option<i64> {
    let (array, constant) = &c.columns[0];
    let row = if *constant { 0 } else { row };
    array.is_valid(row).then(|| array.as_primitive::<TimestampMicrosecondType>().value(row))
}

fn tumble_start(c: &Call<'_>) -> Result<ArrayRef> {
    let (Some(size), Some(offset)) = (length(c, 1, "size")?, length(c, 2, "offset")?) else {
        return Ok(arrow::array::new_null_array(c.result, c.rows));
    };
    let size = positive(size, "size")?;
    let (array, constant) = &c.columns[0];
    let starts: PrimitiveArray<TimestampMicrosecondType> = if *constant {
        let one = at(c, 0).map(|at| start(at, size, offset).ok_or_else(out_of_range)).transpose()?;
        (0..c.rows).map(|_| one).collect()
    } else {
        let times = array.as_primitive::<TimestampMicrosecondType>();
        times.try_unary(|at| start(at, size, offset).ok_or_else(out_of_range))?
    };
    Ok(Arc::new(starts.with_data_type(c.result.clone())))
}

fn hop_starts(c: &Call<'_>) -> Result<ArrayRef> {
    let DataType::List(item) = c.result else { return Err(Error::internal("hopping windows are a list")) };
    let lengths = (length(c, 1, "slide")?, length(c, 2, "size")?, length(c, 3, "offset")?);
    let (Some(slide), Some(size), Some(offset)) = lengths else {
        return Ok(arrow::array::new_null_array(c.result, c.rows));
    };
    let (slide, size) = (positive(slide, "slide")?, positive(size, "size")?);
    if size / slide > WINDOWS_MAX {
        return Err(Error::new(SqlState::ProgramLimitExceeded, "too many hopping windows")
            .with_detail(format!("A moment lies in {} windows, and may lie in {WINDOWS_MAX}.", size / slide))
            .with_hint("Use a longer slide."));
    }
    let values = TimestampMicrosecondBuilder::new().with_data_type(item.data_type().clone());
    let mut lists = ListBuilder::with_capacity(values, c.rows).with_field(Arc::clone(item));
    for row in 0..c.rows {
        let Some(at) = at(c, row) else {
            lists.append_null();
            continue;
        };
        let newest = start(at, slide, offset).ok_or_else(out_of_range)?;
        // The oldest window that still holds the moment; none does where the slide leaves gaps.
        let before = i128::from(size) - 1 - (i128::from(at) - i128::from(newest));
        if before >= 0 {
            let count = (before / i128::from(slide)) as i64;
            for back in (0..=count).rev() {
                let start = back.checked_mul(slide).and_then(|b| newest.checked_sub(b)).ok_or_else(out_of_range)?;
                lists.values().append_value(start);
            }
        }
        lists.append(true);
    }
    Ok(Arc::new(lists.finish()))
}

#[cfg(test)]
mod tests {
    use super::start;

    #[test]
    fn windows_before_1970_and_at_the_ends_of_time() {
        assert_eq!(start(-1, 10, 0), Some(-10));
        assert_eq!(start(-10, 10, 0), Some(-10));
        assert_eq!(start(9, 10, 3), Some(3));
        assert_eq!(start(2, 10, 3), Some(-7));
        assert_eq!(start(i64::MIN, 10, 0), None);
        assert_eq!(start(i64::MIN, 1, 5), None);
        assert_eq!(start(i64::MAX, 10, 0), Some(i64::MAX - 7));
    }
}
