//! How large a dump can get, from what the memory of the running kernel is used for now.

use base::config::Exclude;
use base::facts::parse_iomem;

const PAGE: u64 = 4096;
/// Bytes of a page descriptor in a kdump file (page_desc_t of makedumpfile and crash).
const DESCRIPTOR: u64 = 24;

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that the firmware calls RAM.
    pub ram: u64,
    /// Free pages.
    pub free: u64,
    /// Page cache and buffers.
    pub cache: u64,
    /// Anonymous pages of processes.
    pub anonymous: u64,
}

impl Memory {
    /// Reads /proc/meminfo and /proc/iomem. MemTotal lacks the kernel and its struct pages, which a
    /// dump has; it stands in where iomem shows no addresses.
    #[must_use]
    pub fn parse(meminfo: &str, iomem: &str) -> Option<Self> {
        let kib = |key: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
        };
        let ranges = parse_iomem(iomem);
        let ram = ranges.iter().filter(|range| range.kind == "System RAM");
        let ram: u64 = ram
            .map(|range| range.last.saturating_sub(range.start).saturating_add(1))
            .fold(0, u64::saturating_add);
        let or_none = |key| kib(key).unwrap_or(0);
        Some(Self {
            ram: ram.max(kib("MemTotal")?),
            free: or_none("MemFree"),
            cache: or_none("Cached").saturating_add(or_none("Buffers")),
            anonymous: or_none("AnonPages"),
        })
    }

    /// Most bytes that a dump of this memory takes: no page compresses, none is zero. meminfo does
    /// not tell cache with private data from other cache, so only leaving out both counts.
    #[must_use]
    pub fn bound(&self, exclude: Exclude) -> u64 {
        let left_out = [
            (exclude.free(), self.free),
            (exclude.private_cache(), self.cache),
            (exclude.user(), self.anonymous),
        ];
        let left_out = left_out.iter().filter(|(is_out, _)| *is_out).map(|(_, bytes)| *bytes);
        let data = self.ram.saturating_sub(left_out.fold(0, u64::saturating_add));
        let bitmaps = (self.ram / PAGE / 8).saturating_mul(2);
        data.saturating_add((data / PAGE).saturating_mul(DESCRIPTOR)).saturating_add(bitmaps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::config::DumpLevel;

    const MEMINFO: &str = "MemTotal:  1000 kB\nMemFree: 100 kB\nMemAvailable: 800 kB\nBuffers: 10 \
                           kB\nCached: 190 kB\n\
                           SwapCached: 77 kB\nAnonPages: 300 kB\n";

    #[test]
    fn iomem_tells_more_than_meminfo() {
        let memory = Memory { ram: 1000 << 10, free: 100 << 10, cache: 200 << 10, anonymous: 300 << 10 };
        assert_eq!(Memory::parse(MEMINFO, ""), Some(memory));
        assert_eq!(Memory::parse(MEMINFO, "00000000-00000000 : System RAM\n"), Some(memory));
        let iomem = "00001000-000fffff : System RAM\n  00002000-00003000 : Kernel code\n00100000-001fffff : \
                     Reserved\n\
                     00200000-002fffff : System RAM\n";
        assert_eq!(Memory::parse(MEMINFO, iomem).unwrap().ram, 0x1ff << 12);
        assert_eq!(Memory::parse("", iomem), None);
    }

    #[test]
    fn each_level_has_its_bound() {
        let memory = Memory { ram: 800 << 20, free: 400 << 20, cache: 200 << 20, anonymous: 100 << 20 };
        let bound = |level| memory.bound(DumpLevel::new(level).unwrap().into());
        let bitmaps = 2 * (800 << 20) / 4096 / 8;
        for (level, mib) in [(0, 800), (1, 800), (3, 800), (5, 600), (8, 700), (16, 400), (31, 100)] {
            let pages: u64 = (mib << 20) / 4096;
            assert_eq!(bound(level), pages * 4096 + pages * 24 + bitmaps, "{level}");
        }
    }
}
