//! Random values that are functions of a position: the same position gives the same value in any order, on any split.
//!
//! A *word* is 64 bits for (seed, position, lane); lanes of one position are independent of each other. Two folded
//! multiplies, the construction of wyhash (Wang Yi, 2019), as in `flow::hash`.

use arrow::array::StringViewArray;
use arrow::buffer::{Buffer, NullBuffer, ScalarBuffer};

const K1: u64 = 0x8bb8_4b93_962e_acc9;
const K2: u64 = 0x4b33_a62e_d433_d4a3;

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ ((wide >> 64) as u64)
}

/// 64 random bits for `position` in `lane`.
#[inline(always)]
pub(crate) fn word(seed: u64, position: u64, lane: u64) -> u64 {
    let mixed = fold(position ^ K1, seed ^ K2);
    fold(mixed ^ lane.wrapping_mul(K1), position ^ lane ^ K2)
}

/// A number below `bound` from the low 32 bits of `word`, by Lemire's multiplication; `bound` 0 counts as 1.
#[inline(always)]
pub(crate) fn below(word: u64, bound: u32) -> u32 {
    ((u64::from(word as u32) * u64::from(bound)) >> 32) as u32
}

/// A number below `bound` from the whole word; `bound` 0 counts as 1.
#[inline(always)]
pub(crate) fn below_u64(word: u64, bound: u64) -> u64 {
    ((u128::from(word) * u128::from(bound)) >> 64) as u64
}

/// Texts of a fixed set, as views that need no copy.
pub(crate) struct Words {
    views: Vec<u128>,
    buffer: Buffer,
}

impl Words {
    pub(crate) fn new<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Words {
        let mut bytes = Vec::new();
        let mut views = Vec::new();
        for text in texts {
            let text = text.as_ref().as_bytes();
            views.push(arrow::array::builder::make_view(text, 0, bytes.len() as u32));
            if text.len() > INLINE_BYTES {
                bytes.extend_from_slice(text);
            }
        }
        Words { views, buffer: Buffer::from_vec(bytes) }
    }

    pub(crate) fn len(&self) -> usize {
        self.views.len()
    }

    /// One text for each index; indices are below [`len`](Self::len). `nulls` has as many.
    pub(crate) fn pick(&self, indices: impl Iterator<Item = usize>, nulls: Option<NullBuffer>) -> StringViewArray {
        texts(indices.map(|i| self.views[i]).collect(), &self.buffer, nulls)
    }
}

/// Texts up to this length live inside their view.
const INLINE_BYTES: usize = 12;
/// Characters in a [`Pool`]: it fits the second-level cache, and a text of it starts at one of a quarter million places.
const POOL_BYTES: usize = 1 << 18;

/// Random letters, of which any stretch is a text.
pub(crate) struct Pool {
    buffer: Buffer,
}

impl Pool {
    /// Letters `a`–`z`; one in `blank` is a space, none when 0.
    pub(crate) fn new(seed: u64, blank: u32) -> Pool {
        let letter = |n: usize| {
            let w = word(seed, n as u64, 0);
            if blank > 0 && below(w >> 32, blank) == 0 { b' ' } else { b'a' + below(w, 26) as u8 }
        };
        Pool { buffer: Buffer::from_vec((0..POOL_BYTES).map(letter).collect::<Vec<u8>>()) }
    }

    /// One text for each (random word, length); a length is capped at half the pool. `nulls` has as many.
    pub(crate) fn pick(
        &self,
        texts_of: impl Iterator<Item = (u64, u32)>,
        nulls: Option<NullBuffer>,
    ) -> StringViewArray {
        const HALF: usize = POOL_BYTES / 2;
        let bytes = self.buffer.as_slice();
        let view = |(word, length): (u64, u32)| {
            let length = (length as usize).min(HALF);
            let start = below(word, (POOL_BYTES - length) as u32) as usize;
            arrow::array::builder::make_view(&bytes[start..start + length], 0, start as u32)
        };
        texts(texts_of.map(view).collect(), &self.buffer, nulls)
    }
}

/// An array over views into `buffer`.
fn texts(views: Vec<u128>, buffer: &Buffer, nulls: Option<NullBuffer>) -> StringViewArray {
    assert!(nulls.as_ref().is_none_or(|n| n.len() == views.len()));
    // SAFETY: only `Words` and `Pool` make views. Each holds its text inline, or points to exactly the bytes of `buffer`
    // whose prefix it carries: a whole `str` of `Words`, or ASCII letters of `Pool`. Checking the text of every value
    // again would cost more than making it.
    unsafe { StringViewArray::new_unchecked(ScalarBuffer::from(views), vec![buffer.clone()], nulls) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_neighbours_and_of_lanes_are_spread_evenly() {
        for lane in 0..4 {
            let mut counts = [0u32; 64];
            for n in 0..64_000 {
                counts[below(word(7, n, lane), 64) as usize] += 1;
                counts[below_u64(word(7, n, lane), 64) as usize] += 1;
            }
            assert!(counts.iter().all(|c| (1_700..2_300).contains(c)), "{counts:?}");
        }
        let same = (0..10_000).filter(|n| below(word(7, *n, 0), 100) == below(word(7, *n, 1), 100)).count();
        assert!((50..150).contains(&same), "{same}");
    }

    #[test]
    fn texts_of_a_set_and_of_the_pool_are_valid() {
        let words = Words::new(["short", "a text that does not fit its view", ""]);
        let array = words.pick([1, 0, 2, 1].into_iter(), None);
        let checked = StringViewArray::try_new(array.views().clone(), array.data_buffers().to_vec(), None).unwrap();
        assert_eq!(checked.value(0), "a text that does not fit its view");
        assert_eq!((checked.value(1), checked.value(2)), ("short", ""));
        let pool = Pool::new(3, 13);
        let array = pool.pick((0..2_000u32).map(|n| (word(1, u64::from(n), 0), n)), None);
        let checked = StringViewArray::try_new(array.views().clone(), array.data_buffers().to_vec(), None).unwrap();
        assert!((0..2_000).all(|n| checked.value(n).len() == n));
        assert_ne!(checked.value(100), checked.value(101).get(..100).unwrap());
    }
}
