//! How much memory the capture may use, fixed before the first page is read.
//!
//! A capture kernel has 64 to 256 MiB for everything, and what the kernel itself will want while
//! file systems write is not known. So buffers get a quarter of what is available, at most.

use std::fs;

/// Bytes of memory that a worker reads, compresses and hands on at a time.
pub const BATCH_BYTES: u64 = 1 << 20;
/// Bytes that one worker costs: a batch of raw output at worst, twice (one in work, one on its way
/// to the writer), a compression context, and page tables for its window.
const BYTES_PER_WORKER: u64 = 5 << 20;

/// Most that bits are worth: scanning struct pages again takes less time than reading the pages
/// they describe.
const MOST_FOR_PLAN: u64 = 8 << 20;

/// What they are worth after an attempt that took too much.
const LITTLE_PLAN: u64 = 256 << 10;

/// What a capture may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Threads that read and compress; the writer is another one unless this is 1.
    pub workers: usize,
    /// Bytes for the bits that say which pages are kept; what does not fit is found again by
    /// another scan. 8 MiB are enough for 128 GiB.
    pub plan: u64,
}

impl Budget {
    /// The budget for this machine now: a worker per CPU, as far as a quarter of MemAvailable goes.
    #[must_use]
    pub fn measure() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self::new(cpus, mem_available(&meminfo))
    }

    /// The least that a capture can do with: after an attempt that took too much.
    #[must_use]
    pub fn smallest(self) -> Self {
        Self { workers: 1, plan: self.plan.min(LITTLE_PLAN) }
    }

    fn new(cpus: usize, available: Option<u64>) -> Self {
        let room = (available.unwrap_or(0) / 4).checked_div(BYTES_PER_WORKER).unwrap_or(1);
        let workers = usize::try_from(room).unwrap_or(usize::MAX).min(cpus).clamp(1, 64);
        Self { workers, plan: (available.unwrap_or(0) / 8).min(MOST_FOR_PLAN) }
    }
}

/// `MemAvailable` of `/proc/meminfo` in bytes.
#[must_use]
pub fn mem_available(meminfo: &str) -> Option<u64> {
    kib(meminfo, "MemAvailable:")
}

/// The number behind `key` in a file of `/proc`, in bytes.
fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

/// What the capture costs its kernel, seen from time to time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MemoryUse {
    /// Most memory that was this process's alone (RssAnon and RssShmem), bytes.
    pub peak_own_bytes: u64,
    /// Least MemAvailable, bytes; `None` if nobody looked, or the kernel does not tell.
    pub least_available_bytes: Option<u64>,
}

impl MemoryUse {
    /// Looks at both.
    pub fn look(&mut self) {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let own = |key| kib(&status, key).unwrap_or(0);
        self.peak_own_bytes = self.peak_own_bytes.max(own("RssAnon:").saturating_add(own("RssShmem:")));
        let available = mem_available(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
        self.least_available_bytes = self.least_available_bytes.into_iter().chain(available).min();
    }
}

/// Peak resident memory of this process so far, in bytes (`VmHWM`).
#[must_use]
pub fn peak_memory() -> Option<u64> {
    kib(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_memory_means_one_worker() {
        assert_eq!(mem_available("MemFree: 1 kB\nMemAvailable:   51200 kB\n"), Some(50 << 20));
        assert_eq!(Budget::new(8, Some(50 << 20)).workers, 2);
        assert_eq!(Budget::new(8, Some(1 << 20)).workers, 1);
        assert_eq!(Budget::new(2, Some(8 << 30)).workers, 2);
        assert_eq!(Budget::new(8, None).workers, 1);
    }
}
