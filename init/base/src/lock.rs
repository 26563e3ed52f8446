//! Locks of programs that end when a thread panics.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex. `panic = "abort"` leaves no poisoned one; in tests, where a thread may panic, what
/// it has left is looked at all the same.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
