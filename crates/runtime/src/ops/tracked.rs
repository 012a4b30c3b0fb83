//! What an operator has yet to tell the checkpoint: the changes of its state since it was last asked.
//!
//! [`Tracked`] has them as batches that went through the operator anyway, kept by reference. They stay for as long as a checkpoint
//! is away, so a column that would keep much more alive than its own rows is copied out of what it shares.
//!
//! [`TrackedRows`] has only the numbers of the rows that changed, so that what comes and goes between two checkpoints is never
//! told. What has been quiet for a while may be told before the checkpoint ([`Marks::take_old`]), so that it has little left to tell.

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use flow::{ChangeBatch, Diff, Error, Result, SqlState};
use state::owned;

use super::emit::{check_types, record};

/// Nothing is kept, and nothing costs, until [`start`](Self::start).
#[derive(Default)]
pub struct Tracked {
    on: bool,
    changes: Vec<(usize, ChangeBatch)>,
    bytes: usize,
}

impl Tracked {
    pub fn start(&mut self) {
        self.on = true;
    }

    /// Whether changes are to be told at all.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Notes changes of `part`, whose schema is `schema`.
    pub fn push(
        &mut self,
        part: usize,
        schema: &SchemaRef,
        columns: &[ArrayRef],
        rows: usize,
        diff: Diff,
    ) -> Result<()> {
        if !self.on || rows == 0 {
            return Ok(());
        }
        let columns = columns.iter().map(owned).collect::<Result<Vec<_>>>()?;
        let change = ChangeBatch::new(record(schema, columns, rows)?, diff);
        self.bytes += change.bytes();
        self.changes.push((part, change));
        Ok(())
    }

    /// Hands over what there is to tell.
    pub fn tell(&mut self, out: &mut Vec<(usize, ChangeBatch)>) {
        self.bytes = 0;
        out.append(&mut self.changes);
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Which of numbered pieces of state have changed since they were last told, in two ages.
#[derive(Default)]
pub struct Marks {
    /// By piece: its age, 1 or 2, or 0 if it is not marked; and [`listed`] for each list that it stands in.
    of: Vec<u8>,
    /// Marked since the last [`take_old`](Self::take_old), and in the time before that, each piece once. A piece that was marked anew,
    /// or is not marked any more, stands in a list in vain.
    young: Vec<u32>,
    old: Vec<u32>,
    /// Whether 2 is the young age: that changes when the young ones become old.
    odd: bool,
}

/// The bits of a piece's age.
const AGE: u8 = 3;

/// The bit that says that a piece stands in the list of this age.
fn listed(age: u8) -> u8 {
    age << 2
}

impl Marks {
    fn young(&self) -> u8 {
        1 + u8::from(self.odd)
    }

    /// The piece has changed.
    #[inline(always)]
    pub fn set(&mut self, piece: u32) {
        let (n, young) = (piece as usize, self.young());
        if n >= self.of.len() {
            self.of.resize(n + 1, 0);
        }
        let of = &mut self.of[n];
        if *of & AGE == young {
            return;
        }
        if *of & listed(young) == 0 {
            self.young.push(piece);
        }
        *of = (*of & !AGE) | young | listed(young);
    }

    /// The piece is gone; another one may get its number.
    pub fn clear(&mut self, piece: u32) {
        if let Some(of) = self.of.get_mut(piece as usize) {
            *of &= !AGE;
        }
    }

    fn pick(&mut self, list: &mut Vec<u32>, age: u8) {
        list.retain(|piece| {
            let of = &mut self.of[*piece as usize];
            *of &= !listed(age);
            let marked = *of & AGE == age;
            if marked {
                *of &= !AGE;
            }
            marked
        });
    }

    /// The marked pieces, each once. They are not marked any longer.
    pub fn take(&mut self) -> Vec<u32> {
        let (mut all, mut young) = (std::mem::take(&mut self.old), std::mem::take(&mut self.young));
        self.pick(&mut all, 3 - self.young());
        self.pick(&mut young, self.young());
        all.append(&mut young);
        all
    }

    /// The pieces that were marked before the last call and not since then: likely to stay as they are. They are not marked any
    /// longer. The other ones are old from now on.
    pub fn take_old(&mut self) -> Vec<u32> {
        let mut old = std::mem::take(&mut self.old);
        self.pick(&mut old, 3 - self.young());
        self.old = std::mem::take(&mut self.young);
        self.odd = !self.odd;
        old
    }

    /// How many are marked, at most.
    pub fn count(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub fn bytes(&self) -> usize {
        self.of.capacity() + (self.young.capacity() + self.old.capacity()) * 4
    }
}

/// Which of numbered rows have another weight than the checkpoint knows. Nothing is kept, and nothing costs, until
/// [`start`](Self::start).
#[derive(Default)]
pub struct TrackedRows {
    on: bool,
    /// By number: the weight that the checkpoint knows.
    told: Vec<i64>,
    pub changed: Marks,
}

impl TrackedRows {
    /// The checkpoint knows these weights, by number.
    pub fn start(&mut self, told: Vec<i64>) {
        self.on = true;
        self.told = told;
    }

    pub fn is_on(&self) -> bool {
        self.on
    }

    /// The weight of a row may have changed.
    #[inline(always)]
    pub fn mark(&mut self, row: u32) {
        if self.on {
            self.changed.set(row);
        }
    }

    pub fn told(&self, row: u32) -> i64 {
        self.told.get(row as usize).copied().unwrap_or(0)
    }

    /// The checkpoint is told of this weight.
    pub fn tell(&mut self, row: u32, weight: i64) {
        if row as usize >= self.told.len() {
            self.told.resize(row as usize + 1, 0);
        }
        self.told[row as usize] = weight;
    }

    pub fn bytes(&self) -> usize {
        self.told.capacity() * 8 + self.changed.bytes()
    }
}

/// Rows of a state that nothing can have written.
pub fn damaged(what: &str) -> Error {
    Error::new(SqlState::DataCorrupted, "the state of a checkpoint is damaged").with_detail(what.to_owned())
}

/// Checks that restored rows have the schema of their part and are there.
pub fn check_restored(rows: &ChangeBatch, schema: &SchemaRef) -> Result<()> {
    if let Err(e) = check_types(rows, schema) {
        return Err(damaged(e.detail().unwrap_or("Its rows have another schema.")));
    }
    if (0..rows.num_rows()).any(|i| rows.weight(i) <= 0) {
        return Err(damaged("A row of it is there fewer than one time."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_quiet_for_an_age_is_old() {
        let mut marks = Marks::default();
        for piece in [3, 1, 2, 1, 7] {
            marks.set(piece);
        }
        assert!(marks.take_old().is_empty());
        // Changed again; gone; gone, and another piece with its number.
        marks.set(1);
        marks.clear(3);
        marks.clear(7);
        marks.set(7);
        assert_eq!(marks.take_old(), [2]);
        marks.set(2);
        assert_eq!(marks.take_old(), [1, 7]);
        assert_eq!(marks.take(), [2]);
        assert_eq!((marks.take(), marks.count()), (vec![], 0));
    }

    /// Pieces that come and go under the same numbers take no room.
    #[test]
    fn no_list_is_longer_than_there_are_numbers() {
        let mut marks = Marks::default();
        for n in 0..10_000 {
            marks.set(n % 3);
            marks.clear(n % 3);
            if n == 5_000 {
                assert!(marks.take_old().is_empty());
            }
        }
        assert_eq!(marks.count(), 6);
        marks.set(1);
        assert_eq!((marks.take(), marks.count()), (vec![1], 0));
    }

    /// A mark is told once, at the latest when all are, and never of a piece that is gone.
    #[test]
    fn every_mark_is_taken_once() {
        let mut random = 1u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        let (mut marks, mut expected) = (Marks::default(), std::collections::BTreeSet::new());
        for _ in 0..20_000 {
            let piece = below(40) as u32;
            match below(20) {
                0..12 => {
                    marks.set(piece);
                    expected.insert(piece);
                }
                12..18 => {
                    marks.clear(piece);
                    expected.remove(&piece);
                }
                18 => {
                    for old in marks.take_old() {
                        assert!(expected.remove(&old));
                    }
                }
                _ => {
                    let mut all = marks.take();
                    all.sort_unstable();
                    assert!(all.iter().eq(&expected));
                    expected.clear();
                }
            }
        }
    }
}
