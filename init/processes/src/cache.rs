//! The page cache of a file: pages that are in memory though no process maps them
//! (`address_space.i_pages`, an xarray: include/linux/xarray.h).

use base::addr::{Pfn, VirtAddr};

use crate::system::System;
use crate::tables::Steps;
use crate::xarray;

/// `XA_CHUNK_SHIFT`
const CHUNK_SHIFT: u32 = 6;

/// What the cache has of a file's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// Memory, page by page from here on.
    Page(Pfn),
    /// A page of a tmpfs that is swapped out, or the shadow of one that was dropped.
    Value,
    /// What it has could not be read, or is of another file.
    Lost,
}

/// Pages of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The first one.
    pub index: u64,
    /// How many.
    pub pages: u64,
    /// What the cache has of them.
    pub cached: Cached,
    /// Of pages the `struct page` of the first of those that belong together (the folio): it has their
    /// flags.
    pub folio: Option<VirtAddr>,
}

/// Calls `each` with what the cache of the `address_space` at `mapping` has of the pages from
/// `first` to `behind`, in order.
pub fn walk(
    system: &System<'_>,
    mapping: VirtAddr,
    (first, behind): (u64, u64),
    steps: &Steps,
    each: &mut dyn FnMut(Piece),
) {
    let Ok(head) = system.word(mapping, system.layout.cache.head, "address_space.i_pages") else {
        return each(Piece {
            index: first,
            pages: behind.saturating_sub(first),
            cached: Cached::Lost,
            folio: None,
        });
    };
    let mut walk = Walk { system, mapping, first, behind, each };
    xarray::walk(system, head, (first, behind), steps, &mut |piece| match piece.entry {
        Some(entry) => walk.leaf(entry, piece.index, piece.count),
        None => walk.tell(piece.index, piece.count, Cached::Lost),
    });
}

/// Whether the files of an `address_space` are in memory only: what is not there are zeros.
#[must_use]
pub fn is_tmpfs(system: &System<'_>, mapping: VirtAddr) -> bool {
    let of = system
        .layout
        .cache
        .operations
        .and_then(|offset| system.pointer(mapping, offset, "address_space.a_ops").ok().flatten());
    of.is_some() && of == system.variables.shmem_aops
}

struct Walk<'a, 'b> {
    system: &'a System<'b>,
    mapping: VirtAddr,
    first: u64,
    behind: u64,
    each: &'a mut dyn FnMut(Piece),
}

impl Walk<'_, '_> {
    /// An entry of `pages` pages from `index` on: a page, or the one that heads a huge one; or a value.
    fn leaf(&mut self, entry: u64, index: u64, pages: u64) {
        if entry & 1 != 0 {
            return self.tell(index, pages, Cached::Value);
        }
        let folio = VirtAddr(entry);
        let cached = self.page(folio, index).map_or(Cached::Lost, Cached::Page);
        self.tell_of(index, pages, cached, Some(folio));
    }

    /// The page of index `index` in the folio at `folio`, if that is of this file.
    fn page(&self, folio: VirtAddr, index: u64) -> Option<Pfn> {
        let (system, layout) = (self.system, self.system.layout.folio);
        let ahead = folio.0.checked_sub(system.vmemmap)?;
        let pfn = ahead.checked_div(layout.page_size).filter(|_| ahead.is_multiple_of(layout.page_size))?;
        let of = system.word(folio, layout.mapping, "folio.mapping").ok()?;
        let first = system.word(folio, layout.index, "folio.index").ok()?;
        let inside = index.checked_sub(first).filter(|inside| *inside < 1 << (2 * CHUNK_SHIFT + 6))?;
        let pfn = pfn.checked_add(inside).filter(|_| of == self.mapping.0)?;
        (Pfn(pfn) < system.kernel.memory().max_pfn()).then_some(Pfn(pfn))
    }

    /// Hands out what lies in the range that was asked for.
    fn tell(&mut self, index: u64, pages: u64, cached: Cached) {
        self.tell_of(index, pages, cached, None);
    }

    fn tell_of(&mut self, index: u64, pages: u64, cached: Cached, folio: Option<VirtAddr>) {
        let (start, end) = (index.max(self.first), index.saturating_add(pages).min(self.behind));
        let pages = end.saturating_sub(start);
        if pages == 0 {
            return;
        }
        let cached = match cached {
            Cached::Page(pfn) => Cached::Page(pfn.saturating_add(start.saturating_sub(index))),
            other => other,
        };
        (self.each)(Piece { index: start, pages, cached, folio });
    }
}
