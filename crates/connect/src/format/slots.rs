//! Values of a column under construction. Unlike Arrow's builders they can be shortened, so a row can be taken back, and
//! a value that is not NULL costs no more than a push.

use arrow::array::StringViewArray;
use arrow::array::builder::NullBufferBuilder;
use arrow::buffer::{Buffer, NullBuffer, ScalarBuffer};
use flow::Result;

/// Values of one type, and which of them are NULL.
pub(super) struct Slots<V> {
    values: Vec<V>,
    /// May be shorter than `values`: those behind it are not NULL.
    nulls: NullBufferBuilder,
}

impl<V: Default> Slots<V> {
    pub(super) fn with_capacity(capacity: usize) -> Slots<V> {
        Slots { values: Vec::with_capacity(capacity), nulls: NullBufferBuilder::new(capacity) }
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn last(&self) -> Option<V>
    where
        V: Copy,
    {
        self.values.last().copied()
    }

    #[inline]
    pub(super) fn put(&mut self, value: V) {
        self.values.push(value);
    }

    pub(super) fn put_null(&mut self) {
        self.put_null_as(V::default());
    }

    /// Adds a NULL behind which `value` stands.
    pub(super) fn put_null_as(&mut self, value: V) {
        self.nulls.append_n_non_nulls(self.values.len() - self.nulls.len());
        self.nulls.append_null();
        self.values.push(value);
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        if self.nulls.len() > len {
            self.nulls.truncate(len);
        }
    }

    pub(super) fn finish(mut self) -> (Vec<V>, Option<NullBuffer>) {
        self.nulls.append_n_non_nulls(self.values.len() - self.nulls.len());
        (self.values, self.nulls.finish())
    }
}

/// Texts up to this length live inside their view.
const INLINE_BYTES: usize = 12;

/// The least and the most bytes of text that room is made for at a time. A batch pins whole blocks, so they start small.
const BLOCK_BYTES_MIN: usize = 1 << 10;
const BLOCK_BYTES_MAX: usize = 2 << 20;

/// Texts, as views into blocks of bytes.
pub(super) struct Texts {
    /// Every view holds its text, which is valid UTF-8, inline, or points to it in a block and carries its first four bytes.
    views: Slots<u128>,
    full: Vec<Buffer>,
    /// The block that takes new texts; its index is `full.len()`.
    block: Vec<u8>,
    /// How large the next block is.
    block_bytes: usize,
}

impl Texts {
    pub(super) fn with_capacity(capacity: usize) -> Texts {
        Texts {
            views: Slots::with_capacity(capacity),
            full: Vec::new(),
            block: Vec::new(),
            block_bytes: BLOCK_BYTES_MIN,
        }
    }

    /// Makes the first block large enough for `bytes` of text and some more.
    pub(super) fn expect_bytes(&mut self, bytes: usize) {
        self.block_bytes = (bytes + bytes / 8).clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX);
    }

    /// Bytes of text in blocks.
    pub(super) fn bytes(&self) -> usize {
        self.full.iter().map(Buffer::len).sum::<usize>() + self.block.len()
    }

    pub(super) fn len(&self) -> usize {
        self.views.len()
    }

    #[inline]
    pub(super) fn put(&mut self, text: &str) {
        // SAFETY: a `str` is valid UTF-8.
        unsafe { self.put_range(text.as_bytes(), 0, text.len()) }
    }

    pub(super) fn put_null(&mut self) {
        self.views.put_null();
    }

    /// Adds the text `bytes[start .. end]`. That there are bytes behind `end` makes short texts faster. Panics if the range
    /// is not inside `bytes`.
    ///
    /// # Safety
    /// The range is valid UTF-8.
    #[inline]
    pub(super) unsafe fn put_range(&mut self, bytes: &[u8], start: usize, end: usize) {
        let text = &bytes[start..end];
        let length = text.len();
        if length <= INLINE_BYTES {
            let word = match bytes[start..].first_chunk::<INLINE_WORD>() {
                // What lies behind the text is masked away.
                Some(chunk) => u128::from_le_bytes(*chunk) & ((1 << (8 * length)) - 1),
                None => {
                    let mut chunk = [0; INLINE_WORD];
                    chunk[..length].copy_from_slice(text);
                    u128::from_le_bytes(chunk)
                }
            };
            self.views.put(word << 32 | length as u128);
            return;
        }
        if self.block.capacity() - self.block.len() < length {
            self.next_block(length);
        }
        let prefix = text.first_chunk::<4>().map_or(0, |p| u32::from_le_bytes(*p));
        let (index, offset) = (self.full.len() as u128, self.block.len() as u128);
        self.block.extend_from_slice(text);
        self.views.put(offset << 96 | index << 64 | u128::from(prefix) << 32 | length as u128);
    }

    #[cold]
    fn next_block(&mut self, least: usize) {
        assert!(u32::try_from(least).is_ok(), "a text of {least} bytes");
        let room = Vec::with_capacity(self.block_bytes.max(least));
        self.block_bytes = (self.block_bytes * 2).min(BLOCK_BYTES_MAX);
        let block = std::mem::replace(&mut self.block, room);
        if !block.is_empty() {
            self.full.push(Buffer::from_vec(block));
        }
    }

    pub(super) fn truncate(&mut self, len: usize) {
        // Bytes of removed texts are given back as far as they lie in the last block.
        while self.views.len() > len {
            let view = self.views.last().unwrap_or_default();
            let (length, index, offset) = (view as u32 as usize, (view >> 64) as u32 as usize, (view >> 96) as usize);
            if length > INLINE_BYTES && index == self.full.len() {
                self.block.truncate(offset);
            }
            self.views.truncate(self.views.len() - 1);
        }
    }

    pub(super) fn finish(mut self) -> Result<StringViewArray> {
        let (views, nulls) = self.views.finish();
        if !self.block.is_empty() {
            if self.block.len() < self.block.capacity() / 2 {
                self.block.shrink_to_fit();
            }
            self.full.push(Buffer::from_vec(self.block));
        }
        let views = ScalarBuffer::from(views);
        if cfg!(debug_assertions) {
            return Ok(StringViewArray::try_new(views, self.full, nulls)?);
        }
        // SAFETY: only `put_range` makes views, and it upholds what `views` says: its caller vouches for UTF-8; `next_block`
        // sees every text of 4 GiB and refuses it; a view points to exactly the bytes that it
        // appended to the block of its index, and a block is moved on, never changed, once it is full. `truncate` removes
        // views from the end together with the bytes that only they point to. A NULL is a view of no bytes. Offsets fit,
        // because a block is as large as one text or as `BLOCK_BYTES_MAX`. Checking every text again costs more than
        // making its view.
        Ok(unsafe { StringViewArray::new_unchecked(views, self.full, nulls) })
    }
}

/// Bytes that are loaded at once for an inline text.
const INLINE_WORD: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::Array;

    #[test]
    fn texts_of_every_length_come_back_and_can_be_taken_back() {
        let letters = "abcdefghijklmnopqrstuvwxyzäöü".repeat(200);
        let mut texts = Texts::with_capacity(0);
        let mut want: Vec<Option<&str>> = Vec::new();
        for round in 0..600 {
            let end = (0..=round * 9 % 4000).rev().find(|e| letters.is_char_boundary(*e)).unwrap();
            want.push((round % 7 != 3).then_some(&letters[..end]));
            match want.last().unwrap() {
                Some(text) => texts.put(text),
                None => texts.put_null(),
            }
            if round % 5 == 4 {
                let kept = want.len() - round % 3;
                want.truncate(kept);
                texts.truncate(kept);
            }
        }
        let array = texts.finish().unwrap();
        assert_eq!(array.iter().collect::<Vec<_>>(), want);
        let used = want.iter().flatten().filter(|t| t.len() > INLINE_BYTES).map(|t| t.len()).sum::<usize>();
        let held = array.data_buffers().iter().map(|b| b.len()).sum::<usize>();
        assert!(held >= used && held < used + used / 4, "{held} bytes for {used}");
        assert_eq!(array.null_count(), want.iter().filter(|t| t.is_none()).count());
    }

    #[test]
    fn nulls_follow_values_and_are_shortened_with_them() {
        let mut slots = Slots::with_capacity(0);
        slots.put(1);
        slots.put_null();
        slots.put(2);
        slots.truncate(2);
        slots.truncate(1);
        slots.put(3);
        slots.put(4);
        slots.put_null();
        slots.put(5);
        slots.truncate(4);
        let (values, nulls) = slots.finish();
        assert_eq!(values, [1, 3, 4, 0]);
        assert_eq!(nulls.unwrap().iter().collect::<Vec<_>>(), [true, true, true, false]);
    }
}
