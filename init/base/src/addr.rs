//! Addresses and page numbers of the production kernel, each in a type of its own.
//!
//! The types have no `+` and `-`: every step is a named, checked method, because the numbers come
//! from memory that nobody may trust. This module knows no I/O and no kernel structure.

use core::fmt;

/// A physical address of the production kernel, in bytes.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PhysAddr(pub u64);

/// A virtual address of the production kernel, in bytes.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct VirtAddr(pub u64);

/// A page frame number: a physical address divided by the page size.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Pfn(pub u64);

/// The production kernel's page size; a power of two from 4 KiB to 64 KiB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PageSize {
    shift: u32,
}

impl PhysAddr {
    /// The address `bytes` further up, or `None` past 2^64.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl VirtAddr {
    /// The address `bytes` further up, or `None` past 2^64.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl Pfn {
    /// The page `pages` further up; stays at 2^64 - 1 when that would overflow.
    #[must_use]
    pub fn saturating_add(self, pages: u64) -> Self {
        Self(self.0.saturating_add(pages))
    }
}

impl PageSize {
    /// 4 KiB: x86_64 always, aarch64 mostly; also the guess when VMCOREINFO is missing.
    pub const FOUR_KIB: Self = Self { shift: 12 };

    /// The page size of `bytes` bytes, or `None` unless it is a power of two from 4 KiB to 64 KiB
    /// (the sizes that Linux has; `PAGESIZE` in VMCOREINFO).
    #[must_use]
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        let in_range = (4096..=65536).contains(&bytes) && bytes.is_power_of_two();
        in_range.then(|| Self { shift: bytes.trailing_zeros() })
    }

    /// Bytes in a page.
    #[must_use]
    pub fn bytes(self) -> u64 {
        1_u64.wrapping_shl(self.shift)
    }

    /// Bytes in a page, as a length in memory.
    #[must_use]
    pub fn in_memory(self) -> usize {
        1_usize.wrapping_shl(self.shift)
    }

    /// The page that holds `addr`.
    #[must_use]
    pub fn pfn_of(self, addr: PhysAddr) -> Pfn {
        Pfn(addr.0.wrapping_shr(self.shift))
    }

    /// The first address after the last byte of the page that holds `addr - 1`, as a page number:
    /// the half-open end of the pages that a range ending before `addr` touches.
    #[must_use]
    pub fn pfn_end_of(self, addr: PhysAddr) -> Pfn {
        let whole = addr.0.wrapping_shr(self.shift);
        let partial = addr.0 & self.bytes().saturating_sub(1) != 0;
        Pfn(whole.saturating_add(u64::from(partial)))
    }

    /// The first address of `pfn`, or `None` if it does not fit in 64 bits.
    #[must_use]
    pub fn addr_of(self, pfn: Pfn) -> Option<PhysAddr> {
        pfn.0.checked_mul(self.bytes()).map(PhysAddr)
    }
}

/// Pages `start` up to but not including `end`; never empty or reversed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PfnRange {
    start: Pfn,
    end: Pfn,
}

impl PfnRange {
    /// The half-open range `start..end`, or `None` when it holds no page.
    #[must_use]
    pub fn new(start: Pfn, end: Pfn) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    /// The `pages` pages from `start` on; one page if that is 0.
    #[must_use]
    pub fn block(start: Pfn, pages: u64) -> Self {
        Self { start, end: start.saturating_add(pages.max(1)) }
    }

    /// First page.
    #[must_use]
    pub fn start(self) -> Pfn {
        self.start
    }

    /// First page after the range.
    #[must_use]
    pub fn end(self) -> Pfn {
        self.end
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// The pages that both ranges hold.
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Pages in all `ranges`.
    #[must_use]
    pub fn count(ranges: &[Self]) -> u64 {
        ranges.iter().fold(0, |sum, range| sum.saturating_add(range.pages()))
    }

    /// Appends `range`; makes one of it and the last of `ranges` if it begins in that one or right
    /// behind it.
    pub fn append(ranges: &mut Vec<Self>, range: Self) {
        match ranges.last_mut() {
            Some(last) if last.start <= range.start && range.start <= last.end => {
                last.end = last.end.max(range.end);
            }
            _ => ranges.push(range),
        }
    }

    /// Sorts ranges and joins those that touch.
    pub fn sort_and_join(ranges: &mut Vec<Self>) {
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|next, last| {
            let touch = next.start <= last.end;
            if touch {
                last.end = last.end.max(next.end);
            }
            touch
        });
    }

    /// Whether one of sorted, disjoint `ranges` has a page of `pages`.
    #[must_use]
    pub fn touches(ranges: &[Self], pages: Self) -> bool {
        let first = ranges.partition_point(|range| range.end <= pages.start);
        ranges.get(first).is_some_and(|range| range.intersect(pages).is_some())
    }

    /// Whether the range holds `pfn`.
    #[must_use]
    pub fn contains(self, pfn: Pfn) -> bool {
        self.start <= pfn && pfn < self.end
    }
}

impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for PfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// `u64` to `usize`. Lossless on the 64-bit targets that this crate is built for; saturates
/// elsewhere.
#[must_use]
pub fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// `usize` to `u64`. Lossless on every target that Rust has.
#[must_use]
pub fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn page_sizes_are_those_of_linux() {
        for good in [4096, 8192, 16384, 65536] {
            assert_eq!(PageSize::from_bytes(good).unwrap().bytes(), good);
        }
        for bad in [0, 1, 2048, 4097, 131_072, u64::MAX] {
            assert_eq!(PageSize::from_bytes(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn pages_cover_the_bytes(addr: u64, shift in 12_u32..=16) {
            let size = PageSize { shift };
            let pfn = size.pfn_of(PhysAddr(addr));
            let base = size.addr_of(pfn).unwrap();
            prop_assert!(base.0 <= addr && addr - base.0 < size.bytes());
            let end = size.pfn_end_of(PhysAddr(addr));
            prop_assert_eq!(end.0 - pfn.0, u64::from(base.0 != addr));
        }

        #[test]
        fn appended_ranges_hold_each_page_once(
            mut raw in prop::collection::vec((0_u64..60, 1_u64..20), 0..12)
        ) {
            raw.sort_unstable();
            let mut ranges = Vec::new();
            for &(start, pages) in &raw {
                PfnRange::append(&mut ranges, PfnRange::new(Pfn(start), Pfn(start + pages)).unwrap());
            }
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end() < pair[1].start()));
            let inside = |pfn: &u64| raw.iter().any(|&(start, pages)| start <= *pfn && *pfn < start + pages);
            prop_assert_eq!(PfnRange::count(&ranges), to_u64((0..80).filter(inside).count()));
            for pfn in 0..80 {
                prop_assert_eq!(ranges.iter().any(|range| range.contains(Pfn(pfn))), inside(&pfn));
            }
        }

        #[test]
        fn intersection_holds_what_both_hold(
            a in 0_u64..50, b in 0_u64..50, c in 0_u64..50, d in 0_u64..50, p in 0_u64..50
        ) {
            if let (Some(x), Some(y)) = (PfnRange::new(Pfn(a), Pfn(b)), PfnRange::new(Pfn(c), Pfn(d))) {
                let both = x.contains(Pfn(p)) && y.contains(Pfn(p));
                prop_assert_eq!(x.intersect(y).is_some_and(|z| z.contains(Pfn(p))), both);
            }
        }
    }
}
