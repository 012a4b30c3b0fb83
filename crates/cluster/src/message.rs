//! What nodes say to each other. A message is the head of a frame; rows that go with it are the frame's body, as
//! [`flow::wire`] writes them.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use checkpoint::manifest::{SegmentPlace, SegmentRef};
use checkpoint::permit::Generation;
use flow::{ChangeBatch, Epoch, Error, RelationId, Result, SlotId, SqlState, TaskId};
use runtime::{Counted, DeploymentId, FromSlot, Owed, Tick, ToSlot};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use state::owned;

use crate::frame::{FRAME_BYTES_MAX, Frame};

/// Rows go in pieces of about so many bytes, if they have more.
const PIECE_BYTES: usize = 8 << 20;

/// Where the state of jobs is stored: every node of a cluster must come to the same place by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorePlace {
    /// A folder, by its absolute path.
    Folder(PathBuf),
    /// Keys come from the environment of each node.
    S3 { bucket: String, prefix: String },
}

/// One worker of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub worker: u32,
    /// Where other workers reach it.
    pub address: String,
    /// Its slots among those of the session.
    pub first: usize,
    pub count: usize,
}

/// What a worker needs to run its slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    pub members: Vec<Member>,
    /// Slots of all workers.
    pub slots: usize,
    pub batch_rows: usize,
    pub floor: Epoch,
    /// Where the state of jobs is stored, and as which generation; absent: nowhere.
    pub store: Option<(StorePlace, Generation)>,
}

/// From the coordinator to a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// Nothing else was to be said.
    Beat,
    /// A session begins.
    Begin(Begin),
    /// It ends: the slots stop and everything is forgotten.
    End,
    /// The cluster is over for good, as that of an application is when the application has ended: the worker ends too.
    Leave,
    /// For one slot.
    Slot(SlotId, SlotMessage),
    /// For every slot of the worker.
    Slots(SlotMessage),
    /// No reader wants an older epoch.
    Floor(Epoch),
    ForgetView(RelationId),
    SucceedView(RelationId, Epoch),
    ForgetBefore(RelationId, Epoch),
    /// What must not be cleared away? New objects get numbers above the counter. Answered by [`FromWorker::Held`].
    Held {
        request: u64,
        counter: u64,
    },
    /// Hand on what changes in a view. Answered by [`FromWorker::Following`].
    Follow {
        request: u64,
        relation: RelationId,
    },
    Unfollow(RelationId),
    /// How many rows? Answered by [`FromWorker::Count`].
    Count {
        request: u64,
        relation: RelationId,
        epoch: Epoch,
    },
    /// The row with the key in the body. Answered by [`FromWorker::Row`].
    Point {
        request: u64,
        relation: RelationId,
        epoch: Epoch,
        projection: Option<Vec<usize>>,
    },
    /// The rows of one shard, which come as [`FromWorker::Rows`] while there is credit. If the frame has a body, it is work to
    /// be done on them there, in the form of [`query::work`], and what comes of it is sent instead.
    Scan {
        scan: u64,
        relation: RelationId,
        epoch: Epoch,
        shard: usize,
        projection: Option<Vec<usize>>,
        batch_rows: usize,
    },
    /// So many more bytes of a scan may come.
    Credit {
        scan: u64,
        bytes: u64,
    },
    /// Nobody reads a scan any more.
    Cancel {
        scan: u64,
    },
}

/// What a worker tells of a view's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewSize {
    pub relation: RelationId,
    pub rows: u64,
    pub bytes: u64,
}

/// From a worker to the coordinator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// In even intervals, with the sizes of the views.
    Beat(Vec<ViewSize>),
    /// The slots of the session are there, and reach those of the other workers.
    Ready,
    /// They are not, or not any more.
    Broken(Error),
    /// The slots of another worker cannot be connected to while the session begins. [`Broken`](Self::Broken) says why.
    Unreached(u32),
    /// The worker is being stopped, and works until its coordinator closes the connection. Of no session.
    Leaving,
    /// The session has ended here.
    Ended,
    Report(SlotReport),
    Held {
        request: u64,
        names: Vec<String>,
        counter: u64,
    },
    Following {
        request: u64,
        written: Result<Epoch>,
    },
    /// Of a view that is followed: the changes of an epoch are in the body. They come before the slot's progress.
    Change {
        relation: RelationId,
        epoch: Epoch,
    },
    Count {
        request: u64,
        rows: Result<u64>,
    },
    /// The row is in the body, if there is one.
    Row {
        request: u64,
        found: Result<bool>,
    },
    Rows {
        scan: u64,
    },
    /// There are no more; so many rows of the shard were read.
    ScanEnd {
        scan: u64,
        outcome: Result<u64>,
    },
}

/// From a worker to another, on the connection that it has made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToPeer {
    Beat,
    Slot(SlotId, SlotMessage),
}

/// What comes back on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromPeer {
    Beat,
    /// Rows do not wait any more.
    Credit(Counted),
}

/// A [`ToSlot`] whose rows, or small segments, are in the body.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SlotMessage {
    Plain(ToSlot),
    Input { relation: RelationId, epoch: Epoch },
    Backfill { deployment: DeploymentId, relation: RelationId, tick: Tick },
    Exchange { deployment: DeploymentId, task: TaskId, port: u16, tick: Tick, counted: Option<Counted> },
}

/// A [`FromSlot`] whose rows, or small segments, are in the body.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SlotReport {
    Plain(FromSlot),
    Deliver { slot: SlotId, deployment: DeploymentId, sink: RelationId, tick: Tick },
}

/// A message without rows.
pub fn frame(session: u64, message: &impl Serialize) -> Result<Frame> {
    Ok(Frame { session, head: head(message)?, body: Vec::new() })
}

/// A message with rows.
pub fn frame_with(session: u64, message: &impl Serialize, body: Vec<u8>) -> Result<Frame> {
    Ok(Frame { session, head: head(message)?, body })
}

fn head(message: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(message).map_err(|e| Error::internal(format!("a message cannot be written: {e}")))
}

/// The message of a frame. Errors: `08P01`.
pub fn parse<M: DeserializeOwned>(frame: &Frame) -> Result<M> {
    serde_json::from_slice(&frame.head)
        .map_err(|e| Error::new(SqlState::ProtocolViolation, "a message cannot be read").with_detail(e.to_string()))
}

/// A message to a slot as it is written: once, or once for each piece of its rows.
///
/// `counted` is what the sender counts for rows of an exchange; it goes with the first piece. Errors: `54000` a row is
/// larger than a frame.
pub fn split(message: ToSlot, counted: Option<Counted>) -> Result<Vec<(SlotMessage, Vec<u8>)>> {
    Ok(match message {
        ToSlot::Input { relation, epoch, changes } => {
            pieces(&changes)?.into_iter().map(|rows| (SlotMessage::Input { relation, epoch }, rows)).collect()
        }
        ToSlot::Backfill { deployment, relation, tick, rows } => pieces(&rows)?
            .into_iter()
            .map(|rows| (SlotMessage::Backfill { deployment, relation, tick }, rows))
            .collect(),
        ToSlot::Exchange { deployment, task, port, tick, changes, .. } => {
            let mut counted = counted;
            pieces(&changes)?
                .into_iter()
                .map(|rows| {
                    let next = counted.as_ref().map(|counted| Counted { bytes: 0, ..counted.clone() });
                    let counted = std::mem::replace(&mut counted, next);
                    (SlotMessage::Exchange { deployment, task, port, tick, counted }, rows)
                })
                .collect()
        }
        plain => {
            let inline = match &plain {
                ToSlot::Deploy { restore: Some(restore), .. } => take_inline(restore.chains.iter().flatten()),
                _ => Vec::new(),
            };
            vec![(SlotMessage::Plain(plain), inline)]
        }
    })
}

/// The bytes of those segments that are no objects of their own: a [`SegmentRef`] is written without them.
fn take_inline<'a>(segments: impl Iterator<Item = &'a SegmentRef>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments {
        if let SegmentPlace::Inline(blob) = &segment.place {
            bytes.extend_from_slice(blob.bytes());
        }
    }
    bytes
}

/// The inverse of [`take_inline`]. Errors: `08P01` there are fewer or more bytes than the segments have.
fn put_inline<'a>(segments: impl Iterator<Item = &'a mut SegmentRef>, body: &[u8]) -> Result<()> {
    let odd = || Error::new(SqlState::ProtocolViolation, "the segments of a state are not all there");
    let mut rest = body;
    for segment in segments {
        if matches!(segment.place, SegmentPlace::Inline(_)) {
            let length = usize::try_from(segment.bytes).map_err(|_| odd())?;
            let (mine, others) = rest.split_at_checked(length).ok_or_else(odd)?;
            segment.place = SegmentPlace::Inline(mine.to_vec().into());
            rest = others;
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(odd()) }
}

/// The inverse of [`split`]; `give_back` takes what is owed for rows of an exchange. Errors: `XX001`, `08P01`.
pub fn join(message: SlotMessage, body: &[u8], give_back: Option<&runtime::GiveBack>) -> Result<ToSlot> {
    Ok(match message {
        SlotMessage::Plain(mut message) => {
            if let ToSlot::Deploy { restore: Some(restore), .. } = &mut message {
                put_inline(Arc::make_mut(restore).chains.iter_mut().flatten(), body)?;
            }
            message
        }
        SlotMessage::Input { relation, epoch } => ToSlot::Input { relation, epoch, changes: rows(body)? },
        SlotMessage::Backfill { deployment, relation, tick } => {
            ToSlot::Backfill { deployment, relation, tick, rows: rows(body)? }
        }
        SlotMessage::Exchange { deployment, task, port, tick, counted } => {
            let owed = match (counted, give_back) {
                (Some(counted), Some(give_back)) => Owed::new(counted, Arc::clone(give_back)),
                _ => Owed::default(),
            };
            ToSlot::Exchange { deployment, task, port, tick, changes: rows(body)?, owed }
        }
    })
}

/// A report as it is written. Errors: as of [`split`].
pub fn split_report(report: FromSlot) -> Result<Vec<(SlotReport, Vec<u8>)>> {
    Ok(match report {
        FromSlot::Deliver { slot, deployment, sink, tick, changes: Some(changes) } => pieces(&changes)?
            .into_iter()
            .map(|rows| (SlotReport::Deliver { slot, deployment, sink, tick }, rows))
            .collect(),
        plain => {
            let inline = match &plain {
                FromSlot::Stored { state, .. } => take_inline(state.chain.iter()),
                _ => Vec::new(),
            };
            vec![(SlotReport::Plain(plain), inline)]
        }
    })
}

/// The inverse of [`split_report`].
pub fn join_report(report: SlotReport, body: &[u8]) -> Result<FromSlot> {
    Ok(match report {
        SlotReport::Plain(mut report) => {
            if let FromSlot::Stored { state, .. } = &mut report {
                put_inline(state.chain.iter_mut(), body)?;
            }
            report
        }
        SlotReport::Deliver { slot, deployment, sink, tick } => {
            FromSlot::Deliver { slot, deployment, sink, tick, changes: Some(rows(body)?) }
        }
    })
}

/// Rows as the bodies of frames: pieces that hold their own texts alone. Errors: `54000` a row is larger than a frame.
pub fn pieces(changes: &ChangeBatch) -> Result<Vec<Vec<u8>>> {
    let mut done = Vec::new();
    let mut open = vec![compact(changes)?];
    while let Some(piece) = open.pop() {
        let rows = piece.num_rows();
        let bytes: usize = piece.rows.columns().iter().map(|c| c.get_array_memory_size()).sum();
        if bytes > PIECE_BYTES && rows > 1 {
            open.push(compact(&piece.slice(rows / 2, rows - rows / 2))?);
            open.push(compact(&piece.slice(0, rows / 2))?);
            continue;
        }
        let bytes = flow::wire::encode(&piece)?;
        // The head is far below what is left.
        if bytes.len() > FRAME_BYTES_MAX / 2 {
            return Err(Error::new(SqlState::ProgramLimitExceeded, "a row is too large to go to another node")
                .with_detail(format!("It has {} bytes; the most is {}.", bytes.len(), FRAME_BYTES_MAX / 2))
                .with_hint("Keep values of that size outside, and only their names in rows."));
        }
        done.push(bytes);
    }
    Ok(done)
}

/// A slice of texts, or a selection from them, would be written with all that it is a part of.
fn compact(changes: &ChangeBatch) -> Result<ChangeBatch> {
    let columns = changes.rows.columns().iter().map(owned).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(changes.num_rows()));
    let rows = RecordBatch::try_new_with_options(changes.rows.schema(), columns, &options)?;
    Ok(ChangeBatch::new(rows, changes.diff.clone()))
}

/// The rows in a frame's body. Errors: `XX001`.
pub fn rows(body: &[u8]) -> Result<ChangeBatch> {
    flow::wire::decode(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, AsArray, StringViewArray};

    fn texts(rows: usize, bytes: usize) -> ChangeBatch {
        let texts = (0..rows).map(|n| format!("{n:08}{}", "x".repeat(bytes)));
        let column: ArrayRef = Arc::new(StringViewArray::from_iter_values(texts));
        ChangeBatch::insert(RecordBatch::try_from_iter([("t", column)]).unwrap())
    }

    #[test]
    fn big_batches_go_in_pieces_and_small_parts_of_them_alone() {
        let all = texts(5000, 20_000);
        let found = pieces(&all).unwrap();
        assert!(found.len() > 8 && found.iter().all(|piece| piece.len() < 2 * PIECE_BYTES));
        let mut next = 0;
        for piece in &found {
            let rows = rows(piece).unwrap();
            for text in rows.rows.column(0).as_string_view().iter() {
                assert!(text.unwrap().starts_with(&format!("{next:08}")));
                next += 1;
            }
        }
        assert_eq!(next, 5000);
        let part = all.take(&arrow::array::UInt32Array::from(vec![7, 4000])).unwrap();
        let bytes: usize = pieces(&part).unwrap().iter().map(Vec::len).sum();
        assert!(bytes < 50_000, "{bytes} bytes");
    }

    /// Small segments stand in manifests, which keep their bytes apart.
    #[test]
    fn small_segments_of_a_state_arrive_with_their_bytes() {
        let inline = |bytes: &[u8]| SegmentRef::inline(0, 1, bytes.to_vec(), Vec::new());
        let object = SegmentRef::in_object("x".into(), 0, 1, b"elsewhere", Vec::new());
        let chain = vec![inline(b"first"), object, inline(b""), inline(b"second one")];
        let travel = |head: Vec<u8>| Frame { session: 1, head, body: Vec::new() };
        let state = runtime::StoredState { chain: chain.clone(), ..runtime::StoredState::default() };
        let stored = FromSlot::Stored { slot: SlotId(0), deployment: DeploymentId(1), epoch: Epoch(2), state };
        let (report, body) = split_report(stored).unwrap().remove(0);
        let report: SlotReport = parse(&travel(head(&report).unwrap())).unwrap();
        assert!(join_report(report.clone(), &body[1..]).is_err());
        let FromSlot::Stored { state, .. } = join_report(report, &body).unwrap() else { panic!() };
        assert_eq!(state.chain, chain);
        let restore = runtime::Restore { chains: vec![chain.clone(), chain], ..runtime::Restore::default() };
        let plan = plan::ProcessPlan { version: 1, job: flow::JobId(1), tasks: Vec::new() };
        let deploy = ToSlot::Deploy {
            deployment: DeploymentId(1),
            plan: Arc::new(plan),
            spread: runtime::message::Spread { parallelism: 1, elsewhere: Vec::new() },
            first: Tick::end_of(Epoch(3)),
            kept: true,
            restore: Some(Arc::new(restore.clone())),
        };
        let (message, body) = split(deploy, None).unwrap().remove(0);
        let message: SlotMessage = parse(&travel(head(&message).unwrap())).unwrap();
        let ToSlot::Deploy { restore: Some(back), .. } = join(message, &body, None).unwrap() else { panic!() };
        assert_eq!(*back, restore);
    }

    #[test]
    fn what_is_counted_goes_with_the_first_piece_and_is_given_back_once() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let (deployment, slot) = (DeploymentId(3), SlotId(1));
        let counted = Counted { deployment, slot, level: 2, bytes: 77 };
        let message = ToSlot::Exchange {
            deployment,
            task: TaskId(4),
            port: 0,
            tick: Tick::end_of(Epoch(9)),
            changes: texts(1000, 20_000),
            owed: Owed::default(),
        };
        let written = split(message, Some(counted)).unwrap();
        assert!(written.len() > 1);
        let given = Arc::new(AtomicUsize::new(0));
        let to = Arc::clone(&given);
        let give_back: runtime::GiveBack = Arc::new(move |counted: Counted| {
            to.fetch_add(counted.bytes, Ordering::Relaxed);
        });
        for (message, body) in written {
            let head = head(&message).unwrap();
            let message = parse(&Frame { session: 1, head, body: Vec::new() }).unwrap();
            let back = join(message, &body, Some(&give_back)).unwrap();
            let ToSlot::Exchange { owed, .. } = &back else { panic!() };
            assert!(owed.is_owed());
            drop(back.clone());
            drop(back);
        }
        assert_eq!(given.load(Ordering::Relaxed), 77);
    }
}
