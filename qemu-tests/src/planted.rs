//! What a production system planted in memory that a page filter has an opinion on, and where: the
//! list that PID 1 writes right before the panic, and the page frames in it.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::ops::Range;
use std::str::FromStr;

/// What the production system plants on request (`prod.plant=a,b,c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plant {
    /// Private anonymous memory in base pages.
    Anonymous,
    /// A file on a tmpfs, mapped.
    Tmpfs,
    /// A file read from the disk, mapped: page cache without private data.
    Cache,
    /// A file written to the disk, mapped: page cache with buffers attached (PG_private), clean.
    CachePrivate,
    /// Anonymous memory in transparent huge pages.
    Thp,
    /// Anonymous memory in hugetlb pages of 2 MiB.
    Hugetlb,
    /// Anonymous memory in a hugetlb page of 1 GiB.
    Hugetlb1g,
    /// Anonymous memory merged by KSM.
    Ksm,
    /// Anonymous memory that was swapped out to the disk and read again: also in the swap cache.
    Swapped,
    /// What the kernel read from the swap file beside it: in the swap cache, and nobody's yet.
    SwapReadahead,
    /// Memory that was filled and given back, as far as it lies in the buddy allocator.
    Freed,
    /// Anonymous memory that was declared broken.
    Poisoned,
    /// Names in the directory cache. Where they are is found by their content.
    Slab,
    /// Blocks of a zram disk, stored uncompressed. Where they are is found by their content.
    Zram,
    /// A memory block that was taken offline; no marker in it.
    Offline,
}

impl Plant {
    /// Every one there is.
    pub const ALL: [Self; 15] = [
        Self::Anonymous,
        Self::Tmpfs,
        Self::Cache,
        Self::CachePrivate,
        Self::Thp,
        Self::Hugetlb,
        Self::Hugetlb1g,
        Self::Ksm,
        Self::Swapped,
        Self::SwapReadahead,
        Self::Freed,
        Self::Poisoned,
        Self::Slab,
        Self::Zram,
        Self::Offline,
    ];

    /// Whether the production system cannot tell where it is: the kernel keeps it in memory of its
    /// own.
    #[must_use]
    pub const fn found_by_content(self) -> bool {
        matches!(self, Self::Slab | Self::Zram)
    }
}

impl Display for Plant {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Anonymous => "anon",
            Self::Tmpfs => "tmpfs-file",
            Self::Cache => "cache",
            Self::CachePrivate => "cache-private",
            Self::Thp => "thp",
            Self::Hugetlb => "hugetlb",
            Self::Hugetlb1g => "hugetlb-1g",
            Self::Ksm => "ksm",
            Self::Swapped => "swapped",
            Self::SwapReadahead => "swap-readahead",
            Self::Freed => "freed",
            Self::Poisoned => "poisoned",
            Self::Slab => "slab",
            Self::Zram => "zram",
            Self::Offline => "offline",
        })
    }
}

impl FromStr for Plant {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|plant| plant.to_string() == name);
        found.with_context(|| format!("nothing called {name:?} can be planted"))
    }
}

/// Page frames in ranges, in ascending order, merged where they touch.
#[must_use]
pub fn ranges(mut pfns: Vec<u64>) -> Vec<Range<u64>> {
    pfns.sort_unstable();
    pfns.dedup();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for pfn in pfns {
        let next = pfn.saturating_add(1);
        match ranges.last_mut() {
            Some(last) if last.end == pfn => last.end = next,
            _ => ranges.push(pfn..next),
        }
    }
    ranges
}

/// How many pages ranges hold together.
#[must_use]
pub fn pages(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().fold(0, |sum, range| sum.saturating_add(range.end.saturating_sub(range.start)))
}

/// What was planted where. As text a line per range: `KIND start_pfn pages`, decimal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planted(pub BTreeMap<Plant, Vec<Range<u64>>>);

impl Planted {
    /// Adds the page frames of a kind.
    pub fn add(&mut self, plant: Plant, pfns: Vec<u64>) {
        self.0.entry(plant).or_default().extend(ranges(pfns));
    }

    /// The ranges of a kind; none when it was not planted.
    #[must_use]
    pub fn of(&self, plant: Plant) -> &[Range<u64>] {
        self.0.get(&plant).map_or(&[], Vec::as_slice)
    }

    /// The pages of a kind.
    pub fn pfns(&self, plant: Plant) -> impl Iterator<Item = u64> {
        self.of(plant).iter().cloned().flatten()
    }
}

impl Display for Planted {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (plant, ranges) in &self.0 {
            for range in ranges {
                writeln!(f, "{plant} {} {}", range.start, range.end.saturating_sub(range.start))?;
            }
        }
        Ok(())
    }
}

impl FromStr for Planted {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut planted = Self::default();
        for line in text.lines() {
            let [plant, start, pages] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                bail!("{line:?} is not of the form KIND start_pfn pages")
            };
            let context = || format!("reading {line:?}");
            let (start, pages): (u64, u64) =
                (start.parse().with_context(context)?, pages.parse().with_context(context)?);
            let end = start.checked_add(pages).with_context(context)?;
            planted.0.entry(plant.parse()?).or_default().push(start..end);
        }
        Ok(planted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_read_back() {
        for plant in Plant::ALL {
            assert_eq!(plant.to_string().parse::<Plant>().unwrap(), plant);
        }
        assert!("potatoes".parse::<Plant>().is_err());
    }

    #[test]
    fn a_list_survives_text() {
        let mut planted = Planted::default();
        planted.add(Plant::Ksm, vec![9, 3, 4, 4, 5]);
        planted.add(Plant::Thp, vec![512]);
        assert_eq!(planted.of(Plant::Ksm), [3..6, 9..10]);
        assert_eq!(pages(planted.of(Plant::Ksm)), 4);
        assert_eq!(planted.to_string(), "thp 512 1\nksm 3 3\nksm 9 1\n");
        assert_eq!(planted.to_string().parse::<Planted>().unwrap(), planted);
        assert!("thp 1".parse::<Planted>().is_err());
        assert!("thp 1 x".parse::<Planted>().is_err());
        assert!(format!("thp {} 2", u64::MAX).parse::<Planted>().is_err());
        assert_eq!(planted.of(Plant::Slab), []);
    }
}
