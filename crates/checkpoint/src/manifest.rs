//! What a checkpoint is: everything needed to go on from the end of its epoch.
//!
//! A manifest never changes and names every segment that makes up the state, those of earlier checkpoints included. So one manifest
//! and its segments suffice, whatever became of the checkpoints before.
//!
//! Layout: format version u32 · length of the JSON u32 · JSON · blobs (both little endian). The JSON holds offset and length of
//! each blob.

use bytes::Bytes;
use flow::{Epoch, Error, JobId, RelationId, Result, SqlState, TaskId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::envelope::u32_at;
use crate::names::ObjectName;
use crate::permit::Generation;

/// Version of the layout and of the JSON. A manifest of a newer one is refused. Fields may be added to version 1 if a reader may
/// ignore them.
pub const FORMAT_VERSION: u32 = 1;

const HEADER_BYTES: usize = 8;

/// A few bytes beside the JSON of a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blob {
    bytes: Bytes,
    /// Where the bytes lie in the encoded form. Means something only while a manifest is encoded or decoded.
    place: (u64, u64),
}

impl Blob {
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl From<Bytes> for Blob {
    fn from(bytes: Bytes) -> Blob {
        Blob { bytes, place: (0, 0) }
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Blob {
        Bytes::from(bytes).into()
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.place.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Blob, D::Error> {
        Ok(Blob { bytes: Bytes::new(), place: Deserialize::deserialize(deserializer)? })
    }
}

/// Part of one task's state in a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRef {
    pub task: TaskId,
    pub part: String,
    /// Tells one shape of the part from another; opaque here. State of another shape than the plan's is refused by whoever
    /// restores it.
    pub schema: String,
    pub rows: u64,
    pub bytes: u64,
}

/// Where the bytes of a segment are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentPlace {
    /// In the object of this name.
    Object(String),
    /// In the manifest itself.
    Inline(Blob),
}

/// One segment: see [`crate::segment`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRef {
    pub place: SegmentPlace,
    /// The slot that wrote it, of `slots`: whose share of the vnodes it holds.
    pub slot: u32,
    pub slots: u32,
    /// Bytes of the segment, the envelope of its object not counted.
    pub bytes: u64,
    /// CRC-32 of these bytes.
    pub crc32: u32,
    pub parts: Vec<PartRef>,
}

impl SegmentRef {
    /// A reference to `segment`, which lies in the object `name`.
    pub fn in_object(name: String, slot: u32, slots: u32, segment: &[u8], parts: Vec<PartRef>) -> SegmentRef {
        let (bytes, crc32) = (segment.len() as u64, crc32fast::hash(segment));
        SegmentRef { place: SegmentPlace::Object(name), slot, slots, bytes, crc32, parts }
    }

    /// A reference that holds `segment` itself.
    pub fn inline(slot: u32, slots: u32, segment: Vec<u8>, parts: Vec<PartRef>) -> SegmentRef {
        let (bytes, crc32) = (segment.len() as u64, crc32fast::hash(&segment));
        SegmentRef { place: SegmentPlace::Inline(segment.into()), slot, slots, bytes, crc32, parts }
    }

    /// The name of the object, if there is one.
    pub fn object(&self) -> Option<&str> {
        match &self.place {
            SegmentPlace::Object(name) => Some(name),
            SegmentPlace::Inline(_) => None,
        }
    }

    /// Refuses bytes that are not those of the segment: `XX001`.
    pub fn check(&self, segment: &[u8]) -> Result<()> {
        if segment.len() as u64 == self.bytes && crc32fast::hash(segment) == self.crc32 {
            return Ok(());
        }
        let what = self.object().map_or("a segment inside a manifest".to_string(), |name| format!("object \"{name}\""));
        Err(Error::new(SqlState::DataCorrupted, format!("{what} is not the segment that the manifest means"))
            .with_detail(format!("It has {} bytes, {} were written.", segment.len(), self.bytes)))
    }
}

/// What input `port` of a task was promised: see `flow::process`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortWatermark {
    pub task: TaskId,
    pub port: u32,
    pub watermark_us: i64,
}

/// The state of one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState {
    pub job: JobId,
    /// Counts the lives of the job: state of another life is not its state.
    pub incarnation: u64,
    /// How many slots it ran on.
    pub slots: u32,
    /// The plan whose state this is; opaque here.
    pub plan: String,
    pub watermarks: Vec<PortWatermark>,
    /// In the order in which they were written: the changes of one part count in this order.
    pub segments: Vec<SegmentRef>,
    /// By slot: the bytes of its segments when they last held nothing but content. 0 or missing: nobody knows.
    #[serde(default)]
    pub bases: Vec<u64>,
}

/// What a sink prepared for the manifest's epoch, to be committed once the manifest is the truth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedSink {
    pub sink: RelationId,
    pub prepared: Blob,
}

/// One checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub epoch: Epoch,
    /// Who wrote it.
    pub generation: Generation,
    /// Number of the record on which this checkpoint builds.
    pub previous: u64,
    /// Processing time of the epoch, microseconds since the Unix epoch.
    pub now_us: i64,
    /// When the manifest was written, on the wall clock.
    pub created_us: i64,
    /// Up to where the log of DML and DDL is part of the state.
    pub position: u64,
    /// Segments of this generation with a counter up to this one are named here or will never be.
    pub counter: u64,
    /// Positions and watermarks of sources, and what else the coordinator needs; opaque here.
    pub coordinator: serde_json::Value,
    pub jobs: Vec<JobState>,
    pub sinks: Vec<PreparedSink>,
}

impl Manifest {
    /// The name of its object.
    pub fn name(&self) -> ObjectName {
        ObjectName::Manifest { generation: self.generation, epoch: self.epoch }
    }

    /// All segments of all jobs.
    pub fn segments(&self) -> impl Iterator<Item = &SegmentRef> {
        self.jobs.iter().flat_map(|job| &job.segments)
    }

    fn blobs(&mut self) -> impl Iterator<Item = &mut Blob> {
        let segments =
            self.jobs.iter_mut().flat_map(|job| &mut job.segments).filter_map(|segment| match &mut segment.place {
                SegmentPlace::Inline(blob) => Some(blob),
                SegmentPlace::Object(_) => None,
            });
        segments.chain(self.sinks.iter_mut().map(|sink| &mut sink.prepared))
    }

    /// The payload of its object.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut placed = self.clone();
        let mut end = 0;
        let mut blobs = Vec::new();
        for blob in placed.blobs() {
            blob.place = (end, blob.bytes.len() as u64);
            end += blob.bytes.len() as u64;
            blobs.push(blob.bytes.clone());
        }
        let json = serde_json::to_vec(&placed).map_err(|e| Error::internal(format!("write manifest: {e}")))?;
        let length = u32::try_from(json.len())
            .map_err(|_| Error::new(SqlState::ProgramLimitExceeded, "a manifest is larger than 4 GiB"))?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + json.len() + end as usize);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&json);
        blobs.iter().for_each(|blob| bytes.extend_from_slice(blob));
        Ok(bytes)
    }

    /// The inverse of [`encode`](Self::encode); blobs share the memory of `bytes`. Errors: `XX001`, for a newer version with the
    /// hint to use the newer program.
    pub fn decode(bytes: &Bytes) -> Result<Manifest> {
        let damaged = |what: String| Error::new(SqlState::DataCorrupted, format!("manifest is damaged: {what}"));
        if bytes.len() < HEADER_BYTES {
            return Err(damaged("it is cut off".into()));
        }
        let version = u32_at(bytes, 0);
        if version > FORMAT_VERSION {
            return Err(Error::new(SqlState::DataCorrupted, format!("manifest has format version {version}"))
                .with_detail(format!("This program reads versions up to {FORMAT_VERSION}."))
                .with_hint("Use the newer program that wrote it."));
        }
        let end = HEADER_BYTES + u32_at(bytes, 4) as usize;
        let json = bytes.get(HEADER_BYTES..end).ok_or_else(|| damaged("it is cut off".into()))?;
        let mut manifest: Manifest = serde_json::from_slice(json).map_err(|e| damaged(e.to_string()))?;
        let blobs = bytes.slice(end..);
        for blob in manifest.blobs() {
            let (offset, length) = blob.place;
            let inside = offset.checked_add(length).is_some_and(|end| end <= blobs.len() as u64);
            if !inside {
                return Err(damaged("a blob lies outside".into()));
            }
            *blob = blobs.slice(offset as usize..(offset + length) as usize).into();
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let part = PartRef { task: TaskId(2), part: "left".into(), schema: "i64,utf8".into(), rows: 3, bytes: 7 };
        let job = JobState {
            bases: Vec::new(),
            job: JobId(16_400),
            incarnation: 2,
            slots: 4,
            plan: "{\"tasks\":[]}".into(),
            watermarks: vec![
                PortWatermark { task: TaskId(1), port: 0, watermark_us: i64::MIN },
                PortWatermark { task: TaskId(1), port: 1, watermark_us: i64::MAX },
            ],
            segments: vec![
                SegmentRef::in_object("jobs/16400/a.seg".into(), 1, 4, b"segment", vec![part.clone()]),
                SegmentRef::inline(3, 4, b"\xff\x00inline".to_vec(), vec![part]),
                SegmentRef::inline(2, 4, Vec::new(), vec![]),
            ],
        };
        Manifest {
            epoch: Epoch(u64::MAX - 1),
            generation: Generation(3),
            previous: 8,
            now_us: 1_700_000_000_000_000,
            created_us: 1_700_000_000_000_001,
            position: 4_711,
            counter: 12,
            coordinator: serde_json::json!({ "offsets": { "a": 1 } }),
            jobs: vec![job],
            sinks: vec![PreparedSink { sink: RelationId(9), prepared: b"staged".to_vec().into() }],
        }
    }

    /// Everything but where the blobs lay.
    fn plain(mut manifest: Manifest) -> Manifest {
        manifest.blobs().for_each(|blob| blob.place = (0, 0));
        manifest
    }

    #[test]
    fn manifests_come_back_as_they_were() {
        let manifest = sample();
        let back = Manifest::decode(&manifest.encode().unwrap().into()).unwrap();
        assert_eq!(plain(back.clone()), manifest);
        let inline = back.jobs[0].segments[1].clone();
        let SegmentPlace::Inline(blob) = &inline.place else { panic!("{inline:?}") };
        inline.check(blob.bytes()).unwrap();
        assert_eq!(plain(Manifest::decode(&back.encode().unwrap().into()).unwrap()), manifest);
        let empty = Manifest::default();
        assert_eq!(Manifest::decode(&empty.encode().unwrap().into()).unwrap(), empty);
    }

    #[test]
    fn segment_of_other_bytes_is_refused_and_named() {
        let segment = &sample().jobs[0].segments[0];
        segment.check(b"segment").unwrap();
        for other in [b"segmenT".as_slice(), b"segmen"] {
            let error = segment.check(other).unwrap_err();
            assert_eq!(error.state(), SqlState::DataCorrupted);
            assert!(error.message().contains("jobs/16400/a.seg"), "{error}");
        }
    }

    #[test]
    fn newer_version_is_refused_with_a_hint() {
        let mut bytes = sample().encode().unwrap();
        bytes[0] = 2;
        let error = Manifest::decode(&bytes.into()).unwrap_err();
        assert!(error.hint().unwrap().contains("newer program"), "{error}");
    }

    #[test]
    fn cut_manifests_are_errors() {
        let whole = Bytes::from(sample().encode().unwrap());
        for cut in 0..whole.len() {
            assert_eq!(Manifest::decode(&whole.slice(..cut)).unwrap_err().state(), SqlState::DataCorrupted, "{cut}");
        }
    }
}
