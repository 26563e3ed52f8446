//! The kernel's own opinion on every page frame: `/proc/kpageflags` as it was right before the
//! panic.

use anyhow::{Context, Result};
use std::fs;
use std::ops::Range;
use std::path::Path;

/// Bits of a word in `/proc/kpageflags` (include/uapi/linux/kernel-page-flags.h and
/// include/linux/kernel-page-flags.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the kernel's, without KPF_")]
pub enum Flag {
    Lru = 5,
    Slab = 7,
    Buddy = 10,
    Anon = 12,
    SwapCache = 13,
    SwapBacked = 14,
    CompoundHead = 15,
    CompoundTail = 16,
    Huge = 17,
    HwPoison = 19,
    NoPage = 20,
    Ksm = 21,
    Thp = 22,
    Offline = 23,
    PgTable = 26,
    Reserved = 32,
    Private = 35,
}

/// The flags of one page frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u64);

impl Flags {
    const NO_PAGE: Self = Self(1 << 20);

    /// Whether a flag is set.
    #[must_use]
    pub const fn has(self, flag: Flag) -> bool {
        #[expect(clippy::as_conversions, reason = "an enum's number, which no trait gives")]
        let bit = flag as u32;
        self.0 & 1_u64.wrapping_shl(bit) != 0
    }
}

/// The flags of all page frames.
#[derive(Clone, Debug)]
pub struct PageFlags {
    own: Vec<Flags>,
    head: Vec<Flags>,
}

impl PageFlags {
    /// Reads a copy of `/proc/kpageflags`.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self::parse(&bytes))
    }

    /// A word of eight bytes per page frame, of this machine's order; a broken last one is left
    /// out.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let (words, _) = bytes.as_chunks();
        let own: Vec<_> = words.iter().map(|word| Flags(u64::from_ne_bytes(*word))).collect();
        let mut last = Flags::NO_PAGE;
        let head = own.iter().map(|flags| {
            if !flags.has(Flag::CompoundTail) {
                last = *flags;
            }
            last
        });
        Self { head: head.collect(), own }
    }

    /// The flags of a page frame; beyond the end it does not exist.
    #[must_use]
    pub fn of(&self, pfn: u64) -> Flags {
        at(&self.own, pfn)
    }

    /// The flags of the page that a filter judges `pfn` by: of a tail page those of its head.
    #[must_use]
    pub fn of_head(&self, pfn: u64) -> Flags {
        at(&self.head, pfn)
    }

    /// All page frames there are flags of.
    #[must_use]
    pub fn pfns(&self) -> Range<u64> {
        0..u64::try_from(self.own.len()).unwrap_or(u64::MAX)
    }
}

fn at(flags: &[Flags], pfn: u64) -> Flags {
    let index = usize::try_from(pfn).unwrap_or(usize::MAX);
    flags.get(index).copied().unwrap_or(Flags::NO_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_apart_and_tails_find_their_head() {
        let head = (1 << 15) | (1 << 12);
        let words = [0, head, 1 << 16, 1 << 16, 1_u64 << 10];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).chain([1, 2]).collect();
        let flags = PageFlags::parse(&bytes);
        assert_eq!(flags.pfns(), 0..5);
        assert!(flags.of(4).has(Flag::Buddy) && !flags.of(4).has(Flag::Anon));
        assert!(flags.of_head(3).has(Flag::Anon) && !flags.of(3).has(Flag::Anon));
        assert!(!flags.of_head(4).has(Flag::Anon));
        assert!(flags.of(5).has(Flag::NoPage));
    }
}
