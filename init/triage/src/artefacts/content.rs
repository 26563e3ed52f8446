//! What the page cache has of a file.

use ::processes::cache::{self, Cached, Piece};
use ::processes::system::System;
use ::processes::tables::Steps;
use base::addr::{Pfn, VirtAddr, to_u64, to_usize};

pub(super) const PAGE: u64 = 4096;

/// A page of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct FilePage {
    /// Where in the file it begins.
    pub(super) at: u64,
    /// Where it lies in memory.
    pub(super) pfn: Pfn,
    /// How many of its bytes belong to the file.
    pub(super) bytes: usize,
}

impl FilePage {
    /// Its bytes, if they can be read.
    pub(super) fn read<'b>(&self, system: &System<'_>, buffer: &'b mut [u8; 4096]) -> Option<&'b [u8]> {
        let memory = system.kernel.memory();
        let page = buffer.get_mut(..self.bytes)?;
        memory.read_exact_at(memory.page_size().addr_of(self.pfn)?, page).ok()?;
        Some(page)
    }
}

/// The pages that are in memory, up to the file's size in bytes, and the number of those that are not.
pub(super) fn pages(pieces: &[Piece], size: u64) -> (Vec<FilePage>, u64) {
    let (mut pages, mut missing) = (Vec::new(), 0_u64);
    for piece in pieces {
        let Cached::Page(first) = piece.cached else {
            missing = missing.saturating_add(piece.pages);
            continue;
        };
        for number in 0..piece.pages {
            let at = piece.index.saturating_add(number).saturating_mul(PAGE);
            let bytes = to_usize(size.saturating_sub(at).min(PAGE));
            if bytes == 0 {
                break;
            }
            pages.push(FilePage { at, pfn: Pfn(first.0.saturating_add(number)), bytes });
        }
    }
    (pages, missing)
}

/// The first `size` bytes of the file whose `address_space` lies at `mapping`, with zeros where nothing is
/// there; and how many pages are missing.
pub(super) fn whole(system: &System<'_>, mapping: VirtAddr, size: usize, steps: &Steps) -> (Vec<u8>, u64) {
    let mut pieces = Vec::new();
    cache::walk(system, mapping, (0, to_u64(size).div_ceil(PAGE)), steps, &mut |piece| pieces.push(piece));
    let mut bytes = vec![0; size];
    let (pages, mut missing) = pages(&pieces, to_u64(size));
    for page in &pages {
        let mut buffer = [0; 4096];
        let place = bytes.get_mut(to_usize(page.at)..to_usize(page.at).saturating_add(page.bytes));
        match (place, page.read(system, &mut buffer)) {
            (Some(place), Some(read)) => place.copy_from_slice(read),
            _ => missing = missing.saturating_add(1),
        }
    }
    let there = pieces.iter().fold(0_u64, |sum, piece| sum.saturating_add(piece.pages));
    // Pages that the cache does not have at all.
    let lacking = to_u64(size).div_ceil(PAGE).saturating_sub(there);
    (bytes, missing.saturating_add(lacking))
}
