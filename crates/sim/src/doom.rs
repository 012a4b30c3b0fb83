//! The end of an incarnation in the middle of what it does: at a crash point, or at a request to the store or to the disk.
//!
//! The thread unwinds to whoever steps the machine. What it unwinds through may do nothing that outlives the incarnation: the
//! store and the disk are dead by then.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::store::Fate;

/// Where an incarnation dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doom {
    /// Between two steps, when its time has come.
    Steps,
    /// It is shut down in order.
    Order,
    /// The so-manyth time that it comes to the crash point.
    Point(&'static str, u32),
    /// Before the so-manyth request to the store.
    BeforeRequest(u32),
    /// After it took effect, before its answer.
    AfterRequest(u32),
    /// Before the so-manyth request to the disk under the log.
    Disk(u32),
}

/// What the thread unwinds with.
struct Died;

thread_local! {
    static DOOM: Cell<Doom> = const { Cell::new(Doom::Steps) };
    static LEFT: Cell<u32> = const { Cell::new(0) };
    static DEAD: Cell<bool> = const { Cell::new(false) };
    /// How often each crash point was reached.
    static REACHED: RefCell<BTreeMap<&'static str, usize>> = const { RefCell::new(BTreeMap::new()) };
}

/// The incarnation that begins now dies so.
pub fn begin(doom: Doom) {
    let left = match doom {
        Doom::Steps | Doom::Order => 0,
        Doom::Point(_, n) | Doom::BeforeRequest(n) | Doom::AfterRequest(n) | Doom::Disk(n) => n,
    };
    DOOM.set(doom);
    LEFT.set(left);
    DEAD.set(false);
    checkpoint::crash::simulate(Some(Box::new(|name| {
        REACHED.with_borrow_mut(|reached| *reached.entry(name).or_default() += 1);
        if matches!(DOOM.get(), Doom::Point(point, _) if point == name) {
            count_down();
        }
    })));
}

/// It is over; what is dropped from now on comes to no crash point.
pub fn end() {
    DOOM.set(Doom::Steps);
    DEAD.set(true);
    checkpoint::crash::simulate(None);
}

/// The crash points that this thread has come to since it was last asked.
pub fn take_reached() -> BTreeMap<&'static str, usize> {
    REACHED.take()
}

pub fn is_dead() -> bool {
    DEAD.get()
}

/// What the store does to the incarnation.
pub struct OfStore;

impl Fate for OfStore {
    fn before_request(&self) {
        if matches!(DOOM.get(), Doom::BeforeRequest(_)) {
            count_down();
        }
    }

    fn after_request(&self) {
        if matches!(DOOM.get(), Doom::AfterRequest(_)) {
            count_down();
        }
    }

    fn is_dead(&self) -> bool {
        is_dead()
    }
}

/// A request comes to the disk.
pub fn disk_request() {
    if matches!(DOOM.get(), Doom::Disk(_)) {
        count_down();
    }
}

fn count_down() {
    if DEAD.get() || std::thread::panicking() {
        return;
    }
    LEFT.set(LEFT.get().saturating_sub(1));
    if LEFT.get() == 0 {
        DEAD.set(true);
        resume_unwind(Box::new(Died));
    }
}

/// What `work` gives, or nothing if the incarnation has died in it. Other panics go on.
pub fn unless_dead<T>(work: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        // Somebody on the way may have caught it.
        Ok(done) => (!is_dead()).then_some(done),
        Err(panic) if panic.is::<Died>() => None,
        Err(panic) => resume_unwind(panic),
    }
}
