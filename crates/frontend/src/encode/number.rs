//! Numbers as text and in binary, the way Postgres writes them.

use std::io::Write;

/// Writes a decimal integer.
#[inline]
pub(crate) fn write_integer(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Significant digits without leading or trailing zeros, and the power of ten of the last one.
struct Digits {
    text: [u8; 20],
    len: usize,
    exponent: i32,
}

impl Digits {
    fn as_bytes(&self) -> &[u8] {
        &self.text[..self.len]
    }

    /// Reads `123`, `1.5`, `0.25`, `1.5e-7`: what number formatters write for a finite, non-negative value.
    fn read(number: &[u8]) -> Digits {
        let mut digits = Digits { text: [0; 20], len: 0, exponent: 0 };
        let (mantissa, exponent) = match number.iter().position(|b| *b == b'e') {
            Some(at) => (&number[..at], std::str::from_utf8(&number[at + 1..]).ok().and_then(|e| e.parse().ok())),
            None => (number, Some(0)),
        };
        digits.exponent = exponent.unwrap_or(0);
        let mut after_point = false;
        for &byte in mantissa {
            if byte == b'.' {
                after_point = true;
                continue;
            }
            digits.exponent -= i32::from(after_point);
            if digits.len == 0 && byte == b'0' {
                continue;
            }
            if digits.len == digits.text.len() {
                digits.exponent += 1;
                continue;
            }
            digits.text[digits.len] = byte;
            digits.len += 1;
        }
        while digits.len > 0 && digits.text[digits.len - 1] == b'0' {
            digits.len -= 1;
            digits.exponent += 1;
        }
        digits
    }
}

/// Writes `digits` as C's `%g` does, switching to an exponent at `scientific_from` integer digits or below 0.0001.
fn write_general(out: &mut Vec<u8>, digits: &Digits, scientific_from: i32) {
    let text = digits.as_bytes();
    if text.is_empty() {
        out.push(b'0');
        return;
    }
    // The power of ten of the first digit.
    let leading = digits.exponent + text.len() as i32 - 1;
    if leading < -4 || leading >= scientific_from {
        out.push(text[0]);
        if text.len() > 1 {
            out.push(b'.');
            out.extend_from_slice(&text[1..]);
        }
        out.extend_from_slice(if leading < 0 { b"e-" } else { b"e+" });
        if leading.abs() < 10 {
            out.push(b'0');
        }
        write_integer(out, leading.unsigned_abs());
    } else if leading < 0 {
        out.extend_from_slice(b"0.");
        out.resize(out.len() + (-leading - 1) as usize, b'0');
        out.extend_from_slice(text);
    } else if digits.exponent >= 0 {
        out.extend_from_slice(text);
        out.resize(out.len() + digits.exponent as usize, b'0');
    } else {
        let (whole, fraction) = text.split_at(leading as usize + 1);
        out.extend_from_slice(whole);
        out.push(b'.');
        out.extend_from_slice(fraction);
    }
}

/// Whether the decimal `digits` lies exactly half-way between `mantissa * 2^exponent` and a neighbour. Postgres does not
/// use such a decimal as the shortest form, since not every reader rounds a tie to even.
fn on_the_boundary(digits: &Digits, mantissa: u64, exponent: i32, lower_is_closer: bool) -> bool {
    // Only decimals with few trailing zeros can be ties: 5^23 is the largest power of five below 2^54.
    if !(0..=23).contains(&digits.exponent) || mantissa % 2 == 1 || mantissa == 0 {
        return false;
    }
    let decimal = digits.as_bytes().iter().fold(0u128, |n, d| n * 10 + u128::from(d - b'0'));
    // Both sides without their factors of two: decimal * 5^e * 2^e against boundary * 2^(exponent - 2).
    let product = decimal * 5u128.pow(digits.exponent as u32);
    let m = u128::from(mantissa);
    // Below a power of two the neighbour is half as far away.
    let lower = if lower_is_closer { 4 * m - 1 } else { 4 * m - 2 };
    [lower, 4 * m + 2].into_iter().any(|boundary| {
        let (p, b) = (product.trailing_zeros(), boundary.trailing_zeros());
        product >> p == boundary >> b && p as i32 + digits.exponent == b as i32 + exponent - 2
    })
}

macro_rules! shortest_float {
    ($write:ident, $float:ty, $scientific_from:expr, $digits_sure:expr, $digits_max:expr, $mantissa_bits:expr, $bias:expr) => {
        /// Writes a float under `extra_float_digits`: above 0 the shortest digits that read back as the same value, else
        /// the digits that the type can always hold, more or fewer by `extra`.
        pub(crate) fn $write(out: &mut Vec<u8>, value: $float, extra: i8) {
            if value.is_nan() {
                out.extend_from_slice(b"NaN");
                return;
            }
            if value.is_sign_negative() {
                out.push(b'-');
            }
            let value = value.abs();
            if value.is_infinite() {
                out.extend_from_slice(b"Infinity");
                return;
            }
            let mut text = FormatBuffer::default();
            if extra <= 0 {
                let precision = ($digits_sure + i32::from(extra)).max(1);
                let _ = write!(text, "{:.*e}", precision as usize - 1, value);
                write_general(out, &Digits::read(text.as_bytes()), precision);
                return;
            }
            let mut buffer = ryu::Buffer::new();
            let mut digits = Digits::read(buffer.format_finite(value).as_bytes());
            let bits = u64::from(value.to_bits());
            let raw_exponent = (bits >> $mantissa_bits) as i32;
            let mantissa =
                (bits & ((1 << $mantissa_bits) - 1)) | if raw_exponent == 0 { 0 } else { 1 << $mantissa_bits };
            let exponent = raw_exponent.max(1) - $bias - $mantissa_bits;
            let lower_is_closer = mantissa == 1 << $mantissa_bits && raw_exponent > 1;
            let mut precision = digits.len + 1;
            while on_the_boundary(&digits, mantissa, exponent, lower_is_closer) && precision <= $digits_max {
                text = FormatBuffer::default();
                let _ = write!(text, "{:.*e}", precision - 1, value);
                digits = Digits::read(text.as_bytes());
                precision += 1;
            }
            write_general(out, &digits, $scientific_from);
        }
    };
}

shortest_float!(write_float8, f64, 15, 15, 17, 52, 1023);
shortest_float!(write_float4, f32, 6, 6, 9, 23, 127);

/// A fixed buffer for formatting one float.
struct FormatBuffer {
    bytes: [u8; 48],
    len: usize,
}

impl Default for FormatBuffer {
    fn default() -> FormatBuffer {
        FormatBuffer { bytes: [0; 48], len: 0 }
    }
}

impl FormatBuffer {
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for FormatBuffer {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        let room = &mut self.bytes[self.len..];
        let n = text.len().min(room.len());
        room[..n].copy_from_slice(&text[..n]);
        self.len += n;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The parts of a decimal: its digits, at least one before the point, and how many stand after it.
struct Decimal<'a> {
    digits: &'a str,
    scale: usize,
}

/// Drops trailing zeros after the point, for numerics without a declared scale.
fn trimmed(digits: &str, scale: usize) -> Decimal<'_> {
    let zeros = digits.bytes().rev().take_while(|b| *b == b'0').count();
    if zeros >= digits.len() {
        return Decimal { digits: "0", scale: 0 };
    }
    let drop = zeros.min(scale);
    Decimal { digits: &digits[..digits.len() - drop], scale: scale - drop }
}

/// Writes `value * 10^-scale`. With `trim`, without trailing zeros after the point. A negative scale stands for zeros
/// before the point.
pub(crate) fn write_numeric(out: &mut Vec<u8>, value: i128, scale: i8, trim: bool) {
    if value < 0 {
        out.push(b'-');
    }
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(value.unsigned_abs());
    if scale <= 0 {
        out.extend_from_slice(digits.as_bytes());
        if value != 0 {
            out.resize(out.len() + usize::from(scale.unsigned_abs()), b'0');
        }
        return;
    }
    let scale = scale as usize;
    let Decimal { digits, scale } = if trim { trimmed(digits, scale) } else { Decimal { digits, scale } };
    let whole = digits.len().saturating_sub(scale);
    if whole == 0 {
        out.push(b'0');
    }
    out.extend_from_slice(&digits.as_bytes()[..whole]);
    if scale > 0 {
        out.push(b'.');
        out.resize(out.len() + scale - (digits.len() - whole), b'0');
        out.extend_from_slice(&digits.as_bytes()[whole..]);
    }
}

/// Writes Postgres' binary numeric: the number of base-10000 digits, the power of the first, sign, displayed scale, digits.
pub(crate) fn write_numeric_binary(out: &mut Vec<u8>, value: i128, scale: i8, trim: bool) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(value.unsigned_abs());
    let mut padded = [b'0'; 256];
    let (digits, scale) = if scale < 0 && value != 0 {
        // Zeros before the point become digits: at most 39 + 128.
        let len = digits.len() + usize::from(scale.unsigned_abs());
        padded[..digits.len()].copy_from_slice(digits.as_bytes());
        (&padded[..len], 0)
    } else {
        let scale = scale.max(0) as usize;
        let d = if trim { trimmed(digits, scale) } else { Decimal { digits, scale } };
        (d.digits.as_bytes(), d.scale)
    };
    let digits = if value == 0 { &digits[..0] } else { digits };
    // Groups of four are counted from the decimal point; `power` is the power of ten of a digit.
    let first_power = digits.len() as i32 - scale as i32 - 1;
    let weight = first_power.div_euclid(4);
    let header = out.len();
    out.extend_from_slice(&[0; 8]);
    let mut count = 0i16;
    let (mut group, mut group_power) = (0i16, weight);
    let mut zeros_at_end = 0;
    let mut flush = |out: &mut Vec<u8>, group: i16| {
        out.extend_from_slice(&group.to_be_bytes());
        count += 1;
        zeros_at_end = if group == 0 { zeros_at_end + 1 } else { 0 };
    };
    for (i, digit) in digits.iter().enumerate() {
        let power = first_power - i as i32;
        let this = power.div_euclid(4);
        if this != group_power {
            flush(out, group);
            (group, group_power) = (0, this);
        }
        group += i16::from(digit - b'0') * [1, 10, 100, 1000][power.rem_euclid(4) as usize];
    }
    if !digits.is_empty() {
        flush(out, group);
    }
    // Trailing zero groups are not sent; leading ones cannot be, as the digits have no leading zero.
    count -= zeros_at_end;
    out.truncate(out.len() - zeros_at_end as usize * 2);
    let sign: u16 = if value < 0 { 0x4000 } else { 0 };
    let weight = if count == 0 { 0 } else { weight as i16 };
    out[header..header + 2].copy_from_slice(&count.to_be_bytes());
    out[header + 2..header + 4].copy_from_slice(&weight.to_be_bytes());
    out[header + 4..header + 6].copy_from_slice(&sign.to_be_bytes());
    out[header + 6..header + 8].copy_from_slice(&(scale as i16).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_look_as_in_postgres() {
        let check = |value: f64, expected: &str| {
            let mut out = Vec::new();
            write_float8(&mut out, value, 1);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        check(0.0, "0");
        check(-0.0, "-0");
        check(1e23, "9.999999999999999e+22");
        check(1e22, "1e+22");
        check(1e15, "1e+15");
        check(123456789012345.0, "123456789012345");
        check(0.0001, "0.0001");
        check(1e-5, "1e-05");
        check(1.5, "1.5");
        check(5e-324, "5e-324");
        check(f64::MAX, "1.7976931348623157e+308");
        check(f64::NEG_INFINITY, "-Infinity");
        check(f64::NAN, "NaN");
        let mut out = Vec::new();
        write_float4(&mut out, 1e6, 1);
        out.push(b' ');
        write_float4(&mut out, 123456.0, 1);
        out.push(b' ');
        write_float4(&mut out, 16777216.0, 1);
        out.push(b' ');
        write_float8(&mut out, 0.1 + 0.2, 0);
        assert_eq!(String::from_utf8(out).unwrap(), "1e+06 123456 1.6777216e+07 0.3");
    }

    #[test]
    fn numerics_look_as_in_postgres() {
        let check = |value: i128, scale: i8, trim: bool, expected: &str| {
            let mut out = Vec::new();
            write_numeric(&mut out, value, scale, trim);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        check(12345, 2, false, "123.45");
        check(-5, 2, false, "-0.05");
        check(0, 2, false, "0.00");
        check(1_500_000_000_000_000_000, 18, true, "1.5");
        check(0, 18, true, "0");
        check(-100, 0, true, "-100");
        check(7, -2, false, "700");
        check(i128::MIN, 18, true, "-170141183460469231731.687303715884105728");
        check(10_i128.pow(20), 18, true, "100");
    }

    #[test]
    fn binary_numerics_have_no_zero_groups_at_the_ends() {
        let check = |value: i128, scale: i8, trim: bool, expected: &[i16]| {
            let mut out = Vec::new();
            write_numeric_binary(&mut out, value, scale, trim);
            let words: Vec<i16> = out.chunks(2).map(|w| i16::from_be_bytes([w[0], w[1]])).collect();
            assert_eq!(words, expected, "{value} {scale}");
        };
        check(0, 2, false, &[0, 0, 0, 2]);
        check(12345, 2, false, &[2, 0, 0, 2, 123, 4500]);
        check(-12345, 4, false, &[2, 0, 0x4000, 4, 1, 2345]);
        check(1, 4, false, &[1, -1, 0, 4, 1]);
        check(1, 5, false, &[1, -2, 0, 5, 1000]);
        check(100_000_000, 0, false, &[1, 2, 0, 0, 1]);
        check(1_500_000_000_000_000_000, 18, true, &[2, 0, 0, 1, 1, 5000]);
    }
}
