//! Which of several coordinators should lead: the one that gives signs of life.
//!
//! The leader creates numbered objects, `lease/1`, `lease/2`, …, one with every heartbeat, and removes the older ones. A standby
//! looks at the newest; when that has been the same for too long it creates the next one itself, and leads.
//!
//! **Law.** A lease decides nothing but who tries. Two processes may believe at the same time that they lead; what only one may do is
//! fenced elsewhere, by what is created only if absent: the log ([`crate::log`]) and the records of checkpoints
//! ([`crate::protocol`]). So clocks may go wrong at the price of a take-over that nobody needed.
//!
//! How long a lease has been the same is measured by the looker's own clock, from the answer that has shown it first to the
//! question whose answer shows it still: so a looker that sleeps in the middle does not count its own sleep. Time in which
//! the store does not answer does not count either, since the leader can give no sign then.

use flow::{Error, Result, SqlState};
use serde::{Deserialize, Serialize};

use crate::door::{Door, PutNew};
use crate::names::LEASES;

/// Digits of a number in a name.
const DIGITS: usize = 10;
/// How often a look begins again because what was listed is gone.
const LOOKS_MAX: usize = 8;

/// A coordinator, as others are told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// What tells its data directory from every other one.
    pub id: String,
    /// Where clients find it.
    pub pg_addr: String,
    /// Where workers find it.
    pub cluster_addr: String,
}

/// The content of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sign {
    pub holder: Holder,
    /// The holder has ended in order: anybody may lead at once.
    pub released: bool,
}

/// The newest lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub number: u64,
    pub sign: Sign,
    /// It is of this process.
    pub mine: bool,
}

/// What became of a sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// This one is the newest.
    Holds(u64),
    /// Another coordinator leads.
    Lost(Seen),
}

/// The leases, as one coordinator uses them.
#[derive(Clone, Debug)]
pub struct Leases {
    door: Door,
    holder: Holder,
}

fn name_of(number: u64) -> String {
    format!("{LEASES}/{number:0DIGITS$}")
}

fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix(LEASES)?.strip_prefix('/')?.parse().ok()?;
    (name_of(number) == name).then_some(number)
}

impl Leases {
    /// `door`: no other process writes as its nonce.
    pub fn new(door: Door, holder: Holder) -> Leases {
        Leases { door, holder }
    }

    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    fn numbers(&self) -> Result<Vec<u64>> {
        let listed = self.door.list(LEASES)?;
        let mut numbers: Vec<u64> = listed.iter().filter_map(|listed| number_of(&listed.name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The newest lease; `None` if there is none. Two requests as a rule. Errors: `58030`, `42501`; `XX001` it is damaged.
    pub fn look(&self) -> Result<Option<Seen>> {
        for _ in 0..LOOKS_MAX {
            let Some(number) = self.numbers()?.last().copied() else { return Ok(None) };
            if let Some(seen) = self.read(number)? {
                return Ok(Some(seen));
            }
        }
        Err(Error::new(SqlState::IoError, "the newest lease is removed before it can be read, again and again")
            .with_hint("The store answers more slowly than leases are renewed: choose a longer heartbeat_interval."))
    }

    /// `None` for one that has been removed.
    fn read(&self, number: u64) -> Result<Option<Seen>> {
        let name = name_of(number);
        let Some(object) = self.door.get_object(&name)? else { return Ok(None) };
        let sign = serde_json::from_slice(&object.payload)
            .map_err(|e| Error::new(SqlState::DataCorrupted, format!("object \"{name}\" is not a lease: {e}")))?;
        Ok(Some(Seen { number, sign, mine: object.writer == self.door.writer() }))
    }

    /// Creates the lease after `number`. Returns false if another coordinator was faster. Errors: `58030`, `42501`, `53100`.
    pub fn take(&self, after: u64) -> Result<bool> {
        self.put(after + 1, false)
    }

    fn put(&self, number: u64, released: bool) -> Result<bool> {
        let sign = Sign { holder: self.holder.clone(), released };
        let payload = serde_json::to_vec(&sign).map_err(|e| Error::internal(format!("write a lease: {e}")))?;
        Ok(self.door.put_new(&name_of(number), &payload)? == PutNew::Created)
    }

    /// Gives a sign of life, if the newest lease is `held` or an older one; then removes the older ones. Three requests as a rule.
    /// Errors: as [`look`](Self::look): the lease is as it was, or is held under the next number.
    pub fn renew(&self, held: u64) -> Result<Renewed> {
        let numbers = self.numbers()?;
        let newest = numbers.last().copied().unwrap_or(0);
        if newest > held
            && let Some(seen) = self.read(newest)?
            && !seen.mine
        {
            return Ok(Renewed::Lost(seen));
        }
        let next = newest.max(held) + 1;
        if !self.put(next, false)? {
            return match self.read(next)? {
                Some(seen) if !seen.mine => Ok(Renewed::Lost(seen)),
                _ => Ok(Renewed::Holds(next)),
            };
        }
        for old in numbers {
            self.door.delete(&name_of(old))?;
        }
        Ok(Renewed::Holds(next))
    }

    /// Lets anybody lead at once, if the newest lease is still this process's. Errors: as [`look`](Self::look).
    pub fn release(&self) -> Result<()> {
        match self.look()? {
            Some(seen) if seen.mine && !seen.sign.released => self.put(seen.number + 1, true).map(drop),
            _ => Ok(()),
        }
    }
}

/// How long the newest lease has been the same, as one looker knows it. Times are of its own clock, which never goes back, in
/// microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// The lease, and when it was seen first.
    first: Option<(u64, i64)>,
}

impl Watch {
    /// Notes what a look has shown that was begun and answered at these times. Returns for how long nothing has changed.
    pub fn saw(&mut self, number: u64, asked_us: i64, answered_us: i64) -> i64 {
        match self.first {
            Some((seen, since_us)) if seen == number => asked_us.saturating_sub(since_us).max(0),
            _ => {
                self.first = Some((number, answered_us));
                0
            }
        }
    }

    /// The store has not answered: what was seen before says nothing of the time until it does.
    pub fn forget(&mut self) {
        self.first = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::door::{NoRest, TRIES_MAX};
    use crate::faulty::{Fault, FaultyStore, MemoryStore};

    fn leases(store: &Arc<MemoryStore>, nonce: u64) -> Leases {
        let holder =
            Holder { id: format!("{nonce}"), pg_addr: format!("h{nonce}:1"), cluster_addr: format!("h{nonce}:2") };
        Leases::new(Door::new(store.clone(), Arc::new(NoRest), nonce), holder)
    }

    #[test]
    fn one_of_two_takes_a_lease_and_keeps_it_in_one_object() {
        let store = MemoryStore::new();
        let [one, two] = [1, 2].map(|nonce| leases(&store, nonce));
        assert_eq!(one.look().unwrap(), None);
        assert!(one.take(0).unwrap() && !two.take(0).unwrap());
        let mut held = 1;
        for _ in 0..5 {
            let Renewed::Holds(next) = one.renew(held).unwrap() else { panic!("lost") };
            assert_eq!(next, held + 1);
            held = next;
            assert_eq!(store.names(), [name_of(held)]);
        }
        let seen = two.look().unwrap().unwrap();
        assert_eq!((seen.number, seen.mine, &seen.sign.holder), (held, false, one.holder()));
        assert!(one.look().unwrap().unwrap().mine);
        // Who does not hold it cannot release it.
        two.release().unwrap();
        assert!(!two.look().unwrap().unwrap().sign.released);
        one.release().unwrap();
        assert!(two.look().unwrap().unwrap().sign.released);
    }

    #[test]
    fn who_has_slept_learns_that_another_leads_whatever_number_it_has_come_to() {
        for renewals in 0..4 {
            let store = MemoryStore::new();
            let [one, two] = [1, 2].map(|nonce| leases(&store, nonce));
            one.take(0).unwrap();
            assert!(two.take(1).unwrap());
            let mut held = 2;
            for _ in 0..renewals {
                let Renewed::Holds(next) = two.renew(held).unwrap() else { panic!("lost") };
                held = next;
            }
            let Renewed::Lost(seen) = one.renew(1).unwrap() else { panic!("two lead") };
            assert_eq!((seen.number, &seen.sign.holder), (held, two.holder()));
            one.release().unwrap();
            assert!(!two.look().unwrap().unwrap().sign.released);
        }
    }

    #[test]
    fn a_sign_whose_answer_was_lost_is_no_other_leader() {
        let memory = MemoryStore::new();
        let faulty = FaultyStore::scripted(memory.clone(), []);
        let one = Leases::new(Door::new(faulty.clone(), Arc::new(NoRest), 1), Holder::default());
        one.take(0).unwrap();
        // The list, then the create, in all of its tries.
        for (fault, held, next) in [(Fault::Dropped, 1, 2), (Fault::AnswerLost, 2, 4)] {
            faulty.script([Fault::None].into_iter().chain([fault; TRIES_MAX as usize]));
            assert_eq!(one.renew(held).unwrap_err().state(), SqlState::IoError);
            // The second time it holds a newer one than it knows of.
            assert_eq!(one.renew(held).unwrap(), Renewed::Holds(next));
            assert_eq!(memory.names(), [name_of(next)]);
        }
    }

    #[test]
    fn silence_is_measured_without_the_lookers_own_sleep_and_without_the_stores() {
        let mut watch = Watch::default();
        assert_eq!(watch.saw(5, 100, 110), 0);
        assert_eq!(watch.saw(5, 200, 210), 90);
        // It sleeps between question and answer: what it was told is old.
        assert_eq!(watch.saw(5, 300, 9_000), 190);
        assert_eq!(watch.saw(8, 9_001, 9_002), 0);
        assert_eq!(watch.saw(8, 9_500, 9_501), 498);
        watch.forget();
        assert_eq!(watch.saw(8, 20_000, 20_001), 0);
        assert_eq!(watch.saw(8, 20_400, 20_401), 399);
    }
}
