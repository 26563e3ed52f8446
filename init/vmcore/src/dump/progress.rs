//! Progress: a line a second for whoever watches the console, and a beat for PID 1.

use std::time::{Duration, Instant};

use crate::budget::MemoryUse;
use crate::report::PageCounts;
use base::addr::PageSize;
use base::beat;

const INTERVAL: Duration = Duration::from_secs(1);

/// Pages done against pages to do.
pub(super) struct Progress {
    total: u64,
    page_size: PageSize,
    started: Instant,
    printed: Instant,
    memory: MemoryUse,
    /// Seconds that are left, as they were told last.
    left: Option<u128>,
}

impl Progress {
    pub(super) fn new(total: u64, page_size: PageSize) -> Self {
        let now = Instant::now();
        let memory = MemoryUse::default();
        Self { total, page_size, started: now, printed: now, memory, left: None }
    }

    /// Prints a line if the last one is a second old.
    /// The time that is left is told when a tenth is done, and only ever shrinks: the first pages are the
    /// kernel's, which are packed better than others.
    pub(super) fn tick(&mut self, pages: &PageCounts, bytes: u64) {
        let now = Instant::now();
        if now.saturating_duration_since(self.printed) >= INTERVAL {
            self.printed = now;
            beat::alive();
            self.memory.look();
            let line = self.line(pages.total(), bytes, now);
            log::info!("dump: {line}");
        }
    }

    /// Prints the last line, and gives the memory that was needed.
    pub(super) fn done(mut self, pages: &PageCounts, bytes: u64) -> MemoryUse {
        self.memory.look();
        let line = self.line(pages.total(), bytes, Instant::now());
        log::info!("dump: {line}");
        self.memory
    }

    fn line(&mut self, pages: u64, bytes: u64, now: Instant) -> String {
        let elapsed = now.saturating_duration_since(self.started);
        let percent = pages.saturating_mul(100).checked_div(self.total).unwrap_or(100);
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        let mib = |bytes: u64| bytes >> 20;
        let bytes_done = pages.saturating_mul(self.page_size.bytes());
        let rate = (bytes_done / 1000).checked_div(millis).unwrap_or(0); // bytes/ms is kB/s
        let left = u128::from(self.total.saturating_sub(pages)).saturating_mul(u128::from(millis));
        let left = left.checked_div(u128::from(pages).saturating_mul(1000)).filter(|_| percent >= 10);
        self.left = left.map(|left| self.left.map_or(left, |before| before.min(left)));
        format!(
            "{percent:3}% of {} MiB, {rate} MB/s, {} MiB written{}",
            mib(self.total.saturating_mul(self.page_size.bytes())),
            mib(bytes),
            if pages >= self.total {
                format!(", {}.{:03} s", millis / 1000, millis % 1000)
            } else {
                self.left.map_or_else(String::new, |left| format!(", ETA {left} s"))
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_and_how_long() {
        let mut progress = Progress::new(1000, PageSize::FOUR_KIB);
        let started = progress.started;
        let at = |seconds| started + Duration::from_secs(seconds);
        assert_eq!(progress.line(99, 1 << 20, at(1)), "  9% of 3 MiB, 0 MB/s, 1 MiB written");
        assert_eq!(progress.line(250, 1 << 20, at(2)), " 25% of 3 MiB, 0 MB/s, 1 MiB written, ETA 6 s");
        assert_eq!(progress.line(260, 1 << 20, at(9)), " 26% of 3 MiB, 0 MB/s, 1 MiB written, ETA 6 s");
        assert_eq!(progress.line(500, 1 << 20, at(5)), " 50% of 3 MiB, 0 MB/s, 1 MiB written, ETA 5 s");
        assert_eq!(progress.line(1000, 2 << 20, at(8)), "100% of 3 MiB, 0 MB/s, 2 MiB written, 8.000 s");
        let _ = Progress::new(0, PageSize::FOUR_KIB).line(0, 0, at(0));
    }
}
