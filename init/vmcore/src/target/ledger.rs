//! What a target remembers from capture to capture: a sequence number, so that "oldest" needs no
//! clock, and the latest crashes, so that a machine which crashes in a loop does not fill the
//! target with dumps of the same.

use serde::{Deserialize, Serialize};

use base::config::CrashLoop;

/// Crashes that are remembered: more than any limit that makes sense, and few enough for a
/// superblock.
const REMEMBERED: usize = 64;

/// A target's memory. Unknown keys are ignored, so that an older version may follow a newer one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// Number of the latest capture, from 1.
    pub sequence: u64,
    /// Its name: a second attempt at the same capture is not another crash.
    pub latest: String,
    /// When the production kernels crashed, seconds since 1970, oldest first.
    pub crashes: Vec<u64>,
    /// There were too many of them in too short a time; stays until an operator resets it.
    pub looping: bool,
}

impl Ledger {
    /// Counts the capture called `name`, of a crash at `time`.
    pub fn count(&mut self, name: &str, time: u64, limit: CrashLoop) {
        if self.latest == name {
            return;
        }
        name.clone_into(&mut self.latest);
        self.sequence = self.sequence.saturating_add(1);
        self.crashes.push(time);
        let surplus = self.crashes.len().saturating_sub(REMEMBERED);
        self.crashes.drain(..surplus);
        // A clock that was set back makes two crashes seem far apart; then the dump is saved, which
        // is the safe mistake.
        let near = self.crashes.iter().filter(|&&then| time.abs_diff(then) <= limit.within).count();
        let maximum = usize::try_from(limit.crashes).unwrap_or(usize::MAX);
        self.looping |= maximum > 0 && near > maximum;
    }

    /// Forgets the crashes: an operator has seen to them.
    pub fn reset(&mut self) {
        self.crashes.clear();
        self.looping = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: CrashLoop = CrashLoop { crashes: 3, within: 100 };

    #[test]
    fn a_loop_is_more_crashes_than_allowed_and_stays_one() {
        let mut ledger = Ledger::default();
        let mut crash = |time: u64, expected: bool| {
            ledger.count(&format!("capture-{time}"), time, LIMIT);
            assert_eq!(ledger.looping, expected, "at {time}");
        };
        for time in [0, 60, 120, 180, 240] {
            crash(time, false); // never four within 100 s
        }
        crash(241, false);
        crash(242, true);
        crash(99_999, true);
        ledger.reset();
        ledger.count("later", 100_000, LIMIT);
        assert!(!ledger.looping);
        assert_eq!(ledger.sequence, 9);
    }

    #[test]
    fn a_second_attempt_is_no_second_crash() {
        let mut ledger = Ledger::default();
        for _ in 0..10 {
            ledger.count("x", 5, LIMIT);
        }
        assert_eq!((ledger.sequence, ledger.crashes.len(), ledger.looping), (1, 1, false));
    }

    #[test]
    fn no_limit_is_no_loop_and_memory_is_bounded() {
        let mut ledger = Ledger::default();
        for time in 0..1000 {
            ledger.count(&time.to_string(), time, CrashLoop { crashes: 0, within: u64::MAX });
        }
        assert_eq!((ledger.sequence, ledger.crashes.len(), ledger.looping), (1000, REMEMBERED, false));
    }
}
