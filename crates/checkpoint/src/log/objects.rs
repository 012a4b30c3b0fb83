//! The log as numbered objects of a store, for coordinators that take over from each other.
//!
//! **Law.** The entries `log/1`, `log/2`, … are numbered without a hole, and each is created only if absent. A coordinator begins
//! with an entry that says so, its *claim*, under the number after the newest one; then it reads everything up to there; from
//! then on it creates one number after the other. So whoever wrote before finds its next number taken, and is told that it has
//! been shut out (*fenced*) before it can acknowledge anything. Nobody compares clocks, and nobody has to notice anything in time.
//!
//! **What is removed, and why claims are not.** A *base* is an entry that says what the log consists of up to there: parts, which
//! are objects with names of their own, and the entries from a number on. Everything else before it is removed, but claims stay
//! for ever. A name that was removed is free again, also for a writer that slept; but the number that such a writer would take
//! next is that of the claim by which it was shut out. There is one other case: it has created an entry, has had no answer, and
//! asks again for one that was read by its successor and removed since. Then what it acknowledges is in the log all the same, and
//! the object that is there again lies before every base, where nobody reads it.
//!
//! **What a writer that was shut out removes** hits nothing that lives. It removes what its own last base does not need; that base was
//! in the log when its successor read it, and no later base needs what an earlier one did not: parts have names that
//! are given once, and the number of the first entry that counts only grows.
//!
//! **Steps of a rewrite**: the parts are written; the base is created as any entry is, and with that they are the log; then what it does
//! not need is removed. A crash before the base leaves parts that nobody needs, one after it leaves objects that nobody needs; the
//! next claimant removes both. What is appended meanwhile is not copied: the base says from which entry and byte on entries
//! count.
//!
//! **Small objects.** A sync is one request and makes one object. When [`PACK_ENTRIES`] have come together they are put together to a
//! part, with those parts before them that are not much larger: as a binary counter does, so that there are few parts and
//! each record is copied only so often.
//!
//! **A store that is away** is waited for: what was appended is in memory, and nothing is lost by asking again. A create whose
//! answer is not known is only ever made again with the same bytes.

mod entry;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use flow::{Error, Result, SqlState};

use self::entry::{Base, FORMAT_VERSION, Head, LENGTH_BYTES, Part, What, entry_name, part_name};
use super::{OnStall, Position, Standing};
use crate::door::{Door, Listed, PutNew};
use crate::envelope::PAYLOAD_BYTES_MAX;
use crate::names::{LOG, LOG_PARTS};
use crate::permit::Generation;
use crate::planted;

/// How often a claimant looks again because another one was faster.
const LOOKS_MAX: usize = 32;
/// Bytes of records of one entry, unless one record has more.
const ENTRY_BYTES: usize = 32 << 20;
/// Bytes of records of one part, unless one record has more.
const PART_BYTES: usize = 32 << 20;
/// Bytes of a record: with what may stand before it, it fits into an object.
const RECORD_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - 2 * PART_BYTES;
/// Bytes that may wait for a sync; more are refused, unless nothing waits.
const PENDING_BYTES_MAX: u64 = 256 << 20;
/// So many entries are put together to one part; few where a test goes through every order of requests.
const PACK_ENTRIES: usize = if cfg!(test) { 4 } else { 256 };
/// A part this large is put together with no other.
const PACKED_BYTES_MAX: u64 = 64 << 20;
/// Objects that are read at once, if they are small; one where a test counts requests.
const READ_AHEAD: usize = if cfg!(test) { 1 } else { 16 };
/// Objects that one call of `tidy` removes.
const REMOVED_AT_ONCE: usize = 16;
/// The rest before the store is asked again for what it has refused, after the tries of the door.
const STALL_REST: Duration = Duration::from_secs(1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Where some of the records are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    Part(String),
    Entry(u64),
}

/// Some of the records, in one object.
#[derive(Clone, Debug)]
struct Piece {
    at: At,
    /// So many bytes of the object's records do not count, and so many after them do.
    skip: u64,
    bytes: u64,
}

impl Piece {
    fn of(part: &Part) -> Piece {
        Piece { at: At::Part(part.name.clone()), skip: part.skip, bytes: part.bytes }
    }

    fn name(&self) -> String {
        match &self.at {
            At::Part(name) => name.clone(),
            At::Entry(number) => entry_name(*number),
        }
    }
}

fn bytes_of(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| piece.bytes).sum()
}

/// Of pieces those that lie behind their first `skipped` bytes.
fn after(pieces: &[Piece], skipped: u64) -> Vec<Piece> {
    let mut left = skipped;
    let mut rest = Vec::new();
    for piece in pieces {
        let gone = left.min(piece.bytes);
        left -= gone;
        if gone < piece.bytes {
            rest.push(Piece { skip: piece.skip + gone, bytes: piece.bytes - gone, ..piece.clone() });
        }
    }
    rest
}

struct State {
    /// Grows when a rewrite takes the log's place: positions of before mean nothing then.
    segment: u64,
    /// Everything durable, in order: first parts, then entries.
    pieces: Vec<Piece>,
    /// Appended, and in no entry yet.
    pending: VecDeque<Bytes>,
    pending_bytes: u64,
    /// Bytes that were appended, and of them those that are durable, since the log was opened.
    appended: u64,
    synced: u64,
    /// The newest entry.
    newest: u64,
    /// The newest base; 0: there is none.
    base: u64,
    /// Entries count from here on.
    from: u64,
    claims: BTreeSet<u64>,
    /// Nothing needs them any more.
    dead: VecDeque<String>,
}

impl State {
    fn durable(&self) -> u64 {
        bytes_of(&self.pieces)
    }

    fn end(&self) -> Position {
        Position { segment: self.segment, at: self.durable() + self.pending_bytes }
    }
}

pub(super) struct ObjectLog {
    door: Door,
    standing: Arc<Standing>,
    state: Mutex<State>,
    /// Held by who creates an entry: one after the other.
    turn: Mutex<()>,
    /// Held by who tidies: what it puts together, nobody else does.
    tidies: Mutex<()>,
    /// Numbers the parts of the generation.
    counter: Arc<AtomicU64>,
    /// Cloned by whoever reads objects that may die meanwhile.
    in_use: Arc<()>,
    hurries: AtomicBool,
    on_stall: OnceLock<OnStall>,
}

/// What everybody is told whose log another process has taken over.
pub(super) fn taken_over(detail: String) -> Error {
    Error::new(SqlState::AdminShutdown, "another coordinator has taken over")
        .with_detail(detail)
        .with_hint("Connect again, with the addresses of all coordinators.")
}

fn newer(mine: Generation, found: &Head) -> Error {
    Error::new(SqlState::ObjectInUse, "another coordinator has taken over the log")
        .with_detail(format!(
            "Generation {} has written entry {}, this process is generation {}.",
            found.generation.0, found.number, mine.0
        ))
        .with_hint("It is the leader; this one can be started again as its standby.")
}

/// What a failed read of the log means. What is missing may have been removed by who has taken over since; which of the two it is the
/// store says, or not yet.
fn read_failed(door: &Door, error: Error) -> Error {
    if error.state() != SqlState::DataCorrupted {
        return error;
    }
    let mine = door.writer().generation;
    for _ in 0..LOOKS_MAX {
        match newest(door) {
            Ok(Some((Some(found), _))) if found.generation > mine => return newer(mine, &found),
            Ok(Some(_)) => return error,
            Ok(None) => {}
            Err(unknown) => return unknown,
        }
    }
    error
}

/// The numbers of entries, ascending.
fn numbers(listed: &[Listed]) -> Vec<u64> {
    let mut numbers: Vec<u64> = listed.iter().filter_map(|listed| entry::number_of(&listed.name)).collect();
    numbers.sort_unstable();
    numbers
}

/// The newest base before the entry that follows this one.
fn base_after(head: &Head) -> u64 {
    match head.what {
        What::Base(_) => head.number,
        _ => head.base,
    }
}

/// The newest entry, and all that are listed; `None` for one that is removed meanwhile.
fn newest(door: &Door) -> Result<Option<(Option<Head>, Vec<u64>)>> {
    let listed = numbers(&door.list(LOG)?);
    let Some(number) = listed.last().copied() else {
        if door.list(LOG_PARTS)?.is_empty() {
            return Ok(Some((None, listed)));
        }
        if !numbers(&door.list(LOG)?).is_empty() {
            // It was begun in between.
            return Ok(None);
        }
        return Err(Error::new(SqlState::DataCorrupted, "all entries of the log are gone, but there are parts of it")
            .with_hint(format!("Restore the objects below \"{LOG}\" from a backup.")));
    };
    match door.get(&entry_name(number))? {
        Some(payload) => Ok(Some((Some(entry::decode(number, &payload)?.0), listed))),
        None => Ok(None),
    }
}

/// Begins to write as the door's generation. Returns the claim, and the numbers that were listed after it.
fn claim(door: &Door, holder: &str) -> Result<(Head, Vec<u64>)> {
    let mine = door.writer().generation;
    for _ in 0..LOOKS_MAX {
        let Some((before, _)) = newest(door)? else { continue };
        if let Some(before) = before.as_ref().filter(|before| before.generation >= mine) {
            return Err(newer(mine, before));
        }
        let head = Head {
            format: FORMAT_VERSION,
            number: before.as_ref().map_or(0, |before| before.number) + 1,
            generation: mine,
            base: before.as_ref().map_or(0, base_after),
            what: What::Claim { holder: holder.to_string() },
        };
        let payload = entry::encode(&head, &[])?;
        if let PutNew::Exists(_) = door.put_new(&entry_name(head.number), &payload)? {
            continue;
        }
        // The number may have been that of an entry that is gone: then the log has gone on without us.
        let listed = numbers(&door.list(LOG)?);
        if listed.last() == Some(&head.number) {
            return Ok((head, listed));
        }
    }
    Err(Error::new(SqlState::ObjectInUse, "other coordinators take over the log all the time")
        .with_detail(format!("Looked {LOOKS_MAX} times at {}.", door.place()))
        .with_hint("Stop the other coordinators."))
}

/// How many objects are read at once.
fn read_ahead(door: &Door) -> usize {
    READ_AHEAD.min(door.requests_at_once()).max(1)
}

/// Reads objects, several at once. Errors: `XX001` one is missing or damaged.
fn fetch(door: &Door, names: &[String]) -> Result<Vec<Bytes>> {
    let get = |name: &String| door.get(name)?.ok_or_else(|| entry::missing(name));
    if let [name] = names {
        return Ok(vec![get(name)?]);
    }
    let get = &get;
    std::thread::scope(|scope| {
        let reads: Vec<_> = names.iter().map(|name| scope.spawn(move || get(name))).collect();
        let failed = |_| Err(Error::internal("a thread that reads the log has failed"));
        reads.into_iter().map(|read| read.join().unwrap_or_else(failed)).collect()
    })
}

/// Of an object's records those that count.
fn counting(name: &str, records: &Bytes, skip: u64, bytes: u64) -> Result<Bytes> {
    let end = skip.checked_add(bytes).filter(|end| *end <= records.len() as u64);
    let end = end.ok_or_else(|| entry::damaged(name, "it has fewer records than the log says"))?;
    Ok(records.slice(skip as usize..end as usize))
}

fn replay_all(name: &str, mut records: Bytes, replay: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    while let Some(record) = entry::take_record(name, &mut records)? {
        replay(&record)?;
    }
    Ok(())
}

/// What the log consists of.
struct Content {
    pieces: Vec<Piece>,
    from: u64,
    claims: BTreeSet<u64>,
}

/// Reads the log up to the entry `newest`, of which `base` is the base, and hands each record to `replay`.
fn read(door: &Door, base: u64, newest: u64, replay: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<Content> {
    let found = match base {
        0 => Base { from: 1, ..Base::default() },
        number => {
            let name = entry_name(number);
            let payload = door.get(&name)?.ok_or_else(|| entry::missing(&name))?;
            match entry::decode(number, &payload)?.0.what {
                What::Base(base) => base,
                _ => return Err(entry::damaged(&name, "it is not the base that later entries name")),
            }
        }
    };
    let Base { parts, from, skip, mut claims } = found;
    let mut pieces: Vec<Piece> = Vec::new();
    for part in &parts {
        let records = fetch(door, std::slice::from_ref(&part.name))?.remove(0);
        replay_all(&part.name, counting(&part.name, &records, part.skip, part.bytes)?, replay)?;
        pieces.push(Piece::of(part));
    }
    let mut next = from;
    while next <= newest {
        let until = newest.min(next + read_ahead(door) as u64 - 1);
        let names: Vec<String> = (next..=until).map(entry_name).collect();
        for (number, payload) in (next..=until).zip(fetch(door, &names)?) {
            let (head, records) = entry::decode(number, &payload)?;
            match head.what {
                What::Claim { .. } => {
                    claims.insert(number);
                }
                What::Base(_) => {}
                What::Records => {
                    let (name, skip) = (entry_name(number), if number == from { skip } else { 0 });
                    let bytes = (records.len() as u64).saturating_sub(skip);
                    replay_all(&name, counting(&name, &records, skip, bytes)?, replay)?;
                    pieces.push(Piece { at: At::Entry(number), skip, bytes });
                }
            }
        }
        next = until + 1;
    }
    Ok(Content { pieces, from, claims })
}

impl ObjectLog {
    pub fn open(
        door: &Door,
        holder: &str,
        standing: &Arc<Standing>,
        mut replay: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<ObjectLog> {
        let (head, listed) = claim(door, holder)?;
        let read = read(door, head.base, head.number, &mut replay);
        let Content { pieces, from, claims } = read.map_err(|error| read_failed(door, error))?;
        let entries = listed.iter().filter(|number| **number < from && !claims.contains(number));
        let mut dead: VecDeque<String> = entries.map(|number| entry_name(*number)).collect();
        let parts: BTreeSet<String> = pieces.iter().map(Piece::name).collect();
        // Written by those who were shut out, as which nobody can write a base any more.
        let orphan = |name: &String| entry::writer_of(name).is_some_and(|writer| writer < head.generation);
        dead.extend(door.list(LOG_PARTS)?.into_iter().map(|l| l.name).filter(|n| !parts.contains(n) && orphan(n)));
        let state = State {
            segment: 1,
            pieces,
            pending: VecDeque::new(),
            pending_bytes: 0,
            appended: 0,
            synced: 0,
            newest: head.number,
            base: head.base,
            from,
            claims,
            dead,
        };
        Ok(ObjectLog {
            door: door.clone(),
            standing: Arc::clone(standing),
            state: Mutex::new(state),
            turn: Mutex::new(()),
            tidies: Mutex::new(()),
            counter: Arc::default(),
            in_use: Arc::default(),
            hurries: AtomicBool::new(false),
            on_stall: OnceLock::new(),
        })
    }

    pub fn look(door: &Door, mut seen: impl FnMut(&[u8]) -> Result<()>) -> Result<Option<(String, u64)>> {
        for _ in 0..LOOKS_MAX {
            let Some((newest, _)) = newest(door)? else { continue };
            let Some(head) = newest else { return Ok(None) };
            let content = read(door, base_after(&head), head.number, &mut seen)?;
            return Ok(Some((entry_name(head.number), bytes_of(&content.pieces))));
        }
        Err(Error::new(SqlState::ObjectInUse, "the log changes all the time")
            .with_hint("Look again when no coordinator is being started."))
    }

    pub fn on_stall(&self, on_stall: OnStall) {
        // The first to ask is the one that is told.
        let _ = self.on_stall.set(on_stall);
    }

    pub fn append(&self, parts: &[&[u8]]) -> Result<Position> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > RECORD_BYTES_MAX {
            return Err(Error::new(SqlState::ProgramLimitExceeded, "transaction is too large for one log record")
                .with_detail(format!("It has {length} bytes; the limit is {RECORD_BYTES_MAX}."))
                .with_hint("Commit in smaller parts."));
        }
        if length == 0 {
            return Err(Error::internal("a log record without content"));
        }
        let bytes = length as u64 + LENGTH_BYTES;
        let record = Bytes::from(parts.concat());
        let mut state = lock(&self.state);
        self.standing.check()?;
        if state.pending_bytes > 0 && state.pending_bytes + bytes > PENDING_BYTES_MAX {
            return Err(Error::new(
                SqlState::IoError,
                "the log waits for its store, and takes no more until it answers",
            )
            .with_detail(format!("{} bytes wait to be stored.", state.pending_bytes))
            .with_hint("Check that the store can be reached and answers; the server goes on by itself."));
        }
        state.pending.push_back(record);
        state.pending_bytes += bytes;
        state.appended += bytes;
        Ok(state.end())
    }

    pub fn sync(&self) -> Result<Position> {
        let until = {
            let state = lock(&self.state);
            self.standing.check()?;
            state.appended
        };
        loop {
            let turn = lock(&self.turn);
            let batch: Vec<Bytes> = {
                let state = lock(&self.state);
                if state.synced >= until {
                    return Ok(Position { segment: state.segment, at: state.durable() });
                }
                self.standing.check()?;
                let mut bytes = 0;
                let fits = |record: &&Bytes| {
                    bytes += record.len() + LENGTH_BYTES as usize;
                    bytes <= ENTRY_BYTES
                };
                let fitting = state.pending.iter().take_while(fits).count().max(1);
                state.pending.iter().take(fitting).cloned().collect()
            };
            let number = self.put(What::Records, &batch)?;
            let mut state = lock(&self.state);
            let bytes: u64 = batch.iter().map(|record| record.len() as u64 + LENGTH_BYTES).sum();
            state.pending.drain(..batch.len());
            state.pending_bytes -= bytes;
            state.synced += bytes;
            state.pieces.push(Piece { at: At::Entry(number), skip: 0, bytes });
            drop(state);
            drop(turn);
        }
    }

    /// Creates the next entry; the caller has the turn. Waits for a store that is away. Returns its number. Errors: `57P01` the number
    /// is another's; others if the log is told to hurry, or if the store refuses for good. Each of them ends the log.
    fn put(&self, what: What, records: &[Bytes]) -> Result<u64> {
        let (number, base) = {
            let state = lock(&self.state);
            (state.newest + 1, state.base)
        };
        let generation = self.door.writer().generation;
        let head = Head { format: FORMAT_VERSION, number, generation, base, what };
        let (name, payload) = (entry_name(number), entry::encode(&head, records)?);
        let mut told: Option<Error> = None;
        let tell = |cause: Option<&Error>| {
            if let Some(tell) = self.on_stall.get() {
                tell(cause);
            }
        };
        loop {
            match self.door.put_new(&name, &payload) {
                Ok(PutNew::Created) => break,
                Ok(PutNew::Exists(_)) if planted::is("unfenced") => break,
                Ok(PutNew::Exists(found)) => {
                    let lost = taken_over(match entry::decode(number, &found.payload).map(|(head, _)| head) {
                        Ok(Head { generation, what: What::Claim { holder }, .. }) => {
                            format!("Generation {}, {holder}, has begun to write the log.", generation.0)
                        }
                        _ => format!("Entry {number} of the log was written by another process."),
                    });
                    return Err(self.standing.fail(lost.clone(), lost));
                }
                Err(error) if error.may_pass() && self.waits() => {
                    if told.as_ref() != Some(&error) {
                        tell(Some(&error));
                        told = Some(error);
                    }
                    self.door.rest(STALL_REST);
                    // Nobody waits for it any more, or another process has taken over; whether the entry is there is not known.
                    self.standing.check()?;
                }
                Err(error) => {
                    let failed = Error::new(error.state(), "the log could not be written")
                        .with_detail(error.to_string())
                        .with_hint("Check the store and restart the server.");
                    return Err(self.standing.fail(failed.clone(), failed));
                }
            }
        }
        if told.is_some() {
            tell(None);
        }
        lock(&self.state).newest = number;
        Ok(number)
    }

    /// Whether a sync waits for a store that is away: only where somebody hears of it, and nobody wants to end.
    fn waits(&self) -> bool {
        self.on_stall.get().is_some() && !self.hurries.load(Ordering::Acquire)
    }

    pub fn end(&self) -> Position {
        lock(&self.state).end()
    }

    pub fn hurry(&self) {
        self.hurries.store(true, Ordering::Release);
    }

    pub fn close(&self) {
        self.hurry();
        // Nobody is in the middle of an append.
        let _state = lock(&self.state);
        self.standing.close();
    }

    pub fn tidy(&self) -> Result<bool> {
        self.standing.check()?;
        let _tidies = lock(&self.tidies);
        if Arc::strong_count(&self.in_use) > 1 {
            // Who reads may be reading what is dead.
            return Ok(false);
        }
        let dead: Vec<String> = {
            let mut state = lock(&self.state);
            let count = state.dead.len().min(REMOVED_AT_ONCE);
            state.dead.drain(..count).collect()
        };
        if !dead.is_empty() {
            for (n, name) in dead.iter().enumerate() {
                if let Err(error) = self.door.delete(name) {
                    lock(&self.state).dead.extend(dead[n..].iter().cloned());
                    return Err(error);
                }
            }
            return Ok(true);
        }
        self.pack()
    }

    /// Puts entries together, if there are many. Returns whether it has.
    fn pack(&self) -> Result<bool> {
        let (segment, start, all, reader) = {
            let state = lock(&self.state);
            let first = state.pieces.iter().position(|piece| matches!(piece.at, At::Entry(_)));
            let Some(mut first) = first.filter(|first| state.pieces.len() - first >= PACK_ENTRIES) else {
                return Ok(false);
            };
            let mut bytes = bytes_of(&state.pieces[first..]);
            while first > 0 {
                let before = state.pieces[first - 1].bytes;
                if before > bytes * 2 || before + bytes > PACKED_BYTES_MAX {
                    break;
                }
                (first, bytes) = (first - 1, bytes + before);
            }
            let reader = self.reader(&state.pieces[first..], Vec::new());
            (state.segment, first, state.pieces.len(), reader)
        };
        let mut parts = self.parts();
        for record in reader {
            parts.append(&record?)?;
        }
        parts.flush()?;
        let _turn = lock(&self.turn);
        let pieces = {
            let state = lock(&self.state);
            if state.segment != segment {
                // Written anew meanwhile.
                return Ok(true);
            }
            // Since then entries have come, and nothing else has changed.
            let packed = parts.release().iter().map(Piece::of).collect::<Vec<_>>();
            [&state.pieces[..start], &packed[..], &state.pieces[all..]].concat()
        };
        self.put_base(pieces, segment)?;
        Ok(true)
    }

    /// Lets the log consist of these pieces from now on; the caller has the turn.
    fn put_base(&self, pieces: Vec<Piece>, segment: u64) -> Result<()> {
        let (number, claims) = {
            let state = lock(&self.state);
            (state.newest + 1, state.claims.clone())
        };
        let mut base = Base { parts: Vec::new(), from: number, skip: 0, claims };
        for piece in pieces.iter().rev() {
            match &piece.at {
                At::Entry(number) => (base.from, base.skip) = (*number, piece.skip),
                At::Part(name) => {
                    base.parts.push(Part { name: name.clone(), skip: piece.skip, bytes: piece.bytes });
                }
            }
        }
        base.parts.reverse();
        let from = base.from;
        self.put(What::Base(base), &[])?;
        let mut state = lock(&self.state);
        let kept: BTreeSet<String> = pieces.iter().map(Piece::name).collect();
        let parts = state.pieces.iter().filter(|piece| matches!(piece.at, At::Part(_))).map(Piece::name);
        let parts = parts.filter(|name| !kept.contains(name));
        let entries = (state.from..from).filter(|number| !state.claims.contains(number)).map(entry_name);
        let dead: Vec<String> = parts.chain(entries).collect();
        state.dead.extend(dead);
        (state.base, state.from, state.pieces, state.segment) = (number, from, pieces, segment);
        Ok(())
    }

    fn parts(&self) -> PartWriter {
        let counter = Arc::clone(&self.counter);
        PartWriter { door: self.door.clone(), counter, parts: Vec::new(), buffer: Vec::new() }
    }

    pub fn begin_rewrite(&self) -> Result<ObjectRewrite> {
        self.standing.check()?;
        Ok(ObjectRewrite { parts: self.parts(), until: None })
    }

    pub fn records(&self, until: Position) -> Result<ObjectRecords> {
        let state = lock(&self.state);
        check_segment(&state, until)?;
        let durable = state.durable();
        let mut pieces = Vec::new();
        let mut left = until.at.min(durable);
        for piece in &state.pieces {
            let bytes = piece.bytes.min(left);
            left -= bytes;
            if bytes > 0 {
                pieces.push(Piece { bytes, ..piece.clone() });
            }
        }
        let mut left = until.at.saturating_sub(durable);
        let before = |record: &&Bytes| {
            let is_before = left > 0;
            left = left.saturating_sub(record.len() as u64 + LENGTH_BYTES);
            is_before
        };
        let pending = state.pending.iter().take_while(before).cloned().collect();
        Ok(self.reader(&pieces, pending))
    }

    fn reader(&self, pieces: &[Piece], pending: Vec<Bytes>) -> ObjectRecords {
        let (pieces, pending) = (pieces.iter().cloned().collect(), pending.into());
        let in_use = Arc::clone(&self.in_use);
        ObjectRecords { door: self.door.clone(), pieces, ready: VecDeque::new(), pending, _in_use: in_use }
    }
}

fn check_segment(state: &State, position: Position) -> Result<()> {
    if state.segment == position.segment {
        return Ok(());
    }
    Err(Error::internal("a position of a log that another one has replaced"))
}

/// Records of the log: those in objects, then those that are not stored yet.
pub(super) struct ObjectRecords {
    door: Door,
    pieces: VecDeque<Piece>,
    /// Those of the next objects, which were read.
    ready: VecDeque<(String, Bytes)>,
    pending: VecDeque<Bytes>,
    _in_use: Arc<()>,
}

impl ObjectRecords {
    fn try_next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some((name, records)) = self.ready.front_mut() {
                if let Some(record) = entry::take_record(name, records)? {
                    return Ok(Some(record.into()));
                }
                self.ready.pop_front();
            } else if self.pieces.is_empty() {
                return Ok(self.pending.pop_front().map(Vec::from));
            } else {
                self.read_ahead()?;
            }
        }
    }

    fn read_ahead(&mut self) -> Result<()> {
        let mut bytes = 0;
        let fits = |piece: &&Piece| {
            bytes += piece.bytes;
            bytes <= ENTRY_BYTES as u64
        };
        let count = self.pieces.iter().take(read_ahead(&self.door)).take_while(fits).count().max(1);
        let next: Vec<Piece> = self.pieces.drain(..count).collect();
        let names: Vec<String> = next.iter().map(Piece::name).collect();
        for ((piece, name), payload) in next.iter().zip(names.iter()).zip(fetch(&self.door, &names)?) {
            let records = match piece.at {
                At::Part(_) => payload,
                At::Entry(number) => entry::decode(number, &payload)?.1,
            };
            self.ready.push_back((name.clone(), counting(name, &records, piece.skip, piece.bytes)?));
        }
        Ok(())
    }
}

impl Iterator for ObjectRecords {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Result<Vec<u8>>> {
        let next = self.try_next();
        if next.is_err() {
            // What follows cannot be told apart.
            self.pieces.clear();
            self.ready.clear();
            self.pending.clear();
        }
        next.map_err(|error| read_failed(&self.door, error)).transpose()
    }
}

/// Writes records into new parts. Dropped before these are released, it removes them.
struct PartWriter {
    door: Door,
    counter: Arc<AtomicU64>,
    parts: Vec<Part>,
    buffer: Vec<u8>,
}

impl PartWriter {
    fn append(&mut self, record: &[u8]) -> Result<()> {
        if record.len() > RECORD_BYTES_MAX {
            return Err(Error::new(SqlState::ProgramLimitExceeded, "a record is too large for the log"));
        }
        entry::add_record(&mut self.buffer, record);
        if self.buffer.len() >= PART_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let name = part_name(self.door.writer().generation, self.counter.fetch_add(1, Ordering::Relaxed));
        // Noted before: it may come to be there although the request fails.
        self.parts.push(Part { name: name.clone(), skip: 0, bytes: self.buffer.len() as u64 });
        match self.door.put_new(&name, &self.buffer)? {
            PutNew::Created => {
                self.buffer.clear();
                Ok(())
            }
            PutNew::Exists(_) => {
                self.parts.pop();
                Err(Error::new(SqlState::ObjectInUse, format!("object \"{name}\" was written by another process")))
            }
        }
    }

    /// The parts, which stay.
    fn release(&mut self) -> Vec<Part> {
        std::mem::take(&mut self.parts)
    }
}

impl Drop for PartWriter {
    fn drop(&mut self) {
        // A process that dies removes nothing; the next claimant does.
        if !std::thread::panicking() {
            for part in &self.parts {
                let _ = self.door.delete(&part.name);
            }
        }
    }
}

/// A content that is being written beside the log.
pub(super) struct ObjectRewrite {
    parts: PartWriter,
    /// What it stands for ends here, and the log goes on as it is.
    until: Option<Position>,
}

impl ObjectRewrite {
    pub fn append(&mut self, record: &[u8]) -> Result<()> {
        self.parts.append(record)
    }

    pub fn sync(&mut self) -> Result<()> {
        self.parts.flush()
    }

    /// Nothing is copied: what comes after the first `from` stays where it is.
    pub fn copy(&mut self, log: &ObjectLog, from: Position) -> Result<Position> {
        let state = lock(&log.state);
        check_segment(&state, from)?;
        self.until.get_or_insert(from);
        Ok(state.end())
    }

    pub fn take_place(mut self, log: &ObjectLog, from: Position) -> Result<()> {
        let until = self.until.unwrap_or(from);
        if until.at > lock(&log.state).durable() {
            // Its end has to be in an entry.
            log.sync()?;
        }
        self.parts.flush()?;
        let _turn = lock(&log.turn);
        let (pieces, segment) = {
            let state = lock(&log.state);
            log.standing.check()?;
            check_segment(&state, until)?;
            let mut pieces: Vec<Piece> = self.parts.release().iter().map(Piece::of).collect();
            pieces.extend(after(&state.pieces, until.at));
            (pieces, state.segment + 1)
        };
        log.put_base(pieces, segment)
    }
}
