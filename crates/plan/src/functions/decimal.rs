//! Decimal arithmetic: the result types, and kernels that round and check instead of wrapping.
//!
//! Postgres' numeric has no bound; ours has 38 digits. The scale of a product or quotient is chosen so that the integer
//! part keeps its room, because losing far fraction digits by rounding is what users expect and an overflow is not.

use arrow::array::{ArrayRef, Datum};
use arrow::datatypes::{DataType, Decimal128Type, i256};
use arrow::error::ArrowError;
use flow::{Error, SqlState};

use super::arithmetic::{Op, array, division_by_zero, external, zip};

/// The most digits of a decimal.
pub(super) const PRECISION_MAX: u8 = 38;
/// Digits after the point that a quotient has at least, and that a product is rounded to when it has no room for more.
const SCALE_KEPT: i8 = 18;
const QUOTIENT_SCALE_MIN: i8 = 16;

/// (precision, scale) of the result.
pub(super) fn result_type(op: Op, (p1, s1): (u8, i8), (p2, s2): (u8, i8)) -> (u8, i8) {
    let (i1, i2) = (p1 as i16 - s1 as i16, p2 as i16 - s2 as i16);
    let fit = |integer_digits: i16, scale: i8| -> (u8, i8) {
        let precision = (integer_digits + scale as i16).clamp(1, PRECISION_MAX as i16) as u8;
        (precision, scale.min(precision as i8))
    };
    match op {
        Op::Add | Op::Sub => fit(i1.max(i2) + 1, s1.max(s2)),
        Op::Mul => {
            let exact = (s1 + s2).min(PRECISION_MAX as i8);
            let room = PRECISION_MAX as i16 - (i1 + i2);
            let scale = if exact as i16 <= room {
                exact
            } else {
                (room as i8).max(exact.min(SCALE_KEPT)).max(s1.max(s2).min(SCALE_KEPT))
            };
            fit(i1 + i2, scale)
        }
        Op::Div => {
            let scale = s1.max(s2).max(QUOTIENT_SCALE_MIN);
            fit(i1 + s2 as i16 + 1, scale)
        }
        Op::Rem => fit(i1.max(i2), s1.max(s2)),
    }
}

pub(super) fn evaluate(op: Op, left: &dyn Datum, right: &dyn Datum, result: &DataType) -> Result<ArrayRef, ArrowError> {
    let scale_of = |t: &DataType| match t {
        DataType::Decimal128(_, s) => *s,
        _ => 0,
    };
    let (s1, s2) = (scale_of(left.get().0.data_type()), scale_of(right.get().0.data_type()));
    let DataType::Decimal128(precision, scale) = *result else {
        return Err(ArrowError::ComputeError(format!("decimal arithmetic gives no {result}")));
    };
    let limit = power(precision);
    let checked = |v: Option<i128>| match v {
        Some(v) if v.unsigned_abs() < limit.unsigned_abs() => Ok(v),
        _ => Err(overflow(precision, scale)),
    };
    let common = s1.max(s2);
    let (up1, up2) = (power((common - s1) as u8), power((common - s2) as u8));
    let out = match op {
        Op::Add | Op::Sub => zip::<Decimal128Type, Decimal128Type, Decimal128Type>(left, right, |l, r| {
            let sum = l
                .checked_mul(up1)
                .zip(r.checked_mul(up2))
                .and_then(|(l, r)| if op == Op::Add { l.checked_add(r) } else { l.checked_sub(r) });
            checked(sum)
        })?,
        Op::Mul => {
            let down = (s1 + s2 - scale).max(0) as u8;
            zip::<Decimal128Type, Decimal128Type, Decimal128Type>(left, right, |l, r| {
                let product = match l.checked_mul(r) {
                    Some(product) => Some(round_down(product, down)),
                    None => divide_rounded(i256::from_i128(l).wrapping_mul(i256::from_i128(r)), wide_power(down)),
                };
                checked(product)
            })?
        }
        Op::Div => {
            // l / 10^s1 / (r / 10^s2) at `scale` digits = l * 10^(scale - s1 + s2) / r
            let up = scale as i16 - s1 as i16 + s2 as i16;
            let (up, down) = (up.max(0) as u8, (-up).max(0) as u8);
            let (narrow_up, wide_up, wide_down) = (narrow_power(up), wide_power(up), wide_power(down));
            zip::<Decimal128Type, Decimal128Type, Decimal128Type>(left, right, |l, r| {
                if r == 0 {
                    return Err(external(division_by_zero()));
                }
                if down == 0
                    && let Some(numerator) = narrow_up.and_then(|up| l.checked_mul(up))
                {
                    return checked(Some(rounded(numerator, r)));
                }
                let numerator = i256::from_i128(l).checked_mul(wide_up);
                let denominator = i256::from_i128(r).checked_mul(wide_down);
                checked(numerator.zip(denominator).and_then(|(n, d)| divide_rounded(n, d)))
            })?
        }
        Op::Rem => zip::<Decimal128Type, Decimal128Type, Decimal128Type>(left, right, |l, r| {
            if r == 0 {
                return Err(external(division_by_zero()));
            }
            let (l, r) = (
                i256::from_i128(l).wrapping_mul(i256::from_i128(up1)),
                i256::from_i128(r).wrapping_mul(i256::from_i128(up2)),
            );
            checked(l.wrapping_rem(r).to_i128())
        })?,
    };
    Ok(array(out.with_precision_and_scale(precision, scale)?))
}

/// 10^n; n at most 38.
pub(super) fn power(n: u8) -> i128 {
    10i128.pow(u32::from(n.min(PRECISION_MAX)))
}

fn narrow_power(n: u8) -> Option<i128> {
    10i128.checked_pow(u32::from(n))
}

fn wide_power(n: u8) -> i256 {
    i256::from_i128(10).wrapping_pow(u32::from(n.min(76)))
}

/// `value / 10^digits`, half away from zero.
pub(super) fn round_down(value: i128, digits: u8) -> i128 {
    if digits == 0 {
        value
    } else if digits > PRECISION_MAX {
        0
    } else {
        rounded(value, power(digits))
    }
}

/// `n / d`, half away from zero. `d` is not zero.
fn rounded(n: i128, d: i128) -> i128 {
    let (quotient, rest) = (n.wrapping_div(d), n.wrapping_rem(d));
    let up = rest.unsigned_abs() >= d.unsigned_abs() - rest.unsigned_abs();
    if rest != 0 && up { quotient + if (n < 0) == (d < 0) { 1 } else { -1 } } else { quotient }
}

fn divide_rounded(n: i256, d: i256) -> Option<i128> {
    let quotient = n.checked_div(d)?;
    let rest = n.checked_rem(d)?;
    let twice = rest.checked_add(rest)?;
    let magnitude = |v: i256| v.wrapping_abs();
    let quotient = quotient.to_i128()?;
    if magnitude(twice) >= magnitude(d) && rest != i256::ZERO {
        let negative = (n < i256::ZERO) != (d < i256::ZERO);
        quotient.checked_add(if negative { -1 } else { 1 })
    } else {
        Some(quotient)
    }
}

/// `22003` with Postgres' words for a value that a numeric(p,s) cannot hold.
pub(super) fn overflow(precision: u8, scale: i8) -> ArrowError {
    external(overflow_error(precision, scale))
}

pub(super) fn overflow_error(precision: u8, scale: i8) -> Error {
    Error::new(SqlState::NumericValueOutOfRange, "numeric field overflow").with_detail(format!(
        "A field with precision {precision}, scale {scale} must round to an absolute value less than 10^{}.",
        precision as i16 - scale as i16
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_numerics_keep_room_for_their_integers() {
        let plain = (38, 18);
        assert_eq!(result_type(Op::Add, plain, plain), (38, 18));
        assert_eq!(result_type(Op::Mul, plain, plain), (38, 18));
        assert_eq!(result_type(Op::Div, plain, plain), (38, 18));
        assert_eq!(result_type(Op::Mul, (10, 2), (10, 2)), (20, 4));
        assert_eq!(result_type(Op::Mul, plain, (10, 2)), (38, 18));
        assert_eq!(result_type(Op::Div, (10, 2), (10, 0)), (25, 16));
        assert_eq!(result_type(Op::Add, (3, 1), (5, 4)), (7, 4));
    }

    #[test]
    fn halves_round_away_from_zero() {
        assert_eq!((rounded(5, 10), rounded(-5, 10), rounded(4, 10), rounded(25, -10)), (1, -1, 0, -3));
        assert_eq!(divide_rounded(i256::from_i128(-15), i256::from_i128(10)), Some(-2));
        assert_eq!(round_down(12_345, 2), 123);
        assert_eq!(round_down(12_350, 2), 124);
    }
}
