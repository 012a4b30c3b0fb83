//! Binary strings.

use flow::{Error, Result, SqlState};

use super::Type::*;
use super::cells::{map1, map2, map3, map4};
use super::digest;
use super::{Declared, Gives, bad_argument};

pub(super) fn declare(d: &mut Declared) {
    for name in ["length", "octet_length"] {
        d.of(name, &[Bytea], Gives::Is(Int4), |c| map1(c, |b: &[u8]| Ok(b.len() as i32)));
    }
    d.of("bit_length", &[Bytea], Gives::Is(Int4), |c| map1(c, |b: &[u8]| Ok(b.len() as i32 * 8)));
    d.of("bit_count", &[Bytea], Gives::Is(Int8), |c| {
        map1(c, |b: &[u8]| Ok(b.iter().map(|b| i64::from(b.count_ones())).sum::<i64>()))
    });
    d.of("||", &[Bytea, Bytea], Gives::Is(Bytea), |c| map2(c, |a: &[u8], b: &[u8]| Ok([a, b].concat())));
    for name in ["substring", "substr"] {
        d.of(name, &[Bytea, Int4], Gives::Is(Bytea), |c| {
            map2(c, |b: &[u8], from: i32| Ok(part(b, from, None)?.to_vec()))
        });
        d.of(name, &[Bytea, Int4, Int4], Gives::Is(Bytea), |c| {
            map3(c, |b: &[u8], from: i32, n: i32| Ok(part(b, from, Some(n))?.to_vec()))
        });
    }
    d.of("overlay", &[Bytea, Bytea, Int4], Gives::Is(Bytea), |c| {
        map3(c, |b: &[u8], new: &[u8], from: i32| overlay(b, new, from, new.len() as i32))
    });
    d.of("overlay", &[Bytea, Bytea, Int4, Int4], Gives::Is(Bytea), |c| map4(c, overlay));
    d.of("position", &[Bytea, Bytea], Gives::Is(Int4), |c| map2(c, |b: &[u8], part: &[u8]| Ok(position(b, part))));
    d.of("strpos", &[Bytea, Bytea], Gives::Is(Int4), |c| map2(c, |b: &[u8], part: &[u8]| Ok(position(b, part))));
    for name in ["btrim", "trim"] {
        d.of(name, &[Bytea, Bytea], Gives::Is(Bytea), |c| {
            map2(c, |b: &[u8], set: &[u8]| Ok(trimmed(b, set, true, true).to_vec()))
        });
    }
    d.of("ltrim", &[Bytea, Bytea], Gives::Is(Bytea), |c| {
        map2(c, |b: &[u8], set: &[u8]| Ok(trimmed(b, set, true, false).to_vec()))
    });
    d.of("rtrim", &[Bytea, Bytea], Gives::Is(Bytea), |c| {
        map2(c, |b: &[u8], set: &[u8]| Ok(trimmed(b, set, false, true).to_vec()))
    });
    d.of("get_byte", &[Bytea, Int4], Gives::Is(Int4), |c| {
        map2(c, |b: &[u8], n: i32| index(n.into(), b.len()).map(|i| i32::from(b[i])))
    });
    d.of("set_byte", &[Bytea, Int4, Int4], Gives::Is(Bytea), |c| {
        map3(c, |b: &[u8], n: i32, new: i32| {
            let mut out = b.to_vec();
            out[index(n.into(), b.len())?] = new as u8;
            Ok(out)
        })
    });
    d.of("get_bit", &[Bytea, Int8], Gives::Is(Int4), |c| {
        map2(c, |b: &[u8], n: i64| index(n, b.len() * 8).map(|i| i32::from(b[i / 8] >> (i % 8) & 1)))
    });
    d.of("set_bit", &[Bytea, Int8, Int4], Gives::Is(Bytea), |c| {
        map3(c, |b: &[u8], n: i64, new: i32| {
            let i = index(n, b.len() * 8)?;
            let mut out = b.to_vec();
            match new {
                0 => out[i / 8] &= !(1 << (i % 8)),
                1 => out[i / 8] |= 1 << (i % 8),
                _ => return Err(bad_argument("new bit must be 0 or 1")),
            }
            Ok(out)
        })
    });
    d.of("md5", &[Bytea], Gives::Is(Text), |c| map1(c, |b: &[u8]| Ok(digest::hex(&digest::md5(b)))));
    d.of("sha256", &[Bytea], Gives::Is(Bytea), |c| map1(c, |b: &[u8]| Ok(digest::sha256(b).to_vec())));
    d.of("encode", &[Bytea, Text], Gives::Is(Text), |c| map2(c, encode));
    d.of("decode", &[Text, Text], Gives::Is(Bytea), |c| map2(c, decode));
    d.of("convert_to", &[Text, Text], Gives::Is(Bytea), |c| {
        map2(c, |s: &str, encoding: &str| is_utf8(encoding).map(|()| s.as_bytes().to_vec()))
    });
    d.of("convert_from", &[Bytea, Text], Gives::Is(Text), |c| {
        map2(c, |b: &[u8], encoding: &str| {
            is_utf8(encoding)?;
            String::from_utf8(b.to_vec()).map_err(|e| {
                let at = e.utf8_error().valid_up_to();
                let bytes: Vec<String> = b[at..].iter().take(1).map(|b| format!("0x{b:02x}")).collect();
                Error::new(
                    SqlState::CharacterNotInRepertoire,
                    format!("invalid byte sequence for encoding \"UTF8\": {}", bytes.join(" ")),
                )
            })
        })
    });
}

/// The only encoding of text here.
fn is_utf8(encoding: &str) -> Result<()> {
    let plain: String = encoding.chars().filter(char::is_ascii_alphanumeric).collect();
    match plain.to_ascii_lowercase().as_str() {
        "utf8" | "unicode" => Ok(()),
        "latin1" | "iso88591" | "sqlascii" | "win1252" => {
            Err(Error::unsupported(format!("encoding \"{encoding}\" is not supported")).with_hint("Text is UTF8."))
        }
        _ => Err(bad_argument(format!("invalid encoding name \"{encoding}\""))),
    }
}

fn part(b: &[u8], start: i32, length: Option<i32>) -> Result<&[u8]> {
    let from = i64::from(start);
    let to = match length {
        Some(n) if n < 0 => {
            return Err(Error::new(SqlState::SubstringError, "negative substring length not allowed"));
        }
        Some(n) => from + i64::from(n),
        None => i64::MAX,
    };
    let clamp = |at: i64| (at - 1).clamp(0, b.len() as i64) as usize;
    Ok(&b[clamp(from)..clamp(to).max(clamp(from))])
}

fn overlay(b: &[u8], new: &[u8], start: i32, length: i32) -> Result<Vec<u8>> {
    if start <= 0 {
        return Err(Error::new(SqlState::SubstringError, "negative substring length not allowed"));
    }
    let after = start.checked_add(length).ok_or_else(|| super::cells::out_of_range("integer"))?;
    Ok([part(b, 1, Some(start - 1))?, new, part(b, after, None)?].concat())
}

fn position(b: &[u8], part: &[u8]) -> i32 {
    if part.is_empty() {
        return 1;
    }
    b.windows(part.len()).position(|w| w == part).map_or(0, |at| at as i32 + 1)
}

fn trimmed<'a>(mut b: &'a [u8], set: &[u8], front: bool, back: bool) -> &'a [u8] {
    while front
        && let [first, rest @ ..] = b
        && set.contains(first)
    {
        b = rest;
    }
    while back
        && let [rest @ .., last] = b
        && set.contains(last)
    {
        b = rest;
    }
    b
}

fn index(n: i64, count: usize) -> Result<usize> {
    match usize::try_from(n) {
        Ok(i) if i < count => Ok(i),
        _ => Err(Error::new(
            SqlState::ArraySubscriptError,
            format!("index {n} out of valid range, 0..{}", count as i64 - 1),
        )),
    }
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(b: &[u8], format: &str) -> Result<String> {
    match format.to_ascii_lowercase().as_str() {
        "hex" => Ok(digest::hex(b)),
        "base64" => {
            let mut out = String::with_capacity(b.len() * 4 / 3 + 4);
            for (i, chunk) in b.chunks(3).enumerate() {
                // Lines of 76 characters, as MIME and PostgreSQL have them.
                if i > 0 && i % 19 == 0 {
                    out.push('\n');
                }
                let bits = chunk.iter().enumerate().fold(0u32, |bits, (i, b)| bits | u32::from(*b) << (16 - 8 * i));
                for i in 0..4 {
                    out.push(if i <= chunk.len() { BASE64[(bits >> (18 - 6 * i) & 63) as usize] as char } else { '=' });
                }
            }
            Ok(out)
        }
        "escape" => {
            let mut out = String::with_capacity(b.len());
            for byte in b {
                match byte {
                    b'\\' => out.push_str("\\\\"),
                    0 | 128.. => out.push_str(&format!("\\{byte:03o}")),
                    byte => out.push(*byte as char),
                }
            }
            Ok(out)
        }
        _ => Err(bad_argument(format!("unrecognized encoding: \"{format}\""))),
    }
}

fn decode(s: &str, format: &str) -> Result<Vec<u8>> {
    match format.to_ascii_lowercase().as_str() {
        "hex" => {
            let mut digits = Vec::with_capacity(s.len());
            for ch in s.chars().filter(|c| !c.is_ascii_whitespace()) {
                let digit =
                    ch.to_digit(16).ok_or_else(|| bad_argument(format!("invalid hexadecimal digit: \"{ch}\"")))?;
                digits.push(digit as u8);
            }
            if digits.len() % 2 == 1 {
                return Err(bad_argument("invalid hexadecimal data: odd number of digits"));
            }
            Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
        }
        "base64" => {
            let (mut out, mut bits, mut count, mut ended) = (Vec::with_capacity(s.len() * 3 / 4), 0u32, 0, false);
            for ch in s.chars().filter(|c| !c.is_ascii_whitespace()) {
                if ch == '=' {
                    ended = true;
                    continue;
                }
                let value = BASE64.iter().position(|b| char::from(*b) == ch).filter(|_| !ended).ok_or_else(|| {
                    bad_argument(format!("invalid symbol \"{ch}\" found while decoding base64 sequence"))
                })?;
                bits = bits << 6 | value as u32;
                count += 6;
                if count >= 8 {
                    count -= 8;
                    out.push((bits >> count) as u8);
                }
            }
            if count >= 6 || (s.chars().filter(|c| !c.is_ascii_whitespace()).count() % 4 != 0) {
                return Err(bad_argument("invalid base64 end sequence")
                    .with_hint("Input data is missing padding, is truncated, or is otherwise corrupted."));
            }
            Ok(out)
        }
        "escape" => super::super::parse::bytea(s),
        _ => Err(bad_argument(format!("unrecognized encoding: \"{format}\""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_read_back_what_they_write() {
        for bytes in [&b""[..], b"a", b"ab", b"abc", &[0, 255, 128, 92]] {
            for format in ["hex", "base64", "escape"] {
                assert_eq!(decode(&encode(bytes, format).unwrap(), format).unwrap(), bytes, "{format}");
            }
        }
        assert!(decode("abc", "hex").is_err());
        assert!(decode("YQ", "base64").is_err());
    }
}
