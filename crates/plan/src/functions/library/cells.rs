//! Kernels over rows: typed reading of argument columns, typed building of the result.
//!
//! A function is strict: where an argument is NULL the result is. Each `map` reads the columns' own buffers; an argument
//! that is the same for all rows is a column of one row.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::*;
use flow::{Error, Result};

use super::Zone;

/// A call over a batch.
pub(super) struct Call<'a> {
    /// The arguments, and whether each is one value for all rows.
    pub columns: &'a [(ArrayRef, bool)],
    pub rows: usize,
    pub result: &'a DataType,
    /// The session's.
    pub zone: Zone,
}

impl Call<'_> {
    /// The scale of a numeric argument.
    pub fn scale(&self, i: usize) -> i8 {
        match self.columns[i].0.data_type() {
            DataType::Decimal128(_, s) => *s,
            _ => 0,
        }
    }

    /// Precision and scale of a numeric result.
    pub fn result_scale(&self) -> (u8, i8) {
        match self.result {
            DataType::Decimal128(p, s) => (*p, *s),
            _ => (38, 18),
        }
    }

    pub fn column<'a, C: Cell<'a>>(&'a self, i: usize) -> Column<'a, C> {
        let (array, constant) = &self.columns[i];
        Column { array: C::down(array), nulls: array, constant: *constant }
    }
}

/// A column of typed values.
pub(super) struct Column<'a, C: Cell<'a>> {
    array: &'a C::Array,
    nulls: &'a ArrayRef,
    constant: bool,
}

impl<'a, C: Cell<'a>> Column<'a, C> {
    pub fn get(&self, row: usize) -> Option<C> {
        let row = if self.constant { 0 } else { row };
        if self.nulls.is_null(row) { None } else { Some(C::at(self.array, row)) }
    }
}

/// A value that can be read from a column.
pub(super) trait Cell<'a>: Sized {
    type Array: 'a;
    fn down(array: &'a ArrayRef) -> &'a Self::Array;
    fn at(array: &'a Self::Array, row: usize) -> Self;
}

impl<'a> Cell<'a> for &'a str {
    type Array = StringViewArray;
    fn down(array: &'a ArrayRef) -> &'a StringViewArray {
        array.as_string_view()
    }
    fn at(array: &'a StringViewArray, row: usize) -> &'a str {
        array.value(row)
    }
}

impl<'a> Cell<'a> for &'a [u8] {
    type Array = BinaryArray;
    fn down(array: &'a ArrayRef) -> &'a BinaryArray {
        array.as_binary()
    }
    fn at(array: &'a BinaryArray, row: usize) -> &'a [u8] {
        array.value(row)
    }
}

impl<'a> Cell<'a> for bool {
    type Array = BooleanArray;
    fn down(array: &'a ArrayRef) -> &'a BooleanArray {
        array.as_boolean()
    }
    fn at(array: &'a BooleanArray, row: usize) -> bool {
        array.value(row)
    }
}

/// The elements of an array of text.
impl<'a> Cell<'a> for Vec<Option<&'a str>> {
    type Array = ListArray;
    fn down(array: &'a ArrayRef) -> &'a ListArray {
        array.as_list()
    }
    fn at(array: &'a ListArray, row: usize) -> Self {
        let (start, end) = (array.value_offsets()[row] as usize, array.value_offsets()[row + 1] as usize);
        let texts = array.values().as_string_view();
        (start..end).map(|i| texts.is_valid(i).then(|| texts.value(i))).collect()
    }
}

/// An unscaled numeric.
#[derive(Clone, Copy)]
pub(super) struct Decimal(pub i128);
/// Days since 1970-01-01.
#[derive(Clone, Copy)]
pub(super) struct Day(pub i32);
/// Microseconds since midnight.
#[derive(Clone, Copy)]
pub(super) struct Clock(pub i64);
/// Microseconds since 1970, local or in UTC.
#[derive(Clone, Copy)]
pub(super) struct Moment(pub i64);

/// A value that a result column can be built of.
pub(super) trait Output: Sized {
    type Builder;
    fn builder(rows: usize) -> Self::Builder;
    fn push(builder: &mut Self::Builder, value: Option<Self>);
    fn finish(builder: Self::Builder, result: &DataType) -> Result<ArrayRef>;
}

macro_rules! primitive_cells {
    ($($native:ty, $arrow:ty, |$read:ident| $wrap:expr, |$write:ident| $unwrap:expr;)*) => { $(
        impl<'a> Cell<'a> for $native {
            type Array = PrimitiveArray<$arrow>;
            fn down(array: &'a ArrayRef) -> &'a PrimitiveArray<$arrow> {
                array.as_primitive()
            }
            fn at(array: &'a PrimitiveArray<$arrow>, row: usize) -> $native {
                let $read = array.value(row);
                $wrap
            }
        }
        impl Output for $native {
            type Builder = PrimitiveBuilder<$arrow>;
            fn builder(rows: usize) -> Self::Builder {
                PrimitiveBuilder::with_capacity(rows)
            }
            fn push(builder: &mut Self::Builder, value: Option<$native>) {
                builder.append_option(value.map(|$write| $unwrap));
            }
            fn finish(mut builder: Self::Builder, result: &DataType) -> Result<ArrayRef> {
                let array = builder.finish();
                Ok(if array.data_type() == result { Arc::new(array) } else { Arc::new(array.with_data_type(result.clone())) })
            }
        }
    )* };
}

primitive_cells! {
    i16, Int16Type, |v| v, |v| v;
    i32, Int32Type, |v| v, |v| v;
    i64, Int64Type, |v| v, |v| v;
    f32, Float32Type, |v| v, |v| v;
    f64, Float64Type, |v| v, |v| if v.is_nan() { f64::NAN } else { v };
    Decimal, Decimal128Type, |v| Decimal(v), |v| v.0;
    Day, Date32Type, |v| Day(v), |v| v.0;
    Clock, Time64MicrosecondType, |v| Clock(v), |v| v.0;
    Moment, TimestampMicrosecondType, |v| Moment(v), |v| v.0;
    IntervalMonthDayNano, IntervalMonthDayNanoType, |v| v, |v| v;
}

impl Output for bool {
    type Builder = BooleanBuilder;
    fn builder(rows: usize) -> BooleanBuilder {
        BooleanBuilder::with_capacity(rows)
    }
    fn push(builder: &mut BooleanBuilder, value: Option<bool>) {
        builder.append_option(value);
    }
    fn finish(mut builder: BooleanBuilder, _: &DataType) -> Result<ArrayRef> {
        Ok(Arc::new(builder.finish()))
    }
}

impl Output for Cow<'_, str> {
    type Builder = StringViewBuilder;
    fn builder(rows: usize) -> StringViewBuilder {
        StringViewBuilder::with_capacity(rows)
    }
    fn push(builder: &mut StringViewBuilder, value: Option<Self>) {
        builder.append_option(value);
    }
    fn finish(mut builder: StringViewBuilder, _: &DataType) -> Result<ArrayRef> {
        Ok(Arc::new(builder.finish()))
    }
}

impl Output for String {
    type Builder = StringViewBuilder;
    fn builder(rows: usize) -> StringViewBuilder {
        StringViewBuilder::with_capacity(rows)
    }
    fn push(builder: &mut StringViewBuilder, value: Option<String>) {
        builder.append_option(value);
    }
    fn finish(mut builder: StringViewBuilder, _: &DataType) -> Result<ArrayRef> {
        Ok(Arc::new(builder.finish()))
    }
}

impl<'a> Output for &'a str {
    type Builder = StringViewBuilder;
    fn builder(rows: usize) -> StringViewBuilder {
        StringViewBuilder::with_capacity(rows)
    }
    fn push(builder: &mut StringViewBuilder, value: Option<&'a str>) {
        builder.append_option(value);
    }
    fn finish(mut builder: StringViewBuilder, _: &DataType) -> Result<ArrayRef> {
        Ok(Arc::new(builder.finish()))
    }
}

impl Output for Vec<u8> {
    type Builder = BinaryBuilder;
    fn builder(rows: usize) -> BinaryBuilder {
        BinaryBuilder::with_capacity(rows, 0)
    }
    fn push(builder: &mut BinaryBuilder, value: Option<Vec<u8>>) {
        builder.append_option(value);
    }
    fn finish(mut builder: BinaryBuilder, _: &DataType) -> Result<ArrayRef> {
        Ok(Arc::new(builder.finish()))
    }
}

impl Output for Vec<Option<String>> {
    type Builder = ListBuilder<StringViewBuilder>;
    fn builder(_: usize) -> Self::Builder {
        ListBuilder::new(StringViewBuilder::new())
    }
    fn push(builder: &mut Self::Builder, value: Option<Self>) {
        match value {
            Some(elements) => {
                for element in elements {
                    builder.values().append_option(element);
                }
                builder.append(true);
            }
            None => builder.append(false),
        }
    }
    fn finish(mut builder: Self::Builder, _: &DataType) -> Result<ArrayRef> {
        Ok(Arc::new(builder.finish()))
    }
}

/// A result that may be NULL although no argument is.
impl<O: Output> Output for Option<O> {
    type Builder = O::Builder;
    fn builder(rows: usize) -> O::Builder {
        O::builder(rows)
    }
    fn push(builder: &mut O::Builder, value: Option<Option<O>>) {
        O::push(builder, value.flatten());
    }
    fn finish(builder: O::Builder, result: &DataType) -> Result<ArrayRef> {
        O::finish(builder, result)
    }
}

/// Builds the result of any function, strict or not.
pub(super) fn build<O: Output>(call: &Call<'_>, mut value: impl FnMut(usize) -> Result<Option<O>>) -> Result<ArrayRef> {
    let mut builder = O::builder(call.rows);
    for row in 0..call.rows {
        O::push(&mut builder, value(row)?);
    }
    O::finish(builder, call.result)
}

pub(super) fn map0<O: Output>(call: &Call<'_>, mut f: impl FnMut() -> Result<O>) -> Result<ArrayRef> {
    build(call, |_| f().map(Some))
}

pub(super) fn map1<'a, A: Cell<'a>, O: Output>(
    call: &'a Call<'_>,
    mut f: impl FnMut(A) -> Result<O>,
) -> Result<ArrayRef> {
    let a = call.column::<A>(0);
    build(call, |row| a.get(row).map(&mut f).transpose())
}

pub(super) fn map2<'a, A: Cell<'a>, B: Cell<'a>, O: Output>(
    call: &'a Call<'_>,
    mut f: impl FnMut(A, B) -> Result<O>,
) -> Result<ArrayRef> {
    let (a, b) = (call.column::<A>(0), call.column::<B>(1));
    build(call, |row| match (a.get(row), b.get(row)) {
        (Some(a), Some(b)) => f(a, b).map(Some),
        _ => Ok(None),
    })
}

pub(super) fn map3<'a, A: Cell<'a>, B: Cell<'a>, C: Cell<'a>, O: Output>(
    call: &'a Call<'_>,
    mut f: impl FnMut(A, B, C) -> Result<O>,
) -> Result<ArrayRef> {
    let (a, b, c) = (call.column::<A>(0), call.column::<B>(1), call.column::<C>(2));
    build(call, |row| match (a.get(row), b.get(row), c.get(row)) {
        (Some(a), Some(b), Some(c)) => f(a, b, c).map(Some),
        _ => Ok(None),
    })
}

pub(super) fn map4<'a, A: Cell<'a>, B: Cell<'a>, C: Cell<'a>, D: Cell<'a>, O: Output>(
    call: &'a Call<'_>,
    mut f: impl FnMut(A, B, C, D) -> Result<O>,
) -> Result<ArrayRef> {
    let (a, b, c, d) = (call.column::<A>(0), call.column::<B>(1), call.column::<C>(2), call.column::<D>(3));
    build(call, |row| match (a.get(row), b.get(row), c.get(row), d.get(row)) {
        (Some(a), Some(b), Some(c), Some(d)) => f(a, b, c, d).map(Some),
        _ => Ok(None),
    })
}

/// The texts of every argument from `first` on, as Postgres writes values of their types.
pub(super) fn texts(call: &Call<'_>, first: usize) -> Result<Vec<(StringViewArray, bool)>> {
    call.columns[first..]
        .iter()
        .map(|(array, constant)| {
            let text =
                super::cast::to_text(array, &call.zone).map_err(|e| crate::error::from_datafusion_error(e.into()))?;
            Ok((text, *constant))
        })
        .collect()
}

/// The text of a row in what [`texts`] gave.
pub(super) fn text_at((array, constant): &(StringViewArray, bool), row: usize) -> Option<&str> {
    let row = if *constant { 0 } else { row };
    array.is_valid(row).then(|| array.value(row))
}

/// The error of a value that leaves the range of its type.
pub(super) fn out_of_range(what: &str) -> Error {
    Error::new(flow::SqlState::NumericValueOutOfRange, format!("{what} out of range"))
}
