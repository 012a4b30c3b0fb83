//! A segment: the changes of the state of one slot, by task and part, in one string of bytes.
//!
//! Chunks are opaque here. Those of one part come back in the order in which they were added.
//!
//! Layout: magic (8 bytes) · chunks · index as JSON · length of the index u32 · CRC-32 of all before it u32. The index comes last
//! because chunks are added one by one.

use bytes::Bytes;
use flow::{Error, Result, SqlState, TaskId};
use serde::{Deserialize, Serialize};

use crate::envelope::u32_at;

const MAGIC: &[u8; 8] = b"MILLSEG1";
const TRAILER_BYTES: usize = 8;

/// Where the chunks of one part lie: offset and length of each, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PartIndex {
    task: TaskId,
    part: String,
    chunks: Vec<(u64, u64)>,
}

/// Collects chunks.
#[derive(Debug)]
pub struct SegmentWriter {
    bytes: Vec<u8>,
    index: Vec<PartIndex>,
}

impl Default for SegmentWriter {
    fn default() -> SegmentWriter {
        SegmentWriter { bytes: MAGIC.to_vec(), index: Vec::new() }
    }
}

impl SegmentWriter {
    pub fn new() -> SegmentWriter {
        SegmentWriter::default()
    }

    /// An empty segment in memory that was another's.
    pub fn reusing(mut bytes: Vec<u8>) -> SegmentWriter {
        bytes.clear();
        bytes.extend_from_slice(MAGIC);
        SegmentWriter { bytes, index: Vec::new() }
    }

    /// Appends a chunk to a part: what `write` appends to the bytes that it is given; nothing if it fails. Returns how many bytes
    /// these are.
    pub fn add(&mut self, task: TaskId, part: &str, write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<u64> {
        let start = self.bytes.len();
        if let Err(error) = write(&mut self.bytes) {
            self.bytes.truncate(start);
            return Err(error);
        }
        let range = (start as u64, (self.bytes.len() - start) as u64);
        match self.index.iter_mut().find(|known| known.task == task && known.part == part) {
            Some(known) => known.chunks.push(range),
            None => self.index.push(PartIndex { task, part: part.to_string(), chunks: vec![range] }),
        }
        Ok(range.1)
    }

    /// Whether no chunk was added.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes collected so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Gives memory back beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.bytes.shrink_to(bytes);
    }

    /// The whole segment. Errors: `54000` an index beyond 4 GiB.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        let index = serde_json::to_vec(&self.index).map_err(|e| Error::internal(format!("write segment: {e}")))?;
        let length = u32::try_from(index.len())
            .map_err(|_| Error::new(SqlState::ProgramLimitExceeded, "a segment has too many chunks"))?;
        self.bytes.extend_from_slice(&index);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        let crc = crc32fast::hash(&self.bytes);
        self.bytes.extend_from_slice(&crc.to_le_bytes());
        Ok(self.bytes)
    }
}

/// Gives chunks back. They share the memory of the segment.
#[derive(Clone, Debug)]
pub struct SegmentReader {
    bytes: Bytes,
    index: Vec<PartIndex>,
}

impl SegmentReader {
    /// Errors: `XX001` for anything that [`SegmentWriter::finish`] did not give.
    pub fn open(bytes: Bytes) -> Result<SegmentReader> {
        let damaged = |what: &str| Error::new(SqlState::DataCorrupted, format!("segment is damaged: {what}"));
        let body = bytes.len().checked_sub(TRAILER_BYTES).filter(|body| *body >= MAGIC.len());
        let body = body.ok_or_else(|| damaged("it is cut off"))?;
        if &bytes[..MAGIC.len()] != MAGIC {
            return Err(damaged("it does not begin as one"));
        }
        if crc32fast::hash(&bytes[..body + 4]) != u32_at(&bytes, body + 4) {
            return Err(damaged("its checksum does not fit"));
        }
        let start = body.checked_sub(u32_at(&bytes, body) as usize).filter(|start| *start >= MAGIC.len());
        let start = start.ok_or_else(|| damaged("its index is cut off"))?;
        let index: Vec<PartIndex> =
            serde_json::from_slice(&bytes[start..body]).map_err(|e| damaged(&format!("its index: {e}")))?;
        let inside = |(offset, length): &(u64, u64)| {
            *offset >= MAGIC.len() as u64 && offset.checked_add(*length).is_some_and(|end| end <= start as u64)
        };
        if !index.iter().flat_map(|part| &part.chunks).all(inside) {
            return Err(damaged("a chunk lies outside"));
        }
        Ok(SegmentReader { bytes, index })
    }

    /// Tasks and parts that have chunks, in the order of their first one.
    pub fn parts(&self) -> impl Iterator<Item = (TaskId, &str)> {
        self.index.iter().map(|part| (part.task, part.part.as_str()))
    }

    /// The chunks of one part, in the order in which they were added; none if it has none.
    pub fn chunks(&self, task: TaskId, part: &str) -> impl Iterator<Item = Bytes> {
        let found = self.index.iter().find(|known| known.task == task && known.part == part);
        let chunks = found.map_or(&[][..], |known| &known.chunks);
        chunks.iter().map(|(offset, length)| self.bytes.slice(*offset as usize..(*offset + *length) as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(writer: &mut SegmentWriter, task: u32, part: &str, chunk: &str) -> u64 {
        let write = |bytes: &mut Vec<u8>| {
            bytes.extend_from_slice(chunk.as_bytes());
            Ok(())
        };
        writer.add(TaskId(task), part, write).unwrap()
    }

    fn chunks(reader: &SegmentReader, task: u32, part: &str) -> Vec<Vec<u8>> {
        reader.chunks(TaskId(task), part).map(|c| c.to_vec()).collect()
    }

    #[test]
    fn chunks_of_a_part_come_back_in_order_however_they_were_mixed() {
        let mut writer = SegmentWriter::new();
        assert!(writer.is_empty());
        for (task, part, chunk) in
            [(1, "rows", "a"), (2, "rows", "x"), (1, "keys", ""), (1, "rows", "b"), (2, "rows", "y"), (1, "rows", "a")]
        {
            assert_eq!(add(&mut writer, task, part, chunk), chunk.len() as u64);
        }
        let reader = SegmentReader::open(writer.finish().unwrap().into()).unwrap();
        assert_eq!(chunks(&reader, 1, "rows"), [b"a", b"b", b"a"]);
        assert_eq!(chunks(&reader, 2, "rows"), [b"x", b"y"]);
        assert_eq!(chunks(&reader, 1, "keys"), [b""]);
        assert_eq!(chunks(&reader, 3, "rows"), Vec::<Vec<u8>>::new());
        let parts: Vec<(TaskId, &str)> = reader.parts().collect();
        assert_eq!(parts, [(TaskId(1), "rows"), (TaskId(2), "rows"), (TaskId(1), "keys")]);
    }

    #[test]
    fn nothing_is_left_of_a_chunk_that_failed_nor_of_a_segment_before() {
        let mut writer = SegmentWriter::new();
        add(&mut writer, 1, "rows", "of the first");
        let mut writer = SegmentWriter::reusing(writer.finish().unwrap());
        let fails = |bytes: &mut Vec<u8>| {
            bytes.extend_from_slice(b"half of it");
            Err(Error::internal("no more"))
        };
        writer.add(TaskId(1), "rows", fails).unwrap_err();
        assert!(writer.is_empty());
        add(&mut writer, 1, "rows", "b");
        let reader = SegmentReader::open(writer.finish().unwrap().into()).unwrap();
        assert_eq!(chunks(&reader, 1, "rows"), [b"b"]);
    }

    #[test]
    fn empty_segment_is_a_segment() {
        let reader = SegmentReader::open(SegmentWriter::new().finish().unwrap().into()).unwrap();
        assert_eq!(reader.parts().count(), 0);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_an_error() {
        let mut writer = SegmentWriter::new();
        add(&mut writer, 1, "rows", "some rows");
        let whole = Bytes::from(writer.finish().unwrap());
        for cut in 0..whole.len() {
            assert_eq!(SegmentReader::open(whole.slice(..cut)).unwrap_err().state(), SqlState::DataCorrupted);
        }
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            SegmentReader::open(bytes.into()).unwrap_err();
        }
    }

    #[test]
    fn index_that_points_outside_is_an_error() {
        for (offset, length) in [(0u64, 3u64), (8, 100), (u64::MAX, 2)] {
            let index =
                serde_json::to_vec(&[PartIndex { task: TaskId(1), part: "p".into(), chunks: vec![(offset, length)] }])
                    .unwrap();
            let mut bytes = [MAGIC.as_slice(), b"abc", &index, &(index.len() as u32).to_le_bytes()].concat();
            let crc = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            SegmentReader::open(bytes.into()).unwrap_err();
        }
    }
}
