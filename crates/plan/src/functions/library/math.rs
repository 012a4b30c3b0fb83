//! Numbers.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Datum, Scalar};
use arrow::datatypes::{DataType, i256};
use datafusion::common::ScalarValue;
use flow::{Error, Result, SqlState};

use super::super::arithmetic::{self, Op};
use super::super::decimal::{overflow_error, power as power_of_ten, round_down};
use super::super::parse;
use super::Type::*;
use super::cells::{Call, Decimal, map0, map1, map2, map4, out_of_range};
use super::{Declared, Gives};

pub(super) fn declare(d: &mut Declared) {
    absolute_and_sign(d);
    rounding(d);
    powers(d);
    trigonometry(d);
    integers(d);
    bits(d);
}

/// The numeric arguments' precision and scale.
fn shape(types: &[DataType], i: usize) -> (u8, i8) {
    match types.get(i) {
        Some(DataType::Decimal128(p, s)) => (*p, *s),
        _ => (38, 18),
    }
}

fn plain(_: &[DataType], _: &[Option<ScalarValue>]) -> DataType {
    DataType::Decimal128(38, 18)
}

fn checked(value: Option<i128>, precision: u8, scale: i8) -> Result<Decimal> {
    match value {
        Some(v) if v.unsigned_abs() < power_of_ten(precision).unsigned_abs() => Ok(Decimal(v)),
        _ => Err(overflow_error(precision, scale)),
    }
}

fn absolute_and_sign(d: &mut Declared) {
    d.of("abs", &[Int2], Gives::Is(Int2), |c| {
        map1(c, |v: i16| v.checked_abs().ok_or_else(|| out_of_range("smallint")))
    });
    d.of("abs", &[Int4], Gives::Is(Int4), |c| map1(c, |v: i32| v.checked_abs().ok_or_else(|| out_of_range("integer"))));
    d.of("abs", &[Int8], Gives::Is(Int8), |c| map1(c, |v: i64| v.checked_abs().ok_or_else(|| out_of_range("bigint"))));
    d.of("abs", &[Numeric], Gives::As(0), |c| map1(c, |v: Decimal| Ok(Decimal(v.0.wrapping_abs()))));
    d.of("abs", &[Float4], Gives::Is(Float4), |c| map1(c, |v: f32| Ok(v.abs())));
    d.of("abs", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v.abs())));
    d.of("sign", &[Numeric], Gives::By(|_, _| DataType::Decimal128(1, 0)), |c| {
        map1(c, |v: Decimal| Ok(Decimal(v.0.signum())))
    });
    d.of("sign", &[Float8], Gives::Is(Float8), |c| {
        map1(c, |v: f64| {
            Ok(if v > 0.0 {
                1.0
            } else if v < 0.0 {
                -1.0
            } else {
                v.abs()
            })
        })
    });
}

/// The type of a numeric without fraction, with room for a carry.
fn whole(types: &[DataType], _: &[Option<ScalarValue>]) -> DataType {
    let (p, s) = shape(types, 0);
    DataType::Decimal128((p as i16 - s as i16 + 1).clamp(1, 38) as u8, 0)
}

/// The type of a numeric with as many digits after the point as a constant says.
fn with_digits(types: &[DataType], constants: &[Option<ScalarValue>]) -> DataType {
    let (p, s) = shape(types, 0);
    let digits = match constants.get(1) {
        Some(Some(ScalarValue::Int32(Some(n)))) => i64::from(*n),
        Some(Some(ScalarValue::Int64(Some(n)))) => *n,
        _ => return DataType::Decimal128(38, 18),
    };
    let integer = (p as i64 - s as i64 + 1).clamp(1, 38);
    let scale = digits.clamp(0, 38 - integer);
    DataType::Decimal128((integer + scale).clamp(1, 38) as u8, scale as i8)
}

/// `v` of scale `from` at scale `to`, cut to `digits` after the point by `cut(value, power)`.
fn at_digits(
    v: i128,
    from: i8,
    digits: i32,
    (precision, to): (u8, i8),
    cut: impl Fn(i128, u8) -> i128,
) -> Result<Decimal> {
    let drop = i64::from(from) - i64::from(digits);
    let kept = match u8::try_from(drop) {
        Ok(drop) if drop > 38 => Some(0),
        Ok(drop) => cut(v, drop).checked_mul(power_of_ten(drop)),
        Err(_) if drop > 0 => Some(0),
        Err(_) => Some(v),
    };
    let scaled = kept.and_then(|v| {
        if to >= from { v.checked_mul(power_of_ten((to - from) as u8)) } else { Some(round_down(v, (from - to) as u8)) }
    });
    checked(scaled, precision, to)
}

fn truncated(v: i128, digits: u8) -> i128 {
    v / power_of_ten(digits)
}

fn toward_floor(v: i128, digits: u8) -> i128 {
    v.div_euclid(power_of_ten(digits))
}

fn rounding(d: &mut Declared) {
    d.of("round", &[Numeric], Gives::By(whole), |c| {
        let (from, to) = (c.scale(0), c.result_scale());
        map1(c, |v: Decimal| at_digits(v.0, from, 0, to, round_down))
    });
    d.of("round", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v.round_ties_even())));
    d.of("round", &[Numeric, Int4], Gives::By(with_digits), |c| {
        let (from, to) = (c.scale(0), c.result_scale());
        map2(c, |v: Decimal, n: i32| at_digits(v.0, from, n, to, round_down))
    });
    d.of("trunc", &[Numeric], Gives::By(whole), |c| {
        let (from, to) = (c.scale(0), c.result_scale());
        map1(c, |v: Decimal| at_digits(v.0, from, 0, to, truncated))
    });
    d.of("trunc", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v.trunc())));
    d.of("trunc", &[Numeric, Int4], Gives::By(with_digits), |c| {
        let (from, to) = (c.scale(0), c.result_scale());
        map2(c, |v: Decimal, n: i32| at_digits(v.0, from, n, to, truncated))
    });
    for name in ["ceil", "ceiling"] {
        d.of(name, &[Numeric], Gives::By(whole), |c| {
            let (from, to) = (c.scale(0), c.result_scale());
            map1(c, |v: Decimal| at_digits(v.0, from, 0, to, |v, n| -toward_floor(-v, n)))
        });
        d.of(name, &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v.ceil())));
    }
    d.of("floor", &[Numeric], Gives::By(whole), |c| {
        let (from, to) = (c.scale(0), c.result_scale());
        map1(c, |v: Decimal| at_digits(v.0, from, 0, to, toward_floor))
    });
    d.of("floor", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v.floor())));
    d.of("scale", &[Numeric], Gives::Is(Int4), |c| {
        // A plain numeric has the digits that it shows.
        let scale = c.scale(0);
        let plain = *c.columns[0].0.data_type() == DataType::Decimal128(38, 18);
        map1(c, |v: Decimal| Ok(if plain { least_scale(v.0, scale) } else { i32::from(scale) }))
    });
    d.of("min_scale", &[Numeric], Gives::Is(Int4), |c| {
        let scale = c.scale(0);
        map1(c, |v: Decimal| Ok(least_scale(v.0, scale)))
    });
    d.of("trim_scale", &[Numeric], Gives::By(plain), |c| {
        let (from, to) = (c.scale(0), c.result_scale());
        map1(c, |v: Decimal| at_digits(v.0, from, i32::from(from), to, round_down))
    });
}

fn least_scale(mut v: i128, scale: i8) -> i32 {
    let mut scale = i32::from(scale);
    if v == 0 {
        return 0;
    }
    while scale > 0 && v % 10 == 0 {
        v /= 10;
        scale -= 1;
    }
    scale
}

fn no_root() -> Error {
    Error::new(SqlState::InvalidArgumentForPowerFunction, "cannot take square root of a negative number")
}

fn no_logarithm(is_zero: bool) -> Error {
    let of = if is_zero { "zero" } else { "a negative number" };
    Error::new(SqlState::InvalidArgumentForLogarithm, format!("cannot take logarithm of {of}"))
}

fn overflow() -> Error {
    Error::new(SqlState::NumericValueOutOfRange, "value out of range: overflow")
}

fn underflow() -> Error {
    Error::new(SqlState::NumericValueOutOfRange, "value out of range: underflow")
}

fn logarithm(v: f64, f: impl Fn(f64) -> f64) -> Result<f64> {
    if v <= 0.0 { Err(no_logarithm(v == 0.0)) } else { Ok(f(v)) }
}

fn exponential(v: f64) -> Result<f64> {
    let out = v.exp();
    if out.is_infinite() && v.is_finite() {
        Err(overflow())
    } else if out == 0.0 && v.is_finite() {
        Err(underflow())
    } else {
        Ok(out)
    }
}

fn raise(base: f64, exponent: f64) -> Result<f64> {
    if base == 0.0 && exponent < 0.0 {
        return Err(Error::new(
            SqlState::InvalidArgumentForPowerFunction,
            "zero raised to a negative power is undefined",
        ));
    }
    if base < 0.0 && exponent.is_finite() && exponent.fract() != 0.0 {
        return Err(Error::new(
            SqlState::InvalidArgumentForPowerFunction,
            "a negative number raised to a non-integer power yields a complex result",
        ));
    }
    let out = base.powf(exponent);
    if out.is_infinite() && base.is_finite() && exponent.is_finite() {
        Err(overflow())
    } else if out == 0.0 && base != 0.0 && base.is_finite() && exponent.is_finite() {
        Err(underflow())
    } else {
        Ok(out)
    }
}

/// A decimal as the nearest double.
fn to_double(v: i128, scale: i8) -> f64 {
    if scale <= 0 || v == 0 {
        return v as f64;
    }
    let mut text = String::new();
    super::super::format::decimal(&mut text, v, scale, false);
    text.parse().unwrap_or(f64::NAN)
}

/// A double as a numeric with the digits that a double has.
fn to_decimal(v: f64, (precision, scale): (u8, i8)) -> Result<Decimal> {
    if !v.is_finite() {
        return Err(overflow_error(precision, scale));
    }
    parse::decimal(&format!("{v:.15e}"), precision, scale).map(Decimal)
}

/// The square root of a decimal, exact to the last digit of the result.
fn decimal_root(v: i128, from: i8, to: i8) -> Option<i128> {
    let shift = u32::try_from(i32::from(to) * 2 - i32::from(from)).ok()?;
    let n = i256::from_i128(v).checked_mul(i256::from_i128(10).checked_pow(shift)?)?;
    if n == i256::ZERO {
        return Some(0);
    }
    // Newton's method from above.
    let two = i256::from_i128(2);
    let start = to_double(v, from).sqrt() * 10f64.powi(i32::from(to)) * 1.000_001 + 2.0;
    let mut root = i256::from_i128(start as i128);
    loop {
        let next = root.checked_add(n.checked_div(root)?)?.checked_div(two)?;
        if next >= root {
            break;
        }
        root = next;
    }
    // Rounded: (root + 1/2)^2 = root^2 + root + 1/4.
    let half = root.checked_mul(root)?.checked_add(root)?;
    if n > half { root.checked_add(i256::from_i128(1)) } else { Some(root) }?.to_i128()
}

fn whole_power(base: i128, scale: i8, exponent: u32, (precision, to): (u8, i8)) -> Option<i128> {
    // Square and multiply at the result's scale; a factor is rounded there.
    let one = power_of_ten(to as u8);
    let times = |a: i128, b: i128| -> Option<i128> {
        let product = i256::from_i128(a).checked_mul(i256::from_i128(b))?;
        let half = i256::from_i128(if product < i256::ZERO { -(one / 2) } else { one / 2 });
        product.checked_add(half)?.checked_div(i256::from_i128(one))?.to_i128()
    };
    let mut square = if to >= scale {
        base.checked_mul(power_of_ten((to - scale) as u8))?
    } else {
        round_down(base, (scale - to) as u8)
    };
    let (mut result, mut left) = (one, exponent);
    while left > 0 {
        if left & 1 == 1 {
            result = times(result, square)?;
        }
        left >>= 1;
        if left > 0 {
            square = times(square, square)?;
        }
    }
    (result.unsigned_abs() < power_of_ten(precision).unsigned_abs()).then_some(result)
}

fn powers(d: &mut Declared) {
    d.of("sqrt", &[Numeric], Gives::By(plain), |c| {
        let (from, (precision, to)) = (c.scale(0), c.result_scale());
        map1(c, |v: Decimal| if v.0 < 0 { Err(no_root()) } else { checked(decimal_root(v.0, from, to), precision, to) })
    });
    d.of("sqrt", &[Float8], Gives::Is(Float8), |c| {
        map1(c, |v: f64| if v < 0.0 { Err(no_root()) } else { Ok(v.sqrt()) })
    });
    d.of("cbrt", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v.cbrt())));
    d.of("exp", &[Numeric], Gives::By(plain), |c| {
        let (from, to) = (c.scale(0), c.result_scale());
        map1(c, |v: Decimal| to_decimal(to_double(v.0, from).exp(), to))
    });
    d.of("exp", &[Float8], Gives::Is(Float8), |c| map1(c, exponential));
    d.of("ln", &[Numeric], Gives::By(plain), |c| {
        let (from, to) = (c.scale(0), c.result_scale());
        map1(c, |v: Decimal| to_decimal(logarithm(to_double(v.0, from), f64::ln)?, to))
    });
    d.of("ln", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| logarithm(v, f64::ln)));
    for name in ["log", "log10"] {
        d.of(name, &[Numeric], Gives::By(plain), |c| {
            let (from, to) = (c.scale(0), c.result_scale());
            map1(c, |v: Decimal| to_decimal(logarithm(to_double(v.0, from), f64::log10)?, to))
        });
        d.of(name, &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| logarithm(v, f64::log10)));
    }
    d.of("log", &[Numeric, Numeric], Gives::By(plain), |c| {
        let (s0, s1, to) = (c.scale(0), c.scale(1), c.result_scale());
        map2(c, |base: Decimal, v: Decimal| {
            let (base, v) = (logarithm(to_double(base.0, s0), f64::ln)?, logarithm(to_double(v.0, s1), f64::ln)?);
            if base == 0.0 { Err(arithmetic::division_by_zero()) } else { to_decimal(v / base, to) }
        })
    });
    for name in ["power", "pow"] {
        d.of(name, &[Numeric, Numeric], Gives::By(plain), |c| {
            let (s0, s1, to) = (c.scale(0), c.scale(1), c.result_scale());
            map2(c, |base: Decimal, exponent: Decimal| {
                let unit = power_of_ten(s1.max(0) as u8);
                if exponent.0 >= 0
                    && exponent.0 % unit == 0
                    && let Ok(whole) = u32::try_from(exponent.0 / unit)
                {
                    return match whole_power(base.0, s0, whole, to) {
                        Some(v) => Ok(Decimal(v)),
                        None => Err(Error::new(SqlState::NumericValueOutOfRange, "value overflows numeric format")),
                    };
                }
                to_decimal(raise(to_double(base.0, s0), to_double(exponent.0, s1))?, to)
            })
        });
        d.of(name, &[Float8, Float8], Gives::Is(Float8), |c| map2(c, raise));
    }
}

fn within_one(v: f64, f: impl Fn(f64) -> f64) -> Result<f64> {
    if v.abs() > 1.0 {
        return Err(Error::new(SqlState::NumericValueOutOfRange, "input is out of range"));
    }
    Ok(f(v))
}

/// A trigonometric function of an angle, which is not infinite.
fn of_angle(v: f64, f: impl Fn(f64) -> f64) -> Result<f64> {
    if v.is_infinite() {
        return Err(Error::new(SqlState::NumericValueOutOfRange, "input is out of range"));
    }
    Ok(f(v))
}

/// Sine of degrees, exact where the sine is.
fn sine_of_degrees(v: f64) -> f64 {
    let turn = v.rem_euclid(360.0);
    match turn {
        0.0 | 180.0 => 0.0,
        90.0 => 1.0,
        270.0 => -1.0,
        30.0 | 150.0 => 0.5,
        210.0 | 330.0 => -0.5,
        _ => turn.to_radians().sin(),
    }
}

fn tangent_of_degrees(v: f64) -> f64 {
    match v.rem_euclid(180.0) {
        0.0 => 0.0,
        45.0 => 1.0,
        135.0 => -1.0,
        90.0 => f64::INFINITY,
        turn => turn.to_radians().tan(),
    }
}

fn trigonometry(d: &mut Declared) {
    d.of("pi", &[], Gives::Is(Float8), |c| map0(c, || Ok(std::f64::consts::PI)));
    d.of("degrees", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v.to_degrees())));
    d.of("radians", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v.to_radians())));
    d.of("sin", &[Float8], Gives::Is(Float8), |c| map1(c, |v| of_angle(v, f64::sin)));
    d.of("cos", &[Float8], Gives::Is(Float8), |c| map1(c, |v| of_angle(v, f64::cos)));
    d.of("tan", &[Float8], Gives::Is(Float8), |c| map1(c, |v| of_angle(v, f64::tan)));
    d.of("cot", &[Float8], Gives::Is(Float8), |c| map1(c, |v| of_angle(v, |v| 1.0 / v.tan())));
    d.of("sind", &[Float8], Gives::Is(Float8), |c| map1(c, |v| of_angle(v, sine_of_degrees)));
    d.of("cosd", &[Float8], Gives::Is(Float8), |c| map1(c, |v| of_angle(v, |v| sine_of_degrees(v + 90.0))));
    d.of("tand", &[Float8], Gives::Is(Float8), |c| map1(c, |v| of_angle(v, tangent_of_degrees)));
    d.of("asin", &[Float8], Gives::Is(Float8), |c| map1(c, |v| within_one(v, f64::asin)));
    d.of("acos", &[Float8], Gives::Is(Float8), |c| map1(c, |v| within_one(v, f64::acos)));
    d.of("atan", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v.atan())));
    d.of("atan2", &[Float8, Float8], Gives::Is(Float8), |c| map2(c, |y: f64, x: f64| Ok(y.atan2(x))));
    d.of("sinh", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v.sinh())));
    d.of("cosh", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v.cosh())));
    d.of("tanh", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v.tanh())));
    d.of("asinh", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v.asinh())));
    d.of("acosh", &[Float8], Gives::Is(Float8), |c| {
        map1(c, |v: f64| {
            if v < 1.0 {
                return Err(Error::new(SqlState::NumericValueOutOfRange, "input is out of range"));
            }
            Ok(v.acosh())
        })
    });
    d.of("atanh", &[Float8], Gives::Is(Float8), |c| map1(c, |v| within_one(v, f64::atanh)));
}

/// An arithmetic operator as a function.
fn operate(call: &Call<'_>, op: Op) -> Result<ArrayRef> {
    let datum = |i: usize| -> Box<dyn Datum> {
        let (array, constant) = &call.columns[i];
        if *constant && call.rows != 1 { Box::new(Scalar::new(Arc::clone(array))) } else { Box::new(Arc::clone(array)) }
    };
    arithmetic::evaluate(op, datum(0).as_ref(), datum(1).as_ref(), call.result)
        .map_err(|e| crate::error::from_datafusion_error(e.into()))
}

fn remainder_type(types: &[DataType], _: &[Option<ScalarValue>]) -> DataType {
    match types {
        [left, right] => {
            arithmetic::types(Op::Rem, left, right).map_or(DataType::Decimal128(38, 18), |types| types.result)
        }
        _ => DataType::Decimal128(38, 18),
    }
}

fn divisor_of(mut a: i128, mut b: i128) -> i128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.abs()
}

fn multiple_of(a: i128, b: i128) -> i128 {
    if a == 0 || b == 0 { 0 } else { (a / divisor_of(a, b) * b).abs() }
}

fn integers(d: &mut Declared) {
    d.of("mod", &[Int2, Int2], Gives::Is(Int2), |c| operate(c, Op::Rem));
    d.of("mod", &[Int4, Int4], Gives::Is(Int4), |c| operate(c, Op::Rem));
    d.of("mod", &[Int8, Int8], Gives::Is(Int8), |c| operate(c, Op::Rem));
    d.of("mod", &[Numeric, Numeric], Gives::By(remainder_type), |c| operate(c, Op::Rem));
    d.of("div", &[Numeric, Numeric], Gives::By(|_, _| DataType::Decimal128(38, 0)), |c| {
        let (s0, s1) = (c.scale(0), c.scale(1));
        map2(c, |a: Decimal, b: Decimal| {
            if b.0 == 0 {
                return Err(arithmetic::division_by_zero());
            }
            let scale = s0.max(s1);
            let wide =
                |v: i128, s: i8| i256::from_i128(v).wrapping_mul(i256::from_i128(power_of_ten((scale - s) as u8)));
            checked(wide(a.0, s0).wrapping_div(wide(b.0, s1)).to_i128(), 38, 0)
        })
    });
    d.of("gcd", &[Int4, Int4], Gives::Is(Int4), |c| {
        map2(c, |a: i32, b: i32| i32::try_from(divisor_of(a.into(), b.into())).map_err(|_| out_of_range("integer")))
    });
    d.of("gcd", &[Int8, Int8], Gives::Is(Int8), |c| {
        map2(c, |a: i64, b: i64| i64::try_from(divisor_of(a.into(), b.into())).map_err(|_| out_of_range("bigint")))
    });
    d.of("lcm", &[Int4, Int4], Gives::Is(Int4), |c| {
        map2(c, |a: i32, b: i32| i32::try_from(multiple_of(a.into(), b.into())).map_err(|_| out_of_range("integer")))
    });
    d.of("lcm", &[Int8, Int8], Gives::Is(Int8), |c| {
        map2(c, |a: i64, b: i64| i64::try_from(multiple_of(a.into(), b.into())).map_err(|_| out_of_range("bigint")))
    });
    d.of("factorial", &[Int8], Gives::By(|_, _| DataType::Decimal128(38, 0)), |c| {
        map1(c, |n: i64| {
            if n < 0 {
                return Err(Error::new(
                    SqlState::NumericValueOutOfRange,
                    "factorial of a negative number is undefined",
                ));
            }
            let product = (1..=i128::from(n.min(40))).try_fold(1i128, i128::checked_mul);
            checked(product, 38, 0)
        })
    });
    d.of("to_hex", &[Int4], Gives::Is(Text), |c| map1(c, |v: i32| Ok(format!("{v:x}"))));
    d.of("to_hex", &[Int8], Gives::Is(Text), |c| map1(c, |v: i64| Ok(format!("{v:x}"))));
    d.of("width_bucket", &[Float8, Float8, Float8, Int4], Gives::Is(Int4), |c| map4(c, bucket));
    d.of("width_bucket", &[Numeric, Numeric, Numeric, Int4], Gives::Is(Int4), |c| {
        let (s0, s1, s2) = (c.scale(0), c.scale(1), c.scale(2));
        map4(c, |v: Decimal, low: Decimal, high: Decimal, count: i32| {
            bucket(to_double(v.0, s0), to_double(low.0, s1), to_double(high.0, s2), count)
        })
    });
}

fn bucket(v: f64, low: f64, high: f64, count: i32) -> Result<i32> {
    let bad = |message: &str| Err(Error::new(SqlState::InvalidArgumentForWidthBucket, message));
    if count <= 0 {
        return bad("count must be greater than zero");
    }
    if v.is_nan() || low.is_nan() || high.is_nan() {
        return bad("operand, lower bound, and upper bound cannot be NaN");
    }
    if !low.is_finite() || !high.is_finite() {
        return bad("lower and upper bounds must be finite");
    }
    if low == high {
        return bad("lower bound cannot equal upper bound");
    }
    let (from, to, v) = if low < high { (low, high, v) } else { (-low, -high, -v) };
    Ok(if v < from {
        0
    } else if v >= to {
        count.checked_add(1).ok_or_else(|| out_of_range("integer"))?
    } else {
        (((v - from) / (to - from) * f64::from(count)) as i32).min(count - 1) + 1
    })
}

fn bits(d: &mut Declared) {
    d.of("&", &[Int2, Int2], Gives::Is(Int2), |c| map2(c, |a: i16, b: i16| Ok(a & b)));
    d.of("&", &[Int4, Int4], Gives::Is(Int4), |c| map2(c, |a: i32, b: i32| Ok(a & b)));
    d.of("&", &[Int8, Int8], Gives::Is(Int8), |c| map2(c, |a: i64, b: i64| Ok(a & b)));
    d.of("|", &[Int2, Int2], Gives::Is(Int2), |c| map2(c, |a: i16, b: i16| Ok(a | b)));
    d.of("|", &[Int4, Int4], Gives::Is(Int4), |c| map2(c, |a: i32, b: i32| Ok(a | b)));
    d.of("|", &[Int8, Int8], Gives::Is(Int8), |c| map2(c, |a: i64, b: i64| Ok(a | b)));
    d.of("#", &[Int2, Int2], Gives::Is(Int2), |c| map2(c, |a: i16, b: i16| Ok(a ^ b)));
    d.of("#", &[Int4, Int4], Gives::Is(Int4), |c| map2(c, |a: i32, b: i32| Ok(a ^ b)));
    d.of("#", &[Int8, Int8], Gives::Is(Int8), |c| map2(c, |a: i64, b: i64| Ok(a ^ b)));
    d.of("<<", &[Int2, Int4], Gives::Is(Int2), |c| {
        map2(c, |a: i16, n: i32| Ok(i32::from(a).wrapping_shl(n as u32) as i16))
    });
    d.of("<<", &[Int4, Int4], Gives::Is(Int4), |c| map2(c, |a: i32, n: i32| Ok(a.wrapping_shl(n as u32))));
    d.of("<<", &[Int8, Int4], Gives::Is(Int8), |c| map2(c, |a: i64, n: i32| Ok(a.wrapping_shl(n as u32))));
    d.of(">>", &[Int2, Int4], Gives::Is(Int2), |c| {
        map2(c, |a: i16, n: i32| Ok(i32::from(a).wrapping_shr(n as u32) as i16))
    });
    d.of(">>", &[Int4, Int4], Gives::Is(Int4), |c| map2(c, |a: i32, n: i32| Ok(a.wrapping_shr(n as u32))));
    d.of(">>", &[Int8, Int4], Gives::Is(Int8), |c| map2(c, |a: i64, n: i32| Ok(a.wrapping_shr(n as u32))));
    d.of("~", &[Int2], Gives::Is(Int2), |c| map1(c, |a: i16| Ok(!a)));
    d.of("~", &[Int4], Gives::Is(Int4), |c| map1(c, |a: i32| Ok(!a)));
    d.of("~", &[Int8], Gives::Is(Int8), |c| map1(c, |a: i64| Ok(!a)));
    // The order in which intervals are compared: a month is 30 days, a day 24 hours.
    d.of("interval_order", &[Interval], Gives::By(|_, _| DataType::Decimal128(38, 0)), |c| {
        map1(c, |v: arrow::datatypes::IntervalMonthDayNano| Ok(Decimal(super::super::temporal::span(v))))
    });
    // One zero and one NaN, as comparisons and keys want them.
    d.of("float_key", &[Float4], Gives::Is(Float4), |c| {
        map1(c, |v: f32| Ok(if v.is_nan() { f32::NAN } else { v + 0.0 }))
    });
    d.of("float_key", &[Float8], Gives::Is(Float8), |c| map1(c, |v: f64| Ok(v + 0.0)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_exact_to_the_last_digit() {
        assert_eq!(decimal_root(2, 0, 18), Some(1_414_213_562_373_095_049));
        assert_eq!(decimal_root(200, 2, 18), Some(1_414_213_562_373_095_049));
        assert_eq!(decimal_root(16, 0, 18), Some(4_000_000_000_000_000_000));
        assert_eq!(decimal_root(0, 0, 18), Some(0));
        assert_eq!(decimal_root(99_999_999_999_999_999_999, 0, 18), Some(9_999_999_999_999_999_999_950_000_000));
    }

    #[test]
    fn whole_powers_are_products() {
        assert_eq!(whole_power(15, 1, 2, (38, 18)), Some(2_250_000_000_000_000_000));
        assert_eq!(whole_power(-2, 0, 3, (38, 18)), Some(-8_000_000_000_000_000_000));
        assert_eq!(whole_power(10, 0, 30, (38, 18)), None);
        assert_eq!(whole_power(7, 0, 0, (38, 18)), Some(1_000_000_000_000_000_000));
    }
}
