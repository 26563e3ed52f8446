//! Times as they are measured and shown.

use std::time::{Duration, Instant};

/// A stopwatch that gives the seconds since its last reading.
#[derive(Debug)]
pub struct Lap(Instant);

impl Lap {
    /// Starts it.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Seconds since the start or the last lap, to the millisecond.
    pub fn lap(&mut self) -> f64 {
        let now = Instant::now();
        let seconds = seconds(now.saturating_duration_since(self.0));
        self.0 = now;
        seconds
    }
}

/// Seconds to the millisecond.
#[must_use]
pub fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// A time as RFC 3339 in UTC, from seconds since 1970; `None` for a year past 9999 (a damaged
/// clock).
#[must_use]
pub fn utc(seconds: u64) -> Option<String> {
    const YEAR_10000: u64 = 253_402_300_800; // humantime cannot print it
    let time = std::time::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    (seconds < YEAR_10000).then(|| humantime::format_rfc3339_seconds(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(utc(1_763_900_000).as_deref(), Some("2025-11-23T12:13:20Z"));
        assert_eq!(utc(u64::MAX), None);
    }
}
