//! The protocol in all orders: two coordinators over one store and a sink of two partitions.
//!
//! Every request is one step. Between any two steps the other coordinator may run as far as it likes (so each is a zombie at some
//! time), crash and start again as a new process; the answer of a request may be lost, with the request taking effect at once, never, or
//! at any later time. A depth-first search goes through every state once, and looks at the laws after each step.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use flow::{Epoch, JobId};

use super::*;
use crate::names::SegmentName;

/// Mistakes that the search must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// The sweep does not ask what the newest record needs.
    DeleteLive,
    /// The sink does not look for what it has committed.
    CommitTwice,
    /// Whoever finds its number taken, or a newer generation, goes on with the next number.
    IgnoreFence,
    /// The record is created before its manifest.
    ClaimBeforeManifest,
    /// Created counts as claimed, without another look.
    TrustCreated,
    /// The sweep takes what is uploaded for the next checkpoint.
    CollectUploads,
    /// Whoever takes over starts its sources before the commit is finished.
    StartBeforeCommit,
    /// A new generation does not take over by a record of its own.
    NoTakeOver,
}

/// How much may happen.
#[derive(Clone, Copy)]
struct Limits {
    /// Checkpoints that are made in all.
    units: u8,
    /// Processes that each coordinator may start.
    starts: [u8; 2],
    /// Coordinators that may stop at any step.
    crashes: u8,
    /// Answers that are lost.
    losses: u8,
}

/// Who wrote an object: coordinator and process.
type Owner = (usize, u8);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Content {
    Plain,
    Record(EpochRecord),
    /// State of a prefix of `units`, and the segments that make it up.
    Manifest {
        units: u8,
        segments: Vec<ObjectName>,
    },
}

/// A request that may take effect later, although nobody waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Late {
    Create(ObjectName, Owner, Content),
    Delete(ObjectName, u64),
}

/// One output of the sink: whose staged rows they are, and of which unit of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Row {
    generation: u64,
    epoch: u64,
    unit: u8,
}

/// Where a coordinator is: the step that it takes next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum At {
    Off,
    ListGenerations,
    CreateGeneration,
    ReadNewest,
    ReadManifest,
    LookAtEnd,
    Claim(EpochRecord),
    Verify(EpochRecord, Outcome),
    Commit(usize),
    Mark,
    Upload,
    PutManifest,
    ListForSweep,
    LookBeforeDelete,
    Delete(usize),
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Coordinator {
    at: At,
    starts: u8,
    generation: u64,
    head: Option<EpochRecord>,
    committed: bool,
    /// Whether `head` took over, so that nothing was started yet.
    fresh: bool,
    /// State and segments of the newest checkpoint.
    units: u8,
    segments: Vec<ObjectName>,
    counter: u64,
    observed: Option<Observed>,
    dead: Vec<ObjectName>,
}

impl Coordinator {
    fn off(starts: u8) -> Coordinator {
        Coordinator {
            at: At::Off,
            starts,
            generation: 0,
            head: None,
            committed: false,
            fresh: true,
            units: 0,
            segments: Vec::new(),
            counter: 0,
            observed: None,
            dead: Vec::new(),
        }
    }

    fn upload(&self) -> ObjectName {
        let counter = self.counter;
        ObjectName::Segment(SegmentName { job: JobId(1), generation: Generation(self.generation), counter, slot: 0 })
    }

    fn next_epoch(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.epoch.0) + 1
    }

    fn manifest_name(&self) -> ObjectName {
        ObjectName::Manifest { generation: Generation(self.generation), epoch: Epoch(self.next_epoch()) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    objects: Rc<BTreeMap<ObjectName, (Owner, Content)>>,
    sink: [Vec<Row>; 2],
    /// The newest generation that has changed a partition.
    sink_generation: [u64; 2],
    late: Option<Late>,
    coordinators: [Rc<Coordinator>; 2],
    crashes: u8,
    losses: u8,
}

/// How a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Fair,
    /// It takes effect, its answer is lost.
    AnswerLost,
    /// It is lost.
    Lost,
    /// It takes effect later, its answer is lost.
    Later,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Step(usize, Weather),
    Crash(usize),
    /// The late request takes effect.
    Land,
}

type Broken = String;

impl World {
    fn new(limits: Limits) -> World {
        World {
            objects: Rc::default(),
            sink: [Vec::new(), Vec::new()],
            sink_generation: [0; 2],
            late: None,
            coordinators: [Coordinator::off(0), Coordinator::off(0)].map(Rc::new),
            crashes: limits.crashes,
            losses: limits.losses,
        }
    }

    fn newest(&self) -> Option<&EpochRecord> {
        self.objects.iter().rev().find_map(|(_, (_, content))| match content {
            Content::Record(record) => Some(record),
            _ => None,
        })
    }

    fn generation(&self) -> Generation {
        let generations = self.objects.keys().filter_map(|name| match name {
            ObjectName::Generation(generation) => Some(*generation),
            _ => None,
        });
        generations.max().unwrap_or_default()
    }

    fn look(&self) -> Look {
        Look { generation: self.generation(), record: self.newest().map(|record| record.number) }
    }

    fn needed(&self, record: &EpochRecord) -> Option<BTreeSet<ObjectName>> {
        let Some(manifest) = &record.manifest else { return Some(BTreeSet::new()) };
        let name = ObjectName::parse(&manifest.name).unwrap();
        let Some((_, Content::Manifest { segments, .. })) = self.objects.get(&name) else { return None };
        Some(segments.iter().cloned().chain([name]).collect())
    }

    fn create(&mut self, name: &ObjectName, owner: Owner, content: &Content) -> Result<bool, Broken> {
        if let Some((by, _)) = self.objects.get(name) {
            return Ok(*by == owner);
        }
        if let (Content::Record(record), Some(newest)) = (content, self.newest())
            && record.number > newest.number
        {
            if record.generation < newest.generation {
                return Err(format!("record {} of an older generation became the truth", record.number));
            }
            if record.epoch < newest.epoch {
                return Err(format!("epochs went back to {}", record.epoch));
            }
        }
        Rc::make_mut(&mut self.objects).insert(name.clone(), (owner, content.clone()));
        Ok(true)
    }

    fn delete(&mut self, name: &ObjectName, generation: u64) -> Result<(), Broken> {
        let of = match name {
            ObjectName::Generation(Generation(g)) | ObjectName::Manifest { generation: Generation(g), .. } => *g,
            ObjectName::Segment(segment) => segment.generation.0,
            _ => 0,
        };
        if self.objects.contains_key(name) && Rc::make_mut(&mut self.objects).remove(name).is_some() && of > generation
        {
            return Err(format!("generation {generation} deleted \"{name}\""));
        }
        Ok(())
    }

    fn commit(&mut self, partition: usize, claimed: &Claimed, unit: u8, bug: Bug) -> Result<(), Broken> {
        let (Some(permit), Some(manifest)) = (claimed.permit(), &claimed.record().manifest) else { return Ok(()) };
        let Some(ObjectName::Manifest { generation, epoch }) = ObjectName::parse(&manifest.name) else {
            return Err("the manifest has no name".into());
        };
        let row = Row { generation: generation.0, epoch: epoch.0, unit };
        if bug != Bug::CommitTwice && self.sink[partition].contains(&row) {
            return Ok(());
        }
        if permit.generation().0 < self.sink_generation[partition] {
            return Err(format!("the sink took rows of generation {} after a newer one", permit.generation().0));
        }
        self.sink_generation[partition] = permit.generation().0;
        self.sink[partition].push(row);
        Ok(())
    }

    /// The laws that hold after every step.
    fn check(&self) -> Result<(), Broken> {
        for (partition, rows) in self.sink.iter().enumerate() {
            let units: Vec<u8> = rows.iter().map(|row| row.unit).collect();
            if units != (1..=units.len() as u8).collect::<Vec<u8>>() {
                return Err(format!("partition {partition} has the units {units:?}"));
            }
        }
        let Some(newest) = self.newest() else { return Ok(()) };
        for number in newest.retained_from..=newest.number {
            let Some((_, Content::Record(record))) = self.objects.get(&ObjectName::Record(number)) else {
                return Err(format!("record {number} is retained and gone"));
            };
            match self.needed(record) {
                None => return Err(format!("the manifest of record {number} is gone")),
                Some(names) => {
                    if let Some(gone) = names.iter().find(|name| !self.objects.contains_key(name)) {
                        return Err(format!("\"{gone}\" is needed by record {number} and gone"));
                    }
                }
            }
        }
        Ok(())
    }

    /// The laws of a start: whoever lets sources run has a whole prefix, and its output is out.
    fn check_start(&self, coordinator: &Coordinator) -> Result<(), Broken> {
        for rows in &self.sink {
            // The coordinator may be a zombie: others may have gone on since.
            if rows.len() < coordinator.units as usize {
                return Err(format!("sources start after unit {} of which not all is committed", coordinator.units));
            }
        }
        Ok(())
    }

    fn moves(&self, limits: Limits) -> Vec<Move> {
        let mut moves = Vec::new();
        for (i, coordinator) in self.coordinators.iter().enumerate() {
            match coordinator.at {
                // The second is like the first.
                At::Off if i == 1 && self.coordinators[0].starts == 0 => {}
                At::Off if coordinator.starts < limits.starts[i] => moves.push(Move::Step(i, Weather::Fair)),
                At::Off | At::Done => {}
                _ => moves.push(Move::Step(i, Weather::Fair)),
            }
            let writes = matches!(
                coordinator.at,
                At::CreateGeneration | At::Claim(_) | At::Mark | At::Upload | At::PutManifest | At::Delete(_)
            );
            if writes && self.losses > 0 {
                moves.extend([Weather::AnswerLost, Weather::Lost].map(|weather| Move::Step(i, weather)));
                if self.late.is_none() {
                    moves.push(Move::Step(i, Weather::Later));
                }
            }
            // A process that has died need not start again; one that never does anything any more is as good as dead.
            if self.crashes > 0
                && !matches!(coordinator.at, At::Off | At::Done)
                && coordinator.starts < limits.starts[i]
            {
                moves.push(Move::Crash(i));
            }
        }
        if self.late.is_some() {
            moves.push(Move::Land);
        }
        moves
    }

    fn go(&mut self, action: Move, limits: Limits, bug: Bug) -> Result<(), Broken> {
        let (objects, rows) = (Rc::clone(&self.objects), self.rows());
        match action {
            Move::Crash(i) => {
                self.crashes -= 1;
                self.coordinators[i] = Rc::new(Coordinator::off(self.coordinators[i].starts));
            }
            Move::Land => match self.late.take() {
                Some(Late::Create(name, owner, content)) => {
                    self.create(&name, owner, &content)?;
                }
                Some(Late::Delete(name, generation)) => self.delete(&name, generation)?,
                None => {}
            },
            Move::Step(i, weather) => {
                let mut coordinator = Coordinator::clone(&self.coordinators[i]);
                if weather != Weather::Fair {
                    self.losses -= 1;
                }
                self.step(i, &mut coordinator, weather, limits, bug)?;
                if coordinator.at == At::Done {
                    // Whatever else it knows does not matter any more.
                    let done = Coordinator { at: At::Done, units: coordinator.units, ..Coordinator::off(0) };
                    coordinator = done;
                }
                self.coordinators[i] = Rc::new(coordinator);
            }
        }
        if Rc::ptr_eq(&objects, &self.objects) && rows == self.rows() {
            return Ok(());
        }
        self.check()
    }

    fn rows(&self) -> usize {
        self.sink.iter().map(Vec::len).sum()
    }

    /// Sends a create. `None`: no answer.
    fn send(
        &mut self,
        weather: Weather,
        name: &ObjectName,
        owner: Owner,
        content: Content,
    ) -> Result<Option<bool>, Broken> {
        match weather {
            Weather::Fair => self.create(name, owner, &content).map(Some),
            Weather::AnswerLost => self.create(name, owner, &content).map(|_| None),
            Weather::Lost => Ok(None),
            Weather::Later => {
                self.late = Some(Late::Create(name.clone(), owner, content));
                Ok(None)
            }
        }
    }

    fn step(
        &mut self,
        i: usize,
        c: &mut Coordinator,
        weather: Weather,
        limits: Limits,
        bug: Bug,
    ) -> Result<(), Broken> {
        let owner = (i, c.starts);
        let stopped = Coordinator::off(c.starts);
        match c.at.clone() {
            At::Off => {
                *c = Coordinator { at: At::ListGenerations, ..Coordinator::off(c.starts + 1) };
            }
            At::ListGenerations => {
                c.generation = next_generation([self.generation()]).0;
                c.at = At::CreateGeneration;
            }
            At::CreateGeneration => {
                let name = ObjectName::Generation(Generation(c.generation));
                match self.send(weather, &name, owner, Content::Plain)? {
                    Some(true) => c.at = At::ReadNewest,
                    Some(false) => c.at = At::ListGenerations,
                    None => {}
                }
            }
            At::ReadNewest => {
                let newest = self.newest().cloned();
                let marked =
                    newest.as_ref().is_some_and(|n| self.objects.contains_key(&ObjectName::Committed(n.number)));
                let traces = self.objects.keys().any(|name| !matches!(name, ObjectName::Generation(_)));
                let (base, look) = (newest.clone(), Look::default());
                c.observed = Some(Observed { newest, marked, traces, base, manifest: None, look });
                c.at = At::ReadManifest;
            }
            At::ReadManifest => {
                let Some(observed) = &mut c.observed else { return Ok(()) };
                if let Some(manifest) = observed.base.as_ref().and_then(|base| base.manifest.as_ref()) {
                    let name = ObjectName::parse(&manifest.name).ok_or("a strange name")?;
                    observed.manifest = Some(match self.objects.get(&name) {
                        Some((_, Content::Manifest { units, segments })) => {
                            (c.units, c.segments) = (*units, segments.clone());
                            ManifestSeen::Whole
                        }
                        _ => ManifestSeen::Missing,
                    });
                }
                c.at = At::LookAtEnd;
            }
            At::LookAtEnd => {
                let Some(mut observed) = c.observed.take() else { return Ok(()) };
                observed.look = self.look();
                match open(Generation(c.generation), None, &observed) {
                    Opening::TakeOver(_) if bug == Bug::NoTakeOver && observed.newest.is_some() => {
                        let newest = observed.newest.ok_or("no record")?;
                        c.committed = newest.committed || observed.marked;
                        c.head = Some(EpochRecord { generation: Generation(c.generation), counter: 0, ..newest });
                        c.at = if c.committed { At::Upload } else { At::Commit(0) };
                    }
                    Opening::TakeOver(record) => c.at = At::Claim(record),
                    Opening::LookAgain => {
                        *c = Coordinator { at: At::ReadNewest, generation: c.generation, ..Coordinator::off(c.starts) }
                    }
                    Opening::Stop(_) => *c = stopped,
                    Opening::Refuse(refusal) => return Err(format!("a start was refused: {refusal}")),
                }
            }
            At::Claim(record) => {
                let content = Content::Record(record.clone());
                match self.send(weather, &record.name(), owner, content)? {
                    Some(true) => c.at = At::Verify(record, Outcome::Created),
                    Some(false) if bug == Bug::IgnoreFence => {
                        c.at = At::Claim(EpochRecord { number: record.number + 1, ..record });
                    }
                    // Before anything was started, whoever lost the race goes on from the winner.
                    Some(false) if c.fresh => {
                        *c = Coordinator { at: At::ReadNewest, generation: c.generation, ..Coordinator::off(c.starts) }
                    }
                    Some(false) => c.at = At::Verify(record, Outcome::Exists),
                    None => {}
                }
            }
            At::Verify(record, outcome) => {
                let look = match bug {
                    Bug::TrustCreated | Bug::IgnoreFence => {
                        Look { generation: record.generation, record: Some(record.number) }
                    }
                    _ => self.look(),
                };
                match claimed(&record, outcome, look) {
                    Claim::Won(_) => {
                        if !c.fresh {
                            c.units += 1;
                            c.segments = self.next_segments(c);
                        }
                        c.committed = record.committed;
                        c.head = Some(record.clone());
                        let skip = bug == Bug::StartBeforeCommit && c.fresh;
                        c.at = match (bug, record.committed || skip) {
                            (Bug::ClaimBeforeManifest, false) if !c.fresh => At::PutManifest,
                            (_, false) => At::Commit(0),
                            (_, true) => self.started(c, limits)?,
                        };
                        c.committed |= skip;
                        c.fresh = false;
                    }
                    Claim::Again => c.at = At::Claim(record),
                    Claim::Stop(_) => *c = stopped,
                }
            }
            At::Commit(partition) => {
                let head = c.head.clone().ok_or("no record")?;
                self.commit(partition, &Claimed { record: head }, c.units, bug)?;
                c.at = if partition == 0 { At::Commit(1) } else { At::Mark };
            }
            At::Mark => {
                let number = c.head.as_ref().map_or(0, |head| head.number);
                if self.send(weather, &ObjectName::Committed(number), owner, Content::Plain)?.is_some() {
                    c.committed = true;
                    c.at = self.started(c, limits)?;
                }
            }
            At::Upload => {
                if self.send(weather, &c.upload(), owner, Content::Plain)?.is_some() {
                    c.at = At::ListForSweep;
                }
            }
            At::ListForSweep => {
                let head = c.head.clone().ok_or("no record")?;
                let listed: Vec<ObjectName> = self.objects.keys().cloned().collect();
                let read = |number: u64| match self.objects.get(&ObjectName::Record(number)) {
                    Some((_, Content::Record(record))) => self.needed(record),
                    _ => None,
                };
                let retained = head.retained_from..=head.number;
                let mut needed: BTreeMap<_, _> = retained.map(|n| (ObjectName::Record(n), read(n))).collect();
                if bug == Bug::DeleteLive {
                    needed.values_mut().flatten().for_each(BTreeSet::clear);
                }
                let greedy = EpochRecord { counter: u64::MAX, ..head.clone() };
                let head = if bug == Bug::CollectUploads { &greedy } else { &head };
                let facts = Sweep { head, listed: &listed, needed: &needed, held: &BTreeSet::new() };
                let making = if c.units < limits.units { At::PutManifest } else { At::Done };
                match sweep(&facts) {
                    Ok(dead) if dead.is_empty() => c.at = making,
                    Ok(dead) => (c.dead, c.at) = (dead, At::LookBeforeDelete),
                    Err(Hold::Stopped(_)) => *c = stopped,
                    // Another generation has cleared away what this one wanted to read.
                    Err(Hold::Unread(_)) => c.at = making,
                }
            }
            At::LookBeforeDelete => {
                let head = c.head.clone().ok_or("no record")?;
                match may_delete(&head, self.look()) {
                    Ok(()) => c.at = At::Delete(0),
                    Err(_) if bug == Bug::IgnoreFence => c.at = At::Delete(0),
                    Err(_) => *c = stopped,
                }
            }
            At::Delete(at) => {
                let name = c.dead[at].clone();
                match weather {
                    Weather::Fair | Weather::AnswerLost => self.delete(&name, c.generation)?,
                    Weather::Lost => {}
                    Weather::Later => self.late = Some(Late::Delete(name, c.generation)),
                }
                if weather == Weather::Fair {
                    c.at = At::Delete(at + 1);
                    if at + 1 == c.dead.len() {
                        c.dead.clear();
                        c.at = if c.units < limits.units { At::PutManifest } else { At::Done };
                    }
                }
            }
            At::PutManifest => {
                let late = bug == Bug::ClaimBeforeManifest;
                let head = c.head.clone().ok_or("no record")?;
                let (units, segments) = (c.units + 1, self.next_segments(c));
                if late && head.generation.0 == c.generation && !c.committed && head.counter == c.counter {
                    // The manifest of what is claimed already.
                    let name = ObjectName::parse(&head.manifest.ok_or("no manifest")?.name).ok_or("a strange name")?;
                    let content = Content::Manifest { units: c.units, segments: c.segments.clone() };
                    if self.send(weather, &name, owner, content)?.is_some() {
                        c.at = At::Commit(0);
                    }
                    return Ok(());
                }
                let name = c.manifest_name();
                let epoch = Epoch(c.next_epoch());
                let meant = ManifestRef { name: name.to_string(), epoch, bytes: 0, crc32: 0 };
                let record = next_record(&head, c.committed, meant, c.counter, 1).map_err(|e| e.to_string())?;
                let record = EpochRecord { generation: Generation(c.generation), ..record };
                if late || self.send(weather, &name, owner, Content::Manifest { units, segments })?.is_some() {
                    c.at = At::Claim(record);
                }
            }
            At::Done => {}
        }
        Ok(())
    }

    /// The newest segment before, and the one that was uploaded for the checkpoint in the making.
    fn next_segments(&self, c: &Coordinator) -> Vec<ObjectName> {
        c.segments.last().cloned().into_iter().chain([c.upload()]).collect()
    }

    /// Sources may run: the next checkpoint is begun by its upload.
    fn started(&self, c: &mut Coordinator, limits: Limits) -> Result<At, Broken> {
        self.check_start(c)?;
        if c.units < limits.units {
            c.counter += 1;
            return Ok(At::Upload);
        }
        Ok(At::ListForSweep)
    }
}

/// 128 bits of a state, by folded multiplication.
#[derive(Default)]
struct Folded(u64, u64);

impl Folded {
    fn mix(&mut self, word: u64) {
        let fold = |a: u64, b: u64| {
            let wide = u128::from(a) * u128::from(b);
            (wide as u64) ^ ((wide >> 64) as u64)
        };
        self.0 = fold(self.0 ^ word ^ 0x8bb8_4b93_962e_acc9, 0x4b33_a62e_d433_d4a3 ^ self.0.rotate_left(17));
        self.1 = fold(self.1 ^ word ^ 0x2d35_8dcc_aa6c_78a5, 0x9e37_79b9_7f4a_7c15 ^ self.1.rotate_left(29));
    }

    fn whole(&self) -> u128 {
        u128::from(self.0) << 64 | u128::from(self.1)
    }
}

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word) ^ (chunk.len() as u64) << 56);
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }
}

/// What a search has found.
struct Search {
    states: usize,
    /// States in which all checkpoints are made and nothing is under way.
    ends: usize,
    broken: Option<(Broken, Vec<Move>)>,
}

/// Searches all orders, for planted bugs until the first law breaks.
fn search(limits: Limits, bug: Bug) -> Search {
    let mut seen: HashSet<u128> = HashSet::new();
    let mut found = Search { states: 0, ends: 0, broken: None };
    // The moves that led to each state, as a tree.
    let mut moves: Vec<(usize, Move)> = Vec::new();
    let mut open = vec![(World::new(limits), usize::MAX)];
    while let Some((world, from)) = open.pop() {
        let mut hasher = Folded::default();
        world.hash(&mut hasher);
        if !seen.insert(hasher.whole()) {
            continue;
        }
        found.states += 1;
        if world.coordinators.iter().any(|c| c.at == At::Done && c.units == limits.units) {
            found.ends += 1;
        }
        for action in world.moves(limits) {
            let mut next = world.clone();
            moves.push((from, action));
            match next.go(action, limits, bug) {
                Ok(()) => open.push((next, moves.len() - 1)),
                Err(broken) => {
                    let mut path = Vec::new();
                    let mut at = moves.len() - 1;
                    while let Some((before, action)) = moves.get(at) {
                        path.push(*action);
                        at = *before;
                    }
                    path.reverse();
                    found.broken = Some((broken, path));
                    return found;
                }
            }
        }
    }
    found
}

const SMALL: Limits = Limits { units: 2, starts: [2, 2], crashes: 1, losses: 1 };

fn check(limits: Limits) {
    let found = search(limits, Bug::None);
    if let Some((broken, path)) = found.broken {
        let mut world = World::new(limits);
        for action in &path {
            println!(
                "{action:?}: {:?}",
                match action {
                    Move::Step(i, _) | Move::Crash(i) => &world.coordinators[*i].at,
                    Move::Land => &At::Off,
                }
            );
            let _ = world.go(*action, limits, Bug::None);
        }
        panic!("{broken} after {} moves", path.len());
    }
    println!("{} states, {} of them at the end", found.states, found.ends);
    assert!(found.ends > 0, "no order comes to an end");
}

#[test]
fn three_epochs_of_two_coordinators_in_every_order() {
    check(Limits { units: 3, starts: [1, 1], crashes: 0, losses: 0 });
}

#[test]
fn two_epochs_with_crashes_of_the_second_at_every_step() {
    check(Limits { units: 2, starts: [1, 2], crashes: 1, losses: 0 });
}

#[test]
fn two_epochs_with_a_lost_or_late_request_at_every_step() {
    check(Limits { units: 2, starts: [1, 1], crashes: 0, losses: 1 });
}

#[test]
fn three_epochs_with_crashes_at_every_step() {
    check(Limits { units: 3, starts: [2, 1], crashes: 1, losses: 0 });
}

#[test]
#[ignore = "takes a minute"]
fn two_epochs_with_crashes_and_a_lost_or_late_request() {
    check(Limits { units: 2, starts: [2, 1], crashes: 1, losses: 1 });
}

#[test]
fn planted_bugs_are_found() {
    for bug in [
        Bug::DeleteLive,
        Bug::CommitTwice,
        Bug::IgnoreFence,
        Bug::ClaimBeforeManifest,
        Bug::TrustCreated,
        Bug::CollectUploads,
        Bug::StartBeforeCommit,
        Bug::NoTakeOver,
    ] {
        let found = search(SMALL, bug);
        let Some((broken, path)) = found.broken else { panic!("{bug:?} was not found in {} states", found.states) };
        println!("{bug:?}: {broken}, after {} moves, {} states", path.len(), found.states);
    }
}
