//! The network: connections of two ends, whose bytes come in the order in which they were sent, late or never.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use cluster::connection::{Connection, Hears, Outgoing};
use cluster::frame::{self, FRAME_BYTES_MAX, Frame};
use flow::{Error, SqlState};

use super::process::Process;
use super::{Fleet, PULSE};

/// Frames that one step moves, at most.
const FRAMES_AT_ONCE: usize = 6;

/// What is on its way to one end.
enum Packet {
    Bytes(Vec<u8>),
    /// The other end is closed.
    End,
}

/// One end of a connection.
pub struct End {
    process: Rc<Process>,
    connection: Arc<Connection>,
    outgoing: Outgoing,
    /// It says something in even intervals, however much else it says.
    steady: bool,
    /// Absent while it takes a frame.
    hears: RefCell<Option<Box<dyn Hears>>>,
    coming: RefCell<VecDeque<Packet>>,
    heard_us: Cell<i64>,
    said_us: Cell<i64>,
    /// It says nothing any more.
    silent: Cell<bool>,
    /// It hears nothing any more.
    over: Cell<bool>,
    /// The connection is broken, which it learns when it looks.
    broken: Cell<bool>,
}

impl End {
    pub fn new(
        process: &Rc<Process>,
        connection: Arc<Connection>,
        outgoing: Outgoing,
        steady: bool,
        hears: Box<dyn Hears>,
        now_us: i64,
    ) -> End {
        End {
            process: Rc::clone(process),
            connection,
            outgoing,
            steady,
            hears: RefCell::new(Some(hears)),
            coming: RefCell::default(),
            heard_us: Cell::new(now_us),
            said_us: Cell::new(now_us),
            silent: Cell::new(false),
            over: Cell::new(false),
            broken: Cell::new(false),
        }
    }

    fn is_asleep(&self, fleet: &Fleet) -> bool {
        self.process.asleep_until.get() > fleet.steps.get()
    }
}

struct Wire {
    ends: [End; 2],
}

/// All connections, and the ways between machines.
#[derive(Default)]
pub struct Net {
    wires: RefCell<Vec<Rc<Wire>>>,
    /// From one machine to another, until this step.
    cut: RefCell<BTreeMap<(usize, usize), usize>>,
}

fn ended(what: &str) -> Error {
    Error::new(SqlState::ConnectionFailure, what.to_string())
}

impl Net {
    pub fn connect(&self, one: End, other: End) {
        self.wires.borrow_mut().push(Rc::new(Wire { ends: [one, other] }));
    }

    pub fn cut(&self, from: usize, to: usize, until: usize) {
        self.cut.borrow_mut().insert((from, to), until);
    }

    pub fn heal(&self) {
        self.cut.borrow_mut().clear();
    }

    /// Whether packets from one machine come to another.
    pub fn goes(&self, fleet: &Fleet, from: usize, to: usize) -> bool {
        self.cut.borrow().get(&(from, to)).is_none_or(|until| *until <= fleet.steps.get())
    }

    /// Whether a connection of the process is still to be ended.
    pub fn holds(&self, process: &Process) -> bool {
        self.wires.borrow().iter().any(|wire| wire.ends.iter().any(|end| end.process.number == process.number))
    }

    pub fn clear(&self) {
        let wires = std::mem::take(&mut *self.wires.borrow_mut());
        wires.iter().flat_map(|wire| &wire.ends).for_each(|end| end.connection.close());
    }

    /// One of the connections breaks: both ends learn it, or one learns it and the other by its time-out alone.
    pub fn break_one(&self, fleet: &Fleet) {
        let wires = self.wires.borrow().clone();
        if wires.is_empty() {
            return;
        }
        let wire = &wires[fleet.below(wires.len())];
        let learn = fleet.below(3);
        fleet.tell(|| format!("a connection of {} and {} breaks", wire.ends[0].process, wire.ends[1].process));
        fleet.counts.borrow_mut().broken += 1;
        for (n, end) in wire.ends.iter().enumerate() {
            end.coming.borrow_mut().clear();
            match learn == n {
                // What it says comes nowhere, and it does not know.
                true => end.silent.set(true),
                false => end.broken.set(true),
            }
        }
    }

    /// Something happens on one of the connections; false: nothing has.
    pub fn step(&self, fleet: &Fleet) -> bool {
        let wire = {
            let mut wires = self.wires.borrow_mut();
            wires.retain(|wire| !wire.ends.iter().all(|end| end.over.get() && end.hears.borrow().is_none()));
            match wires.len() {
                0 => return false,
                n => Rc::clone(&wires[fleet.below(n)]),
            }
        };
        let from = fleet.below(2);
        let (one, other) = (&wire.ends[from], &wire.ends[1 - from]);
        let said = self.say(fleet, one, other);
        let heard = self.hear(fleet, other, one);
        said || heard
    }

    /// An end writes what is queued.
    fn say(&self, fleet: &Fleet, end: &End, to: &End) -> bool {
        if end.silent.get() {
            return false;
        }
        let close = |end: &End| {
            end.silent.set(true);
            to.coming.borrow_mut().push_back(Packet::End);
        };
        if end.process.is_dead() {
            match end.process.dies_silently() {
                true => end.silent.set(true),
                // Its machine says so; what had not been read is lost, now and then with what was under way.
                false => {
                    if fleet.one_in(2) {
                        to.coming.borrow_mut().clear();
                    }
                    close(end);
                }
            }
            return true;
        }
        if end.broken.get() {
            end.silent.set(true);
            return true;
        }
        if end.connection.is_closed() {
            close(end);
            return true;
        }
        if end.is_asleep(fleet) {
            return false;
        }
        let (mut said, now_us) = (0, fleet.now_us());
        let send = |frame: &Frame| {
            let mut bytes = Vec::new();
            match frame::write(&mut bytes, frame) {
                Ok(()) => {
                    let mut counts = fleet.counts.borrow_mut();
                    counts.frames += 1;
                    counts.bytes += bytes.len();
                    fleet.trace.note(bytes.len());
                    to.coming.borrow_mut().push_back(Packet::Bytes(bytes));
                }
                Err(error) => fleet.violated(format!("a frame cannot be written: {error}")),
            }
        };
        while said < FRAMES_AT_ONCE
            && let Some(frame) = end.outgoing.next_frame()
        {
            send(&frame);
            said += 1;
        }
        let silence_us = now_us - end.said_us.get();
        if said > 0 && !end.steady {
            end.said_us.set(now_us);
        } else if silence_us >= PULSE.heartbeat.as_micros() as i64 {
            match fleet.enter(&end.process, || end.outgoing.beat()) {
                Some(Ok(frame)) => send(&frame),
                Some(Err(error)) => fleet.violated(format!("a sign of life cannot be made: {error}")),
                None => {}
            }
            end.said_us.set(now_us);
        }
        said > 0
    }

    /// An end takes what has come.
    fn hear(&self, fleet: &Fleet, end: &End, from: &End) -> bool {
        if end.over.get() {
            return false;
        }
        if end.process.is_dead() {
            end.over.set(true);
            end.connection.close();
            let hears = end.hears.borrow_mut().take();
            drop(hears);
            end.coming.borrow_mut().clear();
            return true;
        }
        if end.is_asleep(fleet) || end.hears.borrow().is_none() {
            return false;
        }
        if end.connection.is_closed() || end.broken.get() {
            self.end(fleet, end, &ended("the connection is broken"));
            return true;
        }
        let mut heard = false;
        for _ in 0..1 + fleet.below(FRAMES_AT_ONCE) {
            let comes = self.goes(fleet, from.process.host, end.process.host);
            let packet = if comes { end.coming.borrow_mut().pop_front() } else { None };
            match packet {
                Some(Packet::End) => {
                    self.end(fleet, end, &ended("the other has closed the connection"));
                    return true;
                }
                Some(Packet::Bytes(bytes)) => {
                    heard = true;
                    self.take(fleet, end, &bytes);
                    if end.over.get() || end.process.is_dead() || end.is_asleep(fleet) {
                        return true;
                    }
                    end.heard_us.set(fleet.now_us());
                }
                None => break,
            }
        }
        if !heard && fleet.now_us() - end.heard_us.get() > PULSE.timeout.as_micros() as i64 {
            self.end(fleet, end, &ended("nothing has come for too long"));
            return true;
        }
        heard
    }

    fn take(&self, fleet: &Fleet, end: &End, bytes: &[u8]) {
        let Some(mut hears) = end.hears.borrow_mut().take() else { return };
        let taken = fleet.enter(&end.process, || {
            let frame = frame::read(&mut &bytes[..], FRAME_BYTES_MAX)?;
            let frame = frame.ok_or_else(|| ended("the connection has ended in the middle of a frame"))?;
            hears.take(&frame)
        });
        match taken {
            // The process has died in it.
            None => drop(hears),
            Some(outcome) => {
                *end.hears.borrow_mut() = Some(hears);
                if let Err(cause) = outcome {
                    self.end(fleet, end, &cause);
                }
            }
        }
    }

    fn end(&self, fleet: &Fleet, end: &End, cause: &Error) {
        end.over.set(true);
        end.coming.borrow_mut().clear();
        end.connection.close();
        // Not borrowed any more when the others go on, which they do while it ends.
        let hears = end.hears.borrow_mut().take();
        if let Some(mut hears) = hears {
            fleet.tell(|| format!("{} hears no more: {cause}", end.process));
            // It may die in it.
            let _ = fleet.enter(&end.process, || hears.ended(cause));
            drop(hears);
        }
    }
}
