//! What the page cache has of a file.

use ::processes::cache::{self, Cached, Piece};
use ::processes::system::System;
use ::processes::tables::Steps;
use base::addr::{Pfn, VirtAddr, to_u64, to_usize};

use super::Stop;

pub(super) const PAGE: u64 = 4096;

/// Takes the bytes at a place in a file.
type Take<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Stop> + 'a;

/// Calls `each` with the pages that are there, up to the file's size in bytes, and where in the file they
/// are. Returns the number of pages that are not to be had.
pub(super) fn read(
    system: &System<'_>,
    pieces: &[Piece],
    size: u64,
    each: &mut Take<'_>,
) -> Result<u64, Stop> {
    let memory = system.kernel.memory();
    let mut missing = 0_u64;
    for piece in pieces {
        let Cached::Page(first) = piece.cached else {
            missing = missing.saturating_add(piece.pages);
            continue;
        };
        for number in 0..piece.pages {
            let index = piece.index.saturating_add(number);
            let at = index.saturating_mul(PAGE);
            let len = to_usize(size.saturating_sub(at).min(PAGE));
            let mut page = [0; 4096];
            let Some(page) = page.get_mut(..len).filter(|page| !page.is_empty()) else { continue };
            let from = memory.page_size().addr_of(Pfn(first.0.saturating_add(number)));
            if from.is_none_or(|from| memory.read_exact_at(from, page).is_err()) {
                missing = missing.saturating_add(1);
                continue;
            }
            each(at, page)?;
        }
    }
    Ok(missing)
}

/// The first `size` bytes of the file whose `address_space` lies at `mapping`, with zeros where nothing is
/// there; and how many pages are missing.
pub(super) fn whole(
    system: &System<'_>,
    mapping: VirtAddr,
    size: usize,
    steps: &Steps,
) -> Result<(Vec<u8>, u64), Stop> {
    let mut pieces = Vec::new();
    cache::walk(system, mapping, (0, to_u64(size).div_ceil(PAGE)), steps, &mut |piece| pieces.push(piece));
    let mut bytes = vec![0; size];
    let missing = read(system, &pieces, to_u64(size), &mut |at, page| {
        let end = to_usize(at).saturating_add(page.len());
        if let Some(target) = bytes.get_mut(to_usize(at)..end) {
            target.copy_from_slice(page);
        }
        Ok(())
    })?;
    let there = pieces.iter().fold(0_u64, |sum, piece| sum.saturating_add(piece.pages));
    // Pages that the cache does not have at all.
    let lacking = to_u64(size).div_ceil(PAGE).saturating_sub(there);
    Ok((bytes, missing.saturating_add(lacking)))
}
