//! A kdump-compressed dump as physical memory again, to look into it and to filter or convert it:
//! plain or flattened, in one file or split, with any compression that the format has.

mod bitmap;
mod copy;
mod cursor;
mod set;
#[cfg(test)]
mod tests;
mod unpack;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::format::kdump::{self, Header, Layout, PageDesc};
use crate::format::{flattened, vmcoreinfo::VmcoreInfo};
use crate::sink::Sink;
use crate::source::dumpfile::DumpFile;
use crate::source::extents::Anomaly;
use crate::source::notes::NoteIndex;
use crate::source::{Core, LeftOut, PageReader, PhysicalMemory, ReadError};
use base::addr::{PageSize, Pfn, PfnRange, PhysAddr, VirtAddr, to_u64, to_usize};
use base::lock::lock;
use base::read_at::ReadAt;

pub use copy::CopyError;
pub use set::{KdumpFault, KdumpOpenError};

use cursor::{Cursor, Reader};
use set::Part;

/// Cursors that are kept for [`PhysicalMemory::read_exact_at`]: as many as threads that look things
/// up at a time.
const MAX_IDLE: usize = 16;

/// An open dump.
#[derive(Debug)]
pub struct Kdump {
    /// Sorted by their pages; at least one.
    parts: Vec<Part>,
    is_split: bool,
    layout: Layout,
    header: Header,
    info: VmcoreInfo,
    notes: NoteIndex,
    anomalies: Vec<Anomaly>,
    bitmaps: bitmap::Summary,
    idle: Mutex<Vec<Cursor>>,
}

impl Kdump {
    /// Whether a file that begins with `head` has the signature of a dump or of a flattened one.
    #[must_use]
    pub fn has_signature(head: &[u8]) -> bool {
        kdump::has_signature(head) || Self::is_flattened_head(head)
    }

    /// Whether a file that begins with `head` has the signature of a flattened dump.
    #[must_use]
    pub fn is_flattened_head(head: &[u8]) -> bool {
        flattened::has_signature(head)
    }

    /// Opens a dump and reads its headers and bitmaps. Of a split dump this is one part, and the
    /// pages of all others are lost.
    pub fn open(path: &Path) -> Result<Self, KdumpOpenError> {
        set::open(&[path])
    }

    /// Opens a dump in one file, or a split one of which `paths` are the parts, in any order. Parts
    /// that are missing are listed in [`Core::anomalies`].
    pub fn open_set(paths: &[PathBuf]) -> Result<Self, KdumpOpenError> {
        set::open(&paths.iter().map(PathBuf::as_path).collect::<Vec<_>>())
    }

    /// Opens the parts of a dump that was flattened and sent in parts, in their order. Parts may be missing,
    /// but for the first one.
    pub fn open_parts(paths: &[PathBuf]) -> Result<Self, KdumpOpenError> {
        set::open_parts(&paths.iter().map(PathBuf::as_path).collect::<Vec<_>>())
    }

    /// Copies the dump into one plain file, as far as it is there. Descriptors of pages that are not lead
    /// nowhere, and the header says INCOMPLETE if anything is lost. Gives the number of pages that are.
    /// Of a split dump the first file is copied.
    pub fn copy_to(&self, sink: &mut dyn Sink) -> Result<u64, CopyError> {
        copy::copy(self, sink)
    }

    /// What the header says. A split dump is incomplete if any part is.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where the parts of each file lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Pages that were kept. Those of a missing part are among them.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.bitmaps.kept
    }

    /// Whether the dump was split, even if only one part is open.
    #[must_use]
    pub fn is_split(&self) -> bool {
        self.is_split
    }

    /// The open files, in the order of their pages.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.path.as_path())
    }

    /// Whether a file of the dump is flattened.
    #[must_use]
    pub fn is_flattened(&self) -> bool {
        self.parts.iter().any(|part| part.file.flattened().is_some())
    }

    /// The page descriptor of `pfn`, or `None` for a page that the dump leaves out.
    pub fn desc(&self, pfn: Pfn) -> io::Result<Option<PageDesc>> {
        self.with_cursor(|cursor| Ok(cursor.desc(self, pfn)?.map(|(_, desc)| desc)))
    }

    /// Calls `each` with each page of `pages`, the number of the file and its descriptor; `None`
    /// for a page that the dump leaves out or that is no memory, an error for one whose descriptor
    /// cannot be read. Descriptors of data behind the end of the file are zero, as those of lost
    /// pages are. Made for long runs.
    pub fn for_each_page(
        &self,
        pages: PfnRange,
        mut each: impl FnMut(Pfn, io::Result<Option<(usize, PageDesc)>>),
    ) {
        self.with_cursor(|cursor| {
            for pfn in (pages.start().0..pages.end().0).map(Pfn) {
                let found = cursor.desc(self, pfn).map(|found| {
                    let (part, desc) = found?;
                    let file = self.parts.iter().position(|other| core::ptr::eq(other, part))?;
                    Some((file, part.as_far_as_there(desc)))
                });
                each(pfn, found);
            }
        });
    }

    /// Calls `each` with the number of the file and the descriptor, for every descriptor in page
    /// order, reading them in large pieces. Those that were cut off, and those of data that was cut off, are
    /// zero, as those of lost pages are.
    pub fn for_each_desc(&self, mut each: impl FnMut(usize, PageDesc)) -> io::Result<()> {
        let mut bytes = vec![0; kdump::DESC_LEN.saturating_mul(4096)];
        for (index, part) in self.parts.iter().enumerate() {
            let mut left = part.descs;
            let mut offset = part.layout.descs_offset();
            while left > 0 {
                let count = to_usize(left.min(4096));
                let piece = bytes.get_mut(..count.saturating_mul(kdump::DESC_LEN)).unwrap_or_default();
                part.read_descs(piece, offset)?;
                let descs = piece.chunks_exact(kdump::DESC_LEN).filter_map(PageDesc::parse);
                descs.for_each(|desc| each(index, part.as_far_as_there(desc)));
                left = left.saturating_sub(to_u64(count));
                offset = offset.saturating_add(to_u64(piece.len()));
            }
        }
        Ok(())
    }

    /// The file with headers, notes and bitmaps.
    fn file(&self) -> io::Result<&DumpFile> {
        self.parts.first().map(|part| &part.file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The part that has the descriptor of `pfn`.
    fn part_of(&self, pfn: Pfn) -> io::Result<&Part> {
        let next = self.parts.partition_point(|part| part.end <= pfn);
        self.parts.get(next).filter(|part| part.start <= pfn).ok_or_else(|| {
            let start =
                next.checked_sub(1).and_then(|before| self.parts.get(before)).map_or(Pfn(0), |part| part.end);
            let end = self.parts.get(next).map_or(Pfn(self.layout.max_mapnr), |part| part.start);
            io::Error::other(format!("the part of the dump with the pages {start}..{end} is missing"))
        })
    }

    /// Finds out which descriptors each part has.
    fn count_descs(&mut self) -> io::Result<()> {
        let mut cursor = Cursor::default();
        let mut ranks = Vec::new();
        for part in &self.parts {
            ranks.push((cursor.rank(self, part.start)?.0, cursor.rank(self, part.end)?.0));
        }
        for (part, (first, end)) in self.parts.iter_mut().zip(ranks) {
            part.first_rank = first;
            part.descs = end.saturating_sub(first);
        }
        Ok(())
    }

    fn with_cursor<T>(&self, work: impl FnOnce(&mut Cursor) -> T) -> T {
        let idle = || lock(&self.idle);
        let mut cursor = idle().pop().unwrap_or_default();
        let result = work(&mut cursor);
        let mut idle = idle();
        if idle.len() < MAX_IDLE {
            idle.push(cursor);
        }
        result
    }
}

impl PhysicalMemory for Kdump {
    fn page_size(&self) -> PageSize {
        self.layout.page_size
    }

    fn ranges(&self) -> &[PfnRange] {
        &self.bitmaps.ranges
    }

    fn read_exact_at(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), ReadError> {
        self.with_cursor(|cursor| cursor.read_bytes(self, addr, out))
    }

    fn page_reader(&self) -> Box<dyn PageReader + '_> {
        Box::new(Reader::new(self))
    }

    fn absent(&self, pages: PfnRange, each: &mut dyn FnMut(PfnRange)) {
        let result = self.file().and_then(|file| bitmap::absent(file, &self.layout, pages, each));
        if let Err(error) = result {
            // Reading such a page fails on the same bitmap.
            log::warn!("bitmaps of the pages {pages}: {error}; the pages count as lost");
        }
    }
}

impl Core for Kdump {
    fn machine(&self) -> Option<&str> {
        Some(self.header.utsname.machine.as_str()).filter(|machine| !machine.is_empty())
    }

    fn info(&self) -> &VmcoreInfo {
        &self.info
    }

    fn notes(&self) -> &NoteIndex {
        &self.notes
    }

    fn read_note_bytes(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file()?.read_whole(out, offset)
    }

    /// None: the format does not have them.
    fn mappings(&self) -> &[(VirtAddr, PhysAddr, u64)] {
        &[]
    }

    fn anomalies(&self) -> &[Anomaly] {
        &self.anomalies
    }

    fn lost_pages(&self) -> io::Result<u64> {
        let mut there = 0_u64;
        self.for_each_desc(|_, desc| there = there.saturating_add(u64::from(desc.offset != 0)))?;
        Ok(self.bitmaps.kept.saturating_sub(there))
    }

    fn left_out(&self) -> LeftOut {
        let &Header { dump_level, excluded_vmemmap, incomplete, .. } = &self.header;
        LeftOut { level: dump_level, vmemmap: excluded_vmemmap, incomplete }
    }
}
