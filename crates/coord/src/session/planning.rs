//! Planning beside a server's other work.
//!
//! Planning computes and does not wait, so it holds the thread that polls it. For a long statement that would hold up
//! every session of that thread: its other tasks are handed to another thread first. Short statements are planned in less
//! time than such a move takes.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Bytes of a statement from which planning may take longer than moving the thread's tasks, about a millisecond.
const LONG_STATEMENT_BYTES: usize = 2_000;

/// Whether planning `text` is worth making room for.
pub fn is_long(text: &str) -> bool {
    text.len() >= LONG_STATEMENT_BYTES
}

/// Runs `work` on a stack that is deep enough for every statement within the limits. `long`: other tasks of this thread
/// go on elsewhere meanwhile.
pub fn compute<R>(long: bool, work: impl FnOnce() -> R) -> R {
    let movable = || Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
    if long && movable() {
        tokio::task::block_in_place(|| sql::with_large_stack(work))
    } else {
        sql::with_large_stack(work)
    }
}

/// After long planning: lets a cancel request or a statement timeout that came meanwhile take effect.
pub async fn interruptible(long: bool) {
    if long {
        tokio::task::yield_now().await;
    }
}
