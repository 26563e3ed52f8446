//! What a capture has done so far, with when: the events of its evidence.

use std::time::{Instant, SystemTime};

/// Events that are kept; what comes after them is counted.
const MOST: usize = 2000;
/// Bytes of one that are kept.
const LONGEST: usize = 1000;

/// Events, oldest first.
#[derive(Clone, Debug)]
pub struct Journal {
    begun: Instant,
    begun_at: u64,
    events: Vec<Event>,
    lost: u64,
}

/// Something that was done or happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Milliseconds since the journal began, by a clock that does not jump.
    pub ms: u64,
    /// This machine's clock then, seconds since 1970.
    pub at: u64,
    /// What.
    pub what: String,
}

impl Default for Journal {
    fn default() -> Self {
        Self { begun: Instant::now(), begun_at: now(), events: Vec::new(), lost: 0 }
    }
}

impl Journal {
    /// Takes an event down.
    pub fn note(&mut self, what: impl Into<String>) {
        if self.events.len() >= MOST {
            self.lost = self.lost.saturating_add(1);
            return;
        }
        let mut what: String = what.into();
        if what.len() > LONGEST {
            what.truncate(what.floor_char_boundary(LONGEST));
            what.push('…');
        }
        self.events.push(Event { ms: self.elapsed_ms(), at: now(), what });
    }

    /// All of them.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// How many more there were.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// When it began, seconds since 1970 by this machine's clock.
    #[must_use]
    pub fn begun_at(&self) -> u64 {
        self.begun_at
    }

    /// Milliseconds since then.
    #[must_use]
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_bounded_in_length_and_in_width() {
        let mut journal = Journal::default();
        for _ in 0..MOST + 5 {
            journal.note("ä".repeat(LONGEST));
        }
        assert_eq!((journal.events().len(), journal.lost()), (MOST, 5));
        assert!(journal.events().iter().all(|event| event.what.len() <= LONGEST + '…'.len_utf8()));
        assert!(journal.begun_at() > 1_700_000_000 && journal.events().is_sorted_by_key(|event| event.ms));
    }
}
