//! Where a thread waits for others: asleep. Or, where a test plays all of them in one thread, by letting the others work meanwhile.

use std::future::Future;
use std::time::Duration;

use futures::{Stream, StreamExt};
use parking_lot::{Condvar, MutexGuard};

/// Lets the others work for a moment, and says how long it took. It may unwind: whoever waits ends there.
#[cfg(debug_assertions)]
pub type Others = std::rc::Rc<dyn Fn() -> Duration>;

#[cfg(debug_assertions)]
thread_local! {
    static OTHERS: std::cell::RefCell<Option<Others>> = const { std::cell::RefCell::new(None) };
}

/// From now on this thread lets `others` work wherever it would sleep here; `None` ends that.
#[cfg(debug_assertions)]
pub fn simulate(others: Option<Others>) {
    OTHERS.set(others);
}

#[cfg(debug_assertions)]
fn others() -> Option<Others> {
    OTHERS.with_borrow(Clone::clone)
}

/// Lets the others work for a moment, if there are any.
#[cfg(debug_assertions)]
pub fn let_others_work() {
    if let Some(others) = others() {
        others();
    }
}

/// Waits for the end of a future on the calling thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    #[cfg(debug_assertions)]
    if let Some(others) = others() {
        let mut future = std::pin::pin!(future);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        loop {
            if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut context) {
                return done;
            }
            others();
        }
    }
    futures::executor::block_on(future)
}

/// What a stream gives, waited for on the thread that asks.
pub fn iterate<S: Stream + Unpin>(mut stream: S) -> impl Iterator<Item = S::Item> {
    std::iter::from_fn(move || block_on(stream.next()))
}

/// Waits until `done`, which is asked again whenever `changed` is notified. False: it is not, and nothing has been notified for
/// `at_most`.
pub fn wait_until<T>(
    changed: &Condvar,
    state: &mut MutexGuard<'_, T>,
    at_most: Duration,
    mut done: impl FnMut(&mut T) -> bool,
) -> bool {
    #[cfg(debug_assertions)]
    if let Some(others) = others() {
        let mut passed = Duration::ZERO;
        loop {
            if done(state) {
                return true;
            }
            if passed >= at_most {
                return false;
            }
            passed += MutexGuard::unlocked(state, || others());
        }
    }
    loop {
        if done(state) {
            return true;
        }
        if changed.wait_for(state, at_most).timed_out() {
            return done(state);
        }
    }
}
