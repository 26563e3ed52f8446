//! The least pace of a host: who takes a byte now and then makes progress, and keeps the machine down
//! for days.

use std::time::{Duration, Instant};

/// Moments between two looks that are further apart than this are none in which the host was waited
/// for.
const GAP: Duration = Duration::from_secs(2);

/// What a host took while it was waited for.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes per second; 0: any pace will do.
    floor: u64,
    window: Duration,
    looked: Instant,
    /// Waited for in this window, and what moved meanwhile.
    waited: Duration,
    bytes: u64,
}

/// A host that is too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it took {bytes} bytes in the {seconds} s that it was waited for, less than min_rate, {floor} bytes per \
     second: give the target a lower min_rate if the line is that slow"
)]
pub(crate) struct TooSlow {
    /// That it took.
    pub(crate) bytes: u64,
    /// In so many seconds.
    pub(crate) seconds: u64,
    /// What it should have taken in each.
    pub(crate) floor: u64,
}

impl From<TooSlow> for std::io::Error {
    fn from(error: TooSlow) -> Self {
        Self::new(std::io::ErrorKind::TimedOut, error)
    }
}

impl Pace {
    /// At least `floor` bytes per second on average, over `window`.
    pub(crate) fn new(floor: u64, window: Duration) -> Self {
        Self { floor, window, looked: Instant::now(), waited: Duration::ZERO, bytes: 0 }
    }

    /// Looks again: `bytes` have moved since the last look. `waiting` is whether it is the host that
    /// is waited for; while it has nothing to do, no time passes.
    pub(crate) fn look(&mut self, bytes: u64, waiting: bool) -> Result<(), TooSlow> {
        let since = self.looked.elapsed();
        self.looked = Instant::now();
        self.took(bytes, if waiting && since <= GAP { since } else { Duration::ZERO })
    }

    /// `bytes` have moved in a call that took this time.
    pub(crate) fn took(&mut self, bytes: u64, time: Duration) -> Result<(), TooSlow> {
        self.bytes = self.bytes.saturating_add(bytes);
        self.waited = self.waited.saturating_add(time);
        if self.floor == 0 || self.waited < self.window {
            return Ok(());
        }
        let (bytes, waited) = (core::mem::take(&mut self.bytes), core::mem::take(&mut self.waited));
        let millis = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        if bytes.saturating_mul(1000) >= self.floor.saturating_mul(millis) {
            return Ok(());
        }
        Err(TooSlow { bytes, seconds: waited.as_secs(), floor: self.floor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_byte_now_and_then_is_too_slow_and_a_pause_is_none() {
        let mut pace = Pace::new(1000, 10 * SECOND);
        // An outage of nine tenths of the window, and a burst after it.
        pace.took(0, 9 * SECOND).unwrap();
        pace.took(10_000, SECOND).unwrap();
        (0..9).for_each(|_| pace.took(1, SECOND).unwrap());
        let slow = pace.took(1, SECOND).unwrap_err();
        assert_eq!(slow, TooSlow { bytes: 10, seconds: 10, floor: 1000 });
        assert!(slow.to_string().contains("min_rate"), "{slow}");
        // Exactly the floor will do, and each window counts by itself.
        (0..100).for_each(|_| pace.took(1000, SECOND).unwrap());
        (0..10_000).for_each(|_| Pace::new(0, SECOND).took(0, SECOND).unwrap());
    }

    #[test]
    fn who_is_not_waited_for_is_not_slow() {
        let mut pace = Pace::new(1 << 20, Duration::from_millis(30));
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(10));
            pace.look(0, false).unwrap();
        }
        let mut looks = (0..10).map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            pace.look(1, true)
        });
        assert!(looks.any(|look| look.is_err()));
    }
}
