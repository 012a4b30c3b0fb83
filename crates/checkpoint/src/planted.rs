//! Bugs that a test plants, to see that it finds them. Programs built for release have none.
//!
//! | bug | where |
//! |---|---|
//! | `delta` | a change of a job's state is not stored |
//! | `watermark` | a start forgets how far event time was |
//! | `join_row` | a join loses a row when its state is read back |
//! | `live_object` | an object that a kept checkpoint needs is cleared away |
//! | `commit_twice` | a sink publishes a file a second time, under another name |
//! | `early_checkpoint` | a checkpoint is taken before a start is over |

//!
//! Those that only a cluster can have:
//!
//! | bug | where |
//! |---|---|
//! | `unfenced` | a coordinator takes an entry of the log that another one has written for its own |
//! | `unsynced` | a statement that waits when a worker is lost is acknowledged without a sync |

/// All of them that one process can have.
pub const BUGS: [&str; 6] = ["delta", "watermark", "join_row", "live_object", "commit_twice", "early_checkpoint"];

/// Those that only a cluster can have.
pub const CLUSTER_BUGS: [&str; 2] = ["unfenced", "unsynced"];

#[cfg(debug_assertions)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}

/// This thread has the bug from now on, or none.
#[cfg(debug_assertions)]
pub fn plant(bug: Option<&'static str>) {
    PLANTED.set(bug);
}

/// Whether the bug is planted in this thread.
#[cfg(debug_assertions)]
pub fn is(bug: &'static str) -> bool {
    PLANTED.get() == Some(bug)
}

/// Never.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn is(_bug: &'static str) -> bool {
    false
}
