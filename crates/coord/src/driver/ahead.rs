//! Reading ahead: portions of a source's splits are read on threads beside the driver, which hands them on in turn.
//!
//! Law: what was read ahead is handed on only where the driver would read the same now; else it is dropped and read again. So a
//! source is read as if by the driver alone, and its rows come in the same order.

use std::collections::HashMap;

use connect::{Offset, ReadOutcome, SourceReader};
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use flow::{RelationId, Result};
use runtime::service::wait_for_message;
use runtime::{Service, Stepped};

use crate::execution::Execution;
use crate::sources::READ_BYTES;

/// Portions of each thread that are read or wait for their turn.
const PORTIONS_EACH: usize = 2;

/// What a reader has read, or is to read, without a limit.
pub(super) struct Portion {
    /// The split's number with the driver.
    pub split: usize,
    pub reader: Box<dyn SourceReader>,
    /// What the reader decodes, and the version of the wishes that it comes from.
    pub columns: Vec<usize>,
    pub wishes: u64,
    pub from: Offset,
}

type Read = (Portion, Result<ReadOutcome>);

/// A portion that was asked for.
pub(super) enum Asked {
    Nothing,
    /// It is being read.
    Pending,
    Here(Portion, Result<ReadOutcome>),
}

/// The threads that read ahead for one source. They end when this is dropped.
pub(super) struct Ahead {
    errands: Sender<Portion>,
    read: Receiver<Read>,
    /// Splits that were asked for and have not been taken.
    asked: HashMap<usize, Option<Read>>,
    most: usize,
}

impl Ahead {
    /// Starts so many threads, for portions of so many rows.
    pub fn start(execution: &dyn Execution, relation: RelationId, threads: usize, rows: usize) -> Result<Ahead> {
        let (errands, todo) = unbounded();
        let (done, read) = unbounded();
        for number in 0..threads {
            let reader = Reading { relation, number, rows, todo: todo.clone(), done: done.clone() };
            // It ends when nobody asks any more; nobody waits for that.
            drop(execution.start_service(Box::new(reader))?);
        }
        Ok(Ahead { errands, read, asked: HashMap::new(), most: threads * PORTIONS_EACH })
    }

    /// So many splits from the one whose turn is next on should be read ahead.
    pub fn reach(&self) -> usize {
        self.most
    }

    pub fn has_room(&self) -> bool {
        self.asked.len() < self.most
    }

    pub fn is_asked(&self, split: usize) -> bool {
        self.asked.contains_key(&split)
    }

    pub fn ask(&mut self, portion: Portion) {
        self.asked.insert(portion.split, None);
        // The threads live as long as this.
        let _ = self.errands.send(portion);
    }

    pub fn take(&mut self, split: usize) -> Asked {
        loop {
            match self.asked.remove(&split) {
                None => return Asked::Nothing,
                Some(Some((portion, outcome))) => return Asked::Here(portion, outcome),
                Some(None) => {
                    self.asked.insert(split, None);
                    match self.read.try_recv() {
                        Ok(read) => self.asked.insert(read.0.split, Some(read)),
                        Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Asked::Pending,
                    };
                }
            }
        }
    }

    /// Waits until one of the portions is read.
    pub fn wait(&self) {
        wait_for_message(&self.read, None);
    }
}

/// One of the threads.
struct Reading {
    relation: RelationId,
    number: usize,
    rows: usize,
    todo: Receiver<Portion>,
    done: Sender<Read>,
}

impl Service for Reading {
    fn name(&self) -> String {
        format!("read-{}-{}", self.relation, self.number)
    }

    fn step(&mut self) -> Stepped {
        let mut portion = match self.todo.try_recv() {
            Ok(portion) => portion,
            Err(TryRecvError::Empty) => return Stepped::Idle,
            Err(TryRecvError::Disconnected) => return Stepped::Ended,
        };
        let outcome = portion.reader.read(portion.from, self.rows, READ_BYTES, None);
        match self.done.send((portion, outcome)) {
            Ok(()) => Stepped::Worked,
            Err(_) => Stepped::Ended,
        }
    }

    fn wait(&mut self) {
        wait_for_message(&self.todo, None);
    }
}
