//! Points at which a test lets the process die, to see that the next start makes it good. Programs built for release have none.
//!
//! | point | where |
//! |---|---|
//! | C0 | before a checkpoint's barrier leaves the coordinator |
//! | C1 | the first task of a job has frozen its state, others have not |
//! | C2 | one input of an operator has ended the checkpoint's epoch, another has not |
//! | C3 | all state of a job on a slot is frozen, nothing of it is stored |
//! | C4 | one segment is stored |
//! | C5 | all segments of a job on a slot are stored, nobody was told |
//! | C6 | the coordinator knows of some of the state, not of all |
//! | C7 | a manifest is being stored, without an answer yet |
//! | C8 | the manifest is durable, the epoch is not claimed |
//! | C9 | the epoch is claimed, the sinks do not know |
//! | C10 | a sink has published some of its files |
//! | C11 | all sinks have committed, which is not noted |
//! | C12 | it is noted, nothing is cleared away |
//! | C13 | what can be cleared away is known |
//! | C14 | some of it is gone |
//! | C15 | a start has read some of the state back |
//! | C16 | a start reads the state of another number of slots |
//! | L0 | what the log says up to a checkpoint is written anew beside it |
//! | L1 | so is the rest, durably |
//! | L2 | the new segment has its name, which is not durable yet |
//! | L3 | it is, and the old segment is still there |

/// Those of a checkpoint and of a start, in their order.
pub const POINTS: [&str; 17] =
    ["C0", "C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "C10", "C11", "C12", "C13", "C14", "C15", "C16"];

/// Those of a log that is rewritten while the server runs.
pub const LOG_POINTS: [&str; 4] = ["L0", "L1", "L2", "L3"];

/// The environment variable that chooses one: `C7`, or `C7:3` for the third time that it is reached.
pub const CRASH_AT: &str = "MILLSTREAM_CRASH_AT";

/// What a simulation does at a point.
#[cfg(debug_assertions)]
pub type OnPoint = Box<dyn FnMut(&'static str)>;

#[cfg(debug_assertions)]
thread_local! {
    static ON_POINT: std::cell::RefCell<Option<OnPoint>> = const { std::cell::RefCell::new(None) };
}

/// From now on `on_point` is called for every point that this thread comes to, instead of what [`CRASH_AT`] says; `None` ends that.
/// It may unwind, and is not called while the thread unwinds.
#[cfg(debug_assertions)]
pub fn simulate(on_point: Option<OnPoint>) {
    ON_POINT.set(on_point);
}

/// Ends the process, without any of its duties, if this point is chosen.
#[cfg(debug_assertions)]
pub fn point(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    let simulated = ON_POINT.with(|on_point| {
        // Not reached from itself: what it calls comes to no point.
        let Ok(mut on_point) = on_point.try_borrow_mut() else { return true };
        let Some(on_point) = on_point.as_mut() else { return false };
        if !std::thread::panicking() {
            on_point(name);
        }
        true
    });
    if simulated {
        return;
    }
    static CHOSEN: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let text = std::env::var(CRASH_AT).ok()?;
        let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_string(), AtomicU64::new(times.parse().unwrap_or(1))))
    });
    if let Some((chosen, left)) = chosen
        && chosen == name
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        eprintln!("the process ends at {name}");
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &'static str) {}
