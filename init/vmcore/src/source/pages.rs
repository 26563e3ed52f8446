//! Reading memory out of a vmcore file: by `pread`, or through mapped windows, with the gaps of
//! partly covered pages filled with zeros.

use core::ops::Range;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::source::extents::{self, Extent};
use crate::source::{PageReader, ReadError};
use crate::sys::mmap::Window;
use base::addr::{PageSize, Pfn, PhysAddr, to_u64, to_usize};

/// How page data is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Mapped windows, with `pread` where mapping fails.
    Mmap,
    /// `pread` only: a page at a time in the kernel, so slow, but without any mapping.
    Pread,
}

/// Bytes of memory that one reader maps at a time. Mapping costs the capture kernel a page-table
/// entry per page; from 16 MiB on that no longer shows beside the copy.
const WINDOW: u64 = 16 << 20;
/// Alignment of a window's file offset: the largest page size that Linux has.
const WINDOW_ALIGN: u64 = 64 << 10;
/// Reads pages through a window that moves along with them.
pub(super) struct WindowReader<'a> {
    file: &'a File,
    file_len: u64,
    extents: &'a [Extent],
    page_size: PageSize,
    window: Option<Window>,
    may_map: bool,
}

impl PageReader for WindowReader<'_> {
    fn read_exact_at(&mut self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
        let (extents, page_size) = (self.extents, self.page_size);
        fill(extents, page_size, addr, out, |offset, part| self.read_at(offset, part))
    }

    fn read_page(&mut self, pfn: Pfn, page: &mut [u8]) -> Result<(), ReadError> {
        let addr = self.page_size.addr_of(pfn).ok_or(ReadError::Hole(PhysAddr(u64::MAX)))?;
        self.read_exact_at(addr, page)
    }

    fn expect(&mut self, pfn: Pfn) {
        let Some(addr) = self.page_size.addr_of(pfn) else { return };
        let end = addr.checked_add(self.page_size.bytes()).unwrap_or(addr);
        let place = extents::overlapping(self.extents, addr, end).next();
        if let (Some(window), Some(place)) = (&self.window, place) {
            window.prefetch(place.offset, self.page_size.in_memory());
        }
    }
}

impl<'a> WindowReader<'a> {
    pub(super) fn new(
        file: &'a File,
        file_len: u64,
        extents: &'a [Extent],
        page_size: PageSize,
        access: Access,
    ) -> Self {
        Self { file, file_len, extents, page_size, window: None, may_map: access == Access::Mmap }
    }

    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.may_map {
            if !self.window.as_ref().is_some_and(|window| window.covers(offset, out.len())) {
                self.window = None; // unmap first: one window per reader at any time
                self.move_window(offset, out.len());
            }
            if let Some(window) = &self.window {
                let copied = window.copy_out(offset, out);
                return copied.map_err(|_| {
                    self.window = None;
                    io::Error::other("the page cannot be read (SIGBUS)")
                });
            }
        }
        self.file.read_exact_at(out, offset)
    }

    /// Maps the window that starts at or before `offset`; leaves none if that fails.
    fn move_window(&mut self, offset: u64, len: usize) {
        let start = offset
            .checked_next_multiple_of(WINDOW_ALIGN)
            .map_or(offset, |up| if up == offset { offset } else { up.saturating_sub(WINDOW_ALIGN) });
        let end = start.saturating_add(WINDOW).max(offset.saturating_add(to_u64(len))).min(self.file_len);
        match Window::map(self.file, start, to_usize(end.saturating_sub(start))) {
            Ok(window) => self.window = window.covers(offset, len).then_some(window),
            Err(error) => {
                log::warn!(
                    "mapping {} MiB of the vmcore at {start:#x}: {error}; reading instead",
                    WINDOW >> 20
                );
                self.may_map = false;
            }
        }
    }
}

/// Fills `out` from the extents: bytes of a page that no extent holds are zero if the page has
/// others.
pub(super) fn fill(
    extents: &[Extent],
    size: PageSize,
    addr: PhysAddr,
    out: &mut [u8],
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<(), ReadError> {
    let end = addr.checked_add(to_u64(out.len())).ok_or(ReadError::Hole(addr))?;
    let mut at = addr;
    for extent in extents::overlapping(extents, addr, end) {
        zero_gap(extents, size, addr, at..extent.start, out)?;
        let part = slice(addr, extent.start, extent.end, out);
        let len = part.len();
        read(extent.offset, part).map_err(|source| ReadError::Io { addr: extent.start, len, source })?;
        at = extent.end;
    }
    zero_gap(extents, size, addr, at..end, out)
}

/// Zeroes `gap`, which no extent holds, in `out`, provided that every page in it has bytes in an
/// extent.
fn zero_gap(
    extents: &[Extent],
    size: PageSize,
    base: PhysAddr,
    gap: Range<PhysAddr>,
    out: &mut [u8],
) -> Result<(), ReadError> {
    if gap.is_empty() {
        return Ok(());
    }
    // Ends at the first page that lies inside the gap, so this looks at three pages at most.
    for pfn in size.pfn_of(gap.start).0..size.pfn_end_of(gap.end).0 {
        let start = size.addr_of(Pfn(pfn)).unwrap_or(gap.start);
        let end = start.checked_add(size.bytes()).unwrap_or(PhysAddr(u64::MAX));
        if extents::overlapping(extents, start, end).next().is_none() {
            return Err(ReadError::Hole(start.max(gap.start)));
        }
    }
    slice(base, gap.start, gap.end, out).fill(0);
    Ok(())
}

fn slice(base: PhysAddr, from: PhysAddr, to: PhysAddr, out: &mut [u8]) -> &mut [u8] {
    let at = |addr: PhysAddr| to_usize(addr.0.saturating_sub(base.0));
    out.get_mut(at(from)..at(to)).unwrap_or_default()
}
