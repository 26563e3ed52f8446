//! When something is tried again: later and later, at random, and not for ever.
//!
//! Forty thousand hosts may crash in one hour and meet at one collector. Who is refused there comes
//! back after a time that doubles, and no two at the same moment.

use core::hash::{BuildHasher, Hasher};
use std::collections::hash_map::RandomState;
use std::time::{Duration, Instant};

/// The first pause is at most this long.
const FIRST: Duration = Duration::from_millis(500);
/// And every pause at most this long.
const LONGEST: Duration = Duration::from_secs(30);

/// Pauses between attempts at one thing.
#[derive(Debug)]
pub(crate) struct Retry {
    patience: Duration,
    since: Instant,
    failures: u32,
}

impl Retry {
    /// Attempts until there has been no progress for `patience`.
    #[must_use]
    pub(crate) fn new(patience: Duration) -> Self {
        Self { patience, since: Instant::now(), failures: 0 }
    }

    /// It goes on: patience and pauses begin anew.
    pub(crate) fn progress(&mut self) {
        (self.since, self.failures) = (Instant::now(), 0);
    }

    /// How long to wait before the next attempt, at least `asked` if the other side has said so;
    /// `None` if patience is at its end.
    pub(crate) fn pause(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let left = self.patience.checked_sub(self.since.elapsed())?;
        let limit =
            FIRST.saturating_mul(1_u32.checked_shl(self.failures.min(16)).unwrap_or(u32::MAX)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        // From half of it on: a pause of nearly nothing is no pause.
        let half = limit.checked_div(2).unwrap_or_default();
        let pause = half.saturating_add(random_part(half)).max(asked.unwrap_or_default());
        (pause < left).then_some(pause)
    }
}

/// A random part of a duration.
pub(super) fn random_part(of: Duration) -> Duration {
    let micros = u64::try_from(of.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(random().checked_rem(micros.saturating_add(1)).unwrap_or(0))
}

/// A random number. The hasher's keys are of the kernel's random numbers (getrandom(2)).
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_differ_and_end() {
        let mut retry = Retry::new(Duration::from_secs(100));
        let pauses: Vec<_> = (0..8).map(|_| retry.pause(None).unwrap()).collect();
        for (n, pause) in (0..).zip(&pauses) {
            let limit = FIRST.saturating_mul(1 << n).min(LONGEST);
            assert!((limit / 2..=limit).contains(pause), "{pauses:?}");
        }
        assert_eq!(
            retry.pause(Some(Duration::from_secs(70))),
            Some(Duration::from_secs(70)),
            "Retry-After is kept to"
        );
        assert_eq!(retry.pause(Some(Duration::from_secs(101))), None, "but not beyond patience");
        let mut hosts: Vec<_> = (0..50).map(|_| Retry::new(LONGEST).pause(None)).collect();
        hosts.sort();
        hosts.dedup();
        assert!(hosts.len() > 40, "hosts come back at different moments");
        assert_eq!(Retry::new(Duration::ZERO).pause(None), None);
    }
}
