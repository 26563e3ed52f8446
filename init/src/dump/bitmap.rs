//! The bitmaps of a dump, a block at a time: bit `pfn & 7` of byte `pfn / 8`, lowest first.

use crate::addr::{Pfn, PfnRange, to_u64, to_usize};

/// Fills `block`, whose first bit is page `first`, from sorted `ranges`.
pub(super) fn fill(ranges: &[PfnRange], first: Pfn, block: &mut [u8]) {
    block.fill(0);
    let bits = to_u64(block.len()).saturating_mul(8);
    let Some(window) = PfnRange::new(first, first.saturating_add(bits)) else { return };
    let skip = ranges.partition_point(|range| range.end() <= first);
    for part in ranges.iter().skip(skip).map_while(|range| range.intersect(window)) {
        let bit = |pfn: Pfn| pfn.0.saturating_sub(first.0);
        set(block, bit(part.start()), bit(part.end()));
    }
}

/// Sets bits `from..to`.
fn set(block: &mut [u8], from: u64, to: u64) {
    let (first, last) = (to_usize(from >> 3), to_usize(to >> 3));
    let head = 0xff_u8.wrapping_shl(u32::try_from(from & 7).unwrap_or(0));
    let tail = !0xff_u8.wrapping_shl(u32::try_from(to & 7).unwrap_or(0));
    if first == last {
        if let Some(byte) = block.get_mut(first) {
            *byte |= head & tail;
        }
        return;
    }
    if let Some(byte) = block.get_mut(first) {
        *byte |= head;
    }
    if let Some(bytes) = block.get_mut(first.saturating_add(1)..last) {
        bytes.fill(0xff);
    }
    if let Some(byte) = block.get_mut(last) {
        *byte |= tail;
    }
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
            }
        }
    }
}
