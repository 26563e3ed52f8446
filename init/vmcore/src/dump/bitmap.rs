//! The bitmaps of a dump, a block at a time: bit `pfn & 7` of byte `pfn / 8`, lowest first.

use core::ops::Range;

use base::addr::{Pfn, PfnRange, to_u64, to_usize};

/// Fills `block`, whose first bit is page `first`, from sorted `ranges`.
pub(super) fn fill(ranges: &[PfnRange], first: Pfn, block: &mut [u8]) {
    block.fill(0);
    set(ranges, first, block);
}

/// Sets the bits of sorted `ranges`.
pub(super) fn set(ranges: &[PfnRange], first: Pfn, block: &mut [u8]) {
    each(ranges, first, block, |byte, mask| *byte |= mask);
}

/// Clears the bits that `other` does not have.
pub(super) fn intersect(block: &mut [u8], other: &[u8]) {
    block.iter_mut().zip(other).for_each(|(byte, other)| *byte &= other);
}

/// Clears the bits that `other` has.
pub(super) fn subtract(block: &mut [u8], other: &[u8]) {
    block.iter_mut().zip(other).for_each(|(byte, other)| *byte &= !other);
}

/// Clears the bits of sorted `ranges`.
pub(super) fn clear(ranges: &[PfnRange], first: Pfn, block: &mut [u8]) {
    each(ranges, first, block, |byte, mask| *byte &= !mask);
}

/// Number of bits that are set.
pub(super) fn count(block: &[u8]) -> u64 {
    block.iter().fold(0, |sum, byte| sum.saturating_add(u64::from(byte.count_ones())))
}

/// Number of bits that are set from bit `from` up to, not including, bit `to`.
pub(super) fn count_between(block: &[u8], from: u64, to: u64) -> u64 {
    let (first, last) = (to_usize(from >> 3), to_usize(to >> 3));
    let below = |byte: usize, bit: u64| {
        let mask = !0xff_u8.wrapping_shl(low32(bit & 7));
        block.get(byte).map_or(0, |byte| u64::from((byte & mask).count_ones()))
    };
    let whole = block.get(first..last).unwrap_or_default();
    count(whole).saturating_add(below(last, to)).saturating_sub(below(first, from))
}

/// Whether the bit of `pfn` is set.
pub(super) fn get(block: &[u8], first: Pfn, pfn: Pfn) -> bool {
    let bit = pfn.0.saturating_sub(first.0);
    block.get(to_usize(bit >> 3)).is_some_and(|byte| byte >> (bit & 7) & 1 == 1)
}

/// The runs of bits that are set.
pub(super) fn runs(block: &[u8], first: Pfn) -> impl Iterator<Item = PfnRange> + '_ {
    let mut at = 0;
    core::iter::from_fn(move || {
        let run = next_run(block, at)?;
        at = run.end;
        PfnRange::new(first.saturating_add(run.start), first.saturating_add(run.end))
    })
}

/// Appends the next runs from bit `at` on to `out`, at most `most` pages, and moves `at` behind
/// them; says how many pages these are, or `None` if no bit is left.
pub(super) fn take_runs(
    block: &[u8],
    first: Pfn,
    at: &mut u64,
    limit: u64,
    out: &mut Vec<PfnRange>,
) -> Option<u64> {
    let mut taken = 0_u64;
    while taken < limit
        && let Some(run) = next_run(block, *at)
    {
        let end = run.end.min(run.start.saturating_add(limit.saturating_sub(taken)));
        out.extend(PfnRange::new(first.saturating_add(run.start), first.saturating_add(end)));
        taken = taken.saturating_add(end.saturating_sub(run.start));
        *at = end;
    }
    (taken > 0).then_some(taken)
}

/// The first run of set bits from bit `from` on.
fn next_run(block: &[u8], from: u64) -> Option<Range<u64>> {
    let bits = to_u64(block.len()).saturating_mul(8);
    let start = first_bit(block, from, false).filter(|&start| start < bits)?;
    Some(start..first_bit(block, start, true).unwrap_or(bits))
}

/// The first bit from `from` on that is set, or clear if the bits are to be taken `inverted`.
fn first_bit(block: &[u8], from: u64, inverted: bool) -> Option<u64> {
    let skip = from & !63;
    let words = block.get(to_usize(skip >> 3)..)?.chunks(8).zip((skip..).step_by(64));
    words.into_iter().find_map(|(bytes, at)| {
        let mut word = [if inverted { 0xff } else { 0 }; 8];
        word.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        let word = if inverted { !word } else { word };
        // Of the first word, the bits from `from` on.
        let word = if at < from { word & u64::MAX.wrapping_shl(low32(from & 63)) } else { word };
        (word != 0).then(|| at.saturating_add(u64::from(word.trailing_zeros())))
    })
}

/// Calls `change` for each byte that has bits of `ranges`, with the mask of these.
fn each(ranges: &[PfnRange], first: Pfn, block: &mut [u8], change: impl Fn(&mut u8, u8)) {
    let bits = to_u64(block.len()).saturating_mul(8);
    let Some(window) = PfnRange::new(first, first.saturating_add(bits)) else { return };
    let skip = ranges.partition_point(|range| range.end() <= first);
    for part in ranges.iter().skip(skip).map_while(|range| range.intersect(window)) {
        let bit = |pfn: Pfn| pfn.0.saturating_sub(first.0);
        each_byte(block, bit(part.start()), bit(part.end()), &change);
    }
}

/// Bits `from..to`, a byte at a time.
fn each_byte(block: &mut [u8], from: u64, to: u64, change: impl Fn(&mut u8, u8)) {
    let (first, last) = (to_usize(from >> 3), to_usize(to >> 3));
    let head = 0xff_u8.wrapping_shl(low32(from & 7));
    let tail = !0xff_u8.wrapping_shl(low32(to & 7));
    if first == last {
        return block.get_mut(first).into_iter().for_each(|byte| change(byte, head & tail));
    }
    block.get_mut(first).into_iter().for_each(|byte| change(byte, head));
    let whole = block.get_mut(first.saturating_add(1)..last).unwrap_or_default();
    for byte in whole {
        change(byte, 0xff);
    }
    block.get_mut(last).into_iter().for_each(|byte| change(byte, tail));
}

/// The low 32 bits of a number below 64.
fn low32(small: u64) -> u32 {
    u32::try_from(small).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bit_is_set_exactly_for_the_pages_of_the_ranges(
            cuts in prop::collection::btree_set(0_u64..400, 0..12),
            first in (0_u64..4).prop_map(|n| n * 128),
        ) {
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let ranges: Vec<_> =
                cuts.chunks_exact(2).filter_map(|pair| PfnRange::new(Pfn(pair[0]), Pfn(pair[1]))).collect();
            let mut block = [0xaa; 16];
            fill(&ranges, Pfn(first), &mut block);
            for bit in 0..128 {
                let pfn = first + bit;
                let got = block[usize::try_from(bit / 8).unwrap()] >> (bit % 8) & 1 == 1;
                prop_assert_eq!(got, ranges.iter().any(|range| range.contains(Pfn(pfn))), "page {}", pfn);
                prop_assert_eq!(got, get(&block, Pfn(first), Pfn(pfn)));
            }
            let inside: Vec<u64> =
                (first..first + 128)
                    .filter(|pfn| ranges.iter().any(|range| range.contains(Pfn(*pfn))))
                    .collect();
            let pages = |runs: &[PfnRange]| -> Vec<u64> {
                runs.iter().flat_map(|run| run.start().0..run.end().0).collect()
            };
            prop_assert_eq!(pages(&runs(&block, Pfn(first)).collect::<Vec<_>>()), inside.clone());
            prop_assert_eq!(count(&block), inside.len() as u64);
            for (from, to) in [(0, 128), (3, 3), (5, 64), (17, 18), (63, 127)] {
                let expected = inside.iter().filter(|pfn| (first + from..first + to).contains(pfn)).count();
                prop_assert_eq!(count_between(&block, from, to), expected as u64, "{}..{}", from, to);
            }
            let (mut at, mut taken) = (0, Vec::new());
            while let Some(pages) = take_runs(&block, Pfn(first), &mut at, 7, &mut taken) {
                prop_assert!(pages <= 7);
            }
            prop_assert_eq!(pages(&taken), inside);
            clear(&ranges, Pfn(first), &mut block);
            prop_assert_eq!(block, [0; 16]);
        }
    }
}
