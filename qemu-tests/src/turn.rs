//! Which guest tests run, and when.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Guests of one test program run one at a time: with more emulated machines than processors they
/// slow each other into timeouts. scripts/test runs two such programs.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether whole matrices run (`scripts/test --full`), or one case of every kind.
#[must_use]
pub fn full() -> bool {
    std::env::var("AFTERIMAGE_FULL").is_ok_and(|full| full == "1")
}

/// Whether `what` is only a part of the whole matrices and is left out; then that is said.
#[must_use]
pub fn is_left_out(what: &str) -> bool {
    let left_out = !full();
    if left_out {
        eprintln!("not run: {what}; AFTERIMAGE_FULL=1 runs it");
    }
    left_out
}
