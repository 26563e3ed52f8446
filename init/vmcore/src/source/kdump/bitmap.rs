//! The two bitmaps of a dump: bitmap 1 has a bit for each page of memory, bitmap 2 one for each
//! page that was kept.
//!
//! Only memory ranges and the prefix counts of bitmap 2 stay in memory (8 bytes per 128 MiB of the
//! old machine).

use std::io;

use crate::format::kdump::Layout;
use crate::source::dumpfile::DumpFile;
use base::addr::{PageSize, Pfn, PfnRange, to_usize};
use base::fields::Fields;
use base::read_at::ReadAt;

/// Most memory ranges that are believed; real machines have tens.
const MAX_RANGES: usize = 1 << 20;
/// Bytes of a bitmap that [`absent`] reads at a time: 512 Ki pages.
const PIECE: u64 = 64 << 10;
/// Pages in a word of a bitmap.
pub(super) const WORD: u64 = 64;

/// What is kept of the bitmaps.
#[derive(Debug, Default)]
pub(super) struct Summary {
    /// Pages of bitmap 1.
    pub(super) ranges: Vec<PfnRange>,
    /// Kept pages before each block of bitmap 2.
    pub(super) ranks: Vec<u64>,
    /// All kept pages.
    pub(super) kept: u64,
}

/// Reads both bitmaps once.
pub(super) fn summarize(file: &DumpFile, layout: &Layout) -> io::Result<Summary> {
    let mut block = vec![0; layout.page_size.in_memory()];
    let mut out = Summary::default();
    let mut runs = Runs::default();
    let end = Pfn(layout.max_mapnr);
    for index in 0..layout.bitmap_blocks {
        read_block(file, layout, layout.bitmap1_offset(), index, &mut block)?;
        let mut first = Pfn(index.saturating_mul(pages_per_block(layout.page_size)));
        for word in words(&block) {
            runs.add(first, mask(word, first, Pfn(0), end), &mut |range| out.ranges.push(range));
            first = first.saturating_add(WORD);
        }
        if out.ranges.len() > MAX_RANGES {
            return Err(io::Error::other(format!("more than {MAX_RANGES} memory ranges")));
        }
        read_block(file, layout, layout.bitmap2_offset(), index, &mut block)?;
        out.ranks.push(out.kept);
        let ones = words(&block).fold(0_u64, |sum, word| sum.saturating_add(u64::from(word.count_ones())));
        out.kept = out.kept.saturating_add(ones);
    }
    runs.finish(end, &mut |range| out.ranges.push(range));
    Ok(out)
}

/// Calls `each` with the runs of pages in `pages` that bitmap 1 has and bitmap 2 has not.
pub(super) fn absent(
    file: &DumpFile,
    layout: &Layout,
    pages: PfnRange,
    each: &mut dyn FnMut(PfnRange),
) -> io::Result<()> {
    let mut runs = Runs::default();
    let end = pages.end().min(Pfn(layout.max_mapnr));
    let mut first = Pfn(pages.start().0 & !WORD.saturating_sub(1));
    let (mut ones, mut twos) = (Vec::new(), Vec::new());
    while first < end {
        let left = end.0.saturating_sub(first.0).div_ceil(WORD).saturating_mul(8);
        let len = to_usize(left.min(PIECE)); // whole words, as a bitmap is whole blocks long
        for (bytes, base) in [(&mut ones, layout.bitmap1_offset()), (&mut twos, layout.bitmap2_offset())] {
            bytes.resize(len, 0);
            read(file, layout, base, first.0 >> 3, bytes)?;
        }
        for (one, two) in words(&ones).zip(words(&twos)) {
            runs.add(first, mask(one & !two, first, pages.start(), end), each);
            first = first.saturating_add(WORD);
        }
    }
    runs.finish(end, each);
    Ok(())
}

/// Reads one block of the bitmap at `base`.
pub(super) fn read_block(
    file: &DumpFile,
    layout: &Layout,
    base: u64,
    index: u64,
    block: &mut [u8],
) -> io::Result<()> {
    read(file, layout, base, index.saturating_mul(layout.page_size.bytes()), block)
}

/// Reads bytes of the bitmap at `base`. Those behind the last page are zero, and need not be in the
/// file: makedumpfile leaves a hole there, which a stream that was cut short cannot be told to
/// have.
fn read(file: &DumpFile, layout: &Layout, base: u64, at: u64, out: &mut [u8]) -> io::Result<()> {
    let real = layout.max_mapnr.div_ceil(8).saturating_sub(at);
    let (real, padding) = out.split_at_mut(to_usize(real).min(out.len()));
    padding.fill(0);
    file.read_whole(real, base.saturating_add(at))
}

/// Pages that a block of a bitmap describes.
pub(super) fn pages_per_block(size: PageSize) -> u64 {
    size.bytes().saturating_mul(8)
}

/// The words of a bitmap; the lowest bit is the first page.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).filter_map(|word| Fields(word).u64(0))
}

/// Clears the bits of a word that begins at `first` outside of `start..end`.
fn mask(word: u64, first: Pfn, start: Pfn, end: Pfn) -> u64 {
    let below = |pfn: Pfn| match u32::try_from(pfn.0.saturating_sub(first.0)) {
        Ok(bits @ 0..64) => 1_u64.wrapping_shl(bits).wrapping_sub(1),
        _ => u64::MAX,
    };
    word & below(end) & !below(start)
}

/// Finds the runs of set bits in words that come in order.
#[derive(Debug, Default)]
struct Runs {
    open: Option<Pfn>,
}

impl Runs {
    fn add(&mut self, first: Pfn, word: u64, each: &mut dyn FnMut(PfnRange)) {
        let mut at = 0_u32;
        while let Some(rest) = word.checked_shr(at) {
            let here = first.saturating_add(u64::from(at));
            match self.open {
                None if rest == 0 => return,
                None => {
                    at = at.saturating_add(rest.trailing_zeros());
                    self.open = Some(first.saturating_add(u64::from(at)));
                }
                Some(_) if rest & 1 == 1 => at = at.saturating_add(rest.trailing_ones()),
                Some(start) => {
                    PfnRange::new(start, here).into_iter().for_each(&mut *each);
                    self.open = None;
                }
            }
        }
    }

    fn finish(self, end: Pfn, each: &mut dyn FnMut(PfnRange)) {
        self.open.and_then(|start| PfnRange::new(start, end)).into_iter().for_each(each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::addr::to_u64;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_the_set_bits(
            raw in prop::collection::vec(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 0..6),
            start in 0_u64..400,
            len in 0_u64..400,
        ) {
            let (start, end) = (Pfn(start), Pfn((start + len).min(to_u64(raw.len()) * 64)));
            let mut found = Vec::new();
            let mut runs = Runs::default();
            for (index, word) in (0_u64..).zip(&raw) {
                let first = Pfn(index * 64);
                runs.add(first, mask(*word, first, start, end), &mut |range| found.push(range));
            }
            runs.finish(end, &mut |range| found.push(range));
            prop_assert!(found.windows(2).all(|pair| pair[0].end() < pair[1].start()));
            for pfn in 0..to_u64(raw.len()) * 64 {
                let set = raw[to_usize(pfn / 64)] >> (pfn % 64) & 1 == 1 && start.0 <= pfn && pfn < end.0;
                prop_assert_eq!(found.iter().any(|range| range.contains(Pfn(pfn))), set, "{}", pfn);
            }
        }
    }
}
