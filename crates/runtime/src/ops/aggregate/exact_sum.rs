//! Sums of floating-point numbers that can be taken back.
//!
//! A plain running sum drifts: `1e16 + 1 − 1e16` gives 0, and a standing view never returns to the batch answer (trap
//! "float SUM drifts under retraction"). Here a sum is kept exactly, so it depends only on the numbers that are in it, not
//! on the order in which they came and went, and is rounded once, when it is read.
//!
//! Per group the sum is an unevaluated pair of doubles (Dekker 1971, Knuth's two-sum). What does not fit in the pair's
//! 106 bits goes, exactly, into a wide fixed-point number that few groups ever need. NaN and infinities are counted aside.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, Float64Array};
use arrow::datatypes::Float64Type;
use flow::Result;
use hashbrown::HashMap;

use super::saved::{binary, damaged};

/// `a + b` as the rounded sum and its exact error (Knuth; no assumption on magnitudes).
#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let bb = s - a;
    (s, (a - (s - bb)) + (b - bb))
}

/// The exact sums of many groups.
#[derive(Default)]
pub struct ExactSums {
    high: Vec<f64>,
    low: Vec<f64>,
    /// Only of groups that need them.
    wide: HashMap<u32, Box<Wide>>,
    special: HashMap<u32, Special>,
}

/// How many non-finite numbers are in a group.
#[derive(Clone, Copy, Default)]
struct Special {
    nan: i64,
    positive: i64,
    negative: i64,
}

impl ExactSums {
    pub fn resize(&mut self, groups: usize) {
        self.high.resize(groups, 0.0);
        self.low.resize(groups, 0.0);
    }

    /// Adds `value` `weight` times to `group`.
    #[inline(always)]
    pub fn add(&mut self, group: u32, value: f64, weight: i64) {
        let g = group as usize;
        let term = if weight == 1 {
            value
        } else if weight == -1 {
            -value
        } else {
            return self.add_slowly(group, value, weight);
        };
        let (s, e) = two_sum(self.high[g], term);
        let (l, rest) = two_sum(self.low[g], e);
        if s.is_finite() && rest == 0.0 {
            let (high, low) = two_sum(s, l);
            self.high[g] = high;
            self.low[g] = low;
        } else {
            // Not finite, too large, or beyond the pair's precision. Without a hot group this is rare.
            self.add_slowly(group, value, weight);
        }
    }

    #[cold]
    fn add_slowly(&mut self, group: u32, value: f64, weight: i64) {
        if value.is_finite() {
            self.wide.entry(group).or_default().add(value, weight);
            return;
        }
        let special = self.special.entry(group).or_default();
        if value.is_nan() {
            special.nan = special.nan.wrapping_add(weight);
        } else if value > 0.0 {
            special.positive = special.positive.wrapping_add(weight);
        } else {
            special.negative = special.negative.wrapping_add(weight);
        }
        if special.nan == 0 && special.positive == 0 && special.negative == 0 {
            self.special.remove(&group);
        }
    }

    /// Moves the sum of one group to another.
    pub fn merge(&mut self, from: u32, into: u32) {
        let f = from as usize;
        for part in [std::mem::take(&mut self.high[f]), std::mem::take(&mut self.low[f])] {
            self.add(into, part, 1);
        }
        if let Some(moved) = self.wide.remove(&from) {
            self.wide.entry(into).or_default().merge(*moved);
        }
        if let Some(moved) = self.special.remove(&from) {
            let special = self.special.entry(into).or_default();
            special.nan = special.nan.wrapping_add(moved.nan);
            special.positive = special.positive.wrapping_add(moved.positive);
            special.negative = special.negative.wrapping_add(moved.negative);
        }
    }

    /// The sum, rounded to nearest once; infinite if it is beyond the type's range.
    pub fn value(&mut self, group: u32) -> f64 {
        if let Some(special) = self.special.get(&group) {
            return if special.nan != 0 || (special.positive != 0 && special.negative != 0) {
                f64::NAN
            } else if special.positive != 0 {
                f64::INFINITY
            } else {
                f64::NEG_INFINITY
            };
        }
        let g = group as usize;
        match self.wide.get_mut(&group) {
            None => self.high[g] + self.low[g],
            Some(wide) => {
                // Fold the pair in, so that a sum which has become short again can leave the wide form.
                wide.add(self.high[g], 1);
                wide.add(self.low[g], 1);
                let value = wide.round();
                (self.high[g], self.low[g]) = (0.0, 0.0);
                if value.is_finite() {
                    wide.add(value, -1);
                    self.high[g] = value;
                    let rest = wide.round();
                    wide.add(rest, -1);
                    self.low[g] = rest;
                    if wide.is_zero() {
                        self.wide.remove(&group);
                    }
                }
                value
            }
        }
    }

    pub fn clear(&mut self, group: u32) {
        self.high[group as usize] = 0.0;
        self.low[group as usize] = 0.0;
        if !self.wide.is_empty() {
            self.wide.remove(&group);
        }
        if !self.special.is_empty() {
            self.special.remove(&group);
        }
    }

    /// The sums of `groups` in columns: the pair of doubles, and for few groups the rest of it. That is NULL, or little-endian: the
    /// number of NaN, of +∞ and of −∞ as 64 bits each, then nothing or the wide number of [`LIMBS`] digits to the base 2³², of 64
    /// bits each, the lowest first, of which the last has the sign; its unit is 2⁻¹⁰⁷⁴.
    pub fn save(&mut self, groups: &[u32]) -> Vec<ArrayRef> {
        let mut rest = BinaryBuilder::new();
        for group in groups {
            let wide = if self.wide.is_empty() { None } else { self.wide.get_mut(group) };
            let special = if self.special.is_empty() { None } else { self.special.get(group) };
            if wide.is_none() && special.is_none() {
                rest.append_null();
                continue;
            }
            let Special { nan, positive, negative } = special.copied().unwrap_or_default();
            let mut numbers = vec![nan, positive, negative];
            if let Some(wide) = wide {
                wide.carry();
                numbers.extend(wide.limbs);
            }
            rest.append_value(numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>());
        }
        let doubles = |from: &[f64]| groups.iter().map(|g| from[*g as usize]).collect::<Float64Array>();
        vec![Arc::new(doubles(&self.high)), Arc::new(doubles(&self.low)), Arc::new(rest.finish())]
    }

    /// Takes up what [`save`](Self::save) wrote.
    pub fn load(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Result<()> {
        for (to, column) in [&mut self.high, &mut self.low].into_iter().zip(columns) {
            let from = column.as_primitive_opt::<Float64Type>().filter(|c| c.null_count() == 0);
            let from = from.ok_or_else(|| damaged("A number is missing."))?.values();
            groups.iter().zip(from).for_each(|(g, v)| to[*g as usize] = *v);
        }
        let rest = binary(&columns[2])?;
        for (group, bytes) in groups.iter().zip(rest).filter_map(|(g, bytes)| Some((*g, bytes?))) {
            let (numbers, crumbs) = bytes.as_chunks::<8>();
            let numbers: Vec<i64> = numbers.iter().map(|n| i64::from_le_bytes(*n)).collect();
            let Some(([nan, positive, negative], limbs)) = numbers.split_first_chunk().filter(|_| crumbs.is_empty())
            else {
                return Err(damaged("A sum has another length."));
            };
            let special = Special { nan: *nan, positive: *positive, negative: *negative };
            if special.nan != 0 || special.positive != 0 || special.negative != 0 {
                self.special.insert(group, special);
            }
            if !limbs.is_empty() {
                let limbs = limbs.try_into().map_err(|_| damaged("A sum has another length."))?;
                self.wide.insert(group, Box::new(Wide { limbs, additions: 1 }));
            }
        }
        Ok(())
    }

    pub fn bytes(&self) -> usize {
        (self.high.capacity() + self.low.capacity()) * 8
            + self.wide.len() * (size_of::<Wide>() + 16)
            + self.special.capacity() * 32
    }
}

/// Bits per limb; the rest of each 64-bit limb takes carries, so that most additions touch a few limbs only.
const LIMB: usize = 32;
/// From 2⁻¹⁰⁷⁴, the least subnormal, over 2¹⁰²⁴ with room for the sum of 2¹²⁷ largest numbers.
const LIMBS: usize = (1074 + 1024 + 128) / LIMB + 2;
/// Each addition adds less than 2³³ to a limb; this many leave it far from overflow.
const ADDITIONS_MAX: u32 = 1 << 29;

/// A fixed-point number over the whole range of doubles (Kulisch's long accumulator). Bit 0 is 2⁻¹⁰⁷⁴.
struct Wide {
    limbs: [i64; LIMBS],
    additions: u32,
}

impl Default for Wide {
    fn default() -> Wide {
        Wide { limbs: [0; LIMBS], additions: 0 }
    }
}

impl Wide {
    /// Adds the finite `value` `weight` times, exactly.
    fn add(&mut self, value: f64, weight: i64) {
        if value == 0.0 {
            return;
        }
        let bits = value.to_bits();
        let exponent = ((bits >> 52) & 0x7ff) as usize;
        let fraction = bits & ((1 << 52) - 1);
        // Subnormals have the position of exponent 1 without the hidden bit.
        let (mantissa, position) = if exponent == 0 { (fraction, 0) } else { (fraction | 1 << 52, exponent - 1) };
        let negative = (value < 0.0) != (weight < 0);
        let mut product = mantissa as u128 * weight.unsigned_abs() as u128;
        let (mut limb, shift) = (position / LIMB, position % LIMB);
        while product != 0 {
            let digit = (product as u32 as u64) << shift;
            let (low, high) = ((digit & 0xffff_ffff) as i64, (digit >> 32) as i64);
            if negative {
                self.limbs[limb] -= low;
                self.limbs[limb + 1] -= high;
            } else {
                self.limbs[limb] += low;
                self.limbs[limb + 1] += high;
            }
            product >>= 32;
            limb += 1;
        }
        self.additions += 1;
        if self.additions >= ADDITIONS_MAX {
            self.carry();
        }
    }

    fn merge(&mut self, mut other: Wide) {
        self.carry();
        other.carry();
        self.limbs.iter_mut().zip(other.limbs).for_each(|(limb, more)| *limb += more);
        self.additions = 1;
    }

    /// Makes every limb but the last a digit in `0 .. 2³²`; the last carries the sign.
    fn carry(&mut self) {
        let mut carry = 0i64;
        for limb in &mut self.limbs[..LIMBS - 1] {
            let value = *limb + carry;
            *limb = value & 0xffff_ffff;
            carry = value >> LIMB;
        }
        self.limbs[LIMBS - 1] += carry;
        self.additions = 0;
    }

    fn is_zero(&mut self) -> bool {
        self.carry();
        self.limbs.iter().all(|l| *l == 0)
    }

    /// The nearest double, ties to even.
    fn round(&mut self) -> f64 {
        self.carry();
        let negative = self.limbs[LIMBS - 1] < 0;
        let mut digits = self.limbs;
        if negative {
            let mut carry = 0i64;
            for digit in &mut digits[..LIMBS - 1] {
                let value = -*digit + carry;
                *digit = value & 0xffff_ffff;
                carry = value >> LIMB;
            }
            digits[LIMBS - 1] = -digits[LIMBS - 1] + carry;
        }
        let Some(top) = digits.iter().rposition(|d| *d != 0) else {
            return 0.0;
        };
        let magnitude = if top == LIMBS - 1 { f64::INFINITY } else { round_digits(&digits, top) };
        if negative { -magnitude } else { magnitude }
    }
}

/// The nearest double to the non-negative number whose highest non-zero 32-bit digit is `top`.
fn round_digits(digits: &[i64; LIMBS], top: usize) -> f64 {
    // The top three digits hold at least 65 significant bits; all below only matters for "is there anything".
    let digit = |n: isize| if n >= 0 { digits[n as usize] as u128 } else { 0 };
    let top = top as isize;
    let window = (digit(top) << 64) | (digit(top - 1) << 32) | digit(top - 2);
    let below = (0..(top - 2).max(0)).any(|n| digits[n as usize] != 0);
    // The window's bit 0 is 2^(32·(top−2) − 1074).
    let lowest = 32 * (top - 2) - 1074;
    let significant = 128 - window.leading_zeros() as isize;
    // Keep 53 bits, fewer where the double would be subnormal.
    let drop = (significant - 53).max(-1074 - lowest).max(0);
    let mut mantissa = (window >> drop) as u64;
    let rest = window & ((1u128 << drop) - 1);
    let half = if drop == 0 { 0 } else { 1u128 << (drop - 1) };
    let up = drop > 0 && (rest > half || (rest == half && (below || mantissa & 1 == 1)));
    mantissa += up as u64;
    let exponent = lowest + drop;
    // `mantissa` is at most 2⁵³ and both factors are exact powers of two, so the products round only by overflow.
    let mut value = mantissa as f64;
    let mut left = exponent;
    while left > 0 && value.is_finite() {
        let step = left.min(1000);
        value *= 2f64.powi(step as i32);
        left -= step;
    }
    while left < 0 {
        let step = (-left).min(1000);
        value *= 2f64.powi(-(step as i32));
        left += step;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(terms: &[(f64, i64)]) -> f64 {
        let mut sums = ExactSums::default();
        sums.resize(1);
        for (value, weight) in terms {
            sums.add(0, *value, *weight);
        }
        sums.value(0)
    }

    #[test]
    fn what_was_lost_to_rounding_comes_back() {
        assert_eq!(sum(&[(1e16, 1), (1.0, 1), (1e16, -1)]), 1.0);
        assert_eq!(sum(&[(1e308, 1), (1e-300, 1), (1e308, -1)]), 1e-300);
        assert_eq!(sum(&[(1e308, 1), (1e308, 1), (3.0, 1), (1e308, -2)]), 3.0);
        assert_eq!(sum(&[(5e-324, 3), (5e-324, -2)]), 5e-324);
        assert_eq!(sum(&[(f64::MAX, i64::MAX), (1.5, 1), (f64::MAX, -i64::MAX)]), 1.5);
        assert_eq!(sum(&[(f64::MAX, 2)]), f64::INFINITY);
        assert_eq!(sum(&[(-f64::MAX, 2)]), f64::NEG_INFINITY);
    }

    #[test]
    fn infinities_and_nan_can_be_taken_back() {
        assert_eq!(sum(&[(f64::INFINITY, 1), (2.0, 1)]), f64::INFINITY);
        assert!(sum(&[(f64::INFINITY, 1), (f64::NEG_INFINITY, 1)]).is_nan());
        assert_eq!(sum(&[(f64::INFINITY, 1), (f64::NAN, 2), (2.0, 1), (f64::NAN, -2), (f64::INFINITY, -1)]), 2.0);
    }

    #[test]
    fn the_wide_form_rounds_to_nearest_even() {
        // 2⁵³ + 1 lies half way; a crumb below decides.
        let big = 9007199254740992.0;
        assert_eq!(sum(&[(big, 3), (1.0, 1), (big, -2)]), big);
        assert_eq!(sum(&[(big, 3), (1.0, 1), (big, -2), (1e-300, 1)]), big + 2.0);
        assert_eq!(sum(&[(big, -3), (1.0, -1), (big, 2), (1e-300, -1)]), -big - 2.0);
        assert_eq!(sum(&[(big, 3), (1.0, 1), (big, -2), (1e-300, -1)]), big);
    }

    #[test]
    fn sums_do_not_depend_on_order() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..200 {
            let mut terms: Vec<(f64, i64)> = (0..40)
                .map(|_| {
                    let exponent = (next() % 120) as i32 - 60;
                    ((next() as i64 as f64) * 2f64.powi(exponent), [1, -1, 3, -7][(next() % 4) as usize])
                })
                .collect();
            let forward = sum(&terms);
            terms.reverse();
            assert_eq!(forward.to_bits(), sum(&terms).to_bits());
            let mut all: Vec<(f64, i64)> = terms.iter().map(|(v, w)| (*v, -*w)).collect();
            all.extend(&terms);
            all.push((0.1, 1));
            assert_eq!(sum(&all), 0.1);
        }
    }

    #[test]
    fn saved_sums_stay_exact() {
        let terms = [(1e308, 3), (1.0, 1), (5e-324, 1), (-1e16, 1), (f64::NAN, 2), (f64::INFINITY, 1)];
        let mut sums = ExactSums::default();
        sums.resize(2);
        terms.iter().for_each(|(value, weight)| sums.add(1, *value, *weight));
        sums.add(0, 0.1, 1);
        let columns = sums.save(&[0, 1]);
        assert_eq!(columns[2].null_count(), 1);
        let mut again = ExactSums::default();
        again.resize(2);
        again.load(&[0, 1], &columns).unwrap();
        assert!(again.value(1).is_nan());
        terms[..2].iter().chain(&terms[3..]).for_each(|(value, weight)| again.add(1, *value, -weight));
        assert_eq!((again.value(0), again.value(1)), (0.1, 5e-324));
    }
}
