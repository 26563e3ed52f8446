//! One bit per page frame, as it stands in a kdump-compressed file.

use crate::planted;
use std::ops::Range;

/// A set of page frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bitmap(Vec<u8>);

impl Bitmap {
    /// From bytes whose lowest bit is the first page frame.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Its bytes, as they stand in the file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether a page frame is in it.
    #[must_use]
    pub fn contains(&self, pfn: u64) -> bool {
        let byte = usize::try_from(pfn >> 3).ok().and_then(|index| self.0.get(index));
        byte.is_some_and(|byte| byte.wrapping_shr(u32::try_from(pfn & 7).unwrap_or_default()) & 1 != 0)
    }

    /// All page frames in it.
    pub fn pfns(&self) -> impl Iterator<Item = u64> {
        let bytes = (0_u64..).step_by(8).zip(&self.0).filter(|(_, byte)| **byte != 0);
        bytes.flat_map(|(start, _)| start..start.saturating_add(8)).filter(|pfn| self.contains(*pfn))
    }

    /// How many page frames are in it.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, byte| sum.saturating_add(byte.count_ones().into()))
    }

    /// How many page frames of some ranges are in it.
    #[must_use]
    pub fn count_in(&self, ranges: &[Range<u64>]) -> u64 {
        let found = ranges.iter().cloned().flatten().filter(|pfn| self.contains(*pfn)).count();
        u64::try_from(found).unwrap_or(u64::MAX)
    }

    /// The page frames in it that are not in another.
    #[must_use]
    pub fn without(&self, other: &Self) -> Vec<Range<u64>> {
        planted::ranges(self.pfns().filter(|pfn| !other.contains(*pfn)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_counted_from_the_lowest() {
        let bitmap = Bitmap::new(vec![0b1000_0001, 0, 0b11]);
        assert_eq!(bitmap.pfns().collect::<Vec<_>>(), [0, 7, 16, 17]);
        assert_eq!(bitmap.count(), 4);
        assert!(!bitmap.contains(24) && !bitmap.contains(u64::MAX));
        assert_eq!(bitmap.count_in(&[0..8, 17..100]), 3);
    }

    #[test]
    fn differences_are_ranges() {
        let many = Bitmap::new(vec![0xff, 0x01]);
        let few = Bitmap::new(vec![0b0001_0000]);
        assert_eq!(many.without(&few), [0..4, 5..9]);
        assert_eq!(few.without(&many), []);
    }
}
